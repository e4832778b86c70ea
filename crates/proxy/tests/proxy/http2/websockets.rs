//! WebSockets as streams of HTTP/2 (RFC 8441). Edge cases 21 to 23 of part 2.

use h2::ext::Protocol;
use outrider_handover::{Connections, ToProxy};
use outrider_proxy::websocket;
use outrider_xds_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use outrider_xds_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;

use super::super::access::{caller, documents, policy, server};
use super::super::mesh::of_api;
use super::super::resilience;
use super::*;

mod ends;

/// 1001, going away.
const GOODBYE: &[u8] = b"\x88\x02\x03\xe9";

fn opening(path: &str, protocol: &'static str) -> http::request::Builder {
    Request::connect(format!("http://api{path}"))
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static(protocol))
}

fn chat() -> Request<()> {
    opening("/chat?a", "websocket").header("sec-websocket-protocol", "one, two").body(()).unwrap()
}

/// An endpoint that takes WebSockets as streams.
async fn accept(origin: &Origin) -> Served {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    Served::accept_with(origin, builder).await
}

/// One side of an open WebSocket.
struct End {
    up: SendStream<Bytes>,
    down: RecvStream,
}

impl End {
    async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        send_all(&mut self.up, Bytes::copy_from_slice(bytes.as_ref()), false).await.unwrap();
    }

    fn finish(&mut self) {
        self.up.send_data(Bytes::new(), true).unwrap();
    }

    /// Expects these bytes, in however many pieces.
    async fn expect(&mut self, expected: impl AsRef<[u8]>) {
        let (expected, mut got) = (expected.as_ref(), Vec::new());
        while got.len() < expected.len() {
            let piece = soon("bytes", self.down.data()).await.expect("no end").unwrap();
            self.down.flow_control().release_capacity(piece.len()).unwrap();
            got.extend_from_slice(&piece);
        }
        assert!(
            got == expected,
            "{} bytes of {}: {:?}…",
            got.len(),
            expected.len(),
            &got[..got.len().min(64)]
        );
    }

    /// Expects the end of the other side's sending.
    async fn ended(&mut self) {
        let rest = body(&mut self.down).await.unwrap();
        assert_eq!(rest, b"");
    }

    async fn reset(&mut self) -> Option<Reason> {
        loop {
            match soon("a reset", self.down.data()).await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.reason(),
                None => return None,
            }
        }
    }
}

/// The caller's side, once it is answered, and the endpoint's.
async fn open(caller: &mut Caller, endpoint: &mut Option<Served>, origin: &Origin) -> (End, End) {
    let (response, up) = caller.ask(chat(), false).await;
    if endpoint.is_none() {
        *endpoint = Some(accept(origin).await);
    }
    let (request, mut send) = endpoint.as_mut().unwrap().next().await;
    assert_eq!(request.extensions().get::<Protocol>().map(Protocol::as_str), Some("websocket"));
    let head = Response::builder().header("sec-websocket-protocol", "two").body(()).unwrap();
    let theirs = End { up: send.send_response(head, false).unwrap(), down: request.into_body() };
    let response = soon("head", response).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["sec-websocket-protocol"]),
        (200, &"two".parse().unwrap())
    );
    (End { up, down: response.into_body() }, theirs)
}

