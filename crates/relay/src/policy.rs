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
    let protocol = match protocol {
        Protocol::Tcp => firewall::Protocol::Tcp,
        Protocol::Udp => firewall::Protocol::Udp,
    };
    firewall::decide(rules, protocol, port, peer) == firewall::Action::Allow
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hostel_model::DistroId;
    use proptest::prelude::*;

    use super::*;

    fn listener(protocol: Protocol, distro: Option<DistroId>, port: u16) -> GuestListener {
        GuestListener {
            distro,
            distro_name: String::new(),
            room: None,
            protocol,
            address: Ipv4Addr::UNSPECIFIED.into(),
            port,
            dual_stack: false,
            pid: 0,
            process: String::new(),
        }
    }

    fn protocols() -> impl Strategy<Value = Protocol> {
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
    }

    fn actions() -> impl Strategy<Value = RuleAction> {
        prop_oneof![
            Just(RuleAction::Same),
            Just(RuleAction::Off),
            prop::option::of(1_u16..).prop_map(RuleAction::Remap),
        ]
    }

    proptest! {
        /// The whole table, against the sentence that describes it: from the most special place to the least, the first
        /// with a rule decides.
        #[test]
        fn the_most_special_rule_decides(
            forwarding in prop::bool::weighted(0.9),
            ignored in prop::collection::vec(1_u16..5, 0..2),
            rules in prop::collection::vec(
                (prop::option::of(0_usize..2), prop::option::of(1_u16..5), protocols(), actions()), 0..8),
            protocol in protocols(),
            distro in prop::option::of(0_usize..2),
            port in 1_u16..5,
        ) {
            let ids = [DistroId::new_random(), DistroId::new_random()];
            let settings = Settings {
                forwarding,
                ignored_ports: ignored.clone(),
                rules: rules.iter().map(|&(d, port, protocol, action)| PortRule {
                    distro: d.map(|d| ids[d]), port, protocol, action,
                }).collect(),
                ..Settings::default()
            };
            let decision = decide(&listener(protocol, distro.map(|d| ids[d]), port), &settings);

            let of = |d: Option<usize>, p: Option<u16>| {
                let exact = |r: &&(Option<usize>, Option<u16>, Protocol, RuleAction)| {
                    (r.0, r.1, r.2) == (d, p, protocol)
                };
                rules.iter().rev().find(exact).map(|r| r.3)
            };
            let mut places = vec![(None, Some(port)), (None, None)];
            if distro.is_some() {
                places = vec![(distro, Some(port)), (None, Some(port)), (distro, None), (None, None)];
            }
            let rule = places.into_iter().find_map(|(d, p)| of(d, p));
            if !forwarding || ignored.contains(&port) {
                prop_assert!(matches!(decision, Decision::Off(_)));
            } else {
                match (rule, protocol) {
                    (Some(RuleAction::Off), _) | (None, Protocol::Udp) => {
                        prop_assert!(matches!(decision, Decision::Off(_)));
                    }
                    (Some(RuleAction::Remap(to)), _) => prop_assert_eq!(decision, Decision::Remap(to)),
                    (Some(RuleAction::Same), _) | (None, Protocol::Tcp) => {
                        prop_assert_eq!(decision, Decision::Same);
                    }
                }
            }
        }
    }

    #[test]
    fn the_search_for_a_port_begins_where_people_look() {
        for (port, first) in [
            (80, 8080),
            (443, 8443),
            (22, 8022),
            (1023, 9023),
            (3000, 3001),
        ] {
            assert_eq!(near(port), first);
        }
        assert_eq!(near(65535), 1024);
    }

    /// What a socket that takes both families calls a peer is the IPv4 address that the rule means.
    #[test]
    fn the_rules_of_the_firewall_decide_and_none_is_no() {
        let rules = [
            "deny any from 192.0.2.66",
            "allow tcp 80-90 from 192.0.2.0/24",
            "allow udp",
            "allow icmp",
        ]
        .map(|rule| rule.parse().unwrap());
        for (protocol, port, peer, expected) in [
            (Protocol::Tcp, 80, "192.0.2.1", true),
            (Protocol::Tcp, 80, "::ffff:192.0.2.1", true),
            (Protocol::Tcp, 90, "192.0.2.255", true),
            (Protocol::Tcp, 91, "192.0.2.1", false),
            (Protocol::Tcp, 80, "192.0.3.1", false),
            (Protocol::Tcp, 80, "192.0.2.66", false),
            (Protocol::Tcp, 80, "2001:db8::1", false),
            (Protocol::Udp, 9, "2001:db8::1", true),
            (Protocol::Udp, 9, "192.0.2.66", false),
            (Protocol::Udp, 9, "::ffff:192.0.2.66", false),
        ] {
            let peer = peer.parse().unwrap();
            for (rules, expected) in [(&rules[..], expected), (&[], false)] {
                let admitted = admits(rules, protocol, port, peer);
                assert_eq!(admitted, expected, "{protocol} {port} {peer}");
            }
        }
    }
}
