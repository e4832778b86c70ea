//! Slow start: an endpoint that is new gets its share of the load over a while.

/// Envoy's settings and formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// How long it takes, in milliseconds. 0 is not at all.
    pub window_ms: u64,
    /// 1 grows evenly with time, more grows faster at first. Above 0.
    pub aggression: f64,
    /// The share to begin with, in percent. 10 in Envoy.
    pub min_weight_percent: f64,
}

impl SlowStart {
    /// The share of its weight that an endpoint of this age has: above 0, 1 in the end.
    pub(super) fn factor(&self, age_ms: u64) -> f64 {
        if age_ms >= self.window_ms {
            return 1.0;
        }
        let time = age_ms.max(1) as f64 / self.window_ms as f64;
        time.powf(1.0 / self.aggression).max(self.min_weight_percent / 100.0).clamp(0.0, 1.0)
    }

    /// How often weights are looked at, in milliseconds.
    pub(super) const fn step_ms(&self) -> u64 {
        let step = self.window_ms / 100;
        if step < 10 { 10 } else { step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_grow_as_in_envoy() {
        let even = SlowStart { window_ms: 10_000, aggression: 1.0, min_weight_percent: 10.0 };
        let eager = SlowStart { aggression: 2.0, ..even };
        for (settings, age, expected) in [
            (even, 0, 0.1),
            (even, 500, 0.1),
            (even, 5000, 0.5),
            (even, 9999, 0.9999),
            (even, 10_000, 1.0),
            (even, u64::MAX, 1.0),
            (eager, 2500, 0.5),
            (SlowStart { min_weight_percent: 0.0, ..even }, 0, 0.0001),
            (SlowStart { window_ms: 0, ..even }, 0, 1.0),
        ] {
            assert!((settings.factor(age) - expected).abs() < 1e-9, "{settings:?} {age}");
        }
    }
}
