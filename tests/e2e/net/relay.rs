//! What listens in a distribution is on the host's localhost, and in the ledger. In the VM that most tests share.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use hostel_tests::run::{DEADLINE, Running, host, until};
use serde_json::Value;

use super::{
    Tests,
    bench::empty,
    probe::{host_fetches, serve_in_guest},
};
use crate::shared::{DEBIAN_12, DEBIAN_13, SMALL, home, small};

pub(crate) const TESTS: Tests = &[
    (
        "every_kind_of_listener_is_on_localhost",
        every_kind_of_listener_is_on_localhost,
    ),
    (
        "a_closed_listener_leaves_localhost",
        a_closed_listener_leaves_localhost,
    ),
    (
        "half_a_connection_can_be_closed",
        half_a_connection_can_be_closed,
    ),
    (
        "a_busy_port_waits_and_is_taken_when_it_is_free",
        a_busy_port_waits_and_is_taken_when_it_is_free,
    ),
    (
        "rules_move_ports_and_switch_them_off",
        rules_move_ports_and_switch_them_off,
    ),
    (
        "udp_is_relayed_when_it_is_asked_for",
        udp_is_relayed_when_it_is_asked_for,
    ),
    (
        "two_that_want_one_port_are_told_what_to_do",
        two_that_want_one_port_are_told_what_to_do,
    ),
    ("the_ledger_can_be_watched", the_ledger_can_be_watched),
    (
        "the_machines_own_sockets_are_nobodys",
        the_machines_own_sockets_are_nobodys,
    ),
    (
        "low_ports_of_root_are_the_same",
        low_ports_of_root_are_the_same,
    ),
    (
        "low_ports_move_where_the_user_has_no_right",
        low_ports_move_where_the_user_has_no_right,
    ),
];

const V4: Ipv4Addr = Ipv4Addr::LOCALHOST;
const V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

/// Waits until a server of the guest answers at an address of the host.
fn answers(address: SocketAddr, who: &str) {
    until(&format!("{who} answers at {address}"), DEADLINE, || {
        host_fetches(address).filter(|answer| answer == who)
    })
    .unwrap();
}

/// Returns the line of the ledger about a port of the guest.
fn entry(port: u16) -> Option<Value> {
    let ledger = home().json(&["ports"]);
    let entries = ledger["ports"].as_array().expect("the ledger is a list");
    entries.iter().find(|e| e["guest_port"] == port).cloned()
}

/// Waits for a state in the ledger.
fn state(port: u16, state: &str) -> Value {
    until(&format!("port {port} is {state}"), DEADLINE, || {
        entry(port).filter(|e| e["state"] == state)
    })
    .unwrap()
}

/// REL-2, REL-3, REL-7, the last on purpose otherwise: both families, whatever the server is bound to.
fn every_kind_of_listener_is_on_localhost() {
    let vm = home().json(&["status"])["network"]["address"]
        .as_str()
        .unwrap()
        .to_owned();
    for (port, bound) in [
        (7101, "0.0.0.0"),
        (7102, "127.0.0.1"),
        (7103, "[::]"),
        (7104, "[::1]"),
        (7105, vm.as_str()),
        (7106, "127.0.0.2"),
    ] {
        let server = serve_in_guest(home(), SMALL, bound, port);
        answers((V4, port).into(), SMALL);
        answers((V6, port).into(), SMALL);
        let line = state(port, "forwarded");
        assert_eq!(line["distro"], SMALL, "{line}");
        assert_eq!(line["process"], "httpd", "{line}");
        assert!(line["pid"].as_u64().is_some_and(|p| p > 1), "{line}");
        drop(server);
    }
}

fn a_closed_listener_leaves_localhost() {
    let server = serve_in_guest(home(), SMALL, "0.0.0.0", 7111);
    answers((V4, 7111).into(), SMALL);
    drop(server);
    until("the port is closed", DEADLINE, || {
        TcpStream::connect((V4, 7111)).err()
    })
    .unwrap();
    until("the ledger forgets it", DEADLINE, || {
        entry(7111).is_none().then_some(())
    })
    .unwrap();
}

/// REL-6, on purpose otherwise.
fn half_a_connection_can_be_closed() {
    let _server = home().start(&[
        "-d",
        DEBIAN_12,
        "--",
        "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Listen => 5, LocalPort => 7121, ReuseAddr => 1) or die; \
         while ($c = $s->accept) { local $/; $text = <$c>; print $c length($text); close $c }'",
    ]);
    let mut stream = connect(7121);
    let sent = vec![b'x'; 3_000_000];
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, sent.len().to_string());
}

