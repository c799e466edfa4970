//! Rooms without a machine: its network namespace is one of the test, and the host and the internet are behind a pair of
//! interfaces. NAT-*: the addresses; the rest is what rooms promise.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;

use hostel_netlink::nft::{Chain, Hook, Kind, Policy, Priority, Rule, Table};
use hostel_netlink::{Route, Veth};
use hostel_testkit::run::until;
use hostel_testkit::{Need, Space, require};
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::agent::netns::within;
use crate::agent::network::loopback_up;
use crate::agent::ports::Events;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0xab, 0xcd, 1];
const GATEWAY: &str = "172.19.128.1";
const MACHINE: &str = "172.19.132.144";
const RELAY: &str = "172.19.128.2";
const TUNNEL: &str = "10.255.255.254";
const INTERNET: &str = "203.0.113.10";
const WAIT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// The host (which is the internet too), the machine, and its keeper.
struct World {
    host: Space,
    machine: Space,
    keeper: Arc<Keeper>,
    rooms: Arc<Rooms>,
    runtime: Arc<Runtime>,
}

impl World {
    fn new(test: &str) -> Option<Self> {
        for program in ["ip", "nft", "ping", "python3"] {
            require(test, Need::Program(program))?;
        }
        let (host, machine) = (Space::new(test)?, Space::new(test)?);
        host.run(|| loopback_up().unwrap());
        host.sh(&format!(
            "ip addr add {INTERNET}/32 dev lo; ip addr add fd00:9::10/128 dev lo"
        ))
        .unwrap();
        let rooms = Rooms::new();
        let (_, modules) = watch::channel(true);
        let ports = Ports::new(rooms.clone(), Events::None);
        let keeper = Keeper::new(rooms.clone(), ports, modules);
        // The runtime's threads are where the one is that starts them.
        let runtime = machine.run(|| {
            loopback_up().unwrap();
            fs_err::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            let routing = Routing::connect().unwrap();
            routing.add_address(1, prefix("10.255.255.254/32")).unwrap();
            Arc::new(Builder::new_current_thread().enable_all().build().unwrap())
        });
        let world = Self {
            host,
            machine,
            keeper,
            rooms,
            runtime,
        };
        world.plug("tap0");
        Some(world)
    }

    /// Puts a card in, whose other end the host holds.
    fn plug(&self, tap: &'static str) {
        let netns = self.host.netns();
        self.machine.run(move || {
            let veth = Veth {
                name: "card",
                mac: Some(MAC),
                alias: "",
                peer: tap,
                peer_mac: None,
                peer_netns: Some(netns.as_fd()),
                mtu: Some(1500),
            };
            Routing::connect().unwrap().add_veth(&veth).unwrap();
        });
        self.host
            .sh(&format!(
                "ip link set {tap} up; ip addr add {GATEWAY}/20 dev {tap}; \
                 ip addr add fd00:5::1/64 dev {tap} nodad"
            ))
            .unwrap();
    }

    fn configure(&self, change: impl FnOnce(&mut v1::GuestNetwork)) {
        let mut wanted = v1::GuestNetwork {
            address: MACHINE.into(),
            prefix: 20,
            gateway: GATEWAY.into(),
            mac: MAC.map(|b| format!("{b:02x}")).join(":"),
            dns_tunnel: TUNNEL.into(),
            ..v1::GuestNetwork::default()
        };
        change(&mut wanted);
        let (runtime, keeper) = (self.runtime.clone(), self.keeper.clone());
        self.machine.run(move || {
            let network = Network::parse(&wanted).unwrap();
            let card = runtime.block_on(network.apply()).unwrap();
            network.apply6(card).unwrap();
            keeper.settle(network, card).unwrap();
        });
    }

    fn try_open(&self, id: &str, change: impl FnOnce(&mut v1::Room)) -> Result<PathBuf, RoomError> {
        let mut wanted = v1::Room::default();
        change(&mut wanted);
        let (runtime, keeper) = (self.runtime.clone(), self.keeper.clone());
        let id = id.to_owned();
        self.machine
            .run(move || runtime.block_on(keeper.open(id, wanted)))
    }

