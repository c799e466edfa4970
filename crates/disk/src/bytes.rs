//! Little- and big-endian fields of on-disk structures.
//!
//! Getters read zero beyond the end of the slice: images are not trusted, and a cut structure must be an odd value that
//! a check refuses, never a panic. Setters write into buffers of our own making and may assume that they fit.

fn field<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    at.checked_add(N)
        .and_then(|end| data.get(at..end))
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or([0; N])
}

pub(crate) fn le16(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(data, at))
}

pub(crate) fn le32(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(data, at))
}

pub(crate) fn be16(data: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(field(data, at))
}

pub(crate) fn be32(data: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(data, at))
}

pub(crate) fn be64(data: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(data, at))
}

pub(crate) fn put16(data: &mut [u8], at: usize, value: u16) {
    data[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(data: &mut [u8], at: usize, value: u32) {
    data[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_be32(data: &mut [u8], at: usize, value: u32) {
    data[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn put_be64(data: &mut [u8], at: usize, value: u64) {
    data[at..at + 8].copy_from_slice(&value.to_be_bytes());
}
