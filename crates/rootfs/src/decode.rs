//! Recognises how an archive is compressed, and unpacks it as a stream.

use std::{
    cell::RefCell,
    fmt,
    io::{self, BufRead, BufReader, Read},
    num::NonZero,
    rc::Rc,
    thread::available_parallelism,
};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::GzDecoder;
use liblzma::{bufread::XzDecoder, stream::MtStreamBuilder};

use crate::header::{BLOCK, Header};

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, any number of members.
    Gzip,
    /// xz, any number of streams.
    Xz,
    /// Zstandard, any number of frames.
    Zstd,
    /// bzip2, any number of streams.
    Bzip2,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "tar",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// What the raw side of a stream tells while the decoder owns it.
#[derive(Debug, Default)]
pub(crate) struct RawState {
    /// Bytes taken from the input.
    pub(crate) taken: u64,
    /// The input's own error, kept apart from what a decoder makes of it.
    pub(crate) failure: Option<io::Error>,
    /// Whether bytes that belong to nothing followed the compressed data.
    pub(crate) trailing_garbage: bool,
}

/// A buffered input of which a few bytes can be seen before they are read.
pub(crate) struct Source<R> {
    inner: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    state: Rc<RefCell<RawState>>,
}

impl<R: Read> Source<R> {
    pub(crate) fn new(inner: R) -> (Self, Rc<RefCell<RawState>>) {
        let state = Rc::new(RefCell::new(RawState::default()));
        let buffer = vec![0; 256 << 10].into_boxed_slice();
        (
            Self {
                inner,
                buffer,
                start: 0,
                end: 0,
                state: Rc::clone(&state),
            },
            state,
        )
    }

