use std::collections::BTreeSet;

use super::*;
use crate::{
    bzimage::tests::{bzimage, vmlinux},
    codec::Codec,
    modules::tests::write_module,
};

const RELEASE: &str = "6.1.0-test";

/// Makes a kernel image and modules below a directory.
fn files(dir: &Path, release: &str) -> Source {
    fs_err::create_dir_all(dir).unwrap();
    let image = dir.join("vmlinuz");
    fs_err::write(&image, bzimage(Codec::Zstd, release, &vmlinux(release))).unwrap();
    let modules = dir.join("lib/modules").join(release);
    let magic = format!("vermagic={release} SMP");
    for (name, depends) in [
        ("virtio", ""),
        ("virtio_pci", "virtio"),
        ("vmw_vsock_virtio_transport", "virtio"),
        ("scsi_mod", ""),
        ("virtio_scsi", "virtio,scsi_mod"),
        ("sd_mod", "scsi_mod"),
        ("virtio_console", "virtio"),
        ("virtio_net", "virtio"),
        ("virtio-rng", "virtio"),
        ("overlay", ""),
    ] {
        write_module(
            &modules,
            &format!("kernel/{name}.ko"),
            &format!("depends={depends};{magic}"),
        );
    }
    fs_err::write(modules.join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
    Source::Files {
        vmlinuz: image,
        modules_dir: Some(dir.to_owned()),
    }
}

fn install(store: &Store, source: &Source) -> Result<Installed, InstallError> {
    store.install(source, &InstallOptions::default(), &mut |_| {})
}

/// Installs a small kernel, for the tests of other modules.
pub(crate) fn installed(home: &Path) -> Kernel {
    let store = Store::open(home.join("store")).unwrap();
    install(&store, &files(&home.join("files"), RELEASE))
        .unwrap()
        .kernel
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs_err::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_kernel_is_installed_listed_replaced_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path().join("store")).unwrap();
    assert_eq!(store.list().unwrap(), []);
    let source = files(&home.path().join("a"), RELEASE);
    let mut steps = Vec::new();
    let first = store
        .install(&source, &InstallOptions::default(), &mut |p| {
            steps.push(p.step);
        })
        .unwrap();
    assert!(!first.replaced);
    assert_eq!(steps, [Step::Unpack, Step::Check, Step::Finish]);
    assert_eq!(store.get(RELEASE).unwrap(), first.kernel);
    assert_eq!(
        fs_err::read(first.kernel.vmlinux()).unwrap(),
        vmlinux(RELEASE)
    );
    assert_eq!(
        first.kernel.record().vmlinux_sha256,
        hex(&Sha256::digest(vmlinux(RELEASE)))
    );

    assert!(install(&store, &source).unwrap().replaced);
    install(&store, &files(&home.path().join("b"), "6.2.0")).unwrap();
    assert_eq!(store.list().unwrap().len(), 2);
    assert_eq!(
        names(&home.path().join("store")),
        [".lock", RELEASE, "6.2.0"].map(str::to_owned).into()
    );

    store.remove(RELEASE).unwrap();
    assert!(matches!(
        store.remove(RELEASE),
        Err(StoreError::NotInstalled(_))
    ));
    assert!(matches!(
        store.get("../x"),
        Err(StoreError::NotInstalled(_))
    ));
    assert_eq!(
        names(&home.path().join("store")),
        [".lock", "6.2.0"].map(str::to_owned).into()
    );
}

#[test]
fn what_a_killed_call_left_does_not_count_and_is_swept() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let kernel = installed(home.path());
    fs_err::create_dir_all(dir.join(".new-killed/kernel")).unwrap();
    // Killed between the two renames of a replacement.
    fs_err::rename(dir.join(RELEASE), dir.join(format!(".old-{RELEASE}"))).unwrap();
    let store = Store::open(&dir).unwrap();
    assert_eq!(store.list().unwrap(), []);
    let other = install(&store, &files(&home.path().join("b"), "6.2.0")).unwrap();
    assert_eq!(
        names(&dir),
        [".lock", RELEASE, "6.2.0"].map(str::to_owned).into()
    );
    assert_eq!(store.get(RELEASE).unwrap(), kernel);
    // Killed before the old one was removed.
    fs_err::create_dir(dir.join(".old-6.2.0")).unwrap();
    store.remove(RELEASE).unwrap();
    assert_eq!(names(&dir), [".lock", "6.2.0"].map(str::to_owned).into());
    assert_eq!(store.get("6.2.0").unwrap(), other.kernel);
}

