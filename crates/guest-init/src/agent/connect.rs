//! Connections that the host asks for: one end in the guest's network, the other a raw stream to the host.
//!
//! The way in to what the host cannot reach by itself: listeners on `::1`, on a room's own loopback, and everything when the
//! host has no route to the machine. A connection belongs to no call: it lives until both directions have ended or one
//! side is lost.

mod copy;
mod datagrams;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hostel_model::{ErrorCode, Failure, Token};
use hostel_proto::v1;
use rustix::io::Errno;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::dial::Dialer;
use super::netns::{self, Rooms};

/// The most connections at one time. Each holds two descriptors; one that rests holds no buffer.
const MAX_CONNECTIONS: usize = 16_384;

/// The most flows of datagrams at one time.
const MAX_FLOWS: usize = 1024;

/// How long a server may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// Makes connections, and keeps count of them.
pub(crate) struct Connector {
    dialer: Dialer,
    rooms: Arc<Rooms>,
    connections: Arc<Semaphore>,
    flows: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// What is asked for, checked.
#[derive(Debug)]
struct Wanted {
    room: String,
    datagrams: bool,
    address: SocketAddr,
    token: Token,
}

impl Connector {
    /// Makes one that has no connections.
    pub(crate) fn new(dialer: Dialer, rooms: Arc<Rooms>) -> Arc<Self> {
        Arc::new(Self {
            dialer,
            rooms,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            flows: Arc::new(Semaphore::new(MAX_FLOWS)),
            tasks: TaskTracker::new(),
        })
    }

    /// Connects in the guest, then to the host, and copies from then on. When the future is dropped nothing is left.
    pub(crate) async fn connect(&self, request: v1::ConnectRequest) -> Result<(), Failure> {
        let wanted = Wanted::parse(&request)?;
        if wanted.datagrams {
            let permit = permit(&self.flows, MAX_FLOWS, "flows of datagrams")?;
            let socket = self.datagram_socket(&wanted).await?;
            let host = self.claim(&wanted.token).await?;
            self.tasks.spawn(async move {
                datagrams::carry(socket, host).await;
                drop(permit);
            });
        } else {
            let permit = permit(&self.connections, MAX_CONNECTIONS, "connections")?;
            let server = self.stream(&wanted).await?;
            let host = self.claim(&wanted.token).await?;
            self.tasks.spawn(async move {
                copy::both_ways(server, host).await;
                drop(permit);
            });
        }
        Ok(())
    }

    async fn claim(&self, token: &Token) -> Result<super::dial::BoxStream, Failure> {
        let claimed = timeout(CONNECT, self.dialer.claim(token)).await;
        claimed
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| {
                Failure::new(
                    ErrorCode::Internal,
                    format!("cannot connect the stream to the host: {e}"),
                )
            })
    }

    async fn stream(&self, wanted: &Wanted) -> Result<TcpStream, Failure> {
        let address = wanted.address;
        let socket = self
            .open(&wanted.room, move || match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            })
            .await?;
        let connected = timeout(CONNECT, socket.connect(address)).await;
        let stream = connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| refusal(address, &e))?;
        // What the host sends comes in pieces already; it must not wait for more. A socket without it is only slower.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    async fn datagram_socket(&self, wanted: &Wanted) -> Result<UdpSocket, Failure> {
        let address = wanted.address;
        let socket = self
            .open(&wanted.room, move || {
                let any: SocketAddr = match address {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = std::net::UdpSocket::bind(any)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
            .await?;
        let connected = async {
            let socket = UdpSocket::from_std(socket)?;
            socket.connect(address).await?;
            Ok(socket)
        };
        connected.await.map_err(|e| refusal(address, &e))
    }

    /// Opens a socket in the machine's network namespace, or that of a room.
    async fn open<T: Send + 'static>(
        &self,
        room: &str,
        open: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let opened = if room.is_empty() {
            open()
        } else {
            let namespace = self.rooms.get(room).ok_or_else(|| no_room(room))?;
            tokio::task::spawn_blocking(move || netns::within(&namespace, open))
                .await
                .map_err(|e| Failure::from_error(ErrorCode::Internal, &e))?
        };
        opened.map_err(|e| {
            Failure::new(
                ErrorCode::Internal,
                format!("cannot open a socket in the guest: {e}"),
            )
        })
    }
}

impl Wanted {
    fn parse(request: &v1::ConnectRequest) -> Result<Self, Failure> {
        let invalid = |what: String| Failure::new(ErrorCode::Protocol, what);
        let datagrams = match request.protocol.as_str() {
            "tcp" => false,
            "udp" => true,
            other => {
                return Err(invalid(format!(
                    "`{}` is neither tcp nor udp",
                    shown(other)
                )));
            }
        };
        let address: IpAddr = request
            .address
            .parse()
            .map_err(|_| invalid(format!("`{}` is not an address", shown(&request.address))))?;
        // To the kernel the unspecified address is the machine itself; saying so makes messages clear.
        let address = match address.to_canonical() {
            IpAddr::V4(a) if a.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(a) if a.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            other => other,
        };
        let port = u16::try_from(request.port)
            .ok()
            .filter(|p| *p != 0)
            .ok_or_else(|| invalid(format!("{} is not a port", request.port)))?;
        let token = Token::from_bytes(&request.token)
            .ok_or_else(|| invalid("a token does not have 32 bytes".to_owned()))?;
        Ok(Self {
            room: request.room.clone(),
            datagrams,
            address: SocketAddr::new(address, port),
            token,
        })
    }
}

