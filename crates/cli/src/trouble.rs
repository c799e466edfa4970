//! How the program ends when it does not end well.

use std::io;

use hostel_model::{ErrorCode, Failure};
use tonic::Status;

/// Why a verb did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// Something failed; told with its hints.
    #[error(transparent)]
    Failure(Failure),
    /// The command line is wrong in a way that only shows after parsing.
    #[error("{0}")]
    Usage(String),
    /// The reader of our output has gone, which is no failure.
    #[error("the reader of the output has gone")]
    OutputClosed,
    /// A signal asked us to leave.
    #[error("ended by signal {0}")]
    Signal(i32),
}

impl Trouble {
    /// Makes a failure of an error about a file.
    pub(crate) fn file(what: impl std::fmt::Display, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::StorageFull {
            ErrorCode::DiskFull
        } else {
            ErrorCode::File
        };
        Self::Failure(Failure::new(code, format!("{what}: {}", plain(error))))
    }

    /// Returns the exit status: 125 Hostel failed, 126 not executable, 127 not found, 2 wrong use, 128+n a signal.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failure(f) => match f.code {
                ErrorCode::CommandNotFound => 127,
                ErrorCode::CommandNotExecutable => 126,
                _ => 125,
            },
            Self::Usage(_) => 2,
            Self::OutputClosed => 0,
            Self::Signal(n) => signal_code(*n as u32),
        }
    }
}

/// Returns the exit status that stands for a signal.
pub(crate) fn signal_code(signal: u32) -> u8 {
    128 | (signal & 0x7f) as u8
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Status> for Trouble {
    /// A status without our mark did not come from the daemon: the connection broke.
    fn from(status: Status) -> Self {
        let ours = status.metadata().contains_key("hostel-code");
        let local = std::error::Error::source(&status).is_some();
        if !ours
            && (local
                || !matches!(
                    status.code(),
                    tonic::Code::Unimplemented | tonic::Code::InvalidArgument
                ))
        {
            let why = std::error::Error::source(&status).map_or_else(
                || status.message().to_owned(),
                |source| Failure::from_error(ErrorCode::Daemon, source).message,
            );
            return Failure::new(
                ErrorCode::Daemon,
                format!("lost the connection to the daemon: {why}"),
            )
            .hint("run `hostel logs daemon` to see why it ended")
            .into();
        }
        let mut failure = hostel_proto::failure_of(&status);
        if status.code() == tonic::Code::Unimplemented {
            failure.message = "the daemon is older than this client and cannot do this".into();
            failure
                .hints
                .push("run `hostel shutdown --daemon`, then try again".into());
        }
        failure.into()
    }
}

/// Returns the text of an error without the number of the system call's error and what a library put behind it.
pub(crate) fn plain(error: &io::Error) -> String {
    let mut text = error.to_string();
    if let Some(end) = text.find(" (os error ") {
        text.truncate(end);
        if let Some(first) = text.get_mut(..1) {
            first.make_ascii_lowercase();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_exit_status() {
        let failure = |code| Trouble::Failure(Failure::new(code, "x"));
        for (trouble, want) in [
            (failure(ErrorCode::DistroNotFound), 125),
            (failure(ErrorCode::Internal), 125),
            (failure(ErrorCode::CommandNotFound), 127),
            (failure(ErrorCode::CommandNotExecutable), 126),
            (Trouble::Usage("x".into()), 2),
            (Trouble::OutputClosed, 0),
            (Trouble::Signal(15), 143),
        ] {
            assert_eq!(trouble.exit_code(), want, "{trouble:?}");
        }
    }

    #[test]
    fn a_broken_connection_is_told_apart_from_an_answer() {
        let answer =
            Failure::new(ErrorCode::DistroNotFound, "no distribution `x`").hint("hostel list");
        let Trouble::Failure(got) = Trouble::from(hostel_proto::status_of(&answer)) else {
            panic!("a failure")
        };
        assert_eq!(got, answer);
        let Trouble::Failure(got) = Trouble::from(Status::unknown("h2 protocol error")) else {
            panic!("a failure")
        };
        assert_eq!(got.code, ErrorCode::Daemon);
        let Trouble::Failure(got) = Trouble::from(Status::unimplemented("")) else {
            panic!("a failure")
        };
        assert_eq!(got.code, ErrorCode::Incompatible);
        assert_eq!(got.hints.len(), 1);
    }

    #[test]
    fn an_error_of_the_system_reads_as_a_sentence() {
        assert_eq!(
            plain(&io::Error::from_raw_os_error(2)),
            "no such file or directory"
        );
        assert_eq!(plain(&io::Error::other("strange")), "strange");
    }
}
