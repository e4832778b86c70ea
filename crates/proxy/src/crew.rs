//! The workers of a process, as one.
//!
//! Holds: every socket is served by some worker and every worker serves every listener; a worker that joins has
//! everything the others have; one that leaves finishes what it has, follows configuration until then, and its
//! numbers stay counted. Does not: decide how many there are.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use outrider_handover::{ClusterStats, Connections, ListenerStats, Pressure, Stats};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::config::Snapshot;
use crate::log::Log;
use crate::shared::Shared;
use crate::timers;
use crate::worker::{self, Command, Report, Scope, Stage, Start};

/// The sockets of a listener.
struct Sockets {
    address: SocketAddr,
    list: Vec<Arc<TcpListener>>,
}

/// See the module.
pub struct Crew {
    log: Log,
    /// Files that may be open.
    descriptors: u64,
    members: Vec<mpsc::UnboundedSender<Command>>,
    retired: Vec<Retired>,
    /// Numbers of workers that are gone.
    gone: Stats,
    sockets: BTreeMap<String, Sockets>,
    snapshot: Option<Arc<Snapshot>>,
    accepting: bool,
    pressure: Pressure,
    nudge: Arc<Notify>,
    started: usize,
}

struct Retired {
    commands: mpsc::UnboundedSender<Command>,
    last: oneshot::Receiver<Report>,
}

impl Crew {
    /// Nobody yet.
    pub fn new(log: Log, descriptors: u64, accepting: bool) -> Self {
        Self {
            log,
            descriptors,
            members: Vec::new(),
            retired: Vec::new(),
            gone: Stats::default(),
            sockets: BTreeMap::new(),
            snapshot: None,
            accepting,
            pressure: Pressure::None,
            nudge: Arc::default(),
            started: 0,
        }
    }

    /// How many accept.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// Makes it so many, at least one.
    ///
    /// # Errors
    /// A thread cannot be started. Those that there are go on.
    pub fn resize(&mut self, workers: usize) -> io::Result<()> {
        let workers = workers.max(1);
        if workers == self.members.len() {
            return Ok(());
        }
        let share = worker::share(self.descriptors, workers);
        while self.members.len() < workers {
            let member = self.start(share)?;
            if let Some(snapshot) = &self.snapshot {
                let _ = member.send(Command::Apply(Arc::clone(snapshot), oneshot::channel().0));
            }
            self.members.push(member);
        }
        while self.members.len() > workers
            && let Some(commands) = self.members.pop()
        {
            let (reply, last) = oneshot::channel();
            let _ = commands.send(Command::Retire(reply));
            self.retired.push(Retired { commands, last });
        }
        for member in &self.members {
            let _ = member.send(Command::Share(share));
        }
        for name in self.sockets.keys() {
            self.hand_out(name);
        }
        Ok(())
    }

