//! Options of netlink(7) sockets.
#![expect(
    unsafe_code,
    reason = "options of netlink sockets have no safe wrapper below this crate"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Lets the kernel say in words why it refuses a request (`NETLINK_EXT_ACK`).
pub fn explain_refusals(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the kernel reads exactly the integer whose address and size it is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_EXT_ACK,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    #[test]
    fn only_netlink_sockets_have_it() {
        let open = |family, kind| {
            rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap()
        };
        explain_refusals(open(AddressFamily::NETLINK, SocketType::RAW)).unwrap();
        assert!(explain_refusals(open(AddressFamily::UNIX, SocketType::STREAM)).is_err());
    }
}
