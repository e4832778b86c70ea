//! How WebSockets in HTTP/2 end, or do not begin, and whose fault that is. Edge cases 21 and 22 of part 2.

use std::sync::{Arc, Mutex};

use outrider_xds_types::pb::envoy::config::cluster::v3::OutlierDetection;
use tokio::net::TcpListener;

use super::*;
use crate::resilience::{cluster, n, on, retrying};

/// What leads to an endpoint, without TLS; in HTTP/1.1 if `older`.
fn leading_to(origin: &Origin, older: bool, extra: &str) -> ResourceSet {
    let mut set = compiled(&pair("http2", "off", 1, extra), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    if older {
        let other = compiled(&pair("http", "off", 1, extra), "shop/web");
        let cluster = other.of_type(type_url::CLUSTER).find(|one| &*one.name == OUTBOUND).unwrap();
        set.insert(cluster.clone());
    }
    set
}

/// What the next Upgrade at this endpoint gets, and its head.
async fn answered_with(origin: &Origin, answer: &str) -> (Peer, String) {
    let mut theirs = origin.accept().await;
    let head = theirs.head().await;
    theirs.send(answer).await;
    (theirs, head)
}

/// Before, the next attempt began when something else happened on the caller's connection.
#[tokio::test]
async fn an_upgrade_is_tried_again_at_once_and_says_which_attempt_it_is() {
    const NO: &str = "HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno";
    let origin = Origin::bind().await;
    let mut set = leading_to(&origin, true, "  timeouts: {request: 200s, idle: 300s}\n");
    retrying(&mut set, &on("5xx", 2));
    let proxy = Proxy::start(set).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, _up) = caller.ask(chat(), false).await;
    for attempt in [None, Some("2"), Some("3")] {
        let (_, head) = answered_with(&origin, NO).await;
        assert_eq!(header(&head, "x-envoy-attempt-count"), attempt, "{head}");
    }
    let told = answer(response).await;
    assert_eq!((told.status(), &*told.text()), (503, "no"));
    assert_eq!(told.header("x-envoy-attempt-count"), Some("3"));
    // Whoever is behind us has tried as often as that makes sense.
    let (response, _up) = caller.ask(chat(), false).await;
    let settled = NO.replace("No\r\n", "No\r\nx-envoy-attempt-count: 3\r\n");
    let _theirs = answered_with(&origin, &settled).await;
    assert_eq!(answer(response).await.status(), 503);
    assert!(origin.is_untouched().await);
}

/// Speaks both versions on every connection, and answers Upgrades with what is `said`.
async fn both_versions(listener: TcpListener, said: Arc<Mutex<&'static str>>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let said = Arc::clone(&said);
        tokio::spawn(async move {
            let mut first = [0; 3];
            tcp.peek(&mut first).await.unwrap();
            if first == *b"PRI" {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                while connection.accept().await.is_some() {}
            } else {
                let mut peer = Peer::new(tcp);
                peer.head().await;
                let said = *said.lock().unwrap();
                peer.send(said).await;
            }
        });
    }
}

/// A caller could have an endpoint left alone by everybody, by asking it for what it does not have.
#[tokio::test]
async fn that_an_endpoint_takes_no_websockets_is_not_held_against_it() {
    const OTHER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const VERSION: &str = "HTTP/1.1 505 No\r\nContent-Length: 0\r\n\r\n";
    const FAILURE: &str = "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n";
    for older in [true, false] {
        let (origin, other) = (Origin::bind().await, Origin::bind().await);
        let mut set = leading_to(&origin, older, "");
        set.insert(assignment(ENDPOINTS, &[origin.address(), other.address()]));
        let detection =
            OutlierDetection { consecutive_5xx: n(1), max_ejection_percent: n(50), ..Default::default() };
        cluster(&mut set, |cluster| cluster.outlier_detection = Some(detection));
        let said = Arc::new(Mutex::new(""));
        for origin in [origin, other] {
            tokio::spawn(both_versions(origin.listener, Arc::clone(&said)));
        }
        let mut proxy = Proxy::start(set).await;
        let mut caller = Caller::connect(&proxy, OUTBOUND).await;
        let cases: &[&str] = if older { &[OTHER] } else { &[OTHER, VERSION, "SSH-2.0-x\r\n\r\n", ""] };
        for case in cases {
            *said.lock().unwrap() = *case;
            for _ in 0..3 {
                let (response, _up) = caller.ask(chat(), false).await;
                assert!(answer(response).await.status() >= 500, "{case}");
            }
            let ejections = proxy.stats().await.clusters[OUTBOUND].ejections;
            assert_eq!(ejections, 0, "older: {older}, {case:?}");
        }
        // What it says of itself counts.
        *said.lock().unwrap() = FAILURE;
        let (response, _up) = caller.ask(chat(), false).await;
        assert_eq!(answer(response).await.status(), 500);
        proxy.counted("an ejection", |stats| stats.clusters[OUTBOUND].ejections == 1).await;
    }
}

