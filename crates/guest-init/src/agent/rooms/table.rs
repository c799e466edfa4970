//! The machine's one table of nf_tables: the relay's way in, who rooms may pretend to be, and whom isolated ones reach.
//!
//! It lives in the machine's network namespace, where no distribution with a room can touch it, and belongs to the agent's
//! socket: root in a distribution that shares the machine's network can neither change nor flush it.

use std::net::{IpAddr, Ipv4Addr};

use hostel_netlink::Prefix;
use hostel_netlink::nft::{
    Chain, Elements, Hook, Kind, Policy, Priority, Protocol, Rejection, Rule, Set, States, Table,
};

use super::room::Plan;
use crate::agent::network::{NAME, Network};

/// The table's name.
pub(super) const TABLE: &str = "hostel";

/// The set of the interfaces of isolated rooms.
const ISOLATED: &str = "isolated";

/// The sets of what is the host itself, of either family.
const HOST: [&str; 2] = ["host4", "host6"];

/// Beginning of the names of all rooms' interfaces.
const ROOMS: &str = "room*";

const DNS: u16 = 53;

/// Writes down what the machine's network and its rooms need; `None` when that is nothing.
pub(super) fn table(network: Option<&Network>, rooms: &[&Plan]) -> Option<Table> {
    let relay = network.and_then(|n| n.relay);
    if relay.is_none() && rooms.is_empty() {
        return None;
    }
    let isolated: Vec<String> = rooms
        .iter()
        .filter(|room| room.isolated)
        .map(|room| room.link.clone())
        .collect();
    let mut table = Table::inet(TABLE).chain(arriving(network, rooms));
    if let Some(network) = network {
        if let (Some(relay), Some(gateway)) = (network.relay, network.gateway) {
            table = table.chain(answering(relay, gateway));
        }
        if network.hide_rooms && !rooms.is_empty() {
            table = table.chain(leaving(network));
        }
    }
    if isolated.is_empty() {
        return Some(table);
    }
    let set = Set::new(ISOLATED, Elements::Interfaces(isolated));
    let host = || network.iter().flat_map(|n| &n.host).copied().collect();
    let [four, six] = HOST;
    Some(
        table
            .set(set)
            .set(Set::new(four, Elements::Networks4(host())))
            .set(Set::new(six, Elements::Networks6(host())))
            .chain(through(network))
            .chain(reaching(network))
            .chain(towards()),
    )
}

fn base(name: &str, kind: Kind, hook: Hook, priority: Priority) -> Chain {
    Chain::base(name, kind, hook, priority, Policy::Accept)
}

/// Before anything looks at a packet: nobody speaks for another, and the loopback is not knocked at from outside.
fn arriving(network: Option<&Network>, rooms: &[&Plan]) -> Chain {
    let mut chain = base("arriving", Kind::Filter, Hook::Prerouting, Priority::RAW);
    let loopback = Prefix::new(Ipv4Addr::new(127, 0, 0, 0), 8).expect("8 of 32 bits");
    if let Some(network) = network {
        // Nearly all there is, and nothing below is about it: the fewer questions, the faster.
        let own = Rule::new().destination(Prefix::host(network.address.address));
        chain = chain.rule(own.source_not(loopback).input_is(NAME).accept());
    }
    for outside in [NAME, ROOMS] {
        let from = || Rule::new().input_is(outside);
        chain = chain
            .rule(from().destination(loopback).drop())
            .rule(from().source(loopback).drop());
    }
    if let Some(relay) = network.and_then(|n| n.relay) {
        let to_relay = || Rule::new().destination(Prefix::host(relay));
        // With the source checked below, a room cannot say that it is the gateway.
        chain = chain.rule(to_relay().input_is(ROOMS).drop());
        if let Some(gateway) = network.and_then(|n| n.gateway) {
            let others = to_relay().input_is(NAME).source_not(Prefix::host(gateway));
            chain = chain.rule(others.drop());
            // Meant for the loopback. Written over without memory, because the tracking of connections has room for few thousand
            // in a small machine, and forgets each one only two minutes after its end.
            let meant = to_relay().input_is(NAME).protocol(Protocol::Tcp);
            let to_loopback = meant.untracked().rewrite_destination4(Ipv4Addr::LOCALHOST);
            chain = chain.rule(to_loopback);
        }
    }
    let local = "fe80::/10".parse().expect("a prefix");
    let nobody = "::/128".parse().expect("a prefix");
    for room in rooms {
        let from = || Rule::new().input_is(&room.link);
        chain = chain.rule(from().source_not(Prefix::host(room.address)).drop());
        for six in [local, nobody]
            .into_iter()
            .chain(room.address6.map(Prefix::host))
        {
            chain = chain.rule(from().source(six).accept());
        }
        chain = chain.rule(from().ipv6().drop());
    }
    chain
}