#[test]
fn a_kernel_that_cannot_be_used_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path().join("store")).unwrap();
    let check = |name: &str, change: &dyn Fn(&Path)| {
        let dir = home.path().join(name);
        let source = files(&dir, RELEASE);
        change(&dir);
        let error = install(&store, &source).unwrap_err().to_string();
        assert_eq!(
            names(&home.path().join("store")),
            [".lock".to_owned()].into(),
            "{name}"
        );
        error
    };
    let below = format!("lib/modules/{RELEASE}/kernel");
    let error = check("missing", &|d| {
        fs_err::remove_file(d.join(&below).join("sd_mod.ko")).unwrap();
    });
    assert_eq!(
        error,
        format!("kernel {RELEASE} has no module `sd_mod`, and it is not built in")
    );
    let error = check("other", &|d| {
        write_module(d, &format!("{below}/overlay.ko"), "vermagic=5.0 SMP");
    });
    assert_eq!(
        error,
        format!("module `overlay` was built for kernel 5.0, the kernel is {RELEASE}")
    );
    let error = check("image", &|d| {
        fs_err::write(d.join("vmlinuz"), "text").unwrap();
    });
    assert!(error.ends_with("vmlinuz` cannot be booted"), "{error}");
    let error = check("modules", &|d| {
        fs_err::remove_dir_all(d.join("lib")).unwrap();
    });
    assert!(error.contains("holds no modules of kernel"), "{error}");

    let Source::Files { vmlinuz, .. } = files(&home.path().join("without"), RELEASE) else {
        unreachable!()
    };
    let error = install(
        &store,
        &Source::Files {
            vmlinuz,
            modules_dir: None,
        },
    )
    .unwrap_err();
    assert!(
        matches!(error, InstallError::Modules(ModuleError::Missing { .. })),
        "{error}"
    );
}

#[test]
fn damage_is_named() {
    let home = tempfile::tempdir().unwrap();
    let kernel = installed(home.path());
    let store = Store::open(home.path().join("store")).unwrap();
    let record = fs_err::read(kernel.dir.join(RECORD)).unwrap();
    fs_err::write(kernel.dir.join(RECORD), &record[..record.len() / 2]).unwrap();
    assert!(
        store
            .get(RELEASE)
            .unwrap_err()
            .to_string()
            .contains("is damaged")
    );
    assert_eq!(store.list().unwrap(), []);
    fs_err::write(kernel.dir.join(RECORD), &record).unwrap();
    fs_err::write(kernel.vmlinux(), "short").unwrap();
    assert!(
        store
            .get(RELEASE)
            .unwrap_err()
            .to_string()
            .contains("5 bytes instead of")
    );
    store.remove(RELEASE).unwrap();
}

#[test]
fn two_installations_at_once_are_refused() {
    let home = tempfile::tempdir().unwrap();
    installed(home.path());
    let store = Store::open(home.path().join("store")).unwrap();
    let _held = store.lock().unwrap();
    assert!(matches!(store.remove(RELEASE), Err(StoreError::Busy(_))));
    assert!(matches!(
        install(&store, &Source::Host),
        Err(InstallError::Store(StoreError::Busy(_)))
    ));
}

/// A whole package of Debian's.
#[test]
fn debians_cloud_kernel_is_installed() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path().join("store")).unwrap();
    let package = match hostel_testkit::kernel_deb() {
        Ok(package) => package,
        Err(error) => {
            return hostel_testkit::skip("debians_cloud_kernel_is_installed", &error);
        }
    };
    let kernel = install(&store, &Source::Debs(vec![package]))
        .unwrap()
        .kernel;
    assert!(
        kernel.record().vmlinux_bytes > 20 << 20 && kernel.record().modules_bytes > 20 << 20,
        "{:?}",
        kernel.record()
    );
    let modules = kernel.boot_modules().unwrap();
    let at = |name: &str| {
        modules
            .iter()
            .position(|m| m.name == name)
            .unwrap_or_else(|| panic!("{name} is not there"))
    };
    for (before, after) in [
        ("virtio_ring", "virtio"),
        ("virtio", "virtio_pci"),
        ("virtio_pci", "vmw_vsock_virtio_transport"),
        ("vsock", "vmw_vsock_virtio_transport_common"),
        ("scsi_mod", "virtio_scsi"),
        ("failover", "net_failover"),
        ("net_failover", "virtio_net"),
    ] {
        assert!(at(before) < at(after), "{before} {after}");
    }
    let dep = fs_err::read_to_string(kernel.modules_dir().join("modules.dep")).unwrap();
    let line = dep
        .lines()
        .find(|l| l.starts_with("kernel/fs/fuse/virtiofs.ko:"))
        .unwrap();
    for needed in [
        "fs/fuse/fuse.ko",
        "virtio/virtio.ko",
        "virtio/virtio_ring.ko",
    ] {
        assert!(line.contains(needed), "{line}");
    }
    let init = home.path().join("init");
    fs_err::write(&init, "init").unwrap();
    let image = crate::BootImage::assemble(&kernel, &init, &home.path().join("cache")).unwrap();
    assert!(fs_err::metadata(image).unwrap().len() < 3 << 20);
}
