//! `hostel net …`.

mod firewall;
mod helper;
mod set;
mod show;

use crate::{
    args::{NetArgs, NetVerb},
    surroundings::Context,
    trouble::Trouble,
};

/// Does what a verb of `hostel net` asks for; without one, shows the network.
pub(super) async fn net(context: &Context, args: NetArgs) -> Result<(), Trouble> {
    match args.verb.unwrap_or(NetVerb::Show) {
        NetVerb::Show => show::show(context).await,
        NetVerb::List => show::list(context).await,
        NetVerb::Adapters => show::adapters(context).await,
        NetVerb::Backends => show::backends(context).await,
        NetVerb::Set(args) => set::set(context, args).await,
        NetVerb::Firewall(args) => firewall::firewall(context, args).await,
        NetVerb::Helper(args) => helper::helper(context, args),
    }
}
