//! The first bytes of a connection: plain or TLS, who is there, and which service it gets.
//!
//! Holds: a caller without TLS where TLS is required is told so in HTTP, or hung up on in TCP; what a listener
//! serves is asked anew for every request, so a change reaches open connections. Does not: serve.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use outrider_proxy_core::access::{AccessPolicy, Denied, Peer};
use outrider_proxy_core::http1::reply::Reply;
use outrider_proxy_core::http1::{Limits, Parsed, RequestHead};
use outrider_proxy_core::reason::{ProxyError, Reason, Side};
use outrider_proxy_core::route::Http1View;
use rustls::ServerConfig;
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::config::{HttpService, Service};
use crate::log::{Caller, Context};
use crate::stream::Stream;
use crate::timers::Alarm;
use crate::tls::handshake;
use crate::worker::{Http, Kind, Open, Serving, Stage, Worker};
use crate::{http, http2, tcp, tls};

/// First byte of a TLS record that carries a handshake.
const HANDSHAKE: u8 = 0x16;
/// How long the first byte and the handshake may take together.
const GREETING: Duration = Duration::from_secs(10);

/// A connection whose other end is known.
pub struct Downstream {
    /// The bytes.
    pub stream: Stream,
    /// Who proved to be there; `None` without TLS.
    pub peer: Option<Arc<str>>,
    /// The one deadline of this connection.
    pub alarm: Alarm,
}

impl Downstream {
    /// For access decisions.
    pub fn peer(&self) -> Peer<'_> {
        as_peer(self.peer.as_deref())
    }

    /// For the log.
    pub fn named(&self) -> Caller<'_> {
        Caller::of(self.peer.as_deref(), self.stream.tcp())
    }
}

pub(crate) fn as_peer(id: Option<&str>) -> Peer<'_> {
    id.map_or(Peer::Anonymous, Peer::Authenticated)
}

/// The service for connections with or without TLS, as configured now.
fn service(serving: &Serving, secure: bool) -> Option<Service> {
    let config = serving.config();
    if secure { config.tls.as_ref().map(|(_, service)| service.clone()) } else { config.plain.clone() }
}

/// The service of HTTP/1.1 of now; `None` if the listener has become something else.
pub fn http_service(serving: &Serving, secure: bool) -> Option<Http> {
    serving.http(secure).filter(|http| http.version.http2().is_none())
}

/// The same of HTTP/2.
pub fn http2_service(serving: &Serving, secure: bool) -> Option<Http> {
    serving.http(secure).filter(|http| http.version.http2().is_some())
}

/// What is under way.
#[derive(Clone, Copy)]
pub enum Asked<'a> {
    /// Bytes.
    Bytes,
    /// A request of HTTP/1: begins with its head as it came, or as it was sent on where that says the same.
    Request(&'a [u8]),
}

/// Whether what whoever is there asked for is still allowed, by the configuration of now. What a listener that is gone
/// has begun ends by itself.
fn may_call(serving: &Serving, peer: Option<&str>, asked: Asked<'_>) -> Result<(), ProxyError> {
    // TLS that is needed no more harms nobody, and what was let in without it goes on as it began.
    let Some(service) = service(serving, peer.is_some()).filter(|_| !serving.is_removed()) else {
        return Ok(());
    };
    let (access, rules) = service.access();
    let finishes = serving.config().lets_finish(peer);
    if !finishes {
        let_in(access, as_peer(peer))?;
    }
    let Some(rules) = rules else { return Ok(()) };
    let decided = match asked {
        Asked::Bytes => rules.decide_bytes(as_peer(peer), |_| {}),
        Asked::Request(buf) => {
            let mut head = Box::new(RequestHead::new());
            let Ok(Parsed::Complete(_)) = head.parse(buf, &Limits::ACCEPTED) else {
                // It was understood when it came. Whatever this is, it is not what was let in.
                return Err(ProxyError::new(Side::Local, Reason::CallerNotAllowed));
            };
            let told = matches!(&service, Service::Http(http) if http.forward_client_cert);
            let client_cert = peer.filter(|_| told).map(|id| format!("URI={id}"));
            let client_cert = client_cert.as_deref().map(str::as_bytes);
            rules.decide(as_peer(peer), &Http1View { head: &head, buf }, client_cert, |_| {})
        }
    };
    match decided {
        Err(denied) if finishes && denied.is_by_omission() => Ok(()),
        decided => decided.map_err(not_allowed),
    }
}

/// Who may make no request at all is not in the list of those who may: that names no policy.
#[derive(Debug, thiserror::Error)]
#[error("none of the callers that are let in: it declares no such call, or policies leave it none")]
struct NotLetIn;

/// Whether this caller may call at all.
///
/// # Errors
/// It may not; the cause is for the log.
pub(crate) fn let_in(access: &AccessPolicy, peer: Peer<'_>) -> Result<(), ProxyError> {
    access.decide(peer).map_err(|reason| {
        let error = ProxyError::new(Side::Local, reason);
        if reason == Reason::CallerNotAllowed { error.with_source(NotLetIn) } else { error }
    })
}

