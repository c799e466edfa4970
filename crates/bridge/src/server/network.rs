//! The network itself: made, kept as it was made, and taken down.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use hostel_model::firewall::Rule;
use hostel_netlink::{
    Bridge, Link, LinkChange, Prefix, Routing,
    nft::{Fingerprint, Nft, Table},
};
use hostel_sys::tap;
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock},
    io::Errno,
};

use super::{
    fail::OrRefuse,
    forwarding,
    mark::{Mark, Owner},
    rules, sysctl,
};
use crate::protocol::{Refusal, RefusalCode, Up};

/// More networks of ours than anybody has on one host.
const MOST: u32 = 1000;
/// Another server holds the lock for milliseconds.
const LOCK: Duration = Duration::from_secs(5);

/// The kernel's tables, reached from inside one network namespace.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) routing: Routing,
    pub(super) nft: Nft,
}

impl Kernel {
    /// Connects to those of the namespace that the process is in.
    pub(super) fn connect() -> Result<Self, Refusal> {
        Ok(Self {
            routing: Routing::connect().or_refuse("cannot reach the kernel's routing")?,
            nft: Nft::connect().or_refuse("cannot reach the kernel's packet filter")?,
        })
    }
}

/// A network that is up. [`Network::take_down`] removes it; dropping it alone does not.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) up: Up,
    /// The bridge, and the table.
    pub(super) name: String,
    pub(super) tap: String,
    mark: Mark,
    host_loopback: Option<Ipv4Addr>,
    fingerprint: Option<Fingerprint>,
}

/// What [`Network::repair`] found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What was put back, in a few words.
    pub(super) repaired: Vec<&'static str>,
    /// The tap is gone, which cannot be put back: its other end is gone as well.
    pub(super) tap_lost: bool,
}

impl Network {
    /// Makes the network that `up`, which was checked, asks for. Returns it with the tap's descriptor. On failure nothing
    /// stays.
    ///
    /// `host_loopback` is the address at which this namespace reaches the services of the host's 127.0.0.1.
    pub(super) fn raise(
        kernel: &Kernel,
        up: Up,
        host_loopback: Ipv4Addr,
    ) -> Result<(Self, OwnedFd), Refusal> {
        let _lock = lock();
        clean_orphans(kernel)?;
        collisions(&kernel.routing, &up)?;
        let mark = Mark {
            owner: Owner::myself().or_refuse("cannot find out who I am")?,
            duties: forwarding::wanted(&kernel.routing, up.ipv6.is_some())?,
        };
        let name = make_bridge(kernel, &up, &mark)?;
        let mut network = Self {
            tap: format!("{name}-tap"),
            host_loopback: up.host_loopback.then_some(host_loopback),
            name,
            up,
            mark,
            fingerprint: None,
        };
        let made = network.fill(kernel);
        match made {
            Ok(tap) => Ok((network, tap)),
            Err(refusal) => {
                let left = network.remove(kernel);
                Err(Refusal::new(
                    refusal.code,
                    left.into_iter().fold(refusal.message, |message, also| {
                        format!("{message}; cleaning up failed too: {also}")
                    }),
                ))
            }
        }
    }

    /// Everything after the bridge itself.
    fn fill(&mut self, kernel: &Kernel) -> Result<OwnedFd, Refusal> {
        self.keep_bridge(kernel)?;
        // The rules stand before the first packet can come.
        self.write_table(kernel, self.up.firewall.clone())?;
        let tap = tap::open().map_err(|error| no_tun(&error))?;
        tap::create(&tap, &self.tap).or_refuse(format_args!("cannot make `{}`", self.tap))?;
        self.keep_tap(kernel)?;
        forwarding::enable(&self.name, self.up.ipv6.is_some(), &self.mark.duties)?;
        Ok(tap)
    }

    /// Replaces the rules for connections from outside, in one step.
    pub(super) fn set_firewall(
        &mut self,
        kernel: &Kernel,
        firewall: Vec<Rule>,
    ) -> Result<(), Refusal> {
        self.write_table(kernel, firewall)
    }

    fn write_table(&mut self, kernel: &Kernel, firewall: Vec<Rule>) -> Result<(), Refusal> {
        let mut up = self.up.clone();
        up.firewall = firewall;
        let table = self.table(&up);
        kernel
            .nft
            .replace(&table)
            .or_refuse(format_args!("cannot write the table `{}`", self.name))?;
        self.up = up;
        self.fingerprint = kernel
            .nft
            .fingerprint(&self.name)
            .or_refuse(format_args!("cannot read the table `{}`", self.name))?;
        Ok(())
    }

    fn table(&self, up: &Up) -> Table {
        let comment = "made by hostel-net, removed when the VM's network ends";
        rules::table(&self.name, &self.name, comment, up, self.host_loopback)
    }

