//! The life of a distribution: started once for everyone who needs it, stopped before anything touches its disk.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hostel_model::{DistroId, ErrorCode, Failure};
use hostel_proto::v1;
use hostel_sys::lock::LockFile;

use crate::{
    engine::{Engine, lock},
    flight::Flight,
    hypervisor::{DiskKind, DiskPlan},
    lifecycle::{DistroEvent, DistroState},
    network::RoomPlan,
    state::{DistroFile, OsInfo},
    task::TaskSink,
    vm::Running,
};

/// How much longer than its own limit a stop may take in the guest: unmounting, syncing.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// The longest text that is taken from the guest for a field that is shown, in bytes.
const MAX_FIELD: usize = 256;

/// What is known about a distribution beside its record.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) state: DistroState,
    /// How many commands need it now.
    pub(crate) users: u32,
    /// Asked to stay until it is stopped (`hostel start`).
    pub(crate) pinned: bool,
    pub(crate) started: Option<Instant>,
    /// Since when nothing needs it.
    pub(crate) idle_since: Option<Instant>,
    pub(crate) info: v1::StartDistroReply,
    /// How it is on the network since it was started.
    pub(crate) room: RoomPlan,
    /// Serialises start, stop, export and removal.
    operation: Arc<tokio::sync::Mutex<()>>,
    start: Arc<Flight<Arc<Vec<String>>>>,
    /// Held while the disk is attached.
    disk: Option<LockFile>,
}

/// Keeps a distribution from being stopped as idle.
#[derive(Debug)]
pub(crate) struct InUse {
    engine: Arc<Engine>,
    id: DistroId,
}

impl Drop for InUse {
    fn drop(&mut self) {
        // Gone when the distribution was removed meanwhile.
        if let Some(live) = lock(&self.engine.live).get_mut(&self.id) {
            live.users = live.users.saturating_sub(1);
            live.idle_since = Some(Instant::now());
        }
    }
}

impl Engine {
    fn with_live<T>(&self, id: DistroId, change: impl FnOnce(&mut Live) -> T) -> T {
        change(lock(&self.live).entry(id).or_default())
    }

    /// Returns what a distribution is doing.
    pub(crate) fn distro_state(&self, id: DistroId) -> DistroState {
        lock(&self.live)
            .get(&id)
            .map_or(DistroState::Stopped, |l| l.state)
    }

    fn apply_distro(&self, record: &DistroFile, event: DistroEvent) -> Result<(), Failure> {
        self.with_live(record.id, |live| {
            live.state = live.state.transition(event).map_err(|e| {
                Failure::new(
                    ErrorCode::WrongState,
                    format!("distribution `{}`: {e}", record.name),
                )
            })?;
            if live.state == DistroState::Stopped {
                live.disk = None;
                live.started = None;
                live.pinned = false;
                live.info = v1::StartDistroReply::default();
                live.room = RoomPlan::default();
            }
            Ok(())
        })
    }

    /// Refuses what a task that holds the distribution does not allow (EXP-2).
    fn refuse_held(&self, record: &DistroFile) -> Result<(), Failure> {
        let state = self.distro_state(record.id);
        match state {
            DistroState::Installing | DistroState::Exporting | DistroState::Removing => {
                Err(Failure::new(
                    ErrorCode::WrongState,
                    format!("distribution `{}` is {state}", record.name),
                )
                .hint("wait until it is done: hostel list"))
            }
            DistroState::Stopped
            | DistroState::Starting
            | DistroState::Running
            | DistroState::Stopping => Ok(()),
        }
    }

