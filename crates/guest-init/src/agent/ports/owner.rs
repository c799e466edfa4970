//! Whose a socket is: the distribution by the socket's cgroup at once, the process by a search that takes its time.
//!
//! The search looks only at the processes of that distribution, in short steps, with an end to everything: a distribution
//! may have a hundred thousand processes, and each as many descriptors.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use hostel_netlink::Bound;

use super::table::{Key, Owner};

/// Where a cgroup2 tree may be; the first is the machine's.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// `f_type` of a cgroup2 file system (magic.h).
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// The most control groups that are remembered.
const REMEMBERED: usize = 4096;

/// The most processes that one search looks at, and the most cgroups it lists them from.
const MAX_PROCESSES: usize = 8192;
const MAX_GROUPS: usize = 512;

/// The most descriptors of one process.
const MAX_DESCRIPTORS: usize = 16_384;

/// The most sockets that wait for a search; more stay without a name.
const MAX_WAITING: usize = 8192;

/// The longest list of processes that is read, in bytes.
const MAX_LIST: u64 = 1 << 20;

/// The longest name of a process, in bytes.
const MAX_NAME: usize = 64;

/// How many descriptors are looked at between two looks at the clock.
const STRIDE: usize = 32;

/// A cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// The distribution's id; empty: none of them.
    distro: String,
    group: PathBuf,
}

/// Answers whose sockets are.
#[derive(Debug)]
pub(super) struct Owners {
    /// The root of the cgroup2 tree.
    hierarchy: Option<(OwnedFd, PathBuf)>,
    places: HashMap<u64, Option<Place>>,
    waiting: Vec<(Key, Bound)>,
    search: Option<Search>,
}

/// What a step of the search found: which listener, its socket's number, its owner.
pub(super) type Found = Vec<(Key, u32, Owner)>;

impl Owners {
    pub(super) fn new() -> Self {
        let hierarchy = HIERARCHIES.iter().find_map(|path| {
            let is_cgroup2 =
                rustix::fs::statfs(*path).is_ok_and(|s| s.f_type as u64 == CGROUP2_MAGIC);
            let root = is_cgroup2
                .then(|| fs_err::File::open(path))
                .and_then(Result::ok)?;
            Some((root.into_file().into(), PathBuf::from(path)))
        });
        Self {
            hierarchy,
            places: HashMap::new(),
            waiting: Vec::new(),
            search: None,
        }
    }

    /// Returns the id of the distribution that a socket was made in; empty when it is the machine's, or not known yet.
    pub(super) fn distro(&mut self, bound: &Bound) -> String {
        self.place(bound).map(|p| p.distro).unwrap_or_default()
    }

    /// Wants to know the processes of these.
    pub(super) fn ask(&mut self, sockets: impl IntoIterator<Item = (Key, Bound)>) {
        let room = MAX_WAITING.saturating_sub(self.waiting.len());
        self.waiting.extend(sockets.into_iter().take(room));
    }

    /// Wants to know no more of what is gone: a search for that would look at everything there is.
    pub(super) fn forget(&mut self, is_gone: impl Fn(&Key, u32) -> bool) {
        self.waiting
            .retain(|(key, bound)| !is_gone(key, bound.inode));
        if let Some(search) = &mut self.search {
            search.wanted.retain(|inode, keys| {
                keys.retain(|key| !is_gone(key, *inode));
                !keys.is_empty()
            });
        }
    }

    /// Whether there is something to search.
    pub(super) fn is_searching(&self) -> bool {
        self.search.is_some() || !self.waiting.is_empty()
    }

    /// Searches until then, and a little longer.
    pub(super) fn step(&mut self, until: Instant) -> Found {
        if self.search.is_none() {
            self.search = self.next_search();
        }
        let Some(search) = &mut self.search else {
            return Vec::new();
        };
        let mut found = Vec::new();
        if search.step(until, &mut found) {
            self.search = None;
        }
        found
    }

