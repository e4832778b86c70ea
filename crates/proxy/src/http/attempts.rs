//! The attempts made to have a request served, and the waits between them.
//!
//! Holds: whether there is another one is decided in one place, by [`RetryPolicy::decide`] and the cluster's budget;
//! nobody waits for a caller that left or may not ask any more, or beyond the end of a drain. Does not: send anything.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use outrider_proxy_core::balance::EndpointIndex;
use outrider_proxy_core::http1::BodyScanner;
use outrider_proxy_core::reason::{ProxyError, Reason, Side};
use outrider_proxy_core::retry::{Ended, Facts, RetryPolicy, Verdict, hops};
use outrider_proxy_core::route::{RequestView, Route};
use outrider_proxy_core::stats::Stopwatch;

use super::exchange::Left;
use super::{Asking, Failure, Request, exchange};
use crate::buffers::Filled;
use crate::connection::Watched;
use crate::shared::{Busy, Places as _, Retrying};
use crate::upstream::{Connection, Upstream};
use crate::worker::{Heads, Worker};

/// How long and how many bytes of a response that nobody gets are read, so that its connection can be used again:
/// what says that something failed is short, and comes right behind its head.
const REST: (Duration, usize) = (Duration::from_secs(1), 64 << 10);

/// Endpoints that were tried for a request and are remembered.
const TRIED: usize = 3;

/// The attempts made to have a request served.
#[derive(Default)]
pub(crate) struct Tries {
    /// How many, apart from those lost to the race for an idle connection.
    pub(crate) attempts: u32,
    /// Bytes of the encoded head.
    pub(crate) head: u32,
    /// The next one, or the current one, follows one that was [`Ended::Raced`], which it cannot be itself. In HTTP/1 it is on a
    /// connection that has not served before.
    pub(crate) fresh: bool,
    pub(crate) tried: [Option<EndpointIndex>; TRIED],
    /// The request may be processed twice, if its route says so.
    pub(crate) repeatable: bool,
    /// Milliseconds before the next one.
    pub(crate) wait_ms: u32,
    /// One of them may have been processed.
    processed: bool,
    /// There is no other one, and none of them can have been processed.
    vain: bool,
    /// While the current one is a retry that is budgeted.
    pub(crate) retrying: Option<Retrying>,
}

/// Whether this request is repeated after it may have been processed: its route has to say so, and nobody before us may
/// have begun to.
pub(crate) fn may_repeat(route: &Route, request: &impl RequestView) -> bool {
    route.retry.keeps() && route.retry.may_repeat(request) && hops::earlier(request) == 1
}

impl Tries {
    /// How many attempts there were, if whoever sent us the request is to know that no more of them would help: see
    /// [`hops`].
    pub(crate) fn told(&self) -> Option<hops::Count> {
        // Attempts that reached nobody settle nothing: another endpoint of whoever sent us the request may do.
        (self.attempts > 0 && self.repeatable).then(|| hops::Count::new(self.attempts))
    }

    /// Whether a reply of our own, about this error, vouches that nothing was processed: see [`hops`]. Only a caller that
    /// proved who it is, as a proxy, is told.
    pub(crate) fn vouch(&self, error: &ProxyError, peer: Option<&str>) -> bool {
        // What we are short of ourselves is no matter of where it was tried.
        self.vain && error.side == Side::Upstream && peer.is_some()
    }

    /// Whether an attempt that ended may have been processed. Then nobody is told that nothing was.
    pub(crate) fn is_processed(&self) -> bool {
        self.processed
    }

    pub(crate) fn begin(&mut self, endpoint: EndpointIndex) {
        if !self.tried.contains(&Some(endpoint)) {
            self.tried.rotate_left(1);
            self.tried[TRIED - 1] = Some(endpoint);
        }
        self.attempts += u32::from(!self.fresh);
    }

    /// Whether there is to be another one, after one that ended so. `facts` are completed by what is known here.
    pub(crate) fn decide(
        &mut self,
        policy: &RetryPolicy,
        upstream: &Upstream,
        ended: Ended,
        facts: Facts,
        random: u64,
    ) -> bool {
        let facts = Facts {
            repeatable: self.repeatable,
            elsewhere: upstream.has_others(&self.tried),
            attempts: self.attempts,
            ..facts
        };
        self.processed |= !ended.is_unprocessed();
        self.vain = false;
        let Verdict::Again(again) = policy.decide(ended, facts, random) else {
            self.vain = !self.processed;
            return false;
        };
        self.retrying = None;
        if again.budgeted {
            self.retrying = upstream.retry();
            if self.retrying.is_none() {
                return false;
            }
        }
        self.fresh = again.fresh;
        self.wait_ms = u32::try_from(again.wait_ms).unwrap_or(u32::MAX);
        true
    }
}

