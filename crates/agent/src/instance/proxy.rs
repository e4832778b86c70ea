//! The proxy of an instance: carries out what its supervisor decides, and reports what its processes do.
//!
//! Holds: every process has an xDS socket of its own, so what one says is known from what another says; every process
//! gets every listening socket. Does not: decide.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrider_handover::Stats;
use outrider_os::process::ProcessId;
use outrider_supervise::{
    Cause, Effect, Event, Exit, Generation, Happened, Lost, Memory, Policy, Record, Refusal, Supervisor,
    Target, gate::Sample,
};
use outrider_xds::server::Seen;
use outrider_xds_types::{names, type_url};
use tokio::sync::mpsc;

use super::report::traffic;
use super::saved::SavedGeneration;
use super::totals::Totals;
use super::{Instance, Work};
use crate::control::{self, Connection, Control};
use crate::engine::{self, Command, Engine, Reports, Running, Spec};
use crate::inuse::{Change, InUse};
use crate::lifecycle;
use crate::random;
use crate::relay::{self, Relay};
use crate::releases::BUILTIN;

/// The supervisor's hands and ears.
pub(super) struct Proxy {
    pub(super) supervisor: Supervisor,
    pub(super) live: BTreeMap<u64, Live>,
    pub(super) in_use: InUse,
    pub(super) totals: Totals,
    /// The release asked for.
    pub(super) release: String,
    /// Crashes and hangs that were repaired.
    pub(super) restarts: u32,
    /// Refusals of the command that is carried out.
    pub(super) refused: Vec<Refusal>,
    pub(super) control: Option<Control>,
    pub(super) to_reports: mpsc::UnboundedSender<(u64, engine::Event)>,
    pub(super) to_seen: mpsc::UnboundedSender<(u64, Seen)>,
    pub(super) to_connections: mpsc::UnboundedSender<Connection>,
    /// Why no process could be started, as logged.
    no_process: String,
}

/// What processes of the proxy have to say.
pub(super) struct Heard {
    pub(super) reports: mpsc::UnboundedReceiver<(u64, engine::Event)>,
    pub(super) seen: mpsc::UnboundedReceiver<(u64, Seen)>,
    pub(super) connections: mpsc::UnboundedReceiver<Connection>,
}

/// A process.
pub(super) struct Live {
    pub(super) target: Target,
    pub(super) process: Option<ProcessId>,
    pub(super) started: SystemTime,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) version: String,
    /// What it said when it was ready: configuration and identity.
    pub(super) ready: Option<(String, Option<String>)>,
    /// It said what it does, to an agent it was not started by.
    pub(super) returned: Option<outrider_handover::State>,
    listeners_acked: bool,
    took_over: bool,
    drained: bool,
    /// Nothing that callers opened has anything under way.
    pub(super) idle: bool,
    configuration: String,
    _relay: Option<Relay>,
}

impl Proxy {
    pub(super) fn new(policy: Policy, memory: Memory, release: String, totals: Totals) -> (Self, Heard) {
        let (to_reports, reports) = mpsc::unbounded_channel();
        let (to_seen, seen) = mpsc::unbounded_channel();
        let (to_connections, connections) = mpsc::unbounded_channel();
        let proxy = Self {
            supervisor: Supervisor::new(policy, memory, Instant::now()),
            live: BTreeMap::new(),
            in_use: InUse::default(),
            totals,
            release: if release.is_empty() { BUILTIN.to_owned() } else { release },
            restarts: 0,
            refused: Vec::new(),
            control: None,
            to_reports,
            to_seen,
            to_connections,
            no_process: String::new(),
        };
        (proxy, Heard { reports, seen, connections })
    }

    /// Who serves; while none does, the newest.
    pub(super) fn shown(&self) -> Option<(u64, &Live)> {
        let serving = self.supervisor.serving().map(|generation| generation.0);
        let serving = serving.and_then(|number| Some((number, self.live.get(&number)?)));
        serving.or_else(|| self.live.iter().next_back().map(|(number, live)| (*number, live)))
    }

