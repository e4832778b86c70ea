//! One request and its response: where it came from, where it went, and what is between.
//!
//! ```text
//! caller's stream ──► up: Flow ──► leg (endpoint's stream)
//! caller's stream ◄── down: Flow ◄── leg
//! ```
//! Holds: what a flow keeps was received and is not released, so it is at most a stream's window; bytes go on in
//! order, trailers after all of them, and an end once; each direction ends by itself. Does not: read or write.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrider_http2::{ErrorCode, Head, SendError, Stream};
use outrider_proxy_core::balance::EndpointIndex;
use outrider_proxy_core::fault::{Abort, Fault};
use outrider_proxy_core::grpc::{Remaining, Said};
use outrider_proxy_core::reason::{ProxyError, Reason, Side};
use outrider_proxy_core::retry::REPLAY_LIMIT;
use outrider_proxy_core::route::{Made, Route};
use outrider_proxy_core::stats::Stopwatch;

use super::bridge::Bridged;
use super::fields;
use super::heads::Heads;
use super::upstream::Up;
use super::wire::{Sent, Wire};
use crate::buffers::Buffers;
use crate::config::HttpService;
use crate::http::attempts::Tries;
use crate::http::gates::Active;
use crate::mirror::Taps;
use crate::shared::{Running, Waiting};
use crate::timers::Timers;
use crate::upstream::{Picked, Upstream};
use crate::websocket::{Frames, Next};
use crate::worker::Http;

pub(super) const NEVER: u64 = u64::MAX;
/// How long an answer of our own may wait for the caller to take it.
const UNREAD: u64 = 60_000;

/// Body bytes kept so that a request which provably was not processed can be sent again.
const REPLAY: u64 = 16 << 10;

pub(super) fn millis(limit: Option<Duration>) -> u64 {
    limit.map_or(NEVER, |limit| u64::try_from(limit.as_millis()).unwrap_or(NEVER))
}

/// Bytes that could not go on yet.
#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    start: usize,
}

impl Queue {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    fn push(&mut self, more: &[u8], buffers: &Buffers) {
        if more.is_empty() {
            return;
        }
        if self.bytes.capacity() == 0 {
            self.bytes = buffers.take_scratch();
        }
        self.bytes.extend_from_slice(more);
    }

    fn consume(&mut self, count: usize, buffers: &Buffers) {
        self.start += count;
        if self.start >= self.bytes.len() {
            self.clear(buffers);
        } else if self.start >= self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    fn clear(&mut self, buffers: &Buffers) {
        self.start = 0;
        if self.bytes.capacity() > 0 {
            buffers.give_scratch(std::mem::take(&mut self.bytes));
        }
    }
}

/// One direction.
#[derive(Default)]
pub(super) struct Flow {
    queue: Queue,
    /// To follow the bytes.
    pub(super) trailers: Option<Box<Head>>,
    /// The source has said all.
    pub(super) ended: bool,
    /// The end has been passed on, or nobody wants to know.
    pub(super) done: bool,
    /// Why the other end cannot be sent the trailers. Without them the message would look whole, so it has to fail.
    pub(super) unfit: Option<SendError>,
    /// These bytes are a WebSocket's, on their way to the caller.
    pub(super) socket: Option<Box<Frames>>,
}

impl Flow {
    /// Whether anything waits to go on.
    pub(super) fn owes(&self) -> bool {
        !self.queue.bytes().is_empty()
    }

    /// Whether nothing but an end is left to be passed on.
    pub(super) fn is_only_end(&self) -> bool {
        self.ended && !self.owes() && self.trailers.is_none()
    }

    /// The bytes that wait.
    pub(super) fn held(&self) -> &[u8] {
        self.queue.bytes()
    }

    /// Takes bytes that cannot go anywhere yet.
    pub(super) fn hold(&mut self, fresh: &[u8], buffers: &Buffers) {
        self.queue.push(fresh, buffers);
    }

