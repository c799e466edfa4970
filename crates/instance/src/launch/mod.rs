//! Starting a distribution: the caller's side.

pub(crate) mod files;
pub(crate) mod helper;
pub(crate) mod message;
pub(crate) mod mounts;
pub(crate) mod prepare;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::instance::Instance;
use crate::role::{self, Helper};
use crate::spec::{LaunchSpec, MAX_SPEC_BYTES, OsRelease, Root};
use crate::wire::{self, WireError};
use message::{Begin, LaunchJob, LaunchMessage, Ready, StartFailure};

/// Why a distribution could not be started. Nothing is left of the attempt, except as [`LaunchError::AndCleanup`] says.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The specification itself is wrong.
    #[error("{what} `{value}` is not allowed")]
    InvalidSpec {
        /// Which part.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// The cgroup could not be made.
    #[error("cannot make cgroup `{path}`")]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The helper process could not be started.
    #[error("cannot start `{program}` as helper")]
    Helper {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root file system could not be mounted.
    #[error("cannot mount root file system `{path}`: {detail}")]
    RootMount {
        /// The device or directory.
        path: PathBuf,
        /// What the kernel said.
        detail: String,
        /// Whether the file system is damaged, or none at all (BOOT-15).
        damaged: bool,
    },
    /// The root file system has no `/etc` or `/bin/sh`.
    #[error("the root file system has no {missing}: it is not a Linux distribution")]
    Incomplete {
        /// What it lacks.
        missing: String,
    },
    /// A step failed.
    #[error("{step} failed: {detail}")]
    Step {
        /// Which one.
        step: String,
        /// Why.
        detail: String,
    },
    /// The start took too long.
    #[error("the start took longer than {} s, while {step}", timeout.as_secs_f32())]
    Timeout {
        /// What it was doing.
        step: String,
        /// What was allowed.
        timeout: Duration,
    },
    /// The helper or PID 1 ended without a word.
    #[error("the distribution's init ended unexpectedly, while {step}")]
    Ended {
        /// What it was doing.
        step: String,
    },
    /// The control socket failed.
    #[error("cannot talk to the distribution's init")]
    Wire(#[source] WireError),
    /// Undoing a failed start failed too.
    #[error("the start failed, and cleaning up after it too ({cleanup})")]
    AndCleanup {
        /// The first error.
        source: Box<Self>,
        /// What is left.
        cleanup: String,
    },
}

/// A distribution that runs.
#[derive(Debug)]
pub struct Launched {
    /// The distribution; dropping it stops it.
    pub instance: Instance,
    /// Host name in force.
    pub hostname: String,
    /// Default user in force.
    pub default_user: String,
    /// What the distribution is.
    pub os: OsRelease,
    /// What was done otherwise than asked; for the one who triggered the start.
    pub warnings: Vec<String>,
}

/// Starts a distribution and returns when it can run commands. Blocks, at most for the specification's timeout and some
/// seconds of undoing.
///
/// Needs root, `/proc`, and Linux 5.12 or later. PID 1 becomes a child of the calling process, which must not reap it by a
/// wait for any child: [`Instance`] does it.
pub fn launch(spec: &LaunchSpec) -> Result<Launched, LaunchError> {
    check(spec)?;
    let group_error = |parent: &PathBuf| {
        let path = parent.join(&spec.id);
        move |source| LaunchError::Cgroup { path, source }
    };
    let group = match &spec.cgroup_parent {
        None => None,
        Some(parent) => Cgroup::create(parent, &spec.id).map_err(group_error(parent))?,
    };
    let mut attempt = Attempt::begin(spec, group)?;
    match attempt.wait(spec) {
        Ok(ready) => attempt.commit(spec, ready),
        Err(error) => Err(attempt.undo(error)),
    }
}

fn check(spec: &LaunchSpec) -> Result<(), LaunchError> {
    let bad = |what, value: &str| {
        Err(LaunchError::InvalidSpec {
            what,
            value: value.to_owned(),
        })
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if spec.id.is_empty()
        || spec.id.len() > 64
        || spec.id.starts_with('.')
        || !spec.id.chars().all(plain)
    {
        return bad("id", &spec.id);
    }
    if spec.name.is_empty() || spec.name.contains('\0') {
        return bad("name", &spec.name);
    }
    for bind in &spec.shared {
        let up = bind
            .target
            .components()
            .any(|c| c == std::path::Component::ParentDir);
        if !bind.target.is_absolute() || bind.target.parent().is_none() || up {
            return bad(
                "target of a shared directory",
                &bind.target.to_string_lossy(),
            );
        }
    }
    Ok(())
}

/// A start under way; undone unless committed.
struct Attempt {
    control: OwnedFd,
    helper: Child,
    group: Option<Cgroup>,
    init: Option<(u32, OwnedFd)>,
    step: String,
}

impl Attempt {
    fn begin(spec: &LaunchSpec, group: Option<Cgroup>) -> Result<Self, LaunchError> {
        let job = LaunchJob {
            spec: spec.clone(),
            cgroup: group.as_ref().map(|g| g.path().to_owned()),
        };
        let start = || -> Result<(OwnedFd, Child), LaunchError> {
            let file = wire::write_job(&job, MAX_SPEC_BYTES).map_err(LaunchError::Wire)?;
            let (ours, theirs) = wire::pair().map_err(|e| LaunchError::Wire(e.into()))?;
            // Sent before the helper exists: there is nothing to undo yet when it fails.
            wire::send(&ours, &Begin, &[file.as_fd()]).map_err(LaunchError::Wire)?;
            let helper =
                role::spawn(&spec.init_binary, Helper::Launch, theirs).map_err(|source| {
                    LaunchError::Helper {
                        program: spec.init_binary.clone(),
                        source,
                    }
                })?;
            Ok((ours, helper))
        };
        match start() {
            Ok((control, helper)) => Ok(Self {
                control,
                helper,
                group,
                init: None,
                step: "starting its init".to_owned(),
            }),
            Err(error) => {
                if let Some(group) = group {
                    // Empty, and removed by the next start if not now.
                    let _ = group.remove(Duration::from_secs(1));
                }
                Err(error)
            }
        }
    }

    /// Waits until PID 1 is ready and its pidfd is here.
    fn wait(&mut self, spec: &LaunchSpec) -> Result<Ready, LaunchError> {
        let deadline = Instant::now() + spec.timeout;
        let mut ready = None;
        loop {
            if self.init.is_some()
                && let Some(ready) = ready.take()
            {
                return Ok(ready);
            }
            // Messages that are there already do not stretch the time.
            let message = if Instant::now() < deadline {
                wire::receive::<LaunchMessage>(&self.control, Some(deadline))
            } else {
                Err(WireError::Timeout)
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => {
                    return Err(LaunchError::Ended {
                        step: self.step.clone(),
                    });
                }
                Err(WireError::Timeout) => {
                    return Err(LaunchError::Timeout {
                        step: self.step.clone(),
                        timeout: spec.timeout,
                    });
                }
                Err(error) => return Err(LaunchError::Wire(error)),
            };
            match message {
                (LaunchMessage::Cloned { pid }, fds) => {
                    self.init = fds.into_iter().next().map(|pidfd| (pid, pidfd));
                }
                (LaunchMessage::Step(step), _) => self.step = step,
                (LaunchMessage::Ready(report), _) => ready = Some(*report),
                (LaunchMessage::Failed(failure), _) => return Err(failure_of(spec, failure)),
            }
        }
    }

    fn commit(mut self, spec: &LaunchSpec, ready: Ready) -> Result<Launched, LaunchError> {
        let waited = self.helper.wait();
        let Some((pid, pidfd)) = self.init.take() else {
            // `wait` returns only with both.
            return Err(self.undo(LaunchError::Ended {
                step: "starting its init".to_owned(),
            }));
        };
        let mut warnings = ready.warnings;
        if let Err(error) = waited {
            warnings.push(format!("the start helper cannot be waited for: {error}"));
        }
        if spec.cgroup_parent.is_some() && self.group.is_none() {
            warnings.push(
                "no cgroup2 here: the distribution runs without a cgroup of its own".to_owned(),
            );
        }
        Ok(Launched {
            instance: Instance::new(pid, pidfd, self.control, self.group),
            hostname: ready.hostname,
            default_user: ready.default_user,
            os: ready.os,
            warnings,
        })
    }

    /// Ends everything that was started and removes the cgroup.
    fn undo(mut self, error: LaunchError) -> LaunchError {
        let mut left = Vec::new();
        // Without the helper nothing new appears on the socket: a clone it has made by then is in the last messages.
        let _ = self.helper.kill();
        if let Err(error) = self.helper.wait() {
            left.push(format!("helper: {error}"));
        }
        while self.init.is_none()
            && let Ok(Some((message, fds))) =
                wire::receive::<LaunchMessage>(&self.control, Some(Instant::now()))
        {
            if let LaunchMessage::Cloned { pid } = message {
                self.init = fds.into_iter().next().map(|pidfd| (pid, pidfd));
            }
        }
        match self.init.take() {
            Some((pid, pidfd)) => {
                let outcome = Instance::new(pid, pidfd, self.control, self.group).kill();
                left.extend(outcome.warnings);
            }
            None => {
                if let Some(Err(error)) = self.group.map(|g| g.remove(Duration::from_secs(5))) {
                    left.push(error.to_string());
                }
            }
        }
        if left.is_empty() {
            error
        } else {
            LaunchError::AndCleanup {
                source: Box::new(error),
                cleanup: left.join("; "),
            }
        }
    }
}

fn failure_of(spec: &LaunchSpec, failure: StartFailure) -> LaunchError {
    match failure {
        StartFailure::Root { detail, errno } => {
            let path = match &spec.root {
                Root::BlockDevice { path, .. } | Root::Directory(path) => path.clone(),
            };
            // EBADMSG and EIO: checksums of the file system do not match.
            let damaged = [Errno::INVAL, Errno::UCLEAN, Errno::BADMSG, Errno::IO]
                .iter()
                .any(|e| e.raw_os_error() == errno);
            LaunchError::RootMount {
                path,
                detail,
                damaged,
            }
        }
        StartFailure::Incomplete { missing } => LaunchError::Incomplete { missing },
        StartFailure::Step { step, detail } => LaunchError::Step { step, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{DeviceTree, SharedBind};

    fn spec() -> LaunchSpec {
        LaunchSpec {
            id: "a".into(),
            name: "A".into(),
            root: Root::Directory("/nowhere".into()),
            hostname: "h".into(),
            domain: String::new(),
            init_binary: "/nowhere/init".into(),
            cgroup_parent: None,
            shared: Vec::new(),
            resolv_conf: None,
            environment: Vec::new(),
            devices: DeviceTree::Private,
            network: None,
            default_user: None,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn ids_that_could_leave_the_cgroup_are_refused() {
        for id in ["", ".", "..", "a/b", "ü", &"x".repeat(65)] {
            let error = check(&LaunchSpec {
                id: id.to_owned(),
                ..spec()
            })
            .unwrap_err();
            assert!(
                matches!(error, LaunchError::InvalidSpec { what: "id", .. }),
                "{id}"
            );
        }
        check(&spec()).unwrap();
    }

    #[test]
    fn shared_targets_are_absolute_and_do_not_climb() {
        for target in ["x", "/", "/a/../b"] {
            let bind = SharedBind {
                source: "/".into(),
                target: target.into(),
                read_only: true,
                required: false,
            };
            assert!(
                check(&LaunchSpec {
                    shared: vec![bind],
                    ..spec()
                })
                .is_err(),
                "{target}"
            );
        }
    }

    #[test]
    fn a_missing_helper_is_named() {
        let error = launch(&spec()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/init"), "{error}");
    }
}
