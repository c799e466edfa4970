//! `hostel net set`.

use hostel_proto::v1;

use super::show;
use crate::{
    args::NetSetArgs,
    connect::{self, Daemon},
    surroundings::Context,
    trouble::Trouble,
};

/// Changes the record, shows it, and says from when on it holds.
pub(super) async fn set(context: &Context, args: NetSetArgs) -> Result<(), Trouble> {
    let text = |value: Option<std::net::Ipv4Addr>| value.map(|v| v.to_string()).unwrap_or_default();
    let mut daemon = connect::connect(&context.paths).await?;
    let reply = Daemon::answer(daemon.api.network_set(v1::NetworkSetRequest {
        subnet: args.subnet.unwrap_or_default(),
        gateway: text(args.gateway),
        address: text(args.address),
        reset: args.reset,
    }))
    .await?;
    show::print(context, &reply)?;
    let status = Daemon::answer(daemon.api.status(v1::StatusRequest {})).await?;
    let runs = status.vm.is_some_and(|vm| vm.state != "off");
    context.printer.say(if runs {
        "stored; the machine keeps its present addresses until `hostel shutdown`"
    } else {
        "stored; holds from the machine's next start on"
    });
    Ok(())
}
