//! The end of writing: everything that could not be known before.

use super::{
    BLOCK, Summary, WriteError, Writer, checksum,
    dir::{self, Identity},
    extents, flag, ino,
    inode::{self, Mapped},
    layout::{GROUP_BLOCKS, INODE_SIZE, Layout},
    nodes::{Content, Node, push_run},
    superblock::{self, Counts, Group},
};
use hostel_model::Bytes;

const BLOCK_BYTES: u64 = BLOCK as u64;
/// Blocks that lost+found has from the start, so that a check need not find room first.
const LOST_FOUND_BLOCKS: usize = 4;

pub(super) fn finish(mut writer: Writer) -> Result<Summary, WriteError> {
    let mapped = write_maps(&mut writer)?;
    let journal_map = mapped[ino::JOURNAL as usize]
        .as_ref()
        .map_or([0; 60], |mapped| mapped.map);
    write_inodes(&mut writer, &mapped)?;
    let groups = write_bitmaps(&mut writer)?;
    let counts = Counts {
        free_blocks: writer.space.blocks(),
        free_inodes: groups.iter().map(|group| group.free_inodes).sum(),
        journal_map,
    };
    write_descriptors(&mut writer, &groups, &counts)?;
    writer.out.flush()?;
    Ok(Summary {
        size: Bytes(writer.layout.blocks * BLOCK_BYTES),
        free: Bytes(counts.free_blocks * BLOCK_BYTES),
        // All but the ten reserved, the root and lost+found.
        files: (writer.layout.inodes() - counts.free_inodes).saturating_sub(ino::LOST_FOUND),
    })
}

/// Places directories and the trees of fragmented files; returns by inode what it says of its blocks.
fn write_maps(writer: &mut Writer) -> Result<Vec<Option<Mapped>>, WriteError> {
    let mut all = Vec::new();
    for number in 0..=writer.nodes.highest() {
        let mapped = match writer.nodes.find(number).map(|node| &node.content) {
            None => None,
            Some(Content::Directory { .. }) => Some(write_directory(writer, number)?),
            Some(Content::Blocks(_)) => Some(write_extents(writer, number)?),
            Some(Content::Target(target)) => {
                let mut map = [0; 60];
                map[..target.len()].copy_from_slice(target);
                Some(Mapped::empty(map, target.len() as u64))
            }
            Some(Content::Device { major, minor }) => {
                Some(Mapped::empty(inode::device_map(*major, *minor), 0))
            }
            Some(Content::Resize { indirect, blocks }) => {
                let mut map = [0; 60];
                crate::bytes::put32(&mut map, 13 * 4, *indirect as u32);
                let size = writer.nodes.get(number).size;
                Some(Mapped {
                    map,
                    flags: 0,
                    size,
                    blocks: *blocks,
                })
            }
            Some(Content::Nothing) => Some(Mapped::empty([0; 60], 0)),
        };
        all.push(mapped);
    }
    Ok(all)
}

fn write_extents(writer: &mut Writer, number: u32) -> Result<Mapped, WriteError> {
    let node = writer.nodes.get_mut(number);
    let size = node.size;
    let Content::Blocks(extents) = std::mem::replace(&mut node.content, Content::Nothing) else {
        return Ok(Mapped::empty([0; 60], size));
    };
    let data: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum();
    let tree = build_tree(writer, number, &extents)?;
    Ok(Mapped::extents(tree.root, size, data + tree.blocks))
}

fn build_tree(
    writer: &mut Writer,
    number: u32,
    extents: &[super::nodes::Extent],
) -> Result<extents::Tree, WriteError> {
    let seed = checksum::inode_seed(writer.seed, number, 0);
    extents::build(extents, seed, |raw| {
        let at = writer.take(1)?[0].start;
        writer.out.put(at * BLOCK_BYTES, raw)?;
        Ok(at)
    })
}

fn write_directory(writer: &mut Writer, number: u32) -> Result<Mapped, WriteError> {
    let node = writer.nodes.get(number);
    let Content::Directory {
        parent, children, ..
    } = &node.content
    else {
        return Ok(Mapped::empty([0; 60], 0));
    };
    let id = Identity {
        own: number,
        parent: *parent,
        seed: checksum::inode_seed(writer.seed, number, 0),
        hash_seed: superblock::hash_seed(&writer.options),
    };
    let entries: Vec<dir::Entry<'_>> = children
        .iter()
        .map(|(name, child)| dir::Entry {
            name,
            ino: *child,
            kind: writer.nodes.get(*child).entry_type(),
        })
        .collect();
    let min_blocks = if number == ino::LOST_FOUND {
        LOST_FOUND_BLOCKS
    } else {
        1
    };
    let built = dir::build(id, &entries, min_blocks)?;
    let count = built.blocks.len() as u64;
    let mut extents = Vec::new();
    let mut blocks = built.blocks.iter();
    let mut file = 0;
    for run in writer.take(count)? {
        push_run(&mut extents, file, run);
        file += run.len;
        for at in run.start..run.start + run.len {
            let raw = blocks
                .next()
                .expect("as many blocks were taken as there are");
            writer.out.put(at * BLOCK_BYTES, raw)?;
        }
    }
    let tree = build_tree(writer, number, &extents)?;
    let mut mapped = Mapped::extents(tree.root, count * BLOCK_BYTES, count + tree.blocks);
    if built.indexed {
        mapped.flags |= flag::INDEX;
    }
    Ok(mapped)
}

