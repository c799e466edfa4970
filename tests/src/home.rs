//! A state directory of a test's own, with the built programs over it.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::run::{DEADLINE, Output, Running, until};

/// A home and a runtime directory; dropping it ends everything that runs in them and checks that nothing is left.
pub struct Home {
    dir: tempfile::TempDir,
    env: Vec<(String, String)>,
    /// Who uses it; `None`: who runs the tests.
    user: Option<u32>,
    /// Whether `/dev/net/tun` cannot be opened there.
    without_tun: bool,
}

/// The programs that Hostel consists of.
const PROGRAMS: [&str; 4] = ["hostel", "hosteld", "hostel-net", "hostel-init"];

/// How many users one run of the tests has.
const USERS: u32 = 64;

impl Home {
    /// Makes an empty home. The path is short, because unix sockets live in it.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("ht")
            .rand_bytes(5)
            .tempdir_in("/tmp")?;
        fs_err::create_dir(dir.path().join("h"))?;
        // Two machines of the test suite may run at the same time on a small host.
        fs_err::create_dir_all(dir.path().join("c/hostel"))?;
        fs_err::write(
            dir.path().join("c/hostel/hostel.conf"),
            "[wsl2]\nmemory=1GB\n",
        )?;
        Ok(Self {
            dir,
            env: Vec::new(),
            user: None,
            without_tun: false,
        })
    }

    /// Makes a home whose kernel is the one that was fetched for all tests.
    pub fn with_kernel() -> Result<Self> {
        let home = Self::new()?;
        home.adopt_kernel(&crate::world::kernel_store()?)?;
        Ok(home)
    }

    /// Gives this home, and copies of the programs, to an ordinary user of its own, who has no right; commands run as that user.
    ///
    /// What else the user needs to read is copied with [`lend`](Self::lend).
    pub fn owned_by_a_user(mut self) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // What belongs to the user belongs to the home: another run of the tests at the same time has other users.
        let user = 1_000_000
            + std::process::id() % 4_000_000 * USERS
            + NEXT.fetch_add(1, Ordering::Relaxed) % USERS;
        // The built programs may lie where only root can go.
        fs_err::create_dir(self.scratch("bin"))?;
        for name in PROGRAMS {
            fs_err::copy(crate::world::program(name), self.scratch("bin").join(name))?;
        }
        self.user = Some(user);
        self.give(self.dir.path())?;
        Ok(self)
    }

    /// Returns the user whom this home was given to.
    pub fn user(&self) -> Option<u32> {
        self.user
    }

    /// Hides `/dev/net/tun` from every command (and so from the daemon that the first one starts).
    #[must_use]
    pub fn without_tun(mut self) -> Self {
        self.without_tun = true;
        self
    }

    /// Returns a path under which the user of this home can read a file.
    pub fn lend(&self, file: &Path) -> Result<PathBuf> {
        if self.user.is_none() {
            return Ok(file.to_owned());
        }
        let copy = self.scratch(&file.file_name().unwrap_or_default().to_string_lossy());
        fs_err::copy(file, &copy)?;
        self.give(&copy)?;
        Ok(copy)
    }

    fn give(&self, path: &Path) -> Result<()> {
        let owner = self
            .user
            .map_or(String::new(), |user| format!("{user}:{user}"));
        let args = [OsStr::new("-R"), OsStr::new(&owner), path.as_os_str()];
        crate::run::host("chown", &args)?.ok();
        Ok(())
    }

    /// Copies an installed kernel store into this home.
    pub fn adopt_kernel(&self, store: &Path) -> Result<()> {
        let to = self.path().join("kernels");
        fs_err::create_dir_all(&to)?;
        let all = store.join(".");
        crate::run::host("cp", &[OsStr::new("-a"), all.as_os_str(), to.as_os_str()])?.ok();
        Ok(())
    }

    /// Adds a variable to the environment of every command (and so of the daemon that the first one starts).
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Returns `HOSTEL_HOME`.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("h")
    }

    /// Returns `HOSTEL_RUNTIME_DIR`.
    pub fn runtime(&self) -> PathBuf {
        self.dir.path().join("r")
    }

    /// Returns the configuration file that the daemon reads.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("c/hostel/hostel.conf")
    }

    /// Returns a scratch path beside the home.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Prepares `hostel` with arguments, in this home.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if self.without_tun {
            let hide = "mount -t tmpfs none /dev/net && exec \"$@\"";
            words.extend(["unshare", "--mount", "sh", "-c", hide, "sh"].map(OsString::from));
        }
        if let Some(user) = self.user {
            let id = user.to_string();
            words.extend(
                ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"].map(OsString::from),
            );
            words.push(self.scratch("bin/hostel").into());
        } else {
            words.push(crate::world::program("hostel").into());
        }
        let mut command = Command::new(words.remove(0));
        command.args(words).args(args);
        if self.user.is_some() {
            command.env("HOME", self.dir.path());
        }
        self.prepare(&mut command);
        command
    }

    /// Sets the environment of a command to this home.
    pub fn prepare(&self, command: &mut Command) {
        command
            .env("HOSTEL_HOME", self.path())
            .env("HOSTEL_RUNTIME_DIR", self.runtime())
            .env("XDG_CONFIG_HOME", self.dir.path().join("c"))
            .env_remove("WSLENV")
            .env("TERM", "xterm-256color")
            .envs(self.env.iter().map(|(n, v)| (n, v)));
    }

    /// Adds a line to a section of the configuration, which holds from the next start of the VM on.
    pub fn configure(&self, section: &str, line: &str) {
        use std::io::Write as _;
        let mut file = fs_err::OpenOptions::new()
            .append(true)
            .open(self.config())
            .expect("the configuration is there");
        writeln!(file, "[{section}]\n{line}").expect("the configuration can be written");
    }

    /// Runs `hostel` to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.start(args)
            .wait(DEADLINE)
            .expect("the command ends in time")
    }

    /// Runs `hostel` to its end with `input` on its standard input.
    pub fn run_with<S: AsRef<OsStr>>(&self, args: &[S], input: impl Into<Vec<u8>>) -> Output {
        Running::start(&mut self.command(args), Some(input.into()))
            .and_then(|running| running.wait(DEADLINE))
            .expect("the command ends in time")
    }

    /// Starts `hostel` without waiting for its end.
    pub fn start<S: AsRef<OsStr>>(&self, args: &[S]) -> Running {
        Running::start(&mut self.command(args), None).expect("the program is built")
    }

    /// Runs one command line through the shell of a distribution.
    pub fn sh(&self, distro: &str, line: &str) -> Output {
        self.run(&["-d", distro, "--", line])
    }

    /// Runs a verb with `--json` and returns what it printed.
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        let text = self.run(&all).ok();
        serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{args:?} printed no JSON ({e}): {text}"))
    }

    /// Imports an archive under a name.
    pub fn import(&self, name: &str, archive: &Path) {
        let archive = self.lend(archive).expect("the archive can be copied");
        self.run(&[OsStr::new("import"), OsStr::new(name), archive.as_os_str()])
            .ok();
    }

    /// Returns the daemon's process id, when one runs.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.pids_of("hosteld").first().copied()
    }

    /// Returns the process ids of QEMU machines of this home.
    pub fn qemu_pids(&self) -> Vec<u32> {
        self.pids_of("qemu-system-x86")
    }

    /// Returns processes of this home that are named `comm`.
    pub fn pids_of(&self, comm: &str) -> Vec<u32> {
        self.all_pids()
            .into_iter()
            .filter(|pid| {
                let name = fs_err::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                let name = name.trim_end();
                // The kernel keeps 15 characters; passt and pasta go on as `passt.avx2`.
                let cut = name.len() == 15 && comm.starts_with(name);
                name == comm || cut || name.strip_prefix(comm).is_some_and(|r| r.starts_with('.'))
            })
            .collect()
    }

    /// Returns every process that was started for this home.
    pub fn all_pids(&self) -> Vec<u32> {
        processes()
            .into_iter()
            .filter(|pid| *pid != std::process::id() && self.is_mine(*pid))
            .collect()
    }

    /// Tells whether a process was started for this home: it carries the home's runtime directory in its environment, belongs
    /// to the home's own user, or descends from one that does. Some programs forget their environment.
    fn is_mine(&self, pid: u32) -> bool {
        let mark = format!("HOSTEL_RUNTIME_DIR={}", self.runtime().display());
        let mut pid = pid;
        for _ in 0..4 {
            let environ = fs_err::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if environ.split(|b| *b == 0).any(|v| v == mark.as_bytes()) {
                return true;
            }
            let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let field = |name: &str| -> Option<u32> {
                let line = status.lines().find_map(|l| l.strip_prefix(name))?;
                line.split_whitespace().next()?.parse().ok()
            };
            if self.user.is_some() && field("Uid:") == self.user {
                return true;
            }
            match field("PPid:") {
                Some(parent) if parent > 1 && parent != std::process::id() => pid = parent,
                _ => return false,
            }
        }
        false
    }

    /// Ends everything of this home in an orderly way and checks that no process is left.
    pub fn close(&self) -> Result<()> {
        if let Some(pid) = self.daemon_pid() {
            kill(pid, rustix::process::Signal::TERM);
        }
        let left = until("processes of the home end", Duration::from_secs(60), || {
            self.all_pids().is_empty().then_some(())
        });
        left.with_context(|| format!("left: {:?}", self.all_pids()))
    }

    /// Closes the home and removes its files; for one that lives in a static and is never dropped.
    pub fn remove(&self) -> Result<()> {
        self.close()?;
        fs_err::remove_dir_all(self.dir.path())?;
        Ok(())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            for pid in self.all_pids() {
                kill(pid, rustix::process::Signal::KILL);
            }
            assert!(std::thread::panicking(), "{error:#}");
        }
    }
}

/// Sends a signal to a process of ours.
pub fn kill(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Returns all process ids of the host.
fn processes() -> Vec<u32> {
    let Ok(entries) = fs_err::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()))
        .collect()
}
