//! Mounts by the new mount API (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2)).
//!
//! A mount is made or cloned first, belongs to a descriptor, and is attached to an open directory or file, so that no path is
//! walked twice.
#![expect(
    unsafe_code,
    reason = "mount_setattr has no safe wrapper below this crate"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

/// Why a file system could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("{call} of a `{fstype}` file system{}", if log.is_empty() { String::new() } else { format!(" ({log})") })]
pub struct MountError {
    /// The system call that failed.
    pub call: &'static str,
    /// Type of the file system.
    pub fstype: String,
    /// What the kernel said about it; may be empty.
    pub log: String,
    /// The error.
    #[source]
    pub source: io::Error,
}

/// One mount option of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsOption<'a> {
    /// A word alone, such as `discard`.
    Flag(&'a str),
    /// A word with a value, such as `mode=755`.
    Value(&'a str, &'a str),
}

impl<'a> FsOption<'a> {
    /// Splits a comma-separated list as mount(8) takes it. Values must not hold commas.
    pub fn parse_list(text: &'a str) -> impl Iterator<Item = FsOption<'a>> {
        text.split(',')
            .filter(|word| !word.is_empty())
            .map(|word| match word.split_once('=') {
                Some((name, value)) => FsOption::Value(name, value),
                None => FsOption::Flag(word),
            })
    }
}

/// Makes a mount of a file system that is attached nowhere yet; it vanishes with its descriptor. Needs `CAP_SYS_ADMIN`.
///
/// A read-only mount of a writable file system is asked for in `attributes`; `ro` among the options makes the file system
/// itself read-only.
pub fn make(
    fstype: &str,
    source: Option<&Path>,
    options: &[FsOption<'_>],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, MountError> {
    let fail = |call, log: String, error: rustix::io::Errno| MountError {
        call,
        fstype: fstype.to_owned(),
        log,
        source: error.into(),
    };
    let context = rustix::mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| fail("fsopen", String::new(), e))?;
    let configure = || -> Result<(), (&'static str, rustix::io::Errno)> {
        if let Some(source) = source {
            rustix::mount::fsconfig_set_string(&context, "source", source)
                .map_err(|e| ("setting the source", e))?;
        }
        for option in options {
            match *option {
                FsOption::Flag(name) => rustix::mount::fsconfig_set_flag(&context, name),
                FsOption::Value(name, value) => {
                    rustix::mount::fsconfig_set_string(&context, name, value)
                }
            }
            .map_err(|e| ("setting an option", e))?;
        }
        rustix::mount::fsconfig_create(&context).map_err(|e| ("mount", e))
    };
    configure().map_err(|(call, e)| fail(call, kernel_log(context.as_fd()), e))?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| fail("fsmount", kernel_log(context.as_fd()), e))
}

/// Reads what the kernel logged about a file system context: lines of `e `, `w ` or `i ` and text, one a read.
fn kernel_log(context: BorrowedFd<'_>) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0_u8; 512];
    // The kernel keeps eight messages at most.
    while lines.len() < 8 {
        match rustix::io::read(context, &mut buffer) {
            Ok(got) if got > 0 => {
                let text = String::from_utf8_lossy(&buffer[..got]);
                let text = text.trim_end();
                lines.push(text.get(2..).unwrap_or(text).to_owned());
            }
            _ => break,
        }
    }
    lines.join("; ")
}

/// Whether a clone takes what is mounted below with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The one mount only.
    One,
    /// The whole tree.
    Tree,
}

/// Clones the mount at an open file or directory, attached nowhere yet. Peer groups are kept. Needs `CAP_SYS_ADMIN`.
pub fn clone_at(at: impl AsFd, depth: Depth) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if depth == Depth::Tree {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(at, "", flags)?)
}

/// Attaches a mount of [`make`] or [`clone_at`] on top of an open file or directory. Needs `CAP_SYS_ADMIN`.
pub fn attach(mount: impl AsFd, at: impl AsFd) -> io::Result<()> {
    Ok(rustix::mount::move_mount(
        mount,
        "",
        at,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?)
}

/// How mounts and unmounts below a mount travel to and from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Both ways, among the mounts of a peer group.
    Shared,
    /// Not at all.
    Private,
}

/// Sets the propagation of a mount (an open descriptor of its root). Needs `CAP_SYS_ADMIN`.
pub fn set_propagation(mount: impl AsFd, depth: Depth, propagation: Propagation) -> io::Result<()> {
    let kind = match propagation {
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Private => libc::MS_PRIVATE,
    };
    set_attributes(mount.as_fd(), depth, 0, kind)
}

/// Makes a mount (an open descriptor of its root) read-only, other mounts of the same file system not. Needs `CAP_SYS_ADMIN`.
pub fn set_read_only(mount: impl AsFd, depth: Depth) -> io::Result<()> {
    set_attributes(mount.as_fd(), depth, libc::MOUNT_ATTR_RDONLY, 0)
}

fn set_attributes(
    mount: BorrowedFd<'_>,
    depth: Depth,
    set: u64,
    propagation: u64,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    let flags = match depth {
        Depth::One => libc::AT_EMPTY_PATH,
        Depth::Tree => libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
    };
    // SAFETY: the path is an empty C string and the structure has the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_as_mount_takes_them() {
        let options: Vec<_> =
            FsOption::parse_list("discard,,errors=remount-ro,data=ordered").collect();
        assert_eq!(
            options,
            [
                FsOption::Flag("discard"),
                FsOption::Value("errors", "remount-ro"),
                FsOption::Value("data", "ordered"),
            ]
        );
    }

    #[test]
    fn an_unknown_file_system_is_named() {
        let error = make("nosuchfs", None, &[], MountAttrFlags::empty()).unwrap_err();
        assert_eq!(error.call, "fsopen");
        assert!(error.to_string().contains("nosuchfs"), "{error}");
    }
}
