//! How many questions may be asked: a bucket of tokens for each source, and one for all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

/// Questions a second, and at once, of one source. All distributions that share the machine's network are one.
const SOURCE: Rate = Rate {
    per_second: 500.0,
    at_once: 1000.0,
};

/// The same for all sources together.
const TOTAL: Rate = Rate {
    per_second: 1000.0,
    at_once: 2000.0,
};

/// The most sources that are told apart.
const MAX_SOURCES: usize = 1024;

#[derive(Debug)]
struct Rate {
    per_second: f64,
    at_once: f64,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn full(rate: &Rate, now: Instant) -> Self {
        Self {
            tokens: rate.at_once,
            filled: now,
        }
    }

    /// Fills up to now; whether there is a token.
    fn has_one(&mut self, rate: &Rate, now: Instant) -> bool {
        let time = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + time * rate.per_second).min(rate.at_once);
        self.filled = now;
        self.tokens >= 1.0
    }
}

/// Counts questions.
#[derive(Debug)]
pub(super) struct Limiter {
    total: Bucket,
    sources: HashMap<IpAddr, Bucket>,
}

impl Limiter {
    pub(super) fn new() -> Self {
        Self {
            total: Bucket::full(&TOTAL, Instant::now()),
            sources: HashMap::new(),
        }
    }

    /// Whether a source may ask now; if so, it is counted.
    pub(super) fn allows(&mut self, source: IpAddr, now: Instant) -> bool {
        if !self.total.has_one(&TOTAL, now) {
            return false;
        }
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            // Those that have not asked for a while are as good as new.
            self.sources
                .retain(|_, b| !b.has_one(&SOURCE, now) || b.tokens < SOURCE.at_once);
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let bucket = self
            .sources
            .entry(source)
            .or_insert_with(|| Bucket::full(&SOURCE, now));
        let allowed = bucket.has_one(&SOURCE, now);
        if allowed {
            bucket.tokens -= 1.0;
            self.total.tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    fn source(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn asked(limiter: &mut Limiter, source: IpAddr, times: usize, now: Instant) -> usize {
        (0..times).filter(|_| limiter.allows(source, now)).count()
    }

    #[test]
    fn one_source_cannot_take_all_and_gets_its_share_back_with_time() {
        let mut limiter = Limiter::new();
        let now = Instant::now();
        assert_eq!(asked(&mut limiter, source(1), 5000, now), 1000);
        assert_eq!(asked(&mut limiter, source(2), 10, now), 10);
        let later = now + Duration::from_millis(100);
        assert_eq!(asked(&mut limiter, source(1), 5000, later), 50);
    }

    #[test]
    fn all_together_are_bounded() {
        let mut limiter = Limiter::new();
        let now = Instant::now();
        let all: usize = (0..5)
            .map(|n| asked(&mut limiter, source(n), 5000, now))
            .sum();
        assert!((1999..=2000).contains(&all), "{all}");
    }

    #[test]
    fn sources_that_are_told_apart_are_bounded() {
        let mut limiter = Limiter::new();
        let now = Instant::now();
        for n in 0..5000 {
            limiter.allows(source(n), now + Duration::from_millis(2) * n);
            assert!(limiter.sources.len() <= MAX_SOURCES);
        }
        let later = now + Duration::from_secs(60);
        assert!(limiter.allows(source(9999), later));
    }
}
