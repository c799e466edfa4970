//! `hostel shutdown` and `hostel version`.

use hostel_model::GENERATION;
use hostel_proto::v1;
use serde_json::json;

use super::archive::finish;
use crate::{
    args::ShutdownArgs,
    connect::{self, Age, Daemon, Start},
    progress,
    surroundings::Context,
    text::printable,
    trouble::Trouble,
};

/// Stops everything. Works with a daemon of any age: it is the way out of an incompatible one.
pub(super) async fn shutdown(context: &Context, args: ShutdownArgs) -> Result<(), Trouble> {
    let Some(mut daemon) = connect::find(&context.paths, Start::Never, Age::Any).await? else {
        return finish(context, &v1::TaskDone::default(), "nothing runs");
    };
    let events = daemon
        .api
        .shutdown(v1::ShutdownRequest { force: args.force })
        .await?
        .into_inner();
    let done = progress::follow(&context.printer, events, |_| Ok(())).await?;
    if args.daemon {
        Daemon::answer(daemon.api.quit(v1::QuitRequest { force: true })).await?;
    }
    let text = match done.stopped.as_slice() {
        [] => "the machine is off".to_owned(),
        names => format!("stopped {}; the machine is off", names.join(", ")),
    };
    finish(context, &done, &text)
}

/// Shows versions; a daemon is asked only when one runs.
pub(super) async fn version(context: &Context) -> Result<(), Trouble> {
    let client = env!("CARGO_PKG_VERSION");
    // One that cannot be reached has no version to show; `doctor` says what is wrong with it.
    let daemon = connect::find(&context.paths, Start::Never, Age::Any)
        .await
        .ok()
        .flatten()
        .map(|d| d.greeting);
    if context.printer.json {
        let daemon = daemon.map(|d| json!({ "version": d.version, "generation": d.generation, "pid": d.pid, "home": d.home }));
        return context
            .printer
            .json(&json!({ "version": client, "generation": GENERATION, "daemon": daemon }));
    }
    let daemon = daemon.map_or_else(
        || "not running".to_owned(),
        |d| {
            format!(
                "{} (generation {}, pid {})",
                printable(&d.version),
                d.generation,
                d.pid
            )
        },
    );
    context.printer.data(&format!(
        "hostel   {client} (generation {GENERATION})\nhosteld  {daemon}\n"
    ))
}
