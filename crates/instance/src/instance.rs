//! A running distribution, as its caller sees it: commands, looking in, the end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hostel_sys::process::End;
use rustix::process::Signal;

use crate::cgroup::Cgroup;
use crate::launch::message::InitRequest;
use crate::session::handle::{ExecError, SessionHandle};
use crate::session::job::{ExecJob, MAX_JOB_BYTES};
use crate::session::local::too_long;
use crate::wire::{self, WireError};

/// How long PID 1 may take to go after it was killed: the unmount of a slow disk is part of it.
const KILL_TIME: Duration = Duration::from_secs(10);
/// What PID 1 gets on top of the time it was given, before it counts as hung.
const STOP_SLACK: Duration = Duration::from_secs(1);

/// A running distribution. All methods may be called from several threads at once. Dropping it kills it
/// ([`Instance::kill`]), which blocks for some milliseconds.
#[derive(Debug)]
pub struct Instance {
    pid: u32,
    pidfd: OwnedFd,
    control: OwnedFd,
    group: Option<Cgroup>,
    end: Mutex<Option<InitEnd>>,
}

/// How a distribution's PID 1 ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitEnd {
    /// It exited: 0 after an orderly stop, 1 when it left others for the kernel to kill.
    Exited(u8),
    /// A signal killed it, by this number.
    Signaled(u8),
    /// Someone else has reaped it.
    Unknown,
}

/// How a stop went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Whether it was still running.
    pub was_running: bool,
    /// Whether processes had to be killed.
    pub killed: bool,
    /// What could not be undone.
    pub warnings: Vec<String>,
}

/// What a distribution uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Processes; `None` without a cgroup of its own.
    pub processes: Option<u32>,
    /// Memory charged to it, in bytes; `None` without a memory controller.
    pub memory_bytes: Option<u64>,
}

impl Instance {
    pub(crate) fn new(pid: u32, pidfd: OwnedFd, control: OwnedFd, group: Option<Cgroup>) -> Self {
        Self {
            pid,
            pidfd,
            control,
            group,
            end: Mutex::new(None),
        }
    }

    /// Returns PID 1's id in the caller's PID namespace; it names nobody else until the end was taken by
    /// [`Instance::try_wait`], `stop` or `kill`.
    pub fn init_pid(&self) -> u32 {
        self.pid
    }

    /// Returns a descriptor that becomes readable when PID 1 has ended, and the distribution with it.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Starts a command; returns when it runs. Blocks at most 30 seconds.
    pub fn exec(&self, job: &ExecJob) -> Result<SessionHandle, ExecError> {
        let file = wire::write_job(job, MAX_JOB_BYTES).map_err(too_long)?;
        let (ours, theirs) = wire::pair().map_err(|source| ExecError::Setup {
            step: "socketpair".to_owned(),
            source,
        })?;
        match wire::send(
            &self.control,
            &InitRequest::Session,
            &[theirs.as_fd(), file.as_fd()],
        ) {
            Err(WireError::Socket(error))
                if [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset]
                    .contains(&error.kind()) =>
            {
                return Err(ExecError::NotRunning);
            }
            other => other.map_err(ExecError::Wire)?,
        }
        drop(theirs);
        match SessionHandle::accept(ours, job) {
            // The request died with PID 1.
            Err(ExecError::Ended) if self.try_wait().is_some() => Err(ExecError::NotRunning),
            other => other,
        }
    }

    /// Returns how PID 1 ended, `None` while it runs. Reaps it.
    pub fn try_wait(&self) -> Option<InitEnd> {
        let mut end = self
            .end
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if end.is_none() {
            *end = match hostel_sys::process::reap_pidfd(&self.pidfd) {
                Ok(None) => None,
                Ok(Some(End::Exited(code))) => Some(InitEnd::Exited(code)),
                Ok(Some(End::Signaled { signal, .. })) => Some(InitEnd::Signaled(signal)),
                // Not ours to reap any more; it may still be about to end.
                Err(_) => wire::readable(self.pidfd.as_fd(), Some(Instant::now()))
                    .is_ok_and(|ended| ended)
                    .then_some(InitEnd::Unknown),
            };
        }
        *end
    }

