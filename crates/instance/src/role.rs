//! The helper processes: what they are, and how one is started.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use hostel_sys::process::{SingleThreaded, StdStream, put_stdio};
use rustix::fs::{Mode, OFlags};

/// `argv[0]` of every helper, so that they can be told apart in process lists.
const NAME: &str = "hostel-init";

/// What a helper process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Helper {
    /// Starts a distribution and becomes its PID 1.
    Launch,
    /// Runs a session in the namespaces it was started in.
    Session,
}

impl Helper {
    const fn word(self) -> &'static str {
        match self {
            Self::Launch => "launch",
            Self::Session => "session",
        }
    }
}

/// Starts a helper with its control socket as standard input. The caller has to wait for it.
pub(crate) fn spawn(program: &Path, helper: Helper, socket: OwnedFd) -> io::Result<Child> {
    Command::new(program)
        .arg0(NAME)
        .arg(helper.word())
        .env_clear()
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
}

/// Does the work of a helper when the arguments (with `argv[0]`) ask for one; `None` when they are for someone else.
///
/// Must be the first thing in `main`, before any thread exists. A distribution's PID 1 and its sessions never return from it.
pub fn run_role(argv: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut argv = argv.into_iter();
    if argv.next()? != NAME {
        return None;
    }
    let word = argv.next()?;
    let helper = [Helper::Launch, Helper::Session]
        .into_iter()
        .find(|h| word == h.word())?;
    let result = prepare()
        .map_err(|e| e.to_string())
        .and_then(|(control, proof)| match helper {
            Helper::Launch => crate::launch::helper::run(control, &proof),
            Helper::Session => crate::session::local::run(control, &proof),
        });
    match result {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(message) => {
            // The caller sees a helper that said nothing; its stderr is where the reason can go.
            let _ =
                io::Write::write_all(&mut io::stderr(), format!("{NAME}: {message}\n").as_bytes());
            Some(ExitCode::FAILURE)
        }
    }
}

/// Takes the control socket from standard input and leaves `/dev/null` there.
fn prepare() -> io::Result<(OwnedFd, SingleThreaded)> {
    let proof = SingleThreaded::check()?;
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    put_stdio(null.as_fd(), StdStream::Input)?;
    Ok((control, proof))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_programs_and_words_are_left_alone() {
        for argv in [
            &["hostel", "launch"][..],
            &["hostel-init"],
            &["hostel-init", "x"],
            &[],
        ] {
            assert!(
                run_role(argv.iter().map(OsString::from)).is_none(),
                "{argv:?}"
            );
        }
    }
}
