//! The host end of the channel between daemon and guest. The guest always uses AF_VSOCK and always dials; the host listens on
//! ports and accepts. Behind one type stand two ways: the kernel's vhost-vsock where the user may open it, and else a
//! vhost-user-vsock device of our own, served by threads of this process.
//!
//! Not for: what flows over a connection, QEMU's command line, starting anything. A mechanism. Everything the guest sends is
//! taken as hostile: the device keeps to fixed limits (`device/mux.rs`) and answers nonsense with a reset.

mod device;
mod kernel;
mod port;
mod server;
mod stream;

use std::{
    fmt, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::mpsc;
use tokio_vsock::VsockListener;

#[doc(hidden)]
pub use self::device::lone::LoneGuest;
pub use self::{port::BACKLOG, stream::Connection};
use self::{
    port::{Incoming, Ports},
    server::Server,
};

/// Which way the channel takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelKind {
    /// The kernel's vhost-vsock; needs `/dev/vhost-vsock` to be openable.
    VhostVsock,
    /// Our own device, whose socket is made in `dir`: a directory of this user with mode 0700.
    VhostUser {
        /// Where the socket is made.
        dir: PathBuf,
    },
}

/// What QEMU has to plug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// `chardev-add` of this socket (client), then `device_add vhost-user-vsock-pci`.
    VhostUser {
        /// The socket that waits for QEMU.
        socket: PathBuf,
    },
    /// `device_add vhost-vsock-pci,guest-cid=…`.
    VhostVsock {
        /// The guest's address.
        cid: u32,
    },
}

/// Why a channel cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel's device is missing or not for this user.
    #[error("cannot use `{}`", kernel::DEVICE)]
    VhostVsock(#[source] io::Error),
    /// The directory for the socket is missing.
    #[error("cannot look at directory `{dir}`")]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Others could connect to the socket.
    #[error(
        "directory `{dir}` must belong to user {uid} and have mode 700; it belongs to {owner} and has mode {mode:o}"
    )]
    NotPrivate {
        /// The directory.
        dir: PathBuf,
        /// Who runs this process.
        uid: u32,
        /// Who owns the directory.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The socket or its thread cannot be made.
    #[error("cannot serve the channel at `{socket}`")]
    Serve {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there already.
    #[error("port {0} of the channel is in use")]
    InUse(u32),
    /// The kernel refused.
    #[error("cannot listen on vsock port {port}")]
    Kernel {
        /// The port.
        port: u32,
        /// The cause.
        source: io::Error,
    },
}

/// The guest's address on a device of ours; nobody else can meet it, so it is always the same.
const GUEST_CID: u32 = 3;

enum Way {
    Kernel { cid: u32 },
    Own(Server),
}

/// The channel of one VM. It outlives plugs of the device: connections end with an unplug, listeners stay.
pub struct Channel {
    way: Way,
    ports: Arc<Ports>,
}

impl Channel {
    /// Opens a channel. For a device of our own this starts its thread; a stale socket in the directory is replaced.
    ///
    /// Each connection takes two descriptors, so the process wants a high limit of open files.
    pub fn open(kind: &ChannelKind) -> Result<Self, OpenError> {
        let ports = Arc::new(Ports::default());
        let way = match kind {
            ChannelKind::VhostVsock => Way::Kernel {
                cid: kernel::open().map_err(OpenError::VhostVsock)?,
            },
            ChannelKind::VhostUser { dir } => {
                check_private(dir)?;
                let socket = own_socket(dir);
                let server =
                    Server::start(socket.clone(), u64::from(GUEST_CID), Arc::clone(&ports))
                        .map_err(|source| OpenError::Serve { socket, source })?;
                Way::Own(server)
            }
        };
        Ok(Self { way, ports })
    }

    /// Listens on a port of the host; any free one for 0. Must be called inside a tokio runtime.
    ///
    /// On the kernel's way ports are shared by the whole host, so 0 is the choice there. At most [`BACKLOG`] connections
    /// wait to be accepted, further ones are reset.
    pub fn listen(&self, port: u32) -> Result<Listener, ListenError> {
        match &self.way {
            Way::Kernel { cid } => {
                let failed = |source: io::Error| match source.kind() {
                    io::ErrorKind::AddrInUse => ListenError::InUse(port),
                    _ => ListenError::Kernel { port, source },
                };
                let listener = kernel::listen(port).map_err(failed)?;
                let port = listener.local_addr().map_err(failed)?.port();
                Ok(Listener {
                    port,
                    from: From::Kernel {
                        listener,
                        guest_cid: *cid,
                    },
                })
            }
            Way::Own(_) => {
                let (port, queue) = self.ports.open(port).ok_or(ListenError::InUse(port))?;
                Ok(Listener {
                    port,
                    from: From::Own(queue),
                })
            }
        }
    }

    /// Tells what QEMU has to plug.
    pub fn device(&self) -> Device {
        match &self.way {
            Way::Kernel { cid } => Device::VhostVsock { cid: *cid },
            Way::Own(server) => Device::VhostUser {
                socket: server.socket().clone(),
            },
        }
    }

    /// Ends the device, all its connections and its listeners. Blocks for some milliseconds. Dropping does the same.
    pub fn close(self) {}
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.device()).finish()
    }
}

