//! Connections to endpoints that have grown old.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::super::resilience::Scripted;
use super::*;

/// The proxy of a caller, where connections to endpoints are used for so long.
async fn aging(protocol: &str, age: &str, origin: SocketAddr) -> Proxy {
    limited(protocol, &format!("maxConnectionAge: {age}"), origin).await
}

async fn limited(protocol: &str, limits: &str, origin: SocketAddr) -> Proxy {
    Proxy::start(limits_of(protocol, limits, origin)).await
}

/// What it is configured with.
fn limits_of(protocol: &str, limits: &str, origin: SocketAddr) -> ResourceSet {
    let policy = format!(
        "---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: api, namespace: shop}}
spec: {{targetRef: {{kind: Service, name: api}}, limits: {{{limits}}}}}
"
    );
    let mut set = compiled(&pair(protocol, "off", 1, &policy), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin]));
    set
}

/// A connection that is too old ends between two requests; one that may be as old as it likes does not.
#[tokio::test]
async fn e33_an_old_connection_of_http1_serves_no_further_request() {
    let origin = Scripted::always(200, "ok").await;
    let (mut proxies, mut clients) = (Vec::new(), Vec::new());
    for age in ["150ms", "0s"] {
        let proxy = aging("http", age, origin.address).await;
        clients.push(proxy.connect(OUTBOUND).await);
        proxies.push(proxy);
    }
    soon("the third connection", async {
        while proxies[0].stats().await.clusters[OUTBOUND].connections < 3 {
            for client in &mut clients {
                client.send(GET).await;
                let (head, _) = client.response().await;
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            }
        }
    })
    .await;
    proxies[0].counted("old ones are closed", |stats| stats.clusters[OUTBOUND].active_connections <= 1).await;
    assert_eq!(proxies[1].stats().await.clusters[OUTBOUND].connections, 1);
}

/// An old connection takes no further stream; those that it has end there.
#[tokio::test]
async fn e33_an_old_connection_of_http2_ends_after_its_last_stream() {
    let origin = Origin::bind().await;
    let mut proxy = aging("http2", "150ms", origin.address()).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (long, mut upload) = caller.ask(post("/long"), false).await;
    let mut first = Served::accept(&origin).await;
    let (request, mut long_send) = first.next().await;
    let mut arriving = request.into_body();

    // Which connection each request came on: 0 is the first.
    let (told, mut came) = mpsc::unbounded_channel();
    let mut next = tokio::spawn(async move { Served::accept(&origin).await });
    let accepting = tokio::spawn(async move {
        let mut second = loop {
            tokio::select! {
                arrived = first.next() => {
                    reply(&mut { arrived }.1, "ok");
                    told.send(0).unwrap();
                }
                second = &mut next => break second.unwrap(),
            }
        };
        // It is there before it can be used.
        loop {
            let (arrived, which) = tokio::select! {
                arrived = first.next() => (arrived, 0),
                arrived = second.next() => (arrived, 1),
            };
            reply(&mut { arrived }.1, "ok");
            told.send(which).unwrap();
            if which == 1 {
                break;
            }
        }
        (first, second)
    });
    let mut asked = 0;
    loop {
        assert_eq!(caller.get("/short").await.text(), "ok");
        asked += 1;
        if soon("where it came", came.recv()).await == Some(1) {
            break;
        }
    }
    assert!(asked > 1, "the first one served others before");
    let (first, _second) = accepting.await.unwrap();
    assert!(!first.driver.is_finished(), "a stream is open there");
    upload.send_data(Bytes::from_static(b"the end"), true).unwrap();
    assert_eq!(body(&mut arriving).await.unwrap(), b"the end");
    reply(&mut long_send, "well");
    assert_eq!(answer(long).await.text(), "well");
    soon("its end", first.driver).await.unwrap();
    proxy.counted("one is left", |stats| stats.clusters[OUTBOUND].active_connections == 1).await;
}

