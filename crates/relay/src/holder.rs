//! Who on the host has a port: `/proc/net` names the socket, and `/proc/<pid>/fd` the process.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use rustix::fs::{RawDir, readlinkat};

use crate::Protocol;

/// Bytes of one table of `/proc/net` that are looked at: some 200,000 sockets.
const TABLE_LIMIT: u64 = 32 << 20;

/// How long the search for processes may take; without an answer the ledger names the user.
const SEARCH_LIMIT: Duration = Duration::from_millis(500);

/// A socket of the host that something of ours wants.
pub(crate) type Wanted = (Protocol, SocketAddr);

/// Who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The user.
    pub(crate) uid: u32,
    /// Number and name of the process; `None`: its descriptors cannot be looked at.
    pub(crate) process: Option<(u32, String)>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((pid, name)) => write!(f, "process {pid} ({name})"),
            None => write!(f, "a process of user {}", self.uid),
        }
    }
}

/// Finds who has these sockets. Blocks for up to a second. What is not found was given back meanwhile.
pub(crate) fn find(wanted: &[Wanted]) -> HashMap<Wanted, Holder> {
    let mut by_port: HashMap<(Protocol, u16), Vec<SocketAddr>> = HashMap::new();
    for &(protocol, address) in wanted {
        let port = by_port.entry((protocol, address.port()));
        port.or_default().push(address);
    }
    let mut sockets: HashMap<Wanted, Row> = HashMap::new();
    for (protocol, table) in [
        (Protocol::Tcp, "/proc/self/net/tcp"),
        (Protocol::Tcp, "/proc/self/net/tcp6"),
        (Protocol::Udp, "/proc/self/net/udp"),
        (Protocol::Udp, "/proc/self/net/udp6"),
    ] {
        if !wanted.iter().any(|w| w.0 == protocol) {
            continue;
        }
        for row in rows(table) {
            let port = by_port.get(&(protocol, row.local.port()));
            for &address in port.into_iter().flatten() {
                if row.overlaps(address) {
                    let best = sockets.entry((protocol, address)).or_insert(row);
                    if row.weight(address) > best.weight(address) {
                        *best = row;
                    }
                }
            }
        }
    }
    let inodes: Vec<u64> = sockets.values().map(|row| row.inode).collect();
    let processes = processes(&inodes);
    sockets
        .into_iter()
        .map(|(wanted, row)| {
            let holder = Holder {
                uid: row.uid,
                process: processes.get(&row.inode).cloned(),
            };
            (wanted, holder)
        })
        .collect()
}

/// One line of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    local: SocketAddr,
    listens: bool,
    uid: u32,
    inode: u64,
}

impl Row {
    /// Tells how likely it is the one: the table does not show whether a `::` takes IPv4.
    fn weight(&self, wanted: SocketAddr) -> (bool, bool) {
        (self.listens, self.local.is_ipv4() == wanted.is_ipv4())
    }

    /// Tells whether it can be what keeps another socket off this address.
    fn overlaps(&self, wanted: SocketAddr) -> bool {
        if self.local.port() != wanted.port() {
            return false;
        }
        let (local, wanted) = (self.local.ip(), wanted.ip());
        if local.is_ipv4() == wanted.is_ipv4() {
            return local == wanted || local.is_unspecified() || wanted.is_unspecified();
        }
        // A dual-stack `::` has the port in both families.
        match local {
            IpAddr::V6(v6) => {
                v6.is_unspecified()
                    || v6.to_ipv4_mapped().is_some_and(|v4| {
                        IpAddr::V4(v4) == wanted || v4.is_unspecified() || wanted.is_unspecified()
                    })
            }
            IpAddr::V4(_) => false,
        }
    }
}

fn rows(table: &str) -> Vec<Row> {
    use std::io::Read as _;
    let mut text = Vec::new();
    // IPv6 may be off; then there is no table.
    let Ok(file) = fs_err::File::open(table) else {
        return Vec::new();
    };
    // What was read before an error is still true.
    let _ = file.take(TABLE_LIMIT).read_to_end(&mut text);
    String::from_utf8_lossy(&text)
        .lines()
        .skip(1)
        .filter_map(row)
        .collect()
}

