//! The grammar that all of WSL's configuration files share (CNF-1 to CNF-4).

use std::{iter::Peekable, ops::Range, str::CharIndices};

use crate::warning::{Level, Problem, Warning};

/// Which file a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// `/etc/wsl.conf`.
    WslConf,
    /// `/etc/wsl-distribution.conf`.
    WslDistributionConf,
    /// `.wslconfig` of the reference.
    WslConfig,
    /// `hostel.conf`: the same keys, but the file is ours, so that every problem is an error.
    HostelConf,
}

impl FileKind {
    /// Tells whether reading ends at the first invalid line (CNF-4).
    pub(crate) fn stops_at_invalid_line(self) -> bool {
        matches!(self, Self::WslConf | Self::WslDistributionConf)
    }

    pub(crate) fn level(self) -> Level {
        if self == Self::HostelConf {
            Level::Error
        } else {
            Level::Warning
        }
    }
}

/// One `key = value`, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Section and key in lower case, joined by a dot.
    pub(crate) name: String,
    /// The same as written.
    pub(crate) written: String,
    pub(crate) value: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
    /// Bytes of the whole entry with its line end.
    pub(crate) lines: Range<usize>,
    /// Bytes of the value as written, without blanks and comment.
    pub(crate) raw_value: Range<usize>,
}

/// A section's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    /// In lower case.
    pub(crate) name: String,
    /// Where the line after it begins.
    pub(crate) end: usize,
}

/// A text taken apart.
#[derive(Debug, Default)]
pub(crate) struct Document {
    pub(crate) entries: Vec<Entry>,
    pub(crate) sections: Vec<Section>,
    pub(crate) warnings: Vec<Warning>,
}

/// Takes a text apart.
pub(crate) fn parse(text: &str, kind: FileKind) -> Document {
    let mut document = Document::default();
    let mut cursor = Cursor {
        text,
        chars: text.char_indices().peekable(),
        line: 1,
        line_start: 0,
    };
    if cursor.peek() == Some('\u{feff}') {
        cursor.next();
        cursor.line_start = cursor.at();
    }
    let mut section = String::new();
    while cursor.peek().is_some() {
        let Err((line, column, what)) = line(&mut cursor, &mut section, &mut document) else {
            continue;
        };
        let ends_file = kind.stops_at_invalid_line();
        let problem = Problem::InvalidLine { what, ends_file };
        document.warnings.push(Warning {
            level: kind.level(),
            line,
            column,
            problem,
        });
        if ends_file {
            break;
        }
        cursor.skip_line();
    }
    document
}

