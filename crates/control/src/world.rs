//! The state of the mesh: what is declared, which hosts and instances there are, what their proxies have in use,
//! and the resources that follow from it.
//!
//! Holds: no I/O and no clock; events and `now` in, published resources and views out. Resources are computed
//! for what changed only, and a host's are kept apart from other hosts'. Does not: store anything; it names the
//! host records that are to be stored.

mod acks;
mod hosts;
mod resources;
mod rollout;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrider_api::agent as wire;
use outrider_api::http::{ProxyChange, TrafficView};
use outrider_intent::model::{Intent, ServiceRef};
use outrider_intent::{Document, Key};
use outrider_xds::ResourceSet;

use acks::Acks;
use hosts::{Changed, Hosts};
pub(crate) use hosts::{FactError, HostRecord, is_node_name};
use resources::Resources;

/// Milliseconds on a clock that never goes back and starts anywhere.
pub(crate) type Millis = u64;

/// Times that decide when a host is lost. All in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often agents send a heartbeat.
    pub heartbeat_ms: u64,
    /// Silence after which a host is lost: three heartbeats.
    pub lost_after_ms: u64,
    /// How long hosts known before a restart of the control plane stay without being heard.
    pub grace_ms: u64,
    /// How long a lost host is shown before it is forgotten.
    pub forget_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 2_000, lost_after_ms: 6_000, grace_ms: 10_000, forget_ms: 3_600_000 }
    }
}

/// Everything declared, at one revision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declared {
    /// The store's revision.
    pub(crate) revision: u64,
    /// Documents with the revision of their last change.
    pub(crate) documents: BTreeMap<Key, (u64, Document)>,
    /// What they mean together.
    pub(crate) intent: Intent,
}

/// What streams to agents serve from. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published {
    /// Endpoints and workloads.
    pub(crate) shared: ResourceSet,
    /// Listeners, routes and clusters of the instances of each host.
    pub(crate) hosts: Arc<BTreeMap<String, ResourceSet>>,
}

impl Published {
    /// Whether both are the same to streams: nothing in them was changed since one was cloned from the other.
    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.hosts, &other.hosts) && self.shared.changes_to(&other.shared).is_empty()
    }

    /// Everything a host may see.
    pub(crate) fn of_host(&self, name: &str) -> ResourceSet {
        let mut set = self.shared.clone();
        if let Some(own) = self.hosts.get(name) {
            set.adopt(own);
        }
        set
    }
}

/// Traffic of a proxy as last reported.
#[derive(Clone, Debug, Default)]
struct Traffic {
    resident_bytes: u64,
    inbound: TrafficView,
    outbound: BTreeMap<String, TrafficView>,
}

/// What a fact did besides changing the state, for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Instances that do not count, and why, if that is new.
    pub(crate) refused: Vec<(String, &'static str)>,
    /// An open session was replaced; how often that happened to this host.
    pub(crate) superseded: Option<u64>,
}

/// What the passing of time did. Names of hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticked {
    pub(crate) lost: Vec<String>,
    pub(crate) withdrawn: Vec<String>,
}

pub(crate) struct World {
    declared: Declared,
    hosts: Hosts,
    acks: Acks,
    traffic: BTreeMap<String, Traffic>,
    resources: Resources,
    unsaved: BTreeSet<String>,
}

impl World {
    /// Starts from what the store knows.
    pub(crate) fn new(
        trust_domain: &str,
        timing: Timing,
        declared: Declared,
        known: BTreeMap<String, HostRecord>,
        now: Millis,
    ) -> Self {
        let hosts = Hosts::new(timing, known, now);
        let mut resources = Resources::new(trust_domain);
        resources.rebuild(&declared.intent, &hosts);
        Self {
            declared,
            hosts,
            acks: Acks::default(),
            traffic: BTreeMap::new(),
            resources,
            unsaved: BTreeSet::new(),
        }
    }

    pub(crate) fn declared(&self) -> &Declared {
        &self.declared
    }

    /// What streams shall serve now.
    pub(crate) fn published(&self) -> &Published {
        self.resources.published()
    }

    /// Takes over what was just committed.
    pub(crate) fn declare(&mut self, declared: Declared) {
        self.resources.rebuild(&declared.intent, &self.hosts);
        self.declared = declared;
    }

    /// What would change in proxies with another intent.
    pub(crate) fn differences(&self, after: &Intent) -> Vec<ProxyChange> {
        let running: Vec<_> = resources::scopes(&self.hosts).collect();
        self.resources.differences(&self.declared.intent, after, &running)
    }

