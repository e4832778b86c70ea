//! One instance: the shell around its `lifecycle`.
//!
//! A task of its own that carries out effects and feeds back what happened. Holds: sockets live as long as the
//! instance, whatever happens to its proxy; a change is relayed only when it is whole (until then the proxy
//! keeps what it has); the connection of `run` stands for the application. Does not: know other instances.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrider_handover::Stats;
use outrider_os::process::ProcessId;
use outrider_xds::ResourceSet;
use outrider_xds::server::Seen;
use outrider_xds_types::names;
use outrider_xds_types::type_url;
use outrider_xds_types::workload::Workload;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::credentials::Credential;
use crate::engine::{self, Command, Engine, Running};
use crate::hosts::HostsFile;
use crate::inuse::{Change, InUse};
use crate::lifecycle::{Effect, Event, Lifecycle, Phase};
use crate::local::{InstanceOverview, LineReader, LineWriter, Said, Told};
use crate::probe::{self, Targets};
use crate::random;
use crate::relay::{self, Relay};
use crate::server::Host;
use crate::upstream::Subscription;

mod good;
mod knowledge;
mod orphans;
mod places;
mod report;
mod targets;

use good::Candidate;
use places::Places;
use report::{traffic, wire_instance};

const STATS_EVERY: Duration = Duration::from_secs(2);
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// For a local peer that does not read.
const TELL: Duration = Duration::from_secs(1);

/// Who an instance is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its service's name.
    pub(crate) service: String,
    /// Its own name.
    pub(crate) name: String,
    /// `RUNTIME/p/NAME`.
    pub(crate) folder: PathBuf,
    /// Its ports may be served already, by what its `run` does not start.
    pub(crate) adopts: bool,
    /// It was here before this agent, with its application.
    pub(crate) returns: bool,
}

impl Identity {
    /// `NS/INSTANCE`.
    pub(crate) fn proxy(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn service_ref(&self) -> String {
        format!("{}/{}", self.namespace, self.service)
    }
}

struct Svid {
    id: String,
    current: watch::Receiver<Option<Arc<Credential>>>,
}

/// What the loop waits for; kept apart so that it can be borrowed beside the rest.
struct Sources {
    reader: Option<LineReader>,
    seen: mpsc::UnboundedReceiver<Seen>,
    internal: mpsc::UnboundedReceiver<Event>,
}

struct Instance {
    host: Arc<Host>,
    who: Identity,
    /// The process of `run`.
    holder: Option<ProcessId>,
    /// The application's process group, if nobody else is in it.
    app_group: Option<u32>,
    life: Lifecycle,
    writer: LineWriter,
    engine: Option<Engine>,
    running: Option<Running>,
    version: String,
    app_pid: u32,
    workload: Option<Workload>,
    /// Ports of the application.
    targets: watch::Sender<Targets>,
    svid: Option<Svid>,
    places: Places,
    inbound_closed: bool,
    /// What the proxy is served; `None` until it is whole for the first time.
    local: watch::Sender<Option<ResourceSet>>,
    /// What is good once the proxy has all of it in use.
    candidate: Option<Candidate>,
    /// Since when what is in use is the last good from disk.
    last_good: Option<SystemTime>,
    generation: u64,
    in_use: InUse,
    endpoints: BTreeMap<String, Subscription>,
    listeners_acked: bool,
    engine_ready: bool,
    refusal: Option<String>,
    stats: Option<Stats>,
    asking: Option<oneshot::Receiver<Stats>>,
    said: String,
    /// Why no proxy could be started, as logged.
    no_proxy: String,
    to_self: mpsc::UnboundedSender<Event>,
    over: bool,
    _relay: Relay,
    to_seen: mpsc::UnboundedSender<Seen>,
    _subscriptions: Vec<Subscription>,
}

/// Runs an instance until it is over, or until `stop`: then its proxy is ended and its folder stays, so that the
/// application can come back to it.
pub(crate) async fn run(
    host: Arc<Host>,
    who: Identity,
    holder: Option<ProcessId>,
    reader: LineReader,
    mut writer: LineWriter,
    stop: CancellationToken,
) {
    let (seen_sender, seen) = mpsc::unbounded_channel();
    let (to_self, internal) = mpsc::unbounded_channel();
    let (local, local_receiver) = watch::channel(None);
    let prepared = HostsFile::open(&who.folder.join("hosts"), &host.options.hosts_base).and_then(|hosts| {
        Ok((hosts, relay::serve(&who.folder.join("xds.sock"), local_receiver, tell(&seen_sender))?))
    });
    let (hosts, relay) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let reason = format!("{}: {error}", who.folder.display());
            let _ = writer.send(&Told::Refused { reason }).await;
            return;
        }
    };
    let proxy = who.proxy();
    let scoped = [type_url::LISTENER, type_url::ROUTE, type_url::CLUSTER];
    // The control plane learns of the instance before it is asked for its resources.
    host.publish(&proxy, Some((wire_instance(&who), InstanceOverview::default())));
    let mut subscriptions: Vec<_> =
        scoped.iter().map(|t| host.upstream.subscribe(t, &names::scope_glob(t, &proxy))).collect();
    subscriptions.push(host.upstream.subscribe(type_url::WORKLOAD, &who.service_ref()));

    let places = Places::new(host.clone(), hosts);
    let mut instance = Instance {
        life: Lifecycle::new(host.options.times.clone()),
        host,
        who,
        holder,
        app_group: None,
        writer,
        engine: None,
        running: None,
        version: String::new(),
        app_pid: 0,
        workload: None,
        targets: watch::channel(Targets::default()).0,
        svid: None,
        places,
        inbound_closed: false,
        local,
        candidate: None,
        last_good: None,
        generation: 0,
        in_use: InUse::default(),
        endpoints: BTreeMap::new(),
        listeners_acked: false,
        engine_ready: false,
        refusal: None,
        stats: None,
        asking: None,
        said: String::new(),
        no_proxy: String::new(),
        to_self,
        over: false,
        _relay: relay,
        to_seen: seen_sender,
        _subscriptions: subscriptions,
    };
    instance.tell(Told::Attached { instance: instance.who.name.clone() }).await;
    let mut sources = Sources { reader: Some(reader), seen, internal };
    instance.serve(&mut sources, &stop).await;
    instance.finish(stop.is_cancelled()).await;
}

