//! Words on the machine's console, by way of the kernel's log.
//!
//! The kernel's log is used because it exists before everything else, is kept (`dmesg`), and reaches the console that the
//! host records. Lines of level "error" and above reach it also on a quiet kernel.

use std::fmt::Display;
use std::io::Write;

/// How bad a line is, in the kernel's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// The machine cannot go on.
    Fatal = 2,
    /// A step failed.
    Error = 3,
    /// Odd; the text says what was done instead.
    Warning = 4,
}

/// The longest line that goes to the kernel's log, in bytes; the kernel itself refuses more than about 1,000.
const MAX_LINE: usize = 900;

/// Writes one line. Never fails: where there is no kernel log the line goes to standard error.
pub(crate) fn say(level: Level, what: impl Display) {
    let line = line_of(level, &what.to_string());
    let log = fs_err::OpenOptions::new().write(true).open("/dev/kmsg");
    if log.and_then(|mut f| f.write_all(line.as_bytes())).is_err() {
        // Nothing is left to tell this to when it fails too.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// Writes an error with its whole chain of sources.
pub(crate) fn say_error(step: &str, error: &(dyn std::error::Error + 'static)) {
    say(Level::Error, format_args!("{step}: {}", chain(error)));
}

/// Returns an error and its sources as one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    hostel_model::Failure::from_error(hostel_model::ErrorCode::Internal, error).message
}

fn line_of(level: Level, text: &str) -> String {
    let mut body: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if body.len() > MAX_LINE {
        let mut end = MAX_LINE;
        while !body.is_char_boundary(end) {
            end -= 1;
        }
        body.truncate(end);
    }
    format!("<{}>hostel: {body}\n", level as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_of_bounded_length() {
        assert_eq!(line_of(Level::Error, "a\nb"), "<3>hostel: a b\n");
        let long = line_of(Level::Warning, &"é".repeat(2000));
        assert!(long.len() < 1000 && long.ends_with("é\n"));
    }
}
