//! The whole command line, in one place: help, man pages and completions are made from it.

mod distro;
mod image;
mod network;
mod run;
mod system;
mod words;

use clap::{Args, CommandFactory, Parser, Subcommand};

pub(crate) use distro::{InspectArgs, ListArgs, NameArgs, OptionalNameArgs, RenameArgs, StopArgs};
pub(crate) use image::{ExportArgs, Format, ImportArgs, InstallArgs};
pub(crate) use network::{
    FirewallArgs, FirewallVerb, HelperArgs, HelperVerb, ManageArgs, NetArgs, NetSetArgs, NetVerb,
    PortAction, PortRuleArgs, PortsArgs, PortsVerb, Room,
};
pub(crate) use run::{AttachArgs, DebugShellArgs, ExecArgs, RunArgs, split_variable};
pub(crate) use system::{
    CompletionsArgs, KernelInstallArgs, KernelUseArgs, KernelVerb, LogKind, LogsArgs, ManArgs,
    ShutdownArgs,
};
pub(crate) use words::{close_verb, mark_command};

/// Run many Linux distributions side by side in one light virtual machine
///
/// Without a verb, hostel opens your shell in the default distribution, or runs a command there through your shell.
/// Words that are not a verb begin such a command; put `--` before a command that is named like a verb. Arguments are
/// joined with single spaces, as ssh does; one single argument reaches the shell as it is. Use `hostel exec` to run a
/// program without a shell and without any change to its arguments.
#[derive(Debug, Parser)]
#[command(
    name = "hostel",
    version,
    bin_name = "hostel",
    override_usage = "hostel [OPTIONS] [--] [COMMAND]...\n       hostel [OPTIONS] <VERB>",
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    after_long_help = AFTER_HELP,
    max_term_width = 110
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

const AFTER_HELP: &str = "\
Examples:
  hostel                              open a login shell in the default distribution
  hostel -d trixie                    open a login shell in the distribution trixie
  hostel uname -a                     run a command in the default distribution
  hostel -d trixie -- list            run the command list, which is also a verb
  hostel 'echo $HOME | wc -c'         one argument reaches the shell inside as it is
  hostel exec trixie -- ls 'a  b'     no shell, no change to the arguments

Exit status:
  the command's own; 128+N when signal N ended it
  125  Hostel itself failed
  126  the command cannot be executed
  127  the command was not found
  2    the command line is wrong
  1    `doctor` found an error
  0    also when the reader of our output has gone

Environment:
  HOSTEL_HOME          state directory [default: $XDG_DATA_HOME/hostel or ~/.local/share/hostel]
  HOSTEL_RUNTIME_DIR   sockets and logs [default: $XDG_RUNTIME_DIR/hostel, /run/user/UID/hostel or /tmp/hostel-UID]
  HOSTELD              program to start as the daemon [default: hosteld beside hostel, then in PATH]
  HOSTEL_NET_PROGRAM   program for the host's network [default: hostel-net beside hosteld]
  WSLENV               variables to take along, NAME[/FLAGS] separated by colons, as in WSL
  NO_COLOR             print without colour when set and not empty";

/// Options that every verb understands.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print data as JSON, and a JSON object for an error
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing but errors; `list` prints names only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print without colour [also: NO_COLOR]
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Exec(ExecArgs),
    Import(ImportArgs),
    Export(ExportArgs),
    Install(InstallArgs),
    List(ListArgs),
    /// Start a distribution, and the virtual machine when it is off
    #[command(after_help = "Example: hostel start trixie")]
    Start(OptionalNameArgs),
    Stop(StopArgs),
    /// Stop a distribution and start it again
    #[command(after_help = "Example: hostel restart trixie")]
    Restart(OptionalNameArgs),
    Shutdown(ShutdownArgs),
    /// Remove a distribution with everything in it; it is stopped first
    #[command(
        after_help = "Example: hostel rm trixie\n\nA base image that no other distribution uses is removed too."
    )]
    Rm(NameArgs),
    Rename(RenameArgs),
    /// Make a distribution the one that is meant when none is named
    #[command(after_help = "Example: hostel set-default trixie")]
    SetDefault(NameArgs),
    /// Show the daemon, the virtual machine and its network
    #[command(after_help = "Example: hostel status --json")]
    Status,
    Inspect(InspectArgs),
    Manage(ManageArgs),
    Net(NetArgs),
    Ports(PortsArgs),
    /// Install, list and choose the kernel of the virtual machine
    #[command(
        subcommand,
        subcommand_value_name = "VERB",
        subcommand_help_heading = "Verbs"
    )]
    Kernel(KernelVerb),
    /// List the sessions that run, also those whose client is gone
    #[command(after_help = "Example: hostel sessions --json")]
    Sessions,
    Attach(AttachArgs),
    /// Check this host and Hostel's parts, and say what to do about what is wrong
    #[command(
        after_help = "Exit status: 1 when an error was found, else 0\n\nExample: hostel doctor"
    )]
    Doctor,
    Logs(LogsArgs),
    DebugShell(DebugShellArgs),
    Completions(CompletionsArgs),
    /// Show the versions of client and daemon; does not start the daemon
    #[command(after_help = "Example: hostel version --json")]
    Version,
    #[command(name = "__man", hide = true)]
    Man(ManArgs),
}

/// Returns the definition that help, completions and man pages are made of.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Tells a verb apart from the options of a run, which it would silently ignore.
///
/// Returns the name of the first run option that was given together with a verb.
pub(crate) fn run_option_with_verb(cli: &Cli) -> Option<&'static str> {
    cli.verb.as_ref()?;
    let run = &cli.run;
    if run.distro.is_some() {
        Some("--distro")
    } else if run.user.is_some() {
        Some("--user")
    } else if run.cd.is_some() {
        Some("--cd")
    } else if run.keep {
        Some("--keep")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
