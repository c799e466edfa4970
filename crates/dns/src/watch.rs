//! Follows the host's files. `resolv.conf` is changed in every way there is: rewritten in place, renamed over, a link that
//! is pointed elsewhere, a link whose target is changed, a bind mount. So the directories of the file and of every link
//! on the way to it are watched, and the file itself; whether anything changed is then decided by looking.

use std::{
    collections::HashSet,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, RwLock, Weak},
    time::Duration,
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::{
    net::unix::pipe,
    sync::watch,
    time::{Instant, timeout},
};

use crate::{
    host::{self, HostDns, ResolvConf, Upstreams},
    hosts::{self, Hosts},
};

/// How often to look without being told; changes behind a bind mount can be invisible.
const LOOK: Duration = Duration::from_secs(5);
/// How often to look when inotify cannot be had.
const LOOK_BLIND: Duration = Duration::from_millis(500);
/// Changes come in groups: this long without another one ends a group.
const QUIET: Duration = Duration::from_millis(20);
/// The longest group.
const GROUP: Duration = Duration::from_millis(200);
/// Whoever rewrites a file in place empties it first; it is given this long to fill it again.
const EMPTY: Duration = Duration::from_millis(300);
/// The most links followed.
const MAX_LINKS: usize = 16;

/// What is followed.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) resolv_conf: PathBuf,
    pub(crate) behind_stub: Vec<PathBuf>,
    pub(crate) hosts: PathBuf,
    pub(crate) port: u16,
}

/// What the files say.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) upstreams: RwLock<Arc<Upstreams>>,
    pub(crate) hosts: RwLock<Arc<Hosts>>,
    pub(crate) host: watch::Sender<HostDns>,
}

/// Tells one state of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, u64, i64, i64, i64, i64)>);

impl Stamp {
    fn of(path: &Path) -> Self {
        Self(fs_err::metadata(path).ok().map(|m| {
            let changed = (m.ctime(), m.ctime_nsec());
            let modified = (m.mtime(), m.mtime_nsec());
            (
                m.dev(),
                m.ino(),
                m.size(),
                changed.0,
                changed.1,
                modified.0,
                modified.1,
            )
        }))
    }
}

/// What it means that no server is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Empty {
    /// There is none.
    Counts,
    /// Nothing yet, when there were some: somebody may be writing the file.
    MayPass,
}

/// Reads the files when they changed.
#[derive(Debug)]
pub(crate) struct Follower {
    files: Files,
    known: Weak<Known>,
    resolvers_seen: Vec<Stamp>,
    hosts_seen: Stamp,
    /// There were servers, and there is none now: perhaps only until the file is filled again.
    emptied: bool,
}

impl Follower {
    /// Reads everything for the first time. Blocks for as long as that takes.
    pub(crate) fn start(files: Files) -> (Self, Arc<Known>) {
        let known = Arc::new(Known {
            upstreams: RwLock::default(),
            hosts: RwLock::default(),
            host: watch::Sender::new(HostDns::default()),
        });
        let mut follower = Self {
            files,
            known: Arc::downgrade(&known),
            resolvers_seen: Vec::new(),
            hosts_seen: Stamp(None),
            emptied: false,
        };
        follower.look(Empty::Counts);
        (follower, known)
    }

    /// Follows the files until nobody wants to know any more.
    ///
    /// Cancel safe: what is known stays whole.
    pub(crate) async fn run(mut self) {
        let mut events = Events::new()
            .inspect_err(|error| tracing::debug!(%error, "no inotify; looking twice a second"))
            .ok();
        while self.known.strong_count() > 0 {
            let paths = self.paths();
            if let Some(events) = &mut events {
                events.watch(&paths);
            }
            // After the watches are set, so that no change falls between.
            self = self.look_aside(Empty::MayPass).await;
            let filled_by = Instant::now() + EMPTY;
            while self.emptied {
                let left = filled_by.saturating_duration_since(Instant::now());
                let empty = if next(events.as_ref(), left).await && !left.is_zero() {
                    Empty::MayPass
                } else {
                    Empty::Counts
                };
                self = self.look_aside(empty).await;
            }
            let pause = if events.is_some() { LOOK } else { LOOK_BLIND };
            if next(events.as_ref(), pause).await {
                let end = Instant::now() + GROUP;
                while Instant::now() < end && next(events.as_ref(), QUIET).await {}
            }
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.files.resolv_conf.clone(), self.files.hosts.clone()];
        paths.extend(self.files.behind_stub.iter().cloned());
        paths
    }

    /// Looks on a thread where that may take its time.
    async fn look_aside(mut self, empty: Empty) -> Self {
        let look = tokio::task::spawn_blocking(move || {
            self.look(empty);
            self
        });
        look.await.expect("reading files does not panic")
    }