    /// Returns the VM with the distribution running in it, starting what is not running, and keeps it from being
    /// stopped as idle. Cancel safe: a start goes on without the one who asked.
    pub(crate) async fn ensure_distro(
        self: &Arc<Self>,
        record: &DistroFile,
        warnings: &mut Vec<String>,
    ) -> Result<(InUse, Arc<Running>), Failure> {
        self.with_live(record.id, |l| {
            l.users += 1;
            l.idle_since = None;
        });
        let in_use = InUse {
            engine: Arc::clone(self),
            id: record.id,
        };
        loop {
            self.refuse_held(record)?;
            if self.distro_state(record.id) == DistroState::Running
                && let Some(running) = self.vm.running()
            {
                running.wait_settled(warnings).await?;
                return Ok((in_use, running));
            }
            let flight = self.with_live(record.id, |l| Arc::clone(&l.start));
            let (engine, id) = (Arc::clone(self), record.id);
            let (result, began) = flight.run(&self.tasks, || engine.start_distro(id)).await;
            let said = result?;
            if began {
                warnings.extend(said.iter().cloned());
            }
        }
    }

    async fn start_distro(self: Arc<Self>, id: DistroId) -> Result<Arc<Vec<String>>, Failure> {
        let operation = self.with_live(id, |l| Arc::clone(&l.operation));
        let _turn = operation.lock().await;
        // Renamed or removed while it waited.
        let record = self.registry.get(id).ok_or_else(|| gone(id))?;
        if self.distro_state(id) == DistroState::Running {
            return Ok(Arc::default());
        }
        if let Some(running) = self.vm.running() {
            // Its PID 1 ended, and whoever tidies up has not had its turn yet.
            self.finish_end(&record, &running).await;
        }
        let layout = self.registry.layout();
        let held = LockFile::try_acquire(&layout.disk_lock(id)).map_err(|e| {
            Failure::from_error(ErrorCode::Busy, &e)
                .hint(format!("the disk of `{}` is in use elsewhere", record.name))
        })?;
        let disk = DiskPlan {
            path: layout.disk(id),
            serial: id.disk_serial(),
            kind: DiskKind::Overlay {
                base: layout.base(&record.base),
            },
        };
        let mut warnings = Vec::new();
        let running = self.ensure_agent(Some(&disk), &mut warnings).await?;
        self.apply_distro(&record, DistroEvent::Start)?;
        self.with_live(id, |l| l.disk = Some(held));
        match self.bring_up(&record, &disk, &running, &mut warnings).await {
            Ok(mut reply) if !running.gone.is_cancelled() => {
                warnings.append(&mut reply.warnings);
                let os = OsInfo {
                    id: field(&reply.os_id),
                    version: field(&reply.os_version),
                    pretty_name: field(&reply.os_pretty_name),
                };
                self.apply_distro(&record, DistroEvent::Started)?;
                self.with_live(id, |l| {
                    l.info = reply;
                    l.started = Some(Instant::now());
                    l.idle_since = Some(Instant::now());
                });
                if !os.id.is_empty() {
                    let stored = self
                        .blocking(move |r| r.set_os(id, os).map_err(|e| e.failure()))
                        .await;
                    if let Err(failure) = stored {
                        tracing::debug!(%failure, "the operating system's name was not recorded");
                    }
                }
                tracing::info!(distro = %record.name, "running");
                if let Some(network) = running.network() {
                    network.tell_names();
                }
                Ok(Arc::new(warnings.into_iter().take(16).collect()))
            }
            Ok(_) => Err(Failure::new(
                ErrorCode::VmCrashed,
                "the VM ended while the distribution started",
            )),
            Err(failure) => {
                // When the VM ended, its end has been applied already.
                let _ = self.apply_distro(&record, DistroEvent::StartFailed);
                Err(failure)
            }
        }
    }

