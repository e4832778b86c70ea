//! What the workers know together of a cluster: how much runs, and which endpoints are left alone.
//!
//! ```text
//! worker ── ended(endpoint, outcome) ──► detector ─┐
//! prober ── checked(endpoint, found) ──► checker ──┴─► epoch ──► every worker's balancer, at its next pick
//! ```
//! There is one per cluster and process, so that an ejection counts everywhere and limits are what was declared. Holds: a
//! request takes no lock, unless it failed, its endpoint failed just before, or a second has passed since anybody
//! looked; a limit is never exceeded, and a place that is free goes to who waits for one.
//!
//! What a request that goes well costs here: three additions and two subtractions that are atomic (it runs, there was
//! one more, its connection serves something), two more where outcomes are counted by endpoint, and loads. Everything
//! else is a worker's own: it reaches this through a [`Lease`], which is copied without any, and limits and endpoints
//! are known to it by place. Does not: pick, connect, or check by itself (see [`crate::probe`]).

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use outrider_proxy_core::balance::{Aside, Balancer};
use outrider_proxy_core::health::{Checker, Found, Health};
use outrider_proxy_core::outlier::{Count, Detector, Event, Outcome, Why};
use outrider_proxy_core::retry::budget::{Budget, BudgetConfig};
use tokio::sync::Notify;

use crate::config::{Cluster, Endpoint};

mod turns;

pub use turns::Turn;

/// How often the budget is told of the requests, in milliseconds.
const SECOND: u64 = 1000;

/// Events of a cluster that wait to be written to the log; more are only counted.
const UNTOLD: usize = 256;

/// Longest cause of a check that is kept, in characters.
const MAX_CAUSE: usize = 160;

/// Most of one cluster at once, in all workers together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Connections that serve something. Idle ones of other workers may come on top of them for a while.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests.
    pub requests: u32,
    /// Retries that are budgeted, if that is said.
    pub retries: Option<u32>,
    /// The same as a share of the requests that run, with a least number.
    pub budget: BudgetConfig,
}

