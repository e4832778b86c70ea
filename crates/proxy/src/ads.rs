//! The ADS stream: connecting, over a Unix socket, TCP or TLS, again and again, and carrying messages.
//!
//! Holds: what the server does never blocks the main thread; a server that accepts and stays silent is left
//! after [`SILENCE`] by a proxy that needs something of it, and by no other: who has everything already is told
//! nothing, for good; waiting between attempts grows, until a stream has lasted, and is spread; a server on another
//! host that is lost with its power is noticed by probes of TCP; whoever drops where [`Requests`] go has left. Does
//! not: understand messages (that is `xds::client`), or ask by pings of HTTP/2 (common servers of gRPC end a connection
//! that asks more often than every five minutes).

use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use outrider_xds_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use outrider_xds_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};

pub mod secure;

use secure::Files;

/// First answer on a stream at the latest after this, for who has nothing yet.
pub const SILENCE: Duration = Duration::from_secs(15);
/// Shortest and longest wait between attempts.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Largest response: 100,000 endpoints fit several times.
const MAX_RESPONSE: usize = 64 << 20;

/// Probes of a silent connection over TCP: after so long, so far apart, so many.
const PROBES: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// How long one address may take to answer at most; of many, each has its part of [`SILENCE`].
const FOR_ONE: Duration = Duration::from_secs(5);

/// How long a server may take to acknowledge bytes. While some are on their way there are no [`PROBES`].
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Where an xDS server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// A Unix socket: `unix:PATH`.
    Unix(PathBuf),
    /// `http://HOST:PORT`, in plaintext.
    Http {
        /// A name or an address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// `https://HOST:PORT`: the same over TLS.
    Https {
        /// A name or an address, without brackets.
        host: String,
        /// The port.
        port: u16,
        /// What it is secured with; without it no attempt is made.
        files: Option<Arc<Files>>,
    },
}

/// Why a text is not the place of an xDS server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// TLS without saying whom to trust.
    #[error(
        "https://HOST:PORT takes a file of authorities, one of which has signed the server's certificate"
    )]
    NoAuthorities,
    /// Something to secure a connection with, and no TLS.
    #[error("authorities, a certificate or a name are for a server at https://HOST:PORT")]
    NoTls,
    /// Something behind the port, or before the host.
    #[error("http://HOST:PORT and https://HOST:PORT have neither a path nor a user")]
    More,
    /// No port, or none that can be.
    #[error("a port from 1 to 65535 is required: http://HOST:PORT or https://HOST:PORT")]
    Port,
    /// No host, or none that can be.
    #[error("a name, an IPv4 address or an IPv6 address in brackets is required as HOST")]
    Host,
    /// Anything else.
    #[error("supported are unix:PATH, http://HOST:PORT and https://HOST:PORT")]
    Form,
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let secure = text.strip_prefix("https://");
        let place = secure.or_else(|| text.strip_prefix("http://")).ok_or(ServerError::Form)?;
        let place = place.strip_suffix('/').unwrap_or(place);
        if place.contains(['/', '?', '#', '@']) {
            return Err(ServerError::More);
        }
        let (host, port) = place.rsplit_once(':').ok_or(ServerError::Port)?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0).ok_or(ServerError::Port)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(host) => host.parse::<std::net::Ipv6Addr>().ok().map(|_| host),
            None => Some(host).filter(|host| {
                !host.is_empty()
                    && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
            }),
        };
        let host = host.ok_or(ServerError::Host)?.to_owned();
        Ok(match secure {
            Some(_) => Self::Https { host, port, files: None },
            None => Self::Http { host, port },
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http { host, port } => write!(f, "http://{}", place(host, *port)),
            Self::Https { host, port, .. } => write!(f, "https://{}", place(host, *port)),
        }
    }
}

