//! A cluster's connections of HTTP/2 on one worker, and the requests that wait for one.
//!
//! Holds: a connection is used as long as the configuration it was made with is in force and it has room; another one
//! is opened only when requests wait and none that is being opened will have room for them; who waits is served in
//! order; of those that were too old and made way for another, one at most is open for each endpoint.
//! Does not: bound how many wait (each is one of the cluster's requests, which are bounded), or how long (their own
//! limits do).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

use outrider_http2::Stream;
use outrider_proxy_core::balance::EndpointIndex;
use outrider_proxy_core::reason::{ProxyError, Reason, Retry, Side};

use super::downstream::Down;
use super::mirror::Mirror;
use super::request;
use super::upstream::{self, Up};
use crate::upstream::Upstream;
use crate::worker::Worker;

/// Who waits for a connection.
pub(super) enum Waiter {
    /// A request: where it came from, and its stream there.
    Request(Rc<Down>, Stream),
    /// A copy of one.
    Copy(Rc<Mirror>),
}

impl Waiter {
    /// It is to choose another endpoint.
    fn send_again(self) {
        match self {
            Self::Request(down, stream) => down.send_again(stream),
            Self::Copy(copy) => copy.could_not_connect(),
        }
    }

    /// There is a connection for it.
    pub(super) fn launch(self, up: &Rc<Up>, now: u64) {
        match self {
            Self::Request(down, stream) => request::launch_waiting(&down, stream, up, now),
            Self::Copy(copy) => copy.call(),
        }
    }

    /// There is none. `first`: no request has been told yet.
    fn could_not_connect(self, endpoint: EndpointIndex, error: &ProxyError, first: &mut bool) {
        match self {
            Self::Request(down, stream) => {
                down.could_not_connect(stream, endpoint, error, std::mem::take(first));
            }
            Self::Copy(copy) => copy.could_not_connect(),
        }
    }
}

/// Connections to one endpoint.
struct Place {
    endpoint: EndpointIndex,
    /// Those that can be used; the first that has room is taken, so that those not needed become idle.
    ready: Vec<Rc<Up>>,
    connecting: usize,
    waiting: VecDeque<Waiter>,
    /// Connections in a row that took no stream at all.
    barren: u8,
    /// One that was too old has made way for another one, and is not closed yet.
    ending: bool,
}

/// Connections in a row to one endpoint that take no stream at all, before requests that wait get no further one.
const MAX_BARREN: u8 = 3;

/// See the module.
#[derive(Default)]
pub struct Pool {
    /// By slot of the endpoint.
    places: RefCell<Vec<Option<Place>>>,
}

impl Pool {
    fn with<T>(&self, endpoint: EndpointIndex, work: impl FnOnce(&mut Place) -> T) -> Option<T> {
        let mut places = self.places.borrow_mut();
        let place = places.get_mut(endpoint.slot())?.as_mut();
        place.filter(|place| place.endpoint == endpoint).map(work)
    }

    /// A connection to this endpoint that has room.
    pub(super) fn find(&self, upstream: &Upstream, endpoint: EndpointIndex) -> Option<Rc<Up>> {
        self.with(endpoint, |place| place.ready.iter().find(|up| up.has_room(upstream)).cloned())?
    }

    /// Puts a request into the queue for this endpoint, and sees to it that there will be a connection.
    pub(super) fn wait(
        &self,
        worker: &Rc<Worker>,
        upstream: &Rc<Upstream>,
        (endpoint, address): (EndpointIndex, SocketAddr),
        waiter: Waiter,
    ) {
        let orphans = {
            let mut places = self.places.borrow_mut();
            if places.len() <= endpoint.slot() {
                places.resize_with(endpoint.slot() + 1, || None);
            }
            let Some(place) = places.get_mut(endpoint.slot()) else { return };
            let former = place.take_if(|place| place.endpoint != endpoint);
            place
                .get_or_insert_with(|| Place {
                    endpoint,
                    ready: Vec::new(),
                    connecting: 0,
                    waiting: VecDeque::new(),
                    barren: 0,
                    ending: false,
                })
                .waiting
                .push_back(waiter);
            former.map(|place| place.waiting).unwrap_or_default()
        };
        // Their endpoint is gone; they are to choose another.
        for orphan in orphans {
            orphan.send_again();
        }
        self.provide(worker, upstream, endpoint, address);
    }

    /// Opens a connection if those that are being opened have no room for who waits.
    pub(super) fn provide(
        &self,
        worker: &Rc<Worker>,
        upstream: &Rc<Upstream>,
        endpoint: EndpointIndex,
        address: SocketAddr,
    ) {
        let config = upstream.config();
        let Some(settings) = config.version.http2() else { return };
        let needed = self.with(endpoint, |place| {
            let expected = place.connecting * settings.max_streams as usize;
            let more = place.waiting.len() > expected;
            place.connecting += usize::from(more);
            more
        });
        if needed == Some(true) {
            let connection =
                upstream::run(Rc::clone(worker), Rc::clone(upstream), endpoint, address, *settings);
            tokio::task::spawn_local(connection);
        }
    }

    /// Takes a request out of the queue: it is over.
    pub(super) fn leave(&self, endpoint: EndpointIndex, down: &Rc<Down>, stream: Stream) {
        self.with(endpoint, |place| {
            place.waiting.retain(|waiter| match waiter {
                Waiter::Request(of, own) => *own != stream || !Rc::ptr_eq(of, down),
                Waiter::Copy(_) => true,
            });
        });
    }

