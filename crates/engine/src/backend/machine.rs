//! A running QEMU with its channel, as the engine sees it.

use std::time::Duration;

use futures_util::future::BoxFuture;
use hostel_model::{ErrorCode, Failure};
use hostel_qemu::{AttachDisk, DiskError, DiskFile, DiskFormat};
use hostel_switch::Backend;
use hostel_vsock::{Channel, Listener};
use tokio::sync::Mutex;

use crate::{
    hypervisor::{DiskKind, DiskPlan, Machine},
    streams::GuestStream,
};

/// How long a killed QEMU may take to be gone.
const KILL_TIME: Duration = Duration::from_secs(10);

/// How long the guest may take to let an old network card go.
const NIC_TIME: Duration = Duration::from_secs(20);

/// QEMU and the host end of its channel.
#[derive(Debug)]
pub(super) struct QemuVm {
    machine: hostel_qemu::Machine,
    control: Mutex<Listener>,
    streams: Mutex<Listener>,
    /// Ends with the machine; dropped after it.
    _channel: Channel,
}

impl QemuVm {
    pub(super) fn new(
        machine: hostel_qemu::Machine,
        channel: Channel,
        control: Listener,
        streams: Listener,
    ) -> Self {
        Self {
            machine,
            control: Mutex::new(control),
            streams: Mutex::new(streams),
            _channel: channel,
        }
    }
}

/// Says in QEMU's terms what a disk is.
pub(super) fn plan(disk: &DiskPlan) -> AttachDisk {
    let raw = |path: &std::path::Path| DiskFile {
        path: path.to_owned(),
        format: DiskFormat::Raw,
    };
    match &disk.kind {
        DiskKind::Overlay { base } => AttachDisk {
            serial: disk.serial.clone(),
            base: raw(base),
            overlay: Some(disk.path.clone()),
            read_only: false,
        },
        DiskKind::RawReadOnly => AttachDisk {
            serial: disk.serial.clone(),
            base: raw(&disk.path),
            overlay: None,
            read_only: true,
        },
    }
}

impl Machine for QemuVm {
    fn attach<'a>(&'a self, disk: &'a DiskPlan) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            match self.machine.attach_disk(&plan(disk)).await {
                Ok(_) | Err(DiskError::Attached(_)) => Ok(()),
                Err(error) => {
                    Err(Failure::from_error(ErrorCode::DistroStart, &error).hint("hostel doctor"))
                }
            }
        })
    }

    fn detach<'a>(&'a self, serial: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            self.machine.detach_disk(serial).await.map_err(|e| {
                Failure::from_error(ErrorCode::Busy, &e)
                    .hint("hostel shutdown, which frees every disk")
            })
        })
    }

    fn unplug_nic(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            let unplugged = self.machine.unplug_nic(NIC_TIME).await;
            unplugged.map_err(|e| no_card(&e))
        })
    }

    fn replace_nic<'a>(&'a self, backend: &'a dyn Backend) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let (nic, fds) = super::network::nic(backend)
                .await
                .map_err(|e| no_card(&e))?;
            let replaced = self.machine.replace_nic(&nic, fds, NIC_TIME).await;
            replaced.map_err(|e| no_card(&e))
        })
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        Box::pin(async move { self.machine.wait().await.to_string() })
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Err(error) = self.machine.kill() {
                tracing::error!(%error, "QEMU cannot be killed");
            }
            if tokio::time::timeout(KILL_TIME, self.machine.wait())
                .await
                .is_err()
            {
                tracing::error!(pid = self.machine.pid(), "QEMU was killed and is not gone");
            }
        })
    }

    fn agent_dials(&self) -> BoxFuture<'_, Option<GuestStream>> {
        Box::pin(accept(&self.control))
    }

    fn stream_dials(&self) -> BoxFuture<'_, Option<GuestStream>> {
        Box::pin(accept(&self.streams))
    }

    fn resident_bytes(&self) -> u64 {
        self.machine.resident_bytes().map_or(0, |b| b.0)
    }
}

/// Says that the card of a running VM could not be changed.
fn no_card(error: &dyn std::error::Error) -> Failure {
    Failure::from_error(ErrorCode::Unsupported, error).hint("hostel shutdown")
}

/// Waits for the guest's next connection; `None` when the channel is closed.
async fn accept(listener: &Mutex<Listener>) -> Option<GuestStream> {
    let connection = listener.lock().await.accept().await.ok()?;
    Some(Box::new(connection))
}
