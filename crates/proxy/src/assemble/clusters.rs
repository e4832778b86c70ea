//! Clusters that are in use, made of what is declared, and of the endpoints and certificates of now.
//!
//! Holds: what is in use follows its endpoints and certificates, also while a later version of it waits, and after it was
//! withdrawn for as long as something leads to it; what has not changed is the same object as before. Does not: decide
//! which names are asked for.

use std::sync::Arc;

use outrider_xds_types::type_url;

use super::{Assembler, Latest, Made, Serial};
use crate::config::balance::Assignment;
use crate::config::cluster::{ParsedCluster, ParsedTls, Source};
use crate::config::{Cluster, UpstreamTls};
use crate::shared::Shared;
use crate::tls::{self, Bundle, Identity, TlsError};

/// TLS towards the endpoints of a cluster, and towards those that its matches are for.
type Towards = (Option<UpstreamTls>, Vec<UpstreamTls>);

pub(super) struct ActiveCluster {
    pub(super) cluster: Serial,
    pub(super) version: Arc<str>,
    pub(super) parsed: Arc<ParsedCluster>,
    endpoints: (Serial, Assignment),
    secrets: (Serial, Serial),
    /// TLS of each of its matches.
    matched: Vec<UpstreamTls>,
    pub(super) value: Arc<Cluster>,
}

impl Assembler {
    /// Makes clusters of what there is. Whether anything is another than before.
    pub(super) fn warm_clusters(&mut self) -> bool {
        let (mut fresh, mut broken) = (Vec::new(), Vec::new());
        let mut declared = 0;
        for (name, latest) in &self.clusters {
            let active = self.active_clusters.get(name);
            declared += usize::from(active.is_some());
            let made = match self.warm_cluster(latest, active) {
                Made::Same => continue,
                Made::Fresh(made) => Some(made),
                Made::Cold => active.and_then(|active| self.follow_cluster(active)),
                Made::Broken(error) => {
                    broken.push(((type_url::CLUSTER, Arc::clone(name)), error));
                    active.and_then(|active| self.follow_cluster(active))
                }
            };
            fresh.extend(made.map(|made| (Arc::clone(name), made)));
        }
        if declared < self.active_clusters.len() {
            let withdrawn =
                self.active_clusters.iter().filter(|(name, _)| !self.clusters.contains_key(*name));
            let made =
                withdrawn.filter_map(|(name, active)| Some((Arc::clone(name), self.follow_cluster(active)?)));
            fresh.extend(made);
        }
        let changed = !fresh.is_empty();
        for (name, made) in fresh {
            if self.clusters.get(&name).is_some_and(|latest| latest.serial == made.cluster) {
                self.broken.remove(&(type_url::CLUSTER, Arc::clone(&name)));
            }
            let serial = made.cluster;
            match self.active_clusters.insert(name, made) {
                None => self.relink = true,
                Some(before) => self.rethink |= before.cluster != serial,
            }
        }
        self.broken.extend(broken);
        changed
    }

    /// The newest version, once it has everything.
    fn warm_cluster(
        &self,
        latest: &Latest<Arc<ParsedCluster>>,
        active: Option<&ActiveCluster>,
    ) -> Made<ActiveCluster> {
        let parsed = &latest.value;
        let Some((number, assignment)) = self.endpoints_of(parsed) else { return Made::Cold };
        let secrets = match (&parsed.tls, self.secrets()) {
            (None, _) => None,
            (Some(_), None) => return Made::Cold,
            (Some(_), Some(secrets)) => Some(secrets),
        };
        let serials = secrets.map_or((0, 0), |(_, _, serials)| serials);
        // The same settings objects as long as nothing in them changed: connections depend on them.
        let same = active.filter(|active| active.cluster == latest.serial && active.secrets == serials);
        let tls = match (same, secrets) {
            (Some(same), _) if same.endpoints.0 == number => return Made::Same,
            (Some(same), _) => Ok((same.value.tls.clone(), same.matched.clone())),
            (None, Some((identity, bundle, _))) => towards(parsed, identity, bundle),
            (None, None) => Ok((None, Vec::new())),
        };
        let tls = match tls {
            Ok(tls) => tls,
            Err(error) => return Made::Broken(error.to_string()),
        };
        let version = (latest.serial, &latest.version);
        let shared = active.map(|active| Arc::clone(&active.value.shared)).unwrap_or_default();
        Made::Fresh(made(parsed, version, (number, assignment), (serials, tls), shared))
    }

    /// What is in use with the endpoints and certificates of now, if they are others. What is not there, or cannot be used,
    /// is as it was.
    fn follow_cluster(&self, active: &ActiveCluster) -> Option<ActiveCluster> {
        let ActiveCluster { parsed, endpoints: (number, assignment), .. } = active;
        let endpoints = self.endpoints_of(parsed).unwrap_or((*number, assignment));
        let secrets = self.secrets().filter(|(_, _, now)| parsed.tls.is_some() && *now != active.secrets);
        let renewed = secrets.and_then(|(identity, bundle, serials)| {
            towards(parsed, identity, bundle).ok().map(|tls| (serials, tls))
        });
        if renewed.is_none() && endpoints.0 == *number {
            return None;
        }
        let tls =
            renewed.unwrap_or_else(|| (active.secrets, (active.value.tls.clone(), active.matched.clone())));
        let version = (active.cluster, &active.version);
        Some(made(parsed, version, endpoints, tls, Arc::clone(&active.value.shared)))
    }

    fn endpoints_of<'a>(&'a self, parsed: &'a ParsedCluster) -> Option<(Serial, &'a Assignment)> {
        match &parsed.endpoints {
            Source::Static(assignment) => Some((0, assignment)),
            Source::Eds(list) => self.endpoints.get(list).map(|known| (known.serial, &known.value)),
        }
    }
}

fn made(
    parsed: &Arc<ParsedCluster>,
    (cluster, version): (Serial, &Arc<str>),
    (number, assignment): (Serial, &Assignment),
    (secrets, (tls, matched)): ((Serial, Serial), Towards),
    shared: Arc<Shared>,
) -> ActiveCluster {
    let places = assignment.marks.places(&parsed.matches);
    let other_tls = places.filter_map(|(at, place)| Some((at, matched.get(place)?.clone()))).collect();
    let value = Arc::new(Cluster {
        name: Arc::clone(&parsed.name),
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
        endpoints: Arc::clone(&assignment.list),
        layout: assignment.layout_for(&parsed.balance),
        shared,
    });
    ActiveCluster {
        cluster,
        version: Arc::clone(version),
        parsed: Arc::clone(parsed),
        endpoints: (number, assignment.clone()),
        secrets,
        matched,
        value,
    }
}

fn towards(cluster: &ParsedCluster, identity: &Identity, bundle: &Bundle) -> Result<Towards, TlsError> {
    let made = |wanted: &ParsedTls| -> Result<UpstreamTls, TlsError> {
        let config = tls::client_config(identity, bundle, &wanted.expected, &wanted.alpn)?;
        Ok(UpstreamTls { config, server_name: wanted.server_name.clone() })
    };
    let own = cluster.tls.as_ref().map(made).transpose()?;
    let others = cluster.matches.iter().map(|one| made(&one.tls));
    Ok((own, others.collect::<Result<_, _>>()?))
}
