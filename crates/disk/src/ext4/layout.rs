//! Where everything of a fresh image lies: groups, descriptor tables, bitmaps and inode tables.
//!
//! The shape is mke2fs's default: 4 KiB blocks, groups of 32,768, one inode in 16 KiB, backups in groups 1 and the powers
//! of 3, 5 and 7, the tables of 16 groups packed at the start of the first (flex_bg), and blocks kept free behind the
//! descriptors for online growth by the resize inode.

use super::{BLOCK, WriteError};

/// Blocks in a group: what one bitmap block can tell of.
pub(super) const GROUP_BLOCKS: u64 = 8 * BLOCK as u64;
/// Groups that share one packed metadata area.
pub(super) const FLEX: u32 = 16;
/// Bytes of a group descriptor with 64-bit fields.
pub(super) const DESC_SIZE: usize = 64;
/// Bytes of an inode.
pub(super) const INODE_SIZE: usize = 256;
/// Disk bytes for which there is one inode.
const INODE_RATIO: u64 = 16384;
/// The smallest image that can hold a journal beside its tables.
pub(super) const MIN_SIZE: u64 = 8 << 20;
/// The resize inode holds 32-bit block numbers.
pub(super) const MAX_BLOCKS: u64 = u32::MAX as u64;

/// The geometry of an image.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub blocks: u64,
    pub groups: u32,
    pub inodes_per_group: u32,
    pub itable_blocks: u64,
    pub gdt_blocks: u64,
    pub reserved_gdt: u64,
}

impl Layout {
    /// Plans an image of `size` bytes; a last group too small to be of use is left off.
    pub(super) fn plan(size: u64) -> Result<Self, WriteError> {
        if size < MIN_SIZE {
            return Err(WriteError::TooSmall {
                size,
                minimum: MIN_SIZE,
            });
        }
        let blocks = size / BLOCK as u64;
        if blocks > MAX_BLOCKS {
            return Err(WriteError::TooLarge {
                size,
                maximum: MAX_BLOCKS * BLOCK as u64,
            });
        }
        let layout = Self::of_blocks(blocks);
        let rest = blocks % GROUP_BLOCKS;
        let last = layout.groups - 1;
        let needed = layout.base_blocks(last) + 2 + layout.itable_blocks + 50;
        if layout.groups > 1 && rest != 0 && rest < needed {
            return Ok(Self::of_blocks(blocks - rest));
        }
        Ok(layout)
    }

    fn of_blocks(blocks: u64) -> Self {
        let groups = blocks.div_ceil(GROUP_BLOCKS) as u32;
        let inodes = blocks * BLOCK as u64 / INODE_RATIO;
        let per_block = (BLOCK / INODE_SIZE) as u64;
        let inodes_per_group = inodes
            .div_ceil(u64::from(groups))
            .next_multiple_of(per_block) as u32;
        let per_gdt = (BLOCK / DESC_SIZE) as u64;
        let gdt_blocks = u64::from(groups).div_ceil(per_gdt);
        // Room to grow a thousandfold, as far as the resize inode's one indirect block reaches.
        let max_blocks = blocks.saturating_mul(1024).min(MAX_BLOCKS);
        let max_gdt = max_blocks.div_ceil(GROUP_BLOCKS).div_ceil(per_gdt);
        Self {
            blocks,
            groups,
            inodes_per_group,
            itable_blocks: u64::from(inodes_per_group) / per_block,
            gdt_blocks,
            reserved_gdt: max_gdt.saturating_sub(gdt_blocks).min(BLOCK as u64 / 4),
        }
    }

    pub(super) fn inodes(&self) -> u32 {
        self.groups * self.inodes_per_group
    }

    pub(super) fn group_start(group: u32) -> u64 {
        u64::from(group) * GROUP_BLOCKS
    }

    pub(super) fn group_len(&self, group: u32) -> u64 {
        (self.blocks - Self::group_start(group)).min(GROUP_BLOCKS)
    }

    /// Tells whether the group begins with a copy of the superblock and the descriptors.
    pub(super) fn has_super(group: u32) -> bool {
        let power_of = |base: u32| {
            let mut value = u64::from(base);
            while value < u64::from(group) {
                value *= u64::from(base);
            }
            value == u64::from(group)
        };
        group <= 1 || power_of(3) || power_of(5) || power_of(7)
    }

    /// Groups other than the first that hold copies, ascending.
    pub(super) fn backups(&self) -> impl Iterator<Item = u32> + use<> {
        (1..self.groups).filter(|group| Self::has_super(*group))
    }

    /// Blocks of superblock and descriptors at the start of a group.
    pub(super) fn base_blocks(&self, group: u32) -> u64 {
        if Self::has_super(group) {
            1 + self.gdt_blocks + self.reserved_gdt
        } else {
            0
        }
    }

    fn flex(&self, group: u32) -> (u32, u64, u64) {
        let first = group - group % FLEX;
        let members = (self.groups - first).min(FLEX);
        (
            first,
            u64::from(members),
            Self::group_start(first) + self.base_blocks(first),
        )
    }

    pub(super) fn block_bitmap(&self, group: u32) -> u64 {
        let (first, _, start) = self.flex(group);
        start + u64::from(group - first)
    }

    pub(super) fn inode_bitmap(&self, group: u32) -> u64 {
        let (first, members, start) = self.flex(group);
        start + members + u64::from(group - first)
    }

    pub(super) fn inode_table(&self, group: u32) -> u64 {
        let (first, members, start) = self.flex(group);
        start + 2 * members + u64::from(group - first) * self.itable_blocks
    }

    /// Bitmaps and tables that lie in this group, for itself and for others.
    pub(super) fn packed_blocks(&self, group: u32) -> u64 {
        let (first, members, _) = self.flex(group);
        if group == first {
            members * (2 + self.itable_blocks)
        } else {
            0
        }
    }

    /// Blocks that hold no file data in all groups.
    pub(super) fn overhead(&self) -> u64 {
        (0..self.groups)
            .map(|group| self.base_blocks(group) + self.packed_blocks(group))
            .sum()
    }

    /// Blocks of the journal: small on small disks, 64 MiB at most, because every block of it that was ever used
    /// stays allocated on the host.
    pub(super) fn journal_blocks(&self) -> u64 {
        match self.blocks {
            0..32_768 => 1024,
            32_768..262_144 => 4096,
            262_144..524_288 => 8192,
            _ => 16_384,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_lie_where_sparse_super_wants_them() {
        let layout = Layout::plan(1 << 40).unwrap();
        let backups: Vec<u32> = layout.backups().take(11).collect();
        assert_eq!(backups, [1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243]);
    }

    #[test]
    fn no_two_areas_overlap_whatever_the_size() {
        for size in [
            8 << 20,
            128 << 20,
            (128 << 20) + 4096,
            (2 << 30) + (5 << 20),
            300 << 30,
            15 << 40,
        ] {
            let layout = Layout::plan(size).unwrap();
            for group in 0..layout.groups {
                let used = layout.base_blocks(group) + layout.packed_blocks(group);
                assert!(used < layout.group_len(group), "{size} group {group}");
            }
            let last = layout.groups - 1;
            let (first, members, start) = layout.flex(last);
            let end = layout.inode_table(last) + layout.itable_blocks;
            assert_eq!(end, start + members * (2 + layout.itable_blocks));
            assert!(end <= Layout::group_start(first) + layout.group_len(first));
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(matches!(
            Layout::plan(1 << 20),
            Err(WriteError::TooSmall { .. })
        ));
        assert!(matches!(
            Layout::plan(1 << 50),
            Err(WriteError::TooLarge { .. })
        ));
    }
}
