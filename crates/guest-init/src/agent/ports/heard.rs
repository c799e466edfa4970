//! What events were about: the ports that a look can be limited to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::plan::AFTER;

/// The most ports that are looked at one by one; of more, a look at everything is as cheap.
const MOST: usize = 8;

/// What was heard and is still to be looked at.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// When something was heard of each port, the last time.
    ports: BTreeMap<u16, Instant>,
    /// When something was heard that may be about any.
    everything: Option<Instant>,
}

impl Heard {
    /// Something happened at a port.
    pub(super) fn of(&mut self, port: u16, now: Instant) {
        self.ports.insert(port, now);
    }

    /// Something happened.
    pub(super) fn of_everything(&mut self, now: Instant) {
        self.everything = Some(now);
    }

    /// Returns the ports to look at; `None`: at everything.
    pub(super) fn ports(&self) -> Option<BTreeSet<u16>> {
        let few = (1..=MOST).contains(&self.ports.len());
        (few && self.everything.is_none()).then(|| self.ports.keys().copied().collect())
    }

    /// A look began then: forgets what the last of its looks is made for.
    pub(super) fn looked(&mut self, began: Instant) {
        let open = |heard: &Instant| *heard + AFTER[AFTER.len() - 1] > began;
        self.ports.retain(|_, heard| open(heard));
        self.everything = self.everything.filter(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_port_is_looked_at_until_its_last_look() {
        let start = Instant::now();
        let mut heard = Heard::default();
        assert_eq!(heard.ports(), None);
        heard.of(80, start);
        heard.of(81, start + Duration::from_millis(30));
        for (at, want) in [(0, vec![80, 81]), (49, vec![80, 81]), (50, vec![81])] {
            heard.looked(start + Duration::from_millis(at));
            assert_eq!(heard.ports(), Some(want.into_iter().collect()));
        }
        heard.of_everything(start + Duration::from_millis(60));
        assert_eq!(heard.ports(), None);
        heard.of(82, start + Duration::from_millis(100));
        heard.looked(start + Duration::from_millis(110));
        assert_eq!(heard.ports(), Some([82].into()));
    }

    #[test]
    fn many_ports_are_everything() {
        let mut heard = Heard::default();
        for port in 1..=9 {
            assert_eq!(heard.ports().is_some(), port > 1);
            heard.of(port, Instant::now());
        }
        assert_eq!(heard.ports(), None);
    }
}
