//! Playing back the journal of a file system that was not unmounted, in memory only.
//!
//! Nothing is copied: the result is a list of blocks whose newer version lies in the journal. As in the kernel there are
//! three passes over the committed transactions: find their end, collect revoked blocks, take the rest.

use std::collections::HashMap;

use super::{
    map::Budget,
    volume::{Newer, Volume},
};
use crate::{
    BlockSource,
    bytes::{be16, be32, be64},
    ext4::{ReadError, checksum, journal::MAGIC, nodes::Extent},
};

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_1: u32 = 3;
const SUPERBLOCK_2: u32 = 4;
const REVOKE: u32 = 5;

const WIDE: u32 = 0x2;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;
/// revoke, 64bit, asynchronous commit, both checksums
const KNOWN: u32 = 0x1 | WIDE | 0x4 | CSUM_V2 | CSUM_V3;

const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;

/// The most blocks that all transactions together may replace or revoke; the largest honest journals hold fewer.
const RECORDS_MAX: usize = 1 << 22;

/// The log and how to read it.
struct Log<'a, S> {
    volume: &'a Volume<S>,
    extents: Vec<Extent>,
    first: u64,
    len: u64,
    incompatible: u32,
    seed: u32,
}

/// A block of a transaction: where it belongs, and the journal's own number of the block that holds it.
struct Tag {
    home: u64,
    log: u64,
    flags: u32,
    checksum: u32,
}

/// One committed transaction.
struct Transaction {
    sequence: u32,
    tags: Vec<Tag>,
    revoked: Vec<u64>,
}

/// Fills `volume.newer` from the journal and reads superblock and descriptors again.
pub(super) fn replay<S: BlockSource>(volume: &mut Volume<S>) -> Result<(), ReadError> {
    let newer = collect(volume)?;
    if !newer.is_empty() {
        volume.newer = newer;
        volume.reload()?;
    }
    Ok(())
}

fn collect<S: BlockSource>(volume: &Volume<S>) -> Result<HashMap<u64, Newer>, ReadError> {
    let inode = volume.inode(volume.journal.unwrap_or_default())?;
    let extents = volume.map(&inode, &mut Budget::new(volume.blocks))?;
    let mut log = Log {
        volume,
        extents,
        first: 0,
        len: 0,
        incompatible: 0,
        seed: 0,
    };
    let raw = log.read(0)?;
    let version = be32(&raw, 4);
    if be32(&raw, 0) != MAGIC || !matches!(version, SUPERBLOCK_1 | SUPERBLOCK_2) {
        return Err(ReadError::corrupt("the journal has no superblock"));
    }
    log.incompatible = if version == SUPERBLOCK_2 {
        be32(&raw, 40)
    } else {
        0
    };
    let unknown = log.incompatible & !KNOWN;
    if unknown != 0 {
        return Err(ReadError::Unsupported(format!(
            "journal features {unknown:#x}"
        )));
    }
    log.seed = checksum::crc(!0, raw.get(48..64).unwrap_or(&[]));
    log.first = u64::from(be32(&raw, 20));
    log.len = u64::from(be32(&raw, 16));
    let start = u64::from(be32(&raw, 28));
    if start == 0 {
        return Ok(HashMap::new());
    }
    let size = volume.block_size;
    if be32(&raw, 12) as usize != size
        || log.first == 0
        || !(log.first..log.len).contains(&start)
        || log.len > volume.blocks
    {
        return Err(ReadError::corrupt("the journal's superblock is impossible"));
    }
    let transactions = log.committed(start, be32(&raw, 24))?;
    log.apply(&transactions)
}

/// Compares sequence numbers, which wrap around.
fn at_or_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 >= 0
}

