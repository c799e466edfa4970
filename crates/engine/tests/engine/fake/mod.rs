//! A VM that is not there: an agent of the same contract, served in this process over a socket pair.

pub(crate) mod backend;
pub(crate) mod wires;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use hostel_engine::{
    Engine, Timeouts,
    hypervisor::{Booted, DiskPlan, Hypervisor, Machine, NetworkPlan, VmInfo},
    layout::Layout,
    registry::Registry,
    state::{DistroFile, OsInfo},
    streams::{ClientStream, GuestStream},
};
use hostel_model::{ErrorCode, Failure, GENERATION, Token};
use hostel_proto::{
    status_of,
    v1::{self, StreamKind, agent_server::Agent, session_event::Event},
};
use hostel_switch::{Backend, NatRecord, Prefix, Verdict};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{Notify, broadcast, mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Longer than anything here takes on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What tests look at and turn.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) boots: AtomicU32,
    pub(crate) starts: AtomicU32,
    pub(crate) hangups: AtomicU32,
    pub(crate) detached: Mutex<Vec<String>>,
    /// Serials of the disks that were there before the last boot.
    pub(crate) boot_disks: Mutex<Vec<String>>,
    /// The machine settles only when `settle` is notified.
    pub(crate) settles_late: AtomicBool,
    pub(crate) settle: Notify,
    /// So many agents dial in and never greet.
    pub(crate) silent: AtomicU32,
    /// Distributions cannot be stopped: their disk stays mounted.
    pub(crate) stuck: AtomicBool,
    /// Starts of distributions fail.
    pub(crate) broken: AtomicBool,
    /// Processes in every distribution.
    pub(crate) processes: AtomicU32,
    pub(crate) hung_up: Notify,
    pub(crate) wires: Arc<wires::Wires>,
    pub(crate) net: Arc<backend::Net>,
    machine: Mutex<Option<Arc<FakeMachine>>>,
    running: Mutex<HashSet<String>>,
    events: Mutex<Option<broadcast::Sender<v1::AgentEvent>>>,
}

impl World {
    /// Ends the machine as a crash of QEMU does.
    pub(crate) fn crash(&self, how: &str) {
        self.machine
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .end
            .send_replace(Some(how.to_owned()));
    }

    /// Says that the PID 1 of a distribution ended.
    pub(crate) fn pid1_ends(&self, id: &str) {
        self.running.lock().unwrap().remove(id);
        let end = v1::DistroEnded {
            id: id.to_owned(),
            code: 0,
            signal: 9,
        };
        let event = v1::AgentEvent {
            event: Some(v1::agent_event::Event::DistroEnded(end)),
        };
        self.events
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .send(event)
            .unwrap();
    }

    /// Ends the PID 1 of a distribution before anybody could say so.
    pub(crate) fn pid1_ends_unnoticed(&self, id: &str) {
        self.running.lock().unwrap().remove(id);
    }

    /// Connects to the stream port as any process of the guest can.
    pub(crate) fn dial(&self) -> UnixStream {
        let (near, far) = UnixStream::pair().unwrap();
        let machine = self.machine.lock().unwrap().clone().unwrap();
        let _ = machine.dials.try_send(Box::new(far));
        near
    }
}

#[derive(Debug)]
pub(crate) struct FakeHypervisor(pub(crate) Arc<World>);

pub(crate) struct FakeMachine {
    world: Arc<World>,
    end: watch::Sender<Option<String>>,
    dials: mpsc::Sender<GuestStream>,
    dialled: tokio::sync::Mutex<mpsc::Receiver<GuestStream>>,
}

impl std::fmt::Debug for FakeMachine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeMachine")
    }
}

