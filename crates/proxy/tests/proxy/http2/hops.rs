//! What reached nobody is asked of another instance, in HTTP/2, in gRPC and for WebSockets that go on as HTTP/1.1.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use h2::ext::Protocol;
use outrider_proxy::websocket;
use tokio::task::JoinSet;

use super::super::hops::{calling, inbound, outbound, were_asked_elsewhere};
use super::super::resilience::{Scripted, refusing};
use super::*;

const FIELD: &str = "x-outrider-unprocessed";

/// An application that answers every request, once it has read all of it, by `answer`, which gets its head and its body.
async fn application(
    answer: impl Fn(&Request<()>, &[u8], SendResponse<Bytes>) + Send + Sync + 'static,
) -> SocketAddr {
    let origin = Origin::bind().await;
    let (address, answer) = (origin.address(), Arc::new(answer));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = origin.listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                while let Some(Ok((request, send))) = connection.accept().await {
                    let answer = Arc::clone(&answer);
                    tokio::spawn(async move {
                        let (head, mut stream) = request.into_parts();
                        if let Ok(body) = body(&mut stream).await {
                            answer(&Request::from_parts(head, ()), &body, send);
                        }
                    });
                }
            });
        }
    });
    address
}

/// Whatever its method: over HTTP/2, and calls of gRPC.
#[tokio::test]
async fn what_reached_no_application_is_asked_of_another_instance() {
    const CALLERS: usize = 4;
    const CALLS: usize = 50;
    for protocol in ["http2", "grpc"] {
        let authority = Authority::new();
        let hits = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&hits);
        let well = application(move |request, body, mut send| {
            counted.fetch_add(1, Ordering::SeqCst);
            let whole = request.method() == "GET" || body == b"body";
            let head = Response::builder().status(if whole { 200 } else { 400 });
            let call = request.headers().contains_key("te");
            let mut stream = send.send_response(head.body(()).unwrap(), false).unwrap();
            stream.send_data(Bytes::from_static(b"ok"), !call).unwrap();
            if call {
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                stream.send_trailers(trailers).unwrap();
            }
        })
        .await;
        let mut dead = inbound(protocol, refusing().await, &authority).await;
        let alive = inbound(protocol, well, &authority).await;
        let mut client = outbound(protocol, &[&dead, &alive], &authority).await;
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let mut caller = Caller::connect(&client, OUTBOUND).await;
            callers.spawn(async move {
                for call in 0..CALLS {
                    let request = match protocol {
                        "grpc" => grpc("/pkg.Service/Method").body(()).unwrap(),
                        _ if call % 2 == 0 => get("/"),
                        _ => post("/"),
                    };
                    let bodyless = request.method() == "GET";
                    let (response, mut up) = caller.ask(request, bodyless).await;
                    if !bodyless {
                        up.send_data(Bytes::from_static(b"body"), true).unwrap();
                    }
                    let answer = answer(response).await;
                    assert_eq!((answer.status(), &*answer.text()), (200, "ok"), "{:?}", answer.head);
                    let ended = answer.trailers.map(|trailers| trailers["grpc-status"].clone());
                    assert_eq!(ended.is_some(), protocol == "grpc");
                    assert!(ended.is_none_or(|status| status == "0"));
                }
            });
        }
        callers.join_all().await;
        assert_eq!(hits.load(Ordering::SeqCst), CALLERS * CALLS, "each once");
        were_asked_elsewhere(&mut client, &mut dead).await;
    }
}

/// Where there is nobody else the caller is told what it is, in the words of its protocol.
#[tokio::test]
async fn where_every_application_is_gone_the_caller_is_told() {
    for protocol in ["http2", "grpc"] {
        let authority = Authority::new();
        let mut first = inbound(protocol, refusing().await, &authority).await;
        let mut second = inbound(protocol, refusing().await, &authority).await;
        let client = outbound(protocol, &[&first, &second], &authority).await;
        let mut caller = Caller::connect(&client, OUTBOUND).await;
        let request = if protocol == "grpc" { grpc("/a/b").body(()).unwrap() } else { get("/") };
        let (response, _) = caller.ask(request, true).await;
        let told = answer(response).await;
        let status = if protocol == "grpc" { (200, Some("14")) } else { (503, None) };
        assert_eq!((told.status(), told.header("grpc-status")), status);
        assert_eq!((told.header("x-outrider-reason"), told.header(FIELD)), (Some("connect_failed"), None));
        for proxy in [&mut first, &mut second] {
            proxy.counted("one call", |stats| stats.listeners[INBOUND].requests == 1).await;
        }
    }
}

