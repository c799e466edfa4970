//! What is there already: leftovers of killed servers, networks of the host, other servers of ours.

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use hostel_netlink::{Link, Prefix, Routing};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock},
    io::Errno,
};

use super::{fail::OrRefuse, forwarding, network::Kernel};
use crate::protocol::{Refusal, RefusalCode, Up};

/// Another server holds the lock for milliseconds.
const LOCK: Duration = Duration::from_secs(5);

/// Removes what servers left that were killed, and puts right what they had changed.
pub(super) fn clean_orphans(kernel: &Kernel) -> Result<(), Refusal> {
    let routing = &kernel.routing;
    let marked = forwarding::ours(routing).or_refuse("cannot list the interfaces")?;
    for (link, mark) in marked.iter().filter(|(_, mark)| mark.is_orphan()) {
        delete_link(routing, &format!("{}-tap", link.name))?;
        delete_link(routing, &link.name)?;
        forwarding::settle(routing, mark.duties.clone())?;
    }
    // A table stays behind its bridge when somebody removed the bridge of a server that had been killed.
    let links = routing.links().or_refuse("cannot list the interfaces")?;
    let tables = kernel.nft.tables().or_refuse("cannot list the tables")?;
    for table in tables {
        let in_use = |link: &Link| link.name == table.name;
        if forwarding::is_name(&table.name) && !links.iter().any(in_use) {
            kernel
                .nft
                .delete(&table.name)
                .or_refuse(format_args!("cannot remove the table `{}`", table.name))?;
        }
    }
    Ok(())
}

/// Refuses a subnet that meets a network which is there already (NAT-6).
pub(super) fn collisions(routing: &Routing, up: &Up) -> Result<(), Refusal> {
    let mut wanted = vec![Prefix::from(up.subnet)];
    wanted.extend(up.ipv6.map(|v6| Prefix {
        address: v6.prefix.into(),
        length: 64,
    }));
    // Of every table: many VPNs keep theirs beside the main one.
    let routes = routing.networks().or_refuse("cannot list the routes")?;
    let addresses = routing.addresses().or_refuse("cannot list the addresses")?;
    let links = routing.links().or_refuse("cannot list the interfaces")?;
    let on = |index: u32| {
        links
            .iter()
            .find(|link| link.index == index)
            .map_or_else(String::new, |link| format!(" on `{}`", link.name))
    };
    if let Some(address) = resolvers().into_iter().find(|a| wanted[0].contains(*a)) {
        return Err(Refusal::new(
            RefusalCode::Collision,
            format!("{} holds the host's resolver {address}", wanted[0]),
        ));
    }
    let taken = routes
        .iter()
        // Ways to (nearly) everything, such as a VPN's two halves, are no networks.
        .filter(|(destination, _)| destination.length >= 4)
        .map(|(destination, index)| (*destination, "the route to", *index))
        .chain(addresses.iter().map(|a| (a.prefix, "the address", a.index)));
    for (prefix, what, index) in taken {
        for wanted in &wanted {
            if wanted.contains(prefix.address) || prefix.contains(wanted.address) {
                return Err(Refusal::new(
                    RefusalCode::Collision,
                    format!("{wanted} meets {what} {prefix}{}", on(index)),
                ));
            }
        }
    }
    Ok(())
}

/// The host's resolvers: what the host asks must not become what the guest answers, when only the default route led there.
fn resolvers() -> Vec<IpAddr> {
    let text = fs_err::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines().filter_map(resolver).collect()
}

fn resolver(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
}

pub(super) fn delete_link(routing: &Routing, name: &str) -> Result<(), Refusal> {
    let what = || format!("cannot remove `{name}`");
    match routing.link(name).or_refuse(what())? {
        None => Ok(()),
        Some(link) => match routing.delete_link(link.index) {
            Err(error) if !error.is_missing() => Err(error).or_refuse(what()),
            _ => Ok(()),
        },
    }
}

/// Keeps other servers of this network namespace from making and removing at the same time, while it is held.
///
/// The lock is on the namespace itself. Anyone may take it, so it is not waited for without end; without it, two servers
/// that start in the same instant may disagree about who switches forwarding off.
pub(super) fn lock() -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open("/proc/self/ns/net", flags, Mode::empty()).ok()?;
    let deadline = Instant::now() + LOCK;
    loop {
        match flock(&namespace, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(namespace),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                let pause = rustix::time::Timespec {
                    tv_sec: 0,
                    tv_nsec: 5_000_000,
                };
                // Locks of files cannot be waited for with a deadline.
                let _ = rustix::event::poll(&mut [], Some(&pause));
            }
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_the_library_reads_them() {
        for (line, address) in [
            ("nameserver 10.0.0.53", Some("10.0.0.53")),
            ("nameserver\t fd00::53 # ours", Some("fd00::53")),
            ("#nameserver 10.0.0.53", None),
            ("search nameserver", None),
            ("nameserver", None),
            ("nameserver fe80::1%eth0", None),
        ] {
            let found = resolver(line);
            assert_eq!(found, address.map(|a| a.parse().unwrap()), "{line}");
        }
    }
}
