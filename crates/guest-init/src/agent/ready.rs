//! Descriptors in the event loop.
#![expect(
    unsafe_code,
    reason = "tokio's registration asks for a promise that OwnedFd keeps"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor whose readiness the event loop tells.
pub(crate) type ReadyFd = AsyncFd<OwnedFd>;

/// Registers a descriptor for reading and writing. Must be called within the runtime.
pub(crate) fn both(fd: OwnedFd) -> io::Result<ReadyFd> {
    // SAFETY: an OwnedFd is one and the same open descriptor for as long as it lives, and AsyncFd owns it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Registers a descriptor for reading alone. Must be called within the runtime.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<ReadyFd> {
    // SAFETY: as above.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
