//! Configuration as the workers use it, and its making from xDS resources.
//!
//! ```text
//! Any ─► listener::parse / cluster::parse / … ─► parsed resource ─► assemble (warm?) ─► Snapshot ─► workers
//! ```
//!
//! Holds: every field of a resource is either honoured, or known to say what this proxy does anyway, or the
//! resource is refused with the path of the field (converters *take* fields out of a message, and whatever is
//! left must equal the default). Does not: keep secrets or sockets.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::access::{AccessPolicy, Rules};
use outrider_proxy_core::balance::{BalanceConfig, Layout};
use outrider_proxy_core::fault::Fault;
use outrider_proxy_core::http1::encode::ClientCert;
use outrider_proxy_core::limit::RateLimit;
use outrider_proxy_core::outlier::OutlierConfig;
use outrider_proxy_core::route::{RouteTable, Split};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;

use crate::liveness::Probes;
use crate::shared::{Limits, Shared};

pub mod access;
pub mod balance;
pub mod check;
pub mod cluster;
pub mod fields;
pub mod http2;
pub mod listener;
pub mod marks;
pub mod resilience;
pub mod route;
pub mod secret;

pub use fields::Refusal;

/// Everything the workers need to carry traffic. Immutable; a change is a new one.
#[derive(Default)]
pub struct Snapshot {
    /// Counts up.
    pub generation: u64,
    /// By resource name. The same map as before where none has changed.
    pub listeners: Arc<BTreeMap<Arc<str>, Arc<Listener>>>,
    /// By slot, see [`Slots`].
    pub clusters: Vec<Option<Arc<Cluster>>>,
}

/// Small numbers for cluster names, so that a route names its cluster by index. A name keeps its slot as long
/// as the process lives.
#[derive(Default)]
pub struct Slots {
    by_name: BTreeMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
}

impl Slots {
    /// The slot of a name, a new one if need be.
    pub fn of(&mut self, name: &str) -> u32 {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let slot = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.by_name.insert(name, slot);
        slot
    }

    /// The name of a slot.
    pub fn name(&self, slot: u32) -> &str {
        self.names.get(slot as usize).map_or("", |name| name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// A listener: where, and what is done with the bytes.
pub struct Listener {
    /// Resource name.
    pub name: Arc<str>,
    /// Where callers connect. The descriptors come from the agent.
    pub address: SocketAddr,
    /// Whether others call this service through it, and not this service others.
    pub inbound: bool,
    /// Connections that begin with a TLS handshake. `None`: they are treated like any other bytes.
    pub tls: Option<(Arc<ServerConfig>, Service)>,
    /// Connections that do not. `None`: TLS is required.
    pub plain: Option<Service>,
    /// With both: a caller that is silent for so long is taken for one without TLS that waits for the server
    /// to speak first.
    pub detect: Option<Duration>,
    /// SPIFFE IDs of callers that may finish what they have begun, sorted.
    pub finishing: Arc<[Box<str>]>,
}

impl Listener {
    /// Whether its connections may carry requests that do not end soon.
    pub fn has_streams(&self) -> bool {
        let services = self.tls.iter().map(|(_, service)| service).chain(&self.plain);
        services.into_iter().any(|service| service.http2().is_some())
    }

    /// Whether a policy of this name is audited.
    pub fn audits(&self, policy: &str) -> bool {
        let services = self.tls.iter().map(|(_, service)| service).chain(&self.plain);
        let mut audits = services.filter_map(|service| service.access().1).flat_map(|rules| rules.audits());
        audits.any(|audited| audited == policy)
    }

    /// Whether this caller may finish what it has begun, unless that is denied.
    pub fn lets_finish(&self, caller: Option<&str>) -> bool {
        caller.is_some_and(|id| self.finishing.binary_search_by(|one| (**one).cmp(id)).is_ok())
    }

    /// Whether both let the same callers do the same, as far as that is clear without a look at them: there may be
    /// millions, and every worker asks. What is read anew and unchanged is taken from what was read before (see
    /// [`listener::ParsedListener::keep`]), so it is clear.
    pub fn admits_as(&self, other: &Self) -> bool {
        let same = |one: Option<&Service>, other: Option<&Service>| match (one, other) {
            (Some(one), Some(other)) => {
                let ((access, rules), (other_access, other_rules)) = (one.access(), other.access());
                access.is_same(other_access) && rules.map(Arc::as_ptr) == other_rules.map(Arc::as_ptr)
            }
            (None, None) => true,
            _ => false,
        };
        let secure = |listener: &Self| listener.tls.as_ref().map(|(_, service)| service.clone());
        same(secure(self).as_ref(), secure(other).as_ref())
            && same(self.plain.as_ref(), other.plain.as_ref())
            && Arc::ptr_eq(&self.finishing, &other.finishing)
    }
}

/// What is done with a connection.
#[derive(Clone)]
pub enum Service {
    /// Requests.
    Http(Arc<HttpService>),
    /// Bytes.
    Tcp(Arc<TcpService>),
}

impl Service {
    /// Who may, and what.
    pub fn access(&self) -> (&AccessPolicy, Option<&Arc<Rules>>) {
        match self {
            Self::Http(http) => (&http.access, http.rules.as_ref()),
            Self::Tcp(tcp) => (&tcp.access, tcp.rules.as_ref()),
        }
    }

    /// The settings of HTTP/2, if that is spoken.
    pub fn http2(&self) -> Option<&Http2> {
        match self {
            Self::Http(http) => http.version.http2(),
            Self::Tcp(_) => None,
        }
    }
}

/// How requests are served.
pub struct HttpService {
    /// What is spoken with callers.
    pub version: Version,
    /// Where they go.
    pub routes: Arc<RouteTable>,
    /// Who may.
    pub access: AccessPolicy,
    /// And what, where that is said.
    pub rules: Option<Arc<Rules>>,
    /// Whether `x-forwarded-client-cert` is replaced by who the caller proved to be.
    pub forward_client_cert: bool,
    /// Whether callers may ask for WebSocket: by Upgrade, and in HTTP/2 by extended CONNECT if that is on as well.
    pub upgrades: bool,
    /// Other protocols that a connection of HTTP/1.1 may be switched to, lower case: bytes that are not looked at.
    pub tunnels: Arc<[Box<str>]>,
    /// Longest silence within an exchange; `None` is no limit.
    pub idle: Option<Duration>,
    /// Longest silence between two requests.
    pub connection_idle: Duration,
    /// How long a head may take from its first byte.
    pub head_timeout: Duration,
    /// Limits of heads.
    pub limits: outrider_proxy_core::http1::Limits,
    /// Limit of requests where the route has none of its own.
    pub limit: Option<Arc<RateLimit>>,
    /// Faults on purpose where the route has none of its own.
    pub fault: Option<Arc<Fault>>,
    /// `Host` of a request that has none, which HTTP/1.0 allows.
    pub default_host: Arc<str>,
}

impl HttpService {
    /// What endpoints and rules are told of a caller who is called `xfcc`, which is empty for one who proved nothing.
    pub fn told<'a>(&self, xfcc: &'a [u8]) -> Option<&'a [u8]> {
        (self.forward_client_cert && !xfcc.is_empty()).then_some(xfcc)
    }

    /// The same as what becomes of the field in a request that is sent on.
    pub fn client_cert<'a>(&self, xfcc: &'a [u8]) -> ClientCert<'a> {
        self.told(xfcc).map_or(ClientCert::Remove, ClientCert::Replace)
    }
}

