//! The main thread: control socket, ADS stream, and handing snapshots to workers.
//!
//! Holds: an update is acknowledged when every worker uses it, refused when it cannot be honoured or is still
//! not in use after [`WARMING`]; `Ready` is sent once, when the first configuration is in use; the end of the
//! control socket or of the ADS stream changes nothing for traffic. Does not: decide what is warm
//! (see [`crate::assemble`]).

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrider_handover::{
    Channel, ClusterStats, Connections, FromProxy, ListenerStats, Receiver, Sender, State, Stats, ToProxy,
};
use outrider_xds::WILDCARD;
use outrider_xds::client::{Client, Limits, Token};
use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::ads::{self, Event};
use crate::assemble::{Assembler, Item};
use crate::log::Log;
use crate::stream;
use crate::worker::{self, Command, Report};

/// How long an update may wait for what it needs before the server is told.
pub const WARMING: Duration = Duration::from_secs(15);
/// Drain on SIGTERM, in milliseconds.
const DRAIN_ON_SIGTERM: u64 = 20_000;
/// Longest that idle connections are kept during a drain, for requests on their way.
const IDLE_GRACE: Duration = Duration::from_secs(5);
/// How often the end of a drain is looked for.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Socket of the xDS server.
    pub xds: Option<PathBuf>,
    /// `NS/INSTANCE`.
    pub node: String,
    /// Worker threads.
    pub workers: usize,
    /// Bind listeners' addresses instead of waiting for the agent's sockets.
    pub standalone: bool,
    /// Resources to begin with.
    pub snapshot: Option<PathBuf>,
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
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io("main runtime"))?;
    runtime.block_on(async move {
        let log = Log::start().map_err(io("log thread"))?;
        let mut workers = Vec::new();
        let share = worker::share(raise_descriptors(), options.workers.max(1));
        for n in 0..options.workers.max(1) {
            let (commands, receiver) = mpsc::unbounded_channel();
            let log = log.clone();
            let body = move || {
                if let Err(error) = worker::run(receiver, log, share) {
                    tracing::error!(%error, "a worker cannot run");
                    std::process::exit(1);
                }
            };
            std::thread::Builder::new()
                .name(format!("worker-{n}"))
                .spawn(body)
                .map_err(io("worker thread"))?;
            workers.push(commands);
        }
        let conductor = Conductor::new(&options, workers);
        conductor.run(options, control).await
    })
}

/// An update that is not answered yet.
struct Open {
    token: Token,
    items: Vec<Item>,
    refused: Option<String>,
    since: Instant,
}

struct Conductor {
    workers: Vec<mpsc::UnboundedSender<Command>>,
    assembler: Assembler,
    client: Client,
    to_server: Option<mpsc::UnboundedSender<DeltaDiscoveryRequest>>,
    to_agent: Option<Sender>,
    open: Vec<Open>,
    /// Snapshots sent to the workers and not confirmed by all.
    applying: usize,
    ready_sent: bool,
    standalone: bool,
    started: Instant,
}

enum Next {
    Agent(Option<(ToProxy, Vec<OwnedFd>)>),
    Server(Event),
    Applied,
    Terminated,
    Tick,
}

impl Conductor {
    fn new(options: &Options, workers: Vec<mpsc::UnboundedSender<Command>>) -> Self {
        let node = Node {
            id: options.node.clone(),
            cluster: options.node.split('/').next().unwrap_or_default().to_owned(),
            user_agent_name: "outrider-proxy".to_owned(),
            ..Node::default()
        };
        let mut client = Client::new(node, Limits::default());
        client.subscribe(type_url::LISTENER, [WILDCARD]);
        client.subscribe(type_url::CLUSTER, [WILDCARD]);
        Self {
            workers,
            assembler: Assembler::default(),
            client,
            to_server: None,
            to_agent: None,
            open: Vec::new(),
            applying: 0,
            ready_sent: false,
            standalone: options.standalone,
            started: Instant::now(),
        }
    }