    pub(crate) fn reserve_node(&mut self, name: &str, now: Millis) -> bool {
        self.hosts.reserve(name, now)
    }

    pub(crate) fn release_node(&mut self, name: &str) {
        self.hosts.release(name);
    }

    /// The host that runs a proxy.
    pub(crate) fn owner(&self, proxy: &str) -> Option<&str> {
        self.hosts.owner(proxy)
    }

    pub(crate) fn is_service(&self, service: &ServiceRef) -> bool {
        self.declared.intent.services.contains_key(service)
    }

    /// Takes a fact of a host's session in.
    pub(crate) fn fact(
        &mut self,
        node: &str,
        session: u64,
        fact: &wire::FactKind,
        now: Millis,
    ) -> Result<Taken, FactError> {
        let mut taken = Taken::default();
        if let wire::FactKind::Hello(hello) = fact {
            if hello.node != node {
                return Err(FactError::NoHello);
            }
            let before = self.hosts.get(node).map_or(0, |host| host.superseded);
            let changed = self.hosts.hello(node, session, hello, now);
            self.changed(changed);
            let after = self.hosts.get(node).map_or(0, |host| host.superseded);
            taken.superseded = (after > before).then_some(after);
            return Ok(taken);
        }
        self.hosts.check(node, session)?;
        let changed = self.hosts.heard(node, now);
        self.changed(changed);
        match fact {
            wire::FactKind::Hello(_) | wire::FactKind::Heartbeat(_) | wire::FactKind::Occurred(_) => {}
            wire::FactKind::Instances(report) => {
                let (changed, refused) = self.hosts.instances(node, report)?;
                self.changed(changed);
                taken.refused = refused;
            }
            wire::FactKind::Applied(applied) => {
                self.own(node, &applied.proxy)?;
                let service = self.hosts.find(&applied.proxy).map(|(.., instance)| &instance.service);
                let expected = service.map(|service| self.resources.expected(service)).unwrap_or_default();
                self.acks.apply(applied, &expected);
            }
            wire::FactKind::Traffic(traffic) => {
                self.own(node, &traffic.proxy)?;
                let summed = views::traffic(traffic, |service| self.is_service(service));
                self.traffic.insert(traffic.proxy.clone(), summed);
            }
        }
        Ok(taken)
    }

    fn own(&self, node: &str, proxy: &str) -> Result<(), FactError> {
        match self.hosts.owner(proxy) {
            Some(owner) if owner == node => Ok(()),
            _ => Err(FactError::Foreign(proxy.chars().take(200).collect())),
        }
    }

    /// A session ended.
    pub(crate) fn closed(&mut self, node: &str, session: u64) {
        self.hosts.closed(node, session);
    }

    /// Lets time pass. Names hosts that were lost just now, and those whose endpoints were withdrawn.
    pub(crate) fn tick(&mut self, now: Millis) -> Ticked {
        let mut changed = self.hosts.tick(now);
        let ticked = Ticked {
            lost: std::mem::take(&mut changed.lost).into_iter().collect(),
            withdrawn: std::mem::take(&mut changed.withdrawn).into_iter().collect(),
        };
        self.changed(changed);
        ticked
    }

    /// This process was held up until `now`: silence before it says nothing of hosts.
    pub(crate) fn was_late(&mut self, now: Millis) {
        self.hosts.was_late(now);
    }

    /// No host is heard at all, so nothing is concluded from silence.
    pub(crate) fn cut_off(&self) -> bool {
        self.hosts.cut_off()
    }

    /// When [`World::tick`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Millis> {
        self.hosts.next_deadline()
    }

    /// Host records to be stored since the last call; `None` for hosts to be forgotten.
    pub(crate) fn take_unsaved(&mut self) -> Vec<(String, Option<HostRecord>)> {
        let names = std::mem::take(&mut self.unsaved);
        names.into_iter().map(|name| (name.clone(), self.hosts.record(&name))).collect()
    }

    /// Records to be stored after all, because storing them failed.
    pub(crate) fn still_unsaved(&mut self, names: impl IntoIterator<Item = String>) {
        self.unsaved.extend(names);
    }

    fn changed(&mut self, changed: Changed) {
        for proxy in &changed.gone {
            self.acks.forget(proxy);
            self.traffic.remove(proxy);
        }
        self.resources.follow(&changed, &self.declared.intent, &self.hosts);
        self.unsaved.extend(changed.records);
    }
}

#[cfg(test)]
mod tests;
