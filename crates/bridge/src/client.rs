//! The client: starts a server and asks it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use hostel_model::firewall::Rule;
use hostel_sys::{
    fdpass,
    spawn::{Child, Spawn, Stream},
};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair, sockopt,
};

use crate::protocol::{
    Event, MAX_MESSAGE, Message, Numbered, Refusal, Reply, Request, Status, Survey, Up, VERSION,
};

/// A server is ready after some milliseconds; this is for a machine that is very busy.
const READY: Duration = Duration::from_secs(20);
/// The same for one request.
const ANSWER: Duration = Duration::from_secs(20);
/// Taking a network down takes milliseconds.
const END: Duration = Duration::from_secs(10);

/// Where the server works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On the network that it finds itself in: the host's own.
    Host,
    /// In a user and network namespace that it makes.
    UserNamespace {
        /// The program for the way out (`pasta`); without it there is none.
        pasta: Option<PathBuf>,
    },
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program cannot be executed.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It started, and said why it cannot work.
    #[error("the network's helper cannot work here")]
    Refused(#[source] Refusal),
    /// It ended without a word.
    #[error("the network's helper ended at once ({0})")]
    Ended(String),
    /// It did not get ready.
    #[error("the network's helper was not ready after {} seconds", READY.as_secs())]
    Late,
    /// It speaks another version of the protocol.
    #[error(
        "the network's helper speaks version {0} of the protocol, and this program version {VERSION}"
    )]
    Version(u32),
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server refused.
    #[error(transparent)]
    Refused(Refusal),
    /// There is no server any more.
    #[error("the network's helper has ended ({0})")]
    Ended(String),
    /// The server did not answer in time.
    #[error("the network's helper did not answer within {} seconds", .0.as_secs())]
    Late(Duration),
    /// The request is too long, or the answer is not the one for the request.
    #[error("the network's helper was misunderstood: {0}")]
    Misunderstood(String),
}

/// The outcome of a call: the answer and the descriptors that came with it.
pub type Outcome = Result<(Reply, Vec<OwnedFd>), CallError>;

/// What is done with an outcome; runs on the client's reading thread and must not block.
pub type Done = Box<dyn FnOnce(Outcome) + Send>;

/// The network that came up.
#[derive(Debug)]
pub struct Raised {
    /// The bridge.
    pub bridge: String,
    /// The tap's name.
    pub tap: String,
    /// The nf_tables table, family `inet`.
    pub table: String,
    /// The tap, with vnet headers switched on.
    pub descriptor: OwnedFd,
}

