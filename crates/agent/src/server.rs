//! The agent process: options, start-up, the local API, and what its instances share.
//!
//! Holds: one agent per runtime folder; instances of an agent before it are taken over with their proxies, and what
//! belongs to no application any more is ended; the local API works before and without the control plane. Does not:
//! decide about instances.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use outrider_api::agent as wire;
use outrider_identity::{FolderError, private_folder};
use outrider_supervise::Policy;
use rustix::fs::{FlockOperation, OFlags};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::claims::Claims;
use crate::clock::{Clock, Reading};
use crate::commands::{self, Reply};
use crate::credentials::{Credential, CredentialError};
use crate::facts::MAX_OCCURRED;
use crate::instance::saved::Saved;
use crate::instance::{self, Ask, Identity};
use crate::isolation;
use crate::journal::Journal;
use crate::lastgood::{self, LastGood};
use crate::lifecycle::Times;
use crate::link::{self, LinkError, LinkOptions};
use crate::local::{InstanceOverview, Overview};
use crate::logs;
use crate::random;
use crate::releases::Releases;
use crate::reserve::Reserve;
use crate::sizes::Sizes;
use crate::sockets::{Addresses, route_to};
use crate::svids::{Svids, node_file};
use crate::upstream::{LinkState, Upstream};

mod local_api;
#[cfg(test)]
pub(crate) mod tests;

/// Longest path of a Unix socket.
const MAX_SOCKET_PATH: usize = 107;
/// The longest name of a socket in the folder of an instance: the millionth process still has one.
const LONGEST_SOCKET: &str = "/xds-999999.sock";
/// Letters and digits that tell instances of a service apart.
const SUFFIX: usize = 5;
/// How long the folder of an instance waits for its application to come back to a new agent.
const COME_BACK: Duration = Duration::from_secs(60);
/// Between two looks for logs of proxies that have gone.
const OLD_LOGS: Duration = Duration::from_secs(600);

/// How to run an agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Kept over reboots: identity, last good resources, logs. Used below `agent/`.
    pub state: PathBuf,
    /// Gone after a reboot: sockets and hosts files. At most 80 bytes long.
    pub runtime: PathBuf,
    /// This node's name: an RFC 1123 subdomain, unique among live nodes.
    pub node: String,
    /// `HOST:PORT` of the control plane.
    pub server: String,
    /// For the first start, or after the certificate has expired.
    pub join_token: Option<String>,
    /// Address other hosts reach this one at; default: the one on the route to the server.
    pub advertise: Option<IpAddr>,
    /// Where this host is: see [`outrider_api::agent::is_zone`].
    pub zone: Option<String>,
    /// Ports that other proxies reach the instances of this host at; default: any the kernel has free.
    pub inbound_ports: Option<RangeInclusive<u16>>,
    /// `outrider-proxy`; default: beside the running program.
    pub proxy_binary: Option<PathBuf>,
    /// Folder of releases of the native proxy, `RELEASE/outrider-proxy` each; default: `STATE/agent/releases`.
    pub releases: Option<PathBuf>,
    /// Envoy; default: `envoy` beside the running program, else looked up in `PATH`.
    pub envoy_binary: Option<PathBuf>,
    /// The file an application's names are added to.
    pub hosts_base: PathBuf,
    /// Times of instances.
    pub times: Times,
    /// Bounds of the life of proxies.
    pub policy: Policy,
    /// What becomes of proxies when the agent ends.
    pub on_stop: OnStop,
    /// Whether native proxies get nothing of this host but what they need: see [`outrider_os::confine`].
    pub confine: bool,
    /// How long subscriptions may stay without any answer before the connection is made anew.
    pub patience: Duration,
}

/// What becomes of proxies when an agent is told to end. One that is killed leaves them in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStop {
    /// They are ended: the agent is part of something that ends as a whole.
    #[default]
    EndAll,
    /// They carry on, and the next agent takes them over: an agent is replaced underneath its applications.
    HandOver,
}