fn place(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl Server {
    /// The host, if it has to be looked up to be found.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Http { host, .. } | Self::Https { host, .. } if host.parse::<IpAddr>().is_err() => {
                Some(host)
            }
            _ => None,
        }
    }

    /// The same server with what its connections are secured with.
    ///
    /// # Errors
    /// [`ServerError::NoAuthorities`] or [`ServerError::NoTls`] if there is one of both without the other.
    pub fn with_files(self, files: Option<Files>) -> Result<Self, ServerError> {
        match (self, files) {
            (Self::Https { .. }, None) => Err(ServerError::NoAuthorities),
            (Self::Https { host, port, .. }, Some(files)) => {
                Ok(Self::Https { host, port, files: Some(Arc::new(files)) })
            }
            (server, None) => Ok(server),
            (_, Some(_)) => Err(ServerError::NoTls),
        }
    }

    /// What its connections are secured with.
    pub fn files(&self) -> Option<&Files> {
        match self {
            Self::Https { files, .. } => files.as_deref(),
            _ => None,
        }
    }
}

/// Connects to the first address that answers, before the attempt as a whole is given up after `limit`.
async fn connect(host: &str, port: u16, limit: Duration) -> std::io::Result<TcpStream> {
    let until = Instant::now() + limit;
    let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    connect_any(&addresses, until).await
}

/// Tries all of them before `until`, whichever of them swallow the attempt.
async fn connect_any(addresses: &[SocketAddr], until: Instant) -> std::io::Result<TcpStream> {
    let mut failed = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for (address, others) in addresses.iter().zip((0..addresses.len() as u32).rev()) {
        // One part more than there are addresses: the last one ends before the whole does.
        let part = until.saturating_duration_since(Instant::now()) / (others + 2);
        match tokio::time::timeout(part.min(FOR_ONE), TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return prepared(stream),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = std::io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}

/// Sees to it that a server that is lost is noticed, whether anything is on its way to it or not.
fn prepared(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let (time, interval, retries) = PROBES;
    let probes = socket2::TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(stream)
}

/// Where requests go. Dropping it ends the stream, also if the server would go on.
pub struct Requests {
    sender: mpsc::UnboundedSender<DeltaDiscoveryRequest>,
    _kept: oneshot::Sender<Infallible>,
}

impl Requests {
    /// Sends it if the stream is still open; that it has ended is an event of its own.
    pub fn send(&self, request: DeltaDiscoveryRequest) {
        let _ = self.sender.send(request);
    }
}

/// What happens on the stream.
pub enum Event {
    /// A stream is open; requests go here.
    Connected(Requests),
    /// A response.
    Response(Box<DeltaDiscoveryResponse>),
    /// The stream ended; another attempt follows.
    Disconnected(String),
}

/// Keeps a stream open until the receiver of events is gone. `complete` says whether there is a configuration already,
/// `silence` is [`SILENCE`].
pub async fn drive(
    server: Server,
    events: mpsc::Sender<Event>,
    complete: Arc<AtomicBool>,
    silence: Duration,
) {
    let mut pause = Pause(WAIT.0);
    loop {
        let opened = Instant::now();
        let ended = stream(&server, &events, &complete, silence).await;
        let lasted = opened.elapsed();
        if events.send(Event::Disconnected(ended)).await.is_err() {
            return;
        }
        tokio::time::sleep(pause.after(lasted).mul_f64(jitter())).await;
    }
}

/// How long to wait before the next attempt.
struct Pause(Duration);

impl Pause {
    /// After a stream that lasted so long. An answer alone proves nothing: a server that ends every stream once it has
    /// answered would be asked without a pause for ever.
    fn after(&mut self, lasted: Duration) -> Duration {
        if lasted > WAIT.1 {
            self.0 = WAIT.0;
        }
        let pause = self.0;
        self.0 = (pause * 2).min(WAIT.1);
        pause
    }
}

/// A random factor between a half and one, so that many do not try at the same moment.
pub fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0_u8) >> 11;
    0.5 + 0.5 * (random as f64 / (1_u64 << 53) as f64)
}

