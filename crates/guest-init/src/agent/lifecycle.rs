//! The small virtio-serial port for life cycle: it answers while no vsock device is there, and at once after a restore.
//!
//! Lines, each answered by one line: `PING <id>` by `PONG <id>`; `PREPARE` (before a save: written back, caches dropped) by
//! `READY`; `RESUME <unix ns> <seed in hex>` (after a restore; may be repeated) by `RESUMED`. Anything else by `ERROR <why>`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{Interest, Ready};

use hostel_proto::limits::LIFECYCLE_PORT_NAME;

use super::clock;
use super::ready::{self, ReadyFd};
use super::uevents::Uevents;
use crate::console::{Level, say, say_error};

/// The longest line; a longer one is answered by an error and skipped.
const MAX_LINE: usize = 1024;

/// How long the port may take to appear before the agent gives up on it.
const APPEAR: Duration = Duration::from_secs(60);

/// A port without a peer says so at once and for ever, and nothing tells when a peer comes.
const NO_PEER: Duration = Duration::from_millis(100);

/// One request.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Ping(String),
    Prepare,
    Resume { unix_ns: u64, seed: Vec<u8> },
}

/// Serves the port until it is gone for good. Does nothing on a machine without one.
pub(crate) async fn serve() {
    let Ok(events) = Uevents::subscribe() else {
        return;
    };
    let Some(port) = events
        .wait_for(APPEAR, || find(Path::new("/sys/class/virtio-ports")))
        .await
    else {
        return;
    };
    if let Err(error) = talk(&port).await {
        say_error("serving the life-cycle port", &error);
    }
}

fn find(class: &Path) -> Option<PathBuf> {
    fs_err::read_dir(class)
        .ok()?
        .filter_map(Result::ok)
        .find_map(|entry| {
            let name = fs_err::read_to_string(entry.path().join("name")).ok()?;
            let node = Path::new("/dev").join(entry.file_name());
            (name.trim_end() == LIFECYCLE_PORT_NAME && node.exists()).then_some(node)
        })
}

async fn talk(port: &Path) -> io::Result<()> {
    use fs_err::os::unix::fs::OpenOptionsExt;
    let mut lines = Lines::default();
    loop {
        let file = fs_err::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(port)?;
        let file = ready::both(file.into_file().into())?;
        let mut buffer = [0; 512];
        loop {
            let mut guard = file.ready(Interest::READABLE).await?;
            let read = match guard.try_io(|f| Ok(rustix::io::read(f.get_ref(), &mut buffer[..])?)) {
                Err(_would_block) => continue,
                Ok(Err(error)) => return Err(error),
                Ok(Ok(0)) => break,
                Ok(Ok(read)) => read,
            };
            for line in lines.push(&buffer[..read]) {
                let answer = match line {
                    Ok(line) => answer(&line).await,
                    Err(()) => format!("ERROR a line is longer than {MAX_LINE} bytes\n"),
                };
                write_all(&file, answer.as_bytes()).await?;
            }
        }
        // The port must be opened anew: a hang-up stays with the open file. What came without an end of line is void.
        drop(file);
        lines = Lines::default();
        #[expect(
            clippy::disallowed_methods,
            reason = "there is no event for a host that connects; see NO_PEER"
        )]
        tokio::time::sleep(NO_PEER).await;
    }
}

