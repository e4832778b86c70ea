//! A log-linear histogram with fixed buckets: every power of two is cut into 16 equal parts.
//!
//! ```text
//! value   0 1 … 15 │ 16 … 31 │ 32 34 … 62 │ 64 68 … 124 │ …
//! width       1    │    1    │     2      │      4      │
//! ```
//! A bucket is at most 1/16 of its value wide, so a quantile given as the middle of its bucket is at most
//! 3.2 % off. One is about 4 KiB.

/// Bits of linear resolution inside a power of two.
const SUB_BITS: u32 = 4;
const SUB: usize = 1 << SUB_BITS;
/// Values from 2^32 on (71 minutes in microseconds) share the last bucket.
const MAX_BITS: u32 = 32;
const BUCKETS: usize = SUB * (MAX_BITS - SUB_BITS + 1) as usize;

/// Counts of values in fixed buckets. The unit is the caller's; latencies use microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), count: 0, sum: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts a value.
    #[inline]
    pub fn record(&mut self, value: u64) {
        if let Some(bucket) = self.buckets.get_mut(index(value)) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// How many values.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Their sum, saturating.
    pub const fn sum(&self) -> u64 {
        self.sum
    }

    /// The largest, exactly; 0 if there is none.
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// The value below or at which this share (0.0–1.0) of the values lies, at most 3.2 % off below 2^32;
    /// `None` without values.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let rank = ((share.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).clamp(1, self.count);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                let (low, width) = bounds(index);
                return Some((low + (width - 1) / 2).min(self.max));
            }
        }
        Some(self.max)
    }

    /// Non-empty buckets as (lowest value, width, count), in order.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.buckets.iter().enumerate().filter(|(_, count)| **count > 0).map(|(index, count)| {
            let (low, width) = bounds(index);
            (low, width, *count)
        })
    }

    /// Adds another one.
    pub fn merge(&mut self, other: &Self) {
        super::add(self.buckets.as_mut_slice(), other.buckets.as_slice());
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }
}

#[inline]
const fn index(value: u64) -> usize {
    if value < SUB as u64 {
        return value as usize;
    }
    let bits = 63 - value.leading_zeros();
    if bits >= MAX_BITS {
        return BUCKETS - 1;
    }
    let shift = bits - SUB_BITS;
    // The leading bit selects the row, the next SUB_BITS the place in it.
    (shift as usize + 1) * SUB + ((value >> shift) as usize - SUB)
}

const fn bounds(index: usize) -> (u64, u64) {
    if index < SUB {
        return (index as u64, 1);
    }
    let shift = (index / SUB - 1) as u32;
    (((SUB + index % SUB) as u64) << shift, 1 << shift)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_bucket_starts_where_the_one_before_ends() {
        let mut next = 0;
        for at in 0..BUCKETS {
            let (low, width) = bounds(at);
            assert_eq!(low, next);
            assert_eq!(index(low), at);
            assert_eq!(index(low + width - 1), at);
            next = low + width;
        }
        assert_eq!(next, 1 << MAX_BITS);
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn empty_and_extreme() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        histogram.record(u64::MAX);
        histogram.record(u64::MAX);
        assert_eq!((histogram.count(), histogram.sum(), histogram.max()), (2, u64::MAX, u64::MAX));
        assert!(histogram.quantile(f64::NAN).is_some());
    }

    proptest! {
        #[test]
        fn quantiles_are_close(mut values in prop::collection::vec(0u64..1 << 32, 1..300), share in 0.0f64..=1.0) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|&value| histogram.record(value));
            values.sort_unstable();
            let rank = ((share * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1];
            let given = histogram.quantile(share).unwrap();
            prop_assert!(given.abs_diff(exact) as f64 <= exact as f64 * 0.032, "{given} for {exact}");
        }

        #[test]
        fn merging_equals_recording_together(
            a in prop::collection::vec(any::<u64>(), 0..50),
            b in prop::collection::vec(any::<u64>(), 0..50),
        ) {
            let fill = |values: &[u64]| {
                let mut histogram = Histogram::default();
                values.iter().for_each(|&value| histogram.record(value));
                histogram
            };
            let mut merged = fill(&a);
            merged.merge(&fill(&b));
            prop_assert_eq!(merged, fill(&[a, b].concat()));
        }
    }
}
