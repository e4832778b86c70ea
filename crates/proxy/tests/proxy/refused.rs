//! One bad resource is refused with its path and cause, keeps its own last good version, and concerns nobody else
//! (N28).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use outrider_xds::ResourceSet;
use outrider_xds::server::Seen;
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrider_xds_types::pb::envoy::config::listener::v3::Listener;
use outrider_xds_types::pb::envoy::config::route::v3::{RouteConfiguration, route, route_action};
use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID, type_url};

use super::support::*;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// `shop/web` calls `a`, `b` and `c`.
fn calls(mtls: &str) -> String {
    let mut yaml = format!(
        "apiVersion: outrider.dev/v1alpha1
kind: Namespace
metadata: {{name: shop}}
spec: {{mtls: '{mtls}'}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{role: client, calls: [a, b, c]}}
"
    );
    for name in NAMES {
        yaml.push_str(&format!(
            "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{role: server, ports: [{{name: main, port: 80, targetPort: 1, protocol: http}}]}}
"
        ));
    }
    yaml
}

fn outbound(name: &str) -> String {
    format!("outbound/shop/{name}/main")
}

fn endpoints(name: &str) -> String {
    format!("shop/{name}/main")
}

/// The proxy of `shop/web` leading to one origin each.
async fn three() -> (Proxy, ResourceSet, [SocketAddr; 3]) {
    let mut set = compiled(&calls("off"), "shop/web");
    let mut origins = Vec::new();
    for name in NAMES {
        let origin = Origin::bind().await.answer_all(name);
        set.insert(assignment(&endpoints(name), &[origin]));
        origins.push(origin);
    }
    (Proxy::start(set.clone()).await, set, origins.try_into().unwrap())
}

async fn answers(proxy: &Proxy, name: &str) -> String {
    let mut app = proxy.connect(&outbound(name)).await;
    app.send(GET).await;
    app.response().await.1
}

type Change = fn(&mut ResourceSet, &str);

/// A field that is carried out in no version so far, and where it is.
const BREAKS: [(&str, Change, &str); 4] = [
    (
        type_url::LISTENER,
        |set, name| {
            edit::<Listener>(set, type_url::LISTENER, &outbound(name), |l| {
                l.freebind = Some(Default::default());
            })
        },
        "freebind",
    ),
    (
        type_url::ROUTE,
        |set, name| {
            edit::<RouteConfiguration>(set, type_url::ROUTE, &outbound(name), |r| {
                r.virtual_hosts[0].include_attempt_count_in_response = true;
            })
        },
        "include_attempt_count_in_response",
    ),
    (
        type_url::CLUSTER,
        |set, name| {
            edit::<Cluster>(set, type_url::CLUSTER, &outbound(name), |c| {
                c.close_connections_on_host_health_failure = true;
            })
        },
        "close_connections_on_host_health_failure",
    ),
    (
        type_url::ENDPOINT,
        |set, name| {
            edit::<ClusterLoadAssignment>(set, type_url::ENDPOINT, &endpoints(name), |e| {
                e.named_endpoints.insert("x".to_owned(), Default::default());
            });
        },
        "named_endpoints",
    ),
];

/// The same resource in another version that is as good.
fn touch(set: &mut ResourceSet, type_url: &str, name: &str) {
    let name = if type_url == type_url::ENDPOINT { endpoints(name) } else { outbound(name) };
    let body = set.get(type_url, &name).unwrap().body.clone();
    set.insert(outrider_xds::Resource::new(type_url, name, format!("touched {}", body.len()), body));
}