/// 21: the first stream of a connection and later ones. 22: ends by themselves.
#[tokio::test]
async fn bytes_and_ends_pass_in_both_directions_stream_by_stream() {
    let (origin, mut proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, up) = caller.ask(chat(), false).await;
    let mut endpoint = accept(&origin).await;
    let (request, mut send) = endpoint.next().await;
    assert_eq!(
        (request.method().as_str(), request.uri().path_and_query().unwrap().as_str()),
        ("CONNECT", "/chat?a")
    );
    assert_eq!(request.headers()["sec-websocket-protocol"], "one, two");
    assert_eq!(request.headers()["sec-websocket-version"], "13");
    let mut theirs =
        End { up: send.send_response(Response::new(()), false).unwrap(), down: request.into_body() };
    let response = soon("head", response).await.unwrap();
    assert!(caller.send.is_extended_connect_protocol_enabled(), "it was announced");
    let mut ours = End { up, down: response.into_body() };
    ours.say("up").await;
    theirs.expect("up").await;
    theirs.say("down").await;
    ours.expect("down").await;

    let mut endpoint = Some(endpoint);
    let (mut our_second, mut their_second) = open(&mut caller, &mut endpoint, &origin).await;
    let bulk: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    tokio::join!(their_second.say(&bulk), our_second.expect(&bulk));
    tokio::join!(our_second.say(&bulk), their_second.expect(&bulk));

    ours.finish();
    theirs.ended().await;
    theirs.say("more").await;
    ours.expect("more").await;
    theirs.finish();
    ours.ended().await;
    their_second.finish();
    our_second.ended().await;
    our_second.say("still").await;
    their_second.expect("still").await;
    our_second.finish();
    their_second.ended().await;
    proxy.counted("both are over", |stats| stats.listeners[OUTBOUND].active_requests == 0).await;
    let stats = proxy.stats().await;
    assert_eq!(stats.clusters[OUTBOUND].connections, 1);
    assert_eq!(stats.listeners[OUTBOUND].reasons.values().sum::<u64>(), 0);
}

