//! The state of the mesh: what is declared, which hosts and instances there are, what their proxies have in use,
//! and the resources that follow from it.
//!
//! Holds: no I/O and no clock; events and `now` in, published resources and views out. Resources are computed
//! for what changed only, and a host's are kept apart from other hosts'. Does not: store anything; it names the
//! host records that are to be stored.

mod acks;
mod admissions;
mod events;
mod failover;
mod hold;
mod hosts;
mod leaving;
mod lives;
mod resources;
mod rollout;
mod shift;
mod staging;
mod traffic;
mod versions;
mod views;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrider_api::agent as wire;
use outrider_api::http::{EventList, ProxyChange};
use outrider_compile::Stage;
use outrider_intent::model::{Intent, ServiceRef};
use outrider_intent::{Document, Key};
use outrider_xds::ResourceSet;

use acks::Acks;
use admissions::Admissions;
pub(crate) use admissions::{Admission, NotAdmitted, Scope, forgotten};
use events::Events;
pub(crate) use events::{EventFilter, PER_SERVICE as EVENTS_PER_SERVICE};
pub(crate) use hold::HoldNote;
use hold::{Cause, Hold};
use hosts::{Changed, Hosts, Refusal};
pub(crate) use hosts::{FactError, HostRecord, is_label, is_node_name, printable};
use leaving::Leaving;
use lives::Lives;
pub(crate) use lives::read as life;
use resources::Resources;
use shift::Shift;
use traffic::Traffic;

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

/// What a fact did besides changing the state, for the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Taken {
    /// Instances that do not count, and why, if that is new.
    pub(crate) refused: Vec<(String, String)>,
    /// After a report: every instance of the host that does not count.
    pub(crate) all_refused: Option<wire::Refused>,
    /// The node's proxies acknowledge more than is kept, if that is new.
    pub(crate) too_much: Option<String>,
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
    admissions: Admissions,
    hosts: Hosts,
    hold: Hold,
    acks: Acks,
    traffic: BTreeMap<String, Traffic>,
    lives: Lives,
    events: Events,
    resources: Resources,
    shift: Shift,
    leaving: Leaving,
    unsaved: BTreeSet<String>,
}

