//! Archives of anybody's making.

use std::io::{self, Read};

use hostel_model::tree::NodeMeta;
use hostel_rootfs::{ArchiveWriter, Format, ReadError, ReadOptions, Summary, read_archive};

use super::tree::{Checked, Item};

const OPTIONS: ReadOptions = ReadOptions {
    decoder_memory: 8 << 20,
    max_members: 2000,
};

/// Reads an archive, whole and in small pieces: both ways give the same, and what was read can be written and read again.
pub fn archive(bytes: &[u8]) {
    let (whole, sink) = read(bytes);
    let (pieces, trickled) = read(Trickle(bytes));
    let (whole, pieces) = match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => (whole, pieces),
        // Where damage shows depends on how much a decoder is given at once.
        (whole, pieces) => {
            assert_eq!(whole.is_ok(), pieces.is_ok(), "{whole:?} {pieces:?}");
            return;
        }
    };
    assert_eq!(sink.entries, trickled.entries);
    assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
    assert!(whole.warnings.len() <= 100 && whole.members <= OPTIONS.max_members);
    write_again(&sink);
}

fn read(input: impl Read) -> (Result<Summary, ReadError>, Checked) {
    let mut sink = Checked::default();
    let mut last = 0;
    let result = read_archive(input, &mut sink, &OPTIONS, &mut |progress| {
        assert!(progress.unpacked >= last, "progress goes on");
        last = progress.unpacked;
    });
    (result, sink)
}

/// Writes what was read; where the writer takes it, it reads back as it went in.
fn write_again(sink: &Checked) {
    let mut writer = ArchiveWriter::new(Vec::new(), Format::Tar).expect("memory");
    if sink.push_all(&mut writer).is_err() {
        return;
    }
    let (bytes, _) = writer.finish().expect("memory");
    if sink.entries.is_empty() {
        return;
    }
    let (again, copy) = read(bytes.as_slice());
    again.expect("an archive of our own");
    assert_eq!(sink.entries.len(), copy.entries.len());
    for (a, b) in sink.entries.iter().zip(&copy.entries) {
        assert_eq!((&a.path, a.item.expanded()), (&b.path, b.item.expanded()));
        // A link carries its target's metadata, and a file's runs may be joined.
        match (&a.item, &b.item) {
            (Item::HardLink(a), Item::HardLink(b)) => assert_eq!(a, b),
            (Item::File { size, .. }, Item::File { size: copied, .. }) => {
                assert_eq!((plain(&a.meta), size), (plain(&b.meta), copied));
            }
            _ => assert_eq!((plain(&a.meta), &a.item), (plain(&b.meta), &b.item)),
        }
    }
}

/// Blanks the ids of those entries of an ACL that have none: nobody reads them, and the text form has no place for them.
fn plain(meta: &NodeMeta) -> NodeMeta {
    let mut meta = meta.clone();
    for (name, value) in &mut meta.xattrs {
        if name.starts_with(b"system.posix_acl_") {
            let entries = value.get_mut(4..).into_iter();
            for entry in entries.flat_map(|v| v.chunks_exact_mut(8)) {
                // USER is 2, GROUP is 8.
                if !matches!(entry[0], 2 | 8) {
                    entry[4..].fill(0xff);
                }
            }
        }
    }
    meta
}

/// Gives a few bytes at a time, as pipes do.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = out.len().min(self.0.len()).min(97);
        let (now, later) = self.0.split_at(n);
        out[..n].copy_from_slice(now);
        self.0 = later;
        Ok(n)
    }
}
