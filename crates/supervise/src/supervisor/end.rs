//! How generations end: by themselves, by our wish, or by force.

use super::*;

impl Supervisor {
    /// A process is gone.
    pub(super) fn exited(&mut self, generation: Generation, exit: Exit, memory: Option<u64>, lost: Lost) {
        let Some(process) = self.processes.get(&generation) else { return };
        if process.state == State::Fetching {
            return;
        }
        // One that was told to end and crashed over it is worth knowing; how a killed one ended is not.
        let as_told = matches!(exit, Exit::Code(0) | Exit::Unknown) || process.state == State::Killed;
        let cause = match &process.leaving {
            Some(leaving) if as_told => leaving.cause.clone(),
            _ => Cause::Crashed(exit.clone()),
        };
        self.ended(generation, cause, Some((exit, memory, lost)));
    }

    /// A generation is gone, or its process never was.
    pub(super) fn ended(
        &mut self,
        generation: Generation,
        cause: Cause,
        exit: Option<(Exit, Option<u64>, Lost)>,
    ) {
        let part = self.part(generation);
        let Some(process) = self.processes.remove(&generation) else { return };
        let (cause, next) = match &process.leaving {
            Some(leaving) if exit.is_none() => (leaving.cause.clone(), leaving.next.clone()),
            Some(leaving) => (cause, leaving.next.clone()),
            None => {
                let next = self.without(part, &process.target, process.ready, &cause);
                (cause, next)
            }
        };
        let next = self.current(next);
        let mut record = process.record(generation, self.now, Happened::Ended, cause, next);
        if let Some((exit, memory, lost)) = exit {
            record.exit = Some(exit);
            record.memory = memory.or(record.memory);
            record.lost.connections = record.lost.connections.saturating_add(lost.connections);
            record.lost.requests = record.lost.requests.saturating_add(lost.requests);
        }
        self.out.push(Effect::Record(Box::new(record)));
    }

    /// What was done when a process was told to go may have been overtaken before it went.
    fn current(&self, next: Next) -> Next {
        match (next, self.serving) {
            (Next::ServedBy(_), Some(serving)) => Next::ServedBy(serving),
            (Next::ServedBy(then), None) if !self.processes.contains_key(&then) => Next::Nothing,
            (next, _) => next,
        }
    }

    /// A process is of no use any more and is killed. What replaces it comes first.
    pub(super) fn lose(&mut self, generation: Generation, cause: Cause) {
        let part = self.part(generation);
        let Some(process) = self.processes.get_mut(&generation) else { return };
        if matches!(process.state, State::Fetching | State::Killed) {
            return;
        }
        if let Some(leaving) = &mut process.leaving {
            leaving.cause = cause;
        } else {
            let (target, ready) = (process.target.clone(), process.ready);
            let next = self.without(part, &target, ready, &cause);
            let leaving = Leaving { cause, next, deadline: self.now };
            if let Some(process) = self.processes.get_mut(&generation) {
                process.leaving = Some(leaving);
            }
        }
        self.kill(generation);
    }

    /// Goes on without a generation that did not go by our wish.
    fn without(&mut self, part: Part, target: &Target, ready: bool, cause: &Cause) -> Next {
        if self.stop.is_some() {
            return Next::Nothing;
        }
        match part {
            Part::Serving => {
                self.serving = None;
                self.serving_lost(target, ready, cause)
            }
            Part::Replacement => {
                self.replacement = None;
                self.recover(target, ready, cause)
            }
            Part::Candidate => self.candidate_failed(cause),
            Part::Reserve => self.reserve_lost(target, ready, cause),
            Part::Leaving | Part::None => Next::Nothing,
        }
    }

    pub(super) fn kill(&mut self, generation: Generation) {
        self.enter(generation, State::Killed);
        self.set_due(generation, Some(self.now + self.policy.kill_again));
        self.out.push(Effect::Kill { generation });
    }

    /// Lets a generation finish what is open. A second time the deadline can only become earlier.
    pub(super) fn drain(&mut self, generation: Generation, within: Duration, cause: Cause, next: Next) {
        let (now, grace) = (self.now, self.policy.grace);
        let Some(process) = self.processes.get_mut(&generation) else { return };
        let leaving = Leaving { cause, next, deadline: now + within };
        if process.state == State::Fetching {
            process.leaving = Some(leaving);
            return self.ended(generation, Cause::Superseded, None);
        }
        match &mut process.leaving {
            None => process.leaving = Some(leaving),
            Some(present) if leaving.deadline < present.deadline => present.deadline = leaving.deadline,
            Some(_) => return,
        }
        if process.state == State::Killed {
            return;
        }
        process.due = Some(now + within + grace);
        process.served = None;
        self.enter(generation, State::Draining);
        self.out.push(Effect::Drain { generation, within });
    }

    /// How many leave and may still take a while.
    pub(super) fn draining(&self) -> usize {
        self.processes.values().filter(|process| process.state == State::Draining).count()
    }

    /// A crash is repaired however many drain; then the oldest of those has to go.
    pub(super) fn bound_draining(&mut self) {
        while self.draining() > self.policy.max_draining {
            let draining = self.processes.iter().filter(|(_, process)| process.state == State::Draining);
            let Some(oldest) = draining.min_by_key(|(_, process)| process.since).map(|(g, _)| *g) else {
                return;
            };
            self.kill(oldest);
        }
    }

    pub(super) fn stop(&mut self, within: Duration) {
        let deadline = self.now + within;
        let deadline = self.stop.map_or(deadline, |present| present.min(deadline));
        self.stop = Some(deadline);
        self.serving = None;
        self.replacement = None;
        self.change = None;
        self.queued = None;
        self.young = None;
        self.crashes.clear();
        let within = deadline.saturating_duration_since(self.now);
        let all: Vec<_> = self.processes.keys().copied().collect();
        for generation in all {
            self.drain(generation, within, Cause::Stop, Next::Nothing);
        }
    }
}
