//! HTTP/1.1: a connection's requests, one after the other.
//!
//! [`serve`] is the life of a connection, [`Request::serve`] that of a request, in the order of its phases;
//! [`exchange`] moves the bytes. Holds: one task per connection, no task or allocation per request; a response
//! ends up with the request it answers or not at all; after anything that leaves the position in a stream
//! unclear, that connection is closed; whatever waits reads the worker's clock when it is woken, so that all else may ask
//! what it said [lately](crate::timers::Timers::lately). Does not: change bytes beyond hop-by-hop fields and configured edits.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use outrider_proxy_core::fault::Injected;
use outrider_proxy_core::http1::body::BodyScanner;
use outrider_proxy_core::http1::head::{Asked, Method};
use outrider_proxy_core::http1::reply::Reply;
use outrider_proxy_core::http1::{HeadError, Parsed, Version};
use outrider_proxy_core::reason::{ProxyError, Reason, Retry, Side};
use outrider_proxy_core::retry::{Ended, Facts, hops};
use outrider_proxy_core::route::{Destination, Made, Route};
use outrider_proxy_core::stats::Stopwatch;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::buffers::{Buffers, Filled, Inbox};
use crate::config::{HttpService, Version as Version2};
use crate::connection::{self, Allowed, Downstream, Watched, http_service};
use crate::log;
use crate::stream::{ResetWatch, Stream};
use crate::tcp::{Flow, Switched, Tunnel};
use crate::timers::{self, Alarm};
use crate::upstream::{Connection, Upstream};
use crate::websocket::Frames;
use crate::worker::{Heads, Kind, Open, Stage, Worker};

pub(crate) mod attempts;
mod connecting;
mod copies;
mod exchange;
pub(crate) mod gates;
mod routing;

use attempts::Tries;
use exchange::{Exchange, Outcome};

/// How long and how much a closing connection is still read, so that the last response is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;
/// The one protocol that a connection may be switched to.
pub(crate) const UPGRADE: &[u8] = b"websocket";
/// Limit of waits that have none of their own.
const PARKED: Duration = Duration::from_secs(3600);
/// Bytes of blank lines behind a body: as many as may stand before a head. Browsers of old sent one line.
const MAX_BLANK: usize = 4;

/// What becomes of the connection after a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// Another request may follow.
    Keep,
    /// Everything was read: close.
    Close,
    /// Something may still be arriving: close without a reset.
    Linger,
    /// The response was cut off: close with a reset.
    Abort,
}

/// Serves a connection until it ends.
pub async fn serve(open: &Open, downstream: &mut Downstream) {
    let Open { worker, serving, .. } = open;
    let secure = downstream.peer.is_some();
    let mut xfcc = Vec::new();
    if let Some(peer) = &downstream.peer {
        xfcc.extend_from_slice(b"URI=");
        xfcc.extend_from_slice(peer.as_bytes());
    }
    let mut client = Client {
        downstream,
        inbox: Inbox::default(),
        blanks: 0,
        half_closed: false,
        reset: ResetWatch::default(),
        xfcc,
    };
    worker.timers.now();
    let after = loop {
        if !client.wait(open, secure).await {
            break After::Linger;
        }
        let Some(service) = http_service(serving, secure) else {
            break refuse(open, &mut client, Reason::MtlsRequired).await;
        };
        let mut heads = worker.take_heads();
        let (began, began_ms) = (Instant::now(), worker.timers.lately());
        let head = client.read_head(worker, &service, &mut heads).await;
        // A head may take its time, and what was allowed at its first byte may not be at its last.
        let Some(service) = http_service(serving, secure) else {
            worker.give_heads(heads);
            break refuse(open, &mut client, Reason::MtlsRequired).await;
        };
        let request = Request { open, client: &mut client, service: &service, began, began_ms };
        let after = match head {
            Ok(true) if serving.is_removed() => {
                request.refuse(ProxyError::new(Side::Local, Reason::UnknownService), "").await
            }
            Ok(true) => request.serve(&mut heads).await,
            Ok(false) => After::Close,
            Err((error, detail)) => request.refuse(error, &detail).await,
        };
        worker.give_heads(heads);
        if after != After::Keep {
            break after;
        }
    };
    client.inbox.clear(&worker.buffers);
    open.becomes(Kind::Ending);
    match after {
        After::Keep | After::Close => {
            client.downstream.alarm.set(Some(LINGER));
            let _ = client.downstream.alarm.within(client.downstream.stream.shutdown()).await;
        }
        After::Linger => {
            linger(&worker.buffers, &mut client.downstream.stream, &client.downstream.alarm).await;
        }
        After::Abort => client.downstream.stream.reset_on_close(),
    }
}

