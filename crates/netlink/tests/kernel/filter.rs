//! Tables: what `nft` shows of them, and what becomes of packets.

use std::os::fd::AsFd as _;
use std::time::Duration;

use hostel_netlink::nft::{
    Chain, Changes, Elements, Hook, Kind, Nft, Policy, Priority, Protocol, Rejection, Rule, Set,
    States, Table,
};
use hostel_netlink::{LinkChange, Prefix, Routing, Veth};
use hostel_testkit::{Need, Space, require};
use rustix::event::{PollFd, PollFlags};

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn space(test: &str) -> Option<Space> {
    for program in ["nft", "ip", "ping"] {
        require(test, Need::Program(program))?;
    }
    Space::new(test)
}

/// Every kind of match and action at least once.
fn everything() -> Table {
    let networks = ["10.0.0.0/8", "192.168.0.0/16"].map(prefix).to_vec();
    Table::inet("t")
        .comment("hostel 12 34")
        .set(Set::new("lan", Elements::Networks4(networks)))
        .set(Set::new(
            "lan6",
            Elements::Networks6(vec![prefix("fd00::/8")]),
        ))
        .set(Set::new(
            "web",
            Elements::Ports(vec![(80, 80), (8000, 8100)]),
        ))
        .set(Set::new(
            "rooms",
            Elements::Interfaces(vec!["room1".into(), "room2".into()]),
        ))
        .chain(
            Chain::base("in", Kind::Filter, Hook::Input, Priority(-5), Policy::Drop)
                .rule(Rule::new().input_is("lo").accept())
                .rule(
                    Rule::new()
                        .input_is_not("room*")
                        .state(States::ANSWERS)
                        .accept(),
                )
                .rule(Rule::new().input_in("rooms").jump("room"))
                .rule(
                    Rule::new()
                        .source4_in("lan")
                        .protocol(Protocol::Tcp)
                        .destination_port_in("web")
                        .accept(),
                )
                .rule(Rule::new().source6_in("lan6").goto("room"))
                .rule(Rule::new().destination_was_changed().accept())
                .rule(
                    Rule::new()
                        .original_destination(prefix("172.19.128.2"))
                        .accept(),
                )
                .rule(Rule::new().protocol(Protocol::Tcp).reject(Rejection::Reset))
                .rule(
                    Rule::new()
                        .protocol(Protocol::Udp)
                        .source_ports(53, 53)
                        .reject(Rejection::PortUnreachable),
                ),
        )
        .chain(
            Chain::regular("room")
                .rule(Rule::new().destination4_in("lan").counter().back())
                .rule(Rule::new().destination6_in("lan6").back())
                .rule(
                    Rule::new()
                        .source(prefix("fd00::/64"))
                        .destination_not(prefix("fd00::1"))
                        .drop(),
                )
                .rule(Rule::new().protocol(Protocol::Icmp).accept())
                .rule(Rule::new().protocol(Protocol::Icmpv6).accept())
                .rule(
                    Rule::new()
                        .destination_is_local()
                        .comment("its \"own\"")
                        .accept(),
                )
                .rule(
                    Rule::new()
                        .destination_is_not_local()
                        .ipv6()
                        .reject(Rejection::Prohibited),
                ),
        )
        .chain(
            Chain::base(
                "through",
                Kind::Filter,
                Hook::Forward,
                Priority::FILTER,
                Policy::Accept,
            )
            .rule(Rule::new().output_is("eth0").clamp_segments())
            .rule(
                Rule::new()
                    .input_is("room1")
                    .output_in("rooms")
                    .source_not(prefix("172.19.133.7"))
                    .drop(),
            )
            .rule(
                Rule::new()
                    .protocol(Protocol::Tcp)
                    .destination_ports(3000, 3010)
                    .accept(),
            ),
        )
        .chain(
            Chain::base(
                "arriving",
                Kind::Nat,
                Hook::Prerouting,
                Priority::DESTINATION_NAT,
                Policy::Accept,
            )
            .rule(
                Rule::new()
                    .destination(prefix("172.19.128.2"))
                    .protocol(Protocol::Tcp)
                    .send_to("127.0.0.1".parse().unwrap(), None),
            )
            .rule(
                Rule::new()
                    .destination(prefix("fd00::2"))
                    .protocol(Protocol::Tcp)
                    .destination_ports(80, 80)
                    .send_to("::1".parse().unwrap(), Some(8080)),
            )
            .rule(
                Rule::new()
                    .protocol(Protocol::Udp)
                    .destination_ports(53, 53)
                    .redirect(5353),
            ),
        )
        .chain(
            Chain::base(
                "leaving",
                Kind::Nat,
                Hook::Postrouting,
                Priority::SOURCE_NAT,
                Policy::Accept,
            )
            .rule(
                Rule::new()
                    .source(prefix("172.19.128.0/20"))
                    .output_is_not("t0")
                    .masquerade(),
            ),
        )
}

