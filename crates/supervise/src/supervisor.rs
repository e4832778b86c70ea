//! The state machine: its state, and the way of an event through it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::gate::{Gate, History};
use crate::record::bounded;
use crate::{
    Cause, Effect, Event, Exit, Generation, Happened, Lost, Memory, Next, Policy, Queued, Record, Refusal,
    State, Target,
};

mod adopt;
mod change;
mod crash;
mod end;
mod show;
#[cfg(test)]
mod tests;

/// Most targets whose binary is known to be there.
const MAX_FETCHED: usize = 8;

/// Numbers of generations reserved at a time.
const NUMBERS: u64 = 64;

/// The life of one proxy. See the crate's documentation.
#[derive(Clone, Debug)]
pub struct Supervisor {
    policy: Policy,
    now: Instant,
    /// What shall run; `None` before the start.
    target: Option<Target>,
    processes: BTreeMap<Generation, Process>,
    /// Who accepts.
    serving: Option<Generation>,
    /// Who is started, or told to accept, because nobody does.
    replacement: Option<Generation>,
    change: Option<Change>,
    queued: Option<Queued>,
    crashes: crash::Crashes,
    /// Set when a release passes probation.
    young: Option<Young>,
    memory: Memory,
    /// The next generation's number; below `memory.next`, up to which they are reserved.
    next: u64,
    fetched: VecDeque<Target>,
    /// What accepted at least once, the newest first; at most as many as good ones.
    ran: Vec<Target>,
    /// Numbers from here on are this supervisor's own; smaller ones may be adopted, each once.
    first_own: Option<u64>,
    adopted: BTreeSet<Generation>,
    /// Some generation has been ready, in this or an earlier agent's time.
    has_served: bool,
    inbound_drain: Option<Duration>,
    stop: Option<Instant>,
    stopped: bool,
    jitter: f64,
    said: Said,
    out: Vec<Effect>,
}

/// What was said last, so that only changes are said.
#[derive(Clone, Debug)]
struct Said {
    serving: Option<Generation>,
    memory: Memory,
}

#[derive(Clone, Debug)]
struct Process {
    target: Target,
    state: State,
    since: Instant,
    born: Instant,
    /// When the state's time is over.
    due: Option<Instant>,
    /// It accepts only when told to.
    held: bool,
    ready: bool,
    /// Since when it serves without a break.
    served: Option<Instant>,
    took_over: bool,
    configuration: Option<Arc<str>>,
    identity: Option<Arc<str>>,
    history: History,
    lost: Lost,
    leaving: Option<Leaving>,
}

#[derive(Clone, Debug)]
struct Leaving {
    cause: Cause,
    next: Next,
    /// The drain's deadline, without grace.
    deadline: Instant,
}

/// A change under way.
#[derive(Clone, Debug)]
struct Change {
    cause: Cause,
    from: Target,
    to: Target,
    attempt: u32,
    /// A rollback was asked for when the candidate had been told to accept already.
    undo: bool,
    step: Step,
}

#[derive(Clone, Debug)]
enum Step {
    Waiting {
        until: Instant,
    },
    Preparing {
        candidate: Generation,
    },
    /// The candidate is the one that serves. `over`: the time has passed, and the gate asked to wait until `until`.
    Probation {
        reserve: Option<Generation>,
        until: Instant,
        over: bool,
        gate: Box<Gate>,
    },
    /// `again`: what went wrong may have been somebody's deed, so the change is tried again.
    PuttingBack {
        reserve: Generation,
        again: bool,
        why: Cause,
    },
}

/// A release that passed probation not long ago.
#[derive(Clone, Debug)]
struct Young {
    target: Target,
    from: Target,
    until: Instant,
    crashes: u32,
}

/// Which part a generation plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Serving,
    Replacement,
    Candidate,
    Reserve,
    Leaving,
    /// Adopted and not yet assigned.
    None,
}

impl Supervisor {
    /// A proxy of which nothing runs yet. `memory` is what an earlier agent kept.
    pub fn new(policy: Policy, memory: Memory, now: Instant) -> Self {
        let mut memory = memory;
        memory.next = memory.next.max(1);
        memory.good.truncate(crate::MAX_GOOD);
        memory.quarantined.truncate(crate::MAX_QUARANTINED);
        Self {
            policy,
            now,
            target: None,
            processes: BTreeMap::new(),
            serving: None,
            replacement: None,
            change: None,
            queued: None,
            crashes: crash::Crashes::default(),
            young: None,
            said: Said { serving: None, memory: memory.clone() },
            next: memory.next,
            memory,
            fetched: VecDeque::new(),
            ran: Vec::new(),
            first_own: None,
            adopted: BTreeSet::new(),
            has_served: false,
            inbound_drain: None,
            stop: None,
            stopped: false,
            jitter: 0.0,
            out: Vec::new(),
        }
    }

