//! One cluster on one worker: endpoints, load, and connections kept for later.
//!
//! Holds: a request counts as load of its endpoint until its [`Picked`] is dropped; connections of endpoints
//! that left, or made with former certificates, or that are too old, are not used again; the pool is last in, first out,
//! so that surplus connections age and are closed. Does not: know HTTP.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::balance::{Ask, Balancer, EndpointIndex, Policy};
use outrider_proxy_core::outlier::Outcome;
use outrider_proxy_core::reason::{ProxyError, Reason, Retry, Side};
use outrider_proxy_core::stats::ClusterStats;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::buffers::Inbox;
use crate::config::{Cluster, Version};
use crate::http2::Pool;
use crate::shared::{Busy, Lease, Limits, Opened, Places as _, Retrying, Running, Tally};
use crate::stream::{self, Stream};
use crate::timers::{self, Alarm};
use crate::tls::handshake;
use crate::worker::Worker;
use crate::{descriptors, tls};

/// The tally of an endpoint, and its generation.
type Tallied = (u32, Arc<Tally>);

/// A cluster's state on this worker.
pub struct Upstream {
    config: RefCell<Arc<Cluster>>,
    /// To what all workers know of it.
    shared: RefCell<Lease>,
    balancer: RefCell<Balancer>,
    /// By slot of the endpoint.
    idle: RefCell<Vec<Vec<Idle>>>,
    /// TLS settings with their own store of sessions, by slot of the endpoint: an endpoint can only resume
    /// what it has issued itself.
    sessions: RefCell<Vec<Option<Sessions>>>,
    kept: Rc<Kept>,
    /// Told when connections on which nobody waits for an answer are to end.
    wanted: Notify,
    /// Its connections of HTTP/2.
    pub h2: Pool,
    /// The cluster is gone: nothing is kept any more.
    retired: Cell<bool>,
    /// The change of endpoints out of choice that the balancer knows.
    epoch: Cell<u64>,
    /// By slot of the endpoint, with its generation.
    tallies: RefCell<Vec<Option<Tallied>>>,
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
    /// When it was opened: worker's clock, in milliseconds.
    born: u64,
    /// How much of the last fifth of the greatest age is its, in parts of 256: what was opened together is not closed
    /// together.
    spread: u8,
    endpoint: EndpointIndex,
    settings: Option<Arc<ClientConfig>>,
    upstream: Rc<Upstream>,
    /// Its place among those that serve something, while it does; of HTTP/2 others have it.
    busy: Option<Busy>,
    _opened: Opened,
}

impl Connection {
    /// Where it leads to.
    pub fn upstream(&self) -> &Rc<Upstream> {
        &self.upstream
    }

    /// Gives it the place it takes while it serves something.
    pub fn with(mut self, busy: Busy) -> Self {
        self.busy = Some(busy);
        self
    }
}

impl Connection {
    /// The TLS settings it was made with.
    pub fn settings(&self) -> Option<&Arc<ClientConfig>> {
        self.settings.as_ref()
    }

    /// Whether both ends have proved who they are.
    pub fn is_mutual(&self) -> bool {
        self.settings.is_some()
    }

