//! The read-only disk that holds the kernel's modules.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use tokio::sync::{OnceCell, watch};

use super::disks;
use crate::modules::release_directory;

/// Where the disk itself is mounted.
const DISK: &str = "/run/hostel/modules";

/// Why the modules are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModulesError {
    #[error(transparent)]
    Disk(#[from] disks::DiskError),
    #[error("cannot make a directory for the modules")]
    Directory(#[source] std::io::Error),
    #[error("cannot mount the modules disk `{node}`")]
    Mount {
        node: PathBuf,
        source: rustix::io::Errno,
    },
    #[error("the modules disk has no modules for kernel {release}")]
    WrongKernel { release: String },
    #[error("cannot show the modules at `{target}`")]
    Bind {
        target: PathBuf,
        source: rustix::io::Errno,
    },
}

/// The modules disk of this machine; mounted at most once.
#[derive(Default)]
pub(crate) struct ModulesDisk {
    once: OnceCell<()>,
    mounted: watch::Sender<bool>,
}

impl ModulesDisk {
    /// Mounts the disk and shows it at `/lib/modules/<release>`. Doing it again is a success.
    pub(crate) async fn mount(&self, serial: &str) -> Result<(), ModulesError> {
        let mount = async || show(&disks::wait_for(serial).await?.node(), &release_directory());
        self.once.get_or_try_init(mount).await?;
        self.mounted.send_replace(true);
        Ok(())
    }

    /// Tells when the kernel can load modules from the disk.
    pub(crate) fn mounted(&self) -> watch::Receiver<bool> {
        self.mounted.subscribe()
    }
}

fn show(node: &Path, target: &Path) -> Result<(), ModulesError> {
    fs_err::create_dir_all(DISK).map_err(ModulesError::Directory)?;
    fs_err::create_dir_all(target).map_err(ModulesError::Directory)?;
    let safe = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(node, DISK, "ext4", safe, None).map_err(|source| ModulesError::Mount {
        node: node.to_owned(),
        source,
    })?;
    let release = target.file_name().unwrap_or_default();
    // A disk holds the tree at its top, or below lib/modules/<release>, or below <release>.
    let candidates = [
        Path::new(DISK).to_owned(),
        Path::new(DISK).join(release),
        Path::new(DISK).join("lib/modules").join(release),
    ];
    let shown = match candidates.iter().find(|d| d.join("modules.dep").exists()) {
        Some(tree) => {
            rustix::mount::mount_bind(tree, target).map_err(|source| ModulesError::Bind {
                target: target.to_owned(),
                source,
            })
        }
        None => Err(ModulesError::WrongKernel {
            release: release.to_string_lossy().into_owned(),
        }),
    };
    if shown.is_err() {
        // The first error is the one to tell; a disk that stays mounted read-only does no harm.
        let _ = rustix::mount::unmount(DISK, UnmountFlags::DETACH);
    }
    shown
}