impl AgentOptions {
    /// Options with defaults for the rest.
    pub fn new(state: PathBuf, runtime: PathBuf, node: String, server: String) -> Self {
        Self {
            state,
            runtime,
            node,
            server,
            join_token: None,
            advertise: None,
            zone: None,
            inbound_ports: None,
            proxy_binary: None,
            releases: None,
            envoy_binary: None,
            hosts_base: "/etc/hosts".into(),
            times: Times::default(),
            policy: Policy::default(),
            on_stop: OnStop::default(),
            confine: true,
            patience: Duration::from_secs(20),
        }
    }

    /// Where the local API is.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("agent.sock")
    }
}

/// Why the agent did not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The name of the node.
    #[error(
        "`{0}` is no name for a node: use 1 to 63 of a-z, 0-9, dash and dot, beginning and ending with a letter or digit"
    )]
    Node(String),
    /// The runtime folder's path.
    #[error("the runtime folder {0} has too long a path for Unix sockets: choose one of at most {1} bytes")]
    LongPath(PathBuf, usize),
    /// A folder or file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder that is not this user's alone.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Another agent.
    #[error("another agent runs on {0}")]
    Running(PathBuf),
    /// The address to advertise.
    #[error("no address of this host on the way to {server}: {cause}; give one with --advertise")]
    Advertise {
        /// The control plane.
        server: String,
        /// Why.
        cause: String,
    },
    /// No identity and no way to get one.
    #[error(
        "this agent has no identity yet; create a token with `outrider token create` and start it with --join TOKEN"
    )]
    NoIdentity,
    /// The identity is another node's.
    #[error("this agent has joined as {0}; use that name, or another state folder")]
    OtherNode(String),
    /// The identity on disk.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// Joining was refused.
    #[error("joining failed: {0}")]
    Join(LinkError),
}

/// What instances share.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) options: Resolved,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) svids: Arc<Svids>,
    pub(crate) last_good: Arc<LastGood>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) releases: Releases,
    pub(crate) sizes: Sizes,
    pub(crate) reserve: Reserve,
    clock: Clock,
    /// Why the local API cannot be reached, in words.
    unreachable: Mutex<Option<String>>,
    /// Where instances are asked.
    asks: Mutex<BTreeMap<String, mpsc::UnboundedSender<Ask>>>,
    addresses: Mutex<Addresses>,
    claims: Mutex<Claims>,
    instances: Mutex<BTreeMap<String, (wire::Instance, InstanceOverview)>>,
}

/// Options with every default filled in.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) state: PathBuf,
    pub(crate) runtime: PathBuf,
    pub(crate) node: String,
    pub(crate) advertise: IpAddr,
    pub(crate) inbound_ports: Option<RangeInclusive<u16>>,
    pub(crate) hosts_base: PathBuf,
    pub(crate) times: Times,
    pub(crate) policy: Policy,
    pub(crate) on_stop: OnStop,
    pub(crate) confine: bool,
}

impl Host {
    pub(crate) fn addresses(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is asked of `proxy` (`NS/INSTANCE`) from now on.
    pub(crate) fn reachable(&self, proxy: &str) -> mpsc::UnboundedReceiver<Ask> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.asks.lock().unwrap_or_else(PoisonError::into_inner).insert(proxy.to_owned(), sender);
        receiver
    }

