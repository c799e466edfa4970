//! The writer: takes a tree entry by entry, streams data to the image, keeps the rest in memory until the end.

use std::{io, path::Path};

use hostel_model::{
    Bytes,
    tree::{Node as Entry, NodeMeta, TreeSink},
};
use uuid::Uuid;

use super::{
    BLOCK, WriteError,
    alloc::{Run, Space},
    checksum, ino, inode, journal, kind,
    layout::Layout,
    nodes::{Content, Extent, Node, Nodes, push_run},
    output::Output,
    store, superblock,
    xattr::{self, Encoded},
};

const BLOCK_BYTES: u64 = BLOCK as u64;

/// How an image is made. The same options and the same entries in the same order give the same bytes.
#[derive(Clone, Debug)]
pub struct Options {
    /// The size the distribution sees, rounded down to whole blocks; only used blocks occupy the host. At least 8 MiB,
    /// below 16 TiB.
    pub size: Bytes,
    /// Identity of the file system.
    pub uuid: Uuid,
    /// Salt of the hashes that order large directories. Derived from `uuid` by [`Options::new`].
    pub hash_seed: Uuid,
    /// Volume label, at most 16 bytes.
    pub label: String,
    /// When the file system was made, in seconds since 1970.
    pub time: i64,
}

impl Options {
    /// 256 GiB, no label, made in 1970.
    pub fn new(uuid: Uuid) -> Self {
        let hash_seed = Uuid::from_u128(!uuid.as_u128().rotate_left(64));
        Self {
            size: Bytes::gib(256),
            uuid,
            hash_seed,
            label: String::new(),
            time: 0,
        }
    }
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The size the distribution sees.
    pub size: Bytes,
    /// Free space in it, reserved blocks included.
    pub free: Bytes,
    /// Files of every kind, each counted once however many names it has, without the file system's own.
    pub files: u32,
}

/// Makes a complete ext4 image from the entries of a tree.
///
/// The file data is written as it comes, in one pass; of everything else some 300 bytes a file stay in memory until
/// [`Writer::finish`]. What mke2fs of e2fsprogs 1.47 switches on by default is on here: journal, checksums, 64-bit
/// group descriptors, extents, hashed directories, nanoseconds, and a resize inode for growing while mounted.
///
/// An entry that the file system cannot hold (a name of more than 255 bytes, attributes beyond 4 KiB or outside `user.`,
/// `trusted.`, `security.` and the two ACLs, a parent that is no directory) is an error of kind `InvalidInput` and
/// changes nothing; one that fails while its data moves spoils the image, and `finish` will say so. A full host disk and a
/// full image are errors of kind `StorageFull`. A writer that is dropped, or whose `finish` failed, leaves a useless
/// file behind: removing it is the caller's.
#[derive(Debug)]
pub struct Writer {
    pub(super) options: Options,
    pub(super) layout: Layout,
    pub(super) seed: u32,
    pub(super) space: Space,
    pub(super) nodes: Nodes,
    pub(super) out: Output,
    spoiled: bool,
}

/// An entry whose metadata has been checked and encoded.
struct Checked<'a> {
    meta: &'a NodeMeta,
    xattrs: Encoded,
}

impl Writer {
    /// Creates the image file, which must not exist yet. Needs no privilege.
    pub fn create(path: impl AsRef<Path>, options: Options) -> Result<Self, WriteError> {
        if options.label.len() > 16 || options.label.contains('\0') {
            return Err(WriteError::Label(options.label));
        }
        let layout = Layout::plan(options.size.0)?;
        let mut writer = Self {
            seed: superblock::checksum_seed(&options),
            space: Space::new(&layout),
            nodes: Nodes::new(layout.inodes()),
            out: Output::create(path.as_ref(), layout.blocks * BLOCK_BYTES)?,
            options,
            layout,
            spoiled: false,
        };
        writer
            .nodes
            .set(ino::ROOT, Node::directory(ino::ROOT, 0o755));
        writer.make_journal()?;
        writer.make_resize_inode()?;
        let number = writer.add(Node::directory(ino::ROOT, 0o700))?;
        writer.link(ino::ROOT, b"lost+found", number);
        Ok(writer)
    }

    fn make_journal(&mut self) -> Result<(), WriteError> {
        let blocks = self.layout.journal_blocks();
        let extents = self.take_extents(0, blocks)?;
        self.out
            .put(extents[0].disk * BLOCK_BYTES, &journal::superblock(blocks))?;
        let mut node = Node::new(kind::FILE | 0o600, Content::Blocks(extents));
        node.size = blocks * BLOCK_BYTES;
        node.mtime = self.options.time;
        self.nodes.set(ino::JOURNAL, node);
        Ok(())
    }

