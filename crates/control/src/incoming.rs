//! Taking TLS connections: a bounded number of handshakes at once, each with a time limit, and a bounded number
//! of connections after it, so that a silent or hostile peer holds up nobody.
//!
//! Holds: peers without a certificate are counted apart from those with one, and may be given a life and a number of
//! bytes; one address has a quarter of the handshakes at most, and one identity 32 connections. What is too much is
//! closed at once, never queued.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use outrider_identity::{CertificateInfo, SpiffeId};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Connections at once with certificates of one identity. An agent has one, and more only while it connects again.
const PER_IDENTITY: usize = 32;
/// Pause after an accept that failed for want of descriptors or memory.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Whom a connection belongs to. In the extensions of every request on it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// SPIFFE ID of the client certificate, if it presented one.
    pub(crate) id: Option<SpiffeId>,
    /// The fingerprint of its key; empty without one.
    pub(crate) key: String,
    pub(crate) address: SocketAddr,
}

/// A TLS connection after its handshake.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// When it ends, whatever it does.
    end: Option<Pin<Box<Sleep>>>,
    /// Bytes that may still be read from it.
    left: Option<usize>,
    _share: Option<Share<SpiffeId>>,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    fn alive(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let ended = self.end.as_mut().is_some_and(|end| end.as_mut().poll(context).is_ready());
        if ended { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

/// How many connections a listener has at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsLimits {
    /// In the middle of a handshake.
    pub(crate) handshakes: usize,
    /// With a client certificate.
    pub(crate) known: usize,
    /// Without one.
    pub(crate) strangers: usize,
    /// What one without is given; `None` if as much as one with.
    pub(crate) stranger: Option<StrangerLimits>,
}

/// What a connection without a client certificate is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StrangerLimits {
    /// How long it may last.
    pub(crate) life: Duration,
    /// How many bytes it may send. Whatever it opens on the connection, no more of it is ever kept in memory.
    pub(crate) bytes: usize,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.alive(context)?;
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(left) = &mut self.left {
            match left.checked_sub(buffer.filled().len() - before) {
                Some(rest) => *left = rest,
                None => return Poll::Ready(Err(io::Error::other("a stranger sends too much"))),
            }
        }
        outcome
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.alive(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// How many there are at once, by whose they are.
#[derive(Clone)]
struct Shares<K>(Arc<Mutex<HashMap<K, usize>>>);

/// One of somebody's; dropping it ends it.
struct Share<K: Eq + Hash>(Shares<K>, K);

impl<K: Eq + Hash + Clone> Shares<K> {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn take(&self, whose: K, most: usize) -> Option<Share<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(whose.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Share(self.clone(), whose))
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// Accepts until `stop`; connections come out of the receiver once their handshake is done.
pub(crate) fn accept_tls(
    listener: TcpListener,
    config: ServerConfig,
    limits: TlsLimits,
    stop: CancellationToken,
) -> mpsc::Receiver<Connection> {
    let (ready, out) = mpsc::channel(16);
    let taker = Arc::new(Taker {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        known: Arc::new(Semaphore::new(limits.known)),
        strangers: Arc::new(Semaphore::new(limits.strangers)),
        stranger: limits.stranger,
        peers: Shares::new(),
    });
    let handshakes = Arc::new(Semaphore::new(limits.handshakes));
    let (sources, per_source) = (Shares::<IpAddr>::new(), limits.handshakes.div_ceil(4));
    tokio::spawn(async move {
        loop {
            let (stream, address) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let Some(source) = sources.take(address.ip(), per_source) else {
                tracing::debug!(%address, "too many handshakes of one address: one more is closed");
                continue;
            };
            let Ok(permit) = handshakes.clone().try_acquire_owned() else {
                tracing::debug!(%address, "too many handshakes: one more is closed");
                continue;
            };
            let (taker, ready, stop) = (taker.clone(), ready.clone(), stop.clone());
            tokio::spawn(async move {
                let shaken = tokio::select! {
                    () = stop.cancelled() => return,
                    shaken = tokio::time::timeout(HANDSHAKE_LIMIT, taker.handshake(stream, address)) => shaken,
                };
                drop((permit, source));
                match shaken {
                    Ok(Ok(connection)) => {
                        // The receiver is gone only when the server stops.
                        let _ = ready.send(connection).await;
                    }
                    Ok(Err(error)) => tracing::info!(%address, %error, "TLS handshake failed"),
                    Err(_elapsed) => tracing::info!(%address, "TLS handshake took too long"),
                }
            });
        }
    });
    out
}

struct Taker {
    acceptor: TlsAcceptor,
    known: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    stranger: Option<StrangerLimits>,
    peers: Shares<SpiffeId>,
}

impl Taker {
    async fn handshake(&self, stream: TcpStream, address: SocketAddr) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let stream = self.acceptor.accept(stream).await?;
        // The handshake has verified it.
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let info = leaf.map(|leaf| CertificateInfo::read(leaf)).transpose().map_err(io::Error::other)?;
        let (id, key) = info.map(|info| (info.id, info.key)).unzip();
        let (slots, limits) = match id {
            Some(_) => (&self.known, None),
            None => (&self.strangers, self.stranger),
        };
        let slot = slots.clone().try_acquire_owned().map_err(|_| io::Error::other("too many connections"))?;
        let taken = id.clone().map(|id| self.peers.take(id, PER_IDENTITY));
        if matches!(taken, Some(None)) {
            return Err(io::Error::other("too many connections with this certificate"));
        }
        let end = limits.map(|limits| Box::pin(tokio::time::sleep(limits.life)));
        let left = limits.map(|limits| limits.bytes);
        let peer = Peer { id, key: key.unwrap_or_default(), address };
        Ok(Connection { stream, peer, end, left, _share: taken.flatten(), _slot: slot })
    }
}
