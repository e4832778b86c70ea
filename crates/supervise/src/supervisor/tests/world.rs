//! A world of processes on a virtual clock: carries effects out, reports back, and watches over what must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::scenarios::{ended, ready, target};
use crate::gate::{Histogram, Sample};
use crate::*;

/// What a release does to its processes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Build {
    Good,
    NoSuchFile,
    ExitsAtStart,
    NeverReady,
    NeverAccepts,
    CrashesAfter(u64),
    HangsAfter(u64),
    Leaks,
    Slow,
    Errors,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Starts,
    Holds,
    Accepts,
    Paused,
    Drains,
}

#[derive(Clone, Debug)]
struct Proc {
    target: Target,
    build: Build,
    held: bool,
    does: Does,
    hangs: bool,
    /// That it hangs was noticed.
    found: bool,
    born: Instant,
    sample: Sample,
}

/// A number generator that is the same everywhere.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub(super) fn unit(&mut self) -> f64 {
        self.below(1 << 30) as f64 / (1u64 << 30) as f64
    }

    /// How many of `n` happen if each does with this probability.
    pub(super) fn of(&mut self, n: u64, probability: f64) -> u64 {
        (0..n).filter(|_| self.unit() < probability).count() as u64
    }
}

pub(super) struct World {
    pub(super) supervisor: Supervisor,
    pub(super) now: Instant,
    policy: Policy,
    builds: BTreeMap<String, Build>,
    random: Random,
    procs: BTreeMap<u64, Proc>,
    due: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    /// Requests a second; samples are sent if there are any.
    pub(super) rate: u64,
    next_second: Instant,
    pub(super) records: Vec<Record>,
    numbers: BTreeSet<u64>,
    ends: BTreeSet<u64>,
    /// When nobody accepted, in sum.
    pub(super) dark: Duration,
    pub(super) stop_by: Option<Instant>,
    pub(super) stopped: bool,
    /// No process can be started.
    pub(super) host_is_short: bool,
    past: Vec<Event>,
}

impl World {
    pub(super) fn new(policy: Policy, builds: &[(&str, Build)], seed: u64) -> Self {
        let begin = Instant::now();
        Self {
            supervisor: Supervisor::new(policy.clone(), Memory::default(), begin),
            now: begin,
            policy,
            builds: builds.iter().map(|(release, build)| ((*release).to_owned(), *build)).collect(),
            random: Random::new(seed),
            procs: BTreeMap::new(),
            due: BTreeMap::new(),
            sequence: 0,
            rate: 0,
            next_second: begin,
            records: Vec::new(),
            numbers: BTreeSet::new(),
            ends: BTreeSet::new(),
            dark: Duration::ZERO,
            stop_by: None,
            stopped: false,
            host_is_short: false,
            past: Vec::new(),
        }
    }

    fn later(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.due.insert((self.now + after, self.sequence), event);
    }

    fn soon(&mut self) -> Duration {
        Duration::from_micros(500 + self.random.below(40_000))
    }

    fn accepting(&self) -> usize {
        self.procs.values().filter(|proc| proc.does == Does::Accepts && !proc.hangs).count()
    }

    /// As far as anybody can know.
    fn seem_to_accept(&self) -> usize {
        self.procs.values().filter(|proc| proc.does == Does::Accepts && !proc.found).count()
    }

    /// Gives an event, twice: the second time nothing may happen.
    pub(super) fn give(&mut self, event: Event) {
        let again = !matches!(
            event,
            Event::Sample { .. }
                | Event::Upgrade { .. }
                | Event::Rollback
                | Event::Restart
                | Event::Pardon { .. }
                | Event::DrainInbound { .. }
                | Event::Start { .. }
        );
        let effects = self.supervisor.handle(self.now, event.clone());
        self.carry_out(&event, effects);
        if again {
            let repeated = self.supervisor.handle(self.now, event.clone());
            assert_eq!(repeated, [], "{event:?} a second time");
        }
        self.past.push(event);
        if self.past.len() > 64 {
            self.past.remove(0);
        }
        self.check();
    }

    /// An event from the past comes again.
    pub(super) fn repeat(&mut self, which: usize) {
        let Some(event) = self.past.get(which % self.past.len().max(1)).cloned() else { return };
        // Only what processes say: a command is a new command.
        let number = match &event {
            Event::Fetched { generation } | Event::Started { generation } | Event::Paused { generation } => {
                generation
            }
            Event::Ready { generation, .. } | Event::Ended { generation, .. } => generation,
            Event::Hung { generation, .. } | Event::StartFailed { generation, .. } => generation,
            Event::Accepting { generation } => generation,
            _ => return,
        };
        if self.ends.contains(&number.0) {
            let effects = self.supervisor.handle(self.now, event.clone());
            assert_eq!(effects, [], "{event:?} of a generation that is gone");
        }
    }

