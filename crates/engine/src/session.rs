//! Sessions: one command each, its streams paired between client and guest, its life reported to the client.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::StreamExt as _;
use hostel_model::{DistroId, ErrorCode, Failure, SessionId};
use hostel_proto::{
    failure_of,
    limits::{CLAIM_TIMEOUT, MAX_ARG_BYTES, MAX_ARGS, MAX_SESSIONS},
    status_of,
    v1::{self, StreamKind, session_event::Event},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::{
    distro::InUse,
    engine::{Engine, lock},
    streams::{Claim, Flow, GuestStream, pump},
    vm::Running,
};

/// How many events wait for a slow client; after that the guest waits.
const QUEUE: usize = 16;

/// The most warnings that one session may tell its client.
const MAX_WARNINGS: usize = 32;

/// How much of a command is kept for lists, in characters.
const SHOWN: usize = 120;

/// What a client hears of its session.
pub type SessionEvents = mpsc::Receiver<Result<v1::SessionEvent, Failure>>;

/// A session and what is needed to find it again.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    /// `None`: in the VM itself.
    pub(crate) distro: Option<DistroId>,
    name: String,
    command: String,
    user: String,
    started_unix: u64,
    pid: AtomicU32,
    attached: AtomicBool,
    kinds: Vec<StreamKind>,
    running: Arc<Running>,
    /// Ends the copying of the streams that the present client claimed.
    streams: Mutex<CancellationToken>,
    _in_use: Option<InUse>,
}

/// Takes a session off the list when its task ends, however it ends.
struct Listed(Arc<Engine>, Arc<Session>);

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.0.sessions).remove(&self.1.id);
    }
}

type Sender = mpsc::Sender<Result<v1::SessionEvent, Failure>>;

impl Engine {
    /// Starts a command; the distribution and the VM are started when they do not run.
    ///
    /// Dropping the returned events hangs the session up, unless the request says `detach`.
    pub async fn exec(
        self: &Arc<Self>,
        request: v1::ExecRequest,
    ) -> Result<SessionEvents, Failure> {
        let command = request.command.unwrap_or_default();
        check(&command)?;
        let kinds = kinds(&command);
        let mut warnings = Vec::new();
        let (distro, name, in_use, running) = if request.machine {
            (
                None,
                String::new(),
                None,
                self.ensure_vm(&mut warnings).await?,
            )
        } else {
            let record = self.resolve(&request.name)?;
            let (in_use, running) = self.ensure_distro(&record, &mut warnings).await?;
            (
                Some(record.id),
                record.name.to_string(),
                Some(in_use),
                running,
            )
        };
        let session = Arc::new(Session {
            id: SessionId::new_random(),
            distro,
            name,
            command: shown(&command),
            user: command.user.clone(),
            started_unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            pid: AtomicU32::new(0),
            attached: AtomicBool::new(true),
            kinds,
            running,
            streams: Mutex::new(CancellationToken::new()),
            _in_use: in_use,
        });
        {
            let mut sessions = lock(&self.sessions);
            if sessions.len() >= MAX_SESSIONS {
                return Err(Failure::new(
                    ErrorCode::Busy,
                    format!("{MAX_SESSIONS} sessions run already"),
                )
                .hint("end some of them"));
            }
            sessions.insert(session.id, Arc::clone(&session));
        }
        let listed = Listed(Arc::clone(self), Arc::clone(&session));
        let (sender, events) = mpsc::channel(QUEUE);
        let (opened, ends) = self.open_streams(&session)?;
        // A fresh queue has room for these.
        let _ = sender.try_send(Ok(event(Event::Opened(opened))));
        for text in warnings.into_iter().take(QUEUE / 2) {
            let _ = sender.try_send(Ok(event(Event::Warning(text))));
        }
        let start = v1::AgentExecRequest {
            distro: session.distro.map(|id| id.to_string()).unwrap_or_default(),
            session: session.id.to_string(),
            command: Some(command),
            streams: Vec::new(),
        };
        self.tasks
            .spawn(live(listed, start, ends, sender, request.detach));
        Ok(events)
    }

