//! From intent and hosts to resources, computing what changed only.
//!
//! Holds: the listeners, routes and clusters of a service are compiled once for all its instances, and only for
//! services that have any; a set that did not change is the same set, so that streams have nothing to do; a version
//! stands for one time of a resource ([`super::versions`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrider_api::http::{ChangeAction, ProxyChange, ResourceChange};
use outrider_compile::{Action, Compiler, Endpoint, diff, endpoints};
use outrider_intent::model::{Intent, ServiceRef};
use outrider_xds::ResourceSet;
use outrider_xds_types::type_url;

use super::Published;
use super::acks::{Expected, kind};
use super::hold::Hold;
use super::hosts::{Changed, Hosts};
use super::versions::Versions;

/// `NS/INSTANCE` and its service.
pub(crate) type Scope = (String, ServiceRef);

/// What every proxy of one service gets.
#[derive(Debug, Default)]
struct Compiled {
    proxy: outrider_compile::ProxyResources,
    expected: Vec<Expected>,
    /// Names of the load assignments its clusters wait for.
    endpoints: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Resources {
    trust_domain: String,
    services: BTreeMap<ServiceRef, Arc<Compiled>>,
    versions: Versions,
    published: Published,
}

pub(super) fn scopes(hosts: &Hosts) -> impl Iterator<Item = Scope> {
    hosts
        .iter()
        .flat_map(|(_, host)| &host.instances)
        .map(|(proxy, instance)| (proxy.clone(), instance.service.clone()))
}

impl Resources {
    pub(crate) fn new(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            services: BTreeMap::new(),
            versions: Versions::default(),
            published: Published::default(),
        }
    }

    pub(crate) fn published(&self) -> &Published {
        &self.published
    }

    /// Computes everything anew for an intent.
    pub(super) fn rebuild(&mut self, intent: &Intent, hosts: &Hosts, hold: &Hold) {
        let compiler = Compiler::new(intent, &self.trust_domain);
        let running: BTreeSet<ServiceRef> = scopes(hosts).map(|(_, service)| service).collect();
        let versions = &mut self.versions;
        self.services = running
            .into_iter()
            .filter_map(|service| compile(&compiler, &service, versions).map(|compiled| (service, compiled)))
            .collect();
        let workloads = intent.services.keys().filter_map(|service| compiler.workload(service));
        self.published.shared.replace(type_url::WORKLOAD, workloads);
        let assignments = intent.services.iter().flat_map(|(service, declared)| {
            declared.ports.iter().map(|port| assignment(service, &port.name, hold))
        });
        let assignments = self.versions.all_of(&assignments.collect::<Vec<_>>());
        self.published.shared.replace(type_url::ENDPOINT, assignments);
        let names: BTreeSet<String> = hosts.iter().map(|(name, _)| name.clone()).collect();
        Arc::make_mut(&mut self.published.hosts).retain(|name, _| names.contains(name));
        for name in names {
            self.publish_host(&name, hosts);
        }
    }

    /// Computes what follows from changes of hosts.
    pub(super) fn follow(&mut self, changed: &Changed, intent: &Intent, hosts: &Hosts, hold: &Hold) {
        for service in &changed.endpoints {
            for port in intent.services.get(service).into_iter().flat_map(|declared| &declared.ports) {
                let assignment = assignment(service, &port.name, hold);
                self.published.shared.insert(self.versions.of_all(&assignment));
            }
        }
        if changed.proxies.is_empty() {
            return;
        }
        self.versions.retain(|service| hosts.of_service(service).next().is_some());
        let running = changed.proxies.iter().filter_map(|name| hosts.get(name));
        let missing: BTreeSet<&ServiceRef> = running
            .flat_map(|host| host.instances.values())
            .map(|instance| &instance.service)
            .filter(|service| !self.services.contains_key(service))
            .collect();
        if !missing.is_empty() {
            let compiler = Compiler::new(intent, &self.trust_domain);
            for service in missing {
                if let Some(compiled) = compile(&compiler, service, &mut self.versions) {
                    self.services.insert(service.clone(), compiled);
                }
            }
        }
        for name in &changed.proxies {
            self.publish_host(name, hosts);
        }
        self.services.retain(|service, _| hosts.of_service(service).next().is_some());
    }

    /// Puts the set of a host together, and keeps the old one where it is equal.
    fn publish_host(&mut self, name: &str, hosts: &Hosts) {
        let mut new = ResourceSet::new();
        for (proxy, instance) in hosts.get(name).into_iter().flat_map(|host| &host.instances) {
            if let Some(compiled) = self.services.get(&instance.service) {
                new.extend(&compiled.proxy.scoped_for(proxy));
            }
        }
        let old = self.published.hosts.get(name);
        if old.is_some_and(|old| old.changes_to(&new).is_empty()) {
            return;
        }
        let mut own = old.cloned().unwrap_or_default();
        for url in [type_url::CLUSTER, type_url::LISTENER, type_url::ROUTE] {
            own.replace(url, new.of_type(url).cloned());
        }
        let all = Arc::make_mut(&mut self.published.hosts);
        if hosts.get(name).is_some() {
            all.insert(name.to_owned(), own);
        } else {
            all.remove(name);
        }
    }

