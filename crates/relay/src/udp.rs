//! One UDP port of the guest on the host. Each peer gets a way into the guest of its own, so that the guest can tell them
//! apart and answers find back; it is forgotten when it is silent for long.

use std::{
    collections::{HashMap, hash_map},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UdpSocket,
    sync::mpsc,
    task::JoinSet,
    time::Instant,
};

use crate::{
    Duplex, GuestDatagrams,
    copy::with_buffer,
    door::Gate,
    shared::{Open, Shared, Target},
};

/// Datagrams of one peer that wait for the guest; what comes beyond them is lost, as on any network.
const QUEUE: usize = 64;

/// The way of one peer.
struct Flow {
    number: u64,
    target: Arc<Target>,
    queue: mpsc::Sender<Vec<u8>>,
    clock: Arc<Clock>,
}

/// When something was last said, in either direction.
struct Clock {
    start: Instant,
    milliseconds: AtomicU64,
}

impl Clock {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            milliseconds: AtomicU64::new(0),
        }
    }

    fn touch(&self) {
        let now = self.start.elapsed().as_millis() as u64;
        self.milliseconds.store(now, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }

    /// Returns when nothing was said for so long.
    async fn idle(&self, limit: Duration) {
        loop {
            let end = self.last() + limit;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// Serves one socket of the host until it is stopped; its peers' ways end with it.
pub(crate) async fn serve(shared: Arc<Shared>, gate: Arc<Gate>, socket: Arc<UdpSocket>) {
    let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
    let mut tasks: JoinSet<(SocketAddr, u64)> = JoinSet::new();
    let mut number = 0;
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            Some(ended) = tasks.join_next() => {
                if let Ok((peer, number)) = ended
                    && let hash_map::Entry::Occupied(flow) = flows.entry(peer)
                    && flow.get().number == number
                {
                    flow.remove();
                }
                continue;
            }
            ready = socket.readable() => if ready.is_err() {
                return;
            },
        }
        let Ok((datagram, peer)) = with_buffer(|buffer| {
            let (n, peer) = socket.try_recv_from(buffer)?;
            Ok::<_, io::Error>((buffer[..n].to_vec(), peer))
        }) else {
            // Nothing there after all, or what the network said about an earlier answer.
            continue;
        };
        let target = gate.target();
        let known = flows
            .get(&peer)
            .is_some_and(|flow| flow.target.listener.key() == target.listener.key());
        if !known {
            // A socket that is bound to one address was reached at it. One that is bound to all of them does not know, and
            // leaves the host's own addresses to the rules as well.
            let local = socket.local_addr().ok().map(|a| a.ip());
            if !shared.admits(&target.listener, peer, local) {
                continue;
            }
            flows.remove(&peer);
            if flows.len() >= shared.limits.udp_peers {
                let oldest = flows.iter().min_by_key(|(_, flow)| flow.clock.last());
                if let Some(oldest) = oldest.map(|(&peer, _)| peer) {
                    flows.remove(&oldest);
                }
            }
            let Some(open) = shared.open(&target) else {
                continue;
            };
            number += 1;
            let (queue, from_host) = mpsc::channel(QUEUE);
            let clock = Arc::new(Clock::new());
            let way = carry(
                open,
                from_host,
                Arc::clone(&socket),
                peer,
                Arc::clone(&clock),
            );
            tasks.spawn(async move {
                way.await;
                (peer, number)
            });
            flows.insert(
                peer,
                Flow {
                    number,
                    target,
                    queue,
                    clock,
                },
            );
        }
        if let Some(flow) = flows.get(&peer) {
            flow.clock.touch();
            // A full queue loses it.
            let _ = flow.queue.try_send(datagram);
        }
    }
}

/// Carries the datagrams of one peer, both ways, until it is silent or displaced.
async fn carry(
    open: Open,
    mut from_host: mpsc::Receiver<Vec<u8>>,
    host: Arc<UdpSocket>,
    peer: SocketAddr,
    clock: Arc<Clock>,
) {
    let shared = &open.shared;
    let tally = &open.target.tally;
    let guest = match shared.connector.udp(&open.target.listener).await {
        Ok(guest) => guest,
        Err(e) => return tally.failed(shared, &e),
    };
    tally.well(shared);
    let answer = |bytes: &[u8]| {
        clock.touch();
        // What the host's socket does not take now is lost.
        let _ = host.try_send_to(bytes, peer);
    };
    let talk = async {
        match guest {
            GuestDatagrams::Socket(guest) => {
                tokio::select! {
                    () = to_socket(&mut from_host, &guest) => Ok(()),
                    result = from_socket(&guest, &answer) => result,
                }
            }
            GuestDatagrams::Framed(guest) => {
                let (mut read, mut write) = tokio::io::split(guest);
                tokio::select! {
                    result = to_frames(&mut from_host, &mut write) => result,
                    result = from_frames(&mut read, &answer) => result,
                }
            }
        }
    };
    let result = tokio::select! {
        result = talk => result,
        () = clock.idle(shared.limits.udp_idle) => Ok(()),
    };
    if let Err(e) = result {
        tally.failed(shared, &e);
    }
}

async fn to_socket(from_host: &mut mpsc::Receiver<Vec<u8>>, guest: &UdpSocket) {
    while let Some(datagram) = from_host.recv().await {
        // An error is about an earlier datagram (nobody listened), or about the size of this one.
        let _ = guest.send(&datagram).await;
    }
}

async fn from_socket(guest: &UdpSocket, answer: &impl Fn(&[u8])) -> io::Result<()> {
    loop {
        guest.readable().await?;
        with_buffer(|buffer| {
            // The same: an error tells of an earlier datagram.
            if let Ok(n) = guest.try_recv(buffer) {
                answer(&buffer[..n]);
            }
        });
    }
}

async fn to_frames(
    from_host: &mut mpsc::Receiver<Vec<u8>>,
    guest: &mut tokio::io::WriteHalf<Box<dyn Duplex>>,
) -> io::Result<()> {
    while let Some(datagram) = from_host.recv().await {
        let Ok(length) = u16::try_from(datagram.len()) else {
            continue;
        };
        let mut frame = Vec::with_capacity(2 + datagram.len());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&datagram);
        guest.write_all(&frame).await?;
        guest.flush().await?;
    }
    Ok(())
}

async fn from_frames(
    guest: &mut tokio::io::ReadHalf<Box<dyn Duplex>>,
    answer: &impl Fn(&[u8]),
) -> io::Result<()> {
    let mut datagram = Vec::new();
    loop {
        let length = match guest.read_u16().await {
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        };
        datagram.resize(usize::from(length), 0);
        guest.read_exact(&mut datagram).await?;
        answer(&datagram);
    }
}
