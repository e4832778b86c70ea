//! Copies of requests of HTTP/2: streams on the connections that requests share, whose answers nobody reads.
//!
//! A copy is a task: it waits for a connection that has room, opens a stream, and sees to it that it comes to an end. The
//! connection's task lends a hand where it calls streams in turn. Holds: neither task works while the other has
//! borrowed what it needs, because both let go before they wait. What [`crate::mirror`] holds of copies holds here.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context as Task, Poll, ready};

use outrider_http2::{ErrorCode, Field, Head, RequestLine, Stream};
use outrider_proxy_core::balance::EndpointIndex;
use outrider_proxy_core::route::{PathRewrite, Route};

use super::downstream::{Down, Heard};
use super::exchange::Exchange;
use super::fields::{self, View};
use super::lines::Lines;
use super::pool::Waiter;
use super::upstream::{Up, is_full};
use super::wire::Wire;
use crate::buffers::Buffers;
use crate::config::HttpService;
use crate::mirror::{self, Deadline, Lost, Next, Patience, Tap, Taps};
use crate::upstream::Upstream;
use crate::worker::Worker;

/// A request as it is sent, with nothing borrowed.
struct Request {
    method: Vec<u8>,
    scheme: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    fields: Lines,
}

impl Request {
    fn of<'a>(line: &RequestLine<'_>, fields: impl Iterator<Item = Field<'a>>) -> Self {
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        Self {
            method: line.method.to_vec(),
            scheme: owned(line.scheme),
            authority: owned(line.authority),
            path: owned(line.path),
            fields: Lines::of(fields),
        }
    }

    fn size(&self) -> usize {
        let parts = [&self.scheme, &self.authority, &self.path];
        let line = parts.into_iter().flatten().map(Vec::len).sum::<usize>() + self.method.len();
        line + self.fields.size()
    }

    fn open(&self, wire: &mut Wire, end: bool) -> Result<Stream, outrider_http2::SendError> {
        let line = RequestLine {
            method: &self.method,
            scheme: self.scheme.as_deref(),
            authority: self.authority.as_deref(),
            path: self.path.as_deref(),
            protocol: None,
        };
        wire.core.send_request(&line, self.fields.iter(), end)
    }
}

/// A copy as the connection's task sees it.
pub(super) struct Mirror {
    tap: Rc<Tap>,
    state: RefCell<MirrorState>,
}

#[derive(Default)]
struct MirrorState {
    /// It is in the queue for a connection.
    waits: bool,
    /// All of the request is with the endpoint.
    sent: bool,
    /// It came to its end: how.
    over: Option<Result<(), Lost>>,
    moved: bool,
}

impl Mirror {
    fn end(&self, outcome: Result<(), Lost>) {
        self.state.borrow_mut().over.get_or_insert(outcome);
        self.tap.wake();
    }

    /// A connection has room.
    pub(super) fn call(&self) {
        self.state.borrow_mut().waits = false;
        self.tap.wake();
    }

    /// There is no connection.
    pub(super) fn could_not_connect(&self) {
        self.state.borrow_mut().waits = false;
        self.end(Err(Lost));
    }

    /// The connection is over.
    pub(super) fn lost(&self) {
        self.end(Err(Lost));
    }

    /// Sends what can be sent now.
    pub(super) fn pump(&self, wire: &mut Wire, own: Stream, buffers: &Buffers) {
        let mut state = self.state.borrow_mut();
        if state.sent || state.over.is_some() || self.tap.next().is_err() {
            // Its turn, if it was that, is over.
            let _ = wire.send(own, &[], false);
            return;
        }
        wire.prepare(buffers);
        let ended = self.tap.has_ended();
        let trailers = !self.tap.trailers().is_empty();
        let sent = wire.send(own, &self.tap.bytes(), ended && !trailers);
        let Ok(sent) = sent else { return };
        self.tap.consume(sent.taken);
        state.moved |= sent.taken > 0;
        state.sent = sent.ended;
        if ended && trailers && self.tap.bytes().is_empty() {
            // Without them it would be another request, or never end.
            let sent = wire.core.send_trailers(own, self.tap.trailers().iter());
            state.sent = true;
            if sent.is_err() {
                wire.core.reset(own, ErrorCode::CANCEL);
                state.over.get_or_insert(Err(Lost));
                self.tap.wake();
            }
        }
    }

