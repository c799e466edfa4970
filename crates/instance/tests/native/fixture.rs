//! A busybox distribution in a temporary directory, and short ways to run things in it.

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hostel_instance::{
    CommandEnd, DeviceTree, ExecJob, Instance, LaunchSpec, Launched, Program, Root, SessionHandle,
    SessionReport, Stdio, WindowSize, launch,
};
use hostel_testkit::{Need, require, skip};

/// What a test is allowed to take for one thing it waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Test = (&'static str, fn());

/// Checks what all these tests need; `None`, visibly, when it is missing.
pub(crate) fn required(test: &str) -> Option<()> {
    require(test, Need::Root)?;
    if busybox().is_none() {
        skip(test, "no static busybox");
    }
    busybox().map(|_| ())
}

fn busybox() -> Option<&'static Path> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .map(Path::new)
        .find(|p| p.exists())
}

const APPLETS: &[&str] = &[
    "sh",
    "cat",
    "echo",
    "env",
    "false",
    "head",
    "hostname",
    "id",
    "ipcs",
    "kill",
    "ls",
    "mkdir",
    "mount",
    "mountpoint",
    "nohup",
    "ps",
    "pwd",
    "readlink",
    "seq",
    "setsid",
    "sha256sum",
    "sleep",
    "stat",
    "stty",
    "test",
    "touch",
    "tr",
    "true",
    "tty",
    "umask",
    "wc",
    "dd",
    "trap",
    "grep",
    "yes",
    "rm",
    "ln",
    "mknod",
    "cut",
];

/// A distribution's root directory, removed with it.
pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) root: PathBuf,
}

impl House {
    /// Makes the directory with busybox, users and the usual files.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        Self::fill(&root);
        Self { dir, root }
    }

    pub(crate) fn fill(root: &Path) {
        for part in [
            "bin",
            "etc/default",
            "home/ada",
            "root",
            "proc",
            "sys",
            "dev",
            "run",
            "mnt",
            "var",
        ] {
            fs_err::create_dir_all(root.join(part)).unwrap();
        }
        fs_err::copy(busybox().unwrap(), root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let write = |path: &str, text: &str| fs_err::write(root.join(path), text).unwrap();
        write(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n\
             lost:x:1001:1001::/home/lost:/bin/sh\nshellless:x:1002:1002::/:/bin/gone\n",
        );
        write(
            "etc/group",
            "root:x:0:\ntty:x:5:\nada:x:1000:\nsudo:x:27:ada\ndocker:x:998:ada\n",
        );
        write(
            "etc/os-release",
            "ID=test\nVERSION_ID=\"7\"\nPRETTY_NAME=\"Test House 7\"\n",
        );
        rustix::fs::chownat(
            rustix::fs::CWD,
            root.join("home/ada"),
            Some(rustix::process::Uid::from_raw(1000)),
            Some(rustix::process::Gid::from_raw(1000)),
            rustix::fs::AtFlags::empty(),
        )
        .unwrap();
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        fs_err::write(self.root.join(path), text).unwrap();
    }

    pub(crate) fn executable(&self, path: &str, text: &str) {
        self.write(path, text);
        fs_err::set_permissions(self.root.join(path), std::fs::Permissions::from_mode(0o755))
            .unwrap();
    }

    pub(crate) fn spec(&self, id: &str) -> LaunchSpec {
        LaunchSpec {
            cgroup_parent: cgroup_parent().cloned(),
            ..spec_of(&self.root, id)
        }
    }

    pub(crate) fn start(&self, id: &str) -> Launched {
        launch(&self.spec(id)).unwrap()
    }
}

/// The usual specification, without a cgroup.
pub(crate) fn spec_of(root: &Path, id: &str) -> LaunchSpec {
    LaunchSpec {
        id: id.to_owned(),
        name: format!("Name-{id}"),
        root: Root::Directory(root.to_owned()),
        hostname: format!("host-{id}"),
        domain: String::new(),
        init_binary: std::env::current_exe().unwrap(),
        cgroup_parent: None,
        shared: Vec::new(),
        resolv_conf: Some("/mnt/wsl/resolv.conf".into()),
        environment: Vec::new(),
        devices: DeviceTree::Private,
        network: None,
        default_user: None,
        timeout: PATIENCE,
    }
}

