//! Finding programs.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// Directories of administrators' programs, which are not in every user's search path.
const MORE: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Finds a program in `path`, as `PATH` has it, or among the administrators' programs.
pub(crate) fn find(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .chain(MORE.map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|program| is_executable(program))
}

/// Tells whether this is a file that can be executed.
pub(crate) fn is_executable(program: &Path) -> bool {
    program.is_file() && rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok()
}
