//! passt: a process of the user's that turns the guest's connections into sockets of the host.

use std::{
    io,
    net::Ipv4Addr,
    os::{fd::OwnedFd, unix::net::UnixStream as Pair},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use hostel_sys::spawn::{Child, Spawn, Stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixStream, unix::pipe},
    sync::watch,
    task::AbortHandle,
    time::timeout,
};

use super::{
    Adapter, Backend, GuestNetwork, Kind, NetdevSpec, Wanted, sentences, surroundings::Surroundings,
};
use crate::{
    Host, NatRecord, error_chain,
    filter::{self, Filter, Policy},
    programs,
};

/// It answers after some milliseconds; this is for a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// Its socket carries whole packets without offloads, so large ones are what makes it fast.
const LARGE_MTU: u32 = 65520;
/// As much as is kept of what it says about its end.
const WORDS: usize = 4096;
/// The longest frame that is expected before QEMU takes over.
const MAX_FRAME: usize = 72 << 10;

/// What the installed version can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Features {
    /// Addresses of the guest's side can stand for the host (since August 2024). Before, several addresses of one guest
    /// confused it, too.
    maps: bool,
}

/// passt behind QEMU's stream socket.
#[derive(Debug)]
pub(super) struct Passt {
    program: PathBuf,
    reason: String,
    features: Features,
    record: NatRecord,
    ipv6: bool,
    host_loopback: bool,
    around: Surroundings,
    running: Mutex<Option<Running>>,
    /// Why the present process has ended.
    ended: watch::Sender<Option<String>>,
}

/// A process that has answered.
struct Started {
    child: Arc<Child>,
    words: pipe::Receiver,
    socket: OwnedFd,
}

/// The process of the present connection.
#[derive(Debug)]
struct Running {
    child: Arc<Child>,
    _filter: Option<Filter>,
    watcher: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.watcher.abort();
        // Fails only when it has ended.
        let _ = self.child.kill();
    }
}

/// Finds the program and what it can do. Changes nothing.
pub(super) async fn probe(wanted: &Wanted) -> Result<String, String> {
    let (program, _) = find(wanted).await?;
    Ok(reason(&program))
}

fn reason(program: &Path) -> String {
    format!("`{}` is installed", program.display())
}

async fn find(wanted: &Wanted) -> Result<(PathBuf, Features), String> {
    let program = programs::find("passt", &wanted.path).ok_or("there is no program `passt`")?;
    let features = features(&program).await?;
    Ok((program, features))
}

/// Opens it, and looks whether it really answers.
pub(super) async fn open(wanted: &Wanted) -> Result<Passt, String> {
    let (program, features) = find(wanted).await?;
    let host = tokio::task::spawn_blocking(Host::read).await;
    let host = host
        .map_err(|e| e.to_string())?
        .map_err(|e| error_chain(&e))?;
    let passt = Passt {
        reason: reason(&program),
        program,
        features,
        record: wanted.record.clone(),
        ipv6: wanted.ipv6,
        host_loopback: wanted.host_loopback,
        around: Surroundings::new(Some(wanted.mtu.unwrap_or(LARGE_MTU)), &host),
        running: Mutex::new(None),
        ended: watch::Sender::new(None),
    };
    // Dropping it ends it: each connection gets one of its own.
    drop(passt.start().await.map_err(|e| e.to_string())?);
    Ok(passt)
}

/// Reads its help: the versions of distributions do not tell their number.
async fn features(program: &Path) -> Result<Features, String> {
    let mut command = tokio::process::Command::new(program);
    command.arg("--help").kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await;
    let output = output
        .map_err(|_| {
            format!(
                "`{}` says nothing about itself within {} s",
                program.display(),
                PATIENCE.as_secs()
            )
        })?
        .map_err(|e| format!("cannot run `{}`: {e}", program.display()))?;
    let says = |word: &str| {
        [&output.stdout, &output.stderr]
            .into_iter()
            .any(|bytes| String::from_utf8_lossy(bytes).contains(word))
    };
    if !says("--fd ") {
        return Err(format!(
            "`{}` is too old: it takes no connected socket",
            program.display()
        ));
    }
    Ok(Features {
        maps: says("--map-guest-addr"),
    })
}