    fn check(&self) {
        let status = self.supervisor.status(self.now);
        let overdue = self.supervisor.next_tick().filter(|tick| *tick <= self.now);
        assert_eq!(overdue, None, "{status:#?}");
        let active = status.generations.iter().filter(|g| g.role != Role::Leaving).count();
        assert!(active <= 2, "{status:#?}");
        let leaving = status.generations.iter().filter(|g| g.state == State::Draining).count();
        assert!(leaving <= self.policy.max_draining || self.stop_by.is_some(), "{status:#?}");
        for role in [Role::Serving, Role::Candidate, Role::Reserve, Role::Replacement] {
            assert!(status.generations.iter().filter(|g| g.role == role).count() <= 1, "{status:#?}");
        }
        if status.target.is_some() && self.stop_by.is_none() {
            let coming = status.generations.iter().any(|g| g.role != Role::Leaving);
            assert!(coming || status.crashes.next_start.is_some(), "nobody is on the way: {status:#?}");
        }
        if self.stop_by.is_some() {
            assert!(status.generations.iter().all(|g| g.role == Role::Leaving), "{status:#?}");
        }
        serde_json::to_string(&status).expect("a status can be written");
    }

    fn carry_out(&mut self, event: &Event, effects: Vec<Effect>) {
        for effect in effects {
            let stopping = self.stop_by.is_some();
            match effect {
                Effect::Fetch { generation, .. } => {
                    assert!(!stopping);
                    assert!(self.numbers.insert(generation.0), "a number is used twice");
                    let soon = self.soon();
                    self.later(soon, Event::Fetched { generation });
                }
                Effect::Start { generation, target, held } => {
                    assert!(!stopping);
                    self.numbers.insert(generation.0);
                    self.start(generation, &target, held);
                }
                Effect::Accept { generation } => {
                    assert!(!stopping);
                    let soon = self.soon();
                    if let Some(proc) = self.procs.get_mut(&generation.0) {
                        assert!(proc.hangs || matches!(proc.does, Does::Holds | Does::Paused), "{proc:?}");
                        if !proc.hangs && proc.build != Build::NeverAccepts {
                            proc.does = Does::Accepts;
                            self.later(soon, Event::Accepting { generation });
                        }
                    }
                }
                Effect::Pause { generation } => {
                    self.stops_accepting(generation, event);
                    let soon = self.soon();
                    if let Some(proc) = self.procs.get_mut(&generation.0).filter(|proc| !proc.hangs) {
                        proc.does = Does::Paused;
                        self.later(soon, Event::Paused { generation });
                    }
                }
                Effect::Drain { generation, within } => {
                    self.stops_accepting(generation, event);
                    if let Some(by) = self.stop_by {
                        assert!(self.now + within <= by);
                    }
                    let takes = within.mul_f64(self.random.unit());
                    if let Some(proc) = self.procs.get_mut(&generation.0).filter(|proc| !proc.hangs) {
                        proc.does = Does::Drains;
                        self.later(takes, ended(generation.0, Exit::Code(0)));
                    }
                }
                Effect::Kill { generation } => {
                    let alone = self.seem_to_accept() == 1;
                    let soon = self.soon();
                    if let Some(proc) = self.procs.get_mut(&generation.0) {
                        let serves = proc.does == Does::Accepts && !proc.hangs;
                        assert!(!(serves && alone) || stopping, "the only one that serves is killed");
                        proc.found = true;
                        self.later(soon, ended(generation.0, Exit::Signal(9)));
                    }
                }
                Effect::Record(record) => {
                    let number = record.generation.0;
                    assert!(!self.ends.contains(&number), "a record after the last: {record:?}");
                    if record.happened == Happened::Ended {
                        self.ends.insert(number);
                    }
                    serde_json::to_string(&record).expect("a record can be written");
                    self.records.push(*record);
                }
                Effect::Stopped => {
                    assert!(!self.stopped && self.procs.is_empty());
                    self.stopped = true;
                }
                Effect::Serving(_) | Effect::Refused(_) | Effect::DrainInbound { .. } => {}
                Effect::Remember(memory) => assert_eq!(memory, *self.supervisor.memory()),
            }
        }
    }

    /// By our own action, the last that accepts goes only in a stop.
    fn stops_accepting(&self, generation: Generation, event: &Event) {
        let accepts = |proc: &Proc| proc.does == Does::Accepts && !proc.hangs;
        let serves = self.procs.get(&generation.0).is_some_and(accepts);
        assert!(
            !serves || self.seem_to_accept() > 1 || self.stop_by.is_some(),
            "the only one that serves, {generation}, is taken away after {event:?}"
        );
    }

