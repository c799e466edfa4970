//! The registry: which distributions there are, under which names, and which one is the default.
//!
//! The record of a distribution is its own `distro.json`; `registry.json` holds only what belongs to none of them. A
//! `registry.json` that cannot be read is set aside and made again, with a warning; one from a newer Hostel is an error.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hostel_model::{DistroId, DistroName, ErrorCode, Failure};
use tokio::sync::watch;

use crate::{
    layout::Layout,
    lifecycle::DistroState,
    state::{self, BaseFile, DistroFile, NetworkKind, RegistryFile, StateError},
};

/// Why the registry refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Nothing is registered.
    #[error("no distribution is registered")]
    NoDefault,
    /// No such name.
    #[error("no distribution is named `{0}`")]
    NotFound(String),
    /// The name is taken.
    #[error("a distribution named `{0}` exists already")]
    Exists(DistroName),
    /// The name is taken by one that is not complete, or not yet gone.
    #[error("a distribution named `{name}` is {state}")]
    InProgress {
        /// The name.
        name: DistroName,
        /// What is being done to it.
        state: DistroState,
    },
    /// The state directory failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// Files of a distribution cannot be moved or deleted.
    #[error("cannot change `{path}`")]
    Files {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl RegistryError {
    /// Says it for the wire, with the next step.
    pub fn failure(&self) -> Failure {
        match self {
            Self::NoDefault => Failure::from_error(ErrorCode::NoDefaultDistro, self)
                .hint("hostel install debian:trixie")
                .hint("hostel import NAME FILE.tar"),
            Self::NotFound(_) => {
                Failure::from_error(ErrorCode::DistroNotFound, self).hint("hostel list")
            }
            Self::Exists(name) => Failure::from_error(ErrorCode::DistroExists, self)
                .hint("choose another name")
                .hint(format!("hostel rm {name}")),
            Self::InProgress { .. } => Failure::from_error(ErrorCode::WrongState, self)
                .hint("wait until it is done: hostel list"),
            Self::State(error) => state_failure(error),
            Self::Files { source, .. } => {
                let code = if source.kind() == std::io::ErrorKind::StorageFull {
                    ErrorCode::DiskFull
                } else {
                    ErrorCode::State
                };
                Failure::from_error(code, self).hint("hostel doctor")
            }
        }
    }
}

/// Says a failure of a state file for the wire, with the next step.
pub fn state_failure(error: &StateError) -> Failure {
    let failure = Failure::from_error(ErrorCode::State, error);
    match error {
        StateError::Newer { .. } => failure.hint("use the newer Hostel that wrote it"),
        StateError::Damaged { path, .. } => failure.hint(format!(
            "put a good copy of `{}` back, or move it away",
            path.display()
        )),
        StateError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Failure {
                code: ErrorCode::DiskFull,
                ..failure
            }
            .hint("free some space and try again")
        }
        StateError::Io { .. } => failure.hint("hostel doctor"),
    }
}

/// The registry; one per state directory and process, shared.
///
/// Its methods write and sync small files: call them where blocking for some milliseconds is allowed.
#[derive(Debug)]
pub struct Registry {
    layout: Layout,
    changes: watch::Sender<u64>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: RegistryFile,
    /// Oldest first.
    distros: Vec<DistroFile>,
    /// Names of distributions that are being made.
    reserved: Vec<(DistroId, DistroName)>,
    /// Bases that running imports count on.
    pinned: HashMap<String, usize>,
    damaged: Vec<String>,
}

/// What opening the registry had to say.
#[derive(Debug, Default)]
pub struct Opened {
    /// Odd things, each with what was done instead.
    pub warnings: Vec<String>,
    /// Leftovers that were removed.
    pub removed: Vec<String>,
}

/// A name kept for a distribution that is being made; free again when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    registry: Arc<Registry>,
    /// The id that the distribution will have.
    pub id: DistroId,
    /// Its name.
    pub name: DistroName,
}

/// A base image that must not be removed while this lives.
#[derive(Debug)]
pub struct BasePin {
    registry: Arc<Registry>,
    name: String,
}

