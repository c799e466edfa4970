//! An uncompressed `newc` archive, as the kernel unpacks it into its first root file system.
//!
//! Reproducible: zero times, root's, inodes counted up; the caller gives the entries in order.

use std::io::{self, Write};

use cpio::newc::{Builder, ModeFileType, trailer};

/// Writes entries one after another.
pub(crate) struct Archive<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// Begins an archive.
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// Adds a directory.
    pub(crate) fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        let entry = self
            .entry(path, mode)
            .nlink(2)
            .set_mode_file_type(ModeFileType::Directory);
        self.write(entry, b"")
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let entry = self
            .entry(path, mode)
            .set_mode_file_type(ModeFileType::Regular);
        self.write(entry, data)
    }

    /// Adds a character device.
    pub(crate) fn char_device(
        &mut self,
        path: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        let entry = self
            .entry(path, mode)
            .rdev_major(major)
            .rdev_minor(minor)
            .set_mode_file_type(ModeFileType::Char);
        self.write(entry, b"")
    }

    /// Writes the end and returns what was written to.
    pub(crate) fn finish(self) -> io::Result<W> {
        trailer(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32) -> Builder {
        self.inode += 1;
        Builder::new(path).ino(self.inode).mode(mode).nlink(1)
    }

    fn write(&mut self, entry: Builder, data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| io::Error::other("a file of 4 GiB does not fit"))?;
        let mut writer = entry.write(&mut self.out, size);
        writer.write_all(data)?;
        writer.finish()?;
        Ok(())
    }
}
