//! Carries one connection: bytes both ways, each end's close and each end's reset.
//!
//! A direction has no buffer of its own. It reads into one that the thread lends it, writes from there, and keeps only what
//! the other side would not take: an idle connection costs its sockets and its task, nothing else. What is kept is at most one
//! read, and nothing is read before it is gone; so a side that does not read stops the other, and nobody else.

use std::{
    cell::Cell,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll, ready},
};

use rustix::net::{RecvFlags, SendFlags, sockopt};
use tokio::{
    io::{Interest, ReadBuf},
    net::TcpStream,
};

use crate::{Duplex, GuestStream};

/// The most that one read takes while the other side takes all of it: fewer and larger reads are what makes it fast.
const CHUNK: usize = 256 * 1024;

/// The most that one read takes from a side whose bytes were not all taken at once.
const SLOW_CHUNK: usize = 64 * 1024;

/// The same, when connections together keep much already.
const FULL_CHUNK: usize = 8 * 1024;

/// What is much.
const MUCH: usize = 64 << 20;

/// Bytes that are kept, of all connections.
static KEPT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The buffer that this thread lends. Taken while it is in use, so that nothing can borrow it twice.
    static LENT: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Calls `f` with the thread's buffer.
pub(crate) fn with_buffer<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut buffer = LENT
        .take()
        .unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice());
    let result = f(&mut buffer);
    LENT.set(Some(buffer));
    result
}