/// A version of HTTP. What is declared is what is carried: nothing is translated between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1, and HTTP/1.0 of callers.
    #[default]
    Http1,
    /// HTTP/2, with prior knowledge or as ALPN says.
    Http2(Http2),
}

impl Version {
    /// The settings of HTTP/2, if it is that.
    pub const fn http2(&self) -> Option<&Http2> {
        match self {
            Self::Http1 => None,
            Self::Http2(settings) => Some(settings),
        }
    }
}

/// Settings of connections of HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2 {
    /// Streams that a caller may have open on one connection; towards endpoints the most that we open.
    pub max_streams: u32,
    /// Bytes of one body that may arrive before any is passed on.
    pub stream_window: u32,
    /// The same of all bodies of a connection.
    pub connection_window: u32,
    /// Whether streams may be opened for WebSockets (RFC 8441), as far as listeners let callers ask for them and endpoints
    /// take them.
    pub connect: bool,
    /// How often a silent peer is asked whether it is there, and how long it may take to answer.
    pub keepalive: Option<(Duration, Duration)>,
}

/// How a byte stream is served.
pub struct TcpService {
    /// Where they go, as slots of clusters.
    pub split: Split,
    /// Whether policies that keep a key at an endpoint go by the caller's address.
    pub by_source: bool,
    /// Who may.
    pub access: AccessPolicy,
    /// What else is asked of who calls, or audited.
    pub rules: Option<Arc<Rules>>,
    /// Longest silence; `None` is no limit.
    pub idle: Option<Duration>,
    /// Endpoints tried before giving up.
    pub attempts: u32,
}

/// Where requests go.
pub struct Cluster {
    /// Resource name.
    pub name: Arc<str>,
    /// Connect and handshake.
    pub connect_timeout: Duration,
    /// How silent connections are probed.
    pub probes: Probes,
    /// How an endpoint is picked.
    pub balance: BalanceConfig,
    /// TLS towards endpoints.
    pub tls: Option<UpstreamTls>,
    /// The same towards those of them that have another identity.
    pub other_tls: Arc<HashMap<SocketAddr, UpstreamTls>>,
    /// What is spoken with endpoints; bytes go through whatever it says.
    pub version: Version,
    /// How long an unused connection is kept.
    pub pool_idle: Duration,
    /// How long a connection is used for further requests; `None` is without end.
    pub max_age: Option<Duration>,
    /// Most of it at once.
    pub limits: Limits,
    /// When endpoints are ejected; `None` is never.
    pub outlier: Option<OutlierConfig>,
    /// How endpoints are checked; `None` is not at all.
    pub check: Option<Arc<check::Check>>,
    /// Endpoints.
    pub endpoints: Arc<[Endpoint]>,
    /// What is said of them together, with the tables that [`Self::balance`] needs.
    pub layout: Arc<Layout>,
    /// What all workers know of it; the same as long as there is a cluster of this name.
    pub shared: Arc<Shared>,
}

impl Cluster {
    /// TLS towards an endpoint. Where it is is asked only if that makes a difference.
    pub fn tls_towards(&self, endpoint: impl FnOnce() -> Option<SocketAddr>) -> Option<&UpstreamTls> {
        if self.other_tls.is_empty() {
            return self.tls.as_ref();
        }
        let other = endpoint().and_then(|endpoint| self.other_tls.get(&endpoint));
        other.or(self.tls.as_ref())
    }
}

/// TLS towards endpoints.
#[derive(Clone)]
pub struct UpstreamTls {
    /// Settings, the expected identity among them. A new object after a rotation.
    pub config: Arc<ClientConfig>,
    /// What is sent as SNI.
    pub server_name: ServerName<'static>,
}

/// One endpoint: address, weight of at least 1, place, and whether discovery says it can serve.
pub type Endpoint = outrider_proxy_core::balance::Endpoint;
