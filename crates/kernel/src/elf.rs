//! The little of ELF that is needed: sections of a module, notes of a kernel. 64 bit, little endian.

/// A view of an ELF file in memory; every access is checked against its bounds.
pub(crate) struct Elf<'a> {
    bytes: &'a [u8],
}

/// Sections and segments beyond this many are not looked at; a module has about fifty, a kernel forty.
const MOST: usize = 4096;

/// `e_machine` of x86-64.
pub(crate) const EM_X86_64: u16 = 62;

const PT_NOTE: u32 = 4;
const SHT_NOTE: u32 = 7;
const SHT_NOBITS: u32 = 8;

impl<'a> Elf<'a> {
    /// Takes a file; `None` when it is not a 64-bit little-endian ELF file.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let ok =
            bytes.len() >= 64 && bytes.starts_with(b"\x7fELF") && bytes[4] == 2 && bytes[5] == 1;
        ok.then_some(Self { bytes })
    }

    /// Returns `e_machine`.
    pub(crate) fn machine(&self) -> u16 {
        u16_at(self.bytes, 18).unwrap_or(0)
    }

    /// Returns the content of the first section of that name.
    pub(crate) fn section(&self, name: &[u8]) -> Option<&'a [u8]> {
        let names_index = u16_at(self.bytes, 62)? as usize;
        let names = self.sections().nth(names_index)?.content(self.bytes)?;
        self.sections()
            .find(|s| {
                names
                    .get(s.name as usize..)
                    .and_then(|n| n.split(|b| *b == 0).next())
                    .is_some_and(|found| found == name)
            })?
            .content(self.bytes)
    }

    /// Tells whether a note of that owner and type is there.
    pub(crate) fn has_note(&self, owner: &[u8], kind: u32) -> bool {
        let in_sections = self
            .sections()
            .filter(|s| s.kind == SHT_NOTE)
            .filter_map(|s| s.content(self.bytes));
        let in_segments = self
            .segments()
            .filter(|s| s.kind == PT_NOTE)
            .filter_map(|s| s.content(self.bytes));
        in_segments
            .chain(in_sections)
            .any(|notes| holds_note(notes, owner, kind))
    }

    fn sections(&self) -> impl Iterator<Item = Part> + use<'a> {
        let bytes = self.bytes;
        let (start, size, count) = table(bytes, 40, 58, 60, 64);
        (0..count).map_while(move |i| {
            let at = start.checked_add(i.checked_mul(size)?)?;
            Some(Part {
                name: u32_at(bytes, at)?,
                kind: u32_at(bytes, at + 4)?,
                offset: u64_at(bytes, at + 24)?,
                size: u64_at(bytes, at + 32)?,
            })
        })
    }

    fn segments(&self) -> impl Iterator<Item = Part> + use<'a> {
        let bytes = self.bytes;
        let (start, size, count) = table(bytes, 32, 54, 56, 56);
        (0..count).map_while(move |i| {
            let at = start.checked_add(i.checked_mul(size)?)?;
            Some(Part {
                name: 0,
                kind: u32_at(bytes, at)?,
                offset: u64_at(bytes, at + 8)?,
                size: u64_at(bytes, at + 32)?,
            })
        })
    }
}

/// A section or a segment.
struct Part {
    name: u32,
    kind: u32,
    offset: u64,
    size: u64,
}

impl Part {
    fn content<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        if self.kind == SHT_NOBITS {
            return None;
        }
        let start = usize::try_from(self.offset).ok()?;
        bytes.get(start..start.checked_add(usize::try_from(self.size).ok()?)?)
    }
}

/// Reads where a table begins, how large its entries are and how many there are; nothing when an entry is too small.
fn table(
    bytes: &[u8],
    offset_at: usize,
    size_at: usize,
    count_at: usize,
    least: usize,
) -> (usize, usize, usize) {
    let read = || {
        let start = usize::try_from(u64_at(bytes, offset_at)?).ok()?;
        let size = u16_at(bytes, size_at)? as usize;
        let count = u16_at(bytes, count_at)? as usize;
        (size >= least && start < bytes.len()).then_some((start, size, count.min(MOST)))
    };
    read().unwrap_or((0, 0, 0))
}

