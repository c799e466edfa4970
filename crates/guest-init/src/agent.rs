//! The agent: serves the daemon's calls over a connection that it dialled itself, and holds all sessions.
//!
//! One thread; what blocks runs beside it. The agent outlives its connection: the daemon may go away and come back, also
//! over a save and restore of the machine.

mod clock;
mod configure;
mod connect;
mod connection;
mod dial;
mod disks;
mod distros;
mod dns;
mod job;
mod lifecycle;
mod memory;
mod modules_disk;
mod netns;
mod network;
mod ports;
mod pump;
mod ready;
mod resolver;
mod rooms;
mod service;
mod sessions;
mod uevents;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::console::{Level, say, say_error};
use crate::machine::POWER_OFF_STATUS;
use dial::{Dialer, Ports};
use service::{Service, State};
use uevents::Uevents;

/// First and longest time between two dials. Events of devices shorten it.
const DIAL_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// The most threads for work that blocks: starts and stops of distributions, and of commands.
const BLOCKING_THREADS: usize = 32;

/// Their stack, in bytes.
const STACK: usize = 512 << 10;

/// Runs the agent; returns when the machine is to be switched off, with [`POWER_OFF_STATUS`].
///
/// With `--connect PATH` the host is reached by unix sockets `PATH_<port>` instead of vsock.
pub(crate) fn role(arguments: &[OsString]) -> ExitCode {
    let dialer = match arguments {
        [] => Dialer::Vsock(Ports::of_command_line(
            &fs_err::read_to_string("/proc/cmdline").unwrap_or_default(),
        )),
        [option, path] if option == "--connect" => Dialer::Unix(PathBuf::from(path)),
        _ => {
            say(Level::Error, "agent: the only option is --connect PATH");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK)
        .build();
    match runtime {
        Ok(runtime) => {
            runtime.block_on(run(dialer));
            ExitCode::from(POWER_OFF_STATUS)
        }
        Err(error) => {
            say_error("starting the agent", &error);
            ExitCode::FAILURE
        }
    }
}

async fn run(dialer: Dialer) {
    let state = State::new(dialer.clone());
    let tasks = TaskTracker::new();
    if matches!(dialer, Dialer::Vsock(_)) {
        allow_descriptors();
        if let Err(error) = network::loopback_up() {
            say_error("network", &error);
        }
        tasks.spawn(lifecycle::serve());
    }
    let events = Uevents::subscribe()
        .map_err(|e| say_error("listening for devices", &e))
        .ok();
    loop {
        tokio::select! {
            () = state.power_off.cancelled() => return,
            () = serve_once(&dialer, events.as_ref(), &state) => {}
        }
    }
}

/// Lets the agent have as many descriptors as the kernel allows: each connection into the guest holds two. Distributions
/// have limits of their own.
fn allow_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        say_error("raising the limit of open files", &error);
    }
}

/// Dials until the host answers, then serves that connection to its end.
async fn serve_once(dialer: &Dialer, events: Option<&Uevents>, state: &Arc<State>) {
    let mut pause = DIAL_AGAIN.0;
    let stream = loop {
        if let Ok(stream) = dialer.control().await {
            break stream;
        }
        let until = Instant::now() + pause;
        match events {
            Some(events) => events.changed(until).await,
            None => tokio::time::sleep_until(until).await,
        }
        pause = (pause * 2).min(DIAL_AGAIN.1);
    };
    if let Err(error) =
        connection::serve(stream, Service(state.clone()), state.power_off.clone()).await
    {
        say_error("serving the host", &error);
    }
}
