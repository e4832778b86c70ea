//! The numbers of proxies as last reported, and which endpoints they leave alone.
//!
//! Agents' facts in, views out. Holds: what the proxies of one node take is bounded in bytes; names are those of declared
//! services and of clusters that the proxy has. Whose endpoint an address is is looked up when it is shown, for instances
//! come and go. Does not: add up over time, for agents tell totals.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use outrider_api::agent as wire;
use outrider_api::http::{CalledView, LeftAloneView, TakerView, TrafficView, UnusedView};
use outrider_intent::model::ServiceRef;

use super::World;
use super::hosts::printable;

/// Traffic of a proxy as last reported.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic {
    pub(super) resident_bytes: u64,
    pub(super) inbound: TrafficView,
    pub(super) outbound: BTreeMap<String, TrafficView>,
    called: BTreeMap<ServiceRef, Called>,
    more_unused: u64,
}

/// What it knows of the endpoints that calls of one service go to.
#[derive(Clone, Debug, Default)]
struct Called {
    endpoints: u64,
    retries: u64,
    retries_refused: u64,
    ejections: u64,
    unused: BTreeMap<SocketAddr, String>,
    /// How many are left alone, named or not.
    unused_count: u64,
}

impl Called {
    fn more_unused(&self) -> u64 {
        self.unused_count.saturating_sub(self.unused.len() as u64)
    }
}

/// Bytes that the traffic of all proxies of one node takes.
const MAX_TRAFFIC: usize = 16 << 20;

/// Most reasons counted apart for one direction and destination.
const MAX_REASONS: usize = 64;

/// Most listeners, and most clusters, of one proxy that are read.
const MAX_PARTS: usize = 10_000;

impl Traffic {
    /// Sums the listeners of a fact up by direction and destination, and the clusters by service. Destinations that are not
    /// declared, and clusters that the proxy does not have, are left out.
    pub(super) fn read(
        fact: &wire::Traffic,
        is_service: impl Fn(&ServiceRef) -> bool,
        clusters: &BTreeSet<&str>,
    ) -> Self {
        let mut traffic = Self { resident_bytes: fact.resident_bytes, ..Self::default() };
        for listener in fact.listeners.iter().take(MAX_PARTS) {
            let mut parts = listener.listener.split('/');
            let view = match (parts.next(), parts.next(), parts.next()) {
                (Some("outbound"), Some(namespace), Some(service))
                    if is_service(&ServiceRef::new(namespace, service)) =>
                {
                    traffic.outbound.entry(format!("{namespace}/{service}")).or_default()
                }
                (Some("inbound"), ..) => &mut traffic.inbound,
                _ => continue,
            };
            add(view, listener);
        }
        traffic.more_unused = fact.more_unused;
        let mut room = wire::MAX_UNUSED;
        for cluster in fact.clusters.iter().take(MAX_PARTS) {
            let mut parts = cluster.cluster.split('/');
            let (Some("outbound"), Some(namespace), Some(service), true) =
                (parts.next(), parts.next(), parts.next(), clusters.contains(&*cluster.cluster))
            else {
                continue;
            };
            let called = traffic.called.entry(ServiceRef::new(namespace, service)).or_default();
            called.endpoints = called.endpoints.saturating_add(cluster.endpoints);
            called.retries = called.retries.saturating_add(cluster.retries);
            called.retries_refused = called.retries_refused.saturating_add(cluster.retries_refused);
            called.ejections = called.ejections.saturating_add(cluster.ejections);
            let kept = cluster.unused.len().min(room);
            room -= kept;
            traffic.more_unused = traffic.more_unused.saturating_add((cluster.unused.len() - kept) as u64);
            let mut told = (cluster.unused.len() - kept) as u64;
            for unused in cluster.unused.iter().take(kept) {
                if let Ok(address) = unused.address.parse() {
                    called.unused.insert(address, printable(&unused.why, wire::MAX_UNUSED_WHY));
                    told += 1;
                }
            }
            called.unused_count = called.unused_count.saturating_add(cluster.unused_count.max(told));
        }
        traffic
    }

