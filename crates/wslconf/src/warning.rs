//! What is wrong with a file, and where.

use std::fmt;

/// How grave a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The reference goes on with what it understood, and so does the caller.
    Warning,
    /// Nothing should be started with this file: it is one of ours, or the reference refuses as well.
    Error,
}

/// One problem and its place. Prints as `line:column: what`; put the file's path and a colon in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// How grave it is.
    pub level: Level,
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.problem)
    }
}

/// What can be wrong in a file. Texts taken from the file are escaped and cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A line that does not follow the grammar (CNF-2, CNF-3).
    #[error("invalid line: {what}; {}", if *.ends_file { "the rest of the file is ignored" } else { "the line is ignored" })]
    InvalidLine {
        /// What does not fit.
        what: &'static str,
        /// Whether the file ends here for the reader (CNF-4).
        ends_file: bool,
    },
    /// A key that the file does not have.
    #[error("unknown key `{0}`")]
    UnknownKey(String),
    /// A key for the second time (CNF-5).
    #[error("`{key}` was set in line {first} already; this line is ignored")]
    Duplicate {
        /// The key with its section.
        key: String,
        /// The line whose value counts.
        first: u32,
    },
    /// A value that the key cannot take; the default is kept.
    #[error("`{key}` cannot be `{value}`: {why}; the default is kept")]
    BadValue {
        /// The key with its section.
        key: String,
        /// The value.
        value: String,
        /// What it should be.
        why: String,
    },
    /// One part of a list that the key cannot take; the other parts count.
    #[error("`{key}` cannot hold `{value}`: {why}; it is left out")]
    BadItem {
        /// The key with its section.
        key: String,
        /// The part.
        value: String,
        /// What it should be.
        why: String,
    },
    /// A key that needs another one.
    #[error("`{key}` needs `{needs}` as well")]
    Needs {
        /// The key with its section.
        key: &'static str,
        /// The missing one.
        needs: &'static str,
    },
}

/// Makes a text of a file fit to print: escaped, at most 100 characters.
pub(crate) fn shown(text: &str) -> String {
    const MAX: usize = 100;
    let mut out: String = text
        .chars()
        .take(MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(MAX).is_some() {
        out.push('…');
    }
    out
}
