//! Noticing that somebody else changed what is ours.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use hostel_netlink::{Events, nft::Changes};

use super::fail::OrRefuse;
use crate::protocol::Refusal;

/// Links, and addresses of both families (RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR).
const GROUPS: u32 = 1 | 1 << (5 - 1) | 1 << (9 - 1);

/// Settings under `/proc/sys` and lost events make no event.
const SAFETY: Duration = Duration::from_secs(5);
/// Somebody who takes things away as fast as they are put back must not keep us busy.
const PAUSE: Duration = Duration::from_millis(50);

/// Waits for changes and says when to look.
#[derive(Debug)]
pub(super) struct Guard {
    links: Events,
    tables: Changes,
    changed: bool,
    last: Instant,
}

impl Guard {
    /// Begins to listen, in the network namespace that the process is in.
    pub(super) fn begin() -> Result<Self, Refusal> {
        Ok(Self {
            links: Events::subscribe(None, GROUPS).or_refuse("cannot watch the interfaces")?,
            tables: Changes::subscribe().or_refuse("cannot watch the packet filter")?,
            changed: false,
            last: Instant::now(),
        })
    }

    /// What becomes readable when something happened.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.links.as_fd(), self.tables.events().as_fd()]
    }

    /// Takes in what happened.
    pub(super) fn take(&mut self) {
        let mut any = false;
        // A socket that fails says that something happened; what, is looked at anyway.
        let complete = self.links.drain(|_| any = true).unwrap_or(false);
        self.changed |= any || !complete || self.tables.seen().unwrap_or(true);
    }

    /// How long to wait at most before looking.
    pub(super) fn wait(&self) -> Duration {
        let pause = if self.changed { PAUSE } else { SAFETY };
        pause.saturating_sub(self.last.elapsed())
    }

    /// Whether it is time to look; then it begins to wait anew.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.wait().is_zero();
        if due {
            self.changed = false;
            self.last = Instant::now();
        }
        due
    }
}
