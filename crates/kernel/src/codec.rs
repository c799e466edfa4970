//! Decompression with a bound: of kernels' payloads, of modules, and of the parts of a `.deb`.

use std::io::{self, Read};

/// Memory that an xz or zstd decoder may use for its window; `xz -9` and `zstd -22` stay below.
const WINDOW: u64 = 256 << 20;

/// A way to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// LZ4's legacy frame: a magic, then blocks of at most 8 MiB, each behind its length. Linux uses it for itself.
    Lz4Legacy,
}

/// Why something could not be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The decompressor refused the bytes, or they end early.
    #[error("the compressed data is damaged")]
    Damaged(#[source] io::Error),
    /// More comes out than is reasonable.
    #[error("the data is larger than {limit} bytes when decompressed")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
}

impl Codec {
    /// Tells the codec by the first bytes.
    pub(crate) fn detect(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0x02, 0x21, 0x4c, 0x18, ..] => Some(Self::Lz4Legacy),
            _ => None,
        }
    }

    /// Tells the codec by the end of a file name; `None` when it names none that is used for archives and modules.
    pub(crate) fn of_name(name: &[u8]) -> Option<Self> {
        [
            (&b".gz"[..], Self::Gzip),
            (b".xz", Self::Xz),
            (b".zst", Self::Zstd),
        ]
        .into_iter()
        .find_map(|(end, codec)| name.ends_with(end).then_some(codec))
    }

    /// Returns a reader of the decompressed bytes. Not for [`Codec::Lz4Legacy`], which has no end of its own.
    pub(crate) fn reader<'a, R: Read + 'a>(self, inner: R) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(inner)),
            Self::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(WINDOW, 0)
                    .map_err(io::Error::other)?;
                Box::new(liblzma::read::XzDecoder::new_stream(inner, stream))
            }
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(inner)?;
                decoder.window_log_max(WINDOW.ilog2())?;
                Box::new(decoder)
            }
            Self::Lz4Legacy => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "lz4 legacy frames are not a stream",
                ));
            }
        })
    }

    /// Decompresses bytes whole. What follows the end of a gzip, xz or zstd stream is ignored, because the payload of a
    /// kernel is followed by its length.
    pub(crate) fn decompress(self, bytes: &[u8], limit: u64) -> Result<Vec<u8>, CodecError> {
        let reader: Box<dyn Read> = match self {
            Self::Lz4Legacy => return lz4_legacy(bytes, limit),
            Self::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
            Self::Xz => self.reader(bytes).map_err(CodecError::Damaged)?,
            Self::Zstd => Box::new(
                zstd::stream::read::Decoder::with_buffer(bytes)
                    .and_then(|mut d| d.window_log_max(WINDOW.ilog2()).map(|()| d.single_frame()))
                    .map_err(CodecError::Damaged)?,
            ),
        };
        let mut out = Vec::new();
        reader
            .take(limit + 1)
            .read_to_end(&mut out)
            .map_err(CodecError::Damaged)?;
        if out.len() as u64 > limit {
            return Err(CodecError::TooLarge { limit });
        }
        Ok(out)
    }
}

