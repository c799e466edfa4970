//! Bridge and tap, held by `hostel-net`: on the host's own network, or in a user and network namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{self, BoxFuture},
};
use hostel_bridge::{
    CallError, Client, Event, Ipv6, Mode, Network, Raised, Reply, Request, SpawnError, Up, Uplink,
    descriptors, helper, surveyed,
};
use hostel_model::firewall::Rule;
use hostel_netlink::Routing;
use hostel_sys::spawn::Stream;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{oneshot, watch},
    task::AbortHandle,
    time::timeout,
};

use super::{
    Adapter, Backend, GuestNetwork, Kind, NetdevSpec, Wanted, sentences, surroundings::Surroundings,
};
use crate::{Host, MacAddress, NatRecord, advice, error_chain, host, programs};

/// The way out of the namespace is there after some 100 ms; this is for a machine that is very busy.
const UPLINK: Duration = Duration::from_secs(5);
/// How long a request may take.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two starts of a way out that ends again and again.
const RESTART: Duration = Duration::from_secs(1);
/// In the namespace packets are as large as they can be: the way out takes them one by one, and a download at 1500 bytes is
/// three to four times slower.
const LARGE_MTU: u32 = 65520;

/// What is known of the helper.
#[derive(Clone, Debug, Default)]
struct State {
    /// Why the card is of no use any more.
    ended: Option<String>,
    uplink: Uplink,
}

/// A bridge and a tap.
#[derive(Debug)]
pub(super) struct Bridged {
    kind: Kind,
    reason: String,
    record: NatRecord,
    ipv6: bool,
    host_loopback: bool,
    /// The largest packet of bridge and tap. The guest's may be smaller and follow the host's without a change of these: its card
    /// takes larger packets than it sends.
    wire_mtu: u32,
    around: Surroundings,
    raised: Raised,
    pid: u32,
    client: Mutex<Option<Arc<Client>>>,
    state: watch::Receiver<State>,
    /// Starts the way out again.
    restarter: Option<AbortHandle>,
}

/// Looks whether `hostel-net` can work in this way. Changes nothing; blocks for some milliseconds.
pub(super) fn probe(kind: Kind, wanted: &Wanted) -> Result<String, String> {
    let (program, mode) = program(kind, wanted)?;
    let client = spawn(&program, &mode, |_| {})?;
    client.close();
    Ok(reason(kind, &program))
}

/// Opens it. What does not work leaves nothing behind.
pub(super) async fn open(kind: Kind, wanted: &Wanted) -> Result<Bridged, String> {
    let (program, mode) = program(kind, wanted)?;
    let host = Host::read().map_err(|e| error_chain(&e))?;
    let (fixed, wire_mtu) = match (kind, wanted.mtu) {
        (_, Some(mtu)) => (Some(mtu), mtu),
        (Kind::Rootless, None) => (Some(LARGE_MTU), LARGE_MTU),
        (_, None) => (None, host::MTU),
    };
    let around = Surroundings::new(fixed, &host);
    let record = wanted.record.clone();
    let up = up(wanted, wire_mtu);
    let (sender, mut state) = watch::channel(State::default());
    let reason = reason(kind, &program);
    let started = tokio::task::spawn_blocking(move || {
        let client = spawn(&program, &mode, move |event| note(&sender, event))?;
        let raised = client.up(up).map_err(|e| error_chain(&e))?;
        Ok::<_, String>((client, raised))
    });
    let (client, raised) = started.await.map_err(|e| e.to_string())??;
    let client = Arc::new(client);
    let mut restarter = None;
    if kind == Kind::Rootless {
        if let Err(why) = leads_out(&mut state).await {
            end(client).await;
            return Err(why);
        }
        let task = restart(Arc::downgrade(&client), state.clone());
        restarter = Some(tokio::spawn(task).abort_handle());
    }
    Ok(Bridged {
        kind,
        reason,
        record,
        ipv6: wanted.ipv6,
        host_loopback: wanted.host_loopback,
        wire_mtu,
        around,
        raised,
        pid: client.pid(),
        client: Mutex::new(Some(client)),
        state,
        restarter,
    })
}

