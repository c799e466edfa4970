//! One function a verb: ask the daemon, show the answer.

mod archive;
mod distro;
mod doctor;
mod host_checks;
mod kernel;
mod list;
mod logs;
mod manage;
mod net;
mod ports;
mod run;
mod script;
mod show;
mod system;

pub(crate) use script::COMPLETE_VARIABLE;

use crate::{
    args::{Cli, KernelVerb, Verb},
    surroundings::Context,
    trouble::Trouble,
};

/// Does what the command line asks for and returns the exit status.
pub(crate) async fn dispatch(context: &Context, cli: Cli) -> Result<u8, Trouble> {
    let Some(verb) = cli.verb else {
        return run::shell(context, cli.run).await;
    };
    match verb {
        Verb::Exec(args) => return run::exec(context, args).await,
        Verb::Attach(args) => return run::attach(context, args).await,
        Verb::DebugShell(args) => return run::debug_shell(context, args).await,
        Verb::Doctor => return doctor::doctor(context).await,
        Verb::Import(args) => archive::import(context, args).await,
        Verb::Export(args) => archive::export(context, args).await,
        Verb::Install(args) => archive::install(context, args).await,
        Verb::List(args) => list::list(context, args).await,
        Verb::Start(args) => distro::start(context, args).await,
        Verb::Stop(args) => distro::stop(context, args).await,
        Verb::Restart(args) => distro::restart(context, args).await,
        Verb::Rm(args) => distro::remove(context, args).await,
        Verb::Rename(args) => distro::rename(context, args).await,
        Verb::SetDefault(args) => distro::set_default(context, args).await,
        Verb::Shutdown(args) => system::shutdown(context, args).await,
        Verb::Version => system::version(context).await,
        Verb::Status => show::status(context).await,
        Verb::Inspect(args) => show::inspect(context, args).await,
        Verb::Manage(args) => manage::manage(context, args).await,
        Verb::Net(args) => net::net(context, args).await,
        Verb::Ports(args) => ports::ports(context, args).await,
        Verb::Sessions => show::sessions(context).await,
        Verb::Kernel(KernelVerb::Install(args)) => kernel::install(context, args).await,
        Verb::Kernel(KernelVerb::List) => kernel::list(context).await,
        Verb::Kernel(KernelVerb::Use(args)) => kernel::choose(context, args).await,
        Verb::Logs(args) => logs::logs(context, args).await,
        Verb::Completions(args) => script::completions(context, &args),
        Verb::Man(args) => script::man(&args),
    }?;
    Ok(0)
}
