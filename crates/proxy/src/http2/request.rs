//! A request on its way to an endpoint, in the order of its phases: [`Down::proxy`] decides where to, [`Down::send`]
//! chooses an endpoint and a connection, [`launch`] writes the head. All of it happens while the head is handled,
//! unless a connection has to be waited for.

use std::rc::Rc;
use std::sync::Arc;

use outrider_http2::{ErrorCode, Head, SendError, Stream};
use outrider_proxy_core::balance::EndpointIndex;
use outrider_proxy_core::fault::Injected;
use outrider_proxy_core::outlier::Outcome;
use outrider_proxy_core::reason::{ProxyError, Reason, Retry, Side};
use outrider_proxy_core::retry::{Ended, Facts, hops};
use outrider_proxy_core::route::{Destination, PathRewrite, RequestView, Route};

use super::downstream::{Down, DownState, find};
use super::exchange::{Exchange, Leg, millis};
use super::fields::{self, View};
use super::pool::Waiter;
use super::reply::Failure;
use super::upstream::{Up, UpState, is_full};
use super::wire::Wire;
use crate::buffers::Buffers;
use crate::connection::let_in;
use crate::http::UPGRADE;
use crate::http::attempts::may_repeat;
use crate::http::gates::Active;
use crate::shared::Places as _;
use crate::timers;

fn local(reason: Reason) -> Failure {
    Failure::from(ProxyError::new(Side::Local, reason))
}

fn invalid(reason: Reason) -> Failure {
    Failure::from(ProxyError::new(Side::Downstream, reason))
}

impl Down {
    /// Decides about a request whose head is here, and sends it on.
    ///
    /// # Errors
    /// What it is to be answered with.
    pub(super) fn proxy(
        self: &Rc<Self>,
        state: &mut DownState,
        stream: Stream,
        now: u64,
    ) -> Result<(), Failure> {
        let DownState { wire, exchanges, .. } = state;
        let Some(exchange) = find(exchanges, stream) else { return Ok(()) };
        let service = self.service().ok_or_else(|| local(Reason::MtlsRequired))?;
        if self.serving.is_removed() {
            return Err(local(Reason::UnknownService));
        }
        if self.worker.is_shedding() {
            return Err(local(Reason::OverloadMemory));
        }

        // May this caller call at all?
        let_in(&service.access, self.caller())?;

        let Some(head) = &exchange.request else { return Ok(()) };
        if service.rules.is_some() {
            self.permitted(&service, head)?;
        }

        // Is it something that can be asked of an endpoint?
        match head.protocol() {
            Some(protocol) if service.upgrades && protocol.eq_ignore_ascii_case(UPGRADE) => {}
            Some(_) => return Err(invalid(Reason::ProtocolNotSupported)),
            None if head.method() == b"CONNECT" => return Err(invalid(Reason::ConnectNotSupported)),
            None => {}
        }
        if head.authority().is_none_or(<[u8]>::is_empty) {
            return Err(invalid(Reason::InvalidHost));
        }

        // Where to?
        let route = service.routes.find(&View::new(head, &self.worker.buffers)).map_err(local)?;
        exchange.route = position(service.routes.routes(), route);
        exchange.service = Some(Rc::clone(&service));
        exchange.limit(&service, route);

        // May it be one more, and is anything done to it on purpose?
        if let Some(limit) = route.limit.as_ref().or(service.limit.as_ref())
            && let Err(empty) = limit.admit(timers::precise_ns(), self.worker.random())
        {
            self.answer_limited(wire, exchange, limit, empty);
            return Ok(());
        }
        let fault = route.fault.as_ref().or(service.fault.as_ref());
        if let (Some(fault), Some(head)) = (fault, &exchange.request) {
            let injected = fault.draw(&View::new(head, &self.worker.buffers), || self.worker.random());
            if injected != Injected::default()
                && let Some(active) = Active::enter(Arc::clone(fault))
            {
                exchange.fault = Some(active);
                exchange.abort = injected.abort;
                if let Some(delay) = injected.delay {
                    exchange.own.pause(now);
                    exchange.times.hold_at = now.saturating_add(millis(Some(delay)));
                    return Ok(());
                }
            }
        }
        self.go_on(state, stream, now)
    }

