//! One port of the host: its sockets, and why there are none.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use rustix::io::Errno;

use super::{Book, Claim, Place, PortKey};
use crate::{ListenerKey, door::Door, holder::Holder, policy::FIRST_FREE_PORT, shared::Target};

/// A port that listeners of the guest claim.
#[derive(Default)]
pub(super) struct HostPort {
    pub(super) claims: BTreeSet<ListenerKey>,
    pub(super) doors: Vec<Door>,
    /// Why it has no sockets.
    pub(super) trouble: Option<Trouble>,
    /// Why some address beyond loopback has none.
    pub(super) optional: Vec<Trouble>,
}

/// A socket that could not be had.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) address: SocketAddr,
    pub(super) error: Errno,
    /// When the port is taken: by whom.
    pub(super) holder: Option<Holder>,
    /// When that was asked.
    pub(super) asked: Option<Instant>,
}

impl Trouble {
    fn new(address: SocketAddr, error: &io::Error, before: Option<&Self>) -> Self {
        let error = Errno::from_io_error(error).unwrap_or(Errno::IO);
        let before = before.filter(|b| b.address == address && b.error == error);
        Self {
            address,
            error,
            holder: before.and_then(|b| b.holder.clone()),
            asked: before.and_then(|b| b.asked),
        }
    }

    /// Tells whether somebody else has the port.
    pub(super) fn is_taken(&self) -> bool {
        self.error == Errno::ADDRINUSE
    }
}

/// What others can see of a port.
pub(super) type Summary = (Vec<SocketAddr>, Vec<(SocketAddr, Errno)>);

impl HostPort {
    /// Tells whether something that it should have is missing.
    pub(super) fn wants_more(&self) -> bool {
        self.trouble.is_some() || !self.optional.is_empty()
    }

    pub(super) fn troubles(&self) -> impl Iterator<Item = &Trouble> {
        self.trouble.iter().chain(&self.optional)
    }

    pub(super) fn troubles_mut(&mut self) -> impl Iterator<Item = &mut Trouble> {
        self.trouble.iter_mut().chain(&mut self.optional)
    }

    pub(super) fn summary(&self) -> Summary {
        let doors = self.doors.iter().map(|d| d.address).collect();
        (
            doors,
            self.troubles().map(|t| (t.address, t.error)).collect(),
        )
    }

    fn has(&self, address: SocketAddr) -> bool {
        self.doors.iter().any(|door| door.address == address)
    }
}

impl Book {
    /// Brings the sockets of these ports to what the claims ask for.
    pub(super) fn settle(&mut self, mut dirty: BTreeSet<PortKey>) {
        // A refused port sends its listeners to other ports, each at most once.
        while let Some(key) = dirty.pop_first() {
            self.settle_port(key, &mut dirty);
        }
    }

    fn settle_port(&mut self, key: PortKey, dirty: &mut BTreeSet<PortKey>) {
        let must = self.addresses(key.scope);
        let may = self.optional_addresses(key.scope);
        let Some(port) = self.ports.get_mut(&key) else {
            return;
        };
        if port.claims.is_empty() {
            self.ports.remove(&key);
            return;
        }
        port.doors
            .retain(|d| must.contains(&d.address.ip()) || may.contains(&d.address.ip()));
        let before = port.trouble.take();
        let mut optional = std::mem::take(&mut port.optional);
        optional.retain(|t| may.contains(&t.address.ip()));

        let opened = match self.owner(key, false) {
            Some(target) => self.open_all(key, &must, &target, before.as_ref(), &optional),
            None => Ok(Vec::new()),
        };
        let mut missing = match opened {
            Ok(missing) => missing,
            Err(trouble) => {
                let low = trouble.error == Errno::ACCESS && key.port < FIRST_FREE_PORT;
                if let Some(port) = self.ports.get_mut(&key) {
                    port.doors.clear();
                    port.trouble = Some(trouble);
                }
                if low && !self.refused.contains(&key.port) {
                    self.refuse(key, dirty);
                    dirty.insert(key);
                }
                return;
            }
        };
        for address in may.into_iter().map(|a| key.at(a)) {
            if let Some(target) = self.owner(key, address.is_ipv6())
                && let Err(e) = self.open_one(key, address, &target)
            {
                let before = optional.iter().find(|t| t.address == address);
                missing.push(Trouble::new(address, &e, before));
            }
        }
        let routes: Vec<_> = [false, true].map(|ipv6| self.owner(key, ipv6)).into();
        if let Some(port) = self.ports.get_mut(&key) {
            port.optional = missing;
            for door in &port.doors {
                if let Some(target) = &routes[usize::from(door.address.is_ipv6())] {
                    door.lead_to(target);
                }
            }
        }
    }

