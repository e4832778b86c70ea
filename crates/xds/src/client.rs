//! The side that asks: used by the agent towards the control plane, and by the native proxy towards the agent.
//!
//! Holds: a [`Client`] outlives its streams. [`Client::connect`] begins a new one and claims the last version
//! of every resource that was *acknowledged*, so nothing that is in use is sent again and what went away
//! meanwhile is reported as removed. What comes into use late, of an earlier stream, is asked for again, as the
//! server of this one goes by what it was told at the beginning. Every response must be answered with
//! [`Client::ack`] or [`Client::nack`]; the answer may come much later (when the resources are in use) and in any
//! order. Lists of endpoints that come in parts are handed on whole, whose server ever sends them (see `lists`). Does not:
//! decide how long an answer may take. Servers keep one response per type unanswered, so the
//! caller must bound it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Wire,
};
use outrider_xds_types::pb::google::rpc::Status;
use outrider_xds_types::{features, type_url};

use crate::interest::Interest;
use crate::refusal;
use crate::set::Resource;

mod lists;

use lists::{Lists, Taken};

/// `google.rpc.Code.INVALID_ARGUMENT`: the code of a refusal.
const INVALID_ARGUMENT: i32 = 3;

/// Most bytes of a refusal's text that travel.
const MAX_ERROR_BYTES: usize = 4096;

/// Limits on what a server may send.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Resources and removals in one response.
    pub resources: usize,
    /// Bytes of a name.
    pub name_bytes: usize,
    /// Responses without answer, over all types.
    pub unanswered: usize,
    /// Lists of endpoints that are to be subscribed one by one.
    pub lists: usize,
    /// Endpoints of one list.
    pub endpoints: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { resources: 100_000, name_bytes: 2048, unanswered: 256, lists: 4096, endpoints: 100_000 }
    }
}

/// Names one response. Given back to [`Client::ack`] or [`Client::nack`], once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

/// One response: what changed. Not acknowledged yet.
#[derive(Clone, Debug)]
pub struct Update {
    /// To be given to [`Client::ack`] or [`Client::nack`].
    pub token: Token,
    /// Type of everything in it: of endpoints one by one, that of the load assignments that are whole by them.
    pub type_url: Arc<str>,
    /// New and changed resources. Only what is still subscribed; may include a version already in use. Load assignments of
    /// which parts are missing come with these.
    pub added: Vec<Arc<Resource>>,
    /// Gone, or not existing although subscribed by name.
    pub removed: Vec<String>,
    /// What is not handed on, and why: names, and causes. Told to the server with the answer.
    pub refused: Vec<(String, String)>,
    /// As sent by the server, for logs.
    pub nonce: String,
}

/// Why a response is refused as a whole, before anybody looked into a resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// Without a nonce nothing can be acknowledged.
    #[error("response of type {type_url} has no nonce")]
    NoNonce {
        /// Type of the response.
        type_url: String,
    },
    /// The type was never subscribed on this stream.
    #[error("response of type {type_url}, which is not subscribed")]
    NotSubscribed {
        /// Type of the response.
        type_url: String,
    },
    /// Larger than [`Limits::resources`].
    #[error("response of type {type_url} has {count} resources, more than {limit}")]
    TooMany {
        /// Type of the response.
        type_url: String,
        /// Resources and removals in it.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A name is longer than [`Limits::name_bytes`], or empty.
    #[error("response of type {type_url} has a resource whose name has {bytes} bytes")]
    BadName {
        /// Type of the response.
        type_url: String,
        /// Length of the name.
        bytes: usize,
    },
    /// A resource without content, or of another type than the response.
    #[error("resource {name} is of type {found:?}, the response of type {type_url}")]
    WrongType {
        /// Type of the response.
        type_url: String,
        /// Name of the resource.
        name: String,
        /// Its type; empty if it has no content.
        found: String,
    },
    /// A name occurs twice.
    #[error("resource {name} occurs twice in one response of type {type_url}")]
    Twice {
        /// Type of the response.
        type_url: String,
        /// The name.
        name: String,
    },
    /// What comes of the list from now on may have been on its way before it was wanted no more, or be the answer: the stream is
    /// to be ended, and the next one begins with what is in use.
    #[error("the list {list} is named again on the stream on which it was wanted no more")]
    NamedAgain {
        /// Its name.
        list: String,
    },
    /// A list would get more than [`Limits::endpoints`].
    #[error("more than {limit} endpoints, or 64 MiB of them, in the list {list}")]
    TooManyEndpoints {
        /// Its name.
        list: String,
        /// The limit.
        limit: usize,
    },
    /// More than [`Limits::unanswered`] responses wait for an answer.
    #[error("{limit} responses are unanswered, another one came")]
    TooManyUnanswered {
        /// The limit.
        limit: usize,
    },
}

