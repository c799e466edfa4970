//! A network namespace for each test, a made-up guest on another address of its loopback, and waiting with a deadline.

use std::{
    env,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{Arc, LazyLock},
    thread,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use hostel_relay::{
    Connector, Entry, GuestDatagrams, GuestListener, GuestStream, Limits, Protocol, Relay, Room,
    Settings, State,
};
use hostel_testkit::{Need, require};

/// Where the guest's own addresses are in these tests.
pub(crate) const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Where its IPv6 listeners are.
pub(crate) const GUEST6: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
/// Every wait ends here.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

const INSIDE: &str = "RELAY_TEST_INSIDE";

/// Runs the test again in a network namespace of its own, after a line of shell; returns `true` there.
pub(crate) fn alone_after(name: &str, needs: &[Need], shell: &str) -> bool {
    if env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return true;
    }
    let root = rustix::process::geteuid().is_root();
    let own = if root { Need::Root } else { Need::UserNs };
    for need in needs.iter().chain([&own]) {
        if require(name, *need).is_none() {
            return false;
        }
    }
    let shell = format!("ip link set lo up && {shell} \"$0\" --exact \"$1\" --nocapture");
    let output = Command::new("unshare")
        .args(if root { &["-n"][..] } else { &["-rn"] })
        .args(["sh", "-ec", &shell])
        .arg(env::current_exe().unwrap())
        .arg(name)
        .env(INSIDE, name)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

/// The same, with nothing before.
pub(crate) fn alone(name: &str) -> bool {
    alone_after(name, &[], "exec")
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
});

/// Runs a future to its end, with a deadline.
pub(crate) fn wait_for<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(async { tokio::time::timeout(DEADLINE, future).await.unwrap() })
}

/// Reaches the made-up guest: IPv4 listeners at `GUEST`, IPv6 ones at `GUEST6`, those of a room at the room's address with
/// 127 at its beginning and 100 more at its end. Ports from 6000 on are 1000 higher there, for tests that need the number free
/// on every address.
pub(crate) struct Loopback {
    /// Streams are handed over as boxes.
    pub(crate) boxed: bool,
}

/// Returns where a listener of the guest really is.
pub(crate) fn real(to: &GuestListener) -> SocketAddr {
    let address = match to.room {
        Some(room) => {
            let [_, b, c, d] = room.address.octets();
            Ipv4Addr::new(127, b, c, d + 100).into()
        }
        None if to.address.is_ipv6() && !to.dual_stack => GUEST6,
        None => GUEST,
    };
    let shift = if to.port < 6000 { 0 } else { 1000 };
    SocketAddr::new(address, to.port + shift)
}

impl Connector for Loopback {
    fn tcp<'a>(&'a self, to: &'a GuestListener) -> BoxFuture<'a, io::Result<GuestStream>> {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(real(to)).await?;
            Ok(if self.boxed {
                GuestStream::Other(Box::new(stream))
            } else {
                stream.into()
            })
        })
    }

    fn udp<'a>(&'a self, to: &'a GuestListener) -> BoxFuture<'a, io::Result<GuestDatagrams>> {
        Box::pin(async move {
            if self.boxed {
                let stream = tokio::net::TcpStream::connect(real(to)).await?;
                return Ok(GuestDatagrams::Framed(Box::new(stream)));
            }
            let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            socket.connect(real(to)).await?;
            Ok(socket.into())
        })
    }
}

/// Starts a relay.
pub(crate) fn relay(settings: Settings) -> Arc<Relay> {
    relay_with(settings, Limits::default(), false)
}

/// Starts a relay with other bounds, or with boxed streams.
pub(crate) fn relay_with(settings: Settings, limits: Limits, boxed: bool) -> Arc<Relay> {
    let _runtime = RUNTIME.enter();
    Relay::with_limits(Arc::new(Loopback { boxed }), settings, limits)
}

/// A listener of the VM's network.
pub(crate) fn listener(address: &str, port: u16) -> GuestListener {
    GuestListener {
        distro: None,
        distro_name: "debian".to_owned(),
        room: None,
        protocol: Protocol::Tcp,
        address: address.parse().unwrap(),
        port,
        dual_stack: false,
        pid: 17,
        process: "server".to_owned(),
    }
}

/// A listener of a room.
pub(crate) fn in_room(last: u8, address: &str, port: u16) -> GuestListener {
    GuestListener {
        distro_name: format!("room{last}"),
        room: Some(Room {
            address: Ipv4Addr::new(172, 19, 133, last),
            local: Ipv4Addr::new(127, 19, 133, last),
        }),
        ..listener(address, port)
    }
}

/// Serves what the relay will reach for this listener: answers every connection with `answer`, then echoes, and ends after the
/// other side has ended.
pub(crate) fn serve(to: &GuestListener, answer: &'static [u8]) {
    let socket = TcpListener::bind(real(to)).unwrap();
    thread::spawn(move || {
        for mut stream in socket.incoming().flatten() {
            thread::spawn(move || {
                stream.write_all(answer)?;
                let mut buffer = vec![0; 64 * 1024];
                loop {
                    match stream.read(&mut buffer)? {
                        0 => return stream.shutdown(std::net::Shutdown::Write),
                        n => stream.write_all(&buffer[..n])?,
                    }
                }
            });
        }
    });
}

/// Connects as a program of the host; every call on it has a deadline.
pub(crate) fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address.parse().unwrap(), DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Connects and reads the first `n` bytes.
pub(crate) fn greeting(address: &str, n: usize) -> io::Result<Vec<u8>> {
    let mut stream = connect(address)?;
    let mut text = vec![0; n];
    stream.read_exact(&mut text)?;
    Ok(text)
}

/// Waits until a ledger is as it should be.
#[track_caller]
pub(crate) fn until(relay: &Relay, what: impl Fn(&[Entry]) -> bool) -> Vec<Entry> {
    let end = Instant::now() + DEADLINE;
    let mut changed = relay.changed();
    loop {
        let entries = relay.entries();
        if what(&entries) {
            return entries;
        }
        assert!(Instant::now() < end, "{entries:#?}");
        let soon = Duration::from_millis(200);
        RUNTIME.block_on(async {
            // Counts of connections change without notice.
            let _ = tokio::time::timeout(soon, changed.changed()).await;
        });
    }
}

/// Returns the one line of a port.
#[track_caller]
pub(crate) fn entry(relay: &Relay, port: u16) -> Entry {
    let entries = relay.entries();
    let mut of_port = entries.iter().filter(|e| e.port == port);
    let one = of_port.next().cloned();
    assert!(one.is_some() && of_port.next().is_none(), "{entries:#?}");
    one.unwrap()
}

/// Checks where a line says that the host finds a port.
#[track_caller]
pub(crate) fn is_at(entry: &Entry, state: State, host: &[&str]) {
    let found: Vec<String> = entry.host.iter().map(ToString::to_string).collect();
    assert_eq!(
        (entry.state, found),
        (state, host.iter().map(ToString::to_string).collect()),
        "{entry:#?}"
    );
}
