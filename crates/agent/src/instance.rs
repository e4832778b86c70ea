//! One instance: the shell around its `lifecycle` and its proxy's supervisor.
//!
//! A task of its own that carries out effects and feeds back what happened. Holds: sockets live as long as the
//! instance, whatever happens to its proxy; a change is relayed only when it is whole (until then the proxy
//! keeps what it has); the connection of `run` stands for the application; what a next agent needs is on disk before
//! things depend on it. Does not: know other instances.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrider_handover::Stats;
use outrider_os::process::ProcessId;
use outrider_supervise as supervise;
use outrider_xds::ResourceSet;
use outrider_xds_types::names;
use outrider_xds_types::type_url;
use outrider_xds_types::workload::Workload;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::aside::in_place;
use crate::commands::Reply;
use crate::credentials::Credential;
use crate::engine::{self, Command, Engine};
use crate::hosts::HostsFile;
use crate::journal::milliseconds;
use crate::lifecycle::{Effect, Event, Lifecycle, Phase};
use crate::local::{InstanceOverview, LineReader, LineWriter, ProxyAction, ProxyOverview, Said, Told};
use crate::probe::{self, Targets};
use crate::proven::Proven;
use crate::server::{Host, OnStop};
use crate::upstream::{LinkState, Subscription};

mod adopt;
mod commands;
mod good;
mod keeper;
mod knowledge;
mod orphans;
mod places;
mod proxy;
mod report;
pub(crate) mod saved;
mod size;
mod targets;
mod totals;
mod withdrawal;

pub(crate) use adopt::{adopt, announce, belongs_to_somebody};
use good::Candidate;
use keeper::Keeper;
use places::Places;
use proxy::{Heard, Proxy};
use report::wire_instance;
use saved::Saved;
use totals::Totals;
use withdrawal::Drain;

/// Between two questions for numbers, which no process tells unasked.
const LOOK: Duration = Duration::from_secs(1);
/// The same while inbound is drained: that no caller waits any more, though connections are open, is in the numbers only.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// Every so many looks while nothing changes.
const CALM: u32 = 2;
/// For a local peer that does not read.
const TELL: Duration = Duration::from_secs(1);
/// For processes to end after they were told to, with an agent that ends everything.
const END: Duration = Duration::from_secs(5);

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

/// What is asked of an instance from outside.
pub(crate) enum Ask {
    /// Its `run` has come back.
    Attach(Box<Attachment>),
    /// Something about its proxy.
    Proxy(ProxyAction, oneshot::Sender<Result<ProxyOverview, String>>),
    /// The same by the control plane; `None` is something that is not known here.
    Command(Option<ProxyAction>, Reply),
}

/// A connection of `run`.
pub(crate) struct Attachment {
    /// The process of `run`.
    pub(crate) holder: Option<ProcessId>,
    pub(crate) reader: LineReader,
    pub(crate) writer: LineWriter,
}

