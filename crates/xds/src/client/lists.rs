//! Lists of endpoints that come in parts: what has come of them, and the wholes they make.
//!
//! Two kinds of servers send such. Ours says with a head what its whole is (see [`crate::lists`]), sends the parts before
//! it, and has sent it whole at first: what comes of it is the whole or a refusal, and nothing is subscribed. Any other one sends
//! a head whose collections are to be subscribed; its whole comes into being once each of them was answered, and again with
//! whatever is said of one later. Holds: nothing is handed on of which a part is missing; a new stream goes on from what is
//! in use, and its server is told exactly that; what a server can make grow is bounded. Takes for granted that a server
//! answers the requests for lists in their order. Does not: look into endpoints.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use outrider_xds_types::names;
use outrider_xds_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, Resource as Wire};
use outrider_xds_types::type_url;

use super::{Limits, Token};
use crate::lists::{self, JoinError, MAX_WHOLE, Pending};
use crate::set::Resource;

/// Most endpoints of a list that come and go before a head says what its whole is.
const MAX_PARTS: usize = 100_000;

/// What became of a load assignment.
pub(super) enum Taken {
    /// It is whole.
    Whole(Arc<Resource>),
    /// The same, by lists: [`Lists::answered`] says when it is in use.
    Made(Arc<Resource>),
    /// Not everything of it has come.
    Waits,
    /// It cannot be made whole.
    Refused(String),
}

/// A list of a server that says what its whole is.
#[derive(Debug)]
struct Told {
    /// What was received last, and what has come and gone since.
    last: Arc<Resource>,
    pending: Pending,
    /// How many endpoints came and went since, and bytes of them, names included.
    since: (usize, usize),
    /// What is in use: the next server goes on from there.
    used: Option<Arc<Resource>>,
}

impl Told {
    /// Endpoints that wait for their head, and their bytes.
    fn size(&self) -> (usize, usize) {
        let waiting = self.pending.values().flat_map(BTreeMap::values);
        waiting.fold((0, 0), |(count, bytes), body| (count + 1, bytes + body.as_ref().map_or(0, Vec::len)))
    }
}

/// Where an endpoint is in a list: by its address if its name is that, else by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    At(SocketAddr),
    Named(Box<str>),
}

impl Place {
    fn of(last: &str) -> Self {
        names::address_listed(last).map_or_else(|| Self::Named(last.into()), Self::At)
    }
}

/// An endpoint as it came.
#[derive(Debug, PartialEq, Eq)]
struct Member {
    /// What its name ends in.
    last: Box<str>,
    version: Box<str>,
    body: Vec<u8>,
}

/// A collection as it is subscribed.
#[derive(Debug, Default)]
struct Collection {
    endpoints: BTreeMap<Place, Arc<Member>>,
    bytes: usize,
    /// The server of this stream was told that it is wanted.
    asked: bool,
    /// It was answered, and may be empty.
    heard: bool,
}

impl Collection {
    fn put(&mut self, last: &str, member: Option<Member>) {
        let place = Place::of(last);
        self.bytes += member.as_ref().map_or(0, |member| member.body.len());
        let before = match member {
            Some(member) => self.endpoints.insert(place, Arc::new(member)),
            None => self.endpoints.remove(&place),
        };
        self.bytes -= before.map_or(0, |member| member.body.len());
    }

    /// As it was in use.
    fn of(members: &[Arc<Member>]) -> Self {
        Self {
            endpoints: members.iter().map(|one| (Place::of(&one.last), one.clone())).collect(),
            bytes: members.iter().map(|one| one.body.len()).sum(),
            asked: false,
            heard: true,
        }
    }

    fn is_of(&self, members: &[Arc<Member>]) -> bool {
        self.endpoints.len() == members.len() && self.endpoints.values().zip(members).all(|(a, b)| a == b)
    }
}

#[derive(Debug)]
struct Head {
    version: Arc<str>,
    body: Vec<u8>,
    /// As they are subscribed.
    collections: Vec<String>,
}

