//! One test per edge of the protocol, as a conversation.

use std::collections::HashMap;

use outrider_xds_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use outrider_xds_types::pb::envoy::config::listener::v3 as listener;
use outrider_xds_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, VirtualHost, route, route_action,
};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrider_xds_types::pb::google::rpc::Status;
use outrider_xds_types::prost::{Message, Name};

use super::*;

const LDS: &str = type_url::LISTENER;
const RDS: &str = type_url::ROUTE;
const CDS: &str = type_url::CLUSTER;
const EDS: &str = type_url::ENDPOINT;
const SDS: &str = type_url::SECRET;

/// A session, the set it serves, and the last nonce of each type.
struct Talk {
    session: Session,
    set: ResourceSet,
    nonces: HashMap<String, String>,
}

mod refused;

fn body(type_url: &str, name: &str) -> Vec<u8> {
    if type_url == LDS {
        return listener_with_routes(name);
    }
    if type_url != CDS {
        return Vec::new();
    }
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(cluster::EdsClusterConfig {
            service_name: format!("{name}-endpoints"),
            ..Default::default()
        }),
        ..Default::default()
    }
    .encode_to_vec()
}

/// A listener that takes its routes over ADS.
pub(crate) fn listener_with_routes(routes: &str) -> Vec<u8> {
    let manager = hcm::HttpConnectionManager {
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            route_config_name: routes.into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let any = outrider_xds_types::pack(&hcm::HttpConnectionManager::type_url(), &manager);
    let filter = listener::Filter {
        config_type: Some(listener::filter::ConfigType::TypedConfig(any)),
        ..Default::default()
    };
    let chain = listener::FilterChain { filters: vec![filter], ..Default::default() };
    listener::Listener { filter_chains: vec![chain], ..Default::default() }.encode_to_vec()
}

fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().expect("a name")
}

impl Talk {
    fn new(resources: &[(&str, &str, &str)]) -> Self {
        Self::with(Options::for_proxy(), resources)
    }

    fn with(options: Options, resources: &[(&str, &str, &str)]) -> Self {
        let mut talk =
            Self { session: Session::new(options), set: ResourceSet::new(), nonces: HashMap::new() };
        for (type_url, name, version) in resources {
            talk.put(type_url, name, version);
        }
        talk
    }

    fn put(&mut self, type_url: &str, name: &str, version: &str) {
        self.set.insert(Resource::new(type_url, name, version, body(type_url, name)));
    }

    /// Routes that lead to a cluster.
    fn lead(&mut self, name: &str, version: &str, to: &str) {
        let cluster_specifier = Some(route_action::ClusterSpecifier::Cluster(to.to_owned()));
        let action = route::Action::Route(RouteAction { cluster_specifier, ..Default::default() });
        let route = Route { action: Some(action), ..Default::default() };
        let host = VirtualHost { routes: vec![route], ..Default::default() };
        let routes = RouteConfiguration { virtual_hosts: vec![host], ..Default::default() };
        self.set.insert(Resource::new(RDS, name, version, routes.encode_to_vec()));
    }

    fn drop(&mut self, type_url: &str, name: &str) {
        self.set.remove(type_url, name).expect("was there");
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Vec<Seen> {
        self.session.on_request(&request).expect("within limits")
    }

    fn subscribe(&mut self, type_url: &str, names: &[&str]) -> Vec<Seen> {
        self.request(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: names.iter().map(|name| (*name).into()).collect(),
            ..Default::default()
        })
    }

