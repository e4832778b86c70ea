//! The intent with the look-ups that compiling needs: routes by parent, callers by callee.

use std::collections::{BTreeMap, BTreeSet};

use outrider_intent::model::{HttpRoute, Intent, Mtls, Port, Protocol, Service, ServiceRef};
use outrider_xds_types::names;

#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) intent: &'a Intent,
    trust_domain: &'a str,
    /// Routes that have the service as a parent, by namespace and name.
    routes: BTreeMap<&'a ServiceRef, Vec<(&'a HttpRoute, Option<u16>)>>,
    callers: BTreeMap<&'a ServiceRef, BTreeSet<&'a ServiceRef>>,
}

impl<'a> View<'a> {
    pub(crate) fn new(intent: &'a Intent, trust_domain: &'a str) -> Self {
        let mut routes: BTreeMap<&ServiceRef, Vec<(&HttpRoute, Option<u16>)>> = BTreeMap::new();
        for route in intent.http_routes.values() {
            for (parent, port) in &route.parents {
                routes.entry(parent).or_default().push((route, *port));
            }
        }
        let mut callers: BTreeMap<&ServiceRef, BTreeSet<&ServiceRef>> = BTreeMap::new();
        for (id, service) in &intent.services {
            for callee in &service.calls {
                callers.entry(callee).or_default().insert(id);
                for (route, _) in routes.get(callee).into_iter().flatten() {
                    for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
                        callers.entry(&backend.service).or_default().insert(id);
                    }
                }
            }
        }
        Self { intent, trust_domain, routes, callers }
    }

    /// Routes attached to a port of a service, by namespace and name.
    pub(crate) fn routes(&self, service: &ServiceRef, port: u16) -> impl Iterator<Item = &'a HttpRoute> {
        let attached = self.routes.get(service).into_iter().flatten();
        let mut last: Option<&HttpRoute> = None;
        attached
            .filter(move |(_, only)| only.is_none_or(|only| only == port))
            .map(|(route, _)| *route)
            // A route may name the same parent twice, with and without a port.
            .filter(move |route| !last.replace(route).is_some_and(|last| std::ptr::eq(last, *route)))
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

    /// The service and port that an HTTP backend names, if they are declared.
    pub(crate) fn http_port(&self, service: &ServiceRef, number: u16) -> Option<(&'a Service, &'a Port)> {
        let service = self.intent.services.get(service)?;
        let port = service.ports.iter().find(|port| port.port == number)?;
        (port.protocol == Protocol::Http).then_some((service, port))
    }
}
