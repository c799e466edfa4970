//! Where kernels come from.

mod apt;
mod fetch;
mod host;

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    bzimage::ImageError,
    deb::{self, DebError, LARGEST_VMLINUZ, Taken, read_bounded},
    store::{Progress, Step},
    tree::ModulesWriter,
};

/// Where a kernel is to be taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Debian's cloud kernel: through apt where there is one, else from the archive with a pinned digest. On Ubuntu,
    /// which has no such package, its kernel for virtual machines.
    DebianCloud,
    /// Debian packages: one that holds both kernel and modules, or several that do so together (Ubuntu splits them).
    Debs(Vec<PathBuf>),
    /// A kernel image, compressed or not, and the directory of its modules: that directory itself, the one above it,
    /// or the root that holds `lib/modules`. Without one, everything that is needed must be built in.
    Files {
        /// The image.
        vmlinuz: PathBuf,
        /// The modules.
        modules_dir: Option<PathBuf>,
    },
    /// The kernel that this host runs, when its image can be read.
    Host,
}

/// Whether apt may be used to fetch and verify packages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AptUse {
    /// When it is installed.
    #[default]
    WhenThere,
    /// Never.
    Never,
}

/// Settings of an installation.
#[derive(Clone, Debug)]
pub struct InstallOptions {
    /// Where Debian's archive is, without apt: what stands before `/debian-security/pool`.
    pub mirror: String,
    /// Whether apt may be used.
    pub apt: AptUse,
}

impl Default for InstallOptions {
    fn default() -> Self {
        Self {
            mirror: "https://deb.debian.org".to_owned(),
            apt: AptUse::default(),
        }
    }
}

/// Why a kernel could not be had from its source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// apt knows no kernel package, mostly because its lists were never fetched.
    #[error("apt knows none of the packages {0}; run `sudo apt-get update` and try again")]
    AptKnowsNone(String),
    /// apt failed.
    #[error("`{command}` failed: {message}")]
    Apt {
        /// What was run.
        command: String,
        /// The end of what it said.
        message: String,
    },
    /// A program could not be started.
    #[error("cannot run `{program}`")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Nothing is pinned for this machine's architecture.
    #[error("no kernel is known for architecture {0}; give one as a file")]
    NothingPinned(&'static str),
    /// The download failed.
    #[error("cannot fetch {url}; give a .deb or a vmlinuz as a file, or another mirror")]
    Fetch {
        /// What was asked for.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The server sent something else than what is pinned.
    #[error("{url} is not what was expected: {found} instead of {expected}")]
    BadDigest {
        /// What was asked for.
        url: String,
        /// What came: digest or size.
        found: String,
        /// What is pinned.
        expected: String,
    },
    /// A package cannot be unpacked.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// No kernel image among the packages.
    #[error("there is no kernel image (boot/vmlinuz) in {0}")]
    NoImage(String),
    /// The image cannot be booted.
    #[error("`{0}` cannot be booted")]
    Image(PathBuf, #[source] ImageError),
    /// No modules for the kernel.
    #[error("`{dir}` holds no modules of kernel {release}")]
    NoModules {
        /// Where they were looked for.
        dir: PathBuf,
        /// The kernel.
        release: String,
    },
    /// The host's kernel image is nowhere, or cannot be read.
    #[error("the image of the host's kernel {release} cannot be read: {tried}")]
    HostImage {
        /// The host's kernel.
        release: String,
        /// The paths that were tried, each with what was wrong.
        tried: String,
    },
    /// A file cannot be read or written; the error names it.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What came from a source: an image in memory, modules in a directory.
pub(crate) struct Gathered {
    /// The image, compressed or not.
    pub(crate) image: Vec<u8>,
    /// What the image is called in messages.
    pub(crate) image_name: PathBuf,
    /// Where the modules of each release are: `<dir>/<release>`.
    pub(crate) modules: PathBuf,
    /// Where it came from, in words.
    pub(crate) text: String,
}

/// Gets image and modules into `scratch`, which the caller removes.
pub(crate) fn gather(
    source: &Source,
    options: &InstallOptions,
    scratch: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Gathered, SourceError> {
    let modules = scratch.join("modules");
    match source {
        Source::DebianCloud => {
            let downloads = scratch.join("downloads");
            fs_err::create_dir(&downloads)?;
            let (packages, text) = match options.apt {
                AptUse::WhenThere if apt::is_there() => apt::fetch(&downloads, progress)?,
                _ => fetch::pinned(&options.mirror, &downloads, progress)?,
            };
            unpack_all(&packages, modules, text, progress)
        }
        Source::Debs(packages) => {
            let text = packages
                .iter()
                .map(|p| file_name(p))
                .collect::<Vec<_>>()
                .join(", ");
            unpack_all(packages, modules, text, progress)
        }
        Source::Files {
            vmlinuz,
            modules_dir,
        } => {
            progress(Progress::start(Step::Unpack));
            let image = read_bounded(&mut fs_err::File::open(vmlinuz)?, LARGEST_VMLINUZ)?;
            let gathered = Gathered {
                image,
                image_name: vmlinuz.clone(),
                modules,
                text: vmlinuz.display().to_string(),
            };
            if let Some(dir) = modules_dir {
                // The release is in the image, and says which of several directories is meant.
                let release = crate::bzimage::open(gathered.image.clone())
                    .map_err(|e| SourceError::Image(vmlinuz.clone(), e))?
                    .release;
                copy_modules(dir, &release, &gathered.modules)?;
            }
            Ok(gathered)
        }
        Source::Host => {
            progress(Progress::start(Step::Unpack));
            let release = fs_err::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned();
            let (path, image) = host::image(Path::new("/"), &release)?;
            copy_modules(Path::new("/"), &release, &modules)?;
            let text = format!("the host's own ({})", path.display());
            Ok(Gathered {
                image,
                image_name: path,
                modules,
                text,
            })
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

fn unpack_all(
    packages: &[PathBuf],
    modules: PathBuf,
    text: String,
    progress: &mut dyn FnMut(Progress),
) -> Result<Gathered, SourceError> {
    let mut taken = Taken::default();
    let total = packages
        .iter()
        .filter_map(|p| fs_err::metadata(p).ok())
        .map(|m| m.len())
        .sum();
    let mut done = 0;
    let mut image_name = None;
    for package in packages {
        deb::unpack(package, &modules, &mut taken, &mut |n| {
            done += n;
            progress(Progress {
                step: Step::Unpack,
                done,
                total: Some(total),
            });
        })?;
        if taken.vmlinuz.is_some() {
            image_name.get_or_insert_with(|| package.clone());
        }
    }
    match taken.vmlinuz.zip(image_name) {
        Some((image, image_name)) => Ok(Gathered {
            image,
            image_name,
            modules,
            text,
        }),
        None => Err(SourceError::NoImage(text)),
    }
}

/// Copies the modules of a release, wherever below `dir` they are.
fn copy_modules(dir: &Path, release: &str, modules: &Path) -> Result<(), SourceError> {
    let candidates = [
        dir.join("lib/modules").join(release),
        dir.join("usr/lib/modules").join(release),
        dir.join(release),
        dir.to_owned(),
    ];
    let holds_modules = |d: &&PathBuf| {
        d.join("kernel").is_dir()
            || d.join("modules.order").is_file()
            || d.join("modules.dep").is_file()
    };
    let from = candidates
        .iter()
        .find(holds_modules)
        .ok_or_else(|| SourceError::NoModules {
            dir: dir.to_owned(),
            release: release.to_owned(),
        })?;
    ModulesWriter::new(modules.join(release)).take_dir(from)?;
    Ok(())
}
