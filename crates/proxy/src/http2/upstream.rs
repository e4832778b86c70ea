//! A connection to an endpoint, shared by the requests of a worker: one task for all of its streams.
//!
//! The task connects, waits for the endpoint's SETTINGS, so that no stream is opened that would be refused, serves who
//! waits, and carries what arrives to the callers' connections, whose state it changes directly: all are of one thread.
//! Holds: what is lent to a caller's connection is never borrowed when that one works, since each task borrows its own
//! state first and then that of the other end, and ends that before it is polled again. Does not: choose endpoints.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use outrider_http2::{
    Config, Connection as Core, ErrorCode, Event, Head, HeadKind, ResetCause, Role, SendError, Stream,
};
use outrider_proxy_core::balance::EndpointIndex;
use outrider_proxy_core::reason::{ProxyError, Reason, Retry, Side};
use outrider_proxy_core::stats::Waits;
use rustls::ClientConfig;

use super::downstream::{Down, Heard};
use super::exchange::millis;
use super::mirror::Mirror;
use super::pool::InLine;
use super::wire::Wire;
use crate::buffers::{Filled, SIZES};
use crate::config::Http2;
use crate::shared::{Busy, Places as _};
use crate::stream::Stream as Transport;
use crate::timers::Alarm;
use crate::upstream::{Connection, Upstream};
use crate::worker::Worker;

/// How long the last bytes of a connection may take to be written.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long nobody must have used a connection that is too old, so that it ends. Another one in its place is for those who
/// use it.
const REST: u64 = 1_000;
/// How long after another one in its place was asked for that is done again.
const AGAIN: u64 = 60_000;

/// The end of a stream that is here.
struct Link {
    own: Stream,
    end: OtherEnd,
}

/// Where a stream comes from.
#[derive(Clone)]
enum OtherEnd {
    /// A caller's stream.
    Caller(Rc<Down>, Stream),
    /// A copy.
    Copy(Rc<Mirror>),
}

/// A connection as others see it.
pub(super) struct Up {
    /// Where it leads.
    pub(super) endpoint: EndpointIndex,
    /// Its address.
    pub(super) address: SocketAddr,
    settings: Option<Arc<ClientConfig>>,
    /// No more streams are opened.
    leaving: Cell<bool>,
    /// It took no stream at all, and another was asked for.
    barren: Cell<bool>,
    /// Streams were opened before.
    served: Cell<bool>,
    /// It is too old: when another one in its place is asked for again. Zero if it is not.
    again_at: Cell<u64>,
    /// It was too old, and has left its place to another one.
    made_way: Cell<bool>,
    limit: usize,
    /// What the endpoint may send of a response before it is read.
    window: usize,
    /// WebSockets may be led here.
    connect: bool,
    /// Its place among the cluster's busy connections, while it has streams or is about to.
    busy: RefCell<Option<Busy>>,
    /// Until when it takes no streams, because others wait for that place. Zero if none have waited since it has it.
    yields: Cell<u64>,
    /// The newest stream at that time: those after it do not keep the place.
    keeps: Cell<u32>,
    in_line: Rc<InLine>,
    /// What changes.
    pub(super) state: RefCell<UpState>,
}

/// What changes of a connection.
pub(super) struct UpState {
    /// The bytes.
    pub(super) wire: Wire,
    /// By slot of the stream.
    links: Vec<Option<Link>>,
}

impl UpState {
    /// Ties a new stream to a caller's.
    pub(super) fn link(&mut self, own: Stream, down: &Rc<Down>, stream: Stream) {
        self.tie(own, OtherEnd::Caller(Rc::clone(down), stream));
    }

    /// Ties a new stream to a copy.
    pub(super) fn link_copy(&mut self, own: Stream, copy: &Rc<Mirror>) {
        self.tie(own, OtherEnd::Copy(Rc::clone(copy)));
    }

    fn tie(&mut self, own: Stream, end: OtherEnd) {
        let slot = own.slot();
        if self.links.len() <= slot {
            self.links.resize_with(slot + 1, || None);
        }
        if let Some(place) = self.links.get_mut(slot) {
            *place = Some(Link { own, end });
        }
    }

