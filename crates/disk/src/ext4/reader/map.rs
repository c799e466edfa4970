//! Where the blocks of a file are, and its bytes.

use std::io::{self, Read};

use hostel_model::tree::DataRun;

use super::{inodes::Inode, volume::Volume};
use crate::{
    BlockSource,
    bytes::{le16, le32},
    ext4::{ReadError, checksum, extents, flag, nodes::Extent},
};

/// The most pieces of one file that are kept in memory.
const PIECES_MAX: usize = 1 << 23;
/// What is read from the disk at once.
const CHUNK: usize = 256 << 10;

/// How many more blocks may be visited. No honest file system names a block twice, so all files together have at most
/// as many as the disk.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Budget {
    pub(super) fn new(blocks: u64) -> Self {
        // Attribute inodes and blocks on the edge leave some slack.
        Self(blocks.saturating_add(1024))
    }

    pub(super) fn spend(&mut self, blocks: u64) -> Result<(), ReadError> {
        self.0 = self
            .0
            .checked_sub(blocks)
            .ok_or_else(|| ReadError::corrupt("its files claim more blocks than the disk has"))?;
        Ok(())
    }
}

/// The extents of a file so far, ascending.
struct Collector<'a> {
    inode: &'a Inode,
    budget: &'a mut Budget,
    found: Vec<Extent>,
    /// First block of the file that may come next.
    next: u64,
}

impl Collector<'_> {
    fn corrupt(&self, what: &str) -> ReadError {
        ReadError::corrupt(format!("inode {}: {what}", self.inode.number))
    }

    fn push(&mut self, file: u64, disk: u64, len: u64, disk_blocks: u64) -> Result<(), ReadError> {
        if file < self.next || disk.checked_add(len).is_none_or(|end| end > disk_blocks) {
            return Err(self.corrupt("its blocks overlap or lie beyond the end of the disk"));
        }
        self.budget.spend(len)?;
        self.next = file + len;
        if let Some(last) = self.found.last_mut()
            && last.file + u64::from(last.len) == file
            && last.disk + u64::from(last.len) == disk
            && u32::try_from(u64::from(last.len) + len).is_ok()
        {
            last.len += len as u32;
            return Ok(());
        }
        if self.found.len() >= PIECES_MAX {
            return Err(self.corrupt("it is in too many pieces"));
        }
        self.found.push(Extent {
            file,
            disk,
            len: len as u32,
        });
        Ok(())
    }
}

impl<S: BlockSource> Volume<S> {
    /// Lists where the data of a file or directory is; unwritten and missing blocks are left out.
    pub(super) fn map(&self, inode: &Inode, budget: &mut Budget) -> Result<Vec<Extent>, ReadError> {
        let mut collector = Collector {
            inode,
            budget,
            found: Vec::new(),
            next: 0,
        };
        if inode.has(flag::EXTENTS) {
            let depth = le16(&inode.map, 6);
            if depth > extents::DEPTH_MAX {
                return Err(collector.corrupt("its tree is too deep"));
            }
            self.extent_node(&inode.map, depth, &mut collector)?;
        } else {
            self.block_map(&mut collector)?;
        }
        Ok(collector.found)
    }

    fn extent_node(
        &self,
        raw: &[u8],
        depth: u16,
        collector: &mut Collector<'_>,
    ) -> Result<(), ReadError> {
        let entries = usize::from(le16(raw, 2));
        if le16(raw, 0) != extents::MAGIC || le16(raw, 6) != depth || 12 + entries * 12 > raw.len()
        {
            return Err(collector.corrupt("a node of its tree is wrong"));
        }
        for entry in raw[12..12 + entries * 12].chunks_exact(12) {
            let file = u64::from(le32(entry, 0));
            if depth == 0 {
                let len = le16(entry, 4);
                let disk = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
                // Longer ones are set aside but not written: they read as zeros.
                if len <= 32_768 {
                    collector.push(file, disk, u64::from(len), self.blocks)?;
                } else if file < collector.next {
                    return Err(collector.corrupt("its blocks overlap"));
                } else {
                    collector.next = file + u64::from(len - 32_768);
                }
                continue;
            }
            if file < collector.next {
                return Err(collector.corrupt("its tree is not in order"));
            }
            let disk = u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32;
            collector.budget.spend(1)?;
            let block = self.block(disk)?;
            if self.checksums && !checksum::extent_block_is_right(collector.inode.seed, &block) {
                return Err(collector.corrupt("the checksum of a node of its tree is wrong"));
            }
            self.extent_node(&block, depth - 1, collector)?;
        }
        Ok(())
    }

    /// The map of ext2 and ext3: twelve blocks, then one, two and three levels of blocks of numbers.
    fn block_map(&self, collector: &mut Collector<'_>) -> Result<(), ReadError> {
        let end = collector.inode.size.div_ceil(self.block_size as u64);
        let per_block = (self.block_size / 4) as u64;
        let map = collector.inode.map;
        let mut file = 0;
        for slot in 0..15 {
            let level = (slot as u32).saturating_sub(11);
            let span = per_block.pow(level);
            if file < end {
                self.indirect(u64::from(le32(&map, slot * 4)), level, file, end, collector)?;
            }
            file += span;
        }
        Ok(())
    }

