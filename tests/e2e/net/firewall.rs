//! Who else than the host may come in.

use std::net::{Ipv4Addr, SocketAddr};

use hostel_tests::{
    home::Home,
    run::{DEADLINE, until},
    world::{INTERNET, UPLINK},
};

use super::{
    Tests,
    probe::{host_fetches, serve_in_guest, stranger_connects},
};
use crate::shared::{SMALL, small};

pub(crate) const TESTS: Tests = &[
    ("strangers_need_a_rule", strangers_need_a_rule),
    ("rules_are_checked_and_kept", rules_are_checked_and_kept),
    (
        "a_relay_beyond_loopback_is_told_loudly",
        a_relay_beyond_loopback_is_told_loudly,
    ),
];

fn strangers_need_a_rule() {
    let home = Home::with_kernel().unwrap();
    home.import(SMALL, &small());
    let _server = serve_in_guest(&home, SMALL, "0.0.0.0", 3500);
    let _second = serve_in_guest(&home, SMALL, "0.0.0.0", 3501);
    let vm: Ipv4Addr = home.json(&["status"])["network"]["address"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let at = |port| SocketAddr::from((vm, port));
    assert!(host_fetches(at(3500)).is_some());
    assert!(!stranger_connects(at(3500)));
    let rule = format!("allow tcp 3500 from {INTERNET}");
    home.run(&["net", "firewall", "add", &rule]).ok();
    // In force when the command has returned.
    assert!(stranger_connects(at(3500)));
    assert!(!stranger_connects(at(3501)));
    home.run(&["net", "firewall", "rm", "1"]).ok();
    assert!(!stranger_connects(at(3500)));
    home.run(&[
        "net",
        "firewall",
        "add",
        "deny",
        "tcp",
        "3500",
        "from",
        "203.0.113.0/24",
    ])
    .ok();
    home.run(&["net", "firewall", "add", "allow any"]).ok();
    assert!(
        !stranger_connects(at(3500)),
        "the first rule that matches decides"
    );
    assert!(stranger_connects(at(3501)));
    // What the guest asked for still gets its answers.
    home.sh(SMALL, &format!("wget -q -O - http://{INTERNET}/"))
        .ok();
}

fn rules_are_checked_and_kept() {
    let home = Home::with_kernel().unwrap();
    for (bad, word) in [
        ("allow tcp 70000", "70000"),
        ("permit tcp 80", "permit"),
        ("allow icmp 80", "icmp"),
        ("allow tcp 90-80", "90-80"),
        ("allow tcp 80 from 300.1.1.1", "300.1.1.1"),
    ] {
        let said = home.run(&["net", "firewall", "add", bad]);
        assert!([2, 125].contains(&said.code()), "{bad}: {}", said.code());
        assert!(said.stderr.contains(word), "{}", said.stderr);
    }
    home.run(&[
        "net",
        "firewall",
        "add",
        "allow tcp 80-90 from 192.168.0.0/16",
    ])
    .ok();
    home.run(&["net", "firewall", "add", "deny any"]).ok();
    home.close().unwrap();
    let kept = home.json(&["net", "firewall"]);
    assert_eq!(kept["rules"].as_array().map(Vec::len), Some(2), "{kept}");
    assert_eq!(kept["rules"][0]["source"], "192.168.0.0/16", "{kept}");
    home.run(&["net", "firewall", "rm", "3"]).fails(125, &["3"]);
    home.run(&["net", "firewall", "clear"]).ok();
    assert_eq!(
        home.json(&["net", "firewall"])["rules"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
}

fn a_relay_beyond_loopback_is_told_loudly() {
    let home = Home::with_kernel().unwrap();
    home.configure("hostel", &format!("relayListen=127.0.0.1,{UPLINK}"));
    home.import(SMALL, &small());
    let _server = serve_in_guest(&home, SMALL, "0.0.0.0", 3300);
    let outside: SocketAddr = format!("{UPLINK}:3300").parse().unwrap();
    until("the relay listens", DEADLINE, || {
        host_fetches(SocketAddr::from((Ipv4Addr::LOCALHOST, 3300)))
    })
    .unwrap();
    let doctor = home.run(&["doctor"]);
    let told = format!("{}{}", doctor.text(), doctor.stderr);
    assert!(told.contains(UPLINK), "{told}");
    // The firewall still decides.
    let script =
        format!("exec 3<>/dev/tcp/{UPLINK}/3300; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
    let fetch = || {
        let mut command = hostel_tests::world::internet::command("timeout");
        command.args(["3", "bash", "-c", &script]);
        hostel_tests::run::Running::start(&mut command, None)
            .and_then(|r| r.wait(DEADLINE))
            .unwrap()
            .text()
    };
    assert!(!fetch().contains(SMALL));
    home.run(&[
        "net",
        "firewall",
        "add",
        &format!("allow tcp 3300 from {INTERNET}"),
    ])
    .ok();
    assert!(fetch().contains(SMALL), "at {outside}");
}
