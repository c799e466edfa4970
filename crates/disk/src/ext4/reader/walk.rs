//! Pushing a whole file system into a sink.

use std::collections::{HashMap, HashSet};

use hostel_model::tree::{DataRun, Node, TreeSink};

use super::{
    Reader,
    dirs::Named,
    inodes::Inode,
    map::{Budget, FileData, runs},
};
use crate::{
    BlockSource,
    bytes::le32,
    ext4::{ReadError, flag, ino, inode::read_device, kind},
};

/// How deep directories may lie in one another.
const DEPTH_MAX: usize = 8192;

/// A directory on the way down: what is left of its names, and how long its path is.
struct Level {
    names: std::vec::IntoIter<Named>,
    path_len: usize,
}

/// What has been seen on a walk.
struct Seen {
    budget: Budget,
    directories: HashSet<u32>,
    /// Files with several names, by the first of them.
    linked: HashMap<u32, Vec<u8>>,
}

impl<S: BlockSource> Reader<S> {
    /// Pushes every file into `sink`: the root first, then depth first in order of names, so that the same file system
    /// always gives the same sequence. The second and later names of a file come as hard links. An empty `lost+found`
    /// in the root is the file system's, not the tree's, and is left out.
    ///
    /// Memory grows with the number of directories and of files with several names, not with the data. Fails at the
    /// first contradiction; the sink has then got a part of the tree.
    pub fn walk(&self, sink: &mut dyn TreeSink) -> Result<(), ReadError> {
        let root = self.volume.inode(ino::ROOT)?;
        if !root.is_directory() {
            return Err(ReadError::corrupt("the root is not a directory"));
        }
        let mut seen = Seen {
            budget: Budget::new(self.volume.blocks),
            directories: HashSet::from([root.number]),
            linked: HashMap::new(),
        };
        self.emit(&[], &root, Node::Directory, sink)?;
        let names = self.volume.list(&root, &mut seen.budget)?;
        let mut path = Vec::new();
        let mut levels = vec![Level {
            names: names.into_iter(),
            path_len: 0,
        }];
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path_len);
            let Some((name, number)) = level.names.next() else {
                levels.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let inode = self.volume.inode(number)?;
            if !inode.is_directory() {
                self.file(&path, &inode, &mut seen, sink)?;
                continue;
            }
            if !seen.directories.insert(number) || levels.len() >= DEPTH_MAX {
                return Err(ReadError::corrupt(format!(
                    "directory {number} has two places, or lies too deep"
                )));
            }
            let names = self.volume.list(&inode, &mut seen.budget)?;
            if path == b"lost+found" && names.is_empty() {
                continue;
            }
            self.emit(&path, &inode, Node::Directory, sink)?;
            levels.push(Level {
                names: names.into_iter(),
                path_len: path.len(),
            });
        }
        Ok(())
    }

    fn emit(
        &self,
        path: &[u8],
        inode: &Inode,
        node: Node<'_>,
        sink: &mut dyn TreeSink,
    ) -> Result<(), ReadError> {
        let mut meta = inode.meta();
        meta.xattrs = self.volume.xattrs(inode)?;
        sink.entry(path, &meta, node)
            .map_err(|source| refused(path, source))
    }

    fn file(
        &self,
        path: &[u8],
        inode: &Inode,
        seen: &mut Seen,
        sink: &mut dyn TreeSink,
    ) -> Result<(), ReadError> {
        if inode.links > 1 {
            if let Some(first) = seen.linked.get(&inode.number) {
                let entry = sink.entry(path, &inode.meta(), Node::HardLink(first));
                return entry.map_err(|source| refused(path, source));
            }
            seen.linked.insert(inode.number, path.to_vec());
        }
        let (major, minor) = read_device(le32(&inode.map, 0), le32(&inode.map, 4));
        let node = match inode.kind() {
            kind::FILE => return self.regular(path, inode, seen, sink),
            kind::LINK => {
                return self.emit(
                    path,
                    inode,
                    Node::Symlink(&self.volume.target(inode)?),
                    sink,
                );
            }
            kind::CHAR => Node::CharDevice { major, minor },
            kind::BLOCK => Node::BlockDevice { major, minor },
            kind::FIFO => Node::Fifo,
            kind::SOCKET => Node::Socket,
            _ => {
                let path = String::from_utf8_lossy(path);
                return Err(ReadError::corrupt(format!(
                    "`{path}` (inode {}) is of no known kind",
                    inode.number
                )));
            }
        };
        self.emit(path, inode, node, sink)
    }

    fn regular(
        &self,
        path: &[u8],
        inode: &Inode,
        seen: &mut Seen,
        sink: &mut dyn TreeSink,
    ) -> Result<(), ReadError> {
        let size = inode.size;
        if inode.has(flag::INLINE_DATA) {
            let data = self.volume.inline_data(inode)?;
            let run = [DataRun {
                offset: 0,
                len: size,
            }];
            let runs = &run[..usize::from(size > 0)];
            return self.emit(
                path,
                inode,
                Node::File {
                    size,
                    runs,
                    data: &mut data.as_slice(),
                },
                sink,
            );
        }
        let extents = self.volume.map(inode, &mut seen.budget)?;
        let runs = runs(&extents, size, self.volume.block_size);
        let mut data = FileData::new(&self.volume, &extents, &runs);
        let taken = self.emit(
            path,
            inode,
            Node::File {
                size,
                runs: &runs,
                data: &mut data,
            },
            sink,
        );
        // What the sink says of a failed read is second hand.
        match data.failed {
            Some(error) => Err(error),
            None => taken,
        }
    }
}

fn refused(path: &[u8], source: std::io::Error) -> ReadError {
    ReadError::Sink {
        path: String::from_utf8_lossy(path).into_owned(),
        source,
    }
}
