//! The port ledger: one line for each port that something in the guest listens on.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use hostel_model::DistroId;

use crate::{Protocol, Room};

/// What became of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is on the host, at its own port.
    Forwarded,
    /// It should be on the host and is not yet: the port is taken. It is tried again until it is free.
    Waiting,
    /// It is on the host, at another port.
    Remapped,
    /// It is not on the host, because somebody said so.
    Off,
    /// The relay has nothing to do with it, but the host reaches it at the guest's own address.
    Direct,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forwarded => "forwarded",
            Self::Waiting => "waiting",
            Self::Remapped => "remapped",
            Self::Off => "off",
            Self::Direct => "direct",
        })
    }
}

/// One line of the ledger. A port that one process has in both families is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The distribution; `None`: the VM itself.
    pub distro: Option<DistroId>,
    /// Its name; empty: the VM itself.
    pub distro_name: String,
    /// The network it is in; `None`: the VM's.
    pub room: Option<Room>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The addresses it is bound to: one, or one of each family.
    pub addresses: Vec<IpAddr>,
    /// Its port in the guest.
    pub port: u16,
    /// The process, as the distribution counts; 0: not known.
    pub pid: u32,
    /// The name of the process.
    pub process: String,
    /// Where the host finds it; empty: nowhere.
    pub host: Vec<SocketAddr>,
    /// What became of it.
    pub state: State,
    /// Why; empty when there is nothing to explain.
    pub reason: String,
    /// What the user can do about it; empty: nothing need be done.
    pub next_step: String,
    /// Connections (UDP: peers) that are open now.
    pub connections: u64,
}
