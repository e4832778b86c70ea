//! A worker: one thread that owns its connections, pools, balancing, timers and numbers, and shares nothing.
//!
//! Commands come over a channel; configuration comes as a snapshot. Holds: sockets handed over are listened on
//! only while the configuration has their listener, and connections wait in the kernel meanwhile; applying a
//! snapshot closes no connection; strangers cannot use up the descriptors that callers and endpoints need. Does not: decide which snapshot is fit to be applied.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::http1::{RequestHead, ResponseHead};
use outrider_proxy_core::reason::{ProxyError, Reason, Side};
use outrider_proxy_core::stats::{ClusterStats, ListenerStats};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};

use crate::buffers::Buffers;
use crate::config::{Listener, Snapshot};
use crate::log::{Context, Log, WorkerLog};
use crate::timers::Timers;
use crate::upstream::{Kept, Upstream};
use crate::{connection, stream};

/// Most connections one worker serves at once.
pub const MAX_CONNECTIONS: usize = 16_384;
/// Most accepted connections of one worker that have not said who they are: who opens more only ends the oldest
/// of these, so strangers take no place from callers that shake hands.
const MAX_UNKNOWN: usize = 1024;
/// Descriptors for everything but connections.
const RESERVE: u64 = 64;
/// Pause after the kernel refused another descriptor.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);
/// How often kept upstream connections are looked at, at least and at most; never while there are none.
const SWEEP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// Parsed heads kept for reuse.
const KEPT_HEADS: usize = 64;

/// How many connections one of `workers` may accept in a process that may have `descriptors` files open: half of
/// them, so that each accepted connection can have one to an endpoint.
pub fn share(descriptors: u64, workers: usize) -> usize {
    let all = descriptors.saturating_sub(RESERVE).max(descriptors / 2) / 2;
    (usize::try_from(all).unwrap_or(usize::MAX) / workers.max(1)).max(1)
}

/// What the main thread asks of a worker.
pub enum Command {
    /// Listening sockets of a listener, replacing earlier ones.
    Sockets(Arc<str>, Vec<std::net::TcpListener>),
    /// Close them.
    RemoveSockets(Arc<str>),
    /// New configuration; answered once it is in use.
    Apply(Arc<Snapshot>, oneshot::Sender<()>),
    /// Stop accepting; idle connections may stay for `grace` more, in which requests are still answered.
    Drain {
        /// For connections that are idle.
        grace: Duration,
    },
    /// Numbers.
    Stats(oneshot::Sender<Report>),
    /// Sign of life.
    Ping(oneshot::Sender<()>),
}

/// Numbers of one worker.
#[derive(Default)]
pub struct Report {
    /// By name.
    pub listeners: BTreeMap<Arc<str>, ListenerStats>,
    /// By name; with the number of endpoints.
    pub clusters: BTreeMap<Arc<str>, (ClusterStats, usize)>,
    /// Open now.
    pub connections: usize,
}

/// A listener on this worker. Outlives its configuration, because its numbers do.
pub struct Serving {
    /// Resource name.
    pub name: Arc<str>,
    config: RefCell<Arc<Listener>>,
    /// Numbers.
    pub stats: RefCell<ListenerStats>,
    acceptors: RefCell<Vec<JoinHandle<()>>>,
    removed: Cell<bool>,
    changed: Notify,
}

impl Serving {
    /// The configuration of now.
    pub fn config(&self) -> Arc<Listener> {
        Arc::clone(&self.config.borrow())
    }

    /// Ready after the next change of the configuration.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Whether its resource is gone: what is under way ends as it began, but nothing new is served.
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    fn stop_accepting(&self) {
        for acceptor in self.acceptors.take() {
            acceptor.abort();
        }
    }
}

/// Heads parsed in place, lent to a connection for one request.
#[derive(Default)]
pub struct Heads {
    /// Of the request.
    pub request: RequestHead,
    /// Of the response.
    pub response: ResponseHead,
}

/// Everything a connection's task can reach.
pub struct Worker {
    /// Blocks.
    pub buffers: Rc<Buffers>,
    /// Deadlines.
    pub timers: Rc<Timers>,
    /// Lines for people.
    pub log: WorkerLog,
    clusters: RefCell<Vec<Option<Rc<Upstream>>>>,
    servings: RefCell<BTreeMap<Arc<str>, Rc<Serving>>>,
    sockets: RefCell<BTreeMap<Arc<str>, Vec<Rc<TcpListener>>>>,
    active: RefCell<Arc<Snapshot>>,
    #[allow(clippy::vec_box, reason = "lent out as boxes, so that a connection's task stays small")]
    heads: RefCell<Vec<Box<Heads>>>,
    connections: Cell<usize>,
    /// Most of them; more wait in the kernel.
    share: usize,
    closed: Notify,
    /// Connections that have not said who they are, the oldest first.
    unknown: RefCell<BTreeMap<u64, (AbortHandle, Rc<Serving>)>>,
    next_unknown: Cell<u64>,
    draining: Cell<bool>,
    close_idle: Cell<bool>,
    kept: Rc<Kept>,
    random: Cell<u64>,
}