    fn unsubscribe(&mut self, type_url: &str, names: &[&str]) -> Vec<Seen> {
        self.request(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_unsubscribe: names.iter().map(|name| (*name).into()).collect(),
            ..Default::default()
        })
    }

    fn reconnect(&mut self, type_url: &str, names: &[&str], versions: &[(&str, &str)]) -> Vec<Seen> {
        self.request(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: names.iter().map(|name| (*name).into()).collect(),
            initial_resource_versions: versions.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            ..Default::default()
        })
    }

    fn answer(&mut self, type_url: &str, nonce: &str, error: Option<&str>) -> Vec<Seen> {
        let error_detail = error.map(|message| Status { message: message.into(), ..Default::default() });
        self.request(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            response_nonce: nonce.into(),
            error_detail,
            ..Default::default()
        })
    }

    fn ack(&mut self, type_url: &str) -> Vec<Seen> {
        let nonce = self.nonces[type_url].clone();
        self.answer(type_url, &nonce, None)
    }

    fn nack(&mut self, type_url: &str) -> Vec<Seen> {
        let nonce = self.nonces[type_url].clone();
        self.answer(type_url, &nonce, Some("no"))
    }

    /// What is sent now, as `Type: name=version … -removed`.
    fn sent(&mut self) -> Vec<String> {
        let responses = self.session.poll(&self.set);
        responses
            .iter()
            .map(|response| {
                self.nonces.insert(response.type_url.clone(), response.nonce.clone());
                let mut line = format!("{}:", short(&response.type_url));
                for resource in &response.resources {
                    line.push_str(&format!(" {}={}", resource.name, resource.version));
                }
                for name in &response.removed_resources {
                    line.push_str(&format!(" -{name}"));
                }
                line
            })
            .collect()
    }

    /// Everything is sent and acknowledged; what that took.
    fn settle(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        for _ in 0..100 {
            let sent = self.sent();
            if sent.is_empty() {
                return all;
            }
            all.extend(sent);
            let open: Vec<String> = self.session.outstanding().map(|(t, _)| t.to_string()).collect();
            for type_url in open {
                self.ack(&type_url);
            }
        }
        panic!("never settles: {all:#?}");
    }
}

const NOTHING: [&str; 0] = [];

fn shop() -> Talk {
    Talk::new(&[
        (CDS, "a", "1"),
        (EDS, "a-endpoints", "1"),
        (LDS, "in", "1"),
        (RDS, "in", "1"),
        (SDS, "default", "1"),
    ])
}

/// A client that has everything of [`shop`] in use.
fn settled_shop() -> Talk {
    let mut talk = shop();
    talk.subscribe(CDS, &[]);
    talk.subscribe(LDS, &[]);
    talk.subscribe(EDS, &["a-endpoints"]);
    talk.subscribe(RDS, &["in"]);
    talk.subscribe(SDS, &["default"]);
    talk.settle();
    talk
}

#[test]
fn e58_clusters_and_endpoints_go_before_listeners_and_routes() {
    let mut talk = shop();
    talk.subscribe(LDS, &[]);
    talk.subscribe(CDS, &[]);
    assert_eq!(talk.sent(), ["Cluster: a=1"]);
    assert_eq!(talk.sent(), NOTHING, "listeners wait for the answer");
    talk.subscribe(EDS, &["a-endpoints"]);
    talk.ack(CDS);
    assert_eq!(talk.sent(), ["ClusterLoadAssignment: a-endpoints=1"]);
    assert_eq!(talk.sent(), NOTHING, "and for the endpoints newly asked for");
    talk.ack(EDS);
    assert_eq!(talk.sent(), ["Listener: in=1"]);
    talk.subscribe(RDS, &["in"]);
    assert_eq!(talk.sent(), ["RouteConfiguration: in=1"], "an open listener does not hold its routes");
}

#[test]
fn e58_routes_wait_for_the_new_cluster_and_the_old_one_for_the_routes() {
    let mut talk = settled_shop();
    talk.put(CDS, "b", "1");
    talk.put(EDS, "b-endpoints", "1");
    talk.put(RDS, "in", "2");
    talk.drop(CDS, "a");
    talk.drop(EDS, "a-endpoints");
    assert_eq!(talk.sent(), ["Cluster: b=1"]);
    talk.subscribe(EDS, &["b-endpoints"]);
    talk.ack(CDS);
    assert_eq!(talk.sent(), ["ClusterLoadAssignment: b-endpoints=1"]);
    talk.ack(EDS);
    assert_eq!(talk.sent(), ["RouteConfiguration: in=2"]);
    assert_eq!(talk.sent(), NOTHING, "the old cluster stays while the new routes are not in use");
    talk.ack(RDS);
    assert_eq!(talk.sent(), ["Cluster: -a"]);
    talk.unsubscribe(EDS, &["a-endpoints"]);
    talk.ack(CDS);
    assert_eq!(talk.sent(), NOTHING);
}

#[test]
fn e58_a_busy_endpoint_set_does_not_hold_listeners() {
    let mut talk = settled_shop();
    talk.put(EDS, "a-endpoints", "2");
    assert_eq!(talk.sent(), ["ClusterLoadAssignment: a-endpoints=2"]);
    talk.put(LDS, "in", "2");
    assert_eq!(talk.sent(), ["Listener: in=2"]);
}

