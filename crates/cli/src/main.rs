//! `hostel`, the client: reads the command line, asks the daemon, shows the answer.
//!
//! Not for: any decision about distributions or machines; the daemon makes those. A program: nothing uses it.

mod args;
mod complete;
mod connect;
mod printer;
mod progress;
mod session;
mod surroundings;
mod text;
mod trouble;
mod verbs;
mod view;

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches, error::ErrorKind};
use hostel_model::ErrorCode;

use args::Cli;
use printer::Printer;
use surroundings::Context;
use trouble::Trouble;

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    if words.get(1).is_some_and(|w| w == connect::SPAWN_WORD) {
        let error = connect::spawn_role(words.into_iter().skip(2));
        // Goes to the daemon's log, where the client that waits finds it.
        let _ = writeln!(io::stderr(), "cannot start the daemon: {error}");
        return ExitCode::from(125);
    }
    clap_complete::CompleteEnv::with_factory(Cli::command)
        .var(verbs::COMPLETE_VARIABLE)
        .complete();
    session::install_panic_hook();

    let options_only = |words: &[OsString], option: &str| {
        words.iter().take_while(|w| *w != "--").any(|w| w == option)
    };
    let mut definition = args::command();
    definition.build();
    let word = args::mark_command(&definition, &mut words);
    let plain = surroundings::wants_plain();
    if plain || options_only(&words, "--no-color") {
        definition = definition.color(clap::ColorChoice::Never);
    }
    let cli = match definition
        .try_get_matches_from_mut(words.iter())
        .and_then(|m| Cli::from_arg_matches(&m))
    {
        Ok(cli) => cli,
        Err(e) => return usage(&e, options_only(&words, "--json")),
    };
    let printer = Printer::new(&cli.global, plain);
    let context = Context {
        paths: surroundings::paths(),
        printer,
    };
    let code = match run(&context, cli) {
        Ok(code) => code,
        Err(trouble) => {
            context.printer.trouble(&trouble);
            trouble.exit_code()
        }
    };
    // A word that was meant as a verb ran as a command: say so, whoever did not find it.
    if matches!(code, 125 | 127)
        && let Some(verb) = word.and_then(|w| args::close_verb(&definition, &w))
    {
        context
            .printer
            .hint(&format!("did you mean the verb `hostel {verb}`?"));
    }
    ExitCode::from(code)
}

fn run(context: &Context, cli: Cli) -> Result<u8, Trouble> {
    if let Some(option) = args::run_option_with_verb(&cli) {
        return Err(Trouble::Usage(format!(
            "{option} goes with a command, not with a verb; put `--` before a command that is named like a verb"
        )));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| {
            Trouble::from(hostel_model::Failure::new(
                ErrorCode::Internal,
                format!("cannot start: {e}"),
            ))
        })?;
    runtime.block_on(verbs::dispatch(context, cli))
}

/// Prints help and the version to stdout with status 0, what is wrong with the command line to stderr with 2.
fn usage(error: &clap::Error, json: bool) -> ExitCode {
    // A reader that has gone needs no help.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => {
            if json {
                let text = error.render().to_string();
                let message = text
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .trim_start_matches("error: ")
                    .to_owned();
                let _ = writeln!(
                    io::stderr(),
                    "{}",
                    printer::failure_json("usage", &message, &[])
                );
            }
            ExitCode::from(2)
        }
    }
}
