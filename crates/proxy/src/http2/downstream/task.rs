//! What drives a caller's connection: reading, writing, limits, the drain.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use outrider_http2::{
    Config, Connection as Core, ErrorCode, Event, Head, HeadKind, Malformed, ResetCause, Role, Stream,
    StreamFault, Violation,
};
use outrider_proxy_core::http1::reply::Reply;
use outrider_proxy_core::reason::{ProxyError, Reason, Side};
use tokio::io::AsyncWriteExt;

use super::{Down, DownState, find};
use crate::buffers::{Filled, Inbox, SIZES};
use crate::config::{Http2, HttpService};
use crate::connection::{Downstream, http2_service, let_in};
use crate::http::linger;
use crate::http2::exchange::{Exchange, NEVER, millis};
use crate::http2::mirror::lines_of;
use crate::http2::reply::Failure;
use crate::http2::wire::Wire;
use crate::stream::Stream as Transport;
use crate::timers::Alarm;
use crate::worker::{Kind, Open, Stage};

/// How long a peer may take none of the last bytes of a connection.
const LAST_BYTES: u64 = 60_000;

/// How long a client may take to answer the first GOAWAY of a connection that nobody uses, and how long one that has just
/// come may take to bring its first request.
const PATIENCE: u64 = 5_000;
/// How long who is refused may stay.
const REFUSED: Duration = Duration::from_secs(10);
/// How long the last bytes may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a connection is over.
enum End {
    /// Everything was said and done.
    Over,
    /// The caller is gone.
    Gone,
    /// The caller did not finish in time what it had begun to say.
    Unfinished,
    /// The caller broke a rule, which it has been told.
    Violation(Violation),
    /// The drain's deadline is here.
    Cut,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(open: &Open, downstream: &mut Downstream) {
    let Open { worker, serving, .. } = open;
    let mut xfcc = Vec::new();
    if let Some(peer) = &downstream.peer {
        xfcc.extend_from_slice(b"URI=");
        xfcc.extend_from_slice(peer.as_bytes());
    }
    let now = worker.timers.now();
    let service = http2_service(serving, downstream.peer.is_some());
    let defaults = Http2 {
        max_streams: 100,
        stream_window: 65_535,
        connection_window: 65_535,
        connect: false,
        keepalive: None,
    };
    let settings = service.as_ref().and_then(|service| service.version.http2()).copied().unwrap_or(defaults);
    let limits = service.as_ref().map(|service| service.limits).unwrap_or_default();
    let from = downstream.stream.peer_address();
    let config = Config {
        huffman: !from.is_some_and(|from| from.ip().is_loopback()),
        stream_window: settings.stream_window,
        connection_window: settings.connection_window,
        max_streams: settings.max_streams,
        connect_protocol: settings.connect && service.as_ref().is_some_and(|service| service.upgrades),
        max_head: u32::try_from(limits.max_head).unwrap_or(u32::MAX),
        max_fields: u32::try_from(limits.max_headers).unwrap_or(u32::MAX),
        ..Config::default()
    };
    let keepalive =
        settings.keepalive.map(|(interval, timeout)| (millis(Some(interval)), millis(Some(timeout))));
    let wire = Wire::new(Core::new(Role::Server, config, now), keepalive, now);
    let down = Rc::new(Down {
        worker: Rc::clone(worker),
        serving: Rc::clone(serving),
        peer: downstream.peer.clone(),
        from,
        xfcc,
        again: RefCell::default(),
        state: RefCell::new(DownState { wire, exchanges: Vec::new(), running: 0, sockets: 0, due: NEVER }),
    });
    let Downstream { stream, alarm, .. } = downstream;
    let mut task = Driver {
        open,
        down: &down,
        transport: stream,
        alarm,
        inbox: Inbox::default(),
        class: 0,
        greeted: false,
        changes: serving.changes(),
        limits: Limits::of(service.as_deref().map(|service| &**service)),
        idle_since: now,
        within_head_since: Some(now),
        finish_at: NEVER,
        asked: false,
        began: now,
        asks: NEVER,
        moved_at: now,
        sent: 0,
        flushed: true,
        leave_at: if service.is_none() { now.saturating_add(millis(Some(REFUSED))) } else { NEVER },
    };
    let end = poll_fn(|cx| task.poll(cx)).await;
    let greeted = task.greeted;
    let mut inbox = std::mem::take(&mut task.inbox);
    down.end(&end);
    inbox.clear(&worker.buffers);
    open.becomes(Kind::Ending);
    alarm.set(Some(FAREWELL));
    match end {
        End::Gone => {}
        End::Violation(Violation::Preface) if !greeted => {
            let detail = "This port speaks HTTP/2 only, with prior knowledge.";
            let reply = Reply { close: true, detail, ..Reply::new(Reason::UnsupportedVersion) };
            let mut out = worker.buffers.take_scratch();
            reply.write(&mut out);
            let _ = alarm.within(stream.write_all(&out)).await;
            worker.buffers.give_scratch(out);
            linger(&worker.buffers, stream, alarm).await;
        }
        End::Over | End::Unfinished | End::Violation(_) | End::Cut => {
            let last = poll_fn(|cx| {
                let mut state = down.state.borrow_mut();
                state.wire.poll_write(cx, stream, &worker.buffers, &mut 0)
            });
            if matches!(alarm.within(last).await, Some(Ok(()))) {
                linger(&worker.buffers, stream, alarm).await;
            }
        }
    }
}

impl Down {
    /// Cancels what is still open.
    fn end(self: &Rc<Self>, end: &End) {
        let mut state = self.state.borrow_mut();
        let (reason, cause) = match end {
            End::Over | End::Cut => (None, String::new()),
            End::Gone => (Some(Reason::ClientGone), String::new()),
            End::Unfinished => (Some(Reason::RequestHeadTimeout), String::new()),
            End::Violation(violation) => (Some(Reason::BadRequest), violation.to_string()),
        };
        let mut told = false;
        for slot in 0..state.exchanges.len() {
            let Some(stream) = state.exchanges.get(slot).and_then(Option::as_ref).map(|open| open.stream)
            else {
                continue;
            };
            if let Some(reason) = reason {
                told = true;
                let error = ProxyError::new(Side::Downstream, reason).with_source(cause.clone());
                self.record(find(&mut state.exchanges, stream), &error);
            }
            self.conclude(&mut state, stream, ErrorCode::CANCEL);
        }
        if let (End::Violation(_) | End::Unfinished, Some(reason), false) = (end, reason, told) {
            let error = ProxyError::new(Side::Downstream, reason).with_source(cause);
            self.record(None, &error);
        }
    }
}

/// Limits of a connection as such, in milliseconds.
struct Limits {
    /// Without a request.
    idle: u64,
    /// For a head, from its first byte.
    head: u64,
    /// Without a byte that the caller takes.
    stall: u64,
}

impl Limits {
    fn of(service: Option<&HttpService>) -> Self {
        let refused = || millis(Some(REFUSED));
        Self {
            idle: service.map_or_else(refused, |service| millis(Some(service.connection_idle))),
            head: service.map_or_else(refused, |service| millis(Some(service.head_timeout))),
            stall: service.map_or_else(refused, |service| millis(service.idle)),
        }
    }
}

/// What drives it.
struct Driver<'a> {
    open: &'a Open,
    down: &'a Rc<Down>,
    transport: &'a mut Transport,
    alarm: &'a Alarm,
    inbox: Inbox,
    /// Size class of reads.
    class: usize,
    /// The preface was here; nothing is written before.
    greeted: bool,
    /// Of the configuration when access was decided last.
    changes: u64,
    limits: Limits,
    idle_since: u64,
    /// Since when something other than a body is incomplete.
    within_head_since: Option<u64>,
    /// When a drain that the client does not answer becomes final.
    finish_at: u64,
    /// It has brought a request.
    asked: bool,
    began: u64,
    /// When the connection has to be over.
    leave_at: u64,
    /// When a peer that was asked has to have answered, or is to be asked.
    asks: u64,
    /// When bytes were written last, or there were none.
    moved_at: u64,
    /// Bytes that a session had handed to the kernel by then.
    sent: u64,
    /// Nothing waits for the peer, in a session neither.
    flushed: bool,
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut Task<'_>) -> Poll<End> {
        self.down.state.borrow_mut().wire.register(cx);
        loop {
            let now = self.open.worker.timers.now();
            let mut again = false;
            if let Some(end) = self.look_around(now) {
                return Poll::Ready(end);
            }
            self.send_again(now);
            if self.down.state.borrow().wire.may_read() {
                self.inbox.prefer(self.class, &self.open.worker.buffers);
                match self.inbox.poll_fill(cx, self.transport, &self.open.worker.buffers, self.class) {
                    Poll::Ready(Ok(Filled::Bytes(n))) => {
                        self.class = usize::from(n >= SIZES[0]);
                        self.open.serving.stats.borrow_mut().bytes_in += n as u64;
                        again = true;
                        if let Err(violation) = self.feed(now) {
                            return Poll::Ready(End::Violation(violation));
                        }
                    }
                    Poll::Ready(Ok(Filled::End) | Err(_)) => return Poll::Ready(End::Gone),
                    Poll::Pending => {}
                }
            } else {
                // What is not read cannot become whole, nor answer.
                self.within_head_since = self.within_head_since.map(|_| now);
                self.down.state.borrow_mut().wire.heard(now);
            }
            self.send_again(now);
            self.pump(now);
            if self.greeted {
                let mut state = self.down.state.borrow_mut();
                let mut moved = 0;
                let full = !state.wire.has_room();
                let written =
                    state.wire.poll_write(cx, self.transport, &self.open.worker.buffers, &mut moved);
                // Nothing else tells those who had to stop that there is room again, or has it read on.
                again |= full && state.wire.has_room();
                let waits = state.wire.take_waits();
                let mut stats = self.open.serving.stats.borrow_mut();
                stats.bytes_out += moved;
                stats.waits.add(waits);
                drop(stats);
                self.flushed = written.is_ready();
                let sent = self.transport.sent();
                if moved > 0 || written.is_ready() || sent != self.sent {
                    self.sent = sent;
                    self.moved_at = now;
                }
                match written {
                    Poll::Ready(Err(_)) => return Poll::Ready(End::Gone),
                    Poll::Ready(Ok(())) if state.wire.core.is_over() => return Poll::Ready(End::Over),
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                }
            }
            if !self.greeted && self.down.state.borrow().wire.core.is_over() {
                return Poll::Ready(End::Over);
            }
            {
                let state = self.down.state.borrow();
                self.open.weigh(state.running, state.sockets);
            }
            match self.poll_alarm(cx, now) {
                Poll::Ready(Some(end)) => return Poll::Ready(end),
                Poll::Ready(None) => {}
                Poll::Pending if again || !self.down.again.borrow().is_empty() => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The drain, memory and configuration.
    fn look_around(&mut self, now: u64) -> Option<End> {
        let stage = self.open.stage();
        let changes = self.open.serving.changes();
        if self.changes != changes {
            self.changes = changes;
            let service = self.down.service();
            self.limits = Limits::of(service.as_deref().map(|service| &**service));
            if let Some(service) = service {
                match let_in(&service.access, self.down.caller()) {
                    Err(_) if !self.down.finishes() => self.fail_all(|open| {
                        let refused = || let_in(&service.access, self.down.caller()).err().map(Into::into);
                        (!open.is_answered).then(refused).flatten()
                    }),
                    _ if service.rules.is_some() => {
                        self.fail_all(|open| self.down.still_permitted(&service, open).err());
                    }
                    _ => {}
                }
            }
        }
        if stage == Stage::Cut {
            self.fail_all(|_| Some(ProxyError::new(Side::Local, Reason::Draining).into()));
            self.down.state.borrow_mut().wire.core.finish_drain();
            return Some(End::Cut);
        }
        if stage >= Stage::Closing {
            self.say_goodbye();
        }
        let mut state = self.down.state.borrow_mut();
        // Who has just come to ask something is served before.
        let new = !self.asked && now < self.began.saturating_add(PATIENCE);
        if stage >= Stage::Draining && !new {
            state.wire.core.drain();
        }
        if (stage >= Stage::Parting && !new) || now >= self.finish_at {
            state.wire.core.finish_drain();
        }
        if state.running > 0 {
            self.idle_since = now;
        } else if stage == Stage::Open && self.open.worker.is_saving() && self.greeted {
            self.part(&mut state, now);
        }
        None
    }

    /// Has WebSockets told that they end soon.
    fn say_goodbye(&self) {
        let mut state = self.down.state.borrow_mut();
        for slot in 0..state.exchanges.len() {
            let found = state.exchanges.get_mut(slot).and_then(Option::as_mut);
            let Some(exchange) = found.filter(|exchange| !exchange.down.done) else { continue };
            let Some(frames) = exchange.down.socket.as_mut().filter(|frames| frames.is_passive()) else {
                continue;
            };
            frames.say_goodbye();
            let stream = exchange.stream;
            self.go_on(&mut state, stream);
        }
    }

    /// Passes on what waits for its caller.
    fn go_on(&self, state: &mut DownState, stream: Stream) {
        let DownState { wire, exchanges, .. } = state;
        let Some(exchange) = find(exchanges, stream) else { return };
        let buffers = &self.down.worker.buffers;
        match &exchange.leg {
            Some(leg) => {
                let mut up = leg.up.state.borrow_mut();
                let from = Some((&mut up.wire, leg.stream));
                exchange.down.pass(&[], from, (wire, stream), buffers);
                up.wire.wake();
            }
            None => exchange.down.pass(&[], None, (wire, stream), buffers),
        }
        if let Some(bridge) = &exchange.bridge {
            bridge.wake();
        }
    }

    /// Begins to end a connection that nobody uses.
    fn part(&mut self, state: &mut DownState, now: u64) {
        state.wire.core.drain();
        if self.finish_at == NEVER {
            self.finish_at = now.saturating_add(PATIENCE);
        }
    }

    fn send_again(&mut self, now: u64) {
        loop {
            // Not within the condition: it must not be borrowed while it is used.
            let next = self.down.again.borrow_mut().pop();
            let Some(stream) = next else { return };
            let mut state = self.down.state.borrow_mut();
            let waits = find(&mut state.exchanges, stream)
                .filter(|open| open.leg.is_none() && open.waits.is_none() && open.bridge.is_none())
                .filter(|open| !open.started)
                .map(|open| open.upstream.is_some());
            if let Some(chosen) = waits {
                let sent = match chosen {
                    true => self.down.send(&mut state, stream, now),
                    false => self.down.go_on(&mut state, stream, now),
                };
                if let Err(failure) = sent {
                    self.down.fail(&mut state, stream, failure);
                }
                self.down.settle(&mut state, stream);
                state.note_due(stream);
            }
        }
    }

    /// Takes what was read apart.
    fn feed(&mut self, now: u64) -> Result<(), Violation> {
        let worker = &self.open.worker;
        let mut head = worker.heads2.take();
        let inbox = std::mem::take(&mut self.inbox);
        let bytes = inbox.bytes();
        let mut at = 0;
        self.down.state.borrow_mut().wire.heard(now);
        let fed = loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let mut state = self.down.state.borrow_mut();
            let step = match state.wire.core.receive(rest, &mut head, now) {
                Ok(step) => step,
                Err(violation) => break Err(violation),
            };
            at += step.consumed;
            match step.event {
                Some(event) => self.handle(&mut state, event, &mut head, rest, now),
                None if at == bytes.len() => break Ok(()),
                None => {}
            }
        };
        self.inbox = inbox;
        let read = self.inbox.len();
        self.inbox.consume(read);
        worker.heads2.give(head, worker.is_saving());
        let state = self.down.state.borrow();
        self.greeted |= fed.is_ok() && state.wire.core.is_greeted();
        self.within_head_since = match state.wire.core.is_within_head() {
            true => self.within_head_since.or(Some(now)),
            false => None,
        };
        fed
    }

    fn handle(&mut self, state: &mut DownState, event: Event, head: &mut Box<Head>, bytes: &[u8], now: u64) {
        let down = self.down;
        let buffers = &down.worker.buffers;
        match event {
            Event::Head { stream, kind: HeadKind::Request, end } => {
                let request = std::mem::replace(head, down.worker.heads2.take());
                self.begin(state, stream, request, end);
                if let Err(failure) = down.proxy(state, stream, now) {
                    self.refuse(state, stream, failure);
                }
                down.settle(state, stream);
                state.note_due(stream);
            }
            Event::HeadTooLarge { stream, too_many, end } => {
                let request = std::mem::replace(head, down.worker.heads2.take());
                self.begin(state, stream, request, end);
                let reason = if too_many { Reason::TooManyHeaders } else { Reason::HeaderTooLarge };
                let error = ProxyError::new(Side::Downstream, reason);
                self.refuse(state, stream, Failure::from(error));
                down.settle(state, stream);
                state.note_due(stream);
            }
            Event::Head { stream, .. } => {
                let DownState { wire, exchanges, .. } = state;
                let Some(exchange) = find(exchanges, stream) else { return };
                exchange.progress(now);
                exchange.up.ended = true;
                if exchange.up.done {
                    down.settle(state, stream);
                    return;
                }
                if let Some(taps) = &exchange.taps {
                    taps.finish(&lines_of(head));
                }
                exchange.up.trailers = Some(std::mem::replace(head, down.worker.heads2.take()));
                if let Some(leg) = &exchange.leg {
                    let mut up = leg.up.state.borrow_mut();
                    let to = (&mut up.wire, leg.stream);
                    exchange.up.pass(&[], Some((wire, stream)), to, buffers);
                    up.wire.wake();
                }
                if let Some(bridge) = &exchange.bridge {
                    bridge.wake();
                }
                self.passed(state, stream);
            }
            Event::Data { stream, range, end } => {
                let fresh = bytes.get(range).unwrap_or_default();
                let DownState { wire, exchanges, .. } = state;
                let Some(exchange) = find(exchanges, stream) else {
                    wire.core.release(stream, fresh.len());
                    return;
                };
                exchange.progress(now);
                exchange.up.ended |= end;
                if exchange.up.done {
                    wire.core.release(stream, fresh.len());
                    down.settle(state, stream);
                    return;
                }
                if let Some(taps) = &exchange.taps {
                    taps.push(fresh, end);
                }
                exchange.remember(fresh, buffers);
                match &exchange.leg {
                    Some(leg) => {
                        let mut up = leg.up.state.borrow_mut();
                        let to = (&mut up.wire, leg.stream);
                        exchange.up.pass(fresh, Some((wire, stream)), to, buffers);
                        up.wire.wake();
                    }
                    None => exchange.up.hold(fresh, buffers),
                }
                if let Some(bridge) = &exchange.bridge {
                    bridge.wake();
                }
                self.passed(state, stream);
            }
            Event::Reset { stream, code, cause } => {
                let Some(exchange) = find(&mut state.exchanges, stream) else { return };
                let told = exchange.down.done;
                let (reason, code, cause) = match cause {
                    ResetCause::Fault(fault) => (invalid(fault), ErrorCode::CANCEL, fault.to_string()),
                    _ => (Reason::ClientGone, code, format!("RST_STREAM with {code}")),
                };
                if !told {
                    let error = ProxyError::new(Side::Downstream, reason).with_source(cause);
                    down.record(find(&mut state.exchanges, stream), &error);
                }
                down.conclude(state, stream, code);
            }
            Event::Rejected { fault, .. } => {
                down.serving.stats.borrow_mut().requests += 1;
                let reason = invalid(fault);
                let error = ProxyError::new(Side::Downstream, reason).with_source(fault);
                down.record(None, &error);
            }
            Event::GoAway { .. } | Event::Settings | Event::Pong(_) => {}
        }
    }

    /// Makes room for a request.
    fn begin(&mut self, state: &mut DownState, stream: Stream, request: Box<Head>, end: bool) {
        self.asked = true;
        let slot = stream.slot();
        let former = state.exchanges.get(slot).and_then(Option::as_ref).map(|exchange| exchange.stream);
        if let Some(former) = former {
            self.down.conclude(state, former, ErrorCode::CANCEL);
        }
        if state.exchanges.len() <= slot {
            state.exchanges.resize_with(slot + 1, || None);
        }
        if let Some(place) = state.exchanges.get_mut(slot) {
            *place = Some(Exchange::new(stream, request, end, &self.down.worker.timers));
        }
        state.running += 1;
        let mut stats = self.open.serving.stats.borrow_mut();
        stats.requests += 1;
        stats.active_requests += 1;
    }

    /// Answers a request that goes nowhere. Who is not to be here is sent away with it.
    fn refuse(&mut self, state: &mut DownState, stream: Stream, failure: Failure) {
        let away = failure.error.reason == Reason::MtlsRequired && self.down.service().is_none();
        self.down.fail(state, stream, failure);
        if away {
            state.wire.core.finish_drain();
        }
    }

    fn passed(&self, state: &mut DownState, stream: Stream) {
        self.down.fail_unfit(state, stream);
        if let Some(exchange) = find(&mut state.exchanges, stream)
            && exchange.up.done
        {
            exchange.asked(&self.down.worker.timers);
        }
        state.note_due(stream);
        self.down.settle(state, stream);
    }

    /// Lets those go on that had to stop.
    fn pump(&mut self, now: u64) {
        let mut state = self.down.state.borrow_mut();
        while let Some(stream) = state.wire.callable() {
            let DownState { wire, exchanges, .. } = &mut *state;
            let Some(exchange) = find(exchanges, stream) else {
                let _ = wire.send(stream, &[], false);
                continue;
            };
            exchange.progress(now);
            self.go_on(&mut state, stream);
            self.down.fail_unfit(&mut state, stream);
            self.down.settle(&mut state, stream);
        }
    }

    /// Fails every request for which there is a reason.
    fn fail_all(&self, why: impl Fn(&Exchange) -> Option<Failure>) {
        let mut state = self.down.state.borrow_mut();
        for slot in 0..state.exchanges.len() {
            let found = state.exchanges.get(slot).and_then(Option::as_ref);
            let Some((stream, failure)) = found.and_then(|open| Some((open.stream, why(open)?))) else {
                continue;
            };
            self.down.fail(&mut state, stream, failure);
        }
    }

    /// Looks at every limit. `Ready(None)`: look again.
    fn poll_alarm(&mut self, cx: &Task<'_>, now: u64) -> Poll<Option<End>> {
        if now >= self.down.state.borrow().due {
            let mut state = self.down.state.borrow_mut();
            self.down.expire(&mut state, now);
            state.due = state.exchanges.iter().flatten().map(Exchange::due_at).min().unwrap_or(NEVER);
            return Poll::Ready(None);
        }
        let mut state = self.down.state.borrow_mut();
        let Limits { idle, head, stall } = self.limits;
        let idle_at = match state.running {
            0 if self.finish_at == NEVER => self.idle_since.saturating_add(idle),
            _ => NEVER,
        };
        let head_at = self.within_head_since.map_or(NEVER, |since| since.saturating_add(head));
        let stall = if state.wire.core.is_over() { stall.min(LAST_BYTES) } else { stall };
        let stalled_at = match self.flushed && state.wire.is_flushed() {
            true => NEVER,
            false => self.moved_at.saturating_add(stall),
        };
        let Ok(pulse) = state.wire.feel_pulse(now) else { return Poll::Ready(Some(End::Gone)) };
        if now >= stalled_at {
            return Poll::Ready(Some(End::Gone));
        }
        if now >= self.leave_at.min(head_at) {
            state.wire.core.close(ErrorCode::NO_ERROR);
            return Poll::Ready(Some(if now >= head_at { End::Unfinished } else { End::Over }));
        }
        if now >= idle_at {
            self.part(&mut state, now);
            return Poll::Ready(None);
        }
        let finish_at = if now >= self.finish_at { NEVER } else { self.finish_at };
        let new_until = if self.asked { NEVER } else { self.began.saturating_add(PATIENCE) };
        let new_until = if now >= new_until { NEVER } else { new_until };
        let limits = [idle_at, head_at, finish_at, new_until, self.leave_at, pulse, stalled_at];
        self.alarm.set_at(limits.into_iter().fold(state.due, u64::min), now);
        if self.asks != pulse && pulse != NEVER {
            // The question is to be written.
            self.asks = pulse;
            return Poll::Ready(None);
        }
        self.alarm.poll_rung(cx).map(|()| None)
    }
}

/// What a request that breaks a rule is called.
fn invalid(fault: StreamFault) -> Reason {
    match fault {
        StreamFault::Malformed(Malformed::Authority | Malformed::Host) => Reason::InvalidHost,
        StreamFault::Malformed(Malformed::ContentLength | Malformed::LookAlike) => Reason::AmbiguousFraming,
        StreamFault::Malformed(
            Malformed::BodyLength | Malformed::Body | Malformed::End | Malformed::Trailer,
        ) => Reason::InvalidBody,
        StreamFault::TooManyStreams => Reason::OverloadRequests,
        StreamFault::TooLarge => Reason::HeaderTooLarge,
        _ => Reason::BadRequest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_malformed_has_a_reason() {
        assert_eq!(invalid(Malformed::Host.into()), Reason::InvalidHost);
        assert_eq!(invalid(Malformed::BodyLength.into()), Reason::InvalidBody);
        assert_eq!(invalid(Malformed::Name.into()), Reason::BadRequest);
    }
}
