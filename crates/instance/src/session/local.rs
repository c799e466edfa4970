//! A session without a distribution: in the caller's own namespaces, by the helper role `session`.

use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use hostel_sys::process::{Fork, SingleThreaded, exit_now};

use super::SessionContext;
use super::handle::{ExecError, SessionHandle};
use super::job::{ExecJob, MAX_JOB_BYTES};
use crate::role::{self, Helper};
use crate::spec::EnvVar;
use crate::wire::{self, WireError};

/// The place of a session without a distribution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalContext {
    /// Laid over the base environment (ENV-1).
    pub environment: Vec<EnvVar>,
}

/// Starts a command in the caller's own namespaces, as the user the job names or else root, with the same supervision as in a
/// distribution. Blocks until the command runs.
///
/// `helper` is a program that calls [`run_role`](crate::run_role). The session process becomes a child of the caller's
/// reaper (PID 1 of its namespace, or a subreaper). Needs root.
pub fn spawn_local_session(
    helper: &Path,
    context: &LocalContext,
    job: &ExecJob,
) -> Result<SessionHandle, ExecError> {
    let file = wire::write_job(job, MAX_JOB_BYTES).map_err(too_long)?;
    let setup = |step: &str| {
        let step = step.to_owned();
        move |source| ExecError::Setup { step, source }
    };
    let (ours, theirs) = wire::pair().map_err(setup("socketpair"))?;
    let mut child =
        role::spawn(helper, Helper::Session, theirs).map_err(setup("starting the helper"))?;
    let sent = wire::send(&ours, context, &[file.as_fd()]);
    // The helper forks the session process and ends at once.
    child.wait().map_err(setup("waiting for the helper"))?;
    sent.map_err(ExecError::Wire)?;
    SessionHandle::accept(ours, job)
}

pub(crate) fn too_long(error: WireError) -> ExecError {
    match error {
        WireError::TooLong { .. } => ExecError::InvalidJob(error.to_string()),
        other => ExecError::Wire(other),
    }
}

/// The helper's side.
pub(crate) fn run(control: std::os::fd::OwnedFd, proof: &SingleThreaded) -> Result<(), String> {
    let message = wire::receive::<LocalContext>(&control, None).map_err(|e| e.to_string())?;
    let Some((context, fds)) = message else {
        return Err("no job came".to_owned());
    };
    let job = fds.into_iter().next().ok_or("a job without its file")?;
    let devpts = rustix::fs::open(
        "/dev/pts",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| format!("cannot open /dev/pts: {e}"))?;
    match hostel_sys::process::fork(proof).map_err(|e| format!("cannot fork: {e}"))? {
        Fork::Parent(_) => exit_now(0),
        Fork::Child(proof) => {
            let context = SessionContext {
                name: String::new(),
                hostname: String::new(),
                environment: context.environment,
                default_users: Vec::new(),
                umask: 0o22,
            };
            super::supervise::supervise(control, job, &context, devpts, &proof)
        }
    }
}
