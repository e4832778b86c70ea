//! The bytes of one request and its response, both ways at once, in one poll.
//!
//! ```text
//! caller ──► client.inbox ──scan──► endpoint        (head first, from `out`)
//! caller ◄── to_client ◄──head, scan── connection.inbox ◄── endpoint
//! ```
//! Holds: nothing is read that cannot be held (back-pressure); what the scanner did not accept is not
//! forwarded; a response that ends before its request leaves neither connection reusable; a response that leads to
//! another attempt is seen by nobody. Does not: answer by itself.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context as Task, Poll, ready};
use std::time::{Duration, Instant};

use outrider_proxy_core::http1::body::{BodyError, BodyFraming, BodyScanner};
use outrider_proxy_core::http1::encode::{self, Delivery, ResponseEncoding};
use outrider_proxy_core::http1::{Limits, Parsed, ResponseHead, Version};
use outrider_proxy_core::outlier::Outcome as EndpointOutcome;
use outrider_proxy_core::reason::{ProxyError, Reason, Retry, Side};
use outrider_proxy_core::retry::hops::ATTEMPTS;
use outrider_proxy_core::retry::{Ended, Facts, REPLAY_LIMIT};
use outrider_proxy_core::route::Route;
use outrider_proxy_core::stats::ListenerStats;
use tokio::io::AsyncWrite;

use super::{After, Asking, Client};
use crate::buffers::{Filled, SIZES};
use crate::config::HttpService;
use crate::stream::Stream;
use crate::upstream::Connection;
use crate::worker::{Heads, Open, Worker};

/// Body bytes up to this many are copied behind a head, which saves a system call.
const JOIN: usize = SIZES[0];
/// Interim responses to one request.
const MAX_INTERIM: u32 = 32;

const NEVER: u64 = u64::MAX;

/// How an exchange ended well.
pub(super) enum Outcome {
    /// The response is with the caller.
    Done {
        /// What becomes of the caller's connection.
        keep: After,
        /// Whether the endpoint's connection can serve another request.
        reuse: bool,
    },
    /// The 101 is with the caller: what follows is opaque.
    Tunnel,
    /// There was a response, which the caller does not get: the request is sent again.
    Again {
        /// What becomes of the endpoint's connection.
        left: Left,
    },
}

/// What is left of a response that nobody gets.
pub(super) enum Left {
    /// Nothing: the connection can serve another request.
    Nothing,
    /// Part of its body is to come, and then the connection can.
    Body(Box<BodyScanner>),
    /// It cannot.
    Unusable,
}

/// A final response under way.
struct Response {
    body: BodyScanner,
    delivery: Delivery,
    status: u16,
    reusable: bool,
    ended: bool,
}

/// See the module.
pub(super) struct Exchange<'a, 'c> {
    open: &'a Open,
    worker: &'a Worker,
    client: &'a mut Client<'c>,
    connection: Connection,
    asking: &'a mut Asking,
    route: &'a Route,

    /// Bytes of `out` written.
    sent: usize,
    /// Accepted body bytes at the front of the client's inbox.
    ready_up: usize,
    /// Body bytes that went out from the inbox and are gone.
    moved_up: u64,
    request_done: bool,
    /// The endpoint takes no more; it may have answered nevertheless.
    refused: bool,
    waits_for_client: bool,

    /// Size classes of reads, by what former reads brought.
    class_up: usize,
    class_down: usize,

    to_client: Vec<u8>,
    written: usize,
    ready_down: usize,
    heard: bool,
    /// When the request was with the endpoint, and how long it was silent then.
    asked_at: Option<Instant>,
    waited: Duration,
    interim: u32,
    switched: bool,
    response: Option<Response>,
    /// The response is left out: its status, and what is left of it.
    left_out: Option<(u16, Left)>,
    told: Option<u32>,

    bytes_in: u64,
    bytes_out: u64,
    progress: u64,
    progress_at: u64,
    /// Bytes that sessions had handed to the kernel by then.
    sealed: u64,
    idle_ms: u64,
    head_ms: u64,
    head_at: u64,
    total_at: u64,
    armed: u64,
}

pub(super) fn millis(limit: Option<Duration>) -> u64 {
    limit.map_or(NEVER, |limit| u64::try_from(limit.as_millis()).unwrap_or(NEVER))
}

