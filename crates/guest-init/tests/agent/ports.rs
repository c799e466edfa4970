//! Listening sockets of the guest, as the daemon is told of them (REL-*).

use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use hostel_proto::v1;
use hostel_testkit::{Need, Space, require};
use tokio::time::timeout;
use tonic::Streaming;

use crate::host::{Host, LIMIT, eventually, in_space};

/// What the daemon knows, by protocol, address and port.
struct Watch {
    stream: Streaming<v1::PortsChanged>,
    known: BTreeMap<(String, String, u32), v1::Listener>,
    resets: usize,
}

impl Watch {
    async fn begin(host: &mut Host, udp_ports: &[u32]) -> Self {
        let request = v1::WatchPortsRequest {
            udp_ports: udp_ports.to_vec(),
        };
        let stream = host.client.watch_ports(request).await.unwrap().into_inner();
        let mut watch = Self {
            stream,
            known: BTreeMap::new(),
            resets: 0,
        };
        watch.next().await;
        assert_eq!(watch.resets, 1, "the first message resets");
        watch
    }

    async fn next(&mut self) {
        let changed = timeout(LIMIT, self.stream.message())
            .await
            .expect("a change is told")
            .unwrap()
            .expect("the watch goes on");
        let key = |l: &v1::Listener| (l.protocol.clone(), l.address.clone(), l.port);
        if changed.reset {
            self.known.clear();
            self.resets += 1;
        }
        for removed in &changed.removed {
            assert!(
                self.known.remove(&key(removed)).is_some(),
                "what is removed was known: {removed:?}"
            );
        }
        for added in changed.added {
            assert_eq!(added.room, "");
            self.known.insert(key(&added), added);
        }
    }

    async fn until(&mut self, what: &str, yes: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !yes(self) {
            assert!(start.elapsed() < LIMIT, "{what}: {:?}", self.known);
            self.next().await;
        }
    }

    fn find(&self, protocol: &str, address: &str, port: u16) -> Option<&v1::Listener> {
        self.known
            .get(&(protocol.to_owned(), address.to_owned(), port.into()))
    }
}

/// A namespace with loopback up, and an agent in it.
async fn agent(test: &str) -> Option<(Space, Host)> {
    require(test, Need::Program("ip"))?;
    require(test, Need::Program("unshare"))?;
    let space = Space::new(test)?;
    space.sh("ip link set lo up").unwrap();
    let host = in_space(&space).await;
    Some((space, host))
}

fn listen(space: &Space, address: &'static str) -> TcpListener {
    space.run(move || TcpListener::bind(address).unwrap())
}

/// REL-1, REL-2, REL-7: every address is told, within milliseconds, with what the socket takes.
#[tokio::test]
async fn listeners_are_told_when_they_come_and_when_they_go() {
    let test = "listeners_are_told_when_they_come_and_when_they_go";
    let Some((space, mut host)) = agent(test).await else {
        return;
    };
    let early = listen(&space, "0.0.0.0:1001");
    let mut watch = Watch::begin(&mut host, &[]).await;
    watch
        .until("what was there is told", |w| {
            w.find("tcp", "0.0.0.0", 1001).is_some()
        })
        .await;
    let mut sockets = vec![early];
    // Some machines have no IPv6; IPv4 is told all the same (REL-8).
    let mut wanted = vec![
        ("127.0.0.1:1002", "127.0.0.1", 1002, false),
        ("127.0.0.2:1003", "127.0.0.2", 1003, false),
    ];
    if space.run(|| TcpListener::bind("[::1]:0").is_ok()) {
        wanted.extend([
            ("[::]:1004", "::", 1004, true),
            ("[::1]:1005", "::1", 1005, false),
            ("[::ffff:127.0.0.1]:1006", "127.0.0.1", 1006, false),
        ]);
    }
    for (bind, address, port, dual_stack) in wanted.clone() {
        sockets.push(listen(&space, bind));
        watch
            .until(bind, |w| w.find("tcp", address, port).is_some())
            .await;
        let told = watch.find("tcp", address, port).unwrap();
        assert_eq!(told.dual_stack, dual_stack, "{told:?}");
    }
    // Another watcher is told everything.
    let again = Watch::begin(&mut host, &[]).await;
    assert_eq!(again.known.len(), wanted.len() + 1);
    let mut watch = again;
    drop(sockets);
    watch
        .until("what is closed is told", |w| w.known.is_empty())
        .await;
}

