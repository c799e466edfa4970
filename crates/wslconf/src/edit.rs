//! Changes one key of a text and leaves everything else as it is (CFG-2).

use crate::{FileKind, ini::parse};

/// Why a key cannot be changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Section and key are letters and digits, with a letter first.
    #[error("`{0}` cannot be the name of a section or a key")]
    BadName(String),
    /// The value holds something that the grammar cannot express.
    #[error("the value holds a control character that cannot be written")]
    BadValue,
    /// The key would stand behind a line at which reading ends.
    #[error("line {0} is invalid and ends the file for its reader; mend it first")]
    Hidden(u32),
}

/// Returns the text with `section.key` set: in place of its first occurrence, else at the end of its section, else in a
/// new section at the end. Comments, order and line ends stay.
pub fn set(
    text: &str,
    kind: FileKind,
    section: &str,
    key: &str,
    value: &str,
) -> Result<String, EditError> {
    let name = checked_name(section, key)?;
    let value = quoted(value)?;
    let document = parse(text, kind);
    if let Some(entry) = document.entries.iter().find(|entry| entry.name == name) {
        let mut out = text.to_owned();
        out.replace_range(entry.raw_value.clone(), &value);
        return Ok(out);
    }
    if let Some(warning) = document
        .warnings
        .first()
        .filter(|_| kind.stops_at_invalid_line())
    {
        return Err(EditError::Hidden(warning.line));
    }
    let line_end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let line = format!("{key}={value}{line_end}");
    let wanted = section.to_ascii_lowercase();
    let Some(header) = document
        .sections
        .iter()
        .position(|section| section.name == wanted)
    else {
        let joint = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            line_end
        };
        let gap = if text.trim().is_empty() { "" } else { line_end };
        return Ok(format!("{text}{joint}{gap}[{section}]{line_end}{line}"));
    };
    // Behind the last key of the section's first part, or behind its header.
    let start = document.sections[header].end;
    let end = document
        .sections
        .get(header + 1)
        .map_or(text.len(), |next| next.end);
    let inside = document
        .entries
        .iter()
        .filter(|entry| (start..end).contains(&entry.lines.start));
    let at = inside.map(|entry| entry.lines.end).max().unwrap_or(start);
    // One line end where the last line has none, one more where that one is escaped and joins the lines.
    let (before, after) = text.split_at(at);
    let candidates =
        ["", line_end, &line_end.repeat(2)].map(|joint| format!("{before}{joint}{line}{after}"));
    let stands = |out: &String| {
        parse(out, kind)
            .entries
            .iter()
            .any(|entry| entry.name == name)
    };
    Ok(candidates
        .into_iter()
        .find(stands)
        .expect("a line of its own is read, since no invalid line hides it"))
}

/// Returns the text without any line that sets `section.key`.
pub fn remove(text: &str, kind: FileKind, section: &str, key: &str) -> Result<String, EditError> {
    let name = checked_name(section, key)?;
    let mut out = text.to_owned();
    for entry in parse(text, kind)
        .entries
        .iter()
        .rev()
        .filter(|entry| entry.name == name)
    {
        out.replace_range(entry.lines.clone(), "");
    }
    Ok(out)
}

fn checked_name(section: &str, key: &str) -> Result<String, EditError> {
    for name in [section, key] {
        let good = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric());
        if !good {
            return Err(EditError::BadName(crate::warning::shown(name)));
        }
    }
    Ok(format!("{section}.{key}").to_ascii_lowercase())
}

/// Writes a value so that it reads back as it is.
fn quoted(value: &str) -> Result<String, EditError> {
    let mut out = String::new();
    for c in value.chars() {
        match c {
            '\\' => out.push_str(r"\\"),
            '"' => out.push_str(r#"\""#),
            '\n' => out.push_str(r"\n"),
            '\t' => out.push_str(r"\t"),
            '\u{8}' => out.push_str(r"\b"),
            c if c.is_control() => return Err(EditError::BadValue),
            c => out.push(c),
        }
    }
    let needs_quotes = value.contains('#') || value.starts_with(' ') || value.ends_with(' ');
    Ok(if needs_quotes {
        format!("\"{out}\"")
    } else {
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: FileKind = FileKind::WslConfig;

    /// CFG-2.
    #[test]
    fn setting_keeps_everything_else() {
        for (before, after) in [
            ("", "[b]\nk=v\n"),
            ("[b]\n", "[b]\nk=v\n"),
            ("[b]", "[b]\nk=v\n"),
            ("[a]\nx=1", "[a]\nx=1\n\n[b]\nk=v\n"),
            (
                "# c\n[b] # s\n  K = old  # why\nk=2\n",
                "# c\n[b] # s\n  K = v  # why\nk=2\n",
            ),
            (
                "[b]\nx=1\n\n# next\n[c]\ny=1\n",
                "[b]\nx=1\nk=v\n\n# next\n[c]\ny=1\n",
            ),
            ("[b]\r\nx=1\r\n", "[b]\r\nx=1\r\nk=v\r\n"),
            ("[b]\nk=\"a \\\n b\" # c\nx=1\n", "[b]\nk=v # c\nx=1\n"),
            ("[b]\nk=\n", "[b]\nk=v\n"),
            ("[b]\n; bad\n", "[b]\nk=v\n; bad\n"),
        ] {
            assert_eq!(
                set(before, KIND, "b", "k", "v").as_deref(),
                Ok(after),
                "{before:?}"
            );
        }
    }

    #[test]
    fn removing_takes_every_occurrence_and_its_lines() {
        for (before, after) in [
            (
                "[b]\nk=1 # c\nx=1\nK=\"a\\\nb\"\n[B]\nk=2",
                "[b]\nx=1\n[B]\n",
            ),
            ("[a]\nk=1\n", "[a]\nk=1\n"),
            ("", ""),
        ] {
            assert_eq!(
                remove(before, KIND, "b", "k").as_deref(),
                Ok(after),
                "{before:?}"
            );
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert_eq!(
            set("[b]\n; bad\n", FileKind::WslConf, "b", "k", "v"),
            Err(EditError::Hidden(2))
        );
        assert_eq!(set("", KIND, "b", "k", "a\u{1}"), Err(EditError::BadValue));
        assert!(matches!(
            set("", KIND, "b", "k.x", "v"),
            Err(EditError::BadName(_))
        ));
        assert!(matches!(
            remove("", KIND, "", "k"),
            Err(EditError::BadName(_))
        ));
    }

    proptest::proptest! {
        #[test]
        fn what_was_set_reads_back(text in "(\\[[ab]\\]|[ab]=[ x\"#\\\\]{0,4}|#c|\r|\n){0,12}", value in "[ -~é\n\t]{0,20}") {
            let changed = set(&text, KIND, "a", "b", &value).unwrap();
            let entries = parse(&changed, KIND).entries;
            let got = entries.iter().find(|entry| entry.name == "a.b").map(|entry| entry.value.clone());
            proptest::prop_assert_eq!(got, Some(value));
            let gone = remove(&changed, KIND, "a", "b").unwrap();
            proptest::prop_assert!(parse(&gone, KIND).entries.iter().all(|entry| entry.name != "a.b"));
        }
    }
}
