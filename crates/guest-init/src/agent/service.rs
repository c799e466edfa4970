//! The daemon's calls, one method each: check, hand over, translate the answer.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hostel_instance::SessionRequest;
use hostel_model::{ErrorCode, Failure};
use hostel_proto::status_of;
use hostel_proto::v1::{self, agent_server};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::connect::Connector;
use super::distros::Distros;
use super::dns::Dns;
use super::modules_disk::ModulesDisk;
use super::netns::Rooms;
use super::ports::{Events as PortEvents, Ports};
use super::rooms::Keeper;
use super::sessions::{Events, Sessions};
use super::{clock, configure, job};

/// What this agent understands.
const GENERATION: u32 = 1;

/// The longest that a stop may be told to wait.
const MAX_TIMEOUT: Duration = Duration::from_secs(600);

/// Everything the calls work on; one for the life of the agent, whatever connections come and go.
pub(crate) struct State {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) distros: Arc<Distros>,
    pub(crate) modules: ModulesDisk,
    /// The network namespaces of distributions that have one of their own.
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) ports: Arc<Ports>,
    pub(crate) connector: Arc<Connector>,
    pub(crate) dns: Arc<Dns>,
    /// Cancelled when the machine is to be switched off.
    pub(crate) power_off: CancellationToken,
    pub(crate) ready_ms: u64,
}

/// The service of one connection.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<State>);

type Answer<T> = Result<Response<T>, Status>;
type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn answer<T>(result: Result<T, Failure>) -> Answer<T> {
    result
        .map(Response::new)
        .map_err(|failure| status_of(&failure))
}

fn events(result: Result<Events, Failure>) -> Answer<EventStream<v1::SessionEvent>> {
    answer(result.map(|events| Box::pin(ReceiverStream::new(events)) as EventStream<_>))
}

fn timeout(ms: u32) -> Duration {
    Duration::from_millis(ms.into()).min(MAX_TIMEOUT)
}

#[tonic::async_trait]
impl agent_server::Agent for Service {
    type ExecStream = EventStream<v1::SessionEvent>;
    type AttachStream = EventStream<v1::SessionEvent>;
    type WatchStream = EventStream<v1::AgentEvent>;
    type WatchPortsStream = EventStream<v1::PortsChanged>;
    type DnsStream = EventStream<v1::DnsQuery>;

    async fn greet(&self, _: Request<v1::AgentGreetRequest>) -> Answer<v1::AgentGreetReply> {
        answer(Ok(v1::AgentGreetReply {
            generation: GENERATION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            boottime_ms: self.0.ready_ms,
        }))
    }

    async fn configure(
        &self,
        request: Request<v1::ConfigureRequest>,
    ) -> Answer<v1::ConfigureReply> {
        answer(Ok(v1::ConfigureReply {
            warnings: configure::apply(request.into_inner(), &self.0).await,
        }))
    }

    async fn mount_modules(&self, request: Request<v1::MountModulesRequest>) -> Answer<v1::Empty> {
        let mounted = self.0.modules.mount(&request.get_ref().disk_serial).await;
        answer(
            mounted
                .map(|()| v1::Empty {})
                .map_err(|e| Failure::from_error(ErrorCode::ModuleMissing, &e)),
        )
    }

    async fn start_distro(
        &self,
        request: Request<v1::StartDistroRequest>,
    ) -> Answer<v1::StartDistroReply> {
        answer(self.0.distros.start(request.into_inner()).await)
    }

    async fn stop_distro(
        &self,
        request: Request<v1::StopDistroRequest>,
    ) -> Answer<v1::StopDistroReply> {
        let request = request.into_inner();
        answer(
            self.0
                .distros
                .stop(&request.id, timeout(request.timeout_ms))
                .await,
        )
    }

    async fn inspect_distro(
        &self,
        request: Request<v1::InspectDistroRequest>,
    ) -> Answer<v1::InspectDistroReply> {
        answer(self.0.distros.inspect(&request.get_ref().id).await)
    }

    async fn exec(&self, request: Request<v1::AgentExecRequest>) -> Answer<Self::ExecStream> {
        let request = request.into_inner();
        let opened = async {
            let job = job::job(request.command.unwrap_or_default())?;
            let spawn = self.0.distros.spawner(&request.distro)?;
            self.0
                .sessions
                .open(
                    request.session,
                    request.distro,
                    job,
                    &request.streams,
                    spawn,
                )
                .await
        };
        events(opened.await)
    }