    /// Nothing is asked of `proxy` any more.
    pub(crate) fn unreachable(&self, proxy: &str) {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner).remove(proxy);
    }

    fn has_instance(&self, name: &str) -> bool {
        let asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        asks.keys().filter_map(|proxy| proxy.split_once('/')).any(|(_, one)| one == name)
    }

    fn has_instance_in(&self, folder: &Path) -> bool {
        let asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        asks.keys()
            .filter_map(|proxy| proxy.split_once('/'))
            .any(|(_, name)| instance_folder(self, name) == folder)
    }

    /// Where `instance` is asked: `NS/INSTANCE`, or a name that only one has; and its own name.
    fn find(&self, instance: &str) -> Result<(String, mpsc::UnboundedSender<Ask>), String> {
        let asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        let meant = |(proxy, _): &(&String, &mpsc::UnboundedSender<Ask>)| {
            *proxy == instance || proxy.split_once('/').is_some_and(|(_, name)| name == instance)
        };
        let mut found = asks.iter().filter(meant);
        match (found.next(), found.next()) {
            (Some((proxy, ask)), None) => {
                let name = proxy.split_once('/').map_or(proxy.as_str(), |(_, name)| name);
                Ok((name.to_owned(), ask.clone()))
            }
            (None, _) => Err(format!("no instance {instance} runs on this host")),
            (Some(_), Some(_)) => {
                Err(format!("several instances are called {instance}: write NAMESPACE/NAME"))
            }
        }
    }

    /// Has a command of the control plane carried out and answered by its instance. Where there is none, the reply
    /// says so when it is dropped.
    fn deliver(&self, command: wire::Command, reply: Reply) {
        let asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner).get(&command.proxy).cloned();
        if let Some(asks) = asks {
            let _ = asks.send(Ask::Command(commands::action(command.action), reply));
        }
    }

    pub(crate) fn log_folder(&self) -> PathBuf {
        self.options.state.join("agent/log")
    }

    pub(crate) fn identity_folder(&self) -> PathBuf {
        self.options.state.join("agent/identity")
    }

    /// Shows the world the state of `proxy`; `None` when it is gone.
    pub(crate) fn publish(&self, proxy: &str, state: Option<(wire::Instance, InstanceOverview)>) {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match state {
            Some(state) => {
                let new = state.0.clone();
                instances.insert(proxy.to_owned(), state).is_none_or(|(old, _)| old != new)
            }
            None => instances.remove(proxy).is_some(),
        };
        if changed {
            let all = instances.values().map(|(instance, _)| instance.clone()).collect();
            // Before anybody else's list is made: of two that come at once the older would be the last word.
            self.upstream.facts(|facts| facts.set_instances(wire::Instances { instances: all }));
        }
    }

    /// What does not work beside the instances, a sentence each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let now = Reading::now();
        let unreachable = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let single = [
            self.last_good.trouble(),
            self.journal.trouble(),
            self.reserve.trouble(),
            self.clock.trouble(now),
            unreachable,
        ];
        single.into_iter().flatten().chain(self.svids.trouble(now.wall)).collect()
    }

    fn overview(&self) -> Overview {
        let instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        Overview {
            node: self.options.node.clone(),
            away: match self.upstream.link() {
                LinkState::Connected => String::new(),
                LinkState::Away(why) => why,
            },
            unheard_s: self.upstream.unheard().map(|time| time.as_secs()),
            problems: self.problems(),
            instances: instances.values().map(|(_, overview)| overview.clone()).collect(),
        }
    }
}

fn beside_us(name: &str) -> PathBuf {
    let ours = std::env::current_exe().ok();
    ours.and_then(|exe| Some(exe.parent()?.join(name))).unwrap_or_else(|| name.into())
}

fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Runs an agent until `shutdown`; then its proxies are ended, or left to the next one: see [`OnStop`].
///
/// # Errors
/// See [`AgentError`]. An unreachable control plane is none: the agent goes on trying.
pub async fn serve(mut options: AgentOptions, shutdown: CancellationToken) -> Result<(), AgentError> {
    // `run`, proxies and applications are told these paths, wherever they were started.
    for path in [&mut options.state, &mut options.runtime] {
        *path =
            std::path::absolute(&path).map_err(|source| AgentError::File { path: path.clone(), source })?;
    }
    if options.node.len() > 63 || !options.node.split('.').all(is_label) {
        return Err(AgentError::Node(options.node));
    }
    let longest = MAX_SOCKET_PATH - "/p/".len() - LONGEST_SOCKET.len() - SUFFIX;
    if options.runtime.as_os_str().len() > longest {
        return Err(AgentError::LongPath(options.runtime, longest));
    }
    let identity = options.state.join("agent/identity");
    let state = options.state.join("agent");
    for path in [&state, &identity, &state.join("log"), &options.runtime, &options.runtime.join("p")] {
        private_folder(path)?;
    }
    let lock = lock_soon(&options.runtime).await?;

    let credential = Credential::load(&node_file(&identity))?;
    let credential =
        credential.filter(|c| options.join_token.is_none() || c.info.is_valid_at(SystemTime::now()));
    match &credential {
        Some(credential) => {
            let node = credential.info.id.path().trim_start_matches("/node/");
            if node != options.node {
                return Err(AgentError::OtherNode(node.to_owned()));
            }
        }
        None if options.join_token.is_none() => return Err(AgentError::NoIdentity),
        None => {}
    }
    let advertise = match options.advertise {
        Some(address) => address,
        None => find_address(&options.server).await?,
    };
    let envoy = || Some(beside_us("envoy")).filter(|path| path.exists()).unwrap_or_else(|| "envoy".into());
    let upstream = Upstream::new(&options.node, options.zone.as_deref());
    let journal = Journal::open(state.join("events"), SystemTime::now());
    // What happened under earlier agents, too: the control plane may have been away.
    let past = journal.last(None, MAX_OCCURRED);
    upstream.facts(|facts| past.iter().for_each(|one| facts.occurred(one.to_wire())));
    let releases = Releases {
        folder: options.releases.clone().unwrap_or_else(|| state.join("releases")),
        native: options.proxy_binary.clone().unwrap_or_else(|| beside_us("outrider-proxy")),
        envoy: options.envoy_binary.clone().unwrap_or_else(envoy),
    };
    if !options.confine {
        tracing::warn!("proxies are not confined: they have what this agent has (--confine-proxies=false)");
    }
    let last_good = LastGood::new(options.state.join("agent/last-good"));
    let host = Arc::new(Host {
        options: Resolved {
            advertise,
            inbound_ports: options.inbound_ports.clone(),
            state: options.state.clone(),
            runtime: options.runtime.clone(),
            node: options.node.clone(),
            hosts_base: options.hosts_base.clone(),
            times: options.times.clone(),
            policy: options.policy.clone(),
            on_stop: options.on_stop,
            confine: options.confine,
        },
        upstream: upstream.clone(),
        svids: Arc::default(),
        last_good: last_good.clone(),
        journal: journal.clone(),
        releases,
        sizes: Sizes::open(state.join("sizes.json")),
        reserve: Reserve::new(),
        clock: Clock::new(Reading::now()),
        unreachable: Mutex::default(),
        asks: Mutex::default(),
        addresses: Mutex::new(Addresses::new(random::bits())),
        claims: Mutex::default(),
        instances: Mutex::default(),
    });

    if let Some(credential) = &credential {
        host.svids.set_bundle(&credential.bundle);
    }

    let socket = options.socket();
    let listener = bind(&socket).map_err(|source| AgentError::File { path: socket.clone(), source })?;
    tracing::info!(node = %options.node, address = %advertise, socket = %socket.display(), "agent serves");

    let link_options = LinkOptions {
        server: options.server.clone(),
        node: options.node.clone(),
        address: advertise.to_string(),
        zone: options.zone.clone().unwrap_or_default(),
        identity,
        patience: options.patience,
    };
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    // Before the control plane hears of this host, and before anybody comes back.
    take_over(&host, &tasks, &stop)?;
    let connect = keep_connected(link_options, options.join_token.clone(), credential, host.clone());
    let outcome = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        refused = connect => Err(refused),
        () = last_good.clone().run(lastgood::GATHER) => Ok(()),
        () = journal.clone().run() => Ok(()),
        () = local_api::accept(listener, lock, &host, &tasks, &stop) => Ok(()),
        () = host.clock.watch() => Ok(()),
        () = forget_the_lost(&host) => Ok(()),
    };
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    last_good.flush(SystemTime::now());
    journal.flush();
    let _ = std::fs::remove_file(&socket);
    outcome
}

