//! The thread that watches: waits, looks, tells, and searches for names in between.
//!
//! A thread, because looks block, for milliseconds when there are thousands of sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostel_netlink::{Bound, NetlinkError, SockDiag, Transport};
use hostel_proto::v1;
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::mpsc;
use tonic::Status;

use super::heard::Heard;
use super::owner::Owners;
use super::plan::Plan;
use super::table::{Changes, Key, Table};
use super::trace::Trace;
use super::{Events, MAX_LISTENERS, Signal};
use crate::agent::netns::{self, Rooms};
use crate::console::{Level, say};

/// The pause between looks that nothing asked for.
const PAUSE: Duration = Duration::from_secs(2);

/// The same when events do not come: from a kernel without tracefs, and for UDP, which has no such event.
const BLIND_PAUSE: Duration = Duration::from_millis(250);

/// How long one step of a search for names may take.
const STEP: Duration = Duration::from_millis(4);

/// How many processes are looked after at each look that nothing asked for.
const LOOKED_AFTER: usize = 32;

/// Where messages go.
pub(super) type Sender = mpsc::Sender<Result<v1::PortsChanged, Status>>;

/// Everything that the thread has.
pub(super) struct Watcher {
    sender: Sender,
    signal: Arc<Signal>,
    rooms: Arc<Rooms>,
    udp: BTreeSet<u16>,
    trace: Option<Trace>,
    spaces: BTreeMap<Arc<str>, Space>,
    table: Table,
    heard: Heard,
    owners: Owners,
    /// The last process that was looked after.
    looked_after: u32,
    /// Complaints that were made and still hold.
    complaints: BTreeSet<&'static str>,
}

/// A network namespace that is watched.
struct Space {
    /// `None`: the machine's.
    namespace: Option<Arc<OwnedFd>>,
    diag: SockDiag,
}

impl Watcher {
    pub(super) fn new(
        sender: Sender,
        signal: Arc<Signal>,
        rooms: Arc<Rooms>,
        udp: BTreeSet<u16>,
    ) -> Self {
        Self {
            sender,
            signal,
            rooms,
            udp,
            trace: None,
            spaces: BTreeMap::new(),
            table: Table::default(),
            heard: Heard::default(),
            owners: Owners::new(),
            looked_after: 0,
            complaints: BTreeSet::new(),
        }
    }

    /// Watches until it is told to end, or nobody listens. Blocks.
    pub(super) fn run(mut self, events: Events) {
        if events == Events::Traced {
            match Trace::open() {
                Ok(trace) => self.trace = Some(trace),
                Err(error) => say(
                    Level::Warning,
                    format_args!("ports: the kernel tells no events, they are looked for: {error}"),
                ),
            }
        }
        self.watch();
    }

    /// Returns when nobody listens any more, or another call took over.
    fn watch(&mut self) {
        let blind = self.trace.is_none() || !self.udp.is_empty();
        let pause = if blind { BLIND_PAUSE } else { PAUSE };
        let mut plan = Plan::new(pause, Instant::now());
        let mut first = true;
        plan.event(Instant::now());
        loop {
            if self.signal.is_stopped() || self.sender.is_closed() {
                return;
            }
            if plan.next() <= Instant::now() {
                let (began, spent) = (Instant::now(), processor_time());
                let some_will_do = began < plan.rest() && self.table.len() < MAX_LISTENERS;
                let ports = self.heard.ports().filter(|_| some_will_do);
                let changes = self.look(ports.as_ref());
                let cost = processor_time().saturating_sub(spent);
                plan.looked(began, cost, !changes.is_empty(), ports.is_none());
                self.heard.looked(began);
                if self.tell(changes, std::mem::take(&mut first)).is_err() {
                    return;
                }
                self.look_after();
            } else if self.owners.is_searching() {
                let named = self.search();
                if self.tell(named, false).is_err() {
                    return;
                }
            }
            let until = if self.owners.is_searching() {
                Instant::now()
            } else {
                plan.next()
            };
            if self.wait(until) {
                plan.event(Instant::now());
            }
        }
    }

