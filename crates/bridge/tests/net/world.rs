//! A host, an internet and a VM, each a network namespace of the test's own.
//!
//! The server is started in the host's through a script: processes are started by a thread that all tests share, whose
//! namespace is not the test's.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use hostel_bridge::{Client, Event, Mode, Network, SpawnError, Up};
use hostel_netlink::{LinkChange, Prefix, Route, Routing, Veth};
use hostel_sys::spawn::Stream;
use hostel_testkit::{Need, Space, require};

/// Everything is done in milliseconds; this is for a machine that is very busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// How long something is given that must not happen.
pub(crate) const NEVER: Duration = Duration::from_millis(400);

pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 19, 128, 1);
pub(crate) const VM: Ipv4Addr = Ipv4Addr::new(172, 19, 132, 144);
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// A server on the internet.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The internet's end of the host's wire.
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Who may run what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    Root,
    /// A plain user; the device for taps is as given.
    User {
        tun: Tun,
    },
}

/// What `/dev/net/tun` looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tun {
    /// Everybody's, as on most distributions.
    Open,
    /// Root's alone.
    Closed,
}

pub(crate) struct World {
    pub(crate) host: Space,
    pub(crate) internet: Space,
    pub(crate) dir: tempfile::TempDir,
    netns: OwnedFd,
}

pub(crate) fn prefix(address: Ipv4Addr, length: u8) -> Prefix {
    Prefix::new(address, length).unwrap()
}

/// The network that tests ask for.
pub(crate) fn wanted() -> Up {
    Up {
        subnet: Network {
            address: Ipv4Addr::new(172, 19, 128, 0),
            bits: 20,
        },
        gateway: GATEWAY,
        guest: VM,
        mtu: 1500,
        ipv6: None,
        host_loopback: false,
        gateway_dns: false,
        firewall: Vec::new(),
    }
}

impl World {
    /// Makes host and internet with a wire between them; `None`, told as a skip, where that cannot be.
    pub(crate) fn new(test: &str) -> Option<Self> {
        for program in ["ip", "nft", "nsenter", "setpriv", "unshare"] {
            require(test, Need::Program(program))?;
        }
        require(test, Need::Tun)?;
        let (host, internet) = (Space::new(test)?, Space::new(test)?);
        wire(&host, "up0", &internet, "eth0");
        address(&host, "up0", HOST, 24, Some(ROUTER));
        address(&internet, "eth0", ROUTER, 24, None);
        internet
            .sh(&format!(
                "ip link set lo up; ip addr add {SERVER}/32 dev lo"
            ))
            .unwrap();
        host.sh("ip link set lo up; sysctl -qw net.ipv4.ping_group_range='0 2147483647'")
            .unwrap();
        let netns = host.netns();
        // Not in the usual place, which a plain user may not look into.
        let dir = tempfile::Builder::new()
            .prefix("bridge-")
            .tempdir_in("/tmp")
            .unwrap();
        fs_err::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self {
            host,
            internet,
            dir,
            netns,
        })
    }

    /// Starts a server in the host's namespace.
    pub(crate) fn start(&self, mode: &Mode, who: As) -> (Client, mpsc::Receiver<Event>) {
        self.try_start(mode, who).unwrap()
    }

    /// The same where it may fail.
    pub(crate) fn try_start(
        &self,
        mode: &Mode,
        who: As,
    ) -> Result<(Client, mpsc::Receiver<Event>), SpawnError> {
        let program = self.script(who, Path::new(env!("CARGO_BIN_EXE_hostel-net")));
        let (events, heard) = mpsc::channel();
        let client = Client::spawn(&program, mode, Stream::Inherit, move |event| {
            let _ = events.send(event);
        })?;
        Ok((client, heard))
    }

    /// Starts a server on the host's own network, as root.
    pub(crate) fn start_host(&self) -> (Client, mpsc::Receiver<Event>) {
        self.start(&Mode::Host, As::Root)
    }

    /// Writes a script that runs a program in the host's namespace as somebody.
    pub(crate) fn script(&self, who: As, program: &Path) -> PathBuf {
        let (netns, pid) = (self.netns.as_raw_fd(), std::process::id());
        let enter = format!("exec nsenter --net=/proc/{pid}/fd/{netns}");
        let dir = self.dir.path();
        let line = match who {
            As::Root => format!("{enter} {} \"$@\"", program.display()),
            As::User { tun } => {
                let device = dir.join(format!("{tun:?}"));
                let mode = if tun == Tun::Open { "666" } else { "600" };
                let device = device.display();
                let copy = dir.join("program");
                if !copy.exists() {
                    fs_err::copy(program, &copy).unwrap();
                }
                // setpriv itself still has rights when it executes; what comes after does not.
                let plain = dir.join("plain");
                write_script(&plain, &format!("exec {} \"$@\"", copy.display()));
                format!(
                    "[ -e {device} ] || mknod -m {mode} {device} c 10 200\n\
                     {enter} unshare --mount sh -c 'mount --bind {device} /dev/net/tun && \
                     exec setpriv --reuid 4711 --regid 4711 --clear-groups {} \"$@\"' sh \"$@\"",
                    plain.display()
                )
            }
        };
        let path = dir.join(format!("start-{who:?}").replace([' ', '{', '}', ':'], ""));
        write_script(&path, &line);
        path
    }

    /// Connects a VM to a bridge of the host's.
    pub(crate) fn vm(&self, test: &str, bridge: &str) -> Space {
        self.vm_at(test, bridge, VM, GATEWAY)
    }

    /// The same at another address.
    pub(crate) fn vm_at(&self, test: &str, bridge: &str, at: Ipv4Addr, gateway: Ipv4Addr) -> Space {
        let vm = Space::new(test).unwrap();
        vm.sh("ip link set lo up").unwrap();
        wire(&self.host, &port(bridge), &vm, "eth0");
        self.plug(bridge);
        address(&vm, "eth0", at, 20, Some(gateway));
        vm
    }

    /// Makes the VM's wire a port of the bridge.
    pub(crate) fn plug(&self, bridge: &str) {
        let bridge = bridge.to_owned();
        self.host.run(move || plug(&bridge));
    }

    /// Whether anything of ours is left on the host.
    pub(crate) fn is_clean(&self) -> bool {
        let left = self.host.sh("ip -o link; nft list tables").unwrap();
        !left.contains("hostel")
    }

    /// Whether the host forwards.
    pub(crate) fn forwards(&self) -> bool {
        self.host
            .sh("cat /proc/sys/net/ipv4/ip_forward")
            .unwrap()
            .trim()
            == "1"
    }
}

