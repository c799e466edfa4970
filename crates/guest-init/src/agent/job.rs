//! From the wire's words for a command to those of `instance`, checked.

use hostel_instance::{Directory, EnvVar, ExecJob, Program, Stdio, WindowSize};
use hostel_model::{ErrorCode, Failure, Token};
use hostel_proto::limits::{MAX_ARG_BYTES, MAX_ARGS};
use hostel_proto::v1;

/// A stream to claim, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) kind: v1::StreamKind,
    pub(crate) token: Token,
}

/// Makes a job of a command.
pub(crate) fn job(command: v1::CommandSpec) -> Result<ExecJob, Failure> {
    let env_bytes: usize = command
        .env
        .iter()
        .map(|e| e.name.len() + e.value.len())
        .sum();
    let bytes = env_bytes + command.argv.iter().fold(0, |sum, a| sum + a.len());
    if command.argv.len() > MAX_ARGS || command.env.len() > MAX_ARGS || bytes > MAX_ARG_BYTES {
        return Err(invalid(format!(
            "the command is too long: at most {MAX_ARGS} arguments and {MAX_ARG_BYTES} bytes with the environment"
        )));
    }
    let (stdin, stdout, stderr) = (
        stdio(command.stdin()),
        stdio(command.stdout()),
        stdio(command.stderr()),
    );
    let program = match (command.shell(), command.argv.len()) {
        (v1::ShellMode::Login | v1::ShellMode::Unspecified, 0) => Program::LoginShell,
        (v1::ShellMode::Command, 1) => Program::ShellCommand(command.argv[0].to_vec()),
        (v1::ShellMode::None | v1::ShellMode::Unspecified, 1..) => {
            Program::Argv(command.argv.iter().map(|a| a.to_vec()).collect())
        }
        (shell, count) => {
            return Err(invalid(format!(
                "{count} arguments do not fit the shell mode {}",
                shell.as_str_name()
            )));
        }
    };
    let window = command.window.unwrap_or_default();
    Ok(ExecJob {
        program,
        user: (!command.user.is_empty()).then_some(command.user),
        directory: (!command.directory.is_empty()).then(|| Directory(command.directory.to_vec())),
        env: env(command.env),
        stdin,
        stdout,
        stderr,
        window: window_size(window),
    })
}

/// Takes environment variables over; `instance` checks names and values.
pub(crate) fn env(variables: Vec<v1::EnvVar>) -> Vec<EnvVar> {
    variables
        .into_iter()
        .map(|e| EnvVar::new(e.name, e.value))
        .collect()
}

/// Takes a window size over, cut at what a terminal can have.
pub(crate) fn window_size(window: v1::WindowSize) -> WindowSize {
    let cut = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    WindowSize {
        rows: cut(window.rows),
        columns: cut(window.columns),
        x_pixels: cut(window.x_pixels),
        y_pixels: cut(window.y_pixels),
    }
}

/// Checks the streams of a request against what the session has.
pub(crate) fn claims(
    streams: &[v1::StreamToken],
    has: impl Fn(v1::StreamKind) -> bool,
) -> Result<Vec<Claim>, Failure> {
    let mut claims: Vec<Claim> = Vec::new();
    for stream in streams {
        let kind = stream.kind();
        if !has(kind) {
            return Err(protocol(format!(
                "the session has no stream {}",
                kind.as_str_name()
            )));
        }
        if claims.iter().any(|c| c.kind == kind) {
            return Err(protocol(format!(
                "stream {} is named twice",
                kind.as_str_name()
            )));
        }
        let token = Token::from_bytes(&stream.token)
            .ok_or_else(|| protocol("a token does not have 32 bytes".to_owned()))?;
        claims.push(Claim { kind, token });
    }
    Ok(claims)
}