    /// Changes the bounds. What is under way keeps those it began with.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Who accepts.
    pub fn serving(&self) -> Option<Generation> {
        self.serving
    }

    /// What serves while nothing else is under way or asked for: no change, no crash loop, no stop.
    pub fn settled_on(&self) -> Option<&Target> {
        let busy =
            self.change.is_some() || self.queued.is_some() || self.crashes.looping() || self.stop.is_some();
        let serving = self.serving.and_then(|generation| self.processes.get(&generation))?;
        (!busy).then_some(&serving.target)
    }

    /// What has to be kept, as of now.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// When [`Event::Tick`] is due, if at all. Earlier and later ticks do no harm.
    pub fn next_tick(&self) -> Option<Instant> {
        let processes = self.processes.values().filter_map(|process| process.due);
        let change = self.change.as_ref().and_then(|change| match &change.step {
            Step::Waiting { until } | Step::Probation { until, .. } => Some(*until),
            Step::Preparing { .. } | Step::PuttingBack { .. } => None,
        });
        let others = [change, self.crashes.next_start(), self.settles_at()];
        processes.chain(others.into_iter().flatten()).min()
    }

    /// Takes an event in. A `now` before the last one counts as the last one.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        self.take(event);
        self.pass_time();
        self.go_on();
        self.say();
        std::mem::take(&mut self.out)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Start { target } => self.start(target),
            Event::Upgrade { target } => self.upgrade(target),
            Event::Rollback => self.roll_back(),
            Event::Restart => self.restart(),
            Event::DrainInbound { within } => self.drain_inbound(within),
            Event::Stop { within } => self.stop(within),
            Event::Pardon { engine, release } => {
                let before = self.memory.quarantined.len();
                self.memory.quarantined.retain(|q| (&q.engine, &q.release) != (&engine, &release));
                if self.memory.quarantined.len() == before {
                    self.out.push(Effect::Refused(Refusal::NotQuarantined { engine, release }));
                }
            }
            Event::Fetched { generation } => self.fetched(generation),
            Event::FetchFailed { generation, error, jitter } => {
                self.jitter = jitter;
                if self.in_state(generation, &[State::Fetching]) {
                    self.ended(generation, Cause::FetchFailed(bounded(error)), None);
                }
            }
            Event::Started { generation } => {
                if self.in_state(generation, &[State::Starting]) {
                    if let Some(process) = self.processes.get(&generation) {
                        self.crashes.started(&process.target);
                    }
                    self.enter(generation, State::Warming);
                }
            }
            Event::StartFailed { generation, error, blame, jitter } => {
                self.jitter = jitter;
                if !self.in_state(generation, &[State::Starting, State::Draining, State::Killed]) {
                    return;
                }
                let target = self.processes.get(&generation).map(|process| process.target.clone());
                // The binary may have been damaged or removed since it was fetched.
                self.fetched.retain(|fetched| Some(fetched) != target.as_ref());
                self.ended(generation, Cause::StartFailed { error: bounded(error), blame }, None);
            }
            Event::Ready { generation, configuration, identity } => {
                self.ready(generation, configuration, identity);
            }
            Event::Configured { generation, configuration } => {
                if let Some(process) = self.processes.get_mut(&generation) {
                    process.configuration = Some(configuration);
                }
            }
            Event::Accepting { generation } => self.accepting(generation),
            Event::Paused { generation } => {
                if self.in_state(generation, &[State::Pausing]) {
                    self.enter(generation, State::Paused);
                    self.set_due(generation, None);
                }
            }
            Event::Drained { generation, lost } => {
                if let Some(process) = self.processes.get_mut(&generation) {
                    process.lost = lost;
                }
            }
            Event::Hung { generation, jitter } => {
                self.jitter = jitter;
                self.lose(generation, Cause::Hung);
            }
            Event::Ended { generation, exit, memory, lost, jitter } => {
                self.jitter = jitter;
                self.exited(generation, exit, memory, lost);
            }
            Event::Sample { generation, mut sample } => {
                crate::gate::bound(&mut sample);
                self.sample(generation, &sample);
            }
            Event::Adopted(adoption) => self.adopt(adoption),
            Event::Tick => {}
        }
    }

    /// What is due happens, each thing once.
    fn pass_time(&mut self) {
        let due = |process: &Process, now| process.due.is_some_and(|due| due <= now);
        let processes = self.processes.iter();
        let over: Vec<_> = processes.filter(|(_, p)| due(p, self.now)).map(|(g, _)| *g).collect();
        for generation in over {
            // One of the others may have ended it or given it more time.
            let Some(process) = self.processes.get(&generation).filter(|p| due(p, self.now)) else {
                continue;
            };
            match process.state {
                State::Fetching => {
                    self.ended(generation, Cause::FetchFailed("it took too long".to_owned()), None);
                }
                State::Starting | State::Warming | State::Held => self.lose(generation, Cause::NotReady),
                State::Opening => self.lose(generation, Cause::NoAnswer),
                // It matters little until it is put back, and a process that really hangs is found by pings.
                State::Pausing => self.pause(generation),
                State::Draining | State::Killed => self.kill(generation),
                State::Accepting | State::Paused => self.set_due(generation, None),
            }
        }
        self.change_due();
        self.start_due();
    }

    /// What has to be true after every event is made true.
    fn go_on(&mut self) {
        if self.stop.is_some() {
            if self.processes.is_empty() && !self.stopped {
                self.stopped = true;
                self.out.push(Effect::Stopped);
            }
            return;
        }
        // In this order: what is proven comes before what is new.
        self.ensure_progress();
        self.start_next_change();
        self.settle();
        self.bound_draining();
    }

    fn say(&mut self) {
        if self.memory != self.said.memory {
            self.said.memory = self.memory.clone();
            self.out.insert(0, Effect::Remember(self.memory.clone()));
        }
        if self.serving != self.said.serving {
            self.said.serving = self.serving;
            self.out.push(Effect::Serving(self.serving));
        }
    }

    fn start(&mut self, target: Target) {
        if self.target.is_some() {
            return self.upgrade(target);
        }
        if self.stop.is_some() {
            return self.out.push(Effect::Refused(Refusal::Stopping));
        }
        let refused = self.quarantined(&target).cloned();
        self.first_own = Some(self.next);
        self.target = Some(match (&refused, self.memory.good.first()) {
            (Some(_), Some(good)) => good.clone(),
            // Something has to run, and nothing is known to be better.
            _ => target.clone(),
        });
        if let Some(quarantined) = refused {
            let quarantined = Box::new(quarantined);
            self.out.push(Effect::Refused(Refusal::Quarantined { target, quarantined }));
        }
        self.assign_adopted();
        // What was found may be something else than what is wanted now. And when nothing was found, what is wanted may
        // never have run here: then what did runs first, or at least beside it.
        let running = self.serving.or(self.replacement).and_then(|g| self.processes.get(&g));
        let unproven = self.target.as_ref().is_some_and(|target| !self.memory.good.contains(target));
        let first = match running {
            Some(running) => Some(running.target.clone()),
            None => self.memory.good.first().filter(|_| unproven).cloned(),
        };
        if self.change.is_none()
            && let Some(first) = first
            && self.target.as_ref() != Some(&first)
        {
            let wanted = self.target.replace(first);
            self.queued = wanted.map(Queued::Upgrade);
        }
    }

    /// Begins a generation: its binary first, unless it is known to be there.
    fn spawn(&mut self, target: &Target, held: bool) -> Generation {
        let generation = Generation(self.next);
        self.number_used(generation);
        let process = Process::new(target.clone(), State::Fetching, held, self.now);
        self.processes.insert(generation, process);
        if self.fetched.contains(target) {
            self.start_process(generation);
        } else {
            self.set_due(generation, Some(self.now + self.policy.fetch));
            self.out.push(Effect::Fetch { generation, target: target.clone() });
        }
        generation
    }

    /// Numbers are reserved many at a time, so that repairing a crash does not wait for a disk.
    fn number_used(&mut self, generation: Generation) {
        self.next = self.next.max(generation.0.saturating_add(1));
        if self.memory.next < self.next {
            self.memory.next = self.next.saturating_add(NUMBERS - 1);
        }
    }

    fn fetched(&mut self, generation: Generation) {
        if !self.in_state(generation, &[State::Fetching]) {
            return;
        }
        if let Some(process) = self.processes.get(&generation) {
            let target = process.target.clone();
            self.fetched.retain(|fetched| *fetched != target);
            self.fetched.push_back(target);
            if self.fetched.len() > MAX_FETCHED {
                self.fetched.pop_front();
            }
        }
        self.start_process(generation);
    }

    fn start_process(&mut self, generation: Generation) {
        // The first generation ever has no predecessor: nothing is gained by ending it for being slow.
        let patient = !self.has_served && self.memory.good.is_empty();
        let due = (!patient).then(|| self.now + self.policy.warm_up);
        self.enter(generation, State::Starting);
        let Some(process) = self.processes.get_mut(&generation) else { return };
        process.due = due;
        let (target, held) = (process.target.clone(), process.held);
        self.out.push(Effect::Start { generation, target, held });
        if let Some(within) = self.inbound_drain {
            self.out.push(Effect::DrainInbound { generation, within });
        }
    }

    fn ready(&mut self, generation: Generation, configuration: Option<Arc<str>>, identity: Option<Arc<str>>) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        process.configuration = configuration.or(process.configuration.take());
        process.identity = identity.or(process.identity.take());
        process.ready = true;
        if !matches!(process.state, State::Starting | State::Warming) {
            return;
        }
        let held = process.held;
        if held {
            self.enter(generation, State::Held);
            self.set_due(generation, None);
            if matches!(self.part(generation), Part::Candidate | Part::Replacement) {
                self.accept(generation);
            }
        } else {
            self.accepts(generation);
        }
    }

    fn accept(&mut self, generation: Generation) {
        self.enter(generation, State::Opening);
        self.set_due(generation, Some(self.now + self.policy.answer));
        self.out.push(Effect::Accept { generation });
    }

    fn accepting(&mut self, generation: Generation) {
        if self.in_state(generation, &[State::Opening]) {
            self.accepts(generation);
        }
    }

    /// It accepts from now on.
    fn accepts(&mut self, generation: Generation) {
        let part = self.part(generation);
        self.enter(generation, State::Accepting);
        let now = self.now;
        let Some(process) = self.processes.get_mut(&generation) else { return };
        process.due = None;
        process.served = Some(now);
        self.has_served = true;
        match part {
            Part::Candidate => self.take_over(generation),
            Part::Reserve => self.put_back(generation),
            Part::Replacement => {
                self.replacement = None;
                self.serving = Some(generation);
                self.took_over(generation, Cause::NobodyServed);
                self.remember_ran(generation);
            }
            Part::Serving | Part::Leaving | Part::None => {}
        }
    }

    /// Records the first time that a generation accepts.
    fn took_over(&mut self, generation: Generation, cause: Cause) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        if !std::mem::replace(&mut process.took_over, true) {
            self.record(generation, Happened::TookOver, cause, Next::Nothing);
        }
    }

    fn pause(&mut self, generation: Generation) {
        self.enter(generation, State::Pausing);
        self.set_due(generation, Some(self.now + self.policy.answer));
        if let Some(process) = self.processes.get_mut(&generation) {
            process.served = None;
        }
        self.out.push(Effect::Pause { generation });
    }

    fn drain_inbound(&mut self, within: Duration) {
        self.inbound_drain = Some(within);
        for (generation, process) in &self.processes {
            if !matches!(process.state, State::Fetching | State::Killed) {
                self.out.push(Effect::DrainInbound { generation: *generation, within });
            }
        }
    }

    fn record(&mut self, generation: Generation, happened: Happened, cause: Cause, next: Next) {
        let Some(process) = self.processes.get(&generation) else { return };
        self.out.push(Effect::Record(Box::new(process.record(generation, self.now, happened, cause, next))));
    }

    fn part(&self, generation: Generation) -> Part {
        if self.serving == Some(generation) {
            return Part::Serving;
        }
        if self.replacement == Some(generation) {
            return Part::Replacement;
        }
        match self.change.as_ref().map(|change| &change.step) {
            Some(Step::Preparing { candidate }) if *candidate == generation => return Part::Candidate,
            Some(Step::Probation { reserve: Some(reserve), .. } | Step::PuttingBack { reserve, .. })
                if *reserve == generation =>
            {
                return Part::Reserve;
            }
            _ => {}
        }
        match self.processes.get(&generation) {
            Some(process) if process.leaving.is_some() => Part::Leaving,
            _ => Part::None,
        }
    }

    fn in_state(&self, generation: Generation, states: &[State]) -> bool {
        self.processes.get(&generation).is_some_and(|process| states.contains(&process.state))
    }

    fn enter(&mut self, generation: Generation, state: State) {
        if let Some(process) = self.processes.get_mut(&generation)
            && process.state != state
        {
            process.state = state;
            process.since = self.now;
        }
    }

    fn set_due(&mut self, generation: Generation, due: Option<Instant>) {
        if let Some(process) = self.processes.get_mut(&generation) {
            process.due = due;
        }
    }
}

impl Process {
    fn new(target: Target, state: State, held: bool, now: Instant) -> Self {
        Self {
            target,
            state,
            since: now,
            born: now,
            due: None,
            held,
            ready: false,
            served: None,
            took_over: false,
            configuration: None,
            identity: None,
            history: History::default(),
            lost: Lost::default(),
            leaving: None,
        }
    }

    fn record(
        &self,
        generation: Generation,
        now: Instant,
        happened: Happened,
        cause: Cause,
        next: Next,
    ) -> Record {
        let resident = self.history.latest().resident;
        Record {
            generation,
            target: self.target.clone(),
            happened,
            cause,
            exit: None::<Exit>,
            configuration: self.configuration.clone(),
            uptime: now.saturating_duration_since(self.born),
            memory: (resident > 0).then_some(resident),
            lost: self.lost,
            next,
        }
    }
}
