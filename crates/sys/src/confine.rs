//! Giving up what a process was born with: environment, descriptors, namespaces (environ(7), close_range(2), unshare(2)).
#![expect(
    unsafe_code,
    reason = "the environment, descriptors by number and namespaces are process-wide state"
)]

use std::io;

use crate::process::SingleThreaded;

/// Forgets every environment variable.
pub fn clear_environment(_proof: &SingleThreaded) -> io::Result<()> {
    // SAFETY: the only thread is here, so nobody reads the environment meanwhile.
    if unsafe { libc::clearenv() } != 0 {
        return Err(io::Error::other("cannot clear the environment"));
    }
    Ok(())
}

/// Closes every descriptor but the three standard streams.
///
/// To be called first of all in a program: what holds one of them as an `OwnedFd` would close a stranger's later.
pub fn close_strays(_proof: &SingleThreaded) -> io::Result<()> {
    // SAFETY: by the contract above nothing in this program owns a descriptor yet, but the standard streams.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Moves the process into a new user namespace, in which it has every capability and its ids have no names yet.
pub fn new_user_namespace(_proof: &SingleThreaded) -> io::Result<()> {
    unshare(libc::CLONE_NEWUSER)
}

/// Moves the process into a new, empty network namespace. Needs `CAP_SYS_ADMIN` in its user namespace.
pub fn new_network_namespace(_proof: &SingleThreaded) -> io::Result<()> {
    unshare(libc::CLONE_NEWNET)
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: these namespaces change what the kernel allows and shows; no memory or descriptor is concerned.
    if unsafe { libc::unshare(flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
