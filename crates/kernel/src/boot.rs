//! The boot image: what the kernel unpacks as its first root file system.
//!
//! It holds `/init`, the modules the machine needs before it can see its modules disk, and the directories `/init` mounts
//! on. It is small and uncompressed: unpacking 3 MB costs less than decompressing it.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    modules::{ModuleError, Resolver, name_of},
    newc,
    store::{Kernel, hex},
};

/// What is needed to dial the host and to see and mount disks, in this order: the sooner the agent can dial, the sooner
/// the host knows.
const FIRST: [&str; 5] = [
    "virtio_pci",
    "vmw_vsock_virtio_transport",
    "virtio_scsi",
    "sd_mod",
    "ext4",
];
/// What the machine needs besides.
const SECOND: [&str; 2] = ["virtio_console", "virtio_net"];
/// What is nice to have; a kernel without them boots too.
const OPTIONAL: [&str; 2] = ["virtio_balloon", "virtio_rng"];

/// Directories of the boot image, parents first.
const DIRECTORIES: [(&str, u32); 10] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("lib", 0o755),
];

/// The largest `/init` that is taken.
const LARGEST_INIT: u64 = 64 << 20;
/// How many boot images a cache keeps; more than one, so that two builds do not throw out each other's.
const KEPT: usize = 4;

/// When a module is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before the agent dials the host: the bus, the channel, disks and their file system.
    First,
    /// Afterwards.
    Second,
}

/// One module of the boot image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootModule {
    /// When it is loaded.
    pub stage: Stage,
    /// Its name, with `_`.
    pub name: String,
    /// The file, uncompressed.
    pub path: PathBuf,
}

/// Why a boot image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BootImageError {
    /// A module that is needed is not there.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The program that becomes `/init` is larger than 64 MiB.
    #[error("`{0}` is too large to be the guest's init")]
    InitTooLarge(PathBuf),
    /// A file cannot be read or written; the error names it.
    #[error("cannot make the boot image")]
    Io(#[from] io::Error),
}

impl Kernel {
    /// Returns the modules that travel in the boot image, in load order; those built in are left out.
    ///
    /// Loading one may fail with `ENODEV` when it is a soft dependency for hardware that is not there (an accelerated
    /// checksum, for example): `/init` goes on then.
    pub fn boot_modules(&self) -> Result<Vec<BootModule>, ModuleError> {
        let dir = self.modules_dir();
        let resolver = Resolver::load(&dir, self.release())?;
        let mut order = Vec::new();
        resolver.resolve(&FIRST, &mut order)?;
        let first = order.len();
        resolver.resolve(&SECOND, &mut order)?;
        let optional: Vec<&str> = OPTIONAL
            .into_iter()
            .filter(|name| resolver.has(name))
            .collect();
        resolver.resolve(&optional, &mut order)?;
        Ok(order
            .into_iter()
            .enumerate()
            .map(|(i, path)| BootModule {
                stage: if i < first {
                    Stage::First
                } else {
                    Stage::Second
                },
                name: name_of(&path).unwrap_or_default(),
                path: dir.join(path),
            })
            .collect())
    }
}

/// An assembled boot image.
pub struct BootImage;

impl BootImage {
    /// Returns the path of the boot image for a kernel and an `/init`, assembling it unless the cache holds it.
    ///
    /// The image's name holds the SHA-256 of everything that goes in; the same input gives the same bytes. Older images
    /// of the cache are removed, a few are kept. A call that is killed leaves nothing that the next one would use.
    pub fn assemble(
        kernel: &Kernel,
        init: &Path,
        cache_dir: &Path,
    ) -> Result<PathBuf, BootImageError> {
        if fs_err::metadata(init)?.len() > LARGEST_INIT {
            return Err(BootImageError::InitTooLarge(init.to_owned()));
        }
        let init = fs_err::read(init)?;
        let mut modules = Vec::new();
        for (i, module) in kernel.boot_modules()?.into_iter().enumerate() {
            let stage = match module.stage {
                Stage::First => 1,
                Stage::Second => 2,
            };
            modules.push((
                format!("{stage}-{i:02}-{}.ko", module.name),
                fs_err::read(&module.path)?,
            ));
        }
        let archive = archive(kernel.release(), &init, &modules)?;
        let digest = hex(&Sha256::digest(&archive));

        fs_err::create_dir_all(cache_dir)?;
        let lock = fs_err::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(cache_dir.join(".lock"))?;
        lock.file().lock()?;
        let path = cache_dir.join(format!("boot-{digest}.img"));
        if fs_err::metadata(&path).is_ok_and(|m| m.len() == archive.len() as u64) {
            // Being used makes it the newest.
            fs_err::OpenOptions::new()
                .write(true)
                .open(&path)?
                .file()
                .set_modified(std::time::SystemTime::now())?;
        } else {
            let mut file = tempfile::Builder::new()
                .prefix(".boot-")
                .tempfile_in(cache_dir)?;
            file.write_all(&archive)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|e| e.error)?;
        }
        sweep(cache_dir)?;
        Ok(path)
    }
}

