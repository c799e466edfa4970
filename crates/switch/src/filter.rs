//! What the guest may send into a user-mode network.
//!
//! Such a network opens the guest's connections with sockets of the host, so a packet for the host's loopback gets there:
//! for the gateway's address, for every address of the subnet (QEMU's slirp), and for 127.x itself, which root in the guest
//! can send out of its card. Here every frame on its way is looked at, and those are left out. The way back needs no look.

mod pump;

use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) use self::pump::{Filter, start};
use crate::Prefix;

/// What passes.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// The guest's network: nothing in it is a machine.
    pub(crate) subnet: Prefix,
    /// The gateway; it answers pings.
    pub(crate) gateway: Ipv4Addr,
    /// Whether the gateway is the host's own address, and not its loopback.
    pub(crate) gateway_is_host: bool,
    /// The built-in resolver: its port 53 is open.
    pub(crate) resolver: Ipv4Addr,
    /// The guest's IPv6 network, a /64; without one no IPv6 passes.
    pub(crate) ipv6: Option<Ipv6Addr>,
}

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const ECHO_REQUEST: u8 = 8;
const DNS: u16 = 53;

impl Policy {
    /// Tells whether a frame may pass.
    pub(crate) fn passes(&self, frame: &[u8]) -> bool {
        let kind = frame
            .get(12..ETHERNET)
            .map(|b| u16::from_be_bytes([b[0], b[1]]));
        let packet = frame.get(ETHERNET..).unwrap_or_default();
        match kind {
            Some(ARP) => true,
            Some(IPV4) => self.passes_v4(packet).unwrap_or(false),
            Some(IPV6) => self.passes_v6(packet).unwrap_or(false),
            _ => false,
        }
    }

    /// `None`: not a whole header.
    fn passes_v4(&self, packet: &[u8]) -> Option<bool> {
        let header = packet.get(..20)?;
        if header[0] >> 4 != 4 {
            return Some(false);
        }
        let to = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
        // 0.0.0.0 is the loopback to connect(2), and 255.255.255.255 to slirp.
        if to.octets()[0] == 0 || to.is_loopback() || to.is_multicast() || to.octets()[0] >= 240 {
            return Some(false);
        }
        if !self.subnet.contains(to) {
            return Some(true);
        }
        if to == self.gateway && self.gateway_is_host {
            return Some(true);
        }
        // The ports stand in the first piece only; nobody cuts a question to a resolver into pieces.
        let pieces = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
        if pieces != 0 {
            return Some(false);
        }
        let payload = packet.get(usize::from(header[0] & 15) * 4..)?;
        Some(match header[9] {
            ICMP => to == self.gateway && *payload.first()? == ECHO_REQUEST,
            TCP | UDP => to == self.resolver && port(payload)? == DNS,
            _ => false,
        })
    }

    fn passes_v6(&self, packet: &[u8]) -> Option<bool> {
        let header = packet.get(..40)?;
        let network = match self.ipv6 {
            Some(network) if header[0] >> 4 == 6 => network,
            _ => return Some(false),
        };
        let to = Ipv6Addr::from(<[u8; 16]>::try_from(&header[24..40]).ok()?);
        let in_network = to.to_bits() >> 64 == network.to_bits() >> 64;
        let near = in_network || to.is_unicast_link_local() || to.is_multicast();
        if near {
            // Who has which address, and where the router is; nothing with a header in between.
            return Some(header[6] == ICMPV6);
        }
        // ::, ::1 and the IPv4 addresses written as IPv6 ones.
        Some(to.to_bits() >> 32 != 0 && to.to_ipv4_mapped().is_none())
    }
}

