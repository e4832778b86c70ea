//! The meaning types: what a valid set of documents says, with every default filled in.
//!
//! Wire types (what serde reads from YAML) live in `wire` and are converted here; nothing after this module
//! sees an unset optional whose default matters. Defaults and their origin are in `defaults`.
//! All collections are ordered, so that everything computed from them is a function of their content.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::document::{Key, Kind};

mod access;
mod route;
mod traffic;

pub use access::*;
pub use route::*;
pub use traffic::*;

/// The name of a service: its namespace and its name inside it. Prints as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceRef {
    /// Namespace, an RFC 1123 label.
    pub namespace: String,
    /// Service name, an RFC 1035 label.
    pub name: String,
}

impl ServiceRef {
    /// A reference from its two parts. The parts are taken as they are.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything declared, valid as a whole: every reference resolves unless it is [missing](Intent::missing).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Namespaces by name. A namespace used but never declared exists here with defaults.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Services by reference.
    pub services: BTreeMap<ServiceRef, Service>,
    /// HTTP routes by (namespace, name).
    pub http_routes: BTreeMap<(String, String), HttpRoute>,
    /// gRPC routes likewise: the same, with matches by service and method.
    pub grpc_routes: BTreeMap<(String, String), HttpRoute>,
    /// TCP routes likewise.
    pub tcp_routes: BTreeMap<(String, String), TcpRoute>,
    /// Traffic and access policies and the service each is for, all of its namespace if none. What they say is in
    /// the services.
    pub policies: BTreeMap<Key, Option<ServiceRef>>,
}

impl Intent {
    /// Every route of every kind, with its parents and where it leads.
    pub fn routes(&self) -> impl Iterator<Item = Links<'_>> {
        let http = self.http_routes.values().map(|route| route.links(Kind::HttpRoute));
        let grpc = self.grpc_routes.values().map(|route| route.links(Kind::GrpcRoute));
        let tcp = self.tcp_routes.values().map(TcpRoute::links);
        http.chain(grpc).chain(tcp)
    }

    /// Services that were deleted by force while others call them or fail over to them.
    pub fn missing(&self) -> BTreeSet<ServiceRef> {
        let missing = self.services.values().flat_map(|service| {
            let failover = service.traffic.failover.iter().map(|one| &one.service);
            service.missing_calls.iter().chain(failover.filter(|one| !self.services.contains_key(*one)))
        });
        missing.cloned().collect()
    }

    /// Ports that take the calls to a port as far as its own endpoints fail, in this order. A service that was deleted by
    /// force is left out.
    pub fn failover<'a>(
        &'a self,
        service: &'a Service,
        port: &'a Port,
    ) -> impl Iterator<Item = (&'a Service, &'a Port)> {
        service.traffic.failover.iter().filter_map(|one| {
            let other = self.services.get(&one.service)?;
            let takes = other.ports.iter().find(|other| other.name == one.port_for(&port.name));
            Some((other, takes.filter(|other| other.protocol == port.protocol)?))
        })
    }

    /// Where the callers of a service are led besides by its routes.
    pub fn routed(&self) -> BTreeMap<&ServiceRef, BTreeSet<&ServiceRef>> {
        let mut routed: BTreeMap<&ServiceRef, BTreeSet<&ServiceRef>> = BTreeMap::new();
        for route in self.routes() {
            for (parent, _) in route.parents {
                routed.entry(parent).or_default().extend(route.targets.iter().map(|(target, _)| *target));
            }
        }
        routed
    }

    /// The same, and where fail-over of the service leads, and of what its routes lead to. Fail-over goes one step.
    pub fn led(&self) -> BTreeMap<&ServiceRef, BTreeSet<&ServiceRef>> {
        let routed = self.routed();
        let fails_over = |service: &ServiceRef| {
            let service = self.services.get(service);
            service.into_iter().flat_map(|one| &one.traffic.failover).map(|one| &one.service)
        };
        let mut led = routed.clone();
        for (parent, targets) in &routed {
            let further = targets.iter().flat_map(|target| fails_over(target));
            led.entry(*parent).or_default().extend(further);
        }
        for id in self.services.keys().filter(|id| fails_over(id).next().is_some()) {
            led.entry(id).or_default().extend(fails_over(id));
        }
        led
    }
}

