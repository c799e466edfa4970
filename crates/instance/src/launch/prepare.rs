//! What PID 1 does before it serves: from a fresh clone to a distribution that can run commands.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use hostel_sys::process::{End, Fork, SingleThreaded, StdStream};
use rustix::fs::{Mode, OFlags};
use rustix::process::{PidfdFlags, Resource, Rlimit};

use super::message::{LaunchMessage, Ready, StartFailure};
use super::{files, mounts};
use crate::session::SessionContext;
use crate::session::users::Database;
use crate::spec::LaunchSpec;
use crate::wire;

/// How long `mount -a` may take before it is given up.
const FSTAB_TIME: Duration = Duration::from_secs(10);
/// How many warnings of one start are kept; they have to fit into one packet.
const MAX_WARNINGS: usize = 50;
/// The longest warning, in bytes.
const MAX_WARNING: usize = 512;

/// A distribution ready to serve.
pub(crate) struct Prepared {
    pub(crate) context: SessionContext,
    pub(crate) devpts: OwnedFd,
    pub(crate) boot_command: Option<String>,
    pub(crate) ready: Ready,
}

/// Sets the distribution up in the calling process, the first of its new namespaces.
pub(crate) fn prepare(
    spec: &LaunchSpec,
    has_cgroup: bool,
    control: &OwnedFd,
    proof: &SingleThreaded,
) -> Result<Prepared, StartFailure> {
    let step = |what: &str| {
        // For the message of a timeout; a caller that is gone shows when PID 1 serves.
        let _ = wire::send(control, &LaunchMessage::Step(what.to_owned()), &[]);
    };
    let mut warnings = Vec::new();
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o22));
    set_limits();

    let captured = mounts::capture(spec, &mut warnings)?;
    step("mounting the root file system");
    let root = mounts::mount_root(spec, &mut warnings)?;
    step("building the mount tree");
    files::check_root(&root)?;
    let conf = files::wsl_conf(&root, &mut warnings);
    let os = files::os_release(&root, &mut warnings);
    let devpts = mounts::Builder {
        root: &root,
        warnings: &mut warnings,
    }
    .build(spec, captured, has_cgroup)?;

    step("naming the distribution");
    let hostname =
        hostel_wslconf::clean_hostname(conf.network.hostname.as_deref().unwrap_or(&spec.hostname));
    let domain = if spec.domain.is_empty() {
        "localdomain"
    } else {
        &spec.domain
    };
    rustix::system::sethostname(hostname.as_bytes())
        .map_err(|e| mounts::failed("setting the host name")(e.into()))?;
    if let Err(error) = rustix::system::setdomainname(domain.as_bytes()) {
        warnings.push(format!("cannot set the domain `{domain}`: {error}"));
    }
    files::write_etc(
        &root,
        &conf.network,
        &hostname,
        domain,
        spec.resolv_conf.as_deref(),
        &mut warnings,
    );

    step("changing the root directory");
    mounts::pivot(&root)?;
    drop(root);
    own_null();
    if conf.automount.mount_fs_tab && fstab_has_entries() {
        step("mounting /etc/fstab");
        if let Err(problem) = mount_fstab(proof) {
            warnings.push(format!("cannot mount all of /etc/fstab: {problem}"));
        }
    }

    let default_users: Vec<String> = conf
        .user
        .default
        .iter()
        .chain(&spec.default_user)
        .cloned()
        .collect();
    let default_user = Database::read()
        .find(None, &default_users)
        .map(|user| user.name);
    if let Some(wanted) = &conf.user.default
        && default_user.as_deref() != Some(wanted.as_bytes())
    {
        warnings.push(format!(
            "/etc/wsl.conf: there is no user `{wanted}` (user.default)"
        ));
    }
    warnings.truncate(MAX_WARNINGS);
    for warning in &mut warnings {
        let end = (0..=MAX_WARNING.min(warning.len()))
            .rev()
            .find(|&n| warning.is_char_boundary(n));
        warning.truncate(end.unwrap_or(0));
    }
    Ok(Prepared {
        context: SessionContext {
            name: spec.name.clone(),
            hostname: hostname.clone(),
            environment: spec.environment.clone(),
            default_users,
            umask: conf.filesystem.umask,
        },
        devpts,
        boot_command: conf.boot.command,
        ready: Ready {
            hostname,
            default_user: String::from_utf8_lossy(&default_user.unwrap_or_default()).into_owned(),
            os,
            warnings,
        },
    })
}

