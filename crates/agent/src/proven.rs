//! What a proxy has proven to use of what it is served, and what it refused: pure.
//!
//! A refused resource leaves its last good version in use, which is in the memory of a process only. Holds: the next
//! process of that proxy begins with the same: with the last version that was in use in the place of one that is
//! refused or leads to what is refused and never was good, and with what those still lead to. What was never in use and is
//! refused, or leads to such, is left out. Once it is ready it is offered what is declared, like the one before
//! (N28). Does not: decide what is served otherwise; remember across agents (the last good configuration on disk does,
//! see `lastgood`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use outrider_xds::{Resource, ResourceSet, refers};
use outrider_xds_types::type_url;

use crate::inuse::Change;
use crate::scope::RETIRED;

/// Type and name.
type Key = (Arc<str>, Arc<str>);

/// Most versions of one resource that may turn out to be in use.
const MAX_OFFERED: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Proven {
    good: BTreeMap<Key, Arc<Resource>>,
    /// The version that is refused.
    bad: BTreeMap<Key, Arc<str>>,
    /// Versions that were served since the good one, the newest last: a word about one may come when another is served.
    offered: BTreeMap<Key, VecDeque<Arc<Resource>>>,
}

impl Proven {
    /// The proxy said something about what it is or was served.
    pub fn learn(&mut self, changes: &[Change], served: &ResourceSet) {
        for Change { type_url, name, status } in changes {
            let Some(resource) = served.get(type_url, name) else { continue };
            let key = (type_url.clone(), name.clone());
            if let Some(version) = &status.acked
                && let Some(offered) = self.offered.get_mut(&key)
                && let Some(at) = offered.iter().position(|one| one.version == *version)
            {
                self.good.extend(offered.drain(..=at).next_back().map(|good| (key.clone(), good)));
                if offered.is_empty() {
                    self.offered.remove(&key);
                }
            }
            if status.acked.as_ref() == Some(&resource.version) {
                self.bad.remove(&key);
            } else if let Some((version, _)) = &status.refused
                && *version == resource.version
            {
                self.bad.insert(key, version.clone());
            }
        }
        self.forget(served);
    }

    /// Something else is served now.
    pub fn follow(&mut self, served: &ResourceSet) {
        // Nobody hears of secrets, and what stands in for something that has gone is never good.
        let may_be_good =
            |one: &&Arc<Resource>| *one.type_url != *type_url::SECRET && *one.version != *RETIRED;
        for resource in served.iter().filter(may_be_good) {
            let key = (resource.type_url.clone(), resource.name.clone());
            let newest = self.offered.get(&key).and_then(VecDeque::back).or_else(|| self.good.get(&key));
            if newest.is_none_or(|newest| newest.version != resource.version) {
                let offered = self.offered.entry(key).or_default();
                if offered.len() >= MAX_OFFERED {
                    offered.pop_front();
                }
                offered.push_back(resource.clone());
            }
        }
        let served_as = |(type_url, name): &Key| served.get(type_url, name).map(|resource| &resource.version);
        self.bad.retain(|key, version| served_as(key) == Some(&*version));
        self.offered.retain(|key, _| served_as(key).is_some());
        self.forget(served);
    }

    /// What has gone is needed as long as something leads to it that stays in use in the place of what is refused or not
    /// used yet.
    fn forget(&mut self, served: &ResourceSet) {
        let served_as = |(type_url, name): &Key| served.get(type_url, name).map(|resource| &resource.version);
        if self.good.keys().all(|key| served_as(key).is_some()) {
            return;
        }
        let stands_in = |(key, good): &(&Key, &Arc<Resource>)| {
            served_as(key).is_some_and(|version| *version != good.version && **version != *RETIRED)
        };
        let standing_in = self.good.iter().filter(stands_in);
        let mut wanted: Vec<_> = standing_in.flat_map(|(_, good)| refers::of(good)).collect();
        let mut needed = BTreeSet::new();
        while let Some((url, name)) = wanted.pop() {
            let key: Key = (url.into(), name.into());
            if served_as(&key).is_none()
                && let Some(good) = self.good.get(&key)
                && needed.insert(key)
            {
                wanted.extend(refers::of(good));
            }
        }
        self.good.retain(|key, _| served_as(key).is_some() || needed.contains(key));
    }

