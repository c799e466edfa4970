//! The relay's sockets on the host.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::Protocol;

/// The kernel takes the smaller of this and `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Makes a socket that is bound, and listens when it is TCP.
///
/// `ours` are sockets of the relay at the same port whose addresses overlap with this one: one of them all addresses, the
/// other one of them. The kernel lets them be side by side when both say so in that moment, and prefers the special one.
pub(crate) fn bind(
    protocol: Protocol,
    address: SocketAddr,
    ours: &[BorrowedFd<'_>],
) -> io::Result<OwnedFd> {
    let family = match address.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, Some(number))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections of an earlier listener that are closing do not hold the port; another listener does (unlike REL-3's
        // system, where the same word shares it). For UDP the word would share the port.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        // What is accepted inherits these.
        keep_alive(&socket)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
    }
    let together = SideBySide::new(&socket, ours)?;
    rustix::net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    drop(together);
    Ok(socket)
}

/// Lets sockets share a port for as long as it lives.
struct SideBySide<'a>(Vec<BorrowedFd<'a>>);

impl<'a> SideBySide<'a> {
    fn new(socket: &'a OwnedFd, ours: &[BorrowedFd<'a>]) -> io::Result<Self> {
        let mut all = Self(Vec::new());
        if !ours.is_empty() {
            for fd in ours.iter().copied().chain([socket.as_fd()]) {
                sockopt::set_socket_reuseport(fd, true)?;
                all.0.push(fd);
            }
        }
        Ok(all)
    }
}

impl Drop for SideBySide<'_> {
    fn drop(&mut self) {
        for fd in &self.0 {
            let _ = sockopt::set_socket_reuseport(fd, false);
        }
    }
}

/// Makes the kernel find out, in about twelve minutes, that the other end of a silent connection is gone. An end that is
/// there may be silent for ever.
pub(crate) fn keep_alive(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(60))?;
    Ok(())
}

/// Readies a connection to the guest.
pub(crate) fn ready(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    keep_alive(socket)
}
