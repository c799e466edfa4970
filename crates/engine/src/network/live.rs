//! The network of one VM from its start to its end: opened, watched, opened again when it dies, closed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use hostel_dns::{Gateway, Names, Resolver};
use hostel_model::{DistroId, firewall::Source};
use hostel_proto::v1;
use hostel_relay::{Limits, Relay};
use hostel_switch::{Backend, HostAddresses, NatRecord, Verdict};
use hostel_wslconf::HostNames;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    DnsMode, HostNamesPlaces, NetworkSettings, NetworkSetup, Opener,
    connect::Wiring,
    guest::{guest_dns, message},
    host_names::sweep,
    pause,
};
use crate::{
    engine::{Engine, lock},
    lifecycle::VmState,
    state::NetworkKind,
    vm::Running,
};

/// How long to wait before a network that could not be opened is tried again; doubled up to the last.
const REOPEN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// How long QEMU may take to be gone after what its card was connected to.
const GOING: Duration = Duration::from_millis(150);

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
    opener: Arc<dyn Opener>,
    wiring: Arc<Wiring>,
    pub(super) relay: Arc<Relay>,
    pub(super) resolver: Arc<Resolver>,
    /// Ends the serving of the gateway's port 53; `None`: it is not served.
    gateway: Mutex<Option<CancellationToken>>,
    /// The UDP ports that the guest is to tell of.
    pub(super) udp: watch::Sender<BTreeSet<u16>>,
    /// What is the host itself.
    host_addresses: watch::Sender<Vec<String>>,
    /// What is wrong now, by what it is about.
    troubles: Mutex<BTreeMap<&'static str, String>>,
    /// Whether the host's own names are ours to write; false from the end on.
    pub(super) host_turn: tokio::sync::Mutex<bool>,
    /// Cancelled when the end begins: what breaks from then on is meant to.
    ending: CancellationToken,
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
            host_addresses: watch::Sender::default(),
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
        live.tell_names();
        live.serve_gateway().await;
        // Before the guest is told for the first time.
        live.read_addresses();
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
        tasks.spawn(Arc::clone(self).follow_addresses());
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
        message(&guest, dns, self.host_addresses.borrow().clone())
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

    /// Serves the gateway's port 53 when the guest or its neighbours are told to ask there.
    async fn serve_gateway(&self) {
        let old = lock(&self.gateway).take();
        if let Some(old) = old {
            old.cancel();
        }
        let wanted = !matches!(self.settings.dns, DnsMode::Tunnel(_))
            || self.settings.host_names == HostNames::Resolved;
        if !wanted {
            return;
        }
        match self.backend().gateway_dns().await {
            Ok(Some((udp, tcp))) => {
                let stop = CancellationToken::new();
                let mut sources = vec![Source {
                    address: self.record.subnet.network().into(),
                    bits: self.record.subnet.bits(),
                }];
                if let Some(v6) = self.backend().guest().ipv6 {
                    sources.push(Source {
                        address: v6.gateway.into(),
                        bits: v6.prefix,
                    });
                }
                let gateway = Gateway { udp, tcp, sources };
                if let Some(engine) = self.engine.upgrade() {
                    let (resolver, stop) = (Resolver::clone(&self.resolver), stop.clone());
                    engine
                        .tasks
                        .spawn(async move { resolver.serve(gateway, stop).await });
                }
                *lock(&self.gateway) = Some(stop);
                self.say("gateway-dns", None);
            }
            // The backend brings a resolver of its own.
            Ok(None) => {}
            Err(error) => self.say(
                "gateway-dns",
                Some(format!(
                    "names are not answered at the gateway's address: {error}"
                )),
            ),
        }
    }

    /// Tells the resolver who lives where.
    pub(crate) fn tell_names(&self) {
        let Some(engine) = self.engine.upgrade() else {
            return;
        };
        let guest = self.backend().guest();
        let mut vm: Vec<IpAddr> = vec![guest.address.into()];
        vm.extend(guest.ipv6.map(|v6| IpAddr::V6(v6.address)));
        let distros = engine
            .registry
            .list()
            .into_iter()
            .map(|d| {
                let addresses = match engine.room_of(&d).address {
                    Some(address) => {
                        let mut own: Vec<IpAddr> = vec![address.into()];
                        own.extend(guest.ipv6.map(|_| IpAddr::V6(self.record.ipv6_of(address))));
                        own
                    }
                    None => vm.clone(),
                };
                (d.name, addresses)
            })
            .collect();
        let left_out = self.resolver.set_names(&Names {
            host: guest.host.into_iter().map(IpAddr::V4).collect(),
            vm,
            distros,
        });
        self.say(
            "names",
            (!left_out.is_empty()).then(|| {
                let names: Vec<String> = left_out.iter().map(ToString::to_string).collect();
                format!(
                    "no name under `.hostel` for {}: another one has it",
                    names.join(", ")
                )
            }),
        );
    }

    /// Follows names, rooms and rules of the registry.
    async fn follow_registry(self: Arc<Self>) {
        let Some(mut changes) = self.engine.upgrade().map(|e| e.registry.changes()) else {
            return;
        };
        loop {
            self.tell_names();
            self.tell_host_names().await;
            tokio::select! {
                () = self.ending.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Notes what is the host itself. Blocks for microseconds.
    fn read_addresses(&self) {
        match HostAddresses::read() {
            Ok(now) => {
                self.host_addresses.send_if_modified(|old| {
                    let changed = *old != now;
                    *old = now;
                    changed
                });
                self.say("addresses", None);
            }
            Err(error) => self.say(
                "addresses",
                Some(format!(
                    "the host's addresses cannot be listed: isolated distributions may reach new ones: {error}"
                )),
            ),
        }
    }

    /// Follows the host's addresses, which isolated distributions do not reach.
    async fn follow_addresses(self: Arc<Self>) {
        let work = async {
            let addresses = HostAddresses::follow()?;
            loop {
                self.read_addresses();
                addresses.changed().await?;
            }
        };
        let outcome: std::io::Result<()> = tokio::select! {
            () = self.ending.cancelled() => return,
            outcome = work => outcome,
        };
        if let Err(error) = outcome {
            self.say(
                "addresses",
                Some(format!(
                    "the host's addresses are not followed: isolated distributions may reach new ones: {error}"
                )),
            );
        }
    }

    /// Follows the host's resolvers and search domains (DNS-2, DNS-4), and its addresses.
    async fn follow_host(self: Arc<Self>, running: Arc<Running>) {
        let mut host = self.resolver.host();
        let mut addresses = self.host_addresses.subscribe();
        // What was told at the start may be older.
        let mut told = None;
        loop {
            let now = self.guest_network();
            if told.as_ref().is_some_and(|t| *t != now) {
                self.configure(&running).await;
            }
            told = Some(now);
            tokio::select! {
                () = self.ending.cancelled() => return,
                changed = host.changed() => if changed.is_err() { return },
                _ = addresses.changed() => {}
            }
        }
    }

    /// Tells the guest about its network again.
    async fn configure(&self, running: &Running) {
        match running.configure_again().await {
            Ok(warnings) => self.say("guest", (!warnings.is_empty()).then(|| warnings.join("; "))),
            Err(failure) => {
                self.say(
                    "guest",
                    Some(format!(
                        "the guest was not told of a change of its network: {failure}"
                    )),
                );
            }
        }
    }

    /// Opens the network again whenever it dies.
    async fn follow_backend(self: Arc<Self>, running: Arc<Running>) {
        let work = async {
            loop {
                let backend = self.backend();
                let how = backend.ended().await;
                // What stands behind the card of a VM that ends goes with it.
                if self.vm_ends(&running).await {
                    return;
                }
                self.say(
                    "backend",
                    Some(format!(
                        "the network of the VM broke and is opened again: {how}"
                    )),
                );
                // Its connections lead nowhere.
                backend.close().await;
                drop(backend);
                self.open_again(&running).await;
            }
        };
        tokio::select! {
            biased;
            () = self.ending.cancelled() => {}
            () = work => {}
        }
    }

    /// Tells whether the VM is at its end: it was asked to stop, or QEMU goes right now.
    async fn vm_ends(&self, running: &Running) -> bool {
        let stopping = self
            .engine
            .upgrade()
            .is_none_or(|e| e.vm.state() == VmState::Stopping);
        stopping
            || tokio::time::timeout(GOING, running.machine.ended())
                .await
                .is_ok()
    }

    /// Opens it, puts the VM's card on it and tells the guest; tried until it works.
    async fn open_again(&self, running: &Running) {
        let mut time = REOPEN.0;
        loop {
            let Some(engine) = self.engine.upgrade() else {
                return;
            };
            let rules = self.settings.firewall_rules(&engine.registry.settings());
            drop(engine);
            let opened = match self.opener.open(rules).await {
                Ok(backend) => running
                    .machine
                    .replace_nic(&*backend)
                    .await
                    .map(|()| backend)
                    .map_err(|f| f.message),
                Err(why) => Err(why),
            };
            match opened {
                Ok(backend) => {
                    let old = self.wiring.replace(backend);
                    drop(old);
                    self.apply_relay();
                    self.serve_gateway().await;
                    self.tell_names();
                    self.tell_host_names().await;
                    self.configure(running).await;
                    tracing::info!(backend = self.backend().name(), "the network is open again");
                    self.say("backend", None);
                    return;
                }
                Err(why) => {
                    self.say("backend", Some(format!("the VM has no network now: {why}")));
                    pause(time).await;
                    time = (time * 2).min(REOPEN.1);
                }
            }
        }
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
