//! The reader: any ext4 as a Linux kernel left it, from any source of blocks.
//!
//! The image was written by a guest and is not trusted. Every number from it is checked before use, every walk over its
//! structures is bounded by the size of the disk, and nothing is allocated on its word alone.

mod attributes;
mod dirs;
mod inodes;
mod lookup;
mod map;
mod replay;
mod volume;
mod walk;

use hostel_model::Bytes;
use uuid::Uuid;

use super::ReadError;
use crate::BlockSource;
use volume::Volume;

/// Reads an ext4 file system without mounting it, without privilege and without writing.
///
/// It knows what ext2, ext3 and ext4 kernels make: extents and block maps, plain, hashed and inline directories, inline
/// data, attributes in inodes, blocks and inodes of their own, every block size, 64-bit and checksummed metadata. A
/// journal that was not played back is played back in memory. Encryption, compression and fast commits are refused.
/// Where the file system has checksums for inodes and extents they are verified.
pub struct Reader<S> {
    volume: Volume<S>,
}

impl<S: BlockSource> Reader<S> {
    /// Opens the file system on `source`. Reads the superblock, the descriptors and, if need be, the journal.
    pub fn open(source: S) -> Result<Self, ReadError> {
        let mut volume = Volume::open(source)?;
        if volume.needs_recovery() {
            replay::replay(&mut volume)?;
        }
        Ok(Self { volume })
    }

    /// Returns the identity of the file system.
    pub fn uuid(&self) -> Uuid {
        self.volume.uuid
    }

    /// Returns the size of the file system; the disk may be larger.
    pub fn size(&self) -> Bytes {
        Bytes(
            self.volume
                .blocks
                .saturating_mul(self.volume.block_size as u64),
        )
    }
}
