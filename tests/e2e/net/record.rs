//! The network's record: chosen once, kept, changed by the user, renewed when it cannot be had. And modes by configuration.

use hostel_tests::{
    home::Home,
    run::{DEADLINE, host, until},
    world::{INTERNET, INTERNET_V6},
};
use serde_json::Value;

use super::Tests;
use crate::shared::{SMALL, small};

pub(crate) const TESTS: Tests = &[
    (
        "a_taken_range_is_renewed_with_one_warning",
        a_taken_range_is_renewed_with_one_warning,
    ),
    ("no_network_at_all", no_network_at_all),
    (
        "modes_that_are_not_ours_fall_back",
        modes_that_are_not_ours_fall_back,
    ),
    (
        "localhost_forwarding_can_be_switched_off",
        localhost_forwarding_can_be_switched_off,
    ),
    (
        "the_hosts_loopback_opens_when_it_is_asked_for",
        the_hosts_loopback_opens_when_it_is_asked_for,
    ),
    (
        "ipv6_goes_out_where_the_host_has_it",
        ipv6_goes_out_where_the_host_has_it,
    ),
];

/// While their VM is off, the next VM of another test would take the range that it had.
pub(crate) const ALONE: Tests = &[
    ("addresses_stay_over_restarts", addresses_stay_over_restarts),
    ("the_user_chooses_addresses", the_user_chooses_addresses),
];

fn home() -> Home {
    let home = Home::with_kernel().unwrap();
    home.import(SMALL, &small());
    home
}

fn network(home: &Home) -> Value {
    let mut net = home.json(&["net", "show"]);
    net["status"].take()
}

/// NAT-4: after a shutdown, after the daemon has left, and as `hostel net` shows it with the VM off.
fn addresses_stay_over_restarts() {
    let home = home();
    home.run(&["start", SMALL]).ok();
    let first = network(&home);
    let shown = home
        .sh(
            SMALL,
            "ip -4 addr show dev eth0; cat /sys/class/net/eth0/address",
        )
        .ok();
    for key in ["address", "mac"] {
        assert!(
            shown.contains(first[key].as_str().unwrap()),
            "{key}: {shown}"
        );
    }
    home.run(&["shutdown"]).ok();
    home.close().unwrap();
    let off = network(&home);
    for key in ["subnet", "gateway", "address", "mac"] {
        assert_eq!(first[key], off[key], "{key}");
    }
    home.run(&["start", SMALL]).ok();
    let again = network(&home);
    for key in ["subnet", "gateway", "address", "mac"] {
        assert_eq!(first[key], again[key], "{key}");
    }
}

/// NAT-6, NAT-7.
fn a_taken_range_is_renewed_with_one_warning() {
    let home = home();
    home.run(&["net", "set", "--subnet", "10.77.16.0/20"]).ok();
    home.run(&["start", SMALL]).ok();
    assert_eq!(network(&home)["subnet"], "10.77.16.0/20");
    home.run(&["shutdown"]).ok();
    // Somebody else's network comes to this world.
    let link = "taken0";
    host("ip", &["link", "add", link, "type", "bridge"])
        .unwrap()
        .ok();
    host("ip", &["addr", "add", "10.77.17.1/24", "dev", link])
        .unwrap()
        .ok();
    host("ip", &["link", "set", link, "up"]).unwrap().ok();
    let said = home.run(&["start", SMALL]);
    let now = network(&home);
    host("ip", &["link", "del", link]).unwrap().ok();
    let warnings: Vec<&str> = said
        .stderr
        .lines()
        .filter(|l| l.contains("10.77.16.0/20"))
        .collect();
    assert_eq!(warnings.len(), 1, "{}", said.stderr);
    let subnet = now["subnet"].as_str().unwrap();
    assert!(warnings[0].contains(subnet), "old and new: {}", said.stderr);
    assert_ne!(subnet, "10.77.16.0/20");
    home.run(&["shutdown"]).ok();
    let said = home.run(&["start", SMALL]);
    assert!(
        !said.stderr.contains("10.77"),
        "it is stored: {}",
        said.stderr
    );
    assert_eq!(network(&home)["subnet"], subnet);
}

