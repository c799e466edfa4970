//! Archives that are cut, bent or made to hurt.

use std::io::{self, Read};

use hostel_model::tree::{Node, NodeMeta, TreeSink};
use proptest::{collection::vec, prelude::*};

use crate::{
    Format, ReadError, ReadOptions,
    header::BLOCK,
    read_archive,
    testing::{Item, MemTree, dir, file, link, read, write},
};

fn small() -> MemTree {
    let mut tree = MemTree::default();
    let meta = NodeMeta {
        mtime_nsec: 5,
        xattrs: vec![(b"user.a".to_vec(), b"1".to_vec())],
        ..NodeMeta::default()
    };
    for (path, item) in [
        (&b"a"[..], dir()),
        (b"a/big", file(&[1; 2000])),
        (b"a/link", link("x")),
        (&[b'l'; 200], file(b"long")),
        (b"z", Item::Fifo),
    ] {
        tree.0.insert(path.to_vec(), (meta.clone(), item));
    }
    tree
}

#[test]
fn a_cut_archive_is_an_error_or_a_whole_prefix() {
    let tree = small();
    let whole = write(&tree, Format::Tar);
    let (mut errors, mut prefixes) = (0, 0);
    for cut in 0..whole.len() {
        // Every block boundary, and some places between.
        if cut % BLOCK != 0 && cut % 97 != 0 {
            continue;
        }
        match read(&whole[..cut]) {
            Ok((got, summary)) => {
                assert!(cut % BLOCK == 0 || got == tree, "cut at {cut}");
                assert!(
                    got.0
                        .iter()
                        .all(|(path, entry)| tree.0.get(path) == Some(entry)),
                    "a prefix is whole"
                );
                let at_end = got == tree && summary.warnings.is_empty();
                assert!(
                    at_end || summary.warnings[0].contains("end mark"),
                    "{:?}",
                    summary.warnings
                );
                prefixes += 1;
            }
            Err(ReadError::Empty) => assert!(cut == 0, "only nothing is empty"),
            Err(ReadError::NotAnArchive { .. }) => assert!(cut < BLOCK),
            Err(ReadError::Truncated { .. }) => errors += 1,
            Err(other) => panic!("cut at {cut}: {other:?}"),
        }
    }
    assert!(errors > 20 && prefixes > 5, "{errors} {prefixes}");
}

