//! One cluster on one worker: endpoints, load, and connections kept for later.
//!
//! Holds: a request counts as load of its endpoint until its [`Picked`] is dropped; connections of endpoints
//! that left, or made with former certificates, are not used again; the pool is last in, first out, so that
//! surplus connections age and are closed. Does not: know HTTP.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::balance::{BalanceConfig, Balancer, EndpointIndex};
use outrider_proxy_core::reason::{ProxyError, Reason, Retry, Side};
use outrider_proxy_core::stats::ClusterStats;
use rustls::ClientConfig;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use crate::buffers::{Buffers, Inbox};
use crate::config::Cluster;
use crate::secured::ReadAhead;
use crate::stream::{self, Stream};
use crate::timers::Alarm;
use crate::tls;

/// A cluster's state on this worker.
pub struct Upstream {
    config: RefCell<Arc<Cluster>>,
    balancer: RefCell<Balancer>,
    /// By slot of the endpoint.
    idle: RefCell<Vec<Vec<Idle>>>,
    /// TLS settings with their own store of sessions, by slot of the endpoint: an endpoint can only resume
    /// what it has issued itself.
    sessions: RefCell<Vec<Option<Sessions>>>,
    kept: Rc<Kept>,
    /// The cluster is gone: nothing is kept any more.
    retired: Cell<bool>,
    /// Numbers.
    pub stats: RefCell<ClusterStats>,
}

/// Wakes whoever looks after kept connections once there are some.
#[derive(Default)]
pub struct Kept {
    waiting: Cell<bool>,
    some: Notify,
}

impl Kept {
    /// Waits until a connection is kept.
    pub async fn wait(&self) {
        self.waiting.set(true);
        self.some.notified().await;
    }

    fn one_more(&self) {
        if self.waiting.replace(false) {
            self.some.notify_one();
        }
    }
}

struct Sessions {
    endpoint: EndpointIndex,
    /// The settings of the cluster that these were made of.
    of: Arc<ClientConfig>,
    own: Arc<ClientConfig>,
}

struct Idle {
    connection: Connection,
    /// Worker's clock, in milliseconds.
    since: u64,
    /// The endpoint's own limit, if it told us, less a margin.
    keep_ms: u64,
}

/// An open connection to an endpoint. Counted while it lives.
pub struct Connection {
    /// The bytes.
    pub stream: Stream,
    /// What was read and not used.
    pub inbox: Inbox,
    /// Whether it has served a request before.
    pub reused: bool,
    endpoint: EndpointIndex,
    settings: Option<Arc<ClientConfig>>,
    upstream: Rc<Upstream>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut stats = self.upstream.stats.borrow_mut();
        stats.active_connections = stats.active_connections.saturating_sub(1);
    }
}

/// An endpoint chosen for one request, which counts as its load.
pub struct Picked {
    upstream: Rc<Upstream>,
    endpoint: EndpointIndex,
    address: SocketAddr,
}

impl Picked {
    /// Which it is.
    pub fn endpoint(&self) -> EndpointIndex {
        self.endpoint
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.upstream.balancer.borrow_mut().done(self.endpoint);
    }
}

impl Upstream {
    /// A cluster as configured.
    pub fn new(config: Arc<Cluster>, kept: &Rc<Kept>) -> Rc<Self> {
        let mut balancer = Balancer::new(balance_config(&config));
        balancer.update(config.endpoints.iter().cloned());
        Rc::new(Self {
            config: RefCell::new(config),
            balancer: RefCell::new(balancer),
            idle: RefCell::default(),
            sessions: RefCell::default(),
            kept: Rc::clone(kept),
            retired: Cell::new(false),
            stats: RefCell::default(),
        })
    }

    /// Its configuration now.
    pub fn config(&self) -> Arc<Cluster> {
        Arc::clone(&self.config.borrow())
    }

    /// Takes a new configuration; open connections stay, idle ones that do not fit it are closed.
    pub fn configure(&self, config: &Arc<Cluster>) {
        if Arc::ptr_eq(&self.config.borrow(), config) {
            return;
        }
        {
            let mut balancer = self.balancer.borrow_mut();
            balancer.configure(balance_config(config));
            balancer.update(config.endpoints.iter().cloned());
        }
        *self.config.borrow_mut() = Arc::clone(config);
        self.sweep(None);
    }

