//! From intent and hosts to resources, computing what changed only.
//!
//! Holds: the listeners, routes and clusters of a service are compiled once for all its instances, and only for
//! services that have any; a set that did not change is the same set, so that streams have nothing to do; a version
//! stands for one time of a resource ([`super::versions`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use outrider_api::http::{ChangeAction, ProxyChange, ResourceChange};
use outrider_compile::{Action, Compiler, Stage, diff};
use outrider_intent::model::{Intent, ServiceRef};
use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::type_url;

use super::Published;
use super::acks::{Expected, kind};
use super::failover::Failovers;
use super::hold::Hold;
use super::hosts::{Changed, Hosts};
use super::leaving::Assignments;
use super::versions::Versions;
use super::zones::{Load, Zones};

/// `NS/INSTANCE` and its service.
pub(crate) type Scope = (String, ServiceRef);

/// Versions of one load assignment that are remembered in their order.
const MAX_ORDER: usize = 64;

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
    /// The change under way.
    stage: Stage,
    /// Services whose proxies go by an earlier intent because of it.
    held: BTreeSet<ServiceRef>,
    services: BTreeMap<ServiceRef, Arc<Compiled>>,
    /// Versions of load assignments, the latest last.
    order: BTreeMap<String, VecDeque<Arc<str>>>,
    versions: Versions,
    zones: Zones,
    failovers: Failovers,
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
            stage: Stage::default(),
            held: BTreeSet::new(),
            services: BTreeMap::new(),
            order: BTreeMap::new(),
            versions: Versions::default(),
            zones: Zones::default(),
            failovers: Failovers::default(),
            published: Published::default(),
        }
    }

    pub(crate) fn published(&self) -> &Published {
        &self.published
    }

    /// Whether the proxies of a service go by an earlier intent until servers accept what is declared.
    pub(super) fn is_held(&self, service: &ServiceRef) -> bool {
        self.held.contains(service)
    }

    /// Computes everything anew for an intent, with a change under way.
    pub(super) fn rebuild(&mut self, intent: &Intent, stage: Stage, hosts: &Hosts, hold: &Hold) {
        self.stage = stage;
        let compiler = Compiler::staged(intent, &self.stage, &self.trust_domain);
        let running: BTreeSet<ServiceRef> = scopes(hosts).map(|(_, service)| service).collect();
        self.held.clear();
        if self.stage.calls.is_some() {
            let servers = Stage { calls: None, kept: self.stage.kept.clone() };
            let later = Compiler::staged(intent, &servers, &self.trust_domain);
            let held = |service: &&ServiceRef| compiler.proxy(service) != later.proxy(service);
            self.held = running.iter().filter(held).cloned().collect();
        }
        let versions = &mut self.versions;
        self.services = running
            .into_iter()
            .filter_map(|service| compile(&compiler, &service, versions).map(|compiled| (service, compiled)))
            .collect();
        let workloads = intent.services.keys().filter_map(|service| compiler.workload(service));
        self.published.shared.replace(type_url::WORKLOAD, workloads);
        let mut ports: BTreeSet<(&ServiceRef, &str)> = BTreeSet::new();
        for services in [&intent.services].into_iter().chain(self.stage.calls.as_ref().map(|i| &i.services)) {
            ports.extend(services.iter().flat_map(|(id, one)| one.ports.iter().map(move |p| (id, &*p.name))));
        }
        let kept = self.stage.kept.iter();
        ports.extend(kept.flat_map(|(id, kept)| kept.ports.iter().map(move |port| (id, &*port.name))));
        self.zones.declare(intent, &compiler);
        let before = std::mem::take(&mut self.failovers);
        let is_published = |(service, port): &(ServiceRef, String)| ports.contains(&(service, port.as_str()));
        self.failovers = Failovers::new(self.stage.calls.as_ref().unwrap_or(intent), before, is_published);
        let load = Load::new(hosts, hold);
        let (zones, failovers) = (&mut self.zones, &self.failovers);
        let ports = ports.into_iter();
        let assignments: Vec<_> =
            ports.map(|(service, port)| zones.assignment(service, port, failovers, &load)).collect();
        let assignments = self.versions.all_of(&assignments);
        let names: BTreeSet<&str> = assignments.iter().map(|resource| &*resource.name).collect();
        self.order.retain(|name, _| names.contains(name.as_str()));
        assignments.iter().for_each(|resource| self.put_in_order(resource));
        self.published.shared.replace(type_url::ENDPOINT, assignments);
        let names: BTreeSet<String> = hosts.iter().map(|(name, _)| name.clone()).collect();
        Arc::make_mut(&mut self.published.hosts).retain(|name, _| names.contains(name));
        for name in names {
            self.publish_host(&name, hosts);
        }
    }

    /// Computes what follows from changes of hosts.
    pub(super) fn follow(&mut self, changed: &Changed, intent: &Intent, hosts: &Hosts, hold: &Hold) {
        let load = Load::new(hosts, hold);
        let mut concerned = BTreeSet::new();
        for service in self.zones.concerned(&changed.endpoints, &self.failovers, &load) {
            concerned.extend(self.failovers.with_endpoints_of(&service).cloned());
            let ports = self.ports_of(&service, intent).into_iter();
            concerned.extend(ports.map(|port| (service.clone(), port)));
        }
        for (service, port) in concerned {
            let assignment = self.zones.assignment(&service, &port, &self.failovers, &load);
            let published = self.versions.of_all(&assignment);
            self.put_in_order(&published);
            self.published.shared.insert(published);
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
            let compiler = Compiler::staged(intent, &self.stage, &self.trust_domain);
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

    fn put_in_order(&mut self, assignment: &Resource) {
        let order = self.order.entry(assignment.name.to_string()).or_default();
        if order.back() != Some(&assignment.version) {
            order.push_back(assignment.version.clone());
            if order.len() > MAX_ORDER {
                order.pop_front();
            }
        }
    }

    /// Whether a load assignment was published as `used` when it was as `version`, or later.
    pub(super) fn is_since(&self, assignment: &str, used: &str, version: &str) -> bool {
        let Some(order) = self.order.get(assignment) else { return true };
        let place = |version: &str| order.iter().rposition(|one| &**one == version);
        // What is forgotten was earlier than anything that is not.
        place(used).is_some_and(|used| place(version).is_none_or(|at| at <= used))
    }

    /// The load assignments with endpoints of a service, or that had some, as they are published.
    pub(super) fn assignments_of(&self, service: &ServiceRef, intent: &Intent) -> Assignments {
        let own = self.ports_of(service, intent).into_iter().map(|port| format!("{service}/{port}"));
        let others = self.failovers.ever_with_endpoints_of(service);
        let others = others.map(|(other, port)| format!("{other}/{port}"));
        let published = own.chain(others).filter_map(|name| {
            let resource = self.published.shared.get(type_url::ENDPOINT, &name)?;
            Some((name, resource.version.to_string()))
        });
        published.collect()
    }

    /// Services whose proxies are sent one of these, with its name and version in `assignments`.
    pub(super) fn users_of<'a>(
        &'a self,
        assignments: &'a Assignments,
    ) -> impl Iterator<Item = (&'a ServiceRef, &'a str, &'a str)> {
        self.services.iter().flat_map(move |(service, compiled)| {
            let used = compiled.endpoints.iter().filter_map(|name| assignments.get_key_value(name));
            used.map(move |(name, version)| (service, name.as_str(), version.as_str()))
        })
    }

    /// Names of the ports that endpoints are published of.
    pub(super) fn ports_of(&self, service: &ServiceRef, intent: &Intent) -> BTreeSet<String> {
        let declared = [Some(intent), self.stage.calls.as_ref()].into_iter().flatten();
        let declared = declared.filter_map(|intent| intent.services.get(service)).flat_map(|one| &one.ports);
        let kept = self.stage.kept.get(service).into_iter().flat_map(|kept| &kept.ports);
        declared.chain(kept).map(|port| port.name.clone()).collect()
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

    /// Names of the clusters that a proxy of a service has towards others.
    pub(super) fn clusters(&self, service: &ServiceRef) -> BTreeSet<&str> {
        let expected = self.services.get(service).into_iter().flat_map(|compiled| &compiled.expected);
        let clusters = expected.filter(|one| one.kind == "cluster" && one.name.starts_with("outbound/"));
        clusters.map(|one| one.name.as_str()).collect()
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
