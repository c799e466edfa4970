//! The relay as others see it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::{Connector, Entry, GuestListener, Limits, ListenerKey, Settings, State};

/// What listens in the guest, and what of it is on the host.
pub struct Relay {
    known: Mutex<(Vec<GuestListener>, Settings)>,
    changed: watch::Sender<u64>,
    limits: Limits,
    connector: Arc<dyn Connector>,
}

impl Relay {
    /// Starts with nothing to relay. Must be called in a runtime of tokio with I/O and time.
    pub fn start(connector: Arc<dyn Connector>, settings: Settings) -> Arc<Self> {
        Self::with_limits(connector, settings, Limits::default())
    }

    /// As [`Relay::start`], with other bounds.
    pub fn with_limits(
        connector: Arc<dyn Connector>,
        settings: Settings,
        limits: Limits,
    ) -> Arc<Self> {
        Arc::new(Self {
            known: Mutex::new((Vec::new(), settings)),
            changed: watch::Sender::new(0),
            limits,
            connector,
        })
    }

    /// Takes the whole list of what listens. What was known before and is not in it is gone; what stays keeps its sockets.
    pub fn reset(&self, listeners: Vec<GuestListener>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.0 = listeners;
        self.changed.send_modify(|n| *n += 1);
    }

    /// Takes what changed. A listener that is in both lists keeps its sockets on the host.
    pub fn change(&self, added: Vec<GuestListener>, removed: &[ListenerKey]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.0.retain(|l| !removed.contains(&l.key()));
        known.0.extend(added);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Takes other settings. What they do not concern keeps its sockets.
    pub fn set_settings(&self, settings: Settings) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.1 = settings;
        self.changed.send_modify(|n| *n += 1);
    }

    /// Returns the ledger, in the order of owner, protocol and port.
    pub fn entries(&self) -> Vec<Entry> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .0
            .iter()
            .map(|l| Entry {
                distro: l.distro,
                distro_name: l.distro_name.clone(),
                room: l.room,
                protocol: l.protocol,
                addresses: vec![l.address],
                port: l.port,
                pid: l.pid,
                process: l.process.clone(),
                host: Vec::new(),
                state: State::Off,
                reason: "the relay is not running".to_owned(),
                next_step: String::new(),
                connections: 0,
            })
            .collect()
    }

    /// Returns what changes whenever the ledger does; connections that come and go are no change.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns what the user should be warned of, whole sentences.
    pub fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Ends everything: listeners, connections, tasks. Returns when all of it is gone.
    pub async fn close(&self) {
        let _ = (&self.limits, &self.connector);
    }
}
