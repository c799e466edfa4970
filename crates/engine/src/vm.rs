//! The life of the VM: started once for everyone who needs it, watched until its end, and its end told to everyone.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::BoxFuture};
use hostel_model::{DistroId, ErrorCode, Failure, GENERATION, OLDEST_GENERATION, Token};
use hostel_proto::{
    Guarded, failure_of,
    limits::MAX_MESSAGE,
    v1::{self, agent_client::AgentClient, agent_event::Event},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncReadExt as _,
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    engine::{Engine, lock},
    flight::Flight,
    hypervisor::{Booted, DiskPlan, Machine, VmInfo},
    lifecycle::{VmEvent, VmState},
    network::Live,
    streams::GuestStream,
};

/// How long an agent that has dialled in may take to greet and to settle the machine.
const SETTLE: Duration = Duration::from_secs(60);

/// How long a lost agent may take to dial again before the VM counts as hung.
const REDIAL: Duration = Duration::from_secs(15);

/// How long a small question to the agent may take.
const QUESTION: Duration = Duration::from_secs(20);

/// How long the end of the VM may lag behind the end of a call to its agent.
const END_LAG: Duration = Duration::from_secs(3);

/// How long a connection of the guest may take to send its token.
const TOKEN_TIME: Duration = Duration::from_secs(10);

/// The most connections of the guest that have not sent their token yet.
const MAX_NAMELESS: usize = 256;

/// The VM, whatever its state.
#[derive(Debug)]
pub(crate) struct Vm {
    inner: Mutex<Inner>,
    changed: watch::Sender<VmState>,
    start: Flight<Boot>,
}

#[derive(Debug, Default)]
struct Inner {
    state: VmState,
    running: Option<Arc<Running>>,
    last_end: String,
}

/// What a start of the VM gave: the VM, and what to tell whoever caused it.
#[derive(Clone, Debug)]
struct Boot {
    running: Arc<Running>,
    warnings: Arc<Vec<String>>,
}

/// A running VM.
pub(crate) struct Running {
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) info: VmInfo,
    pub(crate) kernel_release: String,
    pub(crate) boot_ms: u64,
    started: Instant,
    agent: Mutex<AgentClient<Guarded<Channel>>>,
    /// Counts the agents: a lost one dials again.
    agents: watch::Sender<u32>,
    network: Option<Arc<Live>>,
    configure: v1::ConfigureRequest,
    end: watch::Sender<Option<String>>,
    /// How the first settling ended, once it has.
    settled: watch::Sender<Option<Result<(), Failure>>>,
    /// What the settling had to say, for the first who waits for it.
    remarks: Mutex<Vec<String>>,
    /// Cancelled when the VM has ended.
    pub(crate) gone: CancellationToken,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Running(pid {})", self.info.qemu_pid)
    }
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            changed: watch::channel(VmState::Off).0,
            start: Flight::default(),
        }
    }
}

impl Vm {
    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        lock(&self.inner).running.clone()
    }

    /// Returns the network of the running VM.
    pub(crate) fn network(&self) -> Option<Arc<Live>> {
        self.running()?.network.clone()
    }

    pub(crate) fn state(&self) -> VmState {
        lock(&self.inner).state
    }

    pub(crate) fn is_off(&self) -> bool {
        matches!(self.state(), VmState::Off | VmState::Crashed)
    }

    fn apply(&self, event: VmEvent, change: impl FnOnce(&mut Inner)) -> Result<(), Failure> {
        let mut inner = lock(&self.inner);
        let next = inner.state.transition(event).map_err(|e| {
            Failure::new(ErrorCode::WrongState, format!("the VM: {e}")).hint("hostel status")
        })?;
        inner.state = next;
        change(&mut inner);
        self.changed.send_replace(next);
        Ok(())
    }
}

impl Running {
    /// Returns a client of the agent.
    pub(crate) fn agent(&self) -> AgentClient<Guarded<Channel>> {
        lock(&self.agent).clone()
    }

    /// Tells when another agent has taken the place of a lost one.
    pub(crate) fn agents(&self) -> watch::Receiver<u32> {
        self.agents.subscribe()
    }

