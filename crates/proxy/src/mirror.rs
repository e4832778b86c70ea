//! Copies of requests that go elsewhere as well: sent and forgotten.
//!
//! ```text
//! caller ──► request ──► endpoint
//!               └─ taps ──► tap (bounded) ──► a task of its own ──► another endpoint ──► nobody
//! ```
//! Holds: nothing that becomes of a copy is seen by its original, which waits for none. What a copy has yet to send of its
//! body is at most [`HELD`] bytes, and of all copies of a worker, heads and trailers included, [`HELD_BY_ALL`]; a copy that
//! cannot keep pace is given up, and counted. No copy is sent twice, and its answer is read and thrown away. A copy of a
//! request that breaks off breaks off; one whose original is over ends soon after, whatever its answer does.
//!
//! Does not: copy what asks for another protocol (WebSocket), wait for a place among the connections of a cluster, or
//! tell of an endpoint's health. Nor does it keep copies apart from requests to the same cluster, where a route sends both
//! there: they take places among its connections, and over HTTP/2 a copy whose body is not read holds a part of the
//! send window of the connection that it shares until it is given up.

use std::cell::{Cell, Ref, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as Task, Poll, Waker, ready};
use std::time::Duration;

use outrider_proxy_core::http1::body::{BodyFraming, BodyScanner};
use outrider_proxy_core::http1::head::Asked;
use outrider_proxy_core::http1::{Limits, Parsed};
use outrider_proxy_core::route::RouteTimeouts;
use tokio::io::AsyncWrite;

use crate::buffers::Filled;
use crate::http2::Lines;
use crate::timers::Alarm;
use crate::upstream::{Connection, Upstream};
use crate::worker::{Heads, Worker};

/// Most bytes of a body that wait to be sent with one copy.
const HELD: usize = 64 << 10;
/// The same of all copies of a worker.
const HELD_BY_ALL: usize = 4 << 20;
/// Most copies of a worker at once.
const AT_ONCE: usize = 256;
/// How long nothing may move where the route has no limits.
const PATIENCE: Duration = Duration::from_secs(15);
/// Interim responses to one copy, as to its original.
const INTERIM: u32 = 32;

/// What a worker's copies take.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    running: Cell<usize>,
    held: Cell<usize>,
}

/// A copy was given up. Nobody is told but the numbers.
#[derive(Debug)]
pub(crate) struct Lost;

impl From<io::Error> for Lost {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// What a copy has yet to send of its body, between who reads it and who sends it.
pub(crate) struct Tap {
    copies: Rc<Copies>,
    state: RefCell<TapState>,
}

#[derive(Default)]
struct TapState {
    bytes: Vec<u8>,
    start: usize,
    /// All of the body is or was here.
    ended: bool,
    /// What follows it, in HTTP/2.
    trailers: Lines,
    /// Bytes of head and trailers, which count as held as long as the copy lives.
    kept: usize,
    lost: bool,
    /// The original is over, answered or not.
    over: bool,
    /// The copy is.
    left: bool,
    waker: Option<Waker>,
}

/// What there is for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Bytes to send.
    Bytes,
    /// Nothing yet.
    Wait,
    /// All is sent, but for trailers, if there are any.
    End,
}

impl Tap {
    fn new(copies: &Rc<Copies>, head: usize) -> Rc<Self> {
        copies.running.set(copies.running.get() + 1);
        copies.held.set(copies.held.get() + head);
        let state = RefCell::new(TapState { kept: head, ..TapState::default() });
        Rc::new(Self { copies: Rc::clone(copies), state })
    }

    fn hold(&self, more: usize, less: usize) {
        self.copies.held.set(self.copies.held.get().saturating_add(more).saturating_sub(less));
    }

