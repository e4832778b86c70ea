//! Listeners towards the own application: who is it, may it call, then loopback.
//!
//! | mtls | filter chains |
//! |---|---|
//! | `required` | `mtls`: client certificate, then access by SPIFFE ID |
//! | `both` | `mtls` as above for TLS; `plaintext` for everything else, without an access decision |
//! | `off` | `plaintext` |
//!
//! On TCP ports Envoy's access filter decides at the first byte of the caller, too late where the application
//! speaks first. So the TLS context of these ports names the callers as well, and for others the handshake fails.

use std::collections::HashMap;

use outrider_intent::model::{Mtls, Port, Protocol, Role, Service};
use outrider_xds_types::names::{self, ListenerMetadata};
use outrider_xds_types::pb::envoy::config::core::v3::TrafficDirection;
use outrider_xds_types::pb::envoy::config::listener::v3 as listener;
use outrider_xds_types::pb::envoy::config::rbac::v3 as rbac;
use outrider_xds_types::pb::envoy::config::route::v3 as route;
use outrider_xds_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use outrider_xds_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrider_xds_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as TcpRbac;
use outrider_xds_types::type_url;

use crate::envoy::{any, resource, seconds, socket_address};
use crate::http::{self, ClientCertificates, Manager};
use crate::outbound::tcp_filter;
use crate::view::View;
use crate::{Note, ProxyResources, clusters, routes, tls};

use route::route_action::ClusterSpecifier;

/// Idle limit of HTTP connections from callers. They give them up a little earlier.
pub(crate) const CONNECTION_IDLE_SECONDS: u64 = 300;

/// How long a plaintext TCP connection may be silent before it is taken for one whose server speaks first.
const DETECTION_SECONDS: u64 = 1;

pub(crate) fn compile(view: &View<'_>, service: &Service, proxy: &mut ProxyResources) {
    if service.role == Role::Client {
        return;
    }
    for port in &service.ports {
        if matches!(port.protocol, Protocol::Http2 | Protocol::Grpc) {
            proxy.notes.push(Note::ProtocolNotSupported {
                service: service.id.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
            });
            continue;
        }
        let name = names::inbound(&port.name);
        proxy.resources.insert(resource(type_url::LISTENER, &name, &listener(view, service, port, &name)));
        proxy.resources.insert(resource(type_url::CLUSTER, &name, &clusters::inbound(port)));
    }
}

fn listener(view: &View<'_>, service: &Service, port: &Port, name: &str) -> listener::Listener {
    let metadata = ListenerMetadata {
        service: service.id.to_string(),
        port_name: port.name.clone(),
        port: port.port,
        names: Vec::new(),
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
        filters: filters(view, service, port, name, true),
        transport_socket: Some(tls::downstream(port.protocol, callers(view, service, port))),
        ..Default::default()
    };
    let plaintext = || listener::FilterChain {
        name: "plaintext".to_owned(),
        filters: filters(view, service, port, name, false),
        ..Default::default()
    };
    match view.mtls(&service.id) {
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
    port: &Port,
    name: &str,
    authenticated: bool,
) -> Vec<listener::Filter> {
    if port.protocol == Protocol::Tcp {
        let access = authenticated.then(|| listener::Filter {
            name: "envoy.filters.network.rbac".to_owned(),
            config_type: Some(listener::filter::ConfigType::TypedConfig(any(&TcpRbac {
                rules: Some(callers_only(view, service)),
                stat_prefix: name.to_owned(),
                ..Default::default()
            }))),
        });
        let forward = tcp_filter(name, name, view.tcp_idle(&service.id));
        return access.into_iter().chain([forward]).collect();
    }
    let access = authenticated.then(|| {
        let rules = Some(callers_only(view, service));
        http::filter("envoy.filters.http.rbac", &HttpRbac { rules, ..Default::default() })
    });
    let forward = routes::forward(ClusterSpecifier::Cluster(name.to_owned()), service, None);
    let mut routes = routes::configuration(
        name,
        vec![route::Route {
            name: "default".to_owned(),
            r#match: Some(routes::prefix("/")),
            action: Some(route::route::Action::Route(forward)),
            ..Default::default()
        }],
    );
    routes.request_headers_to_remove = forgeries();
    vec![http::manager(Manager {
        name,
        timeouts: &service.timeouts,
        connection_idle: CONNECTION_IDLE_SECONDS,
        routes: hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes),
        filters: access.into_iter().collect(),
        client_certificates: authenticated.then_some(ClientCertificates),
    })]
}

/// `x-forwarded-client-cert` with underscores in place of some hyphens: applications that see fields as variables
/// read them as the same field, and Envoy takes away only the one with hyphens.
fn forgeries() -> Vec<String> {
    let parts = ["x", "forwarded", "client", "cert"];
    (1..1_u8 << (parts.len() - 1))
        .map(|underscores| {
            let mut name = parts[0].to_owned();
            for (n, part) in parts[1..].iter().enumerate() {
                name.push(if underscores >> n & 1 == 1 { '_' } else { '-' });
                name.push_str(part);
            }
            name
        })
        .collect()
}

/// Whom the handshake lets in; `None` is everybody with a certificate of the mesh.
fn callers(view: &View<'_>, service: &Service, port: &Port) -> Option<Vec<String>> {
    if port.protocol != Protocol::Tcp {
        return None;
    }
    let callers: Vec<String> = view.callers(&service.id).map(|caller| view.spiffe_id(caller)).collect();
    Some(if callers.is_empty() { vec![view.nobody()] } else { callers })
}

/// Lets the declared callers pass. Without any, nobody: an `ALLOW` without policies denies.
fn callers_only(view: &View<'_>, service: &Service) -> rbac::Rbac {
    let principals: Vec<rbac::Principal> = view
        .callers(&service.id)
        .map(|caller| rbac::Principal {
            identifier: Some(rbac::principal::Identifier::Authenticated(rbac::principal::Authenticated {
                principal_name: Some(tls::exactly(view.spiffe_id(caller))),
            })),
        })
        .collect();
    let everything = rbac::Permission { rule: Some(rbac::permission::Rule::Any(true)) };
    let policies = match principals.is_empty() {
        true => HashMap::new(),
        // One entry, so that the encoding of the map is a function of its content.
        false => HashMap::from([(
            "callers".to_owned(),
            rbac::Policy { permissions: vec![everything], principals, ..Default::default() },
        )]),
    };
    rbac::Rbac { action: rbac::rbac::Action::Allow as i32, policies, ..Default::default() }
}
