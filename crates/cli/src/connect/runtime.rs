//! The directory of sockets: private, or not used at all.

use std::{
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::Path,
};

use hostel_model::{ErrorCode, Failure};

use crate::trouble::Trouble;

/// The longest path of a unix socket, without its closing NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Makes the directory when it is missing, and checks that nobody else could put a socket there.
///
/// A directory that others may only read is closed; one that others may write, or that is not ours, is refused.
pub(crate) fn check(dir: &Path) -> Result<(), Trouble> {
    let longest = dir.join("stream.sock");
    if longest.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(refused(
            dir,
            format!("sockets in it would have paths longer than {MAX_SOCKET_PATH} bytes"),
        ));
    }
    if let Err(e) = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
    {
        return Err(Trouble::file(
            format!("cannot make the runtime directory `{}`", dir.display()),
            &e,
        ));
    }
    let meta = fs_err::symlink_metadata(dir)
        .map_err(|e| Trouble::file("cannot look at the runtime directory", &e))?;
    let uid = rustix::process::getuid().as_raw();
    if !meta.is_dir() {
        return Err(refused(dir, "it is not a directory".into()));
    }
    if meta.uid() != uid {
        return Err(refused(
            dir,
            format!("it belongs to uid {}, not to uid {uid}", meta.uid()),
        ));
    }
    let mode = meta.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(refused(
            dir,
            format!("others may write to it (mode {mode:o})"),
        ));
    }
    if mode & 0o077 != 0 {
        fs_err::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .map_err(|e| Trouble::file("cannot close the runtime directory to others", &e))?;
    }
    Ok(())
}

fn refused(dir: &Path, why: String) -> Trouble {
    Failure::new(
        ErrorCode::Daemon,
        format!(
            "cannot use the runtime directory `{}`: {why}",
            dir.display()
        ),
    )
    .hint("remove it, or set HOSTEL_RUNTIME_DIR to a short path of a private directory")
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        fs_err::create_dir_all(&path).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_private_directory_is_made_or_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        check(&path).unwrap();
        check(&path).unwrap();
        assert_eq!(fs_err::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let (_keep, path) = made(0o755);
        check(&path).unwrap();
        assert_eq!(fs_err::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_that_others_could_use_is_refused() {
        for mode in [0o770, 0o707, 0o777] {
            let (_keep, path) = made(mode);
            assert!(
                check(&path)
                    .unwrap_err()
                    .to_string()
                    .contains("others may write"),
                "{mode:o}"
            );
        }
        let (keep, path) = made(0o700);
        let link = keep.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(
            check(&link)
                .unwrap_err()
                .to_string()
                .contains("not a directory")
        );
        let long = keep.path().join("x".repeat(100));
        assert!(
            check(&long)
                .unwrap_err()
                .to_string()
                .contains("longer than")
        );
        assert!(!long.exists());
        let test = "a_directory_that_others_could_use_is_refused (foreign owner)";
        if hostel_testkit::require(test, hostel_testkit::Need::Root).is_some() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert!(check(&path).unwrap_err().to_string().contains("uid 12345"));
        }
    }
}
