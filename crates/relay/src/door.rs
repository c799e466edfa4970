//! One socket of the relay on the host: it accepts, asks the firewall, and leads to the guest.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    task::AbortHandle,
};

use crate::{
    GuestStream, Protocol,
    copy::{self, Resetting},
    shared::{Open, Shared, Target, lock},
    socket, udp,
};

/// The longest pause when nothing can be accepted for want of descriptors or memory.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A socket of the host that leads to a listener of the guest. Dropped, it is closed; its TCP connections live on.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    gate: Arc<Gate>,
    task: AbortHandle,
}

/// What the door and its task share.
pub(crate) struct Gate {
    socket: Mutex<Option<Socket>>,
    route: Mutex<Arc<Target>>,
}

enum Socket {
    Tcp(TcpListener),
    Udp(Arc<UdpSocket>),
}

impl Door {
    /// Opens a socket that leads to `target`. Must be called in the runtime. `ours`: see [`socket::bind`].
    pub(crate) fn open(
        shared: &Arc<Shared>,
        protocol: Protocol,
        address: SocketAddr,
        target: Arc<Target>,
        ours: &[OwnedFd],
    ) -> io::Result<Self> {
        let ours: Vec<_> = ours.iter().map(AsFd::as_fd).collect();
        let fd = socket::bind(protocol, address, &ours)?;
        let (socket, datagrams) = match protocol {
            Protocol::Tcp => (Socket::Tcp(TcpListener::from_std(fd.into())?), None),
            Protocol::Udp => {
                let socket = Arc::new(UdpSocket::from_std(fd.into())?);
                (Socket::Udp(Arc::clone(&socket)), Some(socket))
            }
        };
        let gate = Arc::new(Gate {
            socket: Mutex::new(Some(socket)),
            route: Mutex::new(target),
        });
        let task = match datagrams {
            None => shared
                .tasks
                .spawn(accept(Arc::clone(shared), Arc::clone(&gate))),
            Some(socket) => {
                shared
                    .tasks
                    .spawn(udp::serve(Arc::clone(shared), Arc::clone(&gate), socket))
            }
        };
        Ok(Self {
            address,
            gate,
            task: task.abort_handle(),
        })
    }

    /// Leads elsewhere from now on.
    pub(crate) fn lead_to(&self, target: &Arc<Target>) {
        *lock(&self.gate.route) = Arc::clone(target);
    }

    /// Returns where it leads.
    pub(crate) fn target(&self) -> Arc<Target> {
        self.gate.target()
    }

    /// Returns another descriptor of the socket.
    pub(crate) fn duplicate(&self) -> io::Result<Option<OwnedFd>> {
        match &*lock(&self.gate.socket) {
            Some(Socket::Tcp(socket)) => Ok(Some(rustix::io::fcntl_dupfd_cloexec(socket, 3)?)),
            Some(Socket::Udp(socket)) => Ok(Some(rustix::io::fcntl_dupfd_cloexec(socket, 3)?)),
            None => Ok(None),
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // The task would close it a moment later, and whoever wants the port next would find it taken.
        drop(lock(&self.gate.socket).take());
        self.task.abort();
    }
}

impl Gate {
    /// Returns where it leads.
    pub(crate) fn target(&self) -> Arc<Target> {
        Arc::clone(&lock(&self.route))
    }

    /// Accepts one connection; `None` when the door is closed.
    fn poll_accept(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<(TcpStream, SocketAddr)>>> {
        match &*lock(&self.socket) {
            Some(Socket::Tcp(listener)) => listener.poll_accept(cx).map(Some),
            Some(Socket::Udp(_)) | None => Poll::Ready(None),
        }
    }
}

/// Accepts until the door is closed.
async fn accept(shared: Arc<Shared>, gate: Arc<Gate>) {
    let mut pause = Duration::ZERO;
    loop {
        match std::future::poll_fn(|cx| gate.poll_accept(cx)).await {
            None => return,
            Some(Ok((client, peer))) => {
                pause = Duration::ZERO;
                admit(&shared, &gate.target(), client, peer);
            }
            Some(Err(e)) if is_about_one_connection(&e) => {}
            Some(Err(e)) => {
                // The connection stays in the kernel's queue, so the same error would come at once.
                pause = (pause * 2).clamp(Duration::from_millis(5), LONGEST_PAUSE);
                let note = || format!("new connections wait: {e}");
                gate.target().tally.note(&shared, note);
                #[expect(
                    clippy::disallowed_methods,
                    reason = "nothing tells when descriptors are free again"
                )]
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Tells whether an error of `accept` is about the connection that was to be accepted (accept(2), "Error handling").
fn is_about_one_connection(error: &io::Error) -> bool {
    !matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}

/// Lets a connection in, or resets it.
fn admit(shared: &Arc<Shared>, target: &Arc<Target>, client: TcpStream, peer: SocketAddr) {
    let client = Resetting::new(client);
    let local = || client.stream().local_addr().ok().map(|a| a.ip());
    if !peer.ip().is_loopback() && !shared.admits(&target.listener, peer, local()) {
        tracing::debug!(%peer, port = target.listener.port, "the firewall refuses a connection");
        return;
    }
    if let Some(open) = shared.open(target) {
        shared.tasks.spawn(connection(open, client));
    }
}

/// Carries one connection from its beginning to its end.
async fn connection(open: Open, client: Resetting) {
    let stop = &open.shared.stop;
    // Whatever is dropped half way is reset.
    stop.run_until_cancelled(async {
        let guest = open.shared.connector.tcp(&open.target.listener).await;
        let guest = guest.and_then(|guest| {
            if let GuestStream::Tcp(stream) = &guest {
                socket::ready(stream)?;
            }
            Ok(guest)
        });
        match guest {
            Ok(guest) => {
                open.target.tally.well(&open.shared);
                copy::join(client, guest).await;
            }
            Err(e) => open.target.tally.failed(&open.shared, &e),
        }
    })
    .await;
}
