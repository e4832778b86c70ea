//! Byte streams: a TCP service, and the tunnel after an upgrade.
//!
//! Holds: each direction ends by itself (half-close passes through); memory is one block per direction and only
//! while bytes are on their way; a side that breaks is told to the other as a reset, not as an end; a caller that
//! may not call any more is cut off. Does not:
//! look at the bytes.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as Task, Poll, ready};
use std::time::Duration;

use outrider_proxy_core::outlier::Outcome;
use outrider_proxy_core::reason::{ProxyError, Reason, Retry, Side};
use outrider_proxy_core::route::address_key;
use tokio::io::AsyncWrite;

use crate::buffers::{Buffers, Filled, Inbox, SIZES};
use crate::config::TcpService;
use crate::connection::{Allowed, Asked, Downstream, audited, let_in, not_allowed};
use crate::liveness::Lookout;
use crate::log::Context;
use crate::pipes::Pipe;
use crate::stream::{ResetWatch, Stream};
use crate::timers::Alarm;
use crate::upstream::Upstream;
use crate::websocket::{Frames, Next};
use crate::worker::{Open, Stage};

/// Size class at which bytes between plain sockets go through a pipe.
const BULK: usize = 1;

/// Serves one connection of a TCP listener.
#[expect(clippy::manual_async_fn, reason = "an `async fn` would hold what it is given twice")]
pub fn serve<'a>(
    open: &'a Open,
    downstream: &'a mut Downstream,
    service: &'a TcpService,
) -> impl Future<Output = ()> + 'a {
    async move {
        let mut to = Destination::default();
        if let Err(error) = forward(open, downstream, service, &mut to).await {
            open.serving.stats.borrow_mut().reason(error.reason);
            let name = to.cluster.map(|upstream| upstream.config());
            let context = Context {
                listener: &open.serving.name,
                caller: downstream.named(),
                cluster: name.as_ref().map(|cluster| &*cluster.name),
                endpoint: to.endpoint,
                ..Context::default()
            };
            open.worker.log.event(&error, context);
            downstream.stream.reset_on_close();
        }
    }
}

/// Where bytes go, as far as that is known.
#[derive(Default)]
struct Destination {
    cluster: Option<Rc<Upstream>>,
    endpoint: Option<std::net::SocketAddr>,
}

async fn forward(
    open: &Open,
    downstream: &mut Downstream,
    service: &TcpService,
    to: &mut Destination,
) -> Result<(), ProxyError> {
    let Open { worker, serving, .. } = open;
    let_in(&service.access, downstream.peer())?;
    permitted(open, downstream, service)?;
    let slot = service.split.pick(None, worker.random());
    let slot = slot.ok_or_else(|| ProxyError::new(Side::Local, Reason::NoBackends))?;
    let upstream =
        worker.upstream(slot).ok_or_else(|| ProxyError::new(Side::Local, Reason::ClusterNotReady))?;
    to.cluster = Some(Rc::clone(&upstream));

    let overload = |reason| ProxyError::new(Side::Local, reason);
    let _running = upstream.begin_stream();
    worker.timers.now();
    let busy = upstream.try_busy().ok_or_else(|| overload(Reason::OverloadConnections))?;
    let mut tried = [None; 2];
    let mut attempt = 1;
    let (_picked, connection) = loop {
        // Not kept, because everything that is makes a connection larger.
        let key = if service.by_source { downstream.stream.peer().map(address_key) } else { None };
        let picked = upstream.pick(worker.timers.lately_coarse(), || worker.random(), key, &tried)?;
        to.endpoint = Some(picked.address());
        let connecting = upstream.connect(&picked, &downstream.alarm, worker);
        match Box::pin(open.unless_cut(connecting)).await {
            Ok(connection) => {
                upstream.ended(&picked, Outcome::Answered(200), worker);
                break (picked, connection);
            }
            Err(error) => {
                if error.side == Side::Upstream {
                    upstream.ended(&picked, Outcome::NotConnected, worker);
                }
                tried.rotate_left(1);
                tried[1] = Some(picked.endpoint());
                // Whoever has swallowed one attempt swallows the next.
                let pointless = error.reason == Reason::ConnectTimeout && !upstream.has_others(&tried);
                if error.retry != Retry::Safe || attempt >= service.attempts || pointless {
                    return Err(error);
                }
                attempt += 1;
            }
        }
    };
    let mut connection = connection.with(busy);
    upstream.stats.borrow_mut().requests += 1;

    let mut inbox = Inbox::default();
    let mut tunnel = Tunnel {
        open,
        switched: None,
        peer: downstream.peer.as_deref(),
        downstream: &mut downstream.stream,
        downstream_in: &mut inbox,
        upstream: &mut connection.stream,
        upstream_in: &mut connection.inbox,
        up: Flow::default(),
        down: Flow::default(),
    };
    let outcome = tunnel.run(&downstream.alarm, service.idle).await;
    let (up, down) = (tunnel.up.moved, tunnel.down.moved);
    let mut stats = serving.stats.borrow_mut();
    stats.bytes_in += up;
    stats.bytes_out += down;
    if outcome.is_err() {
        connection.stream.reset_on_close();
    }
    outcome
}

