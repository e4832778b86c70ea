//! Rates: how often something may happen before the peer is told to be calm.
//!
//! A budget fills with time up to its burst. Holds: time that goes back adds nothing; nothing overflows.

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// And per second after that.
    pub per_second: u32,
}

/// What is left of a [`Rate`], in thousandths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    rate: Rate,
    left: u64,
    at: u64,
}

impl Budget {
    pub(crate) fn new(rate: Rate, now: u64) -> Self {
        Self { rate, left: u64::from(rate.burst) * 1000, at: now }
    }

    /// Takes one. `false` if there is none.
    pub(crate) fn take(&mut self, now: u64) -> bool {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.put(passed.saturating_mul(u64::from(self.rate.per_second)));
        if self.left < 1000 {
            return false;
        }
        self.left -= 1000;
        true
    }

    /// Gives back `count`: something useful happened.
    #[inline]
    pub(crate) fn earn(&mut self, count: u32) {
        self.put(u64::from(count) * 1000);
    }

    fn put(&mut self, thousandths: u64) {
        self.left = self.left.saturating_add(thousandths).min(u64::from(self.rate.burst) * 1000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_fills_with_time_up_to_its_burst() {
        let mut budget = Budget::new(Rate { burst: 3, per_second: 10 }, 1000);
        assert_eq!([(); 4].map(|()| budget.take(1000)), [true, true, true, false]);
        assert!(!budget.take(1099));
        assert!(budget.take(1100));
        assert!(!budget.take(500));
        assert_eq!([(); 4].map(|()| budget.take(u64::MAX)), [true, true, true, false]);
        budget.earn(1);
        assert!(budget.take(0));
    }
}
