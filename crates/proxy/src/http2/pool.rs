//! A cluster's connections of HTTP/2 on one worker, and the requests that wait for one.
//!
//! Holds: a connection is used as long as the configuration it was made with is in force and it has room; another one
//! is opened only when requests wait and none that is being opened will have room for them; who waits is served in
//! order; of those that were too old and made way for another, one at most is open for each endpoint. A connection has a
//! place among the cluster's busy ones (`max_connections`) while it has streams, and only then: an unused one has given it
//! back, takes one again for its next stream, and is what is closed where more are open than may be. Where there is none,
//! requests wait for one as those of HTTP/1 do, in one line with them and for as long; one of the endpoint's connections,
//! or a new one, then has it for all of them. Streams that follow each other without a gap keep no place from who waits for
//! one: a connection takes no more of them then, for half of the time that one may wait, and only streams that last longer
//! keep its place, as long as they last.
//! Does not: bound how many wait (each is one of the cluster's requests, which are bounded), or how long for room on a
//! connection (their own limits do).

use std::cell::{Cell, RefCell};
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
use crate::shared::Busy;
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
    /// Those that are being opened, or wait for a place among the busy ones.
    connecting: usize,
    /// How many of them wait.
    in_line: Rc<InLine>,
    /// Who waits for one, and since when.
    waiting: VecDeque<(u64, Waiter)>,
    /// Connections in a row that took no stream at all.
    barren: u8,
    /// One that was too old has made way for another one, and is not closed yet.
    ending: bool,
    /// The last one could not be made: before then, none is opened beside others that there are.
    again_at: u64,
}

/// Who waits for a place among the busy connections on behalf of one endpoint: what its connections get is theirs as well,
/// so they need not make room for them.
#[derive(Default)]
pub(super) struct InLine(Cell<u32>);

impl InLine {
    /// How many.
    pub(super) fn count(&self) -> u32 {
        self.0.get()
    }

    /// One more, as long as what is given is there.
    pub(super) fn join(self: Rc<Self>) -> Joined {
        self.0.set(self.0.get().saturating_add(1));
        Joined(self)
    }
}

/// See [`InLine::join`].
pub(super) struct Joined(Rc<InLine>);

impl Drop for Joined {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get().saturating_sub(1));
    }
}

/// Connections in a row to one endpoint that take no stream at all, before requests that wait get no further one.
const MAX_BARREN: u8 = 3;

