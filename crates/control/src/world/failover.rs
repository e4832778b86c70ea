//! Which load assignments have endpoints of other services in them, and whose.
//!
//! Holds: what callers go by, so an assignment has others' endpoints only once these let the callers in.

use std::collections::{BTreeMap, BTreeSet};

use outrider_intent::model::{Intent, ServiceRef};

/// A service and the name of its port.
type Port = (ServiceRef, String);

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Failovers {
    /// By called port: what takes its calls, in order.
    others: BTreeMap<Port, Vec<Port>>,
    /// By service: ports whose calls it takes.
    of: BTreeMap<ServiceRef, BTreeSet<Port>>,
    /// The same of before: callers may still use such an assignment.
    former: BTreeMap<ServiceRef, BTreeSet<Port>>,
}

impl Failovers {
    /// `before` are those that this takes the place of, with an `is_published` assignment.
    pub(super) fn new(intent: &Intent, before: Self, is_published: impl Fn(&Port) -> bool) -> Self {
        let mut all = Self { former: before.former, ..Self::default() };
        for (other, ports) in before.of {
            all.former.entry(other).or_default().extend(ports);
        }
        all.former.retain(|_, ports| {
            ports.retain(&is_published);
            !ports.is_empty()
        });
        for service in intent.services.values().filter(|service| !service.traffic.failover.is_empty()) {
            for port in &service.ports {
                let called = (service.id.clone(), port.name.clone());
                let others: Vec<Port> = intent
                    .failover(service, port)
                    .map(|(other, takes)| (other.id.clone(), takes.name.clone()))
                    .collect();
                for (other, _) in &others {
                    all.of.entry(other.clone()).or_default().insert(called.clone());
                }
                if !others.is_empty() {
                    all.others.insert(called, others);
                }
            }
        }
        all
    }

    /// What takes the calls to a port, in order.
    pub(super) fn others(&self, service: &ServiceRef, port: &str) -> &[Port] {
        self.others.get(&(service.clone(), port.to_owned())).map(Vec::as_slice).unwrap_or_default()
    }

    /// Names of the ports of a service whose calls fail over.
    pub(super) fn ports<'a>(&'a self, service: &ServiceRef) -> impl Iterator<Item = &'a String> + use<'a> {
        let first = (service.clone(), String::new());
        let of_service = service.clone();
        self.others
            .range(first..)
            .map(|(port, _)| port)
            .take_while(move |(of, _)| *of == of_service)
            .map(|(_, port)| port)
    }

    /// Ports whose load assignments have endpoints of a service in them besides its own.
    pub(super) fn with_endpoints_of(&self, service: &ServiceRef) -> impl Iterator<Item = &Port> {
        self.of.get(service).into_iter().flatten()
    }

    /// Those, and such as had some.
    pub(super) fn ever_with_endpoints_of(&self, service: &ServiceRef) -> impl Iterator<Item = &Port> {
        self.with_endpoints_of(service).chain(self.former.get(service).into_iter().flatten())
    }
}
