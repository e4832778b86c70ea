//! From resources as they arrive to snapshots that may be used: warming, make-before-break, and which updates
//! are in use.
//!
//! No I/O and no clock. Holds: a cluster is used when its endpoints and certificates are there, a route table
//! when its clusters are used, a listener when its routes, certificates and sockets are there; until then what
//! was used before stays. A cluster that lost its resource stays while a route leads to it.
//! Does not: talk to servers or workers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use outrider_handover::configuration_version;
use outrider_proxy_core::route::{RouteTable, Split};
use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID, type_url};
use rustls::ServerConfig;

use crate::config::balance::Assignment;
use crate::config::cluster::{ParsedCluster, ParsedTls, Source};
use crate::config::listener::{ParsedListener, ParsedService, Routes};
use crate::config::secret::ParsedSecret;
use crate::config::{
    Cluster, HttpService, Listener, Refusal, Service, Slots, Snapshot, TcpService, UpstreamTls, cluster,
    listener, route, secret,
};
use crate::tls::{self, Bundle, Identity, TlsError};

mod waiting;

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

struct ActiveCluster {
    cluster: Serial,
    version: Arc<str>,
    endpoints: Serial,
    secrets: (Serial, Serial),
    /// TLS of each of its matches.
    matched: Vec<UpstreamTls>,
    value: Arc<Cluster>,
}

struct ActiveRoutes {
    serial: Serial,
    version: Arc<str>,
    table: Arc<RouteTable>,
    clusters: Vec<u32>,
}

