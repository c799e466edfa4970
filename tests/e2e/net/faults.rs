//! Bad days of the network: somebody else's hands, missing things, and a host that changes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use hostel_tests::{
    home::{Home, kill},
    run::{DEADLINE, host, until},
    world::{INTERNET, UPLINK, servers},
};
use rustix::process::Signal;

use super::{
    Tests, bench,
    probe::{guest_fetches, host_fetches, internet, serve_in_guest},
};
use crate::shared::{DEBIAN_12, SMALL, small};

pub(crate) const TESTS: Tests = &[
    ("a_flushed_table_comes_back", a_flushed_table_comes_back),
    (
        "a_removed_bridge_or_tap_comes_back",
        a_removed_bridge_or_tap_comes_back,
    ),
    (
        "without_tun_the_next_backend_is_taken",
        without_tun_the_next_backend_is_taken,
    ),
    (
        "a_host_that_slept_has_its_network",
        a_host_that_slept_has_its_network,
    ),
];

/// They change what the whole world stands on, or look at all of it.
pub(crate) const ALONE: Tests = &[
    (
        "a_killed_daemon_leaves_no_network",
        a_killed_daemon_leaves_no_network,
    ),
    (
        "the_uplink_goes_away_and_comes_back",
        the_uplink_goes_away_and_comes_back,
    ),
    ("a_dead_resolver_is_told_soon", a_dead_resolver_is_told_soon),
];

fn started(backend: &str) -> Home {
    let home = bench::empty(backend);
    home.import(SMALL, &small());
    home.run(&["start", SMALL]).ok();
    reaches_out(&home);
    home
}

fn reaches_out(home: &Home) {
    let http = SocketAddr::from((internet(), servers::HTTP));
    until("the guest reaches the internet", DEADLINE, || {
        guest_fetches(home, SMALL, http).then_some(())
    })
    .unwrap();
}

fn bridge(home: &Home) -> String {
    home.json(&["status"])["network"]["bridge"]
        .as_str()
        .expect("a bridge")
        .to_owned()
}

fn a_flushed_table_comes_back() {
    let home = started("root");
    let table = bridge(&home);
    host("nft", &["delete", "table", "inet", &table])
        .unwrap()
        .ok();
    until("the table is back", DEADLINE, || {
        host("nft", &["list", "table", "inet", &table])
            .ok()
            .filter(|o| o.status.success())
    })
    .unwrap();
    reaches_out(&home);
}

fn a_removed_bridge_or_tap_comes_back() {
    let home = started("root");
    let qemu = home.qemu_pids();
    let card = || home.sh(SMALL, "cat /sys/class/net/eth0/ifindex").ok();
    let before = card();
    let bridge = bridge(&home);
    for link in [bridge.clone(), format!("{bridge}-tap")] {
        host("ip", &["link", "del", &link]).unwrap().ok();
        reaches_out(&home);
    }
    assert_eq!(home.qemu_pids(), qemu, "the VM went on");
    assert_eq!(card(), before, "its card has not been away");
}

fn a_killed_daemon_leaves_no_network() {
    let home = started("root");
    let name = bridge(&home);
    kill(home.daemon_pid().expect("a daemon"), Signal::KILL);
    let is_gone = |what: &[&str]| host(what[0], &what[1..]).is_ok_and(|o| !o.status.success());
    until("the bridge and the table go", DEADLINE, || {
        let link = is_gone(&["ip", "link", "show", &name]);
        let table = is_gone(&["nft", "list", "table", "inet", &name]);
        (link && table).then_some(())
    })
    .unwrap();
    // Both at once: what is left then is found at the next start.
    home.run(&["start", SMALL]).ok();
    reaches_out(&home);
    let pids = [
        home.pids_of("hostel-net"),
        home.daemon_pid().into_iter().collect(),
    ]
    .concat();
    assert_eq!(pids.len(), 2);
    for pid in pids {
        kill(pid, Signal::KILL);
    }
    until("QEMU goes with its daemon", DEADLINE, || {
        home.qemu_pids().is_empty().then_some(())
    })
    .unwrap();
    home.run(&["start", SMALL]).ok();
    reaches_out(&home);
    assert_eq!(
        bridge(&home),
        name,
        "the leftover was removed and its name used again"
    );
}