    /// Takes over the streams of a session whose client is gone.
    pub async fn attach(self: &Arc<Self>, id: &str) -> Result<SessionEvents, Failure> {
        let session = self.session(id)?;
        let (opened, ends) = self.open_streams(&session)?;
        let (streams, claims) = self.expect_guest(&session.kinds)?;
        let mut agent = session.running.agent();
        let request = v1::AgentAttachRequest {
            session: session.id.to_string(),
            streams,
        };
        let events = match agent.attach(request).await {
            Ok(reply) => reply.into_inner(),
            Err(status) => return Err(session.running.failure(status).await),
        };
        join(ends, claims);
        let (sender, receiver) = mpsc::channel(QUEUE);
        let _ = sender.try_send(Ok(event(Event::Opened(opened))));
        session.attached.store(true, Ordering::Relaxed);
        self.tasks.spawn(async move {
            let _ = follow(&session, events, &sender).await;
            session.attached.store(false, Ordering::Relaxed);
        });
        Ok(receiver)
    }

    /// Makes the client's tokens of a session's streams, and copies each as soon as both its ends are there.
    fn open_streams(
        self: &Arc<Self>,
        session: &Arc<Session>,
    ) -> Result<(v1::SessionOpened, Ends), Failure> {
        let cancel = CancellationToken::new();
        // Whoever copied for an earlier client stops.
        std::mem::replace(&mut *lock(&session.streams), cancel.clone()).cancel();
        let mut opened = v1::SessionOpened {
            session: session.id.to_string(),
            streams: Vec::new(),
        };
        let mut ends = Vec::new();
        for kind in &session.kinds {
            let client = self.client_streams.expect()?;
            let (end, guest) = oneshot::channel::<Claim<GuestStream>>();
            opened.streams.push(stream_token(*kind, client.token()));
            ends.push(end);
            let flow = match kind {
                StreamKind::Stdout | StreamKind::Stderr => Flow::FromGuest,
                StreamKind::Tty
                | StreamKind::Stdin
                | StreamKind::Archive
                | StreamKind::Unspecified => Flow::TwoWay,
            };
            let (cancel, gone) = (cancel.clone(), session.running.gone.clone());
            self.tasks.spawn(async move {
                let copy = async {
                    let guest = async { guest.await.ok()?.claimed(CLAIM_TIMEOUT).await };
                    let both = tokio::join!(client.claimed(CLAIM_TIMEOUT), guest);
                    if let (Some(client), Some(guest)) = both {
                        pump(client.stream, guest, flow).await;
                    }
                };
                tokio::select! {
                    () = copy => {}
                    () = cancel.cancelled() => {}
                    () = gone.cancelled() => {}
                }
            });
        }
        Ok((opened, ends))
    }

    /// Makes the guest's tokens of a session's streams.
    fn expect_guest(
        &self,
        kinds: &[StreamKind],
    ) -> Result<(Vec<v1::StreamToken>, Vec<Claim<GuestStream>>), Failure> {
        let mut tokens = Vec::new();
        let mut claims = Vec::new();
        for kind in kinds {
            let claim = self.guest_streams.expect()?;
            tokens.push(stream_token(*kind, claim.token()));
            claims.push(claim);
        }
        Ok((tokens, claims))
    }

    fn session(&self, id: &str) -> Result<Arc<Session>, Failure> {
        id.parse::<SessionId>()
            .ok()
            .and_then(|id| lock(&self.sessions).get(&id).cloned())
            .ok_or_else(|| {
                Failure::new(
                    ErrorCode::InvalidArgument,
                    format!("no session is named `{}`", id.escape_debug()),
                )
                .hint("hostel inspect NAME")
            })
    }

    /// Tells the size of a session's terminal to the guest.
    pub async fn resize(&self, request: v1::ResizeRequest) -> Result<(), Failure> {
        let session = self.session(&request.session)?;
        let result = session.running.agent().resize(request).await;
        match result {
            Ok(_) => Ok(()),
            Err(status) => Err(session.running.failure(status).await),
        }
    }

    /// Sends a signal to a session's foreground processes.
    pub async fn signal(&self, request: v1::SignalRequest) -> Result<(), Failure> {
        let session = self.session(&request.session)?;
        let result = session.running.agent().signal(request).await;
        match result {
            Ok(_) => Ok(()),
            Err(status) => Err(session.running.failure(status).await),
        }
    }

