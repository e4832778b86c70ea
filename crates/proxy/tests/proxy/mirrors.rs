//! Copies of requests: where they go, that they are whole, and that originals never notice what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use outrider_xds::ResourceSet;
use outrider_xds_types::pb::envoy::config::route::v3::{RouteConfiguration, route};
use outrider_xds_types::type_url;

use tokio::io::AsyncWriteExt;

use super::resilience::{ms, refusing};
use super::support::*;

/// The cluster of copies.
pub const COPIES: &str = "outbound/shop/copy/main";

/// What `shop/web` gets: requests to `api` go there, and so many percent of them to `copy` as well.
pub fn mirrored(protocol: &str, percent: u32, api: &Origin, copy: &[std::net::SocketAddr]) -> ResourceSet {
    let kind = if protocol == "grpc" { "GRPCRoute" } else { "HTTPRoute" };
    let documents = pair(
        protocol,
        "off",
        1,
        &format!(
            "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: copy, namespace: shop}}
spec: {{role: server, ports: [{{name: main, port: 8080, targetPort: 1, protocol: {protocol}}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: api, namespace: shop}}
spec:
  parentRefs: [{{kind: Service, name: api, group: ''}}]
  rules:
    - filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: copy, port: 8080}}, percent: {percent}}}}}]
      backendRefs: [{{name: api, port: 8080}}]
"
        ),
    );
    let mut set = compiled(&documents, "shop/web");
    set.insert(assignment(ENDPOINTS, &[api.address()]));
    set.insert(assignment("shop/copy/main", copy));
    set
}

/// Limits of the routes: so many milliseconds until a response begins, and none for the whole.
pub fn limited(set: &mut ResourceSet, head: i64) {
    edit(set, type_url::ROUTE, OUTBOUND, |table: &mut RouteConfiguration| {
        for host in &mut table.virtual_hosts {
            host.retry_policy.get_or_insert_default().per_try_timeout = ms(head);
            for route in &mut host.routes {
                if let Some(route::Action::Route(action)) = &mut route.action {
                    action.timeout = ms(0);
                    action.retry_policy = None;
                }
            }
        }
    });
}

const POST: &str = "POST /a?b=c HTTP/1.1\r\nHost: api\r\nX-Kept: yes\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test]
async fn a_copy_is_the_request_and_its_answer_is_thrown_away() {
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = Proxy::start(mirrored("http", 100, &api, &[copy.address()])).await;
    let mut app = proxy.connect(OUTBOUND).await;
    let (mut to_api, mut to_copy) = (None, None);
    for round in 0..3 {
        app.send(POST).await;
        let api: &mut Peer = match &mut to_api {
            Some(peer) => peer,
            none => none.insert(api.accept().await),
        };
        let original = api.head().await;
        api.expect("hello").await;
        let copy: &mut Peer = match &mut to_copy {
            // The connection is used again: the answer before was read to its end.
            Some(peer) => peer,
            none => none.insert(copy.accept().await),
        };
        assert_eq!(copy.head().await, original, "{round}");
        copy.expect("hello").await;
        // Errors and odd answers of a copy are nobody's.
        copy.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n")
            .await;
        proxy.counted("the copy's answer is read", |stats| stats.clusters[COPIES].copies == round + 1).await;
        api.send(OK).await;
        app.expect(OK).await;
    }
    proxy
        .counted("numbers", |stats| {
            let (copies, main) = (&stats.clusters[COPIES], &stats.clusters[OUTBOUND]);
            (copies.copies, copies.copies_lost, copies.connections, main.requests) == (3, 0, 1, 3)
        })
        .await;
}

#[tokio::test]
async fn a_share_of_requests_is_copied() {
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = Proxy::start(mirrored("http", 20, &api, &[copy.address()])).await;
    api.answer_all("api");
    copy.answer_all("copy");
    let mut app = proxy.connect(OUTBOUND).await;
    for _ in 0..400 {
        app.send(GET).await;
        assert_eq!(app.response().await.1, "api");
    }
    // Six standard deviations around 80.
    proxy.counted("copies", |stats| stats.clusters[COPIES].copies >= 32).await;
    assert!(proxy.stats().await.clusters[COPIES].requests <= 128);
}