/// A running server. Dropping it takes the network down and waits for that: seconds at worst.
///
/// All methods take `&self` and may be called from many threads at once; requests do not wait for each other. Calls block
/// until the answer is there, usually under a millisecond ([`Client::up`]: tens of them). From async code use
/// [`Client::submit`], whose outcome may go into a oneshot channel, or a thread for blocking work. Drop and
/// [`Client::close`] must not run on the reading thread, that is, in an `events` or `done` callback.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    ended: Mutex<mpsc::Receiver<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    child: Child,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    calls: HashMap<u64, Done>,
    /// How the server ended; then nothing waits any more.
    ended: Option<String>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("calls", &self.calls.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Starts `program` and waits until it is ready. Blocks for some milliseconds.
    ///
    /// `events` is called on a thread of the client's own for everything that happens unasked, and last of all with
    /// [`Event::Ended`]. The server ends when its socket closes, so it also goes when this process is killed.
    pub fn spawn(
        program: &Path,
        mode: &Mode,
        stderr: Stream,
        events: impl Fn(Event) + Send + 'static,
    ) -> Result<Self, SpawnError> {
        let start = |source| SpawnError::Start {
            program: program.to_owned(),
            source,
        };
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| start(e.into()))?;
        // A server that reads nothing must not hold a caller for ever.
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Send, Some(ANSWER))
            .map_err(|e| start(e.into()))?;
        let mut spawn = Spawn::new(program);
        match mode {
            Mode::Host => spawn.args(["host"]),
            Mode::UserNamespace { pasta } => {
                spawn.args(["user-namespace"]);
                pasta
                    .iter()
                    .fold(&mut spawn, |spawn, path| spawn.args([path]))
            }
        };
        spawn.stdin(Stream::Fd(theirs)).stderr(stderr);
        let child = spawn.start().map_err(start)?;
        let shared = Arc::new(Shared {
            socket: ours,
            child,
            waiting: Mutex::default(),
        });
        let (ready, first) = mpsc::sync_channel(1);
        let (end, ended) = mpsc::sync_channel(1);
        let reader = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("hostel-net".into())
            .spawn(move || {
                reader.read(&ready, &events);
                // Nobody listens any more when the client was dropped; that is all right.
                let _ = end.send(());
            })
            .map_err(start)?;
        let client = Self {
            shared,
            ended: Mutex::new(ended),
        };
        match first.recv_timeout(READY) {
            Ok(Event::Ready { version: VERSION }) => Ok(client),
            Ok(Event::Ready { version }) => Err(SpawnError::Version(version)),
            Ok(Event::Failed(refusal)) => Err(SpawnError::Refused(refusal)),
            Ok(other) => Err(SpawnError::Ended(match other {
                Event::Ended(how) => how,
                _ => "its first words make no sense".to_owned(),
            })),
            Err(_) => Err(SpawnError::Late),
        }
    }

    /// Returns the server's process id.
    pub fn pid(&self) -> u32 {
        self.shared.child.pid()
    }

    /// Sends a request; `done` gets the outcome. Does not wait for it, and sets no deadline.
    pub fn submit(&self, request: Request, done: Done) {
        self.shared.submit(request, done);
    }

    /// Sends a request and waits for the outcome.
    pub fn call(&self, request: Request, deadline: Duration) -> Outcome {
        let (sender, outcome) = mpsc::sync_channel(1);
        self.submit(
            request,
            // Who called may have given up.
            Box::new(move |outcome| drop(sender.send(outcome))),
        );
        outcome
            .recv_timeout(deadline)
            .unwrap_or(Err(CallError::Late(deadline)))
    }

    /// Makes the network.
    pub fn up(&self, up: Up) -> Result<Raised, CallError> {
        raised(self.call(Request::Up(Box::new(up)), ANSWER)?)
    }

    /// Replaces the rules for connections from outside.
    pub fn firewall(&self, rules: Vec<Rule>) -> Result<(), CallError> {
        self.call(Request::Firewall(rules), ANSWER).map(|_| ())
    }

    /// Returns a TCP socket that is being connected; see [`Request::ConnectTcp`].
    pub fn connect_tcp(&self, to: SocketAddr) -> Result<OwnedFd, CallError> {
        let [socket] = descriptors(self.call(Request::ConnectTcp(to), ANSWER)?)?;
        Ok(socket)
    }

    /// Returns a connected UDP socket; see [`Request::ConnectUdp`].
    pub fn connect_udp(&self, to: SocketAddr) -> Result<OwnedFd, CallError> {
        let [socket] = descriptors(self.call(Request::ConnectUdp(to), ANSWER)?)?;
        Ok(socket)
    }

    /// Returns a UDP socket and a TCP listener on the gateway's port 53, both non-blocking.
    pub fn listen_dns(&self) -> Result<[OwnedFd; 2], CallError> {
        descriptors(self.call(Request::ListenDns, ANSWER)?)
    }

    /// Starts the way out of a user namespace again.
    pub fn restart_uplink(&self) -> Result<(), CallError> {
        self.call(Request::RestartUplink, ANSWER).map(|_| ())
    }

    /// Returns how things are.
    pub fn status(&self) -> Result<Status, CallError> {
        match self.call(Request::Status, ANSWER)? {
            (Reply::Status(status), _) => Ok(status),
            (other, _) => Err(misunderstood(&other)),
        }
    }

    /// Returns what is in the way of the bridge's packets.
    pub fn survey(&self) -> Result<Survey, CallError> {
        surveyed(self.call(Request::Survey, ANSWER)?)
    }

    /// Takes the network down and ends the server; the same as dropping it. Blocks until it has ended.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The server sees the end of the socket, takes everything down, and ends; then the reader ends.
        let _ = shutdown(&self.shared.socket, Shutdown::Write);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(END).is_err() {
            let _ = self.shared.child.kill();
            let _ = ended.recv_timeout(END);
        }
    }
}

