//! Watches a running VM: the agent's events, a lost agent, the guest's connections, the end.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use hostel_model::Token;
use hostel_proto::v1::{self, agent_event::Event};
use tokio::{io::AsyncReadExt as _, sync::Semaphore};
use tonic::Streaming;

use super::{
    Running,
    start::{connect, greet},
};
use crate::{
    engine::{Engine, lock},
    lifecycle::{VmEvent, VmState},
};

/// How long a lost agent may take to dial again before the VM counts as hung.
const REDIAL: Duration = Duration::from_secs(15);

/// How long a connection of the guest may take to send its token.
const TOKEN_TIME: Duration = Duration::from_secs(10);

/// The most connections of the guest that have not sent their token yet.
const MAX_NAMELESS: usize = 256;

impl Engine {
    /// Watches a VM until its end, and tells that end to everyone.
    pub(super) async fn supervise(
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
    pub(super) async fn take_streams(self: Arc<Self>, running: Arc<Running>) {
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
}
