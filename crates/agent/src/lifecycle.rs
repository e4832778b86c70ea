//! The life of one instance as a state machine: pure.
//!
//! Events and the time in, effects out; the shell (`instance`) carries the effects out and reports what
//! happened as the next event. The life of its proxy is another machine's (`outrider-supervise`): here it is told to
//! begin and to end, and heard of as serving or not. Holds:
//! - the application is told to start only after its proxy was ready;
//! - endpoints leave first; inbound is drained when callers know of it, or had time to; then the application is told
//!   to end, and the proxy is ended last; there is one deadline for all of it.
//!
//! ```text
//! Waiting ──configuration whole──► Starting ──proxy serves──► Serving ──stop──► Settling ──► Draining ──► Stopping
//!    └────────────────────────────────┴───────── application gone ──────┴──────────┴────────────┴──► Ending ──► Over
//! ```

use std::time::{Duration, Instant};

/// Times of a life. All are bounds a person may want to change; none is needed for correctness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// Between withdrawing the endpoints and refusing new connections, at most: callers learn of it meanwhile.
    pub settle: Duration,
    /// The same when all callers are known to have learnt of it: what they had begun may be on its way.
    pub grace: Duration,
    /// The same at most when there is no control plane that could tell them.
    pub untold: Duration,
    /// From the request to stop until the application is told to, at the latest.
    pub drain: Duration,
    /// The proxy's own last drain after the application has gone.
    pub end: Duration,
    /// Without a proxy that serves for so long, endpoints leave the set. A crash is repaired within it.
    pub absent: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(5),
            grace: Duration::from_millis(100),
            untold: Duration::from_millis(1000),
            drain: Duration::from_secs(20),
            end: Duration::from_millis(500),
            absent: Duration::from_millis(1000),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// What is missing before the proxy can be started; `None` if nothing is.
    Missing(Option<String>),
    /// The proxy takes connections.
    ProxyServes,
    /// No process of the proxy takes connections any more.
    ProxyAbsent,
    /// A process ended, or could not be started, in words.
    ProxyEnded {
        /// Why.
        cause: String,
        /// Whether it ever took connections.
        served: bool,
    },
    /// Nothing is left of the proxy.
    ProxyStopped,
    /// The application runs.
    AppStarted,
    /// The application answers on all its ports.
    AppAnswers,
    /// The application does not answer any more, or did not begin to in good time.
    AppSilent {
        /// In words.
        reason: String,
    },
    /// The application is to be stopped, and told so at the latest after `within` (or [`Times::drain`] if that is
    /// shorter). A second time: at once.
    Stop {
        /// The bound of who stops it.
        within: Option<Duration>,
    },
    /// Callers are to go elsewhere for good: what they have open ends after `within` (or [`Times::drain`]) at the latest.
    /// The application runs on.
    Drain {
        /// The bound of who asks.
        within: Option<Duration>,
    },
    /// Every caller knows that the endpoints have gone.
    CallersLeft,
    /// Nobody tells callers: there is no control plane.
    CallersUntold,
    /// Nothing is open on inbound listeners.
    InboundIdle,
    /// The application has ended, or whoever held it has gone.
    AppEnded,
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Begin the proxy's life.
    StartProxy,
    /// Tell `run` that the application may start.
    TellReady,
    /// Begin asking the application's ports, and go on as long as it runs.
    ProbeApp {
        /// Whether it answers as far as is known.
        answers: bool,
    },
    /// Stop taking inbound connections, finish those that are open within this time, and watch for
    /// [`Event::InboundIdle`].
    DrainInbound(Duration),
    /// Tell `run` that the application may be ended.
    TellDrained,
    /// End the proxy's life: drain for so long at most. Leads to [`Event::ProxyStopped`].
    StopProxy(Duration),
    /// All is done; forget the instance.
    Over,
}

/// Where in its life an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// For its configuration.
    Waiting,
    /// Its proxy is being started for the first time.
    Starting,
    /// The application may run.
    Serving,
    /// Endpoints are withdrawn.
    Settling,
    /// Inbound is closed to new connections.
    Draining,
    /// The application was told to end.
    Stopping,
    /// The application has gone, the proxy is going.
    Ending,
    /// Nothing is left.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proxy {
    /// Not begun.
    None,
    Absent,
    Serves,
    Stopped,
}

/// Whether there is a proxy to send callers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reachable {
    /// There is, or will be until then.
    Until(Option<Instant>),
    No,
}

/// One instance's state.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    times: Times,
    phase: Phase,
    proxy: Proxy,
    reachable: Reachable,
    /// Once it is known.
    serves: Option<bool>,
    app_runs: bool,
    app_answers: bool,
    /// Why it does not answer.
    app_silent: Option<String>,
    missing: Option<String>,
    last_end: Option<String>,
    /// When the phase ends by itself.
    until: Option<Instant>,
    /// The one deadline of a stop.
    drain_until: Option<Instant>,
    /// It leaves by request, and was not stopped since.
    asked: bool,
}