#[test]
fn cut_or_bent_compressed_data_is_an_error() {
    let mut tree = small();
    let noise: Vec<u8> = (0..40_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    tree.0
        .insert(b"noise".to_vec(), (NodeMeta::default(), file(&noise)));
    for format in [Format::TarGz, Format::TarXz, Format::TarZst] {
        let whole = write(&tree, format);
        for cut in (20..whole.len() - 1).step_by(whole.len() / 37) {
            let error = read(&whole[..cut])
                .err()
                .unwrap_or_else(|| panic!("{format} cut at {cut}"));
            assert!(
                matches!(error, ReadError::Truncated { .. }),
                "{format} cut at {cut}: {error:?}"
            );
        }
        let mut refused = 0;
        for at in (20..whole.len()).step_by(whole.len() / 41) {
            let mut bent = whole.clone();
            bent[at] ^= 0x10;
            // A few bits of each format mean nothing; bent ones there change nothing.
            match read(&bent) {
                Ok((got, _)) => assert!(got == tree, "{format} bent at {at}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 35, "{format}: {refused}");
        // The last byte belongs to a checksum.
        assert!(read(&whole[..whole.len() - 1]).is_err(), "{format}");
    }
}

/// A receiver with a small disk.
struct Full(u64);

impl TreeSink for Full {
    fn entry(&mut self, _: &[u8], _: &NodeMeta, node: Node<'_>) -> io::Result<()> {
        if let Node::File { data, .. } = node {
            let mut buffer = [0; 4096];
            loop {
                let n = data.read(&mut buffer)? as u64;
                if n == 0 {
                    break;
                }
                self.0 = self.0.checked_sub(n).ok_or(io::ErrorKind::StorageFull)?;
            }
        }
        Ok(())
    }
}

#[test]
fn a_bomb_is_stopped_by_its_receiver() {
    let mut writer = crate::ArchiveWriter::new(Vec::new(), Format::TarZst).unwrap();
    let runs = [hostel_model::tree::DataRun {
        offset: 0,
        len: 1 << 30,
    }];
    let bomb = Node::File {
        size: 1 << 30,
        runs: &runs,
        data: &mut io::repeat(0).take(1 << 30),
    };
    writer.entry(b"bomb", &NodeMeta::default(), bomb).unwrap();
    let (bytes, _) = writer.finish().unwrap();
    assert!(bytes.len() < 1 << 20);
    let mut unpacked = 0;
    let error = read_archive(
        &bytes[..],
        &mut Full(1 << 20),
        &ReadOptions::default(),
        &mut |p| unpacked = p.unpacked,
    );
    assert!(matches!(error, Err(ReadError::Sink { path, .. }) if path == "bomb"));
    assert!(unpacked < 4 << 20, "stopped after {unpacked} bytes");
}

#[test]
fn decoders_are_kept_within_their_memory() {
    let tree = small();
    let tight = ReadOptions {
        decoder_memory: 1 << 20,
        ..ReadOptions::default()
    };
    let xz = write(&tree, Format::TarXz);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    io::Write::write_all(&mut encoder, &write(&tree, Format::Tar)).unwrap();
    let zst = encoder.finish().unwrap();
    for bytes in [&xz, &zst] {
        let refused = read_archive(&bytes[..], &mut MemTree::default(), &tight, &mut |_| {});
        assert!(
            matches!(refused, Err(ReadError::Compression { .. })),
            "{refused:?}"
        );
        assert!(read(bytes).is_ok());
    }
    let few = ReadOptions {
        max_members: 4,
        ..ReadOptions::default()
    };
    let plain = write(&tree, Format::Tar);
    assert!(matches!(
        read_archive(&plain[..], &mut MemTree::default(), &few, &mut |_| {}),
        Err(ReadError::TooMany(4))
    ));
}

/// An input that fails after some bytes.
struct Failing<'a>(&'a [u8]);

impl Read for Failing<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            Err(io::Error::other("the cable came off"))
        } else {
            self.0.read(out)
        }
    }
}

#[test]
fn an_input_that_fails_is_blamed_itself() {
    for format in Format::ALL {
        let whole = write(&small(), format);
        let got = read_archive(
            Failing(&whole[..whole.len() / 2]),
            &mut MemTree::default(),
            &ReadOptions::default(),
            &mut |_| {},
        );
        assert!(
            matches!(&got, Err(ReadError::Input(error)) if error.to_string() == "the cable came off"),
            "{format}: {got:?}"
        );
    }
}

/// A receiver that does not read data.
struct Deaf(u64);

impl TreeSink for Deaf {
    fn entry(&mut self, _: &[u8], _: &NodeMeta, _: Node<'_>) -> io::Result<()> {
        self.0 += 1;
        Ok(())
    }
}

#[test]
fn data_that_is_not_read_is_passed_over() {
    let tree = small();
    let mut deaf = Deaf(0);
    read_archive(
        &write(&tree, Format::Tar)[..],
        &mut deaf,
        &ReadOptions::default(),
        &mut |_| {},
    )
    .expect("readable");
    assert_eq!(deaf.0, tree.0.len() as u64);
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_a_panic(bytes in vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes);
    }

    #[test]
    fn any_compressed_bytes_are_judged_without_a_panic(kind in 0usize..4, bytes in vec(any::<u8>(), 0..300)) {
        let magic: &[u8] = [&b"\x1f\x8b\x08\0\0\0\0\0\0\xff"[..], b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4F", b"\x28\xb5\x2f\xfd\x24", b"BZh91AY&SY"][kind];
        let _ = read(&[magic, &bytes].concat());
    }

    #[test]
    fn bent_archives_are_judged_without_a_panic(changes in vec((0usize..6000, any::<u8>()), 1..20)) {
        let mut bytes = write(&small(), Format::Tar);
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
            // With its checksum mended, a bent header gets past the first check.
            let start = at / BLOCK * BLOCK;
            let block = &mut bytes[start..start + BLOCK];
            if &block[257..262] == b"ustar" {
                block[148..156].copy_from_slice(b"        ");
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let mut deaf = Deaf(0);
        let _ = read_archive(&bytes[..], &mut deaf, &ReadOptions::default(), &mut |_| {});
    }
}
