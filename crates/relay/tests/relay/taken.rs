//! Ports that the host does not give, and listeners that want the same one (REL-4, REL-5, REL-9).

use std::net::{TcpListener, UdpSocket};

use hostel_model::DistroId;
use hostel_relay::{GuestListener, Limits, PortRule, Protocol, RuleAction, Settings, State};
use hostel_testkit::Need;

use crate::support::{
    alone, alone_after, entry, greeting, is_at, listener, relay, relay_with, serve, until,
};

fn rule(port: u16, action: RuleAction) -> PortRule {
    PortRule {
        distro: None,
        port: Some(port),
        protocol: Protocol::Tcp,
        action,
    }
}

#[test]
fn a_taken_port_names_its_holder_and_is_had_when_it_is_free() {
    if !alone("taken::a_taken_port_names_its_holder_and_is_had_when_it_is_free") {
        return;
    }
    let to = listener("0.0.0.0", 3000);
    serve(&to, b"guest");
    // In one family only: localhost is one name, and the half that is free would lead elsewhere.
    for holder in ["127.0.0.1:3000", "[::1]:3000"] {
        let holder = TcpListener::bind(holder).unwrap();
        let relay = relay(Settings::default());
        relay.reset(vec![to.clone()]);
        assert_eq!(entry(&relay, 3000).state, State::Waiting);
        let me = format!("is used by process {} (", std::process::id());
        let line = until(&relay, |e| e[0].reason.contains(&me)).remove(0);
        is_at(&line, State::Waiting, &[]);
        let step = "or move it: hostel ports set --distro debian 3000 remap";
        assert!(
            line.next_step.starts_with("end process") && line.next_step.ends_with(step),
            "{line:#?}"
        );
        drop(holder);
        let line = until(&relay, |e| e[0].state == State::Forwarded).remove(0);
        is_at(&line, State::Forwarded, &["127.0.0.1:3000", "[::1]:3000"]);
        assert_eq!((line.reason.as_str(), line.next_step.as_str()), ("", ""));
        assert_eq!(greeting("[::1]:3000", 5).unwrap(), b"guest");
        // Gone while it waits: nothing is left to wait.
        relay.reset(Vec::new());
    }
}

#[test]
fn a_low_port_without_rights_moves_by_rule() {
    // All of root's rights but the one.
    let shell = "exec setpriv --bounding-set -net_bind_service --inh-caps -net_bind_service";
    let needs = [Need::Root, Need::Program("setpriv")];
    if !alone_after(
        "taken::a_low_port_without_rights_moves_by_rule",
        &needs,
        shell,
    ) {
        return;
    }
    assert!(
        TcpListener::bind("127.0.0.1:80").is_err(),
        "the right is still there"
    );
    let _taken = TcpListener::bind("127.0.0.1:8022").unwrap();
    let relay = relay(Settings::default());
    let web = [listener("0.0.0.0", 80), listener("::", 80)];
    serve(&listener("0.0.0.0", 8080), b"own port");
    relay.reset(vec![
        web[0].clone(),
        web[1].clone(),
        listener("0.0.0.0", 22),
    ]);
    is_at(
        &entry(&relay, 80),
        State::Remapped,
        &["127.0.0.1:8080", "[::1]:8080"],
    );
    assert!(entry(&relay, 80).reason.contains("needs a right"));
    // 8022 is taken.
    is_at(
        &entry(&relay, 22),
        State::Remapped,
        &["127.0.0.1:8023", "[::1]:8023"],
    );
    // Whoever's own number it is comes first.
    relay.change(vec![listener("0.0.0.0", 8080)], &[]);
    is_at(
        &entry(&relay, 8080),
        State::Forwarded,
        &["127.0.0.1:8080", "[::1]:8080"],
    );
    is_at(
        &entry(&relay, 80),
        State::Remapped,
        &["127.0.0.1:8081", "[::1]:8081"],
    );
    assert_eq!(greeting("[::1]:8080", 8).unwrap(), b"own port");
    // It stays where it is, whatever else changes.
    relay.change(Vec::new(), &[listener("0.0.0.0", 8080).key()]);
    relay.set_settings(Settings {
        rules: vec![rule(22, RuleAction::Remap(Some(23)))],
        ..Settings::default()
    });
    is_at(
        &entry(&relay, 80),
        State::Remapped,
        &["127.0.0.1:8081", "[::1]:8081"],
    );
    // A rule that names a low port cannot be followed.
    let line = entry(&relay, 22);
    is_at(&line, State::Waiting, &[]);
    assert!(
        line.reason.contains("port 23 of the host needs a right"),
        "{line:#?}"
    );
}

