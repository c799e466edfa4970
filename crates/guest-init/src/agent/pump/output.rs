//! From a session to the host.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_util::FutureExt;
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{BUFFER, End};
use crate::agent::dial::BoxStream;
use crate::agent::ready::ReadyFd;

/// The most bytes that a count takes out of a terminal: more than its buffers hold, so that all that was written before the
/// count is counted, and an end for what is written meanwhile.
const MAX_SPILL: usize = 256 << 10;

/// A connection that takes output.
pub(crate) struct OutputConnection {
    /// Where the bytes go.
    pub(crate) write: WriteHalf<BoxStream>,
    /// The other direction, where nothing else uses it: tells a reader that closed on purpose from a lost connection.
    pub(crate) read: Option<ReadHalf<BoxStream>>,
}

/// How much a session wrote to one stream, kept while it is pumped.
#[derive(Clone)]
pub(crate) struct Tally {
    shared: Arc<Shared>,
    /// Weak: counting must not keep a pipe open whose pump has let go of it.
    fd: Weak<ReadyFd>,
    terminal: bool,
}

struct Shared {
    counted: Mutex<Counted>,
    spilled: Notify,
}

#[derive(Default)]
struct Counted {
    /// Bytes that left the terminal or pipe.
    total: u64,
    /// Bytes among them that the pump has not taken yet.
    spill: Vec<u8>,
}

impl Tally {
    /// Returns how many bytes the session has written up to now.
    ///
    /// The kernel says how much a pipe holds. A terminal has more buffers than it tells of: it is read empty, into memory.
    pub(crate) fn count(&self) -> u64 {
        let mut counted = self.shared.lock();
        let Some(fd) = self.fd.upgrade() else {
            return counted.total;
        };
        if !self.terminal {
            return counted.total + rustix::io::ioctl_fionread(fd.get_ref()).unwrap_or(0);
        }
        let mut buffer = [0; 4096];
        while counted.spill.len() < MAX_SPILL {
            match rustix::io::read(fd.get_ref(), &mut buffer[..]) {
                Ok(0) | Err(_) => break,
                Ok(read) => {
                    counted.spill.extend_from_slice(&buffer[..read]);
                    counted.total += read as u64;
                }
            }
        }
        if !counted.spill.is_empty() {
            self.shared.spilled.notify_one();
        }
        counted.total
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pump itself.
pub(crate) struct Output {
    fd: End,
    shared: Arc<Shared>,
    connections: mpsc::Receiver<OutputConnection>,
    hangup: CancellationToken,
    buffer: Vec<u8>,
    sent: usize,
}

impl Output {
    /// Makes a pump and its tally.
    pub(crate) fn new(
        fd: End,
        terminal: bool,
        connections: mpsc::Receiver<OutputConnection>,
        hangup: CancellationToken,
    ) -> (Self, Tally) {
        let shared = Arc::new(Shared {
            counted: Mutex::default(),
            spilled: Notify::new(),
        });
        let tally = Tally {
            shared: shared.clone(),
            fd: Arc::downgrade(&fd),
            terminal,
        };
        (
            Self {
                fd,
                shared,
                connections,
                hangup,
                buffer: Vec::new(),
                sent: 0,
            },
            tally,
        )
    }

    /// Pumps until the session's end is at its end and everything is delivered, or the session is hung up.
    ///
    /// When no connection can come any more (the sender is gone) and there is none, what still comes is dropped, so that
    /// background children of a session whose client is gone go on.
    pub(crate) async fn run(mut self) {
        let mut current: Option<OutputConnection> = None;
        let mut closed = false;
        let mut ended = false;
        let hangup = self.hangup.clone();
        loop {
            if self.sent == self.buffer.len() && ended {
                if let Some(mut connection) = current.take() {
                    // A connection that is gone needs no end.
                    let _ = connection.write.shutdown().await;
                }
                if closed {
                    return;
                }
            }
            let waiting = self.sent < self.buffer.len();
            if waiting && current.is_none() && closed {
                // Nobody is there and nobody can come.
                self.sent = self.buffer.len();
                continue;
            }
            let moved = async {
                if waiting {
                    write(&mut current, &self.buffer[self.sent..])
                        .await
                        .map(|written| self.sent += written)
                } else if ended {
                    std::future::pending().await
                } else {
                    self.sent = 0;
                    ended = !fill(&self.fd, &self.shared, &mut self.buffer)
                        .await
                        .unwrap_or(false);
                    Ok(())
                }
            };
            tokio::select! {
                biased;
                () = hangup.cancelled() => return,
                next = self.connections.recv(), if !closed => match next {
                    Some(next) => current = Some(next),
                    None => closed = true,
                },
                moved = moved => match moved {
                    Ok(()) => {}
                    Err(Lost::ReaderClosed) => return,
                    Err(Lost::Broken) => current = None,
                },
            }
        }
    }
}

/// Takes what there is into the buffer, whose bytes are all sent; `false`, and an empty buffer, at the end.
/// Cancel safe: nothing waits after bytes were taken.
async fn fill(fd: &End, shared: &Shared, buffer: &mut Vec<u8>) -> io::Result<bool> {
    buffer.clear();
    loop {
        {
            let mut counted = shared.lock();
            if !counted.spill.is_empty() {
                *buffer = std::mem::take(&mut counted.spill);
                return Ok(true);
            }
        }
        let mut ready = tokio::select! {
            biased;
            () = shared.spilled.notified() => continue,
            ready = fd.readable() => ready?,
        };
        // The count and the read are one step for everyone else: this thread does both without waiting between.
        let mut counted = shared.lock();
        if !counted.spill.is_empty() {
            continue;
        }
        buffer.reserve(BUFFER);
        match rustix::io::read(fd.get_ref(), rustix::buffer::spare_capacity(buffer)) {
            Ok(read) => {
                counted.total += read as u64;
                return Ok(read > 0);
            }
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            // A terminal whose last slave was closed.
            Err(Errno::IO) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

enum Lost {
    /// The peer reads no more but is there: what writes gets EPIPE, as from a closed pipe (TTY-3).
    ReaderClosed,
    /// The connection is gone; another may come.
    Broken,
}

async fn write(current: &mut Option<OutputConnection>, bytes: &[u8]) -> Result<usize, Lost> {
    // Without a connection there is nothing to do but to wait for one.
    let Some(connection) = current else {
        return std::future::pending().await;
    };
    let error = match connection.write.write(bytes).await {
        Ok(0) => io::ErrorKind::WriteZero.into(),
        Ok(written) => return Ok(written),
        Err(error) => error,
    };
    let peer_is_there = connection
        .read
        .as_mut()
        .is_some_and(|r| r.read(&mut [0]).now_or_never().is_none());
    Err(
        if error.kind() == io::ErrorKind::BrokenPipe && peer_is_there {
            Lost::ReaderClosed
        } else {
            Lost::Broken
        },
    )
}
