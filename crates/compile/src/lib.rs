//! Intent and instances → xDS resources.
//!
//! Data in: a valid [`Intent`], the trust domain, and where instances can be reached. Data out: for every
//! service the listeners, routes and clusters of its proxies; for every port its endpoints; for every service
//! its workload. Holds: the same input gives the same bytes, everywhere and always; a version is a hash of the
//! content; the resources of a service depend only on what it calls and who calls it; Envoy accepts what is
//! made here, and it is all the native proxy needs. Does not: validate (that is `intent`), know host addresses
//! (agents fill them in), or do any I/O.
//!
//! | file | makes |
//! |---|---|
//! | `outbound` | listeners `outbound/NS/SERVICE/PORT`: 0.0.0.0:PORT, address filled in by the agent |
//! | `routes` | the route configuration of each HTTP outbound listener, from HTTPRoutes |
//! | `inbound` | listeners `inbound/PORT`: authentication, access decision, then the application |
//! | `clusters` | `outbound/…` (EDS, mTLS) and `inbound/PORT` (127.0.0.1:TARGET-PORT) |
//! | `traffic` | what traffic policies say, in all of these |
//! | `access` | what access policies say, in inbound listeners |
//! | `matching` | conditions on requests, of routes and of access policies |
//! | `engines` | what each engine lacks, and findings about documents that ask for it |
//! | `http`, `http2`, `tls`, `envoy` | building blocks: connection managers, TLS contexts, small messages |
//! | `staged` | what callers and servers get while a change is under way |
//! | `zones` | load assignments in which zones are told apart, and when they are |
//! | `shared` | load assignments and workloads |
//! | `diff` | differences of two sets, for people |
//!
//! What called services were deleted by force ([`Service::missing_calls`](outrider_intent::model::Service))
//! has no port any more, so no listener is made for it: its address is the agent's to answer.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use outrider_intent::model::{Intent, Port, Service, ServiceRef};
use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::names;

mod access;
mod ambiguous;
mod anchors;
mod clusters;
mod diff;
mod engines;
mod envoy;
mod http;
mod http2;
mod inbound;
mod matching;
mod outbound;
mod routes;
mod shared;
mod staged;
mod tls;
mod traffic;
mod view;
mod zones;

pub use diff::{Action, Difference, diff};
pub use engines::refusals;
pub use envoy::version_of;
pub use outbound::MAX_CONNECT_ATTEMPTS;
pub use routes::REASON_HEADER;
pub use staged::{Kept, Stage};
pub use zones::{MAX_ZONE_LOAD_PERCENT, endpoints_by_zone, zones_can_carry};

use view::View;

/// Everything there is to compile.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// What is declared.
    pub intent: &'a Intent,
    /// Trust domain of all SPIFFE IDs.
    pub trust_domain: &'a str,
    /// Ready instances, by (service, name of the port). Ports without any may be left out.
    pub endpoints: &'a BTreeMap<(ServiceRef, String), Vec<Endpoint>>,
}

/// Where one instance takes connections for one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address of its proxy.
    pub address: IpAddr,
    /// Port of its proxy.
    pub port: u16,
}

/// Endpoints of one port by zone; those of no zone, or where zones are not told apart, have no name of one.
pub type ByZone<'a> = BTreeMap<&'a str, Vec<Endpoint>>;

/// Everything compiled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// Resources of the proxies of each service, unscoped.
    pub proxies: BTreeMap<ServiceRef, ProxyResources>,
    /// Load assignments and workloads, the same for everybody.
    pub shared: ResourceSet,
}

/// Listeners, route configurations and clusters of the proxies of one service. Every instance has the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyResources {
    /// Under the names the proxy sees.
    pub resources: ResourceSet,
    /// What was left out, and why.
    pub notes: Vec<Note>,
}

impl ProxyResources {
    /// The same resources in the scope of one proxy (`NS/INSTANCE`). Only the names they travel under change;
    /// bodies and versions stay.
    pub fn scoped_for(&self, proxy: &str) -> ResourceSet {
        self.resources
            .iter()
            .map(|resource| resource.renamed(names::scoped(&resource.type_url, proxy, &resource.name)))
            .collect()
    }
}