    /// Unties a stream, and resets it unless it is over.
    pub(super) fn unlink(&mut self, own: Stream, code: ErrorCode) {
        if let Some(place) = self.links.get_mut(own.slot()) {
            place.take_if(|link| link.own == own);
        }
        self.wire.core.reset(own, code);
    }
}

impl Up {
    /// Whether another stream can be opened here now.
    pub(super) fn has_room(&self, upstream: &Upstream) -> bool {
        self.suits(upstream) && self.has_places()
    }

    /// Whether it fits the configuration of now.
    fn suits(&self, upstream: &Upstream) -> bool {
        upstream.suits(self.endpoint, self.settings.as_ref())
    }

    /// Whether both ends have proved who they are.
    pub(super) fn is_mutual(&self) -> bool {
        self.settings.is_some()
    }

    /// Whether the endpoint takes another stream here.
    fn has_places(&self) -> bool {
        !self.leaving.get() && {
            let state = self.state.borrow();
            let core = &state.wire.core;
            core.can_open() && core.active() + self.unread(core) < self.limit && state.wire.may_read()
        }
    }

    /// What streams that are over have left unread, in windows of one: there is room in the connection's for as many as
    /// are open at most, so nobody who does not read stops others.
    fn unread(&self, core: &Core) -> usize {
        core.unread().div_ceil(self.window)
    }

    /// Whether it has its place among the cluster's busy connections.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.borrow().is_some()
    }

    /// Takes that place, unless it has it, for a stream that is opened now. `false`: there is none, or it is for others.
    pub(super) fn occupy(&self, upstream: &Upstream, now: u64) -> bool {
        if self.is_busy() {
            self.may_go_on(upstream, now)
        } else {
            upstream.try_busy().is_some_and(|busy| self.occupy_with(busy))
        }
    }

    /// The same with this one.
    pub(super) fn occupy_with(&self, busy: Busy) -> bool {
        if !self.is_busy() {
            self.yields.set(0);
            self.busy.replace(Some(busy));
        }
        // Should nothing come of it, the place is given back.
        self.wake();
        true
    }

    /// Whether nothing was done with its place so far.
    fn begins(&self) -> bool {
        self.yields.get() == 0 && self.state.borrow().wire.core.active() == 0
    }

    /// Whether it takes another stream with the place it has. Who waits for a place is to have this one, unless it takes long
    /// until it can be had.
    fn may_go_on(&self, upstream: &Upstream, now: u64) -> bool {
        if !upstream.is_short(self.in_line.count()) {
            self.yields.set(0);
            return true;
        }
        let state = self.state.borrow();
        match (self.yields.get(), state.wire.core.oldest()) {
            (0, None) => true,
            (_, None) => false,
            (until, Some(_)) if now < until => false,
            (1.., Some(oldest)) if oldest <= self.keeps.get() => true,
            _ => {
                let patience = millis(Some(upstream.config().connect_timeout / 2));
                self.yields.set(now.saturating_add(patience));
                self.keeps.set(state.wire.core.newest());
                state.wire.wake();
                false
            }
        }
    }

    /// Whether nobody uses it now.
    pub(super) fn is_unused(&self) -> bool {
        !self.leaving.get() && !self.is_busy() && self.state.borrow().wire.core.active() == 0
    }

    /// Is closed as soon as it has no streams.
    pub(super) fn leave(&self) {
        self.leaving.set(true);
        self.wake();
    }

    /// Has its task look at it.
    pub(super) fn wake(&self) {
        self.state.borrow().wire.wake();
    }

    /// Whether the endpoint has said that it takes WebSockets as streams, and they may be led to it.
    pub(super) fn takes_sockets(&self, state: &UpState) -> bool {
        self.connect && state.wire.core.peer().connect_protocol
    }

    /// Whether it is not the first stream that is open here.
    pub(super) fn opened(&self) -> bool {
        self.served.replace(true)
    }

    /// Leaves, if it is too old: another one is here. Whether it does.
    pub(super) fn make_way(&self) -> bool {
        let worn = self.again_at.get() > 0 && !self.leaving.replace(true);
        if worn {
            self.made_way.set(true);
            self.state.borrow().wire.wake();
        }
        worn
    }

    /// Whether it was too old and left.
    pub(super) fn has_made_way(&self) -> bool {
        self.made_way.get()
    }

    /// Whether a stream was ever opened here.
    pub(super) fn was_used(&self) -> bool {
        self.served.get()
    }

    /// Looks whether it is to be used on, and by whom.
    pub(super) fn review(&self, upstream: &Upstream, idle: bool) {
        let state = self.state.borrow();
        let unused = idle && state.wire.core.active() == 0;
        if unused || !upstream.suits(self.endpoint, self.settings.as_ref()) {
            self.leaving.set(true);
            state.wire.wake();
        }
    }
}

