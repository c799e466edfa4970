//! The mount tree of a distribution (section 5.4 of the reference), built before anybody lives in it.
//!
//! What comes from the caller's mount namespace is cloned first, while it still is in its peer groups; then everything the
//! process sees is made private, so that nothing done here is seen outside; then the new tree is built beneath an open
//! directory and becomes `/`.

use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use hostel_sys::mount::{self, Depth, FsOption, Propagation};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags};

use super::message::StartFailure;
use crate::beneath::Beneath;
use crate::spec::{DeviceTree, LaunchSpec, Root, SharedBind};

pub(crate) fn failed(step: impl Into<String>) -> impl FnOnce(io::Error) -> StartFailure {
    let step = step.into();
    move |error| StartFailure::Step {
        step,
        detail: chain(&error),
    }
}

/// An error with its sources, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Clones of what the distribution takes from its caller.
pub(crate) struct Captured {
    shared: Vec<(SharedBind, OwnedFd)>,
    init: OwnedFd,
}

/// Clones the shared directories and the init program.
pub(crate) fn capture(
    spec: &LaunchSpec,
    warnings: &mut Vec<String>,
) -> Result<Captured, StartFailure> {
    let mut shared = Vec::new();
    for bind in &spec.shared {
        let cloned = open_path(&bind.source)
            .and_then(|fd| mount::clone_at(fd, Depth::Tree))
            .and_then(|m| {
                if bind.read_only {
                    mount::set_read_only(&m, Depth::Tree)?;
                }
                Ok(m)
            });
        match cloned {
            Ok(mount) => shared.push((bind.clone(), mount)),
            Err(error) if bind.required => {
                return Err(failed(format!("sharing `{}`", bind.source.display()))(
                    error,
                ));
            }
            Err(error) => {
                warnings.push(format!("cannot share `{}`: {error}", bind.source.display()));
            }
        }
    }
    let init = open_path(&spec.init_binary)
        .and_then(|fd| mount::clone_at(fd, Depth::One))
        .and_then(|m| {
            mount::set_propagation(&m, Depth::One, Propagation::Private)?;
            mount::set_read_only(&m, Depth::One)?;
            Ok(m)
        })
        .map_err(failed(format!(
            "preparing `{}`",
            spec.init_binary.display()
        )))?;
    Ok(Captured { shared, init })
}

/// Cuts the process's mounts off from everyone else's, and attaches the root file system where it can be worked on.
pub(crate) fn mount_root(
    spec: &LaunchSpec,
    warnings: &mut Vec<String>,
) -> Result<Beneath, StartFailure> {
    let root = make_root(spec, warnings)?;
    open_path(Path::new("/"))
        .and_then(|fd| mount::set_propagation(fd, Depth::Tree, Propagation::Private))
        .map_err(failed("leaving the mount tree of the caller"))?;
    // Any directory will do: it is this process's own view, and gone after the pivot.
    let mut result = Err(Errno::NOENT.into());
    for stage in ["/mnt", "/tmp", "/run", "/proc"] {
        result = open_path(Path::new(stage)).and_then(|at| mount::attach(&root, at));
        if result.is_ok() {
            break;
        }
    }
    result.map_err(failed("attaching the root file system"))?;
    if let Ok(status) = rustix::fs::fstatvfs(&root) {
        if status
            .f_flag
            .contains(rustix::fs::StatVfsMountFlags::RDONLY)
        {
            warnings.push("the root file system is read-only".to_owned());
        } else if status.f_blocks > 0 && status.f_bavail == 0 {
            warnings.push("the root file system is full".to_owned());
        }
    }
    Ok(Beneath::new(root))
}

fn make_root(spec: &LaunchSpec, warnings: &mut Vec<String>) -> Result<OwnedFd, StartFailure> {
    let root = |detail: String, error: &io::Error| StartFailure::Root {
        detail,
        errno: error.raw_os_error().unwrap_or(0),
    };
    match &spec.root {
        Root::Directory(path) => open_path(path)
            .and_then(|fd| {
                if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Directory {
                    return Err(Errno::NOTDIR.into());
                }
                let clone = mount::clone_at(fd, Depth::One)?;
                // Else what is mounted in it would appear in the caller's directory too.
                mount::set_propagation(&clone, Depth::One, Propagation::Private)?;
                Ok(clone)
            })
            .map_err(|e| root(e.to_string(), &e)),
        Root::BlockDevice {
            path,
            fstype,
            options,
        } => {
            let mut list: Vec<_> = FsOption::parse_list(options).collect();
            let attributes = MountAttrFlags::empty();
            match mount::make(fstype, Some(path), &list, attributes) {
                Ok(mount) => Ok(mount),
                Err(error) if is_read_only(&error.source) => {
                    list.push(FsOption::Flag("ro"));
                    let mount = mount::make(fstype, Some(path), &list, attributes)
                        .map_err(|e| root(chain(&e), &e.source))?;
                    warnings.push(format!("`{}` can only be read", path.display()));
                    Ok(mount)
                }
                Err(error) => Err(root(chain(&error), &error.source)),
            }
        }
    }
}

