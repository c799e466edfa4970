//! Replacing the network card while the VM runs: what stands behind it has died, or has to be another.

use std::{os::fd::OwnedFd, time::Duration};

use serde_json::{Value, json};

use super::{Machine, PlugError};
use crate::{
    nic::{DRIVER, FILTER_ID, FILTER_SOCKETS, NETDEV_ID, NIC_ID, Netdev, Nic, PORT_ID, filter},
    qmp::QmpError,
};

impl Machine {
    /// Takes the network card away, if there is one, and plugs this one in the same place. `fds` are what its netdev takes.
    ///
    /// The guest has to let the old card go, and sees the new one as a new interface without addresses, some 100 ms later.
    /// When it fails there may be no card; it can be tried again. Not cancel safe: await it to its end.
    pub async fn replace_nic(
        &self,
        nic: &Nic,
        fds: Vec<OwnedFd>,
        patience: Duration,
    ) -> Result<(), PlugError> {
        let (wanted, given) = (nic.netdev.descriptors(), fds.len());
        if wanted != given {
            return Err(PlugError::Descriptors { wanted, given });
        }
        let _alone = self.nic.lock().await;
        self.remove_nic(patience).await.map_err(unplug)?;
        let added = self.add_nic(nic, fds).await;
        if added.is_err() {
            for n in 0..given {
                report(self.qmp.closefd(&fd_name(n)).await);
            }
            report(self.remove_nic(patience).await);
        }
        added.map_err(|source| PlugError::Plug {
            id: NIC_ID.to_owned(),
            source,
        })
    }

    /// Takes the network card away; none is success.
    ///
    /// Before what stands behind it goes: a newer QEMU (10.0 was seen) ends at once when a card is taken off a tap that is gone.
    pub async fn unplug_nic(&self, patience: Duration) -> Result<(), PlugError> {
        let _alone = self.nic.lock().await;
        self.remove_nic(patience).await.map_err(unplug)
    }

    /// Takes away the card and what is behind it, as far as it is there.
    async fn remove_nic(&self, patience: Duration) -> Result<(), QmpError> {
        self.qmp.device_del_listed(NIC_ID, patience).await?;
        self.qmp.object_del(FILTER_ID).await?;
        self.qmp.netdev_del(NETDEV_ID).await?;
        for socket in FILTER_SOCKETS {
            self.qmp.chardev_remove_any(socket).await?;
        }
        Ok(())
    }

    async fn add_nic(&self, nic: &Nic, fds: Vec<OwnedFd>) -> Result<(), QmpError> {
        let qmp = &self.qmp;
        let mut names = Vec::with_capacity(fds.len());
        for (n, fd) in fds.into_iter().enumerate() {
            // A stream netdev connects in a thread of its own, where QEMU knows numbers only (its socket_get_fd()); with a name
            // it would stay unconnected, and nothing would say so.
            if n == 0 && matches!(nic.netdev, Netdev::Stream { .. }) {
                names.push(qmp.add_fd(fd).await?);
                continue;
            }
            let name = fd_name(n);
            qmp.getfd(&name, fd).await?;
            names.push(name);
        }
        let names = &names;
        qmp.netdev_add(nic.netdev.arguments(names)).await?;
        if nic.netdev.filtered() {
            for (socket, name) in FILTER_SOCKETS
                .into_iter()
                .zip(&names[nic.netdev.own_descriptors()..])
            {
                qmp.chardev_add_fd(socket, name).await?;
            }
            let mut properties = json!({});
            for (key, value) in filter() {
                properties[key] = Value::from(value);
            }
            qmp.object_add("filter-redirector", FILTER_ID, properties)
                .await?;
        }
        let card = json!({
            "bus": PORT_ID, "addr": "0x0", "disable-legacy": "on", "netdev": NETDEV_ID, "mac": nic.mac, "romfile": "",
        });
        qmp.device_add(DRIVER, NIC_ID, card).await
    }
}

fn unplug(source: QmpError) -> PlugError {
    PlugError::Unplug {
        id: NIC_ID.to_owned(),
        source,
    }
}

/// Returns the name under which QEMU knows the card's n-th descriptor.
fn fd_name(n: usize) -> String {
    format!("nic-fd-{n}")
}

/// Tells what could not be cleaned up; the error that is returned is the one that came first.
fn report(result: Result<(), QmpError>) {
    if let Err(error) = result {
        tracing::debug!(%error, "something of the network card stays behind");
    }
}