/// A response refused as a whole.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct BadResponse {
    /// Why.
    pub reason: ResponseError,
    /// The refusal to send; `None` if there is none, for want of a nonce or as the stream cannot go on: then end it.
    pub request: Option<Box<DeltaDiscoveryRequest>>,
}

#[derive(Debug, Default)]
struct TypeState {
    interest: Interest,
    /// What the server of this stream has been told; `None` before the first request of the type.
    announced: Option<BTreeSet<String>>,
    /// Whether the subscriptions may be others than the server was told.
    changed: bool,
    /// Unsubscribed since; asked for anew if subscribed again before the server heard of it.
    dropped: BTreeSet<String>,
    /// Name → version in use.
    held: BTreeMap<Arc<str>, Arc<str>>,
}

#[derive(Debug)]
struct Open {
    type_url: Arc<str>,
    nonce: String,
    stream: u64,
    added: BTreeMap<Arc<str>, Arc<str>>,
    removed: BTreeSet<String>,
    /// Refused here, see [`Update::refused`].
    refused: Vec<(String, String)>,
}

/// The asking side of delta xDS, over any number of streams one after the other.
#[derive(Debug)]
pub struct Client {
    node: Node,
    limits: Limits,
    types: BTreeMap<Arc<str>, TypeState>,
    open: BTreeMap<Token, Open>,
    lists: Lists,
    next_token: u64,
    /// Number of the stream; 0 before the first.
    stream: u64,
    connected: bool,
    node_sent: bool,
}

impl Client {
    /// A client that introduces itself as `node` in the first request of every stream.
    pub fn new(node: Node, limits: Limits) -> Self {
        let lists = Lists::new(features::knows(&node.client_features, features::LEDS));
        Self {
            node,
            limits,
            types: BTreeMap::new(),
            open: BTreeMap::new(),
            lists,
            next_token: 0,
            stream: 0,
            connected: false,
            node_sent: false,
        }
    }

    /// Wants names, globs or the wildcard of a type. Takes effect with [`Client::requests`].
    pub fn subscribe<S: AsRef<str>>(&mut self, type_url: &str, names: impl IntoIterator<Item = S>) {
        let state = self.types.entry(type_url.into()).or_default();
        for name in names {
            state.changed |= state.interest.add(name.as_ref());
        }
    }

    /// Wants them no more, and forgets what is held of them, or would be once an update is answered. Takes effect with [`Client::requests`].
    pub fn unsubscribe<S: AsRef<str>>(&mut self, type_url: &str, names: impl IntoIterator<Item = S>) {
        let Some(state) = self.types.get_mut(type_url) else { return };
        for name in names {
            if state.interest.remove(name.as_ref()) {
                state.dropped.insert(name.as_ref().to_owned());
                state.changed = true;
            }
        }
        let interest = &state.interest;
        state.held.retain(|name, _| interest.covers(name));
        for open in self.open.values_mut().filter(|open| *open.type_url == *type_url) {
            open.added.retain(|name, _| interest.covers(name));
            open.removed.retain(|name| interest.covers(name));
        }
        if type_url == type_url::ENDPOINT {
            self.lists.keep(|name| interest.covers(name));
        }
    }

