//! Small texts: tables, times, and what is safe to show on a terminal.

use std::borrow::Cow;

use unicode_width::UnicodeWidthStr;

/// Escapes the control characters of a text that a guest, an archive or a peer may have chosen.
///
/// A newline and a tab stay. Without this, the name of an operating system could write to the clipboard of a terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    text.chars()
        .map(|c| {
            if harmless(c) {
                c.to_string()
            } else {
                c.escape_unicode().to_string()
            }
        })
        .collect::<String>()
        .into()
}

/// A table without lines: columns two spaces apart, wide characters counted as wide, no blanks at the end of a line.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Begins a table with its headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = Self::default();
        table.row(headings.iter().copied());
        table
    }

    /// Adds a row; control characters are escaped, newlines too.
    pub(crate) fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let clean = |cell: T| printable(&cell.as_ref().replace(['\n', '\t'], " ")).into_owned();
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// Writes the table, one line a row.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|r| r.get(column))
                .map(|c| c.width())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat(width - cell.width() + 2));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Writes a time of the clock in UTC, to the second; empty when it is not known.
pub(crate) fn clock(unix: u64) -> String {
    match i64::try_from(unix).map(jiff::Timestamp::from_second) {
        Ok(Ok(time)) if unix > 0 => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        _ => String::new(),
    }
}

/// Writes how long something has lasted, with its two largest units.
pub(crate) fn lasted(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_counts_wide_characters_as_wide() {
        let mut table = Table::new(&["NAME", "OS"]);
        table.row(["日本", "x"]);
        table.row(["a", "b\u{7}\nc"]);
        table.row(["long-name", ""]);
        assert_eq!(
            table.render(),
            "NAME       OS\n日本       x\na          b\\u{7} c\nlong-name\n"
        );
        assert_eq!(Table::default().render(), "");
    }

    #[test]
    fn times_are_short() {
        for (ms, want) in [
            (0, "0.0s"),
            (2950, "2.9s"),
            (61_000, "1m 1s"),
            (7_500_000, "2h 5m"),
            (90_000_000, "1d 1h"),
        ] {
            assert_eq!(lasted(ms), want);
        }
        assert_eq!(clock(1_700_000_000), "2023-11-14 22:13:20Z");
        assert_eq!(clock(0), "");
        assert_eq!(clock(u64::MAX), "");
    }

    #[test]
    fn nothing_that_moves_a_terminal_gets_through() {
        assert_eq!(printable("a\tb\n"), "a\tb\n");
        assert_eq!(
            printable("\x1b]52;c;\x07\u{9b}é"),
            "\\u{1b}]52;c;\\u{7}\\u{9b}é"
        );
    }
}
