//! Control sockets: one JSON message a packet, with descriptors, bounded both ways; and jobs too large for a packet, as
//! memory files.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::session::job::MAX_PACKET;

/// Why a message did not get through.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed; `BrokenPipe` when the other side is gone.
    #[error("the control socket failed")]
    Socket(#[from] io::Error),
    /// The message is larger than both sides agreed on.
    #[error("a message of {bytes} bytes where {limit} are allowed")]
    TooLong {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: usize,
    },
    /// The message is not what was expected.
    #[error("a malformed message")]
    Malformed(#[source] serde_json::Error),
    /// Nothing came in time.
    #[error("no answer in time")]
    Timeout,
}

/// Makes a pair of packet sockets: the first for a caller (non-blocking), the second for a helper (blocking).
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Sends one message. Never waits on a caller's (non-blocking) end.
pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    let bytes = serde_json::to_vec(message).map_err(WireError::Malformed)?;
    if bytes.len() > MAX_PACKET {
        return Err(WireError::TooLong {
            bytes: bytes.len() as u64,
            limit: MAX_PACKET,
        });
    }
    Ok(hostel_sys::fdpass::send(socket, &bytes, fds)?)
}

/// Waits for one message until the deadline (for ever without one); `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    deadline: Option<Instant>,
) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
    let socket = socket.as_fd();
    // One byte more than allowed, so that a packet that was cut shows.
    let mut buffer = vec![0; MAX_PACKET + 1];
    let (got, fds) = loop {
        if !readable(socket, deadline)? {
            return Err(WireError::Timeout);
        }
        match hostel_sys::fdpass::recv(socket, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The other side went away with messages of ours unread: to a reader that is the end.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            other => break other?,
        }
    };
    match got {
        0 => Ok(None),
        _ if got > MAX_PACKET => Err(WireError::TooLong {
            bytes: got as u64,
            limit: MAX_PACKET,
        }),
        _ => match serde_json::from_slice(&buffer[..got]) {
            Ok(message) => Ok(Some((message, fds))),
            Err(error) => Err(WireError::Malformed(error)),
        },
    }
}

/// Waits until a descriptor is readable or at its end; `false` when the deadline passes first.
pub(crate) fn readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = deadline.map(|d| timespec(d.saturating_duration_since(Instant::now())));
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(0) if deadline.is_some_and(|d| Instant::now() >= d) => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Turns a time into the kernel's form, rounded up to a millisecond so that nobody spins at the end of a deadline.
pub(crate) fn timespec(time: Duration) -> Timespec {
    let time = time
        .saturating_add(Duration::from_micros(999))
        .min(Duration::from_secs(1 << 30));
    Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: time.subsec_nanos().into(),
    }
}

/// Writes a job into a memory file.
pub(crate) fn write_job<T: Serialize>(job: &T, limit: usize) -> Result<OwnedFd, WireError> {
    let bytes = serde_json::to_vec(job).map_err(WireError::Malformed)?;
    if bytes.len() > limit {
        return Err(WireError::TooLong {
            bytes: bytes.len() as u64,
            limit,
        });
    }
    let mut file = File::from(hostel_sys::memfd::create("job", bytes.len() as u64)?);
    file.write_all(&bytes)?;
    Ok(file.into())
}

/// Reads a job of [`write_job`].
pub(crate) fn read_job<T: DeserializeOwned>(fd: OwnedFd, limit: usize) -> Result<T, WireError> {
    let file = File::from(fd);
    let size = file.metadata()?.len();
    if size > limit as u64 {
        return Err(WireError::TooLong { bytes: size, limit });
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0)?;
    serde_json::from_slice(&bytes).map_err(WireError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::job::SessionReport;

    #[test]
    fn a_packet_that_is_too_long_is_not_sent() {
        let (ours, _theirs) = pair().unwrap();
        let error = send(&ours, &"x".repeat(MAX_PACKET), &[]).unwrap_err();
        assert!(matches!(error, WireError::TooLong { .. }), "{error}");
    }

    #[test]
    fn garbage_and_oversized_packets_are_errors_and_the_end_is_none() {
        let (ours, theirs) = pair().unwrap();
        let now = Some(Instant::now());
        hostel_sys::fdpass::send(&theirs, b"{\"Exited\"", &[]).unwrap();
        let error = receive::<SessionReport>(&ours, now).unwrap_err();
        assert!(matches!(error, WireError::Malformed(_)), "{error}");
        hostel_sys::fdpass::send(&theirs, &vec![b' '; MAX_PACKET + 9], &[]).unwrap();
        let error = receive::<SessionReport>(&ours, now).unwrap_err();
        assert!(matches!(error, WireError::TooLong { .. }), "{error}");
        assert!(matches!(
            receive::<SessionReport>(&ours, now),
            Err(WireError::Timeout)
        ));
        drop(theirs);
        assert!(receive::<SessionReport>(&ours, now).unwrap().is_none());
    }

    #[test]
    fn a_job_larger_than_its_limit_is_refused_on_both_sides() {
        assert!(matches!(
            write_job(&"x".repeat(100), 50),
            Err(WireError::TooLong { .. })
        ));
        let file = write_job(&"x".repeat(100), 1000).unwrap();
        assert!(matches!(
            read_job::<String>(file, 50),
            Err(WireError::TooLong { .. })
        ));
    }
}