    fn push(&self, bytes: &[u8], trailers: &Lines, end: bool) {
        let mut state = self.state.borrow_mut();
        if state.lost || state.ended {
            return;
        }
        let waiting = state.bytes.len() - state.start;
        let more = bytes.len() + trailers.size();
        if waiting + bytes.len() > HELD || self.copies.held.get() + more > HELD_BY_ALL {
            state.lost = true;
            self.hold(0, waiting);
            state.bytes = Vec::new();
            state.start = 0;
        } else {
            self.hold(more, 0);
            state.bytes.extend_from_slice(bytes);
            state.kept += trailers.size();
            state.trailers.clone_from(trailers);
            state.ended = end;
        }
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// The original is over, and says no more.
    fn close(&self) {
        let mut state = self.state.borrow_mut();
        state.over = true;
        state.lost |= !state.ended;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// The copy is over: it holds nothing, and takes no place.
    fn leave(&self) {
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.left, true) {
            return;
        }
        self.hold(0, state.bytes.len() - state.start + state.kept);
        self.copies.running.set(self.copies.running.get().saturating_sub(1));
        state.bytes = Vec::new();
        state.start = 0;
        state.trailers = Lines::default();
        state.lost = true;
    }

    /// Whether the original is over.
    pub(crate) fn is_over(&self) -> bool {
        self.state.borrow().over
    }

    /// Wakes who sends it.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.state.borrow_mut().waker.take() {
            waker.wake();
        }
    }

    /// Whom a change wakes.
    pub(crate) fn register(&self, cx: &Task<'_>) {
        self.state.borrow_mut().waker = Some(cx.waker().clone());
    }

    /// What there is.
    pub(crate) fn next(&self) -> Result<Next, Lost> {
        let state = self.state.borrow();
        match (state.lost, state.start < state.bytes.len(), state.ended) {
            (true, ..) => Err(Lost),
            (_, true, _) => Ok(Next::Bytes),
            (_, _, true) => Ok(Next::End),
            _ => Ok(Next::Wait),
        }
    }

    /// The bytes to send.
    pub(crate) fn bytes(&self) -> Ref<'_, [u8]> {
        Ref::map(self.state.borrow(), |state| state.bytes.get(state.start..).unwrap_or_default())
    }

    /// What follows them at the end.
    pub(crate) fn trailers(&self) -> Ref<'_, Lines> {
        Ref::map(self.state.borrow(), |state| &state.trailers)
    }

    /// Whether nothing follows what is here.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.borrow().ended
    }

    /// So many of them are on their way.
    pub(crate) fn consume(&self, count: usize) {
        let mut state = self.state.borrow_mut();
        let count = count.min(state.bytes.len() - state.start);
        state.start += count;
        self.hold(0, count);
        if state.start == state.bytes.len() {
            state.bytes.clear();
            state.start = 0;
        } else if state.start >= state.bytes.len() / 2 {
            let start = std::mem::take(&mut state.start);
            state.bytes.drain(..start);
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The original's ends of its copies, to be kept until it is over. Dropped before the body has ended, it takes them with it.
#[derive(Default)]
pub(crate) struct Taps(Vec<Rc<Tap>>);

impl Taps {
    pub(crate) fn add(&mut self, tap: Rc<Tap>) {
        self.0.push(tap);
    }

    /// More of the body; `end`: and that is all.
    pub(crate) fn push(&self, bytes: &[u8], end: bool) {
        for tap in &self.0 {
            tap.push(bytes, &Lines::default(), end);
        }
    }

    /// The end of the body, with these fields behind it.
    pub(crate) fn finish(&self, trailers: &Lines) {
        for tap in &self.0 {
            tap.push(b"", trailers, true);
        }
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        for tap in &self.0 {
            tap.close();
        }
    }
}

/// A copy that has its place. Until this is dropped it is counted as under way, and then as made or lost.
pub(crate) struct Place {
    upstream: Rc<Upstream>,
    tap: Rc<Tap>,
    made: bool,
}

impl Place {
    /// How it gets its body.
    pub(crate) fn tap(&self) -> &Rc<Tap> {
        &self.tap
    }

    /// What became of it.
    pub(crate) fn end(mut self, outcome: &Result<(), Lost>) {
        self.made = outcome.is_ok();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tap.leave();
        let mut stats = self.upstream.stats.borrow_mut();
        stats.active_requests = stats.active_requests.saturating_sub(1);
        match self.made {
            true => stats.copies += 1,
            false => stats.copies_lost += 1,
        }
    }
}

/// A place for a copy to this cluster with so many bytes of a head, if there may be one more.
pub(crate) fn place(worker: &Worker, upstream: &Rc<Upstream>, head: usize) -> Option<Place> {
    let copies = &worker.copies;
    let full = copies.running.get() >= AT_ONCE || copies.held.get() + head > HELD_BY_ALL;
    if full || worker.is_saving() {
        not_made(upstream);
        return None;
    }
    upstream.stats.borrow_mut().active_requests += 1;
    Some(Place { upstream: Rc::clone(upstream), tap: Tap::new(copies, head), made: false })
}

/// Counts a copy that is lost before it has begun.
pub(crate) fn not_made(upstream: &Upstream) {
    upstream.stats.borrow_mut().copies_lost += 1;
}

/// How long a copy may take, in milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// Without anything that moves, and after the end of its original.
    quiet: u64,
    /// As a whole.
    total: u64,
}

impl Patience {
    /// As long as its original could, by the limits of their route.
    pub(crate) fn of(limits: RouteTimeouts) -> Self {
        let millis = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let quiet = limits.response_head.or(limits.total).unwrap_or(PATIENCE);
        Self { quiet: millis(quiet), total: limits.total.map_or(u64::MAX, millis) }
    }
}

/// When a copy is given up, on the worker's clock.
pub(crate) struct Deadline {
    quiet: u64,
    quiet_at: u64,
    /// Whatever moves.
    end_at: u64,
    /// Its original is over.
    over: bool,
}

impl Deadline {
    /// Of a copy that begins now.
    pub(crate) fn new(patience: Patience, now: u64) -> Self {
        let Patience { quiet, total } = patience;
        let at = |limit| now.saturating_add(limit);
        Self { quiet, quiet_at: at(quiet), end_at: at(total), over: false }
    }

    /// Ready once it has passed. `moved`: bytes of the copy, since this was asked last; say so the first time.
    pub(crate) fn poll(&mut self, cx: &Task<'_>, alarm: &Alarm, tap: &Tap, moved: bool) -> Poll<()> {
        let ends = tap.is_over() && !self.over;
        if moved || ends {
            let now = alarm.now();
            if moved {
                self.quiet_at = now.saturating_add(self.quiet);
            }
            if ends {
                self.over = true;
                self.end_at = self.end_at.min(now.saturating_add(self.quiet));
            }
            // An alarm that is set anew has not rung, which may happen each time.
            if now >= self.end_at {
                return Poll::Ready(());
            }
            alarm.set_at(self.quiet_at.min(self.end_at), now);
        }
        alarm.poll_rung(cx)
    }
}

/// A host as Envoy gives it to copies: `-shadow` before the port.
pub(crate) fn shadow(host: &[u8]) -> Vec<u8> {
    let colon = host.iter().rposition(|&byte| byte == b':');
    let port = colon.filter(|at| host.iter().skip(at + 1).all(u8::is_ascii_digit));
    let (name, port) = host.split_at(port.unwrap_or(host.len()));
    [name, b"-shadow", port].concat()
}

/// Sends a copy with HTTP/1: this head, and the body as it comes.
pub(crate) fn send(worker: &Rc<Worker>, place: Place, (head, asked): (Vec<u8>, Asked), patience: Patience) {
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        let outcome = run(&worker, &place, head, asked, patience).await;
        place.end(&outcome);
    });
}

