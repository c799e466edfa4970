//! The lines of the ledger: what became of each listener, why, and what to do.

use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;

use super::{Book, Claim, Known, Place, PortKey, Scope, port::Trouble};
use crate::{Entry, GuestListener, Protocol, State};

/// Returns the ledger: by owner, protocol and port.
pub(super) fn entries(book: &Book) -> Vec<Entry> {
    let mut entries: Vec<Entry> = book.known.values().map(|k| entry(book, k)).collect();
    entries.sort_by(|a, b| order(a).cmp(&order(b)));
    let mut merged: Vec<Entry> = Vec::with_capacity(entries.len());
    for entry in entries {
        match merged.last_mut().filter(|last| is_one(last, &entry)) {
            Some(last) => {
                last.addresses.extend(entry.addresses);
                last.host.extend(entry.host);
                last.host.sort_unstable();
                last.host.dedup();
                last.connections += entry.connections;
            }
            None => merged.push(entry),
        }
    }
    merged
}

/// The order of the ledger. The two families of one port are beside each other.
fn order(entry: &Entry) -> impl Ord + '_ {
    let address = entry.addresses[0];
    let kind = (!address.is_unspecified(), !address.is_loopback());
    (
        (entry.distro_name.as_str(), entry.room),
        (entry.protocol, entry.port, kind, entry.pid),
        address,
    )
}

/// Tells whether two lines are the two families of one port of one process.
fn is_one(a: &Entry, b: &Entry) -> bool {
    let (one, other) = (a.addresses[0], b.addresses[0]);
    let twins = (one.is_unspecified() && other.is_unspecified())
        || (one.is_loopback() && other.is_loopback());
    twins
        && a.addresses.len() == 1
        && one.is_ipv4() != other.is_ipv4()
        && (a.distro, a.room, a.protocol, a.port) == (b.distro, b.room, b.protocol, b.port)
        && (a.pid, &a.process) == (b.pid, &b.process)
        && (a.state, &a.reason, &a.next_step) == (b.state, &b.reason, &b.next_step)
}

/// What the ledger says about one listener.
struct Line {
    state: State,
    host: Vec<SocketAddr>,
    reasons: Vec<String>,
    next_step: String,
}

fn entry(book: &Book, known: &Known) -> Entry {
    let listener = &known.target.listener;
    let mut line = match &known.place {
        Place::Off(why) => off(book, listener, why),
        Place::Full => Line {
            state: State::Waiting,
            host: Vec::new(),
            reasons: vec![format!(
                "{} ports are relayed already, no more are",
                book.shared.limits.listeners
            )],
            next_step: "end listeners that are not needed, or keep them off with rules".to_owned(),
        },
        Place::At(port, claim) => placed(book, known, *port, *claim),
    };
    // What once went wrong is no reason for what nobody can connect to.
    if !line.host.is_empty() && !matches!(known.place, Place::Off(_)) {
        line.reasons.extend(known.target.tally.trouble());
    }
    Entry {
        distro: listener.distro,
        distro_name: listener.distro_name.clone(),
        room: listener.room,
        protocol: listener.protocol,
        addresses: vec![listener.address],
        port: listener.port,
        pid: listener.pid,
        process: listener.process.clone(),
        host: line.host,
        state: line.state,
        reason: line.reasons.join("; "),
        next_step: line.next_step,
        connections: known.target.tally.connections(),
    }
}

fn off(book: &Book, listener: &GuestListener, why: &str) -> Line {
    let direct = direct(book, listener);
    Line {
        state: if direct.is_some() {
            State::Direct
        } else {
            State::Off
        },
        host: direct.into_iter().collect(),
        reasons: vec![why.to_owned()],
        next_step: String::new(),
    }
}

