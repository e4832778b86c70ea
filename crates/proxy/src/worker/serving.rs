//! A listener on one worker, its connections by kind, and how far its drain has come.
//!
//! Holds: a connection is counted from accept to close, under one kind at a time. Does not: accept or serve.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use outrider_handover::Connections;
use outrider_proxy_core::reason::{ProxyError, Reason, Side};
use outrider_proxy_core::stats::ListenerStats;
use tokio::task::JoinHandle;

use super::Worker;
use crate::config::{HttpService, Listener, Service};

/// How far a drain has come. Only ever goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// There is none.
    #[default]
    Open,
    /// Every response says that it is the connection's last; what is idle stays, because a request may be on its
    /// way.
    Draining,
    /// Connections that have brought no request since the begin are closed.
    Parting,
    /// The deadline is near: WebSockets are told.
    Closing,
    /// It is here: everything ends as it is.
    Cut,
}

/// Which listeners a drain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those that others call this service through.
    Inbound,
    /// Every one.
    All,
}

impl Scope {
    /// Whether listeners of this direction are meant.
    pub fn has(self, inbound: bool) -> bool {
        self == Self::All || inbound
    }
}

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not clear yet.
    Greeting,
    /// HTTP requests.
    Http,
    /// A WebSocket's frames.
    WebSocket,
    /// Bytes.
    Tcp,
    /// Nothing any more: the other side has yet to notice the end.
    Ending,
}

/// A service of HTTP as this worker's requests hold it: copied with each of them, without an atomic operation.
pub type Http = Rc<Arc<HttpService>>;

/// A listener on this worker. Outlives its configuration, because its numbers do.
pub struct Serving {
    /// Resource name.
    pub name: Arc<str>,
    config: RefCell<Arc<Listener>>,
    /// What of it is HTTP: without and with TLS.
    http: RefCell<[Option<Http>; 2]>,
    /// Numbers.
    pub stats: RefCell<ListenerStats>,
    pub(super) acceptors: RefCell<Vec<JoinHandle<()>>>,
    removed: Cell<bool>,
    stage: Cell<Stage>,
    open: Cell<Connections>,
    changes: Cell<u64>,
}

fn http_of(config: &Listener) -> [Option<Http>; 2] {
    let secure = config.tls.as_ref().map(|(_, service)| service);
    [config.plain.as_ref(), secure].map(|service| match service? {
        Service::Http(http) => Some(Rc::new(Arc::clone(http))),
        Service::Tcp(_) => None,
    })
}

impl Serving {
    pub(super) fn new(config: &Arc<Listener>, stage: Stage) -> Rc<Self> {
        Rc::new(Self {
            name: Arc::clone(&config.name),
            config: RefCell::new(Arc::clone(config)),
            http: RefCell::new(http_of(config)),
            stats: RefCell::default(),
            acceptors: RefCell::default(),
            removed: Cell::new(false),
            stage: Cell::new(stage),
            open: Cell::default(),
            changes: Cell::new(0),
        })
    }

    /// The configuration of now.
    pub fn config(&self) -> Arc<Listener> {
        Arc::clone(&self.config.borrow())
    }

    /// What is served in HTTP now to connections with or without TLS; `None` if they get something else.
    pub fn http(&self, secure: bool) -> Option<Http> {
        self.http.borrow()[usize::from(secure)].clone()
    }

    /// Says whether connections are to be woken, because what they carry is not asked about with every request.
    pub(super) fn configure(&self, config: &Arc<Listener>) -> bool {
        let former = self.config.replace(Arc::clone(config));
        if Arc::ptr_eq(&former, config) {
            return false;
        }
        *self.http.borrow_mut() = http_of(config);
        self.stats.borrow_mut().keep_audited(|policy| config.audits(policy));
        self.changes.set(self.changes.get() + 1);
        let open = self.open.get();
        // What a long response of HTTP/1 is about is asked again only if that may have another answer.
        let streams = if config.has_streams() || !former.admits_as(config) { open.http } else { 0 };
        open.tcp + open.websocket + streams > 0
    }

    /// How often the configuration has changed.
    pub fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// Whether its resource is gone: what is under way ends as it began, but nothing new is served.
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    pub(super) fn set_removed(&self, removed: bool) {
        self.removed.set(removed);
    }

    /// How far its drain has come.
    pub fn stage(&self) -> Stage {
        self.stage.get()
    }

