//! What carries the network. The guest sees the same in all of them.

mod bridged;
mod open;
mod passt;
mod sentences;
mod slirp;
mod surroundings;

use std::{
    ffi::OsString,
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
};

use futures_util::{
    FutureExt as _,
    future::{self, BoxFuture},
};
use hostel_model::firewall::Rule;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

pub use self::open::{OpenError, open, probe};
use crate::{Host, MacAddress, NatRecord};

/// The backends, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bridge, tap and nf_tables on the host's own network.
    Root,
    /// The same inside a user and network namespace, with pasta as the way out.
    Rootless,
    /// passt behind QEMU's stream socket.
    Passt,
    /// QEMU's user-mode network.
    Slirp,
}

impl Kind {
    /// All of them in the order in which they are tried.
    pub const ALL: [Self; 4] = [Self::Root, Self::Rootless, Self::Passt, Self::Slirp];

    /// Returns the name, as `status` shows it and the configuration takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Rootless => "rootless",
            Self::Passt => "passt",
            Self::Slirp => "slirp",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not the name of a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no network backend; there are root, rootless, passt and slirp")]
pub struct ParseKindError(String);

impl FromStr for Kind {
    type Err = ParseKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| ParseKindError(text.chars().take(32).collect()))
    }
}

/// What a network is opened with.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The addresses; validated.
    pub record: NatRecord,
    /// Exactly this backend; `None`: the best that works.
    pub kind: Option<Kind>,
    /// Whether the guest gets the record's private IPv6 addresses as well.
    pub ipv6: bool,
    /// Whether services that listen on the host's loopback only are open to the guest at the gateway's address.
    pub host_loopback: bool,
    /// The largest packet, in bytes; `None`: what fits best through the backend, and where that is what the host has, what
    /// fits through every connected interface of it (NAT-12, [`Backend::follow`]).
    pub mtu: Option<u32>,
    /// Who else than the host may open connections to the guest.
    pub firewall: Vec<Rule>,
    /// The program `hostel-net`.
    pub hostel_net: PathBuf,
    /// Where other programs are looked for, as `PATH` has it.
    pub path: OsString,
}

/// An open network.
#[derive(Debug)]
pub struct Opened {
    /// What carries it.
    pub backend: Arc<dyn Backend>,
    /// Every backend that was looked at, in order, the chosen one last.
    pub verdicts: Vec<Verdict>,
}

/// Whether a backend can be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which.
    pub kind: Kind,
    /// Whether it works here.
    pub usable: bool,
    /// One clause, lower case.
    pub reason: String,
}

/// What the guest is told over the channel; it never asks for an address itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNetwork {
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub prefix: u8,
    /// Its way out.
    pub gateway: Ipv4Addr,
    /// The address its card must have.
    pub mac: MacAddress,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Resolvers that this backend gives; the first is asked first.
    pub dns: Vec<Ipv4Addr>,
    /// Where the guest's loopback is reached from the gateway; `None` where nothing can use it.
    pub relay_address: Option<Ipv4Addr>,
    /// Private IPv6 addresses; `None`: link-local only.
    pub ipv6: Option<GuestIpv6>,
    /// Distributions with an address of their own leave the VM with the VM's address: the backend knows one address only.
    pub hide_rooms: bool,
    /// Where the guest reaches the host; `None` where it cannot.
    pub host: Option<Ipv4Addr>,
}

impl GuestNetwork {
    /// Returns what a record tells, for a backend that has nothing to add.
    fn of(record: &NatRecord, mtu: u32, ipv6: bool) -> Self {
        Self {
            address: record.address,
            prefix: record.subnet.bits(),
            gateway: record.gateway,
            mac: record.mac,
            mtu,
            dns: vec![record.gateway],
            relay_address: None,
            ipv6: ipv6.then(|| GuestIpv6::of(record)),
            hide_rooms: false,
            host: None,
        }
    }
}

/// The guest's private IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestIpv6 {
    /// Its address.
    pub address: Ipv6Addr,
    /// Length of the prefix.
    pub prefix: u8,
    /// Its way out.
    pub gateway: Ipv6Addr,
}

impl GuestIpv6 {
    fn of(record: &NatRecord) -> Self {
        Self {
            address: record.ipv6_address(),
            prefix: 64,
            gateway: record.ipv6_gateway(),
        }
    }
}

/// What QEMU has to connect the card to. Descriptors are handed over.
#[derive(Debug)]
pub enum NetdevSpec {
    /// A tap whose frames carry a virtio-net header.
    Tap {
        /// The tap's queue.
        fd: OwnedFd,
    },
    /// A connected stream socket: each frame after its length, four bytes, big-endian.
    Stream {
        /// QEMU's end.
        fd: OwnedFd,
        /// A filter for what the guest sends; `None`: nothing is filtered.
        filter: Option<FilterSpec>,
    },
    /// QEMU's user-mode network.
    User {
        /// The subnet, `172.19.128.0/20`.
        net: String,
        /// The gateway.
        host: Ipv4Addr,
        /// The first address of its DHCP: the VM's.
        dhcpstart: Ipv4Addr,
        /// Its resolver.
        dns: Ipv4Addr,
        /// IPv6: the first address of the /64 and the gateway.
        ipv6: Option<(Ipv6Addr, Ipv6Addr)>,
        /// A filter for what the guest sends; `None`: nothing is filtered.
        filter: Option<FilterSpec>,
    },
}

