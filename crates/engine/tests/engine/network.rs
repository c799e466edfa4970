//! The network of a VM against an agent and a backend in this process: ordinary, dying and hostile ones.
mod following;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::Ordering,
};

use crate::fake::{
    House, SOON, backend, command, eventually, house, register,
    wires::{Wires, listener},
};
use hostel_engine::{Timeouts, network::NetworkSettings, state::NetworkKind};
use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

/// A house whose VM runs with two distributions; the first one is started.
async fn running() -> (House, Vec<String>) {
    running_with(|_| {}).await
}

async fn running_with(prepare: impl FnOnce(&House)) -> (House, Vec<String>) {
    let house = house(Timeouts {
        instance_idle: None,
        vm_idle: None,
        ..Timeouts::default()
    });
    let registry = house.engine.registry();
    let ids = vec![register(registry, "deb", 1), register(registry, "alp", 2)];
    prepare(&house);
    start(&house, "deb").await;
    (house, ids)
}

async fn start(house: &House, name: &str) {
    let (sink, mut events) = hostel_engine::TaskSink::channel();
    let draining = tokio::spawn(async move { while events.recv().await.is_some() {} });
    house.engine.start(name, &sink).await.unwrap();
    drop(sink);
    draining.await.unwrap();
}

fn wires(house: &House) -> &Wires {
    &house.world.wires
}

/// A port of this host that is free now, for IPv4 and IPv6.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn port(house: &House, number: u16) -> Option<v1::Port> {
    let all = house.engine.ports();
    all.into_iter().find(|p| p.guest_port == u32::from(number))
}

async fn forwarded(house: &House, number: u16) -> SocketAddr {
    eventually("the port on the host", || {
        port(house, number).is_some_and(|p| p.state == "forwarded")
    })
    .await;
    port(house, number).unwrap().host_addresses[0]
        .parse()
        .unwrap()
}

/// REL-2, REL-6: what listens inside is reached at the host's loopback, through the agent where the host has no route.
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_appears_on_the_host_and_goes() {
    let (house, ids) = running().await;
    let number = free_port();
    wires(&house).listens(&ids[0], "127.0.0.1", number).await;
    let address = forwarded(&house, number).await;
    assert!(address.ip().is_loopback());
    let entry = port(&house, number).unwrap();
    assert_eq!(
        (entry.distro.as_str(), entry.process.as_str(), entry.pid),
        ("deb", "server", 42)
    );
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    stream.write_all(b"hello\n").await.unwrap();
    let mut lines = String::new();
    stream.read_line(&mut lines).await.unwrap();
    stream.read_line(&mut lines).await.unwrap();
    assert_eq!(lines, format!("[]127.0.0.1:{number}\nhello\n"));
    drop(stream);
    wires(&house)
        .ports_change(v1::PortsChanged {
            removed: vec![listener(&ids[0], "127.0.0.1", number)],
            ..v1::PortsChanged::default()
        })
        .await;
    eventually("its end", || port(&house, number).is_none()).await;
    eventually("a refusal", || {
        std::net::TcpStream::connect(address).is_err()
    })
    .await;
    house.engine.close(false).await;
}

/// A distribution that somebody is connected to is in use, also when nothing else runs in it.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_connection_keeps_a_distribution() {
    let (house, ids) = running().await;
    // Not kept by `start`.
    house.engine.stop("deb", None).await.unwrap();
    let mut timeouts = house.engine.timeouts();
    timeouts.instance_idle = Some(std::time::Duration::from_millis(700));
    let mut events = house.engine.exec(command("deb", "missing")).await.unwrap();
    while events.recv().await.is_some() {}
    let number = free_port();
    wires(&house).listens(&ids[0], "0.0.0.0", number).await;
    let address = forwarded(&house, number).await;
    let stream = TcpStream::connect(address).await.unwrap();
    eventually("a connection", || {
        port(&house, number).is_some_and(|p| p.connections == 1)
    })
    .await;
    house.engine.set_timeouts(timeouts);
    let state = |house: &House| house.engine.list(false)[0].state.clone();
    let begun = std::time::Instant::now();
    eventually("twice the idle time", || {
        assert_eq!(state(&house), "running");
        begun.elapsed() > std::time::Duration::from_millis(1600)
    })
    .await;
    drop(stream);
    eventually("its idle end", || state(&house) == "stopped").await;
    house.engine.close(false).await;
}

