//! Every request is checked here, at the door: what comes further in is known to be harmless.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hostel_model::firewall::{MAX_RULES, Rule};

use crate::protocol::{Ipv6, Network, Refusal, RefusalCode, Up};

/// Lengths of subnets' prefixes.
const BITS: std::ops::RangeInclusive<u8> = 12..=26;
/// IPv6 wants the lower limit, the kernel's taps the upper.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65520;

/// Checks a wanted network.
pub(super) fn up(up: &Up) -> Result<(), Refusal> {
    let subnet = up.subnet;
    if !BITS.contains(&subnet.bits) {
        return invalid(format!(
            "the subnet {subnet} has not a length from {} to {}",
            BITS.start(),
            BITS.end()
        ));
    }
    if subnet.address.to_bits().trailing_zeros() < 32 - u32::from(subnet.bits) {
        return invalid(format!(
            "{} is not the first address of {subnet}",
            subnet.address
        ));
    }
    if !subnet.address.is_private() || !subnet.broadcast().is_private() {
        return invalid(format!("the subnet {subnet} is not in a private range"));
    }
    for (what, address) in [("the gateway", up.gateway), ("the VM's address", up.guest)] {
        if !is_host(subnet, address) {
            return invalid(format!(
                "{what} {address} is not the address of a machine in {subnet}"
            ));
        }
    }
    if up.gateway == up.guest {
        return invalid(format!(
            "{} is both the gateway's and the VM's address",
            up.gateway
        ));
    }
    if !MTU.contains(&up.mtu) {
        return invalid(format!(
            "the MTU {} is not from {} to {}",
            up.mtu,
            MTU.start(),
            MTU.end()
        ));
    }
    if let Some(v6) = &up.ipv6 {
        ipv6(v6)?;
    }
    rules(&up.firewall)
}

fn ipv6(v6: &Ipv6) -> Result<(), Refusal> {
    let (prefix, gateway) = (v6.prefix.to_bits(), v6.gateway.to_bits());
    if prefix >> 120 != 0xfd || prefix & u128::from(u64::MAX) != 0 {
        return invalid(format!(
            "{} is not the first address of a /64 in fd00::/8",
            v6.prefix
        ));
    }
    if gateway >> 64 != prefix >> 64 || gateway == prefix {
        return invalid(format!(
            "the gateway {} is not in {}/64",
            v6.gateway, v6.prefix
        ));
    }
    Ok(())
}

/// Checks firewall rules.
pub(super) fn rules(rules: &[Rule]) -> Result<(), Refusal> {
    if rules.len() > MAX_RULES {
        return invalid(format!(
            "{} firewall rules are more than {MAX_RULES}",
            rules.len()
        ));
    }
    for (number, rule) in (1..).zip(rules) {
        if let Err(error) = rule.validate() {
            return invalid(format!("rule {number}: {error}"));
        }
    }
    Ok(())
}

/// Checks where a connection shall go: a machine in the subnet, and not the gateway, which is this side.
pub(super) fn destination(up: &Up, to: SocketAddr) -> Result<(), Refusal> {
    let inside = match to.ip() {
        IpAddr::V4(address) => is_host(up.subnet, address) && address != up.gateway,
        IpAddr::V6(address) => up.ipv6.is_some_and(|v6| {
            address.to_bits() >> 64 == v6.prefix.to_bits() >> 64 && address != v6.gateway
        }),
    };
    if !inside || to.port() == 0 {
        return invalid(format!("{to} is not a port of a machine in the subnet"));
    }
    Ok(())
}

fn is_host(subnet: Network, address: Ipv4Addr) -> bool {
    subnet.contains(address) && address != subnet.address && address != subnet.broadcast()
}

