//! Finding QEMU and what it can do.

use std::{
    ffi::OsStr,
    fmt,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hostel_sys::spawn::{Exit, Spawn, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The program that is looked for.
const PROGRAM: &str = "qemu-system-x86_64";
/// The package that brings it on Debian and its kin.
const PACKAGE: &str = "qemu-system-x86";
/// The machine type that every QEMU from 7.2 on has, as long as it is not removed.
const MACHINE: &str = "pc-q35-7.2";
/// How long QEMU may take to tell about itself.
const DEADLINE: Duration = Duration::from_secs(20);
/// How much it may tell.
const MAX_OUTPUT: u64 = 256 * 1024;
/// What the sandbox forbids. Nothing that QEMU does for us needs any of it.
pub(crate) const SANDBOX: &str =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// A version of QEMU.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
}

impl Version {
    /// The oldest that will do: the first with `vhost-user-vsock-pci` as it is used here.
    pub const MINIMUM: Self = Self {
        major: 7,
        minor: 2,
        micro: 0,
    };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A usable QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuBinary {
    /// The program.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
    /// The machine type to ask for, by its full versioned name.
    pub machine: String,
    /// Whether it was built with the system call filter.
    pub sandbox: bool,
    /// qboot, where it is installed: faster than SeaBIOS, which is used without it.
    pub firmware: Option<PathBuf>,
}

/// Why there is no usable QEMU.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It is nowhere in the search path.
    #[error("{PROGRAM} is not installed; install the package {PACKAGE}")]
    Missing,
    /// The program that was named cannot be run.
    #[error("cannot run `{path}`; it should be {PROGRAM}, from the package {PACKAGE}")]
    Run {
        /// The program.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It said something else than QEMU says.
    #[error("`{path}` does not answer like QEMU: {said}")]
    Strange {
        /// The program.
        path: PathBuf,
        /// The beginning of what it said.
        said: String,
    },
    /// Older than [`Version::MINIMUM`].
    #[error("`{path}` is QEMU {version}; {min} or newer is needed", min = Version::MINIMUM)]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: Version,
    },
    /// It has no machine type that will do.
    #[error("`{path}` (QEMU {version}) has no machine type pc-q35-7.2 or newer")]
    NoMachine {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: Version,
    },
}

/// Finds QEMU, at `path_override` or else in the directories of `search_path` (the value of PATH), and asks what it can do.
///
/// Runs the program three times, some 0.1 s in all; blocks.
pub fn probe_qemu(
    path_override: Option<&Path>,
    search_path: &OsStr,
) -> Result<QemuBinary, ProbeError> {
    let path = match path_override {
        Some(path) => path.to_owned(),
        None => std::env::split_paths(search_path)
            .map(|dir| dir.join(PROGRAM))
            .find(|candidate| candidate.is_file())
            .ok_or(ProbeError::Missing)?,
    };
    let run = |args: &[&str]| {
        ask(&path, args).map_err(|source| ProbeError::Run {
            path: path.clone(),
            source,
        })
    };
    let (_, text) = run(&["--version"])?;
    let version = parse_version(&text).ok_or_else(|| ProbeError::Strange {
        path: path.clone(),
        said: text.chars().take(100).collect(),
    })?;
    if version < Version::MINIMUM {
        return Err(ProbeError::TooOld { path, version });
    }
    let (exit, mut text) = run(&["-sandbox", SANDBOX, "-machine", "help"])?;
    let sandbox = exit == Exit::Code(0);
    if !sandbox {
        text = run(&["-machine", "help"])?.1;
    }
    let Some(machine) = choose_machine(&text) else {
        return Err(ProbeError::NoMachine { path, version });
    };
    let (_, text) = run(&["-L", "help"])?;
    let firmware = text
        .lines()
        .map(|dir| Path::new(dir).join("qboot.rom"))
        .find(|rom| rom.is_file());
    Ok(QemuBinary {
        path,
        version,
        machine,
        sandbox,
        firmware,
    })
}

fn parse_version(text: &str) -> Option<Version> {
    let rest = text
        .lines()
        .next()?
        .strip_prefix("QEMU emulator version ")?;
    let numbers = rest
        .split(|c: char| c != '.' && !c.is_ascii_digit())
        .next()?;
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    Some(Version {
        major: parts.next()??,
        minor: parts.next()??,
        micro: parts.next().flatten().unwrap_or(0),
    })
}

/// Picks the machine type from the list: the preferred one, or the oldest newer one that is not deprecated.
fn choose_machine(help: &str) -> Option<String> {
    let number = |name: &str| -> Option<(u32, u32)> {
        let (major, minor) = name.strip_prefix("pc-q35-")?.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    help.lines()
        .filter(|line| !line.contains("deprecated"))
        .filter_map(|line| line.split_ascii_whitespace().next())
        .filter_map(|name| number(name).map(|n| (n, name)))
        .filter(|(n, name)| *n >= (7, 2) || *name == MACHINE)
        .min()
        .map(|(_, name)| name.to_owned())
}

/// Runs the program and returns how it ended and what it wrote to standard output, within limits.
fn ask(path: &Path, args: &[&str]) -> io::Result<(Exit, String)> {
    let (reader, writer) = io::pipe()?;
    let mut spawn = Spawn::new(path);
    spawn
        .args(args)
        .env([("LC_ALL", "C")])
        .stdout(Stream::Fd(writer.into()));
    let child = spawn.start()?;
    let end = Instant::now() + DEADLINE;
    let mut output = Vec::new();
    let mut buf = [0; 4096];
    let mut reader = reader.take(MAX_OUTPUT);
    loop {
        let late = || {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s", DEADLINE.as_secs()),
            )
        };
        let left = end
            .checked_duration_since(Instant::now())
            .ok_or_else(late)?;
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(
            &mut [PollFd::new(reader.get_ref(), PollFlags::IN)],
            Some(&timeout),
        ) {
            Ok(0) => return Err(late()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let n = reader.read(&mut buf)?;
        if n == 0 {
            break;
        }
        output.extend_from_slice(&buf[..n]);
    }
    // A program that talks without end gets a broken pipe here, and is killed when it ignores that.
    drop(reader);
    let exit = match child.try_wait()? {
        Some(exit) => exit,
        None => wait_until(&child, end)?,
    };
    Ok((exit, String::from_utf8_lossy(&output).into_owned()))
}

fn wait_until(child: &hostel_sys::spawn::Child, end: Instant) -> io::Result<Exit> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let _ = poll(&mut [PollFd::new(child, PollFlags::IN)], Some(&timeout));
        match child.try_wait()? {
            Some(exit) => return Ok(exit),
            None if left.is_zero() => child.kill()?,
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_distributions_print() {
        for (text, want) in [
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright",
                Some((7, 2, 22)),
            ),
            ("QEMU emulator version 10.0.0", Some((10, 0, 0))),
            ("QEMU emulator version 9.2", Some((9, 2, 0))),
            ("QEMU emulator version 8.1.50-rc1-dirty", Some((8, 1, 50))),
            ("QEMU emulator version ", None),
            ("hello", None),
            ("", None),
        ] {
            let want = want.map(|(major, minor, micro)| Version {
                major,
                minor,
                micro,
            });
            assert_eq!(parse_version(text), want, "{text}");
        }
    }

    #[test]
    fn the_machine_type_is_the_oldest_that_will_do_and_never_the_alias() {
        let list = "Supported machines are:\nq35      Standard PC (alias of pc-q35-10.0)\npc-q35-10.0 x\npc-q35-9.2 x\n\
                    pc-q35-8.0 x\npc-q35-7.2 x\npc-q35-7.1 x\npc-q35-4.0.1 x\nmicrovm x\n";
        assert_eq!(choose_machine(list).as_deref(), Some("pc-q35-7.2"));
        assert_eq!(
            choose_machine(&list.replace("pc-q35-7.2 x", "")).as_deref(),
            Some("pc-q35-8.0")
        );
        assert_eq!(
            choose_machine(&list.replace("pc-q35-7.2 x", "pc-q35-7.2 x (deprecated)")).as_deref(),
            Some("pc-q35-8.0")
        );
        assert_eq!(choose_machine("pc-q35-7.1 x\n"), None);
    }

    #[test]
    fn a_missing_strange_or_old_program_is_named_with_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let missing = probe_qemu(None, dir.path().as_os_str()).unwrap_err();
        assert!(missing.to_string().contains("qemu-system-x86"), "{missing}");
        let gone = probe_qemu(Some(Path::new("/nonexistent/qemu")), OsStr::new("")).unwrap_err();
        assert!(matches!(gone, ProbeError::Run { .. }));
        let strange = probe_qemu(Some(Path::new("/bin/true")), OsStr::new("")).unwrap_err();
        assert!(matches!(strange, ProbeError::Strange { .. }));
        let old = dir.path().join("old");
        fs_err::write(&old, "#!/bin/sh\necho QEMU emulator version 5.2.0\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs_err::set_permissions(&old, mode).unwrap();
        assert!(matches!(
            probe_qemu(Some(&old), OsStr::new("")),
            Err(ProbeError::TooOld { .. })
        ));
    }
}
