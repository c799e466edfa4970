//! Sparse files: the four ways in which GNU tar writes down where the data is.

use hostel_model::tree::DataRun;

use crate::{
    header::{BLOCK, Block, number},
    pax::unsigned,
};

/// The most runs of data one file may have: a map of them is kept in memory.
pub(crate) const MAX_RUNS: usize = 1 << 20;

/// The `GNU.sparse.*` keywords of a member.
#[derive(Clone, Debug, Default)]
pub(crate) struct SparseKeys {
    version: (Option<u64>, Option<u64>),
    /// The file's real name in versions 0.1 and 1.0; the ordinary one is made up there.
    pub(crate) name: Option<Vec<u8>>,
    size: Option<u64>,
    runs: Vec<DataRun>,
    offset: Option<u64>,
    mapped: bool,
}

/// Where a member's map is.
pub(crate) enum SparseForm {
    /// Not a sparse member.
    None,
    /// In the extended header (0.0, 0.1).
    Header { size: u64, runs: Vec<DataRun> },
    /// At the beginning of the data (1.0).
    Data { size: u64 },
}

impl SparseKeys {
    /// Takes one keyword without its `GNU.sparse.`.
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let parse = |value| unsigned(value).ok_or("its sparse map is malformed");
        match key {
            b"major" => self.version.0 = Some(parse(value)?),
            b"minor" => self.version.1 = Some(parse(value)?),
            b"name" => self.name = (!value.is_empty()).then(|| value.to_vec()),
            b"size" | b"realsize" => self.size = Some(parse(value)?),
            b"numblocks" => self.mapped = true,
            b"offset" => self.offset = Some(parse(value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or("its sparse map is malformed")?;
                self.push(offset, parse(value)?)?;
            }
            b"map" => {
                self.runs.clear();
                let mut numbers = value.split(|b| *b == b',').filter(|_| !value.is_empty());
                while let Some(offset) = numbers.next() {
                    let len = numbers.next().ok_or("its sparse map is malformed")?;
                    self.push(parse(offset)?, parse(len)?)?;
                }
                self.mapped = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, len: u64) -> Result<(), &'static str> {
        self.mapped = true;
        if self.runs.len() == MAX_RUNS {
            return Err("its sparse map is too long");
        }
        self.runs.push(DataRun { offset, len });
        Ok(())
    }

    /// Tells which form the keywords describe.
    pub(crate) fn form(&mut self) -> Result<SparseForm, &'static str> {
        match self.version {
            (Some(1), Some(0)) => {
                let size = self.size.ok_or("it is sparse and does not tell its size")?;
                Ok(SparseForm::Data { size })
            }
            (None | Some(0), _) if self.mapped || self.size.is_some() => {
                let size = self.size.ok_or("it is sparse and does not tell its size")?;
                Ok(SparseForm::Header {
                    size,
                    runs: std::mem::take(&mut self.runs),
                })
            }
            (None | Some(0), _) => Ok(SparseForm::None),
            _ => Err("it is a sparse file in a form that is not supported"),
        }
    }
}

/// Reads the map that version 1.0 puts in front of the data, fed block by block.
#[derive(Default)]
pub(crate) struct MapReader {
    count: Option<u64>,
    numbers: Vec<u64>,
    pending: Vec<u8>,
}

impl MapReader {
    /// Takes the next block; returns the map when it is complete.
    pub(crate) fn feed(&mut self, block: &Block) -> Result<Option<Vec<DataRun>>, &'static str> {
        for byte in block {
            if *byte != b'\n' {
                if self.pending.len() == 20 {
                    return Err("its sparse map is malformed");
                }
                self.pending.push(*byte);
                continue;
            }
            let value = unsigned(&self.pending).ok_or("its sparse map is malformed")?;
            self.pending.clear();
            match self.count {
                None if value > MAX_RUNS as u64 => return Err("its sparse map is too long"),
                None => self.count = Some(value),
                Some(_) => self.numbers.push(value),
            }
            if self
                .count
                .is_some_and(|count| self.numbers.len() as u64 == 2 * count)
            {
                let pairs = self.numbers.chunks_exact(2);
                return Ok(Some(
                    pairs
                        .map(|p| DataRun {
                            offset: p[0],
                            len: p[1],
                        })
                        .collect(),
                ));
            }
        }
        Ok(None)
    }
}

/// Writes the map of version 1.0, padded to whole blocks.
pub(crate) fn encode_map(size: u64, runs: &[DataRun]) -> Vec<u8> {
    let mut text = String::new();
    let end = runs.last().map_or(0, |run| run.offset + run.len);
    // GNU tar marks a hole at the end by an empty run there.
    let tail = (end < size).then_some(DataRun {
        offset: size,
        len: 0,
    });
    let count = runs.len() + usize::from(tail.is_some());
    text.push_str(&count.to_string());
    text.push('\n');
    for run in runs.iter().chain(&tail) {
        for n in [run.offset, run.len] {
            text.push_str(&n.to_string());
            text.push('\n');
        }
    }
    let mut map = text.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// Reads the map in an old GNU header (type `S`); tells also the size and whether more blocks of map follow.
pub(crate) fn old_gnu_header(block: &Block) -> Result<(u64, Vec<DataRun>, bool), &'static str> {
    let size = number(&block[483..495]).and_then(|n| u64::try_from(n).ok());
    let mut runs = Vec::new();
    old_gnu_entries(&block[386..482], &mut runs)?;
    Ok((
        size.ok_or("its sparse map is malformed")?,
        runs,
        block[482] != 0,
    ))
}

