//! One instance: the shell around its `lifecycle`.
//!
//! A task of its own that carries out effects and feeds back what happened. Holds: sockets live as long as the
//! instance, whatever happens to its proxy; a change is relayed only when it is whole (until then the proxy
//! keeps what it has); the connection of `run` stands for the application. Does not: know other instances.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrider_api::agent as wire;
use outrider_handover::Stats;
use outrider_os::process::ProcessId;
use outrider_xds::ResourceSet;
use outrider_xds::server::Seen;
use outrider_xds_types::names;
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;
use outrider_xds_types::workload::Workload;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::credentials::Credential;
use crate::engine::{self, Command, Engine, Running};
use crate::hosts::HostsFile;
use crate::lifecycle::{Effect, Event, Lifecycle, Phase};
use crate::local::{InstanceOverview, LineReader, LineWriter, Said, Told};
use crate::relay::{self, Relay};
use crate::scope::{Scope, Wanted};
use crate::server::Host;
use crate::upstream::{Known, LinkState, Subscription};
use crate::{probe, random, sockets};

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

struct Bound {
    fd: Arc<OwnedFd>,
    address: SocketAddr,
    wanted: Wanted,
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
    life: Lifecycle,
    writer: LineWriter,
    hosts: HostsFile,
    engine: Option<Engine>,
    running: Option<Running>,
    version: String,
    app_pid: u32,
    workload: Option<Workload>,
    svid: Option<Svid>,
    bound: BTreeMap<String, Bound>,
    addresses: BTreeMap<String, Ipv4Addr>,
    problems: BTreeMap<String, String>,
    inbound_closed: bool,
    local: watch::Sender<ResourceSet>,
    endpoints: BTreeMap<String, Subscription>,
    listeners_acked: bool,
    engine_ready: bool,
    refusal: Option<String>,
    stats: Option<Stats>,
    asking: Option<oneshot::Receiver<Stats>>,
    said: String,
    to_self: mpsc::UnboundedSender<Event>,
    over: bool,
    _relay: Relay,
    _subscriptions: Vec<Subscription>,
}

