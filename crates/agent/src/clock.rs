//! The clock of this host against the time that really passed: whether somebody set it.
//!
//! The kernel counts the time since boot, suspension included, and nobody can set that. The time of day is compared with
//! it again and again. Holds: a machine that was suspended is none whose clock was set; a clock that is slewed is not
//! either. What depends on the time of day is looked at again within [`LOOK`] by whoever has it, never slept for; this
//! is for people, who would look for the reason elsewhere. Does not: set a clock, or know the right time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Between two looks.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// Less than this between two looks is corrections of a clock that is right.
const SLACK: Duration = Duration::from_secs(5);
/// How long it is told that the clock was set.
const TOLD: Duration = Duration::from_secs(600);

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) wall: SystemTime,
    pub(crate) since_boot: Duration,
}

impl Reading {
    /// Of now.
    pub(crate) fn now() -> Self {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(boot.tv_sec).unwrap_or_default();
        let nanos = u32::try_from(boot.tv_nsec).unwrap_or_default();
        Self { wall: SystemTime::now(), since_boot: Duration::new(seconds, nanos) }
    }
}

/// Somebody set the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    /// Into the future.
    pub(crate) forward: bool,
    /// By how much.
    pub(crate) by: Duration,
    /// When, since boot.
    at: Duration,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Clock {
    state: Mutex<(Reading, Option<Jump>)>,
}

impl Clock {
    /// Compares with `now` from here on.
    pub(crate) fn new(now: Reading) -> Self {
        Self { state: Mutex::new((now, None)) }
    }

    /// Looks at both clocks; a jump since the last look.
    pub(crate) fn look(&self, now: Reading) -> Option<Jump> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut state.0, now);
        let passed = now.since_boot.saturating_sub(before.since_boot);
        let jump = match now.wall.duration_since(before.wall) {
            Ok(moved) if moved > passed => (true, moved - passed),
            Ok(moved) => (false, passed - moved),
            Err(back) => (false, back.duration().saturating_add(passed)),
        };
        if jump.1 <= SLACK {
            return None;
        }
        state.1 = Some(Jump { forward: jump.0, by: jump.1, at: now.since_boot });
        state.1
    }

    /// That the clock was set, in words, for a while after it.
    pub(crate) fn trouble(&self, now: Reading) -> Option<String> {
        let jump = self.state.lock().unwrap_or_else(PoisonError::into_inner).1?;
        let ago = now.since_boot.saturating_sub(jump.at);
        (ago < TOLD).then(|| format!("the clock of this host was set {jump}, {} ago", span(ago)))
    }

    /// Looks until dropped.
    pub(crate) async fn watch(&self) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Some(jump) = self.look(Reading::now()) {
                tracing::warn!("the clock of this host was set {jump}");
            }
        }
    }
}

impl std::fmt::Display for Jump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} by {}", if self.forward { "forward" } else { "back" }, span(self.by))
    }
}

/// A time as people say it.
pub(crate) fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(wall: u64, since_boot: u64) -> Reading {
        Reading { wall: UNIX_EPOCH + Duration::from_secs(wall), since_boot: Duration::from_secs(since_boot) }
    }

    #[test]
    fn a_clock_that_was_set_is_told_for_a_while() {
        let clock = Clock::new(at(1_000_000, 10));
        assert_eq!(clock.look(at(1_000_001, 11)), None);
        assert_eq!(clock.trouble(at(1_000_001, 11)), None);
        let jump = clock.look(at(1_086_402, 12)).unwrap();
        assert_eq!((jump.forward, jump.by), (true, Duration::from_secs(86_400)));
        assert_eq!(
            clock.trouble(at(1_086_402, 72)).unwrap(),
            "the clock of this host was set forward by 24 h, 60 s ago"
        );
        let jump = clock.look(at(403, 14)).unwrap();
        assert_eq!((jump.forward, jump.by.as_secs()), (false, 1_086_001));
        assert_eq!(clock.trouble(at(403, 14 + 600)), None);
    }

    #[test]
    fn suspension_and_corrections_are_no_jumps() {
        let clock = Clock::new(at(1_000_000, 10));
        assert_eq!(clock.look(at(1_030_000, 30_010)), None, "both clocks went on while the machine slept");
        assert_eq!(clock.look(at(1_030_004, 30_011)), None);
        assert_eq!(clock.look(at(1_030_001, 30_012)), None);
        assert_eq!(clock.trouble(at(1_030_001, 30_012)), None);
    }
}
