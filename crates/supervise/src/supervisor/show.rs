//! The status.

use super::*;
use crate::status::{ChangeStatus, GenerationStatus, Role, Status, Step as PublicStep};

impl Supervisor {
    /// Everything there is to show, as of `now`.
    pub fn status(&self, now: Instant) -> Status {
        let left = |until: Instant| until.saturating_duration_since(now);
        let generations = self.processes.iter().map(|(generation, process)| GenerationStatus {
            generation: *generation,
            target: process.target.clone(),
            state: process.state,
            since: now.saturating_duration_since(process.since),
            uptime: now.saturating_duration_since(process.born),
            role: match self.part(*generation) {
                Part::Serving => Role::Serving,
                Part::Replacement => Role::Replacement,
                Part::Candidate => Role::Candidate,
                Part::Reserve => Role::Reserve,
                Part::Leaving | Part::None => Role::Leaving,
            },
            configuration: process.configuration.clone(),
            identity: process.identity.clone(),
            leaving: process.leaving.as_ref().map(|leaving| leaving.cause.clone()),
            left: process.due.map(left),
        });
        Status {
            target: self.target.clone(),
            serving: self.serving,
            generations: generations.collect(),
            change: self.change.as_ref().map(|change| self.change_status(change, now)),
            queued: self.queued.clone(),
            good: self.memory.good.clone(),
            quarantined: self.memory.quarantined.clone(),
            crashes: crate::status::Crashes {
                recent: self.crashes.recent(now, self.policy.crash_window),
                looping: self.crashes.looping(),
                next_start: self.crashes.next_start().map(left),
                absent: self.target.as_ref().and_then(|target| self.crashes.absent(target)).cloned(),
            },
            inbound_drained: self.inbound_drain.is_some(),
            stop: self.stop.map(left),
        }
    }

    fn change_status(&self, change: &Change, now: Instant) -> ChangeStatus {
        let due = |generation: &Generation| self.processes.get(generation).and_then(|process| process.due);
        let (step, generation, until) = match &change.step {
            Step::Waiting { until } => (PublicStep::Waiting, None, Some(*until)),
            Step::Preparing { candidate } => (PublicStep::Preparing, Some(*candidate), due(candidate)),
            Step::Probation { until, .. } => (PublicStep::Probation, self.serving, Some(*until)),
            Step::PuttingBack { reserve, .. } => (PublicStep::PuttingBack, Some(*reserve), due(reserve)),
        };
        ChangeStatus {
            cause: change.cause.clone(),
            from: change.from.clone(),
            to: change.to.clone(),
            step,
            generation,
            attempt: change.attempt,
            left: until.map(|until| until.saturating_duration_since(now)),
        }
    }
}
