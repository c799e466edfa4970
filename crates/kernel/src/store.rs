//! The kernels that are installed: `<store>/<release>/{vmlinux, modules/, kernel.json}`.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use hostel_model::tree::TreeSink;
use sha2::{Digest, Sha256};

use crate::{
    bzimage::{self, is_release},
    modules::{self, ModuleError},
    source::{self, InstallOptions, Source, SourceError},
    tree,
};

/// The version of `kernel.json` that this build writes and reads.
const VERSION: u32 = 1;
const RECORD: &str = "kernel.json";
/// Prefix of an installation that is not finished; never counts, and the next one removes it.
const NEW: &str = ".new-";
/// Prefix of a kernel that is being replaced; put back by the next call when its successor did not arrive.
const OLD: &str = ".old-";

/// What `kernel.json` says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this file's form.
    pub version: u32,
    /// What `uname -r` says.
    pub release: String,
    /// Where it came from, in words.
    pub source: String,
    /// SHA-256 of the vmlinux, in lower-case hex.
    pub vmlinux_sha256: String,
    /// Size of the vmlinux in bytes.
    pub vmlinux_bytes: u64,
    /// Size of the modules and their index files in bytes.
    pub modules_bytes: u64,
    /// When it was installed, in seconds since 1970.
    pub installed_unix: u64,
}

/// A step of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Finding out which packages are needed.
    Find,
    /// Fetching; bytes are told when they are known.
    Fetch,
    /// Unpacking; bytes of the packages.
    Unpack,
    /// Decompressing and checking the kernel, and reading its modules.
    Check,
    /// Writing everything to disk.
    Finish,
}

/// How far an installation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The step.
    pub step: Step,
    /// Bytes done in this step.
    pub done: u64,
    /// Bytes in all, when known.
    pub total: Option<u64>,
}

impl Progress {
    pub(crate) fn start(step: Step) -> Self {
        Self {
            step,
            done: 0,
            total: None,
        }
    }
}

/// Why the store cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such kernel.
    #[error("kernel `{0}` is not installed")]
    NotInstalled(String),
    /// The kernel's files are not whole.
    #[error("kernel `{release}` is damaged ({why}); install it again")]
    Damaged {
        /// The kernel.
        release: String,
        /// What is wrong.
        why: String,
    },
    /// Another process installs or removes.
    #[error("another process is installing or removing kernels in `{0}`")]
    Busy(PathBuf),
    /// A file cannot be read or written; the error names it.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a kernel could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The source did not give it.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Its modules cannot be used.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The store cannot be changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be written; the error names it.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What an installation did.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The kernel.
    pub kernel: Kernel,
    /// Whether a kernel of the same release was there and was replaced.
    pub replaced: bool,
}

/// The directory that holds the installed kernels. One process at a time changes it; any number may read.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// An installed kernel, whole when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    dir: PathBuf,
    record: Record,
}

impl Kernel {
    /// Returns what `uname -r` says.
    pub fn release(&self) -> &str {
        &self.record.release
    }

    /// Returns what is recorded of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Returns the path of the uncompressed kernel, which boots by PVH.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// Returns the directory that becomes `/lib/modules/<release>` in the guest.
    pub fn modules_dir(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// Pushes the whole modules directory into a sink: the root of a read-only disk that the guest binds at
    /// `/lib/modules/<release>`. The same kernel gives the same entries in the same order.
    pub fn modules_tree(&self, sink: &mut dyn TreeSink) -> io::Result<()> {
        tree::push(&self.modules_dir(), sink)
    }
}

impl Store {
    /// Opens the store in a directory, which is made when it is not there.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let dir = dir.into();
        fs_err::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// Returns the installed kernels, the one installed last first. Damaged ones are left out; [`Store::get`] says why.
    pub fn list(&self) -> Result<Vec<Kernel>, StoreError> {
        let mut kernels = Vec::new();
        for entry in fs_err::read_dir(&self.dir)? {
            let name = entry?.file_name();
            if let Some(kernel) = name
                .to_str()
                .filter(|n| is_release(n))
                .and_then(|n| self.get(n).ok())
            {
                kernels.push(kernel);
            }
        }
        kernels.sort_by(|a, b| {
            (b.record.installed_unix, &a.record.release)
                .cmp(&(a.record.installed_unix, &b.record.release))
        });
        Ok(kernels)
    }