    pub(super) fn command(&self, generation: u64, command: Command) {
        if let Some(live) = self.live.get(&generation) {
            let _ = live.commands.send(command);
        }
    }

    /// Its processes, for a next agent.
    pub(super) fn saved(&self) -> Vec<SavedGeneration> {
        let saved = |(number, live): (&u64, &Live)| {
            let started_ms = live.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            Some(SavedGeneration {
                number: *number,
                target: live.target.clone(),
                process: live.process?,
                started_ms: u64::try_from(started_ms).unwrap_or_default(),
            })
        };
        self.live.iter().filter_map(saved).collect()
    }

    /// Asks every process for its numbers.
    pub(super) fn ask_numbers(&self) {
        for live in self.live.values() {
            let _ = live.commands.send(Command::Stats);
        }
    }
}

impl Instance {
    /// Carries out an effect of the supervisor; what follows from it at once is put into the queue.
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Remember(_) => self.save(),
            Effect::Fetch { generation, target } => self.fetch(generation, &target),
            Effect::Start { generation, target, held } => self.start_process(generation, target, held),
            Effect::Accept { generation } => self.proxy.command(generation.0, Command::Accept),
            Effect::Pause { generation } => self.proxy.command(generation.0, Command::Pause),
            Effect::Drain { generation, within } => {
                let changes = self.proxy.in_use.accepts(generation.0, false);
                self.applied(changes);
                self.proxy.command(generation.0, Command::Drain { within, inbound_only: false });
            }
            Effect::DrainInbound { generation, within } => {
                self.proxy.command(generation.0, Command::Drain { within, inbound_only: true });
            }
            Effect::Kill { generation } => self.proxy.command(generation.0, Command::Kill),
            Effect::Record(record) => self.record(*record),
            Effect::Refused(refusal) => self.proxy.refused.push(refusal),
            Effect::Serving(Some(generation)) => {
                if let Some(live) = self.proxy.live.get_mut(&generation.0) {
                    live.took_over = true;
                }
                let changes = self.proxy.in_use.accepts(generation.0, true);
                self.applied(changes);
                self.proxy.no_process.clear();
                self.keep_if_good();
                self.queue.push_back(Work::Life(lifecycle::Event::ProxyServes));
            }
            Effect::Serving(None) => self.queue.push_back(Work::Life(lifecycle::Event::ProxyAbsent)),
            Effect::Stopped => self.queue.push_back(Work::Life(lifecycle::Event::ProxyStopped)),
        }
    }

    fn fetch(&mut self, generation: Generation, target: &Target) {
        let event = match Engine::parse(&target.engine) {
            None => {
                let error = format!("this agent has no engine {}", target.engine);
                Event::FetchFailed { generation, error, jitter: random::fraction() }
            }
            Some(engine) => match self.host.releases.program(engine, &target.release) {
                Ok(_) => Event::Fetched { generation },
                Err(error) => {
                    let error = error.to_string();
                    Event::FetchFailed { generation, error, jitter: random::fraction() }
                }
            },
        };
        self.queue.push_back(Work::Proxy(event));
    }

    fn spec(&self, generation: u64, held: bool, binary: PathBuf) -> Spec {
        Spec {
            proxy: self.who.proxy(),
            service: self.who.service_ref(),
            generation,
            held,
            binary,
            folder: self.who.folder.clone(),
            xds: self.who.folder.join(format!("xds-{generation}.sock")),
            control: self.who.folder.join("control.sock"),
            log: self.log(),
        }
    }

    fn start_process(&mut self, generation: Generation, target: Target, held: bool) {
        let number = generation.0;
        let engine = Engine::parse(&target.engine).unwrap_or(Engine::Native);
        // Fetched, so that it is there, or was a moment ago.
        let program = self.host.releases.program(engine, &target.release).unwrap_or_default();
        let spec = self.spec(number, held, program);
        let reports = Reports { generation: number, sender: self.proxy.to_reports.clone() };
        let started =
            self.prepare(&spec).and_then(|relay| Ok((relay, engine::start(engine, &spec, reports)?)));
        let event = match started {
            Ok((relay, Running { id, commands })) => {
                let pid = id.map_or(0, |id| id.pid);
                tracing::info!(instance = %self.who.name, %generation, %target, pid, held, "proxy started");
                for (name, bound) in self.places.sockets() {
                    let _ = commands.send(Command::Listener(name.clone(), bound.address, bound.fd.clone()));
                }
                let live = Live::new(target, id, SystemTime::now(), commands, Some(relay));
                self.proxy.live.insert(number, live);
                let changes = self.proxy.in_use.begins(number, false);
                self.applied(changes);
                self.save();
                Event::Started { generation }
            }
            Err(error) => {
                let blame = error.blame();
                let error = error.to_string();
                // Once, however often it is tried.
                if self.proxy.no_process != error {
                    tracing::error!(instance = %self.who.name, %error, "no proxy; it is tried again");
                    self.proxy.no_process.clone_from(&error);
                }
                let _ = std::fs::remove_file(&spec.xds);
                Event::StartFailed { generation, error, blame, jitter: random::fraction() }
            }
        };
        self.queue.push_back(Work::Proxy(event));
    }

    /// Makes the folder and the control socket again if somebody removed them, and the xDS socket of a process. The
    /// application keeps its names: its mount and the agent hold the file.
    fn prepare(&mut self, spec: &Spec) -> Result<Relay, engine::StartError> {
        let failed = |what| move |source| engine::StartError::Prepare { what, source };
        if !spec.control.exists() || self.proxy.control.is_none() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&spec.folder)
                .map_err(failed("its folder was removed and cannot be made again"))?;
            let control = control::serve(&spec.control, self.proxy.to_connections.clone());
            self.proxy.control = Some(control.map_err(failed("its control socket cannot be made"))?);
        }
        self.relay(spec.generation, spec).map_err(failed("its xDS socket cannot be made"))
    }

    fn relay(&self, generation: u64, spec: &Spec) -> std::io::Result<Relay> {
        let to_seen = self.proxy.to_seen.clone();
        relay::serve(&spec.xds, self.local.subscribe(), move |seen| {
            let _ = to_seen.send((generation, seen));
        })
    }

    /// Takes up a process that an earlier agent started.
    pub(super) fn find_process(&mut self, saved: &SavedGeneration) -> std::io::Result<bool> {
        let Some(process) = saved.process.open()? else { return Ok(false) };
        let engine = Engine::parse(&saved.target.engine).unwrap_or(Engine::Native);
        let spec = self.spec(saved.number, false, PathBuf::new());
        let relay = self.relay(saved.number, &spec)?;
        let reports = Reports { generation: saved.number, sender: self.proxy.to_reports.clone() };
        let Running { commands, .. } = engine::adopt(engine, &spec, process, reports);
        let started = UNIX_EPOCH + Duration::from_millis(saved.started_ms);
        let live = Live::new(saved.target.clone(), Some(saved.process), started, commands, Some(relay));
        self.proxy.live.insert(saved.number, live);
        let changes = self.proxy.in_use.begins(saved.number, false);
        self.applied(changes);
        Ok(true)
    }

    /// A process has come to the control socket.
    pub(super) fn connected(&mut self, connection: Connection) {
        let Connection { generation, pid, .. } = connection;
        let known = self.proxy.live.get(&generation).and_then(|live| live.process);
        if known.is_some_and(|process| process.pid == pid) {
            self.proxy.command(generation, Command::Connected(Box::new(connection)));
            // What it was told while nobody listened.
            for (name, bound) in self.places.sockets() {
                let command = Command::Listener(name.clone(), bound.address, bound.fd.clone());
                self.proxy.command(generation, command);
            }
        } else {
            tracing::warn!(instance = %self.who.name, generation, pid, "a process that is not known was not heard");
        }
    }

    /// A driver has reported.
    pub(super) fn reported(&mut self, number: u64, event: engine::Event) {
        let generation = Generation(number);
        let Some(live) = self.proxy.live.get_mut(&number) else { return };
        match event {
            engine::Event::Version(version) => live.version = version,
            engine::Event::Ready { configuration, identity } => {
                live.configuration.clone_from(&configuration);
                live.ready = Some((configuration, identity));
                self.maybe_ready(number);
            }
            engine::Event::Accepting => self.tell_supervisor(Event::Accepting { generation }),
            engine::Event::Paused => {
                let changes = self.proxy.in_use.accepts(number, false);
                self.applied(changes);
                self.tell_supervisor(Event::Paused { generation });
            }
            engine::Event::Listener(name, address, fds) => self.places.returned(&name, address, fds),
            engine::Event::Returned(state) => live.returned = Some(state),
            engine::Event::Drained { cut, inbound_only: true } => {
                live.idle = true;
                if cut.sum() > 0 {
                    tracing::info!(instance = %self.who.name, ?cut, "connections were cut at the end of a drain");
                }
                self.maybe_idle();
            }
            engine::Event::Drained { cut, inbound_only: false } => {
                live.drained = true;
                let lost = Lost { connections: cut.sum(), requests: 0 };
                self.tell_supervisor(Event::Drained { generation, lost });
            }
            engine::Event::Stats(stats) => self.numbers(number, *stats),
            engine::Event::Hung => {
                tracing::warn!(instance = %self.who.name, %generation, "the proxy does not answer");
                self.tell_supervisor(Event::Hung { generation, jitter: random::fraction() });
            }
            engine::Event::Ended(exit) => self.process_ended(number, exit),
        }
    }

    fn process_ended(&mut self, number: u64, exit: Exit) {
        let generation = Generation(number);
        let last = self.proxy.totals.of(number);
        let memory = last.map(|stats| stats.resident_bytes).filter(|bytes| *bytes > 0);
        let drained = self.proxy.live.get(&number).is_some_and(|live| live.drained);
        // As of the last look; of one that drained it is known.
        let lost = match last {
            Some(stats) if !drained => {
                stats.listeners.values().fold(Lost::default(), |mut lost, listener| {
                    lost.connections += listener.active_connections;
                    lost.requests += listener.active_requests;
                    lost
                })
            }
            _ => Lost::default(),
        };
        self.proxy.totals.ended(number);
        let changes = self.proxy.in_use.ends(number);
        self.applied(changes);
        let jitter = random::fraction();
        self.tell_supervisor(Event::Ended { generation, exit, memory, lost, jitter });
        let _ = std::fs::remove_file(self.who.folder.join(format!("xds-{number}.sock")));
        self.gone.push(number);
    }

    fn maybe_idle(&mut self) {
        if self.life.phase() == lifecycle::Phase::Draining && self.proxy.live.values().all(|live| live.idle) {
            self.queue.push_back(Work::Life(lifecycle::Event::InboundIdle));
        }
    }

    /// Whether callers wait for anything. They were told to go elsewhere before, so a connection without a request is
    /// nothing to wait for; of TCP nobody knows.
    fn inbound_busy(&self, stats: &Stats) -> bool {
        let streams = stats.drain.as_ref().map_or(0, |drain| drain.open.websocket + drain.open.tcp);
        if streams > 0 {
            return true;
        }
        let ports = self.workload.iter().flat_map(|workload| &workload.ports);
        ports.into_iter().any(|port| {
            let listener = stats.listeners.get(&names::inbound(&port.name));
            listener.is_some_and(|l| {
                l.active_requests > 0 || (port.protocol == "tcp" && l.active_connections > 0)
            })
        })
    }

    fn tell_supervisor(&mut self, event: Event) {
        self.queue.push_back(Work::Proxy(event));
    }

    /// Envoy calls itself ready also after it refused every listener.
    pub(super) fn maybe_ready(&mut self, number: u64) {
        let Some(live) = self.proxy.live.get(&number) else { return };
        let Some((configuration, identity)) = &live.ready else { return };
        let nothing_to_ack = match &*self.local.borrow() {
            Some(local) => local.of_type(type_url::LISTENER).next().is_none(),
            None => false,
        };
        if &*live.target.engine == Engine::Native.name() || live.listeners_acked || nothing_to_ack {
            let configuration = (!configuration.is_empty()).then(|| configuration.as_str().into());
            let identity = identity.as_deref().map(Into::into);
            self.tell_supervisor(Event::Ready { generation: Generation(number), configuration, identity });
        }
    }

    /// A process has said something about resources.
    pub(super) fn seen(&mut self, number: u64, seen: &Seen) {
        match seen {
            Seen::Refused { type_url, error, .. } => {
                tracing::warn!(instance = %self.who.name, generation = number, %type_url, %error, "the proxy refused a resource");
                self.refusal = Some(error.clone());
            }
            Seen::Acked { type_url, resources, .. }
                if &**type_url == type_url::LISTENER && !resources.is_empty() =>
            {
                self.refusal = None;
                if let Some(live) = self.proxy.live.get_mut(&number) {
                    live.listeners_acked = true;
                }
                self.maybe_ready(number);
            }
            _ => {}
        }
        let changes = self.proxy.in_use.seen(number, seen);
        self.applied(changes);
        self.keep_if_good();
    }

    pub(super) fn applied(&self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.host.upstream.facts(|facts| facts.apply(&self.who.proxy(), changes));
        }
    }

    fn numbers(&mut self, number: u64, stats: Stats) {
        let generation = Generation(number);
        if let Some(live) = self.proxy.live.get_mut(&number)
            && !stats.configuration.is_empty()
            && live.configuration != stats.configuration
        {
            live.configuration.clone_from(&stats.configuration);
            let configuration = stats.configuration.as_str().into();
            self.tell_supervisor(Event::Configured { generation, configuration });
        }
        if self.life.phase() == lifecycle::Phase::Draining && !self.inbound_busy(&stats) {
            if let Some(live) = self.proxy.live.get_mut(&number) {
                live.idle = true;
            }
            self.maybe_idle();
        }
        let sample = Box::new(sample(&stats));
        self.tell_supervisor(Event::Sample { generation, sample });
        self.proxy.totals.set(number, stats);
        let serving = self.proxy.shown().map(|(number, _)| number);
        self.stats = self.proxy.totals.sum(serving);
        if let Some(stats) = &self.stats {
            let traffic = traffic(&self.who.proxy(), stats);
            self.host.upstream.facts(|facts| facts.set_traffic(traffic));
        }
    }

    fn record(&mut self, record: Record) {
        let failed = matches!(
            record.cause,
            Cause::Crashed(_)
                | Cause::Hung
                | Cause::FetchFailed(_)
                | Cause::StartFailed { .. }
                | Cause::NotReady
        );
        let ended = record.happened == Happened::Ended;
        if ended && failed {
            let served = self.proxy.live.get(&record.generation.0).is_some_and(|live| live.took_over);
            let missed = served || self.proxy.supervisor.serving().is_none();
            if missed && matches!(record.cause, Cause::Crashed(_) | Cause::Hung) {
                self.proxy.restarts = self.proxy.restarts.saturating_add(1);
            }
            let cause = record.cause.to_string();
            self.queue.push_back(Work::Life(lifecycle::Event::ProxyEnded { cause, served }));
        }
        let occurrence =
            self.host.journal.add(self.who.service_ref(), self.who.proxy(), record, SystemTime::now());
        let sentence = occurrence.sentence();
        if ended && failed && !self.life.leaving() {
            tracing::warn!(instance = %self.who.name, "{sentence}");
        } else {
            tracing::info!(instance = %self.who.name, "{sentence}");
        }
        self.host.upstream.facts(|facts| facts.occurred(occurrence.to_wire()));
    }
}