impl Registry {
    /// Sweeps the state directory and reads it. The caller holds the lock of the directory.
    pub fn open(layout: Layout) -> Result<(Arc<Self>, Opened), StateError> {
        let mut opened = Opened::default();
        let swept = state::sweep(&layout)?;
        opened.removed = swept.removed;
        opened.warnings.extend(
            swept
                .damaged
                .iter()
                .map(|d| format!("a distribution is left out: {d}")),
        );
        let path = layout.registry();
        let mut made_again = false;
        let mut file = match state::load::<RegistryFile>(&path) {
            Ok(file) => file.unwrap_or_default(),
            Err(error @ StateError::Damaged { .. }) => {
                let aside = path.with_extension("json.damaged");
                fs_err::rename(&path, &aside).map_err(|source| StateError::Io {
                    what: "write",
                    path: path.clone(),
                    source,
                })?;
                opened.warnings.push(format!(
                    "{}; it is kept as `{}` and made again from the distributions: check the default one with `hostel list`",
                    Failure::from_error(ErrorCode::State, &error).message,
                    aside.display()
                ));
                made_again = true;
                RegistryFile::default()
            }
            Err(error) => return Err(error),
        };
        let known = file
            .default
            .is_some_and(|id| swept.distros.iter().any(|d| d.id == id));
        let first = swept.distros.first().map(|d| d.id);
        if !known && file.default != first {
            file.default = first;
            made_again = true;
        }
        if made_again {
            state::store(&path, &file)?;
        }
        opened.warnings.extend(file.problems());
        opened
            .warnings
            .extend(swept.distros.iter().flat_map(DistroFile::problems));
        let inner = Inner {
            file,
            distros: swept.distros,
            reserved: Vec::new(),
            pinned: HashMap::new(),
            damaged: swept.damaged,
        };
        Ok((
            Arc::new(Self {
                layout,
                changes: watch::channel(0).0,
                inner: Mutex::new(inner),
            }),
            opened,
        ))
    }

    /// Returns where things lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Tells when anything of it has changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Returns every registered distribution, the default first, then by time of registration (LIST-1).
    pub fn list(&self) -> Vec<DistroFile> {
        let inner = self.lock();
        let default = inner.file.default;
        let mut all = inner.distros.clone();
        all.sort_by_key(|d| Some(d.id) != default);
        all
    }

    /// Returns the distributions that are being made.
    pub fn reserved(&self) -> Vec<(DistroId, DistroName)> {
        self.lock().reserved.clone()
    }

    /// Returns what is wrong with distributions that were left out.
    pub fn damaged(&self) -> Vec<String> {
        self.lock().damaged.clone()
    }

    /// Returns the default distribution.
    pub fn default_id(&self) -> Option<DistroId> {
        self.lock().file.default
    }

    /// Returns what `registry.json` holds.
    pub fn settings(&self) -> RegistryFile {
        self.lock().file.clone()
    }

    /// Changes what `registry.json` holds; the default distribution is not changed by this.
    pub fn change_settings(
        &self,
        change: impl FnOnce(&mut RegistryFile),
    ) -> Result<(), RegistryError> {
        let mut inner = self.lock();
        let mut file = inner.file.clone();
        change(&mut file);
        file.default = inner.file.default;
        self.commit(&mut inner, file)
    }

    /// Finds a registered distribution by name, or the default one when the name is empty.
    pub fn resolve(&self, name: &str) -> Result<DistroFile, RegistryError> {
        let inner = self.lock();
        if name.is_empty() {
            let id = inner.file.default.ok_or(RegistryError::NoDefault)?;
            return inner.find(id).cloned().ok_or(RegistryError::NoDefault);
        }
        if let Some(found) = inner
            .distros
            .iter()
            .find(|d| d.name.as_str().eq_ignore_ascii_case(name))
        {
            return Ok(found.clone());
        }
        match inner
            .reserved
            .iter()
            .find(|(_, n)| n.as_str().eq_ignore_ascii_case(name))
        {
            Some((_, name)) => Err(RegistryError::InProgress {
                name: name.clone(),
                state: DistroState::Installing,
            }),
            None => Err(RegistryError::NotFound(name.escape_debug().to_string())),
        }
    }

