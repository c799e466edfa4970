//! Reading a log: its last lines, and what is added while somebody looks.

use std::{
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use futures_util::Stream;
use hostel_model::{ErrorCode, Failure};
use hostel_proto::{status_of, v1::LogChunk};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How much is read at a time, in bytes.
const CHUNK: usize = 64 << 10;

/// How often a followed log is looked at. Logs lie on tmpfs and are few: looking is cheaper than watching.
const LOOK: Duration = Duration::from_millis(200);

/// Reads a log from `tail_lines` before its end (0: all of it), and goes on as it grows when `follow` is set.
///
/// A log that is not there yet is empty.
pub(super) fn read(
    path: PathBuf,
    tail_lines: usize,
    follow: bool,
    ended: CancellationToken,
) -> Pin<Box<dyn Stream<Item = Result<LogChunk, Status>> + Send>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let mut position = None;
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            let from = path.clone();
            let read = tokio::task::spawn_blocking(move || more(&from, position, tail_lines)).await;
            let (data, at) = match read.unwrap_or_else(|e| Err(io::Error::other(e))) {
                Ok(read) => read,
                Err(error) => {
                    let failure = Failure::from_error(ErrorCode::File, &error);
                    let _ = sender.send(Err(status_of(&failure))).await;
                    return;
                }
            };
            position = Some(at);
            let at_end = data.is_empty();
            if !at_end
                && sender
                    .send(Ok(LogChunk { data: data.into() }))
                    .await
                    .is_err()
            {
                return;
            }
            if at_end {
                if !follow {
                    return;
                }
                tokio::select! {
                    () = sender.closed() => return,
                    () = ended.cancelled() => return,
                    _ = ticks.tick() => {}
                }
            }
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// Reads the next piece of a log, and says where the one after it begins.
fn more(path: &Path, position: Option<u64>, tail_lines: usize) -> io::Result<(Vec<u8>, u64)> {
    let mut file = match fs_err::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(e) => return Err(e),
    };
    let end = file.metadata()?.len();
    let from = match position {
        // It began anew: so does its reader.
        Some(at) if at > end => 0,
        Some(at) => at,
        None if tail_lines == 0 => 0,
        None => tail(&mut file, end, tail_lines)?,
    };
    file.seek(SeekFrom::Start(from))?;
    let mut data = Vec::with_capacity(CHUNK.min((end - from) as usize));
    file.take(CHUNK as u64).read_to_end(&mut data)?;
    let next = from + data.len() as u64;
    Ok((data, next))
}

/// Returns where the last `lines` lines of a file begin.
fn tail(file: &mut fs_err::File, end: u64, lines: usize) -> io::Result<u64> {
    let mut at = end;
    let mut found = 0;
    let mut buffer = vec![0; CHUNK];
    while at > 0 {
        let len = (CHUNK as u64).min(at) as usize;
        at -= len as u64;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut buffer[..len])?;
        for (i, byte) in buffer[..len].iter().enumerate().rev() {
            // The newline at the very end closes the last line and begins none.
            if *byte == b'\n' && at + i as u64 + 1 < end {
                found += 1;
                if found == lines {
                    return Ok(at + i as u64 + 1);
                }
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;

    #[test]
    fn the_last_lines_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for (text, lines, want) in [
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 1, "c"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("a\nb\nc\n", 0, "a\nb\nc\n"),
            ("", 3, ""),
        ] {
            fs_err::write(&path, text).unwrap();
            let (data, next) = more(&path, None, lines).unwrap();
            assert_eq!(String::from_utf8(data).unwrap(), want, "{text:?} {lines}");
            assert_eq!(next, text.len() as u64);
        }
        assert_eq!(
            more(&dir.path().join("none"), None, 1).unwrap(),
            (Vec::new(), 0)
        );
    }

    #[tokio::test]
    async fn a_followed_log_goes_on_and_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs_err::write(&path, "one\n").unwrap();
        let ended = CancellationToken::new();
        let mut stream = read(path.clone(), 0, true, ended.clone());
        assert_eq!(&stream.next().await.unwrap().unwrap().data[..], b"one\n");
        fs_err::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(&stream.next().await.unwrap().unwrap().data[..], b"two\n");
        fs_err::write(&path, "x\n").unwrap();
        assert_eq!(&stream.next().await.unwrap().unwrap().data[..], b"x\n");
        ended.cancel();
        assert!(stream.next().await.is_none());
    }
}