/// Decompresses a legacy frame: full blocks until a shorter one or the end of the bytes. A length that cannot be a block's ends it too: Linux puts
/// the length of the whole behind the last block.
fn lz4_legacy(bytes: &[u8], limit: u64) -> Result<Vec<u8>, CodecError> {
    const BLOCK: usize = 8 << 20;
    let damaged =
        |why: String| CodecError::Damaged(io::Error::new(io::ErrorKind::InvalidData, why));
    let mut rest = bytes.get(4..).ok_or_else(|| damaged("no magic".into()))?;
    let mut out = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        if after.is_empty() {
            break;
        }
        let block = after
            .get(..length)
            .ok_or_else(|| damaged(format!("a block of {length} bytes is cut")))?;
        let start = out.len();
        if start as u64 > limit {
            return Err(CodecError::TooLarge { limit });
        }
        out.resize(start + BLOCK, 0);
        let n = lz4_flex::block::decompress_into(block, &mut out[start..])
            .map_err(|e| damaged(e.to_string()))?;
        out.truncate(start + n);
        rest = &after[length..];
        // Only the last one may be short: a frame of empty blocks would cost 8 MiB of zeros for each.
        if n < BLOCK {
            break;
        }
    }
    if !rest.is_empty() && rest.len() != 4 {
        return Err(damaged("the last block is cut, or more follows it".into()));
    }
    if out.len() as u64 > limit {
        return Err(CodecError::TooLarge { limit });
    }
    Ok(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    /// Compresses bytes; the LZ4 blocks hold literals only, which is valid and needs no compressor.
    pub(crate) fn compress(codec: Codec, bytes: &[u8]) -> Vec<u8> {
        match codec {
            Codec::Gzip => {
                let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                w.write_all(bytes).unwrap();
                w.finish().unwrap()
            }
            Codec::Xz => {
                let mut w = liblzma::write::XzEncoder::new(Vec::new(), 1);
                w.write_all(bytes).unwrap();
                w.finish().unwrap()
            }
            Codec::Zstd => zstd::encode_all(bytes, 1).unwrap(),
            Codec::Lz4Legacy => {
                let mut out = vec![0x02, 0x21, 0x4c, 0x18];
                for chunk in bytes.chunks(8 << 20) {
                    let mut block = Vec::new();
                    if chunk.len() < 15 {
                        block.push((chunk.len() as u8) << 4);
                    } else {
                        block.push(0xf0);
                        let mut rest = chunk.len() - 15;
                        while rest >= 255 {
                            block.push(255);
                            rest -= 255;
                        }
                        block.push(rest as u8);
                    }
                    block.extend_from_slice(chunk);
                    out.extend_from_slice(&(block.len() as u32).to_le_bytes());
                    out.extend_from_slice(&block);
                }
                out
            }
        }
    }

    pub(crate) const ALL: [Codec; 4] = [Codec::Gzip, Codec::Xz, Codec::Zstd, Codec::Lz4Legacy];

    #[test]
    fn every_codec_is_known_by_its_first_bytes_and_bounded() {
        let data: Vec<u8> = (0..100_000u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> (n % 20)) as u8)
            .collect();
        for codec in ALL {
            let packed = compress(codec, &data);
            assert_eq!(Codec::detect(&packed), Some(codec));
            assert!(
                codec.decompress(&packed, 100_000).unwrap() == data,
                "{codec:?}"
            );
            assert!(
                matches!(
                    codec.decompress(&packed, 99_999),
                    Err(CodecError::TooLarge { limit: 99_999 })
                ),
                "{codec:?}"
            );
            assert!(
                matches!(
                    codec.decompress(&packed[..packed.len() / 2], 1 << 30),
                    Err(CodecError::Damaged(_))
                ),
                "{codec:?}"
            );
        }
    }

    #[test]
    fn several_lz4_blocks_and_the_length_behind_them_are_read() {
        let data = vec![7u8; (8 << 20) + 5];
        let mut packed = compress(Codec::Lz4Legacy, &data);
        packed.extend_from_slice(&(data.len() as u32).to_le_bytes());
        assert!(Codec::Lz4Legacy.decompress(&packed, 1 << 30).unwrap() == data);
    }

    #[test]
    fn a_heap_of_empty_lz4_blocks_is_refused_at_once() {
        let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
        packed.extend_from_slice(&[1, 0, 0, 0, 0].repeat(1 << 20));
        let result = Codec::Lz4Legacy.decompress(&packed, 1 << 30);
        assert!(matches!(result, Err(CodecError::Damaged(_))), "{result:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(0u8.., 0..300)) {
            for codec in ALL {
                let mut all = compress(codec, b"")[..4].to_vec();
                all.extend_from_slice(&bytes);
                let _ = codec.decompress(&all, 1 << 20);
            }
        }
    }
}
