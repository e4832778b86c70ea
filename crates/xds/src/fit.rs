//! What of a set a client is sent that does not know everything.
//!
//! Holds: a resource that needs what the client does not know is not sent, nor what cannot do without it; what the
//! client was sent before of that name stays, so it keeps its last good version and what that leads to. What it has from
//! an earlier stream is known by name and version only: it is [spared](View::spared), and so is whatever that may lead
//! to. Each such version is told once. Who knows everything costs nothing. Does not: take anything out of a resource.
//! Half of what was declared is not what was declared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::{features, type_url};

use crate::refers;
use crate::server::{Seen, Versioned};
use crate::set::{Resource, ResourceSet};

/// Most resources whose needs are remembered.
const MAX_KNOWN: usize = 65_536;

type Key = (Arc<str>, Arc<str>);

/// What one client is to have.
#[derive(Debug, Default)]
pub struct View {
    /// What it is sent.
    pub set: ResourceSet,
    /// By type and name: what it has in use from before, and is to keep.
    pub spared: BTreeSet<(Arc<str>, Arc<str>)>,
    /// What was not sent, in the words of a refusal.
    pub seen: Vec<Seen>,
}

/// What is known of one client.
#[derive(Debug)]
pub struct Fit {
    who: String,
    lacks: BTreeSet<&'static str>,
    sent: ResourceSet,
    /// Versions that it had in use when its stream began.
    claimed: BTreeMap<Key, Arc<str>>,
    /// By type, name: version, and what of it the client lacks.
    needs: BTreeMap<Key, (Arc<str>, String)>,
    told: BTreeMap<Key, Arc<str>>,
}

impl Fit {
    /// For who introduces itself so; `None` if it is to be sent everything.
    pub fn of(node: &Node) -> Option<Self> {
        let lacks = features::lacking(&node.client_features);
        (!lacks.is_empty()).then(|| Self {
            who: node.user_agent_name.clone(),
            lacks,
            sent: ResourceSet::new(),
            claimed: BTreeMap::new(),
            needs: BTreeMap::new(),
            told: BTreeMap::new(),
        })
    }

    /// It said something. Whether its view is to be made anew for that.
    pub fn hear(&mut self, seen: &Seen) -> bool {
        match seen {
            Seen::Claimed { type_url, resources } => {
                let all = resources
                    .iter()
                    .map(|(name, version)| ((type_url.clone(), name.clone()), version.clone()));
                self.claimed.extend(all);
                // Whoever follows what it says begins with that: what was not sent is told again.
                self.told.retain(|(url, _), _| url != type_url);
                true
            }
            // It has that no more, so nothing that comes later leads to it.
            Seen::Acked { type_url, removed, .. } if !self.claimed.is_empty() => {
                let of = |name: &Arc<str>| (type_url.clone(), name.clone());
                removed.iter().filter(|name| self.claimed.remove(&of(name)).is_some()).count() > 0
            }
            Seen::Unsubscribed { type_url, names } => {
                let of = |name: &Arc<str>| (type_url.clone(), name.clone());
                names.iter().filter(|name| self.claimed.remove(&of(name)).is_some()).count() > 0
            }
            _ => false,
        }
    }