impl Live {
    fn new(
        target: Target,
        process: Option<ProcessId>,
        started: SystemTime,
        commands: mpsc::UnboundedSender<Command>,
        relay: Option<Relay>,
    ) -> Self {
        Self {
            target,
            process,
            started,
            commands,
            version: String::new(),
            ready: None,
            returned: None,
            listeners_acked: false,
            took_over: false,
            drained: false,
            idle: false,
            configuration: String::new(),
            _relay: relay,
        }
    }
}

/// What of a process is compared with its predecessor.
fn sample(stats: &Stats) -> Sample {
    let mut sample = Sample { resident: stats.resident_bytes, ..Sample::default() };
    for listener in stats.listeners.values() {
        sample.requests += listener.responses.iter().sum::<u64>();
        sample.connections += listener.active_connections;
        // Without the wait for upstreams, as far as the engine tells it: that is not the proxy's.
        sample.latency_us += listener.latency_us_sum.saturating_sub(listener.upstream_us_sum);
        for (us, count) in &listener.added_us {
            sample.added.add(*us, *count);
        }
        for (reason, count) in &listener.reasons {
            if is_server_error(reason) {
                *sample.errors.entry(reason.as_str().into()).or_default() += count;
            }
        }
    }
    sample
}

/// Whether what a proxy answers for this reason is a 5xx. One that is not known here is a new one, and taken for it.
fn is_server_error(reason: &str) -> bool {
    use outrider_proxy_core::reason::Reason;
    let known = Reason::ALL.iter().find(|known| known.as_str() == reason);
    known.is_none_or(|known| known.status().is_some_and(|status| status >= 500))
}