    /// Passes on what is at hand as far as it goes, `fresh` behind what waits, and the end if that is known. What goes
    /// on is released at its source.
    pub(super) fn pass(
        &mut self,
        fresh: &[u8],
        mut from: Option<(&mut Wire, Stream)>,
        to: (&mut Wire, Stream),
        buffers: &Buffers,
    ) {
        let (wire, stream) = to;
        let end = self.ended && self.trailers.is_none();
        wire.prepare(buffers);
        let sent = if self.socket.as_ref().is_some_and(|frames| !frames.is_passive()) {
            self.queue.push(fresh, buffers);
            self.speak(end, (wire, stream), buffers)
        } else if self.owes() {
            self.queue.push(fresh, buffers);
            let sent = wire.send(stream, self.queue.bytes(), end);
            let taken = sent.map_or(0, |sent| sent.taken);
            self.walk(None, taken);
            self.queue.consume(taken, buffers);
            sent
        } else {
            let sent = wire.send(stream, fresh, end);
            let taken = sent.map_or(0, |sent| sent.taken);
            self.walk(Some(fresh), taken);
            self.queue.push(fresh.get(taken..).unwrap_or_default(), buffers);
            sent
        };
        let Ok(sent) = sent else {
            // Who does not want it any more says so by itself.
            self.drop_rest(from, buffers);
            return;
        };
        self.done |= sent.ended;
        if let Some((wire, stream)) = &mut from {
            wire.core.release(*stream, sent.taken);
        }
        if !self.owes()
            && let Some(trailers) = &self.trailers
        {
            self.unfit = wire.core.send_trailers(stream, fields::trailers(trailers)).err().filter(is_unfit);
            self.done = true;
        }
    }

    /// Notes that so many bytes of a WebSocket went on: of `fresh`, or of what waits.
    fn walk(&mut self, fresh: Option<&[u8]>, taken: usize) {
        if let Some(frames) = &mut self.socket {
            let bytes = fresh.unwrap_or(self.queue.bytes());
            frames.wrote_theirs(bytes.get(..taken).unwrap_or_default());
        }
    }

    /// Passes on what waits, with a close frame of our own between two frames.
    fn speak(&mut self, end: bool, to: (&mut Wire, Stream), buffers: &Buffers) -> Result<Sent, SendError> {
        let (wire, stream) = to;
        let mut done = Sent::default();
        let Some(frames) = &mut self.socket else { return Ok(done) };
        while let Some(next) = frames.next(self.queue.bytes()) {
            let taken = match next {
                Next::Ours(bytes) => {
                    let sent = wire.send(stream, bytes, false)?;
                    frames.wrote_ours(sent.taken);
                    if sent.taken < bytes.len() {
                        return Ok(done);
                    }
                    continue;
                }
                Next::Theirs(length) => {
                    let bytes = self.queue.bytes().get(..length).unwrap_or_default();
                    let sent = wire.send(stream, bytes, false)?;
                    frames.wrote_theirs(bytes.get(..sent.taken).unwrap_or_default());
                    if sent.taken < length {
                        done.taken += sent.taken;
                        self.queue.consume(sent.taken, buffers);
                        return Ok(done);
                    }
                    length
                }
                Next::Discard => self.queue.bytes().len(),
            };
            done.taken += taken;
            self.queue.consume(taken, buffers);
        }
        if end {
            done.ended = wire.send(stream, &[], true)?.ended;
        }
        Ok(done)
    }

    /// So many of the bytes that wait went on by another way than [`Self::pass`].
    pub(super) fn took(&mut self, count: usize, from: (&mut Wire, Stream), buffers: &Buffers) {
        let (wire, stream) = from;
        self.queue.consume(count, buffers);
        wire.core.release(stream, count);
    }

    /// Nobody wants what is left: it is released, and so is what comes.
    pub(super) fn drop_rest(&mut self, from: Option<(&mut Wire, Stream)>, buffers: &Buffers) {
        if let Some((wire, stream)) = from {
            wire.core.release(stream, self.queue.bytes().len());
        }
        self.queue.clear(buffers);
        self.done = true;
    }