/// What the loop waits for; kept apart so that it can be borrowed beside the rest.
struct Sources {
    reader: Option<LineReader>,
    heard: Heard,
    internal: mpsc::UnboundedReceiver<Event>,
    asks: mpsc::UnboundedReceiver<Ask>,
    kept: mpsc::Receiver<keeper::Heard>,
    /// Ends when `run` will not come back, while it is awaited.
    returning: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// What is to be handled next by one of the two state machines.
enum Work {
    Life(Event),
    Proxy(supervise::Event),
    /// After the proxy knows that inbound is drained.
    CloseInbound,
}

struct Instance {
    host: Arc<Host>,
    who: Identity,
    /// The process of `run`.
    holder: Option<ProcessId>,
    /// The application.
    app: Option<ProcessId>,
    /// The application's process group, if nobody else is in it.
    app_group: Option<u32>,
    life: Lifecycle,
    proxy: Proxy,
    queue: VecDeque<Work>,
    /// Processes that have ended and are still known here.
    gone: Vec<u64>,
    writer: Option<LineWriter>,
    engine: Option<Engine>,
    workload: Option<Workload>,
    /// Ports of the application, once they are known.
    targets: watch::Sender<Option<Targets>>,
    svid: Option<Svid>,
    places: Places,
    /// Its sockets, with `run`.
    keeper: Keeper,
    inbound_closed: bool,
    /// Somebody asked for that.
    drain: Option<Drain>,
    /// What the proxy is served; `None` until it is whole for the first time.
    local: watch::Sender<Option<ResourceSet>>,
    /// What the proxy has proven to use of that.
    proven: Proven,
    /// What is good once the proxy has all of it in use.
    candidate: Option<Candidate>,
    /// Since when what is in use is the last good from disk.
    last_good: Option<SystemTime>,
    endpoints: BTreeMap<String, Subscription>,
    stats: Option<Stats>,
    said: String,
    /// Why its application is not reached, as this `run` was told.
    said_silence: String,
    /// Its application was told that it may start, or started under an earlier agent.
    told_ready: bool,
    /// As it was written last.
    saved: Option<Saved>,
    /// Why it could not be written.
    unsaved: Option<String>,
    /// Releases that were on this host when somebody looked.
    releases: Vec<String>,
    looks: u32,
    to_self: mpsc::UnboundedSender<Event>,
    /// Its ports are looked at.
    probed: bool,
    /// Ends what `run` left behind, unless that comes back.
    lost: Option<AbortHandle>,
    over: bool,
    _subscriptions: Vec<Subscription>,
}

/// Runs a new instance until it is over, or until `stop`.
pub(crate) async fn run(host: Arc<Host>, who: Identity, attachment: Attachment, stop: CancellationToken) {
    let Attachment { holder, reader, mut writer } = attachment;
    let hosts = match HostsFile::open(&who.folder.join("hosts"), &host.options.hosts_base) {
        Ok(hosts) => hosts,
        Err(error) => {
            let reason = format!("{}: {error}", who.folder.display());
            let _ = writer.send(&Told::Refused { reason }).await;
            return;
        }
    };
    let saved = Saved::new(&who.namespace, &who.service, &who.name);
    // The control plane learns of the instance before it is asked for its resources.
    host.publish(&who.proxy(), Some((wire_instance(&who), InstanceOverview::default())));
    let (mut instance, mut sources) = Instance::new(host, who, hosts, &saved);
    instance.holder = holder;
    instance.writer = Some(writer);
    sources.reader = Some(reader);
    instance.tell(Told::Attached { instance: instance.who.name.clone() }).await;
    instance.clear_kept(&mut sources.kept).await;
    instance.live(sources, stop).await;
}

impl Instance {
    fn new(host: Arc<Host>, who: Identity, hosts: HostsFile, saved: &Saved) -> (Self, Sources) {
        let (to_self, internal) = mpsc::unbounded_channel();
        let totals = Totals::resume(saved.before.clone());
        let policy = host.options.policy.clone();
        let (mut proxy, heard) = Proxy::new(policy, saved.memory.clone(), saved.release.clone(), totals);
        proxy.restarts = saved.restarts;
        proxy.size_before = saved.size.clone();
        let name = who.proxy();
        let scoped = [type_url::LISTENER, type_url::ROUTE, type_url::CLUSTER];
        let mut subscriptions: Vec<_> =
            scoped.iter().map(|t| host.upstream.subscribe(t, &names::scope_glob(t, &name))).collect();
        subscriptions.push(host.upstream.subscribe(type_url::WORKLOAD, &who.service_ref()));
        let asks = host.reachable(&name);
        let (keeper, kept) = Keeper::new(&who);
        let instance = Self {
            life: Lifecycle::new(host.options.times.clone()),
            places: Places::new(host.clone(), hosts),
            host,
            who,
            holder: None,
            app: None,
            app_group: None,
            proxy,
            queue: VecDeque::new(),
            gone: Vec::new(),
            writer: None,
            engine: None,
            workload: None,
            targets: watch::channel(None).0,
            svid: None,
            keeper,
            inbound_closed: false,
            drain: None,
            local: watch::channel(None).0,
            proven: Proven::default(),
            candidate: None,
            last_good: None,
            endpoints: BTreeMap::new(),
            stats: None,
            said: String::new(),
            said_silence: String::new(),
            told_ready: false,
            saved: None,
            unsaved: None,
            releases: Vec::new(),
            looks: 0,
            to_self,
            probed: false,
            lost: None,
            over: false,
            _subscriptions: subscriptions,
        };
        (instance, Sources { reader: None, heard, internal, asks, kept, returning: None })
    }