/// Writes the used part of the inode tables.
fn write_inodes(writer: &mut Writer, mapped: &[Option<Mapped>]) -> Result<(), WriteError> {
    for (number, mapped) in (1u32..).zip(&mapped[1..]) {
        let group = (number - 1) / writer.layout.inodes_per_group;
        let index = u64::from((number - 1) % writer.layout.inodes_per_group);
        let at = writer.layout.inode_table(group) * BLOCK_BYTES + index * INODE_SIZE as u64;
        let raw = match (writer.nodes.find(number), mapped) {
            (Some(node), Some(mapped)) => {
                let mut raw = inode::encode(node, mapped, writer.options.time);
                checksum::seal_inode(checksum::inode_seed(writer.seed, number, 0), &mut raw);
                raw
            }
            _ => [0; INODE_SIZE],
        };
        writer.out.put(at, &raw)?;
    }
    Ok(())
}

/// Writes the bitmaps of groups that are used and counts all groups. Unused groups have none on the disk: the kernel
/// knows what they would say.
fn write_bitmaps(writer: &mut Writer) -> Result<Vec<Group>, WriteError> {
    let mut groups = Vec::with_capacity(writer.layout.groups as usize);
    for number in 0..writer.layout.groups {
        let start = Layout::group_start(number);
        let len = writer.layout.group_len(number);
        let mut bitmap = [0xff; BLOCK];
        let mut free_blocks = 0;
        for run in writer.space.within(start, start + len) {
            free_blocks += run.len;
            clear_bits(&mut bitmap, (run.start - start) as usize, run.len as usize);
        }
        let untouched =
            len == GROUP_BLOCKS && len - free_blocks == writer.layout.base_blocks(number);
        let block_bitmap = if untouched && number + 1 != writer.layout.groups {
            None
        } else {
            writer
                .out
                .put(writer.layout.block_bitmap(number) * BLOCK_BYTES, &bitmap)?;
            Some(checksum::crc(writer.seed, &bitmap))
        };

        let per_group = writer.layout.inodes_per_group;
        let first = number * per_group + 1;
        let mut bitmap = [0xff; BLOCK];
        clear_bits(&mut bitmap, 0, per_group as usize);
        let (mut used, mut directories, mut last) = (0, 0, 0);
        for index in 0..per_group.min((writer.nodes.highest() + 1).saturating_sub(first)) {
            let node = writer.nodes.find(first + index);
            if node.is_some() || first + index < ino::LOST_FOUND {
                bitmap[index as usize / 8] |= 1 << (index % 8);
                used += 1;
                last = index + 1;
                directories += u32::from(node.is_some_and(Node::is_directory));
            }
        }
        let inode_bitmap = if used == 0 {
            None
        } else {
            writer
                .out
                .put(writer.layout.inode_bitmap(number) * BLOCK_BYTES, &bitmap)?;
            Some(checksum::crc(
                writer.seed,
                &bitmap[..per_group as usize / 8],
            ))
        };
        groups.push(Group {
            free_blocks,
            free_inodes: per_group - used,
            directories,
            unused_inodes: per_group - last,
            block_bitmap,
            inode_bitmap,
        });
    }
    Ok(groups)
}

fn clear_bits(bitmap: &mut [u8], start: usize, len: usize) {
    let (mut at, end) = (start, start + len);
    while at < end {
        if at.is_multiple_of(8) && end - at >= 8 {
            let bytes = (end - at) / 8;
            bitmap[at / 8..at / 8 + bytes].fill(0);
            at += bytes * 8;
        } else {
            bitmap[at / 8] &= !(1 << (at % 8));
            at += 1;
        }
    }
}

fn write_descriptors(
    writer: &mut Writer,
    groups: &[Group],
    counts: &Counts,
) -> Result<(), WriteError> {
    let mut table = Vec::new();
    for (number, group) in (0..).zip(groups) {
        table.extend_from_slice(&superblock::descriptor(
            &writer.layout,
            writer.seed,
            number,
            group,
        ));
    }
    table.resize(table.len().next_multiple_of(BLOCK), 0);
    let copies: Vec<u32> = writer.layout.backups().chain([0]).collect();
    for group in copies {
        let raw = superblock::encode(&writer.layout, &writer.options, counts, group);
        let start = Layout::group_start(group) * BLOCK_BYTES;
        writer.out.put(start + BLOCK_BYTES, &table)?;
        // A copy begins its block, the first one stands behind the boot sector.
        writer.out.put(
            start + if group == 0 { superblock::OFFSET } else { 0 },
            &raw,
        )?;
    }
    Ok(())
}
