//! Requests that wait for a connection while what they wait for changes.

use tokio::io::AsyncWriteExt as _;

use super::*;

/// Answers the one request of a connection that was accepted before, and says how many more connections there were by then.
async fn serve_late(tcp: TcpStream, origin: &Origin) -> bool {
    let mut connection = soon("handshake", h2::server::handshake(tcp)).await.unwrap();
    let (_, mut send) = soon("a request", connection.accept()).await.unwrap().unwrap();
    reply(&mut send, "late");
    tokio::spawn(async move { while connection.accept().await.is_some() {} });
    origin.is_untouched().await
}

/// Before, each connection that was opened for the request found that it did not fit, and opened the next one, until the limit
/// of connections was reached.
#[tokio::test]
async fn who_waits_for_an_endpoint_that_leaves_gets_the_connection_that_is_being_made() {
    for gone in [false, true] {
        let (origin, other) = (Origin::bind().await, Origin::bind().await);
        let mut proxy = client_proxy("http2", &[origin.address()]).await;
        let mut caller = Caller::connect(&proxy, OUTBOUND).await;
        let (response, _) = caller.ask(get("/"), true).await;
        // It is connected, and has not heard of SETTINGS yet.
        let tcp = origin.accept().await.tcp;
        while proxy.seen.try_recv().is_ok() {}
        let mut set = compiled(&pair("http2", "off", 1, ""), "shop/web");
        set.insert(assignment(ENDPOINTS, &[other.address()]));
        let kind = if gone { type_url::LISTENER } else { type_url::ENDPOINT };
        proxy.configure(if gone { ResourceSet::new() } else { set }).await;
        proxy.acked(kind).await;
        proxy.ping(1).await;
        let alone = serve_late(tcp, &origin).await;
        assert_eq!(answer(response).await.text(), "late", "gone: {gone}");
        assert!(alone && origin.is_untouched().await, "one connection was enough, gone: {gone}");
        assert!(other.is_untouched().await);
        proxy
            .counted("nothing to be left", |stats| {
                stats.listeners[OUTBOUND].active_requests == 0
                    && stats.clusters.get(OUTBOUND).is_none_or(|cluster| cluster.active_connections == 0)
            })
            .await;
    }
}

/// Who takes no streams is asked on a few connections, for one may have come at the wrong time, and not on a thousand.
#[tokio::test]
async fn an_endpoint_that_takes_no_streams_gets_four_connections() {
    let (origin, mut proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, _) = caller.ask(get("/"), true).await;
    let mut served = Vec::new();
    for _ in 0..4 {
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(0);
        served.push(Served::accept_with(&origin, builder).await);
    }
    proxy.ping(1).await;
    proxy.counted("it waits", |stats| stats.listeners[OUTBOUND].active_requests == 1).await;
    assert!(origin.is_untouched().await);
    drop((response, caller));
    proxy.counted("nobody to wait", |stats| stats.listeners[OUTBOUND].active_requests == 0).await;
    assert!(origin.is_untouched().await);
}

/// One that says goodbye before it has taken a request is asked a few times as well. Before, one connection followed the other
/// for as long as anybody waited.
#[tokio::test]
async fn an_endpoint_that_says_goodbye_at_once_gets_a_few_connections() {
    let (origin, mut proxy) = one().await;
    let address = origin.address();
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&connections);
    let server = tokio::spawn(async move {
        loop {
            let mut peer = origin.accept().await;
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            // SETTINGS and GOAWAY.
            let _ = peer.tcp.write_all(b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0").await;
            tokio::spawn(async move { peer.rest().await });
        }
    });
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let told = caller.get("/").await;
    assert_eq!(
        (told.status(), told.header("x-outrider-reason")),
        (503, Some("upstream_closed_before_response")),
        "{}",
        told.text()
    );
    let many = connections.load(std::sync::atomic::Ordering::SeqCst);
    assert!((4..=12).contains(&many), "{many} connections");
    proxy.counted("it", |stats| stats.listeners[OUTBOUND].active_requests == 0).await;
    server.abort();
    let _ = server.await;
    // And it is asked again.
    let origin = Origin { listener: tokio::net::TcpListener::bind(address).await.unwrap() };
    let (response, _) = caller.ask(get("/"), true).await;
    reply(&mut Served::accept(&origin).await.next().await.1, "back");
    assert_eq!(answer(response).await.text(), "back");
}
