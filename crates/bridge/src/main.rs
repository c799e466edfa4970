//! `hostel-net`: holds the host's side of the network.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use hostel_bridge::{Mode, server};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let mode = args.next().and_then(|word| word.into_string().ok());
    let program = args.next().map(PathBuf::from);
    let mode = match (mode.as_deref(), program, args.next()) {
        (Some("host"), None, None) => Mode::Host,
        (Some("user-namespace"), pasta, None) => Mode::UserNamespace { pasta },
        _ => return fail(&"usage: hostel-net host | user-namespace [PASTA]"),
    };
    match server::run(&mode) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    // Where standard error leads nowhere there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "hostel-net: {error}");
    ExitCode::FAILURE
}