fn without_tun_the_next_backend_is_taken() {
    let home = bench::empty("auto").without_tun();
    home.import(SMALL, &small());
    home.run(&["start", SMALL]).ok();
    let status = home.json(&["status"]);
    assert_eq!(status["network"]["backend"], "passt", "{status:#}");
    let verdicts = home.json(&["net", "show"]);
    let rootless = verdicts["backends"]
        .as_array()
        .unwrap()
        .iter()
        .find(|b| b["name"] == "rootless")
        .cloned();
    assert!(
        rootless.unwrap().to_string().contains("/dev/net/tun"),
        "{verdicts:#}"
    );
    reaches_out(&home);
}

/// A host that sleeps stops everything at once and goes on later, as a lid that is closed does.
fn a_host_that_slept_has_its_network() {
    let home = started("root");
    let _server = serve_in_guest(&home, SMALL, "0.0.0.0", 7401);
    let answers = || host_fetches(SocketAddr::from((Ipv4Addr::LOCALHOST, 7401)));
    until("the relay answers", DEADLINE, answers).unwrap();
    let everyone: Vec<u32> = ["hosteld", "hostel-net", "qemu-system-x86"]
        .into_iter()
        .flat_map(|name| home.pids_of(name))
        .collect();
    assert_eq!(everyone.len(), 3);
    for pid in &everyone {
        kill(*pid, Signal::STOP);
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the time asleep is what is tested"
    )]
    std::thread::sleep(Duration::from_secs(20));
    for pid in &everyone {
        kill(*pid, Signal::CONT);
    }
    reaches_out(&home);
    until("the relay answers again", DEADLINE, answers).unwrap();
    assert!(
        everyone.contains(&home.qemu_pids()[0])
            && home.daemon_pid().is_some_and(|d| everyone.contains(&d)),
        "nothing was started anew"
    );
}

/// A cable, another Wi-Fi: the uplink goes and comes back with another address.
fn the_uplink_goes_away_and_comes_back() {
    const OTHER: &str = "203.0.113.2/24";
    let ip = |args: &[&str]| host("ip", args).unwrap().ok();
    let home = started("root");
    let qemu = home.qemu_pids();
    let old = format!("{UPLINK}/24");
    ip(&["link", "set", "up0", "down"]);
    ip(&["addr", "del", &old, "dev", "up0"]);
    let http = SocketAddr::from((internet(), servers::HTTP));
    let cut_off = !guest_fetches(&home, SMALL, http);
    ip(&["addr", "add", OTHER, "dev", "up0"]);
    ip(&["link", "set", "up0", "up"]);
    // Its IPv6 went with it.
    super::follow::NoIpv6::end();
    ip(&["route", "replace", "default", "via", INTERNET]);
    reaches_out(&home);
    let line = format!("wget -q -O - http://{INTERNET}/peer");
    let seen = home.sh(SMALL, &line).ok();
    ip(&["addr", "del", OTHER, "dev", "up0"]);
    ip(&["addr", "add", &old, "dev", "up0"]);
    ip(&["route", "replace", "default", "via", INTERNET]);
    assert!(cut_off, "the uplink was gone");
    assert_eq!(seen, "203.0.113.2");
    reaches_out(&home);
    assert_eq!(home.qemu_pids(), qemu, "the VM went on");
}

/// An error, not a silence.
fn a_dead_resolver_is_told_soon() {
    // The library's resolver tells "try again" from "no such name".
    const ASK: &str = r#"perl -MSocket=getaddrinfo,EAI_AGAIN -e '($e) = getaddrinfo("www.example.test", 80); print $e == EAI_AGAIN ? "again" : "other: $e"'"#;
    let home = crate::shared::home();
    let ask = || home.sh(DEBIAN_12, ASK).ok();
    let before = fs_err::read_to_string("/etc/resolv.conf").unwrap();
    fs_err::write("/etc/resolv.conf", "nameserver 203.0.113.99\n").unwrap();
    let said = until("the resolver says that it cannot", DEADLINE, || {
        Some(ask()).filter(|said| said == "again")
    });
    fs_err::write("/etc/resolv.conf", &before).unwrap();
    said.unwrap();
    until("names resolve again", DEADLINE, || {
        Some(ask()).filter(|said| said == "other:")
    })
    .unwrap();
}
