//! What a proxy refuses, or does not know: its last good version serves, also in its next process, and it is told.

use std::net::SocketAddr;

use outrider_agent::OnStop;
use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::pb::envoy::config::cluster::v3::{Cluster, cluster::LbPolicy};
use outrider_xds_types::pb::envoy::config::route::v3::{RouteConfiguration, route, route_action};
use outrider_xds_types::prost::Message;
use outrider_xds_types::{features, names, type_url};
use rustix::process::Signal;

use crate::generations::Pair;
use crate::real::get;
use crate::{Mesh, OUT, eventually, fake_proxy, kill, shop};

/// Makes the routes of a proxy what no version carries out, and takes away what they led to.
fn spoil(set: &mut ResourceSet, proxy: &str, version: &str) {
    let name = names::scoped(type_url::ROUTE, proxy, OUT);
    let Some(good) = set.get(type_url::ROUTE, &name) else { return };
    let mut routes = RouteConfiguration::decode(good.body.as_slice()).unwrap();
    routes.virtual_hosts[0].include_attempt_count_in_response = true;
    set.insert(Resource::new(type_url::ROUTE, name, version, routes.encode_to_vec()));
}

/// Kills the caller's proxy twice: the next one `says` why it has not all that is declared, and serves.
async fn killed_twice(pair: &Pair, mut pid: u32, out: SocketAddr, says: impl Fn(&str) -> bool) {
    for round in 1..=2 {
        kill(pid, Signal::KILL);
        let next = pair.mesh.instance("shop/checkout", |i| {
            i.restarts == round && i.proxy_pid != 0 && i.proxy_pid != pid && says(&i.reason)
        });
        pid = next.await.proxy_pid;
        let answer = get(out).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// N28: the restart of a proxy that refused something comes up with the same last good set.
#[tokio::test(flavor = "multi_thread")]
async fn n28_a_killed_proxy_comes_back_with_the_last_good_version_of_what_is_refused() {
    let Some(pair) = Pair::start(OnStop::EndAll).await else { return };
    let out = pair.out().await;
    let calling = pair.mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let proxy = format!("shop/{}", calling.name);
    let spoiled = proxy.clone();
    pair.mesh.control().shared.spoil(Some(Box::new(move |set| spoil(set, &spoiled, "bad"))));
    let says = |reason: &str| reason.contains("include_attempt_count_in_response") && reason.contains(OUT);
    pair.mesh.instance("shop/checkout", |i| says(&i.reason)).await;
    assert!(get(out).await.starts_with("HTTP/1.1 200"));
    killed_twice(&pair, calling.proxy_pid, out, says).await;
    pair.mesh.control().shared.spoil(None);
    pair.mesh.instance("shop/checkout", |i| !says(&i.reason)).await;
    assert!(get(out).await.starts_with("HTTP/1.1 200"));
    pair.end().await;
}

/// Leads the routes of a proxy to a new cluster that no version carries out.
fn mislead(set: &mut ResourceSet, proxy: &str) {
    let scoped = |url: &str, name: &str| names::scoped(url, proxy, name);
    let Some(routes) = set.get(type_url::ROUTE, &scoped(type_url::ROUTE, OUT)) else { return };
    let mut routes = RouteConfiguration::decode(routes.body.as_slice()).unwrap();
    let Some(cluster) = set.get(type_url::CLUSTER, &scoped(type_url::CLUSTER, OUT)) else { return };
    let mut cluster = Cluster::decode(cluster.body.as_slice()).unwrap();
    cluster.name = NEW.to_owned();
    cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    let cluster =
        Resource::new(type_url::CLUSTER, scoped(type_url::CLUSTER, NEW), "new", cluster.encode_to_vec());
    set.insert(cluster);
    for route in routes.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
        if let Some(route::Action::Route(action)) = &mut route.action {
            action.cluster_specifier = Some(route_action::ClusterSpecifier::Cluster(NEW.to_owned()));
        }
    }
    set.insert(Resource::new(
        type_url::ROUTE,
        scoped(type_url::ROUTE, OUT),
        "misled",
        routes.encode_to_vec(),
    ));
}

const NEW: &str = "outbound/shop/new/http";

/// N28: what a refused new cluster holds back is in use in the next process as it was.
#[tokio::test(flavor = "multi_thread")]
async fn n28_a_killed_proxy_comes_back_with_what_a_refused_new_cluster_held_back() {
    let Some(pair) = Pair::start(OnStop::EndAll).await else { return };
    let out = pair.out().await;
    let calling = pair.mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let proxy = format!("shop/{}", calling.name);
    let misled = proxy.clone();
    pair.mesh.control().shared.spoil(Some(Box::new(move |set| mislead(set, &misled))));
    let says = |reason: &str| reason.contains(NEW);
    pair.mesh.instance("shop/checkout", |i| says(&i.reason)).await;
    assert!(get(out).await.starts_with("HTTP/1.1 200"));
    killed_twice(&pair, calling.proxy_pid, out, says).await;
    // One that takes over begins with that, too.
    pair.release("second", None);
    pair.upgrade("shop/checkout", "second").await.unwrap();
    pair.settled("shop/checkout", "second").await;
    assert!(get(out).await.starts_with("HTTP/1.1 200"));
    pair.mesh.instance("shop/checkout", |i| says(&i.reason)).await;
    pair.mesh.control().shared.spoil(None);
    pair.mesh.instance("shop/checkout", |i| !says(&i.reason)).await;
    assert!(get(out).await.starts_with("HTTP/1.1 200"));
    pair.end().await;
}

/// N7: what a version of the proxy does not know is not sent to it, and its owner hears what that is.
#[tokio::test(flavor = "multi_thread")]
async fn n7_a_proxy_is_sent_nothing_that_it_does_not_know() {
    let mut mesh = Mesh::prepare(&shop("native", 9)).await;
    let known: Vec<String> =
        features::advertised().into_iter().filter(|name| !name.ends_with(features::OUTLIER)).collect();
    mesh.proxy = fake_proxy::program_that_knows(mesh.path(), &known);
    mesh.start_agent(true).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    let why = "this version of fake-proxy does not know outlier-ejection";
    let calling = mesh.instance("shop/checkout", |i| i.reason.contains(why)).await;
    let proxy = format!("shop/{}", calling.name);
    eventually("the control plane is told", || async {
        mesh.control().shared.refused(&proxy, OUT).filter(|why| why.contains("which was not sent"))
    })
    .await;
    for kind in [type_url::CLUSTER, type_url::ROUTE, type_url::LISTENER] {
        let applied = mesh.control().shared.applied(&proxy, kind);
        assert!(!applied.contains_key(OUT), "{kind}: {applied:?}");
    }
    app.signals.send(Signal::TERM).unwrap();
    app.end().await;
    mesh.stop_agent().await;
}
