//! Whether a listener appears on the host, and where: the user's rules, nothing else.

use std::net::IpAddr;

use hostel_model::firewall;

use crate::{GuestListener, PortRule, Protocol, RuleAction, Settings};

/// The first port that needs no right.
pub(crate) const FIRST_FREE_PORT: u16 = 1024;

/// What is to be done with a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It does not appear, for this reason.
    Off(String),
    /// It appears at its own port.
    Same,
    /// It appears at this port, or somewhere near.
    Remap(Option<u16>),
}

/// Decides about one listener.
pub(crate) fn decide(listener: &GuestListener, settings: &Settings) -> Decision {
    if !settings.forwarding {
        return Decision::Off("localhostForwarding is false".to_owned());
    }
    if settings.ignored_ports.contains(&listener.port) {
        return Decision::Off(format!("ignoredPorts has {}", listener.port));
    }
    let rule = settings
        .rules
        .iter()
        .filter(|rule| concerns(rule, listener))
        // The last of the most special ones.
        .max_by_key(|rule| (rule.port.is_some(), rule.distro.is_some()));
    match (rule.map(|r| r.action), listener.protocol) {
        (Some(RuleAction::Off), _) => Decision::Off("a rule keeps it off the host".to_owned()),
        (Some(RuleAction::Remap(to)), _) => Decision::Remap(to),
        (Some(RuleAction::Same), _) | (None, Protocol::Tcp) => Decision::Same,
        (None, Protocol::Udp) => Decision::Off("UDP appears only where a rule says so".to_owned()),
    }
}

fn concerns(rule: &PortRule, listener: &GuestListener) -> bool {
    rule.protocol == listener.protocol
        && rule.port.is_none_or(|port| port == listener.port)
        && rule.distro.is_none_or(|id| listener.distro == Some(id))
}

/// Returns where the search begins for a listener that cannot have its own port, or shall not: 80 becomes 8080, 22 8022,
/// and a port that needs no right becomes its neighbour.
pub(crate) fn near(port: u16) -> u16 {
    if port < FIRST_FREE_PORT {
        port + 8000
    } else {
        after(port)
    }
}

/// Returns the port to try after this one.
pub(crate) fn after(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(FIRST_FREE_PORT)
}

/// Tells whether a peer beyond loopback may connect to a port of the guest: the first rule that matches says it, and without
/// one the answer is no.
pub(crate) fn admits(
    rules: &[firewall::Rule],
    protocol: Protocol,
    port: u16,
    peer: IpAddr,
) -> bool {
    rules
        .iter()
        .find(|rule| {
            let protocol = match rule.protocol {
                firewall::Protocol::Any => true,
                firewall::Protocol::Tcp => protocol == Protocol::Tcp,
                firewall::Protocol::Udp => protocol == Protocol::Udp,
                firewall::Protocol::Icmp => false,
            };
            let port = rule.ports.is_none_or(|(a, b)| (a..=b).contains(&port));
            protocol && port && rule.source.is_none_or(|source| holds(source, peer))
        })
        .is_some_and(|rule| rule.action == firewall::Action::Allow)
}

/// Tells whether an address is in a network.
fn holds(source: firewall::Source, peer: IpAddr) -> bool {
    let (network, peer, width) = match (source.address, peer) {
        (IpAddr::V4(n), IpAddr::V4(p)) => (u128::from(n.to_bits()), u128::from(p.to_bits()), 32),
        (IpAddr::V6(n), IpAddr::V6(p)) => (n.to_bits(), p.to_bits(), 128),
        _ => return false,
    };
    let host_bits = width - u32::from(source.bits).min(width);
    // A shift by all 128 bits is no shift.
    (network ^ peer).checked_shr(host_bits).unwrap_or(0) == 0
}