    /// Lists sessions, of one distribution or of all.
    pub fn sessions_of(&self, distro: Option<DistroId>) -> Vec<v1::Session> {
        let mut all: Vec<_> = lock(&self.sessions)
            .values()
            .filter(|s| distro.is_none() || s.distro == distro)
            .map(|s| v1::Session {
                id: s.id.to_string(),
                distro: s.name.clone(),
                pid: s.pid.load(Ordering::Relaxed),
                command: s.command.clone(),
                user: s.user.clone(),
                attached: s.attached.load(Ordering::Relaxed),
                started_unix: s.started_unix,
            })
            .collect();
        all.sort_by(|a, b| (a.started_unix, &a.id).cmp(&(b.started_unix, &b.id)));
        all
    }

    pub(crate) fn has_sessions(&self) -> bool {
        !lock(&self.sessions).is_empty()
    }
}

/// Where the guest's ends of a session's streams are handed to whoever copies them.
type Ends = Vec<oneshot::Sender<Claim<GuestStream>>>;

/// Hands the guest's ends over; copying begins.
fn join(ends: Ends, claims: Vec<Claim<GuestStream>>) {
    for (end, claim) in ends.into_iter().zip(claims) {
        // A client that left needs no copying.
        let _ = end.send(claim);
    }
}

/// Asks the guest to start the command. Its ends of the streams come with the answer.
async fn begin(
    engine: &Engine,
    session: &Session,
    mut start: v1::AgentExecRequest,
) -> Result<(Streaming<v1::SessionEvent>, Vec<Claim<GuestStream>>), tonic::Status> {
    let (tokens, claims) = engine
        .expect_guest(&session.kinds)
        .map_err(|f| status_of(&f))?;
    start.streams = tokens;
    let mut agent = session.running.agent();
    let reply = tokio::select! {
        reply = agent.exec(start) => reply?,
        () = session.running.gone.cancelled() => return Err(tonic::Status::unavailable("")),
    };
    Ok((reply.into_inner(), claims))
}

/// Starts a session's distribution again, in the same VM.
async fn restart(engine: &Arc<Engine>, session: &Session) -> Result<(), Failure> {
    let Some(record) = session.distro.and_then(|id| engine.registry.get(id)) else {
        return Ok(());
    };
    let end = v1::DistroEnded {
        id: record.id.to_string(),
        ..v1::DistroEnded::default()
    };
    engine.distro_ended(&session.running, &end);
    engine.ensure_distro(&record, &mut Vec::new()).await?;
    Ok(())
}

/// Lives with a session until its command has ended.
async fn live(
    listed: Listed,
    start: v1::AgentExecRequest,
    ends: Ends,
    sender: Sender,
    detach: bool,
) {
    let session = &listed.1;
    let mut agent = session.running.agent();
    let mut started = begin(&listed.0, session, start.clone()).await;
    if let Err(status) = &started
        && failure_of(status).code == ErrorCode::DistroStopped
    {
        // Its PID 1 ended and the news of it is still on its way. Nothing has been copied yet: once more.
        match restart(&listed.0, session).await {
            Ok(()) => started = begin(&listed.0, session, start).await,
            Err(failure) => {
                tracing::debug!(%failure, "a distribution that had ended was not started again");
            }
        }
    }
    let mut events = match started {
        Ok((events, claims)) => {
            join(ends, claims);
            events
        }
        Err(status) => {
            let failure = session.running.failure(status).await;
            lock(&session.streams).cancel();
            let _ = sender.send(Err(failure)).await;
            return;
        }
    };
    events = match follow(session, events, &sender).await {
        Followed::Ended => return,
        Followed::ClientGone(events) => *events,
    };
    session.attached.store(false, Ordering::Relaxed);
    drop(sender);
    if !detach {
        lock(&session.streams).cancel();
        let hangup = agent.hangup(v1::HangupRequest {
            session: session.id.to_string(),
        });
        if let Err(status) = hangup.await {
            tracing::debug!(session = %session.id, %status, "the guest was not told of a hang-up");
        }
    }
    // Listed until its command ends: it may ignore the hang-up, and a detached one goes on.
    loop {
        let next = tokio::select! {
            next = events.next() => next,
            () = session.running.gone.cancelled() => return,
        };
        let Some(Ok(next)) = next else { return };
        match next.event {
            Some(Event::Exited(_)) => return,
            Some(Event::Started(started)) => session.pid.store(started.pid, Ordering::Relaxed),
            Some(Event::Opened(_) | Event::Warning(_)) | None => {}
        }
    }
}

