//! Configuration that changes under traffic, and the end.

use super::support::*;
use outrider_proxy_core::reason::Reason;
use outrider_xds::server::Seen;
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;

#[tokio::test]
async fn endpoints_change_under_an_open_connection() {
    let (a, b) = (Origin::bind().await.answer_all("a"), Origin::bind().await.answer_all("b"));
    let mut proxy = client_proxy("http", &[a]).await;
    let mut app = proxy.connect(OUTBOUND).await;
    let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
    for (endpoint, name) in [(a, "a"), (b, "b"), (a, "a")] {
        while proxy.seen.try_recv().is_ok() {}
        let now = assignment(ENDPOINTS, &[endpoint]);
        let changed = set.insert(now);
        proxy.configure(set.clone()).await;
        if changed && name == "b" {
            proxy.acked(type_url::ENDPOINT).await;
        }
        soon("the new endpoint", async {
            loop {
                app.send(GET).await;
                let (head, body) = app.response().await;
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                if body == name {
                    return;
                }
            }
        })
        .await;
    }
}

#[tokio::test]
async fn routes_change_under_an_open_connection() {
    let origin = Origin::bind().await.answer_all("a");
    let mut proxy = client_proxy("http", &[origin]).await;
    let mut app = proxy.connect(OUTBOUND).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "a");

    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: only, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: api}]
  rules:
    - matches: [{path: {type: PathPrefix, value: /yes}}]
      backendRefs: [{name: api, port: 8080}]
";
    let mut set = compiled(&pair("http", "off", 1, route), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin]));
    while proxy.seen.try_recv().is_ok() {}
    proxy.configure(set).await;
    proxy.acked(type_url::ROUTE).await;
    app.send(GET).await;
    let (head, _) = app.response().await;
    assert_eq!(header(&head, "x-outrider-reason"), Some(Reason::NoRoute.as_str()));
    app.send("GET /yes HTTP/1.1\r\nHost: api\r\n\r\n").await;
    assert_eq!(app.response().await.1, "a");
}

/// Edge case 46.
#[tokio::test]
async fn a_removed_listener_finishes_what_is_under_way_and_refuses_what_comes_after() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("http", &[origin.address()]).await;
    let mut idle = proxy.connect(OUTBOUND).await;
    let (mut busy, mut server) = proxy.ask(OUTBOUND, GET, &origin).await;
    proxy.counted("both", |stats| stats.listeners[OUTBOUND].active_connections == 2).await;
    while proxy.seen.try_recv().is_ok() {}
    proxy.configure(outrider_xds::ResourceSet::new()).await;
    proxy.acked(type_url::LISTENER).await;

    server.send(OK).await;
    busy.expect(OK).await;
    assert_eq!(server.rest().await.unwrap(), b"", "its connection is closed with its cluster");
    for connection in [&mut busy, &mut idle] {
        connection.send(GET).await;
        let (head, _) = connection.response().await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(header(&head, "x-outrider-reason"), Some(Reason::UnknownService.as_str()));
        assert_eq!(header(&head, "connection"), Some("close"));
        assert_eq!(connection.rest().await.unwrap(), b"");
    }
    assert!(origin.is_untouched().await);

    // It may come back.
    let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    proxy.configure(set).await;
    let (mut app, mut server) = proxy.ask(OUTBOUND, GET, &origin).await;
    server.send(OK).await;
    app.expect(OK).await;
}

#[tokio::test]
async fn another_xds_server_is_found_and_heard() {
    let (a, b) = (Origin::bind().await.answer_all("a"), Origin::bind().await.answer_all("b"));
    let mut proxy = client_proxy("http", &[a]).await;
    let mut app = proxy.connect(OUTBOUND).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "a");
    proxy.stop_xds();
    let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[b]));
    proxy.configure(set).await;
    proxy.start_xds();
    proxy.acked(type_url::ENDPOINT).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "b", "on the connection that was open all the time");
}

#[tokio::test]
async fn several_workers_share_the_sockets_and_add_up() {
    let origin = Origin::bind().await.answer_all("a");
    let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin]));
    let mut proxy = Proxy::start_with(set.clone(), 3).await;
    soon("ready", proxy.wait_ready()).await;
    let mut apps = Vec::new();
    for _ in 0..24 {
        let mut app = proxy.connect(OUTBOUND).await;
        app.send(GET).await;
        assert_eq!(app.response().await.1, "a");
        apps.push(app);
    }
    proxy
        .counted("all of them", |stats| {
            let listener = &stats.listeners[OUTBOUND];
            (listener.connections, listener.active_connections, listener.requests) == (24, 24, 24)
        })
        .await;
    proxy.ping(7).await;
    // An acknowledgement means that every worker has it.
    let other = Origin::bind().await.answer_all("b");
    set.insert(assignment(ENDPOINTS, &[other]));
    while proxy.seen.try_recv().is_ok() {}
    proxy.configure(set).await;
    proxy.acked(type_url::ENDPOINT).await;
    for app in &mut apps {
        app.send(GET).await;
        assert_eq!(app.response().await.1, "b");
    }
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name_and_field_and_the_rest_serves() {
    let origin = Origin::bind().await.answer_all("a");
    let mut proxy = client_proxy("http", &[origin]).await;
    let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin]));
    let bad =
        Cluster { name: "bad".into(), close_connections_on_host_health_failure: true, ..Cluster::default() };
    set.insert(outrider_xds::Resource::new(type_url::CLUSTER, "bad", "1", bad.encode_to_vec()));
    proxy.configure(set).await;
    let seen = proxy.saw("refusal", |seen| matches!(seen, Seen::Refused { .. })).await;
    let text = format!("{seen:?}");
    assert!(text.contains("\"bad\"") && text.contains("error: \"load_assignment"), "{text}");
    let mut app = proxy.connect(OUTBOUND).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "a");
}