/// The answers of the loopback to what [`arriving`] brought there.
fn answering(relay: Ipv4Addr, gateway: Ipv4Addr) -> Chain {
    let rule = Rule::new()
        .source(Prefix::host(Ipv4Addr::LOCALHOST))
        .destination(Prefix::host(gateway))
        .output_is(NAME)
        .protocol(Protocol::Tcp)
        .untracked()
        .rewrite_source4(relay);
    base("answering", Kind::Filter, Hook::Output, Priority::RAW).rule(rule)
}

/// For a way out that knows the machine alone.
fn leaving(network: &Network) -> Chain {
    let mut chain = base(
        "leaving",
        Kind::Nat,
        Hook::Postrouting,
        Priority::SOURCE_NAT,
    );
    for own in [Some(network.address), network.address6]
        .into_iter()
        .flatten()
    {
        let others = Rule::new()
            .output_is(NAME)
            .source(own.network())
            .source_not(Prefix::host(own.address));
        chain = chain.rule(others.masquerade());
    }
    chain
}

/// What isolated rooms send through the machine, and what is sent to them: the internet, and the host's way in. The host is
/// closed at all of its addresses, not at the gateway's alone.
fn through(network: Option<&Network>) -> Chain {
    let mut chain = base("through", Kind::Filter, Hook::Forward, Priority::FILTER)
        .rule(Rule::new().state(States::ANSWERS).accept())
        .rule(refuse(Rule::new().input_in(ISOLATED).output_is_not(NAME)))
        .rule(refuse(Rule::new().output_in(ISOLATED).input_is_not(NAME)));
    let own = network.iter().flat_map(|n| [Some(n.address), n.address6]);
    let own: Vec<Prefix> = own.flatten().map(Prefix::network).collect();
    for server in network.iter().flat_map(|n| &n.dns) {
        let host = network.iter().flat_map(|n| &n.host);
        if own.iter().chain(host).any(|p| p.contains(*server)) {
            chain = chain.rules(names(*server));
        }
    }
    let from = || Rule::new().input_in(ISOLATED);
    let [four, six] = HOST;
    chain
        .rules(
            own.into_iter()
                .map(|prefix| refuse(from().destination(prefix))),
        )
        .rule(refuse(from().destination4_in(four)))
        .rule(refuse(from().destination6_in(six)))
}

/// What isolated rooms send to the machine itself: questions about names, and what IPv6 needs to find its neighbours.
fn reaching(network: Option<&Network>) -> Chain {
    let mut chain = base("reaching", Kind::Filter, Hook::Input, Priority::FILTER);
    let from = || Rule::new().input_in(ISOLATED);
    chain = chain.rule(from().state(States::ANSWERS).accept());
    for server in network.iter().flat_map(|n| &n.dns) {
        chain = chain.rules(names(*server));
    }
    for neighbours in ["fe80::/10", "ff02::/16"] {
        let to = neighbours.parse().expect("a prefix");
        let rule = from().destination(to).protocol(Protocol::Icmpv6);
        chain = chain.rule(rule.accept());
    }
    chain.rule(refuse(from()))
}

/// What the machine itself, and the distributions that share its network, send to isolated rooms.
fn towards() -> Chain {
    base("towards", Kind::Filter, Hook::Output, Priority::FILTER)
        .rule(refuse(Rule::new().output_in(ISOLATED).state(States::NEW)))
}

fn names(server: IpAddr) -> impl Iterator<Item = Rule> {
    [Protocol::Udp, Protocol::Tcp]
        .into_iter()
        .map(move |protocol| {
            Rule::new()
                .input_in(ISOLATED)
                .destination(Prefix::host(server))
                .protocol(protocol)
                .destination_ports(DNS, DNS)
                .accept()
        })
}

/// Refuses and says so: a program that runs into the wall knows at once.
fn refuse(rule: Rule) -> Rule {
    rule.reject(Rejection::Prohibited)
}
