//! `hostel manage`.

use hostel_model::DistroName;
use hostel_proto::v1;

use crate::{
    args::{ManageArgs, Room},
    connect::{self, Daemon},
    surroundings::Context,
    text::Facts,
    trouble::Trouble,
    view,
};

/// Changes the settings that are given, shows all of them, and says whether a restart is needed.
pub(super) async fn manage(context: &Context, args: ManageArgs) -> Result<(), Trouble> {
    if args.network == Some(Room::Shared) && args.address.is_some() {
        return Err(Trouble::Usage(
            "--address is for a room of its own; use it with `--network own` or `--network isolated`".into(),
        ));
    }
    let changes = args.network.is_some() || args.address.is_some();
    let mut daemon = connect::connect(&context.paths).await?;
    let reply = Daemon::answer(
        daemon.api.manage(v1::ManageRequest {
            name: args.which.for_wire(),
            network: args
                .network
                .map(|n| n.as_str().to_owned())
                .unwrap_or_default(),
            address: args.address.map(|a| a.to_string()).unwrap_or_default(),
        }),
    )
    .await?;
    let printer = &context.printer;
    if printer.json {
        return printer.json(&view::managed(&reply));
    }
    let mut facts = Facts::default();
    facts.add("network", reply.network.clone());
    facts.add("address", reply.address.clone());
    printer.data(&facts.render())?;
    let name = args.which.name.as_ref().map(DistroName::to_string);
    let restart = ["hostel restart", name.as_deref().unwrap_or_default()].join(" ");
    if reply.restart_needed {
        printer.say(&format!(
            "it runs and keeps its present network until `{}`",
            restart.trim_end()
        ));
    } else if changes {
        printer.say("stored");
    }
    Ok(())
}
