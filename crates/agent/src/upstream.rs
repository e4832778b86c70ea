//! What this host knows from the control plane, shared by everything local.
//!
//! Holds: subscriptions are counted, so what two instances need is asked for once and kept until neither needs
//! it; everything here works without a control plane, only nothing new comes. Does not: connect (`link` does), or
//! keep anything on disk (`lastgood` does).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrider_api::agent::ProxyStatus;
use outrider_xds::client::{BadResponse, Client, Limits};
use outrider_xds::{Interest, Resource, ResourceSet};
use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use outrider_xds_types::type_url;
use outrider_xds_types::{features, names};
use tokio::sync::{Notify, watch};

use crate::facts::Facts;
use crate::zones;

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
    /// Where this host is.
    zone: Option<Arc<str>>,
    set: ResourceSet,
    /// Names the control plane said do not exist.
    absent: Arc<BTreeSet<(String, String)>>,
    wanted: BTreeMap<(String, String), usize>,
    /// What does not work on this host beside its instances.
    problems: Vec<String>,
    /// Instances that the control plane does not count, by `NS/INSTANCE`, and why.
    refused: BTreeMap<String, String>,
    /// Instances that leave and that no proxy calls any more, by `NS/INSTANCE`.
    withdrawn: BTreeSet<String>,
    online: bool,
    /// Since when there is no session.
    away: Instant,
}

/// What was known at one moment: what came later is not in it, neither as a resource nor as a name that is known.
/// Whoever asks more than one question before it acts asks them of one view, or acts on something that never was.
#[derive(Clone, Debug)]
pub struct View {
    set: ResourceSet,
    absent: Arc<BTreeSet<(String, String)>>,
}

impl View {
    /// All resources.
    pub fn resources(&self) -> &ResourceSet {
        &self.set
    }