impl<'a, 'c> Exchange<'a, 'c> {
    /// `began` is when the request did, on the worker's clock.
    pub(super) fn new(
        open: &'a Open,
        client: &'a mut Client<'c>,
        connection: Connection,
        asking: &'a mut Asking,
        route: &'a Route,
        service: &HttpService,
        began: u64,
    ) -> Self {
        let worker = &*open.worker;
        let now = worker.timers.lately();
        let limits = route.timeouts;
        let ready_up = std::mem::take(&mut asking.accepted) as usize;
        Self {
            open,
            worker,
            client,
            connection,
            asking,
            route,
            sent: 0,
            ready_up,
            moved_up: 0,
            request_done: false,
            refused: false,
            waits_for_client: false,
            class_up: 0,
            class_down: 0,
            to_client: worker.buffers.take_scratch(),
            written: 0,
            ready_down: 0,
            heard: false,
            asked_at: None,
            waited: Duration::ZERO,
            interim: 0,
            switched: false,
            response: None,
            left_out: None,
            told: None,
            bytes_in: 0,
            bytes_out: 0,
            progress: 0,
            progress_at: now,
            sealed: 0,
            idle_ms: millis(limits.idle.or(service.idle)),
            head_ms: millis(limits.response_head),
            head_at: NEVER,
            total_at: total_at(began, route),
            armed: NEVER,
        }
    }

    /// Runs to the end. `out` is the encoded request head.
    pub(super) async fn run(&mut self, heads: &mut Heads, out: &mut Vec<u8>) -> Result<Outcome, ProxyError> {
        self.client.downstream.alarm.set_at(NEVER, 0);
        heads.response.reset();
        self.join_body(heads, out)?;
        poll_fn(|cx| self.poll(cx, heads, out)).await
    }

    /// Of the response, as far as there is one.
    pub(super) fn status(&self) -> Option<u16> {
        let answered = self.response.as_ref().map(|response| response.status);
        answered.or(self.left_out.as_ref().map(|(status, _)| *status)).or(self.switched.then_some(101))
    }

    /// Whether a reply of our own would no longer be understood: a byte of a final response, or a part of an
    /// interim one, may have reached the caller.
    pub(super) fn response_started(&self) -> bool {
        self.response.is_some() || self.switched || (self.written > 0 && self.written < self.to_client.len())
    }

    /// Whether everything that was sent is still here: in `out`, or accepted and at the front of the inbox.
    pub(super) fn is_replayable(&self) -> bool {
        self.moved_up == 0
    }

    /// How long the endpoint was silent before it answered, whatever it said: one that only fails would else be one that
    /// nobody knows, which is tried first.
    pub(super) fn answered(&self) -> Option<Duration> {
        self.response.as_ref().map(|_| self.waited)
    }

    /// Adds to the listener's numbers.
    pub(super) fn count(&self, stats: &mut ListenerStats) {
        stats.bytes_in += self.bytes_in;
        stats.bytes_out += self.bytes_out;
        if !self.switched {
            stats.upstream_us += u64::try_from(self.waited.as_micros()).unwrap_or(u64::MAX);
        }
        if let Some(response) = &self.response {
            stats.response(response.status);
        } else if self.switched {
            stats.response(101);
        }
    }

    /// The endpoint's connection, and its keep-alive limit in seconds if it told one.
    pub(super) fn into_connection(self) -> (Connection, Option<u32>) {
        let Self { worker, asking, mut connection, to_client, ready_up, told, .. } = self;
        // The scanner has them behind it, so the next try must send them before it reads on.
        asking.accepted = ready_up as u32;
        connection.inbox.park(&worker.buffers);
        worker.buffers.give_scratch(to_client);
        (connection, told)
    }

    /// Copies a small body that is here already behind the head.
    fn join_body(&mut self, heads: &Heads, out: &mut Vec<u8>) -> Result<(), ProxyError> {
        self.bytes_in += out.len() as u64;
        let nothing = self.ready_up > 0 || self.asking.body.is_done() || self.client.inbox.is_empty();
        if nothing || out.len() >= JOIN {
            return Ok(());
        }
        let scan = self.asking.body.scan(self.client.inbox.bytes()).map_err(invalid_request_body)?;
        self.bytes_in += scan.consumed as u64;
        self.tap(heads, scan.consumed);
        if out.len() + scan.consumed <= JOIN {
            out.extend_from_slice(&self.client.inbox.bytes()[..scan.consumed]);
            self.client.inbox.consume(scan.consumed);
        } else {
            self.ready_up = scan.consumed;
        }
        Ok(())
    }

