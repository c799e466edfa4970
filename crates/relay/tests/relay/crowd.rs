//! Many connections, and too few descriptors.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use hostel_relay::{Limits, Settings, State};
use hostel_testkit::Need;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{
    DEADLINE, alone, alone_after, connect, listener, real, relay, relay_with, serve, until,
};

const AT: &str = "127.0.0.1:3000";

fn allow_files(n: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum.map(|m| m.max(n));
    let limit = Rlimit {
        current: Some(n),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Memory of this process, in KiB.
fn resident() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_all_live() {
    const MANY: usize = 10_000;
    // To be allowed so many descriptors.
    if !alone_after(
        "crowd::ten_thousand_idle_connections_cost_little_and_all_live",
        &[Need::Root],
        "exec",
    ) {
        return;
    }
    allow_files(50_000);
    let to = listener("0.0.0.0", 3000);
    let server = TcpListener::bind(real(&to)).unwrap();
    let relay = relay(Settings::default());
    assert_eq!(relay.warnings(), [""; 0]);
    relay.reset(vec![to]);
    let (accepted, guests) = mpsc::channel();
    thread::spawn(move || {
        for guest in server.incoming().flatten().take(MANY) {
            accepted.send(guest).unwrap();
        }
    });
    let before = resident();
    let mut pairs: Vec<(TcpStream, TcpStream)> = Vec::with_capacity(MANY);
    for n in 0..MANY {
        let mut client = connect(AT).unwrap();
        // So that each client knows its own guest.
        client.write_all(&(n as u32).to_be_bytes()).unwrap();
        let mut guest = guests.recv_timeout(DEADLINE).unwrap();
        guest.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut number = [0; 4];
        guest.read_exact(&mut number).unwrap();
        assert_eq!(u32::from_be_bytes(number), n as u32);
        pairs.push((client, guest));
    }
    until(&relay, |e| e[0].connections == MANY as u64);
    let each = (resident().saturating_sub(before)) * 1024 / MANY as u64;
    assert!(each < 8 * 1024, "{each} bytes for each connection");
    for (client, guest) in &mut pairs {
        guest.write_all(b"!").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    drop(pairs);
    until(&relay, |e| e[0].connections == 0);
}

#[test]
fn connections_beyond_the_limit_are_refused_and_told() {
    if !alone("crowd::connections_beyond_the_limit_are_refused_and_told") {
        return;
    }
    let to = listener("0.0.0.0", 3000);
    serve(&to, b"");
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let relay = relay_with(Settings::default(), limits, false);
    relay.reset(vec![to]);
    let mut open: Vec<_> = (0..2).map(|_| connect(AT).unwrap()).collect();
    until(&relay, |e| e[0].connections == 2);
    let mut third = connect(AT).unwrap();
    let error = third.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    until(&relay, |e| e[0].reason.contains("2 connections are open"));
    open.pop();
    until(&relay, |e| e[0].connections == 1);
    let mut again = connect(AT).unwrap();
    again.write_all(b"echo").unwrap();
    again.read_exact(&mut [0; 4]).unwrap();
    until(&relay, |e| e[0].reason.is_empty());
}

#[test]
fn without_descriptors_connections_wait() {
    if !alone("crowd::without_descriptors_connections_wait") {
        return;
    }
    let to = listener("0.0.0.0", 3000);
    serve(&to, b"");
    let relay = relay(Settings::default());
    relay.reset(vec![to]);
    let mut client = TcpStream::connect(AT).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"echo").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    // The next descriptor is the client's own, and the one after it does not exist.
    let old = getrlimit(Resource::Nofile).current.unwrap();
    let next = rustix::io::dup(rustix::stdio::stdin()).unwrap();
    let next = std::os::fd::AsRawFd::as_raw_fd(&next) as u64;
    allow_files(next + 1);
    assert!(relay.warnings()[0].contains("descriptors"));
    let mut second = TcpStream::connect(AT).unwrap();
    second.set_read_timeout(Some(DEADLINE)).unwrap();
    second.write_all(b"wait").unwrap();
    until(&relay, |e| e[0].reason.contains("new connections wait"));
    assert_eq!(relay.entries()[0].state, State::Forwarded);
    allow_files(old);
    second.read_exact(&mut [0; 4]).unwrap();
    until(&relay, |e| e[0].reason.is_empty());
}
