//! What is in use lives on while a later version of it cannot be used yet: endpoints, routes and certificates reach it, and
//! what is acknowledged is where traffic runs. What nobody wants any more is neither kept nor held against anybody.

use std::net::SocketAddr;
use std::sync::Arc;

use outrider_proxy::assemble::{Arrival, Assembler, Item};
use outrider_proxy::config::{Cluster, Listener, Service, Snapshot};
use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster as WireCluster;
use outrider_xds_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrider_xds_types::pb::envoy::config::listener::v3::{Listener as WireListener, filter};
use outrider_xds_types::pb::envoy::config::route::v3::{
    RouteConfiguration, route::Action, route_action::ClusterSpecifier,
};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use outrider_xds_types::prost::Message;
use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID, type_url};

use super::mesh::of_api;
use super::support::*;

const KINDS: [&str; 5] =
    [type_url::CLUSTER, type_url::ENDPOINT, type_url::LISTENER, type_url::ROUTE, type_url::SECRET];
/// Another list of endpoints.
const OTHER: &str = "shop/other/main";
/// Places of types among what is asked for.
const ROUTES: usize = 0;
const LISTS: usize = 1;
const SECRETS: usize = 2;

/// An assembler, and what it gave last.
#[derive(Default)]
struct Bench {
    assembler: Assembler,
    snapshot: Arc<Snapshot>,
    sockets: Sockets,
}

impl Bench {
    /// With all of this in use.
    fn new(set: &ResourceSet) -> Self {
        let mut bench = Self::default();
        let set = localised(set, &mut bench.sockets);
        for (name, socket) in &bench.sockets {
            bench.assembler.add_sockets(name, socket.local_addr().unwrap());
        }
        for kind in KINDS {
            bench.ingest(kind, set.of_type(kind));
        }
        bench.follow();
        assert!(bench.assembler.is_complete(true));
        bench
    }

    fn ingest<'a>(
        &mut self,
        kind: &str,
        resources: impl IntoIterator<Item = &'a Arc<Resource>>,
    ) -> Vec<Item> {
        let arrivals = resources.into_iter().map(|resource| Arrival {
            name: &resource.name,
            version: &resource.version,
            body: &resource.body,
        });
        let ingested = self.assembler.ingest(&kind.into(), arrivals, &[]);
        assert!(ingested.refused.is_empty(), "{:?}", ingested.refused);
        ingested.items
    }

    /// Takes in a resource of this set, and uses what can be used. Whether that is in use.
    fn take(&mut self, set: &ResourceSet, kind: &str, name: &str) -> bool {
        let items = self.ingest(kind, [set.get(kind, name).unwrap()]);
        self.follow();
        items.iter().all(|item| self.assembler.is_in_use(item))
    }

    fn take_endpoints(&mut self, addresses: &[SocketAddr]) -> bool {
        let set = [Resource::clone(&assignment(ENDPOINTS, addresses))].into_iter().collect();
        self.take(&set, type_url::ENDPOINT, ENDPOINTS)
    }

    fn remove(&mut self, kind: &str, name: &str) {
        self.assembler.ingest(&kind.into(), [], &[name.to_owned()]);
        self.follow();
    }

    /// Uses what can be used; the same once more is nothing at all.
    fn follow(&mut self) {
        if let Some(snapshot) = self.assembler.assemble() {
            self.snapshot = snapshot;
        }
        assert!(self.assembler.assemble().is_none(), "something changed although nothing was changed");
    }

    fn listener(&self, name: &str) -> Arc<Listener> {
        Arc::clone(&self.snapshot.listeners[name])
    }

    fn cluster(&self, name: &str) -> Arc<Cluster> {
        let mut clusters = self.snapshot.clusters.iter().flatten();
        Arc::clone(clusters.find(|cluster| *cluster.name == *name).unwrap())
    }

    fn leads_to(&self) -> Vec<SocketAddr> {
        self.cluster(OUTBOUND).endpoints.iter().map(|endpoint| endpoint.key).collect()
    }

    fn wants(&self, of: usize) -> Vec<&str> {
        self.assembler.interest()[of].1.iter().map(String::as_str).collect()
    }
}

fn addresses(last: u8) -> [SocketAddr; 1] {
    [SocketAddr::from(([10, 0, 0, last], 80))]
}

fn web(mtls: &str) -> ResourceSet {
    let mut set = compiled(&pair("http", mtls, 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &addresses(1)));
    set
}