    /// Attaches the disk and starts the distribution's PID 1; on failure the disk is free again.
    async fn bring_up(
        self: &Arc<Self>,
        record: &DistroFile,
        disk: &DiskPlan,
        running: &Running,
        warnings: &mut Vec<String>,
    ) -> Result<v1::StartDistroReply, Failure> {
        let (plan, room) = self.plan_room(record, running, warnings).await?;
        // Before it starts: what listens in it is known by its room from its first moment.
        self.with_live(record.id, |l| l.room = plan);
        if room.is_some() {
            // A room hangs on the VM's own network.
            running.wait_settled(warnings).await?;
        }
        running.machine.attach(disk).await?;
        let mut agent = running.agent();
        let time = self.timeouts().distro_start;
        let request = v1::StartDistroRequest {
            id: record.id.to_string(),
            name: record.name.to_string(),
            disk_serial: disk.serial.clone(),
            hostname: host_name(),
            domain: String::new(),
            default_user: record.default_user.clone(),
            env: Vec::new(),
            room,
        };
        let answer = tokio::time::timeout(time, agent.start_distro(request)).await;
        let failure = match answer {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => running.failure(status).await,
            Err(_) => Failure::new(
                ErrorCode::DistroStart,
                format!(
                    "distribution `{}` did not start within {} s",
                    record.name,
                    time.as_secs()
                ),
            )
            .hint(format!(
                "look inside from the VM: hostel debug-shell, with the disk of `{}`",
                record.name
            ))
            .hint("hostel logs console"),
        };
        if let Err(left) = self.free_disk(record, running, Duration::ZERO).await {
            tracing::warn!(distro = %record.name, failure = %left, "the disk stays attached after a failed start");
        }
        Err(failure)
    }

    /// Stops whatever the guest still has of a distribution and detaches its disk.
    ///
    /// The disk is never detached unless the agent said that it is free.
    async fn free_disk(
        &self,
        record: &DistroFile,
        running: &Running,
        time: Duration,
    ) -> Result<v1::StopDistroReply, Failure> {
        let mut agent = running.agent();
        let request = v1::StopDistroRequest {
            id: record.id.to_string(),
            timeout_ms: u32::try_from(time.as_millis()).unwrap_or(u32::MAX),
        };
        let reply = running
            .call(time + STOP_MARGIN, "a stop", agent.stop_distro(request))
            .await?;
        running.machine.detach(&record.id.disk_serial()).await?;
        Ok(reply)
    }

    /// Starts a distribution and keeps it until it is stopped.
    pub async fn start(
        self: &Arc<Self>,
        name: &str,
        sink: &TaskSink,
    ) -> Result<v1::Distro, Failure> {
        let record = self.resolve(name)?;
        sink.progress("starting", 0, 0, "");
        let mut warnings = Vec::new();
        let (_in_use, _running) = self.ensure_distro(&record, &mut warnings).await?;
        for warning in warnings {
            sink.warn(warning).await;
        }
        self.with_live(record.id, |l| l.pinned = true);
        let record = self
            .registry
            .get(record.id)
            .ok_or_else(|| gone(record.id))?;
        Ok(self.describe(&record, self.registry.default_id() == Some(record.id)))
    }

    /// Stops a distribution; one that is not running is success. Returns its name when it was running.
    pub async fn stop(
        self: &Arc<Self>,
        name: &str,
        timeout: Option<Duration>,
    ) -> Result<Option<String>, Failure> {
        let record = self.resolve(name)?;
        self.refuse_held(&record)?;
        let engine = Arc::clone(self);
        self.tasks
            .spawn(async move {
                let operation = engine.with_live(record.id, |l| Arc::clone(&l.operation));
                let _turn = operation.lock().await;
                let stopped = engine.take_down(&record, timeout).await?;
                Ok(stopped.then(|| record.name.to_string()))
            })
            .await
            .unwrap_or_else(|e| Err(Failure::from_error(ErrorCode::Internal, &e)))
    }

    /// Stops a distribution; the caller holds its turn. Tells whether it was running.
    async fn take_down(
        &self,
        record: &DistroFile,
        timeout: Option<Duration>,
    ) -> Result<bool, Failure> {
        let Some(running) = self
            .vm
            .running()
            .filter(|_| self.distro_state(record.id) == DistroState::Running)
        else {
            return Ok(false);
        };
        self.apply_distro(record, DistroEvent::Stop)?;
        let time = timeout.unwrap_or_else(|| self.timeouts().distro_stop);
        match self.free_disk(record, &running, time).await {
            Ok(_) => self.apply_distro(record, DistroEvent::Ended)?,
            Err(_) if running.gone.is_cancelled() => {}
            Err(failure) => {
                let _ = self.apply_distro(record, DistroEvent::StopFailed);
                return Err(failure);
            }
        }
        tracing::info!(distro = %record.name, "stopped");
        Ok(true)
    }