/// How a connection came to its end.
enum End {
    /// Nothing was open any more.
    Graceful,
    /// The endpoint ended or broke it, or a rule.
    Lost(Option<Box<dyn std::error::Error + Send + Sync>>),
    /// The endpoint broke a rule.
    Violation(outrider_http2::Violation),
}

/// Connects, and serves until the end. Before, it waits for a place among the busy connections if it `may_wait`.
pub(super) async fn run(
    worker: Rc<Worker>,
    upstream: Rc<Upstream>,
    (endpoint, address): (EndpointIndex, SocketAddr),
    settings: Http2,
    may_wait: bool,
) {
    let alarm = worker.timers.alarm();
    let busy = match upstream.try_busy() {
        None if may_wait => {
            let Some(busy) = Box::pin(wait(&worker, &upstream, endpoint, &alarm)).await else { return };
            busy
        }
        Some(busy) => busy,
        None => {
            let full = ProxyError::new(Side::Local, Reason::OverloadConnections);
            return upstream.h2.tell_failed(endpoint, &full, worker.timers.now());
        }
    };
    let connected = Box::pin(connect(&worker, &upstream, endpoint, address, &alarm)).await;
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => {
            drop(busy);
            upstream.h2.tell_failed(endpoint, &error, worker.timers.now());
            return;
        }
    };
    Box::pin(serve(&worker, &upstream, (endpoint, address), settings, (connection, busy), &alarm)).await;
}

/// Waits for a place among the busy connections, as long as anybody waits for one to this endpoint. `None`: nobody does any
/// more, or one that is open has it.
async fn wait(
    worker: &Rc<Worker>,
    upstream: &Rc<Upstream>,
    endpoint: EndpointIndex,
    alarm: &Alarm,
) -> Option<Busy> {
    let _joined = upstream.h2.in_line(endpoint).join();
    let mut turn = pin!(upstream.shared().busy(upstream.config().limits));
    loop {
        let now = worker.timers.now();
        // It may wait long enough for others to be in force.
        let config = upstream.config();
        let patience = millis(Some(config.connect_timeout));
        let full = || {
            let limits =
                format!("{} connections, {:?} waited", config.limits.connections, config.connect_timeout);
            ProxyError::new(Side::Local, Reason::OverloadConnections).with_source(io::Error::other(limits))
        };
        let until = upstream.h2.give_up(endpoint, (now, patience), full)?;
        alarm.set_at(until, now);
        if let Some(busy) = alarm.within(turn.as_mut()).await {
            alarm.set(None);
            return upstream.h2.settle(upstream, endpoint, busy);
        }
    }
}

async fn connect(
    worker: &Rc<Worker>,
    upstream: &Rc<Upstream>,
    endpoint: EndpointIndex,
    address: SocketAddr,
    alarm: &Alarm,
) -> Result<Connection, ProxyError> {
    let connection = upstream.connect_to(endpoint, address, alarm, worker).await?;
    // Without an answer to ALPN the endpoint may know HTTP/2 all the same, as its first bytes will show.
    if let Transport::Secured(tls) = &connection.stream
        && tls.protocol().is_some_and(|protocol| protocol != b"h2")
    {
        let cause = io::Error::other("the endpoint does not speak HTTP/2");
        let error = ProxyError::new(Side::Upstream, Reason::UpstreamTlsFailed);
        return Err(error.with_retry(Retry::Safe).with_source(cause));
    }
    Ok(connection)
}