/// Closes our half and reads what still comes, for a bounded time and amount: bytes that nobody reads would make
/// the kernel send a reset, which takes the last response away from a caller that has not read it yet.
pub async fn linger(buffers: &Buffers, stream: &mut Stream, alarm: &Alarm) {
    alarm.set(Some(LINGER));
    if !matches!(alarm.within(stream.shutdown()).await, Some(Ok(()))) {
        return;
    }
    let mut inbox = Inbox::default();
    let mut left = LINGER_BYTES;
    let rest = poll_fn(|cx| {
        loop {
            match ready!(inbox.poll_fill(cx, stream, buffers, 0)) {
                Ok(Filled::Bytes(n)) if n <= left => {
                    left -= n;
                    inbox.consume(n);
                }
                _ => return Poll::Ready(()),
            }
        }
    });
    let _ = alarm.within(rest).await;
    inbox.clear(buffers);
}

async fn refuse(open: &Open, client: &mut Client<'_>, reason: Reason) -> After {
    let reply = Reply { close: true, ..Reply::new(reason) };
    let mut out = open.worker.buffers.take_scratch();
    reply.write(&mut out);
    client.downstream.alarm.set(Some(LINGER));
    let _ = client.downstream.alarm.within(client.downstream.stream.write_all(&out)).await;
    open.worker.buffers.give_scratch(out);
    open.serving.stats.borrow_mut().reason(reason);
    let (listener, caller) = (&*open.serving.name, client.downstream.named());
    let context = log::Context { listener, status: Some(reply.status()), caller, ..log::Context::default() };
    open.worker.log.event(&ProxyError::new(Side::Downstream, reason), context);
    After::Linger
}

/// The caller's side.
struct Client<'a> {
    downstream: &'a mut Downstream,
    inbox: Inbox,
    /// Bytes of blank lines that came before a head.
    blanks: usize,
    /// It has ended its sending; it may still want the answer.
    half_closed: bool,
    /// For after that.
    reset: ResetWatch,
    /// Value of `x-forwarded-client-cert`.
    xfcc: Vec<u8>,
}

