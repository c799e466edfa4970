//! Network interfaces whose other end is a descriptor (the kernel's Documentation/networking/tuntap.rst).
#![expect(
    unsafe_code,
    reason = "the requests of /dev/net/tun have no safe wrapper below this crate"
)]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::fs::{Mode, OFlags};

/// The device that taps are made with.
pub const DEVICE: &str = "/dev/net/tun";

/// Opens [`DEVICE`], for the network namespace of the calling thread; close-on-exec. Fails when the user may not, or the
/// kernel has none.
pub fn open() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::open(DEVICE, flags, Mode::empty())?)
}

/// Makes a new tap that goes when `device` is closed; packets carry a virtio-net header, and no other.
///
/// `device` comes from [`open`], or its tap was taken away by somebody: it can have another one, and whoever holds the same
/// open file goes on with it. Needs `CAP_NET_ADMIN` in the namespace it was opened for. A name of 1 to 15 bytes that is
/// in use is an error.
pub fn create(device: &OwnedFd, name: &str) -> io::Result<()> {
    // SAFETY: the structure is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len();
    if name.is_empty() || name.len() >= room || name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{name}` is not the name of a network interface"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open, and this request reads and writes one `ifreq`, which is what it is given.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives a tap the header and the offloads that QEMU's virtio-net card of version 1 with a Linux driver had asked for: the
/// header with a number of buffers, checksums left to the card, and segmentation of TCP.
pub fn suit_virtio_net(device: &OwnedFd) -> io::Result<()> {
    let header: libc::c_int = 12;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let fd = device.as_raw_fd();
    // SAFETY: the descriptor is open; the first request reads one `int`, the second takes a number.
    let done = unsafe {
        libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const header) >= 0
            && libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) >= 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_kernel_is_asked() {
        let pipe = OwnedFd::from(std::io::pipe().unwrap().0);
        for name in ["", "sixteen-letters-", "a\0b"] {
            let error = create(&pipe, name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }

    #[test]
    fn another_file_makes_no_tap() {
        let pipe = OwnedFd::from(std::io::pipe().unwrap().0);
        assert!(create(&pipe, "tap0").is_err());
    }
}