fn is_read_only(error: &io::Error) -> bool {
    [Errno::ROFS, Errno::ACCESS]
        .iter()
        .any(|e| Some(e.raw_os_error()) == error.raw_os_error())
}

/// Whether a distribution can be used without a mount.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Wanted,
    /// Not worth a warning.
    Optional,
}

/// Builds everything in the new root.
pub(crate) struct Builder<'a> {
    pub(crate) root: &'a Beneath,
    pub(crate) warnings: &'a mut Vec<String>,
}

impl Builder<'_> {
    /// Mounts all of it; returns the directory of the distribution's own devpts.
    pub(crate) fn build(
        &mut self,
        spec: &LaunchSpec,
        captured: Captured,
        has_cgroup: bool,
    ) -> Result<OwnedFd, StartFailure> {
        use FsOption::{Flag, Value};
        let (nosuid, nodev) = (
            MountAttrFlags::MOUNT_ATTR_NOSUID,
            MountAttrFlags::MOUNT_ATTR_NODEV,
        );
        let (noexec, noatime) = (
            MountAttrFlags::MOUNT_ATTR_NOEXEC,
            MountAttrFlags::MOUNT_ATTR_NOATIME,
        );
        let kernel = nosuid | nodev | noexec | noatime;
        self.mount("/proc", "proc", &[], kernel, Need::Required)?;
        self.mount("/sys", "sysfs", &[], kernel, Need::Wanted)?;
        self.devices(spec.devices)?;
        let pts = [
            Flag("newinstance"),
            Value("gid", "5"),
            Value("mode", "620"),
            Value("ptmxmode", "666"),
        ];
        let devpts = self.mount(
            "/dev/pts",
            "devpts",
            &pts,
            nosuid | noexec | noatime,
            Need::Required,
        )?;
        let devpts = devpts.ok_or_else(|| failed("mounting /dev/pts")(Errno::NOENT.into()))?;
        let shm = self.mount(
            "/dev/shm",
            "tmpfs",
            &[Value("mode", "1777")],
            nosuid | nodev | noatime,
            Need::Wanted,
        )?;
        self.mount("/dev/mqueue", "mqueue", &[], kernel, Need::Wanted)?;
        let strict = MountAttrFlags::MOUNT_ATTR_STRICTATIME;
        self.mount(
            "/run",
            "tmpfs",
            &[Value("mode", "755")],
            nosuid | nodev | strict,
            Need::Wanted,
        )?;
        self.mount(
            "/run/lock",
            "tmpfs",
            &[Value("mode", "1777")],
            kernel,
            Need::Wanted,
        )?;
        self.mount(
            "/run/user",
            "tmpfs",
            &[Value("mode", "755")],
            kernel,
            Need::Wanted,
        )?;
        if let Some(shm) = shm {
            let bound = mount::clone_at(shm, Depth::One);
            let at = self.root.make_directory(Path::new("/run/shm"));
            self.attach("/run/shm", bound, at, Need::Wanted)?;
        }
        if has_cgroup {
            let relatime = nosuid | nodev | noexec;
            self.mount(
                "/sys/fs/cgroup",
                "cgroup2",
                &[Flag("nsdelegate")],
                relatime,
                Need::Wanted,
            )?;
        }
        self.mount(
            "/proc/sys/fs/binfmt_misc",
            "binfmt_misc",
            &[],
            MountAttrFlags::empty(),
            Need::Optional,
        )?;
        self.tmp();
        // What is there already, a symlink included, is covered and not changed.
        let at = self.root.make_file(Path::new("/init"));
        self.attach("/init", Ok(captured.init), at, Need::Wanted)?;
        for (bind, mount) in captured.shared {
            let need = if bind.required {
                Need::Required
            } else {
                Need::Wanted
            };
            let directory = rustix::fs::fstat(&mount)
                .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
            let at = if directory {
                self.root.make_directory(&bind.target)
            } else {
                self.root.make_file(&bind.target)
            };
            self.attach(&bind.target.to_string_lossy(), Ok(mount), at, need)?;
        }
        Ok(devpts)
    }

    fn mount(
        &mut self,
        target: &str,
        fstype: &str,
        options: &[FsOption<'_>],
        attributes: MountAttrFlags,
        need: Need,
    ) -> Result<Option<OwnedFd>, StartFailure> {
        let at = match need {
            Need::Optional => self.root.directory(Path::new(target)),
            Need::Required | Need::Wanted => self.root.make_directory(Path::new(target)),
        };
        // The type as source too, as mount(8) users write it for file systems without one.
        let mount = mount::make(fstype, Some(Path::new(fstype)), options, attributes)
            .map_err(|error| io::Error::new(error.source.kind(), chain(&error)));
        self.attach(target, mount, at, need)
    }

    /// Attaches a mount; gives the failure back or writes it down, as the need is.
    fn attach(
        &mut self,
        target: &str,
        mount: io::Result<OwnedFd>,
        at: io::Result<OwnedFd>,
        need: Need,
    ) -> Result<Option<OwnedFd>, StartFailure> {
        let attached = mount.and_then(|mount| {
            mount::attach(&mount, at?)?;
            Ok(mount)
        });
        match (attached, need) {
            (Ok(mount), _) => Ok(Some(mount)),
            (Err(error), Need::Required) => Err(failed(format!("mounting {target}"))(error)),
            (Err(error), Need::Wanted) => {
                self.warn(format!("cannot mount {target}"), error);
                Ok(None)
            }
            (Err(_), Need::Optional) => Ok(None),
        }
    }

    fn warn(&mut self, what: impl Display, error: impl Display) {
        self.warnings.push(format!("{what}: {error}"));
    }

    fn devices(&mut self, tree: DeviceTree) -> Result<(), StartFailure> {
        let nosuid = MountAttrFlags::MOUNT_ATTR_NOSUID;
        let dev = match tree {
            DeviceTree::SharedDevtmpfs => {
                self.mount("/dev", "devtmpfs", &[], nosuid, Need::Required)?
            }
            DeviceTree::Private => {
                let options = [
                    FsOption::Value("mode", "755"),
                    FsOption::Value("size", "1m"),
                ];
                self.mount("/dev", "tmpfs", &options, nosuid, Need::Required)?
            }
        };
        let Some(dev) = dev else { return Ok(()) };
        if tree == DeviceTree::Private {
            for (path, major, minor, always) in NODES {
                if *always || Path::new("/dev").join(path).exists() {
                    make_node(&dev, Path::new(path), *major, *minor)
                        .map_err(failed(format!("making /dev/{path}")))?;
                }
            }
            rustix::fs::symlinkat("pts/ptmx", &dev, "ptmx")
                .map_err(|e| failed("making /dev/ptmx")(e.into()))?;
        }
        for (name, target) in LINKS {
            match rustix::fs::symlinkat(*target, &dev, *name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => self.warn(format!("cannot make /dev/{name}"), error),
            }
        }
        // Everybody may use these (BOOT-26); they check for themselves who may do what.
        for name in ["fuse", "net/tun"] {
            match rustix::fs::chmodat(&dev, name, Mode::from_raw_mode(0o666), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => self.warn(format!("cannot open /dev/{name} to all"), error),
            }
        }
        Ok(())
    }

    /// `/tmp` is a plain directory; an image that has none gets one.
    fn tmp(&mut self) {
        let path = Path::new("/tmp");
        if matches!(self.root.directory(path), Err(e) if e.kind() == io::ErrorKind::NotFound) {
            let made = self.root.make_directory(path).and_then(|_| {
                let root = self.root.fd();
                Ok(rustix::fs::chmodat(
                    root,
                    "tmp",
                    Mode::from_raw_mode(0o1777),
                    AtFlags::empty(),
                )?)
            });
            if let Err(error) = made {
                self.warn("cannot make /tmp", error);
            }
        }
    }
}

