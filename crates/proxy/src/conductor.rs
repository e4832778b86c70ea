//! The main thread: control socket, ADS stream, and handing snapshots to workers.
//!
//! Holds: an update is acknowledged when every worker uses it, refused when it cannot be honoured or is still
//! not in use after [`WARMING`], and asked for again when it is in use after all; updates that wait never keep from being
//! read what they wait for, which comes on the same stream; `Ready` is sent when the first configuration is in use; the
//! end of the control socket or of the ADS stream changes nothing for traffic. Does not: decide what is warm
//! (see [`crate::assemble`]).

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use outrider_handover::{Connections, FromProxy, State};
use outrider_xds::WILDCARD;
use outrider_xds::client::{Client, Limits, Token};
use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use outrider_xds_types::prost::Message;
use outrider_xds_types::{features, type_url};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::ads::{self, Event};
use crate::assemble::{Arrival, Assembler, Item, Wanted};
use crate::control::{self, Letter, Outbox};
use crate::crew::Crew;
use crate::drain::Drain;
use crate::grant::{Meter, System};
use crate::log::Log;
use crate::probe::Probers;
use crate::stream;
use crate::worker::Scope;

mod agent;
mod ending;
mod gauge;

use gauge::Gauge;

/// How long an update may wait for what it needs before the server is told.
pub const WARMING: Duration = Duration::from_secs(15);
/// Most resources of a snapshot that are named where it cannot be served.
const TOLD: usize = 10;
/// Drain on SIGTERM.
const DRAIN_ON_SIGTERM: Duration = Duration::from_secs(20);
/// From being ready to giving back what only starting needed of the program: whoever waited for the process has been
/// served by then.
const SLIM: Duration = Duration::from_millis(300);
/// A paused proxy whose agent stays away for so long accepts again: nobody else may be there, and two that accept
/// the same connections harm nobody.
pub const ALONE: Duration = Duration::from_secs(10);

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The xDS server.
    pub xds: Option<ads::Server>,
    /// `NS/INSTANCE`.
    pub node: String,
    /// Worker threads; `None` follows the processors that are granted.
    pub workers: Option<usize>,
    /// Most memory, in bytes; `None` follows what is granted.
    pub memory: Option<u64>,
    /// Bind listeners' addresses instead of waiting for the agent's sockets.
    pub standalone: bool,
    /// Resources to begin with.
    pub snapshot: Option<PathBuf>,
    /// Accept nothing before the agent says so.
    pub hold: bool,
    /// Which process in the life of this proxy it is.
    pub generation: u64,
    /// Where an agent is found once the inherited socket has ended.
    pub control: Option<PathBuf>,
    /// See [`ALONE`].
    pub alone: Duration,
    /// What it says that it knows; `None` is everything that it does.
    pub features: Option<Vec<String>>,
    /// Give back what only starting needed of the program's memory: for a process that does nothing else.
    pub slim: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            xds: None,
            node: String::new(),
            workers: None,
            memory: None,
            standalone: false,
            snapshot: None,
            hold: false,
            generation: 0,
            control: None,
            alone: ALONE,
            features: None,
            slim: false,
        }
    }
}

/// Why the proxy cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A thread or runtime cannot be made, or a socket not used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The snapshot file cannot be used.
    #[error("snapshot {path}: {cause}")]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError::Io { what, source }
}

/// Runs the proxy until it is drained. `control` is the agent's end of the world.
///
/// # Errors
/// See [`RunError`]; only at the start.
pub fn run(options: Options, control: Option<OwnedFd>) -> Result<(), RunError> {
    let meter = Box::new(System::new(options.workers, options.memory));
    run_metered(options, control, meter)
}