/// An old connection serves on until there is another one, whatever keeps that from being made: here it is its own place among
/// connections, of which there is one.
#[tokio::test]
async fn e33_an_old_connection_of_http2_serves_until_there_is_another() {
    let origin = Origin::bind().await;
    let mut proxy =
        limited("http2", "maxConnectionAge: 100ms, connections: 1, pending: 1", origin.address()).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (long, mut upload) = caller.ask(post("/long"), false).await;
    let mut endpoint = Served::accept(&origin).await;
    let (request, mut long_send) = endpoint.next().await;
    // Several of its ages.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(400) {
        let asked: Vec<_> = [caller.ask(get("/a"), true).await.0, caller.ask(get("/b"), true).await.0].into();
        for response in asked {
            reply(&mut endpoint.next().await.1, "ok");
            assert_eq!(answer(response).await.text(), "ok");
        }
    }
    upload.send_data(Bytes::from_static(b"the end"), true).unwrap();
    assert_eq!(body(&mut request.into_body()).await.unwrap(), b"the end");
    reply(&mut long_send, "well");
    assert_eq!(answer(long).await.text(), "well");
    let stats = proxy.stats().await;
    assert_eq!(stats.clusters[OUTBOUND].connections, 1);
    assert!(stats.listeners[OUTBOUND].reasons.is_empty(), "{:?}", stats.listeners[OUTBOUND].reasons);
}

/// Holds the first request of every connection for ever, and answers the others.
fn hold_first(origin: Origin) -> SocketAddr {
    let address = origin.address();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = origin.listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                let mut held = None;
                while let Some(Ok((_, mut send))) = connection.accept().await {
                    if held.is_some() {
                        reply(&mut send, "ok");
                    } else {
                        let head = Response::builder().header("x-held", "1").body(()).unwrap();
                        held = Some(send.send_response(head, false).unwrap());
                    }
                }
            });
        }
    });
    address
}

/// Streams that last longer than a connection may are on one connection besides the one that serves, not on one more for each
/// age: all of them take places of the cluster's, which others need.
#[tokio::test]
async fn e33_long_streams_keep_no_more_than_one_old_connection_of_http2() {
    let (first, second) = (Origin::bind().await, Origin::bind().await);
    let limits = "maxConnectionAge: 150ms, connections: 8, pending: 8";
    let mut set = limits_of("http2", limits, hold_first(first));
    let mut proxy = Proxy::start(set.clone()).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let mut held = Vec::new();
    // Until there were two, and several ages of the second have passed.
    let mut since = None;
    soon("several ages", async {
        while since.is_none_or(|since: Instant| since.elapsed() < Duration::from_millis(1500)) {
            let response = soon("a response", caller.ask(get("/"), true).await.0).await.unwrap();
            if response.headers().contains_key("x-held") {
                held.push(response.into_body());
                since = since.or_else(|| (held.len() == 2).then(Instant::now));
            } else {
                // One that is dropped early is a stream that the caller gave up.
                body(&mut response.into_body()).await.unwrap();
            }
        }
    })
    .await;
    assert_eq!(held.len(), 2);
    proxy.counted("those two", |stats| stats.clusters[OUTBOUND].active_connections == 2).await;

    set.insert(assignment(ENDPOINTS, &[hold_first(second)]));
    proxy.configure(set).await;
    soon("the second endpoint", async {
        loop {
            let response = soon("a response", caller.ask(get("/"), true).await.0).await.unwrap();
            assert_eq!(response.status(), 200);
            if response.headers().contains_key("x-held") {
                held.push(response.into_body());
                break;
            }
            body(&mut response.into_body()).await.unwrap();
        }
    })
    .await;
    assert!(proxy.stats().await.listeners[OUTBOUND].reasons.is_empty());
}

/// Nobody needs another one in the place of an old connection that nobody uses.
#[tokio::test]
async fn e33_an_old_connection_of_http2_that_nobody_uses_ends_without_another_one() {
    let mut proxy = aging("http2", "150ms", places::serving().await).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    assert_eq!(caller.get("/").await.text(), "ok");
    proxy.counted("it is closed", |stats| stats.clusters[OUTBOUND].active_connections == 0).await;
    assert_eq!(proxy.stats().await.clusters[OUTBOUND].connections, 1);
    // Whoever comes then has another one.
    assert_eq!(caller.get("/").await.text(), "ok");
    assert_eq!(proxy.stats().await.clusters[OUTBOUND].connections, 2);
}