async fn run(
    worker: &Rc<Worker>,
    Place { upstream, tap, .. }: &Place,
    head: Vec<u8>,
    asked: Asked,
    patience: Patience,
) -> Result<(), Lost> {
    let deadline = Deadline::new(patience, worker.timers.now());
    let busy = upstream.try_busy().ok_or(Lost)?;
    let picked =
        upstream.pick(worker.timers.lately_coarse(), || worker.random(), None, &[]).map_err(|_| Lost)?;
    let alarm = worker.timers.alarm();
    let connection = match upstream.take_idle(&picked, worker.timers.lately()) {
        Some(kept) => kept,
        None => upstream.connect(&picked, &alarm, worker).await.map_err(|_| Lost)?,
    };
    upstream.stats.borrow_mut().requests += 1;
    let mut heads = worker.take_heads();
    heads.response.reset();
    let mut copy = Copy {
        worker,
        connection: connection.with(busy),
        alarm: &alarm,
        tap,
        head,
        written: 0,
        sent: false,
        asked,
        heads: &mut heads,
        interim: 0,
        body: None,
        moved: true,
        deadline,
    };
    let outcome = poll_fn(|cx| copy.poll(cx)).await;
    let Copy { mut connection, sent, .. } = copy;
    connection.inbox.park(&worker.buffers);
    let told = heads.response.keep_alive_timeout();
    worker.give_heads(heads);
    match outcome {
        Ok(reuse) if reuse && sent && connection.inbox.is_empty() && !worker.is_saving() => {
            upstream.keep(connection, worker.timers.now(), told);
        }
        Ok(_) => {}
        Err(lost) => {
            connection.inbox.clear(&worker.buffers);
            connection.stream.reset_on_close();
            return Err(lost);
        }
    }
    Ok(())
}