/// Two connected stream sockets to a filter, in the form of [`NetdevSpec::Stream`].
#[derive(Debug)]
pub struct FilterSpec {
    /// QEMU writes what the guest sent.
    pub out: OwnedFd,
    /// QEMU reads what may pass.
    pub back: OwnedFd,
}

/// One interface of the host's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// `hostel0`
    pub name: String,
    /// `bridge`, `tap`, `pasta`, `passt` or `slirp`.
    pub kind: String,
    /// Its card address, if it has one.
    pub mac: Option<MacAddress>,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// The bridge that it is a port of.
    pub switch: Option<String>,
    /// `host`, or the namespace or process it is in.
    pub place: String,
}

/// One way to carry the network. Dropping it ends what stands behind it, as [`Backend::close`] does.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Returns which one it is.
    fn kind(&self) -> Kind;

    /// Returns the name `status` shows.
    fn name(&self) -> &'static str {
        self.kind().as_str()
    }

    /// Returns why this one was chosen: one clause, lower case.
    fn reason(&self) -> &str;

    /// Returns what the guest is told now.
    fn guest(&self) -> GuestNetwork;

    /// Takes in what the host's network is like now; what the guest is told may change by that.
    fn follow(&self, host: &Host);

    /// Returns what QEMU is told. Each call makes a connection of its own; the former one ends.
    fn netdev(&self) -> BoxFuture<'_, io::Result<NetdevSpec>>;

    /// Tells whether connections to the guest's addresses can be opened with [`Backend::connect`].
    ///
    /// This and the four that follow are of a backend without a way in, unless it says otherwise.
    fn reaches_guest(&self) -> bool {
        false
    }

    /// Opens a TCP connection to an address of the guest. `Unsupported` where the guest is not reached.
    fn connect(&self, _to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        future::ready(unreached()).boxed()
    }

    /// Opens a UDP socket that is connected to an address of the guest. `Unsupported` where the guest is not reached.
    fn connect_udp(&self, _to: SocketAddr) -> BoxFuture<'_, io::Result<UdpSocket>> {
        future::ready(unreached()).boxed()
    }

    /// Binds port 53 of the gateway's address, for a resolver; `None` where the gateway's address is not ours.
    fn gateway_dns(&self) -> BoxFuture<'_, io::Result<Option<(UdpSocket, TcpListener)>>> {
        future::ready(Ok(None)).boxed()
    }

    /// Replaces the firewall's rules, all at once. A success where nothing can come in anyhow.
    fn set_firewall(&self, _rules: Vec<Rule>) -> BoxFuture<'_, io::Result<()>> {
        future::ready(Ok(())).boxed()
    }

    /// Returns what one sees of it on the host.
    fn adapters(&self) -> Vec<Adapter>;

    /// Returns what is and what is not reachable: plain sentences.
    fn reach(&self) -> Vec<String>;

    /// Returns what somebody should do about rules of others that are in the way. Nobody's are where nothing is forwarded.
    fn advice(&self) -> BoxFuture<'_, Vec<String>> {
        future::ready(Vec::new()).boxed()
    }

    /// Waits until something that stands behind the present connection has died, and tells what. Cancel safe.
    fn ended(&self) -> BoxFuture<'_, String>;

    /// Takes everything away and waits until it is gone. May be called again.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// The answer of those that have no way in.
fn unreached<T>() -> io::Result<T> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "this network has no way into the guest",
    ))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn wanted() -> Wanted {
        Wanted {
            record: NatRecord::choose("7f1c", "hostel", &[]).unwrap(),
            kind: None,
            ipv6: false,
            host_loopback: false,
            mtu: None,
            firewall: Vec::new(),
            hostel_net: "/nonexistent/hostel-net".into(),
            path: "/nonexistent".into(),
        }
    }

    #[test]
    fn names_of_backends_are_read_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("auto".parse::<Kind>().is_err());
    }

    #[tokio::test]
    async fn without_programs_slirp_is_left() {
        let opened = open(&wanted()).await.unwrap();
        assert_eq!(opened.backend.kind(), Kind::Slirp);
        assert_eq!(opened.verdicts.len(), 4);
        let error = open(&Wanted {
            kind: Some(Kind::Passt),
            ..wanted()
        })
        .await
        .unwrap_err();
        assert!(error.to_string().contains("passt: "), "{error}");
    }
}
