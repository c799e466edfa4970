//! Options of what looks after the network: `net`, `ports` and `manage`.

use std::net::Ipv4Addr;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;
use hostel_model::DistroName;

use super::OptionalNameArgs;
use crate::complete;

/// Show and change the network that the distributions share
#[derive(Debug, Args)]
#[command(
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    after_help = "\
Without a verb it does what `hostel net show` does.

Example: hostel net"
)]
pub(crate) struct NetArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<NetVerb>,
}

/// Verbs of `hostel net`.
#[derive(Debug, Subcommand)]
pub(crate) enum NetVerb {
    /// Show everything about the network: addresses, who shares them, what reaches what, where it is stored
    #[command(after_help = "Examples:\n  hostel net show\n  hostel net show --json")]
    Show,
    /// List the network and the distributions on it, one line each
    #[command(after_help = "Examples:\n  hostel net list\n  hostel net list --json")]
    List,
    /// List the host's interfaces of the network: the virtual adapter, its switch, what is plugged into it
    #[command(after_help = "Examples:\n  hostel net adapters\n  hostel net adapters --json")]
    Adapters,
    /// List the ways to carry the network, which one is used, and why not the others
    #[command(after_help = "\
The key `network` of the section [hostel] in the configuration chooses one: auto, root, rootless, passt or slirp.

Example: hostel net backends")]
    Backends,
    Set(NetSetArgs),
    Firewall(FirewallArgs),
    Helper(HelperArgs),
}

/// Change the subnet, the gateway or the machine's address; holds from the machine's next start on
///
/// What is not given stays as it is recorded. Values that collide with a network of the host, or with each other, are
/// refused.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("change").required(true).multiple(true).args(["subnet", "gateway", "address", "reset"]),
    after_help = "\
Examples:
  hostel net set --subnet 172.20.0.0/20
  hostel net set --gateway 172.19.128.1 --address 172.19.132.144
  hostel net set --reset"
)]
pub(crate) struct NetSetArgs {
    /// Private IPv4 network, such as 172.19.128.0/20
    #[arg(long, value_name = "CIDR", value_parser = subnet)]
    pub(crate) subnet: Option<String>,
    /// Address of the host in it
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Address of the virtual machine in it
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<Ipv4Addr>,
    /// Choose all of them anew
    #[arg(long, conflicts_with_all = ["subnet", "gateway", "address"])]
    pub(crate) reset: bool,
}

/// Reads a network as `ADDRESS/BITS`; whether it is a good one, the daemon decides.
fn subnet(text: &str) -> Result<String, String> {
    let parts = text.split_once('/');
    let address = parts.and_then(|(address, _)| address.parse::<Ipv4Addr>().ok());
    let bits = parts
        .and_then(|(_, bits)| bits.parse::<u8>().ok())
        .filter(|bits| *bits <= 32);
    match (address, bits) {
        (Some(address), Some(bits)) => Ok(format!("{address}/{bits}")),
        _ => Err("wanted is an IPv4 network such as 172.19.128.0/20".into()),
    }
}

/// Show or change who may open connections to the machine from elsewhere than this host
///
/// The first rule that matches decides; what no rule matches is denied. This host itself, the distributions and answers to
/// what they asked for always get through. Without a verb it lists the rules.
#[derive(Debug, Args)]
#[command(
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    after_help = "Example: hostel net firewall"
)]
pub(crate) struct FirewallArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<FirewallVerb>,
}

/// Verbs of `hostel net firewall`.
#[derive(Debug, Subcommand)]
pub(crate) enum FirewallVerb {
    /// List the rules with their numbers
    #[command(
        after_help = "Examples:\n  hostel net firewall list\n  hostel net firewall list --json"
    )]
    List,
    /// Add a rule behind the others
    #[command(after_help = "\
A rule is: allow|deny tcp|udp|icmp|any [PORT[-PORT]] [from ADDRESS[/BITS]]