    /// From here on to its end, or to the agent's.
    async fn live(mut self, mut sources: Sources, stop: CancellationToken) {
        self.serve(&mut sources, &stop).await;
        // It may have ended without us having read of it.
        let lives = !self.told_ready || adopt::any_lives(self.holder, self.app);
        let has_application = !self.over && self.life.phase() != Phase::Ending && lives;
        match self.host.options.on_stop {
            // One that waits for its proxy gets a new one from the next agent.
            OnStop::HandOver if has_application && self.told_ready => self.hand_over(),
            _ => self.finish(&mut sources, has_application).await,
        }
    }

    async fn serve(&mut self, sources: &mut Sources, stop: &CancellationToken) {
        let mut changes = self.host.upstream.changes();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.refresh().await;
        self.look_for_releases();
        while !self.over {
            self.report().await;
            self.look_for_callers().await;
            let draining = self.life.phase() == Phase::Draining;
            let ticks = [self.life.next_tick(), self.proxy.supervisor.next_tick()];
            tokio::select! {
                () = stop.cancelled() => return,
                said = hear(&mut sources.reader) => self.heard(said, sources).await,
                _ = changes.changed() => self.refresh().await,
                () = renewed(&mut self.svid) => self.refresh().await,
                Some((generation, seen)) = sources.heard.seen.recv() => {
                    self.seen(generation, &seen);
                    self.work().await;
                }
                Some((generation, event)) = sources.heard.reports.recv() => {
                    self.reported(generation, event);
                    self.work().await;
                }
                Some(connection) = sources.heard.connections.recv() => self.connected(connection),
                Some(spare) = sources.heard.spares.recv() => {
                    self.proxy.spares.arrived(spare);
                    self.keep_spare();
                }
                Some(event) = sources.internal.recv() => self.handle(event).await,
                Some(ask) = sources.asks.recv() => self.asked(ask, sources).await,
                Some(heard) = sources.kept.recv() => self.heard_of_kept(heard),
                () = gone(&mut sources.returning) => {
                    sources.returning = None;
                    self.lost_application();
                }
                _ = looks.tick() => self.look().await,
                () = tokio::time::sleep(DRAIN_LOOK), if draining => self.proxy.ask_numbers(),
                () = until(ticks.into_iter().flatten().min()) => self.tick().await,
            }
        }
    }

    /// While callers learn that the endpoints have gone: whether they have, or cannot.
    async fn look_for_callers(&mut self) {
        if self.life.phase() != Phase::Settling {
            return;
        }
        if self.host.upstream.is_withdrawn(&self.who.proxy()) {
            self.handle(Event::CallersLeft).await;
        } else if self.host.upstream.link() != LinkState::Connected {
            self.handle(Event::CallersUntold).await;
        }
    }

    async fn look(&mut self) {
        self.looks = self.looks.wrapping_add(1);
        // While processes are compared, or about to go, numbers are asked for more often.
        if self.proxy.live.len() > 1 || self.looks.is_multiple_of(CALM) {
            self.proxy.ask_numbers();
        }
        if self.is_in_need() {
            self.refresh().await;
        }
        if self.looks.is_multiple_of(CALM) {
            self.proxy.spares.check();
            self.look_for_releases();
            engine::bound_log(&self.log());
            self.mend();
            // A port may have become free, or allowed.
            if !self.places.unbound().is_empty() || self.life.phase() == Phase::Waiting {
                self.refresh().await;
            }
        }
    }

    async fn tick(&mut self) {
        self.queue.push_back(Work::Life(Event::Tick));
        self.queue.push_back(Work::Proxy(supervise::Event::Tick));
        self.work().await;
    }

    /// What `run` said, or that it is gone.
    async fn heard(&mut self, said: Result<Option<Said>, crate::local::LocalError>, sources: &mut Sources) {
        let event = match said {
            Ok(Some(Said::AppStarted { pid })) => {
                self.app = ProcessId::of(pid);
                self.app_group = orphans::group_of(pid, self.holder);
                self.save();
                Event::AppStarted
            }
            Ok(Some(Said::Stop { drain_ms })) => Event::Stop { within: drain_ms.map(Duration::from_millis) },
            Ok(Some(Said::AppEnded)) => {
                sources.reader = None;
                self.app = None;
                Event::AppEnded
            }
            lost => {
                tracing::warn!(instance = %self.who.name, reason = ?lost.err(), "lost the application");
                sources.reader = None;
                return self.lost_application();
            }
        };
        self.handle(event).await;
    }