#[test]
fn e59_endpoints_are_sent_again_after_their_cluster() {
    let mut talk = settled_shop();
    talk.put(CDS, "a", "2");
    assert_eq!(talk.sent(), ["Cluster: a=2", "ClusterLoadAssignment: a-endpoints=1"]);
    talk.ack(EDS);
    talk.ack(CDS);
    assert_eq!(talk.sent(), NOTHING);
    // Also if endpoints were on their way when the cluster changed.
    talk.put(EDS, "a-endpoints", "2");
    assert_eq!(talk.sent(), ["ClusterLoadAssignment: a-endpoints=2"]);
    talk.put(CDS, "a", "3");
    assert_eq!(talk.sent(), ["Cluster: a=3"]);
    talk.ack(EDS);
    assert_eq!(talk.sent(), ["ClusterLoadAssignment: a-endpoints=2"]);
    talk.ack(EDS);
    talk.ack(CDS);
    assert_eq!(talk.sent(), NOTHING);
}

#[test]
fn e59_agents_get_no_endpoints_twice() {
    let mut talk = Talk::with(Options::for_agent(), &[(CDS, "a", "1"), (EDS, "a-endpoints", "1")]);
    talk.subscribe(CDS, &[]);
    talk.subscribe(EDS, &["a-endpoints"]);
    talk.settle();
    talk.put(CDS, "a", "2");
    assert_eq!(talk.settle(), ["Cluster: a=2"]);
}

#[test]
fn e60_every_name_subscribed_is_answered() {
    let mut talk = Talk::new(&[(EDS, "a", "1"), (EDS, "c", "1")]);
    talk.subscribe(EDS, &["a", "b"]);
    assert_eq!(talk.sent(), ["ClusterLoadAssignment: a=1 -b"]);
    let first = talk.nonces[EDS].clone();
    // Whoever waits for c may not be able to answer before it has it.
    talk.subscribe(EDS, &["c"]);
    assert_eq!(talk.sent(), ["ClusterLoadAssignment: c=1"]);
    talk.put(EDS, "a", "2");
    talk.put(EDS, "c", "2");
    assert_eq!(talk.sent(), NOTHING, "changes wait for the answer");
    assert_eq!(talk.answer(EDS, &first, None), [acked(EDS, &[("a", "1")], &["b"])]);
    assert_eq!(talk.sent(), ["ClusterLoadAssignment: a=2"], "one open answer per resource");
    let second = talk.session.outstanding().map(|(_, nonce)| nonce.to_owned()).collect::<Vec<_>>();
    for nonce in second {
        talk.answer(EDS, &nonce, None);
    }
    assert_eq!(talk.settle(), ["ClusterLoadAssignment: c=2"]);
}

#[test]
fn e60_what_was_said_not_to_exist_comes_after_the_answer_to_that() {
    let mut talk = Talk::new(&[(EDS, "a", "1")]);
    talk.subscribe(EDS, &["a", "b"]);
    assert_eq!(talk.sent(), ["ClusterLoadAssignment: a=1 -b"]);
    talk.put(EDS, "b", "1");
    assert_eq!(talk.sent(), NOTHING);
    talk.ack(EDS);
    assert_eq!(talk.settle(), ["ClusterLoadAssignment: b=1"]);
    // The same for what was said while something else was open.
    talk.put(EDS, "a", "2");
    assert_eq!(talk.sent(), ["ClusterLoadAssignment: a=2"]);
    let first = talk.nonces[EDS].clone();
    talk.subscribe(EDS, &["c"]);
    assert_eq!(talk.sent(), ["ClusterLoadAssignment: -c"]);
    talk.put(EDS, "c", "1");
    talk.answer(EDS, &first, None);
    assert_eq!(talk.sent(), NOTHING);
    talk.ack(EDS);
    assert_eq!(talk.settle(), ["ClusterLoadAssignment: c=1"]);
}

#[test]
fn e61_a_second_cluster_with_the_same_endpoints_gets_them() {
    let mut talk = settled_shop();
    let mut twin = Cluster::decode(body(CDS, "a").as_slice()).expect("decodes");
    twin.name = "twin".into();
    talk.set.insert(Resource::new(CDS, "twin", "1", twin.encode_to_vec()));
    assert_eq!(talk.sent(), ["Cluster: twin=1", "ClusterLoadAssignment: a-endpoints=1"]);
}

