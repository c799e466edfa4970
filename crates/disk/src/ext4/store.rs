//! What entries hold: checked first, then streamed to the image.

use std::io::{self, Read};

use hostel_model::tree::{DataRun, Node as Entry, NodeMeta};

use super::{
    BLOCK, WriteError, Writer,
    alloc::Run,
    kind,
    nodes::{Content, Extent, Node, push_run},
};

const BLOCK_BYTES: u64 = BLOCK as u64;

impl Writer {
    /// Stores what an entry holds.
    pub(super) fn store(
        &mut self,
        directory: u32,
        path: &[u8],
        entry: Entry<'_>,
    ) -> Result<Node, WriteError> {
        Ok(match entry {
            Entry::Directory => Node::directory(directory, 0),
            Entry::File { size, runs, data } => {
                let extents = self.store_data(path, runs, data)?;
                Node {
                    size,
                    ..Node::new(kind::FILE, Content::Blocks(extents))
                }
            }
            Entry::Symlink(target) => {
                let content = if target.len() < 60 {
                    Content::Target(target.into())
                } else {
                    let extents = self.take_extents(0, 1)?;
                    let at = extents[0].disk * BLOCK_BYTES;
                    self.out.put(at, target)?;
                    self.out
                        .zero(at + target.len() as u64, BLOCK_BYTES - target.len() as u64)?;
                    Content::Blocks(extents)
                };
                Node {
                    size: target.len() as u64,
                    ..Node::new(kind::LINK, content)
                }
            }
            Entry::CharDevice { major, minor } => {
                Node::new(kind::CHAR, Content::Device { major, minor })
            }
            Entry::BlockDevice { major, minor } => {
                Node::new(kind::BLOCK, Content::Device { major, minor })
            }
            Entry::Fifo => Node::new(kind::FIFO, Content::Nothing),
            Entry::Socket => Node::new(kind::SOCKET, Content::Nothing),
            Entry::HardLink(_) => {
                return Err(WriteError::entry(path, "a hard link has nothing to store"));
            }
        })
    }

    /// Streams the runs of a file to fresh blocks; blocks that runs only touch are filled up with zeros.
    fn store_data(
        &mut self,
        path: &[u8],
        runs: &[DataRun],
        data: &mut dyn Read,
    ) -> Result<Vec<Extent>, WriteError> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut runs = runs.iter().filter(|run| run.len > 0).peekable();
        while let Some(first) = runs.next() {
            // All runs that share blocks or follow one another are one stretch of blocks.
            let begin = first.offset / BLOCK_BYTES;
            let mut group = vec![*first];
            let mut end = (first.offset + first.len).div_ceil(BLOCK_BYTES);
            while let Some(next) =
                runs.next_if(|next| next.offset / BLOCK_BYTES <= end && group.len() < 1024)
            {
                // A stretch that was cut short for its length begins anew on a block of its own.
                end = (next.offset + next.len).div_ceil(BLOCK_BYTES);
                group.push(*next);
            }
            while let Some(next) = runs.next_if(|next| next.offset / BLOCK_BYTES < end) {
                end = (next.offset + next.len).div_ceil(BLOCK_BYTES);
                group.push(*next);
            }
            let placed = self.take_extents(begin, end - begin)?;
            self.stream(path, &group, &placed, data)?;
            for extent in placed {
                push_run(
                    &mut extents,
                    extent.file,
                    Run {
                        start: extent.disk,
                        len: u64::from(extent.len),
                    },
                );
            }
        }
        Ok(extents)
    }

    fn stream(
        &mut self,
        path: &[u8],
        runs: &[DataRun],
        placed: &[Extent],
        data: &mut dyn Read,
    ) -> Result<(), WriteError> {
        let mut runs = runs.iter().copied();
        let mut current = runs.next();
        for extent in placed {
            let mut at = extent.file * BLOCK_BYTES;
            let end = at + u64::from(extent.len) * BLOCK_BYTES;
            let shift = extent.disk * BLOCK_BYTES;
            let origin = at;
            while at < end {
                let disk = shift + (at - origin);
                match &mut current {
                    Some(run) if run.offset <= at => {
                        let now = run.len.min(end - at);
                        self.copy(path, disk, now, data)?;
                        at += now;
                        run.offset += now;
                        run.len -= now;
                        if run.len == 0 {
                            current = runs.next();
                        }
                    }
                    gap => {
                        let until = gap.map_or(end, |run| run.offset.min(end));
                        self.out.zero(disk, until - at)?;
                        at = until;
                    }
                }
            }
        }
        Ok(())
    }

    fn copy(
        &mut self,
        path: &[u8],
        disk: u64,
        len: u64,
        data: &mut dyn Read,
    ) -> Result<(), WriteError> {
        let mut source = Source { data, failed: None };
        let whole = self.out.copy(disk, len, &mut source);
        let failed = source.failed.take();
        let named = |source| WriteError::Data {
            path: String::from_utf8_lossy(path).into_owned(),
            source,
        };
        match (whole, failed) {
            (_, Some(error)) => Err(named(error)),
            (Err(error), None) => Err(error.into()),
            (Ok(false), None) => Err(named(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the data ends too early",
            ))),
            (Ok(true), None) => Ok(()),
        }
    }
}

/// Remembers a failure of the data's reader apart from one of the image.
struct Source<'a> {
    data: &'a mut dyn Read,
    failed: Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.data.read(buf).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failed = Some(error);
            }
            kind.into()
        })
    }
}

/// Refuses what ext4 cannot hold, before anything is changed.
pub(super) fn check(path: &[u8], meta: &NodeMeta, entry: &Entry<'_>) -> Result<(), WriteError> {
    if meta.mtime_nsec >= 1_000_000_000 {
        return Err(WriteError::entry(
            path,
            "its time has more than a second of nanoseconds",
        ));
    }
    match entry {
        Entry::File { size, runs, .. } => {
            let mut end = 0u64;
            for run in *runs {
                let next = run
                    .offset
                    .checked_add(run.len)
                    .filter(|next| run.offset >= end && *next <= *size);
                end = next.ok_or_else(|| {
                    WriteError::entry(path, "its data runs overlap or lie beyond its end")
                })?;
            }
            // The last block number of 32 bits is the kernel's mark for "none".
            if *size > u64::from(u32::MAX) * BLOCK_BYTES {
                return Err(WriteError::entry(
                    path,
                    format!("{size} bytes are more than a file can have"),
                ));
            }
        }
        Entry::Symlink(target) => {
            if target.is_empty() || target.len() >= BLOCK || target.contains(&0) {
                return Err(WriteError::entry(
                    path,
                    "the target of a symbolic link has 1 to 4095 bytes and no NUL",
                ));
            }
        }
        Entry::CharDevice { major, minor } | Entry::BlockDevice { major, minor } => {
            if *major > 0xfff || *minor > 0xf_ffff {
                return Err(WriteError::entry(
                    path,
                    format!("no device can have the numbers {major}:{minor}"),
                ));
            }
        }
        Entry::Directory | Entry::HardLink(_) | Entry::Fifo | Entry::Socket => {}
    }
    Ok(())
}
