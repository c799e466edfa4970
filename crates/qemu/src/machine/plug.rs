//! Devices that are plugged on spare root ports: every vhost-user device, also on a fresh boot.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use super::Machine;
use crate::{args::root_port_id, qmp::QmpError};

/// The device of the channel between host and guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VsockDevice {
    /// A device of another process or thread, which listens on this socket.
    VhostUser {
        /// The socket.
        socket: PathBuf,
    },
    /// The kernel's; QEMU opens `/dev/vhost-vsock`.
    VhostVsock {
        /// The guest's address.
        cid: u32,
    },
}

/// Why a device was not plugged or unplugged.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// Every spare port is taken.
    #[error("the VM has no spare port left for device `{0}`")]
    NoPort(String),
    /// A device of that id is plugged.
    #[error("device `{0}` is plugged already")]
    Plugged(String),
    /// Not the descriptors that the network card takes.
    #[error("the network card takes {wanted} descriptors, and {given} are given")]
    Descriptors {
        /// How many it takes.
        wanted: usize,
        /// How many there are.
        given: usize,
    },
    /// QEMU's protocol is UTF-8.
    #[error("the path `{0}` is not UTF-8")]
    Path(PathBuf),
    /// QEMU refused or is gone.
    #[error("cannot plug device `{id}`")]
    Plug {
        /// The device.
        id: String,
        /// The cause.
        source: QmpError,
    },
    /// QEMU refused or is gone, or the guest does not let the device go.
    #[error("cannot unplug device `{id}`")]
    Unplug {
        /// The device.
        id: String,
        /// The cause.
        source: QmpError,
    },
}

const VSOCK_ID: &str = "vsock0";

impl Machine {
    /// Plugs the channel's device, before the guest runs or at any time after. There is one at most.
    ///
    /// A kernel address that is in use shows as a refusal with "Address already in use": take another and try again.
    pub async fn plug_vsock(&self, device: &VsockDevice) -> Result<(), PlugError> {
        match device {
            VsockDevice::VhostUser { socket } => {
                self.plug_vhost_user("vhost-user-vsock-pci", VSOCK_ID, socket, json!({}))
                    .await
            }
            VsockDevice::VhostVsock { cid } => {
                self.plug("vhost-vsock-pci", VSOCK_ID, json!({ "guest-cid": cid }))
                    .await
            }
        }
    }

    /// Unplugs the channel's device; none is a success. Needs a running guest: it has to let the device go.
    pub async fn unplug_vsock(&self, patience: Duration) -> Result<(), PlugError> {
        self.unplug(VSOCK_ID, patience).await
    }

    /// Plugs a vhost-user device whose backend listens on `socket`; its chardev is `c-<id>`.
    pub async fn plug_vhost_user(
        &self,
        driver: &str,
        id: &str,
        socket: &Path,
        properties: Value,
    ) -> Result<(), PlugError> {
        let path = socket
            .to_str()
            .ok_or_else(|| PlugError::Path(socket.to_owned()))?;
        let chardev = chardev_id(id);
        let failed = |source| PlugError::Plug {
            id: id.to_owned(),
            source,
        };
        self.qmp
            .chardev_add_socket(&chardev, path)
            .await
            .map_err(failed)?;
        let mut properties = properties;
        properties["chardev"] = json!(chardev);
        let plugged = self.plug(driver, id, properties).await;
        if plugged.is_err()
            && let Err(error) = self.qmp.chardev_remove(&chardev).await
        {
            tracing::debug!(%error, chardev, "a chardev stays behind");
        }
        plugged
    }

    /// Plugs a PCI device on a spare root port.
    pub async fn plug(&self, driver: &str, id: &str, properties: Value) -> Result<(), PlugError> {
        let mut ports = self.ports.lock().await;
        if ports.iter().flatten().any(|taken| taken == id) {
            return Err(PlugError::Plugged(id.to_owned()));
        }
        let free = ports
            .iter()
            .position(Option::is_none)
            .ok_or_else(|| PlugError::NoPort(id.to_owned()))?;
        let mut properties = properties;
        properties["bus"] = json!(root_port_id(free as u8));
        properties["addr"] = json!("0x0");
        self.qmp
            .device_add(driver, id, properties)
            .await
            .map_err(|source| PlugError::Plug {
                id: id.to_owned(),
                source,
            })?;
        ports[free] = Some(id.to_owned());
        Ok(())
    }

    /// Unplugs a device and removes its chardev; one that is not plugged is a success. The guest has to let it go.
    pub async fn unplug(&self, id: &str, patience: Duration) -> Result<(), PlugError> {
        let failed = |source| PlugError::Unplug {
            id: id.to_owned(),
            source,
        };
        let mut ports = self.ports.lock().await;
        let Some(port) = ports.iter_mut().find(|port| port.as_deref() == Some(id)) else {
            return Ok(());
        };
        self.qmp.device_del(id, patience).await.map_err(failed)?;
        *port = None;
        // Not every device has one.
        self.qmp
            .chardev_remove_any(&chardev_id(id))
            .await
            .map_err(failed)
    }
}

fn chardev_id(id: &str) -> String {
    format!("c-{id}")
}
