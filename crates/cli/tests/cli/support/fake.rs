//! A fake daemon: its sockets, and what a test tells it and asks of it.

use std::{
    collections::VecDeque,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
};

use hostel_model::Failure;
use hostel_proto::v1::{self, hostel_server::HostelServer};
use tonic::Status;

use super::{PATIENCE, Running, Session, calls::Service};

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
    pub(super) fn allowed(&self) -> Result<(), Status> {
        match &self.refusal {
            Some(failure) => Err(hostel_proto::status_of(failure)),
            None => Ok(()),
        }
    }
}
/// What the daemon and the test both have.
pub(super) struct Shared {
    pub(super) script: Mutex<Script>,
    /// Streams that wait to be claimed: token and where the connection goes.
    pub(super) claims: Mutex<VecDeque<([u8; 32], mpsc::Sender<UnixStream>)>>,
    pub(super) sessions: Mutex<mpsc::Sender<Session>>,
    pub(super) nudges: Mutex<mpsc::Sender<(&'static str, v1::ResizeRequest, v1::SignalRequest)>>,
    /// The ledger of ports as it is now.
    pub(super) ports: tokio::sync::watch::Sender<Vec<v1::Port>>,
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
