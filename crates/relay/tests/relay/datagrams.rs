//! UDP: only where a rule says so, each peer with a way of its own.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use hostel_relay::{GuestListener, Limits, PortRule, Protocol, RuleAction, Settings, State};

use crate::support::{DEADLINE, alone, entry, is_at, listener, real, relay, relay_with, until};

fn port() -> GuestListener {
    GuestListener {
        protocol: Protocol::Udp,
        ..listener("0.0.0.0", 5000)
    }
}

fn settings() -> Settings {
    Settings {
        rules: vec![PortRule {
            distro: None,
            port: Some(5000),
            protocol: Protocol::Udp,
            action: RuleAction::Same,
        }],
        ..Settings::default()
    }
}

/// Answers each datagram with the address that the guest sees, and the datagram.
fn serve() {
    let socket = UdpSocket::bind(real(&port())).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 16_000];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer) {
            let mut answer = format!("{peer} ").into_bytes();
            answer.extend_from_slice(&buffer[..n]);
            let _ = socket.send_to(&answer, peer);
        }
    });
}

fn client(to: &str) -> UdpSocket {
    let from = if to.starts_with('[') {
        "[::1]:0"
    } else {
        "127.0.0.1:0"
    };
    let socket = UdpSocket::bind(from).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn ask(socket: &UdpSocket, text: &str) -> (String, String) {
    socket.send(text.as_bytes()).unwrap();
    let mut buffer = [0; 16_000];
    let n = socket.recv(&mut buffer).unwrap();
    let answer = std::str::from_utf8(&buffer[..n]).unwrap();
    let (peer, text) = answer.split_once(' ').unwrap();
    (peer.to_owned(), text.to_owned())
}

#[test]
fn datagrams_go_both_ways_for_each_peer() {
    if !alone("datagrams::datagrams_go_both_ways_for_each_peer") {
        return;
    }
    serve();
    let relay = relay(Settings::default());
    relay.reset(vec![port()]);
    is_at(&entry(&relay, 5000), State::Off, &[]);
    assert!(
        entry(&relay, 5000)
            .reason
            .contains("only where a rule says so")
    );
    relay.set_settings(settings());
    is_at(
        &entry(&relay, 5000),
        State::Forwarded,
        &["127.0.0.1:5000", "[::1]:5000"],
    );
    let (one, two) = (client("127.0.0.1:5000"), client("[::1]:5000"));
    let large = "x".repeat(9000);
    let first = ask(&one, "a");
    let other = ask(&two, &large);
    assert_eq!((first.1.as_str(), &other.1), ("a", &large));
    assert_ne!(first.0, other.0, "the guest can tell them apart");
    assert_eq!(ask(&one, "b").0, first.0, "and knows one again");
    assert_eq!(entry(&relay, 5000).connections, 2);
}

#[test]
fn a_silent_peer_is_forgotten_and_the_oldest_makes_room() {
    if !alone("datagrams::a_silent_peer_is_forgotten_and_the_oldest_makes_room") {
        return;
    }
    serve();
    let limits = Limits {
        udp_peers: 3,
        udp_idle: Duration::from_millis(500),
        ..Limits::default()
    };
    let relay = relay_with(settings(), limits, false);
    relay.reset(vec![port()]);
    let clients: Vec<_> = (0..10).map(|_| client("127.0.0.1:5000")).collect();
    for client in &clients {
        assert_eq!(ask(client, "hello").1, "hello");
    }
    assert!(until(&relay, |e| e[0].connections <= 3)[0].connections > 0);
    until(&relay, |e| e[0].connections == 0);
    // It may come again.
    assert_eq!(ask(&clients[0], "again").1, "again");
}

#[test]
fn datagrams_are_framed_on_a_stream() {
    if !alone("datagrams::datagrams_are_framed_on_a_stream") {
        return;
    }
    let guest = TcpListener::bind(real(&port())).unwrap();
    let relay = relay_with(settings(), Limits::default(), true);
    relay.reset(vec![port()]);
    let client = client("127.0.0.1:5000");
    client.send(b"hello").unwrap();
    client.send(b"").unwrap();
    let (mut stream, _) = guest.accept().unwrap();
    let mut frames = [0; 9];
    stream.read_exact(&mut frames).unwrap();
    assert_eq!(&frames, b"\0\x05hello\0\0");
    stream.write_all(b"\0\x03one\0\x03t").unwrap();
    stream.write_all(b"wo").unwrap();
    stream.write_all(b"\x00").unwrap();
    let mut buffer = [0; 9];
    for text in [b"one", b"two"] {
        let n = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], text);
    }
}
