//! Serves UDP and TCP at the gateway's address. Only the house is served: no open resolver.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hostel_model::firewall::Source;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Resolver, limit::Sources};

/// The most questions from one source in a second; two seconds' worth may come at once.
const PER_SOURCE: u32 = 500;
/// The most datagrams that wait for their answer.
const MAX_DATAGRAMS: usize = 256;
/// The most connections, and of one source.
const MAX_CONNECTIONS: usize = 128;
const MAX_CONNECTIONS_OF_ONE: usize = 32;
/// How long a connection may be idle, and take for a message.
const IDLE: Duration = Duration::from_secs(10);
/// The longest query by UDP; nobody's is longer.
const MAX_QUERY: usize = 4096;
/// How long to wait when a socket fails, such as when the system has no descriptors left.
const BREATH: Duration = Duration::from_millis(100);

/// The gateway's sockets and whom they serve.
#[derive(Debug)]
pub struct Gateway {
    /// Bound to the gateway's address, not to all addresses: answers leave from there.
    pub udp: UdpSocket,
    /// Bound to the same address.
    pub tcp: TcpListener,
    /// Who gets answers: the networks behind the gateway.
    pub sources: Vec<Source>,
}

pub(crate) async fn serve(resolver: &Resolver, gateway: Gateway, stop: CancellationToken) {
    let limits = Arc::new(Mutex::new(Sources::new(PER_SOURCE, Instant::now())));
    let door = Door {
        resolver: resolver.clone(),
        sources: gateway.sources.into(),
        limits,
    };
    let both = async {
        tokio::join!(
            datagrams(&door, gateway.udp),
            connections(&door, gateway.tcp)
        )
    };
    tokio::select! {
        () = stop.cancelled() => {}
        _ = both => {}
    }
}

/// Who gets in, and to whom.
#[derive(Clone, Debug)]
struct Door {
    resolver: Resolver,
    sources: Arc<[Source]>,
    limits: Arc<Mutex<Sources>>,
}

impl Door {
    fn is_open_to(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.sources.iter().any(|source| source.contains(address))
    }

    fn takes(&self, address: IpAddr) -> bool {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.take(address.to_canonical(), Instant::now())
    }
}

async fn datagrams(door: &Door, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = tasks.join_next() => continue,
        };
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "the gateway's resolver cannot receive");
                breathe().await;
                continue;
            }
        };
        let known = door.is_open_to(from.ip()) && door.takes(from.ip());
        if !known || tasks.len() >= MAX_DATAGRAMS {
            continue;
        }
        let message = buffer[..length].to_vec();
        let (resolver, socket) = (door.resolver.clone(), Arc::clone(&socket));
        tasks.spawn(async move {
            if let Some(answer) = resolver.answer(&message, false).await {
                // Lost datagrams are the asker's daily bread.
                let _ = socket.send_to(&answer, from).await;
            }
        });
    }
}

/// Does not ask at once again for what failed.
async fn breathe() {
    let _ = timeout(BREATH, std::future::pending::<()>()).await;
}

async fn connections(door: &Door, listener: TcpListener) {
    let mut tasks: JoinSet<SocketAddr> = JoinSet::new();
    let mut open: Vec<SocketAddr> = Vec::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    let of_one = open.iter().filter(|other| other.ip() == from.ip()).count();
                    let room = open.len() < MAX_CONNECTIONS && of_one < MAX_CONNECTIONS_OF_ONE;
                    if door.is_open_to(from.ip()) && room {
                        open.push(from);
                        let door = door.clone();
                        tasks.spawn(async move {
                            let _ = connection(&door, stream, from.ip()).await;
                            from
                        });
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the gateway's resolver cannot take a connection");
                    breathe().await;
                }
            },
            Some(Ok(from)) = tasks.join_next() => open.retain(|other| *other != from),
        }
    }
}

async fn connection(door: &Door, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
    loop {
        let message = timeout(IDLE, read_message(&mut stream)).await??;
        if !door.takes(from) {
            return Ok(());
        }
        let Some(answer) = door.resolver.answer(&message, true).await else {
            return Ok(());
        };
        let length = (answer.len() as u16).to_be_bytes();
        let whole = [&length[..], &answer].concat();
        timeout(IDLE, stream.write_all(&whole)).await??;
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
