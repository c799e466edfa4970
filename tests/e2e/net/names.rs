//! Names: the tunnel to the host's resolver, the names of the house, and the other ways to resolve.

use hostel_tests::{
    home::Home,
    run::{DEADLINE, until},
    world::{
        INTERNET, INTERNET_NAME, INTERNET_V6,
        dns::{BIG, BIG_NAME},
    },
};

use super::Tests;
use crate::shared::{DEBIAN_12, SMALL, home, small};

pub(crate) const TESTS: Tests = &[
    (
        "the_tunnel_carries_every_question",
        the_tunnel_carries_every_question,
    ),
    ("names_of_the_house", names_of_the_house),
    ("the_host_file_is_honoured", the_host_file_is_honoured),
    ("without_the_tunnel", without_the_tunnel),
];

/// It changes what the whole world stands on.
pub(crate) const ALONE: Tests = &[(
    "the_resolver_of_the_host_may_change",
    the_resolver_of_the_host_may_change,
)];

/// DNS-1, DNS-2.
fn the_tunnel_carries_every_question() {
    let home = home();
    let conf = home.sh(SMALL, "cat /etc/resolv.conf").ok();
    assert!(conf.contains("nameserver 10.255.255.254"), "{conf}");
    assert!(conf.contains("generateResolvConf"), "DNS-6: {conf}");
    let v4 = home
        .sh(DEBIAN_12, &format!("getent ahostsv4 {INTERNET_NAME}"))
        .ok();
    assert!(v4.starts_with(INTERNET), "{v4}");
    let v6 = home
        .sh(DEBIAN_12, &format!("getent ahostsv6 {INTERNET_NAME}"))
        .ok();
    assert!(v6.starts_with(INTERNET_V6), "{v6}");
    home.sh(DEBIAN_12, "getent hosts nowhere.example.test")
        .fails(2, &[]);
    // An answer that fits into no datagram says so, and comes by TCP.
    let script = r#"
        $name = join("", map { pack("C/a*", $_) } split(/\./, $ARGV[0]));
        $question = pack("n6", 7, 0x100, 1, 0, 0, 0) . $name . pack("Cnn", 0, 16, 1);
        $udp = IO::Socket::INET->new(Proto => "udp", PeerAddr => "10.255.255.254:53") or die;
        $udp->send($question);
        $udp->recv($answer, 65535);
        print length($answer) <= 512 && (unpack("n2", $answer))[1] & 0x200 ? "cut " : "whole ";
        $tcp = IO::Socket::INET->new(PeerAddr => "10.255.255.254:53") or die;
        print $tcp pack("n/a*", $question);
        read($tcp, $length, 2) == 2 or die;
        read($tcp, $answer, unpack("n", $length));
        print $answer =~ tr/x//;
    "#;
    let said = home
        .sh(
            DEBIAN_12,
            &format!("perl -MIO::Socket::INET -e '{script}' {BIG_NAME}"),
        )
        .ok();
    let count = said.strip_prefix("cut ").and_then(|c| c.parse().ok());
    assert!(
        count.is_some_and(|c: usize| c >= BIG),
        "{said}, not {BIG} after a cut one"
    );
}

fn names_of_the_house() {
    let home = home();
    let net = home.json(&["net", "show"]);
    let vm = net["status"]["address"].as_str().unwrap();
    let gateway = net["status"]["gateway"].as_str().unwrap();
    for (name, address) in [
        (format!("{SMALL}.hostel"), vm),
        (format!("{}.hostel", DEBIAN_12.to_uppercase()), vm),
        ("host.hostel".to_owned(), gateway),
    ] {
        let found = home.sh(DEBIAN_12, &format!("getent ahostsv4 {name}")).ok();
        assert!(
            found.starts_with(address),
            "{name} is {found}, not {address}"
        );
    }
    home.sh(DEBIAN_12, "getent hosts nobody.hostel")
        .fails(2, &[]);
}

/// The host's own file counts, and is followed.
fn the_host_file_is_honoured() {
    let home = home();
    let line = "203.0.113.77 only-in-hosts.example.test";
    let before = fs_err::read_to_string("/etc/hosts").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), format!("{before}\n{line}\n")).unwrap();
    // In this world's own mount namespace.
    hostel_tests::run::host(
        "mount",
        &["--bind", file.path().to_str().unwrap(), "/etc/hosts"],
    )
    .unwrap()
    .ok();
    let found = until("the name is found", DEADLINE, || {
        let said = home.sh(DEBIAN_12, "getent ahostsv4 only-in-hosts.example.test");
        said.status.success().then(|| said.text())
    });
    hostel_tests::run::host("umount", &["/etc/hosts"])
        .unwrap()
        .ok();
    assert!(found.unwrap().starts_with("203.0.113.77"));
    let copied = home.sh(DEBIAN_12, "grep -c only-in-hosts /etc/hosts");
    assert_eq!(copied.text(), "0", "names are honoured, not copied");
}

/// A VPN that comes and goes: other servers, other search domains, at once.
fn the_resolver_of_the_host_may_change() {
    let home = home();
    let before = fs_err::read_to_string("/etc/resolv.conf").unwrap();
    let search = || home.sh(SMALL, "cat /etc/resolv.conf").ok();
    fs_err::write("/etc/resolv.conf", format!("{before}search example.test\n")).unwrap();
    until("the search list arrives", DEADLINE, || {
        search().contains("search example.test").then_some(())
    })
    .unwrap();
    let short = INTERNET_NAME.split('.').next().unwrap();
    let found = home.sh(DEBIAN_12, &format!("getent ahostsv4 {short}")).ok();
    assert!(found.starts_with(INTERNET), "{found}");
    // A dead server in front of the good one costs time, not the answer.
    fs_err::write(
        "/etc/resolv.conf",
        format!("nameserver 203.0.113.99\n{before}"),
    )
    .unwrap();
    let found = until("the name is found", DEADLINE, || {
        let said = home.sh(DEBIAN_12, &format!("getent ahostsv4 {INTERNET_NAME}"));
        said.status.success().then(|| said.text())
    });
    fs_err::write("/etc/resolv.conf", &before).unwrap();
    assert!(found.unwrap().starts_with(INTERNET));
    until("the search list goes", DEADLINE, || {
        (!search().contains("search example.test")).then_some(())
    })
    .unwrap();
}

/// DNS-3, DNS-4, and a file that is left alone.
fn without_the_tunnel() {
    for (lines, server) in [
        ("dnsTunneling=false", None),
        ("dnsTunneling=false\ndnsProxy=false", Some(INTERNET)),
    ] {
        let home = Home::with_kernel().unwrap();
        home.configure("wsl2", lines);
        home.import(SMALL, &small());
        let conf = home.sh(SMALL, "cat /etc/resolv.conf").ok();
        let net = home.json(&["net", "show"]);
        let server = server.unwrap_or_else(|| net["status"]["gateway"].as_str().unwrap());
        assert!(
            conf.contains(&format!("nameserver {server}\n")) || conf.ends_with(server),
            "{conf}"
        );
        let page = home
            .sh(SMALL, &format!("wget -q -O - http://{INTERNET_NAME}/"))
            .ok();
        assert_eq!(page, hostel_tests::world::servers::PAGE, "{lines}");
        home.run(&["shutdown"]).ok();
    }
}