impl Client<'_> {
    /// Waits for the first byte of a request, holding no memory. `false`: the connection is over.
    ///
    /// A drain does not end it before it was idle for long: a request may be on its way, and would be lost. It is
    /// the next response that ends it.
    async fn wait(&mut self, open: &Open, secure: bool) -> bool {
        self.blanks = 0;
        if self.has_begun() {
            return true;
        }
        if self.half_closed {
            return false;
        }
        let idle = http_service(&open.serving, secure).map_or(PARKED, |service| service.connection_idle);
        let timers = &open.worker.timers;
        let ends_at = timers.lately().saturating_add(exchange::millis(Some(idle)).max(1));
        self.downstream.alarm.set_at(ends_at, timers.lately());
        poll_fn(|cx| {
            timers.now();
            while let Poll::Ready(read) =
                self.inbox.poll_fill(cx, &mut self.downstream.stream, &open.worker.buffers, 0)
            {
                let bytes = matches!(read, Ok(Filled::Bytes(_)));
                if !bytes || self.has_begun() {
                    return Poll::Ready(bytes);
                }
            }
            if open.stage() >= Stage::Parting {
                return Poll::Ready(false);
            }
            self.downstream.alarm.poll_rung(cx).map(|()| false)
        })
        .await
    }

    /// Whether a request is under way. Blank lines behind a body are none: who sends them need not send more.
    fn has_begun(&mut self) -> bool {
        if let blank @ (b"\r\n" | b"\r\n\r\n") = self.inbox.bytes()
            && self.blanks + blank.len() <= MAX_BLANK
        {
            self.blanks += blank.len();
            self.inbox.consume(blank.len());
        }
        !self.inbox.is_empty()
    }

    /// Whether the head of a request is here as a whole.
    fn parse(&self, service: &HttpService, heads: &mut Heads) -> Result<bool, (ProxyError, String)> {
        let bytes = self.inbox.bytes();
        let parsed = heads.request.parse(bytes, &service.limits);
        // As many blank lines as if they had come together.
        let again = || bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let parsed = match parsed {
            Ok(_) if self.blanks > 0 && self.blanks + again() > MAX_BLANK => Err(HeadError::RequestLine),
            parsed => parsed,
        };
        let refuse =
            |error: HeadError| (ProxyError::new(Side::Downstream, error.reason()), error.to_string());
        parsed.map(|parsed| matches!(parsed, Parsed::Complete(_))).map_err(refuse)
    }

    /// Notices a caller that is gone while we wait for something else; reads ahead at most one block.
    fn watch(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<Result<(), ProxyError>> {
        let Client { downstream, inbox, half_closed, reset, .. } = self;
        let gone = || ProxyError::new(Side::Downstream, Reason::ClientGone);
        while !inbox.is_full() {
            if *half_closed {
                ready!(reset.poll(cx, &downstream.stream));
                return Poll::Ready(Err(gone().with_source(io::Error::from(io::ErrorKind::ConnectionReset))));
            }
            match ready!(inbox.poll_fill(cx, &mut downstream.stream, &worker.buffers, 0)) {
                Ok(Filled::Bytes(_)) => {}
                // It may have only ended its sending, and still wants the answer.
                Ok(Filled::End) => *half_closed = true,
                Err(e) => return Poll::Ready(Err(gone().with_source(e))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for `what`, but for no longer than `time` (`None` then), nor for a caller that is gone or may not ask for this any
    /// more, nor beyond the end of a drain.
    async fn within<T>(
        &mut self,
        open: &Open,
        time: Duration,
        mut watched: Watched<'_>,
        what: impl Future<Output = T>,
    ) -> Result<Option<T>, ProxyError> {
        self.downstream.alarm.set(Some(time));
        let mut what = std::pin::pin!(what);
        poll_fn(|cx| {
            open.worker.timers.now();
            watched.may_go_on(open, self.downstream.peer.as_deref())?;
            if let Poll::Ready(value) = what.as_mut().poll(cx) {
                return Poll::Ready(Ok(Some(value)));
            }
            if let Poll::Ready(Err(error)) = self.watch(cx, &open.worker) {
                return Poll::Ready(Err(error));
            }
            self.downstream.alarm.poll_rung(cx).map(|()| Ok(None))
        })
        .await
    }

    /// Reads until the head is whole. `Ok(false)`: the caller left before that.
    async fn read_head(
        &mut self,
        worker: &Worker,
        service: &HttpService,
        heads: &mut Heads,
    ) -> Result<bool, (ProxyError, String)> {
        // Nearly always the head is here already, and no deadline is needed.
        if self.parse(service, heads)? {
            return Ok(true);
        }
        self.downstream.alarm.set(Some(service.head_timeout));
        loop {
            // What is here of it takes memory until the rest comes, and then it would be refused.
            if worker.is_shedding() {
                return Err((ProxyError::new(Side::Local, Reason::OverloadMemory), String::new()));
            }
            if self.inbox.is_full() && !self.inbox.grow(&worker.buffers) {
                return Err((ProxyError::new(Side::Downstream, Reason::HeaderTooLarge), String::new()));
            }
            let Downstream { stream, alarm, .. } = &mut *self.downstream;
            let inbox = &mut self.inbox;
            let read = poll_fn(|cx| {
                worker.timers.now();
                if let Poll::Ready(read) = inbox.poll_fill(cx, stream, &worker.buffers, 0) {
                    return Poll::Ready(Some(read));
                }
                alarm.poll_rung(cx).map(|()| None)
            });
            match read.await {
                Some(Ok(Filled::Bytes(_))) => {}
                Some(Ok(Filled::End) | Err(_)) => return Ok(false),
                None => {
                    let error = ProxyError::new(Side::Downstream, Reason::RequestHeadTimeout);
                    let detail = format!("No whole head within {:?}.", service.head_timeout);
                    return Err((error, detail));
                }
            }
            if self.parse(service, heads)? {
                return Ok(true);
            }
        }
    }
}

/// One request, from its whole head to the end of its response.
struct Request<'a, 'c> {
    open: &'a Open,
    client: &'a mut Client<'c>,
    service: &'a HttpService,
    /// For the numbers.
    began: Instant,
    /// For the limits: the same on the worker's clock.
    began_ms: u64,
}

/// What is remembered of the request head once its bytes are used up.
struct Asking {
    method: Method,
    version: Version,
    asked: Asked,
    persistent: bool,
    /// The caller has the first bytes of the response.
    started: bool,
    body: BodyScanner,
    /// Bytes of the head that are still in the inbox.
    unused: u32,
    /// Body bytes at the front of the inbox that the scanner accepted and no endpoint took.
    accepted: u32,
    /// What the proxy itself takes, in milliseconds of the worker's clock: fine enough to find a slow release.
    own: Stopwatch,
    becomes: Becomes,
    /// What its route hashes it by. As small as can be, because it is kept as long as the request is.
    key: Option<NonZeroU64>,
    /// The cookie that its response brings, so that its key is found in the next request.
    made: Option<Box<Made>>,
    tries: Tries,
}

/// What is to become of the connection if the endpoint switches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Becomes {
    /// A tunnel, or nothing.
    Bytes,
    /// A WebSocket.
    Socket,
    /// It is no longer one of HTTP.
    Switched,
}

/// What a failure is told with.
struct Failure {
    error: ProxyError,
    detail: String,
    upstream: Option<Rc<Upstream>>,
    endpoint: Option<SocketAddr>,
}

impl From<ProxyError> for Failure {
    fn from(error: ProxyError) -> Self {
        Self { error, detail: String::new(), upstream: None, endpoint: None }
    }
}

impl Request<'_, '_> {
    async fn serve(mut self, heads: &mut Heads) -> After {
        {
            let mut stats = self.open.serving.stats.borrow_mut();
            stats.requests += 1;
            stats.active_requests += 1;
        }
        let mut asking = {
            let bytes = self.client.inbox.bytes();
            // What else a caller would like to speak is left out, so that HTTP goes on.
            let to = heads.request.upgrade(bytes);
            let socket = self.service.upgrades && to.is_some_and(|to| to.eq_ignore_ascii_case(UPGRADE));
            let upgrade = socket
                || to.is_some_and(|to| {
                    self.service.tunnels.iter().any(|one| to.eq_ignore_ascii_case(one.as_bytes()))
                });
            Asking {
                method: heads.request.method(),
                version: heads.request.version(),
                asked: Asked { head: heads.request.method() == Method::Head, upgrade },
                persistent: heads.request.is_persistent(),
                started: false,
                body: BodyScanner::new(heads.request.framing()),
                // Far less than 4 GiB, as all that is in an inbox.
                unused: heads.request.length() as u32,
                accepted: 0,
                own: Stopwatch::default(),
                becomes: if socket { Becomes::Socket } else { Becomes::Bytes },
                key: None,
                made: None,
                tries: Tries::default(),
            }
        };
        // As of the service: nothing was waited for since it was looked up.
        heads.allowed = Allowed::since(self.open.serving.changes());
        asking.own.start(self.open.worker.timers.lately());
        let after = match self.proxy(heads, &mut asking).await {
            Ok(after) => after,
            Err(failure) => {
                asking.own.start(self.open.worker.timers.lately());
                self.tell(&failure, asking.started, || self.what(heads, &asking));
                self.fail(&failure, &asking).await
            }
        };
        if asking.becomes != Becomes::Switched {
            asking.own.pause(self.open.worker.timers.lately());
        }
        let mut stats = self.open.serving.stats.borrow_mut();
        stats.active_requests -= 1;
        // An upgraded one took as long as its caller liked.
        if asking.becomes != Becomes::Switched {
            stats.latency.record(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX));
            stats.added.record(asking.own.sum().saturating_mul(1000));
        }
        after
    }

    /// The phases.
    async fn proxy(&mut self, heads: &mut Heads, asking: &mut Asking) -> Result<After, Failure> {
        let (service, worker) = (self.service, &self.open.worker);
        let local = |reason| Failure::from(ProxyError::new(Side::Local, reason));

        if worker.is_shedding() {
            return Err(local(Reason::OverloadMemory));
        }
        #[cfg(feature = "faults")]
        crate::stamp::faults::before_request().await?;

        // May this caller call at all?
        connection::let_in(&service.access, self.client.downstream.peer())?;
        if let Some(rules) = &service.rules {
            self.permitted(rules, heads)?;
        }

        // Where to?
        let route = service.routes.find(&self.view(heads)).map_err(local)?;
        if let Some(limit) = route.limit.as_ref().or(service.limit.as_ref())
            && let Err(empty) = limit.admit(timers::precise_ns(), worker.random())
        {
            return Ok(Box::pin(self.limited(limit, empty, asking, heads)).await);
        }
        if let Some(fault) = route.fault.as_ref().or(service.fault.as_ref()) {
            let injected = fault.draw(&self.view(heads), || worker.random());
            if injected != Injected::default() {
                self.keep_head(heads, asking);
                if let Some(after) = Box::pin(self.inject(fault, injected, asking, heads)).await? {
                    return Ok(after);
                }
            }
        }
        let slot = match self.destination(heads, asking, route).map_err(local)? {
            Destination::Cluster(slot) => slot,
            own => return Box::pin(self.answer_by_route(own, route, heads, asking)).await.map_err(local),
        };
        let upstream = worker.upstream(slot).ok_or_else(|| local(Reason::ClusterNotReady))?;
        // Nothing is translated: a change of the protocol has reached only one of the two.
        if upstream.version() != Version2::Http1 {
            return Err(local(Reason::ClusterNotReady));
        }
        let _running = upstream.begin()?;

        // The head as it goes out, kept until the response begins, so that it can be sent again.
        let mut out = self.encode(heads, asking, route).map_err(local)?;
        if service.rules.is_some() || route.changes_requests() {
            self.keep_head(heads, asking);
        }
        // Far less than 4 GiB, as that it was made of.
        asking.tries.head = out.len() as u32;
        if !route.mirrors.is_empty() {
            heads.taps = self.copy(heads, asking, route, &out);
        }
        self.client.inbox.consume(std::mem::take(&mut asking.unused) as usize);

        upstream.stats.borrow_mut().active_requests += 1;
        let outcome = self.send(heads, asking, route, &upstream, &mut out).await;
        // What was not sent will not be: the next request begins behind it.
        self.client.inbox.consume(std::mem::take(&mut asking.accepted) as usize);
        {
            let mut stats = upstream.stats.borrow_mut();
            stats.active_requests = stats.active_requests.saturating_sub(1);
        }
        // The log tells of it.
        if outcome.is_err() && heads.came.is_empty() {
            heads.came = out;
        } else {
            worker.buffers.give_scratch(out);
        }
        outcome
    }

    /// Sends the request to an endpoint, again where that is safe, and the response to the caller.
    async fn send(
        &mut self,
        heads: &mut Heads,
        asking: &mut Asking,
        route: &Route,
        upstream: &Rc<Upstream>,
        out: &mut Vec<u8>,
    ) -> Result<After, Failure> {
        'again: loop {
            let (ended, whole, failure) = 'attempt: {
                let (picked, connection) = match self.found(upstream, asking, heads, out).await {
                    Ok(connected) => connected,
                    Err(failure) if failure.error.retry == Retry::Safe => {
                        let ended = Ended::unconnected(failure.error.reason);
                        break 'attempt (Some(ended), true, failure);
                    }
                    Err(failure) => return Err(failure),
                };
                upstream.stats.borrow_mut().requests += 1;
                let reused = connection.reused;
                let mut exchange = Exchange::new(
                    self.open,
                    self.client,
                    connection,
                    asking,
                    route,
                    self.service,
                    self.began_ms,
                );
                let outcome = exchange.run(heads, out).await;
                let started = exchange.response_started();
                let whole = exchange.is_replayable() && !started;
                let status = exchange.status();
                exchange.count(&mut self.open.serving.stats.borrow_mut());
                if let Some(after) = exchange.answered() {
                    upstream.answered(&picked, after);
                }
                let (connection, told) = exchange.into_connection();
                asking.started |= started;
                if let Some(outcome) = exchange::outcome(&outcome, status, self.open.worker.is_saving()) {
                    upstream.ended(&picked, outcome, &self.open.worker);
                }
                match outcome {
                    Ok(Outcome::Done { keep, reuse }) => {
                        if reuse && !self.open.worker.is_saving() {
                            upstream.keep(connection, self.open.worker.timers.lately(), told);
                        }
                        return Ok(keep);
                    }
                    Ok(Outcome::Tunnel) => {
                        // They are the first bytes of the tunnel.
                        asking.accepted = 0;
                        let socket =
                            std::mem::replace(&mut asking.becomes, Becomes::Switched) == Becomes::Socket;
                        let Watched { allowed, asked } = heads.watched(out);
                        return Ok(Box::pin(self.tunnel(connection, asked, *allowed, socket)).await);
                    }
                    Ok(Outcome::Again { left }) => {
                        attempts::let_go(&self.open.worker, connection, left, told);
                        drop(picked);
                        Box::pin(self.again(upstream, asking, heads, out)).await?;
                        continue 'again;
                    }
                    Err(error) => {
                        asking.own.start(self.open.worker.timers.lately());
                        let endpoint = Some(picked.address());
                        let detail = exchange::explain(&error, route);
                        let ended = exchange::ended(&error, reused);
                        (
                            ended,
                            whole,
                            Failure { error, detail, upstream: Some(Rc::clone(upstream)), endpoint },
                        )
                    }
                }
            };
            let facts = Facts {
                idempotent: asking.method.is_idempotent(),
                whole,
                left_ms: self.left_ms(route),
                ..Facts::default()
            };
            let decided = ended.is_some_and(|ended| {
                asking.tries.decide(&route.retry, upstream, ended, facts, self.open.worker.random())
            });
            if !decided {
                return Err(failure);
            }
            drop(failure);
            Box::pin(self.again(upstream, asking, heads, out)).await?;
        }
    }

    /// After a 101: bytes both ways, those already read first.
    async fn tunnel(
        &mut self,
        mut connection: Connection,
        asked: connection::Asked<'_>,
        allowed: Allowed,
        socket: bool,
    ) -> After {
        self.open.becomes(if socket { Kind::WebSocket } else { Kind::Tcp });
        let client = &mut *self.client;
        let mut switched = Switched { frames: socket.then(Frames::default), asked, allowed };
        let mut tunnel = Tunnel {
            open: self.open,
            switched: Some(&mut switched),
            peer: client.downstream.peer.as_deref(),
            downstream: &mut client.downstream.stream,
            downstream_in: &mut client.inbox,
            upstream: &mut connection.stream,
            upstream_in: &mut connection.inbox,
            up: Flow::default(),
            down: Flow::default(),
        };
        let outcome = tunnel.run(&client.downstream.alarm, self.service.idle).await;
        let (up, down) = (tunnel.up.moved, tunnel.down.moved);
        let mut stats = self.open.serving.stats.borrow_mut();
        stats.bytes_in += up;
        stats.bytes_out += down;
        match outcome {
            Ok(()) => After::Close,
            Err(error) => {
                stats.reason(error.reason);
                drop(stats);
                connection.stream.reset_on_close();
                let connection::Asked::Request(head) = asked else { return After::Abort };
                self.tell(&error.into(), true, || log::asked(head));
                After::Abort
            }
        }
    }

    /// Refuses a request whose head was not understood, or that came too late, and with it what follows.
    async fn refuse(mut self, error: ProxyError, detail: &str) -> After {
        let asking = Asking {
            method: Method::Get,
            version: Version::Http11,
            asked: Asked::default(),
            persistent: false,
            started: false,
            body: BodyScanner::new(outrider_proxy_core::http1::BodyFraming::None),
            unused: 0,
            accepted: 0,
            own: Stopwatch::default(),
            becomes: Becomes::Bytes,
            key: None,
            made: None,
            tries: Tries::default(),
        };
        self.open.serving.stats.borrow_mut().requests += 1;
        let failure = Failure { detail: detail.to_owned(), ..Failure::from(error) };
        self.tell(&failure, false, || None);
        let after = self.fail(&failure, &asking).await;
        if after == After::Keep { After::Linger } else { after }
    }

    /// Tells the log why there is no (whole) response.
    fn tell(&self, failure: &Failure, started: bool, request: impl FnOnce() -> Option<String>) {
        let cluster = failure.upstream.as_ref().map(|upstream| upstream.config());
        let context = log::Context {
            listener: &self.open.serving.name,
            status: failure.error.reason.status().filter(|_| !started),
            caller: self.client.downstream.named(),
            cluster: cluster.as_ref().map(|cluster| &*cluster.name),
            endpoint: failure.endpoint,
        };
        self.open.worker.log.failed(&failure.error, context, request);
    }

    /// Tells the log what is answered because the configuration says so.
    fn tell_answer(&self, reply: &Reply<'_>, heads: &Heads, asking: &Asking) {
        let context = log::Context {
            listener: &self.open.serving.name,
            status: Some(reply.status()),
            caller: self.client.downstream.named(),
            ..log::Context::default()
        };
        self.open.worker.log.answered(reply.reason, context, || self.what(heads, asking));
    }

    /// What was asked for, as far as the head is still there.
    fn what(&self, heads: &Heads, asking: &Asking) -> Option<String> {
        match asking.unused {
            0 => log::asked(&heads.came),
            _ => log::request(&self.view(heads)),
        }
    }

    /// Tells the caller and the counters why there is no (whole) response.
    async fn fail(&mut self, failure: &Failure, asking: &Asking) -> After {
        let reason = failure.error.reason;
        let answerable = !asking.started && reason.status().is_some();
        let mut append = self.open.worker.buffers.take_scratch();
        // What another attempt needs is a moment, or another endpoint.
        if reason == Reason::OverloadMemory {
            append.extend_from_slice(b"Retry-After: 1\r\n");
        }
        if let Some(attempts) = asking.tries.told() {
            attempts.write_line(&mut append);
        }
        if asking.tries.vouch(&failure.error, self.client.downstream.peer.as_deref()) {
            append.extend_from_slice(hops::UNPROCESSED_LINE);
        }
        let reply = Reply { detail: &failure.detail, append: &append, ..Reply::new(reason) };
        let after = if answerable {
            self.answer(reply, asking).await
        } else {
            self.open.serving.stats.borrow_mut().reason(reason);
            After::Abort
        };
        self.open.worker.buffers.give_scratch(append);
        after
    }

    /// Sends a reply of our own.
    async fn answer(&mut self, reply: Reply<'_>, asking: &Asking) -> After {
        // Without a body, the next request begins where this head ended; otherwise its place is unknown.
        self.client.inbox.consume(asking.unused as usize);
        let clean = asking.body.is_done();
        let keep = clean && asking.persistent && self.open.may_stay();
        let reply = Reply { close: !keep, head: asking.asked.head, client: asking.version, ..reply };
        let mut out = self.open.worker.buffers.take_scratch();
        reply.write(&mut out);
        let Downstream { stream, alarm, .. } = &mut *self.client.downstream;
        alarm.set(Some(self.service.idle.unwrap_or(PARKED)));
        let mut written = 0;
        let timers = &self.open.worker.timers;
        let sent = poll_fn(|cx| {
            timers.now();
            while written < out.len() {
                match Pin::new(&mut *stream).poll_write(cx, &out[written..]) {
                    Poll::Ready(Ok(n)) if n > 0 => written += n,
                    Poll::Ready(_) => return Poll::Ready(false),
                    Poll::Pending => {
                        ready!(alarm.poll_rung(cx));
                        return Poll::Ready(false);
                    }
                }
            }
            match Pin::new(&mut *stream).poll_flush(cx) {
                Poll::Ready(flushed) => Poll::Ready(flushed.is_ok()),
                Poll::Pending => alarm.poll_rung(cx).map(|()| false),
            }
        })
        .await;
        {
            let mut stats = self.open.serving.stats.borrow_mut();
            stats.reason(reply.reason);
            stats.response(reply.status());
            stats.bytes_out += written as u64;
        }
        self.open.worker.buffers.give_scratch(out);
        match (sent, keep) {
            (false, _) => After::Abort,
            (true, true) => After::Keep,
            (true, false) => After::Linger,
        }
    }
}
