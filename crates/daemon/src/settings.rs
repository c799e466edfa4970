//! What the environment says, read once.

use std::{
    ffi::OsString,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use hostel_engine::backend::{Idle, Overrides};
use hostel_model::Paths;

/// How long the daemon stays when nothing runs and nobody is connected.
const LEAVE_AFTER: Duration = Duration::from_secs(30);

/// Everything that comes from the environment.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where things are.
    pub(crate) paths: Paths,
    /// The guest's `/init`.
    pub(crate) init: Option<PathBuf>,
    /// The program that holds the host's end of the network; where it is not, networks without it are used.
    pub(crate) hostel_net: PathBuf,
    /// How long the daemon stays for nobody; `None`: for ever.
    pub(crate) leave_after: Option<Duration>,
    /// `HOSTEL_INSTANCE_IDLE_MS` and `HOSTEL_VM_IDLE_MS` over the configuration: milliseconds, negative is never.
    pub(crate) overrides: Overrides,
    /// Where programs are looked for.
    pub(crate) search_path: OsString,
    /// `HOSTEL_LOG`: what is logged, in the form of `tracing-subscriber`'s filter.
    pub(crate) log: String,
}

impl Settings {
    /// Reads the environment.
    pub(crate) fn from_env() -> anyhow::Result<Self> {
        let absolute = |name: &str| {
            let value = std::env::var_os(name)?;
            if matches!(name, "HOSTEL_HOME" | "HOSTEL_RUNTIME_DIR") && !value.is_empty() {
                return std::path::absolute(&value)
                    .ok()
                    .map(PathBuf::into_os_string);
            }
            Some(value)
        };
        let Some(home) = std::env::home_dir().filter(|h| h.is_absolute()) else {
            bail!("no home directory is known; set HOME");
        };
        let uid = rustix::process::geteuid().as_raw();
        let paths = Paths::from_env(&absolute, uid, &home, &|p: &Path| p.is_dir());
        Ok(Self {
            paths,
            init: find_program("HOSTEL_INIT", "hostel-init"),
            hostel_net: find_program("HOSTEL_NET_PROGRAM", "hostel-net")
                .unwrap_or_else(|| "hostel-net".into()),
            leave_after: milliseconds("HOSTEL_DAEMON_IDLE_MS")?
                .map_or(Some(LEAVE_AFTER), Idle::time),
            overrides: Overrides {
                instance_idle: milliseconds("HOSTEL_INSTANCE_IDLE_MS")?,
                vm_idle: milliseconds("HOSTEL_VM_IDLE_MS")?,
            },
            search_path: std::env::var_os("PATH")
                .unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()),
            log: std::env::var("HOSTEL_LOG")
                .ok()
                .filter(|l| !l.is_empty())
                .unwrap_or_else(|| "info".to_owned()),
        })
    }
}

/// Reads a time in milliseconds; a negative one is never.
fn milliseconds(name: &str) -> anyhow::Result<Option<Idle>> {
    let Some(text) = std::env::var_os(name).filter(|v| !v.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    let number: i64 = text
        .trim()
        .parse()
        .with_context(|| format!("{name} must be a number of milliseconds, not `{text}`"))?;
    Ok(Some(u64::try_from(number).map_or(Idle::Never, |n| {
        Idle::After(Duration::from_millis(n))
    })))
}

/// Finds a program of ours: what the variable says, else beside this program or in `../lib/hostel` from there.
fn find_program(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable).filter(|v: &OsString| !v.is_empty()) {
        return std::path::absolute(path).ok();
    }
    let program = std::env::current_exe().ok()?;
    let directory = program.parent()?;
    [
        directory.join(name),
        directory.join("../lib/hostel").join(name),
    ]
    .into_iter()
    .find(|p| p.is_file())
}

/// The pipe on which whoever started this daemon waits for a word.
#[derive(Debug)]
pub(crate) struct Ready(Option<File>);

impl Ready {
    /// Takes the pipe that `HOSTEL_READY_FD` names.
    pub(crate) fn from_env() -> Self {
        let number = std::env::var("HOSTEL_READY_FD")
            .ok()
            .and_then(|n| n.parse().ok());
        Self(
            number
                .and_then(|n| hostel_sys::adopt::adopt(n).ok())
                .map(File::from),
        )
    }

    /// Says one line and closes the pipe; later lines go nowhere.
    pub(crate) fn say(&mut self, line: &str) {
        if let Some(mut pipe) = self.0.take() {
            let line: String = line
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            // The other end may have given up waiting.
            let _ = writeln!(pipe, "{line}");
        }
    }
}
