//! In a user namespace, as a plain user: the same network, with `pasta` as the way out.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    path::Path,
    sync::mpsc,
    time::Instant,
};

use hostel_bridge::{CallError, Client, Event, Mode, RefusalCode, SpawnError, Up, Uplink};
use hostel_testkit::{Need, Space, require};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, Signal, kill_process},
};

use crate::world::*;

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const PLAIN: As = As::User { tun: Tun::Open };

/// As the rootless backend asks for it.
fn large() -> Up {
    Up {
        mtu: 65520,
        ..wanted()
    }
}

fn world(test: &str) -> Option<World> {
    require(test, Need::UserNs)?;
    require(test, Need::Program("pasta"))?;
    World::new(test)
}

fn mode() -> Mode {
    let places = ["/usr/bin/pasta", "/usr/local/bin/pasta"];
    let pasta = places.iter().map(Path::new).find(|path| path.exists());
    Mode::UserNamespace {
        pasta: pasta.map(Path::to_owned),
    }
}

/// Starts a server and waits until there is a way out.
fn up(world: &World, up: Up) -> (Client, mpsc::Receiver<Event>, OwnedFd) {
    let (client, events) = world.start(&mode(), PLAIN);
    let raised = client.up(up).unwrap();
    event(&events, |e| *e == Event::Uplink(Uplink::Ready));
    (client, events, raised.descriptor)
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let words = text.unwrap_or_default();
    words
        .split_whitespace()
        .map(|w| w.parse().unwrap())
        .collect()
}

fn name(pid: u32) -> String {
    let text = fs_err::read_to_string(format!("/proc/{pid}/comm"));
    text.unwrap_or_default().trim().to_owned()
}

/// The server inside the namespace; the client knows the process outside.
fn inside(client: &Client) -> u32 {
    let all = children(client.pid());
    // The script gave it the name of a copy.
    all.into_iter()
        .find(|pid| !name(*pid).starts_with("pas"))
        .unwrap()
}

