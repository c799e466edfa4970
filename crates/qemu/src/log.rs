//! Logs of what can write for ever: the beginning and the end are kept, the middle goes.

use std::{
    collections::VecDeque,
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

/// How much of the beginning is kept, in bytes.
pub(crate) const HEAD: u64 = 64 * 1024;
/// How much of the end is kept at least, in bytes. The file is at most twice this larger than the beginning.
pub(crate) const TAIL: usize = 256 * 1024;

const CUT: &[u8] = b"\n[... cut ...]\n";

/// A log file of bounded size. The path is replaced when the log is made, mode 0600.
#[derive(Debug)]
pub(crate) struct BoundedLog {
    file: fs_err::File,
    len: u64,
    tail: VecDeque<u8>,
    /// Writing to the file failed once; the tail in memory goes on.
    broken: bool,
}

impl BoundedLog {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        match fs_err::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options
            .open(path)
            .map(|file| fs_err::File::from_parts(file, PathBuf::from(path)))
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("cannot make `{}`: {error}", path.display()),
                )
            })?;
        Ok(Self {
            file,
            len: 0,
            tail: VecDeque::new(),
            broken: false,
        })
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.tail.extend(bytes);
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..surplus);
        if !self.broken
            && let Err(error) = self.write(bytes)
        {
            tracing::debug!(%error, "cannot keep the log");
            self.broken = true;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len + bytes.len() as u64 > HEAD + 2 * TAIL as u64 {
            self.file.set_len(HEAD)?;
            self.file.seek(SeekFrom::Start(HEAD))?;
            self.file.write_all(CUT)?;
            let (a, b) = self.tail.as_slices();
            self.file.write_all(a)?;
            self.file.write_all(b)?;
            self.len = HEAD + (CUT.len() + self.tail.len()) as u64;
            return Ok(());
        }
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Returns the last lines, at most `lines` of them and 16 KiB, safe to print: control characters of the guest are gone.
    pub(crate) fn last_lines(&self, lines: usize) -> String {
        let skip = self.tail.len().saturating_sub(16 * 1024);
        let bytes: Vec<u8> = self.tail.iter().skip(skip).copied().collect();
        let text: String = String::from_utf8_lossy(&bytes)
            .chars()
            .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
            .collect();
        let text = text.trim();
        let from = text
            .rmatch_indices('\n')
            .nth(lines.saturating_sub(1))
            .map_or(0, |(i, _)| i + 1);
        text[from..].to_owned()
    }
}

/// A log that a thread of its own fills from a stream until that ends.
#[derive(Debug)]
pub(crate) struct Drain {
    log: Arc<Mutex<BoundedLog>>,
    /// Nothing is ever sent; the other end is dropped when the stream has ended.
    end: Mutex<mpsc::Receiver<()>>,
}

impl Drain {
    pub(crate) fn start(
        name: &str,
        mut from: impl Read + Send + 'static,
        log: BoundedLog,
    ) -> io::Result<Self> {
        let log = Arc::new(Mutex::new(log));
        let shared = Arc::clone(&log);
        let (ending, end) = mpsc::channel();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let _ending: mpsc::Sender<()> = ending;
                let mut buf = [0; 8192];
                loop {
                    match from.read(&mut buf) {
                        Ok(0) => return,
                        Ok(n) => lock(&shared).append(&buf[..n]),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => return,
                    }
                }
            })?;
        Ok(Self {
            log,
            end: Mutex::new(end),
        })
    }

    pub(crate) fn last_lines(&self, lines: usize) -> String {
        lock(&self.log).last_lines(lines)
    }

    /// Waits until the stream has come to its end and all of it is in the log, but no longer than `patience`.
    pub(crate) fn finished_within(&self, patience: Duration) {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = end.recv_timeout(patience);
    }
}

fn lock(log: &Mutex<BoundedLog>) -> MutexGuard<'_, BoundedLog> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_writer_leaves_its_beginning_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = BoundedLog::create(&path).unwrap();
        log.append(b"first line\n");
        for i in 0..200_000 {
            log.append(format!("line {i}\n").as_bytes());
        }
        let text = fs_err::read_to_string(&path).unwrap();
        assert!(
            text.len() as u64 <= HEAD + 2 * TAIL as u64 + 100,
            "{}",
            text.len()
        );
        assert!(text.starts_with("first line\nline 0\n"));
        assert!(text.contains("[... cut ...]"));
        assert!(text.ends_with("line 199999\n"));
        assert_eq!(log.last_lines(2), "line 199998\nline 199999");
    }

    #[test]
    fn the_last_lines_are_safe_to_print() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs_err::write(&path, "of an earlier start").unwrap();
        let mut log = BoundedLog::create(&path).unwrap();
        assert_eq!(log.last_lines(5), "");
        log.append(b"\x1b[2Jpanic\x07\r\n\xff\n");
        assert_eq!(log.last_lines(5), "[2Jpanic\n\u{fffd}");
        assert_eq!(fs_err::metadata(&path).unwrap().len(), 14);
    }
}
