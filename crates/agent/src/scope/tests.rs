use outrider_xds::refers;
use outrider_xds_types::pack;
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::EdsClusterConfig;
use outrider_xds_types::pb::envoy::config::listener::v3::{Filter, FilterChain};
use outrider_xds_types::pb::envoy::config::route::v3::{Route, RouteAction, VirtualHost};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::Rds;
use outrider_xds_types::workload::WorkloadPort;

use super::*;

const PROXY: &str = "shop/checkout-x7k2p";

fn listener(name: &str, port: u16, names: &[&str], http: bool) -> Resource {
    let metadata = ListenerMetadata {
        service: "shop/inventory".into(),
        port_name: "http".into(),
        port,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        finishing: Vec::new(),
    };
    let mut listener = Listener {
        name: name.to_owned(),
        address: Some(socket_address(([0, 0, 0, 0], port).into())),
        metadata: Some(metadata.to_metadata()),
        ..Listener::default()
    };
    if http {
        let rds = Rds { route_config_name: name.to_owned(), ..Rds::default() };
        let manager = HttpConnectionManager {
            route_specifier: Some(RouteSpecifier::Rds(rds)),
            ..HttpConnectionManager::default()
        };
        let config = filter::ConfigType::TypedConfig(pack(HTTP_CONNECTION_MANAGER, &manager));
        let filter = Filter { config_type: Some(config), ..Filter::default() };
        listener.filter_chains = vec![FilterChain { filters: vec![filter], ..FilterChain::default() }];
    }
    resource(type_url::LISTENER, name, listener.encode_to_vec())
}

fn resource(type_url: &str, name: &str, body: Vec<u8>) -> Resource {
    Resource::new(type_url, names::scoped(type_url, PROXY, name), "v1", body)
}

fn routes(name: &str, cluster: &str) -> Resource {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..RouteAction::default()
    };
    let route = Route { action: Some(route::Action::Route(action)), ..Route::default() };
    let host = VirtualHost { routes: vec![route], ..VirtualHost::default() };
    let config = RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![host],
        ..RouteConfiguration::default()
    };
    resource(type_url::ROUTE, name, config.encode_to_vec())
}

fn cluster(name: &str, eds: Option<&str>) -> Resource {
    let cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: eds.map(|_| ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: eds
            .map(|name| EdsClusterConfig { service_name: name.to_owned(), ..EdsClusterConfig::default() }),
        ..Cluster::default()
    };
    resource(type_url::CLUSTER, name, cluster.encode_to_vec())
}

const OUT: &str = "outbound/shop/inventory/http";
const EDS: &str = "shop/inventory/http";

fn whole() -> Vec<Resource> {
    vec![
        listener("inbound/http", 80, &[], false),
        cluster("inbound/http", None),
        listener(OUT, 80, &["inventory", "inventory.shop"], true),
        routes(OUT, OUT),
        cluster(OUT, Some(EDS)),
        Resource::new(type_url::ENDPOINT, EDS, "e1", Vec::new()),
    ]
}

fn set(resources: impl IntoIterator<Item = Resource>) -> ResourceSet {
    let mut set = ResourceSet::new();
    for resource in resources {
        set.insert(resource);
    }
    // Another proxy's listener, whose name starts alike.
    let other = names::scoped(type_url::LISTENER, "shop/checkout-x7k2pq", "inbound/http");
    set.insert(Resource::new(type_url::LISTENER, other, "v9", Vec::new()));
    set
}

fn workload() -> Workload {
    let port = WorkloadPort { name: "http".into(), target_port: 8080, protocol: "http".into() };
    Workload {
        service: "shop/checkout".into(),
        ports: vec![port],
        outbound: vec![OUT.into()],
        ..Workload::default()
    }
}

fn missing(set: &ResourceSet) -> Option<String> {
    Scope::read(set, PROXY).missing(&workload(), |name| set.get(type_url::ENDPOINT, name).is_some())
}

#[test]
fn a_set_is_whole_only_when_every_part_of_it_is_there() {
    assert_eq!(missing(&set(whole())), None);
    for (without, said) in [
        (0, "listener inbound/http"),
        (1, "cluster inbound/http"),
        (2, "listener outbound/shop/inventory/http"),
        (3, "routes outbound/shop/inventory/http"),
        (4, "cluster outbound/shop/inventory/http"),
        (5, "endpoints of shop/inventory/http"),
    ] {
        let mut resources = whole();
        resources.remove(without);
        let reason = missing(&set(resources)).unwrap();
        assert!(reason.starts_with(said), "{reason}");
    }
}

#[test]
fn listeners_say_which_sockets_they_need() {
    let mut resources = whole();
    resources.push(resource(type_url::LISTENER, "outbound/bad", vec![0xff]));
    let (wanted, unreadable) = Scope::read(&set(resources), PROXY).wanted();
    let brief: Vec<_> =
        wanted.iter().map(|w| (w.listener.as_str(), w.inbound, w.port, w.names.len())).collect();
    assert_eq!(brief, [("inbound/http", true, 80, 0), (OUT, false, 80, 2)]);
    assert_eq!(unreadable, ["listener outbound/bad does not say what it is for"]);
}

