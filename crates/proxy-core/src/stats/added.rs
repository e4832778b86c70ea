//! What the proxy itself takes of a request's time, coarsely: what a new release is compared with the one before by.
//!
//! ```text
//! head parsed ──own── request head sent ──waits── response head here ──own── response head sent ── body
//!                 └─ connecting: waits
//! ```
//! Four buckets for each doubling, from 64 µs to 8 s; those of `outrider_supervise::gate::Histogram`, which this ends up
//! in. Holds: fixed size, no allocation. Does not: count bodies (they take what both ends take), or read a clock.

/// One below 64 µs, four for each of 17 doublings, one above 8.4 s.
const BUCKETS: usize = 70;

/// Counts of times in fixed buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added([u64; BUCKETS]);

impl Default for Added {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Added {
    /// Counts a time in microseconds.
    #[inline]
    pub fn record(&mut self, us: u64) {
        if let Some(count) = self.0.get_mut(bucket(us)) {
            *count += 1;
        }
    }

    /// The buckets that are not empty, in order: the shortest time in it, in microseconds, and its count.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counts = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.map(|(bucket, count)| (lower_us(bucket), *count))
    }

    /// Adds another one.
    pub fn merge(&mut self, other: &Self) {
        super::add(&mut self.0, &other.0);
    }
}

#[inline]
const fn bucket(us: u64) -> usize {
    if us < 64 {
        return 0;
    }
    let exponent = us.ilog2();
    let quarter = (us >> (exponent - 2)) & 3;
    let bucket = 1 + (exponent as usize - 6) * 4 + quarter as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

const fn lower_us(bucket: usize) -> u64 {
    if bucket == 0 {
        return 0;
    }
    let (exponent, quarter) = (6 + (bucket - 1) / 4, (bucket - 1) % 4);
    (4 + quarter as u64) << (exponent - 2)
}

/// Adds up the stretches of one request that are the proxy's own. The unit is that of the caller's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopwatch {
    sum: u64,
    since: Option<u64>,
}

impl Stopwatch {
    /// It is the proxy's turn from now on; nothing if it was already.
    #[inline]
    pub fn start(&mut self, now: u64) {
        self.since.get_or_insert(now);
    }

    /// It is somebody else's turn from now on; nothing if it was already.
    #[inline]
    pub fn pause(&mut self, now: u64) {
        if let Some(since) = self.since.take() {
            self.sum = self.sum.saturating_add(now.saturating_sub(since));
        }
    }

    /// All stretches, the last one until it was paused.
    pub const fn sum(&self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_bucket_begins_where_the_one_before_ends() {
        for at in 0..BUCKETS {
            assert_eq!(bucket(lower_us(at)), at);
            assert!(at == 0 || bucket(lower_us(at) - 1) == at - 1);
        }
        assert_eq!((lower_us(1), lower_us(BUCKETS - 1)), (64, 1 << 23));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn stretches_add_up_and_the_time_between_does_not() {
        let mut watch = Stopwatch::default();
        watch.pause(5);
        watch.start(10);
        watch.start(12);
        watch.pause(13);
        watch.pause(20);
        watch.start(100);
        assert_eq!(watch.sum(), 3);
        watch.pause(101);
        // A clock that goes back takes nothing away.
        watch.start(50);
        watch.pause(40);
        assert_eq!(watch.sum(), 4);
    }

    proptest! {
        #[test]
        fn merging_equals_recording_together(
            a in prop::collection::vec(any::<u64>(), 0..50),
            b in prop::collection::vec(0..10_000_000_u64, 0..50),
        ) {
            let fill = |times: &[u64]| {
                let mut added = Added::default();
                times.iter().for_each(|&us| added.record(us));
                added
            };
            let mut merged = fill(&a);
            merged.merge(&fill(&b));
            prop_assert_eq!(merged.buckets().map(|(_, count)| count).sum::<u64>(), (a.len() + b.len()) as u64);
            prop_assert_eq!(merged, fill(&[a, b].concat()));
        }
    }
}
