//! The network of one VM from its start to its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use hostel_dns::Resolver;
use hostel_model::DistroId;
use hostel_proto::v1;
use hostel_relay::{Limits, Relay};
use hostel_switch::{Backend, HostState, NatRecord, Verdict};
use hostel_wslconf::HostNames;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    DnsMode, HostNamesPlaces, NetworkSettings, NetworkSetup, Opener,
    connect::Wiring,
    guest::{guest_dns, message},
    host_names::sweep,
};
use crate::{
    engine::{Engine, lock},
    state::NetworkKind,
    vm::Running,
};

/// How long the end of everything may take.
const CLOSE: Duration = Duration::from_secs(10);

/// Descriptors that are not for connections of the relay: listeners, sessions, the VM itself.
const OTHER_FILES: usize = 2048;

/// The relay's connections where descriptors are few.
const LEAST_CONNECTIONS: usize = 64;

/// The network of one VM.
pub(crate) struct Live {
    pub(super) engine: Weak<Engine>,
    pub(crate) settings: NetworkSettings,
    pub(crate) record: NatRecord,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) host_places: HostNamesPlaces,
    pub(super) opener: Arc<dyn Opener>,
    pub(super) wiring: Arc<Wiring>,
    pub(super) relay: Arc<Relay>,
    pub(super) resolver: Arc<Resolver>,
    /// Ends the serving of the gateway's port 53; `None`: it is not served.
    pub(super) gateway: Mutex<Option<CancellationToken>>,
    /// The UDP ports that the guest is to tell of.
    pub(super) udp: watch::Sender<BTreeSet<u16>>,
    /// The host's network.
    pub(super) host: watch::Receiver<HostState>,
    /// What the guest was told last.
    pub(super) told: Mutex<Option<v1::GuestNetwork>>,
    /// Held by whoever tells the guest, or takes away what it was told of.
    pub(super) telling: tokio::sync::Mutex<()>,
    /// What is wrong now, by what it is about.
    troubles: Mutex<BTreeMap<&'static str, String>>,
    /// Whether the host's own names are ours to write; false from the end on.
    pub(super) host_turn: tokio::sync::Mutex<bool>,
    /// Cancelled when the end begins: what breaks from then on is meant to.
    pub(super) ending: CancellationToken,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Live({})", self.backend().name())
    }
}

impl Live {
    /// Takes an open network into use; the VM is not there yet.
    pub(crate) async fn new(engine: &Arc<Engine>, setup: NetworkSetup) -> Arc<Self> {
        let NetworkSetup {
            backend,
            verdicts,
            record,
            settings,
            dns,
            host,
            host_places,
            opener,
        } = setup;
        let udp = settings.udp_watched(&engine.registry.settings());
        let wiring = Wiring::new(backend, Arc::clone(&engine.guest_streams));
        let live = Arc::new(Self {
            engine: Arc::downgrade(engine),
            relay: Relay::with_limits(
                Arc::clone(&wiring) as _,
                settings.relay(&engine.registry.settings(), direct(&*wiring.backend())),
                limits(),
            ),
            // Reads two small files.
            resolver: Arc::new(Resolver::new(dns)),
            settings,
            record,
            verdicts,
            host_places,
            opener,
            wiring,
            gateway: Mutex::default(),
            udp: watch::channel(udp).0,
            host,
            told: Mutex::default(),
            telling: tokio::sync::Mutex::default(),
            troubles: Mutex::default(),
            host_turn: tokio::sync::Mutex::new(true),
            ending: CancellationToken::new(),
        });
        for address in live.settings.exposed() {
            tracing::warn!(%address, "ports of the guest are open to other machines: relayListen");
        }
        if live.settings.host_names == HostNames::Off {
            let (path, tag) = (live.host_places.hosts.clone(), live.record.id.clone());
            engine.tasks.spawn_blocking(move || sweep(&path, &tag));
        }
        // Before the guest is told for the first time.
        live.heed_host();
        live.tell_names();
        live.serve_gateway().await;
        live
    }

