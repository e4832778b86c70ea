//! Listeners that are in use and their routes, made of what is declared, and of the certificates of now.
//!
//! Holds: a listener that is in use has the routes that are in use and the certificates of now, also while a later version
//! of it waits; what has not changed is the same object as before. Does not: look after clusters or sockets.

use std::sync::Arc;

use outrider_proxy_core::route::{RouteTable, Split};
use outrider_xds_types::type_url;
use rustls::ServerConfig;

use super::{Assembler, Latest, Made, Serial};
use crate::config::listener::{ParsedListener, ParsedService, Routes};
use crate::config::{HttpService, Listener, Service, TcpService};
use crate::tls;

pub(super) struct ActiveRoutes {
    pub(super) serial: Serial,
    pub(super) version: Arc<str>,
    table: Arc<RouteTable>,
    pub(super) clusters: Vec<u32>,
}

pub(super) struct ActiveListener {
    pub(super) listener: Serial,
    pub(super) version: Arc<str>,
    pub(super) parsed: Arc<ParsedListener>,
    routes: Vec<Serial>,
    secrets: (Serial, Serial),
    /// Slots it leads to.
    pub(super) clusters: Vec<u32>,
    pub(super) value: Arc<Listener>,
}

impl Assembler {
    fn are_active(&self, clusters: &[u32]) -> bool {
        clusters.iter().all(|slot| self.active_clusters.contains_key(self.slots.name(*slot)))
    }

    pub(super) fn warm_routes(&mut self) -> bool {
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

    /// Makes listeners of what there is. Whether anything is another than before.
    pub(super) fn warm_listeners(&mut self) -> bool {
        let (mut fresh, mut broken) = (Vec::new(), Vec::new());
        for (name, latest) in &self.listeners {
            let active = self.active_listeners.get(name);
            let made = match self.warm_listener(latest, active) {
                Made::Same => continue,
                Made::Fresh(made) => Some(made),
                Made::Cold => active.and_then(|active| self.follow_listener(active)),
                Made::Broken(error) => {
                    broken.push(((type_url::LISTENER, Arc::clone(name)), error));
                    active.and_then(|active| self.follow_listener(active))
                }
            };
            fresh.extend(made.map(|made| (Arc::clone(name), made)));
        }
        let changed = !fresh.is_empty();
        for (name, made) in fresh {
            if self.listeners.get(&name).is_some_and(|latest| latest.serial == made.listener) {
                self.broken.remove(&(type_url::LISTENER, Arc::clone(&name)));
            }
            let serial = made.listener;
            let before = self.active_listeners.insert(name, made);
            self.rethink |= before.is_some_and(|before| before.listener != serial);
        }
        self.broken.extend(broken);
        let before = self.active_listeners.len();
        self.active_listeners.retain(|name, _| self.listeners.contains_key(name));
        let gone = self.active_listeners.len() != before;
        self.rethink |= gone;
        changed | gone
    }

    /// The newest version, once it has everything.
    fn warm_listener(
        &self,
        latest: &Latest<Arc<ParsedListener>>,
        active: Option<&ActiveListener>,
    ) -> Made<ActiveListener> {
        let parsed = &latest.value;
        if self.sockets.get(&*parsed.name) != Some(&parsed.address) {
            return Made::Cold;
        }
        let secrets = match (&parsed.tls, self.secrets()) {
            (None, _) => None,
            (Some(_), None) => return Made::Cold,
            (Some((alpn, _)), Some(secrets)) => Some((alpn, secrets)),
        };
        let serials = secrets.map_or((0, 0), |(_, (_, _, serials))| serials);
        let Some((routes, clusters)) = self.leads_to(parsed) else { return Made::Cold };
        if active.is_some_and(|active| {
            active.listener == latest.serial && active.routes == routes && active.secrets == serials
        }) {
            return Made::Same;
        }
        let made = secrets.map(|(alpn, (identity, bundle, _))| {
            // Sessions of callers stay resumable as long as the certificates are the same.
            let kept = active.filter(|active| active.secrets == serials);
            let kept = kept.and_then(|active| active.value.tls.as_ref()).map(|(config, _)| config);
            match kept.filter(|config| config.alpn_protocols == *alpn) {
                Some(config) => Ok(Arc::clone(config)),
                None => tls::server_config(identity, bundle, alpn),
            }
        });
        let config = match made.transpose() {
            Ok(config) => config,
            Err(error) => return Made::Broken(error.to_string()),
        };
        Made::Fresh(ActiveListener {
            listener: latest.serial,
            version: Arc::clone(&latest.version),
            parsed: Arc::clone(parsed),
            routes,
            secrets: serials,
            clusters,
            value: Arc::new(self.listener(parsed, config)),
        })
    }

    /// What is in use with the routes and certificates of now, if they are others. Certificates that cannot be used leave it
    /// those that it has.
    ///
    /// What it leads to is in use always: a table is only with its clusters, and they stay as long as a listener that is in
    /// use leads to them.
    fn follow_listener(&self, active: &ActiveListener) -> Option<ActiveListener> {
        let ActiveListener { parsed, .. } = active;
        let (routes, clusters) = self.leads_to(parsed)?;
        let renewed = match (&parsed.tls, self.secrets()) {
            (Some((alpn, _)), Some((identity, bundle, serials))) if serials != active.secrets => {
                tls::server_config(identity, bundle, alpn).ok().map(|config| (serials, Some(config)))
            }
            _ => None,
        };
        if renewed.is_none() && routes == active.routes {
            return None;
        }
        let (secrets, config) = renewed.unwrap_or_else(|| {
            (active.secrets, active.value.tls.as_ref().map(|(config, _)| Arc::clone(config)))
        });
        Some(ActiveListener {
            listener: active.listener,
            version: Arc::clone(&active.version),
            parsed: Arc::clone(parsed),
            routes,
            secrets,
            clusters,
            value: Arc::new(self.listener(parsed, config)),
        })
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

    /// With these settings of TLS, without which it has none.
    fn listener(&self, listener: &ParsedListener, config: Option<Arc<ServerConfig>>) -> Listener {
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
                default_host: Arc::clone(&listener.default_host),
            })),
        };
        let secured = listener.tls.as_ref().zip(config);
        Listener {
            name: Arc::clone(&listener.name),
            address: listener.address,
            inbound: listener.inbound,
            tls: secured.map(|((_, secure), config)| (config, service(secure))),
            plain: listener.plain.as_ref().map(service),
            detect: listener.detect,
            finishing: Arc::clone(&listener.finishing),
        }
    }
}

pub(super) fn slots_of(split: &Split) -> impl Iterator<Item = u32> {
    split.backends().iter().map(|backend| backend.cluster)
}
