//! What reaches whom on the host's own network: real packets between namespaces.

use std::net::{Ipv4Addr, SocketAddr};

use crate::world::*;
use hostel_bridge::{CallError, RefusalCode, Up};
use hostel_model::firewall::{Action, Protocol, Rule, Source};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

#[test]
fn the_vm_reaches_the_internet_under_the_hosts_address() {
    let Some(world) = World::new("the_vm_reaches_the_internet_under_the_hosts_address") else {
        return;
    };
    let (client, _events) = world.start_host();
    let raised = client.up(wanted()).unwrap();
    let vm = world.vm("packets", &raised.bridge);

    let web = listen(&world.internet, (SERVER, 80));
    let peer = talk(&vm, (SERVER, 80), &web);
    assert_eq!(
        peer.ip(),
        HOST,
        "the internet knows nothing of the VM's network"
    );

    let server = udp(&world.internet, (SERVER, 4000));
    let guest = udp(&vm, (ANY, 0));
    guest.send_to(b"question", (SERVER, 4000)).unwrap();
    let mut words = [0; 16];
    let (length, peer) = server.recv_from(&mut words).unwrap();
    assert_eq!(
        (&words[..length], peer.ip()),
        (&b"question"[..], HOST.into())
    );
    server.send_to(b"answer", peer).unwrap();
    let (length, _) = guest.recv_from(&mut words).unwrap();
    assert_eq!(&words[..length], b"answer");

    vm.sh(&format!("ping -c 1 -W 10 {SERVER}")).unwrap();
}

/// REL-11: the host at the gateway's address, its loopback closed.
#[test]
fn host_and_vm_reach_each_other_but_for_the_hosts_loopback() {
    let Some(world) = World::new("host_and_vm_reach_each_other_but_for_the_hosts_loopback") else {
        return;
    };
    let (client, _events) = world.start_host();
    let raised = client.up(wanted()).unwrap();
    let vm = world.vm("packets", &raised.bridge);

    let in_vm = listen(&vm, (ANY, 80));
    assert_eq!(talk(&world.host, (VM, 80), &in_vm).ip(), GATEWAY);

    let open = listen(&world.host, (ANY, 8080));
    assert_eq!(talk(&vm, (GATEWAY, 8080), &open).ip(), VM);

    let closed = listen(&world.host, (LOCALHOST, 8081));
    let error = connect(&vm, (GATEWAY, 8081), DEADLINE).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(closed.accept().is_err());
}

#[test]
fn the_hosts_loopback_opens_when_asked_for_and_leaves_the_resolver_alone() {
    let Some(world) =
        World::new("the_hosts_loopback_opens_when_asked_for_and_leaves_the_resolver_alone")
    else {
        return;
    };
    let (client, _events) = world.start_host();
    let up = Up {
        host_loopback: true,
        gateway_dns: true,
        ..wanted()
    };
    let raised = client.up(up).unwrap();
    let vm = world.vm("packets", &raised.bridge);

    let service = listen(&world.host, (LOCALHOST, 8081));
    assert_eq!(talk(&vm, (GATEWAY, 8081), &service).ip(), VM);

    // A resolver of the host's own on 127.0.0.1 must not answer in place of ours.
    let _stub = listen(&world.host, (LOCALHOST, 53));
    let [dns_udp, dns_tcp] = client.listen_dns().unwrap();
    let (dns_udp, dns_tcp) = (
        std::net::UdpSocket::from(dns_udp),
        std::net::TcpListener::from(dns_tcp),
    );
    talk(&vm, (GATEWAY, 53), &dns_tcp);
    dns_udp.set_nonblocking(false).unwrap();
    dns_udp.set_read_timeout(Some(DEADLINE)).unwrap();
    udp(&vm, (ANY, 0)).send_to(b"name", (GATEWAY, 53)).unwrap();
    let (_, peer) = dns_udp.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(peer.ip(), VM);

    // Packets for 127.0.0.1 itself stay out, though the bridge would route them.
    vm.sh(
        "ip route del local 127.0.0.0/8 dev lo table local; ip route del local 127.0.0.1 dev lo table local; \
         ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1/32 via 172.19.128.1; \
         sysctl -qw net.ipv4.conf.eth0.route_localnet=1",
    )
    .unwrap();
    connect(&vm, (LOCALHOST, 8081), NEVER).unwrap_err();
    assert!(service.accept().is_err());
    talk(&vm, (GATEWAY, 8081), &service);
}

fn rule(action: Action, port: u16, source: Option<&str>) -> Rule {
    Rule {
        action,
        protocol: Protocol::Tcp,
        ports: Some((port, port)),
        source: source.map(|s| s.parse::<Source>().unwrap()),
    }
}

