//! Which listener of the guest has which port of the host, and the sockets for that.
//!
//! Everything here is quick and does not wait. A change touches the ports it concerns and no other: what stays, stays open.

mod claim;
mod lines;
mod port;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hostel_model::DistroId;

use crate::{
    Entry, GuestListener, ListenerKey, Protocol, Room, Settings,
    holder::{Holder, Wanted},
    shared::{Shared, Tally, Target, lock},
};
use port::HostPort;

/// How old the answer to "who has the port?" may be.
const HOLDER_AGE: Duration = Duration::from_secs(5);

/// Listeners that are known at all, for each one that may be relayed.
const KNOWN_PER_RELAYED: usize = 4;

/// Whose ports of the host these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Scope {
    /// Those of the addresses that the relay listens on.
    Shared,
    /// Those of a room's own address.
    Room(Ipv4Addr),
}

/// One port of the host. The number comes first: sockets of one number may be in each other's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct PortKey {
    port: u16,
    protocol: Protocol,
    scope: Scope,
}

/// Listeners that are moved together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct MovedKey {
    scope: Scope,
    protocol: Protocol,
    port: u16,
    distro: Option<DistroId>,
}

/// By which right a listener claims a port of the host. The lower one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// A rule names the port.
    Named,
    /// It is the listener's own number.
    Own,
    /// A rule wants it somewhere else.
    Elsewhere,
    /// Its own number is low, and the daemon has no right to it.
    Low,
}

impl Claim {
    /// Tells whether any other port would do as well.
    fn movable(self) -> bool {
        matches!(self, Self::Elsewhere | Self::Low)
    }
}

/// Where a listener is to appear.
enum Place {
    /// Nowhere, for this reason.
    Off(String),
    /// Nowhere: there are as many as there may be.
    Full,
    /// At this port of the host.
    At(PortKey, Claim),
}

/// A listener of the guest.
struct Known {
    target: Arc<Target>,
    /// Who came first keeps what both want.
    number: u64,
    place: Place,
}

/// All of it.
pub(crate) struct Book {
    shared: Arc<Shared>,
    settings: Settings,
    known: BTreeMap<ListenerKey, Known>,
    ports: BTreeMap<PortKey, HostPort>,
    /// Where moved listeners went, so that they stay there.
    moved: HashMap<MovedKey, u16>,
    /// Low ports that the kernel refused.
    refused: HashSet<u16>,
    relayed: usize,
    full: usize,
    /// Listeners that are not even known.
    beyond: usize,
    number: u64,
    closed: bool,
}

impl Book {
    /// Begins with nothing.
    pub(crate) fn new(shared: Arc<Shared>, settings: Settings) -> Self {
        *lock(&shared.firewall) = settings.firewall.clone().into();
        Self {
            shared,
            settings,
            known: BTreeMap::new(),
            ports: BTreeMap::new(),
            moved: HashMap::new(),
            refused: HashSet::new(),
            relayed: 0,
            full: 0,
            beyond: 0,
            number: 0,
            closed: false,
        }
    }

    /// Takes the whole list.
    pub(crate) fn reset(&mut self, listeners: Vec<GuestListener>) {
        let stay: HashSet<ListenerKey> = listeners.iter().map(GuestListener::key).collect();
        let gone = self.known.keys().filter(|k| !stay.contains(k));
        let gone: Vec<ListenerKey> = gone.copied().collect();
        self.beyond = 0;
        self.change(listeners, &gone);
    }

    /// Takes what changed.
    pub(crate) fn change(&mut self, mut added: Vec<GuestListener>, removed: &[ListenerKey]) {
        if self.closed {
            return;
        }
        let mut dirty = BTreeSet::new();
        let back: HashSet<ListenerKey> = added.iter().map(GuestListener::key).collect();
        for key in removed {
            // What goes and comes in one message has not gone.
            if !back.contains(key) && self.known.contains_key(key) {
                self.unplace(key, &mut dirty);
                self.known.remove(key);
            }
        }
        // Of those that come together, the general ones first: they are what people mean.
        added.sort_by_key(|l| {
            let address = l.address;
            (!address.is_unspecified(), !address.is_loopback(), l.key())
        });
        for listener in added {
            self.add(listener, &mut dirty);
        }
        self.promote(&mut dirty);
        self.settle(dirty);
    }

