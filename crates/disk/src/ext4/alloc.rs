//! The free space of an image in the making.

use std::collections::BTreeMap;

use super::layout::Layout;

/// Free runs a search looks at before it takes space in pieces.
const LOOK: usize = 16;

/// A run of blocks on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub start: u64,
    pub len: u64,
}

/// Free runs by their start, never touching each other.
#[derive(Debug)]
pub(super) struct Space {
    free: BTreeMap<u64, u64>,
    blocks: u64,
}

impl Space {
    pub(super) fn new(layout: &Layout) -> Self {
        let mut space = Self {
            free: BTreeMap::new(),
            blocks: 0,
        };
        for group in 0..layout.groups {
            let used = layout.base_blocks(group) + layout.packed_blocks(group);
            space.release(Run {
                start: Layout::group_start(group) + used,
                len: layout.group_len(group) - used,
            });
        }
        space
    }

    /// Number of free blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Takes `want` blocks, in one run if an early one is large enough, else in pieces from the front. Takes nothing
    /// when there is not enough.
    pub(super) fn take(&mut self, want: u64) -> Option<Vec<Run>> {
        if want > self.blocks {
            return None;
        }
        let mut runs = Vec::new();
        let whole = self
            .free
            .iter()
            .take(LOOK)
            .find(|(_, len)| **len >= want)
            .map(|(start, _)| *start);
        let mut left = want;
        while left > 0 {
            let start = whole.or_else(|| self.free.first_key_value().map(|(start, _)| *start))?;
            let len = self.free.remove(&start)?;
            let taken = len.min(left);
            if taken < len {
                self.free.insert(start + taken, len - taken);
            }
            runs.push(Run { start, len: taken });
            left -= taken;
        }
        self.blocks -= want;
        Some(runs)
    }

    /// Gives a run back.
    pub(super) fn release(&mut self, run: Run) {
        if run.len == 0 {
            return;
        }
        let Run { mut start, mut len } = run;
        self.blocks += len;
        if let Some((before, size)) = self
            .free
            .range(..start)
            .next_back()
            .map(|(start, len)| (*start, *len))
            && before + size == start
        {
            self.free.remove(&before);
            start = before;
            len += size;
        }
        if let Some(size) = self.free.remove(&(start + len)) {
            len += size;
        }
        self.free.insert(start, len);
    }

    /// Free runs that touch the blocks `start..end`, cut to them, ascending.
    pub(super) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Run> {
        let before = self.free.range(..start).next_back();
        before
            .into_iter()
            .chain(self.free.range(start..end))
            .filter_map(move |(at, len)| {
                let from = (*at).max(start);
                let to = (at + len).min(end);
                (from < to).then(|| Run {
                    start: from,
                    len: to - from,
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_space_joins_and_is_taken_again() {
        let mut space = Space {
            free: BTreeMap::from([(100, 50)]),
            blocks: 50,
        };
        assert_eq!(
            space.take(10).unwrap(),
            [Run {
                start: 100,
                len: 10
            }]
        );
        assert_eq!(
            space.take(10).unwrap(),
            [Run {
                start: 110,
                len: 10
            }]
        );
        space.release(Run {
            start: 100,
            len: 10,
        });
        assert_eq!(space.take(5).unwrap(), [Run { start: 100, len: 5 }]);
        assert_eq!(
            space.take(35).unwrap(),
            [
                Run { start: 105, len: 5 },
                Run {
                    start: 120,
                    len: 30
                }
            ]
        );
        assert!(space.take(1).is_none());
        space.release(Run {
            start: 120,
            len: 30,
        });
        space.release(Run {
            start: 110,
            len: 10,
        });
        assert_eq!(space.free, BTreeMap::from([(110, 40)]));
        assert_eq!(
            space.within(115, 130).collect::<Vec<_>>(),
            [Run {
                start: 115,
                len: 15
            }]
        );
    }
}
