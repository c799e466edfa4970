//! Datagrams over a stream: each has its length before it, two bytes, big-endian.

use std::cell::RefCell;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::super::dial::BoxStream;

/// A flow that is silent in both directions for so long is over.
const IDLE: Duration = Duration::from_secs(180);

/// How much of the host's stream is read at once.
const BUFFER: usize = 16 << 10;

/// The largest datagram that the length can tell.
const LARGEST: usize = u16::MAX as usize;

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; 2 + LARGEST]);
}

/// Carries datagrams both ways until the host ends the stream, or nothing came for [`IDLE`].
pub(super) async fn carry(socket: UdpSocket, host: BoxStream) {
    let (read, write) = tokio::io::split(host);
    let last = Last::now();
    tokio::select! {
        _ = to_guest(&socket, read, &last) => {}
        _ = to_host(&socket, write, &last) => {}
        () = silence(&last, IDLE) => {}
    }
}

/// When the last datagram came.
struct Last(Mutex<Instant>);

impl Last {
    fn now() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn get(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns when nothing has happened for a time.
async fn silence(last: &Last, idle: Duration) {
    loop {
        let until = last.get() + idle;
        if Instant::now() >= until {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

async fn to_guest(socket: &UdpSocket, host: impl AsyncRead + Unpin, last: &Last) -> io::Result<()> {
    let mut host = BufReader::with_capacity(BUFFER, host);
    let mut datagram = Vec::new();
    loop {
        let length = host.read_u16().await?;
        datagram.resize(usize::from(length), 0);
        host.read_exact(&mut datagram).await?;
        last.note();
        // A datagram may be lost: to one that does not listen (yet), too large, or when buffers are full.
        let _ = socket.send(&datagram).await;
        if datagram.capacity() > BUFFER {
            datagram = Vec::new();
        }
    }
}

async fn to_host(
    socket: &UdpSocket,
    mut host: impl AsyncWrite + Unpin,
    last: &Last,
) -> io::Result<()> {
    loop {
        socket.readable().await?;
        let framed = SHARED.with_borrow_mut(|buffer| {
            let length = socket.try_recv(&mut buffer[2..])?;
            let told = u16::try_from(length).map_err(io::Error::other)?;
            buffer[..2].copy_from_slice(&told.to_be_bytes());
            io::Result::Ok(buffer[..2 + length].to_vec())
        });
        match framed {
            Ok(framed) => {
                last.note();
                host.write_all(&framed).await?;
            }
            // What an earlier datagram came to, such as "nobody listens", is told here; it says nothing about the next.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::net::UnixStream;
    use tokio::time::timeout;

    const LIMIT: Duration = Duration::from_secs(20);

    async fn flow() -> (UdpSocket, UnixStream, tokio::task::JoinHandle<()>) {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(server.local_addr().unwrap()).await.unwrap();
        let (host, ours) = UnixStream::pair().unwrap();
        (server, host, tokio::spawn(carry(socket, Box::new(ours))))
    }

    async fn frame(host: &mut UnixStream) -> Vec<u8> {
        let length = timeout(LIMIT, host.read_u16()).await.unwrap().unwrap();
        let mut bytes = vec![0; length.into()];
        host.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn datagrams_keep_their_borders_in_both_directions() {
        let (server, mut host, carrying) = flow().await;
        let large = vec![9; 9000];
        for datagram in [&b"one"[..], b"", &large] {
            let mut framed = u16::try_from(datagram.len())
                .unwrap()
                .to_be_bytes()
                .to_vec();
            framed.extend(datagram);
            // In two pieces: the border of a read is none of a datagram.
            host.write_all(&framed[..1]).await.unwrap();
            tokio::task::yield_now().await;
            host.write_all(&framed[1..]).await.unwrap();
            let mut bytes = vec![0; 10_000];
            let (length, from) = timeout(LIMIT, server.recv_from(&mut bytes))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(&bytes[..length], datagram);
            server.send_to(datagram, from).await.unwrap();
            assert_eq!(frame(&mut host).await, datagram);
        }
        drop(host);
        timeout(LIMIT, carrying).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_lost_ends_nothing() {
        let (server, mut host, carrying) = flow().await;
        let address = server.local_addr().unwrap();
        drop(server);
        // Nobody listens: the refusal comes back to the socket, and the flow goes on.
        for _ in 0..3 {
            host.write_all(&[0, 1, b'x']).await.unwrap();
            tokio::task::yield_now().await;
        }
        let server = UdpSocket::bind(address).await.unwrap();
        let mut bytes = [0; 10];
        // Datagrams that were under way may arrive, too.
        let arrived = async {
            loop {
                host.write_all(&[0, 1, b'y']).await.unwrap();
                let received = timeout(Duration::from_millis(100), server.recv(&mut bytes)).await;
                if received.is_ok_and(|r| r.is_ok()) && bytes[0] == b'y' {
                    return;
                }
            }
        };
        timeout(LIMIT, arrived).await.unwrap();
        assert!(!carrying.is_finished());
    }

    #[tokio::test]
    async fn a_silent_flow_is_over() {
        let (last, start) = (Last::now(), Instant::now());
        let idle = Duration::from_millis(30);
        timeout(LIMIT, silence(&last, idle)).await.unwrap();
        assert!(start.elapsed() >= idle);
    }
}
