//! The first bytes of a connection: plain or TLS, who is there, and which service it gets.
//!
//! Holds: a caller without TLS where TLS is required is told so in HTTP, or hung up on in TCP; what a listener
//! serves is asked anew for every request, so a change reaches open connections. Does not: serve.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use outrider_proxy_core::access::Peer;
use outrider_proxy_core::http1::reply::Reply;
use outrider_proxy_core::reason::{ProxyError, Reason, Side};
use rustls::ServerConfig;
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::config::{HttpService, Service};
use crate::log::Context;
use crate::secured::ReadAhead;
use crate::stream::Stream;
use crate::timers::Alarm;
use crate::worker::{Kind, Open, Serving, Stage};
use crate::{http, tcp, tls};

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
}

fn as_peer(id: Option<&str>) -> Peer<'_> {
    id.map_or(Peer::Anonymous, Peer::Authenticated)
}

/// The service for connections with or without TLS, as configured now.
fn service(serving: &Serving, secure: bool) -> Option<Service> {
    let config = serving.config();
    if secure { config.tls.as_ref().map(|(_, service)| service.clone()) } else { config.plain.clone() }
}

/// The HTTP service of now; `None` if the listener has become something else.
pub fn http_service(serving: &Serving, secure: bool) -> Option<Arc<HttpService>> {
    match service(serving, secure)? {
        Service::Http(http) => Some(http),
        Service::Tcp(_) => None,
    }
}

/// Whether whoever is there may still call, by the configuration of now. What a listener that is gone has begun
/// ends by itself.
fn may_call(serving: &Serving, peer: Option<&str>) -> Result<(), Reason> {
    if serving.is_removed() {
        return Ok(());
    }
    match service(serving, peer.is_some()) {
        Some(Service::Http(http)) => http.access.decide(as_peer(peer)),
        Some(Service::Tcp(tcp)) => tcp.access.decide(as_peer(peer)),
        // TLS that is needed no more harms nobody.
        None if peer.is_some() => Ok(()),
        None => Err(Reason::MtlsRequired),
    }
}

/// Looks whether the peer may still call: for streams of bytes, which bring no request to be decided about.
#[derive(Default)]
pub struct Allowed {
    /// Of which change of the configuration this is known.
    seen: Option<u64>,
}

impl Allowed {
    /// Costs next to nothing while the configuration stays the same. Whoever has an alarm polled is woken by a change.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&mut self, serving: &Serving, peer: Option<&str>) -> Result<(), ProxyError> {
        let now = Some(serving.changes());
        if self.seen == now {
            return Ok(());
        }
        self.seen = now;
        may_call(serving, peer).map_err(|reason| ProxyError::new(Side::Local, reason))
    }
}

/// Serves one connection from accept to close. `number` is its number among those that are not known yet.
pub async fn serve(open: Open, tcp: TcpStream, number: Option<u64>) {
    let Open { worker, serving, .. } = &open;
    let alarm = worker.timers.alarm();
    let config = serving.config();
    let greeted = match &config.tls {
        None => Ok((Stream::Plain(tcp), None)),
        Some((settings, secure)) => {
            let plain = config.plain.is_some();
            let detect = config.detect.filter(|_| plain);
            let settings = Arc::clone(settings);
            let http = matches!(secure, Service::Http(_));
            Box::pin(greet(&open, &alarm, tcp, settings, plain, detect, http)).await
        }
    };
    drop(config);
    if let Some(number) = number {
        worker.known(number);
    }
    let (stream, peer) = match greeted {
        Ok(greeted) => greeted,
        Err(None) => return,
        Err(Some((error, status))) => {
            serving.stats.borrow_mut().reason(error.reason);
            worker.log.event(&error, Context { listener: &serving.name, status, ..Context::default() });
            return;
        }
    };
    alarm.set(None);
    let secure = peer.is_some();
    let mut downstream = Downstream { stream, peer, alarm };
    match service(serving, secure) {
        Some(Service::Http(_)) => {
            open.becomes(Kind::Http);
            // Apart, so that a stream of bytes does not hold the space of a request.
            Box::pin(http::serve(&open, &mut downstream)).await;
        }
        Some(Service::Tcp(service)) => {
            open.becomes(Kind::Tcp);
            tcp::serve(&open, &mut downstream, &service).await;
        }
        None => {}
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
    http: bool,
) -> Result<(Stream, Option<Arc<str>>), Farewell> {
    let failed = |error: ProxyError| Some((error, None));
    let mut first = [0; 1];
    alarm.set(Some(detect.unwrap_or(GREETING)));
    let spoke = poll_fn(|cx| {
        match tcp.poll_peek(cx, &mut ReadBuf::new(&mut first)) {
            // Who has said nothing until now has nothing to lose.
            Poll::Pending if open.stage() >= Stage::Closing => Poll::Ready(Some(Ok(0))),
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
        if !http {
            return Err(failed(error));
        }
        let reply = Reply { close: true, ..Reply::new(Reason::MtlsRequired) };
        let mut bytes = Vec::with_capacity(512);
        reply.write(&mut bytes);
        let sent = alarm.within(tcp.write_all(&bytes)).await;
        http::linger(&open.worker.buffers, &mut Stream::Plain(tcp), alarm).await;
        return Err(Some((error, sent.and_then(Result::ok).map(|()| reply.status()))));
    }
    let handshake = Box::pin(TlsAcceptor::from(settings).accept(ReadAhead::new(tcp, &open.worker.buffers)));
    let handshake_failed = |error: io::Error| {
        failed(ProxyError::new(Side::Downstream, Reason::TlsHandshakeFailed).with_source(error))
    };
    match alarm.within(handshake).await {
        Some(Ok(stream)) => match tls::peer_id(stream.get_ref().1) {
            Ok(peer) => Ok((Stream::Server(Box::new(stream)), Some(peer))),
            Err(error) => Err(handshake_failed(io::Error::other(error))),
        },
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
        println!("connection {connection}, of which a request is apart: {http}");
        // Behind the 144 bytes of the runtime, within the 1280 of one class of jemalloc.
        assert!(connection <= 1136, "{connection}");
        assert!(http <= 1536, "{http}");
    }
}