#[test]
fn nft_shows_what_was_meant() {
    let Some(space) = space("nft_shows_what_was_meant") else {
        return;
    };
    space.run(|| Nft::connect().unwrap().replace(&everything()).unwrap());
    let shown = space.sh("nft list table inet t").unwrap();
    let shown: Vec<&str> = shown.lines().map(str::trim).collect();
    for line in [
        "comment \"hostel 12 34\"",
        "elements = { 10.0.0.0/8, 192.168.0.0/16 }",
        "elements = { fd00::/8 }",
        "elements = { 80, 8000-8100 }",
        "type filter hook input priority filter - 5; policy drop;",
        "iifname \"lo\" accept",
        "iifname != \"room*\" ct state established,related accept",
        "iifname @rooms jump room",
        "ip saddr @lan tcp dport @web accept",
        "ip6 saddr @lan6 goto room",
        "ct status dnat accept",
        "meta nfproto ipv4 ct original ip daddr 172.19.128.2 accept",
        "meta l4proto tcp reject with tcp reset",
        "udp sport 53 reject",
        "ip daddr @lan counter packets 0 bytes 0 return",
        "ip6 saddr fd00::/64 ip6 daddr != fd00::1 drop",
        "meta l4proto icmp accept",
        "meta l4proto ipv6-icmp accept",
        "fib daddr type local accept comment \"its \"own\"\"",
        "iifname \"room1\" oifname @rooms ip saddr != 172.19.133.7 drop",
        "tcp dport 3000-3010 accept",
        "type nat hook prerouting priority dstnat; policy accept;",
        "ip daddr 172.19.128.2 meta l4proto tcp dnat ip to 127.0.0.1",
        "ip6 daddr fd00::2 tcp dport 80 dnat ip6 to [::1]:8080",
        "udp dport 53 redirect to :5353",
        "type nat hook postrouting priority srcnat; policy accept;",
        "ip saddr 172.19.128.0/20 oifname != \"t0\" masquerade",
    ] {
        assert!(shown.contains(&line), "{line}\n{}", shown.join("\n"));
    }
    // Versions of `nft` say these in different words.
    for (begin, end) in [
        ("fib daddr type != local", "admin-prohibited"),
        (
            "oifname \"eth0\" tcp flags",
            "tcp option maxseg size set rt mtu",
        ),
        ("elements = { \"room1\"", ""),
    ] {
        assert!(
            shown
                .iter()
                .any(|l| l.starts_with(begin) && l.ends_with(end)),
            "{begin}\n{}",
            shown.join("\n")
        );
    }
}

#[test]
fn a_table_is_replaced_whole_or_not_at_all_and_deleted() {
    let Some(space) = space("a_table_is_replaced_whole_or_not_at_all_and_deleted") else {
        return;
    };
    space.sh("nft add table inet other").unwrap();
    space.run(|| {
        let nft = Nft::connect().unwrap();
        nft.replace(&everything()).unwrap();
        let before = nft.fingerprint("t").unwrap().unwrap();
        let bad = everything()
            .chain(Chain::regular("last").rule(Rule::new().jump("there is no such chain")));
        assert!(nft.replace(&bad).unwrap_err().is_missing());
        assert_eq!(nft.fingerprint("t").unwrap().unwrap(), before);
        nft.replace(&everything()).unwrap();
        assert_ne!(nft.fingerprint("t").unwrap().unwrap(), before);
        let table = nft.table("t").unwrap().unwrap();
        assert_eq!(table.comment, "hostel 12 34");
        nft.delete("t").unwrap();
        nft.delete("t").unwrap();
        assert_eq!(nft.fingerprint("t").unwrap(), None);
        let names: Vec<_> = nft.tables().unwrap().into_iter().map(|t| t.name).collect();
        assert_eq!(names, ["other"]);
    });
}