    /// The same of a copy.
    pub(super) fn leave_copy(&self, endpoint: EndpointIndex, copy: &Rc<Mirror>) {
        self.with(endpoint, |place| {
            place.waiting.retain(|waiter| !matches!(waiter, Waiter::Copy(of) if Rc::ptr_eq(of, copy)));
        });
    }

    /// A connection can be used from now on. One that is too old has waited for it.
    pub(super) fn opened(&self, up: &Rc<Up>) {
        self.with(up.endpoint, |place| {
            place.connecting = place.connecting.saturating_sub(1);
            place.ending = place.ending || place.ready.iter().any(|old| old.make_way());
            place.ready.push(Rc::clone(up));
        });
    }

    /// A connection is closed.
    pub(super) fn closed(&self, up: &Up) {
        if up.has_made_way() {
            self.with(up.endpoint, |place| place.ending = false);
        }
    }

    /// Opens a connection in the place of one that is too old, unless one is being opened, or the last that made way is not
    /// closed yet: streams that never end would have one more connection for each age, and each takes a place of the cluster's.
    pub(super) fn succeed(&self, worker: &Rc<Worker>, upstream: &Rc<Upstream>, old: &Rc<Up>) {
        let config = upstream.config();
        let Some(settings) = config.version.http2() else { return };
        let begun = self.with(old.endpoint, |place| {
            let may = place.connecting == 0 && !place.ending;
            place.connecting += usize::from(may);
            may
        });
        if begun == Some(true) {
            let (worker, upstream) = (Rc::clone(worker), Rc::clone(upstream));
            let connection = upstream::run(worker, upstream, old.endpoint, old.address, *settings);
            tokio::task::spawn_local(connection);
        }
    }

    /// The next who waits for this endpoint.
    pub(super) fn next(&self, endpoint: EndpointIndex) -> Option<Waiter> {
        self.with(endpoint, |place| {
            place.barren = 0;
            place.waiting.pop_front()
        })?
    }

    /// A connection to this endpoint takes no stream at all. Returns whether another one may: one that comes up at the wrong
    /// time says so, and one that never takes any is not to be connected to for ever.
    pub(super) fn another_may(&self, endpoint: EndpointIndex) -> bool {
        let barren = self.with(endpoint, |place| {
            place.barren = place.barren.saturating_add(1);
            place.barren
        });
        barren.is_some_and(|barren| barren <= MAX_BARREN)
    }

    /// Whether anybody waits for this endpoint.
    pub(super) fn is_wanted(&self, endpoint: EndpointIndex) -> bool {
        self.with(endpoint, |place| !place.waiting.is_empty()) == Some(true)
    }

    /// A connection could not be made: tells who is left without one.
    pub(super) fn tell_failed(&self, endpoint: EndpointIndex, error: &ProxyError) {
        let mut first = true;
        // Taken before any of them is told, because who is told may wait here again.
        for waiter in self.failed(endpoint) {
            waiter.could_not_connect(endpoint, error, &mut first);
        }
    }

    /// The same, and gives them.
    fn failed(&self, endpoint: EndpointIndex) -> VecDeque<Waiter> {
        let left = self.with(endpoint, |place| {
            place.connecting = place.connecting.saturating_sub(1);
            let hopeless = place.connecting == 0 && place.ready.is_empty();
            if hopeless { std::mem::take(&mut place.waiting) } else { VecDeque::new() }
        });
        left.unwrap_or_default()
    }

    /// A connection takes no more streams. Who waits gets another, unless a few in a row took none at all.
    pub(super) fn gone(&self, worker: &Rc<Worker>, upstream: &Rc<Upstream>, up: &Rc<Up>) {
        let endpoint = up.endpoint;
        let left = self.with(endpoint, |place| {
            let before = place.ready.len();
            place.ready.retain(|ready| !Rc::ptr_eq(ready, up));
            place.ready.len() < before && place.ready.is_empty() && !place.waiting.is_empty()
        });
        if left != Some(true) {
            return;
        }
        if up.was_used() || self.another_may(endpoint) {
            self.provide(worker, upstream, endpoint, up.address);
            return;
        }
        let waiting = self.with(endpoint, |place| match place.connecting {
            0 => std::mem::take(&mut place.waiting),
            _ => VecDeque::new(),
        });
        let cause = std::io::Error::other("the endpoint ends its connections before it takes a request");
        let error = ProxyError::new(Side::Upstream, Reason::UpstreamClosedBeforeResponse);
        let error = error.with_retry(Retry::Safe).with_source(cause);
        let mut first = true;
        for waiter in waiting.unwrap_or_default() {
            waiter.could_not_connect(endpoint, &error, &mut first);
        }
    }

    /// Connections that do not fit the configuration any more come to their end; with `idle`, those that nobody uses, too.
    pub(crate) fn sweep(&self, upstream: &Upstream, idle: bool) {
        let ready: Vec<Rc<Up>> = {
            let places = self.places.borrow();
            places.iter().flatten().flat_map(|place| place.ready.iter().cloned()).collect()
        };
        for up in ready {
            up.review(upstream, idle);
        }
    }
}