/// Finds the program, and what it is told.
fn program(kind: Kind, wanted: &Wanted) -> Result<(PathBuf, Mode), String> {
    let own = || {
        let program = &wanted.hostel_net;
        programs::is_executable(program)
            .then(|| program.clone())
            .ok_or_else(|| format!("there is no program `{}`", program.display()))
    };
    if kind == Kind::Root {
        let program = if rustix::process::geteuid().is_root() {
            tun()?;
            own()?
        } else {
            // It opens the device with rights of its own.
            installed_helper()?
        };
        return Ok((program, Mode::Host));
    }
    tun()?;
    let pasta = programs::find("pasta", &wanted.path).ok_or("there is no program `pasta`")?;
    let mode = Mode::UserNamespace { pasta: Some(pasta) };
    Ok((own()?, mode))
}

/// Finds the helper that gives an ordinary user the host's own network.
fn installed_helper() -> Result<PathBuf, String> {
    let path = Path::new(helper::PATH);
    let Some(found) = helper::installed(path) else {
        return Err(
            "needs root, or the helper: `sudo hostel net helper install` installs it".to_owned(),
        );
    };
    if found.is_usable() {
        return Ok(found.path);
    }
    let problem = match found.problems.first() {
        Some(problem) => problem.clone(),
        None => format!("you are not in its group {}", found.group),
    };
    Err(format!(
        "the helper `{}` cannot be used: {problem}; `sudo hostel net helper install` puts it right",
        found.path.display()
    ))
}

/// Taps come from here; `pasta` hangs when it cannot be opened.
fn tun() -> Result<(), String> {
    let path = "/dev/net/tun";
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map(drop)
        .map_err(|e| {
            let why = rustix::io::Errno::from_io_error(&e).map_or_else(
                || e.to_string(),
                |errno| io::Error::from(errno).kind().to_string(),
            );
            format!("`{path}` cannot be opened: {why}; `sudo hostel net helper install` gives taps without it")
        })
}

fn reason(kind: Kind, program: &Path) -> String {
    match kind {
        Kind::Root if rustix::process::geteuid().is_root() => {
            "this is root: bridge and tap on the host's own network".to_owned()
        }
        Kind::Root => format!(
            "the helper `{}` is installed: bridge and tap on the host's own network",
            program.display()
        ),
        _ => "no root: bridge and tap in a namespace of this user's, and pasta as the way out"
            .to_owned(),
    }
}

fn spawn(
    program: &Path,
    mode: &Mode,
    events: impl Fn(Event) + Send + 'static,
) -> Result<Client, String> {
    Client::spawn(program, mode, Stream::Null, events).map_err(|error| match error {
        SpawnError::Refused(refusal) => refusal.to_string(),
        other => error_chain(&other),
    })
}

fn up(wanted: &Wanted, mtu: u32) -> Up {
    let record = &wanted.record;
    Up {
        subnet: Network {
            address: record.subnet.network(),
            bits: record.subnet.bits(),
        },
        gateway: record.gateway,
        guest: record.address,
        mtu,
        ipv6: wanted.ipv6.then(|| Ipv6 {
            prefix: record.ipv6_network(),
            gateway: record.ipv6_gateway(),
        }),
        host_loopback: wanted.host_loopback,
        gateway_dns: true,
        firewall: wanted.firewall.clone(),
    }
}

/// Takes in what the helper tells. Runs on its thread.
fn note(sender: &watch::Sender<State>, event: Event) {
    sender.send_modify(|state| match event {
        Event::TapLost => {
            let text = "the tap was taken away".to_owned();
            state.ended.get_or_insert(text);
        }
        Event::Ended(how) => {
            let text = format!("the network's helper has ended ({how})");
            state.ended.get_or_insert(text);
        }
        Event::Failed(refusal) => {
            state.ended.get_or_insert(refusal.message);
        }
        Event::Uplink(uplink) => state.uplink = uplink,
        Event::Repaired(what) => tracing::debug!(what, "the network was put right"),
        Event::Trouble(refusal) => tracing::debug!(%refusal, "the network cannot be put right"),
        Event::Ready { .. } => {}
    });
}

/// Waits until the way out works.
async fn leads_out(state: &mut watch::Receiver<State>) -> Result<(), String> {
    let decided = state
        .wait_for(|s| s.ended.is_some() || matches!(s.uplink, Uplink::Ready | Uplink::Ended(_)));
    match timeout(UPLINK, decided).await {
        Err(_) => Err(format!(
            "pasta did not open a way out within {} s",
            UPLINK.as_secs()
        )),
        Ok(Err(_)) => Err("the network's helper has ended".to_owned()),
        Ok(Ok(state)) => match (&state.ended, &state.uplink) {
            (Some(why), _) | (None, Uplink::Ended(why)) => Err(why.clone()),
            _ => Ok(()),
        },
    }
}