/// The same where `meter` says what may be used.
///
/// # Errors
/// See [`RunError`]; only at the start.
pub fn run_metered(
    options: Options,
    control: Option<OwnedFd>,
    mut meter: Box<dyn Meter>,
) -> Result<(), RunError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io("main runtime"))?;
    runtime.block_on(async move {
        let log = Log::start().map_err(io("log thread"))?;
        let mut crew = Crew::new(log, raise_descriptors(), !options.hold);
        let grant = meter.grant();
        crew.resize(grant.workers).map_err(io("worker thread"))?;
        let (inner_in, inner) = mpsc::unbounded_channel();
        Conductor::new(&options, crew, inner_in, Gauge::new(meter, grant)).run(options, control, inner).await
    })
}

/// An update that is not answered yet.
struct Open {
    token: Token,
    items: Vec<Item>,
    /// Names, and why.
    refused: Vec<(String, String)>,
    since: Instant,
}

struct Conductor {
    crew: Crew,
    probers: Probers,
    assembler: Assembler,
    client: Client,
    to_server: Option<ads::Requests>,
    /// The server was reached by the stream there is, or was until it was left.
    server_met: bool,
    to_agent: Option<Outbox>,
    open: Vec<Open>,
    /// What the client was told to subscribe to.
    subscribed: Option<Arc<Wanted>>,
    /// What was refused because of what it waits for. It may come.
    given_up: Vec<Item>,
    /// Snapshots sent to the workers and not confirmed by all.
    applying: usize,
    inner: mpsc::UnboundedSender<Inner>,
    /// It takes over from another process, and must not do less than that.
    follows: bool,
    /// The first configuration is in use.
    ready: bool,
    /// The same, for who keeps the ADS stream.
    complete: Arc<AtomicBool>,
    state: State,
    /// The agent waits for [`FromProxy::Accepting`].
    accept_asked: bool,
    /// Since when there is no agent.
    alone: Option<Instant>,
    alone_for: Duration,
    /// Of everything, and of inbound alone, each with what was still open when it came to cutting: a process that leaves
    /// may have to let go of its callers sooner than of those that it calls.
    drains: Vec<(Drain, Connections)>,
    gauge: Gauge,
    standalone: bool,
    slim: bool,
    generation: u64,
    started: Instant,
}

/// What workers have answered.
enum Inner {
    /// A snapshot is in use.
    Applied,
    /// Nothing is open any more of what is drained.
    Emptied(Scope),
}

enum Next {
    Agent(control::Event),
    Server(Event),
    Inner(Inner),
    Terminated,
    Tick,
}

impl Conductor {
    fn new(options: &Options, crew: Crew, inner: mpsc::UnboundedSender<Inner>, gauge: Gauge) -> Self {
        let node = Node {
            id: options.node.clone(),
            cluster: options.node.split('/').next().unwrap_or_default().to_owned(),
            user_agent_name: "outrider-proxy".to_owned(),
            client_features: options.features.clone().unwrap_or_else(features::advertised),
            ..Node::default()
        };
        let mut client = Client::new(node, Limits::default());
        client.subscribe(type_url::LISTENER, [WILDCARD]);
        client.subscribe(type_url::CLUSTER, [WILDCARD]);
        Self {
            crew,
            probers: Probers::default(),
            assembler: Assembler::default(),
            client,
            to_server: None,
            server_met: false,
            to_agent: None,
            open: Vec::new(),
            subscribed: None,
            given_up: Vec::new(),
            applying: 0,
            inner,
            follows: options.hold,
            ready: false,
            complete: Arc::default(),
            state: if options.hold { State::Held } else { State::Accepting },
            accept_asked: false,
            alone: None,
            alone_for: options.alone,
            drains: Vec::new(),
            gauge,
            standalone: options.standalone,
            slim: options.slim,
            generation: options.generation,
            started: Instant::now(),
        }
    }

