//! What a session runs, and what is said on its control socket.
//!
//! The socket is a `SOCK_SEQPACKET` pair: one JSON message a packet, at most [`MAX_PACKET`] bytes. Both ends are the same
//! binary, so there is no version.

use serde::{Deserialize, Serialize};

use crate::spec::EnvVar;

/// The largest packet on any control socket, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// The largest [`ExecJob`] as JSON, in bytes; larger ones are refused before anything runs.
pub const MAX_JOB_BYTES: usize = 4 << 20;

/// One command to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecJob {
    /// What to run.
    pub program: Program,
    /// User name; `None` is the default user (CLI-35).
    pub user: Option<String>,
    /// Where to start: `None` is the home directory; `~` home, `~x` home followed by `x`, or an absolute path. One that
    /// cannot be entered is a warning: the command starts in the home directory, else in `/`.
    pub directory: Option<Directory>,
    /// Laid over the distribution's environment; HOME, USER, LOGNAME, SHELL, NAME, WSL_DISTRO_NAME and a LANG from the
    /// distribution's locale file win over it (ENV-3).
    pub env: Vec<EnvVar>,
    /// Standard input.
    pub stdin: Stdio,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error.
    pub stderr: Stdio,
    /// First size of the terminal.
    pub window: WindowSize,
}

/// A starting directory as bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory(#[serde(with = "crate::text::bytes")] pub Vec<u8>);

/// What a session runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// The user's shell as a login shell (`argv[0]` is `-sh`).
    LoginShell,
    /// One string for the user's shell: `$SHELL -c STRING`.
    ShellCommand(#[serde(with = "crate::text::bytes")] Vec<u8>),
    /// Executed as it is; a first word without `/` is searched in PATH. Must not be empty.
    Argv(#[serde(with = "crate::text::list")] Vec<Vec<u8>>),
}

/// What one of the command's three standard streams is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// The session's pty.
    Tty,
    /// A pipe to or from the caller.
    Pipe,
    /// `/dev/null`.
    Null,
}

/// Size of a terminal; zero where unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
    /// Width.
    pub x_pixels: u16,
    /// Height.
    pub y_pixels: u16,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandEnd {
    /// It exited with this code, 0 to 255.
    Exited(u8),
    /// A signal ended it.
    Signaled {
        /// The signal's number.
        signal: u8,
        /// Whether it dumped core.
        core: bool,
    },
}

/// What a session tells its caller, in this order. The socket ends after `Empty`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionReport {
    /// The command itself ended; its descendants may live on. Everything it wrote can be read without waiting by then.
    Exited(CommandEnd),
    /// No descendant of the command is left; the session process ends.
    Empty,
}

/// What a caller asks of a session. Closing the socket is the same as `Hangup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionRequest {
    /// Gives the terminal a new size.
    Resize(WindowSize),
    /// Sends a signal to the foreground process group of the terminal, else to the command's process group.
    Signal(u8),
    /// The client is gone: the session lets go of its terminal, which hangs up as soon as the caller has closed
    /// [`SessionHandle::tty_master`](crate::SessionHandle::tty_master) too.
    Hangup,
}