/// What a whole was made of.
#[derive(Debug)]
struct Made {
    head: Arc<Head>,
    /// Endpoints by what stands before the `*` of their list.
    lists: Vec<(String, Vec<Arc<Member>>)>,
}

/// Everything that comes in parts.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// Wholes are kept for a server that sends only what has changed of them.
    keeps: bool,
    told: BTreeMap<Arc<str>, Told>,
    heads: BTreeMap<Arc<str>, Arc<Head>>,
    /// By what stands before the `*`.
    collections: BTreeMap<String, Collection>,
    /// By assignment: what was handed on, and not answered for yet; `None` where it refers to no lists, or is gone.
    made: BTreeMap<Arc<str>, BTreeMap<Token, Option<Made>>>,
    /// By assignment: what of it is in use.
    used: BTreeMap<Arc<str>, Made>,
    /// Lists in the order in which this stream's server was asked for them.
    asked: VecDeque<String>,
    /// What this stream claims was not answered yet: that may be without a word of any list.
    claim_open: bool,
    /// Lists that this stream's server was told are wanted no more. What comes of one may have been on its way before.
    left: BTreeSet<String>,
}

fn prefix(collection: &str) -> &str {
    collection.strip_suffix('*').unwrap_or(collection)
}

fn whole(name: &str, version: &str, body: Vec<u8>) -> Arc<Resource> {
    Arc::new(Resource::new(type_url::ENDPOINT, name, version, body))
}

impl Lists {
    /// `keeps` if the client says that it knows them.
    pub(super) fn new(keeps: bool) -> Self {
        Self { keeps, ..Self::default() }
    }

    /// A new stream: its server goes on from what is in use.
    pub(super) fn connect(&mut self) {
        self.asked.clear();
        self.left.clear();
        self.claim_open = false;
        self.heads = self.used.iter().map(|(name, made)| (name.clone(), made.head.clone())).collect();
        self.collections.clear();
        let mut doubtful = BTreeSet::new();
        for (prefix, members) in self.used.values().flat_map(|made| &made.lists) {
            let known = self.collections.entry(prefix.clone()).or_insert_with(|| Collection::of(members));
            if !known.is_of(members) {
                doubtful.insert(prefix);
            }
        }
        // In use in one form here and another there: it is asked for as if it was new.
        for prefix in doubtful {
            self.collections.insert(prefix.clone(), Collection::default());
        }
        self.told.retain(|_, told| {
            told.pending.clear();
            told.since = (0, 0);
            let used = told.used.clone();
            used.map(|used| told.last = used).is_some()
        });
    }

    /// An assignment that is in use already, under the version that the server gave it.
    pub(super) fn claim(&mut self, resource: &Arc<Resource>) {
        if self.keeps && lists::may_be_long(&resource.body) {
            let told = Told {
                last: resource.clone(),
                pending: Pending::new(),
                since: (0, 0),
                used: Some(resource.clone()),
            };
            self.told.insert(resource.name.clone(), told);
        }
    }

    /// An assignment of this version is in use.
    pub(super) fn used(&mut self, name: &str, version: &str) {
        if let Some(told) = self.told.get_mut(name)
            && *told.last.version == *version
        {
            told.used = Some(told.last.clone());
        }
    }

    /// A response is in use but for what is refused of it. Returns the assignments that are in use by it, with the versions
    /// of their heads.
    pub(super) fn answered(&mut self, token: Token, refused: &[&str]) -> Vec<(Arc<str>, Arc<str>)> {
        let mut in_use = Vec::new();
        for (name, made) in &mut self.made {
            let Some(one) = made.remove(&token) else { continue };
            if refused.contains(&&**name) {
                continue;
            }
            // What was handed on before is history.
            *made = made.split_off(&token);
            match one {
                Some(one) => {
                    in_use.push((name.clone(), one.head.version.clone()));
                    self.used.insert(name.clone(), one);
                }
                None => drop(self.used.remove(name)),
            }
        }
        self.made.retain(|_, made| !made.is_empty());
        in_use
    }

