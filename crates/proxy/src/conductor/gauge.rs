//! Fitting the process to what it was granted.

use std::time::Instant;

use outrider_handover::{Pressure, State};

use super::Conductor;
use crate::grant::{self, Grant, Meter};
use crate::pressure;

/// What may be used and what is.
pub(super) struct Gauge {
    pub(super) meter: Box<dyn Meter>,
    pub(super) grant: Grant,
    pub(super) pressure: Pressure,
    /// When to ask again what is granted, and what is used.
    pub(super) grant_at: Instant,
    pub(super) used_at: Option<Instant>,
}

impl Gauge {
    pub(super) fn new(meter: Box<dyn Meter>, grant: Grant) -> Self {
        let now = Instant::now();
        Self { meter, grant, pressure: Pressure::None, grant_at: now + grant::EVERY, used_at: Some(now) }
    }
}

impl Conductor {
    /// Fits the number of workers and what they begin to what may be used.
    pub(super) fn look_around(&mut self) {
        let (now, gauge) = (Instant::now(), &mut self.gauge);
        if now >= gauge.grant_at {
            gauge.grant_at = now + grant::EVERY;
            let before = std::mem::replace(&mut gauge.grant, gauge.meter.grant());
            if gauge.grant != before {
                tracing::info!(grant = ?gauge.grant, "granted");
                gauge.used_at = Some(now);
            }
            if self.state != State::Draining
                && let Err(error) = self.crew.resize(gauge.grant.workers)
            {
                tracing::error!(%error, "there are fewer workers than there could be");
            }
        }
        if gauge.used_at.is_some_and(|at| now >= at) {
            let (used, limit) = (gauge.meter.used(), gauge.grant.memory);
            gauge.used_at = pressure::next_look(used, limit).map(|wait| now + wait);
            let now = pressure::level(gauge.pressure, used, limit);
            if now != gauge.pressure {
                gauge.pressure = now;
                tracing::warn!(used, limit, pressure = ?gauge.pressure, "memory");
                self.crew.feel(gauge.pressure);
            }
        }
    }
}