#[tokio::test]
async fn no_application_says_so_and_none_is_told() {
    let authority = Authority::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let lie = |seen: Arc<Mutex<Vec<bool>>>| {
        move |request: &Request<()>, _: &[u8], mut send: SendResponse<Bytes>| {
            seen.lock().unwrap().push(request.headers().contains_key(FIELD));
            let call = request.headers().contains_key("te");
            let head = Response::builder().status(if call { 200 } else { 503 }).header(FIELD, "1");
            let trailers = HeaderMap::from_iter([
                (FIELD.parse().unwrap(), "1".parse().unwrap()),
                ("grpc-status".parse().unwrap(), "14".parse().unwrap()),
            ]);
            if call && request.uri().path() == "/only/trailers" {
                let head = head.header("grpc-status", "14").body(()).unwrap();
                send.send_response(head, true).unwrap();
            } else {
                send.send_response(head.body(()).unwrap(), false).unwrap().send_trailers(trailers).unwrap();
            }
        }
    };
    let first = application(lie(Arc::clone(&asked))).await;
    let second = application(lie(Arc::clone(&asked))).await;
    for protocol in ["http2", "grpc"] {
        let one = inbound(protocol, first, &authority).await;
        let two = inbound(protocol, second, &authority).await;
        let through_both = outbound(protocol, &[&one, &two], &authority).await;
        let straight = client_proxy(protocol, &[first, second]).await;
        for client in [through_both, straight] {
            let mut caller = Caller::connect(&client, OUTBOUND).await;
            for path in ["/also/trailers", "/only/trailers"] {
                let request = match protocol {
                    "grpc" => grpc(path).header(FIELD, "1").body(()).unwrap(),
                    _ => Request::get(format!("http://api{path}")).header(FIELD, "1").body(()).unwrap(),
                };
                let (response, _) = caller.ask(request, true).await;
                let told = answer(response).await;
                assert_eq!(told.status(), if protocol == "grpc" { 200 } else { 503 });
                assert_eq!(told.header(FIELD), None);
                assert!(told.trailers.is_none_or(|trailers| !trailers.contains_key(FIELD)));
                assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), [false], "asked once, without it");
            }
        }
    }
    // A caller who did not prove to be a proxy is told the reason, and no more.
    let yaml = pair("http2", "both", refusing().await.port(), "");
    let dead = Proxy::start(super::super::mesh::of_api(&yaml, &authority)).await;
    let told = Caller::connect(&dead, INBOUND).await.get("/").await;
    assert_eq!((told.header("x-outrider-reason"), told.header(FIELD)), (Some("connect_failed"), None));
}

fn chat() -> Request<()> {
    let opening = Request::connect("http://api/chat").header(FIELD, "1");
    opening.extension(Protocol::from_static("websocket")).body(()).unwrap()
}

/// A cluster of HTTP/1.1 behind a listener of HTTP/2.
fn bridged(mut set: ResourceSet, of: &ResourceSet) -> ResourceSet {
    let cluster = of.of_type(type_url::CLUSTER).find(|cluster| *cluster.name == *OUTBOUND).unwrap();
    set.insert(Arc::clone(cluster));
    set
}

#[tokio::test]
async fn a_websocket_that_goes_on_in_http1_is_asked_of_another_instance_too() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut dead = inbound("http", refusing().await, &authority).await;
    let alive = inbound("http", origin.address(), &authority).await;
    let behind = [&dead, &alive];
    let set = bridged(calling("http2", &behind, &authority), &calling("http", &behind, &authority));
    let mut client = Proxy::start(set).await;
    let mut caller = Caller::connect(&client, OUTBOUND).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let (response, up) = caller.ask(chat(), false).await;
        let mut behind = origin.accept().await;
        let head = behind.head().await;
        assert!(!head.contains("unprocessed"), "{head}");
        let key = websocket::accept(header(&head, "sec-websocket-key").unwrap());
        let switched = format!(
            "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Outrider-Unprocessed: 1\r\n\
             Sec-WebSocket-Accept: {key}\r\n\r\n"
        );
        behind.send(switched).await;
        let response = soon("head", response).await.unwrap();
        assert_eq!((response.status().as_u16(), response.headers().get(FIELD)), (200, None));
        open.push((up, response, behind));
    }
    were_asked_elsewhere(&mut client, &mut dead).await;

    let liar = async || {
        Scripted::start(|_, _| {
            Some(b"HTTP/1.1 503 X\r\nX-Outrider-Unprocessed: 1\r\nContent-Length: 0\r\n\r\n".to_vec())
        })
        .await
    };
    let (first, second) = (liar().await, liar().await);
    let plain = |protocol| super::super::resilience::set(protocol, &[first.address, second.address]);
    let client = Proxy::start(bridged(plain("http2"), &plain("http"))).await;
    let (response, _up) = Caller::connect(&client, OUTBOUND).await.ask(chat(), false).await;
    let told = answer(response).await;
    assert_eq!((told.status(), told.header(FIELD), first.hits() + second.hits()), (503, None, 1));
}
