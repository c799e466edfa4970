//! The way into the guest, which somebody else knows.

use std::io;

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UdpSocket},
};

use crate::GuestListener;

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection to a listener of the guest.
pub enum GuestStream {
    /// A connection of the host's kernel: resets pass through it, and it is the fast one.
    Tcp(TcpStream),
    /// Anything else, such as a stream of the channel.
    Other(Box<dyn Duplex>),
}

/// A way for datagrams to one listener of the guest, and back.
pub enum GuestDatagrams {
    /// A connected socket.
    Socket(UdpSocket),
    /// A stream on which each datagram has its length before it: two bytes, big-endian.
    Framed(Box<dyn Duplex>),
}

/// Reaches the listeners of the guest. Both calls are cancel safe: what was begun is given up.
pub trait Connector: Send + Sync {
    /// Connects to a TCP listener. Must bound its own time.
    fn tcp<'a>(&'a self, to: &'a GuestListener) -> BoxFuture<'a, io::Result<GuestStream>>;

    /// Opens a way for datagrams to a UDP socket. Must bound its own time.
    fn udp<'a>(&'a self, to: &'a GuestListener) -> BoxFuture<'a, io::Result<GuestDatagrams>>;
}

impl From<TcpStream> for GuestStream {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<UdpSocket> for GuestDatagrams {
    fn from(socket: UdpSocket) -> Self {
        Self::Socket(socket)
    }
}
