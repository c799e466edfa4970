//! The kernel that this host runs.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::SourceError;
use crate::deb::{LARGEST_VMLINUZ, read_bounded};

/// Finds and reads the image of a release below a root: Debian and most keep it in `/boot` (which Ubuntu lets only root
/// read), Fedora beside the modules.
pub(super) fn image(root: &Path, release: &str) -> Result<(PathBuf, Vec<u8>), SourceError> {
    let mut tried = Vec::new();
    for path in [
        format!("boot/vmlinuz-{release}"),
        format!("lib/modules/{release}/vmlinuz"),
        format!("usr/lib/modules/{release}/vmlinuz"),
        format!("boot/vmlinux-{release}"),
    ] {
        let path = root.join(path);
        match fs_err::File::open(&path) {
            Ok(mut file) => return Ok((path, read_bounded(&mut file, LARGEST_VMLINUZ)?)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tried.push(format!(
                    "{0} is for root only (`sudo chmod a+r {0}`)",
                    path.display()
                ));
            }
            Err(error) => tried.push(format!("{}: {}", path.display(), error.kind())),
        }
    }
    Err(SourceError::HostImage {
        release: release.to_owned(),
        tried: tried.join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_found_or_every_place_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = image(root.path(), "6.1").unwrap_err().to_string();
        assert!(
            error.contains("boot/vmlinuz-6.1: entity not found")
                && error.contains("lib/modules/6.1/vmlinuz"),
            "{error}"
        );
        fs_err::create_dir_all(root.path().join("lib/modules/6.1")).unwrap();
        fs_err::write(root.path().join("lib/modules/6.1/vmlinuz"), "k").unwrap();
        assert_eq!(image(root.path(), "6.1").unwrap().1, b"k");
    }
}