/// Reads one more block of an old GNU map; tells whether more follow.
pub(crate) fn old_gnu_extension(
    block: &Block,
    runs: &mut Vec<DataRun>,
) -> Result<bool, &'static str> {
    old_gnu_entries(&block[..504], runs)?;
    Ok(block[504] != 0)
}

fn old_gnu_entries(bytes: &[u8], runs: &mut Vec<DataRun>) -> Result<(), &'static str> {
    for entry in bytes.chunks_exact(24) {
        if entry[12] == 0 {
            break;
        }
        let part = |field| number(field).and_then(|n| u64::try_from(n).ok());
        let (Some(offset), Some(len)) = (part(&entry[..12]), part(&entry[12..])) else {
            return Err("its sparse map is malformed");
        };
        if runs.len() == MAX_RUNS {
            return Err("its sparse map is too long");
        }
        runs.push(DataRun { offset, len });
    }
    Ok(())
}

/// Checks a map against the file's size and the bytes stored, and drops empty runs.
pub(crate) fn check(size: u64, stored: u64, runs: &mut Vec<DataRun>) -> Result<(), &'static str> {
    let (mut end, mut sum) = (0u64, 0u64);
    for run in &*runs {
        if run.offset < end {
            return Err("its sparse map is out of order");
        }
        end = run
            .offset
            .checked_add(run.len)
            .filter(|end| *end <= size)
            .ok_or("its sparse map exceeds its size")?;
        sum += run.len;
    }
    if sum != stored {
        return Err("its sparse map does not match its data");
    }
    runs.retain(|run| run.len != 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(pairs: &[(u64, u64)]) -> Vec<DataRun> {
        pairs
            .iter()
            .map(|(offset, len)| DataRun {
                offset: *offset,
                len: *len,
            })
            .collect()
    }

    #[test]
    fn maps_are_checked() {
        for (size, stored, map, good) in [
            (10, 3, vec![(0, 1), (4, 2)], true),
            (10, 3, vec![(0, 1), (4, 2), (10, 0)], true),
            (10, 0, vec![], true),
            (10, 3, vec![(4, 2), (0, 1)], false),
            (10, 3, vec![(0, 2), (1, 1)], false),
            (10, 4, vec![(0, 1), (4, 2)], false),
            (5, 3, vec![(0, 1), (4, 2)], false),
            (u64::MAX, 2, vec![(u64::MAX, 2)], false),
        ] {
            let mut map = runs(&map);
            assert_eq!(check(size, stored, &mut map).is_ok(), good, "{map:?}");
            assert!(!good || map.iter().all(|run| run.len > 0));
        }
    }

    #[test]
    fn keywords_of_every_version() {
        let mut keys = SparseKeys::default();
        for (key, value) in [
            ("size", "100"),
            ("numblocks", "2"),
            ("offset", "0"),
            ("numbytes", "4"),
            ("offset", "50"),
            ("numbytes", "5"),
        ] {
            keys.set(key.as_bytes(), value.as_bytes()).expect("0.0");
        }
        assert!(
            matches!(keys.form(), Ok(SparseForm::Header { size: 100, runs: got }) if got == runs(&[(0, 4), (50, 5)]))
        );

        let mut keys = SparseKeys::default();
        for (key, value) in [("size", "100"), ("map", "0,4,50,5"), ("name", "x")] {
            keys.set(key.as_bytes(), value.as_bytes()).expect("0.1");
        }
        assert!(
            matches!(keys.form(), Ok(SparseForm::Header { size: 100, runs: got }) if got == runs(&[(0, 4), (50, 5)]))
        );

        let mut keys = SparseKeys::default();
        for (key, value) in [("major", "1"), ("minor", "0"), ("realsize", "7")] {
            keys.set(key.as_bytes(), value.as_bytes()).expect("1.0");
        }
        assert!(matches!(keys.form(), Ok(SparseForm::Data { size: 7 })));

        assert!(matches!(SparseKeys::default().form(), Ok(SparseForm::None)));
        let mut keys = SparseKeys::default();
        keys.set(b"major", b"2").expect("a number");
        assert!(keys.form().is_err());
        for (key, value) in [
            ("map", "1"),
            ("map", "1,x"),
            ("numbytes", "1"),
            ("size", "-1"),
        ] {
            assert!(
                SparseKeys::default()
                    .set(key.as_bytes(), value.as_bytes())
                    .is_err(),
                "{key}={value}"
            );
        }
    }

    #[test]
    fn a_written_map_reads_back() {
        for (size, map) in [
            (0, vec![]),
            (4096, vec![]),
            (10, vec![(0, 10)]),
            (1 << 40, (0..200).map(|i| (i << 20, 4096)).collect()),
        ] {
            let map = runs(&map);
            let bytes = encode_map(size, &map);
            assert_eq!(bytes.len() % BLOCK, 0);
            let mut reader = MapReader::default();
            let mut got = None;
            for block in bytes.chunks_exact(BLOCK) {
                assert!(got.is_none(), "no block after the map");
                got = reader.feed(block.try_into().unwrap()).expect("well-formed");
            }
            let mut got = got.expect("complete");
            check(size, map.iter().map(|run| run.len).sum(), &mut got).expect("valid");
            assert_eq!(got, map);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_block_is_read_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, BLOCK)) {
            let block: Block = bytes.try_into().unwrap();
            let _ = (old_gnu_header(&block), old_gnu_extension(&block, &mut Vec::new()), MapReader::default().feed(&block));
        }
    }
}