#[test]
fn a_table_of_thousands_of_rules_is_one_transaction() {
    let Some(space) = space("a_table_of_thousands_of_rules_is_one_transaction") else {
        return;
    };
    space.run(|| {
        let rule = |n: u16| {
            let source = Prefix::host(std::net::Ipv4Addr::from(0x0a00_0000 + u32::from(n)));
            let rule = Rule::new().source(source).protocol(Protocol::Tcp);
            rule.destination_ports(n, n + 1).accept()
        };
        let hosts =
            (0..3000u32).map(|n| Prefix::host(std::net::Ipv4Addr::from(0x0b00_0000 + n * 2)));
        let table = Table::inet("big")
            .set(Set::new("hosts", Elements::Networks4(hosts.collect())))
            .chain(
                Chain::base(
                    "in",
                    Kind::Filter,
                    Hook::Input,
                    Priority::FILTER,
                    Policy::Accept,
                )
                .rules((1..3000).map(rule)),
            );
        Nft::connect().unwrap().replace(&table).unwrap();
    });
    let shown = space.sh("nft list table inet big").unwrap();
    assert_eq!(shown.matches(" accept\n").count(), 2999);
    assert!(shown.contains("11.0.23.110"), "the last of the set");
}

#[test]
fn what_others_do_to_a_table_is_noticed() {
    let Some(space) = space("what_others_do_to_a_table_is_noticed") else {
        return;
    };
    let (changes, before, generation) = space.run(|| {
        let nft = Nft::connect().unwrap();
        nft.replace(&everything()).unwrap();
        let changes = Changes::subscribe().unwrap();
        assert!(!changes.seen().unwrap());
        (
            changes,
            nft.fingerprint("t").unwrap(),
            nft.generation().unwrap(),
        )
    });
    let noticed = |changes: &Changes| {
        let mut fds = [PollFd::new(changes.events(), PollFlags::IN)];
        let deadline = Duration::from_secs(20).try_into().unwrap();
        rustix::event::poll(&mut fds, Some(&deadline)).unwrap() == 1 && changes.seen().unwrap()
    };
    space.sh("nft flush chain inet t through").unwrap();
    assert!(noticed(&changes));
    let after = space.run(|| {
        let nft = Nft::connect().unwrap();
        (nft.fingerprint("t").unwrap(), nft.generation().unwrap())
    });
    assert!(after.0.is_some() && after.0 != before && after.1 != generation);
    space.sh("nft flush ruleset").unwrap();
    assert!(noticed(&changes));
    assert_eq!(
        space.run(|| Nft::connect().unwrap().fingerprint("t").unwrap()),
        None
    );
}

#[test]
fn an_owned_table_is_nobody_elses_and_goes_with_its_owner() {
    let Some(space) = space("an_owned_table_is_nobody_elses_and_goes_with_its_owner") else {
        return;
    };
    let owner = space.run(|| {
        let nft = Nft::connect().unwrap();
        nft.replace(&everything()).unwrap();
        nft.replace(&everything().owned()).unwrap();
        nft.replace(&everything().owned()).unwrap();
        nft
    });
    assert!(space.sh("nft delete table inet t").is_err());
    space.sh("nft flush ruleset").unwrap();
    let there = || space.sh("nft list tables").unwrap().contains("inet t");
    assert!(there());
    drop(owner);
    assert!(!there());
}

