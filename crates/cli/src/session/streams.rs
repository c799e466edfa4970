//! The streams of a session: claimed, connected to the standard streams, and read to their totals.

use std::{
    io::{IsTerminal, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Duration,
};

use hostel_model::{ErrorCode, Failure, Paths, Token};
use hostel_proto::v1::{StreamKind, StreamToken, StreamTotal};
use tokio::sync::watch;

use super::pump::{self, AtEnd, Flow, Phase};
use crate::{connect, trouble::Trouble};

/// The most streams that one session has.
const MAX_STREAMS: usize = 4;

/// How long bytes that were promised may be on their way without one arriving.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait for more of a stream whose total is not known.
const PATIENCE_UNKNOWN: Duration = Duration::from_secs(1);

/// The connections of one session.
pub(super) struct Streams {
    connections: Vec<(StreamKind, Arc<UnixStream>)>,
    flows: Vec<(StreamKind, watch::Receiver<Flow>)>,
}

impl Streams {
    /// Claims every stream that the daemon names.
    pub(super) fn claim(paths: &Paths, tokens: &[StreamToken]) -> Result<Self, Trouble> {
        if tokens.len() > MAX_STREAMS {
            return Err(protocol(format!(
                "the daemon named {} streams for one session",
                tokens.len()
            )));
        }
        let mut connections = Vec::new();
        for stream in tokens {
            let kind = stream.kind();
            let token = Token::from_bytes(&stream.token).ok_or_else(|| {
                protocol(format!(
                    "the daemon sent a token of {} bytes",
                    stream.token.len()
                ))
            })?;
            if connections.iter().any(|(k, _)| *k == kind) {
                return Err(protocol(format!(
                    "the daemon named the stream {} twice",
                    kind.as_str_name()
                )));
            }
            let mut connection = connect::dial_stream(paths)?;
            connection
                .write_all(token.as_bytes())
                .map_err(|e| Trouble::file("cannot claim a stream", &e))?;
            connections.push((kind, Arc::new(connection)));
        }
        Ok(Self {
            connections,
            flows: Vec::new(),
        })
    }

    fn get(&self, kind: StreamKind) -> Option<&Arc<UnixStream>> {
        self.connections
            .iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, c)| c)
    }

    /// Tells whether standard input's terminal becomes the session's.
    pub(super) fn wants_raw(&self) -> bool {
        self.get(StreamKind::Tty).is_some()
            && self.get(StreamKind::Stdin).is_none()
            && std::io::stdin().is_terminal()
    }

    /// Begins to move bytes.
    pub(super) fn start(&mut self) {
        let stdin_is_terminal = std::io::stdin().is_terminal();
        if let Some(connection) = self.get(StreamKind::Stdin) {
            move_in(Arc::clone(connection), AtEnd::HalfClose);
        } else if let Some(connection) = self.get(StreamKind::Tty) {
            move_in(
                Arc::clone(connection),
                if stdin_is_terminal {
                    AtEnd::HalfClose
                } else {
                    AtEnd::Keep
                },
            );
        }
        for (kind, connection) in &self.connections {
            let to = match kind {
                StreamKind::Tty => screen(),
                StreamKind::Stdout => std::io::stdout().as_fd().try_clone_to_owned().ok(),
                StreamKind::Stderr => std::io::stderr().as_fd().try_clone_to_owned().ok(),
                StreamKind::Stdin | StreamKind::Archive | StreamKind::Unspecified => continue,
            };
            if let Some(to) = to {
                self.flows
                    .push((*kind, pump::output(Arc::clone(connection), to)));
            }
        }
    }

    /// Waits until everything that the session wrote while its command lived has been handed on (TTY-5).
    pub(super) async fn drain(&mut self, totals: &[StreamTotal]) -> Result<(), Trouble> {
        let mut first = Ok(());
        for (kind, flow) in &mut self.flows {
            let total = totals.iter().find(|t| t.kind() == *kind).map(|t| t.bytes);
            first = first.and(drain_one(*kind, flow, total).await);
        }
        first
    }
}

async fn drain_one(
    kind: StreamKind,
    flow: &mut watch::Receiver<Flow>,
    total: Option<u64>,
) -> Result<(), Trouble> {
    let (target, patience) = total.map_or((u64::MAX, PATIENCE_UNKNOWN), |t| (t, PATIENCE));
    loop {
        let reading = {
            let now = flow.borrow_and_update();
            if now.bytes >= target {
                return Ok(());
            }
            match &now.phase {
                Phase::Refused(Some(e)) => {
                    return Err(Trouble::file("cannot write the output of the command", e));
                }
                Phase::Refused(None) => return Ok(()),
                Phase::Ended if total.is_none() => return Ok(()),
                Phase::Ended => return Err(lost(kind, now.bytes, target)),
                Phase::Reading => true,
                Phase::Writing => false,
            }
        };
        // Who reads our output may take any time; who sends it may not.
        let limit = if reading { patience } else { Duration::MAX };
        match tokio::time::timeout(limit, flow.changed()).await {
            Ok(_) => {}
            Err(_) if total.is_none() => return Ok(()),
            Err(_) => return Err(lost(kind, flow.borrow().bytes, target)),
        }
    }
}

fn lost(kind: StreamKind, got: u64, total: u64) -> Trouble {
    let name = match kind {
        StreamKind::Tty => "terminal output",
        StreamKind::Stderr => "standard error",
        _ => "standard output",
    };
    Failure::new(
        ErrorCode::Daemon,
        format!("the command has ended, but only {got} of {total} bytes of its {name} arrived"),
    )
    .hint("run `hostel logs daemon` to see why")
    .into()
}

fn protocol(message: String) -> Trouble {
    Failure::new(ErrorCode::Protocol, message).into()
}

fn move_in(connection: Arc<UnixStream>, at_end: AtEnd) {
    if let Ok(from) = std::io::stdin().as_fd().try_clone_to_owned() {
        pump::input(from, connection, at_end);
    }
}

/// Returns where the session's terminal is shown: the first standard stream that is one, else the controlling terminal.
fn screen() -> Option<OwnedFd> {
    if std::io::stdout().is_terminal() {
        return std::io::stdout().as_fd().try_clone_to_owned().ok();
    }
    if std::io::stderr().is_terminal() {
        return std::io::stderr().as_fd().try_clone_to_owned().ok();
    }
    // Both are redirected and standard input is a terminal, perhaps one opened for reading only.
    match fs_err::OpenOptions::new().write(true).open("/dev/tty") {
        Ok(file) => Some(file.into_parts().0.into()),
        Err(_) => std::io::stdout().as_fd().try_clone_to_owned().ok(),
    }
}
