//! File systems that a real kernel wrote, read by the reader: cleanly unmounted, and copied while mounted.

use std::{fmt::Write as _, path::Path, process::Command};

use crate::common::{Held, Tree, mounted};
use hostel_disk::{FileSource, ext4::Reader};
use hostel_testkit::{Need, require};

/// Fills a fresh file system with everything the kernel knows.
const FILL: &str = r#"
    mkdir -p many a/b/c; umask 022
    i=0; while [ $i -lt 400 ]; do echo "number $i" > "many/a-rather-long-name-for-file-$i"; i=$((i+1)); done
    ln many/a-rather-long-name-for-file-7 a/hard; ln a/hard a/b/hard
    ln -s short a/link; ln -s "$(printf 'x%.0s' $(seq 300))" a/long
    mknod a/null c 1 3; mknod a/disk b 259 70000; mkfifo a/pipe
    printf tiny > a/tiny; printf '%0120d' 5 > a/small; : > a/empty
    dd if=/dev/urandom of=a/big bs=4096 count=600 2>/dev/null
    dd if=/dev/urandom of=a/sparse bs=1000 count=3 seek=5000 2>/dev/null
    truncate -s 9000000 a/sparse; truncate -s 100000000 a/hole
    for n in 1 3 5 7 9 11 13 15 17 19 21 23; do dd if=/dev/urandom of=a/torn bs=8192 count=1 seek=$n conv=notrunc 2>/dev/null; done
    chown 70000:4000000000 a/tiny; chmod 6751 a/tiny; touch -d @4294967299.123456789 a/small || true
    setfattr -n user.one -v "$(printf 'v%.0s' $(seq 40))" a/tiny; setfattr -n trusted.two -v "$(printf 'w%.0s' $(seq 700))" a/tiny
"#;

/// Prints the tree in the form of [`listing`], then a line of dashes and the data of all files.
const LIST: &str = r"
    find . -mindepth 1 ! -name lost+found ! -path './lost+found' -printf '%P|%y|%m|%U|%G|%s|%T@|%l\n' | sed '/|d|/s/|[0-9]*|\([0-9.-]*|\)$/|0|\1/; /|[cbp]|/s/$//' | sort
    echo ----
    find . -type f ! -path './lost+found*' -print0 | sort -z | xargs -0 cat
";

/// Shows a tree that was read as `LIST` shows one that is mounted.
fn listing(tree: &Tree) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut data = Vec::new();
    for (path, (meta, held)) in &tree.0 {
        if path.is_empty() {
            continue;
        }
        let (meta, held) = match held {
            Held::HardLink(target) => (&tree.0[target].0, &tree.0[target].1),
            _ => (meta, held),
        };
        let (kind, size, target) = match held {
            Held::Directory => ('d', 0, &[][..]),
            Held::File { size, runs } => {
                let at = data.len();
                data.resize(at + *size as usize, 0);
                for (offset, bytes) in runs {
                    data[at + *offset as usize..][..bytes.len()].copy_from_slice(bytes);
                }
                ('f', *size, &[][..])
            }
            Held::Symlink(target) => ('l', target.len() as u64, target.as_slice()),
            Held::Char(..) => ('c', 0, &[][..]),
            Held::Block(..) => ('b', 0, &[][..]),
            Held::Fifo => ('p', 0, &[][..]),
            Held::Socket => ('s', 0, &[][..]),
            Held::HardLink(_) => unreachable!("a link's target is no link"),
        };
        let mut line = String::from_utf8_lossy(path).into_owned();
        let _ = write!(
            line,
            "|{kind}|{:o}|{}|{}|{size}|{}.{:09}0|{}",
            meta.mode,
            meta.uid,
            meta.gid,
            meta.mtime,
            meta.mtime_nsec,
            String::from_utf8_lossy(target)
        );
        lines.push(line);
    }
    lines.sort();
    let mut out = (lines.join("\n") + "\n----\n").into_bytes();
    out.extend(data);
    out
}

fn read(image: &Path) -> Tree {
    let mut tree = Tree::default();
    Reader::open(FileSource::open(image).unwrap())
        .unwrap()
        .walk(&mut tree)
        .unwrap();
    tree
}

fn assert_same(what: &str, got: &[u8], want: &[u8]) {
    if got == want {
        return;
    }
    let show = |bytes: &[u8]| -> Vec<String> {
        bytes
            .split(|byte| *byte == b'\n')
            .take(450)
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect()
    };
    for (got, want) in show(got).into_iter().zip(show(want)) {
        assert_eq!(got, want, "{what}");
    }
    panic!(
        "{what}: the data differs ({} and {} bytes)",
        got.len(),
        want.len()
    );
}