    async fn run(
        mut self,
        options: Options,
        control: Option<OwnedFd>,
        mut inner: mpsc::UnboundedReceiver<Inner>,
    ) -> Result<(), RunError> {
        // Whoever keeps a sender keeps the branch of the loop alive.
        let (agent_in, mut agent) = mpsc::channel(16);
        tokio::spawn(control::drive(control, options.control.clone(), agent_in.clone()));
        let (events_in, mut events) = mpsc::channel(16);
        if let Some(server) = options.xds.clone() {
            let complete = self.complete.clone();
            tokio::spawn(ads::drive(server, events_in.clone(), complete, ads::SILENCE));
        }
        let mut terminate = signal(SignalKind::terminate()).map_err(io("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("SIGINT"))?;
        if let Some(path) = &options.snapshot {
            let items = self.load(path)?;
            self.assemble();
            // Nobody else will say what is missing.
            if options.xds.is_none() && self.standalone {
                self.serves_all(&items).map_err(|cause| RunError::Snapshot { path: path.clone(), cause })?;
            }
        }
        let nudge = self.crew.nudge();
        loop {
            let look = self.look_at();
            // There is room again once the workers have answered.
            let has_room = !self.client.is_full();
            let next = tokio::select! {
                Some(event) = agent.recv() => Next::Agent(event),
                Some(event) = events.recv(), if has_room => Next::Server(event),
                Some(event) = inner.recv() => Next::Inner(event),
                _ = terminate.recv() => Next::Terminated,
                _ = interrupt.recv() => Next::Terminated,
                () = nudge.notified() => {
                    self.gauge.used_at = Some(Instant::now());
                    Next::Tick
                }
                () = at(look) => Next::Tick,
            };
            let emptied = match next {
                Next::Agent(event) => {
                    self.on_agent(event).await;
                    None
                }
                Next::Server(event) => {
                    self.on_server(event);
                    None
                }
                Next::Inner(Inner::Applied) => {
                    self.applying = self.applying.saturating_sub(1);
                    None
                }
                Next::Inner(Inner::Emptied(scope)) => Some(scope),
                // The second one ends the drain that the first began.
                Next::Terminated if self.state == State::Draining => {
                    self.drain(Scope::All, Duration::ZERO).await;
                    None
                }
                Next::Terminated => {
                    self.drain(Scope::All, DRAIN_ON_SIGTERM).await;
                    None
                }
                Next::Tick => None,
            };
            if self.go_on_draining(emptied).await {
                return Ok(());
            }
            self.assemble();
            self.answer();
            self.become_ready().await;
            self.end_loneliness().await;
            self.look_around().await;
        }
    }

    /// When something is to be done although nothing happens.
    fn look_at(&self) -> Option<Instant> {
        let warming = (!self.open.is_empty()).then(|| Instant::now() + Duration::from_secs(1));
        let drain = self.drains.iter().map(|(drain, _)| drain.next()).min();
        let lonely = self.alone.filter(|_| self.state == State::Paused).map(|since| since + self.alone_for);
        let Gauge { grant_at, used_at, slim_at, .. } = self.gauge;
        [warming, drain, lonely, Some(grant_at), used_at, slim_at].into_iter().flatten().min()
    }

    fn tell(&mut self, message: FromProxy) {
        self.send_letter(vec![(message, Vec::new())]);
    }

    fn send_letter(&mut self, letter: Letter) {
        if let Some(agent) = &self.to_agent
            && !agent.send(letter)
        {
            tracing::warn!("the agent cannot be told");
            // Which ends the connection, too.
            self.to_agent = None;
        }
    }

    /// Resources of a file: length-delimited `DeltaDiscoveryResponse`s, one per type, in any order.
    fn load(&mut self, path: &PathBuf) -> Result<Vec<Item>, RunError> {
        let fail = |cause: String| RunError::Snapshot { path: path.clone(), cause };
        let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let (mut rest, mut items) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest)
                .map_err(|e| fail(e.to_string()))?;
            let type_url = response.type_url.as_str().into();
            let resources = response.resources.iter().filter_map(|resource| {
                let body = resource.resource.as_ref()?.value.as_slice();
                Some(Arrival { name: &resource.name, version: &resource.version, body })
            });
            let ingested = self.assembler.ingest(&type_url, resources, &[]);
            if let Some((name, refusal)) = ingested.refused.first() {
                return Err(fail(format!("{name}: {refusal}")));
            }
            items.extend(ingested.items);
        }
        Ok(items)
    }

