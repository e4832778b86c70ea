//! A real Envoy checks everything that the golden cases compile to. Needs `OUTRIDER_ENVOY` = path of Envoy.

use std::process::Command;

use outrider_xds_types::pb::envoy::config::bootstrap::v3::{Bootstrap, bootstrap};
use outrider_xds_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::envoy::config::listener::v3::{Filter, Listener, filter::ConfigType};
use outrider_xds_types::pb::envoy::config::route::v3::{self as route, RouteConfiguration};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrider_xds_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use outrider_xds_types::prost::{Message, Name};

use super::*;
use crate::envoy::{any, socket_address};

use hcm::http_connection_manager::RouteSpecifier;

const CASES: [(&str, &str); 12] = [
    ("calls-itself", include_str!("cases/calls-itself.yaml")),
    ("cross-namespace", include_str!("cases/cross-namespace.yaml")),
    ("engines", include_str!("cases/engines.yaml")),
    ("lonely", include_str!("cases/lonely.yaml")),
    ("many-ports", include_str!("cases/many-ports.yaml")),
    ("mtls-both", include_str!("cases/mtls-both.yaml")),
    ("mtls-off", include_str!("cases/mtls-off.yaml")),
    ("mtls-required", include_str!("cases/mtls-required.yaml")),
    ("no-limits", include_str!("cases/no-limits.yaml")),
    ("nobody-calls", include_str!("cases/nobody-calls.yaml")),
    ("routes", include_str!("cases/routes.yaml")),
    ("weight-zero", include_str!("cases/weight-zero.yaml")),
];

fn decode_all<M: Message + Default>(set: &ResourceSet, type_url: &str) -> Vec<M> {
    set.of_type(type_url).map(|r| M::decode(r.body.as_slice()).expect("decodes")).collect()
}

fn manager(filter: &Filter) -> Option<hcm::HttpConnectionManager> {
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { return None };
    (any.type_url == hcm::HttpConnectionManager::type_url())
        .then(|| Message::decode(any.value.as_slice()).expect("decodes"))
}

/// The routes in the connection manager of a chain.
pub(super) fn inline_routes(
    chain: &outrider_xds_types::pb::envoy::config::listener::v3::FilterChain,
) -> RouteConfiguration {
    match chain.filters.iter().find_map(manager).expect("a connection manager").route_specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => routes,
        other => panic!("routes in line: {other:?}"),
    }
}

/// Names of clusters in routes and TCP proxies.
pub(super) fn referenced_clusters(set: &ResourceSet) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut configurations: Vec<RouteConfiguration> = decode_all(set, type_url::ROUTE);
    for listener in decode_all::<Listener>(set, type_url::LISTENER) {
        for filter in listener.filter_chains.iter().flat_map(|chain| &chain.filters) {
            if let Some(manager) = manager(filter)
                && let Some(RouteSpecifier::RouteConfig(inline)) = manager.route_specifier
            {
                configurations.push(inline);
            }
            if let Some(ConfigType::TypedConfig(any)) = &filter.config_type
                && any.type_url == tcp::TcpProxy::type_url()
            {
                let proxy = tcp::TcpProxy::decode(any.value.as_slice()).expect("decodes");
                if let Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name)) = proxy.cluster_specifier {
                    found.insert(name);
                }
            }
        }
    }
    for route in configurations.iter().flat_map(|c| &c.virtual_hosts).flat_map(|host| &host.routes) {
        let Some(route::route::Action::Route(action)) = &route.action else { continue };
        match &action.cluster_specifier {
            Some(route::route_action::ClusterSpecifier::Cluster(name)) => {
                found.insert(name.clone());
            }
            Some(route::route_action::ClusterSpecifier::WeightedClusters(weighted)) => {
                found.extend(weighted.clusters.iter().map(|cluster| cluster.name.clone()));
            }
            other => panic!("a route without cluster: {other:?}"),
        }
    }
    found
}