#[tokio::test]
async fn one_bad_resource_of_any_type_concerns_itself_alone_until_it_is_repaired() {
    for (type_url, break_it, field) in BREAKS {
        let (mut proxy, good, _) = three().await;
        let mut set = good.clone();
        // In the middle of one response, whose others change too.
        for name in ["a", "c"] {
            touch(&mut set, type_url, name);
        }
        break_it(&mut set, "b");
        while proxy.seen.try_recv().is_ok() {}
        proxy.configure(set.clone()).await;
        let (mut acked, mut refused) = (BTreeSet::new(), Vec::new());
        while acked.len() < 2 || refused.is_empty() {
            let about = |seen: &Seen| {
                matches!(seen,
                Seen::Acked { type_url: url, .. } | Seen::Refused { type_url: url, .. } if **url == *type_url)
            };
            match proxy.saw("answers", about).await {
                // Others are those of the start.
                Seen::Acked { resources, .. } => {
                    let new = resources.into_iter().filter(|(_, version)| version.starts_with("touched"));
                    acked.extend(new.map(|(name, _)| name));
                }
                Seen::Refused { resources, error, .. } => refused.push((resources, error)),
                _ => {}
            }
        }
        let [(resources, error)] = refused.as_slice() else { panic!("{refused:?}") };
        assert_eq!(resources.len(), 1, "{refused:?}");
        assert!(resources[0].0.contains("/b/"), "{refused:?}");
        assert!(error.contains(field), "{error}");
        assert!(acked.iter().all(|name| !name.contains("/b/")), "{acked:?}");
        for name in NAMES {
            assert_eq!(answers(&proxy, name).await, name, "{type_url}");
        }
        // What the last good version leads to still follows.
        if type_url != type_url::ENDPOINT {
            let other = Origin::bind().await.answer_all("other");
            set.insert(assignment(&endpoints("b"), &[other]));
            proxy.configure(set.clone()).await;
            proxy.acked(type_url::ENDPOINT).await;
            assert_eq!(answers(&proxy, "b").await, "other", "{type_url}");
        }
        let mut repaired = good.clone();
        touch(&mut repaired, type_url, "b");
        proxy.configure(repaired).await;
        proxy.acked(type_url).await;
        for name in NAMES {
            assert_eq!(answers(&proxy, name).await, name, "{type_url}");
        }
    }
}

#[tokio::test]
async fn a_bad_certificate_is_refused_beside_a_good_bundle_and_the_other_way_round() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = super::mesh::servers("http", "required", &origin, &authority).await;
    let client = super::mesh::clients("http", &server, &authority, "shop/web").await;
    let yaml = pair("http", "required", origin.port(), "");
    for bad in [SECRET_SVID, SECRET_BUNDLE] {
        let mut set = compiled(&yaml, "shop/api");
        for secret in authority.secrets("shop/api") {
            set.insert(secret);
        }
        edit::<Secret>(&mut set, type_url::SECRET, bad, |secret| match &mut secret.r#type {
            Some(secret::Type::TlsCertificate(own)) => own.private_key = own.certificate_chain.clone(),
            Some(secret::Type::ValidationContext(roots)) => roots.trusted_ca = None,
            _ => {}
        });
        while server.seen.try_recv().is_ok() {}
        server.configure(set).await;
        let refused = server.saw("refusal", |seen| matches!(seen, Seen::Refused { .. })).await;
        let Seen::Refused { resources, .. } = refused else { panic!() };
        assert_eq!(resources.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), [bad]);
        let (mut app, mut behind) = client.ask(OUTBOUND, GET, &origin).await;
        behind.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(app.response().await.1, "ok");
    }
}

/// Leads the routes to `b` to the cluster `new`.
fn lead_to_new(set: &mut ResourceSet) {
    edit::<RouteConfiguration>(set, type_url::ROUTE, &outbound("b"), |routes| {
        for route in routes.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            if let Some(route::Action::Route(action)) = &mut route.action {
                action.cluster_specifier = Some(route_action::ClusterSpecifier::Cluster("new".to_owned()));
            }
        }
    });
}

fn new_cluster(set: &mut ResourceSet, bad: bool) {
    let like = set.get(type_url::CLUSTER, &outbound("c")).unwrap().clone();
    set.insert(like.renamed("new"));
    edit::<Cluster>(set, type_url::CLUSTER, "new", |cluster| {
        cluster.name = "new".to_owned();
        cluster.close_connections_on_host_health_failure = bad;
    });
}

