//! Starting the daemon: one client at a time, and never a guess whether it is ready.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use hostel_model::{ErrorCode, Failure, Paths};
use rustix::{io::FdFlags, pipe::PipeFlags};
use tokio::{
    io::AsyncReadExt,
    net::{UnixStream, unix::pipe},
    process::{Child, Command},
};

use crate::{
    surroundings::{find_program, is_executable, variable},
    text::printable,
    trouble::{Trouble, plain},
};

/// How long another client may hold the start lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(45);

/// How long the daemon may take until it serves. It starts no machine for that.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest report that is taken from a starting daemon, in bytes.
const MAX_REPORT: usize = 4096;

/// The first argument that makes this program the one that becomes the daemon.
pub(crate) const SPAWN_WORD: &str = "__spawn-daemon";

/// Starts the daemon, unless another client does or did, and connects to it.
pub(super) async fn start(paths: &Paths) -> Result<UnixStream, Trouble> {
    let _lock = lock(paths.start_lock()).await?;
    if let Ok(stream) = super::dial(&paths.api_socket()).await {
        return Ok(stream);
    }
    let program = find_daemon()?;
    let log_start = std::fs::metadata(paths.daemon_log()).map_or(0, |m| m.len());
    let (report, child) = spawn(paths, &program)?;
    wait_ready(paths, &program, log_start, report, child).await?;
    super::dial(&paths.api_socket()).await.map_err(|e| {
        let socket = paths.api_socket();
        failed(
            paths,
            &format!(
                "it is ready, but `{}` cannot be used: {}",
                socket.display(),
                plain(&e)
            ),
        )
        .into()
    })
}

/// Takes the lock; waits on a thread of its own, which is left behind when the time is over.
async fn lock(path: PathBuf) -> Result<File, Trouble> {
    let trouble = |e: &io::Error| Trouble::file(format!("cannot lock `{}`", path.display()), e);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| trouble(&e))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(e)) => return Err(trouble(&e)),
    }
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let locked = file.lock().map(|()| file);
        // Nobody waits any more: the lock goes with the file.
        let _ = send.send(locked);
    });
    match tokio::time::timeout(LOCK_TIMEOUT, receive).await {
        Ok(Ok(Ok(file))) => Ok(file),
        Ok(Ok(Err(e))) => Err(trouble(&e)),
        Ok(Err(_)) | Err(_) => Err(Failure::new(
            ErrorCode::Daemon,
            format!(
                "another hostel has held `{}` for {} s",
                path.display(),
                LOCK_TIMEOUT.as_secs()
            ),
        )
        .hint(format!("run `fuser -v {}` to see which", path.display()))
        .into()),
    }
}

/// Finds the daemon's program: `$HOSTELD`, beside this program, in PATH.
pub(crate) fn find_daemon() -> Result<PathBuf, Failure> {
    if let Some(path) = variable("HOSTELD").filter(|v| !v.is_empty()) {
        let path = PathBuf::from(path);
        return match std::path::absolute(&path) {
            Ok(absolute) if is_executable(&absolute) => Ok(absolute),
            _ => Err(Failure::new(
                ErrorCode::Daemon,
                format!(
                    "HOSTELD names `{}`, which cannot be executed",
                    path.display()
                ),
            )),
        };
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("hosteld")));
    beside
        .filter(|p| is_executable(p))
        .or_else(|| find_program("hosteld"))
        .ok_or_else(|| {
            Failure::new(
                ErrorCode::Daemon,
                "cannot find `hosteld`, neither beside this program nor in PATH",
            )
            .hint("install it beside hostel, or set HOSTELD to its path")
        })
}

/// Starts the daemon with the pipe on which it reports.
fn spawn(paths: &Paths, program: &Path) -> Result<(pipe::Receiver, Child), Trouble> {
    let start = || -> io::Result<(pipe::Receiver, Child)> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(paths.daemon_log())?;
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // Nothing else is started by this program while this end is inheritable.
        rustix::io::fcntl_setfd(&write, FdFlags::empty())?;
        let child = Command::new("/proc/self/exe")
            .arg(SPAWN_WORD)
            .arg(program)
            .env("HOSTEL_READY_FD", write.as_raw_fd().to_string())
            .env("HOSTEL_HOME", &paths.home)
            .env("HOSTEL_RUNTIME_DIR", &paths.runtime)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        drop::<OwnedFd>(write);
        Ok((pipe::Receiver::from_owned_fd(read)?, child))
    };
    start().map_err(|e| failed(paths, &plain(&e)).into())
}

/// Becomes the daemon, in a session of its own: a terminal that closes shall not end it.
///
/// Its own process because a session can only be left between fork and exec, where nothing safe can run.
pub(crate) fn spawn_role(mut args: impl Iterator<Item = OsString>) -> io::Error {
    let Some(program) = args.next() else {
        return io::Error::other("no program was named");
    };
    match rustix::process::setsid() {
        Ok(_) => std::process::Command::new(program).exec(),
        Err(e) => e.into(),
    }
}

/// Waits until the daemon says `ready`, or why it is not.
async fn wait_ready(
    paths: &Paths,
    program: &Path,
    log_start: u64,
    mut report: pipe::Receiver,
    mut child: Child,
) -> Result<(), Failure> {
    let mut text = Vec::new();
    let read = async {
        let mut buffer = [0; 512];
        while !text.contains(&b'\n') && text.len() < MAX_REPORT {
            match report.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => text.extend_from_slice(&buffer[..n]),
            }
        }
    };
    if tokio::time::timeout(READY_TIMEOUT, read).await.is_err() {
        return Err(failed(
            paths,
            &format!(
                "`{}` was not ready within {} s",
                program.display(),
                READY_TIMEOUT.as_secs()
            ),
        ));
    }
    let line = String::from_utf8_lossy(text.split(|b| *b == b'\n').next().unwrap_or_default())
        .trim()
        .to_owned();
    match line.as_str() {
        "ready" => Ok(()),
        "" => {
            // The pipe closes when the process ends, a moment before the process can be asked how.
            let mut why = match tokio::time::timeout(READY_TIMEOUT, child.wait()).await {
                Ok(Ok(end)) => format!("`{}` ended without a word ({end})", program.display()),
                Ok(Err(_)) | Err(_) => {
                    format!("`{}` did not say whether it is ready", program.display())
                }
            };
            if let Some(last) = last_line(&paths.daemon_log(), log_start) {
                why.push_str(": ");
                why.push_str(&last);
            }
            Err(failed(paths, &why))
        }
        line => Err(failed(paths, &printable(line))),
    }
}

/// Returns the last line that was added to a log after `from`.
fn last_line(log: &Path, from: u64) -> Option<String> {
    let mut file = fs_err::File::open(log).ok()?;
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(
        from.max(end.saturating_sub(MAX_REPORT as u64)),
    ))
    .ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_REPORT as u64).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|l| !l.trim().is_empty())?.trim();
    Some(printable(line).into_owned())
}

fn failed(paths: &Paths, why: &str) -> Failure {
    Failure::new(
        ErrorCode::Daemon,
        format!("the daemon did not start: {why}"),
    )
    .hint(format!("its log is `{}`", paths.daemon_log().display()))
    .hint("run `hostel doctor` to check this host")
}