    fn indirect(
        &self,
        disk: u64,
        level: u32,
        file: u64,
        end: u64,
        collector: &mut Collector<'_>,
    ) -> Result<(), ReadError> {
        if disk == 0 {
            return Ok(());
        }
        if level == 0 {
            return collector.push(file, disk, 1, self.blocks);
        }
        collector.budget.spend(1)?;
        let block = self.block(disk)?;
        let span = ((self.block_size / 4) as u64).pow(level - 1);
        for (number, slot) in (0u64..).zip(block.chunks_exact(4)) {
            let begin = file + number * span;
            if begin >= end {
                break;
            }
            self.indirect(u64::from(le32(slot, 0)), level - 1, begin, end, collector)?;
        }
        Ok(())
    }

    /// Reads a small file whole, holes as zeros.
    pub(super) fn contents(&self, inode: &Inode, limit: u64) -> Result<Vec<u8>, ReadError> {
        if inode.size > limit {
            return Err(ReadError::TooLarge {
                path: format!("inode {}", inode.number),
                size: inode.size,
                limit,
            });
        }
        if inode.has(flag::INLINE_DATA) {
            return self.inline_data(inode);
        }
        let mut out = vec![0; inode.size as usize];
        let extents = self.map(inode, &mut Budget::new(self.blocks))?;
        for run in runs(&extents, inode.size, self.block_size) {
            let mut data = FileData::new(self, &extents, std::slice::from_ref(&run));
            let to = &mut out[run.offset as usize..(run.offset + run.len) as usize];
            data.read_exact(to)
                .map_err(|error| data.failed.take().unwrap_or(ReadError::Io(error)))?;
        }
        Ok(out)
    }
}

/// The data of a file as runs of bytes: adjacent extents joined, cut at the end of the file.
pub(super) fn runs(extents: &[Extent], size: u64, block_size: usize) -> Vec<DataRun> {
    let per = block_size as u64;
    let mut runs: Vec<DataRun> = Vec::new();
    for extent in extents {
        let offset = extent.file * per;
        let end = (offset + u64::from(extent.len) * per).min(size);
        if offset >= end {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.offset + last.len == offset => last.len = end - last.offset,
            _ => runs.push(DataRun {
                offset,
                len: end - offset,
            }),
        }
    }
    runs
}

/// Reads the bytes of runs one after another.
pub(super) struct FileData<'a, S> {
    volume: &'a Volume<S>,
    extents: &'a [Extent],
    runs: &'a [DataRun],
    /// How much of the first run is done.
    done: u64,
    buf: Vec<u8>,
    at: usize,
    /// Why reading failed, when it did.
    pub failed: Option<ReadError>,
}

impl<'a, S: BlockSource> FileData<'a, S> {
    pub(super) fn new(volume: &'a Volume<S>, extents: &'a [Extent], runs: &'a [DataRun]) -> Self {
        Self {
            volume,
            extents,
            runs,
            done: 0,
            buf: Vec::new(),
            at: 0,
            failed: None,
        }
    }

    fn fill(&mut self) -> Result<(), ReadError> {
        self.buf.clear();
        self.at = 0;
        while let Some(run) = self.runs.first() {
            if self.done == run.len {
                self.runs = &self.runs[1..];
                self.done = 0;
                continue;
            }
            // Only the last run of a file can end within a block, and runs begin where blocks do.
            let per = self.volume.block_size as u64;
            let file = (run.offset + self.done) / per;
            while let Some(extent) = self.extents.first() {
                if extent.file + u64::from(extent.len) > file {
                    break;
                }
                self.extents = &self.extents[1..];
            }
            let Some(extent) = self.extents.first().filter(|extent| extent.file <= file) else {
                break;
            };
            let left = extent.file + u64::from(extent.len) - file;
            let wanted = (run.len - self.done).div_ceil(per);
            let blocks = left.min(wanted).min((CHUNK as u64 / per).max(1));
            self.buf.resize((blocks * per) as usize, 0);
            self.volume
                .read(extent.disk + (file - extent.file), &mut self.buf)?;
            self.buf
                .truncate((run.len - self.done).min(blocks * per) as usize);
            self.done += self.buf.len() as u64;
            break;
        }
        Ok(())
    }
}

impl<S: BlockSource> Read for FileData<'_, S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.buf.len()
            && let Err(error) = self.fill()
        {
            let shown = error.to_string();
            self.failed = Some(error);
            return Err(io::Error::other(shown));
        }
        let now = (self.buf.len() - self.at).min(out.len());
        out[..now].copy_from_slice(&self.buf[self.at..self.at + now]);
        self.at += now;
        Ok(now)
    }
}
