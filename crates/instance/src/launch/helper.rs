//! The helper: enters the distribution's cgroup and network, and clones PID 1.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use hostel_sys::namespace::{Cloned, clone_into_new, enter_network, unshare_cgroup};
use hostel_sys::process::{SingleThreaded, exit_now};
use rustix::fs::{Mode, OFlags};

use super::message::{Begin, LaunchJob, LaunchMessage, StartFailure};
use crate::spec::MAX_SPEC_BYTES;
use crate::{cgroup, init, wire};

/// Runs the helper; the clone never returns.
pub(crate) fn run(control: OwnedFd, proof: &SingleThreaded) -> Result<(), String> {
    let message = wire::receive::<Begin>(&control, None).map_err(|e| e.to_string())?;
    let Some((Begin, fds)) = message else {
        return Err("no job came".to_owned());
    };
    let file = fds.into_iter().next().ok_or("a job without its file")?;
    let job: LaunchJob = wire::read_job(file, MAX_SPEC_BYTES).map_err(|e| e.to_string())?;
    match clone(&job, proof) {
        Ok(Cloned::Parent { pid, pidfd }) => {
            let message = LaunchMessage::Cloned {
                pid: pid.as_raw_pid().unsigned_abs(),
            };
            wire::send(&control, &message, &[pidfd.as_fd()]).map_err(|e| e.to_string())
        }
        Ok(Cloned::Child(proof)) => init::run(job.spec, job.cgroup.is_some(), control, &proof),
        Err(failure) => {
            wire::send(&control, &LaunchMessage::Failed(failure), &[])
                .map_err(|e| e.to_string())?;
            exit_now(1)
        }
    }
}

fn clone(job: &LaunchJob, proof: &SingleThreaded) -> Result<Cloned, StartFailure> {
    let fail = |step: &str| {
        let step = step.to_owned();
        move |error: std::io::Error| StartFailure::Step {
            step,
            detail: error.to_string(),
        }
    };
    if let Some(group) = &job.cgroup {
        cgroup::enter(group).map_err(fail("entering the cgroup"))?;
        unshare_cgroup(proof).map_err(fail("making a cgroup namespace"))?;
        cgroup::enter_leaf(group).map_err(fail("entering the leaf cgroup"))?;
    }
    if let Some(path) = &job.spec.network {
        // Before there is a mount namespace: what is mounted for the distribution shows the network it is in.
        open_netns(path)
            .and_then(|netns| enter_network(netns.as_fd()))
            .map_err(fail("entering the network namespace"))?;
    }
    clone_into_new(proof).map_err(fail("making namespaces"))
}

fn open_netns(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
