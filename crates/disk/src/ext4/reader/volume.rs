//! The opened volume: superblock, group descriptors and access to blocks, with the journal's newer versions in place.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use uuid::Uuid;

use crate::{
    BlockSource,
    bytes::{le16, le32},
    ext4::{
        ReadError, checksum,
        superblock::{LEN, MAGIC, OFFSET},
    },
};

/// Blocks of metadata that are kept, at most.
const CACHED: usize = 512;
/// The most group descriptors that are read: 16 TiB in 4 KiB blocks and then some.
const GROUPS_MAX: u64 = 1 << 20;

/// Incompatible features this reader knows: filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode,
/// csum_seed, largedir, inline_data, casefold.
const KNOWN: u32 = 0x2
    | RECOVER
    | META_BG
    | 0x40
    | WIDE
    | 0x100
    | 0x200
    | 0x400
    | CSUM_SEED
    | 0x4000
    | 0x8000
    | 0x2_0000;
const RECOVER: u32 = 0x4;
const META_BG: u32 = 0x10;
const WIDE: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
const HAS_JOURNAL: u32 = 0x4;
const METADATA_CSUM: u32 = 0x400;
const SPARSE_SUPER: u32 = 0x1;
const SPARSE_SUPER2: u32 = 0x200;

/// A newer version of a block, in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Newer {
    /// Where it is on the disk.
    pub block: u64,
    /// Whether its first four bytes were the journal's magic number and must be put back.
    pub escaped: bool,
}

type Cache = Mutex<HashMap<u64, Arc<[u8]>>>;

/// See the module.
pub(super) struct Volume<S> {
    source: S,
    pub uuid: Uuid,
    pub block_size: usize,
    pub blocks: u64,
    pub inodes: u32,
    pub inodes_per_group: u32,
    pub inode_size: usize,
    pub checksums: bool,
    pub seed: u32,
    pub journal: Option<u32>,
    incompatible: u32,
    /// Where each group's inode table begins.
    tables: Vec<u64>,
    pub newer: HashMap<u64, Newer>,
    cache: Cache,
}

impl<S: BlockSource> Volume<S> {
    pub(super) fn open(source: S) -> Result<Self, ReadError> {
        if source.len() < OFFSET + LEN as u64 {
            return Err(ReadError::NotExt4);
        }
        let mut raw = [0; LEN];
        source.read_at(OFFSET, &mut raw)?;
        let mut volume = Self::from_superblock(source, &raw)?;
        volume.read_tables(&raw)?;
        Ok(volume)
    }

    /// Reads superblock and descriptors again after the journal has newer ones.
    pub(super) fn reload(&mut self) -> Result<(), ReadError> {
        self.forget();
        let per = self.block_size as u64;
        let block = self.block(OFFSET / per)?;
        let at = (OFFSET % per) as usize;
        let raw = block.get(at..at + LEN).ok_or(ReadError::NotExt4)?.to_vec();
        if le16(&raw, 56) != MAGIC
            || le32(&raw, 24) > 6
            || 1024usize << le32(&raw, 24) != self.block_size
        {
            return Err(ReadError::corrupt(
                "the journal holds another file system's superblock",
            ));
        }
        let grown = (u64::from(le32(&raw, 4)) | self.high(&raw, 336)).min(self.source.len() / per);
        self.blocks = grown;
        self.inodes = le32(&raw, 0);
        self.read_tables(&raw)
    }

    fn high(&self, raw: &[u8], at: usize) -> u64 {
        if self.incompatible & WIDE != 0 {
            u64::from(le32(raw, at)) << 32
        } else {
            0
        }
    }

    fn from_superblock(source: S, raw: &[u8; LEN]) -> Result<Self, ReadError> {
        if le16(raw, 56) != MAGIC {
            return Err(ReadError::NotExt4);
        }
        let revision = le32(raw, 76);
        let (compatible, incompatible, read_only) = if revision == 0 {
            (0, 0, 0)
        } else {
            (le32(raw, 92), le32(raw, 96), le32(raw, 100))
        };
        let unknown = incompatible & !KNOWN;
        if unknown != 0 {
            return Err(ReadError::Unsupported(format!(
                "incompatible features {unknown:#x}"
            )));
        }
        let log = le32(raw, 24);
        if log > 6 {
            return Err(ReadError::corrupt("its block size is impossible"));
        }
        let block_size = 1024usize << log;
        let checksums = read_only & METADATA_CSUM != 0;
        if checksums && le32(raw, LEN - 4) != checksum::crc(!0, &raw[..LEN - 4]) {
            return Err(ReadError::corrupt("the superblock's checksum is wrong"));
        }
        let inode_size = if revision == 0 {
            128
        } else {
            usize::from(le16(raw, 88))
        };
        if !inode_size.is_power_of_two() || !(128..=block_size).contains(&inode_size) {
            return Err(ReadError::corrupt("its inode size is impossible"));
        }
        let uuid = Uuid::from_slice(&raw[104..120]).unwrap_or_default();
        let seed = if incompatible & CSUM_SEED != 0 {
            le32(raw, 0x270)
        } else {
            checksum::crc(!0, uuid.as_bytes())
        };
        let mut volume = Self {
            uuid,
            block_size,
            blocks: 0,
            inodes: le32(raw, 0),
            inodes_per_group: le32(raw, 40),
            inode_size,
            checksums,
            seed,
            journal: (compatible & HAS_JOURNAL != 0)
                .then(|| le32(raw, 224))
                .filter(|number| *number != 0),
            incompatible,
            tables: Vec::new(),
            newer: HashMap::new(),
            cache: Mutex::default(),
            source,
        };
        volume.blocks = u64::from(le32(raw, 4)) | volume.high(raw, 336);
        if volume.blocks == 0 || volume.blocks > volume.source.len() / block_size as u64 {
            return Err(ReadError::corrupt(format!(
                "it claims {} blocks of {block_size} bytes on a disk of {} bytes",
                volume.blocks,
                volume.source.len()
            )));
        }
        Ok(volume)
    }