/// How long no other connection is opened to an endpoint that has some and took no further one, in milliseconds: one that
/// ends gracefully listens no more, and serves on.
const PAUSE: u64 = 1_000;

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

    /// Who waits on behalf of this endpoint.
    pub(super) fn in_line(&self, endpoint: EndpointIndex) -> Rc<InLine> {
        self.with(endpoint, |place| Rc::clone(&place.in_line)).unwrap_or_default()
    }

    /// A connection to this endpoint that has room, and its place among the busy ones.
    pub(super) fn find(&self, upstream: &Upstream, endpoint: EndpointIndex, now: u64) -> Option<Rc<Up>> {
        let find = |place: &mut Place| {
            place.ready.iter().find(|up| up.has_room(upstream) && up.occupy(upstream, now)).cloned()
        };
        self.with(endpoint, find)?
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
                    in_line: Rc::default(),
                    waiting: VecDeque::new(),
                    barren: 0,
                    ending: false,
                    again_at: 0,
                })
                .waiting
                .push_back((worker.timers.lately(), waiter));
            former.map(|place| place.waiting).unwrap_or_default()
        };
        // Their endpoint is gone; they are to choose another.
        for (_, orphan) in orphans {
            orphan.send_again();
        }
        if self.provide(worker, upstream, endpoint, address).is_some() {
            // Those that are there see to it.
            self.nudge(endpoint);
        }
    }

    /// Opens a connection if those that are being opened have no room for who waits. Says when to ask for that again, if it
    /// is too early.
    pub(super) fn provide(
        &self,
        worker: &Rc<Worker>,
        upstream: &Rc<Upstream>,
        endpoint: EndpointIndex,
        address: SocketAddr,
    ) -> Option<u64> {
        let config = upstream.config();
        let settings = config.version.http2()?;
        let needed = self.with(endpoint, |place| {
            let expected = place.connecting * settings.max_streams as usize;
            if place.waiting.len() <= expected {
                return None;
            }
            if !place.ready.is_empty() && worker.timers.lately() < place.again_at {
                return Some(Err(place.again_at));
            }
            place.connecting += 1;
            Some(Ok(()))
        });
        match needed?? {
            Ok(()) => {
                let (worker, upstream) = (Rc::clone(worker), Rc::clone(upstream));
                let at = (endpoint, address);
                tokio::task::spawn_local(upstream::run(worker, upstream, at, *settings, true));
                None
            }
            Err(again_at) => Some(again_at),
        }
    }

    /// Takes a request out of the queue: it is over.
    pub(super) fn leave(&self, endpoint: EndpointIndex, down: &Rc<Down>, stream: Stream) {
        self.with(endpoint, |place| {
            place.waiting.retain(|(_, waiter)| match waiter {
                Waiter::Request(of, own) => *own != stream || !Rc::ptr_eq(of, down),
                Waiter::Copy(_) => true,
            });
        });
    }

    /// The same of a copy.
    pub(super) fn leave_copy(&self, endpoint: EndpointIndex, copy: &Rc<Mirror>) {
        self.with(endpoint, |place| {
            place.waiting.retain(|(_, waiter)| !matches!(waiter, Waiter::Copy(of) if Rc::ptr_eq(of, copy)));
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
    /// Nor does one wait for such a place.
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
            let at = (old.endpoint, old.address);
            tokio::task::spawn_local(upstream::run(worker, upstream, at, *settings, false));
        }
    }

    /// The next who waits for this endpoint.
    pub(super) fn next(&self, endpoint: EndpointIndex) -> Option<Waiter> {
        self.with(endpoint, |place| {
            place.barren = 0;
            place.waiting.pop_front().map(|(_, waiter)| waiter)
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
    pub(super) fn tell_failed(&self, endpoint: EndpointIndex, error: &ProxyError, now: u64) {
        let mut first = true;
        // Without a place among the busy ones nobody was asked.
        let asked = error.retry == Retry::Safe;
        // Taken before any of them is told, because who is told may wait here again.
        for (_, waiter) in self.failed(endpoint, asked.then(|| now.saturating_add(PAUSE))) {
            waiter.could_not_connect(endpoint, error, &mut first);
        }
        self.nudge(endpoint);
    }

    /// There is a place among the busy ones for who waits for this endpoint. Gives it back if a connection is to be opened for
    /// it: none that is open has room and needs it.
    pub(super) fn settle(&self, upstream: &Upstream, endpoint: EndpointIndex, busy: Busy) -> Option<Busy> {
        self.with(endpoint, |place| {
            if !place.waiting.is_empty() {
                let mut roomy = place.ready.iter().filter(|up| up.has_room(upstream));
                let Some(up) = roomy.next() else { return Some(busy) };
                up.occupy_with(busy);
            }
            place.connecting = place.connecting.saturating_sub(1);
            None
        })?
    }

    /// There was no place among the busy ones: tells who has waited for so many milliseconds, unless a connection that has one
    /// is to have room for them. Says when to look again; `None` once nobody waits any more, and no connection comes of it.
    pub(super) fn give_up(
        &self,
        endpoint: EndpointIndex,
        (now, patience): (u64, u64),
        error: impl Fn() -> ProxyError,
    ) -> Option<u64> {
        let late = self.with(endpoint, |place| {
            if place.ready.iter().any(|up| up.is_busy()) {
                return VecDeque::new();
            }
            let late = place.waiting.partition_point(|(since, _)| since.saturating_add(patience) <= now);
            let left = place.waiting.split_off(late);
            std::mem::replace(&mut place.waiting, left)
        })?;
        for (_, waiter) in late {
            waiter.could_not_connect(endpoint, &error(), &mut true);
        }
        self.with(endpoint, |place| {
            let next = place.waiting.front().map(|(since, _)| since.saturating_add(patience));
            if next.is_none() {
                place.connecting = place.connecting.saturating_sub(1);
            }
            next.map(|next| if next > now { next } else { now.saturating_add(patience) })
        })?
    }

    /// Has connections looked at if anybody waits: one that was to be opened for them is not.
    fn nudge(&self, endpoint: EndpointIndex) {
        self.with(endpoint, |place| {
            if !place.waiting.is_empty() {
                place.ready.iter().for_each(|up| up.wake());
            }
        });
    }

    /// Gives who is left without one. No other is opened before `again_at`.
    fn failed(&self, endpoint: EndpointIndex, again_at: Option<u64>) -> VecDeque<(u64, Waiter)> {
        let left = self.with(endpoint, |place| {
            place.again_at = again_at.unwrap_or(place.again_at);
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
            self.nudge(endpoint);
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
        for (_, waiter) in waiting.unwrap_or_default() {
            waiter.could_not_connect(endpoint, &error, &mut first);
        }
    }

    /// Closes a connection that nobody uses, if there is one.
    pub(crate) fn close_one_unused(&self) {
        let places = self.places.borrow();
        let mut ready =
            places.iter().flatten().filter(|place| place.waiting.is_empty()).flat_map(|place| &place.ready);
        if let Some(up) = ready.find(|up| up.is_unused()) {
            up.leave();
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