    /// Returns the network; `None`: there is none.
    pub(crate) fn network(&self) -> Option<&Arc<Live>> {
        self.network.as_ref()
    }

    /// Settles the machine again after a change of its network, once the first settling is done.
    pub(crate) async fn configure_again(&self) -> Result<Vec<String>, Failure> {
        self.wait_settled(&mut Vec::new()).await?;
        let mut agent = self.agent();
        tokio::time::timeout(SETTLE, self.configure(&mut agent))
            .await
            .map_err(|_| unsettled())?
            .map_err(|s| failure_of(&s))
    }

    /// Turns a failed call to the agent into what the user is told; when the VM ended, that is the reason.
    ///
    /// Waits a little for the news of that end.
    pub(crate) async fn failure(&self, status: Status) -> Failure {
        let transport = matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        ) && status.metadata().get("hostel-code").is_none();
        if transport && let Some(how) = self.ended_within(END_LAG).await {
            return crashed(&how);
        }
        let failure = failure_of(&status);
        if transport {
            return Failure::new(
                ErrorCode::VmHung,
                format!("the agent in the VM does not answer: {failure}"),
            )
            .hint("hostel shutdown --force")
            .hint("hostel logs console");
        }
        failure
    }

    /// Waits until the VM has ended and says how; `None` when it has not ended in time.
    pub(crate) async fn ended_within(&self, time: Duration) -> Option<String> {
        let mut end = self.end.subscribe();
        let ended = tokio::time::timeout(time, end.wait_for(Option::is_some))
            .await
            .ok()?
            .ok()?;
        ended.clone()
    }

    /// Waits until the machine has its clock, names and network. Whoever is first gets what there is to say about it.
    pub(crate) async fn wait_settled(&self, warnings: &mut Vec<String>) -> Result<(), Failure> {
        let mut settled = self.settled.subscribe();
        tokio::select! {
            biased;
            Ok(result) = settled.wait_for(Option::is_some) => result.clone().unwrap_or(Ok(()))?,
            () = self.gone.cancelled() => {
                return Err(crashed(&self.end.borrow().clone().unwrap_or_default()));
            }
        }
        warnings.append(&mut lock(&self.remarks));
        Ok(())
    }

    /// Settles a machine that has just started; one that cannot be settled is of no use and is killed.
    async fn settle(self: Arc<Self>, mut agent: AgentClient<Guarded<Channel>>) {
        let result = match tokio::time::timeout(SETTLE, self.configure(&mut agent)).await {
            Ok(Ok(warnings)) => {
                *lock(&self.remarks) = warnings;
                Ok(())
            }
            Ok(Err(status)) => Err(self.failure(status).await),
            Err(_) => Err(unsettled()),
        };
        let failed = result.is_err();
        self.settled.send_replace(Some(result));
        if failed {
            self.machine.kill().await;
        }
    }

    /// Asks about a running distribution.
    pub(crate) async fn inspect(&self, id: DistroId) -> Result<v1::InspectDistroReply, Failure> {
        let mut agent = self.agent();
        let question = agent.inspect_distro(v1::InspectDistroRequest { id: id.to_string() });
        self.call(QUESTION, "a question about a distribution", question)
            .await
    }

    /// Awaits a call to the agent for a limited time.
    pub(crate) async fn call<T>(
        &self,
        time: Duration,
        what: &str,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(crashed(&self.end.borrow().clone().unwrap_or_default())),
            answer = tokio::time::timeout(time, call) => match answer {
                Ok(Ok(reply)) => Ok(reply.into_inner()),
                Ok(Err(status)) => Err(self.failure(status).await),
                Err(_) => Err(Failure::new(
                    ErrorCode::VmHung,
                    format!("the agent in the VM did not answer {what} within {} s", time.as_secs()),
                )
                .hint("hostel shutdown --force")
                .hint("hostel logs console")),
            },
        }
    }

    /// Settles the machine; time and entropy are those of this moment.
    async fn configure(
        &self,
        agent: &mut AgentClient<Guarded<Channel>>,
    ) -> Result<Vec<String>, Status> {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let mut entropy = Token::new_random().as_bytes().to_vec();
        let mut fresh = [0; 32];
        if rustix::rand::getrandom(&mut fresh, rustix::rand::GetRandomFlags::empty())
            .is_ok_and(|n| n == fresh.len())
        {
            entropy = fresh.to_vec();
        }
        let request = v1::ConfigureRequest {
            time_unix_ns: now.as_nanos() as u64,
            entropy: entropy.into(),
            network: self.network.as_ref().map(|n| n.tell_guest()),
            ..self.configure.clone()
        };
        Ok(agent.configure(request).await?.into_inner().warnings)
    }
}

