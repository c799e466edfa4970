//! The session process: opens the terminal, starts the command, answers its caller, and reaps until nobody is left.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use hostel_sys::process::{End, Reaped, SingleThreaded};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::Mode;
use rustix::process::{Gid, Pid, Uid};
use rustix::termios::Winsize;

use super::command::{Command, Streams};
use super::job::{CommandEnd, ExecJob, MAX_JOB_BYTES, SessionReport, SessionRequest, WindowSize};
use super::users::{Database, read_file};
use super::{ExecFailure, SessionContext, SessionReply, command, environment};
use crate::wire;

/// Group of every terminal (TTY-2): `tty` has this number in every distribution we know of, and devpts is mounted with it.
const TTY_GROUP: u32 = 5;
/// The largest locale file that is read, in bytes.
const MAX_LOCALE: usize = 64 * 1024;

/// Runs a session in the calling process, which was forked for it, and ends with it.
///
/// `socket` leads to the caller, `job` is its memory file, `devpts` the directory of the devpts to take the terminal from.
pub(crate) fn supervise(
    socket: OwnedFd,
    job: OwnedFd,
    context: &SessionContext,
    devpts: OwnedFd,
    proof: &SingleThreaded,
) -> ! {
    // A session outlives what is meant for its command; only the end of PID 1 ends it early.
    hostel_sys::signal::reset_all();
    hostel_sys::signal::ignore(hostel_sys::signal::IGNORED_BY_INIT);
    match open(job, context, devpts, proof) {
        Ok(session) => {
            let reply = SessionReply::Started {
                pid: session.pid(),
                warnings: session.warnings.clone(),
            };
            let fds: Vec<_> = session
                .master
                .iter()
                .chain(&session.streams.caller)
                .map(AsFd::as_fd)
                .collect();
            // A caller that is gone shows as the end of the socket in `serve`.
            let _ = wire::send(&socket, &reply, &fds);
            drop(fds);
            session.serve(socket);
            hostel_sys::process::exit_now(0)
        }
        Err(failure) => {
            // The same: nobody left to tell.
            let _ = wire::send(&socket, &SessionReply::Failed(failure), &[]);
            hostel_sys::process::exit_now(1)
        }
    }
}

struct Session {
    events: OwnedFd,
    /// Dropped when the caller hangs up.
    master: Option<OwnedFd>,
    /// Held until the command has ended: while nobody has the terminal open, its master reads as if it had ended, and a
    /// command without it among its streams may still open `/dev/tty` any time.
    slave: Option<OwnedFd>,
    streams: Streams,
    command: Pid,
    warnings: Vec<String>,
}

fn open(
    job: OwnedFd,
    context: &SessionContext,
    devpts: OwnedFd,
    proof: &SingleThreaded,
) -> Result<Session, ExecFailure> {
    let setup = |step: &str| {
        let step = step.to_owned();
        move |error: io::Error| ExecFailure::Setup {
            step,
            errno: error.raw_os_error().unwrap_or(0),
        }
    };
    let job: ExecJob =
        wire::read_job(job, MAX_JOB_BYTES).map_err(|e| ExecFailure::InvalidJob(e.to_string()))?;
    let user = Database::read()
        .find(job.user.as_deref(), &context.default_users)
        .ok_or_else(|| ExecFailure::UnknownUser(job.user.clone().unwrap_or_default()))?;
    let lang = ["/etc/default/locale", "/etc/locale.conf"]
        .iter()
        .find_map(|path| read_file(path.as_ref(), MAX_LOCALE).ok())
        .and_then(|text| environment::lang_of(&text));
    let env = environment::build(context, &job.env, &user, lang).map_err(|bad| {
        ExecFailure::InvalidJob(format!("`{}` cannot be an environment variable", bad.0))
    })?;

    let events = hostel_sys::signal::child_events().map_err(setup("signalfd"))?;
    rustix::process::setsid().map_err(|e| setup("setsid")(e.into()))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| setup("becoming a subreaper")(e.into()))?;
    let pty = hostel_sys::pty::open(&devpts).map_err(setup("opening a terminal"))?;
    drop(devpts);
    let owner = (
        Some(Uid::from_raw(user.uid)),
        Some(Gid::from_raw(TTY_GROUP)),
    );
    rustix::fs::fchown(&pty.slave, owner.0, owner.1)
        .and_then(|()| rustix::fs::fchmod(&pty.slave, Mode::from_raw_mode(0o620)))
        .and_then(|()| rustix::termios::tcsetwinsize(&pty.master, winsize(job.window)))
        .map_err(|e| setup("preparing the terminal")(e.into()))?;
    hostel_sys::pty::make_controlling(&pty.slave).map_err(setup("taking the terminal"))?;

    let mut streams = Streams::new(&job, &user).map_err(setup("making pipes"))?;
    let command = Command::new(&job, user, &env, context.umask)?;
    let started = command::start(&command, &streams, &pty.slave, proof)?;
    streams.release();
    Ok(Session {
        events,
        master: Some(pty.master),
        slave: Some(pty.slave),
        streams,
        command: started.pid,
        warnings: started.warnings,
    })
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: size.x_pixels,
        ws_ypixel: size.y_pixels,
    }
}