impl Default for Limits {
    /// Envoy's, but for the retries: the budget bounds them (needs N47).
    fn default() -> Self {
        Self {
            connections: 1024,
            pending: 1024,
            requests: 1024,
            retries: None,
            budget: BudgetConfig::default(),
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Shared {
    requests: AtomicU32,
    /// Connections that serve something.
    busy: AtomicU32,
    /// Connections.
    open: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
    /// Requests since the beginning.
    total: AtomicU64,
    /// Of who is out of choice: changes whenever others are.
    epoch: AtomicU64,
    /// When somebody is to look, on the clock that all threads have in common.
    due: AtomicU64,
    ejections: AtomicU64,
    retries_refused: AtomicU64,
    /// Who waits for a place among the busy connections.
    turns: turns::Turns,
    /// There is something new for who checks the endpoints.
    pub look: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    name: Arc<str>,
    endpoints: Option<Arc<[Endpoint]>>,
    /// Whom discovery calls bad.
    ill: HashSet<SocketAddr>,
    detector: Option<Detector<SocketAddr>>,
    tallies: HashMap<SocketAddr, Arc<Tally>>,
    checker: Option<Checker<SocketAddr>>,
    /// What the last check found wrong, of endpoints that fail theirs.
    causes: HashMap<SocketAddr, String>,
    budget: Budget,
    out: Aside<SocketAddr>,
    untold: Vec<(SocketAddr, Event)>,
}

/// What can be said of an endpoint without a lock.
#[derive(Default)]
pub struct Tally {
    /// It has failures in a row, so a good answer is to be told.
    remembered: AtomicBool,
    /// Answers and, if they are judged apart, failures without one: all and failed.
    counts: [[AtomicU32; 2]; 2],
}

impl Tally {
    fn count(&self, outcome: Outcome, split: bool) {
        let answered = matches!(outcome, Outcome::Answered(_));
        let add = |kind: usize, failed: bool| {
            let [all, bad] = &self.counts[kind];
            all.fetch_add(1, Ordering::Relaxed);
            if failed {
                bad.fetch_add(1, Ordering::Relaxed);
            }
        };
        if answered || !split {
            add(0, outcome.is_failure());
        }
        if split {
            add(1, !answered);
        }
    }

    fn take(&self) -> [Count; 2] {
        let take = |kind: usize| Count {
            failed: self.counts[kind][1].swap(0, Ordering::Relaxed),
            total: self.counts[kind][0].swap(0, Ordering::Relaxed),
        };
        [take(0), take(1)]
    }
}

/// Counts one more while there are fewer than `most`.
fn enter(count: &AtomicU32, most: u32) -> bool {
    // Never one too many, not even for a moment: others would see it, and take what is free for taken.
    let more = |now: u32| (now < most).then_some(now.wrapping_add(1));
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
}

macro_rules! place {
    ($(#[$doc:meta])* $name:ident $count:ident) => {
        $(#[$doc])*
        pub struct $name<S: Deref<Target = Shared> = Lease>(S);

        impl<S: Deref<Target = Shared>> Drop for $name<S> {
            fn drop(&mut self) {
                self.0.$count.fetch_sub(1, Ordering::SeqCst);
            }
        }
    };
}

place!(
    /// A request that runs.
    Running requests
);
place!(
    /// A request that waits for a connection.
    Waiting pending
);
place!(
    /// A retry that runs.
    Retrying retries
);
place!(
    /// A connection that is open.
    Opened open
);

/// A place among the connections that serve something.
pub struct Busy<S: Deref<Target = Shared> = Lease>(S);

impl<S: Deref<Target = Shared>> Drop for Busy<S> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
        self.0.turns.freed();
    }
}

/// Numbers to show.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// Endpoints ejected so far.
    pub ejections: u64,
    /// Retries that there was no budget for.
    pub retries_refused: u64,
    /// How many endpoints are left alone; see [`Shared::unused`].
    pub out: u64,
}

/// One worker's way to what all know: copied with every request, which must not cost what copying an [`Arc`] does.
#[derive(Clone)]
#[allow(
    clippy::redundant_allocation,
    reason = "the inner one is shared with other threads, the outer one copied"
)]
pub struct Lease(Rc<Arc<Shared>>);

impl Lease {
    /// To this.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self(Rc::new(shared))
    }
}

impl Deref for Lease {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// What counts while somebody holds it. The holder keeps a copy of the way it was counted by.
pub trait Places: Deref<Target = Shared> + Clone {
    /// Counts a request, unless there are too many.
    fn begin(&self, limits: &Limits) -> Option<Running<Self>> {
        let running = enter(&self.requests, limits.requests).then(|| Running(self.clone()))?;
        if self.total.fetch_add(1, Ordering::Relaxed) == 0 {
            self.look.notify_one();
        }
        Some(running)
    }

    /// A place for a connection that serves something, if there is one besides those for who waits.
    fn try_busy(&self, limits: &Limits) -> Option<Busy<Self>> {
        let most = limits.connections.saturating_sub(self.turns.count());
        enter(&self.busy, most).then(|| Busy(self.clone()))
    }

    /// Counts a request that waits for such a place, unless there are too many.
    fn wait(&self, limits: &Limits) -> Option<Waiting<Self>> {
        enter(&self.pending, limits.pending).then(|| Waiting(self.clone()))
    }

    /// Waits for such a place, behind those that wait already; to be called while [`Waiting`].
    fn busy(&self, limits: Limits) -> Turn<Self> {
        Turn::new(self.clone(), limits.connections)
    }

    /// Counts an open connection.
    fn opened(&self) -> Opened<Self> {
        self.open.fetch_add(1, Ordering::SeqCst);
        Opened(self.clone())
    }