    /// About what it takes.
    fn bytes(&self) -> usize {
        let view =
            |view: &TrafficView| 64 + view.reasons.keys().map(|reason| 64 + reason.len()).sum::<usize>();
        let outbound = self.outbound.iter().map(|(name, traffic)| name.len() + view(traffic));
        let called = self.called.iter().map(|(service, called)| {
            let unused = called.unused.values().map(|why| 64 + why.len());
            64 + service.namespace.len() + service.name.len() + unused.sum::<usize>()
        });
        view(&self.inbound) + outbound.sum::<usize>() + called.sum::<usize>()
    }

    /// Cuts it to what is left of the node's share. The sums stay, the details go.
    pub(super) fn fit<'a>(&mut self, others: impl Iterator<Item = &'a Self>) {
        if others.map(Self::bytes).sum::<usize>() + self.bytes() > MAX_TRAFFIC {
            self.outbound.clear();
            self.called.clear();
            self.inbound.reasons.clear();
        }
    }
}

fn add(view: &mut TrafficView, listener: &wire::ListenerTraffic) {
    view.connections = view.connections.saturating_add(listener.connections);
    view.requests = view.requests.saturating_add(listener.requests);
    view.errors = view.errors.saturating_add(listener.errors);
    view.latency_us_sum = view.latency_us_sum.saturating_add(listener.latency_us_sum);
    for reason in listener.reasons.iter().take(100) {
        let name = printable(&reason.reason, 100);
        if view.reasons.len() < MAX_REASONS || view.reasons.contains_key(&name) {
            let count = view.reasons.entry(name).or_default();
            *count = count.saturating_add(reason.count);
        }
    }
}

/// Instances by address, of services that were asked for.
#[derive(Default)]
pub(super) struct Owners(BTreeMap<ServiceRef, BTreeMap<SocketAddr, String>>);

impl Owners {
    fn of(&mut self, world: &World, service: &ServiceRef) -> &BTreeMap<SocketAddr, String> {
        self.0.entry(service.clone()).or_insert_with(|| world.addresses(service))
    }
}

impl World {
    /// Instances of a service by the addresses that callers know.
    fn addresses(&self, service: &ServiceRef) -> BTreeMap<SocketAddr, String> {
        let name = |proxy: &str| proxy.split('/').next_back().unwrap_or_default().to_owned();
        let served = self.hold.ports_of(service);
        let served = served.flat_map(|(proxy, ports)| ports.values().map(move |at| (*at, name(proxy))));
        let reported = self.hosts.of_service(service);
        let reported =
            reported.flat_map(|(.., one)| one.endpoints.values().map(|at| (*at, one.name.clone())));
        served.chain(reported).collect()
    }

    /// Where the calls of a service may end: there, and where it fails over to.
    fn takers<'a>(&'a self, called: &'a ServiceRef) -> impl Iterator<Item = &'a ServiceRef> {
        let others = self.declared.intent.services.get(called).into_iter();
        std::iter::once(called)
            .chain(others.flat_map(|one| &one.traffic.failover).map(|other| &other.service))
    }

    /// What a proxy tells of the endpoints it calls, and how many more it leaves alone than are named.
    pub(super) fn called(
        &self,
        traffic: &Traffic,
        owners: &mut Owners,
    ) -> (BTreeMap<String, CalledView>, u64) {
        let mut unused = |called: &ServiceRef, (address, why): (&SocketAddr, &String)| {
            let owner = self.takers(called).find_map(|service| {
                owners.of(self, service).get(address).map(|instance| (service.to_string(), instance.clone()))
            });
            let (service, instance) = owner.unzip();
            UnusedView { address: address.to_string(), why: why.clone(), service, instance }
        };
        let called = traffic.called.iter().map(|(service, one)| {
            let view = CalledView {
                endpoints: one.endpoints,
                retries: one.retries,
                retries_refused: one.retries_refused,
                ejections: one.ejections,
                unused: one.unused.iter().map(|entry| unused(service, entry)).collect(),
                unused_count: one.unused_count,
            };
            (service.to_string(), view)
        });
        (called.collect(), traffic.more_unused)
    }

