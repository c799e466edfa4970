//! What the program takes from its environment; read here, once, and passed down.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use hostel_model::Paths;

use crate::printer::Printer;

/// Looks up a variable of the environment.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    env::var_os(name)
}

/// Works out where this user's Hostel keeps its things.
pub(crate) fn paths() -> Paths {
    let home = env::home_dir().unwrap_or_else(|| PathBuf::from("/"));
    let lookup = |name: &str| {
        let value = variable(name)?;
        match name {
            // Relative to where the user stands now; the daemon stands elsewhere.
            "HOSTEL_HOME" | "HOSTEL_RUNTIME_DIR" if !value.is_empty() => {
                Some(std::path::absolute(&value).map_or(value, PathBuf::into_os_string))
            }
            _ => Some(value),
        }
    };
    Paths::from_env(
        &lookup,
        rustix::process::getuid().as_raw(),
        &home,
        &|path| path.is_dir(),
    )
}

/// Tells whether the environment asks for text without colour.
pub(crate) fn wants_plain() -> bool {
    variable("NO_COLOR").is_some_and(|v| !v.is_empty())
        || variable("TERM").is_some_and(|v| v == "dumb")
}

/// Looks a program up in PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = variable("PATH")?;
    env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|p| is_executable(p))
}

/// Tells whether a path names a file that we may execute.
pub(crate) fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// What every verb needs.
pub(crate) struct Context {
    /// Where things are.
    pub(crate) paths: Paths,
    /// Where words go.
    pub(crate) printer: Printer,
}