#[test]
fn e62_a_cluster_that_never_warms_can_be_given_up() {
    let mut talk = settled_shop();
    talk.put(CDS, "a", "2");
    talk.put(LDS, "in", "2");
    assert_eq!(talk.sent(), ["Cluster: a=2", "ClusterLoadAssignment: a-endpoints=1"]);
    let stuck = talk.nonces[CDS].clone();
    talk.ack(EDS);
    assert_eq!(talk.sent(), NOTHING);
    talk.session.abandon(CDS);
    assert_eq!(talk.sent(), ["Listener: in=2"], "nothing waits for it any more");
    talk.put(CDS, "a", "3");
    assert_eq!(talk.sent(), ["Cluster: a=3", "ClusterLoadAssignment: a-endpoints=1"]);
    // The late answer still counts, and does not answer the newer response.
    let late = talk.answer(CDS, &stuck, None);
    assert_eq!(late, [acked(CDS, &[("a", "2")], &[])]);
    assert!(talk.session.outstanding().any(|(type_url, _)| &**type_url == CDS));
}

fn versioned(resources: &[(&str, &str)]) -> Vec<Versioned> {
    resources.iter().map(|(name, version)| (Arc::from(*name), Arc::from(*version))).collect()
}

fn acked(type_url: &str, resources: &[(&str, &str)], removed: &[&str]) -> Seen {
    Seen::Acked {
        type_url: type_url.into(),
        resources: versioned(resources),
        removed: removed.iter().map(|name| Arc::from(*name)).collect(),
    }
}

fn refused(type_url: &str, resources: &[(&str, &str)]) -> Seen {
    Seen::Refused {
        type_url: type_url.into(),
        resources: versioned(resources),
        removed: Vec::new(),
        error: "no".into(),
    }
}

#[test]
fn e63_a_reconnect_gets_removals_and_changes_and_nothing_equal() {
    let mut talk = Talk::new(&[(CDS, "same", "1"), (CDS, "changed", "2"), (CDS, "new", "1")]);
    talk.reconnect(LDS, &[], &[("in", "1")]);
    let seen = talk.reconnect(CDS, &[], &[("same", "1"), ("changed", "1"), ("gone", "1")]);
    assert_eq!(
        seen[0],
        Seen::Claimed {
            type_url: CDS.into(),
            resources: versioned(&[("changed", "1"), ("gone", "1"), ("same", "1")]),
        }
    );
    assert_eq!(talk.settle(), ["Cluster: changed=2 new=1", "Listener: -in", "Cluster: -gone"]);
    // By name likewise.
    let mut talk = Talk::new(&[(SDS, "same", "1")]);
    talk.reconnect(SDS, &["same", "gone"], &[("same", "1"), ("gone", "1")]);
    talk.reconnect(LDS, &[], &[]);
    assert_eq!(talk.settle(), ["Listener:", "Secret: -gone"]);
    // And with nothing to say, nothing is said.
    let mut talk = Talk::new(&[(CDS, "same", "1")]);
    talk.reconnect(CDS, &[], &[("same", "1")]);
    assert_eq!(talk.settle(), NOTHING);
}

#[test]
fn e63_a_proxy_that_reconnects_gets_its_endpoints_again() {
    // A cluster may have been waiting for them when the stream broke.
    let mut talk = shop();
    talk.reconnect(EDS, &["a-endpoints"], &[("a-endpoints", "1")]);
    assert_eq!(talk.settle(), ["ClusterLoadAssignment: a-endpoints=1"]);
    let mut talk = Talk::with(Options::for_agent(), &[(EDS, "a-endpoints", "1")]);
    talk.reconnect(EDS, &["a-endpoints"], &[("a-endpoints", "1")]);
    assert_eq!(talk.settle(), NOTHING);
}

