//! The guest's listening sockets, checked and handed to the relay.
//!
//! The guest is not trusted: what it says is counted, bounded and held against what the host knows. It can name ports; on
//! which addresses of the host they appear is the host's alone.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use hostel_model::DistroId;
use hostel_proto::v1;
use hostel_relay::{GuestListener, ListenerKey, Protocol, Room};
use tokio::time::Instant;

use super::{Live, pause};
use crate::vm::Running;

/// The most listeners that are taken from the guest; more are left out, and the user is told.
pub(super) const MAX_LISTENERS: usize = 4096;

/// The most listeners in one message.
const MAX_CHANGES: usize = 16_384;

/// The longest name of a process that is kept, in characters.
const MAX_PROCESS: usize = 64;

/// How many messages a second are taken in the long run; more wait in the guest.
const RATE: u32 = 100;

/// How many may come at once.
const BURST: u32 = 200;

/// How long to wait before ports are asked for again after the guest ended the stream.
const AGAIN: Duration = Duration::from_secs(1);

/// What of a listener the host vouches for.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) id: DistroId,
    pub(super) name: String,
    /// Its own network, when it was started with one.
    pub(super) room: Option<Room>,
}

/// What is known of the guest's listeners.
#[derive(Debug, Default)]
pub(super) struct Known {
    keys: HashSet<ListenerKey>,
    /// How many were left out since the last reset.
    left_out: u64,
}

impl Known {
    /// Checks a message. Returns whether all before it is void, what is new, and what is gone.
    pub(super) fn take(
        &mut self,
        change: v1::PortsChanged,
        owners: &[Owner],
        wants_udp: impl Fn(u16) -> bool,
    ) -> Option<(bool, Vec<GuestListener>, Vec<ListenerKey>)> {
        if change.added.len() > MAX_CHANGES || change.removed.len() > MAX_CHANGES {
            return None;
        }
        if change.reset {
            *self = Self::default();
        }
        let mut removed = Vec::new();
        for listener in &change.removed {
            if let Some(l) = check(listener, owners, &wants_udp)
                && self.keys.remove(&l.key())
            {
                removed.push(l.key());
            }
        }
        let mut added = Vec::new();
        for listener in &change.added {
            let Some(listener) = check(listener, owners, &wants_udp) else {
                self.left_out += 1;
                continue;
            };
            if !self.keys.contains(&listener.key()) && self.keys.len() >= MAX_LISTENERS {
                self.left_out += 1;
                continue;
            }
            self.keys.insert(listener.key());
            added.push(listener);
        }
        Some((change.reset, added, removed))
    }

    /// Says what was left out, for the user.
    pub(super) fn warning(&self) -> Option<String> {
        (self.keys.len() >= MAX_LISTENERS && self.left_out > 0).then(|| {
            format!("more than {MAX_LISTENERS} ports listen in the VM; the rest does not appear on the host")
        })
    }
}

/// Checks one listener; `None` for one that makes no sense or that the host knows nothing of.
fn check(
    listener: &v1::Listener,
    owners: &[Owner],
    wants_udp: impl Fn(u16) -> bool,
) -> Option<GuestListener> {
    let port = u16::try_from(listener.port).ok().filter(|p| *p > 0)?;
    let protocol = match listener.protocol.as_str() {
        "tcp" => Protocol::Tcp,
        "udp" if wants_udp(port) => Protocol::Udp,
        _ => return None,
    };
    let address: IpAddr = listener.address.parse().ok()?;
    if address.is_multicast() {
        return None;
    }
    let owner = |id: &str| {
        let id = id.parse::<DistroId>().ok()?;
        owners.iter().find(|o| o.id == id)
    };
    let distro = match listener.distro.as_str() {
        "" => None,
        id => Some(owner(id)?),
    };
    let room = match listener.room.as_str() {
        "" => None,
        id => {
            let landlord = owner(id)?;
            // Only the one who lives there.
            if distro.is_some_and(|d| d.id != landlord.id) {
                return None;
            }
            Some(landlord.room?)
        }
    };
    let distro = distro.or_else(|| owner(&listener.room));
    Some(GuestListener {
        distro: distro.map(|d| d.id),
        distro_name: distro.map(|d| d.name.clone()).unwrap_or_default(),
        room,
        protocol,
        address,
        port,
        dual_stack: listener.dual_stack && address.is_ipv6() && address.is_unspecified(),
        pid: listener.pid,
        process: listener
            .process
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_PROCESS)
            .collect(),
    })
}