    /// Returns the next bytes without taking them: at least `want`, fewer only at the end of the input.
    pub(crate) fn peek(&mut self, want: usize) -> io::Result<&[u8]> {
        debug_assert!(
            want <= self.buffer.len(),
            "only headers are looked at in advance"
        );
        if self.start > 0 && self.buffer.len() - self.start < want {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < want {
            let read = self.refill()?;
            if read == 0 {
                break;
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Passes over zeros up to the next other byte or the end.
    fn skip_zeros(&mut self) -> io::Result<()> {
        loop {
            let ready = self.fill_buf()?;
            let zeros = ready.iter().take_while(|b| **b == 0).count();
            let done = zeros < ready.len() || ready.is_empty();
            self.consume(zeros);
            if done {
                return Ok(());
            }
        }
    }

    fn refill(&mut self) -> io::Result<usize> {
        loop {
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(read) => {
                    self.end += read;
                    self.state.borrow_mut().taken += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let told = io::Error::new(error.kind(), "the input failed");
                    self.state.borrow_mut().failure = Some(error);
                    return Err(told);
                }
            }
        }
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let n = ready.len().min(out.len());
        out[..n].copy_from_slice(&ready[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.refill()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, n: usize) {
        self.start += n;
    }
}

/// A decoder for one compressed stream, which gives the input back at its end.
trait OneStream<R>: Read {
    fn into_source(self) -> Source<R>;
}

impl<R: Read> OneStream<R> for GzDecoder<Source<R>> {
    fn into_source(self) -> Source<R> {
        self.into_inner()
    }
}

impl<R: Read> OneStream<R> for XzDecoder<Source<R>> {
    fn into_source(self) -> Source<R> {
        self.into_inner()
    }
}

/// All compressed streams of an input, one after another. Behind the last one, padding is accepted, and other bytes are
/// too, but noted: gzip itself reads such files with a warning.
struct Streams<R: Read, D, F> {
    decoder: Option<D>,
    start: F,
    magic: &'static [u8],
    state: Rc<RefCell<RawState>>,
    source: std::marker::PhantomData<R>,
}

impl<R: Read, D: OneStream<R>, F: Fn(Source<R>) -> io::Result<D>> Streams<R, D, F> {
    fn new(source: Source<R>, magic: &'static [u8], start: F) -> io::Result<Self> {
        let state = Rc::clone(&source.state);
        Ok(Self {
            decoder: Some(start(source)?),
            start,
            magic,
            state,
            source: std::marker::PhantomData,
        })
    }
}

impl<R: Read, D: OneStream<R>, F: Fn(Source<R>) -> io::Result<D>> Read for Streams<R, D, F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.decoder {
            let read = decoder.read(out)?;
            if read > 0 || out.is_empty() {
                return Ok(read);
            }
            let mut source = self.decoder.take().expect("matched above").into_source();
            source.skip_zeros()?;
            let next = source.peek(self.magic.len())?;
            if next.starts_with(self.magic) {
                self.decoder = Some((self.start)(source)?);
            } else if !next.is_empty() {
                self.state.borrow_mut().trailing_garbage = true;
            }
        }
        Ok(0)
    }
}

/// Tells what the first bytes of an input are. Nothing matches: taken for plain tar, whose checksum then decides.
pub(crate) fn recognise(first: &[u8]) -> Compression {
    // A plain archive may begin with a member whose name looks like a magic number.
    if first
        .first_chunk::<BLOCK>()
        .is_some_and(|block| Header(block).checksum_fits())
    {
        return Compression::None;
    }
    match first {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Compression::Bzip2,
        _ => Compression::None,
    }
}

/// Tells what something that is no archive is, for the error.
pub(crate) fn looks_like(first: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 12] = [
        (b"vhdxfile", "a VHDX disk image"),
        (b"conectix", "a VHD disk image"),
        (b"QFI\xfb", "a qcow2 disk image"),
        (b"PK\x03\x04", "a zip archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
        (b"hsqs", "a squashfs image"),
        (b"!<arch>\n", "a Debian package or another ar archive"),
        (b"070701", "a cpio archive"),
        (b"\x04\x22\x4d\x18", "lz4 data, which is not supported"),
        (b"LZIP", "lzip data, which is not supported"),
        (
            b"\x1f\x9d",
            "data of the old compress program, which is not supported",
        ),
        (b"\x5d\0\0", "bare lzma data, which is not supported"),
    ];
    if let Some((_, what)) = KNOWN.iter().find(|(magic, _)| first.starts_with(magic)) {
        return Some(what);
    }
    // The superblock of an ext4 image lies at byte 1024, its magic number 0x38 into it.
    first
        .get(1024 + 0x38..)
        .is_some_and(|b| b.starts_with(b"\x53\xef"))
        .then_some("an ext4 image")
}

/// Puts the right decoder on an input. `memory` bounds what a decoder may take, in bytes.
pub(crate) fn open<'a, R: Read + 'a>(
    source: Source<R>,
    compression: Compression,
    memory: u64,
) -> io::Result<Box<dyn BufRead + 'a>> {
    const BUFFER: usize = 256 << 10;
    Ok(match compression {
        Compression::None => Box::new(source),
        Compression::Gzip => {
            let members = Streams::new(source, b"\x1f\x8b", |source| Ok(GzDecoder::new(source)))?;
            Box::new(BufReader::with_capacity(BUFFER, members))
        }
        Compression::Xz => {
            let threads = available_parallelism().map_or(1, NonZero::get).min(8) as u32;
            let start = move |source| {
                let mut builder = MtStreamBuilder::new();
                builder
                    .threads(threads)
                    .memlimit_threading(memory / 2)
                    .memlimit_stop(memory);
                Ok(XzDecoder::new_stream(source, builder.decoder()?))
            };
            Box::new(BufReader::with_capacity(
                BUFFER,
                Streams::new(source, b"\xfd7zXZ\0", start)?,
            ))
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(memory.max(1 << 10).ilog2().min(31))?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
        Compression::Bzip2 => Box::new(BufReader::with_capacity(
            BUFFER,
            MultiBzDecoder::new(source),
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_are_recognised() {
        let cases: [(&[u8], Compression); 8] = [
            (b"\x1f\x8b\x08", Compression::Gzip),
            (b"\xfd7zXZ\0\0", Compression::Xz),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x5a\x2a\x4d\x18", Compression::Zstd),
            (b"BZh91AY", Compression::Bzip2),
            (b"BZh0", Compression::None),
            (b"", Compression::None),
            (b"hello", Compression::None),
        ];
        for (bytes, want) in cases {
            assert_eq!(recognise(bytes), want, "{}", bytes.escape_ascii());
        }
        let member = crate::header::Fields {
            name: b"BZh9 notes.txt",
            kind: b'0',
            ..Default::default()
        }
        .encode();
        assert_eq!(recognise(&member), Compression::None);
    }

    #[test]
    fn other_things_are_named() {
        let mut ext4 = vec![0; 2048];
        ext4[1024 + 0x38..][..2].copy_from_slice(b"\x53\xef");
        assert_eq!(looks_like(&ext4), Some("an ext4 image"));
        assert_eq!(looks_like(b"vhdxfile\0"), Some("a VHDX disk image"));
        assert_eq!(looks_like(b"hello"), None);
    }

    #[test]
    fn peeking_works_across_the_end_of_the_buffer() {
        let data: Vec<u8> = (0..600_000u32).map(|n| n as u8).collect();
        let (mut source, _) = Source::new(&data[..]);
        let mut at = 0;
        while at < data.len() {
            let seen = source.peek(1000).expect("memory").to_vec();
            assert_eq!(seen[..], data[at..at + seen.len()]);
            assert!(seen.len() >= 1000.min(data.len() - at));
            let step = seen.len().min(777);
            source.consume(step);
            at += step;
        }
    }
}