    /// Forgets what waits, whose source is gone.
    pub(super) fn clear(&mut self, buffers: &Buffers) {
        self.queue.clear(buffers);
    }
}

/// Whether this is about the fields, and not about a stream that is over.
pub(super) const fn is_unfit(error: &SendError) -> bool {
    matches!(error, SendError::TooLarge | SendError::Field(_))
}

/// The endpoint's end.
pub(super) struct Leg {
    /// Its connection.
    pub(super) up: Rc<Up>,
    /// The stream there.
    pub(super) stream: Stream,
    /// It was not the first stream of that connection.
    pub(super) reused: bool,
}

impl Leg {
    /// Ends it. For tasks of callers only: the connection must not be borrowed.
    pub(super) fn cut(self, code: ErrorCode) {
        let mut state = self.up.state.borrow_mut();
        state.unlink(self.stream, code);
        state.wire.wake();
    }
}

/// Moments and limits on the worker's clock, in milliseconds.
pub(super) struct Times {
    pub(super) began: Instant,
    pub(super) began_ms: u64,
    pub(super) progress_at: u64,
    pub(super) idle_ms: u64,
    head_ms: u64,
    /// For the head of the response.
    pub(super) head_at: u64,
    total_at: u64,
    /// The caller's own deadline.
    caller_at: u64,
    /// For a connection that has room.
    pub(super) room_at: u64,
    /// When it goes on after a wait on purpose, or what is kept back does.
    pub(super) hold_at: u64,
    /// When the request was with the endpoint.
    asked: Option<Instant>,
    /// When the head of the response came, if it was kept back.
    pub(super) came: Option<Instant>,
}

/// See the module.
pub(super) struct Exchange {
    /// The caller's end.
    pub(super) stream: Stream,
    /// The request: to be sent again, and to be asked about again when access changes.
    pub(super) request: Option<Box<Head>>,
    pub(super) service: Option<Http>,
    /// Place in the service's table.
    pub(super) route: Option<usize>,
    pub(super) upstream: Option<Rc<Upstream>>,
    pub(super) picked: Option<Picked>,
    pub(super) leg: Option<Leg>,
    /// Instead, the endpoint's end of a WebSocket in HTTP/1.1.
    pub(super) bridge: Option<Bridged>,
    /// It is in the queue for a connection to this endpoint.
    pub(super) waits: Option<EndpointIndex>,
    /// Its place among those that wait.
    pub(super) waiting: Option<Waiting>,
    /// Its place among those of the cluster.
    pub(super) running: Option<Running>,
    pub(super) tries: Tries,
    /// What its route hashes it by.
    pub(super) key: Option<u64>,
    /// What that made for a cookie.
    pub(super) made: Option<Box<Made>>,
    /// Copies that want its body.
    pub(super) taps: Option<Box<Taps>>,
    /// The fault that is done to it.
    pub(super) fault: Option<Active<Arc<Fault>>>,
    /// What it is answered with after that.
    pub(super) abort: Option<Abort>,
    /// Address of the endpoint tried last.
    pub(super) address: Option<SocketAddr>,
    /// Body bytes that came.
    received: u64,
    /// All of them, as long as they are few and there is no response.
    replay: Vec<u8>,
    pub(super) up: Flow,
    pub(super) down: Flow,
    /// The head of a response that is kept back, see [`super::kept`].
    pub(super) kept: Option<Box<Head>>,
    /// A byte of a final response is on its way to the caller.
    pub(super) started: bool,
    /// Interim responses that came.
    pub(super) interim: u8,
    /// It was answered here, so nothing is asked for any more.
    pub(super) is_answered: bool,
    pub(super) grpc: bool,
    /// The status of gRPC that the caller is told.
    pub(super) said: Option<Said>,
    /// It asks for a stream of another protocol (RFC 8441).
    pub(super) connect: bool,
    pub(super) head_request: bool,
    pub(super) idempotent: bool,
    pub(super) times: Times,
    pub(super) own: Stopwatch,
}

impl Exchange {
    /// A request that has just arrived.
    pub(super) fn new(stream: Stream, request: Box<Head>, end: bool, timers: &Timers) -> Self {
        let now = timers.lately();
        let method = request.method();
        let head_request = method == b"HEAD";
        // Like GET, which it is in HTTP/1.1.
        let connect = request.protocol().is_some();
        let idempotent =
            connect || matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE");
        // A status of 200 would be a tunnel.
        let grpc = method != b"CONNECT" && fields::is_grpc(&request);
        let mut own = Stopwatch::default();
        own.start(now);
        Self {
            stream,
            request: Some(request),
            service: None,
            route: None,
            upstream: None,
            picked: None,
            leg: None,
            bridge: None,
            waits: None,
            waiting: None,
            running: None,
            tries: Tries::default(),
            key: None,
            made: None,
            taps: None,
            fault: None,
            abort: None,
            address: None,
            received: 0,
            replay: Vec::new(),
            up: Flow { ended: end, ..Flow::default() },
            down: Flow::default(),
            interim: 0,
            kept: None,
            started: false,
            is_answered: false,
            grpc,
            said: None,
            connect,
            head_request,
            idempotent,
            times: Times {
                began: timers.instant(),
                began_ms: now,
                progress_at: now,
                idle_ms: NEVER,
                head_ms: NEVER,
                head_at: NEVER,
                total_at: NEVER,
                caller_at: NEVER,
                room_at: NEVER,
                hold_at: NEVER,
                asked: None,
                came: None,
            },
            own,
        }
    }

