//! Is a program static, and is it position independent?

/// What a program needs to be started. The guest's `/init` has to be [`Kind::Static`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Static and position independent.
    StaticPie,
    /// Static at a fixed address.
    Static,
    /// It names a loader, or libraries.
    Dynamic,
    /// Not a 64-bit little-endian program.
    Other,
}

const ET_EXEC: u64 = 2;
const ET_DYN: u64 = 3;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;

/// Tells by the headers: a loader is named by a segment, libraries by the dynamic section.
pub(crate) fn kind(file: &[u8]) -> Kind {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return Kind::Other;
    }
    let number = |at: usize, len: usize| -> u64 {
        let bytes = file.get(at..at + len).unwrap_or_default();
        bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
    };
    let (table, size, count) = (
        number(32, 8) as usize,
        number(54, 2) as usize,
        number(56, 2) as usize,
    );
    for segment in (0..count).map(|i| table.saturating_add(i * size)) {
        if segment >= file.len() {
            return Kind::Other;
        }
        match number(segment, 4) {
            PT_INTERP => return Kind::Dynamic,
            PT_DYNAMIC => {
                let (start, len) = (
                    number(segment + 8, 8) as usize,
                    number(segment + 32, 8) as usize,
                );
                let tags = (start..start.saturating_add(len).min(file.len()))
                    .step_by(16)
                    .map(|at| number(at, 8));
                if tags
                    .take_while(|tag| *tag != DT_NULL)
                    .any(|tag| tag == DT_NEEDED)
                {
                    return Kind::Dynamic;
                }
            }
            _ => {}
        }
    }
    match number(16, 2) {
        ET_DYN => Kind::StaticPie,
        ET_EXEC => Kind::Static,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(kind: u16, segments: &[(u32, &[(u64, u64)])]) -> Vec<u8> {
        let mut out = vec![0; 64];
        out[..6].copy_from_slice(b"\x7fELF\x02\x01");
        out[16..18].copy_from_slice(&kind.to_le_bytes());
        out[32..40].copy_from_slice(&64u64.to_le_bytes());
        out[54..56].copy_from_slice(&56u16.to_le_bytes());
        out[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        let mut data = 64 + segments.len() * 56;
        for (kind, tags) in segments {
            let mut header = [0; 56];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&(data as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(tags.len() as u64 * 16).to_le_bytes());
            out.extend_from_slice(&header);
            data += tags.len() * 16;
        }
        for (tag, value) in segments.iter().flat_map(|(_, tags)| *tags) {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&value.to_le_bytes());
        }
        out
    }

    #[test]
    fn kinds_are_told_apart() {
        for (file, want) in [
            (
                program(3, &[(1, &[]), (2, &[(5, 0), (0, 0), (1, 9)])]),
                Kind::StaticPie,
            ),
            (program(2, &[(1, &[])]), Kind::Static),
            (program(3, &[(2, &[(1, 9), (0, 0)])]), Kind::Dynamic),
            (program(3, &[(3, &[])]), Kind::Dynamic),
            (b"#!/bin/sh".to_vec(), Kind::Other),
        ] {
            assert_eq!(kind(&file), want);
        }
        // The test's own program is dynamic, as every ordinary build is.
        assert_eq!(
            kind(&fs_err::read(std::env::current_exe().unwrap()).unwrap()),
            Kind::Dynamic
        );
    }
}
