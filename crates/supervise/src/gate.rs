//! Whether a new release is worse than the one before it: pure.
//!
//! Data in: [`Sample`]s of the predecessor (before the take-over and while it is kept) and of the candidate. Data
//! out: a [`Verdict`]. Holds: nothing is concluded from few observations; a candidate is compared with what *this*
//! proxy did before, never with a number that suits other services. Does not: look at what upstreams answered, or at
//! process exits and hangs (those need no statistics; the supervisor acts on them).
//!
//! # What is compared
//! | what | fails when | catches |
//! |---|---|---|
//! | errors of the proxy's own | their share is surely larger than the predecessor's by [`Limits::own_margin`], seen in three intervals | 1 % of 503 |
//! | errors others can cause too ([`SHARED`]) | the same by [`Limits::shared_margin`], against the predecessor before *and* at the same time; without requests of the predecessor at the same time only if they began with the first request and never paused | a TLS or connect path that broke |
//! | time added | requests slower than the predecessor's median or 99th percentile by more than [`Limits::added`] are surely more, in at least half of ten or more intervals, and not for the predecessor at the same time | +200 ms, also on a part of the requests |
//! | whole time, if the engine does not tell what it added | the mean is above 1.5 × the predecessor's + [`Limits::added`] in four of five intervals | +200 ms on upstreams that answer within 0.2 s |
//! | memory | it is above the predecessor's peak × 1.5 + 16 MiB, and still grows as fast as before, more than new connections explain | a leak of about 1 MiB/s or more |
//!
//! "Surely" is one test everywhere: the lower Wilson bound of the candidate's share lies above the upper Wilson bound
//! of the predecessor's plus a margin, both at z = 3.3. Wilson's bounds are right for small counts and for shares
//! near 0, where the normal approximation is not. One look at z = 3.3 is wrong once in 2,000 on one side, and here both
//! bounds would have to be wrong at once; that leaves room for the sixty looks of a probation. The margin is for
//! differences that are real but too small to act on, the intervals are for bursts, which no test for independent
//! requests knows of.
//!
//! A proxy with little traffic passes by time: with no error in 10,000 requests before, 1 % is found after about a
//! thousand; with none in 100 before, all failing is found after five, in three intervals. What is too slow or too rare to be seen here is left to the crash loop, to the
//! memory limit and to the comparison across the fleet.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod histogram;
mod statistics;

pub use histogram::Histogram;
pub use statistics::Share;

/// Most reasons kept of one sample; the errors of the rest are summed as `other`.
pub const MAX_REASONS: usize = 64;

/// Reasons that an upstream, a caller, the load or what is declared can cause without any fault of the proxy.
pub const SHARED: &[&str] = &[
    "connect_failed",
    "connect_not_supported",
    "connect_timeout",
    "direct_response",
    "idle_timeout",
    "no_backends",
    "no_endpoints",
    "no_healthy_endpoints",
    "overload_connections",
    "overload_pending",
    "overload_requests",
    "overloaded",
    "protocol_not_supported",
    "request_timeout",
    "total_timeout",
    "unknown_service",
    "unsupported_transfer_coding",
    "unsupported_version",
    "upstream_closed_before_response",
    "upstream_closed_reused_connection",
    "upstream_header_too_large",
    "upstream_identity_mismatch",
    "upstream_no_websocket",
    "upstream_protocol_error",
    "upstream_reset",
    "upstream_tls_failed",
];

