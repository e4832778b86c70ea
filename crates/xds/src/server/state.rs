//! What a session knows of one type: subscriptions, what the client holds, what it refused, what is planned.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use outrider_xds_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrider_xds_types::pb::google::rpc::Status;
use outrider_xds_types::prost::{Message, Name};

use super::{Seen, Versioned};
use crate::interest::Interest;
use crate::refers;
use crate::refusal;
use crate::set::{Resource, ResourceSet, Stamp};

/// Abandoned responses whose late answer still counts, per type.
const MAX_LATE: usize = 4;

/// First answers without reply that a type may have beside its open response.
const MAX_FIRST_ANSWERS: usize = 1024;

/// A response without answer.
#[derive(Debug)]
pub(super) struct Outstanding {
    /// Later responses have higher numbers.
    pub(super) number: u64,
    pub(super) nonce: String,
    pub(super) resources: Vec<Versioned>,
    pub(super) removed: Vec<Arc<str>>,
}

/// The content of one response.
pub(super) struct Additions {
    pub(super) resources: Vec<Arc<Resource>>,
    /// To be told not to exist.
    pub(super) absent: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Known {
    /// Last version sent or claimed; `None` if it was refused together with others, so nobody knows.
    version: Option<Arc<str>>,
    /// Some version was acknowledged or claimed.
    accepted: bool,
    /// The client reacted to it, or was given up on.
    answered: bool,
    /// The last response about it that was answered, and the last that was acknowledged.
    heard: u64,
    acked: u64,
}

#[derive(Debug, Default)]
struct Plan {
    /// For which content the plan was made; `None` if it has to be made anew.
    made_for: Option<Stamp>,
    add: Vec<Arc<Resource>>,
    /// Subscribed by name, not existing, to be told.
    absent: Vec<Arc<str>>,
    remove: Vec<Arc<str>>,
}

#[derive(Debug, Default)]
pub(super) struct TypeState {
    pub(super) interest: Interest,
    pub(super) outstanding: Option<Outstanding>,
    /// First answers for names that were subscribed while another response was open.
    pub(super) first_answers: Vec<Outstanding>,
    /// The client came with versions from an earlier stream.
    pub(super) claimed: bool,
    late: VecDeque<Outstanding>,
    known: BTreeMap<Arc<str>, Known>,
    /// Versions refused when they stood alone.
    refused: BTreeMap<Arc<str>, Arc<str>>,
    /// To be answered even if the client holds the same version.
    again: BTreeSet<Arc<str>>,
    /// Names the client was told not to exist.
    told_absent: BTreeSet<Arc<str>>,
    /// Parts of refused responses, to be sent apart until the refused resources stand alone.
    suspects: VecDeque<Vec<Versioned>>,
    /// Not removed although nothing is there.
    spared: BTreeSet<Arc<str>>,
    /// A wildcard or glob without any answer yet: one is owed even if it is empty.
    owes_answer: bool,
    plan: Plan,
    planned: bool,
}

impl TypeState {
    pub(super) fn dirty(&mut self) {
        self.planned = false;
    }

    /// What is not to be removed although nothing is there, in place of what was said before.
    pub(super) fn spare(&mut self, spared: BTreeSet<Arc<str>>) {
        if self.spared != spared {
            self.spared = spared;
            self.dirty();
        }
    }

    /// Whether some version of it is in use in the client.
    pub(super) fn accepted(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(|known| known.accepted)
    }

    /// `true` if the subscription is new.
    pub(super) fn subscribe(&mut self, name: &Arc<str>, nothing_claimed: bool) -> bool {
        let new = self.interest.add(name);
        if self.interest.names().contains(name) {
            self.told_absent.remove(name);
            if self.known.contains_key(name) {
                self.again.insert(name.clone());
            }
            self.refused.remove(name);
        } else {
            self.owes_answer |= nothing_claimed;
        }
        self.dirty();
        new
    }

    pub(super) fn unsubscribe(&mut self, name: &str) -> bool {
        let by_name = self.interest.names().contains(name);
        if !self.interest.remove(name) {
            return false;
        }
        let interest = &self.interest;
        if interest.covers(name) {
            // Still wanted by wildcard or glob: the client has dropped it and is owed it again.
            let name: Arc<str> = name.into();
            if self.known.contains_key(&name) {
                self.again.insert(name);
            }
        } else if by_name {
            // Nothing else lost its subscription; streams end thousands of names at once.
            self.known.remove(name);
            self.refused.remove(name);
            self.again.remove(name);
            self.told_absent.remove(name);
        } else {
            self.known.retain(|name, _| interest.covers(name));
            self.refused.retain(|name, _| interest.covers(name));
            self.again.retain(|name| interest.covers(name));
            self.told_absent.retain(|name| interest.covers(name));
        }
        self.dirty();
        true
    }

