//! Carries frames from QEMU through the filter and back.

use std::{io, os::unix::net::UnixStream as Pair};

use tokio::{io::Interest, net::UnixStream, task::AbortHandle};

use super::Policy;
use crate::backend::FilterSpec;

/// The longest frame of QEMU's networks, with room.
const MAX_FRAME: usize = 72 << 10;
/// Read at once.
const CHUNK: usize = 256 << 10;
/// What waits for QEMU at most. QEMU waits for us while it writes and reads nothing then, so frames beyond are dropped, as
/// networks do: waiting for QEMU here could be for ever.
const MAX_WAITING: usize = 4 << 20;
/// The length before each frame.
const HEAD: usize = 4;

/// A running filter; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Filter(AbortHandle);

impl Drop for Filter {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a filter and returns QEMU's ends. It ends when QEMU closes them.
pub(crate) fn start(policy: Policy) -> io::Result<(FilterSpec, Filter)> {
    let (out, out_qemu) = Pair::pair()?;
    let (back, back_qemu) = Pair::pair()?;
    out.set_nonblocking(true)?;
    back.set_nonblocking(true)?;
    let out = UnixStream::from_std(out)?;
    let back = UnixStream::from_std(back)?;
    let task = tokio::spawn(async move {
        if let Err(error) = pump(&policy, &out, &back).await {
            tracing::debug!(%error, "the filter of the user-mode network has ended");
        }
    });
    let spec = FilterSpec {
        out: out_qemu.into(),
        back: back_qemu.into(),
    };
    Ok((spec, Filter(task.abort_handle())))
}

async fn pump(policy: &Policy, out: &UnixStream, back: &UnixStream) -> io::Result<()> {
    let mut input = vec![0; CHUNK + MAX_FRAME];
    let mut filled = 0;
    let mut waiting = Waiting::default();
    loop {
        let flush = !waiting.is_empty();
        tokio::select! {
            // What waits goes first: it makes room.
            biased;
            ready = back.ready(Interest::WRITABLE), if flush => {
                ready?;
                waiting.flush(back)?;
            }
            ready = out.readable() => {
                ready?;
                match out.try_read(&mut input[filled..]) {
                    Ok(0) => return Ok(()),
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(e) => return Err(e),
                }
                let used = sort(policy, &input[..filled], &mut waiting)?;
                input.copy_within(used..filled, 0);
                filled -= used;
                waiting.flush(back)?;
            }
        }
    }
}

/// Takes the whole frames of `input` and keeps those that pass; returns how many bytes were taken.
fn sort(policy: &Policy, input: &[u8], waiting: &mut Waiting) -> io::Result<usize> {
    let mut rest = input;
    while let Some((head, frames)) = rest.split_first_chunk::<HEAD>() {
        let len = u32::from_be_bytes(*head) as usize;
        if len > MAX_FRAME - HEAD {
            let text = format!("a frame of {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let Some(frame) = frames.get(..len) else {
            break;
        };
        if policy.passes(frame) {
            waiting.push(&rest[..HEAD + len]);
        }
        rest = &frames[len..];
    }
    Ok(input.len() - rest.len())
}

/// Frames on their way to QEMU.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    sent: usize,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Adds a whole frame, or drops it.
    fn push(&mut self, frame: &[u8]) {
        if self.bytes.len() - self.sent + frame.len() <= MAX_WAITING {
            self.bytes.extend_from_slice(frame);
        }
    }

    /// Writes what can be written now.
    fn flush(&mut self, to: &UnixStream) -> io::Result<()> {
        while !self.is_empty() {
            match to.try_write(&self.bytes[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        self.bytes.drain(..self.sent);
        self.sent = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read as _, Write as _},
        net::Ipv4Addr,
        time::Duration,
    };

    fn policy() -> Policy {
        Policy {
            subnet: "172.19.128.0/20".parse().unwrap(),
            gateway: Ipv4Addr::new(172, 19, 128, 1),
            gateway_is_host: false,
            resolver: Ipv4Addr::new(172, 19, 128, 53),
            ipv6: None,
        }
    }

    /// ARP passes, what has no kind does not.
    fn frame(passes: bool, len: usize, fill: u8) -> Vec<u8> {
        let mut frame = (len as u32).to_be_bytes().to_vec();
        frame.resize(HEAD + len, fill);
        let kind = if passes { [8, 6] } else { [0, 0] };
        frame[HEAD + 12..HEAD + 14].copy_from_slice(&kind);
        frame
    }

    fn ends(spec: FilterSpec) -> (Pair, Pair) {
        let (out, back) = (Pair::from(spec.out), Pair::from(spec.back));
        back.set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        (out, back)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn frames_come_back_whole_in_order_and_without_the_bad_ones() {
        let (spec, _filter) = start(policy()).unwrap();
        let (mut out, mut back) = ends(spec);
        let mut want = Vec::new();
        let mut sent = Vec::new();
        for i in 0..200_usize {
            let one = frame(i % 3 != 0, 60 + i * 300, i as u8);
            if i % 3 != 0 {
                want.extend_from_slice(&one);
            }
            sent.extend(one);
        }
        let writer = std::thread::spawn(move || {
            // In pieces that cut through lengths and frames.
            for piece in sent.chunks(7919) {
                out.write_all(piece).unwrap();
            }
            out
        });
        let mut got = vec![0; want.len()];
        back.read_exact(&mut got).unwrap();
        assert!(got == want);
        drop(writer.join().unwrap());
        assert_eq!(back.read(&mut got).unwrap(), 0, "the end is passed on");
    }

    /// QEMU writes with the same thread that reads: it must never have to wait for itself.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_writer_that_reads_nothing_is_never_held_up() {
        let (spec, _filter) = start(policy()).unwrap();
        let (mut out, mut back) = ends(spec);
        let one = frame(true, 1500, 7);
        let count = 3 * MAX_WAITING / one.len();
        out.set_write_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        for _ in 0..count {
            out.write_all(&one).unwrap();
        }
        drop(out);
        let mut got = Vec::new();
        // What waited is dropped with the filter once its writer has gone; what arrived is whole frames.
        let _ = back.read_to_end(&mut got);
        let whole = got.len() / one.len();
        assert!(whole > 0 && whole < count, "{whole} of {count}");
        assert!(got.chunks_exact(one.len()).all(|f| f == one));
    }

    #[tokio::test]
    async fn a_length_that_is_none_ends_it() {
        let (spec, _filter) = start(policy()).unwrap();
        let (mut out, mut back) = ends(spec);
        out.write_all(&u32::MAX.to_be_bytes()).unwrap();
        let ended = tokio::task::spawn_blocking(move || back.read(&mut [0; 8]).unwrap());
        assert_eq!(ended.await.unwrap(), 0);
    }
}
