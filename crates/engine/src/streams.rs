//! Raw streams: tokens that wait to be claimed, and the copying between the two ends of a stream.

use std::{
    collections::HashMap,
    fmt,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hostel_model::{ErrorCode, Failure, Token};
use hostel_proto::limits::MAX_UNCLAIMED_STREAMS;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    sync::oneshot,
};

/// The size of a copy buffer, one for each direction of each stream, in bytes.
const BUFFER: usize = 64 << 10;

/// A byte stream to the guest.
pub trait RawStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> RawStream for T {}

/// A connection from a client that has sent its token.
#[derive(Debug)]
pub struct ClientStream {
    /// The connection.
    pub stream: UnixStream,
    /// The descriptor that came with the token.
    pub descriptor: Option<OwnedFd>,
}

/// A connection from the guest that has sent its token.
pub type GuestStream = Box<dyn RawStream>;

/// Tokens that wait for the connection that claims them.
pub struct Broker<S> {
    waiting: Mutex<HashMap<Token, oneshot::Sender<S>>>,
}

/// A token that was given out. Dropping it makes the token worthless.
pub struct Claim<S> {
    broker: Arc<Broker<S>>,
    token: Token,
    arrival: oneshot::Receiver<S>,
}

impl<S> Default for Broker<S> {
    fn default() -> Self {
        Self {
            waiting: Mutex::new(HashMap::new()),
        }
    }
}

impl<S> fmt::Debug for Broker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broker({} waiting)", self.lock().len())
    }
}

impl<S> Broker<S> {
    /// Makes a token; it lives as long as the claim.
    pub fn expect(self: &Arc<Self>) -> Result<Claim<S>, Failure> {
        let token = Token::new_random();
        let (sender, arrival) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.len() >= MAX_UNCLAIMED_STREAMS {
            return Err(Failure::new(
                ErrorCode::Busy,
                format!("{MAX_UNCLAIMED_STREAMS} streams wait to be claimed already"),
            ));
        }
        waiting.insert(token, sender);
        drop(waiting);
        Ok(Claim {
            broker: Arc::clone(self),
            token,
            arrival,
        })
    }

    /// Hands a connection to whoever waits for its token; gives it back when nobody does.
    pub fn deliver(&self, token: &Token, stream: S) -> Result<(), S> {
        match self.lock().remove(token) {
            Some(sender) => sender.send(stream),
            None => Err(stream),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Token, oneshot::Sender<S>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Claim<S> {
    /// Returns the token to give out.
    pub fn token(&self) -> Token {
        self.token
    }

    /// Waits for the connection; `None` when it does not come in time.
    pub async fn claimed(mut self, timeout: Duration) -> Option<S> {
        tokio::time::timeout(timeout, &mut self.arrival)
            .await
            .ok()?
            .ok()
    }
}

impl<S> Drop for Claim<S> {
    fn drop(&mut self) {
        self.broker.lock().remove(&self.token);
    }
}

/// Which way a stream's end of data is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Towards the command, or both ways: the end of what the client sends is passed on.
    TwoWay,
    /// From the command only: a client that hangs up ends the stream at once.
    FromGuest,
}

/// Copies both ways until both are at their end or one breaks; an end of data on one side is passed on to the other.
///
/// A broken stream is a normal end: the client or the session went away, and their events say so.
pub async fn pump(client: UnixStream, mut guest: GuestStream, flow: Flow) {
    let mut client = client;
    match flow {
        Flow::TwoWay => {
            let _ =
                tokio::io::copy_bidirectional_with_sizes(&mut client, &mut guest, BUFFER, BUFFER)
                    .await;
        }
        Flow::FromGuest => {
            let mut buffer = vec![0; BUFFER];
            let mut ignored = [0; 512];
            let mut open = true;
            loop {
                tokio::select! {
                    read = guest.read(&mut buffer) => match read {
                        Ok(0) | Err(_) => break,
                        Ok(n) => if client.write_all(&buffer[..n]).await.is_err() { break },
                    },
                    read = client.read(&mut ignored), if open => match read {
                        // The end of a write half that the client does not need; a real hang-up closes both.
                        Ok(0) if !hung_up(&client) => open = false,
                        Ok(0) | Err(_) => break,
                        Ok(_) => {}
                    },
                }
            }
            let _ = client.shutdown().await;
        }
    }
}

/// Tells whether the peer of a unix socket has closed both directions.
fn hung_up(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = stream.as_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
        && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_token_is_worth_one_connection() {
        let broker = Arc::new(Broker::<u32>::default());
        let claim = broker.expect().unwrap();
        let token = claim.token();
        assert_eq!(broker.deliver(&Token::new_random(), 1), Err(1));
        assert_eq!(broker.deliver(&token, 2), Ok(()));
        assert_eq!(broker.deliver(&token, 3), Err(3));
        assert_eq!(claim.claimed(SOON).await, Some(2));
    }

    #[tokio::test]
    async fn an_unclaimed_token_expires_and_is_forgotten() {
        let broker = Arc::new(Broker::<u32>::default());
        let claim = broker.expect().unwrap();
        let token = claim.token();
        assert_eq!(claim.claimed(Duration::from_millis(1)).await, None);
        assert_eq!(broker.deliver(&token, 1), Err(1));
        assert!(broker.lock().is_empty());
    }

    #[test]
    fn the_number_of_waiting_tokens_is_limited() {
        let broker = Arc::new(Broker::<u32>::default());
        let held: Vec<_> = (0..MAX_UNCLAIMED_STREAMS)
            .map(|_| broker.expect().unwrap())
            .collect();
        assert!(broker.expect().is_err());
        drop(held);
        assert!(broker.expect().is_ok());
    }

    #[tokio::test]
    async fn ends_of_data_are_passed_on_both_ways() {
        let (mut client, near) = UnixStream::pair().unwrap();
        let (far, mut guest) = UnixStream::pair().unwrap();
        let copying = tokio::spawn(pump(near, Box::new(far), Flow::TwoWay));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = Vec::new();
        guest.read_to_end(&mut text).await.unwrap();
        assert_eq!(text, b"question");
        guest.write_all(b"answer").await.unwrap();
        drop(guest);
        text.clear();
        client.read_to_end(&mut text).await.unwrap();
        assert_eq!(text, b"answer");
        tokio::time::timeout(SOON, copying).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_output_ends_when_the_client_hangs_up_but_not_when_it_half_closes() {
        let (mut client, near) = UnixStream::pair().unwrap();
        let (far, mut guest) = UnixStream::pair().unwrap();
        let copying = tokio::spawn(pump(near, Box::new(far), Flow::FromGuest));
        client.shutdown().await.unwrap();
        guest.write_all(b"still here").await.unwrap();
        let mut text = [0; 10];
        client.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"still here");
        drop(client);
        // The next write finds the client gone.
        guest.write_all(b"x").await.unwrap();
        tokio::time::timeout(SOON, copying).await.unwrap().unwrap();
        let (client, near) = UnixStream::pair().unwrap();
        let (far, mut guest) = UnixStream::pair().unwrap();
        let copying = tokio::spawn(pump(near, Box::new(far), Flow::FromGuest));
        drop(client);
        tokio::time::timeout(SOON, copying).await.unwrap().unwrap();
        assert_eq!(guest.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
