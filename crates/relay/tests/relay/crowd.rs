//! Many connections, and too few descriptors.

use std::{
    env,
    io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::{Child, ChildStdout, Command, Stdio},
};

use hostel_relay::{Limits, Settings, State};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{DEADLINE, alone, connect, listener, real, relay, relay_with, serve, until};

const AT: &str = "127.0.0.1:3000";

/// Allows this process so many descriptors, or as many as it may have; returns how many. Root may have more than it was given.
fn allow_files(n: u64) -> u64 {
    let allowed = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let set = |n: u64, maximum: u64| {
        let limit = Rlimit {
            current: Some(n),
            maximum: Some(maximum),
        };
        setrlimit(Resource::Nofile, limit)
    };
    if set(n, allowed.max(n)).is_ok() {
        return n;
    }
    set(allowed, allowed).unwrap();
    allowed
}

/// Memory of this process, in KiB.
fn resident() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

const CROWD: &str = "crowd::ten_thousand_idle_connections_cost_little_and_all_live";
const SIDE: &str = "RELAY_TEST_SIDE";
const MANY: u32 = 10_000;

/// One side of the crowd, in a process of its own: every process may have only so many descriptors. It does one thing for each
/// line that it is told, and says when it has.
struct Side(Child, BufReader<ChildStdout>);

impl Side {
    fn start(side: &str, many: u32) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", CROWD, "--nocapture"])
            .env(SIDE, format!("{side} {many}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut side = Self(child, said);
        side.hear();
        side
    }

    fn tell(&mut self) {
        writeln!(self.0.stdin.as_mut().unwrap()).unwrap();
    }

    fn hear(&mut self) {
        let mut line = String::new();
        while line.trim() != "side: done" {
            line.clear();
            assert!(self.1.read_line(&mut line).unwrap() > 0, "a side is gone");
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Guests accept all and then send a byte to each; clients connect, say their number, and then read that byte.
fn be_a_side(what: &str) {
    let (side, many) = what.split_once(' ').unwrap();
    let many: u32 = many.parse().unwrap();
    allow_files(u64::from(many) + 100);
    let mut told = io::stdin().lines();
    let mut next = |said: bool| {
        if said {
            println!("\nside: done");
        }
        assert!(
            told.next().is_some_and(|line| line.is_ok()),
            "the test is gone"
        );
    };
    let mut streams = Vec::new();
    if side == "guests" {
        let server = TcpListener::bind(real(&listener("0.0.0.0", 3000))).unwrap();
        next(true);
        let mut numbers = vec![false; many as usize];
        for _ in 0..many {
            let (mut stream, _) = server.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut number = [0; 4];
            stream.read_exact(&mut number).unwrap();
            numbers[u32::from_be_bytes(number) as usize] = true;
            streams.push(stream);
        }
        assert!(numbers.iter().all(|seen| *seen));
        next(true);
        for mut stream in &streams {
            stream.write_all(b"!").unwrap();
        }
        next(true);
        return;
    }
    next(true);
    for number in 0..many {
        let mut stream = connect(AT).unwrap();
        stream.write_all(&number.to_be_bytes()).unwrap();
        streams.push(stream);
    }
    next(true);
    for stream in &mut streams {
        stream.read_exact(&mut [0]).unwrap();
    }
    next(true);
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_all_live() {
    if let Ok(what) = env::var(SIDE) {
        return be_a_side(&what);
    }
    if !alone(CROWD) {
        return;
    }
    // Fewer where the relay's process is not allowed two descriptors for each.
    let wanted = u64::from(MANY) * 2 + 100;
    let allowed = allow_files(wanted);
    let many = MANY.min((allowed as u32 - 100) / 2);
    if many < MANY {
        let fewer = format!(
            "needs {wanted} open files for its whole crowd: {allowed} are allowed, for {many} connections"
        );
        hostel_testkit::skip(CROWD, &fewer);
    }
    let relay = relay(Settings::default());
    relay.reset(vec![listener("0.0.0.0", 3000)]);
    let mut guests = Side::start("guests", many);
    let mut clients = Side::start("clients", many);
    let before = resident();
    guests.tell();
    clients.tell();
    clients.hear();
    guests.hear();
    until(&relay, |e| e[0].connections == u64::from(many));
    assert!(relay.connected().contains(&None) && relay.connected().len() == 1);
    let each = (resident().saturating_sub(before)) * 1024 / u64::from(many);
    assert!(
        each < 8 * 1024,
        "{each} bytes for each of {many} connections"
    );
    guests.tell();
    clients.tell();
    clients.hear();
    guests.hear();
    drop((clients, guests));
    until(&relay, |e| e[0].connections == 0);
    assert!(relay.connected().is_empty());
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
    // As early as while it connects.
    let error = connect(AT).and_then(|mut third| third.read(&mut [0]));
    let error = error.unwrap_err();
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
    let next = {
        let free = rustix::io::dup(rustix::stdio::stdin()).unwrap();
        free.as_raw_fd() as u64
    };
    allow_files(next + 1);
    let mut second = TcpStream::connect(AT).unwrap();
    second.set_read_timeout(Some(DEADLINE)).unwrap();
    second.write_all(b"wait").unwrap();
    until(&relay, |e| e[0].reason.contains("new connections wait"));
    assert_eq!(relay.entries()[0].state, State::Forwarded);
    allow_files(old);
    second.read_exact(&mut [0; 4]).unwrap();
    until(&relay, |e| e[0].reason.is_empty());
}
