//! Options of what looks after distributions.

use clap::Args;
use clap_complete::ArgValueCandidates;
use hostel_model::DistroName;

use crate::complete;

/// One distribution, which must be named.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// Distribution
    #[arg(add = ArgValueCandidates::new(complete::distros))]
    pub(crate) name: DistroName,
}

/// One distribution or the default one.
#[derive(Debug, Args)]
pub(crate) struct OptionalNameArgs {
    /// Distribution [default: the one of `hostel set-default`]
    #[arg(add = ArgValueCandidates::new(complete::distros))]
    pub(crate) name: Option<DistroName>,
}

impl OptionalNameArgs {
    /// Returns the name as the contract wants it: empty for the default one.
    pub(crate) fn for_wire(&self) -> String {
        self.name
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default()
    }
}

/// List the distributions, the default one first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hostel list -v
  hostel list --running -q
  hostel list --json

An empty list is not an error (in WSL it is).")]
pub(crate) struct ListArgs {
    /// Show state, version, system and size; `*` marks the default
    #[arg(short, long, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
    /// Show only those that run
    #[arg(long)]
    pub(crate) running: bool,
}

/// Stop a distribution; one that does not run is stopped already
#[derive(Debug, Args)]
#[command(after_help = "Example: hostel stop trixie --timeout 30")]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) which: OptionalNameArgs,
    /// Seconds to wait for a clean end before it is killed [default: the daemon's, 10]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) timeout: Option<u32>,
}

/// Give a distribution another name
#[derive(Debug, Args)]
#[command(after_help = "Example: hostel rename trixie work")]
pub(crate) struct RenameArgs {
    /// Distribution
    #[arg(add = ArgValueCandidates::new(complete::distros))]
    pub(crate) name: DistroName,
    /// Name it shall have
    pub(crate) new: DistroName,
}

/// Show everything known about one distribution
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  hostel inspect\n  hostel inspect trixie --json")]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) which: OptionalNameArgs,
}