impl Instance {
    async fn serve(&mut self, sources: &mut Sources, stop: &CancellationToken) {
        let mut changes = self.host.upstream.changes();
        let mut numbers = tokio::time::interval(STATS_EVERY);
        numbers.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.refresh().await;
        while !self.over {
            self.report().await;
            let draining = self.life.phase() == Phase::Draining;
            tokio::select! {
                () = stop.cancelled() => return,
                said = hear(&mut sources.reader) => {
                    let event = match said {
                        Ok(Some(Said::AppStarted { pid })) => {
                            self.app_pid = pid;
                            self.app_group = orphans::group_of(pid, self.holder);
                            Event::AppStarted
                        }
                        Ok(Some(Said::Stop { drain_ms })) => {
                            Event::Stop { within: drain_ms.map(Duration::from_millis) }
                        }
                        Ok(Some(Said::AppEnded)) => {
                            sources.reader = None;
                            self.app_pid = 0;
                            Event::AppEnded
                        }
                        lost => {
                            tracing::warn!(instance = %self.who.name, reason = ?lost.err(), "lost the application");
                            sources.reader = None;
                            // Its proxy stays until it has ended.
                            let (to_self, app) = (self.to_self.clone(), self.app_group);
                            tokio::spawn(orphans::end(self.holder, app, move || {
                                let _ = to_self.send(Event::AppEnded);
                            }));
                            continue;
                        }
                    };
                    self.handle(event).await;
                }
                _ = changes.changed() => self.refresh().await,
                () = renewed(&mut self.svid) => self.refresh().await,
                Some(seen) = sources.seen.recv() => self.seen(seen).await,
                Some(event) = sources.internal.recv() => self.handle(event).await,
                event = next_event(&mut self.running) => self.engine_event(event).await,
                stats = answer(&mut self.asking) => self.numbers(stats).await,
                _ = numbers.tick() => {
                    self.ask_numbers();
                    engine::bound_log(&self.log());
                    // A port may have become free, or allowed.
                    if !self.places.unbound().is_empty() || self.life.phase() == Phase::Waiting {
                        self.refresh().await;
                    }
                }
                () = tokio::time::sleep(DRAIN_LOOK), if draining && self.asking.is_none() => self.ask_numbers(),
                () = until(self.life.next_tick()) => self.handle(Event::Tick).await,
            }
        }
    }

    async fn handle(&mut self, event: Event) {
        for effect in self.life.handle(Instant::now(), event) {
            match effect {
                Effect::StartProxy => self.start_proxy(),
                Effect::TellReady => {
                    let told = Told::Ready { hosts: self.who.folder.join("hosts"), env: self.environment() };
                    self.tell(told).await;
                }
                Effect::ProbeApp => {
                    tokio::spawn(probe::follow(self.targets.subscribe(), self.to_self.clone()));
                }
                Effect::DrainInbound => {
                    self.close_inbound();
                    self.ask_numbers();
                }
                Effect::TellDrained => self.tell(Told::Drained).await,
                Effect::EndProxy(drain) => {
                    if let Some(running) = &self.running {
                        let _ = running.commands.send(Command::End(drain));
                    }
                }
                Effect::Over => self.over = true,
            }
        }
    }