    /// Opens a room at 172.19.133.`last`.
    fn open(&self, id: &str, last: u8) {
        self.try_open(id, |r| r.address = format!("172.19.133.{last}"))
            .unwrap();
    }

    fn isolated(&self, id: &str, last: u8) {
        self.try_open(id, |r| {
            r.address = format!("172.19.133.{last}");
            r.isolated = true;
        })
        .unwrap();
    }

    fn close(&self, id: &'static str) {
        let keeper = self.keeper.clone();
        self.machine.run(move || keeper.close(id));
    }

    fn room(&self, id: &str) -> Place {
        Place(self.rooms.get(id).unwrap())
    }

    fn host(&self) -> Place {
        Place(Arc::new(self.host.netns()))
    }

    fn machine(&self) -> Place {
        Place(Arc::new(self.machine.netns()))
    }
}

/// A network namespace to do things in.
#[derive(Clone)]
struct Place(Arc<OwnedFd>);

impl Place {
    fn run<T: Send>(&self, what: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        within(&*self.0, what)
    }

    /// Runs a line of shell; whether it succeeded, and what it said.
    fn sh(&self, line: &str) -> (bool, String) {
        let output = self.run(|| std::process::Command::new("sh").args(["-c", line]).output());
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// Serves at an address: everybody is told their own address, and `me`.
    fn serve(&self, address: &str, port: u16, me: &'static str) -> u16 {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let listener = self.run(|| TcpListener::bind(address)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream.peer_addr().map(|a| a.ip());
                let _ = write!(
                    stream,
                    "{me} to {}",
                    peer.map_or_else(|e| e.to_string(), |p| p.to_string())
                );
            }
        });
        port
    }

    fn ask(&self, address: &str, port: u16) -> io::Result<String> {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        self.run(move || {
            let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
            stream.set_read_timeout(Some(WAIT))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }

    /// Asks until there is an answer: a wire that has just been plugged in loses packets.
    #[track_caller]
    fn hears(&self, address: &str, port: u16, wanted: &str) {
        let answer = until(wanted, PATIENCE, || self.ask(address, port).ok());
        assert_eq!(answer.unwrap(), wanted);
    }

    /// Asks once, where [`Place::hears`] has shown or will show that the way is there.
    #[track_caller]
    fn hears_nothing(&self, address: &str, port: u16) {
        let answer = self.ask(address, port);
        assert!(answer.is_err(), "{answer:?}");
    }
}

#[test]
fn rooms_reach_everybody_and_everybody_reaches_them_on_one_port() {
    let Some(world) = World::new("rooms_reach_everybody_and_everybody_reaches_them_on_one_port")
    else {
        return;
    };
    world.configure(|_| {});
    world.open("a", 7);
    world.open("b", 8);
    let (a, b, host, machine) = (
        world.room("a"),
        world.room("b"),
        world.host(),
        world.machine(),
    );
    for (place, me) in [(&a, "a"), (&b, "b"), (&machine, "machine"), (&host, "host")] {
        place.serve("0.0.0.0", 3000, me);
    }
    a.hears("172.19.133.8", 3000, "b to 172.19.133.7");
    a.hears(MACHINE, 3000, "machine to 172.19.133.7");
    a.hears(GATEWAY, 3000, "host to 172.19.133.7");
    a.hears(INTERNET, 3000, "host to 172.19.133.7");
    a.hears("127.0.0.1", 3000, "a to 127.0.0.1");
    host.hears("172.19.133.7", 3000, "a to 172.19.128.1");
    host.hears("172.19.133.8", 3000, "b to 172.19.128.1");
    host.hears(MACHINE, 3000, "machine to 172.19.128.1");
    machine.hears("172.19.133.8", 3000, "b to 172.19.132.144");
    let (_, inside) = a.sh("ip addr show eth0; ip route; cat /proc/sys/net/ipv4/ip_forward");
    for word in [
        "172.19.133.7/20",
        "default via 172.19.128.1 dev eth0",
        "mtu 1500",
        "\n1\n",
    ] {
        assert!(inside.contains(word), "{word}: {inside}");
    }
    // The first packet does not wait for the kernel's usual delay of proxies.
    for (place, to) in [(&a, "172.19.133.8"), (&host, "172.19.133.7"), (&a, GATEWAY)] {
        let (good, said) = place.sh(&format!("ip neigh flush all; ping -c1 -W2 {to}"));
        assert!(good, "{said}");
    }

    world.close("a");
    assert!(world.rooms.get("a").is_none());
    host.hears_nothing("172.19.133.7", 3000);
    host.hears("172.19.133.8", 3000, "b to 172.19.128.1");
    world.close("b");
    world.close("b");
    let left = world
        .machine
        .sh("ip link; ip route; ip neigh show proxy; nft list ruleset")
        .unwrap();
    assert!(!left.contains("room") && !left.contains("hostel"), "{left}");
}

#[test]
fn an_isolated_room_has_the_internet_and_names_and_nobody_else() {
    let Some(world) = World::new("an_isolated_room_has_the_internet_and_names_and_nobody_else")
    else {
        return;
    };
    world.configure(|n| n.relay_address = RELAY.into());
    world.open("a", 7);
    world.isolated("c", 9);
    world.isolated("d", 10);
    let (a, c, d) = (world.room("a"), world.room("c"), world.room("d"));
    let (host, machine) = (world.host(), world.machine());
    for (place, me) in [
        (&a, "a"),
        (&c, "c"),
        (&d, "d"),
        (&machine, "machine"),
        (&host, "host"),
    ] {
        place.serve("0.0.0.0", 3000, me);
    }
    machine.serve(TUNNEL, 53, "names");
    // With every right that root in the room has.
    c.sh("nft flush ruleset; sysctl -w net.ipv4.conf.all.rp_filter=0");
    for closed in [
        "172.19.133.7",
        "172.19.133.10",
        MACHINE,
        GATEWAY,
        RELAY,
        TUNNEL,
    ] {
        c.hears_nothing(closed, 3000);
    }
    c.hears(INTERNET, 3000, "host to 172.19.133.9");
    c.hears(TUNNEL, 53, "names to 172.19.133.9");
    for closed in [&a, &d, &machine] {
        closed.hears_nothing("172.19.133.9", 3000);
    }
    host.hears("172.19.133.9", 3000, "c to 172.19.128.1");
    // What is closed for one is open for the others, and refused rather than left waiting.
    a.hears(MACHINE, 3000, "machine to 172.19.133.7");
    a.hears(TUNNEL, 53, "names to 172.19.133.7");
    machine.hears("172.19.133.7", 3000, "a to 172.19.132.144");
    let refusal = c.ask(MACHINE, 3000).unwrap_err();
    assert_ne!(refusal.kind(), io::ErrorKind::TimedOut, "{refusal}");
    // The host's other addresses look like the internet; once they are known to be the host's they are closed, to isolated
    // rooms alone.
    let uplink = "192.0.2.5";
    let six = "fd00:9::10";
    world
        .host
        .sh(&format!("ip addr add {uplink}/24 dev lo"))
        .unwrap();
    c.hears(uplink, 3000, "host to 172.19.133.9");
    world.configure(|n| {
        n.relay_address = RELAY.into();
        n.host_addresses = vec![format!("{uplink}/32"), "192.0.2.255".into(), six.into()];
    });
    c.hears_nothing(uplink, 3000);
    c.hears(INTERNET, 3000, "host to 172.19.133.9");
    a.hears(uplink, 3000, "host to 172.19.133.7");
    // Datagrams and echoes as well.
    let socket = c.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let sink = machine.run(|| UdpSocket::bind("0.0.0.0:5000")).unwrap();
    sink.set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let _ = socket.send_to(b"knock", (MACHINE, 5000));
    assert!(sink.recv(&mut [0; 8]).is_err());
    assert!(!c.sh(&format!("ping -c1 -W1 {GATEWAY}")).0);
    assert!(c.sh(&format!("ping -c1 -W2 {INTERNET}")).0);
    // Moved out of isolation at its next start.
    world.close("c");
    world.open("c", 9);
    let c = world.room("c");
    c.serve("0.0.0.0", 3000, "c again");
    a.hears("172.19.133.9", 3000, "c again to 172.19.133.7");
}

#[test]
fn a_room_cannot_speak_for_another() {
    let Some(world) = World::new("a_room_cannot_speak_for_another") else {
        return;
    };
    world.configure(|n| n.relay_address = RELAY.into());
    world.open("a", 7);
    let a = world.room("a");
    let sink = world
        .host()
        .run(|| UdpSocket::bind("0.0.0.0:5000"))
        .unwrap();
    sink.set_read_timeout(Some(WAIT)).unwrap();
    let says = |source: &'static str| {
        a.sh(&format!("ip addr add {source}/32 dev lo"));
        let socket = a.run(move || UdpSocket::bind((source, 0))).unwrap();
        socket.send_to(source.as_bytes(), (GATEWAY, 5000)).unwrap();
    };
    let honest = "172.19.133.7";
    // Said again until it is heard: a wire that has just been plugged in loses packets.
    let is_heard = || {
        let heard = until("what is honest", PATIENCE, || {
            says(honest);
            let mut buffer = [0; 16];
            let (length, from) = sink.recv_from(&mut buffer).ok()?;
            Some((buffer[..length].to_vec(), from.ip().to_string()))
        });
        assert_eq!(heard.unwrap(), (honest.into(), honest.to_owned()));
    };
    is_heard();
    for source in ["172.19.133.8", MACHINE, "8.8.8.8"] {
        says(source);
    }
    is_heard();
    let mut buffer = [0; 16];
    while let Ok((_, from)) = sink.recv_from(&mut buffer) {
        assert_eq!(from.ip().to_string(), honest);
    }
    // Not even for the host, to which the relay's address listens.
    let loopback = world.machine().serve("127.0.0.1", 0, "loopback");
    world
        .host()
        .hears(RELAY, loopback, "loopback to 172.19.128.1");
    a.hears_nothing(RELAY, loopback);
    a.hears_nothing(MACHINE, loopback);
}