#[test]
fn e63_after_a_reconnect_nothing_breaks_before_it_is_replaced() {
    let mut talk = shop();
    talk.put(CDS, "b", "1");
    talk.put(RDS, "in", "2");
    talk.drop(CDS, "a");
    talk.reconnect(LDS, &[], &[("in", "1")]);
    talk.reconnect(RDS, &["in"], &[("in", "1")]);
    assert_eq!(talk.sent(), NOTHING, "routes wait for the client to ask for clusters again");
    talk.reconnect(CDS, &[], &[("a", "1")]);
    assert_eq!(talk.settle(), ["Cluster: b=1", "RouteConfiguration: in=2", "Cluster: -a"]);
    // In the other order, clusters wait to be removed.
    let mut talk = shop();
    talk.put(RDS, "in", "2");
    talk.drop(CDS, "a");
    talk.reconnect(CDS, &[], &[("a", "1")]);
    assert_eq!(talk.settle(), NOTHING);
    talk.reconnect(LDS, &[], &[("in", "1")]);
    assert_eq!(talk.settle(), NOTHING);
    talk.reconnect(RDS, &["in"], &[("in", "1")]);
    assert_eq!(talk.settle(), ["RouteConfiguration: in=2", "Cluster: -a"]);
}

#[test]
fn e64_a_name_subscribed_again_is_answered_even_if_equal() {
    let mut talk = settled_shop();
    assert_eq!(talk.subscribe(SDS, &["default"]), [], "not a new subscription");
    assert_eq!(talk.sent(), ["Secret: default=1"]);
    talk.ack(SDS);
    assert_eq!(talk.sent(), NOTHING);
    // Also while the first answer is open.
    talk.put(SDS, "default", "2");
    assert_eq!(talk.sent(), ["Secret: default=2"]);
    talk.subscribe(SDS, &["default"]);
    talk.ack(SDS);
    assert_eq!(talk.sent(), ["Secret: default=2"]);
}

#[test]
fn e65_wildcards() {
    let names = [(CDS, "a", "1"), (CDS, "b", "1"), (CDS, "xdstp://outrider/C/shop/x/a", "1")];
    for (what, subscription) in [("legacy", vec![]), ("star", vec!["*"]), ("both", vec!["*", "a"])] {
        let mut talk = Talk::new(&names);
        talk.subscribe(CDS, &subscription);
        assert_eq!(talk.settle(), ["Cluster: a=1 b=1"], "{what}");
        talk.drop(CDS, "a");
        assert_eq!(talk.settle(), ["Cluster: -a"], "{what}");
    }
    // From the wildcard to a name, which is then owed an answer of its own.
    let mut talk = Talk::new(&names);
    talk.subscribe(CDS, &[]);
    talk.settle();
    talk.subscribe(CDS, &["a"]);
    talk.unsubscribe(CDS, &["*"]);
    assert_eq!(talk.settle(), ["Cluster: a=1"]);
    talk.put(CDS, "b", "2");
    assert_eq!(talk.settle(), NOTHING);
    // And from the name back to what the wildcard covers.
    talk.subscribe(CDS, &["*"]);
    assert_eq!(talk.settle(), ["Cluster: b=2"]);
    talk.unsubscribe(CDS, &["a"]);
    assert_eq!(talk.settle(), ["Cluster: a=1"], "the client dropped it, the wildcard owes it");
}

#[test]
fn e65_an_empty_wildcard_is_answered_once() {
    let mut talk = Talk::new(&[]);
    talk.subscribe(CDS, &[]);
    assert_eq!(talk.settle(), ["Cluster:"]);
    assert_eq!(talk.settle(), NOTHING);
}

#[test]
fn e65_globs_cover_one_scope() {
    let a = "xdstp://outrider/envoy.config.listener.v3.Listener/shop/a/in";
    let b = "xdstp://outrider/envoy.config.listener.v3.Listener/shop/ab/in";
    let mut talk = Talk::new(&[(LDS, a, "1"), (LDS, b, "1")]);
    let glob = "xdstp://outrider/envoy.config.listener.v3.Listener/shop/a/*";
    talk.subscribe(LDS, &[glob]);
    assert_eq!(talk.settle(), [format!("Listener: {a}=1")]);
    talk.put(LDS, b, "2");
    talk.drop(LDS, a);
    assert_eq!(talk.settle(), [format!("Listener: -{a}")]);
    assert_eq!(
        talk.unsubscribe(LDS, &[glob]),
        [Seen::Unsubscribed { type_url: LDS.into(), names: vec![glob.into()] }]
    );
    talk.put(LDS, a, "2");
    assert_eq!(talk.settle(), NOTHING);
}

