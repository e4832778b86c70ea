//! A caller's connection: one task for all of its requests.
//!
//! [`serve`] is its life, in [`task`]; [`Down`] is what tasks of endpoints see of it, and change when a response arrives. Holds:
//! what is configured is asked anew for every request; a connection that ends cancels what it has begun; one that
//! drains says so twice (RFC 9113 section 6.8), so that no request on its way is lost. Does not: route.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use outrider_http2::{ErrorCode, Head, HeadKind, ResetCause, SendError, Stream, StreamFault};
use outrider_proxy_core::access::Peer;
use outrider_proxy_core::grpc;
use outrider_proxy_core::outlier::Outcome;
use outrider_proxy_core::reason::{ProxyError, Reason, Side};
use outrider_proxy_core::retry::Ended;
use outrider_proxy_core::retry::hops::ATTEMPTS;

use super::bridge::MAX_INTERIM;
use super::exchange::{Exchange, is_unfit};
use super::fields::{self, View};
use super::reply::Failure;
use super::request::unsendable;
use super::upstream::describe;
use super::wire::Wire;
use crate::connection::{as_peer, http2_service};
use crate::log::{self, Context};
use crate::worker::{Http, Serving, Worker};

mod task;

pub(crate) use task::serve;

/// A caller's connection as others see it.
pub(super) struct Down {
    pub(super) worker: Rc<Worker>,
    pub(super) serving: Rc<Serving>,
    /// Who is there.
    pub(super) peer: Option<Arc<str>>,
    /// Their address.
    pub(super) from: Option<SocketAddr>,
    /// Value of `x-forwarded-client-cert`.
    pub(super) xfcc: Vec<u8>,
    /// Requests to be sent, another time.
    pub(super) again: RefCell<Vec<Stream>>,
    /// What changes.
    pub(super) state: RefCell<DownState>,
}

/// What changes of a connection.
pub(super) struct DownState {
    /// The bytes.
    pub(super) wire: Wire,
    /// By slot of the stream.
    pub(super) exchanges: Vec<Option<Exchange>>,
    /// How many there are.
    running: usize,
    /// How many of them are WebSockets.
    sockets: usize,
    /// No limit of any of them passes before.
    due: u64,
}

impl DownState {
    /// Counts a request that became a WebSocket.
    pub(super) fn note_socket(&mut self, stream: Stream) {
        self.sockets += usize::from(find(&mut self.exchanges, stream).is_some_and(|open| open.is_socket()));
    }

    /// A limit of this request may have become the next to pass.
    pub(super) fn note_due(&mut self, stream: Stream) {
        if let Some(exchange) = find(&mut self.exchanges, stream) {
            let due = exchange.due_at();
            self.due = self.due.min(due);
        }
    }
}

/// What a caller cannot be sent.
pub(super) fn unfit_response(error: SendError) -> Failure {
    let reason = match error {
        SendError::TooLarge => Reason::UpstreamHeaderTooLarge,
        _ => Reason::UpstreamProtocolError,
    };
    let detail = format!("The caller cannot be sent this response: {error}.");
    Failure { detail, ..Failure::from(ProxyError::new(Side::Upstream, reason).with_source(error)) }
}

/// The exchange of a stream.
pub(super) fn find(exchanges: &mut [Option<Exchange>], stream: Stream) -> Option<&mut Exchange> {
    exchanges.get_mut(stream.slot())?.as_mut().filter(|exchange| exchange.stream == stream)
}

