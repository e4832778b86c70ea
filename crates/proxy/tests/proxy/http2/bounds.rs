//! Limits of what is taken from a caller: each as a document says it, with the status and the reason of its own.

use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use outrider_xds_types::prost::Message;

use super::*;

/// `limits`: of the service's policy.
fn policy(limits: &str) -> String {
    format!(
        "---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: api, namespace: shop}}
spec: {{targetRef: {{kind: Service, name: api}}, inboundLimits: {{{limits}}}}}
"
    )
}

/// The proxy of who is called.
async fn limited(protocol: &str, limits: &str) -> (Origin, Proxy) {
    let origin = Origin::bind().await;
    let set = compiled(&pair(protocol, "off", origin.port(), &policy(limits)), "shop/api");
    (origin, Proxy::start(set).await)
}

/// A request with so many fields beside `Host`, and one of so many bytes.
fn asking(fields: usize, bytes: usize) -> (String, Request<()>) {
    let mut text = "GET / HTTP/1.1\r\nHost: api\r\n".to_owned();
    let mut request = Request::get("http://api/");
    for n in 0..fields {
        let value = if n == 0 { "x".repeat(bytes) } else { "1".to_owned() };
        text.push_str(&format!("x-{n}: {value}\r\n"));
        request = request.header(format!("x-{n}"), value);
    }
    (text + "\r\n", request.body(()).unwrap())
}

#[tokio::test]
async fn heads_are_held_against_what_a_document_says() {
    // What is said, what is just taken, what is not, and why.
    let cases = [
        ("maxRequestHeadersKb: 2", asking(1, 1_500), asking(1, 2_100), "header_too_large"),
        ("maxHeadersCount: 8", asking(3, 1), asking(9, 1), "too_many_headers"),
    ];
    for (limits, (taken, taken2), (refused, refused2), reason) in cases {
        let (origin, mut proxy) = limited("http", limits).await;
        let (mut client, mut server) = proxy.ask(INBOUND, &taken, &origin).await;
        server.send(OK).await;
        client.expect(OK).await;
        let mut client = proxy.connect(INBOUND).await;
        client.send(refused).await;
        let (head, _) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 431 "), "{limits}: {head}");
        assert_eq!(header(&head, "x-outrider-reason"), Some(reason), "{limits}");
        proxy.counted("the reason", |stats| stats.listeners[INBOUND].reasons.get(reason) == Some(&1)).await;

        let (origin, proxy) = limited("http2", limits).await;
        let mut caller = Caller::connect(&proxy, INBOUND).await;
        let (response, _) = caller.ask(taken2, true).await;
        let mut endpoint = Served::accept(&origin).await;
        reply(&mut endpoint.next().await.1, "ok");
        assert_eq!(answer(response).await.text(), "ok", "{limits}");
        let (response, _) = caller.ask(refused2, true).await;
        let told = answer(response).await;
        assert_eq!((told.status(), told.header("x-outrider-reason")), (431, Some(reason)), "{limits}");
        // The connection stays.
        let (response, _) = caller.ask(get("/"), true).await;
        reply(&mut endpoint.next().await.1, "ok");
        assert_eq!(answer(response).await.text(), "ok");
    }
}

#[tokio::test]
async fn the_time_of_a_head_is_what_a_document_says() {
    let (origin, proxy) = limited("http", "requestHeadersTimeout: 200ms").await;
    let mut client = proxy.connect(INBOUND).await;
    client.send("GET / HTTP/1.1\r\nHo").await;
    let (head, body) = client.response().await;
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    assert_eq!(header(&head, "x-outrider-reason"), Some("request_head_timeout"));
    assert!(body.contains("200ms"), "{body}");
    assert!(origin.is_untouched().await);

    let (_origin, mut proxy) = limited("http2", "requestHeadersTimeout: 200ms").await;
    let mut raw = Raw::connect_to(&proxy, INBOUND).await;
    // HEADERS without END_HEADERS: there is no answer to half a head but GOAWAY.
    raw.frame(1, 1, 1, &[0x82, 0x86]).await;
    raw.until(|frame| frame.kind == 7).await;
    raw.ended().await;
    proxy
        .counted("the reason", |stats| {
            stats.listeners[INBOUND].reasons.get("request_head_timeout") == Some(&1)
        })
        .await;
}

#[tokio::test]
async fn streams_at_once_are_what_a_document_says() {
    let (origin, proxy) = limited("http2", "maxConcurrentStreams: 2").await;
    let mut raw = Raw { peer: proxy.connect(INBOUND).await };
    raw.peer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    raw.frame(4, 0, 0, &[]).await;
    let settings = raw.until(|frame| frame.kind == 4 && frame.flags == 0).await;
    // SETTINGS_MAX_CONCURRENT_STREAMS.
    assert!(settings.payload.chunks(6).any(|one| one == [0, 3, 0, 0, 0, 2]), "{:?}", settings.payload);
    raw.frame(4, 1, 0, &[]).await;
    for stream in [1, 3, 5] {
        raw.request(stream, "/").await;
    }
    // RST_STREAM with REFUSED_STREAM, of the third alone.
    let reset = raw.until(|frame| frame.kind == 3).await;
    assert_eq!((reset.stream, reset.payload.as_slice()), (5, &[0, 0, 0, 7][..]));
    let mut endpoint = Served::accept(&origin).await;
    for _ in 0..2 {
        reply(&mut endpoint.next().await.1, "ok");
        raw.until(|frame| frame.kind == 0 && frame.flags == 1).await;
    }
    raw.request(7, "/").await;
    reply(&mut endpoint.next().await.1, "ok");
    assert_eq!(raw.until(|frame| frame.kind == 0 && frame.flags == 1).await.stream, 7);
}