    /// Leads a request to its cluster, after what was done to it on purpose.
    ///
    /// # Errors
    /// What it is to be answered with.
    pub(super) fn go_on(
        self: &Rc<Self>,
        state: &mut DownState,
        stream: Stream,
        now: u64,
    ) -> Result<(), Failure> {
        let DownState { wire, exchanges, .. } = state;
        let Some(exchange) = find(exchanges, stream) else { return Ok(()) };
        if exchange.fault.take().is_some()
            && let Some(abort) = exchange.abort
        {
            self.answer_aborted(wire, exchange, abort);
            return Ok(());
        }
        let (Some(service), Some(place)) = (exchange.service.clone(), exchange.route) else { return Ok(()) };
        let Some(route) = service.routes.routes().get(place) else { return Ok(()) };
        let Some(head) = &exchange.request else { return Ok(()) };
        let view = View::new(head, &self.worker.buffers);
        let from = if route.asks_for_source() { self.from.map(|from| from.ip()) } else { None };
        let (key, made) = route.key(&view, from, self.worker.random());
        exchange.key = key;
        exchange.made = made.map(Box::new);
        exchange.tries.repeatable = may_repeat(route, &view);
        let slot = match route.destination(&view, key, self.worker.random()).map_err(local)? {
            Destination::Cluster(slot) => slot,
            own => {
                let mut lines = self.worker.buffers.take_scratch();
                let answer = answer_of(own, route, &view, &mut lines).map_err(local)?;
                drop(view);
                self.answer_by_route(wire, exchange, answer, &lines);
                self.worker.buffers.give_scratch(lines);
                return Ok(());
            }
        };
        drop(view);
        let upstream = self.worker.upstream(slot).ok_or_else(|| local(Reason::ClusterNotReady))?;
        // Nothing but WebSockets is translated: a change of the protocol has reached only one of the two.
        if upstream.version().http2().is_none() && !exchange.connect {
            return Err(local(Reason::ClusterNotReady));
        }
        exchange.running = Some(upstream.begin()?);
        upstream.stats.borrow_mut().active_requests += 1;
        exchange.upstream = Some(upstream);
        if !route.mirrors.is_empty() && !exchange.connect {
            self.copy(exchange, &service, route);
        }
        self.send(state, stream, now)
    }

    /// Chooses an endpoint, and a connection to it if one has room; else the request waits for one.
    ///
    /// # Errors
    /// What it is to be answered with.
    pub(super) fn send(
        self: &Rc<Self>,
        state: &mut DownState,
        stream: Stream,
        now: u64,
    ) -> Result<(), Failure> {
        let DownState { wire, exchanges, .. } = state;
        let Some(exchange) = find(exchanges, stream) else { return Ok(()) };
        let Some(upstream) = exchange.upstream.clone() else { return Ok(()) };
        exchange.own.start(now);
        // Before the next is picked, so that it does not count as load of the last.
        exchange.picked = None;
        let picked = upstream
            .pick(
                self.worker.timers.lately_coarse(),
                || self.worker.random(),
                exchange.key,
                &exchange.tries.tried,
            )
            .map_err(|error| Failure { detail: upstream.census(), ..Failure::from(error) })?;
        let (endpoint, address) = (picked.endpoint(), picked.address());
        exchange.tries.begin(endpoint);
        exchange.address = Some(address);
        exchange.picked = Some(picked);
        if upstream.version().http2().is_none() {
            return self.bridge(exchange);
        }
        if let Some(up) = upstream.h2.find(&upstream, endpoint, now) {
            let launched = launch(self, wire, exchange, &up, &mut up.state.borrow_mut(), now);
            match launched {
                Err(Unsent(error)) if is_full(error) => {}
                Err(Refused) => return self.bridge(exchange),
                outcome => {
                    up.state.borrow().wire.wake();
                    return outcome.map_err(Unlaunched::told);
                }
            }
        }
        exchange.own.pause(now);
        let config = upstream.config();
        exchange.waiting = upstream.shared().wait(&config.limits);
        if exchange.waiting.is_none() {
            return Err(local(Reason::OverloadPending));
        }
        exchange.waits = Some(endpoint);
        // Longer than it takes to find that no connection can be made, which is told as what it is.
        let patience = millis(Some(config.connect_timeout)).saturating_mul(2);
        exchange.times.room_at = now.saturating_add(patience);
        let waiter = Waiter::Request(Rc::clone(self), stream);
        upstream.h2.wait(&self.worker, &upstream, (endpoint, address), waiter);
        Ok(())
    }

