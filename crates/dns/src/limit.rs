//! Token buckets: how often something may happen.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use tokio::time::Instant;

/// How many sources are told apart; all further ones share one bucket.
const MAX_SOURCES: usize = 1024;

/// A bucket that holds the tokens of two seconds.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    per_second: u32,
    /// Tokens, in parts of a nanosecond's worth.
    level: u64,
    at: Instant,
}

/// What one token costs, so that a nanosecond brings `per_second` parts.
const TOKEN: u64 = 1_000_000_000;

impl Bucket {
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        let mut bucket = Self {
            per_second,
            level: 0,
            at: now,
        };
        bucket.level = bucket.full();
        bucket
    }

    fn full(&self) -> u64 {
        u64::from(self.per_second) * 2 * TOKEN
    }

    fn fill(&mut self, now: Instant) {
        let gone = now
            .saturating_duration_since(self.at)
            .min(Duration::from_secs(2));
        let brought = gone.as_nanos() as u64 * u64::from(self.per_second);
        self.level = (self.level + brought).min(self.full());
        self.at = now;
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let there = self.level >= TOKEN;
        if there {
            self.level -= TOKEN;
        }
        there
    }
}

/// A bucket for each source.
#[derive(Debug)]
pub(crate) struct Sources {
    per_second: u32,
    buckets: HashMap<IpAddr, Bucket>,
    others: Bucket,
}

impl Sources {
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        Self {
            per_second,
            buckets: HashMap::new(),
            others: Bucket::new(per_second, now),
        }
    }

    pub(crate) fn take(&mut self, source: IpAddr, now: Instant) -> bool {
        if let Some(bucket) = self.buckets.get_mut(&source) {
            return bucket.take(now);
        }
        if self.buckets.len() >= MAX_SOURCES {
            // A full bucket says no more than no bucket.
            self.buckets.retain(|_, bucket| {
                bucket.fill(now);
                bucket.level < bucket.full()
            });
        }
        if self.buckets.len() >= MAX_SOURCES {
            return self.others.take(now);
        }
        let mut bucket = Bucket::new(self.per_second, now);
        let there = bucket.take(now);
        self.buckets.insert(source, bucket);
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, start);
        let taken = |bucket: &mut Bucket, at| (0..1000).filter(|_| bucket.take(at)).count();
        assert_eq!(taken(&mut bucket, start), 20);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(500)), 5);
        // Neither a long sleep nor a clock that stands still brings more than the burst.
        let late = start + Duration::from_secs(1_000_000);
        assert_eq!(taken(&mut bucket, late), 20);
        assert_eq!(taken(&mut bucket, start), 0);
    }

    #[test]
    fn sources_do_not_take_from_each_other_and_are_bounded() {
        let now = Instant::now();
        let mut sources = Sources::new(1, now);
        let source = |n: u32| IpAddr::from(n.to_be_bytes());
        for n in 0..MAX_SOURCES as u32 {
            assert!(sources.take(source(n), now));
            assert!(sources.take(source(n), now));
            assert!(!sources.take(source(n), now));
        }
        let more = (0..1000).filter(|n| sources.take(source(1_000_000 + n), now));
        assert_eq!(more.count(), 2);
        assert_eq!(sources.buckets.len(), MAX_SOURCES);
        // Once they are quiet, others get their place.
        let later = now + Duration::from_secs(3);
        assert!(sources.take(source(2_000_000), later));
        assert_eq!(sources.buckets.len(), 1);
    }
}
