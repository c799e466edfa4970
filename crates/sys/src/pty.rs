//! Pseudoterminals (pty(7)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;

/// Both ends of a pseudoterminal, close-on-exec, not the controlling terminal of anyone yet.
#[derive(Debug)]
pub struct Pty {
    /// The end of the one who shows it.
    pub master: OwnedFd,
    /// The end of the programs that run on it.
    pub slave: OwnedFd,
}

/// Makes a pseudoterminal in the devpts that is mounted at `devpts`.
///
/// The slave is opened through the master (`TIOCGPTPEER`), so that nobody can put another file in its place.
pub fn open(devpts: impl AsFd) -> io::Result<Pty> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::openat(devpts, "ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    Ok(Pty { master, slave })
}

/// Makes a terminal the controlling terminal of the calling process, which must lead a session without one.
pub fn make_controlling(slave: impl AsFd) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(slave)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_one_end_is_read_from_the_other() {
        let devpts =
            rustix::fs::open("/dev/pts", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let pty = match open(&devpts) {
            Ok(pty) => pty,
            Err(error) => {
                return hostel_testkit::skip(
                    "what_is_written_to_one_end_is_read_from_the_other",
                    &error,
                );
            }
        };
        rustix::io::write(&pty.slave, b"x").unwrap();
        let mut buffer = [0; 4];
        assert_eq!(rustix::io::read(&pty.master, &mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], b'x');
    }
}
