//! The intent with the look-ups that compiling needs: routes by parent, callers by callee.

use std::collections::{BTreeMap, BTreeSet};

use outrider_intent::model::{HttpRoute, Intent, Mtls, Port, Protocol, Service, ServiceRef, TcpRoute};
use outrider_xds_types::names;

#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) intent: &'a Intent,
    trust_domain: &'a str,
    /// Routes that have the service as a parent, by namespace and name: of HTTP, of gRPC, of TCP.
    http: BTreeMap<&'a ServiceRef, Vec<(&'a HttpRoute, Option<u16>)>>,
    grpc: BTreeMap<&'a ServiceRef, Vec<(&'a HttpRoute, Option<u16>)>>,
    tcp: BTreeMap<&'a ServiceRef, Vec<(&'a TcpRoute, Option<u16>)>>,
    callers: BTreeMap<&'a ServiceRef, BTreeSet<&'a ServiceRef>>,
}

impl<'a> View<'a> {
    pub(crate) fn new(intent: &'a Intent, trust_domain: &'a str) -> Self {
        let led = intent.led();
        let (mut http, mut grpc, mut tcp) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (routes, by_parent) in [(&intent.http_routes, &mut http), (&intent.grpc_routes, &mut grpc)] {
            for route in routes.values() {
                for (parent, port) in &route.parents {
                    by_parent.entry(parent).or_insert_with(Vec::new).push((route, *port));
                }
            }
        }
        for route in intent.tcp_routes.values() {
            for (parent, port) in &route.parents {
                tcp.entry(parent).or_insert_with(Vec::new).push((route, *port));
            }
        }
        let mut callers: BTreeMap<&ServiceRef, BTreeSet<&ServiceRef>> = BTreeMap::new();
        for (id, service) in &intent.services {
            for callee in &service.calls {
                callers.entry(callee).or_default().insert(id);
                for target in led.get(callee).into_iter().flatten() {
                    callers.entry(target).or_default().insert(id);
                }
            }
        }
        Self { intent, trust_domain, http, grpc, tcp, callers }
    }

    /// Routes attached to a port of requests, by namespace and name.
    pub(crate) fn routes(&self, service: &ServiceRef, port: &Port) -> impl Iterator<Item = &'a HttpRoute> {
        let of_protocol = match port.protocol {
            Protocol::Http | Protocol::Http2 => Some(&self.http),
            Protocol::Grpc => Some(&self.grpc),
            Protocol::Tcp => None,
        };
        attached(of_protocol.and_then(|routes| routes.get(service)), port.port)
    }

    /// The route attached to a port of bytes.
    pub(crate) fn tcp_route(&self, service: &ServiceRef, port: u16) -> Option<&'a TcpRoute> {
        attached(self.tcp.get(service), port).next()
    }

    pub(crate) fn callers(&self, service: &ServiceRef) -> impl Iterator<Item = &'a ServiceRef> {
        self.callers.get(service).into_iter().flatten().copied()
    }

    pub(crate) fn spiffe_id(&self, service: &ServiceRef) -> String {
        names::spiffe_service(self.trust_domain, &service.namespace, &service.name)
    }

    /// A SPIFFE ID that no certificate is issued for.
    pub(crate) fn nobody(&self) -> String {
        format!("spiffe://{}/nobody", self.trust_domain)
    }

    /// The mode of the service's namespace. A namespace that is not there is the strictest.
    pub(crate) fn mtls(&self, service: &ServiceRef) -> Mtls {
        self.intent.namespaces.get(&service.namespace).map_or(Mtls::Required, |namespace| namespace.mtls)
    }

    /// The limit on a silent TCP connection to the service.
    pub(crate) fn tcp_idle(&self, service: &ServiceRef) -> Option<std::time::Duration> {
        self.intent.namespaces.get(&service.namespace).and_then(|namespace| namespace.tcp_idle)
    }

    /// The service and port that a backend names, if they are declared and speak this.
    pub(crate) fn port(
        &self,
        service: &ServiceRef,
        number: u16,
        protocol: Protocol,
    ) -> Option<(&'a Service, &'a Port)> {
        let service = self.intent.services.get(service)?;
        let port = service.ports.iter().find(|port| port.port == number)?;
        (port.protocol == protocol).then_some((service, port))
    }
}

/// Those of a service's routes that are for a port.
fn attached<'v, 'a: 'v, T>(
    routes: Option<&'v Vec<(&'a T, Option<u16>)>>,
    port: u16,
) -> impl Iterator<Item = &'a T> + use<'v, 'a, T> {
    let mut last: Option<&T> = None;
    routes
        .into_iter()
        .flatten()
        .filter(move |(_, only)| only.is_none_or(|only| only == port))
        .map(|(route, _)| *route)
        // A route may name the same parent twice, with and without a port.
        .filter(move |route| !last.replace(route).is_some_and(|last| std::ptr::eq(last, *route)))
}
