//! The engine: everything of one Hostel of one user, and the questions that only look.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hostel_model::{DistroId, ErrorCode, Failure, SessionId};
use hostel_proto::v1;
use hostel_sys::lock::LockFile;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    distro::Live,
    hypervisor::Hypervisor,
    layout::Layout,
    lifecycle::DistroState,
    network::Ledger,
    registry::{Opened, Registry, state_failure},
    session::Session,
    state::DistroFile,
    streams::{Broker, ClientStream, GuestStream},
    vm::Vm,
};

/// Times that the engine keeps; `None` is never.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// How long a distribution with nothing in it stays (`instanceIdleTimeout`).
    pub instance_idle: Option<Duration>,
    /// How long a VM without a running distribution stays (`vmIdleTimeout`).
    pub vm_idle: Option<Duration>,
    /// How long the start of a distribution may take (`distributionStartTimeout`).
    pub distro_start: Duration,
    /// How long a distribution may take to end before it is killed, when the request does not say.
    pub distro_stop: Duration,
    /// How long an agent that has dialled in may take to greet.
    pub greeting: Duration,
    /// How long the VM may take to power off before QEMU is killed.
    pub vm_stop: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            instance_idle: Some(Duration::from_secs(15)),
            vm_idle: Some(Duration::from_secs(60)),
            distro_start: Duration::from_secs(60),
            distro_stop: Duration::from_secs(10),
            greeting: Duration::from_secs(30),
            vm_stop: Duration::from_secs(30),
        }
    }
}

/// Everything of one Hostel. Shared; every method may be called from any task.
#[derive(Debug)]
pub struct Engine {
    pub(crate) registry: Arc<Registry>,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) live: Mutex<HashMap<DistroId, Live>>,
    pub(crate) vm: Vm,
    pub(crate) sessions: Mutex<HashMap<SessionId, Arc<Session>>>,
    pub(crate) client_streams: Arc<Broker<ClientStream>>,
    pub(crate) guest_streams: Arc<Broker<GuestStream>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
    pub(crate) ledger: Ledger,
    /// Held while rules or addresses are changed, from reading them to writing them.
    pub(crate) rules_turn: tokio::sync::Mutex<()>,
    timeouts: Mutex<Timeouts>,
    working: AtomicUsize,
    /// Held as long as this engine lives, so that no other one uses the directory.
    _lock: LockFile,
}

/// Keeps the engine from counting as idle while a long task runs.
#[derive(Debug)]
pub(crate) struct Working(Arc<Engine>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes the lock of a state directory and reads the registry, so that nothing else uses it.
///
/// The directory is made when it is missing. Blocks for some milliseconds.
pub fn open_home(layout: Layout) -> Result<(Arc<Registry>, Opened, LockFile), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(layout.home())
        .map_err(|e| {
            Failure::new(
                ErrorCode::State,
                format!(
                    "cannot make state directory `{}`: {e}",
                    layout.home().display()
                ),
            )
            .hint("set HOSTEL_HOME to a directory that you may write")
        })?;
    let lock = LockFile::try_acquire(&layout.lock()).map_err(|e| {
        Failure::from_error(ErrorCode::Busy, &e)
            .hint("another daemon uses this state directory: hostel status")
    })?;
    let (registry, opened) = Registry::open(layout).map_err(|e| state_failure(&e))?;
    Ok((registry, opened, lock))
}

impl Engine {
    /// Makes the engine over an open state directory. Must be called inside a tokio runtime.
    pub fn new(
        registry: Arc<Registry>,
        lock: LockFile,
        hypervisor: Arc<dyn Hypervisor>,
        timeouts: Timeouts,
    ) -> Arc<Self> {
        let engine = Arc::new(Self {
            registry,
            hypervisor,
            live: Mutex::default(),
            vm: Vm::default(),
            sessions: Mutex::default(),
            client_streams: Arc::default(),
            guest_streams: Arc::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            ledger: Ledger::default(),
            rules_turn: tokio::sync::Mutex::default(),
            timeouts: Mutex::new(timeouts),
            working: AtomicUsize::new(0),
            _lock: lock,
        });
        let watcher = Arc::downgrade(&engine);
        engine
            .tasks
            .spawn(crate::idle::watch(watcher, engine.closing.clone()));
        engine
    }

    /// Returns the registry.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Returns the tokens that clients claim.
    pub fn client_streams(&self) -> &Arc<Broker<ClientStream>> {
        &self.client_streams
    }

    /// Returns the times in force.
    pub fn timeouts(&self) -> Timeouts {
        *lock(&self.timeouts)
    }

