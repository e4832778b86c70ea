//! A WebSocket that comes in as a stream (RFC 8441) and goes on as an Upgrade of HTTP/1.1, on a connection of its own.
//!
//! ```text
//! caller's stream ──► exchange.up ──► connection        DATA are bytes, END_STREAM is FIN, RST_STREAM is RST
//! caller's stream ◄── exchange.down ◄── connection
//! ```
//! It is so where a cluster speaks HTTP/1.1, and where an endpoint without TLS speaks HTTP/2 but did not say that it takes
//! WebSockets in it: many a server knows both versions on one port, and WebSockets only in the older. Key and answer
//! (RFC 6455 section 4.1) are made and verified here; any other success than 101 is none, because the caller would take it
//! for one. A tunnel is a task, since its connection is nobody else's. Holds: nothing is read that the caller's stream has
//! no room for; what the caller sends early waits until the endpoint has switched. Does not: look at frames, limit time
//! (the exchange does), or use a connection twice.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context as Task, Poll, Waker};

use outrider_http2::{ErrorCode, Field, ResetCause, SendError, Stream};
use outrider_proxy_core::balance::EndpointIndex;
use outrider_proxy_core::http1::body::BodyScanner;
use outrider_proxy_core::http1::fields::HeaderKind;
use outrider_proxy_core::http1::head::Asked;
use outrider_proxy_core::http1::{HeaderEdits, Limits, Parsed, ResponseHead};
use outrider_proxy_core::outlier::Outcome;
use outrider_proxy_core::reason::{ProxyError, Reason, Side};
use outrider_proxy_core::retry::Ended;
use outrider_proxy_core::retry::hops::{self, ATTEMPTS};
use outrider_proxy_core::route::PathRewrite;
use tokio::io::AsyncWrite;

use super::downstream::{Down, DownState, find, unfit_response};
use super::exchange::Exchange;
use super::fields::{self, View};
use super::reply::Failure;
use super::request::{attempt_of, unsendable};
use crate::buffers::{Filled, SIZES};
use crate::http::UPGRADE;
use crate::shared::Places as _;
use crate::stream::ResetWatch;
use crate::upstream::{Connection, Upstream};
use crate::websocket;

/// Interim responses to one request.
pub(super) const MAX_INTERIM: u8 = 32;