/// Writes a script that everybody may run.
pub(crate) fn write_script(path: &Path, line: &str) {
    fs_err::write(path, format!("#!/bin/sh\n{line}\n")).unwrap();
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The host's end of the VM's wire.
pub(crate) fn port(bridge: &str) -> String {
    bridge.replace("hostel", "port")
}

/// Makes the VM's wire a port of the bridge, in the namespace that the thread is in.
pub(crate) fn plug(bridge: &str) {
    let routing = Routing::connect().unwrap();
    let find = |name: &str| routing.link(name).unwrap().unwrap().index;
    let change = LinkChange {
        master: Some(find(bridge)),
        up: Some(true),
        ..LinkChange::default()
    };
    routing.change_link(find(&port(bridge)), &change).unwrap();
}

fn wire(from: &Space, name: &str, to: &Space, peer: &str) {
    let (name, peer, netns) = (name.to_owned(), peer.to_owned(), to.netns());
    from.run(move || wire_here(&name, &netns, &peer));
}

/// Makes a wire from the namespace that the thread is in to another.
pub(crate) fn wire_here(name: &str, netns: &OwnedFd, peer: &str) {
    let routing = Routing::connect().unwrap();
    let veth = Veth {
        name,
        mac: None,
        alias: "",
        peer,
        peer_mac: None,
        peer_netns: Some(netns.as_fd()),
        mtu: None,
    };
    routing.add_veth(&veth).unwrap();
}

/// Gives an interface an address, and a way to everything.
pub(crate) fn address(space: &Space, name: &str, at: Ipv4Addr, length: u8, via: Option<Ipv4Addr>) {
    let name = name.to_owned();
    space.run(move || {
        let routing = Routing::connect().unwrap();
        let index = routing.link(&name).unwrap().unwrap().index;
        routing.add_address(index, prefix(at, length)).unwrap();
        routing.set_link(index, true).unwrap();
        if let Some(via) = via {
            routing
                .replace_route(&Route::default_via(via.into(), index))
                .unwrap();
        }
    });
}

/// Does something in the network namespace of a process.
pub(crate) fn within<T: Send>(pid: u32, job: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let netns = fs_err::File::open(format!("/proc/{pid}/ns/net")).unwrap();
            rustix::thread::move_into_link_name_space(
                netns.file().as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            job()
        });
        thread.join().unwrap()
    })
}

/// Listens in a namespace.
pub(crate) fn listen(space: &Space, at: impl Into<SocketAddr>) -> TcpListener {
    let at = at.into();
    let listener = space.run(move || TcpListener::bind(at).unwrap());
    listener.set_nonblocking(true).unwrap();
    listener
}

/// Opens a UDP socket in a namespace.
pub(crate) fn udp(space: &Space, at: impl Into<SocketAddr>) -> UdpSocket {
    let at = at.into();
    let socket = space.run(move || UdpSocket::bind(at).unwrap());
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// Connects from a namespace.
pub(crate) fn connect(
    space: &Space,
    to: impl Into<SocketAddr>,
    wait: Duration,
) -> std::io::Result<TcpStream> {
    let to = to.into();
    space.run(move || TcpStream::connect_timeout(&to, wait))
}

/// Takes a connection; who it came from.
pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let accepted = hostel_testkit::run::until("a connection", DEADLINE, || listener.accept().ok());
    let (stream, peer) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    (stream, peer)
}

/// Connects and sends words both ways; who the server saw.
pub(crate) fn talk(space: &Space, to: impl Into<SocketAddr>, listener: &TcpListener) -> SocketAddr {
    let mut client = connect(space, to, DEADLINE).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    exchange(&mut client, listener)
}

/// Sends words both ways on a connection that the listener will take; who it saw.
pub(crate) fn exchange(client: &mut TcpStream, listener: &TcpListener) -> SocketAddr {
    let (mut server, peer) = accept(listener);
    client.write_all(b"question").unwrap();
    let mut words = [0; 8];
    server.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"question");
    server.write_all(b"answered").unwrap();
    client.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"answered");
    peer
}

/// Waits for an event that is wanted; others before it are passed over.
pub(crate) fn event(events: &mpsc::Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
    event_within(events, DEADLINE, wanted)
}

/// The same with a deadline of its own.
pub(crate) fn event_within(
    events: &mpsc::Receiver<Event>,
    deadline: Duration,
    wanted: impl Fn(&Event) -> bool,
) -> Event {
    let end = Instant::now() + deadline;
    let mut seen = Vec::new();
    loop {
        match events.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(event) if wanted(&event) => return event,
            Ok(other) => seen.push(other),
            Err(error) => panic!("{error}: only {seen:?} came"),
        }
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, check: impl Fn() -> bool) {
    hostel_testkit::run::until(what, DEADLINE, || check().then_some(())).unwrap();
}