    /// Endpoints known now.
    pub fn endpoints(&self) -> usize {
        self.balancer.borrow().len()
    }

    /// Chooses an endpoint other than `avoid`, if there is another.
    ///
    /// # Errors
    /// None is there, or none is healthy.
    pub fn pick(self: &Rc<Self>, random: u64, avoid: Option<EndpointIndex>) -> Result<Picked, ProxyError> {
        let mut balancer = self.balancer.borrow_mut();
        let picked = balancer.pick_avoiding(random, avoid);
        let found = picked.and_then(|index| balancer.key(index).map(|address| (index, *address)));
        match found {
            Some((endpoint, address)) => Ok(Picked { upstream: Rc::clone(self), endpoint, address }),
            None => Err(ProxyError::new(Side::Upstream, balancer.why_none())),
        }
    }

    /// Why there is no endpoint, in numbers, for people.
    pub fn census(&self) -> String {
        let balancer = self.balancer.borrow();
        format!(
            "{} of {} endpoints of {} are healthy",
            balancer.healthy(),
            balancer.len(),
            self.config.borrow().name
        )
    }

    /// A kept connection to the endpoint that is still open and silent.
    pub fn take_idle(&self, picked: &Picked, now: u64) -> Option<Connection> {
        loop {
            let mut kept = {
                let mut idle = self.idle.borrow_mut();
                idle.get_mut(picked.endpoint.slot())?.pop()?
            };
            if kept.connection.endpoint == picked.endpoint
                && now.saturating_sub(kept.since) < kept.keep_ms
                && self.fits(&kept.connection)
                && kept.connection.stream.is_quiet()
            {
                kept.connection.reused = true;
                return Some(kept.connection);
            }
        }
    }

    /// Keeps a connection on which a request has just ended cleanly.
    pub fn keep(&self, connection: Connection, now: u64, told: Option<u32>) {
        if !self.fits(&connection) || !connection.inbox.is_empty() {
            return;
        }
        let ours = self.config.borrow().pool_idle;
        // The endpoint closes at the time it named; a second of margin keeps us from racing it.
        let theirs = told.map(|s| Duration::from_secs(u64::from(s)).saturating_sub(Duration::from_secs(1)));
        let keep = theirs.map_or(ours, |theirs| theirs.min(ours));
        let slot = connection.endpoint.slot();
        let mut idle = self.idle.borrow_mut();
        if idle.len() <= slot {
            idle.resize_with(slot + 1, Vec::new);
        }
        if let Some(list) = idle.get_mut(slot) {
            let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
            list.push(Idle { connection, since: now, keep_ms });
        }
        self.kept.one_more();
    }

    /// Whether a connection may serve further requests under the configuration of now.
    fn fits(&self, connection: &Connection) -> bool {
        let config = self.config.borrow();
        let same = match (&connection.settings, &config.tls) {
            (None, None) => true,
            (Some(made_with), Some(now)) => Arc::ptr_eq(made_with, &now.config),
            _ => false,
        };
        same && !self.retired.get() && self.balancer.borrow().is_listed(connection.endpoint)
    }

    /// Closes kept connections that are too old (if `now` is given), gone, or do not fit. Returns when the next
    /// of those that stay is too old; `None` if none stays.
    pub fn sweep(&self, now: Option<u64>) -> Option<u64> {
        let mut idle = std::mem::take(&mut *self.idle.borrow_mut());
        let mut next = None;
        for list in &mut idle {
            list.retain_mut(|kept| {
                now.is_none_or(|now| now.saturating_sub(kept.since) < kept.keep_ms)
                    && self.fits(&kept.connection)
                    && kept.connection.stream.is_quiet()
            });
            let ends = list.iter().map(|kept| kept.since.saturating_add(kept.keep_ms)).min();
            next = [next, ends].into_iter().flatten().min();
        }
        *self.idle.borrow_mut() = idle;
        next
    }

