//! Ports of the host that the guest may dial, when the device is ours.

use std::{
    collections::HashMap,
    os::unix::net::UnixStream,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;

use crate::stream::Shared;

/// How many connections may wait to be accepted at one port; further ones are reset.
pub const BACKLOG: usize = 128;

/// The first port that is given out when any port will do.
const FIRST_FREE_PORT: u32 = 1 << 16;

/// A connection that waits to be accepted.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) socket: UnixStream,
    pub(crate) remains: Shared,
    pub(crate) guest_port: u32,
}

/// The ports somebody listens on. Outlives the device, so a re-plugged one finds them again.
#[derive(Debug, Default)]
pub(crate) struct Ports(Mutex<HashMap<u32, mpsc::Sender<Incoming>>>);

impl Ports {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, mpsc::Sender<Incoming>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a port, any free one for 0; `None` when it is taken.
    pub(crate) fn open(&self, port: u32) -> Option<(u32, mpsc::Receiver<Incoming>)> {
        let mut ports = self.lock();
        ports.retain(|_, sender| !sender.is_closed());
        let port = if port == 0 {
            (FIRST_FREE_PORT..u32::MAX).find(|p| !ports.contains_key(p))?
        } else {
            port
        };
        if ports.contains_key(&port) {
            return None;
        }
        let (sender, receiver) = mpsc::channel(BACKLOG);
        ports.insert(port, sender);
        Some((port, receiver))
    }

    /// Offers a connection to whoever listens; false when nobody does or too many wait.
    pub(crate) fn offer(&self, port: u32, incoming: Incoming) -> bool {
        self.lock()
            .get(&port)
            .is_some_and(|sender| sender.try_send(incoming).is_ok())
    }

    /// Closes every port: those who accept get the end.
    pub(crate) fn close_all(&self) {
        self.lock().clear();
    }
}
