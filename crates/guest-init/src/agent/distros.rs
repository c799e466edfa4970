//! The table of distributions that run.
//!
//! Starts and stops of one distribution take turns; those of different ones run side by side. The work blocks, so it runs on
//! threads of its own, and goes on when the call that asked for it is dropped: the table is right in every case.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hostel_instance::{ExecJob, InitEnd, Instance, LocalContext, SessionHandle, wait_unmounted};
use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard, broadcast};
use tokio_util::task::TaskTracker;

use super::disks::{self, Disk};
use super::ready;
use super::rooms::{self, Keeper};
use super::sessions::Sessions;
use crate::console::{Level, say};

mod machine_shell;
mod translate;

/// How long a disk may stay held after its distribution ended, before that is told.
const RELEASE: Duration = Duration::from_secs(10);

/// How many ends of distributions may wait for a slow watcher.
const ENDS: usize = 256;

/// The most distributions that are kept apart.
const MAX_DISTROS: usize = 4096;

/// A distribution that runs.
struct Running {
    instance: Instance,
    disk: Disk,
    /// What a repeated start answers.
    reply: v1::StartDistroReply,
}

/// All distributions of the machine.
pub(crate) struct Distros {
    running: Mutex<HashMap<String, Arc<Running>>>,
    /// One lock for each distribution that is being started or stopped.
    turns: Mutex<HashMap<String, Arc<Turn<()>>>>,
    ends: broadcast::Sender<v1::DistroEnded>,
    sessions: Arc<Sessions>,
    keeper: Arc<Keeper>,
    /// This program: helper of `instance`, and what distributions see at `/init`.
    program: PathBuf,
    tasks: TaskTracker,
}

/// What starts a command.
pub(crate) type Spawner = Box<dyn FnOnce(&ExecJob) -> Result<SessionHandle, Failure> + Send>;

