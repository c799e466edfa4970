//! Letting the host pass packets on, and undoing that at the end.
//!
//! These settings belong to the whole host, so who switched one on is written into the bridge's mark, and only the last
//! network of ours switches it off.

use std::collections::BTreeSet;

use hostel_netlink::{Link, LinkChange, NetlinkError, Routing};

use super::{
    fail::OrRefuse,
    mark::{Duties, Mark},
    sysctl,
};
use crate::protocol::Refusal;

const FORWARD4: &str = "ipv4/ip_forward";
const FORWARD6: &str = "ipv6/conf/all/forwarding";

/// Finds out what will have to be switched on, and off again, for a network.
pub(super) fn wanted(routing: &Routing, ipv6: bool) -> Result<Duties, Refusal> {
    let mut duties = Duties {
        forward4: sysctl::read(FORWARD4).or_refuse("cannot read `ip_forward`")? == Some(0),
        ..Duties::default()
    };
    if !ipv6 || sysctl::read(FORWARD6).or_refuse("cannot read IPv6's `forwarding`")? != Some(0) {
        return Ok(duties);
    }
    let uplinks = uplinks(routing).or_refuse("cannot list the routes")?;
    for name in uplinks {
        let Ok(Some(force)) = sysctl::read(&force6(&name)) else {
            // Kernels before 6.17 forward IPv6 on all interfaces or none, and one that forwards no longer listens to
            // its router unless it is told to.
            duties.forward6 = true;
            if let Ok(Some(1)) = sysctl::read(&accept_ra(&name)) {
                duties.accept_ra.push(name);
            }
            continue;
        };
        if force == 0 {
            duties.force6.push(name);
        }
    }
    Ok(duties)
}

/// Switches on what was found out.
pub(super) fn enable(bridge: &str, ipv6: bool, duties: &Duties) -> Result<(), Refusal> {
    sysctl::set(FORWARD4, 1).or_refuse("cannot switch forwarding on")?;
    if !ipv6 {
        return Ok(());
    }
    for name in &duties.accept_ra {
        sysctl::set(&accept_ra(name), 2)
            .or_refuse(format_args!("cannot keep `{name}` listening to its router"))?;
    }
    if duties.forward6 {
        sysctl::set(FORWARD6, 1).or_refuse("cannot switch IPv6 forwarding on")?;
    }
    for name in duties.force6.iter().map(String::as_str).chain([bridge]) {
        sysctl::set_if_there(&force6(name), 1).or_refuse(format_args!(
            "cannot switch IPv6 forwarding on for `{name}`"
        ))?;
    }
    Ok(())
}

/// Lets a namespace of our own forward IPv6, also on interfaces that come later: the way out does.
pub(super) fn enable_everywhere() -> Result<(), Refusal> {
    let set = sysctl::set_if_there(FORWARD6, 1);
    set.map(drop).or_refuse("cannot switch IPv6 forwarding on")
}

/// Switches forwarding on again when somebody switched it off; whether that was so.
pub(super) fn repair() -> std::io::Result<bool> {
    sysctl::set(FORWARD4, 1)
}

/// Switches off what a network that has gone had switched on, or leaves that to another one of ours.
pub(super) fn settle(routing: &Routing, mut duties: Duties) -> Result<(), Refusal> {
    if duties == Duties::default() {
        return Ok(());
    }
    let others = ours(routing).or_refuse("cannot list the interfaces")?;
    if let Some((link, mut heir)) = others.into_iter().find(|(_, mark)| !mark.is_orphan()) {
        heir.duties.merge(duties);
        let change = LinkChange {
            alias: Some(&heir.to_string()),
            ..LinkChange::default()
        };
        return routing
            .change_link(link.index, &change)
            .or_refuse(format_args!("cannot mark `{}`", link.name));
    }
    if duties.forward4 {
        sysctl::set(FORWARD4, 0).or_refuse("cannot switch forwarding off")?;
    }
    if duties.forward6 {
        sysctl::set(FORWARD6, 0).or_refuse("cannot switch IPv6 forwarding off")?;
    }
    duties.accept_ra.retain(|name| is_plain(name));
    duties.force6.retain(|name| is_plain(name));
    for name in &duties.accept_ra {
        // Whoever changed it meanwhile meant it.
        if let Ok(Some(2)) = sysctl::read(&accept_ra(name)) {
            sysctl::set(&accept_ra(name), 1)
                .or_refuse(format_args!("cannot set `accept_ra` of `{name}` back"))?;
        }
    }
    for name in &duties.force6 {
        sysctl::set_if_there(&force6(name), 0).or_refuse(format_args!(
            "cannot switch IPv6 forwarding off for `{name}`"
        ))?;
    }
    Ok(())
}

/// Lists the bridges that carry a mark.
pub(super) fn ours(routing: &Routing) -> Result<Vec<(Link, Mark)>, NetlinkError> {
    let links = routing.links()?;
    let marked = |link: Link| {
        let mark = Mark::parse(&link.alias)?;
        (link.kind == "bridge" && is_name(&link.name)).then_some((link, mark))
    };
    Ok(links.into_iter().filter_map(marked).collect())
}

/// Whether a name is one of those that we give to bridges and tables.
pub(super) fn is_name(name: &str) -> bool {
    name.strip_prefix("hostel")
        .is_some_and(|n| n.len() <= 3 && n.parse::<u16>().is_ok_and(|i| i.to_string() == n))
}

/// The interfaces that lead out by IPv6.
fn uplinks(routing: &Routing) -> Result<BTreeSet<String>, NetlinkError> {
    let routes = routing.routes()?;
    let links = routing.links()?;
    let leads_out = |index: u32| {
        routes.iter().any(|r| {
            r.index == index && r.destination.address.is_ipv6() && r.destination.length == 0
        })
    };
    Ok(links
        .into_iter()
        .filter(|link| leads_out(link.index) && is_plain(&link.name))
        .map(|link| link.name)
        .collect())
}

/// Whether an interface's name can be part of a path and of a mark.
fn is_plain(name: &str) -> bool {
    !matches!(name, "." | ".." | "all" | "default") && !name.contains([',', ' ', '/', '='])
}

fn accept_ra(name: &str) -> String {
    format!("ipv6/conf/{name}/accept_ra")
}

fn force6(name: &str) -> String {
    format!("ipv6/conf/{name}/force_forwarding")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_ours() {
        for name in ["hostel0", "hostel7", "hostel12", "hostel999"] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "hostel",
            "hostel00",
            "hostel01",
            "hostel1000",
            "hostelx",
            "docker0",
            "hostel+1",
        ] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn names_that_are_no_interfaces_make_no_paths() {
        assert!(is_plain("eth0.5@x"));
        for name in ["..", "all", "a/b", "a,b", "a=b"] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
