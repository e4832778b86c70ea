//! What of a set a client is sent that does not know everything.
//!
//! Holds: a resource that needs what the client does not know is not sent, nor what cannot do without it; what the
//! client was sent before of that name stays, so it keeps its last good version and what that leads to. What it has from
//! an earlier stream is known by name and version only: it is [spared](View::spared), and so is whatever that may lead
//! to. Each such version is told once. Who knows everything costs nothing. Does not: take anything out of a resource.
//! Half of what was declared is not what was declared. Only out of a list of endpoints are taken those that nobody can be
//! sent to who has not got the cluster by which they are told apart, as the others come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrider_xds_types::names::TRANSPORT_SOCKET_MATCH;
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint};
use outrider_xds_types::{features, type_url};
use prost::Message;

use crate::refers;
use crate::server::{Seen, Versioned, endpoints_of};
use crate::set::{Resource, ResourceSet};

/// Most resources whose needs are remembered.
const MAX_KNOWN: usize = 65_536;

/// Behind the version of a list that has not got all of its endpoints. Whoever hears what the client has in use hears of the
/// list as it is declared: what is missing of it is said of its cluster.
const OWN: &str = "+own";

type Key = (Arc<str>, Arc<str>);

/// By name what was worked out of a resource.
type Worked<T> = BTreeMap<Arc<str>, (Arc<Resource>, Option<T>)>;

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
    /// By cluster: the list of its endpoints, if it has certificates.
    lists: Worked<Arc<str>>,
    /// Such lists, and without endpoints that it cannot tell apart, if there are any.
    alone: Worked<Arc<Resource>>,
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
            lists: BTreeMap::new(),
            alone: BTreeMap::new(),
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

    /// What it says, of what is declared.
    pub fn as_declared(&self, mut seen: Seen) -> Seen {
        let (Seen::Claimed { type_url, resources }
        | Seen::Acked { type_url, resources, .. }
        | Seen::Refused { type_url, resources, .. }) = &mut seen
        else {
            return seen;
        };
        if **type_url == *type_url::ENDPOINT {
            for (_, version) in resources {
                if let Some(declared) = version.strip_suffix(OWN) {
                    *version = declared.into();
                }
            }
        }
        seen
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
        self.leave_alone(set, &mut view);
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

    /// Takes endpoints of others out of the lists of clusters with certificates, whichever version of such a cluster it has: it
    /// would take them for the called service.
    fn leave_alone(&mut self, set: &ResourceSet, view: &mut ResourceSet) {
        if !self.lacks.contains(features::ENDPOINT_TLS) {
            return;
        }
        let (before, lists) = (std::mem::take(&mut self.alone), std::mem::take(&mut self.lists));
        for cluster in set.of_type(type_url::CLUSTER) {
            let known = lists.get(&cluster.name).filter(|(of, _)| Arc::ptr_eq(of, cluster));
            let name = known.map_or_else(|| secured(cluster), |(_, name)| name.clone());
            self.lists.insert(cluster.name.clone(), (cluster.clone(), name.clone()));
            let Some(list) = name.and_then(|name| set.get(type_url::ENDPOINT, &name)) else { continue };
            let known = before.get(&list.name).filter(|(of, _)| Arc::ptr_eq(of, list));
            let alone = known.map_or_else(|| own_only(list), |(_, alone)| alone.clone());
            if let Some(alone) = &alone {
                view.insert(alone.clone());
            }
            self.alone.insert(list.name.clone(), (list.clone(), alone));
        }
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

/// The list of a cluster that speaks TLS.
fn secured(cluster: &Resource) -> Option<Arc<str>> {
    let read = Cluster::decode(cluster.body.as_slice()).ok()?;
    let is_secure = read.transport_socket.is_some() || !read.transport_socket_matches.is_empty();
    is_secure.then(|| endpoints_of(cluster).map(Arc::from)).flatten()
}

/// The list without endpoints that say what they are told apart by, if there are any.
fn own_only(list: &Resource) -> Option<Arc<Resource>> {
    let mut assignment = ClusterLoadAssignment::decode(list.body.as_slice()).ok()?;
    let is_own = |one: &LbEndpoint| {
        let said = one.metadata.as_ref().and_then(|all| all.filter_metadata.get(TRANSPORT_SOCKET_MATCH));
        said.is_none_or(|said| said.fields.is_empty())
    };
    if assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints).all(is_own) {
        return None;
    }
    assignment.endpoints.iter_mut().for_each(|locality| locality.lb_endpoints.retain(is_own));
    let version = format!("{}{OWN}", list.version);
    Some(Arc::new(Resource::new(
        list.type_url.clone(),
        list.name.clone(),
        version,
        assignment.encode_to_vec(),
    )))
}

fn key(resource: &Resource) -> Key {
    (resource.type_url.clone(), resource.name.clone())
}

#[cfg(test)]
mod tests {
    use outrider_xds_types::names;
    use outrider_xds_types::pb::envoy::config::cluster::v3::OutlierDetection;
    use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::{self, TransportSocketMatch};
    use outrider_xds_types::pb::envoy::config::core::v3::{Metadata, TransportSocket};
    use outrider_xds_types::pb::envoy::config::endpoint::v3::LocalityLbEndpoints;
    use outrider_xds_types::pb::envoy::config::route::v3::{
        Route, RouteAction, RouteConfiguration, VirtualHost, route, route_action,
    };
    use outrider_xds_types::pb::google::protobuf::UInt32Value;

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
        without(features::OUTLIER)
    }

    fn without(feature: &str) -> Fit {
        let named = features::advertised().into_iter().filter(|name| !name.ends_with(feature));
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

    /// Calls of `a` fail over to `b`, which has another identity.
    fn failing_over(set: &mut ResourceSet, version: &str, secure: bool, others: bool) {
        let matches = TransportSocketMatch { name: "b".to_owned(), ..Default::default() };
        let eds = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds as i32);
        let cluster = Cluster {
            name: "a".to_owned(),
            cluster_discovery_type: Some(eds),
            transport_socket: secure.then(TransportSocket::default),
            transport_socket_matches: if others { vec![matches] } else { Vec::new() },
            ..Default::default()
        };
        put(set, type_url::CLUSTER, "a", version, cluster.encode_to_vec());
    }

    fn list(set: &mut ResourceSet, version: &str, weights: &[(u32, bool)]) {
        let one = |(weight, other): &(u32, bool)| {
            let mark = (TRANSPORT_SOCKET_MATCH.to_owned(), names::of_service("b"));
            let metadata = Metadata { filter_metadata: [mark].into(), ..Default::default() };
            let endpoint = LbEndpoint {
                load_balancing_weight: Some(UInt32Value { value: *weight }),
                metadata: other.then_some(metadata),
                ..Default::default()
            };
            LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                priority: u32::from(*other),
                ..Default::default()
            }
        };
        let endpoints = weights.iter().map(one).collect();
        let list = ClusterLoadAssignment { cluster_name: "a".to_owned(), endpoints, ..Default::default() };
        put(set, type_url::ENDPOINT, "a", version, list.encode_to_vec());
    }

    /// Version, and by priority the weights of endpoints.
    fn listed(view: &ResourceSet) -> (String, Vec<Vec<u32>>) {
        let list = view.get(type_url::ENDPOINT, "a").unwrap();
        let read = ClusterLoadAssignment::decode(list.body.as_slice()).unwrap();
        let weight = |one: &LbEndpoint| one.load_balancing_weight.map_or(1, |weight| weight.value);
        let weights = read.endpoints.iter().map(|one| one.lb_endpoints.iter().map(weight).collect());
        (list.version.to_string(), weights.collect())
    }

    /// N7: who cannot tell services of one list apart is sent those of the called one, as they come and go, and is behind
    /// for the cluster that it does not know.
    #[test]
    fn n7_who_cannot_tell_endpoints_of_others_apart_is_not_sent_them() {
        let (mut fit, mut current) = (without(features::ENDPOINT_TLS), older());
        let mut set = ResourceSet::new();
        failing_over(&mut set, "1", true, false);
        list(&mut set, "1", &[(1, false)]);
        assert_eq!(listed(&fit.view(&set).set), ("1".to_owned(), vec![vec![1]]));
        failing_over(&mut set, "2", true, true);
        list(&mut set, "2", &[(1, false), (2, true)]);
        let View { set: view, seen, .. } = fit.view(&set);
        assert_eq!(listed(&view), ("2+own".to_owned(), vec![vec![1], vec![]]));
        let url: Arc<str> = type_url::ENDPOINT.into();
        let acked = |version: &str| Seen::Acked {
            type_url: url.clone(),
            resources: vec![("a".into(), version.into())],
            removed: Vec::new(),
        };
        assert_eq!(fit.as_declared(acked("2+own")), acked("2"));
        assert_eq!(told(&seen), ["a=2: not sent: this version of outrider-proxy does not know endpoint-tls"]);
        assert_eq!(&*view.get(type_url::CLUSTER, "a").unwrap().version, "1", "the last good one");
        assert_eq!(listed(&current.view(&set).set), ("2".to_owned(), vec![vec![1], vec![2]]));
        // They come and go.
        list(&mut set, "3", &[(3, false), (4, true)]);
        let View { set: view, seen, .. } = fit.view(&set);
        assert_eq!((listed(&view), seen.len()), (("3+own".to_owned(), vec![vec![3], vec![]]), 0));
        assert_eq!(fit.view(&set).set.get(type_url::ENDPOINT, "a"), view.get(type_url::ENDPOINT, "a"));
        // The next process is served what was in use at first, which is the last good cluster, with the list of now.
        let mut next = without(features::ENDPOINT_TLS);
        let mut served = set.clone();
        failing_over(&mut served, "1", true, false);
        assert_eq!(listed(&next.view(&served).set), listed(&view));
        // Without certificates nobody is told apart.
        failing_over(&mut set, "4", false, false);
        assert_eq!(listed(&fit.view(&set).set), ("3".to_owned(), vec![vec![3], vec![4]]));
    }
}