/// A copy on its way.
struct Copy<'a> {
    worker: &'a Worker,
    connection: Connection,
    alarm: &'a Alarm,
    tap: &'a Tap,
    head: Vec<u8>,
    /// Bytes of the head.
    written: usize,
    /// All of it is with the endpoint.
    sent: bool,
    asked: Asked,
    heads: &'a mut Heads,
    interim: u32,
    /// Of the response, and whether the connection can be used again after it.
    body: Option<(BodyScanner, bool)>,
    moved: bool,
    deadline: Deadline,
}

impl Copy<'_> {
    /// Ready once the response is here as a whole; says whether the connection can be used again.
    fn poll(&mut self, cx: &mut Task<'_>) -> Poll<Result<bool, Lost>> {
        self.tap.register(cx);
        if !self.sent
            && let Poll::Ready(sent) = self.poll_send(cx)
        {
            sent?;
            self.sent = true;
        }
        if let Poll::Ready(outcome) = self.poll_response(cx) {
            return Poll::Ready(outcome);
        }
        let moved = std::mem::take(&mut self.moved);
        ready!(self.deadline.poll(cx, self.alarm, self.tap, moved));
        Poll::Ready(Err(Lost))
    }

    fn poll_send(&mut self, cx: &mut Task<'_>) -> Poll<Result<(), Lost>> {
        loop {
            let next = self.tap.next()?;
            let stream = Pin::new(&mut self.connection.stream);
            if self.written < self.head.len() {
                match ready!(stream.poll_write(cx, self.head.get(self.written..).unwrap_or_default()))? {
                    0 => return Poll::Ready(Err(Lost)),
                    n => self.written += n,
                }
            } else if next == Next::Bytes {
                let written = stream.poll_write(cx, &self.tap.bytes());
                match ready!(written)? {
                    0 => return Poll::Ready(Err(Lost)),
                    n => self.tap.consume(n),
                }
            } else {
                ready!(stream.poll_flush(cx))?;
                return if next == Next::End { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            self.moved = true;
        }
    }

    fn poll_response(&mut self, cx: &mut Task<'_>) -> Poll<Result<bool, Lost>> {
        loop {
            if let Some(reuse) = self.read()? {
                return Poll::Ready(Ok(reuse));
            }
            let Connection { stream, inbox, .. } = &mut self.connection;
            if inbox.is_full() && !inbox.grow(&self.worker.buffers) {
                return Poll::Ready(Err(Lost));
            }
            match ready!(inbox.poll_fill(cx, stream, &self.worker.buffers, 0))? {
                Filled::Bytes(_) => self.moved = true,
                Filled::End => {
                    let whole = self.body.as_mut().is_some_and(|(body, _)| body.finish().is_ok());
                    return Poll::Ready(if whole { Ok(false) } else { Err(Lost) });
                }
            }
        }
    }

    /// Takes what is here of the response; `Some` if that is all of it.
    fn read(&mut self) -> Result<Option<bool>, Lost> {
        let inbox = &mut self.connection.inbox;
        loop {
            if let Some((body, reuse)) = &mut self.body {
                if !body.is_done() && !inbox.is_empty() {
                    let scan = body.scan(inbox.bytes()).map_err(|_| Lost)?;
                    inbox.consume(scan.consumed);
                }
                return Ok(body.is_done().then_some(*reuse));
            }
            let head = &mut self.heads.response;
            if inbox.is_empty() {
                return Ok(None);
            }
            let Parsed::Complete(_) = head.parse(inbox.bytes(), &Limits::default()).map_err(|_| Lost)? else {
                return Ok(None);
            };
            inbox.consume(head.length());
            if head.is_interim() {
                self.interim += 1;
                if self.interim > INTERIM {
                    return Err(Lost);
                }
                head.reset();
                continue;
            }
            let framing = head.framing(&self.asked).map_err(|_| Lost)?;
            let reuse = head.is_persistent() && framing != BodyFraming::UntilClose;
            self.body = Some((BodyScanner::new(framing), reuse));
        }
    }
}

#[cfg(test)]
mod tests;