fn the_user_chooses_addresses() {
    let home = home();
    for (args, word) in [
        (["--subnet", "8.8.0.0/20"], "8.8.0.0/20"),
        (["--subnet", "203.0.113.0/24"], "203.0.113.0/24"),
        (["--address", "192.168.1.1"], "192.168.1.1"),
        (["--gateway", "172.19.143.255"], "172.19.143.255"),
    ] {
        home.run(&["net", "set", args[0], args[1]])
            .fails(125, &[word]);
    }
    home.run(&[
        "net",
        "set",
        "--subnet",
        "10.78.0.0/20",
        "--gateway",
        "10.78.0.1",
        "--address",
        "10.78.4.5",
    ])
    .ok();
    let shown = home.sh(SMALL, "ip -4 addr show dev eth0; ip route").ok();
    assert!(
        shown.contains("10.78.4.5/20") && shown.contains("via 10.78.0.1"),
        "{shown}"
    );
    let page = home
        .sh(SMALL, &format!("wget -q -O - http://{INTERNET}/peer"))
        .ok();
    assert_eq!(
        page,
        hostel_tests::world::UPLINK,
        "the host's address is all that is seen"
    );
    home.run(&["net", "set", "--reset"]).ok();
    home.run(&["shutdown"]).ok();
    home.run(&["start", SMALL]).ok();
    assert_ne!(network(&home)["subnet"], "10.78.0.0/20");
}

/// Section 6.7.
fn no_network_at_all() {
    let home = home();
    home.configure("wsl2", "networkingMode=none");
    let links = home.sh(SMALL, "ls /sys/class/net").ok();
    assert_eq!(links, "lo");
    assert_eq!(network(&home)["mode"], "none");
}

/// NET-3, NET-5: a warning that says what happens instead, and a network that works.
fn modes_that_are_not_ours_fall_back() {
    let home = home();
    let plain = fs_err::read_to_string(home.config()).unwrap();
    // In place of the mode before.
    let set = |mode: &str| {
        let text = format!("{plain}[wsl2]\nnetworkingMode={mode}\n");
        fs_err::write(home.config(), text).unwrap();
    };
    for mode in ["mirrored", "bridged"] {
        set(mode);
        let said = home.run(&[
            "-d",
            SMALL,
            "--",
            &format!("wget -q -O - http://{INTERNET}/"),
        ]);
        assert!(
            said.stderr.contains(mode) && said.stderr.contains("nat"),
            "{}",
            said.stderr
        );
        said.ok();
        assert_eq!(network(&home)["mode"], "nat");
        home.run(&["shutdown"]).ok();
    }
    set("virtioproxy");
    home.sh(SMALL, &format!("wget -q -O - http://{INTERNET}/"))
        .ok();
    let net = network(&home);
    let backend = net["backend"].as_str().unwrap();
    assert!(["passt", "slirp"].contains(&backend), "{net}");
}

/// REL-12.
fn localhost_forwarding_can_be_switched_off() {
    let home = home();
    home.configure("wsl2", "localhostForwarding=false");
    let _server = super::probe::serve_in_guest(&home, SMALL, "0.0.0.0", 7301);
    let ledger = home.json(&["ports"]);
    let entries = ledger["ports"].as_array().unwrap();
    assert!(
        entries.iter().all(|e| e["state"] != "forwarded"),
        "{ledger}"
    );
    assert!(std::net::TcpStream::connect(("127.0.0.1", 7301)).is_err());
}

/// `hostAddressLoopback`; without it every backend keeps it closed, which `docs/networking.md` and its test say.
fn the_hosts_loopback_opens_when_it_is_asked_for() {
    let port = super::probe::serve_on_host(std::net::Ipv4Addr::LOCALHOST.into());
    for backend in ["root", "rootless", "passt", "slirp"] {
        let home = super::bench::empty(backend);
        home.configure("experimental", "hostAddressLoopback=true");
        home.import(SMALL, &small());
        home.run(&["start", SMALL]).ok();
        let net = network(&home);
        assert_eq!(net["backend"], backend);
        let gateway = net["gateway"].as_str().unwrap();
        let page = home.sh(
            SMALL,
            &format!("timeout 10 wget -q -O - http://{gateway}:{port}/"),
        );
        assert_eq!(page.ok(), hostel_tests::world::servers::PAGE, "{backend}");
        home.run(&["shutdown"]).ok();
    }
}

/// This world's host has a global IPv6 address, so `ipv6=auto` gives the guest private ones and NAT66.
fn ipv6_goes_out_where_the_host_has_it() {
    let home = home();
    home.import("room", &small());
    home.run(&["manage", "room", "--network", "own"]).ok();
    let fetch = format!("timeout 10 wget -q -O - http://[{INTERNET_V6}]/peer");
    for distro in [SMALL, "room"] {
        assert_eq!(home.sh(distro, &fetch).ok(), "2001:db8:2::1", "{distro}");
    }
    home.run(&["shutdown"]).ok();
    home.configure("hostel", "ipv6=off");
    // The kernel gives the address of the link when the card is ready, a moment after the first command may run.
    let shown = until("the card has its own address", DEADLINE, || {
        Some(home.sh(SMALL, "ip -6 addr show dev eth0").ok()).filter(|s| s.contains("fe80::"))
    })
    .unwrap();
    assert!(!shown.contains("scope global"), "{shown}");
    assert!(!home.sh(SMALL, &fetch).status.success());
}
