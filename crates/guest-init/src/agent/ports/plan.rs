//! When to look at the sockets again.
//!
//! The kernel tells of a listener a moment before it can be listed, so one look at once is followed by two more. They are
//! looks at the ports that it told of, which cost little; everything is looked at from time to time, since events can be lost,
//! and when it is not clear what they were about. That costs more with many sockets: pauses grow with what a look costs, so
//! that neither a storm of changes nor thousands of listeners take more than their share of a processor.

use std::time::{Duration, Instant};

/// The looks that follow an event.
pub(super) const AFTER: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(5),
    Duration::from_millis(50),
];

/// Time between looks, as a multiple of what a look costs: a quarter of a processor at most.
const STORM: u32 = 4;

/// The same for looks that nothing asked for: half a hundredth of a processor at most.
const REST: u32 = 200;

/// The longest pause, however slow looks are.
const LONGEST: Duration = Duration::from_secs(10);

/// When the next look is due.
#[derive(Debug)]
pub(super) struct Plan {
    /// The pause when nothing happens.
    pause: Duration,
    /// Looks that events asked for, in order.
    due: Vec<Instant>,
    /// The last look, and the last one at everything.
    last: Look,
    whole: Look,
}

/// When a look began, and what it cost.
#[derive(Clone, Copy, Debug)]
struct Look {
    began: Instant,
    cost: Duration,
}

impl Plan {
    /// Plans from now on; without events there is a look after every `pause`.
    pub(super) fn new(pause: Duration, now: Instant) -> Self {
        let last = Look {
            began: now,
            cost: Duration::ZERO,
        };
        Self {
            pause,
            due: Vec::new(),
            last,
            whole: last,
        }
    }

    /// Something happened.
    pub(super) fn event(&mut self, now: Instant) {
        // What was due before stays due: a stream of events must not push looks away.
        self.due.retain(|due| *due <= now);
        self.due.truncate(1);
        self.due.extend(AFTER.map(|after| now + after));
    }

    /// A look was made. `cost` is time of the processor: that others were busy meanwhile is no reason to be slow. A look
    /// that found what it was for makes the next one, which is for those that are too early, needless; the last is made
    /// in any case. `whole`: everything was looked at.
    pub(super) fn looked(&mut self, began: Instant, cost: Duration, found: bool, whole: bool) {
        self.due.retain(|due| *due > began);
        if found && self.due.len() > 1 {
            self.due.remove(0);
        }
        self.last = Look { began, cost };
        if whole {
            self.whole = self.last;
        }
    }

    /// Returns when the next look is due.
    pub(super) fn next(&self) -> Instant {
        match self.due.first() {
            Some(due) => self.rest().min((*due).max(self.last.after(STORM))),
            None => self.rest(),
        }
    }

    /// Returns when everything is to be looked at, though nothing happened.
    pub(super) fn rest(&self) -> Instant {
        (self.whole.began + self.pause).max(self.whole.after(REST))
    }
}

impl Look {
    /// Returns when its cost is one of so many parts of the time.
    fn after(self, parts: u32) -> Instant {
        self.began + (self.cost * parts).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(2);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_event_is_followed_by_three_looks_and_then_rest() {
        let start = Instant::now();
        let mut plan = Plan::new(PAUSE, start);
        assert_eq!(plan.next(), start + PAUSE);
        let event = start + ms(100);
        plan.event(event);
        for after in AFTER {
            assert_eq!(plan.next(), event + after);
            plan.looked(plan.next(), Duration::ZERO, false, true);
        }
        assert_eq!(plan.next(), event + ms(50) + PAUSE);
    }

    #[test]
    fn a_look_that_found_something_saves_the_next() {
        let event = Instant::now();
        let mut plan = Plan::new(PAUSE, event);
        plan.event(event);
        plan.looked(event, Duration::ZERO, true, true);
        assert_eq!(plan.next(), event + ms(50));
        plan.looked(event + ms(50), Duration::ZERO, true, true);
        assert_eq!(plan.next(), event + ms(50) + PAUSE);
    }

    #[test]
    fn a_storm_neither_hides_a_look_nor_takes_the_processor() {
        let start = Instant::now();
        let mut plan = Plan::new(PAUSE, start);
        let (mut now, mut looks, mut busy) = (start, 0, Duration::ZERO);
        while now < start + Duration::from_secs(1) {
            plan.event(now);
            if plan.next() <= now {
                plan.looked(now, ms(10), looks % 2 == 0, true);
                now += ms(10);
                (looks, busy) = (looks + 1, busy + ms(10));
            }
            now += ms(1);
        }
        assert!((10..=26).contains(&looks), "{looks}");
        assert!(busy <= ms(260));
    }

    #[test]
    fn slow_looks_are_rare_when_nothing_happens() {
        let start = Instant::now();
        let mut plan = Plan::new(PAUSE, start);
        plan.looked(start, ms(20), false, true);
        assert_eq!(plan.next(), start + ms(4000));
        plan.looked(start, ms(500), false, true);
        assert_eq!(plan.next(), start + LONGEST);
    }

    #[test]
    fn looks_at_a_few_ports_neither_wait_for_nor_replace_those_at_everything() {
        let start = Instant::now();
        let mut plan = Plan::new(PAUSE, start);
        plan.looked(start, ms(30), false, true);
        let rest = start + ms(6000);
        let mut now = start + ms(200);
        while now < rest {
            plan.event(now);
            assert_eq!(plan.next(), now, "it does not wait");
            plan.looked(now, ms(1), true, false);
            assert_eq!(plan.rest(), rest);
            now += ms(20);
        }
    }
}
