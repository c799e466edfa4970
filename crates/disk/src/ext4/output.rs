//! Writes to the image, gathered into large ones.

use std::{
    io::{self, Read},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// How much is gathered before a write.
const CAPACITY: usize = 1 << 20;

/// The image file and the bytes that follow one another but have not been written yet.
#[derive(Debug)]
pub(super) struct Output {
    file: fs_err::File,
    /// Where the gathered bytes belong, and how many there are at the front of `buf`.
    at: u64,
    filled: usize,
    buf: Box<[u8]>,
}

impl Output {
    /// Creates the file, which must not exist, as a hole of `size` bytes.
    pub(super) fn create(path: &Path, size: u64) -> io::Result<Self> {
        let file = fs_err::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        file.set_len(size)?;
        Ok(Self {
            file,
            at: 0,
            filled: 0,
            buf: vec![0; CAPACITY].into_boxed_slice(),
        })
    }

    /// Returns the free part of the buffer, `len` bytes at most, for bytes that belong at `offset`.
    fn room(&mut self, offset: u64, len: u64) -> io::Result<&mut [u8]> {
        if self.at + self.filled as u64 != offset || self.filled == CAPACITY {
            self.flush()?;
            self.at = offset;
        }
        let end = len.min((CAPACITY - self.filled) as u64) as usize + self.filled;
        Ok(&mut self.buf[self.filled..end])
    }

    pub(super) fn put(&mut self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let room = self.room(offset, data.len() as u64)?;
            let (now, rest) = data.split_at(room.len());
            room.copy_from_slice(now);
            self.filled += now.len();
            offset += now.len() as u64;
            data = rest;
        }
        Ok(())
    }

    pub(super) fn zero(&mut self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let room = self.room(offset, len)?;
            room.fill(0);
            let now = room.len();
            self.filled += now;
            offset += now as u64;
            len -= now as u64;
        }
        Ok(())
    }

    /// Copies `len` bytes of `data` to `offset`. Returns false when `data` ends before.
    pub(super) fn copy(
        &mut self,
        mut offset: u64,
        mut len: u64,
        data: &mut dyn Read,
    ) -> io::Result<bool> {
        while len > 0 {
            let room = self.room(offset, len)?;
            let got = match data.read(room) {
                Ok(0) => return Ok(false),
                Ok(got) => got.min(room.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.filled += got;
            offset += got as u64;
            len -= got as u64;
        }
        Ok(true)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.filled > 0 {
            self.file
                .file()
                .write_all_at(&self.buf[..self.filled], self.at)
                .map_err(|error| {
                    io::Error::new(
                        error.kind(),
                        format!("cannot write `{}`: {error}", self.file.path().display()),
                    )
                })?;
            self.at += self.filled as u64;
            self.filled = 0;
        }
        Ok(())
    }
}