    /// Begins a search for all that wait and are of one cgroup.
    fn next_search(&mut self) -> Option<Search> {
        let (_, first) = self.waiting.first()?;
        let group = first.cgroup;
        let place = self.place(&first.clone());
        let (now, later) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, b)| b.cgroup == group);
        self.waiting = later;
        let root = self.hierarchy.as_ref().map(|(_, root)| root.as_path());
        Some(Search::new(now, place, root))
    }

    fn place(&mut self, bound: &Bound) -> Option<Place> {
        let number = bound.cgroup?;
        if let Some(known) = self.places.get(&number) {
            return known.clone();
        }
        let (fd, root) = self.hierarchy.as_ref()?;
        let place = hostel_sys::cgroup::open(fd, number).ok().and_then(|group| {
            let path = fs_err::read_link(format!("/proc/self/fd/{}", group.as_raw_fd())).ok()?;
            place_of(root, path)
        });
        if self.places.len() >= REMEMBERED {
            self.places.clear();
        }
        // A number is never used again; one that is gone stays gone.
        self.places.insert(number, place.clone());
        place
    }
}

/// The first directory below the root is the distribution's.
fn place_of(root: &Path, group: PathBuf) -> Option<Place> {
    let below = group.strip_prefix(root).ok()?;
    let distro = match below.components().next() {
        Some(first) => first.as_os_str().to_str()?.to_owned(),
        None => String::new(),
    };
    Some(Place { distro, group })
}

/// A search through the descriptors of processes.
#[derive(Debug)]
struct Search {
    /// By the number of the socket.
    wanted: HashMap<u32, Vec<Key>>,
    /// `None`: to be read from the process.
    distro: Option<String>,
    /// The processes that are looked at, the last one first.
    pids: Vec<u32>,
    /// Where others are when these do not have it.
    then: Option<Then>,
    process: Option<(u32, fs_err::ReadDir, usize)>,
    looked_at: usize,
}

#[derive(Debug)]
enum Then {
    /// In the cgroups below.
    Groups(PathBuf),
    /// Anywhere.
    Everything,
}

impl Search {
    fn new(sockets: Vec<(Key, Bound)>, place: Option<Place>, root: Option<&Path>) -> Self {
        let mut wanted: HashMap<u32, Vec<Key>> = HashMap::new();
        for (key, bound) in sockets {
            wanted.entry(bound.inode).or_default().push(key);
        }
        let (pids, then) = match (&place, root) {
            (Some(place), Some(root)) if !place.distro.is_empty() => (
                processes_in(&place.group),
                Some(Then::Groups(root.join(&place.distro))),
            ),
            (Some(place), _) => (processes_in(&place.group), None),
            (None, _) => (Vec::new(), Some(Then::Everything)),
        };
        Self {
            wanted,
            distro: place.map(|p| p.distro),
            pids,
            then,
            process: None,
            looked_at: 0,
        }
    }

    /// Goes on until then; whether it has come to its end.
    fn step(&mut self, until: Instant, found: &mut Found) -> bool {
        loop {
            if self.wanted.is_empty() || self.looked_at > MAX_PROCESSES {
                return true;
            }
            if self.process.is_none() && !self.next_process() {
                return true;
            }
            if self.descriptors(found) {
                self.process = None;
            }
            if Instant::now() >= until {
                return false;
            }
        }
    }

    /// Goes to the next process; `false` when there is none.
    fn next_process(&mut self) -> bool {
        loop {
            if let Some(pid) = self.pids.pop() {
                self.looked_at += 1;
                // One that has ended meanwhile has no descriptors.
                if let Ok(list) = fs_err::read_dir(format!("/proc/{pid}/fd")) {
                    self.process = Some((pid, list, 0));
                    return true;
                }
            } else {
                self.pids = match self.then.take() {
                    Some(Then::Groups(top)) => groups_below(top)
                        .iter()
                        .flat_map(|group| processes_in(group))
                        .collect(),
                    Some(Then::Everything) => all_processes(),
                    None => return false,
                };
            }
            if self.looked_at > MAX_PROCESSES {
                return false;
            }
        }
    }