    /// Its route, once there is one.
    pub(super) fn route(&self) -> Option<&Route> {
        self.service.as_ref()?.routes.routes().get(self.route?)
    }

    /// Takes the limits of its route and of its caller.
    pub(super) fn limit(&mut self, service: &HttpService, route: &Route) {
        let times = &mut self.times;
        times.idle_ms = millis(route.timeouts.idle.or(service.idle));
        times.head_ms = millis(route.timeouts.response_head);
        times.total_at = times.began_ms.saturating_add(millis(route.timeouts.total));
        let given = self.request.as_ref().filter(|_| self.grpc).and_then(|head| fields::timeout(head));
        times.caller_at = times.began_ms.saturating_add(millis(given));
    }

    /// What is left of the caller's deadline, if some of it is used up already.
    pub(super) fn remaining(&self, now: u64) -> Option<Remaining> {
        let Times { caller_at, began_ms, .. } = self.times;
        (caller_at != NEVER && now > began_ms).then(|| Remaining::new(caller_at.saturating_sub(now)))
    }

    /// When the next of its limits has passed.
    pub(super) fn due_at(&self) -> u64 {
        let Times { progress_at, idle_ms, head_at, total_at, caller_at, room_at, hold_at, .. } = self.times;
        let head_at = if self.started { NEVER } else { head_at };
        let idle_at = progress_at.saturating_add(idle_ms);
        idle_at.min(head_at).min(total_at).min(caller_at).min(room_at).min(hold_at)
    }

    /// Which limit has passed.
    pub(super) fn too_late(&self, now: u64) -> ProxyError {
        let Times { head_at, total_at, caller_at, room_at, .. } = self.times;
        let side = if self.down.owes() { Side::Downstream } else { Side::Upstream };
        if now >= caller_at {
            ProxyError::new(side, Reason::DeadlineExceeded)
        } else if !self.started && now >= head_at {
            ProxyError::new(Side::Upstream, Reason::RequestTimeout)
        } else if now >= total_at {
            ProxyError::new(side, Reason::TotalTimeout)
        } else if now >= room_at {
            ProxyError::new(Side::Local, Reason::OverloadPending)
        } else if !self.up.ended && !self.up.owes() && !self.started && !self.connect {
            ProxyError::new(Side::Downstream, Reason::RequestBodyTimeout)
        } else if self.started && side == Side::Upstream && self.up.ended && !self.is_socket() {
            ProxyError::new(side, Reason::UpstreamIdleTimeout)
        } else {
            // Neither moves, or the caller does not read.
            ProxyError::new(side, Reason::IdleTimeout)
        }
    }

    /// Milliseconds until the time of the whole exchange is over.
    pub(super) fn left_ms(&self, now: u64) -> u64 {
        self.times.total_at.min(self.times.caller_at).saturating_sub(now)
    }

