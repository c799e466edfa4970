//! Starting child processes with chosen descriptors that end with their parent (prctl(2), PR_SET_PDEATHSIG).
//!
//! The kernel sends the parent-death signal when the *thread* that forked ends, not the process. A child started from a
//! worker thread of an async runtime would die at the runtime's whim, so one thread that never ends starts them all.
#![expect(unsafe_code, reason = "work between fork and exec")]

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, OnceLock, mpsc},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, FdFlags, fcntl_setfd},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
    },
};

/// Where one of a child's standard streams goes.
#[derive(Debug, Default)]
pub enum Stream {
    /// `/dev/null`.
    #[default]
    Null,
    /// The parent's own.
    Inherit,
    /// This descriptor.
    Fd(OwnedFd),
}

impl From<Stream> for Stdio {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Null => Self::null(),
            Stream::Inherit => Self::inherit(),
            Stream::Fd(fd) => fd.into(),
        }
    }
}

/// What the child is set apart from, so that a terminal's signals do not reach it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Apart {
    /// A process group of its own.
    #[default]
    Group,
    /// A session (and group) of its own.
    Session,
}

/// A child process to start; made with [`Spawn::new`], started with [`Spawn::start`].
#[derive(Debug)]
pub struct Spawn {
    program: PathBuf,
    args: Vec<OsString>,
    env: Option<BTreeMap<OsString, OsString>>,
    dir: Option<PathBuf>,
    inherited: Vec<OwnedFd>,
    stdin: Stream,
    stdout: Stream,
    stderr: Stream,
    apart: Apart,
}