    async fn run(mut self, options: Options, control: Option<OwnedFd>) -> Result<(), RunError> {
        let mut from_agent = None;
        if let Some(fd) = control {
            let (sender, receiver) = Channel::from_fd(fd).map_err(io("control socket"))?.split();
            self.to_agent = Some(sender);
            from_agent = Some(receiver);
            let hello = FromProxy::Hello {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                generation: 0,
                state: State::Accepting,
                protocol: 1,
            };
            self.tell(&hello).await;
        }
        let (events_in, mut events) = mpsc::channel(16);
        if let Some(path) = options.xds.clone() {
            tokio::spawn(ads::drive(path, events_in.clone()));
        }
        let (applied_in, mut applied) = mpsc::unbounded_channel();
        let mut terminate = signal(SignalKind::terminate()).map_err(io("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("SIGINT"))?;
        if let Some(path) = &options.snapshot {
            self.load(path)?;
            self.assemble(&applied_in);
        }
        loop {
            let next = tokio::select! {
                message = receive(&mut from_agent) => Next::Agent(message),
                Some(event) = events.recv() => Next::Server(event),
                Some(()) = applied.recv() => Next::Applied,
                _ = terminate.recv() => Next::Terminated,
                _ = interrupt.recv() => Next::Terminated,
                () = tokio::time::sleep(Duration::from_secs(1)), if !self.open.is_empty() => Next::Tick,
            };
            match next {
                Next::Agent(Some((message, fds))) => {
                    if let Some(drain_ms) = self.on_agent(message, fds).await {
                        self.drain(drain_ms, &mut from_agent).await;
                        return Ok(());
                    }
                }
                Next::Agent(None) => {
                    tracing::warn!("the agent is gone; traffic goes on");
                    from_agent = None;
                    self.to_agent = None;
                }
                Next::Server(event) => self.on_server(event),
                Next::Applied => self.applying = self.applying.saturating_sub(1),
                Next::Terminated => {
                    self.drain(DRAIN_ON_SIGTERM, &mut from_agent).await;
                    return Ok(());
                }
                Next::Tick => {}
            }
            self.assemble(&applied_in);
            self.answer();
            if !self.ready_sent && self.applying == 0 && self.assembler.is_complete() {
                self.ready_sent = true;
                tracing::info!("ready");
                let ready =
                    FromProxy::Ready { configuration: String::new(), identity: None, not_after: None };
                self.tell(&ready).await;
            }
        }
    }

    async fn tell(&mut self, message: &FromProxy) {
        if let Some(agent) = &mut self.to_agent
            && let Err(error) = agent.send(message, &[]).await
        {
            tracing::warn!(%error, "the agent cannot be told");
            self.to_agent = None;
        }
    }

    /// Resources of a file: length-delimited `DeltaDiscoveryResponse`s, one per type, in any order.
    fn load(&mut self, path: &PathBuf) -> Result<(), RunError> {
        let fail = |cause: String| RunError::Snapshot { path: path.clone(), cause };
        let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest)
                .map_err(|e| fail(e.to_string()))?;
            let type_url = response.type_url.as_str().into();
            let resources = response.resources.iter().filter_map(|resource| {
                Some((resource.name.as_str(), resource.resource.as_ref()?.value.as_slice()))
            });
            let ingested = self.assembler.ingest(&type_url, resources, &[]);
            if let Some((name, refusal)) = ingested.refused.first() {
                return Err(fail(format!("{name}: {refusal}")));
            }
        }
        Ok(())
    }