fn check_private(dir: &Path) -> Result<(), OpenError> {
    let meta = fs_err::symlink_metadata(dir).map_err(|source| OpenError::Directory {
        dir: dir.to_owned(),
        source,
    })?;
    let uid = rustix::process::geteuid().as_raw();
    let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
    if !meta.is_dir() || owner != uid || mode & 0o077 != 0 {
        return Err(OpenError::NotPrivate {
            dir: dir.to_owned(),
            uid,
            owner,
            mode,
        });
    }
    Ok(())
}

/// Takes connections of the guest at one port. Dropping it closes the port.
#[derive(Debug)]
pub struct Listener {
    port: u32,
    from: From,
}

#[derive(Debug)]
enum From {
    Kernel {
        listener: VsockListener,
        guest_cid: u32,
    },
    Own(mpsc::Receiver<Incoming>),
}

impl Listener {
    /// Returns the port, also when any was asked for.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Waits for the next connection of the guest. Cancel safe. Ends with `NotConnected` when the channel was closed.
    pub async fn accept(&mut self) -> io::Result<Connection> {
        match &mut self.from {
            From::Kernel {
                listener,
                guest_cid,
            } => kernel::accept(listener, *guest_cid).await,
            From::Own(queue) => {
                let Incoming {
                    socket,
                    remains,
                    guest_port,
                } = queue
                    .recv()
                    .await
                    .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
                Connection::from_device(socket, remains, guest_port)
            }
        }
    }
}

/// Returns a path for a socket that no other channel has: an earlier one of this process may still be closing, and takes its
/// own with it.
///
/// Nobody else has sockets in a directory of ours: those of other processes are from daemons that were killed, and removed.
fn own_socket(dir: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let own = format!("vsock-{}-", std::process::id());
    for entry in fs_err::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("vsock-") && name.ends_with(".sock") && !name.starts_with(&own) {
            let _ = fs_err::remove_file(entry.path());
        }
    }
    let socket = dir.join(format!(
        "{own}{}.sock",
        COUNT.fetch_add(1, Ordering::Relaxed)
    ));
    // Of a killed process that had the same number.
    let _ = fs_err::remove_file(&socket);
    socket
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn private_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs_err::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        dir
    }

    #[tokio::test]
    async fn ports_are_taken_once_and_free_after_their_listener() {
        let dir = private_dir();
        let channel = Channel::open(&ChannelKind::VhostUser {
            dir: dir.path().to_owned(),
        })
        .unwrap();
        let listener = channel.listen(7).unwrap();
        assert!(matches!(channel.listen(7), Err(ListenError::InUse(7))));
        let any = channel.listen(0).unwrap();
        assert_ne!(any.port(), channel.listen(0).unwrap().port());
        drop(listener);
        let mut listener = channel.listen(7).unwrap();
        channel.close();
        assert_eq!(
            listener.accept().await.unwrap_err().kind(),
            io::ErrorKind::NotConnected
        );
    }

    #[test]
    fn a_directory_others_can_enter_is_refused_and_a_stale_socket_is_not_in_the_way() {
        let dir = private_dir();
        let kind = ChannelKind::VhostUser {
            dir: dir.path().to_owned(),
        };
        let left = dir.path().join("vsock-1-0.sock");
        drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
        let (first, second) = (Channel::open(&kind).unwrap(), Channel::open(&kind).unwrap());
        assert!(!left.exists(), "it was a killed daemon's");
        // One that closes late does not take the socket of the next.
        drop(first);
        let Device::VhostUser { socket } = second.device() else {
            panic!("our own device was asked for");
        };
        assert!(socket.exists());
        drop(second);
        assert!(!socket.exists());
        fs_err::set_permissions(dir.path(), PermissionsExt::from_mode(0o750)).unwrap();
        assert!(matches!(
            Channel::open(&kind),
            Err(OpenError::NotPrivate { mode: 0o750, .. })
        ));
        let kind = ChannelKind::VhostUser {
            dir: dir.path().join("missing"),
        };
        assert!(matches!(
            Channel::open(&kind),
            Err(OpenError::Directory { .. })
        ));
    }
}
