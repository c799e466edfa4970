//! Extended headers: `length key=value` records, and what the keys mean.

use crate::sparse::SparseKeys;

/// What extended headers say of a member, on top of its header block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extended {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link_path: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) dev_major: Option<u32>,
    pub(crate) dev_minor: Option<u32>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) acl_access: Option<Vec<u8>>,
    pub(crate) acl_default: Option<Vec<u8>>,
    pub(crate) sparse: SparseKeys,
}

impl Extended {
    /// Takes all records of one extended header; later records win over earlier ones.
    pub(crate) fn apply(&mut self, records: &[u8]) -> Result<(), &'static str> {
        let mut rest = records;
        while !rest.is_empty() {
            // Some writers pad with NULs up to the stated size.
            if rest.iter().all(|b| *b == 0) {
                break;
            }
            let (key, value, next) = record(rest).ok_or("its extended header is malformed")?;
            self.set(key, value)?;
            rest = next;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // An empty value takes a keyword back; for an attribute it is a value like any other.
        let given = !value.is_empty();
        let bytes = || given.then(|| value.to_vec());
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link_path = bytes(),
            b"size" => self.size = optional(value, unsigned, "its extended size is not a number")?,
            b"uid" => self.uid = optional(value, signed, "its extended uid is not a number")?,
            b"gid" => self.gid = optional(value, signed, "its extended gid is not a number")?,
            b"mtime" => self.mtime = optional(value, time, "its extended time is not a number")?,
            b"SCHILY.devmajor" => {
                self.dev_major = optional(value, device, "its device number is not a number")?;
            }
            b"SCHILY.devminor" => {
                self.dev_minor = optional(value, device, "its device number is not a number")?;
            }
            b"SCHILY.acl.access" => self.acl_access = bytes(),
            b"SCHILY.acl.default" => self.acl_default = bytes(),
            b"RHT.security.selinux" if given => {
                // The attribute itself ends with a NUL, the keyword's text does not.
                let mut label = value.to_vec();
                if label.last() != Some(&0) {
                    label.push(0);
                }
                self.set_xattr(b"security.selinux".to_vec(), label)?;
            }
            b"SUN.holesdata" => return Err("it is a sparse file in a form that is not supported"),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(decode_keyword(name), value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value =
                        base64(value).ok_or("an attribute in its extended header is not base64")?;
                    self.set_xattr(url_decode(name), value)?;
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), &'static str> {
        // Linux: XATTR_NAME_MAX is 255, XATTR_SIZE_MAX 65536.
        if name.is_empty() || name.len() > 255 || name.contains(&0) || value.len() > 65536 {
            return Err("an attribute in its extended header is longer than Linux allows");
        }
        match self.xattrs.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => self.xattrs.push((name, value)),
        }
        Ok(())
    }
}

/// Splits the first record off.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(unsigned(&bytes[..space])?).ok()?;
    if length > bytes.len() || length < space + 2 {
        return None;
    }
    let (whole, rest) = bytes.split_at(length);
    let (newline, body) = whole[space + 1..].split_last()?;
    let equals = body.iter().position(|b| *b == b'=')?;
    (*newline == b'\n').then_some((&body[..equals], &body[equals + 1..], rest))
}

fn optional<T>(
    value: &[u8],
    parse: impl Fn(&[u8]) -> Option<T>,
    what: &'static str,
) -> Result<Option<T>, &'static str> {
    if value.is_empty() {
        Ok(None)
    } else {
        parse(value).map(Some).ok_or(what)
    }
}

/// Reads a decimal number that fits 63 bits.
pub(crate) fn unsigned(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let value = text.iter().try_fold(0u64, |value, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })?;
    i64::try_from(value).is_ok().then_some(value)
}

fn signed(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => unsigned(digits).map(|n| -(n as i64)),
        None => unsigned(text).map(|n| n as i64),
    }
}

fn device(text: &[u8]) -> Option<u32> {
    u32::try_from(unsigned(text)?).ok()
}

/// Reads `[-]seconds[.fraction]` into seconds rounded down and nanoseconds above them.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = unsigned(whole)? as i64;
    let nanos = (0..9).fold(0u32, |n, i| {
        n * 10 + u32::from(fraction.get(i).map_or(0, |b| b - b'0'))
    });
    if !negative {
        return Some((seconds, nanos));
    }
    // Below zero, digits beyond the ninth round the time down as well.
    let finer = fraction.iter().skip(9).any(|b| *b != b'0');
    let below = nanos + u32::from(finer);
    if below == 0 {
        Some((-seconds, 0))
    } else {
        Some((-seconds - 1, 1_000_000_000 - below))
    }
}

/// Undoes GNU tar's escape of the two characters that a keyword cannot hold.
fn decode_keyword(name: &[u8]) -> Vec<u8> {
    unescape(name, |code| {
        code.eq_ignore_ascii_case(b"3d") || code == b"25"
    })
}

