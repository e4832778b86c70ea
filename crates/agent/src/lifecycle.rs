//! The life of one instance as a state machine: pure.
//!
//! Events and the time in, effects out; the shell (`instance`) carries the effects out and reports what
//! happened as the next event. Holds:
//! - the application is told to start only after its proxy was ready;
//! - while the application lives its proxy is started again whatever ended it, never giving up;
//! - endpoints leave before inbound is drained, inbound before the application is told to end, and the proxy
//!   last; there is one deadline for all of it.
//!
//! ```text
//! Waiting ──configuration whole──► Starting ──proxy ready──► Serving ──stop──► Settling ──► Draining ──► Stopping
//!    └────────────────────────────────┴───────── application gone ──────┴──────────┴────────────┴──► Ending ──► Over
//! ```

use std::time::{Duration, Instant};

/// Times of a life. All are bounds a person may want to change; none is needed for correctness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// Between withdrawing the endpoints and refusing new connections: callers learn of it meanwhile.
    pub settle: Duration,
    /// From the request to stop until the application is told to, at the latest.
    pub drain: Duration,
    /// The proxy's own last drain after the application has gone.
    pub end: Duration,
    /// Longest pause before a crashed proxy is started again.
    pub max_pause: Duration,
    /// Without a proxy that serves for so long, endpoints leave the set. The first crash is repaired within it.
    pub absent: Duration,
    /// A proxy that ran this long starts with a clean record.
    pub forgive: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(1000),
            drain: Duration::from_secs(20),
            end: Duration::from_millis(500),
            max_pause: Duration::from_secs(5),
            absent: Duration::from_millis(1000),
            forgive: Duration::from_secs(60),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// What is missing before the proxy can be started; `None` if nothing is.
    Missing(Option<String>),
    /// The proxy serves its first configuration.
    ProxyReady,
    /// The proxy ended, or could not be started. `jitter` is 0–1.
    ProxyEnded {
        /// In words.
        cause: String,
        /// Spreads restarts.
        jitter: f64,
    },
    /// The application runs.
    AppStarted,
    /// The application answers on all its ports.
    AppAnswers,
    /// The application does not answer any more.
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
    /// Start a proxy process.
    StartProxy,
    /// Tell `run` that the application may start.
    TellReady,
    /// Begin asking the application's ports, and go on as long as it runs.
    ProbeApp,
    /// Stop taking inbound connections and watch for [`Event::InboundIdle`].
    DrainInbound,
    /// Tell `run` that the application may be ended.
    TellDrained,
    /// End the proxy: drain for so long, then kill.
    EndProxy(Duration),
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

#[derive(Clone, Debug, PartialEq, Eq)]
enum Proxy {
    None,
    Running { since: Instant, ready: bool },
    Pause { until: Instant },
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
    serves: bool,
    app_runs: bool,
    app_answers: bool,
    /// Why it does not answer any more.
    app_silent: Option<String>,
    missing: Option<String>,
    failures: u32,
    restarts: u32,
    last_end: Option<String>,
    /// When the phase ends by itself.
    until: Option<Instant>,
    /// The one deadline of a stop.
    drain_until: Option<Instant>,
}

impl Lifecycle {
    /// A new instance.
    pub fn new(times: Times) -> Self {
        Self {
            times,
            phase: Phase::Waiting,
            proxy: Proxy::None,
            reachable: Reachable::Until(None),
            serves: false,
            app_runs: false,
            app_answers: false,
            app_silent: None,
            missing: Some("waiting for the control plane".to_owned()),
            failures: 0,
            restarts: 0,
            last_end: None,
            until: None,
            drain_until: None,
        }
    }

