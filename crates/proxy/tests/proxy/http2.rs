//! HTTP/2 through the proxy, with another implementation (`h2`) as callers and endpoints.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use outrider_xds::ResourceSet;
use outrider_xds_types::pb::envoy::config::route::v3::{RouteAction, RouteConfiguration, route};
use outrider_xds_types::type_url;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::support::*;

mod access;
mod ages;
mod backlog;
mod bounds;
mod calls;
mod checks;
mod documents;
mod ending;
mod hops;
mod hostile;
mod mirrors;
mod places;
mod raced;
mod silence;
mod statuses;
mod turns;
mod unnoticed;
mod waiting;
mod websockets;
mod windows;

/// One connection of a caller.
pub struct Caller {
    send: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Caller {
    pub async fn of(tcp: TcpStream) -> Self {
        Self::with(tcp, h2::client::Builder::new()).await
    }

    async fn with(tcp: TcpStream, builder: h2::client::Builder) -> Self {
        tcp.set_nodelay(true).unwrap();
        let (send, connection) = soon("handshake", builder.handshake(tcp)).await.unwrap();
        Self { send, driver: tokio::spawn(connection) }
    }

    pub async fn connect(proxy: &Proxy, listener: &str) -> Self {
        Self::of(tcp(proxy, listener).await).await
    }

    /// Sends a request; `end`: without a body.
    async fn ask(&mut self, request: Request<()>, end: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut ready = soon("room for a stream", self.send.clone().ready()).await.unwrap();
        ready.send_request(request, end).unwrap()
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        let (response, _) = self.ask(get(path), true).await;
        answer(response).await
    }

    /// How the connection ended.
    async fn ended(self) -> Result<(), h2::Error> {
        drop(self.send);
        soon("the end of the connection", self.driver).await.unwrap()
    }
}

async fn tcp(proxy: &Proxy, listener: &str) -> TcpStream {
    soon("connect", TcpStream::connect(proxy.address(listener))).await.unwrap()
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://api{path}")).body(()).unwrap()
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://api{path}")).body(()).unwrap()
}

fn grpc(path: &str) -> http::request::Builder {
    let builder = Request::post(format!("http://api{path}"));
    builder.header("content-type", "application/grpc+proto").header("te", "trailers")
}

/// A whole response.
pub struct Answer {
    pub head: Response<()>,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers().get(name).map(|value| value.to_str().unwrap())
    }

    pub fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

async fn answer(response: ResponseFuture) -> Answer {
    whole(response).await.unwrap()
}

async fn whole(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut stream) = soon("response", response).await?.into_parts();
    let body = body(&mut stream).await?;
    let trailers = match soon("trailers", stream.trailers()).await {
        // After a whole response this says that no more of the request is wanted.
        Err(error) if error.reason() == Some(Reason::NO_ERROR) => None,
        trailers => trailers?,
    };
    Ok(Answer { head: Response::from_parts(head, ()), body, trailers })
}

async fn body(stream: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut body = Vec::new();
    while let Some(piece) = soon("a piece of the body", stream.data()).await {
        let piece = match piece {
            Err(error) if error.reason() == Some(Reason::NO_ERROR) => return Ok(body),
            piece => piece?,
        };
        stream.flow_control().release_capacity(piece.len())?;
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// Sends as windows allow.
async fn send_all(stream: &mut SendStream<Bytes>, mut bytes: Bytes, end: bool) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let room = soon("room", std::future::poll_fn(|cx| stream.poll_capacity(cx))).await;
        let Some(room) = room else { return Ok(()) };
        let piece = bytes.split_to(room?.min(bytes.len()));
        let last = end && bytes.is_empty();
        stream.send_data(piece, last)?;
    }
    Ok(())
}

pub type Arrived = (Request<RecvStream>, SendResponse<Bytes>);

/// One connection at an endpoint.
pub struct Served {
    pub requests: mpsc::UnboundedReceiver<Arrived>,
    control: mpsc::UnboundedSender<Control>,
    pub driver: tokio::task::JoinHandle<()>,
}

enum Control {
    /// GOAWAY, twice.
    Graceful,
    /// The transport is closed.
    Close,
}

impl Served {
    pub async fn accept(origin: &Origin) -> Self {
        let mut builder = h2::server::Builder::new();
        // Its own limits of cancelled requests are not what is tested here.
        builder.max_pending_accept_reset_streams(10_000).max_concurrent_reset_streams(10_000);
        Self::accept_with(origin, builder).await
    }

