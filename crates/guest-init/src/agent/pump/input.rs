//! From the host to a session.

use rustix::io::Errno;
use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{BUFFER, End};
use crate::agent::dial::BoxStream;

/// The pump from connections to a pipe or terminal.
pub(crate) struct Input {
    fd: End,
    terminal: bool,
    connections: mpsc::Receiver<ReadHalf<BoxStream>>,
    hangup: CancellationToken,
}

impl Input {
    /// Makes a pump.
    pub(crate) fn new(
        fd: End,
        terminal: bool,
        connections: mpsc::Receiver<ReadHalf<BoxStream>>,
        hangup: CancellationToken,
    ) -> Self {
        Self {
            fd,
            terminal,
            connections,
            hangup,
        }
    }

    /// Pumps until the input is at its end. Then the session's end is closed, which is the end of file for the command.
    ///
    /// The end of a connection is the end of a pipe. For a terminal it means nothing: there the end is a character (Ctrl-D)
    /// or a hang-up.
    pub(crate) async fn run(mut self) {
        let mut current: Option<ReadHalf<BoxStream>> = None;
        let mut closed = false;
        let mut buffer = vec![0; BUFFER];
        let mut have = 0..0;
        loop {
            if current.is_none() && have.is_empty() && closed {
                return;
            }
            let moved = async {
                if have.is_empty() {
                    match read(&mut current, &mut buffer).await {
                        Some(0) if !self.terminal => return false,
                        Some(0) | None => current = None,
                        Some(read) => have = 0..read,
                    }
                } else {
                    match write(&self.fd, &buffer[have.clone()]).await {
                        Some(written) => have.start += written,
                        // Nobody reads any more: the connection ends, and the client with it stops sending.
                        None => return false,
                    }
                }
                true
            };
            tokio::select! {
                biased;
                () = self.hangup.cancelled() => return,
                next = self.connections.recv(), if !closed => match next {
                    Some(next) => current = Some(next),
                    None => closed = true,
                },
                more = moved => if !more { return },
            }
        }
    }
}

/// Reads some; `None` when the connection broke. Waits for ever without one. Cancel safe.
async fn read(current: &mut Option<ReadHalf<BoxStream>>, buffer: &mut [u8]) -> Option<usize> {
    match current {
        Some(connection) => connection.read(buffer).await.ok(),
        None => std::future::pending().await,
    }
}

/// Writes some; `None` when the other end is closed. Cancel safe: nothing waits after bytes were written.
async fn write(fd: &End, bytes: &[u8]) -> Option<usize> {
    loop {
        let mut ready = fd.writable().await.ok()?;
        match rustix::io::write(fd.get_ref(), bytes) {
            Ok(written) => return Some(written),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}
