//! Damaged and hostile images: the reader must end, with the right tree or with an error, and never panic.

use std::{io, time::Instant};

use crate::common::{Tree, file, meta};
use hostel_disk::ext4::Reader;
use hostel_model::{
    Bytes,
    tree::{Node, NodeMeta, TreeSink},
};
use proptest::prelude::*;

/// Takes everything and counts it.
#[derive(Default)]
struct Count {
    entries: u64,
    bytes: u64,
}

impl TreeSink for Count {
    fn entry(&mut self, _: &[u8], _: &NodeMeta, node: Node<'_>) -> io::Result<()> {
        self.entries += 1;
        if let Node::File { data, .. } = node {
            self.bytes += io::copy(data, &mut io::sink())?;
        }
        Ok(())
    }
}

/// A small image with directories of both forms, a deep extent tree, links and attributes; without its journal's and
/// tables' zeros it would be a few dozen blocks.
fn image() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let mut tree = Tree::default();
    for number in 0..300 {
        tree.add(
            format!("many/a-name-of-some-length-{number}").as_bytes(),
            meta(0o644),
            file(b"x"),
        );
    }
    let runs = (0..800u64)
        .map(|number| (number * 8192, vec![1; 10]))
        .collect();
    tree.add(
        b"torn",
        meta(0o644),
        crate::common::Held::File {
            size: 800 * 8192,
            runs,
        },
    );
    let attributes = vec![
        (b"user.a".to_vec(), vec![1; 20]),
        (b"user.b".to_vec(), vec![2; 2000]),
    ];
    tree.add(
        b"dressed",
        NodeMeta {
            xattrs: attributes,
            ..meta(0o755)
        },
        crate::common::Held::Directory,
    );
    tree.add(
        b"link",
        meta(0o777),
        crate::common::Held::Symlink(vec![b'l'; 100]),
    );
    tree.add(
        b"hard",
        meta(0),
        crate::common::Held::HardLink(b"torn".to_vec()),
    );
    crate::common::make(&path, Bytes::mib(16), &tree);
    fs_err::read(&path).unwrap()
}

/// The offsets of blocks that hold anything.
fn used(image: &[u8]) -> Vec<usize> {
    image
        .chunks(4096)
        .enumerate()
        .filter(|(_, raw)| raw.iter().any(|byte| *byte != 0))
        .map(|(at, _)| at * 4096)
        .collect()
}

/// Switches checksums off, so that damage gets past them.
fn without_checksums(image: &mut [u8]) {
    image[1024 + 100 + 1] &= !4;
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let mut whole = image();
    let mut count = Count::default();
    Reader::open(whole.as_slice())
        .unwrap()
        .walk(&mut count)
        .unwrap();
    assert_eq!(count.entries, 306);
    without_checksums(&mut whole);
    let blocks = used(&whole);
    let start = Instant::now();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let hit = (
        0..blocks.len(),
        0usize..4096,
        prop_oneof![Just(0u8), Just(0xff), any::<u8>()],
        1usize..9,
    );
    runner
        .run(&proptest::collection::vec(hit, 1..12), |hits| {
            let mut raw = whole.clone();
            for (block, offset, byte, len) in hits {
                let at = blocks[block] + offset;
                let end = (at + len).min(raw.len());
                raw[at..end].fill(byte);
            }
            let mut count = Count::default();
            if let Ok(reader) = Reader::open(raw.as_slice()) {
                let _ = reader.walk(&mut count);
                let _ = reader.read_file(b"many/a-name-of-some-length-7", 100);
            }
            prop_assert!(
                count.bytes <= 2 * raw.len() as u64,
                "{} bytes came out of {}",
                count.bytes,
                raw.len()
            );
            Ok(())
        })
        .unwrap();
    assert!(
        start.elapsed().as_secs() < 120,
        "damage made the reader slow"
    );
}

#[test]
fn cut_and_foreign_disks_are_refused() {
    let whole = image();
    for len in [0, 1, 1024, 2047, 2048, 4096, 100_000, 5 << 20] {
        let mut count = Count::default();
        let result = Reader::open(&whole[..len]).and_then(|reader| reader.walk(&mut count));
        assert!(result.is_err(), "{len}");
    }
    assert!(Reader::open(vec![0u8; 1 << 20].as_slice()).is_err());
}

#[test]
fn checksums_catch_a_flipped_bit_in_an_inode() {
    let mut raw = image();
    let descriptor = &raw[4096..];
    let table =
        u32::from_le_bytes([descriptor[8], descriptor[9], descriptor[10], descriptor[11]]) as usize;
    raw[table * 4096 + 256 + 2] ^= 1; // the owner of the root
    let error = Reader::open(raw.as_slice())
        .unwrap()
        .walk(&mut Count::default())
        .unwrap_err();
    assert!(error.to_string().contains("inode 2"), "{error}");
}

#[test]
fn directory_in_two_places_ends_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let mut tree = Tree::default();
    tree.add(b"aaa/bbb/ccc", meta(0o644), file(b"x"));
    crate::common::make(&path, Bytes::mib(8), &tree);
    let mut raw = fs_err::read(&path).unwrap();
    without_checksums(&mut raw);
    // The entry `bbb` gets the number of the root.
    let at = raw
        .windows(8)
        .position(|window| window == b"\x03\x02bbb\0\0\0" || &window[1..5] == b"\x02bbb")
        .unwrap();
    let number = at - if raw[at] == 3 { 6 } else { 5 };
    raw[number..number + 4].copy_from_slice(&2u32.to_le_bytes());
    let error = Reader::open(raw.as_slice())
        .unwrap()
        .walk(&mut Count::default())
        .unwrap_err();
    assert!(error.to_string().contains("two places"), "{error}");
}