static CGROUP: OnceLock<Option<PathBuf>> = OnceLock::new();

/// A cgroup of this test program in the machine's cgroup2 tree, wherever that is mounted.
pub(crate) fn cgroup_parent() -> Option<&'static PathBuf> {
    CGROUP
        .get_or_init(|| {
            let mounts = fs_err::read_to_string("/proc/self/mountinfo").unwrap();
            let tree = mounts
                .lines()
                .find(|l| l.contains(" - cgroup2 "))?
                .split(' ')
                .nth(4)?;
            let path = Path::new(tree).join(format!("hostel-test-{}", std::process::id()));
            fs_err::create_dir(&path).ok().map(|()| path)
        })
        .as_ref()
}

pub(crate) fn remove_cgroup() {
    if let Some(Some(path)) = CGROUP.get() {
        fs_err::remove_dir(path).unwrap();
    }
}

pub(crate) fn job(argv: &[&str]) -> ExecJob {
    ExecJob {
        program: Program::Argv(argv.iter().map(|a| a.as_bytes().to_vec()).collect()),
        user: None,
        directory: None,
        env: Vec::new(),
        stdin: Stdio::Null,
        stdout: Stdio::Pipe,
        stderr: Stdio::Pipe,
        window: WindowSize {
            rows: 24,
            columns: 80,
            ..WindowSize::default()
        },
    }
}

pub(crate) fn shell(text: &str) -> ExecJob {
    job(&["sh", "-c", text])
}

/// The same with all three streams on the terminal.
pub(crate) fn on_tty(mut job: ExecJob) -> ExecJob {
    (job.stdin, job.stdout, job.stderr) = (Stdio::Tty, Stdio::Tty, Stdio::Tty);
    job
}

pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) end: CommandEnd,
}

/// Runs a command to its end.
pub(crate) fn run(instance: &Instance, job: &ExecJob) -> Output {
    let mut session = instance.exec(job).unwrap();
    let stdout = reader(session.stdout.take());
    let stderr = reader(session.stderr.take());
    let end = ended(&session);
    let text = |t: std::thread::JoinHandle<Vec<u8>>| String::from_utf8(t.join().unwrap()).unwrap();
    Output {
        stdout: text(stdout),
        stderr: text(stderr),
        end,
    }
}

/// Runs a command that must succeed, and returns what it wrote, trimmed.
pub(crate) fn output(instance: &Instance, text: &str) -> String {
    let output = run(instance, &shell(text));
    assert_eq!(
        output.end,
        CommandEnd::Exited(0),
        "{text}: {}{}",
        output.stdout,
        output.stderr
    );
    output.stdout.trim().to_owned()
}

pub(crate) fn reader(fd: Option<OwnedFd>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(fd) = fd {
            std::fs::File::from(fd).read_to_end(&mut bytes).unwrap();
        }
        bytes
    })
}

/// Waits for the end of a session's command.
pub(crate) fn ended(session: &SessionHandle) -> CommandEnd {
    match report(session) {
        Some(SessionReport::Exited(end)) => end,
        other => panic!("expected the end of the command, not {other:?}"),
    }
}

pub(crate) fn report(session: &SessionHandle) -> Option<SessionReport> {
    session.read_report(Instant::now() + PATIENCE).unwrap()
}

/// Reads from a terminal until the text has come.
pub(crate) fn expect(tty: &OwnedFd, wanted: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if text.contains(wanted) {
            return text;
        }
        let mut buffer = [0; 4096];
        match readable(tty, deadline).then(|| rustix::io::read(tty, &mut buffer)) {
            Some(Ok(got)) if got > 0 => seen.extend_from_slice(&buffer[..got]),
            other => panic!("`{wanted}` did not come ({other:?}); seen: {text:?}"),
        }
    }
}

pub(crate) fn readable(fd: &OwnedFd, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let time = rustix::event::Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: left.subsec_nanos().into(),
    };
    let fd = fd.as_fd();
    let mut fds = [rustix::event::PollFd::new(
        &fd,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut fds, Some(&time)).unwrap() > 0
}

/// The mounts of this machine's own namespace below a directory.
pub(crate) fn mounts_below(path: &Path) -> Vec<String> {
    let text = fs_err::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    text.lines()
        .filter(|l| l.contains(path))
        .map(str::to_owned)
        .collect()
}
