//! Where the bytes of a disk come from.

use std::{io, os::unix::fs::FileExt as _, path::Path};

/// Random access to the bytes of a disk, read-only.
pub trait BlockSource {
    /// Fills `buf` from `offset`; reading beyond the end is an error of kind `UnexpectedEof`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Returns the size of the disk in bytes.
    fn len(&self) -> u64;

    /// Tells whether the disk has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<S: BlockSource + ?Sized> BlockSource for &S {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn len(&self) -> u64 {
        (**self).len()
    }
}

impl<S: BlockSource + ?Sized> BlockSource for Box<S> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn len(&self) -> u64 {
        (**self).len()
    }
}

/// A raw image: the file's bytes are the disk's.
#[derive(Debug)]
pub struct FileSource {
    file: fs_err::File,
    len: u64,
}

impl FileSource {
    /// Opens a raw image read-only. Needs read permission on the file and nothing else.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = fs_err::File::open(path.as_ref())?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }
}

impl BlockSource for FileSource {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.file().read_exact_at(buf, offset)
    }

    fn len(&self) -> u64 {
        self.len
    }
}

impl BlockSource for [u8] {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buf.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }
}