#[tokio::test]
async fn resets_pass_in_both_directions_and_are_counted() {
    let (origin, mut proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let mut endpoint = None;
    let (mut ours, mut theirs) = open(&mut caller, &mut endpoint, &origin).await;
    ours.up.send_reset(Reason::CANCEL);
    assert_eq!(theirs.reset().await, Some(Reason::CANCEL));
    let (mut ours, mut theirs) = open(&mut caller, &mut endpoint, &origin).await;
    theirs.up.send_reset(Reason::ENHANCE_YOUR_CALM);
    assert_eq!(ours.reset().await, Some(Reason::ENHANCE_YOUR_CALM));
    // Half of it is over already.
    let (mut ours, mut theirs) = open(&mut caller, &mut endpoint, &origin).await;
    theirs.finish();
    ours.ended().await;
    ours.up.send_reset(Reason::CANCEL);
    let reset = soon("RST_STREAM", std::future::poll_fn(|cx| theirs.up.poll_reset(cx))).await;
    drop(reset);
    assert_eq!(theirs.reset().await, Some(Reason::CANCEL));
    // The connection is lost: RST in TCP (RFC 8441 section 5).
    let (mut ours, _theirs) = open(&mut caller, &mut endpoint, &origin).await;
    endpoint.as_ref().unwrap().tell(Control::Close);
    assert_eq!(ours.reset().await, Some(Reason::CANCEL));
    proxy
        .counted("reasons", |stats| {
            let reasons = &stats.listeners[OUTBOUND].reasons;
            reasons.get("client_gone") == Some(&1) && reasons.get("upstream_reset") == Some(&2)
        })
        .await;
}

/// Long enough for a goodbye to be answered before it is over.
const DRAIN: ToProxy = ToProxy::Drain { drain_ms: 8_000, inbound_only: false };
const DRAINED: Duration = Duration::from_secs(8);

/// 23: a close frame between two of their frames near the deadline, and nothing after it.
/// A proxy, both of its sides, and two WebSockets.
type Open = (Proxy, Caller, Option<Served>, (End, End), (End, End));

#[tokio::test]
async fn a_drain_says_goodbye_between_two_frames_and_both_close() {
    let arrange = async || {
        let (origin, proxy) = one().await;
        let mut caller = Caller::connect(&proxy, OUTBOUND).await;
        let mut endpoint = None;
        let between = open(&mut caller, &mut endpoint, &origin).await;
        let (mut amid, mut their_amid) = open(&mut caller, &mut endpoint, &origin).await;
        their_amid.say(b"\x82\x04ab").await;
        amid.expect(b"\x82\x04ab").await;
        (proxy, caller, endpoint, between, (amid, their_amid))
    };
    let close = async |(mut proxy, caller, endpoint, mut between, mut amid): Open| {
        proxy.tell(DRAIN).await;
        soon("both to be told from requests", async {
            while proxy.stats().await.drain.unwrap().open
                != (Connections { websocket: 2, ..Connections::default() })
            {}
        })
        .await;
        between.0.expect(GOODBYE).await;
        amid.1.say(b"cd\x82\x01x").await;
        amid.0.expect([b"cd", GOODBYE].concat()).await;
        for (mut ours, mut theirs) in [between, amid] {
            ours.say(b"\x88\x82mask..").await;
            theirs.expect(b"\x88\x82mask..").await;
            theirs.say(b"\x88\x02\x03\xe9").await;
            theirs.finish();
            ours.ended().await;
            ours.finish();
            theirs.ended().await;
        }
        caller.ended().await.unwrap();
        (proxy, endpoint)
    };
    let (mut proxy, _endpoint) = within(DRAINED, arrange, close).await;
    assert_eq!(proxy.drained(false).await, Connections::default());
    proxy.join();
}

#[tokio::test]
async fn who_does_not_answer_the_goodbye_is_cut_at_the_deadline() {
    let (origin, mut proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let mut endpoint = None;
    let (mut ours, mut theirs) = open(&mut caller, &mut endpoint, &origin).await;
    proxy.tell(ToProxy::Drain { drain_ms: 600, inbound_only: false }).await;
    ours.expect(GOODBYE).await;
    assert_eq!(ours.reset().await, Some(Reason::CANCEL));
    assert_eq!(theirs.reset().await, Some(Reason::CANCEL));
    assert_eq!(proxy.drained(false).await, Connections { websocket: 1, ..Connections::default() });
    proxy.join();
}

#[tokio::test]
async fn silence_ends_one_and_so_does_an_endpoint_that_does_not_answer() {
    let arrange = async || {
        let origin = Origin::bind().await;
        let limits = "  timeouts: {request: 300ms, idle: 1s}\n";
        let mut set = compiled(&pair("http2", "off", 1, limits), "shop/web");
        set.insert(assignment(ENDPOINTS, &[origin.address()]));
        let proxy = Proxy::start(set).await;
        let caller = Caller::connect(&proxy, OUTBOUND).await;
        (origin, proxy, caller)
    };
    let answered = async |(origin, proxy, mut caller): (Origin, Proxy, Caller)| {
        let mut endpoint = None;
        let ends = open(&mut caller, &mut endpoint, &origin).await;
        (proxy, caller, endpoint, ends)
    };
    let (mut proxy, mut caller, mut endpoint, (mut ours, mut theirs)) =
        within(Duration::from_millis(300), arrange, answered).await;
    assert_eq!(ours.reset().await, Some(Reason::CANCEL));
    assert_eq!(theirs.reset().await, Some(Reason::CANCEL));
    // Nobody answers this one.
    let (response, _up) = caller.ask(chat(), false).await;
    let _asked = endpoint.as_mut().unwrap().next().await;
    let told = answer(response).await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (504, Some("request_timeout")));
    proxy
        .counted("reasons", |stats| {
            let reasons = &stats.listeners[OUTBOUND].reasons;
            reasons.get("idle_timeout") == Some(&1) && reasons.get("request_timeout") == Some(&1)
        })
        .await;
}

#[tokio::test]
async fn what_cannot_be_carried_is_refused_with_the_reason() {
    let (origin, proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let other = opening("/", "connect-udp").body(()).unwrap();
    let (response, _) = caller.ask(other, false).await;
    let told = answer(response).await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (501, Some("protocol_not_supported")));
    // A head of gRPC with a status of 200 would be a tunnel.
    let odd = opening("/", "connect-udp").header("content-type", "application/grpc").body(()).unwrap();
    let (response, _) = caller.ask(odd, false).await;
    assert_eq!(answer(response).await.status(), 501);
    let plain = Request::connect("api:80").header("content-type", "application/grpc").body(()).unwrap();
    let (response, _) = caller.ask(plain, false).await;
    let told = answer(response).await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (501, Some("connect_not_supported")));
    assert!(origin.is_untouched().await);

    // What the endpoint says is said.
    let (response, _up) = caller.ask(chat(), false).await;
    let mut endpoint = accept(&origin).await;
    let (_, mut send) = endpoint.next().await;
    let mut stream = send.send_response(Response::builder().status(403).body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from_static(b"not you"), true).unwrap();
    let told = answer(response).await;
    assert_eq!((told.status(), &*told.text()), (403, "not you"));
}

