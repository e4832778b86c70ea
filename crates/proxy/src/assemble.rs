//! From resources as they arrive to snapshots that may be used: warming, make-before-break, and which updates
//! are in use.
//!
//! No I/O and no clock. Holds: a cluster is used when its endpoints and certificates are there, a route table
//! when its clusters are used, a listener when its routes, certificates and sockets are there; until then what
//! was used before stays, and follows its own endpoints, routes and certificates. A cluster that lost its resource stays
//! while a route leads to it, and so do their names among what is asked for. What nobody asks for is forgotten.
//! Does not: talk to servers or workers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use outrider_handover::configuration_version;
use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID, type_url};

use crate::config::balance::Assignment;
use crate::config::cluster::{ParsedCluster, Source};
use crate::config::listener::{ParsedListener, ParsedService, Routes};
use crate::config::secret::ParsedSecret;
use crate::config::{Listener, Refusal, Slots, Snapshot, cluster, listener, route, secret};
use crate::tls::{Bundle, Identity};

mod clusters;
mod listeners;
mod waiting;

use clusters::ActiveCluster;
use listeners::{ActiveListener, ActiveRoutes};

/// Counts resources as they arrive; a later one has a larger number.
type Serial = u64;

/// Names to subscribe to, by type.
pub type Wanted = [(&'static str, BTreeSet<String>); 3];

/// A resource as it arrives.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Resource name.
    pub name: &'a str,
    /// As the server says.
    pub version: &'a str,
    /// The encoded message.
    pub body: &'a [u8],
}

/// Something parsed, and when it came.
struct Latest<T> {
    serial: Serial,
    version: Arc<str>,
    value: T,
}

/// What becomes of the newest version of something.
enum Made<T> {
    /// It is in use as it is.
    Same,
    /// To be used from now on.
    Fresh(T),
    /// Something that it needs is not there.
    Cold,
    /// It cannot be made, and why.
    Broken(String),
}

/// Names an item of an update: its type, name and serial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Type URL.
    pub type_url: Arc<str>,
    /// Resource name.
    pub name: String,
    serial: Serial,
}

/// What became of one response.
#[derive(Debug, Default)]
pub struct Ingested {
    /// Taken; each is in use later, or never.
    pub items: Vec<Item>,
    /// Not taken: resource name and why.
    pub refused: Vec<(String, Refusal)>,
}

/// All resources of this proxy.
#[derive(Default)]
pub struct Assembler {
    /// Bind what has no sockets: the shell does it when [`wanted_sockets`](Self::wanted_sockets) says so.
    slots: Slots,
    next: Serial,
    listeners: BTreeMap<Arc<str>, Latest<Arc<ParsedListener>>>,
    routes: BTreeMap<Arc<str>, Latest<route::Table>>,
    clusters: BTreeMap<Arc<str>, Latest<Arc<ParsedCluster>>>,
    endpoints: BTreeMap<String, Latest<Assignment>>,
    identity: Option<Latest<Identity>>,
    bundle: Option<Latest<Bundle>>,
    sockets: BTreeMap<String, SocketAddr>,