/// Gives the distribution the reference's limits (BOOT-6) as far as the caller has them, and no more protection from the
/// out-of-memory killer than anybody else.
fn set_limits() {
    let raise = |resource, soft: u64, hard: u64| {
        let old = rustix::process::getrlimit(resource);
        let wanted = Rlimit {
            current: Some(soft),
            maximum: Some(hard),
        };
        if rustix::process::setrlimit(resource, wanted).is_err() {
            let maximum = old.maximum;
            let current = Some(maximum.map_or(soft, |m| m.min(soft)));
            // Lowering the soft limit cannot fail.
            let _ = rustix::process::setrlimit(resource, Rlimit { current, maximum });
        }
    };
    raise(Resource::Nofile, 10_240, 1_048_576);
    raise(Resource::Memlock, 64 << 20, 64 << 20);
    // Refused only where the score is 0 already and may not be changed.
    let _ = fs_err::write("/proc/self/oom_score_adj", "0");
    let _ = rustix::thread::set_name(c"init");
}

/// Points the standard streams at the distribution's own `/dev/null`: nothing of the old tree stays open.
fn own_null() {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(null) = rustix::fs::open("/dev/null", flags, Mode::empty()) {
        for stream in [StdStream::Input, StdStream::Output, StdStream::Error] {
            // Three small numbers that exist: cannot fail.
            let _ = hostel_sys::process::put_stdio(null.as_fd(), stream);
        }
    }
}

fn fstab_has_entries() -> bool {
    let text =
        crate::session::users::read_file("/etc/fstab".as_ref(), 256 * 1024).unwrap_or_default();
    text.split(|&b| b == b'\n')
        .map(<[u8]>::trim_ascii)
        .any(|l| !l.is_empty() && !l.starts_with(b"#"))
}

/// Runs `mount -a` of the distribution, bounded in time.
fn mount_fstab(proof: &SingleThreaded) -> Result<(), String> {
    let env = vec![c_string(&format!("PATH={}", crate::session::BASE_PATH))];
    let argv = [c"mount".to_owned(), c"-a".to_owned()];
    let pid = match hostel_sys::process::fork(proof).map_err(|e| e.to_string())? {
        Fork::Parent(pid) => pid,
        Fork::Child(_) => {
            hostel_sys::signal::reset_all();
            for program in [c"/bin/mount", c"/usr/bin/mount", c"/sbin/mount"] {
                hostel_sys::process::execute(program, &argv, &env);
            }
            hostel_sys::process::exit_now(127)
        }
    };
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| e.to_string())?;
    let deadline = Instant::now() + FSTAB_TIME;
    let ended = wire::readable(pidfd.as_fd(), Some(deadline)).map_err(|e| e.to_string())?;
    if !ended {
        // It may hang in the kernel for ever: it is left to PID 1's reaping.
        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        return Err(format!("no end after {} s", FSTAB_TIME.as_secs()));
    }
    match hostel_sys::process::reap_pidfd(&pidfd) {
        Ok(Some(End::Exited(0))) => Ok(()),
        Ok(Some(End::Exited(127))) => Err("there is no mount program".to_owned()),
        Ok(Some(End::Exited(code))) => Err(format!("mount -a exited with {code}")),
        Ok(Some(End::Signaled { signal, .. })) => Err(format!("mount -a ended by signal {signal}")),
        Ok(None) => Err("mount -a did not end".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn c_string(text: &str) -> std::ffi::CString {
    std::ffi::CString::new(text).unwrap_or_default()
}
