//! The table of sessions: who runs, which connections feed it, how it ended.
//!
//! A session belongs to the agent, not to a connection: a client that is lost leaves it running, with its output held up,
//! until another attaches or the daemon hangs it up. Once its end was told it leaves the table; what still runs of it in the
//! background goes on, with its output dropped when nobody takes it.

mod live;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hostel_instance::{ExecJob, SessionHandle, SessionRequest};
use hostel_model::{ErrorCode, Failure};
use hostel_proto::limits::MAX_SESSIONS;
use hostel_proto::v1;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::dial::{BoxStream, Dialer};
use super::job::{Claim, claims, has_stream};
use live::Live;

/// How many events may wait for a slow daemon; a session has five at most.
const EVENTS: usize = 8;

/// The receiving end of a session's events.
pub(crate) type Events = mpsc::Receiver<Result<v1::SessionEvent, Status>>;

/// All sessions of the machine.
pub(crate) struct Sessions {
    dialer: Dialer,
    table: Mutex<HashMap<String, Arc<Live>>>,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Sessions {
    /// Makes an empty table.
    pub(crate) fn new(dialer: Dialer) -> Arc<Self> {
        Arc::new(Self {
            dialer,
            table: Mutex::default(),
            permits: Arc::new(Semaphore::new(MAX_SESSIONS)),
            tasks: TaskTracker::new(),
        })
    }

    /// Starts a session and gives its streams connections. `spawn` blocks; it runs on a thread of its own.
    ///
    /// When the future is dropped the session is hung up, whatever it had come to.
    pub(crate) async fn open(
        self: &Arc<Self>,
        id: String,
        distro: String,
        job: ExecJob,
        streams: &[v1::StreamToken],
        spawn: impl FnOnce(&ExecJob) -> Result<SessionHandle, Failure> + Send + 'static,
    ) -> Result<Events, Failure> {
        let claims = claims(streams, |kind| has_stream(&job, kind))?;
        if id.is_empty() || id.len() > 64 {
            return Err(Failure::new(
                ErrorCode::Protocol,
                "the id of a session has 1 to 64 characters",
            ));
        }
        let full = || {
            Failure::new(
                ErrorCode::Busy,
                format!("{MAX_SESSIONS} sessions run already"),
            )
        };
        let permit = self
            .permits
            .clone()
            .try_acquire_owned()
            .map_err(|_| full())?;
        if self.table().contains_key(&id) {
            return Err(Failure::new(
                ErrorCode::Protocol,
                format!("session {id} exists already"),
            ));
        }
        let terminal = has_stream(&job, v1::StreamKind::Tty);
        let started = tokio::task::spawn_blocking(move || spawn(&job));
        let (started, connections) = tokio::join!(started, self.connect(&claims));
        let handle = started.map_err(|e| Failure::from_error(ErrorCode::Internal, &e))??;
        let connections = connections?;
        let warnings = handle.warnings.clone();
        let live = Live::new(distro, handle, terminal, permit, &self.tasks)
            .map_err(|e| Failure::from_error(ErrorCode::Internal, &e))?;
        {
            let mut table = self.table();
            if table.len() >= MAX_SESSIONS {
                // An end that nobody asked for is the first to be forgotten.
                table.retain(|_, live| !live.has_ended());
            }
            if table.len() >= MAX_SESSIONS {
                live.hangup();
                return Err(full());
            }
            table.insert(id.clone(), live.clone());
        }
        live.connect(connections).await;
        Ok(self.report(id, live, warnings))
    }

    /// Gives a session's streams new connections.
    pub(crate) async fn attach(
        self: &Arc<Self>,
        id: &str,
        streams: &[v1::StreamToken],
    ) -> Result<Events, Failure> {
        let live = self.find(id)?;
        let claims = claims(streams, |kind| live.has_stream(kind))?;
        let connections = self.connect(&claims).await?;
        live.connect(connections).await;
        Ok(self.report(id.to_owned(), live, Vec::new()))
    }

    /// Passes a request on to a session.
    pub(crate) fn request(&self, id: &str, request: SessionRequest) -> Result<(), Failure> {
        self.find(id)?
            .request(request)
            .map_err(|e| Failure::from_error(ErrorCode::DistroStopped, &e))
    }

    /// Hangs a session up and forgets it. One that is gone is a success.
    pub(crate) fn hangup(&self, id: &str) {
        let live = self.table().remove(id);
        if let Some(live) = live {
            live.hangup();
        }
    }

    /// Hangs up every session of a distribution that is being stopped or is gone. Their ends are still told.
    pub(crate) fn hangup_distro(&self, distro: &str) {
        let of_distro: Vec<_> = self
            .table()
            .values()
            .filter(|l| l.distro() == distro)
            .cloned()
            .collect();
        for live in of_distro {
            live.hangup();
        }
    }

    fn find(&self, id: &str) -> Result<Arc<Live>, Failure> {
        let found = self.table().get(id).cloned();
        found.ok_or_else(|| {
            Failure::new(
                ErrorCode::InvalidArgument,
                format!("there is no session {}", shown(id)),
            )
        })
    }

    async fn connect(&self, claims: &[Claim]) -> Result<Vec<(v1::StreamKind, BoxStream)>, Failure> {
        let dials = claims.iter().map(async |claim| {
            let stream = self.dialer.claim(&claim.token).await.map_err(|e| {
                Failure::new(
                    ErrorCode::Internal,
                    format!(
                        "cannot connect {} to the host: {e}",
                        claim.kind.as_str_name()
                    ),
                )
            })?;
            Ok((claim.kind, stream))
        });
        futures_util::future::try_join_all(dials).await
    }

    /// Tells a session's events; when its end was told the session is forgotten.
    fn report(self: &Arc<Self>, id: String, live: Arc<Live>, warnings: Vec<String>) -> Events {
        use v1::session_event::Event;
        let (events, receiver) = mpsc::channel(EVENTS);
        let sessions = self.clone();
        self.tasks.spawn(async move {
            let tell = async |event| {
                events
                    .send(Ok(v1::SessionEvent { event: Some(event) }))
                    .await
                    .is_ok()
            };
            let opened = v1::SessionOpened {
                session: id.clone(),
                streams: Vec::new(),
            };
            let mut told = tell(Event::Opened(opened)).await;
            for warning in warnings.into_iter().take(EVENTS) {
                told = told && tell(Event::Warning(warning)).await;
            }
            if !told || !tell(Event::Started(v1::SessionStarted { pid: live.pid() })).await {
                return;
            }
            let exited = tokio::select! {
                exited = live.ended() => exited,
                () = events.closed() => return,
            };
            if tell(Event::Exited(exited)).await {
                let mut table = sessions.table();
                if table.get(&id).is_some_and(|l| Arc::ptr_eq(l, &live)) {
                    table.remove(&id);
                }
                drop(table);
                live.forget();
            }
        });
        receiver
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Arc<Live>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shown(id: &str) -> String {
    id.chars()
        .take(64)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