    fn log(&self) -> PathBuf {
        self.host.log_folder().join(format!("{}.log", self.who.name))
    }

    fn start_proxy(&mut self) {
        let engine = self.engine.unwrap_or(Engine::Native);
        self.listeners_acked = false;
        self.engine_ready = false;
        self.version.clear();
        self.stats = None;
        self.generation += 1;
        let changes = self.in_use.begins(self.generation, true);
        self.applied(changes);
        let spec = engine::Spec {
            proxy: self.who.proxy(),
            service: self.who.service_ref(),
            binary: self.host.binary(engine),
            folder: self.who.folder.clone(),
            xds: self.who.folder.join("xds.sock"),
            log: self.log(),
        };
        let started = self.mend_folder(&spec.xds).and_then(|()| engine::start(engine, &spec));
        match started {
            Ok(running) => {
                tracing::info!(instance = %self.who.name, engine = engine.name(), pid = running.pid, "proxy started");
                self.record(running.pid);
                for (name, bound) in self.places.sockets() {
                    let command = Command::Listener(name.clone(), bound.address, bound.fd.clone());
                    let _ = running.commands.send(command);
                }
                self.running = Some(running);
            }
            Err(error) => {
                let cause = error.to_string();
                // Once, however often it is tried.
                if self.no_proxy != cause {
                    tracing::error!(instance = %self.who.name, error = %cause, "no proxy; it is tried again");
                    self.no_proxy.clone_from(&cause);
                }
                let event = Event::ProxyEnded { cause, jitter: random::fraction() };
                let _ = self.to_self.send(event);
            }
        }
    }

