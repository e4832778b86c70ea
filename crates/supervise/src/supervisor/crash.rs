//! When nobody serves: what to start, and when.

use super::*;
use crate::record::Blame;

/// Longest pause between starts that the host is to blame for: it may be well again at any moment, and trying costs
/// little.
const MAX_HOST_PAUSE: Duration = Duration::from_secs(5);

/// What is known of recent crashes.
#[derive(Clone, Debug, Default)]
pub(super) struct Crashes {
    /// When, the oldest first; no more than the limit.
    recent: VecDeque<Instant>,
    /// The same for processes that somebody killed.
    kills: VecDeque<Instant>,
    /// Crashes since a generation served well, however slowly they came.
    row: usize,
    /// Pauses so far in this loop; 0 outside of one.
    level: u32,
    /// Starts in a row that failed for want of something on the host.
    host: u32,
    next: Option<(Instant, Target)>,
    /// What was to run last and is not to be had, with the reason.
    absent: Option<(Target, Cause)>,
}

impl Crashes {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn any(&self) -> bool {
        self.level > 0 || self.row > 0 || !self.recent.is_empty() || !self.kills.is_empty()
    }

    pub(super) fn recent(&self, now: Instant, window: Duration) -> usize {
        let all = self.recent.iter().chain(&self.kills);
        all.filter(|at| now.saturating_duration_since(**at) < window).count()
    }

    pub(super) fn looping(&self) -> bool {
        self.level > 0
    }

    pub(super) fn next_start(&self) -> Option<Instant> {
        self.next.as_ref().map(|(at, _)| *at)
    }

    /// Forgets a start that was scheduled.
    pub(super) fn cancel(&mut self) {
        self.next = None;
    }

    /// A process of `target` could be started.
    pub(super) fn started(&mut self, target: &Target) {
        self.host = 0;
        self.absent.take_if(|(absent, _)| absent == target);
    }

    /// Why there is no process of `target`, if that is not that it crashes.
    pub(super) fn absent(&self, target: &Target) -> Option<&Cause> {
        self.absent.as_ref().filter(|(absent, _)| absent == target).map(|(_, cause)| cause)
    }

    /// Somebody asked for it now.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Some((at, _)) = &mut self.next {
            *at = now;
        }
    }
}

/// Counts one more in the window; whether that makes `limit`.
fn count(times: &mut VecDeque<Instant>, now: Instant, window: Duration, limit: usize) -> bool {
    times.push_back(now);
    while times.front().is_some_and(|at| now.saturating_duration_since(*at) >= window)
        || times.len() > limit.max(1)
    {
        times.pop_front();
    }
    times.len() >= limit.max(1)
}

/// Whether there was no process at all, because its program is not there or cannot be executed.
fn is_absence(cause: &Cause) -> bool {
    matches!(cause, Cause::FetchFailed(_) | Cause::StartFailed { .. })
}

impl Supervisor {
    /// The pause before the n-th attempt, spread by up to a half; none before attempt 0.
    pub(super) fn pause_before(&self, n: u32) -> Duration {
        if n == 0 {
            return Duration::ZERO;
        }
        let doubled = self.policy.pause.saturating_mul(1 << (n - 1).min(16));
        let jitter = if self.jitter.is_finite() { self.jitter.clamp(0.0, 1.0) } else { 0.0 };
        doubled.min(self.policy.max_pause).mul_f64(1.0 - 0.5 * jitter)
    }

    /// What to start when nobody serves: what is wanted, unless that is unproven and its predecessor is not.
    pub(super) fn safe_target(&self) -> Option<Target> {
        match &self.change {
            Some(change) if change.goes_back() => Some(change.to.clone()),
            Some(change) => Some(change.from.clone()),
            None => self.target.clone(),
        }
    }

    /// What ran well and is something else than `target`.
    pub(super) fn good_besides(&self, target: &Target) -> Option<Target> {
        let mut good = self.memory.good.iter();
        good.find(|good| *good != target && self.quarantined(good).is_none()).cloned()
    }

    /// What to try when `target` does not work: what ran well, or at least what ran.
    fn fallback(&self, target: &Target) -> Option<Target> {
        let ran = || {
            let mut ran = self.ran.iter();
            ran.find(|ran| *ran != target && self.quarantined(ran).is_none()).cloned()
        };
        self.good_besides(target).or_else(ran)
    }

    /// The generation that will serve soon although none was started for that.
    fn help(&self) -> Option<Generation> {
        match &self.change.as_ref()?.step {
            Step::PuttingBack { reserve, .. } => Some(*reserve),
            Step::Preparing { candidate } => {
                let process = self.processes.get(candidate)?;
                let safe = self.safe_target().is_some_and(|safe| safe == process.target);
                let soon = process.state == State::Opening || safe && process.state != State::Fetching;
                soon.then_some(*candidate)
            }
            _ => None,
        }
    }