async fn serve(
    worker: &Rc<Worker>,
    upstream: &Rc<Upstream>,
    (endpoint, address): (EndpointIndex, SocketAddr),
    settings: Http2,
    (connection, busy): (Connection, Busy),
    alarm: &Alarm,
) {
    let now = worker.timers.now();
    let config = Config {
        stream_window: settings.stream_window,
        connection_window: settings.connection_window,
        huffman: !address.ip().to_canonical().is_loopback(),
        ..Config::default()
    };
    let keepalive =
        settings.keepalive.map(|(interval, timeout)| (millis(Some(interval)), millis(Some(timeout))));
    let wire = Wire::new(Core::new(Role::Client, config, now), keepalive, now);
    let up = Rc::new(Up {
        endpoint,
        address,
        settings: connection.settings().cloned(),
        leaving: Cell::new(false),
        barren: Cell::new(false),
        served: Cell::new(false),
        again_at: Cell::new(0),
        made_way: Cell::new(false),
        limit: settings.max_streams as usize,
        window: settings.stream_window as usize,
        connect: settings.connect,
        busy: RefCell::new(Some(busy)),
        yields: Cell::new(0),
        keeps: Cell::new(0),
        in_line: upstream.h2.in_line(endpoint),
        state: RefCell::new(UpState { wire, links: Vec::new() }),
    });
    let cluster = upstream.config();
    let mut task = Driver {
        worker,
        upstream,
        up: &up,
        connection,
        alarm,
        class: 0,
        open: false,
        lent: false,
        unused_since: now,
        begin_by: now.saturating_add(millis(Some(cluster.connect_timeout))),
        failure: None,
        provide_at: u64::MAX,
        asks: u64::MAX,
    };
    let end = poll_fn(|cx| task.poll(cx)).await;
    let (was_open, failure) = (task.open, task.failure.take());
    up.leaving.set(true);
    drop(up.busy.take());
    if was_open {
        upstream.h2.gone(worker, upstream, &up);
    } else {
        let error = failure.unwrap_or_else(|| not_begun(&end));
        upstream.h2.tell_failed(endpoint, &error, worker.timers.now());
    }
    let links: Vec<Link> = up.state.borrow_mut().links.iter_mut().filter_map(Option::take).collect();
    for link in links {
        match link.end {
            OtherEnd::Caller(down, stream) => down.leg_lost(stream, &end.cause(), end.is_violation()),
            OtherEnd::Copy(copy) => copy.lost(),
        }
    }
    if matches!(end, End::Violation(_) | End::Graceful) {
        // The last words: why. Nobody waits for them.
        alarm.set(Some(FAREWELL));
        let mut connection = task.connection;
        let flushed = poll_fn(|cx| {
            let mut state = up.state.borrow_mut();
            state.wire.core.drain();
            state.wire.poll_write(cx, &mut connection.stream, &worker.buffers, &mut 0)
        });
        let _ = alarm.within(flushed).await;
        let _ = alarm.within(tokio::io::AsyncWriteExt::shutdown(&mut connection.stream)).await;
    }
    upstream.h2.closed(&up);
}

/// Why a connection that was made cannot be used.
fn not_begun(end: &End) -> ProxyError {
    let reason = match end {
        End::Violation(_) => Reason::UpstreamProtocolError,
        End::Graceful | End::Lost(_) => Reason::UpstreamClosedBeforeResponse,
    };
    ProxyError::new(Side::Upstream, reason).with_retry(Retry::Safe).with_source(end.cause())
}