    /// Passes over what the endpoint says. Says how the stream is to be reset, if it is.
    pub(super) fn hear(&self, heard: &Heard<'_>, wire: &mut Wire, own: Stream) -> Option<ErrorCode> {
        self.state.borrow_mut().moved = true;
        let outcome = match heard {
            Heard::Head(_, false) => return None,
            Heard::Data(bytes, end) => {
                wire.core.release(own, bytes.len());
                if !end {
                    return None;
                }
                Ok(())
            }
            Heard::Head(..) | Heard::Trailers(_) => Ok(()),
            Heard::Reset(ErrorCode::NO_ERROR, _) => Ok(()),
            Heard::Reset(..) => Err(Lost),
        };
        let sent = self.state.borrow().sent;
        self.end(outcome);
        Some(if sent { ErrorCode::NO_ERROR } else { ErrorCode::CANCEL })
    }
}

impl Down {
    /// Sends copies of a request wherever its route wants them.
    pub(super) fn copy(&self, exchange: &mut Exchange, service: &HttpService, route: &Route) {
        let Some(head) = &exchange.request else { return };
        let mut taps = None;
        for wanted in &route.mirrors {
            if !wanted.share.has(self.worker.random()) {
                continue;
            }
            // Without a cluster there is nobody to count it for.
            let Some(upstream) = self.worker.upstream(wanted.cluster) else { continue };
            let request = match upstream.version().http2() {
                Some(_) => self.request(head, service, route, wanted.shadow_host),
                None => None,
            };
            let Some(request) = request else {
                mirror::not_made(&upstream);
                continue;
            };
            let Some(place) = mirror::place(&self.worker, &upstream, request.size()) else { continue };
            taps.get_or_insert_with(Box::<Taps>::default).add(Rc::clone(place.tap()));
            let worker = Rc::clone(&self.worker);
            let patience = Patience::of(route.timeouts);
            tokio::task::spawn_local(async move {
                let outcome = run(&worker, &upstream, request, place.tap(), patience).await;
                place.end(&outcome);
            });
        }
        let Some(taps) = taps else { return };
        taps.push(exchange.up.held(), exchange.up.ended && exchange.up.trailers.is_none());
        if let Some(trailers) = &exchange.up.trailers {
            taps.finish(&lines_of(trailers));
        }
        exchange.taps = Some(taps);
    }

    /// The head as it is sent.
    fn request(&self, head: &Head, service: &HttpService, route: &Route, shadow: bool) -> Option<Request> {
        let certificate = service.client_cert(&self.xfcc);
        let mut path = None;
        if route.rewrite.path != PathRewrite::Keep {
            let target: &mut Vec<u8> = path.insert(Vec::new());
            route.rewrite.target(&route.matches.path, &View::new(head, &self.worker.buffers), target).ok()?;
        }
        let host = route.rewrite.host.as_deref().map(str::as_bytes);
        let line = fields::line(head, &route.request_headers, host, path.as_deref());
        let shadowed = line.authority.filter(|_| shadow).map(mirror::shadow);
        let line = RequestLine { authority: shadowed.as_deref().or(line.authority), ..line };
        Some(Request::of(&line, fields::request(head, &route.request_headers, certificate, None, None)))
    }
}

/// Trailers as they are sent on.
pub(super) fn lines_of(trailers: &Head) -> Lines {
    Lines::of(fields::trailers(trailers))
}