/// Every thread of the process outside may have started it.
fn pasta(client: &Client) -> Option<u32> {
    let tasks = fs_err::read_dir(format!("/proc/{}/task", client.pid())).ok()?;
    tasks
        .filter_map(Result::ok)
        .filter_map(|task| fs_err::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter_map(|word| word.parse().ok())
        .find(|pid| name(*pid).starts_with("pas"))
}

fn runs(pid: u32) -> bool {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // One that nobody has waited for yet has ended all the same.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

/// A VM at the bridge inside the namespace.
fn vm(client: &Client) -> Space {
    let vm = Space::new("user").unwrap();
    vm.sh("ip link set lo up").unwrap();
    let netns = vm.netns();
    within(inside(client), || {
        wire_here(&port("hostel0"), &netns, "eth0");
        plug("hostel0");
    });
    address(&vm, "eth0", VM, 20, Some(GATEWAY));
    vm
}

/// Waits as a client does that got a socket which is being connected.
fn finish(socket: OwnedFd) -> std::io::Result<TcpStream> {
    let wait = rustix::time::Timespec {
        tv_sec: DEADLINE.as_secs() as i64,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&wait))?;
    assert_eq!(ready, 1, "the connection neither came about nor failed");
    let stream = TcpStream::from(socket);
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

#[test]
fn a_plain_users_vm_reaches_the_internet_and_nothing_shows_on_the_host() {
    let Some(world) =
        world("user::a_plain_users_vm_reaches_the_internet_and_nothing_shows_on_the_host")
    else {
        return;
    };
    let (client, _events, _tap) = up(&world, large());
    assert!(world.is_clean(), "all is in the namespace");
    assert!(!world.forwards());
    let vm = vm(&client);

    let web = listen(&world.internet, (SERVER, 80));
    assert_eq!(talk(&vm, (SERVER, 80), &web).ip(), HOST);

    let server = udp(&world.internet, (SERVER, 4000));
    let guest = udp(&vm, (ANY, 0));
    guest.send_to(b"question", (SERVER, 4000)).unwrap();
    let mut words = [0; 16];
    let (_, peer) = server.recv_from(&mut words).unwrap();
    server.send_to(b"answer", peer).unwrap();
    let (length, _) = guest.recv_from(&mut words).unwrap();
    assert_eq!((&words[..length], peer.ip()), (&b"answer"[..], HOST.into()));

    vm.sh(&format!("ping -c 1 -W 10 {SERVER}")).unwrap();
}

#[test]
fn sockets_of_the_namespace_reach_the_vm_and_the_resolver() {
    let Some(world) = world("user::sockets_of_the_namespace_reach_the_vm_and_the_resolver") else {
        return;
    };
    let (client, _events, _tap) = up(&world, large());
    let vm = vm(&client);
    let web = listen(&vm, (ANY, 80));
    let mut stream = finish(client.connect_tcp((VM, 80).into()).unwrap()).unwrap();
    assert_eq!(exchange(&mut stream, &web).ip(), GATEWAY);
    let refused = finish(client.connect_tcp((VM, 81).into()).unwrap()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    let echo = udp(&vm, (VM, 4000));
    let socket = UdpSocket::from(client.connect_udp((VM, 4000).into()).unwrap());
    socket.send(b"question").unwrap();
    let mut words = [0; 16];
    let (length, peer) = echo.recv_from(&mut words).unwrap();
    assert_eq!(
        (&words[..length], peer.ip()),
        (&b"question"[..], GATEWAY.into())
    );

    for elsewhere in [(GATEWAY, 80), (LOCALHOST, 80), (SERVER, 80)] {
        match client.connect_tcp(SocketAddr::from(elsewhere)) {
            Err(CallError::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Invalid),
            other => panic!("{elsewhere:?}: {other:?}"),
        }
    }

    let [dns, _tcp] = client.listen_dns().unwrap().map(UdpSocket::from);
    dns.set_nonblocking(false).unwrap();
    dns.set_read_timeout(Some(DEADLINE)).unwrap();
    udp(&vm, (ANY, 0)).send_to(b"name", (GATEWAY, 53)).unwrap();
    assert_eq!(dns.recv_from(&mut words).unwrap().1.ip(), VM);
}

#[test]
fn the_hosts_loopback_is_closed_unless_asked_for() {
    let Some(world) = world("user::the_hosts_loopback_is_closed_unless_asked_for") else {
        return;
    };
    let service = listen(&world.host, (LOCALHOST, 8081));
    let (client, events, tap) = up(&world, large());
    {
        let vm = vm(&client);
        // Neither at the gateway nor at the address that pasta would map.
        connect(&vm, (GATEWAY, 8081), DEADLINE).unwrap_err();
        connect(&vm, (Ipv4Addr::new(192, 0, 0, 1), 8081), NEVER).unwrap_err();
        assert!(service.accept().is_err());
    }
    drop(tap);
    let open = Up {
        host_loopback: true,
        ..large()
    };
    client.up(open).unwrap();
    event(&events, |e| *e == Event::Uplink(Uplink::Ready));
    let vm = vm(&client);
    assert_eq!(talk(&vm, (GATEWAY, 8081), &service).ip(), LOCALHOST);
}

#[test]
fn a_way_out_that_ends_is_told_and_starts_again() {
    let Some(world) = world("user::a_way_out_that_ends_is_told_and_starts_again") else {
        return;
    };
    let (client, events, _tap) = up(&world, large());
    let vm = vm(&client);
    let web = listen(&world.internet, (SERVER, 80));
    talk(&vm, (SERVER, 80), &web);
    kill(pasta(&client).unwrap());
    let told = event(&events, |e| matches!(e, Event::Uplink(_)));
    let ended = Uplink::Ended("pasta ended with signal 9".into());
    assert_eq!(told, Event::Uplink(ended.clone()));
    assert_eq!(client.status().unwrap().uplink, ended);
    client.restart_uplink().unwrap();
    event(&events, |e| *e == Event::Uplink(Uplink::Ready));
    talk(&vm, (SERVER, 80), &web);
}

#[test]
fn a_host_without_a_network_is_told_and_the_rest_works() {
    let Some(world) = world("user::a_host_without_a_network_is_told_and_the_rest_works") else {
        return;
    };
    world.host.sh("ip route del default").unwrap();
    let (client, events) = world.start(&mode(), PLAIN);
    let _raised = client.up(large()).unwrap();
    let told = event(&events, |e| matches!(e, Event::Uplink(_)));
    let Event::Uplink(Uplink::Ended(how)) = told else {
        panic!("{told:?}");
    };
    assert!(how.to_lowercase().contains("interface"), "{how}");
    let vm = vm(&client);
    let web = listen(&vm, (ANY, 80));
    let mut stream = finish(client.connect_tcp((VM, 80).into()).unwrap()).unwrap();
    exchange(&mut stream, &web);
    // The network comes back.
    world
        .host
        .sh("ip route add default via 198.51.100.1")
        .unwrap();
    client.restart_uplink().unwrap();
    event(&events, |e| *e == Event::Uplink(Uplink::Ready));
    talk(&vm, (SERVER, 80), &listen(&world.internet, (SERVER, 80)));
}

#[test]
fn a_way_out_that_never_gets_ready_is_given_up() {
    let Some(world) = world("user::a_way_out_that_never_gets_ready_is_given_up") else {
        return;
    };
    let waits = world.dir.path().join("waits");
    write_script(&waits, "exec sleep 1000");
    let mode = Mode::UserNamespace { pasta: Some(waits) };
    let (client, events) = world.start(&mode, PLAIN);
    let _raised = client.up(large()).unwrap();
    assert_eq!(client.status().unwrap().uplink, Uplink::Starting);
    let told = event_within(&events, DEADLINE * 3, |e| matches!(e, Event::Uplink(_)));
    let Event::Uplink(Uplink::Ended(how)) = told else {
        panic!("{told:?}");
    };
    assert!(how.contains("not ready"), "{how}");
}

#[test]
fn the_hosts_address_may_change() {
    let Some(world) = world("user::the_hosts_address_may_change") else {
        return;
    };
    let (client, _events, _tap) = up(&world, large());
    let vm = vm(&client);
    let web = listen(&world.internet, (SERVER, 80));
    talk(&vm, (SERVER, 80), &web);
    world
        .host
        .sh(
            "ip addr flush dev up0 scope global; ip addr add 198.51.100.77/24 dev up0; \
             ip route add default via 198.51.100.1",
        )
        .unwrap();
    let peer = talk(&vm, (SERVER, 80), &web);
    assert_eq!(peer.ip(), Ipv4Addr::new(198, 51, 100, 77));
}

#[test]
fn without_the_device_for_taps_it_says_so_at_once() {
    let Some(world) = world("user::without_the_device_for_taps_it_says_so_at_once") else {
        return;
    };
    let begun = Instant::now();
    match world.try_start(&mode(), As::User { tun: Tun::Closed }) {
        Err(SpawnError::Refused(refusal)) => {
            assert_eq!(refusal.code, RefusalCode::NoTun);
            assert!(refusal.message.contains("/dev/net/tun"), "{refusal}");
        }
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() < DEADLINE);
}

#[test]
fn nothing_stays_behind_whoever_is_killed() {
    let Some(world) = world("user::nothing_stays_behind_whoever_is_killed") else {
        return;
    };
    type Victim = fn(&Client) -> u32;
    let outside: Victim = Client::pid;
    for (which, victim) in [("outside", outside), ("inside", inside)] {
        let (client, events, _tap) = up(&world, large());
        let all = [client.pid(), inside(&client), pasta(&client).unwrap()];
        kill(victim(&client));
        event(&events, |e| matches!(e, Event::Ended(_)));
        for pid in all {
            until(&format!("{which} killed, {pid} gone"), || !runs(pid));
        }
    }
    // And when the client goes as it should.
    let (client, _events, _tap) = up(&world, large());
    let all = [client.pid(), inside(&client), pasta(&client).unwrap()];
    client.close();
    for pid in all {
        until("all gone", || !runs(pid));
    }
}