/// Connects within `limit`.
async fn open(server: Server, limit: Duration) -> Result<Channel, tonic::transport::Error> {
    // Where it connects to is said by the connector; this is what requests say.
    let said = match &server {
        Server::Unix(_) => "http://localhost".to_owned(),
        Server::Http { .. } | Server::Https { .. } => server.to_string(),
    };
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(limit);
    let endpoint = match said.parse() {
        Ok(origin) => endpoint.origin(origin),
        Err(_) => Endpoint::from_shared(said)?,
    };
    match server {
        Server::Unix(path) => {
            let connector = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            endpoint.connect_with_connector(connector).await
        }
        Server::Http { host, port } => {
            let connector = tower::service_fn(move |_: Uri| {
                let host = host.clone();
                async move { connect(&host, port, limit).await.map(TokioIo::new) }
            });
            endpoint.connect_with_connector(connector).await
        }
        Server::Https { host, port, files } => {
            let connector = tower::service_fn(move |_: Uri| {
                let (host, files) = (host.clone(), files.clone());
                async move {
                    let secured = async {
                        let stream = connect(&host, port, limit).await?;
                        let files = files.ok_or(ServerError::NoAuthorities).map_err(std::io::Error::other)?;
                        files.secure(stream, &host).await
                    };
                    let timed_out = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
                    tokio::time::timeout(limit, secured).await.map_err(timed_out)?.map(TokioIo::new)
                }
            });
            endpoint.connect_with_connector(connector).await
        }
    }
}

async fn stream(
    server: &Server,
    events: &mpsc::Sender<Event>,
    complete: &AtomicBool,
    silence: Duration,
) -> String {
    let channel = match open(server.clone(), silence).await {
        Ok(channel) => channel,
        Err(e) => return chain(&e),
    };
    let (sender, outgoing) = mpsc::unbounded_channel();
    let (kept, dropped) = oneshot::channel();
    if events.send(Event::Connected(Requests { sender, _kept: kept })).await.is_err() {
        return String::new();
    }
    tokio::select! {
        ended = converse(channel, outgoing, events, complete, silence) => ended,
        _ = dropped => "left, as what came cannot be answered".to_owned(),
    }
}

async fn converse(
    channel: Channel,
    outgoing: mpsc::UnboundedReceiver<DeltaDiscoveryRequest>,
    events: &mpsc::Sender<Event>,
    complete: &AtomicBool,
    silence: Duration,
) -> String {
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
    // Many servers send the head of their answer with the first message, which may be never.
    let opened = client.delta_aggregated_resources(UnboundedReceiverStream::new(outgoing));
    let mut responses = match first(opened, complete, silence).await {
        Some(Ok(response)) => response.into_inner(),
        Some(Err(status)) => return status.to_string(),
        None => return format!("no answer within {silence:?}"),
    };
    let mut answered = false;
    loop {
        let next = responses.message();
        let message = if answered { Some(next.await) } else { first(next, complete, silence).await };
        match message {
            Some(Ok(Some(response))) => {
                answered = true;
                if events.send(Event::Response(Box::new(response))).await.is_err() {
                    return String::new();
                }
            }
            Some(Ok(None)) => return "the server ended the stream".to_owned(),
            Some(Err(status)) => return status.to_string(),
            None => return format!("no answer within {silence:?}"),
        }
    }
}

/// What comes, `None` if nothing does within `silence` and there is no configuration then.
async fn first<T>(coming: impl Future<Output = T>, complete: &AtomicBool, silence: Duration) -> Option<T> {
    tokio::pin!(coming);
    match tokio::time::timeout(silence, &mut coming).await {
        Ok(came) => Some(came),
        Err(_) if complete.load(Ordering::Relaxed) => Some(coming.await),
        Err(_) => None,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Many say what their source says.
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