/// Starts the way out again whenever it has ended.
#[expect(
    clippy::disallowed_methods,
    reason = "a pause between attempts is what is wanted"
)]
async fn restart(client: Weak<Client>, mut state: watch::Receiver<State>) {
    loop {
        let over = state.wait_for(|s| matches!(s.uplink, Uplink::Ended(_)));
        match over.await {
            Ok(state) => tracing::debug!(uplink = ?state.uplink, "the way out is started again"),
            Err(_) => return,
        }
        let Some(client) = client.upgrade() else {
            return;
        };
        let (sender, done) = oneshot::channel();
        client.submit(
            Request::RestartUplink,
            Box::new(move |outcome| {
                // Nobody waits for it any more: then it does not matter.
                let _ = sender.send(outcome.is_ok());
            }),
        );
        drop(client);
        if !matches!(timeout(ANSWER, done).await, Ok(Ok(true))) || state.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(RESTART).await;
    }
}

/// Ends the helper on a thread where waiting is allowed.
async fn end(client: Arc<Client>) {
    // Cannot fail: nothing in it panics.
    let _ = tokio::task::spawn_blocking(move || drop(client)).await;
}

fn failed(error: CallError) -> io::Error {
    let kind = match &error {
        CallError::Ended(_) => io::ErrorKind::NotConnected,
        CallError::Late(_) => io::ErrorKind::TimedOut,
        CallError::Refused(_) | CallError::Misunderstood(_) => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl Bridged {
    async fn call(&self, request: Request) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let (sender, outcome) = oneshot::channel();
        {
            let client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(client) = client.as_ref() else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            client.submit(request, Box::new(move |outcome| drop(sender.send(outcome))));
        }
        match timeout(ANSWER, outcome).await {
            Ok(Ok(outcome)) => outcome.map_err(failed),
            Ok(Err(_)) => Err(io::ErrorKind::NotConnected.into()),
            Err(_) => Err(failed(CallError::Late(ANSWER))),
        }
    }

    async fn lent<const N: usize>(&self, request: Request) -> io::Result<[OwnedFd; N]> {
        descriptors(self.call(request).await?).map_err(failed)
    }

    fn is_own(&self) -> bool {
        self.kind == Kind::Rootless
    }

    fn take(&self) -> Option<Arc<Client>> {
        if let Some(restarter) = &self.restarter {
            restarter.abort();
        }
        self.client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// The interfaces of the host that are ours.
    fn host_adapters(&self) -> Result<Vec<Adapter>, hostel_netlink::NetlinkError> {
        let routing = Routing::connect()?;
        let links = routing.links()?;
        let addresses = routing.addresses()?;
        let mut adapters = Vec::new();
        for name in [&self.raised.bridge, &self.raised.tap] {
            let Some(link) = links.iter().find(|link| link.name == *name) else {
                continue;
            };
            let own = addresses.iter().filter(|a| a.index == link.index);
            let master = links.iter().find(|l| Some(l.index) == link.master);
            adapters.push(Adapter {
                name: link.name.clone(),
                kind: if *name == self.raised.tap {
                    "tap"
                } else {
                    "bridge"
                }
                .to_owned(),
                mac: link.mac.map(MacAddress::from_bytes),
                addresses: own.map(|a| a.prefix.to_string()).collect(),
                mtu: link.mtu,
                up: link.up,
                switch: master.map(|l| l.name.clone()),
                place: "host".to_owned(),
            });
        }
        Ok(adapters)
    }

    /// The interfaces of the namespace, which cannot be seen from here.
    fn own_adapters(&self) -> Vec<Adapter> {
        let place = format!("user and network namespace of process {}", self.pid);
        let adapter = |name: &str, kind: &str, addresses, switch| Adapter {
            name: name.to_owned(),
            kind: kind.to_owned(),
            mac: None,
            addresses,
            mtu: self.wire_mtu,
            up: true,
            switch,
            place: place.clone(),
        };
        let record = &self.record;
        let mut own = vec![format!("{}/{}", record.gateway, record.subnet.bits())];
        if self.ipv6 {
            own.push(format!("{}/64", record.ipv6_gateway()));
        }
        let bridge = self.raised.bridge.clone();
        let out = self.state.borrow().uplink == Uplink::Ready;
        vec![
            adapter(&bridge, "bridge", own, None),
            adapter(&self.raised.tap, "tap", Vec::new(), Some(bridge.clone())),
            Adapter {
                up: out,
                ..adapter("uplink", "pasta", Vec::new(), None)
            },
        ]
    }
}

impl Drop for Bridged {
    fn drop(&mut self) {
        // Blocks for milliseconds when nobody has closed it.
        drop(self.take());
    }
}

impl Backend for Bridged {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn guest(&self) -> GuestNetwork {
        let record = &self.record;
        GuestNetwork {
            relay_address: Some(record.relay_address()),
            host: if self.is_own() && !self.host_loopback {
                self.around.address()
            } else {
                Some(record.gateway)
            },
            ..GuestNetwork::of(record, self.around.mtu(), self.ipv6)
        }
    }

    fn follow(&self, host: &Host) {
        self.around.follow(host);
    }

    fn netdev(&self) -> BoxFuture<'_, io::Result<NetdevSpec>> {
        let fd = self.raised.descriptor.try_clone();
        future::ready(fd.map(|fd| NetdevSpec::Tap { fd })).boxed()
    }

    fn reaches_guest(&self) -> bool {
        true
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        async move {
            if !self.is_own() {
                return TcpStream::connect(to).await;
            }
            let [socket] = self.lent(Request::ConnectTcp(to)).await?;
            let stream = TcpStream::from_std(std::net::TcpStream::from(socket))?;
            stream.writable().await?;
            match stream.take_error()? {
                None => Ok(stream),
                Some(error) => Err(error),
            }
        }
        .boxed()
    }

    fn connect_udp(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<UdpSocket>> {
        async move {
            if self.is_own() {
                let [socket] = self.lent(Request::ConnectUdp(to)).await?;
                return UdpSocket::from_std(std::net::UdpSocket::from(socket));
            }
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(to).await?;
            Ok(socket)
        }
        .boxed()
    }

    fn gateway_dns(&self) -> BoxFuture<'_, io::Result<Option<(UdpSocket, TcpListener)>>> {
        async move {
            let [udp, tcp] = self.lent(Request::ListenDns).await?;
            let udp = UdpSocket::from_std(std::net::UdpSocket::from(udp))?;
            let tcp = TcpListener::from_std(std::net::TcpListener::from(tcp))?;
            Ok(Some((udp, tcp)))
        }
        .boxed()
    }

    fn set_firewall(&self, rules: Vec<Rule>) -> BoxFuture<'_, io::Result<()>> {
        async move { self.call(Request::Firewall(rules)).await.map(drop) }.boxed()
    }

    fn adapters(&self) -> Vec<Adapter> {
        if self.is_own() {
            return self.own_adapters();
        }
        self.host_adapters().unwrap_or_else(|error| {
            tracing::debug!(%error, "the host's interfaces cannot be read");
            Vec::new()
        })
    }

    fn reach(&self) -> Vec<String> {
        let (guest, gateway) = (self.record.address, self.record.gateway);
        let mut reach = Vec::new();
        if self.is_own() {
            reach.push(sentences::outward("pasta"));
            reach.push(sentences::host(self.around.address()));
            reach.extend(sentences::inward(guest));
        } else {
            reach.push(
                "The VM reaches the internet with the host's address, all protocols.".to_owned(),
            );
            reach.push(sentences::host_at_gateway(gateway));
            reach.push(format!("The host reaches the VM at {guest}, and distributions with an address of their own at theirs."));
            reach.push("Other machines reach the VM only where the firewall's rules allow it (`hostel net firewall`).".to_owned());
        }
        reach.push(sentences::loopback(self.host_loopback.then_some(gateway)));
        reach
    }

    fn advice(&self) -> BoxFuture<'_, Vec<String>> {
        async move {
            if self.is_own() {
                return Vec::new();
            }
            let survey = match self.call(Request::Survey).await {
                Ok(reply) => surveyed(reply).map_err(failed),
                Err(error) => Err(error),
            };
            let survey = survey
                .inspect_err(|error| tracing::debug!(%error, "the tables of others cannot be read"))
                .ok();
            let bridge = self.raised.bridge.clone();
            let look = move || advice::others(&bridge, survey.as_ref());
            let looked = tokio::task::spawn_blocking(look).await;
            looked.unwrap_or_default()
        }
        .boxed()
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        let mut state = self.state.clone();
        async move {
            match state.wait_for(|s| s.ended.is_some()).await {
                Ok(state) => state.ended.clone().unwrap_or_default(),
                Err(_) => "the network's helper has ended".to_owned(),
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            if let Some(client) = self.take() {
                end(client).await;
            }
        }
        .boxed()
    }
}
