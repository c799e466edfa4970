//! Directories as blocks: one plain block, or hashed leaves under an index.

use super::{BLOCK, WriteError, checksum, htree};
use crate::bytes::{put16, put32};

/// Bytes of a block before the checksum's entry.
const ROOM: usize = BLOCK - 12;
/// How far leaves are filled, so that the first new name does not split one.
const FILL: usize = ROOM * 7 / 8;

/// A name in a directory.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub name: &'a [u8],
    pub ino: u32,
    pub kind: u8,
}

impl Entry<'_> {
    fn len(&self) -> usize {
        (8 + self.name.len()).next_multiple_of(4)
    }
}

/// A directory ready to be written.
pub(super) struct Built {
    pub blocks: Vec<[u8; BLOCK]>,
    /// Whether there is an index.
    pub indexed: bool,
}

/// Whose directory it is.
#[derive(Clone, Copy)]
pub(super) struct Identity {
    pub own: u32,
    pub parent: u32,
    /// The checksum seed of its inode.
    pub seed: u32,
    /// The file system's seed for hashes of names.
    pub hash_seed: [u32; 4],
}

/// Fills one block; the last entry takes the space that is left.
fn leaf(seed: u32, entries: &[Entry<'_>]) -> [u8; BLOCK] {
    let mut raw = [0; BLOCK];
    let mut at = 0;
    for (number, entry) in entries.iter().enumerate() {
        let len = if number + 1 == entries.len() {
            ROOM - at
        } else {
            entry.len()
        };
        put32(&mut raw, at, entry.ino);
        put16(&mut raw, at + 4, len as u16);
        raw[at + 6] = entry.name.len() as u8;
        raw[at + 7] = entry.kind;
        raw[at + 8..at + 8 + entry.name.len()].copy_from_slice(entry.name);
        at += len;
    }
    if entries.is_empty() {
        put16(&mut raw, 4, ROOM as u16);
    }
    checksum::seal_leaf(seed, &mut raw);
    raw
}

/// Builds the blocks of a directory, at least `min_blocks` if it is a plain one.
pub(super) fn build(
    id: Identity,
    children: &[Entry<'_>],
    min_blocks: usize,
) -> Result<Built, WriteError> {
    let plain_len = 24 + children.iter().map(Entry::len).sum::<usize>();
    if plain_len <= ROOM {
        let mut entries = vec![
            Entry {
                name: b".",
                ino: id.own,
                kind: 2,
            },
            Entry {
                name: b"..",
                ino: id.parent,
                kind: 2,
            },
        ];
        entries.extend_from_slice(children);
        let mut blocks = vec![leaf(id.seed, &entries)];
        blocks.resize_with(min_blocks.max(1), || leaf(id.seed, &[]));
        return Ok(Built {
            blocks,
            indexed: false,
        });
    }
    let mut hashed: Vec<((u32, u32), Entry<'_>)> = children
        .iter()
        .map(|entry| (htree::hash(entry.name, id.hash_seed), *entry))
        .collect();
    hashed.sort_unstable_by(|a, b| (a.0, a.1.name).cmp(&(b.0, b.1.name)));

    let mut leaves = Vec::new();
    let mut begins = Vec::new();
    let mut start = 0;
    while start < hashed.len() {
        let mut end = start;
        let mut used = 0;
        while end < hashed.len() && used + hashed[end].1.len() <= FILL {
            used += hashed[end].1.len();
            end += 1;
        }
        let hash = hashed[start].0.0;
        let goes_on = start > 0 && hashed[start - 1].0.0 == hash;
        begins.push(hash | u32::from(goes_on));
        let entries: Vec<Entry<'_>> = hashed[start..end].iter().map(|(_, entry)| *entry).collect();
        leaves.push(leaf(id.seed, &entries));
        start = end;
    }
    if leaves.len() > htree::LEAVES_MAX {
        return Err(WriteError::Entry {
            path: format!("directory with inode {}", id.own),
            reason: format!("{} names are too many for one directory", children.len()),
        });
    }
    let mut blocks = htree::index(id.own, id.parent, id.seed, &begins);
    blocks.append(&mut leaves);
    Ok(Built {
        blocks,
        indexed: true,
    })
}