    /// From when on no further request is begun here, by the worker's clock: at its cluster's greatest age, or up to a fifth
    /// of that before.
    pub fn worn_at(&self) -> u64 {
        let Some(age) = self.upstream.config.borrow().max_age else { return u64::MAX };
        self.born.saturating_add(own_age(age, self.spread))
    }
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
        let mut balancer = Balancer::new(config.balance);
        balancer.assign(&config.endpoints, &config.layout, timers::coarse_ms());
        Rc::new(Self {
            shared: RefCell::new(Lease::new(Arc::clone(&config.shared))),
            config: RefCell::new(config),
            balancer: RefCell::new(balancer),
            idle: RefCell::default(),
            sessions: RefCell::default(),
            kept: Rc::clone(kept),
            wanted: Notify::new(),
            h2: Pool::default(),
            retired: Cell::new(false),
            epoch: Cell::new(0),
            tallies: RefCell::default(),
            stats: RefCell::default(),
        })
    }

    /// Its configuration now.
    pub fn config(&self) -> Arc<Cluster> {
        Arc::clone(&self.config.borrow())
    }

    /// To what all workers know of it.
    pub fn shared(&self) -> Lease {
        self.shared.borrow().clone()
    }

    /// What is spoken with its endpoints.
    pub fn version(&self) -> Version {
        self.config.borrow().version
    }

    /// How long an unused connection is kept.
    pub fn pool_idle(&self) -> Duration {
        self.config.borrow().pool_idle
    }

    /// Takes a new configuration; open connections stay, idle ones that do not fit it are closed.
    pub fn configure(&self, config: &Arc<Cluster>) {
        if Arc::ptr_eq(&self.config.borrow(), config) {
            return;
        }
        {
            let mut balancer = self.balancer.borrow_mut();
            balancer.configure(config.balance);
            balancer.assign(&config.endpoints, &config.layout, timers::coarse_ms());
        }
        *self.config.borrow_mut() = Arc::clone(config);
        *self.shared.borrow_mut() = Lease::new(Arc::clone(&config.shared));
        // It may be another cluster of the same name, of which other endpoints are out.
        self.epoch.set(u64::MAX);
        self.sweep(None);
    }

    /// Endpoints known now.
    pub fn endpoints(&self) -> usize {
        self.balancer.borrow().len()
    }

    /// Takes over who is out of choice, if that has changed.
    fn follow(&self, now: u64, random: impl Fn() -> u64) {
        let shared = self.shared.borrow();
        let epoch = shared.epoch(now, random);
        if self.epoch.get() != epoch {
            self.epoch.set(shared.lead(&mut self.balancer.borrow_mut(), self.epoch.get()));
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// There are too many.
    pub fn begin(&self) -> Result<Running, ProxyError> {
        let running = self.shared.borrow().begin(&self.config.borrow().limits);
        running.ok_or_else(|| ProxyError::new(Side::Local, Reason::OverloadRequests))
    }

    /// Counts a stream of bytes, of which there may be as many as connections.
    pub fn begin_stream(&self) -> Option<Running> {
        self.shared.borrow().begin(&Limits { requests: u32::MAX, ..self.config.borrow().limits })
    }

    /// A place for a connection that serves something, if there is one.
    pub fn try_busy(&self) -> Option<Busy> {
        self.shared.borrow().try_busy(&self.config.borrow().limits)
    }

    /// Whether more wait for one than so many.
    pub fn is_short(&self, own: u32) -> bool {
        self.shared.borrow().waiting() > own
    }

    /// Whether a retry that is one more load on somebody may be made.
    pub fn retry(&self) -> Option<Retrying> {
        self.shared.borrow().retry(&self.config.borrow().limits, timers::coarse_ms())
    }

    /// An endpoint has answered, so long after the request was with it.
    pub fn answered(&self, picked: &Picked, after: Duration) {
        if self.config.borrow().balance.policy == Policy::PeakEwma {
            let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
            self.balancer.borrow_mut().answered(picked.endpoint, micros);
        }
    }

    /// A request of this worker to an endpoint has ended.
    pub fn ended(&self, picked: &Picked, outcome: Outcome, worker: &Worker) {
        let config = self.config.borrow();
        if config.outlier.is_none() {
            return;
        }
        let (slot, generation) = (picked.endpoint.slot(), picked.endpoint.generation());
        let mut tallies = self.tallies.borrow_mut();
        if tallies.len() <= slot {
            tallies.resize_with(slot + 1, || None);
        }
        let Some(place) = tallies.get_mut(slot) else { return };
        let tally = match place {
            Some((of, tally)) if *of == generation => tally,
            other => &mut other.insert((generation, config.shared.tally(picked.address))).1,
        };
        // Of the clock that all threads have in common.
        let now = worker.timers.lately_coarse();
        config.shared.ended(&config, &picked.address, tally, outcome, now, worker.random());
    }

    /// Whether there is an endpoint to choose that is not among `tried`.
    pub fn has_others(&self, tried: &[Option<EndpointIndex>]) -> bool {
        self.balancer.borrow().has_others(tried)
    }

    /// Chooses an endpoint that is not among `tried`, if there is one; by `key`, where one key gets one endpoint. `now` is
    /// of the clock that all threads have in common.
    ///
    /// # Errors
    /// None is there, or none is healthy.
    pub fn pick(
        self: &Rc<Self>,
        now: u64,
        random: impl Fn() -> u64,
        key: Option<u64>,
        tried: &[Option<EndpointIndex>],
    ) -> Result<Picked, ProxyError> {
        self.follow(now, &random);
        let mut balancer = self.balancer.borrow_mut();
        balancer.tell(now);
        let picked = balancer.choose(&Ask { random: random(), key, tried });
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
                && now < kept.connection.worn_at()
                && self.fits(&kept.connection)
                && kept.connection.stream.is_quiet()
            {
                kept.connection.reused = true;
                return Some(kept.connection);
            }
        }
    }

    /// Keeps a connection on which a request has just ended cleanly.
    pub fn keep(&self, mut connection: Connection, now: u64, told: Option<u32>) {
        let (ours, full) = {
            let config = self.config.borrow();
            (config.pool_idle, config.shared.open() > config.limits.connections)
        };
        let worn = now >= connection.worn_at();
        if full || worn || !self.fits(&connection) || !connection.inbox.is_empty() {
            return;
        }
        // Its place is given up once it can be found here.
        let _busy = connection.busy.take();
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
        self.suits(connection.endpoint, connection.settings())
    }

    /// The same of a connection to this endpoint that was made with these settings.
    pub fn suits(&self, endpoint: EndpointIndex, settings: Option<&Arc<ClientConfig>>) -> bool {
        let config = self.config.borrow();
        let balancer = self.balancer.borrow();
        let same = match (settings, config.tls_towards(|| balancer.key(endpoint).copied())) {
            (None, None) => true,
            (Some(made_with), Some(now)) => Arc::ptr_eq(made_with, &now.config),
            _ => false,
        };
        same && !self.retired.get() && balancer.is_listed(endpoint)
    }

    /// Closes kept connections that are too old (if `now` is given), gone, or do not fit. Returns when the next
    /// of those that stay is too old; `None` if none stays.
    pub fn sweep(&self, now: Option<u64>) -> Option<u64> {
        self.h2.sweep(self, false);
        let mut idle = std::mem::take(&mut *self.idle.borrow_mut());
        let mut next = None;
        for list in &mut idle {
            list.retain_mut(|kept| {
                now.is_none_or(|now| {
                    now.saturating_sub(kept.since) < kept.keep_ms && now < kept.connection.worn_at()
                }) && self.fits(&kept.connection)
                    && kept.connection.stream.is_quiet()
            });
            let ends = list
                .iter()
                .map(|kept| kept.since.saturating_add(kept.keep_ms).min(kept.connection.worn_at()));
            let ends = ends.min();
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
        worker: &Worker,
    ) -> Result<Connection, ProxyError> {
        self.connect_to(picked.endpoint, picked.address, alarm, worker).await
    }

    /// The same to this endpoint at this address.
    ///
    /// # Errors
    /// The same.
    pub async fn connect_to(
        self: &Rc<Self>,
        endpoint: EndpointIndex,
        address: SocketAddr,
        alarm: &Alarm,
        worker: &Worker,
    ) -> Result<Connection, ProxyError> {
        let config = self.config();
        // Whoever connects has a place, so what is too many is idle.
        if config.shared.open() >= config.limits.connections && self.close_one_idle().is_none() {
            self.h2.close_one_unused();
        }
        let tls = config.tls_towards(|| Some(address));
        alarm.set(Some(config.connect_timeout));
        let attempt = async {
            let tcp = match stream::connect(address, config.probes).await {
                Err(e) if descriptors::is_shortage(&e) => self.connect_short(address, e).await?,
                outcome => outcome.map_err(|e| failed(Reason::ConnectFailed, e))?,
            };
            let Some(settings) = tls else { return Ok(Stream::Plain(tcp)) };
            let (own, name) = (self.resuming(endpoint, &settings.config), settings.server_name.clone());
            match Box::pin(handshake::connect(tcp, own, name, &worker.buffers)).await {
                Ok((stream, _)) => Ok(Stream::Secured(Box::new(stream))),
                Err(e) if tls::identity_error(&e).is_some() => {
                    Err(failed(Reason::UpstreamIdentityMismatch, tls::in_words(e)))
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
                    born: worker.timers.now(),
                    spread: (worker.random() >> 56) as u8,
                    endpoint,
                    settings: tls.map(|tls| Arc::clone(&tls.config)),
                    upstream: Rc::clone(self),
                    busy: None,
                    _opened: self.shared.borrow().opened(),
                })
            }
            Err(e) => {
                stats.connect_failures += 1;
                Err(e)
            }
        }
    }

    /// Connects where no descriptor is left, at the cost of a kept connection if there is one.
    async fn connect_short(&self, address: SocketAddr, error: io::Error) -> Result<TcpStream, ProxyError> {
        descriptors::feel();
        let short = |error| {
            ProxyError::new(Side::Local, Reason::OverloadConnections)
                .with_retry(Retry::Safe)
                .with_source(error)
        };
        match self.close_one_idle() {
            None => Err(short(error)),
            Some(()) => stream::connect(address, self.config().probes).await.map_err(|error| {
                if descriptors::is_shortage(&error) {
                    short(error)
                } else {
                    failed(Reason::ConnectFailed, error)
                }
            }),
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
        self.h2.sweep(self, true);
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
            idle.iter_mut().find(|list| !list.is_empty()).map(|list| list.remove(0))
        };
        if oldest.is_none() {
            self.wanted.notify_waiters();
        }
        oldest.map(drop)
    }

    /// Takes the place among the busy ones from a connection that may be read for a moment although nobody waits for what
    /// comes. `false`: there are too many for that.
    pub fn spare(&self, connection: &mut Connection) -> bool {
        let config = self.config();
        let room = config.shared.open() < config.limits.connections;
        if room {
            drop(connection.busy.take());
        }
        room
    }

    /// Waits until such connections are to make room for others.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

/// In milliseconds: of the greatest age four fifths, and so many of 256 parts of the rest.
fn own_age(greatest: Duration, spread: u8) -> u64 {
    let greatest = u64::try_from(greatest.as_millis()).unwrap_or(u64::MAX);
    let fifth = greatest / 5;
    greatest - fifth + u64::try_from(u128::from(fifth) * u128::from(spread) / 256).unwrap_or(fifth)
}

fn failed(reason: Reason, error: io::Error) -> ProxyError {
    ProxyError::new(Side::Upstream, reason).with_retry(Retry::Safe).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_were_opened_together_end_within_a_fifth_of_their_age() {
        let age = |seconds, spread| own_age(Duration::from_secs(seconds), spread);
        assert_eq!([age(10, 0), age(10, 128), age(10, 255)], [8000, 9000, 9992]);
        assert_eq!(own_age(Duration::from_millis(1), 255), 1);
        assert!(own_age(Duration::MAX, 0) > u64::MAX / 2 && own_age(Duration::MAX, 255) < u64::MAX);
    }
}
