//! Both ways against GNU tar, with a directory that holds everything a file system can.

use std::{
    ffi::OsStr,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    process::{Command, Stdio},
};

use hostel_model::tree::{DataRun, NodeMeta};
use hostel_testkit::{Need, require, skip};
use rustix::fs::{CWD, FileType, Mode, SeekFrom, makedev, mknodat, seek};

use crate::{
    Format,
    testing::{Item, MemTree, read, write},
};

fn run(program: &str, arguments: &[&str], directory: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Checks that a directory can be filled: devices, owners and attributes need root. `None`, visibly, when not.
fn fillable(test: &str, directory: &Path) -> Option<()> {
    require(test, Need::Root)?;
    for program in ["tar", "setcap", "setfacl", "setfattr"] {
        require(test, Need::Program(program))?;
    }
    let probe = directory.join("probe");
    fs_err::write(&probe, b"").expect("a temporary file");
    for name in ["user.probe", "trusted.probe"] {
        if let Err(error) = xattr::set(&probe, name, b"1") {
            skip(
                test,
                &format!("the temporary directory takes no {name}: {error}"),
            );
            return None;
        }
    }
    fs_err::remove_file(&probe).expect("the temporary file");
    Some(())
}

/// Fills a directory.
fn fill(root: &Path) {
    let path = |name: &[u8]| root.join(OsStr::from_bytes(name));
    for name in [
        &b"etc"[..],
        b"sub/deep",
        b"acl",
        b"bad\xff\xfename",
        "größe".as_bytes(),
    ] {
        fs_err::create_dir_all(path(name)).expect("a directory");
    }
    let long = [&b"sub/deep/"[..], &[b'n'; 255]].concat();
    let longer = [&b"sub/"[..], &[b'd'; 200], b"/", &[b'e'; 200]].concat();
    fs_err::create_dir_all(path(&longer)).expect("a directory");
    for (name, data) in [
        (&b"etc/os-release"[..], &b"ID=x\n"[..]),
        (b"empty", b""),
        (b"suid", &[9; 5000]),
        (b"ping", b"#!ping"),
        (b"acl/file", b"acl"),
        (b"bad\xff\xfename/\n\x01", b"odd"),
        ("größe/ß".as_bytes(), b"utf-8"),
        (&long, b"long"),
        (
            &[&longer[..], b"/", &[b'\xfe'; 200]].concat(),
            b"longer and not UTF-8",
        ),
    ] {
        fs_err::write(path(name), data).expect("a file");
    }
    for (name, target) in [
        (&b"link"[..], "etc/os-release"),
        (b"dangling", &*"x/".repeat(150)),
        (&[b'L'; 150], "/etc"),
    ] {
        std::os::unix::fs::symlink(target, path(name)).expect("a link");
    }
    fs_err::hard_link(path(b"etc/os-release"), path(b"zz-hard")).expect("a hard link");
    for (name, kind, device) in [
        (&b"tty"[..], FileType::CharacterDevice, makedev(5, 1)),
        (b"disk", FileType::BlockDevice, makedev(259, 70_000)),
        (b"pipe", FileType::Fifo, 0),
    ] {
        mknodat(CWD, path(name), kind, Mode::from_raw_mode(0o640), device).expect("mknod");
    }
    let sparse = fs_err::File::create(path(b"sparse")).expect("a file");
    for at in [0, 1 << 20, (9 << 20) + 4096] {
        std::os::unix::fs::FileExt::write_all_at(sparse.file(), &[5; 4096], at).expect("data");
    }
    sparse.set_len(20 << 20).expect("a hole at the end");
    fs_err::File::create(path(b"all-hole"))
        .and_then(|file| file.set_len(1 << 30))
        .expect("a hole");

    run("chmod", &["6755", "suid"], root);
    run("chmod", &["1777", "sub"], root);
    run("chown", &["-h", "3000000000:70000", "link", "empty"], root);
    run("setcap", &["cap_net_raw=ep", "ping"], root);
    run(
        "setfacl",
        &["-m", "u:1234:rwx,g:99999:r-x", "acl/file"],
        root,
    );
    run("setfacl", &["-d", "-m", "u:1234:rwx", "acl"], root);
    run(
        "setfattr",
        &["-n", "user.plain", "-v", "value=with%signs", "acl/file"],
        root,
    );
    run(
        "setfattr",
        &["-n", "user.a=b%c", "-v", "0x00ff0a3d", "empty"],
        root,
    );
    run("setfattr", &["-n", "trusted.dir", "-v", "t", "sub"], root);
    run(
        "setfattr",
        &["-h", "-n", "trusted.link", "-v", "l", "link"],
        root,
    );
    run(
        "touch",
        &[
            "-h",
            "-d",
            "2001-02-03 04:05:06.123456789",
            "link",
            "suid",
            "acl/file",
        ],
        root,
    );
    run("touch", &["-d", "1969-12-31 23:59:58.5 UTC", "ping"], root);
    run("touch", &["-d", "2500-01-01 UTC", "pipe"], root);
}

/// Reads a directory into memory. Holes are kept where the file system tells them.
fn scan(root: &Path) -> MemTree {
    let mut tree = MemTree::default();
    let mut seen = std::collections::HashMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(OsStr::from_bytes(&path));
        let stat = fs_err::symlink_metadata(&full).expect("lstat");
        let mut meta = NodeMeta {
            mode: (stat.mode() & 0o7777) as u16,
            uid: stat.uid(),
            gid: stat.gid(),
            mtime: stat.mtime(),
            mtime_nsec: stat.mtime_nsec() as u32,
            xattrs: Vec::new(),
        };
        for name in xattr::list(&full).expect("listxattr") {
            let value = xattr::get(&full, &name)
                .expect("getxattr")
                .unwrap_or_default();
            meta.xattrs.push((name.as_bytes().to_vec(), value));
        }
        meta.xattrs.sort();
        let device = (
            rustix::fs::major(stat.rdev()),
            rustix::fs::minor(stat.rdev()),
        );
        let first = seen.get(&stat.ino()).cloned();
        let item = match FileType::from_raw_mode(stat.mode()) {
            FileType::Directory => {
                for entry in fs_err::read_dir(&full).expect("readdir") {
                    let name = entry.expect("an entry").file_name();
                    let parent: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    todo.push([&path[..], parent, name.as_bytes()].concat());
                }
                todo.sort_by(|a, b| b.cmp(a));
                Item::Directory
            }
            _ if stat.nlink() > 1 && first.is_some() => Item::HardLink(first.expect("checked")),
            FileType::RegularFile => file(&full, stat.len()),
            FileType::Symlink => Item::Symlink(
                fs_err::read_link(&full)
                    .expect("readlink")
                    .as_os_str()
                    .as_bytes()
                    .to_vec(),
            ),
            FileType::CharacterDevice => Item::Char(device.0, device.1),
            FileType::BlockDevice => Item::Block(device.0, device.1),
            FileType::Fifo => Item::Fifo,
            FileType::Socket => Item::Socket,
            FileType::Unknown => panic!("an unknown type"),
        };
        if stat.nlink() > 1 {
            seen.entry(stat.ino()).or_insert_with(|| path.clone());
        }
        tree.0.insert(path, (meta, item));
    }
    tree
}