#[tokio::test]
async fn the_process_and_the_distribution_of_a_listener_are_told() {
    let test = "the_process_and_the_distribution_of_a_listener_are_told";
    if require(test, Need::Program("python3")).is_none() {
        return;
    }
    let Some((space, mut host)) = agent(test).await else {
        return;
    };
    let id = format!("hostel-test-{}", std::process::id());
    let group = host.file("/sys/fs/cgroup").join(&id);
    fs_err::create_dir(&group).unwrap();
    fs_err::create_dir(group.join("init")).unwrap();
    let procs = group.join("init/cgroup.procs");
    // As a session does: into the group first, then the command.
    let line = "echo 0 > \"$0\" && exec python3 -c 'import socket,sys; s=socket.create_server((\"127.0.0.1\", 1010)); sys.stdin.read()'";
    let mut server = space.run(move || {
        std::process::Command::new("sh")
            .args(["-c", line])
            .arg(procs)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    });
    let mut watch = Watch::begin(&mut host, &[]).await;
    watch
        .until("the name comes with it or after it", |w| {
            w.find("tcp", "127.0.0.1", 1010).is_some_and(|l| l.pid != 0)
        })
        .await;
    let told = watch.find("tcp", "127.0.0.1", 1010).unwrap();
    assert_eq!(told.distro, id);
    assert_eq!(told.pid, server.id());
    assert!(told.process.starts_with("python3"), "{told:?}");
    drop(server.stdin.take());
    server.wait().unwrap();
    watch.until("its end", |w| w.known.is_empty()).await;
    for path in [group.join("init"), group] {
        fs_err::remove_dir(path).unwrap();
    }
}

/// UDP is told for the ports that are asked for, and only for sockets that take from anyone.
#[tokio::test]
async fn datagram_ports_are_told_when_they_are_asked_for() {
    let test = "datagram_ports_are_told_when_they_are_asked_for";
    let Some((space, mut host)) = agent(test).await else {
        return;
    };
    let mut watch = Watch::begin(&mut host, &[1020]).await;
    let sockets = space.run(|| {
        let bind = |address| UdpSocket::bind(address).unwrap();
        (bind("0.0.0.0:1020"), bind("127.0.0.1:1021"))
    });
    watch
        .until("the port", |w| w.find("udp", "0.0.0.0", 1020).is_some())
        .await;
    assert_eq!(watch.known.len(), 1);
    drop(sockets);
    watch.until("its end", |w| w.known.is_empty()).await;
}

/// More than a message holds, more than the daemon is told of, and all of them gone again.
#[tokio::test]
async fn thousands_of_listeners_are_told_up_to_a_limit() {
    const MOST: usize = 4096;
    let test = "thousands_of_listeners_are_told_up_to_a_limit";
    let Some((space, mut host)) = agent(test).await else {
        return;
    };
    space.sh("ulimit -n 8192 >/dev/null 2>&1; true").unwrap();
    let mut watch = Watch::begin(&mut host, &[]).await;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let enough = limit.maximum.is_none_or(|m| m > 6000);
    assert!(enough, "the test needs 6,000 descriptors");
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    let sockets = space.run(|| {
        let bind = |port| TcpListener::bind(("127.0.0.1", port)).unwrap();
        (2000..6200).map(bind).collect::<Vec<_>>()
    });
    watch
        .until("as many as are told", |w| w.known.len() == MOST)
        .await;
    drop(sockets);
    watch.until("their end", |w| w.known.is_empty()).await;
}

/// The kernel's events are asked for in an instance of our own, which goes with the watch.
#[tokio::test]
async fn nothing_is_left_of_a_watch() {
    let Some((_space, mut host)) = agent("nothing_is_left_of_a_watch").await else {
        return;
    };
    let instances = host.file("/sys/kernel/tracing/instances");
    let prefix = format!("hostel-{}-", host.agent.id());
    let ours = || {
        let entries = fs_err::read_dir(&instances).into_iter().flatten();
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        names.filter(|n| n.starts_with(&prefix)).count()
    };
    let mut counts = Vec::new();
    for _ in 0..5 {
        let watch = Watch::begin(&mut host, &[]).await;
        assert_eq!(ours(), 1, "this kernel has tracefs");
        drop(watch);
        eventually("the instance is removed", || ours() == 0).await;
        counts.push(host.descriptors());
    }
    // The thread lets go of the rest a moment after the instance.
    let least = counts.iter().min().copied().unwrap();
    eventually("descriptors are closed", || host.descriptors() <= least).await;
}

/// How long it takes from `listen` to the message; told, not judged, but for what no event could explain.
#[tokio::test]
async fn a_listener_is_known_within_milliseconds() {
    let Some((space, mut host)) = agent("a_listener_is_known_within_milliseconds").await else {
        return;
    };
    let mut watch = Watch::begin(&mut host, &[]).await;
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for port in 3000..3021 {
        let start = Instant::now();
        let socket = space.run(move || TcpListener::bind(("127.0.0.1", port)).unwrap());
        watch
            .until("it comes", |w| w.find("tcp", "127.0.0.1", port).is_some())
            .await;
        on.push(start.elapsed());
        let start = Instant::now();
        drop(socket);
        watch
            .until("it goes", |w| w.find("tcp", "127.0.0.1", port).is_none())
            .await;
        off.push(start.elapsed());
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (on, off) = (median(&mut on), median(&mut off));
    eprintln!("median: on {on:?}, off {off:?}");
    // Without events it would be a second, half of the pause between looks.
    let late = Duration::from_millis(800);
    assert!(on < late && off < late, "on {on:?}, off {off:?}");
}
