//! Server and client against each other over a network in memory that delays, breaks and reorders answers.
//!
//! Versions say what is in a resource, as those of many servers do: what was there before comes back under its name.
//! Updates of a stream that broke may come into use on the next one.
//!
//! The client's configuration refers: a listener to its routes, routes to a cluster, a cluster to endpoints. The
//! model checks at every step that what is in use has what it refers to, and at the end that both sides agree
//! and fall silent.

use std::collections::VecDeque;

use outrider_xds_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url::{CLUSTER as CDS, ROUTE as RDS};
use proptest::prelude::*;

use super::*;
use crate::server::tests::listener_with_routes;
use crate::server::{Options, Seen, Session};
use crate::set::ResourceSet;

const SERVICES: u8 = 4;

#[derive(Clone, Debug)]
enum Step {
    /// The route leads to this service from now on; its cluster is added, the others go.
    Route(u8),
    /// One of two versions of a cluster, of endpoints.
    Cluster(u8, bool),
    Endpoints(u8, bool),
    /// The routes become such that the client refuses them.
    Poison,
    /// One message gets through.
    ToServer,
    ToClient,
    /// The client puts an update into use: of the type that waits longest, or of the one that came last.
    Apply(bool),
    Disconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..SERVICES).prop_map(Step::Route),
        1 => (0..SERVICES, any::<bool>()).prop_map(|(service, other)| Step::Cluster(service, other)),
        1 => (0..SERVICES, any::<bool>()).prop_map(|(service, other)| Step::Endpoints(service, other)),
        1 => Just(Step::Poison),
        6 => Just(Step::ToServer),
        6 => Just(Step::ToClient),
        6 => any::<bool>().prop_map(Step::Apply),
        1 => Just(Step::Disconnect),
    ];
    proptest::collection::vec(step, 0..200)
}

type Content = (String, Vec<u8>);

struct World {
    set: ResourceSet,
    target: u8,
    session: Session,
    client: Client,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    to_client: VecDeque<DeltaDiscoveryResponse>,
    waiting: Vec<Update>,
    /// In use at the client: type → name → (version, body).
    used: BTreeMap<Arc<str>, BTreeMap<String, Content>>,
    /// What was last said of a name that is in use.
    latest: BTreeMap<(Arc<str>, String), Token>,
    responses: usize,
}

fn version(other: bool) -> &'static str {
    if other { "2" } else { "1" }
}

