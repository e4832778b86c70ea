//! The proxy of an instance: carries out what its supervisor decides, and reports what its processes do.
//!
//! Holds: every process has an xDS socket of its own, so what one says is known from what another says; every process
//! gets every listening socket. Does not: decide.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrider_handover::Stats;
use outrider_identity::{FolderError, private_folder};
use outrider_os::confine::{Observed, Step};
use outrider_os::process::ProcessId;
use outrider_supervise::{
    Blame, Cause, Effect, Event, Exit, Generation, Happened, Lost, Memory, Policy, Record, Refusal,
    Supervisor, Target,
    gate::Sample,
    size::{self, Size},
};
use outrider_xds::ResourceSet;
use outrider_xds::server::Seen;
use outrider_xds_types::type_url;
use rustix::process::Signal;
use tokio::sync::mpsc;

use super::good::Apart;
use super::report::traffic;
use super::saved::SavedGeneration;
use super::totals::Totals;
use super::{Instance, Work};
use crate::control::{self, Connection, Control};
use crate::engine::spare::{NoSpare, Spare, Spares};
use crate::engine::{self, Command, Engine, Reports, Running, Spec};
use crate::inuse::{Change, InUse};
use crate::isolation::Room;
use crate::lifecycle;
use crate::random;
use crate::relay::Relay;
use crate::releases::BUILTIN;
use crate::reserve;

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
    pub(super) spares: Spares,
    pub(super) to_reports: mpsc::UnboundedSender<(u64, engine::Event)>,
    pub(super) to_seen: mpsc::UnboundedSender<(u64, Seen)>,
    pub(super) to_connections: mpsc::UnboundedSender<Connection>,
    /// Processes that an earlier agent started: they may have served.
    pub(super) earlier: Vec<u64>,
    /// How much memory it may take; `None` before the first process.
    pub(super) size: Option<Size>,
    /// What an earlier agent knew of that.
    pub(super) size_before: size::Memory,
    /// Its memory grows without load, as logged.
    pub(super) unexplained: bool,
    /// Why its memory could not be set, as logged.
    pub(super) no_resize: String,
    /// Why no process could be started, as logged.
    no_process: String,
}

/// What processes of the proxy have to say.
pub(super) struct Heard {
    pub(super) reports: mpsc::UnboundedReceiver<(u64, engine::Event)>,
    pub(super) seen: mpsc::UnboundedReceiver<(u64, Seen)>,
    pub(super) connections: mpsc::UnboundedReceiver<Connection>,
    pub(super) spares: mpsc::UnboundedReceiver<Result<Spare, NoSpare>>,
}

/// A process.
pub(super) struct Live {
    pub(super) target: Target,
    pub(super) process: Option<ProcessId>,
    pub(super) started: SystemTime,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) version: String,
    /// Its memory.
    pub(super) room: Room,
    /// What was done about its view of the file system.
    pub(super) view: Option<Step>,
    /// How it is confined, as of when it was ready.
    pub(super) observed: Option<Observed>,
    /// What it said when it was ready: configuration and identity.
    pub(super) ready: Option<(String, Option<String>)>,
    /// It said what it does, to an agent it was not started by.
    pub(super) returned: Option<outrider_handover::State>,
    listeners_acked: bool,
    pub(super) took_over: bool,
    drained: bool,
    /// Nothing that callers opened has anything under way.
    pub(super) idle: bool,
    /// It said that nothing is left that callers opened.
    pub(super) parted: bool,
    configuration: String,
    /// Where it gets its resources, for as long as it lives.
    relay: Option<Relay>,
    /// What it is served, where that is not what all are.
    pub(super) apart: Option<Apart>,
    /// It is served what was in use before, because something of what is declared was refused.
    pub(super) begins: bool,
}