    /// No connection to the endpoint could be made for a request that waited: another is tried, or the caller told.
    pub(super) fn could_not_connect(
        self: &Rc<Self>,
        stream: Stream,
        endpoint: EndpointIndex,
        error: &ProxyError,
        first: bool,
    ) {
        let mut state = self.state.borrow_mut();
        let Some(exchange) = find(&mut state.exchanges, stream) else { return };
        if exchange.waits.take() != Some(endpoint) {
            return;
        }
        exchange.times.room_at = u64::MAX;
        exchange.waiting = None;
        // One failure, however many waited for it.
        if first && error.side == Side::Upstream {
            self.report(exchange, Outcome::NotConnected);
        }
        let attempts = exchange.tries.attempts;
        let now = self.worker.timers.now();
        if error.retry == Retry::Safe && self.try_again(exchange, Ended::unconnected(error.reason), now) {
            state.note_due(stream);
        } else {
            let detail = match &error.source {
                // Nobody was tried.
                Some(cause) if error.retry == Retry::Never => {
                    format!("{} ({cause})", error.reason.sentence())
                }
                Some(cause) => format!("{} ({attempts} tried: {cause})", error.reason.sentence()),
                None => format!("{} ({attempts} tried)", error.reason.sentence()),
            };
            let mut told = ProxyError::new(error.side, error.reason);
            if let Some(cause) = &error.source {
                told = told.with_source(cause.to_string());
            }
            self.fail(&mut state, stream, Failure { detail, ..Failure::from(told) });
        }
        state.wire.wake();
    }

    /// Whether there is another attempt after one that ended so. It is on its way then, at once or after a pause.
    pub(super) fn try_again(&self, exchange: &mut Exchange, ended: Ended, now: u64) -> bool {
        let facts = Facts {
            idempotent: exchange.idempotent,
            whole: exchange.is_whole(),
            left_ms: exchange.left_ms(now),
            ..Facts::default()
        };
        let (Some(service), Some(upstream)) = (exchange.service.clone(), exchange.upstream.clone()) else {
            return false;
        };
        let route = exchange.route.and_then(|place| service.routes.routes().get(place));
        let Some(route) = route else { return false };
        let random = self.worker.random();
        if !exchange.tries.decide(&route.retry, &upstream, ended, facts, random) {
            return false;
        }
        exchange.bridge = None;
        exchange.ask_again(&self.worker.buffers);
        upstream.stats.borrow_mut().retries += 1;
        match exchange.tries.wait_ms {
            0 => self.again.borrow_mut().push(exchange.stream),
            wait => exchange.times.hold_at = now.saturating_add(wait.into()),
        }
        true
    }

    /// Tells how an endpoint did.
    pub(super) fn report(&self, exchange: &Exchange, outcome: Outcome) {
        if let (Some(upstream), Some(picked)) = (&exchange.upstream, &exchange.picked) {
            upstream.ended(picked, outcome, &self.worker);
        }
    }

