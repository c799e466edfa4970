//! Who else than the host may come in.

use std::net::{Ipv4Addr, SocketAddr};

use hostel_testkit::DOCKER_RULES;
use hostel_tests::{
    home::Home,
    run::{DEADLINE, Running, host, until},
    world::{INTERNET, UPLINK, servers},
};

use super::{
    Tests,
    probe::{guest_fetches, host_fetches, internet, serve_in_guest, stranger_connects},
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

pub(crate) const ALONE: Tests = &[(
    "what_is_advised_opens_the_way_that_others_block",
    what_is_advised_opens_the_way_that_others_block,
)];

/// What many administrators write.
const OWN: &[u8] = b"table inet own {
    chain through {
        type filter hook forward priority 5; policy accept;
        ct state established,related accept
        reject with icmpx type admin-prohibited
    }
}
";

/// Rules of somebody else in this world; they go with this.
struct Others(&'static [&'static str]);

impl Others {
    fn new(program: &[&str], rules: &[u8], table: &'static [&'static str]) -> Self {
        let mut command = std::process::Command::new(program[0]);
        command.args(&program[1..]);
        let running = Running::start(&mut command, Some(rules.to_vec())).unwrap();
        running.wait(DEADLINE).unwrap().ok();
        Self(table)
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        let _ = host("nft", &[&["delete", "table"], self.0].concat());
    }
}

/// Docker's rules, and an administrator's own: what `hostel` says about them is enough, and is not said any longer then.
fn what_is_advised_opens_the_way_that_others_block() {
    let home = Home::with_kernel().unwrap();
    home.configure("hostel", "network=root");
    home.import(SMALL, &small());
    home.run(&["start", SMALL]).ok();
    let web = SocketAddr::from((internet(), servers::HTTP));
    let advice = || home.json(&["net", "firewall"])["advice"].clone();
    assert!(guest_fetches(&home, SMALL, web));
    assert_eq!(advice(), serde_json::json!([]));
    for (program, rules, table, word) in [
        (
            &["iptables-restore"][..],
            DOCKER_RULES.as_bytes(),
            &["ip", "filter"][..],
            "DOCKER-USER",
        ),
        (&["nft", "-f", "-"], OWN, &["inet", "own"], "own through"),
    ] {
        let others = Others::new(program, rules, table);
        assert!(!guest_fetches(&home, SMALL, web), "{word}");
        let said = advice();
        assert_eq!(said.as_array().map(Vec::len), Some(1), "{said}");
        let said = said[0].as_str().unwrap();
        let (_, commands) = said.rsplit_once(": ").expect("commands");
        assert!(commands.contains(word), "{said}");
        for shown in [
            home.run(&["net", "firewall"]),
            home.run(&["net"]),
            home.run(&["doctor"]),
        ] {
            let text = format!("{}{}", shown.text(), shown.stderr);
            assert!(text.contains(commands), "{text}");
        }
        for command in commands.split("; ") {
            host("sh", &["-c", command]).unwrap().ok();
        }
        assert!(guest_fetches(&home, SMALL, web), "after {commands}");
        assert_eq!(advice(), serde_json::json!([]), "after {commands}");
        drop(others);
    }
}

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
