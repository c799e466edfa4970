//! Reading `/etc/os-release` (IMG-3).

use crate::state::OsInfo;

/// The longest value that is taken, in bytes.
const MAX_VALUE: usize = 256;

/// Reads the three values that are kept. `ID` and `VERSION_ID` count only when made of letters, digits and `-_.,`.
pub(crate) fn parse(bytes: &[u8]) -> OsInfo {
    let mut os = OsInfo::default();
    for line in String::from_utf8_lossy(bytes).lines() {
        let Some((key, value)) = line.trim().split_once('=') else {
            continue;
        };
        let value = unquote(value);
        if value.len() > MAX_VALUE {
            continue;
        }
        match key {
            "ID" if is_plain(&value) => os.id = value,
            "VERSION_ID" if is_plain(&value) => os.version = value,
            "PRETTY_NAME" => os.pretty_name = value.chars().filter(|c| !c.is_control()).collect(),
            _ => {}
        }
    }
    os
}

fn is_plain(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.,".contains(c))
}

/// Takes the quotes of os-release(5) away: one pair around the whole, backslashes inside double ones.
fn unquote(text: &str) -> String {
    if let Some(inner) = text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
        return inner.to_owned();
    }
    let inner = text
        .strip_prefix('"')
        .and_then(|t| t.strip_suffix('"'))
        .unwrap_or(text);
    let mut out = String::with_capacity(inner.len());
    let mut escaped = false;
    for c in inner.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            out.push(c);
            escaped = false;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_values_are_found_and_checked() {
        let os = parse(b"PRETTY_NAME=\"Debian \\\"12\\\"\"\nID=debian\nVERSION_ID='12'\n# x\nID_LIKE=x\n\xff=1\n");
        assert_eq!((os.id.as_str(), os.version.as_str()), ("debian", "12"));
        assert_eq!(os.pretty_name, "Debian \"12\"");
        let odd = parse(b"ID=a b\nVERSION_ID=\"$(x)\"\nPRETTY_NAME=\"a\x1b[31m\"");
        assert_eq!(
            (
                odd.id.as_str(),
                odd.version.as_str(),
                odd.pretty_name.as_str()
            ),
            ("", "", "a[31m")
        );
    }
}