    /// What a new process is to begin with instead of `served`; `None` if nothing of that is refused. `kept` finds the
    /// last good version of what was never seen in use here.
    ///
    /// What leads to something that is refused and has no good version was held back or refused as well, so it begins as
    /// it was in use before; what was never in use is left out, until it is offered with all that is declared.
    pub fn beginning(
        &self,
        served: &ResourceSet,
        kept: impl Fn(&str, &str) -> Option<Arc<Resource>>,
    ) -> Option<ResourceSet> {
        if self.bad.is_empty() {
            return None;
        }
        let find = |key: &Key| self.good.get(key).cloned().or_else(|| kept(&key.0, &key.1));
        let mut set = served.clone();
        let (mut standing_in, mut never_good) = (Vec::new(), BTreeSet::new());
        for key in self.bad.keys() {
            match find(key) {
                Some(good) => standing_in.push(good),
                None => drop(never_good.insert(key.clone())),
            }
        }
        for url in [type_url::CLUSTER, type_url::ROUTE, type_url::LISTENER] {
            let mut leads_nowhere = Vec::new();
            for resource in
                served.of_type(url).filter(|one| !never_good.is_empty() && *one.version != *RETIRED)
            {
                let key: Key = (resource.type_url.clone(), resource.name.clone());
                let to = refers::of(resource).into_iter().map(|(url, name)| (url.into(), name.into()));
                if self.bad.contains_key(&key) || !to.into_iter().any(|to: Key| never_good.contains(&to)) {
                    continue;
                }
                match find(&key) {
                    Some(good) if good.version == resource.version => {}
                    Some(good) => standing_in.push(good),
                    None => leads_nowhere.push(key),
                }
            }
            never_good.extend(leads_nowhere);
        }
        let mut wanted = Vec::new();
        for good in standing_in {
            wanted.extend(refers::of(&good));
            set.insert(good);
        }
        // What those lead to may have gone from what is declared.
        while let Some((url, name)) = wanted.pop() {
            if set.get(url, &name).is_none()
                && let Some(good) = find(&(url.into(), name.into()))
            {
                wanted.extend(refers::of(&good));
                set.insert(good);
            }
        }
        leave_out(&mut set, &never_good);
        Some(set)
    }
}