/// Reads the outcome of [`Request::Up`], for callers of [`Client::submit`].
pub fn raised((reply, mut descriptors): (Reply, Vec<OwnedFd>)) -> Result<Raised, CallError> {
    match (reply, descriptors.pop()) {
        (Reply::Up { bridge, tap, table }, Some(descriptor)) => Ok(Raised {
            bridge,
            tap,
            table,
            descriptor,
        }),
        (other, _) => Err(misunderstood(&other)),
    }
}

/// Reads an outcome that consists of descriptors, for callers of [`Client::submit`].
pub fn descriptors<const N: usize>(
    (reply, descriptors): (Reply, Vec<OwnedFd>),
) -> Result<[OwnedFd; N], CallError> {
    descriptors.try_into().map_err(|_| misunderstood(&reply))
}

/// Reads the outcome of [`Request::Survey`], for callers of [`Client::submit`].
pub fn surveyed((reply, _): (Reply, Vec<OwnedFd>)) -> Result<Survey, CallError> {
    match reply {
        Reply::Survey(survey) => Ok(survey),
        other => Err(misunderstood(&other)),
    }
}

fn misunderstood(reply: &Reply) -> CallError {
    CallError::Misunderstood(format!("it answered {reply:?}, which does not fit"))
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, request: Request, done: Done) {
        let mut waiting = self.waiting();
        if let Some(how) = &waiting.ended {
            let how = how.clone();
            drop(waiting);
            return done(Err(CallError::Ended(how)));
        }
        let id = waiting.next;
        waiting.next += 1;
        waiting.calls.insert(id, done);
        drop(waiting);
        let failed = match serde_json::to_vec(&Numbered { id, request }) {
            Ok(text) if text.len() <= MAX_MESSAGE => match fdpass::send(&self.socket, &text, &[]) {
                Ok(()) => return,
                Err(error) => CallError::Ended(error.to_string()),
            },
            Ok(text) => CallError::Misunderstood(format!(
                "a request of {} bytes is longer than {MAX_MESSAGE}",
                text.len()
            )),
            Err(error) => CallError::Misunderstood(error.to_string()),
        };
        // The reader may have been faster and told the end.
        let done = self.waiting().calls.remove(&id);
        if let Some(done) = done {
            done(Err(failed));
        }
    }

    /// Reads until the server has ended. The first event goes to who waits for it.
    fn read(&self, ready: &mpsc::SyncSender<Event>, events: &impl Fn(Event)) {
        let mut first = Some(ready);
        let mut tell = |event: Event| match first.take() {
            Some(ready) => drop(ready.send(event)),
            None => events(event),
        };
        let mut buffer = vec![0; MAX_MESSAGE + 1];
        let why = loop {
            let (length, descriptors) = match fdpass::recv(&self.socket, &mut buffer) {
                Ok((0, _)) => break None,
                Ok((length, _)) if length > MAX_MESSAGE => {
                    break Some("a message is too long".to_owned());
                }
                Ok(received) => received,
                Err(error) => break Some(error.to_string()),
            };
            match serde_json::from_slice(&buffer[..length]) {
                Ok(Message::Event(event)) => tell(event),
                Ok(Message::Reply { id, result }) => {
                    let done = self.waiting().calls.remove(&id);
                    if let Some(done) = done {
                        done(
                            result
                                .map(|reply| (reply, descriptors))
                                .map_err(CallError::Refused),
                        );
                    }
                }
                Err(error) => break Some(format!("a message makes no sense: {error}")),
            }
        };
        if why.is_some() {
            // What speaks nonsense is not kept.
            let _ = self.child.kill();
        }
        let exit = self
            .child
            .wait()
            .map_or_else(|error| error.to_string(), |exit| exit.to_string());
        let how = why.map_or(exit.clone(), |why| format!("{why}; {exit}"));
        let calls = {
            let mut waiting = self.waiting();
            waiting.ended = Some(how.clone());
            std::mem::take(&mut waiting.calls)
        };
        for (_, done) in calls {
            done(Err(CallError::Ended(how.clone())));
        }
        tell(Event::Ended(how));
    }
}
