//! One QEMU process from launch to end.

mod exit;
mod launch;
mod nic;
mod plug;

use std::{
    fs::File,
    io,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hostel_model::Bytes;
use hostel_sys::{memfd, spawn::Child};
use serde_json::Value;
use tokio::sync::watch;

pub use self::{
    exit::ExitReason,
    launch::{LaunchError, LaunchOptions},
    plug::{PlugError, VsockDevice},
};
use crate::{
    config::MachineConfig,
    disk::{self, AttachDisk, DiskError, DiskTable},
    log::Drain,
    qmp::{Qmp, QmpError},
};

/// How long a disk may take to go; QEMU does it alone, so only a host that does nothing else is slow.
const DETACH_TIMEOUT: Duration = Duration::from_secs(60);

/// A running machine. Dropping it kills QEMU and waits for its end.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    child: Arc<Child>,
    qmp: Qmp,
    memory: File,
    lifecycle: Mutex<Option<UnixStream>>,
    disks: tokio::sync::Mutex<DiskTable>,
    /// Spare root ports and the device on each.
    ports: tokio::sync::Mutex<Vec<Option<String>>>,
    /// Held while the card is replaced.
    nic: tokio::sync::Mutex<()>,
    asked: Arc<AtomicBool>,
    exit: watch::Receiver<Option<ExitReason>>,
    console: Arc<Drain>,
}

impl Machine {
    /// Returns the configuration it was launched with.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Returns QEMU's pid.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Lends the monitor, for commands that have no method here.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Lets the guest run; a machine is launched paused, so that devices can be plugged first.
    pub async fn start(&self) -> Result<(), QmpError> {
        self.qmp.cont().await
    }

    /// Hands out the life-cycle port, once: a connected, blocking stream whose other end is `hostel.lifecycle` in the guest.
    ///
    /// Bytes written before the guest opened it wait there. It has no end of stream: it stays open while QEMU runs.
    pub fn take_lifecycle(&self) -> Option<UnixStream> {
        self.lifecycle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Lends the guest's memory, which this process holds and which outlives QEMU.
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// Returns the host memory the machine takes: pages of the guest that are really there, and QEMU's own.
    pub fn resident_bytes(&self) -> io::Result<Bytes> {
        let guest = memfd::allocated_bytes(&self.memory)?;
        let status = fs_err::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let own = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0);
        Ok(Bytes(guest + own * 1024))
    }

    /// Plugs a disk and returns its unit (target 0). The guest sees it some 30 ms later, by its serial.
    ///
    /// A qcow2 overlay is locked by QEMU for itself alone; keeping other VMs off the files is the caller's. Nothing is left
    /// plugged when it fails. Not cancel safe: await it to its end.
    pub async fn attach_disk(&self, disk: &AttachDisk) -> Result<u8, DiskError> {
        let described = disk::nodes(disk)?;
        let mut table = self.disks.lock().await;
        let lun = table.reserve(disk)?;
        let mut added: Vec<&str> = Vec::new();
        let mut result = Ok(());
        for (name, node) in &described.nodes {
            result = self.qmp.blockdev_add(node.clone()).await;
            if result.is_err() {
                break;
            }
            added.push(name);
        }
        if let (Ok(()), Some(top)) = (&result, added.last()) {
            let device = disk::scsi_disk(disk, top, lun);
            result = self
                .qmp
                .device_add("scsi-hd", &described.device, device)
                .await;
        }
        if let Err(source) = result {
            for name in added.iter().rev() {
                if let Err(error) = self.qmp.blockdev_del(name).await {
                    tracing::debug!(%error, name, "a block node stays behind");
                }
            }
            table.release(&disk.serial);
            let path = disk.overlay.as_ref().unwrap_or(&disk.base.path).clone();
            return Err(DiskError::Attach {
                serial: disk.serial.clone(),
                path,
                source,
            });
        }
        Ok(lun)
    }

    /// Unplugs a disk and closes its files; one that is not plugged is a success.
    ///
    /// The guest must have unmounted it: QEMU takes it away at once, and a mounted file system would lose its journal.
    /// May be repeated when it failed or was cancelled half-way.
    pub async fn detach_disk(&self, serial: &str) -> Result<(), DiskError> {
        let mut table = self.disks.lock().await;
        let Some(disk) = table.get(serial) else {
            return Ok(());
        };
        let described = disk::nodes(disk)?;
        let failed = |source| DiskError::Detach {
            serial: serial.to_owned(),
            source,
        };
        self.qmp
            .device_del(&described.device, DETACH_TIMEOUT)
            .await
            .map_err(failed)?;
        for (name, _) in described.nodes.iter().rev() {
            self.qmp.blockdev_del(name).await.map_err(failed)?;
        }
        table.release(serial);
        Ok(())
    }

    /// Returns the disks that are plugged, with their units.
    pub async fn disks(&self) -> Vec<(u8, AttachDisk)> {
        self.disks.lock().await.list()
    }

    /// Tells how QEMU ended, once it has.
    pub fn exit(&self) -> watch::Receiver<Option<ExitReason>> {
        self.exit.clone()
    }

    /// Waits for QEMU's end. Cancel safe.
    pub async fn wait(&self) -> ExitReason {
        let mut exit = self.exit.clone();
        loop {
            if let Some(reason) = exit.borrow_and_update().clone() {
                return reason;
            }
            if exit.changed().await.is_err() {
                return ExitReason::unknown();
            }
        }
    }

    /// Marks the coming end as wanted: the guest was asked to power off, or [`Qmp::quit`] follows.
    pub fn expect_exit(&self) {
        self.asked.store(true, Ordering::Release);
    }

    /// Kills QEMU at once. The guest gets nothing to say; its disks are as after a power cut.
    pub fn kill(&self) -> io::Result<()> {
        self.expect_exit();
        self.child.kill()
    }

    /// Returns the last lines of the guest's console, safe to print.
    pub fn console_tail(&self, lines: usize) -> String {
        self.console.last_lines(lines)
    }

    /// Asks the balloon for the memory the guest really uses; `None` when its driver has not told yet.
    pub async fn balloon_actual(&self) -> Result<Option<Bytes>, QmpError> {
        match self
            .qmp
            .execute("query-balloon", serde_json::json!({}))
            .await
        {
            Ok(answer) => Ok(answer.get("actual").and_then(Value::as_u64).map(Bytes)),
            Err(QmpError::Refused { class, .. }) if class == "DeviceNotActive" => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.kill().is_ok() {
            let _ = self.child.wait();
        }
    }
}