/// Tells whether a job has a stream.
pub(crate) fn has_stream(job: &ExecJob, kind: v1::StreamKind) -> bool {
    match kind {
        v1::StreamKind::Tty => [job.stdin, job.stdout, job.stderr].contains(&Stdio::Tty),
        v1::StreamKind::Stdin => job.stdin == Stdio::Pipe,
        v1::StreamKind::Stdout => job.stdout == Stdio::Pipe,
        v1::StreamKind::Stderr => job.stderr == Stdio::Pipe,
        v1::StreamKind::Unspecified | v1::StreamKind::Archive => false,
    }
}

fn stdio(stdio: v1::Stdio) -> Stdio {
    match stdio {
        v1::Stdio::Tty => Stdio::Tty,
        v1::Stdio::Pipe => Stdio::Pipe,
        v1::Stdio::Null | v1::Stdio::Unspecified => Stdio::Null,
    }
}

fn invalid(message: String) -> Failure {
    Failure::new(ErrorCode::InvalidArgument, message)
}

fn protocol(message: String) -> Failure {
    Failure::new(ErrorCode::Protocol, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(shell: v1::ShellMode, argv: &[&'static str]) -> v1::CommandSpec {
        v1::CommandSpec {
            shell: shell.into(),
            argv: argv
                .iter()
                .map(|a| prost::bytes::Bytes::from_static(a.as_bytes()))
                .collect(),
            stdout: v1::Stdio::Pipe.into(),
            ..Default::default()
        }
    }

    #[test]
    fn shell_modes_and_arguments_must_fit() {
        use v1::ShellMode::{Command, Login, None, Unspecified};
        for (shell, argv, want) in [
            (Login, &[][..], Some(Program::LoginShell)),
            (Unspecified, &[], Some(Program::LoginShell)),
            (
                Command,
                &["echo x"],
                Some(Program::ShellCommand(b"echo x".to_vec())),
            ),
            (
                None,
                &["ls", "-l"],
                Some(Program::Argv(vec![b"ls".to_vec(), b"-l".to_vec()])),
            ),
            (Login, &["x"], Option::None),
            (Command, &[], Option::None),
            (Command, &["a", "b"], Option::None),
            (None, &[], Option::None),
        ] {
            assert_eq!(
                job(command(shell, argv)).ok().map(|j| j.program),
                want,
                "{shell:?} {argv:?}"
            );
        }
    }

    #[test]
    fn a_command_that_is_too_long_is_refused() {
        let mut long = command(v1::ShellMode::None, &["x"]);
        long.argv = vec![prost::bytes::Bytes::new(); MAX_ARGS + 1];
        assert_eq!(job(long).unwrap_err().code, ErrorCode::InvalidArgument);
        let mut large = command(v1::ShellMode::None, &["x"]);
        large.env = vec![v1::EnvVar {
            name: "a".into(),
            value: vec![b'x'; MAX_ARG_BYTES].into(),
        }];
        assert!(job(large).is_err());
    }

    #[test]
    fn streams_must_be_those_of_the_session() {
        let job = job(command(v1::ShellMode::Login, &[])).unwrap();
        let stream = |kind: v1::StreamKind, len| v1::StreamToken {
            kind: kind.into(),
            token: vec![7; len].into(),
        };
        let check = |streams: &[v1::StreamToken]| {
            claims(streams, |kind| has_stream(&job, kind))
                .map(|c| c.len())
                .ok()
        };
        assert_eq!(check(&[stream(v1::StreamKind::Stdout, 32)]), Some(1));
        assert_eq!(check(&[]), Some(0));
        assert_eq!(check(&[stream(v1::StreamKind::Stdout, 31)]), None);
        assert_eq!(check(&[stream(v1::StreamKind::Stdin, 32)]), None);
        assert_eq!(check(&[stream(v1::StreamKind::Tty, 32)]), None);
        assert_eq!(
            check(&[
                stream(v1::StreamKind::Stdout, 32),
                stream(v1::StreamKind::Stdout, 32)
            ]),
            None
        );
    }

    #[test]
    fn a_window_is_cut_at_what_a_terminal_can_have() {
        let size = window_size(v1::WindowSize {
            rows: 70_000,
            columns: 80,
            ..Default::default()
        });
        assert_eq!((size.rows, size.columns), (u16::MAX, 80));
    }
}