    fn start(&mut self, generation: Generation, target: &Target, held: bool) {
        if self.host_is_short {
            let error = "no process id is left".to_owned();
            let failed = Event::StartFailed { generation, error, blame: Blame::Host, jitter: 0.5 };
            return self.later(Duration::from_millis(1), failed);
        }
        let build = self.builds[&*target.release];
        let error = "exec format error".to_owned();
        if build == Build::NoSuchFile {
            let failed = Event::StartFailed { generation, error, blame: Blame::Release, jitter: 0.5 };
            return self.later(Duration::from_millis(1), failed);
        }
        let sample = Sample { resident: 12 << 20, ..Sample::default() };
        let target = target.clone();
        let proc = Proc {
            target,
            build,
            held,
            does: Does::Starts,
            hangs: false,
            found: false,
            born: self.now,
            sample,
        };
        self.procs.insert(generation.0, proc);
        self.later(Duration::from_micros(300), Event::Started { generation });
        let soon = self.soon();
        match build {
            Build::ExitsAtStart => self.later(soon, ended(generation.0, Exit::Code(1))),
            Build::NeverReady => {}
            _ => self.later(soon, ready(generation.0)),
        }
        if let Build::CrashesAfter(seconds) = build {
            self.later(Duration::from_secs(seconds), ended(generation.0, Exit::Signal(11)));
        }
    }

    /// Makes a process end or hang, if there are any.
    pub(super) fn strike(&mut self, which: u64, exit: Option<Exit>) {
        let living: Vec<_> = self.procs.keys().copied().collect();
        let Some(&number) = living.get(which as usize % living.len().max(1)) else { return };
        match exit {
            Some(exit) => self.give_of(ended(number, exit)),
            None => self.hang(number),
        }
    }

    /// The agent goes and a new one comes: it knows what was to be remembered, and what the processes say. Of those,
    /// each is heard before the start or, for bits of `late`, only after it.
    pub(super) fn renew_agent(&mut self, late: u64) {
        if self.stop_by.is_some() {
            return;
        }
        let target = self.supervisor.status(self.now).target;
        let memory = self.supervisor.memory().clone();
        let memory = serde_json::to_string(&memory).expect("memory can be written");
        let memory = serde_json::from_str(&memory).expect("and read");
        self.supervisor = Supervisor::new(self.policy.clone(), memory, self.now);
        // What hangs says nothing; the new agent ends it by its pid. What had no process yet leaves no trace.
        self.procs.retain(|_, proc| !proc.hangs);
        let (procs, ends) = (&self.procs, &self.ends);
        self.numbers.retain(|number| procs.contains_key(number) || ends.contains(number));
        self.past.clear();
        let found: Vec<_> = self.procs.iter().map(|(number, proc)| self.adoption(*number, proc)).collect();
        let is_late = |number: u64| late >> (number % 64) & 1 == 1;
        for adoption in found.iter().filter(|adoption| !is_late(adoption.generation.0)) {
            self.give(Event::Adopted(adoption.clone()));
        }
        if let Some(target) = target {
            self.give(Event::Start { target });
        }
        for adoption in found.into_iter().filter(|adoption| is_late(adoption.generation.0)) {
            self.give(Event::Adopted(adoption));
        }
    }

    fn adoption(&self, number: u64, proc: &Proc) -> Adoption {
        let (state, ready) = match proc.does {
            Does::Starts if proc.held => (Found::Held, false),
            Does::Starts => (Found::Accepting, false),
            Does::Holds => (Found::Held, true),
            Does::Accepts => (Found::Accepting, true),
            Does::Paused => (Found::Paused, true),
            Does::Drains => (Found::Draining, true),
        };
        let uptime = self.now.saturating_duration_since(proc.born);
        let target = proc.target.clone();
        let generation = Generation(number);
        Adoption { generation, target, state, ready, uptime, configuration: None, identity: None }
    }

    /// Ends this one.
    pub(super) fn give_end(&mut self, generation: Generation, exit: Exit) {
        self.give_of(ended(generation.0, exit));
    }

    fn hang(&mut self, number: u64) {
        if let Some(proc) = self.procs.get_mut(&number).filter(|proc| !proc.hangs) {
            proc.hangs = true;
            let hung = Event::Hung { generation: Generation(number), jitter: 0.5 };
            self.later(Duration::from_secs(3), hung);
        }
    }