    /// Looks whether everything is as it was made, and puts back what is not.
    pub(super) fn repair(&mut self, kernel: &Kernel) -> Result<Found, Refusal> {
        let mut found = Found::default();
        let routing = &kernel.routing;
        let bridge = routing.link(&self.name).or_refuse("cannot look")?;
        if bridge.is_none_or(|link| link.kind != "bridge") {
            create_bridge(routing, &self.name, &self.up, &self.mark)?
                .ok_or_else(|| occupied(&self.name))?;
            found.repaired.push("the bridge");
        }
        if self.keep_bridge(kernel)? && found.repaired.is_empty() {
            found.repaired.push("the bridge's settings");
        }
        match self.keep_tap(kernel) {
            Ok(false) => {}
            Ok(true) => found.repaired.push("the tap's settings"),
            Err(_) if !self.has_tap(kernel) => found.tap_lost = true,
            Err(refusal) => return Err(refusal),
        }
        let fingerprint = kernel
            .nft
            .fingerprint(&self.name)
            .or_refuse(format_args!("cannot read the table `{}`", self.name))?;
        if fingerprint.is_none() || fingerprint != self.fingerprint {
            self.write_table(kernel, self.up.firewall.clone())?;
            found.repaired.push("the packet filter's table");
        }
        if forwarding::repair().or_refuse("cannot switch forwarding on")? {
            found.repaired.push("forwarding");
        }
        Ok(found)
    }

    /// Whether the tap is there.
    pub(super) fn has_tap(&self, kernel: &Kernel) -> bool {
        matches!(kernel.routing.link(&self.tap), Ok(Some(_)))
    }