    /// Returns a registered distribution.
    pub fn get(&self, id: DistroId) -> Option<DistroFile> {
        self.lock().find(id).cloned()
    }

    /// Keeps a name for a distribution that will be made (REG-2).
    pub fn reserve(self: &Arc<Self>, name: DistroName) -> Result<Reservation, RegistryError> {
        let mut inner = self.lock();
        inner.check_free(&name, None)?;
        let id = DistroId::new_random();
        inner.reserved.push((id, name.clone()));
        Ok(Reservation {
            registry: Arc::clone(self),
            id,
            name,
        })
    }

    /// Keeps a base image from being removed.
    pub fn pin_base(self: &Arc<Self>, name: &str) -> BasePin {
        *self.lock().pinned.entry(name.to_owned()).or_default() += 1;
        BasePin {
            registry: Arc::clone(self),
            name: name.to_owned(),
        }
    }

    /// Registers a distribution whose directory lies complete, with its record, at [`Layout::distro_partial`].
    ///
    /// The rename of that directory is the moment it exists. The first one becomes the default.
    pub fn register(
        &self,
        reservation: Reservation,
        record: DistroFile,
        set_default: bool,
    ) -> Result<(), RegistryError> {
        let from = self.layout.distro_partial(reservation.id);
        let to = self.layout.distro(reservation.id);
        let mut inner = self.lock();
        fs_err::rename(&from, &to)
            .and_then(|()| state::sync_directory(&self.layout.distros()))
            .map_err(|source| RegistryError::Files { path: to, source })?;
        let id = record.id;
        inner.reserved.retain(|(r, _)| *r != id);
        inner.distros.push(record);
        self.changed();
        if set_default || inner.file.default.is_none() {
            let file = RegistryFile {
                default: Some(id),
                ..inner.file.clone()
            };
            self.commit(&mut inner, file)?;
        }
        Ok(())
    }

    /// Gives a distribution another name.
    pub fn rename(&self, id: DistroId, name: DistroName) -> Result<(), RegistryError> {
        let mut inner = self.lock();
        inner.check_free(&name, Some(id))?;
        self.edit(&mut inner, id, |d| d.name = name)
    }

    /// Records what the operating system called itself at its last start (IMG-3).
    pub fn set_os(&self, id: DistroId, os: state::OsInfo) -> Result<(), RegistryError> {
        let mut inner = self.lock();
        if inner.find(id).is_some_and(|d| d.os == os) {
            return Ok(());
        }
        self.edit(&mut inner, id, |d| d.os = os)
    }

    /// Records how a distribution is on the network.
    pub fn set_network(
        &self,
        id: DistroId,
        kind: NetworkKind,
        address: Option<Ipv4Addr>,
    ) -> Result<(), RegistryError> {
        let mut inner = self.lock();
        self.edit(&mut inner, id, |d| {
            d.network = kind.into();
            d.address = address.into();
        })
    }

    /// Makes a distribution the default one.
    pub fn set_default(&self, id: DistroId) -> Result<(), RegistryError> {
        let mut inner = self.lock();
        if inner.find(id).is_none() {
            return Err(RegistryError::NotFound(id.to_string()));
        }
        let file = RegistryFile {
            default: Some(id),
            ..inner.file.clone()
        };
        self.commit(&mut inner, file)
    }

