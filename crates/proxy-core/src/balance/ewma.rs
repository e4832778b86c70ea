//! Peak EWMA: what a request to an endpoint is expected to cost, from how long the last ones took.
//!
//! A slow answer counts at once and whole, faster ones bring the estimate down over [`DECAY_MS`], and so does silence, so
//! that an endpoint that was slow is tried again. An endpoint that nobody knows yet gets one request, and no second one
//! before that is answered. After Finagle's balancer of this name. Holds: an estimate costs one exponential and no
//! memory but its own.

/// How long it takes until an observation counts a third: Finagle's and Linkerd's default.
const DECAY_MS: f64 = 10_000.0;
/// Cost of another request where one runs and nothing is known, in microseconds: more than any request takes.
const UNKNOWN: f64 = 1e12;

/// The estimate of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Ewma {
    /// Microseconds, as of `at`; 0 while nothing is known.
    cost: f64,
    /// Milliseconds.
    at: u64,
}

impl Ewma {
    fn decayed(&self, now: u64) -> f64 {
        match now.saturating_sub(self.at) {
            0 => self.cost,
            age => self.cost * (-(age as f64) / DECAY_MS).exp(),
        }
    }

    /// A request took this long.
    pub(super) fn observe(&mut self, micros: u64, now: u64) {
        let took = micros.max(1) as f64;
        let kept = self.decayed(now);
        self.cost = if took >= kept || self.cost == 0.0 {
            took
        } else {
            let weight = (-(now.saturating_sub(self.at).max(1) as f64) / DECAY_MS).exp();
            self.cost * weight + took * (1.0 - weight)
        };
        self.at = now;
    }

    /// What one more request costs where so many run.
    pub(super) fn load(&self, pending: u32, now: u64) -> f64 {
        match (self.cost == 0.0, pending) {
            (true, 0) => 0.0,
            (true, running) => UNKNOWN * f64::from(running),
            (false, running) => self.decayed(now) * (f64::from(running) + 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_count_at_once_and_are_forgotten() {
        let mut ewma = Ewma::default();
        assert_eq!(ewma.load(0, 0), 0.0);
        assert!(ewma.load(1, 0) > 1e9);
        ewma.observe(1000, 100);
        assert_eq!((ewma.load(0, 100), ewma.load(3, 100)), (1000.0, 4000.0));
        ewma.observe(50_000, 200);
        assert_eq!(ewma.load(0, 200), 50_000.0);
        // One fast answer says little.
        ewma.observe(1000, 300);
        assert!((49_000.0..50_000.0).contains(&ewma.load(0, 300)), "{ewma:?}");
        for step in 0..300 {
            ewma.observe(1000, 400 + step * 200);
        }
        assert!((1000.0..1300.0).contains(&ewma.load(0, 400 + 299 * 200)), "{ewma:?}");
        let silent = ewma.load(0, 400 + 299 * 200 + 100_000);
        assert!(silent < 1.0, "{silent}");
        // A clock that stands still, or goes back, does no harm.
        ewma.observe(0, 0);
        assert!(ewma.load(1, 0).is_finite());
    }
}