fn invalid<T>(message: String) -> Result<T, Refusal> {
    Err(Refusal::new(RefusalCode::Invalid, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostel_model::firewall::{Action, Protocol, Source};

    fn network(address: [u8; 4], bits: u8) -> Network {
        let address = address.into();
        Network { address, bits }
    }

    fn wanted() -> Up {
        Up {
            subnet: network([172, 19, 128, 0], 20),
            gateway: Ipv4Addr::new(172, 19, 128, 1),
            guest: Ipv4Addr::new(172, 19, 132, 144),
            mtu: 1500,
            ipv6: Some(Ipv6 {
                prefix: "fd00:5753:4c00::".parse().unwrap(),
                gateway: "fd00:5753:4c00::1".parse().unwrap(),
            }),
            host_loopback: false,
            gateway_dns: false,
            firewall: Vec::new(),
        }
    }

    fn rule(protocol: Protocol, ports: Option<(u16, u16)>, source: Option<(&str, u8)>) -> Rule {
        Rule {
            action: Action::Allow,
            protocol,
            ports,
            source: source.map(|(address, bits)| Source {
                address: address.parse().unwrap(),
                bits,
            }),
        }
    }

    #[test]
    fn the_usual_network_is_good() {
        up(&wanted()).unwrap();
    }

    #[test]
    fn networks_that_are_not_ours_to_make_are_refused() {
        type Spoil = fn(&mut Up);
        let cases: [(&str, Spoil); 15] = [
            ("public", |u| u.subnet = network([8, 8, 0, 0], 20)),
            ("loopback", |u| u.subnet = network([127, 0, 0, 0], 20)),
            ("too large", |u| u.subnet.bits = 11),
            ("too small", |u| u.subnet.bits = 27),
            ("no length at all", |u| u.subnet.bits = 255),
            ("not its first address", |u| u.subnet.address = u.guest),
            ("gateway outside", |u| {
                u.gateway = Ipv4Addr::new(172, 19, 127, 1);
            }),
            ("gateway is broadcast", |u| {
                u.gateway = Ipv4Addr::new(172, 19, 143, 255);
            }),
            ("guest is the network", |u| u.guest = u.subnet.address),
            ("guest is the gateway", |u| u.guest = u.gateway),
            ("small MTU", |u| u.mtu = 1279),
            ("large MTU", |u| u.mtu = 65521),
            ("global IPv6", |u| {
                u.ipv6.as_mut().unwrap().prefix = "2001:db8::".parse().unwrap();
            }),
            ("IPv6 with a host part", |u| {
                u.ipv6.as_mut().unwrap().prefix = "fd00::1".parse().unwrap();
            }),
            ("IPv6 gateway elsewhere", |u| {
                u.ipv6.as_mut().unwrap().gateway = "fd00::1".parse().unwrap();
            }),
        ];
        for (what, spoil) in cases {
            let mut bad = wanted();
            spoil(&mut bad);
            let refusal = up(&bad).expect_err(what);
            assert_eq!(refusal.code, RefusalCode::Invalid, "{what}");
        }
    }

    #[test]
    fn rules_are_checked_one_by_one() {
        let good = [
            rule(Protocol::Tcp, Some((80, 80)), Some(("10.0.0.0", 8))),
            rule(Protocol::Any, None, Some(("2001:db8::", 128))),
            rule(Protocol::Icmp, None, None),
        ];
        rules(&good).unwrap();
        rules(&vec![good[0].clone(); MAX_RULES]).unwrap();
        rules(&vec![good[0].clone(); MAX_RULES + 1]).unwrap_err();
        for bad in [
            rule(Protocol::Tcp, Some((0, 5)), None),
            rule(Protocol::Udp, Some((9, 8)), None),
            rule(Protocol::Icmp, Some((8, 8)), None),
            rule(Protocol::Tcp, None, Some(("10.0.0.0", 33))),
            rule(Protocol::Tcp, None, Some(("::", 129))),
        ] {
            let error = rules(&[good[0].clone(), bad]).unwrap_err();
            assert!(error.message.starts_with("rule 2"), "{error}");
        }
    }

    #[test]
    fn connections_go_to_machines_of_the_subnet_only() {
        let to = |text: &str| destination(&wanted(), text.parse().unwrap());
        to("172.19.132.144:80").unwrap();
        to("172.19.133.7:65535").unwrap();
        to("[fd00:5753:4c00::9]:80").unwrap();
        for bad in [
            "172.19.128.1:80",
            "172.19.128.0:80",
            "172.19.143.255:80",
            "172.19.132.144:0",
            "127.0.0.1:80",
            "192.0.0.1:80",
            "[::1]:80",
            "[fd00:5753:4c00::1]:80",
            "[::ffff:172.19.132.144]:80",
        ] {
            to(bad).expect_err(bad);
        }
    }
}
