//! Long lists of endpoints: what a client makes of parts that come in any form.
//!
//! An input is a response in which each resource says its type: the endpoints one by one are fed as one response, what is
//! removed with them, and the load assignments as the next, to a client that has a long list, and to one that has none.

use outrider_compile::Endpoint;
use outrider_intent::model::ServiceRef;
use outrider_xds::ResourceSet;
use outrider_xds::client::{Client, Limits};
use outrider_xds::server::{Options, Session};
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::envoy::config::endpoint::v3 as endpoint;
use outrider_xds_types::pb::envoy::config::endpoint::v3::locality_lb_endpoints::LbConfig;
use outrider_xds_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use outrider_xds_types::{features, type_url};
use prost::Message;

use super::{Target, Verdict, expect, xds};

pub(super) const LISTS: Target = Target {
    name: "xds-lists",
    from: "the control plane, and agents",
    rounds: 1_000,
    accepted: 5,
    seeds,
    check,
    ..xds::LISTENER
};

const NAME: &str = "shop/api/main";

fn whole(numbers: std::ops::Range<u8>) -> ResourceSet {
    let at = |number: u8| Endpoint { address: std::net::IpAddr::from([10, 0, 0, number]), port: 80 };
    let all: Vec<_> = numbers.map(at).collect();
    let mut set = ResourceSet::new();
    set.insert(outrider_compile::endpoints(&ServiceRef::new("shop", "api"), "main", &all));
    set
}

fn node() -> core::Node {
    core::Node { client_features: features::advertised(), ..Default::default() }
}

fn response(type_url: &str, nonce: &str, of: &DeltaDiscoveryResponse) -> DeltaDiscoveryResponse {
    let is_of = |resource: &&_| {
        let resource: &outrider_xds_types::pb::envoy::service::discovery::v3::Resource = resource;
        resource.resource.as_ref().is_some_and(|any| any.type_url == type_url)
    };
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources: of.resources.iter().filter(is_of).cloned().collect(),
        ..Default::default()
    }
}

fn asks() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: type_url::ENDPOINT.to_owned(),
        resource_names_subscribe: vec![NAME.to_owned()],
        ..Default::default()
    }
}

/// What our server sends for some changes, and the same as if somebody else did.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for later in [1..101, 0..99, 5..103, 0..100] {
        let mut session = Session::new(Options::for_proxy());
        session.on_request(&asks()).expect("within limits");
        let mut all = DeltaDiscoveryResponse::default();
        for set in [whole(0..100), whole(later)] {
            let sent = session.poll(&set);
            all = DeltaDiscoveryResponse::default();
            for response in sent {
                let answer = DeltaDiscoveryRequest {
                    type_url: response.type_url.clone(),
                    response_nonce: response.nonce.clone(),
                    ..Default::default()
                };
                session.on_request(&answer).expect("within limits");
                all.resources.extend(response.resources);
                all.removed_resources.extend(response.removed_resources);
            }
        }
        seeds.push(all.encode_to_vec());
        all.resources.iter_mut().for_each(|resource| resource.metadata = None);
        seeds.push(all.encode_to_vec());
    }
    seeds
}

fn check(bytes: &[u8]) -> Verdict {
    let Ok(given) = DeltaDiscoveryResponse::decode(bytes) else { return Ok(false) };
    let mut made = 0;
    for has_list in [true, false] {
        let mut client = Client::new(node(), Limits::default());
        client.subscribe(type_url::ENDPOINT, [NAME]);
        if has_list {
            for resource in whole(0..100).iter() {
                client.claim(resource, "1");
            }
        }
        client.connect();
        let mut endpoints = response(type_url::LB_ENDPOINT, "1", &given);
        endpoints.removed_resources.clone_from(&given.removed_resources);
        let assignments = response(type_url::ENDPOINT, "2", &given);
        let again = DeltaDiscoveryResponse { nonce: "3".to_owned(), ..endpoints.clone() };
        let rest = DeltaDiscoveryResponse {
            type_url: type_url::LB_ENDPOINT.to_owned(),
            nonce: "4".to_owned(),
            ..Default::default()
        };
        for response in [endpoints, assignments, again, rest] {
            let (type_url, nonce) = (response.type_url.clone(), response.nonce.clone());
            let answer = match client.on_response(response) {
                Ok(update) => {
                    for resource in &update.added {
                        expect(*resource.name == *NAME, || format!("{} is not wanted", resource.name))?;
                        let read = endpoint::ClusterLoadAssignment::decode(resource.body.as_slice());
                        let refers = |one: &endpoint::LocalityLbEndpoints| {
                            matches!(one.lb_config, Some(LbConfig::LedsClusterLocalityConfig(_)))
                        };
                        let Ok(read) = read else { continue };
                        expect(!read.endpoints.iter().any(refers), || "it is not whole".to_owned())?;
                        made += 1;
                    }
                    client.requests();
                    client.ack(update.token)
                }
                Err(bad) => bad.request.map(|request| *request),
            };
            let answer = answer.ok_or("no answer")?;
            expect(answer.response_nonce == nonce && answer.type_url == type_url, || {
                "an answer to something else".to_owned()
            })?;
        }
        client.disconnected();
        client.connect();
    }
    Ok(made > 0)
}
