//! From the life of a proxy, as `supervise` tells it, to the wire: one word for programs and one sentence for people
//! for everything that can happen.
//!
//! Holds: a word stands for one kind of cause and never changes. Does not: know what only an agent knows (process ids,
//! logs, limits); whoever sends a status fills that in.

use std::time::Duration;

use outrider_supervise::{
    Cause, Exit, Happened, Next, Quarantined, Queued, Record, Refusal, Role, Status, Step, Target,
};

use super::{
    ChangeStatus, GenerationStatus, InboundState, Occurred, ProxyStatus, QuarantinedRelease, QueuedChange,
    Release,
};

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn text(value: Option<&std::sync::Arc<str>>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// The word for a cause: see [`Occurred::cause`].
pub fn cause_word(cause: &Cause) -> &'static str {
    match cause {
        Cause::Crashed(Exit::Code(0)) => "exited",
        Cause::Crashed(Exit::Code(_)) => "exit_code",
        Cause::Crashed(Exit::Signal(_)) => "signal",
        Cause::Crashed(Exit::Panic(_)) => "panic",
        Cause::Crashed(Exit::OutOfMemory) => "out_of_memory",
        Cause::Crashed(Exit::Unknown) => "unknown",
        Cause::Hung => "hung",
        Cause::FetchFailed(_) => "fetch_failed",
        Cause::StartFailed { .. } => "start_failed",
        Cause::NotReady => "not_ready",
        Cause::NoAnswer => "no_answer",
        Cause::Probation(_) => "probation",
        Cause::CrashLoop => "crash_loop",
        Cause::NobodyServed => "nobody_served",
        Cause::Upgrade => "upgrade",
        Cause::Rollback => "rollback",
        Cause::Restart => "restart",
        Cause::Superseded => "superseded",
        Cause::Stop => "stop",
        Cause::Drain => "drain",
        Cause::Resized(_) => "resized",
    }
}

/// The word for what was done: see [`Occurred::next`].
pub fn next_word(next: &Next) -> &'static str {
    match next {
        Next::Nothing => "nothing",
        Next::ServedBy(_) => "served_by",
        Next::Restarted(_) => "restarted",
        Next::BackedOff { .. } => "backed_off",
        Next::PutBack(_) => "put_back",
        Next::RolledBack { .. } => "rolled_back",
        Next::TriedAgain { .. } => "tried_again",
    }
}

/// What was done, for people; `None` if nothing was.
pub fn next_sentence(next: &Next) -> Option<String> {
    Some(match next {
        Next::Nothing => return None,
        Next::ServedBy(generation) => format!("{generation} serves"),
        Next::Restarted(generation) => format!("{generation} was started"),
        Next::BackedOff { pause } => format!("the next start is in {:.1} s", pause.as_secs_f64()),
        Next::PutBack(generation) => format!("{generation} accepts again"),
        Next::RolledBack { to, generation } => format!("back to {to} with {generation}"),
        Next::TriedAgain { pause } => format!("tried again in {:.1} s", pause.as_secs_f64()),
    })
}

/// The word for what happened: see [`Occurred::happened`].
pub fn happened_word(happened: Happened) -> &'static str {
    match happened {
        Happened::TookOver => "took_over",
        Happened::Passed => "passed",
        Happened::PutBack => "put_back",
        Happened::Ended => "ended",
        Happened::Resized => "resized",
        Happened::Drained => "drained",
    }
}

/// A record as one sentence for people.
pub fn sentence(record: &Record) -> String {
    let Record { generation, target, happened, cause, next, .. } = record;
    let next = next_sentence(next).map(|next| format!("; {next}")).unwrap_or_default();
    let what = match happened {
        // There was nobody to take over from.
        Happened::TookOver if *cause == Cause::NobodyServed => {
            return format!("{target} {generation} began to serve{next}");
        }
        Happened::TookOver => "took over",
        Happened::Passed => "passed its probation",
        Happened::PutBack => "was put back",
        Happened::Ended => "ended",
        Happened::Resized => "was resized",
        Happened::Drained => "was drained",
    };
    format!("{target} {generation} {what}: {cause}{next}")
}

/// The word for a refused command: see [`super::Answer::reason`].
pub fn refusal_word(refusal: &Refusal) -> &'static str {
    use super::refusal;
    match refusal {
        Refusal::Stopping => refusal::STOPPING,
        Refusal::Quarantined { .. } => refusal::QUARANTINED,
        Refusal::NothingBefore => refusal::NOTHING_BEFORE,
        Refusal::RollingBack => refusal::ROLLING_BACK,
        Refusal::NotStarted => refusal::NOT_STARTED,
        Refusal::NotQuarantined { .. } => refusal::NOT_QUARANTINED,
    }
}

/// The word for a generation's role.
pub fn role_word(role: Role) -> &'static str {
    match role {
        Role::Serving => "serving",
        Role::Replacement => "replacement",
        Role::Candidate => "candidate",
        Role::Reserve => "reserve",
        Role::Leaving => "leaving",
    }
}

