//! The listening sockets of every distribution, as the host is told of them.
//!
//! Listed by sock_diag(7), woken by an event of the kernel, so that a listener is known within milliseconds (the reference
//! looks once a second, REL-1). One set of sockets is listed for each network namespace that Hostel made: the machine's and
//! those of rooms. Namespaces made inside a distribution (containers) are not watched: engines forward their ports themselves.

mod heard;
mod owner;
mod plan;
mod table;
mod trace;
mod watcher;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;
use rustix::event::EventfdFlags;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;

use super::netns::Rooms;
use watcher::Watcher;

/// The most listeners that the host is told of.
const MAX_LISTENERS: usize = 4096;

/// The most UDP ports that can be watched.
const MAX_UDP_PORTS: usize = 4096;

/// How many messages may wait for a slow host.
const WAITING: usize = 16;

/// The watch of the machine's ports; one at a time.
pub(crate) struct Ports {
    rooms: Arc<Rooms>,
    current: Mutex<Option<Arc<Signal>>>,
    /// A socket of the agent itself.
    hidden: Arc<Mutex<Option<SocketAddr>>>,
    events: Events,
}

/// Whether the kernel is asked for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Events {
    /// By an instance of tracefs, which is mounted for it.
    Traced,
    /// It is looked for changes again and again.
    #[cfg(test)]
    None,
}

impl Ports {
    /// Makes one that watches nothing yet.
    pub(crate) fn new(rooms: Arc<Rooms>, events: Events) -> Arc<Self> {
        Arc::new(Self {
            events,
            rooms,
            current: Mutex::default(),
            hidden: Arc::default(),
        })
    }

    /// Never tells of a socket in the machine's network namespace, because it is the agent's own.
    pub(crate) fn hide(&self, address: Option<SocketAddr>) {
        *lock(&self.hidden) = address;
        self.look_again();
    }

    /// Looks now, at something that causes no event: a room that was made or is gone.
    pub(crate) fn look_again(&self) {
        if let Some(signal) = &*lock(&self.current) {
            signal.wake();
        }
    }

    /// Begins to watch; the watch before, if there is one, ends.
    pub(crate) fn watch(&self, request: &v1::WatchPortsRequest) -> Result<Watched, Failure> {
        let udp = udp_ports(&request.udp_ports)?;
        let internal = |e: io::Error| Failure::from_error(ErrorCode::Internal, &e);
        let signal = Arc::new(Signal::new(self.hidden.clone()).map_err(internal)?);
        let (sender, receiver) = mpsc::channel(WAITING);
        let watcher = Watcher::new(sender, signal.clone(), self.rooms.clone(), udp);
        let events = self.events;
        let mut current = lock(&self.current);
        if let Some(before) = current.take() {
            before.stop();
        }
        std::thread::Builder::new()
            .name("ports".to_owned())
            .stack_size(super::STACK)
            .spawn(move || watcher.run(events))
            .map_err(internal)?;
        *current = Some(signal.clone());
        Ok(Watched { receiver, signal })
    }
}

fn udp_ports(ports: &[u32]) -> Result<BTreeSet<u16>, Failure> {
    if ports.len() > MAX_UDP_PORTS {
        return Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("{} UDP ports are more than {MAX_UDP_PORTS}", ports.len()),
        ));
    }
    let port = |port: &u32| {
        let good = u16::try_from(*port).ok().filter(|p| *p != 0);
        good.ok_or_else(|| {
            Failure::new(ErrorCode::InvalidArgument, format!("{port} is not a port"))
        })
    };
    ports.iter().map(port).collect()
}

/// What the host is told. The watch ends when this is dropped.
pub(crate) struct Watched {
    receiver: mpsc::Receiver<Result<v1::PortsChanged, Status>>,
    signal: Arc<Signal>,
}

impl Stream for Watched {
    type Item = Result<v1::PortsChanged, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.signal.stop();
    }
}

/// What the thread is told, and by which it is woken.
#[derive(Debug)]
struct Signal {
    event: OwnedFd,
    stopped: AtomicBool,
    hidden: Arc<Mutex<Option<SocketAddr>>>,
}

impl Signal {
    fn new(hidden: Arc<Mutex<Option<SocketAddr>>>) -> io::Result<Self> {
        Ok(Self {
            event: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopped: AtomicBool::new(false),
            hidden,
        })
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn wake(&self) {
        // Full means that it is woken already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        // Empty means that something else woke.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn hidden(&self) -> Option<(IpAddr, u16)> {
        (*lock(&self.hidden)).map(|a| (a.ip(), a.port()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Duration;
    use tokio_stream::StreamExt;

    const LIMIT: Duration = Duration::from_secs(30);

    async fn until(watched: &mut Watched, mut good: impl FnMut(&v1::PortsChanged) -> bool) {
        let wait = async {
            loop {
                let message = watched.next().await.expect("the watch goes on").unwrap();
                if good(&message) {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, wait)
            .await
            .expect("the change is told");
    }

    #[tokio::test]
    async fn a_watch_that_is_taken_over_ends() {
        let ports = Ports::new(Rooms::new(), Events::None);
        let request = v1::WatchPortsRequest::default();
        let mut first = ports.watch(&request).unwrap();
        until(&mut first, |m| m.reset).await;
        let mut second = ports.watch(&request).unwrap();
        let end = async { while first.next().await.is_some() {} };
        tokio::time::timeout(LIMIT, end).await.expect("it ends");
        until(&mut second, |m| m.reset).await;
    }

    #[tokio::test]
    async fn sockets_of_the_agent_itself_are_not_told() {
        let ports = Ports::new(Rooms::new(), Events::None);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        ports.hide(Some(address));
        let port = u32::from(address.port());
        let mut watched = ports.watch(&v1::WatchPortsRequest::default()).unwrap();
        until(&mut watched, |m| {
            assert!(m.added.iter().all(|l| l.port != port));
            m.reset
        })
        .await;
        ports.hide(None);
        until(&mut watched, |m| m.added.iter().any(|l| l.port == port)).await;
        drop(listener);
        until(&mut watched, |m| m.removed.iter().any(|l| l.port == port)).await;
    }

    #[tokio::test]
    async fn a_room_is_watched_from_when_it_is_known_to_when_it_is_gone() {
        let Some(space) = hostel_testkit::Space::new(
            "ports::a_room_is_watched_from_when_it_is_known_to_when_it_is_gone",
        ) else {
            return;
        };
        let rooms = Rooms::new();
        let ports = Ports::new(rooms.clone(), Events::None);
        let mut watched = ports.watch(&v1::WatchPortsRequest::default()).unwrap();
        until(&mut watched, |m| m.reset).await;
        let listener = space.run(|| TcpListener::bind("0.0.0.0:3000").unwrap());
        rooms.insert("a".to_owned(), space.netns());
        ports.look_again();
        let in_room = |l: &v1::Listener| (l.room.as_str(), l.port) == ("a", 3000);
        until(&mut watched, |m| m.added.iter().any(in_room)).await;
        rooms.remove("a");
        ports.look_again();
        until(&mut watched, |m| m.removed.iter().any(in_room)).await;
        drop(listener);
    }

    #[test]
    fn what_is_no_port_is_refused() {
        assert!(udp_ports(&[0]).is_err());
        assert!(udp_ports(&[65_536]).is_err());
        assert!(udp_ports(&vec![53; MAX_UDP_PORTS + 1]).is_err());
        assert_eq!(udp_ports(&[53, 53]).unwrap().len(), 1);
    }
}