async fn write_all(file: &ReadyFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut guard = file.ready(Interest::WRITABLE).await?;
        match rustix::io::write(file.get_ref(), bytes) {
            // The peer left: nobody waits for the rest.
            Ok(0) => return Ok(()),
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::AGAIN) => guard.clear_ready_matching(Ready::WRITABLE),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn answer(line: &str) -> String {
    let done = match parse(line) {
        Err(why) => return format!("ERROR {why}\n"),
        Ok(Request::Ping(id)) => return format!("PONG {id}\n"),
        Ok(Request::Prepare) => tokio::task::spawn_blocking(prepare)
            .await
            .map(|r| r.map(|()| "READY")),
        Ok(Request::Resume { unix_ns, seed }) => Ok(clock::set(unix_ns)
            .and_then(|()| clock::reseed(&seed))
            .map(|()| "RESUMED")),
    };
    match done {
        Ok(Ok(word)) => format!("{word}\n"),
        Ok(Err(error)) => {
            say(Level::Warning, format_args!("life cycle: {error}"));
            format!("ERROR {error}\n")
                .replace('\n', " ")
                .trim_end()
                .to_owned()
                + "\n"
        }
        Err(_) => "ERROR the work was cut short\n".to_owned(),
    }
}

fn prepare() -> io::Result<()> {
    rustix::fs::sync();
    fs_err::write("/proc/sys/vm/drop_caches", "3")
}

fn parse(line: &str) -> Result<Request, &'static str> {
    let mut words = line.split_ascii_whitespace();
    let request = match (words.next(), words.next(), words.next()) {
        (Some("PING"), Some(id), None) => Request::Ping(id.to_owned()),
        (Some("PREPARE"), None, None) => Request::Prepare,
        (Some("RESUME"), Some(time), Some(seed)) => Request::Resume {
            unix_ns: time
                .parse()
                .map_err(|_| "the time is not a number of nanoseconds")?,
            seed: hex(seed).ok_or("the seed is not at most 512 bytes in hex")?,
        },
        _ => return Err("not a request"),
    };
    if words.next().is_some() {
        Err("too many words")
    } else {
        Ok(request)
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty()
        || !text.len().is_multiple_of(2)
        || text.len() / 2 > hostel_sys::entropy::MAX_SEED
    {
        return None;
    }
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).map(|d| d as u8))
        .collect();
    Some(
        digits?
            .chunks_exact(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
    )
}

/// Cuts bytes into lines of bounded length.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    skipping: bool,
}

impl Lines {
    /// Takes bytes; returns the lines that are whole now, `Err` for one that was too long.
    fn push(&mut self, bytes: &[u8]) -> Vec<Result<String, ()>> {
        let mut whole = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.partial);
                whole.push(if std::mem::take(&mut self.skipping) {
                    Err(())
                } else {
                    Ok(String::from_utf8_lossy(&line).into_owned())
                });
            } else if self.partial.len() == MAX_LINE {
                self.skipping = true;
            } else {
                self.partial.push(byte);
            }
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_or_refused() {
        assert_eq!(parse("PING 7"), Ok(Request::Ping("7".into())));
        assert_eq!(parse("PREPARE\r"), Ok(Request::Prepare));
        assert_eq!(
            parse("RESUME 1700000000000000000 00fF"),
            Ok(Request::Resume {
                unix_ns: 1_700_000_000_000_000_000,
                seed: vec![0, 255]
            })
        );
        for bad in [
            "",
            "PING",
            "PING 1 2",
            "ping 1",
            "PREPARE now",
            "RESUME -1 00",
            "RESUME 1 0",
            "RESUME 1 zz",
            "RESUME 1 00 x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&format!("RESUME 1 {}", "00".repeat(513))).is_err());
    }

    #[test]
    fn lines_are_cut_wherever_the_bytes_break() {
        let mut lines = Lines::default();
        assert!(lines.push(b"PI").is_empty());
        assert_eq!(lines.push(b"NG 1\nPREP"), [Ok("PING 1".to_owned())]);
        assert_eq!(
            lines.push(b"ARE\n\n"),
            [Ok("PREPARE".to_owned()), Ok(String::new())]
        );
    }

    #[test]
    fn an_endless_line_is_skipped_with_bounded_memory() {
        let mut lines = Lines::default();
        for _ in 0..100 {
            assert!(lines.push(&[b'x'; 1000]).is_empty());
        }
        assert!(lines.partial.len() <= MAX_LINE);
        assert_eq!(
            lines.push(b"\nPING 1\n"),
            [Err(()), Ok("PING 1".to_owned())]
        );
    }

    #[tokio::test]
    async fn a_ping_is_answered_with_its_id() {
        assert_eq!(answer("PING abc").await, "PONG abc\n");
        assert!(answer("rubbish").await.starts_with("ERROR "));
    }
}