impl Lifecycle {
    /// A new instance.
    pub fn new(times: Times) -> Self {
        Self {
            times,
            phase: Phase::Waiting,
            proxy: Proxy::None,
            reachable: Reachable::Until(None),
            serves: None,
            app_runs: false,
            app_answers: false,
            app_silent: None,
            missing: Some("waiting for the control plane".to_owned()),
            last_end: None,
            until: None,
            drain_until: None,
            asked: false,
        }
    }

    /// An instance that was here before this agent, with its application, which was ready or not. Its processes are
    /// taken to be there until they are `expected` to have come.
    pub fn resumed(times: Times, answers: bool, expected: Instant) -> Self {
        let absent = expected + times.absent;
        Self {
            phase: Phase::Serving,
            proxy: Proxy::Absent,
            reachable: Reachable::Until(Some(absent)),
            app_runs: true,
            app_answers: answers,
            missing: None,
            ..Self::new(times)
        }
    }

    /// The same of one whose inbound was being drained: what is open with callers has until then.
    #[must_use]
    pub fn drained(self, until: Instant) -> Self {
        Self { phase: Phase::Draining, until: Some(until), drain_until: Some(until), asked: true, ..self }
    }

    /// How long what is open with callers still has, while inbound leaves or has left and the application is there.
    pub fn drains(&self, now: Instant) -> Option<Duration> {
        let left =
            |until: Option<Instant>| until.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        match self.phase {
            Phase::Settling | Phase::Draining => Some(left(self.drain_until)),
            Phase::Stopping => Some(Duration::ZERO),
            _ => None,
        }
    }

    /// The deadline of what is open with callers, once inbound leaves; it stays what it was.
    pub fn drain_until(&self) -> Option<Instant> {
        self.drain_until
    }

