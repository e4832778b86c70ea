//! What is not in use, and why: what it waits for, and whether that can come.
//!
//! Holds: what a refused resource keeps cold is known at once, by the name and cause of the refusal, and keeps
//! nothing else cold. Does not: change anything.

use std::sync::Arc;

use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID, type_url};

use super::listeners::{ActiveRoutes, slots_of};
use super::{Assembler, Item, Latest};
use crate::config::cluster::Source;
use crate::config::listener::{ParsedListener, ParsedService, Routes};

impl Assembler {
    /// Whether this item is used, or was overtaken by a later one or a removal.
    pub fn is_in_use(&self, item: &Item) -> bool {
        let name = item.name.as_str();
        match &*item.type_url {
            type_url::LISTENER => {
                let latest = self.listeners.get(name).map(|l| l.serial);
                latest != Some(item.serial)
                    || self.active_listeners.get(name).is_some_and(|a| a.listener == item.serial)
            }
            type_url::CLUSTER => {
                let latest = self.clusters.get(name).map(|l| l.serial);
                latest != Some(item.serial)
                    || self.active_clusters.get(name).is_some_and(|a| a.cluster == item.serial)
            }
            type_url::ROUTE => {
                let latest = self.routes.get(name).map(|l| l.serial);
                latest != Some(item.serial)
                    || self.active_routes.get(name).is_some_and(|a| a.serial == item.serial)
            }
            // Endpoints and certificates go into everything that is in use in the same step as they arrive, and routes into
            // the listeners, also where a later version of it waits.
            _ => true,
        }
    }

    /// Why an item that is not in use never will be, if that is clear already.
    pub fn is_broken(&self, item: &Item) -> Option<&str> {
        if self.is_in_use(item) {
            return None;
        }
        let kind = match &*item.type_url {
            type_url::CLUSTER => type_url::CLUSTER,
            type_url::LISTENER => type_url::LISTENER,
            _ => return None,
        };
        self.broken.get(&(kind, item.name.as_str().into())).map(String::as_str)
    }

    /// Whether this is the last that came of its name.
    pub fn is_latest(&self, item: &Item) -> bool {
        let name = item.name.as_str();
        let serial = match &*item.type_url {
            type_url::LISTENER => self.listeners.get(name).map(|latest| latest.serial),
            type_url::CLUSTER => self.clusters.get(name).map(|latest| latest.serial),
            type_url::ROUTE => self.routes.get(name).map(|latest| latest.serial),
            _ => None,
        };
        serial == Some(item.serial)
    }

    /// Why an item that is not in use will not be until something else changes: it cannot be made, or what it needs was
    /// refused and has no earlier version.
    pub fn hopeless(&self, item: &Item) -> Option<String> {
        if let Some(broken) = self.is_broken(item) {
            return Some(broken.to_owned());
        }
        let name = item.name.as_str();
        match &*item.type_url {
            type_url::CLUSTER => self.cluster_blocked(name),
            type_url::ROUTE => self.routes_blocked(name),
            type_url::LISTENER => self.listener_blocked(self.listeners.get(name)?),
            _ => None,
        }
    }

    fn refusal(&self, type_url: &str, name: &str) -> Option<&String> {
        self.refused.get(&(type_url.into(), name.to_owned()))
    }

    fn secrets_blocked(&self) -> Option<String> {
        let missing = [(SECRET_SVID, self.identity.is_none()), (SECRET_BUNDLE, self.bundle.is_none())];
        missing.into_iter().filter(|(_, missing)| *missing).find_map(|(name, _)| {
            let why = self.refusal(type_url::SECRET, name)?;
            Some(format!("its certificates {name} were refused: {why}"))
        })
    }

    fn cluster_blocked(&self, name: &str) -> Option<String> {
        if self.active_clusters.contains_key(name) && !self.clusters.contains_key(name) {
            return None;
        }
        let Some(latest) = self.clusters.get(name) else {
            let why = self.refusal(type_url::CLUSTER, name)?;
            return Some(format!("cluster {name} was refused: {why}"));
        };
        if let Some(broken) = self.broken.get(&(type_url::CLUSTER, name.into())) {
            return Some(format!("cluster {name}: {broken}"));
        }
        if let Source::Eds(service) = &latest.value.endpoints
            && !self.endpoints.contains_key(service)
            && let Some(why) = self.refusal(type_url::ENDPOINT, service)
        {
            return Some(format!("endpoints {service} were refused: {why}"));
        }
        latest.value.tls.as_ref().and_then(|_| self.secrets_blocked())
    }

    /// The first of these clusters that is not in use and will not be.
    fn clusters_blocked(&self, mut slots: impl Iterator<Item = u32>) -> Option<String> {
        slots.find_map(|slot| {
            let name = self.slots.name(slot);
            if self.active_clusters.contains_key(name) { None } else { self.cluster_blocked(name) }
        })
    }

