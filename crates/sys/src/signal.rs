//! Signals as descriptors, masks and dispositions (signalfd(2), sigaction(2)).
#![expect(
    unsafe_code,
    reason = "signal calls have no safe wrapper below this crate"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Gives every signal its default disposition and unblocks them all, as a program expects that was just started.
pub fn reset_all() {
    for signal in 1..=libc::SIGRTMAX() {
        // The numbers the C library keeps for itself, and KILL and STOP, refuse; that is the wanted outcome.
        // SAFETY: SIG_DFL is a valid disposition for every number, and an invalid number is only an error return.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    set_mask(libc::SIG_SETMASK, &[]);
}

/// Ignores the given signals. Children inherit this, also through exec: see [`reset_all`].
pub fn ignore(signals: &[i32]) {
    for &signal in signals {
        // SAFETY: SIG_IGN is a valid disposition, and an invalid number is only an error return.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// The signals that the first process of a PID namespace ignores: all that end or stop a process when a program or a terminal
/// sends them, and SIGCHLD, so that the kernel reaps for it.
pub const IGNORED_BY_INIT: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCHLD,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
];

fn signal_set(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the whole set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised just above.
    let mut set = unsafe { set.assume_init() };
    for &signal in signals {
        // SAFETY: `set` is an initialised set; an invalid number is only an error return.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

fn set_mask(how: i32, signals: &[i32]) {
    let set = signal_set(signals);
    // SAFETY: `set` is initialised and the old mask is not asked for.
    unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
}

/// Blocks SIGCHLD in the calling thread, gives it its default disposition (so that children can be waited for) and returns a
/// non-blocking descriptor that becomes readable when a child changes.
pub fn child_events() -> io::Result<OwnedFd> {
    wait_for_children_again();
    let set = signal_set(&[libc::SIGCHLD]);
    // SAFETY: `set` is initialised, -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us and no one else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Blocks SIGCHLD in the calling thread and undoes an [`ignore`] of it, so that ended children stay until they are waited for.
pub fn wait_for_children_again() {
    set_mask(libc::SIG_BLOCK, &[libc::SIGCHLD]);
    // SAFETY: SIG_DFL is a valid disposition for SIGCHLD.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Waits until SIGCHLD, which must be blocked, is pending, at most for the given time. Returns whether it came.
pub fn await_child(timeout: Duration) -> bool {
    let set = signal_set(&[libc::SIGCHLD]);
    let time = libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: set and time are initialised; no information about the signal is asked for.
    unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const time) >= 0 }
}

/// Takes everything there is to read from a descriptor of [`child_events`].
pub fn drain(events: BorrowedFd<'_>) {
    let mut buffer = [0_u8; size_of::<libc::signalfd_siginfo>() * 4];
    loop {
        // SAFETY: the buffer is writable for the length given.
        let got =
            unsafe { libc::read(events.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if got <= 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_holds_what_was_asked_for() {
        let set = signal_set(&[libc::SIGCHLD]);
        // SAFETY: the set is initialised.
        let has = |signal| unsafe { libc::sigismember(&raw const set, signal) } == 1;
        assert!(has(libc::SIGCHLD) && !has(libc::SIGTERM));
    }
}
