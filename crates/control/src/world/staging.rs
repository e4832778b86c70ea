//! Changes and departures under way, seen from the state of the mesh: who accepts what, and who may still use it.

use std::collections::{BTreeMap, BTreeSet};

use outrider_compile::Stage;
use outrider_intent::model::{Intent, ServiceRef};
use outrider_xds_types::names;

use super::acks::{Acks, Expected, Standing};
use super::hosts::{Host, Hosts, Instance, State};
use super::resources::Resources;
use super::shift::{Need, Proxies, Withdrawal};
use super::{Millis, World};

/// What [`super::shift`] asks about.
struct Seen<'a> {
    hosts: &'a Hosts,
    acks: &'a Acks,
    resources: &'a Resources,
}

/// Whether a proxy runs and its host is heard of.
pub(super) fn is_live(host: &Host, instance: &Instance) -> bool {
    !host.lost && instance.proxy_pid != 0
}

impl Seen<'_> {
    fn live<'a>(&'a self, service: &'a ServiceRef) -> impl Iterator<Item = (String, &'a Instance)> {
        let all = self.hosts.of_service(service).filter(|(_, host, instance)| is_live(host, instance));
        all.map(|(_, _, instance)| (instance.proxy(), instance))
    }
}

impl Proxies for Seen<'_> {
    fn run(&self, service: &ServiceRef) -> bool {
        self.hosts.of_service(service).next().is_some()
    }

    fn accept(&self, need: &Need) -> bool {
        let expected = self.resources.expected(&need.service);
        let name = names::inbound(&need.port);
        let inbound: Vec<&Expected> = expected.iter().filter(|one| one.name == name).collect();
        let mut ready = self.live(&need.service).filter(|(_, instance)| instance.state == State::Ready);
        ready.all(|(proxy, instance)| {
            let current = |one: &&Expected| self.acks.standing(&proxy, one) == Standing::Current;
            inbound.iter().all(current) && (!need.endpoint || instance.endpoints.contains_key(&need.port))
        })
    }

    fn may_use(&self, caller: &ServiceRef, cluster: &str) -> bool {
        let all = self.resources.expected(caller);
        let expected = all.iter().find(|one| one.kind == "cluster" && one.name == cluster);
        // It may have been sent the cluster and what leads there, and not have said so yet.
        let leads =
            |one: &&Expected| ["listener", "route"].contains(&one.kind) && one.name.starts_with("outbound/");
        let leads: Vec<&Expected> = all.iter().filter(leads).collect();
        let mut live = self.live(caller);
        live.any(|(proxy, _)| {
            let is_behind = |one: &Expected| self.acks.standing(&proxy, one) != Standing::Current;
            match expected {
                Some(expected) => is_behind(expected),
                None => self.acks.has(&proxy, "cluster", cluster) || leads.iter().any(|one| is_behind(one)),
            }
        })
    }

    fn may_know(&self, caller: &ServiceRef, assignment: &str) -> bool {
        let all = self.resources.expected(caller);
        let expected = all.iter().find(|one| one.kind == "endpoints" && one.name == assignment);
        self.live(caller).any(|(proxy, _)| match expected {
            Some(expected) => self.acks.standing(&proxy, expected) != Standing::Current,
            None => self.acks.has(&proxy, "endpoints", assignment),
        })
    }
}

impl World {
    /// How `after` is to be compiled at first.
    pub(super) fn stage(&mut self, after: &Intent, now: Millis) -> Stage {
        let Self { hosts, acks, resources, shift, declared, .. } = self;
        shift.declare(&declared.intent, after, &Seen { hosts, acks, resources }, now)
    }

    /// Takes changes under way further, if proxies are so far.
    pub(super) fn go_on(&mut self, now: Millis) {
        // A step may be the last one already: nobody uses what is old.
        while self.shift.is_due(now) {
            let Self { hosts, acks, resources, shift, declared, hold, leaving, .. } = self;
            // Who is known not to be led somewhere any more is not waited for.
            leaving.stir();
            let stage = shift.look(&declared.intent, &Seen { hosts, acks, resources }, now);
            let Some(stage) = stage else { break };
            resources.rebuild(&declared.intent, stage, hosts, hold);
        }
        self.look_who_left();
    }

    /// Whether a change came further since the last call.
    pub(crate) fn take_step(&mut self) -> bool {
        self.shift.take_step()
    }

    /// What is outstanding of a change for the proxies of a service besides what they were sent, in words.
    pub(super) fn outstanding(&self, service: &ServiceRef) -> Vec<String> {
        let mut reasons: Vec<String> = self.shift.withdrawn(service).map(|one| one.text()).collect();
        if self.resources.is_held(service) {
            let needs = self.shift.needs();
            let waits = |need: &Need| format!("{} ({})", need.service, names::inbound(&need.port));
            let waits: Vec<String> = needs.map(waits).collect();
            reasons.push(format!("its calls change once servers accept what is new: {}", waits.join(", ")));
        }
        reasons
    }

    /// A host reported its instances.
    pub(super) fn note_leaving(&mut self, node: &str) {
        let Self { hosts, resources, leaving, declared, .. } = self;
        let instances = hosts.get(node).into_iter().flat_map(|host| &host.instances);
        let draining = instances.filter(|(_, instance)| instance.state == State::Draining);
        leaving.report(node, draining.map(|(proxy, _)| proxy.as_str()), |proxy| {
            let service = hosts.find(proxy).map(|(.., instance)| &instance.service);
            service.map(|service| resources.assignments_of(service, &declared.intent)).unwrap_or_default()
        });
    }

    fn look_who_left(&mut self) {
        let Self { hosts, acks, resources, leaving, shift, .. } = self;
        leaving.look(|leaver, without| {
            // Where no route leads any more, callers are sent nothing that they could say is in use.
            let service = hosts.find(leaver).map(|(.., instance)| &instance.service);
            let is_led_there =
                service.is_some_and(|service| shift.withdrawn(service).any(Withdrawal::is_led));
            is_led_there
                || resources.users_of(without).any(|(service, assignment, version)| {
                    let all = hosts.of_service(service).filter(|(_, host, instance)| is_live(host, instance));
                    let mut callers =
                        all.map(|(_, _, instance)| instance.proxy()).filter(|one| one != leaver);
                    callers.any(|caller| match acks.version(&caller, "endpoints", assignment) {
                        Some(used) => !resources.is_since(assignment, used, version),
                        // It does not use any yet, and will begin with those of now.
                        None => false,
                    })
                })
        });
    }

    /// Instances that drain and that no live proxy calls any more, by node.
    pub(crate) fn left(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.leaving.left()
    }
}

#[cfg(test)]
mod tests;