/// A route of any kind: what it is attached to and where it leads.
#[derive(Clone, Debug)]
pub struct Links<'a> {
    /// Which.
    pub key: Key,
    /// Parent services, with the port if only one is meant.
    pub parents: &'a [(ServiceRef, Option<u16>)],
    /// Services and ports that get traffic by it, copies included.
    pub targets: Vec<(&'a ServiceRef, u16)>,
}

/// Whether connections between proxies are authenticated with mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mtls {
    /// Plaintext only.
    Off,
    /// Mutual TLS is offered and used by our proxies; plaintext callers are accepted too.
    Both,
    /// Mutual TLS only; plaintext callers are refused.
    Required,
}

/// The kind of proxy that carries a service's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// `outrider-proxy`.
    Native,
    /// A managed Envoy.
    Envoy,
}

/// The release channel a namespace follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// First to change.
    Rapid,
    /// The default.
    Regular,
    /// Last to change.
    Stable,
}

/// Time limits. `None` means no limit (written as `0s`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// From the end of the request until the response head arrives. HTTP only.
    pub request: Option<Duration>,
    /// Without a byte in either direction: an HTTP exchange or a TCP connection is ended.
    pub idle: Option<Duration>,
    /// The same for a call of gRPC, which may mean to be silent: where `idle` is not declared, far longer.
    #[serde(default)]
    pub call_idle: Option<Duration>,
    /// To open a connection to an endpoint.
    pub connect: Duration,
}

impl Timeouts {
    /// The limit of silence on a port that speaks this.
    pub fn idle_of(&self, protocol: Protocol) -> Option<Duration> {
        if protocol == Protocol::Grpc { self.call_idle } else { self.idle }
    }
}

/// A namespace with its effective settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Mutual TLS mode of every service in it.
    pub mtls: Mtls,
    /// Release channel.
    pub channel: Channel,
    /// Engine of every service that does not name its own.
    pub engine: Engine,
    /// HTTP limits of its services.
    pub timeouts: Timeouts,
    /// Idle limit of its TCP ports.
    pub tcp_idle: Option<Duration>,
}

/// Which directions a service's proxy serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Only calls others.
    Client,
    /// Is only called.
    Server,
    /// Both.
    ClientServer,
}

/// What a port speaks. Declared, never sniffed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, carried as HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// Bytes.
    Tcp,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Unique within the service.
    pub name: String,
    /// What callers connect to, 1–65535.
    pub port: u16,
    /// Where the application listens on loopback, 1–65535.
    pub target_port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// Protocols besides WebSocket that a connection of [`Protocol::Http`] may be switched to, in small letters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upgrades: Vec<String>,
}

/// A service with its effective settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its reference.
    pub id: ServiceRef,
    /// Role.
    pub role: Role,
    /// Ports in the order written; empty for `Role::Client`.
    pub ports: Vec<Port>,
    /// Whom it may call. Every entry exists in the same [`Intent`].
    pub calls: BTreeSet<ServiceRef>,
    /// Called services that were deleted by force while still called: their callers get `unknown_service`.
    pub missing_calls: BTreeSet<ServiceRef>,
    /// Engine: its own, else its namespace's.
    pub engine: Engine,
    /// Limits that apply to calls *to* this service: its own, else its namespace's.
    pub timeouts: Timeouts,
    /// How it is called: from its policy, else its namespace's, else defaults.
    pub traffic: Traffic,
    /// Who may do what here, among those who may call it; by name.
    pub access: Vec<AccessPolicy>,
}