/// How following a session ended.
enum Followed {
    /// The client knows how it ended.
    Ended,
    /// The client went away before.
    ClientGone(Box<Streaming<v1::SessionEvent>>),
}

/// Passes a session's events on until it ends or the client goes away.
async fn follow(
    session: &Session,
    mut events: Streaming<v1::SessionEvent>,
    sender: &Sender,
) -> Followed {
    let mut warnings = 0;
    loop {
        let next = tokio::select! {
            biased;
            next = events.next() => next,
            () = sender.closed() => return Followed::ClientGone(Box::new(events)),
            () = session.running.gone.cancelled() => Some(Err(tonic::Status::unavailable(""))),
        };
        let (message, last) = match next {
            Some(Ok(v1::SessionEvent { event: Some(kind) })) => match kind {
                Event::Started(started) => {
                    session.pid.store(started.pid, Ordering::Relaxed);
                    (Ok(event(Event::Started(started))), false)
                }
                Event::Exited(exited) => (Ok(event(Event::Exited(exited))), true),
                Event::Warning(text) => {
                    warnings += 1;
                    if warnings > MAX_WARNINGS {
                        continue;
                    }
                    (Ok(event(Event::Warning(text))), false)
                }
                // The daemon alone opens streams.
                Event::Opened(_) => continue,
            },
            Some(Ok(v1::SessionEvent { event: None })) => continue,
            Some(Err(status)) => (Err(session.running.failure(status).await), true),
            None => {
                let status =
                    tonic::Status::unavailable("the guest ended the session without saying how");
                (Err(session.running.failure(status).await), true)
            }
        };
        if sender.send(message).await.is_err() {
            return if last {
                Followed::Ended
            } else {
                Followed::ClientGone(Box::new(events))
            };
        }
        if last {
            return Followed::Ended;
        }
    }
}

fn event(event: Event) -> v1::SessionEvent {
    v1::SessionEvent { event: Some(event) }
}

fn stream_token(kind: StreamKind, token: hostel_model::Token) -> v1::StreamToken {
    v1::StreamToken {
        kind: kind.into(),
        token: token.as_bytes().to_vec().into(),
    }
}

/// Returns the streams that a command needs: one for its terminal, one for each pipe.
fn kinds(command: &v1::CommandSpec) -> Vec<StreamKind> {
    let ends = [
        (command.stdin(), StreamKind::Stdin),
        (command.stdout(), StreamKind::Stdout),
        (command.stderr(), StreamKind::Stderr),
    ];
    let tty = ends
        .iter()
        .any(|(end, _)| *end == v1::Stdio::Tty)
        .then_some(StreamKind::Tty);
    tty.into_iter()
        .chain(
            ends.iter()
                .filter(|(end, _)| *end == v1::Stdio::Pipe)
                .map(|(_, kind)| *kind),
        )
        .collect()
}

/// Refuses a command that is larger than the guest takes.
fn check(command: &v1::CommandSpec) -> Result<(), Failure> {
    let env: usize = command
        .env
        .iter()
        .map(|e| e.name.len() + e.value.len() + 2)
        .sum();
    let bytes =
        command.argv.iter().map(|a| a.len() + 1).sum::<usize>() + env + command.directory.len();
    if command.argv.len() > MAX_ARGS || command.env.len() > MAX_ARGS || bytes > MAX_ARG_BYTES {
        return Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("the command is too long: at most {MAX_ARGS} arguments and {MAX_ARG_BYTES} bytes with its environment"),
        )
        .hint("pass long data through standard input"));
    }
    Ok(())
}

/// Returns a command as one short line for people.
fn shown(command: &v1::CommandSpec) -> String {
    let words: Vec<_> = command
        .argv
        .iter()
        .map(|a| String::from_utf8_lossy(a))
        .collect();
    let line = if words.is_empty() {
        "(shell)".to_owned()
    } else {
        words.join(" ")
    };
    line.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(SHOWN)
        .collect()
}