    /// Nothing of a response is in use.
    pub(super) fn refused(&mut self, token: Token) {
        self.made.retain(|_, made| {
            made.remove(&token);
            !made.is_empty()
        });
    }

    /// An assignment that is gone by this response.
    pub(super) fn forget(&mut self, name: &str, token: Token) {
        self.told.remove(name);
        self.refers_no_more(name, token);
    }

    pub(super) fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.told.retain(|name, _| wanted(name));
        self.heads.retain(|name, _| wanted(name));
        self.made.retain(|name, _| wanted(name));
        self.used.retain(|name, _| wanted(name));
    }

    fn refers_no_more(&mut self, name: &str, token: Token) {
        let was_here = self.heads.remove(name).is_some();
        if was_here || self.used.contains_key(name) || self.made.contains_key(name) {
            self.made.entry(name.into()).or_default().insert(token, None);
        }
    }

    /// What is to be subscribed: what is referred to. Forgets what is not.
    pub(super) fn wanted(&mut self) -> BTreeSet<String> {
        let wanted: BTreeSet<String> =
            self.heads.values().flat_map(|head| &head.collections).cloned().collect();
        self.collections.retain(|prefix, _| wanted.contains(&format!("{prefix}*")));
        wanted
    }

    /// Names and versions of the endpoints of lists that are whole.
    pub(super) fn claims(&self) -> impl Iterator<Item = (String, String)> {
        let whole = self.collections.iter().filter(|(_, collection)| collection.heard);
        whole.flat_map(|(prefix, collection)| {
            let members = collection.endpoints.values();
            members.map(move |one| (format!("{prefix}{}", one.last), one.version.to_string()))
        })
    }

    /// Takes note of what is said to this stream's server. Each list that is new is asked for by itself: so it is known which
    /// one is empty, where a response has nothing in it.
    pub(super) fn ask(&mut self, mut request: DeltaDiscoveryRequest) -> Vec<DeltaDiscoveryRequest> {
        let left = request.resource_names_unsubscribe.iter();
        self.left.extend(left.cloned());
        let (mut claimed, mut new) = (Vec::new(), Vec::new());
        for name in std::mem::take(&mut request.resource_names_subscribe) {
            let Some(collection) = self.collections.get_mut(prefix(&name)) else { continue };
            collection.asked = true;
            if collection.heard {
                claimed.push(name);
            } else {
                self.asked.push_back(prefix(&name).to_owned());
                new.push(name);
            }
        }
        self.claim_open |= !claimed.is_empty();
        let mut new = new.into_iter();
        if claimed.is_empty() {
            claimed.extend(new.next());
        }
        let alone = |name| DeltaDiscoveryRequest {
            type_url: type_url::LB_ENDPOINT.to_owned(),
            resource_names_subscribe: vec![name],
            ..DeltaDiscoveryRequest::default()
        };
        request.resource_names_subscribe = claimed;
        std::iter::once(request).chain(new.map(alone)).collect()
    }

    /// The list that is named by one of these heads after it was wanted no more: nobody could say which of what comes of it
    /// is the answer.
    pub(super) fn named_again(&self, added: &[Wire], limits: &Limits) -> Option<String> {
        if self.left.is_empty() {
            return None;
        }
        let is_full = self.left.len() >= limits.lists;
        let bodies = added.iter().filter_map(|wire| Some(&wire.resource.as_ref()?.value));
        let heads = bodies.filter(|body| lists::is_head(body));
        let mut names = heads.filter_map(|head| lists::collections(head).ok()).flatten();
        names.find(|name| {
            self.left.contains(name) || (is_full && !self.collections.contains_key(prefix(name)))
        })
    }

    /// Takes in an assignment as it came.
    pub(super) fn take(&mut self, wire: Wire, token: Token, limits: &Limits) -> Taken {
        let body = wire.resource.map(|any| any.value).unwrap_or_default();
        let (name, version) = (wire.name.as_str(), wire.version.as_str());
        if !lists::is_head(&body) {
            self.refers_no_more(name, token);
            let resource = whole(name, version, body);
            if self.keeps && lists::may_be_long(&resource.body) {
                let used = self.told.remove(name).and_then(|told| told.used);
                let told = Told { last: resource.clone(), pending: Pending::new(), since: (0, 0), used };
                self.told.insert(resource.name.clone(), told);
            } else {
                self.told.remove(name);
            }
            return Taken::Whole(resource);
        }
        let taken = match wire.metadata.as_ref().and_then(lists::from_metadata) {
            Some(digest) => {
                self.refers_no_more(name, token);
                self.change(name, version, &body, digest)
            }
            None => self.refer(name, version, body, token, limits),
        };
        taken.unwrap_or_else(|error| Taken::Refused(error.to_string()))
    }

    /// A head that says what its whole is.
    fn change(&mut self, name: &str, version: &str, head: &[u8], digest: u64) -> Result<Taken, JoinError> {
        // Without it the server sends the whole, whatever was wrong.
        let mut told = self.told.remove(name).ok_or(JoinError::Different)?;
        let body = lists::join(name, head, &told.last.body, &told.pending)?;
        if lists::digest(&body) != digest {
            return Err(JoinError::Different);
        }
        told.pending.clear();
        told.last = whole(name, version, body);
        let last = told.last.clone();
        self.told.insert(last.name.clone(), told);
        Ok(Taken::Whole(last))
    }

    /// A head whose collections are to be subscribed.
    fn refer(
        &mut self,
        name: &str,
        version: &str,
        body: Vec<u8>,
        token: Token,
        limits: &Limits,
    ) -> Result<Taken, JoinError> {
        let collections = lists::collections(&body)?;
        let new = collections.iter().filter(|one| !self.collections.contains_key(prefix(one))).count();
        if self.collections.len() + new > limits.lists {
            return Err(JoinError::TooMany(limits.lists));
        }
        self.told.remove(name);
        for collection in &collections {
            self.collections.entry(prefix(collection).to_owned()).or_default();
        }
        let name: Arc<str> = name.into();
        self.heads.insert(name.clone(), Arc::new(Head { version: version.into(), body, collections }));
        match self.assemble(&name) {
            Some(Ok((resource, made))) => {
                self.made.entry(name).or_default().insert(token, Some(made));
                Ok(Taken::Made(resource))
            }
            Some(Err(error)) => Err(error),
            None => Ok(Taken::Waits),
        }
    }

    /// The whole of a head, `None` while a collection of it was not heard of.
    fn assemble(&self, name: &str) -> Option<Result<(Arc<Resource>, Made), JoinError>> {
        let head = self.heads.get(name)?;
        let mut bytes = head.body.len();
        for collection in &head.collections {
            let collection = self.collections.get(prefix(collection)).filter(|one| one.heard)?;
            bytes += collection.bytes;
        }
        if bytes > MAX_WHOLE {
            return Some(Err(JoinError::TooLarge(MAX_WHOLE)));
        }
        let body = lists::fill(&head.body, |collection, content| {
            let collection = self.collections.get(prefix(collection));
            let endpoints = collection.into_iter().flat_map(|one| one.endpoints.values());
            endpoints.for_each(|one| lists::put_endpoint(content, &one.body));
        });
        let members = |list: &String| {
            let collection = self.collections.get(prefix(list))?;
            Some((prefix(list).to_owned(), collection.endpoints.values().cloned().collect()))
        };
        // What is said of a collection changes the whole under one version of its head.
        Some(body.map(|body| {
            let version = format!("{}+{:016x}", head.version, lists::digest(&body));
            let lists = head.collections.iter().filter_map(members).collect();
            (whole(name, &version, body), Made { head: head.clone(), lists })
        }))
    }

    /// Whether a list could get more endpoints by this than are allowed, or more bytes of them than a whole may have: its
    /// name.
    pub(super) fn exceeds(&self, added: &[Wire], limit: usize) -> Option<String> {
        let mut grown: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for resource in added {
            let Some((list, last)) = resource.name.rsplit_once('/') else { continue };
            let collection = self.collections.get(&resource.name[..=list.len()]);
            let known = collection.is_some_and(|one| one.endpoints.contains_key(&Place::of(last)));
            let (count, bytes) = grown.entry(list).or_insert_with(|| match collection {
                Some(collection) => (collection.endpoints.len(), collection.bytes),
                None => {
                    let told = names::unlist(&resource.name).and_then(|(name, ..)| self.told.get(name));
                    told.map_or((0, 0), Told::size)
                }
            });
            *count += usize::from(!known);
            *bytes += resource.resource.as_ref().map_or(0, |any| any.value.len());
            if *count > limit || *bytes > MAX_WHOLE {
                return Some(list.to_owned());
            }
        }
        None
    }

    /// Takes in endpoints one by one, and gives the wholes that come of it; or the name of one that cannot be made, and
    /// why.
    pub(super) fn take_endpoints(
        &mut self,
        added: Vec<Wire>,
        removed: &[String],
        token: Token,
    ) -> (Vec<Arc<Resource>>, Vec<(String, String)>) {
        let mut touched: BTreeSet<String> = BTreeSet::new();
        if added.is_empty() && removed.is_empty() {
            touched.extend(self.nothing());
        }
        let mut said_of = BTreeSet::new();
        let added = added.into_iter().map(|wire| (wire.name, Some((wire.version, wire.resource))));
        for (name, given) in added.chain(removed.iter().map(|name| (name.clone(), None))) {
            let Some(slash) = name.rfind('/') else { continue };
            let (list, last) = name.split_at(slash + 1);
            if said_of.insert(list.to_owned()) {
                self.heard_of(list);
            }
            let given = given.map(|(version, any)| (version, any.map(|any| any.value).unwrap_or_default()));
            if let Some(collection) = self.collections.get_mut(list) {
                // Before it was asked for there is no answer: everything comes with that.
                if !collection.asked {
                    continue;
                }
                if last == "*" && given.is_none() {
                    *collection = Collection { asked: true, ..Collection::default() };
                } else {
                    let member = |(version, body): (String, Vec<u8>)| Member {
                        last: last.into(),
                        version: version.into(),
                        body,
                    };
                    collection.put(last, given.map(member));
                }
                collection.heard = true;
                touched.insert(list.to_owned());
            } else if let Some((assignment, key, last)) = names::unlist(&name)
                && let (Some(told), Some(at)) = (self.told.get_mut(assignment), names::address_listed(last))
            {
                let body = given.map(|(_, body)| body);
                told.since.0 += 1;
                told.since.1 += name.len() + body.as_ref().map_or(0, Vec::len);
                if told.since.0 > MAX_PARTS || told.since.1 > MAX_WHOLE {
                    // Its head is refused then, and the whole comes.
                    self.told.remove(assignment);
                } else {
                    told.pending.entry(key.to_owned()).or_default().insert(at, body);
                }
            }
        }
        let (mut wholes, mut refused) = (Vec::new(), Vec::new());
        for (name, head) in &self.heads {
            if !head.collections.iter().any(|collection| touched.contains(prefix(collection))) {
                continue;
            }
            match self.assemble(name) {
                Some(Ok((resource, made))) => {
                    self.made.entry(name.clone()).or_default().insert(token, Some(made));
                    wholes.push(resource);
                }
                Some(Err(error)) => refused.push((name.to_string(), error.to_string())),
                None => {}
            }
        }
        (wholes, refused)
    }

    /// A response with nothing in it: the list that is empty, if it says that of one that is still wanted.
    fn nothing(&mut self) -> Option<String> {
        if std::mem::take(&mut self.claim_open) {
            return None;
        }
        let prefix = self.asked.pop_front()?;
        let collection = self.collections.get_mut(&prefix)?;
        collection.heard = true;
        Some(prefix)
    }

    /// Something was said of this list: whatever was asked for before was answered, and so was it.
    fn heard_of(&mut self, prefix: &str) {
        self.claim_open = false;
        if let Some(at) = self.asked.iter().position(|asked| asked == prefix) {
            self.asked.remove(at);
        }
    }
}