    /// Makes the folder and the xDS socket again if somebody removed them. The application keeps its names: its
    /// mount and the agent hold the file.
    fn mend_folder(&mut self, xds: &Path) -> Result<(), engine::StartError> {
        if xds.exists() {
            return Ok(());
        }
        tracing::warn!(instance = %self.who.name, folder = %self.who.folder.display(), "the folder is made again");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.who.folder);
        let relay = made.and_then(|()| relay::serve(xds, self.local.subscribe(), tell(&self.to_seen)));
        self._relay = relay.map_err(|source| engine::StartError::Prepare {
            what: "its folder was removed and cannot be made again",
            source,
        })?;
        Ok(())
    }

    /// So that an agent that is started after this one was killed can end what it left behind.
    fn record(&self, pid: u32) {
        let file = self.who.folder.join("proxy.json");
        let written = ProcessId::of(pid)
            .and_then(|id| serde_json::to_vec(&id).ok())
            .map(|content| outrider_identity::write_private(&file, &content));
        if let Some(Err(error)) = written {
            tracing::warn!(%error, "the proxy's process is not recorded");
        }
    }

    async fn engine_event(&mut self, event: engine::Event) {
        match event {
            engine::Event::Version(version) => self.version = version,
            engine::Event::Ready => {
                self.engine_ready = true;
                self.no_proxy.clear();
                self.maybe_ready().await;
            }
            engine::Event::Ended(cause) => {
                self.running = None;
                let changes = self.in_use.ends(self.generation);
                self.applied(changes);
                if !self.life.leaving() {
                    tracing::warn!(instance = %self.who.name, %cause, "proxy ended");
                }
                self.handle(Event::ProxyEnded { cause, jitter: random::fraction() }).await;
            }
        }
    }

    /// Envoy calls itself ready also after it refused every listener.
    async fn maybe_ready(&mut self) {
        let nothing_to_ack = match &*self.local.borrow() {
            Some(local) => local.of_type(type_url::LISTENER).next().is_none(),
            None => false,
        };
        let acked = self.engine == Some(Engine::Native) || self.listeners_acked || nothing_to_ack;
        if self.engine_ready && acked {
            self.handle(Event::ProxyReady).await;
        }
    }

    async fn seen(&mut self, seen: Seen) {
        match &seen {
            Seen::Refused { type_url, error, .. } => {
                tracing::warn!(instance = %self.who.name, %type_url, %error, "the proxy refused a resource");
                self.refusal = Some(error.clone());
            }
            Seen::Acked { type_url, resources, .. }
                if &**type_url == type_url::LISTENER && !resources.is_empty() =>
            {
                self.refusal = None;
                self.listeners_acked = true;
                self.maybe_ready().await;
            }
            _ => {}
        }
        let changes = self.in_use.seen(self.generation, &seen);
        self.applied(changes);
        self.keep_if_good();
    }

    fn applied(&self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.host.upstream.facts(|facts| facts.apply(&self.who.proxy(), changes));
        }
    }

    fn ask_numbers(&mut self) {
        let Some(running) = &self.running else { return };
        let (sender, receiver) = oneshot::channel();
        if running.commands.send(Command::Stats(sender)).is_ok() {
            self.asking = Some(receiver);
        }
    }

    async fn numbers(&mut self, stats: Option<Stats>) {
        self.asking = None;
        let Some(stats) = stats else { return };
        let traffic = traffic(&self.who.proxy(), &stats);
        let busy = self.inbound_busy(&stats);
        self.stats = Some(stats);
        self.host.upstream.facts(|facts| facts.set_traffic(traffic));
        if !busy && self.life.phase() == Phase::Draining {
            self.handle(Event::InboundIdle).await;
        }
    }

    fn inbound_busy(&self, stats: &Stats) -> bool {
        let ports = self.workload.iter().flat_map(|w| &w.ports);
        ports.into_iter().any(|port| {
            let listener = stats.listeners.get(&names::inbound(&port.name));
            // A connection without a request is nothing to wait for; of TCP nobody knows.
            listener.is_some_and(|l| {
                l.active_requests > 0 || (port.protocol == "tcp" && l.active_connections > 0)
            })
        })
    }

    /// Whatever is known of the rest just now.
    fn close_inbound(&mut self) {
        self.inbound_closed = true;
        for command in self.places.close_inbound() {
            if let Command::RemoveListener(name) = &command {
                self.local.send_modify(|local| {
                    if let Some(local) = local {
                        local.remove(type_url::LISTENER, name);
                    }
                });
            }
            self.command(command);
        }
        let _ = self.take_knowledge();
    }

    /// Brings everything local in line with what is known.
    async fn refresh(&mut self) {
        let missing = match self.take_knowledge() {
            None => self.occupied().await,
            missing => missing,
        };
        self.handle(Event::Missing(missing)).await;
    }

    fn command(&self, command: Command) {
        if let Some(running) = &self.running {
            let _ = running.commands.send(command);
        }
    }

    async fn tell(&mut self, told: Told) {
        // A `run` that does not read has gone, or will be found gone by reading.
        let _ = tokio::time::timeout(TELL, self.writer.send(&told)).await;
    }

    /// Leaves nothing behind; with `stays`, only what the application needs to come back.
    async fn finish(mut self, stays: bool) {
        if let Some(mut running) = self.running.take() {
            let _ = running.commands.send(Command::End(self.host.options.times.end));
            while let Some(event) = running.events.recv().await {
                if matches!(event, engine::Event::Ended(_)) {
                    break;
                }
            }
        }
        if let Some(svid) = self.svid.take() {
            self.host.svids.release(&svid.id);
        }
        self.places.close();
        self.release_targets();
        let proxy = self.who.proxy();
        self.host.publish(&proxy, None);
        self.host.upstream.facts(|facts| facts.proxy_gone(&proxy));
        let _ = std::fs::remove_file(self.who.folder.join("proxy.json"));
        if !stays && let Err(error) = std::fs::remove_dir_all(&self.who.folder) {
            tracing::warn!(%error, folder = %self.who.folder.display(), "not removed");
        }
    }
}

/// What a relay calls.
fn tell(seen: &mpsc::UnboundedSender<Seen>) -> impl Fn(Seen) + Send + Sync + 'static {
    let sender = seen.clone();
    move |seen| {
        let _ = sender.send(seen);
    }
}

async fn hear(reader: &mut Option<LineReader>) -> Result<Option<Said>, crate::local::LocalError> {
    match reader {
        Some(reader) => reader.recv().await,
        None => std::future::pending().await,
    }
}

async fn renewed(svid: &mut Option<Svid>) {
    if let Some(svid) = svid
        && svid.current.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn next_event(running: &mut Option<Running>) -> engine::Event {
    match running {
        Some(running) => match running.events.recv().await {
            Some(event) => event,
            None => engine::Event::Ended("its driver ended".to_owned()),
        },
        None => std::future::pending().await,
    }
}

async fn answer(asking: &mut Option<oneshot::Receiver<Stats>>) -> Option<Stats> {
    match asking {
        Some(asking) => asking.await.ok(),
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
