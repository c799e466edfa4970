//! What is known of the listeners, and what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hostel_netlink::{Bound, Transport};
use hostel_proto::v1;

/// How many listeners one message holds; with ids and names far below the limit of a message.
const CHUNK: usize = 512;

/// What tells one listener from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The id of the distribution whose network namespace it is in; empty: the machine's.
    pub(super) room: Arc<str>,
    pub(super) transport: Transport,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// Whose a listener is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    /// The distribution's id; empty: the machine itself.
    pub(super) distro: String,
    /// In the machine's PID namespace; 0: not known.
    pub(super) machine_pid: u32,
    /// In the distribution's.
    pub(super) pid: u32,
    pub(super) process: String,
}

#[derive(Clone, Debug)]
struct Entry {
    bound: Bound,
    owner: Owner,
}

/// All listeners that the host was told of.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: BTreeMap<Key, Entry>,
    /// What the last look found, as it found it: most looks find the same.
    last: Vec<(Key, Bound)>,
}

/// Differences that the host is to be told.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub(super) added: Vec<v1::Listener>,
    pub(super) removed: Vec<v1::Listener>,
}

impl Table {
    /// Takes over what a look found. `distro` says whose a new socket is, as far as it can be said at once. Returns the
    /// differences and the sockets that are new.
    pub(super) fn update(
        &mut self,
        found: Vec<(Key, Bound)>,
        distro: impl FnMut(&Bound) -> String,
    ) -> (Changes, Vec<(Key, Bound)>) {
        if found == self.last {
            return Default::default();
        }
        let changed = self.replace(|_| true, &found, distro);
        self.last = found;
        changed
    }

    /// As [`Table::update`], after a look at some TCP ports; the others stay as they are.
    pub(super) fn update_ports(
        &mut self,
        ports: &BTreeSet<u16>,
        found: Vec<(Key, Bound)>,
        distro: impl FnMut(&Bound) -> String,
    ) -> (Changes, Vec<(Key, Bound)>) {
        let among = |key: &Key| key.transport == Transport::Tcp && ports.contains(&key.port);
        let changed = self.replace(among, &found, distro);
        if !changed.0.is_empty() {
            self.last.retain(|(key, _)| !among(key));
            self.last.extend(found);
        }
        changed
    }

    /// Puts what was found in the place of what `among` selects.
    fn replace(
        &mut self,
        among: impl Fn(&Key) -> bool,
        found: &[(Key, Bound)],
        mut distro: impl FnMut(&Bound) -> String,
    ) -> (Changes, Vec<(Key, Bound)>) {
        let mut now: BTreeMap<Key, Bound> = BTreeMap::new();
        for (key, bound) in found.iter().cloned() {
            // Several sockets may share an address (SO_REUSEPORT): the one that is known stays.
            let known = |b: &Bound| {
                self.entries
                    .get(&key)
                    .is_some_and(|e| e.bound.inode == b.inode)
            };
            match now.get(&key) {
                Some(before) if known(before) || !known(&bound) => {}
                _ => {
                    now.insert(key, bound);
                }
            }
        }
        let mut changes = Changes::default();
        self.entries.retain(|key, entry| {
            let stays = !among(key) || now.contains_key(key);
            if !stays {
                changes.removed.push(listener(key, entry));
            }
            stays
        });
        let mut new = Vec::new();
        for (key, bound) in now {
            if self.entries.get(&key).is_some_and(|e| e.bound == bound) {
                continue;
            }
            let owner = Owner {
                distro: distro(&bound),
                ..Owner::default()
            };
            let entry = Entry { bound, owner };
            changes.added.push(listener(&key, &entry));
            self.entries.insert(key.clone(), entry);
            new.push((key, bound));
        }
        (changes, new)
    }

    /// Notes whose a listener is; `None` when that is no news, or the socket is another by now.
    pub(super) fn own(&mut self, key: &Key, inode: u32, owner: Owner) -> Option<v1::Listener> {
        let entry = self.entries.get_mut(key)?;
        if entry.bound.inode != inode || entry.owner == owner {
            return None;
        }
        entry.owner = owner;
        Some(listener(key, entry))
    }

    /// Whether a socket is where it was found.
    pub(super) fn has(&self, key: &Key, inode: u32) -> bool {
        self.entries
            .get(key)
            .is_some_and(|entry| entry.bound.inode == inode)
    }

    /// Lists the sockets of a process, by its pid in the machine.
    pub(super) fn of_process(&self, machine_pid: u32) -> Vec<(Key, Bound)> {
        self.entries
            .iter()
            .filter(|(_, e)| e.owner.machine_pid == machine_pid)
            .map(|(key, e)| (key.clone(), e.bound))
            .collect()
    }

    /// Lists the owners by their pids in the machine, those above `after`, in order.
    pub(super) fn processes_after(&self, after: u32) -> BTreeSet<u32> {
        let pids = self.entries.values().map(|e| e.owner.machine_pid);
        pids.filter(|pid| *pid > after).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }

    /// Makes messages; with `reset` there is at least one, and the first says that nothing before it counts.
    pub(super) fn messages(self, reset: bool) -> Vec<v1::PortsChanged> {
        let mut messages: Vec<v1::PortsChanged> = Vec::new();
        let split = |list: Vec<v1::Listener>| {
            let mut rest = list.into_iter().peekable();
            std::iter::from_fn(move || {
                rest.peek()?;
                Some(rest.by_ref().take(CHUNK).collect::<Vec<_>>())
            })
        };
        // What goes makes room for what comes.
        messages.extend(split(self.removed).map(|removed| v1::PortsChanged {
            removed,
            ..Default::default()
        }));
        messages.extend(split(self.added).map(|added| v1::PortsChanged {
            added,
            ..Default::default()
        }));
        if reset {
            if messages.is_empty() {
                messages.push(v1::PortsChanged::default());
            }
            messages[0].reset = true;
        }
        messages
    }
}