/// Lets so many messages pass in the long run.
struct Pace {
    budget: u32,
    since: Instant,
}

impl Pace {
    fn new() -> Self {
        Self {
            budget: BURST,
            since: Instant::now(),
        }
    }

    /// Waits until one more may pass.
    async fn wait(&mut self) {
        let earned = self.since.elapsed().as_millis() * u128::from(RATE) / 1000;
        if let Some(earned) = u32::try_from(earned).ok().filter(|n| *n > 0) {
            self.budget = self.budget.saturating_add(earned).min(BURST);
            self.since = Instant::now();
        }
        if self.budget == 0 {
            tokio::time::sleep_until(self.since + Duration::from_secs(1) / RATE).await;
            self.since = Instant::now();
            self.budget = 1;
        }
        self.budget -= 1;
    }
}

impl Live {
    /// Follows the guest's listeners until the VM ends.
    pub(super) async fn follow_ports(self: Arc<Self>, running: Arc<Running>) {
        let mut agents = running.agents();
        let mut udp = self.udp.subscribe();
        loop {
            agents.mark_unchanged();
            udp.mark_unchanged();
            let wanted = udp.borrow().clone();
            let why = tokio::select! {
                () = running.gone.cancelled() => return,
                why = self.ports_of(&running, &wanted) => why,
                // Others are to be told of: all is asked for anew, and what is known stays until then.
                changed = udp.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            tracing::debug!(why, "the guest's ports are not followed");
            // Whatever was known is not known any more.
            self.relay.reset(Vec::new());
            tokio::select! {
                () = running.gone.cancelled() => return,
                // A restarted agent is asked at once.
                _ = agents.changed() => {}
                () = pause(AGAIN) => {}
            }
        }
    }

    /// Follows one stream to its end.
    async fn ports_of(&self, running: &Running, udp: &BTreeSet<u16>) -> String {
        let request = v1::WatchPortsRequest {
            udp_ports: udp.iter().map(|p| (*p).into()).collect(),
        };
        let mut changes = match running.agent().watch_ports(request).await {
            Ok(changes) => changes.into_inner(),
            Err(status) => return status.message().chars().take(256).collect(),
        };
        let mut known = Known::default();
        let mut pace = Pace::new();
        loop {
            pace.wait().await;
            let change = match changes.next().await {
                Some(Ok(change)) => change,
                Some(Err(status)) => return status.message().chars().take(256).collect(),
                None => return "the stream ended".to_owned(),
            };
            let Some(owners) = self.owners() else {
                return "the engine is gone".to_owned();
            };
            let taken = known.take(change, &owners, |port| udp.contains(&port));
            self.say("ports", known.warning());
            match taken {
                Some((true, added, _)) => self.relay.reset(added),
                Some((false, added, removed)) => self.relay.change(added, &removed),
                None => return "the guest sent too much at once".to_owned(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn owners() -> Vec<Owner> {
        let owner = |name: &str, room: Option<u8>| Owner {
            id: DistroId::new_random(),
            name: name.to_owned(),
            room: room.map(|n| {
                let address = Ipv4Addr::new(172, 19, 133, n);
                Room {
                    address,
                    local: super::super::local_address(address),
                }
            }),
        };
        vec![owner("deb", None), owner("alone", Some(7))]
    }

    fn tcp(address: &str, port: u32) -> v1::Listener {
        v1::Listener {
            protocol: "tcp".to_owned(),
            address: address.to_owned(),
            port,
            ..v1::Listener::default()
        }
    }

    fn added(listeners: Vec<v1::Listener>) -> v1::PortsChanged {
        v1::PortsChanged {
            added: listeners,
            ..v1::PortsChanged::default()
        }
    }

    #[test]
    fn good_listeners_are_taken_once_and_go() {
        let owners = owners();
        let mut known = Known::default();
        let mine = v1::Listener {
            distro: owners[0].id.to_string(),
            ..tcp("0.0.0.0", 80)
        };
        let roomy = v1::Listener {
            distro: owners[1].id.to_string(),
            room: owners[1].id.to_string(),
            dual_stack: true,
            ..tcp("::", 3000)
        };
        let change = added(vec![mine.clone(), roomy, tcp("127.0.0.1", 5)]);
        let (reset, new, _) = known.take(change, &owners, |_| false).unwrap();
        assert!(!reset);
        assert_eq!((new.len(), new[0].distro_name.as_str()), (3, "deb"));
        assert_eq!(new[1].room, owners[1].room);
        assert!(new[1].dual_stack && new[2].distro.is_none());
        let gone = v1::PortsChanged {
            removed: vec![mine.clone(), mine],
            ..v1::PortsChanged::default()
        };
        let (_, _, removed) = known.take(gone, &owners, |_| false).unwrap();
        assert_eq!(removed, [new[0].key()]);
    }

    /// The guest names ports; it chooses neither addresses of the host nor other distributions' rooms.
    #[test]
    fn nonsense_is_left_out() {
        let owners = owners();
        let (deb, alone) = (owners[0].id.to_string(), owners[1].id.to_string());
        let with = |distro: &str, room: &str| v1::Listener {
            distro: distro.to_owned(),
            room: room.to_owned(),
            ..tcp("0.0.0.0", 80)
        };
        for bad in [
            tcp("0.0.0.0", 0),
            tcp("0.0.0.0", 65_536),
            tcp("", 80),
            tcp("localhost", 80),
            tcp("224.0.0.1", 80),
            tcp("0.0.0.0:80", 80),
            v1::Listener {
                protocol: "udp".to_owned(),
                ..tcp("0.0.0.0", 54)
            },
            v1::Listener {
                protocol: "sctp".to_owned(),
                ..tcp("0.0.0.0", 53)
            },
            with("nobody", ""),
            with(&DistroId::new_random().to_string(), ""),
            // The one has no room, the other one's is not his.
            with(&deb, &deb),
            with(&deb, &alone),
            with("", &deb),
        ] {
            assert!(check(&bad, &owners, |p| p == 53).is_none(), "{bad:?}");
        }
        let long = v1::Listener {
            process: "\u{1b}[31m".repeat(1000),
            ..tcp("0.0.0.0", 80)
        };
        let taken = check(&long, &owners, |_| false).unwrap();
        assert_eq!(taken.process.chars().count(), MAX_PROCESS);
        assert!(!taken.process.contains('\u{1b}'));
        let lie = v1::Listener {
            dual_stack: true,
            ..tcp("0.0.0.0", 80)
        };
        assert!(!check(&lie, &owners, |_| false).unwrap().dual_stack);
    }

    #[test]
    fn listeners_are_limited_and_the_rest_is_told() {
        let mut known = Known::default();
        let many = (1..=u32::try_from(MAX_LISTENERS).unwrap() + 10)
            .map(|p| tcp("0.0.0.0", p))
            .collect();
        let (_, new, _) = known.take(added(many), &[], |_| false).unwrap();
        assert_eq!(new.len(), MAX_LISTENERS);
        assert!(known.warning().unwrap().contains("4096"));
        let again = v1::PortsChanged {
            reset: true,
            ..v1::PortsChanged::default()
        };
        assert!(known.take(again, &[], |_| false).unwrap().0);
        assert_eq!(known.warning(), None);
        let flood = vec![tcp("0.0.0.0", 1); MAX_CHANGES + 1];
        assert!(known.take(added(flood), &[], |_| false).is_none());
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_guest_says_is_bounded(
            listeners in proptest::collection::vec(("\\PC{0,20}", "\\PC{0,20}", "tcp|udp|\\PC{0,4}", "[0-9.:a-f]{0,20}", 0u32..70_000, "\\PC{0,100}"), 0..50)
        ) {
            let owners = owners();
            let listeners = listeners.into_iter().map(|(distro, room, protocol, address, port, process)| v1::Listener {
                distro, room, protocol, address, port, process, ..v1::Listener::default()
            }).collect();
            let mut known = Known::default();
            let (_, new, _) = known.take(added(listeners), &owners, |_| true).unwrap();
            for listener in new {
                proptest::prop_assert!(listener.port > 0 && listener.process.chars().count() <= MAX_PROCESS);
                proptest::prop_assert!(listener.room.is_none());
            }
        }
    }
}