/// What can be said over xDS alone is held to what this proxy does: above it, it is refused by name and never clamped.
#[test]
fn limits_that_cannot_be_kept_are_refused_by_name() {
    use outrider_proxy::config::{Slots, cluster, listener};
    use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
    use outrider_xds_types::pb::envoy::config::core::v3::HttpProtocolOptions as Common;
    use outrider_xds_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
    use outrider_xds_types::pb::google::protobuf::UInt32Value;
    let set = compiled(&pair("http2", "off", 1, ""), "shop/web");
    let size = |value| Some(UInt32Value { value });
    type Change = fn(&mut HttpConnectionManager, Option<UInt32Value>);
    let kb: Change = |hcm, given| hcm.max_request_headers_kb = given;
    let count: Change = |hcm, given| {
        hcm.common_http_protocol_options.get_or_insert_default().max_headers_count = given;
    };
    let streams: Change = |hcm, given| {
        hcm.http2_protocol_options.get_or_insert_default().max_concurrent_streams = given;
    };
    let window: Change = |hcm, given| {
        hcm.http2_protocol_options.get_or_insert_default().initial_stream_window_size = given;
    };
    for (change, good, bad, field) in [
        (kb, vec![1, 96], vec![0, 97, 8192], "max_request_headers_kb"),
        (count, vec![1, 256], vec![0, 257], "common_http_protocol_options.max_headers_count"),
        (streams, vec![1, 10_000], vec![0, 10_001], "http2_protocol_options.max_concurrent_streams"),
        (window, vec![65_535, 16 << 20], vec![0, 65_534, (16 << 20) + 1], "initial_stream_window_size"),
    ] {
        for (value, is_good) in
            good.into_iter().map(|value| (value, true)).chain(bad.into_iter().map(|value| (value, false)))
        {
            let mut set = set.clone();
            edit(&mut set, type_url::LISTENER, OUTBOUND, |listener: &mut Listener| {
                for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
                    if let Some(filter::ConfigType::TypedConfig(any)) = &mut filter.config_type {
                        let mut hcm = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
                        change(&mut hcm, size(value));
                        any.value = hcm.encode_to_vec();
                    }
                }
            });
            let body = &set.get(type_url::LISTENER, OUTBOUND).unwrap().body;
            match listener::parse(body, &mut Slots::default()) {
                Ok(_) => assert!(is_good, "{field}: {value}"),
                Err(refusal) => {
                    assert!(!is_good && refusal.path.ends_with(field), "{value}: {refusal}");
                    assert!(refusal.cause.contains("must be from "), "{refusal}");
                }
            }
        }
    }
    let fields: Change2 = |common, given| common.max_headers_count = given;
    let heads: Change2 = |common, given| common.max_response_headers_kb = given;
    type Change2 = fn(&mut Common, Option<UInt32Value>);
    for (change, good, bad, field) in
        [(fields, 200, 100, "max_headers_count"), (heads, 96, 60, "max_response_headers_kb")]
    {
        for value in [good, bad] {
            let mut set = set.clone();
            edit(&mut set, type_url::CLUSTER, OUTBOUND, |cluster: &mut Cluster| {
                for any in cluster.typed_extension_protocol_options.values_mut() {
                    let mut options = HttpProtocolOptions::decode(any.value.as_slice()).unwrap();
                    change(options.common_http_protocol_options.get_or_insert_default(), size(value));
                    any.value = options.encode_to_vec();
                }
            });
            match cluster::parse(&set.get(type_url::CLUSTER, OUTBOUND).unwrap().body) {
                Ok(_) => assert_eq!(value, good, "{field}"),
                Err(refusal) => assert!(value == bad && refusal.path.ends_with(field), "{refusal}"),
            }
        }
    }
}

/// A reply of ours that its caller does not read holds no place of others.
#[tokio::test]
async fn a_request_that_failed_has_no_place_any_more() {
    use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
    use outrider_xds_types::pb::google::protobuf::UInt32Value;
    let origin = Origin::bind().await;
    let mut set = compiled(&pair("http2", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    drop(origin);
    edit(&mut set, type_url::CLUSTER, OUTBOUND, |cluster: &mut Cluster| {
        let breakers = cluster.circuit_breakers.as_mut().unwrap();
        breakers.thresholds[0].max_requests = Some(UInt32Value { value: 1 });
    });
    let proxy = Proxy::start(set).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let mut silent = Caller::with(tcp(&proxy, OUTBOUND).await, builder).await;
    let (first, _) = silent.ask(get("/"), true).await;
    let unread = soon("head", first).await.unwrap();
    assert_eq!(unread.headers()["x-outrider-reason"], "connect_failed");
    let mut other = Caller::connect(&proxy, OUTBOUND).await;
    assert_eq!(other.get("/").await.header("x-outrider-reason"), Some("connect_failed"));
}
