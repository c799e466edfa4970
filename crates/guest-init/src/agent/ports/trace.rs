//! The kernel tells when a TCP socket begins or ends to listen: an instance of tracefs of our own, with one event.
//!
//! Only at which port something happened is of interest; what, is asked of the kernel by sock_diag(7).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use super::heard::Heard;

/// Where tracefs is mounted (and by whom, does not matter).
const TRACEFS: &str = "/sys/kernel/tracing";

/// The names of our instances begin with it; the agent's pid and a number follow.
const PREFIX: &str = "hostel-";

/// From or to `TCP_LISTEN`.
const FILTER: &str = "newstate==10||oldstate==10";

/// The most reads for one waking.
const READS: usize = 32;

/// At least what the kernel gives at one time: then no line is cut.
const READ: usize = 8192;

/// What stands before the fields of an event. The name of a process, which comes before it, is shorter.
const EVENT: &str = ": inet_sock_set_state: ";

/// How many instances this process has made.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A source of events, readable when there are some.
#[derive(Debug)]
pub(super) struct Trace {
    /// `None` while it is being removed.
    pipe: Option<OwnedFd>,
    instance: PathBuf,
}

impl Trace {
    /// Makes the instance; mounts tracefs when nobody has. Needs CAP_SYS_ADMIN.
    pub(super) fn open() -> io::Result<Self> {
        let instances = Path::new(TRACEFS).join("instances");
        if !instances.exists() {
            let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            rustix::mount::mount("tracefs", TRACEFS, "tracefs", safe, None)?;
        }
        remove_leftovers(&instances);
        // The one of a watch that is about to end may still be there.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let instance = instances.join(format!("{PREFIX}{}-{number}", std::process::id()));
        match fs_err::create_dir(&instance) {
            // Of an agent before this one that had the same pid.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // From here on it is removed whatever happens.
        let mut trace = Self {
            pipe: None,
            instance,
        };
        // Little memory; and every single event wakes. Kernels differ in what they have of these.
        let _ = fs_err::write(trace.instance.join("buffer_size_kb"), "16");
        let _ = fs_err::write(trace.instance.join("buffer_percent"), "0");
        let event = trace.instance.join("events/sock/inet_sock_set_state");
        fs_err::write(event.join("filter"), FILTER)?;
        fs_err::write(event.join("enable"), "1")?;
        trace.pipe = Some(rustix::fs::open(
            trace.instance.join("trace_pipe"),
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )?);
        Ok(trace)
    }

    /// Takes what has come. An error means that nothing will come any more.
    pub(super) fn drain(&self, heard: &mut Heard, now: Instant) -> io::Result<()> {
        let Some(pipe) = &self.pipe else {
            return Ok(());
        };
        let mut scratch = [0; READ];
        for _ in 0..READS {
            match rustix::io::read(pipe, &mut scratch[..]) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Ok(length) => hear(&scratch[..length], heard, now),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // What is left is read at the next waking.
        heard.of_everything(now);
        Ok(())
    }

    /// Returns what to wait for.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }
}

/// Notes what the lines are about; of one that does not say it (events were lost), everything.
fn hear(text: &[u8], heard: &mut Heard, now: Instant) {
    for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        match port(&String::from_utf8_lossy(line)) {
            Some(port) => heard.of(port, now),
            None => heard.of_everything(now),
        }
    }
}

/// Reads `… inet_sock_set_state: family=AF_INET protocol=IPPROTO_TCP sport=80 dport=0 …`. A socket that gets a port only by
/// listening has none yet.
fn port(line: &str) -> Option<u16> {
    let (_, fields) = line.split_once(EVENT)?;
    let value = fields.split(' ').find_map(|f| f.strip_prefix("sport="))?;
    value.parse().ok().filter(|port| *port != 0)
}

impl Drop for Trace {
    fn drop(&mut self) {
        // While it is open it cannot be removed.
        self.pipe = None;
        // What stays (another reader has it open) is removed by the next start.
        let _ = fs_err::remove_dir(&self.instance);
    }
}

/// Removes the instances of agents that are gone.
fn remove_leftovers(instances: &Path) {
    let Ok(entries) = fs_err::read_dir(instances) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let pid = name.to_str().and_then(maker);
        let gone = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
        if pid.is_some_and(gone) {
            // Fails when it is in use after all.
            let _ = fs_err::remove_dir(entry.path());
        }
    }
}

/// Reads the pid in the name of an instance.
fn maker(name: &str) -> Option<u32> {
    let (pid, number) = name.strip_prefix(PREFIX)?.split_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_a_port_or_are_about_everything() {
        let line = |comm: &str, port: &str| {
            format!(
                "  {comm}-12 [000] d..2.    1.234567: inet_sock_set_state: family=AF_INET protocol=IPPROTO_TCP \
                 sport={port} dport=0 saddr=0.0.0.0 daddr=0.0.0.0 oldstate=TCP_CLOSE newstate=TCP_LISTEN\n"
            )
        };
        let ports = |text: &str| {
            let mut heard = Heard::default();
            hear(text.as_bytes(), &mut heard, Instant::now());
            heard.ports().map(|p| p.into_iter().collect::<Vec<_>>())
        };
        let two = line("nginx", "80") + &line("x sport=9 ", "8080");
        assert_eq!(ports(&two), Some(vec![80, 8080]));
        for bad in ["0", "65536", "", "-1"] {
            assert_eq!(ports(&line("nginx", bad)), None, "{bad}");
        }
        assert_eq!(ports(&(two + "CPU:1 [LOST 7 EVENTS]\n")), None);
        assert_eq!(ports(&line("a\nb", "80")), None);
    }

    #[test]
    fn only_our_instances_are_known_by_their_names() {
        assert_eq!(maker("hostel-12-0"), Some(12));
        for other in ["hostel-12", "hostel-x-0", "mine", "hostel-12-", ""] {
            assert_eq!(maker(other), None, "{other}");
        }
    }
}
