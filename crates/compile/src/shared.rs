//! What is the same for everybody: load assignments, and workloads for hosts.

use std::sync::Arc;

use outrider_intent::model::{Engine, Protocol, Role, Service, ServiceRef};
use outrider_xds::Resource;
use outrider_xds_types::pb::envoy::config::endpoint::v3 as endpoint;
use outrider_xds_types::workload::{Workload, WorkloadPort};
use outrider_xds_types::{names, type_url};

use crate::envoy::{resource, socket_address};
use crate::view::View;
use crate::{Endpoint, outbound};

pub(crate) fn load_assignment(service: &ServiceRef, port: &str, endpoints: &[Endpoint]) -> Arc<Resource> {
    let name = names::endpoints(&service.namespace, &service.name, port);
    let mut sorted: Vec<&Endpoint> = endpoints.iter().collect();
    sorted.sort();
    sorted.dedup();
    let lb_endpoints: Vec<endpoint::LbEndpoint> = sorted.into_iter().map(lb_endpoint).collect();
    let localities = match lb_endpoints.is_empty() {
        true => Vec::new(),
        false => vec![endpoint::LocalityLbEndpoints { lb_endpoints, ..Default::default() }],
    };
    let assignment = endpoint::ClusterLoadAssignment {
        cluster_name: name.clone(),
        endpoints: localities,
        ..Default::default()
    };
    resource(type_url::ENDPOINT, &name, &assignment)
}

pub(crate) fn lb_endpoint(at: &Endpoint) -> endpoint::LbEndpoint {
    endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(socket_address(&at.address.to_string(), at.port)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// `calls` is the view by which the service's own calls are compiled, and the service in it.
pub(crate) fn workload(view: &View<'_>, service: &Service, calls: (&View<'_>, &Service)) -> Arc<Resource> {
    let name = service.id.to_string();
    let workload = Workload {
        service: name.clone(),
        spiffe_id: view.spiffe_id(&service.id),
        engine: engine(service.engine).to_owned(),
        role: role(service.role).to_owned(),
        ports: service
            .ports
            .iter()
            .map(|port| WorkloadPort {
                name: port.name.clone(),
                target_port: u32::from(port.target_port),
                protocol: protocol(port.protocol).to_owned(),
            })
            .collect(),
        // What a host waits for before it calls the set of a proxy whole.
        outbound: outbound::listener_names(calls.0, calls.1),
    };
    resource(type_url::WORKLOAD, &name, &workload)
}

fn engine(engine: Engine) -> &'static str {
    match engine {
        Engine::Native => "native",
        Engine::Envoy => "envoy",
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Client => "client",
        Role::Server => "server",
        Role::ClientServer => "client-server",
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "http",
        Protocol::Http2 => "http2",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
    }
}