    /// Takes the news that a distribution's PID 1 ended.
    pub(crate) fn distro_ended(self: &Arc<Self>, running: &Arc<Running>, end: &v1::DistroEnded) {
        let Some(record) = end.id.parse().ok().and_then(|id| self.registry.get(id)) else {
            return;
        };
        // A stop under way, or an end already handled, finds out by itself.
        if self.distro_state(record.id) != DistroState::Running
            || self.apply_distro(&record, DistroEvent::Stop).is_err()
        {
            return;
        }
        tracing::info!(distro = %record.name, code = end.code, signal = end.signal, "its PID 1 ended");
        let (engine, running) = (Arc::clone(self), Arc::clone(running));
        self.tasks.spawn(async move {
            let operation = engine.with_live(record.id, |l| Arc::clone(&l.operation));
            let _turn = operation.lock().await;
            engine.finish_end(&record, &running).await;
        });
    }

    /// Frees the disk of a distribution that is stopping although nobody stops it; the caller holds its turn.
    async fn finish_end(&self, record: &DistroFile, running: &Running) {
        if self.distro_state(record.id) != DistroState::Stopping {
            return;
        }
        let event = match self.free_disk(record, running, Duration::ZERO).await {
            Ok(_) => DistroEvent::Ended,
            Err(failure) => {
                tracing::warn!(distro = %record.name, %failure, "the disk of a distribution that ended is not free");
                DistroEvent::StopFailed
            }
        };
        if !running.gone.is_cancelled() {
            let _ = self.apply_distro(record, event);
        }
    }

    /// Asks a restarted agent which distributions it still has; those it lost have ended.
    pub(crate) fn check_distros(self: &Arc<Self>, running: &Arc<Running>) {
        let ids: Vec<DistroId> = {
            let live = lock(&self.live);
            live.iter()
                .filter(|(_, l)| l.state == DistroState::Running)
                .map(|(id, _)| *id)
                .collect()
        };
        let (engine, running) = (Arc::clone(self), Arc::clone(running));
        self.tasks.spawn(async move {
            for id in ids {
                if running.inspect(id).await.is_err() {
                    engine.distro_ended(
                        &running,
                        &v1::DistroEnded {
                            id: id.to_string(),
                            code: 0,
                            signal: 0,
                        },
                    );
                }
            }
        });
    }

    /// Takes the end of the VM: no distribution runs any more and no disk is in use.
    pub(crate) fn all_distros_ended(&self) {
        for (id, live) in lock(&self.live).iter_mut() {
            if let Ok(next) = live.state.transition(DistroEvent::Ended) {
                tracing::debug!(%id, "ended with the VM");
                *live = Live {
                    state: next,
                    users: live.users,
                    operation: Arc::clone(&live.operation),
                    start: Arc::clone(&live.start),
                    ..Live::default()
                };
            }
        }
    }

    /// Returns the names of running distributions.
    pub(crate) fn running_names(&self) -> Vec<String> {
        let live = lock(&self.live);
        self.registry
            .list()
            .into_iter()
            .filter(|d| {
                live.get(&d.id)
                    .is_some_and(|l| l.state == DistroState::Running)
            })
            .map(|d| d.name.to_string())
            .collect()
    }

    /// Removes a distribution, stopping it first.
    pub async fn remove(self: &Arc<Self>, name: &str) -> Result<(), Failure> {
        if name.is_empty() {
            return Err(
                Failure::new(ErrorCode::InvalidArgument, "no distribution was named")
                    .hint("hostel list"),
            );
        }
        let record = self.resolve(name)?;
        let working = self.work();
        let engine = Arc::clone(self);
        self.tasks
            .spawn(async move {
                let _working = working;
                engine.hold(&record, DistroEvent::Remove).await?;
                let id = record.id;
                let removed = engine
                    .blocking(move |r| r.remove(id).map_err(|e| e.failure()))
                    .await;
                if engine.registry.get(id).is_some() {
                    engine.apply_distro(&record, DistroEvent::RemoveFailed)?;
                } else {
                    lock(&engine.live).remove(&id);
                }
                removed
            })
            .await
            .unwrap_or_else(|e| Err(Failure::from_error(ErrorCode::Internal, &e)))
    }

