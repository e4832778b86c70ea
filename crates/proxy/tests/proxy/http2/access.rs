//! Access policies about requests of HTTP/2 and calls of gRPC.

use super::super::access::{caller, documents, policy, server};
use super::super::finishing::without_web;
use super::super::mesh::of_api;
use super::*;

const DENY: &str = "action: deny, rules: [{from: [{service: web}], to: [{paths: [{value: /pkg.Admin/Drop}]}, {headers: [{name: x-debug, value: '1'}]}]}]";
const TRIAL: &str = "action: deny, mode: audit, rules: [{to: [{paths: [{value: /pkg.Reader/Get}]}]}]";

#[tokio::test]
async fn calls_are_denied_and_audited_one_by_one() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let policies = [policy("admins", DENY), policy("trial", TRIAL)].concat();
    let mut server = server("grpc", &origin, &authority, &policies).await;
    let web = caller("grpc", &server, &authority, "shop/web").await;
    let admin = caller("grpc", &server, &authority, "shop/admin").await;
    let mut web = Caller::connect(&web, OUTBOUND).await;
    let mut admin = Caller::connect(&admin, OUTBOUND).await;

    let denied = async |caller: &mut Caller, request: http::request::Builder| {
        let (response, _) = caller.ask(request.body(()).unwrap(), true).await;
        let told = answer(response).await;
        assert_eq!(
            (told.header("grpc-status"), told.header("x-outrider-reason")),
            (Some("7"), Some("caller_not_allowed"))
        );
    };
    denied(&mut web, grpc("/pkg.Admin/Drop")).await;
    denied(&mut web, grpc("/pkg.Reader/Get").header("x-debug", "1")).await;
    let told = web.get("/pkg.Admin/Drop").await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (403, Some("caller_not_allowed")));
    assert!(origin.is_untouched().await);

    let (response, _) = admin.ask(grpc("/pkg.Admin/Drop").body(()).unwrap(), true).await;
    let mut endpoint = Served::accept(&origin).await;
    let (_, mut send) = endpoint.next().await;
    reply(&mut send, "dropped");
    assert_eq!(answer(response).await.text(), "dropped");
    let (response, _) = web.ask(grpc("/pkg.Reader/Get").body(()).unwrap(), true).await;
    let (_, mut send) = endpoint.next().await;
    reply(&mut send, "got");
    assert_eq!(answer(response).await.text(), "got");
    server
        .counted("numbers", |stats| {
            let numbers = &stats.listeners[INBOUND];
            numbers.reasons.get("caller_not_allowed") == Some(&3)
                && numbers.audited == [("trial/0".to_owned(), 1)].into()
        })
        .await;
}

/// N58: of two streams on one connection, the one that is denied now ends with the reason, and the other goes on.
#[tokio::test]
async fn a_deny_added_later_ends_streams_it_is_about_and_no_other() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = server("grpc", &origin, &authority, "").await;
    let web = caller("grpc", &server, &authority, "shop/web").await;
    let mut caller = Caller::connect(&web, OUTBOUND).await;
    let mut endpoint = None;
    let mut streams = Vec::new();
    for path in ["/pkg.Admin/Drop", "/pkg.Reader/Get"] {
        let (response, up) = caller.ask(grpc(path).body(()).unwrap(), false).await;
        if endpoint.is_none() {
            endpoint = Some(Served::accept(&origin).await);
        }
        let (request, mut send) = endpoint.as_mut().unwrap().next().await;
        let mut down = send.send_response(Response::new(()), false).unwrap();
        down.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let mut response = soon("head", response).await.unwrap().into_body();
        assert_eq!(soon("data", response.data()).await.unwrap().unwrap(), "hello");
        streams.push((response, down, up, request));
    }
    let documents = documents("grpc", "required", origin.port(), &policy("admins", DENY));
    server.configure(of_api(&documents, &authority)).await;

    let (mut response, mut down, ..) = streams.remove(0);
    assert!(soon("the end", response.data()).await.is_none());
    let trailers = soon("trailers", response.trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "7");
    assert_eq!(trailers["x-outrider-reason"], "caller_not_allowed");
    let reset = soon("RST_STREAM", std::future::poll_fn(|cx| down.poll_reset(cx))).await;
    assert_eq!(reset.unwrap(), Reason::CANCEL);

    let (mut response, mut down, ..) = streams.remove(0);
    down.send_data(Bytes::from_static(b"still here"), true).unwrap();
    assert_eq!(body(&mut response).await.unwrap(), b"still here");
}

/// A request that was refused asks for nothing any more: a change does not refuse it again, and it gets all of its answer.
#[tokio::test]
async fn what_was_denied_is_denied_once() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let of = |policies: &str| of_api(&documents("http2", "off", origin.port(), policies), &authority);
    let deny = |path: &str| {
        policy(path, &format!("action: deny, rules: [{{to: [{{paths: [{{value: /{path}}}]}}]}}]"))
    };
    let mut server = Proxy::start(of(&deny("drop"))).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let tcp = tcp(&server, INBOUND).await;
    let (send, mut connection) = soon("handshake", builder.handshake::<_, Bytes>(tcp)).await.unwrap();
    let (open, opened) = tokio::sync::oneshot::channel();
    let driver = tokio::spawn(async move {
        tokio::select! {
            ended = &mut connection => return ended,
            _ = opened => {}
        }
        connection.set_initial_window_size(65_535)?;
        connection.await
    });
    let mut caller = Caller { send, driver };
    let (response, _up) = caller.ask(get("/drop"), true).await;
    let response = soon("head", response).await.unwrap();
    assert_eq!(response.status(), 403);
    server.configure(of(&[deny("drop"), deny("other")].concat())).await;
    server.acked(type_url::LISTENER).await;
    // Decided by that, on the same connection.
    let (other, _up) = caller.ask(get("/other"), true).await;
    assert_eq!(soon("head", other).await.unwrap().status(), 403);
    open.send(()).unwrap();
    let text = body(&mut response.into_body()).await.unwrap();
    assert!(text.starts_with(b"caller_not_allowed"), "{text:?}");
    server.counted("both", |s| s.listeners[INBOUND].reasons.get("caller_not_allowed") == Some(&2)).await;
}

