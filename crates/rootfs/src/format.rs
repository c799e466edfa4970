//! The forms in which an archive can be written.

use std::{
    fmt,
    io::{self, BufWriter, Write},
    num::NonZero,
    thread::available_parallelism,
};

use flate2::{GzBuilder, write::GzEncoder};
use liblzma::{
    stream::{Check, MtStreamBuilder},
    write::XzEncoder,
};

/// How an archive is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Plain tar.
    #[default]
    Tar,
    /// tar in gzip.
    TarGz,
    /// tar in xz, compressed on all processors.
    TarXz,
    /// tar in Zstandard, compressed on all processors.
    TarZst,
}

/// A text that names no format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an archive format; known are tar, tar.gz, tar.xz and tar.zst")]
pub struct UnknownFormat(String);

impl Format {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::Tar, Self::TarGz, Self::TarXz, Self::TarZst];

    /// Parses a format's name: `tar`, `tar.gz`, `tar.xz` or `tar.zst`, or the short `tgz`, `txz`, `tzst`.
    pub fn parse(text: &str) -> Result<Self, UnknownFormat> {
        match text.to_ascii_lowercase().as_str() {
            "tar" => Ok(Self::Tar),
            "tar.gz" | "tgz" | "gz" => Ok(Self::TarGz),
            "tar.xz" | "txz" | "xz" => Ok(Self::TarXz),
            "tar.zst" | "tzst" | "zst" | "tar.zstd" => Ok(Self::TarZst),
            _ => Err(UnknownFormat(
                text.chars()
                    .take(100)
                    .flat_map(char::escape_debug)
                    .collect(),
            )),
        }
    }

    /// Returns the name, which is also the usual end of a file's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::TarGz => "tar.gz",
            Self::TarXz => "tar.xz",
            Self::TarZst => "tar.zst",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The compressor in front of an output. Its bytes depend on the input and the format only, not on the number of
/// processors.
pub(crate) enum Encoder<W: Write> {
    Plain(BufWriter<W>),
    Gzip(GzEncoder<BufWriter<W>>),
    Xz(XzEncoder<BufWriter<W>>),
    Zstd(zstd::stream::write::Encoder<'static, BufWriter<W>>),
}

impl<W: Write> Encoder<W> {
    pub(crate) fn new(out: W, format: Format) -> io::Result<Self> {
        let out = BufWriter::with_capacity(256 << 10, out);
        let threads = available_parallelism().map_or(1, NonZero::get).min(16) as u32;
        Ok(match format {
            Format::Tar => Self::Plain(out),
            // No time and no name in the header: the same tree gives the same bytes.
            Format::TarGz => Self::Gzip(GzBuilder::new().write(out, flate2::Compression::new(6))),
            Format::TarXz => {
                let stream = MtStreamBuilder::new()
                    .threads(threads)
                    .preset(6)
                    .check(Check::Crc64)
                    .encoder()?;
                Self::Xz(XzEncoder::new_stream(out, stream))
            }
            Format::TarZst => {
                let mut encoder = zstd::stream::write::Encoder::new(out, 3)?;
                encoder.include_checksum(true)?;
                encoder.multithread(threads)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Writes everything that is still inside and returns the output.
    pub(crate) fn finish(self) -> io::Result<W> {
        let out = match self {
            Self::Plain(out) => out,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::Xz(encoder) => encoder.finish()?,
            Self::Zstd(encoder) => encoder.finish()?,
        };
        out.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Gzip(out) => out.write(bytes),
            Self::Xz(out) => out.write(bytes),
            Self::Zstd(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Gzip(out) => out.flush(),
            Self::Xz(out) => out.flush(),
            Self::Zstd(out) => out.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for format in Format::ALL {
            assert_eq!(Format::parse(format.as_str()), Ok(format));
        }
        assert_eq!(Format::parse("TGZ"), Ok(Format::TarGz));
        assert!(
            Format::parse("vhd")
                .unwrap_err()
                .to_string()
                .contains("tar.zst")
        );
    }
}
