//! The same questions for every backend.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use hostel_tests::{
    home::kill,
    run::{DEADLINE, host, until},
    world::{
        self, INTERNET, INTERNET_V6, UPLINK_V6,
        servers::{self, DIGEST, pattern_sha256},
    },
};
use rustix::process::Signal;

use super::{
    Tests,
    bench::{self, Bench, OTHER, ROOM},
    probe::{guest_fetches, host_fetches, internet, serve_in_guest},
    reach,
};
use crate::shared::{DEBIAN_12, SMALL, debian, small};

pub(crate) const TESTS: Tests = &[
    ("root_carries_everything", root_carries_everything),
    ("rootless_carries_everything", rootless_carries_everything),
    ("passt_carries_everything", passt_carries_everything),
    ("slirp_carries_everything", slirp_carries_everything),
    (
        "the_helper_gives_a_user_the_root_backend",
        the_helper_gives_a_user_the_root_backend,
    ),
];

/// How much is moved each way.
const MUCH: u64 = 24 << 20;

fn root_carries_everything() {
    carries_everything("root");
}

fn rootless_carries_everything() {
    carries_everything("rootless");
}

fn passt_carries_everything() {
    carries_everything("passt");
}

fn slirp_carries_everything() {
    carries_everything("slirp");
}

fn carries_everything(backend: &'static str) {
    let bench = Bench::new(backend);
    addresses_are_the_same_everywhere(&bench);
    reach::matches_the_table(&bench);
    ipv6_leads_out(&bench);
    datagrams_are_relayed(&bench);
    large_transfers_arrive_whole(&bench);
    many_connections_at_once(&bench);
    the_process_behind_it_is_killed(&bench);
    bench.home.run(&["shutdown"]).ok();
    nothing_is_left(&bench);
}

/// One command by root, and an ordinary user's VM is reached like root's.
fn the_helper_gives_a_user_the_root_backend() {
    let home = bench::empty("auto");
    let user = home.user().expect("an ordinary user's home").to_string();
    // In this world's own mount namespace; what is installed there otherwise stays visible.
    let over = tempfile::tempdir().unwrap();
    let dir = |name: &str| over.path().join(name).display().to_string();
    host(
        "mount",
        &["-t", "tmpfs", "-o", "mode=755", "none", &dir("")],
    )
    .unwrap()
    .ok();
    fs_err::create_dir(dir("upper")).unwrap();
    fs_err::create_dir(dir("work")).unwrap();
    let layers = format!(
        "lowerdir=/usr/local,upperdir={},workdir={}",
        dir("upper"),
        dir("work")
    );
    host(
        "mount",
        &["-t", "overlay", "-o", &layers, "none", "/usr/local"],
    )
    .unwrap()
    .ok();
    let hostel = world::program("hostel");
    let helper = |args: &[&str]| {
        let all = [&["net", "helper"], args].concat();
        host(hostel.to_str().unwrap(), &all).unwrap()
    };
    helper(&["install", "--group", &user]).ok();
    home.import(SMALL, &small());
    home.run(&["start", SMALL]).ok();
    let network = home.json(&["status"])["network"].clone();
    assert_eq!(network["backend"], "root", "{network:#}");
    let server = home.pids_of("hostel-net");
    let status = fs_err::read_to_string(format!("/proc/{}/status", server[0])).unwrap();
    // cap_net_bind_service and cap_net_admin, and never more.
    for set in ["CapEff", "CapPrm"] {
        let line = status.lines().find(|l| l.starts_with(set)).unwrap();
        assert!(line.ends_with("0000000000001400"), "{line}");
    }
    let _server = serve_in_guest(&home, SMALL, "0.0.0.0", 3400);
    let vm: Ipv4Addr = network["address"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        host_fetches(SocketAddr::from((vm, 3400))).as_deref(),
        Some(SMALL)
    );
    assert!(guest_fetches(
        &home,
        SMALL,
        SocketAddr::from((internet(), servers::HTTP))
    ));
    home.run(&["shutdown"]).ok();
    helper(&["uninstall"]).ok();
    host("umount", &["/usr/local"]).unwrap().ok();
    host("umount", &[&dir("")]).unwrap().ok();
}

/// NET-1, NAT-11: one eth0, one address, one route for all who share; the same addresses with every backend.
fn addresses_are_the_same_everywhere(bench: &Bench) {
    let line =
        "ip -4 addr show dev eth0 | grep inet; ip route show default; cat /sys/class/net/eth0/mtu";
    let shown = bench.home.sh(SMALL, line).ok();
    assert_eq!(shown, bench.home.sh(OTHER, line).ok());
    assert!(
        shown.contains(&format!("{}/20", bench.vm()))
            && shown.contains(&format!("via {}", bench.gateway())),
        "{shown}"
    );
    let status = bench.home.json(&["status"]);
    let mtu = status["network"]["mtu"].to_string();
    assert_eq!(shown.lines().last(), Some(mtu.as_str()));
    let room = bench.home.sh(ROOM, line).ok();
    assert!(
        room.contains(&format!("{}/20", bench.address(ROOM)))
            && room.contains(&format!("via {}", bench.gateway())),
        "{room}"
    );
}

/// This world's host has a global IPv6 address, which is all that the internet sees.
fn ipv6_leads_out(bench: &Bench) {
    let fetch = format!("timeout 10 wget -q -O - http://[{INTERNET_V6}]/peer");
    for distro in [SMALL, ROOM] {
        assert_eq!(bench.home.sh(distro, &fetch).ok(), UPLINK_V6, "{distro}");
    }
}

