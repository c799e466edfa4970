//! The first moments of a machine, when its modules disk is still on its way.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

/// A machine that has run for so long has its disk, or never gets it.
const YOUNG: Duration = Duration::from_secs(60);

/// The longest wait: whoever the kernel lets wait for a module may be the one who brings the disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits for the modules of a machine that has only just started; returns at once in any other case.
///
/// The disk is mounted beside the first commands, and one of them may be what needs a module.
pub(super) fn wait_for_modules(directory: &Path) {
    let uptime = clock_gettime(ClockId::Boottime);
    if uptime.tv_sec >= YOUNG.as_secs().cast_signed() {
        return;
    }
    let there = || directory.join("modules.dep").exists();
    let deadline = Instant::now() + PATIENCE;
    // The kernel tells at this file that the table of mounts has changed (proc(5), /proc/pid/mounts).
    let Ok(mounts) = fs_err::File::open("/proc/self/mounts") else {
        return;
    };
    while !there() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let Ok(left) = Timespec::try_from(left) else {
            return;
        };
        let fd = mounts.as_fd();
        let mut fds = [PollFd::new(&fd, PollFlags::PRI)];
        if poll(&mut fds, Some(&left)).is_err() {
            return;
        }
    }
}
