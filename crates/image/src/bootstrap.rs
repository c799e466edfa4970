//! Puts a Debian together with mmdebstrap, as a child whose output is streamed.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, geteuid, kill_process_group, waitid};

use crate::{
    Suite,
    apt::{one_line_sources, sources_in},
    rights::mode,
};

/// How long an aborted child may clean up after itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many lines of the child's talk an error quotes.
const TAIL: usize = 15;

/// What Debian's minimal system lacks for a first look around: `ip`, `ping`, names of services, `ps`. A megabyte or so.
const EVERYDAY: [&str; 4] = ["iproute2", "iputils-ping", "netbase", "procps"];

/// What is put together, and how.
#[derive(Clone, Debug)]
pub struct BootstrapSpec {
    /// Which release.
    pub suite: Suite,
    /// Packages beside the minimal system and the few that everybody looks for (`ip`, `ping`, `ps`).
    pub packages: Vec<String>,
    /// Where the archive is; `None`: where the host's apt gets Debian from, else mmdebstrap's own default.
    pub mirror: Option<String>,
    /// The program, by default `mmdebstrap` from PATH.
    pub program: PathBuf,
    /// apt's configuration on the host, by default `/etc/apt`.
    pub apt_directory: PathBuf,
    /// The keys that the archive must be signed with, by default those of the package debian-archive-keyring.
    pub keyring: PathBuf,
}

impl BootstrapSpec {
    /// Describes the minimal system of a release, everything else by default.
    pub fn new(suite: Suite) -> Self {
        Self {
            suite,
            packages: Vec::new(),
            mirror: None,
            program: "mmdebstrap".into(),
            apt_directory: "/etc/apt".into(),
            keyring: "/usr/share/keyrings/debian-archive-keyring.gpg".into(),
        }
    }
}

/// Why no Debian came out.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The program is not there.
    #[error("the program `{0}` is missing; install the package mmdebstrap")]
    NoProgram(PathBuf),
    /// The keys are not there.
    #[error(
        "the keys of Debian's archive are missing at `{0}`; install the package debian-archive-keyring"
    )]
    NoKeyring(PathBuf),
    /// An ordinary user lacks what a user namespace needs.
    #[error("cannot put a Debian together without root here: {0}")]
    NoUserNamespace(String),
    /// A text that is not a package's name.
    #[error("`{0}` is not the name of a package")]
    BadPackage(String),
    /// A mirror that apt would not take.
    #[error("`{0}` is not the address of a mirror")]
    BadMirror(String),
    /// The program could not be run.
    #[error("cannot run `{program}`")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The program failed.
    #[error("mmdebstrap failed ({status}):\n{tail}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote.
        tail: String,
    },
    /// It was ended by [`Bootstrap::abort`].
    #[error("the bootstrap was stopped")]
    Stopped,
}

/// A bootstrap under way: reads as a plain tar.
///
/// The end of the stream is only reported after the program succeeded; when it fails, the last read returns an error that
/// wraps the [`BootstrapError`], so that half an archive cannot be taken for a whole one. Dropping it ends the program and
/// waits up to some seconds for its own cleaning up. The program also ends when this process dies.
pub struct Bootstrap {
    stdout: Option<ChildStdout>,
    shared: Arc<Shared>,
    ended: mpsc::Receiver<io::Result<ExitStatus>>,
    watcher: Option<JoinHandle<()>>,
    done: bool,
}

/// What the watching thread and the reader share.
struct Shared {
    /// The child's process group; `None` as soon as its number may belong to another.
    group: Mutex<Option<Pid>>,
    tail: Mutex<VecDeque<String>>,
}

impl Shared {
    fn signal(&self, signal: Signal) {
        let group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = *group {
            // Gone already is what is wanted.
            let _ = kill_process_group(pid, signal);
        }
    }
}

