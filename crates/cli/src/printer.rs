//! The one place that decides what goes to which stream, in which form, and whether it is coloured.
//!
//! stdout carries data, stderr everything else.

use std::io::{self, IsTerminal, Write};

use hostel_model::Failure;
use owo_colors::{OwoColorize, Style};
use serde::Serialize;

use crate::{args::Global, text::printable, trouble::Trouble};

/// Prints for one run of the program.
pub(crate) struct Printer {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    colour_out: bool,
    colour_err: bool,
    stderr_is_terminal: bool,
}

/// What a text means; decides its colour, and never more than its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing special.
    Plain,
    /// A heading.
    Heading,
    /// All is well.
    Good,
    /// Something is odd.
    Odd,
    /// Something is wrong.
    Bad,
}

impl Printer {
    /// Decides by the options and by what the streams are; `plain` is what NO_COLOR and a dumb terminal ask for.
    pub(crate) fn new(global: &Global, plain: bool) -> Self {
        let colour = !global.no_color && !plain;
        let stderr_is_terminal = io::stderr().is_terminal();
        Self {
            json: global.json,
            quiet: global.quiet,
            colour_out: colour && !global.json && io::stdout().is_terminal(),
            colour_err: colour && stderr_is_terminal,
            stderr_is_terminal,
        }
    }

    /// Tells whether a bar that moves can be shown.
    pub(crate) fn shows_progress(&self) -> bool {
        self.stderr_is_terminal && !self.quiet && !self.json
    }

    /// Tells whether anybody wants to read what is going on.
    pub(crate) fn talks(&self) -> bool {
        !self.quiet && !self.json
    }

    /// Returns how many columns the terminal of stdout has; `None` when it is none: a pipe gets whole lines.
    #[expect(
        clippy::unused_self,
        reason = "everything about the streams goes through a printer"
    )]
    pub(crate) fn width(&self) -> Option<usize> {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
        Some(usize::from(size.ws_col)).filter(|w| *w > 0)
    }

    /// Prints data.
    pub(crate) fn data(&self, text: &str) -> Result<(), Trouble> {
        self.bytes(text.as_bytes())
    }

    /// Prints data that need not be text.
    #[expect(
        clippy::unused_self,
        reason = "everything that is printed goes through a printer"
    )]
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Trouble> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)
            .and_then(|()| out.flush())
            .map_err(|e| output_trouble(&e))
    }

    /// Prints data as JSON, indented, with a newline.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Trouble> {
        let mut text =
            serde_json::to_string_pretty(value).expect("our own values have string keys");
        text.push('\n');
        self.data(&text)
    }

    /// Prints data as JSON in one line, for readers of lines.
    pub(crate) fn json_line(&self, value: &impl Serialize) -> Result<(), Trouble> {
        let mut text = serde_json::to_string(value).expect("our own values have string keys");
        text.push('\n');
        self.data(&text)
    }

    /// Says that something has been done.
    pub(crate) fn say(&self, text: &str) {
        if self.talks() {
            tell(&format!("{}\n", printable(text)));
        }
    }

    /// Says that something is odd.
    pub(crate) fn warn(&self, text: &str) {
        if !self.quiet {
            let text = printable(text);
            tell(&format!(
                "{} {text}\n",
                paint("warning:", Tone::Odd, self.colour_err)
            ));
        }
    }

    /// The same while the terminal is raw, where a line must be ended by both characters.
    pub(crate) fn warn_raw(&self, text: &str) {
        if !self.quiet {
            let text = printable(text).replace('\n', "\r\n");
            tell(&format!(
                "\r{} {text}\r\n",
                paint("warning:", Tone::Odd, self.colour_err)
            ));
        }
    }

    /// Tells how the program ends.
    pub(crate) fn trouble(&self, trouble: &Trouble) {
        match trouble {
            Trouble::Failure(failure) => {
                tell(&render_failure(failure, self.colour_err));
                if self.json {
                    tell(&format!(
                        "{}\n",
                        failure_json(failure.code.as_str(), &failure.message, &failure.hints)
                    ));
                }
            }
            Trouble::Usage(message) => {
                tell(&format!(
                    "{} {}\n",
                    paint("error:", Tone::Bad, self.colour_err),
                    printable(message)
                ));
                if self.json {
                    tell(&format!("{}\n", failure_json("usage", message, &[])));
                }
            }
            Trouble::OutputClosed | Trouble::Signal(_) => {}
        }
    }

    /// Gives a hint about something that was not Hostel's own failure.
    pub(crate) fn hint(&self, text: &str) {
        if !self.quiet {
            tell(&format!(
                "{} {}\n",
                paint("hint:", Tone::Good, self.colour_err),
                printable(text)
            ));
        }
    }

    /// Colours a text for stdout.
    pub(crate) fn paint(&self, text: &str, tone: Tone) -> String {
        paint(text, tone, self.colour_out)
    }
}

/// Returns an error as one line of JSON.
pub(crate) fn failure_json(code: &str, message: &str, hints: &[String]) -> String {
    serde_json::json!({ "code": code, "message": message, "hints": hints }).to_string()
}

/// Writes to stderr; when nobody can be told, nothing is left to do.
fn tell(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

fn output_trouble(error: &io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Trouble::OutputClosed,
        _ => Trouble::file("cannot write to standard output", error),
    }
}

fn paint(text: &str, tone: Tone, colour: bool) -> String {
    let style = match tone {
        _ if !colour => return text.to_owned(),
        Tone::Plain => return text.to_owned(),
        Tone::Heading => Style::new().bold(),
        Tone::Good => Style::new().green(),
        Tone::Odd => Style::new().yellow().bold(),
        Tone::Bad => Style::new().red().bold(),
    };
    text.style(style).to_string()
}

fn render_failure(failure: &Failure, colour: bool) -> String {
    let line =
        |word, tone, text: &str| format!("{} {}\n", paint(word, tone, colour), printable(text));
    let mut text = line("error:", Tone::Bad, &failure.message);
    text.extend(
        failure
            .hints
            .iter()
            .map(|hint| line("hint:", Tone::Good, hint)),
    );
    text
}

#[cfg(test)]
mod tests {
    use hostel_model::ErrorCode;

    use super::*;

    #[test]
    fn a_failure_is_one_error_line_and_its_hints() {
        let failure = Failure::new(ErrorCode::DistroNotFound, "no distribution `\x1b[31mx`")
            .hint("run `hostel list`");
        assert_eq!(
            render_failure(&failure, false),
            "error: no distribution `\\u{1b}[31mx`\nhint: run `hostel list`\n"
        );
        assert!(render_failure(&failure, true).contains("\x1b[31;1merror:"));
        assert_eq!(
            failure_json("distro-not-found", "a \"b\"", &["c".into()]),
            r#"{"code":"distro-not-found","hints":["c"],"message":"a \"b\""}"#
        );
    }

    #[test]
    fn a_closed_reader_is_no_failure() {
        assert_eq!(
            output_trouble(&io::ErrorKind::BrokenPipe.into()).exit_code(),
            0
        );
        assert_eq!(
            output_trouble(&io::ErrorKind::StorageFull.into()).exit_code(),
            125
        );
    }

    #[test]
    fn colour_is_off_when_asked_and_in_json() {
        for (json, no_color, plain) in [
            (true, false, false),
            (false, true, false),
            (false, false, true),
        ] {
            let printer = Printer::new(
                &Global {
                    json,
                    quiet: false,
                    no_color,
                },
                plain,
            );
            assert_eq!(printer.paint("x", Tone::Bad), "x");
        }
    }
}
