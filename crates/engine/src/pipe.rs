//! Reading from and writing to a client's descriptor on a blocking thread, so that a client that leaves ends it.

use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use hostel_model::{ErrorCode, Failure};
use hostel_proto::{limits::CLAIM_TIMEOUT, v1};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sha2::{Digest as _, Sha256};

use crate::{engine::Engine, task::TaskSink};

/// How often a blocked transfer looks whether its client is still there.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 250_000_000,
};

/// How many buffers wait for the hasher.
const HASH_QUEUE: usize = 16;

impl Engine {
    /// Asks the client of a task for the descriptor of its archive, which it hands over by claiming a stream.
    pub(crate) async fn archive_descriptor(&self, sink: &TaskSink) -> Result<OwnedFd, Failure> {
        let claim = self.client_streams.expect()?;
        sink.claim(v1::StreamKind::Archive, claim.token()).await;
        let claimed = tokio::select! {
            claimed = claim.claimed(CLAIM_TIMEOUT) => claimed,
            () = sink.closed() => None,
        };
        claimed.and_then(|c| c.descriptor).ok_or_else(|| {
            Failure::new(
                ErrorCode::Protocol,
                "the client did not hand the archive over",
            )
        })
    }
}

/// A client's descriptor; transfers fail with `Interrupted`-like errors once the client is gone.
pub(crate) struct ClientFile<'a> {
    file: &'a fs_err::File,
    sink: &'a TaskSink,
}

impl<'a> ClientFile<'a> {
    pub(crate) fn new(file: &'a fs_err::File, sink: &'a TaskSink) -> Self {
        Self { file, sink }
    }

    /// Waits until the descriptor is ready or the client is gone.
    fn wait(&self, events: PollFlags) -> io::Result<()> {
        loop {
            if self.sink.is_closed() {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "the client is gone",
                ));
            }
            let fd = self.file.as_fd();
            match poll(&mut [PollFd::new(&fd, events)], Some(&LOOK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Tells whether a transfer is to be tried again.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl Read for ClientFile<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait(PollFlags::IN)?;
            match (&*self.file).read(buf) {
                Err(error) if is_passing(&error) => {}
                other => return other,
            }
        }
    }
}

impl Write for ClientFile<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        loop {
            self.wait(PollFlags::OUT)?;
            match (&*self.file).write(buf) {
                Err(error) if is_passing(&error) => {}
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Passes what is read on to a hasher on a thread of its own.
pub(crate) struct Hashed<R> {
    input: R,
    queue: std::sync::mpsc::SyncSender<Vec<u8>>,
    hasher: std::thread::JoinHandle<Sha256>,
    taken: u64,
}

impl<R: Read> Hashed<R> {
    pub(crate) fn new(input: R) -> io::Result<Self> {
        let (queue, buffers) = std::sync::mpsc::sync_channel::<Vec<u8>>(HASH_QUEUE);
        let hasher = std::thread::Builder::new()
            .name("hash".to_owned())
            .spawn(move || {
                let mut digest = Sha256::new();
                for buffer in buffers {
                    digest.update(&buffer);
                }
                digest
            })?;
        Ok(Self {
            input,
            queue,
            hasher,
            taken: 0,
        })
    }

    /// Returns the digest in hex and the number of bytes that were read.
    pub(crate) fn finish(self) -> (String, u64) {
        drop(self.queue);
        let digest = self
            .hasher
            .join()
            .expect("hashing does not panic")
            .finalize();
        let text = digest
            .iter()
            .fold(String::with_capacity(64), |mut text, byte| {
                use std::fmt::Write as _;
                let _ = write!(text, "{byte:02x}");
                text
            });
        (text, self.taken)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        self.taken += n as u64;
        self.queue
            .send(buf[..n].to_vec())
            .map_err(|_| io::Error::other("the hasher ended"))?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_read_ends_when_the_client_leaves() {
        let (reader, _writer) = io::pipe().unwrap();
        let file = fs_err::File::from_parts(std::os::fd::OwnedFd::from(reader).into(), "pipe");
        let (sink, events) = TaskSink::channel();
        drop(events);
        let error = ClientFile::new(&file, &sink).read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[test]
    fn the_digest_is_that_of_all_bytes() {
        let mut hashed = Hashed::new(&b"abc"[..]).unwrap();
        io::copy(&mut hashed, &mut io::sink()).unwrap();
        let (digest, taken) = hashed.finish();
        assert_eq!(taken, 3);
        assert_eq!(
            digest,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
