//! Overlays as QEMU sees them, and a distribution read through one.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    time::Instant,
};

use crate::common::{Tree, file, meta};
use hostel_disk::{
    BlockSource as _,
    ext4::Reader,
    overlay::{create_overlay, open_chain},
};
use hostel_model::Bytes;
use hostel_testkit::{Need, require};

#[test]
fn tree_is_read_through_a_fresh_overlay_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (base, overlay) = (dir.path().join("base.raw"), dir.path().join("disk.qcow2"));
    let mut tree = Tree::default();
    tree.add(b"", meta(0o755), crate::common::Held::Directory);
    tree.add(b"etc/hostname", meta(0o644), file(b"box\n"));
    tree.add(b"data", meta(0o644), file(&vec![7; 300_000]));
    crate::common::make(&base, Bytes::gib(256), &tree);
    let start = Instant::now();
    create_overlay(&overlay, &base, Bytes::gib(256)).unwrap();
    eprintln!("overlay made in {:?}", start.elapsed());
    assert!(hostel_disk::usage::usage(&overlay).unwrap().allocated <= Bytes::mib(1));
    let mut got = Tree::default();
    Reader::open(open_chain(&overlay, &base).unwrap())
        .unwrap()
        .walk(&mut got)
        .unwrap();
    let implied = got.0.remove(b"etc".as_slice()).unwrap();
    assert_eq!(implied.0.mode, 0o755);
    assert_eq!(got.canonical(), tree.canonical());
}

#[test]
fn what_qemu_writes_is_read_and_the_base_stays() {
    if require("what_qemu_writes", Need::Program("qemu-system-x86_64")).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (base, overlay) = (dir.path().join("base.raw"), dir.path().join("disk.qcow2"));
    fs_err::write(&base, vec![1; 1 << 20]).unwrap();
    create_overlay(&overlay, &base, Bytes::gib(2)).unwrap();
    let child = Command::new("qemu-system-x86_64")
        .args([
            "-machine",
            "none",
            "-nodefaults",
            "-display",
            "none",
            "-qmp",
            "stdio",
        ])
        .arg("-blockdev")
        .arg(format!(
            "driver=qcow2,node-name=d,file.driver=file,file.filename={}",
            overlay.display()
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    let io = |command: &str| {
        format!(
            r#"{{"execute":"human-monitor-command","arguments":{{"command-line":"qemu-io d \"{command}\""}}}}"#
        )
    };
    let mut stdin = child.stdin.take().unwrap();
    for line in [
        r#"{"execute":"qmp_capabilities"}"#.to_owned(),
        io("write -P 0x55 4096 8192"),
        io("write -P 0x66 1900M 64k"),
        io("read -P 0x1 0 4096"),
        r#"{"execute":"quit"}"#.to_owned(),
    ] {
        writeln!(stdin, "{line}").unwrap();
    }
    drop(stdin);
    let said: Vec<String> = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .collect();
    assert!(child.wait().unwrap().success(), "{said:?}");
    assert!(
        !said
            .iter()
            .any(|line| line.contains("\"error\"") || line.contains("failed")),
        "{said:?}"
    );

    let disk = open_chain(&overlay, &base).unwrap();
    assert_eq!(disk.len(), 2 << 30);
    let mut buf = vec![0; 16384];
    disk.read_at(0, &mut buf).unwrap();
    assert!(
        buf[..4096].iter().all(|byte| *byte == 1)
            && buf[4096..12288].iter().all(|byte| *byte == 0x55)
    );
    assert!(buf[12288..].iter().all(|byte| *byte == 1));
    disk.read_at(1900 << 20, &mut buf).unwrap();
    assert!(buf.iter().all(|byte| *byte == 0x66));
    disk.read_at(1 << 30, &mut buf).unwrap();
    assert!(buf.iter().all(|byte| *byte == 0));
    assert!(fs_err::read(&base).unwrap().iter().all(|byte| *byte == 1));
}

#[test]
fn readers_and_writers_may_move_between_threads() {
    fn movable<T: Send>() {}
    movable::<hostel_disk::ext4::Writer>();
    movable::<Reader<hostel_disk::overlay::ChainSource>>();
    movable::<Reader<hostel_disk::FileSource>>();
}
