//! Port 53 of one address of the machine, UDP and TCP.
//!
//! The address is on `lo`, but whoever can send a packet to the machine can send one to that address. What comes in
//! through the interface to the outside therefore goes to sockets of its own, bound to that interface, which nobody
//! reads: the kernel prefers them for it. Distributions, rooms and containers come in through other interfaces.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hostel_netlink::Routing;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::{Dns, Reply, message};

/// The most connections at one time.
const MAX_CONNECTIONS: usize = 128;

/// The most questions of one connection that wait for their answers.
const PIPELINE: usize = 16;

/// The most datagrams that wait for their answers.
const MAX_DATAGRAMS: usize = 512;

/// How long a connection may be silent, and how long a message may take in either direction.
const IDLE: Duration = Duration::from_secs(30);

/// The pause of an asker that asks too much, over TCP.
const SLOW_DOWN: Duration = Duration::from_millis(20);

/// How many connections wait to be taken.
const BACKLOG: u32 = 128;

/// Why names are not served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve names at {address} ({what})")]
pub(crate) struct ServeError {
    address: SocketAddr,
    what: &'static str,
    #[source]
    source: io::Error,
}

/// An interface that is not served: its name, and its number, which changes when another takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outside {
    name: String,
    index: u32,
}

/// Finds the interface to the outside; `None` when there is none.
pub(super) fn outside(name: Option<&str>) -> Option<Outside> {
    let link = Routing::connect().ok()?.link(name?).ok()??;
    Some(Outside {
        index: link.index,
        name: link.name,
    })
}

/// A server that runs until it is closed or dropped.
pub(super) struct Server {
    place: (SocketAddr, Option<Outside>),
    tasks: TaskTracker,
    /// Where nothing is read.
    _sinks: Option<(UdpSocket, TcpListener)>,
    running: DropGuard,
}

impl Server {
    /// Opens its sockets and serves. Needs CAP_NET_BIND_SERVICE and CAP_NET_RAW.
    pub(super) fn open(
        dns: &Arc<Dns>,
        address: SocketAddr,
        outside: Option<Outside>,
    ) -> Result<Self, ServeError> {
        let at = |what| {
            move |source| ServeError {
                address,
                what,
                source,
            }
        };
        let sinks = match &outside {
            Some(outside) => {
                let device = Some(outside.name.as_str());
                Some((
                    datagrams(address, device).map_err(at("UDP of the outside"))?,
                    connections(address, device, 1).map_err(at("TCP of the outside"))?,
                ))
            }
            None => None,
        };
        let datagrams = datagrams(address, None).map_err(at("UDP"))?;
        let connections = connections(address, None, BACKLOG).map_err(at("TCP"))?;
        let (tasks, token) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(token.clone().run_until_cancelled_owned(serve_datagrams(
            dns.clone(),
            Arc::new(datagrams),
            tasks.clone(),
            token.clone(),
        )));
        tasks.spawn(token.clone().run_until_cancelled_owned(serve_connections(
            dns.clone(),
            connections,
            tasks.clone(),
            token.clone(),
        )));
        Ok(Self {
            place: (address, outside),
            tasks,
            _sinks: sinks,
            running: token.drop_guard(),
        })
    }

    /// Returns where it serves, and where it does not.
    pub(super) fn place(&self) -> (SocketAddr, Option<Outside>) {
        self.place.clone()
    }

    /// Ends it; its sockets are closed then.
    pub(super) async fn close(self) {
        drop(self.running);
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn datagrams(address: SocketAddr, device: Option<&str>) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.bind_device(device.map(str::as_bytes))?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

fn connections(address: SocketAddr, device: Option<&str>, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind_device(device.map(str::as_bytes))?;
    socket.bind(address)?;
    socket.listen(backlog)
}

async fn serve_datagrams(
    dns: Arc<Dns>,
    socket: Arc<UdpSocket>,
    tasks: TaskTracker,
    token: CancellationToken,
) {
    let waiting = Arc::new(Semaphore::new(MAX_DATAGRAMS));
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            // What an earlier answer came to.
            tokio::task::yield_now().await;
            continue;
        };
        // Too much: as if it were lost on the way.
        if from.port() == 0 || !dns.allows(from.ip()) {
            continue;
        }
        let Ok(permit) = waiting.clone().try_acquire_owned() else {
            continue;
        };
        let question = buffer[..length].to_vec();
        let (dns, socket) = (dns.clone(), socket.clone());
        tasks.spawn(token.clone().run_until_cancelled_owned(async move {
            let _permit = permit;
            if let Reply::Message(answer) = dns.ask(&question, false).await
                && socket.send_to(&answer, from).await.is_err()
            {
                // Longer than any datagram, perhaps; or the asker is gone.
                let _ = socket
                    .send_to(&message::server_failure(&question), from)
                    .await;
            }
        }));
    }
}

async fn serve_connections(
    dns: Arc<Dns>,
    listener: TcpListener,
    tasks: TaskTracker,
    token: CancellationToken,
) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            // Out of descriptors, perhaps: others have to end first.
            slow_down().await;
            continue;
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else {
            continue;
        };
        let dns = dns.clone();
        tasks.spawn(token.clone().run_until_cancelled_owned(async move {
            let _permit = permit;
            serve_connection(dns, stream, from).await;
        }));
    }
}

async fn slow_down() {
    tokio::time::sleep_until(Instant::now() + SLOW_DOWN).await;
}

/// Serves one connection: questions may follow each other without waiting, answers come as they are ready (RFC 7766).
async fn serve_connection(dns: Arc<Dns>, stream: TcpStream, from: SocketAddr) {
    let (read, write) = stream.into_split();
    let (replies, answers) = mpsc::channel(PIPELINE);
    tokio::join!(
        questions(dns, read, from, replies),
        write_answers(write, answers)
    );
}

async fn questions(
    dns: Arc<Dns>,
    mut read: OwnedReadHalf,
    from: SocketAddr,
    replies: mpsc::Sender<Vec<u8>>,
) {
    let mut asked = tokio::task::JoinSet::new();
    loop {
        while asked.len() >= PIPELINE {
            asked.join_next().await;
        }
        let question = async {
            let length = read.read_u16().await?;
            let mut question = vec![0; usize::from(length)];
            read.read_exact(&mut question).await?;
            io::Result::Ok(question)
        };
        let question = tokio::select! {
            question = timeout(IDLE, question) => question,
            () = replies.closed() => return,
        };
        let Ok(Ok(question)) = question else {
            break;
        };
        while !dns.allows(from.ip()) {
            slow_down().await;
        }
        let (dns, replies) = (dns.clone(), replies.clone());
        asked.spawn(async move {
            if let Reply::Message(answer) = dns.ask(&question, true).await {
                // A connection that broke takes no more.
                let _ = replies.send(answer).await;
            }
        });
    }
    // What was asked is answered, also when nothing more will be asked.
    asked.join_all().await;
}

async fn write_answers(mut write: OwnedWriteHalf, mut answers: mpsc::Receiver<Vec<u8>>) {
    while let Some(answer) = answers.recv().await {
        let Ok(length) = u16::try_from(answer.len()) else {
            continue;
        };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(answer);
        if !matches!(timeout(IDLE, write.write_all(&framed)).await, Ok(Ok(()))) {
            return;
        }
    }
}
