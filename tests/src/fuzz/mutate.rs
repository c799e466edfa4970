//! Deterministic mutations of seeds, for machines without an instrumented build.

/// A small generator (xorshift64*): the same seed gives the same mutations everywhere.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Begins anew.
    pub fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `limit`; 0 for 0.
    fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 16) as usize)
            .checked_rem(limit)
            .unwrap_or(0)
    }
}

/// Values at which parsers stumble.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

/// Longest result: inputs do not grow for ever.
const LONGEST: usize = 256 << 10;

/// Changes `input` in one to four ways; `other` is what splices come from.
pub fn mutate(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..=random.below(4) {
        step(&mut out, other, random);
    }
    out.truncate(LONGEST);
    out
}

fn step(out: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(out.len());
    let scale = random.below(8);
    let some = 1 + random.below(1 << scale);
    let end = (at + some).min(out.len());
    match random.below(9) {
        0..=2 => {
            if let Some(byte) = out.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        3 => {
            if let Some(byte) = out.get_mut(at) {
                *byte = random.next() as u8;
            }
        }
        4 => {
            let edge = EDGES[random.below(EDGES.len())];
            let len = 1 << random.below(4);
            let bytes = if random.below(2) == 0 {
                edge.to_le_bytes()[..len].to_vec()
            } else {
                edge.to_be_bytes()[8 - len..].to_vec()
            };
            let len = len.min(out.len() - at);
            out[at..at + len].copy_from_slice(&bytes[..len]);
        }
        5 => out.truncate(at),
        6 => {
            out.drain(at..end);
        }
        7 => {
            let copy = out[at..end].to_vec();
            let to = random.below(out.len() + 1);
            out.splice(to..to, copy);
        }
        _ => {
            let from = random.below(other.len());
            let piece = &other[from..(from + some).min(other.len())];
            let end = if random.below(2) == 0 { at } else { end };
            out.splice(at..end, piece.iter().copied());
        }
    }
}