    /// Waits until PID 1 has ended.
    fn wait(&self, timeout: Duration) -> Option<InitEnd> {
        // An error means the descriptor tells nothing; the reaping below decides.
        let _ = wire::readable(self.pidfd.as_fd(), Some(Instant::now() + timeout));
        self.try_wait()
    }

    /// Asks all processes to end (SIGTERM, then SIGHUP), kills those that do not within the time, and removes the cgroup. Blocks
    /// for the time and some seconds at most. Right on a distribution that has ended, too.
    pub fn stop(&self, timeout: Duration) -> StopOutcome {
        let mut outcome = StopOutcome {
            was_running: self.try_wait().is_none(),
            ..Default::default()
        };
        if outcome.was_running {
            let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            let end = match wire::send(&self.control, &InitRequest::Stop { timeout_ms }, &[]) {
                Ok(()) => self.wait(timeout.saturating_add(STOP_SLACK)),
                // It is ending, or does not read; the kill decides.
                Err(_) => None,
            };
            outcome.killed = end != Some(InitEnd::Exited(0));
        }
        self.finish(&mut outcome);
        outcome
    }

    /// Kills all processes at once and removes the cgroup. Blocks some seconds at most.
    pub fn kill(&self) -> StopOutcome {
        let was_running = self.try_wait().is_none();
        let mut outcome = StopOutcome {
            was_running,
            killed: was_running,
            warnings: Vec::new(),
        };
        self.finish(&mut outcome);
        outcome
    }

    fn finish(&self, outcome: &mut StopOutcome) {
        if self.try_wait().is_none() {
            // Fails only when it has just ended.
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
            if self.wait(KILL_TIME).is_none() {
                outcome.warnings.push(format!(
                    "pid {} does not end, {} s after it was killed",
                    self.pid,
                    KILL_TIME.as_secs()
                ));
            }
        }
        if let Some(group) = &self.group
            && let Err(error) = group.remove(Duration::from_secs(5))
        {
            outcome.warnings.push(error.to_string());
        }
    }

    /// Returns what the distribution uses now.
    pub fn usage(&self) -> Usage {
        let group = self.group.as_ref();
        Usage {
            processes: group.and_then(|g| g.processes().ok()),
            memory_bytes: group.and_then(Cgroup::memory_bytes),
        }
    }

    /// Returns the directory of the distribution's cgroup, if it has one.
    pub fn cgroup(&self) -> Option<&Path> {
        self.group.as_ref().map(Cgroup::path)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The fallback for a path that forgot to stop it. Its warnings have nobody to go to; a second end does nothing.
        self.kill();
    }
}

/// A file system that is still in use.
#[derive(Debug, thiserror::Error)]
#[error("`{device}` is still in use after {} s", waited.as_secs_f32())]
pub struct StillMounted {
    /// The block device.
    pub device: PathBuf,
    /// How long it was waited for.
    pub waited: Duration,
}

/// Waits until the kernel has let go of an ext4 file system: only then may its disk go. Blocks. Needs `/sys`.
///
/// An unmount that returned says less: another mount namespace may still hold the file system.
pub fn wait_unmounted(device: &Path, timeout: Duration) -> Result<(), StillMounted> {
    // The kernel uses the device's own name, with `!` for `/`.
    let real = fs_err::canonicalize(device).unwrap_or_else(|_| device.to_owned());
    let name = real
        .strip_prefix("/dev")
        .unwrap_or(&real)
        .to_string_lossy()
        .replace('/', "!");
    let entry = Path::new("/sys/fs/ext4").join(name);
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    while entry.exists() {
        if Instant::now() >= deadline {
            return Err(StillMounted {
                device: device.to_owned(),
                waited: timeout,
            });
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the kernel sends no event for the end of this entry"
        )]
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}
