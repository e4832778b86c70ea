//! Listeners towards called services, with their routes and clusters.

use std::collections::BTreeMap;

use outrider_intent::model::{BackendRef, HashKey, InboundLimits, Port, Protocol, Role, Service};
use outrider_xds_types::names::{self, ListenerMetadata};
use outrider_xds_types::pb::envoy::config::core::v3::TrafficDirection;
use outrider_xds_types::pb::envoy::config::listener::v3 as listener;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrider_xds_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use outrider_xds_types::pb::envoy::r#type::v3 as types;
use outrider_xds_types::type_url;

use crate::envoy::{any, limit, over_ads, resource, socket_address, uint};
use crate::http::{self, Manager};
use crate::view::View;
use crate::{Note, ProxyResources, clusters, routes, traffic};

/// Endpoints tried before a TCP connection is given up.
pub const MAX_CONNECT_ATTEMPTS: u32 = 3;

/// Idle limit of connections from the application: long, so that its own pool closes first.
const APPLICATION_IDLE_SECONDS: u64 = 3600;

pub(crate) fn compile(view: &View<'_>, service: &Service, proxy: &mut ProxyResources) {
    if service.role == Role::Server {
        return;
    }
    for missing in &service.missing_calls {
        proxy.notes.push(Note::MissingService { service: missing.clone() });
    }
    let mut clusters = BTreeMap::new();
    for callee in &service.calls {
        let Some(callee) = view.intent.services.get(callee) else {
            proxy.notes.push(Note::MissingService { service: callee.clone() });
            continue;
        };
        for port in &callee.ports {
            let name = names::outbound(&callee.id.namespace, &callee.id.name, &port.name);
            let (filter, targets) = match port.protocol {
                Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
                    let routes = routes::compile(view, service.engine, callee, port, &mut proxy.notes);
                    proxy.resources.insert(resource(type_url::ROUTE, &name, &routes.configuration));
                    (http_filter(callee, port, &name), routes.targets)
                }
                Protocol::Tcp => tcp_route(view, callee, port, &name, &mut proxy.notes),
            };
            for (target, port) in targets {
                let gone = target.traffic.failover.iter().map(|one| &one.service);
                for service in gone.filter(|id| !view.intent.services.contains_key(*id)) {
                    let (of, service) = (target.id.clone(), service.clone());
                    proxy.notes.push(Note::MissingFailover { of, service });
                }
                let cluster = clusters::outbound(view, service.engine, target, port);
                clusters.insert(cluster.name.clone(), cluster);
            }
            let listener = listener(service, callee, port, &name, filter);
            proxy.resources.insert(resource(type_url::LISTENER, &name, &listener));
        }
    }
    for (name, cluster) in clusters {
        proxy.resources.insert(resource(type_url::CLUSTER, &name, &cluster));
    }
}

/// The names of the listeners that [`compile`] makes, sorted, without making them: hosts are told these for every
/// service, whether or not it runs.
pub(crate) fn listener_names(view: &View<'_>, service: &Service) -> Vec<String> {
    if service.role == Role::Server {
        return Vec::new();
    }
    let callees = service.calls.iter().filter_map(|callee| view.intent.services.get(callee));
    let mut names: Vec<String> = callees
        .flat_map(|callee| callee.ports.iter().map(move |port| (&callee.id, port)))
        .map(|(id, port)| names::outbound(&id.namespace, &id.name, &port.name))
        .collect();
    names.sort_unstable();
    names
}

fn listener(
    caller: &Service,
    callee: &Service,
    port: &Port,
    name: &str,
    filter: listener::Filter,
) -> listener::Listener {
    let (id, full) = (&callee.id, format!("{}.{}", callee.id.name, callee.id.namespace));
    let neighbour = caller.id.namespace == id.namespace;
    let metadata = ListenerMetadata {
        service: id.to_string(),
        port_name: port.name.clone(),
        port: port.port,
        names: neighbour.then(|| id.name.clone()).into_iter().chain([full]).collect(),
        finishing: Vec::new(),
    };
    listener::Listener {
        name: name.to_owned(),
        address: Some(socket_address("0.0.0.0", port.port)),
        filter_chains: vec![listener::FilterChain {
            name: "plaintext".to_owned(),
            filters: vec![filter],
            ..Default::default()
        }],
        metadata: Some(metadata.to_metadata()),
        traffic_direction: TrafficDirection::Outbound as i32,
        ..Default::default()
    }
}

