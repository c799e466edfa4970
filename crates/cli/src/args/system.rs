//! Options of what looks after the machine, its kernel, and Hostel itself.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

/// Stop every distribution and turn the virtual machine off
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hostel shutdown
  hostel shutdown --force    when the machine hangs
  hostel shutdown --daemon   also to go on with a new version of Hostel")]
pub(crate) struct ShutdownArgs {
    /// End the virtual machine at once, as by pulling the plug
    #[arg(long)]
    pub(crate) force: bool,
    /// End the daemon too; the next command starts it again
    #[arg(long)]
    pub(crate) daemon: bool,
}

/// Verbs of `hostel kernel`.
#[derive(Debug, Subcommand)]
pub(crate) enum KernelVerb {
    Install(KernelInstallArgs),
    /// List the installed kernels
    #[command(after_help = "Example: hostel kernel list --json")]
    List,
    Use(KernelUseArgs),
}

/// Install a kernel and use it from the next start of the virtual machine on
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hostel kernel install
  hostel kernel install ./linux-image-cloud-amd64.deb
  hostel kernel install ./vmlinuz --modules ./lib/modules/6.12.0
  hostel kernel install host")]
pub(crate) struct KernelInstallArgs {
    /// A .deb, a vmlinuz, or `host` for this host's own kernel [default: Debian's cloud kernel, fetched and verified]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) source: Option<PathBuf>,
    /// Directory of the modules that belong to a vmlinuz
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "source")]
    pub(crate) modules: Option<PathBuf>,
    /// Do not make it the one to boot
    #[arg(long)]
    pub(crate) no_use: bool,
}

/// Choose the kernel that the virtual machine boots next
#[derive(Debug, Args)]
#[command(after_help = "Example: hostel kernel use 6.1.0-56-cloud-amd64")]
pub(crate) struct KernelUseArgs {
    /// Release, as `hostel kernel list` shows it
    pub(crate) release: String,
}

/// Show the log of the daemon or of the machine's console
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  hostel logs -n 50\n  hostel logs console -f")]
pub(crate) struct LogsArgs {
    /// Which log
    #[arg(value_enum, default_value_t = LogKind::Daemon)]
    pub(crate) which: LogKind,
    /// Go on printing what is added
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Number of lines from the end [default: all that is kept]
    #[arg(short = 'n', long, value_name = "LINES", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) lines: Option<u32>,
}

/// A log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogKind {
    /// What the kernel of the virtual machine printed
    Console,
    /// What the daemon has to tell
    Daemon,
}

impl LogKind {
    /// Returns the word of the contract.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Daemon => "daemon",
        }
    }
}

/// Print the completion script of a shell; it completes names of distributions too
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  bash:  echo 'source <(hostel completions bash)' >> ~/.bashrc
  zsh:   echo 'source <(hostel completions zsh)' >> ~/.zshrc
  fish:  hostel completions fish > ~/.config/fish/completions/hostel.fish")]
pub(crate) struct CompletionsArgs {
    /// Shell
    #[arg(value_parser = ["bash", "elvish", "fish", "zsh"])]
    pub(crate) shell: String,
}

/// Write the man pages into a directory
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory, which must exist
    pub(crate) dir: PathBuf,
}