#[test]
fn e66_an_absent_name_is_told_once_and_stays_watched() {
    let mut talk = Talk::new(&[]);
    talk.subscribe(EDS, &["a"]);
    assert_eq!(talk.settle(), ["ClusterLoadAssignment: -a"]);
    talk.put(EDS, "other", "1");
    assert_eq!(talk.settle(), NOTHING);
    talk.put(EDS, "a", "1");
    assert_eq!(talk.settle(), ["ClusterLoadAssignment: a=1"]);
    talk.drop(EDS, "a");
    assert_eq!(talk.settle(), ["ClusterLoadAssignment: -a"]);
    talk.put(EDS, "a", "1");
    assert_eq!(talk.settle(), ["ClusterLoadAssignment: a=1"], "the same version, but it was gone");
    talk.drop(EDS, "a");
    talk.settle();
    talk.subscribe(EDS, &["a"]);
    assert_eq!(talk.settle(), ["ClusterLoadAssignment: -a"], "asked again, told again");
}

#[test]
fn e67_a_watch_survives_a_set_without_its_type() {
    let mut talk = settled_shop();
    let full = talk.set.clone();
    talk.set = ResourceSet::new();
    talk.settle();
    talk.set = full;
    let mut sent = talk.settle();
    sent.sort();
    assert_eq!(
        sent,
        [
            "Cluster: a=1",
            "ClusterLoadAssignment: a-endpoints=1",
            "Listener: in=1",
            "RouteConfiguration: in=1",
            "Secret: default=1",
        ]
    );
}

#[test]
fn e68_nothing_is_sent_for_what_was_unsubscribed() {
    let mut talk = Talk::new(&[(EDS, "a", "1"), (EDS, "b", "1")]);
    talk.subscribe(EDS, &["a", "b"]);
    talk.sent();
    talk.unsubscribe(EDS, &["a"]);
    talk.put(EDS, "a", "2");
    talk.put(EDS, "b", "2");
    talk.ack(EDS);
    assert_eq!(talk.settle(), ["ClusterLoadAssignment: b=2"]);
}

#[test]
fn e70_a_refused_version_is_not_sent_again_until_it_changes() {
    let mut talk = settled_shop();
    talk.put(LDS, "in", "2");
    talk.sent();
    assert_eq!(talk.nack(LDS), [refused(LDS, &[("in", "2")])]);
    assert_eq!(talk.sent(), NOTHING);
    talk.put(SDS, "default", "2");
    assert_eq!(talk.settle(), ["Secret: default=2"], "other changes go on");
    talk.put(LDS, "in", "3");
    assert_eq!(talk.sent(), ["Listener: in=3"]);
    assert_eq!(talk.ack(LDS), [acked(LDS, &[("in", "3")], &[])]);
    // Back to the refused version: it may be sent, the client has moved on.
    talk.put(LDS, "in", "2");
    assert_eq!(talk.sent(), ["Listener: in=2"]);
}

#[test]
fn e70_a_rollback_to_last_good_is_sent() {
    let mut talk = settled_shop();
    talk.put(RDS, "in", "2");
    talk.sent();
    talk.nack(RDS);
    talk.put(RDS, "in", "1");
    assert_eq!(talk.settle(), ["RouteConfiguration: in=1"]);
}

#[test]
fn e70_one_bad_resource_is_found_among_good_ones() {
    let resources: Vec<(&str, &str, &str)> =
        ["a", "b", "bad", "c", "d"].iter().map(|name| (CDS, *name, "1")).collect();
    let mut talk = Talk::new(&resources);
    talk.subscribe(CDS, &[]);
    let (mut good, mut bad, mut rounds) = (Vec::new(), Vec::new(), 0);
    while let [response] = talk.session.poll(&talk.set).as_slice() {
        rounds += 1;
        assert!(rounds < 10, "loops");
        let is_bad = response.resources.iter().any(|resource| resource.name == "bad");
        for seen in talk.answer(CDS, &response.nonce, is_bad.then_some("no")) {
            match seen {
                Seen::Acked { resources, .. } => good.extend(resources.into_iter().map(|(n, _)| n)),
                Seen::Refused { resources, .. } => bad.extend(resources.into_iter().map(|(n, _)| n)),
                other => panic!("{other:?}"),
            }
        }
    }
    good.sort();
    assert_eq!(good, ["a", "b", "c", "d"].map(Arc::from));
    assert_eq!(bad, ["bad"].map(Arc::from));
}