/// Two namespaces with a wire between them: `here` at 10.1.0.1 and `there` at 10.1.0.2, and fd00:1::1, fd00:1::2.
fn wired(test: &str) -> Option<(Space, Space)> {
    let (here, there) = (space(test)?, Space::new(test)?);
    let netns = there.netns();
    here.run(move || {
        let veth = Veth {
            name: "wire",
            mac: None,
            alias: "",
            peer: "wire",
            peer_mac: None,
            peer_netns: Some(netns.as_fd()),
            mtu: None,
        };
        Routing::connect().unwrap().add_veth(&veth).unwrap();
    });
    for (space, last) in [(&here, 1), (&there, 2)] {
        space.run(move || {
            let routing = Routing::connect().unwrap();
            routing.set_link(1, true).unwrap();
            let index = routing.link("wire").unwrap().unwrap().index;
            let up = LinkChange {
                up: Some(true),
                mtu: Some(1400),
                ..LinkChange::default()
            };
            routing.change_link(index, &up).unwrap();
            for network in ["10.1.0.", "fd00:1::"] {
                let length = if network.contains(':') { 64 } else { 24 };
                routing
                    .add_address(index, prefix(&format!("{network}{last}/{length}")))
                    .unwrap();
            }
        });
    }
    Some((here, there))
}

/// A server that answers each connection with the client's address, and its port.
fn echo(space: &Space, bind: &str) -> u16 {
    let bind = bind.to_owned();
    space.run(move || {
        let listener = std::net::TcpListener::bind((bind.as_str(), 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream
                    .peer_addr()
                    .map_or_else(|e| e.to_string(), |a| a.ip().to_string());
                let _ = std::io::Write::write_all(&mut stream, peer.as_bytes());
            }
        });
        port
    })
}

/// Long enough for a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(30);

fn ask(space: &Space, address: &str, port: u16) -> std::io::Result<String> {
    ask_for(space, address, port, PATIENCE)
}

fn ask_for(space: &Space, address: &str, port: u16, patience: Duration) -> std::io::Result<String> {
    let address = std::net::SocketAddr::new(address.parse().unwrap(), port);
    space.run(move || {
        let mut stream = std::net::TcpStream::connect_timeout(&address, patience)?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text)?;
        Ok(text)
    })
}

fn write(space: &Space, table: Table) {
    space.run(move || Nft::connect().unwrap().replace(&table).unwrap());
}

#[test]
fn packets_are_dropped_refused_and_sent_elsewhere() {
    let Some((here, there)) = wired("packets_are_dropped_refused_and_sent_elsewhere") else {
        return;
    };
    let port = echo(&here, "::");
    let loopback = echo(&here, "127.0.0.1");
    assert_eq!(ask(&there, "10.1.0.1", port).unwrap(), "::ffff:10.1.0.2");
    here.run(|| {
        let routing = Routing::connect().unwrap();
        routing.add_address(1, prefix("10.1.0.77/32")).unwrap();
    });
    here.sh("sysctl -qw net.ipv4.conf.wire.route_localnet=1")
        .unwrap();
    there.sh("ip route add 10.1.0.77 via 10.1.0.1").unwrap();
    let input = |rules: Vec<Rule>| {
        Table::inet("t")
            .chain(
                Chain::base(
                    "in",
                    Kind::Filter,
                    Hook::Input,
                    Priority::FILTER,
                    Policy::Accept,
                )
                .rules(rules),
            )
            .chain(
                Chain::base(
                    "to",
                    Kind::Nat,
                    Hook::Prerouting,
                    Priority::DESTINATION_NAT,
                    Policy::Accept,
                )
                .rule(
                    Rule::new()
                        .input_is("wi*")
                        .destination(prefix("10.1.0.77"))
                        .protocol(Protocol::Tcp)
                        .send_to("127.0.0.1".parse().unwrap(), None),
                )
                .rule(
                    Rule::new()
                        .protocol(Protocol::Tcp)
                        .destination_ports(1, 1)
                        .redirect(port),
                ),
            )
    };
    write(&here, input(vec![]));
    assert_eq!(ask(&there, "10.1.0.77", loopback).unwrap(), "10.1.0.2");
    assert_eq!(ask(&there, "fd00:1::1", 1).unwrap(), "fd00:1::2");

    let tcp = || {
        Rule::new()
            .protocol(Protocol::Tcp)
            .destination_ports(port, port)
    };
    write(
        &here,
        input(vec![
            tcp().source(prefix("10.1.0.0/30")).reject(Rejection::Reset),
        ]),
    );
    let refused = ask(&there, "10.1.0.1", port).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(ask(&there, "fd00:1::1", port).is_ok());

    write(
        &here,
        input(vec![
            tcp().ipv6().drop(),
            tcp().source_not(prefix("10.1.0.2")).drop(),
        ]),
    );
    let dropped = ask_for(&there, "fd00:1::1", port, Duration::from_secs(3)).unwrap_err();
    assert_eq!(dropped.kind(), std::io::ErrorKind::TimedOut);
    assert!(ask(&there, "10.1.0.1", port).is_ok());

    // What came by the change of its destination passes, what knocks at the loopback by itself does not.
    write(
        &here,
        input(vec![
            Rule::new()
                .input_is("wire")
                .destination_was_changed()
                .accept(),
            Rule::new()
                .input_is("wire")
                .protocol(Protocol::Tcp)
                .reject(Rejection::Prohibited),
        ]),
    );
    assert_eq!(ask(&there, "10.1.0.77", loopback).unwrap(), "10.1.0.2");
    assert!(ask(&there, "10.1.0.1", port).is_err());
}

