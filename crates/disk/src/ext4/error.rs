//! What can go wrong while an image is made or read.

use std::io;

/// Why an image could not be made, or an entry not be taken.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The image is too small for the file system's own tables and journal.
    #[error("an ext4 image of {size} bytes is too small, at least {minimum} are needed")]
    TooSmall {
        /// Asked for, in bytes.
        size: u64,
        /// Needed, in bytes.
        minimum: u64,
    },
    /// Beyond what 32-bit block numbers reach.
    #[error("an ext4 image of {size} bytes is too large, at most {maximum} are possible")]
    TooLarge {
        /// Asked for, in bytes.
        size: u64,
        /// Possible, in bytes.
        maximum: u64,
    },
    /// More than 16 bytes, or a NUL byte.
    #[error("`{0}` cannot be a volume label: at most 16 bytes")]
    Label(String),
    /// Writing the image failed; a full host disk keeps its kind `StorageFull`.
    #[error("cannot write the image")]
    Io(#[source] io::Error),
    /// Reading the data of a file failed.
    #[error("cannot read the data of `{path}`")]
    Data {
        /// The file.
        path: String,
        /// What its reader said.
        source: io::Error,
    },
    /// All blocks of the image are used.
    #[error("the files need more room than the image of {size} bytes has")]
    Full {
        /// The image's size in bytes.
        size: u64,
    },
    /// All inodes of the image are used.
    #[error("an image of {size} bytes has room for {inodes} files only")]
    NoInodes {
        /// The image's size in bytes.
        size: u64,
        /// Its inodes.
        inodes: u32,
    },
    /// Something the file system cannot hold, or that contradicts what came before.
    #[error("cannot store `{path}`: {reason}")]
    Entry {
        /// The entry.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An earlier failure left a file half written.
    #[error("the image is incomplete since an earlier error")]
    Incomplete,
}

impl WriteError {
    pub(super) fn entry(path: &[u8], reason: impl Into<String>) -> Self {
        Self::Entry {
            path: String::from_utf8_lossy(path).into_owned(),
            reason: reason.into(),
        }
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        let kind = match &error {
            WriteError::Io(source) | WriteError::Data { source, .. } => source.kind(),
            WriteError::Full { .. } | WriteError::NoInodes { .. } => io::ErrorKind::StorageFull,
            WriteError::TooSmall { .. }
            | WriteError::TooLarge { .. }
            | WriteError::Label(_)
            | WriteError::Entry { .. }
            | WriteError::Incomplete => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no ext4 superblock.
    #[error("not an ext4 file system")]
    NotExt4,
    /// The file system uses something this reader does not know.
    #[error("the file system uses {0}, which is not supported")]
    Unsupported(String),
    /// The file system contradicts itself. It was written by a guest: this may be damage or malice.
    #[error("the file system is damaged: {0}")]
    Corrupt(String),
    /// Reading the disk failed.
    #[error("cannot read the disk")]
    Io(#[source] io::Error),
    /// The sink refused an entry.
    #[error("cannot hand on `{path}`")]
    Sink {
        /// The entry.
        path: String,
        /// What the sink said.
        source: io::Error,
    },
    /// A file is larger than the caller wants to read.
    #[error("`{path}` has {size} bytes, more than the {limit} expected")]
    TooLarge {
        /// The file.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// The caller's limit in bytes.
        limit: u64,
    },
}

impl ReadError {
    pub(super) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::Io(source) | ReadError::Sink { source, .. } => source.kind(),
            ReadError::Unsupported(_) => io::ErrorKind::Unsupported,
            ReadError::NotExt4 | ReadError::Corrupt(_) | ReadError::TooLarge { .. } => {
                io::ErrorKind::InvalidData
            }
        };
        Self::new(kind, error)
    }
}
