//! Taking over what an earlier agent started.

use super::*;
use crate::{Adoption, Found};

/// Most processes that are adopted in one supervisor's time; more than there can be.
const MAX_ADOPTED: usize = 64;

impl Supervisor {
    pub(super) fn adopt(&mut self, adoption: Adoption) {
        let Adoption { generation, target, state, ready, uptime, configuration, identity } = adoption;
        let own = self.first_own.is_some_and(|first| (first..self.next).contains(&generation.0));
        if own || self.adopted.len() >= MAX_ADOPTED || !self.adopted.insert(generation) {
            return;
        }
        self.number_used(generation);
        let now = self.now;
        let (state, held) = match (state, ready) {
            (Found::Accepting, true) => (State::Accepting, false),
            (Found::Accepting, false) => (State::Warming, false),
            (Found::Held, true) => (State::Held, true),
            (Found::Held, false) => (State::Warming, true),
            (Found::Paused, _) => (State::Paused, true),
            (Found::Draining, _) => (State::Draining, true),
        };
        let mut process = Process::new(target, state, held, now);
        process.born = now.checked_sub(uptime).unwrap_or(now);
        process.ready = ready;
        process.configuration = configuration;
        process.identity = identity;
        match state {
            State::Accepting => process.served = Some(now),
            State::Warming => process.due = Some(now + self.policy.warm_up),
            State::Draining => {
                // How much of its time is over is not known.
                let deadline = now + self.policy.drain;
                process.due = Some(deadline + self.policy.grace);
                process.leaving = Some(Leaving { cause: Cause::Superseded, next: Next::Nothing, deadline });
            }
            _ => {}
        }
        let has_accepted = matches!(state, State::Accepting | State::Paused | State::Draining);
        process.took_over = has_accepted;
        self.has_served |= has_accepted;
        self.processes.insert(generation, process);
        if has_accepted {
            self.remember_ran(generation);
        }
        if let Some(deadline) = self.stop {
            let within = deadline.saturating_duration_since(now);
            self.drain(generation, within, Cause::Stop, Next::Nothing);
        } else if self.target.is_some() {
            self.assign_adopted();
        }
        if let Some(within) = self.inbound_drain {
            self.out.push(Effect::DrainInbound { generation, within });
        }
    }

    /// Gives every adopted generation a part, or lets it go.
    pub(super) fn assign_adopted(&mut self) {
        if self.serving.is_none() {
            self.assign_serving();
        }
        if self.change.is_none()
            && let Some(serving) = self.serving.and_then(|g| self.processes.get(&g))
        {
            let running = serving.target.clone();
            self.assign_reserve(&running);
            self.assign_candidate(&running);
        }
        let serving = self.serving.or(self.replacement);
        for generation in self.free(|_| true) {
            let next = serving.map_or(Next::Nothing, Next::ServedBy);
            self.drain(generation, self.policy.drain, Cause::Superseded, next);
        }
    }

    /// Those without a part that fit, the newest first, those in quarantine last.
    fn free(&self, fits: impl Fn(&Process) -> bool) -> Vec<Generation> {
        let free = self.processes.iter().rev().filter(|(g, p)| self.part(**g) == Part::None && fits(p));
        let mut free: Vec<_> = free.collect();
        free.sort_by_key(|(_, process)| self.quarantined(&process.target).is_some());
        free.into_iter().map(|(generation, _)| *generation).collect()
    }

    fn assign_serving(&mut self) {
        if let Some(&newest) = self.free(|process| process.state == State::Accepting).first() {
            self.serving = Some(newest);
            self.took_over(newest, Cause::NobodyServed);
            self.remember_ran(newest);
            self.crashes.cancel();
            if let Some(slower) = self.replacement.take() {
                self.drain(slower, self.policy.drain, Cause::Superseded, Next::ServedBy(newest));
            }
            return;
        }
        if self.replacement.is_some() {
            return;
        }
        // One that served before comes first, then one that is ready, then whatever is on its way.
        for state in [State::Paused, State::Held, State::Warming] {
            if let Some(&newest) = self.free(|process| process.state == state).first() {
                self.crashes.cancel();
                self.replacement = Some(newest);
                if state != State::Warming {
                    self.accept(newest);
                }
                return;
            }
        }
    }

    /// Goes on with a probation: from its beginning, because nobody knows what was seen of it.
    fn assign_reserve(&mut self, running: &Target) {
        if self.policy.probation.is_zero()
            || self.memory.good.contains(running)
            || self.quarantined(running).is_some()
        {
            return;
        }
        let before = self.free(|process| {
            matches!(process.state, State::Accepting | State::Paused) && process.target != *running
        });
        let Some((reserve, serving)) = before.first().copied().zip(self.serving) else { return };
        let Some(from) = self.processes.get(&reserve).map(|process| process.target.clone()) else { return };
        self.change = Some(Change {
            cause: Cause::Upgrade,
            from,
            to: running.clone(),
            attempt: 1,
            undo: false,
            // Replaced at once.
            step: Step::Waiting { until: self.now },
        });
        self.begin_probation(Some(reserve), serving);
    }

    /// Goes on with a generation that was prepared for what is wanted.
    fn assign_candidate(&mut self, running: &Target) {
        let Some(to) = self.target.clone().filter(|to| to != running && self.quarantined(to).is_none())
        else {
            return;
        };
        if self.change.is_some() {
            return;
        }
        let prepared = |process: &Process| {
            process.target == to && process.held && matches!(process.state, State::Held | State::Warming)
        };
        let Some(&candidate) = self.free(prepared).first() else { return };
        self.change = Some(Change {
            cause: Cause::Upgrade,
            from: running.clone(),
            to,
            attempt: 1,
            undo: false,
            step: Step::Preparing { candidate },
        });
        if self.in_state(candidate, &[State::Held]) {
            self.accept(candidate);
        }
    }
}
