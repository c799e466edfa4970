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
        self.render_within(None)
    }

    /// Writes the table; with a width, the last column goes on in further lines where it is too long.
    pub(crate) fn render_within(&self, width: Option<usize>) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widest = |column: usize| {
            self.rows
                .iter()
                .filter_map(|r| r.get(column))
                .map(|c| c.width())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(widest).collect();
        let before: usize = widths.iter().rev().skip(1).map(|w| w + 2).sum();
        let room = width.map_or(usize::MAX, |w| w.saturating_sub(before).max(LEAST_ROOM));
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column + 1 == columns {
                    line.push_str(&wrap(cell, room).join(&format!("\n{}", " ".repeat(before))));
                } else {
                    line.push_str(cell);
                    line.push_str(&" ".repeat(width - cell.width() + 2));
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// A column that is wrapped keeps at least this width, however narrow the terminal is.
const LEAST_ROOM: usize = 24;

/// Breaks a text at blanks into lines of at most `width`; a word that is longer stays whole.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    if text.width() <= width {
        return vec![text.to_owned()];
    }
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Lines of `label: value`, those without a value left out.
#[derive(Default)]
pub(crate) struct Facts(Vec<(&'static str, String)>);

impl Facts {
    /// Adds a line.
    pub(crate) fn add(&mut self, label: &'static str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.0.push((label, value));
        }
    }

    /// Writes the lines, the values in one column.
    pub(crate) fn render(&self) -> String {
        let width = self
            .0
            .iter()
            .map(|(label, _)| label.len())
            .max()
            .unwrap_or(0);
        let mut out = String::new();
        for (label, value) in &self.0 {
            let value = value.replace('\n', " ");
            out.extend([
                *label,
                " ".repeat(width - label.len() + 2).as_str(),
                &printable(&value),
                "\n",
            ]);
        }
        out
    }
}

/// Returns a number, or nothing when it is not known.
pub(crate) fn number(n: u32) -> String {
    if n == 0 { String::new() } else { n.to_string() }
}

/// Returns a value with a remark behind it.
pub(crate) fn with(value: &str, remark: &str) -> String {
    if value.is_empty() || remark.is_empty() {
        value.to_owned()
    } else {
        format!("{value} ({remark})")
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
    fn the_last_column_goes_on_below_itself() {
        let mut table = Table::new(&["PORT", "REASON"]);
        table.row(["80", "port 80 of the host is used by process 17 (nginx)"]);
        table.row(["8", ""]);
        assert_eq!(
            table.render_within(Some(30)),
            "PORT  REASON\n\
             80    port 80 of the host is\n      \
             used by process 17\n      \
             (nginx)\n\
             8\n"
        );
        assert_eq!(table.render_within(Some(3)), table.render_within(Some(30)));
        assert_eq!(table.render().lines().count(), 3);
        assert_eq!(wrap("a-long-word b", 4), ["a-long-word", "b"]);
    }

    #[test]
    fn facts_without_a_value_are_left_out() {
        let mut facts = Facts::default();
        facts.add("a", "1");
        facts.add("nothing", "");
        facts.add("long", with("x\ny", "z"));
        assert_eq!(facts.render(), "a     1\nlong  x y (z)\n");
        assert_eq!((number(0), number(7)), (String::new(), "7".into()));
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