/// Starts to put a Debian together. `progress` gets the program's lines from a thread of its own.
///
/// Needs root, or an ordinary user with subordinate ids and the package uidmap. Uses the network, through apt, which
/// checks signatures and sums.
pub fn bootstrap(
    spec: &BootstrapSpec,
    progress: impl FnMut(&str) + Send + 'static,
) -> Result<Bootstrap, BootstrapError> {
    let mode = mode(Path::new("/"), geteuid().as_raw())?;
    let arguments = arguments(spec, mode.as_str())?;
    let command = command(spec, &arguments);
    let shared = Arc::new(Shared {
        group: Mutex::new(None),
        tail: Mutex::new(VecDeque::new()),
    });
    let (started, start) = mpsc::channel();
    let (end, ended) = mpsc::channel();
    let watched = Arc::clone(&shared);
    let watcher = std::thread::spawn(move || watch(command, &watched, &started, &end, progress));
    let spawn_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => BootstrapError::NoProgram(spec.program.clone()),
        _ => BootstrapError::Spawn {
            program: spec.program.clone(),
            source,
        },
    };
    let stdout = start
        .recv()
        .expect("the watcher reports before it ends")
        .map_err(spawn_error)?;
    Ok(Bootstrap {
        stdout: Some(stdout),
        shared,
        ended,
        watcher: Some(watcher),
        done: false,
    })
}

fn arguments(spec: &BootstrapSpec, mode: &str) -> Result<Vec<String>, BootstrapError> {
    if !spec.keyring.exists() {
        return Err(BootstrapError::NoKeyring(spec.keyring.clone()));
    }
    let shown = |text: &str| {
        text.chars()
            .take(100)
            .flat_map(char::escape_debug)
            .collect::<String>()
    };
    if let Some(mirror) = &spec.mirror
        && (!mirror.contains(":/")
            || !mirror
                .chars()
                .all(|c| c.is_ascii_graphic() && !"[]\"'".contains(c)))
    {
        return Err(BootstrapError::BadMirror(shown(mirror)));
    }
    let host = sources_in(&spec.apt_directory);
    let sources = one_line_sources(&host, spec.suite, spec.mirror.as_deref(), &spec.keyring);
    let mut packages: Vec<String> = EVERYDAY.map(str::to_owned).into();
    packages.extend_from_slice(&spec.packages);
    // Without them the new system could not read its own mirror again.
    if sources.iter().any(|line| line.contains(" https://")) {
        packages.push("ca-certificates".to_owned());
    }
    let is_name = |name: &String| {
        let first = name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        first
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+.-".contains(&b))
    };
    if let Some(bad) = packages.iter().find(|name| !is_name(name)) {
        return Err(BootstrapError::BadPackage(shown(bad)));
    }
    let mut arguments = vec![
        format!("--mode={mode}"),
        "--variant=minbase".to_owned(),
        "--format=tar".to_owned(),
    ];
    if !sources.is_empty() {
        // Every line names its keyring; guessing it would only cost time, and leave a directory behind when stopped.
        arguments.push("--skip=check/signed-by".to_owned());
    }
    arguments.push(format!("--include={}", packages.join(",")));
    arguments.extend([
        "--".to_owned(),
        spec.suite.codename().to_owned(),
        "-".to_owned(),
    ]);
    arguments.extend(sources);
    Ok(arguments)
}

fn command(spec: &BootstrapSpec, arguments: &[String]) -> Command {
    // setpriv, of the essential package util-linux, lets the kernel end the child with the thread that started it.
    let setpriv = Path::new("/usr/bin/setpriv");
    let is_there = spec.program.components().count() > 1 && spec.program.exists()
        || ["/usr/bin", "/usr/local/bin", "/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(&spec.program).exists());
    let mut command = if setpriv.exists() && is_there {
        let mut command = Command::new(setpriv);
        command
            .args(["--pdeathsig", "TERM", "--"])
            .arg(&spec.program);
        command
    } else {
        Command::new(&spec.program)
    };
    command
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command
}

/// Starts the child and stays with it to its end: the kernel ties a child to the *thread* that started it.
fn watch(
    mut command: Command,
    shared: &Shared,
    started: &mpsc::Sender<io::Result<ChildStdout>>,
    end: &mpsc::Sender<io::Result<ExitStatus>>,
    mut progress: impl FnMut(&str),
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let pid = Pid::from_child(&child);
    *shared.group.lock().unwrap_or_else(PoisonError::into_inner) = Some(pid);
    let stdout = child.stdout.take().expect("it was asked for");
    let stderr = child.stderr.take().expect("it was asked for");
    let _ = started.send(Ok(stdout));
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    // A line without an end is cut, not kept.
    while matches!((&mut lines).take(4096).read_until(b'\n', &mut line), Ok(n) if n > 0) {
        let text = String::from_utf8_lossy(&line);
        let text: String = text
            .trim_end()
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        if !text.is_empty() {
            progress(&text);
            let mut tail = shared.tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(text);
        }
        line.clear();
    }
    // As long as the child is not collected, its number cannot be given to another.
    let _ = waitid(
        WaitId::Pid(pid),
        WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
    );
    let mut group = shared.group.lock().unwrap_or_else(PoisonError::into_inner);
    *group = None;
    let _ = end.send(child.wait());
}

impl Bootstrap {
    /// Waits for the end after everything was read, and tells whether the program succeeded.
    pub fn finish(mut self) -> Result<(), BootstrapError> {
        // Whoever did not read everything must not wait for a child that waits for its reader.
        self.stdout = None;
        self.wait()
    }

    /// Ends the program and waits for it; the same as dropping.
    pub fn abort(self) {
        drop(self);
    }

    fn wait(&mut self) -> Result<(), BootstrapError> {
        if self.done {
            return Ok(());
        }
        let status = match self.ended.recv() {
            Ok(Ok(status)) => status,
            Ok(Err(source)) => {
                return Err(BootstrapError::Spawn {
                    program: "mmdebstrap".into(),
                    source,
                });
            }
            Err(mpsc::RecvError) => return Err(BootstrapError::Stopped),
        };
        if status.success() {
            self.done = true;
            return Ok(());
        }
        let tail = self
            .shared
            .tail
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Err(BootstrapError::Failed {
            status,
            tail: tail.iter().cloned().collect::<Vec<_>>().join("\n"),
        })
    }
}

impl Read for Bootstrap {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = match &mut self.stdout {
            Some(stdout) => stdout.read(out)?,
            None => 0,
        };
        if n == 0 && !out.is_empty() {
            self.wait().map_err(io::Error::other)?;
        }
        Ok(n)
    }
}

