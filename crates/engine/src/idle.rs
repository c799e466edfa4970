//! What ends by itself: a distribution in which nothing runs, a VM without a distribution. An open connection from the host
//! to a port of theirs counts as something that runs.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{engine::Engine, lifecycle::VmState};

/// How often is looked; the grain of every idle time.
const GRAIN: Duration = Duration::from_millis(500);

/// Looks after idle distributions and the idle VM until `closing`.
pub(crate) async fn watch(engine: Weak<Engine>, closing: CancellationToken) {
    let mut tick = tokio::time::interval(GRAIN);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut vm_idle_since = None;
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Some(engine) = engine.upgrade() else {
            return;
        };
        if engine.vm.state() != VmState::Running {
            vm_idle_since = None;
            continue;
        }
        let times = engine.timeouts();
        if let Some(time) = times.instance_idle {
            stop_idle_distros(&engine, time).await;
        }
        if !engine.no_distro_runs() || engine.has_sessions() || engine.connected().contains(&None) {
            vm_idle_since = None;
            continue;
        }
        let since = *vm_idle_since.get_or_insert_with(Instant::now);
        if times.vm_idle.is_some_and(|time| since.elapsed() >= time) {
            tracing::info!("the VM is idle and is stopped");
            vm_idle_since = None;
            if let Err(failure) = engine.stop_vm(false).await {
                tracing::warn!(%failure, "the idle VM was not stopped");
            }
        }
    }
}

/// Stops distributions that nothing needs and in which nothing but PID 1 runs.
async fn stop_idle_distros(engine: &Arc<Engine>, time: Duration) {
    for id in engine.idle_for(time) {
        let Some(running) = engine.vm.running() else {
            return;
        };
        match running.inspect(id).await {
            Ok(seen) if seen.processes <= 1 => engine.stop_idle(id, time).await,
            Ok(_) => engine.not_idle(id),
            Err(failure) => {
                tracing::debug!(%failure, "an idle distribution does not say what runs in it");
                engine.not_idle(id);
            }
        }
    }
}
