//! The tree of extents that tells where a file's blocks are.

use super::{BLOCK, WriteError, checksum, nodes::Extent};
use crate::bytes::{put16, put32};

/// Begins every node.
pub(super) const MAGIC: u16 = 0xf30a;
/// Entries in the inode itself.
const ROOT_MAX: usize = 4;
/// Entries in a block, with room for the checksum.
const BLOCK_MAX: usize = (BLOCK - 12) / 12;
/// The deepest tree the kernel reads.
pub(super) const DEPTH_MAX: u16 = 5;

/// A finished tree: the bytes for the inode and the number of blocks outside of it.
pub(super) struct Tree {
    pub root: [u8; 60],
    pub blocks: u64,
}

fn header(raw: &mut [u8], entries: usize, max: usize, depth: u16) {
    put16(raw, 0, MAGIC);
    put16(raw, 2, entries as u16);
    put16(raw, 4, max as u16);
    put16(raw, 6, depth);
}

fn put_leaf(raw: &mut [u8], extents: &[Extent]) {
    for (at, extent) in extents.iter().enumerate() {
        let at = 12 + at * 12;
        put32(raw, at, extent.file as u32);
        put16(raw, at + 4, extent.len as u16);
        put16(raw, at + 6, (extent.disk >> 32) as u16);
        put32(raw, at + 8, extent.disk as u32);
    }
}

fn put_index(raw: &mut [u8], children: &[(u64, u64)]) {
    for (at, (file, disk)) in children.iter().enumerate() {
        let at = 12 + at * 12;
        put32(raw, at, *file as u32);
        put32(raw, at + 4, *disk as u32);
        put16(raw, at + 8, (disk >> 32) as u16);
    }
}

/// Builds the tree over `extents`; `place` stores a block and tells where. `seed` is the inode's checksum seed.
pub(super) fn build(
    extents: &[Extent],
    seed: u32,
    mut place: impl FnMut(&[u8]) -> Result<u64, WriteError>,
) -> Result<Tree, WriteError> {
    let mut root = [0; 60];
    if extents.len() <= ROOT_MAX {
        header(&mut root, extents.len(), ROOT_MAX, 0);
        put_leaf(&mut root, extents);
        return Ok(Tree { root, blocks: 0 });
    }
    let mut blocks = 0;
    let mut level = Vec::new();
    for chunk in extents.chunks(BLOCK_MAX) {
        let mut raw = [0; BLOCK];
        header(&mut raw, chunk.len(), BLOCK_MAX, 0);
        put_leaf(&mut raw, chunk);
        checksum::seal_extent_block(seed, &mut raw);
        level.push((chunk[0].file, place(&raw)?));
        blocks += 1;
    }
    let mut depth = 1;
    while level.len() > ROOT_MAX {
        let mut above = Vec::new();
        for chunk in level.chunks(BLOCK_MAX) {
            let mut raw = [0; BLOCK];
            header(&mut raw, chunk.len(), BLOCK_MAX, depth);
            put_index(&mut raw, chunk);
            checksum::seal_extent_block(seed, &mut raw);
            above.push((chunk[0].0, place(&raw)?));
            blocks += 1;
        }
        level = above;
        depth += 1;
    }
    header(&mut root, level.len(), ROOT_MAX, depth);
    put_index(&mut root, &level);
    Ok(Tree { root, blocks })
}