#[test]
fn localising_puts_addresses_in_and_leaves_out_what_has_no_socket() {
    let set = set(whole());
    let address: SocketAddr = ([127, 64, 0, 7], 80).into();
    let local = Scope::read(&set, PROXY).localise(&BTreeMap::from([(OUT.to_owned(), address)]), &set);

    let names: Vec<_> = local
        .iter()
        .map(|r| (r.type_url.rsplit('.').next().unwrap().to_owned(), r.name.to_string()))
        .collect();
    let expect = [
        ("Cluster", "inbound/http"),
        ("Cluster", OUT),
        ("ClusterLoadAssignment", EDS),
        ("Listener", OUT),
        ("RouteConfiguration", OUT),
    ];
    assert_eq!(names, expect.map(|(kind, name)| (kind.to_owned(), name.to_owned())));

    let before = set.get(type_url::LISTENER, &names::scoped(type_url::LISTENER, PROXY, OUT)).unwrap();
    let after = local.get(type_url::LISTENER, OUT).unwrap();
    assert_eq!(after.version, before.version);
    let mut expect = Listener::decode(before.body.as_slice()).unwrap();
    expect.address = Some(socket_address(address));
    expect.stat_prefix = OUT.to_owned();
    assert_eq!(
        Listener::decode(after.body.as_slice()).unwrap(),
        expect,
        "only the address differs, and the name of its numbers"
    );
}

#[test]
fn what_has_gone_is_answered_in_its_place() {
    let set = set(whole());
    let address: SocketAddr = ([127, 64, 0, 7], 80).into();
    let scope = Scope::read(&set, PROXY);
    let local = scope.localise(&BTreeMap::from([(OUT.to_owned(), address)]), &set);
    let wanted = scope.wanted().0.into_iter().find(|w| w.listener == OUT).unwrap();
    let made = retire(&local, OUT, &wanted).unwrap();
    assert!(made.iter().all(|resource| &*resource.version == RETIRED));
    assert_eq!(made[0].body, local.get(type_url::LISTENER, OUT).unwrap().body, "its connections stay");
    assert_eq!((made.len(), &*made[1].name), (2, OUT), "no cluster is left to be kept");
    let routes = RouteConfiguration::decode(made[1].body.as_slice()).unwrap();
    let only = &routes.virtual_hosts[0].routes[0];
    let Some(route::Action::DirectResponse(answer)) = &only.action else { panic!("{only:?}") };
    assert_eq!(answer.status, 503);
    assert_eq!(only.response_headers_to_add[0].header.as_ref().unwrap().value, "unknown_service");
    assert_eq!(retire(&local, "outbound/never/served/http", &wanted), None);
}

/// A listener for TCP that leads to these clusters.
fn tcp_listener(name: &str, clusters: &[&str]) -> Resource {
    use tcp_proxy::ClusterSpecifier;
    use tcp_proxy::weighted_cluster::ClusterWeight;
    let specifier = match clusters {
        [only] => ClusterSpecifier::Cluster((*only).to_owned()),
        _ => ClusterSpecifier::WeightedClusters(tcp_proxy::WeightedCluster {
            clusters: clusters
                .iter()
                .map(|name| ClusterWeight { name: (*name).to_owned(), weight: 1, ..ClusterWeight::default() })
                .collect(),
        }),
    };
    let proxy = TcpProxy { cluster_specifier: Some(specifier), ..TcpProxy::default() };
    let config = filter::ConfigType::TypedConfig(pack(TCP_PROXY, &proxy));
    let filter = Filter { config_type: Some(config), ..Filter::default() };
    let served = listener(name, 80, &["inventory"], false);
    let mut listener = Listener::decode(served.body.as_slice()).unwrap();
    listener.filter_chains = vec![FilterChain { filters: vec![filter], ..FilterChain::default() }];
    resource(type_url::LISTENER, name, listener.encode_to_vec())
}

/// Whatever it led to, a next process finds all that it leads to now, and nobody behind it.
#[test]
fn connections_to_what_has_gone_lead_to_a_cluster_of_their_own() {
    let [a, b] = ["outbound/shop/db-a/tcp", "outbound/shop/db-b/tcp"];
    for clusters in [&[OUT][..], &[a], &[a, b], &[OUT, a]] {
        let mut resources = vec![tcp_listener(OUT, clusters)];
        resources.extend(clusters.iter().map(|name| cluster(name, Some(EDS))));
        resources.push(Resource::new(type_url::ENDPOINT, EDS, "e1", Vec::new()));
        let set = set(resources);
        let address: SocketAddr = ([127, 64, 0, 7], 80).into();
        let scope = Scope::read(&set, PROXY);
        let local = scope.localise(&BTreeMap::from([(OUT.to_owned(), address)]), &set);
        let wanted = scope.wanted().0.pop().unwrap();
        let made = retire(&local, OUT, &wanted).unwrap();
        assert!(made.iter().all(|resource| &*resource.version == RETIRED));
        let made: ResourceSet = made.into_iter().collect();
        let mut followed = made.get(type_url::LISTENER, OUT).map(|one| refers::of(one)).unwrap();
        let mut all = 0;
        while let Some((url, name)) = followed.pop() {
            let resource = made.get(url, &name).unwrap_or_else(|| panic!("{url} {name} of {clusters:?}"));
            assert!(local.get(url, &name).is_none(), "{name} may stay for others");
            followed.extend(refers::of(resource));
            all += 1;
        }
        assert_eq!(all, 2, "a cluster and its endpoints");
        let nobody = made.of_type(type_url::ENDPOINT).next().unwrap();
        let nobody = ClusterLoadAssignment::decode(nobody.body.as_slice()).unwrap();
        assert_eq!(nobody.endpoints, []);

        // Another agent makes the same of what was kept.
        let again: ResourceSet = retire(&made, OUT, &wanted).unwrap().into_iter().collect();
        assert!(again.iter().eq(made.iter()));
    }
    let alone = set(vec![tcp_listener(OUT, &[a, b])]);
    let scope = Scope::read(&alone, PROXY);
    let local = scope.localise(&BTreeMap::from([(OUT.to_owned(), ([127, 64, 0, 7], 80).into())]), &alone);
    assert_eq!(retire(&local, OUT, &scope.wanted().0[0]), None, "as agents kept it before");
}
