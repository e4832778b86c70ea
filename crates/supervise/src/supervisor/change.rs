//! From one generation to the next while one serves: upgrade, rollback, restart.

use super::*;
use crate::gate::{Failure, Sample, Verdict};
use crate::status::Quarantined;

impl Change {
    /// Whether it leads to what ran well before, so that it is not given up.
    pub(super) fn goes_back(&self) -> bool {
        !matches!(self.cause, Cause::Upgrade | Cause::Restart)
            && !matches!(self.step, Step::PuttingBack { .. })
    }
}

impl Supervisor {
    pub(super) fn quarantined(&self, target: &Target) -> Option<&Quarantined> {
        self.memory.quarantined.iter().find(|quarantined| quarantined.matches(target))
    }

    /// Does not try `target` again; `instead` is what ran where it failed.
    pub(super) fn quarantine(&mut self, target: &Target, instead: &Target, reason: Cause) {
        if target == instead || self.quarantined(target).is_some() {
            return;
        }
        let same_release = (&target.engine, &target.release) == (&instead.engine, &instead.release);
        let quarantined = Quarantined {
            engine: Arc::clone(&target.engine),
            release: Arc::clone(&target.release),
            shape: same_release.then(|| Arc::clone(&target.shape)),
            reason,
        };
        self.memory.good.retain(|good| !quarantined.matches(good));
        if self.memory.quarantined.len() >= crate::MAX_QUARANTINED {
            self.memory.quarantined.remove(0);
        }
        self.memory.quarantined.push(quarantined);
    }

    pub(super) fn remember_good(&mut self, target: &Target) {
        self.memory.good.retain(|good| good != target);
        self.memory.good.insert(0, target.clone());
        self.memory.good.truncate(crate::MAX_GOOD);
    }

    /// What ran at all is better than nothing when what is wanted does not.
    pub(super) fn remember_ran(&mut self, generation: Generation) {
        let Some(process) = self.processes.get(&generation) else { return };
        self.ran.retain(|ran| *ran != process.target);
        self.ran.insert(0, process.target.clone());
        self.ran.truncate(crate::MAX_GOOD);
    }

    /// Somebody accepts, or was told to and may do so already.
    fn accepts_or_will(&self) -> bool {
        let told = |generation| self.in_state(generation, &[State::Opening]);
        self.serving.is_some() || self.replacement.is_some_and(told)
    }

    fn ran_here(&self, target: &Target) -> bool {
        self.memory.good.contains(target) || self.ran.contains(target)
    }

    pub(super) fn on_probation(&self) -> bool {
        let step = self.change.as_ref().map(|change| &change.step);
        matches!(step, Some(Step::Probation { .. } | Step::PuttingBack { .. }))
    }

    /// What serves, or is about to.
    fn running(&self) -> Option<Target> {
        let process = self.processes.get(&self.serving.or(self.replacement)?)?;
        Some(process.target.clone())
    }

    pub(super) fn upgrade(&mut self, target: Target) {
        if self.stop.is_some() {
            return self.out.push(Effect::Refused(Refusal::Stopping));
        }
        if self.target.is_none() {
            return self.start(target);
        }
        if let Some(quarantined) = self.quarantined(&target).cloned() {
            let quarantined = Box::new(quarantined);
            return self.out.push(Effect::Refused(Refusal::Quarantined { target, quarantined }));
        }
        let arriving = self.change.as_ref().is_some_and(|change| {
            change.to == target && !matches!(change.step, Step::PuttingBack { again: false, .. })
        });
        self.queued = if arriving { None } else { Some(Queued::Upgrade(target)) };
    }

    pub(super) fn restart(&mut self) {
        if self.stop.is_some() {
            return self.out.push(Effect::Refused(Refusal::Stopping));
        }
        if self.target.is_none() {
            return self.out.push(Effect::Refused(Refusal::NotStarted));
        }
        if self.serving.is_none() {
            // One is started anyway; somebody who asks does not want to wait for it.
            self.crashes.hurry(self.now);
        }
        if self.serving.is_some() || self.change.is_some() {
            self.queued.get_or_insert(Queued::Restart);
        }
    }

