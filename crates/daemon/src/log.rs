//! The daemon's log: standard error, which whoever starts it points at `daemon.log`.

use std::{
    io::{self, Write},
    os::fd::AsFd as _,
    sync::Arc,
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::settings::Settings;

/// How large the log may get, in bytes, before it begins anew.
const LIMIT: u64 = 4 << 20;

/// How much of the end is kept then, in bytes.
const KEEP: u64 = 256 << 10;

/// Begins logging.
pub(crate) fn start(settings: &Settings) {
    let filter = EnvFilter::try_new(&settings.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .with_writer(Limited(Arc::new(settings.paths.daemon_log())))
        .finish();
    // Fails only when there is one already.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Says one line on standard output.
pub(crate) fn say_out(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Says one line on standard error.
pub(crate) fn say_err(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Standard error, kept below [`LIMIT`] when it is the log file.
struct Limited(Arc<std::path::PathBuf>);

impl<'a> MakeWriter<'a> for Limited {
    type Writer = io::Stderr;

    fn make_writer(&'a self) -> Self::Writer {
        // Whatever fails here, the line itself is still worth writing.
        let _ = begin_anew(&self.0);
        io::stderr()
    }
}

/// Keeps only the end of a log that has become too large. Lines of other processes in between may be lost.
fn begin_anew(path: &std::path::Path) -> io::Result<()> {
    let stderr = io::stderr();
    let log = rustix::fs::fstat(stderr.as_fd())?;
    if rustix::fs::FileType::from_raw_mode(log.st_mode) != rustix::fs::FileType::RegularFile
        || (log.st_size as u64) < LIMIT
    {
        return Ok(());
    }
    let file = fs_err::File::open(path)?;
    let named = rustix::fs::fstat(file.file())?;
    if (named.st_dev, named.st_ino) != (log.st_dev, log.st_ino) {
        return Ok(());
    }
    let mut tail = vec![0; KEEP as usize];
    let read =
        std::os::unix::fs::FileExt::read_at(file.file(), &mut tail, log.st_size as u64 - KEEP)?;
    // It was opened for appending: what is written next goes to the new end.
    rustix::fs::ftruncate(stderr.as_fd(), 0)?;
    let tail = &tail[..read];
    let whole_lines = tail
        .iter()
        .position(|b| *b == b'\n')
        .map_or(tail, |at| &tail[at + 1..]);
    stderr.lock().write_all(whole_lines)
}
