//! Listeners towards called services, with their routes and clusters.

use std::collections::BTreeMap;

use outrider_intent::model::{Port, Protocol, Role, Service};
use outrider_xds_types::names::{self, ListenerMetadata};
use outrider_xds_types::pb::envoy::config::core::v3::TrafficDirection;
use outrider_xds_types::pb::envoy::config::listener::v3 as listener;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrider_xds_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use outrider_xds_types::type_url;

use crate::envoy::{any, limit, over_ads, resource, socket_address, uint};
use crate::http::{self, Manager};
use crate::view::View;
use crate::{Note, ProxyResources, clusters, routes};

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
            let filter = match port.protocol {
                Protocol::Http => {
                    let routes = routes::compile(view, callee, port, &mut proxy.notes);
                    for (target, port) in routes.targets {
                        let cluster = clusters::outbound(view, target, port);
                        clusters.insert(cluster.name.clone(), cluster);
                    }
                    proxy.resources.insert(resource(type_url::ROUTE, &name, &routes.configuration));
                    http_filter(callee, &name)
                }
                Protocol::Tcp => {
                    let cluster = clusters::outbound(view, callee, port);
                    clusters.insert(cluster.name.clone(), cluster);
                    tcp_filter(&name, &name, view.tcp_idle(&callee.id))
                }
                Protocol::Http2 | Protocol::Grpc => {
                    proxy.notes.push(Note::ProtocolNotSupported {
                        service: callee.id.clone(),
                        port: port.name.clone(),
                        protocol: port.protocol,
                    });
                    continue;
                }
            };
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
        .filter(|(_, port)| matches!(port.protocol, Protocol::Http | Protocol::Tcp))
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

fn http_filter(callee: &Service, name: &str) -> listener::Filter {
    http::manager(Manager {
        name,
        timeouts: &callee.timeouts,
        connection_idle: APPLICATION_IDLE_SECONDS,
        routes: hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            config_source: Some(over_ads()),
            route_config_name: name.to_owned(),
        }),
        filters: Vec::new(),
        client_certificates: None,
    })
}

/// Bytes in both directions to one cluster.
pub(crate) fn tcp_filter(name: &str, cluster: &str, idle: Option<std::time::Duration>) -> listener::Filter {
    let config = tcp::TcpProxy {
        stat_prefix: name.to_owned(),
        idle_timeout: Some(limit(idle)),
        max_connect_attempts: Some(uint(MAX_CONNECT_ATTEMPTS)),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    listener::Filter {
        name: "envoy.filters.network.tcp_proxy".to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(any(&config))),
    }
}
