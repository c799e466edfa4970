//! One session as its client sees it: open it, connect the streams, stay until it ends.

mod environment;
mod pump;
mod signals;
mod spec;
mod streams;
mod terminal;

use std::time::Duration;

use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1::{self, session_event::Event};
use tonic::Streaming;

pub(crate) use spec::{command_spec, join_words};
pub(crate) use terminal::install_panic_hook;

use crate::{
    connect::Daemon,
    progress::Waiting,
    surroundings::Context,
    trouble::{Trouble, signal_code},
};
use signals::{Signals, Wish};
use streams::Streams;
use terminal::RawMode;

/// How long a change of the window or a signal may take to get through.
const NUDGE_TIMEOUT: Duration = Duration::from_secs(5);

/// What to open.
pub(crate) enum Open {
    /// A new session.
    Exec(v1::ExecRequest),
    /// One whose client is gone.
    Attach(v1::AttachRequest),
}

/// Runs a session to its end and returns the exit status that stands for it.
///
/// The terminal is as before when this returns, however it returns. Dropping it hangs the session up.
pub(crate) async fn run(context: &Context, daemon: &mut Daemon, open: Open) -> Result<u8, Trouble> {
    let waiting = Waiting::new(&context.printer, "starting");
    let events = match open {
        Open::Exec(request) => daemon.api.exec(request).await,
        Open::Attach(request) => daemon.api.attach(request).await,
    };
    let mut events = events?.into_inner();
    let opened = loop {
        match next(&mut events).await? {
            Event::Opened(opened) => break opened,
            Event::Warning(text) => waiting.suspend(|| context.printer.warn(&text)),
            Event::Started(_) | Event::Exited(_) => {
                return Err(unexpected("an event before `opened`"));
            }
        }
    };
    drop(waiting);

    let mut streams = Streams::claim(&context.paths, &opened.streams)?;
    let raw = if streams.wants_raw() {
        Some(RawMode::enter()?)
    } else {
        None
    };
    let mut signals =
        Signals::new(raw.is_some()).map_err(|e| Trouble::file("cannot watch signals", &e))?;
    streams.start();

    let exited = loop {
        tokio::select! {
            event = next(&mut events) => match event? {
                Event::Exited(exited) => break exited,
                Event::Started(_) => {}
                Event::Warning(text) if raw.is_some() => context.printer.warn_raw(&text),
                Event::Warning(text) => context.printer.warn(&text),
                Event::Opened(_) => return Err(unexpected("a second `opened`")),
            },
            wish = signals.next() => match wish {
                Wish::Resize => resize(daemon, &opened.session).await,
                Wish::Forward(signal) => forward(daemon, &opened.session, signal).await,
                Wish::Leave(signal) => return Err(Trouble::Signal(signal)),
                Wish::Suspend => {
                    terminal::suspend();
                    resize(daemon, &opened.session).await;
                }
                Wish::Resume => {
                    terminal::resume();
                    resize(daemon, &opened.session).await;
                }
            },
        }
    };

    let drained = tokio::select! {
        drained = streams.drain(&exited.totals) => drained,
        signal = signals.leave() => return Err(Trouble::Signal(signal)),
    };
    drop(raw);
    drained?;
    Ok(if exited.signal == 0 {
        exited.code as u8
    } else {
        signal_code(exited.signal)
    })
}

/// Returns the next event that this client understands.
async fn next(events: &mut Streaming<v1::SessionEvent>) -> Result<Event, Trouble> {
    loop {
        match events.message().await? {
            Some(v1::SessionEvent { event: Some(event) }) => return Ok(event),
            // A newer daemon tells something that this client does not know.
            Some(v1::SessionEvent { event: None }) => {}
            None => {
                return Err(
                    Failure::new(ErrorCode::Daemon, "the session ended without a word")
                        .hint("run `hostel logs daemon` to see why")
                        .into(),
                );
            }
        }
    }
}

fn unexpected(what: &str) -> Trouble {
    Failure::new(ErrorCode::Protocol, format!("the daemon sent {what}")).into()
}

/// Tells the session how large the window is now. One that fails is made good by the next.
async fn resize(daemon: &mut Daemon, session: &str) {
    if let Some(window) = terminal::window() {
        let request = v1::ResizeRequest {
            session: session.to_owned(),
            window: Some(window),
        };
        let _ = tokio::time::timeout(NUDGE_TIMEOUT, daemon.api.resize(request)).await;
    }
}

/// Sends a signal on. One that comes too late finds no command, which is what was wanted.
async fn forward(daemon: &mut Daemon, session: &str, signal: i32) {
    let request = v1::SignalRequest {
        session: session.to_owned(),
        signal: signal as u32,
    };
    let _ = tokio::time::timeout(NUDGE_TIMEOUT, daemon.api.signal(request)).await;
}