/// One end of a connection.
trait Side {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;
    /// Waits until a write is likely to take something.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Says that nothing more follows. `last`: nor from here, so that the close, which comes at once, says it as well.
    fn poll_finish(&mut self, cx: &mut Context<'_>, last: bool) -> Poll<io::Result<()>>;
    /// Waits for a reset, or another end that is no end of file, while nobody reads.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// A connection of the kernel. `B` completes when the kernel reports an error on it.
struct Tcp<'a, B> {
    stream: &'a TcpStream,
    broken: Pin<&'a mut B>,
}

/// Returns when the kernel reports an error on the connection.
async fn error_on(stream: &TcpStream) {
    // Fails only when the runtime ends; this task then ends as well.
    let _ = stream.ready(Interest::ERROR).await;
}

impl<B: Future<Output = ()>> Side for Tcp<'_, B> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let mut read = None;
            // A read that does not fill the buffer has emptied the socket. Telling so now saves a second call that would
            // only say the same.
            let result = self.stream.try_io(Interest::READABLE, || {
                let (n, _) = rustix::net::recv(self.stream, &mut *buffer, RecvFlags::empty())?;
                read = Some(n);
                if n > 0 && n < buffer.len() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            if let Some(n) = read {
                return Poll::Ready(Ok(n));
            }
            match result {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(()) => return Poll::Ready(Ok(0)),
            }
        }
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_write_ready(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let mut written = None;
            let result = self.stream.try_io(Interest::WRITABLE, || {
                let n = rustix::net::send(self.stream, bytes, SendFlags::NOSIGNAL)?;
                written = Some(n);
                if n < bytes.len() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            if let Some(n) = written {
                return Poll::Ready(Ok(n));
            }
            match result {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(()) => return Poll::Ready(Ok(0)),
            }
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>, last: bool) -> Poll<io::Result<()>> {
        if last {
            return Poll::Ready(Ok(()));
        }
        let result = rustix::net::shutdown(self.stream, rustix::net::Shutdown::Write);
        Poll::Ready(result.map_err(Into::into))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.broken.as_mut().poll(cx)
    }
}

/// A stream of any other kind.
struct Other<'a>(&'a mut dyn Duplex);

impl Side for Other<'_> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut *self.0).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_writable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, bytes)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>, _: bool) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }

    fn poll_broken(&mut self, _: &mut Context<'_>) -> Poll<()> {
        // Not every stream can tell; it is noticed with the next byte.
        Poll::Pending
    }
}

/// How far one direction is.
#[derive(Default)]
struct Direction {
    /// What was read and not yet taken, from `sent` on. Empty, without memory, most of the time.
    kept: Vec<u8>,
    sent: usize,
    /// The source has said that nothing more follows.
    ended: bool,
    /// And the other side knows.
    finished: bool,
    /// Nothing was written since the last flush.
    flushed: bool,
    /// What was read last was not taken at once.
    slow: bool,
    /// Nothing is read now: the other side does not take what there is.
    held_up: bool,
}

impl Direction {
    /// Moves what can be moved. Ready when the source has ended and the other side knows; an error is the end of both.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
        last: bool,
    ) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        self.held_up = true;
        loop {
            while self.sent < self.kept.len() {
                let n = ready!(to.poll_write(cx, &self.kept[self.sent..]))?;
                self.took(n)?;
            }
            if !self.kept.is_empty() {
                self.keep(&[]);
            }
            if self.ended {
                ready!(to.poll_finish(cx, last))?;
                self.finished = true;
                return Poll::Ready(Ok(()));
            }
            ready!(to.poll_writable(cx))?;
            let limit = self.limit();
            let moved = with_buffer(|buffer| {
                let buffer = &mut buffer[..limit];
                let n = match from.poll_read(cx, buffer) {
                    Poll::Ready(Ok(n)) => n,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => return Poll::Pending,
                };
                self.ended = n == 0;
                self.slow = false;
                let mut sent = 0;
                while sent < n {
                    match to.poll_write(cx, &buffer[sent..n]) {
                        Poll::Ready(Ok(0)) => {
                            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                        }
                        Poll::Ready(Ok(more)) => {
                            sent += more;
                            self.flushed = false;
                        }
                        Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                        Poll::Pending => {
                            self.keep(&buffer[sent..n]);
                            self.slow = true;
                            break;
                        }
                    }
                }
                Poll::Ready(Ok(()))
            });
            match moved {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    self.held_up = false;
                    if !self.flushed {
                        ready!(to.poll_flush(cx))?;
                        self.flushed = true;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Returns how much to read.
    fn limit(&self) -> usize {
        if KEPT.load(Ordering::Relaxed) > MUCH {
            FULL_CHUNK
        } else if self.slow {
            SLOW_CHUNK
        } else {
            CHUNK
        }
    }

    /// Keeps what was not taken, in as much memory as that needs.
    fn keep(&mut self, bytes: &[u8]) {
        KEPT.fetch_sub(self.kept.len(), Ordering::Relaxed);
        KEPT.fetch_add(bytes.len(), Ordering::Relaxed);
        self.kept = bytes.to_vec();
        self.sent = 0;
    }

    fn took(&mut self, n: usize) -> io::Result<()> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.sent += n;
        self.flushed = false;
        Ok(())
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.kept.len(), Ordering::Relaxed);
    }
}

/// Carries the bytes of two sides until both have ended, or one is broken.
async fn carry(mut client: impl Side, mut guest: impl Side) -> io::Result<()> {
    let (mut up, mut down) = (Direction::default(), Direction::default());
    std::future::poll_fn(|cx| {
        let one = up.poll(cx, &mut client, &mut guest, down.finished)?;
        let two = down.poll(cx, &mut guest, &mut client, up.finished)?;
        if one.is_ready() && two.is_ready() {
            return Poll::Ready(Ok(()));
        }
        // Whoever reads a side learns of its reset. A side that nobody reads has to be asked.
        if (up.held_up || up.finished) && client.poll_broken(cx).is_ready()
            || (down.held_up || down.finished) && guest.poll_broken(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Pending
    })
    .await
}

/// Carries a connection to its end. What breaks on one side is a reset on the other.
///
/// Dropped before its end, it resets both sides: bytes are missing, and both must know.
pub(crate) async fn join(client: Resetting, guest: GuestStream) {
    match guest {
        GuestStream::Tcp(guest) => {
            let guest = Resetting::new(guest);
            let result = {
                let (a, b) = (pin!(error_on(&client.0)), pin!(error_on(&guest.0)));
                let a = Tcp {
                    stream: &client.0,
                    broken: a,
                };
                let b = Tcp {
                    stream: &guest.0,
                    broken: b,
                };
                carry(a, b).await
            };
            if result.is_ok() {
                client.in_peace();
                guest.in_peace();
            }
        }
        GuestStream::Other(mut guest) => {
            let result = {
                let a = Tcp {
                    stream: &client.0,
                    broken: pin!(error_on(&client.0)),
                };
                carry(a, Other(&mut *guest)).await
            };
            if result.is_ok() {
                client.in_peace();
            }
        }
    }
}

/// A connection that is reset when it is dropped, unless it ended in peace.
pub(crate) struct Resetting(TcpStream, bool);

impl Resetting {
    /// Takes a connection.
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(stream, true)
    }

    /// Returns the connection.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.0
    }

    fn in_peace(mut self) {
        self.1 = false;
    }
}

impl Drop for Resetting {
    fn drop(&mut self) {
        if self.1 {
            // A connection that is gone already cannot take the option, and needs no reset.
            let _ = sockopt::set_socket_linger(&self.0, Some(std::time::Duration::ZERO));
        }
    }
}