    /// Nobody holds the application any more. Its proxy stays until it has ended.
    fn lost_application(&mut self) {
        let (to_self, app) = (self.to_self.clone(), self.app_group);
        let ending = tokio::spawn(orphans::end(self.holder, app, move || {
            let _ = to_self.send(Event::AppEnded);
        }));
        self.lost = Some(ending.abort_handle());
    }

    async fn handle(&mut self, event: Event) {
        self.queue.push_back(Work::Life(event));
        self.work().await;
    }

    /// Works the queue off.
    async fn work(&mut self) {
        while let Some(work) = self.queue.pop_front() {
            let now = Instant::now();
            match work {
                Work::Life(event) => {
                    for effect in self.life.handle(now, event) {
                        self.carry_out_life(effect).await;
                    }
                }
                Work::CloseInbound => self.close_inbound(),
                Work::Proxy(event) => {
                    for effect in self.proxy.supervisor.handle(now, event) {
                        self.carry_out(effect);
                    }
                }
            }
        }
        if !self.gone.is_empty() {
            for number in std::mem::take(&mut self.gone) {
                self.proxy.live.remove(&number);
            }
            self.save();
        }
        self.keep_spare();
    }

    async fn carry_out_life(&mut self, effect: Effect) {
        match effect {
            Effect::StartProxy => {
                let engine = self.engine.unwrap_or(Engine::Native);
                let target = supervise::Target::new(engine.name(), &self.proxy.release);
                self.queue.push_back(Work::Proxy(supervise::Event::Start { target }));
            }
            Effect::TellReady => {
                self.told_ready = true;
                self.save();
                self.tell_ready().await;
            }
            // Once is for good: its `run` says so again each time it comes back.
            Effect::ProbeApp { .. } if std::mem::replace(&mut self.probed, true) => {}
            Effect::ProbeApp { answers } => {
                tokio::spawn(probe::follow(self.targets.subscribe(), answers, self.to_self.clone()));
            }
            Effect::DrainInbound(within) => {
                // The proxy first, so that it ends what is open in order; then nobody can come any more.
                self.queue.push_back(Work::Proxy(supervise::Event::DrainInbound { within }));
                self.queue.push_back(Work::CloseInbound);
                self.proxy.live.values_mut().for_each(|live| live.idle = false);
                if self.proxy.live.is_empty() {
                    self.queue.push_back(Work::Life(Event::InboundIdle));
                }
            }
            Effect::TellDrained => self.tell(Told::Drained).await,
            Effect::StopProxy(within) => {
                self.queue.push_back(Work::Proxy(supervise::Event::Stop { within }));
            }
            Effect::Over => self.over = true,
        }
    }

    async fn tell_ready(&mut self) {
        let keep = self.offer_to_keep();
        let told = Told::Ready {
            hosts: self.who.folder.join("hosts"),
            env: self.environment(),
            problems: self.places.problems().collect(),
            keep,
        };
        self.tell(told).await;
    }

    fn log(&self) -> PathBuf {
        self.host.log_folder().join(format!("{}.log", self.who.name))
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
            self.command(&command);
        }
        self.served_anew();
        let _ = self.take_knowledge();
        self.save();
    }

    /// Brings everything local in line with what is known.
    async fn refresh(&mut self) {
        let missing = match self.take_knowledge() {
            None => self.occupied().await,
            missing => missing,
        };
        self.handle(Event::Missing(missing)).await;
    }

    /// Tells every process, and `run` what concerns it.
    fn command(&mut self, command: &Command) {
        self.keeper.follow(command);
        for live in self.proxy.live.values() {
            let command = match command {
                Command::Listener(name, address, fd) => Command::Listener(name.clone(), *address, fd.clone()),
                Command::RemoveListener(name) => Command::RemoveListener(name.clone()),
                _ => return,
            };
            let _ = live.commands.send(command);
        }
    }