/// Returns the port that TCP or UDP goes to.
fn port(payload: &[u8]) -> Option<u16> {
    let bytes = payload.get(2..4)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            subnet: "172.19.128.0/20".parse().unwrap(),
            gateway: Ipv4Addr::new(172, 19, 128, 1),
            gateway_is_host: false,
            resolver: Ipv4Addr::new(172, 19, 128, 53),
            ipv6: Some("fd00:1:2:3::".parse().unwrap()),
        }
    }

    fn v4(to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([
            8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol, 0, 0, 172, 19, 132, 144,
        ]);
        frame.extend(to.parse::<Ipv4Addr>().unwrap().octets());
        frame.extend(payload);
        frame
    }

    fn v6(to: &str, next: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, next, 64]);
        frame.extend([0xfd; 16]);
        frame.extend(to.parse::<Ipv6Addr>().unwrap().octets());
        frame.extend([0, 9, 0, 80, 0, 0, 0, 0]);
        frame
    }

    fn to_port(port: u16) -> Vec<u8> {
        let mut payload = vec![0x30, 0x39];
        payload.extend(port.to_be_bytes());
        payload.extend([0; 16]);
        payload
    }

    #[test]
    fn the_way_out_is_open_and_the_hosts_loopback_is_not() {
        let policy = policy();
        for (to, protocol, payload, want) in [
            ("8.8.8.8", TCP, to_port(443), true),
            ("192.168.1.5", UDP, to_port(5000), true),
            ("8.8.8.8", ICMP, vec![8, 0], true),
            ("172.19.128.1", TCP, to_port(22), false),
            ("172.19.128.1", TCP, to_port(53), false),
            ("172.19.128.1", UDP, to_port(53), false),
            ("172.19.128.1", ICMP, vec![8, 0], true),
            ("172.19.128.1", ICMP, vec![13, 0], false),
            ("172.19.128.53", UDP, to_port(53), true),
            ("172.19.128.53", TCP, to_port(53), true),
            ("172.19.128.53", TCP, to_port(631), false),
            ("172.19.128.53", ICMP, vec![8, 0], false),
            ("172.19.140.9", TCP, to_port(53), false),
            ("172.19.143.255", UDP, to_port(53), false),
            ("127.0.0.1", TCP, to_port(22), false),
            ("127.8.8.8", UDP, to_port(22), false),
            ("0.0.0.0", TCP, to_port(22), false),
            ("255.255.255.255", UDP, to_port(67), false),
            ("224.0.0.251", UDP, to_port(5353), false),
        ] {
            assert_eq!(
                policy.passes(&v4(to, protocol, &payload)),
                want,
                "{to} {protocol} {payload:?}"
            );
        }
    }

    #[test]
    fn a_gateway_that_is_the_host_is_open() {
        let policy = Policy {
            gateway_is_host: true,
            resolver: Ipv4Addr::new(172, 19, 128, 1),
            ..policy()
        };
        assert!(policy.passes(&v4("172.19.128.1", TCP, &to_port(22))));
        assert!(!policy.passes(&v4("172.19.128.2", TCP, &to_port(22))));
        assert!(!policy.passes(&v4("127.0.0.1", TCP, &to_port(22))));
    }

    #[test]
    fn options_pieces_and_short_packets_hide_no_port() {
        let policy = policy();
        let good = v4("172.19.128.53", UDP, &to_port(53));
        // With options the ports lie further behind; what lies where they usually are says nothing.
        let mut options = good.clone();
        options[14] = 0x46;
        assert!(!policy.passes(&options));
        for (index, value) in [(20, 0x20), (21, 1)] {
            let mut piece = good.clone();
            piece[index] |= value;
            assert!(!policy.passes(&piece), "piece {index}");
        }
        for len in 0..ETHERNET + 20 + 4 {
            assert!(!policy.passes(&good[..len]), "{len}");
        }
        let mut other = good.clone();
        other[14] = 0x65;
        assert!(!policy.passes(&other), "not version 4");
        let mut vlan = good;
        vlan[12..14].copy_from_slice(&[0x81, 0]);
        assert!(!policy.passes(&vlan));
    }

    #[test]
    fn ipv6_goes_out_and_nowhere_near() {
        let policy = policy();
        for (to, next, want) in [
            ("2001:db8::1", TCP, true),
            ("fd77::1", TCP, true),
            ("fd00:1:2:3::1", TCP, false),
            ("fd00:1:2:3::1", ICMPV6, true),
            ("fe80::1", TCP, false),
            ("fe80::1", ICMPV6, true),
            ("ff02::1", ICMPV6, true),
            ("ff02::1", UDP, false),
            ("::1", TCP, false),
            ("::", TCP, false),
            ("::127.0.0.1", TCP, false),
            ("::ffff:127.0.0.1", TCP, false),
            // A header in between could hide what follows.
            ("fe80::1", 0, false),
        ] {
            assert_eq!(policy.passes(&v6(to, next)), want, "{to} {next}");
        }
        let closed = Policy {
            ipv6: None,
            ..policy
        };
        assert!(!closed.passes(&v6("2001:db8::1", TCP)));
    }

    proptest::proptest! {
        #[test]
        fn no_frame_makes_it_stumble(frame in proptest::collection::vec(0u8..=255, 0..100)) {
            policy().passes(&frame);
        }

        #[test]
        fn no_packet_to_the_loopback_passes(a: u8, b: u8, c: u8, protocol: u8, rest in proptest::collection::vec(0u8..=255, 0..60)) {
            let to = format!("127.{a}.{b}.{c}");
            proptest::prop_assert!(!policy().passes(&v4(&to, protocol, &rest)));
        }
    }
}
