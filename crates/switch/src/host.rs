//! What the host's own network is like: read from the kernel, never changed.

use std::net::{IpAddr, Ipv4Addr};

use hostel_netlink::{Address, Link, NetlinkError, Routing};

use crate::Prefix;

/// An ordinary network's largest packet.
pub(crate) const MTU: u32 = 1500;
/// What IPv6 wants at least.
pub(crate) const LEAST_MTU: u32 = 1280;
/// How the alias of an interface of ours begins.
const OURS: &str = "hostel ";

/// A network that is in use, and by which interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The network.
    pub prefix: Prefix,
    /// The interface; empty when it has gone meanwhile.
    pub interface: String,
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.prefix)?;
        match self.interface.as_str() {
            "" => Ok(()),
            name => write!(f, " of `{name}`"),
        }
    }
}

/// The host's network at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Networks of every routing table, and of the interfaces' addresses; without ours and without the default routes.
    pub taken: Vec<Taken>,
    /// The host's own address towards the world.
    pub address: Option<Ipv4Addr>,
    /// Whether it has a way to the world by IPv4.
    pub online: bool,
    /// Whether it has a global IPv6 address.
    pub ipv6: bool,
    /// The largest packet that fits through every connected interface, at most 1500 bytes (NAT-12).
    pub mtu: u32,
}

impl Host {
    /// Reads it. Blocks for a moment; needs no privileges.
    pub fn read() -> Result<Self, NetlinkError> {
        let routing = Routing::connect()?;
        let links = routing.links()?;
        let addresses = routing.addresses()?;
        let networks = routing.networks()?;
        let find = |index: u32| links.iter().find(|link| link.index == index);
        let ours = |index: u32| find(index).is_some_and(is_ours);
        let name = |index: u32| find(index).map_or_else(String::new, |link| link.name.clone());

        let mut taken: Vec<Taken> = Vec::new();
        let all = networks
            .iter()
            .map(|(prefix, index)| (*prefix, *index))
            .chain(addresses.iter().map(|a| (a.prefix, a.index)));
        for (prefix, index) in all {
            // A default route, or half of one, collides with everything and says nothing.
            if ours(index) || prefix.length <= 1 {
                continue;
            }
            let IpAddr::V4(address) = prefix.address else {
                continue;
            };
            taken.extend(
                Prefix::containing(address, prefix.length).map(|prefix| Taken {
                    prefix,
                    interface: name(index),
                }),
            );
        }
        taken.sort_by_key(|t| (t.prefix.network(), t.prefix.bits()));
        taken.dedup();

        let routes = routing.routes()?;
        let default = routes
            .iter()
            .filter(|r| r.destination.length == 0 && r.destination.address.is_ipv4())
            .min_by_key(|r| r.metric);
        let preferred = default.and_then(|route| match route.source {
            Some(IpAddr::V4(source)) => Some(source),
            _ => first_v4(&addresses, |a| a.index == route.index),
        });
        let is_up = |index: u32| find(index).is_some_and(|l| l.up && l.name != "lo" && !is_ours(l));
        Ok(Self {
            taken,
            address: preferred.or_else(|| first_v4(&addresses, |a| is_up(a.index))),
            online: default.is_some(),
            ipv6: addresses.iter().any(|a| is_global(a.prefix.address)),
            mtu: mtu(&links),
        })
    }

    /// Tells what to do when a network of the host has come into the way of the one in use, such as a VPN's; `None`: nothing
    /// is in the way.
    pub fn advice(&self, subnet: &Prefix) -> Option<String> {
        self.collides(subnet).map(|taken| {
            format!(
                "the network {taken} is in the way of the VM's network {subnet}: shut the VM down (`hostel shutdown`), and its \
                 next start chooses another; or choose one yourself with `hostel net set`"
            )
        })
    }

    /// Returns the network of the host that has addresses in common with this one.
    pub fn collides(&self, subnet: &Prefix) -> Option<&Taken> {
        self.taken.iter().find(|t| t.prefix.overlaps(subnet))
    }
}

fn first_v4(addresses: &[Address], which: impl Fn(&&Address) -> bool) -> Option<Ipv4Addr> {
    addresses
        .iter()
        .filter(which)
        .find_map(|a| match a.prefix.address {
            IpAddr::V4(address) if !address.is_loopback() && !address.is_link_local() => {
                Some(address)
            }
            _ => None,
        })
}