    /// Gives an event of a process if that can still say it.
    fn give_of(&mut self, event: Event) {
        let number = |generation: &Generation| generation.0;
        match &event {
            Event::Ready { generation, .. } => {
                let Some(proc) = self.procs.get_mut(&number(generation)) else { return };
                if proc.hangs || proc.does != Does::Starts {
                    return;
                }
                proc.does = if proc.held { Does::Holds } else { Does::Accepts };
            }
            Event::Ended { generation, .. } => {
                let gone = self.procs.remove(&number(generation)).is_none();
                if gone {
                    return;
                }
            }
            Event::Hung { generation, .. } => {
                let Some(proc) = self.procs.get_mut(&number(generation)) else { return };
                proc.found = true;
            }
            Event::Started { generation }
            | Event::Accepting { generation }
            | Event::Paused { generation }
                if self.procs.get(&number(generation)).is_none_or(|proc| proc.hangs) =>
            {
                return;
            }
            _ => {}
        }
        self.give(event);
    }

    /// Lets time pass, with everything that happens meanwhile.
    pub(super) fn advance(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let event = self.due.keys().next().map(|(at, _)| *at);
            let second = (self.rate > 0).then_some(self.next_second);
            let tick = self.supervisor.next_tick();
            let Some(at) = [event, second, tick].into_iter().flatten().min().filter(|at| *at <= until) else {
                break;
            };
            self.pass(at);
            if event == Some(at) {
                if let Some((_, event)) = self.due.pop_first() {
                    self.give_of(event);
                }
            } else if second == Some(at) {
                self.next_second = at + Duration::from_secs(1);
                self.traffic();
            } else {
                self.give(Event::Tick);
            }
        }
        self.pass(until);
    }

    fn pass(&mut self, to: Instant) {
        if self.accepting() == 0 && self.supervisor.status(self.now).target.is_some() {
            self.dark += to.saturating_duration_since(self.now);
        }
        self.now = self.now.max(to);
    }

    /// A second of requests: most on new connections, some on those that paused generations keep.
    fn traffic(&mut self) {
        let kept = self.procs.values().any(|proc| proc.does == Does::Paused);
        let mut numbers = Vec::new();
        for (number, proc) in &mut self.procs {
            let requests = match proc.does {
                Does::Accepts if kept => self.rate - self.rate / 5,
                Does::Accepts => self.rate,
                Does::Paused => self.rate / 5,
                _ => continue,
            };
            let slower = if proc.build == Build::Slow { 200_000 } else { 0 };
            let rate = if proc.build == Build::Errors { 0.01 } else { 0.0 };
            let sample = &mut proc.sample;
            sample.requests += requests;
            *sample.errors.entry("internal_error".into()).or_default() += self.random.of(requests, rate);
            let mut added = Histogram::default();
            for _ in 0..requests {
                let took = 80 + self.random.below(200) + slower;
                added.add(took, 1);
                sample.latency_us += took + 5_000;
            }
            sample.added = sample.added.plus(&added);
            sample.connections = 50;
            let age = self.now.saturating_duration_since(proc.born).as_secs();
            // What is healthy fills its pools and then stays about where it is.
            sample.resident = (12 << 20) + (6 << 20) * age.min(10) / 10 + self.random.below(512 << 10);
            if proc.build == Build::Leaks {
                sample.resident += age * (2 << 20);
            }
            if let Build::HangsAfter(seconds) = proc.build
                && age >= seconds
            {
                numbers.push(*number);
            }
        }
        let samples: Vec<_> = self.procs.iter().map(|(n, proc)| (*n, proc.sample.clone())).collect();
        for (number, sample) in samples {
            if self.procs.get(&number).is_some_and(|proc| !proc.hangs) {
                self.give(Event::Sample { generation: Generation(number), sample: Box::new(sample) });
            }
        }
        for number in numbers {
            self.hang(number);
        }
    }

    pub(super) fn status(&self) -> Status {
        self.supervisor.status(self.now)
    }

    /// What serves, if it really does.
    pub(super) fn serves(&self) -> Option<Target> {
        let serving = self.supervisor.serving()?;
        let proc = self.procs.get(&serving.0)?;
        let status = self.status();
        let generation = status.generations.iter().find(|g| g.generation == serving)?;
        (proc.does == Does::Accepts && !proc.hangs).then(|| generation.target.clone())
    }

    pub(super) fn upgrade(&mut self, release: &str) {
        self.give(Event::Upgrade { target: target(release) });
    }

    /// Stops and sees to it that everything is gone in time, each generation with its last record.
    pub(super) fn stop(&mut self, within: Duration) {
        self.stop_by = Some(self.now + within);
        self.give(Event::Stop { within });
        // The world itself takes up to 41 ms to bury a process that was killed.
        self.advance(within + self.policy.grace + Duration::from_millis(50));
        assert!(self.stopped, "{:#?}", self.status());
        assert_eq!(self.numbers, self.ends, "each generation has one last record");
        assert_eq!(self.supervisor.next_tick(), None);
    }
}
