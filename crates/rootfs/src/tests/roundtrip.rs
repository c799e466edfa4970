//! What the writer writes, the reader reads.

use hostel_model::tree::{DataRun, NodeMeta};
use proptest::{collection::vec, prelude::*};

use crate::{
    ArchiveWriter, Format, ReadOptions, WriteSummary,
    header::BLOCK,
    testing::{Item, MemTree, Trickle, dir, file, link, read, write},
};

fn sample() -> MemTree {
    let mut tree = MemTree::default();
    let meta = |mode: u16| NodeMeta {
        mode,
        uid: 1000,
        gid: 100,
        mtime: 1_700_000_000,
        mtime_nsec: 123_456_789,
        xattrs: vec![],
    };
    let mut add = |path: &[u8], meta: NodeMeta, item: Item| {
        tree.0.insert(path.to_vec(), (meta, item));
    };
    add(b"", meta(0o755), dir());
    add(b"etc", meta(0o755), dir());
    add(b"etc/os-release", meta(0o644), file(b"ID=debian\n"));
    add(
        b"sbin/ping",
        NodeMeta {
            xattrs: vec![(
                b"security.capability".to_vec(),
                b"\x01\0\0\x02\0 \0\0".to_vec(),
            )],
            ..meta(0o4755)
        },
        file(&vec![7; 70_000]),
    );
    add(b"link", meta(0o777), link("etc/os-release"));
    add(
        &[b'n'; 255],
        NodeMeta {
            uid: u32::MAX - 1,
            gid: 1 << 30,
            mtime: -5,
            ..meta(0o600)
        },
        file(b""),
    );
    add(
        b"caf\xc3\xa9/\xff\xfe\n",
        NodeMeta {
            mtime: 1 << 40,
            ..meta(0o1777)
        },
        dir(),
    );
    add(
        &[&[b'\xff'; 200][..], b"/x"].concat(),
        meta(0o644),
        link(&"t".repeat(4000)),
    );
    add(
        b"dev/tty",
        NodeMeta {
            mtime_nsec: 0,
            ..meta(0o666)
        },
        Item::Char(5, 0),
    );
    add(b"dev/big", meta(0o660), Item::Block(4095, 1 << 30));
    add(b"pipe", meta(0o600), Item::Fifo);
    add(
        b"zero-hole",
        meta(0o644),
        Item::File {
            size: 1 << 40,
            runs: vec![],
            data: vec![],
        },
    );
    add(
        b"sparse",
        meta(0o644),
        Item::File {
            size: 9 << 30,
            runs: vec![
                DataRun {
                    offset: 4096,
                    len: 3,
                },
                DataRun {
                    offset: 8 << 30,
                    len: 1000,
                },
            ],
            data: vec![3; 1003],
        },
    );
    add(
        b"hard",
        meta(0o644),
        Item::HardLink(b"etc/os-release".to_vec()),
    );
    tree
}

#[test]
fn every_format_gives_the_tree_back_even_through_a_pipe() {
    let tree = sample();
    for format in Format::ALL {
        let bytes = write(&tree, format);
        assert_eq!(bytes, write(&tree, format), "{format} is deterministic");
        let mut got = MemTree::default();
        let mut last = crate::Progress::default();
        let summary = crate::read_archive(
            Trickle(&bytes),
            &mut got,
            &ReadOptions::default(),
            &mut |p| last = p,
        )
        .expect("readable");
        assert_eq!(got, tree, "{format}");
        assert_eq!(summary.members, tree.0.len() as u64);
        assert_eq!(
            (last.taken, last.members),
            (bytes.len() as u64, summary.members)
        );
        assert_eq!(summary.warnings, [""; 0]);
        assert!(summary.facts.looks_like_linux);
        assert_eq!(
            summary.facts.os_release.as_deref(),
            Some(&b"ID=debian\n"[..])
        );
    }
}

