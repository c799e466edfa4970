//! Archives of anybody's making.

use std::io::{self, Read};

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
    assert_eq!(sink.entries, trickled.entries);
    let (whole, pieces) = match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => (whole, pieces),
        (whole, pieces) => {
            assert_eq!(whole.is_ok(), pieces.is_ok());
            return;
        }
    };
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
                assert_eq!((&a.meta, size), (&b.meta, copied));
            }
            _ => assert_eq!(a, b),
        }
    }
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