impl Distros {
    /// Makes an empty table.
    pub(crate) fn new(sessions: Arc<Sessions>, keeper: Arc<Keeper>, program: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            running: Mutex::default(),
            turns: Mutex::default(),
            ends: broadcast::Sender::new(ENDS),
            sessions,
            keeper,
            program,
            tasks: TaskTracker::new(),
        })
    }

    /// Starts a distribution; one that runs is left alone.
    pub(crate) async fn start(
        self: &Arc<Self>,
        mut request: v1::StartDistroRequest,
    ) -> Result<v1::StartDistroReply, Failure> {
        let turn = self.turn(&request.id).await?;
        if let Some(running) = self.find(&request.id) {
            return Ok(v1::StartDistroReply {
                already_running: true,
                ..running.reply.clone()
            });
        }
        let disk = disks::wait_for(&request.disk_serial)
            .await
            .map_err(|e| translate::disk_failure(&e))?;
        let network = match request.room.take() {
            None => None,
            Some(room) => {
                let path = self.keeper.open(request.id.clone(), room).await;
                Some(path.map_err(|e| rooms::failure(&request.name, &e))?)
            }
        };
        let this = self.clone();
        let launch = move || this.launch(request, disk, network, turn);
        let started = tokio::task::spawn_blocking(launch).await;
        let (id, running) = started.map_err(|e| Failure::from_error(ErrorCode::Internal, &e))??;
        let reply = running.reply.clone();
        self.tasks.spawn(watch(self.clone(), id, running));
        Ok(reply)
    }

    /// Launches and puts the distribution into the table; the turn ends with it.
    fn launch(
        &self,
        request: v1::StartDistroRequest,
        disk: Disk,
        network: Option<PathBuf>,
        _turn: OwnedMutexGuard<()>,
    ) -> Result<(String, Arc<Running>), Failure> {
        let (id, name) = (request.id.clone(), request.name.clone());
        // What ended without us (a killed agent) may still be on its way out.
        let launched = wait_unmounted(&disk.node(), RELEASE)
            .map_err(|e| Failure::from_error(ErrorCode::Busy, &e))
            .and_then(|()| {
                let spec = translate::spec(request, &disk, network, &self.program);
                hostel_instance::launch(&spec).map_err(|e| translate::launch_failure(&name, &e))
            })
            .inspect_err(|_| self.keeper.close(&id))?;
        let reply = translate::reply(&launched);
        let running = Arc::new(Running {
            instance: launched.instance,
            disk,
            reply,
        });
        self.running().insert(id.clone(), running.clone());
        Ok((id, running))
    }

    /// Stops a distribution: asks, waits, kills, and waits until its disk is free. One that does not run is a success.
    pub(crate) async fn stop(
        self: &Arc<Self>,
        id: &str,
        timeout: Duration,
    ) -> Result<v1::StopDistroReply, Failure> {
        let turn = self.turn(id).await?;
        let Some(running) = self.running().remove(id) else {
            return Ok(v1::StopDistroReply::default());
        };
        let (sessions, keeper) = (self.sessions.clone(), self.keeper.clone());
        let id = id.to_owned();
        let stopped = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let outcome = running.instance.stop(timeout);
            keeper.close(&id);
            sessions.hangup_distro(&id);
            wait_unmounted(&running.disk.node(), RELEASE)
                .map_err(|e| Failure::from_error(ErrorCode::Busy, &e))?;
            Ok(v1::StopDistroReply {
                was_running: outcome.was_running,
                killed: outcome.killed,
                warnings: outcome.warnings,
            })
        });
        stopped
            .await
            .map_err(|e| Failure::from_error(ErrorCode::Internal, &e))?
    }

    /// Stops everything side by side, for the end of the machine.
    pub(crate) async fn stop_all(self: &Arc<Self>, timeout: Duration) {
        let ids: Vec<String> = self.running().keys().cloned().collect();
        let stops = ids.iter().map(async |id| {
            if let Err(failure) = self.stop(id, timeout).await {
                say(
                    Level::Error,
                    format_args!("stopping distribution {id}: {failure}"),
                );
            }
        });
        futures_util::future::join_all(stops).await;
    }

    /// Returns what starts commands in a distribution, or in the machine itself when the id is empty.
    pub(crate) fn spawner(&self, id: &str) -> Result<Spawner, Failure> {
        if id.is_empty() {
            let program = self.program.clone();
            return Ok(Box::new(move |job| {
                let job = machine_shell::with_shell(job.clone(), &program);
                hostel_instance::spawn_local_session(&program, &LocalContext::default(), &job)
                    .map_err(|e| translate::exec_failure(&e))
            }));
        }
        let running = self.find(id).ok_or_else(|| not_running(id))?;
        Ok(Box::new(move |job| {
            running
                .instance
                .exec(job)
                .map_err(|e| translate::exec_failure(&e))
        }))
    }

    /// Looks into a distribution.
    pub(crate) async fn inspect(&self, id: &str) -> Result<v1::InspectDistroReply, Failure> {
        let running = self.find(id).ok_or_else(|| not_running(id))?;
        let looked = tokio::task::spawn_blocking(move || {
            translate::inspect(&running.instance, &running.reply.hostname)
        });
        looked
            .await
            .map_err(|e| Failure::from_error(ErrorCode::Internal, &e))?
    }

    /// Subscribes to ends that nobody asked for.
    pub(crate) fn watch(&self) -> broadcast::Receiver<v1::DistroEnded> {
        self.ends.subscribe()
    }

    /// Waits for the right to start or stop one distribution.
    async fn turn(&self, id: &str) -> Result<OwnedMutexGuard<()>, Failure> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody holds or waits for those that only the table knows.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            if turns.len() >= MAX_DISTROS {
                return Err(Failure::new(
                    ErrorCode::Busy,
                    format!("{MAX_DISTROS} distributions are being started or stopped"),
                ));
            }
            turns.entry(id.to_owned()).or_default().clone()
        };
        Ok(turn.lock_owned().await)
    }

    fn find(&self, id: &str) -> Option<Arc<Running>> {
        self.running().get(id).cloned()
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_running(id: &str) -> Failure {
    let shown: String = id.chars().take(64).collect();
    Failure::new(
        ErrorCode::DistroStopped,
        format!("distribution {shown} is not running in the machine"),
    )
}

/// Waits for the end of a distribution; tidies up and tells it when nobody asked for it.
async fn watch(distros: Arc<Distros>, id: String, running: Arc<Running>) {
    let pidfd = running
        .instance
        .pidfd()
        .try_clone_to_owned()
        .and_then(ready::readable);
    match pidfd {
        Ok(pidfd) => {
            if pidfd.readable().await.is_err() {
                return;
            }
        }
        Err(error) => {
            say(
                Level::Error,
                format_args!("the end of distribution {id} will not be noticed: {error}"),
            );
            return;
        }
    }
    let Ok(turn) = distros.turn(&id).await else {
        return;
    };
    {
        let mut table = distros.running();
        if !table.get(&id).is_some_and(|r| Arc::ptr_eq(r, &running)) {
            // A stop was first; it answers for the rest.
            return;
        }
        table.remove(&id);
    }
    let (keeper, of) = (distros.keeper.clone(), id.clone());
    let tidied = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let end = running.instance.try_wait();
        let outcome = running.instance.kill();
        keeper.close(&of);
        for warning in outcome.warnings {
            say(Level::Warning, warning);
        }
        if let Err(error) = wait_unmounted(&running.disk.node(), RELEASE) {
            say(Level::Error, error);
        }
        end
    });
    let (code, signal) = match tidied.await {
        Ok(Some(InitEnd::Exited(code))) => (code.into(), 0),
        Ok(Some(InitEnd::Signaled(signal))) => (0, signal.into()),
        Ok(Some(InitEnd::Unknown) | None) | Err(_) => (0, 0),
    };
    distros.sessions.hangup_distro(&id);
    // Without a watcher nobody needs it.
    let _ = distros.ends.send(v1::DistroEnded { id, code, signal });
}
