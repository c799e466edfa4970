//! What a disk file occupies.

use std::{io, os::unix::fs::MetadataExt as _, path::Path};

use hostel_model::Bytes;

/// The two sizes of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What the host's file system has set aside for it.
    pub allocated: Bytes,
    /// Where it ends.
    pub apparent: Bytes,
}

/// Returns both sizes of the file at `path`; follows symbolic links.
pub fn usage(path: impl AsRef<Path>) -> io::Result<Usage> {
    let meta = fs_err::metadata(path.as_ref())?;
    Ok(Usage {
        allocated: Bytes(meta.blocks().saturating_mul(512)),
        apparent: Bytes(meta.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_file_occupies_less_than_it_shows() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 30).unwrap();
        let usage = usage(file.path()).unwrap();
        assert_eq!(usage.apparent, Bytes::gib(1));
        assert!(usage.allocated < Bytes::mib(1), "{usage:?}");
    }

    #[test]
    fn missing_file_is_named() {
        let error = usage("/nonexistent/disk").unwrap_err();
        assert!(error.to_string().contains("/nonexistent/disk"), "{error}");
    }
}
