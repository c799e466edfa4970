//! Running other programs, with an end.

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// Returns the root of the workspace.
pub(crate) fn root() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap_or(root)
}

/// Returns a cargo command in the root of the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    // Set by the cargo that runs us; they would pin the inner one to this package.
    for variable in [
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "CARGO_PKG_NAME",
        "CARGO_PKG_VERSION",
    ] {
        command.env_remove(variable);
    }
    command
}

/// Returns the directory of build products.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let metadata = metadata()?;
    let dir = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target directory")?;
    Ok(dir.into())
}

/// Returns what cargo knows of the workspace's own packages.
pub(crate) fn metadata() -> Result<serde_json::Value> {
    let text = output(&mut cargo(&[
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    Ok(serde_json::from_str(&text)?)
}

/// Runs a command that must succeed and returns what it wrote.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a command as a step that is told with the time it took.
pub(crate) fn step(what: &str, command: &mut Command, limit: Duration) -> Result<()> {
    eprintln!("── {what}");
    let start = Instant::now();
    let status = bounded(command, limit).with_context(|| what.to_owned())?;
    let secs = start.elapsed().as_secs_f32();
    if !status.success() {
        bail!("{what}: failed after {secs:.1} s ({status})");
    }
    eprintln!("── {what}: done in {secs:.1} s");
    Ok(())
}

/// Runs a command in a process group of its own, which is killed when the time is up.
fn bounded(command: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let mut child = command.stdin(Stdio::null()).process_group(0).spawn()?;
    let group = Pid::from_child(&child);
    let (send, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if ended.recv_timeout(limit).is_err() {
                let _ = kill_process_group(group, Signal::KILL);
            }
        });
        let start = Instant::now();
        let status = child.wait();
        let _ = send.send(());
        if start.elapsed() >= limit {
            bail!("did not end within {} s and was killed", limit.as_secs());
        }
        Ok(status?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_killed_with_what_it_started() {
        let start = Instant::now();
        let error = bounded(
            Command::new("sh").args(["-c", "sleep 1000 & wait"]),
            Duration::from_millis(100),
        );
        assert!(error.unwrap_err().to_string().contains("was killed"));
        assert!(start.elapsed() < Duration::from_secs(60));
        assert!(
            bounded(&mut Command::new("true"), Duration::from_secs(60))
                .unwrap()
                .success()
        );
    }
}