impl Worker {
    fn new(log: Log, share: usize) -> Rc<Self> {
        use std::hash::{BuildHasher, RandomState};
        Rc::new(Self {
            buffers: Rc::default(),
            timers: Timers::new(),
            log: WorkerLog::new(log),
            clusters: RefCell::default(),
            servings: RefCell::default(),
            sockets: RefCell::default(),
            active: RefCell::default(),
            heads: RefCell::default(),
            connections: Cell::new(0),
            share,
            closed: Notify::new(),
            unknown: RefCell::default(),
            next_unknown: Cell::new(0),
            draining: Cell::new(false),
            close_idle: Cell::new(false),
            kept: Rc::default(),
            random: Cell::new(RandomState::new().hash_one(0_u8) | 1),
        })
    }

    /// A random number, good enough for balancing.
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The cluster of a slot.
    pub fn upstream(&self, slot: u32) -> Option<Rc<Upstream>> {
        self.clusters.borrow().get(slot as usize)?.clone()
    }

    /// Whether connections should end after what they are doing.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Whether connections that do nothing should end now.
    pub fn closes_idle(&self) -> bool {
        self.close_idle.get()
    }

    /// Counts a connection among those that have not said who they are, and ends the oldest of too many.
    fn unknown(&self, task: AbortHandle, serving: &Rc<Serving>, number: u64) {
        let mut unknown = self.unknown.borrow_mut();
        unknown.insert(number, (task, Rc::clone(serving)));
        let most = MAX_UNKNOWN.min(self.share.div_ceil(2));
        let oldest = if unknown.len() > most { unknown.pop_first() } else { None };
        drop(unknown);
        if let Some((_, (task, serving))) = oldest {
            task.abort();
            self.overload(&serving);
        }
    }

    /// The connection of this number is known, or over.
    fn known(&self, number: u64) {
        self.unknown.borrow_mut().remove(&number);
    }

    fn overload(&self, serving: &Serving) {
        serving.stats.borrow_mut().reason(Reason::OverloadConnections);
        let error = ProxyError::new(Side::Local, Reason::OverloadConnections);
        self.log.event(&error, Context { listener: &serving.name, ..Context::default() });
    }

    /// Heads to parse into.
    pub fn take_heads(&self) -> Box<Heads> {
        self.heads.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives them back.
    pub fn give_heads(&self, mut heads: Box<Heads>) {
        let mut kept = self.heads.borrow_mut();
        if kept.len() < KEPT_HEADS {
            heads.request.reset();
            heads.response.reset();
            kept.push(heads);
        }
    }

    fn apply(self: &Rc<Self>, snapshot: &Arc<Snapshot>) {
        {
            let mut clusters = self.clusters.borrow_mut();
            let slots = snapshot.clusters.len().max(clusters.len());
            clusters.resize_with(slots, || None);
            for (slot, state) in clusters.iter_mut().enumerate() {
                match (snapshot.clusters.get(slot).and_then(Option::as_ref), &*state) {
                    (Some(config), Some(upstream)) => upstream.configure(config),
                    (Some(config), None) => *state = Some(Upstream::new(Arc::clone(config), &self.kept)),
                    (None, _) => {
                        if let Some(gone) = state.take() {
                            gone.close_idle();
                        }
                    }
                }
            }
        }
        for (name, listener) in &snapshot.listeners {
            let known = self.servings.borrow().get(name).cloned();
            match known {
                Some(serving) => {
                    let former = serving.config.replace(Arc::clone(listener));
                    if !Arc::ptr_eq(&former, listener) {
                        serving.changed.notify_waiters();
                    }
                }
                None => {
                    let serving = Rc::new(Serving {
                        name: Arc::clone(name),
                        config: RefCell::new(Arc::clone(listener)),
                        stats: RefCell::default(),
                        acceptors: RefCell::default(),
                        removed: Cell::new(false),
                        changed: Notify::new(),
                    });
                    self.servings.borrow_mut().insert(Arc::clone(name), serving);
                }
            }
        }
        for (name, serving) in &*self.servings.borrow() {
            serving.removed.set(!snapshot.listeners.contains_key(name));
        }
        *self.active.borrow_mut() = Arc::clone(snapshot);
        self.accept_as_configured();
    }

    /// Starts and stops accepting so that it fits sockets, configuration and drain.
    fn accept_as_configured(self: &Rc<Self>) {
        let active = Arc::clone(&self.active.borrow());
        for (name, serving) in &*self.servings.borrow() {
            let sockets = self.sockets.borrow().get(name).cloned().unwrap_or_default();
            let wanted = active.listeners.contains_key(name) && !self.draining.get();
            if !wanted || sockets.is_empty() {
                serving.stop_accepting();
            } else if serving.acceptors.borrow().is_empty() {
                let start =
                    |socket| tokio::task::spawn_local(accept(Rc::clone(self), Rc::clone(serving), socket));
                *serving.acceptors.borrow_mut() = sockets.into_iter().map(start).collect();
            }
        }
    }

    fn take_sockets(self: &Rc<Self>, name: Arc<str>, sockets: Vec<std::net::TcpListener>) {
        let mut taken = Vec::new();
        for socket in sockets {
            match socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket)) {
                Ok(socket) => taken.push(Rc::new(socket)),
                Err(error) => tracing::error!(listener = &*name, %error, "a socket cannot be used"),
            }
        }
        if let Some(serving) = self.servings.borrow().get(&name) {
            serving.stop_accepting();
        }
        self.sockets.borrow_mut().insert(name, taken);
        self.accept_as_configured();
    }

    fn report(&self) -> Report {
        let mut report = Report { connections: self.connections.get(), ..Report::default() };
        for (name, serving) in &*self.servings.borrow() {
            report.listeners.insert(Arc::clone(name), serving.stats.borrow().clone());
        }
        for upstream in self.clusters.borrow().iter().flatten() {
            let stats = upstream.stats.borrow().clone();
            report.clusters.insert(Arc::clone(&upstream.config().name), (stats, upstream.endpoints()));
        }
        report
    }

    fn drain(self: &Rc<Self>, grace: Duration) {
        self.draining.set(true);
        self.accept_as_configured();
        self.sockets.borrow_mut().clear();
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(grace).await;
            worker.close_idle.set(true);
            worker.timers.wake_all();
        });
    }

    async fn sweep(self: Rc<Self>) {
        loop {
            let now = self.timers.now();
            let upstreams: Vec<_> = self.clusters.borrow().iter().flatten().cloned().collect();
            let next = upstreams.iter().filter_map(|upstream| upstream.sweep(Some(now))).min();
            drop(upstreams);
            match next {
                Some(at) => {
                    let wait = Duration::from_millis(at.saturating_sub(now));
                    tokio::time::sleep(wait.clamp(SWEEP.0, SWEEP.1)).await;
                }
                None => self.kept.wait().await,
            }
        }
    }
}

