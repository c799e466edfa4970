//! What the guest is told of the host, and what changes with the host.

use std::{
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{Host, host::LEAST_MTU};

/// What the guest is told of the host, as it is now.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// The largest packet, where it does not follow the host's.
    fixed: Option<u32>,
    now: Mutex<Now>,
}

#[derive(Clone, Copy, Debug)]
struct Now {
    mtu: u32,
    address: Option<Ipv4Addr>,
}

impl Now {
    fn of(host: &Host) -> Self {
        Self {
            // A host that could not be read has none.
            mtu: host.mtu.max(LEAST_MTU),
            address: host.address,
        }
    }
}

impl Surroundings {
    /// Begins with a host as it is now. `fixed` is the largest packet where that does not follow the host's.
    pub(super) fn new(fixed: Option<u32>, host: &Host) -> Self {
        Self {
            fixed,
            now: Mutex::new(Now::of(host)),
        }
    }

    /// Takes in what the host is like now.
    pub(super) fn follow(&self, host: &Host) {
        *self.lock() = Now::of(host);
    }

    /// Returns the largest packet, in bytes.
    pub(super) fn mtu(&self) -> u32 {
        self.fixed.unwrap_or(self.lock().mtu)
    }

    /// Returns the host's own address towards the world.
    pub(super) fn address(&self) -> Option<Ipv4Addr> {
        self.lock().address
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NAT-12.
    #[test]
    fn the_largest_packet_follows_the_host_where_it_is_not_fixed() {
        let host = |mtu, last| Host {
            mtu,
            address: Some(Ipv4Addr::new(192, 0, 2, last)),
            ..Host::default()
        };
        for (fixed, wanted) in [(None, [1500, 1400, 1280]), (Some(65520), [65520; 3])] {
            let around = Surroundings::new(fixed, &host(1500, 1));
            let mut seen = vec![around.mtu()];
            around.follow(&host(1400, 2));
            seen.push(around.mtu());
            assert_eq!(around.address(), Some(Ipv4Addr::new(192, 0, 2, 2)));
            around.follow(&Host::default());
            seen.push(around.mtu());
            assert_eq!((seen.as_slice(), around.address()), (&wanted[..], None));
        }
    }
}