impl Proxy {
    pub(super) fn new(policy: Policy, memory: Memory, release: String, totals: Totals) -> (Self, Heard) {
        let (to_reports, reports) = mpsc::unbounded_channel();
        let (to_seen, seen) = mpsc::unbounded_channel();
        let (to_connections, connections) = mpsc::unbounded_channel();
        let (spares, made) = Spares::new();
        let proxy = Self {
            supervisor: Supervisor::new(policy, memory, Instant::now()),
            live: BTreeMap::new(),
            in_use: InUse::default(),
            totals,
            release: if release.is_empty() { BUILTIN.to_owned() } else { release },
            restarts: 0,
            refused: Vec::new(),
            control: None,
            spares,
            to_reports,
            to_seen,
            to_connections,
            earlier: Vec::new(),
            size: None,
            size_before: size::Memory::default(),
            unexplained: false,
            no_resize: String::new(),
            no_process: String::new(),
        };
        (proxy, Heard { reports, seen, connections, spares: made })
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
                view: live.view.clone(),
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

    fn spec(&self, generation: u64, held: bool, binary: PathBuf, memory_max: u64) -> Spec {
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
            memory_max,
            confine: self.host.options.confine,
        }
    }

    fn start_process(&mut self, generation: Generation, target: Target, held: bool) {
        let number = generation.0;
        let engine = Engine::parse(&target.engine).unwrap_or(Engine::Native);
        let program = match self.host.releases.program(engine, &target.release) {
            Ok(program) => program,
            // It was there when it was fetched.
            Err(error) => {
                let (error, blame) = (error.to_string(), Blame::Release);
                let jitter = random::fraction();
                return self.tell_supervisor(Event::StartFailed { generation, error, blame, jitter });
            }
        };
        let memory_max = self.memory_max(engine);
        let spec = self.spec(number, held, program, memory_max);
        let mut started = self.try_start(engine, &spec);
        if started.as_ref().is_err_and(engine::StartError::is_shortage_of_descriptors) {
            tracing::warn!(instance = %self.who.name, %generation, "started with the file descriptors put by");
            self.host.reserve.release();
            started = self.try_start(engine, &spec);
        }
        let event = match started {
            Ok(((relay, apart), Running { id, commands, room, view })) => {
                let pid = id.map_or(0, |id| id.pid);
                tracing::info!(instance = %self.who.name, %generation, %target, pid, held, "proxy started");
                for (name, bound) in self.places.sockets() {
                    let _ = commands.send(Command::Listener(name.clone(), bound.address, bound.fd.clone()));
                }
                let mut live = Live::new(target, id, SystemTime::now(), commands, room, view, Some(relay));
                (live.begins, live.apart) = (apart.is_some(), apart);
                self.proxy.live.insert(number, live);
                let changes = self.proxy.in_use.begins(number, false);
                self.applied(changes);
                self.save();
                if self.local.borrow().is_none() {
                    // It has nothing yet, unlike the one it follows.
                    let _ = self.take_knowledge();
                }
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

    /// Has a spare process of what serves, for when that ends.
    pub(super) fn keep_spare(&mut self) {
        let native = |target: &&Target| &*target.engine == Engine::Native.name();
        let serving = self.proxy.supervisor.settled_on().filter(native).cloned();
        if let Some(target) = serving
            && self.proxy.spares.wanted(&target)
            && let Ok(program) = self.host.releases.program(Engine::Native, &target.release)
        {
            let memory_max = self.memory_max(Engine::Native);
            let spec = self.spec(0, false, program, memory_max);
            self.proxy.spares.make(target, spec);
        }
    }

    fn try_start(
        &mut self,
        engine: Engine,
        spec: &Spec,
    ) -> Result<((Relay, Option<Apart>), Running), engine::StartError> {
        let relay = self.prepare(spec)?;
        let spare = self.proxy.spares.take();
        let reports = Reports { generation: spec.generation, sender: self.proxy.to_reports.clone() };
        Ok((relay, engine::start(engine, spec, spare, reports)?))
    }

    /// Makes the folder and the control socket again if somebody removed them, and the xDS socket of a process. The
    /// application keeps its names: its mount and the agent hold the file.
    fn prepare(&mut self, spec: &Spec) -> Result<(Relay, Option<Apart>), engine::StartError> {
        let failed = |what| move |source| engine::StartError::Prepare { what, source };
        self.control_socket(&spec.control).map_err(failed("its control socket cannot be made"))?;
        self.relay(spec, true).map_err(failed("its xDS socket cannot be made"))
    }

    /// Makes the control socket if it is not there.
    fn control_socket(&mut self, path: &Path) -> std::io::Result<()> {
        if is_socket_of_ours(path) && self.proxy.control.is_some() {
            return Ok(());
        }
        make_folder(&self.host.options.runtime, &self.who.folder)?;
        self.proxy.control = Some(control::serve(path, self.proxy.to_connections.clone())?);
        Ok(())
    }

    /// Makes sockets again that somebody removed while processes are there that may want them, and the folder if that is
    /// `lost`.
    pub(super) fn mend_sockets(&mut self, lost: bool) -> std::io::Result<()> {
        if lost {
            make_folder(&self.host.options.runtime, &self.who.folder)?;
        }
        let kept = self.keeper.mend();
        if self.proxy.live.is_empty() {
            return kept;
        }
        let control = self.who.folder.join("control.sock");
        if !is_socket_of_ours(&control) {
            tracing::warn!(instance = %self.who.name, "somebody removed its control socket; it is made again");
            self.control_socket(&control)?;
        }
        let numbers: Vec<u64> = self.proxy.live.keys().copied().collect();
        for number in numbers {
            let spec = self.spec(number, false, PathBuf::new(), 0);
            if is_socket_of_ours(&spec.xds) {
                continue;
            }
            tracing::warn!(instance = %self.who.name, generation = number, "somebody removed its xDS socket; it is made again");
            let (relay, _) = self.relay(&spec, false)?;
            if let Some(live) = self.proxy.live.get_mut(&number) {
                live.relay = Some(relay);
                (live.apart, live.begins) = (None, false);
            }
        }
        kept
    }

    /// Takes up a process that an earlier agent started.
    pub(super) fn find_process(&mut self, saved: &SavedGeneration) -> std::io::Result<bool> {
        let Some(process) = saved.process.open()? else { return Ok(false) };
        let engine = Engine::parse(&saved.target.engine).unwrap_or(Engine::Native);
        let memory_max = self.memory_max(engine);
        let spec = self.spec(saved.number, false, PathBuf::new(), memory_max);
        let relay = match self.relay(&spec, false) {
            Ok((relay, _)) => relay,
            // There may be descriptors again soon.
            Err(error) if reserve::is_shortage(&error) => return Err(error),
            Err(error) => {
                // It is replaced, and must not go on beside what replaces it.
                process.signal(Signal::KILL)?;
                return Err(error);
            }
        };
        let reports = Reports { generation: saved.number, sender: self.proxy.to_reports.clone() };
        let Running { commands, room, view, .. } =
            engine::adopt(engine, &spec, process, saved.view.clone(), reports);
        let started = UNIX_EPOCH + Duration::from_millis(saved.started_ms);
        let process = Some(saved.process);
        let live = Live::new(saved.target.clone(), process, started, commands, room, view, Some(relay));
        self.proxy.live.insert(saved.number, live);
        self.fit_found(saved.number, engine);
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
            self.drain_again(generation);
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
                live.observed = live.process.and_then(|process| Observed::of(process.pid));
                // So that it is known how large it was, however soon it ends.
                let _ = live.commands.send(Command::Stats);
                self.maybe_ready(number);
            }
            engine::Event::Accepting => self.tell_supervisor(Event::Accepting { generation }),
            engine::Event::Paused => {
                let changes = self.proxy.in_use.accepts(number, false);
                self.applied(changes);
                self.tell_supervisor(Event::Paused { generation });
            }
            // Whatever its process has become: what the next one is given is what it is said to be.
            engine::Event::Listener(name, address, fds) => {
                if fds.iter().all(|fd| super::keeper::listens_at(fd, address)) {
                    self.places.returned(&name, address, fds);
                }
            }
            engine::Event::Returned(state) => live.returned = Some(state),
            engine::Event::Drained { cut, inbound_only: true } => {
                if cut.sum() > 0 {
                    tracing::info!(instance = %self.who.name, ?cut, "connections were cut at the end of a drain");
                }
                self.inbound_drained(number, cut);
            }
            engine::Event::Drained { cut, inbound_only: false } => {
                live.drained = true;
                let lost = Lost { connections: cut.sum(), requests: 0 };
                self.tell_supervisor(Event::Drained { generation, lost });
            }
            engine::Event::Stats(stats) => self.numbers(number, *stats),
            // It tries every second, and who has no descriptor to let it in must not end what serves.
            engine::Event::Hung { connected: false } if self.host.reserve.trouble().is_some() => {
                tracing::warn!(instance = %self.who.name, %generation, "the proxy cannot be let in for want of descriptors");
            }
            engine::Event::Hung { .. } => {
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

    fn tell_supervisor(&mut self, event: Event) {
        self.queue.push_back(Work::Proxy(event));
    }

    /// Envoy calls itself ready also after it refused every listener.
    pub(super) fn maybe_ready(&mut self, number: u64) {
        let Some(live) = self.proxy.live.get(&number) else { return };
        let Some((configuration, identity)) = &live.ready else { return };
        // What it begins with may be less than what is declared.
        let no_listener = |set: &Option<ResourceSet>| {
            set.as_ref().is_some_and(|set| set.of_type(type_url::LISTENER).next().is_none())
        };
        let nothing_to_ack = match &live.apart {
            Some(apart) => no_listener(&apart.borrow()),
            None => no_listener(&self.local.borrow()),
        };
        if &*live.target.engine == Engine::Native.name() || live.listeners_acked || nothing_to_ack {
            let configuration = (!configuration.is_empty()).then(|| configuration.as_str().into());
            let identity = identity.as_deref().map(Into::into);
            self.tell_supervisor(Event::Ready { generation: Generation(number), configuration, identity });
            self.has_begun(number);
        }
    }

    /// A process has said something about resources.
    pub(super) fn seen(&mut self, number: u64, seen: &Seen) {
        match seen {
            Seen::Refused { type_url, resources, error, .. } => {
                let name = resources.first().map_or("", |(name, _)| &**name);
                tracing::warn!(instance = %self.who.name, generation = number, %type_url, name, %error, "the proxy refused a resource");
            }
            Seen::Acked { type_url, resources, .. }
                if &**type_url == type_url::LISTENER && !resources.is_empty() =>
            {
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

    pub(super) fn applied(&mut self, changes: Vec<Change>) {
        if !changes.is_empty() {
            if let Some(local) = &*self.local.borrow() {
                self.proven.learn(&changes, local);
            }
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
        self.fit(number, &stats);
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

    pub(super) fn record(&mut self, record: Record) {
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
            let number = record.generation.0;
            let served = self.proxy.live.get(&number).is_some_and(|live| live.took_over)
                || self.proxy.earlier.contains(&number);
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
        room: Room,
        view: Option<Step>,
        relay: Option<Relay>,
    ) -> Self {
        Self {
            target,
            process,
            started,
            commands,
            version: String::new(),
            room,
            view,
            observed: None,
            ready: None,
            returned: None,
            listeners_acked: false,
            took_over: false,
            drained: false,
            idle: false,
            parted: false,
            configuration: String::new(),
            relay,
            apart: None,
            begins: false,
        }
    }

    /// The version of its configuration; empty if it has none.
    pub(super) fn configuration(&self) -> &str {
        &self.configuration
    }
}

/// Makes the folder of an instance. What is above it may have been removed, and made by somebody else, whom our processes
/// would then take for the agent: it must be ours as it had to be at the agent's start.
fn make_folder(runtime: &Path, folder: &Path) -> std::io::Result<()> {
    for above in [runtime, &runtime.join("p")] {
        private_folder(above).map_err(|error| match error {
            // Want of descriptors is to be known as that.
            FolderError::Io { source, .. } => source,
            error => std::io::Error::other(error),
        })?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Whether there is a socket that this user made, and not somebody in our place.
pub(super) fn is_socket_of_ours(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|there| {
        there.file_type().is_socket() && there.uid() == rustix::process::geteuid().as_raw()
    })
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
    fn nothing_is_made_again_where_others_could_take_our_place() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (runtime, folder) = (dir.path().join("run"), dir.path().join("run/p/a-1"));
        make_folder(&runtime, &folder).unwrap();
        let socket = folder.join("control.sock");
        assert!(!is_socket_of_ours(&socket));
        std::fs::write(&socket, "").unwrap();
        assert!(!is_socket_of_ours(&socket), "it is none");
        std::fs::remove_file(&socket).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(is_socket_of_ours(&socket));
        std::os::unix::fs::symlink(&socket, folder.join("link")).unwrap();
        assert!(!is_socket_of_ours(&folder.join("link")));

        std::fs::remove_dir_all(&runtime).unwrap();
        std::fs::create_dir(&runtime).unwrap();
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o777)).unwrap();
        make_folder(&runtime, &folder).unwrap_err();
        assert!(!runtime.join("p").exists());
    }

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
