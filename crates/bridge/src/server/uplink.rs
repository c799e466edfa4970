//! The way out of a user namespace: `pasta`, which translates the namespace's connections to sockets of the user's.
//!
//! It has to be started outside the namespace. So there are two processes: the one inside is the server; the one outside
//! starts `pasta` when the one inside says so, and tells when it ended.

use std::{
    io::Read as _,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hostel_netlink::Prefix;
use hostel_sys::{
    fdpass,
    spawn::{Child, Exit, Spawn, Stream},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::Pid,
};
use serde::{Deserialize, Serialize};

use super::{fail::OrRefuse, network::Kernel};
use crate::protocol::{Refusal, RefusalCode, Up, Uplink};

/// The interface that `pasta` makes.
const INTERFACE: &str = "uplink";

/// Addresses of the way out. They are reserved for exactly such an end of a translated network (RFC 7335), so no machine
/// that the guest may want to reach has one of them; and they stay when the host's own addresses change.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
const BITS: u8 = 29;
/// `pasta` sends what goes here to the host's 127.0.0.1, when it is allowed to.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);

/// `pasta` is ready after some 50 ms. A version of it that finds something missing may wait for ever instead of ending.
const PATIENCE: Duration = Duration::from_secs(15);

/// As much as is read of what `pasta` said.
const WORDS: u64 = 64 << 10;
/// The longest message between the two processes.
const LONGEST: usize = 4096;

/// To the process outside.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Start(Wanted),
    Stop,
}

/// A way out that is wanted.
#[derive(Debug, Serialize, Deserialize)]
struct Wanted {
    /// Counts the starts, to know which one ended.
    number: u64,
    mtu: u32,
    ipv6: bool,
    host_loopback: bool,
}

/// From the process outside: the start with this number has ended.
#[derive(Debug, Serialize, Deserialize)]
struct News {
    number: u64,
    how: String,
}

/// The process outside, as the server inside sees it.
#[derive(Debug)]
pub(super) struct Remote {
    socket: OwnedFd,
    program: bool,
    number: u64,
    state: Uplink,
    started: Instant,
}

impl Remote {
    /// Speaks on `socket` with a process that has, or has not, the program.
    pub(super) fn new(socket: OwnedFd, program: bool) -> Self {
        Self {
            socket,
            program,
            number: 0,
            state: Uplink::None,
            started: Instant::now(),
        }
    }

    /// Whether there can be a way out at all.
    pub(super) fn has_program(&self) -> bool {
        self.program
    }

    /// How the way out is.
    pub(super) fn state(&self) -> &Uplink {
        &self.state
    }

    /// Has it started, in the place of one that may run. Does not wait.
    pub(super) fn start(&mut self, up: &Up) -> Result<(), Refusal> {
        if !self.program {
            return Err(Refusal::new(
                RefusalCode::NoUplink,
                "no program for the way out was given",
            ));
        }
        self.number += 1;
        let order = Order::Start(Wanted {
            number: self.number,
            mtu: up.mtu,
            ipv6: up.ipv6.is_some(),
            host_loopback: up.host_loopback,
        });
        say(&self.socket, &order)?;
        self.state = Uplink::Starting;
        self.started = Instant::now();
        Ok(())
    }

    /// Has it ended.
    pub(super) fn stop(&mut self) {
        if matches!(self.state, Uplink::Starting | Uplink::Ready) {
            // When nobody hears this, it has ended.
            let _ = say(&self.socket, &Order::Stop);
        }
        self.state = Uplink::None;
    }

    /// Takes in news; whether the state changed.
    pub(super) fn hear(&mut self) -> Result<bool, Refusal> {
        let News { number, how } = listen(&self.socket)?.ok_or_else(|| {
            Refusal::new(
                RefusalCode::Failed,
                "the process outside the namespace has ended",
            )
        })?;
        // News of one that was stopped, or given up, are none.
        if number != self.number || !matches!(self.state, Uplink::Starting | Uplink::Ready) {
            return Ok(false);
        }
        self.state = Uplink::Ended(how);
        Ok(true)
    }

    /// Looks whether the way out works by now; whether the state changed.
    pub(super) fn notice(&mut self, kernel: &Kernel) -> bool {
        if self.state != Uplink::Starting {
            return false;
        }
        if self.started.elapsed() > PATIENCE {
            self.stop();
            self.state = Uplink::Ended(format!(
                "pasta was not ready after {} seconds",
                PATIENCE.as_secs()
            ));
            return true;
        }
        let Ok(Some(link)) = kernel.routing.link(INTERFACE) else {
            return false;
        };
        let routes = kernel.routing.routes().unwrap_or_default();
        let leads_out = routes
            .iter()
            .any(|route| route.index == link.index && route.destination.length == 0);
        if link.up && leads_out {
            self.state = Uplink::Ready;
        }
        self.state == Uplink::Ready
    }
}

