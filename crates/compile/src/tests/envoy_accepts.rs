//! A real Envoy checks everything that the golden cases compile to. Needs `OUTRIDER_ENVOY` = path of Envoy.

use std::process::Command;

use outrider_xds_types::pb::envoy::config::bootstrap::v3::{
    Bootstrap, LayeredRuntime, RuntimeLayer, bootstrap, runtime_layer::LayerSpecifier,
};
use outrider_xds_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::envoy::config::listener::v3::{Filter, Listener, filter::ConfigType};
use outrider_xds_types::pb::envoy::config::route::v3::{self as route, RouteConfiguration};
use outrider_xds_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrider_xds_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use outrider_xds_types::pb::google::protobuf::{Struct, Value as StructValue, value as struct_value};
use outrider_xds_types::prost::{Message, Name};

use super::*;
use crate::envoy::{any, socket_address};

use hcm::http_connection_manager::RouteSpecifier;

const CASES: [(&str, &str); 17] = [
    ("access-policies", include_str!("cases/access-policies.yaml")),
    ("calls-itself", include_str!("cases/calls-itself.yaml")),
    ("cross-namespace", include_str!("cases/cross-namespace.yaml")),
    ("engines", include_str!("cases/engines.yaml")),
    ("grpc-and-tcp-routes", include_str!("cases/grpc-and-tcp-routes.yaml")),
    ("http-routes", include_str!("cases/http-routes.yaml")),
    ("lonely", include_str!("cases/lonely.yaml")),
    ("many-ports", include_str!("cases/many-ports.yaml")),
    ("mtls-both", include_str!("cases/mtls-both.yaml")),
    ("mtls-off", include_str!("cases/mtls-off.yaml")),
    ("mtls-required", include_str!("cases/mtls-required.yaml")),
    ("no-limits", include_str!("cases/no-limits.yaml")),
    ("nobody-calls", include_str!("cases/nobody-calls.yaml")),
    ("peak-ewma", include_str!("cases/peak-ewma.yaml")),
    ("routes", include_str!("cases/routes.yaml")),
    ("traffic-policies", include_str!("cases/traffic-policies.yaml")),
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

/// The access filters in the connection manager of a chain.
pub(super) fn rbac_filters(
    chain: &outrider_xds_types::pb::envoy::config::listener::v3::FilterChain,
) -> Vec<Rbac> {
    let manager = chain.filters.iter().find_map(manager).expect("a connection manager");
    let decoded = |filter: &hcm::HttpFilter| match &filter.config_type {
        Some(hcm::http_filter::ConfigType::TypedConfig(any)) if any.type_url == Rbac::type_url() => {
            Some(Rbac::decode(any.value.as_slice()).expect("decodes"))
        }
        _ => None,
    };
    manager.http_filters.iter().filter_map(decoded).collect()
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
                match proxy.cluster_specifier {
                    Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name)) => drop(found.insert(name)),
                    Some(tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
                        found.extend(weighted.clusters.into_iter().map(|cluster| cluster.name));
                    }
                    None => panic!("a TCP proxy without a cluster"),
                }
            }
        }
    }
    for route in configurations.iter().flat_map(|c| &c.virtual_hosts).flat_map(|host| &host.routes) {
        let Some(route::route::Action::Route(action)) = &route.action else { continue };
        found.extend(action.request_mirror_policies.iter().map(|mirror| mirror.cluster.clone()));
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
pub(super) fn bootstrap(set: &ResourceSet) -> Bootstrap {
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
    // As the agent has it.
    let number = struct_value::Kind::NumberValue(100_000.0);
    let fields = [("re2.max_program_size.error_level".to_owned(), StructValue { kind: Some(number) })];
    let layer = RuntimeLayer {
        name: "static".into(),
        layer_specifier: Some(LayerSpecifier::StaticLayer(Struct { fields: fields.into() })),
    };
    Bootstrap {
        layered_runtime: Some(LayeredRuntime { layers: vec![layer] }),
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
pub(super) struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// One request on a connection of its own, each letter a byte; retried until somebody listens. The whole answer.
pub(super) fn ask(address: std::net::SocketAddr, line: &str, fields: &str, envoy: &mut Running) -> String {
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
    let host = if fields.starts_with("Host: ") { "" } else { "Host: api\r\n" };
    let request = format!("{line} HTTP/1.1\r\n{host}{fields}\r\n");
    let request: Vec<u8> =
        request.chars().map(|letter| u8::try_from(u32::from(letter)).expect("a byte")).collect();
    stream.write_all(&request).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// Runs the first listener of a bootstrap, with an application that nobody is, and without an agent: only what is
/// static stays. On ports that nobody has.
pub(super) fn start(
    envoy: &std::ffi::OsStr,
    directory: &std::path::Path,
    mut bootstrap: Bootstrap,
) -> (std::net::SocketAddr, Running) {
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("bound")
    };
    let (listens, application) = (free(), free());
    let resources = bootstrap.static_resources.as_mut().expect("resources");
    resources.clusters.retain(|cluster| cluster.eds_cluster_config.is_none());
    for cluster in resources.clusters.iter_mut().filter(|cluster| cluster.name.starts_with("inbound/")) {
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
    let file = directory.join("bootstrap.pb");
    std::fs::write(&file, bootstrap.encode_to_vec()).expect("written");
    let mut command = Command::new(envoy);
    command.args(["--disable-hot-restart", "--concurrency", "1", "-l", "error", "--config-path"]);
    (listens, Running(command.arg(&file).spawn().expect("envoy runs")))
}

#[test]
fn envoy_says_why_in_our_words() {
    let Some(envoy) = std::env::var_os("OUTRIDER_ENVOY") else {
        println!("skipped: OUTRIDER_ENVOY is not set");
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    const CLOSE: &str = "Connection: close\r\n";
    let down = ("mtls-off", "shop/api", CLOSE, "HTTP/1.1 503", "connect_failed");
    let nowhere = ("weight-zero", "shop/web", CLOSE, "HTTP/1.1 500", "no_backends");
    // Not a caller that may not call, although the status is the same.
    let upgrade = "Upgrade: foo\r\nConnection: Upgrade, close\r\n";
    let upgrade = ("mtls-off", "shop/api", upgrade, "HTTP/1.1 403", "upgrade_failed");
    for (case, of, fields, status, reason) in [down, nowhere, upgrade] {
        let (_, yaml) = CASES.iter().find(|(name, _)| *name == case).expect("a case");
        let bootstrap = bootstrap(&proxy(&intent(yaml), of).resources);
        let (listens, mut envoy) = start(&envoy, directory.path(), bootstrap);
        let answer = ask(listens, "GET /", fields, &mut envoy);
        assert!(answer.starts_with(status), "{case}: {answer}");
        assert!(answer.contains(&format!("{REASON_HEADER}: {reason}\r\n")), "{case}: {answer}");
    }
}