fn placed(book: &Book, known: &Known, key: PortKey, claim: Claim) -> Line {
    let listener = &known.target.listener;
    let mut line = Line {
        state: State::Waiting,
        host: Vec::new(),
        reasons: Vec::new(),
        next_step: String::new(),
    };
    let Some(port) = book.ports.get(&key) else {
        return line;
    };
    if let Some(trouble) = &port.trouble {
        line.reasons.push(lacking(trouble));
        line.next_step = remedy(book, listener, trouble);
        return line;
    }
    let leads_here = |target: &GuestListener| target.key() == listener.key();
    let mut others = Vec::new();
    for door in &port.doors {
        let target = door.target();
        if leads_here(&target.listener) {
            line.host.push(door.address);
        } else {
            others.push(target);
        }
    }
    line.host.sort_unstable();
    if line.host.is_empty() {
        if let Some(other) = others.first() {
            let other = &other.listener;
            line.reasons.push(format!(
                "port {} of {} leads to {} of {}, bound to {}",
                key.port,
                place_name(key.scope),
                process(other),
                other.owner(),
                SocketAddr::new(other.address, other.port),
            ));
            line.next_step = if other.distro == listener.distro || listener.distro.is_none() {
                format!("move it: {}", command(listener))
            } else {
                format!(
                    "give one of the two a room of its own: hostel manage {} --network own",
                    listener.distro_name
                )
            };
        }
        return line;
    }
    line.state = if key.port == listener.port {
        State::Forwarded
    } else {
        State::Remapped
    };
    match claim {
        Claim::Own => {}
        Claim::Named | Claim::Elsewhere => line.reasons.push("a rule puts it there".to_owned()),
        Claim::Low => line.reasons.push(format!(
            "port {} of the host needs a right that the daemon does not have",
            listener.port
        )),
    }
    if line.host.iter().any(|a| !a.ip().is_loopback()) {
        line.reasons
            .push("OPEN TO OTHER MACHINES as far as the rules of the firewall let them".to_owned());
    }
    line.reasons.extend(port.optional.iter().map(lacking));
    line
}

/// Says why a socket could not be had.
fn lacking(trouble: &Trouble) -> String {
    let address = trouble.address;
    match (trouble.error, &trouble.holder) {
        (Errno::ADDRINUSE, Some(holder)) => {
            format!(
                "port {} of the host ({address}) is used by {holder}",
                address.port()
            )
        }
        (Errno::ADDRINUSE, None) => {
            format!("port {} of the host ({address}) is in use", address.port())
        }
        (Errno::ACCESS, _) => {
            format!(
                "port {} of the host needs a right that the daemon does not have",
                address.port()
            )
        }
        (Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT, _) => {
            format!("the host has no address {}", address.ip())
        }
        (error, _) => format!("{address} cannot be listened on: {error}"),
    }
}

fn remedy(book: &Book, listener: &GuestListener, trouble: &Trouble) -> String {
    let direct = direct(book, listener)
        .map(|a| format!("; until then the host reaches it at {a}"))
        .unwrap_or_default();
    match (trouble.error, &trouble.holder) {
        (Errno::ADDRINUSE, Some(holder)) if holder.process.is_some() => {
            format!("end {holder}, or move it: {}{direct}", command(listener))
        }
        (Errno::ADDRINUSE | Errno::ACCESS, _) => {
            format!("move it: {}{direct}", command(listener))
        }
        _ => String::new(),
    }
}

/// Returns the command that gives a listener another port of the host.
fn command(listener: &GuestListener) -> String {
    let udp = match listener.protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "--udp ",
    };
    let distro = match listener.distro_name.as_str() {
        "" => String::new(),
        name => format!("--distro {name} "),
    };
    format!("hostel ports set {udp}{distro}{} remap", listener.port)
}

fn place_name(scope: Scope) -> String {
    match scope {
        Scope::Shared => "the host's localhost".to_owned(),
        Scope::Room(local) => local.to_string(),
    }
}

fn process(listener: &GuestListener) -> String {
    match (listener.pid, listener.process.as_str()) {
        (0, "") => "a process".to_owned(),
        (0, name) => name.to_owned(),
        (pid, "") => format!("process {pid}"),
        (pid, name) => format!("process {pid} ({name})"),
    }
}

/// Returns where the host reaches a listener without the relay.
fn direct(book: &Book, listener: &GuestListener) -> Option<SocketAddr> {
    let vm = book.settings.direct?;
    let own: IpAddr = listener.room.map_or(vm, |room| room.address.into());
    let bound = listener.address;
    let reached = bound == own
        || (bound.is_unspecified() && (bound.is_ipv4() == own.is_ipv4() || listener.dual_stack));
    reached.then(|| SocketAddr::new(own, listener.port))
}
