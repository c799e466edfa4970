//! Checks that need no daemon, so that `doctor` can tell why there is none.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use hostel_model::{Bytes, Paths};
use hostel_proto::v1::Check;

use crate::{connect, surroundings::find_program, trouble::plain};

/// The oldest QEMU whose virtual machine has what we use (vhost-user-vsock).
const OLDEST_QEMU: (u32, u32) = (7, 2);

/// Below this much free memory a machine does not start well.
const LITTLE_MEMORY: Bytes = Bytes::gib(1);

/// Below this much free space a distribution cannot be imported.
const LITTLE_SPACE: Bytes = Bytes::gib(2);

/// Makes a check that found nothing wrong.
pub(super) fn ok(name: &str, found: String) -> Check {
    Check {
        name: name.into(),
        verdict: "ok".into(),
        found,
        next_step: String::new(),
    }
}

/// Makes a check that found something that makes things slower or smaller.
fn warning(name: &str, found: String, next_step: impl Into<String>) -> Check {
    Check {
        name: name.into(),
        verdict: "warning".into(),
        found,
        next_step: next_step.into(),
    }
}

/// Makes a check that found why something cannot work.
pub(super) fn error(name: &str, found: String, next_step: impl Into<String>) -> Check {
    Check {
        name: name.into(),
        verdict: "error".into(),
        found,
        next_step: next_step.into(),
    }
}

/// Runs every check.
pub(super) fn all(paths: &Paths) -> Vec<Check> {
    let text = |path: &str| fs_err::read_to_string(path).unwrap_or_default();
    vec![
        runtime(paths),
        program(),
        qemu(),
        kvm(&text("/proc/cpuinfo")),
        kernel(paths),
        memory(&text("/proc/meminfo")),
        space(paths),
        uidmap(),
    ]
}

fn runtime(paths: &Paths) -> Check {
    match connect::check_runtime(&paths.runtime) {
        Ok(()) => ok("runtime", paths.runtime.display().to_string()),
        Err(e) => error(
            "runtime",
            e.to_string(),
            "set HOSTEL_RUNTIME_DIR to a short path of a private directory",
        ),
    }
}

fn program() -> Check {
    match connect::find_daemon() {
        Ok(path) => ok("hosteld", path.display().to_string()),
        Err(f) => error(
            "hosteld",
            f.message,
            f.hints.into_iter().next().unwrap_or_default(),
        ),
    }
}

fn qemu() -> Check {
    let name = format!("qemu-system-{}", std::env::consts::ARCH);
    let Some(path) = find_program(&name) else {
        return error(
            "qemu",
            format!("`{name}` is not in PATH"),
            "apt install qemu-system-x86",
        );
    };
    let output = Command::new(&path)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let text = output
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    match qemu_version(&text) {
        Some((major, minor, _)) if (major, minor) < OLDEST_QEMU => error(
            "qemu",
            format!("{major}.{minor} is older than 7.2"),
            "install QEMU 7.2 or later",
        ),
        Some((major, minor, patch)) => ok(
            "qemu",
            format!("{major}.{minor}.{patch} ({})", path.display()),
        ),
        None => error(
            "qemu",
            format!("`{} --version` does not tell a version", path.display()),
            "reinstall QEMU",
        ),
    }
}

/// Reads `QEMU emulator version 7.2.22 (Debian …)`.
fn qemu_version(text: &str) -> Option<(u32, u32, u32)> {
    let number = text
        .split("version ")
        .nth(1)?
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()?;
    let mut parts = number.split('.').map(|p| p.parse().ok());
    Some((
        parts.next()??,
        parts.next()??,
        parts.next().flatten().unwrap_or(0),
    ))
}

fn kvm(cpuinfo: &str) -> Check {
    let slow = "the machine runs under TCG, several times slower";
    if !virtualisation(cpuinfo) {
        return warning(
            "kvm",
            format!("the CPU shows neither vmx nor svm; {slow}"),
            "turn virtualisation on in the firmware, or nesting on in the hypervisor",
        );
    }
    match std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => ok("kvm", "/dev/kvm opens".into()),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => warning(
            "kvm",
            format!("/dev/kvm may not be opened; {slow}"),
            "sudo usermod -aG kvm $USER, then log in again",
        ),
        Err(e) => warning(
            "kvm",
            format!("/dev/kvm: {}; {slow}", plain(&e)),
            "modprobe kvm_intel or kvm_amd",
        ),
    }
}