type Invalid = (u32, u32, &'static str);

fn line(
    cursor: &mut Cursor<'_>,
    section: &mut String,
    document: &mut Document,
) -> Result<(), Invalid> {
    let start = cursor.at();
    cursor.skip_blanks();
    let (line, column) = (cursor.line, cursor.column());
    match cursor.peek() {
        None | Some('\n' | '#') => cursor.skip_line(),
        Some('[') => {
            cursor.next();
            cursor.skip_blanks();
            let name = cursor
                .name()
                .ok_or_else(|| cursor.invalid("a section's name is letters and digits"))?;
            cursor.skip_blanks();
            if cursor.next() != Some(']') {
                return Err((line, column, "`]` is missing behind the section's name"));
            }
            cursor.skip_blanks();
            if !matches!(cursor.peek(), None | Some('\n' | '#')) {
                return Err(cursor.invalid("only a comment may follow a section's name"));
            }
            cursor.skip_line();
            name.clone_into(section);
            document.sections.push(Section {
                name: name.to_ascii_lowercase(),
                end: cursor.at(),
            });
        }
        Some(_) => {
            let key = cursor
                .name()
                .ok_or_else(|| cursor.invalid("a key begins with a letter"))?;
            cursor.skip_blanks();
            if cursor.peek() != Some('=') {
                return Err(
                    cursor.invalid("`=` is missing behind the key, which is letters and digits")
                );
            }
            cursor.next();
            cursor.skip_blanks();
            let (value, raw_value) = value(cursor)?;
            let written = if section.is_empty() {
                key.to_owned()
            } else {
                format!("{section}.{key}")
            };
            document.entries.push(Entry {
                name: written.to_ascii_lowercase(),
                written,
                value,
                line,
                column,
                lines: start..cursor.at(),
                raw_value,
            });
        }
    }
    Ok(())
}

/// Reads a value up to and with its line end.
fn value(cursor: &mut Cursor<'_>) -> Result<(String, Range<usize>), Invalid> {
    let mut value = String::new();
    // How much of the value stays when blanks at its end are cut; quoted and escaped ones are never cut.
    let mut solid = 0;
    let start = cursor.at();
    let mut end = start;
    let mut quote = None;
    loop {
        let here = cursor.place();
        let Some(c) = cursor.peek() else { break };
        match c {
            '\n' => break,
            '#' if quote.is_none() => break,
            '"' => {
                quote = if quote.is_some() { None } else { Some(here) };
                cursor.next();
            }
            '\\' => {
                cursor.next();
                match cursor.next() {
                    Some('\\') => value.push('\\'),
                    Some('"') => value.push('"'),
                    Some('b') => value.push('\u{8}'),
                    Some('n') => value.push('\n'),
                    Some('t') => value.push('\t'),
                    Some('\n') => {}
                    _ => {
                        return Err(cursor.invalid_at(
                            here,
                            r#"after `\` comes `\`, `"`, `b`, `n`, `t` or the line's end"#,
                        ));
                    }
                }
            }
            ' ' | '\t' | '\r' if quote.is_none() => {
                value.push(c);
                cursor.next();
                continue;
            }
            _ => {
                value.push(c);
                cursor.next();
            }
        }
        solid = value.len();
        end = cursor.at();
    }
    if let Some(place) = quote {
        return Err(cursor.invalid_at(place, "a quote is not closed"));
    }
    value.truncate(solid);
    cursor.skip_line();
    Ok((value, start..end))
}

struct Cursor<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    line: u32,
    line_start: usize,
}

impl<'a> Cursor<'a> {
    /// Returns the next character; the two of a DOS line end count as one line end.
    fn peek(&mut self) -> Option<char> {
        let (at, c) = *self.chars.peek()?;
        if c == '\r' && self.text[at + 1..].starts_with('\n') {
            Some('\n')
        } else {
            Some(c)
        }
    }

    fn next(&mut self) -> Option<char> {
        let seen = self.peek()?;
        let (_, c) = self.chars.next()?;
        if seen == '\n' {
            if c == '\r' {
                self.chars.next();
            }
            self.line += 1;
            self.line_start = self.at();
        }
        Some(seen)
    }

    fn at(&mut self) -> usize {
        self.chars.peek().map_or(self.text.len(), |(at, _)| *at)
    }

    /// Returns line, its start and the place in it, cheaply: columns are counted only for what is told.
    fn place(&mut self) -> (u32, usize, usize) {
        (self.line, self.line_start, self.at())
    }

    fn invalid_at(&self, (line, start, at): (u32, usize, usize), what: &'static str) -> Invalid {
        (line, self.text[start..at].chars().count() as u32 + 1, what)
    }

    fn column(&mut self) -> u32 {
        let at = self.at();
        self.text[self.line_start..at].chars().count() as u32 + 1
    }