impl Hypervisor for FakeHypervisor {
    fn boot<'a>(
        &'a self,
        disks: &'a [DiskPlan],
        warn: &'a (dyn Fn(String) + Send + Sync),
    ) -> BoxFuture<'a, Result<Booted, Failure>> {
        async move {
            self.0.boots.fetch_add(1, Ordering::SeqCst);
            warn("a warning of the boot".to_owned());
            *self.0.boot_disks.lock().unwrap() = disks.iter().map(|d| d.serial.clone()).collect();
            let (host, guest) = UnixStream::pair().unwrap();
            let (dials, dialled) = mpsc::channel(64);
            let machine = Arc::new(FakeMachine {
                world: Arc::clone(&self.0),
                end: watch::channel(None).0,
                dials,
                dialled: tokio::sync::Mutex::new(dialled),
            });
            *self.0.machine.lock().unwrap() = Some(Arc::clone(&machine));
            *self.0.events.lock().unwrap() = Some(broadcast::channel(16).0);
            self.0.running.lock().unwrap().clear();
            let agent = FakeAgent(Arc::clone(&self.0), Arc::clone(&machine));
            let mut end = machine.end.subscribe();
            tokio::spawn(async move {
                let serve = tonic::transport::Server::builder()
                    .add_service(
                        v1::agent_server::AgentServer::new(agent)
                            .max_encoding_message_size(64 << 20),
                    )
                    .serve_with_incoming(futures_util::StreamExt::chain(
                        tokio_stream::once(Ok::<_, std::io::Error>(guest)),
                        futures_util::stream::pending(),
                    ));
                tokio::select! {
                    _ = serve => {}
                    _ = end.wait_for(Option::is_some) => {}
                }
            });
            Ok(Booted {
                machine,
                control: Box::new(host),
                configure: v1::ConfigureRequest::default(),
                network: backend::setup(&self.0.net),
                info: VmInfo {
                    accel: "tcg".to_owned(),
                    ..VmInfo::default()
                },
                modules: None,
                timeouts: None,
            })
        }
        .boxed()
    }

    fn network_plan(&self) -> NetworkPlan {
        backend::plan(&self.0.net)
    }

    fn network_change(
        &self,
        subnet: Option<Prefix>,
        gateway: Option<std::net::Ipv4Addr>,
        address: Option<std::net::Ipv4Addr>,
    ) -> Result<NatRecord, Failure> {
        let mut record = backend::record();
        record.subnet = subnet.unwrap_or(record.subnet);
        record.gateway = gateway.unwrap_or(record.gateway);
        record.address = address.unwrap_or(record.address);
        record
            .validate()
            .map_err(|e| Failure::from_error(ErrorCode::InvalidArgument, &e))?;
        Ok(record)
    }

    fn network_verdicts(&self) -> BoxFuture<'_, Vec<Verdict>> {
        async { backend::verdicts() }.boxed()
    }
}

impl Machine for FakeMachine {
    fn attach<'a>(&'a self, _: &'a DiskPlan) -> BoxFuture<'a, Result<(), Failure>> {
        async { Ok(()) }.boxed()
    }

    fn detach<'a>(&'a self, serial: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        self.world.detached.lock().unwrap().push(serial.to_owned());
        async { Ok(()) }.boxed()
    }

    fn unplug_nic(&self) -> BoxFuture<'_, Result<(), Failure>> {
        let net = &self.world.net;
        let closed = net.closed.load(Ordering::SeqCst);
        net.unplugged.lock().unwrap().push(closed);
        async { Ok(()) }.boxed()
    }

    fn replace_nic<'a>(&'a self, _: &'a dyn Backend) -> BoxFuture<'a, Result<(), Failure>> {
        self.world.net.replaced.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }.boxed()
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        let mut end = self.end.subscribe();
        async move {
            end.wait_for(Option::is_some)
                .await
                .unwrap()
                .clone()
                .unwrap()
        }
        .boxed()
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        self.end.send_replace(Some("killed".to_owned()));
        async {}.boxed()
    }

    fn agent_dials(&self) -> BoxFuture<'_, Option<GuestStream>> {
        async { None }.boxed()
    }

    fn stream_dials(&self) -> BoxFuture<'_, Option<GuestStream>> {
        async move { self.dialled.lock().await.recv().await }.boxed()
    }

    fn resident_bytes(&self) -> u64 {
        1
    }
}

struct FakeAgent(Arc<World>, Arc<FakeMachine>);

type SessionStream = ReceiverStream<Result<v1::SessionEvent, Status>>;