/// What is told where a rule denies: who it was is in the log, and by which policy as the cause.
pub(crate) fn not_allowed(denied: Denied) -> ProxyError {
    ProxyError::new(Side::Local, Reason::CallerNotAllowed).with_source(denied)
}

/// A policy that is audited would deny something: counted and logged, and nothing else. `request`: what was asked for.
pub(crate) fn audited(
    open: (&Worker, &Serving),
    caller: Caller<'_>,
    policy: &Arc<str>,
    request: impl FnOnce() -> Option<String>,
) {
    let (worker, serving) = open;
    serving.stats.borrow_mut().audited(policy);
    let context = Context { listener: &serving.name, caller, ..Context::default() };
    worker.log.audited(policy, context, request);
}

/// Looks whether what was asked for is still allowed: for what takes long, and brings no request to be decided about.
#[derive(Clone, Copy)]
pub struct Allowed {
    /// Of which change of the configuration this is known. They are too few to come round.
    seen: u32,
}

impl Default for Allowed {
    /// Nothing is known.
    fn default() -> Self {
        Self { seen: u32::MAX }
    }
}

impl Allowed {
    /// Known as of this change.
    pub const fn since(changes: u64) -> Self {
        Self { seen: changes as u32 }
    }

    /// Costs next to nothing while the configuration stays the same. Whoever has an alarm polled is woken by a change.
    ///
    /// # Errors
    /// It may not.
    pub fn check(
        &mut self,
        serving: &Serving,
        peer: Option<&str>,
        asked: Asked<'_>,
    ) -> Result<(), ProxyError> {
        let now = serving.changes() as u32;
        if self.seen == now {
            return Ok(());
        }
        self.seen = now;
        may_call(serving, peer, asked)
    }
}

/// What is looked at while a request waits for something.
pub struct Watched<'a> {
    /// As of which change it is known to be allowed.
    pub allowed: &'a mut Allowed,
    /// What was asked for.
    pub asked: Asked<'a>,
}

impl Watched<'_> {
    /// Whether the request may go on: it is allowed still, and no drain is over.
    ///
    /// # Errors
    /// It may not.
    pub fn may_go_on(&mut self, open: &Open, peer: Option<&str>) -> Result<(), ProxyError> {
        if open.stage() == Stage::Cut {
            return Err(ProxyError::new(Side::Local, Reason::Draining));
        }
        self.allowed.check(&open.serving, peer, self.asked)
    }

    /// Waits for `future`, which polls an alarm, for as long as the request may go on.
    ///
    /// # Errors
    /// Those of `future`, and of [`Self::may_go_on`].
    pub async fn unless_ended<T>(
        &mut self,
        open: &Open,
        peer: Option<&str>,
        future: impl Future<Output = Result<T, ProxyError>>,
    ) -> Result<T, ProxyError> {
        let mut future = std::pin::pin!(future);
        poll_fn(|cx| match self.may_go_on(open, peer) {
            Ok(()) => future.as_mut().poll(cx),
            Err(error) => Poll::Ready(Err(error)),
        })
        .await
    }
}

/// Serves one connection from accept to close. `number` is its number among those that are not known yet.
#[expect(clippy::manual_async_fn, reason = "an `async fn` would hold what it is given twice")]
pub fn serve(open: Open, tcp: TcpStream, number: Option<u64>) -> impl Future<Output = ()> {
    async move {
        let Some(mut downstream) = meet(&open, tcp, number).await else { return };
        match service(&open.serving, downstream.peer.is_some()) {
            Some(Service::Http(service)) => requests(&open, &mut downstream, service).await,
            Some(Service::Tcp(service)) => {
                open.becomes(Kind::Tcp);
                tcp::serve(&open, &mut downstream, &service).await;
            }
            None => {}
        }
    }
}

/// Finds out who is there; `None` if nothing can be served.
async fn meet(open: &Open, tcp: TcpStream, number: Option<u64>) -> Option<Downstream> {
    let Open { worker, serving, .. } = open;
    let alarm = worker.timers.alarm();
    let config = serving.config();
    let mut from = None;
    let greeted = match &config.tls {
        None => Ok((Stream::Plain(tcp), None)),
        Some((settings, secure)) => {
            let plain = config.plain.is_some();
            let detect = config.detect.filter(|_| plain);
            let settings = Arc::clone(settings);
            let http = Spoken::of(secure);
            from = tcp.peer_addr().ok();
            Box::pin(greet(open, &alarm, tcp, settings, plain, detect, http)).await
        }
    };
    drop(config);
    if let Some(number) = number {
        worker.known(number);
    }
    let (stream, peer) = match greeted {
        Ok(greeted) => greeted,
        Err(None) => return None,
        Err(Some((error, status))) => {
            serving.stats.borrow_mut().reason(error.reason);
            let (listener, caller) = (&*serving.name, Caller::at(None, from));
            worker.log.event(&error, Context { listener, status, caller, ..Context::default() });
            return None;
        }
    };
    alarm.set(None);
    Some(Downstream { stream, peer, alarm })
}

