//! The side that answers: used by the control plane towards agents, and by the agent towards proxies.
//!
//! A [`Session`] is one stream. [`Session::on_request`] takes what the client says, [`Session::poll`] gives what
//! to send now. Call `poll` after every request and after every change of the set.
//!
//! Holds:
//! - *Make before break.* Clusters and endpoints go before the listeners and routes that need them: these wait
//!   until every cluster sent and every endpoint set newly asked for is answered. Clusters, endpoints and
//!   secrets are removed only when no listener or route is left to be sent, answered or corrected.
//!   The same after a reconnect: a client that claims listeners or routes gets no others before it asks for
//!   clusters, and one that claims clusters loses none before it asks for listeners (and routes, if any).
//! - *Last good stays.* A refused version is not sent again until it changes (or the client asks again); while a
//!   listener or route is refused nothing it may still use is removed; while a cluster the client never
//!   accepted is refused, accepted listeners and routes are not replaced by versions that lead to it. What leads
//!   elsewhere is (N28). What is [spared](Session::spare) is not removed, although it is in no set.
//! - *One bad resource does not hide the good ones.* A client that says which resources of a response it refuses
//!   (see [`crate::refusal`]) has the others in use. The response of one that does not is sent again in halves until
//!   the refused ones stand alone; only then they are reported.
//! - *Bounded.* At most one unanswered response per type; what changes meanwhile is coalesced to the latest.
//!   Only the first answer to a name does not wait: the client may need it before it can answer what is open,
//!   as clusters of one response that ask for their endpoints one by one.
//! - *Long lists go in parts* to who takes them (see [`crate::lists`]): a response of endpoints one by one goes before that of
//!   the load assignments that they are of. It needs no answer, as these are answered.
//!
//! Does not: keep time. If a client never answers, [`Session::abandon`] lets the next response go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use outrider_xds_types::type_url;

use crate::interest::{Interest, WILDCARD};
use crate::refers;
use crate::set::{Resource, ResourceSet};

mod lists;
mod state;

use lists::Lists;
pub use lists::Memo;
pub(crate) use state::endpoints_of;
use state::{Outstanding, TypeState};

/// Limits and habits of a session.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most subscriptions of a stream, over all types; also most initial versions in one request.
    pub max_names: usize,
    /// Most bytes of a subscribed name.
    pub max_name_bytes: usize,
    /// Most bytes of all subscribed names of a stream together; also of all initial versions in one request.
    pub max_names_bytes: usize,
    /// Most types of a stream.
    pub max_types: usize,
    /// A response is not made larger than this by adding resources to it, in bytes. The rest follows.
    pub response_bytes: usize,
    /// Send endpoints again whenever their cluster is sent, and when a stream begins: a proxy that builds a
    /// changed cluster anew waits for them without asking. Agents do not need it.
    pub resend_endpoints: bool,
    /// What streams of one server share about long lists of endpoints.
    pub lists: Memo,
}

impl Options {
    /// For a stream that leads to a proxy.
    pub fn for_proxy() -> Self {
        Self {
            max_names: 65_536,
            max_name_bytes: 2048,
            max_names_bytes: 8 << 20,
            max_types: 32,
            response_bytes: 1 << 20,
            resend_endpoints: true,
            lists: Memo::default(),
        }
    }

    /// For a stream that leads to an agent, which relays for many proxies.
    pub fn for_agent() -> Self {
        Self { resend_endpoints: false, ..Self::for_proxy() }
    }
}

/// A resource by name and version.
pub type Versioned = (Arc<str>, Arc<str>);

