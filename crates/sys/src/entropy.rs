//! Feeding the kernel's random number generator (random(4)).
#![expect(unsafe_code, reason = "ioctls that rustix does not have")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The most bytes taken at a time.
pub const MAX_SEED: usize = 512;

/// `struct rand_pool_info` with room for [`MAX_SEED`] bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    seed: [u8; MAX_SEED],
}

const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Adds a secret seed to the kernel's pool, credits it in full, and makes the generator start again from the pool.
///
/// `random` is an open `/dev/urandom` or `/dev/random`. Needs CAP_SYS_ADMIN. At most [`MAX_SEED`] bytes, else `EINVAL`.
pub fn add(random: impl AsFd, seed: &[u8]) -> io::Result<()> {
    if seed.len() > MAX_SEED {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut info = PoolInfo {
        entropy_bits: seed.len() as libc::c_int * 8,
        bytes: seed.len() as libc::c_int,
        seed: [0; MAX_SEED],
    };
    info.seed[..seed.len()].copy_from_slice(seed);
    let fd = random.as_fd().as_raw_fd();
    // SAFETY: the kernel reads the header and `bytes` bytes after it, which lie within `info`; the descriptor is open.
    if unsafe { libc::ioctl(fd, RNDADDENTROPY, &raw const info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes no argument; the descriptor is open.
    if unsafe { libc::ioctl(fd, RNDRESEEDCRNG) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_is_too_long_is_refused() {
        let pipe = rustix::pipe::pipe().unwrap();
        let error = add(&pipe.0, &[0; MAX_SEED + 1]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_file_that_is_not_the_generator_is_an_error() {
        let pipe = rustix::pipe::pipe().unwrap();
        assert!(add(&pipe.0, &[1; 32]).is_err());
    }
}