    pub(super) fn claim(&mut self, name: &Arc<str>, version: &Arc<str>, again: bool) {
        let known =
            Known { version: Some(version.clone()), accepted: true, answered: true, heard: 0, acked: 0 };
        self.known.insert(name.clone(), known);
        if again {
            self.again.insert(name.clone());
        }
        self.dirty();
    }

    /// What was refused is to be sent again, in another form.
    pub(super) fn take_back(&mut self, name: &Arc<str>) {
        self.refused.remove(name);
        if self.known.contains_key(name) && self.interest.covers(name) {
            self.again.insert(name.clone());
        }
        self.dirty();
    }

    /// Answers these names again although nothing changed. `true` if any of them is subscribed.
    pub(super) fn answer_again(&mut self, names: impl Iterator<Item = String>) -> bool {
        let mut any = false;
        for name in names {
            if !self.interest.covers(&name) {
                continue;
            }
            let name: Arc<str> = name.into();
            any = true;
            self.told_absent.remove(&name);
            if self.known.contains_key(&name) {
                self.again.insert(name);
            }
        }
        if any {
            self.dirty();
        }
        any
    }

    pub(super) fn abandon(&mut self) {
        for given_up in self.outstanding.take().into_iter().chain(self.first_answers.drain(..)) {
            for (name, _) in &given_up.resources {
                if let Some(known) = self.known.get_mut(name) {
                    known.answered = true;
                }
            }
            if self.late.len() == MAX_LATE {
                self.late.pop_front();
            }
            self.late.push_back(given_up);
        }
        self.dirty();
    }

    /// An ACK, or a NACK if there is an `error`. Answers to any other nonce than an open one are stale.
    pub(super) fn on_answer(
        &mut self,
        type_url: &Arc<str>,
        nonce: &str,
        error: Option<&Status>,
    ) -> Vec<Seen> {
        let Some(answered) = self.answered(nonce) else { return Vec::new() };
        self.dirty();
        let Some(status) = error else { return self.settle(type_url, answered, None).into_iter().collect() };
        let names: BTreeSet<&str> = answered.resources.iter().map(|(name, _)| &**name).collect();
        let apart = refusal::read(status).filter(|all| all.keys().all(|name| names.contains(name.as_str())));
        let Some(apart) = apart else {
            return self.settle(type_url, answered, Some(&status.message)).into_iter().collect();
        };
        let Outstanding { number, nonce, resources, removed } = answered;
        let (bad, good): (Vec<_>, Vec<_>) =
            resources.into_iter().partition(|(name, _)| apart.contains_key(&**name));
        let mut seen = Vec::new();
        if !good.is_empty() || !removed.is_empty() {
            let rest = Outstanding { number, nonce: nonce.clone(), resources: good, removed };
            seen.extend(self.settle(type_url, rest, None));
        }
        for one in bad {
            let words = apart.get(&*one.0).map(String::as_str);
            let alone =
                Outstanding { number, nonce: nonce.clone(), resources: vec![one], removed: Vec::new() };
            seen.extend(self.settle(type_url, alone, words));
        }
        seen
    }

    /// The response that has this nonce, which waits no more.
    fn answered(&mut self, nonce: &str) -> Option<Outstanding> {
        match &self.outstanding {
            Some(open) if open.nonce == nonce => self.outstanding.take(),
            _ => match self.first_answers.iter().position(|open| open.nonce == nonce) {
                Some(at) => Some(self.first_answers.remove(at)),
                None => {
                    let at = self.late.iter().position(|late| late.nonce == nonce)?;
                    self.late.remove(at)
                }
            },
        }
    }

