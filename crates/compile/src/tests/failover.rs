//! Fail-over to other services: identities, priorities, and who is let in for it.

use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrider_xds_types::prost::Message;

use super::*;

const FAILOVER: &str = include_str!("cases/failover.yaml");

fn cluster(intent: &Intent, of: &str, name: &str) -> Cluster {
    let proxy = proxy(intent, of);
    let cluster = proxy.resources.get(type_url::CLUSTER, name).expect("a cluster");
    Cluster::decode(cluster.body.as_slice()).expect("decodes")
}

fn at(last: u8) -> Endpoint {
    Endpoint { address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), port: 4000 }
}

/// Callers of a service are let in where its calls go, one step; by a route, too, and nobody is let in at the called
/// service itself for it.
#[test]
fn callers_are_let_in_where_calls_fail_over_to() {
    let intent = intent(FAILOVER);
    let compiler = Compiler::new(&intent, TRUST_DOMAIN);
    let callers =
        |name: &str| -> Vec<String> { compiler.callers(&service(name)).map(ToString::to_string).collect() };
    assert_eq!(callers("shop/orders"), ["shop/edge", "shop/web"]);
    assert_eq!(callers("shop/orders-standby"), ["shop/edge", "shop/web"]);
    assert_eq!(callers("shop/orders-legacy"), ["shop/edge", "shop/web"]);
    assert_eq!(callers("shop/front"), ["shop/edge"], "lists do not chain");
}

/// Each endpoint has to be the service that it is of, and no other of the list.
#[test]
fn every_endpoint_has_the_identity_of_its_service() {
    let intent = intent(FAILOVER);
    for of in ["shop/web", "shop/edge"] {
        let cluster = cluster(&intent, of, "outbound/shop/orders/http");
        let names = |socket: &Option<_>| {
            let socket = format!("{socket:?}");
            intent
                .services
                .keys()
                .filter(|id| {
                    let spiffe = format!("spiffe://{TRUST_DOMAIN}/ns/{}/svc/{}", id.namespace, id.name);
                    socket.contains(&spiffe_bytes(&spiffe))
                })
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&cluster.transport_socket), ["shop/orders"]);
        let others: Vec<_> = cluster
            .transport_socket_matches
            .iter()
            .map(|one| (one.name.as_str(), names(&one.transport_socket)))
            .collect();
        let expected = ["shop/orders-standby", "shop/orders-legacy"];
        assert_eq!(others, expected.map(|name| (name, vec![name.to_owned()])));
    }
}

/// As `Debug` writes the bytes of a text within an `Any`, up to the end of the name.
fn spiffe_bytes(id: &str) -> String {
    let bytes: Vec<String> = id.bytes().map(|byte| byte.to_string()).collect();
    // The next field of the message begins with something else than a letter or a hyphen.
    format!("{}, {}, ", id.len(), bytes.join(", "))
}

#[test]
fn without_tls_nobody_is_told_apart() {
    let intent = intent(&FAILOVER.replace("mtls: required", "mtls: off"));
    let cluster = cluster(&intent, "shop/web", "outbound/shop/orders/http");
    assert_eq!((cluster.transport_socket, cluster.transport_socket_matches), (None, Vec::new()));
}

#[test]
fn a_load_assignment_with_those_that_calls_fail_over_to() {
    let own = ByZone::from([("", vec![at(2), at(1)])]);
    let (standby, legacy) = (service("shop/orders-standby"), service("shop/orders-legacy"));
    let others =
        [(&standby, ByZone::from([("west", vec![at(4)]), ("east", vec![at(3)])])), (&legacy, ByZone::new())];
    let one = endpoints_with_failover(&service("shop/orders"), "http", &own, &others);
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_snapshot!("endpoints_with_failover", text::resource(&one));
    });
    // Who has no endpoints keeps its place, so that nobody's priority changes.
    let priorities = |own: &ByZone<'_>| -> Vec<(u32, usize)> {
        let one = endpoints_with_failover(&service("shop/orders"), "http", own, &others);
        let read = ClusterLoadAssignment::decode(one.body.as_slice()).expect("decodes");
        read.endpoints.iter().map(|group| (group.priority, group.lb_endpoints.len())).collect()
    };
    assert_eq!(priorities(&own), [(0, 2), (1, 1), (1, 1), (2, 0)]);
    assert_eq!(priorities(&ByZone::new()), [(0, 0), (1, 1), (1, 1), (2, 0)]);
    // Without others it is what it always was.
    let alone = endpoints_with_failover(&service("shop/orders"), "http", &own, &[]);
    assert_eq!(alone, endpoints(&service("shop/orders"), "http", &[at(1), at(2)]));
}

#[test]
fn a_service_that_is_gone_is_passed_over_and_noted() {
    let gone = FAILOVER.replace("{name: orders-standby}", "{name: gone}");
    let options = ResolveOptions { tolerate_missing_calls: true, ..ResolveOptions::default() };
    let intent = intent_with(&gone, &options);
    let web = proxy(&intent, "shop/web");
    let (of, service) = (service("shop/orders"), service("shop/gone"));
    assert_eq!(web.notes, [Note::MissingFailover { of, service }]);
    let cluster = cluster(&intent, "shop/web", "outbound/shop/orders/http");
    let others: Vec<&str> = cluster.transport_socket_matches.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(others, ["shop/orders-legacy"]);
}
