//! A host that changes while the VM runs: a VPN with smaller packets, IPv6 that goes and comes.

use std::net::{Ipv4Addr, SocketAddr};

use hostel_tests::{
    home::Home,
    run::{DEADLINE, host, until},
    world::{INTERNET_V6, UPLINK_V6, servers},
};
use serde_json::Value;

use super::{
    Tests, bench,
    probe::{guest_fetches, internet},
};
use crate::shared::{SMALL, small};

/// They change what the whole world stands on.
pub(crate) const ALONE: Tests = &[
    (
        "packets_are_as_large_as_the_hosts_smallest_interface",
        packets_are_as_large_as_the_hosts_smallest_interface,
    ),
    (
        "ipv6_comes_and_goes_with_the_hosts",
        ipv6_comes_and_goes_with_the_hosts,
    ),
    (
        "ipv6_comes_with_the_hosts_in_every_backend",
        ipv6_comes_with_the_hosts_in_every_backend,
    ),
];

const ROOM: &str = "room";

/// A home with a distribution that shares the network and one with an address of its own, both started.
fn started(backend: &str) -> Home {
    let home = bench::empty(backend);
    for name in [SMALL, ROOM] {
        home.import(name, &small());
    }
    home.run(&["manage", ROOM, "--network", "own"]).ok();
    for name in [SMALL, ROOM] {
        home.run(&["start", name]).ok();
    }
    assert_eq!(network(&home)["backend"], backend);
    home
}

fn network(home: &Home) -> Value {
    home.json(&["status"])["network"].take()
}

fn ip(args: &str) {
    let words: Vec<&str> = args.split(' ').collect();
    host("ip", &words).unwrap().ok();
}

/// A VPN's interface, up and with somebody at its other end; it goes with this.
struct Vpn;

impl Vpn {
    fn new(mtu: u32) -> Self {
        ip(&format!(
            "link add vpn0 mtu {mtu} type veth peer name vpn1 mtu {mtu}"
        ));
        let vpn = Self;
        ip("link set vpn1 up");
        ip("link set vpn0 up");
        vpn
    }
}

impl Drop for Vpn {
    fn drop(&mut self) {
        let _ = host("ip", &["link", "del", "vpn0"]);
    }
}

/// The host's IPv6 is gone until this is dropped.
pub(super) struct NoIpv6;

impl NoIpv6 {
    fn new() -> Self {
        ip(&format!("-6 addr del {UPLINK_V6}/64 dev up0"));
        Self
    }

    /// Gives the uplink its IPv6 address and the way out; it may have them.
    pub(super) fn end() {
        let address = format!("{UPLINK_V6}/64");
        for words in [
            &["addr", "replace", &address, "dev", "up0", "nodad"][..],
            &["route", "replace", "default", "via", INTERNET_V6],
        ] {
            let _ = host("ip", &[&["-6"], words].concat());
        }
    }
}

impl Drop for NoIpv6 {
    fn drop(&mut self) {
        Self::end();
    }
}

/// NAT-12, for the VM and for a room; and what is larger than what the guest sends comes in all the same.
fn packets_are_as_large_as_the_hosts_smallest_interface() {
    for backend in ["root", "slirp"] {
        let home = started(backend);
        let all_have = |mtu: u32| {
            until(&format!("{backend}: packets of {mtu}"), DEADLINE, || {
                let text = mtu.to_string();
                let inside = |distro| home.sh(distro, "cat /sys/class/net/eth0/mtu").ok();
                let all = inside(SMALL) == text && inside(ROOM) == text;
                (all && network(&home)["mtu"] == mtu).then_some(())
            })
            .unwrap();
            let http = SocketAddr::from((internet(), servers::HTTP));
            assert!(guest_fetches(&home, SMALL, http) && guest_fetches(&home, ROOM, http));
        };
        all_have(1500);
        let vpn = Vpn::new(1400);
        all_have(1400);
        if backend == "root" {
            let vm = network(&home)["address"].as_str().unwrap().to_owned();
            host(
                "ping",
                &["-c", "1", "-W", "20", "-M", "do", "-s", "1472", &vm],
            )
            .unwrap()
            .ok();
        }
        ip("link set vpn0 mtu 1300");
        all_have(1300);
        // Nobody is at the other end: not connected.
        ip("link set vpn1 down");
        all_have(1500);
        ip("link set vpn1 up");
        all_have(1300);
        drop(vpn);
        all_have(1500);
        home.run(&["shutdown"]).ok();
    }
}

/// Waits until the VM has IPv6, or has none, and looks who gets out by what.
fn ipv6_is(home: &Home, there: bool) {
    until(&format!("IPv6: {there}"), DEADLINE, || {
        let shown = home.sh(SMALL, "ip -6 addr show dev eth0").text();
        // There is no card at all for a moment.
        let inside = shown.contains("fe80::") && shown.contains("scope global") == there;
        let told = (network(home)["ipv6"] != "") == there;
        (inside && told).then_some(())
    })
    .unwrap();
    let fetch = format!("timeout 10 wget -q -O - http://[{INTERNET_V6}]/peer");
    for distro in [SMALL, ROOM] {
        let reached = || home.sh(distro, &fetch).text() == UPLINK_V6;
        if there {
            until("IPv6 goes out", DEADLINE, || reached().then_some(())).unwrap();
        } else {
            assert!(!reached(), "{distro}");
        }
        let http = SocketAddr::from((internet(), servers::HTTP));
        until("IPv4 goes out", DEADLINE, || {
            guest_fetches(home, distro, http).then_some(())
        })
        .unwrap();
    }
}

/// `ipv6=auto`. The VM is started where there is none, as on a laptop whose Wi-Fi comes later.
fn ipv6_comes_with_the_hosts_in_every_backend() {
    for backend in ["rootless", "passt", "slirp"] {
        let gone = NoIpv6::new();
        let home = started(backend);
        let qemu = home.qemu_pids();
        ipv6_is(&home, false);
        drop(gone);
        ipv6_is(&home, true);
        assert_eq!(home.qemu_pids(), qemu, "the VM went on");
        home.run(&["shutdown"]).ok();
    }
}

/// A connection between VM and host lives through all of it.
fn ipv6_comes_and_goes_with_the_hosts() {
    let gone = NoIpv6::new();
    let home = started("root");
    ipv6_is(&home, false);
    let gateway: Ipv4Addr = network(&home)["gateway"].as_str().unwrap().parse().unwrap();
    let echo = servers::listen((gateway, 0).into(), servers::echo).unwrap();
    let line = format!(
        "{{ echo one; until [ -e /tmp/go ]; do sleep 0.2; done; echo two; }} | nc {} {} >/tmp/said",
        echo.ip(),
        echo.port()
    );
    let talk = home.start(&["-d", SMALL, "--", &line]);
    let says = |text: &str| {
        until("the connection lives", DEADLINE, || {
            (home.sh(SMALL, "cat /tmp/said").text() == text).then_some(())
        })
        .unwrap();
    };
    says("one");
    let qemu = home.qemu_pids();
    drop(gone);
    ipv6_is(&home, true);
    let gone = NoIpv6::new();
    ipv6_is(&home, false);
    drop(gone);
    ipv6_is(&home, true);
    home.sh(SMALL, "touch /tmp/go").ok();
    says("one\ntwo");
    drop(talk);
    assert_eq!(home.qemu_pids(), qemu, "the VM went on");
}
