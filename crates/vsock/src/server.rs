//! The thread that waits for QEMU at the socket and serves one plug of the device after the other.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tracing::debug;
use vhost::vhost_user::Listener;
use vhost_user_backend::{ShutdownHandle, VhostUserDaemon};
use vmm_sys_util::epoll::EventSet;

use crate::{
    device::{BACKEND_EVENT, Device, LOOK_EVENT},
    port::Ports,
};

/// How far closing has come; shared with the thread.
#[derive(Default)]
struct Closing {
    asked: bool,
    /// Ends the connection that is being served.
    serving: Option<ShutdownHandle>,
}

/// A device that QEMU can plug by connecting to a socket. Dropping it ends everything and removes the socket.
pub(crate) struct Server {
    socket: PathBuf,
    ports: Arc<Ports>,
    closing: Arc<Mutex<Closing>>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(socket: PathBuf, guest_cid: u64, ports: Arc<Ports>) -> io::Result<Self> {
        let listener = UnixListener::bind(&socket)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let closing = Arc::new(Mutex::new(Closing::default()));
        let thread = {
            let (ports, closing, stop) =
                (Arc::clone(&ports), Arc::clone(&closing), Arc::clone(&stop));
            std::thread::Builder::new()
                .name("vsock".into())
                .spawn(move || serve(&listener, guest_cid, &ports, &closing, &stop))?
        };
        Ok(Self {
            socket,
            ports,
            closing,
            stop,
            thread: Some(thread),
        })
    }

    pub(crate) fn socket(&self) -> &PathBuf {
        &self.socket
    }

    /// Ends the device, every connection and every listener. Blocks until the threads have ended.
    pub(crate) fn close(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        {
            let mut closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
            closing.asked = true;
            if let Some(serving) = &closing.serving {
                serving.shutdown();
            }
        }
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        let _ = thread.join();
        self.ports.close_all();
        let _ = fs_err::remove_file(&self.socket);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

fn serve(
    listener: &UnixListener,
    guest_cid: u64,
    ports: &Arc<Ports>,
    closing: &Mutex<Closing>,
    stop: &OwnedFd,
) {
    loop {
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                debug!(%error, "cannot wait for QEMU");
                return;
            }
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        if let Err(error) = serve_one(listener, guest_cid, ports, closing) {
            debug!(%error, "the vsock device ended");
        }
    }
}

/// Serves the device from plug to unplug.
fn serve_one(
    listener: &UnixListener,
    guest_cid: u64,
    ports: &Arc<Ports>,
    closing: &Mutex<Closing>,
) -> io::Result<()> {
    let told = |error: vhost_user_backend::Error| io::Error::other(error.to_string());
    let device = Arc::new(Device::new(guest_cid, Arc::clone(ports))?);
    let mut daemon =
        VhostUserDaemon::new("vsock-qemu".into(), Arc::clone(&device), device.memory())
            .map_err(told)?;
    for handler in daemon.get_epoll_handlers() {
        handler.register_listener(device.events_fd(), EventSet::IN, BACKEND_EVENT)?;
        handler.register_listener(device.look_fd(), EventSet::IN, LOOK_EVENT)?;
    }
    let mut accepting = Listener::from(listener.try_clone()?);
    let served = daemon.start(&mut accepting).map_err(told).and_then(|()| {
        let mut state = closing.lock().unwrap_or_else(PoisonError::into_inner);
        state.serving = daemon.shutdown_handle();
        if state.asked {
            daemon.request_shutdown();
        }
        drop(state);
        daemon.wait().map_err(told)
    });
    closing
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .serving = None;
    device.end();
    // Joins the queue thread, which was told to end.
    drop(daemon);
    device.disconnect();
    served
}
