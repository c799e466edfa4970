//! The daemon from its lock to its end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use hostel_engine::{Engine, backend::VmBackend, layout::Layout};
use hostel_model::Paths;
use hostel_proto::{limits::MAX_MESSAGE, v1::hostel_server::HostelServer};
use hostel_sys::lock::{LockError, LockFile};
use tokio::{
    net::UnixStream,
    signal::unix::{SignalKind, signal},
};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::{
    listen::{self, Clients},
    service::Service,
    settings::{Ready, Settings},
};

/// How often the daemon looks whether it is still needed.
const LOOK: Duration = Duration::from_secs(1);

/// How long a daemon that ends may take to let go of its lock: as long as a VM may take to power off, and more.
const LOCK_WAIT: Duration = Duration::from_secs(45);

/// How long clients may take to read their last answers when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// Runs the daemon until it is asked to end or nothing needs it.
pub(crate) async fn run(settings: Settings, ready: &mut Ready) -> anyhow::Result<()> {
    let paths = settings.paths.clone();
    listen::make_runtime_dir(&paths.runtime)?;
    let _lock = take_lock(&paths).await?;
    raise_open_files();
    let layout = Layout::new(&paths.home);
    let (registry, opened, home_lock) =
        tokio::task::spawn_blocking(move || hostel_engine::open_home(layout))
            .await?
            .map_err(|f| anyhow!(with_hints(&f)))?;
    for warning in &opened.warnings {
        tracing::warn!("{warning}");
    }
    for path in &opened.removed {
        tracing::info!(path, "removed a leftover");
    }
    let backend = Arc::new(VmBackend::new(
        Arc::clone(&registry),
        paths.clone(),
        settings.init.clone(),
        settings.hostel_net.clone(),
        settings.search_path.clone(),
        settings.overrides.clone(),
    ));
    let engine = Engine::new(
        registry,
        home_lock,
        Arc::clone(&backend) as _,
        backend.timeouts(),
    );

    let api = listen::bind(&paths.api_socket())?;
    let streams = listen::bind(&paths.stream_socket())?;
    let closing = CancellationToken::new();
    let clients = Clients::default();
    let service = Service::new(
        Arc::clone(&engine),
        backend,
        paths.clone(),
        closing.clone(),
        opened.warnings,
    );
    let server = HostelServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot watch for signals")?;
    let mut terminated = signal(SignalKind::terminate()).context("cannot watch for signals")?;
    tracing::info!(pid = std::process::id(), home = %paths.home.display(), "ready");
    ready.say("ready");

    let counted = clients.clone();
    let incoming = futures_util::stream::unfold(api, move |listener| {
        let counted = counted.clone();
        async move {
            Some((
                listen::accept(&listener).await.map(|s| counted.counted(s)),
                listener,
            ))
        }
    });
    let stop = closing.clone();
    let serving = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(server)
            .serve_with_incoming_shutdown(Box::pin(incoming), stop.cancelled_owned()),
    );
    let taking = tokio::spawn(listen::take_streams(streams, Arc::clone(&engine)));
    tokio::select! {
        _ = interrupted.recv() => tracing::info!("interrupted"),
        _ = terminated.recv() => tracing::info!("asked to end"),
        () = closing.cancelled() => tracing::info!("asked to end by a client"),
        () = not_needed(&engine, &clients, settings.leave_after) => tracing::info!("nothing runs, leaving"),
    }
    // Whoever connects from now on finds no socket and starts the next daemon, which waits for this one's lock.
    for socket in [paths.api_socket(), paths.stream_socket()] {
        let _ = fs_err::remove_file(socket);
    }
    closing.cancel();
    engine.close(false).await;
    if tokio::time::timeout(FAREWELL, serving).await.is_err() {
        tracing::warn!("clients were still connected");
    }
    taking.abort();
    Ok(())
}

/// Takes the lock of the one living daemon. One that is about to end is waited for; one that answers is not.
async fn take_lock(paths: &Paths) -> anyhow::Result<LockFile> {
    let path = paths.daemon_lock();
    let refused = |e: LockError| match e {
        LockError::Held {
            holder: Some(pid), ..
        }
        | LockError::StillHeld {
            holder: Some(pid), ..
        } => {
            anyhow!("a daemon is running already: process {pid}")
        }
        other => other.into(),
    };
    match LockFile::try_acquire(&path) {
        Err(error @ LockError::Held { .. })
            if UnixStream::connect(paths.api_socket()).await.is_ok() =>
        {
            Err(refused(error))
        }
        Err(LockError::Held { .. }) => {
            tokio::task::spawn_blocking(move || LockFile::acquire_within(&path, LOCK_WAIT))
                .await?
                .map_err(refused)
        }
        other => other.map_err(refused),
    }
}

/// Returns when nothing has run and nobody has been connected for a time.
async fn not_needed(engine: &Engine, clients: &Clients, time: Option<Duration>) {
    let Some(time) = time else {
        return std::future::pending().await;
    };
    let mut ticks =
        tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(LOOK.min(time)));
    let mut since = Instant::now();
    while ticks.next().await.is_some() {
        if !engine.is_idle() || clients.count() > 0 {
            since = Instant::now();
        } else if since.elapsed() >= time {
            return;
        }
    }
}

/// Raises the limit of open files: each session takes several.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

fn with_hints(failure: &hostel_model::Failure) -> String {
    let mut text = failure.message.clone();
    for hint in &failure.hints {
        text.push_str("; ");
        text.push_str(hint);
    }
    text
}