    /// Gives the bridge its settings and addresses; whether any was not there.
    fn keep_bridge(&self, kernel: &Kernel) -> Result<bool, Refusal> {
        let routing = &kernel.routing;
        let name = &self.name;
        let missing = || Refusal::new(RefusalCode::Failed, format!("`{name}` is gone"));
        let link = routing
            .link(name)
            .or_refuse(format_args!("cannot look at `{name}`"))?
            .ok_or_else(missing)?;
        let mut changed = false;
        if !link.up || link.mtu != self.up.mtu {
            self.guard_bridge()?;
            let change = LinkChange {
                up: Some(true),
                mtu: Some(self.up.mtu),
                ..LinkChange::default()
            };
            routing
                .change_link(link.index, &change)
                .or_refuse(format_args!("cannot set `{name}` up"))?;
            changed = true;
        }
        let present = routing.addresses().or_refuse("cannot list the addresses")?;
        for prefix in self.addresses() {
            let there = present
                .iter()
                .any(|a| a.index == link.index && a.prefix == prefix);
            if !there {
                routing
                    .add_address(link.index, prefix)
                    .or_refuse(format_args!("cannot give `{name}` the address {prefix}"))?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// What must hold before the bridge hears the guest: it learns nothing from it about the host's own routes.
    fn guard_bridge(&self) -> Result<(), Refusal> {
        let name = &self.name;
        let own_loopback = self.host_loopback.is_some_and(|to| to.is_loopback());
        for (setting, value) in [
            (format!("ipv6/conf/{name}/accept_ra"), 0),
            (format!("ipv6/conf/{name}/accept_redirects"), 0),
            (format!("ipv4/conf/{name}/accept_redirects"), 0),
            (format!("ipv4/conf/{name}/send_redirects"), 0),
            (
                format!("ipv4/conf/{name}/route_localnet"),
                i64::from(own_loopback),
            ),
        ] {
            sysctl::set_if_there(&setting, value)
                .or_refuse(format_args!("cannot set `{setting}`"))?;
        }
        Ok(())
    }

    fn addresses(&self) -> impl Iterator<Item = Prefix> {
        let v4 = Prefix {
            address: self.up.gateway.into(),
            length: self.up.subnet.bits,
        };
        let v6 = self.up.ipv6.map(|v6| Prefix {
            address: v6.gateway.into(),
            length: 64,
        });
        [Some(v4), v6].into_iter().flatten()
    }

    /// Makes the tap a port of the bridge; whether it was not.
    fn keep_tap(&self, kernel: &Kernel) -> Result<bool, Refusal> {
        let routing = &kernel.routing;
        let find = |name: &str| {
            routing
                .link(name)
                .or_refuse(format_args!("cannot look at `{name}`"))?
                .ok_or_else(|| Refusal::new(RefusalCode::Failed, format!("`{name}` is gone")))
        };
        let (bridge, tap) = (find(&self.name)?, find(&self.tap)?);
        if tap.up && tap.master == Some(bridge.index) && tap.mtu == self.up.mtu {
            return Ok(false);
        }
        // The tap itself takes part in nothing but the bridge.
        sysctl::set_if_there(&format!("ipv6/conf/{}/disable_ipv6", self.tap), 1)
            .or_refuse(format_args!("cannot switch IPv6 off for `{}`", self.tap))?;
        let change = LinkChange {
            mtu: Some(self.up.mtu),
            master: Some(bridge.index),
            up: Some(true),
            ..LinkChange::default()
        };
        routing
            .change_link(tap.index, &change)
            .or_refuse(format_args!("cannot connect `{}`", self.tap))?;
        Ok(true)
    }

    /// Removes everything, as far as it goes; returns what could not be removed.
    pub(super) fn take_down(self, kernel: &Kernel) -> Vec<Refusal> {
        let _lock = lock();
        self.remove(kernel)
    }

    fn remove(&self, kernel: &Kernel) -> Vec<Refusal> {
        let mut failures = Vec::new();
        let routing = &kernel.routing;
        // Others may have left us their duties meanwhile.
        let mut duties = self.mark.duties.clone();
        if let Ok(Some(link)) = routing.link(&self.name)
            && let Some(mark) = Mark::parse(&link.alias)
        {
            duties.merge(mark.duties);
        }
        for name in [&self.tap, &self.name] {
            failures.extend(delete_link(routing, name).err());
        }
        let table = kernel.nft.delete(&self.name);
        failures.extend(
            table
                .or_refuse(format_args!("cannot remove the table `{}`", self.name))
                .err(),
        );
        failures.extend(forwarding::settle(routing, duties).err());
        failures
    }
}

/// Makes a bridge with the first free name.
fn make_bridge(kernel: &Kernel, up: &Up, mark: &Mark) -> Result<String, Refusal> {
    for number in 0..MOST {
        let name = format!("hostel{number}");
        if create_bridge(&kernel.routing, &name, up, mark)?.is_some() {
            return Ok(name);
        }
    }
    Err(occupied("hostel0"))
}

/// Makes a bridge; `None` when the name is taken.
fn create_bridge(
    routing: &Routing,
    name: &str,
    up: &Up,
    mark: &Mark,
) -> Result<Option<()>, Refusal> {
    let [a, b, c, d] = up.gateway.octets();
    let made = routing.add_bridge(&Bridge {
        name,
        // Administered locally; the same for the same gateway, so that a guest that goes on knows it again.
        mac: Some([0x02, 0x68, a, b, c, d]),
        alias: &mark.to_string(),
    });
    match made {
        Ok(()) => Ok(Some(())),
        Err(error) if error.is_present() => Ok(None),
        Err(error) => Err(error).or_refuse(format_args!("cannot make the bridge `{name}`")),
    }
}

fn occupied(name: &str) -> Refusal {
    Refusal::new(
        RefusalCode::Failed,
        format!("the name `{name}` and those after it are taken by other interfaces"),
    )
}

/// Removes what servers left that were killed, and puts right what they had changed.
fn clean_orphans(kernel: &Kernel) -> Result<(), Refusal> {
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
fn collisions(routing: &Routing, up: &Up) -> Result<(), Refusal> {
    let mut wanted = vec![Prefix::from(up.subnet)];
    wanted.extend(up.ipv6.map(|v6| Prefix {
        address: v6.prefix.into(),
        length: 64,
    }));
    let routes = routing.routes().or_refuse("cannot list the routes")?;
    let addresses = routing.addresses().or_refuse("cannot list the addresses")?;
    let links = routing.links().or_refuse("cannot list the interfaces")?;
    let on = |index: u32| {
        links
            .iter()
            .find(|link| link.index == index)
            .map_or_else(String::new, |link| format!(" on `{}`", link.name))
    };
    let taken = routes
        .iter()
        // Ways to (nearly) everything, such as a VPN's two halves, are no networks.
        .filter(|route| route.destination.length >= 4)
        .map(|route| (route.destination, "the route to", route.index))
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

fn delete_link(routing: &Routing, name: &str) -> Result<(), Refusal> {
    let what = || format!("cannot remove `{name}`");
    match routing.link(name).or_refuse(what())? {
        None => Ok(()),
        Some(link) => match routing.delete_link(link.index) {
            Err(error) if !error.is_missing() => Err(error).or_refuse(what()),
            _ => Ok(()),
        },
    }
}

/// Says why there is no tap.
pub(super) fn no_tun(error: &io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::NoTun,
        format!("cannot open `{}`: {error}", tap::DEVICE),
    )
}

/// Keeps other servers of this network namespace from making and removing at the same time, while it is held.
///
/// The lock is on the namespace itself. Anyone may take it, so it is not waited for without end; without it, two servers
/// that start in the same instant may disagree about who switches forwarding off.
fn lock() -> Option<OwnedFd> {
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