    /// Takes other settings.
    pub(crate) fn set_settings(&mut self, settings: Settings) {
        if self.closed {
            return;
        }
        *lock(&self.shared.firewall) = settings.firewall.clone().into();
        self.settings = settings;
        // Rights may have changed as well.
        self.refused.clear();
        let moved = self.moved.clone();
        let mut dirty: BTreeSet<PortKey> = self.ports.keys().copied().collect();
        let mut keys: Vec<_> = self.known.iter().map(|(k, v)| (v.number, *k)).collect();
        keys.sort_unstable();
        for (_, key) in &keys {
            self.unplace(key, &mut dirty);
        }
        self.moved = moved;
        for (_, key) in &keys {
            self.place(key, &mut dirty);
        }
        self.settle(dirty);
        self.forget_moves();
    }

    fn add(&mut self, listener: GuestListener, dirty: &mut BTreeSet<PortKey>) {
        let key = listener.key();
        if let Some(known) = self.known.get_mut(&key) {
            let same_owner = known.target.listener.distro == listener.distro
                && known.target.listener.dual_stack == listener.dual_stack;
            if known.target.listener != listener {
                known.target = Arc::new(Target {
                    listener,
                    tally: Arc::clone(&known.target.tally),
                });
            }
            if let Place::At(port, _) = known.place {
                dirty.insert(port);
            }
            if !same_owner {
                // Other rules may hold for it.
                self.unplace(&key, dirty);
                self.place(&key, dirty);
            }
            return;
        }
        if self.known.len() >= self.shared.limits.listeners * KNOWN_PER_RELAYED {
            self.beyond += 1;
            return;
        }
        self.number += 1;
        let known = Known {
            target: Arc::new(Target {
                listener,
                tally: Arc::new(Tally::default()),
            }),
            number: self.number,
            place: Place::Off(String::new()),
        };
        self.known.insert(key, known);
        self.place(&key, dirty);
    }

