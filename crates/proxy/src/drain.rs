//! The one clock of a drain.
//!
//! ```text
//! begin                     parting                closing      deadline     over
//!   │ every response is the   │ HTTP connections     │ WebSockets │ the rest   │
//!   │ last on its connection; │ that brought no      │ are told   │ ends, and  │
//!   │ idle ones wait for the  │ request since the    │            │ that is    │
//!   │ next request            │ begin are closed     │            │ reported   │
//! ```
//! Closing an idle HTTP/1.1 connection can always hit a request that is on its way, which is then lost: the protocol
//! has no word for it. So idle connections are kept until they bring their next request, whose response ends
//! them. One that has brought none for a minute is closed like any that is idle for long, so that HTTP leaves a process
//! soon, however long its WebSockets and streams of bytes may stay. Those have no end that could be waited for, so they
//! get all of the time: nothing of them ends before the deadline but by a WebSocket's own closing handshake. Holds: every
//! moment is derived from the deadline, which only ever moves forward. Does not: read a clock, or close anything.

use std::time::{Duration, Instant};

use crate::worker::{Scope, Stage};

/// What an HTTP connection without a request gets: at most this, and at most half of the time there is.
const PARTING: Duration = Duration::from_secs(60);
/// Before the deadline, for closing in an orderly way: at most this, and at most a quarter of the time there is.
const CLOSING: Duration = Duration::from_secs(5);
/// After the deadline, for cutting and reporting: at most this, and at most a tenth. Less than what an agent waits
/// after the deadline before it kills.
const REPORTING: Duration = Duration::from_millis(250);

/// Beyond this nobody lives to see the end, nor can the clock say it.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A drain that goes on.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// What is drained.
    pub scope: Scope,
    parting: Instant,
    closing: Instant,
    deadline: Instant,
    over: Instant,
    stage: Stage,
}

impl Drain {
    /// Begins at `now`, and ends after `limit` what is open then.
    pub fn new(scope: Scope, now: Instant, limit: Duration) -> Self {
        let limit = limit.min(FOR_EVER);
        let deadline = now + limit;
        Self {
            scope,
            parting: now + PARTING.min(limit / 2),
            closing: deadline - CLOSING.min(limit / 4),
            deadline,
            over: deadline + REPORTING.min(limit / 10),
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
        let reached = if now >= self.deadline {
            Stage::Cut
        } else if now >= self.closing {
            Stage::Closing
        } else if now >= self.parting {
            Stage::Parting
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
            Stage::Open | Stage::Draining => self.parting,
            Stage::Parting => self.closing,
            Stage::Closing => self.deadline,
            Stage::Cut => self.over,
        }
    }

    /// Whether there is no time left, not even to report.
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.over
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
        for (limit, parting, closing, over) in [
            (600.0, 60.0, 595.0, 600.25),
            (20.0, 10.0, 15.0, 20.25),
            (4.0, 2.0, 3.0, 4.25),
            (1.0, 0.5, 0.75, 1.1),
            (0.0, 0.0, 0.0, 0.0),
        ] {
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
            let mut expected =
                vec![(Stage::Parting, at(parting)), (Stage::Closing, at(closing)), (Stage::Cut, at(limit))];
            if limit == 0.0 {
                expected = vec![(Stage::Cut, begin)];
            }
            assert_eq!(reached, expected, "{limit}: streams have all of it, and not a moment less");
            assert_eq!(now, at(over), "{limit}");
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
        assert_eq!(drain.next(), begin + 20 * SECOND);
        assert_eq!(drain.advance(begin + 20 * SECOND), Some(Stage::Parting));
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