    pub async fn accept_with(origin: &Origin, builder: h2::server::Builder) -> Self {
        let tcp = origin.accept().await.tcp;
        let mut connection = soon("handshake", builder.handshake::<_, Bytes>(tcp)).await.unwrap();
        let (to, requests) = mpsc::unbounded_channel();
        let (control, mut commands) = mpsc::unbounded_channel();
        let driver = tokio::spawn(async move {
            loop {
                tokio::select! {
                    arrived = connection.accept() => match arrived {
                        Some(Ok(arrived)) => drop(to.send(arrived)),
                        _ => return,
                    },
                    Some(command) = commands.recv() => match command {
                        Control::Graceful => connection.graceful_shutdown(),
                        Control::Close => return,
                    },
                }
            }
        });
        Self { requests, control, driver }
    }

    pub async fn next(&mut self) -> Arrived {
        soon("a request", self.requests.recv()).await.expect("the connection is there")
    }

    fn tell(&self, control: Control) {
        let _ = self.control.send(control);
    }
}

/// Answers a request with this body.
fn reply(send: &mut SendResponse<Bytes>, body: &'static str) {
    let mut stream = send.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
}

/// Begins an answer with this piece: what its caller gets of it from then on, and its endpoint sends.
async fn begun(
    response: ResponseFuture,
    (_, mut send): Arrived,
    piece: &'static [u8],
) -> (RecvStream, SendStream<Bytes>) {
    let mut down = send.send_response(Response::new(()), false).unwrap();
    down.send_data(Bytes::from_static(piece), false).unwrap();
    let response = soon("head", response).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut stream = response.into_body();
    assert_eq!(soon("a piece", stream.data()).await.unwrap().unwrap(), piece);
    (stream, down)
}

/// Answers one request on a connection that stays.
pub async fn answer_one(origin: &Origin) {
    let mut served = Served::accept(origin).await;
    reply(&mut served.next().await.1, "ok");
    let _ = served.driver.await;
}

async fn one() -> (Origin, Proxy) {
    let origin = Origin::bind().await;
    let proxy = client_proxy("http2", &[origin.address()]).await;
    (origin, proxy)
}

