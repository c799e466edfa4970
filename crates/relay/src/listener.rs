//! What listens in the guest, as the relay is told.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use hostel_model::DistroId;

/// What carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// The network of a distribution that does not share the VM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Room {
    /// Its address on the VM's network: 172.19.133.7.
    pub address: Ipv4Addr,
    /// The address of the host's loopback that shows its ports: 127.19.133.7.
    pub local: Ipv4Addr,
}

/// A socket that listens in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestListener {
    /// The distribution it belongs to; `None`: the VM itself.
    pub distro: Option<DistroId>,
    /// The name of the distribution, for people; empty: the VM itself.
    pub distro_name: String,
    /// The network it is in; `None`: the VM's.
    pub room: Option<Room>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address it is bound to.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Bound to `::`, and takes IPv4 too.
    pub dual_stack: bool,
    /// The process, as the distribution counts; 0: not known.
    pub pid: u32,
    /// The name of the process.
    pub process: String,
}

/// Names a listener: what `change` removes by, and what two listeners cannot share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerKey {
    /// The network it is in; `None`: the VM's.
    pub room: Option<Room>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
    /// The address it is bound to.
    pub address: IpAddr,
}

impl GuestListener {
    /// Returns what names it.
    pub fn key(&self) -> ListenerKey {
        ListenerKey {
            room: self.room,
            protocol: self.protocol,
            port: self.port,
            address: self.address,
        }
    }

    /// Returns the owner, for people.
    pub fn owner(&self) -> &str {
        if self.distro_name.is_empty() {
            "the VM"
        } else {
            &self.distro_name
        }
    }

    /// Tells whether it takes connections of this family without anyone's translation.
    pub(crate) fn speaks(&self, ipv6: bool) -> bool {
        self.address.is_ipv6() == ipv6 || (!ipv6 && self.dual_stack)
    }
}