/// N58: what gets past no deny in HTTP/1.1 gets past none here; of streams on one connection each is decided about by itself,
/// whatever host it names.
#[tokio::test]
async fn no_other_form_of_a_stream_gets_past_a_deny() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let deny = "action: deny, rules: [{to: [{methods: [GET], paths: [{value: /admin}]}, {methods: [DELETE]}, \
        {headers: [{name: x-debug, value: '1'}]}, {headers: [{name: host, value: internal.example}]}, {headers: [{name: x-mode, value: 'a,b'}]}, \
        {headers: [{name: upgrade, value: websocket}], paths: [{value: /feed}]}]}]";
    let documents = documents("http2", "off", origin.port(), &policy("closed", deny));
    let proxy = Proxy::start(of_api(&documents, &authority)).await;
    let mut caller = Caller::connect(&proxy, INBOUND).await;
    let denied = |method: &str, uri: &str| Request::builder().method(method).uri(uri);
    let socket = |uri: &str, protocol: &'static str| {
        denied("CONNECT", uri).extension(h2::ext::Protocol::from_static(protocol))
    };
    for request in [
        denied("GET", "http://api/admin"),
        denied("GET", "http://api/admin?x"),
        denied("GET", "http://api//admin"),
        denied("GET", "http://api/x/../admin"),
        denied("GET", "http://api/%61dmin"),
        denied("GET", "http://api/%c1%a1dmin"),
        denied("DELETE", "http://api/"),
        denied("delete", "http://api/"),
        denied("GET", "http://api/").header("x_debug", "1"),
        denied("GET", "http://api/").header("x-debug", "2").header("x_debug", "1"),
        denied("GET", "http://api/").header("x-debug", "2, 1"),
        // To who knows them as variables, these are one field of two lines, in this order.
        denied("GET", "http://api/").header("x_mode", "a").header("x-mode", "b"),
        denied("GET", "http://internal.example/"),
        denied("GET", "http://INTERNAL.example.:80/"),
        // A WebSocket is asked for as GET does in HTTP/1.1.
        socket("http://api/admin", "websocket"),
        socket("http://api/feed", "websocket"),
        socket("http://api/feed", "WebSocket"),
    ] {
        let request = request.body(()).unwrap();
        let shown = format!("{request:?}");
        let (response, _up) = caller.ask(request, false).await;
        let told = soon("head", response).await.unwrap();
        assert_eq!(told.status(), 403, "{shown}");
        assert_eq!(told.headers()["x-outrider-reason"], "caller_not_allowed", "{shown}");
    }
    assert!(origin.is_untouched().await);
    let mut endpoint = None;
    for request in [
        denied("GET", "http://api/administrators"),
        denied("POST", "http://api/admin"),
        denied("GET", "http://api/").header("x_debug", "2"),
        denied("GET", "http://an.internal.example/"),
    ] {
        let (response, _up) = caller.ask(request.body(()).unwrap(), true).await;
        if endpoint.is_none() {
            endpoint = Some(Served::accept(&origin).await);
        }
        let (_, mut send) = endpoint.as_mut().unwrap().next().await;
        reply(&mut send, "ok");
        assert_eq!(answer(response).await.text(), "ok");
    }
}

/// Of a caller that no route leads here any more, streams go on, none begins, and a deny ends those it is about.
#[tokio::test]
async fn streams_of_who_is_led_here_no_more_go_on_and_none_begins() {
    for policies in [String::new(), policy("all", "action: allow, rules: [{to: [{methods: [POST]}]}]")] {
        let (origin, authority) = (Origin::bind().await, Authority::new());
        let mut server = server("grpc", &origin, &authority, &policies).await;
        let web = caller("grpc", &server, &authority, "shop/web").await;
        let mut caller = Caller::connect(&web, OUTBOUND).await;
        let (response, _up) = caller.ask(grpc("/pkg.Admin/Drop").body(()).unwrap(), false).await;
        let mut endpoint = Served::accept(&origin).await;
        let (_request, mut send) = endpoint.next().await;
        let mut down = send.send_response(Response::new(()), false).unwrap();
        let mut response = soon("head", response).await.unwrap().into_body();

        let of = |policies: &str| without_web("grpc", &origin, &authority, policies, &["web"]);
        server.configure(of(&policies)).await;
        server.acked(type_url::LISTENER).await;
        let (new, _) = caller.ask(grpc("/pkg.Reader/Get").body(()).unwrap(), true).await;
        let told = answer(new).await;
        assert_eq!(told.header("x-outrider-reason"), Some("caller_not_allowed"));
        down.send_data(Bytes::from_static(b"still here"), false).unwrap();
        assert_eq!(soon("data", response.data()).await.unwrap().unwrap(), "still here");

        server.configure(of(&(policies.clone() + &policy("admins", DENY)))).await;
        assert!(soon("the end", response.data()).await.is_none());
        let trailers = soon("trailers", response.trailers()).await.unwrap().unwrap();
        assert_eq!(trailers["x-outrider-reason"], "caller_not_allowed");
    }
}