/// Something declared that no resource was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A called service does not exist (any more), so its ports are unknown.
    MissingService {
        /// The called service.
        service: ServiceRef,
    },
    /// A service that calls fail over to does not exist any more, so it is passed over.
    MissingFailover {
        /// The called service.
        of: ServiceRef,
        /// The one that is not there.
        service: ServiceRef,
    },
    /// A route names a destination that is no port of a declared service, or speaks something else; it gets no traffic.
    UnusableBackend {
        /// Namespace and name of the route.
        route: (String, String),
        /// The destination.
        service: ServiceRef,
        /// Its port.
        port: u16,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingService { service } => {
                write!(f, "service {service} is called but not declared; its ports are unknown")
            }
            Self::MissingFailover { of, service } => {
                write!(
                    f,
                    "calls of {of} fail over to service {service}, which is not declared; it is passed over"
                )
            }
            Self::UnusableBackend { route: (namespace, name), service, port } => {
                write!(f, "route {namespace}/{name} sends to {service}, which has no such port {port}")
            }
        }
    }
}

/// Compiles one service at a time. Making one indexes the intent once.
#[derive(Debug)]
pub struct Compiler<'a> {
    view: View<'a>,
    /// What callers go by, where that is something else.
    calls: Option<View<'a>>,
    stage: Option<&'a Stage>,
}

impl<'a> Compiler<'a> {
    /// A compiler for this intent and trust domain.
    pub fn new(intent: &'a Intent, trust_domain: &'a str) -> Self {
        Self { view: View::new(intent, trust_domain), calls: None, stage: None }
    }

    /// The same while a change to this intent is under way.
    pub fn staged(intent: &'a Intent, stage: &'a Stage, trust_domain: &'a str) -> Self {
        let calls = stage.calls.as_ref().map(|calls| View::new(calls, trust_domain));
        Self { view: View::new(intent, trust_domain), calls, stage: Some(stage) }
    }

    /// What the service's own calls are compiled by.
    fn calls<'s>(&'s self, service: &'s Service) -> (&'s View<'a>, &'s Service) {
        let view = self.calls.as_ref().unwrap_or(&self.view);
        (view, view.intent.services.get(&service.id).unwrap_or(service))
    }

    /// What the proxies of a service get; `None` if it is not declared.
    pub fn proxy(&self, service: &ServiceRef) -> Option<ProxyResources> {
        let service = self.view.intent.services.get(service)?;
        let mut proxy = ProxyResources::default();
        let (calls, caller) = self.calls(service);
        outbound::compile(calls, caller, &mut proxy);
        let kept = self.stage.and_then(|stage| stage.kept.get(&service.id));
        inbound::compile(&self.view, service, kept, &mut proxy);
        proxy.notes.sort_by_cached_key(ToString::to_string);
        proxy.notes.dedup();
        Some(proxy)
    }

    /// The workload of a service, `None` if it is not declared.
    pub fn workload(&self, service: &ServiceRef) -> Option<Arc<Resource>> {
        let service = self.view.intent.services.get(service)?;
        Some(shared::workload(&self.view, service, self.calls(service)))
    }

    /// Services whose proxies may connect to this one by what is declared: those that call it, and those that call a
    /// parent of a route that leads to it.
    pub fn callers(&self, service: &ServiceRef) -> impl Iterator<Item = &ServiceRef> {
        self.view.callers(service)
    }
}

/// The load assignment of one port. The order of `endpoints` does not matter, nor do repetitions.
pub fn endpoints(service: &ServiceRef, port: &str, endpoints: &[Endpoint]) -> Arc<Resource> {
    shared::load_assignment(service, port, endpoints)
}

/// The load assignment of one port with the endpoints that take its calls as far as its own fail, one service after the
/// other, each by zone. Zones without a name are not told apart.
pub fn endpoints_with_failover(
    service: &ServiceRef,
    port: &str,
    own: &ByZone<'_>,
    others: &[(&ServiceRef, ByZone<'_>)],
) -> Arc<Resource> {
    shared::with_failover(service, port, own, others)
}

/// Compiles everything.
pub fn compile(input: &Input<'_>) -> Output {
    let compiler = Compiler::new(input.intent, input.trust_domain);
    let mut output = Output::default();
    for (id, service) in &input.intent.services {
        if let Some(proxy) = compiler.proxy(id) {
            output.proxies.insert(id.clone(), proxy);
        }
        output.shared.insert(shared::workload(&compiler.view, service, compiler.calls(service)));
        for port in &service.ports {
            let ready = |id: &ServiceRef, port: &Port| {
                let ready = input.endpoints.get(&(id.clone(), port.name.clone()));
                ByZone::from([("", ready.cloned().unwrap_or_default())])
            };
            let others = compiler.calls(service).0.intent.failover(service, port);
            let others: Vec<_> = others.map(|(other, port)| (&other.id, ready(&other.id, port))).collect();
            output.shared.insert(shared::with_failover(id, &port.name, &ready(id, port), &others));
        }
    }
    output
}

#[cfg(test)]
mod tests;