    active_clusters: BTreeMap<Arc<str>, ActiveCluster>,
    active_routes: BTreeMap<Arc<str>, ActiveRoutes>,
    active_listeners: BTreeMap<Arc<str>, ActiveListener>,
    generation: u64,
    /// What the last snapshot listens with.
    listening: Arc<BTreeMap<Arc<str>, Arc<Listener>>>,
    wanted: Arc<Wanted>,
    /// What leads where may have changed.
    relink: bool,
    /// Nobody may want any more what somebody wanted, or the other way round.
    rethink: bool,
    seen_listeners: bool,
    seen_clusters: bool,
    /// Failures to make TLS settings, by type and resource name.
    broken: BTreeMap<(&'static str, Arc<str>), String>,
    /// Resources whose newest version was refused, by type and name, and why.
    refused: BTreeMap<(Arc<str>, String), String>,
}

impl Assembler {
    /// Takes a response in. Resources that cannot be honoured are left out, and what they replace stays.
    pub fn ingest<'a>(
        &mut self,
        type_url: &Arc<str>,
        added: impl IntoIterator<Item = Arrival<'a>>,
        removed: &[String],
    ) -> Ingested {
        let mut ingested = Ingested::default();
        self.seen_listeners |= **type_url == *type_url::LISTENER;
        self.seen_clusters |= **type_url == *type_url::CLUSTER;
        for arrival in added {
            let key = (Arc::clone(type_url), arrival.name.to_owned());
            let known = self.known(type_url, &arrival);
            let taken = match known {
                Some(serial) => Ok(serial),
                None => {
                    self.next += 1;
                    self.take(type_url, arrival, self.next).map(|()| self.next)
                }
            };
            match taken {
                Ok(serial) => {
                    self.refused.remove(&key);
                    ingested.items.push(Item { type_url: key.0, name: key.1, serial });
                }
                Err(refusal) => {
                    ingested.refused.push((key.1.clone(), refusal.clone()));
                    self.refused.insert(key, refusal.to_string());
                }
            }
        }
        let declared = self.declared(removed.iter().filter(|_| **type_url == *type_url::ENDPOINT));
        for name in removed {
            self.next += 1;
            self.refused.remove(&(Arc::clone(type_url), name.clone()));
            match &**type_url {
                type_url::LISTENER => drop(self.listeners.remove(name.as_str())),
                type_url::ROUTE => drop(self.routes.remove(name.as_str())),
                type_url::CLUSTER => drop(self.clusters.remove(name.as_str())),
                // Discovery says that there are none, which is an answer.
                type_url::ENDPOINT if declared.contains(name) => {
                    let none =
                        Latest { serial: self.next, version: Arc::default(), value: Assignment::default() };
                    self.endpoints.insert(name.clone(), none);
                }
                // They go with their cluster, which uses them as long as it is led to.
                type_url::ENDPOINT => drop(self.endpoints.remove(name)),
                // A withdrawn secret is no reason to end what works.
                _ => {}
            }
        }
        // Endpoints change most often, and lead nowhere.
        let leads = **type_url != *type_url::ENDPOINT;
        self.relink |= leads;
        self.rethink |= leads;
        ingested
    }

