//! From the first request to the last trace: several servers at once, killed servers, and others who take things away.

use std::net::Ipv4Addr;

use hostel_bridge::{CallError, Client, Event, Network, RefusalCode, Up};
use rustix::process::{Pid, Signal, kill_process};

use crate::world::*;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// Another network than the usual one.
fn network(second: u8) -> Up {
    Up {
        subnet: Network {
            address: Ipv4Addr::new(172, second, 0, 0),
            bits: 20,
        },
        gateway: Ipv4Addr::new(172, second, 0, 1),
        guest: Ipv4Addr::new(172, second, 0, 2),
        ..wanted()
    }
}

fn kill(client: &Client) {
    kill_process(Pid::from_raw(client.pid() as i32).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn nothing_is_left_when_the_client_goes() {
    let Some(world) = World::new("nothing_is_left_when_the_client_goes") else {
        return;
    };
    assert!(!world.forwards());
    let (client, events) = world.start_host();
    let raised = client.up(wanted()).unwrap();
    assert_eq!(
        [&*raised.bridge, &*raised.tap, &*raised.table],
        ["hostel0", "hostel0-tap", "hostel0"]
    );
    assert!(world.forwards());
    let status = client.status().unwrap();
    assert_eq!(
        (status.bridge.as_deref(), status.tap),
        (Some("hostel0"), true)
    );
    // The VM's program still holds the tap.
    client.close();
    assert!(world.is_clean());
    assert!(!world.forwards());
    drop(raised.descriptor);
    let end = event(&events, |e| matches!(e, Event::Ended(_)));
    assert_eq!(end, Event::Ended("exit code 0".into()));
}

#[test]
fn forwarding_that_was_on_stays_on() {
    let Some(world) = World::new("forwarding_that_was_on_stays_on") else {
        return;
    };
    world.host.sh("sysctl -qw net.ipv4.ip_forward=1").unwrap();
    let (client, _events) = world.start_host();
    client.up(wanted()).unwrap();
    client.close();
    assert!(world.is_clean());
    assert!(world.forwards());
}

#[test]
fn two_servers_have_two_networks_and_the_last_one_stops_forwarding() {
    let Some(world) = World::new("two_servers_have_two_networks_and_the_last_one_stops_forwarding")
    else {
        return;
    };
    let (one, _events) = world.start_host();
    let (other, _more) = world.start_host();
    assert_eq!(one.up(wanted()).unwrap().bridge, "hostel0");
    let collision = other.up(wanted()).unwrap_err();
    assert!(
        matches!(&collision, CallError::Refused(r) if r.code == RefusalCode::Collision),
        "{collision}"
    );
    assert_eq!(other.up(network(20)).unwrap().bridge, "hostel1");
    one.close();
    assert!(world.forwards(), "the other one needs it");
    let (again, _again) = world.start_host();
    assert_eq!(again.up(wanted()).unwrap().bridge, "hostel0");
    other.close();
    assert!(world.forwards());
    again.close();
    assert!(!world.forwards());
    assert!(world.is_clean());
}

#[test]
fn servers_that_come_and_go_at_the_same_time_agree() {
    let Some(world) = World::new("life::servers_that_come_and_go_at_the_same_time_agree") else {
        return;
    };
    for _ in 0..3 {
        let clients: Vec<_> = (0..4).map(|_| world.start_host().0).collect();
        let mut names: Vec<String> = std::thread::scope(|scope| {
            let networks = (20..).zip(&clients).map(|(second, client)| {
                scope.spawn(move || client.up(network(second)).unwrap().bridge)
            });
            let threads: Vec<_> = networks.collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        names.sort();
        assert_eq!(names, ["hostel0", "hostel1", "hostel2", "hostel3"]);
        assert!(world.forwards());
        std::thread::scope(|scope| {
            for client in clients {
                scope.spawn(move || client.close());
            }
        });
        assert!(!world.forwards(), "the last one switched it off");
        assert!(world.is_clean());
    }
}

#[test]
fn what_a_killed_server_left_is_cleaned_by_the_next() {
    let Some(world) = World::new("what_a_killed_server_left_is_cleaned_by_the_next") else {
        return;
    };
    let (client, events) = world.start_host();
    let raised = client.up(wanted()).unwrap();
    kill(&client);
    let end = event(&events, |e| matches!(e, Event::Ended(_)));
    assert_eq!(end, Event::Ended("signal 9".into()));
    assert!(matches!(client.status(), Err(CallError::Ended(_))));
    assert!(!world.is_clean(), "nobody was there to clean");

    let (next, _events) = world.start_host();
    let anew = next.up(wanted()).unwrap();
    assert_eq!(anew.bridge, "hostel0");
    let vm = world.vm("life", &anew.bridge);
    talk(&vm, (SERVER, 80), &listen(&world.internet, (SERVER, 80)));
    next.close();
    assert!(!world.forwards(), "the killed one had switched it on");
    assert!(world.is_clean());
    drop((raised, vm));
}

#[test]
fn a_network_of_the_host_is_not_taken() {
    let Some(world) = World::new("a_network_of_the_host_is_not_taken") else {
        return;
    };
    let (client, _events) = world.start_host();
    for (add, remove) in [
        ("route add 172.19.0.0/16 dev up0", "route del 172.19.0.0/16"),
        (
            "route add 172.19.130.7/32 dev up0",
            "route del 172.19.130.7/32",
        ),
        (
            "addr add 172.19.143.1/30 dev up0",
            "addr del 172.19.143.1/30 dev up0",
        ),
        // As a VPN with policy routing keeps its ways.
        (
            "route add 172.19.136.0/24 dev up0 table 51820",
            "route del 172.19.136.0/24 table 51820",
        ),
    ] {
        world.host.sh(&format!("ip {add}")).unwrap();
        let error = client.up(wanted()).unwrap_err();
        let CallError::Refused(refusal) = error else {
            panic!("{add}: {error}");
        };
        assert_eq!(refusal.code, RefusalCode::Collision, "{add}: {refusal}");
        assert!(refusal.message.contains("`up0`"), "{refusal}");
        assert!(world.is_clean(), "{add}");
        world.host.sh(&format!("ip {remove}")).unwrap();
    }
    // The two halves of a VPN for everything, and a way to nothing, are in nobody's way.
    world
        .host
        .sh("ip route add 128.0.0.0/1 via 198.51.100.1; ip route add unreachable 172.16.0.0/12")
        .unwrap();
    client.up(wanted()).unwrap();
}

#[test]
fn interfaces_and_tables_of_others_stay() {
    let Some(world) = World::new("interfaces_and_tables_of_others_stay") else {
        return;
    };
    world
        .host
        .sh("ip link add hostel0 type bridge; ip link set hostel0 alias mine; nft add table inet mine")
        .unwrap();
    let (client, _events) = world.start_host();
    assert_eq!(client.up(wanted()).unwrap().bridge, "hostel1");
    client.close();
    let left = world.host.sh("ip -br link; nft list tables").unwrap();
    assert!(
        left.contains("hostel0") && left.contains("inet mine"),
        "{left}"
    );
    assert!(!left.contains("hostel1"), "{left}");
}

#[test]
fn what_others_take_away_is_put_back() {
    let Some(world) = World::new("what_others_take_away_is_put_back") else {
        return;
    };
    let (client, events) = world.start_host();
    let raised = client.up(wanted()).unwrap();
    let vm = world.vm("life", &raised.bridge);
    let web = listen(&world.internet, (SERVER, 80));
    talk(&vm, (SERVER, 80), &web);
    let rules = world.host.sh("nft list table inet hostel0").unwrap();

    for (attack, what) in [
        ("nft flush ruleset", "the packet filter's table"),
        (
            "nft flush chain inet hostel0 passing",
            "the packet filter's table",
        ),
        (
            "nft add rule inet hostel0 inbound accept",
            "the packet filter's table",
        ),
        ("ip addr flush dev hostel0", "the bridge's settings"),
        ("ip link set hostel0 down", "the bridge's settings"),
        ("ip link set hostel0-tap nomaster", "the tap's settings"),
        ("sysctl -qw net.ipv4.ip_forward=0", "forwarding"),
    ] {
        world.host.sh(attack).unwrap();
        // Some of these are several changes, put back one after the other.
        event(&events, |e| *e == Event::Repaired(what.into()));
        until(attack, || {
            world.host.sh("nft list table inet hostel0").as_ref() == Ok(&rules)
        });
        talk(&vm, (SERVER, 80), &web);
    }

    // The bridge itself: the VM's wire is the test's own to put back, the tap the server's.
    world.host.sh("ip link del hostel0").unwrap();
    event(&events, |e| *e == Event::Repaired("the bridge".into()));
    event(&events, |e| {
        *e == Event::Repaired("the tap's settings".into())
    });
    world.plug("hostel0");
    talk(&vm, (SERVER, 80), &web);
    assert!(client.status().unwrap().repairs >= 9);
}

#[test]
fn a_tap_that_is_taken_away_is_made_again_behind_the_same_descriptor() {
    let Some(world) = World::new("a_tap_that_is_taken_away_is_made_again") else {
        return;
    };
    let (client, events) = world.start_host();
    let raised = client.up(wanted()).unwrap();
    for _ in 0..2 {
        world.host.sh("ip link del hostel0-tap").unwrap();
        event(&events, |e| *e == Event::Repaired("the tap".into()));
        assert!(client.status().unwrap().tap);
        let host = udp(&world.host, (ANY, 0));
        host.send_to(b"who has the address?", (VM, 9)).unwrap();
        // The header that QEMU's card had set, then an Ethernet frame: ARP for the VM.
        until("a question for the VM's address", || {
            let mut frame = [0; 2048];
            match rustix::io::read(&raised.descriptor, &mut frame) {
                Ok(length) => {
                    length >= 54 && frame[24..26] == [8, 6] && frame[50..54] == VM.octets()
                }
                Err(_) => false,
            }
        });
    }
}

#[test]
fn a_lost_tap_is_told_and_another_one_can_be_had() {
    let Some(world) = World::new("a_lost_tap_is_told_and_another_one_can_be_had") else {
        return;
    };
    let (client, events) = world.start_host();
    let raised = client.up(wanted()).unwrap();
    // It is still behind the descriptor, and yet not there: nothing can be put in its place.
    world
        .host
        .sh("ip link set hostel0-tap down && ip link set hostel0-tap name elsewhere")
        .unwrap();
    event(&events, |e| *e == Event::TapLost);
    assert!(!client.status().unwrap().tap);
    let again = client.up(wanted()).unwrap();
    assert!(client.status().unwrap().tap);
    assert_eq!(again.tap, raised.tap);
}

#[test]
fn a_packet_of_the_vms_card_comes_through_the_tap() {
    let Some(world) = World::new("a_packet_of_the_vms_card_comes_through_the_tap") else {
        return;
    };
    let (client, _events) = world.start_host();
    let raised = client.up(wanted()).unwrap();
    let host = udp(&world.host, (ANY, 0));
    host.send_to(b"who has the address?", (VM, 9)).unwrap();
    // Ten bytes of virtio-net's header, then an Ethernet frame: ARP for the VM.
    let mut frame = [0; 2048];
    until("a question for the VM's address", || {
        let mut frame = [0; 2048];
        match rustix::io::read(&raised.descriptor, &mut frame) {
            Ok(length) => length >= 52 && frame[22..24] == [8, 6] && frame[48..52] == VM.octets(),
            Err(_) => false,
        }
    });
    // And one the other way: its answer, from a card that is not there.
    let card = [0x52, 0x54, 0, 0, 0, 1];
    let bridge = [0x02, 0x68, 172, 19, 128, 1];
    let answer = &mut frame[..52];
    answer[10..16].copy_from_slice(&bridge);
    answer[16..22].copy_from_slice(&card);
    answer[22..24].copy_from_slice(&[8, 6]);
    answer[24..32].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    answer[32..38].copy_from_slice(&card);
    answer[38..42].copy_from_slice(&VM.octets());
    answer[42..48].copy_from_slice(&bridge);
    answer[48..52].copy_from_slice(&GATEWAY.octets());
    rustix::io::write(&raised.descriptor, answer).unwrap();
    until("the VM's card among the host's neighbours", || {
        let known = world.host.sh("ip neigh show dev hostel0").unwrap();
        known.contains("172.19.132.144 lladdr 52:54:00:00:00:01")
    });
}
