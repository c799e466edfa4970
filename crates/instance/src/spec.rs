//! What to start: the job of [`launch`](crate::launch()).

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The largest job, as JSON, that a helper accepts.
pub(crate) const MAX_SPEC_BYTES: usize = 1 << 20;

/// Everything needed to start one distribution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// Stable id, used as the name of the cgroup: 1 to 64 letters, digits, `-`, `_` or `.`, not beginning with `.`.
    pub id: String,
    /// The registered name; becomes `WSL_DISTRO_NAME`.
    pub name: String,
    /// Where the root file system is.
    pub root: Root,
    /// Host name where the distribution's wsl.conf sets none; cleaned by BOOT-30.
    pub hostname: String,
    /// Domain; empty means `localdomain`.
    pub domain: String,
    /// The program that calls [`run_role`](crate::run_role) first; started as the helper and bound read-only at `/init`.
    /// The helper is started by this path, so `/proc/self/exe` is right for a program that launches itself; what appears at
    /// `/init` is then that program too.
    #[serde(with = "crate::text::path")]
    pub init_binary: PathBuf,
    /// Directory in a cgroup2 tree below which `<id>/init` is made; `None`, or a directory that is not cgroup2, means no
    /// cgroup of its own, with a warning.
    #[serde(with = "crate::spec::optional_path")]
    pub cgroup_parent: Option<PathBuf>,
    /// Directories or files of the caller's mount namespace that the distribution shows too.
    pub shared: Vec<SharedBind>,
    /// What `/etc/resolv.conf` becomes a link to (BOOT-28), e.g. `/mnt/wsl/resolv.conf`; `None` leaves the file alone.
    #[serde(with = "crate::spec::optional_path")]
    pub resolv_conf: Option<PathBuf>,
    /// Laid over the base environment (ENV-1) of everything the distribution runs.
    pub environment: Vec<EnvVar>,
    /// What `/dev` is.
    pub devices: DeviceTree,
    /// A network namespace to run in, as a path of the caller's mount namespace (`/run/netns/x`, `/proc/<pid>/fd/<n>`);
    /// `None` shares the caller's. What is in it is the caller's business, and so is its end.
    #[serde(with = "crate::spec::optional_path")]
    pub network: Option<PathBuf>,
    /// The registered default user, a name or a decimal uid; wsl.conf's `user.default` beats it (CLI-35).
    pub default_user: Option<String>,
    /// How long the whole start may take before it is undone.
    pub timeout: Duration,
}

/// Where a root file system is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// A block device that is mounted for the distribution alone and unmounted with it.
    BlockDevice {
        /// The device node, in the caller's mount namespace.
        #[serde(with = "crate::text::path")]
        path: PathBuf,
        /// Type of the file system: `ext4`.
        fstype: String,
        /// Comma-separated mount options, e.g. `discard,errors=remount-ro,data=ordered`.
        options: String,
    },
    /// A directory of the caller's mount namespace.
    Directory(#[serde(with = "crate::text::path")] PathBuf),
}

/// One file or directory that a distribution shares with its caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedBind {
    /// Path in the caller's mount namespace. A shared mount stays in its peer group.
    #[serde(with = "crate::text::path")]
    pub source: PathBuf,
    /// Absolute path in the distribution; made when missing.
    #[serde(with = "crate::text::path")]
    pub target: PathBuf,
    /// Whether the distribution sees it read-only.
    pub read_only: bool,
    /// Whether the start fails without it; otherwise a missing source or target is a warning.
    pub required: bool,
}

/// What a distribution's `/dev` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceTree {
    /// The kernel's one devtmpfs (in the VM).
    SharedDevtmpfs,
    /// A small tmpfs with the harmless nodes of the caller's `/dev` bound into it (on a host).
    Private,
}

/// One environment variable, any bytes but NUL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name; must not be empty or hold `=`.
    #[serde(with = "crate::text::bytes")]
    pub name: Vec<u8>,
    /// Value.
    #[serde(with = "crate::text::bytes")]
    pub value: Vec<u8>,
}

impl EnvVar {
    /// Makes a variable.
    pub fn new(name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }
}

/// What the distribution says about itself in os-release(5); empty where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsRelease {
    /// `ID`
    pub id: String,
    /// `VERSION_ID`
    pub version: String,
    /// `PRETTY_NAME`
    pub pretty_name: String,
}

pub(crate) mod optional_path {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    use crate::text::Text;

    #[expect(clippy::ref_option, reason = "the shape serde's `with` calls for")]
    pub(crate) fn serialize<S: Serializer>(
        value: &Option<PathBuf>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value
            .as_ref()
            .map(|p| Text(p.as_os_str().as_bytes().to_vec()))
            .serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Text>::deserialize(deserializer)?
            .map(|t| std::ffi::OsString::from_vec(t.0).into()))
    }
}
