//! How near to its limit of memory a process is, and how soon to look again.
//!
//! ```text
//!        ┌── 85 % ──►        ┌── 92 % ──►
//!   None              Saving             Shedding
//!        ◄── 80 % ──┘        ◄── 88 % ──┘
//! ```
//! Holds: without a limit there is no pressure; a step back needs more room than the step forward left, so that two
//! values near a threshold do not alternate. Does not: measure.

use std::time::Duration;

use outrider_handover::Pressure;

/// Shares of the limit, in percent: where a level begins, and where it ends again.
const SAVING: [u64; 2] = [85, 80];
const SHEDDING: [u64; 2] = [92, 88];

/// Percent of the limit from which whoever sets it is told what is used without having asked: where the agent lets it
/// grow (`supervise::size`, `grow_at`).
const NEAR: u64 = 80;

/// Least time between two times of telling that.
pub const TELL: Duration = Duration::from_millis(100);

/// How long nothing is refused after telling it, for the limit may be raised by then: an agent needs some two
/// milliseconds.
pub const ASK: Duration = Duration::from_millis(10);

/// Percent of the limit from which nothing waits for that.
const FULL: u64 = 97;

/// Share of the limit and time between two looks up to there. Memory grows by megabytes in milliseconds when many
/// requests come at once.
const LOOKS: [(u64, Duration); 3] =
    [(50, Duration::from_secs(2)), (75, Duration::from_millis(250)), (u64::MAX, Duration::from_millis(50))];

fn percent(used: u64, limit: u64) -> u64 {
    used.saturating_mul(100) / limit.max(1)
}

/// The level after `before` with so many bytes of `limit` in use.
pub fn level(before: Pressure, used: u64, limit: Option<u64>) -> Pressure {
    let Some(limit) = limit else { return Pressure::None };
    let percent = percent(used, limit);
    let is = |level, [begins, ends]: [u64; 2]| percent >= if before >= level { ends } else { begins };
    if is(Pressure::Shedding, SHEDDING) {
        Pressure::Shedding
    } else if is(Pressure::Saving, SAVING) {
        Pressure::Saving
    } else {
        Pressure::None
    }
}

/// Whether so many bytes of `limit` are worth telling.
pub fn is_near(used: u64, limit: Option<u64>) -> bool {
    limit.is_some_and(|limit| percent(used, limit) >= NEAR)
}

/// Whether so many bytes of `limit` leave no time to ask for more.
pub fn is_full(used: u64, limit: Option<u64>) -> bool {
    limit.is_some_and(|limit| percent(used, limit) >= FULL)
}

/// How long until the next look; `None` if there is nothing to look at.
pub fn next_look(used: u64, limit: Option<u64>) -> Option<Duration> {
    let percent = percent(used, limit?);
    LOOKS.iter().find(|(upto, _)| percent < *upto).map(|(_, wait)| *wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Pressure::{None as Free, Saving, Shedding};

    #[test]
    fn levels_begin_and_end_at_different_shares() {
        for (before, percent, after) in [
            (Free, 0, Free),
            (Free, 84, Free),
            (Free, 85, Saving),
            (Free, 92, Shedding),
            (Free, 1000, Shedding),
            (Saving, 91, Saving),
            (Saving, 92, Shedding),
            (Saving, 80, Saving),
            (Saving, 79, Free),
            (Shedding, 88, Shedding),
            (Shedding, 87, Saving),
            (Shedding, 79, Free),
        ] {
            assert_eq!(
                level(before, percent * 1_000_000, Some(100_000_000)),
                after,
                "{before:?} at {percent}"
            );
            assert_eq!(level(before, percent * 1_000_000, None), Free);
        }
        assert_eq!(level(Free, u64::MAX, Some(u64::MAX)), Free, "no overflow");
        assert_eq!(level(Free, 1, Some(0)), Shedding);
    }

    #[test]
    fn what_nears_the_limit_is_told_before_anything_is_saved() {
        assert!(!is_near(u64::MAX, None));
        assert!(!is_near(79, Some(100)) && is_near(80, Some(100)));
        for used in 0..=200 {
            assert!(level(Free, used, Some(100)) == Free || is_near(used, Some(100)), "{used}");
        }
    }

    #[test]
    fn looks_come_sooner_the_less_is_left() {
        assert_eq!(next_look(1 << 40, None), None);
        let waits: Vec<_> = (0..=200).filter_map(|percent| next_look(percent, Some(100))).collect();
        assert_eq!(waits.len(), 201);
        assert!(waits.is_sorted_by(|a, b| a >= b));
        assert!(waits[90] < Duration::from_millis(100));
    }
}