impl Session {
    fn pid(&self) -> u32 {
        self.command.as_raw_pid().unsigned_abs()
    }

    fn serve(mut self, socket: OwnedFd) {
        self.streams.caller.clear();
        let mut socket = Some(socket);
        let mut running = true;
        loop {
            if self.reap(socket.as_ref(), &mut running) {
                return;
            }
            let events_fd = self.events.as_fd();
            let mut fds = vec![PollFd::new(&events_fd, PollFlags::IN)];
            let socket_fd = socket.as_ref().map(AsFd::as_fd);
            if let Some(fd) = &socket_fd {
                fds.push(PollFd::new(fd, PollFlags::IN));
            }
            // EINTR and even an error lead back to reaping, which is right after any of them.
            let _ = rustix::event::poll(&mut fds, None);
            let asked = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
            drop(fds);
            hostel_sys::signal::drain(self.events.as_fd());
            if asked && let Some(open) = &socket {
                match wire::receive::<SessionRequest>(open, None) {
                    Ok(Some((request, _))) => self.answer(request, running),
                    // A packet that makes no sense is gone with its reading.
                    Err(wire::WireError::Malformed(_) | wire::WireError::TooLong { .. }) => {}
                    Ok(None) | Err(_) => {
                        socket = None;
                        self.hang_up(running);
                    }
                }
            }
        }
    }

    /// Takes all children that ended; returns whether none is left, after telling so.
    fn reap(&mut self, socket: Option<&OwnedFd>, running: &mut bool) -> bool {
        let tell = |report: SessionReport| {
            if let Some(socket) = socket {
                // A caller that does not read, or is gone, must not stop the reaping.
                let _ = wire::send(socket, &report, &[]);
            }
        };
        loop {
            match hostel_sys::process::reap() {
                Ok(Reaped::Child(pid, end)) if pid == self.command => {
                    *running = false;
                    self.slave = None;
                    tell(SessionReport::Exited(match end {
                        End::Exited(code) => CommandEnd::Exited(code),
                        End::Signaled { signal, core } => CommandEnd::Signaled { signal, core },
                    }));
                }
                // Nobody is there to continue a command that Ctrl-Z stopped: as for a program that leads its session, that
                // key does nothing to it.
                Ok(Reaped::Stopped(pid, signal))
                    if pid == self.command && i32::from(signal) == SIGTSTP =>
                {
                    self.signal_command(SIGCONT);
                }
                Ok(Reaped::Child(..) | Reaped::Stopped(..)) => {}
                Ok(Reaped::Running) => return false,
                Ok(Reaped::None) | Err(_) => {
                    tell(SessionReport::Empty);
                    return true;
                }
            }
        }
    }

    fn answer(&mut self, request: SessionRequest, running: bool) {
        match request {
            SessionRequest::Resize(size) => {
                if let Some(master) = &self.master {
                    // Fails only on a terminal that is hung up.
                    let _ = rustix::termios::tcsetwinsize(master, winsize(size));
                }
            }
            SessionRequest::Signal(signal) => {
                let group = self.foreground().unwrap_or(self.command);
                // The group may be gone by now.
                let _ = hostel_sys::process::signal_group(group, i32::from(signal));
            }
            SessionRequest::Hangup => self.hang_up(running),
        }
    }

    fn signal_command(&self, signal: i32) {
        // The group may be gone by now.
        let _ = hostel_sys::process::signal_group(self.command, signal);
    }

    /// Lets the terminal go and tells its foreground group and the command, which may be a shell behind that group. The kernel
    /// tells the leader of the session only, which is this process.
    fn hang_up(&mut self, running: bool) {
        let foreground = self.foreground();
        self.master = None;
        for group in foreground
            .into_iter()
            .chain(running.then_some(self.command))
        {
            for signal in [SIGHUP, SIGCONT] {
                // The group may be gone by now.
                let _ = hostel_sys::process::signal_group(group, signal);
            }
        }
    }

    fn foreground(&self) -> Option<Pid> {
        rustix::termios::tcgetpgrp(self.master.as_ref()?).ok()
    }
}

const SIGHUP: i32 = rustix::process::Signal::HUP.as_raw();
const SIGTSTP: i32 = rustix::process::Signal::TSTP.as_raw();
const SIGCONT: i32 = rustix::process::Signal::CONT.as_raw();