    /// What the limit is called that a failure of this reason is about, and the limit.
    pub(super) fn limit_of(&self, reason: Reason) -> Option<(&'static str, Duration)> {
        match reason {
            Reason::DeadlineExceeded => {
                let asked = self.times.caller_at.saturating_sub(self.times.began_ms);
                Some(("limit", Duration::from_millis(asked)))
            }
            _ => self.route()?.timeouts.about(reason),
        }
    }

    /// A byte went on.
    pub(super) fn progress(&mut self, now: u64) {
        self.times.progress_at = now;
    }

    /// The request is with the endpoint: from now on its response is waited for.
    pub(super) fn asked(&mut self, timers: &Timers) {
        if self.times.asked.is_none() {
            self.times.asked = Some(timers.instant());
            self.times.head_at = timers.lately().saturating_add(self.times.head_ms);
        }
    }

    /// It was answered here: what is left is that the caller reads it.
    pub(super) fn answered(&mut self, now: u64) {
        self.is_answered = true;
        let times = &mut self.times;
        (times.total_at, times.caller_at, times.head_at) = (NEVER, NEVER, NEVER);
        (times.room_at, times.hold_at) = (NEVER, NEVER);
        times.progress_at = now;
        times.idle_ms = times.idle_ms.min(UNREAD);
    }

    /// It is a WebSocket from now on, which may last as long as something moves.
    pub(super) fn becomes_socket(&mut self, idle: Option<Duration>) {
        self.down.socket = Some(Box::default());
        let times = &mut self.times;
        (times.total_at, times.caller_at) = (NEVER, NEVER);
        times.idle_ms = millis(idle);
    }

    /// Whether it became one.
    pub(super) fn is_socket(&self) -> bool {
        self.down.socket.is_some()
    }

    /// How long the endpoint took to answer; nothing if it did so before it had been asked.
    pub(super) fn waited(&self, now: Instant) -> Duration {
        let now = self.times.came.unwrap_or(now);
        self.times.asked.map_or(Duration::ZERO, |asked| now.saturating_duration_since(asked))
    }

    /// Everything is to be sent again, from the beginning. Bytes that were released before are so no second time:
    /// no more is released than there is.
    pub(super) fn ask_again(&mut self, buffers: &Buffers) {
        (self.times.asked, self.times.came) = (None, None);
        self.times.head_at = NEVER;
        self.times.hold_at = NEVER;
        self.kept = None;
        (self.up.done, self.up.unfit) = (false, None);
        self.up.queue.clear(buffers);
        self.up.queue.push(&self.replay, buffers);
    }

    /// Remembers body bytes that came.
    pub(super) fn remember(&mut self, fresh: &[u8], buffers: &Buffers) {
        self.received += fresh.len() as u64;
        let kept = match self.route() {
            Some(_) if !self.tries.repeatable => REPLAY,
            _ => REPLAY_LIMIT as u64,
        };
        if self.started || self.received > kept {
            self.forget(buffers);
            return;
        }
        if self.replay.capacity() == 0 && !fresh.is_empty() {
            self.replay = buffers.take_scratch();
        }
        self.replay.extend_from_slice(fresh);
    }

    /// It will not be sent again. Its head is still asked about when access changes.
    pub(super) fn forget(&mut self, buffers: &Buffers) {
        if let Some(head) = &mut self.request {
            Heads::settle(head);
        }
        if self.replay.capacity() > 0 {
            buffers.give_scratch(std::mem::take(&mut self.replay));
        }
    }

    /// Whether everything that came is still here, and the caller has seen nothing.
    pub(super) fn is_whole(&self) -> bool {
        !self.started && self.request.is_some() && self.received == self.replay.len() as u64
    }

    /// Whether both directions have come to their end.
    pub(super) fn is_over(&self) -> bool {
        self.up.done && self.down.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a request under way takes beside its head and what it holds. A connection has as many places as it ever had
    /// requests at once.
    #[test]
    fn an_exchange_is_small() {
        let size = size_of::<Option<Exchange>>();
        println!("exchange {size}");
        assert!(size <= 640, "{size}");
    }
}
