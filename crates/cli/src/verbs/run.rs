//! Verbs that run a command.

use std::ffi::OsString;

use bytes::Bytes;
use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1::{self, EnvVar, ShellMode};

use crate::{
    args::{AttachArgs, DebugShellArgs, ExecArgs, RunArgs, split_variable},
    connect::{self, Daemon},
    session::{self, Open, command_spec, join_words},
    surroundings::{Context, variable},
    trouble::Trouble,
};

/// `hostel [-d NAME] [COMMAND]`: a login shell, or one string through the user's shell.
pub(super) async fn shell(context: &Context, args: RunArgs) -> Result<u8, Trouble> {
    let (shell, argv) = if args.command.is_empty() {
        (ShellMode::Login, Vec::new())
    } else {
        (ShellMode::Command, vec![join_words(&args.command)])
    };
    let command = command_spec(
        shell,
        argv,
        args.user.as_ref(),
        args.cd.as_ref(),
        Vec::new(),
    )?;
    let name = args.distro.map(String::from).unwrap_or_default();
    open(
        context,
        v1::ExecRequest {
            name,
            machine: false,
            command: Some(command),
            detach: args.keep,
        },
    )
    .await
}

/// `hostel exec`: no shell.
pub(super) async fn exec(context: &Context, args: ExecArgs) -> Result<u8, Trouble> {
    let env = variables(&args.env, &variable);
    let command = command_spec(
        ShellMode::None,
        args.command,
        args.user.as_ref(),
        args.cd.as_ref(),
        env,
    )?;
    let name = args.name.into();
    open(
        context,
        v1::ExecRequest {
            name,
            machine: false,
            command: Some(command),
            detach: args.keep,
        },
    )
    .await
}

/// `hostel debug-shell`: in the machine itself.
pub(super) async fn debug_shell(context: &Context, args: DebugShellArgs) -> Result<u8, Trouble> {
    let shell = if args.command.is_empty() {
        ShellMode::Login
    } else {
        ShellMode::None
    };
    let command = command_spec(shell, args.command, None, None, Vec::new())?;
    open(
        context,
        v1::ExecRequest {
            name: String::new(),
            machine: true,
            command: Some(command),
            detach: false,
        },
    )
    .await
}

async fn open(context: &Context, request: v1::ExecRequest) -> Result<u8, Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    session::run(context, &mut daemon, Open::Exec(request)).await
}

/// `hostel attach`: by an id or its beginning.
pub(super) async fn attach(context: &Context, args: AttachArgs) -> Result<u8, Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    let reply = Daemon::answer(daemon.api.list_sessions(v1::ListSessionsRequest {})).await?;
    let session = choose(&reply.sessions, &args.session)?;
    session::run(
        context,
        &mut daemon,
        Open::Attach(v1::AttachRequest { session }),
    )
    .await
}

/// Returns the one session whose id is `wanted` or begins with it.
fn choose(sessions: &[v1::Session], wanted: &str) -> Result<String, Failure> {
    let mut fitting = sessions
        .iter()
        .filter(|s| !wanted.is_empty() && s.id.starts_with(wanted));
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one.id.clone()),
        (None, _) => Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("no session has the id `{wanted}`"),
        )
        .hint("run `hostel sessions` to see those that run")),
        (Some(_), Some(_)) => Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("more than one session has an id that begins with `{wanted}`"),
        )
        .hint("run `hostel sessions` and write more of the id")),
    }
}

/// Returns the variables of `-e`; one without a value is taken from here when it is set.
fn variables(options: &[OsString], lookup: &dyn Fn(&str) -> Option<OsString>) -> Vec<EnvVar> {
    let bytes = |b: &[u8]| Bytes::copy_from_slice(b);
    let one = |option: &OsString| {
        let (name, value) = split_variable(option);
        let value = match value {
            Some(value) => bytes(value),
            None => bytes(lookup(std::str::from_utf8(name).ok()?)?.as_encoded_bytes()),
        };
        Some(EnvVar {
            name: bytes(name),
            value,
        })
    };
    options.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_found_by_the_beginning_of_its_id() {
        let session = |id: &str| v1::Session {
            id: id.into(),
            ..Default::default()
        };
        let sessions = [session("abc"), session("abd"), session("x")];
        for (wanted, want) in [
            ("abc", Some("abc")),
            ("x", Some("x")),
            ("ab", None),
            ("", None),
            ("q", None),
        ] {
            assert_eq!(choose(&sessions, wanted).ok().as_deref(), want, "{wanted}");
        }
    }

    #[test]
    fn a_variable_without_a_value_is_taken_from_here() {
        let options = ["A=1=2", "B", "UNSET", "C="].map(OsString::from);
        let got = variables(&options, &|name| (name == "B").then(|| "b".into()));
        let got: Vec<_> = got
            .iter()
            .map(|v| format!("{:?}={:?}", v.name, v.value))
            .collect();
        assert_eq!(got, [r#"b"A"=b"1=2""#, r#"b"B"=b"b""#, r#"b"C"=b"""#]);
    }
}
