//! Processes: fork, exec, reaping, signals to many (fork(2), execve(2), waitpid(2), kill(2)).
#![expect(unsafe_code, reason = "fork, exec and _exit are unsafe by nature")]

use std::ffi::{CStr, CString};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions};

/// Proof that the process had one thread when it was asked for; what may be forked without `exec` at once.
///
/// Whoever holds it must not start threads.
#[derive(Debug)]
pub struct SingleThreaded(PhantomData<*const ()>);

impl SingleThreaded {
    /// Checks that the calling thread is the only one. Needs `/proc`.
    pub fn check() -> io::Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        if threads == 1 {
            Ok(Self(PhantomData))
        } else {
            Err(io::Error::other(format!(
                "the process has {threads} threads where one is needed"
            )))
        }
    }

    /// For the sake of a child: the one thread of a process that was just forked or cloned.
    pub(crate) fn of_child() -> Self {
        Self(PhantomData)
    }
}

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The process that called, with the child's id.
    Parent(Pid),
    /// The new process.
    Child(SingleThreaded),
}

/// Makes a copy of the process.
pub fn fork(_proof: &SingleThreaded) -> io::Result<Fork> {
    // SAFETY: with a single thread no lock can be held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child(SingleThreaded::of_child())),
        pid => Pid::from_raw(pid)
            .map(Fork::Parent)
            .ok_or_else(|| io::Error::other("fork gave no pid")),
    }
}

/// Replaces the program; returns only on failure. Descriptors without close-on-exec stay open.
pub fn execute(path: &CStr, argv: &[CString], env: &[CString]) -> Errno {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: path is a C string; both arrays end with a null pointer and point at C strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Ends the process at once, without running what was registered for its exit: right for the child of a fork.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: `_exit` takes any number and never returns.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Makes `from` the descriptor number `to` of this process, without close-on-exec.
///
/// Meant for 0, 1 and 2 of a child that is about to exec. Whatever was at `to` is closed: the caller must hold no `OwnedFd` there.
pub fn put_stdio(from: BorrowedFd<'_>, to: StdStream) -> io::Result<()> {
    let number: RawFd = match to {
        StdStream::Input => 0,
        StdStream::Output => 1,
        StdStream::Error => 2,
    };
    use std::os::fd::AsRawFd;
    if from.as_raw_fd() == number {
        return Ok(rustix::io::fcntl_setfd(from, rustix::io::FdFlags::empty())?);
    }
    // SAFETY: both numbers are plain integers to the kernel; the standard streams have no owner in this program.
    if unsafe { libc::dup2(from.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// One of the three standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StdStream {
    /// 0
    Input,
    /// 1
    Output,
    /// 2
    Error,
}

/// Sends a signal to every process that the caller may signal and sees, except itself and PID 1 of its namespace.
///
/// Meant for the first process of a PID namespace; anywhere else this reaches far.
pub fn signal_all(signal: i32) -> io::Result<()> {
    // SAFETY: `kill` takes plain integers.
    if unsafe { libc::kill(-1, signal) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends a signal, given by number, to one process group.
pub fn signal_group(group: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: `kill` takes plain integers; a `Pid` is positive, so this names one group.
    if unsafe { libc::kill(-group.as_raw_nonzero().get(), signal) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exited(u8),
    /// A signal ended it.
    Signaled {
        /// The signal's number.
        signal: u8,
        /// Whether it dumped core.
        core: bool,
    },
}

/// What [`reap`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// This child has ended and is gone now.
    Child(Pid, End),
    /// This child was stopped by this signal.
    Stopped(Pid, u8),
    /// There are children, all still running.
    Running,
    /// There are no children.
    None,
}

/// Takes one child that ended or was stopped, without waiting.
pub fn reap() -> io::Result<Reaped> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            Ok(None) => return Ok(Reaped::Running),
            Ok(Some((pid, status))) => {
                if let Some(code) = status.exit_status() {
                    return Ok(Reaped::Child(pid, End::Exited(code as u8)));
                }
                if let Some(signal) = status.terminating_signal() {
                    // Bit 7 of a wait status says that there was a core dump (wait(2), WCOREDUMP).
                    let core = status.as_raw() & 0x80 != 0;
                    return Ok(Reaped::Child(
                        pid,
                        End::Signaled {
                            signal: signal as u8,
                            core,
                        },
                    ));
                }
                if let Some(signal) = status.stopping_signal() {
                    return Ok(Reaped::Stopped(pid, signal as u8));
                }
            }
            Err(Errno::CHILD) => return Ok(Reaped::None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes the end of the child that a pidfd names, without waiting; `None` while it runs.
///
/// Fails with `ECHILD` when it is not a child, or was reaped by someone else.
pub fn reap_pidfd(pidfd: impl AsFd) -> io::Result<Option<End>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let Some(status) = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options)? else {
        return Ok(None);
    };
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(End::Exited(code as u8)),
        (None, Some(signal)) => Some(End::Signaled {
            signal: signal as u8,
            core: status.dumped(),
        }),
        (None, None) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_of_a_missing_file_says_so() {
        let name = CString::new("/no/such/program").unwrap();
        assert_eq!(
            execute(&name, std::slice::from_ref(&name), &[]),
            Errno::NOENT
        );
    }

    #[test]
    fn a_threaded_process_is_refused() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || receive.recv());
        assert!(SingleThreaded::check().is_err());
        drop(send);
        thread.join().unwrap().unwrap_err();
    }
}
