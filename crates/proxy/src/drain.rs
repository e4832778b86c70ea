//! The one clock of a drain.
//!
//! ```text
//! begin                                   closing            cutting  deadline
//!   │ every response is the last on its     │ idle connections │ the    │
//!   │ connection; idle ones wait for the    │ are closed,      │ rest   │
//!   │ next request, streams go on           │ WebSockets told  │ ends   │
//! ```
//! Closing an idle HTTP/1.1 connection can always hit a request that is on its way, which is then lost: the protocol
//! has no word for it. So idle connections are kept until they bring their next request, whose response ends
//! them, or until the deadline leaves no choice. A stream of bytes has no end that could be waited for, so it gets
//! all of the time. Holds: every moment is derived from the deadline, which only ever moves forward. Does not: read a
//! clock, or close anything.

use std::time::{Duration, Instant};

use crate::worker::{Scope, Stage};

/// Before the deadline, for closing in an orderly way: at most this, and at most a quarter of the time there is.
const CLOSING: Duration = Duration::from_secs(5);
/// Before the deadline, for cutting and reporting: at most this, and at most a tenth.
const CUTTING: Duration = Duration::from_millis(250);

/// A drain that goes on.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// What is drained.
    pub scope: Scope,
    closing: Instant,
    cutting: Instant,
    deadline: Instant,
    stage: Stage,
}

impl Drain {
    /// Begins at `now`, and ends at the latest after `limit`.
    pub fn new(scope: Scope, now: Instant, limit: Duration) -> Self {
        // A limit beyond what the clock can say is none that anybody lives to see.
        let deadline = now.checked_add(limit).unwrap_or(now + Duration::from_secs(u32::MAX.into()));
        let limit = deadline - now;
        Self {
            scope,
            closing: deadline - CLOSING.min(limit / 4),
            cutting: deadline - CUTTING.min(limit / 10),
            deadline,
            stage: Stage::Draining,
        }
    }

    /// Brings the end forward, so that it is at the latest after `limit` from `now`. Never puts it off.
    pub fn shorten(&mut self, now: Instant, limit: Duration) {
        let sooner = Self::new(self.scope, now, limit);
        if sooner.deadline < self.deadline {
            *self = Self { stage: self.stage, ..sooner };
        }
    }

    /// The stage that has been reached since the last look, if another has.
    pub fn advance(&mut self, now: Instant) -> Option<Stage> {
        let reached = if now >= self.cutting {
            Stage::Cut
        } else if now >= self.closing {
            Stage::Closing
        } else {
            Stage::Draining
        };
        let news = reached > self.stage;
        self.stage = self.stage.max(reached);
        news.then_some(reached)
    }

    /// When to look again.
    pub fn next(&self) -> Instant {
        match self.stage {
            Stage::Open | Stage::Draining => self.closing,
            Stage::Closing => self.cutting,
            Stage::Cut => self.deadline,
        }
    }

    /// Whether there is no time left.
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.deadline
    }

    /// Until the deadline.
    pub fn left(&self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn moments_are_derived_from_the_deadline() {
        let begin = Instant::now();
        for (limit, closing, cutting) in
            [(600.0, 595.0, 599.75), (20.0, 15.0, 19.75), (4.0, 3.0, 3.75), (1.0, 0.75, 0.9), (0.0, 0.0, 0.0)]
        {
            let at = |seconds: f64| begin + Duration::from_secs_f64(seconds);
            let mut drain = Drain::new(Scope::All, begin, Duration::from_secs_f64(limit));
            let mut reached = Vec::new();
            let mut now = begin;
            while !drain.is_over(now) || drain.stage != Stage::Cut {
                if let Some(stage) = drain.advance(now) {
                    reached.push((stage, now));
                }
                assert!(drain.next() >= now, "never looks back");
                now = drain.next();
            }
            let mut expected = vec![(Stage::Closing, at(closing)), (Stage::Cut, at(cutting))];
            expected.dedup_by_key(|(_, at)| *at);
            if limit == 0.0 {
                expected = vec![(Stage::Cut, begin)];
            }
            assert_eq!(reached, expected, "{limit}");
            assert_eq!(drain.deadline, at(limit));
        }
    }

    #[test]
    fn the_end_comes_forward_and_is_never_put_off() {
        let begin = Instant::now();
        let mut drain = Drain::new(Scope::Inbound, begin, 100 * SECOND);
        drain.shorten(begin + 10 * SECOND, 200 * SECOND);
        assert_eq!(drain.left(begin), 100 * SECOND);
        drain.shorten(begin + 10 * SECOND, 20 * SECOND);
        assert_eq!(drain.left(begin), 30 * SECOND);
        assert_eq!(drain.next(), begin + 25 * SECOND);
        assert_eq!(drain.advance(begin + 26 * SECOND), Some(Stage::Closing));
        drain.shorten(begin + 26 * SECOND, SECOND);
        assert_eq!(drain.advance(begin + 26 * SECOND), None, "what was reached stays");
        drain.shorten(begin + 26 * SECOND, Duration::ZERO);
        assert_eq!(drain.advance(begin + 26 * SECOND), Some(Stage::Cut));
        assert!(drain.is_over(begin + 26 * SECOND));
        let endless = Drain::new(Scope::All, begin, Duration::MAX);
        assert!(endless.left(begin) > 3600 * SECOND);
    }
}
