//! Comparing two proportions.

/// So many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    hits: u64,
    of: u64,
}

/// How sure: see the module `gate`.
const Z: f64 = 3.3;

impl Share {
    /// `hits` of `of`; more hits than cases count as all of them.
    pub fn new(hits: u64, of: u64) -> Self {
        let of = of.max(hits);
        Self { hits, of }
    }

    /// The hits.
    pub fn hits(self) -> u64 {
        self.hits
    }

    /// The cases.
    pub fn of(self) -> u64 {
        self.of
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self::new(self.hits.saturating_add(other.hits), self.of.saturating_add(other.of))
    }

    /// Whether there is any case.
    pub fn known(self) -> bool {
        self.of > 0
    }

    /// Observed, 0 without a case.
    pub fn rate(self) -> f64 {
        self.hits as f64 / self.of.max(1) as f64
    }

    /// The same in millionths.
    pub fn millionths(self) -> u32 {
        (self.rate() * 1e6).round() as u32
    }

    /// Where the true share lies: Wilson's score interval. 0–1 without a case.
    pub fn bounds(self) -> (f64, f64) {
        if self.of == 0 {
            return (0.0, 1.0);
        }
        let (n, rate, z2) = (self.of as f64, self.rate(), Z * Z);
        let middle = (rate + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z / (1.0 + z2 / n) * (rate * (1.0 - rate) / n + z2 / (4.0 * n * n)).sqrt();
        ((middle - half).max(0.0), (middle + half).min(1.0))
    }

    /// Whether the true share is surely larger than the other one plus a margin.
    pub fn surely_above(self, other: Self, margin: f64) -> bool {
        self.bounds().0 > other.bounds().1 + margin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_agree_with_published_values() {
        // Wilson's interval solves (p - rate)² = z² p (1 - p) / n at both of its ends.
        for (hits, of) in [(0, 10), (1, 10), (5, 10), (10, 10), (7, 1000), (500, 100_000)] {
            let share = Share::new(hits, of);
            let (low, high) = share.bounds();
            for p in [low, high] {
                let left = (p - share.rate()).powi(2);
                let right = Z * Z * p * (1.0 - p) / of as f64;
                assert!((left - right).abs() < 1e-9, "{hits}/{of}: {p}");
            }
            assert!(low <= share.rate() && share.rate() <= high);
        }
        assert_eq!(Share::new(0, 0).bounds(), (0.0, 1.0));
    }

    #[test]
    fn surely_above_needs_enough_of_both() {
        for (ours, theirs, expected) in [
            ((10, 10), (0, 1000), true),
            ((1, 1), (0, 100), false),
            ((3, 100), (0, 1000), false),
            ((11, 1000), (0, 10_000), true),
            ((11, 1000), (0, 500), false),
            ((1500, 1500), (0, 0), false),
            ((1500, 1500), (0, 3), true),
        ] {
            let share = |(hits, of)| Share::new(hits, of);
            assert_eq!(share(ours).surely_above(share(theirs), 0.002), expected, "{ours:?} {theirs:?}");
        }
    }
}
