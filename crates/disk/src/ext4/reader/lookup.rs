//! Single files by path, as a process with this file system as its root would find them.

use super::{Reader, inodes::Inode, map::Budget};
use crate::{
    BlockSource,
    ext4::{ReadError, ino, kind},
};

/// How many symbolic links one look-up follows, as the kernel counts them.
const LINKS_MAX: usize = 40;
/// The longest path that links may add up to.
const PATH_MAX: usize = 64 << 10;

impl<S: BlockSource> Reader<S> {
    /// Tells whether something is at `path`, following symbolic links.
    pub fn exists(&self, path: &[u8]) -> Result<bool, ReadError> {
        Ok(self.lookup(path)?.is_some())
    }

    /// Reads the regular file at `path`, following symbolic links inside the file system. `None` when there is no such
    /// file, or it is of another kind; an error when it has more than `limit` bytes.
    pub fn read_file(&self, path: &[u8], limit: u64) -> Result<Option<Vec<u8>>, ReadError> {
        let Some(inode) = self
            .lookup(path)?
            .filter(|inode| inode.kind() == kind::FILE)
        else {
            return Ok(None);
        };
        if inode.size > limit {
            let path = String::from_utf8_lossy(path).into_owned();
            return Err(ReadError::TooLarge {
                path,
                size: inode.size,
                limit,
            });
        }
        self.volume.contents(&inode, limit).map(Some)
    }

    /// Resolves a path from the root; `..` stops there. Missing files and links that lead nowhere give `None`.
    fn lookup(&self, path: &[u8]) -> Result<Option<Inode>, ReadError> {
        let mut budget = Budget::new(self.volume.blocks);
        let mut trail = vec![self.volume.inode(ino::ROOT)?];
        let mut todo: Vec<Vec<u8>> = components(path);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let Some(here) = trail.last() else {
                return Ok(None);
            };
            if !here.is_directory() {
                return Ok(None);
            }
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let names = self.volume.list(here, &mut budget)?;
            let Ok(found) = names.binary_search_by(|(other, _)| other.as_slice().cmp(&name)) else {
                return Ok(None);
            };
            let inode = self.volume.inode(names[found].1)?;
            if inode.kind() != kind::LINK {
                trail.push(inode);
                continue;
            }
            links += 1;
            let target = self.volume.target(&inode)?;
            if target.starts_with(b"/") {
                trail.truncate(1);
            }
            todo.extend(components(&target));
            if links > LINKS_MAX || todo.iter().map(Vec::len).sum::<usize>() > PATH_MAX {
                return Ok(None);
            }
        }
        Ok(trail.pop())
    }
}

/// Splits a path, last component first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').rev();
    parts
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .collect()
}