    /// Removes a stopped distribution with its disk, and its base when nobody else uses it.
    ///
    /// Blocks while files are deleted. The rename of its directory is the moment it is gone; what is left after a kill
    /// is swept. The first of those that remain becomes the default.
    pub fn remove(&self, id: DistroId) -> Result<(), RegistryError> {
        let gone = self.layout.distro_partial(id);
        {
            let mut inner = self.lock();
            let base = inner
                .find(id)
                .map(|d| d.base.clone())
                .ok_or_else(|| RegistryError::NotFound(id.to_string()))?;
            let from = self.layout.distro(id);
            match fs_err::rename(&from, &gone) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(RegistryError::Files {
                        path: from,
                        source: e,
                    });
                }
                _ => state::sync_directory(&self.layout.distros())
                    .map_err(|source| RegistryError::Files { path: from, source })?,
            }
            inner.distros.retain(|d| d.id != id);
            self.changed();
            if inner.file.default == Some(id) {
                let file = RegistryFile {
                    default: inner.distros.first().map(|d| d.id),
                    ..inner.file.clone()
                };
                self.commit(&mut inner, file)?;
            }
            self.drop_base(&inner, &base)?;
        }
        match fs_err::remove_dir_all(&gone) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(RegistryError::Files {
                path: gone,
                source: e,
            }),
            _ => Ok(()),
        }
    }

    /// Returns the record of a complete base image; `None` when it is not there.
    pub fn base(&self, name: &str) -> Option<BaseFile> {
        if !self.layout.base(name).exists() {
            return None;
        }
        state::load(&self.layout.base_file(name)).ok().flatten()
    }

    /// Removes a base that nobody uses or counts on. The record goes first: without it the image is unfinished.
    fn drop_base(&self, inner: &Inner, name: &str) -> Result<(), RegistryError> {
        let used = inner.distros.iter().any(|d| d.base == name);
        if used || inner.pinned.contains_key(name) || !inner.damaged.is_empty() {
            return Ok(());
        }
        for path in [self.layout.base_file(name), self.layout.base(name)] {
            match fs_err::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(RegistryError::Files { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn edit(
        &self,
        inner: &mut Inner,
        id: DistroId,
        change: impl FnOnce(&mut DistroFile),
    ) -> Result<(), RegistryError> {
        let entry = inner
            .distros
            .iter_mut()
            .find(|d| d.id == id)
            .ok_or_else(|| RegistryError::NotFound(id.to_string()))?;
        let mut changed = entry.clone();
        change(&mut changed);
        state::store(&self.layout.distro_file(id), &changed)?;
        *entry = changed;
        self.changed();
        Ok(())
    }

    fn commit(&self, inner: &mut Inner, file: RegistryFile) -> Result<(), RegistryError> {
        if file != inner.file {
            state::store(&self.layout.registry(), &file)?;
            inner.file = file;
            self.changed();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn find(&self, id: DistroId) -> Option<&DistroFile> {
        self.distros.iter().find(|d| d.id == id)
    }

    fn check_free(&self, name: &DistroName, except: Option<DistroId>) -> Result<(), RegistryError> {
        if let Some(other) = self
            .distros
            .iter()
            .find(|d| d.name.same(name) && Some(d.id) != except)
        {
            return Err(RegistryError::Exists(other.name.clone()));
        }
        match self.reserved.iter().find(|(_, n)| n.same(name)) {
            Some((_, name)) => Err(RegistryError::InProgress {
                name: name.clone(),
                state: DistroState::Installing,
            }),
            None => Ok(()),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.registry
            .lock()
            .reserved
            .retain(|(id, _)| *id != self.id);
    }
}

impl Drop for BasePin {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        if let Some(count) = inner.pinned.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                inner.pinned.remove(&self.name);
                // An import that failed may have been the last to count on it. What cannot be removed is swept later.
                let _ = self.registry.drop_base(&inner, &self.name);
            }
        }
    }
}

/// Makes a record for tests.
#[cfg(test)]
pub(crate) fn test_record(name: &str, base: &str, created: u64) -> DistroFile {
    DistroFile {
        id: DistroId::new_random(),
        name: DistroName::parse(name).expect("a valid name"),
        created_unix_ns: created,
        version: 2,
        base: base.to_owned(),
        os: state::OsInfo::default(),
        default_user: String::new(),
        source: "x.tar".to_owned(),
        disk_limit: 1 << 30,
        network: state::Setting::default(),
        address: state::Setting::default(),
    }
}

#[cfg(test)]
mod tests;