#[test]
fn e70_last_good_keeps_what_it_needs() {
    // The new routes are refused, so the old cluster they would have replaced stays.
    let mut talk = settled_shop();
    talk.put(RDS, "in", "2");
    talk.drop(CDS, "a");
    talk.drop(EDS, "a-endpoints");
    assert_eq!(talk.sent(), ["RouteConfiguration: in=2"]);
    talk.nack(RDS);
    assert_eq!(talk.settle(), NOTHING);
    talk.put(RDS, "in", "3");
    assert_eq!(
        talk.settle(),
        ["RouteConfiguration: in=3", "Cluster: -a", "ClusterLoadAssignment: -a-endpoints"]
    );
}

#[test]
fn e70_routes_stay_while_the_new_cluster_is_refused() {
    let mut talk = settled_shop();
    talk.put(CDS, "bad", "1");
    talk.lead("in", "2", "bad");
    talk.put(LDS, "new", "1");
    assert_eq!(talk.sent(), ["Cluster: bad=1"]);
    assert_eq!(talk.nack(CDS), [refused(CDS, &[("bad", "1")])]);
    assert_eq!(talk.settle(), ["Listener: new=1"], "what is new replaces nothing");
    talk.put(CDS, "bad", "2");
    assert_eq!(talk.settle(), ["Cluster: bad=2", "RouteConfiguration: in=2"]);
}

#[test]
fn e70_stale_nonces_answer_nothing() {
    let mut talk = settled_shop();
    talk.put(SDS, "default", "2");
    talk.sent();
    let old = talk.nonces[SDS].clone();
    talk.ack(SDS);
    talk.put(SDS, "default", "3");
    assert_eq!(talk.sent(), ["Secret: default=3"]);
    for (nonce, error) in [(old.as_str(), None), (old.as_str(), Some("no")), ("made-up", None)] {
        assert_eq!(talk.answer(SDS, nonce, error), []);
        assert_eq!(talk.session.outstanding().count(), 1, "the newer push is still open");
    }
    assert_eq!(talk.ack(SDS), [acked(SDS, &[("default", "3")], &[])]);
    // A subscription in a stale request counts all the same.
    talk.put(SDS, "more", "1");
    talk.request(DeltaDiscoveryRequest {
        type_url: SDS.into(),
        response_nonce: old,
        resource_names_subscribe: vec!["more".into()],
        ..Default::default()
    });
    assert_eq!(talk.sent(), ["Secret: more=1"]);
}

#[test]
fn e70_a_late_refusal_of_a_superseded_version_holds_nothing() {
    let mut talk = settled_shop();
    talk.put(LDS, "in", "2");
    talk.sent();
    let late = talk.nonces[LDS].clone();
    talk.session.abandon(LDS);
    talk.put(LDS, "in", "3");
    assert_eq!(talk.sent(), ["Listener: in=3"]);
    assert_eq!(talk.answer(LDS, &late, Some("no")), [refused(LDS, &[("in", "2")])]);
    assert_eq!(talk.ack(LDS), [acked(LDS, &[("in", "3")], &[])]);
    talk.drop(CDS, "a");
    assert_eq!(talk.settle(), ["Cluster: -a"], "version 3 is in use, so nothing is being corrected");
    // Had it been refused before the next version went, that would have waited for the correction.
    talk.put(CDS, "b", "1");
    talk.put(LDS, "in", "4");
    talk.settle();
    talk.put(LDS, "in", "5");
    talk.sent();
    let late = talk.nonces[LDS].clone();
    talk.session.abandon(LDS);
    talk.answer(LDS, &late, Some("no"));
    talk.drop(CDS, "b");
    assert_eq!(talk.settle(), NOTHING, "version 5 was the last one sent, and version 4 may need the cluster");
}

