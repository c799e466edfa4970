//! A fake daemon, and the program run against it.

mod calls;
mod fake;
mod running;
mod session;
mod tasks;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use fake::{Fake, Script};
pub(crate) use running::{Running, read_until, texts};
pub(crate) use session::Session;

/// No test may take longer for any one step.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Writes a program of the shell and returns its path.
pub(crate) fn shell_program(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs_err::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}
