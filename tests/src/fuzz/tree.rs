//! A sink that keeps what it is given, and checks that it is what the contract of `TreeSink` allows.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
};

use hostel_model::tree::{DataRun, Node, NodeMeta, TreeSink, normalise};

/// The most bytes of file data that are taken before the sink is "full": a small input may hold endless ones.
const ROOM: u64 = 8 << 20;

/// One entry, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) meta: NodeMeta,
    pub(super) item: Item,
}

/// What an entry was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Directory,
    File {
        size: u64,
        runs: Vec<DataRun>,
        data: Vec<u8>,
    },
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

/// Keeps and checks.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) entries: Vec<Entry>,
    taken: u64,
}

impl TreeSink for Checked {
    fn entry(&mut self, path: &[u8], meta: &NodeMeta, node: Node<'_>) -> io::Result<()> {
        assert_normal(path);
        assert!(meta.mode <= 0o7777, "mode {:o}", meta.mode);
        assert!(meta.mtime_nsec < 1_000_000_000, "{} ns", meta.mtime_nsec);
        let mut meta = meta.clone();
        meta.xattrs.sort();
        for (name, _) in &meta.xattrs {
            assert!(!name.is_empty() && !name.contains(&0), "{name:?}");
        }
        let item = match node {
            Node::Directory => Item::Directory,
            Node::File { size, runs, data } => {
                let held = assert_runs(size, runs);
                let mut bytes = Vec::new();
                let got = data.take(ROOM - self.taken).read_to_end(&mut bytes)? as u64;
                self.taken += got;
                if self.taken == ROOM {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                assert_eq!(got, held, "the data is what the runs say");
                Item::File {
                    size,
                    runs: runs.to_vec(),
                    data: bytes,
                }
            }
            Node::Symlink(target) => {
                assert!(!target.is_empty() && !target.contains(&0), "{target:?}");
                Item::Symlink(target.to_vec())
            }
            Node::HardLink(target) => {
                assert_normal(target);
                assert!(target != path && !target.is_empty(), "a link to itself");
                Item::HardLink(target.to_vec())
            }
            Node::CharDevice { major, minor } => Item::Device {
                block: false,
                major,
                minor,
            },
            Node::BlockDevice { major, minor } => Item::Device {
                block: true,
                major,
                minor,
            },
            Node::Fifo => Item::Fifo,
            Node::Socket => Item::Socket,
        };
        self.entries.push(Entry {
            path: path.to_vec(),
            meta,
            item,
        });
        Ok(())
    }
}

impl Checked {
    /// Checks what holds for a tree from a disk: every path once, parents and targets of links before.
    pub(super) fn assert_tree(&self) {
        let mut known: BTreeMap<&[u8], &Item> = BTreeMap::new();
        for entry in &self.entries {
            let path = entry.path.as_slice();
            if !path.is_empty() {
                let parent = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
                let parent = known.get(&path[..parent]);
                assert!(matches!(parent, Some(Item::Directory)), "{path:?}");
            }
            if let Item::HardLink(target) = &entry.item {
                let first = known.get(target.as_slice());
                assert!(
                    first.is_some_and(|i| !matches!(i, Item::Directory | Item::HardLink(_))),
                    "{path:?} to {target:?}"
                );
            }
            assert!(known.insert(path, &entry.item).is_none(), "twice {path:?}");
        }
    }

    /// Pushes everything into another sink.
    pub(super) fn push_all(&self, sink: &mut dyn TreeSink) -> io::Result<()> {
        for Entry { path, meta, item } in &self.entries {
            let mut bytes: &[u8] = &[];
            let node = match item {
                Item::Directory => Node::Directory,
                Item::File { size, runs, data } => {
                    bytes = data;
                    Node::File {
                        size: *size,
                        runs,
                        data: &mut bytes,
                    }
                }
                Item::Symlink(target) => Node::Symlink(target),
                Item::HardLink(target) => Node::HardLink(target),
                Item::Device {
                    block,
                    major,
                    minor,
                } => {
                    let (major, minor) = (*major, *minor);
                    if *block {
                        Node::BlockDevice { major, minor }
                    } else {
                        Node::CharDevice { major, minor }
                    }
                }
                Item::Fifo => Node::Fifo,
                Item::Socket => Node::Socket,
            };
            sink.entry(path, meta, node)?;
            assert!(bytes.is_empty() || matches!(item, Item::File { .. }));
        }
        Ok(())
    }
}

impl Item {
    /// Returns a file's bytes, holes filled with zeros; `None` for other items and files too large for a test.
    pub(super) fn expanded(&self) -> Option<Vec<u8>> {
        let Self::File { size, runs, data } = self else {
            return None;
        };
        let mut out = vec![0; usize::try_from(*size).ok().filter(|n| *n as u64 <= ROOM)?];
        let mut rest = data.as_slice();
        for run in runs {
            let (now, later) = rest.split_at(run.len as usize);
            out[run.offset as usize..][..now.len()].copy_from_slice(now);
            rest = later;
        }
        Some(out)
    }
}

fn assert_normal(path: &[u8]) {
    assert_eq!(normalise(path).as_deref(), Some(path));
    assert!(path.split(|b| *b == b'/').all(|part| part.len() <= 255));
}

/// Checks that runs ascend, do not overlap and end within the file; returns the bytes they hold.
fn assert_runs(size: u64, runs: &[DataRun]) -> u64 {
    let mut end = 0;
    let mut held = 0;
    for run in runs {
        assert!(run.offset >= end, "{runs:?}");
        end = run.offset.checked_add(run.len).expect("a run that ends");
        held += run.len;
    }
    assert!(end <= size, "{runs:?} in {size}");
    held
}