    /// What follows for the resources of a response that was answered; refused with these words, if any.
    fn settle(&mut self, type_url: &Arc<str>, answered: Outstanding, error: Option<&str>) -> Option<Seen> {
        let Outstanding { number, mut resources, mut removed, .. } = answered;
        // An answer that was given up on may come after that to a later response, and is history then. But what
        // is acknowledged is in use even if something later was refused.
        let about = resources.len() + removed.len();
        let alone = resources.len() <= 1;
        let known = &self.known;
        let is_news = |name: &Arc<str>| {
            known.get(name).is_none_or(|k| if error.is_some() { k.heard < number } else { k.acked < number })
        };
        resources.retain(|(name, _)| is_news(name));
        removed.retain(is_news);
        if about > 0 && resources.is_empty() && removed.is_empty() {
            return None;
        }
        for (name, version) in &resources {
            let Some(known) = self.known.get_mut(name) else { continue };
            known.answered = true;
            known.heard = known.heard.max(number);
            if error.is_none() {
                known.acked = known.acked.max(number);
                known.accepted = true;
                if self.refused.get(name) == Some(version) {
                    self.refused.remove(name);
                }
            } else if !alone && known.version.as_ref() == Some(version) {
                known.version = None;
            }
        }
        let type_url = type_url.clone();
        let Some(error) = error else { return Some(Seen::Acked { type_url, resources, removed }) };
        if !alone {
            let (first, second) = resources.split_at(resources.len().div_ceil(2));
            for part in [second, first].into_iter().filter(|part| !part.is_empty()) {
                self.suspects.push_front(part.to_vec());
            }
            return None;
        }
        for (name, version) in &resources {
            // Once a later version was sent, the fate of this one decides nothing.
            if self.known.get(name).is_some_and(|k| k.version.as_ref().is_none_or(|last| last == version)) {
                self.refused.insert(name.clone(), version.clone());
            }
        }
        Some(Seen::Refused { type_url, resources, removed, error: error.to_owned() })
    }

    /// Compares what the client holds with what it wants of `set`.
    pub(super) fn plan(&mut self, type_url: &str, set: &ResourceSet) {
        let stamp = set.stamp(type_url);
        let unchanged = match (&self.plan.made_for, stamp) {
            (Some(old), Some(new)) => old.same(new),
            (None, None) => true,
            _ => false,
        };
        if self.planned && unchanged {
            return;
        }
        let wanted = self.interest.select(type_url, set);
        let mut plan = Plan { made_for: stamp.cloned(), ..Plan::default() };
        for resource in &wanted {
            let held = self.holds(resource);
            let refused = self.refused.get(&resource.name) == Some(&resource.version);
            let asked = self.again.contains(&resource.name);
            if asked || !(held || refused) {
                plan.add.push((*resource).clone());
            }
        }
        for name in self.known.keys() {
            if set.get(type_url, name).is_none() && !self.spared.contains(name) {
                plan.remove.push(name.clone());
            }
        }
        for name in self.interest.names() {
            if set.get(type_url, name).is_none()
                && !self.known.contains_key(name)
                && !self.told_absent.contains(name)
            {
                plan.absent.push(name.clone());
            }
        }
        self.plan = plan;
        self.planned = true;
    }

    /// The additions of the next response, `None` if there is nothing to say. What the client has already accepted
    /// in some version is not replaced by what leads to anything `unusable`.
    pub(super) fn take_additions(
        &mut self,
        unusable: &BTreeSet<(&'static str, Arc<str>)>,
        max_bytes: usize,
    ) -> Option<Additions> {
        let kept = |resource: &Arc<Resource>| {
            !unusable.is_empty()
                && self.accepted(&resource.name)
                && !self.holds(resource)
                && refers::leads_to(resource, unusable)
        };
        // One open answer per resource: whoever answers them in another order would end with the older one.
        let waits = |name: &Arc<str>| {
            let told_absent = |open: &Outstanding| open.removed.contains(name);
            self.first_answers.iter().any(|open| open.resources.iter().any(|(other, _)| other == name))
                || self.first_answers.iter().chain(&self.outstanding).any(told_absent)
        };
        let mut ready: Vec<Arc<Resource>> = self
            .plan
            .add
            .iter()
            .filter(|resource| !kept(resource) && !waits(&resource.name))
            .cloned()
            .collect();
        if self.outstanding.is_some() {
            // Only what a client may need before it can answer what is open.
            ready.retain(|resource| {
                self.interest.names().contains(&resource.name) && !self.known.contains_key(&resource.name)
            });
            let full = self.first_answers.len() >= MAX_FIRST_ANSWERS;
            if full || (ready.is_empty() && self.plan.absent.is_empty()) {
                return None;
            }
        }
        while self.outstanding.is_none()
            && let Some(group) = self.suspects.pop_front()
        {
            let apart: Vec<Arc<Resource>> = ready
                .iter()
                .filter(|r| group.iter().any(|(name, version)| *name == r.name && *version == r.version))
                .cloned()
                .collect();
            if !apart.is_empty() {
                ready = apart;
                break;
            }
        }
        let mut bytes = 0;
        let mut count = 0;
        for resource in &ready {
            bytes += resource.body.len() + resource.name.len();
            if count > 0 && bytes > max_bytes {
                break;
            }
            count += 1;
        }
        ready.truncate(count);
        let absent = std::mem::take(&mut self.plan.absent);
        if ready.is_empty() && absent.is_empty() && !self.owes_answer {
            return None;
        }
        Some(Additions { resources: ready, absent })
    }

    pub(super) fn take_removals(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.plan.remove)
    }

