//! What the user decides: nothing at all, some of it, and who may come from elsewhere.

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr},
    process::{Child, Command, Stdio},
};

use hostel_model::firewall::{Action, Protocol as Kind, Rule, Source};
use hostel_relay::{PortRule, Protocol, RuleAction, Settings, State};
use hostel_testkit::Need;

use crate::support::{
    alone, alone_after, connect, entry, in_room, is_at, listener, relay, serve, until,
};

/// REL-12.
#[test]
fn without_forwarding_nothing_listens() {
    if !alone("policy::without_forwarding_nothing_listens") {
        return;
    }
    let relay = relay(Settings::default());
    relay.reset(vec![listener("0.0.0.0", 3000), in_room(7, "0.0.0.0", 3000)]);
    assert!(connect("127.0.0.1:3000").is_ok());
    let off = Settings {
        forwarding: false,
        ..Settings::default()
    };
    relay.set_settings(off.clone());
    for address in ["127.0.0.1:3000", "[::1]:3000", "127.19.133.7:3000"] {
        assert!(connect(address).is_err(), "{address}");
    }
    for line in relay.entries() {
        is_at(&line, State::Off, &[]);
        assert_eq!(line.reason, "localhostForwarding is false");
    }
    // A host that reaches the guest itself still does.
    relay.set_settings(Settings {
        direct: Some("172.19.132.144".parse().unwrap()),
        ..off
    });
    is_at(&relay.entries()[0], State::Direct, &["172.19.132.144:3000"]);
    is_at(&relay.entries()[1], State::Direct, &["172.19.133.7:3000"]);
    relay.set_settings(Settings::default());
    is_at(
        &relay.entries()[1],
        State::Forwarded,
        &["127.19.133.7:3000"],
    );
}

#[test]
fn rules_place_listeners() {
    if !alone("policy::rules_place_listeners") {
        return;
    }
    let rule = |port, action| PortRule {
        distro: None,
        port: Some(port),
        protocol: Protocol::Tcp,
        action,
    };
    let relay = relay(Settings {
        ignored_ports: vec![3001],
        rules: vec![
            rule(3002, RuleAction::Off),
            rule(3003, RuleAction::Remap(Some(4000))),
            rule(3004, RuleAction::Remap(None)),
        ],
        ..Settings::default()
    });
    serve(&listener("0.0.0.0", 3003), b"");
    relay.reset((3000..=3005).map(|p| listener("0.0.0.0", p)).collect());
    is_at(
        &entry(&relay, 3000),
        State::Forwarded,
        &["127.0.0.1:3000", "[::1]:3000"],
    );
    is_at(&entry(&relay, 3001), State::Off, &[]);
    is_at(&entry(&relay, 3002), State::Off, &[]);
    is_at(
        &entry(&relay, 3003),
        State::Remapped,
        &["127.0.0.1:4000", "[::1]:4000"],
    );
    // 3005 is somebody's own.
    is_at(
        &entry(&relay, 3004),
        State::Remapped,
        &["127.0.0.1:3006", "[::1]:3006"],
    );
    let mut stream = connect("[::1]:4000").unwrap();
    stream.write_all(b"echo").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    // A rule that names a port has it before its own number.
    relay.change(vec![listener("0.0.0.0", 4000)], &[]);
    is_at(&entry(&relay, 4000), State::Waiting, &[]);
    assert!(entry(&relay, 4000).reason.contains("bound to 0.0.0.0:3003"));
}

const PEER: &str = "RELAY_TEST_PEER";

/// A machine beyond: the other end of a cable, in a network namespace of its own. It says what each address it is given does.
struct Peer(Child);

