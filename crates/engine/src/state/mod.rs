//! Durable state: small versioned JSON files, each replaced as a whole and never edited in place.
//!
//! A reader sees the old file or the new one, whatever was killed in between. A file that cannot be understood is
//! reported by name and left where it is.

mod files;
mod rules;
mod setting;
mod sweep;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

pub use files::{BaseFile, DistroFile, OsInfo, RegistryFile};
pub use rules::{
    FirewallRules, NetworkKind, Placement, PortRule, PortRules, RulesError, Transport,
};
pub use setting::Setting;
pub use sweep::{SweepReport, sweep};

/// The largest state file that is read, in bytes.
const MAX_STATE_FILE: u64 = 4 << 20;

/// Why a state file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file or its directory cannot be used.
    #[error("cannot {what} state file `{path}`")]
    Io {
        /// read | write
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is cut, or something else than we wrote.
    #[error("state file `{path}` is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A newer Hostel wrote it.
    #[error("state file `{path}` has format {found}, this version understands up to {known}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that is understood.
        known: u32,
    },
}

/// A kind of state file with numbered formats.
pub trait StateFile: Serialize + DeserializeOwned {
    /// The format that this build writes.
    const FORMAT: u32;

    /// The steps from format `i + 1` to `i + 2`, each on the raw JSON.
    const MIGRATIONS: &'static [fn(&mut serde_json::Map<String, serde_json::Value>)];
}

/// Reads a state file; `None` when there is none.
pub fn load<T: StateFile>(path: &Path) -> Result<Option<T>, StateError> {
    use std::io::Read as _;
    let io = |source| StateError::Io {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    match fs_err::File::open(path) {
        Ok(file) => file
            .take(MAX_STATE_FILE)
            .read_to_end(&mut bytes)
            .map_err(io)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    parse(path, &bytes).map(Some)
}

/// Understands the bytes of a state file, bringing an older format up step by step.
fn parse<T: StateFile>(path: &Path, bytes: &[u8]) -> Result<T, StateError> {
    let damaged = |source| StateError::Damaged {
        path: path.to_owned(),
        source,
    };
    let mut map: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(bytes).map_err(damaged)?;
    let found = map
        .get("format")
        .and_then(serde_json::Value::as_u64)
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| damaged(serde::de::Error::custom("no format number")))?;
    if found > T::FORMAT {
        return Err(StateError::Newer {
            path: path.to_owned(),
            found,
            known: T::FORMAT,
        });
    }
    for migrate in T::MIGRATIONS.iter().skip(found as usize - 1) {
        migrate(&mut map);
    }
    map.remove("format");
    serde_json::from_value(serde_json::Value::Object(map)).map_err(damaged)
}

/// Replaces a state file; on return the new contents are on the disk.
pub fn store<T: StateFile>(path: &Path, value: &T) -> Result<(), StateError> {
    let io = |source| StateError::Io {
        what: "write",
        path: path.to_owned(),
        source,
    };
    let mut json = serde_json::to_value(value).map_err(|e| io(e.into()))?;
    if let Some(map) = json.as_object_mut() {
        map.insert("format".to_owned(), T::FORMAT.into());
    }
    let mut bytes = serde_json::to_vec_pretty(&json).map_err(|e| io(e.into()))?;
    bytes.push(b'\n');
    replace(path, &bytes).map_err(io)
}

/// Writes a file through a temporary one in the same directory, synced before and after the rename.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = tempfile::Builder::new()
        .prefix(".state-")
        .suffix(".partial")
        .tempfile_in(directory)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|e| e.error)?;
    sync_directory(directory)
}

/// Makes names in a directory durable (fsync(2) of the directory).
pub fn sync_directory(path: &Path) -> io::Result<()> {
    fs_err::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> RegistryFile {
        RegistryFile {
            kernel: Some("6.1.0-x".to_owned()),
            ..RegistryFile::default()
        }
    }

    #[test]
    fn a_file_reads_back_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.json");
        assert!(load::<RegistryFile>(&path).unwrap().is_none());
        store(&path, &sample()).unwrap();
        assert_eq!(load::<RegistryFile>(&path).unwrap().unwrap(), sample());
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_cut_at_any_byte_is_damaged_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.json");
        store(&path, &sample()).unwrap();
        let whole = fs_err::read(&path).unwrap();
        // The last byte is the newline, which may be missing.
        for cut in 0..whole.len() - 1 {
            fs_err::write(&path, &whole[..cut]).unwrap();
            let error = load::<RegistryFile>(&path).unwrap_err();
            assert!(
                matches!(error, StateError::Damaged { .. }),
                "{cut}: {error}"
            );
            assert!(error.to_string().contains("registry.json"));
            assert_eq!(fs_err::read(&path).unwrap(), &whole[..cut]);
        }
    }

    #[test]
    fn foreign_and_newer_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.json");
        for (text, newer) in [
            ("[]", false),
            ("{}", false),
            ("{\"format\":0}", false),
            ("{\"format\":\"1\"}", false),
            ("{\"format\":-1}", false),
            ("{\"format\":99}", true),
            ("{\"format\":99999999999}", false),
            ("{\"format\":1,\"kernel\":7}", false),
        ] {
            fs_err::write(&path, text).unwrap();
            let error = load::<RegistryFile>(&path).unwrap_err();
            assert_eq!(
                matches!(error, StateError::Newer { .. }),
                newer,
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn migrations_run_in_order_from_the_format_of_the_file() {
        #[derive(serde::Serialize, serde::Deserialize, Debug, PartialEq)]
        struct Third {
            steps: String,
        }
        impl StateFile for Third {
            const FORMAT: u32 = 3;
            const MIGRATIONS: &'static [fn(&mut serde_json::Map<String, serde_json::Value>)] = &[
                |m| {
                    m.insert("steps".into(), "1>2".into());
                },
                |m| {
                    let text = format!("{}>3", m["steps"].as_str().unwrap_or_default());
                    m.insert("steps".into(), text.into());
                },
            ];
        }
        for (text, want) in [
            ("{\"format\":1}", "1>2>3"),
            ("{\"format\":2,\"steps\":\"2\"}", "2>3"),
            ("{\"format\":3,\"steps\":\"3\"}", "3"),
        ] {
            assert_eq!(
                parse::<Third>(Path::new("x"), text.as_bytes())
                    .unwrap()
                    .steps,
                want
            );
        }
    }
}