    fn start(&mut self, share: usize) -> io::Result<mpsc::UnboundedSender<Command>> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let start = Start {
            log: self.log.clone(),
            share,
            accepting: self.accepting,
            pressure: self.pressure,
            nudge: Arc::clone(&self.nudge),
        };
        let body = move || {
            if let Err(error) = worker::run(receiver, start) {
                // Its part of the connections would never be served.
                tracing::error!(%error, "a worker cannot run");
                std::process::exit(1);
            }
        };
        std::thread::Builder::new().name(format!("worker-{}", self.started)).spawn(body)?;
        self.started += 1;
        Ok(commands)
    }

    /// Spreads sockets over the workers; every socket is served, and every worker has one.
    fn hand_out(&self, name: &str) {
        let Some(Sockets { list, .. }) = self.sockets.get(name) else { return };
        let count = self.members.len();
        let mut shares: Vec<Vec<TcpListener>> = (0..count).map(|_| Vec::new()).collect();
        if list.is_empty() {
            return;
        }
        for n in 0..list.len().max(count) {
            match list[n % list.len()].try_clone() {
                Ok(socket) => shares[n % count].push(socket),
                Err(error) => tracing::warn!(listener = name, %error, "a worker has no socket of its own"),
            }
        }
        for (member, share) in self.members.iter().zip(shares) {
            let _ = member.send(Command::Sockets(name.into(), share));
        }
    }

    /// Sockets of a listener, replacing earlier ones.
    pub fn give_sockets(&mut self, name: &str, address: SocketAddr, sockets: Vec<TcpListener>) {
        let list = sockets.into_iter().map(Arc::new).collect();
        self.sockets.insert(name.to_owned(), Sockets { address, list });
        self.hand_out(name);
    }

    /// Closes them.
    pub fn remove_sockets(&mut self, name: &str) {
        self.sockets.remove(name);
        self.tell_members(|| Command::RemoveSockets(name.into()));
    }

    /// Closes all those whose listener is one of `names`.
    pub fn forget_sockets(&mut self, mut which: impl FnMut(&str) -> bool) {
        let names: Vec<_> = self.sockets.keys().filter(|name| which(name)).cloned().collect();
        for name in names {
            self.remove_sockets(&name);
        }
    }

    /// All of them, to be handed on.
    pub fn sockets(&self) -> impl Iterator<Item = (&str, SocketAddr, &[Arc<TcpListener>])> {
        self.sockets.iter().map(|(name, sockets)| (name.as_str(), sockets.address, sockets.list.as_slice()))
    }

    fn everybody(&self) -> impl Iterator<Item = &mpsc::UnboundedSender<Command>> {
        self.members.iter().chain(self.retired.iter().map(|retired| &retired.commands))
    }

    fn tell_members(&self, command: impl Fn() -> Command) {
        for member in &self.members {
            let _ = member.send(command());
        }
    }

    /// Asks everybody; answers of workers that are gone are left out.
    fn ask<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Answers<T> {
        let ask = |commands: &mpsc::UnboundedSender<Command>| {
            let (reply, answer) = oneshot::channel();
            let _ = commands.send(command(reply));
            answer
        };
        Answers(self.everybody().map(ask).collect())
    }

    /// New configuration, in use everywhere once the answers are there.
    pub fn apply(&mut self, snapshot: &Arc<Snapshot>) -> Answers<()> {
        self.snapshot = Some(Arc::clone(snapshot));
        self.ask(|done| Command::Apply(Arc::clone(snapshot), done))
    }

    /// Whether to accept. When this returns, it is so.
    pub async fn accept(&mut self, accepting: bool) {
        self.accepting = accepting;
        let answers = self.members.iter().map(|member| {
            let (reply, answer) = oneshot::channel();
            let _ = member.send(Command::Accept(accepting, reply));
            answer
        });
        Answers(answers.collect()).all().await;
    }

    /// Begins a drain; the answers come as the workers have nothing open any more.
    pub fn drain(&mut self, scope: Scope) -> Answers<()> {
        self.ask(|done| Command::Drain(scope, done))
    }

    /// A drain has come to this stage.
    pub fn advance(&self, scope: Scope, stage: Stage) {
        for member in self.everybody() {
            let _ = member.send(Command::Advance(scope, stage));
        }
    }

    /// What is open.
    pub async fn count(&self, scope: Scope) -> Connections {
        let mut sum = Connections::default();
        for one in self.ask(|reply| Command::Count(scope, reply)).all().await {
            sum += one;
        }
        sum
    }

    /// Says how short memory is.
    pub fn feel(&mut self, pressure: Pressure) {
        self.pressure = pressure;
        for member in self.everybody() {
            let _ = member.send(Command::Pressure(pressure));
        }
    }

    /// Woken when a worker has taken much memory.
    pub fn nudge(&self) -> Arc<Notify> {
        Arc::clone(&self.nudge)
    }

    /// Whether every event loop that takes connections turns. Waits for that.
    pub async fn is_alive(&self) -> bool {
        let answers = self.members.iter().map(|member| {
            let (reply, answer) = oneshot::channel();
            let _ = member.send(Command::Ping(reply));
            answer
        });
        Answers(answers.collect()).all().await.len() == self.members.len()
    }

    /// The numbers of everybody, also of those that are gone.
    pub async fn numbers(&mut self) -> Stats {
        let Self { retired, gone, .. } = self;
        retired.retain_mut(|retired| match retired.last.try_recv() {
            Ok(report) => {
                add(gone, report);
                // Counters stay; what was open is closed.
                gone.out_of_descriptors = false;
                gone.listeners.values_mut().for_each(|one| {
                    (one.active_connections, one.active_requests) = (0, 0);
                });
                gone.clusters.values_mut().for_each(|one| one.active_connections = 0);
                false
            }
            Err(oneshot::error::TryRecvError::Closed) => false,
            Err(oneshot::error::TryRecvError::Empty) => true,
        });
        let mut stats = self.gone.clone();
        stats.clusters.values_mut().for_each(|one| one.endpoints = 0);
        for report in self.ask(Command::Stats).all().await {
            add(&mut stats, report);
        }
        let clusters = self.snapshot.iter().flat_map(|snapshot| snapshot.clusters.iter().flatten());
        add_shared(&mut stats, clusters.map(|cluster| (&*cluster.name, &*cluster.shared)));
        stats
    }
}

