//! Load assignments, and whether zones are told apart in them. Endpoints of services that calls fail over to are among
//! others by the zones of their own service.
//!
//! Hosts say where they are; the zone of an instance is its host's. Holds: without zones nothing is looked at, and a load
//! assignment is what it always was; whether zones are told apart is looked at again when endpoints of a service or
//! instances of its callers come, go or move, and assignments are made only of services where that became different. Does
//! not: know how much callers call; each of their instances counts as one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use outrider_compile::{ByZone, Compiler, Endpoint, endpoints_with_failover, zones_can_carry};
use outrider_intent::model::{Intent, Service, ServiceRef, ZonePreference};
use outrider_xds::Resource;

use super::failover::Failovers;
use super::hold::Hold;
use super::hosts::{Hosts, State};

/// Where everything is at one moment.
pub(super) struct Load<'a> {
    hosts: &'a Hosts,
    hold: &'a Hold,
    have_zones: bool,
}

impl<'a> Load<'a> {
    pub(super) fn new(hosts: &'a Hosts, hold: &'a Hold) -> Self {
        Self { hosts, hold, have_zones: hosts.have_zones() }
    }

    /// Addresses of one port by zone. What is held may have had an address that is another's by now: each counts once.
    fn endpoints(&self, service: &ServiceRef, port: &str) -> BTreeMap<SocketAddr, &'a str> {
        let served = self.hold.served(service);
        let at = |served: &'a super::hold::Served| {
            let zone = if self.have_zones { self.hosts.zone(&served.host) } else { "" };
            Some((*served.ports.get(port)?, zone))
        };
        served.filter_map(at).collect()
    }

    fn count_instances(&self, service: &ServiceRef, by_zone: &mut BTreeMap<&'a str, usize>) {
        let ready = self.hosts.of_service(service);
        let ready = ready.filter(|(_, host, instance)| !host.withdrawn && instance.state == State::Ready);
        for (name, ..) in ready {
            *by_zone.entry(self.hosts.zone(name)).or_default() += 1;
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Zones {
    /// Services that prefer zones, with those that call them.
    callers: BTreeMap<ServiceRef, Callers>,
    /// Services whose assignments depend on how many callers there are, by those.
    callees: BTreeMap<ServiceRef, BTreeSet<ServiceRef>>,
    /// By service and port, whether its load assignment tells zones apart: of its own endpoints, and of each service that
    /// its calls fail over to.
    apart: BTreeMap<ServiceRef, BTreeMap<String, Vec<bool>>>,
}

/// Who calls a service.
#[derive(Clone, Debug, Default)]
struct Callers {
    /// By calls and by routes.
    own: BTreeSet<ServiceRef>,
    /// With those whose calls fail over to it: how many there are then.
    all: BTreeSet<ServiceRef>,
}

impl Zones {
    /// Takes over who calls whom.
    pub(super) fn declare(&mut self, intent: &Intent, compiler: &Compiler<'_>) {
        *self = Self::default();
        let routed = intent.routed();
        let mut own: BTreeMap<&ServiceRef, BTreeSet<ServiceRef>> = BTreeMap::new();
        for service in intent.services.values() {
            for callee in &service.calls {
                for target in routed.get(callee).into_iter().flatten().copied().chain([callee]) {
                    own.entry(target).or_default().insert(service.id.clone());
                }
            }
        }
        let prefers = |one: &&Service| one.traffic.balancing.zone_preference == ZonePreference::On;
        for service in intent.services.values().filter(prefers) {
            let all = compiler.callers(&service.id).cloned().collect();
            let callers = Callers { own: own.remove(&service.id).unwrap_or_default(), all };
            for caller in &callers.own {
                self.callees.entry(caller.clone()).or_default().insert(service.id.clone());
            }
            self.callers.insert(service.id.clone(), callers);
        }
        for service in intent.services.values() {
            let others = service.traffic.failover.iter().filter_map(|one| self.callers.get(&one.service));
            for caller in others.flat_map(|callers| &callers.all) {
                self.callees.entry(caller.clone()).or_default().insert(service.id.clone());
            }
        }
    }

    /// The load assignment of one port.
    pub(super) fn assignment(
        &mut self,
        service: &ServiceRef,
        port: &str,
        failovers: &Failovers,
        load: &Load<'_>,
    ) -> Arc<Resource> {
        let by_zone = |service: &ServiceRef, port: &str, are_apart: bool| {
            let mut by_zone = ByZone::new();
            for (address, zone) in load.endpoints(service, port) {
                let endpoint = Endpoint { address: address.ip(), port: address.port() };
                by_zone.entry(if are_apart { zone } else { "" }).or_default().push(endpoint);
            }
            by_zone
        };
        let apart = self.are_apart(service, port, failovers, load);
        let own = by_zone(service, port, apart.first() == Some(&true));
        let others = failovers.others(service, port).iter().zip(apart.iter().skip(1));
        let others: Vec<_> =
            others.map(|((other, port), apart)| (other, by_zone(other, port, *apart))).collect();
        if apart.contains(&true) {
            self.apart.entry(service.clone()).or_default().insert(port.to_owned(), apart);
        } else if let Some(ports) = self.apart.get_mut(service) {
            ports.remove(port);
        }
        endpoints_with_failover(service, port, &own, &others)
    }

    /// Services whose load assignments may be others, when these have other instances: they themselves, and those they
    /// call where zones are told apart from now on, or not any more.
    pub(super) fn concerned(
        &self,
        changed: &BTreeSet<ServiceRef>,
        failovers: &Failovers,
        load: &Load<'_>,
    ) -> BTreeSet<ServiceRef> {
        let mut concerned = changed.clone();
        if !load.have_zones && self.apart.is_empty() {
            return concerned;
        }
        let called = changed.iter().filter_map(|service| self.callees.get(service)).flatten();
        let called: BTreeSet<&ServiceRef> = called.filter(|service| !changed.contains(*service)).collect();
        for service in called {
            let ports: BTreeSet<&String> =
                load.hold.served(service).flat_map(|served| served.ports.keys()).collect();
            let before = self.apart.get(service);
            let known = before.into_iter().flat_map(BTreeMap::keys);
            let differs = |port: &&String| {
                let now = self.are_apart(service, port, failovers, load);
                match before.and_then(|before| before.get(*port)) {
                    Some(before) => *before != now,
                    None => now.contains(&true),
                }
            };
            if failovers.ports(service).chain(known).chain(ports).collect::<BTreeSet<_>>().iter().any(differs)
            {
                concerned.insert(service.clone());
            }
        }
        concerned
    }

    /// Whether zones are told apart in the load assignment of a port: of its own endpoints, and of each of the others.
    fn are_apart(
        &self,
        service: &ServiceRef,
        port: &str,
        failovers: &Failovers,
        load: &Load<'_>,
    ) -> Vec<bool> {
        let of = |service: &ServiceRef, port: &str, callers: fn(&Callers) -> &BTreeSet<ServiceRef>| {
            let callers = self.callers.get(service).map(callers);
            callers.is_some_and(|callers| can_carry(&load.endpoints(service, port), callers, load))
        };
        let others = failovers.others(service, port);
        let others = others.iter().map(|(other, port)| of(other, port, |callers| &callers.all));
        std::iter::once(of(service, port, |callers| &callers.own)).chain(others).collect()
    }
}

fn can_carry(at: &BTreeMap<SocketAddr, &str>, callers: &BTreeSet<ServiceRef>, load: &Load<'_>) -> bool {
    if !load.have_zones {
        return false;
    }
    let mut endpoints: BTreeMap<&str, usize> = BTreeMap::new();
    for zone in at.values() {
        *endpoints.entry(*zone).or_default() += 1;
    }
    if endpoints.len() < 2 {
        return false;
    }
    let mut by_zone = BTreeMap::new();
    callers.iter().for_each(|caller| load.count_instances(caller, &mut by_zone));
    zones_can_carry(&endpoints, &by_zone)
}

#[cfg(test)]
mod tests;