/// Before a process that could not be opened is tried again.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// Before a node that was put out tries again.
const REJOIN_PAUSE: Duration = Duration::from_secs(5);

/// Returns only if joining is refused for good.
async fn keep_connected(
    options: LinkOptions,
    token: Option<String>,
    credential: Option<Credential>,
    host: Arc<Host>,
) -> AgentError {
    let mut credential = match (credential, &token) {
        (Some(credential), _) => credential,
        (None, None) => return AgentError::NoIdentity,
        (None, Some(token)) => loop {
            match link::join(&options.server, token, &options.node).await {
                Ok(credential) => match credential.save(&node_file(&options.identity)) {
                    Ok(()) => break credential,
                    Err(error) => return error.into(),
                },
                Err(error @ (LinkError::Connect { .. } | LinkError::Silent)) => {
                    tracing::warn!(%error, "not joined yet");
                    host.upstream.set_link(LinkState::Away(error.to_string()));
                    tokio::time::sleep(Duration::from_secs(1).mul_f64(0.5 + random::fraction())).await;
                }
                Err(error) => return AgentError::Join(error),
            }
        },
    };
    loop {
        let deliver = |command, reply| host.deliver(command, reply);
        credential = link::run(&options, &host.upstream, &host.svids, &deliver, credential).await;
        // Put out. What runs here runs on; a token that was not used yet lets this node in again.
        tokio::time::sleep(REJOIN_PAUSE.mul_f64(0.5 + random::fraction())).await;
        let Some(token) = &token else { continue };
        match link::join(&options.server, token, &options.node).await {
            Ok(joined) => {
                // What runs here must not end because a disk is full.
                if let Err(error) = joined.save(&node_file(&options.identity)) {
                    tracing::warn!(%error, "a certificate is used but cannot be kept");
                }
                credential = joined;
            }
            Err(error) => tracing::warn!(%error, "not joined again"),
        }
    }
}

async fn find_address(server: &str) -> Result<IpAddr, AgentError> {
    let failed = |cause: String| AgentError::Advertise { server: server.to_owned(), cause };
    let mut addresses = tokio::net::lookup_host(server).await.map_err(|error| failed(error.to_string()))?;
    let first = addresses.next().ok_or_else(|| failed("the name has no address".to_owned()))?;
    route_to(first).map_err(|error| failed(error.to_string()))
}

