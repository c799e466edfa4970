//! A network that is not there: it says what it was told, and dies when asked to.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use futures_util::{FutureExt as _, future::BoxFuture};
use hostel_engine::{
    hypervisor::NetworkPlan,
    network::{HostNamesPlaces, NetworkSettings, NetworkSetup, Opener},
};
use hostel_model::firewall::Rule;
use hostel_switch::{
    Adapter, Backend, GuestIpv6, GuestNetwork, Host, HostState, Kind, NatRecord, NetdevSpec,
    Verdict,
};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
};

/// What tests look at and turn.
#[derive(Debug)]
pub(crate) struct Net {
    /// The VM has none.
    pub(crate) none: AtomicBool,
    pub(crate) settings: Mutex<NetworkSettings>,
    /// The host's resolv.conf.
    pub(crate) resolv_conf: Mutex<Option<PathBuf>>,
    pub(crate) host_places: Mutex<HostNamesPlaces>,
    /// The host's network.
    pub(crate) host: watch::Sender<HostState>,
    /// Opening it again fails so often.
    pub(crate) refusals: AtomicU32,
    pub(crate) opened: AtomicU32,
    pub(crate) closed: AtomicU32,
    pub(crate) replaced: AtomicU32,
    /// How many networks had been closed at each unplugging of the card.
    pub(crate) unplugged: Mutex<Vec<u32>>,
    /// Rules that the backend was given, in order.
    pub(crate) rules: watch::Sender<Vec<Vec<Rule>>>,
    broken: watch::Sender<u32>,
}

impl Default for Net {
    fn default() -> Self {
        Self {
            none: AtomicBool::new(false),
            settings: Mutex::default(),
            resolv_conf: Mutex::default(),
            host_places: Mutex::new(HostNamesPlaces {
                hosts: PathBuf::from("/nonexistent"),
                path: std::ffi::OsString::new(),
            }),
            host: watch::Sender::default(),
            refusals: AtomicU32::new(0),
            opened: AtomicU32::new(0),
            closed: AtomicU32::new(0),
            replaced: AtomicU32::new(0),
            unplugged: Mutex::default(),
            rules: watch::channel(Vec::new()).0,
            broken: watch::channel(0).0,
        }
    }
}

impl Net {
    /// Changes the host's network.
    pub(crate) fn host_is(&self, mtu: u32, ipv6: bool, addresses: &[&str]) {
        let host = Host {
            mtu,
            online: true,
            ipv6,
            ..Host::default()
        };
        self.host.send_replace(HostState {
            host: Some(host),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            trouble: None,
        });
    }

    /// Ends the backend as the death of its process does.
    pub(crate) fn breaks(&self) {
        self.broken.send_modify(|n| *n += 1);
    }
}

pub(crate) fn record() -> NatRecord {
    NatRecord::choose("7f1c", "hostel", &[]).unwrap()
}

pub(crate) fn verdicts() -> Vec<Verdict> {
    let verdict = |kind, usable, reason: &str| Verdict {
        kind,
        usable,
        reason: reason.to_owned(),
    };
    vec![
        verdict(Kind::Root, false, "not root"),
        verdict(Kind::Slirp, true, "QEMU has it built in"),
    ]
}

pub(crate) fn plan(net: &Net) -> NetworkPlan {
    NetworkPlan {
        record: Some(record()),
        settings: net.settings.lock().unwrap().clone(),
        ipv6: false,
        warnings: Vec::new(),
    }
}

pub(crate) fn setup(net: &Arc<Net>) -> Option<NetworkSetup> {
    if net.none.load(Ordering::SeqCst) {
        return None;
    }
    // A file that is not there: no test asks the host's own resolvers.
    let nowhere = PathBuf::from("/nonexistent");
    Some(NetworkSetup {
        backend: Arc::new(FakeBackend::new(net, false)),
        verdicts: verdicts(),
        record: record(),
        settings: net.settings.lock().unwrap().clone(),
        dns: hostel_dns::Settings {
            resolv_conf: net
                .resolv_conf
                .lock()
                .unwrap()
                .clone()
                .unwrap_or(nowhere.clone()),
            behind_stub: Vec::new(),
            hosts: nowhere,
            ..hostel_dns::Settings::default()
        },
        host: net.host.subscribe(),
        host_places: net.host_places.lock().unwrap().clone(),
        opener: Arc::new(FakeOpener(Arc::clone(net))),
    })
}

