//! Settings of the network namespace under `/proc/sys/net`.

use std::io;

fn path(name: &str) -> String {
    format!("/proc/sys/net/{name}")
}

/// Reads a number; `None` when the kernel has no such setting.
pub(super) fn read(name: &str) -> io::Result<Option<i64>> {
    match fs_err::read_to_string(path(name)) {
        Ok(text) => text
            .trim()
            .parse()
            .map(Some)
            .map_err(|_| io::Error::other(format!("`{name}` is not a number"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a number unless it is that already: where the settings cannot be written they may be right.
///
/// Whether something was changed.
pub(super) fn set(name: &str, value: i64) -> io::Result<bool> {
    if read(name)? == Some(value) {
        return Ok(false);
    }
    fs_err::write(path(name), value.to_string())?;
    Ok(true)
}

/// The same, and a setting that the kernel lacks is right as it is.
pub(super) fn set_if_there(name: &str, value: i64) -> io::Result<bool> {
    match read(name)? {
        None => Ok(false),
        Some(_) => set(name, value),
    }
}