/// A restarted agent tells everything anew; what it does not tell again is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_ports_that_ends_is_asked_for_again() {
    let (house, ids) = running().await;
    let (first, second) = (free_port(), free_port());
    wires(&house).listens(&ids[0], "0.0.0.0", first).await;
    forwarded(&house, first).await;
    wires(&house).ports_end();
    let mut watches = wires(&house).watches.subscribe();
    tokio::time::timeout(SOON, watches.wait_for(|n| *n > 1))
        .await
        .expect("ports are asked for again")
        .unwrap();
    wires(&house).listens(&ids[0], "0.0.0.0", second).await;
    forwarded(&house, second).await;
    assert!(port(&house, first).is_none());
    house.engine.close(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_guest_opens_no_ports_that_are_not_its_own() {
    let (house, ids) = running().await;
    let number = free_port();
    let stranger = hostel_model::DistroId::new_random().to_string();
    let mut lies = vec![
        listener(&stranger, "0.0.0.0", number),
        // Registered, but not running.
        listener(&ids[1], "0.0.0.0", number),
        listener(&ids[0], "0.0.0.0\n", number),
        listener("../../etc", "0.0.0.0", number),
    ];
    lies.push(v1::Listener {
        room: ids[0].clone(),
        ..listener(&ids[0], "0.0.0.0", number)
    });
    lies.push(v1::Listener {
        port: 1 << 20,
        ..listener(&ids[0], "0.0.0.0", 0)
    });
    lies.push(v1::Listener {
        protocol: "udp".to_owned(),
        ..listener(&ids[0], "0.0.0.0", number)
    });
    wires(&house)
        .ports_change(v1::PortsChanged {
            added: lies,
            ..v1::PortsChanged::default()
        })
        .await;
    // The next message is behind that one.
    let honest = free_port();
    wires(&house).listens(&ids[0], "0.0.0.0", honest).await;
    forwarded(&house, honest).await;
    assert_eq!(house.engine.ports().len(), 1);
    // Far more than are taken: the stream is closed, and nothing of it is on the host.
    wires(&house)
        .ports_change(v1::PortsChanged {
            added: vec![listener(&ids[0], "127.0.0.1", 1); 20_000],
            ..v1::PortsChanged::default()
        })
        .await;
    eventually("nothing", || house.engine.ports().is_empty()).await;
    house.engine.close(false).await;
}

/// DNS-1: `host.hostel` and the names of distributions, over the channel.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_house_are_answered_over_the_channel() {
    let (house, _) = running().await;
    for (number, name, want) in [
        (1, "deb", Some([172, 19, 132, 144])),
        (2, "host", Some([172, 19, 128, 1])),
        (3, "nobody", None),
    ] {
        let answer = wires(&house).ask(question(number, name)).await;
        let found = answer
            .message
            .windows(4)
            .last()
            .filter(|_| code(&answer) == 0);
        assert_eq!(
            found.map(|w| [w[0], w[1], w[2], w[3]]),
            want,
            "{name}: {:?}",
            answer.message
        );
    }
    // Renamed: the new name is there, the old one is not.
    house.engine.rename("deb", "trixie").await.unwrap();
    let mut number = 10;
    loop {
        number += 1;
        let answer = wires(&house).ask(question(number, "trixie")).await;
        if code(&answer) == 0 {
            break;
        }
        assert!(number < 10_000, "the new name does not come");
    }
    let answer = wires(&house).ask(question(20_000, "deb")).await;
    assert_eq!(code(&answer), 3);
    house.engine.close(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_instead_of_questions_is_answered_with_nothing() {
    let (house, _) = running().await;
    let nonsense = |number: u64, message: Vec<u8>| v1::DnsQuery {
        number,
        message: message.into(),
        tcp: true,
    };
    let mut all: Vec<v1::DnsQuery> = (0..1000).map(|n| nonsense(n, vec![0xff; 3])).collect();
    all.push(nonsense(5000, vec![0; 60_000]));
    wires(&house).ask_all(all).await;
    eventually("an answer to each", || wires(&house).answered() == 1001).await;
    let fine = wires(&house).ask(question(9000, "deb")).await;
    assert_eq!(code(&fine), 0);
    house.engine.close(false).await;
}

/// Whatever ends the VM, nothing of its network stays.
#[tokio::test(flavor = "multi_thread")]
async fn the_network_ends_with_the_vm() {
    let (house, ids) = running().await;
    let number = free_port();
    wires(&house).listens(&ids[0], "0.0.0.0", number).await;
    let address = forwarded(&house, number).await;
    house.world.crash("lost power");
    eventually("the end", || house.engine.vm_status().state == "crashed").await;
    assert_eq!(house.world.net.closed.load(Ordering::SeqCst), 1);
    assert!(TcpStream::connect(address).await.is_err());
    assert!(house.engine.ports().is_empty());
    start(&house, "deb").await;
    house.engine.shutdown(false).await.unwrap();
    assert_eq!(house.world.net.closed.load(Ordering::SeqCst), 2);
    house.engine.close(false).await;
}

/// ERR-4: without a network the VM runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_without_a_network_runs() {
    let (house, _) = running_with(|h| h.world.net.none.store(true, Ordering::SeqCst)).await;
    assert_eq!(wires(&house).configured(1).await.network, None);
    assert_eq!(house.engine.network_status().await.mode, "none");
    assert!(house.engine.network().await.is_ok());
    assert!(!house.engine.network_checks().await.is_empty());
    house.engine.close(false).await;
}

fn manage(name: &str, network: &str, address: &str) -> v1::ManageRequest {
    v1::ManageRequest {
        name: name.to_owned(),
        network: network.to_owned(),
        address: address.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_has_a_stable_address_that_is_nobody_elses() {
    let (house, ids) = running().await;
    let engine = &house.engine;
    let reply = engine.manage(manage("alp", "own", "")).await.unwrap();
    let address: Ipv4Addr = reply.address.parse().unwrap();
    assert!(backend::record().subnet.contains(address));
    assert!(!reply.restart_needed, "it does not run");
    start(&house, "alp").await;
    let started = wires(&house).starts.lock().unwrap().last().unwrap().clone();
    let room = started.room.unwrap();
    assert_eq!(
        (room.address.as_str(), room.isolated),
        (reply.address.as_str(), false)
    );
    // Its ports are at 127.x on the host, whatever the others listen on.
    let number = free_port();
    let mut mine = listener(&ids[1], "0.0.0.0", number);
    mine.room.clone_from(&ids[1]);
    wires(&house)
        .ports_change(v1::PortsChanged {
            added: vec![mine, listener(&ids[0], "0.0.0.0", number)],
            ..v1::PortsChanged::default()
        })
        .await;
    let [_, b, c, d] = address.octets();
    let local = format!("127.{b}.{c}.{d}:{number}");
    eventually("the room's port", || {
        engine
            .ports()
            .iter()
            .any(|p| p.distro == "alp" && p.network == "own" && p.host_addresses.contains(&local))
    })
    .await;
    let mut stream = BufReader::new(TcpStream::connect(&local).await.unwrap());
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert_eq!(line, format!("[{}]127.0.0.1:{number}\n", ids[1]));
    // While it runs it keeps what it has.
    let reply = engine.manage(manage("alp", "isolated", "")).await.unwrap();
    assert!(reply.restart_needed);
    assert_eq!(reply.address, address.to_string());
    let seen = engine.inspect("alp").await.unwrap();
    assert_eq!(
        (seen.network.as_str(), seen.address),
        ("own", reply.address)
    );
    engine.stop("alp", None).await.unwrap();
    start(&house, "alp").await;
    let again = wires(&house).starts.lock().unwrap().last().unwrap().clone();
    let again = again.room.unwrap();
    assert!(again.isolated);
    assert_eq!(again.address, address.to_string());
    // Back, and its address is remembered.
    engine.manage(manage("alp", "shared", "")).await.unwrap();
    engine.stop("alp", None).await.unwrap();
    start(&house, "alp").await;
    let shared = wires(&house).starts.lock().unwrap().last().unwrap().clone();
    assert_eq!(shared.room, None);
    let reply = engine.manage(manage("alp", "own", "")).await.unwrap();
    assert_eq!(reply.address, address.to_string());
    engine.close(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_cannot_be_a_rooms_are_refused() {
    let (house, _) = running().await;
    let engine = &house.engine;
    engine
        .manage(manage("deb", "own", "172.19.133.7"))
        .await
        .unwrap();
    for (network, address, word) in [
        ("own", "172.19.133.7", "172.19.133.7"),
        ("own", "172.19.128.1", "172.19.128.1"),
        ("own", "172.19.132.144", "172.19.132.144"),
        ("own", "172.19.128.2", "172.19.128.2"),
        ("own", "172.19.128.53", "172.19.128.53"),
        ("own", "172.19.128.0", "172.19.128.0"),
        ("own", "172.19.143.255", "172.19.143.255"),
        ("own", "10.0.0.7", "10.0.0.7"),
        ("own", "fd00::1", "fd00::1"),
        ("own", "x", "x"),
        ("shared", "172.19.133.8", "alp"),
        ("own network", "", "own network"),
    ] {
        let failure = engine
            .manage(manage("alp", network, address))
            .await
            .unwrap_err();
        assert_eq!(failure.code, ErrorCode::InvalidArgument, "{address}");
        assert!(failure.message.contains(word), "{failure}");
    }
    let record = engine.registry().resolve("alp").unwrap();
    assert_eq!(record.network.get(), NetworkKind::Shared);
    engine.close(false).await;
}

/// A stored address that does not fit any more is replaced, with a word about it.
#[tokio::test(flavor = "multi_thread")]
async fn a_room_outside_the_network_moves_in() {
    let (house, _) = running().await;
    let registry = house.engine.registry();
    let id = registry.resolve("alp").unwrap().id;
    registry
        .set_network(id, NetworkKind::Own, Some(Ipv4Addr::new(10, 9, 8, 7)))
        .unwrap();
    let (sink, mut events) = hostel_engine::TaskSink::channel();
    let listening = tokio::spawn(async move {
        let mut warnings = Vec::new();
        while let Some(event) = events.recv().await {
            if let Some(v1::task_event::Event::Warning(text)) = event.event {
                warnings.push(text);
            }
        }
        warnings
    });
    house.engine.start("alp", &sink).await.unwrap();
    drop(sink);
    let warnings = listening.await.unwrap();
    let new = registry.get(id).unwrap().address.get().unwrap();
    let told = |w: &String| w.contains("10.9.8.7") && w.contains(&new.to_string());
    assert!(warnings.iter().any(told), "{warnings:?}");
    house.engine.close(false).await;
}

fn rule(action: &str, protocol: &str, port: u32) -> v1::FirewallRule {
    v1::FirewallRule {
        action: action.to_owned(),
        protocol: protocol.to_owned(),
        first_port: port,
        last_port: port,
        ..v1::FirewallRule::default()
    }
}

async fn firewall(
    house: &House,
    add: Vec<v1::FirewallRule>,
    remove: Vec<u32>,
    clear: bool,
) -> Result<v1::FirewallReply, Failure> {
    let request = v1::FirewallRequest { add, remove, clear };
    house.engine.firewall(request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_kept_and_hold_at_once() {
    let (house, _) = running().await;
    let rules = || house.world.net.rules.borrow().clone();
    let shown = firewall(&house, Vec::new(), Vec::new(), false)
        .await
        .unwrap();
    assert!(shown.rules.is_empty() && shown.in_force && rules().is_empty());
    assert_eq!(shown.default_action, "deny");
    assert_eq!(shown.advice, ["add nothing"]);
    let add = vec![rule("allow", "tcp", 22), rule("deny", "any", 0)];
    firewall(&house, add, Vec::new(), false).await.unwrap();
    let shown = firewall(&house, vec![rule("allow", "udp", 53)], vec![1], false)
        .await
        .unwrap();
    let brief: Vec<_> = shown
        .rules
        .iter()
        .map(|r| (r.number, r.protocol.as_str(), r.first_port))
        .collect();
    assert_eq!(brief, [(1, "any", 0), (2, "udp", 53)]);
    let given = rules();
    assert_eq!((given.len(), given[1].len()), (2, 2));
    // Nothing of a bad request holds.
    for bad in [
        firewall(&house, vec![rule("allow", "icmp", 7)], Vec::new(), true).await,
        firewall(&house, Vec::new(), vec![3], false).await,
        firewall(
            &house,
            vec![rule("allow", "tcp", 1); 300],
            Vec::new(),
            false,
        )
        .await,
    ] {
        assert_eq!(bad.unwrap_err().code, ErrorCode::InvalidArgument);
    }
    assert_eq!(rules().len(), 2);
    let kept = house.engine.registry().settings().firewall.get();
    assert_eq!(kept.rules().len(), 2);
    // Opened again, it has them.
    house.world.net.breaks();
    wires(&house).configured(2).await;
    assert_eq!(rules().last().unwrap().len(), 2);
    house.engine.close(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relays_policy_is_kept_and_holds_at_once() {
    let (house, ids) = running().await;
    let engine = &house.engine;
    let number = free_port();
    wires(&house).listens(&ids[0], "0.0.0.0", number).await;
    forwarded(&house, number).await;
    let off = v1::PortRule {
        distro: "deb".to_owned(),
        port: number.into(),
        action: "off".to_owned(),
        ..v1::PortRule::default()
    };
    let ask = |set: Vec<v1::PortRule>, unset: Vec<v1::PortRule>| {
        engine.port_policy(v1::PortPolicyRequest { set, unset })
    };
    let reply = ask(vec![off.clone()], Vec::new()).await.unwrap();
    assert_eq!(reply.rules.len(), 1);
    assert_eq!(
        (
            reply.rules[0].distro.as_str(),
            reply.rules[0].protocol.as_str()
        ),
        ("deb", "tcp")
    );
    assert!(reply.forwarding && reply.listen.contains("127.0.0.1"));
    eventually("the port to go", || {
        port(&house, number).is_some_and(|p| p.state == "off")
    })
    .await;
    let other = free_port();
    let remap = v1::PortRule {
        action: "remap".to_owned(),
        host_port: other.into(),
        ..off.clone()
    };
    ask(vec![remap], Vec::new()).await.unwrap();
    eventually("the other port", || {
        port(&house, number).is_some_and(|p| {
            p.state == "remapped" && p.host_addresses[0].ends_with(&format!(":{other}"))
        })
    })
    .await;
    assert!(ask(Vec::new(), vec![off]).await.unwrap().rules.is_empty());
    forwarded(&house, number).await;
    for bad in [
        v1::PortRule {
            action: "away".to_owned(),
            ..v1::PortRule::default()
        },
        v1::PortRule {
            action: "same".to_owned(),
            host_port: 80,
            port: 80,
            ..v1::PortRule::default()
        },
        v1::PortRule {
            action: "off".to_owned(),
            port: 70_000,
            ..v1::PortRule::default()
        },
    ] {
        let failure = ask(vec![bad], Vec::new()).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::InvalidArgument);
    }
    engine.close(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_appears_for_the_ports_that_were_asked_for() {
    let number = free_port();
    let (house, ids) = running_with(|h| {
        h.world.net.settings.lock().unwrap().udp_ports = vec![number];
    })
    .await;
    let udp = v1::Listener {
        protocol: "udp".to_owned(),
        ..listener(&ids[0], "0.0.0.0", number)
    };
    wires(&house)
        .ports_change(v1::PortsChanged {
            added: vec![udp],
            ..v1::PortsChanged::default()
        })
        .await;
    forwarded(&house, number).await;
    assert_eq!(
        *wires(&house).udp_ports.lock().unwrap(),
        [u32::from(number)]
    );
    house.engine.close(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_is_shown_with_the_vm_off_and_on() {
    let house = house(Timeouts::default());
    register(house.engine.registry(), "deb", 1);
    let off = house.engine.network().await.unwrap();
    let status = off.status.unwrap();
    assert_eq!(status.subnet, "172.19.128.0/20");
    assert_eq!(
        (off.first_host.as_str(), off.last_host.as_str(), off.hosts),
        ("172.19.128.1", "172.19.143.254", 4094)
    );
    assert_eq!(
        (off.r#type.as_str(), off.guests[0].host_name.as_str()),
        ("NAT", "deb.hostel")
    );
    assert!(off.backends[1].chosen && !off.backends[0].chosen);
    start(&house, "deb").await;
    let on = house.engine.network().await.unwrap();
    assert!(on.guests[0].running && on.adapters[0].name == "fake0");
    let status = on.status.unwrap();
    assert_eq!(status.bridge, "fake0");
    assert_eq!(status.reach, ["the guest reaches nobody"]);
    // The file was changed while it runs.
    *house.world.net.settings.lock().unwrap() = NetworkSettings {
        forwarding: false,
        ..NetworkSettings::default()
    };
    let told = house.engine.network().await.unwrap().warnings;
    assert!(told.iter().any(|w| w.contains("next start")), "{told:?}");
    house.engine.close(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_set_for_the_next_start() {
    let (house, _) = running().await;
    let engine = &house.engine;
    let set = |subnet: &str, gateway: &str, address: &str, reset: bool| {
        engine.network_set(v1::NetworkSetRequest {
            subnet: subnet.to_owned(),
            gateway: gateway.to_owned(),
            address: address.to_owned(),
            reset,
        })
    };
    set("", "172.19.128.9", "172.19.140.1", false)
        .await
        .unwrap();
    let kept = engine.registry().settings().nat.unwrap();
    assert_eq!(kept["gateway"], "172.19.128.9");
    // What runs is as it was.
    assert_eq!(engine.network_status().await.gateway, "172.19.128.1");
    for (subnet, gateway, address, reset) in [
        ("8.8.8.0/20", "", "", false),
        ("172.19.128.1/20", "", "", false),
        ("", "10.0.0.1", "", false),
        ("", "", "172.19.128.1", false),
        ("", "here", "", false),
        ("", "", "172.19.140.1", true),
    ] {
        let failure = set(subnet, gateway, address, reset).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::InvalidArgument, "{failure}");
    }
    assert_eq!(engine.registry().settings().nat.unwrap(), kept);
    set("", "", "", true).await.unwrap();
    assert_eq!(engine.registry().settings().nat, None);
    engine.close(false).await;
}

/// `hostNames=hosts`: the host's file has the names while the VM runs, and not longer.
#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_file_has_the_names_while_the_vm_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hosts");
    fs_err::write(&path, "127.0.0.1 localhost\n").unwrap();
    let (house, _) = running_with(|h| {
        h.world
            .net
            .host_places
            .lock()
            .unwrap()
            .hosts
            .clone_from(&path);
        h.world.net.settings.lock().unwrap().host_names = hostel_wslconf::HostNames::Hosts;
    })
    .await;
    let text = || fs_err::read_to_string(&path).unwrap();
    eventually("the names", || text().contains("127.0.0.1\tdeb.hostel\n")).await;
    house.engine.rename("deb", "trixie").await.unwrap();
    eventually("the new name", || {
        text().contains("trixie.hostel") && !text().contains("deb.hostel")
    })
    .await;
    let reply = house.engine.manage(manage("alp", "own", "")).await.unwrap();
    let local = reply.address.replacen("172", "127", 1);
    eventually("the room's", || {
        text().contains(&format!("{local}\talp.hostel\n"))
    })
    .await;
    house.engine.shutdown(false).await.unwrap();
    assert_eq!(text(), "127.0.0.1 localhost\n");
    house.engine.close(false).await;
}

/// A question for the IPv4 address of a name of the house.
fn question(number: u64, name: &str) -> v1::DnsQuery {
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [name, "hostel"] {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    v1::DnsQuery {
        number,
        message: message.into(),
        tcp: false,
    }
}

/// Returns the code of an answer: 0 when the name is there.
fn code(answer: &v1::DnsAnswer) -> u8 {
    answer.message[3] % 16
}