/// What the workers know together of each cluster, by its name.
pub fn add_shared<'a>(stats: &mut Stats, clusters: impl Iterator<Item = (&'a str, &'a Shared)>) {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock = u64::try_from(clock.as_millis()).unwrap_or(u64::MAX);
    let now = timers::coarse_ms();
    let mut ailing = BTreeMap::new();
    for (name, shared) in clusters {
        let numbers = shared.numbers(now, random());
        let into = stats.clusters.entry(name.to_owned()).or_default();
        into.ejections = numbers.ejections;
        into.retries_refused = numbers.retries_refused;
        into.unused_count = numbers.out;
        if numbers.out > 0 {
            ailing.insert(name, (numbers.out, shared));
        }
    }
    // All of them may be more than a message takes, so only some are named.
    let counts: Vec<u64> = ailing.values().map(|(count, _)| *count).collect();
    for ((name, (_, shared)), most) in ailing.into_iter().zip(outrider_handover::shares(&counts)) {
        if let Some(into) = stats.clusters.get_mut(name) {
            into.unused = shared.unused(most, now, clock);
        }
    }
}

fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

/// What workers answer.
pub struct Answers<T>(Vec<oneshot::Receiver<T>>);

impl<T> Answers<T> {
    /// Waits for all. A worker that has ended meanwhile has none.
    pub async fn all(self) -> Vec<T> {
        let mut answers = Vec::with_capacity(self.0.len());
        for answer in self.0 {
            answers.extend(answer.await);
        }
        answers
    }
}

fn add(into: &mut Stats, report: Report) {
    into.out_of_descriptors |= report.out_of_descriptors;
    for (name, one) in report.listeners {
        add_listener(into.listeners.entry(name.to_string()).or_default(), &one);
    }
    for (name, (one, endpoints)) in report.clusters {
        let into: &mut ClusterStats = into.clusters.entry(name.to_string()).or_default();
        into.endpoints = endpoints as u64;
        into.connections += one.connections;
        into.active_connections += one.active_connections;
        into.connect_failures += one.connect_failures;
        into.requests += one.requests;
        into.retries += one.retries;
        into.copies += one.copies;
        into.copies_lost += one.copies_lost;
        into.stream_window_waits += one.waits.stream;
        into.connection_window_waits += one.waits.connection;
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
    for (reason, count) in one.reasons() {
        *into.reasons.entry(reason.as_str().to_owned()).or_default() += count;
    }
    into.bytes_in += one.bytes_in;
    into.bytes_out += one.bytes_out;
    into.latency_us_sum += one.latency.sum();
    into.upstream_us_sum += one.upstream_us;
    into.stream_window_waits += one.waits.stream;
    into.connection_window_waits += one.waits.connection;
    for (us, count) in one.added.buckets() {
        *into.added_us.entry(us).or_default() += count;
    }
    for (policy, count) in &one.audited {
        *into.audited.entry(policy.to_string()).or_default() += count;
    }
    for (status, count) in one.grpc_statuses() {
        *into.grpc.entry(status.to_owned()).or_default() += count;
    }
}
