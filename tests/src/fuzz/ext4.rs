//! Disks as a guest may leave them.

use std::{collections::BTreeMap, io};

use hostel_disk::{
    BlockSource,
    ext4::{ReadError, Reader},
};

use super::tree::{Checked, Item};

/// Unit of a packed disk.
const UNIT: usize = 1024;
/// How many files are read a second time, by their paths.
const LOOKUPS: usize = 24;

/// Opens a packed disk, walks it twice and looks its files up: the tree is sound and both ways agree.
pub fn ext4(bytes: &[u8]) {
    let disk = Disk::unpack(bytes);
    let Ok(reader) = Reader::open(&disk) else {
        return;
    };
    assert!(reader.size().0 > 0);
    let (first, tree) = walk(&reader);
    let (second, again) = walk(&reader);
    assert_eq!(tree.entries, again.entries);
    assert_eq!(first.is_ok(), second.is_ok());
    tree.assert_tree();
    // Look-ups must do without a walk that succeeds.
    for path in [
        &b"etc/os-release"[..],
        b"etc/wsl.conf",
        b"/a/../b//c",
        b"../..",
    ] {
        if let Ok(Some(bytes)) = reader.read_file(path, 1 << 16) {
            assert!(bytes.len() <= 1 << 16 && reader.exists(path).is_ok_and(|there| there));
        }
    }
    let files = tree
        .entries
        .iter()
        .filter(|e| matches!(e.item, Item::File { .. }));
    for file in files.take(LOOKUPS) {
        if let (Some(want), Ok(got)) = (file.item.expanded(), reader.read_file(&file.path, 1 << 20))
        {
            assert_eq!(got.as_ref(), Some(&want), "{:?}", file.path);
        }
    }
}

fn walk<S: BlockSource>(reader: &Reader<S>) -> (Result<(), ReadError>, Checked) {
    let mut sink = Checked::default();
    (reader.walk(&mut sink), sink)
}

/// A sparse disk: the size in units (two bytes), then pieces: the number of a unit, how many bytes of it follow (two bytes
/// each), and those. So an image of megabytes is a few KiB, and a mutation hits what is there.
struct Disk {
    units: u16,
    pieces: BTreeMap<u16, Vec<u8>>,
}

impl Disk {
    fn unpack(bytes: &[u8]) -> Self {
        let number = |bytes: &mut &[u8]| {
            let (now, later) = bytes.split_first_chunk()?;
            *bytes = later;
            Some(u16::from_le_bytes(*now))
        };
        let rest = &mut &*bytes;
        let units = number(rest).unwrap_or(0);
        let mut pieces = BTreeMap::new();
        while let (Some(at), Some(len)) = (number(rest), number(rest)) {
            let len = usize::from(len).min(UNIT).min(rest.len());
            let (now, later) = rest.split_at(len);
            pieces.insert(at, now.to_vec());
            *rest = later;
        }
        Self { units, pieces }
    }
}

/// Packs a disk of less than 64 MiB for [`ext4`].
pub fn pack(disk: &[u8]) -> Vec<u8> {
    let units = u16::try_from(disk.len().div_ceil(UNIT)).expect("a disk for a test");
    let mut out = units.to_le_bytes().to_vec();
    for (at, unit) in (0..units).zip(disk.chunks(UNIT)) {
        if let Some(last) = unit.iter().rposition(|b| *b != 0) {
            out.extend_from_slice(&at.to_le_bytes());
            out.extend_from_slice(&(last as u16 + 1).to_le_bytes());
            out.extend_from_slice(&unit[..=last]);
        }
    }
    out
}

impl BlockSource for Disk {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.fill(0);
        let mut done = 0;
        while done < buf.len() {
            let at = offset as usize + done;
            let (unit, inside) = (at / UNIT, at % UNIT);
            let len = (UNIT - inside).min(buf.len() - done);
            if let Some(piece) = self.pieces.get(&(unit as u16)) {
                let held = piece.get(inside..).unwrap_or(&[]);
                let n = held.len().min(len);
                buf[done..done + n].copy_from_slice(&held[..n]);
            }
            done += len;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        u64::from(self.units) * UNIT as u64
    }
}
