//! The life of the VM: started once for everyone who needs it, watched until its end, and its end told to everyone.

mod running;
mod start;
mod stop;
mod supervise;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hostel_model::{ErrorCode, Failure};
use hostel_proto::{
    Guarded,
    v1::{self, agent_client::AgentClient},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{
    engine::{Engine, lock},
    flight::Flight,
    hypervisor::{Machine, VmInfo},
    lifecycle::{VmEvent, VmState},
    network::Live,
};

/// How long an agent that has greeted may take to settle the machine.
const SETTLE: Duration = Duration::from_secs(60);

/// How long a small question to the agent may take.
const QUESTION: Duration = Duration::from_secs(20);

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

impl Engine {
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

/// Says that the VM ended while it was in use.
fn crashed(how: &str) -> Failure {
    Failure::new(ErrorCode::VmCrashed, format!("the VM ended: {how}"))
        .hint("run the command again: the VM is started anew")
        .hint("hostel logs console")
}
