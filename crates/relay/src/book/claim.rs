//! Which port of the host a listener claims.

use std::{collections::BTreeSet, sync::Arc};

use super::{Book, Claim, MovedKey, Place, PortKey, Scope};
use crate::{
    ListenerKey,
    policy::{self, Decision, FIRST_FREE_PORT},
    shared::Target,
};

/// How many ports are tried for a listener that any port would do.
const TRIES: usize = 256;

impl Book {
    /// Decides where a listener is to appear, and enters its claim.
    pub(super) fn place(&mut self, key: &ListenerKey, dirty: &mut BTreeSet<PortKey>) {
        let target = Arc::clone(&self.known[key].target);
        let own = PortKey {
            port: key.port,
            protocol: key.protocol,
            scope: Scope::of(key.room),
        };
        let moved = MovedKey {
            scope: own.scope,
            protocol: key.protocol,
            port: key.port,
            distro: target.listener.distro,
        };
        let decision = policy::decide(&target.listener, &self.settings);
        let full = self.relayed >= self.shared.limits.listeners;
        let place = match decision {
            Decision::Off(why) => Place::Off(why),
            _ if full => Place::Full,
            Decision::Same if self.refused.contains(&key.port) => {
                Place::At(self.free_port(own, moved, &target), Claim::Low)
            }
            Decision::Same => Place::At(own, Claim::Own),
            Decision::Remap(Some(port)) => Place::At(PortKey { port, ..own }, Claim::Named),
            Decision::Remap(None) => {
                Place::At(self.free_port(own, moved, &target), Claim::Elsewhere)
            }
        };
        match place {
            Place::Off(_) => {}
            Place::Full => self.full += 1,
            Place::At(port, claim) => {
                self.relayed += 1;
                if claim.movable() {
                    self.moved.insert(moved, port.port);
                }
                self.ports.entry(port).or_default().claims.insert(*key);
                dirty.insert(port);
                if !claim.movable() {
                    self.make_way(port, dirty);
                }
            }
        }
        self.set_place(key, place);
    }

    /// Takes a listener's claim back.
    pub(super) fn unplace(&mut self, key: &ListenerKey, dirty: &mut BTreeSet<PortKey>) {
        let place = self.set_place(key, Place::Off(String::new()));
        match place {
            Place::Off(_) => {}
            Place::Full => self.full -= 1,
            Place::At(port, claim) => {
                self.relayed -= 1;
                if let Some(port) = self.ports.get_mut(&port) {
                    port.claims.remove(key);
                }
                dirty.insert(port);
                if claim.movable() {
                    self.forget_moves();
                }
            }
        }
    }

    fn set_place(&mut self, key: &ListenerKey, place: Place) -> Place {
        match self.known.get_mut(key) {
            Some(known) => std::mem::replace(&mut known.place, place),
            None => place,
        }
    }

    /// Finds a port for a listener that cannot have its own, or shall not.
    fn free_port(&mut self, own: PortKey, moved: MovedKey, target: &Arc<Target>) -> PortKey {
        if let Some(&port) = self.moved.get(&moved) {
            return PortKey { port, ..own };
        }
        let first = policy::near(own.port);
        let mut port = first;
        for _ in 0..TRIES {
            let key = PortKey { port, ..own };
            let claimed = self.ports.get(&key).is_some_and(|p| !p.claims.is_empty());
            if port != own.port && port >= FIRST_FREE_PORT && !claimed && self.can_open(key, target)
            {
                return key;
            }
            port = policy::after(port);
        }
        // It waits for the first one.
        PortKey { port: first, ..own }
    }

    /// Sends listeners away from a port that somebody else must have, and that they only happen to be at.
    fn make_way(&mut self, port: PortKey, dirty: &mut BTreeSet<PortKey>) {
        let guests: Vec<ListenerKey> = self.ports[&port]
            .claims
            .iter()
            .filter(|key| match self.known.get(key).map(|k| &k.place) {
                Some(Place::At(at, claim)) => *at == port && claim.movable(),
                _ => false,
            })
            .copied()
            .collect();
        for key in &guests {
            let here = (port.port, port.protocol, port.scope);
            self.moved
                .retain(|of, at| (*at, of.protocol, of.scope) != here);
            self.unplace(key, dirty);
        }
        for key in &guests {
            self.place(key, dirty);
        }
    }

    /// Moves the listeners that claim a low port by its number, which the kernel refused.
    pub(super) fn refuse(&mut self, port: PortKey, dirty: &mut BTreeSet<PortKey>) {
        self.refused.insert(port.port);
        let own: Vec<ListenerKey> = self.ports[&port]
            .claims
            .iter()
            .filter(|key| {
                let place = self.known.get(key).map(|k| &k.place);
                matches!(place, Some(Place::At(_, Claim::Own)))
            })
            .copied()
            .collect();
        for key in &own {
            self.unplace(key, dirty);
            self.place(key, dirty);
        }
    }

    /// Forgets the places of moved listeners that are gone.
    pub(super) fn forget_moves(&mut self) {
        let Self {
            moved,
            ports,
            known,
            ..
        } = self;
        moved.retain(|of, &mut port| {
            let key = PortKey {
                port,
                protocol: of.protocol,
                scope: of.scope,
            };
            let claims = ports.get(&key).map(|p| &p.claims);
            claims.into_iter().flatten().any(|key| {
                key.port == of.port
                    && known
                        .get(key)
                        .is_some_and(|k| k.target.listener.distro == of.distro)
            })
        });
    }
}
