//! Inodes as they are read.

use hostel_model::tree::NodeMeta;

use super::volume::Volume;
use crate::{
    BlockSource,
    bytes::{le16, le32},
    ext4::{ReadError, checksum, flag, inode::read_time, kind},
};

/// An inode that is in use.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub number: u32,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    pub links: u16,
    pub size: u64,
    pub flags: u32,
    /// The seed of its blocks' checksums.
    pub seed: u32,
    pub xattr_block: u64,
    /// The block map, tree root, short target or inline data.
    pub map: [u8; 60],
    /// Small attributes with their magic number; empty for none.
    pub spare: Vec<u8>,
}

impl Inode {
    pub(super) fn kind(&self) -> u16 {
        self.mode & kind::MASK
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind() == kind::DIR
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Owner, mode and time; attributes are read apart.
    pub(super) fn meta(&self) -> NodeMeta {
        NodeMeta {
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            mtime_nsec: self.mtime_nsec,
            xattrs: Vec::new(),
        }
    }
}

impl<S: BlockSource> Volume<S> {
    /// Reads an inode by number.
    pub(super) fn inode(&self, number: u32) -> Result<Inode, ReadError> {
        if number == 0 || number > self.inodes {
            return Err(ReadError::corrupt(format!("there is no inode {number}")));
        }
        let group = (number - 1) / self.inodes_per_group;
        let index = u64::from((number - 1) % self.inodes_per_group);
        let table = self
            .table(group)
            .ok_or_else(|| ReadError::corrupt(format!("inode {number} has no group")))?;
        let per_block = (self.block_size / self.inode_size) as u64;
        let at = (index % per_block) as usize * self.inode_size;
        let block = self.block(table.saturating_add(index / per_block))?;
        let raw = &block[at..at + self.inode_size];
        let seed = checksum::inode_seed(self.seed, number, le32(raw, 100));
        if self.checksums && !checksum::inode_is_right(seed, raw) {
            return Err(ReadError::corrupt(format!(
                "the checksum of inode {number} is wrong"
            )));
        }
        let mode = le16(raw, 0);
        let extra = if self.inode_size > 128 {
            usize::from(le16(raw, 128))
        } else {
            0
        };
        let fields = 128 + extra;
        if fields > self.inode_size {
            return Err(ReadError::corrupt(format!(
                "inode {number} has too many fields"
            )));
        }
        let (mtime, mtime_nsec) =
            read_time(le32(raw, 16), if extra >= 12 { le32(raw, 136) } else { 0 });
        let mut map = [0; 60];
        map.copy_from_slice(&raw[40..100]);
        let mut size = u64::from(le32(raw, 4));
        if matches!(mode & kind::MASK, kind::FILE | kind::DIR) {
            size |= u64::from(le32(raw, 108)) << 32;
        }
        let spare = if extra > 0 {
            raw[fields..].to_vec()
        } else {
            Vec::new()
        };
        Ok(Inode {
            number,
            mode,
            uid: u32::from(le16(raw, 2)) | u32::from(le16(raw, 120)) << 16,
            gid: u32::from(le16(raw, 24)) | u32::from(le16(raw, 122)) << 16,
            mtime,
            mtime_nsec,
            links: le16(raw, 26),
            size,
            flags: le32(raw, 32),
            seed,
            xattr_block: u64::from(le32(raw, 104)) | u64::from(le16(raw, 118)) << 32,
            map,
            spare,
        })
    }

    /// Returns the target of a symbolic link.
    pub(super) fn target(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        let wrong = || {
            ReadError::corrupt(format!(
                "symbolic link {} has {} bytes",
                inode.number, inode.size
            ))
        };
        if inode.size == 0 || inode.size > 4095.max(self.block_size as u64) {
            return Err(wrong());
        }
        if inode.size < 60
            && !inode.has(flag::EXTENTS | flag::INLINE_DATA)
            && !has_data_block(inode)
        {
            return Ok(inode.map[..inode.size as usize].to_vec());
        }
        let target = self.contents(inode, 4096.max(self.block_size as u64))?;
        if target.is_empty() || target.contains(&0) {
            return Err(wrong());
        }
        Ok(target)
    }
}

/// Old kernels stored a block for short targets too. What tells them apart: a target has no zero byte before its end, a
/// block map of numbers has.
fn has_data_block(inode: &Inode) -> bool {
    inode.map[..(inode.size as usize).min(60)].contains(&0)
}
