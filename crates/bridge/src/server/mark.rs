//! The mark on a bridge: its alias says whose it is and what has to be put right on the host when it goes. It is what the
//! next server knows of one that was killed.

use std::fmt;

use rustix::process::{Pid, getpid, test_kill_process};

/// A process and what it owes the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The server.
    pub(super) owner: Owner,
    /// What to put right.
    pub(super) duties: Duties,
}

/// A server, so that another process with the same number is not taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pid: i32,
    /// Field 22 of `/proc/<pid>/stat`.
    started: u64,
    /// The PID namespace that the number belongs to.
    namespace: u64,
}

/// What was switched on for a network and was off before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Duties {
    /// `net.ipv4.ip_forward`.
    pub(super) forward4: bool,
    /// `net.ipv6.conf.all.forwarding`.
    pub(super) forward6: bool,
    /// Interfaces whose `accept_ra` became 2, so that they still listen to their router.
    pub(super) accept_ra: Vec<String>,
    /// Interfaces whose IPv6 `force_forwarding` became 1.
    pub(super) force6: Vec<String>,
}

impl Duties {
    /// Adds what another one owes.
    pub(super) fn merge(&mut self, other: Self) {
        self.forward4 |= other.forward4;
        self.forward6 |= other.forward6;
        for (mine, theirs) in [
            (&mut self.accept_ra, other.accept_ra),
            (&mut self.force6, other.force6),
        ] {
            mine.extend(theirs);
            mine.sort();
            mine.dedup();
        }
    }
}

impl Owner {
    /// Returns the calling process. Needs `/proc`.
    pub(super) fn myself() -> std::io::Result<Self> {
        let pid = getpid();
        let gone = || std::io::Error::other("`/proc/self` shows no such process");
        Ok(Self {
            pid: pid.as_raw_nonzero().get(),
            started: stat(pid).ok_or_else(gone)?.started,
            namespace: hostel_sys::namespace::inode(std::process::id(), "pid")?,
        })
    }

    /// Whether the process has ended. One that cannot be seen from here counts as running: nobody is harmed by what stays.
    fn ended(self) -> bool {
        let here = hostel_sys::namespace::inode(std::process::id(), "pid");
        if here.ok() != Some(self.namespace) {
            return false;
        }
        let Some(pid) = Pid::from_raw(self.pid) else {
            return true;
        };
        match test_kill_process(pid) {
            Err(rustix::io::Errno::SRCH) => true,
            // `/proc` may hide other users' processes. One that has ended and that nobody has waited for holds nothing any more.
            _ => stat(pid).is_some_and(|stat| stat.started != self.started || stat.has_ended()),
        }
    }
}

/// What `/proc/<pid>/stat` tells.
struct Stat {
    state: char,
    started: u64,
}

impl Stat {
    /// Whether it is a zombie, or less than that.
    fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

fn stat(pid: Pid) -> Option<Stat> {
    let text = fs_err::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        started: fields.nth(18)?.parse().ok()?,
    })
}

impl Mark {
    /// Reads an alias; `None` for what is not ours.
    pub(super) fn parse(alias: &str) -> Option<Self> {
        let mut words = alias.split(' ');
        if words.next() != Some("hostel") {
            return None;
        }
        let owner = Owner {
            pid: words.next()?.parse().ok()?,
            started: words.next()?.parse().ok()?,
            namespace: words.next()?.parse().ok()?,
        };
        let mut duties = Duties::default();
        for word in words {
            let names = |list: &str| list.split(',').map(str::to_owned).collect();
            match word.split_once('=') {
                None if word == "forward4" => duties.forward4 = true,
                None if word == "forward6" => duties.forward6 = true,
                Some(("ra", list)) => duties.accept_ra = names(list),
                Some(("force", list)) => duties.force6 = names(list),
                _ => return None,
            }
        }
        Some(Self { owner, duties })
    }

    /// Whether its server has ended without cleaning up.
    pub(super) fn is_orphan(&self) -> bool {
        self.owner.ended()
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner {
            pid,
            started,
            namespace,
        } = self.owner;
        write!(f, "hostel {pid} {started} {namespace}")?;
        if self.duties.forward4 {
            f.write_str(" forward4")?;
        }
        if self.duties.forward6 {
            f.write_str(" forward6")?;
        }
        for (word, list) in [
            ("ra", &self.duties.accept_ra),
            ("force", &self.duties.force6),
        ] {
            if !list.is_empty() {
                write!(f, " {word}={}", list.join(","))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(owner: Owner) -> Mark {
        Mark {
            owner,
            duties: Duties::default(),
        }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let mut mine = mark(Owner::myself().unwrap());
        assert_eq!(Mark::parse(&mine.to_string()), Some(mine.clone()));
        mine.duties = Duties {
            forward4: true,
            forward6: true,
            accept_ra: vec!["eth0".into(), "wlan0".into()],
            force6: vec!["eth0".into()],
        };
        assert_eq!(Mark::parse(&mine.to_string()), Some(mine));
    }

    #[test]
    fn what_others_wrote_is_not_ours() {
        for alias in [
            "",
            "hostel",
            "hostel 1",
            "hostel x 2 3",
            "my hostel 1 2 3",
            "hostel 1 2 3 and=more",
        ] {
            assert_eq!(Mark::parse(alias), None, "{alias}");
        }
    }

    #[test]
    fn only_an_ended_process_leaves_an_orphan() {
        let me = Owner::myself().unwrap();
        assert!(!mark(me).is_orphan());
        let another = Owner {
            started: me.started + 1,
            ..me
        };
        assert!(mark(another).is_orphan(), "my number, but not me");
        let elsewhere = Owner {
            namespace: me.namespace + 1,
            ..another
        };
        assert!(!mark(elsewhere).is_orphan(), "not to be seen from here");
    }

    #[test]
    fn a_process_that_nobody_waited_for_has_ended() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        let owner = Owner {
            pid: child.id().cast_signed(),
            started: stat(pid).unwrap().started,
            ..Owner::myself().unwrap()
        };
        assert!(!mark(owner).is_orphan());
        drop(child.stdin.take());
        let options =
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
        assert!(mark(owner).is_orphan(), "a zombie");
        child.wait().unwrap();
    }

    #[test]
    fn duties_are_merged_without_repetition() {
        let mut mine = Duties {
            force6: vec!["b".into(), "a".into()],
            ..Duties::default()
        };
        mine.merge(Duties {
            forward4: true,
            force6: vec!["b".into(), "c".into()],
            ..Duties::default()
        });
        assert!(mine.forward4 && !mine.forward6);
        assert_eq!(mine.force6, ["a", "b", "c"]);
    }
}