/// Whether rules let this caller in.
fn permitted(open: &Open, downstream: &Downstream, service: &TcpService) -> Result<(), ProxyError> {
    let Some(rules) = &service.rules else { return Ok(()) };
    let caller = downstream.named();
    let audit = |policy: &_| audited((&open.worker, &open.serving), caller, policy, || None);
    rules.decide_bytes(downstream.peer(), audit).map_err(not_allowed)
}

/// One direction.
#[derive(Default)]
pub struct Flow {
    /// Bytes written.
    pub moved: u64,
    class: usize,
    /// Instead of a block, for bulk between two sockets without TLS.
    pipe: Option<Pipe>,
    ended: bool,
    over: bool,
    /// Of the side it came from, once it is over.
    reset: ResetWatch,
}

impl Flow {
    /// The pipe of this direction, borrowed if there was none.
    fn pipe(&mut self, buffers: &Buffers) -> Option<&mut Pipe> {
        if self.pipe.is_none() {
            self.pipe = buffers.pipes.take();
        }
        self.pipe.as_mut()
    }

    /// Gives memory back that nothing is in.
    fn park(&mut self, inbox: &mut Inbox, buffers: &Buffers) {
        inbox.park(buffers);
        if self.pipe.as_ref().is_some_and(Pipe::is_empty)
            && let Some(pipe) = self.pipe.take()
        {
            buffers.pipes.give(pipe);
        }
    }
}

/// What is known of a connection that was one of HTTP.
pub struct Switched<'a> {
    /// Of what goes to the caller, if it is a WebSocket: of other protocols nothing is known, and nothing said in them.
    pub frames: Option<Frames>,
    /// What was asked for.
    pub asked: Asked<'a>,
    /// As of which change that is known to be allowed.
    pub allowed: Allowed,
}

/// Two streams tied together.
pub struct Tunnel<'a> {
    /// Whose it is.
    pub open: &'a Open,
    /// What it was, if that is HTTP.
    pub switched: Option<&'a mut Switched<'a>>,
    /// Who the caller proved to be.
    pub peer: Option<&'a str>,
    /// The caller.
    pub downstream: &'a mut Stream,
    /// Read from it.
    pub downstream_in: &'a mut Inbox,
    /// The endpoint.
    pub upstream: &'a mut Stream,
    /// Read from it.
    pub upstream_in: &'a mut Inbox,
    /// Caller to endpoint.
    pub up: Flow,
    /// Endpoint to caller.
    pub down: Flow,
}

impl Tunnel<'_> {
    /// Moves bytes until both directions have ended.
    ///
    /// # Errors
    /// A side broke or vanished, nothing moved for `idle`, the caller may not call any more, or a drain is over.
    pub async fn run(&mut self, alarm: &Alarm, idle: Option<Duration>) -> Result<(), ProxyError> {
        let mut lookout = Lookout::new(idle);
        // A stream of bytes may have waited for its connection since it was let in.
        let mut allowed = self.switched.as_ref().map(|switched| switched.allowed).unwrap_or_default();
        poll_fn(|cx| self.poll(cx, alarm, &mut lookout, &mut allowed)).await
    }

    /// Apart, so that the future holds one reference instead of one for each field.
    fn poll(
        &mut self,
        cx: &mut Task<'_>,
        alarm: &Alarm,
        lookout: &mut Lookout,
        allowed: &mut Allowed,
    ) -> Poll<Result<(), ProxyError>> {
        let buffers = &*self.open.worker.buffers;
        let asked = self.switched.as_ref().map_or(Asked::Bytes, |switched| switched.asked);
        allowed.check(&self.open.serving, self.peer, asked)?;
        let stage = self.open.stage();
        if stage == Stage::Cut {
            return Poll::Ready(Err(ProxyError::new(Side::Local, Reason::Draining)));
        }
        let up = flow(cx, self.downstream, self.downstream_in, self.upstream, &mut self.up, None, buffers);
        let mut frames = self.switched.as_mut().and_then(|switched| switched.frames.as_mut());
        if stage >= Stage::Closing
            && let Some(frames) = &mut frames
        {
            frames.say_goodbye();
        }
        let (inbox, flow_down) = (&mut *self.upstream_in, &mut self.down);
        let down = flow(cx, self.upstream, inbox, self.downstream, flow_down, frames, buffers);
        match (up, down) {
            (Poll::Ready(Err(e)), _) => return Poll::Ready(Err(broken(e, Side::Downstream))),
            (_, Poll::Ready(Err(e))) => return Poll::Ready(Err(broken(e, Side::Upstream))),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            _ => {}
        }
        // Whoever has ended its sending may still be lost.
        for (flow, from, side) in [
            (&mut self.up, &*self.downstream, Side::Downstream),
            (&mut self.down, &*self.upstream, Side::Upstream),
        ] {
            if flow.over && flow.reset.poll(cx, from).is_ready() {
                let error = io::Error::from(io::ErrorKind::ConnectionReset);
                return Poll::Ready(Err(broken(Broken::Reading(error), side)));
            }
        }
        // What a session has taken moves on for as long as its peer reads.
        let total = self.up.moved + self.down.moved + self.upstream.sent() + self.downstream.sent();
        lookout.moved(total, alarm);
        loop {
            ready!(alarm.poll_rung(cx));
            let now = alarm.now();
            if let Some((side, error)) = lookout.look(self.downstream, self.upstream, now) {
                return Poll::Ready(Err(broken(Broken::Reading(error), side)));
            }
            if lookout.is_idle(now) {
                return Poll::Ready(Err(ProxyError::new(Side::Local, Reason::IdleTimeout)));
            }
            lookout.set(alarm, now);
        }
    }
}