#[test]
fn connections_from_outside_need_a_rule() {
    let Some(world) = World::new("connections_from_outside_need_a_rule") else {
        return;
    };
    let (client, _events) = world.start_host();
    let raised = client.up(wanted()).unwrap();
    let vm = world.vm("packets", &raised.bridge);
    world
        .internet
        .sh("ip route add 172.19.128.0/20 via 198.51.100.2")
        .unwrap();
    let (web, other) = (listen(&vm, (ANY, 80)), listen(&vm, (ANY, 81)));
    let enters = |port: u16| connect(&world.internet, (VM, port), NEVER).is_ok();

    assert!(!enters(80), "closed by default");
    client
        .firewall(vec![rule(Action::Allow, 80, Some("198.51.100.0/24"))])
        .unwrap();
    let peer = talk(&world.internet, (VM, 80), &web);
    assert_eq!(
        peer.ip(),
        Ipv4Addr::new(198, 51, 100, 1),
        "seen as who it is"
    );
    assert!(!enters(81));

    // The first rule that matches decides.
    let both = vec![
        rule(Action::Deny, 80, Some("198.51.100.1")),
        rule(Action::Allow, 80, None),
        rule(Action::Allow, 81, None),
    ];
    client.firewall(both).unwrap();
    assert!(!enters(80));
    talk(&world.internet, (VM, 81), &other);

    // What is refused changes nothing.
    let many = vec![rule(Action::Allow, 80, None); 257];
    let refused = client.firewall(many).unwrap_err();
    assert!(
        matches!(&refused, CallError::Refused(r) if r.code == RefusalCode::Invalid),
        "{refused}"
    );
    assert!(!enters(80));
    client.firewall(Vec::new()).unwrap();
    assert!(!enters(81));
    // The host needs no rule.
    talk(&world.host, (VM, 80), &web);
}

#[test]
fn a_vm_that_lies_about_its_address_is_not_heard() {
    let Some(world) = World::new("a_vm_that_lies_about_its_address_is_not_heard") else {
        return;
    };
    let (client, _events) = world.start_host();
    let raised = client.up(wanted()).unwrap();
    let vm = world.vm("packets", &raised.bridge);
    vm.sh("ip addr add 10.9.9.9/32 dev lo; ip addr add 172.19.140.7/32 dev lo")
        .unwrap();
    let host = udp(&world.host, (ANY, 4000));
    let say = |from: [u8; 4], word: &[u8]| {
        let socket = udp(&vm, SocketAddr::from((from, 0)));
        socket.send_to(word, (HOST, 4000)).unwrap();
    };
    say([10, 9, 9, 9], b"a lie");
    // A room's address is the VM's to use.
    say([172, 19, 140, 7], b"true");
    let mut words = [0; 16];
    let (length, peer) = host.recv_from(&mut words).unwrap();
    assert_eq!(&words[..length], b"true", "packets keep their order");
    assert_eq!(peer.ip(), Ipv4Addr::new(172, 19, 140, 7));
}

#[test]
fn nobody_outside_speaks_for_the_vm_or_to_the_gateway() {
    let Some(world) = World::new("nobody_outside_speaks_for_the_vm_or_to_the_gateway") else {
        return;
    };
    let (client, _events) = world.start_host();
    client.up(wanted()).unwrap();
    world
        .internet
        .sh(&format!(
            "ip route add 172.19.128.0/20 via 198.51.100.2; ip addr add {VM}/32 dev lo"
        ))
        .unwrap();
    let (host, gateway) = (
        udp(&world.host, (HOST, 4000)),
        udp(&world.host, (GATEWAY, 4000)),
    );
    udp(&world.internet, (VM, 0))
        .send_to(b"a lie", (HOST, 4000))
        .unwrap();
    let honest = udp(&world.internet, (SERVER, 0));
    honest.send_to(b"to the gateway", (GATEWAY, 4000)).unwrap();
    honest.send_to(b"true", (HOST, 4000)).unwrap();
    let mut words = [0; 16];
    let (length, _) = host.recv_from(&mut words).unwrap();
    assert_eq!(&words[..length], b"true", "packets keep their order");
    gateway.set_nonblocking(true).unwrap();
    assert!(
        gateway.recv_from(&mut words).is_err(),
        "it came before the true one, if at all"
    );
}

#[test]
fn ipv6_is_translated_too() {
    let Some(world) = World::new("ipv6_is_translated_too") else {
        return;
    };
    world
        .host
        .sh("ip addr add 2001:db8:1::2/64 dev up0 nodad; ip route add default via 2001:db8:1::1")
        .unwrap();
    world
        .internet
        .sh("ip addr add 2001:db8:1::1/64 dev eth0 nodad; ip addr add 2001:db8:2::10/128 dev lo nodad")
        .unwrap();
    let setting = |name: &str| {
        let value = world
            .host
            .sh(&format!("cat /proc/sys/net/ipv6/conf/{name} || true"));
        value.unwrap().trim().to_owned()
    };
    let settings = || ["all/forwarding", "up0/accept_ra", "up0/force_forwarding"].map(setting);
    let before = settings();
    let (client, _events) = world.start_host();
    let up = Up {
        ipv6: Some(hostel_bridge::Ipv6 {
            prefix: "fd00:5753:4c00::".parse().unwrap(),
            gateway: "fd00:5753:4c00::1".parse().unwrap(),
        }),
        ..wanted()
    };
    let raised = client.up(up).unwrap();
    let [all, accept_ra, _] = settings();
    assert!(
        all == "0" || accept_ra == "2",
        "the host still hears its router"
    );
    let vm = world.vm("packets", &raised.bridge);
    vm.sh("ip addr add fd00:5753:4c00::9/64 dev eth0 nodad; ip route add default via fd00:5753:4c00::1")
        .unwrap();
    let server: SocketAddr = "[2001:db8:2::10]:80".parse().unwrap();
    let web = listen(&world.internet, server);
    let peer = talk(&vm, server, &web);
    assert_eq!(
        peer.ip(),
        "2001:db8:1::2".parse::<std::net::IpAddr>().unwrap()
    );
    client.close();
    assert_eq!(settings(), before);
}