    /// Writes down what a next agent needs, if it has changed.
    fn save(&mut self) {
        let mut saved = Saved::new(&self.who.namespace, &self.who.service, &self.who.name);
        saved.adopts = self.who.adopts;
        saved.holder = self.holder;
        saved.app = self.app;
        saved.app_group = self.app_group;
        saved.told_ready = self.told_ready;
        saved.answers = self.life.in_endpoint_set();
        let drains = self.life.drains(Instant::now()).filter(|_| self.drain.is_some());
        saved.drained_by_ms = drains.map(|left| {
            let by = milliseconds(SystemTime::now() + left);
            match &self.saved {
                // What was written needs no other file, unless a stop has made it earlier.
                Some(Saved { drained_by_ms: Some(written), .. }) if *written <= by + 1_000 => *written,
                _ => by,
            }
        });
        saved.drain_cut = self.drain.as_ref().and_then(Drain::cut);
        saved.engine = self.engine.map(Engine::name).unwrap_or_default().to_owned();
        saved.release = if self.told_ready { self.release() } else { self.proxy.release.clone() };
        saved.memory = self.proxy.supervisor.memory().clone();
        saved.size = self.size_memory();
        saved.generations = self.proxy.saved();
        saved.restarts = self.proxy.restarts;
        saved.before = self.proxy.totals.before().clone();
        saved.kept = self.keeper.holds();
        self.places.save(&mut saved);
        if self.saved.as_ref() == Some(&saved) {
            return;
        }
        // What the second file refers to comes first.
        let written = in_place(|| {
            saved::write_retired(&self.who.folder, self.places.retired())
                .and_then(|()| saved.write(&self.who.folder))
        });
        // What could not be written is tried again with the next change, and every other look.
        (self.saved, self.unsaved) = match written {
            Ok(()) => (Some(saved), None),
            Err(error) => (None, Some(format!("what a next agent needs cannot be written: {error}"))),
        };
    }

    /// Makes again what somebody removed of the instance's folder, so that processes, a next agent and `run` find it.
    fn mend(&mut self) {
        let lost = self.saved.is_some() && !self.who.folder.join("instance.json").exists();
        if let Err(error) = self.mend_sockets(lost) {
            self.unsaved = Some(format!("its sockets were removed and cannot be made again: {error}"));
        } else if lost || self.unsaved.is_some() {
            self.saved = None;
            self.save();
        }
    }

    async fn tell(&mut self, told: Told) {
        let Some(writer) = &mut self.writer else { return };
        // A `run` that does not read has gone, or will be found gone by reading. Half a line may be on its way: nothing
        // can follow that, and a `run` that reads again is to come back.
        if !matches!(tokio::time::timeout(TELL, writer.send(&told)).await, Ok(Ok(()))) {
            self.writer = None;
        }
    }

    /// Leaves everything to the next agent.
    fn hand_over(mut self) {
        self.save();
        tracing::info!(instance = %self.who.name, "left to the next agent");
    }

    /// Leaves nothing behind; with `stays`, only what the application needs to come back.
    async fn finish(mut self, sources: &mut Sources, stays: bool) {
        self.host.unreachable(&self.who.proxy());
        // One that is still being made is ended by who makes it, once nobody takes it.
        sources.heard.spares.close();
        let arrived = std::iter::from_fn(|| sources.heard.spares.try_recv().ok()).filter_map(Result::ok);
        for spare in arrived.chain(self.proxy.spares.take()) {
            spare.end().await;
        }
        if !self.proxy.live.is_empty() {
            let within = self.host.options.times.end;
            self.queue.push_back(Work::Proxy(supervise::Event::Stop { within }));
            self.work().await;
            let ended = tokio::time::timeout(END, async {
                while !self.proxy.live.is_empty() {
                    tokio::select! {
                        Some((generation, event)) = sources.heard.reports.recv() => {
                            self.reported(generation, event);
                            self.work().await;
                        }
                        () = until(self.proxy.supervisor.next_tick()) => self.tick().await,
                    }
                }
            });
            if ended.await.is_err() {
                tracing::error!(instance = %self.who.name, "its proxy cannot be ended");
            }
        }
        if let Some(svid) = self.svid.take() {
            self.host.svids.release(&svid.id);
        }
        self.keeper.end().await;
        self.places.close();
        self.release_targets();
        self.proxy.control = None;
        if stays {
            for file in ["instance.json", "retired", "control.sock"] {
                let _ = std::fs::remove_file(self.who.folder.join(file));
            }
        } else if let Err(error) = std::fs::remove_dir_all(&self.who.folder) {
            tracing::warn!(%error, folder = %self.who.folder.display(), "not removed");
        }
        // Once nothing of it is left.
        let proxy = self.who.proxy();
        self.host.publish(&proxy, None);
        self.host.upstream.facts(|facts| facts.proxy_gone(&proxy));
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

async fn gone(returning: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
    match returning {
        Some(returning) => returning.await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