/// A body streams to both; the copy that does not read is given up, and its original goes on.
#[tokio::test]
async fn a_copy_that_cannot_keep_pace_is_given_up() {
    const PIECES: usize = 600;
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = Proxy::start(mirrored("http", 100, &api, &[copy.address()])).await;
    let mut app = proxy.connect(OUTBOUND).await;
    let piece = vec![b'x'; 32 << 10];
    let length = piece.len() * PIECES;
    app.send(format!("POST / HTTP/1.1\r\nHost: api\r\nContent-Length: {length}\r\n\r\n")).await;
    let (mut to_api, mut to_copy) = (api.accept().await, copy.accept().await);
    to_api.head().await;
    to_copy.head().await;
    for _ in 0..PIECES {
        app.send(&piece).await;
        to_api.take(piece.len()).await;
    }
    to_api.send(OK).await;
    app.expect(OK).await;
    proxy.counted("given up", |stats| stats.clusters[COPIES].copies_lost == 1).await;
    // It is told that it did not get all of it.
    assert_eq!(to_copy.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// A body that both read is whole at both.
#[tokio::test]
async fn a_streamed_body_arrives_whole_at_both() {
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let proxy = Proxy::start(mirrored("http", 100, &api, &[copy.address()])).await;
    let mut app = proxy.connect(OUTBOUND).await;
    app.send("POST / HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let (mut to_api, mut to_copy) = (api.accept().await, copy.accept().await);
    to_api.head().await;
    to_copy.head().await;
    for n in 0..50 {
        let chunk = format!("4\r\n{n:04}\r\n");
        app.send(&chunk).await;
        to_api.expect(&chunk).await;
        to_copy.expect(&chunk).await;
    }
    app.send("0\r\nX-Trailer: a\r\n\r\n").await;
    to_api.expect("0\r\nX-Trailer: a\r\n\r\n").await;
    to_copy.expect("0\r\nX-Trailer: a\r\n\r\n").await;
    to_api.send(OK).await;
    app.expect(OK).await;
}

/// No endpoint, a closed port, one that resets, one that is silent: no original notices.
#[tokio::test]
async fn nothing_that_becomes_of_a_copy_is_seen_by_its_original() {
    let silent = Origin::bind().await;
    let resetting = Origin::bind().await;
    let resets = resetting.address();
    tokio::spawn(async move {
        loop {
            let peer = resetting.accept().await;
            let _ = socket2::SockRef::from(&peer.tcp).set_linger(Some(std::time::Duration::ZERO));
        }
    });
    for copies in [vec![], vec![refusing().await], vec![resets], vec![silent.address()]] {
        let api = Origin::bind().await;
        let mut proxy = Proxy::start(mirrored("http", 100, &api, &copies)).await;
        api.answer_all("api");
        let mut app = proxy.connect(OUTBOUND).await;
        for request in [GET, POST, GET] {
            app.send(request).await;
            assert_eq!(app.response().await.1, "api");
        }
        let expected = copies != [silent.address()];
        proxy
            .counted("copies", |stats| {
                let copies = &stats.clusters[COPIES];
                copies.copies == 0 && (copies.copies_lost == 3 || !expected)
            })
            .await;
        let stats = proxy.stats().await;
        assert!(stats.listeners[OUTBOUND].reasons.is_empty(), "{:?}", stats.listeners[OUTBOUND].reasons);
        assert_eq!(stats.clusters[OUTBOUND].retries, 0);
    }
}

/// A caller that leaves in the middle of its body takes the copy with it, and a copy whose request is whole goes on.
#[tokio::test]
async fn a_copy_breaks_off_where_its_original_does() {
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = Proxy::start(mirrored("http", 100, &api, &[copy.address()])).await;
    let mut app = proxy.connect(OUTBOUND).await;
    app.send("POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 10\r\n\r\nhello").await;
    let (mut to_api, mut to_copy) = (api.accept().await, copy.accept().await);
    to_api.head().await;
    to_copy.head().await;
    to_api.expect("hello").await;
    to_copy.expect("hello").await;
    drop(app);
    drop(to_api.rest().await);
    assert_eq!(to_copy.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    proxy.counted("lost", |stats| stats.clusters[COPIES].copies_lost == 1).await;

    // This caller leaves after its request was whole, before it was answered.
    let mut app = proxy.connect(OUTBOUND).await;
    app.send(POST).await;
    let mut to_copy = copy.accept().await;
    to_copy.head().await;
    to_copy.expect("hello").await;
    socket2::SockRef::from(&app.tcp).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(app);
    proxy.counted("gone", |stats| stats.listeners[OUTBOUND].active_requests == 0).await;
    to_copy.send(OK).await;
    // The connection is kept for the next copy.
    let mut app = proxy.connect(OUTBOUND).await;
    app.send(GET).await;
    to_copy.head().await;
}

/// What asks for another protocol is not copied.
#[tokio::test]
async fn websockets_are_not_copied() {
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = Proxy::start(mirrored("http", 100, &api, &[copy.address()])).await;
    let (mut app, mut behind) = proxy.open_websocket(OUTBOUND, &api).await;
    app.send("hello").await;
    behind.expect("hello").await;
    assert_eq!(proxy.stats().await.clusters[COPIES].copies_lost, 0);
    assert!(copy.is_untouched().await);
}

/// Envoy's way of marking copies, where configuration does not switch it off.
#[tokio::test]
async fn the_host_of_a_copy_may_be_marked() {
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let mut set = mirrored("http", 100, &api, &[copy.address()]);
    edit(&mut set, type_url::ROUTE, OUTBOUND, |table: &mut RouteConfiguration| {
        for route in table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            if let Some(route::Action::Route(action)) = &mut route.action {
                action.request_mirror_policies[0].disable_shadow_host_suffix_append = false;
            }
        }
    });
    let proxy = Proxy::start(set).await;
    let mut app = proxy.connect(OUTBOUND).await;
    app.send("GET / HTTP/1.1\r\nHost: api:8080\r\n\r\n").await;
    assert_eq!(header(&api.accept().await.head().await, "host"), Some("api:8080"));
    assert_eq!(header(&copy.accept().await.head().await, "host"), Some("api-shadow:8080"));
}

/// An answer that never ends, of which something comes all the time, does not outlive the original for long.
#[tokio::test]
async fn a_copy_whose_answer_never_ends_is_given_up_after_its_original() {
    let arrange = async || {
        let (api, copy) = (Origin::bind().await, Origin::bind().await);
        let mut set = mirrored("http", 100, &api, &[copy.address()]);
        limited(&mut set, 1500);
        api.answer_all("api");
        let proxy = Proxy::start(set).await;
        let app = proxy.connect(OUTBOUND).await;
        (proxy, app, copy)
    };
    // With a body and without.
    for request in [GET, POST] {
        // The limit is that of the original as well.
        let begin = async |(proxy, mut app, copy): (Proxy, Peer, Origin)| {
            app.send(request).await;
            let mut to_copy = copy.accept().await;
            to_copy.head().await;
            assert_eq!(app.response().await.1, "api");
            to_copy.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            (proxy, app, to_copy)
        };
        let (mut proxy, _app, mut to_copy) = within(Duration::from_millis(1500), arrange, begin).await;
        let endless = async {
            while to_copy.tcp.write_all(b"1\r\nx\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("the end of the copy", endless).await;
        proxy
            .counted("given up", |stats| {
                let copies = &stats.clusters[COPIES];
                (copies.copies, copies.copies_lost) == (0, 1)
            })
            .await;
    }
}

#[tokio::test]
async fn interim_answers_to_a_copy_are_bounded() {
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = Proxy::start(mirrored("http", 100, &api, &[copy.address()])).await;
    api.answer_all("api");
    let mut app = proxy.connect(OUTBOUND).await;
    for (interim, expected) in [(32, (1, 0)), (33, (1, 1))] {
        app.send(GET).await;
        assert_eq!(app.response().await.1, "api");
        let mut to_copy = copy.accept().await;
        to_copy.head().await;
        let hints = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(interim);
        to_copy.send(hints + "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        proxy
            .counted("the answer", |stats| {
                let copies = &stats.clusters[COPIES];
                (copies.copies, copies.copies_lost) == expected
            })
            .await;
    }
}

/// A worker has so many copies at once; what is more is not made, and counted.
#[tokio::test]
async fn copies_at_once_are_bounded() {
    const MOST: u64 = 256;
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let mut set = mirrored("http", 100, &api, &[copy.address()]);
    limited(&mut set, 60_000);
    let mut proxy = Proxy::start(set).await;
    api.answer_all("api");
    // More than the kernel would hold.
    let (to, mut accepted) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = copy.listener.accept().await {
            let _ = to.send(Peer::new(tcp));
        }
    });
    let mut app = proxy.connect(OUTBOUND).await;
    for _ in 0..MOST + 3 {
        app.send(GET).await;
        assert_eq!(app.response().await.1, "api");
    }
    let numbers = |stats: &outrider_handover::Stats| {
        let copies = &stats.clusters[COPIES];
        (copies.active_connections, copies.copies, copies.copies_lost)
    };
    proxy.counted("all but three", |stats| numbers(stats) == (MOST, 0, 3)).await;
    // One that is over makes room for another.
    let mut first = soon("a copy", accepted.recv()).await.unwrap();
    first.head().await;
    first.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
    proxy.counted("one is over", |stats| numbers(stats) == (MOST - 1, 1, 3)).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "api");
    proxy.counted("another", |stats| numbers(stats) == (MOST, 1, 3)).await;
}

/// A change of the protocol has reached the cluster of copies first.
#[tokio::test]
async fn a_copy_that_its_cluster_does_not_understand_is_counted_as_lost() {
    for (protocol, other) in [("http", "http2"), ("http2", "http")] {
        let (api, copy) = (Origin::bind().await, Origin::bind().await);
        let mut set = mirrored(protocol, 100, &api, &[copy.address()]);
        let changed = mirrored(other, 100, &api, &[copy.address()]);
        let cluster = changed.of_type(type_url::CLUSTER).find(|found| *found.name == *COPIES).unwrap();
        set.insert(Arc::clone(cluster));
        let mut proxy = Proxy::start(set).await;
        if protocol == "http" {
            let mut app = proxy.connect(OUTBOUND).await;
            app.send(GET).await;
            let mut to_api = api.accept().await;
            to_api.head().await;
            to_api.send(OK).await;
            app.expect(OK).await;
        } else {
            let mut caller = super::http2::Caller::connect(&proxy, OUTBOUND).await;
            tokio::spawn(async move { super::http2::answer_one(&api).await });
            assert_eq!(caller.get("/").await.body, b"ok");
        }
        proxy.counted("lost", |stats| stats.clusters[COPIES].copies_lost == 1).await;
        assert!(copy.is_untouched().await);
    }
}