    /// Whether there is a listener among `items`, and each is served.
    ///
    /// # Errors
    /// What is missing, in words.
    fn serves_all(&self, items: &[Item]) -> Result<(), String> {
        let is_listener = |item: &&Item| &*item.type_url == type_url::LISTENER;
        if !items.iter().any(|item| is_listener(&item)) {
            return Err("there is no listener in it".to_owned());
        }
        if items.iter().filter(is_listener).all(|item| self.assembler.is_in_use(item)) {
            return Ok(());
        }
        let waiting = items.iter().filter(|item| !self.assembler.is_in_use(item)).take(TOLD);
        let words = waiting.map(|item| format!("{} {}", item.name, self.assembler.waits_for(item)));
        Err(words.collect::<Vec<_>>().join("; "))
    }

    fn on_server(&mut self, event: Event) {
        match event {
            Event::Connected(requests) => {
                tracing::info!("connected to the xDS server");
                for request in self.client.connect() {
                    requests.send(request);
                }
                (self.to_server, self.server_met) = (Some(requests), true);
            }
            Event::Disconnected(cause) => {
                self.to_server = None;
                if std::mem::take(&mut self.server_met) {
                    tracing::warn!(cause, "the xDS stream ended; what is in use stays");
                } else {
                    tracing::warn!(cause, "the xDS server cannot be reached; it is tried again");
                }
                self.client.disconnected();
            }
            Event::Response(response) => match self.client.on_response(*response) {
                Ok(update) => {
                    let added = update.added.iter().map(|resource| Arrival {
                        name: &resource.name,
                        version: &resource.version,
                        body: &resource.body,
                    });
                    let ingested = self.assembler.ingest(&update.type_url, added, &update.removed);
                    let refused = ingested.refused.into_iter();
                    let refused = refused.map(|(name, refusal)| (name, refusal.to_string())).collect();
                    for (name, why) in &update.refused {
                        tracing::info!(name, why, "a list of endpoints is not taken");
                    }
                    let since = Instant::now();
                    self.open.push(Open { token: update.token, items: ingested.items, refused, since });
                    for request in self.client.requests() {
                        self.send(request);
                    }
                }
                Err(bad) => {
                    tracing::error!(error = %bad, "a response is malformed");
                    match bad.request {
                        Some(request) => self.send(*request),
                        None => self.to_server = None,
                    }
                }
            },
        }
    }

    fn send(&mut self, request: DeltaDiscoveryRequest) {
        if let Some(server) = &self.to_server {
            server.send(request);
        }
    }

    fn assemble(&mut self) {
        if self.standalone {
            self.bind();
        }
        if let Some(snapshot) = self.assembler.assemble() {
            tracing::debug!(
                generation = snapshot.generation,
                listeners = snapshot.listeners.len(),
                "new configuration"
            );
            self.probers.follow(&snapshot);
            let answers = self.crew.apply(&snapshot);
            self.applying += 1;
            let inner = self.inner.clone();
            tokio::spawn(async move {
                answers.all().await;
                let _ = inner.send(Inner::Applied);
            });
        }
        if self.standalone {
            self.unbind();
        }
        self.subscribe();
    }

    fn subscribe(&mut self) {
        let wanted = self.assembler.interest();
        if self.subscribed.as_ref().is_some_and(|before| Arc::ptr_eq(before, wanted)) {
            return;
        }
        let wanted = Arc::clone(wanted);
        self.subscribed = Some(Arc::clone(&wanted));
        for (type_url, wanted) in wanted.iter() {
            let told = self.client.interest(type_url).map(|i| i.iter().collect()).unwrap_or_default();
            let gone: Vec<_> = std::collections::BTreeSet::difference(&told, wanted).cloned().collect();
            if !gone.is_empty() {
                self.client.unsubscribe(type_url, gone);
            }
            if *wanted != told {
                self.client.subscribe(type_url, wanted);
            }
        }
        for request in self.client.requests() {
            self.send(request);
        }
    }

