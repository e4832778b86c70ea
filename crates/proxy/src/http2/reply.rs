//! What the proxy answers by itself: in HTTP a status and a sentence, to gRPC a head that is the trailers, too.
//!
//! Holds: every reply has the reason; what is answered after the response began ends as broken, never as whole: calls
//! of gRPC by trailers with another status than 0, everything else by RST_STREAM. After a reply no more of the request
//! is wanted, which NO_ERROR says. Does not: decide what goes wrong.

use std::rc::Rc;

use outrider_http2::{ErrorCode, Field, Stream};
use outrider_proxy_core::fault::Abort;
use outrider_proxy_core::grpc;
use outrider_proxy_core::http1::reply::{BODY_TYPE, REASON_HEADER, names_type};
use outrider_proxy_core::limit::{Empty, RateLimit};
use outrider_proxy_core::reason::{ProxyError, Reason};
use outrider_proxy_core::retry::hops::{self, ATTEMPTS};

use super::downstream::{Down, DownState, find};
use super::exchange::Exchange;
use super::fields::{self, View};
use super::wire::Wire;
use crate::log::{self, Context};

/// What a failure is told with.
pub(super) struct Failure {
    pub(super) error: ProxyError,
    /// What exactly happened; empty if the reason says it all.
    pub(super) detail: String,
}

/// A reply of our own; what is not said is the reason's.
#[derive(Clone, Copy, Default)]
struct Answer<'a> {
    status: Option<u16>,
    /// To calls of gRPC.
    code: Option<grpc::Status>,
    /// What exactly happened; empty if the reason says it all.
    detail: &'a str,
    /// Instead of the sentence.
    body: Option<&'a [u8]>,
    /// Further header lines.
    lines: &'a [u8],
}

impl From<ProxyError> for Failure {
    fn from(error: ProxyError) -> Self {
        Self { error, detail: String::new() }
    }
}

impl Down {
    /// Tells the caller, the counters and the log why there is no (whole) response. The endpoint is told as well.
    pub(super) fn fail(self: &Rc<Self>, state: &mut DownState, stream: Stream, failure: Failure) {
        let DownState { wire, exchanges, .. } = state;
        let Some(exchange) = find(exchanges, stream) else { return };
        let Failure { error, mut detail } = failure;
        let reason = error.reason;
        if let (true, Some((name, limit))) = (detail.is_empty(), exchange.limit_of(reason)) {
            detail = format!("{} ({name}: {limit:?})", reason.sentence());
        }
        let answerable = !exchange.started && reason.status().is_some();
        {
            let cluster = exchange.upstream.as_ref().map(|upstream| upstream.config());
            let context = Context {
                listener: &self.serving.name,
                status: answerable.then(|| if exchange.grpc { Some(200) } else { reason.status() }).flatten(),
                caller: self.named(),
                cluster: cluster.as_ref().map(|cluster| &*cluster.name),
                endpoint: exchange.address,
            };
            self.worker.log.failed(&error, context, || self.what(exchange));
        }
        self.give_up(exchange);
        if answerable {
            let vouches = exchange.tries.vouch(&error, self.peer.as_deref());
            let lines = if vouches { hops::UNPROCESSED_LINE } else { b"" };
            self.answer(wire, exchange, reason, &Answer { detail: &detail, lines, ..Answer::default() });
        } else {
            self.serving.stats.borrow_mut().reason(reason);
            Self::cut(wire, exchange, reason);
        }
        self.settle(state, stream);
    }

    /// What was asked for, as far as the head is still there.
    fn what(&self, exchange: &Exchange) -> Option<String> {
        log::request(&View::new(exchange.request.as_ref()?, &self.worker.buffers))
    }

    /// The endpoint is not to go on, and what was held for the request is for others while its answer is read.
    fn give_up(self: &Rc<Self>, exchange: &mut Exchange) {
        if let Some(leg) = exchange.leg.take() {
            leg.cut(ErrorCode::CANCEL);
        }
        exchange.bridge = None;
        exchange.kept = None;
        if let (Some(endpoint), Some(upstream)) = (exchange.waits.take(), &exchange.upstream) {
            upstream.h2.leave(endpoint, self, exchange.stream);
        }
        exchange.down.clear(&self.worker.buffers);
        exchange.down.trailers = None;
        (exchange.waiting, exchange.running, exchange.picked) = (None, None, None);
        (exchange.tries.retrying, exchange.fault) = (None, None);
    }

    /// Sends what the route of a request answers by itself: status, body and reason, with these header lines.
    pub(super) fn answer_by_route(
        self: &Rc<Self>,
        wire: &mut Wire,
        exchange: &mut Exchange,
        (status, body, reason): (u16, &[u8], Reason),
        lines: &[u8],
    ) {
        let answer = Answer { status: Some(status), body: Some(body), lines, ..Answer::default() };
        self.answer_as_configured(wire, exchange, reason, &answer);
    }

    /// Sends what the configuration says is to be the answer, and tells the log.
    fn answer_as_configured(
        self: &Rc<Self>,
        wire: &mut Wire,
        exchange: &mut Exchange,
        reason: Reason,
        answer: &Answer<'_>,
    ) {
        let status = if exchange.grpc { Some(200) } else { answer.status.or(reason.status()) };
        let context =
            Context { listener: &self.serving.name, status, caller: self.named(), ..Context::default() };
        self.worker.log.answered(reason, context, || self.what(exchange));
        self.answer(wire, exchange, reason, answer);
    }

