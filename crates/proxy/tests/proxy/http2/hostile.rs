//! Callers that break rules, or keep them and mean harm.

use super::*;

#[tokio::test]
async fn http1_at_a_port_of_http2_is_told_so() {
    let (_origin, proxy) = one().await;
    let mut peer = proxy.connect(OUTBOUND).await;
    peer.send(GET).await;
    let (head, body) = peer.response().await;
    assert!(head.starts_with("HTTP/1.1 505 "), "{head}");
    assert_eq!(header(&head, "x-outrider-reason"), Some("unsupported_version"));
    assert!(body.contains("HTTP/2"), "{body}");
}

/// Edge case 35.
#[tokio::test]
async fn heads_beyond_the_limits_are_answered_and_the_connection_stays() {
    let (origin, proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    // N35: never a stall, and never the whole connection.
    let long = Request::get("http://api/").header("x-long", "x".repeat(100 << 10)).body(()).unwrap();
    let (response, _) = caller.ask(long, true).await;
    let told = answer(response).await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (431, Some("header_too_large")));
    let mut many = Request::get("http://api/");
    for n in 0..201 {
        many = many.header(format!("x-{n}"), "1");
    }
    let (response, _) = caller.ask(many.body(()).unwrap(), true).await;
    let told = answer(response).await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (431, Some("too_many_headers")));
    let large = Request::get("http://api/?").header("x-long", "x".repeat(80 << 10)).body(()).unwrap();
    let (response, _) = caller.ask(large, true).await;
    let mut builder = h2::server::Builder::new();
    builder.max_header_list_size(96 << 10);
    let mut endpoint = Served::accept_with(&origin, builder).await;
    let (request, mut send) = endpoint.next().await;
    assert_eq!(request.headers()["x-long"].len(), 80 << 10);
    let large = Response::builder().header("x-long", "y".repeat(80 << 10)).body(()).unwrap();
    send.send_response(large, true).unwrap();
    assert_eq!(answer(response).await.header("x-long").unwrap().len(), 80 << 10);
}

/// Edge cases 26 to 28.
#[tokio::test]
async fn a_stalled_reader_holds_its_own_window_and_nobody_else() {
    let (origin, mut proxy) = one().await;
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(8 << 20);
    let mut caller = Caller::with(tcp(&proxy, OUTBOUND).await, builder).await;
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1000);
    let (first, _) = caller.ask(get("/"), true).await;
    let mut endpoint = Served::accept_with(&origin, builder).await;
    let mut stalled = vec![first];
    for _ in 1..60 {
        stalled.push(caller.ask(get("/"), true).await.0);
    }
    let mut floods = Vec::new();
    for _ in 0..60 {
        let (_, mut send) = endpoint.next().await;
        let down = send.send_response(Response::new(()), false).unwrap();
        floods.push(tokio::spawn(async move {
            let mut down = down;
            // More than fits anywhere between; ends when the stream does.
            let mut bytes = Bytes::from(vec![0; 4 << 20]);
            while !bytes.is_empty() {
                down.reserve_capacity(bytes.len());
                let Some(Ok(room)) = std::future::poll_fn(|cx| down.poll_capacity(cx)).await else { return };
                let piece = bytes.split_to(room.min(bytes.len()));
                let _ = down.send_data(piece, bytes.is_empty());
            }
        }));
    }
    let mut unread = Vec::new();
    for response in stalled {
        unread.push(soon("head", response).await.unwrap().into_body());
    }
    // N26 to N28: neither on this connection nor on another does anybody wait for them.
    let mut other = Caller::connect(&proxy, OUTBOUND).await;
    for n in 0..40 {
        let asking = if n % 2 == 0 { &mut caller } else { &mut other };
        let (response, _) = asking.ask(get("/other"), true).await;
        let (request, mut send) = endpoint.next().await;
        assert_eq!(request.uri().path(), "/other");
        reply(&mut send, "fine");
        assert_eq!(answer(response).await.text(), "fine");
    }
    // What is read flows on, and all of it arrives.
    assert_eq!(body(&mut unread.remove(0)).await.unwrap().len(), 4 << 20);
    drop(unread);
    proxy.counted("no request left", |stats| stats.listeners[OUTBOUND].active_requests == 0).await;
    for flood in floods {
        flood.abort();
    }
}

