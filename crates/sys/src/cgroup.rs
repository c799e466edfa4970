//! Finding a control group by its number (name_to_handle_at(2), cgroups(7)).
#![expect(
    unsafe_code,
    reason = "opening by handle has no safe wrapper below this crate"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `FILEID_KERNFS` (exportfs.h): the handle is the number of the group, eight bytes.
const KERNFS: libc::c_int = 0xfe;

/// `struct file_handle` with room for a number.
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    number: [u8; 8],
}

/// Opens a control group by its number, as sockets and processes tell it; `hierarchy` is any directory of the cgroup2 tree.
///
/// A group that was removed is `ESTALE`. Needs `CAP_DAC_READ_SEARCH`.
pub fn open(hierarchy: impl AsFd, number: u64) -> io::Result<OwnedFd> {
    let mut handle = Handle {
        bytes: 8,
        kind: KERNFS,
        number: number.to_ne_bytes(),
    };
    // SAFETY: the kernel reads a `file_handle` of as many bytes as its first field says, all of which are there.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            hierarchy.as_fd().as_raw_fd(),
            &raw mut handle,
            libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor, and no one else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn what_is_no_control_group_is_an_error() {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert!(open(&root, 1).is_err());
    }
}
