//! The network itself: made, kept as it was made, and taken down.

use std::{io, net::Ipv4Addr, os::fd::OwnedFd};

use hostel_model::firewall::Rule;
use hostel_netlink::{
    Bridge, LinkChange, Prefix, Routing,
    nft::{Fingerprint, Nft, Table},
};
use hostel_sys::tap;

use super::{
    fail::OrRefuse,
    forwarding,
    mark::{Mark, Owner},
    rules, surroundings, sysctl,
};
use crate::protocol::{Refusal, RefusalCode, Up};

/// More networks of ours than anybody has on one host.
const MOST: u32 = 1000;
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
    /// The open file behind the tap, which the VM holds as well.
    device: OwnedFd,
    mark: Mark,
    host_loopback: Option<Ipv4Addr>,
    fingerprint: Option<Fingerprint>,
}

/// What [`Network::repair`] found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What was put back, in a few words.
    pub(super) repaired: Vec<&'static str>,
    /// The tap is not where it was, and no other can be put in its place.
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
        let _lock = surroundings::lock();
        let device = tap::open().map_err(|error| no_tun(&error))?;
        surroundings::clean_orphans(kernel)?;
        surroundings::collisions(&kernel.routing, &up)?;
        let mark = Mark {
            owner: Owner::myself().or_refuse("cannot find out who I am")?,
            duties: forwarding::wanted(&kernel.routing, up.ipv6.is_some())?,
        };
        let name = make_bridge(kernel, &up, &mark)?;
        let mut network = Self {
            tap: format!("{name}-tap"),
            device,
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
        tap::create(&self.device, &self.tap)
            .or_refuse(format_args!("cannot make `{}`", self.tap))?;
        self.keep_tap(kernel)?;
        forwarding::enable(&self.name, self.up.ipv6.is_some(), &self.mark.duties)?;
        self.device
            .try_clone()
            .or_refuse("cannot hand the tap over")
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
        // The VM's end of it is the same open file: to the VM it is as if a cable had been out for a moment.
        let lost = !self.has_tap(kernel);
        if lost && tap::create(&self.device, &self.tap).is_ok() {
            tap::suit_virtio_net(&self.device)
                .or_refuse(format_args!("cannot set `{}` up", self.tap))?;
            found.repaired.push("the tap");
        }
        match self.keep_tap(kernel) {
            Ok(true) if !lost => found.repaired.push("the tap's settings"),
            Ok(_) => {}
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
        let _lock = surroundings::lock();
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
            failures.extend(surroundings::delete_link(routing, name).err());
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

/// Says why there is no tap.
pub(super) fn no_tun(error: &io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::NoTun,
        format!("cannot open `{}`: {error}", tap::DEVICE),
    )
}
