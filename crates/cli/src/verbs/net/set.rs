//! `hostel net set`.

use std::net::Ipv4Addr;

use hostel_proto::v1;

use super::show;
use crate::{
    args::NetSetArgs,
    connect::{self, Daemon},
    surroundings::Context,
    trouble::Trouble,
};

/// Changes the record, and says from when on it holds.
pub(super) async fn set(context: &Context, args: NetSetArgs) -> Result<(), Trouble> {
    let text = |value: Option<Ipv4Addr>| value.map(|v| v.to_string()).unwrap_or_default();
    let request = v1::NetworkSetRequest {
        subnet: args.subnet.unwrap_or_default(),
        gateway: text(args.gateway),
        address: text(args.address),
        reset: args.reset,
    };
    let stored = told(&request);
    let mut daemon = connect::connect(&context.paths).await?;
    let reply = Daemon::answer(daemon.api.network_set(request)).await?;
    let status = Daemon::answer(daemon.api.status(v1::StatusRequest {})).await?;
    show::print(context, &reply)?;
    let holds = if status.vm.is_some_and(|vm| vm.state != "off") {
        "; the machine, and what is shown here, keeps its present addresses until `hostel shutdown`"
    } else {
        "; it holds from the machine's next start on"
    };
    context.printer.say(&format!("stored: {stored}{holds}"));
    Ok(())
}

/// Says what was asked for.
fn told(request: &v1::NetworkSetRequest) -> String {
    if request.reset {
        return "addresses are chosen anew".to_owned();
    }
    [
        ("subnet", &request.subnet),
        ("gateway", &request.gateway),
        ("address", &request.address),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(what, value)| format!("{what} {value}"))
    .collect::<Vec<_>>()
    .join(", ")
}