fn connect(port: u16) -> TcpStream {
    let stream = until("the relay listens", DEADLINE, || {
        TcpStream::connect((V4, port)).ok()
    })
    .unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// REL-4, REL-5, on purpose otherwise.
fn a_busy_port_waits_and_is_taken_when_it_is_free() {
    let holder = TcpListener::bind((V4, 7131)).unwrap();
    let _server = serve_in_guest(home(), SMALL, "0.0.0.0", 7131);
    let line = state(7131, "waiting");
    let reason = line["reason"].as_str().unwrap();
    assert!(
        reason.contains("7131") && reason.contains(&std::process::id().to_string()),
        "{line}"
    );
    drop(holder);
    answers((V4, 7131).into(), SMALL);
    state(7131, "forwarded");
}

fn rules_move_ports_and_switch_them_off() {
    let home = home();
    let _server = serve_in_guest(home, SMALL, "0.0.0.0", 7141);
    answers((V4, 7141).into(), SMALL);
    home.run(&["ports", "set", "7141", "remap=17141"]).ok();
    answers((V4, 17141).into(), SMALL);
    let line = state(7141, "remapped");
    assert!(
        line["host_addresses"].to_string().contains("17141"),
        "{line}"
    );
    until("the old port is closed", DEADLINE, || {
        TcpStream::connect((V4, 7141)).err()
    })
    .unwrap();
    home.run(&["ports", "set", "--distro", SMALL, "7141", "off"])
        .ok();
    // The host reaches the VM without the relay as well.
    let line = state(7141, "direct");
    assert!(
        line["reason"].to_string().contains("rule")
            && !line["host_addresses"].to_string().contains("127.0.0.1"),
        "{line}"
    );
    until("the port is closed", DEADLINE, || {
        TcpStream::connect((V4, 17141)).err()
    })
    .unwrap();
    home.run(&["ports", "unset", "--distro", SMALL, "7141"])
        .ok();
    home.run(&["ports", "unset", "7141"]).ok();
    answers((V4, 7141).into(), SMALL);
    home.run(&["ports", "set", "99999", "off"])
        .fails(2, &["99999"]);
}

fn udp_is_relayed_when_it_is_asked_for() {
    let home = home();
    home.run(&["ports", "set", "--udp", "7151", "same"]).ok();
    let _server: Running = home.start(&[
        "-d",
        DEBIAN_12,
        "--",
        "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Proto => \"udp\", LocalPort => 7151) or die; \
         while (defined $s->recv($m, 65000)) { $s->send(uc $m) }'",
    ]);
    let socket = UdpSocket::bind((V4, 0)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let answer = until("a datagram comes back", DEADLINE, || {
        socket.send_to(b"hello", (V4, 7151)).ok()?;
        let mut buffer = [0; 64];
        let n = socket.recv(&mut buffer).ok()?;
        Some(buffer[..n].to_vec())
    })
    .unwrap();
    assert_eq!(answer, b"HELLO");
    home.run(&["ports", "unset", "--udp", "7151"]).ok();
}

/// REL-9, and what to do about it.
fn two_that_want_one_port_are_told_what_to_do() {
    let home = home();
    let _first = serve_in_guest(home, SMALL, "0.0.0.0", 7161);
    state(7161, "forwarded");
    home.sh(DEBIAN_13, "perl -MIO::Socket::INET -e 'IO::Socket::INET->new(Listen => 1, LocalPort => 7161) or die \"$!\\n\"'")
        .fails(98, &["in use"]);
    let line = entry(7161).unwrap();
    assert_eq!(
        line["distro"], SMALL,
        "the ledger says who holds it: {line}"
    );
}

fn the_ledger_can_be_watched() {
    use std::io::BufRead as _;
    let mut watcher = home()
        .command(&["ports", "--watch", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(watcher.stdout.take().unwrap()).lines();
    let (seen, news) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Ends with the watcher.
        for line in lines.map_while(Result::ok) {
            if line.contains("7171") {
                let _ = seen.send(());
            }
        }
    });
    let _server = serve_in_guest(home(), SMALL, "0.0.0.0", 7171);
    let told = news.recv_timeout(DEADLINE);
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    told.expect("the watcher tells the new listener");
}

/// The agent answers questions for names at an address of its own: no service of any distribution.
fn the_machines_own_sockets_are_nobodys() {
    let home = home();
    home.sh(SMALL, "nslookup host.hostel 10.255.255.254").ok();
    let server = serve_in_guest(home, SMALL, "0.0.0.0", 7181);
    // What listened before is known by now.
    state(7181, "forwarded");
    let ledger = home.json(&["ports"]);
    assert!(!ledger.to_string().contains("10.255.255.254"), "{ledger}");
    assert!(entry(53).is_none(), "{ledger}");
    assert!(TcpStream::connect((V4, 53)).is_err());
    drop(server);
}

fn low_ports_of_root_are_the_same() {
    let _server = serve_in_guest(home(), SMALL, "0.0.0.0", 80);
    answers((V4, 80).into(), SMALL);
    answers((V6, 80).into(), SMALL);
    state(80, "forwarded");
}

/// 80 becomes 8080, or what is free behind it, and the ledger tells.
fn low_ports_move_where_the_user_has_no_right() {
    host(
        "sysctl",
        &["-qw", "net.ipv4.ip_unprivileged_port_start=1024"],
    )
    .unwrap()
    .ok();
    let _taken = TcpListener::bind((V4, 8080)).unwrap();
    let home = empty("slirp");
    home.import(SMALL, &small());
    let _server = serve_in_guest(&home, SMALL, "0.0.0.0", 80);
    let _high = serve_in_guest(&home, SMALL, "0.0.0.0", 7191);
    answers((V4, 8081).into(), SMALL);
    answers((V6, 8081).into(), SMALL);
    answers((V4, 7191).into(), SMALL);
    let ledger = home.json(&["ports"]);
    let entries = ledger["ports"].as_array().unwrap();
    let line = entries.iter().find(|e| e["guest_port"] == 80).unwrap();
    assert_eq!(line["state"], "remapped", "{line}");
    let addresses = line["host_addresses"].to_string();
    assert!(addresses.contains("127.0.0.1:8081"), "{line}");
    let reason = line["reason"].as_str().unwrap();
    assert!(reason.contains("80"), "{line}");
}