    /// Changes the times in force.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        *lock(&self.timeouts) = timeouts;
    }

    /// Tells whether nothing is running and nothing is being done: the daemon may leave.
    pub fn is_idle(&self) -> bool {
        self.working.load(Ordering::Relaxed) == 0 && self.vm.is_off()
    }

    /// Stops everything and waits until every task has ended. The engine is not usable afterwards.
    pub async fn close(self: &Arc<Self>, force: bool) {
        if let Err(failure) = self.shutdown(force).await {
            tracing::warn!(%failure, "the VM was not stopped in order");
        }
        self.closing.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(10), self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = self.tasks.len(), "tasks did not end in 10 s");
        }
    }

    pub(crate) fn work(self: &Arc<Self>) -> Working {
        self.working.fetch_add(1, Ordering::Relaxed);
        Working(Arc::clone(self))
    }

    /// Runs something that blocks on the registry.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        what: impl FnOnce(&Arc<Registry>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let registry = Arc::clone(&self.registry);
        tokio::task::spawn_blocking(move || what(&registry))
            .await
            .unwrap_or_else(|e| Err(Failure::from_error(ErrorCode::Internal, &e)))
    }

    /// Finds a registered distribution, or the default one when the name is empty.
    pub fn resolve(&self, name: &str) -> Result<DistroFile, Failure> {
        self.registry.resolve(name).map_err(|e| {
            let mut failure = e.failure();
            failure.hints.extend(
                self.registry
                    .damaged()
                    .into_iter()
                    .map(|d| format!("left out: {d}")),
            );
            failure
        })
    }

    /// Lists distributions: the default first, then by time of registration, those being made last (LIST-1).
    pub fn list(&self, running_only: bool) -> Vec<v1::Distro> {
        let default = self.registry.default_id();
        let mut all: Vec<v1::Distro> = self
            .registry
            .list()
            .iter()
            .map(|d| self.describe(d, default == Some(d.id)))
            .collect();
        all.extend(
            self.registry
                .reserved()
                .into_iter()
                .map(|(id, name)| v1::Distro {
                    id: id.to_string(),
                    name: name.to_string(),
                    state: DistroState::Installing.as_str().to_owned(),
                    version: 2,
                    ..v1::Distro::default()
                }),
        );
        if running_only {
            all.retain(|d| d.state == DistroState::Running.as_str());
        }
        all
    }

    /// Describes one distribution as the wire does.
    pub(crate) fn describe(&self, record: &DistroFile, is_default: bool) -> v1::Distro {
        let layout = self.registry.layout();
        let sessions = lock(&self.sessions)
            .values()
            .filter(|s| s.distro == Some(record.id))
            .count();
        let room = self.room_of(record);
        let live = lock(&self.live);
        let live = live.get(&record.id);
        let state = live.map_or(DistroState::Stopped, |l| l.state);
        let running = live.filter(|_| state == DistroState::Running);
        v1::Distro {
            id: record.id.to_string(),
            name: record.name.to_string(),
            state: state.as_str().to_owned(),
            version: record.version,
            is_default,
            os_id: record.os.id.clone(),
            os_version: record.os.version.clone(),
            os_pretty_name: record.os.pretty_name.clone(),
            created_unix: record.created_unix_ns / 1_000_000_000,
            disk_bytes: allocated(&layout.disk(record.id)),
            base_bytes: allocated(&layout.base(&record.base)),
            base: record.base.clone(),
            sessions: sessions as u32,
            init_pid: running.map_or(0, |l| l.info.init_pid),
            default_user: running
                .map(|l| l.info.default_user.clone())
                .filter(|u| !u.is_empty())
                .unwrap_or_else(|| record.default_user.clone()),
            uptime_ms: running
                .and_then(|l| l.started)
                .map_or(0, |s| s.elapsed().as_millis() as u64),
            source: record.source.clone(),
            network: room.kind.to_string(),
            address: room.address.map(|a| a.to_string()).unwrap_or_default(),
        }
    }

    /// Tells everything about one distribution; asks the guest when it runs.
    pub async fn inspect(&self, name: &str) -> Result<v1::InspectReply, Failure> {
        let record = self.resolve(name)?;
        let room = self.room_of(&record);
        let layout = self.registry.layout();
        let mut reply = v1::InspectReply {
            distro: Some(self.describe(&record, self.registry.default_id() == Some(record.id))),
            directory: layout.distro(record.id).display().to_string(),
            disk: layout.disk(record.id).display().to_string(),
            base_path: layout.base(&record.base).display().to_string(),
            disk_limit_bytes: record.disk_limit,
            disk_serial: record.id.disk_serial(),
            sessions: self.sessions_of(Some(record.id)),
            network: room.kind.to_string(),
            address: room
                .address
                .or_else(|| self.vm.network().map(|n| n.record.address))
                .map(|a| a.to_string())
                .unwrap_or_default(),
            ..v1::InspectReply::default()
        };
        if self.distro_state(record.id) == DistroState::Running
            && let Some(running) = self.vm.running()
        {
            let seen = running.inspect(record.id).await?;
            reply.hostname = seen.hostname;
            reply.namespaces = seen.namespaces;
            reply.memory_bytes = seen.memory_bytes;
            reply.processes = seen.processes;
        }
        Ok(reply)
    }

    /// Gives a distribution another name; its host name follows at its next start.
    pub async fn rename(self: &Arc<Self>, name: &str, new_name: &str) -> Result<(), Failure> {
        let id = self.resolve(name)?.id;
        let new_name = parse_name(new_name)?;
        self.blocking(move |r| r.rename(id, new_name).map_err(|e| e.failure()))
            .await
    }

    /// Makes a distribution the default one.
    pub async fn set_default(self: &Arc<Self>, name: &str) -> Result<(), Failure> {
        if name.is_empty() {
            return Err(
                Failure::new(ErrorCode::InvalidArgument, "no distribution was named")
                    .hint("hostel list"),
            );
        }
        let id = self.resolve(name)?.id;
        self.blocking(move |r| r.set_default(id).map_err(|e| e.failure()))
            .await
    }
}

/// Checks a name from the wire.
pub(crate) fn parse_name(text: &str) -> Result<hostel_model::DistroName, Failure> {
    text.parse()
        .map_err(|e| Failure::from_error(ErrorCode::InvalidName, &e))
}

/// Returns what a file holds on the host, in bytes; 0 when it is not there.
fn allocated(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs_err::metadata(path).map_or(0, |m| m.blocks() * 512)
}

/// Locks; a panic of another holder does not matter, every change under these locks is one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
