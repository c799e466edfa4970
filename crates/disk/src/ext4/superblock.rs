//! Superblock and group descriptors of a fresh image.

use super::{
    BLOCK, Options, checksum, ino,
    layout::{DESC_SIZE, GROUP_BLOCKS, INODE_SIZE, Layout},
};
use crate::bytes::{put16, put32};

/// Blocks kept back for root, so that a full distribution can still start and be cleaned up.
const RESERVED_BLOCKS: u64 = (64 << 20) / BLOCK as u64;

/// Offset of the superblock on the disk.
pub(super) const OFFSET: u64 = 1024;
/// Its length.
pub(super) const LEN: usize = 1024;
/// What tells ext2, 3 and 4.
pub(super) const MAGIC: u16 = 0xef53;

// has_journal, ext_attr, resize_inode, dir_index
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x10 | 0x20;
// filetype, extent, 64bit, flex_bg
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80 | 0x200;
// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

/// What is only known when everything is placed.
pub(super) struct Counts {
    pub free_blocks: u64,
    pub free_inodes: u32,
    /// The journal inode's block map, for e2fsck.
    pub journal_map: [u8; 60],
}

/// The seed of all checksums.
pub(super) fn checksum_seed(options: &Options) -> u32 {
    checksum::crc(!0, options.uuid.as_bytes())
}

/// The seed of hashes of names.
pub(super) fn hash_seed(options: &Options) -> [u32; 4] {
    let bytes = options.hash_seed.as_bytes();
    std::array::from_fn(|word| crate::bytes::le32(bytes, word * 4))
}

/// Encodes the superblock as it stands in `group`.
pub(super) fn encode(layout: &Layout, options: &Options, counts: &Counts, group: u32) -> [u8; LEN] {
    let mut raw = [0; LEN];
    let time = options.time.clamp(0, (1 << 40) - 1) as u64;
    let mut stamp = |at: usize, high_at: usize| {
        put32(&mut raw, at, time as u32);
        raw[high_at] = (time >> 32) as u8;
    };
    stamp(48, 0x274); // last write
    stamp(64, 0x277); // last check
    stamp(264, 0x276); // made
    let reserved = RESERVED_BLOCKS.min(layout.blocks / 20);
    put32(&mut raw, 0, layout.inodes());
    put32(&mut raw, 4, layout.blocks as u32);
    put32(&mut raw, 8, reserved as u32);
    put32(&mut raw, 12, counts.free_blocks as u32);
    put32(&mut raw, 16, counts.free_inodes);
    put32(&mut raw, 24, BLOCK.trailing_zeros() - 10);
    put32(&mut raw, 28, BLOCK.trailing_zeros() - 10);
    put32(&mut raw, 32, GROUP_BLOCKS as u32);
    put32(&mut raw, 36, GROUP_BLOCKS as u32);
    put32(&mut raw, 40, layout.inodes_per_group);
    put16(&mut raw, 54, u16::MAX); // no check after so many mounts
    put16(&mut raw, 56, MAGIC);
    put16(&mut raw, 58, 1); // clean
    put16(&mut raw, 60, 1); // on errors: continue
    put32(&mut raw, 76, 1); // revision with features
    put32(&mut raw, 84, ino::LOST_FOUND);
    put16(&mut raw, 88, INODE_SIZE as u16);
    put16(&mut raw, 90, group as u16);
    put32(&mut raw, 92, COMPATIBLE);
    put32(&mut raw, 96, INCOMPATIBLE);
    put32(&mut raw, 100, READ_ONLY_COMPATIBLE);
    raw[104..120].copy_from_slice(options.uuid.as_bytes());
    raw[120..120 + options.label.len()].copy_from_slice(options.label.as_bytes());
    put16(&mut raw, 206, layout.reserved_gdt as u16);
    put32(&mut raw, 224, ino::JOURNAL);
    raw[236..252].copy_from_slice(options.hash_seed.as_bytes());
    raw[252] = 1; // half MD4
    raw[253] = 1; // the copy of the journal's map below is valid
    put16(&mut raw, 254, DESC_SIZE as u16);
    put32(&mut raw, 256, 0xc); // user attributes and ACLs are on
    raw[268..328].copy_from_slice(&counts.journal_map);
    let journal_bytes = layout.journal_blocks() * BLOCK as u64;
    put32(&mut raw, 328, (journal_bytes >> 32) as u32);
    put32(&mut raw, 332, journal_bytes as u32);
    put16(&mut raw, 348, 32); // extra fields of inodes: at least, and wanted
    put16(&mut raw, 350, 32);
    put32(&mut raw, 352, 1); // names are hashed as signed bytes
    raw[372] = super::layout::FLEX.trailing_zeros() as u8;
    raw[373] = 1; // crc32c
    put32(
        &mut raw,
        584,
        (layout.overhead() + layout.journal_blocks()) as u32,
    );
    let sum = checksum::crc(!0, &raw[..LEN - 4]);
    put32(&mut raw, LEN - 4, sum);
    raw
}

/// One group's record.
pub(super) struct Group {
    pub free_blocks: u64,
    pub free_inodes: u32,
    pub directories: u32,
    /// Inodes at the end of the table that were never used.
    pub unused_inodes: u32,
    /// Checksum of the block bitmap; `None` when the bitmap is not on the disk.
    pub block_bitmap: Option<u32>,
    /// Checksum of the inode bitmap; `None` when the bitmap is not on the disk.
    pub inode_bitmap: Option<u32>,
}

/// Encodes a group descriptor.
pub(super) fn descriptor(
    layout: &Layout,
    fs_seed: u32,
    number: u32,
    group: &Group,
) -> [u8; DESC_SIZE] {
    const INODE_UNINIT: u16 = 1;
    const BLOCK_UNINIT: u16 = 2;
    const INODE_ZEROED: u16 = 4;
    let mut raw = [0; DESC_SIZE];
    let places = [
        layout.block_bitmap(number),
        layout.inode_bitmap(number),
        layout.inode_table(number),
    ];
    for (at, place) in places.into_iter().enumerate() {
        put32(&mut raw, at * 4, place as u32);
        put32(&mut raw, 32 + at * 4, (place >> 32) as u32);
    }
    let mut flags = INODE_ZEROED;
    flags |= if group.block_bitmap.is_none() {
        BLOCK_UNINIT
    } else {
        0
    };
    flags |= if group.inode_bitmap.is_none() {
        INODE_UNINIT
    } else {
        0
    };
    put16(&mut raw, 12, group.free_blocks as u16);
    put16(&mut raw, 14, group.free_inodes as u16);
    put16(&mut raw, 16, group.directories as u16);
    put16(&mut raw, 18, flags);
    put16(&mut raw, 28, group.unused_inodes as u16);
    for (sum, low, high) in [(group.block_bitmap, 24, 56), (group.inode_bitmap, 26, 58)] {
        let sum = sum.unwrap_or(0);
        put16(&mut raw, low, sum as u16);
        put16(&mut raw, high, (sum >> 16) as u16);
    }
    let sum = checksum::descriptor(fs_seed, number, &raw);
    put16(&mut raw, 30, sum);
    raw
}