fn holds_note(mut notes: &[u8], owner: &[u8], kind: u32) -> bool {
    let padded = |n: u32| (n as usize).div_ceil(4).checked_mul(4);
    while let (Some(owner_len), Some(data_len), Some(found)) =
        (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
    {
        let name = notes.get(12..).and_then(|n| n.get(..owner_len as usize));
        if found == kind && name.is_some_and(|n| n.strip_suffix(b"\0").unwrap_or(n) == owner) {
            return true;
        }
        let next = padded(owner_len)
            .zip(padded(data_len))
            .and_then(|(a, b)| a.checked_add(b)?.checked_add(12));
        match next.and_then(|n| notes.get(n..)) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

/// Reads a little-endian number, if it lies within the bytes.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at.checked_add(2)?)?
        .try_into()
        .ok()
        .map(u16::from_le_bytes)
}

/// Reads a little-endian number, if it lies within the bytes.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at.checked_add(4)?)?
        .try_into()
        .ok()
        .map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..at.checked_add(8)?)?
        .try_into()
        .ok()
        .map(u64::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Builds an ELF file of the given sections (name, type, content) and segments of notes.
    pub(crate) fn build(sections: &[(&str, u32, &[u8])], notes: Option<&[u8]>) -> Vec<u8> {
        let mut out = vec![0u8; 64];
        out[..6].copy_from_slice(b"\x7fELF\x02\x01");
        out[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        let mut names = vec![0u8];
        let mut headers = vec![[0u8; 64]];
        for (name, kind, content) in sections.iter().copied().chain([(".shstrtab", 3, &b""[..])]) {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&(names.len() as u32).to_le_bytes());
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            let content = if name == ".shstrtab" {
                names.as_slice()
            } else {
                content
            };
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(out.len() as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            out.extend_from_slice(content);
            headers.push(header);
        }
        if let Some(notes) = notes {
            let at = out.len() as u64;
            out.extend_from_slice(notes);
            let mut segment = [0u8; 56];
            segment[..4].copy_from_slice(&PT_NOTE.to_le_bytes());
            segment[8..16].copy_from_slice(&at.to_le_bytes());
            segment[32..40].copy_from_slice(&(notes.len() as u64).to_le_bytes());
            let table = out.len() as u64;
            out.extend_from_slice(&segment);
            out[32..40].copy_from_slice(&table.to_le_bytes());
            out[54..56].copy_from_slice(&56u16.to_le_bytes());
            out[56..58].copy_from_slice(&1u16.to_le_bytes());
        }
        let table = out.len() as u64;
        out[40..48].copy_from_slice(&table.to_le_bytes());
        out[58..60].copy_from_slice(&64u16.to_le_bytes());
        out[60..62].copy_from_slice(&(headers.len() as u16).to_le_bytes());
        out[62..64].copy_from_slice(&(headers.len() as u16 - 1).to_le_bytes());
        for h in &headers {
            out.extend_from_slice(h);
        }
        out
    }

    /// Builds one note.
    pub(crate) fn note(owner: &str, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&(owner.len() as u32 + 1).to_le_bytes());
        out.extend_from_slice(&(data.len() as u32).to_le_bytes());
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(owner.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    #[test]
    fn sections_and_notes_are_found() {
        let mut notes = note("Linux", 7, b"abc");
        notes.extend(note("Xen", 18, &[1, 2, 3, 4, 5, 6, 7, 8]));
        for file in [
            build(
                &[(".text", 1, b"x"), (".modinfo", 1, b"name=a\0")],
                Some(&notes),
            ),
            build(
                &[(".modinfo", 1, b"name=a\0"), (".notes", SHT_NOTE, &notes)],
                None,
            ),
        ] {
            let elf = Elf::parse(&file).unwrap();
            assert_eq!(elf.section(b".modinfo"), Some(&b"name=a\0"[..]));
            assert_eq!(elf.section(b".nothing"), None);
            assert!(elf.has_note(b"Xen", 18));
            assert!(!elf.has_note(b"Xen", 17));
            assert!(!elf.has_note(b"Linux", 18));
        }
    }

    proptest::proptest! {
        #[test]
        fn damaged_files_are_judged_without_a_panic(at in 0usize..700, value in 0u8.., more in proptest::collection::vec((0usize..64, 0u8..), 0..6), cut in 0usize..700) {
            let mut file = build(&[(".modinfo", 1, b"name=a\0"), (".notes", SHT_NOTE, &note("Xen", 18, b"1234"))], Some(&note("Xen", 18, b"1234")));
            for (at, value) in more.into_iter().chain([(at, value)]) {
                if let Some(byte) = file.get_mut(at) {
                    *byte = value;
                }
            }
            file.truncate(cut.max(file.len() / 2));
            if let Some(elf) = Elf::parse(&file) {
                let _ = elf.section(b".modinfo");
                let _ = elf.has_note(b"Xen", 18);
            }
        }
    }
}