/// One static bootstrap of all resources of a proxy. Route configurations are put in line, because Envoy only
/// checks what it has; addresses are made distinct, as an agent does.
fn bootstrap(set: &ResourceSet) -> Bootstrap {
    let routes: BTreeMap<String, RouteConfiguration> = decode_all(set, type_url::ROUTE)
        .into_iter()
        .map(|routes: RouteConfiguration| (routes.name.clone(), routes))
        .collect();
    let mut listeners: Vec<Listener> = decode_all(set, type_url::LISTENER);
    for (index, listener) in listeners.iter_mut().enumerate() {
        let host = u8::try_from(index + 1).expect("few");
        listener.address = Some(socket_address(&format!("127.64.0.{host}"), 8080));
        for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            let Some(mut manager) = manager(filter) else { continue };
            if let Some(RouteSpecifier::Rds(rds)) = &manager.route_specifier {
                let inline = RouteConfiguration {
                    validate_clusters: Some(crate::envoy::boolean(true)),
                    ..routes[&rds.route_config_name].clone()
                };
                manager.route_specifier = Some(RouteSpecifier::RouteConfig(inline));
                filter.config_type = Some(ConfigType::TypedConfig(any(&manager)));
            }
        }
    }
    let mut clusters: Vec<Cluster> = decode_all(set, type_url::CLUSTER);
    clusters.push(Cluster {
        name: "agent".into(),
        connect_timeout: Some(crate::envoy::seconds(1)),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Static as i32,
        )),
        ..Cluster::default()
    });
    let agent = core::grpc_service::EnvoyGrpc { cluster_name: "agent".into(), ..Default::default() };
    let ads = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::DeltaGrpc as i32,
        transport_api_version: core::ApiVersion::V3 as i32,
        grpc_services: vec![core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(agent)),
            ..Default::default()
        }],
        ..Default::default()
    };
    Bootstrap {
        node: Some(core::Node {
            id: "shop/web-00000".into(),
            cluster: "shop/web".into(),
            ..Default::default()
        }),
        static_resources: Some(bootstrap::StaticResources { listeners, clusters, ..Default::default() }),
        dynamic_resources: Some(bootstrap::DynamicResources { ads_config: Some(ads), ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn envoy_accepts_every_case() {
    let Some(envoy) = std::env::var_os("OUTRIDER_ENVOY") else {
        println!("skipped: OUTRIDER_ENVOY is not set");
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("bootstrap.pb");
    let validate = |bootstrap: &Bootstrap| {
        std::fs::write(&file, bootstrap.encode_to_vec()).expect("written");
        let mut command = Command::new(&envoy);
        command.args(["--mode", "validate", "-l", "warning", "--config-path"]).arg(&file);
        command.output().expect("envoy runs")
    };
    for (case, yaml) in CASES {
        let intent = intent(yaml);
        for id in intent.services.keys() {
            let proxy = proxy(&intent, &id.to_string());
            let output = validate(&bootstrap(&proxy.resources));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{case}, {id}: {said}");
            let complaints: Vec<&str> =
                said.lines().filter(|line| line.contains("eprecated") || line.contains("[error]")).collect();
            assert!(complaints.is_empty(), "{case}, {id}: {complaints:#?}");
        }
    } // It does look: a route to a cluster that is not there is refused.
    let mut broken = bootstrap(&proxy(&intent(SHOP), "shop/checkout").resources);
    let clusters = &mut broken.static_resources.as_mut().expect("resources").clusters;
    clusters.retain(|cluster| cluster.name != "outbound/shop/inventory-v2/http");
    assert!(!validate(&broken).status.success());
}

/// An Envoy that is ended with its test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// One request on a connection of its own; retried until somebody listens. The whole answer.
fn get(address: std::net::SocketAddr, envoy: &mut Running) -> String {
    use std::io::{Read, Write};
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut stream = loop {
        if let Ok(stream) = std::net::TcpStream::connect(address) {
            break stream;
        }
        assert!(envoy.0.try_wait().expect("a child").is_none(), "envoy ended");
        assert!(std::time::Instant::now() < deadline, "nobody listens at {address}");
        std::thread::yield_now();
    };
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("a timeout");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn envoy_says_why_in_our_words() {
    let Some(envoy) = std::env::var_os("OUTRIDER_ENVOY") else {
        println!("skipped: OUTRIDER_ENVOY is not set");
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let down = ("mtls-off", "shop/api", "HTTP/1.1 503", "connect_failed");
    let nowhere = ("weight-zero", "shop/web", "HTTP/1.1 500", "no_backends");
    for (case, of, status, reason) in [down, nowhere] {
        let (_, yaml) = CASES.iter().find(|(name, _)| *name == case).expect("a case");
        let mut bootstrap = bootstrap(&proxy(&intent(yaml), of).resources);
        // No agent is there to ask: only what is static stays. Ports that nobody has.
        let free = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("bound")
        };
        let (listens, application) = (free(), free());
        let resources = bootstrap.static_resources.as_mut().expect("resources");
        resources.clusters.retain(|cluster| cluster.eds_cluster_config.is_none());
        for cluster in &mut resources.clusters {
            if let Some(assignment) = &mut cluster.load_assignment {
                let at = socket_address("127.0.0.1", application.port());
                let endpoint = outrider_xds_types::pb::envoy::config::endpoint::v3::Endpoint {
                    address: Some(at),
                    ..Default::default()
                };
                assignment.endpoints[0].lb_endpoints[0].host_identifier = Some(
                    outrider_xds_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier::Endpoint(
                        endpoint,
                    ),
                );
            }
        }
        resources.listeners[0].address = Some(socket_address("127.0.0.1", listens.port()));
        bootstrap.dynamic_resources = None;
        let file = directory.path().join("bootstrap.pb");
        std::fs::write(&file, bootstrap.encode_to_vec()).expect("written");
        let mut command = Command::new(&envoy);
        command.args(["--disable-hot-restart", "--concurrency", "1", "-l", "error", "--config-path"]);
        let mut envoy = Running(command.arg(&file).spawn().expect("envoy runs"));
        let answer = get(listens, &mut envoy);
        assert!(answer.starts_with(status), "{case}: {answer}");
        assert!(answer.contains(&format!("{REASON_HEADER}: {reason}\r\n")), "{case}: {answer}");
    }
}
