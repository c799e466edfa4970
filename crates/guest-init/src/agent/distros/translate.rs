//! Between the wire's words for a distribution and those of `instance`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hostel_instance::{
    DeviceTree, ExecError, Instance, LaunchError, LaunchSpec, Launched, Root, SharedBind,
    namespaces,
};
use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;

use crate::agent::disks::{Disk, DiskError};
use crate::agent::job::env;
use crate::agent::resolver;
use crate::modules::release_directory;

/// The cgroup that holds those of the distributions.
const CGROUP: &str = "/sys/fs/cgroup";

/// How long a start may take (BOOT-10).
const START: Duration = Duration::from_secs(60);

/// Mount options of a distribution's disk (BOOT-14).
const OPTIONS: &str = "discard,errors=remount-ro,data=ordered";

/// Says how a distribution is started in this machine; with a network namespace if it has a room.
pub(super) fn spec(
    request: v1::StartDistroRequest,
    disk: &Disk,
    network: Option<PathBuf>,
    program: &Path,
) -> LaunchSpec {
    let modules = release_directory();
    LaunchSpec {
        id: request.id,
        name: request.name,
        root: Root::BlockDevice {
            path: disk.node(),
            fstype: "ext4".to_owned(),
            options: OPTIONS.to_owned(),
        },
        hostname: request.hostname,
        domain: request.domain,
        init_binary: program.to_owned(),
        cgroup_parent: Some(CGROUP.into()),
        shared: vec![
            SharedBind {
                source: "/mnt/wsl".into(),
                target: "/mnt/wsl".into(),
                read_only: false,
                required: false,
            },
            SharedBind {
                source: modules.clone(),
                target: modules,
                read_only: true,
                required: false,
            },
        ],
        resolv_conf: Some(resolver::PATH.into()),
        environment: env(request.env),
        devices: DeviceTree::SharedDevtmpfs,
        network,
        default_user: (!request.default_user.is_empty()).then_some(request.default_user),
        timeout: START,
    }
}

/// Says what a started distribution is.
pub(super) fn reply(launched: &Launched) -> v1::StartDistroReply {
    v1::StartDistroReply {
        init_pid: launched.instance.init_pid(),
        warnings: launched.warnings.clone(),
        os_id: launched.os.id.clone(),
        os_version: launched.os.version.clone(),
        os_pretty_name: launched.os.pretty_name.clone(),
        hostname: launched.hostname.clone(),
        default_user: launched.default_user.clone(),
        already_running: false,
    }
}

/// Looks into a distribution; its namespaces are compared with the machine's own.
pub(super) fn inspect(
    instance: &Instance,
    hostname: &str,
) -> Result<v1::InspectDistroReply, Failure> {
    let list = namespaces(instance.init_pid(), std::process::id())
        .map_err(|e| Failure::from_error(ErrorCode::DistroStopped, &e))?;
    let usage = instance.usage();
    Ok(v1::InspectDistroReply {
        namespaces: list
            .into_iter()
            .map(|n| v1::Namespace {
                kind: n.kind.to_owned(),
                inode: n.inode,
                shared: n.shared,
            })
            .collect(),
        memory_bytes: usage.memory_bytes.unwrap_or(0),
        processes: usage.processes.unwrap_or(0),
        hostname: hostname.to_owned(),
    })
}

pub(super) fn disk_failure(error: &DiskError) -> Failure {
    let code = match error {
        DiskError::BadSerial(_) => ErrorCode::Protocol,
        DiskError::Missing { .. } => ErrorCode::DistroStart,
        DiskError::Listen(_) => ErrorCode::Internal,
    };
    Failure::from_error(code, error)
}

pub(super) fn launch_failure(name: &str, error: &LaunchError) -> Failure {
    let mut cause = error;
    while let LaunchError::AndCleanup { source, .. } = cause {
        cause = source;
    }
    let code = match cause {
        LaunchError::InvalidSpec { .. } => ErrorCode::InvalidArgument,
        LaunchError::RootMount { damaged: true, .. } => ErrorCode::DiskCorrupted,
        LaunchError::Incomplete { .. } => ErrorCode::NotALinuxDistro,
        _ => ErrorCode::DistroStart,
    };
    let failure = Failure::from_error(code, error);
    Failure {
        message: format!("cannot start distribution `{name}`: {}", failure.message),
        ..failure
    }
}

pub(super) fn exec_failure(error: &ExecError) -> Failure {
    let code = match error {
        ExecError::InvalidJob(_) => ErrorCode::InvalidArgument,
        ExecError::UnknownUser(_) => ErrorCode::UserNotFound,
        ExecError::NotFound { .. } => ErrorCode::CommandNotFound,
        ExecError::NotExecutable { .. } => ErrorCode::CommandNotExecutable,
        // A session's process ends without an answer when the distribution's PID 1 does.
        ExecError::NotRunning | ExecError::Ended => ErrorCode::DistroStopped,
        ExecError::Setup { .. } | ExecError::Timeout | ExecError::Wire(_) => ErrorCode::Internal,
    };
    Failure::from_error(code, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_get_the_code_that_callers_branch_on() {
        let damaged = || LaunchError::RootMount {
            path: "/dev/sda".into(),
            detail: "x".into(),
            damaged: true,
        };
        let wrapped = LaunchError::AndCleanup {
            source: Box::new(damaged()),
            cleanup: "y".into(),
        };
        assert_eq!(
            launch_failure("d", &damaged()).code,
            ErrorCode::DiskCorrupted
        );
        assert_eq!(launch_failure("d", &wrapped).code, ErrorCode::DiskCorrupted);
        assert_eq!(
            exec_failure(&ExecError::NotFound {
                program: "x".into()
            })
            .code,
            ErrorCode::CommandNotFound
        );
        assert_eq!(
            exec_failure(&ExecError::NotRunning).code,
            ErrorCode::DistroStopped
        );
        assert!(
            launch_failure("Debian", &damaged())
                .message
                .contains("`Debian`")
        );
    }
}