impl Drop for Bootstrap {
    fn drop(&mut self) {
        let Some(watcher) = self.watcher.take() else {
            return;
        };
        self.stdout = None;
        if !self.done {
            self.shared.signal(Signal::TERM);
            if matches!(
                self.ended.recv_timeout(PATIENCE),
                Err(mpsc::RecvTimeoutError::Timeout)
            ) {
                self.shared.signal(Signal::KILL);
            }
        }
        let _ = watcher.join();
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::fs::PermissionsExt, time::Instant};

    use super::*;

    /// Describes a bootstrap by a script of the test's own.
    fn scripted(directory: &Path, script: &str) -> BootstrapSpec {
        let program = directory.join("mmdebstrap");
        fs_err::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs_err::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        fs_err::write(directory.join("keyring.gpg"), "").unwrap();
        BootstrapSpec {
            program,
            keyring: directory.join("keyring.gpg"),
            apt_directory: directory.to_owned(),
            ..BootstrapSpec::new(Suite::parse("trixie").unwrap())
        }
    }

    /// Tells what keeps a test that starts a bootstrap from running.
    fn skipped(test: &str) -> bool {
        let reason = mode(Path::new("/"), geteuid().as_raw()).err();
        if let Some(reason) = &reason {
            hostel_testkit::skip(test, reason);
        }
        reason.is_some()
    }

    /// Tells whether a process of a group still runs; zombies that init has not collected yet do not count.
    fn runs(group: Pid) -> bool {
        let group = group.as_raw_nonzero().to_string();
        fs_err::read_dir("/proc")
            .unwrap()
            .filter_map(Result::ok)
            .any(|entry| {
                let stat = fs_err::read_to_string(entry.path().join("stat")).unwrap_or_default();
                let fields: Vec<&str> = stat
                    .rsplit(')')
                    .next()
                    .unwrap_or_default()
                    .split_whitespace()
                    .collect();
                fields.get(2) == Some(&group.as_str()) && fields[0] != "Z"
            })
    }

    #[test]
    fn output_streams_and_lines_are_told() {
        if skipped("output_streams_and_lines_are_told") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let script = "echo 'I: one' >&2; head -c 300000 /dev/zero; echo 'I: two' >&2; echo \"$*\"";
        let mut spec = scripted(directory.path(), script);
        spec.mirror = Some("https://mirror.example/debian".to_owned());
        spec.packages = vec!["vim".to_owned(), "g++".to_owned()];
        let (told, lines) = mpsc::channel();
        let mut run = bootstrap(&spec, move |line| told.send(line.to_owned()).unwrap()).unwrap();
        let mut bytes = Vec::new();
        run.read_to_end(&mut bytes).unwrap();
        run.finish().unwrap();
        assert_eq!(lines.iter().collect::<Vec<_>>(), ["I: one", "I: two"]);
        let arguments = String::from_utf8(bytes.split_off(300_000)).unwrap();
        assert!(arguments.contains("--variant=minbase --format=tar --skip=check/signed-by --include=iproute2,iputils-ping,netbase,procps,vim,g++,ca-certificates -- trixie - deb [signed-by="));
        assert!(
            arguments
                .trim_end()
                .ends_with("] https://mirror.example/debian trixie main"),
            "{arguments}"
        );
    }