fn listener(key: &Key, entry: &Entry) -> v1::Listener {
    v1::Listener {
        distro: entry.owner.distro.clone(),
        room: key.room.to_string(),
        protocol: match key.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
        .to_owned(),
        address: key.address.to_string(),
        port: key.port.into(),
        dual_stack: entry.bound.dual_stack,
        pid: entry.owner.pid,
        process: entry.owner.process.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(port: u16, inode: u32) -> (Key, Bound) {
        let bound = Bound {
            address: "127.0.0.1".parse().unwrap(),
            port,
            dual_stack: false,
            inode,
            cgroup: Some(7),
        };
        let key = Key {
            room: "".into(),
            transport: Transport::Tcp,
            address: bound.address,
            port,
        };
        (key, bound)
    }

    fn update(table: &mut Table, found: &[(Key, Bound)]) -> (Vec<u32>, Vec<u32>) {
        let (changes, _) = table.update(found.to_vec(), |_| "d".to_owned());
        let ports = |l: Vec<v1::Listener>| l.iter().map(|l| l.port).collect();
        (ports(changes.added), ports(changes.removed))
    }

    #[test]
    fn only_differences_are_told() {
        let mut table = Table::default();
        let (one, two) = (socket(1, 10), socket(2, 20));
        assert_eq!(
            update(&mut table, std::slice::from_ref(&one)),
            (vec![1], vec![])
        );
        assert_eq!(
            update(&mut table, std::slice::from_ref(&one)),
            (vec![], vec![])
        );
        assert_eq!(
            update(&mut table, std::slice::from_ref(&two)),
            (vec![2], vec![1])
        );
        // Another socket at the same place is told again: it may be another distribution's.
        assert_eq!(update(&mut table, &[socket(2, 21)]), (vec![2], vec![]));
        assert_eq!(update(&mut table, &[]), (vec![], vec![2]));
    }

    #[test]
    fn a_look_at_some_ports_changes_no_other() {
        let mut table = Table::default();
        let all: Vec<_> = (1..=5).map(|p| socket(p, u32::from(p) * 10)).collect();
        update(&mut table, &all);
        let mut look = |ports: &[u16], found: &[(Key, Bound)]| {
            let ports = ports.iter().copied().collect();
            let (changes, _) = table.update_ports(&ports, found.to_vec(), |_| "d".to_owned());
            let numbers = |l: Vec<v1::Listener>| l.iter().map(|l| l.port).collect::<Vec<_>>();
            (numbers(changes.added), numbers(changes.removed))
        };
        assert_eq!(look(&[2], &[socket(2, 20)]), (vec![], vec![]));
        assert_eq!(look(&[2, 6], &[socket(6, 60)]), (vec![6], vec![2]));
        assert_eq!(look(&[6], &[socket(6, 61)]), (vec![6], vec![]));
        // A look at everything finds what the others left, in any order, and what they were not told of.
        let rest = [6, 1, 3, 4].map(|p| socket(p, if p == 6 { 61 } else { u32::from(p) * 10 }));
        assert_eq!(update(&mut table, &rest), (vec![], vec![5]));
        assert_eq!(update(&mut table, &[]), (vec![], vec![1, 3, 4, 6]));
    }

    #[test]
    fn sockets_that_share_an_address_are_one_listener() {
        let mut table = Table::default();
        let (a, b) = (socket(1, 10), socket(1, 11));
        assert_eq!(
            update(&mut table, &[a.clone(), b.clone()]),
            (vec![1], vec![])
        );
        assert_eq!(
            update(&mut table, &[b.clone(), a.clone()]),
            (vec![], vec![])
        );
        // The one that was told goes: the other has its place.
        assert_eq!(
            update(&mut table, std::slice::from_ref(&b)),
            (vec![1], vec![])
        );
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn an_owner_that_comes_late_is_told_once_and_only_for_its_socket() {
        let mut table = Table::default();
        let (key, bound) = socket(1, 10);
        update(&mut table, &[(key.clone(), bound)]);
        let owner = Owner {
            distro: "d".into(),
            machine_pid: 100,
            pid: 5,
            process: "nginx".into(),
        };
        let told = table.own(&key, 10, owner.clone()).unwrap();
        assert_eq!((told.pid, told.process.as_str()), (5, "nginx"));
        assert!(table.own(&key, 10, owner.clone()).is_none());
        assert!(table.own(&key, 11, Owner::default()).is_none());
        assert_eq!(table.processes_after(0), BTreeSet::from([100]));
        assert!(table.processes_after(100).is_empty());
        assert_eq!(table.of_process(100).len(), 1);
        // The owner stays while the socket does.
        assert_eq!(update(&mut table, &[(key, bound)]), (vec![], vec![]));
        assert_eq!(table.of_process(100).len(), 1);
    }

    #[test]
    fn messages_are_bounded_and_the_first_may_reset() {
        let mut table = Table::default();
        let many: Vec<_> = (1..=1500).map(|p| socket(p, p.into())).collect();
        let (changes, _) = table.update(many, |_| "d".repeat(64));
        let messages = changes.messages(true);
        assert_eq!(messages.len(), 3);
        assert_eq!(
            messages.iter().map(|m| m.reset).collect::<Vec<_>>(),
            [true, false, false]
        );
        use prost::Message;
        let largest = messages.iter().map(Message::encoded_len).max().unwrap();
        assert!(largest < hostel_proto::limits::MAX_MESSAGE / 4, "{largest}");
        assert!(Changes::default().messages(false).is_empty());
        assert!(Changes::default().messages(true)[0].reset);
    }
}
