//! Options of what runs a command.

use std::ffi::{OsStr, OsString};

use clap::{
    Args,
    builder::{OsStringValueParser, TypedValueParser},
};
use clap_complete::ArgValueCandidates;
use hostel_model::DistroName;

use crate::complete;

/// A command through the user's shell, or a login shell.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Distribution to run in [default: the one of `hostel set-default`]
    #[arg(short, long, value_name = "NAME", add = ArgValueCandidates::new(complete::distros))]
    pub(crate) distro: Option<DistroName>,
    /// User to run as [default: the distribution's default user]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Directory inside to start in: an absolute path, `~` or `~/…` [default: the user's home]
    #[arg(long, value_name = "DIR", value_parser = directory())]
    pub(crate) cd: Option<OsString>,
    /// Keep the session when this client ends; come back with `hostel attach`
    #[arg(long)]
    pub(crate) keep: bool,
    /// Command and arguments [default: a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Run a program in a distribution without a shell
///
/// The arguments reach the program exactly as they are, whatever bytes they hold.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hostel exec trixie -- ls -la /etc
  hostel exec trixie -u root -e DEBUG=1 -- systemctl status
  tar c . | hostel exec trixie --cd /srv -- tar x")]
pub(crate) struct ExecArgs {
    /// Distribution to run in
    #[arg(add = ArgValueCandidates::new(complete::distros))]
    pub(crate) name: DistroName,
    /// User to run as [default: the distribution's default user]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Directory inside to start in: an absolute path, `~` or `~/…` [default: the user's home]
    #[arg(long, value_name = "DIR", value_parser = directory())]
    pub(crate) cd: Option<OsString>,
    /// Set a variable; without a value it is copied from here when it is set
    #[arg(short, long, value_name = "VAR[=VALUE]", value_parser = variable())]
    pub(crate) env: Vec<OsString>,
    /// Keep the session when this client ends; come back with `hostel attach`
    #[arg(long)]
    pub(crate) keep: bool,
    /// Program, looked up in PATH inside, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Take over the terminal of a session whose client is gone
#[derive(Debug, Args)]
#[command(after_help = "Example: hostel attach 6f1c2a58-… (see `hostel sessions`)")]
pub(crate) struct AttachArgs {
    /// Id of the session; its beginning is enough when only one session has it
    pub(crate) session: String,
}

/// Open a root shell in the virtual machine itself, outside every distribution
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  hostel debug-shell\n  hostel debug-shell -- dmesg")]
pub(crate) struct DebugShellArgs {
    /// Program to run instead of the shell, with its arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Takes `~`, `~/…` and absolute paths; anything else would be a path of the host, which nothing shares yet.
fn directory() -> impl TypedValueParser<Value = OsString> {
    OsStringValueParser::new().try_map(|value| match value.as_encoded_bytes() {
        [b'/' | b'~', ..] => Ok(value),
        _ => Err("write an absolute path inside the distribution, `~` or `~/…`"),
    })
}

/// Takes `VAR` and `VAR=VALUE`.
fn variable() -> impl TypedValueParser<Value = OsString> {
    OsStringValueParser::new().try_map(|value| match split_variable(&value).0 {
        [] => Err("the name of the variable is missing"),
        _ => Ok(value),
    })
}

/// Splits `VAR=VALUE` at the first `=`.
pub(crate) fn split_variable(text: &OsStr) -> (&[u8], Option<&[u8]>) {
    let bytes = text.as_encoded_bytes();
    match bytes.iter().position(|b| *b == b'=') {
        Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
        None => (bytes, None),
    }
}