#[test]
fn e70_an_answer_that_comes_after_a_later_one_says_nothing_new() {
    for error in [None, Some("no")] {
        let mut talk = settled_shop();
        talk.put(CDS, "b", "1");
        talk.settle();
        talk.put(LDS, "in", "2");
        talk.put(LDS, "more", "1");
        assert_eq!(talk.sent(), ["Listener: in=2 more=1"]);
        let late = talk.nonces[LDS].clone();
        talk.session.abandon(LDS);
        talk.put(LDS, "in", "3");
        assert_eq!(talk.sent(), ["Listener: in=3"]);
        assert_eq!(talk.ack(LDS), [acked(LDS, &[("in", "3")], &[])]);
        let seen = talk.answer(LDS, &late, error);
        match error {
            None => assert_eq!(seen, [acked(LDS, &[("more", "1")], &[])], "version 3 stays in use"),
            Some(_) => {
                assert_eq!(seen, []);
                assert_eq!(talk.sent(), ["Listener: more=1"], "it may be good, so it is sent alone");
                assert_eq!(talk.ack(LDS), [acked(LDS, &[("more", "1")], &[])]);
            }
        }
        talk.drop(LDS, "more");
        talk.drop(CDS, "b");
        assert_eq!(talk.settle(), ["Listener: -more", "Cluster: -b"]);
    }
    // An acknowledgement after a later refusal says what is in use.
    let mut talk = settled_shop();
    talk.put(LDS, "in", "2");
    talk.sent();
    let late = talk.nonces[LDS].clone();
    talk.session.abandon(LDS);
    talk.put(LDS, "in", "3");
    talk.sent();
    assert_eq!(talk.nack(LDS), [refused(LDS, &[("in", "3")])]);
    assert_eq!(talk.answer(LDS, &late, None), [acked(LDS, &[("in", "2")], &[])]);
    assert_eq!(talk.sent(), NOTHING, "version 3 stays refused");
    // A removal that was taken back meanwhile.
    let mut talk = settled_shop();
    talk.drop(LDS, "in");
    assert_eq!(talk.sent(), ["Listener: -in"]);
    let late = talk.nonces[LDS].clone();
    talk.session.abandon(LDS);
    talk.put(LDS, "in", "2");
    assert_eq!(talk.settle(), ["Listener: in=2"]);
    assert_eq!(talk.answer(LDS, &late, None), []);
}

#[test]
fn e71_a_secret_asked_for_again_is_sent_again() {
    let mut talk = settled_shop();
    talk.unsubscribe(SDS, &["default"]);
    assert_eq!(talk.settle(), NOTHING, "no removal for what nobody wants");
    talk.subscribe(SDS, &["default"]);
    assert_eq!(talk.settle(), ["Secret: default=1"]);
}

#[test]
fn e72_changes_meanwhile_are_coalesced_to_the_latest() {
    let mut talk = settled_shop();
    talk.put(SDS, "default", "2");
    assert_eq!(talk.sent(), ["Secret: default=2"]);
    for version in ["3", "4", "5"] {
        talk.put(SDS, "default", version);
        assert_eq!(talk.sent(), NOTHING);
    }
    talk.put(LDS, "in", "2");
    assert_eq!(talk.sent(), ["Listener: in=2"], "other types are not blocked");
    talk.ack(SDS);
    assert_eq!(talk.sent(), ["Secret: default=5"]);
}

#[test]
fn e72_large_responses_are_split() {
    let options = Options { response_bytes: 100, ..Options::for_proxy() };
    let mut talk = Talk::with(options, &[]);
    for name in ["a", "b", "c", "d", "e"] {
        talk.set.insert(Resource::new(SDS, name, "1", vec![0; 45]));
    }
    talk.subscribe(SDS, &[]);
    assert_eq!(talk.settle(), ["Secret: a=1 b=1", "Secret: c=1 d=1", "Secret: e=1"]);
}

#[test]
fn limits_end_the_stream() {
    let options =
        Options { max_names: 3, max_name_bytes: 8, max_names_bytes: 9, max_types: 2, ..Options::for_proxy() };
    let subscribe = |type_url: &str, names: &[&str]| DeltaDiscoveryRequest {
        type_url: type_url.into(),
        resource_names_subscribe: names.iter().map(|name| (*name).into()).collect(),
        ..Default::default()
    };
    let mut session = Session::new(options);
    session.on_request(&subscribe(EDS, &["a", "b"])).expect("within limits");
    for (request, expected) in [
        (subscribe("", &[]), RequestError::NoType),
        (subscribe(EDS, &["c", "d"]), RequestError::TooManyNames { limit: 3 }),
        (subscribe(EDS, &["12345678"]), RequestError::TooManyBytes { limit: 9 }),
        (subscribe(EDS, &["123456789"]), RequestError::BadName { bytes: 9, limit: 8 }),
        (subscribe(EDS, &[""]), RequestError::BadName { bytes: 0, limit: 8 }),
    ] {
        assert_eq!(session.on_request(&request), Err(expected));
    }
    session.on_request(&subscribe(SDS, &["c"])).expect("within limits");
    assert_eq!(session.on_request(&subscribe(CDS, &[])), Err(RequestError::TooManyTypes { limit: 2 }));
}