    /// Answers a request that is one too many.
    pub(super) fn answer_limited(
        self: &Rc<Self>,
        wire: &mut Wire,
        exchange: &mut Exchange,
        limit: &RateLimit,
        empty: Empty,
    ) {
        use std::io::Write as _;
        let mut lines = self.worker.buffers.take_scratch();
        let seconds = empty.wait.div_ceil(1_000_000_000).max(1);
        // Writing to memory does not fail.
        let _ = write!(lines, "retry-after: {seconds}\r\n");
        lines.extend_from_slice(&limit.headers);
        let code = limit.resource_exhausted.then_some(grpc::Status::ResourceExhausted);
        let answer = Answer { status: Some(limit.status), code, lines: &lines, ..Answer::default() };
        self.answer_as_configured(wire, exchange, Reason::RateLimited, &answer);
        self.worker.buffers.give_scratch(lines);
    }

    /// Answers a request on purpose.
    pub(super) fn answer_aborted(self: &Rc<Self>, wire: &mut Wire, exchange: &mut Exchange, abort: Abort) {
        let answer = Answer { status: Some(abort.status()), code: abort.grpc(), ..Answer::default() };
        self.answer_as_configured(wire, exchange, Reason::FaultInjected, &answer);
    }

    /// Sends a reply of our own. Nobody is asked any more.
    fn answer(
        self: &Rc<Self>,
        wire: &mut Wire,
        exchange: &mut Exchange,
        reason: Reason,
        answer: &Answer<'_>,
    ) {
        let Answer { status, code, detail, body, lines } = *answer;
        let buffers = &self.worker.buffers;
        let stream = exchange.stream;
        let own_status = status;
        let status = status.or(reason.status()).filter(|status| (200..=999).contains(status)).unwrap_or(503);
        let sentence = if detail.is_empty() { reason.sentence() } else { detail };
        let because: Field<'_> = (REASON_HEADER.as_bytes(), reason.as_str().as_bytes()).into();
        let later = (reason == Reason::OverloadMemory)
            .then(|| Field::from((b"retry-after".as_slice(), b"1".as_slice())));
        let attempts = exchange.tries.told();
        let attempts = attempts.as_ref().map(|count| Field::from((ATTEMPTS.as_bytes(), count.as_bytes())));
        exchange.started = true;
        exchange.down.ended = true;
        exchange.answered(self.worker.timers.now());
        let mut text = buffers.take_scratch();
        let sent = if exchange.grpc {
            grpc::write_message(sentence, &mut text);
            let code = code.unwrap_or_else(|| match own_status {
                Some(status) => grpc::Status::of_http(status),
                None => grpc::Status::of(reason),
            });
            let fields: [Field<'_>; 3] = [
                (b"content-type".as_slice(), b"application/grpc".as_slice()).into(),
                (b"grpc-status".as_slice(), code.as_str().as_bytes()).into(),
                (b"grpc-message".as_slice(), text.as_slice()).into(),
            ];
            let fields = fields.into_iter().chain([because]).chain(later).chain(attempts);
            let fields = fields.chain(fields::lines(lines));
            exchange.said = Some(grpc::Said::Status(code));
            exchange.down.done = true;
            wire.core.send_response(stream, 200, fields, true)
        } else {
            let kind: &[u8] = match body {
                Some(body) if body.is_empty() || names_type(lines) => b"",
                Some(_) => BODY_TYPE.as_bytes(),
                None if names_type(lines) => b"",
                None => b"text/plain; charset=utf-8",
            };
            match body {
                Some(body) => text.extend_from_slice(body),
                None => {
                    text.extend_from_slice(reason.as_str().as_bytes());
                    text.extend_from_slice(b": ");
                    text.extend_from_slice(sentence.as_bytes());
                    text.push(b'\n');
                }
            }
            let mut digits = [0; 20];
            let length = decimal(text.len(), &mut digits);
            let kind = (!kind.is_empty()).then(|| Field::from((b"content-type".as_slice(), kind)));
            let framed = (status != 204).then(|| Field::from((b"content-length".as_slice(), length)));
            let own = kind.into_iter().chain(framed).chain([because]).chain(later).chain(attempts);
            let fields = own.chain(fields::lines(lines));
            let bodyless = exchange.head_request || text.is_empty() || matches!(status, 204 | 304);
            let sent = wire.core.send_response(stream, status, fields, bodyless);
            if bodyless {
                exchange.down.done = true;
            } else if sent.is_ok() {
                exchange.down.pass(&text, None, (wire, stream), buffers);
            }
            sent
        };
        buffers.give_scratch(text);
        if sent.is_err() {
            // Not even this is what the caller takes.
            wire.core.reset(stream, ErrorCode::INTERNAL_ERROR);
            exchange.down.done = true;
        }
        exchange.up.drop_rest(Some((wire, stream)), buffers);
        let mut stats = self.serving.stats.borrow_mut();
        stats.reason(reason);
        stats.response(if exchange.grpc { 200 } else { status });
    }

    /// Ends a response that has begun, so that nobody takes it for whole.
    fn cut(wire: &mut Wire, exchange: &mut Exchange, reason: Reason) {
        let stream = exchange.stream;
        let fields: [Field<'_>; 2] = [
            (b"grpc-status".as_slice(), grpc::Status::of(reason).as_str().as_bytes()).into(),
            (REASON_HEADER.as_bytes(), reason.as_str().as_bytes()).into(),
        ];
        let told = exchange.grpc
            && exchange.started
            && !exchange.down.done
            && wire.core.send_trailers(stream, fields.into_iter()).is_ok();
        if told {
            exchange.said = Some(grpc::Said::Status(grpc::Status::of(reason)));
        }
        if !told {
            // RFC 8441 section 5: what a reset is in TCP.
            let code = if exchange.is_socket() { ErrorCode::CANCEL } else { ErrorCode::INTERNAL_ERROR };
            wire.core.reset(stream, code);
        }
        exchange.down.done = true;
        exchange.up.done = true;
    }
}

fn decimal(mut number: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}
