//! What a question costs: at home, through the resolver, and through the gateway's sockets, next to asking the same server
//! directly. Everything is on loopback; `cargo bench -p hostel-dns`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people at a terminal"
)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hostel_dns::{Gateway, Names, Resolver, Settings};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

const QUESTIONS: u32 = 20_000;
const AT_ONCE: u32 = 64;

fn query(name: &str) -> Vec<u8> {
    let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.bytes());
    }
    out.extend([0, 0, 1, 0, 1]);
    out
}

/// Answers everything at once with what was asked.
async fn upstream() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            buffer[2] |= 0x80;
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    });
    address
}

async fn direct(to: SocketAddr, message: &[u8]) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(to).await.unwrap();
    socket.send(message).await.unwrap();
    socket.recv(&mut [0; 1500]).await.unwrap();
}

/// Runs a question many times, one after the other and side by side.
async fn measure<F: Future>(what: &str, ask: impl Fn() -> F) {
    let start = Instant::now();
    let mut times = Vec::new();
    for _ in 0..QUESTIONS / 10 {
        let start = Instant::now();
        ask().await;
        times.push(start.elapsed());
    }
    let alone = f64::from(QUESTIONS / 10) / start.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 100];
    let start = Instant::now();
    for _ in 0..QUESTIONS / AT_ONCE {
        join_all((0..AT_ONCE).map(|_| ask())).await;
    }
    let together = f64::from(QUESTIONS) / start.elapsed().as_secs_f64();
    println!(
        "{what:<28} {:>9.1?} {:>9.1?} {alone:>12.0} {together:>12.0}",
        at(50),
        at(99)
    );
}

#[tokio::main]
async fn main() {
    let server = upstream().await;
    let dir = tempfile::tempdir().unwrap();
    let resolv_conf = dir.path().join("resolv.conf");
    fs_err::write(&resolv_conf, "nameserver 127.0.0.1\n").unwrap();
    let resolver = Resolver::new(Settings {
        resolv_conf,
        hosts: dir.path().join("hosts"),
        port: server.port(),
        budget: Duration::from_secs(5),
        per_second: u32::MAX,
        ..Settings::default()
    });
    resolver.set_names(&Names {
        vm: vec![[172, 19, 132, 144].into()],
        ..Names::default()
    });
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let gateway = udp.local_addr().unwrap();
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let sockets = Gateway {
        udp,
        tcp,
        sources: vec!["127.0.0.0/8".parse().unwrap()],
    };
    let serving = resolver.clone();
    let stop = CancellationToken::new();
    let token = stop.clone();
    let task = tokio::spawn(async move { serving.serve(sockets, token).await });

    println!(
        "{:<28} {:>9} {:>9} {:>12} {:>12}",
        "", "median", "99 %", "per second", "64 at once"
    );
    let (house, world) = (query("vm.hostel"), query("www.example"));
    measure("directly", || direct(server, &world)).await;
    measure("forwarded", || resolver.answer(&world, false)).await;
    measure("at home", || resolver.answer(&house, false)).await;
    // Beyond its rate a source gets no answers, so this one asks slowly and few.
    let start = Instant::now();
    for _ in 0..500 {
        direct(gateway, &world).await;
    }
    println!(
        "{:<28} {:>9.1?}",
        "forwarded by the gateway",
        start.elapsed() / 500
    );
    stop.cancel();
    task.await.unwrap();
}
