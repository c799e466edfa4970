//! The host's network as it changes: a cable, another Wi-Fi, a VPN that comes and goes.

use std::{io, os::fd::AsFd, time::Duration};

use hostel_netlink::{Answer, Events, NetlinkError};
use tokio::{net::unix::pipe, sync::watch};

use crate::{Host, addresses, error_chain};

/// Events of interfaces, and of addresses and routes of both families.
const GROUPS: u32 = 1 | 1 << 4 | 1 << 8 | 1 << 6 | 1 << 10;
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
/// Where the message of an interface has its family: another one than 0 tells of a bridge's port, say.
const FAMILY: usize = 0;
/// Where the message of a route has the length of its destination: 0 is the way to everything.
const LENGTH: usize = 1;
/// The routing table of what is for this machine, and where the message of a route has its table.
const LOCAL: u8 = 255;
const TABLE: usize = 4;

/// What changes seldom changes alone: an interface comes up, gets addresses, and then routes. All that comes within this
/// time is looked at once, and a storm of events is looked at no more often.
const TOGETHER: Duration = Duration::from_millis(200);

/// What the host's network is like now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// `None`: it could not be read yet.
    pub host: Option<Host>,
    /// What is the host itself: addresses and prefixes, in order.
    pub addresses: Vec<String>,
    /// Why it is not known, or not followed any more.
    pub trouble: Option<String>,
}

impl HostState {
    /// Reads it; what cannot be read stays as it was. Blocks for milliseconds.
    fn read(&mut self) {
        let mut why: Option<NetlinkError> = None;
        match Host::read() {
            Ok(host) => self.host = Some(host),
            Err(error) => why = Some(error),
        }
        match addresses::read() {
            Ok(addresses) => self.addresses = addresses,
            Err(error) => why = Some(error),
        }
        self.trouble = why.map(|error| {
            format!(
                "the host's network cannot be read, and isolated distributions may reach new addresses of it: {}",
                error_chain(&error)
            )
        });
    }
}

/// Reads the host's network and follows it until nobody wants to know any more. Within a runtime; blocks for milliseconds.
pub fn follow_host() -> watch::Receiver<HostState> {
    let changes = Changes::subscribe();
    // After that: nothing is missed.
    let mut state = HostState::default();
    state.read();
    let (sender, receiver) = watch::channel(state);
    tokio::spawn(async move {
        let work = async {
            let changes = changes?;
            loop {
                changes.next().await?;
                together().await;
                sender.send_if_modified(|state| {
                    let mut now = state.clone();
                    now.read();
                    let changed = now != *state;
                    *state = now;
                    changed
                });
            }
        };
        let outcome: io::Result<()> = tokio::select! {
            () = sender.closed() => return,
            outcome = work => outcome,
        };
        if let Err(error) = outcome {
            let text = format!(
                "the host's network is not followed, and isolated distributions may reach new addresses of it: {error}"
            );
            sender.send_modify(|state| state.trouble = Some(text));
            // Else who follows would think that nobody knows anything.
            sender.closed().await;
        }
    });
    receiver
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing tells when the last of several changes has come"
)]
async fn together() {
    tokio::time::sleep(TOGETHER).await;
}

/// Tells when the host's network may have changed.
#[derive(Debug)]
struct Changes {
    events: Events,
    /// The same socket; polled as a pipe is.
    ready: pipe::Receiver,
}

impl Changes {
    /// Begins to listen, in the network namespace of the calling thread. Within a runtime.
    fn subscribe() -> io::Result<Self> {
        Self::of(Events::subscribe(None, GROUPS).map_err(io::Error::other)?)
    }

    fn of(events: Events) -> io::Result<Self> {
        let ready = pipe::Receiver::from_owned_fd_unchecked(events.as_fd().try_clone_to_owned()?)?;
        Ok(Self { events, ready })
    }