    /// Begins what is queued, as soon as it may.
    pub(super) fn start_next_change(&mut self) {
        let waits = |change: &Change| matches!(change.step, Step::Waiting { .. });
        let free = self.change.is_none();
        match self.queued.clone() {
            // What only waits to be tried again makes room for what is newer.
            Some(Queued::Upgrade(to)) if free || self.change.as_ref().is_some_and(waits) => {
                self.start_upgrade(to);
            }
            Some(Queued::Restart) if free && self.draining() < self.policy.max_draining => {
                self.queued = None;
                let serving = self.serving.and_then(|generation| self.processes.get(&generation));
                if let Some(to) = serving.map(|process| process.target.clone()) {
                    self.begin(Cause::Restart, to.clone(), to);
                }
            }
            _ => {}
        }
    }

    fn start_upgrade(&mut self, to: Target) {
        if let Some(quarantined) = self.quarantined(&to).cloned() {
            self.queued = None;
            let quarantined = Box::new(quarantined);
            return self.out.push(Effect::Refused(Refusal::Quarantined { target: to, quarantined }));
        }
        match self.running() {
            Some(running) if running == to => {
                self.change = None;
                self.target = Some(to);
            }
            // Something proven serves or will in a moment; what is new has to wait for its turn.
            Some(from) if self.accepts_or_will() || self.ran_here(&from) && !self.crashes.looping() => {
                if self.draining() >= self.policy.max_draining {
                    return;
                }
                self.target = Some(to.clone());
                self.begin(Cause::Upgrade, from, to);
            }
            _ => {
                self.change = None;
                self.replace_at_once(to);
            }
        }
        self.queued = None;
    }

    /// Nobody serves and nothing is worth waiting for.
    fn replace_at_once(&mut self, to: Target) {
        let superseded = self.replacement.take();
        self.crashes.clear();
        let generation = self.replace_with(&to);
        self.target = Some(to);
        if let Some(superseded) = superseded {
            self.drain(superseded, Duration::ZERO, Cause::Superseded, Next::ServedBy(generation));
        }
    }

    fn begin(&mut self, cause: Cause, from: Target, to: Target) -> Generation {
        let candidate = self.spawn(&to, true);
        self.change =
            Some(Change { cause, from, to, attempt: 1, undo: false, step: Step::Preparing { candidate } });
        candidate
    }

    /// The candidate accepts.
    pub(super) fn take_over(&mut self, candidate: Generation) {
        let Some(change) = self.change.take() else { return };
        let old = self.serving.replace(candidate);
        self.crashes.cancel();
        if let Some(slower) = self.replacement.take() {
            // It may have become ready this moment, so it is not simply killed.
            self.drain(slower, self.policy.drain, Cause::Superseded, Next::ServedBy(candidate));
        }
        self.took_over(candidate, change.cause.clone());
        self.remember_ran(candidate);
        if change.cause == Cause::Upgrade && (change.undo || !self.policy.probation.is_zero()) {
            let undo = change.undo;
            self.change = Some(change);
            self.begin_probation(old, candidate);
            if undo {
                self.take_back(Cause::Rollback, false);
            }
        } else if let Some(old) = old {
            self.drain(old, self.drain_time(&change.cause), change.cause, Next::ServedBy(candidate));
        }
    }

    /// What open connections get of a generation that is replaced for this cause.
    fn drain_time(&self, cause: &Cause) -> Duration {
        match cause {
            Cause::Upgrade | Cause::Rollback | Cause::Restart => self.policy.drain,
            _ => self.policy.drain_failed,
        }
    }

    pub(super) fn begin_probation(&mut self, reserve: Option<Generation>, candidate: Generation) {
        let nothing = History::default();
        let history = |generation: Option<Generation>| {
            let process = generation.and_then(|generation| self.processes.get(&generation));
            process.map_or(&nothing, |process| &process.history)
        };
        let before = history(Some(candidate)).latest().clone();
        let gate = Gate::new(self.policy.gate.clone(), history(reserve), before);
        let until = self.now + self.policy.probation;
        if let Some(change) = &mut self.change {
            change.step = Step::Probation { reserve, until, over: false, gate: Box::new(gate) };
        }
        if let Some(reserve) = reserve.filter(|reserve| !self.in_state(*reserve, &[State::Paused])) {
            self.pause(reserve);
        }
    }

