//! The ext4 file system, as a writer of fresh images and a reader of used ones.

mod acl;
mod alloc;
mod checksum;
mod dir;
mod error;
mod extents;
mod finish;
mod htree;
mod inode;
mod journal;
mod layout;
mod nodes;
mod output;
mod reader;
mod store;
mod superblock;
mod writer;
mod xattr;

pub use error::{ReadError, WriteError};
pub use reader::Reader;
pub use writer::{Options, Summary, Writer};

/// The block size of every image the writer makes.
const BLOCK: usize = 4096;

/// File types in the upper bits of an inode's mode.
mod kind {
    pub(super) const FIFO: u16 = 0o010_000;
    pub(super) const CHAR: u16 = 0o020_000;
    pub(super) const DIR: u16 = 0o040_000;
    pub(super) const BLOCK: u16 = 0o060_000;
    pub(super) const FILE: u16 = 0o100_000;
    pub(super) const LINK: u16 = 0o120_000;
    pub(super) const SOCKET: u16 = 0o140_000;
    pub(super) const MASK: u16 = 0o170_000;
}

/// Bits of an inode's flags.
mod flag {
    pub(super) const INDEX: u32 = 0x1000;
    pub(super) const EXTENTS: u32 = 0x8_0000;
    pub(super) const EA_INODE: u32 = 0x20_0000;
    pub(super) const INLINE_DATA: u32 = 0x1000_0000;
}

/// Inodes with a fixed meaning.
mod ino {
    pub(super) const ROOT: u32 = 2;
    pub(super) const RESIZE: u32 = 7;
    pub(super) const JOURNAL: u32 = 8;
    pub(super) const LOST_FOUND: u32 = 11;
}
