//! What client and server say to each other: one JSON text a packet, on a socket that keeps packets apart (SOCK_SEQPACKET).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use hostel_model::firewall::Rule;
use serde::{Deserialize, Serialize};

/// The protocol's version; the server tells it first. Client and server of different versions do not work together.
pub const VERSION: u32 = 1;

/// The longest packet in either direction, in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The most chains that a [`Survey`] names.
pub const MAX_OBSTACLES: usize = 16;

/// The longest name in an [`Obstacle`], in characters.
pub const MAX_NAME: usize = 256;

/// A request with the number by which its reply is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbered {
    /// Chosen by the client.
    pub id: u64,
    /// What is asked for.
    pub request: Request,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Makes the network; what was up before is taken down first. Answered by [`Reply::Up`] with the tap's descriptor.
    Up(Box<Up>),
    /// Replaces the rules for connections from outside, all at once. Answered by [`Reply::Done`].
    Firewall(Vec<Rule>),
    /// A TCP socket that is *being* connected to an address of the subnet, from the gateway; non-blocking: the client waits
    /// until it is writable and asks for its error. Only in a user namespace. Answered by [`Reply::Done`] with the socket.
    ConnectTcp(SocketAddr),
    /// A UDP socket connected to an address of the subnet; non-blocking. Only in a user namespace. Answered by
    /// [`Reply::Done`] with the socket.
    ConnectUdp(SocketAddr),
    /// A UDP socket and a TCP listener on port 53 of the gateway, both non-blocking, in this order. Answered by
    /// [`Reply::Done`] with both.
    ListenDns,
    /// Starts the way out of a user namespace again after it ended. Answered by [`Reply::Done`]; an
    /// [`Event::Uplink`] tells when it works.
    RestartUplink,
    /// How things are. Answered by [`Reply::Status`].
    Status,
    /// Which rules of others stop what the bridge's machines send and get. Answered by [`Reply::Survey`].
    Survey,
    /// Takes the network down. The end of the socket does the same. Answered by [`Reply::Done`].
    Down,
}

/// An IPv4 subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its first address.
    pub address: Ipv4Addr,
    /// The length of its prefix.
    pub bits: u8,
}

impl Network {
    /// Whether an address lies in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & self.mask() == 0
    }

    /// Whether both have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        let mask = self.mask() & other.mask();
        (self.address.to_bits() ^ other.address.to_bits()) & mask == 0
    }

    /// Returns the last address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask())
    }

    fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.bits.min(32)))
            .unwrap_or(0)
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// The IPv6 side: a /64 of unique local addresses, translated on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipv6 {
    /// The first address of the /64, in fd00::/8.
    pub prefix: Ipv6Addr,
    /// The gateway's address in it.
    pub gateway: Ipv6Addr,
}

/// The network that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Up {
    /// The subnet: private, of a length from 12 to 26.
    pub subnet: Network,
    /// The gateway, which the bridge holds.
    pub gateway: Ipv4Addr,
    /// The VM's address.
    pub guest: Ipv4Addr,
    /// The largest packet of bridge and tap, 1280 to 65520 bytes.
    pub mtu: u32,
    /// The IPv6 side, when it is wanted.
    #[serde(default)]
    pub ipv6: Option<Ipv6>,
    /// Opens the services of the host's 127.0.0.1 to the guest, at the gateway's address.
    #[serde(default)]
    pub host_loopback: bool,
    /// A resolver will listen on port 53 of the gateway ([`Request::ListenDns`]): `host_loopback` leaves that port alone.
    #[serde(default)]
    pub gateway_dns: bool,
    /// Who may open connections to the guest from outside; at most
    /// [`hostel_model::firewall::MAX_RULES`].
    #[serde(default)]
    pub firewall: Vec<Rule>,
}

/// What the server sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Message {
    /// The answer to a request.
    Reply {
        /// The request's number.
        id: u64,
        /// The outcome.
        result: Result<Reply, Refusal>,
    },
    /// Something that happened.
    Event(Event),
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// It is done; descriptors may come along.
    Done,
    /// The network is up; the tap's descriptor comes along, with vnet headers switched on.
    Up {
        /// The bridge.
        bridge: String,
        /// The tap.
        tap: String,
        /// The nf_tables table, family `inet`.
        table: String,
    },
    /// How things are.
    Status(Status),
    /// What is in the way.
    Survey(Survey),
}

/// What is in the way of the bridge's packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survey {
    /// The chains that stop them; at most [`MAX_OBSTACLES`].
    pub obstacles: Vec<Obstacle>,
    /// `ip filter` has a chain `DOCKER-USER`, in the way or not.
    pub docker_user: bool,
}

/// A chain of others for forwarded packets that drops or refuses the bridge's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Obstacle {
    /// The table's family: `inet`, `ip` or `ip6`.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Its table has a chain `DOCKER-USER` for people's own rules.
    pub docker_user: bool,
}

/// How things are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// The bridge; `None` before [`Request::Up`] and after [`Request::Down`].
    pub bridge: Option<String>,
    /// Whether the tap is there.
    pub tap: bool,
    /// How often something had to be put back because someone else had removed it.
    pub repairs: u64,
    /// The way out of a user namespace.
    pub uplink: Uplink,
}

/// The way out of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Uplink {
    /// There is none: not needed on the host's own network, not asked for, or down.
    #[default]
    None,
    /// It is being started.
    Starting,
    /// It works.
    Ready,
    /// It ended or did not start; the text says how.
    Ended(String),
}

/// Something that happened without being asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// The first packet of a server: it is ready for requests.
    Ready {
        /// [`VERSION`] of the server.
        version: u32,
    },
    /// The last packet of a server that cannot work here, or no longer.
    Failed(Refusal),
    /// Someone else had removed or changed this (a few words); it was put back.
    Repaired(String),
    /// This could not be put back; it is tried again.
    Trouble(Refusal),
    /// The tap is gone and could not be made again, so the VM's card leads nowhere: only a new [`Request::Up`] gives another one.
    TapLost,
    /// The state of the way out changed.
    Uplink(Uplink),
    /// The server has ended; the client makes this one up, always as the last.
    Ended(String),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// What callers branch on.
    pub code: RefusalCode,
    /// What people read.
    pub message: String,
}

/// The kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The request is not one, or asks for what is never done.
    Invalid,
    /// The subnet meets a network of the host that is not ours (NAT-6).
    Collision,
    /// The rights are missing.
    Denied,
    /// `/dev/net/tun` cannot be used.
    NoTun,
    /// The kernel lacks something: user namespaces, bridges, nf_tables.
    Unsupported,
    /// The program for the way out is missing.
    NoUplink,
    /// Not in this mode, or not before [`Request::Up`].
    NotNow,
    /// Something failed that should not.
    Failed,
}

impl Refusal {
    /// Makes a refusal.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Makes a refusal of an error and its sources, one after the other.
    pub fn of(code: RefusalCode, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            message = format!("{message}: {error}");
            source = error.source();
        }
        Self { code, message }
    }
}