struct ActiveListener {
    listener: Serial,
    version: Arc<str>,
    routes: Vec<Serial>,
    secrets: (Serial, Serial),
    /// Slots it leads to.
    clusters: Vec<u32>,
    value: Arc<Listener>,
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
    listeners: BTreeMap<Arc<str>, Latest<ParsedListener>>,
    routes: BTreeMap<Arc<str>, Latest<route::Table>>,
    clusters: BTreeMap<Arc<str>, Latest<ParsedCluster>>,
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
            let name = arrival.name.to_owned();
            if let Some(serial) = self.known(type_url, &arrival) {
                ingested.items.push(Item { type_url: Arc::clone(type_url), name, serial });
                continue;
            }
            self.next += 1;
            let serial = self.next;
            let key = (Arc::clone(type_url), name);
            match self.take(type_url, arrival, serial) {
                Ok(()) => {
                    self.refused.remove(&key);
                    ingested.items.push(Item { type_url: key.0, name: key.1, serial });
                }
                Err(refusal) => {
                    ingested.refused.push((key.1.clone(), refusal.clone()));
                    self.refused.insert(key, refusal.to_string());
                }
            }
        }
        for name in removed {
            self.next += 1;
            self.refused.remove(&(Arc::clone(type_url), name.clone()));
            match &**type_url {
                type_url::LISTENER => drop(self.listeners.remove(name.as_str())),
                type_url::ROUTE => drop(self.routes.remove(name.as_str())),
                type_url::CLUSTER => drop(self.clusters.remove(name.as_str())),
                // Discovery says that there are none, which is an answer.
                type_url::ENDPOINT => {
                    let none =
                        Latest { serial: self.next, version: Arc::default(), value: Assignment::default() };
                    self.endpoints.insert(name.clone(), none);
                }
                // A withdrawn secret is no reason to end what works.
                _ => {}
            }
        }
        // Endpoints change most often, and lead nowhere.
        if **type_url != *type_url::ENDPOINT {
            self.relink = true;
            self.wanted = Arc::new(self.find_wanted());
        }
        ingested
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
                self.listeners.insert(name.into(), Latest { serial, version, value });
            }
            type_url::ROUTE => {
                let value = route::parse(body, &mut self.slots)?;
                self.routes.insert(name.into(), Latest { serial, version, value });
            }
            type_url::CLUSTER => {
                let value = cluster::parse(body)?;
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

    /// Names to subscribe to, by type. The same as long as they are the same.
    pub fn interest(&self) -> &Arc<Wanted> {
        &self.wanted
    }

    fn find_wanted(&self) -> Wanted {
        let mut routes = BTreeSet::new();
        let mut secure = false;
        for latest in self.listeners.values() {
            secure |= latest.value.tls.is_some();
            for service in latest.value.services() {
                if let ParsedService::Http(http) = service
                    && let Routes::Rds(name) = &http.routes
                {
                    routes.insert(name.clone());
                }
            }
        }
        let mut endpoints = BTreeSet::new();
        for latest in self.clusters.values() {
            secure |= latest.value.tls.is_some();
            if let Source::Eds(name) = &latest.value.endpoints {
                endpoints.insert(name.clone());
            }
        }
        let secrets: &[&str] = if secure { &[SECRET_SVID, SECRET_BUNDLE] } else { &[] };
        let secrets = secrets.iter().map(|name| (*name).to_owned()).collect();
        [(type_url::ROUTE, routes), (type_url::ENDPOINT, endpoints), (type_url::SECRET, secrets)]
    }

    /// Makes whatever is ready the thing to use. `None` if nothing changed.
    pub fn assemble(&mut self) -> Option<Arc<Snapshot>> {
        if self.relink {
            // Endpoints of a cluster that went and comes back must be asked for again.
            let wanted = Arc::clone(&self.wanted);
            self.endpoints.retain(|name, _| wanted[1].1.contains(name));
        }
        let mut changed = self.warm_clusters();
        if self.relink {
            changed |= self.warm_routes();
            if self.warm_listeners() {
                let active = self.active_listeners.iter();
                let listening = active.map(|(name, active)| (Arc::clone(name), Arc::clone(&active.value)));
                self.listening = Arc::new(listening.collect());
                changed = true;
            }
            changed |= self.drop_clusters();
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

    fn warm_clusters(&mut self) -> bool {
        let mut fresh = Vec::new();
        let mut broken = Vec::new();
        for (name, latest) in &self.clusters {
            let parsed = &latest.value;
            let (endpoints, endpoints_serial) = match &parsed.endpoints {
                Source::Static(assignment) => (assignment, 0),
                Source::Eds(service) => match self.endpoints.get(service) {
                    Some(known) => (&known.value, known.serial),
                    None => continue,
                },
            };
            let secrets = match (&parsed.tls, self.secrets()) {
                (None, _) => None,
                (Some(_), None) => continue,
                (Some(_), Some(secrets)) => Some(secrets),
            };
            let serials = secrets.map_or((0, 0), |(_, _, serials)| serials);
            let active = self.active_clusters.get(name);
            if active.is_some_and(|a| {
                (a.cluster, a.endpoints, a.secrets) == (latest.serial, endpoints_serial, serials)
            }) {
                continue;
            }
            // The same settings objects as long as nothing in them changed: connections depend on them.
            let same = active.filter(|a| a.cluster == latest.serial && a.secrets == serials);
            let made = match (same, secrets) {
                (Some(same), _) => Ok((same.value.tls.clone(), same.matched.clone())),
                (None, Some((identity, bundle, _))) => towards(parsed, identity, bundle),
                (None, None) => Ok((None, Vec::new())),
            };
            let (tls, matched) = match made {
                Ok(made) => made,
                Err(e) => {
                    broken.push(((type_url::CLUSTER, Arc::clone(name)), e.to_string()));
                    continue;
                }
            };
            let places = endpoints.marks.places(&parsed.matches);
            let other_tls =
                places.filter_map(|(at, place)| Some((at, matched.get(place)?.clone()))).collect();
            let value = Arc::new(Cluster {
                name: Arc::clone(name),
                connect_timeout: parsed.connect_timeout,
                probes: parsed.probes,
                balance: parsed.balance,
                tls,
                other_tls: Arc::new(other_tls),
                version: parsed.version,
                pool_idle: parsed.pool_idle,
                max_age: parsed.max_age,
                limits: parsed.limits,
                outlier: parsed.outlier,
                check: parsed.check.clone(),
                endpoints: Arc::clone(&endpoints.list),
                layout: endpoints.layout_for(&parsed.balance),
                shared: active.map(|a| Arc::clone(&a.value.shared)).unwrap_or_default(),
            });
            let active = ActiveCluster {
                cluster: latest.serial,
                version: Arc::clone(&latest.version),
                endpoints: endpoints_serial,
                secrets: serials,
                matched,
                value,
            };
            fresh.push((Arc::clone(name), active));
        }
        let changed = !fresh.is_empty();
        for (name, _) in &fresh {
            self.relink |= !self.active_clusters.contains_key(name);
            self.broken.remove(&(type_url::CLUSTER, Arc::clone(name)));
        }
        self.broken.extend(broken);
        self.active_clusters.extend(fresh);
        changed
    }

    fn are_active(&self, clusters: &[u32]) -> bool {
        clusters.iter().all(|slot| self.active_clusters.contains_key(self.slots.name(*slot)))
    }

    fn warm_routes(&mut self) -> bool {
        let mut fresh = Vec::new();
        for (name, latest) in &self.routes {
            let known = self.active_routes.get(name).is_some_and(|active| active.serial == latest.serial);
            let (table, clusters) = &latest.value;
            if !known && self.are_active(clusters) {
                let active = ActiveRoutes {
                    serial: latest.serial,
                    version: Arc::clone(&latest.version),
                    table: Arc::clone(table),
                    clusters: clusters.clone(),
                };
                fresh.push((Arc::clone(name), active));
            }
        }
        let changed = !fresh.is_empty();
        self.active_routes.extend(fresh);
        changed
    }

    fn warm_listeners(&mut self) -> bool {
        let mut fresh = Vec::new();
        for (name, latest) in &self.listeners {
            if self.sockets.get(&**name) != Some(&latest.value.address) {
                continue;
            }
            let serials = match (&latest.value.tls, self.secrets()) {
                (None, _) => (0, 0),
                (Some(_), Some((_, _, serials))) => serials,
                (Some(_), None) => continue,
            };
            let Some((routes, clusters)) = self.leads_to(&latest.value) else { continue };
            let active = self.active_listeners.get(name);
            if active
                .is_some_and(|a| a.listener == latest.serial && a.routes == routes && a.secrets == serials)
            {
                continue;
            }
            // Sessions of callers stay resumable as long as the certificates are the same.
            let kept = active
                .filter(|a| a.secrets == serials)
                .and_then(|a| a.value.tls.as_ref())
                .map(|(config, _)| Arc::clone(config));
            match self.listener(&latest.value, kept) {
                Ok(value) => {
                    let value = Arc::new(value);
                    let active = ActiveListener {
                        listener: latest.serial,
                        version: Arc::clone(&latest.version),
                        routes,
                        secrets: serials,
                        clusters,
                        value,
                    };
                    fresh.push((Arc::clone(name), Ok(active)));
                }
                Err(error) => fresh.push((Arc::clone(name), Err(error))),
            }
        }
        let mut changed = false;
        for (name, listener) in fresh {
            match listener {
                Ok(active) => {
                    self.broken.remove(&(type_url::LISTENER, Arc::clone(&name)));
                    self.active_listeners.insert(name, active);
                    changed = true;
                }
                Err(error) => drop(self.broken.insert((type_url::LISTENER, name), error)),
            }
        }
        let before = self.active_listeners.len();
        self.active_listeners.retain(|name, _| self.listeners.contains_key(name));
        changed | (self.active_listeners.len() != before)
    }

    /// Serials of the routes and slots of the clusters a listener uses, once all of them are active.
    fn leads_to(&self, listener: &ParsedListener) -> Option<(Vec<Serial>, Vec<u32>)> {
        let mut routes = Vec::new();
        let mut clusters = Vec::new();
        for service in listener.services() {
            match service {
                ParsedService::Tcp { split, .. } => clusters.extend(slots_of(split)),
                ParsedService::Http(http) => match &http.routes {
                    Routes::Inline(_, slots) => clusters.extend(slots),
                    Routes::Rds(name) => {
                        let active = self.active_routes.get(name.as_str())?;
                        routes.push(active.serial);
                        clusters.extend(&active.clusters);
                    }
                },
            }
        }
        self.are_active(&clusters).then_some((routes, clusters))
    }

    fn listener(
        &self,
        parsed_listener: &ParsedListener,
        kept: Option<Arc<ServerConfig>>,
    ) -> Result<Listener, String> {
        let service = |parsed: &ParsedService| match parsed {
            ParsedService::Tcp { split, by_source, access, rules, idle, attempts } => {
                Service::Tcp(Arc::new(TcpService {
                    split: split.clone(),
                    by_source: *by_source,
                    access: access.clone(),
                    rules: rules.clone(),
                    idle: *idle,
                    attempts: *attempts,
                }))
            }
            ParsedService::Http(http) => Service::Http(Arc::new(HttpService {
                version: http.version,
                routes: match &http.routes {
                    Routes::Inline(table, _) => Arc::clone(table),
                    Routes::Rds(name) => self
                        .active_routes
                        .get(name.as_str())
                        .map(|r| Arc::clone(&r.table))
                        .unwrap_or_default(),
                },
                access: http.access.clone(),
                rules: http.rules.clone(),
                forward_client_cert: http.forward_client_cert,
                upgrades: http.upgrades,
                tunnels: Arc::clone(&http.tunnels),
                idle: http.idle,
                connection_idle: http.connection_idle,
                head_timeout: http.head_timeout,
                limits: http.limits,
                limit: http.limit.clone(),
                fault: http.fault.clone(),
                default_host: Arc::clone(&parsed_listener.default_host),
            })),
        };
        let parsed = parsed_listener;
        let tls = match (&parsed.tls, self.secrets()) {
            (Some((alpn, secure)), Some((identity, bundle, _))) => {
                let config = match kept.filter(|config| config.alpn_protocols == *alpn) {
                    Some(config) => config,
                    None => tls::server_config(identity, bundle, alpn).map_err(|e| e.to_string())?,
                };
                Some((config, service(secure)))
            }
            _ => None,
        };
        Ok(Listener {
            name: Arc::clone(&parsed.name),
            address: parsed.address,
            inbound: parsed.inbound,
            tls,
            plain: parsed.plain.as_ref().map(service),
            detect: parsed.detect,
            finishing: Arc::clone(&parsed.finishing),
        })
    }

    /// Drops routes without listener or resource, and clusters without resource that nothing leads to.
    fn drop_clusters(&mut self) -> bool {
        self.relink = false;
        let wanted = Arc::clone(&self.wanted);
        self.active_routes.retain(|name, _| wanted[0].1.contains(&**name));
        self.routes.retain(|name, _| wanted[0].1.contains(&**name));
        let used: BTreeSet<&str> = self
            .active_listeners
            .values()
            .flat_map(|active| &active.clusters)
            .map(|slot| self.slots.name(*slot))
            .collect();
        let before = self.active_clusters.len();
        self.active_clusters.retain(|name, _| self.clusters.contains_key(name) || used.contains(&**name));
        self.active_clusters.len() != before
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

/// TLS towards the endpoints of a cluster, and towards those that its matches are for.
fn towards(
    cluster: &ParsedCluster,
    identity: &Identity,
    bundle: &Bundle,
) -> Result<(Option<UpstreamTls>, Vec<UpstreamTls>), TlsError> {
    let made = |wanted: &ParsedTls| -> Result<UpstreamTls, TlsError> {
        let config = tls::client_config(identity, bundle, &wanted.expected, &wanted.alpn)?;
        Ok(UpstreamTls { config, server_name: wanted.server_name.clone() })
    };
    let own = cluster.tls.as_ref().map(made).transpose()?;
    let others = cluster.matches.iter().map(|one| made(&one.tls));
    Ok((own, others.collect::<Result<_, _>>()?))
}

fn slots_of(split: &Split) -> impl Iterator<Item = u32> {
    split.backends().iter().map(|backend| backend.cluster)
}