/// Bytes to the called service, or to where its route leads.
fn tcp_route<'a>(
    view: &View<'a>,
    callee: &'a Service,
    port: &'a Port,
    name: &str,
    notes: &mut Vec<Note>,
) -> (listener::Filter, Vec<(&'a Service, &'a Port)>) {
    let mut targets = Vec::new();
    let mut weighted = Vec::new();
    if let Some(route) = view.tcp_route(&callee.id, port.port) {
        for BackendRef { service, port, weight } in &route.backends {
            let Some((service, port)) = view.port(service, *port, Protocol::Tcp) else {
                notes.push(Note::UnusableBackend {
                    route: (route.namespace.clone(), route.name.clone()),
                    service: service.clone(),
                    port: *port,
                });
                continue;
            };
            targets.push((service, port));
            if *weight > 0 {
                let name = names::outbound(&service.id.namespace, &service.id.name, &port.name);
                weighted.push((name, *weight, service));
            }
        }
    }
    if weighted.is_empty() {
        // No route; a route has a destination with a weight, or is refused when it is declared.
        targets.push((callee, port));
        weighted.push((name.to_owned(), 1, callee));
    }
    let by_address = weighted.iter().any(|(.., service)| {
        let balancing = &service.traffic.balancing;
        balancing.policy.hashes() && balancing.hash_keys.contains(&HashKey::SourceAddress)
    });
    let clusters = weighted.into_iter().map(|(name, weight, _)| (name, weight)).collect();
    (tcp_filter(name, clusters, by_address, view.tcp_idle(&callee.id)), targets)
}

fn http_filter(callee: &Service, port: &Port, name: &str) -> listener::Filter {
    http::manager(Manager {
        name,
        protocol: port.protocol,
        upgrades: &port.upgrades,
        remote: false,
        timeouts: &callee.timeouts,
        // Of the application of this host: what its callees take is their proxies' affair.
        limits: InboundLimits::default(),
        connection_idle: APPLICATION_IDLE_SECONDS,
        routes: hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            config_source: Some(over_ads()),
            route_config_name: name.to_owned(),
        }),
        filters: traffic::fault_filter(callee).into_iter().collect(),
        client_certificates: None,
    })
}

/// Bytes in both directions to one of these clusters, by weight.
pub(crate) fn tcp_filter(
    name: &str,
    clusters: Vec<(String, u32)>,
    by_address: bool,
    idle: Option<std::time::Duration>,
) -> listener::Filter {
    use tcp::tcp_proxy::weighted_cluster::ClusterWeight;
    let specifier = match clusters.as_slice() {
        [(only, _)] => tcp::tcp_proxy::ClusterSpecifier::Cluster(only.clone()),
        _ => tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(tcp::tcp_proxy::WeightedCluster {
            clusters: clusters
                .into_iter()
                .map(|(name, weight)| ClusterWeight { name, weight, ..Default::default() })
                .collect(),
        }),
    };
    let source = types::HashPolicy {
        policy_specifier: Some(types::hash_policy::PolicySpecifier::SourceIp(
            types::hash_policy::SourceIp {},
        )),
    };
    let config = tcp::TcpProxy {
        stat_prefix: name.to_owned(),
        idle_timeout: Some(limit(idle)),
        max_connect_attempts: Some(uint(MAX_CONNECT_ATTEMPTS)),
        hash_policy: by_address.then_some(source).into_iter().collect(),
        cluster_specifier: Some(specifier),
        ..Default::default()
    };
    listener::Filter {
        name: "envoy.filters.network.tcp_proxy".to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(any(&config))),
    }
}