    fn read_tables(&mut self, raw: &[u8]) -> Result<(), ReadError> {
        let first = u64::from(le32(raw, 20));
        let per_group = u64::from(le32(raw, 32));
        let per = self.block_size as u64;
        if per_group == 0 || per_group > 8 * per || first > 1 || self.inodes_per_group == 0 {
            return Err(ReadError::corrupt("its groups are impossible"));
        }
        let groups = self.blocks.saturating_sub(first).div_ceil(per_group);
        if groups > GROUPS_MAX || u64::from(self.inodes) > groups * u64::from(self.inodes_per_group)
        {
            return Err(ReadError::corrupt("its groups are impossible"));
        }
        let wide = self.incompatible & WIDE != 0;
        let size = if wide {
            usize::from(le16(raw, 254))
        } else {
            32
        };
        if !size.is_power_of_two() || !(32..=self.block_size).contains(&size) {
            return Err(ReadError::corrupt("its group descriptors are impossible"));
        }
        let per_block = (self.block_size / size) as u64;
        let first_meta = if self.incompatible & META_BG != 0 {
            u64::from(le32(raw, 260))
        } else {
            u64::MAX
        };
        let sparse = le32(raw, 100) & SPARSE_SUPER != 0;
        let twice = le32(raw, 92) & SPARSE_SUPER2 != 0;
        let mut tables = Vec::new();
        for number in 0..groups.div_ceil(per_block) {
            let at = if number < first_meta {
                first + 1 + number
            } else {
                let group = number * per_block;
                let has_super = if twice {
                    group == 0
                        || group == u64::from(le32(raw, 588))
                        || group == u64::from(le32(raw, 592))
                } else {
                    !sparse || crate::ext4::layout::Layout::has_super(group as u32)
                };
                first + group * per_group + u64::from(has_super)
            };
            let block = self.block(at)?;
            for descriptor in block.chunks_exact(size) {
                let high = if size >= 64 {
                    u64::from(le32(descriptor, 40)) << 32
                } else {
                    0
                };
                tables.push(u64::from(le32(descriptor, 8)) | high);
            }
        }
        tables.truncate(groups as usize);
        self.tables = tables;
        Ok(())
    }

    pub(super) fn needs_recovery(&self) -> bool {
        self.incompatible & RECOVER != 0 && self.journal.is_some()
    }

    pub(super) fn table(&self, group: u32) -> Option<u64> {
        self.tables.get(group as usize).copied()
    }

    /// Drops what was read, because newer versions have come to light.
    pub(super) fn forget(&mut self) {
        self.cache
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Reads one block of metadata.
    pub(super) fn block(&self, number: u64) -> Result<Arc<[u8]>, ReadError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = cache.get(&number) {
            return Ok(block.clone());
        }
        let mut raw = vec![0; self.block_size];
        self.read(number, &mut raw)?;
        let block: Arc<[u8]> = raw.into();
        if cache.len() >= CACHED {
            cache.clear();
        }
        cache.insert(number, block.clone());
        Ok(block)
    }

    /// Reads whole blocks that follow one another.
    pub(super) fn read(&self, number: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let count = (buf.len() / self.block_size) as u64;
        if number
            .checked_add(count)
            .is_none_or(|end| end > self.blocks)
        {
            return Err(ReadError::corrupt(format!(
                "block {number} lies beyond the end"
            )));
        }
        self.source.read_at(number * self.block_size as u64, buf)?;
        if !self.newer.is_empty() {
            for (block, raw) in (number..).zip(buf.chunks_exact_mut(self.block_size)) {
                if let Some(newer) = self.newer.get(&block) {
                    self.source
                        .read_at(newer.block * self.block_size as u64, raw)?;
                    if newer.escaped {
                        raw[..4].copy_from_slice(&crate::ext4::journal::MAGIC.to_be_bytes());
                    }
                }
            }
        }
        Ok(())
    }
}