impl Passt {
    fn arguments(&self, fd: i32) -> Vec<String> {
        let record = &self.record;
        let mut words: Vec<String> = Vec::new();
        let mut flag = |option: &str| words.push(option.to_owned());
        flag("--foreground");
        flag("--quiet");
        if !self.ipv6 {
            flag("--ipv4-only");
        }
        if !self.features.maps && !self.host_loopback {
            flag("--no-map-gw");
        }
        let mut put = |option: &str, value: String| words.extend([option.to_owned(), value]);
        put("--fd", fd.to_string());
        put("--address", record.address.to_string());
        put("--netmask", record.subnet.bits().to_string());
        put("--gateway", record.gateway.to_string());
        put("--mtu", self.around.mtu().to_string());
        put("--dns", record.gateway.to_string());
        put("--dns-forward", record.gateway.to_string());
        if self.ipv6 {
            put("--address", record.ipv6_address().to_string());
            put("--gateway", record.ipv6_gateway().to_string());
        }
        // Nothing of the guest appears on the host by this way.
        put("--tcp-ports", "none".to_owned());
        put("--udp-ports", "none".to_owned());
        if self.features.maps && !self.host_loopback {
            put("--map-host-loopback", "none".to_owned());
            put("--map-guest-addr", record.gateway.to_string());
        }
        words
    }