    /// Begins its work for a VM whose agent answers.
    pub(crate) fn attach(self: &Arc<Self>, engine: &Engine, running: &Arc<Running>) {
        self.wiring.set_running(running);
        let tasks = &engine.tasks;
        let both = || (Arc::clone(self), Arc::clone(running));
        let (live, vm) = both();
        tasks.spawn(live.follow_ports(vm));
        if matches!(self.settings.dns, DnsMode::Tunnel(_)) {
            let (live, vm) = both();
            tasks.spawn(live.answer_names(vm));
        }
        let (live, vm) = both();
        tasks.spawn(live.follow_backend(vm));
        let (live, vm) = both();
        tasks.spawn(live.follow_host(vm));
        tasks.spawn(Arc::clone(self).follow_registry());
        let live = Arc::clone(self);
        tasks.spawn(async move {
            tokio::select! {
                () = live.ending.cancelled() => {}
                () = live.follow_ledger() => {}
            }
        });
    }

    pub(crate) fn backend(&self) -> Arc<dyn Backend> {
        self.wiring.backend()
    }

    /// Notes what is wrong, or that it no longer is.
    pub(super) fn say(&self, about: &'static str, trouble: Option<String>) {
        let mut troubles = lock(&self.troubles);
        match trouble {
            Some(text) if troubles.get(about) != Some(&text) => {
                tracing::warn!(about, "{text}");
                troubles.insert(about, text);
            }
            Some(_) => {}
            None => drop(troubles.remove(about)),
        }
    }

    /// Returns what the user should know of.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = lock(&self.troubles).values().cloned().collect();
        warnings.extend(self.relay.warnings());
        warnings
    }

    /// Returns what the guest is told now.
    pub(crate) fn guest_network(&self) -> v1::GuestNetwork {
        let guest = self.backend().guest();
        let proxied = lock(&self.gateway).is_some();
        let dns = guest_dns(
            self.settings.dns,
            &guest,
            proxied,
            &self.resolver.host().borrow(),
        );
        message(&guest, dns, self.host.borrow().addresses.clone())
    }

    /// Returns the same, for who is about to tell it.
    pub(crate) fn tell_guest(&self) -> v1::GuestNetwork {
        let now = self.guest_network();
        *lock(&self.told) = Some(now.clone());
        now
    }

    /// Returns how the registered distributions are on the network.
    pub(super) fn kinds(&self) -> Vec<(DistroId, NetworkKind)> {
        let Some(engine) = self.engine.upgrade() else {
            return Vec::new();
        };
        let all = engine.registry.list();
        all.iter().map(|d| (d.id, engine.room_of(d).kind)).collect()
    }

    /// Gives the relay the settings that hold now.
    pub(crate) fn apply_relay(&self) {
        if let Some(engine) = self.engine.upgrade() {
            let file = engine.registry.settings();
            let direct = direct(&*self.backend());
            self.relay.set_settings(self.settings.relay(&file, direct));
            let udp = self.settings.udp_watched(&file);
            self.udp.send_if_modified(|old| {
                let changed = *old != udp;
                *old = udp;
                changed
            });
        }
    }

    /// Puts the rules of the firewall that are kept in force.
    pub(crate) async fn apply_rules(&self) -> std::io::Result<()> {
        let Some(engine) = self.engine.upgrade() else {
            return Ok(());
        };
        self.apply_relay();
        let rules = self.settings.firewall_rules(&engine.registry.settings());
        self.backend().set_firewall(rules).await
    }

    /// Ends everything; returns when nothing of it is left on the host.
    pub(crate) async fn close(&self) {
        self.ending.cancel();
        let gateway = lock(&self.gateway).take();
        if let Some(gateway) = gateway {
            gateway.cancel();
        }
        let backend = self.backend();
        let all = async {
            tokio::join!(
                self.relay.close(),
                backend.close(),
                self.forget_host_names()
            )
        };
        if tokio::time::timeout(CLOSE, all).await.is_err() {
            tracing::warn!("the network was not closed in {} s", CLOSE.as_secs());
        }
        if let Some(engine) = self.engine.upgrade() {
            engine.ledger.touch();
        }
    }
}

/// Returns the relay's bounds: no more connections than this process can have descriptors for, two each.
fn limits() -> Limits {
    let limits = Limits::default();
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = files.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let connections = limits
        .connections
        .min(files.saturating_sub(OTHER_FILES) / 2)
        .max(LEAST_CONNECTIONS);
    if connections < limits.connections {
        tracing::info!(
            connections,
            files,
            "fewer connections are relayed: descriptors are few"
        );
    }
    Limits {
        connections,
        ..limits
    }
}

/// Returns the VM's address where the host's own processes reach it.
fn direct(backend: &dyn Backend) -> Option<IpAddr> {
    (backend.kind() == hostel_switch::Kind::Root).then(|| backend.guest().address.into())
}
