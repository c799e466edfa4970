//! What a test needs of the machine, as data, and what happens when it is not there: a visible skip, never a silent one.

use std::{
    fmt,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be root.
    Root,
    /// A program in the search path, or in the directories of administrators' programs.
    Program(&'static str),
    /// A usable `/dev/kvm`. It must open, and the processor must have the extension: some hosts show a device that never
    /// runs a kernel.
    Kvm,
    /// `/dev/net/tun` that opens.
    Tun,
    /// User namespaces for this user.
    UserNs,
    /// Loop devices.
    Loop,
}

impl Need {
    /// Returns why it is missing; `None` when it is there.
    pub fn missing(self) -> Option<String> {
        let opens = |path: &str| {
            fs_err::OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .err()
                .map(|e| e.to_string())
        };
        match self {
            Self::Root => (!rustix::process::geteuid().is_root()).then(|| "not root".to_owned()),
            Self::Program(name) => find_program(name)
                .is_none()
                .then(|| format!("no program `{name}`")),
            Self::Kvm => opens("/dev/kvm").or_else(|| {
                let cpu = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
                let extension = cpu.split_whitespace().any(|w| matches!(w, "vmx" | "svm"));
                (!extension).then(|| "the processor shows neither vmx nor svm".to_owned())
            }),
            Self::Tun => opens("/dev/net/tun"),
            Self::UserNs => {
                let made = Command::new("unshare")
                    .args(["--user", "--map-root-user", "true"])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .is_ok_and(|s| s.success());
                (!made).then(|| "no user namespaces for this user".to_owned())
            }
            Self::Loop => opens("/dev/loop-control"),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::Program(name) => write!(f, "program {name}"),
            Self::Kvm => f.write_str("kvm"),
            Self::Tun => f.write_str("tun"),
            Self::UserNs => f.write_str("user namespaces"),
            Self::Loop => f.write_str("loop devices"),
        }
    }
}

/// Checks what a test needs; when it is missing, tells so under the test's name and returns `None`.
///
/// ```no_run
/// # use hostel_testkit::{Need, require};
/// fn a_test() -> Option<()> {
///     require("a_test", Need::Root)?;
///     require("a_test", Need::Program("qemu-img"))?;
///     Some(())
/// }
/// ```
#[must_use]
pub fn require(test: &str, need: Need) -> Option<()> {
    match need.missing() {
        None => Some(()),
        Some(why) => {
            skip(test, &format!("needs {need}: {why}"));
            None
        }
    }
}

/// Tells that a test is skipped: a line `SKIPPED <test>: <reason>` on the real standard error, which the test
/// runner does not hide, and the same line in the file that `HOSTEL_TEST_SKIP_FILE` names. The test returns then.
pub fn skip(test: &str, reason: &(impl fmt::Display + ?Sized)) {
    let line = line(test, &reason.to_string());
    // Not `eprintln!`: the runner keeps that back for tests that pass.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("HOSTEL_TEST_SKIP_FILE") {
        append(Path::new(&path), &line);
    }
}

fn line(test: &str, reason: &str) -> String {
    format!("SKIPPED {test}: {}\n", reason.replace('\n', "; "))
}

/// Appends in one write, so that lines of tests that run at once do not mix.
fn append(path: &Path, line: &str) {
    fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut f| f.write_all(line.as_bytes()))
        .expect("the file for skipped tests can be written");
}

/// Finds a program; administrators' programs are not in every user's search path.
pub(crate) fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|path| {
            path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_checked() {
        assert_eq!(Need::Program("sh").missing(), None);
        assert_eq!(
            Need::Program("no-such-program").missing().as_deref(),
            Some("no program `no-such-program`")
        );
        assert_eq!(
            Need::Root.missing().is_none(),
            rustix::process::geteuid().is_root()
        );
    }

    #[test]
    fn skips_are_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skips");
        append(&path, &line("a::b", "two\nlines"));
        append(&path, &line("c", "x"));
        assert_eq!(
            fs_err::read_to_string(&path).unwrap(),
            "SKIPPED a::b: two; lines\nSKIPPED c: x\n"
        );
    }
}