/// Where it was not announced, `:protocol` is malformed.
#[tokio::test]
async fn ports_of_grpc_know_no_websockets() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("grpc", &[origin.address()]).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, _up) = caller.ask(chat(), false).await;
    assert_eq!(whole(response).await.err().unwrap().reason(), Some(Reason::PROTOCOL_ERROR));
    assert!(!caller.send.is_extended_connect_protocol_enabled());
    proxy.counted("reason", |stats| stats.listeners[OUTBOUND].reasons.get("bad_request") == Some(&1)).await;
}

/// To policies they are what they are in HTTP/1.1: GET, with Upgrade.
#[tokio::test]
async fn access_is_decided_when_one_is_opened_and_when_that_changes() {
    const READERS: &str = "action: allow, rules: [{from: [{service: web}], to: [{methods: [GET], headers: [{name: upgrade, value: websocket}]}]}]";
    const DENY: &str = "action: deny, rules: [{from: [{service: web}], to: [{paths: [{value: /chat}]}]}]";
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = server("http2", &origin, &authority, &policy("readers", READERS)).await;
    let web = caller("http2", &server, &authority, "shop/web").await;
    let mut caller = Caller::connect(&web, OUTBOUND).await;
    assert_eq!(caller.get("/chat").await.status(), 403);
    let mut endpoint = None;
    let (mut ours, mut theirs) = open(&mut caller, &mut endpoint, &origin).await;
    ours.say("through both").await;
    theirs.expect("through both").await;
    let documents = documents("http2", "required", origin.port(), &policy("admins", DENY));
    server.configure(of_api(&documents, &authority)).await;
    assert_eq!(ours.reset().await, Some(Reason::CANCEL));
    assert_eq!(theirs.reset().await, Some(Reason::CANCEL));
    let (response, _up) = caller.ask(chat(), false).await;
    let told = answer(response).await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (403, Some("caller_not_allowed")));
}

/// A request that was bridged, at its endpoint: the answer to its key.
fn key_of(head: &str) -> String {
    websocket::accept(header(head, "sec-websocket-key").unwrap())
}

fn switched(accept: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\
         Sec-WebSocket-Protocol: two\r\n\r\n"
    )
}