    pub(super) fn advance(&self, stage: Stage) {
        self.stage.set(self.stage.get().max(stage));
    }

    /// Whether it is for callers of this service.
    pub fn is_inbound(&self) -> bool {
        self.config.borrow().inbound
    }

    /// What is open.
    pub fn open(&self) -> Connections {
        self.open.get()
    }

    pub(super) fn stop_accepting(&self) {
        for acceptor in self.acceptors.take() {
            acceptor.abort();
        }
    }

    fn count(&self, kind: Kind, change: impl Fn(&mut u64)) {
        let mut open = self.open.get();
        change(match kind {
            Kind::Greeting => &mut open.greeting,
            Kind::Http => &mut open.http,
            Kind::WebSocket => &mut open.websocket,
            Kind::Tcp => &mut open.tcp,
            Kind::Ending => &mut open.ending,
        });
        self.open.set(open);
    }
}

/// A connection that is open: counts as one while it lives, and leads to all it needs.
pub struct Open {
    /// Where it is.
    pub worker: Rc<Worker>,
    /// What it came in by.
    pub serving: Rc<Serving>,
    kind: Cell<Kind>,
    /// What it counts as: one, or the streams on it that are no WebSockets.
    weight: Cell<u32>,
    /// WebSockets on it that are streams.
    sockets: Cell<u32>,
}

impl Open {
    pub(super) fn new(worker: &Rc<Worker>, serving: &Rc<Serving>) -> Self {
        worker.connections.set(worker.connections.get() + 1);
        serving.count(Kind::Greeting, |n| *n += 1);
        let mut stats = serving.stats.borrow_mut();
        stats.connections += 1;
        stats.active_connections += 1;
        Self {
            worker: Rc::clone(worker),
            serving: Rc::clone(serving),
            kind: Cell::new(Kind::Greeting),
            weight: Cell::new(1),
            sockets: Cell::new(0),
        }
    }

    /// Says what it carries from now on.
    pub fn becomes(&self, kind: Kind) {
        self.recount(self.sockets.get(), 0, Kind::WebSocket);
        self.sockets.set(0);
        let weight = u64::from(self.weight.replace(1));
        self.serving.count(self.kind.replace(kind), |n| *n = n.saturating_sub(weight));
        self.serving.count(kind, |n| *n += 1);
    }

    /// Says how many requests it carries at once, and how many of them are WebSockets. One that carries none is one that
    /// is open.
    pub fn weigh(&self, requests: usize, sockets: usize) {
        let whole = |n| u32::try_from(n).unwrap_or(u32::MAX);
        let now = whole(requests.saturating_sub(sockets)).max(u32::from(sockets == 0));
        self.recount(self.weight.replace(now), now, self.kind.get());
        let sockets = whole(sockets);
        self.recount(self.sockets.replace(sockets), sockets, Kind::WebSocket);
    }

    fn recount(&self, before: u32, now: u32, kind: Kind) {
        if now != before {
            let (before, now) = (u64::from(before), u64::from(now));
            self.serving.count(kind, |n| *n = n.saturating_sub(before).saturating_add(now));
        }
    }

    /// How far the drain of its listener has come.
    pub fn stage(&self) -> Stage {
        self.serving.stage()
    }

    /// Waits for `future`, which polls an alarm, but not beyond the end of a drain.
    ///
    /// # Errors
    /// Those of `future`, and [`Reason::Draining`].
    pub async fn unless_cut<T>(
        &self,
        future: impl Future<Output = Result<T, ProxyError>>,
    ) -> Result<T, ProxyError> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| match self.stage() {
            Stage::Cut => Poll::Ready(Err(ProxyError::new(Side::Local, Reason::Draining))),
            _ => future.as_mut().poll(cx),
        })
        .await
    }

    /// Whether it may wait for another request after this one.
    pub fn may_stay(&self) -> bool {
        self.stage() == Stage::Open && !self.worker.is_saving()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.connections.set(self.worker.connections.get().saturating_sub(1));
        let weight = u64::from(self.weight.get());
        self.serving.count(self.kind.get(), |n| *n = n.saturating_sub(weight));
        self.recount(self.sockets.get(), 0, Kind::WebSocket);
        {
            let mut stats = self.serving.stats.borrow_mut();
            stats.active_connections = stats.active_connections.saturating_sub(1);
        }
        self.worker.closed.notify_waiters();
    }
}