/// When a candidate is worse. Shares are in millionths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// For errors of the proxy's own: 0.2 %, a fifth of what must be found.
    pub own_margin: u32,
    /// For errors that others can cause too: 5 %, because upstreams are restarted during probations.
    pub shared_margin: u32,
    /// Fewer errors than this prove nothing.
    pub min_errors: u64,
    /// Errors must be seen in so many intervals between samples.
    pub min_intervals: u32,
    /// What a request may take longer: half of the 200 ms that must be found, several times what a busy host adds.
    #[serde(with = "crate::millis")]
    pub added: Duration,
    /// Memory below this is never too much, whatever the predecessor needed, in bytes.
    pub memory_floor: u64,
    /// What one open connection may need, in bytes: its buffers and TLS state.
    pub memory_connection: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            own_margin: 2_000,
            shared_margin: 50_000,
            min_errors: 5,
            min_intervals: 3,
            added: Duration::from_millis(100),
            memory_floor: 16 << 20,
            memory_connection: 64 << 10,
        }
    }
}

/// Numbers of one generation: counters since it was started, and gauges of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Requests answered.
    pub requests: u64,
    /// 5xx answers that the proxy made by itself, by reason; `unexplained` for those without.
    pub errors: BTreeMap<Arc<str>, u64>,
    /// From request head to response end, summed over all requests, in microseconds.
    pub latency_us: u64,
    /// The part of that which the proxy itself took, without waiting for the upstream. Empty if the engine does not
    /// tell.
    pub added: Histogram,
    /// Connections open now.
    pub connections: u64,
    /// Resident memory in bytes.
    pub resident: u64,
}

/// How a candidate is worse. Shares are in millionths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// It answers more requests with errors of its own making.
    Errors {
        /// The reason of most of them.
        reason: Arc<str>,
        /// Of its requests.
        share: u32,
        /// Of the predecessor's.
        before: u32,
    },
    /// It is slower.
    Latency {
        /// Share of its requests that are slower than `limit_ms`; or, if the engine does not tell what it adds, the
        /// share of intervals whose mean is.
        share: u32,
        /// Milliseconds.
        limit_ms: u64,
    },
    /// Its memory grows and does not stop.
    Memory {
        /// Resident bytes.
        resident: u64,
        /// The most its predecessor had.
        before: u64,
    },
}

fn percent(millionths: u32) -> f64 {
    f64::from(millionths) / 10_000.0
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errors { reason, share, before } => write!(
                f,
                "{:.2} % of requests answered with errors of its own, mostly {reason}, {:.2} % before",
                percent(*share),
                percent(*before)
            ),
            Self::Latency { share, limit_ms } => {
                write!(f, "{:.2} % of requests are slower than {limit_ms} ms", percent(*share))
            }
            Self::Memory { resident, before } => write!(
                f,
                "its memory grows without end: {} MiB now, at most {} MiB before",
                resident >> 20,
                before >> 20
            ),
        }
    }
}

/// What the samples say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing against it.
    Pass,
    /// Something looks wrong and is not sure yet.
    Wait,
    /// It is worse.
    Fail(Failure),
}

/// Counters of a stretch of time.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    requests: u64,
    own: u64,
    shared: u64,
    reasons: BTreeMap<Arc<str>, u64>,
    latency_us: u64,
    added: Histogram,
}

impl Counts {
    /// What happened between two samples of the same generation.
    pub fn between(earlier: &Sample, later: &Sample) -> Self {
        let mut counts = Self {
            requests: later.requests.saturating_sub(earlier.requests),
            latency_us: later.latency_us.saturating_sub(earlier.latency_us),
            added: later.added.since(&earlier.added),
            ..Self::default()
        };
        for (reason, errors) in &later.errors {
            let errors = errors.saturating_sub(earlier.errors.get(reason).copied().unwrap_or(0));
            if errors == 0 {
                continue;
            }
            let total = if SHARED.contains(&&**reason) { &mut counts.shared } else { &mut counts.own };
            *total = total.saturating_add(errors);
            counts.reasons.insert(Arc::clone(reason), errors);
        }
        counts
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            own: self.own.saturating_add(other.own),
            shared: self.shared.saturating_add(other.shared),
            reasons: BTreeMap::new(),
            latency_us: self.latency_us.saturating_add(other.latency_us),
            added: self.added.plus(&other.added),
        }
    }

    fn mean_us(&self) -> u64 {
        self.latency_us / self.requests.max(1)
    }

    fn worst(&self, shared: bool) -> Arc<str> {
        let of_kind = self.reasons.iter().filter(|(reason, _)| SHARED.contains(&&***reason) == shared);
        of_kind
            .max_by_key(|(_, errors)| **errors)
            .map_or_else(|| "other".into(), |(reason, _)| Arc::clone(reason))
    }
}