Examples:
  hostel net firewall add allow tcp 3000-3010 from 192.168.0.0/16
  hostel net firewall add allow icmp
  hostel net firewall add deny any from 10.0.0.7")]
    Add {
        /// The rule, as one argument or as several
        #[arg(required = true, num_args = 1.., add = ArgValueCandidates::new(complete::rule_words))]
        rule: Vec<String>,
    },
    /// Remove rules by their numbers
    #[command(after_help = "Example: hostel net firewall rm 2")]
    Rm {
        /// Numbers, as `hostel net firewall` shows them
        #[arg(required = true, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        number: Vec<u32>,
    },
    /// Remove every rule, which closes the machine to everybody but this host
    #[command(after_help = "Example: hostel net firewall clear")]
    Clear,
}

/// Give an ordinary user's machine the root back end's reach, by a small program with just the rights it needs
///
/// The helper is `hostel-net`: it makes the bridge and the tap, writes the firewall's table and hands the tap to QEMU.
/// Installed, it is owned by root, may be executed by the members of one group, and has two capabilities (cap_net_admin and
/// cap_net_bind_service) and no other right. Without it everything else works; root does not need it.
#[derive(Debug, Args)]
#[command(
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    after_help = "Without a verb it shows the status.\n\nExample: sudo hostel net helper install"
)]
pub(crate) struct HelperArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<HelperVerb>,
}

/// Verbs of `hostel net helper`.
#[derive(Debug, Subcommand)]
pub(crate) enum HelperVerb {
    /// Install the helper, or bring it up to date; needs root
    #[command(after_help = "\
Where sudo does not find hostel, write its path: sudo $(command -v hostel) net helper install

Examples:
  sudo hostel net helper install
  sudo hostel net helper install --group netadmins")]
    Install {
        /// Group whose members may use it, by name or number [default: the main group of the user who called sudo]
        #[arg(long)]
        group: Option<String>,
    },
    /// Remove the helper; needs root
    #[command(after_help = "Example: sudo hostel net helper uninstall")]
    Uninstall,
    /// Show whether the helper is installed, and for whom
    #[command(
        after_help = "Examples:\n  hostel net helper status\n  hostel net helper status --json"
    )]
    Status,
}

/// Show which ports listen inside, and where the host reaches them
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    after_help = "\
State:
  forwarded   on this host under the same number
  remapped    on this host under another number
  direct      reached at the machine's own address only
  waiting     the port of this host is taken; tried again when it is free
  off         not on this host, by a rule or a setting

Examples:
  hostel ports
  hostel ports --watch
  hostel ports set 80 remap=8080
  hostel ports --json --watch | while read -r ledger; do …; done"
)]
pub(crate) struct PortsArgs {
    /// Go on and show all of it again after every change; with --json one line each time
    #[arg(short, long)]
    pub(crate) watch: bool,
    #[command(subcommand)]
    pub(crate) verb: Option<PortsVerb>,
}

/// Verbs of `hostel ports`.
#[derive(Debug, Subcommand)]
pub(crate) enum PortsVerb {
    /// List the rules about which ports appear on the host, and where
    #[command(after_help = "Examples:\n  hostel ports rules\n  hostel ports rules --json")]
    Rules,
    /// Set the rule for a port
    #[command(after_help = "\
Without a rule, TCP ports appear under the same number, and UDP ports do not appear. The most special rule decides: for a
distribution and a port, then for a port, then for a distribution.

Examples:
  hostel ports set 80 remap=8080
  hostel ports set --distro trixie 5432 off
  hostel ports set --udp 5353 same")]
    Set {
        #[command(flatten)]
        which: PortRuleArgs,
        /// What to do: same (the same number), off (not on the host), remap=N (that number) or remap (the next free one)
        #[arg(value_parser = action, add = ArgValueCandidates::new(complete::port_actions))]
        action: PortAction,
    },
    /// Remove the rule for a port
    #[command(
        after_help = "Examples:\n  hostel ports unset 80\n  hostel ports unset --distro trixie all"
    )]
    Unset {
        #[command(flatten)]
        which: PortRuleArgs,
    },
}