/// Servers say NO_ERROR when they have ended and will not read the rest. Before, that was an error, and what the caller had
/// not read yet was lost.
#[tokio::test]
async fn an_endpoint_that_has_ended_and_reads_no_more_ends_well() {
    let (origin, mut proxy) = one().await;
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(1 << 20);
    let mut caller = Caller::with(tcp(&proxy, OUTBOUND).await, builder).await;
    let mut endpoint = None;
    let (mut ours, mut theirs) = open(&mut caller, &mut endpoint, &origin).await;
    // More than the caller has room for.
    let bulk: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    theirs.say(&bulk).await;
    theirs.finish();
    // This says it.
    drop(theirs);
    // All of it has arrived when this has.
    let (response, _) = caller.ask(get("/behind"), true).await;
    reply(&mut endpoint.as_mut().unwrap().next().await.1, "behind");
    answer(response).await;
    ours.expect(&bulk).await;
    let rest = body(&mut ours.down).await;
    assert_eq!(rest.unwrap(), b"");
    let reset = soon("RST_STREAM", std::future::poll_fn(|cx| ours.up.poll_reset(cx))).await;
    assert_eq!(reset.unwrap(), Reason::NO_ERROR);
    proxy.counted("it is over", |stats| stats.listeners[OUTBOUND].active_requests == 0).await;
    let stats = proxy.stats().await;
    assert_eq!(stats.listeners[OUTBOUND].reasons.values().sum::<u64>(), 0);
}

/// Like any other endpoint of a TCP connection that is lost after it has ended its sending.
#[tokio::test]
async fn an_endpoint_that_is_lost_after_its_end_is_noticed_across_the_bridge() {
    let (origin, mut proxy, _served, mut caller) = bridged("cluster").await;
    let (response, up) = caller.ask(chat(), false).await;
    let mut theirs = origin.accept().await;
    let head = theirs.head().await;
    theirs.send(switched(&key_of(&head))).await;
    let mut ours = End { up, down: soon("head", response).await.unwrap().into_body() };
    theirs.finish().await;
    ours.ended().await;
    ours.say("still").await;
    theirs.expect("still").await;
    theirs.tcp.set_zero_linger().unwrap();
    drop(theirs);
    let reset = soon("RST_STREAM", std::future::poll_fn(|cx| ours.up.poll_reset(cx))).await;
    assert_eq!(reset.unwrap(), Reason::CANCEL);
    proxy
        .counted("the reason", |stats| stats.listeners[OUTBOUND].reasons.get("upstream_reset") == Some(&1))
        .await;
}

#[tokio::test]
async fn an_endpoint_that_has_answered_in_another_way_is_left_without_a_reset() {
    let (origin, _proxy, _served, mut caller) = bridged("cluster").await;
    let (response, _up) = caller.ask(chat(), false).await;
    let (mut theirs, _) = answered_with(&origin, "HTTP/1.1 403 No\r\nContent-Length: 7\r\n\r\nnot you").await;
    assert_eq!(answer(response).await.text(), "not you");
    assert_eq!(theirs.rest().await.unwrap(), b"");
}

/// Both are silent, whoever has ended.
#[tokio::test]
async fn silence_after_the_callers_end_is_nobodys_fault() {
    let origin = Origin::bind().await;
    let limits = "  timeouts: {request: 10s, idle: 1s}\n";
    let mut proxy = Proxy::start(leading_to(&origin, false, limits)).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let mut endpoint = None;
    let (mut ours, mut theirs) = open(&mut caller, &mut endpoint, &origin).await;
    ours.finish();
    theirs.ended().await;
    assert_eq!(ours.reset().await, Some(Reason::CANCEL));
    proxy
        .counted("the reason", |stats| {
            let reasons = &stats.listeners[OUTBOUND].reasons;
            reasons.get("idle_timeout") == Some(&1) && reasons.len() == 1
        })
        .await;
}
