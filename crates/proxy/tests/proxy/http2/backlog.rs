//! What does not fit into the sockets of a connection at once.

use outrider_xds_types::pb::envoy::config::core::v3::{HeaderValue as Line, HeaderValueOption};
use outrider_xds_types::pb::envoy::config::route::v3::DirectResponseAction;
use tokio::io::AsyncWriteExt as _;

use super::*;

/// What had to wait until bytes before it are with the kernel, which takes all of them at once. Nothing else comes that would
/// have the connection looked at: windows are large, so nobody opens them again.
#[tokio::test]
async fn what_waits_for_room_goes_on_when_everything_before_it_is_written() {
    const SIZE: usize = 60_000;
    let (origin, proxy) = one().await;
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(64 << 20).initial_window_size(1 << 20);
    let mut caller = Caller::with(tcp(&proxy, OUTBOUND).await, builder).await;
    let (first, _) = caller.ask(get("/"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    reply(&mut endpoint.next().await.1, "warm");
    answer(first).await;
    for _ in 0..8 {
        let (mut asked, mut sends) = (Vec::new(), Vec::new());
        for _ in 0..16 {
            asked.push(caller.ask(get("/"), true).await.0);
            sends.push(endpoint.next().await.1);
        }
        for send in &mut sends {
            let mut down = send.send_response(Response::new(()), false).unwrap();
            down.send_data(Bytes::from(vec![7; SIZE]), true).unwrap();
        }
        for response in asked {
            assert_eq!(answer(response).await.body.len(), SIZE);
        }
    }
}

/// The same in the other direction: to an endpoint.
#[tokio::test]
async fn bodies_of_requests_that_wait_for_room_go_on_when_everything_before_is_written() {
    const SIZE: usize = 60_000;
    let (origin, proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (first, _) = caller.ask(get("/"), true).await;
    let mut builder = h2::server::Builder::new();
    builder.initial_connection_window_size(64 << 20).initial_window_size(1 << 20);
    let mut endpoint = Served::accept_with(&origin, builder).await;
    reply(&mut endpoint.next().await.1, "warm");
    answer(first).await;
    for _ in 0..8 {
        let mut asked = Vec::new();
        for _ in 0..16 {
            let (response, mut up) = caller.ask(post("/"), false).await;
            up.send_data(Bytes::from(vec![7; SIZE]), true).unwrap();
            asked.push(response);
        }
        for _ in 0..16 {
            let (request, mut send) = endpoint.next().await;
            assert_eq!(body(&mut request.into_body()).await.unwrap().len(), SIZE);
            reply(&mut send, "ok");
        }
        for response in asked {
            assert_eq!(answer(response).await.text(), "ok");
        }
    }
}

/// Answers without bodies, to a caller that does not read, are bounded as bodies are: it is asked for no more requests, and
/// gets all of them once it reads.
#[tokio::test]
async fn who_does_not_read_heads_is_read_no_further() {
    const REQUESTS: u32 = 6_000;
    let mut set = compiled(&pair("http2", "off", 1, ""), "shop/web");
    edit(&mut set, type_url::ROUTE, OUTBOUND, |table: &mut RouteConfiguration| {
        for route in table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            // In no table, so that each answer is as large as the first.
            let line = Line { key: "set-cookie".into(), value: "x".repeat(4_000), ..Default::default() };
            route.response_headers_to_add =
                vec![HeaderValueOption { header: Some(line), ..Default::default() }];
            let direct = DirectResponseAction { status: 204, ..Default::default() };
            route.action = Some(route::Action::DirectResponse(direct));
        }
    });
    let mut proxy = Proxy::start(set).await;
    let mut raw = Raw::connect(&proxy).await;
    let mut flood = Vec::new();
    let head = Raw::head("/");
    for n in 0..REQUESTS {
        flood.extend_from_slice(&(head.len() as u32).to_be_bytes()[1..]);
        flood.extend_from_slice(&[1, 5]);
        flood.extend_from_slice(&(2 * n + 1).to_be_bytes());
        flood.extend_from_slice(&head);
    }
    soon("the kernel to take the requests", raw.peer.tcp.write_all(&flood)).await.unwrap();
    proxy.counted("some requests", |stats| stats.listeners[OUTBOUND].requests > 50).await;
    for n in 0..20 {
        proxy.ping(n).await;
        let stats = proxy.stats().await;
        assert!(stats.listeners[OUTBOUND].requests < u64::from(REQUESTS), "nothing stopped it");
    }
    raw.until(|frame| frame.kind == 1 && frame.stream == 2 * REQUESTS - 1).await;
}

/// Large heads that come together go on together: who waits for their being written has no need of a place among those that
/// wait, nor of another connection.
#[tokio::test]
async fn a_burst_of_large_heads_needs_no_other_connection_and_no_place_to_wait() {
    const REQUESTS: u32 = 100;
    let origin = Origin::bind().await;
    let policy = "---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: api, namespace: shop}
spec: {targetRef: {kind: Service, name: api}, limits: {pending: 10}}
";
    let mut set = compiled(&pair("http2", "off", 1, policy), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    let mut proxy = Proxy::start(set).await;
    let mut raw = Raw::connect(&proxy).await;
    raw.request(1, "/").await;
    let mut endpoint = Served::accept(&origin).await;
    reply(&mut endpoint.next().await.1, "warm");
    raw.until(|frame| frame.kind == 0 && frame.stream == 1).await;
    // `authorization` that is to be in no table, of 1,500 bytes.
    let head = [Raw::head("/").as_slice(), &[0x1f, 8, 0x7f, 0xdd, 0x0a], &[b'a'; 1500]].concat();
    let mut burst = Vec::new();
    for n in 1..=REQUESTS {
        burst.extend_from_slice(&(head.len() as u32).to_be_bytes()[1..]);
        burst.extend_from_slice(&[1, 5]);
        burst.extend_from_slice(&(2 * n + 1).to_be_bytes());
        burst.extend_from_slice(&head);
    }
    raw.peer.send(burst).await;
    for _ in 0..REQUESTS {
        let (request, mut send) = endpoint.next().await;
        assert_eq!(request.headers()["authorization"].len(), 1500);
        reply(&mut send, "ok");
    }
    for _ in 0..REQUESTS {
        let frame = raw.until(|frame| frame.kind == 1).await;
        assert_eq!(frame.payload[0], 0x88, "200, not an answer of the proxy's own");
    }
    assert_eq!(proxy.stats().await.clusters[OUTBOUND].connections, 1);
}
