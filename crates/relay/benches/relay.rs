//! What the relay costs: the same server asked directly and through the relay, in turns, in one run.
//!
//! Server, relay and clients are processes of their own in a network namespace that this program makes. Prints one line
//! for each measure, the ratio last:
//!
//! ```text
//! relay throughput: direct 9.9 Gbit/s, relay 6.5 Gbit/s, ratio 0.66
//! relay connections: direct 15600 /s, relay 8000 /s, ratio 0.51
//! ```
//!
//! `RELAY_BENCH_SECONDS` says how long one turn lasts (default 2), `HOSTEL_BENCH_ROUNDS` how many there are (default 5). When
//! `HOSTEL_BENCH_REPORT` names a file, rows of the table in `docs/benchmarks.md` are added to it.

use std::{
    env,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use hostel_relay::{
    Connector, GuestDatagrams, GuestListener, GuestStream, Protocol, Relay, Settings, State,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream as AsyncStream,
    runtime::{Builder, Runtime},
};

/// The "guest" has another address of loopback, so that both have the same ports.
const GUEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Sends without end.
const BULK: u16 = 7001;
/// Answer one byte with one byte; one port for each client.
const ECHO: [u16; 4] = [7011, 7012, 7013, 7014];

fn main() -> io::Result<()> {
    match env::var("RELAY_BENCH_ROLE").as_deref() {
        Ok("all") => measure(),
        Ok("server") => server(),
        Ok("relay") => relay(),
        Ok("bulk") => bulk(address()?),
        Ok("connections") => connections(address()?),
        _ => {
            // `lo` is down in a new namespace.
            let shell = "ip link set lo up && exec \"$0\"";
            let mut command = Command::new("unshare");
            let own = rustix::process::geteuid().is_root();
            command.args(if own { &["-n"][..] } else { &["-rn"] });
            command.args(["sh", "-c", shell]).arg(env::current_exe()?);
            let status = command.env("RELAY_BENCH_ROLE", "all").status()?;
            if status.success() {
                Ok(())
            } else {
                Err(io::Error::other(format!("the bench ended with {status}")))
            }
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

fn turn() -> Duration {
    Duration::from_secs(number("RELAY_BENCH_SECONDS", 2))
}

fn address() -> io::Result<IpAddr> {
    let text = env::var("RELAY_BENCH_ADDRESS").map_err(io::Error::other)?;
    text.parse().map_err(io::Error::other)
}

/// A child of one role; it ends when its standard input does.
struct Role(Child);

impl Role {
    fn start(role: &str, address: Ipv4Addr) -> io::Result<Self> {
        let child = Command::new(env::current_exe()?)
            .env("RELAY_BENCH_ROLE", role)
            .env("RELAY_BENCH_ADDRESS", address.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self(child))
    }

    /// Returns the number that it prints first.
    fn says(&mut self) -> io::Result<f64> {
        let mut text = String::new();
        let out = self.0.stdout.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut byte = [0];
        while out.read(&mut byte)? == 1 && byte[0] != b'\n' {
            text.push(char::from(byte[0]));
        }
        text.parse().map_err(io::Error::other)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn say(value: f64) -> io::Result<()> {
    writeln!(io::stdout(), "{value}")
}

fn wait_for_end() -> io::Result<()> {
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

fn measure() -> io::Result<()> {
    let mut server = Role::start("server", GUEST)?;
    server.says()?;
    let mut relay = Role::start("relay", HOST)?;
    relay.says()?;
    let rounds = number("HOSTEL_BENCH_ROUNDS", 5);
    for (name, role, unit, scale, promised) in [
        ("throughput", "bulk", "Gbit/s", 8e-9, 0.6),
        ("connections", "connections", "/s", 1.0, 0.45),
    ] {
        let (mut direct, mut relayed) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            direct.push(Role::start(role, GUEST)?.says()?);
            relayed.push(Role::start(role, HOST)?.says()?);
        }
        let (direct, relayed) = (median(direct) * scale, median(relayed) * scale);
        writeln!(
            io::stdout(),
            "relay {name}: direct {direct:.1} {unit}, relay {relayed:.1} {unit}, ratio {:.2}",
            relayed / direct
        )?;
        if let Some(path) = env::var_os("HOSTEL_BENCH_REPORT") {
            let kept = if relayed / direct >= promised {
                "yes"
            } else {
                "**no**"
            };
            writeln!(
                fs_err::OpenOptions::new().append(true).open(path)?,
                "| relay without a VM: {name} | ≥ {promised} x direct | {relayed:.1} {unit} = {:.2} x {direct:.1} {unit} | {kept} |",
                relayed / direct
            )?;
        }
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build()
}

/// Waits until the other side has said that nothing follows.
async fn end(mut stream: AsyncStream) {
    let _ = stream.shutdown().await;
    while matches!(stream.read(&mut [0; 64]).await, Ok(1..)) {}
}

/// Both ends are event-driven programs, as most that are used through a relay.
fn server() -> io::Result<()> {
    let bulk = TcpListener::bind((GUEST, BULK))?;
    thread::spawn(move || {
        for stream in bulk.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                let bytes = vec![7; 256 * 1024];
                while stream.write_all(&bytes).is_ok() {}
            });
        }
    });
    let runtime = runtime()?;
    for port in ECHO {
        let echo = runtime.block_on(tokio::net::TcpListener::bind((GUEST, port)))?;
        runtime.spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).await.is_ok()
                        && stream.write_all(&byte).await.is_ok()
                    {
                        end(stream).await;
                    }
                });
            }
        });
    }
    say(0.0)?;
    wait_for_end()
}