/// Runs an instance until it is over, or until `stop`: then its proxy is ended and its folder stays, so that the
/// application can come back to it.
pub(crate) async fn run(
    host: Arc<Host>,
    who: Identity,
    reader: LineReader,
    mut writer: LineWriter,
    stop: CancellationToken,
) {
    let (seen_sender, seen) = mpsc::unbounded_channel();
    let (to_self, internal) = mpsc::unbounded_channel();
    let (local, local_receiver) = watch::channel(ResourceSet::new());
    let prepared = HostsFile::open(&who.folder.join("hosts"), &host.options.hosts_base).and_then(|hosts| {
        Ok((hosts, relay::serve(&who.folder.join("xds.sock"), local_receiver, seen_sender)?))
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

    let mut instance = Instance {
        life: Lifecycle::new(host.options.times.clone()),
        host,
        who,
        writer,
        hosts,
        engine: None,
        running: None,
        version: String::new(),
        app_pid: 0,
        workload: None,
        svid: None,
        bound: BTreeMap::new(),
        addresses: BTreeMap::new(),
        problems: BTreeMap::new(),
        inbound_closed: false,
        local,
        endpoints: BTreeMap::new(),
        listeners_acked: false,
        engine_ready: false,
        refusal: None,
        stats: None,
        asking: None,
        said: String::new(),
        to_self,
        over: false,
        _relay: relay,
        _subscriptions: subscriptions,
    };
    instance.tell(Told::Attached { instance: instance.who.name.clone() }).await;
    let mut sources = Sources { reader: Some(reader), seen, internal };
    instance.serve(&mut sources, &stop).await;
    instance.finish(stop.is_cancelled()).await;
}

fn wire_instance(who: &Identity) -> wire::Instance {
    wire::Instance {
        namespace: who.namespace.clone(),
        service: who.service.clone(),
        name: who.name.clone(),
        ..wire::Instance::default()
    }
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
                            Event::AppStarted
                        }
                        Ok(Some(Said::Stop)) => Event::Stop,
                        ended => {
                            if let Err(error) = ended {
                                tracing::warn!(instance = %self.who.name, %error, "lost the application");
                            }
                            sources.reader = None;
                            self.app_pid = 0;
                            Event::AppEnded
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
                    let ports = self.workload.iter().flat_map(|w| &w.ports);
                    let ports: Vec<u16> = ports.filter_map(|p| u16::try_from(p.target_port).ok()).collect();
                    let to_self = self.to_self.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = probe::all_answer(&ports) => {
                                let _ = to_self.send(Event::AppAnswers);
                            }
                            () = to_self.closed() => {}
                        }
                    });
                }
                Effect::DrainInbound => {
                    self.inbound_closed = true;
                    let _ = self.take_knowledge();
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
        self.host.upstream.facts(|facts| facts.proxy_began(&self.who.proxy()));
        let spec = engine::Spec {
            proxy: self.who.proxy(),
            service: self.who.service_ref(),
            binary: self.host.binary(engine),
            folder: self.who.folder.clone(),
            xds: self.who.folder.join("xds.sock"),
            log: self.log(),
        };
        match engine::start(engine, &spec) {
            Ok(running) => {
                tracing::info!(instance = %self.who.name, engine = engine.name(), pid = running.pid, "proxy started");
                self.record(running.pid);
                for (name, bound) in &self.bound {
                    let command = Command::Listener(name.clone(), bound.address, bound.fd.clone());
                    let _ = running.commands.send(command);
                }
                self.running = Some(running);
            }
            Err(error) => {
                tracing::error!(instance = %self.who.name, %error, "no proxy");
                let event = Event::ProxyEnded { cause: error.to_string(), jitter: random::fraction() };
                let _ = self.to_self.send(event);
            }
        }
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
                self.maybe_ready().await;
            }
            engine::Event::Ended(cause) => {
                self.running = None;
                if !self.life.leaving() {
                    tracing::warn!(instance = %self.who.name, %cause, "proxy ended");
                }
                self.handle(Event::ProxyEnded { cause, jitter: random::fraction() }).await;
            }
        }
    }

    /// Envoy calls itself ready also after it refused every listener.
    async fn maybe_ready(&mut self) {
        let nothing_to_ack = self.local.borrow().of_type(type_url::LISTENER).next().is_none();
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
        self.host.upstream.facts(|facts| facts.seen(&self.who.proxy(), &seen));
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

    /// Brings everything local in line with what is known.
    async fn refresh(&mut self) {
        let missing = self.take_knowledge();
        self.handle(Event::Missing(missing)).await;
    }

    fn take_knowledge(&mut self) -> Option<String> {
        let upstream = self.host.upstream.clone();
        let service = self.who.service_ref();
        let away = match upstream.link() {
            LinkState::Connected => String::new(),
            LinkState::Away(why) => format!("; no connection to the control plane: {why}"),
        };
        match upstream.known(type_url::WORKLOAD, &service) {
            Known::Yes(resource) => match Workload::decode(resource.body.as_slice()) {
                Ok(workload) => {
                    self.life.set_serves(!workload.ports.is_empty());
                    self.want_svid(&workload.spiffe_id);
                    // The engine of a running instance stays: its sockets are prepared for it.
                    self.engine = self.engine.or(Engine::parse(&workload.engine));
                    self.workload = Some(workload);
                }
                Err(error) => return Some(format!("the workload of {service} cannot be read: {error}")),
            },
            // Deleted under a running instance: what it has stays until the application ends.
            Known::No if self.workload.is_none() => {
                return Some(format!("service {service} is not declared; `outrider apply` it"));
            }
            Known::NotYet if self.workload.is_none() => {
                return Some(format!("service {service} is not known here yet{away}"));
            }
            Known::No | Known::NotYet => {}
        }
        let workload = self.workload.clone()?;
        let Some(engine) = self.engine else {
            return Some(format!("this agent has no engine {}", workload.engine));
        };
        let set = upstream.resources();
        let scope = Scope::read(&set, &self.who.proxy());
        self.follow_endpoints(&scope);
        let missing =
            scope.missing(&workload, |name| upstream.known(type_url::ENDPOINT, name) != Known::NotYet);
        let Some(credential) = self.svid.as_ref().and_then(|svid| svid.current.borrow().clone()) else {
            return Some(format!("waiting for the certificate of {service}{away}"));
        };
        if let Some(missing) = missing {
            return Some(format!("{missing}{away}"));
        }
        self.bind(&scope, engine);
        let addresses =
            self.bound.iter().map(|(name, bound)| (name.clone(), bound.address)).collect::<BTreeMap<_, _>>();
        let mut local = scope.localise(&addresses, &set);
        for secret in credential.secrets() {
            local.insert(secret);
        }
        self.local.send_if_modified(|current| {
            let changed = *current != local;
            if changed {
                *current = local;
            }
            changed
        });
        None
    }

    fn want_svid(&mut self, id: &str) {
        if self.svid.as_ref().is_some_and(|svid| svid.id == id) {
            return;
        }
        if let Some(old) = self.svid.take() {
            self.host.svids.release(&old.id);
        }
        let current = self.host.svids.want(&self.host.identity_folder(), id);
        self.svid = Some(Svid { id: id.to_owned(), current });
    }

    fn follow_endpoints(&mut self, scope: &Scope) {
        let wanted = scope.endpoints();
        self.endpoints.retain(|name, _| wanted.contains(name));
        for name in wanted {
            let upstream = &self.host.upstream;
            self.endpoints
                .entry(name)
                .or_insert_with_key(|name| upstream.subscribe(type_url::ENDPOINT, name));
        }
    }

    /// Makes sockets and names what the listeners want.
    fn bind(&mut self, scope: &Scope, engine: Engine) {
        let (wanted, unreadable) = scope.wanted();
        let wanted: Vec<Wanted> =
            wanted.into_iter().filter(|w| !(w.inbound && self.inbound_closed)).collect();
        self.problems = unreadable.into_iter().map(|text| (text.clone(), text)).collect();

        let gone: Vec<String> = self
            .bound
            .iter()
            .filter(|(name, bound)| {
                !wanted.iter().any(|w| w.listener == **name && same_place(w, &bound.wanted))
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.bound.remove(&name);
            self.command(Command::RemoveListener(name));
        }
        let mode = engine.sockets();
        let mut by_service: BTreeMap<String, Vec<Wanted>> = BTreeMap::new();
        for want in &wanted {
            if self.bound.contains_key(&want.listener) {
                continue;
            }
            if want.inbound {
                let address = SocketAddr::new(self.host.options.advertise, 0);
                match sockets::bind(address, mode) {
                    Ok((fd, address)) => self.add(want.clone(), fd, address),
                    Err(error) => self.problem(&want.listener, sockets::explain(address, &error)),
                }
            } else {
                by_service.entry(want.service.clone()).or_default().push(want.clone());
            }
        }
        for (service, wants) in by_service {
            self.bind_service(&service, wants, mode);
        }
        let mut names: BTreeMap<Ipv4Addr, Vec<String>> = BTreeMap::new();
        for bound in self.bound.values().filter(|bound| !bound.wanted.inbound) {
            if let IpAddr::V4(address) = bound.address.ip() {
                let of_address = names.entry(address).or_default();
                for name in &bound.wanted.names {
                    if !of_address.contains(name) {
                        of_address.push(name.clone());
                    }
                }
            }
        }
        if let Err(error) = self.hosts.set(&names) {
            self.problem("hosts", format!("the names cannot be written: {error}"));
        }
    }

    /// One address for all ports of a called service.
    fn bind_service(&mut self, service: &str, wants: Vec<Wanted>, mode: sockets::Mode) {
        let bind_at = |address: Ipv4Addr| {
            let mut outcomes = Vec::new();
            for want in &wants {
                let place = SocketAddr::from((address, want.port));
                match sockets::bind(place, mode) {
                    Ok((fd, bound)) => outcomes.push((want.clone(), Ok((fd, bound)))),
                    Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => return None,
                    Err(error) => outcomes.push((want.clone(), Err(sockets::explain(place, &error)))),
                }
            }
            Some(outcomes)
        };
        let outcomes = match self.addresses.get(service) {
            Some(address) => bind_at(*address),
            None => {
                let preferred = wants.first().and_then(|want| self.hosts.address_of(&want.names));
                let allocated = self.host.addresses().allocate(preferred, bind_at);
                allocated.map(|(address, outcomes)| {
                    self.addresses.insert(service.to_owned(), address);
                    outcomes
                })
            }
        };
        let Some(outcomes) = outcomes else {
            for want in &wants {
                self.problem(&want.listener, format!("no loopback address is free for port {}", want.port));
            }
            return;
        };
        for (want, outcome) in outcomes {
            match outcome {
                Ok((fd, address)) => self.add(want, fd, address),
                Err(text) => self.problem(&want.listener, text),
            }
        }
    }

    fn add(&mut self, wanted: Wanted, fd: OwnedFd, address: SocketAddr) {
        let bound = Bound { fd: Arc::new(fd), address, wanted };
        let name = bound.wanted.listener.clone();
        self.command(Command::Listener(name.clone(), address, bound.fd.clone()));
        self.bound.insert(name, bound);
    }

    fn problem(&mut self, listener: &str, text: String) {
        self.problems.insert(listener.to_owned(), format!("{listener}: {text}"));
    }

    fn command(&self, command: Command) {
        if let Some(running) = &self.running {
            let _ = running.commands.send(command);
        }
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let mut env = BTreeMap::from([
            ("OUTRIDER_SERVICE".to_owned(), self.who.service_ref()),
            ("OUTRIDER_INSTANCE".to_owned(), self.who.name.clone()),
        ]);
        for bound in self.bound.values().filter(|bound| !bound.wanted.inbound) {
            let prefix = callee_prefix(&bound.wanted.service, &self.who.namespace);
            let port = bound.address.port().to_string();
            let port_name = shout(&bound.wanted.port_name);
            env.entry(format!("{prefix}_HOST")).or_insert_with(|| bound.address.ip().to_string());
            env.entry(format!("{prefix}_PORT")).or_insert_with(|| port.clone());
            env.insert(format!("{prefix}_PORT_{port_name}"), port);
        }
        env
    }

    async fn tell(&mut self, told: Told) {
        // A `run` that does not read has gone, or will be found gone by reading.
        let _ = tokio::time::timeout(TELL, self.writer.send(&told)).await;
    }

    fn reason(&self) -> String {
        let mut parts = vec![self.life.reason()];
        parts.extend(self.refusal.iter().map(|error| format!("the proxy refused a resource: {error}")));
        parts.extend(self.problems.values().cloned());
        parts.retain(|part| !part.is_empty());
        parts.join("; ")
    }

    async fn report(&mut self) {
        let reason = self.reason();
        if matches!(self.life.phase(), Phase::Waiting | Phase::Starting) && self.said != reason {
            self.said.clone_from(&reason);
            self.tell(Told::Waiting { reason: reason.clone() }).await;
        }
        let state = match (self.life.leaving(), self.life.in_endpoint_set()) {
            (true, _) => wire::InstanceState::Draining,
            (false, true) => wire::InstanceState::Ready,
            (false, false) => wire::InstanceState::Starting,
        };
        let engine = self.engine.map(Engine::name).unwrap_or_default().to_owned();
        let inbound = self.bound.values().filter(|bound| bound.wanted.inbound);
        let instance = wire::Instance {
            state: state as i32,
            endpoints: inbound
                .map(|bound| wire::InstanceEndpoint {
                    port: bound.wanted.port_name.clone(),
                    address: bound.address.ip().to_string(),
                    number: bound.address.port().into(),
                })
                .collect(),
            engine: engine.clone(),
            engine_version: self.version.clone(),
            proxy_pid: self.running.as_ref().map_or(0, |running| running.pid),
            app_pid: self.app_pid,
            reason: reason.clone(),
            restarts: self.life.restarts(),
            ..wire_instance(&self.who)
        };
        let overview = InstanceOverview {
            service: self.who.service_ref(),
            name: self.who.name.clone(),
            state: match state {
                wire::InstanceState::Starting => "starting",
                wire::InstanceState::Ready => "ready",
                wire::InstanceState::Draining => "draining",
            }
            .to_owned(),
            reason,
            engine,
            engine_version: self.version.clone(),
            proxy_pid: instance.proxy_pid,
            app_pid: self.app_pid,
            restarts: instance.restarts,
            listeners: self.bound.iter().map(|(name, b)| (name.clone(), b.address.to_string())).collect(),
            stats: self.stats.clone(),
        };
        self.host.publish(&self.who.proxy(), Some((instance, overview)));
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
        for address in self.addresses.values() {
            self.host.addresses().release(*address);
        }
        let proxy = self.who.proxy();
        self.host.publish(&proxy, None);
        self.host.upstream.facts(|facts| facts.proxy_gone(&proxy));
        let _ = std::fs::remove_file(self.who.folder.join("proxy.json"));
        if !stays && let Err(error) = std::fs::remove_dir_all(&self.who.folder) {
            tracing::warn!(%error, folder = %self.who.folder.display(), "not removed");
        }
    }
}

/// Whether a socket serves another version of its listener as well.
fn same_place(new: &Wanted, old: &Wanted) -> bool {
    (new.inbound, &new.service, new.port, &new.names) == (old.inbound, &old.service, old.port, &old.names)
}

/// `inventory` → `INVENTORY`; of another namespace `ledger.finance` → `LEDGER_FINANCE`.
fn callee_prefix(service: &str, own_namespace: &str) -> String {
    match service.split_once('/') {
        Some((namespace, name)) if namespace == own_namespace => shout(name),
        Some((namespace, name)) => format!("{}_{}", shout(name), shout(namespace)),
        None => shout(service),
    }
}

fn shout(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn traffic(proxy: &str, stats: &Stats) -> wire::Traffic {
    let listener = |(name, listener): (&String, &outrider_handover::ListenerStats)| wire::ListenerTraffic {
        listener: name.clone(),
        connections: listener.connections,
        requests: listener.requests,
        errors: if listener.requests > 0 { listener.responses[4] } else { listener.reasons.values().sum() },
        reasons: listener
            .reasons
            .iter()
            .map(|(reason, count)| wire::ReasonCount { reason: reason.clone(), count: *count })
            .collect(),
        latency_us_sum: listener.latency_us_sum,
    };
    wire::Traffic {
        proxy: proxy.to_owned(),
        listeners: stats.listeners.iter().map(listener).collect(),
        resident_bytes: stats.resident_bytes,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callees_have_one_spelling_in_the_environment() {
        for (service, prefix) in [
            ("shop/inventory", "INVENTORY"),
            ("shop/user-db", "USER_DB"),
            ("finance/ledger", "LEDGER_FINANCE"),
        ] {
            assert_eq!(callee_prefix(service, "shop"), prefix);
        }
    }
}