/// Sends a datagram for 127.0.0.1 over the wire, as no kernel would.
const KNOCK: &str = r#"
import socket, struct, sys
mac = bytes.fromhex(sys.argv[1]); source = socket.inet_aton(sys.argv[2]); port = int(sys.argv[3])
data = b"knock"
udp = struct.pack("!HHHH", 9, port, 8 + len(data), 0) + data
head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, source, socket.inet_aton("127.0.0.1"))
total = sum(struct.unpack("!10H", head)); total = (total >> 16) + (total & 0xffff); total += total >> 16
head = head[:10] + struct.pack("!H", ~total & 0xffff) + head[12:]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); wire.bind(("tap0", 0))
wire.send(mac + bytes(6) + struct.pack("!H", 0x800) + head + udp)
"#;

#[test]
fn the_loopback_is_open_to_the_relay_alone() {
    let Some(world) = World::new("the_loopback_is_open_to_the_relay_alone") else {
        return;
    };
    world.configure(|n| n.relay_address = RELAY.into());
    let (host, machine) = (world.host(), world.machine());
    let loopback = machine.serve("127.0.0.1", 0, "loopback");
    host.hears(RELAY, loopback, "loopback to 172.19.128.1");
    host.hears_nothing(MACHINE, loopback);
    // However many connections there are, none takes a place among those that are tracked.
    let tracked = machine.sh("cat /proc/sys/net/netfilter/nf_conntrack_count || echo 0");
    assert_eq!(tracked.1.lines().last(), Some("0"), "{}", tracked.1);
    // Another machine on the wire is not the gateway.
    host.sh("ip addr add 172.19.128.77/20 dev tap0");
    let line = format!(
        "import socket; socket.create_connection(('{RELAY}', {loopback}), 1, ('172.19.128.77', 0))"
    );
    assert!(!host.sh(&format!("python3 -c \"{line}\"")).0);

    let sink = machine.run(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    sink.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let port = sink.local_addr().unwrap().port();
    let mac: String = MAC.map(|b| format!("{b:02x}")).concat();
    let knock = |source: &str| {
        let line = format!("python3 - {mac} {source} {port} <<'END'\n{KNOCK}\nEND");
        let (good, said) = host.sh(&line);
        assert!(good, "{said}");
        sink.recv(&mut [0; 8]).is_ok()
    };
    assert!(!knock(GATEWAY) && !knock("127.0.0.1"));
    // Without the table it would come in: the test can fail.
    world.keeper.state().filter = None;
    assert!(knock(GATEWAY));
    // When nothing is relayed any more the way is closed.
    world.configure(|_| {});
    assert!(!knock(GATEWAY));
    host.hears_nothing(RELAY, loopback);
}

#[test]
fn nobody_who_shares_the_network_can_flush_the_table() {
    let Some(world) = World::new("nobody_who_shares_the_network_can_flush_the_table") else {
        return;
    };
    world.configure(|n| n.relay_address = RELAY.into());
    world.isolated("c", 9);
    world.machine().serve("0.0.0.0", 3000, "machine");
    world.machine.sh("nft flush ruleset").unwrap();
    assert!(world.machine.sh("nft delete table inet hostel").is_err());
    world.room("c").hears_nothing(MACHINE, 3000);
    world.host().hears(MACHINE, 3000, "machine to 172.19.128.1");
}

/// What Docker does in a distribution that shares the network, and what opens the way again.
#[test]
fn who_shares_the_network_can_close_the_way_of_rooms_but_not_open_isolated_ones() {
    let test = "who_shares_the_network_can_close_the_way_of_rooms_but_not_open_isolated_ones";
    let Some(world) = World::new(test) else {
        return;
    };
    world.configure(|_| {});
    world.open("a", 7);
    world.isolated("c", 9);
    let (a, c, host) = (world.room("a"), world.room("c"), world.host());
    for (place, me) in [(&a, "a"), (&host, "host")] {
        place.serve("0.0.0.0", 3000, me);
    }
    a.hears(INTERNET, 3000, "host to 172.19.133.7");
    let machine = |line: &str| world.machine.sh(line).unwrap();
    machine(
        "nft add table ip filter; \
         nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'",
    );
    a.hears_nothing(INTERNET, 3000);
    host.hears_nothing("172.19.133.7", 3000);
    machine("nft insert rule ip filter FORWARD accept");
    a.hears(INTERNET, 3000, "host to 172.19.133.7");
    c.hears(INTERNET, 3000, "host to 172.19.133.9");
    for closed in ["172.19.133.7", GATEWAY] {
        c.hears_nothing(closed, 3000);
    }
}

#[test]
fn a_way_out_that_knows_one_address_sees_one() {
    let Some(world) = World::new("a_way_out_that_knows_one_address_sees_one") else {
        return;
    };
    world.configure(|n| n.hide_rooms = true);
    world.open("a", 7);
    world.open("b", 8);
    world.host().serve("0.0.0.0", 3000, "host");
    world.room("b").serve("0.0.0.0", 3000, "b");
    world
        .room("a")
        .hears(INTERNET, 3000, "host to 172.19.132.144");
    world
        .machine()
        .hears(INTERNET, 3000, "host to 172.19.132.144");
    world
        .room("a")
        .hears("172.19.133.8", 3000, "b to 172.19.133.7");
}

#[test]
fn ipv6_goes_the_same_ways() {
    let Some(world) = World::new("ipv6_goes_the_same_ways") else {
        return;
    };
    world.configure(|n| {
        n.ipv6_address = "fd00:5::144/64".into();
        n.ipv6_gateway = "fd00:5::1".into();
    });
    for (id, last, isolated) in [("a", 7, false), ("b", 8, false), ("c", 9, true)] {
        world
            .try_open(id, |r| {
                r.address = format!("172.19.133.{last}");
                r.ipv6_address = format!("fd00:5::133:{last}");
                r.isolated = isolated;
            })
            .unwrap();
    }
    let (a, b, c) = (world.room("a"), world.room("b"), world.room("c"));
    let (host, machine) = (world.host(), world.machine());
    for (place, me) in [
        (&a, "a"),
        (&b, "b"),
        (&c, "c"),
        (&machine, "machine"),
        (&host, "host"),
    ] {
        place.serve("::", 3000, me);
    }
    a.hears("fd00:5::133:8", 3000, "b to fd00:5::133:7");
    a.hears("fd00:5::144", 3000, "machine to fd00:5::133:7");
    a.hears("fd00:5::1", 3000, "host to fd00:5::133:7");
    a.hears("fd00:9::10", 3000, "host to fd00:5::133:7");
    host.hears("fd00:5::133:7", 3000, "a to fd00:5::1");
    c.hears("fd00:9::10", 3000, "host to fd00:5::133:9");
    host.hears("fd00:5::133:9", 3000, "c to fd00:5::1");
    for closed in ["fd00:5::133:7", "fd00:5::144", "fd00:5::1"] {
        c.hears_nothing(closed, 3000);
    }
    a.hears_nothing("fd00:5::133:9", 3000);
    a.sh("ip addr add fd00:5::133:99/128 dev eth0 nodad");
    assert!(!a.sh("ping -c1 -W1 -I fd00:5::133:99 fd00:5::1").0);
    assert!(a.sh("ping -c1 -W2 -I fd00:5::133:7 fd00:5::1").0);
}

#[test]
fn a_new_card_answers_for_the_rooms_there_are() {
    let Some(world) = World::new("a_new_card_answers_for_the_rooms_there_are") else {
        return;
    };
    world.configure(|n| n.relay_address = RELAY.into());
    world.open("a", 7);
    world.room("a").serve("0.0.0.0", 3000, "a");
    let loopback = world.machine().serve("127.0.0.1", 0, "loopback");
    world.host.sh("ip link delete tap0").unwrap();
    world.host().hears_nothing("172.19.133.7", 3000);
    world.plug("tap1");
    world.configure(|n| {
        n.relay_address = RELAY.into();
        n.mtu = 1400;
    });
    world
        .host()
        .hears("172.19.133.7", 3000, "a to 172.19.128.1");
    world
        .host()
        .hears(RELAY, loopback, "loopback to 172.19.128.1");
    assert!(
        world
            .room("a")
            .sh("ip link show eth0")
            .1
            .contains("mtu 1400")
    );
}

#[test]
fn what_a_killed_agent_left_is_cleared() {
    let Some(world) = World::new("what_a_killed_agent_left_is_cleared") else {
        return;
    };
    world.configure(|_| {});
    world
        .machine
        .sh(
            "ip link add room1 type veth peer name far; ip link set room1 up; \
             ip link set dev room1 alias 'hostel room gone'; ip route add 172.19.133.7 dev room1; \
             ip link add other type veth peer name far2",
        )
        .unwrap();
    world.open("a", 7);
    world.room("a").serve("0.0.0.0", 3000, "a");
    world
        .host()
        .hears("172.19.133.7", 3000, "a to 172.19.128.1");
    let links = world.machine.sh("ip link").unwrap();
    assert!(
        !links.contains("far@") && links.contains("other"),
        "{links}"
    );
    // The same distribution again, whose end nobody noticed.
    world.open("a", 7);
    assert_eq!(
        world.machine.sh("ip link").unwrap().matches("room").count(),
        2
    );
}

#[test]
fn rooms_that_cannot_be_are_refused_in_words() {
    let Some(world) = World::new("rooms_that_cannot_be_are_refused_in_words") else {
        return;
    };
    let fails = |address: &str, six: &str, word: &str| {
        let error = world.try_open("x", |r| {
            r.address = address.into();
            r.ipv6_address = six.into();
        });
        let text = failure("Debian", &error.unwrap_err()).message;
        assert!(text.contains("`Debian`") && text.contains(word), "{text}");
    };
    // Without a network there is a loopback.
    world.open("early", 7);
    assert!(world.room("early").sh("ip addr").1.contains("127.0.0.1"));
    world.close("early");
    world.configure(|n| n.relay_address = RELAY.into());
    world.open("a", 7);
    fails("", "", "not an address");
    fails("fe80::1", "", "not an address");
    fails("172.19.133.9", "1.2.3.4", "not an address");
    fails("10.0.0.1", "", "not in the machine's network");
    fails(MACHINE, "", "the machine");
    fails(GATEWAY, "", "the gateway");
    fails(RELAY, "", "the relay");
    fails("172.19.128.0", "", "the network itself");
    fails("172.19.133.7", "", "distribution a");
    assert!(world.rooms.get("x").is_none());
}

#[test]
fn a_container_engine_works_in_a_room() {
    let name = "a_container_engine_works_in_a_room";
    let Some(world) = World::new(name) else {
        return;
    };
    let Some(container) = Space::new(name) else {
        return;
    };
    world.configure(|_| {});
    world.open("a", 7);
    let a = world.room("a");
    world.host().serve("0.0.0.0", 3000, "host");
    // What such an engine does: a bridge, a pair, a namespace, its own table.
    let netns = container.netns();
    a.run(move || {
        let routing = Routing::connect().unwrap();
        let bridge = hostel_netlink::Bridge {
            name: "docker0",
            mac: None,
            alias: "",
        };
        routing.add_bridge(&bridge).unwrap();
        let veth = Veth {
            name: "veth1",
            mac: None,
            alias: "",
            peer: "eth0",
            peer_mac: None,
            peer_netns: Some(netns.as_fd()),
            mtu: None,
        };
        routing.add_veth(&veth).unwrap();
        let index = |name| routing.link(name).unwrap().unwrap().index;
        let port = hostel_netlink::LinkChange {
            master: Some(index("docker0")),
            up: Some(true),
            ..hostel_netlink::LinkChange::default()
        };
        routing.change_link(index("veth1"), &port).unwrap();
        routing.set_link(index("docker0"), true).unwrap();
        routing
            .add_address(index("docker0"), prefix("172.17.0.1/16"))
            .unwrap();
        let source = Rule::new().source(prefix("172.17.0.0/16"));
        let table = Table::inet("engine").chain(
            Chain::base(
                "out",
                Kind::Nat,
                Hook::Postrouting,
                Priority::SOURCE_NAT,
                Policy::Accept,
            )
            .rule(source.output_is_not("docker0").masquerade()),
        );
        Nft::connect().unwrap().replace(&table).unwrap();
        Ok(())
    })
    .unwrap();
    container.run(|| {
        let routing = Routing::connect().unwrap();
        let index = routing.link("eth0").unwrap().unwrap().index;
        routing.set_link(index, true).unwrap();
        routing.add_address(index, prefix("172.17.0.2/16")).unwrap();
        let out = Route::default_via("172.17.0.1".parse().unwrap(), index);
        routing.replace_route(&out).unwrap();
    });
    let container = Place(Arc::new(container.netns()));
    container.hears(INTERNET, 3000, "host to 172.19.133.7");
    container.serve("0.0.0.0", 80, "container");
    a.hears("172.17.0.2", 80, "container to 172.17.0.1");
}