/// Says that an agent takes too long.
fn unsettled() -> Failure {
    Failure::new(
        ErrorCode::VmStart,
        format!(
            "the agent in the VM did not settle within {} s",
            SETTLE.as_secs()
        ),
    )
    .hint("hostel logs console")
}

/// Says that the VM ended while it was in use.
fn crashed(how: &str) -> Failure {
    Failure::new(ErrorCode::VmCrashed, format!("the VM ended: {how}"))
        .hint("run the command again: the VM is started anew")
        .hint("hostel logs console")
}

/// Speaks gRPC over a connection that the agent dialled. It is used once: a lost agent dials again.
async fn connect(
    control: GuestStream,
) -> Result<AgentClient<Guarded<Channel>>, tonic::transport::Error> {
    let once = Arc::new(Mutex::new(Some(TokioIo::new(control))));
    let channel =
        Endpoint::from_static("http://guest")
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(60))
            .connect_with_connector(tower::service_fn(move |_| {
                let taken = lock(&once).take();
                async move {
                    taken.ok_or_else(|| std::io::Error::other("the agent's connection is gone"))
                }
            }))
            .await?;
    // The guest is not trusted.
    Ok(AgentClient::new(Guarded(channel))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE))
}

async fn greet(agent: &mut AgentClient<Guarded<Channel>>) -> Result<v1::AgentGreetReply, Failure> {
    let request = v1::AgentGreetRequest {
        generation: GENERATION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let reply = agent
        .greet(request)
        .await
        .map_err(|s| failure_of(&s))?
        .into_inner();
    if reply.generation < OLDEST_GENERATION {
        return Err(Failure::new(
            ErrorCode::Incompatible,
            format!(
                "the guest speaks generation {}, this daemon needs {OLDEST_GENERATION}",
                reply.generation
            ),
        )
        .hint("install `hosteld` and its guest program from one release"));
    }
    Ok(reply)
}

impl Engine {
    /// Returns the running VM with its clock, names and network, starting it when it is off.
    ///
    /// Whoever causes a start gets its warnings. Cancel safe: a start goes on without the one who asked.
    pub(crate) async fn ensure_vm(
        self: &Arc<Self>,
        warnings: &mut Vec<String>,
    ) -> Result<Arc<Running>, Failure> {
        let running = self.ensure_agent(None, warnings).await?;
        running.wait_settled(warnings).await?;
        Ok(running)
    }

    /// Returns the VM as soon as its agent answers, which may be before it is settled; starts it when it is off, with a disk
    /// that is needed at once. Everyone who asks meanwhile waits for the same start.
    pub(crate) async fn ensure_agent(
        self: &Arc<Self>,
        disk: Option<&DiskPlan>,
        warnings: &mut Vec<String>,
    ) -> Result<Arc<Running>, Failure> {
        loop {
            let (state, running) = {
                let inner = lock(&self.vm.inner);
                (inner.state, inner.running.clone())
            };
            if state == VmState::Stopping {
                let mut changed = self.vm.changed.subscribe();
                let _ = changed.wait_for(|s| *s != VmState::Stopping).await;
                continue;
            }
            if let Some(running) = running {
                return Ok(running);
            }
            let engine = Arc::clone(self);
            let disks: Vec<DiskPlan> = disk.cloned().into_iter().collect();
            let (boot, began) = self.vm.start.run(&self.tasks, || engine.boot(disks)).await;
            let boot = boot?;
            if began {
                warnings.extend(boot.warnings.iter().cloned());
            }
            if !boot.running.gone.is_cancelled() {
                return Ok(boot.running);
            }
        }
    }

    fn boot(self: Arc<Self>, disks: Vec<DiskPlan>) -> BoxFuture<'static, Result<Boot, Failure>> {
        Box::pin(async move {
            if let Some(running) = self.vm.running() {
                return Ok(Boot {
                    running,
                    warnings: Arc::default(),
                });
            }
            self.vm.apply(VmEvent::Start, |_| {})?;
            let begun = Instant::now();
            let warnings = Mutex::new(Vec::new());
            let result = {
                let warn = |text: String| lock(&warnings).push(text);
                match self.hypervisor.boot(&disks, &warn).await {
                    Ok(booted) => self.greet(booted, begun).await,
                    Err(failure) => Err(failure),
                }
            };
            match result {
                Ok((running, modules, events)) => {
                    self.vm.apply(VmEvent::Ready, |inner| {
                        inner.running = Some(Arc::clone(&running));
                    })?;
                    tracing::info!(
                        accel = running.info.accel,
                        pid = running.info.qemu_pid,
                        boot_ms = running.boot_ms,
                        "the VM runs"
                    );
                    self.tasks
                        .spawn(Arc::clone(&self).supervise(Arc::clone(&running), events));
                    self.tasks
                        .spawn(Arc::clone(&self).take_streams(Arc::clone(&running)));
                    if let Some(network) = running.network() {
                        network.attach(&self, &running);
                    }
                    if let Some(modules) = modules {
                        self.tasks
                            .spawn(mount_modules(Arc::clone(&running), modules));
                    }
                    let warnings = std::mem::take(&mut *lock(&warnings));
                    Ok(Boot {
                        running,
                        warnings: Arc::new(warnings),
                    })
                }
                Err(failure) => {
                    self.vm.apply(VmEvent::StartFailed, |inner| {
                        inner.last_end.clone_from(&failure.message);
                    })?;
                    tracing::error!(%failure, "the VM did not start");
                    Err(failure)
                }
            }
        })
    }

    /// Greets an agent that has dialled in and begins to settle its machine, which is killed when that fails.
    async fn greet(
        self: &Arc<Self>,
        booted: Booted,
        begun: Instant,
    ) -> Result<(Arc<Running>, Option<DiskPlan>, Streaming<v1::AgentEvent>), Failure> {
        let Booted {
            machine,
            control,
            configure,
            network,
            info,
            modules,
            timeouts,
        } = booted;
        let network = match network {
            Some(setup) => Some(Live::new(self, setup).await),
            None => None,
        };
        let opened = network.clone();
        if let Some(timeouts) = timeouts {
            self.set_timeouts(timeouts);
        }
        let work = async {
            let mut agent = connect(control).await.map_err(|e| {
                Failure::from_error(ErrorCode::VmStart, &e).hint("hostel logs console")
            })?;
            let greeting = greet(&mut agent).await?;
            let running = Arc::new(Running {
                machine: Arc::clone(&machine),
                info,
                kernel_release: greeting.kernel_release,
                boot_ms: begun.elapsed().as_millis() as u64,
                started: Instant::now(),
                agent: Mutex::new(agent.clone()),
                agents: watch::channel(0).0,
                network,
                configure,
                end: watch::channel(None).0,
                settled: watch::channel(None).0,
                remarks: Mutex::default(),
                gone: CancellationToken::new(),
            });
            // Beside the start of the first distribution: the network takes its time to appear.
            self.tasks.spawn(Arc::clone(&running).settle(agent.clone()));
            let events = agent
                .watch(v1::WatchRequest {})
                .await
                .map_err(|s| failure_of(&s))?
                .into_inner();
            Ok((running, modules, events))
        };
        let result = tokio::select! {
            result = tokio::time::timeout(SETTLE, work) => result.unwrap_or_else(|_| Err(unsettled())),
            how = machine.ended() => {
                Err(Failure::new(ErrorCode::VmStart, format!("the VM ended while it started: {how}"))
                    .hint("hostel logs console"))
            }
        };
        if result.is_err() {
            machine.kill().await;
            if let Some(network) = opened {
                network.close().await;
            }
        }
        result
    }

    /// Watches a VM until its end, and tells that end to everyone.
    async fn supervise(
        self: Arc<Self>,
        running: Arc<Running>,
        mut events: Streaming<v1::AgentEvent>,
    ) {
        let how = loop {
            tokio::select! {
                how = running.machine.ended() => break how,
                event = events.next() => match event {
                    Some(Ok(v1::AgentEvent { event: Some(Event::DistroEnded(end)) })) => {
                        self.distro_ended(&running, &end);
                    }
                    Some(Ok(v1::AgentEvent { event: None })) => {}
                    Some(Err(_)) | None => match self.agent_lost(&running).await {
                        Ok(again) => events = again,
                        Err(how) => break how,
                    },
                },
            }
        };
        // Before anybody can start the next VM, which will want the same addresses.
        if let Some(network) = running.network() {
            network.close().await;
        }
        self.vm_ended(&running, how);
    }

    /// Waits for a lost agent to dial again; the VM is killed when it does not.
    async fn agent_lost(
        self: &Arc<Self>,
        running: &Arc<Running>,
    ) -> Result<Streaming<v1::AgentEvent>, String> {
        let again = async {
            let control = running.machine.agent_dials().await?;
            let mut agent = connect(control).await.ok()?;
            greet(&mut agent).await.ok()?;
            running.configure(&mut agent).await.ok()?;
            let events = agent.watch(v1::WatchRequest {}).await.ok()?.into_inner();
            *lock(&running.agent) = agent;
            running.agents.send_modify(|n| *n += 1);
            Some(events)
        };
        tokio::select! {
            biased;
            how = running.machine.ended() => Err(how),
            again = tokio::time::timeout(REDIAL, again) => {
                if let Ok(Some(events)) = again {
                    tracing::warn!("the agent in the VM was restarted");
                    self.check_distros(running);
                    return Ok(events);
                }
                running.machine.kill().await;
                Err(format!("its agent was gone for {} s", REDIAL.as_secs()))
            }
        }
    }

    fn vm_ended(self: &Arc<Self>, running: &Arc<Running>, how: String) {
        let asked = self.vm.state() == VmState::Stopping;
        if asked {
            tracing::info!("the VM is off");
        } else {
            tracing::error!(how, "the VM ended without being asked to");
        }
        // Distributions first: whoever sees the VM off must not see one running.
        self.all_distros_ended();
        running.end.send_replace(Some(how.clone()));
        running.gone.cancel();
        let result = self.vm.apply(
            if asked { VmEvent::Ended } else { VmEvent::Died },
            |inner| {
                inner.running = None;
                inner.last_end = if asked { String::new() } else { how };
            },
        );
        if let Err(failure) = result {
            tracing::error!(%failure, "the VM's end does not fit its state");
        }
    }

    /// Takes the guest's raw connections until the VM ends. What sends no token in time, or a wrong one, is dropped.
    async fn take_streams(self: Arc<Self>, running: Arc<Running>) {
        let nameless = Arc::new(Semaphore::new(MAX_NAMELESS));
        loop {
            let stream = tokio::select! {
                () = running.gone.cancelled() => return,
                stream = running.machine.stream_dials() => stream,
            };
            let Some(mut stream) = stream else { return };
            // Too many that say nothing: this one is dropped, the guest sees a reset.
            let Ok(permit) = Arc::clone(&nameless).try_acquire_owned() else {
                continue;
            };
            let engine = Arc::clone(&self);
            self.tasks.spawn(async move {
                let mut bytes = [0; Token::LEN];
                let read = tokio::time::timeout(TOKEN_TIME, stream.read_exact(&mut bytes)).await;
                drop(permit);
                if let (Ok(Ok(_)), Some(token)) = (read, Token::from_bytes(&bytes))
                    && engine.guest_streams.deliver(&token, stream).is_err()
                {
                    tracing::debug!(?token, "the guest sent a token that nobody gave out");
                }
            });
        }
    }

    /// Stops every distribution, then the VM; with `force` the VM is killed at once. Returns who was stopped.
    pub async fn shutdown(self: &Arc<Self>, force: bool) -> Result<Vec<String>, Failure> {
        let engine = Arc::clone(self);
        let _working = self.work();
        self.tasks
            .spawn(async move { engine.shut_down(force).await })
            .await
            .unwrap_or_else(|e| Err(Failure::from_error(ErrorCode::Internal, &e)))
    }

    async fn shut_down(self: Arc<Self>, force: bool) -> Result<Vec<String>, Failure> {
        // A start under way is waited for: half a VM cannot be asked to stop.
        let mut changed = self.vm.changed.subscribe();
        let _ = changed.wait_for(|s| *s != VmState::Starting).await;
        let names = self.running_names();
        if !force {
            let stops = names.iter().map(|name| {
                let engine = Arc::clone(&self);
                async move { engine.stop(name, None).await }
            });
            for result in futures_util::future::join_all(stops).await {
                if let Err(failure) = result {
                    tracing::warn!(%failure, "a distribution was not stopped in order");
                }
            }
        }
        self.stop_vm(force).await?;
        Ok(names)
    }

    /// Powers the VM off, or kills it; returns when it is gone.
    pub(crate) async fn stop_vm(self: &Arc<Self>, force: bool) -> Result<(), Failure> {
        let Some(running) = self.vm.running() else {
            return Ok(());
        };
        match self.vm.state() {
            // Somebody else stops it: help only when this one wants it killed.
            VmState::Stopping => {}
            VmState::Off | VmState::Starting | VmState::Running | VmState::Crashed => {
                self.vm.apply(VmEvent::Stop, |_| {})?;
            }
        }
        let time = self.timeouts().vm_stop;
        if !force {
            let timeout_ms = u32::try_from((time / 2).as_millis()).unwrap_or(u32::MAX);
            let mut agent = running.agent();
            // Its connection ends with it: an error says nothing, the end of QEMU does.
            let asked = agent.power_off(v1::PowerOffRequest { timeout_ms });
            let _ = tokio::time::timeout(time, asked).await;
            if running.ended_within(time).await.is_some() {
                return self.wait_off().await;
            }
            tracing::warn!(
                seconds = time.as_secs(),
                "the VM did not power off in time and is killed"
            );
        }
        running.machine.kill().await;
        self.wait_off().await
    }

    async fn wait_off(&self) -> Result<(), Failure> {
        let mut changed = self.vm.changed.subscribe();
        let off = changed.wait_for(|s| !matches!(s, VmState::Stopping | VmState::Running));
        match tokio::time::timeout(QUESTION, off).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::new(
                ErrorCode::VmHung,
                format!(
                    "the VM was killed and is not gone after {} s",
                    QUESTION.as_secs()
                ),
            )
            .hint("hostel status")),
        }
    }

    /// Describes the VM as the wire does.
    pub fn vm_status(&self) -> v1::VmStatus {
        let inner = lock(&self.vm.inner);
        let mut status = v1::VmStatus {
            state: inner.state.as_str().to_owned(),
            last_end: inner.last_end.clone(),
            ..v1::VmStatus::default()
        };
        let Some(running) = inner.running.as_ref() else {
            return status;
        };
        let info = &running.info;
        status.accel.clone_from(&info.accel);
        status.accel_reason.clone_from(&info.accel_reason);
        status.qemu_pid = info.qemu_pid;
        status.qemu_version.clone_from(&info.qemu_version);
        status.machine.clone_from(&info.machine);
        status.channel.clone_from(&info.channel);
        status.memory_bytes = info.memory_bytes;
        status.resident_bytes = running.machine.resident_bytes();
        status.cpus = info.cpus;
        status.cpus_reason.clone_from(&info.cpus_reason);
        status.kernel_release.clone_from(&running.kernel_release);
        status.uptime_ms = running.started.elapsed().as_millis() as u64;
        status.boot_ms = running.boot_ms;
        status
    }
}

/// Attaches and mounts the disk with modules, beside the first command rather than before it.
async fn mount_modules(running: Arc<Running>, disk: DiskPlan) {
    let result = async {
        running.machine.attach(&disk).await?;
        let mut agent = running.agent();
        let request = v1::MountModulesRequest {
            disk_serial: disk.serial.clone(),
        };
        running
            .call(
                SETTLE,
                "the mount of the modules",
                agent.mount_modules(request),
            )
            .await
    };
    if let Err(failure) = result.await {
        tracing::warn!(%failure, "kernel modules cannot be loaded in the VM");
    }
}