#[expect(clippy::unnecessary_wraps, reason = "as the stream wants it")]
fn event(event: Event) -> Result<v1::SessionEvent, Status> {
    Ok(v1::SessionEvent { event: Some(event) })
}

fn exited(code: u32, totals: Vec<v1::StreamTotal>) -> Result<v1::SessionEvent, Status> {
    event(Event::Exited(v1::SessionExited {
        code,
        totals,
        ..v1::SessionExited::default()
    }))
}

impl FakeAgent {
    async fn claim(
        machine: &FakeMachine,
        streams: &[v1::StreamToken],
        kind: StreamKind,
    ) -> UnixStream {
        let token = streams
            .iter()
            .find(|s| s.kind() == kind)
            .expect("the stream was asked for");
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&token.token).await.unwrap();
        machine.dials.send(Box::new(far)).await.unwrap();
        near
    }
}

#[tonic::async_trait]
impl Agent for FakeAgent {
    type ExecStream = SessionStream;
    type AttachStream = SessionStream;
    type WatchStream = ReceiverStream<Result<v1::AgentEvent, Status>>;
    type WatchPortsStream = ReceiverStream<Result<v1::PortsChanged, Status>>;
    type DnsStream = ReceiverStream<Result<v1::DnsQuery, Status>>;

    async fn watch_ports(
        &self,
        request: Request<v1::WatchPortsRequest>,
    ) -> Result<Response<Self::WatchPortsStream>, Status> {
        Ok(Response::new(
            self.0.wires.watch_ports(request.into_inner()),
        ))
    }

    async fn connect(
        &self,
        request: Request<v1::ConnectRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        self.0
            .wires
            .connect(request.into_inner(), self.1.dials.clone());
        Ok(Response::new(v1::Empty {}))
    }

    async fn dns(
        &self,
        answers: Request<tonic::Streaming<v1::DnsAnswer>>,
    ) -> Result<Response<Self::DnsStream>, Status> {
        Ok(Response::new(self.0.wires.dns(answers.into_inner())))
    }

