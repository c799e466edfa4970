//! The commands that are used, with their types.

use std::{os::fd::OwnedFd, time::Duration};

use serde_json::{Map, Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::{COMMAND_TIMEOUT, Qmp, QmpError};

/// Whether the guest's processors run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// They do.
    pub running: bool,
    /// QEMU's word for the state: `running`, `paused`, `prelaunch`, `io-error`, …
    pub status: String,
}

/// What shall go and is not there is gone.
fn gone_is_fine(result: Result<(), QmpError>) -> Result<(), QmpError> {
    match result {
        Err(QmpError::Refused { class, desc, .. })
            if class == "DeviceNotFound" || desc.contains("not found") =>
        {
            Ok(())
        }
        other => other,
    }
}

impl Qmp {
    async fn done(&self, command: &str, arguments: Value) -> Result<(), QmpError> {
        self.execute(command, arguments).await.map(drop)
    }

    /// `cont`: lets the guest run.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.done("cont", json!({})).await
    }

    /// `stop`: pauses the guest.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.done("stop", json!({})).await
    }

    /// `quit`: ends QEMU without asking the guest.
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.done("quit", json!({})).await {
            // It may be gone before the answer is.
            Err(QmpError::Closed(_)) => Ok(()),
            other => other,
        }
    }

    /// `system_powerdown`: presses the power button.
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.done("system_powerdown", json!({})).await
    }

    /// `balloon`: asks the guest to keep no more than this, in bytes.
    pub async fn balloon(&self, bytes: u64) -> Result<(), QmpError> {
        self.done("balloon", json!({ "value": bytes })).await
    }

    /// `query-status`.
    pub async fn query_status(&self) -> Result<Status, QmpError> {
        let answer = self.execute("query-status", json!({})).await?;
        let status = answer
            .get("status")
            .and_then(Value::as_str)
            .map(str::to_owned);
        let running = answer.get("running").and_then(Value::as_bool);
        running
            .zip(status)
            .map(|(running, status)| Status { running, status })
            .ok_or_else(|| QmpError::Strange {
                command: "query-status".into(),
                answer: answer.to_string(),
            })
    }

    /// `query-version`: the version as three numbers.
    pub async fn query_version(&self) -> Result<(u64, u64, u64), QmpError> {
        let answer = self.execute("query-version", json!({})).await?;
        let number = |key: &str| {
            answer
                .get("qemu")
                .and_then(|q| q.get(key))
                .and_then(Value::as_u64)
        };
        number("major")
            .zip(number("minor"))
            .zip(number("micro"))
            .map(|((a, b), c)| (a, b, c))
            .ok_or_else(|| QmpError::Strange {
                command: "query-version".into(),
                answer: answer.to_string(),
            })
    }

    /// `blockdev-add` of a node as QEMU describes it.
    pub async fn blockdev_add(&self, node: Value) -> Result<(), QmpError> {
        self.done("blockdev-add", node).await
    }

    /// `blockdev-del`; a node that is not there is a success.
    pub async fn blockdev_del(&self, node_name: &str) -> Result<(), QmpError> {
        match self
            .done("blockdev-del", json!({ "node-name": node_name }))
            .await
        {
            Err(QmpError::Refused { desc, .. }) if desc.contains("Failed to find node") => Ok(()),
            other => other,
        }
    }

    /// `chardev-add` of a unix socket that somebody listens on.
    pub async fn chardev_add_socket(&self, id: &str, path: &str) -> Result<(), QmpError> {
        let addr = json!({ "type": "unix", "data": { "path": path } });
        let backend = json!({ "type": "socket", "data": { "addr": addr, "server": false } });
        self.done("chardev-add", json!({ "id": id, "backend": backend }))
            .await
    }

    /// `chardev-remove`.
    pub async fn chardev_remove(&self, id: &str) -> Result<(), QmpError> {
        self.done("chardev-remove", json!({ "id": id })).await
    }

    /// `chardev-remove`; one that is not there is a success.
    pub async fn chardev_remove_any(&self, id: &str) -> Result<(), QmpError> {
        gone_is_fine(self.chardev_remove(id).await)
    }

    /// `getfd`: gives QEMU a descriptor under a name, which the command that uses it takes away again.
    pub async fn getfd(&self, name: &str, fd: OwnedFd) -> Result<(), QmpError> {
        let arguments = json!({ "fdname": name });
        self.give("getfd", arguments, Some(fd), COMMAND_TIMEOUT)
            .await
            .map(drop)
    }

    /// `add-fd`: gives QEMU a descriptor and returns its number there. Whoever uses the number closes the descriptor;
    /// the set that `add-fd` makes is not touched again, for its `remove-fd` would close the number a second time.
    pub async fn add_fd(&self, fd: OwnedFd) -> Result<String, QmpError> {
        let answer = self
            .give("add-fd", json!({}), Some(fd), COMMAND_TIMEOUT)
            .await?;
        match answer["fd"].as_u64() {
            Some(number) => Ok(number.to_string()),
            None => Err(QmpError::Strange {
                command: "add-fd".into(),
                answer: answer.to_string(),
            }),
        }
    }

    /// `closefd`; a name that was used is a success.
    pub async fn closefd(&self, name: &str) -> Result<(), QmpError> {
        gone_is_fine(self.done("closefd", json!({ "fdname": name })).await)
    }

    /// `chardev-add` of a connected socket that [`Qmp::getfd`] has given.
    pub async fn chardev_add_fd(&self, id: &str, fd_name: &str) -> Result<(), QmpError> {
        let addr = json!({ "type": "fd", "data": { "str": fd_name } });
        let backend = json!({ "type": "socket", "data": { "addr": addr, "server": false } });
        self.done("chardev-add", json!({ "id": id, "backend": backend }))
            .await
    }

    /// `netdev_add` with QEMU's own arguments.
    pub async fn netdev_add(&self, arguments: Value) -> Result<(), QmpError> {
        self.done("netdev_add", arguments).await
    }

    /// `netdev_del`; one that is not there is a success.
    pub async fn netdev_del(&self, id: &str) -> Result<(), QmpError> {
        gone_is_fine(self.done("netdev_del", json!({ "id": id })).await)
    }

    /// `object-add`; `properties` are the object's own.
    pub async fn object_add(
        &self,
        kind: &str,
        id: &str,
        properties: Value,
    ) -> Result<(), QmpError> {
        let mut arguments = properties;
        arguments["qom-type"] = kind.into();
        arguments["id"] = id.into();
        self.done("object-add", arguments).await
    }

    /// `object-del`; one that is not there is a success.
    pub async fn object_del(&self, id: &str) -> Result<(), QmpError> {
        gone_is_fine(self.done("object-del", json!({ "id": id })).await)
    }

    /// `device_add`; `properties` are the device's own.
    pub async fn device_add(
        &self,
        driver: &str,
        id: &str,
        properties: Value,
    ) -> Result<(), QmpError> {
        let mut arguments = match properties {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        arguments.insert("driver".into(), driver.into());
        arguments.insert("id".into(), id.into());
        self.done("device_add", Value::Object(arguments)).await
    }

    /// `device_del`, and waits until the device is gone: a PCI device only goes when the guest lets it.
    ///
    /// A device that is not there is a success. Times out after `patience`; the guest may then still let it go later.
    pub async fn device_del(&self, id: &str, patience: Duration) -> Result<(), QmpError> {
        self.unplug(id, patience, patience).await
    }

    /// The same for a device of which nothing else is taken away by name afterwards: it is gone as well when QEMU does not
    /// list it any more, which some guests bring about without the event ever coming.
    pub async fn device_del_listed(&self, id: &str, patience: Duration) -> Result<(), QmpError> {
        self.unplug(id, patience, Duration::from_millis(500)).await
    }

    async fn unplug(&self, id: &str, patience: Duration, look: Duration) -> Result<(), QmpError> {
        let mut events = self.events();
        match self.done("device_del", json!({ "id": id })).await {
            Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => return Ok(()),
            // Asked before and not gone yet: wait for the same event.
            Err(QmpError::Refused { desc, .. })
                if desc.contains("already in the process of unplug") => {}
            other => other?,
        }
        let gone = async {
            loop {
                match tokio::time::timeout(look, events.recv()).await {
                    // The event comes once more for the part of the device that has only a path.
                    Ok(Ok(event))
                        if event.name == "DEVICE_DELETED"
                            && event.data.get("device") == Some(&json!(id)) =>
                    {
                        return Ok(());
                    }
                    Ok(Ok(_)) => {}
                    Ok(Err(RecvError::Closed)) => {
                        return Err(QmpError::Closed("device_del".into()));
                    }
                    // Among the lost events may be ours: ask.
                    Ok(Err(RecvError::Lagged(_))) | Err(_) => {
                        let path = format!("/machine/peripheral/{id}");
                        if self
                            .execute("qom-list", json!({ "path": path }))
                            .await
                            .is_err()
                        {
                            return Ok(());
                        }
                    }
                }
            }
        };
        tokio::time::timeout(patience, gone)
            .await
            .unwrap_or_else(|_| {
                Err(QmpError::Timeout {
                    command: format!("device_del {id}"),
                    after: patience,
                })
            })
    }
}