/// Counts a connection of a worker and its listener while it lives.
pub struct Open {
    worker: Rc<Worker>,
    serving: Rc<Serving>,
}

impl Open {
    fn new(worker: &Rc<Worker>, serving: &Rc<Serving>) -> Self {
        worker.connections.set(worker.connections.get() + 1);
        let mut stats = serving.stats.borrow_mut();
        stats.connections += 1;
        stats.active_connections += 1;
        Self { worker: Rc::clone(worker), serving: Rc::clone(serving) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.connections.set(self.worker.connections.get().saturating_sub(1));
        self.worker.closed.notify_waiters();
        let mut stats = self.serving.stats.borrow_mut();
        stats.active_connections = stats.active_connections.saturating_sub(1);
    }
}

async fn accept(worker: Rc<Worker>, serving: Rc<Serving>, socket: Rc<TcpListener>) {
    loop {
        if worker.connections.get() >= worker.share {
            tracing::warn!(listener = &*serving.name, limit = worker.share, "accepting pauses");
            while worker.connections.get() >= worker.share {
                worker.closed.notified().await;
            }
        }
        match socket.accept().await {
            Ok((tcp, _from)) => begin(&worker, &serving, tcp),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(listener = &*serving.name, %error, "accepting pauses");
                tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
            }
        }
    }
}

/// Errors that accept(2) reports of a connection that is gone already, not of the listening socket.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

fn begin(worker: &Rc<Worker>, serving: &Rc<Serving>, tcp: TcpStream) {
    stream::prepare_accepted(&tcp);
    if worker.connections.get() >= MAX_CONNECTIONS {
        worker.overload(serving);
        return;
    }
    let open = Open::new(worker, serving);
    let greets = serving.config().tls.is_some();
    let number = worker.next_unknown.get();
    let task = tokio::task::spawn_local({
        let (worker, serving) = (Rc::clone(worker), Rc::clone(serving));
        async move {
            let _open = open;
            connection::serve(&worker, &serving, tcp, || {
                if greets {
                    worker.known(number)
                }
            })
            .await;
        }
    });
    if greets {
        worker.next_unknown.set(number + 1);
        worker.unknown(task.abort_handle(), serving, number);
    }
}

/// Runs a worker on this thread until the command channel closes. It accepts at most `share` connections.
///
/// # Errors
/// The runtime cannot be made.
pub fn run(mut commands: mpsc::UnboundedReceiver<Command>, log: Log, share: usize) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async move {
        let worker = Worker::new(log, share);
        tokio::task::spawn_local(Rc::clone(&worker.timers).drive());
        tokio::task::spawn_local(Rc::clone(&worker).sweep());
        while let Some(command) = commands.recv().await {
            match command {
                Command::Sockets(name, sockets) => worker.take_sockets(name, sockets),
                Command::RemoveSockets(name) => {
                    if let Some(serving) = worker.servings.borrow().get(&name) {
                        serving.stop_accepting();
                    }
                    worker.sockets.borrow_mut().remove(&name);
                }
                Command::Apply(snapshot, done) => {
                    worker.apply(&snapshot);
                    let _ = done.send(());
                }
                Command::Drain { grace } => worker.drain(grace),
                Command::Stats(reply) => {
                    let _ = reply.send(worker.report());
                }
                Command::Ping(reply) => {
                    let _ = reply.send(());
                }
            }
        }
    });
    Ok(())
}
