//! The table of nf_tables: translation, who may reach the guest, and that the guest is who it says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostel_model::firewall::{Action, Protocol as Wanted, Rule as WantedRule};
use hostel_netlink::{
    Prefix,
    nft::{Chain, Hook, Kind, Policy, Priority, Protocol, Rule, States, Table},
};

use crate::protocol::{Network, Up};

/// The port of resolvers.
pub(super) const DNS: u16 = 53;

const INBOUND: &str = "inbound";
const FROM_GUEST: &str = "from_guest";

impl From<Network> for Prefix {
    fn from(network: Network) -> Self {
        Self {
            address: network.address.into(),
            length: network.bits,
        }
    }
}

/// Makes the table. `host_loopback` is where the services of the host's 127.0.0.1 are reached, when they shall be.
///
/// The caller has checked `up`.
pub(super) fn table(
    name: &str,
    bridge: &str,
    comment: &str,
    up: &Up,
    host_loopback: Option<Ipv4Addr>,
) -> Table {
    let mut table = Table::inet(name)
        .comment(comment)
        .chain(arriving(bridge, up))
        .chain(from_guest(up))
        .chain(
            Chain::regular(INBOUND)
                .rules(up.firewall.iter().flat_map(inbound))
                .rule(Rule::new().drop()),
        )
        .chain(passing(bridge))
        .chain(leaving(bridge, up));
    if let Some(to) = host_loopback {
        table = table.chain(host_services(bridge, up, to));
    }
    table
}

/// Whoever sends from the guest's network is the guest, and nobody else is asked at the gateway's address.
fn arriving(bridge: &str, up: &Up) -> Chain {
    let elsewhere = || Rule::new().input_is_not(bridge).input_is_not("lo");
    let mut chain = Chain::base(
        "arriving",
        Kind::Filter,
        Hook::Prerouting,
        Priority::RAW,
        Policy::Accept,
    )
    .rule(Rule::new().input_is(bridge).jump(FROM_GUEST))
    .rule(elsewhere().source(up.subnet.into()).drop())
    .rule(elsewhere().destination(Prefix::host(up.gateway)).drop());
    if let Some(v6) = up.ipv6 {
        chain = chain
            .rule(elsewhere().source(v6_prefix(v6.prefix)).drop())
            .rule(elsewhere().destination(Prefix::host(v6.gateway)).drop());
    }
    chain
}

/// What comes from the guest: addresses of its network alone, and nothing for the host's own loopback network, which a
/// bridge would take in while `route_localnet` is on.
fn from_guest(up: &Up) -> Chain {
    let prefix = |address: Ipv6Addr, length| Prefix {
        address: IpAddr::V6(address),
        length,
    };
    let loopback = Prefix {
        address: Ipv4Addr::new(127, 0, 0, 0).into(),
        length: 8,
    };
    let mut chain = Chain::regular(FROM_GUEST)
        .rule(Rule::new().source_not(up.subnet.into()).drop())
        .rule(Rule::new().source(Prefix::host(up.gateway)).drop())
        .rule(Rule::new().destination(loopback).drop());
    if let Some(v6) = up.ipv6 {
        chain = chain
            .rule(Rule::new().source(Prefix::host(v6.gateway)).drop())
            .rule(Rule::new().source(v6_prefix(v6.prefix)).back());
    }
    chain
        // Link-local addresses, and none: a machine that looks whether an address is free.
        .rule(
            Rule::new()
                .source(prefix(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10))
                .back(),
        )
        .rule(
            Rule::new()
                .source(prefix(Ipv6Addr::UNSPECIFIED, 128))
                .back(),
        )
        .rule(Rule::new().ipv6().drop())
}

/// What goes through the host: everything out, answers back, and from outside what the rules allow.
fn passing(bridge: &str) -> Chain {
    Chain::base(
        "passing",
        Kind::Filter,
        Hook::Forward,
        Priority::FILTER,
        Policy::Accept,
    )
    .rule(Rule::new().input_is(bridge).clamp_segments())
    .rule(Rule::new().output_is(bridge).clamp_segments())
    .rule(Rule::new().input_is(bridge).accept())
    .rule(
        Rule::new()
            .output_is(bridge)
            .state(States::ANSWERS)
            .accept(),
    )
    .rule(Rule::new().output_is(bridge).goto(INBOUND))
}

/// What leaves for other networks does so under the host's address.
fn leaving(bridge: &str, up: &Up) -> Chain {
    let outside = || Rule::new().output_is_not(bridge).output_is_not("lo");
    let chain = Chain::base(
        "leaving",
        Kind::Nat,
        Hook::Postrouting,
        Priority::SOURCE_NAT,
        Policy::Accept,
    )
    .rule(outside().source(up.subnet.into()).masquerade());
    match up.ipv6 {
        Some(v6) => chain.rule(outside().source(v6_prefix(v6.prefix)).masquerade()),
        None => chain,
    }
}

/// Sends what the guest asks of the gateway to the host's own services, but for a resolver that listens there.
fn host_services(bridge: &str, up: &Up, to: Ipv4Addr) -> Chain {
    let chain = Chain::base(
        "host_services",
        Kind::Nat,
        Hook::Prerouting,
        Priority::DESTINATION_NAT,
        Policy::Accept,
    );
    let ranges: &[(u16, u16)] = if up.gateway_dns {
        &[(1, DNS - 1), (DNS + 1, u16::MAX)]
    } else {
        &[(1, u16::MAX)]
    };
    chain.rules(
        [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .flat_map(|protocol| {
                ranges.iter().map(move |(first, last)| {
                    Rule::new()
                        .input_is(bridge)
                        .destination(Prefix::host(up.gateway))
                        .protocol(protocol)
                        .destination_ports(*first, *last)
                        .send_to(to.into(), None)
                })
            }),
    )
}

/// One rule of the user's is one of the kernel's for each protocol that it means.
fn inbound(wanted: &WantedRule) -> Vec<Rule> {
    let base = || match wanted.source {
        Some(source) => Rule::new().source(Prefix {
            address: source.address,
            length: source.bits,
        }),
        None => Rule::new(),
    };
    let with = |protocol| {
        let rule = base().protocol(protocol);
        match wanted.ports {
            Some((first, last)) => rule.destination_ports(first, last),
            None => rule,
        }
    };
    let matches = match (wanted.protocol, wanted.ports) {
        (Wanted::Any, None) => vec![base()],
        (Wanted::Any, Some(_)) => vec![with(Protocol::Tcp), with(Protocol::Udp)],
        (Wanted::Tcp, _) => vec![with(Protocol::Tcp)],
        (Wanted::Udp, _) => vec![with(Protocol::Udp)],
        (Wanted::Icmp, _) => match wanted.source.map(|s| s.address) {
            Some(IpAddr::V4(_)) => vec![base().protocol(Protocol::Icmp)],
            Some(IpAddr::V6(_)) => vec![base().protocol(Protocol::Icmpv6)],
            None => vec![
                base().protocol(Protocol::Icmp),
                base().protocol(Protocol::Icmpv6),
            ],
        },
    };
    let end = |rule: Rule| match wanted.action {
        Action::Allow => rule.accept(),
        Action::Deny => rule.drop(),
    };
    matches.into_iter().map(end).collect()
}

fn v6_prefix(first: Ipv6Addr) -> Prefix {
    Prefix {
        address: first.into(),
        length: 64,
    }
}
