//! Clusters: to other services by EDS and mTLS, to the own application over loopback.

use std::collections::HashMap;
use std::time::Duration;

use outrider_intent::model::{Engine, InboundLimits, Mtls, Port, Protocol, Service, ServiceRef};
use outrider_xds_types::names;
use outrider_xds_types::pb::envoy::config::cluster::v3 as cluster;
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::envoy::config::endpoint::v3 as endpoint;
use outrider_xds_types::pb::envoy::extensions::upstreams::http::v3 as upstreams;
use outrider_xds_types::pb::envoy::r#type::v3::Percent;
use outrider_xds_types::prost::Name;

use crate::envoy::{any, limit, over_ads, seconds, socket_address, uint};
use crate::http::http1_options;
use crate::http2;
use crate::inbound::CONNECTION_IDLE_SECONDS;
use crate::view::View;
use crate::{tls, traffic};

use cluster::circuit_breakers::Thresholds;
use cluster::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy,
    LeastRequestLbConfig,
};
use upstreams::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config};

/// How much earlier than the server the client's side gives up an idle connection: the time in which a
/// request could meet a connection that is just being closed.
const IDLE_MARGIN_SECONDS: u64 = 4;

/// Idle limit of pooled connections to the application. Common servers keep idle connections for 5 s at
/// least, and a connection over loopback costs next to nothing.
const APPLICATION_IDLE_SECONDS: u64 = 4;

/// How long a connection to the application may take. Where its queue of new connections is full, the kernel tries again
/// after one second and after three; who gives up before has lost what a burst of connections only delays.
const APPLICATION_CONNECT_SECONDS: u64 = 4;

/// Most connections, waiting requests and open requests to the application.
const MAX_CONCURRENT: u32 = 1024;

/// Below this share of healthy endpoints health is no longer believed, in percent: of the application, which is one.
const PANIC_PERCENT: u32 = 50;

/// TLS towards a service; who answers must be that one.
fn towards(view: &View<'_>, id: &ServiceRef, port: &Port) -> core::TransportSocket {
    let sni = format!("{}.{}.outrider", id.name, id.namespace);
    tls::upstream(port.protocol, sni, view.spiffe_id(id))
}

/// Endpoints of services that calls fail over to say which service they are of, and must be that one, and no other of the
/// list. Whatever says nothing is of the called one.
fn towards_others(
    view: &View<'_>,
    callee: &Service,
    port: &Port,
) -> Vec<cluster::cluster::TransportSocketMatch> {
    let others = view.intent.failover(callee, port);
    let one = |(other, takes): (&Service, &Port)| cluster::cluster::TransportSocketMatch {
        name: other.id.to_string(),
        r#match: Some(names::of_service(&other.id.to_string())),
        transport_socket: Some(towards(view, &other.id, takes)),
    };
    others.map(one).collect()
}

/// The cluster through which a port of another service is called.
pub(crate) fn outbound(view: &View<'_>, engine: Engine, callee: &Service, port: &Port) -> cluster::Cluster {
    let (id, traffic) = (&callee.id, &callee.traffic);
    let (lb_policy, lb_config) = traffic::balancing(&traffic.balancing, port.protocol);
    // Those that calls fail over to are of the same namespace.
    let secure = view.mtls(id) != Mtls::Off;
    let mut cluster = cluster::Cluster {
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(over_ads()),
            service_name: names::endpoints(&id.namespace, &id.name, &port.name),
        }),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        transport_socket: secure.then(|| towards(view, id, port)),
        transport_socket_matches: if secure { towards_others(view, callee, port) } else { Vec::new() },
        lb_policy: lb_policy as i32,
        lb_config,
        load_balancing_policy: traffic::policies(&traffic.balancing, port.protocol),
        common_lb_config: Some(panic(traffic.balancing.panic_threshold_percent)),
        circuit_breakers: Some(traffic::circuit_breakers(traffic, engine)),
        outlier_detection: traffic::outlier(traffic, engine),
        health_checks: traffic::health_checks(callee, port),
        ..base(names::outbound(&id.namespace, &id.name, &port.name), callee.timeouts.connect)
    };
    let age = traffic::max_connection_age(traffic, engine);
    let idle = CONNECTION_IDLE_SECONDS - IDLE_MARGIN_SECONDS;
    let remote = cluster.transport_socket.is_some();
    cluster.typed_extension_protocol_options = protocol_options(port.protocol, idle, age, remote);
    cluster
}

/// The cluster that is the application itself.
pub(crate) fn inbound(port: &Port) -> cluster::Cluster {
    let name = names::inbound(&port.name);
    let application = endpoint::Endpoint {
        address: Some(socket_address("127.0.0.1", port.target_port)),
        ..Default::default()
    };
    let load_assignment = endpoint::ClusterLoadAssignment {
        cluster_name: name.clone(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint::LbEndpoint {
                host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(application)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    cluster::Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment: Some(load_assignment),
        typed_extension_protocol_options: protocol_options(
            port.protocol,
            APPLICATION_IDLE_SECONDS,
            None,
            false,
        ),
        ..base(name, Duration::from_secs(APPLICATION_CONNECT_SECONDS))
    }
}

fn base(name: String, connect_timeout: Duration) -> cluster::Cluster {
    cluster::Cluster {
        name,
        connect_timeout: Some(limit(Some(connect_timeout))),
        lb_policy: LbPolicy::LeastRequest as i32,
        lb_config: Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
            choice_count: Some(uint(2)),
            ..Default::default()
        })),
        common_lb_config: Some(panic(PANIC_PERCENT)),
        circuit_breakers: Some(cluster::CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: Some(uint(MAX_CONCURRENT)),
                max_pending_requests: Some(uint(MAX_CONCURRENT)),
                max_requests: Some(uint(MAX_CONCURRENT)),
                ..Default::default()
            }],
            ..Default::default()
        }),
        upstream_connection_options: Some(cluster::UpstreamConnectionOptions {
            tcp_keepalive: Some(core::TcpKeepalive {
                keepalive_probes: Some(uint(3)),
                keepalive_time: Some(uint(30)),
                keepalive_interval: Some(uint(10)),
            }),
            ..Default::default()
        }),
        ignore_health_on_host_removal: true,
        ..Default::default()
    }
}

fn panic(percent: u32) -> CommonLbConfig {
    let healthy_panic_threshold = Some(Percent { value: f64::from(percent) });
    CommonLbConfig { healthy_panic_threshold, ..Default::default() }
}

/// One entry, so that the encoding of the map is a function of its content.
fn protocol_options(
    protocol: Protocol,
    idle_seconds: u64,
    age: Option<Duration>,
    remote: bool,
) -> HashMap<String, outrider_xds_types::pb::google::protobuf::Any> {
    if protocol == Protocol::Tcp {
        return HashMap::new();
    }
    let spoken = match http2::is_spoken(protocol) {
        true => explicit_http_config::ProtocolConfig::Http2ProtocolOptions(http2::options(
            protocol,
            remote,
            InboundLimits::default().streams,
        )),
        false => explicit_http_config::ProtocolConfig::HttpProtocolOptions(http1_options()),
    };
    let options = upstreams::HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: Some(seconds(idle_seconds)),
            max_connection_duration: age.map(|age| limit(Some(age))),
            ..Default::default()
        }),
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(spoken),
        })),
        ..Default::default()
    };
    HashMap::from([(upstreams::HttpProtocolOptions::full_name(), any(&options))])
}
