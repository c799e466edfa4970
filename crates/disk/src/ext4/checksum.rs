//! Checksums of metadata: crc32c without the final inversion, chained from a seed of the file system.

use crate::bytes::{le16, le32, put16, put32};

/// Continues a crc32c over `data`, as the kernel's `ext4_chksum` does (no inversion at either end).
pub(super) fn crc(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// The seed of one inode's own blocks: file system seed, inode number, generation.
pub(super) fn inode_seed(fs_seed: u32, ino: u32, generation: u32) -> u32 {
    crc(crc(fs_seed, &ino.to_le_bytes()), &generation.to_le_bytes())
}

/// The checksum of a raw inode; the fields that hold it count as zero. `seed` is [`inode_seed`].
pub(super) fn inode(seed: u32, raw: &[u8]) -> u32 {
    let has_high = raw.len() > 128 && le16(raw, 128) >= 4;
    let mut sum = crc(seed, &raw[..124]);
    sum = crc(sum, &[0; 2]);
    sum = crc(sum, &raw[126..raw.len().min(128)]);
    if raw.len() > 128 {
        sum = crc(sum, &raw[128..130]);
        if has_high {
            sum = crc(sum, &[0; 2]);
            sum = crc(sum, &raw[132..]);
        } else {
            sum = crc(sum, &raw[130..]);
        }
    }
    sum
}

/// Stores the checksum in a raw inode with extra fields.
pub(super) fn seal_inode(seed: u32, raw: &mut [u8]) {
    let sum = inode(seed, raw);
    put16(raw, 124, sum as u16);
    put16(raw, 130, (sum >> 16) as u16);
}

/// Tells whether a raw inode carries the right checksum.
pub(super) fn inode_is_right(seed: u32, raw: &[u8]) -> bool {
    let sum = inode(seed, raw);
    let low_right = le16(raw, 124) == sum as u16;
    let has_high = raw.len() > 128 && le16(raw, 128) >= 4;
    low_right && (!has_high || le16(raw, 130) == (sum >> 16) as u16)
}

/// The 16-bit checksum of a group descriptor.
pub(super) fn descriptor(fs_seed: u32, group: u32, raw: &[u8]) -> u16 {
    let mut sum = crc(fs_seed, &group.to_le_bytes());
    sum = crc(sum, &raw[..30]);
    sum = crc(sum, &[0; 2]);
    if raw.len() > 32 {
        sum = crc(sum, &raw[32..]);
    }
    sum as u16
}

/// The checksum of an external attribute block; its own field (offset 16) counts as zero.
pub(super) fn xattr_block(fs_seed: u32, block: u64, raw: &[u8]) -> u32 {
    let mut sum = crc(fs_seed, &block.to_le_bytes());
    sum = crc(sum, &raw[..16]);
    sum = crc(sum, &[0; 4]);
    crc(sum, &raw[20..])
}

/// Stores the checksum in the last four bytes of an extent block (its tail follows the last possible entry).
pub(super) fn seal_extent_block(seed: u32, raw: &mut [u8]) {
    let at = extent_tail(raw);
    let sum = crc(seed, &raw[..at]);
    put32(raw, at, sum);
}

/// Tells whether an extent block carries the right checksum.
pub(super) fn extent_block_is_right(seed: u32, raw: &[u8]) -> bool {
    let at = extent_tail(raw);
    at + 4 <= raw.len() && le32(raw, at) == crc(seed, &raw[..at])
}

fn extent_tail(raw: &[u8]) -> usize {
    12 + 12 * usize::from(le16(raw, 4))
}

/// Stores the tail of a directory leaf: a nameless entry of 12 bytes that holds the checksum.
pub(super) fn seal_leaf(seed: u32, raw: &mut [u8]) {
    let at = raw.len() - 12;
    raw[at..].copy_from_slice(&[0, 0, 0, 0, 12, 0, 0, 0xde, 0, 0, 0, 0]);
    let sum = crc(seed, &raw[..at]);
    put32(raw, at + 8, sum);
}

/// Stores the tail of an index block whose counts stand at `count_at`.
pub(super) fn seal_index(seed: u32, raw: &mut [u8], count_at: usize) {
    let limit = usize::from(le16(raw, count_at));
    let count = usize::from(le16(raw, count_at + 2));
    let tail = count_at + limit * 8;
    let mut sum = crc(seed, &raw[..count_at + count * 8]);
    sum = crc(sum, &[0; 8]);
    put32(raw, tail, 0);
    put32(raw, tail + 4, sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chained_crc_equals_crc_of_the_whole() {
        let whole = crc(!0, b"123456789");
        assert_eq!(!whole, 0xe306_9283);
        assert_eq!(crc(crc(!0, b"1234"), b"56789"), whole);
    }

    #[test]
    fn inode_checksum_ignores_its_own_fields() {
        let mut raw = [7u8; 256];
        put16(&mut raw, 128, 32);
        seal_inode(5, &mut raw);
        assert!(inode_is_right(5, &raw));
        raw[200] ^= 1;
        assert!(!inode_is_right(5, &raw));
    }
}
