//! Inodes as the writer stores them: 256 bytes with nanoseconds, 32-bit owners and small attributes.

use super::{flag, kind, layout::INODE_SIZE, nodes::Node, xattr};
use crate::bytes::{put16, put32};

/// Bytes of the fields behind the first 128.
const EXTRA: u16 = 32;
/// The most links an inode counts.
pub(super) const LINKS_MAX: u32 = 65_000;
const EARLIEST: i64 = i32::MIN as i64;
const LATEST: i64 = (1 << 34) + EARLIEST - 1;

/// What the inode says of its blocks, beside the node.
pub(super) struct Mapped {
    /// The 60 bytes of the block map.
    pub map: [u8; 60],
    pub flags: u32,
    pub size: u64,
    /// Blocks of the disk that belong to it, of 4 KiB.
    pub blocks: u64,
}

/// Splits a time into the old 32-bit field and the one that holds nanoseconds and two more bits of seconds. Times that
/// ext4 cannot hold become the nearest that it can, as the kernel does it.
fn time(seconds: i64, nanos: u32) -> (u32, u32) {
    let clamped = seconds.clamp(EARLIEST, LATEST);
    let nanos = if clamped == seconds {
        nanos.min(999_999_999)
    } else {
        0
    };
    let epoch = ((clamped - i64::from(clamped as i32)) >> 32) as u32 & 3;
    (clamped as u32, (nanos << 2) | epoch)
}

/// Puts the two fields of a time together again.
pub(super) fn read_time(seconds: u32, extra: u32) -> (i64, u32) {
    let epoch = i64::from(extra & 3) << 32;
    (
        i64::from(seconds as i32) + epoch,
        (extra >> 2).min(999_999_999),
    )
}

/// A device's numbers as the block map holds them: old form where both fit a byte.
pub(super) fn device_map(major: u32, minor: u32) -> [u8; 60] {
    let mut map = [0; 60];
    if major < 256 && minor < 256 {
        put32(&mut map, 0, (major << 8) | minor);
    } else {
        put32(
            &mut map,
            4,
            (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        );
    }
    map
}

/// Returns major and minor number from the two words of the block map.
pub(super) fn read_device(old: u32, new: u32) -> (u32, u32) {
    if old != 0 {
        ((old >> 8) & 0xff, old & 0xff)
    } else {
        ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xf_ff00))
    }
}

/// Encodes an inode, all but its checksum. `born` is the file system's time of making.
pub(super) fn encode(node: &Node, mapped: &Mapped, born: i64) -> [u8; INODE_SIZE] {
    let mut raw = [0; INODE_SIZE];
    put16(&mut raw, 0, node.mode);
    put16(&mut raw, 2, node.uid as u16);
    put32(&mut raw, 4, mapped.size as u32);
    let (seconds, extra) = time(node.mtime, node.mtime_nsec);
    for at in [8, 12, 16] {
        put32(&mut raw, at, seconds);
    }
    put16(&mut raw, 24, node.gid as u16);
    // A directory with too many children says 1: unknown (dir_nlink).
    let links = if node.links > LINKS_MAX && node.mode & kind::MASK == kind::DIR {
        1
    } else {
        node.links
    };
    put16(&mut raw, 26, links as u16);
    // 512-byte sectors as long as 48 bits hold them, which they do for every size the layout allows.
    let sectors = (mapped.blocks + u64::from(node.xattr_block != 0)) * 8;
    put32(&mut raw, 28, sectors as u32);
    put32(&mut raw, 32, mapped.flags);
    raw[40..100].copy_from_slice(&mapped.map);
    put32(&mut raw, 104, node.xattr_block as u32);
    put32(&mut raw, 108, (mapped.size >> 32) as u32);
    put16(&mut raw, 116, (sectors >> 32) as u16);
    put16(&mut raw, 118, (node.xattr_block >> 32) as u16);
    put16(&mut raw, 120, (node.uid >> 16) as u16);
    put16(&mut raw, 122, (node.gid >> 16) as u16);
    put16(&mut raw, 128, EXTRA);
    for at in [132, 136, 140] {
        put32(&mut raw, at, extra);
    }
    let (seconds, extra) = time(born, 0);
    put32(&mut raw, 144, seconds);
    put32(&mut raw, 148, extra);
    if !node.inline_xattrs.is_empty() {
        raw[INODE_SIZE - xattr::INLINE..].copy_from_slice(&node.inline_xattrs);
    }
    raw
}

impl Mapped {
    /// An inode without blocks.
    pub(super) fn empty(map: [u8; 60], size: u64) -> Self {
        Self {
            map,
            flags: 0,
            size,
            blocks: 0,
        }
    }

    /// An inode with a tree of extents.
    pub(super) fn extents(map: [u8; 60], size: u64, blocks: u64) -> Self {
        Self {
            map,
            flags: flag::EXTENTS,
            size,
            blocks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_or_are_clamped() {
        for seconds in [
            EARLIEST,
            -1,
            0,
            1,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x1_0000_0000,
            LATEST,
        ] {
            let (low, extra) = time(seconds, 123_456_789);
            assert_eq!(read_time(low, extra), (seconds, 123_456_789));
        }
        let (low, extra) = time(i64::MAX, 5);
        assert_eq!(read_time(low, extra), (LATEST, 0));
        let (low, extra) = time(i64::MIN, 5);
        assert_eq!(read_time(low, extra), (EARLIEST, 0));
    }

    #[test]
    fn devices_survive_in_both_forms() {
        for (major, minor) in [
            (1, 3),
            (255, 255),
            (256, 0),
            (8, 256),
            (4095, 0xf_ffff),
            (0, 1),
        ] {
            let map = device_map(major, minor);
            let (old, new) = (crate::bytes::le32(&map, 0), crate::bytes::le32(&map, 4));
            assert_eq!(read_device(old, new), (major, minor));
        }
    }
}
