//! What the machine needs before anything else can run: its root, the kernel's file systems, control groups, limits.

use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Resource, Rlimit};

use crate::console::{Level, say, say_error};

/// Which step failed. Steps that the machine can live without only warn.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettleError {
    #[error("cannot make directory `{path}`")]
    Directory { path: &'static str, source: Errno },
    #[error("cannot move the root so that distributions can pivot away from it ({step})")]
    Root { step: &'static str, source: Errno },
    #[error("cannot mount {fstype} at `{target}`")]
    Mount {
        fstype: &'static str,
        target: &'static str,
        source: Errno,
    },
}

/// One mount of the kernel's.
struct View {
    fstype: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: Option<&'static std::ffi::CStr>,
}

const VIEWS: &[View] = &[
    View {
        fstype: "devtmpfs",
        target: "/dev",
        flags: MountFlags::NOSUID,
        data: None,
    },
    View {
        fstype: "proc",
        target: "/proc",
        flags: SAFE,
        data: None,
    },
    View {
        fstype: "sysfs",
        target: "/sys",
        flags: SAFE,
        data: None,
    },
    View {
        fstype: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: SAFE,
        data: None,
    },
    View {
        fstype: "tmpfs",
        target: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: Some(c"mode=755"),
    },
    View {
        fstype: "tmpfs",
        target: "/mnt/wsl",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: Some(c"mode=755"),
    },
    View {
        fstype: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: Some(c"mode=620,gid=5,ptmxmode=666"),
    },
];

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Controllers that distributions get, as far as the kernel has them.
const CONTROLLERS: &[&str] = &["+cpu", "+memory", "+pids", "+io", "+cpuset"];

/// Values of the kernel's settings (BOOT-6; `ip_forward` before any container engine looks at it).
const SETTINGS: &[(&str, &str)] = &[
    ("/proc/sys/net/ipv4/ip_forward", "1"),
    ("/proc/sys/fs/inotify/max_user_watches", "524288"),
    ("/proc/sys/kernel/dmesg_restrict", "0"),
    ("/proc/sys/kernel/print-fatal-signals", "1"),
];

/// Makes the machine ready for the agent.
pub(crate) fn root_and_kernel_views() -> Result<(), SettleError> {
    movable_root()?;
    for view in VIEWS {
        directory(view.target)?;
        rustix::mount::mount(view.fstype, view.target, view.fstype, view.flags, view.data)
            .map_err(|source| SettleError::Mount {
                fstype: view.fstype,
                target: view.target,
                source,
            })?;
    }
    // Every distribution's view of it stays in this peer group (BOOT-7).
    rustix::mount::mount_change("/mnt/wsl", MountPropagationFlags::SHARED).map_err(|source| {
        SettleError::Mount {
            fstype: "shared",
            target: "/mnt/wsl",
            source,
        }
    })?;
    module_loader();
    for controller in CONTROLLERS {
        set("/sys/fs/cgroup/cgroup.subtree_control", controller);
    }
    for (path, value) in SETTINGS {
        set(path, value);
    }
    limit(Resource::Nofile, 10_240, 1_048_576);
    limit(Resource::Memlock, 64 << 20, 64 << 20);
    Ok(())
}

/// Makes the root a mount that `pivot_root` accepts: the one an initramfs gives is not (pivot_root(2), rootfs).
fn movable_root() -> Result<(), SettleError> {
    let at = |step| move |source| SettleError::Root { step, source };
    directory("/.r")?;
    rustix::mount::mount_bind("/", "/.r").map_err(at("bind"))?;
    rustix::process::chdir("/.r").map_err(at("chdir"))?;
    rustix::mount::mount_move(".", "/").map_err(at("move"))?;
    rustix::process::chroot(".").map_err(at("chroot"))?;
    rustix::process::chdir("/").map_err(at("chdir to the new root"))
}

/// Makes this program the kernel's module loader.
///
/// Only now: with a loader in the boot image itself the kernel starts it for every module that its own start-up asks for
/// in vain, before this program runs.
fn module_loader() {
    let made =
        directory("/sbin")
            .map_err(|e| e.to_string())
            .and_then(|()| match rustix::fs::symlink("/init", "/sbin/modprobe") {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(error.to_string()),
            });
    if let Err(error) = made {
        say(
            Level::Error,
            format_args!("the kernel has no module loader: {error}"),
        );
    }
}

fn directory(path: &'static str) -> Result<(), SettleError> {
    let mut so_far = std::path::PathBuf::new();
    for part in Path::new(path).components() {
        so_far.push(part);
        match rustix::fs::mkdir(&so_far, rustix::fs::Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(source) => return Err(SettleError::Directory { path, source }),
        }
    }
    Ok(())
}

fn set(path: &str, value: &str) {
    if let Err(error) = fs_err::write(path, value) {
        say_error("setting up the kernel", &error);
    }
}

fn limit(resource: Resource, soft: u64, hard: u64) {
    let limit = Rlimit {
        current: Some(soft),
        maximum: Some(hard),
    };
    if let Err(error) = rustix::process::setrlimit(resource, limit) {
        say(
            Level::Warning,
            format_args!("cannot set the limit {resource:?} to {soft}: {error}"),
        );
    }
}