    fn on_server(&mut self, event: Event) {
        match event {
            Event::Connected(requests) => {
                tracing::info!("connected to the xDS server");
                for request in self.client.connect() {
                    let _ = requests.send(request);
                }
                self.to_server = Some(requests);
            }
            Event::Disconnected(cause) => {
                tracing::warn!(cause, "the xDS stream ended; what is in use stays");
                self.client.disconnected();
                self.to_server = None;
            }
            Event::Response(response) => match self.client.on_response(*response) {
                Ok(update) => {
                    let added =
                        update.added.iter().map(|resource| (&*resource.name, resource.body.as_slice()));
                    let ingested = self.assembler.ingest(&update.type_url, added, &update.removed);
                    let refused = (!ingested.refused.is_empty()).then(|| {
                        let list = ingested.refused.iter();
                        list.map(|(name, refusal)| format!("{name}: {refusal}"))
                            .collect::<Vec<_>>()
                            .join("; ")
                    });
                    let since = Instant::now();
                    self.open.push(Open { token: update.token, items: ingested.items, refused, since });
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
            // A stream that just ended is reported as an event of its own.
            let _ = server.send(request);
        }
    }

    fn assemble(&mut self, applied: &mpsc::UnboundedSender<()>) {
        if self.standalone {
            self.bind();
        }
        if let Some(snapshot) = self.assembler.assemble() {
            tracing::debug!(
                generation = snapshot.generation,
                listeners = snapshot.listeners.len(),
                "new configuration"
            );
            let mut replies = Vec::new();
            for worker in &self.workers {
                let (reply, done) = oneshot::channel();
                let _ = worker.send(Command::Apply(Arc::clone(&snapshot), reply));
                replies.push(done);
            }
            self.applying += 1;
            let applied = applied.clone();
            tokio::spawn(async move {
                for reply in replies {
                    let _ = reply.await;
                }
                let _ = applied.send(());
            });
        }
        self.subscribe();
    }

    fn subscribe(&mut self) {
        for (type_url, wanted) in self.assembler.interest() {
            let told = self.client.interest(type_url).map(|i| i.iter().collect()).unwrap_or_default();
            let gone: Vec<_> = std::collections::BTreeSet::difference(&told, &wanted).cloned().collect();
            if !gone.is_empty() {
                self.client.unsubscribe(type_url, gone);
            }
            if wanted != told {
                self.client.subscribe(type_url, wanted);
            }
        }
        for request in self.client.requests() {
            self.send(request);
        }
    }

    /// Answers updates that are in use, refused, or late.
    fn answer(&mut self) {
        if self.applying > 0 {
            return;
        }
        for mut open in std::mem::take(&mut self.open) {
            let broken = open
                .items
                .iter()
                .find_map(|item| Some(format!("{}: {}", item.name, self.assembler.is_broken(item)?)));
            let cold = open.items.iter().find(|item| !self.assembler.is_in_use(item));
            let late = cold.filter(|_| open.since.elapsed() >= WARMING).map(|item| {
                format!("{}: not in use after {WARMING:?}: {}", item.name, self.assembler.waits_for(item))
            });
            let request = match (open.refused.take().or(broken).or(late), cold) {
                (Some(error), _) => {
                    tracing::warn!(error, "refused");
                    self.client.nack(open.token, &error)
                }
                (None, None) => self.client.ack(open.token),
                (None, Some(_)) => {
                    self.open.push(open);
                    continue;
                }
            };
            if let Some(request) = request {
                self.send(request);
            }
        }
    }

    /// Returns how long to drain, if that is what the agent wants.
    async fn on_agent(&mut self, message: ToProxy, fds: Vec<OwnedFd>) -> Option<u64> {
        match message {
            ToProxy::Listener { name, address } => {
                if fds.is_empty() {
                    tracing::error!(listener = name, "the agent sent no socket");
                    return None;
                }
                let sockets = fds.into_iter().map(TcpListener::from).collect();
                self.give_sockets(&name, address, sockets);
            }
            ToProxy::RemoveListener { name } => {
                self.assembler.remove_sockets(&name);
                for worker in &self.workers {
                    let _ = worker.send(Command::RemoveSockets(name.as_str().into()));
                }
            }
            ToProxy::Drain { drain_ms, .. } => return Some(drain_ms),
            ToProxy::Accept | ToProxy::Pause | ToProxy::Return | ToProxy::Unknown => {}
            ToProxy::Stats { id } => {
                let stats = self.stats().await;
                self.tell(&FromProxy::Stats { id, stats }).await;
            }
            ToProxy::Ping { id } => {
                let mut alive = true;
                for worker in &self.workers {
                    let (reply, pong) = oneshot::channel();
                    alive &= worker.send(Command::Ping(reply)).is_ok() && pong.await.is_ok();
                }
                if alive {
                    self.tell(&FromProxy::Pong { id }).await;
                }
            }
        }
        None
    }

    /// Spreads sockets over the workers; every socket is served, and every worker has one.
    fn give_sockets(&mut self, name: &str, address: SocketAddr, sockets: Vec<TcpListener>) {
        let count = self.workers.len();
        let mut shares: Vec<Vec<TcpListener>> = (0..count).map(|_| Vec::new()).collect();
        for n in sockets.len()..count {
            match sockets[n % sockets.len()].try_clone() {
                Ok(socket) => shares[n].push(socket),
                Err(error) => tracing::warn!(listener = name, %error, "a worker has no socket of its own"),
            }
        }
        for (n, socket) in sockets.into_iter().enumerate() {
            shares[n % count].push(socket);
        }
        for (worker, share) in self.workers.iter().zip(shares) {
            let _ = worker.send(Command::Sockets(name.into(), share));
        }
        self.assembler.add_sockets(name, address);
    }

    fn bind(&mut self) {
        for (name, address) in self.assembler.wanted_sockets() {
            let sockets =
                (0..self.workers.len()).map(|_| stream::bind(address)).collect::<Result<Vec<_>, _>>();
            match sockets {
                Ok(sockets) => self.give_sockets(&name, address, sockets),
                Err(error) => tracing::error!(listener = &*name, %address, %error, "cannot bind"),
            }
        }
    }

    async fn reports(&self) -> Vec<Report> {
        let mut reports = Vec::new();
        for worker in &self.workers {
            let (reply, report) = oneshot::channel();
            if worker.send(Command::Stats(reply)).is_ok()
                && let Ok(report) = report.await
            {
                reports.push(report);
            }
        }
        reports
    }

    async fn stats(&self) -> Stats {
        let mut stats = Stats {
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            resident_bytes: resident_bytes(),
            ..Stats::default()
        };
        for report in self.reports().await {
            for (name, one) in report.listeners {
                add_listener(stats.listeners.entry(name.to_string()).or_default(), &one);
            }
            for (name, (one, endpoints)) in report.clusters {
                let into: &mut ClusterStats = stats.clusters.entry(name.to_string()).or_default();
                into.endpoints = endpoints as u64;
                into.connections += one.connections;
                into.active_connections += one.active_connections;
                into.connect_failures += one.connect_failures;
                into.requests += one.requests;
            }
        }
        stats
    }

    /// Stops accepting, waits for what is open, and returns when the process may exit. The agent may still ask,
    /// and may bring the end forward.
    async fn drain(&mut self, drain_ms: u64, from_agent: &mut Option<Receiver>) {
        let limit = Duration::from_millis(drain_ms);
        let grace = IDLE_GRACE.min(limit / 4);
        tracing::info!(limit_ms = drain_ms, "draining");
        let mut deadline = Instant::now() + limit;
        for worker in &self.workers {
            let _ = worker.send(Command::Drain { grace });
        }
        let cut = loop {
            let open: usize = self.reports().await.iter().map(|report| report.connections).sum();
            if open == 0 || Instant::now() >= deadline {
                break open as u64;
            }
            let message = tokio::select! {
                message = receive(from_agent) => message,
                () = tokio::time::sleep(DRAIN_POLL) => continue,
            };
            match message {
                // A socket that comes now would never be listened on.
                Some((ToProxy::Listener { .. }, _)) => {}
                Some((message, fds)) => {
                    if let Some(sooner) = self.on_agent(message, fds).await {
                        deadline = deadline.min(Instant::now() + Duration::from_millis(sooner));
                    }
                }
                None => {
                    *from_agent = None;
                    self.to_agent = None;
                }
            }
        };
        tracing::info!(cut, "drained");
        let by_kind = Connections::default();
        self.tell(&FromProxy::Drained { cut, by_kind, inbound_only: false }).await;
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

async fn receive(agent: &mut Option<Receiver>) -> Option<(ToProxy, Vec<OwnedFd>)> {
    let Some(receiver) = agent else { return std::future::pending().await };
    let mut receiving = Box::pin(receiver.recv());
    match Pin::new(&mut receiving).await {
        Ok(message) => message,
        Err(error) => {
            tracing::error!(%error, "the control socket is broken");
            None
        }
    }
}

fn add_listener(into: &mut ListenerStats, one: &outrider_proxy_core::stats::ListenerStats) {
    into.connections += one.connections;
    into.active_connections += one.active_connections;
    into.requests += one.requests;
    into.active_requests += one.active_requests;
    for (sum, count) in into.responses.iter_mut().zip(one.responses) {
        *sum += count;
    }
    let reasons: &mut BTreeMap<String, u64> = &mut into.reasons;
    for (reason, count) in one.reasons() {
        *reasons.entry(reason.as_str().to_owned()).or_default() += count;
    }
    into.bytes_in += one.bytes_in;
    into.bytes_out += one.bytes_out;
    into.latency_us_sum += one.latency.sum();
}

/// From `/proc/self/statm`; 0 where there is none.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