impl Request<'_, '_> {
    /// Milliseconds until the whole exchange has to be over.
    pub(super) fn left_ms(&self, route: &Route) -> u64 {
        exchange::total_at(self.began_ms, route).saturating_sub(self.open.worker.timers.lately())
    }

    /// Waits before another attempt for as long as was decided.
    pub(super) async fn again(
        &mut self,
        upstream: &Rc<Upstream>,
        asking: &mut Asking,
        heads: &mut Heads,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        upstream.stats.borrow_mut().retries += 1;
        if !asking.tries.fresh {
            asking.tries.head = hops::next_attempt(out, asking.tries.head as usize) as u32;
        }
        if asking.tries.wait_ms > 0 {
            let wait = Duration::from_millis(asking.tries.wait_ms.into());
            Box::pin(self.pause(wait, &mut asking.own, heads.watched(out))).await?;
        }
        Ok(())
    }

    /// Waits, as long as the caller does.
    pub(super) async fn pause(
        &mut self,
        time: Duration,
        own: &mut Stopwatch,
        watched: Watched<'_>,
    ) -> Result<(), Failure> {
        own.pause(self.open.worker.timers.lately());
        self.client.within(self.open, time, watched, std::future::pending::<()>()).await?;
        own.start(self.open.worker.timers.lately());
        Ok(())
    }

    /// Waits for a place among the connections that serve something, as long as connecting may take.
    pub(super) async fn place(
        &mut self,
        upstream: &Rc<Upstream>,
        own: &mut Stopwatch,
        watched: Watched<'_>,
    ) -> Result<Busy, Failure> {
        let config = upstream.config();
        let failure = |reason, detail| Failure {
            error: ProxyError::new(Side::Local, reason),
            detail,
            upstream: Some(Rc::clone(upstream)),
            endpoint: None,
        };
        let shared = upstream.shared();
        let Some(_waiting) = shared.wait(&config.limits) else {
            return Err(failure(Reason::OverloadPending, String::new()));
        };
        own.pause(self.open.worker.timers.lately());
        let place = shared.busy(config.limits);
        let waited = self.client.within(self.open, config.connect_timeout, watched, place).await?;
        own.start(self.open.worker.timers.lately());
        waited.ok_or_else(|| {
            let limits =
                format!("{} connections, {:?} waited", config.limits.connections, config.connect_timeout);
            let reason = Reason::OverloadConnections;
            failure(reason, format!("{} ({limits})", reason.sentence()))
        })
    }
}

/// Keeps the connection of a response that was left out, once the rest of that is read. Nobody waits for it, and it makes way for
/// whoever does.
pub(super) fn let_go(worker: &Rc<Worker>, mut connection: Connection, left: Left, told: Option<u32>) {
    let upstream = Rc::clone(connection.upstream());
    match left {
        _ if worker.is_saving() => {}
        Left::Nothing => upstream.keep(connection, worker.timers.lately(), told),
        Left::Body(body) => {
            if upstream.spare(&mut connection) {
                tokio::task::spawn_local(read_out(Rc::clone(worker), upstream, connection, body, told));
            }
        }
        Left::Unusable => {}
    }
}

async fn read_out(
    worker: Rc<Worker>,
    upstream: Rc<Upstream>,
    mut connection: Connection,
    mut body: Box<BodyScanner>,
    told: Option<u32>,
) {
    let (alarm, mut room) = (worker.timers.alarm(), REST.1);
    alarm.set(Some(REST.0));
    let Connection { stream, inbox, .. } = &mut connection;
    let whole = poll_fn(|cx| {
        loop {
            let Ok(Filled::Bytes(read)) = ready!(inbox.poll_fill(cx, stream, &worker.buffers, 0)) else {
                return Poll::Ready(false);
            };
            let Ok(scan) = body.scan(inbox.bytes()) else { return Poll::Ready(false) };
            inbox.consume(scan.consumed);
            if body.is_done() {
                return Poll::Ready(inbox.is_empty());
            }
            let Some(left) = room.checked_sub(read) else { return Poll::Ready(false) };
            room = left;
        }
    });
    let whole = alarm.within(whole);
    let whole = tokio::select! {
        biased;
        () = upstream.wanted() => false,
        whole = whole => whole == Some(true),
    };
    connection.inbox.clear(&worker.buffers);
    if whole && !worker.is_saving() {
        upstream.keep(connection, worker.timers.lately(), told);
    }
}
