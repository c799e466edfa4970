//! Sessions: one command each, with a terminal of its own, supervised by a process that outlives it as long as it has
//! descendants.
//!
//! A session process leads a session on a fresh pty, whether the command uses it or not (TTY-1), and the command is a process
//! group of its own in the foreground. The session process is the leader, rather than the command, so that the end of the
//! command does not hang the terminal up: the kernel throws away what was not read from it yet when that happens while a
//! background process still holds it.

mod command;
mod environment;
pub(crate) mod handle;
pub(crate) mod job;
pub(crate) mod local;
pub(crate) mod supervise;
pub(crate) mod users;

use std::ffi::CString;

use serde::{Deserialize, Serialize};

use crate::spec::EnvVar;
pub(crate) use environment::BASE_PATH;

/// What a session knows of the place it runs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionContext {
    /// Registered name; empty outside a distribution.
    pub(crate) name: String,
    pub(crate) hostname: String,
    pub(crate) environment: Vec<EnvVar>,
    /// In the order they are tried.
    pub(crate) default_users: Vec<String>,
    pub(crate) umask: u32,
}

/// First answer of a session process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SessionReply {
    /// The command runs; the descriptors are the pty's master and then the caller's ends of its pipes, in the order stdin,
    /// stdout, stderr.
    Started { pid: u32, warnings: Vec<String> },
    /// Nothing was started.
    Failed(ExecFailure),
}

/// Why a session process started nothing.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ExecFailure {
    InvalidJob(String),
    UnknownUser(String),
    NotFound { program: String },
    NotExecutable { program: String, errno: i32 },
    Setup { step: String, errno: i32 },
}

/// The environment of a program that the distribution itself runs as root.
pub(crate) fn root_environment(context: &SessionContext) -> Vec<CString> {
    let root = users::Database::read().find(Some("root"), &[]);
    let env = root.and_then(|root| environment::build(context, &[], &root, None).ok());
    env.map(|env| env.to_c()).unwrap_or_default()
}
