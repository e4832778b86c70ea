//! What this host knows from the control plane, shared by everything local.
//!
//! Holds: subscriptions are counted, so what two instances need is asked for once and kept until neither needs
//! it; everything here works without a control plane, only nothing new comes. Does not: connect (`link` does), or
//! keep anything on disk (`lastgood` does).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrider_api::agent::ProxyStatus;
use outrider_xds::client::{Client, Limits, Update};
use outrider_xds::{Interest, Resource, ResourceSet};
use outrider_xds_types::names;
use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::type_url;
use tokio::sync::{Notify, watch};

use crate::facts::Facts;

/// The state of the connection, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// A session is up.
    Connected,
    /// None is, and why.
    Away(String),
}

/// Resources, subscriptions and facts of the host.
#[derive(Debug)]
pub struct Upstream {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    link: watch::Sender<LinkState>,
    /// Something is to be sent up.
    pub(crate) outgoing: Notify,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) client: Client,
    pub(crate) facts: Facts,
    set: ResourceSet,
    /// Names the control plane said do not exist.
    absent: BTreeSet<(String, String)>,
    wanted: BTreeMap<(String, String), usize>,
    /// Instances that the control plane does not count, by `NS/INSTANCE`, and why.
    refused: BTreeMap<String, String>,
    online: bool,
}

/// A subscription; dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    upstream: Arc<Upstream>,
    key: (String, String),
}

/// What is known about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It exists.
    Yes(Arc<Resource>),
    /// The control plane says it does not.
    No,
    /// Nothing was heard of it.
    NotYet,
}