    #[test]
    fn failure_after_output_is_not_the_end_of_an_archive() {
        if skipped("failure_after_output_is_not_the_end_of_an_archive") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let spec = scripted(
            directory.path(),
            "echo data; for i in $(seq 50); do echo line $i >&2; done; exit 3",
        );
        let mut run = bootstrap(&spec, |_| ()).unwrap();
        let mut bytes = Vec::new();
        let error = run.read_to_end(&mut bytes).unwrap_err().to_string();
        assert_eq!(bytes, b"data\n");
        assert!(
            error.contains("exit status: 3")
                && error.contains("line 36\n")
                && error.ends_with("line 50"),
            "{error}"
        );
        assert!(!error.contains("line 35\n"));
    }

    #[test]
    fn dropping_ends_the_whole_group() {
        if skipped("dropping_ends_the_whole_group") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let spec = scripted(directory.path(), "sleep 1000 & echo ready; wait");
        let mut run = bootstrap(&spec, |_| ()).unwrap();
        run.read_exact(&mut [0; 6]).unwrap();
        let group = run.shared.group.lock().unwrap().expect("it runs");
        let start = Instant::now();
        run.abort();
        assert!(start.elapsed() < PATIENCE, "it obeyed the first signal");
        assert!(!runs(group));
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let spec = scripted(directory.path(), "exit 0");
        let with = |change: fn(&mut BootstrapSpec)| {
            let mut spec = spec.clone();
            change(&mut spec);
            arguments(&spec, "root").unwrap_err().to_string()
        };
        assert!(with(|s| s.keyring = "/nonexistent".into()).contains("debian-archive-keyring"));
        assert!(with(|s| s.packages = vec!["--hook".to_owned()]).contains("`--hook`"));
        assert!(
            with(|s| s.packages = vec!["a,b".to_owned()]).contains("not the name of a package")
        );
        assert!(with(|s| s.mirror = Some("http://x y".to_owned())).contains("mirror"));
        assert!(with(|s| s.mirror = Some("mirror".to_owned())).contains("mirror"));
        if !skipped("what_is_missing_or_malformed_is_named") {
            let spec = BootstrapSpec {
                program: "/nonexistent/mmdebstrap".into(),
                ..spec
            };
            assert!(matches!(
                bootstrap(&spec, |_| ()),
                Err(BootstrapError::NoProgram(_))
            ));
        }
    }

    /// Describes a bootstrap by the real program from a mirror on this machine.
    fn real(test: &str, mirror: &str) -> Option<BootstrapSpec> {
        let mut spec = BootstrapSpec::new(Suite::parse("trixie").unwrap());
        spec.mirror = Some(mirror.to_owned());
        if let Err(error) = arguments(&spec, "root") {
            hostel_testkit::skip(test, &error);
            return None;
        }
        hostel_testkit::require(test, hostel_testkit::Need::Program("mmdebstrap"))?;
        (!skipped(test)).then_some(spec)
    }

    #[test]
    fn the_real_program_fails_with_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let mirror = format!("file:{}", directory.path().display());
        let Some(spec) = real("the_real_program_fails_with_its_reason", &mirror) else {
            return;
        };
        let mut run = bootstrap(&spec, |_| ()).unwrap();
        let error = io::copy(&mut run, &mut io::sink()).unwrap_err().to_string();
        assert!(
            error.contains("mmdebstrap failed") && error.contains("Release"),
            "{error}"
        );
    }

    #[test]
    fn the_real_program_goes_when_it_is_dropped() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let mirror = format!("http://{}/debian", silent.local_addr().unwrap());
        let Some(spec) = real("the_real_program_goes_when_it_is_dropped", &mirror) else {
            return;
        };
        let run = bootstrap(&spec, |_| ()).unwrap();
        // It asks the mirror, and gets no answer.
        let asked = silent.accept().unwrap();
        let group = run.shared.group.lock().unwrap().expect("it runs");
        run.abort();
        drop(asked);
        assert!(!runs(group));
    }
}