/// What the exchange and its task know of each other.
#[derive(Default)]
struct Bridge {
    over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Bridge {
    fn register(&self, cx: &Task<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// The exchange's hold on the task, which ends with it.
pub(super) struct Bridged(Rc<Bridge>);

impl Bridged {
    /// There are bytes, or room for some.
    pub(super) fn wake(&self) {
        self.0.wake();
    }
}

impl Drop for Bridged {
    fn drop(&mut self) {
        self.0.over.set(true);
        self.0.wake();
    }
}

impl Down {
    /// Leads a WebSocket to its endpoint in HTTP/1.1.
    ///
    /// # Errors
    /// What it is to be answered with.
    pub(super) fn bridge(self: &Rc<Self>, exchange: &mut Exchange) -> Result<(), Failure> {
        let (Some(upstream), Some(picked)) = (exchange.upstream.clone(), &exchange.picked) else {
            return Ok(());
        };
        let (endpoint, address) = (picked.endpoint(), picked.address());
        let config = upstream.config();
        // There only what was agreed on in the handshake is spoken.
        if config.version.http2().is_some() && config.tls.is_some() {
            return Err(ProxyError::new(Side::Upstream, Reason::UpstreamNoWebsocket).into());
        }
        exchange.own.pause(self.worker.timers.lately());
        exchange.waiting = upstream.shared().wait(&config.limits);
        if exchange.waiting.is_none() {
            return Err(ProxyError::new(Side::Local, Reason::OverloadPending).into());
        }
        exchange.waits = Some(endpoint);
        let bridge = Rc::<Bridge>::default();
        exchange.bridge = Some(Bridged(Rc::clone(&bridge)));
        tokio::task::spawn_local(run(
            Rc::clone(self),
            exchange.stream,
            upstream,
            (endpoint, address),
            bridge,
        ));
        Ok(())
    }
}

async fn run(
    down: Rc<Down>,
    stream: Stream,
    upstream: Rc<Upstream>,
    (endpoint, address): (EndpointIndex, SocketAddr),
    bridge: Rc<Bridge>,
) {
    let connected = Box::pin(connect(&down, &upstream, endpoint, address, &bridge)).await;
    let connection = match connected {
        None => return,
        Some(Ok(connection)) => connection,
        Some(Err(error)) => return down.could_not_connect(stream, endpoint, &error, true),
    };
    let key = websocket::key(down.worker.random(), down.worker.random());
    let mut out = down.worker.buffers.take_scratch();
    if !begin(&down, stream, &upstream, &key, &mut out) {
        return;
    }
    let mut driver = Driver {
        stream,
        bridge: &bridge,
        connection,
        guess: upstream.version().http2().is_some(),
        key,
        out,
        written: 0,
        watch: ResetWatch::default(),
        head: Box::default(),
        interim: 0,
        phase: Phase::Head,
        class: 0,
        said_all: false,
        heard_all: false,
        down: &down,
    };
    poll_fn(|cx| driver.poll(cx)).await;
    let Driver { mut connection, out, phase, said_all, heard_all, .. } = driver;
    // A whole response is an end as well.
    if !(heard_all && (said_all || matches!(phase, Phase::Body(_)))) {
        connection.stream.reset_on_close();
    }
    if out.capacity() > 0 {
        down.worker.buffers.give_scratch(out);
    }
    connection.inbox.clear(&down.worker.buffers);
}

/// `None`: nobody waits for it any more.
async fn connect(
    down: &Down,
    upstream: &Rc<Upstream>,
    endpoint: EndpointIndex,
    address: SocketAddr,
    bridge: &Bridge,
) -> Option<Result<Connection, ProxyError>> {
    let alarm = down.worker.timers.alarm();
    let config = upstream.config();
    let busy = match upstream.try_busy() {
        Some(busy) => busy,
        None => {
            alarm.set(Some(config.connect_timeout));
            let mut turn = pin!(upstream.shared().busy(config.limits));
            let waited = poll_fn(|cx| {
                bridge.register(cx);
                if bridge.over.get() {
                    return Poll::Ready(None);
                }
                if let Poll::Ready(busy) = turn.as_mut().poll(cx) {
                    return Poll::Ready(Some(Ok(busy)));
                }
                let full = || ProxyError::new(Side::Local, Reason::OverloadConnections);
                alarm.poll_rung(cx).map(|()| Some(Err(full())))
            });
            match waited.await? {
                Ok(busy) => busy,
                Err(full) => return Some(Err(full)),
            }
        }
    };
    let mut connecting = pin!(upstream.connect_to(endpoint, address, &alarm, &down.worker));
    let connected = poll_fn(|cx| {
        bridge.register(cx);
        if bridge.over.get() {
            return Poll::Ready(None);
        }
        connecting.as_mut().poll(cx).map(Some)
    });
    Some(connected.await?.map(|connection| connection.with(busy)))
}

/// Writes the head of the request to `out`. `false`: it goes nowhere.
fn begin(down: &Rc<Down>, stream: Stream, upstream: &Upstream, key: &str, out: &mut Vec<u8>) -> bool {
    let mut state = down.state.borrow_mut();
    let Some(exchange) = find(&mut state.exchanges, stream) else { return false };
    exchange.waits = None;
    exchange.waiting = None;
    exchange.progress(down.worker.timers.now());
    let written = write_request(down, exchange, key, out);
    if let Err(error) = written {
        down.fail(&mut state, stream, unsendable(error));
        state.wire.wake();
        return false;
    }
    upstream.stats.borrow_mut().requests += 1;
    state.note_due(stream);
    true
}

/// What a stream's fields are in HTTP/1.1.
fn write_request(down: &Down, exchange: &Exchange, key: &str, out: &mut Vec<u8>) -> Result<(), SendError> {
    let (Some(head), Some(route), Some(service)) = (&exchange.request, exchange.route(), &exchange.service)
    else {
        return Err(SendError::State);
    };
    let edits = &route.request_headers;
    let certificate = service.client_cert(&down.xfcc);
    let mut path = None;
    if route.rewrite.path != PathRewrite::Keep {
        let target: &mut Vec<u8> = path.insert(Vec::new());
        let view = View::new(head, &down.worker.buffers);
        route.rewrite.target(&route.matches.path, &view, target).map_err(|_| SendError::TooLarge)?;
    }
    let host = route.rewrite.host.as_deref().map(str::as_bytes);
    let line = fields::line(head, edits, host, path.as_deref());
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
    put(&[
        b"GET ",
        line.path.unwrap_or(b"/"),
        b" HTTP/1.1\r\nHost: ",
        line.authority.unwrap_or_default(),
        b"\r\n",
    ]);
    let is = |field: &Field<'_>, name: &[u8]| field.name.eq_ignore_ascii_case(name);
    let mut version = false;
    let count = attempt_of(exchange, head, &down.worker.buffers);
    let count = count.as_ref().map(hops::Count::as_bytes);
    let fields = fields::request(head, edits, certificate, None, count);
    for field in fields.clone() {
        version |= is(&field, b"sec-websocket-version");
        // Pieces of the cookie are one field there, and the rest is said by this hop for itself.
        let apart: [&[u8]; 4] = [b"cookie", b"te", b"expect", b"sec-websocket-key"];
        if !apart.into_iter().any(|name| is(&field, name)) {
            put(&[field.name, b": ", field.value, b"\r\n"]);
        }
    }
    let mut between: &[u8] = b"cookie: ";
    for piece in fields.filter(|field| is(field, b"cookie")) {
        put(&[between, piece.value]);
        between = b"; ";
    }
    if between == b"; " {
        put(&[b"\r\n"]);
    }
    if !version {
        put(&[b"Sec-WebSocket-Version: 13\r\n"]);
    }
    put(&[b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ", key.as_bytes(), b"\r\n\r\n"]);
    Ok(())
}

/// How far it is.
enum Phase {
    /// The answer has not come.
    Head,
    /// It was another one than to switch.
    Body(BodyScanner),
    /// What comes is the WebSocket's.
    Socket,
}

/// What broke.
enum Broken {
    /// The connection.
    Lost(io::Error),
    /// A rule.
    Failed(Failure),
    /// The endpoint answered, and the caller cannot be told so.
    Unfit(Failure),
    /// It is over, or tried again.
    Over,
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

fn failure(reason: Reason, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    let error = ProxyError::new(Side::Upstream, reason).with_source(cause);
    let cause = error.source.as_ref().map(ToString::to_string).unwrap_or_default();
    Failure { detail: format!("{} ({cause})", reason.sentence()), ..error.into() }
}

fn wrong(reason: Reason, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Broken {
    Broken::Failed(failure(reason, cause))
}

/// What drives it.
struct Driver<'a> {
    down: &'a Rc<Down>,
    stream: Stream,
    bridge: &'a Bridge,
    connection: Connection,
    /// Nobody said that HTTP/1.1 is spoken there.
    guess: bool,
    key: String,
    /// The head of the request, until all of it is written.
    out: Vec<u8>,
    written: usize,
    /// For after the endpoint's end.
    watch: ResetWatch,
    head: Box<ResponseHead>,
    interim: u8,
    phase: Phase,
    /// Size class of reads.
    class: usize,
    /// Our end of sending was said.
    said_all: bool,
    /// All that the endpoint sends was read.
    heard_all: bool,
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut Task<'_>) -> Poll<()> {
        self.bridge.register(cx);
        let now = self.down.worker.timers.now();
        if self.bridge.over.get() {
            return Poll::Ready(());
        }
        let mut state = self.down.state.borrow_mut();
        let moved = self.turn(cx, &mut state, now);
        let stream = self.stream;
        // That it does not understand HTTP/1.1 is no fault of an endpoint to which callers speak HTTP/2.
        let at_fault = !(self.guess && matches!(self.phase, Phase::Head));
        match moved {
            Ok(moved) => {
                if let Some(exchange) = find(&mut state.exchanges, stream).filter(|_| moved) {
                    exchange.progress(now);
                    state.note_due(stream);
                    state.wire.wake();
                }
                self.down.settle(&mut state, stream);
            }
            // Whoever tries again is to be called.
            Err(Broken::Over) => state.wire.wake(),
            Err(Broken::Lost(error)) => {
                let code = if at_fault { ErrorCode::CANCEL } else { ErrorCode::NO_ERROR };
                let lost = (code, ResetCause::Lost);
                self.down.leg_reset(&mut state, stream, lost, false, Some(&error.to_string()));
                state.note_due(stream);
                state.wire.wake();
            }
            Err(Broken::Failed(failure)) => {
                if let Some(exchange) = find(&mut state.exchanges, stream).filter(|_| at_fault) {
                    self.down.report(exchange, Outcome::NoAnswer);
                }
                self.down.fail(&mut state, stream, failure);
                state.wire.wake();
            }
            Err(Broken::Unfit(failure)) => {
                self.down.fail(&mut state, stream, failure);
                state.wire.wake();
            }
        }
        if self.bridge.over.get() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Both directions, as far as they go. Whether a byte did.
    fn turn(&mut self, cx: &mut Task<'_>, state: &mut DownState, now: u64) -> Result<bool, Broken> {
        let mut moved = false;
        loop {
            let up = self.poll_up(cx, state)?;
            let down = self.poll_down(cx, state, now)?;
            moved |= up | down;
            // A switch lets go what waited for it.
            if !down {
                break;
            }
        }
        // The endpoint has ended its sending, and may still be lost.
        if self.heard_all
            && !self.said_all
            && matches!(self.phase, Phase::Socket)
            && self.watch.poll(cx, &self.connection.stream).is_ready()
        {
            return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
        }
        Ok(moved)
    }

    fn poll_up(&mut self, cx: &mut Task<'_>, state: &mut DownState) -> Result<bool, Broken> {
        let DownState { wire, exchanges, .. } = state;
        let exchange = find(exchanges, self.stream).ok_or(Broken::Over)?;
        let buffers = &self.down.worker.buffers;
        let transport = &mut self.connection.stream;
        let mut moved = false;
        loop {
            let bytes = match self.phase {
                _ if !self.out.is_empty() => self.out.get(self.written..).unwrap_or_default(),
                Phase::Socket if !exchange.up.done => exchange.up.held(),
                _ => b"",
            };
            if bytes.is_empty() {
                if matches!(self.phase, Phase::Socket) && exchange.up.ended && !exchange.up.done {
                    match Pin::new(transport).poll_shutdown(cx) {
                        Poll::Ready(ended) => ended?,
                        Poll::Pending => return Ok(moved),
                    }
                    exchange.up.done = true;
                    self.said_all = true;
                } else if let Poll::Ready(flushed) = Pin::new(transport).poll_flush(cx) {
                    flushed?;
                }
                return Ok(moved);
            }
            let n = match Pin::new(&mut *transport).poll_write(cx, bytes) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Poll::Ready(n) => n?,
            };
            moved = true;
            if !self.out.is_empty() {
                self.written += n;
                if self.written >= self.out.len() {
                    exchange.asked(&self.down.worker.timers);
                    // What follows may take days.
                    buffers.give_scratch(std::mem::take(&mut self.out));
                }
            } else {
                exchange.up.took(n, (wire, self.stream), buffers);
            }
        }
    }

    fn poll_down(&mut self, cx: &mut Task<'_>, state: &mut DownState, now: u64) -> Result<bool, Broken> {
        let buffers = Rc::clone(&self.down.worker.buffers);
        let mut moved = false;
        loop {
            let exchange = find(&mut state.exchanges, self.stream).ok_or(Broken::Over)?;
            if self.heard_all || exchange.down.owes() {
                return Ok(moved);
            }
            if !self.connection.inbox.is_empty() && self.take(state, now)? {
                moved = true;
                continue;
            }
            let Connection { stream, inbox, .. } = &mut self.connection;
            inbox.prefer(self.class, &buffers);
            match inbox.poll_fill(cx, stream, &buffers, self.class) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(Filled::Bytes(n))) => self.class = usize::from(n >= SIZES[0]),
                Poll::Ready(Ok(Filled::End)) => {
                    moved = true;
                    self.end(state)?;
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
        }
    }

    /// Passes on what was read. `false`: more is needed for that.
    fn take(&mut self, state: &mut DownState, now: u64) -> Result<bool, Broken> {
        let buffers = &self.down.worker.buffers;
        let inbox = &mut self.connection.inbox;
        if let Phase::Head = self.phase {
            let parsed = self.head.parse(inbox.bytes(), &Limits::default());
            let parsed = parsed.map_err(|error| wrong(error.upstream_reason(), error))?;
            if let Parsed::Complete(_) = parsed {
                self.answer(state, now)?;
                return Ok(true);
            }
            if inbox.is_full() && !inbox.grow(buffers) {
                return Err(wrong(Reason::UpstreamHeaderTooLarge, "the head does not fit"));
            }
            return Ok(false);
        }
        let DownState { wire, exchanges, .. } = state;
        let exchange = find(exchanges, self.stream).ok_or(Broken::Over)?;
        let to = (wire, self.stream);
        let bytes = inbox.bytes();
        let used = match &mut self.phase {
            Phase::Body(body) => {
                let mut content = Vec::new();
                let scan = body
                    .scan_payload(bytes, |range| {
                        content.extend_from_slice(bytes.get(range).unwrap_or_default())
                    })
                    .map_err(|error| wrong(Reason::UpstreamBodyInvalid, error))?;
                exchange.down.ended = scan.ended;
                exchange.down.pass(&content, None, to, buffers);
                self.heard_all = scan.ended;
                // What follows a whole response is nobody's.
                if scan.ended { bytes.len() } else { scan.consumed }
            }
            _ => {
                exchange.down.pass(bytes, None, to, buffers);
                bytes.len()
            }
        };
        inbox.consume(used);
        Ok(true)
    }

    /// The endpoint sends no more.
    fn end(&mut self, state: &mut DownState) -> Result<(), Broken> {
        match &self.phase {
            Phase::Head => return Err(io::Error::other("the endpoint closed the connection").into()),
            Phase::Body(body) => {
                body.finish().map_err(|error| wrong(Reason::UpstreamBodyIncomplete, error))?;
            }
            Phase::Socket => {}
        }
        self.heard_all = true;
        let DownState { wire, exchanges, .. } = state;
        let exchange = find(exchanges, self.stream).ok_or(Broken::Over)?;
        exchange.down.ended = true;
        exchange.down.pass(&[], None, (wire, self.stream), &self.down.worker.buffers);
        Ok(())
    }

    /// A head is whole.
    fn answer(&mut self, state: &mut DownState, now: u64) -> Result<(), Broken> {
        let (down, stream) = (self.down, self.stream);
        let DownState { wire, exchanges, .. } = &mut *state;
        let exchange = find(exchanges, stream).ok_or(Broken::Over)?;
        let known = self.connection.is_mutual();
        let (head, inbox) = (&*self.head, &mut self.connection.inbox);
        let bytes = inbox.bytes();
        let status = head.status();
        if head.is_interim() {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(wrong(Reason::UpstreamProtocolError, "too many interim responses"));
            }
            // Whoever cannot take one gets the next, and who reads nothing does without them.
            if wire.may_read() {
                let _ = wire.core.send_response(stream, status, lines(head, bytes, false, None), false);
            }
            inbox.consume(head.length());
            return Ok(());
        }
        exchange.own.start(now);
        let framing = head.framing(&Asked { head: false, upgrade: true });
        let framing = framing.map_err(|error| wrong(error.upstream_reason(), error))?;
        let switched = status == 101;
        if switched {
            verify(head, bytes, &self.key).map_err(|cause| wrong(Reason::UpstreamProtocolError, cause))?;
        }
        // By this one an endpoint says that it knows HTTP/2 only.
        if !(self.guess && status == 505) {
            down.report(exchange, Outcome::Answered(status));
        }
        if status / 100 == 2 {
            let cause = format!("it answered {status} instead of 101");
            return Err(Broken::Unfit(failure(Reason::UpstreamNoWebsocket, cause)));
        }
        let failed = exchange.route().is_some_and(|route| route.retry.wants(status));
        // Whoever is behind us has repeated it as often as that makes sense.
        let settled = failed && head.values(bytes, ATTEMPTS.as_bytes()).next().is_some();
        // A proxy there vouches that it reached nobody with it, and it is known who that is.
        let vain = known && status >= 500 && head.is_unprocessed();
        if vain && down.try_again(exchange, Ended::InVain, now)
            || failed && !settled && down.try_again(exchange, Ended::Status(status), now)
        {
            state.note_due(stream);
            return Err(Broken::Over);
        }
        let mut more = down.worker.buffers.take_scratch();
        if let (Some(made), Some(route)) = (&exchange.made, exchange.route()) {
            route.set_cookie(**made, &mut more);
        }
        if let Some(attempts) = exchange.tries.told().filter(|_| failed && !settled) {
            attempts.write_line(&mut more);
        }
        // RFC 8441 section 5: 200 is what 101 is there.
        let told = if switched { 200 } else { status };
        let body = BodyScanner::new(framing);
        let over = !switched && body.is_done();
        let edits = exchange.route().map(|route| &route.response_headers);
        let fields = lines(head, bytes, !switched && !head.is_chunked(), edits).chain(fields::lines(&more));
        let sent = wire.core.send_response(stream, told, fields, over);
        down.worker.buffers.give_scratch(more);
        sent.map_err(|error| Broken::Unfit(unfit_response(error)))?;
        inbox.consume(head.length());
        down.responded(exchange, told, now);
        if switched {
            self.phase = Phase::Socket;
        } else {
            exchange.down.ended = over;
            exchange.down.done = over;
            self.heard_all = over;
            self.phase = Phase::Body(body);
            // No more of it is wanted.
            exchange.up.drop_rest(Some((wire, stream)), &down.worker.buffers);
        }
        state.note_socket(stream);
        if switched {
            *self.head = ResponseHead::default();
        }
        Ok(())
    }
}

/// Whether the endpoint has switched to what it was asked for (RFC 6455 section 4.1).
fn verify(head: &ResponseHead, bytes: &[u8], key: &str) -> Result<(), &'static str> {
    let mut to = head.values(bytes, b"upgrade");
    if !to.next().is_some_and(|to| to.eq_ignore_ascii_case(UPGRADE)) || to.next().is_some() {
        return Err("it switched to something else than websocket");
    }
    let mut answers = head.values(bytes, b"sec-websocket-accept");
    if answers.next() != Some(websocket::accept(key).as_bytes()) || answers.next().is_some() {
        return Err("its Sec-WebSocket-Accept is not the answer to our key");
    }
    Ok(())
}

/// The fields of a response of HTTP/1.1 for a stream. `framed`: with its length.
fn lines<'a>(
    head: &'a ResponseHead,
    bytes: &'a [u8],
    framed: bool,
    edits: Option<&'a HeaderEdits>,
) -> impl Iterator<Item = Field<'a>> + Clone {
    let kept = head.lines().iter().filter_map(move |line| {
        let (name, value) = (line.name.of(bytes), line.value.of(bytes));
        let kept = match line.kind {
            HeaderKind::Other
            | HeaderKind::Host
            | HeaderKind::Expect
            | HeaderKind::FramingLookAlike
            | HeaderKind::ForwardedClientCert => !name.eq_ignore_ascii_case(b"sec-websocket-accept"),
            HeaderKind::ContentLength => framed,
            _ => false,
        };
        (kept && !edits.is_some_and(|edits| edits.drops(name))).then(|| Field::from((name, value)))
    });
    kept.chain(edits.into_iter().flat_map(HeaderEdits::fields).map(Field::from))
}
