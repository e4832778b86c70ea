//! What was open in a process when that process was killed: the only losses that a kill excuses.
//!
//! ```text
//!          kill          gone              NOTICE
//!  ──sent───┼─────ended───┼────────────────────┼──►    in flight: lost with the process
//!           │      sent───┼──ended             │       in flight too: the process was there when it was sent
//!           │             │   sent──ended      │       a loss like any other
//! ```
//! NOTICE is counted in beats of the load: while its thread is not run, it cannot see when a connection ends. What was begun
//! before the kill was in that process and nowhere else, so for that it is longer: whoever relays may not be run either.
//!
//! Holds: only what breaks off is excused. A refused connection, a request that nobody answers, one that the upstream
//! saw twice and an answer that is wrong never are, whenever they happen. Does not: kill anything.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::PROGRESS;
use super::tally::{Kind, Outcome};

/// How long after a process has gone the end of its connections may be seen here, in time in which the load was run. The
/// kernel ends them with it; the rest is other programs of the machine, which run meanwhile.
const NOTICE: Duration = Duration::from_secs(1);
/// The same for what was begun before the kill: a proxy between this and that process may have to tell it.
const RELAYED: Duration = Duration::from_secs(5);
/// Kills that are remembered.
const MOST_KILLS: usize = 100_000;
/// What a proxy says of a request that was in flight in the proxy behind it. The body of an answer that is cut short is
/// said only by gRPC, whose trailers have room for it.
const BROKEN_OFF: [&str; 5] = [
    "upstream_body_incomplete",
    "upstream_closed_before_response",
    "upstream_closed_reused_connection",
    "upstream_reset",
    "upstream_tls_failed",
];

#[derive(Clone, Debug)]
struct Kill {
    kinds: Vec<Kind>,
    from: Instant,
    /// `None` while the process may still be there.
    gone: Option<Instant>,
    /// How long the load had been run since then at its last beat.
    ran: Duration,
}

impl Kill {
    /// How long the load has been run since the process had gone.
    fn ran(&self, beat: Option<Instant>, now: Instant) -> Duration {
        let Some(gone) = self.gone else { return Duration::ZERO };
        let since = beat.map_or(gone, |beat| beat.max(gone));
        self.ran + now.saturating_duration_since(since).min(PROGRESS)
    }

    fn took(&self, begun: Instant, ended: Instant, beat: Option<Instant>) -> bool {
        let notice = if begun < self.from { RELAYED } else { NOTICE };
        ended >= self.from && self.gone.is_none_or(|gone| begun <= gone && self.ran(beat, ended) <= notice)
    }
}

#[derive(Debug, Default)]
struct Told {
    kills: Vec<Kill>,
    /// The last one of the load.
    beat: Option<Instant>,
}

/// Kills of processes that connections of a run lead through.
#[derive(Clone, Debug, Default)]
pub struct Kills(Arc<Mutex<Told>>);

impl Kills {
    /// Runs `kill`, which must return when the process is gone. All connections of these kinds lead through it.
    pub fn during<T>(&self, kinds: &[Kind], kill: impl FnOnce() -> T) -> T {
        let at = self.begin(kinds, Instant::now());
        let outcome = kill();
        self.gone(at, Instant::now());
        outcome
    }

    fn begin(&self, kinds: &[Kind], from: Instant) -> usize {
        let mut told = self.told();
        if told.kills.len() < MOST_KILLS {
            told.kills.push(Kill { kinds: kinds.to_vec(), from, gone: None, ran: Duration::ZERO });
        }
        told.kills.len() - 1
    }

