//! Moves bytes between a standard stream and a raw connection, on a thread of its own.
//!
//! A thread, because a standard stream may block for as long as it likes, and the client must be able to leave all the
//! same: the thread is left behind and ends with the process.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use tokio::sync::watch;

/// The bytes that are moved at a time.
const BUFFER: usize = 64 << 10;

/// How far the output of a session has got.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Bytes that have been handed on.
    pub(super) bytes: u64,
    /// What the thread is doing.
    pub(super) phase: Phase,
}

/// What a pump is doing.
#[derive(Debug, Default)]
pub(super) enum Phase {
    /// It waits for the session.
    #[default]
    Reading,
    /// It waits for who reads our output.
    Writing,
    /// The session's side has come to its end.
    Ended,
    /// Our side cannot be written to. With `None` the reader has gone, which is no error.
    Refused(Option<io::Error>),
}

/// Copies from a connection to a local stream until either ends, and tells how far it is.
pub(super) fn output(connection: Arc<UnixStream>, to: OwnedFd) -> watch::Receiver<Flow> {
    let (progress, receiver) = watch::channel(Flow::default());
    std::thread::spawn(move || {
        let end = copy_out(&connection, &to, &progress);
        if let Phase::Refused(_) = end {
            // The command shall see a closed pipe too (TTY-3).
            let _ = connection.shutdown(Shutdown::Both);
        }
        progress.send_modify(|flow| flow.phase = end);
    });
    receiver
}

fn copy_out(connection: &UnixStream, to: &OwnedFd, progress: &watch::Sender<Flow>) -> Phase {
    let mut buffer = vec![0; BUFFER];
    loop {
        // A connection that breaks ends the output; the session's last event tells why.
        let n = match read(connection.as_fd(), &mut buffer) {
            Ok(0) | Err(_) => return Phase::Ended,
            Ok(n) => n,
        };
        progress.send_modify(|flow| flow.phase = Phase::Writing);
        match write_all(to.as_fd(), &buffer[..n]) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Phase::Refused(None),
            Err(e) => return Phase::Refused(Some(e)),
        }
        progress.send_modify(|flow| {
            flow.bytes += n as u64;
            flow.phase = Phase::Reading;
        });
    }
}

/// What to do with the connection when the local stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtEnd {
    /// Close this direction: the command reads end of file, a terminal hangs up.
    HalfClose,
    /// Nothing: a terminal has no end that could be sent.
    Keep,
}

/// Copies from a local stream to a connection until either ends.
pub(super) fn input(from: OwnedFd, connection: Arc<UnixStream>, at_end: AtEnd) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; BUFFER];
        while let Ok(n) = read(from.as_fd(), &mut buffer) {
            // A command that reads no more is no reason to stop its output.
            if n == 0 || write_all(connection.as_fd(), &buffer[..n]).is_err() {
                break;
            }
        }
        if at_end == AtEnd::HalfClose {
            let _ = connection.shutdown(Shutdown::Write);
        }
    });
}

/// Reads once; waits also when someone has made the stream non-blocking.
fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(fd, &mut *buffer) {
            Ok(n) => return Ok(n),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(fd, PollFlags::IN)?,
            Err(e) => return Err(e.into()),
        }
    }
}

/// Writes everything; waits also when someone has made the stream non-blocking.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(fd, PollFlags::OUT)?,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn wait(fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(&fd, what)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn output_arrives_also_through_a_pipe_that_does_not_block() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let flow = output(Arc::new(ours), write);
        let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
        let sent = data.clone();
        std::thread::spawn(move || theirs.write_all(&sent).unwrap());
        let mut got = Vec::new();
        let mut buffer = vec![0; 4096];
        loop {
            match super::read(read.as_fd(), &mut buffer).unwrap() {
                0 => break,
                n => got.extend_from_slice(&buffer[..n]),
            }
        }
        assert!(got == data);
        assert_eq!(flow.borrow().bytes, data.len() as u64);
    }

    #[test]
    fn a_reader_that_goes_closes_the_session_s_side() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(read);
        let flow = output(Arc::new(ours), write);
        theirs.write_all(b"x").unwrap();
        assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
        assert!(matches!(
            flow.borrow().phase,
            Phase::Refused(None) | Phase::Writing
        ));
    }

    #[test]
    fn the_end_of_input_is_passed_on_or_not() {
        for (at_end, want_end) in [(AtEnd::HalfClose, true), (AtEnd::Keep, false)] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let ours = Arc::new(ours);
            let (read, write) = rustix::pipe::pipe().unwrap();
            input(read, Arc::clone(&ours), at_end);
            write_all(write.as_fd(), b"abc").unwrap();
            drop(write);
            let mut got = [0; 3];
            theirs.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"abc");
            theirs
                .set_read_timeout(Some(std::time::Duration::from_millis(200)))
                .unwrap();
            assert_eq!(theirs.read(&mut got).is_ok_and(|n| n == 0), want_end);
        }
    }
}