/// What a request made known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A new stream of a client that has resources in use from before.
    Claimed {
        /// Type.
        type_url: Arc<str>,
        /// What it has in use, by name.
        resources: Vec<Versioned>,
    },
    /// Now in use, and now gone.
    Acked {
        /// Type.
        type_url: Arc<str>,
        /// In use.
        resources: Vec<Versioned>,
        /// Gone, or told not to exist.
        removed: Vec<Arc<str>>,
    },
    /// Refused; an earlier version, if any, stays in use. One resource, unless it was a removal that was
    /// refused.
    Refused {
        /// Type.
        type_url: Arc<str>,
        /// What was refused.
        resources: Vec<Versioned>,
        /// Removals that were refused.
        removed: Vec<Arc<str>>,
        /// The client's words.
        error: String,
    },
    /// New subscriptions: names, globs, `*`.
    Subscribed {
        /// Type.
        type_url: Arc<str>,
        /// As written in the request; `*` for a first request without names.
        names: Vec<Arc<str>>,
    },
    /// Ended subscriptions.
    Unsubscribed {
        /// Type.
        type_url: Arc<str>,
        /// As written in the request.
        names: Vec<Arc<str>>,
    },
}

/// Why a request cannot be served: the stream is to be ended with this message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The type URL is missing.
    #[error("request without type_url")]
    NoType,
    /// More types than [`Options::max_types`].
    #[error("more than {limit} types on one stream")]
    TooManyTypes {
        /// The limit.
        limit: usize,
    },
    /// More names than [`Options::max_names`].
    #[error("more than {limit} names on one stream")]
    TooManyNames {
        /// The limit.
        limit: usize,
    },
    /// Names longer together than [`Options::max_names_bytes`].
    #[error("names of more than {limit} bytes together on one stream")]
    TooManyBytes {
        /// The limit.
        limit: usize,
    },
    /// A name longer than [`Options::max_name_bytes`], or empty.
    #[error("a name of {bytes} bytes; 1 to {limit} are allowed")]
    BadName {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// The answering side of one delta xDS stream.
#[derive(Debug)]
pub struct Session {
    options: Options,
    node: Option<Node>,
    types: BTreeMap<Arc<str>, TypeState>,
    lists: Lists,
    next_nonce: u64,
}

/// Order in which changes are sent; types not listed go first.
const ORDER: [&str; 5] =
    [type_url::SECRET, type_url::CLUSTER, type_url::ENDPOINT, type_url::LISTENER, type_url::ROUTE];

/// Order in which removals are sent.
const REMOVAL_ORDER: [&str; 5] =
    [type_url::LISTENER, type_url::ROUTE, type_url::CLUSTER, type_url::ENDPOINT, type_url::SECRET];

impl Session {
    /// A session for a stream that was just opened.
    pub fn new(options: Options) -> Self {
        let lists = Lists::new(options.lists.clone());
        Self { options, node: None, types: BTreeMap::new(), lists, next_nonce: 1 }
    }

    /// How the client introduced itself.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// What the client wants of a type.
    pub fn interest(&self, type_url: &str) -> Option<&Interest> {
        self.types.get(type_url).map(|state| &state.interest)
    }

    /// Types and nonces of responses that wait for an answer.
    pub fn outstanding(&self) -> impl Iterator<Item = (&Arc<str>, &str)> {
        self.types.iter().flat_map(|(type_url, state)| {
            let open = state.outstanding.iter().chain(&state.first_answers);
            open.map(move |open| (type_url, open.nonce.as_str()))
        })
    }

    /// Stops waiting for the answer of a type. It still counts if it comes.
    pub fn abandon(&mut self, type_url: &str) {
        if let Some(state) = self.types.get_mut(type_url) {
            state.abandon();
        }
    }

    /// From now on nothing of this, by type and name, is removed from the client although no set has it: it is in use
    /// there, and may not be replaced.
    pub fn spare(&mut self, spared: &BTreeSet<(Arc<str>, Arc<str>)>) {
        for (type_url, state) in &mut self.types {
            let of_type = spared.iter().filter(|(url, _)| url == type_url);
            state.spare(of_type.map(|(_, name)| name.clone()).collect());
        }
    }

    /// Takes a request in: subscriptions, and an acknowledgement or refusal.
    ///
    /// # Errors
    /// [`RequestError`] if a limit is passed. The session is to be dropped then.
    pub fn on_request(&mut self, request: &DeltaDiscoveryRequest) -> Result<Vec<Seen>, RequestError> {
        self.check(request)?;
        if self.node.is_none()
            && let Some(node) = &request.node
        {
            self.lists.meet(node);
            self.node = Some(node.clone());
        }
        let mut seen = Vec::new();
        if self.lists.answers(&request.type_url) {
            return Ok(seen);
        }
        let first = !self.types.contains_key(&*request.type_url);
        let type_url: Arc<str> = request.type_url.as_str().into();
        let state = self.types.entry(type_url.clone()).or_default();
        state.dirty();

        if !request.response_nonce.is_empty() {
            seen = state.on_answer(&type_url, &request.response_nonce, request.error_detail.as_ref());
            if &*type_url == type_url::ENDPOINT {
                let lists = &mut self.lists;
                seen.retain(|seen| !send_whole(state, lists, seen));
            }
        }

        let legacy_wildcard = first && request.resource_names_subscribe.is_empty();
        let wildcard = legacy_wildcard.then_some(WILDCARD);
        let mut subscribed: Vec<Arc<str>> = request
            .resource_names_subscribe
            .iter()
            .map(String::as_str)
            .chain(wildcard)
            .map(Arc::from)
            .collect();
        let nothing_claimed = !first || request.initial_resource_versions.is_empty();
        subscribed.retain(|name| state.subscribe(name, nothing_claimed));
        let mut unsubscribed: Vec<Arc<str>> = Vec::new();
        for name in &request.resource_names_unsubscribe {
            if state.unsubscribe(name) {
                unsubscribed.push(name.as_str().into());
            }
        }
        if first {
            state.claimed = !request.initial_resource_versions.is_empty();
            let mut claimed: Vec<Versioned> = request
                .initial_resource_versions
                .iter()
                .map(|(name, version)| (Arc::from(name.as_str()), Arc::from(version.as_str())))
                .filter(|(name, _): &Versioned| state.interest.covers(name))
                .collect();
            claimed.sort();
            let again = self.options.resend_endpoints && &*type_url == type_url::ENDPOINT;
            for (name, version) in &claimed {
                state.claim(name, version, again);
            }
            if &*type_url == type_url::ENDPOINT {
                self.lists.claim(&claimed);
            }
            if !claimed.is_empty() {
                seen.push(Seen::Claimed { type_url: type_url.clone(), resources: claimed });
            }
        }
        if !subscribed.is_empty() {
            seen.push(Seen::Subscribed { type_url: type_url.clone(), names: subscribed });
        }
        if !unsubscribed.is_empty() {
            if &*type_url == type_url::ENDPOINT {
                unsubscribed.iter().for_each(|name| self.lists.forget(name));
                self.lists.keep(&state.interest);
            }
            seen.push(Seen::Unsubscribed { type_url, names: unsubscribed });
        }
        Ok(seen)
    }

    fn check(&self, request: &DeltaDiscoveryRequest) -> Result<(), RequestError> {
        if request.type_url.is_empty() {
            return Err(RequestError::NoType);
        }
        let limit = self.options.max_types;
        if self.types.len() >= limit && !self.types.contains_key(&*request.type_url) {
            return Err(RequestError::TooManyTypes { limit });
        }
        let limit = self.options.max_names;
        let known: usize = self.types.values().map(|state| state.interest.len()).sum();
        if known + request.resource_names_subscribe.len() > limit
            || request.initial_resource_versions.len() > limit
        {
            return Err(RequestError::TooManyNames { limit });
        }
        let limit = self.options.max_name_bytes;
        let names = request.resource_names_subscribe.iter().chain(request.initial_resource_versions.keys());
        for name in names {
            if name.is_empty() || name.len() > limit {
                return Err(RequestError::BadName { bytes: name.len(), limit });
            }
        }
        let limit = self.options.max_names_bytes;
        let known: usize = self.types.values().map(|state| state.interest.bytes()).sum();
        let new: usize = request.resource_names_subscribe.iter().map(String::len).sum();
        let initial = &request.initial_resource_versions;
        let initial: usize = initial.iter().map(|(name, version)| name.len() + version.len()).sum();
        if known + new > limit || initial > limit {
            return Err(RequestError::TooManyBytes { limit });
        }
        Ok(())
    }

    /// What to send now so that the client comes to hold what it wants of `set`. Empty if everything is sent,
    /// or has to wait for an answer.
    pub fn poll(&mut self, set: &ResourceSet) -> Vec<DeltaDiscoveryResponse> {
        self.lists.settle_claims(set);
        for (type_url, state) in &mut self.types {
            state.plan(type_url, set);
        }
        let mut responses = Vec::new();
        let others = self.types.keys().filter(|name| !ORDER.contains(&&***name)).cloned();
        let order: Vec<Arc<str>> = others.chain(ORDER.map(Arc::from)).collect();
        for type_url in order {
            let dependent = [type_url::LISTENER, type_url::ROUTE].contains(&&*type_url);
            if dependent && (!self.upstreams_settled() || self.clusters_not_asked_for_again(&type_url)) {
                continue;
            }
            let unusable = if dependent { self.unusable(set) } else { BTreeSet::new() };
            let Some(state) = self.types.get_mut(&type_url) else { continue };
            let Some(next) = state.take_additions(&unusable, self.options.response_bytes) else {
                continue;
            };
            let resources = next.resources;
            self.send(&type_url, &resources, next.absent, &mut responses);
            if &*type_url == type_url::CLUSTER && self.options.resend_endpoints {
                self.resend_endpoints(&resources, set);
            }
        }
        let others = self.types.keys().filter(|name| !ORDER.contains(&&***name)).cloned();
        let order: Vec<Arc<str>> = others.chain(REMOVAL_ORDER.map(Arc::from)).collect();
        for type_url in order {
            if !self.may_remove(&type_url, set) {
                continue;
            }
            let Some(state) = self.types.get_mut(&type_url) else { continue };
            let removed = state.take_removals();
            if !removed.is_empty() {
                self.send(&type_url, &[], removed, &mut responses);
            }
        }
        responses
    }

    fn send(
        &mut self,
        type_url: &Arc<str>,
        resources: &[Arc<Resource>],
        removed: Vec<Arc<str>>,
        responses: &mut Vec<DeltaDiscoveryResponse>,
    ) {
        let wire = if &**type_url == type_url::ENDPOINT {
            removed.iter().for_each(|name| self.lists.forget(name));
            let (wire, before) = self.lists.wire(resources);
            if !before.is_empty() {
                responses.push(DeltaDiscoveryResponse {
                    type_url: type_url::LB_ENDPOINT.to_owned(),
                    nonce: self.nonce().to_string(),
                    resources: before.changed,
                    removed_resources: before.removed,
                    ..Default::default()
                });
            }
            wire
        } else {
            resources.iter().map(|resource| resource.to_wire()).collect()
        };
        let number = self.nonce();
        let nonce = number.to_string();
        responses.push(DeltaDiscoveryResponse {
            type_url: type_url.to_string(),
            nonce: nonce.clone(),
            resources: wire,
            removed_resources: removed.iter().map(|name| name.to_string()).collect(),
            ..Default::default()
        });
        if let Some(state) = self.types.get_mut(type_url) {
            state.sent(Outstanding {
                number,
                nonce,
                resources: resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect(),
                removed,
            });
        }
    }

    fn nonce(&mut self) -> u64 {
        let number = self.next_nonce;
        self.next_nonce += 1;
        number
    }

    /// Nothing is on its way that a new listener or route could need.
    fn upstreams_settled(&self) -> bool {
        let clusters = self.types.get(type_url::CLUSTER);
        let endpoints = self.types.get(type_url::ENDPOINT);
        clusters.is_none_or(TypeState::additions_settled) && endpoints.is_none_or(TypeState::names_answered)
    }

    /// What leads nowhere, by type and name: declared clusters that are refused and of which no version was ever
    /// accepted, and routes that lead to one and are in no other version in use.
    fn unusable(&self, set: &ResourceSet) -> BTreeSet<(&'static str, Arc<str>)> {
        let clusters = self.types.get(type_url::CLUSTER);
        let refused = clusters.into_iter().flat_map(TypeState::refused_before_ever_accepted);
        // One that is declared no more has nobody who leads to it, and is removed once everything else is in use.
        let refused = refused.filter(|name| set.get(type_url::CLUSTER, name).is_some());
        let mut unusable: BTreeSet<_> = refused.map(|name| (type_url::CLUSTER, name.clone())).collect();
        if unusable.is_empty() {
            return unusable;
        }
        let accepted = |name: &str| self.types.get(type_url::ROUTE).is_some_and(|state| state.accepted(name));
        let routes = set.of_type(type_url::ROUTE).filter(|routes| !accepted(&routes.name));
        let routes: Vec<Arc<str>> = routes
            .filter(|routes| refers::leads_to(routes, &unusable))
            .map(|routes| routes.name.clone())
            .collect();
        unusable.extend(routes.into_iter().map(|name| (type_url::ROUTE, name)));
        unusable
    }

    fn settled(&self, type_url: &str) -> bool {
        self.types.get(type_url).is_none_or(TypeState::settled)
    }

    fn may_remove(&self, type_url: &str, set: &ResourceSet) -> bool {
        // Nothing leads to listeners, so one that is held back is no reason to keep another.
        let own =
            |state: &TypeState| state.idle() && (type_url == type_url::LISTENER || state.additions_settled());
        if !self.types.get(type_url).is_some_and(own) {
            return false;
        }
        if !self.users_known(type_url, set) {
            return false;
        }
        match type_url {
            type_url::ROUTE => self.settled(type_url::LISTENER),
            type_url::CLUSTER => self.settled(type_url::LISTENER) && self.settled(type_url::ROUTE),
            type_url::ENDPOINT | type_url::SECRET => {
                [type_url::LISTENER, type_url::ROUTE, type_url::CLUSTER].iter().all(|t| self.settled(t))
            }
            _ => true,
        }
    }

    /// A client that has listeners or routes from before has clusters too, but did not say so yet.
    fn clusters_not_asked_for_again(&self, type_url: &str) -> bool {
        self.types.get(type_url).is_some_and(|state| state.claimed)
            && !self.types.contains_key(type_url::CLUSTER)
    }

    /// Whether the types whose resources may use those of `type_url` are part of the conversation. A client
    /// that comes back asks for one type after the other, and has all of them in use.
    fn users_known(&self, type_url: &str, set: &ResourceSet) -> bool {
        let used_by_others =
            [type_url::ROUTE, type_url::CLUSTER, type_url::ENDPOINT, type_url::SECRET].contains(&type_url);
        if !used_by_others || self.types.get(type_url).is_none_or(|state| !state.claimed) {
            return true;
        }
        let Some(listeners) = self.types.get(type_url::LISTENER) else { return false };
        type_url == type_url::ROUTE
            || self.types.contains_key(type_url::ROUTE)
            || !listeners.interest.select(type_url::LISTENER, set).iter().any(|l| state::uses_routes(l))
    }

    fn resend_endpoints(&mut self, clusters: &[Arc<Resource>], set: &ResourceSet) {
        let Some(endpoints) = self.types.get_mut(type_url::ENDPOINT) else { return };
        let names = clusters.iter().filter_map(|cluster| state::endpoints_of(cluster));
        if endpoints.answer_again(names) {
            endpoints.plan(type_url::ENDPOINT, set);
        }
    }
}

/// Has an assignment sent whole whose head is refused: whatever is wrong with it is said of the whole then.
fn send_whole(state: &mut TypeState, lists: &mut Lists, seen: &Seen) -> bool {
    let Seen::Refused { resources, .. } = seen else { return false };
    let [(name, version)] = resources.as_slice() else { return false };
    let is_head = lists.refused(name, version);
    if is_head {
        state.take_back(name);
    }
    is_head
}

#[cfg(test)]
pub(crate) mod tests;
