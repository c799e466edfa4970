//! The user's terminal: raw while a session has it, as before in every way out.

use std::sync::{Mutex, PoisonError};

use hostel_proto::v1::WindowSize;
use rustix::{
    process::{Signal, getpgrp, getpid, kill_process},
    stdio::{stderr, stdin, stdout},
    termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr},
};

use crate::trouble::Trouble;

/// The settings to go back to, while the terminal is or shall be raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps standard input's terminal raw; dropping it restores the settings.
pub(super) struct RawMode(());

impl RawMode {
    /// Makes standard input's terminal raw.
    pub(super) fn enter() -> Result<Self, Trouble> {
        let trouble = |e: rustix::io::Errno| Trouble::file("cannot set up the terminal", &e.into());
        let settings = tcgetattr(stdin()).map_err(trouble)?;
        *saved() = Some(settings.clone());
        let guard = Self(());
        make_raw(&settings).map_err(trouble)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
        *saved() = None;
    }
}

fn saved() -> std::sync::MutexGuard<'static, Option<Termios>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn make_raw(settings: &Termios) -> rustix::io::Result<()> {
    let mut raw = settings.clone();
    raw.make_raw();
    // At once, and without throwing away what has been typed ahead.
    tcsetattr(stdin(), OptionalActions::Now, &raw)
}

/// Restores the settings; may be called at any time, also when nothing is raw.
fn restore() {
    if let Some(settings) = &*saved() {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, settings);
    }
}

/// Stops this process as SIGTSTP would have, with the terminal as before; returns when it is continued.
pub(super) fn suspend() {
    restore();
    // Stopping ourselves cannot be refused.
    let _ = kill_process(getpid(), Signal::STOP);
    resume();
}

/// Makes the terminal raw again after a stop; the shell has restored its own settings meanwhile.
pub(super) fn resume() {
    // Setting up a terminal from the background would stop us again.
    if tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
        && let Some(settings) = &*saved()
    {
        let _ = make_raw(settings);
    }
}

/// Returns the size of the window, taken from the first standard stream that is a terminal.
pub(super) fn window() -> Option<WindowSize> {
    let size = [stdout(), stdin(), stderr()]
        .into_iter()
        .filter(|fd| isatty(fd))
        .find_map(|fd| tcgetwinsize(fd).ok())?;
    Some(WindowSize {
        rows: size.ws_row.into(),
        columns: size.ws_col.into(),
        x_pixels: size.ws_xpixel.into(),
        y_pixels: size.ws_ypixel.into(),
    })
}

/// Makes a panic of any thread restore the terminal before it is told.
pub(crate) fn install_panic_hook() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if let Ok(settings) = SAVED.try_lock()
            && let Some(settings) = &*settings
        {
            let _ = tcsetattr(stdin(), OptionalActions::Now, settings);
        }
        tell(info);
    }));
}