    /// Looks at some descriptors of the process; whether these were the last.
    fn descriptors(&mut self, found: &mut Found) -> bool {
        let Some((pid, list, count)) = &mut self.process else {
            return true;
        };
        for _ in 0..STRIDE {
            *count += 1;
            let Some(Ok(entry)) = list.next() else {
                return true;
            };
            if *count > MAX_DESCRIPTORS {
                return true;
            }
            let inode = fs_err::read_link(entry.path())
                .ok()
                .and_then(|link| socket_number(link.to_str()?));
            let Some(keys) = inode.and_then(|inode| self.wanted.remove(&inode)) else {
                continue;
            };
            let owner = owner(*pid, self.distro.as_deref());
            let inode = inode.unwrap_or_default();
            found.extend(keys.into_iter().map(|key| (key, inode, owner.clone())));
            if self.wanted.is_empty() {
                return true;
            }
        }
        false
    }
}

/// Says what a process is.
fn owner(pid: u32, distro: Option<&str>) -> Owner {
    let read = |file: &str| {
        let mut text = Vec::new();
        let opened = fs_err::File::open(format!("/proc/{pid}/{file}"));
        // One that has ended meanwhile has no name.
        let _ = opened.and_then(|f| f.take(4096).read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    };
    let distro = match distro {
        Some(distro) => distro.to_owned(),
        None => distro_of_process(&read("cgroup")),
    };
    Owner {
        machine_pid: pid,
        pid: inner_pid(&read("status"), !distro.is_empty()).unwrap_or(pid),
        process: name(&read("comm")),
        distro,
    }
}

/// Reads the number in `socket:[123]`.
fn socket_number(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// Reads a process's pid in its distribution from `/proc/<pid>/status`: the second of its pids, from the outside in.
fn inner_pid(status: &str, in_distro: bool) -> Option<u32> {
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    let mut pids = line.split_ascii_whitespace().map(|p| p.parse::<u32>().ok());
    let outer = pids.next()??;
    match pids.next() {
        Some(inner) if in_distro => inner,
        _ => Some(outer),
    }
}

/// Reads a process's distribution from `/proc/<pid>/cgroup`.
fn distro_of_process(cgroup: &str) -> String {
    cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .and_then(|path| path.split('/').next())
        .unwrap_or_default()
        .to_owned()
}

fn name(comm: &str) -> String {
    let mut name: String = comm
        .trim_end_matches('\n')
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    while name.len() > MAX_NAME {
        name.pop();
    }
    name
}

/// Lists the processes of one cgroup, at most the last [`MAX_PROCESSES`]. None when the group is gone or threaded.
fn processes_in(group: &Path) -> Vec<u32> {
    let mut text = String::new();
    let read = fs_err::File::open(group.join("cgroup.procs"))
        .and_then(|file| file.take(MAX_LIST).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    let mut pids: Vec<u32> = text.lines().filter_map(|l| l.parse().ok()).collect();
    pids.drain(..pids.len().saturating_sub(MAX_PROCESSES));
    pids
}

/// Lists a tree of cgroups, as far as [`MAX_GROUPS`].
fn groups_below(top: PathBuf) -> Vec<PathBuf> {
    let mut groups = vec![top];
    let mut next = 0;
    while next < groups.len() && groups.len() < MAX_GROUPS {
        let entries = fs_err::read_dir(&groups[next]).into_iter().flatten();
        let below: Vec<_> = entries
            .filter_map(Result::ok)
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| e.path())
            .take(MAX_GROUPS)
            .collect();
        groups.extend(below);
        next += 1;
    }
    groups.truncate(MAX_GROUPS);
    groups
}

fn all_processes() -> Vec<u32> {
    let entries = fs_err::read_dir("/proc").into_iter().flatten();
    entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .take(MAX_PROCESSES)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostel_netlink::{SockDiag, Transport};
    use std::net::TcpListener;
    use std::time::Duration;

    fn listening() -> (TcpListener, Key, Bound) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let diag = SockDiag::open().unwrap();
        let (found, _) = diag.bound(Transport::Tcp, Some(port), 1, |_| true).unwrap();
        let key = Key {
            room: "".into(),
            transport: Transport::Tcp,
            address: found[0].address,
            port,
        };
        (listener, key, found[0])
    }

    fn search(owners: &mut Owners) -> Found {
        let mut all = Vec::new();
        while owners.is_searching() {
            // No time at all: a step goes on a little all the same.
            all.extend(owners.step(Instant::now()));
        }
        all
    }

    #[test]
    fn the_process_of_a_socket_is_found_in_its_cgroup_and_without_one() {
        let (_listener, key, bound) = listening();
        for cgroup in [bound.cgroup, None, Some(u64::MAX)] {
            let mut owners = Owners::new();
            owners.ask([(key.clone(), Bound { cgroup, ..bound })]);
            let found = search(&mut owners);
            let (found_key, inode, owner) = &found[0];
            assert_eq!((found_key, *inode), (&key, bound.inode));
            assert_eq!(owner.machine_pid, std::process::id(), "{cgroup:?}");
            assert!(!owner.process.is_empty() && owner.process.len() <= MAX_NAME);
        }
    }

    #[test]
    fn a_socket_that_nobody_has_ends_the_search() {
        let (_listener, key, bound) = listening();
        let mut owners = Owners::new();
        let inode = u32::MAX;
        owners.ask([(key, Bound { inode, ..bound })]);
        let start = Instant::now();
        assert!(search(&mut owners).is_empty());
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_is_gone_is_not_searched_for() {
        let (_listener, key, bound) = listening();
        let mut owners = Owners::new();
        let gone = Bound {
            inode: u32::MAX,
            ..bound
        };
        owners.ask([(key.clone(), gone)]);
        owners.search = owners.next_search();
        owners.ask([(key.clone(), gone), (key, bound)]);
        owners.forget(|_, inode| inode == gone.inode);
        assert!(owners.search.as_ref().is_some_and(|s| s.wanted.is_empty()));
        assert_eq!(owners.waiting.len(), 1);
        assert_eq!(search(&mut owners).len(), 1);
    }

    #[test]
    fn the_first_directory_is_the_distribution() {
        let root = Path::new("/sys/fs/cgroup");
        let distro = |path: &str| place_of(root, path.into()).map(|p| p.distro);
        assert_eq!(distro("/sys/fs/cgroup/id/init/x").as_deref(), Some("id"));
        assert_eq!(distro("/sys/fs/cgroup").as_deref(), Some(""));
        assert_eq!(distro("/elsewhere"), None);
        assert_eq!(distro_of_process("4:cpu:/\n0::/id/init\n"), "id");
        assert_eq!(distro_of_process("0::/\n"), "");
        assert_eq!(distro_of_process(""), "");
    }

    #[test]
    fn a_pid_is_that_of_the_distribution_not_of_a_container_in_it() {
        let status = "Name:\tx\nNSpid:\t812\t20\t3\n";
        assert_eq!(inner_pid(status, true), Some(20));
        assert_eq!(inner_pid(status, false), Some(812));
        assert_eq!(inner_pid("NSpid:\t812\n", true), Some(812));
        assert_eq!(inner_pid("NSpid:\n", true), None);
        assert_eq!(inner_pid("", true), None);
    }

    proptest::proptest! {
        #[test]
        fn texts_of_proc_are_read_without_a_panic(text in "\\PC{0,200}", pids in "NSpid:[ \t0-9x]{0,30}") {
            let _ = (inner_pid(&pids, true), inner_pid(&text, true), socket_number(&text), distro_of_process(&text));
            let name = name(&text);
            proptest::prop_assert!(name.len() <= MAX_NAME && !name.contains(char::is_control));
        }
    }
}