    /// Fails every request of which a limit has passed, and lets those go on whose pause is over.
    pub(super) fn expire(self: &Rc<Self>, state: &mut DownState, now: u64) {
        for slot in 0..state.exchanges.len() {
            let Some(exchange) = state.exchanges.get_mut(slot).and_then(Option::as_mut) else { continue };
            let stream = exchange.stream;
            if now < exchange.due_at() {
                continue;
            }
            if now >= exchange.times.hold_at {
                exchange.times.hold_at = u64::MAX;
                if exchange.kept.is_some() {
                    self.let_go(state, stream, false, now);
                    continue;
                }
                self.again.borrow_mut().push(stream);
                continue;
            }
            let error = exchange.too_late(now);
            let silent = matches!(
                error.reason,
                Reason::RequestTimeout | Reason::TotalTimeout | Reason::UpstreamIdleTimeout
            );
            if silent && error.side == Side::Upstream {
                self.report(exchange, Outcome::NoAnswer);
            }
            if error.reason == Reason::RequestTimeout && self.try_again(exchange, Ended::TimedOut, now) {
                if let Some(leg) = exchange.leg.take() {
                    leg.cut(ErrorCode::CANCEL);
                }
                continue;
            }
            self.fail(state, stream, Failure::from(error));
        }
    }

    /// Sends it again: another endpoint may be chosen, or another connection.
    pub(super) fn send_again(&self, stream: Stream) {
        self.again.borrow_mut().push(stream);
        // Who has it borrowed looks at that list, or wakes the task, before it is done.
        if let Ok(state) = self.state.try_borrow() {
            state.wire.wake();
        }
    }
}

/// Status, body and reason of what a route answers by itself; header lines are appended to `lines`.
fn answer_of<'r>(
    destination: Destination<'r>,
    route: &Route,
    view: &impl RequestView,
    lines: &mut Vec<u8>,
) -> Result<(u16, &'r [u8], Reason), Reason> {
    lines.extend_from_slice(route.response_headers.appended());
    match destination {
        Destination::Direct(direct) => Ok((direct.status, &direct.body, direct.reason)),
        Destination::Redirect(redirect) => {
            lines.extend_from_slice(b"location: ");
            redirect.location(&route.matches.path, view, lines)?;
            lines.extend_from_slice(b"\r\n");
            Ok((redirect.status, b"", Reason::DirectResponse))
        }
        Destination::Cluster(_) => Err(Reason::InternalError),
    }
}

/// Serves a request that has waited for this connection.
pub(super) fn launch_waiting(down: &Rc<Down>, stream: Stream, up: &Rc<Up>, now: u64) {
    let mut state = down.state.borrow_mut();
    let DownState { wire, exchanges, .. } = &mut *state;
    let Some(exchange) = find(exchanges, stream) else { return };
    if exchange.waits.take().is_none() {
        return;
    }
    exchange.times.room_at = u64::MAX;
    exchange.waiting = None;
    let launched = launch(down, wire, exchange, up, &mut up.state.borrow_mut(), now);
    match launched {
        Ok(()) => {}
        Err(Unsent(error)) if is_full(error) => down.again.borrow_mut().push(stream),
        Err(Refused) => {
            if let Err(failure) = down.bridge(exchange) {
                down.fail(&mut state, stream, failure);
            }
        }
        Err(error) => down.fail(&mut state, stream, error.told()),
    }
    state.note_due(stream);
    state.wire.wake();
}

/// Which attempt it is, if it is not the first.
pub(super) fn attempt_of(exchange: &Exchange, head: &Head, buffers: &Buffers) -> Option<hops::Count> {
    let attempts = exchange.tries.attempts;
    let count = (attempts > 1).then(|| hops::earlier(&View::new(head, buffers)).saturating_add(attempts - 1));
    count.map(hops::Count::new)
}