/// Sums the reasons beyond [`MAX_REASONS`].
pub(crate) fn bound(sample: &mut Sample) {
    let mut other = 0u64;
    while sample.errors.len() > MAX_REASONS {
        let Some((_, errors)) = sample.errors.pop_last() else { break };
        other = other.saturating_add(errors);
    }
    if other > 0 {
        let errors = sample.errors.entry("other".into()).or_default();
        *errors = errors.saturating_add(other);
    }
}

/// The counters of a generation over its last five to ten minutes, in constant space.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Where the stretch begins, and where the next one will.
    start: Sample,
    middle: Option<(Duration, Sample)>,
    latest: Sample,
    peak: u64,
}

impl History {
    /// How long until the older half is forgotten.
    const HALF: Duration = Duration::from_secs(300);

    /// Takes a sample in; `at` is the age of the generation.
    pub fn add(&mut self, at: Duration, sample: &Sample) {
        match &mut self.middle {
            None => self.middle = Some((at, sample.clone())),
            Some((since, middle)) if at.saturating_sub(*since) >= Self::HALF => {
                self.start = std::mem::replace(middle, sample.clone());
                *since = at;
            }
            Some(_) => {}
        }
        self.peak = self.peak.max(sample.resident);
        self.latest = sample.clone();
    }

    /// The latest sample.
    pub fn latest(&self) -> &Sample {
        &self.latest
    }

    fn counts(&self) -> Counts {
        Counts::between(&self.start, &self.latest)
    }
}

/// The comparison of one candidate with its predecessor.
#[derive(Clone, Debug)]
pub struct Gate {
    limits: Limits,
    before: Counts,
    /// The predecessor's last sample before the take-over, and what it did since.
    predecessor: Sample,
    during: Counts,
    /// What it had done when the candidate's last sample came.
    during_seen: Counts,
    /// What it did in those intervals in which the candidate met errors that others can cause.
    meanwhile: Share,
    /// No interval with requests passed without such errors.
    shared_always: bool,
    peak: u64,
    /// The candidate's first sample is zero: it was held until now.
    candidate: Sample,
    total: Counts,
    own_intervals: u32,
    shared_intervals: u32,
    /// Resident memory at each sample, without what open connections explain.
    unexplained: Vec<u64>,
    /// Means of intervals with requests: (mean in µs, requests).
    means: Vec<(u64, u64)>,
    /// The slow requests of each interval need the final threshold, so the histograms are kept.
    added: Vec<Histogram>,
}

/// Most intervals kept; beyond, the earlier ones are thinned.
const MAX_INTERVALS: usize = 128;

impl Gate {
    /// A comparison that begins at the take-over. `candidate` is its last sample before, zero for a held one.
    pub fn new(limits: Limits, predecessor: &History, candidate: Sample) -> Self {
        Self {
            limits,
            before: predecessor.counts(),
            predecessor: predecessor.latest.clone(),
            during: Counts::default(),
            during_seen: Counts::default(),
            meanwhile: Share::new(0, 0),
            shared_always: true,
            peak: predecessor.peak,
            candidate,
            total: Counts::default(),
            own_intervals: 0,
            shared_intervals: 0,
            unexplained: Vec::new(),
            means: Vec::new(),
            added: Vec::new(),
        }
    }

    /// A sample of the predecessor.
    pub fn predecessor(&mut self, sample: &Sample) {
        self.during = Counts::between(&self.predecessor, sample);
        self.peak = self.peak.max(sample.resident);
    }