fn permit(
    semaphore: &Arc<Semaphore>,
    most: usize,
    what: &str,
) -> Result<OwnedSemaphorePermit, Failure> {
    semaphore.clone().try_acquire_owned().map_err(|_| {
        Failure::new(
            ErrorCode::Busy,
            format!("{most} {what} into the guest are open already"),
        )
    })
}

fn no_room(id: &str) -> Failure {
    Failure::new(
        ErrorCode::DistroStopped,
        format!("distribution {} has no network of its own now", shown(id)),
    )
}

/// Says why a server cannot be reached, with the code that callers branch on.
fn refusal(address: SocketAddr, error: &io::Error) -> Failure {
    let code = match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET) => ErrorCode::Refused,
        Some(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::TIMEDOUT | Errno::ADDRNOTAVAIL) => {
            ErrorCode::Unreachable
        }
        None if error.kind() == io::ErrorKind::TimedOut => ErrorCode::Unreachable,
        _ => ErrorCode::Internal,
    };
    let why = if code == ErrorCode::Unreachable && error.raw_os_error().is_none() {
        format!("no answer within {} seconds", CONNECT.as_secs())
    } else {
        error.to_string()
    };
    Failure::new(
        code,
        format!("cannot connect to {address} in the guest: {why}"),
    )
}

fn shown(text: &str) -> String {
    text.chars()
        .take(64)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> v1::ConnectRequest {
        v1::ConnectRequest {
            room: String::new(),
            protocol: "tcp".into(),
            address: "127.0.0.1".into(),
            port: 80,
            token: vec![7; Token::LEN].into(),
        }
    }

    #[test]
    fn what_the_host_asks_for_is_checked() {
        let address = |address: &str| {
            let request = v1::ConnectRequest {
                address: address.into(),
                ..request()
            };
            Wanted::parse(&request).map(|w| w.address.to_string())
        };
        assert_eq!(address("0.0.0.0").unwrap(), "127.0.0.1:80");
        assert_eq!(address("::").unwrap(), "[::1]:80");
        assert_eq!(address("::ffff:10.0.0.1").unwrap(), "10.0.0.1:80");
        assert!(address("localhost").is_err() && address("").is_err());
        let bad = |change: fn(&mut v1::ConnectRequest)| {
            let mut request = request();
            change(&mut request);
            Wanted::parse(&request).unwrap_err().code == ErrorCode::Protocol
        };
        assert!(bad(|r| r.port = 0));
        assert!(bad(|r| r.port = 65_536));
        assert!(bad(|r| r.protocol = "sctp".into()));
        assert!(bad(|r| r.token = vec![7; 31].into()));
    }

    #[test]
    fn the_reason_of_a_refusal_has_a_code() {
        let address = "127.0.0.1:80".parse().unwrap();
        let code = |errno: Errno| refusal(address, &io::Error::from(errno)).code;
        assert_eq!(code(Errno::CONNREFUSED), ErrorCode::Refused);
        assert_eq!(code(Errno::NETUNREACH), ErrorCode::Unreachable);
        assert_eq!(code(Errno::TIMEDOUT), ErrorCode::Unreachable);
        let late = refusal(address, &io::ErrorKind::TimedOut.into());
        assert_eq!(late.code, ErrorCode::Unreachable);
        assert!(late.message.contains("10 seconds"), "{late}");
    }

    #[tokio::test]
    async fn a_room_that_is_not_there_is_told() {
        let connector = Connector::new(Dialer::Unix("/nonexistent".into()), Rooms::new());
        let request = v1::ConnectRequest {
            room: "x".into(),
            ..request()
        };
        let failure = connector.connect(request).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::DistroStopped);
    }

    #[tokio::test]
    async fn a_room_has_a_loopback_of_its_own() {
        let Some(space) = hostel_testkit::Space::new("connect::a_room_has_a_loopback_of_its_own")
        else {
            return;
        };
        let rooms = Rooms::new();
        rooms.insert("a".to_owned(), space.netns());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host");
        let name = format!("{}_{}", path.display(), hostel_proto::limits::STREAM_PORT);
        let streams = tokio::net::UnixListener::bind(name).unwrap();
        let connector = Connector::new(Dialer::Unix(path), rooms);
        let listener = space.run(|| {
            let routing = hostel_netlink::Routing::connect().unwrap();
            routing.set_link(1, true).unwrap();
            std::net::TcpListener::bind("127.0.0.1:3000").unwrap()
        });
        let request = |room: &str| v1::ConnectRequest {
            room: room.into(),
            port: 3000,
            ..request()
        };
        connector.connect(request("a")).await.unwrap();
        listener.accept().unwrap();
        streams.accept().await.unwrap();
        let failure = connector.connect(request("b")).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::DistroStopped);
    }

    #[tokio::test]
    async fn what_is_refused_leaves_nothing() {
        // A port that was free a moment ago, on an address of this test's own.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let connector = Connector::new(Dialer::Unix("/nonexistent".into()), Rooms::new());
        let request = v1::ConnectRequest {
            port: port.into(),
            ..request()
        };
        let failure = connector.connect(request).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Refused, "{failure}");
        assert_eq!(connector.connections.available_permits(), MAX_CONNECTIONS);
    }
}