    /// Whether a retry that is one more load on somebody may be made now.
    fn retry(&self, limits: &Limits, now: u64) -> Option<Retrying<Self>> {
        let running = f64::from(self.requests.load(Ordering::Relaxed)) * limits.budget.percent / 100.0;
        // Bounded above by the number of requests, so the conversion is exact but for the fraction.
        let share = (running as u32).max(limits.budget.least_per_second);
        let retrying = enter(&self.retries, limits.retries.unwrap_or(share)).then(|| Retrying(self.clone()));
        let total = self.total.load(Ordering::Relaxed);
        let retrying = retrying.filter(|_| self.state().budget.take(limits.budget, now, total));
        if retrying.is_none() {
            self.retries_refused.fetch_add(1, Ordering::Relaxed);
        }
        retrying
    }
}

impl<S: Deref<Target = Shared> + Clone> Places for S {}

/// What may be different about who is out of choice.
enum Changed {
    /// Who the detector says has been ejected or returned, as after every change.
    Ejections,
    /// And this one.
    One(SocketAddr),
    /// Anybody.
    All,
}

/// Why an endpoint is out of choice: what its checks say, and why and until when it is ejected.
type Out = (Option<Health>, Option<(Why, u64)>);

impl Shared {
    /// Whether the cluster ever had a request.
    pub fn had_traffic(&self) -> bool {
        self.total.load(Ordering::Relaxed) > 0
    }

    /// How many wait for a place among the busy connections.
    pub fn waiting(&self) -> u32 {
        self.turns.count()
    }

    /// How many connections are open.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::SeqCst)
    }

    /// Which change of the endpoints out of choice is the latest; does what is due. One load while nothing is.
    pub fn epoch(&self, now: u64, random: impl Fn() -> u64) -> u64 {
        if now >= self.due.load(Ordering::Relaxed) {
            self.tick(now, random());
        }
        self.epoch.load(Ordering::Acquire)
    }

    fn tick(&self, now: u64, random: u64) {
        let mut state = self.state();
        state.budget.note(now, self.total.load(Ordering::Relaxed));
        let State { detector, tallies, .. } = &mut *state;
        if let Some(detector) = detector {
            detector.tick(now, random, |key| tallies.get(key).map(|tally| tally.take()).unwrap_or_default());
        }
        self.settle(&mut state, Changed::Ejections, now);
    }

    /// Has a balancer take over who is out of choice; see [`Balancer::follow`].
    pub fn lead(&self, balancer: &mut Balancer, since: u64) -> u64 {
        balancer.follow(&self.state().out, since)
    }

    /// The tally of an endpoint.
    pub fn tally(&self, endpoint: SocketAddr) -> Arc<Tally> {
        Arc::clone(self.state().tallies.entry(endpoint).or_default())
    }

    /// A request to an endpoint has ended. `tally` is that endpoint's.
    pub fn ended(
        &self,
        cluster: &Cluster,
        endpoint: &SocketAddr,
        tally: &Tally,
        outcome: Outcome,
        now: u64,
        random: u64,
    ) {
        let Some(config) = &cluster.outlier else { return };
        if config.has_rates() {
            tally.count(outcome, config.split);
        }
        if !outcome.is_failure() && !tally.remembered.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state();
        let Some(detector) = &mut state.detector else { return };
        detector.ended(endpoint, outcome, now, random);
        tally.remembered.store(!detector.is_clean(endpoint), Ordering::Relaxed);
        if detector.has_events() {
            self.settle(&mut state, Changed::Ejections, now);
        }
    }

