//! A connection as its owner sees it, and the end that the device shares with it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tokio_vsock::VsockStream;

/// What the device leaves to a connection's owner when it lets go of the connection.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    /// Bytes from the guest that did not fit in the socket any more; bounded by the connection's credit.
    pub(crate) tail: Vec<u8>,
    /// The guest, or the device, ended the connection without having said that all was sent.
    pub(crate) cut_off: bool,
}

/// The remains, shared by both ends.
pub(crate) type Shared = Arc<Mutex<Remains>>;

/// One accepted connection from the guest: a byte stream with a real half-close.
///
/// `shutdown` (of `AsyncWriteExt`) ends the host's half, the guest then reads the end of the stream and may go on sending.
/// Reading gives 0 bytes only when the guest ended its half properly; a connection that was reset, or whose device or VM
/// went away, ends with `ConnectionReset`, so a cut stream is never mistaken for a whole one. Dropping it closes both halves;
/// bytes already written are still delivered. Reads and writes are cancel safe as those of any tokio socket.
#[derive(Debug)]
pub struct Connection {
    inner: Inner,
    guest_port: u32,
}

#[derive(Debug)]
enum Inner {
    Device {
        socket: UnixStream,
        remains: Shared,
        tail_at: usize,
    },
    Kernel(VsockStream),
}

impl Connection {
    /// Takes a connection that the device made. Must be called inside a tokio runtime.
    pub(crate) fn from_device(
        socket: std::os::unix::net::UnixStream,
        remains: Shared,
        guest_port: u32,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = UnixStream::from_std(socket)?;
        Ok(Self {
            inner: Inner::Device {
                socket,
                remains,
                tail_at: 0,
            },
            guest_port,
        })
    }

    pub(crate) fn from_kernel(stream: VsockStream, guest_port: u32) -> Self {
        Self {
            inner: Inner::Kernel(stream),
            guest_port,
        }
    }

    /// Returns the port the guest dialled from; for logs only, it proves nothing.
    pub fn guest_port(&self) -> u32 {
        self.guest_port
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Kernel(stream) => Pin::new(stream).poll_read(cx, buf),
            Inner::Device {
                socket,
                remains,
                tail_at,
            } => {
                let before = buf.filled().len();
                match Pin::new(socket).poll_read(cx, buf) {
                    Poll::Pending => return Poll::Pending,
                    // The kernel says this when bytes of ours were still on their way to the guest: an end like any other.
                    Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) if buf.filled().len() > before || buf.remaining() == 0 => {
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Ok(())) => {}
                }
                let mut remains = remains.lock().unwrap_or_else(PoisonError::into_inner);
                let rest = &remains.tail[*tail_at..];
                if rest.is_empty() {
                    remains.tail = Vec::new();
                    *tail_at = 0;
                    return Poll::Ready(if remains.cut_off {
                        Err(io::ErrorKind::ConnectionReset.into())
                    } else {
                        Ok(())
                    });
                }
                let n = rest.len().min(buf.remaining());
                buf.put_slice(&rest[..n]);
                *tail_at += n;
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Kernel(stream) => Pin::new(stream).poll_write(cx, buf),
            Inner::Device { socket, .. } => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Kernel(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Device { socket, .. } => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Kernel(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Device { socket, .. } => Pin::new(socket).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Kernel(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Inner::Device { socket, .. } => Pin::new(socket).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self.inner, Inner::Device { .. })
    }
}