fn cluster_name(service: u8) -> String {
    format!("s{service}")
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            set: ResourceSet::new(),
            target: 0,
            session: Session::new(Options::for_proxy()),
            client: client(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            waiting: Vec::new(),
            used: BTreeMap::new(),
            latest: BTreeMap::new(),
            responses: 0,
        };
        world.put(LDS, "listener", "1", listener_with_routes("routes"));
        world.route(0, false);
        world.client.subscribe(CDS, ["*"]);
        world.client.subscribe(LDS, ["*"]);
        world.to_server.extend(world.client.connect());
        world
    }

    fn put(&mut self, type_url: &str, name: &str, version: &str, body: Vec<u8>) {
        self.set.insert(Resource::new(type_url, name, version, body));
    }

    fn endpoints(&mut self, service: u8, other: bool) {
        self.put(EDS, &cluster_name(service), version(other), Vec::new());
    }

    fn cluster(&mut self, service: u8, other: bool) {
        let name = cluster_name(service);
        let eds = cluster::DiscoveryType::Eds as i32;
        let message = Cluster {
            name: name.clone(),
            cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(eds)),
            ..Default::default()
        };
        self.put(CDS, &name, version(other), message.encode_to_vec());
    }

    /// As compiled: the route's target with its cluster and endpoints, and nothing else.
    fn route(&mut self, service: u8, poisoned: bool) {
        self.target = service;
        let name = cluster_name(service);
        if self.set.get(CDS, &name).is_none() {
            self.cluster(service, false);
            self.endpoints(service, false);
        }
        let body = if poisoned { "poison".to_owned() } else { name };
        self.put(RDS, "routes", &body, body.clone().into_bytes());
        for other in (0..SERVICES).filter(|other| *other != service).map(cluster_name) {
            self.set.remove(CDS, &other);
            self.set.remove(EDS, &other);
        }
    }

    fn poll(&mut self) {
        let responses = self.session.poll(&self.set);
        self.responses += responses.len();
        self.to_client.extend(responses);
    }

    fn deliver_to_server(&mut self) {
        if let Some(request) = self.to_server.pop_front() {
            for seen in self.session.on_request(&request).expect("within limits") {
                if let Seen::Refused { resources, .. } = seen {
                    assert!(resources.iter().all(|(name, _)| &**name == "routes"), "only routes are refused");
                }
            }
        }
        self.poll();
    }

    fn deliver_to_client(&mut self) {
        if let Some(response) = self.to_client.pop_front() {
            let update = self.client.on_response(response).expect("well-formed");
            let of_this_stream = |open: &&Update| !self.is_late(open);
            let open = self.waiting.iter().filter(of_this_stream);
            for open in open.filter(|open| open.type_url == update.type_url) {
                let twice = update.added.iter().any(|new| {
                    open.added.iter().any(|r| r.name == new.name)
                        || open.removed.iter().any(|r| **r == *new.name)
                });
                assert!(!twice, "one open answer per resource");
            }
            self.waiting.push(update);
        }
    }

    /// Whether it came on a stream that is over.
    fn is_late(&self, update: &Update) -> bool {
        self.client.open[&update.token].stream != self.client.stream
    }

    fn apply(&mut self, oldest: bool) {
        if self.waiting.is_empty() {
            return;
        }
        let update = self.waiting.remove(if oldest { 0 } else { self.waiting.len() - 1 });
        if update.added.iter().any(|resource| resource.body == b"poison") {
            // Said of the response, or of the resource.
            let request = if update.token.0.is_multiple_of(2) {
                self.client.nack(update.token, "poisoned")
            } else {
                self.client.refuse(update.token, &[("routes".to_owned(), "poisoned".to_owned())])
            };
            self.to_server.extend(request);
            return;
        }
        let used = self.used.entry(update.type_url.clone()).or_default();
        let latest = &mut self.latest;
        let mut is_news = |name: &str| {
            let latest = latest.entry((update.type_url.clone(), name.to_owned())).or_insert(update.token);
            *latest = update.token.max(*latest);
            *latest == update.token
        };
        for name in &update.removed {
            if is_news(name) {
                used.remove(name);
            }
        }
        let interest = self.client.interest(&update.type_url);
        for resource in &update.added {
            let wanted = interest.is_some_and(|interest| interest.covers(&resource.name));
            if is_news(&resource.name) && wanted {
                let content = (resource.version.to_string(), resource.body.clone());
                used.insert(resource.name.to_string(), content);
            }
        }
        // Children are wanted as long as their parents are there.
        let parents: Vec<String> = used.keys().cloned().collect();
        match &*update.type_url {
            CDS => self.follow(EDS, &parents),
            LDS => self.follow(RDS, &parents.iter().map(|_| "routes".to_owned()).collect::<Vec<_>>()),
            _ => {}
        }
        self.to_server.extend(self.client.requests());
        self.to_server.extend(self.client.ack(update.token));
        self.check_references();
    }

    fn follow(&mut self, type_url: &str, wanted: &[String]) {
        let before: Vec<String> =
            self.client.interest(type_url).map(|interest| interest.iter().collect()).unwrap_or_default();
        self.client.unsubscribe(type_url, before.iter().filter(|name| !wanted.contains(name)));
        self.client.subscribe(type_url, wanted);
        if let Some(used) = self.used.get_mut(type_url) {
            used.retain(|name, _| wanted.contains(name));
        }
    }

    fn has(&self, type_url: &str, name: &str) -> bool {
        self.used.get(type_url).is_some_and(|resources| resources.contains_key(name))
    }

    /// Make before break: routes in use lead to a cluster that is there and has its endpoints.
    fn check_references(&self) {
        let Some((_, target)) = self.used.get(RDS).and_then(|routes| routes.get("routes")) else { return };
        let target = str::from_utf8(target).expect("a name");
        assert!(self.has(CDS, target), "routes lead to {target}, which has no cluster");
        assert!(self.has(EDS, target), "routes lead to {target}, which has no endpoints");
    }

    fn disconnect(&mut self) {
        self.to_server.clear();
        self.to_client.clear();
        // Updates of the old stream may come into use on the new one. Forgotten are those whose use the new server would
        // have to know of to make before it breaks: what takes something away, and routes, which lead somewhere.
        self.waiting.retain(|update| update.removed.is_empty() && *update.type_url != *RDS);
        self.client.disconnected();
        self.session = Session::new(Options::for_proxy());
        self.to_server.extend(self.client.connect());
    }

    /// Lets everything through until both sides are silent.
    fn quiesce(&mut self) {
        let before = self.responses;
        self.poll();
        while !(self.to_server.is_empty() && self.to_client.is_empty() && self.waiting.is_empty()) {
            self.deliver_to_server();
            self.deliver_to_client();
            self.apply(true);
            assert!(self.responses - before < 100, "resends in a loop");
        }
        let settled = self.responses;
        self.poll();
        assert_eq!(self.responses, settled, "silent when all is said");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn both_sides_agree_in_the_end(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Route(service) => world.route(service, false),
                Step::Cluster(service, other) => {
                    if world.set.get(CDS, &cluster_name(service)).is_some() {
                        world.cluster(service, other);
                    }
                }
                Step::Endpoints(service, other) => {
                    if world.set.get(EDS, &cluster_name(service)).is_some() {
                        world.endpoints(service, other);
                    }
                }
                Step::Poison => world.route(world.target, true),
                Step::ToServer => world.deliver_to_server(),
                Step::ToClient => world.deliver_to_client(),
                Step::Apply(oldest) => world.apply(oldest),
                Step::Disconnect => world.disconnect(),
            }
            world.poll();
        }
        // Refused: it comes to rest without a loop, last good intact.
        world.route(world.target, true);
        world.quiesce();
        world.check_references();
        // Corrected: everything is as it should be.
        world.route(world.target, false);
        world.quiesce();
        let wanted: BTreeMap<(String, String), String> = world
            .set
            .iter()
            .map(|r| ((r.type_url.to_string(), r.name.to_string()), r.version.to_string()))
            .collect();
        let mut used = BTreeMap::new();
        for (type_url, resources) in &world.used {
            for (name, (version, _)) in resources {
                used.insert((type_url.to_string(), name.clone()), version.clone());
            }
        }
        prop_assert_eq!(&used, &wanted);
        for ((type_url, name), version) in &wanted {
            let held = world.client.held(type_url).find(|(held, _)| ***held == **name);
            prop_assert_eq!(held.map(|(_, version)| version.to_string()), Some(version.clone()));
        }
    }
}
