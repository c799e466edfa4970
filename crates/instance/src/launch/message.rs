//! What a caller, the helper and PID 1 say to each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::{LaunchSpec, OsRelease};

/// A helper's job, in a memory file that comes with [`Begin`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LaunchJob {
    pub(crate) spec: LaunchSpec,
    #[serde(with = "crate::spec::optional_path")]
    pub(crate) cgroup: Option<PathBuf>,
}

/// The first packet to a helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Begin;

/// From the helper and from PID 1 to the caller.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum LaunchMessage {
    /// PID 1 exists; its pidfd comes along. May come after messages of PID 1.
    Cloned { pid: u32 },
    /// PID 1 begins this step.
    Step(String),
    /// The distribution runs.
    Ready(Box<Ready>),
    /// It does not, and PID 1 or the helper has ended.
    Failed(StartFailure),
}

/// What a started distribution says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) hostname: String,
    pub(crate) default_user: String,
    pub(crate) os: OsRelease,
    pub(crate) warnings: Vec<String>,
}

/// Why a distribution did not start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum StartFailure {
    /// The root file system cannot be mounted.
    Root { detail: String, errno: i32 },
    /// The root file system lacks something no distribution is without.
    Incomplete { missing: String },
    /// Anything else.
    Step { step: String, detail: String },
}

/// From the caller to PID 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum InitRequest {
    /// Run a session; its socket and its job's memory file come along.
    Session,
    /// Ask everything to end, then end.
    Stop { timeout_ms: u64 },
}