    async fn attach(&self, request: Request<v1::AgentAttachRequest>) -> Answer<Self::AttachStream> {
        let request = request.into_inner();
        events(
            self.0
                .sessions
                .attach(&request.session, &request.streams)
                .await,
        )
    }

    async fn resize(&self, request: Request<v1::ResizeRequest>) -> Answer<v1::Empty> {
        let request = request.into_inner();
        let size = job::window_size(request.window.unwrap_or_default());
        let sent = self
            .0
            .sessions
            .request(&request.session, SessionRequest::Resize(size));
        answer(sent.map(|()| v1::Empty {}))
    }

    async fn signal(&self, request: Request<v1::SignalRequest>) -> Answer<v1::Empty> {
        let request = request.into_inner();
        let signal = u8::try_from(request.signal)
            .ok()
            .filter(|s| (1..=64).contains(s));
        let bad = || {
            Failure::new(
                ErrorCode::InvalidArgument,
                format!("{} is not the number of a signal", request.signal),
            )
        };
        let sent = signal.ok_or_else(bad).and_then(|signal| {
            self.0
                .sessions
                .request(&request.session, SessionRequest::Signal(signal))
        });
        answer(sent.map(|()| v1::Empty {}))
    }

    async fn hangup(&self, request: Request<v1::HangupRequest>) -> Answer<v1::Empty> {
        self.0.sessions.hangup(&request.get_ref().session);
        answer(Ok(v1::Empty {}))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Answer<Self::WatchStream> {
        use tokio_stream::StreamExt;
        // A daemon that is too slow to follow gets an error, and asks anew for what it missed.
        let ends = tokio_stream::wrappers::BroadcastStream::new(self.0.distros.watch());
        let stream = ends.map(|end| match end {
            Ok(end) => Ok(v1::AgentEvent {
                event: Some(v1::agent_event::Event::DistroEnded(end)),
            }),
            Err(lost) => Err(Status::data_loss(lost.to_string())),
        });
        answer(Ok(Box::pin(stream) as EventStream<_>))
    }

    async fn watch_ports(
        &self,
        request: Request<v1::WatchPortsRequest>,
    ) -> Answer<Self::WatchPortsStream> {
        let watched = self.0.ports.watch(request.get_ref());
        answer(watched.map(|watched| Box::pin(watched) as EventStream<_>))
    }

    async fn connect(&self, request: Request<v1::ConnectRequest>) -> Answer<v1::Empty> {
        let connected = self.0.connector.connect(request.into_inner()).await;
        answer(connected.map(|()| v1::Empty {}))
    }

    async fn dns(
        &self,
        request: Request<tonic::Streaming<v1::DnsAnswer>>,
    ) -> Answer<Self::DnsStream> {
        let questions = self.0.dns.open(request.into_inner());
        answer(Ok(Box::pin(questions) as EventStream<_>))
    }

    async fn memory(&self, _: Request<v1::MemoryRequest>) -> Answer<v1::MemoryReply> {
        let read = fs_err::read_to_string("/proc/meminfo")
            .map_err(|e| Failure::from_error(ErrorCode::Internal, &e));
        answer(read.map(|text| super::memory::reply(&text)))
    }

    async fn power_off(&self, request: Request<v1::PowerOffRequest>) -> Answer<v1::Empty> {
        self.0
            .distros
            .stop_all(timeout(request.get_ref().timeout_ms))
            .await;
        self.0.power_off.cancel();
        answer(Ok(v1::Empty {}))
    }
}

impl State {
    /// Makes the state of a machine where nothing runs yet.
    pub(crate) fn new(dialer: super::dial::Dialer) -> Arc<Self> {
        let sessions = Sessions::new(dialer.clone());
        let rooms = Rooms::new();
        // In the machine this is `/init`.
        let program = std::env::current_exe().unwrap_or_else(|_| "/init".into());
        let modules = ModulesDisk::default();
        let ports = Ports::new(rooms.clone(), PortEvents::Traced);
        let keeper = Keeper::new(rooms.clone(), ports.clone(), modules.mounted());
        Arc::new(Self {
            distros: Distros::new(sessions.clone(), keeper.clone(), program),
            sessions,
            modules,
            keeper,
            ports,
            connector: Connector::new(dialer, rooms),
            dns: Dns::new(),
            power_off: CancellationToken::new(),
            ready_ms: clock::boottime_ms(),
        })
    }
}
