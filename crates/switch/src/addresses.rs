//! What is the host itself: every address at which it, or something that it publishes, answers; and when that changes.
//!
//! Distributions that are isolated are kept from it. The guest is told, because it alone knows which packet is whose: behind
//! most back ends all of them leave with the VM's address. It is closed there before anything of the host translates it, so
//! that a port that a container engine of the host publishes is closed as well.

use std::{io, net::IpAddr, os::fd::AsFd};

use hostel_netlink::{Events, NetlinkError, Prefix, Routing};
use tokio::net::unix::pipe;

/// Events of addresses and of routes, of both families.
const GROUPS: u32 = 1 << 4 | 1 << 8 | 1 << 6 | 1 << 10;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
/// The routing table of what is for this machine, and where an event of a route has its table.
const LOCAL: u8 = 255;
const TABLE: usize = 4;

/// How many prefixes are told at most.
const MOST: usize = 1024;

/// Follows the host's addresses.
#[derive(Debug)]
pub struct HostAddresses {
    events: Events,
    /// The same socket; polled as a pipe is.
    ready: pipe::Receiver,
}

impl HostAddresses {
    /// Begins to follow them: what changes from now on is told. Within a runtime.
    pub fn follow() -> io::Result<Self> {
        let events = Events::subscribe(None, GROUPS).map_err(io::Error::other)?;
        Self::of(events)
    }

    fn of(events: Events) -> io::Result<Self> {
        let ready = pipe::Receiver::from_owned_fd_unchecked(events.as_fd().try_clone_to_owned()?)?;
        Ok(Self { events, ready })
    }

    /// Lists them, as addresses or prefixes, in order; without the loopback and link-local ones, which lead nowhere from a
    /// guest. Of very many neighbours are put together, with what lies between them. Blocks for a moment.
    pub fn read() -> Result<Vec<String>, NetlinkError> {
        let routing = Routing::connect()?;
        // Of an interface that is down the address alone is known, and one that is coming up may have no route yet.
        let addresses = routing.addresses()?.into_iter();
        let mut all = routing.local()?;
        all.extend(addresses.map(|a| Prefix::host(a.prefix.address)));
        Ok(narrow(all).iter().map(ToString::to_string).collect())
    }

    /// Returns when they may have changed. Cancel safe.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            self.ready.readable().await?;
            let mut changed = false;
            let complete = self
                .events
                .drain(|event| {
                    changed |= match event.kind {
                        NEW_ADDRESS | DELETE_ADDRESS => true,
                        NEW_ROUTE | DELETE_ROUTE => event.body.get(TABLE) == Some(&LOCAL),
                        _ => false,
                    };
                })
                .map_err(io::Error::other)?;
            // Nothing is left to read, as a rule: that ends the readiness.
            let nothing_left = matches!(
                self.ready.try_read(&mut [0; 1]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock
            );
            if changed || !complete || !nothing_left {
                return Ok(());
            }
        }
    }
}

/// Puts them in order, without what leads nowhere, and not more than can be told.
fn narrow(all: Vec<Prefix>) -> Vec<Prefix> {
    let mut list: Vec<Prefix> = all
        .into_iter()
        .filter(|p| leads_here(p.address))
        .map(Prefix::network)
        .collect();
    list.sort_unstable();
    list.dedup();
    while list.len() > MOST {
        let longest = list.iter().map(|p| p.length).max().unwrap_or_default();
        for prefix in list.iter_mut().filter(|p| p.length == longest) {
            prefix.length = longest.saturating_sub(1);
            *prefix = prefix.network();
        }
        list.sort_unstable();
        list.dedup();
    }
    list
}

/// Tells whether a guest's packet to it could come to the host at all.
fn leads_here(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn prefixes(list: &[&str]) -> Vec<Prefix> {
        list.iter().map(|p| p.parse().unwrap()).collect()
    }

    #[test]
    fn what_leads_nowhere_is_left_out() {
        let all = prefixes(&[
            "192.168.1.255",
            "192.168.1.5",
            "127.0.0.0/8",
            "::1",
            "fe80::1",
            "ff00::/8",
            "169.254.7.7",
            "2001:db8::5",
            "192.168.1.5",
        ]);
        let wanted = prefixes(&["169.254.7.7", "192.168.1.5", "192.168.1.255", "2001:db8::5"]);
        assert_eq!(narrow(all), wanted);
    }

    #[test]
    fn very_many_are_put_together_and_none_is_lost() {
        let all: Vec<Prefix> = (0..5000u32)
            .map(|n| Prefix::host(std::net::Ipv4Addr::from_bits(0x0a60_0000 + n)))
            .collect();
        let list = narrow(all.clone());
        assert!(list.len() <= MOST, "{}", list.len());
        assert!(
            all.iter()
                .all(|one| list.iter().any(|p| p.contains(one.address)))
        );
        let outside = "10.97.0.0".parse().unwrap();
        assert!(!list.iter().any(|p| p.contains(outside)));
    }

    #[tokio::test]
    async fn a_new_address_is_told_and_listed() {
        let test = "addresses::tests::a_new_address_is_told_and_listed";
        let Some(space) = hostel_testkit::Space::new(test) else {
            return;
        };
        if hostel_testkit::require(test, hostel_testkit::Need::Program("ip")).is_none() {
            return;
        }
        space.sh("ip link set lo up").unwrap();
        let events = space.run(|| Events::subscribe(None, GROUPS)).unwrap();
        let follower = HostAddresses::of(events).unwrap();
        let limit = Duration::from_secs(30);
        let read = || space.run(|| HostAddresses::read().unwrap());
        assert!(read().is_empty(), "{:?}", read());
        for (line, wanted) in [
            ("ip addr add 192.0.2.5/24 dev lo", "192.0.2.5/32"),
            ("ip -6 addr add 2001:db8::5/64 dev lo", "2001:db8::5/128"),
            (
                "ip route add local 198.51.100.0/24 dev lo",
                "198.51.100.0/24",
            ),
        ] {
            space.sh(line).unwrap();
            let told = async {
                while !read().iter().any(|a| a == wanted) {
                    follower.changed().await.unwrap();
                }
            };
            tokio::time::timeout(limit, told).await.expect(wanted);
        }
        // Nothing more comes of what is no address of the host's.
        space.sh("ip route add 203.0.113.0/24 dev lo").unwrap();
        assert!(read().iter().all(|a| !a.starts_with("203.")));
    }
}
