//! What is the same for everybody: load assignments, and workloads for hosts.

use std::collections::HashMap;
use std::sync::Arc;

use outrider_intent::model::{Engine, Protocol, Role, Service, ServiceRef};
use outrider_xds::Resource;
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::envoy::config::endpoint::v3 as endpoint;
use outrider_xds_types::workload::{Workload, WorkloadPort};
use outrider_xds_types::{names, type_url};

use crate::envoy::{resource, socket_address};
use crate::view::View;
use crate::{ByZone, Endpoint, outbound};

pub(crate) fn load_assignment(service: &ServiceRef, port: &str, endpoints: &[Endpoint]) -> Arc<Resource> {
    with_failover(service, port, &ByZone::from([("", endpoints.to_vec())]), &[])
}

/// One priority for the service's own endpoints and one for each of the others, in their order. Where calls fail over, a
/// service without endpoints has an empty locality, so that nobody's priority changes with it.
pub(crate) fn with_failover(
    service: &ServiceRef,
    port: &str,
    own: &ByZone<'_>,
    others: &[(&ServiceRef, ByZone<'_>)],
) -> Arc<Resource> {
    let name = names::endpoints(&service.namespace, &service.name, port);
    let mut localities = localities(own, 0, None);
    if !others.is_empty() && localities.is_empty() {
        localities.push(endpoint::LocalityLbEndpoints::default());
    }
    for (priority, (other, endpoints)) in (1..).zip(others) {
        let mut further = self::localities(endpoints, priority, Some(other));
        if further.is_empty() {
            further.push(locality("", priority, Some(other), Vec::new()));
        }
        localities.extend(further);
    }
    let assignment = endpoint::ClusterLoadAssignment {
        cluster_name: name.clone(),
        endpoints: localities,
        ..Default::default()
    };
    resource(type_url::ENDPOINT, &name, &assignment)
}

/// One for each zone that has endpoints, in the order of their names.
fn localities(
    by_zone: &ByZone<'_>,
    priority: u32,
    of: Option<&ServiceRef>,
) -> Vec<endpoint::LocalityLbEndpoints> {
    let with_any = by_zone.iter().filter(|(_, endpoints)| !endpoints.is_empty());
    let one = |(zone, endpoints): (&&str, &Vec<Endpoint>)| {
        let mut sorted: Vec<&Endpoint> = endpoints.iter().collect();
        sorted.sort();
        sorted.dedup();
        locality(zone, priority, of, sorted.into_iter().map(|at| lb_endpoint(at, of)).collect())
    };
    with_any.map(one).collect()
}

/// Other services have a name in it: agents keep them apart by that.
fn locality(
    zone: &str,
    priority: u32,
    of: Option<&ServiceRef>,
    lb_endpoints: Vec<endpoint::LbEndpoint>,
) -> endpoint::LocalityLbEndpoints {
    let sub_zone = of.map(ToString::to_string).unwrap_or_default();
    let named = !zone.is_empty() || !sub_zone.is_empty();
    endpoint::LocalityLbEndpoints {
        locality: named.then(|| core::Locality { zone: zone.to_owned(), sub_zone, ..Default::default() }),
        lb_endpoints,
        priority,
        ..Default::default()
    }
}

fn lb_endpoint(at: &Endpoint, of: Option<&ServiceRef>) -> endpoint::LbEndpoint {
    let metadata = of.map(|service| core::Metadata {
        filter_metadata: HashMap::from([(
            names::TRANSPORT_SOCKET_MATCH.to_owned(),
            names::of_service(&service.to_string()),
        )]),
        ..Default::default()
    });
    endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(socket_address(&at.address.to_string(), at.port)),
            ..Default::default()
        })),
        metadata,
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