    /// Answers updates once it is known of everything in them whether it is used. What is refused is named, and the
    /// rest of its response is in use.
    fn answer(&mut self) {
        if self.applying > 0 {
            return;
        }
        for open in std::mem::take(&mut self.open) {
            let late = open.since.elapsed() >= WARMING;
            let until = late.then(|| format!("not in use after {WARMING:?}"));
            self.settle(open, until.as_deref());
        }
        // What they wait for comes behind others, on this stream. Not to read on, or to begin another stream with the same, would
        // bring none of it; so the oldest makes room. It is kept, and asked for again when it is in use.
        if self.client.is_full() && !self.open.is_empty() {
            let oldest = self.open.remove(0);
            let others = self.open.len();
            self.settle(oldest, Some(&format!("not in use, and {others} other responses wait, too")));
        }
        self.take_back_refusals();
    }

    /// Answers an update unless something in it waits; what is `overdue`, and why, does not.
    fn settle(&mut self, mut open: Open, overdue: Option<&str>) {
        let (mut given_up, mut waits) = (Vec::new(), false);
        for item in open.items.iter().filter(|item| !self.assembler.is_in_use(item)) {
            match (self.assembler.hopeless(item), overdue) {
                (Some(why), _) => given_up.push((item.clone(), why)),
                (None, Some(overdue)) => {
                    given_up.push((item.clone(), format!("{overdue}: {}", self.assembler.waits_for(item))));
                }
                (None, None) => waits = true,
            }
        }
        if waits {
            self.open.push(open);
            return;
        }
        for (item, why) in given_up {
            open.refused.push((item.name.clone(), why));
            self.given_up.push(item);
        }
        let request = if open.refused.is_empty() {
            self.client.ack(open.token)
        } else {
            let request = self.client.refuse(open.token, &open.refused);
            // Nobody is there to be told any more if there is none.
            let kind = request.as_ref().and_then(|request| request.type_url.rsplit('.').next());
            for (name, why) in &open.refused {
                tracing::warn!(kind, name, why, "refused");
            }
            request
        };
        if let Some(request) = request {
            self.send(request);
        }
    }

    /// Has the server send again what is used after all.
    fn take_back_refusals(&mut self) {
        let assembler = &self.assembler;
        self.given_up.retain(|item| assembler.is_latest(item));
        let now_used = self.given_up.extract_if(.., |item| assembler.is_in_use(item));
        for item in now_used.collect::<Vec<_>>() {
            if let Some(request) = self.client.ask_again(&item.type_url, &item.name) {
                self.send(request);
            }
        }
    }

    fn bind(&mut self) {
        for (name, address) in self.assembler.wanted_sockets() {
            let sockets = (0..self.crew.size()).map(|_| stream::bind(address)).collect::<Result<Vec<_>, _>>();
            match sockets {
                Ok(sockets) => {
                    self.crew.give_sockets(&name, address, sockets);
                    self.assembler.add_sockets(&name, address);
                }
                Err(error) => tracing::error!(listener = &*name, %address, %error, "cannot bind"),
            }
        }
    }

    /// Closes what nobody listens on any more, so that callers are refused and do not wait.
    fn unbind(&mut self) {
        for name in self.assembler.unwanted_sockets() {
            self.assembler.remove_sockets(&name);
            self.crew.remove_sockets(&name);
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// Raises the limit of open files as far as we may, and says what it is. Every connection that is served takes
/// two, and the usual limit of 1024 is there for programs that use select(2).
fn raise_descriptors() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
        return current.unwrap_or(u64::MAX);
    }
    maximum.unwrap_or(u64::MAX)
}