    /// Nobody serves because what served, or was started to, has crashed.
    pub(super) fn recover(&mut self, lost: &Target, ready: bool, cause: &Cause) -> Next {
        if matches!(cause, Cause::StartFailed { blame: Blame::Host, .. }) {
            return self.host_failed();
        }
        let policy = &self.policy;
        let by_somebody = ready && matches!(cause, Cause::Crashed(exit) if exit.is_outside_kill());
        let (times, limit) = match by_somebody {
            true => (&mut self.crashes.kills, policy.kill_limit),
            false => (&mut self.crashes.recent, policy.crash_limit),
        };
        let limit_reached = count(times, self.now, policy.crash_window, limit);
        // A source that does not deliver is not asked ten times at once.
        let limit_reached = limit_reached || matches!(cause, Cause::FetchFailed(_));
        if !by_somebody && let Some(next) = self.young_crashed(lost, cause) {
            return next;
        }
        if let Some(generation) = self.help() {
            return Next::ServedBy(generation);
        }
        let Some(base) = self.safe_target() else { return Next::Nothing };
        if *lost == base {
            self.crashes.absent = is_absence(cause).then(|| (base.clone(), cause.clone()));
        }
        self.crashes.row = self.crashes.row.saturating_add(usize::from(!by_somebody));
        let looping = limit_reached || self.crashes.level > 0;
        // What never gets ready, or crashes every half minute, makes no fast loop and is no good all the same.
        let slow = self.crashes.row >= self.policy.crash_limit || !ready && *cause == Cause::NotReady;
        let other = self.fallback(&base).filter(|_| !by_somebody && (looping || slow));
        let skipped = u32::from(other.is_some());
        let target = match other {
            Some(other) if *lost == base => other,
            _ => base,
        };
        if !looping {
            return Next::Restarted(self.replace_with(&target));
        }
        self.crashes.level = self.crashes.level.saturating_add(1);
        // Another target is worth an attempt without a pause.
        let pause = self.pause_before(self.crashes.level - skipped);
        if pause.is_zero() {
            return Next::Restarted(self.replace_with(&target));
        }
        self.crashes.next = Some((self.now + pause, target));
        Next::BackedOff { pause }
    }

    /// The host had not what it takes to start a process. That says nothing of what was to be started: it is tried
    /// again, and nothing else instead of it.
    fn host_failed(&mut self) -> Next {
        if let Some(generation) = self.help() {
            return Next::ServedBy(generation);
        }
        let Some(target) = self.safe_target() else { return Next::Nothing };
        let pause = self.pause_before(self.crashes.host).min(MAX_HOST_PAUSE);
        self.crashes.host = self.crashes.host.saturating_add(1);
        if pause.is_zero() {
            return Next::Restarted(self.replace_with(&target));
        }
        self.crashes.next = Some((self.now + pause, target));
        Next::BackedOff { pause }
    }

    /// A release that is new here crashed once more: back, if that is enough.
    fn young_crashed(&mut self, lost: &Target, cause: &Cause) -> Option<Next> {
        let (now, limit) = (self.now, self.policy.young_crashes.max(1));
        let young = self.young.as_mut().filter(|young| young.target == *lost && now < young.until)?;
        young.crashes = young.crashes.saturating_add(1);
        if young.crashes < limit || self.change.is_some() || self.target.as_ref() != Some(lost) {
            return None;
        }
        let to = young.from.clone();
        if self.quarantined(&to).is_some() {
            return None;
        }
        self.young = None;
        self.quarantine(lost, &to, if is_absence(cause) { cause.clone() } else { Cause::CrashLoop });
        self.target = Some(to.clone());
        let generation = self.replace_with(&to);
        Some(Next::RolledBack { to, generation })
    }

    /// Starts a generation that accepts as soon as it is ready.
    pub(super) fn replace_with(&mut self, target: &Target) -> Generation {
        self.crashes.cancel();
        let generation = self.spawn(target, false);
        self.replacement = Some(generation);
        generation
    }

    /// The pause is over.
    pub(super) fn start_due(&mut self) {
        let due = self.crashes.next.take_if(|(at, _)| *at <= self.now);
        if let Some((_, target)) = due
            && self.serving.is_none()
            && self.replacement.is_none()
            && self.stop.is_none()
        {
            self.replace_with(&target);
        }
    }

    /// Whatever led here: when nobody serves, somebody is on the way.
    pub(super) fn ensure_progress(&mut self) {
        let waits = self.crashes.next.is_some();
        if self.serving.is_some() || self.replacement.is_some() || waits || self.help().is_some() {
            return;
        }
        if let Some(target) = self.safe_target() {
            self.replace_with(&target);
        }
    }

    /// When the generation that serves has done so for long enough to conclude something.
    pub(super) fn settles_at(&self) -> Option<Instant> {
        let process = self.processes.get(&self.serving?).filter(|_| self.target.is_some())?;
        let at = process.served? + self.policy.forgive;
        let proven = self.on_probation() || self.memory.good.first() == Some(&process.target);
        let news = !proven && self.quarantined(&process.target).is_none();
        let other = self.change.is_none() && self.target.as_ref() != Some(&process.target);
        (news || other || self.crashes.any()).then_some(at)
    }

    /// Forgives crashes, remembers what is good, and gives up a target whose predecessor works where it did not.
    pub(super) fn settle(&mut self) {
        if self.settles_at().is_none_or(|at| self.now < at) {
            return;
        }
        let serving = self.serving.and_then(|generation| self.processes.get(&generation));
        let Some(running) = serving.map(|process| process.target.clone()) else { return };
        let crashes = std::mem::take(&mut self.crashes);
        if self.change.is_none()
            && let Some(wanted) = self.target.clone().filter(|wanted| *wanted != running)
        {
            let why = crashes.absent(&wanted).cloned().unwrap_or(Cause::CrashLoop);
            self.quarantine(&wanted, &running, why);
            self.target = Some(running.clone());
        }
        if !self.on_probation() && self.quarantined(&running).is_none() {
            self.remember_good(&running);
        }
    }
}
