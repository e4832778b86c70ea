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
use outrider_intent::model::{Intent, ServiceRef, ZonePreference};
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
    callers: BTreeMap<ServiceRef, BTreeSet<ServiceRef>>,
    /// The other way round.
    callees: BTreeMap<ServiceRef, BTreeSet<ServiceRef>>,
    /// Ports whose load assignments tell zones apart, by service.
    apart: BTreeMap<ServiceRef, BTreeSet<String>>,
}

impl Zones {
    /// Takes over who calls whom.
    pub(super) fn declare(&mut self, intent: &Intent, compiler: &Compiler<'_>) {
        *self = Self::default();
        let prefers = intent
            .services
            .values()
            .filter(|one| one.traffic.balancing.zone_preference == ZonePreference::On);
        for service in prefers {
            let callers: BTreeSet<ServiceRef> = compiler.callers(&service.id).cloned().collect();
            for caller in &callers {
                self.callees.entry(caller.clone()).or_default().insert(service.id.clone());
            }
            self.callers.insert(service.id.clone(), callers);
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
        let (own, are_apart) = self.by_zone(service, port, load);
        if are_apart {
            self.apart.entry(service.clone()).or_default().insert(port.to_owned());
        } else if let Some(ports) = self.apart.get_mut(service) {
            ports.remove(port);
        }
        let others = failovers.others(service, port).iter();
        let others: Vec<_> = others.map(|(other, port)| (other, self.by_zone(other, port, load).0)).collect();
        endpoints_with_failover(service, port, &own, &others)
    }

    /// The endpoints of one port, and whether zones are told apart.
    fn by_zone<'a>(&self, service: &ServiceRef, port: &str, load: &Load<'a>) -> (ByZone<'a>, bool) {
        let at = load.endpoints(service, port);
        let are_apart = self.are_apart(service, &at, load);
        let mut by_zone = ByZone::new();
        for (address, zone) in &at {
            let endpoint = Endpoint { address: address.ip(), port: address.port() };
            by_zone.entry(if are_apart { *zone } else { "" }).or_default().push(endpoint);
        }
        (by_zone, are_apart)
    }

    /// Services whose load assignments may be others, when these have other instances: they themselves, and those they
    /// call where zones are told apart from now on, or not any more.
    pub(super) fn concerned(&self, changed: &BTreeSet<ServiceRef>, load: &Load<'_>) -> BTreeSet<ServiceRef> {
        let mut concerned = changed.clone();
        if !load.have_zones && self.apart.is_empty() {
            return concerned;
        }
        let called = changed.iter().filter_map(|service| self.callees.get(service)).flatten();
        let called: BTreeSet<&ServiceRef> = called.filter(|service| !changed.contains(*service)).collect();
        for service in called {
            let ports: BTreeSet<&String> =
                load.hold.served(service).flat_map(|served| served.ports.keys()).collect();
            let apart = self.apart.get(service);
            let differs = |port: &&String| {
                let now = self.are_apart(service, &load.endpoints(service, port), load);
                now != apart.is_some_and(|apart| apart.contains(*port))
            };
            if ports.iter().any(differs) {
                concerned.insert(service.clone());
            }
        }
        concerned
    }

    fn are_apart(&self, service: &ServiceRef, at: &BTreeMap<SocketAddr, &str>, load: &Load<'_>) -> bool {
        if !load.have_zones {
            return false;
        }
        let Some(callers) = self.callers.get(service) else { return false };
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
}

#[cfg(test)]
mod tests;
