//! Lock files that name their holder (flock(2)).

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    mem::MaybeUninit,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, OFlags, flock, inotify},
};

/// The longest silence between two looks at a lock that is waited for; covers file systems that report no events.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A held lock. The kernel releases it when this is dropped or the process ends, however it ends.
///
/// The file stays: removing it would let two processes lock two different files of one name. It holds the pid of its
/// last holder and is close-on-exec, so no child keeps the lock.
#[derive(Debug)]
pub struct LockFile {
    /// Held open for the lock that belongs to it.
    _file: File,
    path: PathBuf,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("`{path}` is locked by {}", describe(*.holder))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The pid of the holder, when it had been written.
        holder: Option<u32>,
    },
    /// Somebody else still had it after the wait.
    #[error("`{path}` is still locked by {} after {} ms", describe(*.holder), .waited.as_millis())]
    StillHeld {
        /// The lock file.
        path: PathBuf,
        /// The pid of the holder, when it had been written.
        holder: Option<u32>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The file cannot be opened, locked or written.
    #[error("cannot use lock file `{path}`")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

fn describe(holder: Option<u32>) -> String {
    holder.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}

impl LockFile {
    /// Takes the lock at `path` now or not at all. Makes the file, mode 0600, when it is missing; its directory must exist.
    pub fn try_acquire(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits() as i32)
                .open(path)
                .map_err(failed)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(LockError::Held {
                        path: path.to_owned(),
                        holder: read_holder(&mut file),
                    });
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(failed(error.into())),
            }
            // Between open and flock the file may have been replaced: then the lock is on a file nobody sees any more.
            let ours = file.metadata().map_err(failed)?;
            match std::fs::symlink_metadata(path) {
                Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => {}
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            }
            file.set_len(0).map_err(failed)?;
            file.write_all(format!("{}\n", std::process::id()).as_bytes())
                .map_err(failed)?;
            return Ok(Self {
                _file: file,
                path: path.to_owned(),
            });
        }
    }

    /// Takes the lock, waiting for at most `wait` until its holder lets go. Blocks the thread.
    pub fn acquire_within(path: &Path, wait: Duration) -> Result<Self, LockError> {
        let begun = Instant::now();
        let mut watch = None;
        loop {
            let holder = match Self::try_acquire(path) {
                Err(LockError::Held { holder, .. }) => holder,
                other => return other,
            };
            let left = wait.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(LockError::StillHeld {
                    path: path.to_owned(),
                    holder,
                    waited: wait,
                });
            }
            match &watch {
                // Look once more after the watch is set: a release in between would go unnoticed.
                None => watch = Some(watch_release(path)),
                Some(Ok(events)) => {
                    let mut fds = [PollFd::new(events, PollFlags::IN)];
                    let timeout = Timespec::try_from(left.min(LOOK_AGAIN)).ok();
                    match poll(&mut fds, timeout.as_ref()) {
                        Ok(0) | Err(rustix::io::Errno::INTR) => {}
                        Ok(_) => drain(events),
                        Err(error) => {
                            return Err(LockError::Io {
                                path: path.to_owned(),
                                source: error.into(),
                            });
                        }
                    }
                }
                Some(Err(_)) => {
                    // No inotify left for this user: the clock has to do.
                    let timeout = Timespec::try_from(left.min(LOOK_AGAIN / 5)).ok();
                    let _ = poll(&mut [], timeout.as_ref());
                }
            }
        }
    }

    /// Returns the path of the lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns the pid written in the lock file at `path`, held or not; `None` when there is none.
pub fn holder(path: &Path) -> Option<u32> {
    let options = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(options.bits() as i32)
        .open(path)
        .ok()?;
    read_holder(&mut file)
}

/// A lock is let go by closing its last descriptor, also when its holder is killed, and closing a file that was open for
/// writing is an event.
fn watch_release(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(
        &events,
        path,
        inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::DELETE_SELF,
    )?;
    Ok(events)
}

fn drain(events: &std::os::fd::OwnedFd) {
    let mut buf = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(events, &mut buf);
    while reader.next().is_ok() {}
}

fn read_holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_names_its_holder_and_is_free_after_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let held = LockFile::try_acquire(&path).unwrap();
        let error = LockFile::try_acquire(&path).unwrap_err();
        assert!(
            matches!(error, LockError::Held { holder: Some(pid), .. } if pid == std::process::id()),
            "{error}"
        );
        assert!(error.to_string().contains(&std::process::id().to_string()));
        assert_eq!(holder(&path), Some(std::process::id()));
        drop(held);
        LockFile::try_acquire(&path).unwrap();
    }

    #[test]
    fn a_replaced_lock_file_is_not_mistaken_for_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let old = LockFile::try_acquire(&path).unwrap();
        rustix::fs::rename(&path, dir.path().join("moved")).unwrap();
        let new = LockFile::try_acquire(&path).unwrap();
        assert!(matches!(
            LockFile::try_acquire(&path),
            Err(LockError::Held { .. })
        ));
        drop((old, new));
    }

    #[test]
    fn waiting_ends_with_the_release_or_with_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let held = LockFile::try_acquire(&path).unwrap();
        let error = LockFile::acquire_within(&path, Duration::from_millis(30)).unwrap_err();
        assert!(matches!(error, LockError::StillHeld { .. }), "{error}");
        let waiter = {
            let path = path.clone();
            std::thread::spawn(move || {
                LockFile::acquire_within(&path, Duration::from_secs(20)).map(drop)
            })
        };
        drop(held);
        waiter.join().unwrap().unwrap();
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("target"), dir.path().join("l")).unwrap();
        assert!(matches!(
            LockFile::try_acquire(&dir.path().join("l")),
            Err(LockError::Io { .. })
        ));
    }
}
