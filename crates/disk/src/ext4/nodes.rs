//! The tree in memory: inodes with what is known of them before they are written.

use std::collections::BTreeMap;

use super::{alloc::Run, ino, kind};

/// A run of file blocks and where it lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First block of the file.
    pub file: u64,
    /// First block on the disk.
    pub disk: u64,
    /// Number of blocks, at most 32,768.
    pub len: u32,
}

/// The most blocks one extent can tell of.
pub(super) const EXTENT_MAX: u64 = 32_768;

/// Appends what lies at `run`, from the file's block `file` on.
pub(super) fn push_run(extents: &mut Vec<Extent>, mut file: u64, run: Run) {
    let Run {
        start: mut disk,
        mut len,
    } = run;
    if let Some(last) = extents.last_mut()
        && last.file + u64::from(last.len) == file
        && last.disk + u64::from(last.len) == disk
    {
        let more = len.min(EXTENT_MAX - u64::from(last.len));
        last.len += more as u32;
        file += more;
        disk += more;
        len -= more;
    }
    while len > 0 {
        let now = len.min(EXTENT_MAX);
        extents.push(Extent {
            file,
            disk,
            len: now as u32,
        });
        file += now;
        disk += now;
        len -= now;
    }
}

/// What an inode holds.
#[derive(Debug)]
pub(super) enum Content {
    /// Children by name, and how many of them are directories.
    Directory {
        parent: u32,
        children: BTreeMap<Box<[u8]>, u32>,
        subdirectories: u32,
    },
    /// Blocks of a file, or of a long symbolic link.
    Blocks(Vec<Extent>),
    /// A short symbolic link.
    Target(Box<[u8]>),
    /// A device's numbers.
    Device { major: u32, minor: u32 },
    /// A block map of the old kind, as the resize inode has it: the double indirect block and all blocks counted.
    Resize { indirect: u64, blocks: u64 },
    /// Pipes and sockets.
    Nothing,
}

/// One inode.
#[derive(Debug)]
pub(super) struct Node {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    pub links: u32,
    pub size: u64,
    pub content: Content,
    pub inline_xattrs: Box<[u8]>,
    /// The external attribute block; zero for none.
    pub xattr_block: u64,
}

impl Node {
    pub(super) fn new(mode: u16, content: Content) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            links: 1,
            size: 0,
            content,
            inline_xattrs: Box::default(),
            xattr_block: 0,
        }
    }

    pub(super) fn directory(parent: u32, mode: u16) -> Self {
        let content = Content::Directory {
            parent,
            children: BTreeMap::new(),
            subdirectories: 0,
        };
        Self {
            links: 2,
            ..Self::new(kind::DIR | mode, content)
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self.content, Content::Directory { .. })
    }

    /// The type as a directory entry names it.
    pub(super) fn entry_type(&self) -> u8 {
        match self.mode & kind::MASK {
            kind::FILE => 1,
            kind::DIR => 2,
            kind::CHAR => 3,
            kind::BLOCK => 4,
            kind::FIFO => 5,
            kind::SOCKET => 6,
            kind::LINK => 7,
            _ => 0,
        }
    }
}

/// All inodes by number.
#[derive(Debug)]
pub(super) struct Nodes {
    slots: Vec<Option<Node>>,
    freed: Vec<u32>,
    limit: u32,
}

impl Nodes {
    /// Begins with the reserved numbers taken.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            slots: (0..ino::LOST_FOUND).map(|_| None).collect(),
            freed: Vec::new(),
            limit,
        }
    }

    /// Gives a node a number. `None` when all are used.
    pub(super) fn add(&mut self, node: Node) -> Option<u32> {
        if let Some(number) = self.freed.pop() {
            self.slots[number as usize] = Some(node);
            return Some(number);
        }
        let number = self.slots.len() as u32;
        if number > self.limit {
            return None;
        }
        self.slots.push(Some(node));
        Some(number)
    }

    /// Puts a node at a reserved number.
    pub(super) fn set(&mut self, number: u32, node: Node) {
        self.slots[number as usize] = Some(node);
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<Node> {
        let node = self.slots[number as usize].take();
        self.freed.push(number);
        node
    }

    pub(super) fn get(&self, number: u32) -> &Node {
        self.slots[number as usize]
            .as_ref()
            .expect("numbers come from directories, which name live nodes only")
    }

    pub(super) fn get_mut(&mut self, number: u32) -> &mut Node {
        self.slots[number as usize]
            .as_mut()
            .expect("numbers come from directories, which name live nodes only")
    }

    /// The highest number ever given.
    pub(super) fn highest(&self) -> u32 {
        self.slots.len() as u32 - 1
    }

    pub(super) fn find(&self, number: u32) -> Option<&Node> {
        self.slots.get(number as usize)?.as_ref()
    }
}