    /// The resize inode owns the blocks behind the descriptors. Its map has one double indirect block; each reserved
    /// block of the first group is at the same time an indirect block that lists its twins in the backup groups.
    fn make_resize_inode(&mut self) -> Result<(), WriteError> {
        let per_block = BLOCK_BYTES / 4;
        let indirect = self.take(1)?[0].start;
        let first = 1 + self.layout.gdt_blocks;
        let mut map = vec![0; BLOCK];
        let backups: Vec<u32> = self.layout.backups().collect();
        for number in 0..self.layout.reserved_gdt {
            let slot = (self.layout.gdt_blocks + number) % per_block;
            let block = first + number;
            crate::bytes::put32(&mut map, slot as usize * 4, block as u32);
            let mut twins = vec![0; BLOCK];
            for (at, group) in backups.iter().enumerate() {
                let twin = Layout::group_start(*group) + block;
                crate::bytes::put32(&mut twins, at * 4, twin as u32);
            }
            self.out.put(block * BLOCK_BYTES, &twins)?;
        }
        self.out.put(indirect * BLOCK_BYTES, &map)?;
        let blocks = 1 + self.layout.reserved_gdt * (1 + backups.len() as u64);
        let mut node = Node::new(kind::FILE | 0o600, Content::Resize { indirect, blocks });
        node.size = (per_block * per_block + per_block + 12) * BLOCK_BYTES;
        node.mtime = self.options.time;
        self.nodes.set(ino::RESIZE, node);
        Ok(())
    }

    pub(super) fn take(&mut self, blocks: u64) -> Result<Vec<Run>, WriteError> {
        self.space.take(blocks).ok_or(WriteError::Full {
            size: self.layout.blocks * BLOCK_BYTES,
        })
    }

    pub(super) fn take_extents(
        &mut self,
        mut file: u64,
        blocks: u64,
    ) -> Result<Vec<Extent>, WriteError> {
        let mut extents = Vec::new();
        for run in self.take(blocks)? {
            push_run(&mut extents, file, run);
            file += run.len;
        }
        Ok(extents)
    }

    fn add(&mut self, node: Node) -> Result<u32, WriteError> {
        self.nodes.add(node).ok_or(WriteError::NoInodes {
            size: self.layout.blocks * BLOCK_BYTES,
            inodes: self.layout.inodes(),
        })
    }

    fn child(&self, directory: u32, name: &[u8]) -> Option<u32> {
        match &self.nodes.get(directory).content {
            Content::Directory { children, .. } => children.get(name).copied(),
            _ => None,
        }
    }

    fn link(&mut self, directory: u32, name: &[u8], child: u32) {
        let is_directory = self.nodes.get(child).is_directory();
        let node = self.nodes.get_mut(directory);
        if let Content::Directory {
            children,
            subdirectories,
            ..
        } = &mut node.content
        {
            children.insert(name.into(), child);
            if is_directory {
                *subdirectories += 1;
                node.links += 1;
            }
        }
    }

    /// Takes a name out of a directory and whatever it named with it, a whole tree if need be.
    fn unlink(&mut self, directory: u32, name: &[u8]) {
        let node = self.nodes.get_mut(directory);
        let Content::Directory { children, .. } = &mut node.content else {
            return;
        };
        let Some(child) = children.remove(name) else {
            return;
        };
        if self.nodes.get(child).is_directory() {
            let node = self.nodes.get_mut(directory);
            node.links -= 1;
            if let Content::Directory { subdirectories, .. } = &mut node.content {
                *subdirectories -= 1;
            }
        }
        let mut doomed = vec![child];
        while let Some(number) = doomed.pop() {
            let node = self.nodes.get_mut(number);
            if !node.is_directory() && node.links > 1 {
                node.links -= 1;
                continue;
            }
            let Some(node) = self.nodes.remove(number) else {
                continue;
            };
            self.release_xattrs(node.xattr_block);
            match node.content {
                Content::Directory { children, .. } => doomed.extend(children.into_values()),
                Content::Blocks(extents) => {
                    for extent in extents {
                        self.space.release(Run {
                            start: extent.disk,
                            len: u64::from(extent.len),
                        });
                    }
                }
                _ => {}
            }
        }
    }

    fn release_xattrs(&mut self, block: u64) {
        if block != 0 {
            self.space.release(Run {
                start: block,
                len: 1,
            });
        }
    }

