//! What this host knows from the control plane, shared by everything local.
//!
//! Holds: subscriptions are counted, so what two instances need is asked for once and kept until neither needs
//! it; the last good resources are on disk and are there again after a restart; everything here works without a
//! control plane, only nothing new comes. Does not: connect (`link` does).
//!
//! # On disk
//! `STATE/agent/last-good`: 32 bytes of SHA-256 of the rest, then a `DeltaDiscoveryResponse` with all resources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrider_xds::client::{Client, Limits, Update};
use outrider_xds::{Interest, Resource, ResourceSet};
use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use outrider_xds_types::prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};

use crate::facts::Facts;

/// Bytes of the last good resources on disk.
const MAX_LAST_GOOD: u64 = 64 << 20;

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
    file: PathBuf,
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
    /// Starts with what is on disk in `file`, if it is whole; a damaged file is as good as none.
    pub fn new(node: &str, file: PathBuf) -> Arc<Self> {
        let node = Node { id: node.to_owned(), ..Node::default() };
        let set = load(&file).unwrap_or_default();
        Arc::new(Self {
            state: Mutex::new(State {
                client: Client::new(node, Limits::default()),
                facts: Facts::default(),
                set,
                absent: BTreeSet::new(),
                wanted: BTreeMap::new(),
                refused: BTreeMap::new(),
                online: false,
            }),
            changed: watch::channel(0).0,
            link: watch::channel(LinkState::Away("not connected yet".to_owned())).0,
            outgoing: Notify::new(),
            file,
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

    /// Forgets what nobody wants: what was on disk and is no longer asked for.
    pub(crate) fn forget_unwanted(&self) {
        {
            let mut state = self.lock();
            let unwanted = |resource: &&Arc<Resource>| {
                let interest = state.client.interest(&resource.type_url);
                !interest.is_some_and(|interest| interest.covers(&resource.name))
            };
            let unwanted: Vec<_> = state.set.iter().filter(unwanted).cloned().collect();
            for resource in unwanted {
                state.set.remove(&resource.type_url, &resource.name);
            }
        }
        self.look_again();
    }

    /// Writes changes to disk as they come, at most every 200 ms. Runs until dropped.
    pub async fn keep(self: Arc<Self>) {
        let mut changes = self.changes();
        let mut last = self.resources();
        while changes.changed().await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            changes.mark_unchanged();
            let set = self.resources();
            if set != last
                && let Err(error) = self.save(&set)
            {
                tracing::warn!(%error, "the last good resources cannot be kept");
            }
            last = set;
        }
    }

    /// Writes what is known now to disk.
    ///
    /// # Errors
    /// What the file system says; the earlier file stays.
    pub fn save(&self, set: &ResourceSet) -> Result<(), outrider_identity::FileError> {
        let all = DeltaDiscoveryResponse {
            resources: set.iter().map(|resource| resource.to_wire()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        let body = all.encode_to_vec();
        let mut content = Sha256::digest(&body).to_vec();
        content.extend(body);
        outrider_identity::write_private_within(&self.file, &content, MAX_LAST_GOOD)
    }
}

fn load(file: &std::path::Path) -> Option<ResourceSet> {
    let content = outrider_identity::read_optional_within(file, MAX_LAST_GOOD)
        .inspect_err(|error| tracing::warn!(%error, "the last good resources are not used"))
        .ok()??;
    let (sum, body) = content.split_at_checked(32)?;
    if Sha256::digest(body)[..] != *sum {
        tracing::warn!(file = %file.display(), "the last good resources are damaged and not used");
        return None;
    }
    let all = DeltaDiscoveryResponse::decode(body).ok()?;
    let mut set = ResourceSet::new();
    for resource in all.resources {
        let any = resource.resource?;
        set.insert(Resource::new(any.type_url, resource.name, resource.version, any.value));
    }
    Some(set)
}

impl State {
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
        let dir = tempfile::tempdir().unwrap();
        let upstream = Upstream::new("n1", dir.path().join("last-good"));
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
        let dir = tempfile::tempdir().unwrap();
        let upstream = Upstream::new("n1", dir.path().join("last-good"));
        let _one = upstream.subscribe(WORKLOAD, "shop/a");
        update(&upstream, WORKLOAD, &[], &["shop/a"]);
        assert_eq!(upstream.known(WORKLOAD, "shop/a"), Known::No);
        update(&upstream, WORKLOAD, &["shop/a"], &[]);
        assert!(matches!(upstream.known(WORKLOAD, "shop/a"), Known::Yes(_)));
    }

    #[test]
    fn a_restart_knows_what_was_known_and_a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("last-good");
        let upstream = Upstream::new("n1", file.clone());
        let _one = upstream.subscribe(WORKLOAD, "shop/a");
        let _two = upstream.subscribe(ENDPOINT, "shop/b/http");
        update(&upstream, WORKLOAD, &["shop/a"], &[]);
        update(&upstream, ENDPOINT, &["shop/b/http"], &[]);
        upstream.save(&upstream.resources()).unwrap();

        let again = Upstream::new("n1", file.clone());
        assert!(matches!(again.known(WORKLOAD, "shop/a"), Known::Yes(_)));
        let _sub = again.subscribe(WORKLOAD, "shop/a");
        let first = again.lock().client.connect();
        assert_eq!(first[0].initial_resource_versions.get("shop/a").map(String::as_str), Some("v1"));

        // Of a large mesh too.
        upstream.lock().set.insert(Resource::new(WORKLOAD, "shop/large", "v1", vec![7; 3 << 20]));
        upstream.save(&upstream.resources()).unwrap();
        assert!(matches!(Upstream::new("n1", file.clone()).known(WORKLOAD, "shop/large"), Known::Yes(_)));

        assert!(matches!(again.known(ENDPOINT, "shop/b/http"), Known::Yes(_)));
        again.forget_unwanted();
        assert!(matches!(again.known(WORKLOAD, "shop/a"), Known::Yes(_)), "wanted");
        assert_eq!(again.known(ENDPOINT, "shop/b/http"), Known::NotYet, "nobody asked for it");

        let mut bytes = std::fs::read(&file).unwrap();
        for cut in [0, 10, 40, bytes.len() - 1] {
            std::fs::write(&file, &bytes[..cut]).unwrap();
            assert_eq!(Upstream::new("n1", file.clone()).known(WORKLOAD, "shop/a"), Known::NotYet);
        }
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(Upstream::new("n1", file).known(WORKLOAD, "shop/a"), Known::NotYet);
    }
}