/// The socket of the local API, made anew.
fn bind(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// What an agent that was killed had just begun holds its lock until it executes its program, some 10 ms.
const LETS_GO: Duration = Duration::from_secs(1);
/// Between two attempts: nothing tells when a lock is free without taking it for good.
const AGAIN: Duration = Duration::from_millis(10);

/// The lock, also if an agent that has gone a moment ago still seems to have it.
async fn lock_soon(runtime: &Path) -> Result<std::fs::File, AgentError> {
    let deadline = tokio::time::Instant::now() + LETS_GO;
    loop {
        match lock(runtime) {
            Err(AgentError::Running(_)) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

fn lock(runtime: &Path) -> Result<std::fs::File, AgentError> {
    let path = runtime.join("agent.lock");
    let failed = |source| AgentError::File { path: path.clone(), source };
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)
        .map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AgentError::Running(runtime.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

/// What an earlier agent kept of its instances, each with its folder. An agent that cannot read all of it for want of
/// descriptors must not run: what serves would belong to nobody.
fn kept(host: &Host) -> Result<Vec<(PathBuf, Saved)>, AgentError> {
    let folder = host.options.runtime.join("p");
    let failed = |source| AgentError::File { path: folder.clone(), source };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut kept = Vec::new();
    for entry in entries {
        let folder = entry.map_err(failed)?.path();
        let saved = Saved::read(&folder).map_err(|error| failed(error.source))?;
        kept.extend(saved.map(|saved| (folder, saved)));
    }
    Ok(kept)
}

/// Takes over the instances of an earlier agent, and ends what belongs to none of them any more. When it returns every
/// instance can be found by its `run`.
///
/// # Errors
/// Nothing was done: what was kept cannot be read now.
fn take_over(host: &Arc<Host>, tasks: &TaskTracker, stop: &CancellationToken) -> Result<(), AgentError> {
    let kept = kept(host).or_else(|_| {
        host.reserve.release();
        kept(host)
    })?;
    for (folder, saved) in kept {
        if instance::belongs_to_somebody(&saved) {
            let who = Identity {
                namespace: saved.namespace.clone(),
                service: saved.service.clone(),
                name: saved.name.clone(),
                folder,
                adopts: saved.adopts,
                returns: true,
            };
            instance::announce(host, &who, &saved);
            tasks.spawn(instance::adopt(host.clone(), who, saved, stop.clone()));
            continue;
        }
        // A `run` that waits for its proxy comes back to the names it has, and gets new processes. These are gone before
        // it is heard: what it makes in their places must stay.
        for file in ["instance.json", "retired", "control.sock"] {
            let _ = std::fs::remove_file(folder.join(file));
        }
        tasks.spawn(end_left_over(folder, saved, stop.clone()));
    }
    Ok(())
}

/// Ends the processes of an instance whose application has gone.
async fn end_left_over(folder: PathBuf, saved: Saved, stop: CancellationToken) {
    for generation in &saved.generations {
        let pid = generation.process.pid;
        let process = loop {
            match generation.process.open() {
                Ok(process) => break process,
                Err(error) => {
                    tracing::warn!(pid, %error, "it cannot be ended yet: its application has gone");
                    if stop.run_until_cancelled(tokio::time::sleep(OPEN_AGAIN)).await.is_none() {
                        return;
                    }
                }
            }
        };
        let Some(process) = process else { continue };
        tracing::warn!(pid, folder = %folder.display(), "ending a proxy whose application has gone");
        let cell = isolation::find(&folder, pid);
        match process.end(Duration::from_millis(500)).await {
            Ok(_) => drop(cell.left(None)),
            Err(error) => tracing::warn!(pid, %error, "it cannot be ended"),
        }
    }
}

/// Removes folders whose application did not come back, once, and old logs now and then.
async fn forget_the_lost(host: &Arc<Host>) {
    let folder = host.options.runtime.join("p");
    let before: Vec<_> =
        std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    tokio::time::sleep(COME_BACK).await;
    for path in before {
        if !host.has_instance_in(&path) {
            let _ = std::fs::remove_dir_all(path);
        }
    }
    loop {
        let (folder, here) = (host.log_folder(), host.clone());
        let pruned = tokio::task::spawn_blocking(move || {
            logs::prune(&folder, logs::KEPT, |name| here.has_instance(name));
        });
        if let Err(error) = pruned.await {
            tracing::warn!(%error, "old logs are not removed");
        }
        tokio::time::sleep(OLD_LOGS).await;
    }
}

/// `RUNTIME/p/INSTANCE`, or only the instance's suffix where that would be too long for a Unix socket.
fn instance_folder(host: &Host, instance: &str) -> PathBuf {
    let folder = host.options.runtime.join("p").join(instance);
    if folder.as_os_str().len() + LONGEST_SOCKET.len() <= MAX_SOCKET_PATH {
        return folder;
    }
    host.options.runtime.join("p").join(&instance[instance.len() - SUFFIX..])
}