/// Undoes libarchive's URL escape.
fn url_decode(name: &[u8]) -> Vec<u8> {
    unescape(name, |_| true)
}

fn unescape(name: &[u8], takes: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .filter(|code| takes(code));
        let byte = code
            .and_then(|code| std::str::from_utf8(code).ok())
            .and_then(|code| u8::from_str_radix(code, 16).ok());
        if let Some(byte) = byte {
            out.push(byte);
            rest = &tail[2..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// Decodes base 64, with or without padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|b| *b != b'=').map_or(0, |at| at + 1);
    if text.len() - end > 2 || end % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(end / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0);
    for byte in &text[..end] {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

/// Builds the body of an extended header.
#[derive(Default)]
pub(crate) struct Records(Vec<u8>);

impl Records {
    /// Appends one record; the length counts itself.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + decimal_digits(length) != length {
            length = rest + decimal_digits(length);
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    /// Appends an attribute, its name escaped as GNU tar does.
    pub(crate) fn push_xattr(&mut self, name: &[u8], value: &[u8]) {
        let mut key = b"SCHILY.xattr.".to_vec();
        for byte in name {
            match byte {
                b'%' => key.extend_from_slice(b"%25"),
                b'=' => key.extend_from_slice(b"%3D"),
                _ => key.push(*byte),
            }
        }
        self.push(&key, value);
    }

    /// Returns the body; empty when no header is needed.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn decimal_digits(n: usize) -> usize {
    n.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_down() {
        for (text, want) in [
            (&b"0"[..], Some((0, 0))),
            (b"12.5", Some((12, 500_000_000))),
            (b"12.", Some((12, 0))),
            (b"1.0000000019", Some((1, 1))),
            (b"-1.5", Some((-2, 500_000_000))),
            (b"-1.0000000001", Some((-2, 999_999_999))),
            (b"-3", Some((-3, 0))),
            (b"1e3", None),
            (b".5", None),
            (b"99999999999999999999", None),
        ] {
            assert_eq!(time(text), want, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn lengths_count_themselves() {
        for value in [0, 1, 86, 87, 88, 89, 90, 91, 985, 986, 987, 988, 9990] {
            let mut records = Records::default();
            let value = vec![b'v'; value];
            records.push(b"key", &value);
            let (key, got, rest) = record(records.bytes()).expect("a record");
            assert_eq!((key, got, rest), (&b"key"[..], &value[..], &b""[..]));
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"5"[..],
            b"x a=b\n",
            b"7 a=b\n",
            b"6 a=b ",
            b"6 ab\n",
            b"99999999999999999999 a=b\n",
            b"0 a=b\n",
            b"6 a=b\n1",
            b"9 size=x\n",
            b"10 uid=1 \n",
            b"29 LIBARCHIVE.xattr.user.a=*\n",
        ] {
            assert!(
                Extended::default().apply(bad).is_err(),
                "{}",
                bad.escape_ascii()
            );
        }
    }

    #[test]
    fn attributes_of_both_spellings_are_read() {
        let mut records = Records::default();
        records.push_xattr(b"user.a=%b", b"\0\xff=\n");
        records.push(b"LIBARCHIVE.xattr.user.caf%C3%A9%20x", b"AP9h");
        records.push(b"LIBARCHIVE.xattr.user.short", b"YQ==");
        records.push(b"SCHILY.xattr.user.a%41", b"kept as it is");
        records.push(b"RHT.security.selinux", b"system_u:object_r:bin_t:s0");
        records.push(b"SCHILY.xattr.user.short", b"later wins");
        let mut extended = Extended::default();
        extended.apply(records.bytes()).expect("well-formed");
        let want: [(&[u8], &[u8]); 5] = [
            (b"user.a=%b", b"\0\xff=\n"),
            ("user.café x".as_bytes(), b"\0\xffa"),
            (b"user.short", b"later wins"),
            (b"user.a%41", b"kept as it is"),
            (b"security.selinux", b"system_u:object_r:bin_t:s0\0"),
        ];
        let got: Vec<(&[u8], &[u8])> = extended
            .xattrs
            .iter()
            .map(|(n, v)| (&n[..], &v[..]))
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn an_empty_value_takes_a_keyword_back() {
        let mut extended = Extended::default();
        extended
            .apply(b"11 path=ab\n9 uid=77\n")
            .expect("well-formed");
        assert_eq!(
            (extended.path.as_deref(), extended.uid),
            (Some(&b"ab"[..]), Some(77))
        );
        extended.apply(b"8 path=\n7 uid=\n").expect("well-formed");
        assert_eq!((extended.path, extended.uid), (None, None));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = Extended::default().apply(&bytes);
            let _ = base64(&bytes);
            let _ = url_decode(&bytes);
        }
    }
}