    /// Returns one kernel; checks that its files are there.
    pub fn get(&self, release: &str) -> Result<Kernel, StoreError> {
        let not_installed = || StoreError::NotInstalled(release.to_owned());
        if !is_release(release) {
            return Err(not_installed());
        }
        let dir = self.dir.join(release);
        if !dir.is_dir() {
            return Err(not_installed());
        }
        let damaged = |why: String| StoreError::Damaged {
            release: release.to_owned(),
            why,
        };
        let mut text = String::new();
        fs_err::File::open(dir.join(RECORD))
            .and_then(|f| f.take(1 << 16).read_to_string(&mut text))
            .map_err(|e| damaged(e.to_string()))?;
        let record: Record =
            serde_json::from_str(&text).map_err(|e| damaged(format!("{RECORD}: {e}")))?;
        if record.version != VERSION || record.release != release {
            return Err(damaged(format!(
                "{RECORD} is of version {} and names {:?}",
                record.version, record.release
            )));
        }
        let size = fs_err::metadata(dir.join("vmlinux"))
            .map_err(|e| damaged(e.to_string()))?
            .len();
        if size != record.vmlinux_bytes {
            return Err(damaged(format!(
                "vmlinux has {size} bytes instead of {}",
                record.vmlinux_bytes
            )));
        }
        if !dir.join("modules/modules.dep").is_file() {
            return Err(damaged("its modules are missing".to_owned()));
        }
        Ok(Kernel { dir, record })
    }

    /// Removes a kernel; one that is damaged too.
    pub fn remove(&self, release: &str) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        self.sweep()?;
        if !is_release(release) || !self.dir.join(release).is_dir() {
            return Err(StoreError::NotInstalled(release.to_owned()));
        }
        // Renamed first, so that a removal that is killed leaves nothing that looks like a kernel.
        let gone = tempfile::Builder::new().prefix(NEW).tempdir_in(&self.dir)?;
        fs_err::rename(self.dir.join(release), gone.path().join(release))?;
        sync_dir(&self.dir)?;
        gone.close()?;
        Ok(())
    }

    /// Installs a kernel, replacing one of the same release, and checks that the machine can be booted with it.
    ///
    /// Needs no privileges. A call that is killed leaves nothing that counts; the next one removes what it left.
    pub fn install(
        &self,
        source: &Source,
        options: &InstallOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Installed, InstallError> {
        let _lock = self.lock()?;
        self.sweep()?;
        let staging = tempfile::Builder::new().prefix(NEW).tempdir_in(&self.dir)?;
        let scratch = staging.path().join("scratch");
        let new = staging.path().join("kernel");
        fs_err::create_dir(&scratch)?;
        fs_err::create_dir(&new)?;

        let gathered = source::gather(source, options, &scratch, progress)?;
        progress(Progress::start(Step::Check));
        let image = bzimage::open(gathered.image)
            .map_err(|e| SourceError::Image(gathered.image_name, e))?;
        let modules_dir = new.join("modules");
        let found = gathered.modules.join(&image.release);
        if found.is_dir() {
            fs_err::rename(&found, &modules_dir)?;
        } else {
            fs_err::create_dir(&modules_dir)?;
        }
        modules::write_indexes(&modules_dir, &image.release)?;

        let mut file = fs_err::File::create(new.join("vmlinux"))?;
        file.write_all(&image.vmlinux)?;
        let mut modules_bytes = 0;
        for path in tree::files(&modules_dir)? {
            modules_bytes += fs_err::metadata(modules_dir.join(path))?.len();
        }
        let record = Record {
            version: VERSION,
            release: image.release,
            source: gathered.text,
            vmlinux_sha256: hex(&Sha256::digest(&image.vmlinux)),
            vmlinux_bytes: image.vmlinux.len() as u64,
            modules_bytes,
            installed_unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
        };
        let mut text = serde_json::to_vec_pretty(&record).map_err(io::Error::from)?;
        text.push(b'\n');
        fs_err::write(new.join(RECORD), text)?;
        // Not usable is not installed.
        Kernel {
            dir: new.clone(),
            record: record.clone(),
        }
        .boot_modules()?;

        progress(Progress::start(Step::Finish));
        // One call for a thousand files.
        rustix::fs::syncfs(&file).map_err(io::Error::from)?;
        let target = self.dir.join(&record.release);
        let replaced = target.exists();
        if replaced {
            fs_err::rename(&target, self.dir.join(format!("{OLD}{}", record.release)))?;
        }
        fs_err::rename(&new, &target)?;
        sync_dir(&self.dir)?;
        self.sweep_old()?;
        staging.close()?;
        Ok(Installed {
            kernel: Kernel {
                dir: target,
                record,
            },
            replaced,
        })
    }

    /// Takes the lock of whoever changes the store; the kernel gives it back when the process dies.
    fn lock(&self) -> Result<fs_err::File, StoreError> {
        let file = fs_err::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.dir.join(".lock"))?;
        match file.file().try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Busy(self.dir.clone())),
            Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// Removes what killed calls left, or finishes it. The caller holds the lock.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs_err::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(NEW) {
                fs_err::remove_dir_all(entry.path())?;
            }
        }
        self.sweep_old()
    }

    fn sweep_old(&self) -> io::Result<()> {
        for entry in fs_err::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(release) = name.to_str().and_then(|n| n.strip_prefix(OLD)) else {
                continue;
            };
            let target = self.dir.join(release);
            if target.exists() {
                fs_err::remove_dir_all(entry.path())?;
            } else {
                fs_err::rename(entry.path(), target)?;
            }
        }
        Ok(())
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    fs_err::File::open(dir)?.sync_all()
}

/// Writes bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
pub(crate) mod tests;