    /// Tells whether a port can be had, and takes it if so: it will be claimed at once.
    pub(super) fn can_open(&mut self, key: PortKey, target: &Arc<Target>) -> bool {
        let must = self.addresses(key.scope);
        self.ports.entry(key).or_default();
        let opened = self.open_all(key, &must, target, None, &[]).is_ok();
        if !opened {
            self.ports.remove(&key);
        }
        opened
    }

    /// Opens the sockets that must be had: all of them, or none. A family that the host does not have is no obstacle, as
    /// long as there is another. A port that is open already stays so; then what is missing is returned.
    ///
    /// They lead to the owners of the port, or to `target` as long as there are none.
    fn open_all(
        &mut self,
        key: PortKey,
        addresses: &[IpAddr],
        target: &Arc<Target>,
        before: Option<&Trouble>,
        missing: &[Trouble],
    ) -> Result<Vec<Trouble>, Trouble> {
        let addresses: Vec<SocketAddr> = addresses.iter().map(|a| key.at(*a)).collect();
        let is_open = addresses.iter().any(|a| self.ports[&key].has(*a));
        let mut absent = Vec::new();
        let mut failed = Vec::new();
        for &address in &addresses {
            let before = missing.iter().chain(before).find(|t| t.address == address);
            let to = self.owner(key, address.is_ipv6());
            match self.open_one(key, address, to.as_ref().unwrap_or(target)) {
                Ok(()) => {}
                Err(e) if is_absent(&e) => absent.push(Trouble::new(address, &e, before)),
                Err(e) => failed.push(Trouble::new(address, &e, before)),
            }
        }
        if is_open {
            return Ok(failed);
        }
        if failed.is_empty() && absent.len() == addresses.len() {
            failed = absent;
        }
        if failed.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(port) = self.ports.get_mut(&key) {
            port.doors.retain(|d| !addresses.contains(&d.address));
        }
        Err(failed.swap_remove(0))
    }

    /// Opens one socket, if it is not there.
    fn open_one(
        &mut self,
        key: PortKey,
        address: SocketAddr,
        target: &Arc<Target>,
    ) -> io::Result<()> {
        if self.ports[&key].has(address) {
            return Ok(());
        }
        let first = PortKey {
            scope: super::Scope::Shared,
            ..key
        };
        let same_number = self
            .ports
            .range(first..)
            .take_while(|(k, _)| (k.port, k.protocol) == (key.port, key.protocol));
        let mut ours = Vec::new();
        for door in same_number.flat_map(|(_, port)| &port.doors) {
            let (a, b) = (door.address.ip(), address.ip());
            if a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()) {
                ours.extend(door.duplicate()?);
            }
        }
        let target = Arc::clone(target);
        let door = Door::open(&self.shared, key.protocol, address, target, &ours)?;
        if let Some(port) = self.ports.get_mut(&key) {
            port.doors.push(door);
        }
        Ok(())
    }

    /// Returns the listener that one family of a port leads to: who has the better right to the port, else who speaks the
    /// family, else who was first.
    pub(super) fn owner(&self, key: PortKey, ipv6: bool) -> Option<Arc<Target>> {
        let claims = &self.ports.get(&key)?.claims;
        claims
            .iter()
            .filter_map(|k| {
                let known = self.known.get(k)?;
                let Place::At(at, claim) = known.place else {
                    return None;
                };
                (at == key).then(|| {
                    let claim = claim.min(Claim::Elsewhere);
                    (
                        claim,
                        !known.target.listener.speaks(ipv6),
                        known.number,
                        known,
                    )
                })
            })
            .min_by_key(|(claim, foreign, number, _)| (*claim, *foreign, *number))
            .map(|(_, _, _, known)| Arc::clone(&known.target))
    }
}

/// Tells whether the host does not have the address, or not its family.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT)
    )
}