/// Serves requests. What they get is asked anew for each of them. Apart, so that a stream of bytes does not hold the
/// space of a request.
fn requests<'a>(
    open: &'a Open,
    downstream: &'a mut Downstream,
    service: Arc<HttpService>,
) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
    open.becomes(Kind::Http);
    match service.version.http2() {
        Some(_) => Box::pin(http2::serve(open, downstream)),
        None => Box::pin(http::serve(open, downstream)),
    }
}

/// What a service speaks, as far as a refusal is concerned.
#[derive(Clone, Copy)]
enum Spoken {
    Http1,
    Http2,
    Bytes,
}

impl Spoken {
    fn of(service: &Service) -> Self {
        match service {
            Service::Tcp(_) => Self::Bytes,
            Service::Http(http) if http.version.http2().is_some() => Self::Http2,
            Service::Http(_) => Self::Http1,
        }
    }
}

/// An end before anything was served: `None` if the caller just left, else why and what status was sent.
type Farewell = Option<(ProxyError, Option<u16>)>;

async fn greet(
    open: &Open,
    alarm: &Alarm,
    mut tcp: TcpStream,
    settings: Arc<ServerConfig>,
    plain: bool,
    detect: Option<Duration>,
    http: Spoken,
) -> Result<(Stream, Option<Arc<str>>), Farewell> {
    let failed = |error: ProxyError| Some((error, None));
    let mut first = [0; 1];
    alarm.set(Some(detect.unwrap_or(GREETING)));
    let spoke = poll_fn(|cx| {
        match tcp.poll_peek(cx, &mut ReadBuf::new(&mut first)) {
            // Who has said nothing until now has nothing to lose.
            Poll::Pending if open.stage() >= Stage::Parting => Poll::Ready(Some(Ok(0))),
            Poll::Pending => alarm.poll_rung(cx).map(|()| None),
            Poll::Ready(read) => Poll::Ready(Some(read)),
        }
    });
    match spoke.await {
        Some(Ok(0) | Err(_)) => return Err(None),
        // Nobody spoke. The caller may be waiting for the server to speak first.
        None if detect.is_some() => return Ok((Stream::Plain(tcp), None)),
        // Not worth a line for each health checker.
        None => return Err(None),
        Some(Ok(_)) => {}
    }
    alarm.set(Some(GREETING));
    if first[0] != HANDSHAKE {
        if plain {
            return Ok((Stream::Plain(tcp), None));
        }
        let error = ProxyError::new(Side::Downstream, Reason::MtlsRequired);
        match http {
            Spoken::Bytes => return Err(failed(error)),
            // It is told in its own words, at its first request, and stays a stranger until it leaves.
            Spoken::Http2 => {
                let alarm = open.worker.timers.alarm();
                let mut stranger = Downstream { stream: Stream::Plain(tcp), peer: None, alarm };
                Box::pin(http2::serve(open, &mut stranger)).await;
                return Err(None);
            }
            Spoken::Http1 => {}
        }
        let reply = Reply { close: true, ..Reply::new(Reason::MtlsRequired) };
        let mut bytes = Vec::with_capacity(512);
        reply.write(&mut bytes);
        let sent = alarm.within(tcp.write_all(&bytes)).await;
        http::linger(&open.worker.buffers, &mut Stream::Plain(tcp), alarm).await;
        return Err(Some((error, sent.and_then(Result::ok).map(|()| reply.status()))));
    }
    let handshake = Box::pin(handshake::accept(tcp, settings, &open.worker.buffers));
    let handshake_failed = |error: io::Error| {
        failed(
            ProxyError::new(Side::Downstream, Reason::TlsHandshakeFailed).with_source(tls::in_words(error)),
        )
    };
    match alarm.within(handshake).await {
        Some(Ok((stream, peer))) => Ok((Stream::Secured(Box::new(stream)), Some(peer))),
        Some(Err(error)) => Err(handshake_failed(error)),
        None => Err(handshake_failed(io::ErrorKind::TimedOut.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_http<'a, F>(_: impl Fn(&'a Open, &'a mut Downstream) -> F) -> usize {
        size_of::<F>()
    }

    /// What a connection holds that only waits. With them come two blocks of 256 bytes of the runtime's, one for each
    /// socket, and its alarm.
    #[test]
    fn a_connection_is_small() {
        let (connection, http) = (size(serve), size_of_http(http::serve));
        let http2 = size_of_http(http2::serve);
        println!("connection {connection}, of which a request is apart: {http}, of HTTP/2 {http2}");
        // Behind the 144 bytes of the runtime, within the 1024 of one class of jemalloc.
        assert!(connection <= 880, "{connection}");
        assert!(http <= 1536, "{http}");
        assert!(http2 <= 640, "{http2}");
    }
}
