//! A caller's side of a session.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::job::{ExecJob, SessionReport, SessionRequest, Stdio};
use super::{ExecFailure, SessionReply};
use crate::wire::{self, WireError};

/// How long a command may take to start (BOOT-34).
pub(crate) const EXEC_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a command did not start.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The job itself is wrong.
    #[error("invalid command: {0}")]
    InvalidJob(String),
    /// The distribution's passwd file does not have the user.
    #[error("user `{0}` not found")]
    UnknownUser(String),
    /// There is no such program (exit status 127 of shells).
    #[error("command `{program}` not found")]
    NotFound {
        /// As it was asked for.
        program: String,
    },
    /// The program is there but cannot be executed (exit status 126 of shells).
    #[error("cannot execute `{program}`")]
    NotExecutable {
        /// As it was asked for.
        program: String,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// The session could not be set up.
    #[error("cannot set up a session ({step})")]
    Setup {
        /// What failed.
        step: String,
        /// Why.
        source: std::io::Error,
    },
    /// The distribution has ended, or ends now.
    #[error("the distribution is not running")]
    NotRunning,
    /// The session process ended without an answer.
    #[error("the session ended before its command started")]
    Ended,
    /// No answer in time.
    #[error("the command did not start within {} s", EXEC_TIMEOUT.as_secs())]
    Timeout,
    /// The control socket failed.
    #[error("cannot talk to the session")]
    Wire(#[source] WireError),
}

/// A running session. Whoever holds it holds the terminal: dropping everything hangs the session up.
#[derive(Debug)]
pub struct SessionHandle {
    /// The command, in the PID namespace it runs in.
    pub pid: u32,
    /// Packet socket for [`SessionReport`] and [`SessionRequest`], non-blocking.
    pub control: OwnedFd,
    /// The terminal, blocking. Close it after [`SessionRequest::Hangup`] to hang the terminal up.
    pub tty_master: OwnedFd,
    /// Writing end of the command's standard input, when that is a pipe; blocking, as all of them.
    pub stdin: Option<OwnedFd>,
    /// Reading end of the command's standard output, when that is a pipe.
    pub stdout: Option<OwnedFd>,
    /// Reading end of the command's standard error, when that is a pipe.
    pub stderr: Option<OwnedFd>,
    /// What was done otherwise than asked.
    pub warnings: Vec<String>,
}

impl SessionHandle {
    /// Waits for the first answer of a session process.
    pub(crate) fn accept(control: OwnedFd, job: &ExecJob) -> Result<Self, ExecError> {
        let deadline = Some(Instant::now() + EXEC_TIMEOUT);
        let (reply, fds) = match wire::receive::<SessionReply>(&control, deadline) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(ExecError::Ended),
            Err(WireError::Timeout) => return Err(ExecError::Timeout),
            Err(error) => return Err(ExecError::Wire(error)),
        };
        let (pid, warnings) = match reply {
            SessionReply::Started { pid, warnings } => (pid, warnings),
            SessionReply::Failed(failure) => return Err(failure.into()),
        };
        let mut fds = fds.into_iter();
        let tty_master = fds.next().ok_or(ExecError::Ended)?;
        let mut pipe = |kind| {
            if kind == Stdio::Pipe {
                fds.next()
            } else {
                None
            }
        };
        let (stdin, stdout, stderr) = (pipe(job.stdin), pipe(job.stdout), pipe(job.stderr));
        Ok(Self {
            pid,
            control,
            tty_master,
            stdin,
            stdout,
            stderr,
            warnings,
        })
    }

    /// Sends a request; see [`send_request`].
    pub fn request(&self, request: SessionRequest) -> Result<(), WireError> {
        send_request(self.control.as_fd(), request)
    }

    /// Waits for the next report until the deadline ([`WireError::Timeout`]); `None` after the last one.
    pub fn read_report(&self, deadline: Instant) -> Result<Option<SessionReport>, WireError> {
        read_report(self.control.as_fd(), deadline)
    }
}

/// Sends a request to a session. Never blocks; a session that is gone gives `BrokenPipe`.
pub fn send_request(control: BorrowedFd<'_>, request: SessionRequest) -> Result<(), WireError> {
    wire::send(control, &request, &[])
}

/// Waits for a session's next report until the deadline ([`WireError::Timeout`]); `None` after the last one.
///
/// With a deadline in the past it never blocks: the form for a control socket that an event loop found readable.
pub fn read_report(
    control: BorrowedFd<'_>,
    deadline: Instant,
) -> Result<Option<SessionReport>, WireError> {
    Ok(wire::receive(control, Some(deadline))?.map(|(report, _)| report))
}

impl From<ExecFailure> for ExecError {
    fn from(failure: ExecFailure) -> Self {
        let error = std::io::Error::from_raw_os_error;
        match failure {
            ExecFailure::InvalidJob(what) => Self::InvalidJob(what),
            ExecFailure::UnknownUser(user) => Self::UnknownUser(user),
            ExecFailure::NotFound { program } => Self::NotFound { program },
            ExecFailure::NotExecutable { program, errno } => Self::NotExecutable {
                program,
                source: error(errno),
            },
            ExecFailure::Setup { step, errno } => Self::Setup {
                step,
                source: error(errno),
            },
        }
    }
}
