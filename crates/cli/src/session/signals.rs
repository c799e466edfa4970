//! What signals mean while a session runs.
//!
//! With a raw terminal, Ctrl-C and its like are bytes, and a signal that comes is meant for this client. Without one,
//! the signal is meant for the command, and goes there.

use std::io;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// The window has another size.
    Resize,
    /// The command shall get this signal.
    Forward(i32),
    /// Leave, because of this signal.
    Leave(i32),
    /// Stop until continued.
    Suspend,
    /// Go on after a stop.
    Resume,
}

/// The signals that are watched.
pub(super) struct Signals {
    raw: bool,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    window: Signal,
    /// Only with a raw terminal; else the kernel's own way with them is right.
    job: Option<(Signal, Signal)>,
}

impl Signals {
    /// Begins to watch; from now on none of them ends the process by itself.
    pub(super) fn new(raw: bool) -> io::Result<Self> {
        let watch = |number: Number| signal(SignalKind::from_raw(number.as_raw()));
        Ok(Self {
            raw,
            interrupt: watch(Number::INT)?,
            terminate: watch(Number::TERM)?,
            hangup: watch(Number::HUP)?,
            quit: watch(Number::QUIT)?,
            window: watch(Number::WINCH)?,
            job: if raw {
                Some((watch(Number::TSTP)?, watch(Number::CONT)?))
            } else {
                None
            },
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub(super) async fn next(&mut self) -> Wish {
        let raw = self.raw;
        let meant = |number: Number| {
            if raw {
                Wish::Leave(number.as_raw())
            } else {
                Wish::Forward(number.as_raw())
            }
        };
        let job = async {
            match &mut self.job {
                Some((stop, go_on)) => tokio::select! {
                    _ = stop.recv() => Wish::Suspend,
                    _ = go_on.recv() => Wish::Resume,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => meant(Number::INT),
            _ = self.terminate.recv() => meant(Number::TERM),
            _ = self.hangup.recv() => meant(Number::HUP),
            _ = self.quit.recv() => meant(Number::QUIT),
            _ = self.window.recv() => Wish::Resize,
            wish = job => wish,
        }
    }

    /// Waits for a signal that ends the client, when there is no command any more that could get it.
    pub(super) async fn leave(&mut self) -> i32 {
        loop {
            if let Wish::Forward(number) | Wish::Leave(number) = self.next().await {
                return number;
            }
        }
    }
}