/// The name of the daemon's process.
const DAEMON: &str = "hosteld";

/// Tells whether an address is from 2000::/3, the only range that is global today.
fn is_global(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.segments()[0] >> 13 == 1)
}

/// Tells whether an interface is of this daemon's own network, or is left of one that has ended.
///
/// A tap of ours is a port of a bridge of ours and has no address. To us the network of another user, or of another living
/// daemon of this user (with a home of its own), is one of the host's.
fn is_ours(link: &Link) -> bool {
    let Some(mark) = link.alias.strip_prefix(OURS) else {
        return false;
    };
    let owner = mark.split(' ').next().unwrap_or_default();
    if owner.is_empty() || !owner.bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    let Ok(status) = fs_err::read_to_string(format!("/proc/{owner}/status")) else {
        return true;
    };
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_ascii_whitespace().next()
    };
    // Not the owner of the file: that is root for a program with capabilities.
    field("Uid:") == Some(&rustix::process::getuid().as_raw().to_string())
        && !field("PPid:").is_some_and(is_another_daemon)
}

/// Tells whether a process is a daemon like this one. One whose daemon was killed is on its way out.
fn is_another_daemon(pid: &str) -> bool {
    let name = fs_err::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pid != std::process::id().to_string() && name.trim_end() == DAEMON
}

fn mtu(links: &[Link]) -> u32 {
    let ours: Vec<u32> = links
        .iter()
        .filter(|l| is_ours(l))
        .map(|l| l.index)
        .collect();
    links
        .iter()
        .filter(|l| l.up && l.carrier && l.name != "lo" && !ours.contains(&l.index))
        .filter(|l| l.master.is_none_or(|master| !ours.contains(&master)))
        .map(|l| l.mtu)
        .fold(MTU, u32::min)
        .max(LEAST_MTU)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, mtu: u32) -> Link {
        Link {
            index: name.bytes().map(u32::from).sum(),
            name: name.to_owned(),
            mtu,
            up: true,
            carrier: true,
            ..Link::default()
        }
    }

    /// NAT-12.
    #[test]
    fn the_smallest_connected_interface_decides_the_largest_packet() {
        let down = Link {
            carrier: false,
            ..link("docker0", 1300)
        };
        let bridge = Link {
            alias: format!("hostel {} 2 3", std::process::id()),
            ..link("hostel0", 1290)
        };
        let tap = Link {
            master: Some(bridge.index),
            ..link("hostel0-tap", 1290)
        };
        let own = [link("lo", 65536), link("eth0", 9000), down, bridge, tap];
        assert_eq!(mtu(&own), 1500);
        let vpn = [link("eth0", 1500), link("tun0", 1420)];
        assert_eq!(mtu(&vpn), 1420);
        assert_eq!(mtu(&[link("tiny", 576)]), 1280);
        assert_eq!(mtu(&[]), 1500);
    }

    #[test]
    fn what_has_ended_and_what_is_our_own_is_ours() {
        let alias = |alias: &str| Link {
            alias: alias.to_owned(),
            ..link("hostel0", 1500)
        };
        let own = format!("hostel {} 5 7", std::process::id());
        assert!(is_ours(&alias(&own)));
        assert!(
            is_ours(&alias("hostel 4194304 5 7")),
            "nobody has this number"
        );
        let root = rustix::process::getuid().is_root();
        assert_eq!(is_ours(&alias("hostel 1 5 7")), root, "process 1 is root's");
        assert!(!is_ours(&alias("hostel")) && !is_ours(&alias("hostel x")) && !is_ours(&alias("")));
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        let host = Host {
            taken: vec![Taken {
                prefix: "172.19.0.0/16".parse().unwrap(),
                interface: "wg0".to_owned(),
            }],
            ..Host::default()
        };
        let ours = "172.19.128.0/20".parse().unwrap();
        let text = host.advice(&ours).unwrap();
        assert!(text.contains("172.19.0.0/16 of `wg0`"), "{text}");
        assert_eq!(host.advice(&"172.20.0.0/20".parse().unwrap()), None);
    }

    #[test]
    fn this_host_is_read() {
        let host = Host::read().unwrap();
        assert!(host.taken.iter().all(|t| t.prefix.bits() > 1));
        assert!((1280..=1500).contains(&host.mtu));
    }
}
