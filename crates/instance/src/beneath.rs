//! Files inside a root directory that is not trusted: every path is resolved by the kernel beneath an open directory, so a
//! symlink in an image never leads out of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// An open directory that acts as `/` for everything done through it.
#[derive(Debug)]
pub(crate) struct Beneath {
    root: OwnedFd,
}

impl Beneath {
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // EAGAIN: something was renamed or mounted on the machine while the kernel looked.
        for _ in 0..64 {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), how) {
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Opens what is at a path for use as a mount point or directory (`O_PATH`).
    pub(crate) fn at(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::PATH)
    }

    /// Opens a directory (`O_PATH`).
    pub(crate) fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Opens a directory, making what is missing of it with mode 755.
    pub(crate) fn make_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.directory(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut parent = self.directory(Path::new("/"))?;
        let mut walked = PathBuf::from("/");
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::RootDir | Component::CurDir => continue,
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL.into()),
            };
            walked.push(name);
            parent = match self.directory(&walked) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // EEXIST here is a symlink to nowhere; opening it again says so.
                    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => self.directory(&walked)?,
                        Err(error) => return Err(error.into()),
                    }
                }
                other => other?,
            };
        }
        Ok(parent)
    }

    /// Splits a path into its open parent directory and its last name. The parent must exist.
    fn parent<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        Ok((
            self.directory(path.parent().unwrap_or(Path::new("/")))?,
            name,
        ))
    }

    /// Opens the file at a path as a mount point (`O_PATH`, a symlink itself and not its target), making an empty one when
    /// there is nothing. Its directory is made too.
    pub(crate) fn make_file(&self, path: &Path) -> io::Result<OwnedFd> {
        self.make_directory(path.parent().unwrap_or(Path::new("/")))?;
        let (parent, name) = self.parent(path)?;
        let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, name, look, Mode::empty()) {
            Err(Errno::NOENT) => {
                let make = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&parent, name, make, Mode::from_raw_mode(0o755))?;
                Ok(rustix::fs::openat(&parent, name, look, Mode::empty())?)
            }
            other => Ok(other?),
        }
    }

    /// Reads a regular file of at most `limit` bytes; `None` when there is nothing at the path. Never waits on a fifo.
    pub(crate) fn read(&self, path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
        match self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(fd) => read_regular(fd, limit).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives a file this content and mode 644 by replacing it; what is there already is left alone when it is right. A symlink
    /// is replaced, not followed.
    pub(crate) fn replace_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let look =
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        if let Ok(fd) = rustix::fs::openat(&parent, name, look, Mode::empty())
            && read_regular(fd, content.len()).is_ok_and(|old| old == content)
        {
            return Ok(());
        }
        let temporary = temporary_name(name);
        unlink_quietly(&parent, &temporary);
        let make =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, &temporary, make, Mode::from_raw_mode(0o644))?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o644))?;
        let renamed = File::from(fd)
            .write_all(content)
            .and_then(|()| Ok(rustix::fs::renameat(&parent, &temporary, &parent, name)?));
        if renamed.is_err() {
            unlink_quietly(&parent, &temporary);
        }
        renamed
    }

    /// Makes the path a symlink to `target`, replacing what is there.
    pub(crate) fn replace_link(&self, path: &Path, target: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        if self.link_target(path).is_some_and(|old| old == target) {
            return Ok(());
        }
        let temporary = temporary_name(name);
        unlink_quietly(&parent, &temporary);
        rustix::fs::symlinkat(target, &parent, &temporary)?;
        let renamed = rustix::fs::renameat(&parent, &temporary, &parent, name);
        if renamed.is_err() {
            unlink_quietly(&parent, &temporary);
        }
        Ok(renamed?)
    }

    /// Returns what the symlink at a path says; `None` when it is none.
    pub(crate) fn link_target(&self, path: &Path) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStringExt as _;
        let (parent, name) = self.parent(path).ok()?;
        let text = rustix::fs::readlinkat(&parent, name, Vec::new()).ok()?;
        Some(std::ffi::OsString::from_vec(text.into_bytes()).into())
    }

    /// Removes the file or symlink at a path.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(&parent, name, AtFlags::empty())?)
    }
}

fn temporary_name(name: &OsStr) -> std::ffi::OsString {
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".hostel-new");
    temporary
}

fn unlink_quietly(parent: &OwnedFd, name: &OsStr) {
    // Usually it is not there; a real obstacle shows when the name is used next.
    let _ = rustix::fs::unlinkat(parent, name, AtFlags::empty());
}

/// Reads an open regular file of at most `limit` bytes.
pub(crate) fn read_regular(fd: OwnedFd, limit: usize) -> io::Result<Vec<u8>> {
    let status = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    let mut content = Vec::new();
    File::from(fd)
        .take(limit as u64 + 1)
        .read_to_end(&mut content)?;
    if content.len() > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {limit} bytes"),
        ));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Beneath) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let fd = rustix::fs::open(
            dir.path().join("root"),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        (dir, Beneath::new(fd))
    }

    #[test]
    fn a_symlink_never_leads_out() {
        let (dir, beneath) = root();
        fs_err::write(dir.path().join("secret"), "outside").unwrap();
        symlink(dir.path().join("secret"), dir.path().join("root/absolute")).unwrap();
        symlink("../secret", dir.path().join("root/relative")).unwrap();
        assert_eq!(beneath.read(Path::new("/absolute"), 100).unwrap(), None);
        assert_eq!(beneath.read(Path::new("/relative"), 100).unwrap(), None);
        beneath
            .replace_file(Path::new("/absolute"), b"inside")
            .unwrap();
        assert_eq!(fs_err::read(dir.path().join("secret")).unwrap(), b"outside");
        assert_eq!(
            fs_err::read(dir.path().join("root/absolute")).unwrap(),
            b"inside"
        );
    }

    #[test]
    fn a_missing_directory_is_made_inside_even_through_symlinks() {
        let (dir, beneath) = root();
        std::fs::create_dir(dir.path().join("root/real")).unwrap();
        symlink("/real", dir.path().join("root/link")).unwrap();
        beneath.make_directory(Path::new("/link/a/b")).unwrap();
        assert!(dir.path().join("root/real/a/b").is_dir());
        symlink("/nowhere", dir.path().join("root/dangling")).unwrap();
        assert!(beneath.make_directory(Path::new("/dangling")).is_err());
    }

    #[test]
    fn a_fifo_and_a_large_file_are_refused_at_once() {
        let (dir, beneath) = root();
        let fifo = dir.path().join("root/fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(beneath.read(Path::new("/fifo"), 100).is_err());
        fs_err::write(dir.path().join("root/large"), [0; 101]).unwrap();
        assert!(beneath.read(Path::new("/large"), 100).is_err());
    }

    #[test]
    fn a_link_is_replaced_and_kept_when_right() {
        let (dir, beneath) = root();
        let path = Path::new("/resolv.conf");
        fs_err::write(dir.path().join("root/resolv.conf"), "mine").unwrap();
        beneath
            .replace_link(path, Path::new("/mnt/wsl/resolv.conf"))
            .unwrap();
        beneath
            .replace_link(path, Path::new("/mnt/wsl/resolv.conf"))
            .unwrap();
        assert_eq!(
            beneath.link_target(path).unwrap(),
            Path::new("/mnt/wsl/resolv.conf")
        );
        beneath.remove(path).unwrap();
        assert_eq!(beneath.link_target(path), None);
    }
}
