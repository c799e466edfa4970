//! Where listeners of the guest appear on the host (REL-2, REL-3, REL-7, REL-8, REL-12).

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::Ipv4Addr,
};

use hostel_relay::{GuestListener, Settings, State};
use hostel_testkit::Need;

use crate::support::{
    alone, alone_after, connect, entry, greeting, in_room, is_at, listener, relay, serve, until,
    wait_for,
};

const BOTH: [&str; 2] = ["127.0.0.1:3000", "[::1]:3000"];

#[test]
fn every_kind_of_listener_is_on_both_families() {
    if !alone("addresses::every_kind_of_listener_is_on_both_families") {
        return;
    }
    let dual = GuestListener {
        dual_stack: true,
        ..listener("::", 3000)
    };
    let kinds = [
        listener("0.0.0.0", 3000),
        listener("127.0.0.1", 3000),
        listener("127.0.0.2", 3000),
        listener("172.19.132.144", 3000),
        dual,
        listener("::", 3000),
        listener("::1", 3000),
        listener("fe80::1", 3000),
    ];
    let relay = relay(Settings::default());
    serve(&listener("0.0.0.0", 3000), b"guest");
    serve(&listener("::", 3000), b"guest");
    for kind in kinds {
        relay.reset(vec![kind.clone()]);
        is_at(&entry(&relay, 3000), State::Forwarded, &BOTH);
        for address in BOTH {
            assert_eq!(
                greeting(address, 5).unwrap(),
                b"guest",
                "{kind:?} at {address}"
            );
        }
        // Gone at once, not after a while.
        relay.change(Vec::new(), &[kind.key()]);
        for address in BOTH {
            let error = connect(address).unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionRefused,
                "{kind:?} at {address}"
            );
        }
        assert!(relay.entries().is_empty());
    }
}

/// A port that both families have is one line, and each family goes to its own listener.
#[test]
fn two_families_are_one_line_and_two_ways() {
    if !alone("addresses::two_families_are_one_line_and_two_ways") {
        return;
    }
    let (four, six) = (listener("0.0.0.0", 3000), listener("::", 3000));
    serve(&four, b"four");
    serve(&six, b"six!");
    let relay = relay(Settings::default());
    relay.reset(vec![six.clone(), four.clone()]);
    let line = entry(&relay, 3000);
    is_at(&line, State::Forwarded, &BOTH);
    assert_eq!(line.addresses, [four.address, six.address]);
    assert_eq!(greeting(BOTH[0], 4).unwrap(), b"four");
    assert_eq!(greeting(BOTH[1], 4).unwrap(), b"six!");
    // The one that stays takes over for both.
    relay.change(Vec::new(), &[four.key()]);
    assert_eq!(greeting(BOTH[0], 4).unwrap(), b"six!");
    is_at(&entry(&relay, 3000), State::Forwarded, &BOTH);
}

#[test]
fn rooms_have_every_port_for_themselves() {
    if !alone("addresses::rooms_have_every_port_for_themselves") {
        return;
    }
    let (one, two) = (in_room(7, "0.0.0.0", 3000), in_room(8, "::1", 3000));
    let shared = listener("127.0.0.1", 3000);
    serve(&one, b"one");
    serve(&two, b"two");
    serve(&shared, b"all");
    let relay = relay(Settings::default());
    relay.reset(vec![one, two, shared]);
    let at: Vec<_> = relay.entries().iter().map(|e| e.host.clone()).collect();
    assert_eq!(
        at,
        [
            vec![BOTH[0].parse().unwrap(), BOTH[1].parse().unwrap()],
            vec!["127.19.133.7:3000".parse().unwrap()],
            vec!["127.19.133.8:3000".parse().unwrap()],
        ]
    );
    for (address, text) in [
        ("127.19.133.7:3000", b"one"),
        ("127.19.133.8:3000", b"two"),
        ("127.0.0.1:3000", b"all"),
        ("[::1]:3000", b"all"),
    ] {
        assert_eq!(greeting(address, 3).unwrap(), text, "{address}");
    }
}