    /// What it is sent of `set`, what it keeps beside, and what is to be known about the rest.
    pub fn view(&mut self, set: &ResourceSet) -> View {
        self.needs.retain(|(url, name), _| set.get(url, name).is_some());
        let mut seen = self.forget(set);
        let mut out: BTreeMap<Key, String> = BTreeMap::new();
        for resource in set.iter() {
            let lacks = self.lacks_for(resource);
            // What it has in use it knows.
            if !lacks.is_empty() && !self.has(resource) {
                out.insert(key(resource), lacks);
            }
        }
        // What leads to nothing would wait for ever.
        for url in [type_url::ROUTE, type_url::LISTENER] {
            for resource in set.of_type(url) {
                if out.is_empty() || out.contains_key(&key(resource)) || self.has(resource) {
                    continue;
                }
                let missing = refers::of(resource).into_iter().find(|(url, name)| {
                    let key: Key = (Arc::from(*url), Arc::from(name.as_str()));
                    let there = self.sent.get(url, name).is_some() || self.claimed.contains_key(&key);
                    out.contains_key(&key) && !there
                });
                if let Some((_, name)) = missing {
                    let why = format!("it leads to {name}, which was not sent");
                    out.insert(key(resource), why);
                }
            }
        }
        let mut view = set.clone();
        let mut spared = BTreeSet::new();
        for ((url, name), why) in out {
            let left_out = view.remove(&url, &name);
            if let Some(before) = self.sent.get(&url, &name) {
                view.insert(before.clone());
            } else if self.claimed.contains_key(&(url.clone(), name.clone())) {
                spared.insert((url.clone(), name.clone()));
            }
            let Some(version) = left_out.map(|resource| resource.version.clone()) else { continue };
            let told = self.told.insert((url.clone(), name.clone()), version.clone());
            if told.as_ref() != Some(&version) {
                let resources: Vec<Versioned> = vec![(name, version)];
                seen.push(Seen::Refused { type_url: url, resources, removed: Vec::new(), error: why });
            }
        }
        if !seen.is_empty() || !self.told.is_empty() {
            // What the last good versions lead to has gone from what is declared, and is still needed.
            let kept: Vec<Arc<Resource>> =
                self.told.keys().filter_map(|(u, n)| view.get(u, n)).cloned().collect();
            let mut wanted: Vec<(&str, String)> = kept.iter().flat_map(|one| refers::of(one)).collect();
            while let Some((url, name)) = wanted.pop() {
                if view.get(url, &name).is_none()
                    && let Some(before) = self.sent.get(url, &name)
                {
                    wanted.extend(refers::of(before));
                    view.insert(before.clone());
                }
            }
        }
        self.sent.clone_from(&view);
        if !spared.is_empty() {
            // Nobody here knows what those lead to. A listener that has gone has no socket.
            let gone = self
                .claimed
                .keys()
                .filter(|(url, name)| **url != *type_url::LISTENER && view.get(url, name).is_none());
            spared.extend(gone.cloned());
        }
        View { set: view, spared, seen }
    }

    /// What is not declared any more is not refused either. Of what it was sent or has, it says that itself.
    fn forget(&mut self, set: &ResourceSet) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.told.retain(|key, _| {
            let (url, name) = key;
            let declared = set.get(url, name).is_some();
            if !declared && self.sent.get(url, name).is_none() && !self.claimed.contains_key(key) {
                let (type_url, removed) = (url.clone(), vec![name.clone()]);
                seen.push(Seen::Acked { type_url, resources: Vec::new(), removed });
            }
            declared
        });
        seen
    }

    /// Whether it had this version in use when its stream began.
    fn has(&self, resource: &Resource) -> bool {
        !self.claimed.is_empty() && self.claimed.get(&key(resource)) == Some(&resource.version)
    }

    fn lacks_for(&mut self, resource: &Arc<Resource>) -> String {
        let key = key(resource);
        if let Some((version, lacks)) = self.needs.get(&key)
            && *version == resource.version
        {
            return lacks.clone();
        }
        let needed = features::needed(&resource.type_url, &resource.body);
        let names: Vec<&str> = needed.intersection(&self.lacks).copied().collect();
        let lacks = match names.as_slice() {
            [] => String::new(),
            names => format!("not sent: this version of {} does not know {}", self.who, names.join(", ")),
        };
        if self.needs.len() < MAX_KNOWN {
            self.needs.insert(key, (resource.version.clone(), lacks.clone()));
        }
        lacks
    }
}

fn key(resource: &Resource) -> Key {
    (resource.type_url.clone(), resource.name.clone())
}

#[cfg(test)]
mod tests {
    use outrider_xds_types::pb::envoy::config::cluster::v3::{Cluster, OutlierDetection};
    use outrider_xds_types::pb::envoy::config::route::v3::{
        Route, RouteAction, RouteConfiguration, VirtualHost, route, route_action,
    };
    use outrider_xds_types::prost::Message;

    use super::*;
    use crate::server::tests::listener_with_routes;

    fn put(set: &mut ResourceSet, url: &str, name: &str, version: &str, body: Vec<u8>) {
        set.insert(Resource::new(url, name, version, body));
    }

