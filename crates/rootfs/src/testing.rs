//! A tree in memory, for this crate's tests.

use std::{
    collections::BTreeMap,
    io::{self, Cursor, Read},
};

use hostel_model::tree::{DataRun, Node, NodeMeta, TreeSink};

/// One entry's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Directory,
    File {
        size: u64,
        runs: Vec<DataRun>,
        data: Vec<u8>,
    },
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Socket,
}

pub(crate) fn dir() -> Item {
    Item::Directory
}

pub(crate) fn file(data: &[u8]) -> Item {
    let len = data.len() as u64;
    let runs = if len == 0 {
        vec![]
    } else {
        vec![DataRun { offset: 0, len }]
    };
    Item::File {
        size: len,
        runs,
        data: data.to_vec(),
    }
}

pub(crate) fn link(target: &str) -> Item {
    Item::Symlink(target.as_bytes().to_vec())
}

impl Item {
    pub(crate) fn push(&self, path: &[u8], sink: &mut dyn TreeSink) -> io::Result<()> {
        self.push_with(path, &NodeMeta::default(), sink)
    }

    pub(crate) fn push_with(
        &self,
        path: &[u8],
        meta: &NodeMeta,
        sink: &mut dyn TreeSink,
    ) -> io::Result<()> {
        let mut cursor;
        let node = match self {
            Self::Directory => Node::Directory,
            Self::File { size, runs, data } => {
                cursor = Cursor::new(data);
                Node::File {
                    size: *size,
                    runs,
                    data: &mut cursor,
                }
            }
            Self::Symlink(target) => Node::Symlink(target),
            Self::HardLink(target) => Node::HardLink(target),
            Self::Char(major, minor) => Node::CharDevice {
                major: *major,
                minor: *minor,
            },
            Self::Block(major, minor) => Node::BlockDevice {
                major: *major,
                minor: *minor,
            },
            Self::Fifo => Node::Fifo,
            Self::Socket => Node::Socket,
        };
        sink.entry(path, meta, node)
    }

    /// Returns a file's bytes, holes filled with zeros.
    pub(crate) fn expanded(&self) -> Vec<u8> {
        let Self::File { size, runs, data } = self else {
            return Vec::new();
        };
        let mut out = vec![0; *size as usize];
        let mut at = 0;
        for run in runs {
            let (start, len) = (run.offset as usize, run.len as usize);
            out[start..start + len].copy_from_slice(&data[at..at + len]);
            at += len;
        }
        out
    }
}

/// A sink that keeps everything; attributes sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemTree(pub(crate) BTreeMap<Vec<u8>, (NodeMeta, Item)>);

impl MemTree {
    pub(crate) fn get(&self, path: &str) -> &(NodeMeta, Item) {
        self.0
            .get(path.as_bytes())
            .unwrap_or_else(|| panic!("no `{path}` in {:?}", self.0.keys()))
    }

    /// Pushes every entry, targets of hard links before the links.
    pub(crate) fn push_all(&self, sink: &mut dyn TreeSink) -> io::Result<()> {
        let is_link = |item: &Item| matches!(item, Item::HardLink(_));
        for links in [false, true] {
            for (path, (meta, item)) in self
                .0
                .iter()
                .filter(|(_, (_, item))| is_link(item) == links)
            {
                item.push_with(path, meta, sink)?;
            }
        }
        Ok(())
    }
}

impl TreeSink for MemTree {
    fn entry(&mut self, path: &[u8], meta: &NodeMeta, node: Node<'_>) -> io::Result<()> {
        let mut meta = meta.clone();
        meta.xattrs.sort();
        let item = match node {
            Node::Directory => Item::Directory,
            Node::File { size, runs, data } => {
                let mut bytes = Vec::new();
                data.read_to_end(&mut bytes)?;
                assert_eq!(
                    bytes.len() as u64,
                    runs.iter().map(|run| run.len).sum::<u64>(),
                    "the data is what the runs say"
                );
                Item::File {
                    size,
                    runs: runs.to_vec(),
                    data: bytes,
                }
            }
            Node::Symlink(target) => Item::Symlink(target.to_vec()),
            Node::HardLink(target) => {
                let Some((known, _)) = self.0.get(target) else {
                    return Err(io::ErrorKind::NotFound.into());
                };
                meta = known.clone();
                Item::HardLink(target.to_vec())
            }
            Node::CharDevice { major, minor } => Item::Char(major, minor),
            Node::BlockDevice { major, minor } => Item::Block(major, minor),
            Node::Fifo => Item::Fifo,
            Node::Socket => Item::Socket,
        };
        self.0.insert(path.to_vec(), (meta, item));
        Ok(())
    }
}

/// Reads an archive into memory with default options.
pub(crate) fn read(bytes: &[u8]) -> Result<(MemTree, crate::Summary), crate::ReadError> {
    let mut tree = MemTree::default();
    let summary = crate::read_archive(
        bytes,
        &mut tree,
        &crate::ReadOptions::default(),
        &mut |_| {},
    )?;
    Ok((tree, summary))
}

/// Writes a tree in memory.
pub(crate) fn write(tree: &MemTree, format: crate::Format) -> Vec<u8> {
    let mut writer = crate::ArchiveWriter::new(Vec::new(), format).expect("memory");
    tree.push_all(&mut writer).expect("memory");
    writer.finish().expect("memory").0
}

/// A reader that gives at most a few bytes at a time, as pipes do.
pub(crate) struct Trickle<'a>(pub(crate) &'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = out.len().min(self.0.len()).min(7);
        out[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}