/// Listening on every address does not take a room's away, whichever comes first; and it is said loudly.
#[test]
fn a_wildcard_of_ours_and_a_room_go_together() {
    if !alone("addresses::a_wildcard_of_ours_and_a_room_go_together") {
        return;
    }
    let (room, shared) = (in_room(7, "0.0.0.0", 6000), listener("0.0.0.0", 6000));
    serve(&room, b"own");
    serve(&shared, b"all");
    let relay = relay(Settings {
        listen: vec![Ipv4Addr::UNSPECIFIED.into()],
        ..Settings::default()
    });
    for order in [[&room, &shared], [&shared, &room]] {
        relay.reset(Vec::new());
        for one in order {
            relay.change(vec![one.clone()], &[]);
        }
        let entries = relay.entries();
        is_at(
            &entries[0],
            State::Forwarded,
            &["0.0.0.0:6000", "[::1]:6000"],
        );
        assert!(entries[0].reason.contains("OTHER MACHINES"), "{entries:#?}");
        is_at(&entries[1], State::Forwarded, &["127.19.133.7:6000"]);
        assert_eq!(greeting("127.19.133.7:6000", 3).unwrap(), b"own");
        assert_eq!(greeting("127.0.0.1:6000", 3).unwrap(), b"all");
    }
    let warnings = relay.warnings().join("\n");
    assert!(
        warnings.contains("0.0.0.0, not only on loopback"),
        "{warnings}"
    );
}

/// REL-8.
#[test]
fn without_ipv6_there_is_ipv4() {
    let off = "echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6; exec";
    if !alone_after("addresses::without_ipv6_there_is_ipv4", &[Need::Root], off) {
        return;
    }
    let six = listener("::1", 3000);
    serve(&six, b"guest");
    let relay = relay(Settings::default());
    relay.reset(vec![six]);
    is_at(&entry(&relay, 3000), State::Forwarded, &BOTH[..1]);
    assert_eq!(greeting(BOTH[0], 5).unwrap(), b"guest");
}

/// What goes and comes in one message keeps its socket: another process has no chance to take the port.
#[test]
fn a_listener_that_comes_back_keeps_its_socket() {
    if !alone("addresses::a_listener_that_comes_back_keeps_its_socket") {
        return;
    }
    let inodes = || {
        let text = fs_err::read_to_string("/proc/self/net/tcp").unwrap();
        let lines = text.lines().filter(|l| l.contains("0100007F:0BB8"));
        lines
            .map(|l| l.split_whitespace().nth(9).unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let relay = relay(Settings::default());
    let one = listener("0.0.0.0", 3000);
    relay.reset(vec![one.clone()]);
    let before = inodes();
    assert_eq!(before.len(), 1);
    let again = GuestListener {
        pid: 18,
        ..one.clone()
    };
    relay.change(vec![again.clone()], &[one.key()]);
    relay.reset(vec![again]);
    relay.set_settings(Settings {
        ignored_ports: vec![1],
        ..Settings::default()
    });
    assert_eq!((inodes(), entry(&relay, 3000).pid), (before, 18));
}

#[test]
fn connections_outlive_the_listener_and_end_with_the_relay() {
    if !alone("addresses::connections_outlive_the_listener_and_end_with_the_relay") {
        return;
    }
    let one = listener("0.0.0.0", 3000);
    serve(&one, b"");
    let relay = relay(Settings::default());
    relay.reset(vec![one.clone()]);
    let mut stream = connect(BOTH[0]).unwrap();
    let mut echo = |text: &[u8]| {
        stream.write_all(text)?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).map(|()| answer)
    };
    assert_eq!(echo(b"before").unwrap(), b"before");
    until(&relay, |e| e[0].connections == 1);
    relay.change(Vec::new(), &[one.key()]);
    assert_eq!(echo(b"after").unwrap(), b"after");
    relay.reset(vec![one.clone()]);
    wait_for(relay.close());
    assert_eq!(echo(b"end").unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(connect(BOTH[0]).is_err());
    // It stays closed.
    relay.reset(vec![one]);
    assert!(relay.entries().is_empty());
    wait_for(relay.close());
}
