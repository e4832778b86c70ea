//! Fitting the process to what it was granted.

use std::time::Instant;

use outrider_handover::{FromProxy, Pressure, State};

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
    /// When to give back what only starting needed.
    pub(super) slim_at: Option<Instant>,
    /// When the agent may be told again that the limit is near.
    tell_at: Instant,
    /// Until when it is waited for a higher limit before anything is refused.
    asked_until: Option<Instant>,
}

impl Gauge {
    pub(super) fn new(meter: Box<dyn Meter>, grant: Grant) -> Self {
        let now = Instant::now();
        Self {
            meter,
            grant,
            pressure: Pressure::None,
            grant_at: now + grant::EVERY,
            used_at: Some(now),
            slim_at: None,
            tell_at: now,
            asked_until: None,
        }
    }
}

impl Conductor {
    /// Fits the number of workers and what they begin to what may be used, and tells the agent in time that more is
    /// needed.
    pub(super) async fn look_around(&mut self) {
        if self.gauge.slim_at.take_if(|at| Instant::now() >= *at).is_some() {
            let bytes = outrider_os::image::give_back();
            tracing::debug!(bytes, "gave back what only starting needed");
        }
        if self.fit_to_grant() {
            let stats = self.stats().await;
            self.tell(FromProxy::Stats { id: 0, stats });
        }
    }

    /// Whether the limit is so near that the agent should know.
    fn fit_to_grant(&mut self) -> bool {
        let (now, gauge) = (Instant::now(), &mut self.gauge);
        let used = gauge.used_at.is_some_and(|at| now >= at).then(|| gauge.meter.used());
        // Before anything is given up or refused for a limit, it is asked whether it is still that: whoever set it may
        // have raised it, because memory grew.
        let level = used.map(|used| pressure::level(gauge.pressure, used, gauge.grant.memory));
        if level.is_some_and(|level| {
            level > gauge.pressure
                || level > Pressure::None && now + grant::EVERY >= gauge.grant_at + grant::SOON
        }) {
            gauge.grant_at = now;
        }
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
        let mut near = false;
        if gauge.used_at.is_some_and(|at| now >= at) {
            let (used, limit) = (used.unwrap_or_else(|| gauge.meter.used()), gauge.grant.memory);
            gauge.used_at = pressure::next_look(used, limit).map(|wait| now + wait);
            let mut level = pressure::level(gauge.pressure, used, limit);
            if level < Pressure::Shedding {
                gauge.asked_until = None;
            } else if gauge.pressure < Pressure::Shedding && !pressure::is_full(used, limit) {
                let until = *gauge.asked_until.get_or_insert_with(|| {
                    gauge.tell_at = now;
                    now + pressure::ASK
                });
                if now < until {
                    level = Pressure::Saving;
                    gauge.used_at = Some(until);
                }
            }
            near = pressure::is_near(used, limit) && (now >= gauge.tell_at || level > gauge.pressure);
            if near {
                gauge.tell_at = now + pressure::TELL;
            }
            if level != gauge.pressure {
                gauge.pressure = level;
                tracing::warn!(used, limit, pressure = ?gauge.pressure, "memory");
                self.crew.feel(gauge.pressure);
            }
        }
        near
    }
}
