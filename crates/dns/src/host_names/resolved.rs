//! systemd-resolved asks the gateway for the names of the house, and nobody else for them.
//!
//! All of it belongs to the bridge's interface: resolved drops it when the interface goes, also after a daemon was killed.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, time::timeout};

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How much of the program's complaint is shown, in characters.
const MAX_COMPLAINT: usize = 300;

/// Why systemd-resolved was not told.
#[derive(Debug, thiserror::Error)]
pub enum ResolvedError {
    /// The program is not there.
    #[error("`{0}` is not installed, so there is no systemd-resolved to tell")]
    Missing(PathBuf),
    /// It cannot be started.
    #[error("cannot run `{program}`")]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It does not end.
    #[error("`{0}` did not end within {TIMEOUT:?}")]
    Hung(String),
    /// It says no.
    #[error("`{command}` failed with {status}: {complaint}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said, cut.
        complaint: String,
    },
}

/// Tells systemd-resolved that `domain` is answered at `server` behind `interface`, and that nothing else is.
///
/// `program` is `resolvectl`. When one step fails the earlier ones are undone. Cancel safe in so far as a call under way is
/// killed; call [`revert`] then.
pub async fn apply(
    program: &Path,
    interface: &str,
    server: IpAddr,
    domain: &str,
) -> Result<(), ResolvedError> {
    let server = server.to_string();
    // The tilde: for these names only, and not as a search domain.
    let domain = format!("~{domain}");
    for arguments in [
        ["default-route", interface, "false"],
        ["domain", interface, &domain],
        ["dns", interface, &server],
    ] {
        if let Err(error) = run(program, &arguments).await {
            if !matches!(error, ResolvedError::Missing(_)) {
                let _ = revert(program, interface).await;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Undoes [`apply`]; not needed when the interface goes.
pub async fn revert(program: &Path, interface: &str) -> Result<(), ResolvedError> {
    run(program, &["revert", interface]).await
}

async fn run(program: &Path, arguments: &[&str]) -> Result<(), ResolvedError> {
    let command = || format!("{} {}", program.display(), arguments.join(" "));
    let child = Command::new(program)
        // Nobody is there to be asked for a password.
        .arg("--no-ask-password")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ResolvedError::Missing(program.to_owned()),
            _ => ResolvedError::Run {
                program: program.to_owned(),
                source,
            },
        })?;
    let output = timeout(TIMEOUT, child.wait_with_output())
        .await
        .map_err(|_| ResolvedError::Hung(command()))?
        .map_err(|source| ResolvedError::Run {
            program: program.to_owned(),
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(ResolvedError::Failed {
        command: command(),
        status: output.status,
        complaint: complaint.trim().chars().take(MAX_COMPLAINT).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that writes down how it was called and fails at what it is told to.
    fn program(dir: &Path, fails: &str) -> PathBuf {
        let path = dir.join("resolvectl");
        let script = format!(
            "#!/bin/sh\necho \"$*\" >> {}\ncase \"$2\" in {fails}) echo no such link >&2; exit 1;; esac\n",
            dir.join("calls").display()
        );
        // Written by another process: a file that this one has open could not be run while a thread forks.
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""])
            .args([path.as_os_str(), script.as_ref()])
            .status();
        assert!(status.unwrap().success());
        path
    }

    fn calls(dir: &Path) -> Vec<String> {
        let text = fs_err::read_to_string(dir.join("calls")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn one_domain_is_asked_for_at_the_gateway() {
        let dir = tempfile::tempdir().unwrap();
        let program = program(dir.path(), "never");
        let server = "172.19.128.1".parse().unwrap();
        apply(&program, "hostel0", server, "hostel").await.unwrap();
        revert(&program, "hostel0").await.unwrap();
        assert_eq!(
            calls(dir.path()),
            [
                "--no-ask-password default-route hostel0 false",
                "--no-ask-password domain hostel0 ~hostel",
                "--no-ask-password dns hostel0 172.19.128.1",
                "--no-ask-password revert hostel0",
            ]
        );
    }

    #[tokio::test]
    async fn half_of_it_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let program = program(dir.path(), "domain");
        let server = "172.19.128.1".parse().unwrap();
        let error = apply(&program, "hostel0", server, "hostel")
            .await
            .unwrap_err();
        assert!(
            matches!(&error, ResolvedError::Failed { complaint, .. } if complaint == "no such link"),
            "{error}"
        );
        assert_eq!(
            calls(dir.path()).last().unwrap(),
            "--no-ask-password revert hostel0"
        );
        let missing = dir.path().join("missing");
        let error = apply(&missing, "hostel0", server, "hostel")
            .await
            .unwrap_err();
        assert!(matches!(error, ResolvedError::Missing(_)), "{error}");
    }
}
