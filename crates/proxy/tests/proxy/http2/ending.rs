//! Connections that end, on either side, and what becomes of their requests.

use bytes::Bytes;
use h2::Reason;
use http::Response;
use outrider_handover::{Connections, ToProxy};
use outrider_xds_types::type_url;

use super::*;

/// Edge cases 29 and 31.
#[tokio::test]
async fn what_was_not_processed_is_sent_again_with_its_body() {
    let (first, second) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = client_proxy("http2", &[first.address()]).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    // Edge case 31: refused, even a POST.
    let (response, mut up) = caller.ask(post("/"), false).await;
    up.send_data(Bytes::from_static(b"body"), true).unwrap();
    let mut endpoint = Served::accept(&first).await;
    let (_, mut send) = endpoint.next().await;
    send.send_reset(Reason::REFUSED_STREAM);
    let (request, mut send) = endpoint.next().await;
    assert_eq!(body(&mut request.into_body()).await.unwrap(), b"body");
    reply(&mut send, "second time");
    assert_eq!(answer(response).await.text(), "second time");
    // Not without end: then the caller may.
    let (response, _) = caller.ask(get("/"), true).await;
    for _ in 0..3 {
        endpoint.next().await.1.send_reset(Reason::REFUSED_STREAM);
    }
    assert_eq!(whole(response).await.err().unwrap().reason(), Some(Reason::REFUSED_STREAM));
    proxy.counted("each of the five", |stats| stats.clusters[OUTBOUND].requests == 5).await;

    // N29: GOAWAY. What was accepted is answered; what comes goes to a new connection.
    let (old, _) = caller.ask(get("/old"), true).await;
    let (_, mut old_send) = endpoint.next().await;
    endpoint.tell(Control::Graceful);
    let mut third = None;
    let (new, _) = caller.ask(get("/new"), true).await;
    let (request, mut send) = tokio::select! {
        fresh = Served::accept(&first) => third.insert(fresh).next().await,
        arrived = endpoint.next() => arrived,
    };
    assert_eq!(request.uri().path(), "/new");
    reply(&mut send, "new");
    assert_eq!(answer(new).await.text(), "new");
    reply(&mut old_send, "old");
    assert_eq!(answer(old).await.text(), "old");
    drop(second);
}

