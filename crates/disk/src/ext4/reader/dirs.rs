//! Directories as they are read. Index blocks of hashed ones look empty to this linear view, as ext4 means them to.

use super::{inodes::Inode, map::Budget, volume::Volume};
use crate::{
    BlockSource,
    bytes::{le16, le32},
    ext4::{ReadError, flag},
};

/// The most names of one directory that are kept in memory.
const NAMES_MAX: usize = 16 << 20;

/// A name and its inode.
pub(super) type Named = (Vec<u8>, u32);

impl<S: BlockSource> Volume<S> {
    /// Lists a directory without `.` and `..`, sorted by name.
    pub(super) fn list(&self, inode: &Inode, budget: &mut Budget) -> Result<Vec<Named>, ReadError> {
        let mut names = Vec::new();
        if inode.has(flag::INLINE_DATA) {
            let data = self.inline_data(inode)?;
            // The parent's number takes the place of the two dots; what does not fit the inode is a list of its own.
            let (first, second) = data.split_at(data.len().min(60));
            collect(inode, first.get(4..).unwrap_or(&[]), &mut names)?;
            collect(inode, second, &mut names)?;
        } else {
            let end = inode.size.div_ceil(self.block_size as u64);
            for extent in self.map(inode, budget)? {
                for offset in 0..u64::from(extent.len) {
                    if extent.file + offset < end {
                        let block = self.block(extent.disk + offset)?;
                        collect(inode, &block, &mut names)?;
                    }
                }
            }
        }
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(ReadError::corrupt(format!(
                "directory {} has a name twice",
                inode.number
            )));
        }
        Ok(names)
    }
}

fn collect(inode: &Inode, raw: &[u8], names: &mut Vec<Named>) -> Result<(), ReadError> {
    let wrong = |what: &str| ReadError::corrupt(format!("directory {}: {what}", inode.number));
    let mut at = 0;
    while at + 8 <= raw.len() {
        let len = match le16(raw, at + 4) {
            // Blocks of 64 KiB cannot say their own length in 16 bits.
            0 | u16::MAX if raw.len() == 1 << 16 => raw.len(),
            len => usize::from(len),
        };
        let name_len = usize::from(raw[at + 6]);
        if len < 8 || !len.is_multiple_of(4) || at + len > raw.len() || 8 + name_len > len {
            return Err(wrong("an entry is wrong"));
        }
        let number = le32(raw, at);
        let name = &raw[at + 8..at + 8 + name_len];
        if number != 0 && name != b"." && name != b".." {
            if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                return Err(wrong("it has an impossible name"));
            }
            if names.len() >= NAMES_MAX {
                return Err(wrong("it has too many names"));
            }
            names.push((name.to_vec(), number));
        }
        at += len;
    }
    Ok(())
}
