//! The end of the VM, asked for.

use std::sync::Arc;

use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;

use super::QUESTION;
use crate::{
    engine::Engine,
    lifecycle::{VmEvent, VmState},
};

impl Engine {
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
}