#[tokio::test]
async fn more_streams_than_the_endpoint_allows_have_another_connection() {
    let (origin, mut proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(2);
    let mut responses = Vec::new();
    for n in 0..5 {
        responses.push(caller.ask(get(&format!("/{n}")), true).await.0);
    }
    let mut connections = Vec::new();
    let mut arrived = Vec::new();
    while arrived.len() < 5 {
        let mut endpoint = Served::accept_with(&origin, builder.clone()).await;
        let most = 2.min(5 - arrived.len());
        for _ in 0..most {
            arrived.push(endpoint.next().await);
        }
        connections.push(endpoint);
    }
    for (_, send) in &mut arrived {
        reply(send, "ok");
    }
    for response in responses {
        assert_eq!(answer(response).await.text(), "ok");
    }
    proxy.counted("connections", |stats| stats.clusters[OUTBOUND].connections == 3).await;
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_told_as_what_it_is_and_another_is_tried() {
    let gone = Origin::bind().await.address();
    let (origin, mut proxy) = (Origin::bind().await, client_proxy("http2", &[gone]).await);
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let failed = caller.get("/").await;
    assert_eq!((failed.status(), failed.header("x-outrider-reason")), (503, Some("connect_failed")));
    assert!(failed.text().contains("3 tried"), "{}", failed.text());

    let mut set = compiled(&pair("http2", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[gone, origin.address()]));
    proxy.configure(set).await;
    proxy.counted("two endpoints", |stats| stats.clusters[OUTBOUND].endpoints == 2).await;
    let (response, _) = caller.ask(get("/"), true).await;
    let serve = async {
        let mut endpoint = Served::accept(&origin).await;
        reply(&mut endpoint.next().await.1, "here");
        endpoint
    };
    let (answer, _endpoint) = tokio::join!(answer(response), serve);
    assert_eq!(answer.text(), "here");
}

#[tokio::test]
async fn an_endpoint_that_is_lost_breaks_what_was_open_and_nothing_else() {
    let (origin, proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (asked, _) = caller.ask(post("/"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    let _asked = endpoint.next().await;
    let (half, _) = caller.ask(get("/half"), true).await;
    let (_, mut send) = endpoint.next().await;
    let _down = send.send_response(Response::new(()), false).unwrap();
    let half = soon("head", half).await.unwrap();
    let (stream, _) = caller.ask(grpc("/stream").body(()).unwrap(), true).await;
    let (_, mut send) = endpoint.next().await;
    let _down = send.send_response(Response::new(()), false).unwrap();
    let stream = soon("head", stream).await.unwrap();
    endpoint.tell(Control::Close);
    let failed = answer(asked).await;
    assert_eq!(
        (failed.status(), failed.header("x-outrider-reason")),
        (503, Some("upstream_closed_before_response"))
    );
    let error = soon("reset", half.into_body().data()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    let mut stream = stream.into_body();
    assert!(soon("end", stream.data()).await.is_none());
    assert_eq!(soon("trailers", stream.trailers()).await.unwrap().unwrap()["grpc-status"], "14");

    let (response, _) = caller.ask(get("/"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    reply(&mut endpoint.next().await.1, "again");
    assert_eq!(answer(response).await.text(), "again");
}

#[tokio::test]
async fn a_drain_says_so_twice_and_loses_nothing() {
    let (origin, mut proxy) = one().await;
    let mut busy = Caller::connect(&proxy, OUTBOUND).await;
    let (response, _) = busy.ask(get("/busy"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    let (_, mut send) = endpoint.next().await;
    let mut idle = Caller::connect(&proxy, OUTBOUND).await;
    let (warm, _) = idle.ask(get("/"), true).await;
    reply(&mut endpoint.next().await.1, "warm");
    assert_eq!(answer(warm).await.text(), "warm");

    proxy.tell(ToProxy::Drain { drain_ms: 600_000, inbound_only: false }).await;
    idle.ended().await.unwrap();
    let stats = proxy.stats().await;
    assert_eq!(stats.drain.unwrap().open.http, 1, "only the busy one is left");
    reply(&mut send, "whole");
    assert_eq!(answer(response).await.text(), "whole");
    busy.ended().await.unwrap();
    assert_eq!(proxy.drained(false).await, Connections::default());
    proxy.join();
}

/// Edge case 30.
#[tokio::test]
async fn requests_on_their_way_when_a_drain_begins_are_served() {
    let (origin, mut proxy) = one().await;
    // A client that does not answer the PING yet: its requests are on their way.
    let mut raw = Raw::connect(&proxy).await;
    raw.request(1, "/first").await;
    let mut endpoint = Served::accept(&origin).await;
    reply(&mut endpoint.next().await.1, "one");
    raw.until(|frame| frame.kind == 0 && frame.flags & 1 == 1 && frame.stream == 1).await;
    proxy.tell(ToProxy::Drain { drain_ms: 600_000, inbound_only: false }).await;
    let goaway = raw.until(|frame| frame.kind == 7).await;
    assert_eq!(goaway.payload[..4], 0x7fff_ffffu32.to_be_bytes(), "N30: nothing is given up yet");
    let ping = raw.until(|frame| frame.kind == 6 && frame.flags & 1 == 0).await;
    raw.request(3, "/second").await;
    reply(&mut endpoint.next().await.1, "two");
    raw.until(|frame| frame.kind == 0 && frame.flags & 1 == 1 && frame.stream == 3).await;
    // As clients do that answer a PING before they send what was begun when it came.
    raw.frame(6, 1, 0, &ping.payload).await;
    let again = raw.until(|frame| frame.kind == 6 && frame.flags & 1 == 0).await;
    raw.request(5, "/third").await;
    reply(&mut endpoint.next().await.1, "three");
    raw.until(|frame| frame.kind == 0 && frame.flags & 1 == 1 && frame.stream == 5).await;
    raw.frame(6, 1, 0, &again.payload).await;
    let last = raw.until(|frame| frame.kind == 7).await;
    assert_eq!(last.payload[..8], [0, 0, 0, 5, 0, 0, 0, 0]);
    raw.ended().await;
    assert_eq!(proxy.drained(false).await, Connections::default());
    proxy.join();
}

#[tokio::test]
async fn who_has_just_come_is_served_before_it_is_told_of_a_drain() {
    let (origin, mut proxy) = one().await;
    let mut busy = Caller::connect(&proxy, OUTBOUND).await;
    let (response, _) = busy.ask(get("/busy"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    let (_, mut send) = endpoint.next().await;
    let mut late = Caller::connect(&proxy, OUTBOUND).await;
    proxy.counted("it was taken", |stats| stats.listeners[OUTBOUND].active_connections == 2).await;
    proxy.tell(ToProxy::Drain { drain_ms: 600_000, inbound_only: false }).await;
    proxy.ping(1).await;
    let (late_response, _) = late.ask(get("/late"), true).await;
    reply(&mut endpoint.next().await.1, "late");
    assert_eq!(answer(late_response).await.text(), "late");
    late.ended().await.unwrap();
    reply(&mut send, "busy");
    assert_eq!(answer(response).await.text(), "busy");
    busy.ended().await.unwrap();
    assert_eq!(proxy.drained(false).await, Connections::default());
    proxy.join();
}

#[tokio::test]
async fn what_has_no_end_is_cut_at_the_deadline_stream_by_stream() {
    let (origin, mut proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (waiting, _) = caller.ask(get("/"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    let _asked = endpoint.next().await;
    let (stream, _up) = caller.ask(grpc("/chat").body(()).unwrap(), false).await;
    let (_, mut send) = endpoint.next().await;
    let mut down = send.send_response(Response::new(()), false).unwrap();
    down.send_data(Bytes::from_static(b"hello"), false).unwrap();
    let mut stream = soon("head", stream).await.unwrap().into_body();
    assert_eq!(soon("data", stream.data()).await.unwrap().unwrap(), "hello");
    proxy.tell(ToProxy::Drain { drain_ms: 600, inbound_only: false }).await;
    assert_eq!(proxy.drained(false).await, Connections { http: 2, ..Connections::default() });
    let told = answer(waiting).await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (503, Some("draining")));
    assert!(soon("end", stream.data()).await.is_none());
    let trailers = soon("trailers", stream.trailers()).await.unwrap().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-outrider-reason"]),
        (&"14".parse().unwrap(), &"draining".parse().unwrap())
    );
    proxy.join();
}

/// Edge case 29.
#[tokio::test]
async fn what_a_goaway_gives_up_goes_to_the_next_connection() {
    let (origin, mut proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, mut up) = caller.ask(post("/"), false).await;
    up.send_data(Bytes::from_static(b"once"), true).unwrap();
    let mut raw = Raw { peer: origin.accept().await };
    raw.peer.take(24).await;
    raw.frame(4, 0, 0, &[]).await;
    raw.until(|frame| frame.kind == 1).await;
    raw.until(|frame| frame.kind == 0 && frame.flags & 1 == 1).await;
    // N29: nothing was processed.
    raw.frame(7, 0, 0, &[0; 8]).await;
    let mut endpoint = Served::accept(&origin).await;
    let (request, mut send) = endpoint.next().await;
    assert_eq!(body(&mut request.into_body()).await.unwrap(), b"once");
    reply(&mut send, "answered");
    assert_eq!(answer(response).await.text(), "answered");
    raw.ended().await;
    proxy.counted("two", |stats| stats.clusters[OUTBOUND].requests == 2).await;
}

#[tokio::test]
async fn an_endpoint_that_left_is_left() {
    let (origin, mut proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, _) = caller.ask(get("/"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    reply(&mut endpoint.next().await.1, "ok");
    answer(response).await;
    let mut set = compiled(&pair("http2", "off", 1, ""), "shop/web");
    let other = Origin::bind().await;
    set.insert(assignment(ENDPOINTS, &[other.address()]));
    proxy.configure(set).await;
    soon("the endpoint that left is left", endpoint.driver).await.unwrap();
    let (response, _) = caller.ask(get("/"), true).await;
    let mut endpoint = Served::accept(&other).await;
    reply(&mut endpoint.next().await.1, "other");
    assert_eq!(answer(response).await.text(), "other");
}

/// Edge case 34.
#[tokio::test]
async fn an_endpoint_that_says_nothing_any_more_is_left() {
    use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
    use outrider_xds_types::pb::envoy::config::core::v3::KeepaliveSettings;
    use outrider_xds_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
    use outrider_xds_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
        UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };
    use outrider_xds_types::prost::Message;
    let mut set = compiled(&pair("http2", "off", 1, ""), "shop/web");
    edit(&mut set, type_url::CLUSTER, OUTBOUND, |cluster: &mut Cluster| {
        let any = cluster.typed_extension_protocol_options.values_mut().next().unwrap();
        let mut options = HttpProtocolOptions::decode(any.value.as_slice()).unwrap();
        let Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) =
            &mut options.upstream_protocol_options
        else {
            panic!("another protocol");
        };
        let Some(ProtocolConfig::Http2ProtocolOptions(http2)) = &mut explicit.protocol_config else {
            panic!("another protocol");
        };
        http2.connection_keepalive =
            Some(KeepaliveSettings { interval: millis(200), timeout: millis(300), ..Default::default() });
        any.value = options.encode_to_vec();
    });
    let limit = Duration::from_millis(300);
    let mut arrange = async || {
        let origin = Origin::bind().await;
        set.insert(assignment(ENDPOINTS, &[origin.address()]));
        let proxy = Proxy::start(set.clone()).await;
        let caller = Caller::connect(&proxy, OUTBOUND).await;
        (origin, proxy, caller)
    };
    // N34: its kernel is there, and it is not.
    let ask = async |(origin, proxy, mut caller): (Origin, Proxy, Caller)| {
        let (response, _) = caller.ask(post("/"), true).await;
        let mut dead = origin.accept().await;
        dead.send([0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
        (origin, proxy, caller, response, dead)
    };
    let left = async || {
        let (origin, proxy, caller, response, _dead) = within(limit, &mut arrange, &ask).await;
        let told = answer(response).await;
        assert_eq!(told.status(), 503);
        assert!(told.text().contains("does not answer"), "{}", told.text());
        (origin, proxy, caller)
    };
    // Whoever answers PINGs in time is not left.
    let next = async |(origin, proxy, mut caller): (Origin, Proxy, Caller)| {
        let (response, _) = caller.ask(get("/"), true).await;
        let mut endpoint = Served::accept(&origin).await;
        reply(&mut endpoint.next().await.1, "alive");
        assert_eq!(answer(response).await.text(), "alive");
        (proxy, endpoint)
    };
    let (mut proxy, _endpoint) = within(limit, left, next).await;
    proxy.counted("two", |stats| stats.clusters[OUTBOUND].connections == 2).await;
}

/// RFC 9113 section 6.5.2: who says how much it takes is sent no more, and no half of a message as a whole one.
#[tokio::test]
async fn trailers_that_the_other_end_does_not_take_fail_the_message() {
    let large = || {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".repeat(4000).parse().unwrap());
        trailers
    };
    let (origin, mut proxy) = one().await;
    let mut builder = h2::client::Builder::new();
    builder.max_header_list_size(2000);
    let mut caller = Caller::with(tcp(&proxy, OUTBOUND).await, builder).await;
    let mut endpoint = None;
    // Of responses, with a body and without one.
    for body in ["", "body"] {
        let (response, _) = caller.ask(get("/"), true).await;
        if endpoint.is_none() {
            let mut builder = h2::server::Builder::new();
            builder.max_header_list_size(2000);
            endpoint = Some(Served::accept_with(&origin, builder).await);
        }
        let (_, mut send) = endpoint.as_mut().unwrap().next().await;
        let mut stream = send.send_response(Response::new(()), false).unwrap();
        stream.send_data(Bytes::from_static(body.as_bytes()), false).unwrap();
        stream.send_trailers(large()).unwrap();
        assert_eq!(whole(response).await.err().unwrap().reason(), Some(Reason::INTERNAL_ERROR), "{body}");
    }
    // A call of gRPC is told in its own words.
    let (response, _) = caller.ask(grpc("/").body(()).unwrap(), true).await;
    let (_, mut send) = endpoint.as_mut().unwrap().next().await;
    let mut stream = send.send_response(Response::new(()), false).unwrap();
    stream.send_trailers(large()).unwrap();
    assert_ne!(answer(response).await.trailers.unwrap()["grpc-status"], "0");
    // Of requests: before there is a response, and after it began.
    let (response, mut up) = caller.ask(post("/"), false).await;
    let (request, _send) = endpoint.as_mut().unwrap().next().await;
    up.send_trailers(large()).unwrap();
    let told = answer(response).await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (431, Some("header_too_large")));
    assert!(body(&mut request.into_body()).await.is_err(), "not taken for whole");
    let (response, mut up) = caller.ask(post("/"), false).await;
    let (_request, mut send) = endpoint.as_mut().unwrap().next().await;
    let _stream = send.send_response(Response::new(()), false).unwrap();
    let mut response = soon("head", response).await.unwrap().into_body();
    up.send_trailers(large()).unwrap();
    let error = soon("reset", response.data()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    proxy
        .counted("reasons", |stats| {
            let reasons = &stats.listeners[OUTBOUND].reasons;
            (reasons.get("upstream_header_too_large"), reasons.get("header_too_large"))
                == (Some(&3), Some(&2))
        })
        .await;
}