/// What broke while moving from one stream to another.
enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

fn broken(what: Broken, from: Side) -> ProxyError {
    let (side, error) = match (what, from) {
        (Broken::Reading(e), side) => (side, e),
        (Broken::Writing(e), Side::Downstream) => (Side::Upstream, e),
        (Broken::Writing(e), _) => (Side::Downstream, e),
    };
    let reason = if side == Side::Upstream { Reason::UpstreamReset } else { Reason::ClientGone };
    ProxyError::new(side, reason).with_source(error)
}

fn flow(
    cx: &mut Task<'_>,
    from: &mut Stream,
    inbox: &mut Inbox,
    to: &mut Stream,
    flow: &mut Flow,
    mut frames: Option<&mut Frames>,
    buffers: &Buffers,
) -> Poll<Result<(), Broken>> {
    if flow.over {
        return Poll::Ready(Ok(()));
    }
    loop {
        ready!(poll_write_inbox(cx, inbox, to, flow, frames.as_deref_mut())).map_err(Broken::Writing)?;
        while let (Some(pipe), Some(to)) = (&mut flow.pipe, to.plain())
            && !pipe.is_empty()
        {
            let n = ready!(pipe.poll_empty(cx, to)).map_err(Broken::Writing)?;
            if n == 0 {
                return Poll::Ready(Err(Broken::Writing(io::ErrorKind::WriteZero.into())));
            }
            flow.moved += n as u64;
        }
        if flow.ended {
            match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                // The other side has closed both directions meanwhile; it took all there was.
                Err(e) if e.kind() == io::ErrorKind::NotConnected => {}
                other => other.map_err(Broken::Writing)?,
            }
            flow.over = true;
            flow.park(inbox, buffers);
            return Poll::Ready(Ok(()));
        }
        if flow.class == BULK
            && frames.is_none()
            && let (Some(from), Some(_)) = (from.plain(), to.plain())
            && let Some(pipe) = flow.pipe(buffers)
        {
            match pipe.poll_fill(cx, from) {
                Poll::Ready(Ok(0)) => flow.ended = true,
                Poll::Ready(Ok(n)) if n < SIZES[0] => flow.class = 0,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Broken::Reading(e))),
                Poll::Pending => {
                    flow.park(inbox, buffers);
                    return Poll::Pending;
                }
            }
            continue;
        }
        // A block of another size is taken only while this one is empty.
        flow.park(inbox, buffers);
        match inbox.poll_fill(cx, from, buffers, flow.class) {
            Poll::Ready(Ok(Filled::Bytes(n))) if n == SIZES[flow.class] => {
                flow.class = (flow.class + 1).min(SIZES.len() - 1);
            }
            Poll::Ready(Ok(Filled::Bytes(n))) if n < SIZES[flow.class] / 8 => {
                flow.class = flow.class.saturating_sub(1);
            }
            Poll::Ready(Ok(Filled::Bytes(_))) => {}
            Poll::Ready(Ok(Filled::End)) => flow.ended = true,
            Poll::Ready(Err(e)) => return Poll::Ready(Err(Broken::Reading(e))),
            Poll::Pending => {
                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broken::Writing)?;
                return Poll::Pending;
            }
        }
    }
}

/// Writes what was read, and between two frames what we have to say ourselves.
fn poll_write_inbox(
    cx: &mut Task<'_>,
    inbox: &mut Inbox,
    to: &mut Stream,
    flow: &mut Flow,
    mut frames: Option<&mut Frames>,
) -> Poll<io::Result<()>> {
    loop {
        let theirs = inbox.bytes();
        let next = match &frames {
            Some(frames) => frames.next(theirs),
            None => (!theirs.is_empty()).then_some(Next::Theirs(theirs.len())),
        };
        let bytes = match next {
            None => return Poll::Ready(Ok(())),
            Some(Next::Ours(bytes)) => bytes,
            Some(Next::Theirs(n)) => &theirs[..n],
            Some(Next::Discard) => {
                inbox.consume(theirs.len());
                continue;
            }
        };
        let n = ready!(Pin::new(&mut *to).poll_write(cx, bytes))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        match (&mut frames, next) {
            (Some(frames), Some(Next::Ours(_))) => frames.wrote_ours(n),
            (frames, _) => {
                if let Some(frames) = frames {
                    frames.wrote_theirs(&theirs[..n]);
                }
                inbox.consume(n);
            }
        }
        flow.moved += n as u64;
    }
}