    /// Gives those that had no room the room that others left.
    fn promote(&mut self, dirty: &mut BTreeSet<PortKey>) {
        if self.full == 0 || self.relayed >= self.shared.limits.listeners {
            return;
        }
        let mut waiting: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| matches!(known.place, Place::Full))
            .map(|(key, known)| (known.number, *key))
            .collect();
        waiting.sort_unstable();
        let free = self.shared.limits.listeners - self.relayed;
        for (_, key) in waiting.iter().take(free) {
            self.unplace(key, dirty);
            self.place(key, dirty);
        }
    }

    /// Tries again what could not be had. Returns whether something changed, and whether something is still wanted.
    pub(crate) fn retry(&mut self) -> (bool, bool) {
        let wanted: BTreeSet<_> = self.unsettled().collect();
        let seen = |book: &Self| -> Vec<_> {
            let port = |key| book.ports.get(key).map(HostPort::summary);
            wanted.iter().map(port).collect()
        };
        let before = seen(self);
        self.settle(wanted.clone());
        (before != seen(self), self.is_unsettled())
    }

    /// Tells whether something could not be had.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.unsettled().next().is_some()
    }

    fn unsettled(&self) -> impl Iterator<Item = PortKey> + '_ {
        self.ports
            .iter()
            .filter(|(_, port)| port.wants_more())
            .map(|(key, _)| *key)
    }

    /// Returns the taken ports whose holder is not known, or not known any more.
    pub(crate) fn holders_wanted(&self, now: Instant) -> Vec<Wanted> {
        self.ports
            .iter()
            .flat_map(|(key, port)| port.troubles().map(move |t| (key.protocol, t)))
            .filter(|(_, trouble)| {
                trouble.is_taken() && trouble.asked.is_none_or(|at| now - at >= HOLDER_AGE)
            })
            .map(|(protocol, trouble)| (protocol, trouble.address))
            .collect()
    }

    /// Notes who has them. Returns whether that is news.
    pub(crate) fn set_holders(
        &mut self,
        asked: &[Wanted],
        found: &HashMap<Wanted, Holder>,
        now: Instant,
    ) -> bool {
        let asked: HashSet<&Wanted> = asked.iter().collect();
        let mut news = false;
        for (key, port) in &mut self.ports {
            for trouble in port.troubles_mut() {
                let wanted = (key.protocol, trouble.address);
                if trouble.is_taken() && asked.contains(&wanted) {
                    let holder = found.get(&wanted).cloned();
                    news |= holder != trouble.holder;
                    trouble.holder = holder;
                    trouble.asked = Some(now);
                }
            }
        }
        news
    }

    /// Returns the ledger.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        lines::entries(self)
    }

    /// Returns whose listeners have connections.
    pub(crate) fn connected(&self) -> HashSet<Option<DistroId>> {
        self.known
            .values()
            .filter(|known| known.target.tally.connections() > 0)
            .map(|known| known.target.listener.distro)
            .collect()
    }

    /// Returns what the user should be warned of.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let open: Vec<_> = self.extra_addresses().map(|a| a.to_string()).collect();
        if !open.is_empty() && self.settings.forwarding {
            warnings.push(format!(
                "the relay listens on {}, not only on loopback: other machines reach the ports of the guest as far as the rules of the firewall let them",
                open.join(", ")
            ));
        }
        let limits = self.shared.limits;
        if self.full > 0 {
            warnings.push(format!(
                "{} ports of the guest are relayed, no more are; {} wait",
                limits.listeners, self.full
            ));
        }
        if self.beyond > 0 {
            warnings.push(format!(
                "the guest has more listeners than the ledger takes; {} are not shown",
                self.beyond
            ));
        }
        warnings
    }

    /// Closes every socket, for good.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.ports.clear();
        self.known.clear();
    }

    /// Returns the addresses of the host, for one owner, that must all be had: the port is one, whatever the family.
    fn addresses(&self, scope: Scope) -> Vec<IpAddr> {
        match scope {
            Scope::Room(local) => vec![local.into()],
            Scope::Shared => {
                let all = |any: IpAddr, one: IpAddr| {
                    if self.settings.listen.contains(&any) {
                        any
                    } else {
                        one
                    }
                };
                vec![
                    all(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
                    all(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
                ]
            }
        }
    }

    /// Returns the addresses of `listen` beyond loopback.
    fn extra_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let list = &self.settings.listen;
        list.iter()
            .enumerate()
            .filter(|(i, a)| !a.is_loopback() && !list[..*i].contains(a))
            .map(|(_, a)| *a)
    }

    /// Returns those that are tried beside the ones that must be had.
    fn optional_addresses(&self, scope: Scope) -> Vec<IpAddr> {
        if scope != Scope::Shared {
            return Vec::new();
        }
        let covered = |a: &IpAddr| {
            let any: IpAddr = match a {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            self.settings.listen.contains(&any)
        };
        // Another address of loopback, such as 127.0.0.5, is one as well.
        let local =
            self.settings.listen.iter().copied().filter(|a| {
                a.is_loopback() && *a != Ipv4Addr::LOCALHOST && *a != Ipv6Addr::LOCALHOST
            });
        let mut all: Vec<_> = self.extra_addresses().chain(local).collect();
        all.retain(|a| !covered(a));
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl PortKey {
    fn at(self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.port)
    }
}

impl Scope {
    fn of(room: Option<Room>) -> Self {
        room.map_or(Self::Shared, |room| Self::Room(room.local))
    }
}