struct Plain;

impl Connector for Plain {
    fn tcp<'a>(&'a self, to: &'a GuestListener) -> BoxFuture<'a, io::Result<GuestStream>> {
        Box::pin(async move {
            let stream = AsyncStream::connect((to.address, to.port)).await?;
            Ok(stream.into())
        })
    }

    fn udp<'a>(&'a self, _: &'a GuestListener) -> BoxFuture<'a, io::Result<GuestDatagrams>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
}

fn relay() -> io::Result<()> {
    let runtime = runtime()?;
    let _runtime = runtime.enter();
    let relay = Relay::start(Arc::new(Plain), Settings::default());
    let listener = |port| GuestListener {
        distro: None,
        distro_name: String::new(),
        room: None,
        protocol: Protocol::Tcp,
        address: GUEST.into(),
        port,
        dual_stack: false,
        pid: 0,
        process: String::new(),
    };
    relay.reset(ECHO.into_iter().chain([BULK]).map(listener).collect());
    if let Some(entry) = relay.entries().iter().find(|e| e.state != State::Forwarded) {
        return Err(io::Error::other(format!("not relayed: {entry:?}")));
    }
    say(0.0)?;
    wait_for_end()?;
    runtime.block_on(relay.close());
    Ok(())
}

/// Says how many bytes arrive in a second.
fn bulk(address: IpAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(SocketAddr::new(address, BULK))?;
    let mut buffer = vec![0; 256 * 1024];
    // The windows of the connection grow first.
    let warm = Instant::now() + Duration::from_millis(300);
    while Instant::now() < warm {
        stream.read_exact(&mut buffer)?;
    }
    let start = Instant::now();
    let mut bytes = 0;
    while start.elapsed() < turn() {
        bytes += stream.read(&mut buffer)?;
    }
    say(bytes as f64 / start.elapsed().as_secs_f64())
}

/// Says how many connections can be made, used for one byte each way, and closed in a second.
fn connections(address: IpAddr) -> io::Result<()> {
    let start = Instant::now();
    let clients = ECHO.map(|port| async move {
        let mut done = 0_u64;
        while start.elapsed() < turn() {
            let mut stream = AsyncStream::connect((address, port)).await?;
            stream.set_nodelay(true)?;
            stream.write_all(&[1]).await?;
            stream.read_exact(&mut [0]).await?;
            end(stream).await;
            done += 1;
        }
        Ok::<_, io::Error>(done)
    });
    let runtime = runtime()?;
    let mut done = 0;
    for client in clients.map(|client| runtime.spawn(client)) {
        done += runtime.block_on(client)??;
    }
    say(done as f64 / start.elapsed().as_secs_f64())
}