#[cfg(test)]
mod tests {
    use outrider_handover::ListenerStats;

    use super::*;

    #[test]
    fn a_sample_counts_what_the_proxy_is_to_blame_for() {
        let reasons = [("no_route", 3), ("connect_failed", 2), ("client_gone", 9), ("of_a_later_version", 1)];
        let listener = ListenerStats {
            responses: [0, 10, 0, 3, 2],
            active_connections: 4,
            latency_us_sum: 1000,
            upstream_us_sum: 700,
            added_us: [(0, 13), (196_608, 2)].into(),
            reasons: reasons.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
            ..ListenerStats::default()
        };
        let stats = Stats {
            resident_bytes: 77,
            listeners: [("inbound/a".to_owned(), listener.clone()), ("outbound/b".to_owned(), listener)]
                .into(),
            ..Stats::default()
        };
        let sample = sample(&stats);
        assert_eq!((sample.requests, sample.connections, sample.resident), (30, 8, 77));
        assert_eq!(sample.latency_us, 600);
        assert_eq!((sample.added.total(), sample.added.above(100_000)), (30, 4));
        let errors: Vec<_> = sample.errors.iter().map(|(reason, count)| (&**reason, *count)).collect();
        assert_eq!(errors, [("connect_failed", 4), ("of_a_later_version", 2)]);
    }

    #[test]
    fn the_proxy_counts_times_in_the_buckets_they_are_compared_in() {
        let times = (0..24).flat_map(|power| [0, 1, 3].map(|more| (1_u64 << power) * (4 + more) / 4));
        for us in times.chain(0..9000).chain([8_388_607, 8_388_608, u64::MAX]) {
            let mut counted = outrider_proxy_core::stats::Added::default();
            counted.record(us);
            let added_us = counted.buckets().collect();
            let listener = ListenerStats { added_us, ..ListenerStats::default() };
            let stats = Stats { listeners: [("inbound/a".to_owned(), listener)].into(), ..Stats::default() };
            let mut expected = outrider_supervise::gate::Histogram::default();
            expected.add(us, 1);
            assert_eq!(sample(&stats).added, expected, "{us}");
        }
    }
}
