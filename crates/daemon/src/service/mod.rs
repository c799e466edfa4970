//! The API: each call handed to the engine, each failure packed for the wire.

mod doctor;
mod logs;
mod ports;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use hostel_engine::{Engine, TaskSink, backend::VmBackend};
use hostel_model::{ErrorCode, Failure, GENERATION, OLDEST_GENERATION, Paths};
use hostel_proto::{
    status_of,
    v1::{self, Empty, hostel_server::Hostel},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The API of one daemon.
#[derive(Debug)]
pub(crate) struct Service {
    engine: Arc<Engine>,
    backend: Arc<VmBackend>,
    paths: Paths,
    closing: CancellationToken,
    /// What opening the state directory had to say, for `doctor`.
    warnings: Vec<String>,
}

impl Service {
    pub(crate) fn new(
        engine: Arc<Engine>,
        backend: Arc<VmBackend>,
        paths: Paths,
        closing: CancellationToken,
        warnings: Vec<String>,
    ) -> Self {
        Self {
            engine,
            backend,
            paths,
            closing,
            warnings,
        }
    }
}

fn answer<T>(result: Result<T, Failure>) -> Answer<T> {
    result.map(Response::new).map_err(|f| status_of(&f))
}

fn empty(result: Result<(), Failure>) -> Answer<Empty> {
    answer(result.map(|()| Empty {}))
}

/// Runs a long task as long as its client listens; the last item is its failure, if any.
///
/// Dropping the stream drops the task's future. What must not stop halfway runs on the engine's own tasks.
fn task<F, T>(work: impl FnOnce(TaskSink) -> F) -> BoxStream<v1::TaskEvent>
where
    F: Future<Output = Result<T, Failure>> + Send + 'static,
    T: Send + 'static,
{
    let (sink, events) = TaskSink::channel();
    let end = work(sink).map(|result| match result {
        Ok(_) => None,
        Err(failure) => Some(Err(status_of(&failure))),
    });
    // The task owns the sink, so the events end with it; both are polled together.
    let end = end.into_stream().filter_map(std::future::ready);
    Box::pin(futures_util::stream::select(
        ReceiverStream::new(events).map(Ok),
        end,
    ))
}

#[tonic::async_trait]
impl Hostel for Service {
    type ImportStream = BoxStream<v1::TaskEvent>;
    type ExportStream = BoxStream<v1::TaskEvent>;
    type InstallStream = BoxStream<v1::TaskEvent>;
    type StartStream = BoxStream<v1::TaskEvent>;
    type StopStream = BoxStream<v1::TaskEvent>;
    type ShutdownStream = BoxStream<v1::TaskEvent>;
    type KernelInstallStream = BoxStream<v1::TaskEvent>;
    type ExecStream = BoxStream<v1::SessionEvent>;
    type AttachStream = BoxStream<v1::SessionEvent>;
    type PortsStream = BoxStream<v1::PortsReply>;

    async fn network(&self, _: Request<v1::NetworkRequest>) -> Answer<v1::NetworkReply> {
        answer(self.engine.network().await)
    }

    async fn network_set(
        &self,
        request: Request<v1::NetworkSetRequest>,
    ) -> Answer<v1::NetworkReply> {
        answer(self.engine.network_set(request.into_inner()).await)
    }

    async fn firewall(&self, request: Request<v1::FirewallRequest>) -> Answer<v1::FirewallReply> {
        answer(self.engine.firewall(request.into_inner()).await)
    }

    async fn ports(&self, request: Request<v1::PortsRequest>) -> Answer<Self::PortsStream> {
        let watch = request.into_inner().watch;
        Ok(Response::new(ports::ledger(
            Arc::clone(&self.engine),
            watch,
            self.closing.clone(),
        )))
    }

    async fn port_policy(
        &self,
        request: Request<v1::PortPolicyRequest>,
    ) -> Answer<v1::PortPolicyReply> {
        answer(self.engine.port_policy(request.into_inner()).await)
    }

    async fn manage(&self, request: Request<v1::ManageRequest>) -> Answer<v1::ManageReply> {
        answer(self.engine.manage(request.into_inner()).await)
    }

    type LogsStream = BoxStream<v1::LogChunk>;

    async fn greet(&self, request: Request<v1::GreetRequest>) -> Answer<v1::GreetReply> {
        let theirs = request.into_inner();
        if theirs.generation < OLDEST_GENERATION {
            return Err(status_of(
                &Failure::new(
                    ErrorCode::Incompatible,
                    format!(
                        "the client ({}) speaks generation {}, this daemon ({}) needs {OLDEST_GENERATION}",
                        theirs.version,
                        theirs.generation,
                        env!("CARGO_PKG_VERSION")
                    ),
                )
                .hint("use `hostel` and `hosteld` of one release"),
            ));
        }
        Ok(Response::new(v1::GreetReply {
            generation: GENERATION.min(theirs.generation),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            home: self.paths.home.display().to_string(),
        }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusReply> {
        let distros = self.engine.list(false);
        Ok(Response::new(v1::StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            resident_bytes: doctor::resident_bytes(),
            home: self.paths.home.display().to_string(),
            runtime_dir: self.paths.runtime.display().to_string(),
            vm: Some(self.engine.vm_status()),
            network: Some(self.engine.network_status().await),
            distros: distros.len() as u32,
            running: distros.iter().filter(|d| d.state == "running").count() as u32,
            default_distro: distros
                .iter()
                .find(|d| d.is_default)
                .map(|d| d.name.clone())
                .unwrap_or_default(),
            kernel: self.engine.kernel_next().await,
        }))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListReply> {
        Ok(Response::new(v1::ListReply {
            distros: self.engine.list(request.into_inner().running_only),
        }))
    }

    async fn inspect(&self, request: Request<v1::InspectRequest>) -> Answer<v1::InspectReply> {
        answer(self.engine.inspect(&request.into_inner().name).await)
    }

    async fn import(&self, request: Request<v1::ImportRequest>) -> Answer<Self::ImportStream> {
        let engine = Arc::clone(&self.engine);
        let size = self.backend.default_disk_size();
        let request = request.into_inner();
        Ok(Response::new(task(|sink| async move {
            engine.import(request, size, &sink).await
        })))
    }

    async fn export(&self, request: Request<v1::ExportRequest>) -> Answer<Self::ExportStream> {
        let engine = Arc::clone(&self.engine);
        let request = request.into_inner();
        Ok(Response::new(task(|sink| async move {
            engine.export(request, &sink).await
        })))
    }

    async fn install(&self, request: Request<v1::InstallRequest>) -> Answer<Self::InstallStream> {
        let engine = Arc::clone(&self.engine);
        let mirror = self.backend.debian_mirror();
        let size = self.backend.default_disk_size();
        let request = request.into_inner();
        Ok(Response::new(task(|sink| async move {
            engine.install(request, mirror, size, &sink).await
        })))
    }

    async fn start(&self, request: Request<v1::StartRequest>) -> Answer<Self::StartStream> {
        let engine = Arc::clone(&self.engine);
        let name = request.into_inner().name;
        Ok(Response::new(task(|sink| async move {
            let distro = engine.start(&name, &sink).await?;
            sink.done(v1::TaskDone {
                distro: Some(distro),
                ..v1::TaskDone::default()
            })
            .await;
            Ok(())
        })))
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Answer<Self::StopStream> {
        let engine = Arc::clone(&self.engine);
        let request = request.into_inner();
        Ok(Response::new(task(|sink| async move {
            sink.progress("stopping", 0, 0, "");
            let timeout =
                (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms.into()));
            let stopped = engine.stop(&request.name, timeout).await?;
            sink.done(v1::TaskDone {
                stopped: stopped.into_iter().collect(),
                ..v1::TaskDone::default()
            })
            .await;
            Ok(())
        })))
    }

    async fn shutdown(
        &self,
        request: Request<v1::ShutdownRequest>,
    ) -> Answer<Self::ShutdownStream> {
        let engine = Arc::clone(&self.engine);
        let force = request.into_inner().force;
        Ok(Response::new(task(|sink| async move {
            sink.progress("shutting down", 0, 0, "");
            let stopped = engine.shutdown(force).await?;
            sink.done(v1::TaskDone {
                stopped,
                ..v1::TaskDone::default()
            })
            .await;
            Ok(())
        })))
    }

    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Answer<Empty> {
        empty(self.engine.remove(&request.into_inner().name).await)
    }

    async fn rename(&self, request: Request<v1::RenameRequest>) -> Answer<Empty> {
        let request = request.into_inner();
        empty(self.engine.rename(&request.name, &request.new_name).await)
    }

    async fn set_default(&self, request: Request<v1::SetDefaultRequest>) -> Answer<Empty> {
        empty(self.engine.set_default(&request.into_inner().name).await)
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<Self::ExecStream> {
        let events = self
            .engine
            .exec(request.into_inner())
            .await
            .map_err(|f| status_of(&f))?;
        Ok(Response::new(sessions(events)))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<Self::AttachStream> {
        let events = self
            .engine
            .attach(&request.into_inner().session)
            .await
            .map_err(|f| status_of(&f))?;
        Ok(Response::new(sessions(events)))
    }

    async fn list_sessions(
        &self,
        _: Request<v1::ListSessionsRequest>,
    ) -> Answer<v1::ListSessionsReply> {
        Ok(Response::new(v1::ListSessionsReply {
            sessions: self.engine.sessions_of(None),
        }))
    }

    async fn resize(&self, request: Request<v1::ResizeRequest>) -> Answer<Empty> {
        empty(self.engine.resize(request.into_inner()).await)
    }

    async fn signal(&self, request: Request<v1::SignalRequest>) -> Answer<Empty> {
        empty(self.engine.signal(request.into_inner()).await)
    }

    async fn kernel_install(
        &self,
        request: Request<v1::KernelInstallRequest>,
    ) -> Answer<Self::KernelInstallStream> {
        let engine = Arc::clone(&self.engine);
        let request = request.into_inner();
        Ok(Response::new(task(|sink| async move {
            engine.kernel_install(request, &sink).await
        })))
    }

    async fn kernel_list(&self, _: Request<v1::KernelListRequest>) -> Answer<v1::KernelListReply> {
        answer(
            self.engine
                .kernel_list()
                .await
                .map(|kernels| v1::KernelListReply { kernels }),
        )
    }

    async fn kernel_use(&self, request: Request<v1::KernelUseRequest>) -> Answer<Empty> {
        empty(self.engine.kernel_use(request.into_inner().release).await)
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.into_inner();
        let path = match request.which.as_str() {
            "" | "console" => self.paths.console_log(),
            "daemon" => self.paths.daemon_log(),
            other => {
                return Err(status_of(
                    &Failure::new(
                        ErrorCode::InvalidArgument,
                        format!("no log is named `{}`", other.escape_debug()),
                    )
                    .hint("hostel logs console")
                    .hint("hostel logs daemon"),
                ));
            }
        };
        let ended = self.closing.clone();
        Ok(Response::new(logs::read(
            path,
            request.tail_lines as usize,
            request.follow,
            ended,
        )))
    }

    async fn doctor(&self, _: Request<v1::DoctorRequest>) -> Answer<v1::DoctorReply> {
        Ok(Response::new(v1::DoctorReply {
            checks: self.checks().await,
        }))
    }

    async fn quit(&self, request: Request<v1::QuitRequest>) -> Answer<Empty> {
        if !request.into_inner().force && !self.engine.is_idle() {
            return Err(status_of(
                &Failure::new(ErrorCode::WrongState, "the VM runs, or a task is under way")
                    .hint("hostel shutdown")
                    .hint("hostel status"),
            ));
        }
        self.closing.cancel();
        Ok(Response::new(Empty {}))
    }
}

fn sessions(events: hostel_engine::SessionEvents) -> BoxStream<v1::SessionEvent> {
    Box::pin(ReceiverStream::new(events).map(|event| event.map_err(|f| status_of(&f))))
}
