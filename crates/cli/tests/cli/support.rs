//! A fake daemon, and the program run against it.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1::{
    self,
    hostel_server::{Hostel, HostelServer},
    session_event, task_event,
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

/// No test may take longer for any one step.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One session, as the test plays it: the streams that the client claimed, and the means to end it.
pub(crate) struct Session {
    pub(crate) request: v1::ExecRequest,
    /// Connections, in the order of the tokens that were given.
    pub(crate) streams: Vec<(v1::StreamKind, UnixStream)>,
    events: tokio::sync::mpsc::Sender<Result<v1::SessionEvent, Status>>,
}

impl Session {
    pub(crate) fn stream(&mut self, kind: v1::StreamKind) -> &mut UnixStream {
        &mut self
            .streams
            .iter_mut()
            .find(|(k, _)| *k == kind)
            .expect("the stream was claimed")
            .1
    }

    pub(crate) fn has(&self, kind: v1::StreamKind) -> bool {
        self.streams.iter().any(|(k, _)| *k == kind)
    }

    pub(crate) fn send(&self, event: session_event::Event) {
        self.events
            .blocking_send(Ok(v1::SessionEvent { event: Some(event) }))
            .expect("the client listens");
    }

    pub(crate) fn exit(&self, code: u32, signal: u32, totals: &[(v1::StreamKind, u64)]) {
        let totals = totals
            .iter()
            .map(|(kind, bytes)| v1::StreamTotal {
                kind: (*kind).into(),
                bytes: *bytes,
            })
            .collect();
        self.send(session_event::Event::Exited(v1::SessionExited {
            code,
            signal,
            core_dumped: false,
            totals,
        }));
    }

    pub(crate) fn fail(&self, failure: &Failure) {
        self.events
            .blocking_send(Err(hostel_proto::status_of(failure)))
            .expect("the client listens");
    }

    /// Waits until the client has ended the call.
    pub(crate) fn wait_hung_up(&self) {
        let deadline = Instant::now() + PATIENCE;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::time::timeout(deadline - Instant::now(), self.events.closed())
                .await
                .expect("the client hangs up");
        });
    }
}

/// What the fake was asked, and what it shall answer.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) generation: Option<u32>,
    pub(crate) distros: Vec<v1::Distro>,
    pub(crate) exec_failure: Option<Failure>,
    pub(crate) task_failure: Option<Failure>,
    pub(crate) checks: Vec<v1::Check>,
    /// What export writes.
    pub(crate) archive: Vec<u8>,
    /// Calls by name, with the request.
    pub(crate) calls: Vec<(&'static str, String)>,
    /// What import read.
    pub(crate) imported: Vec<u8>,
    pub(crate) vm_state: String,
    pub(crate) network: v1::NetworkReply,
    pub(crate) firewall: v1::FirewallReply,
    pub(crate) port_rules: Vec<v1::PortRule>,
    pub(crate) managed: v1::ManageReply,
    /// Answers to what changes the network's settings, instead of doing it.
    pub(crate) refusal: Option<Failure>,
}

impl Script {
    fn allowed(&self) -> Result<(), Status> {
        match &self.refusal {
            Some(failure) => Err(hostel_proto::status_of(failure)),
            None => Ok(()),
        }
    }
}