#[derive(Debug)]
struct FakeOpener(Arc<Net>);

impl Opener for FakeOpener {
    fn open(
        &self,
        firewall: Vec<Rule>,
        ipv6: bool,
    ) -> BoxFuture<'_, Result<Arc<dyn Backend>, String>> {
        async move {
            let refusals = &self.0.refusals;
            if refusals.load(Ordering::SeqCst) > 0 {
                refusals.fetch_sub(1, Ordering::SeqCst);
                return Err("no luck".to_owned());
            }
            self.0.rules.send_modify(|all| all.push(firewall));
            Ok(Arc::new(FakeBackend::new(&self.0, ipv6)) as _)
        }
        .boxed()
    }
}

#[derive(Debug)]
struct FakeBackend {
    net: Arc<Net>,
    /// How often the network had broken when this one was made.
    before: u32,
    ipv6: bool,
    mtu: AtomicU32,
}

impl FakeBackend {
    fn new(net: &Arc<Net>, ipv6: bool) -> Self {
        net.opened.fetch_add(1, Ordering::SeqCst);
        let before = *net.broken.borrow();
        Self {
            net: Arc::clone(net),
            before,
            ipv6,
            mtu: AtomicU32::new(1500),
        }
    }
}

impl Backend for FakeBackend {
    fn kind(&self) -> Kind {
        Kind::Slirp
    }

    fn reason(&self) -> &'static str {
        "the only one in tests"
    }

    fn guest(&self) -> GuestNetwork {
        let record = record();
        GuestNetwork {
            address: record.address,
            prefix: record.subnet.bits(),
            gateway: record.gateway,
            mac: record.mac,
            mtu: self.mtu.load(Ordering::SeqCst),
            dns: vec![record.resolver()],
            relay_address: None,
            ipv6: self.ipv6.then(|| GuestIpv6 {
                address: record.ipv6_address(),
                prefix: 64,
                gateway: record.ipv6_gateway(),
            }),
            hide_rooms: true,
            host: Some(record.gateway),
        }
    }

    fn follow(&self, host: &Host) {
        self.mtu.store(host.mtu, Ordering::SeqCst);
    }

    fn netdev(&self) -> BoxFuture<'_, io::Result<NetdevSpec>> {
        async { Err(io::ErrorKind::Unsupported.into()) }.boxed()
    }

    fn reaches_guest(&self) -> bool {
        false
    }

    fn connect(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        async { Err(io::ErrorKind::Unsupported.into()) }.boxed()
    }

    fn connect_udp(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<UdpSocket>> {
        async { Err(io::ErrorKind::Unsupported.into()) }.boxed()
    }

    fn gateway_dns(&self) -> BoxFuture<'_, io::Result<Option<(UdpSocket, TcpListener)>>> {
        async { Ok(None) }.boxed()
    }

    fn set_firewall(&self, rules: Vec<Rule>) -> BoxFuture<'_, io::Result<()>> {
        self.net.rules.send_modify(|all| all.push(rules));
        async { Ok(()) }.boxed()
    }

    fn adapters(&self) -> Vec<Adapter> {
        vec![Adapter {
            name: "fake0".to_owned(),
            kind: "bridge".to_owned(),
            mac: None,
            addresses: vec![format!("{}/20", record().gateway)],
            mtu: 1500,
            up: true,
            switch: None,
            place: "host".to_owned(),
        }]
    }

    fn reach(&self) -> Vec<String> {
        vec!["the guest reaches nobody".to_owned()]
    }

    fn advice(&self) -> BoxFuture<'_, Vec<String>> {
        std::future::ready(vec!["add nothing".to_owned()]).boxed()
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        let mut broken = self.net.broken.subscribe();
        async move {
            let _ = broken.wait_for(|n| *n > self.before).await;
            "its process is gone".to_owned()
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.net.closed.fetch_add(1, Ordering::SeqCst);
        async {}.boxed()
    }
}
