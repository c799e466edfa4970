//! The order in which names are looked for: the house, the host's `/etc/hosts`, the host's resolvers.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use hostel_model::DistroName;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    forward::Forwarder,
    gateway::{self, Gateway},
    host::HostDns,
    hosts::Hosts,
    house::{Found, House, Names},
    limit::Bucket,
    message::{CLASS_IN, Query, Rcode, Refusal},
    watch::{Files, Follower, Known, read_lock},
};

/// Where a resolver finds what it needs, and its limits. The defaults are those of an ordinary host.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The host's list of resolvers.
    pub resolv_conf: PathBuf,
    /// Files of that kind that name the servers behind a stub on the host's loopback; the first with a usable one counts.
    pub behind_stub: Vec<PathBuf>,
    /// The host's list of names.
    pub hosts: PathBuf,
    /// The domain of the house, without dots around it.
    pub domain: String,
    /// The port of the host's resolvers.
    pub port: u16,
    /// How long the resolvers may take for one question; libc asks again after five seconds.
    pub budget: Duration,
    /// The most questions that wait for resolvers at a time.
    pub in_flight: usize,
    /// The most questions to resolvers in a second; two seconds' worth may come at once.
    pub per_second: u32,
    /// `bestEffortDnsParsing` (DNS-7): records of a query that cannot be understood are dropped, instead of the query being
    /// refused.
    pub best_effort_parsing: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            behind_stub: vec![
                "/run/systemd/resolve/resolv.conf".into(),
                "/run/NetworkManager/no-stub-resolv.conf".into(),
            ],
            hosts: "/etc/hosts".into(),
            domain: "hostel".to_owned(),
            port: 53,
            budget: Duration::from_millis(4500),
            in_flight: 256,
            per_second: 2000,
            best_effort_parsing: false,
        }
    }
}

/// Answers questions. Clones are the same resolver; the files are followed until the last one is gone.
#[derive(Clone, Debug)]
pub struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    known: Arc<Known>,
    house: RwLock<Arc<House>>,
    forwarder: Forwarder,
    in_flight: Semaphore,
    rate: Mutex<Bucket>,
    follower: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Resolver {
    /// Starts one, without names of the house. Blocks for as long as the files take to read; needs a runtime.
    pub fn new(settings: Settings) -> Self {
        let (follower, known) = Follower::start(Files {
            resolv_conf: settings.resolv_conf.clone(),
            behind_stub: settings.behind_stub.clone(),
            hosts: settings.hosts.clone(),
            port: settings.port,
        });
        let (house, _) = House::new(&settings.domain, &Names::default());
        Self(Arc::new(Inner {
            known,
            house: RwLock::new(Arc::new(house)),
            forwarder: Forwarder::default(),
            in_flight: Semaphore::new(settings.in_flight),
            rate: Mutex::new(Bucket::new(settings.per_second, Instant::now())),
            follower: tokio::spawn(follower.run()),
            settings,
        }))
    }

    /// Says who lives where, in place of all that was said before. Returns the distributions that get no name since
    /// another one has the same, or a name that belongs to the house.
    pub fn set_names(&self, names: &Names) -> Vec<DistroName> {
        let (house, left_out) = House::new(&self.0.settings.domain, names);
        *self.0.house.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(house);
        left_out
    }

    /// Returns the host's resolvers and search domains, and what becomes of them; a change shows within a second.
    pub fn host(&self) -> watch::Receiver<HostDns> {
        self.0.known.host.subscribe()
    }

    /// Answers one message; `tcp` when the asker takes answers of any size. `None` only for what is no question.
    ///
    /// Takes no longer than the budget of the settings. Cancel safe.
    pub async fn answer(&self, message: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let query = match Query::parse(message, self.0.settings.best_effort_parsing) {
            Ok(query) => query,
            Err(Refusal::Silent) => return None,
            Err(Refusal::Answer(answer)) => return Some(answer),
        };
        let house = read_lock(&self.0.house);
        let answer = match at_home(&query, &house, || read_lock(&self.0.known.hosts)) {
            Some(answer) => answer,
            None => self.forward(&query, tcp).await,
        };
        Some(query.deliver(answer, tcp))
    }

    async fn forward(&self, query: &Query, tcp: bool) -> Vec<u8> {
        let failed = || query.answer(Rcode::ServFail, &[]);
        let Ok(_permit) = self.0.in_flight.try_acquire() else {
            return failed();
        };
        if !self.takes_one_more() {
            return failed();
        }
        let upstreams = read_lock(&self.0.known.upstreams);
        let budget = self.0.settings.budget;
        let answer = self.0.forwarder.ask(query, tcp, &upstreams, budget);
        answer.await.unwrap_or_else(failed)
    }

    fn takes_one_more(&self) -> bool {
        let mut rate = self.0.rate.lock().unwrap_or_else(PoisonError::into_inner);
        rate.take(Instant::now())
    }

    /// Serves the gateway's sockets until it is cancelled (`dnsProxy`, DNS-3; and the host's own resolver when it asks
    /// for the names of the house). Sources that are not the gateway's own get no answer.
    pub async fn serve(&self, gateway: Gateway, stop: CancellationToken) {
        gateway::serve(self, gateway, stop).await;
    }
}

/// Answers from the names of the house and the host's file, which comes second and is seldom needed.
pub(crate) fn at_home(
    query: &Query,
    house: &House,
    hosts: impl FnOnce() -> Arc<Hosts>,
) -> Option<Vec<u8>> {
    let name = query.name.as_deref()?;
    if query.class != CLASS_IN {
        return None;
    }
    let (code, records) = match house.ask(name, query.kind) {
        Some(Found::Records(records)) => (Rcode::NoError, records),
        Some(Found::Nothing) => (Rcode::NxDomain, Vec::new()),
        None => (Rcode::NoError, hosts().ask(name, query.kind)?),
    };
    Some(query.answer(code, &records))
}