    async fn greet(
        &self,
        _: Request<v1::AgentGreetRequest>,
    ) -> Result<Response<v1::AgentGreetReply>, Status> {
        let less = |n: u32| n.checked_sub(1);
        let silent = &self.0.silent;
        if silent
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
            .is_ok()
        {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::AgentGreetReply {
            generation: GENERATION,
            ..v1::AgentGreetReply::default()
        }))
    }

    async fn configure(
        &self,
        request: Request<v1::ConfigureRequest>,
    ) -> Result<Response<v1::ConfigureReply>, Status> {
        let request = request.into_inner();
        assert_eq!(request.entropy.len(), 32);
        assert!(request.time_unix_ns > 0);
        self.0.wires.configures.send_modify(|all| all.push(request));
        if self.0.settles_late.load(Ordering::SeqCst) {
            self.0.settle.notified().await;
        }
        Ok(Response::new(v1::ConfigureReply::default()))
    }

    async fn mount_modules(
        &self,
        _: Request<v1::MountModulesRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        Ok(Response::new(v1::Empty {}))
    }

    async fn start_distro(
        &self,
        request: Request<v1::StartDistroRequest>,
    ) -> Result<Response<v1::StartDistroReply>, Status> {
        self.0.starts.fetch_add(1, Ordering::SeqCst);
        if self.0.broken.load(Ordering::SeqCst) {
            return Err(status_of(&Failure::new(
                ErrorCode::DiskCorrupted,
                "the disk cannot be mounted",
            )));
        }
        let request = request.into_inner();
        self.0.running.lock().unwrap().insert(request.id.clone());
        self.0.wires.starts.lock().unwrap().push(request);
        Ok(Response::new(v1::StartDistroReply {
            init_pid: 100,
            os_id: "debian".to_owned(),
            warnings: vec!["a warning of the distro".to_owned()],
            ..v1::StartDistroReply::default()
        }))
    }

    async fn stop_distro(
        &self,
        request: Request<v1::StopDistroRequest>,
    ) -> Result<Response<v1::StopDistroReply>, Status> {
        if self.0.stuck.load(Ordering::SeqCst) {
            return Err(status_of(&Failure::new(
                ErrorCode::Busy,
                "the disk is still mounted",
            )));
        }
        let was_running = self
            .0
            .running
            .lock()
            .unwrap()
            .remove(&request.into_inner().id);
        Ok(Response::new(v1::StopDistroReply {
            was_running,
            ..v1::StopDistroReply::default()
        }))
    }

    async fn inspect_distro(
        &self,
        _: Request<v1::InspectDistroRequest>,
    ) -> Result<Response<v1::InspectDistroReply>, Status> {
        Ok(Response::new(v1::InspectDistroReply {
            processes: self.0.processes.load(Ordering::SeqCst),
            ..v1::InspectDistroReply::default()
        }))
    }

    async fn exec(
        &self,
        request: Request<v1::AgentExecRequest>,
    ) -> Result<Response<SessionStream>, Status> {
        let request = request.into_inner();
        let command = request.command.unwrap_or_default();
        let word =
            String::from_utf8_lossy(command.argv.first().map_or(&[][..], |a| a)).into_owned();
        let (sender, receiver) = mpsc::channel(4);
        if !request.distro.is_empty() && !self.0.running.lock().unwrap().contains(&request.distro) {
            return Err(status_of(&Failure::new(
                ErrorCode::DistroStopped,
                "the distribution is not running",
            )));
        }
        if word == "missing" {
            return Err(status_of(&Failure::new(
                ErrorCode::CommandNotFound,
                "no command `missing`",
            )));
        }
        let (world, machine) = (Arc::clone(&self.0), Arc::clone(&self.1));
        tokio::spawn(async move {
            let _ = sender
                .send(event(Event::Started(v1::SessionStarted { pid: 7 })))
                .await;
            match word.as_str() {
                "cat" => {
                    let mut input =
                        Self::claim(&machine, &request.streams, StreamKind::Stdin).await;
                    let mut output =
                        Self::claim(&machine, &request.streams, StreamKind::Stdout).await;
                    let bytes = tokio::io::copy(&mut input, &mut output).await.unwrap();
                    let total = v1::StreamTotal {
                        kind: StreamKind::Stdout.into(),
                        bytes,
                    };
                    let _ = sender.send(exited(3, vec![total])).await;
                }
                "hang" => {
                    world.hung_up.notified().await;
                    let _ = sender.send(exited(129, Vec::new())).await;
                }
                "flood" => {
                    for i in 0..100_000 {
                        if sender
                            .send(event(Event::Warning(format!("warning {i}"))))
                            .await
                            .is_err()
                        {
                            return;
                        }
                    }
                    let _ = sender.send(exited(0, Vec::new())).await;
                }
                "huge" => {
                    let _ = sender
                        .send(event(Event::Warning("x".repeat(8 << 20))))
                        .await;
                    let _ = sender.send(exited(0, Vec::new())).await;
                }
                "lie" => {
                    let token = v1::StreamToken {
                        kind: StreamKind::Stdout.into(),
                        token: Token::new_random().as_bytes().to_vec().into(),
                    };
                    let opened = v1::SessionOpened {
                        session: "other".to_owned(),
                        streams: vec![token],
                    };
                    let _ = sender.send(event(Event::Opened(opened))).await;
                    let _ = sender.send(Ok(v1::SessionEvent { event: None })).await;
                    let _ = sender.send(exited(0, Vec::new())).await;
                }
                "vanish" => {}
                _ => {
                    let _ = sender.send(exited(0, Vec::new())).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn attach(
        &self,
        request: Request<v1::AgentAttachRequest>,
    ) -> Result<Response<SessionStream>, Status> {
        let request = request.into_inner();
        let (sender, receiver) = mpsc::channel(4);
        let machine = Arc::clone(&self.1);
        tokio::spawn(async move {
            let mut output = Self::claim(&machine, &request.streams, StreamKind::Stdout).await;
            output.write_all(b"attached").await.unwrap();
            drop(output);
            let _ = sender.send(exited(0, Vec::new())).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn resize(&self, _: Request<v1::ResizeRequest>) -> Result<Response<v1::Empty>, Status> {
        Ok(Response::new(v1::Empty {}))
    }

    async fn signal(&self, _: Request<v1::SignalRequest>) -> Result<Response<v1::Empty>, Status> {
        Ok(Response::new(v1::Empty {}))
    }

    async fn hangup(&self, _: Request<v1::HangupRequest>) -> Result<Response<v1::Empty>, Status> {
        self.0.hangups.fetch_add(1, Ordering::SeqCst);
        self.0.hung_up.notify_waiters();
        Ok(Response::new(v1::Empty {}))
    }

    async fn watch(
        &self,
        _: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut events = self.0.events.lock().unwrap().as_ref().unwrap().subscribe();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok(event) = events.recv().await {
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn memory(
        &self,
        _: Request<v1::MemoryRequest>,
    ) -> Result<Response<v1::MemoryReply>, Status> {
        Ok(Response::new(v1::MemoryReply::default()))
    }

    async fn power_off(
        &self,
        _: Request<v1::PowerOffRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        self.1.end.send_replace(Some("powered off".to_owned()));
        Ok(Response::new(v1::Empty {}))
    }
}

/// An engine over a directory of its own and the fake VM.
pub(crate) struct House {
    pub(crate) engine: Arc<Engine>,
    pub(crate) world: Arc<World>,
    _dir: tempfile::TempDir,
}

pub(crate) fn house(timeouts: Timeouts) -> House {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _, lock) = hostel_engine::open_home(Layout::new(dir.path())).unwrap();
    let world = Arc::new(World::default());
    world.processes.store(1, Ordering::SeqCst);
    let engine = Engine::new(
        registry,
        lock,
        Arc::new(FakeHypervisor(Arc::clone(&world))),
        timeouts,
    );
    House {
        engine,
        world,
        _dir: dir,
    }
}

/// Registers a distribution that has nothing but a record.
pub(crate) fn register(registry: &Arc<Registry>, name: &str, created: u64) -> String {
    let reservation = registry.reserve(name.parse().unwrap()).unwrap();
    let record = DistroFile {
        id: reservation.id,
        name: reservation.name.clone(),
        created_unix_ns: created,
        version: 2,
        base: "base".to_owned(),
        os: OsInfo::default(),
        default_user: String::new(),
        source: "test".to_owned(),
        disk_limit: 1 << 30,
        network: hostel_engine::state::Setting::default(),
        address: hostel_engine::state::Setting::default(),
    };
    let dir = registry.layout().distro_partial(record.id);
    fs_err::create_dir(&dir).unwrap();
    hostel_engine::state::store(&dir.join("distro.json"), &record).unwrap();
    let id = record.id.to_string();
    registry.register(reservation, record, false).unwrap();
    id
}

/// Asks for a command with pipes on standard input and output.
pub(crate) fn command(name: &str, word: &str) -> v1::ExecRequest {
    v1::ExecRequest {
        name: name.to_owned(),
        command: Some(v1::CommandSpec {
            argv: vec![word.as_bytes().to_vec().into()],
            stdin: v1::Stdio::Pipe.into(),
            stdout: v1::Stdio::Pipe.into(),
            stderr: v1::Stdio::Null.into(),
            ..v1::CommandSpec::default()
        }),
        ..v1::ExecRequest::default()
    }
}

/// Claims a stream as a client does.
pub(crate) fn claim(engine: &Engine, opened: &v1::SessionOpened, kind: StreamKind) -> UnixStream {
    let token = opened.streams.iter().find(|s| s.kind() == kind).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let token = Token::from_bytes(&token.token).unwrap();
    engine
        .client_streams()
        .deliver(
            &token,
            ClientStream {
                stream: far,
                descriptor: None,
            },
        )
        .unwrap();
    near
}

/// Reads a stream to its end.
pub(crate) async fn read_all(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    bytes
}

/// Waits for something that the engine does on its own.
pub(crate) async fn eventually(what: &str, check: impl Fn() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let waiting = async {
        while !check() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(SOON, waiting)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen"));
}