#[test]
fn a_low_port_with_rights_is_itself() {
    let open = "echo 79 > /proc/sys/net/ipv4/ip_unprivileged_port_start; exec setpriv --bounding-set -net_bind_service --inh-caps -net_bind_service";
    let needs = [Need::Root, Need::Program("setpriv")];
    if !alone_after("taken::a_low_port_with_rights_is_itself", &needs, open) {
        return;
    }
    let relay = relay(Settings::default());
    relay.reset(vec![listener("0.0.0.0", 80), listener("0.0.0.0", 78)]);
    is_at(
        &entry(&relay, 80),
        State::Forwarded,
        &["127.0.0.1:80", "[::1]:80"],
    );
    is_at(
        &entry(&relay, 78),
        State::Remapped,
        &["127.0.0.1:8078", "[::1]:8078"],
    );
}

/// REL-9, past it.
#[test]
fn two_owners_of_one_port_are_told_apart() {
    if !alone("taken::two_owners_of_one_port_are_told_apart") {
        return;
    }
    let of = |name: &str, address: &str| GuestListener {
        distro: Some(DistroId::new_random()),
        distro_name: name.to_owned(),
        ..listener(address, 3000)
    };
    let (first, second) = (of("alpine", "127.0.0.1"), of("debian", "127.0.0.2"));
    serve(&first, b"guest");
    let relay = relay(Settings::default());
    relay.change(vec![second.clone()], &[]);
    relay.change(vec![first.clone()], &[]);
    let lines = relay.entries();
    is_at(
        &lines[1],
        State::Forwarded,
        &["127.0.0.1:3000", "[::1]:3000"],
    );
    is_at(&lines[0], State::Waiting, &[]);
    assert!(
        lines[0]
            .reason
            .contains("leads to process 17 (server) of debian, bound to 127.0.0.2:3000"),
        "{lines:#?}"
    );
    assert_eq!(
        lines[0].next_step,
        "give one of the two a room of its own: hostel manage alpine --network own"
    );
    // A rule for one of them separates them.
    let away = PortRule {
        distro: first.distro,
        ..rule(3000, RuleAction::Remap(None))
    };
    relay.set_settings(Settings {
        rules: vec![away],
        ..Settings::default()
    });
    is_at(
        &relay.entries()[0],
        State::Remapped,
        &["127.0.0.1:3001", "[::1]:3001"],
    );
    relay.set_settings(Settings::default());
    // The one that waits takes over.
    relay.change(Vec::new(), &[second.key()]);
    is_at(
        &entry(&relay, 3000),
        State::Forwarded,
        &["127.0.0.1:3000", "[::1]:3000"],
    );
    assert_eq!(greeting("127.0.0.1:3000", 5).unwrap(), b"guest");
}

#[test]
fn there_are_no_more_listeners_than_there_may_be() {
    if !alone("taken::there_are_no_more_listeners_than_there_may_be") {
        return;
    }
    let limits = Limits {
        listeners: 2,
        ..Limits::default()
    };
    let relay = relay_with(Settings::default(), limits, false);
    relay.reset((1..=9).map(|n| listener("0.0.0.0", 3000 + n)).collect());
    let states = |n: usize| relay.entries()[n].state;
    assert_eq!(
        relay.entries().len(),
        8,
        "more than four for each are not even known"
    );
    assert_eq!(
        [states(0), states(1), states(2)],
        [State::Forwarded, State::Forwarded, State::Waiting]
    );
    assert!(
        relay.entries()[2]
            .reason
            .contains("2 ports are relayed already")
    );
    let warnings = relay.warnings().join("\n");
    assert!(
        warnings.contains("6 wait") && warnings.contains("1 are not shown"),
        "{warnings}"
    );
    relay.change(Vec::new(), &[listener("0.0.0.0", 3001).key()]);
    assert_eq!(
        [states(0), states(1), states(2)],
        [State::Forwarded, State::Forwarded, State::Waiting]
    );
}

#[test]
fn a_taken_udp_port_names_its_holder() {
    if !alone("taken::a_taken_udp_port_names_its_holder") {
        return;
    }
    let holder = UdpSocket::bind("127.0.0.1:3000").unwrap();
    let relay = relay(Settings {
        rules: vec![PortRule {
            protocol: Protocol::Udp,
            ..rule(3000, RuleAction::Same)
        }],
        ..Settings::default()
    });
    relay.reset(vec![GuestListener {
        protocol: Protocol::Udp,
        ..listener("0.0.0.0", 3000)
    }]);
    until(&relay, |e| e[0].reason.contains("is used by process"));
    drop(holder);
    until(&relay, |e| e[0].state == State::Forwarded);
}
