//! Time and randomness as the host gives them. Both may be given again at any time.

use std::io;

use rustix::time::{ClockId, Timespec};

/// Sets the wall clock. Needs CAP_SYS_TIME.
pub(crate) fn set(unix_ns: u64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: (unix_ns / 1_000_000_000) as i64,
        tv_nsec: (unix_ns % 1_000_000_000) as i64,
    };
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}

/// Stirs a secret seed into the kernel's random numbers and makes them start anew. Needs CAP_SYS_ADMIN.
pub(crate) fn reseed(seed: &[u8]) -> io::Result<()> {
    let random = fs_err::OpenOptions::new()
        .write(true)
        .open("/dev/urandom")?;
    hostel_sys::entropy::add(&random, seed)
}

/// Returns how long the machine is up, in milliseconds, time asleep included.
pub(crate) fn boottime_ms() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}