    /// Says whether the service has ports of its own.
    pub fn set_serves(&mut self, serves: bool) {
        self.serves = Some(serves);
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether its endpoints belong into the endpoint set.
    pub fn in_endpoint_set(&self) -> bool {
        self.phase == Phase::Serving && self.app_answers && self.reachable != Reachable::No
    }

    /// Whether it is on its way out.
    pub fn leaving(&self) -> bool {
        matches!(
            self.phase,
            Phase::Settling | Phase::Draining | Phase::Stopping | Phase::Ending | Phase::Over
        )
    }

    /// Why it is where it is, for people; empty if there is nothing to say.
    pub fn reason(&self) -> String {
        let last = || self.last_end.as_ref().map(|cause| format!("; the last one ended: {cause}"));
        match (self.phase, &self.proxy) {
            (Phase::Waiting, _) => self.missing.clone().unwrap_or_default(),
            (Phase::Starting, _) => format!("the proxy is starting{}", last().unwrap_or_default()),
            (Phase::Serving, Proxy::Absent) => {
                format!("the proxy is starting again{}", last().unwrap_or_default())
            }
            (Phase::Serving, _) if self.app_runs && !self.app_answers && self.serves == Some(true) => {
                let yet = || "the application does not answer on its ports yet".to_owned();
                self.app_silent.clone().unwrap_or_else(yet)
            }
            (Phase::Serving, _) if !self.app_runs => "the application has not started yet".to_owned(),
            (Phase::Settling, _) => "leaving: callers are told".to_owned(),
            (Phase::Draining, _) => "leaving: open requests are finished".to_owned(),
            (Phase::Stopping, _) => "leaving: nothing reaches the application any more".to_owned(),
            (Phase::Ending | Phase::Over, _) => "the application has ended".to_owned(),
            _ => String::new(),
        }
    }

    /// Why its application, which runs, is not reached, once that is worth a word.
    pub fn silence(&self) -> Option<&str> {
        let runs = self.phase == Phase::Serving && self.app_runs && self.serves == Some(true);
        self.app_silent.as_deref().filter(|_| runs)
    }

    /// When [`Event::Tick`] is due, if at all.
    pub fn next_tick(&self) -> Option<Instant> {
        let absent = match self.reachable {
            Reachable::Until(until) if self.phase == Phase::Serving => until,
            _ => None,
        };
        [self.until, absent].into_iter().flatten().min()
    }

    /// Takes an event in.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Missing(missing) => {
                let whole = missing.is_none();
                self.missing = missing;
                if whole && self.phase == Phase::Waiting {
                    self.phase = Phase::Starting;
                    self.proxy = Proxy::Absent;
                    effects.push(Effect::StartProxy);
                }
            }
            Event::ProxyServes => {
                self.proxy = Proxy::Serves;
                self.reachable = Reachable::Until(None);
                if self.phase == Phase::Starting {
                    self.phase = Phase::Serving;
                    effects.push(Effect::TellReady);
                }
            }
            Event::ProxyAbsent => {
                // A crash that is repaired soon is nothing callers need to know of: they wait in the socket's queue.
                if self.proxy == Proxy::Serves {
                    self.proxy = Proxy::Absent;
                    self.reachable = Reachable::Until(Some(now + self.times.absent));
                }
            }
            Event::ProxyEnded { cause, served } => {
                self.last_end = Some(cause);
                // One that ends before it was ready is not coming back soon.
                if self.proxy == Proxy::Absent && !served {
                    self.reachable = Reachable::No;
                }
            }
            Event::ProxyStopped => {
                self.proxy = Proxy::Stopped;
                if self.phase == Phase::Ending {
                    self.over(&mut effects);
                }
            }
            Event::AppStarted => {
                self.app_runs = true;
                self.app_answers |= self.serves == Some(false);
                // One without ports may get some later.
                if self.phase == Phase::Serving {
                    effects.push(Effect::ProbeApp { answers: self.app_answers });
                }
            }
            Event::AppAnswers => {
                self.app_answers = true;
                self.app_silent = None;
            }
            Event::AppSilent { reason } => {
                self.app_answers = false;
                self.app_silent = Some(reason);
            }
            Event::Stop { within } => {
                let within = within.map_or(self.times.drain, |within| within.min(self.times.drain));
                self.stop(now, within, &mut effects);
            }
            Event::Drain { within } if !self.leaving() => {
                self.stop(now, within.unwrap_or(self.times.drain), &mut effects);
                self.asked = true;
            }
            // A second one would end what is being finished.
            Event::Drain { .. } => {}
            Event::CallersLeft => self.settle_within(now, self.times.grace),
            Event::CallersUntold => self.settle_within(now, self.times.untold),
            Event::InboundIdle => {
                if self.phase == Phase::Draining {
                    self.app_may_end(&mut effects);
                }
            }
            Event::AppEnded => self.app_ended(&mut effects),
            Event::Tick => {}
        }
        self.pass_time(now, &mut effects);
        effects
    }

    fn stop(&mut self, now: Instant, within: Duration, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Waiting | Phase::Starting => self.app_may_end(effects),
            Phase::Serving if self.serves == Some(true) && self.app_answers => {
                self.phase = Phase::Settling;
                self.drain_until = Some(now + within);
                // Half of the time is for what is open.
                self.until = Some(now + self.times.settle.min(within / 2));
            }
            // What may have had hours has no more than what is stopped.
            Phase::Settling | Phase::Draining if std::mem::take(&mut self.asked) => {
                let deadline = now + within;
                self.drain_until = self.drain_until.map(|until| until.min(deadline));
                let phase_ends = match self.phase {
                    Phase::Settling => Some(now + self.times.settle.min(within / 2)),
                    _ => self.drain_until,
                };
                self.until = self.until.min(phase_ends).or(phase_ends);
            }
            Phase::Serving | Phase::Settling | Phase::Draining => self.app_may_end(effects),
            // Drained by request before.
            Phase::Stopping => effects.push(Effect::TellDrained),
            Phase::Ending | Phase::Over => {}
        }
    }

    /// Goes on to drain inbound in this time, if not sooner.
    fn settle_within(&mut self, now: Instant, within: Duration) {
        if self.phase == Phase::Settling {
            let at = now + within;
            self.until = Some(self.until.map_or(at, |until| until.min(at)));
        }
    }

    fn app_may_end(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Stopping;
        self.until = None;
        effects.push(Effect::TellDrained);
    }

    fn app_ended(&mut self, effects: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Ending | Phase::Over) {
            return;
        }
        self.app_runs = false;
        self.phase = Phase::Ending;
        self.until = None;
        match self.proxy {
            Proxy::Absent | Proxy::Serves => effects.push(Effect::StopProxy(self.times.end)),
            Proxy::None | Proxy::Stopped => self.over(effects),
        }
    }

    fn over(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Over;
        effects.push(Effect::Over);
    }

    fn pass_time(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if matches!(self.reachable, Reachable::Until(Some(until)) if until <= now) {
            self.reachable = Reachable::No;
        }
        if self.until.is_some_and(|until| until <= now) {
            match self.phase {
                Phase::Settling => {
                    self.phase = Phase::Draining;
                    self.until = self.drain_until;
                    let left =
                        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
                    effects.push(Effect::DrainInbound(left));
                    if self.until.is_some_and(|until| until <= now) {
                        self.app_may_end(effects);
                    }
                }
                Phase::Draining => self.app_may_end(effects),
                _ => self.until = None,
            }
        }
    }
}

#[cfg(test)]
mod tests;