    /// Connects and shakes hands within the cluster's time limit.
    ///
    /// # Errors
    /// All of them are safe to retry: no byte of a request was sent.
    pub async fn connect(
        self: &Rc<Self>,
        picked: &Picked,
        alarm: &Alarm,
        buffers: &Rc<Buffers>,
    ) -> Result<Connection, ProxyError> {
        let config = self.config();
        let open = self.stats.borrow().active_connections;
        if open >= u64::from(config.max_connections) && self.close_one_idle().is_none() {
            return Err(ProxyError::new(Side::Local, Reason::OverloadConnections));
        }
        alarm.set(Some(config.connect_timeout));
        let attempt = async {
            let tcp = stream::connect(picked.address).await.map_err(|e| failed(Reason::ConnectFailed, e))?;
            let Some(settings) = &config.tls else { return Ok(Stream::Plain(tcp)) };
            let connector = TlsConnector::from(self.resuming(picked.endpoint, &settings.config));
            let socket = ReadAhead::new(tcp, buffers);
            let handshake = Box::pin(connector.connect(settings.server_name.clone(), socket));
            match handshake.await {
                Ok(stream) => match tls::peer_id(stream.get_ref().1) {
                    Ok(_) => Ok(Stream::Client(Box::new(stream))),
                    Err(e) => Err(failed(Reason::UpstreamIdentityMismatch, io::Error::other(e))),
                },
                Err(e) if tls::identity_error(&e).is_some() => {
                    Err(failed(Reason::UpstreamIdentityMismatch, e))
                }
                Err(e) => Err(failed(Reason::UpstreamTlsFailed, e)),
            }
        };
        let outcome = match alarm.within(attempt).await {
            Some(outcome) => outcome,
            None => Err(ProxyError::new(Side::Upstream, Reason::ConnectTimeout).with_retry(Retry::Safe)),
        };
        alarm.set(None);
        let mut stats = self.stats.borrow_mut();
        match outcome {
            Ok(stream) => {
                stats.connections += 1;
                stats.active_connections += 1;
                Ok(Connection {
                    stream,
                    inbox: Inbox::default(),
                    reused: false,
                    endpoint: picked.endpoint,
                    settings: config.tls.as_ref().map(|tls| Arc::clone(&tls.config)),
                    upstream: Rc::clone(self),
                })
            }
            Err(e) => {
                stats.connect_failures += 1;
                Err(e)
            }
        }
    }

    /// The cluster's settings, remembering sessions of this endpoint only. New settings begin with none.
    fn resuming(&self, endpoint: EndpointIndex, of: &Arc<ClientConfig>) -> Arc<ClientConfig> {
        let mut sessions = self.sessions.borrow_mut();
        let slot = endpoint.slot();
        if sessions.len() <= slot {
            sessions.resize_with(slot + 1, || None);
        }
        let Some(place) = sessions.get_mut(slot) else { return Arc::clone(of) };
        match place {
            Some(known) if known.endpoint == endpoint && Arc::ptr_eq(&known.of, of) => Arc::clone(&known.own),
            _ => {
                let own = Arc::new(tls::with_own_sessions(of));
                *place = Some(Sessions { endpoint, of: Arc::clone(of), own: Arc::clone(&own) });
                own
            }
        }
    }

    /// Closes all kept connections.
    pub fn drop_idle(&self) {
        let idle = self.idle.take();
        drop(idle);
    }

    /// Closes all kept connections, and keeps none from now on: the cluster is gone. A connection that is kept
    /// holds on to its cluster, so one kept after this would stay for ever.
    pub fn close_idle(&self) {
        self.retired.set(true);
        self.drop_idle();
    }

    fn close_one_idle(&self) -> Option<()> {
        let oldest = {
            let mut idle = self.idle.borrow_mut();
            let list = idle.iter_mut().find(|list| !list.is_empty())?;
            list.remove(0)
        };
        drop(oldest);
        Some(())
    }
}

fn failed(reason: Reason, error: io::Error) -> ProxyError {
    ProxyError::new(Side::Upstream, reason).with_retry(Retry::Safe).with_source(error)
}

fn balance_config(config: &Cluster) -> BalanceConfig {
    BalanceConfig { policy: config.policy, fail_open_below_percent: config.panic_threshold }
}
