//! Archives put together by hand, for what no program at hand writes.

use hostel_model::tree::DataRun;

use crate::{
    ReadError,
    header::{BLOCK, Block, Fields},
    pax::Records,
    testing::{Item, MemTree, file, read},
};

/// An archive under construction.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn raw(mut self, block: &Block) -> Self {
        self.0.extend_from_slice(block);
        self
    }

    fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    fn member(self, name: &str, kind: u8, link: &str, data: &[u8]) -> Self {
        let fields = Fields {
            name: name.as_bytes(),
            kind,
            link_name: link.as_bytes(),
            size: data.len() as u64,
            mode: 0o640,
            uid: 7,
            gid: 8,
            mtime: 9,
            ..Fields::default()
        };
        self.raw(&fields.encode()).data(data)
    }

    fn pax(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut body = Records::default();
        for (key, value) in records {
            body.push(key.as_bytes(), value);
        }
        self.member("PaxHeader", kind, "", body.bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

/// Changes a header after the fact and mends its checksum.
fn patched(block: &Block, at: usize, bytes: &[u8]) -> Block {
    let mut block = *block;
    block[at..at + bytes.len()].copy_from_slice(bytes);
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn plain(name: &str, kind: u8) -> Block {
    Fields {
        name: name.as_bytes(),
        kind,
        mode: 0o644,
        ..Fields::default()
    }
    .encode()
}

fn tree(archive: Vec<u8>) -> MemTree {
    read(&archive).expect("a good archive").0
}

fn refusal(archive: Vec<u8>) -> ReadError {
    read(&archive).expect_err("a bad archive")
}

#[test]
fn names_are_made_relative_and_plain() {
    let got = tree(
        Archive::default()
            .member("./", b'5', "", b"")
            .member("/etc//passwd", b'0', "", b"x")
            .member("./old-dir/", 0, "", b"")
            .member("link", b'2', "../../etc/shadow", b"")
            .member("/hard", b'1', "/etc/passwd", b"")
            .end(),
    );
    assert_eq!(got.get("").1, Item::Directory);
    assert_eq!(got.get("etc/passwd").1, file(b"x"));
    assert_eq!(got.get("old-dir").1, Item::Directory);
    assert_eq!(
        got.get("link").1,
        Item::Symlink(b"../../etc/shadow".to_vec())
    );
    assert_eq!(got.get("hard").1, Item::HardLink(b"etc/passwd".to_vec()));
    let meta = &got.get("hard").0;
    assert_eq!(
        (meta.mode, meta.uid, meta.gid, meta.mtime),
        (0o640, 7, 8, 9)
    );
}

#[test]
fn members_that_climb_out_are_refused() {
    for archive in [
        Archive::default().member("../x", b'0', "", b"").end(),
        Archive::default().member("a/../../x", b'5', "", b"").end(),
        Archive::default()
            .member("x", b'1', "../etc/passwd", b"")
            .end(),
        Archive::default().member("x", b'1', "", b"").end(),
        Archive::default().member("x", b'2', "", b"").end(),
        Archive::default().member("./", b'2', "/", b"").end(),
        Archive::default()
            .pax(b'x', &[("path", b"a\0b")])
            .member("x", b'0', "", b"")
            .end(),
        Archive::default()
            .pax(b'x', &[("linkpath", b"a\0b")])
            .member("x", b'2', "y", b"")
            .end(),
        Archive::default()
            .pax(b'x', &[("path", &[b'n'; 256])])
            .member("x", b'0', "", b"")
            .end(),
        Archive::default()
            .pax(b'x', &[("linkpath", &[b'n'; 4096])])
            .member("x", b'2', "y", b"")
            .end(),
        Archive::default()
            .pax(
                b'x',
                &[("GNU.sparse.name", b"../x"), ("GNU.sparse.size", b"0")],
            )
            .member("x", b'0', "", b"")
            .end(),
        Archive::default().member("x", b'M', "", b"").end(),
    ] {
        assert!(matches!(refusal(archive), ReadError::Refused { .. }));
    }
}

#[test]
fn dialects_place_their_names_differently() {
    let prefixed = |magic: &[u8], tail: &[u8]| {
        let block = patched(&plain("name", b'0'), 345, b"pre");
        let block = patched(&block, 257, magic);
        tree(
            Archive::default()
                .raw(&patched(&block, 512 - tail.len(), tail))
                .end(),
        )
    };
    assert_eq!(prefixed(b"ustar\x0000", b"").get("pre/name").1, file(b""));
    assert_eq!(prefixed(b"ustar  \0", b"").get("name").1, file(b""));
    assert_eq!(prefixed(b"\0\0\0\0\0\0\0\0", b"").get("name").1, file(b""));
    assert_eq!(
        prefixed(b"ustar\x0000", b"tar\0").get("pre/name").1,
        file(b"")
    );
    // star keeps times where POSIX has the end of the prefix.
    let times = [&b"00000000001 00000000002 "[..], &[0; 12]].concat();
    assert_eq!(
        prefixed(b"ustar\x0000", &times).get("pre/name").1,
        file(b"")
    );
}

#[test]
fn long_names_of_gnu_and_pax() {
    let long = format!("d/{}", "n".repeat(200));
    let target = "t".repeat(300);
    let got = tree(
        Archive::default()
            .member("././@LongLink", b'K', "", format!("{target}\0").as_bytes())
            .member("././@LongLink", b'L', "", format!("{long}\0").as_bytes())
            .member("cut", b'2', "cut", b"")
            .pax(
                b'x',
                &[
                    ("path", b"p\xff\n/x"),
                    ("hdrcharset", b"BINARY"),
                    ("mtime", b"-1.25"),
                    ("uid", b"3000000000"),
                ],
            )
            .member("cut", b'0', "", b"data")
            .member("next", b'0', "", b"plain again")
            .end(),
    );
    assert_eq!(got.get(&long).1, Item::Symlink(target.into_bytes()));
    let (meta, item) = &got.0[&b"p\xff\n/x"[..]];
    assert_eq!(
        (meta.mtime, meta.mtime_nsec, meta.uid, item),
        (-2, 750_000_000, 3_000_000_000, &file(b"data"))
    );
    assert_eq!((got.get("next").0.mtime, got.get("next").0.uid), (9, 7));
}

#[test]
fn global_headers_last_and_local_ones_win() {
    let got = tree(
        Archive::default()
            .pax(
                b'g',
                &[
                    ("uid", b"42"),
                    ("SCHILY.xattr.user.g", b"global"),
                    ("comment", b"x"),
                ],
            )
            .member("a", b'0', "", b"")
            .pax(b'x', &[("uid", b"43"), ("SCHILY.xattr.user.g", b"local")])
            .member("b", b'0', "", b"")
            .member("c", b'0', "", b"")
            .end(),
    );
    let seen = |path: &str| (got.get(path).0.uid, got.get(path).0.xattrs[0].1.clone());
    assert_eq!(
        [seen("a"), seen("b"), seen("c")],
        [
            (42, b"global".to_vec()),
            (43, b"local".to_vec()),
            (42, b"global".to_vec())
        ]
    );
}

#[test]
fn sparse_files_in_every_form() {
    let want = Item::File {
        size: 5000,
        runs: vec![
            DataRun { offset: 0, len: 3 },
            DataRun {
                offset: 4096,
                len: 2,
            },
        ],
        data: b"abcde".to_vec(),
    };
    let mut map = b"3\n0\n3\n4096\n2\n5000\n0\n".to_vec();
    map.resize(BLOCK, 0);
    let with_map = [&map[..], b"abcde"].concat();
    // Old GNU: two entries and the size in the header.
    let mut old = patched(&plain("old", b'S'), 257, b"ustar  \0");
    old = patched(&old, 124, b"00000000005\0");
    old = patched(
        &old,
        386,
        b"00000000000\x0000000000003\x0000000010000\x0000000000002\0",
    );
    old = patched(&old, 483, b"00000011610\0");
    // The same with the second entry in a block of its own.
    let first = patched(&patched(&old, 410, &[0; 24]), 482, b"\x01");
    let mut extension = [0; BLOCK];
    extension[..24].copy_from_slice(b"00000010000\x0000000000002\0");
    let got = tree(
        Archive::default()
            .pax(
                b'x',
                &[
                    ("GNU.sparse.size", b"5000"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.offset", b"0"),
                    ("GNU.sparse.numbytes", b"3"),
                    ("GNU.sparse.offset", b"4096"),
                    ("GNU.sparse.numbytes", b"2"),
                ],
            )
            .member("v00", b'0', "", b"abcde")
            .pax(
                b'x',
                &[
                    ("GNU.sparse.size", b"5000"),
                    ("GNU.sparse.name", b"v01"),
                    ("GNU.sparse.map", b"0,3,4096,2,5000,0"),
                ],
            )
            .member("GNUSparseFile.1/v01", b'0', "", b"abcde")
            .pax(
                b'x',
                &[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"v10"),
                    ("GNU.sparse.realsize", b"5000"),
                ],
            )
            .member("GNUSparseFile.1/v10", b'0', "", &with_map)
            .raw(&old)
            .data(b"abcde")
            .raw(&patched(&first, 0, b"old2"))
            .raw(&extension)
            .data(b"abcde")
            .member("after", b'0', "", b"x")
            .end(),
    );
    for name in ["v00", "v01", "v10", "old", "old2"] {
        assert_eq!(got.get(name).1, want, "{name}");
    }
    assert_eq!(got.get("after").1, file(b"x"));
    assert_eq!(got.0.len(), 6);
}

#[test]
fn damaged_members_are_named() {
    let sparse = |records: &[(&str, &[u8])], data: &[u8]| {
        refusal(
            Archive::default()
                .pax(b'x', records)
                .member("s", b'0', "", data)
                .end(),
        )
    };
    let one = |map: &[u8]| {
        sparse(
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"10"),
            ],
            map,
        )
    };
    let bad = |block: &Block| refusal(Archive::default().raw(block).end());
    for error in [
        sparse(
            &[("GNU.sparse.size", b"2"), ("GNU.sparse.map", b"0,3")],
            b"abc",
        ),
        sparse(
            &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,3")],
            b"ab",
        ),
        sparse(&[("GNU.sparse.map", b"0,3")], b"abc"),
        sparse(
            &[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")],
            b"abc",
        ),
        sparse(&[("SUN.holesdata", b" 0 1")], b"abc"),
        one(b""),
        one(b"short"),
        one(&[b'1'; 512]),
        one(&[b'\n'; 512]),
        bad(&patched(&plain("x", b'0'), 124, b"0000000000x\0")),
        bad(&patched(&plain("x", b'0'), 124, &[0xff; 12])),
        bad(&patched(&plain("x", b'0'), 108, b"zzzzzzz\0")),
        bad(&patched(&plain("x", b'0'), 108, &[0xff; 8])),
        bad(&patched(&plain("x", b'3'), 329, b"zzzzzzz\0")),
        bad(&patched(&plain("x", b'x'), 124, b"77777777777\0")),
        bad(&patched(
            &plain("x", b'0'),
            124,
            b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
        )),
        refusal(
            Archive::default()
                .member("p", b'x', "", b"99 bad")
                .member("x", b'0', "", b"")
                .end(),
        ),
        refusal(
            Archive::default()
                .pax(b'x', &[("SCHILY.acl.access", b"nonsense")])
                .member("x", b'0', "", b"")
                .end(),
        ),
    ] {
        assert!(matches!(error, ReadError::BadMember { .. }), "{error}");
    }
}

#[test]
fn access_control_lists_learn_numbers_from_headers() {
    let owner = patched(
        &patched(&plain("known", b'0'), 108, b"0001750\0"),
        265,
        b"lisa\0",
    );
    let text: &[u8] =
        b"user::rw-\nuser:lisa:r--\ngroup::r--\ngroup:root:r--\nmask::r--\nother::---\n";
    let archive = |first: Archive| {
        first
            .pax(b'x', &[("SCHILY.acl.access", text)])
            .member("f", b'0', "", b"")
            .end()
    };
    let got = tree(archive(Archive::default().raw(&owner)));
    let (name, value) = &got.get("f").0.xattrs[0];
    assert_eq!(name, b"system.posix_acl_access");
    assert_eq!(
        crate::acl::to_text(value).unwrap(),
        "user::rw-,user:1000:r--,group::r--,group:0:r--,mask::r--,other::---"
    );
    let (got, summary) = read(&archive(Archive::default())).expect("readable");
    assert!(got.get("f").0.xattrs.is_empty());
    assert!(
        summary.warnings[0].contains("lisa"),
        "{:?}",
        summary.warnings
    );
}

#[test]
fn odd_but_readable_archives_warn() {
    let warnings = |archive: &[u8]| read(archive).expect("readable").1.warnings.join("; ");
    let one = Archive::default().member("a", b'0', "", b"x");
    let bare = one.0;
    assert!(warnings(&bare).contains("no end mark"));
    assert!(warnings(&[&bare[..], &[0; 512]].concat()).contains("half"));
    assert!(warnings(&[&bare[..], &[0; 512], &bare].concat()).contains("lone block"));
    assert_eq!(warnings(&[&bare[..], &[0; 1024], b"rubbish"].concat()), "");
    assert!(warnings(&Archive::default().member("q", b'Q', "", b"x").end()).contains("type `Q`"));
    assert!(
        warnings(
            &Archive::default()
                .member("a", b'0', "", b"")
                .member("a", b'1', "./a", b"")
                .end()
        )
        .contains("itself")
    );
    let dump = Archive::default()
        .member("d/", b'D', "", b"Yfile\0\0")
        .member("V", b'V', "", b"")
        .member("after", b'0', "", b"")
        .end();
    assert_eq!(
        tree(dump)
            .0
            .keys()
            .map(|k| k.escape_ascii().to_string())
            .collect::<Vec<_>>(),
        ["after", "d"]
    );
}

#[test]
fn what_is_no_archive_is_told_apart() {
    assert!(matches!(refusal(vec![]), ReadError::Empty));
    assert!(matches!(refusal(vec![0; 10240]), ReadError::Empty));
    assert!(matches!(
        refusal(b"hello".to_vec()),
        ReadError::NotAnArchive { looks_like: None }
    ));
    assert!(matches!(
        refusal(vec![b'x'; 5000]),
        ReadError::NotAnArchive { looks_like: None }
    ));
    let zip = [&b"PK\x03\x04"[..], &[7; 4000]].concat();
    assert_eq!(
        refusal(zip).to_string(),
        "not a tar archive; it looks like a zip archive"
    );
    let mut second = Archive::default()
        .member("a", b'0', "", b"")
        .member("b", b'0', "", b"")
        .end();
    second[512 + 20] ^= 1;
    assert!(matches!(
        refusal(second),
        ReadError::Damaged { offset: 512, .. }
    ));
}