impl World {
    /// Starts from what the store knows.
    pub(crate) fn new(
        trust_domain: &str,
        timing: Timing,
        declared: Declared,
        admitted: BTreeMap<String, Admission>,
        known: BTreeMap<String, HostRecord>,
        now: Millis,
    ) -> Self {
        let hosts = Hosts::new(timing, known, now);
        let mut resources = Resources::new(trust_domain);
        let hold = Hold::new(timing.grace_ms, &hosts);
        resources.rebuild(&declared.intent, Stage::default(), &hosts, &hold);
        Self {
            declared,
            admissions: Admissions::new(admitted),
            hosts,
            hold,
            acks: Acks::default(),
            traffic: BTreeMap::new(),
            lives: Lives::default(),
            events: Events::default(),
            resources,
            shift: Shift::default(),
            leaving: Leaving::default(),
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
    pub(crate) fn declare(&mut self, declared: Declared, now: Millis) {
        let (before, after) = (&self.declared.intent.services, &declared.intent.services);
        let all: BTreeSet<&ServiceRef> = before.keys().chain(after.keys()).collect();
        let changed = all.into_iter().filter(|service| before.get(*service) != after.get(*service)).cloned();
        self.hold.declared(changed, now);
        let stage = self.stage(&declared.intent, now);
        self.resources.rebuild(&declared.intent, stage, &self.hosts, &self.hold);
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

    /// Whether a certificate of `node` with this key is good; see [`Admissions::check`].
    pub(crate) fn check_node(&self, node: &str, key: &str) -> Result<Option<Admission>, NotAdmitted> {
        self.admissions.check(node, key)
    }

    pub(crate) fn admission(&self, node: &str) -> Option<&Admission> {
        self.admissions.get(node)
    }

    /// Takes over that a node joined, as it was stored. Another machine may have the name from now on, so nothing that
    /// was said under it counts any more.
    pub(crate) fn admit_anew(&mut self, node: &str, admission: Admission, now: Millis) {
        self.admit(node, admission);
        let changed = self.hosts.disown(node);
        self.changed(changed, Cause::Report, now);
    }

    /// Takes over an admission that was stored, with the keys of before.
    pub(crate) fn admit(&mut self, node: &str, admission: Admission) {
        self.admissions.put(node, admission);
    }

    /// Takes over that a node was deleted: its instances are no endpoints any more. Names them; `None` if there is
    /// no such node.
    pub(crate) fn evict(&mut self, node: &str) -> Option<Vec<String>> {
        let admitted = self.admissions.remove(node);
        let host = self.hosts.get(node);
        let instances = host.map(|host| host.instances.keys().cloned().collect());
        if !admitted && host.is_none() {
            return None;
        }
        let mut changed = self.hosts.evict(node);
        changed.endpoints.extend(self.hold.evict(node));
        self.events.evict(node);
        self.changed(changed, Cause::Person, 0);
        Some(instances.unwrap_or_default())
    }

    /// What runs on a node that is connected, as `NS/INSTANCE`; `None` if it is not.
    pub(crate) fn runs_on(&self, node: &str) -> Option<Vec<String>> {
        let host = self.hosts.get(node).filter(|host| host.is_connected())?;
        Some(host.instances.keys().cloned().collect())
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
            // Deleted while its session began.
            if self.admissions.get(node).is_none() {
                return Err(NotAdmitted(node.to_owned()).into());
            }
            let before = self.hosts.get(node).map_or(0, |host| host.superseded);
            let changed = self.hosts.hello(node, session, hello, now);
            self.changed(changed, Cause::Report, now);
            let after = self.hosts.get(node).map_or(0, |host| host.superseded);
            taken.superseded = (after > before).then_some(after);
            return Ok(taken);
        }
        self.hosts.check(node, session)?;
        let changed = self.hosts.heard(node, now);
        self.changed(changed, Cause::Report, now);
        match fact {
            wire::FactKind::Hello(_) => {}
            wire::FactKind::Heartbeat(beat) => self.hosts.set_problems(node, &beat.problems),
            wire::FactKind::Occurred(occurred) => self.occurred(node, occurred)?,
            wire::FactKind::ProxyStatus(status) => {
                self.own(node, &status.proxy)?;
                self.lives.put(node, status, now);
            }
            wire::FactKind::Answer(answer) => {
                if let Some(status) = &answer.status {
                    self.own(node, &status.proxy)?;
                    self.lives.put(node, status, now);
                }
            }
            wire::FactKind::Instances(report) => {
                let scope = self.admissions.get(node).map(|admission| admission.scope.clone());
                let (changed, refused) = self.hosts.instances(node, report, &scope.unwrap_or_default())?;
                self.changed(changed, Cause::Report, now);
                self.note_leaving(node);
                taken.refused = refused.into_iter().map(|(proxy, why)| (proxy, why.text())).collect();
                let all = self.hosts.get(node).into_iter().flat_map(|host| &host.refused);
                let all = all.map(|(proxy, why)| refused_instance(proxy, why));
                taken.all_refused = Some(wire::Refused { instances: all.collect() });
            }
            wire::FactKind::Applied(applied) => {
                self.own(node, &applied.proxy)?;
                let service = self.hosts.find(&applied.proxy).map(|(.., instance)| &instance.service);
                let expected = service.map(|service| self.resources.expected(service)).unwrap_or_default();
                let kept = self.acks.apply(node, applied, &expected);
                self.shift.stir();
                self.leaving.stir();
                let too_much = kept.err().filter(|error| *error == acks::AckError::TooMuch);
                if self.hosts.set_too_much(node, too_much.is_some()) {
                    taken.too_much = too_much.map(|error| error.to_string());
                }
            }
            wire::FactKind::Traffic(traffic) => {
                self.own(node, &traffic.proxy)?;
                let caller = self.hosts.find(&traffic.proxy).map(|(.., instance)| &instance.service);
                let caller = caller.and_then(|caller| self.declared.intent.services.get(caller));
                let clusters = caller.map(|caller| self.resources.clusters(&caller.id)).unwrap_or_default();
                let is_called = |called: &ServiceRef| {
                    caller.is_some_and(|caller| caller.calls.contains(called)) && self.is_service(called)
                };
                let mut summed = Traffic::read(traffic, is_called, &clusters);
                let others = self.hosts.get(node).into_iter().flat_map(|host| host.instances.keys());
                let others = others.filter(|proxy| **proxy != traffic.proxy);
                summed.fit(others.filter_map(|proxy| self.traffic.get(proxy)));
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

    /// Takes an event in. It may be of an instance that is gone: how it ended is told last.
    fn occurred(&mut self, node: &str, occurred: &wire::Occurred) -> Result<(), FactError> {
        let foreign = || FactError::Foreign(occurred.proxy.chars().take(200).collect());
        let service = service_of(occurred).ok_or_else(foreign)?;
        let may = match self.hosts.find(&occurred.proxy) {
            Some((owner, _, instance)) => owner == node && instance.service == service,
            None => self.admissions.get(node).is_some_and(|admission| admission.scope.allows(&service)),
        };
        if !may {
            return Err(foreign());
        }
        self.events.add(node, service, occurred);
        Ok(())
    }

    /// What happened to proxies, as far as it passes.
    pub(crate) fn events(&self, filter: &EventFilter) -> EventList {
        self.events.list(filter)
    }

    /// The cursor of the last event.
    pub(crate) fn event_cursor(&self) -> u64 {
        self.events.cursor()
    }

    /// Events are counted on from here: larger than any cursor of an earlier life of this server.
    pub(crate) fn begin_events_at(&mut self, cursor: u64) {
        self.events = Events::new(cursor);
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
        let observed = match ticked.withdrawn.len() {
            0 => false,
            count => {
                let alone = self.hold.silent_alone(count, now);
                let again = |name: &String| self.hosts.get(name).is_some_and(|host| host.doubted);
                alone || ticked.withdrawn.iter().all(again)
            }
        };
        self.changed(changed, Cause::Silence { observed }, now);
        let released = Changed { endpoints: self.hold.tick(now), ..Changed::default() };
        self.resources.follow(&released, &self.declared.intent, &self.hosts, &self.hold);
        self.go_on(now);
        ticked
    }

    /// What was held since the last call, or was let go.
    pub(crate) fn take_hold_notes(&mut self) -> Vec<HoldNote> {
        self.hold.take_notes()
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
        let deadlines = [self.hosts.next_deadline(), self.hold.next_deadline(), self.shift.next_deadline()];
        deadlines.into_iter().flatten().min()
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

    fn changed(&mut self, changed: Changed, cause: Cause, now: Millis) {
        self.hold.follow(&changed.endpoints, &self.hosts, cause, now);
        for proxy in &changed.gone {
            self.acks.forget(proxy);
            self.traffic.remove(proxy);
            self.lives.forget(proxy);
            self.leaving.forget(proxy);
        }
        self.resources.follow(&changed, &self.declared.intent, &self.hosts, &self.hold);
        self.shift.stir();
        self.leaving.stir();
        self.unsaved.extend(changed.records);
    }
}

/// The service of an event whose names are names, of one namespace.
fn service_of(occurred: &wire::Occurred) -> Option<ServiceRef> {
    let (namespace, service) = occurred.service.split_once('/')?;
    let (of_proxy, instance) = occurred.proxy.split_once('/')?;
    let good = [namespace, service, instance].into_iter().all(is_label) && of_proxy == namespace;
    good.then(|| ServiceRef::new(namespace, service))
}

fn refused_instance(proxy: &str, why: &Refusal) -> wire::RefusedInstance {
    wire::RefusedInstance { instance: proxy.to_owned(), reason: why.reason as i32, text: why.text() }
}

#[cfg(test)]
mod tests;
