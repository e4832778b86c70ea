//! Lists of endpoints that come in parts: what has come of them, and the wholes they make.
//!
//! Two kinds of servers send such. Ours says with a head what its whole is (see [`crate::lists`]), sends the parts before
//! it, and has sent it whole at first: what comes of it is the whole or a refusal, and nothing is subscribed. Any other one sends
//! a head whose collections are to be subscribed; its whole comes into being once something was said of each of them, and
//! again with whatever is said of one later. Holds: nothing is handed on of which a part is missing; what a server can make
//! grow is bounded. Does not: look into endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use outrider_xds_types::names;
use outrider_xds_types::pb::envoy::service::discovery::v3::Resource as Wire;
use outrider_xds_types::type_url;

use super::Limits;
use crate::lists::{self, JoinError, MAX_WHOLE, Pending};
use crate::set::Resource;

/// Most endpoints of a list that come and go before a head says what its whole is.
const MAX_PARTS: usize = 100_000;

/// What became of a load assignment.
pub(super) enum Taken {
    /// It is whole.
    Whole(Arc<Resource>),
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

/// A collection as it is subscribed.
#[derive(Debug, Default)]
struct Collection {
    endpoints: BTreeMap<Place, Vec<u8>>,
    bytes: usize,
    /// Something was said of it: it may be empty.
    heard: bool,
}

impl Collection {
    fn put(&mut self, last: &str, body: Option<Vec<u8>>) {
        self.heard = true;
        let place = Place::of(last);
        self.bytes += body.as_ref().map_or(0, Vec::len);
        let before = match body {
            Some(body) => self.endpoints.insert(place, body),
            None => self.endpoints.remove(&place),
        };
        self.bytes -= before.map_or(0, |body| body.len());
    }
}

#[derive(Debug)]
struct Head {
    version: Arc<str>,
    body: Vec<u8>,
    /// As they are subscribed.
    collections: Vec<String>,
}

/// Everything that comes in parts.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// Wholes are kept for a server that sends only what has changed of them.
    keeps: bool,
    told: BTreeMap<Arc<str>, Told>,
    heads: BTreeMap<Arc<str>, Head>,
    /// By what stands before the `*`.
    collections: BTreeMap<String, Collection>,
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

    /// Names that are wanted no more, or that are gone.
    pub(super) fn forget(&mut self, name: &str) {
        self.told.remove(name);
        self.drop_head(name);
    }

    pub(super) fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.told.retain(|name, _| wanted(name));
        let gone: Vec<Arc<str>> = self.heads.keys().filter(|name| !wanted(name)).cloned().collect();
        gone.iter().for_each(|name| self.drop_head(name));
    }

    fn drop_head(&mut self, name: &str) {
        if self.heads.remove(name).is_some() {
            self.drop_collections();
        }
    }

    fn drop_collections(&mut self) {
        let used: BTreeSet<&str> =
            self.heads.values().flat_map(|head| &head.collections).map(|name| prefix(name)).collect();
        self.collections.retain(|name, _| used.contains(name.as_str()));
    }

    /// What is to be subscribed.
    pub(super) fn wanted(&self) -> BTreeSet<String> {
        self.collections.keys().map(|prefix| format!("{prefix}*")).collect()
    }

    /// Takes in an assignment as it came.
    pub(super) fn take(&mut self, wire: Wire, limits: &Limits) -> Taken {
        let body = wire.resource.map(|any| any.value).unwrap_or_default();
        let (name, version) = (wire.name.as_str(), wire.version.as_str());
        if !lists::is_head(&body) {
            self.drop_head(name);
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
            Some(digest) => self.change(name, version, &body, digest),
            None => self.refer(name, version, body, limits),
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
        self.heads.insert(name.clone(), Head { version: version.into(), body, collections });
        self.drop_collections();
        match self.assemble(&name) {
            Some(Ok(resource)) => Ok(Taken::Whole(resource)),
            Some(Err(error)) => Err(error),
            None => Ok(Taken::Waits),
        }
    }

    /// The whole of a head, `None` while a collection of it was not heard of.
    fn assemble(&self, name: &str) -> Option<Result<Arc<Resource>, JoinError>> {
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
            endpoints.for_each(|body| lists::put_endpoint(content, body));
        });
        // What is said of a collection changes the whole under one version of its head.
        Some(body.map(|body| {
            let version = format!("{}+{:016x}", head.version, lists::digest(&body));
            whole(name, &version, body)
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
    /// why. `asked` are the collections that the server was told of.
    pub(super) fn take_endpoints(
        &mut self,
        added: Vec<Wire>,
        removed: &[String],
        asked: impl Fn(&str) -> bool,
    ) -> (Vec<Arc<Resource>>, Vec<(String, String)>) {
        let mut touched: BTreeSet<String> = BTreeSet::new();
        if added.is_empty() && removed.is_empty() {
            // There is nothing in what was asked for.
            for (prefix, collection) in &mut self.collections {
                if !collection.heard && asked(&format!("{prefix}*")) {
                    collection.heard = true;
                    touched.insert(prefix.clone());
                }
            }
        }
        let added = added.into_iter().map(|wire| {
            let body = wire.resource.map(|any| any.value).unwrap_or_default();
            (wire.name, Some(body))
        });
        for (name, body) in added.chain(removed.iter().map(|name| (name.clone(), None))) {
            let Some(slash) = name.rfind('/') else { continue };
            let (list, last) = name.split_at(slash + 1);
            if let Some(collection) = self.collections.get_mut(list) {
                if last == "*" && body.is_none() {
                    *collection = Collection { heard: true, ..Collection::default() };
                } else {
                    collection.put(last, body);
                }
                touched.insert(list.to_owned());
            } else if let Some((assignment, key, last)) = names::unlist(&name)
                && let (Some(told), Some(at)) = (self.told.get_mut(assignment), names::address_listed(last))
            {
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
                Some(Ok(resource)) => wholes.push(resource),
                Some(Err(error)) => refused.push((name.to_string(), error.to_string())),
                None => {}
            }
        }
        (wholes, refused)
    }
}