fn file(path: &Path, size: u64) -> Item {
    let file = fs_err::File::open(path).expect("open");
    let (mut runs, mut data, mut at) = (Vec::new(), Vec::new(), 0);
    while let Ok(offset) = seek(file.file(), SeekFrom::Data(at)) {
        at = seek(file.file(), SeekFrom::Hole(offset)).expect("a hole, or the end");
        let len = at - offset;
        let start = data.len();
        data.resize(start + len as usize, 0);
        std::os::unix::fs::FileExt::read_exact_at(file.file(), &mut data[start..], offset)
            .expect("data");
        runs.push(DataRun { offset, len });
    }
    Item::File { size, runs, data }
}

/// Compares trees; of files with holes only what is read out of them, since file systems round holes differently.
fn assert_same(got: &MemTree, want: &MemTree, what: &str) {
    let keys = |tree: &MemTree| {
        tree.0
            .keys()
            .map(|path| path.escape_ascii().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(got), keys(want), "{what}");
    for ((path, (meta, item)), (want_meta, want_item)) in got.0.iter().zip(want.0.values()) {
        let path = path.escape_ascii();
        assert_eq!(meta, want_meta, "{what}: {path}");
        match (item, want_item) {
            (Item::File { size, runs, .. }, Item::File { size: want, .. }) => {
                assert_eq!(size, want, "{what}: {path}");
                let stored: u64 = runs.iter().map(|run| run.len).sum();
                assert!(
                    *size < 1 << 20 || stored < size / 2,
                    "{what}: {path} kept its holes"
                );
                assert!(
                    *size > 100 << 20 || item.expanded() == want_item.expanded(),
                    "{what}: {path}"
                );
            }
            _ => assert_eq!(item, want_item, "{what}: {path}"),
        }
    }
}

#[test]
fn what_gnu_tar_packs_is_read_whole() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    if fillable("what_gnu_tar_packs_is_read_whole", scratch.path()).is_none() {
        return;
    }
    let root = scratch.path().join("root");
    fs_err::create_dir_all(&root).expect("a directory");
    fill(&root);
    let want = scan(&root);
    let sparse_forms: [&[&str]; 3] = [
        &["--sparse-version=0.0"],
        &["--sparse-version=0.1"],
        &["--sparse-version=1.0"],
    ];
    for options in sparse_forms {
        let mut arguments = vec![
            "--format=pax",
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
            "--sparse",
            "--sort=name",
        ];
        arguments.extend(options);
        arguments.extend(["-cf", "../out.tar", "."]);
        run("tar", &arguments, &root);
        let bytes = fs_err::read(scratch.path().join("out.tar")).expect("the archive");
        let (got, summary) = read(&bytes).expect("readable");
        assert_eq!(summary.warnings, [""; 0]);
        assert_same(&got, &want, &format!("{options:?}"));
    }
    // The GNU format has neither attributes nor fractions of seconds.
    run(
        "tar",
        &[
            "--format=gnu",
            "--sparse",
            "--sort=name",
            "-cf",
            "../out.tar",
            ".",
        ],
        &root,
    );
    let (got, _) = read(&fs_err::read(scratch.path().join("out.tar")).expect("the archive"))
        .expect("readable");
    let mut plain = want;
    for (meta, _) in plain.0.values_mut() {
        meta.xattrs.clear();
        meta.mtime_nsec = 0;
    }
    let at = |tree: &MemTree| tree.get("ping").0.mtime;
    assert!(
        (at(&got) - at(&plain)).abs() <= 1,
        "a fraction is cut towards either side"
    );
    plain.0.get_mut(&b"ping"[..]).expect("filled").0.mtime = at(&got);
    assert_same(&got, &plain, "gnu format");
}

#[test]
fn what_the_writer_packs_gnu_tar_unpacks_whole() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    if fillable(
        "what_the_writer_packs_gnu_tar_unpacks_whole",
        scratch.path(),
    )
    .is_none()
    {
        return;
    }
    let root = scratch.path().join("root");
    fs_err::create_dir_all(&root).expect("a directory");
    fill(&root);
    let want = scan(&root);
    for format in Format::ALL {
        let archive = scratch.path().join(format!("out.{format}"));
        fs_err::write(&archive, write(&want, format)).expect("the archive");
        let out = scratch.path().join(format!("out-{format}"));
        fs_err::create_dir_all(&out).expect("a directory");
        let archive = archive.to_str().expect("a temporary name is UTF-8");
        run(
            "tar",
            &[
                "--xattrs",
                "--xattrs-include=*",
                "--acls",
                "--numeric-owner",
                "--warning=no-timestamp",
                "--warning=no-unknown-keyword",
                "-xpf",
                archive,
            ],
            &out,
        );
        assert_same(&scan(&out), &want, format.as_str());
    }
}