    /// Starts a process, and waits until something answers at QEMU's end of its socket.
    async fn start(&self) -> io::Result<Started> {
        let (ours, theirs) = Pair::pair()?;
        let (words, stderr) = io::pipe()?;
        let mut spawn = Spawn::new(&self.program);
        let fd = spawn.inherit(theirs.into());
        spawn
            .args(self.arguments(fd))
            .env([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")])
            .stderr(Stream::Fd(stderr.into()));
        let started = tokio::task::spawn_blocking(move || spawn.start()).await;
        let child = Arc::new(started.map_err(io::Error::other)??);
        let words = pipe::Receiver::from_owned_fd(words.into())?;
        ours.set_nonblocking(true)?;
        let mut socket = UnixStream::from_std(ours)?;
        match timeout(PATIENCE, greet(&mut socket, &self.record)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let how = timeout(PATIENCE, how_ended(&child, words)).await;
                return Err(how.map_or(error, io::Error::other));
            }
            Err(_) => {
                let text = format!("passt does not answer within {} s", PATIENCE.as_secs());
                return Err(io::Error::other(text));
            }
        }
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        Ok(Started {
            child,
            words,
            socket: socket.into(),
        })
    }

    async fn connection(&self) -> io::Result<NetdevSpec> {
        let Started {
            child,
            words,
            socket,
        } = self.start().await?;
        let (spec, filter) = if self.host_loopback {
            (None, None)
        } else {
            let (spec, filter) = filter::start(self.policy())?;
            (Some(spec), Some(filter))
        };
        // The former one goes first, so that its end is not taken for this one's.
        drop(self.take());
        self.ended.send_replace(None);
        let ended = self.ended.clone();
        let watched = Arc::clone(&child);
        let watcher = tokio::spawn(async move {
            let how = how_ended(&watched, words).await;
            ended.send_replace(Some(how));
        });
        *self.lock() = Some(Running {
            child,
            _filter: filter,
            watcher: watcher.abort_handle(),
        });
        Ok(NetdevSpec::Stream {
            fd: socket,
            filter: spec,
        })
    }

    fn policy(&self) -> Policy {
        let record = &self.record;
        Policy {
            subnet: record.subnet,
            gateway: record.gateway,
            gateway_is_host: self.features.maps,
            resolver: record.gateway,
            ipv6: self.ipv6.then(|| record.ipv6_network()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Running> {
        self.lock().take()
    }

    /// Where the guest reaches the host.
    fn host_address(&self) -> Option<Ipv4Addr> {
        if self.features.maps || self.host_loopback {
            Some(self.record.gateway)
        } else {
            self.around.address()
        }
    }
}

/// Waits until a process has ended, and tells how, with its last words.
async fn how_ended(child: &Arc<Child>, mut words: pipe::Receiver) -> String {
    let mut last = Vec::new();
    let mut chunk = [0; 1024];
    // To the end of the stream, so that it never waits for a reader.
    while let Ok(n @ 1..) = words.read(&mut chunk).await {
        last.extend_from_slice(&chunk[..n]);
        let surplus = last.len().saturating_sub(WORDS);
        last.drain(..surplus);
    }
    // Its stream is closed, so it has ended or is about to.
    let child = Arc::clone(child);
    let exit = match tokio::task::spawn_blocking(move || child.wait()).await {
        Ok(Ok(exit)) => exit.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let text = String::from_utf8_lossy(&last);
    let said = text
        .lines()
        .map(str::trim)
        // It also tries to reach the system's log, which it cannot from where it is, and it is right to give up root.
        .rfind(|l| {
            !l.is_empty() && !l.contains("to syslog") && !l.starts_with("Don't run as root")
        });
    match said {
        Some(said) => format!("passt ended with {exit}: {}", said.escape_debug()),
        None => format!("passt ended with {exit}"),
    }
}

/// Asks who has the gateway's address, as the guest will, and waits for the answer.
async fn greet(socket: &mut UnixStream, record: &NatRecord) -> io::Result<()> {
    let mac = record.mac.bytes();
    let mut frame = vec![0, 0, 0, 42];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    // ARP for IPv4 on Ethernet, a question.
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(record.address.octets());
    frame.extend([0; 6]);
    frame.extend(record.gateway.octets());
    socket.write_all(&frame).await?;
    loop {
        let len = socket.read_u32().await? as usize;
        if len > MAX_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut frame = vec![0; len];
        socket.read_exact(&mut frame).await?;
        if frame.get(12..14) == Some(&[8, 6]) {
            return Ok(());
        }
    }
}

impl Backend for Passt {
    fn kind(&self) -> Kind {
        Kind::Passt
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn guest(&self) -> GuestNetwork {
        let record = &self.record;
        GuestNetwork {
            hide_rooms: !self.features.maps,
            host: self.host_address(),
            ..GuestNetwork::of(record, self.around.mtu(), self.ipv6)
        }
    }

    fn follow(&self, host: &Host) {
        self.around.follow(host);
    }

    fn netdev(&self) -> BoxFuture<'_, io::Result<NetdevSpec>> {
        self.connection().boxed()
    }

    fn adapters(&self) -> Vec<Adapter> {
        let record = &self.record;
        let pid = self.lock().as_ref().map(|running| running.child.pid());
        let up = pid.is_some() && self.ended.borrow().is_none();
        vec![Adapter {
            name: "passt".to_owned(),
            kind: "passt".to_owned(),
            mac: None,
            addresses: vec![format!("{}/{}", record.gateway, record.subnet.bits())],
            mtu: self.around.mtu(),
            up,
            switch: None,
            place: pid.map_or_else(
                || "not connected".to_owned(),
                |pid| format!("inside process {pid}"),
            ),
        }]
    }

    fn reach(&self) -> Vec<String> {
        let mut reach = vec![sentences::outward("passt")];
        if self.features.maps && !self.host_loopback {
            reach.push(sentences::host_at_gateway(self.record.gateway));
        } else {
            reach.push(sentences::host(self.around.address()));
        }
        reach.extend(sentences::inward(self.record.address));
        reach.push(sentences::loopback(
            self.host_loopback.then_some(self.record.gateway),
        ));
        reach
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        let mut ended = self.ended.subscribe();
        async move {
            match ended.wait_for(Option::is_some).await {
                Ok(how) => how.clone().unwrap_or_default(),
                Err(_) => "passt has ended".to_owned(),
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            let Some(running) = self.take() else {
                return;
            };
            let child = Arc::clone(&running.child);
            drop(running);
            // Cannot fail: nothing in it panics.
            let _ = tokio::task::spawn_blocking(move || child.wait()).await;
        }
        .boxed()
    }
}
