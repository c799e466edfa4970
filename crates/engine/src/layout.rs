//! Where things lie below the state directory.

use std::path::{Path, PathBuf};

use hostel_model::DistroId;

/// The name ending of everything that is not finished; swept when the daemon starts.
pub const PARTIAL: &str = ".partial";

/// The state directory and the names in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    home: PathBuf,
}

impl Layout {
    /// Describes the state directory `home`.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self { home: home.into() }
    }

    /// Returns the state directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Returns the lock that says who uses this state directory.
    pub fn lock(&self) -> PathBuf {
        self.home.join("home.lock")
    }

    /// Returns the registry's file.
    pub fn registry(&self) -> PathBuf {
        self.home.join("registry.json")
    }

    /// Returns the file of known archives.
    pub fn archives(&self) -> PathBuf {
        self.home.join("archives.json")
    }

    /// Returns the directory of distributions.
    pub fn distros(&self) -> PathBuf {
        self.home.join("distros")
    }

    /// Returns a distribution's directory.
    pub fn distro(&self, id: DistroId) -> PathBuf {
        self.distros().join(id.to_string())
    }

    /// Returns the directory of a distribution that is being made or deleted.
    pub fn distro_partial(&self, id: DistroId) -> PathBuf {
        self.distros().join(format!("{id}{PARTIAL}"))
    }

    /// Returns a distribution's record.
    pub fn distro_file(&self, id: DistroId) -> PathBuf {
        self.distro(id).join("distro.json")
    }

    /// Returns a distribution's disk: the overlay over its base.
    pub fn disk(&self, id: DistroId) -> PathBuf {
        self.distro(id).join("disk.qcow2")
    }

    /// Returns the lock that is held while a distribution's disk is in use.
    pub fn disk_lock(&self, id: DistroId) -> PathBuf {
        self.distro(id).join("disk.lock")
    }

    /// Returns the directory of base images.
    pub fn bases(&self) -> PathBuf {
        self.home.join("bases")
    }

    /// Returns a base image.
    pub fn base(&self, name: &str) -> PathBuf {
        self.bases().join(format!("{name}.raw"))
    }

    /// Returns the record that says a base image is complete.
    pub fn base_file(&self, name: &str) -> PathBuf {
        self.bases().join(format!("{name}.json"))
    }

    /// Returns the directory of kernels.
    pub fn kernels(&self) -> PathBuf {
        self.home.join("kernels")
    }
}