    /// Everything a proxy of a service should have in use, endpoints included.
    pub(super) fn expected(&self, service: &ServiceRef) -> Vec<Expected> {
        let Some(compiled) = self.services.get(service) else { return Vec::new() };
        let mut expected = compiled.expected.clone();
        expected.extend(compiled.endpoints.iter().filter_map(|name| {
            let resource = self.published.shared.get(type_url::ENDPOINT, name)?;
            Some(Expected { kind: "endpoints", name: name.clone(), version: resource.version.to_string() })
        }));
        expected
    }

    /// What would change in proxies between two intents: per running instance, or per service without any.
    pub(crate) fn differences(&self, before: &Intent, after: &Intent, running: &[Scope]) -> Vec<ProxyChange> {
        let (old, new) =
            (Compiler::new(before, &self.trust_domain), Compiler::new(after, &self.trust_domain));
        let mut instances: BTreeMap<&ServiceRef, Vec<&String>> = BTreeMap::new();
        for (proxy, service) in running {
            instances.entry(service).or_default().push(proxy);
        }
        let services: BTreeSet<&ServiceRef> = before.services.keys().chain(after.services.keys()).collect();
        let mut changes = Vec::new();
        for service in services {
            let set = |compiler: &Compiler<'_>| {
                compiler.proxy(service).map(|proxy| proxy.resources).unwrap_or_default()
            };
            let resources = resource_changes(&set(&old), &set(&new));
            if resources.is_empty() {
                continue;
            }
            match instances.get(service) {
                Some(proxies) => changes.extend(
                    proxies
                        .iter()
                        .map(|proxy| ProxyChange { proxy: (*proxy).clone(), resources: resources.clone() }),
                ),
                None => {
                    changes.push(ProxyChange { proxy: format!("{service} (no instance runs)"), resources })
                }
            }
        }
        changes.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        changes
    }
}

fn compile(compiler: &Compiler<'_>, service: &ServiceRef, versions: &mut Versions) -> Option<Arc<Compiled>> {
    let Some(mut proxy) = compiler.proxy(service) else {
        versions.no_proxies(service);
        return None;
    };
    proxy.resources = versions.of_proxies(service, &proxy.resources);
    let (mut expected, mut endpoints) = (Vec::new(), Vec::new());
    for resource in proxy.resources.iter() {
        let Some(kind) = kind(&resource.type_url) else { continue };
        if let Some(name) = assignment_of(kind, &resource.name) {
            endpoints.push(name.to_owned());
        }
        expected.push(Expected {
            kind,
            name: resource.name.to_string(),
            version: resource.version.to_string(),
        });
    }
    Some(Arc::new(Compiled { proxy, expected, endpoints }))
}

/// The load assignment that a cluster waits for: `outbound/NS/SERVICE/PORT` → `NS/SERVICE/PORT`.
fn assignment_of<'a>(kind: &str, name: &'a str) -> Option<&'a str> {
    name.strip_prefix("outbound/").filter(|_| kind == "cluster")
}

fn assignment(service: &ServiceRef, port: &str, hold: &Hold) -> Arc<outrider_xds::Resource> {
    // What is held may have had an address that is another's by now.
    let addresses: BTreeSet<_> = hold.served(service).filter_map(|ports| ports.get(port)).collect();
    let served: Vec<Endpoint> = addresses
        .into_iter()
        .map(|address| Endpoint { address: address.ip(), port: address.port() })
        .collect();
    endpoints(service, port, &served)
}

fn resource_changes(before: &ResourceSet, after: &ResourceSet) -> Vec<ResourceChange> {
    let mut changes = Vec::new();
    for difference in diff(before, after) {
        let kind = match difference.kind.as_str() {
            "Listener" => "listener",
            "RouteConfiguration" => "route",
            "Cluster" => "cluster",
            _ => continue,
        };
        let action = match difference.action {
            Action::Added => ChangeAction::Created,
            Action::Changed => ChangeAction::Updated,
            Action::Removed => ChangeAction::Deleted,
        };
        // With a cluster its endpoints come and go.
        if let Some(name) = assignment_of(kind, &difference.name).filter(|_| action != ChangeAction::Updated)
        {
            changes.push(ResourceChange { kind: "endpoints".to_owned(), name: name.to_owned(), action });
        }
        changes.push(ResourceChange { kind: kind.to_owned(), name: difference.name, action });
    }
    changes
}
