//! What to run, in the words of the contract.

use std::{ffi::OsString, io::IsTerminal, os::unix::ffi::OsStringExt};

use bytes::Bytes;
use hostel_model::{ErrorCode, Failure};
use hostel_proto::{
    limits,
    v1::{CommandSpec, EnvVar, ShellMode, Stdio},
};

use super::{environment, terminal};
use crate::{surroundings::variable, trouble::Trouble};

/// Describes a command that shall run on this client's streams: a terminal where they are one, else pipes (TTY-1).
///
/// `env` is laid over what goes along of the environment. Fails when the whole is larger than the contract allows.
pub(crate) fn command_spec(
    shell: ShellMode,
    argv: Vec<OsString>,
    user: Option<&String>,
    directory: Option<&OsString>,
    env: Vec<EnvVar>,
) -> Result<CommandSpec, Trouble> {
    let stdio = |terminal| i32::from(if terminal { Stdio::Tty } else { Stdio::Pipe });
    let (stdin, stdout, stderr) = (
        std::io::stdin().is_terminal(),
        std::io::stdout().is_terminal(),
        std::io::stderr().is_terminal(),
    );
    let terminal = stdin || stdout || stderr;
    let mut all = environment::collect(&variable, terminal);
    all.extend(env);
    let spec = CommandSpec {
        shell: shell.into(),
        argv: argv
            .into_iter()
            .map(|a| Bytes::from(a.into_vec()))
            .collect(),
        user: user.cloned().unwrap_or_default(),
        directory: directory
            .map(|d| Bytes::from(d.clone().into_vec()))
            .unwrap_or_default(),
        env: all,
        stdin: stdio(stdin),
        stdout: stdio(stdout),
        stderr: stdio(stderr),
        window: terminal.then(terminal::window).flatten(),
    };
    measure(&spec)?;
    Ok(spec)
}

/// Joins words with single spaces, as ssh does; one word stays as it is (CLI-25).
pub(crate) fn join_words(words: &[OsString]) -> OsString {
    words.join(std::ffi::OsStr::new(" "))
}

fn measure(spec: &CommandSpec) -> Result<(), Failure> {
    let bytes: usize = spec.argv.iter().map(Bytes::len).sum::<usize>()
        + spec
            .env
            .iter()
            .map(|v| v.name.len() + v.value.len())
            .sum::<usize>();
    if spec.argv.len() > limits::MAX_ARGS {
        let (count, limit) = (spec.argv.len(), limits::MAX_ARGS);
        return Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("{count} arguments are more than the {limit} a command may have"),
        )
        .hint("give them on standard input, for example through `xargs`"));
    }
    if bytes > limits::MAX_ARG_BYTES {
        let limit = limits::MAX_ARG_BYTES;
        return Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("arguments and environment of {bytes} bytes are more than the {limit} a command may have"),
        )
        .hint("give the data on standard input"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn words_are_joined_as_ssh_joins_them() {
        let join = |words: &[&[u8]]| {
            let words: Vec<_> = words
                .iter()
                .map(|w| std::ffi::OsStr::from_bytes(w).to_owned())
                .collect();
            join_words(&words).into_vec()
        };
        assert_eq!(
            join(&[b"echo", b"a  b", b"", b"$USER"]),
            b"echo a  b  $USER"
        );
        assert_eq!(join(&[b"echo 'a  b'"]), b"echo 'a  b'");
        assert_eq!(join(&[b"ls", b"\xff"]), b"ls \xff");
        assert_eq!(join(&[b""]), b"");
    }

    #[test]
    fn a_command_that_is_too_large_is_refused_here() {
        let spec = |argv: Vec<Bytes>| CommandSpec {
            argv,
            ..CommandSpec::default()
        };
        assert!(measure(&spec(vec![Bytes::from_static(b"x"); limits::MAX_ARGS])).is_ok());
        assert!(measure(&spec(vec![Bytes::new(); limits::MAX_ARGS + 1])).is_err());
        assert!(
            measure(&spec(vec![Bytes::from(vec![
                b'x';
                limits::MAX_ARG_BYTES + 1
            ])]))
            .is_err()
        );
    }
}