struct Shared {
    script: Mutex<Script>,
    /// Streams that wait to be claimed: token and where the connection goes.
    claims: Mutex<VecDeque<([u8; 32], mpsc::Sender<UnixStream>)>>,
    sessions: Mutex<mpsc::Sender<Session>>,
    nudges: Mutex<mpsc::Sender<(&'static str, v1::ResizeRequest, v1::SignalRequest)>>,
    /// The ledger of ports as it is now.
    ports: tokio::sync::watch::Sender<Vec<v1::Port>>,
}

/// A daemon that does what a test says.
pub(crate) struct Fake {
    pub(crate) dir: tempfile::TempDir,
    shared: Arc<Shared>,
    sessions: mpsc::Receiver<Session>,
    nudges: mpsc::Receiver<(&'static str, v1::ResizeRequest, v1::SignalRequest)>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fake {
    /// Serves on `api.sock`.
    pub(crate) fn new(script: Script) -> Self {
        Self::listening_at("api.sock", script)
    }

    /// Serves on a socket of another name, which a fake `hosteld` moves into place.
    pub(crate) fn listening_at(name: &str, script: Script) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("hostel-cli-")
            .tempdir()
            .unwrap();
        fs_err::create_dir_all(dir.path().join("r")).unwrap();
        fs_err::create_dir_all(dir.path().join("h")).unwrap();
        std::fs::set_permissions(
            dir.path().join("r"),
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        let (session_send, sessions) = mpsc::channel();
        let (nudge_send, nudges) = mpsc::channel();
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            claims: Mutex::default(),
            sessions: Mutex::new(session_send),
            nudges: Mutex::new(nudge_send),
            ports: tokio::sync::watch::Sender::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let service = HostelServer::new(Service(Arc::clone(&shared)));
        {
            let _guard = runtime.enter();
            let api = tokio::net::UnixListener::bind(dir.path().join("r").join(name)).unwrap();
            let incoming = tokio_stream::wrappers::UnixListenerStream::new(api);
            runtime.spawn(
                tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming(incoming),
            );
        }
        let streams =
            std::os::unix::net::UnixListener::bind(dir.path().join("r/stream.sock")).unwrap();
        let claims = Arc::clone(&shared);
        std::thread::spawn(move || {
            for connection in streams.incoming().map_while(Result::ok) {
                claim(&claims, connection);
            }
        });
        Self {
            dir,
            shared,
            sessions,
            nudges,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("r")
    }

    /// Ends the daemon at once, as kill -9 would.
    pub(crate) fn kill(&mut self) {
        self.runtime
            .take()
            .expect("killed once")
            .shutdown_background();
    }

    pub(crate) fn session(&self) -> Session {
        self.sessions
            .recv_timeout(PATIENCE)
            .expect("the client opens a session")
    }

    pub(crate) fn nudge(&self) -> (&'static str, v1::ResizeRequest, v1::SignalRequest) {
        self.nudges
            .recv_timeout(PATIENCE)
            .expect("the client sends a resize or a signal")
    }

    pub(crate) fn script<T>(&self, f: impl FnOnce(&mut Script) -> T) -> T {
        f(&mut self.shared.script.lock().unwrap())
    }

    /// Changes the ledger of ports; those who watch it hear of it.
    pub(crate) fn set_ports(&self, ports: Vec<v1::Port>) {
        self.shared.ports.send_replace(ports);
    }

    /// The request of the last call, as text.
    pub(crate) fn last_call(&self) -> (&'static str, String) {
        self.script(|s| s.calls.last().cloned().expect("there was a call"))
    }

    pub(crate) fn calls(&self, name: &str) -> usize {
        self.script(|s| s.calls.iter().filter(|(n, _)| *n == name).count())
    }

    /// The program with the environment of this fake.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostel"));
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.dir.path())
            .env("HOSTEL_HOME", self.dir.path().join("h"))
            .env("HOSTEL_RUNTIME_DIR", self.runtime_dir())
            .env("HOSTELD", "/bin/false")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        Running::start(&mut self.command(args)).finish()
    }
}

/// A running client; killed when a test fails.
pub(crate) struct Running(Option<Child>);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("not finished yet")
    }

    pub(crate) fn pid(&mut self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.child())
    }

    pub(crate) fn kill(&mut self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the end, with a deadline.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let pidfd =
            rustix::process::pidfd_open(self.pid(), rustix::process::PidfdFlags::empty()).unwrap();
        let timeout = rustix::event::Timespec {
            tv_sec: PATIENCE.as_secs() as i64,
            tv_nsec: 0,
        };
        let mut fds = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        assert_eq!(
            rustix::event::poll(&mut fds, Some(&timeout)).unwrap(),
            1,
            "the client ends"
        );
        self.child().wait().unwrap()
    }

    /// Waits for the end and returns everything that was printed.
    pub(crate) fn finish(mut self) -> Output {
        let (send, receive) = mpsc::channel();
        let child = self.0.take().expect("not finished yet");
        let pid = rustix::process::Pid::from_child(&child);
        std::thread::spawn(move || send.send(child.wait_with_output()));
        let Ok(output) = receive.recv_timeout(PATIENCE) else {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("the client does not end");
        };
        output.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Texts of an output, for comparing.
pub(crate) fn texts(output: &Output) -> (Option<i32>, String, String) {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Reads until a text has come, with a deadline.
pub(crate) fn read_until(from: &mut (impl Read + std::os::fd::AsFd), wanted: &str) -> String {
    let timeout = rustix::event::Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    let mut got = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&got).contains(wanted) {
        let mut fds = [rustix::event::PollFd::new(
            from,
            rustix::event::PollFlags::IN,
        )];
        let ready = rustix::event::poll(&mut fds, Some(&timeout)).unwrap();
        assert_eq!(
            ready,
            1,
            "wanted {wanted:?}, got {:?}",
            String::from_utf8_lossy(&got)
        );
        match from.read(&mut byte) {
            Ok(1) => got.push(byte[0]),
            end => panic!(
                "wanted {wanted:?}, got {:?} and then {end:?}",
                String::from_utf8_lossy(&got)
            ),
        }
    }
    String::from_utf8_lossy(&got).into_owned()
}

fn claim(shared: &Shared, connection: UnixStream) {
    // Descriptors come with the token's bytes.
    let mut token = [0; 32];
    let (n, mut fds) = hostel_sys::fdpass::recv(&connection, &mut token).unwrap();
    assert_eq!(n, 32, "the token comes in one piece");
    let sender = {
        let mut claims = shared.claims.lock().unwrap();
        let at = claims
            .iter()
            .position(|(t, _)| *t == token)
            .expect("a token that was given out, once");
        claims.remove(at).expect("just found").1
    };
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    // An archive's own descriptor stands in for the connection.
    let _ = sender.send(fds.pop().map_or(connection, UnixStream::from));
}

struct Service(Arc<Shared>);

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

impl Service {
    fn note<T: std::fmt::Debug>(&self, name: &'static str, request: &Request<T>) {
        self.0
            .script
            .lock()
            .unwrap()
            .calls
            .push((name, format!("{:?}", request.get_ref())));
    }

    fn token(&self) -> (bytes::Bytes, mpsc::Receiver<UnixStream>) {
        let token = *hostel_model::Token::new_random().as_bytes();
        let (send, receive) = mpsc::channel();
        self.0.claims.lock().unwrap().push_back((token, send));
        (bytes::Bytes::copy_from_slice(&token), receive)
    }

    fn done(&self, done: v1::TaskDone) -> Answer<Events<v1::TaskEvent>> {
        if let Some(failure) = &self.0.script.lock().unwrap().task_failure {
            return Err(hostel_proto::status_of(failure));
        }
        let progress = v1::Progress {
            step: "working".into(),
            done: 1,
            total: 2048,
            unit: "bytes".into(),
        };
        let events = [
            task_event::Event::Progress(progress),
            task_event::Event::Done(done),
        ];
        let events = events.map(|e| Ok(v1::TaskEvent { event: Some(e) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }

    /// A task that first takes an archive.
    #[expect(clippy::unnecessary_wraps, reason = "the answer of a call")]
    fn archive_task(
        &self,
        work: impl FnOnce(OwnedFd) -> Result<v1::TaskDone, Failure> + Send + 'static,
    ) -> Answer<Events<v1::TaskEvent>> {
        let (token, archive) = self.token();
        let (send, receive) = tokio::sync::mpsc::channel(8);
        std::thread::spawn(move || {
            let event = |e| Ok(v1::TaskEvent { event: Some(e) });
            let kind = v1::StreamKind::Archive.into();
            send.blocking_send(event(task_event::Event::Claim(v1::StreamToken {
                kind,
                token,
            })))
            .unwrap();
            let Ok(archive) = archive.recv_timeout(PATIENCE) else {
                return;
            };
            let last = match work(archive.into()) {
                Ok(done) => event(task_event::Event::Done(done)),
                Err(failure) => Err(hostel_proto::status_of(&failure)),
            };
            let _ = send.blocking_send(last);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    fn session(&self, request: v1::ExecRequest) -> Answer<Events<v1::SessionEvent>> {
        if let Some(failure) = &self.0.script.lock().unwrap().exec_failure {
            return Err(hostel_proto::status_of(failure));
        }
        let command = request.command.clone().unwrap_or_default();
        let terminal =
            [command.stdin(), command.stdout(), command.stderr()].contains(&v1::Stdio::Tty);
        let mut kinds = Vec::new();
        for (stdio, kind) in [
            (
                if terminal {
                    v1::Stdio::Pipe
                } else {
                    v1::Stdio::Null
                },
                v1::StreamKind::Tty,
            ),
            (command.stdin(), v1::StreamKind::Stdin),
            (command.stdout(), v1::StreamKind::Stdout),
            (command.stderr(), v1::StreamKind::Stderr),
        ] {
            if stdio == v1::Stdio::Pipe {
                kinds.push(kind);
            }
        }
        let (send, receive) = tokio::sync::mpsc::channel(8);
        let mut streams = Vec::new();
        let mut waiting = Vec::new();
        for kind in kinds {
            let (token, claimed) = self.token();
            streams.push(v1::StreamToken {
                kind: kind.into(),
                token,
            });
            waiting.push((kind, claimed));
        }
        let sessions = self.0.sessions.lock().unwrap().clone();
        std::thread::spawn(move || {
            let opened = v1::SessionOpened {
                session: "s1".into(),
                streams,
            };
            let event = session_event::Event::Opened(opened);
            send.blocking_send(Ok(v1::SessionEvent { event: Some(event) }))
                .unwrap();
            let streams = waiting
                .into_iter()
                .map(|(k, w)| (k, w.recv_timeout(PATIENCE).unwrap()))
                .collect();
            let _ = sessions.send(Session {
                request,
                streams,
                events: send,
            });
        });
        Ok(Response::new(Box::pin(
            ReceiverStream::new(receive).map(|e| e),
        )))
    }
}

#[tonic::async_trait]
impl Hostel for Service {
    async fn greet(&self, request: Request<v1::GreetRequest>) -> Answer<v1::GreetReply> {
        self.note("greet", &request);
        let generation = self
            .0
            .script
            .lock()
            .unwrap()
            .generation
            .unwrap_or(hostel_model::GENERATION);
        Ok(Response::new(v1::GreetReply {
            generation,
            version: "9.9.9".into(),
            pid: 42,
            home: "/h".into(),
        }))
    }
    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusReply> {
        self.note("status", &request);
        Ok(Response::new(v1::StatusReply {
            version: "9.9.9".into(),
            pid: 42,
            vm: Some(v1::VmStatus {
                state: self.0.script.lock().unwrap().vm_state.clone(),
                ..Default::default()
            }),
            ..Default::default()
        }))
    }
    async fn list(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListReply> {
        self.note("list", &request);
        Ok(Response::new(v1::ListReply {
            distros: self.0.script.lock().unwrap().distros.clone(),
        }))
    }
    async fn inspect(&self, request: Request<v1::InspectRequest>) -> Answer<v1::InspectReply> {
        self.note("inspect", &request);
        let distro = self.0.script.lock().unwrap().distros.first().cloned();
        Ok(Response::new(v1::InspectReply {
            distro,
            ..Default::default()
        }))
    }
    type ImportStream = Events<v1::TaskEvent>;
    async fn import(&self, request: Request<v1::ImportRequest>) -> Answer<Self::ImportStream> {
        self.note("import", &request);
        let shared = Arc::clone(&self.0);
        self.archive_task(move |fd| {
            let mut got = Vec::new();
            std::fs::File::from(fd).read_to_end(&mut got).unwrap();
            let bytes = got.len() as u64;
            shared.script.lock().unwrap().imported = got;
            Ok(v1::TaskDone {
                bytes,
                ..Default::default()
            })
        })
    }
    type ExportStream = Events<v1::TaskEvent>;
    async fn export(&self, request: Request<v1::ExportRequest>) -> Answer<Self::ExportStream> {
        self.note("export", &request);
        let shared = Arc::clone(&self.0);
        self.archive_task(move |fd| {
            let script = shared.script.lock().unwrap();
            std::fs::File::from(fd).write_all(&script.archive).unwrap();
            match &script.task_failure {
                Some(failure) => Err(failure.clone()),
                None => Ok(v1::TaskDone {
                    bytes: script.archive.len() as u64,
                    ..Default::default()
                }),
            }
        })
    }
    type InstallStream = Events<v1::TaskEvent>;
    async fn install(&self, request: Request<v1::InstallRequest>) -> Answer<Self::InstallStream> {
        self.note("install", &request);
        let distro = Some(v1::Distro {
            name: "trixie".into(),
            ..Default::default()
        });
        self.done(v1::TaskDone {
            distro,
            ..Default::default()
        })
    }
    type StartStream = Events<v1::TaskEvent>;
    async fn start(&self, request: Request<v1::StartRequest>) -> Answer<Self::StartStream> {
        self.note("start", &request);
        self.done(v1::TaskDone::default())
    }
    type StopStream = Events<v1::TaskEvent>;
    async fn stop(&self, request: Request<v1::StopRequest>) -> Answer<Self::StopStream> {
        self.note("stop", &request);
        self.done(v1::TaskDone::default())
    }
    type ShutdownStream = Events<v1::TaskEvent>;
    async fn shutdown(
        &self,
        request: Request<v1::ShutdownRequest>,
    ) -> Answer<Self::ShutdownStream> {
        self.note("shutdown", &request);
        self.done(v1::TaskDone {
            stopped: vec!["a".into()],
            ..Default::default()
        })
    }
    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Answer<v1::Empty> {
        self.note("remove", &request);
        Ok(Response::new(v1::Empty {}))
    }
    async fn rename(&self, request: Request<v1::RenameRequest>) -> Answer<v1::Empty> {
        self.note("rename", &request);
        Ok(Response::new(v1::Empty {}))
    }
    async fn set_default(&self, request: Request<v1::SetDefaultRequest>) -> Answer<v1::Empty> {
        self.note("set-default", &request);
        let failure = Failure::new(ErrorCode::DistroNotFound, "no distribution `x\x1b[0m`")
            .hint("run `hostel list`");
        Err(hostel_proto::status_of(&failure))
    }
    type ExecStream = Events<v1::SessionEvent>;
    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<Self::ExecStream> {
        self.note("exec", &request);
        self.session(request.into_inner())
    }
    type AttachStream = Events<v1::SessionEvent>;
    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<Self::AttachStream> {
        self.note("attach", &request);
        let pipe = v1::Stdio::Pipe.into();
        let command = v1::CommandSpec {
            stdin: pipe,
            stdout: pipe,
            stderr: pipe,
            ..Default::default()
        };
        self.session(v1::ExecRequest {
            command: Some(command),
            ..Default::default()
        })
    }
    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Answer<v1::ListSessionsReply> {
        self.note("sessions", &request);
        let sessions = vec![v1::Session {
            id: "s1-abc".into(),
            ..Default::default()
        }];
        Ok(Response::new(v1::ListSessionsReply { sessions }))
    }
    async fn resize(&self, request: Request<v1::ResizeRequest>) -> Answer<v1::Empty> {
        let _ = self.0.nudges.lock().unwrap().send((
            "resize",
            request.into_inner(),
            v1::SignalRequest::default(),
        ));
        Ok(Response::new(v1::Empty {}))
    }
    async fn signal(&self, request: Request<v1::SignalRequest>) -> Answer<v1::Empty> {
        let _ = self.0.nudges.lock().unwrap().send((
            "signal",
            v1::ResizeRequest::default(),
            request.into_inner(),
        ));
        Ok(Response::new(v1::Empty {}))
    }
    type KernelInstallStream = Events<v1::TaskEvent>;
    async fn kernel_install(
        &self,
        request: Request<v1::KernelInstallRequest>,
    ) -> Answer<Self::KernelInstallStream> {
        self.note("kernel-install", &request);
        let kernel = Some(v1::Kernel {
            release: "6.1.0".into(),
            ..Default::default()
        });
        self.done(v1::TaskDone {
            kernel,
            ..Default::default()
        })
    }
    async fn kernel_list(
        &self,
        request: Request<v1::KernelListRequest>,
    ) -> Answer<v1::KernelListReply> {
        self.note("kernel-list", &request);
        Ok(Response::new(v1::KernelListReply::default()))
    }
    async fn kernel_use(&self, request: Request<v1::KernelUseRequest>) -> Answer<v1::Empty> {
        self.note("kernel-use", &request);
        Ok(Response::new(v1::Empty {}))
    }
    async fn network(&self, request: Request<v1::NetworkRequest>) -> Answer<v1::NetworkReply> {
        self.note("network", &request);
        Ok(Response::new(self.0.script.lock().unwrap().network.clone()))
    }
    async fn network_set(
        &self,
        request: Request<v1::NetworkSetRequest>,
    ) -> Answer<v1::NetworkReply> {
        self.note("network-set", &request);
        let request = request.into_inner();
        let mut script = self.0.script.lock().unwrap();
        script.allowed()?;
        let status = script.network.status.get_or_insert_default();
        for (old, new) in [
            (&mut status.subnet, request.subnet),
            (&mut status.gateway, request.gateway),
            (&mut status.address, request.address),
        ] {
            if !new.is_empty() {
                *old = new;
            }
        }
        Ok(Response::new(script.network.clone()))
    }
    async fn firewall(&self, request: Request<v1::FirewallRequest>) -> Answer<v1::FirewallReply> {
        self.note("firewall", &request);
        let request = request.into_inner();
        let mut script = self.0.script.lock().unwrap();
        script.allowed()?;
        let rules = &mut script.firewall.rules;
        rules.retain(|r| !request.clear && !request.remove.contains(&r.number));
        rules.extend(request.add);
        for (number, rule) in (1..).zip(rules) {
            rule.number = number;
        }
        script.firewall.default_action = "deny".into();
        Ok(Response::new(script.firewall.clone()))
    }
    type PortsStream = Events<v1::PortsReply>;
    async fn ports(&self, request: Request<v1::PortsRequest>) -> Answer<Self::PortsStream> {
        self.note("ports", &request);
        let watch = request.into_inner().watch;
        let ledger = tokio_stream::wrappers::WatchStream::new(self.0.ports.subscribe())
            .map(|ports| Ok(v1::PortsReply { ports }));
        Ok(Response::new(if watch {
            Box::pin(ledger)
        } else {
            Box::pin(ledger.take(1))
        }))
    }
    async fn port_policy(
        &self,
        request: Request<v1::PortPolicyRequest>,
    ) -> Answer<v1::PortPolicyReply> {
        self.note("port-policy", &request);
        let request = request.into_inner();
        let mut script = self.0.script.lock().unwrap();
        script.allowed()?;
        let gone = [&request.set[..], &request.unset[..]].concat();
        let about = |r: &v1::PortRule| (r.distro.clone(), r.port, r.protocol.clone());
        let rules = &mut script.port_rules;
        rules.retain(|r| gone.iter().all(|g| about(g) != about(r)));
        rules.extend(request.set);
        Ok(Response::new(v1::PortPolicyReply {
            rules: rules.clone(),
            listen: "127.0.0.1, ::1".into(),
            forwarding: true,
        }))
    }
    async fn manage(&self, request: Request<v1::ManageRequest>) -> Answer<v1::ManageReply> {
        self.note("manage", &request);
        let request = request.into_inner();
        let mut script = self.0.script.lock().unwrap();
        script.allowed()?;
        if !request.network.is_empty() {
            script.managed.network = request.network;
            script.managed.address = request.address;
        }
        Ok(Response::new(script.managed.clone()))
    }
    type LogsStream = Events<v1::LogChunk>;
    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Self::LogsStream> {
        self.note("logs", &request);
        let chunks = ["a\n", "b\n"].map(|t| Ok(v1::LogChunk { data: t.into() }));
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
    async fn doctor(&self, request: Request<v1::DoctorRequest>) -> Answer<v1::DoctorReply> {
        self.note("doctor", &request);
        Ok(Response::new(v1::DoctorReply {
            checks: self.0.script.lock().unwrap().checks.clone(),
        }))
    }
    async fn quit(&self, request: Request<v1::QuitRequest>) -> Answer<v1::Empty> {
        self.note("quit", &request);
        Ok(Response::new(v1::Empty {}))
    }
}

/// Writes a program of the shell and returns its path.
pub(crate) fn shell_program(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs_err::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}