/// The word for how far a change is.
pub fn step_word(step: Step) -> &'static str {
    match step {
        Step::Waiting => "waiting",
        Step::Preparing => "preparing",
        Step::Probation => "probation",
        Step::PuttingBack => "putting_back",
    }
}

impl From<&Target> for Release {
    fn from(target: &Target) -> Self {
        Self {
            engine: target.engine.to_string(),
            release: target.release.to_string(),
            shape: target.shape.to_string(),
        }
    }
}

impl Occurred {
    /// A record of the proxy `NS/INSTANCE` of `NS/SERVICE`, numbered and stamped (milliseconds since 1970).
    pub fn new(proxy: &str, service: &str, number: u64, time_ms: u64, record: &Record) -> Self {
        let (next_generation, next_pause) = match &record.next {
            Next::ServedBy(generation) | Next::Restarted(generation) | Next::PutBack(generation) => {
                (generation.0, Duration::ZERO)
            }
            Next::RolledBack { generation, .. } => (generation.0, Duration::ZERO),
            Next::BackedOff { pause } | Next::TriedAgain { pause } => (0, *pause),
            Next::Nothing => (0, Duration::ZERO),
        };
        let next_release = match &record.next {
            Next::RolledBack { to, .. } => to.release.to_string(),
            _ => String::new(),
        };
        Self {
            proxy: proxy.to_owned(),
            service: service.to_owned(),
            number,
            time_ms,
            generation: record.generation.0,
            engine: record.target.engine.to_string(),
            release: record.target.release.to_string(),
            happened: happened_word(record.happened).to_owned(),
            cause: cause_word(&record.cause).to_owned(),
            text: sentence(record),
            configuration: text(record.configuration.as_ref()),
            uptime_ms: ms(record.uptime),
            resident_bytes: record.memory.unwrap_or_default(),
            lost_connections: record.lost.connections,
            lost_requests: record.lost.requests,
            next: next_word(&record.next).to_owned(),
            next_generation,
            next_pause_ms: ms(next_pause),
            next_release,
            exit: record.exit.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl ProxyStatus {
    /// The status of the proxy `NS/INSTANCE`, without what `supervise` does not know: process ids, versions and
    /// connections of the generations, [`InboundState::Drained`], log, releases, isolation and the age of the configuration.
    pub fn new(proxy: &str, status: &Status) -> Self {
        let generation = |one: &outrider_supervise::GenerationStatus| GenerationStatus {
            generation: one.generation.0,
            target: Some(Release::from(&one.target)),
            state: one.state.to_string(),
            role: role_word(one.role).to_owned(),
            since_ms: ms(one.since),
            uptime_ms: ms(one.uptime),
            left_ms: one.left.map(ms),
            configuration: text(one.configuration.as_ref()),
            identity: text(one.identity.as_ref()),
            leaving: one.leaving.as_ref().map(cause_word).unwrap_or_default().to_owned(),
            leaving_text: one.leaving.as_ref().map(ToString::to_string).unwrap_or_default(),
            pid: 0,
            version: String::new(),
            open: None,
        };
        let change = |change: &outrider_supervise::ChangeStatus| ChangeStatus {
            cause: cause_word(&change.cause).to_owned(),
            text: change.cause.to_string(),
            from: Some(Release::from(&change.from)),
            to: Some(Release::from(&change.to)),
            step: step_word(change.step).to_owned(),
            generation: change.generation.map_or(0, |generation| generation.0),
            attempt: change.attempt,
            left_ms: change.left.map(ms),
        };
        let queued = |queued: &Queued| match queued {
            Queued::Upgrade(to) => QueuedChange { what: "upgrade".to_owned(), to: Some(Release::from(to)) },
            Queued::Restart => QueuedChange { what: "restart".to_owned(), to: None },
        };
        let quarantined = |one: &Quarantined| QuarantinedRelease {
            engine: one.engine.to_string(),
            release: one.release.to_string(),
            shape: one.shape.as_ref().map(ToString::to_string),
            cause: cause_word(&one.reason).to_owned(),
            text: one.reason.to_string(),
        };
        let inbound = if status.inbound_drained { InboundState::Draining } else { InboundState::Open };
        Self {
            proxy: proxy.to_owned(),
            target: status.target.as_ref().map(Release::from),
            serving: status.serving.map_or(0, |generation| generation.0),
            generations: status.generations.iter().map(generation).collect(),
            change: status.change.as_ref().map(change),
            queued: status.queued.as_ref().map(queued),
            good: status.good.iter().map(Release::from).collect(),
            quarantined: status.quarantined.iter().map(quarantined).collect(),
            recent_crashes: u32::try_from(status.crashes.recent).unwrap_or(u32::MAX),
            crash_loop: status.crashes.looping && status.crashes.absent.is_none(),
            next_start_ms: status.crashes.next_start.map(ms),
            inbound: inbound.into(),
            stop_ms: status.stop.map(ms),
            log: String::new(),
            releases: Vec::new(),
            isolation: None,
            last_good_age_ms: None,
            inbound_cut: None,
            inbound_left_ms: None,
            certificate: None,
        }
    }
}

#[cfg(test)]
mod tests;