/// Opens a stream, with the head of the request and what is here of its body.
fn launch(
    down: &Rc<Down>,
    wire: &mut Wire,
    exchange: &mut Exchange,
    up: &Rc<Up>,
    state: &mut UpState,
    now: u64,
) -> Result<(), Unlaunched> {
    let (Some(head), Some(route), Some(service)) = (&exchange.request, exchange.route(), &exchange.service)
    else {
        return Err(Unsent(SendError::State));
    };
    if exchange.connect && !up.takes_sockets(state) {
        return Err(Refused);
    }
    let edits = &route.request_headers;
    let certificate = service.client_cert(&down.xfcc);
    let remaining = exchange.remaining(now);
    let remaining = remaining.as_ref().map(outrider_proxy_core::grpc::Remaining::as_bytes);
    let end = exchange.up.is_only_end();
    let mut path = None;
    if route.rewrite.path != PathRewrite::Keep {
        let target = path.insert(down.worker.buffers.take_scratch());
        let view = View::new(head, &down.worker.buffers);
        let fits = route.rewrite.target(&route.matches.path, &view, target);
        if fits.is_err() {
            return Err(Unsent(SendError::TooLarge));
        }
    }
    let host = route.rewrite.host.as_deref().map(str::as_bytes);
    let line = fields::line(head, edits, host, path.as_deref());
    let count = attempt_of(exchange, head, &down.worker.buffers);
    let count = count.as_ref().map(hops::Count::as_bytes);
    let fields = fields::request(head, edits, certificate, remaining, count);
    let own = state.wire.core.forward_request(head, &line, fields, end);
    if let Some(path) = path {
        down.worker.buffers.give_scratch(path);
    }
    let own = own.map_err(Unsent)?;
    state.link(own, down, exchange.stream);
    let served = up.opened();
    // Being late for a connection is bad luck once. Twice in a row it is the request, which would break the next one too.
    let reused = served && !exchange.tries.fresh;
    exchange.leg = Some(Leg { up: Rc::clone(up), stream: own, reused });
    exchange.own.pause(now);
    exchange.progress(now);
    if let Some(upstream) = &exchange.upstream {
        upstream.stats.borrow_mut().requests += 1;
    }
    if end {
        exchange.up.done = true;
    } else {
        let from = Some((wire, exchange.stream));
        exchange.up.pass(&[], from, (&mut state.wire, own), &down.worker.buffers);
        if let Some(error) = exchange.up.unfit {
            return Err(Unsent(error));
        }
    }
    // What follows of a WebSocket is no part of what is asked.
    if exchange.up.done || exchange.connect {
        exchange.asked(&down.worker.timers);
    }
    Ok(())
}

/// Why a request was not sent on a connection.
#[derive(Clone, Copy, Debug)]
enum Unlaunched {
    /// It could not be.
    Unsent(SendError),
    /// It is a WebSocket, and the endpoint did not say that it takes them in HTTP/2.
    Refused,
}

use Unlaunched::{Refused, Unsent};

impl Unlaunched {
    fn told(self) -> Failure {
        match self {
            Unsent(error) => unsendable(error),
            Refused => Failure::from(ProxyError::new(Side::Upstream, Reason::UpstreamNoWebsocket)),
        }
    }
}

pub(super) fn unsendable(error: SendError) -> Failure {
    let reason = match error {
        SendError::TooLarge => Reason::HeaderTooLarge,
        SendError::Field(_) => Reason::BadRequest,
        SendError::State | SendError::Busy | SendError::Over => Reason::InternalError,
    };
    let detail = format!("The endpoint cannot be sent this request: {error}.");
    Failure { detail, ..Failure::from(ProxyError::new(Side::Downstream, reason).with_source(error)) }
}

/// The place of a route in its table.
fn position(routes: &[Route], route: &Route) -> Option<usize> {
    let bytes = std::ptr::from_ref(route).addr().checked_sub(routes.as_ptr().addr())?;
    let place = bytes / size_of::<Route>();
    (place < routes.len()).then_some(place)
}
