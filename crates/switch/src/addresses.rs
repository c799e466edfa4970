//! What is the host itself: every address at which it, or something that it publishes, answers.
//!
//! Distributions that are isolated are kept from it. The guest is told, because it alone knows which packet is whose: behind
//! most back ends all of them leave with the VM's address. It is closed there before anything of the host translates it, so
//! that a port that a container engine of the host publishes is closed as well.

use std::net::IpAddr;

use hostel_netlink::{NetlinkError, Prefix, Routing};

/// How many prefixes are told at most.
const MOST: usize = 1024;

/// Lists them, as addresses or prefixes, in order; without the loopback and link-local ones, which lead nowhere from a
/// guest. Of very many neighbours are put together, with what lies between them. Blocks for a moment.
pub(crate) fn read() -> Result<Vec<String>, NetlinkError> {
    let routing = Routing::connect()?;
    // Of an interface that is down the address alone is known, and one that is coming up may have no route yet.
    let addresses = routing.addresses()?.into_iter();
    let mut all = routing.local()?;
    all.extend(addresses.map(|a| Prefix::host(a.prefix.address)));
    Ok(narrow(all).iter().map(ToString::to_string).collect())
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
}