/// Takes these out of the set, but for those that something else in it leads to.
fn leave_out(set: &mut ResourceSet, unwanted: &BTreeSet<Key>) {
    for url in [type_url::LISTENER, type_url::ROUTE, type_url::CLUSTER, type_url::ENDPOINT] {
        let of_type: Vec<&Key> = unwanted.iter().filter(|(of, _)| **of == *url).collect();
        if of_type.is_empty() {
            continue;
        }
        let needed: BTreeSet<(&str, String)> = set.iter().flat_map(|one| refers::of(one)).collect();
        for (_, name) in of_type {
            if !needed.contains(&(url, name.to_string())) {
                set.remove(url, name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use outrider_xds_types::pack;
    use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
    use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::{
        ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
    };
    use outrider_xds_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
    use outrider_xds_types::pb::envoy::config::route::v3::{
        Route, RouteAction, RouteConfiguration, VirtualHost, route, route_action,
    };
    use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
    };
    use outrider_xds_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
    use outrider_xds_types::prost::{Message, Name};
    use outrider_xds_types::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET};

    use super::*;
    use crate::inuse::Status;

    /// Of routes the last part of the version is the cluster they lead to, of listeners the routes: `1>old`. Of listeners
    /// for TCP it is the cluster: `1=old`. Of clusters it is where their endpoints are: `1@old`.
    fn resource(url: &str, name: &str, version: &str) -> Resource {
        let to = |sign: char| version.split_once(sign).map(|(_, to)| to.to_owned());
        let filter =
            |any| Filter { config_type: Some(filter::ConfigType::TypedConfig(any)), ..Default::default() };
        let body = match url {
            ROUTE => {
                let specifier = to('>').map(route_action::ClusterSpecifier::Cluster);
                let action =
                    route::Action::Route(RouteAction { cluster_specifier: specifier, ..Default::default() });
                let route = Route { action: Some(action), ..Default::default() };
                let host = VirtualHost { routes: vec![route], ..Default::default() };
                RouteConfiguration { virtual_hosts: vec![host], ..Default::default() }.encode_to_vec()
            }
            LISTENER => {
                let http = to('>').map(|route_config_name| {
                    let rds = RouteSpecifier::Rds(Rds { route_config_name, ..Default::default() });
                    let manager = HttpConnectionManager { route_specifier: Some(rds), ..Default::default() };
                    filter(pack(&HttpConnectionManager::type_url(), &manager))
                });
                let tcp = to('=').map(|cluster| {
                    let cluster_specifier = Some(tcp_proxy::ClusterSpecifier::Cluster(cluster));
                    let proxy = TcpProxy { cluster_specifier, ..Default::default() };
                    filter(pack(&TcpProxy::type_url(), &proxy))
                });
                let chain =
                    FilterChain { filters: http.into_iter().chain(tcp).collect(), ..Default::default() };
                Listener { filter_chains: vec![chain], ..Default::default() }.encode_to_vec()
            }
            CLUSTER => to('@').map_or(Vec::new(), |service_name| {
                let cluster = Cluster {
                    cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
                    eds_cluster_config: Some(EdsClusterConfig { service_name, ..Default::default() }),
                    ..Default::default()
                };
                cluster.encode_to_vec()
            }),
            _ => Vec::new(),
        };
        Resource::new(url, name, version, body)
    }

    fn set(resources: &[(&str, &str, &str)]) -> ResourceSet {
        resources.iter().map(|(url, name, version)| resource(url, name, version)).collect()
    }

    fn change(url: &str, name: &str, acked: Option<&str>, refused: Option<&str>) -> Change {
        let status = Status {
            acked: acked.map(Into::into),
            refused: refused.map(|version| (version.into(), "bad".into())),
        };
        Change { type_url: url.into(), name: name.into(), status }
    }

    fn all_acked(set: &ResourceSet) -> Vec<Change> {
        set.iter().map(|one| change(&one.type_url, &one.name, Some(&one.version), None)).collect()
    }

    fn shown(set: Option<ResourceSet>) -> Vec<String> {
        let all = set.expect("something is refused");
        all.iter().map(|resource| format!("{}={}", resource.name, resource.version)).collect()
    }

    fn nothing(_: &str, _: &str) -> Option<Arc<Resource>> {
        None
    }

    #[test]
    fn a_new_process_begins_with_what_was_in_use_and_what_that_leads_to() {
        let mut proven = Proven::default();
        let first = set(&[
            (CLUSTER, "old", "1"),
            (CLUSTER, "unused", "1"),
            (LISTENER, "gone", "1"),
            (ROUTE, "r", "1>old"),
            (ROUTE, "s", "1>new"),
        ]);
        proven.follow(&first);
        proven.learn(&all_acked(&first), &first);
        assert!(proven.beginning(&first, nothing).is_none());

        let second = set(&[(CLUSTER, "new", "1"), (ROUTE, "r", "2>new"), (ROUTE, "s", "2>new")]);
        proven.learn(&[change(ROUTE, "r", Some("1>old"), Some("2>new"))], &second);
        proven.follow(&second);
        assert!(
            !proven.good.keys().any(|(_, name)| ["unused", "gone"].contains(&&**name)),
            "nobody needs them"
        );
        let changes = [change(ROUTE, "s", Some("2>new"), None), change(ROUTE, "never", None, Some("1"))];
        proven.learn(&changes, &second);
        assert_eq!(shown(proven.beginning(&second, nothing)), ["new=1", "old=1", "r=1>old", "s=2>new"]);
        // A process that has ended says nothing about what is good.
        proven.learn(&[change(ROUTE, "r", None, None)], &second);
        assert_eq!(shown(proven.beginning(&second, nothing)), ["new=1", "old=1", "r=1>old", "s=2>new"]);

        let third = set(&[
            (CLUSTER, "new", "1"),
            (ROUTE, "r", "3>new"),
            (ROUTE, "s", "2>new"),
            (ROUTE, "t", "1>new"),
        ]);
        proven.follow(&third);
        assert!(proven.beginning(&third, nothing).is_none(), "another version may be good");
        let changes = [change(ROUTE, "r", None, Some("3>new")), change(ROUTE, "t", None, Some("1>new"))];
        proven.learn(&changes, &third);
        let begins = shown(proven.beginning(&third, nothing));
        assert_eq!(begins, ["new=1", "old=1", "r=1>old", "s=2>new"], "`t` never was in use");

        let fourth = set(&[(CLUSTER, "new", "1"), (ROUTE, "r", "4>new"), (ROUTE, "s", "2>new")]);
        proven.follow(&fourth);
        proven.learn(&[change(ROUTE, "r", Some("4>new"), None)], &fourth);
        assert!(proven.beginning(&fourth, nothing).is_none());
        proven.learn(&[change(CLUSTER, "new", None, Some("1"))], &fourth);
        let begins = shown(proven.beginning(&fourth, nothing));
        assert_eq!(begins, ["new=1", "r=4>new", "s=2>new"], "what had gone is forgotten");
    }

    /// N28: a refused cluster that is new holds back what leads to it, and nobody says that of those.
    #[test]
    fn n28_what_was_held_back_begins_as_it_was_in_use() {
        let mut proven = Proven::default();
        let first = set(&[(CLUSTER, "old", "1"), (ROUTE, "r", "1>old"), (LISTENER, "l", "1>r")]);
        proven.follow(&first);
        proven.learn(&all_acked(&first), &first);
        let second = set(&[
            (CLUSTER, "new", "1"),
            (ROUTE, "r", "2>new"),
            (LISTENER, "l", "1>r"),
            (ROUTE, "added", "1>new"),
            (LISTENER, "added", "1>added"),
        ]);
        proven.follow(&second);
        proven.learn(&[change(CLUSTER, "new", None, Some("1"))], &second);
        assert_eq!(shown(proven.beginning(&second, nothing)), ["old=1", "l=1>r", "r=1>old"]);

        // Another agent has seen nothing in use but what its proxy claimed.
        let mut proven = Proven::default();
        proven.follow(&second);
        proven.learn(&[change(LISTENER, "l", Some("1>r"), None)], &second);
        proven.learn(&[change(CLUSTER, "new", None, Some("1"))], &second);
        let kept = |url: &str, name: &str| first.get(url, name).cloned();
        assert_eq!(shown(proven.beginning(&second, kept)), ["old=1", "l=1>r", "r=1>old"]);

        // Somebody has it in use all the same: whatever it leads to is not taken away.
        proven.learn(&[change(ROUTE, "r", Some("2>new"), None)], &second);
        assert_eq!(shown(proven.beginning(&second, kept)), ["new=1", "l=1>r", "r=2>new"]);
    }

    /// N28: the same for what leads to a cluster without routes between, and to endpoints that are refused.
    #[test]
    fn n28_what_leads_to_what_never_was_good_is_left_out() {
        let mut proven = Proven::default();
        let first = set(&[(CLUSTER, "old", "1"), (LISTENER, "tcp", "1=old")]);
        proven.follow(&first);
        proven.learn(&all_acked(&first), &first);
        let second = set(&[
            (CLUSTER, "new", "1@points"),
            (ENDPOINT, "points", "1"),
            (LISTENER, "tcp", "2=new"),
            (LISTENER, "other", "1=new"),
            (LISTENER, "gone", RETIRED),
        ]);
        proven.follow(&second);
        proven.learn(&[change(ENDPOINT, "points", None, Some("1"))], &second);
        assert_eq!(shown(proven.beginning(&second, nothing)), ["old=1", "gone=retired", "tcp=1=old"]);
    }

    #[test]
    fn what_was_never_seen_in_use_here_begins_as_it_was_kept_with_what_it_leads_to() {
        let mut proven = Proven::default();
        let served = set(&[(CLUSTER, "new", "1"), (ROUTE, "r", "2>new")]);
        proven.follow(&served);
        proven.learn(
            &[change(CLUSTER, "new", Some("1"), None), change(ROUTE, "r", None, Some("2>new"))],
            &served,
        );
        let disk = set(&[(CLUSTER, "new", "0"), (CLUSTER, "old", "0"), (ROUTE, "r", "1>old")]);
        let kept = |url: &str, name: &str| disk.get(url, name).cloned();
        assert_eq!(shown(proven.beginning(&served, kept)), ["new=1", "old=0", "r=1>old"]);
    }

    /// Changes that follow each other faster than they are used.
    #[test]
    fn a_word_about_a_version_that_is_served_no_more_counts() {
        let mut proven = Proven::default();
        for version in ["1", "2", "3"] {
            proven.follow(&set(&[(CLUSTER, "c", version), (SECRET, "s", version)]));
        }
        let served = set(&[(CLUSTER, "c", "3"), (SECRET, "s", "3")]);
        proven.learn(&[change(CLUSTER, "c", Some("2"), None)], &served);
        assert!(proven.beginning(&served, nothing).is_none(), "nothing is refused yet");
        proven.learn(&[change(CLUSTER, "c", Some("2"), Some("3"))], &served);
        assert_eq!(shown(proven.beginning(&served, nothing)), ["c=2", "s=3"]);
        assert!(
            proven.offered.keys().all(|(url, _)| **url == *CLUSTER),
            "no key outlives its certificate here"
        );

        for version in 4..100 {
            proven.follow(&set(&[(CLUSTER, "c", &version.to_string())]));
        }
        assert_eq!(proven.offered.values().map(VecDeque::len).sum::<usize>(), MAX_OFFERED);
        proven.follow(&ResourceSet::new());
        assert!(proven.offered.is_empty() && proven.good.is_empty());
    }

    /// What stands in for a service that has gone keeps nothing of it.
    #[test]
    fn what_has_gone_is_not_kept_for_what_is_retired() {
        let mut proven = Proven::default();
        let first = set(&[(CLUSTER, "a", "1"), (ROUTE, "a", "1>a"), (ROUTE, "b", "1")]);
        proven.follow(&first);
        proven.learn(&all_acked(&first), &first);
        proven.follow(&set(&[(ROUTE, "a", RETIRED), (ROUTE, "b", "1")]));
        assert!(!proven.good.contains_key(&(CLUSTER.into(), "a".into())));
    }
}
