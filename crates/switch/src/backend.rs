//! What carries the network. The guest sees the same in all of them.

use std::net::Ipv4Addr;

use crate::{MacAddress, NatRecord};

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
}

/// What QEMU has to connect the card to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetdevSpec {
    /// Its user-mode network.
    User {
        /// The subnet, `172.19.128.0/20`.
        net: String,
        /// The gateway.
        host: Ipv4Addr,
        /// The first address of its DHCP: the VM's.
        dhcpstart: Ipv4Addr,
        /// Its resolver.
        dns: Ipv4Addr,
        /// Whether IPv6 is on as well.
        ipv6: bool,
    },
}

/// One way to carry the network.
pub trait Backend: Send + Sync {
    /// Returns the name `status` shows.
    fn name(&self) -> &'static str;

    /// Returns why this one was chosen: one clause, lower case.
    fn reason(&self) -> &str;

    /// Returns what the guest is told.
    fn guest(&self) -> GuestNetwork;

    /// Returns what QEMU is told.
    fn netdev(&self) -> NetdevSpec;
}

/// QEMU's user-mode network: works for everyone and everywhere, at a fifth to a half of a tap's speed.
///
/// Only the VM can open connections; other processes of the host have no route to it. It maps the gateway's address to the
/// host's loopback and has no switch against that, so services on the host's 127.0.0.1 can be reached from the guest.
#[derive(Clone, Debug)]
pub struct Slirp {
    record: NatRecord,
    reason: String,
}

impl Slirp {
    /// Takes a validated record, and why no better backend was chosen.
    pub fn new(record: NatRecord, reason: impl Into<String>) -> Self {
        Self {
            record,
            reason: reason.into(),
        }
    }
}

impl Backend for Slirp {
    fn name(&self) -> &'static str {
        "slirp"
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn guest(&self) -> GuestNetwork {
        GuestNetwork {
            address: self.record.address,
            prefix: self.record.subnet.bits(),
            gateway: self.record.gateway,
            mac: self.record.mac,
            mtu: 1500,
            dns: vec![self.record.resolver()],
        }
    }

    fn netdev(&self) -> NetdevSpec {
        NetdevSpec::User {
            net: self.record.subnet.to_string(),
            host: self.record.gateway,
            dhcpstart: self.record.address,
            dns: self.record.resolver(),
            // The host may have no IPv6, and slirp would announce it all the same: every connection would first wait.
            ipv6: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_qemu_are_told_the_same() {
        let record = NatRecord::choose("7f1c", "hostel", &[]).unwrap();
        let backend: Box<dyn Backend> =
            Box::new(Slirp::new(record, "the only backend of this release"));
        let guest = backend.guest();
        assert_eq!(
            (guest.address.to_string().as_str(), guest.prefix),
            ("172.19.132.144", 20)
        );
        assert_eq!(
            (backend.name(), backend.reason()),
            ("slirp", "the only backend of this release")
        );
        let NetdevSpec::User {
            net,
            host,
            dhcpstart,
            dns,
            ipv6,
        } = backend.netdev();
        assert_eq!(net, "172.19.128.0/20");
        assert_eq!(
            (host, dhcpstart, ipv6),
            (guest.gateway, guest.address, false)
        );
        assert_eq!(guest.dns, [dns]);
        assert_ne!(dns, host, "slirp refuses one address for both");
    }
}