impl Upstream {
    /// Starts knowing nothing.
    pub fn new(node: &str) -> Arc<Self> {
        let node = Node { id: node.to_owned(), ..Node::default() };
        Arc::new(Self {
            state: Mutex::new(State {
                client: Client::new(node, Limits::default()),
                facts: Facts::default(),
                set: ResourceSet::new(),
                absent: BTreeSet::new(),
                wanted: BTreeMap::new(),
                refused: BTreeMap::new(),
                online: false,
            }),
            changed: watch::channel(0).0,
            link: watch::channel(LinkState::Away("not connected yet".to_owned())).0,
            outgoing: Notify::new(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes to a name or glob of a type.
    pub fn subscribe(self: &Arc<Self>, type_url: &str, name: &str) -> Subscription {
        let key = (type_url.to_owned(), name.to_owned());
        {
            let mut state = self.lock();
            let count = state.wanted.entry(key.clone()).or_default();
            *count += 1;
            if *count == 1 {
                state.client.subscribe(type_url, [name]);
                state.claim(type_url, name);
            }
        }
        self.outgoing.notify_one();
        Subscription { upstream: Arc::clone(self), key }
    }

    /// All resources now. Cheap.
    pub fn resources(&self) -> ResourceSet {
        self.lock().set.clone()
    }

    /// What is known about one name.
    pub fn known(&self, type_url: &str, name: &str) -> Known {
        let state = self.lock();
        match state.set.get(type_url, name) {
            Some(resource) => Known::Yes(resource.clone()),
            None if state.absent.contains(&(type_url.to_owned(), name.to_owned())) => Known::No,
            None => Known::NotYet,
        }
    }

    /// Whether something was asked for by its name and nothing was heard of it yet.
    pub(crate) fn waits(&self) -> bool {
        let state = self.lock();
        state.wanted.keys().any(|key| {
            !key.1.ends_with('*') && state.set.get(&key.0, &key.1).is_none() && !state.absent.contains(key)
        })
    }

    /// Told whenever resources change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The state of the connection.
    pub fn link(&self) -> LinkState {
        self.link.borrow().clone()
    }

    /// Wakes all instances, as a change would.
    pub(crate) fn look_again(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Every instance that the control plane does not count, and why.
    pub(crate) fn set_refused(&self, refused: BTreeMap<String, String>) {
        self.lock().refused = refused;
        self.look_again();
    }

    /// Why the control plane does not count an instance (`NS/INSTANCE`).
    pub fn refusal(&self, proxy: &str) -> Option<String> {
        self.lock().refused.get(proxy).cloned()
    }

    pub(crate) fn set_link(&self, state: LinkState) {
        self.lock().online = state == LinkState::Connected;
        self.link.send_replace(state);
        // What is missing reads differently without a control plane.
        self.look_again();
    }

    /// Changes the facts and lets them be sent.
    pub fn facts<R>(&self, change: impl FnOnce(&mut Facts) -> R) -> R {
        let result = change(&mut self.lock().facts);
        self.outgoing.notify_one();
        result
    }

    /// Where a proxy is now; sent if it is news.
    pub(crate) fn proxy_status(&self, status: ProxyStatus) {
        if self.lock().facts.set_status(status) {
            self.outgoing.notify_one();
        }
    }

    /// Takes an update in. It is in use here from now on.
    pub(crate) fn take(&self, update: &Update) {
        {
            let mut state = self.lock();
            for resource in &update.added {
                state.absent.remove(&(update.type_url.to_string(), resource.name.to_string()));
                state.set.insert(resource.clone());
            }
            for name in &update.removed {
                state.set.remove(&update.type_url, name);
                state.absent.insert((update.type_url.to_string(), name.clone()));
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// Takes the last good configuration of a proxy (`NS/INSTANCE`) for what is known of it, as far as nothing newer
    /// is: without a control plane there is nothing else. When the next stream begins the control plane is told of
    /// it, so that it says what has changed and what is gone. Returns whether anything was taken.
    pub(crate) fn seed(&self, proxy: &str, last_good: &ResourceSet) -> bool {
        let taken = {
            let mut state = self.lock();
            if state.online {
                return false;
            }
            last_good.iter().filter(|resource| state.seed(proxy, resource)).count()
        };
        if taken > 0 {
            self.look_again();
        }
        taken > 0
    }
}

impl State {
    fn seed(&mut self, proxy: &str, resource: &Resource) -> bool {
        let scoped = [type_url::LISTENER, type_url::ROUTE, type_url::CLUSTER].contains(&&*resource.type_url);
        let name = match scoped {
            true => names::scoped(&resource.type_url, proxy, &resource.name),
            false => resource.name.to_string(),
        };
        let key = (resource.type_url.to_string(), name);
        if self.set.get(&key.0, &key.1).is_some() || self.absent.contains(&key) {
            return false;
        }
        self.client.claim(&key.0, &key.1, &resource.version);
        self.set.insert(resource.renamed(key.1))
    }

    /// What is known already of a new subscription is told to the server when the next stream begins, so that
    /// it says what is gone. On a stream that is up the answer is fresh anyway, and old knowledge would linger.
    fn claim(&mut self, type_url: &str, name: &str) {
        let mut interest = Interest::default();
        interest.add(name);
        let old: Vec<_> = self.set.of_type(type_url).filter(|r| interest.covers(&r.name)).cloned().collect();
        for resource in old {
            if self.online {
                self.set.remove(type_url, &resource.name);
            } else {
                self.client.claim(type_url, &resource.name, &resource.version);
            }
        }
    }

    fn release(&mut self, key: &(String, String)) {
        let Some(count) = self.wanted.get_mut(key) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.wanted.remove(key);
        let (type_url, name) = key;
        self.client.unsubscribe(type_url, [name]);
        self.absent.remove(key);
        let mut ended = Interest::default();
        ended.add(name);
        let still = self.client.interest(type_url);
        let covered = |name: &str| still.is_some_and(|interest| interest.covers(name));
        let old: Vec<_> = self
            .set
            .of_type(type_url)
            .filter(|r| ended.covers(&r.name) && !covered(&r.name))
            .cloned()
            .collect();
        for resource in old {
            self.set.remove(type_url, &resource.name);
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.upstream.lock().release(&self.key);
        self.upstream.outgoing.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use outrider_xds_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
    use outrider_xds_types::type_url::{ENDPOINT, WORKLOAD};

    use super::*;

    fn update(upstream: &Upstream, type_url: &str, names: &[&str], removed: &[&str]) {
        let response = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: "1".to_owned(),
            resources: names
                .iter()
                .map(|name| Resource::new(type_url, *name, "v1", vec![1]).to_wire())
                .collect(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        let update = {
            let mut state = upstream.lock();
            let _ = state.client.connect();
            state.client.on_response(response).unwrap()
        };
        upstream.take(&update);
    }

    #[test]
    fn shared_subscriptions_last_as_long_as_the_last_holder() {
        let upstream = Upstream::new("n1");
        let one = upstream.subscribe(ENDPOINT, "shop/a/http");
        let two = upstream.subscribe(ENDPOINT, "shop/a/http");
        assert_eq!(upstream.known(ENDPOINT, "shop/a/http"), Known::NotYet);
        update(&upstream, ENDPOINT, &["shop/a/http"], &[]);
        drop(one);
        assert!(matches!(upstream.known(ENDPOINT, "shop/a/http"), Known::Yes(_)));
        assert!(upstream.lock().client.interest(ENDPOINT).unwrap().covers("shop/a/http"));
        drop(two);
        assert_eq!(upstream.known(ENDPOINT, "shop/a/http"), Known::NotYet);
        assert!(!upstream.lock().client.interest(ENDPOINT).unwrap().covers("shop/a/http"));
    }

    #[test]
    fn absence_is_known_and_ends_with_the_resource() {
        let upstream = Upstream::new("n1");
        let _one = upstream.subscribe(WORKLOAD, "shop/a");
        update(&upstream, WORKLOAD, &[], &["shop/a"]);
        assert_eq!(upstream.known(WORKLOAD, "shop/a"), Known::No);
        update(&upstream, WORKLOAD, &["shop/a"], &[]);
        assert!(matches!(upstream.known(WORKLOAD, "shop/a"), Known::Yes(_)));
    }

    #[test]
    fn the_last_good_is_used_while_nothing_newer_is_known_and_told_to_the_next_stream() {
        let proxy = "shop/a-x7k2p";
        let glob = names::scope_glob(type_url::CLUSTER, proxy);
        let scoped = names::scoped(type_url::CLUSTER, proxy, "inbound/http");
        let mut last_good = ResourceSet::new();
        last_good.insert(Resource::new(type_url::CLUSTER, "inbound/http", "v1", vec![1]));
        last_good.insert(Resource::new(WORKLOAD, "shop/a", "v1", vec![1]));
        last_good.insert(Resource::new(ENDPOINT, "shop/b/http", "v1", vec![1]));
        let upstream = Upstream::new("n1");
        let _globs = upstream.subscribe(type_url::CLUSTER, &glob);
        let _workload = upstream.subscribe(WORKLOAD, "shop/a");
        update(&upstream, WORKLOAD, &["shop/a"], &[]);
        upstream.lock().set.insert(Resource::new(WORKLOAD, "shop/a", "v2", vec![2]));
        assert!(upstream.seed(proxy, &last_good));
        assert!(!upstream.seed(proxy, &last_good), "once");
        let version = |type_url: &str, name: &str| match upstream.known(type_url, name) {
            Known::Yes(resource) => resource.version.to_string(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(version(type_url::CLUSTER, &scoped), "v1");
        assert_eq!(version(WORKLOAD, "shop/a"), "v2", "what is newer stays");
        let _endpoints = upstream.subscribe(ENDPOINT, "shop/b/http");
        upstream.lock().client.disconnected();
        let first = upstream.lock().client.connect();
        let claimed: BTreeMap<_, _> =
            first.iter().flat_map(|request| request.initial_resource_versions.clone()).collect();
        assert_eq!(claimed.get(&scoped).map(String::as_str), Some("v1"));
        assert_eq!(claimed.get("shop/b/http").map(String::as_str), Some("v1"));

        upstream.set_link(LinkState::Connected);
        let other = names::scoped(type_url::CLUSTER, "shop/a-other", "inbound/http");
        assert!(!upstream.seed("shop/a-other", &last_good), "the control plane is asked instead");
        assert_eq!(upstream.known(type_url::CLUSTER, &other), Known::NotYet);
    }
}