/// Tells whether the CPU's flags show hardware virtualisation.
fn virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|l| l.starts_with("flags"));
    flags
        .flat_map(str::split_whitespace)
        .any(|f| f == "vmx" || f == "svm")
}

fn kernel(paths: &Paths) -> Check {
    let releases: Vec<String> = fs_err::read_dir(paths.home.join("kernels"))
        .map(|dir| {
            dir.flatten()
                .filter(|e| e.path().is_dir())
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect()
        })
        .unwrap_or_default();
    let mut releases: Vec<_> = releases
        .into_iter()
        .filter(|r| !r.starts_with('.'))
        .collect();
    releases.sort_unstable();
    if releases.is_empty() {
        return error(
            "kernel",
            "none is installed".into(),
            "hostel kernel install",
        );
    }
    ok("kernel", releases.join(", "))
}

fn memory(meminfo: &str) -> Check {
    match available(meminfo) {
        Some(free) if free < LITTLE_MEMORY => warning(
            "memory",
            format!("only {free} are available"),
            "close something, or give the machine less memory",
        ),
        Some(free) => ok("memory", format!("{free} are available")),
        None => warning(
            "memory",
            "/proc/meminfo does not tell what is available".into(),
            "",
        ),
    }
}

/// Reads `MemAvailable:  123 kB`.
fn available(meminfo: &str) -> Option<Bytes> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok().map(Bytes::kib)
}

fn space(paths: &Paths) -> Check {
    // The state directory may not be there yet: its nearest parent lies on the same file system.
    let place = paths
        .home
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(place) {
        Ok(fs) => {
            let free = Bytes(fs.f_bavail.saturating_mul(fs.f_frsize));
            let found = format!("{free} are free for `{}`", paths.home.display());
            if free < LITTLE_SPACE {
                warning(
                    "disk",
                    found,
                    "make room, or set HOSTEL_HOME to a larger file system",
                )
            } else {
                ok("disk", found)
            }
        }
        Err(e) => error(
            "disk",
            format!("cannot look at `{}`: {}", place.display(), plain(&e.into())),
            "",
        ),
    }
}

/// Bootstrapping without root needs the setuid helpers of uidmap.
fn uidmap() -> Check {
    if rustix::process::geteuid().is_root() {
        return ok("uidmap", "not needed by root".into());
    }
    if find_program("newuidmap").is_none() || find_program("newgidmap").is_none() {
        return warning(
            "uidmap",
            "newuidmap and newgidmap are not in PATH; `hostel install` needs them".into(),
            "apt install uidmap",
        );
    }
    let user = crate::surroundings::variable("USER")
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let uid = rustix::process::getuid().as_raw().to_string();
    let listed = |file: &str| {
        fs_err::read_to_string(file)
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.split(':').next())
            .any(|n| n == user || n == uid)
    };
    if listed("/etc/subuid") && listed("/etc/subgid") {
        return ok("uidmap", "subordinate ids are set up".into());
    }
    warning(
        "uidmap",
        "no subordinate ids for this user in /etc/subuid and /etc/subgid; `hostel install` needs them".into(),
        "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read_leniently() {
        assert_eq!(
            qemu_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"),
            Some((7, 2, 22))
        );
        assert_eq!(qemu_version("QEMU emulator version 10.0"), Some((10, 0, 0)));
        assert_eq!(qemu_version("QEMU emulator version x"), None);
        assert_eq!(qemu_version(""), None);
        assert_eq!(
            available("MemFree: 1 kB\nMemAvailable:    2048 kB\n"),
            Some(Bytes::mib(2))
        );
        assert_eq!(available("MemAvailable: x"), None);
        assert!(virtualisation("model name: vmx\nflags\t\t: fpu svm\n"));
        assert!(!virtualisation("model name: vmx\nflags\t\t: fpu\n"));
    }

    #[test]
    fn a_missing_kernel_is_an_error_with_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            home: dir.path().join("h"),
            runtime: dir.path().join("r"),
            config_files: Vec::new(),
        };
        let check = kernel(&paths);
        assert_eq!(
            (check.verdict.as_str(), check.next_step.as_str()),
            ("error", "hostel kernel install")
        );
        fs_err::create_dir_all(paths.home.join("kernels/6.1.0")).unwrap();
        assert_eq!(kernel(&paths), ok("kernel", "6.1.0".into()));
        assert_eq!(all(&paths).len(), 8);
    }
}