    /// Subscribes to the lists that are referred to, and to no others.
    fn follow_lists(&mut self) {
        let wanted = self.lists.wanted();
        let told = self.types.get(type_url::LB_ENDPOINT).map(|state| state.interest.iter().collect());
        let told: BTreeSet<String> = told.unwrap_or_default();
        if wanted != told {
            self.unsubscribe(type_url::LB_ENDPOINT, told.difference(&wanted));
            self.subscribe(type_url::LB_ENDPOINT, wanted.difference(&told));
        }
    }

    /// What is wanted of a type.
    pub fn interest(&self, type_url: &str) -> Option<&Interest> {
        self.types.get(type_url).map(|state| &state.interest)
    }

    /// Names and versions in use (acknowledged) of a type.
    pub fn held(&self, type_url: &str) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.types.get(type_url).into_iter().flat_map(|state| state.held.iter())
    }

    /// Says that a resource is in use already, as after a restart with resources kept on disk. Only for
    /// subscribed names; before [`Client::connect`]. `version` is the one that the server gave it.
    pub fn claim(&mut self, resource: &Arc<Resource>, version: &str) {
        if let Some(state) = self.types.get_mut(&resource.type_url)
            && state.interest.covers(&resource.name)
        {
            state.held.insert(resource.name.clone(), version.into());
            if &*resource.type_url == type_url::ENDPOINT {
                self.lists.claim(resource);
            }
        }
    }

    /// Begins a new stream: the requests to send first. Responses of earlier streams can still be acknowledged, which
    /// then counts as in use and asks again for what is not as claimed here.
    pub fn connect(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.stream += 1;
        self.connected = true;
        self.node_sent = false;
        for state in self.types.values_mut() {
            state.announced = None;
            state.changed = true;
        }
        self.lists.connect();
        self.requests()
    }

    /// The stream ended. Until [`Client::connect`], nothing is to be sent.
    pub fn disconnected(&mut self) {
        self.connected = false;
    }

    /// Whether a stream has begun and not ended. What is [claimed](Client::claim) then is not told before the next one.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// The requests that tell the server of changed subscriptions. Empty if there are none, or no stream.
    pub fn requests(&mut self) -> Vec<DeltaDiscoveryRequest> {
        if !self.connected {
            return Vec::new();
        }
        self.follow_lists();
        let mut requests = Vec::new();
        for (type_url, state) in &mut self.types {
            if !std::mem::take(&mut state.changed) {
                continue;
            }
            let wanted: BTreeSet<String> = state.interest.iter().collect();
            let dropped = std::mem::take(&mut state.dropped);
            if let Some(told) = &mut state.announced {
                let renewed: Vec<String> =
                    dropped.into_iter().filter(|name| wanted.contains(name) && told.remove(name)).collect();
                if !renewed.is_empty() {
                    requests.push(DeltaDiscoveryRequest {
                        type_url: type_url.to_string(),
                        resource_names_unsubscribe: renewed,
                        ..Default::default()
                    });
                }
            }
            let mut request = DeltaDiscoveryRequest { type_url: type_url.to_string(), ..Default::default() };
            match &state.announced {
                // A first request without names would mean the wildcard.
                None if wanted.is_empty() => continue,
                None => {
                    if !state.interest.only_wildcard() {
                        request.resource_names_subscribe = wanted.iter().cloned().collect();
                    }
                    let held = state.held.iter();
                    let held = held.map(|(name, version)| (name.to_string(), version.to_string()));
                    request.initial_resource_versions = match &**type_url {
                        type_url::LB_ENDPOINT => self.lists.claims().collect(),
                        _ => held.collect(),
                    };
                }
                Some(told) if *told == wanted => continue,
                Some(told) => {
                    request.resource_names_subscribe = wanted.difference(told).cloned().collect();
                    request.resource_names_unsubscribe = told.difference(&wanted).cloned().collect();
                }
            }
            state.announced = Some(wanted);
            if !self.node_sent {
                request.node = Some(self.node.clone());
                self.node_sent = true;
            }
            match &**type_url {
                type_url::LB_ENDPOINT => requests.extend(self.lists.ask(request)),
                _ => requests.push(request),
            }
        }
        requests
    }

    /// Whether so many updates are unanswered that a response would be refused for that alone.
    pub fn is_full(&self) -> bool {
        self.open.len() >= self.limits.unanswered
    }

    /// Takes a response in.
    ///
    /// # Errors
    /// [`BadResponse`] if it is malformed; its request, if any, is to be sent. Nothing of it is taken.
    pub fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Result<Update, BadResponse> {
        if let Err(reason) = self.check(&response) {
            let goes_on = !response.nonce.is_empty() && !matches!(reason, ResponseError::NamedAgain { .. });
            let request = goes_on
                .then(|| Box::new(answer(&response.type_url, &response.nonce, Some(&reason.to_string()))));
            return Err(BadResponse { reason, request });
        }
        let DeltaDiscoveryResponse { type_url, nonce, resources, removed_resources, .. } = response;
        let type_url: Arc<str> = type_url.into();
        let interest = self.types.get(&type_url).map(|state| &state.interest);
        // The server may not know yet that we have unsubscribed.
        let wanted = |name: &str| interest.is_some_and(|interest| interest.covers(name));
        let version = |resource: &Wire| (resource.name.as_str().into(), resource.version.as_str().into());
        let mut said: BTreeMap<Arc<str>, Arc<str>> =
            resources.iter().filter(|resource| wanted(&resource.name)).map(version).collect();
        let mut removed: Vec<String> =
            removed_resources.iter().filter(|name| wanted(name)).cloned().collect();
        let token = Token(self.next_token);
        self.next_token += 1;
        let mut gone: BTreeSet<String> = removed.iter().cloned().collect();
        let (mut added, mut refused, mut about) = (Vec::new(), Vec::new(), type_url.clone());
        if &*type_url == type_url::LB_ENDPOINT {
            (added, refused) = self.lists.take_endpoints(resources, &removed_resources, token);
            about = type_url::ENDPOINT.into();
            // What is in use of them is what is in use of their assignments.
            said.clear();
            gone.clear();
            removed.clear();
        } else if &*type_url == type_url::ENDPOINT {
            for resource in resources.into_iter().filter(|resource| wanted(&resource.name)) {
                let name = resource.name.clone();
                match self.lists.take(resource, token, &self.limits) {
                    Taken::Whole(whole) => added.push(whole),
                    Taken::Made(whole) => {
                        said.remove(name.as_str());
                        added.push(whole);
                    }
                    Taken::Waits => drop(said.remove(name.as_str())),
                    Taken::Refused(why) => {
                        said.remove(name.as_str());
                        refused.push((name, why));
                    }
                }
            }
            removed.iter().for_each(|name| self.lists.forget(name, token));
        } else {
            added.extend(resources.into_iter().filter(|resource| wanted(&resource.name)).map(|resource| {
                let body = resource.resource.map(|any| any.value).unwrap_or_default();
                Arc::new(Resource::new(type_url.clone(), resource.name, resource.version, body))
            }));
        }
        let open = Open {
            type_url,
            nonce: nonce.clone(),
            stream: self.stream,
            added: said,
            removed: gone,
            refused: refused.clone(),
        };
        self.open.insert(token, open);
        Ok(Update { token, type_url: about, added, removed, refused, nonce })
    }

    fn check(&self, response: &DeltaDiscoveryResponse) -> Result<(), ResponseError> {
        let type_url = || response.type_url.clone();
        if response.nonce.is_empty() {
            return Err(ResponseError::NoNonce { type_url: type_url() });
        }
        // Endpoints one by one come before the assignment that says so.
        let asked_with = match response.type_url.as_str() {
            type_url::LB_ENDPOINT => type_url::ENDPOINT,
            other => other,
        };
        if self.types.get(asked_with).is_none_or(|state| state.announced.is_none()) {
            return Err(ResponseError::NotSubscribed { type_url: type_url() });
        }
        if self.is_full() {
            return Err(ResponseError::TooManyUnanswered { limit: self.limits.unanswered });
        }
        let count = response.resources.len() + response.removed_resources.len();
        if count > self.limits.resources {
            return Err(ResponseError::TooMany { type_url: type_url(), count, limit: self.limits.resources });
        }
        let mut seen = BTreeSet::new();
        for resource in &response.resources {
            let found = resource.resource.as_ref().map(|any| any.type_url.as_str()).unwrap_or_default();
            if found != response.type_url {
                return Err(ResponseError::WrongType {
                    type_url: type_url(),
                    name: resource.name.clone(),
                    found: found.to_owned(),
                });
            }
        }
        let names = response.resources.iter().map(|resource| &resource.name);
        for name in names.chain(&response.removed_resources) {
            if name.is_empty() || name.len() > self.limits.name_bytes {
                return Err(ResponseError::BadName { type_url: type_url(), bytes: name.len() });
            }
            if !seen.insert(name) {
                return Err(ResponseError::Twice { type_url: type_url(), name: name.clone() });
            }
        }
        if response.type_url == type_url::ENDPOINT
            && let Some(list) = self.lists.named_again(&response.resources, &self.limits)
        {
            return Err(ResponseError::NamedAgain { list });
        }
        let limit = self.limits.endpoints;
        if response.type_url == type_url::LB_ENDPOINT
            && let Some(list) = self.lists.exceeds(&response.resources, limit)
        {
            return Err(ResponseError::TooManyEndpoints { list, limit });
        }
        Ok(())
    }

    /// The update is in use: the request to send, `None` if there is nobody or nothing to tell, or the token was used.
    pub fn ack(&mut self, token: Token) -> Option<DeltaDiscoveryRequest> {
        self.refuse(token, &[])
    }

    /// What the update says is in use. Returns of what is wanted the names that it changes.
    fn takes(&mut self, token: Token, done: &Open) -> Vec<Arc<str>> {
        // What an older unanswered update says of these resources is history now.
        for older in self.open.range_mut(..token).map(|(_, open)| open) {
            if older.type_url == done.type_url {
                older.added.retain(|name, _| !done.mentions(name));
                older.removed.retain(|name| !done.mentions(name));
            }
        }
        let mut changed = Vec::new();
        if let Some(state) = self.types.get_mut(&done.type_url) {
            for name in &done.removed {
                let gone = state.held.remove_entry(name.as_str());
                changed.extend(gone.map(|(name, _)| name).filter(|name| state.interest.covers(name)));
            }
            for (name, version) in &done.added {
                if &*done.type_url == type_url::ENDPOINT {
                    self.lists.used(name, version);
                }
                if state.interest.covers(name)
                    && state.held.insert(name.clone(), version.clone()).as_ref() != Some(version)
                {
                    changed.push(name.clone());
                }
            }
        }
        changed
    }

    /// What the update says of lists is in use. Returns the assignments that are whole by it.
    fn takes_lists(&mut self, token: Token, refused: &[&str]) -> Vec<Arc<str>> {
        let mut names = Vec::new();
        for (name, version) in self.lists.answered(token, refused) {
            for older in self.open.range_mut(..token).map(|(_, open)| open) {
                if &*older.type_url == type_url::ENDPOINT {
                    older.added.remove(&name);
                    older.removed.remove(&*name);
                }
            }
            if let Some(state) = self.types.get_mut(type_url::ENDPOINT)
                && state.interest.covers(&name)
            {
                state.held.insert(name.clone(), version);
                names.push(name);
            }
        }
        names
    }

    /// Has the server of this stream say again what an update of an earlier one has changed: it was told what was in
    /// use before, and has no reason to send anything if that is what it has. What it has said meanwhile is answered.
    fn ask_anew(
        &self,
        token: Token,
        type_url: &Arc<str>,
        mut names: Vec<Arc<str>>,
    ) -> Option<DeltaDiscoveryRequest> {
        let told = self.types.get(type_url).is_some_and(|state| state.announced.is_some());
        let said: Vec<&Open> = self
            .open
            .range(token..)
            .map(|(_, open)| open)
            .filter(|open| open.stream == self.stream && open.type_url == *type_url)
            .collect();
        names.retain(|name| !said.iter().any(|open| open.mentions(name)));
        (self.connected && told && !names.is_empty()).then(|| DeltaDiscoveryRequest {
            type_url: type_url.to_string(),
            resource_names_subscribe: names.iter().map(|name| name.to_string()).collect(),
            ..Default::default()
        })
    }

    /// Some resources of the update cannot be used, and what was in use before of them stays; the rest of it *is* in
    /// use. `refused` are their names, each with the cause. The request to send, `None` if there is nobody or nothing to
    /// tell, or the token was used.
    pub fn refuse(&mut self, token: Token, refused: &[(String, String)]) -> Option<DeltaDiscoveryRequest> {
        let mut done = self.open.remove(&token)?;
        for (name, _) in refused {
            done.added.remove(name.as_str());
        }
        let mut changed = self.takes(token, &done);
        let made: Vec<_> = done.refused.iter().chain(refused).map(|(name, _)| name.as_str()).collect();
        let made = self.takes_lists(token, &made);
        if done.stream != self.stream {
            let url = match &*done.type_url {
                type_url::LB_ENDPOINT => type_url::ENDPOINT.into(),
                _ => done.type_url,
            };
            changed.retain(|name| !made.contains(name));
            changed.extend(made);
            return self.ask_anew(token, &url, changed);
        }
        let refused: Vec<(String, String)> =
            std::mem::take(&mut done.refused).into_iter().chain(refused.iter().cloned()).collect();
        if refused.is_empty() {
            return self.answer(&done, None);
        }
        let words: Vec<String> = refused.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        let mut request = self.answer(&done, Some(&words.join("; ")))?;
        if let Some(status) = &mut request.error_detail {
            status.details.extend(refusal::details(&refused));
        }
        Some(request)
    }

    /// The server is to send a resource again that was refused and is in use after all, as it was what it waited for
    /// that came late: a refusal stands until it is. `None` if there is no stream, or the name is not wanted.
    pub fn ask_again(&mut self, type_url: &str, name: &str) -> Option<DeltaDiscoveryRequest> {
        let state = self.types.get(type_url)?;
        if !self.connected || state.announced.is_none() || !state.interest.covers(name) {
            return None;
        }
        Some(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec![name.to_owned()],
            ..Default::default()
        })
    }

    /// The update cannot be used; what was in use before stays. `error` names the resource and the cause.
    /// The request to send, `None` if its stream is over or the token was used.
    pub fn nack(&mut self, token: Token, error: &str) -> Option<DeltaDiscoveryRequest> {
        let refused = self.open.remove(&token)?;
        self.lists.refused(token);
        self.answer(&refused, Some(error))
    }

    fn answer(&self, open: &Open, error: Option<&str>) -> Option<DeltaDiscoveryRequest> {
        (self.connected && open.stream == self.stream).then(|| answer(&open.type_url, &open.nonce, error))
    }
}

impl Open {
    fn mentions(&self, name: &str) -> bool {
        self.added.contains_key(name) || self.removed.contains(name)
    }
}

fn answer(type_url: &str, nonce: &str, error: Option<&str>) -> DeltaDiscoveryRequest {
    let error_detail = error.map(|text| {
        let message = refusal::beginning(text, MAX_ERROR_BYTES).to_owned();
        Status { code: INVALID_ARGUMENT, message, details: Vec::new() }
    });
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        response_nonce: nonce.to_owned(),
        error_detail,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