    pub(super) fn sent(&mut self, outstanding: Outstanding) {
        for (name, version) in &outstanding.resources {
            let before = self.known.get(name);
            let known = Known {
                version: Some(version.clone()),
                accepted: before.is_some_and(|known| known.accepted),
                answered: false,
                heard: before.map_or(0, |known| known.heard),
                acked: before.map_or(0, |known| known.acked),
            };
            self.known.insert(name.clone(), known);
            self.again.remove(name);
            self.told_absent.remove(name);
            if self.refused.get(name).is_some_and(|refused| refused != version) {
                self.refused.remove(name);
            }
        }
        for name in &outstanding.removed {
            self.known.remove(name);
            self.again.remove(name);
            self.refused.remove(name);
            if self.interest.names().contains(name) {
                self.told_absent.insert(name.clone());
            }
        }
        match &self.outstanding {
            None => self.outstanding = Some(outstanding),
            Some(_) => self.first_answers.push(outstanding),
        }
        self.owes_answer = false;
        self.dirty();
    }

    /// Nothing to add is waiting or on its way. Meaningful after [`TypeState::plan`].
    pub(super) fn additions_settled(&self) -> bool {
        let idle = |open: &Outstanding| open.resources.is_empty();
        self.outstanding.as_ref().is_none_or(idle)
            && self.first_answers.iter().all(idle)
            && self.plan.add.is_empty()
    }

    /// Nothing is waiting or on its way, and nothing was refused that has a last good version in use.
    pub(super) fn settled(&self) -> bool {
        self.idle()
            && self.plan.add.is_empty()
            && self.plan.remove.is_empty()
            && !self.refused.keys().any(|name| self.accepted(name))
    }

    /// No response waits for its answer.
    pub(super) fn idle(&self) -> bool {
        self.outstanding.is_none() && self.first_answers.is_empty()
    }

    fn holds(&self, resource: &Resource) -> bool {
        self.known.get(&resource.name).is_some_and(|known| known.version.as_ref() == Some(&resource.version))
    }

    /// The client has reacted to a first answer for every name it subscribed to.
    pub(super) fn names_answered(&self) -> bool {
        let exists_again = self.plan.add.iter().any(|resource| self.told_absent.contains(&resource.name));
        !exists_again
            && self.interest.names().iter().all(|name| {
                self.told_absent.contains(name)
                    || self.known.get(name).is_some_and(|known| known.answered || known.accepted)
            })
    }

    /// What was refused and of which the client never accepted any version.
    pub(super) fn refused_before_ever_accepted(&self) -> impl Iterator<Item = &Arc<str>> {
        self.refused.keys().filter(|name| self.known.get(*name).is_some_and(|known| !known.accepted))
    }
}

/// The load assignment a cluster waits for, if it is of type EDS.
pub(crate) fn endpoints_of(resource: &Resource) -> Option<String> {
    let cluster = Cluster::decode(resource.body.as_slice()).ok()?;
    let cluster::ClusterDiscoveryType::Type(kind) = cluster.cluster_discovery_type? else { return None };
    if kind != cluster::DiscoveryType::Eds as i32 {
        return None;
    }
    let named = cluster.eds_cluster_config.map(|eds| eds.service_name).filter(|name| !name.is_empty());
    Some(named.unwrap_or(cluster.name))
}

/// Whether a listener takes routes by name.
pub(super) fn uses_routes(resource: &Resource) -> bool {
    let Ok(listener) = Listener::decode(resource.body.as_slice()) else { return false };
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains.flat_map(|chain| &chain.filters).any(|filter| {
        let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type else { return false };
        any.type_url == hcm::HttpConnectionManager::type_url()
            && hcm::HttpConnectionManager::decode(any.value.as_slice()).is_ok_and(|manager| {
                matches!(manager.route_specifier, Some(hcm::http_connection_manager::RouteSpecifier::Rds(_)))
            })
    })
}
