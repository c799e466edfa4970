//! The `ar` container that a `.deb` is: a magic line, then members with a 60 byte header of text.

use std::io::{self, Read, Take};

/// What every archive begins with.
const MAGIC: &[u8; 8] = b"!<arch>\n";

/// Why bytes are not an `ar` archive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArError {
    /// The first eight bytes are something else.
    #[error("the file is not an ar archive")]
    NotAnArchive,
    /// A member's header cannot be understood.
    #[error("the header of member {0} is damaged")]
    BadHeader(usize),
    /// Reading failed, or the file ends early.
    #[error("cannot read the archive")]
    Read(#[from] io::Error),
}

/// Reads an archive from front to back, member by member.
pub(crate) struct Archive<R> {
    inner: R,
    /// Bytes of the current member, with its padding, that were not read yet.
    rest: u64,
    count: usize,
}

/// One member: its name, and its bytes as a reader.
pub(crate) struct Member<'a, R> {
    /// The name, without padding and without the trailing `/` that GNU's tools write.
    pub(crate) name: String,
    /// The content.
    pub(crate) data: CountedTake<'a, R>,
}

/// A reader of one member, which keeps the archive's position.
pub(crate) struct CountedTake<'a, R> {
    inner: Take<&'a mut R>,
    rest: &'a mut u64,
}

impl<R: Read> Read for CountedTake<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if n == 0 && self.inner.limit() > 0 && !buf.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends inside a member",
            ));
        }
        *self.rest -= n as u64;
        Ok(n)
    }
}

impl<R: Read> Archive<R> {
    /// Opens an archive; reads its magic.
    pub(crate) fn open(mut inner: R) -> Result<Self, ArError> {
        let mut magic = [0; 8];
        match inner.read_exact(&mut magic) {
            Ok(()) if magic == *MAGIC => Ok(Self {
                inner,
                rest: 0,
                count: 0,
            }),
            Ok(()) => Err(ArError::NotAnArchive),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(ArError::NotAnArchive)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Goes to the next member; `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Member<'_, R>>, ArError> {
        // The padding of the last member may be missing.
        io::copy(&mut (&mut self.inner).take(self.rest), &mut io::sink())?;
        self.rest = 0;
        let mut header = Vec::with_capacity(60);
        (&mut self.inner).take(60).read_to_end(&mut header)?;
        if header.is_empty() {
            return Ok(None);
        }
        self.count += 1;
        let bad = || ArError::BadHeader(self.count);
        if header.len() != 60 || !header.ends_with(b"`\n") {
            return Err(bad());
        }
        let text = |range: std::ops::Range<usize>| {
            std::str::from_utf8(&header[range]).ok().map(str::trim_end)
        };
        let name = text(0..16).ok_or_else(bad)?;
        let name = name.strip_suffix('/').unwrap_or(name).to_owned();
        let size: u64 = text(48..58)
            .filter(|t| t.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|t| t.parse().ok())
            .ok_or_else(bad)?;
        self.rest = size + size % 2;
        Ok(Some(Member {
            name,
            data: CountedTake {
                inner: (&mut self.inner).take(size),
                rest: &mut self.rest,
            },
        }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Packs members into an archive, as `ar` does.
    pub(crate) fn pack(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (name, data) in members {
            out.extend_from_slice(
                format!(
                    "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                    0,
                    0,
                    0,
                    100_644,
                    data.len()
                )
                .as_bytes(),
            );
            out.extend_from_slice(data);
            if data.len() % 2 == 1 {
                out.push(b'\n');
            }
        }
        out
    }

    fn names_and_sizes(bytes: &[u8]) -> Result<Vec<(String, usize)>, ArError> {
        let mut archive = Archive::open(bytes)?;
        let mut out = Vec::new();
        while let Some(mut member) = archive.next()? {
            let mut data = Vec::new();
            member.data.read_to_end(&mut data)?;
            out.push((member.name, data.len()));
        }
        Ok(out)
    }

    #[test]
    fn members_come_in_order_also_with_odd_sizes_and_when_skipped() {
        let bytes = pack(&[("debian-binary", b"2.0\n"), ("odd/", b"abc"), ("last", b"")]);
        assert_eq!(
            names_and_sizes(&bytes).unwrap(),
            [
                ("debian-binary".into(), 4),
                ("odd".into(), 3),
                ("last".into(), 0)
            ]
        );
        let mut archive = Archive::open(&bytes[..]).unwrap();
        let mut names = Vec::new();
        while let Some(member) = archive.next().unwrap() {
            names.push(member.name);
        }
        assert_eq!(names, ["debian-binary", "odd", "last"]);
    }

    #[test]
    fn damage_is_an_error() {
        assert!(matches!(
            names_and_sizes(b"hello"),
            Err(ArError::NotAnArchive)
        ));
        let bytes = pack(&[("a", b"some data here")]);
        assert!(
            matches!(
                names_and_sizes(&bytes[..bytes.len() - 4]),
                Err(ArError::Read(_))
            ),
            "cut data"
        );
        assert!(
            matches!(names_and_sizes(&bytes[..40]), Err(ArError::BadHeader(1))),
            "cut header"
        );
        let mut negative = bytes.clone();
        negative[8 + 48] = b'-';
        assert!(matches!(
            names_and_sizes(&negative),
            Err(ArError::BadHeader(1))
        ));
    }

    proptest::proptest! {
        #[test]
        fn packed_members_read_back(members in proptest::collection::vec(("[a-z]{1,15}", proptest::collection::vec(0u8.., 0..200)), 0..6)) {
            let refs: Vec<(&str, &[u8])> = members.iter().map(|(n, d)| (n.as_str(), d.as_slice())).collect();
            let want: Vec<(String, usize)> = members.iter().map(|(n, d)| (n.clone(), d.len())).collect();
            proptest::prop_assert_eq!(names_and_sizes(&pack(&refs)).unwrap(), want);
        }

        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(0u8.., 0..300), magic in proptest::bool::ANY) {
            let mut all = if magic { MAGIC.to_vec() } else { Vec::new() };
            all.extend_from_slice(&bytes);
            let _ = names_and_sizes(&all);
        }
    }
}
