//! A listener on one worker, its connections by kind, and how far its drain has come.
//!
//! Holds: a connection is counted from accept to close, under one kind at a time. Does not: accept or serve.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use outrider_handover::Connections;
use outrider_proxy_core::stats::ListenerStats;
use tokio::task::JoinHandle;

use super::Worker;
use crate::config::Listener;

/// How far a drain has come. Only ever goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// There is none.
    #[default]
    Open,
    /// Every response says that it is the connection's last; what is idle stays, because a request may be on its
    /// way.
    Draining,
    /// The deadline is near: idle connections are closed, WebSockets are told.
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

/// A listener on this worker. Outlives its configuration, because its numbers do.
pub struct Serving {
    /// Resource name.
    pub name: Arc<str>,
    config: RefCell<Arc<Listener>>,
    /// Numbers.
    pub stats: RefCell<ListenerStats>,
    pub(super) acceptors: RefCell<Vec<JoinHandle<()>>>,
    removed: Cell<bool>,
    stage: Cell<Stage>,
    open: Cell<Connections>,
    changes: Cell<u64>,
}

impl Serving {
    pub(super) fn new(config: &Arc<Listener>, stage: Stage) -> Rc<Self> {
        Rc::new(Self {
            name: Arc::clone(&config.name),
            config: RefCell::new(Arc::clone(config)),
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

    /// Says whether connections are to be woken, because what they carry is not asked about with every request.
    pub(super) fn configure(&self, config: &Arc<Listener>) -> bool {
        let former = self.config.replace(Arc::clone(config));
        if Arc::ptr_eq(&former, config) {
            return false;
        }
        self.changes.set(self.changes.get() + 1);
        let open = self.open.get();
        open.tcp + open.websocket > 0
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
}

impl Open {
    pub(super) fn new(worker: &Rc<Worker>, serving: &Rc<Serving>) -> Self {
        worker.connections.set(worker.connections.get() + 1);
        serving.count(Kind::Greeting, |n| *n += 1);
        let mut stats = serving.stats.borrow_mut();
        stats.connections += 1;
        stats.active_connections += 1;
        Self { worker: Rc::clone(worker), serving: Rc::clone(serving), kind: Cell::new(Kind::Greeting) }
    }

    /// Says what it carries from now on.
    pub fn becomes(&self, kind: Kind) {
        self.serving.count(self.kind.replace(kind), |n| *n = n.saturating_sub(1));
        self.serving.count(kind, |n| *n += 1);
    }

    /// How far the drain of its listener has come.
    pub fn stage(&self) -> Stage {
        self.serving.stage()
    }

    /// Whether it may wait for another request after this one.
    pub fn may_stay(&self) -> bool {
        self.stage() == Stage::Open && !self.worker.is_saving()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.connections.set(self.worker.connections.get().saturating_sub(1));
        self.serving.count(self.kind.get(), |n| *n = n.saturating_sub(1));
        {
            let mut stats = self.serving.stats.borrow_mut();
            stats.active_connections = stats.active_connections.saturating_sub(1);
        }
        self.worker.closed.notify_waiters();
    }
}
