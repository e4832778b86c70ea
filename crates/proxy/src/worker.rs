//! A worker: one thread that owns its connections, pools, balancing, timers and numbers, and shares
//! nothing but what [`crate::shared`] has.
//!
//! Commands come over a channel; configuration comes as a snapshot. Holds: sockets handed over are listened on
//! only while the configuration has their listener and the process accepts, and connections wait in the kernel
//! meanwhile; applying a snapshot closes no connection. Does not: decide which snapshot is fit to be applied, or
//! when to drain.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrider_handover::{Connections, Pressure};
use outrider_proxy_core::http1::{RequestHead, ResponseHead};
use outrider_proxy_core::stats::{ClusterStats, ListenerStats};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::buffers::Buffers;
use crate::config::Snapshot;
use crate::connection::{Allowed, Asked, Watched};
use crate::descriptors;
use crate::log::{Log, WorkerLog};
use crate::mirror::Taps;
use crate::timers::Timers;
use crate::upstream::{Kept, Upstream};

mod accept;
mod serving;

use accept::Ear;
pub use serving::{Http, Kind, Open, Scope, Serving, Stage};

/// Most connections one worker serves at once.
pub const MAX_CONNECTIONS: usize = 16_384;
/// Most accepted connections of one worker that have not said who they are: who opens more only ends the oldest
/// of these, so strangers take no place from callers that shake hands. About as many handshakes as a worker can do
/// before their time is up anyway.
const MAX_UNKNOWN: usize = 4096;
/// Descriptors for everything but connections.
const RESERVE: u64 = 64;
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

/// How many of so many connections may be of callers that have not said who they are.
pub fn share_of_unknown(share: usize) -> usize {
    MAX_UNKNOWN.min(share.div_ceil(2))
}

/// What the main thread asks of a worker.
pub enum Command {
    /// Listening sockets of a listener, replacing earlier ones.
    Sockets(Arc<str>, Vec<std::net::TcpListener>),
    /// Close them.
    RemoveSockets(Arc<str>),
    /// New configuration; answered once it is in use.
    Apply(Arc<Snapshot>, oneshot::Sender<()>),
    /// Whether to accept; answered once it is so.
    Accept(bool, oneshot::Sender<()>),
    /// The most connections to accept, see [`share`].
    Share(usize),
    /// Let what is open of these listeners come to its end; answered once there is none left, and then accept
    /// no more.
    Drain(Scope, oneshot::Sender<()>),
    /// The drain of these listeners comes to this stage.
    Advance(Scope, Stage),
    /// Accept no more, let everything come to its end, answer with the last numbers and end.
    Retire(oneshot::Sender<Report>),
    /// Numbers.
    Stats(oneshot::Sender<Report>),
    /// What is open of these listeners.
    Count(Scope, oneshot::Sender<Connections>),
    /// How short memory is.
    Pressure(Pressure),
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
    /// See [`descriptors`].
    pub out_of_descriptors: bool,
}

/// Heads parsed in place, lent to a connection for one request.
#[derive(Default)]
pub struct Heads {
    /// Of the request.
    pub request: RequestHead,
    /// Of the response.
    pub response: ResponseHead,
    /// Whether what was asked for still is.
    pub(crate) allowed: Allowed,
    /// The head as it came, where access is decided by it or it goes on as something else; of a request that failed at least as
    /// it was sent on.
    pub(crate) came: Vec<u8>,
    /// Copies of the request that want its body.
    pub(crate) taps: Option<Box<Taps>>,
}

impl Heads {
    /// What is looked at while the request waits. `sent` is its head as it was sent on.
    pub(crate) fn watched<'a>(&'a mut self, sent: &'a [u8]) -> Watched<'a> {
        let asked = Asked::Request(if self.came.is_empty() { sent } else { &self.came });
        Watched { allowed: &mut self.allowed, asked }
    }
}

/// Everything a connection's task can reach.
pub struct Worker {
    /// Blocks.
    pub buffers: Rc<Buffers>,
    /// Deadlines.
    pub timers: Rc<Timers>,
    /// Lines for people.
    pub log: WorkerLog,
    /// Heads of HTTP/2.
    pub heads2: crate::http2::Heads,
    /// Copies of requests.
    pub(crate) copies: Rc<crate::mirror::Copies>,
    clusters: RefCell<Vec<Option<Rc<Upstream>>>>,
    servings: RefCell<BTreeMap<Arc<str>, Rc<Serving>>>,
    sockets: RefCell<BTreeMap<Arc<str>, Vec<Rc<Ear>>>>,
    active: RefCell<Arc<Snapshot>>,
    #[allow(clippy::vec_box, reason = "lent out as boxes, so that a connection's task stays small")]
    heads: RefCell<Vec<Box<Heads>>>,
    connections: Cell<usize>,
    /// Most of them; more wait in the kernel.
    share: Cell<usize>,
    closed: Notify,
    /// Connections that have not said who they are, the oldest first.
    unknown: RefCell<BTreeMap<u64, (AbortHandle, Rc<Serving>)>>,
    next_unknown: Cell<u64>,
    accepting: Cell<bool>,
    pressure: Cell<Pressure>,
    /// Of inbound listeners, and of the others.
    stages: Cell<[Stage; 2]>,
    kept: Rc<Kept>,
    random: Cell<u64>,
}

