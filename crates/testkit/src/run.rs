//! Running one command with a deadline and keeping everything it said; nothing that it started outlives its test.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// Generous: a VM under TCG on a busy machine starts in a minute.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// What a finished command left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, as text.
    pub stderr: String,
}

impl Output {
    /// Returns the exit code; a signal counts as 128 + n, as a shell says it.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Returns standard output as text, without the white space at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Returns the text of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(
            self.status.success(),
            "exit {}: {}\n{}",
            self.code(),
            self.text(),
            self.stderr
        );
        self.text()
    }

    /// Checks that the command failed with `code` and said every one of `words` on standard error; returns what it said.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> String {
        assert_eq!(
            self.code(),
            code,
            "stdout: {}\nstderr: {}",
            self.text(),
            self.stderr
        );
        for word in words {
            assert!(
                self.stderr.contains(word),
                "`{word}` is not in: {}",
                self.stderr
            );
        }
        self.stderr
    }
}

/// A command that runs in a process group of its own, and is killed with it when this is dropped.
pub struct Running {
    child: Option<Child>,
    what: String,
    stdout: mpsc::Receiver<Vec<u8>>,
    stderr: mpsc::Receiver<Vec<u8>>,
}

impl Running {
    /// Starts a command with `input` on its standard input (`None`: /dev/null).
    pub fn start(command: &mut Command, input: Option<Vec<u8>>) -> Result<Self> {
        let what = format!("{command:?}");
        command.stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| what.clone())?;
        if let Some(input) = input {
            let mut stdin = child.stdin.take().context("stdin is piped")?;
            // A command that leaves early closes its end; that is its right.
            thread::spawn(move || stdin.write_all(&input));
        }
        let stdout = drain(child.stdout.take().context("stdout is piped")?);
        let stderr = drain(child.stderr.take().context("stderr is piped")?);
        Ok(Self {
            child: Some(child),
            what,
            stdout,
            stderr,
        })
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Waits for the end and returns everything that was said.
    pub fn wait(mut self, deadline: Duration) -> Result<Output> {
        // Both ends of output come before the status: a child that holds the pipe open is part of the command.
        let Ok(stdout) = self.stdout.recv_timeout(deadline) else {
            bail!("{} did not end within {deadline:?}", self.what);
        };
        let stderr = self
            .stderr
            .recv_timeout(deadline)
            .context("standard error stays open")?;
        let mut child = self.child.take().context("waits once")?;
        let status = child.wait()?;
        Ok(Output {
            status,
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            }
            let _ = child.wait();
        }
    }
}

/// Reads everything on a thread; the result comes when the last writer has closed.
fn drain(mut source: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = source.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// Runs a program of the host to its end.
pub fn host<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<Output> {
    Running::start(Command::new(program).args(args), None)?.wait(DEADLINE)
}

/// Waits until `check` says something, asking again every 20 ms, at most `deadline`.
pub fn until<T>(what: &str, deadline: Duration, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let end = std::time::Instant::now() + deadline;
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        if std::time::Instant::now() >= end {
            bail!("{what}: not within {deadline:?}");
        }
        pause(Duration::from_millis(20));
    }
}

/// Lets time pass between two looks at something that sends no event.
pub fn pause(time: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests look at processes of others, which send us no event"
    )]
    thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(line: &str) -> Running {
        Running::start(Command::new("sh").args(["-c", line]), Some(b"in".to_vec())).unwrap()
    }

    fn is_there(pid: u32) -> bool {
        // A zombie that a distant parent has not yet taken is gone for us.
        fs_err::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|s| s.rsplit(") ").next().is_some_and(|s| !s.starts_with('Z')))
    }

    #[test]
    fn a_command_runs_with_input_and_both_outputs() {
        let output = sh("cat; echo err >&2; exit 3").wait(DEADLINE).unwrap();
        assert_eq!(output.text(), "in");
        assert_eq!(output.fails(3, &["err"]), "err\n");
        assert_eq!(sh("kill -9 $$").wait(DEADLINE).unwrap().code(), 137);
    }

    #[test]
    fn what_is_dropped_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let running = sh(&format!(
            "sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait",
            file.display()
        ));
        let child: u32 = until("the child of the child", DEADLINE, || {
            fs_err::read_to_string(&file).ok()?.trim().parse().ok()
        })
        .unwrap();
        let pid = running.pid();
        assert!(is_there(pid) && is_there(child));
        drop(running);
        assert!(!is_there(pid));
        until("the child of the child to go", DEADLINE, || {
            (!is_there(child)).then_some(())
        })
        .unwrap();
    }

    #[test]
    fn a_deadline_ends_waiting() {
        let error = sh("sleep 1000")
            .wait(Duration::from_millis(100))
            .unwrap_err();
        assert!(
            error.to_string().contains("did not end within 100ms"),
            "{error}"
        );
        let error = until("a miracle", Duration::from_millis(50), || None::<()>).unwrap_err();
        assert_eq!(error.to_string(), "a miracle: not within 50ms");
    }
}