/// What a rule for ports is about.
#[derive(Debug, Args)]
pub(crate) struct PortRuleArgs {
    /// Only this distribution [default: every one]
    #[arg(short, long, value_name = "NAME", add = ArgValueCandidates::new(complete::distros))]
    pub(crate) distro: Option<DistroName>,
    /// UDP instead of TCP
    #[arg(long)]
    pub(crate) udp: bool,
    /// Port inside, or `all`
    #[arg(value_parser = port)]
    pub(crate) port: u16,
}

/// What shall become of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortAction {
    /// The same number on the host.
    Same,
    /// Not on the host.
    Off,
    /// Another number; 0: the next free one.
    Remap(u16),
}

/// Reads a port; 0 stands for all of them.
fn port(text: &str) -> Result<u16, String> {
    match text {
        "all" => Ok(0),
        text => number(text).ok_or_else(|| "wanted is a number from 1 to 65535, or `all`".into()),
    }
}

/// Reads what shall become of a port.
fn action(text: &str) -> Result<PortAction, String> {
    match text.split_once('=') {
        None if text == "same" => Ok(PortAction::Same),
        None if text == "off" => Ok(PortAction::Off),
        None if text == "remap" => Ok(PortAction::Remap(0)),
        Some(("remap", port)) => number(port)
            .map(PortAction::Remap)
            .ok_or_else(|| "the port behind `remap=` is a number from 1 to 65535".into()),
        _ => Err("wanted is same, off, remap or remap=PORT".into()),
    }
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// Show or change the settings of a distribution
///
/// Without an option it shows them. A distribution that runs keeps its network until it is restarted.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hostel manage trixie
  hostel manage trixie --network own
  hostel manage trixie --network isolated --address 172.19.133.7
  hostel manage trixie --network shared")]
pub(crate) struct ManageArgs {
    #[command(flatten)]
    pub(crate) which: OptionalNameArgs,
    /// Its network
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) network: Option<Room>,
    /// Address of its room, in the machine's subnet [default: chosen once and kept]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<Ipv4Addr>,
}

/// The network of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Room {
    /// The machine's: one address, one loopback and one set of ports with the others that share it
    Shared,
    /// A room of its own: own address, own loopback, all ports; reaches the host, the others and the internet
    Own,
    /// A room of its own that reaches the internet, but neither the host nor the other distributions
    Isolated,
}

impl Room {
    /// Returns the word of the contract.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Own => "own",
            Self::Isolated => "isolated",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_is_refused() {
        assert_eq!(subnet("172.19.128.0/20").unwrap(), "172.19.128.0/20");
        for wrong in [
            "172.19.128.0",
            "172.19.128/20",
            "1.2.3.4/33",
            "/20",
            "fd00::/64",
            "",
        ] {
            assert!(subnet(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn actions_are_words() {
        for (text, want) in [
            ("same", Some(PortAction::Same)),
            ("off", Some(PortAction::Off)),
            ("remap", Some(PortAction::Remap(0))),
            ("remap=8080", Some(PortAction::Remap(8080))),
            ("remap=0", None),
            ("remap=65536", None),
            ("remap=", None),
            ("same=1", None),
            ("on", None),
        ] {
            assert_eq!(action(text).ok(), want, "{text}");
        }
        assert_eq!((port("all"), port("80")), (Ok(0), Ok(80)));
        assert!(port("0").is_err() && port("http").is_err());
    }

    #[test]
    fn rooms_are_the_words_of_the_contract() {
        for room in Room::value_variants() {
            assert_eq!(
                room.to_possible_value()
                    .expect("no variant is skipped")
                    .get_name(),
                room.as_str()
            );
        }
    }
}