    fn look(&mut self, empty: Empty) {
        let Some(known) = self.known.upgrade() else {
            return;
        };
        let hosts_seen = Stamp::of(&self.files.hosts);
        if hosts_seen != self.hosts_seen {
            self.hosts_seen = hosts_seen;
            let hosts = read(&self.files.hosts, hosts::MAX_FILE);
            let hosts = Arc::new(Hosts::parse(&hosts));
            *known
                .hosts
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner) = hosts;
        }

        let resolvers_seen: Vec<Stamp> = std::iter::once(&self.files.resolv_conf)
            .chain(&self.files.behind_stub)
            .map(|path| Stamp::of(path))
            .collect();
        if resolvers_seen == self.resolvers_seen {
            self.emptied = false;
            return;
        }
        let conf = self.read_resolv_conf(&self.files.resolv_conf);
        let had = !read_lock(&known.upstreams).servers.is_empty();
        self.emptied = empty == Empty::MayPass && had && conf.upstreams.servers.is_empty();
        if self.emptied {
            return;
        }
        self.resolvers_seen = resolvers_seen;
        let behind: Vec<ResolvConf> = self
            .files
            .behind_stub
            .iter()
            .map(|path| self.read_resolv_conf(path))
            .collect();
        let host = conf.host_dns(&behind);
        *known
            .upstreams
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(conf.upstreams);
        known.host.send_if_modified(|old| {
            let changed = *old != host;
            *old = host;
            changed
        });
    }

    fn read_resolv_conf(&self, path: &Path) -> ResolvConf {
        let bytes = read(path, host::MAX_FILE);
        ResolvConf::parse(
            &String::from_utf8_lossy(&bytes),
            self.files.port,
            interface_index,
        )
    }
}

/// Takes a lock whose holders never panic half-way.
pub(crate) fn read_lock<T>(lock: &RwLock<Arc<T>>) -> Arc<T> {
    Arc::clone(
        &lock
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner),
    )
}

/// Reads a file; nothing when it is missing, too large, or no file.
fn read(path: &Path, max: u64) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let metadata = fs_err::metadata(path)?;
        if !metadata.is_file() || metadata.len() > max {
            return Err(io::Error::other("not a file, or too large"));
        }
        let mut bytes = Vec::new();
        fs_err::File::open(path)?
            .take(max)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(path = %path.display(), %error, "left out of what names resolve to");
        }
        Vec::new()
    })
}

fn interface_index(name: &str) -> Option<u32> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    );
    rustix::net::netdevice::name_to_index(socket.ok()?, name).ok()
}

/// Waits for an event; `false` when there was none in time.
async fn next(events: Option<&Events>, within: Duration) -> bool {
    let wait = async {
        match events {
            Some(events) => events.next().await,
            None => std::future::pending().await,
        }
    };
    timeout(within, wait).await.is_ok()
}

/// inotify.
#[derive(Debug)]
struct Events {
    /// Read as a pipe is, and polled as one.
    fd: pipe::Receiver,
    watched: HashSet<i32>,
}

impl Events {
    fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self {
            fd: pipe::Receiver::from_owned_fd_unchecked(fd)?,
            watched: HashSet::new(),
        })
    }

    /// Watches whatever the paths go through now, and nothing else any more.
    fn watch(&mut self, paths: &[PathBuf]) {
        let mut watched = HashSet::new();
        for path in paths.iter().flat_map(|path| places(path)) {
            let flags = WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MOVE
                | WatchFlags::CLOSE_WRITE
                | WatchFlags::MODIFY
                | WatchFlags::ATTRIB
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF;
            if let Ok(number) = inotify::add_watch(&self.fd, &path, flags) {
                watched.insert(number);
            }
        }
        for number in self.watched.difference(&watched) {
            // Gone already when what it watched is gone.
            let _ = inotify::remove_watch(&self.fd, *number);
        }
        self.watched = watched;
    }

    /// Waits for something to happen. Cancel safe.
    async fn next(&self) {
        let mut buffer = [0; 4096];
        loop {
            match self.fd.readable().await {
                Ok(()) => {}
                Err(_) => std::future::pending().await,
            }
            match self.fd.try_read(&mut buffer) {
                Ok(_) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Not expected of inotify; as if nothing came, so that it is not asked again and again.
                    tracing::debug!(%error, "inotify");
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// Returns the places where a change of a path's content shows: the directory that holds it, or would hold it, the same
/// for what each link on the way points to, and the file at the end.
fn places(path: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let mut parent = path.parent();
        // What is not there yet shows in the directory above.
        while let Some(missing) = parent.filter(|parent| !parent.is_dir()) {
            parent = missing.parent();
        }
        let Some(parent) = parent else {
            break;
        };
        places.push(parent.to_owned());
        // A directory on the way can be a link too, and be pointed elsewhere.
        for above in parent.ancestors() {
            if above.is_symlink() {
                places.extend(above.parent().map(Path::to_owned));
            }
        }
        let Ok(target) = fs_err::read_link(&path) else {
            places.push(path);
            break;
        };
        path = parent.join(target);
    }
    places
}