    fn cluster(set: &mut ResourceSet, name: &str, version: &str, new: bool) {
        let outlier_detection = new.then(OutlierDetection::default);
        let cluster = Cluster { name: name.to_owned(), outlier_detection, ..Default::default() };
        put(set, type_url::CLUSTER, name, version, cluster.encode_to_vec());
    }

    fn routes(set: &mut ResourceSet, name: &str, version: &str, to: &str) {
        let action = RouteAction {
            cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(to.to_owned())),
            ..Default::default()
        };
        let route = Route { action: Some(route::Action::Route(action)), ..Default::default() };
        let host = VirtualHost { routes: vec![route], ..Default::default() };
        let routes = RouteConfiguration { virtual_hosts: vec![host], ..Default::default() };
        put(set, type_url::ROUTE, name, version, routes.encode_to_vec());
    }

    fn shown(view: &ResourceSet) -> Vec<String> {
        view.iter().map(|one| format!("{}={}", one.name, one.version)).collect()
    }

    fn told(seen: &[Seen]) -> Vec<String> {
        let one = |seen: &Seen| match seen {
            Seen::Refused { resources, error, .. } => {
                format!("{}={}: {error}", resources[0].0, resources[0].1)
            }
            other => panic!("{other:?}"),
        };
        seen.iter().map(one).collect()
    }

    fn older() -> Fit {
        let named = features::advertised().into_iter().filter(|name| !name.ends_with(features::OUTLIER));
        let node = Node {
            user_agent_name: "outrider-proxy".to_owned(),
            client_features: named.collect(),
            ..Node::default()
        };
        Fit::of(&node).expect("it lacks something")
    }

    /// N7: what a version does not know is not sent, its last good version stays with what that leads to, and whoever
    /// declared it hears which feature it was.
    /// Edge case 76.
    #[test]
    fn n7_what_is_not_known_is_not_sent_and_what_was_stays() {
        let current = Node { client_features: features::advertised(), ..Node::default() };
        assert!(Fit::of(&current).is_none() && Fit::of(&Node::default()).is_none());
        let mut fit = older();
        let mut set = ResourceSet::new();
        cluster(&mut set, "a", "1", false);
        routes(&mut set, "r", "1", "a");
        put(&mut set, type_url::LISTENER, "l", "1", listener_with_routes("r"));
        let view = fit.view(&set);
        assert_eq!(
            (shown(&view.set), view.seen),
            (["a=1", "l=1", "r=1"].map(str::to_owned).to_vec(), vec![])
        );

        // Another version of what is in use, and something new with what needs it.
        cluster(&mut set, "a", "2", true);
        cluster(&mut set, "b", "1", true);
        routes(&mut set, "s", "1", "b");
        put(&mut set, type_url::LISTENER, "m", "1", listener_with_routes("s"));
        let View { set: view, spared, seen } = fit.view(&set);
        assert_eq!((shown(&view), spared.len()), (["a=1", "l=1", "r=1"].map(str::to_owned).to_vec(), 0));
        let why = "not sent: this version of outrider-proxy does not know outlier-ejection";
        let mut words = told(&seen);
        words.sort();
        let expected = [
            format!("a=2: {why}"),
            format!("b=1: {why}"),
            "m=1: it leads to s, which was not sent".to_owned(),
            "s=1: it leads to b, which was not sent".to_owned(),
        ];
        assert_eq!(words, expected);
        assert_eq!(fit.view(&set).seen, [], "once");

        // What the last good routes lead to has gone from what is declared.
        set.remove(type_url::CLUSTER, "a");
        routes(&mut set, "r", "2", "b");
        let View { set: view, seen, .. } = fit.view(&set);
        assert_eq!(shown(&view), ["a=1", "l=1", "r=1"]);
        assert_eq!(told(&seen), ["r=2: it leads to b, which was not sent"]);
    }

    /// What a client has acknowledged as gone is not there for what comes later.
    #[test]
    fn what_was_removed_leads_nowhere_when_it_comes_again_in_a_form_that_is_not_known() {
        let mut fit = older();
        let mut set = ResourceSet::new();
        assert!(fit.hear(&claims(type_url::CLUSTER, &[("a", "1")])));
        fit.view(&set);
        let acked = |name: &str| Seen::Acked {
            type_url: type_url::CLUSTER.into(),
            resources: Vec::new(),
            removed: vec![name.into()],
        };
        assert!(!fit.hear(&acked("other")) && fit.hear(&acked("a")));
        cluster(&mut set, "a", "2", true);
        routes(&mut set, "r", "1", "a");
        let View { set: view, spared, seen } = fit.view(&set);
        assert_eq!((shown(&view), spared.len()), (Vec::new(), 0));
        let words = told(&seen);
        assert!(words.contains(&"r=1: it leads to a, which was not sent".to_owned()), "{words:?}");
    }

    /// N29: what was not sent is refused as long as it is declared, and whoever hears of it is told in the order in which
    /// the client says what it has.
    #[test]
    fn n29_what_was_not_sent_is_refused_as_long_as_it_is_declared() {
        let mut fit = older();
        let mut set = ResourceSet::new();
        cluster(&mut set, "a", "1", false);
        fit.view(&set);
        cluster(&mut set, "a", "2", true);
        cluster(&mut set, "b", "1", true);
        routes(&mut set, "s", "1", "b");
        put(&mut set, type_url::LISTENER, "m", "1", listener_with_routes("s"));
        assert_eq!(fit.view(&set).seen.len(), 4);
        // The first request for clusters made that view, and then it says which listeners it has.
        assert!(fit.hear(&claims(type_url::LISTENER, &[("l", "1")])));
        assert_eq!(told(&fit.view(&set).seen), ["m=1: it leads to s, which was not sent"]);

        for (url, name) in [(type_url::CLUSTER, "a"), (type_url::CLUSTER, "b"), (type_url::ROUTE, "s")] {
            set.remove(url, name);
        }
        let gone = |url: &str, name: &str| Seen::Acked {
            type_url: url.into(),
            resources: Vec::new(),
            removed: vec![name.into()],
        };
        let seen = fit.view(&set).seen;
        assert_eq!(
            seen,
            [gone(type_url::CLUSTER, "b"), gone(type_url::ROUTE, "s")],
            "of a it says that itself"
        );
        assert_eq!(fit.view(&set).seen, []);
    }

    fn claims(url: &str, all: &[(&str, &str)]) -> Seen {
        let resources = all.iter().map(|(name, version)| ((*name).into(), (*version).into())).collect();
        Seen::Claimed { type_url: url.into(), resources }
    }

    /// N7: the next stream of a client that has the last good version of something, from an agent before this one or over
    /// a socket that was removed, takes nothing of that away.
    #[test]
    fn n7_what_a_client_has_from_an_earlier_stream_stays() {
        let mut fit = older();
        let mut set = ResourceSet::new();
        cluster(&mut set, "a", "2", true);
        routes(&mut set, "r", "2", "b");
        cluster(&mut set, "b", "1", true);
        put(&mut set, type_url::LISTENER, "l", "1", listener_with_routes("r"));
        assert!(fit.hear(&claims(type_url::CLUSTER, &[("a", "1"), ("gone", "1")])));
        assert!(fit.hear(&claims(type_url::LISTENER, &[("l", "1"), ("closed", "1")])));
        assert!(fit.hear(&claims(type_url::ROUTE, &[("r", "1")])));
        let View { set: view, spared, seen } = fit.view(&set);
        assert_eq!(shown(&view), ["l=1"]);
        let mut kept: Vec<&str> = spared.iter().map(|(_, name)| &**name).collect();
        kept.sort_unstable();
        assert_eq!(kept, ["a", "gone", "r"], "what `r` or `a` of before lead to is not known");
        assert_eq!(seen.len(), 3, "a, b and r: {seen:?}");

        // Repaired: nothing is in the way of what is declared any more.
        cluster(&mut set, "a", "3", false);
        routes(&mut set, "r", "3", "a");
        let View { set: view, spared, seen } = fit.view(&set);
        assert_eq!(shown(&view), ["a=3", "l=1", "r=3"]);
        assert_eq!((spared.len(), seen.len()), (0, 0));

        // It has given up on something by itself.
        cluster(&mut set, "gone", "2", true);
        let dropped = vec!["gone".into()];
        assert!(fit.hear(&Seen::Unsubscribed { type_url: type_url::CLUSTER.into(), names: dropped }));
        assert!(fit.view(&set).spared.is_empty());
    }
}