    /// Endpoints of a service that its callers leave alone, and those of services that fail over to it; and how many more may
    /// be, as far as the caller says that names fewest.
    pub(super) fn left_alone(&self, service: &ServiceRef) -> (Vec<LeftAloneView>, u64) {
        let services = &self.declared.intent.services;
        let leads_here = services.keys().filter(|one| self.takers(one).any(|taker| taker == service));
        let leads_here: BTreeSet<&ServiceRef> = leads_here.collect();
        let own = self.addresses(service);
        let (mut callers, mut more) = (0, 0);
        let mut found: BTreeMap<SocketAddr, (&String, u64)> = BTreeMap::new();
        for (proxy, traffic) in &self.traffic {
            // What a silent host said last is not what is.
            if self.hosts.find(proxy).is_none_or(|(_, host, _)| host.lost) {
                continue;
            }
            let called: Vec<_> =
                traffic.called.iter().filter(|(called, _)| leads_here.contains(called)).collect();
            callers += u64::from(!called.is_empty());
            let unnamed = called.iter().map(|(_, called)| called.more_unused());
            more = unnamed.fold(0, u64::saturating_add).max(more);
            let unused: BTreeMap<_, _> = called.into_iter().flat_map(|(_, called)| &called.unused).collect();
            for (address, why) in unused.into_iter().filter(|(address, _)| own.contains_key(*address)) {
                found.entry(*address).or_insert((why, 0)).1 += 1;
            }
        }
        let view = |(address, (why, seen_by)): (SocketAddr, (&String, u64))| LeftAloneView {
            instance: own.get(&address).cloned().unwrap_or_default(),
            address: address.to_string(),
            why: why.clone(),
            seen_by,
            callers,
        };
        // Whose the others are is not told: they may be those of another service that the calls go on to.
        let more = more.min((own.len() - found.len()) as u64);
        (found.into_iter().map(view).collect(), more)
    }

    /// Who could take the calls of a service that fails over now: itself first, then in the order of its list. What no
    /// caller names as left alone is taken to be well.
    pub(super) fn takers_now(&self, id: &ServiceRef) -> Vec<TakerView> {
        let Some(service) = self.declared.intent.services.get(id) else { return Vec::new() };
        if service.traffic.failover.is_empty() {
            return Vec::new();
        }
        let (mut callers, mut unused) = (0_u64, BTreeMap::<SocketAddr, u64>::new());
        for (proxy, traffic) in &self.traffic {
            if self.hosts.find(proxy).is_none_or(|(_, host, _)| host.lost) {
                continue;
            }
            let Some(called) = traffic.called.get(id) else { continue };
            callers += 1;
            called.unused.keys().for_each(|address| *unused.entry(*address).or_default() += 1);
        }
        let view = |taker: &ServiceRef, ports: BTreeSet<&String>| {
            let served = self.hold.ports_of(taker).flat_map(|(_, served)| served);
            let all: BTreeSet<_> =
                served.filter(|(port, _)| ports.contains(port)).map(|(_, address)| address).collect();
            let gone =
                all.iter().filter(|one| unused.get(**one).is_some_and(|seen| *seen == callers)).count();
            TakerView {
                service: taker.to_string(),
                endpoints: all.len() as u64,
                usable: (all.len() - gone) as u64,
            }
        };
        let own = view(id, service.ports.iter().map(|port| &port.name).collect());
        let others = service.traffic.failover.iter().map(|one| &one.service).map(|other| {
            let taking = service.ports.iter().flat_map(|port| self.declared.intent.failover(service, port));
            let taking = taking.filter(|(taker, _)| taker.id == *other).map(|(_, port)| &port.name);
            view(other, taking.collect())
        });
        std::iter::once(own).chain(others).collect()
    }
}

#[cfg(test)]
mod tests;
