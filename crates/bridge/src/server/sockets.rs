//! Sockets of this side that the client gets: connections to the guest, and the gateway's port 53.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt},
};

use super::{fail::OrRefuse, rules::DNS};
use crate::protocol::Refusal;

/// Clients of a resolver that may wait.
const BACKLOG: i32 = 64;

/// Begins a connection, which `to` was checked for. UDP sockets are connected at once.
pub(super) fn begin(to: SocketAddr, kind: SocketType) -> Result<OwnedFd, Refusal> {
    let what = format_args!("cannot connect to {to}");
    let socket = open(to.ip(), kind).or_refuse(what)?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno).or_refuse(what),
    }
}

/// Opens the gateway's port 53: UDP, then TCP.
pub(super) fn dns(gateway: Ipv4Addr) -> Result<Vec<OwnedFd>, Refusal> {
    let address = SocketAddr::from((gateway, DNS));
    let what = |kind| format!("cannot listen on {kind} {address}");
    let udp = open(address.ip(), SocketType::DGRAM)
        .and_then(|udp| bind(&udp, &address).map(|()| udp))
        .or_refuse(what("UDP"))?;
    let tcp = open(address.ip(), SocketType::STREAM)
        .and_then(|tcp| {
            // Connections of an earlier resolver may still be on their way out.
            sockopt::set_socket_reuseaddr(&tcp, true)?;
            bind(&tcp, &address)?;
            listen(&tcp, BACKLOG).map(|()| tcp)
        })
        .or_refuse(what("TCP"))?;
    Ok(vec![udp, tcp])
}

fn open(address: IpAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(family, kind, flags, None)
}