    fn routes_blocked(&self, name: &str) -> Option<String> {
        match self.routes.get(name) {
            Some(latest) => self.clusters_blocked(latest.value.1.iter().copied()),
            None => {
                let why = self.refusal(type_url::ROUTE, name)?;
                Some(format!("routes {name} were refused: {why}"))
            }
        }
    }

    /// Where the version of these routes leads that is to come after the one in use, if there is one.
    fn later(&self, name: &str, active: &ActiveRoutes) -> Option<&[u32]> {
        let latest = self.routes.get(name).filter(|latest| latest.serial != active.serial)?;
        Some(&latest.value.1)
    }

    fn listener_blocked(&self, latest: &Latest<Arc<ParsedListener>>) -> Option<String> {
        if latest.value.tls.is_some()
            && let Some(blocked) = self.secrets_blocked()
        {
            return Some(blocked);
        }
        latest.value.services().find_map(|service| match service {
            ParsedService::Tcp { split, .. } => self.clusters_blocked(slots_of(split)),
            ParsedService::Http(http) => match &http.routes {
                Routes::Inline(_, slots) => self.clusters_blocked(slots.iter().copied()),
                Routes::Rds(name) => match self.active_routes.get(name.as_str()) {
                    // A later version may come to be used in its stead.
                    Some(active)
                        if self.later(name, active).is_none() || self.routes_blocked(name).is_some() =>
                    {
                        self.clusters_blocked(active.clusters.iter().copied())
                    }
                    Some(_) => None,
                    None => self.routes_blocked(name),
                },
            },
        })
    }

    /// Whether the first configuration has arrived and all of it is in use that can be. What cannot, because it or what
    /// it needs was refused, stands for itself and keeps nothing else from serving; but with `all`, what needs something
    /// refused has to be in use, too.
    pub fn is_complete(&self, all: bool) -> bool {
        let listener = |(name, latest): (&Arc<str>, &Latest<Arc<ParsedListener>>)| {
            self.active_listeners.get(name).is_some_and(|active| active.listener == latest.serial)
                || !all && self.broken.contains_key(&(type_url::LISTENER, Arc::clone(name)))
                || !all && self.listener_blocked(latest).is_some()
        };
        self.seen_listeners
            && self.seen_clusters
            && self.listeners.iter().all(listener)
            && self.clusters.keys().all(|name| {
                self.active_clusters.contains_key(name) || !all && self.cluster_blocked(name).is_some()
            })
    }

    /// What an item waits for, in a sentence.
    pub fn waits_for(&self, item: &Item) -> String {
        let name = item.name.as_str();
        if let Some(error) = self.is_broken(item) {
            return error.to_owned();
        }
        let secrets = || self.secrets().is_none().then(|| "its certificates".to_owned());
        let cold = |slots: &[u32]| {
            let names = slots.iter().map(|slot| self.slots.name(*slot));
            names
                .filter(|name| !self.active_clusters.contains_key(*name))
                .map(|name| format!("cluster {name}"))
                .next()
        };
        let missing = match &*item.type_url {
            type_url::CLUSTER => self.clusters.get(name).and_then(|latest| {
                let endpoints = match &latest.value.endpoints {
                    Source::Eds(service) if !self.endpoints.contains_key(service) => {
                        Some(format!("endpoints {service}"))
                    }
                    _ => None,
                };
                endpoints.or_else(secrets)
            }),
            type_url::ROUTE => self.routes.get(name).and_then(|latest| cold(&latest.value.1)),
            type_url::LISTENER => self.listeners.get(name).and_then(|latest| {
                if self.sockets.get(name) != Some(&latest.value.address) {
                    return Some(format!("its sockets at {}", latest.value.address));
                }
                if latest.value.tls.is_some() && self.secrets().is_none() {
                    return secrets();
                }
                latest.value.services().find_map(|service| match service {
                    ParsedService::Tcp { split, .. } => cold(&slots_of(split).collect::<Vec<_>>()),
                    ParsedService::Http(http) => match &http.routes {
                        Routes::Inline(_, slots) => cold(slots),
                        Routes::Rds(rds) => match self.active_routes.get(rds.as_str()) {
                            // Whose clusters may have gone while no listener led to them.
                            Some(active) => match self.later(rds, active) {
                                Some(slots) => cold(slots).or_else(|| cold(&active.clusters)),
                                None => cold(&active.clusters),
                            },
                            None => Some(format!("routes {rds}")),
                        },
                    },
                })
            }),
            _ => None,
        };
        format!("waits for {}", missing.unwrap_or_else(|| "nothing".to_owned()))
    }
}
