//! The narrow seam between the life of the VM and what makes one: real QEMU in production, a fake agent in tests.

use std::{fmt, net::Ipv4Addr, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use hostel_model::Failure;
use hostel_proto::v1;
use hostel_switch::{Backend, NatRecord, Prefix, Verdict};

use crate::{
    network::{NetworkSettings, NetworkSetup},
    streams::GuestStream,
};

/// Makes VMs.
pub trait Hypervisor: fmt::Debug + Send + Sync {
    /// Starts a VM and waits until its agent has dialled in; on failure nothing of it is left.
    ///
    /// `disks` are those that are needed first: attached before the guest looks for disks, they are found sooner. One that
    /// cannot be attached is left out; [`Machine::attach`] says why. `warn` takes what the user should know although it goes
    /// on.
    fn boot<'a>(
        &'a self,
        disks: &'a [DiskPlan],
        warn: &'a (dyn Fn(String) + Send + Sync),
    ) -> BoxFuture<'a, Result<Booted, Failure>>;

    /// Says what the network of the next VM will be. Changes nothing; blocks for a moment.
    fn network_plan(&self) -> NetworkPlan;

    /// Works out what the record would be with these addresses in it; refuses those that cannot be. Changes nothing.
    fn network_change(
        &self,
        subnet: Option<Prefix>,
        gateway: Option<Ipv4Addr>,
        address: Option<Ipv4Addr>,
    ) -> Result<NatRecord, Failure>;

    /// Looks which backends could carry that network. Changes nothing.
    fn network_verdicts(&self) -> BoxFuture<'_, Vec<Verdict>>;
}

/// A VM whose agent has dialled in.
pub struct Booted {
    /// The machine itself.
    pub machine: Arc<dyn Machine>,
    /// The agent's connection, on which it serves.
    pub control: GuestStream,
    /// What the agent is told first, but for the network.
    pub configure: v1::ConfigureRequest,
    /// What carries its network; `None`: it has none.
    pub network: Option<NetworkSetup>,
    /// What there is to say about the VM.
    pub info: VmInfo,
    /// The disk with modules to attach and mount, read-only.
    pub modules: Option<DiskPlan>,
    /// The times that the configuration asks for as of this start; `None`: as before.
    pub timeouts: Option<crate::Timeouts>,
}

/// What does not change while a VM runs.
#[derive(Clone, Debug, Default)]
pub struct VmInfo {
    /// kvm | tcg
    pub accel: String,
    /// Why.
    pub accel_reason: String,
    /// QEMU's process id.
    pub qemu_pid: u32,
    /// QEMU's version.
    pub qemu_version: String,
    /// The full machine name.
    pub machine: String,
    /// vhost-vsock | vhost-user-vsock
    pub channel: String,
    /// The upper bound of its memory.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub cpus: u32,
    /// Why these are fewer or slower than the host's, when they are.
    pub cpus_reason: String,
    /// Why it has no network, when it has none.
    pub no_network: String,
}

/// What the network of the next VM will be.
#[derive(Clone, Debug)]
pub struct NetworkPlan {
    /// The recorded addresses, or those that would be recorded; `None`: nothing is free.
    pub record: Option<NatRecord>,
    /// What the configuration says.
    pub settings: NetworkSettings,
    /// Whether the VM gets IPv6 addresses.
    pub ipv6: bool,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// A disk to attach.
#[derive(Clone, Debug)]
pub struct DiskPlan {
    /// The image.
    pub path: PathBuf,
    /// The serial by which the guest finds it.
    pub serial: String,
    /// What the image is.
    pub kind: DiskKind,
}

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// A writable qcow2 overlay over a raw base.
    Overlay {
        /// The base, which is never written.
        base: PathBuf,
    },
    /// A raw image, attached read-only.
    RawReadOnly,
}

/// One running machine. Dropping the last handle ends it.
pub trait Machine: Send + Sync {
    /// Attaches a disk; one whose serial is attached already is success.
    fn attach<'a>(&'a self, disk: &'a DiskPlan) -> BoxFuture<'a, Result<(), Failure>>;

    /// Detaches a disk that the guest does not use any more; one that is not attached is success.
    fn detach<'a>(&'a self, serial: &'a str) -> BoxFuture<'a, Result<(), Failure>>;

    /// Takes its network card away; none is success.
    fn unplug_nic(&self) -> BoxFuture<'_, Result<(), Failure>>;

    /// Connects its network card to what stands behind this backend now.
    fn replace_nic<'a>(&'a self, backend: &'a dyn Backend) -> BoxFuture<'a, Result<(), Failure>>;

    /// Waits until the machine has ended and says how, with the tail of its console.
    fn ended(&self) -> BoxFuture<'_, String>;

    /// Ends the machine at once; returns when it is gone.
    fn kill(&self) -> BoxFuture<'_, ()>;

    /// Waits for the next connection of an agent; `None` when there will be none.
    fn agent_dials(&self) -> BoxFuture<'_, Option<GuestStream>>;

    /// Waits for the guest's next connection to the stream port, its token not read yet; `None` when there will be none.
    fn stream_dials(&self) -> BoxFuture<'_, Option<GuestStream>>;

    /// Returns the memory that the host holds for it now, in bytes.
    fn resident_bytes(&self) -> u64;
}