impl<S: BlockSource> Log<'_, S> {
    fn place(&self, number: u64) -> Result<u64, ReadError> {
        let at = self
            .extents
            .partition_point(|extent| extent.file + u64::from(extent.len) <= number);
        self.extents
            .get(at)
            .filter(|extent| extent.file <= number)
            .map(|extent| extent.disk + (number - extent.file))
            .ok_or_else(|| ReadError::corrupt(format!("the journal has no block {number}")))
    }

    fn read(&self, number: u64) -> Result<Vec<u8>, ReadError> {
        let mut raw = vec![0; self.volume.block_size];
        self.volume.read(self.place(number)?, &mut raw)?;
        Ok(raw)
    }

    fn after(&self, number: u64) -> u64 {
        if number + 1 >= self.len {
            self.first
        } else {
            number + 1
        }
    }

    fn checksums(&self) -> bool {
        self.incompatible & (CSUM_V2 | CSUM_V3) != 0
    }

    /// Checks the checksum at the end of a descriptor or revoke block.
    fn tail_is_right(&self, raw: &[u8]) -> bool {
        self.sum_is_right(raw, raw.len() - 4)
    }

    fn sum_is_right(&self, raw: &[u8], at: usize) -> bool {
        if !self.checksums() {
            return true;
        }
        let sum = checksum::crc(checksum::crc(self.seed, &raw[..at]), &[0; 4]);
        checksum::crc(sum, &raw[at + 4..]) == be32(raw, at)
    }

    /// Returns the transactions from `at` on that were committed whole.
    fn committed(&self, mut at: u64, mut sequence: u32) -> Result<Vec<Transaction>, ReadError> {
        let mut transactions = Vec::new();
        let mut open = Transaction {
            sequence,
            tags: Vec::new(),
            revoked: Vec::new(),
        };
        let mut steps = 0;
        let mut records = 0;
        while steps < self.len {
            if records + open.tags.len() + open.revoked.len() > RECORDS_MAX {
                return Err(ReadError::corrupt("the journal has too many records"));
            }
            let raw = self.read(at)?;
            if be32(&raw, 0) != MAGIC || be32(&raw, 8) != sequence {
                break;
            }
            at = self.after(at);
            steps += 1;
            match be32(&raw, 4) {
                DESCRIPTOR => {
                    if !self.tail_is_right(&raw) {
                        break;
                    }
                    for mut tag in self.tags(&raw) {
                        tag.log = at;
                        at = self.after(at);
                        steps += 1;
                        open.tags.push(tag);
                    }
                }
                REVOKE => {
                    if !self.tail_is_right(&raw) {
                        break;
                    }
                    self.revoked(&raw, &mut open.revoked);
                }
                COMMIT => {
                    if !self.sum_is_right(&raw, 16) {
                        break;
                    }
                    sequence = sequence.wrapping_add(1);
                    records += open.tags.len() + open.revoked.len() + 1;
                    let next = Transaction {
                        sequence,
                        tags: Vec::new(),
                        revoked: Vec::new(),
                    };
                    transactions.push(std::mem::replace(&mut open, next));
                }
                _ => break,
            }
        }
        Ok(transactions)
    }

    fn tags(&self, raw: &[u8]) -> Vec<Tag> {
        let wide = self.incompatible & WIDE != 0;
        let v3 = self.incompatible & CSUM_V3 != 0;
        let size = match (v3, wide) {
            (true, _) => 16,
            (false, true) => 12,
            (false, false) => 8,
        };
        let end = raw.len() - if self.checksums() { 4 } else { 0 };
        let mut tags = Vec::new();
        let mut at = 12;
        while at + size <= end {
            let (flags, checksum) = if v3 {
                (be32(raw, at + 4), be32(raw, at + 12))
            } else {
                (u32::from(be16(raw, at + 6)), u32::from(be16(raw, at + 4)))
            };
            let high = if wide {
                u64::from(be32(raw, at + 8)) << 32
            } else {
                0
            };
            tags.push(Tag {
                home: u64::from(be32(raw, at)) | high,
                log: 0,
                flags,
                checksum,
            });
            at += size + if flags & SAME_UUID == 0 { 16 } else { 0 };
            if flags & LAST != 0 {
                break;
            }
        }
        tags
    }

    fn revoked(&self, raw: &[u8], out: &mut Vec<u64>) {
        let used = (be32(raw, 12) as usize).min(raw.len());
        let wide = self.incompatible & WIDE != 0;
        let size = if wide { 8 } else { 4 };
        for entry in raw.get(16..used).unwrap_or(&[]).chunks_exact(size) {
            out.push(if wide {
                be64(entry, 0)
            } else {
                u64::from(be32(entry, 0))
            });
        }
    }

    fn apply(&self, transactions: &[Transaction]) -> Result<HashMap<u64, Newer>, ReadError> {
        let mut revoked = HashMap::new();
        for transaction in transactions {
            for block in &transaction.revoked {
                revoked.insert(*block, transaction.sequence);
            }
        }
        let mut newer = HashMap::new();
        for transaction in transactions {
            for tag in &transaction.tags {
                if revoked
                    .get(&tag.home)
                    .is_some_and(|last| at_or_after(*last, transaction.sequence))
                {
                    continue;
                }
                if self.checksums() && !self.data_is_right(tag, transaction.sequence)? {
                    return Err(ReadError::corrupt(format!(
                        "the journal's copy of block {} has a wrong checksum",
                        tag.home
                    )));
                }
                newer.insert(
                    tag.home,
                    Newer {
                        block: self.place(tag.log)?,
                        escaped: tag.flags & ESCAPED != 0,
                    },
                );
            }
        }
        Ok(newer)
    }

    /// The sum covers the sequence number and the block as it lies in the log.
    fn data_is_right(&self, tag: &Tag, sequence: u32) -> Result<bool, ReadError> {
        let sum = checksum::crc(
            checksum::crc(self.seed, &sequence.to_be_bytes()),
            &self.read(tag.log)?,
        );
        Ok(if self.incompatible & CSUM_V3 != 0 {
            sum == tag.checksum
        } else {
            sum & 0xffff == tag.checksum
        })
    }
}
