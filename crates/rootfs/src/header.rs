//! The 512-byte header block: v7, ustar, GNU and star, read and written.

/// Size of a block; headers are one block, data is padded to whole blocks.
pub(crate) const BLOCK: usize = 512;

/// One block.
pub(crate) type Block = [u8; BLOCK];

/// Which dialect a header speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Before POSIX: no magic.
    V7,
    /// POSIX, also the carrier of pax.
    Ustar,
    /// GNU's own, whose prefix field holds other things.
    Gnu,
    /// Jörg Schilling's star: a shorter prefix, times behind it.
    Star,
}

/// A header block, read only.
#[derive(Clone, Copy)]
pub(crate) struct Header<'a>(pub(crate) &'a Block);

impl<'a> Header<'a> {
    /// Tells whether the checksum fits, summed as unsigned or (as some old programs did) as signed bytes.
    pub(crate) fn checksum_fits(self) -> bool {
        let Some(stored) = number(&self.0[148..156]) else {
            return false;
        };
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (i, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&i) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        stored == unsigned || stored == signed
    }

    pub(crate) fn dialect(self) -> Dialect {
        match &self.0[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar") => {
                let time = |at: usize| {
                    matches!(self.0[at], b'0'..=b'7') && matches!(self.0[at + 11], b' ' | 0)
                };
                if &self.0[508..512] == b"tar\0"
                    || (self.0[475] == 0
                        && time(476)
                        && time(488)
                        && self.0[476..500].iter().copied().all(is_time_byte))
                {
                    Dialect::Star
                } else {
                    Dialect::Ustar
                }
            }
            _ => Dialect::V7,
        }
    }

    /// Returns the member's name as the header alone gives it.
    pub(crate) fn name(self) -> Vec<u8> {
        let name = text(&self.0[0..100]);
        let prefix = match self.dialect() {
            Dialect::Ustar => text(&self.0[345..500]),
            Dialect::Star => text(&self.0[345..476]),
            Dialect::Gnu | Dialect::V7 => b"",
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(crate) fn kind(self) -> u8 {
        self.0[156]
    }

    pub(crate) fn mode(self) -> Option<i64> {
        number(&self.0[100..108])
    }

    pub(crate) fn uid(self) -> Option<i64> {
        number(&self.0[108..116])
    }

    pub(crate) fn gid(self) -> Option<i64> {
        number(&self.0[116..124])
    }

    pub(crate) fn size(self) -> Option<u64> {
        u64::try_from(number(&self.0[124..136])?).ok()
    }

    pub(crate) fn mtime(self) -> Option<i64> {
        number(&self.0[136..148])
    }

    pub(crate) fn link_name(self) -> &'a [u8] {
        text(&self.0[157..257])
    }

    /// Returns the names of owner and group; empty where the dialect has none.
    pub(crate) fn owner_names(self) -> (&'a [u8], &'a [u8]) {
        match self.dialect() {
            Dialect::V7 => (b"", b""),
            _ => (text(&self.0[265..297]), text(&self.0[297..329])),
        }
    }

    pub(crate) fn device(self) -> Option<(u32, u32)> {
        let part = |field| u32::try_from(number(field)?).ok();
        Some((part(&self.0[329..337])?, part(&self.0[337..345])?))
    }
}

fn is_time_byte(byte: u8) -> bool {
    matches!(byte, b'0'..=b'7' | b' ' | 0)
}

/// Returns a field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Reads a numeric field: octal digits with blanks around, or base 256 when the top bit is set. A blank field is 0.
///
/// Returns `None` for anything else and for numbers beyond 64 bits with sign.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Base 256, big-endian, two's complement: bit 7 marks the form, bit 6 is the sign.
        let mut value: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        value = (value << 6) | i128::from(first & 0x3f);
        for byte in &field[1..] {
            value = value.checked_mul(256)? | i128::from(*byte);
        }
        return i64::try_from(value).ok();
    }
    // A leading NUL is what some programs leave when the field before it was full.
    let field = if first == 0 { &field[1..] } else { field };
    let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits
        .iter()
        .position(|b| matches!(b, 0 | b' '))
        .unwrap_or(digits.len());
    digits[..end].iter().try_fold(0i64, |value, b| match b {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

/// The largest number an octal field of `width` bytes (one is the terminator) can hold.
pub(crate) const fn octal_max(width: usize) -> u64 {
    (1 << (3 * (width - 1))) - 1
}

/// What a header to be written says. Numbers must fit their octal fields; larger ones go into a pax header.
#[derive(Clone, Copy, Default)]
pub(crate) struct Fields<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) prefix: &'a [u8],
    pub(crate) link_name: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
    pub(crate) device: Option<(u32, u32)>,
}

impl Fields<'_> {
    /// Encodes a ustar header with its checksum.
    pub(crate) fn encode(&self) -> Block {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, self.name);
        put(100, &octal::<8>(u64::from(self.mode)));
        put(108, &octal::<8>(u64::from(self.uid)));
        put(116, &octal::<8>(u64::from(self.gid)));
        put(124, &octal::<12>(self.size));
        put(136, &octal::<12>(self.mtime));
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, self.link_name);
        put(257, b"ustar\x0000");
        let (major, minor) = self.device.unwrap_or_default();
        put(329, &octal::<8>(u64::from(major)));
        put(337, &octal::<8>(u64::from(minor)));
        put(345, self.prefix);
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        let digits = octal::<7>(sum);
        block[148..155].copy_from_slice(&digits);
        block
    }
}

/// Writes `value` with leading zeros and a final NUL.
fn octal<const N: usize>(mut value: u64) -> [u8; N] {
    debug_assert!(
        value <= octal_max(N),
        "numbers that do not fit go into the pax header"
    );
    let mut out = [0; N];
    for digit in out[..N - 1].iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_dialect() {
        let cases: [(&[u8], Option<i64>); 14] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"        ", Some(0)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"0000688\0", None),
            (b"-1      ", None),
            (b"12x", None),
            (b"777777777777777777777777", None),
        ];
        for (field, want) in cases {
            assert_eq!(number(field), want, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn a_written_header_reads_back() {
        let block = Fields {
            name: b"./usr/bin/x",
            link_name: b"./y",
            kind: b'1',
            mode: 0o4755,
            uid: 0o7_777_777,
            gid: 5,
            size: 0o77_777_777_777,
            mtime: 12345,
            device: Some((8, 17)),
            prefix: b"pre/fix",
        }
        .encode();
        let header = Header(&block);
        assert!(header.checksum_fits());
        assert_eq!(header.dialect(), Dialect::Ustar);
        assert_eq!(header.name(), b"pre/fix/./usr/bin/x");
        assert_eq!(header.link_name(), b"./y");
        assert_eq!(
            (header.mode(), header.uid(), header.gid()),
            (Some(0o4755), Some(0o7_777_777), Some(5))
        );
        assert_eq!(
            (header.size(), header.mtime()),
            (Some(0o77_777_777_777), Some(12345))
        );
        assert_eq!(header.device(), Some((8, 17)));
        // Byte 155 only ends the checksum's own field.
        for at in (0..BLOCK).filter(|at| *at != 155) {
            let mut broken = block;
            broken[at] ^= 1;
            assert!(!Header(&broken).checksum_fits(), "byte {at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_block_is_read_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, BLOCK)) {
            let block: Block = bytes.try_into().unwrap();
            let header = Header(&block);
            let _ = (header.checksum_fits(), header.name(), header.size(), header.device(), header.mtime());
        }
    }
}