/// The same whose routes lead nowhere.
fn without_routes(set: &ResourceSet) -> ResourceSet {
    let mut set = set.clone();
    edit(&mut set, type_url::ROUTE, OUTBOUND, |table: &mut RouteConfiguration| table.virtual_hosts.clear());
    set
}

fn named_by(set: &mut ResourceSet, list: &str) {
    edit(set, type_url::CLUSTER, OUTBOUND, |cluster: &mut WireCluster| {
        cluster.eds_cluster_config.as_mut().unwrap().service_name = list.to_owned();
    });
}

/// Has the listener take its routes from the table of this name.
fn routed_by(set: &mut ResourceSet, table: &str) {
    edit(set, type_url::LISTENER, OUTBOUND, |listener: &mut WireListener| {
        let filter = listener.filter_chains[0].filters.last_mut().unwrap();
        let Some(filter::ConfigType::TypedConfig(any)) = &mut filter.config_type else { panic!() };
        let mut manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
        let Some(RouteSpecifier::Rds(rds)) = &mut manager.route_specifier else { panic!() };
        rds.route_config_name = table.to_owned();
        any.value = manager.encode_to_vec();
    });
}

/// The same with the listener where it has no socket.
fn elsewhere(bench: &mut Bench, set: &ResourceSet, name: &str) -> ResourceSet {
    let socket = Arc::new(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    bench.sockets.insert(name.to_owned(), socket);
    localised(set, &mut bench.sockets)
}

fn routes_of(listener: &Listener) -> usize {
    let Some(Service::Http(http)) = &listener.plain else { panic!("it has routes") };
    Arc::as_ptr(&http.routes) as usize
}

#[test]
fn endpoints_reach_a_cluster_whose_next_version_waits_for_certificates() {
    let mut bench = Bench::new(&web("off"));
    let (listener, authority) = (bench.listener(OUTBOUND), Authority::new());
    let secure = web("required");
    assert!(!bench.take(&secure, type_url::CLUSTER, OUTBOUND), "there are no certificates");
    for last in 2..4 {
        assert!(bench.take_endpoints(&addresses(last)));
        assert_eq!(bench.leads_to(), addresses(last));
        assert!(bench.cluster(OUTBOUND).tls.is_none());
    }
    let shared = Arc::clone(&bench.cluster(OUTBOUND).shared);
    assert!(Arc::ptr_eq(&listener, &bench.listener(OUTBOUND)), "made again though nothing of it changed");
    bench.ingest(type_url::SECRET, &authority.secrets("shop/web"));
    bench.follow();
    let cluster = bench.cluster(OUTBOUND);
    assert!(cluster.tls.is_some() && Arc::ptr_eq(&cluster.shared, &shared));
    assert_eq!(bench.leads_to(), addresses(3));
}

#[test]
fn a_list_is_wanted_for_as_long_as_it_is_led_to() {
    let (mut bench, mut other) = (Bench::new(&web("off")), web("off"));
    named_by(&mut other, OTHER);
    assert!(!bench.take(&other, type_url::CLUSTER, OUTBOUND), "its endpoints are not there");
    assert_eq!(bench.wants(LISTS), [ENDPOINTS, OTHER]);
    assert!(bench.take_endpoints(&addresses(2)));
    assert_eq!(bench.leads_to(), addresses(2));
    other.insert(assignment(OTHER, &addresses(3)));
    assert!(bench.take(&other, type_url::ENDPOINT, OTHER));
    assert_eq!(bench.leads_to(), addresses(3));
    assert_eq!(bench.wants(LISTS), [OTHER]);
}

#[test]
fn a_withdrawn_cluster_follows_its_endpoints_while_something_leads_to_it() {
    let mut bench = Bench::new(&web("off"));
    bench.remove(type_url::CLUSTER, OUTBOUND);
    assert_eq!(bench.wants(LISTS), [ENDPOINTS]);
    assert!(bench.take_endpoints(&addresses(2)));
    assert_eq!(bench.leads_to(), addresses(2));
    // They go with it: that is no reason to end what works.
    bench.remove(type_url::ENDPOINT, ENDPOINTS);
    assert_eq!(bench.leads_to(), addresses(2));
    let mut back = web("off");
    edit(&mut back, type_url::CLUSTER, OUTBOUND, |cluster: &mut WireCluster| cluster.connect_timeout = None);
    assert!(!bench.take(&back, type_url::CLUSTER, OUTBOUND), "its endpoints are those of before");
    assert!(bench.take_endpoints(&addresses(3)));
    assert_eq!(bench.leads_to(), addresses(3));
    // Nothing leads there any more.
    assert!(bench.take(&without_routes(&back), type_url::ROUTE, OUTBOUND));
    bench.remove(type_url::CLUSTER, OUTBOUND);
    assert_eq!(bench.wants(LISTS), [] as [&str; 0]);
    assert!(bench.snapshot.clusters.iter().all(Option::is_none));
}

#[test]
fn routes_reach_a_listener_whose_next_version_waits() {
    let set = web("off");
    let mut bench = Bench::new(&set);
    let (first, mut moved) = (bench.listener(OUTBOUND), set.clone());
    routed_by(&mut moved, "other");
    let moved = elsewhere(&mut bench, &moved, OUTBOUND);
    assert!(!bench.take(&moved, type_url::LISTENER, OUTBOUND), "it has no socket, and no routes");
    assert!(Arc::ptr_eq(&first, &bench.listener(OUTBOUND)), "made again though nothing of it changed");
    assert_eq!(bench.wants(ROUTES), ["other", OUTBOUND]);
    assert!(bench.take(&without_routes(&set), type_url::ROUTE, OUTBOUND));
    let second = bench.listener(OUTBOUND);
    assert_eq!(second.address, first.address);
    assert_ne!(routes_of(&second), routes_of(&first), "acknowledged, and not in use");
    assert!(bench.take_endpoints(&addresses(2)));
    assert!(Arc::ptr_eq(&second, &bench.listener(OUTBOUND)), "endpoints are no affair of listeners");

    let other = bench.sockets[OUTBOUND].local_addr().unwrap();
    bench.assembler.add_sockets(OUTBOUND, other);
    bench.follow();
    let table = set.get(type_url::ROUTE, OUTBOUND).unwrap().renamed("other");
    assert!(bench.take(&[table].into_iter().collect(), type_url::ROUTE, "other"));
    assert_eq!(bench.listener(OUTBOUND).address, other);
    assert_eq!(bench.wants(ROUTES), ["other"]);
}

/// The next version of its listener, which has no sockets so far and routes of another name.
fn led_anew(bench: &mut Bench, set: &ResourceSet) -> Item {
    let mut moved = set.clone();
    routed_by(&mut moved, "other");
    let moved = elsewhere(bench, &moved, OUTBOUND);
    let listener = moved.get(type_url::LISTENER, OUTBOUND).unwrap();
    let [item] = bench.ingest(type_url::LISTENER, [listener]).try_into().unwrap();
    item
}

#[test]
fn a_listener_says_that_it_waits_for_a_cluster_of_routes_that_were_whole() {
    let set = web("off");
    let mut bench = Bench::new(&set);
    let item = led_anew(&mut bench, &set);
    let at = bench.sockets[OUTBOUND].local_addr().unwrap();
    bench.follow();
    assert_eq!(bench.assembler.waits_for(&item), format!("waits for its sockets at {at}"));
    let table = set.get(type_url::ROUTE, OUTBOUND).unwrap().renamed("other");
    assert!(bench.take(&[table].into_iter().collect(), type_url::ROUTE, "other"));
    // Nothing that is in use leads to the cluster any more, and it goes.
    assert!(bench.take(&without_routes(&set), type_url::ROUTE, OUTBOUND));
    bench.remove(type_url::CLUSTER, OUTBOUND);
    bench.assembler.add_sockets(OUTBOUND, at);
    bench.follow();
    assert!(!bench.assembler.is_in_use(&item));
    assert_eq!(bench.assembler.waits_for(&item), format!("waits for cluster {OUTBOUND}"));
    assert_eq!(bench.assembler.hopeless(&item), None, "it may come back");

    // It comes back as nothing that could be used, and then the routes are about to lead to another one.
    let mut bad = set.clone();
    edit(&mut bad, type_url::CLUSTER, OUTBOUND, |cluster: &mut WireCluster| {
        cluster.lb_subset_config = Some(Default::default());
    });
    let bad = bad.get(type_url::CLUSTER, OUTBOUND).unwrap();
    let arrival = Arrival { name: OUTBOUND, version: &bad.version, body: &bad.body };
    assert_eq!(bench.assembler.ingest(&type_url::CLUSTER.into(), [arrival], &[]).refused.len(), 1);
    assert!(bench.assembler.hopeless(&item).is_some());
    let mut next = set.clone();
    edit(&mut next, type_url::ROUTE, OUTBOUND, |table: &mut RouteConfiguration| {
        for route in table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            let Some(Action::Route(action)) = &mut route.action else { panic!() };
            action.cluster_specifier = Some(ClusterSpecifier::Cluster(OTHER.to_owned()));
        }
    });
    edit(&mut next, type_url::CLUSTER, OUTBOUND, |cluster: &mut WireCluster| {
        cluster.name = OTHER.to_owned();
        cluster.eds_cluster_config.as_mut().unwrap().service_name = OTHER.to_owned();
    });
    let renamed = |kind, name| [Arc::new(next.get(kind, OUTBOUND).unwrap().renamed(name))];
    bench.ingest(type_url::CLUSTER, &renamed(type_url::CLUSTER, OTHER));
    bench.ingest(type_url::ROUTE, &renamed(type_url::ROUTE, "other"));
    bench.follow();
    assert_eq!(bench.assembler.hopeless(&item), None, "the next routes lead elsewhere");
    assert_eq!(bench.assembler.waits_for(&item), format!("waits for cluster {OTHER}"));
    let list = [Arc::new(Resource::clone(&assignment(OTHER, &addresses(1))))];
    bench.ingest(type_url::ENDPOINT, &list);
    bench.follow();
    assert!(bench.assembler.is_in_use(&item));
}

