//! Moving bytes between a session's ends (a terminal's master, pipes), which the agent holds, and connections to the host,
//! which come and go.
//!
//! What a connection does not take waits in the terminal or pipe, and so holds its writer up: no buffer here grows. A
//! connection that breaks is waited for; only a hang-up, or a peer that shuts down just its reading side, closes the
//! session's end.

mod input;
mod output;

pub(crate) use input::Input;
pub(crate) use output::{Output, OutputConnection, Tally};

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::ready::{self, ReadyFd};

/// Size of every buffer.
const BUFFER: usize = 64 << 10;

/// How many connections may wait to take over; more than one waits only when clients fight for a session.
pub(crate) const WAITING: usize = 2;

/// A session's end, non-blocking, shared by the pumps of both directions of a terminal.
pub(crate) type End = Arc<ReadyFd>;

/// Makes a descriptor ready to be pumped. Must be called within the runtime.
pub(crate) fn end(fd: OwnedFd) -> std::io::Result<End> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(Arc::new(ready::both(fd)?))
}

#[cfg(test)]
mod tests;