impl AsFd for Remote {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The process outside: serves the server inside, whose process this is, until that has gone.
pub(super) fn serve(socket: &OwnedFd, program: Option<&PathBuf>, inside: Pid) {
    let mut running: Option<Running> = None;
    loop {
        let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
        if let Some(running) = &running {
            fds.push(PollFd::new(&running.child, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.get(1) == Some(&true)
            && let Some(ended) = running.take()
            && say(socket, &ended.news()).is_err()
        {
            return;
        }
        if !ready[0] {
            continue;
        }
        match listen(socket) {
            Ok(Some(Order::Stop)) => running = None,
            Ok(Some(Order::Start(wanted))) => {
                // The old one goes first: both want the same name for their interface.
                drop(running.take());
                match start(program, inside, &wanted) {
                    Ok(started) => running = Some(started),
                    Err(how) => {
                        let number = wanted.number;
                        if say(socket, &News { number, how }).is_err() {
                            return;
                        }
                    }
                }
            }
            // The server inside has ended.
            Ok(None) | Err(_) => return,
        }
    }
}

/// A running `pasta`; dropping it kills it.
struct Running {
    number: u64,
    child: Child,
    words: std::io::PipeReader,
}

impl Running {
    fn news(mut self) -> News {
        let how = match self.child.wait() {
            // Its own words say more than the number.
            Ok(exit @ Exit::Code(_)) => match self.last_words() {
                Some(words) => format!("pasta ended: {words}"),
                None => format!("pasta ended with {exit}"),
            },
            Ok(exit) => format!("pasta ended with {exit}"),
            Err(error) => format!("pasta ended: {error}"),
        };
        News {
            number: self.number,
            how,
        }
    }

    /// The last line that it said; it has ended, so all is in the pipe, which is bounded.
    fn last_words(&mut self) -> Option<String> {
        let mut said = Vec::new();
        let _ = self.words.by_ref().take(WORDS).read_to_end(&mut said);
        String::from_utf8_lossy(&said)
            .lines()
            .map(str::trim)
            // It also tries to reach the system's log, which it cannot from where it is.
            .rfind(|line| !line.is_empty() && !line.contains("to syslog"))
            .map(|line| line.chars().take(300).collect())
    }
}

fn start(program: Option<&PathBuf>, inside: Pid, wanted: &Wanted) -> Result<Running, String> {
    let program: &Path = program.ok_or("no program for the way out was given")?;
    let failed = |error: std::io::Error| format!("cannot start `{}`: {error}", program.display());
    let (words, theirs) = std::io::pipe().map_err(failed)?;
    let mut spawn = Spawn::new(program);
    spawn
        .args(arguments(inside, wanted))
        .env([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")])
        .stderr(Stream::Fd(theirs.into()));
    Ok(Running {
        number: wanted.number,
        child: spawn.start().map_err(failed)?,
        words,
    })
}

/// What also the `pasta` of Debian 12 understands.
fn arguments(inside: Pid, wanted: &Wanted) -> Vec<String> {
    let mut words = vec!["--foreground".to_owned(), "--quiet".to_owned()];
    // Nothing of the namespace appears on the host, nor the host's own services in it.
    for forward in ["-t", "-u", "-T", "-U"] {
        words.extend([forward.to_owned(), "none".to_owned()]);
    }
    if !wanted.host_loopback {
        words.push("--no-map-gw".to_owned());
    }
    if !wanted.ipv6 {
        words.push("--ipv4-only".to_owned());
    }
    let Prefix { address, length } = Prefix {
        address: ADDRESS.into(),
        length: BITS,
    };
    words.extend([
        "--config-net".to_owned(),
        "--ns-ifname".to_owned(),
        INTERFACE.to_owned(),
        "--mtu".to_owned(),
        wanted.mtu.to_string(),
        "--address".to_owned(),
        address.to_string(),
        "--netmask".to_owned(),
        length.to_string(),
        "--gateway".to_owned(),
        GATEWAY.to_string(),
        // The user namespace is this process's own already.
        "--netns-only".to_owned(),
        "--netns".to_owned(),
        format!("/proc/{}/ns/net", inside.as_raw_nonzero()),
    ]);
    words
}

fn say(socket: &OwnedFd, message: &impl Serialize) -> Result<(), Refusal> {
    let text = serde_json::to_vec(message).map_err(|e| Refusal::of(RefusalCode::Failed, &e))?;
    fdpass::send(socket, &text, &[]).or_refuse("cannot reach the process across the namespace")
}

/// `None` when the other process has gone.
fn listen<T: for<'a> Deserialize<'a>>(socket: &OwnedFd) -> Result<Option<T>, Refusal> {
    let mut buffer = [0; LONGEST];
    let (length, _) = fdpass::recv(socket, &mut buffer)
        .or_refuse("cannot hear the process across the namespace")?;
    if length == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&buffer[..length])
        .map(Some)
        .map_err(|e| Refusal::of(RefusalCode::Failed, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(ipv6: bool, host_loopback: bool) -> Vec<String> {
        let wanted = Wanted {
            number: 1,
            mtu: 65520,
            ipv6,
            host_loopback,
        };
        arguments(Pid::from_raw(7).unwrap(), &wanted)
    }

    #[test]
    fn the_hosts_loopback_is_closed_unless_asked_for() {
        let has = |words: Vec<String>, word: &str| words.iter().any(|w| w == word);
        assert!(has(words(false, false), "--no-map-gw"));
        assert!(!has(words(false, true), "--no-map-gw"));
        assert!(has(words(false, false), "--ipv4-only"));
        assert!(!has(words(true, false), "--ipv4-only"));
        assert!(has(words(true, true), "/proc/7/ns/net"));
    }
}