#[test]
fn a_listener_is_used_once_the_cluster_of_routes_that_were_whole_is_back() {
    let set = web("off");
    let mut bench = Bench::new(&set);
    let item = led_anew(&mut bench, &set);
    let table = set.get(type_url::ROUTE, OUTBOUND).unwrap().renamed("other");
    assert!(bench.take(&[table].into_iter().collect(), type_url::ROUTE, "other"));
    assert!(bench.take(&without_routes(&set), type_url::ROUTE, OUTBOUND));
    bench.remove(type_url::CLUSTER, OUTBOUND);
    bench.assembler.add_sockets(OUTBOUND, bench.sockets[OUTBOUND].local_addr().unwrap());
    bench.follow();
    assert!(!bench.assembler.is_in_use(&item));
    assert!(bench.take(&set, type_url::CLUSTER, OUTBOUND) || bench.take_endpoints(&addresses(1)));
    assert!(bench.assembler.is_in_use(&item));
}

#[test]
fn certificates_reach_a_listener_whose_next_version_waits() {
    let (authority, yaml) = (Authority::new(), pair("http", "required", 1, ""));
    let set = of_api(&yaml, &authority);
    let mut bench = Bench::new(&set);
    let config = |bench: &Bench| Arc::clone(&bench.listener(INBOUND).tls.as_ref().unwrap().0);
    let (first, at) = (config(&bench), bench.listener(INBOUND).address);
    let moved = elsewhere(&mut bench, &set, INBOUND);
    assert!(!bench.take(&moved, type_url::LISTENER, INBOUND), "it has no socket");
    assert!(Arc::ptr_eq(&first, &config(&bench)));
    let renewed = authority.secrets("shop/api");
    bench.ingest(type_url::SECRET, &renewed);
    bench.follow();
    let second = config(&bench);
    assert!(!Arc::ptr_eq(&first, &second), "it goes on with certificates of before");
    assert_eq!(bench.listener(INBOUND).address, at);
    // Sessions of callers stay resumable in what comes after it, too.
    bench.assembler.add_sockets(INBOUND, bench.sockets[INBOUND].local_addr().unwrap());
    bench.follow();
    assert!(Arc::ptr_eq(&second, &config(&bench)));
    assert_ne!(bench.listener(INBOUND).address, at);
}