    fn gone(&self, at: usize, time: Instant) {
        if let Some(kill) = self.told().kills.get_mut(at) {
            kill.gone = Some(time);
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The load is run. Comes every [`PROGRESS`], or later.
    pub(super) fn beat(&self, now: Instant) {
        let mut told = self.told();
        let last = told.beat.replace(now);
        for kill in &mut told.kills {
            kill.ran = kill.ran(last, now);
        }
    }

    /// Whether something that was begun and ended at these times was in flight in a process that was killed.
    pub(super) fn took(&self, kind: Kind, begun: Instant, ended: Instant) -> bool {
        let told = self.told();
        let mut kills = told.kills.iter().rev();
        kills.any(|kill| kill.kinds.contains(&kind) && kill.took(begun, ended, told.beat))
    }
}

/// Whether this is how a request ends whose process ends.
pub(super) fn broken_off(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Incomplete(_) => true,
        Outcome::ByProxy(reason) => BROKEN_OFF.contains(&reason.as_str()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_in_flight_in_the_process_is_excused() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let kills = Kills::default();
        let took = |kind, begun, ended| kills.took(kind, at(begun), at(ended));
        assert!(!took(Kind::Http, 0, 2000));
        let first = kills.begin(&[Kind::Http, Kind::WebSocket], at(1000));
        assert!(took(Kind::Http, 0, 1500), "nobody has said yet that it is gone");
        kills.gone(first, at(1010));
        assert!(took(Kind::WebSocket, 0, 1001) && !took(Kind::Tcp, 0, 1001), "another kind");
        // (begun, ended, excused)
        let cases = [
            (0, 999, false),
            (0, 1000, true),
            (1000, 1005, true),
            (1009, 2010, true),
            (1011, 1012, false),
            (1000, 2011, false),
            (1009, 2011, false),
            (999, 6010, true),
            (0, 6011, false),
        ];
        let mut beats = (1..).map(|number| 200 * number).peekable();
        for (begun, ended, excused) in cases {
            while let Some(beat) = beats.next_if(|beat| *beat <= ended) {
                kills.beat(at(beat));
            }
            assert_eq!(took(Kind::Http, begun, ended), excused, "{begun} to {ended}");
        }
    }

    #[test]
    fn time_in_which_the_load_is_not_run_is_no_time_to_notice() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        // (beats since the process had gone, ended, excused)
        let cases: [(&[u64], u64, bool); 8] = [
            // The first thing it does after a while is to see the reset.
            (&[], 1000, true),
            (&[], 60_000, true),
            (&[60_000], 60_001, true),
            // It was not run for two seconds, and then for less than the rest, and for more.
            (&[2200, 2400, 2600, 2800], 3000, true),
            (&[2200, 2400, 2600, 2800, 3000], 3001, false),
            (&[200, 400, 600, 2800], 3000, true),
            (&[200, 400, 600, 2800, 3000], 3001, false),
            // Beats that were missed come at once, and are no time.
            (&[2200, 2200, 2200, 2200, 2200, 2200], 2201, true),
        ];
        for (beats, ended, excused) in cases {
            let kills = Kills::default();
            kills.beat(at(0));
            let kill = kills.begin(&[Kind::Tcp], at(0));
            kills.gone(kill, at(0));
            beats.iter().for_each(|beat| kills.beat(at(*beat)));
            assert_eq!(kills.took(Kind::Tcp, at(0), at(ended)), excused, "{beats:?}, {ended}");
            assert!(!kills.took(Kind::Tcp, at(1), at(ended)), "begun after it");
        }
    }

    #[test]
    fn only_an_end_is_excused() {
        let excused = [
            Outcome::Incomplete(String::new()),
            Outcome::ByProxy("upstream_reset".into()),
            Outcome::ByProxy("upstream_closed_before_response".into()),
            Outcome::ByProxy("upstream_body_incomplete".into()),
        ];
        let not = [
            Outcome::Complete,
            Outcome::Refused(String::new()),
            Outcome::Unanswered(String::new()),
            Outcome::ByProxy("no_endpoints".into()),
            Outcome::ByProxy("connect_failed".into()),
            Outcome::Upstream5xx(500),
            Outcome::Unexpected(404),
            Outcome::Wrong(String::new()),
        ];
        assert!(excused.iter().all(broken_off) && !not.iter().any(broken_off));
    }
}
