//! Listeners towards the own application: who is it, may it call, then loopback.
//!
//! | mtls | filter chains |
//! |---|---|
//! | `required` | `mtls`: client certificate, then access by SPIFFE ID and access policies |
//! | `both` | `mtls` as above for TLS; `plaintext` for everything else, where only access policies decide |
//! | `off` | `plaintext` |
//!
//! On TCP ports Envoy's access filter decides at the first byte of the caller, too late where the application
//! speaks first. So the TLS context of these ports names the callers as well, and for others the handshake fails.

use outrider_intent::model::{Mtls, Port, Protocol, Role, Service};
use outrider_xds_types::names::{self, ListenerMetadata};
use outrider_xds_types::pb::envoy::config::core::v3::TrafficDirection;
use outrider_xds_types::pb::envoy::config::listener::v3 as listener;
use outrider_xds_types::pb::envoy::config::route::v3 as route;
use outrider_xds_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrider_xds_types::type_url;

use crate::access::{Access, Side};
use crate::ambiguous::alike;
use crate::envoy::{any, limit, resource, seconds, socket_address};
use crate::http::{self, ClientCertificates, Manager};
use crate::outbound::tcp_filter;
use crate::staged::{Accepts, Kept};
use crate::view::View;
use crate::{ProxyResources, clusters, routes, tls, traffic};

use route::route_action::ClusterSpecifier;

/// Idle limit of HTTP connections from callers. They give them up a little earlier.
pub(crate) const CONNECTION_IDLE_SECONDS: u64 = 300;

/// How long a plaintext TCP connection may be silent before it is taken for one whose server speaks first.
const DETECTION_SECONDS: u64 = 1;

pub(crate) fn compile<'a>(
    view: &View<'a>,
    service: &'a Service,
    kept: Option<&'a Kept>,
    proxy: &mut ProxyResources,
) {
    if service.role == Role::Client && kept.is_none_or(Kept::is_finishing) {
        return;
    }
    let accepts = Accepts::new(view, service, kept);
    for port in &accepts.ports {
        let name = names::inbound(&port.name);
        proxy.resources.insert(resource(
            type_url::LISTENER,
            &name,
            &listener(view, service, &accepts, port, &name),
        ));
        proxy.resources.insert(resource(type_url::CLUSTER, &name, &clusters::inbound(port)));
    }
}

fn listener(
    view: &View<'_>,
    service: &Service,
    accepts: &Accepts<'_>,
    port: &Port,
    name: &str,
) -> listener::Listener {
    let access = Access::new(view, service, port, accepts);
    let metadata = ListenerMetadata {
        service: service.id.to_string(),
        port_name: port.name.clone(),
        port: port.port,
        names: Vec::new(),
        finishing: access.finishing(),
    };
    let mut listener = listener::Listener {
        name: name.to_owned(),
        address: Some(socket_address("0.0.0.0", 0)),
        metadata: Some(metadata.to_metadata()),
        traffic_direction: TrafficDirection::Inbound as i32,
        ..Default::default()
    };
    let authenticated = || listener::FilterChain {
        name: "mtls".to_owned(),
        filters: filters(view, service, &access, port, name, Side::Authenticated),
        transport_socket: Some(tls::downstream(port.protocol, access.handshake())),
        ..Default::default()
    };
    let plaintext = || listener::FilterChain {
        name: "plaintext".to_owned(),
        filters: filters(view, service, &access, port, name, Side::Plaintext),
        ..Default::default()
    };
    match accepts.mtls {
        Mtls::Required => listener.filter_chains = vec![authenticated()],
        Mtls::Off => listener.filter_chains = vec![plaintext()],
        Mtls::Both => {
            listener.filter_chains =
                vec![for_transport(authenticated(), "tls"), for_transport(plaintext(), "raw_buffer")];
            listener.listener_filters = vec![listener::ListenerFilter {
                name: "envoy.filters.listener.tls_inspector".to_owned(),
                config_type: Some(listener::listener_filter::ConfigType::TypedConfig(any(
                    &TlsInspector::default(),
                ))),
                ..Default::default()
            }];
            if port.protocol == Protocol::Tcp {
                listener.listener_filters_timeout = Some(seconds(DETECTION_SECONDS));
                listener.continue_on_listener_filters_timeout = true;
            }
        }
    }
    listener
}

fn for_transport(mut chain: listener::FilterChain, transport: &str) -> listener::FilterChain {
    chain.filter_chain_match =
        Some(listener::FilterChainMatch { transport_protocol: transport.to_owned(), ..Default::default() });
    chain
}

fn filters(
    view: &View<'_>,
    service: &Service,
    access: &Access<'_>,
    port: &Port,
    name: &str,
    side: Side,
) -> Vec<listener::Filter> {
    if port.protocol == Protocol::Tcp {
        let access = access.network(side, name).into_iter().map(|any| listener::Filter {
            name: "envoy.filters.network.rbac".to_owned(),
            config_type: Some(listener::filter::ConfigType::TypedConfig(any)),
        });
        let forward = tcp_filter(name, vec![(name.to_owned(), 1)], false, view.tcp_idle(&service.id));
        return access.chain([forward]).collect();
    }
    // The application is one, and near: nothing is tried again, and nothing balanced.
    let forward = route::RouteAction {
        timeout: Some(limit(None)),
        idle_timeout: Some(limit(service.timeouts.idle_of(port.protocol))),
        cluster_specifier: Some(ClusterSpecifier::Cluster(name.to_owned())),
        ..Default::default()
    };
    let mut routes = routes::configuration(
        name,
        vec![route::Route {
            name: "default".to_owned(),
            r#match: Some(routes::everything()),
            action: Some(route::route::Action::Route(forward)),
            ..Default::default()
        }],
    );
    // Envoy takes away only the one with hyphens, and an application may not know the difference.
    routes.request_headers_to_remove = alike("x-forwarded-client-cert").split_off(1);
    // Who may not call takes nothing of the rate.
    let filters = access.http(side).into_iter().chain(traffic::rate_limit_filter(service, port.protocol));
    vec![http::manager(Manager {
        name,
        protocol: port.protocol,
        upgrades: &port.upgrades,
        remote: side == Side::Authenticated,
        timeouts: &service.timeouts,
        limits: service.traffic.inbound,
        connection_idle: CONNECTION_IDLE_SECONDS,
        routes: hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes),
        filters: filters.collect(),
        client_certificates: (side == Side::Authenticated).then_some(ClientCertificates),
    })]
}