impl Worker {
    fn new(start: Start) -> Rc<Self> {
        use std::hash::{BuildHasher, RandomState};
        Rc::new(Self {
            buffers: Rc::new(Buffers::new(start.nudge)),
            timers: Timers::new(),
            log: WorkerLog::new(start.log),
            heads2: crate::http2::Heads::default(),
            copies: Rc::default(),
            clusters: RefCell::default(),
            servings: RefCell::default(),
            sockets: RefCell::default(),
            active: RefCell::default(),
            heads: RefCell::default(),
            connections: Cell::new(0),
            share: Cell::new(start.share),
            closed: Notify::new(),
            unknown: RefCell::default(),
            next_unknown: Cell::new(0),
            accepting: Cell::new(start.accepting),
            pressure: Cell::new(start.pressure),
            stages: Cell::default(),
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

    /// Whether memory is so short that nothing new is begun.
    pub fn is_shedding(&self) -> bool {
        self.pressure.get() == Pressure::Shedding
    }

    /// Whether memory is so short that what is idle is given up.
    pub fn is_saving(&self) -> bool {
        self.pressure.get() != Pressure::None
    }

    fn feel(self: &Rc<Self>, pressure: Pressure) {
        self.pressure.set(pressure);
        self.buffers.save(self.is_saving());
        if self.is_saving() {
            self.heads.take();
            self.heads2.clear();
            for upstream in self.clusters.borrow().iter().flatten() {
                upstream.drop_idle();
            }
        }
        self.accept_as_configured();
    }

    /// Heads to parse into.
    pub fn take_heads(&self) -> Box<Heads> {
        self.heads.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives them back.
    pub fn give_heads(&self, mut heads: Box<Heads>) {
        heads.taps = None;
        if heads.came.capacity() > 0 {
            self.buffers.give_scratch(std::mem::take(&mut heads.came));
        }
        let mut kept = self.heads.borrow_mut();
        if kept.len() < KEPT_HEADS && !self.is_saving() {
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
        let before = self.active.replace(Arc::clone(snapshot));
        if Arc::ptr_eq(&before.listeners, &snapshot.listeners) {
            return;
        }
        let mut wake = false;
        for (name, listener) in &*snapshot.listeners {
            let known = self.servings.borrow().get(name).cloned();
            match known {
                Some(serving) => wake |= serving.configure(listener),
                None => {
                    let serving = Serving::new(listener, self.stage(listener.inbound));
                    self.servings.borrow_mut().insert(Arc::clone(name), serving);
                }
            }
        }
        for (name, serving) in &*self.servings.borrow() {
            serving.set_removed(!snapshot.listeners.contains_key(name));
        }
        self.accept_as_configured();
        if wake {
            self.timers.wake_all();
        }
    }

    fn stage(&self, inbound: bool) -> Stage {
        self.stages.get()[usize::from(!inbound)]
    }

    /// Starts and stops accepting so that it fits sockets, configuration and what the agent wants.
    fn accept_as_configured(self: &Rc<Self>) {
        let active = Arc::clone(&self.active.borrow());
        for (name, serving) in &*self.servings.borrow() {
            let sockets = self.sockets.borrow().get(name).cloned().unwrap_or_default();
            let wanted = active.listeners.contains_key(name) && self.accepting.get() && !self.is_shedding();
            if !wanted || sockets.is_empty() {
                self.rest(serving, &sockets);
            } else if serving.acceptors.borrow().is_empty() {
                let watched = sockets.into_iter().filter(|ear| match ear.watch() {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::error!(listener = &**name, %error, "a socket cannot be watched");
                        false
                    }
                });
                let start =
                    |ear| tokio::task::spawn_local(accept::accept(Rc::clone(self), Rc::clone(serving), ear));
                *serving.acceptors.borrow_mut() = watched.map(start).collect();
            }
        }
    }

    /// Leaves new connections to the kernel. When this returns, no more are accepted here.
    fn rest(&self, serving: &Serving, sockets: &[Rc<Ear>]) {
        serving.stop_accepting();
        for ear in sockets {
            if let Err(error) = ear.rest() {
                tracing::error!(listener = &*serving.name, %error, "a socket is lost");
            }
        }
    }

    fn take_sockets(self: &Rc<Self>, name: Arc<str>, sockets: Vec<std::net::TcpListener>) {
        self.drop_sockets(&name);
        let mut taken = Vec::new();
        for socket in sockets {
            match Ear::new(socket) {
                Ok(ear) => taken.push(ear),
                Err(error) => tracing::error!(listener = &*name, %error, "a socket cannot be used"),
            }
        }
        self.sockets.borrow_mut().insert(name, taken);
        self.accept_as_configured();
    }

    fn drop_sockets(&self, name: &str) {
        let sockets = self.sockets.borrow_mut().remove(name).unwrap_or_default();
        if let Some(serving) = self.servings.borrow().get(name) {
            self.rest(serving, &sockets);
        }
    }

    fn drop_sockets_of(&self, scope: Scope) {
        let inbound = |name: &Arc<str>| self.servings.borrow().get(name).is_some_and(|s| s.is_inbound());
        let names: Vec<_> =
            self.sockets.borrow().keys().filter(|name| scope.has(inbound(name))).cloned().collect();
        for name in names {
            self.drop_sockets(&name);
        }
    }

    fn report(&self) -> Report {
        let mut report = Report { out_of_descriptors: descriptors::felt_lately(), ..Report::default() };
        for (name, serving) in &*self.servings.borrow() {
            report.listeners.insert(Arc::clone(name), serving.stats.borrow().clone());
        }
        for upstream in self.clusters.borrow().iter().flatten() {
            let stats = upstream.stats.borrow().clone();
            report.clusters.insert(Arc::clone(&upstream.config().name), (stats, upstream.endpoints()));
        }
        report
    }

    /// What is open of these listeners.
    fn open(&self, scope: Scope) -> Connections {
        let mut sum = Connections::default();
        for serving in self.servings.borrow().values().filter(|serving| scope.has(serving.is_inbound())) {
            sum += serving.open();
        }
        sum
    }

    fn advance(&self, scope: Scope, stage: Stage) {
        let mut stages = self.stages.get();
        for (place, inbound) in stages.iter_mut().zip([true, false]) {
            if scope.has(inbound) {
                *place = stage.max(*place);
            }
        }
        self.stages.set(stages);
        for serving in self.servings.borrow().values().filter(|serving| scope.has(serving.is_inbound())) {
            serving.advance(stage);
        }
        self.timers.wake_all();
    }

    /// Ready once nothing is open of these listeners. Accepts none of theirs from then on.
    async fn emptied(self: Rc<Self>, scope: Scope) {
        while self.open(scope).sum() > 0 {
            self.closed.notified().await;
        }
        self.drop_sockets_of(scope);
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

    /// Does what is asked; `Some` if it is to come to an end.
    fn obey(self: &Rc<Self>, command: Command) -> Option<oneshot::Sender<Report>> {
        // Whoever asked may not want the answer any more.
        match command {
            Command::Sockets(name, sockets) => self.take_sockets(name, sockets),
            Command::RemoveSockets(name) => self.drop_sockets(&name),
            Command::Apply(snapshot, done) => {
                let before = tracing::enabled!(tracing::Level::DEBUG).then(worked);
                self.apply(&snapshot);
                drop(snapshot);
                if let Some(before) = before {
                    let us = worked().saturating_sub(before).as_micros() as u64;
                    tracing::debug!(us, "took over a configuration");
                }
                let _ = done.send(());
            }
            Command::Accept(accepting, done) => {
                self.accepting.set(accepting);
                self.accept_as_configured();
                let _ = done.send(());
            }
            Command::Share(share) => {
                self.share.set(share);
                self.closed.notify_waiters();
            }
            Command::Drain(scope, done) => {
                self.advance(scope, Stage::Draining);
                let emptied = Rc::clone(self).emptied(scope);
                tokio::task::spawn_local(async move {
                    emptied.await;
                    let _ = done.send(());
                });
            }
            Command::Advance(scope, stage) => self.advance(scope, stage),
            Command::Retire(last) => {
                self.accepting.set(false);
                self.accept_as_configured();
                self.advance(Scope::All, Stage::Draining);
                self.drop_sockets_of(Scope::All);
                return Some(last);
            }
            Command::Stats(reply) => {
                let _ = reply.send(self.report());
            }
            Command::Count(scope, reply) => {
                let _ = reply.send(self.open(scope));
            }
            Command::Pressure(pressure) => self.feel(pressure),
            Command::Ping(reply) => {
                let _ = reply.send(());
            }
        }
        None
    }
}

/// How a worker begins.
pub struct Start {
    /// Where lines go.
    pub log: Log,
    /// See [`share`].
    pub share: usize,
    /// Whether it accepts.
    pub accepting: bool,
    /// How short memory is.
    pub pressure: Pressure,
    /// Woken when much memory was taken.
    pub nudge: Arc<Notify>,
}

/// Runs a worker on this thread until the command channel closes, or it has retired.
///
/// # Errors
/// The runtime cannot be made.
pub fn run(mut commands: mpsc::UnboundedReceiver<Command>, start: Start) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async move {
        let worker = Worker::new(start);
        tokio::task::spawn_local(Rc::clone(&worker.timers).drive());
        tokio::task::spawn_local(Rc::clone(&worker).sweep());
        let last = loop {
            let Some(command) = commands.recv().await else { return };
            if let Some(last) = worker.obey(command) {
                break last;
            }
        };
        let mut emptied = std::pin::pin!(Rc::clone(&worker).emptied(Scope::All));
        loop {
            tokio::select! {
                () = &mut emptied => break,
                command = commands.recv() => match command {
                    Some(command) => drop(worker.obey(command)),
                    None => return,
                },
            }
        }
        let _ = last.send(worker.report());
    });
    Ok(())
}

/// The time for which this thread has worked: what passes through it waits for nothing else of ours.
fn worked() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