    /// Waits for an event, until then; whether there was one.
    fn wait(&mut self, until: Instant) -> bool {
        let rest = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: rest.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: rest.subsec_nanos().into(),
        };
        let signal = self.signal.fd();
        let mut fds = vec![PollFd::new(&signal, PollFlags::IN)];
        let trace = self.trace.as_ref().and_then(Trace::fd);
        fds.extend(trace.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        if !rustix::event::poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0) {
            return false;
        }
        let [told, traced] = [0, 1].map(|i| fds.get(i).is_some_and(|fd| !fd.revents().is_empty()));
        drop(fds);
        let now = Instant::now();
        if told {
            self.signal.clear();
            self.heard.of_everything(now);
        }
        let heard = &mut self.heard;
        if traced && let Some(Err(error)) = self.trace.as_ref().map(|t| t.drain(heard, now)) {
            say(
                Level::Warning,
                format_args!("ports: the kernel's events ended: {error}"),
            );
            self.trace = None;
        }
        true
    }

    /// Looks at some TCP ports, or at everything, and takes it over.
    fn look(&mut self, ports: Option<&BTreeSet<u16>>) -> Changes {
        self.follow_rooms();
        let hidden = self.signal.hidden();
        let mut found: Vec<(Key, Bound)> = Vec::new();
        let mut full = false;
        let mut broken = Vec::new();
        for (room, space) in &self.spaces {
            let mut list = |transport, port, wanted: &dyn Fn(&Bound) -> bool| {
                let limit = MAX_LISTENERS.saturating_sub(found.len());
                let wanted = |b: &Bound| {
                    wanted(b) && !(room.is_empty() && hidden == Some((b.address, b.port)))
                };
                let (list, more) = space.diag.bound(transport, port, limit, wanted)?;
                full |= more;
                found.extend(list.into_iter().map(|bound| {
                    let key = Key {
                        room: room.clone(),
                        transport,
                        address: bound.address,
                        port: bound.port,
                    };
                    (key, bound)
                }));
                Ok::<_, NetlinkError>(())
            };
            let listed = match ports {
                Some(ports) => ports
                    .iter()
                    .try_for_each(|port| list(Transport::Tcp, Some(*port), &|_| true)),
                None => list(Transport::Tcp, None, &|_| true).and_then(|()| {
                    if self.udp.is_empty() {
                        return Ok(());
                    }
                    list(Transport::Udp, None, &|b| self.udp.contains(&b.port))
                }),
            };
            if let Err(error) = listed {
                broken.push((room.clone(), error));
            }
        }
        self.complain(
            "limit",
            full.then(|| format!("more than {MAX_LISTENERS} sockets listen; the rest is not told")),
        );
        self.complain(
            "sockets",
            broken.first().map(|(room, error)| {
                let error = crate::console::chain(error);
                format!("cannot list sockets (room `{room}`): {error}")
            }),
        );
        for (room, _) in broken {
            // The next look opens it again.
            self.spaces.remove(&room);
        }
        let owners = &mut self.owners;
        let distro = |bound: &Bound| owners.distro(bound);
        let (changes, new) = match ports {
            Some(ports) => self.table.update_ports(ports, found, distro),
            None => self.table.update(found, distro),
        };
        if !changes.removed.is_empty() {
            let table = &self.table;
            self.owners.forget(|key, inode| !table.has(key, inode));
        }
        self.owners.ask(new);
        changes
    }

    /// Opens what is new among the network namespaces, and lets go of what is gone.
    fn follow_rooms(&mut self) {
        let rooms = self.rooms.list();
        let same = |space: &Space, namespace: &Arc<OwnedFd>| {
            space
                .namespace
                .as_ref()
                .is_some_and(|n| Arc::ptr_eq(n, namespace))
        };
        self.spaces.retain(|room, space| {
            space.namespace.is_none()
                || rooms
                    .iter()
                    .any(|(id, namespace)| **id == **room && same(space, namespace))
        });
        let mut failed = None;
        if !self.spaces.contains_key("") {
            match SockDiag::open() {
                Ok(diag) => {
                    let namespace = None;
                    self.spaces.insert("".into(), Space { namespace, diag });
                }
                Err(error) => failed = Some(crate::console::chain(&error)),
            }
        }
        for (id, namespace) in rooms {
            if self.spaces.contains_key(&*id) {
                continue;
            }
            let opened = netns::within(namespace.as_fd(), || {
                SockDiag::open().map_err(std::io::Error::other)
            });
            match opened {
                Ok(diag) => {
                    let namespace = Some(namespace);
                    self.spaces.insert(id.into(), Space { namespace, diag });
                }
                Err(error) => failed = Some(format!("room `{id}`: {error}")),
            }
        }
        self.complain(
            "namespace",
            failed.map(|why| format!("cannot watch a network namespace: {why}")),
        );
    }

    /// Says what is wrong, once for as long as it is wrong.
    fn complain(&mut self, about: &'static str, what: Option<String>) {
        match what {
            Some(what) if self.complaints.insert(about) => {
                say(Level::Warning, format_args!("ports: {what}"));
            }
            Some(_) => {}
            None => {
                self.complaints.remove(about);
            }
        }
    }

    /// Searches a little for names.
    fn search(&mut self) -> Changes {
        let found = self.owners.step(Instant::now() + STEP);
        let added = found
            .into_iter()
            .filter_map(|(key, inode, owner)| self.table.own(&key, inode, owner))
            .collect();
        Changes {
            added,
            removed: Vec::new(),
        }
    }

    /// Looks after some processes: a server that became a daemon has left its socket to another.
    fn look_after(&mut self) {
        let pids = self
            .table
            .processes_after(self.looked_after)
            .into_iter()
            .take(LOOKED_AFTER);
        // After the last one it begins anew.
        self.looked_after = 0;
        for pid in pids {
            self.looked_after = pid;
            if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
                self.owners.ask(self.table.of_process(pid));
            }
        }
    }

    /// Sends; waits when the host is slow, and is then told everything that happened meanwhile by the next look.
    fn tell(&self, changes: Changes, reset: bool) -> Result<(), ()> {
        if changes.is_empty() && !reset {
            return Ok(());
        }
        for message in changes.messages(reset) {
            self.sender.blocking_send(Ok(message)).map_err(drop)?;
        }
        Ok(())
    }
}

/// Returns how long this thread has had a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}