    /// A sample of the candidate.
    pub fn candidate(&mut self, sample: &Sample) {
        let interval = Counts::between(&self.candidate, sample);
        self.candidate = sample.clone();
        let connections = self.limits.memory_connection.saturating_mul(sample.connections);
        thin(&mut self.unexplained);
        self.unexplained.push(sample.resident.saturating_sub(connections));
        if interval.requests == 0 && interval.own == 0 && interval.shared == 0 {
            return;
        }
        let seen = std::mem::replace(&mut self.during_seen, self.during.clone());
        if interval.shared > 0 {
            let shared = self.during.shared.saturating_sub(seen.shared);
            let requests = self.during.requests.saturating_sub(seen.requests);
            self.meanwhile = self.meanwhile.plus(Share::new(shared, requests));
        }
        self.shared_always &= interval.shared > 0;
        self.own_intervals += u32::from(interval.own > 0);
        self.shared_intervals += u32::from(interval.shared > 0);
        thin(&mut self.means);
        self.means.push((interval.mean_us(), interval.requests));
        thin(&mut self.added);
        let mut reasons = std::mem::take(&mut self.total.reasons);
        self.total = self.total.plus(&interval);
        for (reason, errors) in &interval.reasons {
            let sum = reasons.entry(Arc::clone(reason)).or_default();
            *sum = sum.saturating_add(*errors);
        }
        self.total.reasons = reasons;
        self.added.push(interval.added);
    }

    /// What the samples say so far.
    pub fn verdict(&self) -> Verdict {
        let checks = [self.errors(), self.shared_errors(), self.latency(), self.memory()];
        let mut waits = false;
        for check in checks {
            match check {
                Verdict::Fail(_) => return check,
                Verdict::Wait => waits = true,
                Verdict::Pass => {}
            }
        }
        if waits { Verdict::Wait } else { Verdict::Pass }
    }

    fn errors(&self) -> Verdict {
        let before = self.before.plus(&self.during);
        let ours = Share::new(self.total.own, self.total.requests);
        let theirs = Share::new(before.own, before.requests);
        let margin = f64::from(self.limits.own_margin) / 1e6;
        self.judge(ours, &[theirs], margin, self.own_intervals, false)
    }

    fn shared_errors(&self) -> Verdict {
        let before = self.before.plus(&self.during);
        let ours = Share::new(self.total.shared, self.total.requests);
        let all = Share::new(before.shared, before.requests);
        let margin = f64::from(self.limits.shared_margin) / 1e6;
        // What happens to both at the same time is not the candidate's doing.
        if self.meanwhile.of() >= 20 {
            return self.judge(ours, &[all, self.meanwhile], margin, self.shared_intervals, true);
        }
        // Nobody to ask. An upstream fails at any moment, a release from its first request on and without a pause.
        let from_the_start = self.shared_always && self.shared_intervals >= 10;
        match self.judge(ours, &[all], margin, self.shared_intervals, true) {
            Verdict::Fail(_) if !from_the_start => Verdict::Wait,
            verdict => verdict,
        }
    }

    fn judge(&self, ours: Share, theirs: &[Share], margin: f64, intervals: u32, shared: bool) -> Verdict {
        let few = ours.hits() < self.limits.min_errors || intervals < self.limits.min_intervals;
        if !few && theirs.iter().all(|theirs| ours.surely_above(*theirs, margin)) {
            return Verdict::Fail(Failure::Errors {
                reason: self.total.worst(shared),
                share: ours.millionths(),
                before: theirs.first().map_or(0, |theirs| theirs.millionths()),
            });
        }
        let looks_worse = theirs.iter().all(|theirs| theirs.known() && ours.rate() > theirs.rate() + margin);
        if ours.hits() > 0 && looks_worse { Verdict::Wait } else { Verdict::Pass }
    }

