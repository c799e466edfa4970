//! One session: its pumps, and the task that waits for its end.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hostel_instance::{
    CommandEnd, SessionHandle, SessionReport, SessionRequest, WireError, read_report, send_request,
};
use hostel_proto::v1::{self, StreamKind};
use tokio::io::ReadHalf;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::dial::BoxStream;
use crate::agent::pump::{self, Input, Output, OutputConnection, Tally};
use crate::agent::ready::{self, ReadyFd};

/// Where new connections of one stream go.
struct Slot {
    kind: StreamKind,
    output: Option<mpsc::Sender<OutputConnection>>,
    input: Option<mpsc::Sender<ReadHalf<BoxStream>>>,
}

/// A session that runs, or whose end was not told yet.
pub(super) struct Live {
    distro: String,
    pid: u32,
    control: Arc<ReadyFd>,
    /// Empty once no connection may come any more.
    slots: Mutex<Vec<Slot>>,
    hangup: CancellationToken,
    end: watch::Receiver<Option<v1::SessionExited>>,
}

impl Live {
    /// Starts the pumps of a session, and the task that waits for its end and then gives the permit back.
    ///
    /// `terminal` says whether the terminal is one of its streams.
    pub(super) fn new(
        distro: String,
        handle: SessionHandle,
        terminal: bool,
        permit: OwnedSemaphorePermit,
        tasks: &TaskTracker,
    ) -> io::Result<Arc<Self>> {
        let hangup = CancellationToken::new();
        let mut tallies = Vec::new();
        let mut slots = Vec::new();
        let output = |kind, end: pump::End| {
            let (sender, connections) = mpsc::channel(pump::WAITING);
            let (pump, tally) =
                Output::new(end, kind == StreamKind::Tty, connections, hangup.clone());
            tasks.spawn(pump.run());
            (sender, tally)
        };
        let input = |terminal, end: pump::End| {
            let (sender, connections) = mpsc::channel(pump::WAITING);
            tasks.spawn(Input::new(end, terminal, connections, hangup.clone()).run());
            sender
        };
        let master = pump::end(handle.tty_master)?;
        let (sender, tally) = output(StreamKind::Tty, master.clone());
        if terminal {
            tallies.push((StreamKind::Tty, tally));
            slots.push(Slot {
                kind: StreamKind::Tty,
                output: Some(sender),
                input: Some(input(true, master)),
            });
        }
        // A terminal that is no stream of the session (TTY-1) has lost its sender here: what is written to it is dropped.
        if let Some(fd) = handle.stdin {
            slots.push(Slot {
                kind: StreamKind::Stdin,
                output: None,
                input: Some(input(false, pump::end(fd)?)),
            });
        }
        for (kind, fd) in [
            (StreamKind::Stdout, handle.stdout),
            (StreamKind::Stderr, handle.stderr),
        ] {
            if let Some(fd) = fd {
                let (sender, tally) = output(kind, pump::end(fd)?);
                tallies.push((kind, tally));
                slots.push(Slot {
                    kind,
                    output: Some(sender),
                    input: None,
                });
            }
        }
        let control = Arc::new(ready::readable(handle.control)?);
        let (ended, end) = watch::channel(None);
        tasks.spawn(supervise(control.clone(), tallies, ended, permit));
        Ok(Arc::new(Self {
            distro,
            pid: handle.pid,
            control,
            slots: Mutex::new(slots),
            hangup,
            end,
        }))
    }

    pub(super) fn distro(&self) -> &str {
        &self.distro
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn has_stream(&self, kind: StreamKind) -> bool {
        self.slots().iter().any(|s| s.kind == kind)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Returns the end of the command, as soon as there is one. Cancel safe.
    pub(super) async fn ended(&self) -> v1::SessionExited {
        let mut end = self.end.clone();
        let known = end
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|e| e.clone());
        // The sender leaves a value behind in every case; without one the session process was killed.
        known.unwrap_or_else(|| killed(Vec::new()))
    }

    /// Hands connections to the pumps, which let go of those they had.
    pub(super) async fn connect(&self, connections: Vec<(StreamKind, BoxStream)>) {
        for (kind, stream) in connections {
            let (output, input) = match self.slots().iter().find(|s| s.kind == kind) {
                Some(slot) => (slot.output.clone(), slot.input.clone()),
                None => (None, None),
            };
            let (read, write) = tokio::io::split(stream);
            // A pump that has ended drops the connection, which is how its client learns of the end.
            match (output, input) {
                (Some(output), Some(input)) => {
                    let _ = output.send(OutputConnection { write, read: None }).await;
                    let _ = input.send(read).await;
                }
                (Some(output), None) => {
                    let _ = output
                        .send(OutputConnection {
                            write,
                            read: Some(read),
                        })
                        .await;
                }
                (None, Some(input)) => {
                    let _ = input.send(read).await;
                }
                (None, None) => {}
            }
        }
    }

    pub(super) fn request(&self, request: SessionRequest) -> Result<(), WireError> {
        send_request(self.control.get_ref().as_fd(), request)
    }

    /// Hangs the terminal up and closes the pipes.
    pub(super) fn hangup(&self) {
        // The session lets go of its side first; the pumps' ends are then the last ones. One that is gone needs nothing.
        let _ = self.request(SessionRequest::Hangup);
        self.hangup.cancel();
        self.forget();
    }

    /// Lets no connection come any more.
    pub(super) fn forget(&self) {
        self.slots().clear();
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the end of the command, tells it, and keeps the control socket (whose end would be a hang-up) until no
/// descendant is left.
async fn supervise(
    control: Arc<ReadyFd>,
    tallies: Vec<(StreamKind, Tally)>,
    ended: watch::Sender<Option<v1::SessionExited>>,
    permit: OwnedSemaphorePermit,
) {
    loop {
        let Ok(mut ready) = control.readable().await else {
            break;
        };
        match read_report(control.get_ref().as_fd(), Instant::now()) {
            Ok(Some(SessionReport::Exited(end))) => {
                ended.send_replace(Some(exited(end, totals(&tallies))));
            }
            Err(WireError::Timeout) => ready.clear_ready(),
            Ok(Some(SessionReport::Empty) | None) | Err(_) => break,
        }
    }
    ended.send_if_modified(|end| {
        let unknown = end.is_none();
        if unknown {
            *end = Some(killed(totals(&tallies)));
        }
        unknown
    });
    drop(permit);
}

fn totals(tallies: &[(StreamKind, Tally)]) -> Vec<v1::StreamTotal> {
    tallies
        .iter()
        .map(|(kind, tally)| v1::StreamTotal {
            kind: (*kind).into(),
            bytes: tally.count(),
        })
        .collect()
}

fn exited(end: CommandEnd, totals: Vec<v1::StreamTotal>) -> v1::SessionExited {
    match end {
        CommandEnd::Exited(code) => v1::SessionExited {
            code: code.into(),
            signal: 0,
            core_dumped: false,
            totals,
        },
        CommandEnd::Signaled { signal, core } => v1::SessionExited {
            code: 0,
            signal: signal.into(),
            core_dumped: core,
            totals,
        },
    }
}

/// The end of a session whose processes were killed all at once, with the distribution.
fn killed(totals: Vec<v1::StreamTotal>) -> v1::SessionExited {
    exited(
        CommandEnd::Signaled {
            signal: 9,
            core: false,
        },
        totals,
    )
}
