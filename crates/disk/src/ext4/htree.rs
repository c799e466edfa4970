//! Hashed directories: the half-MD4 hash of names and the index over leaves.

use super::{BLOCK, checksum};
use crate::bytes::{put16, put32};

/// Entries in the index of the first block, with room for the checksum.
const ROOT_LIMIT: usize = (BLOCK - 32 - 8) / 8;
/// Entries in an index block.
const NODE_LIMIT: usize = (BLOCK - 8 - 8) / 8;
/// The most leaves two levels can tell of.
pub(super) const LEAVES_MAX: usize = ROOT_LIMIT * NODE_LIMIT;

fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    const K2: u32 = 0x5a82_7999;
    const K3: u32 = 0x6ed9_eba1;
    let choose = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let majority = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let parity = |x: u32, y: u32, z: u32| x ^ y ^ z;
    // Four steps turn the roles of a, b, c and d full circle.
    let round = |s: &mut [u32; 4],
                 f: &dyn Fn(u32, u32, u32) -> u32,
                 order: [usize; 8],
                 shifts: [u32; 4],
                 add: u32| {
        for (step, index) in order.into_iter().enumerate() {
            let a = (4 - step % 4) % 4;
            let mixed = f(s[(a + 1) % 4], s[(a + 2) % 4], s[(a + 3) % 4]);
            s[a] = s[a]
                .wrapping_add(mixed)
                .wrapping_add(input[index])
                .wrapping_add(add)
                .rotate_left(shifts[step % 4]);
        }
    };
    let mut s = *state;
    round(&mut s, &choose, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19], 0);
    round(
        &mut s,
        &majority,
        [1, 3, 5, 7, 0, 2, 4, 6],
        [3, 5, 9, 13],
        K2,
    );
    round(
        &mut s,
        &parity,
        [3, 7, 2, 6, 1, 5, 0, 4],
        [3, 9, 11, 15],
        K3,
    );
    for (word, mixed) in state.iter_mut().zip(s) {
        *word = word.wrapping_add(mixed);
    }
}

/// Turns up to 32 bytes into words. Bytes are signed, as the flag in our superblock says.
fn words(part: &[u8], left: usize) -> [u32; 8] {
    let pad = (left as u32) | ((left as u32) << 8);
    let pad = pad | (pad << 16);
    let mut out = [pad; 8];
    for (chunk, word) in part.chunks(4).zip(&mut out) {
        *word = chunk.iter().fold(pad, |value, byte| {
            (i32::from(*byte as i8) as u32).wrapping_add(value << 8)
        });
    }
    out
}

/// Returns major and minor hash of a name.
pub(super) fn hash(name: &[u8], seed: [u32; 4]) -> (u32, u32) {
    let mut state = if seed == [0; 4] {
        [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]
    } else {
        seed
    };
    let mut rest = name;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.len().min(32));
        transform(&mut state, &words(part, rest.len()));
        rest = after;
    }
    // The highest value means "end of directory", the lowest bit "goes on from the block before".
    let major = match state[1] & !1 {
        0xffff_fffe => 0xffff_fffc,
        major => major,
    };
    (major, state[2])
}

/// Builds the index blocks of a directory: the first block of the directory and the ones that follow it, before the
/// leaves. `leaves` holds the hash at which each leaf begins, with the lowest bit set if it goes on from the one before.
pub(super) fn index(own: u32, parent: u32, seed: u32, leaves: &[u32]) -> Vec<[u8; BLOCK]> {
    let mut root = [0; BLOCK];
    put32(&mut root, 0, own);
    root[4..10].copy_from_slice(&[12, 0, 1, 2, b'.', 0]);
    put32(&mut root, 12, parent);
    put16(&mut root, 16, (BLOCK - 12) as u16);
    root[18..22].copy_from_slice(&[2, 2, b'.', b'.']);
    root[28] = 1; // half MD4
    root[29] = 8; // bytes of this description
    if leaves.len() <= ROOT_LIMIT {
        let entries: Vec<(u32, u32)> = leaves
            .iter()
            .zip(1..)
            .map(|(hash, block)| (*hash, block))
            .collect();
        counted(&mut root, 32, ROOT_LIMIT, &entries);
        checksum::seal_index(seed, &mut root, 32);
        return vec![root];
    }
    root[30] = 1; // one level between
    let nodes = leaves.len().div_ceil(NODE_LIMIT);
    let share = leaves.len().div_ceil(nodes);
    let first_leaf = 1 + leaves.chunks(share).len() as u32;
    let entries: Vec<(u32, u32)> = leaves
        .iter()
        .zip(first_leaf..)
        .map(|(hash, block)| (*hash, block))
        .collect();
    let mut above = Vec::new();
    let mut blocks = vec![root];
    for (chunk, number) in entries.chunks(share).zip(1..) {
        let mut node = [0; BLOCK];
        put16(&mut node, 4, BLOCK as u16);
        counted(&mut node, 8, NODE_LIMIT, chunk);
        checksum::seal_index(seed, &mut node, 8);
        above.push((chunk[0].0, number));
        blocks.push(node);
    }
    counted(&mut blocks[0], 32, ROOT_LIMIT, &above);
    checksum::seal_index(seed, &mut blocks[0], 32);
    blocks
}

/// Writes index entries; the counts take the place of the first entry's hash, which nobody needs.
fn counted(raw: &mut [u8], at: usize, limit: usize, entries: &[(u32, u32)]) {
    for (number, (hash, block)) in entries.iter().enumerate() {
        put32(raw, at + number * 8, *hash);
        put32(raw, at + number * 8 + 4, *block);
    }
    put16(raw, at, limit as u16);
    put16(raw, at + 2, entries.len() as u16);
}