    pub(super) fn sample(&mut self, generation: Generation, sample: &Sample) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        process.history.add(self.now.saturating_duration_since(process.born), sample);
        let Some(Change { step: Step::Probation { reserve, gate, over, .. }, .. }) = &mut self.change else {
            return;
        };
        if *reserve == Some(generation) {
            gate.predecessor(sample);
        } else if self.serving == Some(generation) {
            gate.candidate(sample);
            let over = *over;
            match gate.verdict() {
                Verdict::Fail(failure) => self.gate_failed(failure),
                Verdict::Pass if over => self.passed(),
                Verdict::Pass | Verdict::Wait => {}
            }
        }
    }

    /// Whatever of a change waits for a time.
    pub(super) fn change_due(&mut self) {
        let (now, policy) = (self.now, self.policy.clone());
        let draining = self.draining();
        let Some(change) = &mut self.change else { return };
        match &mut change.step {
            Step::Waiting { until } if *until <= now => {
                if draining >= policy.max_draining {
                    *until = now + policy.pause.max(Duration::from_millis(1));
                    return;
                }
                let to = change.to.clone();
                let candidate = self.spawn(&to, true);
                if let Some(change) = &mut self.change {
                    change.step = Step::Preparing { candidate };
                }
            }
            Step::Probation { until, over, gate, .. } if *until <= now => match gate.verdict() {
                Verdict::Fail(failure) => self.gate_failed(failure),
                Verdict::Wait if !*over && policy.probation_max > policy.probation => {
                    *over = true;
                    *until = now + (policy.probation_max - policy.probation);
                }
                Verdict::Wait | Verdict::Pass => self.passed(),
            },
            _ => {}
        }
    }

    fn passed(&mut self) {
        let Some(change) = self.change.take() else { return };
        let Step::Probation { reserve, .. } = change.step else { return };
        let Some(serving) = self.serving else { return };
        if self.quarantined(&change.from).is_none() {
            self.remember_good(&change.from);
        }
        self.remember_good(&change.to);
        self.record(serving, Happened::Passed, change.cause.clone(), Next::Nothing);
        if let Some(reserve) = reserve {
            self.drain(reserve, self.policy.drain, change.cause, Next::ServedBy(serving));
        }
        let until = self.now + self.policy.young;
        self.young = Some(Young { target: change.to, from: change.from, until, crashes: 0 });
    }

    fn gate_failed(&mut self, failure: Failure) {
        self.take_back(Cause::Probation(failure), false);
    }

    /// The generation on probation goes; what was before it comes back first. `again`: and is followed by another
    /// attempt.
    fn take_back(&mut self, cause: Cause, again: bool) -> Next {
        let Some(mut change) = self.change.take() else { return Next::Nothing };
        let Step::Probation { reserve, .. } = change.step else { return Next::Nothing };
        if !again {
            self.quarantine(&change.to, &change.from, cause.clone());
            self.target = Some(change.from.clone());
        }
        if let Some(reserve) = reserve {
            change.step = Step::PuttingBack { reserve, again, why: cause };
            self.change = Some(change);
            self.accept(reserve);
            return Next::PutBack(reserve);
        }
        let to = change.from.clone();
        let generation = if self.serving.is_some() {
            self.begin(cause, change.to, to.clone())
        } else {
            if again {
                self.wait(change);
            }
            self.replace_with(&to)
        };
        Next::RolledBack { to, generation }
    }

    /// Tries a change again after a pause.
    fn wait(&mut self, mut change: Change) -> Duration {
        let pause = self.pause_before(change.attempt);
        change.attempt = change.attempt.saturating_add(1);
        change.step = Step::Waiting { until: self.now + pause };
        self.change = Some(change);
        pause
    }

    /// The reserve accepts again.
    pub(super) fn put_back(&mut self, reserve: Generation) {
        let Some(change) = self.change.take() else { return };
        let Step::PuttingBack { again, why, .. } = &change.step else { return };
        let failed = self.serving.replace(reserve);
        self.record(reserve, Happened::PutBack, why.clone(), Next::Nothing);
        if let Some(failed) = failed {
            self.drain(failed, self.drain_time(why), why.clone(), Next::PutBack(reserve));
        }
        if *again {
            self.wait(change);
        }
    }

    /// The candidate went before it accepted.
    pub(super) fn candidate_failed(&mut self, cause: &Cause) -> Next {
        let Some(change) = self.change.take() else { return Next::Nothing };
        let may_pass = match cause {
            Cause::FetchFailed(_) => true,
            Cause::StartFailed { blame, .. } => *blame == crate::Blame::Host,
            Cause::Crashed(exit) => exit.is_outside_kill() && change.attempt < self.policy.attempts,
            _ => false,
        };
        if may_pass && !change.undo || change.goes_back() {
            return Next::TriedAgain { pause: self.wait(change) };
        }
        if change.cause == Cause::Upgrade {
            self.quarantine(&change.to, &change.from, cause.clone());
            self.target = Some(change.from.clone());
            // It was to be replaced because what serves is bad too.
            if let Some(good) = self.good_besides(&change.from)
                && self.quarantined(&change.from).is_some()
                && self.serving.is_some()
            {
                self.target = Some(good.clone());
                self.begin(Cause::Rollback, change.from, good);
            }
        }
        self.serving.map_or(Next::Nothing, Next::ServedBy)
    }

    /// The one that was kept to be put back went.
    pub(super) fn reserve_lost(&mut self, target: &Target, ready: bool, cause: &Cause) -> Next {
        let Some(mut change) = self.change.take() else { return Next::Nothing };
        match (&mut change.step, self.serving) {
            (Step::Probation { reserve, .. }, serving) => {
                *reserve = None;
                self.change = Some(change);
                serving.map_or(Next::Nothing, Next::ServedBy)
            }
            // The bad one still serves: better than nobody until a new process of the good one is ready.
            (Step::PuttingBack { why, .. }, Some(_)) => {
                let (why, to) = (why.clone(), change.from);
                let generation = self.begin(why, change.to, to.clone());
                Next::RolledBack { to, generation }
            }
            (Step::PuttingBack { again: true, .. }, None) => {
                self.wait(change);
                self.recover(target, ready, cause)
            }
            (_, None) => self.recover(target, ready, cause),
            (_, Some(serving)) => Next::ServedBy(serving),
        }
    }

    /// The one that served went.
    pub(super) fn serving_lost(&mut self, target: &Target, ready: bool, cause: &Cause) -> Next {
        match self.change.as_ref().map(|change| (&change.step, change.attempt)) {
            Some((Step::Probation { .. }, attempt)) => {
                let killed = matches!(cause, Cause::Crashed(exit) if exit.is_outside_kill());
                self.take_back(cause.clone(), killed && attempt < self.policy.attempts)
            }
            Some((Step::PuttingBack { reserve, .. }, _)) => Next::PutBack(*reserve),
            _ => self.recover(target, ready, cause),
        }
    }

    pub(super) fn roll_back(&mut self) {
        if self.stop.is_some() {
            return self.out.push(Effect::Refused(Refusal::Stopping));
        }
        let Some(target) = self.target.clone() else {
            return self.out.push(Effect::Refused(Refusal::NotStarted));
        };
        match self.change.take() {
            Some(change) if matches!(change.step, Step::Probation { .. }) => {
                self.queued = None;
                self.change = Some(change);
                self.take_back(Cause::Rollback, false);
            }
            Some(change) if change.goes_back() || matches!(change.step, Step::PuttingBack { .. }) => {
                self.change = Some(change);
                self.out.push(Effect::Refused(Refusal::RollingBack));
            }
            // It may accept already, and even alone: first it takes over, then it is taken back.
            Some(mut change) if self.opens(&change) => {
                self.queued = None;
                change.undo = true;
                self.change = Some(change);
            }
            Some(change) => {
                self.queued = None;
                self.quarantine(&change.to, &change.from, Cause::Rollback);
                self.target = Some(change.from);
                if let Step::Preparing { candidate } = change.step {
                    let next = self.serving.map_or(Next::Nothing, Next::ServedBy);
                    self.drain(candidate, self.policy.drain, Cause::Rollback, next);
                }
            }
            None => self.roll_back_from(target),
        }
    }

    fn opens(&self, change: &Change) -> bool {
        let Step::Preparing { candidate } = &change.step else { return false };
        self.in_state(*candidate, &[State::Opening])
    }

    fn roll_back_from(&mut self, target: Target) {
        let running = self.running();
        if let Some(running) = running.clone().filter(|running| *running != target) {
            // What ran before has been started already because the target crashes.
            self.quarantine(&target, &running, Cause::Rollback);
            self.target = Some(running);
            self.queued = None;
            return;
        }
        let Some(before) = self.good_besides(&target) else {
            return self.out.push(Effect::Refused(Refusal::NothingBefore));
        };
        self.queued = None;
        self.quarantine(&target, &before, Cause::Rollback);
        if self.serving.is_some() {
            self.target = Some(before.clone());
            self.begin(Cause::Rollback, target, before);
        } else {
            self.replace_at_once(before);
        }
    }
}