impl End {
    /// In words.
    fn cause(&self) -> String {
        match self {
            Self::Graceful => "the connection was ended".to_owned(),
            Self::Lost(Some(error)) => error.to_string(),
            Self::Lost(None) => "the endpoint closed the connection".to_owned(),
            Self::Violation(violation) => violation.to_string(),
        }
    }

    const fn is_violation(&self) -> bool {
        matches!(self, Self::Violation(_))
    }
}

/// What drives it.
struct Driver<'a> {
    worker: &'a Rc<Worker>,
    upstream: &'a Rc<Upstream>,
    up: &'a Rc<Up>,
    connection: Connection,
    alarm: &'a Alarm,
    /// Size class of reads.
    class: usize,
    /// It has been made known to the pool.
    open: bool,
    /// Somebody was told to open a stream here.
    lent: bool,
    unused_since: u64,
    /// When SETTINGS must be here.
    begin_by: u64,
    failure: Option<ProxyError>,
    /// When another connection may be opened for who waits.
    provide_at: u64,
    /// When an endpoint that was asked has to have answered, or is to be asked.
    asks: u64,
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut Task<'_>) -> Poll<End> {
        self.up.state.borrow_mut().wire.register(cx);
        loop {
            let now = self.worker.timers.now();
            let mut again = false;
            let buffers = &self.worker.buffers;
            let Connection { stream, inbox, .. } = &mut self.connection;
            inbox.prefer(self.class, buffers);
            match inbox.poll_fill(cx, stream, buffers, self.class) {
                Poll::Ready(Ok(Filled::Bytes(n))) => {
                    self.class = usize::from(n >= SIZES[0]);
                    again = true;
                    if let Err(violation) = self.feed(now) {
                        return Poll::Ready(End::Violation(violation));
                    }
                }
                Poll::Ready(Ok(Filled::End)) => return Poll::Ready(End::Lost(None)),
                Poll::Ready(Err(error)) => return Poll::Ready(End::Lost(Some(error.into()))),
                Poll::Pending => {}
            }
            self.settle(now);
            self.serve_waiting(now);
            self.pump(now);
            let mut state = self.up.state.borrow_mut();
            let Connection { stream, .. } = &mut self.connection;
            let full = !state.wire.has_room();
            if let Poll::Ready(Err(error)) = state.wire.poll_write(cx, stream, buffers, &mut 0) {
                return Poll::Ready(End::Lost(Some(error.into())));
            }
            // Nothing else tells those who had to stop, and those who wait for a stream, that there is room again.
            again |= full && state.wire.has_room();
            let waits = state.wire.take_waits();
            if waits != Waits::default() {
                self.upstream.stats.borrow_mut().waits.add(waits);
            }
            let active = state.wire.core.active();
            match active {
                0 if self.open => self.rest(cx),
                0 => {}
                _ => self.lent = false,
            }
            if state.wire.core.is_over() || (self.up.leaving.get() && active == 0) {
                return Poll::Ready(End::Graceful);
            }
            drop(state);
            match self.poll_alarm(cx, now, active) {
                Poll::Ready(Some(end)) => return Poll::Ready(end),
                Poll::Ready(None) => {}
                Poll::Pending if again => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Takes what was read apart.
    fn feed(&mut self, now: u64) -> Result<(), outrider_http2::Violation> {
        let mut head = self.worker.heads2.take();
        let inbox = &mut self.connection.inbox;
        let bytes = inbox.bytes();
        self.up.state.borrow_mut().wire.heard(now);
        let mut at = 0;
        let fed = loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let step = self.up.state.borrow_mut().wire.core.receive(rest, &mut head, now);
            let step = match step {
                Ok(step) => step,
                Err(violation) => break Err(violation),
            };
            at += step.consumed;
            match step.event {
                Some(event) => Self::handle(self.worker, self.up, event, &mut head, rest, now),
                None if at == bytes.len() => break Ok(()),
                None => {}
            }
        };
        let read = inbox.len();
        inbox.consume(read);
        self.worker.heads2.give(head, self.worker.is_saving());
        fed
    }

    fn handle(worker: &Rc<Worker>, up: &Rc<Up>, event: Event, head: &mut Box<Head>, bytes: &[u8], now: u64) {
        let mut state = up.state.borrow_mut();
        let UpState { wire, links } = &mut *state;
        let found = |links: &[Option<Link>], own: Stream| {
            let link = links.get(own.slot())?.as_ref()?;
            (link.own == own).then(|| link.end.clone())
        };
        let (own, heard) = match event {
            Event::Head { stream, kind: HeadKind::Trailers, .. } => (stream, Heard::Trailers(head)),
            Event::Head { stream, end, .. } => (stream, Heard::Head(head, end)),
            Event::Data { stream, range, end } => {
                (stream, Heard::Data(bytes.get(range).unwrap_or_default(), end))
            }
            Event::Reset { stream, code, cause } => (stream, Heard::Reset(code, cause)),
            Event::GoAway { .. } => {
                up.leaving.set(true);
                return;
            }
            Event::HeadTooLarge { .. } | Event::Rejected { .. } | Event::Settings | Event::Pong(_) => return,
        };
        let Some(end) = found(links, own) else {
            if let Heard::Data(bytes, _) = heard {
                wire.core.release(own, bytes.len());
            }
            return;
        };
        // What the other end does not want any more is reset.
        let code = match end {
            OtherEnd::Caller(down, stream) => down.hear(worker, stream, heard, (wire, own), now),
            OtherEnd::Copy(copy) => copy.hear(&heard, wire, own),
        };
        if let Some(code) = code {
            state.unlink(own, code);
        }
    }

    /// Makes itself known once the endpoint's SETTINGS are here, and unknown when it takes no more.
    fn settle(&mut self, now: u64) {
        let state = self.up.state.borrow();
        let started = state.wire.core.is_started();
        if state.wire.core.active() > 0 {
            self.unused_since = now;
        }
        drop(state);
        if started && !self.open {
            self.open = true;
            self.unused_since = now;
            self.upstream.h2.opened(self.up);
        }
        if self.open && self.up.leaving.get() {
            self.upstream.h2.gone(self.worker, self.upstream, self.up);
        }
    }

    /// Gives its place among the busy connections back: nobody uses it. It is closed if there are too many.
    fn rest(&mut self, cx: &Task<'_>) {
        if std::mem::take(&mut self.lent) {
            // Whoever was told comes first.
            cx.waker().wake_by_ref();
            return;
        }
        let Some(busy) = self.up.busy.take() else { return };
        let config = self.upstream.config();
        let many = config.shared.open() > config.limits.connections;
        if many && !self.upstream.h2.is_wanted(self.up.endpoint) {
            self.up.leaving.set(true);
        }
        drop(busy);
    }

    /// Opens streams for who waits. Who has waited for this connection gets it, whatever has changed meanwhile: another one
    /// to the same endpoint would fit no better, and the next neither.
    fn serve_waiting(&mut self, now: u64) {
        self.provide_at = u64::MAX;
        if !self.open {
            return;
        }
        let (mut short, begins) = (false, self.up.begins());
        while self.upstream.h2.is_wanted(self.up.endpoint) && self.up.has_places() {
            // Who has waited for a place together shares it.
            short = !(begins && self.up.is_busy() || self.up.occupy(self.upstream, now));
            if short {
                break;
            }
            let Some(waiter) = self.upstream.h2.next(self.up.endpoint) else { return };
            waiter.launch(self.up, now);
            self.lent = true;
        }
        if !self.up.suits(self.upstream) {
            self.up.leaving.set(true);
        }
        // This one is full, or has no place: who still waits gets another. One that takes nothing at all is asked for another
        // one once.
        let full = short || {
            let state = self.up.state.borrow();
            state.wire.core.active() > 0 || state.wire.core.unread() > 0
        };
        let pool = &self.upstream.h2;
        let endpoint = self.up.endpoint;
        let another =
            full || pool.is_wanted(endpoint) && !self.up.barren.replace(true) && pool.another_may(endpoint);
        let later =
            another.then(|| pool.provide(self.worker, self.upstream, endpoint, self.up.address)).flatten();
        self.provide_at = later.unwrap_or(u64::MAX);
    }

    /// Lets those go on that had to stop.
    fn pump(&mut self, now: u64) {
        loop {
            let mut state = self.up.state.borrow_mut();
            let Some(own) = state.wire.callable() else { return };
            let found = state.links.get(own.slot()).and_then(Option::as_ref);
            let Some(link) = found.filter(|link| link.own == own) else {
                let _ = state.wire.send(own, &[], false);
                continue;
            };
            match link.end.clone() {
                OtherEnd::Caller(down, stream) => {
                    if let Some(code) = down.pump_up(stream, (&mut state.wire, own), now) {
                        state.unlink(own, code);
                    }
                }
                OtherEnd::Copy(copy) => copy.pump(&mut state.wire, own, &self.worker.buffers),
            }
        }
    }

    /// `Ready(None)`: look again.
    fn poll_alarm(&mut self, cx: &Task<'_>, now: u64, active: usize) -> Poll<Option<End>> {
        let pulse = self.up.state.borrow_mut().wire.feel_pulse(now);
        let Ok(pulse) = pulse else {
            let silent = io::Error::new(io::ErrorKind::TimedOut, "the endpoint does not answer any more");
            return Poll::Ready(Some(End::Lost(Some(silent.into()))));
        };
        let unused_at = match active {
            0 => self.unused_since.saturating_add(millis(Some(self.upstream.pool_idle()))),
            _ => u64::MAX,
        };
        let worn_at = match active {
            _ if !self.open || self.up.leaving.get() => u64::MAX,
            0 => self.connection.worn_at().max(self.unused_since.saturating_add(REST)),
            _ => self.connection.worn_at().max(self.up.again_at.get()),
        };
        let begin_by = if self.open { u64::MAX } else { self.begin_by };
        if now >= begin_by {
            let late = ProxyError::new(Side::Upstream, Reason::ConnectTimeout).with_retry(Retry::Safe);
            self.failure = Some(late);
            return Poll::Ready(Some(End::Lost(None)));
        }
        if self.open && now >= unused_at || active == 0 && now >= worn_at {
            self.up.leaving.set(true);
            return Poll::Ready(None);
        }
        if now >= worn_at {
            // It serves on until there is another: one may not be made, or not be allowed, while this one is here.
            self.up.again_at.set(now.saturating_add(AGAIN));
            self.upstream.h2.succeed(self.worker, self.upstream, self.up);
            return Poll::Ready(None);
        }
        // Then who waits may have it after all.
        let yields = self.up.yields.get();
        let yields = if yields > now { yields } else { u64::MAX };
        self.alarm
            .set_at(pulse.min(unused_at).min(worn_at).min(begin_by).min(yields).min(self.provide_at), now);
        if self.asks != pulse && pulse != u64::MAX {
            // The question is to be written.
            self.asks = pulse;
            return Poll::Ready(None);
        }
        self.alarm.poll_rung(cx).map(|()| None)
    }
}

/// What a cause of a reset says, for people.
pub(super) fn describe(cause: ResetCause, code: ErrorCode) -> String {
    match cause {
        ResetCause::Peer => format!("RST_STREAM with {code}"),
        ResetCause::Fault(fault) => fault.to_string(),
        ResetCause::GoAway => "GOAWAY before it was processed".to_owned(),
        ResetCause::Lost => "the connection ended".to_owned(),
    }
}

/// Whether an error of sending means that another connection has to be used.
pub(super) const fn is_full(error: SendError) -> bool {
    matches!(error, SendError::Busy | SendError::Over)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    /// What a connection to an endpoint holds beside its streams, its buffers and the protocol's state.
    #[test]
    fn a_connection_is_small() {
        let task = size(run);
        println!("connection {task}, state {}", size_of::<Up>());
        assert!(task <= 384, "{task}");
        assert!(size_of::<Up>() <= 1320, "{}", size_of::<Up>());
    }
}