/// A proxy whose cluster speaks HTTP/1.1, or whose endpoint knows both versions, and this endpoint.
async fn bridged(version: &str) -> (Origin, Proxy, Option<Served>, Caller) {
    let origin = Origin::bind().await;
    let mut set = compiled(&pair("http2", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    if version == "cluster" {
        let older = compiled(&pair("http", "off", 1, ""), "shop/web");
        let cluster = older.of_type(type_url::CLUSTER).find(|one| &*one.name == OUTBOUND).unwrap();
        set.insert(cluster.clone());
    }
    let proxy = Proxy::start(set).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let mut served = None;
    if version == "endpoint" {
        let (response, _) = caller.ask(get("/"), true).await;
        let mut endpoint = Served::accept(&origin).await;
        reply(&mut endpoint.next().await.1, "in HTTP/2");
        assert_eq!(answer(response).await.text(), "in HTTP/2");
        served = Some(endpoint);
    }
    (origin, proxy, served, caller)
}

/// 21: to HTTP/1.1. 22: half-close.
#[tokio::test]
async fn one_goes_on_as_an_upgrade_where_the_endpoint_takes_it_only_so() {
    for version in ["cluster", "endpoint"] {
        let (origin, mut proxy, _served, mut caller) = bridged(version).await;
        for round in 0..2 {
            let request = opening("/chat?a", "websocket")
                .header("sec-websocket-protocol", "one, two")
                .header("sec-websocket-key", "of the caller")
                .header("cookie", "a=1")
                .header("cookie", "b=2")
                .header("te", "trailers")
                .header("content-length", "7")
                .header("proxy-authorization", "secret")
                .body(())
                .unwrap();
            let (response, up) = caller.ask(request, false).await;
            let mut theirs = origin.accept().await;
            let head = theirs.head().await;
            assert!(head.starts_with("GET /chat?a HTTP/1.1\r\nHost: api\r\n"), "{version} {round}: {head}");
            let fields =
                ["upgrade", "connection", "sec-websocket-protocol", "cookie", "sec-websocket-version"];
            let values = fields.map(|name| header(&head, name).unwrap_or_default());
            assert_eq!(values, ["websocket", "Upgrade", "one, two", "a=1; b=2", "13"], "{head}");
            for gone in ["te", "content-length", "proxy-authorization", "x-forwarded-client-cert"] {
                assert_eq!(header(&head, gone), None, "{head}");
            }
            assert_eq!(head.to_ascii_lowercase().matches("sec-websocket-key").count(), 1, "{head}");
            assert_ne!(header(&head, "sec-websocket-key"), Some("of the caller"));
            // With it, what follows.
            theirs.send(switched(&key_of(&head)) + "at once").await;
            let response = soon("head", response).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["sec-websocket-protocol"], "two");
            for gone in ["upgrade", "connection", "sec-websocket-accept"] {
                assert!(!response.headers().contains_key(gone), "{response:?}");
            }
            let mut ours = End { up, down: response.into_body() };
            ours.expect("at once").await;
            let bulk: Vec<u8> = (0..1_000_000u32).map(|n| (n % 253) as u8).collect();
            let (_, arrived) = tokio::join!(ours.say(&bulk), theirs.take(bulk.len()));
            assert!(arrived == bulk);
            tokio::join!(theirs.send(&bulk), ours.expect(&bulk));
            if round == 0 {
                ours.finish();
                assert_eq!(theirs.rest().await.unwrap(), b"");
                theirs.send("after the end").await;
                ours.expect("after the end").await;
                drop(theirs);
                ours.ended().await;
            } else {
                theirs.finish().await;
                ours.ended().await;
                ours.say("after the end").await;
                theirs.expect("after the end").await;
                ours.finish();
                assert_eq!(theirs.rest().await.unwrap(), b"");
            }
        }
        proxy
            .counted("all are over", |stats| {
                stats.listeners[OUTBOUND].active_requests == 0
                    && stats.clusters[OUTBOUND].active_connections == u64::from(version == "endpoint")
            })
            .await;
    }
}

/// It has a connection of its own, and a place for it: the other connection's, once nobody uses that.
#[tokio::test]
async fn an_upgrade_waits_for_a_place_among_the_connections() {
    let origin = Origin::bind().await;
    let mut set = resilience::set("http2", &[origin.address()]);
    let one = Thresholds { max_connections: resilience::n(1), ..Default::default() };
    resilience::thresholds(&mut set, one);
    let mut proxy = Proxy::start(set).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (held, _) = caller.ask(get("/"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    let (_, mut send) = endpoint.next().await;
    let (response, up) = caller.ask(chat(), false).await;
    proxy.counted("both", |stats| stats.listeners[OUTBOUND].active_requests == 2).await;
    assert!(origin.is_untouched().await);
    reply(&mut send, "done");
    assert_eq!(answer(held).await.text(), "done");
    let mut theirs = origin.accept().await;
    let head = theirs.head().await;
    theirs.send(switched(&key_of(&head)) + "hello").await;
    let response = soon("head", response).await.unwrap();
    assert_eq!(response.status(), 200);
    End { up, down: response.into_body() }.expect("hello").await;
}

#[tokio::test]
async fn an_upgrade_that_is_answered_in_another_way_is_no_websocket() {
    let (origin, mut proxy, _served, mut caller) = bridged("endpoint").await;
    let cases = [
        (
            "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            502,
            "upstream_protocol_error",
        ),
        (&*switched("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), 502, "upstream_protocol_error"),
        (
            "HTTP/1.1 101 X\r\nUpgrade: other\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: KEY\r\n\r\n",
            502,
            "upstream_protocol_error",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 502, "upstream_no_websocket"),
        ("SSH-2.0-x\r\n\r\n", 502, "upstream_protocol_error"),
        ("", 503, "upstream_closed_before_response"),
        ("HTTP/1.1 403 No\r\nContent-Length: 7\r\n\r\nnot you", 403, "not you"),
        (
            "HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 426 No\r\nTransfer-Encoding: chunked\r\nUpgrade: a\r\n\r\n3\r\nnot\r\n4\r\n you\r\n0\r\n\r\n",
            426,
            "not you",
        ),
        ("HTTP/1.1 404 No\r\n\r\nnot you", 404, "not you"),
        ("HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", 304, ""),
    ];
    for (said, status, why) in cases {
        let (response, _up) = caller.ask(chat(), false).await;
        let mut theirs = origin.accept().await;
        let head = theirs.head().await;
        theirs.send(said.replace("KEY", &key_of(&head))).await;
        // Whoever lasts until the end, ends; nobody else has to.
        if !said.contains("Length") && !said.contains("chunked") && !said.contains("101") {
            theirs.finish().await;
        }
        let told = answer(response).await;
        let reason = told.header("x-outrider-reason").map(str::to_owned).unwrap_or_else(|| told.text());
        assert_eq!((told.status(), &*reason), (status, why), "{said}");
    }
    // As before.
    let (response, _up) = caller.ask(chat(), false).await;
    let mut theirs = origin.accept().await;
    let head = theirs.head().await;
    theirs.send(switched(&key_of(&head))).await;
    assert_eq!(soon("head", response).await.unwrap().status(), 200);
    proxy
        .counted("one is open", |stats| {
            stats.listeners[OUTBOUND].active_requests == 1 && stats.clusters[OUTBOUND].active_connections == 2
        })
        .await;
}

/// An open WebSocket between a caller in HTTP/2 and an endpoint in HTTP/1.1.
async fn cross(origin: &Origin, caller: &mut Caller) -> (End, Peer) {
    let (response, up) = caller.ask(chat(), false).await;
    let mut theirs = origin.accept().await;
    let head = theirs.head().await;
    theirs.send(switched(&key_of(&head))).await;
    let response = soon("head", response).await.unwrap();
    (End { up, down: response.into_body() }, theirs)
}

/// RFC 8441 section 5: RST_STREAM with CANCEL and RST of TCP are the same. 23: the goodbye, too.
#[tokio::test]
async fn resets_and_goodbyes_cross_the_bridge() {
    let (origin, mut proxy, _served, mut caller) = bridged("cluster").await;
    let (mut ours, mut theirs) = cross(&origin, &mut caller).await;
    ours.up.send_reset(Reason::CANCEL);
    assert_eq!(theirs.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let (mut ours, theirs) = cross(&origin, &mut caller).await;
    theirs.tcp.set_zero_linger().unwrap();
    drop(theirs);
    assert_eq!(ours.reset().await, Some(Reason::CANCEL));
    // A caller that is gone before the answer.
    let (response, mut up) = caller.ask(chat(), false).await;
    let mut theirs = origin.accept().await;
    theirs.head().await;
    up.send_reset(Reason::CANCEL);
    drop(response);
    assert_eq!(theirs.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    proxy
        .counted("reasons", |stats| {
            let reasons = &stats.listeners[OUTBOUND].reasons;
            reasons.get("client_gone") == Some(&2) && reasons.get("upstream_reset") == Some(&1)
        })
        .await;
    let arrange = async || {
        let (origin, proxy, _, mut caller) = bridged("cluster").await;
        let ends = cross(&origin, &mut caller).await;
        (proxy, caller, ends)
    };
    let close = async |(mut proxy, caller, (mut ours, mut theirs)): (Proxy, Caller, (End, Peer))| {
        proxy.tell(DRAIN).await;
        ours.expect(GOODBYE).await;
        ours.say(b"\x88\x82mask..").await;
        assert_eq!(theirs.take(8).await, b"\x88\x82mask..");
        theirs.send(b"\x88\x02\x03\xe9").await;
        drop(theirs);
        ours.ended().await;
        ours.finish();
        drop(ours);
        caller.ended().await.unwrap();
        proxy
    };
    let mut proxy = within(DRAINED, arrange, close).await;
    assert_eq!(proxy.drained(false).await, Connections::default());
    proxy.join();
}

/// Who does not read stops the endpoint, and nobody else.
#[tokio::test]
async fn a_caller_that_does_not_read_holds_its_window_only() {
    let (origin, _proxy, _served, mut caller) = bridged("cluster").await;
    let (response, up) = caller.ask(chat(), false).await;
    let mut theirs = origin.accept().await;
    let head = theirs.head().await;
    theirs.send(switched(&key_of(&head))).await;
    let mut ours = End { up, down: soon("head", response).await.unwrap().into_body() };
    let bulk = vec![7; 8 << 20];
    let mut sent = 0;
    // More than sockets on the way hold.
    loop {
        tokio::select! {
            written = tokio::io::AsyncWriteExt::write(&mut theirs.tcp, &bulk[sent..]) => sent += written.unwrap(),
            () = tokio::time::sleep(std::time::Duration::from_millis(500)) => break,
        }
    }
    assert!(sent < bulk.len(), "nothing stopped it");
    let (_, ()) = tokio::join!(theirs.send(&bulk[sent..]), ours.expect(&bulk));
}

/// No TLS, no guess: there only what was agreed on is spoken.
#[tokio::test]
async fn a_peer_that_did_not_announce_it_is_not_asked_over_tls() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let server = server("http2", &origin, &authority, "").await;
    let documents = documents("http2", "required", 1, "");
    let mut set = super::super::mesh::with_secrets(&documents, "shop/web", &authority, "shop/web");
    set.insert(assignment(ENDPOINTS, &[server.address(INBOUND)]));
    // As if it did not.
    edit(
        &mut set,
        type_url::CLUSTER,
        OUTBOUND,
        |cluster: &mut outrider_xds_types::pb::envoy::config::cluster::v3::Cluster| {
            use outrider_xds_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options as options;
            use outrider_xds_types::prost::Message as _;
            for any in cluster.typed_extension_protocol_options.values_mut() {
                let mut all = HttpProtocolOptions::decode(any.value.as_slice()).unwrap();
                let Some(options::UpstreamProtocolOptions::ExplicitHttpConfig(config)) =
                    &mut all.upstream_protocol_options
                else {
                    panic!("what else")
                };
                let Some(options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(http2)) =
                    &mut config.protocol_config
                else {
                    panic!("what else")
                };
                assert!(std::mem::take(&mut http2.allow_connect), "it is allowed as compiled");
                any.value = all.encode_to_vec();
            }
        },
    );
    let web = Proxy::start(set).await;
    let mut caller = Caller::connect(&web, OUTBOUND).await;
    let (response, _up) = caller.ask(chat(), false).await;
    let told = answer(response).await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (502, Some("upstream_no_websocket")));
    assert!(origin.is_untouched().await);
}