async fn run(
    worker: &Rc<Worker>,
    upstream: &Rc<Upstream>,
    request: Request,
    tap: &Rc<Tap>,
    patience: Patience,
) -> Result<(), Lost> {
    let mut deadline = Deadline::new(patience, worker.timers.now());
    let picked =
        upstream.pick(worker.timers.lately_coarse(), || worker.random(), None, &[]).map_err(|_| Lost)?;
    let alarm = worker.timers.alarm();
    let state = RefCell::new(MirrorState { moved: true, ..Default::default() });
    let mirror = Rc::new(Mirror { tap: Rc::clone(tap), state });
    let mut sender = Sender {
        worker,
        upstream,
        place: (picked.endpoint(), picked.address()),
        mirror: &mirror,
        request,
        leg: None,
    };
    let outcome = poll_fn(|cx| {
        mirror.tap.register(cx);
        if let Poll::Ready(outcome) = sender.poll(cx) {
            return Poll::Ready(outcome);
        }
        let moved = std::mem::take(&mut mirror.state.borrow_mut().moved);
        ready!(deadline.poll(cx, &alarm, tap, moved));
        Poll::Ready(Err(Lost))
    })
    .await;
    sender.leave();
    outcome
}

struct Sender<'a> {
    worker: &'a Rc<Worker>,
    upstream: &'a Rc<Upstream>,
    place: (EndpointIndex, std::net::SocketAddr),
    mirror: &'a Rc<Mirror>,
    request: Request,
    leg: Option<(Rc<Up>, Stream)>,
}

impl Sender<'_> {
    fn poll(&mut self, _: &mut Task<'_>) -> Poll<Result<(), Lost>> {
        if let Some(outcome) = self.mirror.state.borrow_mut().over.take() {
            self.leg = None;
            return Poll::Ready(outcome);
        }
        if !self.mirror.state.borrow().sent {
            // What it is a copy of broke off, or it cannot keep pace.
            self.mirror.tap.next()?;
        }
        if self.leg.is_none() {
            self.open()?;
        }
        if let Some((up, own)) = &self.leg {
            let mut state = up.state.borrow_mut();
            if !self.mirror.state.borrow().sent && self.mirror.tap.next()? != Next::Wait {
                self.mirror.pump(&mut state.wire, *own, &self.worker.buffers);
            }
            state.wire.wake();
        }
        Poll::Pending
    }

    /// Opens a stream, or waits for a connection.
    fn open(&mut self) -> Result<(), Lost> {
        let endpoint = self.place.0;
        if let Some(up) = self.upstream.h2.find(self.upstream, endpoint, self.worker.timers.lately()) {
            let mut state = up.state.borrow_mut();
            let tap = &self.mirror.tap;
            let end = tap.next()? == Next::End && tap.trailers().is_empty();
            match self.request.open(&mut state.wire, end) {
                Ok(own) => {
                    state.link_copy(own, self.mirror);
                    self.mirror.state.borrow_mut().sent = end;
                    up.opened();
                    self.upstream.stats.borrow_mut().requests += 1;
                    drop(state);
                    self.leg = Some((up, own));
                    return Ok(());
                }
                Err(error) if is_full(error) => {}
                Err(_) => return Err(Lost),
            }
        }
        if !std::mem::replace(&mut self.mirror.state.borrow_mut().waits, true) {
            let waiter = Waiter::Copy(Rc::clone(self.mirror));
            self.upstream.h2.wait(self.worker, self.upstream, self.place, waiter);
        }
        Ok(())
    }

    /// Leaves nothing behind.
    fn leave(&mut self) {
        if self.mirror.state.borrow().waits {
            self.upstream.h2.leave_copy(self.place.0, self.mirror);
        }
        if let Some((up, own)) = self.leg.take() {
            let mut state = up.state.borrow_mut();
            state.unlink(own, ErrorCode::CANCEL);
            state.wire.wake();
        }
    }
}