fn archive(release: &str, init: &[u8], modules: &[(String, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut out = newc::Archive::new(Vec::new());
    for (path, mode) in DIRECTORIES {
        out.directory(path, mode)?;
    }
    out.char_device("dev/console", 0o600, 5, 1)?;
    out.char_device("dev/null", 0o666, 1, 3)?;
    out.file("init", 0o755, init)?;
    let mut path = String::from("lib");
    for part in ["modules", release, "boot"] {
        path = format!("{path}/{part}");
        out.directory(&path, 0o755)?;
    }
    for (name, data) in modules {
        out.file(&format!("{path}/{name}"), 0o644, data)?;
    }
    // No /sbin/modprobe: the kernel would call it during its own start, which costs time for nothing. `/init` makes the
    // link when modules can be loaded.
    out.finish()
}

/// Removes all but the newest images, and what killed calls left. The caller holds the lock.
fn sweep(cache_dir: &Path) -> io::Result<()> {
    let mut images = Vec::new();
    for entry in fs_err::read_dir(cache_dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".boot-") {
            fs_err::remove_file(entry.path())?;
        } else if name.starts_with("boot-") && name.ends_with(".img") {
            images.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    images.sort();
    for (_, path) in images.iter().rev().skip(KEPT) {
        fs_err::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::installed;

    #[test]
    fn modules_come_in_load_order_and_stages() {
        let home = tempfile::tempdir().unwrap();
        let kernel = installed(home.path());
        let modules = kernel.boot_modules().unwrap();
        let names = |stage| {
            modules
                .iter()
                .filter(|m| m.stage == stage)
                .map(|m| m.name.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(Stage::First),
            [
                "virtio",
                "virtio_pci",
                "vmw_vsock_virtio_transport",
                "scsi_mod",
                "virtio_scsi",
                "sd_mod"
            ]
        );
        assert_eq!(
            names(Stage::Second),
            ["virtio_console", "virtio_net", "virtio_rng"]
        );
        assert!(modules.windows(2).all(|w| w[0].stage <= w[1].stage));
    }

    #[test]
    fn the_same_input_gives_the_same_image_and_the_cache_stays_small() {
        let home = tempfile::tempdir().unwrap();
        let kernel = installed(home.path());
        let init = home.path().join("init");
        let cache = home.path().join("cache");
        fs_err::write(&init, "init 0").unwrap();
        let first = BootImage::assemble(&kernel, &init, &cache).unwrap();
        let bytes = fs_err::read(&first).unwrap();
        let again = BootImage::assemble(&kernel, &init, &home.path().join("other")).unwrap();
        assert_eq!(fs_err::read(&again).unwrap(), bytes);
        assert_eq!(again.file_name(), first.file_name());

        fs_err::write(cache.join(".boot-killed"), "half").unwrap();
        for n in 1..8 {
            fs_err::write(&init, format!("init {n}")).unwrap();
            let path = BootImage::assemble(&kernel, &init, &cache).unwrap();
            assert_ne!(path, first);
        }
        let left = fs_err::read_dir(&cache).unwrap().count();
        assert_eq!(left, KEPT + 1, "four images and the lock");
    }

    #[test]
    fn the_image_holds_what_the_guest_expects() {
        let home = tempfile::tempdir().unwrap();
        let kernel = installed(home.path());
        let init = home.path().join("init");
        fs_err::write(&init, "the init").unwrap();
        let image =
            fs_err::read(BootImage::assemble(&kernel, &init, &home.path().join("cache")).unwrap())
                .unwrap();
        let mut entries = Vec::new();
        let mut rest = image.as_slice();
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            assert_eq!((entry.mtime(), entry.uid(), entry.gid()), (0, 0, 0));
            entries.push((
                entry.name().to_owned(),
                entry.mode(),
                entry.ino(),
                entry.rdev_major(),
                entry.rdev_minor(),
            ));
            rest = reader.finish().unwrap();
        }
        let find = |name: &str| {
            entries
                .iter()
                .find(|e| e.0 == name)
                .unwrap_or_else(|| panic!("{name} is not there"))
        };
        assert_eq!(find("init").1, 0o100_755);
        assert_eq!(
            (
                find("dev/console").1,
                find("dev/console").3,
                find("dev/console").4
            ),
            (0o020_600, 5, 1)
        );
        assert!(!entries.iter().any(|e| e.0.as_str() == "sbin/modprobe"));
        find("lib/modules/6.1.0-test/boot/1-00-virtio.ko");
        find("lib/modules/6.1.0-test/boot/2-06-virtio_console.ko");
        let inodes: std::collections::BTreeSet<u32> = entries.iter().map(|e| e.2).collect();
        assert_eq!(inodes.len(), entries.len());
        for (i, entry) in entries.iter().enumerate() {
            let parent = entry.0.rsplit_once('/').map(|(p, _)| p);
            assert!(
                parent.is_none_or(|p| entries[..i].iter().any(|e| e.0 == p)),
                "{} comes before its parent",
                entry.0
            );
        }
    }
}
