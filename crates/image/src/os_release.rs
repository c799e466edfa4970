//! The file by which a distribution tells its name.

/// What `/etc/os-release` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsRelease {
    /// `ID`, the flavour (IMG-3).
    pub id: Option<String>,
    /// `VERSION_ID` (IMG-3).
    pub version_id: Option<String>,
    /// `PRETTY_NAME`, for people; control characters removed, at most 200 characters.
    pub pretty_name: Option<String>,
}

impl OsRelease {
    /// Reads a file's bytes; lines that cannot be understood are passed over, of two equal keys the last one counts.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut out = Self::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            let Some((key, value)) = line.trim().split_once('=') else {
                continue;
            };
            let Some(value) = unquoted(value) else {
                continue;
            };
            match key {
                "ID" => out.id = plain(value),
                "VERSION_ID" => out.version_id = plain(value),
                "PRETTY_NAME" => {
                    let text: String = value
                        .chars()
                        .filter(|c| !c.is_control())
                        .take(200)
                        .collect();
                    out.pretty_name = (!text.is_empty()).then_some(text);
                }
                _ => {}
            }
        }
        out
    }
}

/// IMG-3: letters, digits and `-_.,` only.
fn plain(value: String) -> Option<String> {
    let good = value
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.,".contains(c));
    (good && !value.is_empty() && value.len() <= 256).then_some(value)
}

/// Undoes the shell's quoting; `None` for what is not one word.
fn unquoted(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.trim_end().chars();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            ('\\', None) => out.push(chars.next()?),
            ('\\', Some('"')) => match chars.next()? {
                c @ ('"' | '\\' | '$' | '`') => out.push(c),
                c => out.extend(['\\', c]),
            },
            (' ' | '\t' | ';' | '&' | '|' | '<' | '>' | '(' | ')', None) => return None,
            (c, _) => out.push(c),
        }
    }
    quote.is_none().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IMG-3.
    #[test]
    fn files_of_real_distributions_are_read() {
        let debian = b"PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"13\"\n# c\nID=debian\n";
        let want = |id: &str, version: Option<&str>, pretty: &str| OsRelease {
            id: Some(id.to_owned()),
            version_id: version.map(str::to_owned),
            pretty_name: Some(pretty.to_owned()),
        };
        assert_eq!(
            OsRelease::parse(debian),
            want("debian", Some("13"), "Debian GNU/Linux 13 (trixie)")
        );
        let arch = b"NAME=\"Arch Linux\"\nPRETTY_NAME='Arch Linux'\nID=arch\nBUILD_ID=rolling\r\n";
        assert_eq!(OsRelease::parse(arch), want("arch", None, "Arch Linux"));
    }

    #[test]
    fn what_is_no_plain_word_is_left_out() {
        for (line, id) in [
            ("ID=a-b_c.1,2", Some("a-b_c.1,2")),
            ("ID='x'\"y\"z", Some("xyz")),
            ("ID=\"a b\"", None),
            ("ID=a b", None),
            ("ID=\"open", None),
            ("ID=", None),
            ("ID=../x", None),
            ("ID=caf\u{e9}", None),
            ("ID=a\nID=b", Some("b")),
            ("XID=a", None),
            ("ID=\\", None),
            (" ID=a ", Some("a")),
        ] {
            assert_eq!(
                OsRelease::parse(line.as_bytes()).id.as_deref(),
                id,
                "{line}"
            );
        }
        let dirty = OsRelease::parse(b"PRETTY_NAME=\"a\x1b[31m\xff \\\"b\\\" \\x\"\n").pretty_name;
        assert_eq!(dirty.as_deref(), Some("a[31m\u{fffd} \"b\" \\x"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = OsRelease::parse(&[b"ID=", &bytes[..]].concat());
        }
    }
}