    /// Says whether the service has ports of its own.
    pub fn set_serves(&mut self, serves: bool) {
        self.serves = serves;
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Times the proxy was started again.
    pub fn restarts(&self) -> u32 {
        self.restarts
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
        let crashed = || self.last_end.as_ref().map(|cause| format!("; the last one ended: {cause}"));
        match (self.phase, &self.proxy) {
            (Phase::Waiting, _) => self.missing.clone().unwrap_or_default(),
            (Phase::Starting | Phase::Serving, Proxy::Pause { .. }) => {
                format!("the proxy ended: {}", self.last_end.as_deref().unwrap_or("unknown cause"))
            }
            (Phase::Starting, _) => format!("the proxy is starting{}", crashed().unwrap_or_default()),
            (Phase::Serving, Proxy::Running { ready: false, .. }) => {
                format!("the proxy is starting again{}", crashed().unwrap_or_default())
            }
            (Phase::Serving, _) if self.app_runs && !self.app_answers && self.serves => {
                let yet = || "the application does not answer on its ports yet".to_owned();
                self.app_silent.clone().unwrap_or_else(yet)
            }
            (Phase::Serving, _) if !self.app_runs => "the application has not started yet".to_owned(),
            (Phase::Settling, _) => "leaving: callers are told".to_owned(),
            (Phase::Draining, _) => "leaving: open requests are finished".to_owned(),
            (Phase::Stopping, _) => "leaving: the application is ending".to_owned(),
            (Phase::Ending | Phase::Over, _) => "the application has ended".to_owned(),
            _ => String::new(),
        }
    }

    /// When [`Event::Tick`] is due, if at all.
    pub fn next_tick(&self) -> Option<Instant> {
        let pause = match self.proxy {
            Proxy::Pause { until } if self.phase != Phase::Ending => Some(until),
            _ => None,
        };
        let absent = match self.reachable {
            Reachable::Until(until) if self.phase == Phase::Serving => until,
            _ => None,
        };
        [self.until, pause, absent].into_iter().flatten().min()
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
                    self.start(now, &mut effects);
                }
            }
            Event::ProxyReady => {
                if let Proxy::Running { ready, .. } = &mut self.proxy {
                    *ready = true;
                    self.reachable = Reachable::Until(None);
                }
                if self.phase == Phase::Starting {
                    self.phase = Phase::Serving;
                    effects.push(Effect::TellReady);
                }
            }
            Event::ProxyEnded { cause, jitter } => self.proxy_ended(now, cause, jitter, &mut effects),
            Event::AppStarted => {
                self.app_runs = true;
                self.app_answers |= !self.serves;
                // One without ports may get some later.
                if self.phase == Phase::Serving {
                    effects.push(Effect::ProbeApp);
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
            Event::Stop { within } => self.stop(now, within, &mut effects),
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

    fn start(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.proxy = Proxy::Running { since: now, ready: false };
        effects.push(Effect::StartProxy);
    }

    fn proxy_ended(&mut self, now: Instant, cause: String, jitter: f64, effects: &mut Vec<Effect>) {
        let Proxy::Running { since, .. } = self.proxy else { return };
        self.last_end = Some(cause);
        if self.phase == Phase::Ending {
            self.proxy = Proxy::None;
            self.over(effects);
            return;
        }
        if now.duration_since(since) >= self.times.forgive {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.restarts = self.restarts.saturating_add(1);
        // The first crash is repaired at once: connections wait in the kernel's queue meanwhile.
        let pause = match self.failures {
            1 => Duration::ZERO,
            n => Duration::from_millis(100).saturating_mul(1 << (n - 2).min(10)).min(self.times.max_pause),
        };
        let pause = pause.mul_f64(1.0 - 0.25 * jitter.clamp(0.0, 1.0));
        // A crash that is repaired soon is nothing callers need to know of: they wait in the socket's queue.
        self.reachable = match self.reachable {
            Reachable::Until(None) if pause < self.times.absent => {
                Reachable::Until(Some(now + self.times.absent))
            }
            _ => Reachable::No,
        };
        self.proxy = Proxy::Pause { until: now + pause };
    }

    fn stop(&mut self, now: Instant, within: Option<Duration>, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Waiting | Phase::Starting => self.app_may_end(effects),
            Phase::Serving if self.serves && self.app_answers => {
                self.phase = Phase::Settling;
                let drain = within.map_or(self.times.drain, |within| within.min(self.times.drain));
                let deadline = now + drain;
                self.drain_until = Some(deadline);
                self.until = Some((now + self.times.settle).min(deadline));
            }
            Phase::Serving | Phase::Settling | Phase::Draining => self.app_may_end(effects),
            Phase::Stopping | Phase::Ending | Phase::Over => {}
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
            Proxy::Running { .. } => effects.push(Effect::EndProxy(self.times.end)),
            _ => self.over(effects),
        }
    }

    fn over(&mut self, effects: &mut Vec<Effect>) {
        self.proxy = Proxy::None;
        self.phase = Phase::Over;
        effects.push(Effect::Over);
    }

    fn pass_time(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if let Proxy::Pause { until } = self.proxy
            && until <= now
            && !matches!(self.phase, Phase::Ending | Phase::Over)
        {
            self.start(now, effects);
        }
        if matches!(self.reachable, Reachable::Until(Some(until)) if until <= now) {
            self.reachable = Reachable::No;
        }
        if self.until.is_some_and(|until| until <= now) {
            match self.phase {
                Phase::Settling => {
                    self.phase = Phase::Draining;
                    self.until = self.drain_until;
                    effects.push(Effect::DrainInbound);
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