    /// Returns when something may have changed. Cancel safe.
    async fn next(&self) -> io::Result<()> {
        loop {
            self.ready.readable().await?;
            let mut changed = false;
            let complete = self
                .events
                .drain(|event| changed |= matters(&event))
                .map_err(io::Error::other)?;
            // Nothing is left to read, as a rule: that ends the readiness.
            let nothing_left = matches!(
                self.ready.try_read(&mut [0; 1]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock
            );
            if changed || !complete || !nothing_left {
                return Ok(());
            }
        }
    }
}

/// Tells whether an event is of something that is told on: interfaces, addresses, what is for this machine, and the ways to
/// everything.
fn matters(event: &Answer<'_>) -> bool {
    let byte = |at: usize| event.body.get(at).copied();
    match event.kind {
        NEW_LINK | DELETE_LINK => byte(FAMILY) == Some(0),
        NEW_ADDRESS | DELETE_ADDRESS => true,
        NEW_ROUTE | DELETE_ROUTE => byte(TABLE) == Some(LOCAL) || byte(LENGTH) == Some(0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn event(kind: u16, body: &[u8]) -> Answer<'_> {
        Answer {
            kind,
            flags: 0,
            sequence: 0,
            body,
        }
    }

    #[test]
    fn only_what_is_told_on_wakes_us() {
        let route = |table, length| [2, length, 0, 0, table, 0, 0, 1, 0, 0, 0, 0];
        for (kind, body, wanted) in [
            (NEW_LINK, &[0; 16][..], true),
            (DELETE_LINK, &[0; 16], true),
            (NEW_LINK, &[7; 16], false),
            (NEW_LINK, &[], false),
            (NEW_ADDRESS, &[2; 8], true),
            (NEW_ROUTE, &route(LOCAL, 32), true),
            (DELETE_ROUTE, &route(254, 0), true),
            (NEW_ROUTE, &route(254, 24), false),
            (NEW_ROUTE, &[], false),
            (28, &[0; 16], false),
        ] {
            assert_eq!(matters(&event(kind, body)), wanted, "{kind}: {body:?}");
        }
    }

    #[tokio::test]
    async fn what_changes_on_the_host_is_told() {
        let test = "follow::tests::what_changes_on_the_host_is_told";
        let Some(space) = hostel_testkit::Space::new(test) else {
            return;
        };
        if hostel_testkit::require(test, hostel_testkit::Need::Program("ip")).is_none() {
            return;
        }
        space.sh("ip link set lo up").unwrap();
        let events = space.run(|| Events::subscribe(None, GROUPS)).unwrap();
        let changes = Changes::of(events).unwrap();
        let read = || {
            space.run(|| {
                let mut state = HostState::default();
                state.read();
                assert_eq!(state.trouble, None);
                state
            })
        };
        let shown = |state: HostState| {
            let host = state.host.unwrap();
            format!("mtu={} ipv6={} {:?}", host.mtu, host.ipv6, state.addresses)
        };
        assert_eq!(shown(read()), "mtu=1500 ipv6=false []");
        for (line, wanted) in [
            ("ip addr add 192.0.2.5/24 dev lo", "192.0.2.5/32"),
            (
                "ip route add local 198.51.100.0/24 dev lo",
                "198.51.100.0/24",
            ),
            ("ip -6 addr add 2001:db8::5/64 dev lo", "ipv6=true"),
            ("ip -6 addr del 2001:db8::5/64 dev lo", "ipv6=false"),
            // Two ends are connected only when both are up.
            (
                "ip link add vpn0 mtu 1400 type veth peer name far0 mtu 1400; ip link set vpn0 up; ip link set far0 up",
                "mtu=1400",
            ),
            ("ip link set vpn0 mtu 1300", "mtu=1300"),
            ("ip link set far0 down", "mtu=1500"),
            ("ip link set far0 up", "mtu=1300"),
            ("ip link del vpn0", "mtu=1500"),
        ] {
            space.sh(line).unwrap();
            let told = async {
                while !shown(read()).contains(wanted) {
                    changes.next().await.unwrap();
                }
            };
            tokio::time::timeout(LIMIT, told).await.expect(line);
        }
    }

    #[tokio::test]
    async fn the_host_is_known_at_once() {
        let state = follow_host();
        assert!(state.borrow().host.is_some(), "{:?}", state.borrow());
        assert_eq!(state.borrow().trouble, None);
    }
}