    fn invalid(&mut self, what: &'static str) -> Invalid {
        (self.line, self.column(), what)
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\r')) {
            self.next();
        }
    }

    /// Goes behind the next line end.
    fn skip_line(&mut self) {
        while let Some(c) = self.next() {
            if c == '\n' {
                break;
            }
        }
    }

    /// Reads a letter and the letters and digits behind it.
    fn name(&mut self) -> Option<&'a str> {
        let start = self.at();
        if !self.peek()?.is_ascii_alphabetic() {
            return None;
        }
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric()) {
            self.next();
        }
        let end = self.at();
        Some(&self.text[start..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str, kind: FileKind) -> (Vec<(String, String)>, Vec<u32>) {
        let document = parse(text, kind);
        let pairs = document
            .entries
            .into_iter()
            .map(|e| (e.name, e.value))
            .collect();
        (pairs, document.warnings.iter().map(|w| w.line).collect())
    }

    /// CNF-1, CNF-2, CNF-3.
    #[test]
    fn values_are_read_as_the_reference_reads_them() {
        for (text, want) in [
            ("a=b", Some("b")),
            ("  a  =  b c  ", Some("b c")),
            ("a=", Some("")),
            ("a=b # comment", Some("b")),
            ("a=b#c", Some("b")),
            (r#"a="b # c""#, Some("b # c")),
            (r#"a=" b " "#, Some(" b ")),
            (r#"a=x" b "y  # z"#, Some("x b y")),
            (r"a=C:\\Temp\\x", Some(r"C:\Temp\x")),
            (r#"a=\"b\"\t\n\b"#, Some("\"b\"\t\n\u{8}")),
            ("a=b \\\n c", Some("b  c")),
            ("a=b\\\r\nc\r\n", Some("bc")),
            (
                r#"a="b\
c""#,
                Some("bc"),
            ),
            ("a=b;c", Some("b;c")),
            ("a=[b]=c", Some("[b]=c")),
            ("\u{feff}a=b", Some("b")),
            ("A1=grün", Some("grün")),
            (r"a=C:\Temp", None),
            ("a=b\\", None),
            (r#"a="b"#, None),
            ("a=\"b\nc\"", None),
            ("; no comment", None),
            ("a b=c", None),
            ("a", None),
            ("1a=b", None),
            ("a-b=c", None),
            ("a.b=c", None),
            ("=b", None),
            ("ä=b", None),
            ("[a", None),
            ("[a]b", None),
            ("[]", None),
            ("[1a]", None),
            ("[a b]", None),
        ] {
            let (pairs, warnings) = pairs(text, FileKind::WslConf);
            assert_eq!(
                pairs.first().map(|(_, value)| value.as_str()),
                want,
                "{text}"
            );
            assert_eq!(warnings.is_empty(), want.is_some(), "{text}");
        }
    }

    /// CNF-1.
    #[test]
    fn sections_prefix_keys_and_case_does_not_count() {
        let text = "Top = 1\n [ Boot ] # yes\nSystemD=true\n\n[USER]\ndefault = x\n";
        let want = [
            ("top", "1"),
            ("boot.systemd", "true"),
            ("user.default", "x"),
        ];
        let (got, warnings) = pairs(text, FileKind::WslConf);
        assert_eq!(got, want.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(warnings, [0; 0]);
    }

    /// CNF-4.
    #[test]
    fn invalid_lines_end_one_file_and_are_skipped_in_the_other() {
        let text = "[a]\nb=1\nc=C:\\x\nd=2\n; no\n\"\ne=3\n";
        let keys = |kind| {
            pairs(text, kind)
                .0
                .into_iter()
                .map(|(k, _)| k)
                .collect::<Vec<_>>()
        };
        assert_eq!(keys(FileKind::WslConf), ["a.b"]);
        assert_eq!(pairs(text, FileKind::WslConf).1, [3]);
        assert_eq!(keys(FileKind::WslConfig), ["a.b", "a.d", "a.e"]);
        assert_eq!(pairs(text, FileKind::WslConfig).1, [3, 5, 6]);
        let document = parse(text, FileKind::WslConf);
        assert_eq!(document.warnings[0].column, 5);
        assert!(
            document.warnings[0]
                .to_string()
                .ends_with("the rest of the file is ignored")
        );
    }

    #[test]
    fn an_invalid_line_takes_no_other_with_it() {
        for bad in ["a=\\", "a=\"x", "a=x\\q", "[", "a", "[x]y", "a=\\\r"] {
            let text = format!("{bad}\nnext=1");
            let (got, warnings) = pairs(&text, FileKind::WslConfig);
            // A backslash before the line's end joins the lines: that is no mistake.
            let joins = bad == "a=\\" || bad == "a=\\\r";
            assert_eq!(got.len(), 1, "{bad}");
            assert_eq!(warnings.len(), usize::from(!joins), "{bad}");
            assert_eq!(got[0].0, if joins { "a" } else { "next" });
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(text in "[\\[\\]a-z=\"#\\\\ \t\r\n;é\u{feff}]{0,80}") {
            for kind in [FileKind::WslConf, FileKind::HostelConf] {
                let document = parse(&text, kind);
                for entry in document.entries {
                    proptest::prop_assert!(entry.lines.contains(&entry.raw_value.start) || entry.raw_value.is_empty());
                    proptest::prop_assert!(text.get(entry.lines).is_some() && text.get(entry.raw_value).is_some());
                }
            }
        }
    }
}
