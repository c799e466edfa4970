//! The header of a qcow2 file: enough to make an empty overlay and to tell what an overlay stands on.
//!
//! Written by hand because the format's empty form is four clusters of fixed content, and a program of QEMU's for it is
//! in a package of its own that many hosts lack.

use crate::bytes::{be32, be64, put_be32, put_be64};

pub(crate) const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
const MAGIC: u32 = 0x5146_49fb;
const HEADER: usize = 112;
/// The longest backing name QEMU accepts.
pub(crate) const NAME_MAX: usize = 1023;
/// The extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Clusters an L2 table tells of.
const PER_L2: u64 = CLUSTER / 8;

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The size of the disk in bytes.
    pub size: u64,
    /// The name of the backing file as stored; empty for none.
    pub backing: Vec<u8>,
}

/// Returns the bytes of an empty overlay: header, refcount table, one refcount block, and the L1 table, which is all
/// zeros and therefore only counted, as the file's length.
pub(crate) fn empty(size: u64, backing: &[u8]) -> (Vec<u8>, u64) {
    let l1_entries = size.div_ceil(CLUSTER * PER_L2);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER).max(1);
    let clusters = 3 + l1_clusters;
    let mut raw = vec![0; 3 * CLUSTER as usize];
    put_be32(&mut raw, 0, MAGIC);
    put_be32(&mut raw, 4, 3);
    put_be32(&mut raw, 20, CLUSTER_BITS);
    put_be64(&mut raw, 24, size);
    put_be32(&mut raw, 36, l1_entries as u32);
    put_be64(&mut raw, 40, 3 * CLUSTER);
    put_be64(&mut raw, 48, CLUSTER);
    put_be32(&mut raw, 56, 1); // clusters of the refcount table
    put_be32(&mut raw, 96, 4); // refcounts have 16 bits
    put_be32(&mut raw, 100, HEADER as u32);
    put_be32(&mut raw, HEADER, BACKING_FORMAT);
    put_be32(&mut raw, HEADER + 4, 3);
    raw[HEADER + 8..HEADER + 11].copy_from_slice(b"raw");
    // Padded to eight bytes, followed by the empty extension that ends the list.
    let name_at = HEADER + 24;
    raw[name_at..name_at + backing.len()].copy_from_slice(backing);
    put_be64(&mut raw, 8, name_at as u64);
    put_be32(&mut raw, 16, backing.len() as u32);
    // The refcount table's first entry, then one for every cluster of the file in the block it names.
    put_be64(&mut raw, CLUSTER as usize, 2 * CLUSTER);
    for cluster in 0..clusters {
        raw[(2 * CLUSTER + cluster * 2) as usize + 1] = 1;
    }
    (raw, clusters * CLUSTER)
}

/// Reads the header from the beginning of a file. `None` when it is no qcow2 or contradicts itself.
pub(crate) fn parse(raw: &[u8]) -> Option<Header> {
    if be32(raw, 0) != MAGIC || !(2..=3).contains(&be32(raw, 4)) {
        return None;
    }
    let at = usize::try_from(be64(raw, 8)).ok()?;
    let len = be32(raw, 16) as usize;
    let backing = match (at, len) {
        (0, _) | (_, 0) => Vec::new(),
        (at, len) if len <= NAME_MAX => raw.get(at..at.checked_add(len)?)?.to_vec(),
        _ => return None,
    };
    Some(Header {
        size: be64(raw, 24),
        backing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read() {
        let (raw, len) = empty(256 << 30, b"../base.raw");
        assert_eq!(len, 4 * CLUSTER);
        assert_eq!(
            parse(&raw),
            Some(Header {
                size: 256 << 30,
                backing: b"../base.raw".to_vec()
            })
        );
        let (_, len) = empty(16 << 40, b"b");
        assert_eq!(len, 7 * CLUSTER);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(&[0; 512]), None);
        let (mut raw, _) = empty(1 << 20, b"x");
        put_be64(&mut raw, 8, u64::MAX);
        assert_eq!(parse(&raw), None);
        assert_eq!(parse(&raw[..20]), None);
    }
}
