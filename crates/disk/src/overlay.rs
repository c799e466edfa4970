//! Overlays: a distribution's own changes, in qcow2, over a raw base that many share and nobody writes.
//!
//! The base's path is stored relative to the overlay, so that both can be moved together. It serves people and their
//! tools: QEMU and [`open_chain`] are always told both files and never follow a path out of an image.

use std::{
    ffi::OsStr,
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::{Component, Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use hostel_model::Bytes;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder as _, Storage as _, StorageOpenOptions,
    file::File, qcow2::Qcow2, raw::Raw,
};

use crate::{BlockSource, qcow2};

/// How much of a file is read for its header.
const HEADER_MAX: u64 = 64 << 10;
/// The largest disk an overlay can have.
const SIZE_MAX: u64 = 16 << 40;

/// Why an overlay could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The base is missing, or smaller or larger than an overlay over it may be.
    #[error("base `{base}` of {base_size} bytes cannot stand under a disk of {size} bytes")]
    Size {
        /// The base.
        base: PathBuf,
        /// Its size in bytes.
        base_size: u64,
        /// The size asked for in bytes.
        size: u64,
    },
    /// The way from the overlay to the base is too long to be stored.
    #[error("the path from `{overlay}` to `{base}` has more than 1023 bytes")]
    PathTooLong {
        /// The overlay.
        overlay: PathBuf,
        /// The base.
        base: PathBuf,
    },
    /// Not one of our overlays.
    #[error("`{0}` is not a qcow2 overlay")]
    NotAnOverlay(PathBuf),
    /// A file could not be made, written or read.
    #[error("cannot work on `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system or the image library said.
        source: io::Error,
    },
}

/// The two files of a disk, for explicit block nodes: overlay on top, base below, which must be opened read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The qcow2 file.
    pub overlay: PathBuf,
    /// The raw file it stands on, as found from the overlay's own directory.
    pub base: PathBuf,
    /// The size of the disk.
    pub size: Bytes,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> OverlayError {
    let path = path.to_owned();
    move |source| OverlayError::Io { path, source }
}

/// Makes an empty overlay over a raw base. The file must not exist; it is synced, its directory is the caller's to sync.
///
/// `size` is the size of the disk: at least the base's, where it is larger the rest reads as zeros. Needs read access to
/// the base's directory and takes no time worth measuring. On failure nothing is left behind.
pub fn create_overlay(overlay: &Path, base: &Path, size: Bytes) -> Result<(), OverlayError> {
    let base_size = fs_err::metadata(base).map_err(failed(base))?.len();
    if size.0 < base_size || size.0 > SIZE_MAX || !size.0.is_multiple_of(512) {
        return Err(OverlayError::Size {
            base: base.to_owned(),
            base_size,
            size: size.0,
        });
    }
    let name = stored_name(overlay, base)?;
    if name.as_os_str().len() > qcow2::NAME_MAX {
        return Err(OverlayError::PathTooLong {
            overlay: overlay.to_owned(),
            base: base.to_owned(),
        });
    }
    let (raw, len) = qcow2::empty(size.0, name.as_os_str().as_bytes());
    let file = fs_err::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(overlay)
        .map_err(failed(overlay))?;
    let written = file
        .set_len(len)
        .and_then(|()| file.file().write_all_at(&raw, 0))
        .and_then(|()| file.sync_all());
    written.map_err(|source| {
        // The first error is the one to tell; a leftover is found by its missing record.
        let _ = fs_err::remove_file(overlay);
        failed(overlay)(source)
    })
}

