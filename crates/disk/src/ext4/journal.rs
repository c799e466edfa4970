//! The empty journal of a fresh image.

use super::BLOCK;
use crate::bytes::put_be32;

/// Begins every block of a journal's own.
pub(super) const MAGIC: u32 = 0xc03b_3998;
/// The kind of block that a journal of version 2 begins with.
pub(super) const SUPERBLOCK: u32 = 4;

/// Returns the first block of an empty journal of `blocks` blocks. All the others may hold anything.
pub(super) fn superblock(blocks: u64) -> [u8; BLOCK] {
    let mut raw = [0; BLOCK];
    put_be32(&mut raw, 0, MAGIC);
    put_be32(&mut raw, 4, SUPERBLOCK);
    put_be32(&mut raw, 12, BLOCK as u32);
    put_be32(&mut raw, 16, blocks as u32);
    put_be32(&mut raw, 20, 1); // first block of the log
    put_be32(&mut raw, 24, 1); // first sequence number
    put_be32(&mut raw, 64, 1); // one file system uses it
    raw
}
