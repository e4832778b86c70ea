//! A coarse histogram of times: four buckets for each doubling, from 64 µs to 8 s.

/// Buckets: one below 64 µs, four for each of 17 doublings, one above 8.4 s.
const BUCKETS: usize = 70;

/// Counts of times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// As long as needed; missing ones are zero.
    counts: Vec<u64>,
}

/// The bucket of a time.
fn bucket(us: u64) -> usize {
    if us < 64 {
        return 0;
    }
    let exponent = us.ilog2();
    let quarter = (us >> (exponent - 2)) & 3;
    (1 + (exponent as usize - 6) * 4 + quarter as usize).min(BUCKETS - 1)
}

/// Where a bucket begins, in microseconds.
fn lower_us(bucket: usize) -> u64 {
    if bucket == 0 {
        return 0;
    }
    let (exponent, quarter) = (6 + (bucket - 1) / 4, (bucket - 1) % 4);
    (4 + quarter as u64) << (exponent - 2)
}

impl Histogram {
    /// Counts `n` times of `us` microseconds.
    pub fn add(&mut self, us: u64, n: u64) {
        let bucket = bucket(us);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(n);
    }

    /// All that were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// The upper end of the bucket in which this quantile (0–1) lies, in microseconds; 0 if nothing was counted.
    pub fn quantile_us(&self, quantile: f64) -> u64 {
        let wanted = ((self.total() as f64 * quantile).ceil() as u64).max(1);
        let mut sum = 0u64;
        for (bucket, n) in self.counts.iter().enumerate() {
            sum = sum.saturating_add(*n);
            if sum >= wanted {
                return lower_us(bucket + 1);
            }
        }
        0
    }

    /// How many are surely above: those in buckets that begin there or later.
    pub fn above(&self, us: u64) -> u64 {
        let counts = self.counts.iter().enumerate();
        counts.filter(|(bucket, _)| lower_us(*bucket) >= us).fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// What came in after `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let before = |bucket: usize| earlier.counts.get(bucket).copied().unwrap_or(0);
        let counts = self.counts.iter().enumerate();
        Self { counts: counts.map(|(bucket, n)| n.saturating_sub(before(bucket))).collect() }
    }

    /// Both together.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        let length = self.counts.len().max(other.counts.len());
        let at = |counts: &[u64], bucket: usize| counts.get(bucket).copied().unwrap_or(0);
        let sum = |bucket| at(&self.counts, bucket).saturating_add(at(&other.counts, bucket));
        Self { counts: (0..length).map(sum).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_hold_what_they_say() {
        for us in (0..20_000).chain([99_999, 1_000_000, 5_000_000, 9_000_000, u64::MAX]) {
            let bucket = bucket(us);
            assert!(lower_us(bucket) <= us, "{us}");
            assert!(bucket == BUCKETS - 1 || us < lower_us(bucket + 1), "{us}");
        }
    }

    #[test]
    fn quantiles_and_counts_above() {
        let mut times = Histogram::default();
        assert_eq!(times.quantile_us(0.5), 0);
        times.add(1_000, 99);
        times.add(300_000, 1);
        assert_eq!((times.total(), times.quantile_us(0.5), times.quantile_us(0.99)), (100, 1024, 1024));
        assert_eq!(times.quantile_us(1.0), 327_680);
        assert_eq!((times.above(200_000), times.above(400_000), times.above(0)), (1, 0, 100));
        let earlier = times.clone();
        times.add(300_000, 4);
        assert_eq!((times.since(&earlier).above(0), times.plus(&earlier).above(200_000)), (4, 6));
    }
}
