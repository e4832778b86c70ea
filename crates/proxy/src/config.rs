//! Configuration as the workers use it, and its making from xDS resources.
//!
//! ```text
//! Any ─► listener::parse / cluster::parse / … ─► parsed resource ─► assemble (warm?) ─► Snapshot ─► workers
//! ```
//!
//! Holds: every field of a resource is either honoured, or known to say what this proxy does anyway, or the
//! resource is refused with the path of the field (converters *take* fields out of a message, and whatever is
//! left must equal the default). Does not: keep secrets or sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::access::AccessPolicy;
use outrider_proxy_core::route::RouteTable;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;

pub mod cluster;
pub mod fields;
pub mod listener;
pub mod route;
pub mod secret;

pub use fields::Refusal;

/// Everything the workers need to carry traffic. Immutable; a change is a new one.
#[derive(Default)]
pub struct Snapshot {
    /// Counts up.
    pub generation: u64,
    /// By resource name.
    pub listeners: BTreeMap<Arc<str>, Arc<Listener>>,
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
}

/// What is done with a connection.
#[derive(Clone)]
pub enum Service {
    /// HTTP/1.1 requests.
    Http(Arc<HttpService>),
    /// Bytes.
    Tcp(Arc<TcpService>),
}

/// How requests are served.
pub struct HttpService {
    /// Where they go.
    pub routes: Arc<RouteTable>,
    /// Who may.
    pub access: AccessPolicy,
    /// Whether `x-forwarded-client-cert` is replaced by who the caller proved to be.
    pub forward_client_cert: bool,
    /// Whether callers may ask for WebSocket, and a 101 from upstream makes a tunnel.
    pub upgrades: bool,
    /// Longest silence within an exchange; `None` is no limit.
    pub idle: Option<Duration>,
    /// Longest silence between two requests.
    pub connection_idle: Duration,
    /// How long a head may take from its first byte.
    pub head_timeout: Duration,
    /// Limits of heads.
    pub limits: outrider_proxy_core::http1::Limits,
    /// `Host` of a request that has none, which HTTP/1.0 allows.
    pub default_host: Arc<str>,
}

/// How a byte stream is served.
pub struct TcpService {
    /// Slot of the cluster.
    pub cluster: u32,
    /// Who may.
    pub access: AccessPolicy,
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
    /// How an endpoint is picked.
    pub policy: outrider_proxy_core::balance::Policy,
    /// Share of healthy endpoints, in percent, below which health is ignored.
    pub panic_threshold: u8,
    /// TLS towards endpoints.
    pub tls: Option<UpstreamTls>,
    /// How long an unused connection is kept.
    pub pool_idle: Duration,
    /// Most requests at once, per worker.
    pub max_requests: u32,
    /// Most connections at once, per worker.
    pub max_connections: u32,
    /// Endpoints.
    pub endpoints: Arc<[Endpoint]>,
}

/// TLS towards endpoints.
#[derive(Clone)]
pub struct UpstreamTls {
    /// Settings, the expected identity among them. A new object after a rotation.
    pub config: Arc<ClientConfig>,
    /// What is sent as SNI.
    pub server_name: ServerName<'static>,
}

/// One endpoint: address, weight of at least 1, and whether discovery says it can serve.
pub type Endpoint = outrider_proxy_core::balance::Endpoint;
