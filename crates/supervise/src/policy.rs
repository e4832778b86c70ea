//! The bounds of a proxy's life. All have a default that is safe to leave alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::gate::Limits;
use crate::size;

/// Times and counts. Durations are written in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// How long fetching and verifying a binary may take. A stuck download must not hold up newer targets.
    #[serde(with = "crate::millis")]
    pub fetch: Duration,
    /// From the start of a process until it is ready. Has no end for the first generation ever, which has no
    /// predecessor to go back to: nothing is gained by ending it.
    #[serde(with = "crate::millis")]
    pub warm_up: Duration,
    /// For the answer to "accept" and "pause". The answer is one turn of an event loop, so seconds mean a hang.
    #[serde(with = "crate::millis")]
    pub answer: Duration,
    /// How long a new release is compared with its predecessor, which stays ready to take back. Zero: not at all.
    #[serde(with = "crate::millis")]
    pub probation: Duration,
    /// Longest that probation is extended while the comparison asks to wait.
    #[serde(with = "crate::millis")]
    pub probation_max: Duration,
    /// What open connections of a replaced generation get. Long, because it costs only the memory of a process:
    /// a WebSocket that was open before an upgrade has this long.
    #[serde(with = "crate::millis")]
    pub drain: Duration,
    /// The same for a new release that was worse than its predecessor: what it still answers is answered badly.
    #[serde(with = "crate::millis")]
    pub drain_failed: Duration,
    /// From a drain's deadline until the process is killed.
    #[serde(with = "crate::millis")]
    pub grace: Duration,
    /// A killed process that has not ended is killed again after this (one in uninterruptible sleep cannot end).
    #[serde(with = "crate::millis")]
    pub kill_again: Duration,
    /// Draining generations at the same time; an upgrade is queued while there are as many. A crash is repaired
    /// all the same, and then the oldest draining one is killed.
    pub max_draining: usize,
    /// The window in which ends are counted as a crash loop.
    #[serde(with = "crate::millis")]
    pub crash_window: Duration,
    /// Crashes in the window until starts are paused. Fewer are repaired with no pause at all.
    pub crash_limit: usize,
    /// The same for processes that were ready and then killed by somebody's SIGKILL, SIGTERM, SIGINT, SIGHUP or
    /// SIGQUIT. They say nothing about the release, and a pause would only prolong what was done to it; the limit
    /// still bounds what a kill loop costs the host.
    pub kill_limit: usize,
    /// First pause in a crash loop; each further one is twice as long.
    #[serde(with = "crate::millis")]
    pub pause: Duration,
    /// Longest pause, before jitter shortens it.
    #[serde(with = "crate::millis")]
    pub max_pause: Duration,
    /// A generation that serves for so long makes its target good, and forgives all crashes before.
    #[serde(with = "crate::millis")]
    pub forgive: Duration,
    /// A release is young for so long after it passed probation.
    #[serde(with = "crate::millis")]
    pub young: Duration,
    /// Crashes of a young release until it is taken back. Finds what crashes too late for probation and too
    /// rarely for a crash loop.
    pub young_crashes: u32,
    /// Attempts at an upgrade whose candidate is killed by somebody, before the target is quarantined.
    pub attempts: u32,
    /// When a new release is worse than its predecessor.
    pub gate: Limits,
    /// How much memory it gets.
    pub size: size::Policy,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            fetch: Duration::from_secs(600),
            warm_up: Duration::from_secs(60),
            answer: Duration::from_secs(5),
            probation: Duration::from_secs(30),
            probation_max: Duration::from_secs(120),
            drain: Duration::from_secs(600),
            drain_failed: Duration::from_secs(30),
            grace: Duration::from_millis(500),
            kill_again: Duration::from_secs(1),
            max_draining: 3,
            crash_window: Duration::from_secs(60),
            crash_limit: 10,
            kill_limit: 300,
            pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(30),
            forgive: Duration::from_secs(60),
            young: Duration::from_secs(600),
            young_crashes: 3,
            attempts: 3,
            gate: Limits::default(),
            size: size::Policy::default(),
        }
    }
}