#[tokio::test]
async fn traffic_outlives_agent_and_xds_server() {
    let origin = Origin::bind().await.answer_all("a");
    let mut proxy = client_proxy("http", &[origin]).await;
    let mut app = proxy.connect(OUTBOUND).await;
    proxy.stop_xds();
    proxy.agent = outrider_handover::Channel::pair().unwrap().0;
    for _ in 0..3 {
        app.send(GET).await;
        assert_eq!(app.response().await.1, "a");
        let mut another = proxy.connect(OUTBOUND).await;
        another.send(GET).await;
        assert_eq!(another.response().await.1, "a");
    }
}

#[tokio::test]
async fn draining_finishes_what_is_open_and_says_close() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("http", &[origin.address()]).await;
    let (mut busy, mut server) = proxy.ask(OUTBOUND, GET, &origin).await;
    let finish = async {
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let (head, body) = busy.response().await;
        assert_eq!((header(&head, "connection"), body.as_str()), (Some("close"), "ok"));
        assert_eq!(busy.rest().await.unwrap(), b"");
    };
    proxy.tell(outrider_handover::ToProxy::Drain { drain_ms: 600_000, inbound_only: false }).await;
    proxy.ping(1).await;
    let (cut, ()) = tokio::join!(proxy.drained(false), finish);
    assert_eq!(cut.sum(), 0);
    proxy.join();

    let mut proxy = client_proxy("http", &[origin.address()]).await;
    let mut idle = proxy.connect(OUTBOUND).await;
    proxy.counted("it was taken", |stats| stats.listeners[OUTBOUND].active_connections == 1).await;
    assert_eq!(proxy.drain(2_000).await, 0);
    assert_eq!(idle.rest().await.unwrap(), b"", "idle connections end after the grace");
    proxy.join();
}

#[tokio::test]
async fn a_draining_proxy_still_answers_its_agent() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("http", &[origin.address()]).await;
    let (_busy, _server) = proxy.ask(OUTBOUND, GET, &origin).await;
    proxy.tell(outrider_handover::ToProxy::Drain { drain_ms: 60_000, inbound_only: false }).await;
    assert_eq!(proxy.stats().await.listeners[OUTBOUND].active_connections, 1);
    proxy.ping(9).await;
    // A later drain may bring the end forward.
    assert_eq!(proxy.drain(1).await, 1);
    proxy.join();
}

#[tokio::test]
async fn the_deadline_of_a_drain_cuts_and_counts() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("http", &[origin.address()]).await;
    let (_busy, _server) = proxy.ask(OUTBOUND, GET, &origin).await;
    assert_eq!(proxy.drain(200).await, 1);
    proxy.join();
}

/// Edge case 51: versions that say nothing new make no generation of a listener, and so pile none up that drains.
#[tokio::test]
async fn e51_the_same_listener_under_fifty_versions_stays_the_one_it_was() {
    let origin = Origin::bind().await;
    let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    let mut proxy = Proxy::start(set.clone()).await;
    let (mut socket, mut behind) = proxy.open_websocket(OUTBOUND, &origin).await;
    let (mut kept, mut kept_behind) = proxy.ask(OUTBOUND, GET, &origin).await;
    kept_behind.send(OK).await;
    kept.expect(OK).await;
    let listeners: Vec<_> = proxy.stats().await.listeners.into_keys().collect();
    let same: Vec<_> = set.of_type(type_url::LISTENER).cloned().collect();
    for version in 0..50 {
        for listener in &same {
            let (name, body) = (&*listener.name, listener.body.clone());
            set.insert(outrider_xds::Resource::new(
                type_url::LISTENER,
                name,
                format!("again {version}"),
                body,
            ));
        }
        proxy.configure(set.clone()).await;
        let wanted = proxy.published();
        proxy.counted("the version to be in use", |stats| stats.configuration == wanted).await;
        socket.send("there").await;
        behind.expect("there").await;
        behind.send("and back").await;
        socket.expect("and back").await;
        // A listener that goes says `Connection: close`.
        kept.send(GET).await;
        kept_behind.head().await;
        kept_behind.send(OK).await;
        kept.expect(OK).await;
        let stats = proxy.stats().await;
        assert!(stats.drain.is_none(), "{:?}", stats.drain);
        assert!(stats.listeners.keys().eq(&listeners), "{:?}", stats.listeners.keys());
        let of = &stats.listeners[OUTBOUND];
        assert_eq!((of.connections, of.active_connections), (2, 2), "{version}");
    }
}
