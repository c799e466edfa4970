//! Images that the writer makes, judged by its own reader, by e2fsck and by the kernel.

use std::{io, process::Command};

use crate::common::{Held, Tree, check, file, make, meta, mounted, options, push};
use hostel_disk::{
    FileSource,
    ext4::{Reader, Writer},
};
use hostel_model::{
    Bytes,
    tree::{DataRun, Node, NodeMeta, TreeSink},
};
use hostel_testkit::{Need, require};
use proptest::prelude::*;

fn read(image: &std::path::Path) -> Tree {
    let mut tree = Tree::default();
    Reader::open(FileSource::open(image).unwrap())
        .unwrap()
        .walk(&mut tree)
        .unwrap();
    tree.canonical()
}

fn xattr(name: &str, value: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (name.as_bytes().to_vec(), value.to_vec())
}

/// user::rwx, user:1000:r-x, group::r-x, mask::r-x, other::---
fn acl() -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 5, 1000),
        (4, 5, u32::MAX),
        (0x10, 5, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn full_tree() -> Tree {
    let mut tree = Tree::default();
    tree.add(b"", meta(0o755), Held::Directory);
    tree.add(b"bin", meta(0o755), Held::Directory);
    let ping = NodeMeta {
        xattrs: vec![xattr(
            "security.capability",
            &[
                1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        )],
        ..meta(0o4755)
    };
    tree.add(b"bin/ping", ping, file(&vec![0xAB; 70_000]));
    tree.add(
        b"bin/ping6",
        NodeMeta::default(),
        Held::HardLink(b"bin/ping".to_vec()),
    );
    let far = NodeMeta {
        uid: 4_000_000_000,
        gid: 70_000,
        mtime: -5,
        mtime_nsec: 999_999_999,
        ..meta(0o1777)
    };
    tree.add(b"tmp", far.clone(), Held::Directory);
    tree.add(
        b"tmp/empty",
        NodeMeta {
            mtime: (1 << 33) + 7,
            ..far
        },
        file(b""),
    );
    tree.add(b"tmp/\xff\xfe", meta(0o600), file(b"not utf-8"));
    tree.add(
        &[b"tmp/".as_slice(), &[b'n'; 255]].concat(),
        meta(0o640),
        file(b"long name"),
    );
    tree.add(b"short", meta(0o777), Held::Symlink(vec![b's'; 59]));
    tree.add(b"long", meta(0o777), Held::Symlink(vec![b'l'; 60]));
    tree.add(b"longest", meta(0o777), Held::Symlink(vec![b'x'; 4095]));
    tree.add(b"null", meta(0o666), Held::Char(1, 3));
    tree.add(b"newchar", meta(0o600), Held::Char(510, 70_000));
    tree.add(b"disk", meta(0o660), Held::Block(8, 300));
    tree.add(b"pipe", meta(0o622), Held::Fifo);
    tree.add(b"sock", meta(0o755), Held::Socket);
    tree.add(
        b"sock2",
        NodeMeta::default(),
        Held::HardLink(b"sock".to_vec()),
    );
    let shared = NodeMeta {
        xattrs: vec![
            xattr("system.posix_acl_access", &acl()),
            xattr("system.posix_acl_default", &acl()),
            xattr("user.note", b"hello"),
            xattr("trusted.big", &[7; 3000]),
            xattr("user.empty", b""),
        ],
        ..meta(0o2750)
    };
    tree.add(b"shared", shared, Held::Directory);
    let sparse = Held::File {
        size: 5 << 30,
        runs: vec![
            (100, vec![1; 10]),
            (5000, vec![2; 10]),
            (1 << 20, vec![3; 9000]),
            ((5 << 30) - 3, vec![4; 3]),
        ],
    };
    tree.add(b"sparse", meta(0o644), sparse);
    tree.add(
        b"hole",
        meta(0o644),
        Held::File {
            size: 6 << 30,
            runs: Vec::new(),
        },
    );
    tree
}

#[test]
fn every_kind_survives() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let tree = full_tree();
    make(&image, Bytes::gib(256), &tree);
    assert!(hostel_disk::usage::usage(&image).unwrap().allocated < Bytes::mib(16));
    check("every_kind_survives", &image);
    assert_eq!(read(&image), tree.canonical());
}

#[test]
fn kernel_sees_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    make(&image, Bytes::gib(20), &full_tree());
    let script = r"
        find . ! -name lost+found -printf '%P|%y|%m|%U|%G|%n|%s|%T@|%l\n' | sort
        stat -c '%n %t %T' null newchar disk
        getfattr -h -d -m - -e hex bin/ping shared 2>/dev/null
        tail -c 3 sparse | od -An -tx1; od -An -tx1 -j 100 -N 11 sparse; od -An -tx1 -j 5000 -N 11 sparse
        du -k sparse hole | cut -f1
        ls /sys/fs/ext4/*/lifetime_write_kbytes > /dev/null
    ";
    let Some(out) = mounted("kernel_sees_what_was_written", &image, "ro", script) else {
        return;
    };
    let out = String::from_utf8_lossy(&out);
    for line in [
        "bin/ping|f|4755|0|0|2|70000|1700000000.0000000000|",
        "bin/ping6|f|4755|0|0|2|70000|1700000000.0000000000|",
        "tmp|d|1777|4000000000|70000|2|4096|-5.9999999990|",
        "tmp/empty|f|1777|4000000000|70000|1|0|8589934599.9999999990|",
        "pipe|p|622|0|0|1|0|1700000000.0000000000|",
        "sock2|s|755|0|0|2|0|1700000000.0000000000|",
        "sparse|f|644|0|0|1|5368709120|1700000000.0000000000|",
        "shared|d|2750|0|0|2|4096|1700000000.0000000000|",
        "null 1 3",
        "newchar 1fe 11170",
        "disk 8 12c",
        "security.capability=0x0100000200200000000000000000000000000000",
        "user.note=0x68656c6c6f",
        "user.empty=0x",
        "system.posix_acl_access=0x0200000001000700ffffffff02000500e803000004000500ffffffff10000500ffffffff20000000ffffffff",
        " 04 04 04",
        " 01 01 01 01 01 01 01 01 01 01 00",
        " 02 02 02 02 02 02 02 02 02 02 00",
    ] {
        assert!(
            out.lines().any(|other| other == line),
            "no line `{line}` in\n{out}"
        );
    }
    assert!(out.contains(&format!(
        "longest|l|777|0|0|1|4095|1700000000.0000000000|{}\n",
        "x".repeat(4095)
    )));
    assert!(out.contains(&format!(
        "short|l|777|0|0|1|59|1700000000.0000000000|{}\n",
        "s".repeat(59)
    )));
}

#[test]
fn same_tree_gives_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut images = Vec::new();
    for name in ["a", "b"] {
        let image = dir.path().join(name);
        let mut tree = full_tree();
        tree.0.remove(b"hole".as_slice());
        make(&image, Bytes::mib(64), &tree);
        images.push(fs_err::read(&image).unwrap());
    }
    assert!(images[0] == images[1]);
}

#[test]
fn large_directory_is_hashed_right_and_kernel_finds_every_name() {
    const COUNT: usize = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let mut writer = Writer::create(&image, options(Bytes::gib(4))).unwrap();
    for number in 0..COUNT {
        // Names with bytes above 127 too: the hash takes them as signed.
        let path = format!(
            "many/file-{number:06}{}",
            if number % 7 == 0 { "-ümläut" } else { "" }
        );
        push(&mut writer, path.as_bytes(), &meta(0o644), &file(b"")).unwrap();
    }
    let summary = writer.finish().unwrap();
    assert_eq!(summary.files as usize, COUNT + 1);
    check("large_directory", &image);
    assert_eq!(read(&image).0.len(), COUNT + 2);
    let script = r#"
        cd many
        [ $(ls -U | wc -l) = 100000 ]
        for n in 000001 012345 099999; do [ -e "file-$n" ]; done
        [ -e file-000007-ümläut ] && [ -e file-099995-ümläut ]
        rm file-000002 file-05*
        for i in $(seq 3000); do : > "new-$i"; done
        [ -e new-1777 ]
    "#;
    if mounted("large_directory", &image, "rw", script).is_some() {
        check("large_directory", &image);
    }
}

#[test]
fn fragmented_file_gets_a_deep_tree() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let mut tree = Tree::default();
    tree.add(b"", meta(0o755), Held::Directory);
    // More than four full leaves of 340 extents: two levels above them.
    let runs: Vec<_> = (0..2000u64)
        .map(|number| (number * 12_288 + 17, vec![number as u8 | 1; 30]))
        .collect();
    tree.add(
        b"torn",
        meta(0o644),
        Held::File {
            size: 2000 * 12_288,
            runs,
        },
    );
    make(&image, Bytes::mib(512), &tree);
    check("fragmented_file", &image);
    assert_eq!(read(&image), tree.canonical());
}

#[test]
fn large_extents_are_cut_at_their_limit() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let mut writer = Writer::create(&image, options(Bytes::gib(2))).unwrap();
    let size = 300 << 20;
    let runs = [DataRun {
        offset: 0,
        len: size,
    }];
    let mut data = io::Read::take(io::repeat(0x5a), size);
    writer
        .entry(
            b"big",
            &meta(0o644),
            Node::File {
                size,
                runs: &runs,
                data: &mut data,
            },
        )
        .unwrap();
    writer.finish().unwrap();
    check("large_extents", &image);
}

#[test]
fn disks_of_many_sizes_are_clean() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = Tree::default();
    tree.add(b"", meta(0o755), Held::Directory);
    tree.add(b"a", meta(0o644), file(b"x"));
    for kib in [
        8 << 10,
        9_999,
        127 << 10,
        128 << 10,
        (128 << 10) + 4,
        (140 << 10) + 12,
        3 << 20,
        1 << 30,
        4u64 << 30,
    ] {
        let image = dir.path().join("disk.raw");
        make(&image, Bytes::kib(kib), &tree);
        if !check("disks_of_many_sizes", &image) {
            return;
        }
        assert_eq!(read(&image), tree.canonical(), "{kib} KiB");
        fs_err::remove_file(&image).unwrap();
    }
}

#[test]
fn resize2fs_grows_a_disk() {
    const TEST: &str = "resize2fs_grows_a_disk";
    if require(TEST, Need::Program("resize2fs")).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    make(&image, Bytes::mib(300), &full_tree());
    fs_err::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(9 << 30)
        .unwrap();
    let output = Command::new("resize2fs")
        .arg("-f")
        .arg(&image)
        .env("PATH", crate::common::path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    check(TEST, &image);
    assert_eq!(read(&image), full_tree().canonical());
}

#[test]
fn later_entries_replace_earlier_ones_and_space_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let mut writer = Writer::create(&image, options(Bytes::mib(32))).unwrap();
    let big = file(&vec![1; 8 << 20]);
    for _ in 0..10 {
        push(&mut writer, b"dir/big", &meta(0o644), &big).unwrap();
    }
    push(
        &mut writer,
        b"dir/link",
        &meta(0),
        &Held::HardLink(b"dir/big".to_vec()),
    )
    .unwrap();
    push(&mut writer, b"dir/big", &meta(0o600), &file(b"small")).unwrap();
    push(&mut writer, b"dir", &meta(0o700), &Held::Directory).unwrap();
    push(&mut writer, b"tree/x/y/z", &meta(0o644), &big).unwrap();
    push(&mut writer, b"tree/keep", &meta(0o640), &file(b"kept")).unwrap();
    push(
        &mut writer,
        b"kept",
        &meta(0),
        &Held::HardLink(b"tree/keep".to_vec()),
    )
    .unwrap();
    push(
        &mut writer,
        b"tree",
        &meta(0o777),
        &Held::Symlink(b"dir".to_vec()),
    )
    .unwrap();
    push(
        &mut writer,
        b"kept",
        &meta(0),
        &Held::HardLink(b"kept".to_vec()),
    )
    .unwrap();
    writer.finish().unwrap();
    check("later_entries", &image);
    let mut want = Tree::default();
    want.add(
        b"",
        NodeMeta {
            mode: 0o755,
            ..NodeMeta::default()
        },
        Held::Directory,
    );
    want.add(b"dir", meta(0o700), Held::Directory);
    want.add(b"dir/big", meta(0o600), file(b"small"));
    want.add(b"dir/link", meta(0o644), big);
    want.add(b"kept", meta(0o640), file(b"kept"));
    want.add(b"tree", meta(0o777), Held::Symlink(b"dir".to_vec()));
    assert_eq!(read(&image), want.canonical());
}

#[test]
fn what_cannot_be_stored_is_refused_by_name_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let mut writer = Writer::create(&image, options(Bytes::mib(32))).unwrap();
    push(&mut writer, b"file", &meta(0o644), &file(b"x")).unwrap();
    let odd = NodeMeta {
        xattrs: vec![xattr("com.apple.x", b"y")],
        ..meta(0o644)
    };
    let long = [b'n'; 256];
    let cases: [(&[u8], &NodeMeta, Held, &str); 9] = [
        (b"file/child", &meta(0o644), file(b""), "is not a directory"),
        (b"odd", &odd, file(b""), "com.apple.x"),
        (&long, &meta(0o644), file(b""), "255"),
        (b"a/../b", &meta(0o644), file(b""), "normal form"),
        (b"", &meta(0o644), file(b""), "root"),
        (b"lost+found", &meta(0o644), file(b""), "own directory"),
        (
            b"link",
            &meta(0o644),
            Held::HardLink(b"missing".to_vec()),
            "missing",
        ),
        (b"empty", &meta(0o644), Held::Symlink(Vec::new()), "target"),
        (b"dev", &meta(0o644), Held::Char(5000, 0), "5000"),
    ];
    for (path, meta, held, word) in cases {
        let error = push(&mut writer, path, meta, &held).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(word), "{error}");
    }
    writer.finish().unwrap();
    check("what_cannot_be_stored", &image);
    assert_eq!(read(&image).0.len(), 2);
}

#[test]
fn too_many_links_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let mut writer = Writer::create(&image, options(Bytes::gib(1))).unwrap();
    push(&mut writer, b"f", &meta(0o644), &file(b"x")).unwrap();
    for number in 1..65_000 {
        push(
            &mut writer,
            format!("d/{number}").as_bytes(),
            &meta(0),
            &Held::HardLink(b"f".to_vec()),
        )
        .unwrap();
    }
    let error = push(
        &mut writer,
        b"more",
        &meta(0),
        &Held::HardLink(b"f".to_vec()),
    )
    .unwrap_err();
    assert!(error.to_string().contains("65000 links"), "{error}");
    writer.finish().unwrap();
    check("too_many_links", &image);
}

#[test]
fn more_subdirectories_than_links_can_count_are_fine() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let mut writer = Writer::create(&image, options(Bytes::gib(2))).unwrap();
    for number in 0..65_100 {
        push(
            &mut writer,
            format!("d/{number}").as_bytes(),
            &meta(0o755),
            &Held::Directory,
        )
        .unwrap();
    }
    writer.finish().unwrap();
    check("more_subdirectories", &image);
}

#[test]
fn full_image_and_lost_data_are_told_and_spoil_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path().join("a"), options(Bytes::mib(8))).unwrap();
    let error = push(&mut writer, b"big", &meta(0o644), &file(&vec![1; 9 << 20])).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(writer.finish().is_err());

    let mut writer = Writer::create(dir.path().join("b"), options(Bytes::mib(8))).unwrap();
    let result = (0..10_000).try_for_each(|n| {
        push(
            &mut writer,
            format!("{n}").as_bytes(),
            &meta(0o644),
            &file(b""),
        )
    });
    let error = result.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(error.to_string().contains("room for"), "{error}");

    let mut writer = Writer::create(dir.path().join("c"), options(Bytes::mib(8))).unwrap();
    let runs = [DataRun {
        offset: 0,
        len: 100,
    }];
    let node = Node::File {
        size: 100,
        runs: &runs,
        data: &mut &b"too short"[..],
    };
    let error = writer.entry(b"cut", &meta(0o644), node).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(writer.finish().is_err());

    assert!(
        Writer::create(dir.path().join("c"), options(Bytes::mib(8))).is_err(),
        "an existing file stays"
    );
}

/// Runs itself again in a mount namespace where a small tmpfs stands for a full disk.
#[test]
fn full_host_disk_is_told() {
    if let Some(dir) = std::env::var_os("DISK_TEST_SMALL_TMPFS") {
        let image = std::path::Path::new(&dir).join("disk.raw");
        let mut writer = Writer::create(image, options(Bytes::gib(1))).unwrap();
        let pushed = push(&mut writer, b"big", &meta(0o644), &file(&vec![1; 12 << 20]));
        let error = pushed.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error:?}");
        assert!(writer.finish().is_err());
        return;
    }
    if require("full_host_disk_is_told", Need::Root).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let shell = "mount -t tmpfs -o size=8m none \"$0\" && DISK_TEST_SMALL_TMPFS=\"$0\" exec \"$1\" --exact writing::full_host_disk_is_told";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", shell])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap());
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u8>, NodeMeta, Held),
    Link(usize, Vec<u8>),
}

fn path_strategy() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        8 => "[a-d]{1}".prop_map(String::into_bytes),
        1 => proptest::collection::vec(0x80u8..=0xff, 1..80),
    ];
    proptest::collection::vec(name, 1..4).prop_map(|parts| parts.join(&b'/'))
}

fn meta_strategy() -> impl Strategy<Value = NodeMeta> {
    let xattr = (
        "(user|trusted|security)\\.[a-z]{1,40}",
        proptest::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(|(name, value)| (name.into_bytes(), value));
    let xattrs = proptest::collection::btree_map(
        xattr.prop_map(|pair| pair.0),
        proptest::collection::vec(any::<u8>(), 0..200),
        0..5,
    );
    (
        0u16..0o10000,
        any::<u32>(),
        any::<u32>(),
        -(1i64 << 31)..(3i64 << 32),
        0u32..1_000_000_000,
        xattrs,
    )
        .prop_map(|(mode, uid, gid, mtime, mtime_nsec, xattrs)| NodeMeta {
            mode,
            uid,
            gid,
            mtime,
            mtime_nsec,
            xattrs: xattrs.into_iter().collect(),
        })
}

fn held_strategy() -> impl Strategy<Value = Held> {
    let runs = proptest::collection::vec((0u64..20_000, 1usize..20_000, 1u8..=255), 0..6);
    prop_oneof![
        3 => Just(Held::Directory),
        5 => (runs, 0u64..50_000).prop_map(|(runs, tail)| {
            let mut at = 0;
            let runs: Vec<_> = runs.into_iter().map(|(gap, len, byte)| {
                let offset = at + gap;
                at = offset + len as u64;
                (offset, vec![byte; len])
            }).collect();
            Held::File { size: at + tail, runs }
        }),
        1 => proptest::collection::vec(1u8..=255, 1..200).prop_map(Held::Symlink),
        1 => (0u32..4096, 0u32..(1 << 20)).prop_map(|(major, minor)| Held::Char(major, minor)),
        1 => (1u32..4096, 0u32..(1 << 20)).prop_map(|(major, minor)| Held::Block(major, minor)),
        1 => Just(Held::Fifo),
        1 => Just(Held::Socket),
    ]
}

/// Does to the model what the contract of `TreeSink` says.
fn apply(tree: &mut Tree, path: &[u8], meta: NodeMeta, held: Held) -> bool {
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        match tree.0.get(&path[..at]) {
            Some((_, Held::Directory)) => {}
            Some(_) => return false,
            None => tree.add(
                &path[..at],
                NodeMeta {
                    mode: 0o755,
                    ..NodeMeta::default()
                },
                Held::Directory,
            ),
        }
    }
    let is_directory = held == Held::Directory;
    if !(is_directory && matches!(tree.0.get(path), Some((_, Held::Directory)))) {
        let below = [path, b"/"].concat();
        let gone: Vec<_> = tree
            .0
            .keys()
            .filter(|key| *key == path || key.starts_with(&below))
            .cloned()
            .collect();
        for key in gone {
            remove(tree, &key);
        }
    }
    tree.add(path, meta, held);
    true
}

/// Removes a name; if it owned what other names link to, the next of them becomes the owner.
fn remove(tree: &mut Tree, key: &[u8]) {
    let Some((meta, held)) = tree.0.remove(key) else {
        return;
    };
    let heirs: Vec<_> = tree
        .0
        .iter()
        .filter(|(_, (_, other))| matches!(other, Held::HardLink(target) if target == key))
        .map(|(path, _)| path.clone())
        .collect();
    let Some((heir, rest)) = heirs.split_first() else {
        return;
    };
    tree.add(heir, meta, held);
    for other in rest {
        tree.add(other, NodeMeta::default(), Held::HardLink(heir.clone()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_come_back_as_they_went_in(steps in proptest::collection::vec(prop_oneof![
        6 => (path_strategy(), meta_strategy(), held_strategy()).prop_map(|(path, meta, held)| Step::Put(path, meta, held)),
        1 => (any::<usize>(), path_strategy()).prop_map(|(pick, path)| Step::Link(pick, path)),
    ], 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.raw");
        let mut writer = Writer::create(&image, options(Bytes::mib(64))).unwrap();
        let mut model = Tree::default();
        model.add(b"", NodeMeta { mode: 0o755, ..NodeMeta::default() }, Held::Directory);
        for step in steps {
            match step {
                Step::Put(path, meta, held) => {
                    let fits = apply(&mut model, &path, meta.clone(), held.clone());
                    prop_assert_eq!(push(&mut writer, &path, &meta, &held).is_ok(), fits);
                }
                Step::Link(pick, path) => {
                    let files: Vec<_> = model.0.iter()
                        .filter(|(_, (_, held))| !matches!(held, Held::Directory | Held::HardLink(_)))
                        .map(|(path, _)| path.clone()).collect();
                    let Some(target) = files.get(pick % files.len().max(1)).cloned() else { continue };
                    // A target below the path it replaces is tested by hand.
                    if target == path || target.starts_with(&[path.as_slice(), b"/"].concat()) {
                        continue;
                    }
                    let linked = matches!(model.0.get(&path), Some((_, Held::HardLink(other))) if *other == target);
                    let fits = linked || apply(&mut model, &path, NodeMeta::default(), Held::HardLink(target.clone()));
                    prop_assert_eq!(push(&mut writer, &path, &NodeMeta::default(), &Held::HardLink(target)).is_ok(), fits);
                }
            }
        }
        writer.finish().unwrap();
        check("random_trees", &image);
        prop_assert_eq!(read(&image), model.canonical());
    }
}
