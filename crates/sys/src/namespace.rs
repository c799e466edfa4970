//! Namespaces (namespaces(7), clone(2)).
#![expect(
    unsafe_code,
    reason = "clone and unshare have no safe wrapper below this crate"
)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::SingleThreaded;

/// The kinds of namespaces, as `/proc/<pid>/ns` spells them.
pub const KINDS: [&str; 8] = ["pid", "mnt", "ipc", "uts", "cgroup", "net", "user", "time"];

/// Returns the number that identifies a process's namespace of one kind. Needs `/proc` and the right to look at the process.
pub fn inode(pid: u32, kind: &str) -> io::Result<u64> {
    let text = rustix::fs::readlink(format!("/proc/{pid}/ns/{kind}"), Vec::new())?;
    text.to_str()
        .ok()
        .and_then(|t| {
            t.strip_prefix(kind)?
                .strip_prefix(":[")?
                .strip_suffix(']')?
                .parse()
                .ok()
        })
        .ok_or_else(|| {
            io::Error::other(format!(
                "unexpected namespace link `{}`",
                text.to_string_lossy()
            ))
        })
}

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Cloned {
    /// The process that called.
    Parent {
        /// The new process, in the caller's PID namespace.
        pid: Pid,
        /// Names it for as long as it is held.
        pidfd: OwnedFd,
    },
    /// The new process: PID 1 of its namespaces.
    Child(SingleThreaded),
}

/// Makes a copy of the process as the first process of new PID, mount, IPC and UTS namespaces.
///
/// The new process is a *sibling*: a child of the caller's parent, which has to reap it. Needs `CAP_SYS_ADMIN`.
pub fn clone_into_new(_proof: &SingleThreaded) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let flags = (flags | libc::CLONE_PIDFD | libc::CLONE_PARENT) as u64;
    let mut arguments = libc::clone_args {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        // With CLONE_PARENT the signal is the one of the caller itself and must be zero here.
        exit_signal: 0,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: without CLONE_VM and with no stack given this is a fork: the child goes on here with a copy of everything. The
    // one thread holds no lock of another. The C library's cached thread id is stale in the child; nothing that uses it
    // (robust mutexes, `pthread_kill`) is used there.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child(SingleThreaded::of_child())),
        _ => {
            // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor, close-on-exec, that no one else knows.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            Ok(Cloned::Parent {
                pid: pid.ok_or_else(|| io::Error::other("clone gave no pid"))?,
                pidfd,
            })
        }
    }
}

/// Moves the process into a cgroup namespace of its own, whose root is the cgroup it is in now. Needs `CAP_SYS_ADMIN`.
pub fn unshare_cgroup(_proof: &SingleThreaded) -> io::Result<()> {
    // SAFETY: a cgroup namespace changes only what paths of cgroups look like; no memory or descriptor is concerned.
    if unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Moves the calling thread, and it alone, into a new network namespace. Processes that it starts are in it too.
///
/// The namespace is gone when its last process, thread, socket and descriptor are. Needs `CAP_SYS_ADMIN`.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: a network namespace changes only which interfaces and ports new sockets see; no memory or descriptor is concerned.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Moves the calling thread, and it alone, into a network namespace. Needs `CAP_SYS_ADMIN`.
pub fn enter_network(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(
        netns,
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Opens the network namespace of the calling thread, which lives as long as the descriptor. Needs `/proc`.
pub fn network_of_thread() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(
        "/proc/thread-self/ns/net",
        flags,
        Mode::empty(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn a_process_has_every_kind() {
        for kind in KINDS {
            assert!(inode(std::process::id(), kind).unwrap() > 0, "{kind}");
        }
    }

    #[test]
    fn an_unknown_kind_is_an_error() {
        assert_eq!(
            inode(std::process::id(), "no").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_thread_goes_to_a_network_of_its_own_and_back() {
        let name = "namespace::tests::a_thread_goes_to_a_network_of_its_own_and_back";
        if hostel_testkit::require(name, hostel_testkit::Need::Root).is_none() {
            return;
        }
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let home = network_of_thread().unwrap();
        let seen = std::thread::spawn(move || {
            unshare_network().unwrap();
            let own = network_of_thread().unwrap();
            enter_network(home.as_fd()).unwrap();
            [
                inode(&home),
                inode(&own),
                inode(&network_of_thread().unwrap()),
            ]
        });
        let [home, own, back] = seen.join().unwrap();
        assert!(own != home && back == home);
        assert_eq!(inode(&network_of_thread().unwrap()), home);
    }
}