    /// Those of these lists of endpoints that a declared cluster names.
    fn declared<'a>(&self, lists: impl Iterator<Item = &'a String>) -> BTreeSet<&'a String> {
        let mut lists: BTreeSet<&String> = lists.collect();
        if !lists.is_empty() {
            let named = self.clusters.values().filter_map(|latest| match &latest.value.endpoints {
                Source::Eds(list) => Some(list),
                Source::Static(_) => None,
            });
            let named: BTreeSet<&String> = named.collect();
            lists.retain(|list| named.contains(list));
        }
        lists
    }

    /// The serial of what is known already: servers send again, and nothing is to be done for that. Versions are
    /// functions of the content.
    fn known(&self, type_url: &str, arrival: &Arrival<'_>) -> Option<Serial> {
        fn of<T>(latest: Option<&Latest<T>>) -> Option<(Serial, &str)> {
            latest.map(|latest| (latest.serial, &*latest.version))
        }
        let name = arrival.name;
        let (serial, version) = match type_url {
            type_url::LISTENER => of(self.listeners.get(name)),
            type_url::ROUTE => of(self.routes.get(name)),
            type_url::CLUSTER => of(self.clusters.get(name)),
            type_url::ENDPOINT => of(self.endpoints.get(name)),
            type_url::SECRET if name == SECRET_SVID => of(self.identity.as_ref()),
            type_url::SECRET if name == SECRET_BUNDLE => of(self.bundle.as_ref()),
            _ => None,
        }?;
        (!version.is_empty() && version == arrival.version).then_some(serial)
    }

    fn take(&mut self, type_url: &str, arrival: Arrival<'_>, serial: Serial) -> Result<(), Refusal> {
        let Arrival { name, body, .. } = arrival;
        let version: Arc<str> = arrival.version.into();
        let misnamed =
            |actual: &str| Refusal::new("name", format!("is `{actual}`, the resource was sent as `{name}`"));
        match type_url {
            type_url::LISTENER => {
                let mut value = listener::parse(body, &mut self.slots)?;
                if *value.name != *name {
                    return Err(misnamed(&value.name));
                }
                if let Some(former) = self.listeners.get(name) {
                    value.keep(&former.value);
                }
                self.broken.remove(&(type_url::LISTENER, name.into()));
                self.listeners.insert(name.into(), Latest { serial, version, value: Arc::new(value) });
            }
            type_url::ROUTE => {
                let value = route::parse(body, &mut self.slots)?;
                self.routes.insert(name.into(), Latest { serial, version, value });
            }
            type_url::CLUSTER => {
                let value = Arc::new(cluster::parse(body)?);
                if *value.name != *name {
                    return Err(misnamed(&value.name));
                }
                self.broken.remove(&(type_url::CLUSTER, name.into()));
                self.slots.of(name);
                self.clusters.insert(name.into(), Latest { serial, version, value });
            }
            type_url::ENDPOINT => {
                let value = cluster::parse_endpoints(body)?;
                self.endpoints.insert(name.to_owned(), Latest { serial, version, value });
            }
            type_url::SECRET => match (name, secret::parse(body)?) {
                (SECRET_SVID, ParsedSecret::Identity(value)) => {
                    self.identity = Some(Latest { serial, version, value })
                }
                (SECRET_BUNDLE, ParsedSecret::Bundle(value)) => {
                    self.bundle = Some(Latest { serial, version, value })
                }
                _ => return Err(Refusal::new("type", "this name stands for another kind of secret")),
            },
            other => return Err(Refusal::new("", format!("resources of type `{other}` are not used"))),
        }
        Ok(())
    }

    /// Says that sockets bound to `address` are with the workers for this listener.
    pub fn add_sockets(&mut self, name: &str, address: SocketAddr) {
        self.sockets.insert(name.to_owned(), address);
        self.relink = true;
    }

    /// Says that they are gone.
    pub fn remove_sockets(&mut self, name: &str) {
        self.sockets.remove(name);
        self.relink = true;
    }

    /// Listeners without sockets at their address.
    pub fn wanted_sockets(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let listeners = self.listeners.iter().map(|(name, latest)| (Arc::clone(name), latest.value.address));
        listeners.filter(|(name, address)| self.sockets.get(&**name) != Some(address)).collect()
    }

    /// Listeners that are gone, and have sockets.
    pub fn unwanted_sockets(&self) -> Vec<String> {
        self.sockets.keys().filter(|name| !self.listeners.contains_key(name.as_str())).cloned().collect()
    }

    /// Names to subscribe to, by type, as of the last [`assemble`](Self::assemble). The same as long as they are the same.
    pub fn interest(&self) -> &Arc<Wanted> {
        &self.wanted
    }

    /// What the newest versions need, and what is in use.
    fn find_wanted(&self) -> Wanted {
        let mut routes = BTreeSet::new();
        let mut secure = false;
        let listeners = self.listeners.values().map(|latest| &latest.value);
        for listener in listeners.chain(self.active_listeners.values().map(|active| &active.parsed)) {
            secure |= listener.tls.is_some();
            for service in listener.services() {
                if let ParsedService::Http(http) = service
                    && let Routes::Rds(name) = &http.routes
                    && !routes.contains(name)
                {
                    routes.insert(name.clone());
                }
            }
        }
        let mut endpoints = BTreeSet::new();
        let clusters = self.clusters.values().map(|latest| &latest.value);
        for cluster in clusters.chain(self.active_clusters.values().map(|active| &active.parsed)) {
            secure |= cluster.tls.is_some();
            if let Source::Eds(name) = &cluster.endpoints
                && !endpoints.contains(name)
            {
                endpoints.insert(name.clone());
            }
        }
        let secrets: &[&str] = if secure { &[SECRET_SVID, SECRET_BUNDLE] } else { &[] };
        let secrets = secrets.iter().map(|name| (*name).to_owned()).collect();
        [(type_url::ROUTE, routes), (type_url::ENDPOINT, endpoints), (type_url::SECRET, secrets)]
    }

    /// Makes whatever is ready the thing to use. `None` if nothing changed.
    pub fn assemble(&mut self) -> Option<Arc<Snapshot>> {
        let mut changed = self.warm_clusters();
        if std::mem::take(&mut self.relink) {
            changed |= self.warm_routes();
            if self.warm_listeners() {
                let active = self.active_listeners.iter();
                let listening = active.map(|(name, active)| (Arc::clone(name), Arc::clone(&active.value)));
                self.listening = Arc::new(listening.collect());
                changed = true;
            }
            changed |= self.drop_clusters();
        }
        if std::mem::take(&mut self.rethink) {
            self.forget();
        }
        if !changed {
            return None;
        }
        self.generation += 1;
        let mut clusters = vec![None; self.slots.len()];
        for (name, active) in &self.active_clusters {
            let slot = self.slots.of(name) as usize;
            if let Some(place) = clusters.get_mut(slot) {
                *place = Some(Arc::clone(&active.value));
            }
        }
        let listeners = Arc::clone(&self.listening);
        Some(Arc::new(Snapshot { generation: self.generation, listeners, clusters }))
    }

    fn secrets(&self) -> Option<(&Identity, &Bundle, (Serial, Serial))> {
        let (identity, bundle) = (self.identity.as_ref()?, self.bundle.as_ref()?);
        Some((&identity.value, &bundle.value, (identity.serial, bundle.serial)))
    }

    /// Drops clusters without resource that nothing leads to.
    fn drop_clusters(&mut self) -> bool {
        let used: BTreeSet<&str> = self
            .active_listeners
            .values()
            .flat_map(|active| &active.clusters)
            .map(|slot| self.slots.name(*slot))
            .collect();
        let before = self.active_clusters.len();
        self.active_clusters.retain(|name, _| self.clusters.contains_key(name) || used.contains(&**name));
        let changed = self.active_clusters.len() != before;
        self.rethink |= changed;
        changed
    }

    /// Forgets what nobody wants any more, and what was wrong with it: whoever wants it later asks for it again, as it may have
    /// changed or ended meanwhile.
    fn forget(&mut self) {
        let found = self.find_wanted();
        if found != *self.wanted {
            self.wanted = Arc::new(found);
        }
        let [(_, routes), (_, endpoints), (_, secrets)] = &*self.wanted;
        self.active_routes.retain(|name, _| routes.contains(&**name));
        self.routes.retain(|name, _| routes.contains(&**name));
        self.endpoints.retain(|name, _| endpoints.contains(name));
        if secrets.is_empty() {
            (self.identity, self.bundle) = (None, None);
        }
        let (clusters, listeners) = (&self.clusters, &self.listeners);
        self.broken.retain(|(of, name), _| match *of {
            type_url::CLUSTER => clusters.contains_key(name),
            _ => listeners.contains_key(name),
        });
        let wanted = &self.wanted;
        self.refused.retain(|(type_url, name), _| {
            let names = wanted.iter().find(|(of, _)| **of == **type_url);
            names.is_none_or(|(_, names)| names.contains(name))
        });
    }

    /// What is in use, as one string.
    pub fn configuration(&self) -> String {
        let [_, endpoints, secrets] = &*self.wanted;
        let listeners =
            self.active_listeners.iter().map(|(name, a)| [type_url::LISTENER, &**name, &*a.version]);
        let routes = self.active_routes.iter().map(|(name, a)| [type_url::ROUTE, &**name, &*a.version]);
        let clusters = self.active_clusters.iter().map(|(name, a)| [type_url::CLUSTER, &**name, &*a.version]);
        let known = self.endpoints.iter().filter(|(name, _)| endpoints.1.contains(*name));
        let endpoints = known.map(|(name, latest)| [type_url::ENDPOINT, name.as_str(), &*latest.version]);
        let identity = self.identity.as_ref().map(|l| [type_url::SECRET, SECRET_SVID, &*l.version]);
        let bundle = self.bundle.as_ref().map(|l| [type_url::SECRET, SECRET_BUNDLE, &*l.version]);
        let secrets = identity.into_iter().chain(bundle).filter(|[_, name, _]| secrets.1.contains(*name));
        configuration_version(listeners.chain(routes).chain(clusters).chain(endpoints).chain(secrets))
    }

    /// Who we are, if anything needs that.
    pub fn identity(&self) -> Option<&Identity> {
        let needed = self.interest()[2].1.contains(SECRET_SVID);
        self.identity.as_ref().filter(|_| needed).map(|latest| &latest.value)
    }

    /// Listeners through which others call this service.
    pub fn is_inbound(&self, name: &str) -> bool {
        self.listeners.get(name).is_some_and(|latest| latest.value.inbound)
    }
}
