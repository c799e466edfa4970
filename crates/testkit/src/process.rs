//! Child processes of tests: each in a process group of its own, and gone with all it started when its guard goes.

use std::{
    io::Read,
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    thread::JoinHandle,
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::{Deadline, deadline::pause};

/// A child that is killed, with its whole process group, and waited for when this goes.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    reaped: bool,
}

/// What a finished command left.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Ran {
    /// Returns standard output as text; bytes that are not UTF-8 are replaced.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns standard error as text; bytes that are not UTF-8 are replaced.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Returns the exit code; `None` when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Returns itself when the exit code was 0.
    ///
    /// # Panics
    ///
    /// With both outputs, when it was not.
    #[must_use]
    pub fn success(self) -> Self {
        assert!(
            self.status.success(),
            "{}\n--- stdout\n{}\n--- stderr\n{}",
            self.status,
            self.out(),
            self.err()
        );
        self
    }
}

impl Guarded {
    /// Starts a command in a process group of its own.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> Self {
        let child = command
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", command.get_program().display()));
        Self {
            child,
            reaped: false,
        }
    }

    /// Returns the process id, which is the group's too.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal to the child alone.
    ///
    /// # Panics
    ///
    /// When that fails, for example because the child was waited for.
    pub fn signal(&self, signal: Signal) {
        assert!(!self.reaped, "the child is gone");
        rustix::process::kill_process(self.id(), signal)
            .expect("a child that was not waited for can be signalled");
    }

    /// Waits for the child, not for others in its group.
    ///
    /// # Panics
    ///
    /// When the deadline passes first; the group is killed then.
    pub fn wait(&mut self, deadline: Deadline) -> ExitStatus {
        let pid = self.pid();
        let status = deadline.until(&format!("process {pid} to end"), || {
            self.child.try_wait().expect("a child can be waited for")
        });
        self.reaped = true;
        status
    }

    fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // The group may have members when its leader is gone; its number is not reused as long as it has.
        let _ = kill_process_group(self.id(), Signal::KILL);
        if !self.reaped {
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end, with standard input from `input`, and returns what it wrote.
///
/// Reading ends when the child ends and its pipes are closed; what the child left running in its process group is killed.
///
/// # Panics
///
/// When it cannot be started, or the deadline passes first: with what it wrote until then.
pub fn run(command: &mut Command, input: &[u8], deadline: Deadline) -> Ran {
    let shown = format!("{command:?}");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut guarded = Guarded::spawn(command);
    let child = guarded.child();
    let mut stdin = child.stdin.take().expect("it was piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        use std::io::Write as _;
        // A command that does not read all of it is its own business.
        let _ = stdin.write_all(&input);
    });
    let stdout = collect(child.stdout.take().expect("it was piped"));
    let stderr = collect(child.stderr.take().expect("it was piped"));
    let status = loop {
        if let Some(status) = guarded
            .child()
            .try_wait()
            .expect("a child can be waited for")
        {
            break Some(status);
        }
        if deadline.is_over() {
            break None;
        }
        pause();
    };
    guarded.reaped = status.is_some();
    drop(guarded);
    let (stdout, stderr) = (join(stdout), join(stderr));
    // The reader is gone, so the writer ends.
    join(writer);
    let Some(status) = status else {
        panic!(
            "{shown} did not end in time\n--- stdout\n{}\n--- stderr\n{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
    };
    Ran {
        status,
        stdout,
        stderr,
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = pipe.read_to_end(&mut all);
        all
    })
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread
        .join()
        .expect("a thread that only copies does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_there(pid: i32) -> bool {
        // A zombie that a distant parent has not yet taken is gone for us.
        fs_err::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| {
            !s.rsplit(')')
                .next()
                .unwrap_or("")
                .trim_start()
                .starts_with('Z')
        })
    }

    #[test]
    fn a_command_runs_with_input_and_both_outputs() {
        let ran = run(
            Command::new("sh").args(["-c", "cat; echo err >&2; exit 3"]),
            b"in",
            Deadline::secs(20),
        );
        assert_eq!(
            (ran.out().as_str(), ran.err().as_str(), ran.code()),
            ("in", "err\n", Some(3))
        );
    }

    #[test]
    fn what_a_command_leaves_behind_is_killed() {
        let script = "sleep 1000 >/dev/null 2>&1 & echo $!; sleep 1000 & exit 0";
        let ran = run(
            Command::new("sh").args(["-c", script]),
            b"",
            Deadline::secs(20),
        )
        .success();
        let pid: i32 = ran.out().trim().parse().unwrap();
        Deadline::secs(20).until("the child of the child to go", || {
            (!is_there(pid)).then_some(())
        });
    }

    #[test]
    fn a_guard_kills_when_it_goes() {
        let guarded = Guarded::spawn(Command::new("sleep").arg("1000"));
        let pid = guarded.pid() as i32;
        assert!(is_there(pid));
        drop(guarded);
        assert!(!is_there(pid));
    }

    #[test]
    #[should_panic(expected = "did not end in time")]
    fn a_command_that_hangs_fails_with_what_it_wrote() {
        run(
            Command::new("sh").args(["-c", "echo here; sleep 1000"]),
            b"",
            Deadline::after(std::time::Duration::from_millis(200)),
        );
    }
}