impl Peer {
    fn start() -> Self {
        let this = env::current_exe().unwrap();
        let name = "policy::only_whom_the_firewall_lets_in_comes_from_elsewhere";
        let child = Command::new("unshare")
            .arg("-n")
            .arg(this)
            .args(["--exact", name, "--nocapture"])
            .env(PEER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut peer = Self(child);
        assert_eq!(peer.hear(), "ready");
        let pid = peer.0.id();
        let shell = format!(
            "ip link add here type veth peer name there netns {pid}
             ip addr add 192.0.2.1/24 dev here; ip link set here up
             nsenter -t {pid} -n ip addr add 192.0.2.9/24 dev there
             nsenter -t {pid} -n ip link set there up"
        );
        let made = Command::new("sh").args(["-ec", &shell]).status().unwrap();
        assert!(made.success());
        peer
    }

    fn hear(&mut self) -> String {
        let mut out = BufReader::new(self.0.stdout.as_mut().unwrap());
        let mut line = String::new();
        // The test runner's own lines come first.
        while !line.starts_with("peer: ") {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "the peer is gone");
        }
        line.trim_start_matches("peer: ").trim().to_owned()
    }

    fn gets(&mut self, address: &str) -> String {
        writeln!(self.0.stdin.as_mut().unwrap(), "{address}").unwrap();
        self.hear()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn be_the_peer() {
    println!("\npeer: ready");
    for address in std::io::stdin().lines().map_while(Result::ok) {
        let answer = connect(&address).and_then(|mut s| {
            let mut text = [0; 5];
            s.read_exact(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        });
        match answer {
            Ok(text) => println!("peer: {text}"),
            Err(e) => println!("peer: {:?}", e.kind()),
        }
    }
}

#[test]
fn only_whom_the_firewall_lets_in_comes_from_elsewhere() {
    if env::var_os(PEER).is_some() {
        return be_the_peer();
    }
    let name = "policy::only_whom_the_firewall_lets_in_comes_from_elsewhere";
    if !alone_after(name, &[Need::Root], "exec") {
        return;
    }
    let to = listener("0.0.0.0", 3000);
    serve(&to, b"guest");
    let mut peer = Peer::start();
    let relay = relay(Settings::default());
    relay.reset(vec![to]);
    let at = "192.0.2.1:3000";
    assert_eq!(peer.gets(at), "ConnectionRefused", "loopback only");

    let listen: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
    let open = |firewall: Vec<Rule>| Settings {
        listen: vec![listen],
        firewall,
        ..Settings::default()
    };
    let rule = |action, bits| Rule {
        action,
        protocol: Kind::Tcp,
        ports: Some((3000, 3000)),
        source: Some(Source {
            address: Ipv4Addr::new(192, 0, 2, 9).into(),
            bits,
        }),
    };
    relay.set_settings(open(Vec::new()));
    let line = entry(&relay, 3000);
    is_at(
        &line,
        State::Forwarded,
        &["127.0.0.1:3000", "192.0.2.1:3000", "[::1]:3000"],
    );
    assert!(line.reason.contains("OPEN TO OTHER MACHINES"), "{line:#?}");
    assert!(relay.warnings()[0].contains("192.0.2.1"));
    assert_eq!(peer.gets(at), "ConnectionReset", "no rule");
    // The host itself, by the same address.
    let mut own = connect(at).unwrap();
    own.read_exact(&mut [0; 5]).unwrap();

    relay.set_settings(open(vec![rule(Action::Allow, 24)]));
    assert_eq!(peer.gets(at), "guest");
    relay.set_settings(open(vec![rule(Action::Deny, 32), rule(Action::Allow, 24)]));
    assert_eq!(peer.gets(at), "ConnectionReset", "the first rule decides");

    // An address that the host does not have yet.
    relay.set_settings(Settings {
        listen: vec![Ipv4Addr::new(192, 0, 2, 2).into()],
        ..Settings::default()
    });
    let line = entry(&relay, 3000);
    is_at(&line, State::Forwarded, &["127.0.0.1:3000", "[::1]:3000"]);
    assert!(
        line.reason.contains("the host has no address 192.0.2.2"),
        "{line:#?}"
    );
    let add = ["addr", "add", "192.0.2.2/24", "dev", "here"];
    assert!(Command::new("ip").args(add).status().unwrap().success());
    until(&relay, |e| e[0].host.len() == 3);
}