/// Makes a file system by mke2fs. Returns false, visibly, when the program is missing.
fn format(test: &str, image: &Path, args: &[&str]) -> bool {
    if require(test, Need::Program("mke2fs")).is_none() {
        return false;
    }
    fs_err::File::create(image)
        .unwrap()
        .set_len(96 << 20)
        .unwrap();
    let output = Command::new("mke2fs")
        .arg("-q")
        .args(args)
        .arg(image)
        .env("PATH", crate::common::path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

const FORMATS: [&[&str]; 7] = [
    &["-t", "ext4"],
    &["-t", "ext4", "-b", "1024"],
    &[
        "-t",
        "ext4",
        "-O",
        "inline_data,ea_inode,metadata_csum_seed",
        "-I",
        "512",
    ],
    &[
        "-t",
        "ext4",
        "-O",
        "^metadata_csum,^64bit,^flex_bg,meta_bg,^resize_inode",
    ],
    &["-t", "ext4", "-O", "64bit,^metadata_csum"],
    &["-t", "ext3", "-b", "1024"],
    &["-t", "ext3"],
];

#[test]
fn clean_file_systems_of_all_kinds_are_read_right() {
    const TEST: &str = "clean_file_systems";
    for args in FORMATS {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.raw");
        if !format(TEST, &image, args) {
            return;
        }
        let Some(want) = mounted(TEST, &image, "rw", &[FILL, LIST].concat()) else {
            return;
        };
        let tree = read(&image);
        assert_same(&format!("{args:?}"), &listing(&tree), &want);
        let (meta, _) = &tree.0[b"a/tiny".as_slice()];
        let want = vec![
            (b"trusted.two".to_vec(), vec![b'w'; 700]),
            (b"user.one".to_vec(), vec![b'v'; 40]),
        ];
        assert_eq!(meta.xattrs, want, "{args:?}");
        assert_eq!(tree.0[b"a/disk".as_slice()].1, Held::Block(259, 70000));
        assert_eq!(tree.0[b"a/null".as_slice()].1, Held::Char(1, 3));
        let links = tree
            .0
            .values()
            .filter(|(_, held)| matches!(held, Held::HardLink(_)))
            .count();
        assert_eq!(links, 2, "{args:?}");
    }
}

#[test]
fn dirty_journals_are_played_back() {
    const TEST: &str = "dirty_journals";
    for (args, options) in FORMATS.into_iter().zip([
        "rw",
        "rw",
        "rw,data=journal",
        "rw",
        "rw,journal_checksum",
        "rw",
        "rw,data=journal",
    ]) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.raw");
        if !format(TEST, &image, args) {
            return;
        }
        // Directory blocks that are freed and used again for data are what revoke records are for. A whole sync would also
        // bring the metadata home; syncing one file only commits it to the journal. The copy goes through the image's
        // file, so that what the kernel has in memory is not in it.
        let copy = dir.path().join("copy.raw");
        let script = [
            FILL,
            r#"
            sync
            commit() { chmod 6751 a/tiny; sync a/tiny; }
            rm -r many; commit
            dd if=/dev/urandom of=again bs=4096 count=300 2>/dev/null; sync again
            mkdir more; i=0; while [ $i -lt 300 ]; do echo "new $i" > "more/another-name-$i"; i=$((i+1)); done
            find more -type f -exec sync {} +
            rm a/b/hard; commit
            cp --sparse=always "$image" "${image%/*}/copy.raw"
            "#,
            LIST,
        ]
        .concat();
        let Some(want) = mounted(TEST, &image, options, &script) else {
            return;
        };
        let mut superblock = [0; 128];
        hostel_disk::BlockSource::read_at(&FileSource::open(&copy).unwrap(), 1024, &mut superblock)
            .unwrap();
        assert_ne!(
            superblock[96] & 4,
            0,
            "{args:?}: the copy needs no recovery, so this tests nothing"
        );
        assert_same(
            &format!("{args:?} {options}"),
            &listing(&read(&copy)),
            &want,
        );
        // Without its journal the copy must tell something else, or the test shows nothing.
        let mut raw = fs_err::read(&copy).unwrap();
        raw[1024 + 96] &= !4;
        let sum = !crc32c::crc32c(&raw[1024..2044]);
        raw[2044..2048].copy_from_slice(&sum.to_le_bytes());
        let mut stale = Tree::default();
        let walked = Reader::open(raw.as_slice()).and_then(|reader| reader.walk(&mut stale));
        assert!(
            walked.is_err() || listing(&stale) != want,
            "{args:?}: the journal was not needed"
        );
    }
}

#[test]
fn files_are_found_through_links_inside_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let mut tree = Tree::default();
    let link = |target: &[u8]| Held::Symlink(target.to_vec());
    tree.add(
        b"usr/lib/os-release",
        crate::common::meta(0o644),
        crate::common::file(b"ID=debian\n"),
    );
    tree.add(
        b"etc/os-release",
        crate::common::meta(0o777),
        link(b"../usr/lib/os-release"),
    );
    tree.add(
        b"etc/up",
        crate::common::meta(0o777),
        link(b"../../../../usr/lib/os-release"),
    );
    tree.add(b"lib", crate::common::meta(0o777), link(b"/usr/lib"));
    tree.add(b"loop", crate::common::meta(0o777), link(b"loop/x"));
    tree.add(b"self", crate::common::meta(0o777), link(b"self"));
    crate::common::make(&image, hostel_model::Bytes::mib(16), &tree);
    let reader = Reader::open(FileSource::open(&image).unwrap()).unwrap();
    for path in [
        "etc/os-release",
        "/etc/os-release",
        "etc/up",
        "lib/os-release",
        "etc/../lib/./os-release",
    ] {
        assert_eq!(
            reader.read_file(path.as_bytes(), 100).unwrap().as_deref(),
            Some(&b"ID=debian\n"[..]),
            "{path}"
        );
    }
    for path in [
        "etc/none",
        "loop",
        "self",
        "etc",
        "",
        "usr/lib/os-release/x",
    ] {
        assert_eq!(
            reader.read_file(path.as_bytes(), 100).unwrap(),
            None,
            "{path}"
        );
    }
    assert!(reader.read_file(b"etc/os-release", 9).is_err());
    assert!(reader.exists(b"usr/lib").unwrap());
    assert!(!reader.exists(b"usr/bin").unwrap());
}