    /// What was known about one name.
    pub fn known(&self, type_url: &str, name: &str) -> Known {
        match self.set.get(type_url, name) {
            Some(resource) => Known::Yes(resource.clone()),
            None if self.absent.contains(&(type_url.to_owned(), name.to_owned())) => Known::No,
            None => Known::NotYet,
        }
    }
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
    /// Starts knowing nothing. Endpoints of `zone`, if there is one, are put before others as they come.
    pub fn new(node: &str, zone: Option<&str>) -> Arc<Self> {
        let client_features = vec![format!("{}{}", features::PREFIX, features::LEDS)];
        let node = Node { id: node.to_owned(), client_features, ..Node::default() };
        Arc::new(Self {
            state: Mutex::new(State {
                client: Client::new(node, Limits::default()),
                facts: Facts::default(),
                zone: zone.map(Into::into),
                set: ResourceSet::new(),
                absent: Arc::default(),
                wanted: BTreeMap::new(),
                problems: Vec::new(),
                refused: BTreeMap::new(),
                withdrawn: BTreeSet::new(),
                online: false,
                away: Instant::now(),
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

    /// Everything that is known now. Cheap.
    pub fn view(&self) -> View {
        let state = self.lock();
        View { set: state.set.clone(), absent: state.absent.clone() }
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

    /// How long there has been no session; `None` while there is one.
    pub fn unheard(&self) -> Option<Duration> {
        let state = self.lock();
        (!state.online).then(|| state.away.elapsed())
    }

    /// Wakes all instances, as a change would.
    pub(crate) fn look_again(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// What does not work on this host beside its instances; told with every heartbeat.
    pub(crate) fn set_problems(&self, problems: Vec<String>) {
        self.lock().problems = problems;
    }

    /// What does not work on this host, a sentence each.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.lock().problems.clone()
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

    /// Every instance that leaves and that no proxy calls any more.
    pub(crate) fn set_withdrawn(&self, withdrawn: BTreeSet<String>) {
        self.lock().withdrawn = withdrawn;
        self.look_again();
    }

    /// Whether an instance (`NS/INSTANCE`) that leaves is known not to be called any more.
    pub fn is_withdrawn(&self, proxy: &str) -> bool {
        self.lock().withdrawn.contains(proxy)
    }

    pub(crate) fn set_link(&self, state: LinkState) {
        {
            let mut shared = self.lock();
            let online = state == LinkState::Connected;
            if std::mem::replace(&mut shared.online, online) && !online {
                shared.away = Instant::now();
            }
        }
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

    /// Takes a response in, as far as it is wanted. It is in use *here* from now on; what proxies do with it is told by
    /// `Applied` facts. Returns the answer.
    ///
    /// In one step: a subscription that ended and began anew between two would make something count as held that is not
    /// here, and the next stream would never bring it.
    ///
    /// # Errors
    /// [`BadResponse`] if it is malformed.
    pub(crate) fn take(
        &self,
        response: DeltaDiscoveryResponse,
    ) -> Result<Option<DeltaDiscoveryRequest>, BadResponse> {
        let answer = {
            let State { client, set, absent, zone, .. } = &mut *self.lock();
            let update = client.on_response(response)?;
            let absent = Arc::make_mut(absent);
            for resource in &update.added {
                absent.remove(&(update.type_url.to_string(), resource.name.to_string()));
                set.insert(zones::nearest_first(resource, zone.as_deref()));
            }
            for (name, why) in &update.refused {
                tracing::info!(name, why, "a list of endpoints is asked for whole");
            }
            for name in &update.removed {
                set.remove(&update.type_url, name);
                absent.insert((update.type_url.to_string(), name.clone()));
            }
            client.ack(update.token)
        };
        self.changed.send_modify(|count| *count += 1);
        Ok(answer)
    }

    /// Takes the last good configuration of a proxy (`NS/INSTANCE`) for what is known of it, as far as nothing newer
    /// is: without a control plane there is nothing else. When the next stream begins the control plane is told of
    /// it, so that it says what has changed and what is gone. Returns whether anything was taken.
    ///
    /// Nothing is while a stream has begun, of which a session that is being opened has not heard yet: that stream would
    /// never say what of it is gone.
    pub(crate) fn seed(&self, proxy: &str, last_good: &ResourceSet) -> bool {
        let taken = {
            let mut state = self.lock();
            if state.online || state.client.is_connected() {
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

#[cfg(test)]
impl Upstream {
    /// A stream begins, or ends, of which nothing was heard.
    pub(crate) fn dial(&self, up: bool) {
        let client = &mut self.lock().client;
        if up {
            client.connect();
        } else {
            client.disconnected();
        }
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
        let resource = Arc::new(resource.renamed(key.1));
        self.client.claim(&resource, zones::claimed(&resource));
        self.set.insert(zones::nearest_first(&resource, self.zone.as_deref()))
    }

    /// What is known already of a new subscription is told to the server when the next stream begins, so that
    /// it says what is gone. On a stream that is up the answer is fresh anyway, and old knowledge would linger.
    fn claim(&mut self, type_url: &str, name: &str) {
        let mut interest = Interest::default();
        interest.add(name);
        let old: Vec<_> = self.set.of_type(type_url).filter(|r| interest.covers(&r.name)).cloned().collect();
        for resource in old {
            if self.client.is_connected() {
                self.set.remove(type_url, &resource.name);
            } else {
                self.client.claim(&resource, zones::claimed(&resource));
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
        Arc::make_mut(&mut self.absent)
            .retain(|(of_type, name)| of_type != type_url || !ended.covers(name) || covered(name));
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
        let _ = upstream.lock().client.connect();
        upstream.take(response).unwrap();
    }

    #[test]
    fn shared_subscriptions_last_as_long_as_the_last_holder() {
        let upstream = Upstream::new("n1", None);
        let one = upstream.subscribe(ENDPOINT, "shop/a/http");
        let two = upstream.subscribe(ENDPOINT, "shop/a/http");
        assert_eq!(upstream.view().known(ENDPOINT, "shop/a/http"), Known::NotYet);
        update(&upstream, ENDPOINT, &["shop/a/http"], &[]);
        drop(one);
        assert!(matches!(upstream.view().known(ENDPOINT, "shop/a/http"), Known::Yes(_)));
        assert!(upstream.lock().client.interest(ENDPOINT).unwrap().covers("shop/a/http"));
        drop(two);
        assert_eq!(upstream.view().known(ENDPOINT, "shop/a/http"), Known::NotYet);
        assert!(!upstream.lock().client.interest(ENDPOINT).unwrap().covers("shop/a/http"));
    }

    #[test]
    fn what_comes_while_a_view_is_looked_at_is_not_half_in_it() {
        let upstream = Upstream::new("n1", None);
        let _one = upstream.subscribe(ENDPOINT, "shop/a/http");
        let before = upstream.view();
        update(&upstream, ENDPOINT, &["shop/a/http"], &["shop/b/http"]);
        let in_it = |view: &View| view.resources().get(ENDPOINT, "shop/a/http").is_some();
        // Known without being there would be a service without endpoints, for every call that is made meanwhile.
        assert_eq!((before.known(ENDPOINT, "shop/a/http"), in_it(&before)), (Known::NotYet, false));
        let after = upstream.view();
        assert!(matches!(after.known(ENDPOINT, "shop/a/http"), Known::Yes(_)) && in_it(&after));
    }

    #[test]
    fn what_comes_after_its_subscription_has_ended_is_not_kept() {
        let upstream = Upstream::new("n1", None);
        let _other = upstream.subscribe(ENDPOINT, "shop/b/http");
        let one = upstream.subscribe(ENDPOINT, "shop/a/http");
        let response = DeltaDiscoveryResponse {
            type_url: ENDPOINT.to_owned(),
            nonce: "1".to_owned(),
            resources: vec![Resource::new(ENDPOINT, "shop/a/http", "v1", vec![1]).to_wire()],
            removed_resources: vec!["shop/b/http".to_owned()],
            ..DeltaDiscoveryResponse::default()
        };
        let _ = upstream.lock().client.connect();
        drop(one);
        upstream.take(response).unwrap();
        assert_eq!(upstream.lock().client.held(ENDPOINT).count(), 0, "nothing is claimed that is not here");
        assert_eq!(upstream.view().known(ENDPOINT, "shop/a/http"), Known::NotYet);
        assert_eq!(upstream.view().known(ENDPOINT, "shop/b/http"), Known::No);
        let glob = names::scope_glob(type_url::CLUSTER, "shop/a-x7k2p");
        let scoped = names::scoped(type_url::CLUSTER, "shop/a-x7k2p", "inbound/http");
        let scope = upstream.subscribe(type_url::CLUSTER, &glob);
        update_of(&upstream, &scoped);
        drop(scope);
        assert_eq!(upstream.lock().absent.len(), 1, "nothing is left of an instance that has ended");
    }

    fn update_of(upstream: &Upstream, removed: &str) {
        update(upstream, type_url::CLUSTER, &[], &[removed]);
        assert!(upstream.lock().absent.len() > 1);
    }

    #[test]
    fn absence_is_known_and_ends_with_the_resource() {
        let upstream = Upstream::new("n1", None);
        let _one = upstream.subscribe(WORKLOAD, "shop/a");
        update(&upstream, WORKLOAD, &[], &["shop/a"]);
        assert_eq!(upstream.view().known(WORKLOAD, "shop/a"), Known::No);
        update(&upstream, WORKLOAD, &["shop/a"], &[]);
        assert!(matches!(upstream.view().known(WORKLOAD, "shop/a"), Known::Yes(_)));
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
        let upstream = Upstream::new("n1", None);
        let _globs = upstream.subscribe(type_url::CLUSTER, &glob);
        let _workload = upstream.subscribe(WORKLOAD, "shop/a");
        update(&upstream, WORKLOAD, &["shop/a"], &[]);
        upstream.lock().set.insert(Resource::new(WORKLOAD, "shop/a", "v2", vec![2]));
        assert!(!upstream.seed(proxy, &last_good), "a stream has begun, although nobody is online yet");
        upstream.lock().client.disconnected();
        assert!(upstream.seed(proxy, &last_good));
        assert!(!upstream.seed(proxy, &last_good), "once");
        let version = |type_url: &str, name: &str| match upstream.view().known(type_url, name) {
            Known::Yes(resource) => resource.version.to_string(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(version(type_url::CLUSTER, &scoped), "v1");
        assert_eq!(version(WORKLOAD, "shop/a"), "v2", "what is newer stays");
        let _endpoints = upstream.subscribe(ENDPOINT, "shop/b/http");
        let first = upstream.lock().client.connect();
        let claimed: BTreeMap<_, _> =
            first.iter().flat_map(|request| request.initial_resource_versions.clone()).collect();
        assert_eq!(claimed.get(&scoped).map(String::as_str), Some("v1"));
        assert_eq!(claimed.get("shop/b/http").map(String::as_str), Some("v1"));

        upstream.set_link(LinkState::Connected);
        let other = names::scoped(type_url::CLUSTER, "shop/a-other", "inbound/http");
        assert!(!upstream.seed("shop/a-other", &last_good), "the control plane is asked instead");
        assert_eq!(upstream.view().known(type_url::CLUSTER, &other), Known::NotYet);
    }

    /// What the control plane sends of a long list in parts is the whole here, in the order of this host's zone, and what
    /// is kept of it on disk is gone on from.
    #[test]
    fn a_long_list_in_parts_is_whole_with_the_own_zone_first() {
        use outrider_xds::server::{Options, Session};
        use outrider_xds_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
        use outrider_xds_types::prost::Message;

        const NAME: &str = "shop/b/http";
        let whole = |version: &str, first: u8| {
            let zone = |zone: u8| {
                let at = move |number| outrider_compile::Endpoint {
                    address: [10, zone, 0, number].into(),
                    port: 80,
                };
                (if zone == 0 { "a" } else { "b" }, (first..first + 100).map(at).collect())
            };
            let all = [zone(0), zone(1)].into();
            let made = outrider_compile::endpoints_by_zone(
                &outrider_intent::model::ServiceRef::new("shop", "b"),
                "http",
                &all,
            );
            Arc::new(Resource { version: version.into(), ..Resource::clone(&made) })
        };
        let options = Options::for_agent();
        let mut kept = ResourceSet::new();
        for version in ["v1", "v2", "v3"] {
            // Each time another agent on the same host.
            let upstream = Upstream::new("n1", Some("b"));
            upstream.seed("shop/a-1", &kept);
            let _endpoints = upstream.subscribe(ENDPOINT, NAME);
            let mut session = Session::new(options.clone());
            let mut bytes = 0;
            let mut talk = |requests: Vec<DeltaDiscoveryRequest>, set: &ResourceSet| {
                requests.iter().for_each(|request| drop(session.on_request(request).unwrap()));
                loop {
                    let responses = session.poll(set);
                    if responses.is_empty() {
                        return;
                    }
                    for response in responses {
                        bytes += response.encoded_len();
                        let answer = upstream.take(response).unwrap();
                        answer.iter().for_each(|request| drop(session.on_request(request).unwrap()));
                    }
                }
            };
            let requests = upstream.lock().client.connect();
            let mut set = ResourceSet::new();
            for (step, first) in [("", 0), ("+", 1)] {
                let published = whole(&format!("{version}{step}"), first);
                set.insert(published);
                talk(if step.is_empty() { requests.clone() } else { Vec::new() }, &set);
                let published = set.get(ENDPOINT, NAME).unwrap();
                let Known::Yes(here) = upstream.view().known(ENDPOINT, NAME) else { panic!("nothing came") };
                assert_eq!(here, zones::nearest_first(published, Some("b")));
                let read = ClusterLoadAssignment::decode(here.body.as_slice()).unwrap();
                assert_eq!(read.endpoints.iter().map(|one| one.priority).collect::<Vec<_>>(), [1, 0]);
            }
            // All of it once, then parts: two changes are less than it would be once.
            let size = set.get(ENDPOINT, NAME).unwrap().body.len();
            let expected = if kept.is_empty() { size..size + size * 2 / 3 } else { 1..size * 2 / 3 };
            assert!(expected.contains(&bytes), "{version}: {bytes}");
            kept = upstream.view().resources().clone();
        }
    }
}