#[test]
fn certificates_that_nobody_wants_are_not_kept_for_who_wants_them_later() {
    let authority = Authority::new();
    let mut set = web("required");
    let (old, new) = (authority.secrets("shop/web"), authority.secrets("shop/web"));
    for secret in old {
        set.insert(secret);
    }
    let mut bench = Bench::new(&set);
    assert_eq!(bench.wants(SECRETS), [SECRET_BUNDLE, SECRET_SVID]);
    assert!(bench.take(&web("off"), type_url::CLUSTER, OUTBOUND));
    assert_eq!(bench.wants(SECRETS), [] as [&str; 0]);
    // They may have ended meanwhile.
    assert!(!bench.take(&set, type_url::CLUSTER, OUTBOUND), "in use with certificates of before");
    assert!(bench.cluster(OUTBOUND).tls.is_none(), "what works stays");
    assert_eq!(bench.wants(SECRETS), [SECRET_BUNDLE, SECRET_SVID]);
    bench.ingest(type_url::SECRET, &new);
    bench.follow();
    assert!(bench.cluster(OUTBOUND).tls.is_some());
}

#[test]
fn what_was_refused_and_wanted_no_more_is_held_against_nobody() {
    let mut set = web("off");
    for kind in [type_url::LISTENER, type_url::ROUTE] {
        set.remove(kind, OUTBOUND);
    }
    let good = Arc::clone(set.get(type_url::ENDPOINT, ENDPOINTS).unwrap());
    edit(&mut set, type_url::ENDPOINT, ENDPOINTS, |list: &mut ClusterLoadAssignment| {
        list.named_endpoints.insert("x".to_owned(), Default::default());
    });
    let bad = set.get(type_url::ENDPOINT, ENDPOINTS).unwrap();
    let refuse = |bench: &mut Bench| {
        let arrival = Arrival { name: ENDPOINTS, version: &bad.version, body: &bad.body };
        let ingested = bench.assembler.ingest(&type_url::ENDPOINT.into(), [arrival], &[]);
        assert_eq!(ingested.refused.len(), 1);
        bench.follow();
    };
    let mut bench = Bench::default();
    let cluster = set.get(type_url::CLUSTER, OUTBOUND).unwrap();
    let [first] = bench.ingest(type_url::CLUSTER, [cluster]).try_into().unwrap();
    bench.follow();
    refuse(&mut bench);
    let why = bench.assembler.hopeless(&first).expect("it waits for what was refused");
    assert!(why.contains("named_endpoints"), "{why}");

    bench.remove(type_url::CLUSTER, OUTBOUND);
    assert_eq!(bench.wants(LISTS), [] as [&str; 0]);
    let [back] = bench.ingest(type_url::CLUSTER, [cluster]).try_into().unwrap();
    bench.follow();
    assert_eq!(bench.assembler.hopeless(&back), None, "its endpoints were not heard of yet");
    assert_eq!(bench.assembler.waits_for(&back), format!("waits for endpoints {ENDPOINTS}"));
    bench.ingest(type_url::ENDPOINT, [&good]);
    bench.follow();
    assert!(bench.assembler.is_in_use(&back));
}

