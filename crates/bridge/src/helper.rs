//! The privileged helper of ordinary users: the same program, installed with two capabilities of its own.
//!
//! Root installs it once; from then on the members of one group may run it. What it is allowed to do, and why, is told in
//! `docs/design/bridge.md`.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, Gid, Uid, XattrFlags, access, fchown, fsetxattr, getxattr},
    io::Errno,
    process::geteuid,
};

/// Where the helper is installed.
pub const PATH: &str = "/usr/local/libexec/hostel/hostel-net";

/// Its owner may do everything, its group may run it, nobody else may do anything.
const MODE: u32 = 0o750;
/// The extended attribute of capabilities(7).
const ATTRIBUTE: &str = "security.capability";
/// Version 2 with the flag that makes them effective; then what is permitted, and what is inheritable: net_bind_service (10)
/// and net_admin (12).
const CAPABILITIES: [u8; 20] = {
    let magic = 0x0200_0001_u32.to_le_bytes();
    let permitted = (1_u32 << 10 | 1 << 12).to_le_bytes();
    let mut bytes = [0; 20];
    let mut i = 0;
    while i < 4 {
        bytes[i] = magic[i];
        bytes[4 + i] = permitted[i];
        i += 1;
    }
    bytes
};

/// Why the helper was not installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Only root may.
    #[error("only root can install or remove the helper")]
    NotRoot,
    /// Somebody else could put another program in its place.
    #[error("`{0}` can be changed by others than root")]
    Unsafe(PathBuf),
    /// A file could not be read or written.
    #[error("cannot {what} `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// A helper that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Where.
    pub path: PathBuf,
    /// The group that may run it.
    pub group: u32,
    /// Whether the caller may run it.
    pub runnable: bool,
    /// What is wrong with it; it must not be used then.
    pub problems: Vec<String>,
}

impl Installed {
    /// Whether it is in order and the caller may run it.
    pub fn is_usable(&self) -> bool {
        self.runnable && self.problems.is_empty()
    }
}

/// Looks for a helper at `path`; `None` when there is none.
pub fn installed(path: &Path) -> Option<Installed> {
    let meta = fs_err::symlink_metadata(path).ok()?;
    let mut problems = Vec::new();
    if !meta.is_file() {
        problems.push("it is not a file".to_owned());
    }
    if meta.uid() != 0 {
        problems.push(format!("its owner is the user {}, not root", meta.uid()));
    }
    if meta.mode() & 0o7777 != MODE {
        problems.push(format!(
            "its mode is {:o}, not {MODE:o}",
            meta.mode() & 0o7777
        ));
    }
    let mut attribute = [0; 64];
    match getxattr(path, ATTRIBUTE, &mut attribute[..]) {
        Ok(length) if attribute[..length] == CAPABILITIES => {}
        Ok(_) => problems.push("its capabilities are others than it was given".to_owned()),
        Err(Errno::NODATA) => problems.push("it has no capabilities".to_owned()),
        Err(errno) => problems.push(format!("its capabilities cannot be read: {errno}")),
    }
    if let Err(error) = check_directories(path) {
        problems.push(error.to_string());
    }
    Some(Installed {
        path: path.to_owned(),
        group: meta.gid(),
        runnable: access(path, Access::EXEC_OK).is_ok(),
        problems,
    })
}

/// Installs `program` as the helper at `path`, for the members of a group. Needs root. What was there is replaced in one step;
/// helpers that run go on.
pub fn install(program: &Path, path: &Path, group: u32) -> Result<(), InstallError> {
    if !geteuid().is_root() {
        return Err(InstallError::NotRoot);
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    make_directory(directory)?;
    check_directories(path)?;
    let mut source = fs_err::File::open(program).map_err(failed("read", program))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let placed = write(&mut source, &temporary, group).and_then(|()| {
        fs_err::rename(&temporary, path)?;
        fs_err::File::open(directory)?.sync_all()
    });
    placed.map_err(|source| {
        // What is half written must not stay; that it cannot be removed is no news after that.
        let _ = fs_err::remove_file(&temporary);
        failed("write", path)(source)
    })
}

/// Removes the helper; one that is not there is a success. Needs root. Helpers that run go on until their network ends.
pub fn uninstall(path: &Path) -> Result<(), InstallError> {
    if !geteuid().is_root() {
        return Err(InstallError::NotRoot);
    }
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", path)(error));
        }
        _ => {}
    }
    // Others may have put something there; then it stays.
    if let Some(directory) = path.parent() {
        let _ = fs_err::remove_dir(directory);
    }
    Ok(())
}

/// Whether the helper at `path` is the same program as `program`. The caller must be able to read both.
pub fn is_same(program: &Path, path: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (fs_err::File::open(program)?, fs_err::File::open(path)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let length = one.read(&mut a)?;
        if length == 0 {
            return Ok(true);
        }
        other.read_exact(&mut b[..length])?;
        if a[..length] != b[..length] {
            return Ok(false);
        }
    }
}

/// Makes a directory and those above it, so that everybody can go through whatever the caller's umask is.
fn make_directory(path: &Path) -> Result<(), InstallError> {
    if path.exists() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        make_directory(above)?;
    }
    fs_err::create_dir(path)
        .and_then(|()| fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755)))
        .map_err(failed("make", path))
}

fn write(source: &mut fs_err::File, to: &Path, group: u32) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = fs_err::OpenOptions::from_options(options).open(to)?;
    io::copy(source, &mut file)?;
    file.flush()?;
    // In this order: a change of the owner takes capabilities away.
    fchown(&file, Some(Uid::ROOT), Some(Gid::from_raw(group)))?;
    file.set_permissions(std::fs::Permissions::from_mode(MODE))?;
    fsetxattr(&file, ATTRIBUTE, &CAPABILITIES, XattrFlags::empty())?;
    file.sync_all()
}

/// Checks that nobody but root can put something else into the place of a file: every directory above it is root's, and
/// others cannot rename what is in it.
fn check_directories(path: &Path) -> Result<(), InstallError> {
    const STICKY: u32 = 0o1000;
    for directory in path.ancestors().skip(1) {
        let meta = fs_err::symlink_metadata(directory).map_err(failed("look at", directory))?;
        let open = meta.mode() & 0o022 != 0 && meta.mode() & STICKY == 0;
        if !meta.is_dir() || meta.uid() != 0 || open {
            return Err(InstallError::Unsafe(directory.to_owned()));
        }
    }
    Ok(())
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> InstallError + 'a {
    move |source| InstallError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capabilities_are_those_two() {
        // As setcap(8) writes cap_net_bind_service,cap_net_admin=ep.
        assert_eq!(CAPABILITIES[..8], [1, 0, 0, 2, 0, 0x14, 0, 0]);
        assert_eq!(CAPABILITIES[8..], [0; 12]);
    }

    #[test]
    fn what_is_not_there_is_not_installed() {
        assert_eq!(installed(Path::new("/no/such/helper")), None);
    }

    #[test]
    fn any_other_program_has_problems() {
        let found = installed(Path::new("/bin/sh")).unwrap();
        assert!(!found.is_usable());
        assert!(!found.problems.is_empty());
    }
}