/// What an endpoint says.
pub(super) enum Heard<'a> {
    /// A head, and whether that is all.
    Head(&'a mut Box<Head>, bool),
    /// A piece of the body, and whether that is all.
    Data(&'a [u8], bool),
    /// The end.
    Trailers(&'a mut Box<Head>),
    /// The stream is over.
    Reset(ErrorCode, ResetCause),
}

impl Down {
    /// What is served now; `None` if this kind of connection is not any more.
    pub(super) fn service(&self) -> Option<Http> {
        http2_service(&self.serving, self.peer.is_some())
    }

    /// For access decisions.
    pub(super) fn caller(&self) -> Peer<'_> {
        as_peer(self.peer.as_deref())
    }

    /// Takes what an endpoint says on its stream `from`, which is borrowed. Says how that stream is to be reset, if it is.
    pub(super) fn hear(
        self: &Rc<Self>,
        worker: &Worker,
        stream: Stream,
        heard: Heard<'_>,
        from: (&mut Wire, Stream),
        now: u64,
    ) -> Option<ErrorCode> {
        let mut state = self.state.borrow_mut();
        let Some(exchange) = find(&mut state.exchanges, stream) else { return Some(ErrorCode::CANCEL) };
        exchange.progress(now);
        if exchange.kept.is_some() && self.weigh_kept(&mut state, stream, &heard, now) {
            state.note_due(stream);
            state.wire.wake();
            return Some(ErrorCode::CANCEL);
        }
        let DownState { wire, exchanges, .. } = &mut *state;
        let Some(exchange) = find(exchanges, stream) else { return Some(ErrorCode::CANCEL) };
        let over = match heard {
            Heard::Head(head, end) => self.respond(&mut state, stream, head, end, now),
            Heard::Data(bytes, end) => {
                exchange.down.ended |= end;
                if end && exchange.grpc {
                    exchange.said = Some(grpc::Said::Nothing);
                    self.report(exchange, Outcome::Answered(grpc::Said::Nothing.as_http(200)));
                }
                exchange.down.pass(bytes, Some(from), (wire, stream), &worker.buffers);
                false
            }
            Heard::Trailers(head) => {
                exchange.down.ended = true;
                if exchange.grpc {
                    let said = grpc::said(head.values(grpc::STATUS));
                    exchange.said = Some(said);
                    self.report(exchange, Outcome::Answered(said.as_http(200)));
                }
                if exchange.down.owes() {
                    let kept = std::mem::replace(head, worker.heads2.take());
                    exchange.down.trailers = Some(kept);
                    false
                } else {
                    exchange.down.unfit =
                        wire.core.send_trailers(stream, fields::trailers(head)).err().filter(is_unfit);
                    exchange.down.done = true;
                    if exchange.down.unfit.is_some() {
                        exchange.leg = None;
                    }
                    self.fail_unfit(&mut state, stream)
                }
            }
            Heard::Reset(code, cause) => {
                let leg = exchange.leg.take();
                let reused = leg.is_some_and(|leg| leg.reused);
                self.leg_reset(&mut state, stream, (code, cause), reused, None);
                true
            }
        };
        let code = match find(&mut state.exchanges, stream) {
            None => Some(ErrorCode::CANCEL),
            Some(_) if over => Some(ErrorCode::CANCEL),
            Some(exchange) if exchange.is_over() => {
                // The caller of this unties it.
                exchange.leg = None;
                self.settle(&mut state, stream);
                Some(ErrorCode::NO_ERROR)
            }
            Some(_) => {
                state.note_due(stream);
                None
            }
        };
        state.wire.wake();
        code
    }

    /// A head of a response. Whether the endpoint's stream is not wanted any more.
    fn respond(
        self: &Rc<Self>,
        state: &mut DownState,
        stream: Stream,
        head: &mut Box<Head>,
        end: bool,
        now: u64,
    ) -> bool {
        let DownState { wire, exchanges, .. } = state;
        let Some(exchange) = find(exchanges, stream) else { return true };
        if head.kind() == HeadKind::Interim {
            exchange.interim += 1;
            if exchange.interim > MAX_INTERIM {
                exchange.leg = None;
                let error = ProxyError::new(Side::Upstream, Reason::UpstreamProtocolError);
                self.fail(
                    state,
                    stream,
                    error.with_source(std::io::Error::other("too many interim responses")).into(),
                );
                return true;
            }
            // Who reads nothing does without them: each may be as large as a head.
            if wire.may_read() {
                let fields = fields::response(head, false, None, b"");
                let _ = wire.core.send_response(stream, head.status(), fields, false);
            }
            return false;
        }
        exchange.own.start(now);
        let status = head.status();
        // An error in HTTP is told and counted as that, not as the end of a call.
        exchange.grpc &= status == 200;
        let said = (exchange.grpc && end).then(|| grpc::said(head.values(grpc::STATUS)));
        let failed = said.map_or(status, |code| code.as_http(status));
        // How a call ended is known from its trailers.
        if !exchange.grpc || end {
            self.report(exchange, Outcome::Answered(failed));
        }
        let policy = exchange.route().map(|route| &route.retry);
        let ended = policy.and_then(|policy| match said {
            _ if policy.wants(status) => Some(Ended::Status(status)),
            Some(grpc::Said::Status(code)) if policy.wants_grpc(code as u8) => Some(Ended::Grpc(code as u8)),
            _ => None,
        });
        // Whoever is behind us has repeated it as often as that makes sense.
        let settled = ended.is_some() && head.values(ATTEMPTS.as_bytes()).next().is_some();
        // A proxy there vouches that it reached nobody with it, and it is known who that is.
        let vain = failed >= 500
            && exchange.leg.as_ref().is_some_and(|leg| leg.up.is_mutual())
            && fields::is_unprocessed(head);
        if vain && self.try_again(exchange, Ended::InVain, now)
            || !settled && ended.is_some_and(|ended| self.try_again(exchange, ended, now))
        {
            exchange.leg = None;
            state.note_due(stream);
            return true;
        }
        let failed = ended.is_some() && !settled;
        if exchange.keeps_back(head, end) {
            let kept = std::mem::replace(head, self.worker.heads2.take());
            exchange.keep(kept, now, self.worker.timers.instant());
            return false;
        }
        let Err(error) = self.pass_head(state, stream, (head, end), (said, failed), now) else {
            return false;
        };
        if let Some(exchange) = find(&mut state.exchanges, stream) {
            exchange.leg = None;
        }
        self.fail(state, stream, unfit_response(error));
        true
    }

    /// Tells the caller the head of a response: whether that is all, how the call has ended if that is known, and whether
    /// another attempt would have been made if there were one.
    pub(super) fn pass_head(
        &self,
        state: &mut DownState,
        stream: Stream,
        (head, end): (&Head, bool),
        (said, failed): (Option<grpc::Said>, bool),
        now: u64,
    ) -> Result<(), SendError> {
        let DownState { wire, exchanges, .. } = state;
        let Some(exchange) = find(exchanges, stream) else { return Ok(()) };
        let status = head.status();
        let mut lines = None;
        if let (Some(made), Some(route)) = (&exchange.made, exchange.route()) {
            route.set_cookie(**made, lines.insert(self.worker.buffers.take_scratch()));
        }
        if let Some(attempts) = exchange.tries.told().filter(|_| failed) {
            attempts.write_line(lines.get_or_insert_with(|| self.worker.buffers.take_scratch()));
        }
        let edits = exchange.route().map(|route| &route.response_headers);
        let append = lines.as_deref().unwrap_or_default();
        let sent = wire.core.send_response(
            stream,
            status,
            fields::response(head, exchange.connect, edits, append),
            end,
        );
        if let Some(lines) = lines {
            self.worker.buffers.give_scratch(lines);
        }
        sent?;
        exchange.said = said;
        exchange.down.ended = end;
        exchange.down.done = end;
        self.responded(exchange, status, now);
        state.note_socket(stream);
        Ok(())
    }

    /// The head of a response is on its way to the caller.
    pub(super) fn responded(&self, exchange: &mut Exchange, status: u16, now: u64) {
        exchange.started = true;
        exchange.own.pause(now);
        exchange.forget(&self.worker.buffers);
        let waited = exchange.waited(self.worker.timers.instant());
        if let (Some(upstream), Some(picked)) = (&exchange.upstream, &exchange.picked) {
            upstream.answered(picked, waited);
        }
        if exchange.connect && status / 100 == 2 {
            exchange.becomes_socket(exchange.service.as_ref().and_then(|service| service.idle));
        }
        let mut stats = self.serving.stats.borrow_mut();
        stats.response(status);
        if !exchange.is_socket() {
            stats.upstream_us += u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        }
    }

    /// The endpoint's stream is over before its time.
    pub(super) fn leg_reset(
        self: &Rc<Self>,
        state: &mut DownState,
        stream: Stream,
        (code, cause): (ErrorCode, ResetCause),
        reused: bool,
        because: Option<&str>,
    ) {
        let DownState { wire, exchanges, .. } = state;
        let Some(exchange) = find(exchanges, stream) else { return };
        let buffers = &self.worker.buffers;
        // The ends of a tunnel are each by itself, and half of it that breaks is told. Who has ended and resets without an
        // error has read enough, as after any response (RFC 9113 section 8.1).
        let half =
            exchange.is_socket() && !(exchange.up.ended && exchange.up.done) && code != ErrorCode::NO_ERROR;
        if exchange.down.ended && !half {
            // The response is here as a whole; no more of the request is wanted.
            exchange.up.drop_rest(Some((wire, stream)), buffers);
            self.settle(state, stream);
            return;
        }
        let ended = match cause {
            _ if cause.is_unprocessed(code) => Ended::Unprocessed,
            ResetCause::Lost if reused && exchange.kept.is_none() => Ended::Raced,
            _ => Ended::Broken,
        };
        if ended != Ended::Unprocessed && code != ErrorCode::NO_ERROR && !exchange.is_socket() {
            self.report(exchange, Outcome::NoAnswer);
        }
        let now = self.worker.timers.lately();
        if self.try_again(exchange, ended, now) {
            state.note_due(stream);
            return;
        }
        if !self.let_go(state, stream, false, now) {
            return;
        }
        let Some(exchange) = find(&mut state.exchanges, stream) else { return };
        let (reason, started) = match cause {
            ResetCause::Peer => (Reason::UpstreamReset, Reason::UpstreamReset),
            ResetCause::Fault(StreamFault::TooLarge) => {
                (Reason::UpstreamHeaderTooLarge, Reason::UpstreamBodyInvalid)
            }
            ResetCause::Fault(_) => (Reason::UpstreamProtocolError, Reason::UpstreamBodyInvalid),
            ResetCause::GoAway => (Reason::UpstreamClosedBeforeResponse, Reason::UpstreamBodyIncomplete),
            ResetCause::Lost if reused => {
                (Reason::UpstreamClosedReusedConnection, Reason::UpstreamBodyIncomplete)
            }
            ResetCause::Lost => (Reason::UpstreamClosedBeforeResponse, Reason::UpstreamBodyIncomplete),
        };
        let reason = match exchange.started {
            true if exchange.is_socket() => Reason::UpstreamReset,
            true => started,
            false => reason,
        };
        let because = because.map_or_else(|| describe(cause, code), str::to_owned);
        let error = ProxyError::new(Side::Upstream, reason).with_source(because.clone());
        // What an endpoint says about a stream is for the caller, who may act on it; and so is that nothing was done, by
        // no attempt.
        let told = match cause {
            ResetCause::Peer => Some(code),
            ResetCause::GoAway => Some(ErrorCode::REFUSED_STREAM),
            _ => None,
        };
        let done = exchange.tries.is_processed() || exchange.started;
        let told = told.filter(|code| !(done && *code == ErrorCode::REFUSED_STREAM));
        match told {
            Some(code) => self.end_by_reset(state, stream, code, Some(&error)),
            None => {
                let detail = format!("{} ({because})", reason.sentence());
                self.fail(state, stream, Failure { detail, ..Failure::from(error) });
            }
        }
    }

    /// The endpoint's connection is over, and nothing of it is borrowed.
    pub(super) fn leg_lost(self: &Rc<Self>, stream: Stream, cause: &str, violation: bool) {
        let mut state = self.state.borrow_mut();
        let Some(exchange) = find(&mut state.exchanges, stream) else { return };
        let Some(leg) = exchange.leg.take() else { return };
        if violation && !exchange.down.ended {
            if !self.let_go(&mut state, stream, false, self.worker.timers.lately()) {
                state.wire.wake();
                return;
            }
            let Some(exchange) = find(&mut state.exchanges, stream) else { return };
            let reason = match exchange.started {
                true => Reason::UpstreamBodyInvalid,
                false => Reason::UpstreamProtocolError,
            };
            let error = ProxyError::new(Side::Upstream, reason).with_source(cause.to_owned());
            let detail = format!("{} ({cause})", reason.sentence());
            self.fail(&mut state, stream, Failure { detail, ..Failure::from(error) });
        } else {
            let lost = (ErrorCode::CANCEL, ResetCause::Lost);
            self.leg_reset(&mut state, stream, lost, leg.reused, Some(cause));
        }
        state.wire.wake();
    }

    /// More of a request can go on its way to the endpoint, whose stream is `to` and is borrowed. Says how that is to
    /// be reset, if it is.
    pub(super) fn pump_up(
        self: &Rc<Self>,
        stream: Stream,
        to: (&mut Wire, Stream),
        now: u64,
    ) -> Option<ErrorCode> {
        let mut state = self.state.borrow_mut();
        let DownState { wire, exchanges, .. } = &mut *state;
        let Some(exchange) = find(exchanges, stream) else { return Some(ErrorCode::CANCEL) };
        exchange.progress(now);
        if !exchange.up.done {
            exchange.up.pass(&[], Some((wire, stream)), to, &self.worker.buffers);
        }
        if exchange.up.unfit.is_some() {
            exchange.leg = None;
            self.fail_unfit(&mut state, stream);
            state.wire.wake();
            return Some(ErrorCode::CANCEL);
        }
        if exchange.up.done {
            exchange.asked(&self.worker.timers);
        }
        let over = exchange.is_over();
        state.note_due(stream);
        if over {
            if let Some(exchange) = find(&mut state.exchanges, stream) {
                exchange.leg = None;
            }
            self.settle(&mut state, stream);
        }
        // It is told that it may send more.
        state.wire.wake();
        over.then_some(ErrorCode::NO_ERROR)
    }

    /// Fails a request of whose trailers one end cannot be sent. Whether it is one.
    pub(super) fn fail_unfit(self: &Rc<Self>, state: &mut DownState, stream: Stream) -> bool {
        let Some(exchange) = find(&mut state.exchanges, stream) else { return false };
        let failure = if let Some(error) = exchange.up.unfit {
            unsendable(error)
        } else if let Some(error) = exchange.down.unfit {
            // There is an end to be told yet.
            exchange.down.done = false;
            unfit_response(error)
        } else {
            return false;
        };
        self.fail(state, stream, failure);
        true
    }

    /// Lets a request go if both directions have come to their end.
    pub(super) fn settle(self: &Rc<Self>, state: &mut DownState, stream: Stream) {
        if find(&mut state.exchanges, stream).is_some_and(|exchange| exchange.is_over()) {
            self.conclude(state, stream, ErrorCode::NO_ERROR);
        }
    }

    /// Ends a request as its other end does.
    fn end_by_reset(
        self: &Rc<Self>,
        state: &mut DownState,
        stream: Stream,
        code: ErrorCode,
        error: Option<&ProxyError>,
    ) {
        if let Some(error) = error {
            self.record(find(&mut state.exchanges, stream), error);
        }
        self.conclude(state, stream, code);
    }

    /// Who calls, for the log.
    pub(super) fn named(&self) -> log::Caller<'_> {
        log::Caller::at(self.peer.as_deref(), self.from)
    }

    fn record(&self, exchange: Option<&mut Exchange>, error: &ProxyError) {
        let upstream = exchange.as_ref().and_then(|exchange| exchange.upstream.as_ref());
        let cluster = upstream.map(|upstream| upstream.config());
        let context = Context {
            listener: &self.serving.name,
            status: None,
            caller: self.named(),
            cluster: cluster.as_ref().map(|cluster| &*cluster.name),
            endpoint: exchange.as_ref().and_then(|exchange| exchange.address),
        };
        let asked = exchange.as_ref().and_then(|exchange| exchange.request.as_ref());
        let request = || log::request(&View::new(asked?, &self.worker.buffers));
        self.worker.log.failed(error, context, request);
        self.serving.stats.borrow_mut().reason(error.reason);
    }

    /// Takes a request out, and resets both streams unless they are over.
    fn conclude(self: &Rc<Self>, state: &mut DownState, stream: Stream, code: ErrorCode) {
        let DownState { wire, exchanges, running, sockets, .. } = state;
        let Some(place) = exchanges.get_mut(stream.slot()) else { return };
        let Some(mut exchange) = place.take_if(|exchange| exchange.stream == stream) else { return };
        *running = running.saturating_sub(1);
        *sockets = sockets.saturating_sub(usize::from(exchange.is_socket()));
        if let Some(leg) = exchange.leg.take() {
            leg.cut(if code == ErrorCode::NO_ERROR && !exchange.down.done {
                ErrorCode::CANCEL
            } else {
                code
            });
        }
        wire.core.reset(stream, code);
        let worker = &self.worker;
        if let Some(upstream) = &exchange.upstream {
            if let Some(endpoint) = exchange.waits.take() {
                upstream.h2.leave(endpoint, self, stream);
            }
            let mut stats = upstream.stats.borrow_mut();
            stats.active_requests = stats.active_requests.saturating_sub(1);
        }
        exchange.forget(&worker.buffers);
        exchange.up.clear(&worker.buffers);
        exchange.down.clear(&worker.buffers);
        let saving = worker.is_saving();
        let heads = [exchange.request, exchange.kept, exchange.up.trailers, exchange.down.trailers];
        for head in heads.into_iter().flatten() {
            worker.heads2.give(head, saving);
        }
        exchange.own.pause(worker.timers.lately());
        let mut stats = self.serving.stats.borrow_mut();
        stats.active_requests = stats.active_requests.saturating_sub(1);
        // It took as long as its caller liked.
        if exchange.down.socket.is_some() {
            return;
        }
        let took = worker.timers.instant().saturating_duration_since(exchange.times.began);
        stats.latency.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        stats.added.record(exchange.own.sum().saturating_mul(1000));
        if let Some(said) = exchange.said {
            stats.grpc(said);
        }
    }
}
