//! Asks the host's resolvers.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    host::Upstreams,
    message::{Query, Reply},
};

/// How long a server that failed twice in a row comes after all others.
const DEAD_FOR: Duration = Duration::from_secs(30);
/// Longer queries do not fit every path as one datagram.
const MAX_UDP_QUERY: usize = 1232;
/// How many messages that are no answer a socket takes before it is given up: somebody floods it.
const MAX_FOREIGN: usize = 1000;
/// Bounds of the time after which a datagram is sent again.
const RESEND: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(1500));
/// How many datagrams one server gets for one query.
const MAX_SENT: u32 = 5;

/// How a server did of late.
#[derive(Clone, Copy, Debug, Default)]
struct Health {
    failures: u32,
    dead_until: Option<Instant>,
}

/// Knows which servers answer.
#[derive(Debug, Default)]
pub(crate) struct Forwarder {
    health: Mutex<HashMap<SocketAddr, Health>>,
    turn: AtomicUsize,
}

impl Forwarder {
    /// Asks one server after the other, the next one when one fails or stays silent for its share of the time; whoever
    /// answers first is taken. `None` when nobody answers within `budget`.
    ///
    /// Cancel safe: sockets are closed.
    pub(crate) async fn ask(
        &self,
        query: &Query,
        tcp: bool,
        upstreams: &Upstreams,
        budget: Duration,
    ) -> Option<Vec<u8>> {
        let mut servers = self.order(upstreams).into_iter();
        let deadline = Instant::now() + budget;
        let count = servers.len().max(1) as u32;
        let share = upstreams.timeout.min(budget * 9 / 10 / count);
        let resend = (share / upstreams.attempts).clamp(RESEND.0, RESEND.1);

        let mut silent: Vec<(SocketAddr, Instant)> = Vec::new();
        let mut pending = FuturesUnordered::new();
        let mut soft = None;
        let mut turn = Instant::now();
        let answer = loop {
            if pending.is_empty() || turn <= Instant::now() {
                if let Some(server) = servers.next() {
                    let now = Instant::now();
                    silent.push((server, now));
                    turn = now + share;
                    pending.push(async move { (server, one(query, tcp, server, resend).await) });
                } else if pending.is_empty() {
                    break soft;
                }
            }
            let last = servers.len() == 0;
            // With a poor answer in hand the silent ones get no more than their share.
            let patient = last && soft.is_none();
            let until = if patient {
                deadline
            } else {
                turn.min(deadline)
            };
            tokio::select! {
                Some((server, result)) = pending.next() => {
                    silent.retain(|(other, _)| *other != server);
                    self.note(server, result.is_ok());
                    match result {
                        Ok(Heard::Answer(answer)) => break Some(answer),
                        Ok(Heard::Cannot(answer)) => soft = soft.or(Some(answer)),
                        Err(error) => tracing::debug!(%server, %error, "a resolver failed"),
                    }
                    if !last {
                        turn = Instant::now();
                    }
                }
                () = sleep_until(until) => {
                    if last || until == deadline {
                        break soft;
                    }
                }
            }
        };
        for (server, since) in silent {
            if since.elapsed() >= share {
                self.note(server, false);
            }
        }
        answer
    }

    /// Returns the servers in the order in which to ask them.
    fn order(&self, upstreams: &Upstreams) -> Vec<SocketAddr> {
        let mut servers = upstreams.servers.clone();
        if upstreams.rotate && !servers.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let count = servers.len();
            servers.rotate_left(turn % count);
        }
        let now = Instant::now();
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.retain(|server, _| upstreams.servers.contains(server));
        servers.sort_by_key(|server| {
            health
                .get(server)
                .and_then(|health| health.dead_until)
                .is_some_and(|until| until > now)
        });
        servers
    }

    fn note(&self, server: SocketAddr, answered: bool) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            health.remove(&server);
            return;
        }
        let health = health.entry(server).or_default();
        health.failures = health.failures.saturating_add(1);
        if health.failures >= 2 {
            health.dead_until = Some(Instant::now() + DEAD_FOR);
        }
    }
}

/// What a server said.
enum Heard {
    Answer(Vec<u8>),
    /// That it cannot answer; another one may.
    Cannot(Vec<u8>),
}

/// Asks one server until it answers or fails; the caller bounds the time.
async fn one(query: &Query, tcp: bool, server: SocketAddr, resend: Duration) -> io::Result<Heard> {
    if !tcp && query.bytes().len() <= MAX_UDP_QUERY {
        return Ok(match by_udp(query, server, resend).await? {
            Reply::Whole(answer) | Reply::Cut(answer) => Heard::Answer(answer),
            Reply::Cannot(answer) => Heard::Cannot(answer),
        });
    }
    match by_tcp(query, server).await {
        Ok(Reply::Whole(answer) | Reply::Cut(answer)) => Ok(Heard::Answer(answer)),
        Ok(Reply::Cannot(answer)) => Ok(Heard::Cannot(answer)),
        // There are resolvers without TCP; what fits a datagram can be had from them.
        Err(_) => Ok(match by_udp(query, server, resend).await? {
            Reply::Whole(answer) => Heard::Answer(answer),
            Reply::Cut(answer) | Reply::Cannot(answer) => Heard::Cannot(answer),
        }),
    }
}

async fn by_udp(query: &Query, server: SocketAddr, resend: Duration) -> io::Result<Reply> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Its own socket, so its own port, which the kernel chooses at random: a forger has to guess it along with the id.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let id = random_id()?;
    let message = query.with_id(id);
    // One more than the asker takes: what is longer arrives longer, and is seen to be cut.
    let mut buffer = vec![0; query.udp_limit() + 1];
    let mut sent = 0;
    let mut foreign = 0;
    let mut due = Instant::now();
    loop {
        if sent < MAX_SENT && Instant::now() >= due {
            socket.send(&message).await?;
            sent += 1;
            due = Instant::now() + resend;
        }
        let wait = if sent < MAX_SENT {
            due
        } else {
            Instant::now() + resend
        };
        let Ok(received) = timeout_at(wait, socket.recv(&mut buffer)).await else {
            continue;
        };
        if let Some(reply) = query.judge(id, &buffer[..received?]) {
            return Ok(reply);
        }
        foreign += 1;
        if foreign > MAX_FOREIGN {
            return Err(io::Error::other("flooded with messages that are no answer"));
        }
    }
}

async fn by_tcp(query: &Query, server: SocketAddr) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let id = random_id()?;
    let message = query.with_id(id);
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], &message].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    query
        .judge(id, &answer)
        .ok_or_else(|| io::Error::other("the message is no answer to the question"))
}

fn random_id() -> io::Result<u16> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(id))
}