/// A call at this address is answered by `name`.
async fn answers(at: SocketAddr, name: &str) {
    let mut app = super::binary::connect(at).await;
    app.send(GET).await;
    let (head, body) = app.response().await;
    assert_eq!(body, name, "{head}");
}

#[tokio::test]
async fn calls_follow_acknowledged_endpoints_while_their_cluster_waits_for_certificates() {
    let (a, b) = (Origin::bind().await.answer_all("a"), Origin::bind().await.answer_all("b"));
    let mut proxy = client_proxy("http", &[a]).await;
    let mut set = web("required");
    set.insert(assignment(ENDPOINTS, &[a]));
    proxy.configure(set.clone()).await;
    answers(proxy.address(OUTBOUND), "a").await;
    set.insert(assignment(ENDPOINTS, &[b]));
    while proxy.seen.try_recv().is_ok() {}
    proxy.configure(set.clone()).await;
    proxy.acked(type_url::ENDPOINT).await;
    answers(proxy.address(OUTBOUND), "b").await;
}

#[tokio::test]
async fn callers_meet_acknowledged_certificates_while_their_listener_waits() {
    let (origin, old, new) = (Origin::bind().await, Authority::new(), Authority::new());
    let mut server = super::mesh::servers("http", "required", &origin, &old).await;
    let at = server.address(INBOUND);
    // Another address, of which the proxy never gets the socket.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let kept = server.sockets.insert(INBOUND.to_owned(), Arc::new(socket));
    while server.seen.try_recv().is_ok() {}
    server.configure(of_api(&pair("http", "required", origin.port(), ""), &new)).await;
    server.acked(type_url::SECRET).await;

    let mut set = super::mesh::with_secrets(&pair("http", "required", 1, ""), "shop/web", &new, "shop/web");
    set.insert(assignment(ENDPOINTS, &[at]));
    let client = Proxy::start(set).await;
    let (mut app, mut behind) = client.ask(OUTBOUND, GET, &origin).await;
    behind.send(OK).await;
    app.expect(OK).await;
    drop(kept);
}