    /// Takes a new configuration of the cluster. To be called before the workers have it.
    pub fn configure(&self, cluster: &Cluster, now: u64, mut random: impl FnMut() -> u64) {
        self.turns.limit(cluster.limits.connections, &self.busy);
        let mut state = self.state();
        state.name = Arc::clone(&cluster.name);
        let same = state.endpoints.as_ref().is_some_and(|known| Arc::ptr_eq(known, &cluster.endpoints));
        let State { detector, checker, .. } = &mut *state;
        match (&mut *detector, &cluster.outlier) {
            (Some(detector), Some(config)) => detector.configure(*config, now),
            (none, Some(config)) => *none = Some(Detector::new(*config, now)),
            (gone, None) => *gone = None,
        }
        match (&mut *checker, &cluster.check) {
            (Some(checker), Some(check)) => checker.configure(check.timing, now),
            (none, Some(check)) => *none = Some(Checker::new(check.timing)),
            (gone, None) => *gone = None,
        }
        if let Some(checker) = checker {
            // Whoever discovery calls bad is checked, too: it says when that is over, and then is used at once.
            checker.update(cluster.endpoints.iter().map(|endpoint| endpoint.key), now, &mut random);
        }
        state.endpoints = Some(Arc::clone(&cluster.endpoints));
        if !same {
            let listed: HashSet<_> = cluster.endpoints.iter().map(|endpoint| endpoint.key).collect();
            state.tallies.retain(|address, _| listed.contains(address));
            state.causes.retain(|address, _| listed.contains(address));
            state.ill.clear();
            for endpoint in &*cluster.endpoints {
                // Of one that is named twice the last entry counts.
                if endpoint.healthy {
                    state.ill.remove(&endpoint.key);
                } else {
                    state.ill.insert(endpoint.key);
                }
            }
        }
        Self::tell_detector(&mut state);
        self.settle(&mut state, Changed::All, now);
    }

    /// Says to the detector who there is, and who is well apart from what it finds.
    fn tell_detector(state: &mut State) {
        let State { detector: Some(detector), checker, endpoints: Some(endpoints), .. } = state else {
            return;
        };
        let sick = |address: &SocketAddr| {
            checker.as_ref().is_some_and(|checker| checker.health(address) == Health::Unhealthy)
        };
        detector.update(endpoints.iter().map(|one| (one.key, one.healthy && !sick(&one.key))));
    }

    /// An endpoint whose check is due and counts as begun.
    pub fn begin_check(&self, now: u64) -> Option<SocketAddr> {
        self.state().checker.as_mut()?.begin(now)
    }

    /// Nobody is at the checks that have begun.
    pub fn abandon_checks(&self, now: u64) {
        if let Some(checker) = &mut self.state().checker {
            checker.abandon(now);
        }
    }

    /// When the next check is due.
    pub fn next_check(&self) -> u64 {
        self.state().checker.as_ref().map_or(u64::MAX, Checker::next)
    }

    /// The first request has come, so checks are made more often.
    pub fn check_sooner(&self, now: u64) {
        if let Some(checker) = &mut self.state().checker {
            checker.awake(now);
        }
    }

    /// A check has ended.
    pub fn checked(&self, endpoint: &SocketAddr, found: Found, cause: &str, now: u64, random: u64) {
        let traffic = self.had_traffic();
        let mut state = self.state();
        let State { checker, detector, causes, ill, name, .. } = &mut *state;
        let Some(checker) = checker else { return };
        let others = checker.has_healthy();
        let verdict = checker.end(endpoint, found, traffic, now, random);
        match checker.health(endpoint) {
            Health::Unhealthy if found != Found::Good => {
                causes.insert(*endpoint, cause.chars().take(MAX_CAUSE).collect());
            }
            Health::Unhealthy => {}
            _ => {
                causes.remove(endpoint);
            }
        }
        if let Some(detector) = detector {
            if let Some(verdict) = verdict {
                let sick = verdict == Health::Unhealthy;
                detector.set_available(endpoint, !sick && !ill.contains(endpoint));
            }
            if found == Found::Good {
                detector.passed(endpoint);
            }
        }
        let changed = match verdict {
            Some(_) if checker.has_healthy() != others => Changed::All,
            Some(_) => Changed::One(*endpoint),
            None if detector.as_ref().is_some_and(Detector::has_events) => Changed::Ejections,
            None => return,
        };
        let name = Arc::clone(name);
        self.settle(&mut state, changed, now);
        drop(state);
        // Workers need not wait for the log.
        match verdict {
            Some(Health::Unhealthy) => tracing::warn!(cluster = &*name, %endpoint, cause, "fails its checks"),
            Some(_) => tracing::info!(cluster = &*name, %endpoint, "passes its checks"),
            None => {}
        }
    }