#[test]
fn concatenated_streams_and_bzip2_are_read() {
    let tree = sample();
    let plain = write(&tree, Format::Tar);
    let (a, b) = plain.split_at(plain.len() / 2);
    let gzip = |part: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, part).unwrap();
        encoder.finish().unwrap()
    };
    let xz = |part: &[u8]| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
        std::io::Write::write_all(&mut encoder, part).unwrap();
        encoder.finish().unwrap()
    };
    let bzip2 = |part: &[u8]| {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        std::io::Write::write_all(&mut encoder, part).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |part: &[u8]| zstd::encode_all(part, 1).unwrap();
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
    for (name, bytes) in [
        ("gzip", [gzip(a), gzip(b), vec![0; 100]].concat()),
        ("xz", [xz(a), vec![0; 8], xz(b)].concat()),
        ("bzip2", [bzip2(a), bzip2(b)].concat()),
        ("zstd", [&skippable[..], &zstd(a), &zstd(b)].concat()),
    ] {
        let (got, summary) = read(&bytes).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(got, tree, "{name}");
        assert_eq!(summary.compression.to_string(), name);
        assert_eq!(summary.warnings, [""; 0]);
    }
    let (_, summary) = read(&[gzip(&plain), b"rubbish".to_vec()].concat()).expect("readable");
    assert!(summary.warnings[0].contains("after the compressed data"));
    let half = read(&[gzip(a), b"rubbish".to_vec()].concat()).expect_err("cut");
    assert!(
        matches!(half, crate::ReadError::Truncated { .. }),
        "{half:?}"
    );
}

#[test]
fn sockets_are_left_out_and_counted() {
    let mut writer = ArchiveWriter::new(Vec::new(), Format::Tar).unwrap();
    Item::Socket.push(b"run/sock", &mut writer).unwrap();
    dir().push(b"run", &mut writer).unwrap();
    let (bytes, summary) = writer.finish().unwrap();
    assert_eq!(
        summary,
        WriteSummary {
            members: 1,
            bytes: 0,
            sockets_left_out: 1
        }
    );
    assert_eq!(bytes.len() % (20 * BLOCK), 0);
    assert_eq!(read(&bytes).unwrap().0.0.len(), 1);
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        vec(1u8..=255, 1..6),
        vec(1u8..=255, 90..255),
        "[a-zé]{1,8}".prop_map(String::into_bytes),
    ]
    .prop_map(|mut part| {
        part.iter_mut()
            .filter(|b| **b == b'/')
            .for_each(|b| *b = b'_');
        if matches!(&part[..], b"." | b"..") {
            b"dots".to_vec()
        } else {
            part
        }
    });
    vec(part, 1..4).prop_map(|parts| parts.join(&b'/'))
}

fn metas() -> impl Strategy<Value = NodeMeta> {
    let xattrs =
        proptest::collection::btree_map(vec(1u8..=255, 1..40), vec(any::<u8>(), 0..300), 0..4);
    (
        0u16..0o10000,
        any::<u32>(),
        any::<u32>(),
        any::<i64>(),
        0u32..1_000_000_000,
        xattrs,
    )
        .prop_map(|(mode, uid, gid, mtime, mtime_nsec, xattrs)| NodeMeta {
            mode,
            uid,
            gid,
            // The text of the lowest seconds needs one digit more than 63 bits have.
            mtime: mtime.max(i64::MIN + 2),
            mtime_nsec,
            xattrs: xattrs.into_iter().collect(),
        })
}

fn items() -> impl Strategy<Value = Item> {
    let runs = vec((1u64..5000, 1u64..2000), 0..5).prop_flat_map(|gaps| {
        let mut at = 0;
        let runs: Vec<DataRun> = gaps
            .iter()
            .map(|(gap, len)| {
                let run = DataRun {
                    offset: at + gap,
                    len: *len,
                };
                at = run.offset + len;
                run
            })
            .collect();
        let sum: u64 = runs.iter().map(|run| run.len).sum();
        (Just(runs), at..at + 10_000, vec(any::<u8>(), sum as usize))
    });
    prop_oneof![
        Just(Item::Directory),
        vec(any::<u8>(), 0..2000).prop_map(|data| file(&data)),
        runs.prop_map(|(runs, size, data)| Item::File { size, runs, data }),
        vec(1u8..=255, 1..300).prop_map(Item::Symlink),
        (any::<u32>(), any::<u32>()).prop_map(|(a, b)| Item::Char(a, b)),
        (0u32..4096, 0u32..1 << 20).prop_map(|(a, b)| Item::Block(a, b)),
        Just(Item::Fifo),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_come_back(entries in vec((names(), metas(), items()), 1..12), format in 0usize..4) {
        let mut tree = MemTree::default();
        for (path, meta, item) in entries {
            tree.0.insert(path, (meta, item));
        }
        let hard = tree.0.iter().find(|(_, (_, item))| matches!(item, Item::File { .. }));
        if let Some((target, (meta, _))) = hard.map(|(path, value)| (path.clone(), value.clone())) {
            tree.0.insert(b"zz-hard".to_vec(), (meta, Item::HardLink(target)));
        }
        // xz and zstd start threads: every case with one of them costs more than all others.
        let format = if format == 0 { Format::TarGz } else { Format::Tar };
        let (got, _) = read(&write(&tree, format)).expect("readable");
        prop_assert_eq!(got, tree);
    }
}
