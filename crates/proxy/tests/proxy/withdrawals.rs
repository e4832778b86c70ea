//! What is withdrawn from a proxy is acknowledged when no worker of it uses it any more, and not before: on that word the
//! inbound side of it goes (N31).

use std::sync::Arc;

use outrider_proxy::conductor::Options;
use outrider_xds::ResourceSet;
use outrider_xds::server::Seen;
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::route::v3::{RouteConfiguration, route, route_action};
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;

use super::resilience::{Scripted, set};
use super::support::*;

const OTHER: &str = "outbound/shop/other/main";
const ROUNDS: usize = 40;
const CALLERS: usize = 8;

/// Callers on connections of their own, spread over the workers.
async fn callers(proxy: &Proxy) -> Vec<Peer> {
    let mut all = Vec::new();
    for _ in 0..CALLERS {
        all.push(proxy.connect(OUTBOUND).await);
    }
    all
}

async fn all_ask(callers: &mut [Peer]) {
    for caller in callers {
        caller.send(GET).await;
        let (head, _) = caller.response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
}

async fn start(set: ResourceSet) -> Proxy {
    let options = Options { workers: Some(3), ..Options::default() };
    let mut proxy = Proxy::start_as(set, Sockets::new(), options).await;
    soon("ready", proxy.wait_ready()).await;
    proxy
}

/// The same with another cluster in the place of the one that there is.
fn led_elsewhere(set: &ResourceSet, origin: std::net::SocketAddr) -> ResourceSet {
    let mut other = set.clone();
    let body = other.remove(type_url::CLUSTER, OUTBOUND).unwrap().body.clone();
    let mut cluster = Cluster::decode(body.as_slice()).unwrap();
    cluster.name = OTHER.to_owned();
    cluster.eds_cluster_config.as_mut().unwrap().service_name = "shop/other/main".to_owned();
    other.insert(resource(type_url::CLUSTER, OTHER, &cluster));
    other.remove(type_url::ENDPOINT, ENDPOINTS).unwrap();
    other.insert(assignment("shop/other/main", &[origin]));
    edit(&mut other, type_url::ROUTE, OUTBOUND, |table: &mut RouteConfiguration| {
        for route in table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            if let Some(route::Action::Route(action)) = &mut route.action {
                action.cluster_specifier = Some(route_action::ClusterSpecifier::Cluster(OTHER.to_owned()));
            }
        }
    });
    other
}

#[tokio::test]
async fn n31_a_cluster_is_acknowledged_as_gone_when_no_worker_leads_to_it() {
    let origins = [Scripted::always(200, "a").await, Scripted::always(200, "b").await];
    let first = set("http", &[origins[0].address]);
    let sets = [first.clone(), led_elsewhere(&first, origins[1].address)];
    let mut proxy = start(first).await;
    let mut callers = callers(&proxy).await;
    for round in 1..=ROUNDS {
        let (now, before) = (round % 2, (round + 1) % 2);
        all_ask(&mut callers).await;
        while proxy.seen.try_recv().is_ok() {}
        proxy.configure(sets[now].clone()).await;
        let gone: Arc<str> = [OUTBOUND, OTHER][before].into();
        let withdrawn = |seen: &Seen| match seen {
            Seen::Acked { type_url, removed, .. } => {
                **type_url == *type_url::CLUSTER && removed.contains(&gone)
            }
            _ => false,
        };
        proxy.saw("the withdrawal", withdrawn).await;
        let hits = origins[before].hits();
        all_ask(&mut callers).await;
        assert_eq!(origins[before].hits(), hits, "round {round}: used after it was said to be gone");
    }
}

/// Edge case 55: the same of a single endpoint; what is under way there goes on.
#[tokio::test]
async fn n31_e55_an_endpoint_is_acknowledged_as_gone_when_no_worker_picks_it() {
    let origins = [Scripted::always(200, "a").await, Scripted::always(200, "b").await];
    let slow = Origin::bind().await;
    let mut all = set("http", &[slow.address()]);
    let mut proxy = start(all.clone()).await;
    let (mut waiting, mut at_work) = proxy.ask(OUTBOUND, GET, &slow).await;
    let mut callers = callers(&proxy).await;
    for round in 0..ROUNDS {
        let (now, before) = (round % 2, (round + 1) % 2);
        while proxy.seen.try_recv().is_ok() {}
        all.insert(assignment(ENDPOINTS, &[origins[now].address]));
        proxy.configure(all.clone()).await;
        proxy.acked(type_url::ENDPOINT).await;
        let hits = origins[before].hits();
        all_ask(&mut callers).await;
        assert_eq!(origins[before].hits(), hits, "round {round}: picked after it was said to be gone");
    }
    assert!(slow.is_untouched().await);
    at_work.send(OK).await;
    waiting.expect(OK).await;
}