    /// Makes known who is out of choice, says why, and when to look again.
    fn settle(&self, state: &mut State, changed: Changed, now: u64) {
        let State { detector, checker, out, untold, .. } = state;
        let is_out = |address: &SocketAddr, detector: Option<&Detector<SocketAddr>>| {
            detector.is_some_and(|detector| detector.is_ejected(address))
                || checker.as_ref().is_some_and(|checker| checker.is_unusable(address))
        };
        for (endpoint, event) in detector.as_mut().map(Detector::events).unwrap_or_default() {
            out.set(&endpoint, is_out(&endpoint, detector.as_ref()));
            if matches!(event, Event::Ejected(..)) {
                self.ejections.fetch_add(1, Ordering::Relaxed);
            }
            if untold.len() < UNTOLD {
                untold.push((endpoint, event));
            }
        }
        match changed {
            Changed::Ejections => {}
            Changed::One(address) => out.set(&address, is_out(&address, detector.as_ref())),
            Changed::All => {
                let ejected = detector.iter().flat_map(Detector::ejected).map(|(address, ..)| *address);
                let unusable = checker.iter().flat_map(Checker::unusable).map(|(address, _)| *address);
                out.replace(ejected.chain(unusable));
            }
        }
        self.epoch.store(out.epoch(), Ordering::Release);
        let next = detector.as_ref().map_or(u64::MAX, Detector::next);
        self.due.store(next.min(now.saturating_add(SECOND)), Ordering::Relaxed);
    }

    /// Numbers of now. Writes to the log what happened to endpoints, which a worker would have to wait for.
    pub fn numbers(&self, now: u64, random: u64) -> Numbers {
        self.epoch(now, || random);
        let (untold, name) = {
            let mut state = self.state();
            (std::mem::take(&mut state.untold), Arc::clone(&state.name))
        };
        for (endpoint, event) in untold {
            match event {
                Event::Ejected(why, ms) => {
                    tracing::warn!(cluster = &*name, %endpoint, %why, ms, "ejected");
                }
                Event::Returned => tracing::info!(cluster = &*name, %endpoint, "no longer ejected"),
            }
        }
        Numbers {
            ejections: self.ejections.load(Ordering::Relaxed),
            retries_refused: self.retries_refused.load(Ordering::Relaxed),
            out: self.state().out.len() as u64,
        }
    }

    /// The first few endpoints that are left alone, by address, and why. Now is also
    /// `clock`, in milliseconds since 1970.
    pub fn unused(&self, most: usize, now: u64, clock: u64) -> BTreeMap<String, String> {
        let state = self.state();
        // Who fails its checks and is ejected as well is out for both.
        let mut first: BTreeMap<SocketAddr, Out> = BTreeMap::new();
        for (address, health) in state.checker.iter().flat_map(Checker::unusable) {
            first.entry(*address).or_default().0 = Some(health);
            if first.len() > most {
                first.pop_last();
            }
        }
        for (address, why, until) in state.detector.iter().flat_map(Detector::ejected) {
            first.entry(*address).or_default().1 = Some((why, until));
            if first.len() > most {
                first.pop_last();
            }
        }
        let told = |(address, (health, ejected)): (SocketAddr, Out)| {
            let checks = health.map(|health| match (health, state.causes.get(&address)) {
                (Health::Unhealthy, Some(cause)) => format!("fails its checks: {cause}"),
                (Health::Unhealthy, None) => "fails its checks".to_owned(),
                _ => "was not checked yet".to_owned(),
            });
            let ejected = ejected.map(|(why, until)| {
                let until = clock.saturating_add(until.saturating_sub(now));
                format!("ejected: {why}, until {}", time_of_day(until))
            });
            let why: Vec<String> = checks.into_iter().chain(ejected).collect();
            (address.to_string(), why.join("; "))
        };
        first.into_iter().map(told).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic ends the process, so nobody sees a state that somebody left in the middle.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time of day of a time in milliseconds since 1970.
fn time_of_day(ms: u64) -> String {
    let seconds = ms / 1000;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests;
