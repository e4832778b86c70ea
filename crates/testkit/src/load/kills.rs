//! What was open in a process when that process was killed: the only losses that a kill excuses.
//!
//! ```text
//!          kill          gone              NOTICE
//!  ──sent───┼─────ended───┼────────────────────┼──►    in flight: lost with the process
//!           │      sent───┼──ended             │       in flight too: the process was there when it was sent
//!           │             │   sent──ended      │       a loss like any other
//! ```
//! Holds: only what breaks off is excused. A refused connection, a request that nobody answers, one that the upstream
//! saw twice and an answer that is wrong never are, whenever they happen. Does not: kill anything.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::tally::{Kind, Outcome};

/// How long after a process has gone the end of its connections may be seen here. The kernel ends them with it; the
/// rest is other programs of the machine, which run meanwhile.
const NOTICE: Duration = Duration::from_secs(1);
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
}

/// Kills of processes that connections of a run lead through.
#[derive(Clone, Debug, Default)]
pub struct Kills(Arc<Mutex<Vec<Kill>>>);

impl Kills {
    /// Runs `kill`, which must return when the process is gone. All connections of these kinds lead through it.
    pub fn during<T>(&self, kinds: &[Kind], kill: impl FnOnce() -> T) -> T {
        let at = self.begin(kinds, Instant::now());
        let outcome = kill();
        self.gone(at, Instant::now());
        outcome
    }

    fn begin(&self, kinds: &[Kind], from: Instant) -> usize {
        let mut kills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kills.len() < MOST_KILLS {
            kills.push(Kill { kinds: kinds.to_vec(), from, gone: None });
        }
        kills.len() - 1
    }

    fn gone(&self, at: usize, time: Instant) {
        if let Some(kill) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(at) {
            kill.gone = Some(time);
        }
    }

    /// Whether something that was begun and ended at these times was in flight in a process that was killed.
    pub(super) fn took(&self, kind: Kind, begun: Instant, ended: Instant) -> bool {
        let kills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kills.iter().rev().any(|kill| {
            kill.kinds.contains(&kind)
                && ended >= kill.from
                && kill.gone.is_none_or(|gone| begun <= gone && ended <= gone + NOTICE)
        })
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
        // (begun, ended, excused)
        let cases = [
            (0, 999, false),
            (0, 1000, true),
            (1000, 1005, true),
            (1009, 2010, true),
            (1011, 1012, false),
            (0, 2011, false),
        ];
        for (begun, ended, excused) in cases {
            assert_eq!(took(Kind::Http, begun, ended), excused, "{begun} to {ended}");
        }
        assert!(took(Kind::WebSocket, 0, 1001) && !took(Kind::Tcp, 0, 1001), "another kind");
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