/// Nodes of a private `/dev`, mode 666: path, major, minor, and whether it is made even if the caller has none.
const NODES: &[(&str, u32, u32, bool)] = &[
    ("null", 1, 3, true),
    ("zero", 1, 5, true),
    ("full", 1, 7, true),
    ("random", 1, 8, true),
    ("urandom", 1, 9, true),
    ("tty", 5, 0, true),
    ("fuse", 10, 229, false),
    ("net/tun", 10, 200, false),
];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

fn make_node(dev: &OwnedFd, path: &Path, major: u32, minor: u32) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        match rustix::fs::mkdirat(dev, parent, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mode = Mode::from_raw_mode(0o666);
    let number = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(dev, path, FileType::CharacterDevice, mode, number)?;
    Ok(rustix::fs::chmodat(dev, path, mode, AtFlags::empty())?)
}

/// Makes the new tree `/`, lets the old one go, and shares the new one among whoever clones it later.
///
/// The old root is reached by a descriptor afterwards: `.` would be the new one. It was made private before, so that letting
/// go of it is nobody else's business.
pub(crate) fn pivot(root: &Beneath) -> Result<(), StartFailure> {
    let pivot = || -> io::Result<()> {
        let old = rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        rustix::process::fchdir(root.fd())?;
        rustix::process::pivot_root(".", ".")?;
        rustix::process::fchdir(&old)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")?;
        mount::set_propagation(root.fd(), Depth::Tree, Propagation::Shared)
    };
    pivot().map_err(failed("changing the root directory"))
}
