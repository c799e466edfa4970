//! Verbs that change one distribution.

use hostel_proto::v1;

use super::archive::finish;
use crate::{
    args::{NameArgs, OptionalNameArgs, RenameArgs, StopArgs},
    connect::{self, Daemon},
    progress,
    surroundings::Context,
    trouble::Trouble,
};

/// Returns how a distribution is called in a sentence.
fn called(args: &OptionalNameArgs) -> String {
    args.name.as_ref().map_or_else(
        || "the default distribution".to_owned(),
        |n| format!("`{n}`"),
    )
}

/// `hostel start`.
pub(super) async fn start(context: &Context, args: OptionalNameArgs) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    start_in(context, &mut daemon, &args).await
}

async fn start_in(
    context: &Context,
    daemon: &mut Daemon,
    args: &OptionalNameArgs,
) -> Result<(), Trouble> {
    let events = daemon
        .api
        .start(v1::StartRequest {
            name: args.for_wire(),
        })
        .await?
        .into_inner();
    let done = progress::follow(&context.printer, events, |_| Ok(())).await?;
    finish(context, &done, &format!("started {}", called(args)))
}

/// `hostel stop`.
pub(super) async fn stop(context: &Context, args: StopArgs) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    let timeout_ms = args.timeout.unwrap_or(0).saturating_mul(1000);
    let request = v1::StopRequest {
        name: args.which.for_wire(),
        timeout_ms,
    };
    let events = daemon.api.stop(request).await?.into_inner();
    let done = progress::follow(&context.printer, events, |_| Ok(())).await?;
    finish(context, &done, &format!("stopped {}", called(&args.which)))
}

/// `hostel restart`.
pub(super) async fn restart(context: &Context, args: OptionalNameArgs) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    let events = daemon
        .api
        .stop(v1::StopRequest {
            name: args.for_wire(),
            timeout_ms: 0,
        })
        .await?
        .into_inner();
    progress::follow(&context.printer, events, |_| Ok(())).await?;
    start_in(context, &mut daemon, &args).await
}

/// `hostel rm`.
pub(super) async fn remove(context: &Context, args: NameArgs) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    // No deadline: it stops the distribution first.
    daemon
        .api
        .remove(v1::RemoveRequest {
            name: args.name.to_string(),
        })
        .await?;
    context.printer.say(&format!("removed `{}`", args.name));
    Ok(())
}

/// `hostel rename`.
pub(super) async fn rename(context: &Context, args: RenameArgs) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    let request = v1::RenameRequest {
        name: args.name.to_string(),
        new_name: args.new.to_string(),
    };
    Daemon::answer(daemon.api.rename(request)).await?;
    context
        .printer
        .say(&format!("renamed `{}` to `{}`", args.name, args.new));
    Ok(())
}

/// `hostel set-default`.
pub(super) async fn set_default(context: &Context, args: NameArgs) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    Daemon::answer(daemon.api.set_default(v1::SetDefaultRequest {
        name: args.name.to_string(),
    }))
    .await?;
    context
        .printer
        .say(&format!("`{}` is the default distribution now", args.name));
    Ok(())
}
