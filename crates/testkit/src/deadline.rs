//! Waiting, with an end.

use std::time::{Duration, Instant};

/// A point in time that a test does not wait beyond.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    whole: Duration,
}

impl Deadline {
    /// Returns the deadline that lies this far ahead.
    pub fn after(whole: Duration) -> Self {
        Self {
            at: Instant::now() + whole,
            whole,
        }
    }

    /// Returns the deadline that lies this many seconds ahead.
    pub fn secs(secs: u64) -> Self {
        Self::after(Duration::from_secs(secs))
    }

    /// Returns how long it is still, zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Tells whether it has passed.
    pub fn is_over(self) -> bool {
        self.remaining().is_zero()
    }

    /// Asks again and again until the answer is there, and returns it.
    ///
    /// For what gives no event to wait for (a process that appears, a file of another program). `what` completes the
    /// sentence "waited 5s for …".
    ///
    /// # Panics
    ///
    /// When the deadline passes first.
    pub fn until<T>(self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(!self.is_over(), "waited {:?} for {what}", self.whole);
            pause();
        }
    }
}

/// Lets others run between two questions.
pub(crate) fn pause() {
    #[expect(
        clippy::disallowed_methods,
        reason = "between two questions to something that tells no event"
    )]
    std::thread::sleep(Duration::from_millis(5));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_the_waiting() {
        let mut left = 3;
        let answer = Deadline::secs(20).until("a countdown", || {
            left -= 1;
            (left == 0).then_some("done")
        });
        assert_eq!((answer, left), ("done", 0));
    }

    #[test]
    #[should_panic(expected = "waited 20ms for something that never comes")]
    fn the_deadline_ends_it_too() {
        Deadline::after(Duration::from_millis(20))
            .until("something that never comes", || None::<()>);
    }
}
