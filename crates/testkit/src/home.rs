//! A home of Hostel's own for a test: its state, its sockets, its daemon.

use std::{
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Deadline, deadline::pause};

/// How long the daemon may take to stop its machine and leave.
const LEAVING: Duration = Duration::from_secs(60);

/// A state directory and a runtime directory of a test, with everything that runs in them.
///
/// When it goes, the daemon is asked to end (SIGTERM, which stops the machine), and everything that was started with
/// this home is waited for. Whatever is left then is killed and fails the test.
#[derive(Debug)]
pub struct Home {
    state: tempfile::TempDir,
    runtime: tempfile::TempDir,
}

impl Home {
    /// Makes an empty home. The state directory lies on a real disk (beside the test's program), because disks of
    /// distributions are large; the runtime directory has a short path, because paths of sockets are limited to 107 bytes.
    ///
    /// # Panics
    ///
    /// When the directories cannot be made.
    #[expect(
        clippy::new_without_default,
        reason = "making directories is not a default value"
    )]
    pub fn new() -> Self {
        let scratch = crate::fixture::target_dir().join("test-homes");
        fs_err::create_dir_all(&scratch).expect("the target directory can be written");
        let state = tempfile::Builder::new()
            .prefix("h-")
            .tempdir_in(scratch)
            .expect("a directory can be made");
        let runtime = tempfile::Builder::new()
            .prefix("hr-")
            .tempdir_in("/tmp")
            .expect("a directory can be made");
        Self { state, runtime }
    }

    /// Returns the state directory, `HOSTEL_HOME`.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// Returns the runtime directory, `HOSTEL_RUNTIME_DIR`.
    pub fn runtime(&self) -> &Path {
        self.runtime.path()
    }

    /// Returns a command of one of our programs in this home, with a configuration directory that is empty.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(bin(program));
        self.apply(&mut command);
        command
    }

    /// Sets this home in the environment of a command.
    pub fn apply(&self, command: &mut Command) {
        command
            .env("HOSTEL_HOME", self.state())
            .env("HOSTEL_RUNTIME_DIR", self.runtime())
            .env("XDG_CONFIG_HOME", self.state().join("config"))
            .env("HOME", self.state());
    }

    /// Returns the processes that run in this home: those that have it in their environment or on their command line.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let marks = [
            self.state().as_os_str().as_bytes(),
            self.runtime().as_os_str().as_bytes(),
        ];
        let own = rustix::process::getpid();
        let mut found = Vec::new();
        for entry in fs_err::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse().ok())
                .and_then(Pid::from_raw)
            else {
                continue;
            };
            // What cannot be read belongs to others or is gone.
            let command_line = fs_err::read(entry.path().join("cmdline")).unwrap_or_default();
            let environment = fs_err::read(entry.path().join("environ")).unwrap_or_default();
            let ours = marks
                .iter()
                .any(|m| contains(&command_line, m) || contains(&environment, m));
            if pid != own && ours {
                found.push((
                    pid,
                    String::from_utf8_lossy(&command_line)
                        .replace('\0', " ")
                        .trim()
                        .to_owned(),
                ));
            }
        }
        found
    }

    /// Ends the daemon and waits for everything to go; returns what had to be killed.
    pub fn shut_down(&self) -> Vec<String> {
        let deadline = Deadline::after(LEAVING);
        for (pid, command_line) in self.processes() {
            let program = command_line.split(' ').next().unwrap_or("");
            if program.rsplit('/').next() == Some("hosteld") {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        while !deadline.is_over() && !self.processes().is_empty() {
            pause();
        }
        let left = self.processes();
        for (pid, _) in &left {
            let _ = kill_process(*pid, Signal::KILL);
        }
        left.into_iter()
            .map(|(pid, command_line)| format!("{pid} {command_line}"))
            .collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let left = self.shut_down();
        if !std::thread::panicking() {
            assert!(
                left.is_empty(),
                "processes of this test's home had to be killed:\n{}",
                left.join("\n")
            );
        }
    }
}

fn contains(text: &[u8], mark: &[u8]) -> bool {
    text.windows(mark.len()).any(|w| w == mark)
}

/// Returns the directory of our built programs.
///
/// # Panics
///
/// When the test's own program has no path.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("HOSTEL_TEST_BIN_DIR") {
        return dir.into();
    }
    // target/debug/deps/test-abc, or target/debug/examples/x.
    let own = std::env::current_exe().expect("a running program has a path");
    own.ancestors()
        .nth(2)
        .expect("a test lies in target/<profile>/deps")
        .to_owned()
}

/// Returns the path of one of our built programs.
///
/// # Panics
///
/// When it was not built.
pub fn bin(program: &str) -> PathBuf {
    let path = bin_dir().join(program);
    assert!(
        path.is_file(),
        "`{}` is not there; run `cargo xtask build` first",
        path.display()
    );
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Guarded;

    #[test]
    fn processes_of_a_home_are_found_and_what_stays_is_told() {
        let home = Home::new();
        assert!(home.runtime().as_os_str().len() < 40);
        let mut command = Command::new("sleep");
        home.apply(command.arg("1000"));
        let mut guarded = Guarded::spawn(&mut command);
        // Between fork and exec the child still has the environment of the test.
        let found = Deadline::secs(20).until("the child to appear", || {
            Some(home.processes()).filter(|p| !p.is_empty())
        });
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0.as_raw_nonzero().get() as u32, guarded.pid());
        guarded.signal(Signal::KILL);
        guarded.wait(Deadline::secs(20));
        assert!(home.shut_down().is_empty());
    }
}
