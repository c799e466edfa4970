//! Loading kernel modules that travel in the boot image (finit_module(2)).

use std::ffi::{CStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot open the module")]
    Open(#[source] std::io::Error),
    #[error("the kernel refused module `{path}`{}", if *.source == Errno::NOENT { " (a symbol it needs is unknown)" } else { "" })]
    Refused { path: PathBuf, source: Errno },
}

/// `MODULE_INIT_COMPRESSED_FILE` of finit_module(2): the kernel unpacks the file.
const COMPRESSED: i32 = 4;

/// Loads one module file; one that is loaded already is a success.
pub(crate) fn load(path: &Path, parameters: &CStr) -> Result<(), LoadError> {
    let file = fs_err::File::open(path).map_err(LoadError::Open)?;
    load_open(path, &file, parameters)
}

fn load_open(path: &Path, file: impl AsFd, parameters: &CStr) -> Result<(), LoadError> {
    let packed = path
        .extension()
        .is_some_and(|e| e == "xz" || e == "zst" || e == "gz");
    match rustix::system::finit_module(file, parameters, if packed { COMPRESSED } else { 0 }) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(source) => Err(LoadError::Refused {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Returns the directory of the running kernel's modules.
pub(crate) fn release_directory() -> PathBuf {
    let release = rustix::system::uname();
    Path::new("/lib/modules").join(std::ffi::OsStr::from_bytes(release.release().to_bytes()))
}

/// The modules that travel in the boot image: `boot/<stage>-<number>-<name>.ko`.
///
/// Held open, because the modules disk is later mounted over the directory.
pub(crate) struct BootModules {
    directory: OwnedFd,
    names: Vec<OsString>,
}

impl BootModules {
    /// Lists `boot` below a directory of modules; `None` when there is none (everything is built into the kernel).
    pub(crate) fn open(release: &Path) -> Option<Self> {
        let path = release.join("boot");
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
        let mut names: Vec<OsString> = fs_err::read_dir(&path)
            .ok()?
            .filter_map(|e| Some(e.ok()?.file_name()))
            .collect();
        names.sort();
        Some(Self { directory, names })
    }

    /// Loads one stage in the order of the names; returns what failed. The rest is loaded all the same.
    pub(crate) fn load_stage(&self, stage: u8) -> Vec<LoadError> {
        let mut errors = Vec::new();
        for name in self.stage(stage) {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let loaded = rustix::fs::openat(&self.directory, name, flags, Mode::empty())
                .map_err(|e| LoadError::Open(e.into()))
                .and_then(|file| load_open(Path::new(name), file, c""));
            errors.extend(loaded.err());
        }
        errors
    }

    fn stage(&self, stage: u8) -> impl Iterator<Item = &OsString> {
        self.names
            .iter()
            .filter(move |n| n.as_bytes().starts_with(&[stage, b'-']))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_in_the_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir(dir.path().join("boot")).unwrap();
        for name in ["2-03-c.ko", "1-01-b.ko", "1-00-a.ko", "other"] {
            fs_err::write(dir.path().join("boot").join(name), "").unwrap();
        }
        let boot = BootModules::open(dir.path()).unwrap();
        let names = |n| {
            boot.stage(n)
                .map(|p| p.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(b'1'), ["1-00-a.ko", "1-01-b.ko"]);
        assert_eq!(names(b'2'), ["2-03-c.ko"]);
        // Empty files are no modules: each is refused, none stops the others.
        assert_eq!(boot.load_stage(b'1').len(), 2);
        assert!(BootModules::open(&dir.path().join("missing")).is_none());
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = load(Path::new("/nonexistent/x.ko"), c"").unwrap_err();
        assert!(crate::console::chain(&error).contains("/nonexistent/x.ko"));
    }
}
