//! Waiting for QEMU's end, and telling why.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use hostel_sys::spawn::{Child, Exit};
use tokio::sync::watch;

use crate::log::Drain;

/// How long the logs may take to be read to their end after QEMU's.
const LOG_TIMEOUT: Duration = Duration::from_secs(2);

/// How and why QEMU ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitReason {
    /// Its exit code or signal; `None` when it could not be learned.
    pub status: Option<Exit>,
    /// It was asked to.
    pub asked: bool,
    /// The last lines QEMU wrote to standard error.
    pub stderr_tail: String,
    /// The last lines of the guest's console.
    pub console_tail: String,
}

impl ExitReason {
    pub(super) fn unknown() -> Self {
        Self {
            status: None,
            asked: false,
            stderr_tail: String::new(),
            console_tail: String::new(),
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "QEMU ended with {status}")?,
            None => f.write_str("QEMU ended")?,
        }
        for (name, text) in [
            ("QEMU said", &self.stderr_tail),
            ("the console said", &self.console_tail),
        ] {
            if !text.is_empty() {
                write!(f, "\n{name}:\n{text}")?;
            }
        }
        Ok(())
    }
}

/// Waits, on a thread of its own, for the end of QEMU and of its logs, and publishes the reason.
pub(super) fn watch_exit(
    child: &Child,
    asked: &AtomicBool,
    stderr: &Drain,
    console: &Drain,
    publish: &watch::Sender<Option<ExitReason>>,
) {
    let status = child.wait().ok();
    // Both streams end with QEMU; what it wrote last is the most interesting.
    stderr.finished_within(LOG_TIMEOUT);
    console.finished_within(LOG_TIMEOUT);
    let reason = ExitReason {
        status,
        asked: asked.load(Ordering::Acquire),
        stderr_tail: stderr.last_lines(20),
        console_tail: console.last_lines(40),
    };
    publish.send_replace(Some(reason));
}
