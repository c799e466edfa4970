//! Descriptors that were inherited by number.

#![expect(
    unsafe_code,
    reason = "a number from the environment becomes an owned descriptor"
)]

use std::{
    io,
    os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Takes ownership of a descriptor that the parent left open, and makes it close-on-exec.
///
/// Meant for the first moments of a program, for a number that its parent named and nothing here owns. Standard streams
/// and numbers that are not open are refused.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {fd} cannot be adopted"),
        ));
    }
    // SAFETY: the borrow ends before this function does, and a number that is not open only makes fcntl fail.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfd(borrowed)?;
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC)?;
    // SAFETY: it is open, as fcntl just showed, and by the contract above nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd as _;

    #[test]
    fn an_inherited_descriptor_is_owned_and_a_closed_one_refused() {
        let (reader, writer) = std::io::pipe().unwrap();
        let raw = OwnedFd::from(writer).into_raw_fd();
        let adopted = adopt(raw).unwrap();
        assert!(fcntl_getfd(&adopted).unwrap().contains(FdFlags::CLOEXEC));
        drop((adopted, reader));
        assert!(adopt(1).is_err() && adopt(-1).is_err() && adopt(1 << 20).is_err());
    }
}
