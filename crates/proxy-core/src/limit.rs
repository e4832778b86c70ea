//! A local rate limit: so many requests in a time, and a few at once.
//!
//! A bucket of tokens as one number, the time at which it would be full again, so that it can be kept in one word and
//! shared without a lock. Holds: in any time there are no more than what fits in plus what is filled in, whoever takes
//! from it at the same time. Does not: read clocks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fault::Share;

/// Settings of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Nanoseconds for one token.
    each: u64,
    /// Nanoseconds for all that fit in.
    all: u64,
}

/// No token was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Empty {
    /// Nanoseconds until there is one.
    pub wait: u64,
}

impl Bucket {
    /// Room for `most` tokens, `per_fill` of which come in every `interval`. `None`: some number is zero or does not fit.
    pub fn new(most: u32, per_fill: u32, interval: Duration) -> Option<Self> {
        let interval = u64::try_from(interval.as_nanos()).ok().filter(|nanos| *nanos > 0)?;
        let each = interval.checked_div(u64::from(per_fill))?.max(1);
        let all = each.checked_mul(u64::from(most)).filter(|all| *all > 0 && *all < u64::MAX / 4)?;
        Some(Self { each, all })
    }

    /// Takes a token at `now` nanoseconds from a bucket that is full at `full_at`, which is 0 in the beginning. Gives the
    /// new `full_at`.
    ///
    /// # Errors
    /// There is none.
    pub fn take(self, full_at: u64, now: u64) -> Result<u64, Empty> {
        let next = full_at.max(now).saturating_add(self.each);
        let latest = now.saturating_add(self.all);
        if next <= latest { Ok(next) } else { Err(Empty { wait: next - latest }) }
    }
}

/// A rate limit with its bucket, shared by whoever is to keep within it together.
#[derive(Debug)]
pub struct RateLimit {
    /// How much is let through.
    pub bucket: Bucket,
    /// Requests that are counted at all.
    pub enabled: Share,
    /// Of those, the ones that are refused if they are too many.
    pub enforced: Share,
    /// What they are answered with.
    pub status: u16,
    /// Header lines of that answer, each `name: value\r\n`.
    pub headers: Box<[u8]>,
    /// Calls of gRPC are told `RESOURCE_EXHAUSTED` and not `UNAVAILABLE`, which invites them to come again.
    pub resource_exhausted: bool,
    full_at: AtomicU64,
}

impl RateLimit {
    /// For all requests, answered with 429.
    pub fn new(bucket: Bucket) -> Self {
        let (enabled, enforced) = (Share::ALL, Share::ALL);
        Self {
            bucket,
            enabled,
            enforced,
            status: 429,
            headers: Box::default(),
            resource_exhausted: false,
            full_at: AtomicU64::new(0),
        }
    }

    /// Whether a request may pass at `now` nanoseconds of a clock that all who share this have in common. `random` is
    /// uniform over all of `u64`.
    ///
    /// # Errors
    /// It is one too many.
    pub fn admit(&self, now: u64, random: u64) -> Result<(), Empty> {
        if !self.enabled.has(random) {
            return Ok(());
        }
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            match self.bucket.take(full_at, now) {
                Err(_) if !self.enforced.has(random.rotate_left(32)) => return Ok(()),
                Err(empty) => return Err(empty),
                Ok(next) => {
                    let exchanged = self.full_at.compare_exchange_weak(
                        full_at,
                        next,
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    );
                    match exchanged {
                        Ok(_) => return Ok(()),
                        Err(other) => full_at = other,
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_full_bucket_is_used_at_once_and_then_fills_evenly() {
        let bucket = Bucket::new(3, 2, Duration::from_secs(1)).unwrap();
        let mut full_at = 0;
        let mut take = |now| match bucket.take(full_at, now) {
            Ok(next) => {
                full_at = next;
                None
            }
            Err(Empty { wait }) => Some(wait),
        };
        let now = 50 * SECOND;
        assert_eq!([take(now), take(now), take(now)], [None; 3]);
        assert_eq!(take(now), Some(SECOND / 2));
        assert_eq!(take(now + SECOND / 2), None);
        assert_eq!(take(now + SECOND / 2), Some(SECOND / 2));
        assert_eq!(take(now + 100 * SECOND), None);
    }

    #[test]
    fn what_would_never_let_anything_through_is_no_bucket() {
        for (most, per_fill, nanos) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (u32::MAX, 1, u64::MAX / 2)] {
            assert_eq!(Bucket::new(most, per_fill, Duration::from_nanos(nanos)), None);
        }
    }

    #[test]
    fn threads_together_take_no_more_than_there_is() {
        let limit = RateLimit::new(Bucket::new(1000, 1, Duration::from_secs(3600)).unwrap());
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1000).filter(|_| limit.admit(7 * SECOND, 0).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
        let some = RateLimit {
            enabled: Share::of(1, 2),
            ..RateLimit::new(Bucket::new(1, 1, Duration::from_secs(1)).unwrap())
        };
        assert!(some.admit(1, u64::MAX).is_ok() && some.admit(1, u64::MAX).is_ok(), "not counted");
        assert!(some.admit(1, 0).is_ok() && some.admit(1, 0).is_err());
        let seen = RateLimit { enforced: Share::default(), ..some };
        assert!(seen.admit(1, 0).is_ok(), "counted, and let through");
    }

    proptest! {
        /// Within every stretch between two requests that were let through, and exactly as long as is told.
        #[test]
        fn no_stretch_of_time_has_more_than_its_share(
            most in 1_u32..20, per_fill in 1_u32..20, millis in 1_u64..2000, steps in prop::collection::vec(0_u64..200, 1..200),
        ) {
            let bucket = Bucket::new(most, per_fill, Duration::from_millis(millis)).unwrap();
            let (mut full_at, mut now) = (0, SECOND);
            let mut taken: Vec<u64> = Vec::new();
            for step in steps {
                now += step * 1_000_000;
                match bucket.take(full_at, now) {
                    Ok(next) => {
                        full_at = next;
                        taken.push(now);
                    }
                    Err(Empty { wait }) => {
                        prop_assert!(bucket.take(full_at, now + wait).is_ok());
                        prop_assert!(bucket.take(full_at, now + wait - 1).is_err());
                    }
                }
                for (n, from) in taken.iter().enumerate() {
                    let filled = (now - from) as u128 * u128::from(per_fill) / (u128::from(millis) * 1_000_000);
                    // A token is rounded down to whole nanoseconds.
                    prop_assert!((taken.len() - n) as u128 <= u128::from(most) + filled + 1);
                }
            }
        }
    }
}