/// Reads `  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 …`.
fn row(line: &str) -> Option<Row> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    let uid = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some(Row {
        local: SocketAddr::new(hexadecimal(address)?, u16::from_str_radix(port, 16).ok()?),
        // LISTEN; a UDP socket without a peer is shown as CLOSE.
        listens: matches!(state, "0A" | "07"),
        uid,
        inode,
    })
}

/// Reads an address as the kernel prints it: 32-bit words in the machine's own order.
fn hexadecimal(text: &str) -> Option<IpAddr> {
    let word = |i: usize| {
        let digits = text.get(i * 8..i * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for i in 0..4 {
                bytes[i * 4..i * 4 + 4].copy_from_slice(&word(i)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// Finds the processes that have these sockets open.
fn processes(inodes: &[u64]) -> HashMap<u64, (u32, String)> {
    let mut found = HashMap::new();
    let end = Instant::now() + SEARCH_LIMIT;
    let Ok(processes) = fs_err::read_dir("/proc") else {
        return found;
    };
    for process in processes.flatten() {
        if found.len() == inodes.len() || Instant::now() > end {
            break;
        }
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        for inode in sockets_of(pid, inodes, end) {
            let name = fs_err::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name: String = name.trim_end().chars().map(printable).collect();
            found.entry(inode).or_insert((pid, name));
        }
    }
    found
}

fn printable(c: char) -> char {
    if c.is_control() { '?' } else { c }
}

/// Returns those of `inodes` that a process has open; none when it may not be looked at.
fn sockets_of(pid: u32, inodes: &[u64], end: Instant) -> Vec<u64> {
    let mut found = Vec::new();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    let Ok(directory) = rustix::fs::open(
        format!("/proc/{pid}/fd"),
        flags | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    ) else {
        return found;
    };
    let mut buffer = Vec::with_capacity(8192);
    let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
    while let Some(Ok(entry)) = entries.next() {
        if Instant::now() > end {
            break;
        }
        let Ok(target) = readlinkat(&directory, entry.file_name(), Vec::new()) else {
            continue;
        };
        let inode = target
            .to_str()
            .ok()
            .and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        if let Some(inode) = inode.filter(|i| inodes.contains(i)) {
            found.push(inode);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_line_is_read() {
        let line = "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000";
        let row = row(line).unwrap();
        assert_eq!(row.local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!((row.listens, row.uid, row.inode), (true, 1000, 4711));
        assert_eq!(super::row("  sl  local_address"), None);
        let six = "00000000000000000000000001000000";
        assert_eq!(hexadecimal(six), Some(Ipv6Addr::LOCALHOST.into()));
    }

    #[test]
    fn overlap_is_the_kernels() {
        let row = |local: &str| Row {
            local: local.parse().unwrap(),
            listens: true,
            uid: 0,
            inode: 1,
        };
        for (held, wanted, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.2:80", "127.0.0.1:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.2:80", "0.0.0.0:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("[::1]:80", "127.0.0.1:80", false),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
        ] {
            assert_eq!(
                row(held).overlaps(wanted.parse().unwrap()),
                expected,
                "{held} {wanted}"
            );
        }
    }

    #[test]
    fn this_process_is_found_for_both_protocols() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let free = (Protocol::Tcp, "127.0.0.9:1".parse().unwrap());
        let wanted = [
            (Protocol::Tcp, tcp.local_addr().unwrap()),
            (Protocol::Udp, udp.local_addr().unwrap()),
            free,
        ];
        let found = find(&wanted);
        for wanted in &wanted[..2] {
            let holder = &found[wanted];
            assert_eq!(holder.process.as_ref().unwrap().0, std::process::id());
            assert_eq!(holder.uid, rustix::process::getuid().as_raw());
        }
        assert!(!found.contains_key(&free));
    }
}
