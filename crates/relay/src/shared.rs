//! What every task of the relay needs, and what it has to tell the ledger.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use hostel_model::firewall;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Connector, GuestListener, Limits, policy};

/// Locks, also after a panic elsewhere: every change of ours is whole before it can panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What every task needs.
pub(crate) struct Shared {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) limits: Limits,
    pub(crate) firewall: Mutex<Arc<[firewall::Rule]>>,
    /// Connections that are open, of all listeners.
    open: AtomicUsize,
    /// Ends everything.
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// A task has something to tell.
    pub(crate) noted: Notify,
}

impl Shared {
    pub(crate) fn new(connector: Arc<dyn Connector>, limits: Limits) -> Self {
        Self {
            connector,
            limits,
            firewall: Mutex::new(Arc::new([])),
            open: AtomicUsize::new(0),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            noted: Notify::new(),
        }
    }

    /// Tells whether a peer may connect. `local` is the address it came to.
    pub(crate) fn admits(
        &self,
        listener: &GuestListener,
        peer: SocketAddr,
        local: Option<IpAddr>,
    ) -> bool {
        // The host itself is never asked, by whichever of its addresses it comes.
        if peer.ip().is_loopback() || local == Some(peer.ip()) {
            return true;
        }
        let rules = Arc::clone(&lock(&self.firewall));
        policy::admits(&rules, listener.protocol, listener.port, peer.ip())
    }

    /// Counts one more connection; `None` when there are as many as there may be.
    pub(crate) fn open(self: &Arc<Self>, target: &Arc<Target>) -> Option<Open> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.limits.connections {
            self.open.fetch_sub(1, Ordering::Relaxed);
            target.tally.note(self, || {
                let limit = self.limits.connections;
                format!("{limit} connections are open, new ones are refused")
            });
            return None;
        }
        target.tally.open.fetch_add(1, Ordering::Relaxed);
        Some(Open {
            shared: Arc::clone(self),
            target: Arc::clone(target),
        })
    }
}

/// One connection that counts.
pub(crate) struct Open {
    pub(crate) shared: Arc<Shared>,
    pub(crate) target: Arc<Target>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
        self.target.tally.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A listener of the guest that connections lead to.
pub(crate) struct Target {
    pub(crate) listener: GuestListener,
    /// Stays the same when only what is known about the process changes.
    pub(crate) tally: Arc<Tally>,
}

/// What happened at one listener.
#[derive(Default)]
pub(crate) struct Tally {
    open: AtomicU64,
    failed: AtomicU64,
    /// There is a trouble: read before the lock is taken.
    troubled: AtomicBool,
    trouble: Mutex<Option<String>>,
}

impl Tally {
    /// Connections that are open.
    pub(crate) fn connections(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// What the ledger should say beside its own.
    pub(crate) fn trouble(&self) -> Option<String> {
        let trouble = lock(&self.trouble).clone()?;
        match self.failed.load(Ordering::Relaxed) {
            0 => Some(trouble),
            n => Some(format!("{trouble} ({n} failed so far)")),
        }
    }

    /// The guest was not reached.
    pub(crate) fn failed(&self, shared: &Shared, error: &io::Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.note(shared, || format!("the last connection failed: {error}"));
    }

    /// Something is wrong with this listener for now.
    pub(crate) fn note(&self, shared: &Shared, text: impl FnOnce() -> String) {
        *lock(&self.trouble) = Some(text());
        self.troubled.store(true, Ordering::Release);
        shared.noted.notify_one();
    }

    /// A connection went well.
    pub(crate) fn well(&self, shared: &Shared) {
        if self.troubled.swap(false, Ordering::Acquire) {
            *lock(&self.trouble) = None;
            shared.noted.notify_one();
        }
    }
}
