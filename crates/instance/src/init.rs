//! PID 1 of a distribution.
//!
//! It forks sessions and ends when it is told to; the kernel reaps for it (SIGCHLD is ignored) and ends everything else with
//! it. It blocks no signal and ignores nearly all (BOOT-18).

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use hostel_sys::process::{Fork, Reaped, SingleThreaded, exit_now};
use rustix::process::Signal;

use crate::launch::message::{InitRequest, LaunchMessage};
use crate::launch::prepare::{Prepared, prepare};
use crate::session::{ExecFailure, SessionContext, SessionReply, supervise::supervise};
use crate::spec::LaunchSpec;
use crate::wire::{self, WireError};

/// How long everything may take to end when the caller has gone away without a word.
const ORPHAN_TIME: Duration = Duration::from_secs(2);
/// How long after SIGTERM everything gets SIGHUP too, at most.
const HANG_UP_TIME: Duration = Duration::from_millis(500);

/// Becomes the distribution's PID 1.
pub(crate) fn run(
    spec: LaunchSpec,
    has_cgroup: bool,
    control: OwnedFd,
    proof: &SingleThreaded,
) -> ! {
    let Prepared {
        context,
        devpts,
        boot_command,
        ready,
    } = match prepare(&spec, has_cgroup, &control, proof) {
        Ok(prepared) => prepared,
        Err(failure) => {
            // A caller that is gone cannot be told; everything made so far ends with this process.
            let _ = wire::send(&control, &LaunchMessage::Failed(failure), &[]);
            exit_now(1)
        }
    };
    drop(spec);
    hostel_sys::signal::ignore(hostel_sys::signal::IGNORED_BY_INIT);
    if let Some(command) = boot_command {
        run_boot_command(&command, &context, proof);
    }
    if wire::send(&control, &LaunchMessage::Ready(Box::new(ready)), &[]).is_err() {
        stop(Duration::ZERO);
    }
    serve(&control, &context, &devpts, proof)
}

fn serve(
    control: &OwnedFd,
    context: &SessionContext,
    devpts: &OwnedFd,
    proof: &SingleThreaded,
) -> ! {
    loop {
        match wire::receive::<InitRequest>(control, None) {
            Ok(Some((InitRequest::Session, fds))) => start_session(fds, context, devpts, proof),
            Ok(Some((InitRequest::Stop { timeout_ms }, _))) => {
                stop(Duration::from_millis(timeout_ms))
            }
            // A packet that makes no sense is gone with its reading.
            Err(WireError::Malformed(_) | WireError::TooLong { .. }) => {}
            // Nobody could ever reach this distribution again.
            Ok(None) | Err(_) => stop(ORPHAN_TIME),
        }
    }
}

fn start_session(
    fds: Vec<OwnedFd>,
    context: &SessionContext,
    devpts: &OwnedFd,
    proof: &SingleThreaded,
) {
    let Ok([socket, job]) = <[OwnedFd; 2]>::try_from(fds) else {
        return;
    };
    match hostel_sys::process::fork(proof) {
        Ok(Fork::Parent(_)) => {}
        Ok(Fork::Child(proof)) => match devpts.try_clone() {
            Ok(devpts) => supervise(socket, job, context, devpts, &proof),
            Err(_) => exit_now(1),
        },
        Err(error) => {
            let failure = ExecFailure::Setup {
                step: "fork".to_owned(),
                errno: error.raw_os_error().unwrap_or(0),
            };
            // The caller sees the end of the socket in any case.
            let _ = wire::send(socket.as_fd(), &SessionReply::Failed(failure), &[]);
        }
    }
}

/// Asks everything in the namespace to end, waits, and ends; the kernel kills what is left. The exit status tells which.
fn stop(timeout: Duration) -> ! {
    let begin = Instant::now();
    hostel_sys::signal::wait_for_children_again();
    // What is stopped has to run to obey. Both fail only when there is no other process.
    let _ = hostel_sys::process::signal_all(Signal::TERM.as_raw());
    let _ = hostel_sys::process::signal_all(Signal::CONT.as_raw());
    // Interactive shells ignore TERM and obey HUP, but together HUP could cut off what a program does on TERM.
    let mut hang_up_after = Some((timeout / 4).min(HANG_UP_TIME));
    loop {
        match hostel_sys::process::reap() {
            Ok(Reaped::Child(..) | Reaped::Stopped(..)) => continue,
            Ok(Reaped::None) | Err(_) => exit_now(0),
            Ok(Reaped::Running) => {}
        }
        let passed = begin.elapsed();
        if hang_up_after.is_some_and(|time| passed >= time) {
            hang_up_after = None;
            let _ = hostel_sys::process::signal_all(Signal::HUP.as_raw());
        }
        if passed >= timeout {
            exit_now(1);
        }
        let until = hang_up_after.unwrap_or(timeout);
        hostel_sys::signal::await_child(until.saturating_sub(passed));
    }
}

/// Runs wsl.conf's boot.command (BOOT-35): as root, in a session of its own, output discarded, not waited for.
fn run_boot_command(command: &str, context: &SessionContext, proof: &SingleThreaded) {
    let Ok(text) = CString::new(command) else {
        return;
    };
    let env = crate::session::root_environment(context);
    // A fork that fails here leaves a distribution without its boot command, as one that fails later would.
    if let Ok(Fork::Child(_)) = hostel_sys::process::fork(proof) {
        let _ = rustix::process::setsid();
        hostel_sys::signal::reset_all();
        let argv = [c"sh".to_owned(), c"-c".to_owned(), text];
        hostel_sys::process::execute(c"/bin/sh", &argv, &env);
        exit_now(127)
    }
}