    /// Gives so many bytes, which were just accepted, to copies of the request.
    fn tap(&self, heads: &Heads, accepted: usize) {
        if let Some(taps) = &heads.taps {
            let bytes = self.client.inbox.bytes().get(..accepted).unwrap_or_default();
            taps.push(bytes, self.asking.body.is_done());
        }
    }

    fn poll(
        &mut self,
        cx: &mut Task<'_>,
        heads: &mut Heads,
        out: &mut Vec<u8>,
    ) -> Poll<Result<Outcome, ProxyError>> {
        self.worker.timers.now();
        loop {
            let peer = self.client.downstream.peer.as_deref();
            heads.watched(out).may_go_on(self.open, peer)?;
            if !self.request_done && !self.refused {
                match self.poll_request(cx, heads, out) {
                    Poll::Ready(Ok(())) => {
                        self.request_done = true;
                        self.asked_at.get_or_insert_with(Instant::now);
                        self.head_at = self.worker.timers.lately().saturating_add(self.head_ms);
                    }
                    Poll::Ready(Err(error)) if error.side == Side::Upstream => self.refused = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
            }
            if let Poll::Ready(outcome) = self.poll_response(cx, heads) {
                return Poll::Ready(outcome);
            }
            if self.request_done && !self.switched {
                ready_or_pending(self.client.watch(cx, self.worker))?;
            }
            match self.poll_deadline(cx) {
                // Progress has moved the deadline meanwhile.
                Poll::Ready(None) => {}
                Poll::Ready(Some(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_request(
        &mut self,
        cx: &mut Task<'_>,
        heads: &Heads,
        out: &mut Vec<u8>,
    ) -> Poll<Result<(), ProxyError>> {
        self.waits_for_client = false;
        loop {
            if self.sent < out.len() {
                let n =
                    ready!(write(cx, &mut self.connection.stream, &out[self.sent..])).map_err(upstream_io)?;
                self.sent += n;
                self.progress += n as u64;
                if self.sent == out.len() {
                    self.asking.own.pause(self.worker.timers.lately());
                }
            } else if self.ready_up > 0 {
                let bytes = &self.client.inbox.bytes()[..self.ready_up];
                let n = ready!(write(cx, &mut self.connection.stream, bytes)).map_err(upstream_io)?;
                self.client.inbox.consume(n);
                self.ready_up -= n;
                self.moved_up += n as u64;
                self.progress += n as u64;
            } else if self.asking.body.is_done() {
                ready!(Pin::new(&mut self.connection.stream).poll_flush(cx)).map_err(upstream_io)?;
                return Poll::Ready(Ok(()));
            } else if !self.client.inbox.is_empty() {
                let scan = self.asking.body.scan(self.client.inbox.bytes()).map_err(invalid_request_body)?;
                self.bytes_in += scan.consumed as u64;
                self.tap(heads, scan.consumed);
                if self.keeps(out, scan.consumed) {
                    if out.capacity() < out.len() + scan.consumed {
                        // All at once, and no more than scratch space may have that is used again.
                        out.reserve_exact(REPLAY_LIMIT.saturating_sub(out.len()));
                    }
                    out.extend_from_slice(&self.client.inbox.bytes()[..scan.consumed]);
                    self.client.inbox.consume(scan.consumed);
                } else {
                    self.ready_up = scan.consumed;
                }
            } else {
                let Client { downstream, inbox, .. } = &mut *self.client;
                inbox.prefer(self.class_up, &self.worker.buffers);
                match inbox.poll_fill(cx, &mut downstream.stream, &self.worker.buffers, self.class_up) {
                    Poll::Ready(Ok(Filled::Bytes(n))) => self.class_up = class_after(n),
                    Poll::Ready(Ok(Filled::End)) => {
                        return Poll::Ready(Err(ProxyError::new(Side::Downstream, Reason::ClientGone)));
                    }
                    Poll::Ready(Err(e)) => {
                        return Poll::Ready(Err(
                            ProxyError::new(Side::Downstream, Reason::ClientGone).with_source(e)
                        ));
                    }
                    Poll::Pending => {
                        self.waits_for_client = true;
                        ready!(Pin::new(&mut self.connection.stream).poll_flush(cx)).map_err(upstream_io)?;
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn poll_response(&mut self, cx: &mut Task<'_>, heads: &mut Heads) -> Poll<Result<Outcome, ProxyError>> {
        loop {
            ready!(self.poll_to_client(cx))?;
            let Some(response) = &mut self.response else {
                if self.switched {
                    ready!(Pin::new(&mut self.client.downstream.stream).poll_flush(cx))
                        .map_err(client_gone)?;
                    return Poll::Ready(Ok(Outcome::Tunnel));
                }
                if let Some((_, left)) = &mut self.left_out {
                    let left = std::mem::replace(left, Left::Unusable);
                    return Poll::Ready(Ok(Outcome::Again { left }));
                }
                ready!(self.poll_head(cx, heads))?;
                continue;
            };
            if response.ended || response.body.is_done() {
                ready!(Pin::new(&mut self.client.downstream.stream).poll_flush(cx)).map_err(client_gone)?;
                return Poll::Ready(Ok(self.done()));
            }
            if !self.connection.inbox.is_empty() {
                self.accept_body()?;
                continue;
            }
            let Connection { stream, inbox, .. } = &mut self.connection;
            inbox.prefer(self.class_down, &self.worker.buffers);
            match inbox.poll_fill(cx, stream, &self.worker.buffers, self.class_down) {
                Poll::Ready(Ok(Filled::Bytes(n))) => {
                    self.class_down = class_after(n);
                    self.progress += n as u64;
                }
                Poll::Ready(Ok(Filled::End)) => {
                    response.body.finish().map_err(invalid_response_body)?;
                    response.ended = true;
                }
                Poll::Ready(Err(e)) => {
                    let error =
                        ProxyError::new(Side::Upstream, Reason::UpstreamBodyIncomplete).with_source(e);
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {
                    ready!(Pin::new(&mut self.client.downstream.stream).poll_flush(cx))
                        .map_err(client_gone)?;
                    return Poll::Pending;
                }
            }
        }
    }

    /// Writes what is owed to the caller: composed bytes, then accepted body bytes.
    fn poll_to_client(&mut self, cx: &mut Task<'_>) -> Poll<Result<(), ProxyError>> {
        let stream = &mut self.client.downstream.stream;
        while self.written < self.to_client.len() {
            let n = ready!(write(cx, stream, &self.to_client[self.written..])).map_err(client_gone)?;
            self.written += n;
            self.bytes_out += n as u64;
            self.progress += n as u64;
        }
        if self.written > 0 && self.response.is_some() {
            self.asking.own.pause(self.worker.timers.lately());
        }
        self.to_client.clear();
        self.written = 0;
        while self.ready_down > 0 {
            let bytes = &self.connection.inbox.bytes()[..self.ready_down];
            let n = ready!(write(cx, stream, bytes)).map_err(client_gone)?;
            self.connection.inbox.consume(n);
            self.ready_down -= n;
            self.bytes_out += n as u64;
            self.progress += n as u64;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads until a head is whole, and composes what the caller gets of it.
    fn poll_head(&mut self, cx: &mut Task<'_>, heads: &mut Heads) -> Poll<Result<(), ProxyError>> {
        loop {
            let Connection { stream, inbox, .. } = &mut self.connection;
            if !inbox.is_empty() {
                let limits = Limits::default();
                let parsed = heads
                    .response
                    .parse(inbox.bytes(), &limits)
                    .map_err(|e| ProxyError::new(Side::Upstream, e.upstream_reason()).with_source(e))?;
                if let Parsed::Complete(_) = parsed {
                    return Poll::Ready(self.take_head(heads));
                }
                if inbox.is_full() && !inbox.grow(&self.worker.buffers) {
                    return Poll::Ready(Err(ProxyError::new(Side::Upstream, Reason::UpstreamHeaderTooLarge)));
                }
            }
            match ready!(inbox.poll_fill(cx, stream, &self.worker.buffers, 0)) {
                Ok(Filled::Bytes(n)) => {
                    if !self.heard {
                        self.heard = true;
                        self.waited = self.asked_at.map_or(Duration::ZERO, |at| at.elapsed());
                    }
                    self.progress += n as u64;
                }
                Ok(Filled::End) => return Poll::Ready(Err(self.closed(None))),
                Err(e) => return Poll::Ready(Err(self.closed(Some(e)))),
            }
        }
    }

    /// The endpoint closed without a (whole) final head.
    fn closed(&self, error: Option<io::Error>) -> ProxyError {
        let retry = match (self.heard, self.sent) {
            (true, _) => Retry::Never,
            (false, 0) => Retry::Safe,
            (false, _) => Retry::OnReusedConnection,
        };
        let reason = match &error {
            _ if self.connection.reused && !self.heard => Reason::UpstreamClosedReusedConnection,
            None => Reason::UpstreamClosedBeforeResponse,
            Some(_) => Reason::UpstreamReset,
        };
        let closed = ProxyError::new(Side::Upstream, reason).with_retry(retry);
        match error {
            Some(error) => closed.with_source(error),
            None => closed,
        }
    }

    fn take_head(&mut self, heads: &Heads) -> Result<(), ProxyError> {
        let head = &heads.response;
        let bytes = self.connection.inbox.bytes();
        let client = self.asking.version;
        if head.is_interim() {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(ProxyError::new(Side::Upstream, Reason::UpstreamProtocolError));
            }
            if client == Version::Http11 {
                let delivery = Delivery::of(head, BodyFraming::None, client, true);
                let how = ResponseEncoding { delivery, ..ResponseEncoding::default() };
                encode::response(head, bytes, &how, &mut self.to_client);
            }
            self.connection.inbox.consume(head.length());
            return Ok(());
        }
        self.asking.own.start(self.worker.timers.lately());
        let framing = head
            .framing(&self.asking.asked)
            .map_err(|e| ProxyError::new(Side::Upstream, e.upstream_reason()).with_source(e))?;
        let status = head.status();
        // A proxy there vouches that it reached nobody with it, and it is known who that is.
        let vain = status >= 500 && head.is_unprocessed() && self.connection.is_mutual();
        let failed = self.route.retry.wants(status);
        // Whoever is behind us has repeated it as often as that makes sense.
        let settled = failed && head.values(bytes, ATTEMPTS.as_bytes()).next().is_some();
        if vain && self.repeats(Ended::InVain) || failed && !settled && self.repeats(Ended::Status(status)) {
            self.leave_out(head, framing);
            return Ok(());
        }
        let bytes = self.connection.inbox.bytes();
        // The rest of a request that is answered early will not be read, so nothing can follow it.
        let keep = self.asking.persistent && self.request_done && self.open.may_stay();
        let delivery = Delivery::of(head, framing, client, keep);
        let mut lines = None;
        if let Some(made) = &self.asking.made {
            self.route.set_cookie(**made, lines.insert(self.worker.buffers.take_scratch()));
        }
        if let Some(attempts) = self.asking.tries.told().filter(|_| failed && !settled) {
            attempts.write_line(lines.get_or_insert_with(|| self.worker.buffers.take_scratch()));
        }
        let append = lines.as_deref().unwrap_or_default();
        let how = ResponseEncoding { delivery, edits: Some(&self.route.response_headers), append };
        encode::response(head, bytes, &how, &mut self.to_client);
        if let Some(lines) = lines {
            self.worker.buffers.give_scratch(lines);
        }
        self.told = head.keep_alive_timeout();
        let reusable = head.is_persistent() && framing != BodyFraming::UntilClose;
        self.connection.inbox.consume(head.length());
        if delivery.tunnel {
            self.switched = true;
            return Ok(());
        }
        let body = BodyScanner::new(framing);
        self.response = Some(Response { body, delivery, status, reusable, ended: false });
        if !self.connection.inbox.is_empty() {
            self.accept_body()?;
        }
        Ok(())
    }

    /// Whether so many more bytes of the body are to be kept behind `out`, because they may have to be sent again.
    fn keeps(&self, out: &Vec<u8>, more: usize) -> bool {
        let (tries, policy) = (&self.asking.tries, &self.route.retry);
        let length = out.len() + more;
        let again = length <= REPLAY_LIMIT && tries.repeatable && tries.attempts <= policy.retries;
        // A proxy there may vouch that nothing was processed: for that as much is kept as takes no memory.
        let vouched = length <= out.capacity() && self.connection.is_mutual();
        self.moved_up == 0 && (again || vouched)
    }

    /// Whether the request is sent again, because of this response.
    fn repeats(&mut self, ended: Ended) -> bool {
        let facts = Facts {
            idempotent: self.asking.method.is_idempotent(),
            whole: self.is_replayable() && !self.response_started(),
            left_ms: self.total_at.saturating_sub(self.worker.timers.lately()),
            ..Facts::default()
        };
        let upstream = self.connection.upstream();
        let random = self.worker.random();
        self.asking.tries.decide(&self.route.retry, upstream, ended, facts, random)
    }

    /// Passes over a response. Its body is not waited for.
    fn leave_out(&mut self, head: &ResponseHead, framing: BodyFraming) {
        let inbox = &mut self.connection.inbox;
        self.told = head.keep_alive_timeout();
        inbox.consume(head.length());
        let mut body = BodyScanner::new(framing);
        if !body.is_done()
            && let Ok(scan) = body.scan(inbox.bytes())
        {
            inbox.consume(scan.consumed);
        }
        let goes_on = self.request_done && !self.refused && inbox.is_empty();
        let left = match goes_on && head.is_persistent() && framing != BodyFraming::UntilClose {
            true if body.is_done() => Left::Nothing,
            true => Left::Body(Box::new(body)),
            false => Left::Unusable,
        };
        self.left_out = Some((head.status(), left));
    }

    /// Checks what was read of the body and puts it on its way: copied if it is small and follows a head or
    /// has to lose its chunks, else from where it is.
    fn accept_body(&mut self) -> Result<(), ProxyError> {
        let Some(response) = &mut self.response else { return Ok(()) };
        if response.body.is_done() {
            return Ok(());
        }
        let bytes = self.connection.inbox.bytes();
        if response.delivery.dechunk {
            let to_client = &mut self.to_client;
            let scan = response
                .body
                .scan_payload(bytes, |range| to_client.extend_from_slice(&bytes[range]))
                .map_err(invalid_response_body)?;
            self.connection.inbox.consume(scan.consumed);
            return Ok(());
        }
        let scan = response.body.scan(bytes).map_err(invalid_response_body)?;
        if !self.to_client.is_empty() && self.to_client.len() + scan.consumed <= JOIN {
            self.to_client.extend_from_slice(&bytes[..scan.consumed]);
            self.connection.inbox.consume(scan.consumed);
        } else {
            self.ready_down = scan.consumed;
        }
        Ok(())
    }

    fn done(&self) -> Outcome {
        let Some(response) = &self.response else {
            return Outcome::Done { keep: After::Abort, reuse: false };
        };
        let whole = self.request_done && !self.refused;
        let keep = if !whole {
            After::Linger
        } else if !response.delivery.close && self.asking.persistent {
            After::Keep
        } else if self.client.inbox.is_empty() && !self.asking.persistent {
            After::Close
        } else {
            // The caller may have sent another request before it learned that there will be no other response.
            After::Linger
        };
        let reuse = whole && response.reusable && !response.ended && self.connection.inbox.is_empty();
        Outcome::Done { keep, reuse }
    }

    /// `Ready(None)`: look again. `Ready(Some)`: a limit has passed.
    fn poll_deadline(&mut self, cx: &Task<'_>) -> Poll<Option<ProxyError>> {
        let alarm = &self.client.downstream.alarm;
        let rung = alarm.poll_rung(cx).is_ready();
        // What a session has taken moves on for as long as its peer reads.
        let sealed = self.client.downstream.stream.sent() + self.connection.stream.sent();
        if self.progress > 0 || sealed != self.sealed || self.armed == NEVER {
            self.progress = 0;
            self.sealed = sealed;
            self.progress_at = alarm.lately();
        }
        let head_at = if self.response.is_none() { self.head_at } else { NEVER };
        let idle_at = self.progress_at.saturating_add(self.idle_ms);
        let next = self.total_at.min(head_at).min(idle_at);
        if rung {
            let now = alarm.lately();
            if now >= next {
                return Poll::Ready(Some(self.too_late(now, head_at)));
            }
        }
        if next != self.armed || rung {
            self.armed = next;
            alarm.set_at(next, self.progress_at);
            // Registers this task with the moved deadline.
            return match alarm.poll_rung(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            };
        }
        Poll::Pending
    }

    /// Whether the caller has yet to take bytes that are here.
    fn owes_client(&self) -> bool {
        self.written < self.to_client.len() || self.ready_down > 0
    }

    fn too_late(&self, now: u64, head_at: u64) -> ProxyError {
        let side = if self.owes_client() { Side::Downstream } else { Side::Upstream };
        if now >= head_at {
            ProxyError::new(Side::Upstream, Reason::RequestTimeout)
        } else if now >= self.total_at {
            ProxyError::new(side, Reason::TotalTimeout)
        } else if !self.request_done && self.waits_for_client && self.response.is_none() {
            ProxyError::new(Side::Downstream, Reason::RequestBodyTimeout)
        } else if self.response.is_some() && side == Side::Upstream {
            ProxyError::new(side, Reason::UpstreamIdleTimeout)
        } else {
            // Neither moves, or the caller does not read.
            ProxyError::new(side, Reason::IdleTimeout)
        }
    }
}

/// When the whole exchange has to be over.
pub(super) fn total_at(began: u64, route: &Route) -> u64 {
    began.saturating_add(millis(route.timeouts.total))
}

/// What an attempt that failed means for another one; `None` if there is none.
pub(super) fn ended(error: &ProxyError, reused: bool) -> Option<Ended> {
    match (error.retry, error.reason) {
        (Retry::Safe, _) => Some(Ended::Unprocessed),
        (Retry::OnReusedConnection, _) if reused => Some(Ended::Raced),
        (_, Reason::UpstreamReset | Reason::UpstreamClosedBeforeResponse) => Some(Ended::Broken),
        (_, Reason::UpstreamClosedReusedConnection) => Some(Ended::Broken),
        (_, Reason::RequestTimeout) => Some(Ended::TimedOut),
        _ => None,
    }
}

/// What an attempt says of its endpoint; `None` is nothing: the caller left, the proxy refused, is short of memory
/// itself, or lost the race for an idle connection.
pub(super) fn outcome(
    outcome: &Result<Outcome, ProxyError>,
    status: Option<u16>,
    saving: bool,
) -> Option<EndpointOutcome> {
    use Reason::{
        RequestTimeout, TotalTimeout, UpstreamBodyIncomplete, UpstreamBodyInvalid,
        UpstreamClosedBeforeResponse, UpstreamHeaderTooLarge, UpstreamIdleTimeout, UpstreamProtocolError,
        UpstreamReset,
    };
    match outcome {
        Ok(_) => status.map(EndpointOutcome::Answered),
        Err(error) if error.side != Side::Upstream => None,
        Err(error) => match error.reason {
            UpstreamClosedBeforeResponse
            | UpstreamReset
            | UpstreamProtocolError
            | UpstreamHeaderTooLarge
            | UpstreamBodyIncomplete
            | UpstreamBodyInvalid => Some(EndpointOutcome::NoAnswer),
            RequestTimeout | TotalTimeout | UpstreamIdleTimeout if !saving => Some(EndpointOutcome::NoAnswer),
            _ => None,
        },
    }
}

/// What exactly happened, for the reply; empty if the reason says it all, or the rest is for the log only.
pub(super) fn explain(error: &ProxyError, route: &Route) -> String {
    if error.reason == Reason::CallerNotAllowed {
        return String::new();
    }
    match (route.timeouts.about(error.reason), &error.source) {
        (Some((name, limit)), _) => format!("{} ({name}: {limit:?})", error.reason.sentence()),
        (None, Some(cause)) => format!("{} ({cause})", error.reason.sentence()),
        (None, None) => String::new(),
    }
}

/// A body that fills ordinary blocks is read in larger ones.
fn class_after(read: usize) -> usize {
    usize::from(read >= SIZES[0])
}

fn ready_or_pending(poll: Poll<Result<(), ProxyError>>) -> Result<(), ProxyError> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Ok(()),
    }
}

fn write(cx: &mut Task<'_>, stream: &mut Stream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(stream).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        other => Poll::Ready(other),
    }
}

fn upstream_io(error: io::Error) -> ProxyError {
    ProxyError::new(Side::Upstream, Reason::UpstreamReset).with_source(error)
}

fn client_gone(error: io::Error) -> ProxyError {
    ProxyError::new(Side::Downstream, Reason::ClientGone).with_source(error)
}

fn invalid_request_body(error: BodyError) -> ProxyError {
    ProxyError::new(Side::Downstream, error.reason()).with_source(error)
}

fn invalid_response_body(error: BodyError) -> ProxyError {
    ProxyError::new(Side::Upstream, error.upstream_reason()).with_source(error)
}