    /// Finds the directory that holds the last component, making what is missing. `None` for the root itself.
    fn parent_of<'a>(&mut self, path: &'a [u8]) -> Result<Option<(u32, &'a [u8])>, WriteError> {
        if path.is_empty() {
            return Ok(None);
        }
        for part in path.split(|byte| *byte == b'/') {
            if part.is_empty() || part == b"." || part == b".." || part.contains(&0) {
                return Err(WriteError::entry(path, "its path is not in normal form"));
            }
            if part.len() > 255 {
                return Err(WriteError::entry(
                    path,
                    "one of its names has more than 255 bytes",
                ));
            }
        }
        let mut at = ino::ROOT;
        let mut rest = path;
        while let Some(slash) = rest.iter().position(|byte| *byte == b'/') {
            let name = &rest[..slash];
            at = match self.child(at, name) {
                Some(child) if self.nodes.get(child).is_directory() => child,
                Some(_) => {
                    let parent = &path[..path.len() - rest.len() + slash];
                    let shown = String::from_utf8_lossy(parent);
                    return Err(WriteError::entry(
                        path,
                        format!("`{shown}` is not a directory"),
                    ));
                }
                None => {
                    let child = self.add(Node::directory(at, 0o755))?;
                    self.link(at, name, child);
                    child
                }
            };
            rest = &rest[slash + 1..];
        }
        Ok(Some((at, rest)))
    }

    fn lookup(&self, path: &[u8]) -> Option<u32> {
        path.split(|byte| *byte == b'/')
            .try_fold(ino::ROOT, |at, name| self.child(at, name))
    }

    fn take_entry(
        &mut self,
        path: &[u8],
        meta: &NodeMeta,
        entry: Entry<'_>,
    ) -> Result<(), WriteError> {
        if self.spoiled {
            return Err(WriteError::Incomplete);
        }
        if let Entry::HardLink(target) = entry {
            return self.hard_link(path, target);
        }
        let xattrs =
            xattr::encode(&meta.xattrs).map_err(|reason| WriteError::entry(path, reason))?;
        store::check(path, meta, &entry)?;
        let place = self.parent_of(path)?;
        let is_directory = matches!(entry, Entry::Directory);
        if path == b"lost+found" && !is_directory {
            return Err(WriteError::entry(
                path,
                "this name belongs to the file system's own directory",
            ));
        }
        let checked = Checked { meta, xattrs };
        let Some((directory, name)) = place else {
            if !is_directory {
                return Err(WriteError::entry(path, "the root can only be a directory"));
            }
            return self.dress(ino::ROOT, checked);
        };
        let existing = self.child(directory, name);
        if let Some(number) =
            existing.filter(|number| is_directory && self.nodes.get(*number).is_directory())
        {
            return self.dress(number, checked);
        }
        if existing.is_some() {
            self.unlink(directory, name);
        }
        // From here on a failure leaves a name without its file or blocks without an owner.
        self.spoiled = true;
        let node = self.store(directory, path, entry)?;
        let number = self.add(node)?;
        self.link(directory, name, number);
        self.dress(number, checked)
    }

    /// Gives an inode its metadata.
    fn dress(&mut self, number: u32, checked: Checked<'_>) -> Result<(), WriteError> {
        // A failure below would leave the inode with the metadata of neither entry.
        self.spoiled = true;
        let Checked { meta, xattrs } = checked;
        let old = self.nodes.get(number).xattr_block;
        self.release_xattrs(old);
        self.nodes.get_mut(number).xattr_block = 0;
        let block = match xattrs.block {
            None => 0,
            Some(mut raw) => {
                let at = self.take(1)?[0].start;
                let sum = checksum::xattr_block(self.seed, at, &raw);
                crate::bytes::put32(&mut raw, 16, sum);
                self.out.put(at * BLOCK_BYTES, &raw)?;
                at
            }
        };
        let node = self.nodes.get_mut(number);
        node.mode = (node.mode & kind::MASK) | (meta.mode & 0o7777);
        node.uid = meta.uid;
        node.gid = meta.gid;
        node.mtime = meta.mtime;
        node.mtime_nsec = meta.mtime_nsec;
        node.inline_xattrs = xattrs.inline;
        node.xattr_block = block;
        self.spoiled = false;
        Ok(())
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), WriteError> {
        let shown = || String::from_utf8_lossy(target).into_owned();
        let Some(number) = self.lookup(target) else {
            return Err(WriteError::entry(
                path,
                format!("it is a link to `{}`, which did not come before", shown()),
            ));
        };
        let node = self.nodes.get(number);
        if node.is_directory() {
            return Err(WriteError::entry(
                path,
                format!("it is a hard link to `{}`, a directory", shown()),
            ));
        }
        if node.links >= inode::LINKS_MAX {
            return Err(WriteError::entry(
                path,
                format!("`{}` has {} links already", shown(), node.links),
            ));
        }
        let Some((directory, name)) = self.parent_of(path)? else {
            return Err(WriteError::entry(path, "the root can only be a directory"));
        };
        let existing = self.child(directory, name);
        if existing == Some(number) {
            return Ok(());
        }
        // Held for a moment: the entry in the way may be a tree that contains the target.
        self.nodes.get_mut(number).links += 1;
        if existing.is_some() {
            if directory == ino::ROOT && name == b"lost+found" {
                self.nodes.get_mut(number).links -= 1;
                return Err(WriteError::entry(
                    path,
                    "this name belongs to the file system's own directory",
                ));
            }
            self.unlink(directory, name);
        }
        self.link(directory, name, number);
        Ok(())
    }

    /// Completes the image: directories, inodes, bitmaps, descriptors and the superblock, which comes last. The file is
    /// not synced: whoever gives it its final name does that.
    pub fn finish(self) -> Result<Summary, WriteError> {
        if self.spoiled {
            return Err(WriteError::Incomplete);
        }
        super::finish::finish(self)
    }
}

impl TreeSink for Writer {
    fn entry(&mut self, path: &[u8], meta: &NodeMeta, node: Entry<'_>) -> io::Result<()> {
        self.take_entry(path, meta, node).map_err(io::Error::from)
    }
}