#[test]
fn sources_are_hidden_and_segments_fit() {
    let Some((here, there)) = wired("sources_are_hidden_and_segments_fit") else {
        return;
    };
    // A third one behind `there`, whose address `here` knows no way back to.
    let third = Space::new("sources_are_hidden_and_segments_fit").unwrap();
    let netns = third.netns();
    there.run(move || {
        let routing = Routing::connect().unwrap();
        let veth = Veth {
            name: "behind",
            mac: None,
            alias: "",
            peer: "eth0",
            peer_mac: None,
            peer_netns: Some(netns.as_fd()),
            mtu: None,
        };
        routing.add_veth(&veth).unwrap();
        let index = routing.link("behind").unwrap().unwrap().index;
        routing.set_link(index, true).unwrap();
        routing.add_address(index, prefix("10.2.0.1/24")).unwrap();
    });
    third.sh("ip link set eth0 up; ip addr add 10.2.0.2/24 dev eth0; ip route add default via 10.2.0.1").unwrap();
    there.sh("sysctl -qw net.ipv4.ip_forward=1").unwrap();
    let port = echo(&here, "10.1.0.1");
    // The way back is narrower than both ends think.
    for space in [&here, &third] {
        space
            .sh("ip link set mtu 1500 dev wire || ip link set mtu 1500 dev eth0")
            .unwrap();
    }
    let hide = || {
        let source = Rule::new().source(prefix("10.2.0.0/24"));
        Table::inet("hide").chain(
            Chain::base(
                "leaving",
                Kind::Nat,
                Hook::Postrouting,
                Priority::SOURCE_NAT,
                Policy::Accept,
            )
            .rule(source.output_is("wire").masquerade()),
        )
    };
    let listener = here.run(|| std::net::TcpListener::bind("10.1.0.1:0").unwrap());
    let open = listener.local_addr().unwrap();
    let segments = || {
        // Both ends stay open while they are looked at: the kernel forgets the segments of a connection that waits for its end.
        let _client = third.run(move || std::net::TcpStream::connect(open).unwrap());
        let (_server, seen) = listener.accept().unwrap();
        let line = format!("ss -tinH state established dst {seen}");
        here.sh(&line).unwrap()
    };
    write(&there, hide());
    assert_eq!(ask(&third, "10.1.0.1", port).unwrap(), "10.1.0.2");
    let shown = segments();
    assert!(shown.contains("mss:1448"), "{shown}");
    write(
        &there,
        hide().chain(
            Chain::base(
                "through",
                Kind::Filter,
                Hook::Forward,
                Priority::MANGLE,
                Policy::Accept,
            )
            .rule(Rule::new().output_is("wire").clamp_segments()),
        ),
    );
    let shown = segments();
    assert!(shown.contains("mss:1348"), "{shown}");
}
