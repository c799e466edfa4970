//! Kernels, packages and modules that somebody installs.

use std::path::Component;

use hostel_kernel::fuzzing::{image, indexes, module, package};

/// Takes bytes as a kernel image, as a module, and as a package whose modules get their index files.
pub fn kernel_image(bytes: &[u8]) {
    if let Ok((release, vmlinux)) = image(bytes) {
        assert_good_release(&release);
        assert!(vmlinux >= 64);
    }
    let _ = module(bytes);
    // Packages write files: only what begins as one.
    if bytes.starts_with(b"!<arch>\n") {
        unpack(bytes);
    }
}

fn unpack(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let modules = dir.path().join("modules");
    let _ = package(bytes, &modules);
    for entry in fs_err::read_dir(dir.path()).expect("readable").flatten() {
        assert_eq!(entry.file_name(), "modules", "nothing beside");
    }
    let Ok(releases) = fs_err::read_dir(&modules) else {
        return;
    };
    for release in releases.flatten() {
        let name = release.file_name().into_string().expect("a release");
        assert_good_release(&name);
        for file in indexes(&release.path(), &name).unwrap_or_default() {
            assert!(file.components().all(|c| matches!(c, Component::Normal(_))));
        }
    }
}

/// A release becomes the name of a directory.
fn assert_good_release(release: &str) {
    assert!((1..=64).contains(&release.len()), "{release:?}");
    assert!(
        !release.starts_with('.') && !release.contains('/'),
        "{release:?}"
    );
    assert!(release.bytes().all(|b| b.is_ascii_graphic()), "{release:?}");
}
