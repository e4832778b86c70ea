use std::time::{Duration, Instant};

use super::support::*;

const GET: &str = "GET /a?b=c HTTP/1.1\r\nHost: api\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn one() -> (Origin, Proxy) {
    let origin = Origin::bind().await;
    let proxy = client_proxy("http", &[origin.address()]).await;
    (origin, proxy)
}

#[tokio::test]
async fn bytes_pass_as_they_are_and_connections_are_used_again() {
    let (origin, mut proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    let mut server = None;
    for _ in 0..3 {
        client.send("GET /A%2f/../b?x HTTP/1.1\r\nhOST: Api\r\nX-B: 2\r\nx-a:1\r\nX-B:  3 \r\n\r\n").await;
        let server: &mut Peer = match &mut server {
            Some(server) => server,
            none => none.insert(origin.accept().await),
        };
        server.expect("GET /A%2f/../b?x HTTP/1.1\r\nhOST: Api\r\nX-B: 2\r\nx-a:1\r\nX-B:  3 \r\n\r\n").await;
        server.send("HTTP/1.1 201 Made It\r\nX-Z: 1\r\nx-y: 2\r\ncontent-LENGTH: 2\r\n\r\nok").await;
        client.expect("HTTP/1.1 201 Made It\r\nX-Z: 1\r\nx-y: 2\r\ncontent-LENGTH: 2\r\n\r\nok").await;
    }
    proxy
        .counted("counted", |stats| {
            let (listener, cluster) = (&stats.listeners[OUTBOUND], &stats.clusters[OUTBOUND]);
            (listener.requests, listener.responses[1], cluster.connections, cluster.requests) == (3, 3, 1, 3)
                && listener.active_requests == 0
        })
        .await;
}

#[tokio::test]
async fn what_endpoints_take_is_not_what_the_proxy_adds_and_upgraded_requests_are_not_timed() {
    const SLOW: Duration = Duration::from_millis(400);
    let (origin, mut proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    let start = Instant::now();
    client.send(GET).await;
    let mut server = origin.accept().await;
    server.expect(GET).await;
    // How slow an endpoint is, not a wait for something.
    tokio::time::sleep(SLOW).await;
    server.send(OK).await;
    client.expect(OK).await;
    client.send(GET).await;
    server.expect(GET).await;
    server.send(OK).await;
    client.expect(OK).await;
    let both = start.elapsed();
    client.send("GET /chat HTTP/1.1\r\nHost: api\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await;
    server.head().await;
    tokio::time::sleep(SLOW * 3).await;
    server
        .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        .await;
    client.head().await;
    drop((client, server));
    proxy
        .counted("counted", |stats| {
            stats.listeners[OUTBOUND].requests == 3 && stats.listeners[OUTBOUND].active_requests == 0
        })
        .await;
    let listener = &proxy.stats().await.listeners[OUTBOUND];
    assert_eq!(listener.added_us.values().sum::<u64>(), 2, "{listener:?}");
    // However busy this machine is: the wait is in one and not in the other. The worker's clock ticks every 10 ms at
    // worst.
    let added: u64 = listener.added_us.iter().map(|(us, count)| us * count).sum();
    let slow = SLOW.as_micros() as u64 - 50_000;
    assert!(listener.latency_us_sum >= added + slow, "{listener:?}");
    assert!((slow..=listener.latency_us_sum).contains(&listener.upstream_us_sum), "{listener:?}");
    // Had the upgraded one been timed, this would be more than both others took from here.
    assert!(u128::from(listener.latency_us_sum) < (both + SLOW * 2).as_micros(), "{listener:?} {both:?}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_one_after_the_other() {
    let (origin, proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    let post = "POST /2 HTTP/1.1\r\nHost: api\r\nContent-Length: 3\r\n\r\nabc";
    client.send(format!("{GET}{post}GET /3 HTTP/1.1\r\nHost: api\r\n\r\n")).await;
    let mut server = origin.accept().await;
    server.expect(GET).await;
    server.send(OK).await;
    client.expect(OK).await;
    server.expect(post).await;
    server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    client.expect("HTTP/1.1 204 No Content\r\n\r\n").await;
    server.expect("GET /3 HTTP/1.1\r\nHost: api\r\n\r\n").await;
    server.send(OK).await;
    client.expect(OK).await;
}

/// Edge case 20.
#[tokio::test]
async fn chunks_and_trailers_pass_both_ways_at_the_same_time() {
    let (origin, proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send("POST / HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.expect("3;a=b\r\nabc\r\n").await;
    client.send("0\r\nX-Sum: 1\r\n\r\n").await;
    server.expect("0\r\nX-Sum: 1\r\n\r\n").await;
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
    client.head().await;
    client.expect("1\r\nx\r\n").await;
    server.send("0\r\nX-End: 2\r\n\r\n").await;
    client.expect("0\r\nX-End: 2\r\n\r\n").await;
    client.send(GET).await;
    server.expect(GET).await;
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let (origin, proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    let body = vec![b'z'; 5 << 20];
    let echo = async {
        let mut server = origin.accept().await;
        server.head().await;
        let got = server.take(body.len()).await;
        server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", got.len())).await;
        server.send(&got).await;
    };
    let ask = async {
        client.send(format!("PUT / HTTP/1.1\r\nHost: api\r\nContent-Length: {}\r\n\r\n", body.len())).await;
        client.send(&body).await;
        client.head().await;
        assert!(client.take(body.len()).await == body);
    };
    tokio::join!(echo, ask);
}

/// Edge cases 18 and 19.
#[tokio::test]
async fn interim_responses_pass_and_expect_is_forwarded() {
    let (origin, proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    let head = "POST / HTTP/1.1\r\nHost: api\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    client.send(head).await;
    let mut server = origin.accept().await;
    server.expect(head).await;
    server.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await;
    client.expect("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await;
    client.send("body").await;
    server.expect("body").await;
    server.send(OK).await;
    client.expect(OK).await;
}

/// Edge case 7.
#[tokio::test]
async fn responses_without_a_body_end_with_their_head() {
    let (origin, proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send("HEAD / HTTP/1.1\r\nHost: api\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
    client.expect("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
    client.send(GET).await;
    server.expect(GET).await;
    // A body where none may be never reaches the next response.
    server.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nbad").await;
    client.expect("HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n").await;
    client.send(GET).await;
    let mut fresh = origin.accept().await;
    fresh.expect(GET).await;
    fresh.send(OK).await;
    client.expect(OK).await;
}

/// Edge case 2.
#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_only_after_101() {
    let (origin, proxy) = one().await;
    let upgrade = "GET /chat HTTP/1.1\r\nHost: api\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(upgrade).await;
    let mut server = origin.accept().await;
    let head = server.head().await;
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    server
        .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst")
        .await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    client.expect("first").await;
    client.send("GET / not http").await;
    server.expect("GET / not http").await;
    client.finish().await;
    assert_eq!(server.rest().await.unwrap(), b"");
    server.send("late").await;
    server.finish().await;
    assert_eq!(client.rest().await.unwrap(), b"late");

    // Other protocols are not offered to the endpoint: the request goes on as HTTP.
    let mut client = proxy.connect(OUTBOUND).await;
    client.send("GET / HTTP/1.1\r\nHost: api\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.expect("GET / HTTP/1.1\r\nHost: api\r\n\r\n").await;
    server.send(OK).await;
    client.expect(OK).await;
    drop(server);

    // Without 101 what follows is the next request, with its own route and checks.
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(format!("{upgrade}{GET}")).await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send(OK).await;
    client.expect(OK).await;
    server.expect(GET).await;
}

/// Edge cases 11 and 12.
#[tokio::test]
async fn an_early_response_ends_both_connections() {
    let (origin, proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send("POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 1000000\r\n\r\nsome").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.expect("some").await;
    server.send("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await;
    let (head, body) = client.response().await;
    assert_eq!((header(&head, "connection"), body.as_str()), (Some("close"), "no"));
    assert_eq!(client.rest().await.unwrap(), b"");
    assert!(server.rest().await.is_ok_and(|rest| rest.is_empty()));
}

#[tokio::test]
async fn refusals_carry_their_reason_and_reach_no_origin() {
    let (origin, mut proxy) = one().await;
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", "400", "invalid_host"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
            "ambiguous_framing",
        ),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", "505", "unsupported_version"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "501", "connect_not_supported"),
    ];
    for (request, status, reason) in cases {
        let mut client = proxy.connect(OUTBOUND).await;
        client.send(request).await;
        let (head, body) = client.response().await;
        assert_eq!(head.split(' ').nth(1), Some(status), "{request}");
        assert_eq!(header(&head, "x-outrider-reason"), Some(reason), "{request}");
        assert!(body.starts_with(reason), "{body}");
        assert_eq!(client.rest().await.unwrap(), b"", "{request}");
    }
    assert!(origin.is_untouched().await);
    proxy.counted("reasons", |stats| stats.listeners[OUTBOUND].reasons.values().sum::<u64>() == 4).await;
}

#[tokio::test]
async fn failures_of_the_way_have_their_own_reasons_and_keep_the_connection() {
    let proxy = client_proxy("http", &[]).await;
    let mut client = proxy.connect(OUTBOUND).await;
    for _ in 0..2 {
        client.send(GET).await;
        let (head, body) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(header(&head, "x-outrider-reason"), Some("no_endpoints"));
        assert!(body.contains("0 of 0 endpoints"), "{body}");
    }
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = client_proxy("http", &[refusing]).await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(GET).await;
    let (head, body) = client.response().await;
    assert_eq!(header(&head, "x-outrider-reason"), Some("connect_failed"));
    assert!(body.contains("3 tried"), "{body}");
}

/// Edge cases 13 and 43.
#[tokio::test]
async fn a_request_is_repeated_only_where_that_is_safe() {
    let (origin, proxy) = one().await;
    for (request, again) in [
        (GET, true),
        ("POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\nhi", false),
        ("PUT / HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\nhi", true),
    ] {
        let mut client = proxy.connect(OUTBOUND).await;
        client.send(GET).await;
        let mut server = origin.accept().await;
        server.head().await;
        server.send(OK).await;
        client.expect(OK).await;
        // The endpoint takes the request on the kept connection, and dies.
        client.send(request).await;
        server.expect(request).await;
        drop(server);
        if again {
            let mut server = origin.accept().await;
            server.expect(request).await;
            server.send(OK).await;
            client.expect(OK).await;
            drop(server);
        } else {
            let (head, _) = client.response().await;
            assert_eq!(header(&head, "x-outrider-reason"), Some("upstream_closed_reused_connection"));
            assert!(origin.is_untouched().await);
        }
    }
}

#[tokio::test]
async fn a_fresh_connection_that_closes_is_not_tried_again() {
    let (origin, proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(GET).await;
    let mut server = origin.accept().await;
    server.expect(GET).await;
    drop(server);
    let (head, _) = client.response().await;
    assert_eq!(header(&head, "x-outrider-reason"), Some("upstream_closed_before_response"));
    assert!(origin.is_untouched().await);
}

#[tokio::test]
async fn a_response_cut_short_is_not_made_to_look_whole() {
    let (origin, proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(GET).await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await;
    client.head().await;
    client.expect("abc").await;
    drop(server);
    assert_eq!(client.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_request_timeout_ends_at_the_head() {
    let origin = Origin::bind().await;
    let extra = "  timeouts: {request: 300ms}\n";
    let mut set = compiled(&pair("http", "off", 1, extra), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    let proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(GET).await;
    let mut server = origin.accept().await;
    server.head().await;
    let (head, body) = client.response().await;
    assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    assert_eq!(header(&head, "x-outrider-reason"), Some("request_timeout"));
    assert!(body.contains("300ms"), "{body}");
    assert_eq!(server.rest().await.unwrap(), b"", "the endpoint's connection is closed, not reused");
}

#[tokio::test]
async fn callers_of_http_1_0_get_what_they_understand() {
    let (origin, proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let mut server = origin.accept().await;
    // Without a name the next hop would refuse it.
    server.expect("GET / HTTP/1.1\r\nHost: api:8080\r\n\r\n").await;
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n").await;
    let all = String::from_utf8(client.rest().await.unwrap()).unwrap();
    assert!(all.ends_with("\r\n\r\nabc"), "{all}");
    assert_eq!(header(&all, "transfer-encoding"), None);
}

/// Edge case 22.
#[tokio::test]
async fn a_caller_that_ended_its_sending_still_gets_the_answer() {
    let (origin, proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(GET).await;
    client.finish().await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send(OK).await;
    assert_eq!(String::from_utf8(client.rest().await.unwrap()).unwrap(), OK);
}

/// Edge case 15.
#[tokio::test]
async fn a_caller_that_resets_cancels_its_request() {
    let (origin, mut proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(GET).await;
    let mut server = origin.accept().await;
    server.head().await;
    socket2::SockRef::from(&client.tcp).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(server.rest().await.unwrap(), b"", "the endpoint learns of it");
    proxy.counted("reason", |s| s.listeners[OUTBOUND].reasons.get("client_gone") == Some(&1)).await;
}

#[tokio::test]
async fn interim_responses_never_reach_callers_of_http_1_0() {
    let (origin, proxy) = one().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
    server.send(OK).await;
    let all = String::from_utf8(client.rest().await.unwrap()).unwrap();
    assert!(all.starts_with("HTTP/1.1 200 OK\r\n"), "{all}");
    assert!(all.ends_with("\r\n\r\nok") && !all.contains("103"), "{all}");
}

#[tokio::test]
async fn a_percent_sign_in_an_edit_is_a_percent_sign() {
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: api}]
  rules:
    - filters:
        - type: RequestHeaderModifier
          requestHeaderModifier: {set: [{name: x-share, value: '100%'}, {name: x-code, value: '%41%%'}]}
      backendRefs: [{name: api, port: 8080}]
";
    let origin = Origin::bind().await;
    let mut set = compiled(&pair("http", "off", 1, route), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    let proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(GET).await;
    let head = origin.accept().await.head().await;
    assert_eq!((header(&head, "x-share"), header(&head, "x-code")), (Some("100%"), Some("%41%%")));
}
