//! Copies of requests of HTTP/2 and gRPC.

use std::time::Duration;

use outrider_http2::{Config, Connection, Event, Head, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::mirrors::{COPIES, limited, mirrored};
use super::super::resilience::refusing;
use super::*;

#[tokio::test]
async fn a_copy_is_the_request_and_its_answer_is_thrown_away() {
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = Proxy::start(mirrored("grpc", 100, &api, &[copy.address()])).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (mut to_api, mut to_copy) = (None, None);
    for round in 0..3 {
        let call = grpc("/pkg.Service/Method").header("x-kept", "yes").header("authorization", "secret");
        let (response, mut up) = caller.ask(call.body(()).unwrap(), false).await;
        if round == 0 {
            to_api = Some(Served::accept(&api).await);
            to_copy = Some(Served::accept(&copy).await);
        }
        let (original, mut answers) = to_api.as_mut().unwrap().next().await;
        let (copied, mut ignored) = to_copy.as_mut().unwrap().next().await;
        assert_eq!(copied.headers(), original.headers());
        assert_eq!((copied.uri(), copied.method()), (original.uri(), original.method()));
        let (mut original, mut copied) = (original.into_body(), copied.into_body());
        for piece in ["one", "two"] {
            up.send_data(Bytes::from_static(piece.as_bytes()), false).unwrap();
            for body in [&mut original, &mut copied] {
                assert_eq!(soon("a piece", body.data()).await.unwrap().unwrap(), piece);
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", HeaderValue::from_static("yes"));
        up.send_trailers(trailers.clone()).unwrap();
        for body in [&mut original, &mut copied] {
            assert!(soon("the end", body.data()).await.is_none());
            assert_eq!(soon("trailers", body.trailers()).await.unwrap().unwrap(), trailers);
        }
        // An error of a copy, and more of an answer than anybody would read, are nobody's.
        let head = Response::builder().status(500).body(()).unwrap();
        let mut ignored = ignored.send_response(head, false).unwrap();
        send_all(&mut ignored, Bytes::from(vec![0; 300_000]), true).await.unwrap();
        reply(&mut answers, "ok");
        assert_eq!(answer(response).await.text(), "ok");
    }
    proxy
        .counted("numbers", |stats| {
            let copies = &stats.clusters[COPIES];
            (copies.copies, copies.copies_lost, copies.connections) == (3, 0, 1)
        })
        .await;
}

/// A copy that does not take its body is given up and reset, and its original goes on.
#[tokio::test]
async fn a_copy_that_cannot_keep_pace_is_given_up() {
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = Proxy::start(mirrored("http2", 100, &api, &[copy.address()])).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, mut up) = caller.ask(post("/"), false).await;
    let (mut to_api, mut to_copy) = (Served::accept(&api).await, Served::accept(&copy).await);
    let (original, mut answers) = to_api.next().await;
    let (copied, mut ignored) = to_copy.next().await;
    let all = Bytes::from(vec![7; 1_000_000]);
    let mut original = original.into_body();
    let (sent, received) = tokio::join!(send_all(&mut up, all.clone(), true), body(&mut original));
    sent.unwrap();
    assert_eq!(received.unwrap().len(), all.len());
    reply(&mut answers, "ok");
    assert_eq!(answer(response).await.text(), "ok");
    let reset = soon("RST_STREAM", std::future::poll_fn(|cx| ignored.poll_reset(cx))).await;
    assert_eq!(reset.unwrap(), Reason::CANCEL);
    drop(copied);
    proxy.counted("given up", |stats| stats.clusters[COPIES].copies_lost == 1).await;
}

/// No endpoint, a closed port, resets, a connection that is lost, one that is silent: no original notices.
#[tokio::test]
async fn nothing_that_becomes_of_a_copy_is_seen_by_its_original() {
    let resets = super::checks::endpoint(|_| (500, None, None)).await;
    let loses = Origin::bind().await;
    let lost = loses.address();
    tokio::spawn(async move {
        loop {
            let mut served = Served::accept(&loses).await;
            served.next().await;
            served.tell(Control::Close);
        }
    });
    let silent = Origin::bind().await;
    let silence = silent.address();
    for (copies, lost) in [
        (vec![], Some(5)),
        (vec![refusing().await], Some(5)),
        (vec![resets], Some(0)),
        (vec![lost], Some(5)),
        (vec![silence], None),
    ] {
        let api = Origin::bind().await;
        let mut proxy = Proxy::start(mirrored("grpc", 100, &api, &copies)).await;
        let mut caller = Caller::connect(&proxy, OUTBOUND).await;
        let mut endpoint = None;
        for _ in 0..5 {
            let (response, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
            if endpoint.is_none() {
                endpoint = Some(Served::accept(&api).await);
            }
            reply(&mut endpoint.as_mut().unwrap().next().await.1, "ok");
            assert_eq!(answer(response).await.text(), "ok");
        }
        proxy
            .counted("copies", |stats| {
                let copies = &stats.clusters[COPIES];
                lost.is_none_or(|lost| (copies.copies, copies.copies_lost) == (5 - lost, lost))
            })
            .await;
        let stats = proxy.stats().await;
        assert!(stats.listeners[OUTBOUND].reasons.is_empty(), "{:?}", stats.listeners[OUTBOUND].reasons);
    }
}

/// A caller that cancels in the middle of its body takes the copy with it, also where both are on one connection.
#[tokio::test]
async fn a_copy_breaks_off_where_its_original_does() {
    let (api, other) = (Origin::bind().await, Origin::bind().await);
    for same in [false, true] {
        let copy = if same { &api } else { &other };
        let mut set = mirrored("http2", 100, &api, &[copy.address()]);
        if same {
            edit_routes(&mut set, |action| {
                OUTBOUND.clone_into(&mut action.request_mirror_policies[0].cluster);
            });
        }
        let mut proxy = Proxy::start(set).await;
        let mut caller = Caller::connect(&proxy, OUTBOUND).await;
        let (response, mut up) = caller.ask(post("/"), false).await;
        up.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let mut streams = Vec::new();
        let mut to_api = Served::accept(&api).await;
        streams.push(to_api.next().await);
        let mut to_copy = None;
        match same {
            true => streams.push(to_api.next().await),
            false => streams.push(to_copy.insert(Served::accept(copy).await).next().await),
        }
        for (request, _) in &mut streams {
            assert_eq!(soon("a piece", request.body_mut().data()).await.unwrap().unwrap(), "hello");
        }
        up.send_reset(Reason::CANCEL);
        drop(response);
        for (_, send) in &mut streams {
            let reset = soon("RST_STREAM", std::future::poll_fn(|cx| send.poll_reset(cx))).await;
            assert_eq!(reset.unwrap(), Reason::CANCEL);
        }
        let cluster = if same { OUTBOUND } else { COPIES };
        proxy.counted("lost", |stats| stats.clusters[cluster].copies_lost == 1).await;
    }
}

/// An answer that never ends, of which something comes all the time, does not outlive the original for long.
#[tokio::test]
async fn a_copy_whose_answer_never_ends_is_given_up_after_its_original() {
    let arrange = async || {
        let (api, copy) = (Origin::bind().await, Origin::bind().await);
        let mut set = mirrored("grpc", 100, &api, &[copy.address()]);
        limited(&mut set, 1500);
        let proxy = Proxy::start(set).await;
        let caller = Caller::connect(&proxy, OUTBOUND).await;
        (api, copy, proxy, caller)
    };
    // The limit is that of the original as well.
    let begin = async |(api, copy, proxy, mut caller): (Origin, Origin, Proxy, Caller)| {
        let (response, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
        let (mut to_api, mut to_copy) = (Served::accept(&api).await, Served::accept(&copy).await);
        reply(&mut to_api.next().await.1, "ok");
        assert_eq!(answer(response).await.text(), "ok");
        let (copied, mut ignored) = to_copy.next().await;
        let endless = ignored.send_response(Response::new(()), false).unwrap();
        (proxy, caller, to_api, to_copy, copied, endless)
    };
    let (mut proxy, _caller, _to_api, _to_copy, _copied, mut endless) =
        within(Duration::from_millis(1500), arrange, begin).await;
    let ending = async {
        loop {
            tokio::select! {
                reset = std::future::poll_fn(|cx| endless.poll_reset(cx)) => return reset.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(20)) => {
                    let _ = endless.send_data(Bytes::from_static(b"x"), false);
                }
            }
        }
    };
    assert_eq!(soon("RST_STREAM", ending).await, Reason::CANCEL);
    proxy
        .counted("given up", |stats| {
            let copies = &stats.clusters[COPIES];
            (copies.copies, copies.copies_lost) == (0, 1)
        })
        .await;
}

/// Name, value, and whether no table may keep it.
type Fields = Vec<(String, String, bool)>;

/// Heads and trailers that arrive at an endpoint which answers nothing. Who sends them may see to it that they are in no
/// table, which other implementations do not tell.
async fn heads_at(origin: &Origin) -> mpsc::UnboundedReceiver<Fields> {
    let mut peer = origin.accept().await;
    let (to, heads) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut core = Connection::new(Role::Server, Config::default(), 0);
        let (mut head, mut out, mut read) = (Head::new(), Vec::new(), vec![0; 16 << 10]);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        loop {
            core.poll_output(&mut out);
            peer.tcp.write_all(&out).await.unwrap();
            out.clear();
            let Ok(count @ 1..) = peer.tcp.read(&mut read).await else { return };
            let mut rest = &read[..count];
            loop {
                let step = core.receive(rest, &mut head, 0).unwrap();
                rest = &rest[step.consumed..];
                match step.event {
                    Some(Event::Head { .. }) => {
                        let fields = head.sendable().map(|(_, field)| field);
                        let fields =
                            fields.map(|field| (text(field.name), text(field.value), field.sensitive));
                        let _ = to.send(fields.collect());
                    }
                    None if rest.is_empty() => break,
                    _ => {}
                }
            }
        }
    });
    heads
}

/// RFC 7541 section 7.1.3: what no table may keep is in none behind the next hop either, and stays in its place.
#[tokio::test]
async fn sensitive_fields_of_a_copy_stay_sensitive_and_in_their_place() {
    let (api, copy) = (Origin::bind().await, Origin::bind().await);
    let proxy = Proxy::start(mirrored("http2", 100, &api, &[copy.address()])).await;
    let mut raw = Raw::connect(&proxy).await;
    // POST, and literals: never indexed, and only not indexed here. Cookies are never indexed by the proxy anyway.
    let head = b"\x83\x86\x84\x01\x03api\x1f\x11\x03a=1\x0f\x11\x03b=2\x10\x05x-key\x0213\x00\x06x-last\x011";
    raw.frame(1, 4, 1, head).await;
    raw.frame(1, 5, 1, b"\x10\x08x-secret\x0217\x00\x05x-end\x03yes").await;
    let (mut to_api, mut to_copy) = tokio::join!(heads_at(&api), heads_at(&copy));
    let expected: [&[(&str, &str, bool)]; 2] = [
        &[("cookie", "a=1", true), ("cookie", "b=2", true), ("x-key", "13", true), ("x-last", "1", false)],
        &[("x-secret", "17", true), ("x-end", "yes", false)],
    ];
    for expected in expected {
        let original = soon("original", to_api.recv()).await.unwrap();
        assert_eq!(soon("copy", to_copy.recv()).await.unwrap(), original);
        let found: Vec<_> =
            original.iter().map(|(name, value, secret)| (&**name, &**value, *secret)).collect();
        assert_eq!(found, expected);
    }
}