    fn latency(&self) -> Verdict {
        let theirs = self.before.added.plus(&self.during.added);
        if theirs.total() == 0 || self.total.added.total() == 0 {
            return self.whole_time();
        }
        let added_us = u64::try_from(self.limits.added.as_micros()).unwrap_or(u64::MAX);
        // Margins: half as many again may lie above the old median before the middle has moved; and one in a
        // hundred lies above the 99th percentile anyway.
        for (quantile, margin) in [(0.5, 0.25), (0.99, 0.01)] {
            let limit_us = theirs.quantile_us(quantile).saturating_add(added_us);
            let share = |histogram: &Histogram| Share::new(histogram.above(limit_us), histogram.total());
            let ours = share(&self.total.added);
            let busy = self.added.iter().filter(|interval| interval.total() > 0);
            let slow = self.added.iter().filter(|interval| interval.above(limit_us) > 0);
            let (busy, slow) = (busy.count(), slow.count());
            // A host that is too busy for some seconds makes every proxy slow: it has to last, and the predecessor
            // must not be as slow at the same time.
            let lasting = busy >= 10 && slow >= self.limits.min_intervals as usize && slow * 2 >= busy;
            let alone = ours.rate() > share(&self.during.added).rate() + margin;
            if lasting
                && alone
                && ours.hits() >= self.limits.min_errors
                && ours.surely_above(share(&theirs), margin)
            {
                return Verdict::Fail(Failure::Latency {
                    share: ours.millionths(),
                    limit_ms: limit_us / 1000,
                });
            }
        }
        Verdict::Pass
    }

    /// Coarser, for engines that tell only how long requests took as a whole: upstreams are part of that.
    fn whole_time(&self) -> Verdict {
        let added_us = u64::try_from(self.limits.added.as_micros()).unwrap_or(u64::MAX);
        let mut theirs = self.before.mean_us();
        if self.during.requests >= 20 {
            theirs = theirs.max(self.during.mean_us());
        }
        if self.before.requests < 20 || self.total.requests < 30 || self.means.len() < 5 {
            return Verdict::Pass;
        }
        let limit_us = theirs.saturating_add(theirs / 2).saturating_add(added_us);
        let slow = self.means.iter().filter(|(mean, _)| *mean > limit_us).count();
        if slow * 5 < self.means.len() * 4 {
            return Verdict::Pass;
        }
        let share = Share::new(slow as u64, self.means.len() as u64).millionths();
        Verdict::Fail(Failure::Latency { share, limit_ms: limit_us / 1000 })
    }

    fn memory(&self) -> Verdict {
        // Four quarters; the least of each is free of passing peaks.
        let quarter = self.unexplained.len() / 4;
        if quarter < 2 {
            return Verdict::Pass;
        }
        let least = |n: usize| {
            let end = if n == 3 { self.unexplained.len() } else { (n + 1) * quarter };
            self.unexplained[n * quarter..end].iter().copied().min().unwrap_or(0)
        };
        let least = [least(0), least(1), least(2), least(3)];
        let steps = [1, 2, 3].map(|n| least[n].saturating_sub(least[n - 1]));
        // What fills caches and pools slows down; what leaks does not.
        let grows = steps.iter().all(|step| *step > 0)
            && steps[2] >= 1 << 20
            && steps[2].saturating_mul(6) >= steps.iter().sum::<u64>();
        if !grows {
            return Verdict::Pass;
        }
        let limit = self.peak.saturating_add(self.peak / 2).saturating_add(self.limits.memory_floor);
        if least[3] <= limit {
            return Verdict::Wait;
        }
        Verdict::Fail(Failure::Memory { resident: self.candidate.resident, before: self.peak })
    }
}

/// Makes room for one more by dropping every other of the older half.
fn thin<T>(kept: &mut Vec<T>) {
    if kept.len() >= MAX_INTERVALS {
        let half = kept.len() / 2;
        let mut index = 0;
        kept.retain(|_| {
            index += 1;
            index > half || index % 2 == 0
        });
    }
}

#[cfg(test)]
mod tests;
