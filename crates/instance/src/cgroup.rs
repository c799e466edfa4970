//! The cgroup of a distribution: `<parent>/<id>` with the leaf `<id>/init` (cgroups(7)).
//!
//! PID 1 and the sessions sit in the leaf: in `<id>` itself they would keep container engines inside from giving controllers
//! to their own groups.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

/// `f_type` of a cgroup2 file system (magic.h).
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// How many cgroups below one distribution are looked at; more are an error.
const MAX_GROUPS: usize = 10_000;
/// How long killed processes may take to leave.
const KILL_TIME: Duration = Duration::from_secs(5);

/// A cgroup subtree that belongs to one distribution.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    /// Tells it apart from a later one of the same name.
    inode: u64,
}

impl Cgroup {
    /// Makes `<parent>/<id>/init`, after killing and removing what an earlier run left there. `None` when `parent` is not in
    /// a cgroup2 tree.
    pub(crate) fn create(parent: &Path, id: &str) -> io::Result<Option<Self>> {
        if !is_cgroup2(parent) {
            return Ok(None);
        }
        let path = parent.join(id);
        if let Some(old) = Self::existing(&path)? {
            old.remove(KILL_TIME)?;
        }
        give_controllers(parent);
        std::fs::create_dir(&path)?;
        let Some(group) = Self::existing(&path)? else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if let Err(error) = std::fs::create_dir(group.leaf()) {
            // The first error is the one to tell; an empty directory left here is reused by the next start.
            let _ = std::fs::remove_dir(&group.path);
            return Err(error);
        }
        Ok(Some(group))
    }

    fn existing(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::metadata(path) {
            Ok(status) => Ok(Some(Self {
                path: path.to_owned(),
                inode: status.ino(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn leaf(&self) -> PathBuf {
        self.path.join("init")
    }

    /// Kills every process in the subtree and removes it, deepest first, within a time. One that is gone, even if another has
    /// its name by now, is a success.
    pub(crate) fn remove(&self, timeout: Duration) -> io::Result<()> {
        if Self::existing(&self.path)?.is_none_or(|group| group.inode != self.inode) {
            return Ok(());
        }
        let deadline = Instant::now() + timeout;
        // Since Linux 5.14. Without it the processes must be gone already, as they are after the end of their PID 1.
        let _ = fs_err::write(self.path.join("cgroup.kill"), "1");
        self.wait_empty(deadline)?;
        for group in self.groups()?.iter().rev() {
            match std::fs::remove_dir(group) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("cannot remove cgroup `{}`: {error}", group.display()),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Waits until no process is in the subtree: the kernel signals each change of `cgroup.events` to pollers.
    fn wait_empty(&self, deadline: Instant) -> io::Result<()> {
        let path = self.path.join("cgroup.events");
        loop {
            let file = match fs_err::File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            let text = io::read_to_string(&file)?;
            if text.lines().any(|line| line == "populated 0") {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("processes in cgroup `{}` do not end", self.path.display()),
                ));
            }
            let fd = file.file().as_fd();
            let mut fds = [PollFd::new(&fd, PollFlags::PRI)];
            let time = crate::wire::timespec(left);
            match rustix::event::poll(&mut fds, Some(&time)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lists the subtree, parents before children.
    fn groups(&self) -> io::Result<Vec<PathBuf>> {
        let mut groups = vec![self.path.clone()];
        let mut next = 0;
        while next < groups.len() {
            let entries = match std::fs::read_dir(&groups[next]) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    next += 1;
                    continue;
                }
                other => other?,
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    groups.push(entry.path());
                }
            }
            if groups.len() > MAX_GROUPS {
                return Err(io::Error::other(format!(
                    "more than {MAX_GROUPS} cgroups below `{}`",
                    self.path.display()
                )));
            }
            next += 1;
        }
        Ok(groups)
    }

    /// Counts the processes in the subtree.
    pub(crate) fn processes(&self) -> io::Result<u32> {
        let mut count = 0;
        for group in self.groups()? {
            // A threaded cgroup refuses this; its processes show in the domain above it.
            let text = fs_err::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            count += text.lines().count();
        }
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Returns the memory charged to the subtree, in bytes; `None` without the memory controller.
    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        fs_err::read_to_string(self.path.join("memory.current"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }
}

/// Moves the calling process into `<group>`, so that a cgroup namespace made then has its root there.
pub(crate) fn enter(group: &Path) -> io::Result<()> {
    fs_err::write(group.join("cgroup.procs"), "0")
}

/// Moves the calling process on into the leaf and then gives the controllers to the group's children; until then a process in
/// the group itself forbids that.
pub(crate) fn enter_leaf(group: &Path) -> io::Result<()> {
    fs_err::write(group.join("init/cgroup.procs"), "0")?;
    give_controllers(group);
    Ok(())
}

/// Gives every controller that a group has to its children, as far as the kernel allows.
fn give_controllers(group: &Path) {
    let available = fs_err::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        // One at a time: one that is refused must not take the others with it.
        let _ = fs_err::write(
            group.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type as u64 == CGROUP2_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_is_no_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Cgroup::create(dir.path(), "x").unwrap().is_none());
    }
}
