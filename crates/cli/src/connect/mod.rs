//! The way to the daemon: find it, start it when it does not run, greet it.

mod runtime;
mod start;

use std::{future::Future, io, path::Path, sync::Mutex, time::Duration};

use hostel_model::{ErrorCode, Failure, GENERATION, OLDEST_GENERATION, Paths};
use hostel_proto::{limits, v1};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

pub(crate) use runtime::check as check_runtime;
pub(crate) use start::{SPAWN_WORD, find_daemon, spawn_role};

use crate::trouble::{Trouble, plain};

type Client = v1::hostel_client::HostelClient<Channel>;

/// How long the daemon may take to greet.
const GREET_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer that needs no work may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A daemon that stays silent for this long, also when asked whether it lives, is taken for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// How often a daemon that leaves in the very moment is replaced by the next one.
const ATTEMPTS: u32 = 3;

/// A daemon that has been greeted.
pub(crate) struct Daemon {
    /// The API.
    pub(crate) api: Client,
    /// What it said of itself.
    pub(crate) greeting: v1::GreetReply,
}

/// Whether to start a daemon when none runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Start one.
    IfNeeded,
    /// Be content without.
    Never,
}

/// Whether a daemon of another age is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// It must speak a generation that this client understands.
    Compatible,
    /// Any; for what ends it.
    Any,
}

/// Connects to the daemon and starts it first when it does not run.
pub(crate) async fn connect(paths: &Paths) -> Result<Daemon, Trouble> {
    let daemon = find(paths, Start::IfNeeded, Age::Compatible).await?;
    Ok(daemon.expect("a daemon was started, or the error said why not"))
}

/// Connects to the daemon; `None` when none runs and none shall be started.
pub(crate) async fn find(paths: &Paths, start: Start, age: Age) -> Result<Option<Daemon>, Trouble> {
    if start == Start::Never && !paths.runtime.exists() {
        return Ok(None);
    }
    runtime::check(&paths.runtime)?;
    let mut attempt = 1;
    loop {
        let stream = match dial(&paths.api_socket()).await {
            Ok(stream) => stream,
            Err(e) if !nobody_listens(&e) => {
                return Err(Trouble::file(
                    format!(
                        "cannot connect to the daemon at `{}`",
                        paths.api_socket().display()
                    ),
                    &e,
                ));
            }
            Err(_) if start == Start::Never => return Ok(None),
            Err(_) => start::start(paths).await?,
        };
        match greet(stream, age).await {
            Ok(daemon) => return Ok(Some(daemon)),
            // It was about to leave when we came: the next one will have time.
            Err(Trouble::Failure(f)) if f.code == ErrorCode::Daemon && attempt < ATTEMPTS => {
                attempt += 1;
            }
            Err(trouble) => return Err(trouble),
        }
    }
}

/// Connects to the socket.
async fn dial(socket: &Path) -> io::Result<UnixStream> {
    // The kernel waits without end when the daemon's queue is full, that is when it hangs.
    tokio::time::timeout(GREET_TIMEOUT, UnixStream::connect(socket))
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "it does not take connections",
            ))
        })
}

/// A stale socket refuses, a missing one is not found.
fn nobody_listens(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

async fn greet(stream: UnixStream, age: Age) -> Result<Daemon, Trouble> {
    // One connection and no second: a daemon that died is an error, not another daemon.
    let stream = Mutex::new(Some(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.lock().ok().and_then(|mut s| s.take());
        async move {
            stream
                .map(TokioIo::new)
                .ok_or_else(|| io::Error::other("the daemon has ended"))
        }
    });
    let channel = Endpoint::from_static("http://hostel.invalid")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .connect_with_connector(connector)
        .await
        .map_err(|e| {
            Failure::from_error(ErrorCode::Daemon, &e).hint("run `hostel logs daemon` to see why")
        })?;
    let mut api = Client::new(channel).max_decoding_message_size(limits::MAX_MESSAGE);
    let request = v1::GreetRequest {
        generation: GENERATION,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let greeting = within(GREET_TIMEOUT, "its greeting", api.greet(request)).await;
    let greeting = match greeting {
        Ok(greeting) => greeting,
        Err(Trouble::Failure(f)) if f.code == ErrorCode::Incompatible && age == Age::Any => {
            v1::GreetReply::default()
        }
        Err(Trouble::Failure(mut f)) => {
            if f.code == ErrorCode::Incompatible && f.hints.is_empty() {
                f.hints.push(RESTART.into());
            }
            return Err(f.into());
        }
        Err(trouble) => return Err(trouble),
    };
    if age == Age::Compatible {
        judge(&greeting)?;
    }
    Ok(Daemon { api, greeting })
}

const RESTART: &str = "run `hostel shutdown --daemon`, then try again";

/// Decides whether a daemon's generation is understood; it has accepted ours already.
fn judge(greeting: &v1::GreetReply) -> Result<(), Failure> {
    if greeting.generation >= OLDEST_GENERATION {
        return Ok(());
    }
    let version = crate::text::printable(&greeting.version).into_owned();
    Err(Failure::new(
        ErrorCode::Incompatible,
        format!(
            "the daemon (version {version}, generation {}) is older than this client understands (version {}, generation {OLDEST_GENERATION} and later)",
            greeting.generation,
            env!("CARGO_PKG_VERSION")
        ),
    )
    .hint(RESTART))
}

impl Daemon {
    /// Waits for an answer that needs no work.
    pub(crate) async fn answer<T>(
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Trouble> {
        within(CALL_TIMEOUT, "its answer", call).await
    }
}

async fn within<T>(
    limit: Duration,
    awaited: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Trouble> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Failure::new(
            ErrorCode::Daemon,
            format!(
                "the daemon did not give {awaited} within {} s",
                limit.as_secs()
            ),
        )
        .hint("run `hostel logs daemon` to see what it does")
        .into()),
    }
}

/// Connects to the socket for raw streams; blocks only as long as the daemon's queue is full.
pub(crate) fn dial_stream(paths: &Paths) -> Result<std::os::unix::net::UnixStream, Trouble> {
    std::os::unix::net::UnixStream::connect(paths.stream_socket()).map_err(|e| {
        let path = paths.stream_socket();
        Failure::new(
            ErrorCode::Daemon,
            format!("cannot connect to `{}`: {}", path.display(), plain(&e)),
        )
        .hint("run `hostel logs daemon` to see whether the daemon lives")
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_daemon_is_told_apart_and_a_newer_one_is_trusted() {
        let greeting = |generation| v1::GreetReply {
            generation,
            version: "0.0.9".into(),
            ..Default::default()
        };
        assert!(judge(&greeting(GENERATION)).is_ok());
        assert!(judge(&greeting(GENERATION + 7)).is_ok());
        let failure = judge(&greeting(OLDEST_GENERATION - 1)).unwrap_err();
        assert_eq!(failure.code, ErrorCode::Incompatible);
        assert!(failure.message.contains("is older"), "{failure}");
        assert_eq!(failure.hints, [RESTART]);
    }
}
