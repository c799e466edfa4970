//! The shape of a file tree as it moves between archives and disks.
//!
//! A reader (a tar archive, an ext4 image) pushes entries into a [`TreeSink`] (an ext4 writer, a tar packer). Neither
//! side knows the other; this module is all they share, so that nothing of a file can get lost between them.

use std::io::{self, Read};

/// Owner, mode, times and extended attributes of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeMeta {
    /// Permission bits with set-id and sticky bits (`0o7777`); no file type.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification: seconds since 1970, may be negative.
    pub mtime: i64,
    /// Nanoseconds of `mtime`, below 1,000,000,000.
    pub mtime_nsec: u32,
    /// Extended attributes, full names with prefix (`security.capability`, `user.x`, `system.posix_acl_access`), values
    /// in the form that getxattr(2) returns to user space.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A run of data in a sparse file; everything between runs is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRun {
    /// Where in the file the run begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// What an entry is.
pub enum Node<'a> {
    /// A directory. May come again for a path that exists: then its metadata is replaced.
    Directory,
    /// A regular file.
    File {
        /// Apparent size in bytes.
        size: u64,
        /// Where the data is, ascending and without overlap; one run of the whole size for an ordinary file.
        runs: &'a [DataRun],
        /// The bytes of all runs, one after another, and nothing else. Ends early only with an error.
        data: &'a mut dyn Read,
    },
    /// A symbolic link and its target, as stored.
    Symlink(&'a [u8]),
    /// One more name for the file at this path (same form as the entry's own path); it has been seen before.
    HardLink(&'a [u8]),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A unix socket. Archives cannot hold one; disks can.
    Socket,
}

/// Something that takes a file tree, entry by entry.
///
/// Paths are relative to the root, made of non-empty components other than `.` and `..` joined by `/`; the root itself
/// is the empty path. They are bytes: names need not be UTF-8. Parents that did not come before are made with mode 755,
/// owner 0:0. An entry for a path that exists replaces it (a later member of a tar wins), except that a directory
/// given for a directory keeps its children. A `HardLink` carries the metadata of its target and ignores `meta`.
pub trait TreeSink {
    /// Takes one entry.
    fn entry(&mut self, path: &[u8], meta: &NodeMeta, node: Node<'_>) -> io::Result<()>;
}

/// Splits a path of an archive into components, dropping `.` and empty ones.
///
/// Returns `None` for a path that climbs out (`..`) or holds a NUL byte: such a member must be refused.
pub fn normalise(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            _ if part.contains(&0) => return None,
            _ => {
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_relative_or_refused() {
        let cases: [(&[u8], Option<&[u8]>); 8] = [
            (b"./", Some(b"")),
            (b"/etc//passwd", Some(b"etc/passwd")),
            (b"./a/./b/", Some(b"a/b")),
            (b"..", None),
            (b"a/../b", None),
            (b"a/..b", Some(b"a/..b")),
            (b"a\0b", None),
            (b"\xff/x", Some(b"\xff/x")),
        ];
        for (path, want) in cases {
            assert_eq!(normalise(path).as_deref(), want);
        }
    }
}