/// Responses that are whole take no stream any more, and still room in the endpoint's connection while nobody reads them.
#[tokio::test]
async fn what_is_unread_of_whole_responses_stops_nobody_else() {
    const LARGE: &[u8] = &[b'x'; 60_000];
    let (origin, mut proxy) = one().await;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = origin.listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
                while let Some(Ok((_, mut send))) = connection.accept().await {
                    let mut body = send.send_response(Response::new(()), false).unwrap();
                    body.send_data(Bytes::from_static(LARGE), true).unwrap();
                }
            });
        }
    });
    let (mut unread, mut callers) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(0);
        let mut caller = Caller::with(tcp(&proxy, OUTBOUND).await, builder).await;
        for _ in 0..80 {
            let (response, _) = caller.ask(get("/"), true).await;
            unread.push(soon("head", response).await.unwrap());
        }
        callers.push(caller);
    }
    let mut other = Caller::connect(&proxy, OUTBOUND).await;
    for _ in 0..20 {
        assert_eq!(other.get("/").await.body.len(), LARGE.len());
    }
    drop(unread);
    proxy.counted("no request left", |stats| stats.listeners[OUTBOUND].active_requests == 0).await;
}

/// Edge case 24.
#[tokio::test]
async fn rapid_resets_end_their_connection_and_no_other() {
    let (origin, mut proxy) = one().await;
    let mut other = Caller::connect(&proxy, OUTBOUND).await;
    let (held, _) = other.ask(get("/held"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    let (_, mut held_send) = endpoint.next().await;
    // N24: thousands of requests, each cancelled at once.
    let mut raw = Raw::connect(&proxy).await;
    let mut flood = Vec::new();
    let head = Raw::head("/flood");
    for n in 0..3000u32 {
        let stream = (2 * n + 1).to_be_bytes();
        flood.extend_from_slice(&(head.len() as u32).to_be_bytes()[1..]);
        flood.extend_from_slice(&[1, 5]);
        flood.extend_from_slice(&stream);
        flood.extend_from_slice(&head);
        flood.extend_from_slice(&[0, 0, 4, 3, 0]);
        flood.extend_from_slice(&stream);
        flood.extend_from_slice(&8u32.to_be_bytes());
    }
    // It may be sent away before all of it is taken.
    {
        use tokio::io::AsyncWriteExt;
        let _ = soon("flood", raw.peer.tcp.write_all(&flood)).await;
    }
    let goaway = raw.until(|frame| frame.kind == 7).await;
    assert_eq!(goaway.payload[4..8], 11u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
    raw.ended().await;
    reply(&mut held_send, "held");
    assert_eq!(answer(held).await.text(), "held");
    proxy
        .counted("nothing is left", |stats| {
            let (listener, cluster) = (&stats.listeners[OUTBOUND], &stats.clusters[OUTBOUND]);
            listener.active_requests == 0 && cluster.connections <= 40
        })
        .await;
    drop(endpoint);
}

/// Edge case 25.
#[tokio::test]
async fn hedging_clients_are_not_taken_for_attacks() {
    let (origin, mut proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (first, _) = caller.ask(get("/"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    reply(&mut endpoint.next().await.1, "warm");
    answer(first).await;
    // N25: a few hundred cancels.
    for _ in 0..400 {
        let (response, mut stream) = caller.ask(get("/hedge"), true).await;
        stream.send_reset(Reason::CANCEL);
        drop(response);
    }
    let mut served = tokio::spawn(async move {
        loop {
            let (request, mut send) = endpoint.next().await;
            if request.uri().path() == "/last" {
                reply(&mut send, "last");
                return endpoint;
            }
        }
    });
    assert_eq!(caller.get("/last").await.text(), "last");
    soon("the endpoint", &mut served).await.unwrap();
    proxy.counted("over", |stats| stats.listeners[OUTBOUND].active_requests == 0).await;
}

#[tokio::test]
async fn malformed_requests_end_alone() {
    let (origin, mut proxy) = one().await;
    let mut raw = Raw::connect(&proxy).await;
    // `:path` is missing; upper case; `connection`.
    for (n, block) in [
        &b"\x82\x86\x01\x03api"[..],
        &b"\x82\x86\x84\x01\x03api\x00\x01X\x01y"[..],
        &b"\x82\x86\x84\x01\x03api\x00\x0aconnection\x05close"[..],
    ]
    .into_iter()
    .enumerate()
    {
        let stream = 2 * n as u32 + 1;
        raw.frame(1, 5, stream, block).await;
        let reset = raw.until(|frame| frame.kind == 3).await;
        assert_eq!((reset.stream, reset.payload.as_slice()), (stream, &[0, 0, 0, 1][..]));
    }
    // A body that is not as long as it was said.
    let mut block = b"\x83\x86\x84\x01\x03api\x0f\x0d\x01".to_vec();
    block.push(b'5');
    raw.frame(1, 4, 7, &block).await;
    let mut endpoint = Served::accept(&origin).await;
    let (request, _send) = endpoint.next().await;
    raw.frame(0, 1, 7, b"abc").await;
    assert_eq!(raw.until(|frame| frame.kind == 3).await.stream, 7);
    assert!(body(&mut request.into_body()).await.is_err(), "not taken for whole");
    raw.request(9, "/").await;
    reply(&mut endpoint.next().await.1, "ok");
    raw.until(|frame| frame.kind == 0 && frame.flags & 1 == 1 && frame.stream == 9).await;
    // CONNECT is understood, and not offered.
    raw.frame(1, 5, 11, b"\x02\x07CONNECT\x01\x03api").await;
    raw.until(|frame| frame.kind == 1 && frame.stream == 11).await;
    proxy
        .counted("reasons", |stats| {
            let reasons = &stats.listeners[OUTBOUND].reasons;
            (reasons.get("bad_request"), reasons.get("invalid_body"), reasons.get("connect_not_supported"))
                == (Some(&3), Some(&1), Some(&1))
        })
        .await;
}

#[tokio::test]
async fn a_head_that_does_not_become_whole_ends_the_connection() {
    use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
    use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
    use outrider_xds_types::prost::Message;
    let origin = Origin::bind().await;
    let mut set = compiled(&pair("http2", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    edit(&mut set, type_url::LISTENER, OUTBOUND, |listener: &mut Listener| {
        for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            if let Some(filter::ConfigType::TypedConfig(any)) = &mut filter.config_type {
                let mut hcm = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
                hcm.request_headers_timeout = millis(300);
                any.value = hcm.encode_to_vec();
            }
        }
    });
    let mut proxy = Proxy::start(set).await;
    let mut silent = proxy.connect(OUTBOUND).await;
    silent.send("PRI * HT").await;
    let mut raw = Raw::connect(&proxy).await;
    // HEADERS without END_HEADERS.
    raw.frame(1, 1, 1, &[0x82, 0x86]).await;
    raw.until(|frame| frame.kind == 7).await;
    raw.ended().await;
    let _ = silent.rest().await;
    proxy
        .counted("reasons", |stats| stats.listeners[OUTBOUND].reasons.get("request_head_timeout") == Some(&2))
        .await;
}

/// An endpoint of HTTP/2 by hand, with one request that has come.
async fn endpoint_by_hand(origin: &Origin) -> (Raw, u32) {
    let mut raw = Raw { peer: origin.accept().await };
    raw.peer.take(24).await;
    raw.frame(4, 0, 0, &[]).await;
    let stream = raw.until(|frame| frame.kind == 1).await.stream;
    (raw, stream)
}

/// As many interim responses as an application has pass; more are no response. Each may be as large as a head, for a few bytes
/// on the wire.
#[tokio::test]
async fn interim_responses_of_an_endpoint_are_bounded() {
    // A field in the table of this connection, and `:status 103` with that field 23 times.
    let large = [[0x40, 6].as_slice(), b"x-hint", &[0x7f, 0xa1, 0x1e], &[b'h'; 4000]].concat();
    let first = [&[0x08, 3], b"103".as_slice(), &large].concat();
    let again = [&[0x08, 3], b"103".as_slice(), &[0x80 | 62; 23]].concat();
    for (more, answered) in [(31, true), (32, false), (1_500, false)] {
        let (origin, mut proxy) = one().await;
        let mut caller = Caller::connect(&proxy, OUTBOUND).await;
        let (response, _) = caller.ask(get("/"), true).await;
        let (mut raw, stream) = endpoint_by_hand(&origin).await;
        let mut flood = Vec::new();
        for block in std::iter::once(&first).chain(std::iter::repeat_n(&again, more)) {
            flood.extend_from_slice(&(block.len() as u32).to_be_bytes()[1..]);
            flood.extend_from_slice(&[1, 4]);
            flood.extend_from_slice(&stream.to_be_bytes());
            flood.extend_from_slice(block);
        }
        flood.extend_from_slice(&[0, 0, 1, 1, 5]);
        flood.extend_from_slice(&stream.to_be_bytes());
        flood.push(0x88);
        raw.peer.send(flood).await;
        let told = answer(response).await;
        match answered {
            true => assert_eq!(told.status(), 200),
            false => {
                assert_eq!(told.status(), 502, "{more}");
                assert_eq!(told.header("x-outrider-reason"), Some("upstream_protocol_error"));
                raw.until(|frame| frame.kind == 3 && frame.stream == stream).await;
            }
        }
        let out = proxy.stats().await.listeners[OUTBOUND].bytes_out;
        assert!(out < 4 << 20, "{out} bytes to the caller for {more}");
    }
}