impl Spawn {
    /// Describes a child that runs `program`, looked up in PATH when it has no slash; all streams are `/dev/null`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: None,
            dir: None,
            inherited: Vec::new(),
            stdin: Stream::Null,
            stdout: Stream::Null,
            stderr: Stream::Null,
            apart: Apart::Group,
        }
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(&mut self, args: I) -> &mut Self {
        self.args
            .extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Gives the child exactly these variables instead of the parent's environment.
    pub fn env<K: Into<OsString>, V: Into<OsString>>(
        &mut self,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> &mut Self {
        self.env = Some(
            vars.into_iter()
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
        );
        self
    }

    /// Starts the child in `dir`.
    pub fn current_dir(&mut self, dir: impl Into<PathBuf>) -> &mut Self {
        self.dir = Some(dir.into());
        self
    }

    /// Lets the child inherit a descriptor and returns its number there, for its command line.
    ///
    /// The number is the one it has here: renumbering in the child could hit descriptors the start itself needs. Only the
    /// child gets it; it stays close-on-exec in this process, which drops its copy when the child was started.
    pub fn inherit(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.inherited.push(fd);
        number
    }

    /// Chooses the child's standard input.
    pub fn stdin(&mut self, stream: Stream) -> &mut Self {
        self.stdin = stream;
        self
    }

    /// Chooses the child's standard output.
    pub fn stdout(&mut self, stream: Stream) -> &mut Self {
        self.stdout = stream;
        self
    }

    /// Chooses the child's standard error.
    pub fn stderr(&mut self, stream: Stream) -> &mut Self {
        self.stderr = stream;
        self
    }

    /// Chooses what the child is set apart from.
    pub fn apart(&mut self, apart: Apart) -> &mut Self {
        self.apart = apart;
        self
    }

    /// Starts the child. It is killed (SIGKILL) when this process ends in any way, and when the [`Child`] is dropped.
    ///
    /// Blocks for the fork and exec only. A program that cannot be executed is an error here.
    pub fn start(self) -> io::Result<Child> {
        let (reply, answer) = mpsc::sync_channel(1);
        let gone = || io::Error::other("the thread that starts processes has ended");
        spawner()?
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .send((self, reply))
            .map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    fn run(self) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .stdin(self.stdin)
            .stdout(self.stdout)
            .stderr(self.stderr);
        if let Some(env) = &self.env {
            command.env_clear().envs(env);
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let inherited: Vec<RawFd> = self.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let parent = rustix::process::getpid();
        let apart = self.apart;
        let prepare = move || {
            match apart {
                Apart::Group => rustix::process::setpgid(None, None)?,
                Apart::Session => {
                    rustix::process::setsid()?;
                }
            }
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the signal was asked for; then nobody will ever send it.
            if rustix::process::getppid() != Some(parent) {
                return Err(Errno::SRCH.into());
            }
            for &number in &inherited {
                // SAFETY: `self.inherited` owns these descriptors until after the fork, so they are open in the child.
                let fd = unsafe { BorrowedFd::borrow_raw(number) };
                fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec and makes bare system calls only: it neither allocates nor locks,
        // and converting an errno to `io::Error` allocates nothing.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        // Nobody has waited for the child yet, so the pid is still its own even when it has ended.
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Child {
                pid,
                pidfd,
                exit: Mutex::new(None),
            }),
            Err(error) => {
                let mut child = child;
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }
}

type Job = (Spawn, mpsc::SyncSender<io::Result<Child>>);

/// Returns the queue of the one thread that starts children and lives as long as the process.
fn spawner() -> io::Result<&'static Mutex<mpsc::Sender<Job>>> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    if let Some(queue) = SPAWNER.get() {
        return Ok(queue);
    }
    let (sender, jobs) = mpsc::channel::<Job>();
    std::thread::Builder::new()
        .name("spawner".into())
        .spawn(move || {
            for (spawn, reply) in jobs {
                // A starter that has gone drops the child with the unread answer, which kills it.
                let _ = reply.send(spawn.run());
            }
        })?;
    // When two threads come here at once, the loser's queue closes and its thread ends, having started nothing.
    Ok(SPAWNER.get_or_init(|| Mutex::new(sender)))
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A running or ended child. Dropping it kills it and waits for its end.
///
/// Everything goes through a pidfd, so a signal can never hit another process that got the same pid.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    exit: Mutex<Option<Exit>>,
}

impl Child {
    /// Returns the pid.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal; a child that has ended already is a success.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Err(Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Kills the child with SIGKILL.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Blocks until the child has ended and returns how. May be called again and from several threads.
    pub fn wait(&self) -> io::Result<Exit> {
        loop {
            // Waiting happens here, without the lock, so that others can still ask and signal.
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(exit) = self.try_wait()? {
                return Ok(exit);
            }
        }
    }

    /// Returns how the child ended; `None` while it runs.
    pub fn try_wait(&self) -> io::Result<Option<Exit>> {
        let mut exit = self
            .exit
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if exit.is_some() {
            return Ok(*exit);
        }
        match waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(None) | Err(Errno::INTR) => Ok(None),
            Ok(Some(status)) => {
                *exit = status
                    .exit_status()
                    .map(Exit::Code)
                    .or_else(|| status.terminating_signal().map(Exit::Signal));
                Ok(*exit)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the program of a running child as the kernel sees it (`/proc/<pid>/exe`), for messages.
    pub fn executable(&self) -> Option<PathBuf> {
        std::fs::read_link(Path::new("/proc").join(self.pid().to_string()).join("exe")).ok()
    }
}

impl AsFd for Child {
    /// Lends the pidfd, which is readable once the child has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !matches!(self.try_wait(), Ok(None)) {
            return;
        }
        if self.kill().is_ok() {
            let _ = self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::OpenOptions,
        io::{BufRead as _, Read as _, Write as _},
    };

    fn sh(script: &str) -> Spawn {
        let mut spawn = Spawn::new("/bin/sh");
        spawn.args(["-c", script]);
        spawn
    }

    #[test]
    fn exit_codes_signals_and_missing_programs_are_told() {
        assert_eq!(sh("exit 7").start().unwrap().wait().unwrap(), Exit::Code(7));
        assert_eq!(
            sh("kill -TERM $$").start().unwrap().wait().unwrap(),
            Exit::Signal(15)
        );
        assert_eq!(
            Spawn::new("/nonexistent/x").start().unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_descriptor_is_inherited_by_its_number_and_no_other_is() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let other = OpenOptions::new().read(true).open("/dev/zero").unwrap();
        let other_number = other.as_raw_fd();
        let mut spawn = Spawn::new("/bin/sh");
        let number = spawn.inherit(writer.into());
        spawn.args(["-c", &format!("test -e /proc/self/fd/{other_number} && x=leaked; echo ok $x >/proc/self/fd/{number}")]);
        let child = spawn.start().unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(0));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ok\n");
    }

    #[test]
    fn a_dropped_child_is_killed_and_the_pidfd_tells() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut spawn = sh("echo up; exec sleep 1000");
        spawn.stdout(Stream::Fd(writer.into()));
        let child = spawn.start().unwrap();
        let mut buf = [0; 3];
        reader.read_exact(&mut buf).unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        drop(child);
        assert_eq!(
            reader.read(&mut buf).unwrap(),
            0,
            "the write end is closed, so the child is gone"
        );
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let (mut theirs, ours) = std::io::pipe().map(|(r, w)| (w, r)).unwrap();
        let child = std::thread::spawn(move || {
            let mut spawn = sh("read x; exit 3");
            spawn.stdin(Stream::Fd(ours.into()));
            spawn.start().unwrap()
        })
        .join()
        .unwrap();
        theirs.write_all(b"go\n").unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(3));
    }

    /// Plays both parts: run again as a helper it starts a child and is killed; the child must not outlive it.
    #[test]
    fn a_child_dies_with_its_killed_parent() {
        const HELPER: &str = "SPAWN_TEST_HELPER";
        if std::env::var_os(HELPER).is_some() {
            let child = std::thread::spawn(|| {
                let mut spawn = sh("echo up; exec sleep 1000");
                spawn.stdout(Stream::Inherit).stderr(Stream::Inherit);
                spawn.start().unwrap()
            });
            child.join().unwrap().wait().unwrap();
            return;
        }
        let mut helper = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "spawn::tests::a_child_dies_with_its_killed_parent",
            ])
            .env(HELPER, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = io::BufReader::new(helper.stdout.take().unwrap());
        let mut seen = String::new();
        while !seen.ends_with("up\n") {
            assert_ne!(
                lines.read_line(&mut seen).unwrap(),
                0,
                "the helper ended early: {seen}"
            );
        }
        helper.kill().unwrap();
        helper.wait().unwrap();
        // The end of the stream comes when the last holder of the pipe, the grandchild, is gone too.
        lines.read_to_string(&mut seen).unwrap();
    }

    #[test]
    fn a_child_stands_in_a_group_or_session_of_its_own_with_only_the_given_environment() {
        for apart in [Apart::Group, Apart::Session] {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let mut spawn = sh("read -r line </proc/self/stat; echo $line; echo $ONLY$HOME");
            spawn
                .stdout(Stream::Fd(writer.into()))
                .apart(apart)
                .env([("ONLY", "this")]);
            let child = spawn.start().unwrap();
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            let fields: Vec<&str> = text.lines().next().unwrap().split(' ').collect();
            let pid = child.pid().to_string();
            assert_eq!(fields[4], pid, "process group");
            assert_eq!(fields[5] == pid, apart == Apart::Session, "session");
            assert_eq!(text.lines().nth(1), Some("this"));
        }
    }
}
