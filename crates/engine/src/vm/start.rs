//! The start of the VM: once for everyone who needs it, up to the agent's greeting.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use hostel_model::{ErrorCode, Failure, GENERATION, OLDEST_GENERATION};
use hostel_proto::{
    Guarded, failure_of,
    limits::MAX_MESSAGE,
    v1::{self, agent_client::AgentClient},
};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

use super::{Boot, Running, SETTLE};
use crate::{
    engine::{Engine, lock},
    hypervisor::{Booted, DiskPlan},
    lifecycle::{VmEvent, VmState},
    network::Live,
    streams::GuestStream,
};

/// A VM whose agent has greeted, the disk with modules to give it, and what its agent tells.
type Greeted = (Arc<Running>, Option<DiskPlan>, Streaming<v1::AgentEvent>);

/// Says that an agent that has dialled in says nothing more.
fn silent(patience: Duration) -> Failure {
    Failure::new(
        ErrorCode::VmHung,
        format!(
            "the agent in the VM did not greet within {} s",
            patience.as_secs()
        ),
    )
    .hint("hostel logs console")
}

/// Speaks gRPC over a connection that the agent dialled. It is used once: a lost agent dials again.
pub(super) async fn connect(
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

pub(super) async fn greet(
    agent: &mut AgentClient<Guarded<Channel>>,
) -> Result<v1::AgentGreetReply, Failure> {
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
            let warnings = Mutex::new(Vec::new());
            let warn = |text: String| lock(&warnings).push(text);
            match self.boot_and_greet(&disks, &warn).await {
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

    /// Boots a VM and greets its agent. One that hangs between the two is started once more.
    async fn boot_and_greet(
        self: &Arc<Self>,
        disks: &[DiskPlan],
        warn: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Greeted, Failure> {
        let begun = Instant::now();
        let booted = self.hypervisor.boot(disks, warn).await?;
        match self.greet(booted, begun).await {
            // A translator that lost an interrupt of the guest, which was seen with QEMU 10.0 on a very busy host: the next
            // boot knows nothing of it.
            Err(failure) if failure.code == ErrorCode::VmHung => {
                warn(format!(
                    "the VM hung while it started and is started once more: {}",
                    failure.message
                ));
                let begun = Instant::now();
                let booted = self.hypervisor.boot(disks, warn).await?;
                self.greet(booted, begun).await
            }
            greeted => greeted,
        }
    }

    /// Greets an agent that has dialled in and begins to settle its machine, which is killed when that fails.
    async fn greet(self: &Arc<Self>, booted: Booted, begun: Instant) -> Result<Greeted, Failure> {
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
        let patience = self.timeouts().greeting;
        let result = tokio::select! {
            result = tokio::time::timeout(patience, work) => result.unwrap_or_else(|_| Err(silent(patience))),
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
