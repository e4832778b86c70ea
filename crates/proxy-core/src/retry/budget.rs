//! How many retries there may be beside the requests that callers make.
//!
//! The last ten seconds count, in buckets of one: retries may be a share of the requests of that time, and a few per
//! second in any case, so that who asks rarely has retries at all. Holds: the retries of any ten buckets are no more
//! than the larger of both. Does not: count attempts that never reached anybody; see [`Again::budgeted`].
//!
//! [`Again::budgeted`]: super::Again::budgeted

/// Buckets of a second each.
const BUCKETS: usize = 10;

/// Settings of a [`Budget`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetConfig {
    /// Retries per hundred requests of the last ten seconds.
    pub percent: f64,
    /// Retries per second that there may be in any case.
    pub least_per_second: u32,
}

impl Default for BudgetConfig {
    /// 20 %, and 3 per second: the values of Envoy's budget, which counts what runs at the same time.
    fn default() -> Self {
        Self { percent: 20.0, least_per_second: 3 }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    second: u64,
    requests: u64,
    retries: u64,
}

/// Retries and requests of the last ten seconds.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    buckets: [Bucket; BUCKETS],
    /// Requests counted so far.
    total: u64,
}

impl Budget {
    /// Says that there were `total` requests since the beginning. To be called once a second while there are any: those
    /// since the last call count for the second of now. `now` in milliseconds, never going back.
    pub fn note(&mut self, now: u64, total: u64) {
        let more = total.saturating_sub(self.total);
        self.total = self.total.max(total);
        self.bucket(now).requests += more;
    }

    /// Whether there may be another retry now; counts it if so.
    pub fn take(&mut self, config: BudgetConfig, now: u64, total: u64) -> bool {
        self.note(now, total);
        let oldest = (now / 1000).saturating_sub(BUCKETS as u64 - 1);
        let (mut requests, mut retries) = (0, 0_u64);
        for bucket in self.buckets.iter().filter(|bucket| bucket.second >= oldest) {
            requests += bucket.requests;
            retries += bucket.retries;
        }
        let share = requests as f64 * config.percent / 100.0;
        let least = f64::from(config.least_per_second) * BUCKETS as f64;
        let allowed = (retries + 1) as f64 <= share.max(least);
        if allowed {
            self.bucket(now).retries += 1;
        }
        allowed
    }

    fn bucket(&mut self, now: u64) -> &mut Bucket {
        let second = now / 1000;
        let bucket = &mut self.buckets[(second % BUCKETS as u64) as usize];
        if bucket.second != second {
            *bucket = Bucket { second, ..Bucket::default() };
        }
        bucket
    }
}