/// UDP, for a server on all addresses and for one on the loopback alone; also when a datagram is too long for one packet.
fn datagrams_are_relayed(bench: &Bench) {
    let home = &bench.home;
    home.import(DEBIAN_12, &debian("bookworm"));
    for (bound, port) in [("0.0.0.0", bench.port + 3), ("127.0.0.1", bench.port + 4)] {
        let port_text = port.to_string();
        home.run(&["ports", "set", "--udp", &port_text, "same"])
            .ok();
        let _server = home.start(&[
            "-d",
            DEBIAN_12,
            "--",
            &format!(
                "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Proto => \"udp\", LocalAddr => \"{bound}\", LocalPort => {port}) \
                 or die; while (defined $s->recv($m, 65000)) {{ $s->send(uc $m) }}'"
            ),
        ]);
        for length in [5, 4000] {
            let answer = until("a datagram comes back", DEADLINE, || {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
                socket.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
                let question = vec![b'x'; length];
                socket
                    .send_to(&question, (Ipv4Addr::LOCALHOST, port))
                    .ok()?;
                let mut buffer = vec![0; 65000];
                let n = socket.recv(&mut buffer).ok()?;
                Some(buffer[..n].to_vec())
            })
            .unwrap();
            assert_eq!(answer, vec![b'X'; length], "at {bound}");
        }
        home.run(&["ports", "unset", "--udp", &port_text]).ok();
    }
}

fn large_transfers_arrive_whole(bench: &Bench) {
    let want = pattern_sha256(MUCH);
    for distro in [SMALL, ROOM] {
        let line = format!("wget -q -O - http://{INTERNET}/bytes/{MUCH} | sha256sum");
        let got = bench.home.sh(distro, &line).ok();
        assert!(got.starts_with(&want), "into {distro}: {got}");
    }
    // The way out stays open until the answer is there: passt of 2023 forgets the end of a connection that the guest has
    // half closed.
    let line = format!(
        "head -c {MUCH} /dev/urandom >/tmp/much && sha256sum </tmp/much && mkfifo /tmp/way && \
         {{ nc {INTERNET} {DIGEST} </tmp/way >/tmp/answer & }} && exec 3>/tmp/way && \
         {{ echo {MUCH}; cat /tmp/much; }} >&3 && while ! [ -s /tmp/answer ]; do sleep 0.1; done; cat /tmp/answer; exec 3>&-"
    );
    let said = bench.home.sh(SMALL, &line).ok();
    let (sent, received) = said.split_once('\n').expect("two lines");
    let sent = sent.split(' ').next().expect("a sum");
    assert_eq!(received, format!("{MUCH} {sent}"), "out of the VM");
    // Between the host and the VM, by the way that every backend has: the relay.
    let port = bench.port + 1;
    let server = bench.home.start(&[
        "-d",
        OTHER,
        "--",
        &format!(
            "mkdir -p /tmp/big && cp /bin/busybox /tmp/big/b && exec httpd -f -p 0.0.0.0:{port} -h /tmp/big"
        ),
    ]);
    let sum = bench.home.sh(OTHER, "sha256sum /bin/busybox").ok();
    let fetched = until("the relay brings the file", DEADLINE, || {
        use std::io::{Read, Write};
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = std::net::TcpStream::connect(address).ok()?;
        stream.write_all(b"GET /b HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let body = answer.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        Some(servers::sha256(&answer[body..]).unwrap().1)
    })
    .unwrap();
    assert!(sum.starts_with(&fetched), "{sum} is not {fetched}");
    drop(server);
}

fn many_connections_at_once(bench: &Bench) {
    const MANY: u32 = 100;
    let line = format!(
        "for i in $(seq {MANY}); do timeout 60 wget -q -O /tmp/page.$i http://{INTERNET}/ & done; wait; \
         cat /tmp/page.* | grep -o 'this is the internet' | wc -l; rm /tmp/page.*"
    );
    assert_eq!(bench.home.sh(SMALL, &line).ok(), MANY.to_string());
}

/// A network that breaks is mended while the VM goes on.
fn the_process_behind_it_is_killed(bench: &Bench) {
    let program = match bench.backend {
        "root" => "hostel-net",
        // pasta is the same program.
        "rootless" | "passt" => "passt",
        // It is a part of QEMU.
        _ => return,
    };
    let before = bench.home.qemu_pids();
    let pids = bench.home.pids_of(program);
    assert!(!pids.is_empty(), "{program} runs");
    for pid in pids {
        kill(pid, Signal::KILL);
    }
    let http = SocketAddr::from((internet(), servers::HTTP));
    until("the network is mended", DEADLINE, || {
        guest_fetches(&bench.home, SMALL, http).then_some(())
    })
    .unwrap();
    let _server = serve_in_guest(&bench.home, OTHER, "0.0.0.0", bench.port + 2);
    until("the relay is mended", DEADLINE, || {
        host_fetches(SocketAddr::from((Ipv4Addr::LOCALHOST, bench.port + 2)))
    })
    .unwrap();
    assert_eq!(bench.home.qemu_pids(), before, "the VM went on");
}

/// Interfaces, tables and processes go with the VM.
fn nothing_is_left(bench: &Bench) {
    for program in ["hostel-net", "passt"] {
        let left = bench.home.pids_of(program);
        assert!(left.is_empty(), "{program} is left: {left:?}");
    }
    if bench.backend == "root" {
        let links = hostel_tests::run::host("ip", &["-br", "addr"])
            .unwrap()
            .ok();
        let gateway = format!("{}/", bench.gateway());
        assert!(!links.contains(&gateway), "{links}");
    }
}
