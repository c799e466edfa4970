//! Copying between two streams, each direction on its own, so that a half that has ended leaves the other going.
//!
//! A stream that rests holds no memory: bytes are read into a buffer that all connections of the thread share, and only
//! what the other side does not take at once is kept.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::super::dial::BoxStream;

/// How much is moved at once.
const BUFFER: usize = 64 << 10;

/// How many buffers one direction may move before others get their turn.
const TURN: usize = 8;

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// Copies until both directions have ended, or either side is lost.
///
/// A side that is lost takes the other with it: the server gets a reset, the host the end of its stream.
pub(super) async fn both_ways(mut server: TcpStream, mut host: BoxStream) {
    let mut from_host = Direction::default();
    let mut from_server = Direction::default();
    let copied: io::Result<()> = std::future::poll_fn(|cx| {
        // Both get their turn, also when one of them waits.
        let up = from_host.poll(cx, Pin::new(&mut host), Pin::new(&mut server))?;
        let down = from_server.poll(cx, Pin::new(&mut server), Pin::new(&mut host))?;
        match (up, down) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await;
    if copied.is_err() {
        // Otherwise the server would see an orderly end of what was cut off. Fails only when it is gone already.
        let _ = server.set_zero_linger();
    }
}

/// One direction.
#[derive(Default)]
struct Direction {
    /// What was read and not yet written.
    kept: Vec<u8>,
    written: usize,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The reader is at its end; what is kept goes out, then the writer is shut down.
    Ending,
    Ended,
}

impl Direction {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        mut reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + ?Sized,
        W: AsyncWrite + ?Sized,
    {
        for _ in 0..TURN {
            while self.written < self.kept.len() {
                let rest = &self.kept[self.written..];
                let count = ready!(writer.as_mut().poll_write(cx, rest))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += count;
            }
            (self.kept, self.written) = (Vec::new(), 0);
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    let shut = ready!(writer.as_mut().poll_shutdown(cx));
                    self.state = State::Ended;
                    // One that is closed already has nothing to be told.
                    return Poll::Ready(match shut {
                        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
                        _ => Ok(()),
                    });
                }
                State::Open => {}
            }
            ready!(SHARED.with_borrow_mut(|buffer| {
                let mut space = ReadBuf::new(buffer);
                ready!(reader.as_mut().poll_read(cx, &mut space))?;
                let read = space.filled();
                if read.is_empty() {
                    self.state = State::Ending;
                    return Poll::Ready(Ok(()));
                }
                let count = match writer.as_mut().poll_write(cx, read) {
                    Poll::Ready(count) => count?,
                    Poll::Pending => 0,
                };
                self.kept.extend_from_slice(&read[count..]);
                Poll::Ready(io::Result::Ok(()))
            }))?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A server's connection and the host's end, with a copy between them.
    async fn pair() -> (
        TcpStream,
        tokio::net::UnixStream,
        tokio::task::JoinHandle<()>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (host, ours) = tokio::net::UnixStream::pair().unwrap();
        let copying = tokio::spawn(both_ways(client.unwrap(), Box::new(ours)));
        (accepted.unwrap().0, host, copying)
    }

    #[tokio::test]
    async fn a_half_that_ended_leaves_the_other_going() {
        let (mut server, mut host, copying) = pair().await;
        host.write_all(b"question").await.unwrap();
        host.shutdown().await.unwrap();
        let mut text = String::new();
        timeout(LIMIT, server.read_to_string(&mut text))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(text, "question");
        // REL-6: the reference ends the whole connection here.
        server.write_all(b"a late answer").await.unwrap();
        drop(server);
        let mut text = String::new();
        timeout(LIMIT, host.read_to_string(&mut text))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(text, "a late answer");
        timeout(LIMIT, copying).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn everything_arrives_and_a_slow_reader_holds_the_writer_up() {
        const SIZE: usize = 24 << 20;
        let (mut server, host, copying) = pair().await;
        let (mut host_read, mut host_write) = host.into_split();
        let pattern: Vec<u8> = (0..SIZE).map(|i| (i * 7 + i / 251) as u8).collect();
        let send = {
            let pattern = pattern.clone();
            async move {
                host_write.write_all(&pattern).await.unwrap();
                host_write.shutdown().await.unwrap();
            }
        };
        // The server sends back what it gets; nobody reads it until all was sent that fits.
        let echo = async move {
            let (mut read, mut write) = server.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let receive = async move {
            let mut bytes = Vec::new();
            host_read.read_to_end(&mut bytes).await.unwrap();
            bytes
        };
        let ((), (), received) = timeout(LIMIT, async { tokio::join!(send, echo, receive) })
            .await
            .unwrap();
        assert!(received == pattern);
        timeout(LIMIT, copying).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_host_that_is_lost_resets_the_server() {
        let (mut server, host, copying) = pair().await;
        // More than all buffers hold, so that a write is under way when the host goes.
        let writing = tokio::spawn(async move {
            let block = vec![1; 1 << 20];
            loop {
                if let Err(error) = server.write_all(&block).await {
                    return error;
                }
            }
        });
        host.readable().await.unwrap();
        drop(host);
        let error = timeout(LIMIT, writing).await.unwrap().unwrap();
        assert!(
            [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe].contains(&error.kind()),
            "{error}"
        );
        timeout(LIMIT, copying).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_server_that_resets_ends_the_stream_to_the_host() {
        let (server, mut host, copying) = pair().await;
        server.set_zero_linger().unwrap();
        drop(server);
        timeout(LIMIT, copying).await.unwrap().unwrap();
        let mut rest = Vec::new();
        // An end or a reset, but no waiting.
        let _ = timeout(LIMIT, host.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty());
    }
}