    /// Stops a distribution and takes it for a task that needs its disk.
    pub(crate) async fn hold(
        self: &Arc<Self>,
        record: &DistroFile,
        event: DistroEvent,
    ) -> Result<(), Failure> {
        self.refuse_held(record)?;
        let operation = self.with_live(record.id, |l| Arc::clone(&l.operation));
        let _turn = operation.lock().await;
        self.refuse_held(record)?;
        self.registry
            .get(record.id)
            .ok_or_else(|| gone(record.id))?;
        self.take_down(record, None).await?;
        let held =
            LockFile::try_acquire(&self.registry.layout().disk_lock(record.id)).map_err(|e| {
                Failure::from_error(ErrorCode::Busy, &e)
                    .hint(format!("the disk of `{}` is in use elsewhere", record.name))
            })?;
        self.apply_distro(record, event)?;
        self.with_live(record.id, |l| l.disk = Some(held));
        Ok(())
    }

    /// Gives a distribution back that [`Engine::hold`] took.
    pub(crate) fn release(&self, record: &DistroFile, event: DistroEvent) {
        if let Err(failure) = self.apply_distro(record, event) {
            tracing::error!(%failure, "a task ended in a state that does not fit");
        }
    }

    /// Returns the distributions that nothing has needed for `time`.
    pub(crate) fn idle_for(&self, time: Duration) -> Vec<DistroId> {
        // Somebody on the host is connected to it: that is use, also while it says nothing.
        for id in self.connected().into_iter().flatten() {
            if let Some(live) = lock(&self.live).get_mut(&id)
                && live.idle_since.is_some()
            {
                live.idle_since = Some(Instant::now());
            }
        }
        lock(&self.live)
            .iter()
            .filter(|(_, l)| l.state == DistroState::Running && l.users == 0 && !l.pinned)
            .filter(|(_, l)| l.idle_since.is_some_and(|s| s.elapsed() >= time))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Begins a new idle time for a distribution that turned out to be in use.
    pub(crate) fn not_idle(&self, id: DistroId) {
        self.with_live(id, |l| l.idle_since = Some(Instant::now()));
    }

    /// Stops a distribution unless somebody needs it by now.
    pub(crate) async fn stop_idle(self: &Arc<Self>, id: DistroId, time: Duration) {
        let Some(record) = self.registry.get(id) else {
            return;
        };
        let operation = self.with_live(id, |l| Arc::clone(&l.operation));
        let _turn = operation.lock().await;
        // Somebody may have come and gone while the guest was asked.
        if !self.idle_for(time).contains(&id) {
            return;
        }
        if let Err(failure) = self.take_down(&record, None).await {
            tracing::warn!(distro = %record.name, %failure, "an idle distribution was not stopped");
            self.not_idle(id);
        }
    }

    /// Tells whether every distribution is stopped or held by a task that needs no VM.
    pub(crate) fn no_distro_runs(&self) -> bool {
        lock(&self.live).values().all(|l| match l.state {
            DistroState::Stopped
            | DistroState::Installing
            | DistroState::Exporting
            | DistroState::Removing => l.users == 0,
            DistroState::Starting | DistroState::Running | DistroState::Stopping => false,
        })
    }
}

fn gone(id: DistroId) -> Failure {
    Failure::new(
        ErrorCode::DistroNotFound,
        format!("distribution {id} was removed"),
    )
    .hint("hostel list")
}

/// Returns the host's name, which a distribution takes unless its wsl.conf says otherwise.
pub(crate) fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Makes a text of the guest fit to be kept and shown.
fn field(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_FIELD)
        .collect()
}