/// The way from the overlay's directory to the base. It never begins with a name, so that QEMU cannot take what stands
/// before a colon for a protocol.
fn stored_name(overlay: &Path, base: &Path) -> Result<PathBuf, OverlayError> {
    let base = fs_err::canonicalize(base).map_err(failed(base))?;
    let directory = match overlay.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let directory = fs_err::canonicalize(directory).map_err(failed(directory))?;
    let shared = directory
        .components()
        .zip(base.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = directory.components().count() - shared;
    let mut name = PathBuf::from(if up == 0 { "." } else { ".." });
    name.extend((1..up).map(|_| Component::ParentDir));
    name.extend(base.components().skip(shared));
    Ok(name)
}

/// Reads from an overlay's header what it stands on. A relative base is resolved from the overlay's directory.
pub fn chain(overlay: &Path) -> Result<Chain, OverlayError> {
    let mut raw = Vec::new();
    let file = fs_err::File::open(overlay).map_err(failed(overlay))?;
    file.take(HEADER_MAX)
        .read_to_end(&mut raw)
        .map_err(failed(overlay))?;
    let header = qcow2::parse(&raw)
        .filter(|header| !header.backing.is_empty())
        .ok_or_else(|| OverlayError::NotAnOverlay(overlay.to_owned()))?;
    let stored = Path::new(OsStr::from_bytes(&header.backing));
    let directory = overlay.parent().unwrap_or(Path::new(""));
    Ok(Chain {
        overlay: overlay.to_owned(),
        base: directory.join(stored),
        size: Bytes(header.size),
    })
}

/// A disk read through its overlay. Not while a virtual machine has it open: the caller holds the disk's lock.
pub struct ChainSource {
    // The library behind it is asynchronous; this thread's own runtime hides it. One request at a time.
    inner: Mutex<(tokio::runtime::Runtime, FormatAccess<File>)>,
    len: u64,
}

/// Opens an overlay and the base the caller names, both read-only, whatever path the overlay stores.
///
/// Must not be called, nor the result used, from inside an asynchronous task: use a blocking thread there.
pub fn open_chain(overlay: &Path, base: &Path) -> Result<ChainSource, OverlayError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(failed(overlay))?;
    let access = runtime.block_on(async {
        let below = File::open(StorageOpenOptions::new().filename(base))
            .await
            .map_err(failed(base))?;
        let below = Raw::builder(below)
            .open(DenyImplicitOpenGate::default())
            .await
            .map_err(failed(base))?;
        let above = File::open(StorageOpenOptions::new().filename(overlay))
            .await
            .map_err(failed(overlay))?;
        let disk = Qcow2::<File>::builder(above)
            .backing(Some(FormatAccess::new(below)))
            .data_file(None)
            .open(DenyImplicitOpenGate::default())
            .await
            .map_err(failed(overlay))?;
        if disk.requires_external_data_file() {
            return Err(OverlayError::NotAnOverlay(overlay.to_owned()));
        }
        Ok(FormatAccess::new(disk))
    })?;
    let len = access.size();
    Ok(ChainSource {
        inner: Mutex::new((runtime, access)),
        len,
    })
}

impl BlockSource for ChainSource {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        // The library reads zeros beyond the end.
        if offset
            .checked_add(buf.len() as u64)
            .is_none_or(|end| end > self.len)
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0.block_on(inner.1.read(buf, offset))
    }

    fn len(&self) -> u64 {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_is_found_after_both_have_moved() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("one");
        fs_err::create_dir_all(home.join("distros/x")).unwrap();
        fs_err::create_dir_all(home.join("bases")).unwrap();
        fs_err::write(home.join("bases/b.raw"), vec![7; 65536]).unwrap();
        create_overlay(
            &home.join("distros/x/disk.qcow2"),
            &home.join("bases/b.raw"),
            Bytes::mib(1),
        )
        .unwrap();
        let moved = dir.path().join("two");
        fs_err::rename(&home, &moved).unwrap();
        let chain = chain(&moved.join("distros/x/disk.qcow2")).unwrap();
        assert_eq!(chain.size, Bytes::mib(1));
        assert_eq!(fs_err::read(&chain.base).unwrap(), vec![7; 65536]);

        let source = open_chain(&chain.overlay, &chain.base).unwrap();
        let mut buf = [1; 100];
        source.read_at(65536 - 50, &mut buf).unwrap();
        assert_eq!(buf[..50], [7; 50]);
        assert_eq!(buf[50..], [0; 50]);
        assert_eq!(
            source.read_at((1 << 20) - 50, &mut buf).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn the_named_base_is_read_and_not_the_stored_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs_err::write(path("a:b.raw"), vec![1; 4096]).unwrap();
        fs_err::write(path("other.raw"), vec![2; 4096]).unwrap();
        create_overlay(&path("o.qcow2"), &path("a:b.raw"), Bytes(4096)).unwrap();
        assert_eq!(
            stored_name(&path("o.qcow2"), &path("a:b.raw")).unwrap(),
            Path::new("./a:b.raw")
        );
        fs_err::remove_file(path("a:b.raw")).unwrap();
        let source = open_chain(&path("o.qcow2"), &path("other.raw")).unwrap();
        let mut buf = [0; 16];
        source.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [2; 16]);
    }

    #[test]
    fn impossible_overlays_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("b.raw");
        fs_err::write(&base, vec![0; 8192]).unwrap();
        let overlay = dir.path().join("o.qcow2");
        assert!(matches!(
            create_overlay(&overlay, &base, Bytes(4096)),
            Err(OverlayError::Size { .. })
        ));
        assert!(!overlay.exists());
        create_overlay(&overlay, &base, Bytes(8192)).unwrap();
        assert!(matches!(
            create_overlay(&overlay, &base, Bytes(8192)),
            Err(OverlayError::Io { .. })
        ));
        assert!(matches!(chain(&base), Err(OverlayError::NotAnOverlay(_))));
        assert!(open_chain(&base, &base).is_err());
    }
}