#[tokio::test]
async fn what_needs_a_refused_resource_waits_for_its_repair_and_serves_as_before() {
    let (mut proxy, mut set, _) = three().await;
    new_cluster(&mut set, true);
    lead_to_new(&mut set);
    touch(&mut set, type_url::ROUTE, "c");
    proxy.configure(set.clone()).await;
    let refused = proxy.saw("refusal", |seen| matches!(seen, Seen::Refused { .. })).await;
    assert!(format!("{refused:?}").contains("\"new\""), "{refused:?}");
    assert_eq!(answers(&proxy, "b").await, "b");
    new_cluster(&mut set, false);
    proxy.configure(set).await;
    soon("the repaired one", async {
        while answers(&proxy, "b").await != "c" {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A proxy that begins in this state has what is good, and is ready: it does not wait for what cannot come. What is
/// repaired is taken up, with all that waited for it, and the refusals are taken back.
#[tokio::test]
async fn a_proxy_that_begins_with_bad_resources_serves_the_rest() {
    for (type_url, break_it, field) in BREAKS {
        let (_, good, _) = three().await;
        let mut set = good.clone();
        break_it(&mut set, "b");
        let mut proxy = Proxy::start(set).await;
        for name in ["a", "c"] {
            assert_eq!(answers(&proxy, name).await, name, "{type_url}");
        }
        let listener = |seen: &Seen| match seen {
            Seen::Refused { type_url: url, resources, .. } => {
                **url == *type_url::LISTENER && resources.iter().any(|(name, _)| **name == *outbound("b"))
            }
            _ => false,
        };
        let Seen::Refused { error, .. } = proxy.saw("the listener is given up", listener).await else {
            panic!()
        };
        assert!(error.contains(field), "what it waits for says why: {error}");
        while proxy.seen.try_recv().is_ok() {}
        proxy.configure(good).await;
        let is_used = |seen: &Seen| match seen {
            Seen::Acked { type_url: url, resources, .. } => {
                **url == *type_url::LISTENER && resources.iter().any(|(name, _)| **name == *outbound("b"))
            }
            _ => false,
        };
        proxy.saw("the listener is in use", is_used).await;
        assert_eq!(answers(&proxy, "b").await, "b", "{type_url}");
    }
}

/// One that is to take over from another process does not do so without what that had.
#[tokio::test]
async fn a_held_proxy_is_not_ready_without_what_waits_for_something_refused() {
    let (former, good, _) = three().await;
    let mut set = good.clone();
    let (_, break_it, _) = BREAKS[1];
    break_it(&mut set, "b");
    let options = outrider_proxy::conductor::Options { hold: true, ..Default::default() };
    let mut next = Proxy::start_next(&former, set, options).await;
    next.saw("the listener is given up", |seen| match seen {
        Seen::Refused { type_url: url, .. } => **url == *type_url::LISTENER,
        _ => false,
    })
    .await;
    // What comes first is the answer to what is asked now.
    next.agent.send(&outrider_handover::ToProxy::Ping { id: 7 }, &[]).await.unwrap();
    assert_eq!(next.message().await, outrider_handover::FromProxy::Pong { id: 7 });
    next.configure(good).await;
    soon("ready", next.wait_ready()).await;
}

/// N7: what an older proxy has in use as the last good version of something that it does not know outlives its stream.
#[tokio::test]
async fn n7_a_new_stream_takes_nothing_from_a_proxy_that_does_not_know_everything() {
    use outrider_proxy::conductor::Options;
    use outrider_xds_types::features;
    let origins = [Origin::bind().await.answer_all("a"), Origin::bind().await.answer_all("a")];
    let mut newer = compiled(&pair("http", "off", 1, ""), "shop/web");
    newer.insert(assignment(ENDPOINTS, &origins[..1]));
    let mut older = newer.clone();
    edit(&mut older, type_url::CLUSTER, OUTBOUND, |cluster: &mut Cluster| {
        assert!(cluster.outlier_detection.take().is_some(), "there is something that it does not know");
    });
    let known =
        features::advertised().into_iter().filter(|name| !name.ends_with(features::OUTLIER)).collect();
    let options = Options { features: Some(known), ..Options::default() };
    let mut proxy = Proxy::start_as(older, Sockets::new(), options).await;
    soon("ready", proxy.wait_ready()).await;
    let not_sent = |seen: &Seen| match seen {
        Seen::Refused { type_url, error, .. } => {
            **type_url == *type_url::CLUSTER && error.contains("does not know outlier-ejection")
        }
        _ => false,
    };
    let mut app = proxy.connect(OUTBOUND).await;
    for round in 0..3 {
        if round > 0 {
            proxy.stop_xds();
            proxy.start_xds();
        }
        // Something beside it that is taken, so that all the rest was decided.
        newer.insert(assignment(ENDPOINTS, &[origins[(round + 1) % 2]]));
        proxy.configure(newer.clone()).await;
        proxy.saw("the cluster was not sent", not_sent).await;
        proxy.acked(type_url::ENDPOINT).await;
        app.send(GET).await;
        let (head, body) = app.response().await;
        assert_eq!(body, "a", "round {round}: {head}");
    }
    edit(&mut newer, type_url::CLUSTER, OUTBOUND, |cluster: &mut Cluster| cluster.outlier_detection = None);
    proxy.configure(newer).await;
    proxy.acked(type_url::CLUSTER).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "a");
}