async fn with_route(protocol: &str, origins: &[SocketAddr], change: impl Fn(&mut RouteAction)) -> Proxy {
    let mut set = compiled(&pair(protocol, "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, origins));
    edit_routes(&mut set, change);
    Proxy::start(set).await
}

fn edit_routes(set: &mut ResourceSet, change: impl Fn(&mut RouteAction)) {
    edit(set, type_url::ROUTE, OUTBOUND, |table: &mut RouteConfiguration| {
        for route in table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            if let Some(route::Action::Route(action)) = &mut route.action {
                change(action);
            }
        }
    });
}

fn millis(millis: i32) -> Option<outrider_xds_types::pb::google::protobuf::Duration> {
    Some(outrider_xds_types::pb::google::protobuf::Duration { seconds: 0, nanos: millis * 1_000_000 })
}

#[tokio::test]
async fn requests_share_a_connection_and_fields_pass() {
    let (origin, mut proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let mut endpoint = None;
    for round in 0..3 {
        let request = Request::get("http://Api:80/A%2f/../b?x")
            .header("x-b", "2")
            .header("x-a", "1")
            .header("x-b", "3")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("te", "trailers")
            .header("proxy-authorization", "secret")
            .header("x-forwarded-client-cert", "forged")
            .body(())
            .unwrap();
        let (response, _) = caller.ask(request, true).await;
        if endpoint.is_none() {
            endpoint = Some(Served::accept(&origin).await);
        }
        let (request, mut send) = endpoint.as_mut().unwrap().next().await;
        assert_eq!(request.method(), "GET");
        assert_eq!(request.uri().to_string(), "http://Api:80/A%2f/../b?x");
        let values = |name: &str| -> Vec<_> { request.headers().get_all(name).iter().cloned().collect() };
        assert_eq!(values("x-b"), ["2", "3"]);
        assert_eq!(values("cookie"), ["a=1", "b=2"]);
        assert_eq!(values("te"), ["trailers"]);
        assert!(values("proxy-authorization").is_empty() && values("x-forwarded-client-cert").is_empty());
        assert!(values("host").is_empty());
        assert!(request.into_body().is_end_stream());
        let response_head = Response::builder()
            .status(201)
            .header("x-z", "1")
            .header("content-length", "2")
            .body(())
            .unwrap();
        let mut stream = send.send_response(response_head, false).unwrap();
        stream.send_data(Bytes::from_static(b"ok"), true).unwrap();
        let answer = answer(response).await;
        assert_eq!((answer.status(), answer.text().as_str()), (201, "ok"), "{round}");
        assert_eq!((answer.header("x-z"), answer.header("content-length")), (Some("1"), Some("2")));
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
async fn large_bodies_stream_both_ways_at_the_same_time() {
    let (origin, proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, mut stream) = caller.ask(post("/echo"), false).await;
    let mut endpoint = Served::accept(&origin).await;
    let (request, mut send) = endpoint.next().await;
    let echo = tokio::spawn(async move {
        let mut body = request.into_body();
        let mut back = send.send_response(Response::new(()), false).unwrap();
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            body.flow_control().release_capacity(piece.len()).unwrap();
            send_all(&mut back, piece, false).await.unwrap();
        }
        let mut trailers = HeaderMap::new();
        let sum = body.trailers().await.unwrap().unwrap();
        trailers.insert("x-sum", sum["x-sum"].clone());
        back.send_trailers(trailers).unwrap();
    });
    let sent: Vec<u8> = (0..5 << 20).map(|n| (n % 251) as u8).collect();
    let bytes = Bytes::from(sent.clone());
    let ask = async {
        send_all(&mut stream, bytes, false).await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("17"));
        stream.send_trailers(trailers).unwrap();
    };
    let (answer, ()) = tokio::join!(answer(response), ask);
    assert!(answer.body == sent);
    assert_eq!(answer.trailers.unwrap()["x-sum"], "17");
    echo.await.unwrap();
}

/// Edge case 20.
#[tokio::test]
async fn messages_pass_one_by_one_both_ways_and_each_direction_ends_by_itself() {
    let (origin, proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, mut up) = caller.ask(post("/chat"), false).await;
    let mut endpoint = Served::accept(&origin).await;
    let (request, mut send) = endpoint.next().await;
    let mut request = request.into_body();
    // The response begins before the request has a body.
    let mut down = send.send_response(Response::new(()), false).unwrap();
    let mut response = soon("head", response).await.unwrap().into_body();
    for n in 0..50u8 {
        up.send_data(Bytes::from(vec![n; 5]), false).unwrap();
        assert_eq!(soon("up", request.data()).await.unwrap().unwrap(), vec![n; 5]);
        down.send_data(Bytes::from(vec![n; 3]), false).unwrap();
        assert_eq!(soon("down", response.data()).await.unwrap().unwrap(), vec![n; 3]);
    }
    up.send_data(Bytes::new(), true).unwrap();
    assert_eq!(body(&mut request).await.unwrap(), b"");
    down.send_data(Bytes::from_static(b"late"), false).unwrap();
    assert_eq!(soon("down", response.data()).await.unwrap().unwrap(), "late");
    down.send_data(Bytes::new(), true).unwrap();
    assert_eq!(body(&mut response).await.unwrap(), b"");

    // The other order: the response ends, and the request goes on.
    let (response, mut up) = caller.ask(post("/chat"), false).await;
    let (request, mut send) = endpoint.next().await;
    let mut request = request.into_body();
    reply(&mut send, "done");
    assert_eq!(answer(response).await.text(), "done");
    up.send_data(Bytes::from_static(b"more"), true).unwrap();
    assert_eq!(soon("up", request.data()).await.unwrap().unwrap(), "more");
    assert_eq!(body(&mut request).await.unwrap(), b"");
}

#[tokio::test]
async fn interim_responses_pass_and_responses_without_a_body_have_none() {
    let (origin, proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let head = Request::head("http://api/").body(()).unwrap();
    let (response, _) = caller.ask(head, true).await;
    let mut endpoint = Served::accept(&origin).await;
    let (_, mut send) = endpoint.next().await;
    send.send_response(Response::builder().header("content-length", "1000").body(()).unwrap(), true).unwrap();
    let got = answer(response).await;
    assert_eq!((got.header("content-length"), got.body.len()), (Some("1000"), 0));

    let (mut response, _) = caller.ask(get("/hints"), true).await;
    let (_, mut send) = endpoint.next().await;
    let hint = Response::builder().status(103).header("link", "</a>").body(()).unwrap();
    send.send_informational(hint).unwrap();
    let informational = soon("103", std::future::poll_fn(|cx| response.poll_informational(cx))).await;
    assert_eq!(informational.unwrap().unwrap().headers()["link"], "</a>");
    send.send_response(Response::builder().status(204).body(()).unwrap(), true).unwrap();
    assert_eq!(answer(response).await.status(), 204);
}

/// Edge case 15.
#[tokio::test]
async fn resets_pass_both_ways_with_their_code_and_harm_no_other_stream() {
    let (origin, mut proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (other, _) = caller.ask(get("/other"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    let (_, mut other_send) = endpoint.next().await;

    // N15: the caller cancels, before and after the response began.
    for started in [false, true] {
        let (response, mut up) = caller.ask(post("/"), false).await;
        let (_, mut send) = endpoint.next().await;
        let mut down = None;
        if started {
            down = Some(send.send_response(Response::new(()), false).unwrap());
            up.send_data(Bytes::from_static(b"x"), false).unwrap();
            soon("head", response).await.unwrap();
        } else {
            drop(response);
        }
        up.send_reset(Reason::CANCEL);
        let reset = soon("RST_STREAM", async {
            match &mut down {
                Some(down) => std::future::poll_fn(|cx| down.poll_reset(cx)).await,
                None => std::future::poll_fn(|cx| send.poll_reset(cx)).await,
            }
        });
        assert_eq!(reset.await.unwrap(), Reason::CANCEL);
    }
    // The endpoint resets, with whatever code.
    for code in [Reason::ENHANCE_YOUR_CALM, Reason::INTERNAL_ERROR, Reason::from(0x77)] {
        let (response, _) = caller.ask(get("/"), true).await;
        let (_, mut send) = endpoint.next().await;
        send.send_reset(code);
        let error = whole(response).await.err().unwrap();
        assert_eq!((error.reason(), error.is_reset()), (Some(code), true));
    }
    let (response, _) = caller.ask(get("/"), true).await;
    let (_, mut send) = endpoint.next().await;
    let mut down = send.send_response(Response::new(()), false).unwrap();
    let mut response = soon("head", response).await.unwrap().into_body();
    down.send_data(Bytes::from_static(b"half"), false).unwrap();
    assert_eq!(soon("half", response.data()).await.unwrap().unwrap(), "half");
    down.send_reset(Reason::CANCEL);
    assert_eq!(soon("reset", response.data()).await.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));

    reply(&mut other_send, "fine");
    assert_eq!(answer(other).await.text(), "fine");
    proxy
        .counted("reasons", |stats| {
            let reasons = &stats.listeners[OUTBOUND].reasons;
            (reasons.get("client_gone"), reasons.get("upstream_reset")) == (Some(&2), Some(&4))
        })
        .await;
}

#[tokio::test]
async fn an_early_response_ends_the_request_without_an_error() {
    let (origin, proxy) = one().await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, mut up) = caller.ask(post("/upload"), false).await;
    let mut endpoint = Served::accept(&origin).await;
    let (request, mut send) = endpoint.next().await;
    reply(&mut send, "no thanks");
    // This says NO_ERROR as well.
    drop((request, send));
    assert_eq!(answer(response).await.text(), "no thanks");
    let reset = soon("RST_STREAM", std::future::poll_fn(|cx| up.poll_reset(cx))).await;
    assert_eq!(reset.unwrap(), Reason::NO_ERROR);
    let (response, _) = caller.ask(get("/"), true).await;
    reply(&mut endpoint.next().await.1, "next");
    assert_eq!(answer(response).await.text(), "next");
}

/// Edge case 38.
#[tokio::test]
async fn what_the_proxy_answers_has_a_reason_in_http_and_in_grpc() {
    let mut proxy = client_proxy("grpc", &[]).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let plain = caller.get("/").await;
    assert_eq!((plain.status(), plain.header("x-outrider-reason")), (503, Some("no_endpoints")));
    assert!(plain.text().starts_with("no_endpoints: "), "{}", plain.text());
    assert_eq!(plain.header("content-length"), Some(plain.body.len().to_string().as_str()));

    // N38: a call learns it as gRPC says things, and is not left with a body that nobody expects.
    let (response, mut up) = caller.ask(grpc("/pkg.Service/Method").body(()).unwrap(), false).await;
    let call = answer(response).await;
    assert_eq!((call.status(), call.header("grpc-status")), (200, Some("14")));
    assert_eq!(call.header("x-outrider-reason"), Some("no_endpoints"));
    assert_eq!(call.header("content-type"), Some("application/grpc"));
    assert!(call.header("grpc-message").is_some_and(|message| message.contains("endpoints")));
    assert!(call.body.is_empty() && call.trailers.is_none());
    let reset = soon("no more is wanted", std::future::poll_fn(|cx| up.poll_reset(cx))).await;
    assert_eq!(reset.unwrap(), Reason::NO_ERROR);

    let head = Request::head("http://api/").body(()).unwrap();
    let (response, _) = caller.ask(head, true).await;
    let head = answer(response).await;
    assert_eq!((head.status(), head.body.len()), (503, 0));
    proxy
        .counted("counted", |stats| {
            let listener = &stats.listeners[OUTBOUND];
            listener.reasons.get("no_endpoints") == Some(&3) && listener.active_requests == 0
        })
        .await;
}

/// Edge case 39.
#[tokio::test]
async fn a_deadline_of_the_caller_is_kept_and_never_extended() {
    let origin = Origin::bind().await;
    let proxy = with_route("grpc", &[origin.address()], |action| action.timeout = millis(400)).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    // N39: the endpoint is told in time, and the caller learns which limit it was.
    let (response, _) =
        caller.ask(grpc("/slow").header("grpc-timeout", "200m").body(()).unwrap(), true).await;
    let mut endpoint = Served::accept(&origin).await;
    let (request, mut send) = endpoint.next().await;
    let left = request.headers()["grpc-timeout"].to_str().unwrap();
    let (number, unit) = left.split_at(left.len() - 1);
    assert!(unit == "m" && number.parse::<u32>().unwrap() <= 200, "{left}");
    let reset = soon("RST_STREAM", std::future::poll_fn(|cx| send.poll_reset(cx))).await;
    assert_eq!(reset.unwrap(), Reason::CANCEL);
    let late = answer(response).await;
    assert_eq!(
        (late.header("grpc-status"), late.header("x-outrider-reason")),
        (Some("4"), Some("deadline_exceeded"))
    );

    // A longer one does not reach beyond what the route allows.
    let (response, _) = caller.ask(grpc("/slow").header("grpc-timeout", "1H").body(()).unwrap(), true).await;
    let _asked = endpoint.next().await;
    let late = answer(response).await;
    assert_eq!(
        (late.header("grpc-status"), late.header("x-outrider-reason")),
        (Some("4"), Some("total_timeout"))
    );

    // After the response began, what is missing cannot be taken for the end of it.
    let begin = async |()| {
        let (response, _) = caller.ask(grpc("/stream").body(()).unwrap(), true).await;
        begun(response, endpoint.next().await, b"\0\0\0\0\x01a").await
    };
    let (mut stream, _down) = within(Duration::from_millis(400), async || (), begin).await;
    assert!(soon("end", stream.data()).await.is_none());
    assert_eq!(soon("trailers", stream.trailers()).await.unwrap().unwrap()["grpc-status"], "4");
}

/// Edge case 16.
#[tokio::test]
async fn limits_of_time_are_those_of_a_stream() {
    let origin = Origin::bind().await;
    let proxy = with_route("http2", &[origin.address()], |action| {
        action.idle_timeout = millis(500);
        if let Some(policy) = &mut action.retry_policy {
            policy.per_try_timeout = millis(250);
        }
    })
    .await;
    let limit = Duration::from_millis(250);
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (silent, _) = caller.ask(get("/silent"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    let (_, mut silent_send) = endpoint.next().await;
    let late = answer(silent).await;
    assert_eq!((late.status(), late.header("x-outrider-reason")), (504, Some("request_timeout")));
    assert!(late.text().contains("250ms"), "{}", late.text());
    let reset = soon("RST_STREAM", std::future::poll_fn(|cx| silent_send.poll_reset(cx))).await;
    assert_eq!(reset.unwrap(), Reason::CANCEL);

    let begin = async |()| {
        let (half, _) = caller.ask(get("/half"), true).await;
        begun(half, endpoint.next().await, b"half").await
    };
    let (mut half, _down) = within(limit, async || (), begin).await;
    let error = soon("reset", half.data()).await.unwrap().unwrap_err();
    assert_eq!((error.is_reset(), error.reason()), (true, Some(Reason::INTERNAL_ERROR)));

    let (body, _up) = caller.ask(post("/body"), false).await;
    let _asked = endpoint.next().await;
    let late = answer(body).await;
    assert_eq!((late.status(), late.header("x-outrider-reason")), (408, Some("request_body_timeout")));

    let fine = async |()| {
        let (fine, _) = caller.ask(get("/fine"), true).await;
        reply(&mut endpoint.next().await.1, "fine");
        assert_eq!(answer(fine).await.text(), "fine", "N16: the connection is the same");
    };
    within(limit, async || (), fine).await;
}

/// One end by hand.
struct Raw {
    peer: Peer,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Raw {
    async fn connect(proxy: &Proxy) -> Self {
        Self::connect_to(proxy, OUTBOUND).await
    }

    async fn connect_to(proxy: &Proxy, listener: &str) -> Self {
        let mut raw = Self { peer: proxy.connect(listener).await };
        raw.peer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.frame(4, 0, 0, &[]).await;
        raw.until(|frame| frame.kind == 4 && frame.flags == 0).await;
        raw.frame(4, 1, 0, &[]).await;
        raw
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.peer.send(bytes).await;
    }

    /// GET without a body.
    async fn request(&mut self, stream: u32, path: &str) {
        self.frame(1, 5, stream, &Self::head(path)).await;
    }

    fn head(path: &str) -> Vec<u8> {
        // GET, http, and `:authority` and `:path` as literals without indexing.
        let mut block = vec![0x82, 0x86, 0x01, 3];
        block.extend_from_slice(b"api");
        block.extend_from_slice(&[0x04, path.len() as u8]);
        block.extend_from_slice(path.as_bytes());
        block
    }

    /// The next frame that is meant.
    async fn until(&mut self, meant: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let header = self.peer.take(9).await;
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
            let payload = self.peer.take(length).await;
            let frame = Frame { kind: header[3], flags: header[4], stream, payload };
            if meant(&frame) {
                return frame;
            }
        }
    }

    async fn ended(&mut self) {
        let _ = self.peer.rest().await;
    }
}

#[tokio::test]
async fn calls_travel_through_a_pair_with_the_callers_identity() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let server = super::mesh::servers("grpc", "required", &origin, &authority).await;
    let mut client = super::mesh::clients("grpc", &server, &authority, "shop/web").await;
    let mut caller = Caller::connect(&client, OUTBOUND).await;
    let mut endpoint = None;
    for _ in 0..3 {
        let forged = grpc("/pkg.Service/Method").header("x-forwarded-client-cert", "forged");
        let forged = forged.header("x_forwarded_client_cert", "forged").body(()).unwrap();
        let (response, mut up) = caller.ask(forged, false).await;
        up.send_data(Bytes::from_static(b"\0\0\0\0\x01a"), true).unwrap();
        if endpoint.is_none() {
            endpoint = Some(Served::accept(&origin).await);
        }
        let (request, mut send) = endpoint.as_mut().unwrap().next().await;
        let certificates: Vec<_> = request.headers().get_all("x-forwarded-client-cert").iter().collect();
        assert_eq!(certificates, ["URI=spiffe://outrider.internal/ns/shop/svc/web"]);
        assert!(request.headers().get("x_forwarded_client_cert").is_none());
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(body(&mut request.into_body()).await.unwrap(), b"\0\0\0\0\x01a");
        let head = Response::builder().header("content-type", "application/grpc+proto").body(()).unwrap();
        let mut down = send.send_response(head, false).unwrap();
        down.send_data(Bytes::from_static(b"\0\0\0\0\x01b"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        down.send_trailers(trailers).unwrap();
        let answer = answer(response).await;
        assert_eq!(answer.body, b"\0\0\0\0\x01b");
        assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
    }
    // N37: trailers only.
    let (response, _) = caller.ask(grpc("/pkg.Service/Nope").body(()).unwrap(), true).await;
    let (_, mut send) = endpoint.as_mut().unwrap().next().await;
    send.send_response(Response::builder().header("grpc-status", "12").body(()).unwrap(), true).unwrap();
    let answer = answer(response).await;
    assert_eq!((answer.header("grpc-status"), answer.header("x-outrider-reason")), (Some("12"), None));
    client.counted("one connection", |stats| stats.clusters[OUTBOUND].connections == 1).await;
}

#[tokio::test]
async fn callers_that_may_not_are_told_in_the_words_of_their_protocol() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = super::mesh::servers("grpc", "required", &origin, &authority).await;
    let stranger = super::mesh::clients("grpc", &server, &authority, "shop/stranger").await;
    let mut caller = Caller::connect(&stranger, OUTBOUND).await;
    let (response, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
    let told = answer(response).await;
    assert_eq!(
        (told.header("grpc-status"), told.header("x-outrider-reason")),
        (Some("7"), Some("caller_not_allowed"))
    );
    let told = caller.get("/").await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (403, Some("caller_not_allowed")));

    // Without TLS, where it is required.
    let mut plain = Caller::connect(&server, INBOUND).await;
    let (response, _) = plain.ask(grpc("/a/b").body(()).unwrap(), true).await;
    let told = answer(response).await;
    assert_eq!(
        (told.header("grpc-status"), told.header("x-outrider-reason")),
        (Some("7"), Some("mtls_required"))
    );
    plain.ended().await.unwrap();
    assert!(origin.is_untouched().await);
    server
        .counted("reasons", |stats| {
            let reasons = &stats.listeners[INBOUND].reasons;
            (reasons.get("caller_not_allowed"), reasons.get("mtls_required")) == (Some(&2), Some(&1))
        })
        .await;
}

#[tokio::test]
async fn a_stream_ends_when_its_caller_may_call_no_more() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = super::mesh::servers("grpc", "required", &origin, &authority).await;
    let client = super::mesh::clients("grpc", &server, &authority, "shop/web").await;
    let mut caller = Caller::connect(&client, OUTBOUND).await;
    let (response, _up) = caller.ask(grpc("/pkg.Service/Watch").body(()).unwrap(), false).await;
    let mut endpoint = Served::accept(&origin).await;
    let (_, mut send) = endpoint.next().await;
    let mut down = send.send_response(Response::new(()), false).unwrap();
    down.send_data(Bytes::from_static(b"hello"), false).unwrap();
    let mut response = soon("head", response).await.unwrap().into_body();
    assert_eq!(soon("data", response.data()).await.unwrap().unwrap(), "hello");
    // N58: it is silent when that is decided.
    let nobody = pair("grpc", "required", origin.port(), "").replace("calls: [api]", "calls: []");
    server.configure(super::mesh::of_api(&nobody, &authority)).await;
    assert!(soon("the end", response.data()).await.is_none());
    let trailers = soon("trailers", response.trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "7");
    assert_eq!(trailers["x-outrider-reason"], "caller_not_allowed");
    let reset = soon("RST_STREAM", std::future::poll_fn(|cx| down.poll_reset(cx))).await;
    assert_eq!(reset.unwrap(), Reason::CANCEL);
}

#[tokio::test]
async fn more_requests_than_the_cluster_may_have_are_refused_at_once() {
    use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
    use outrider_xds_types::pb::google::protobuf::UInt32Value;
    let origin = Origin::bind().await;
    let mut set = compiled(&pair("grpc", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    edit(&mut set, type_url::CLUSTER, OUTBOUND, |cluster: &mut Cluster| {
        let breakers = cluster.circuit_breakers.as_mut().unwrap();
        breakers.thresholds[0].max_requests = Some(UInt32Value { value: 2 });
    });
    let proxy = Proxy::start(set).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (first, _) = caller.ask(get("/"), true).await;
    let (second, _) = caller.ask(get("/"), true).await;
    let (third, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
    let told = answer(third).await;
    assert_eq!(
        (told.header("grpc-status"), told.header("x-outrider-reason")),
        (Some("14"), Some("overload_requests"))
    );
    let mut endpoint = Served::accept(&origin).await;
    for _ in 0..2 {
        reply(&mut endpoint.next().await.1, "ok");
    }
    for response in [first, second] {
        assert_eq!(answer(response).await.text(), "ok");
    }
    let (fourth, _) = caller.ask(get("/"), true).await;
    reply(&mut endpoint.next().await.1, "ok");
    assert_eq!(answer(fourth).await.text(), "ok");
}
