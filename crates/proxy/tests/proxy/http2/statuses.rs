//! Edge case 37: a status of gRPC that follows a head is a reason for another attempt, as one within a head is, as long as
//! nothing else has followed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use outrider_xds_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::{HeaderMatcher, RetryPolicy};

use super::*;
use crate::resilience::{cluster, n};

const MESSAGE: &[u8] = b"\0\0\0\0\x02ok";

/// What an endpoint does with one attempt.
#[derive(Clone, Copy, Debug)]
enum Does {
    /// A head, then trailers with this status.
    Fails(&'static str),
    /// The same with a message between them.
    Begins(&'static str),
    /// A head, then a reset.
    Breaks,
    /// A head and a message with an end, and no status.
    Forgets,
}

fn trailers(status: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(status))])
}

fn head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).unwrap()
}

impl Does {
    fn to(self, send: &mut SendResponse<Bytes>) {
        let mut stream = send.send_response(head(), false).unwrap();
        match self {
            Self::Fails(status) => stream.send_trailers(trailers(status)).unwrap(),
            Self::Begins(status) => {
                stream.send_data(Bytes::from_static(MESSAGE), false).unwrap();
                stream.send_trailers(trailers(status)).unwrap();
            }
            Self::Breaks => stream.send_reset(Reason::INTERNAL_ERROR),
            Self::Forgets => stream.send_data(Bytes::from_static(MESSAGE), true).unwrap(),
        }
    }
}

fn repeated(action: &mut RouteAction) {
    action.retry_policy = Some(RetryPolicy {
        retry_on: "unavailable".to_owned(),
        num_retries: n(1),
        retriable_request_headers: vec![HeaderMatcher {
            name: ":method".to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
            ..Default::default()
        }],
        ..Default::default()
    });
}

#[tokio::test]
async fn e37_a_status_that_is_only_in_trailers_is_a_reason_for_another_attempt() {
    let origins = [Origin::bind().await, Origin::bind().await];
    let addresses = origins.each_ref().map(Origin::address);
    let script: Arc<Mutex<&'static [Does]>> = Arc::default();
    // Who was asked, in turn.
    let asked: Arc<Mutex<Vec<usize>>> = Arc::default();
    for (place, origin) in origins.into_iter().enumerate() {
        let (script, asked) = (Arc::clone(&script), Arc::clone(&asked));
        tokio::spawn(async move {
            let mut served = Served::accept(&origin).await;
            while let Some((_, mut send)) = served.requests.recv().await {
                let attempt = {
                    let mut asked = asked.lock().unwrap();
                    asked.push(place);
                    asked.len() - 1
                };
                let does = script.lock().unwrap()[attempt];
                does.to(&mut send);
            }
        });
    }
    let mut set = compiled(&pair("grpc", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &addresses));
    edit_routes(&mut set, repeated);
    // Both fail often enough to be left alone.
    cluster(&mut set, |cluster| cluster.outlier_detection = None);
    let mut proxy = Proxy::start(set).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    // What is done, with how many attempts, the status told in trailers, whether a message came, and what the head says of
    // attempts.
    type Case = (&'static [Does], usize, Option<&'static str>, bool, Option<&'static str>);
    let cases: [Case; 6] = [
        (&[Does::Fails("14"), Does::Begins("0")], 2, Some("0"), true, None),
        (&[Does::Fails("14"), Does::Forgets], 2, None, true, None),
        (&[Does::Fails("14"), Does::Fails("14")], 2, Some("14"), false, Some("2")),
        (&[Does::Fails("14"), Does::Fails("5")], 2, Some("5"), false, None),
        (&[Does::Fails("5")], 1, Some("5"), false, None),
        // A message has been read, or may have been.
        (&[Does::Begins("14")], 1, Some("14"), true, None),
    ];
    for round in 0..3 {
        for (does, attempts, status, message, told) in cases {
            println!("round {round}: {does:?}");
            *script.lock().unwrap() = does;
            asked.lock().unwrap().clear();
            let (response, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
            let answer = answer(response).await;
            assert_eq!(answer.header("grpc-status"), None);
            let said = answer.trailers.as_ref().map(|trailers| trailers["grpc-status"].to_str().unwrap());
            assert_eq!((said, answer.body.is_empty()), (status, !message));
            assert_eq!(answer.header("x-envoy-attempt-count"), told);
            let asked = asked.lock().unwrap();
            assert_eq!(asked.len(), attempts, "{asked:?}");
            assert!(attempts == 1 || asked[0] != asked[1], "the other endpoint has nothing to recover from");
        }
    }
    // A reset after a head is no status: the caller gets the head and the reset.
    *script.lock().unwrap() = &[Does::Breaks];
    asked.lock().unwrap().clear();
    let (response, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
    let broken = whole(response).await.err().and_then(|error| error.reason());
    assert_eq!((broken, asked.lock().unwrap().len()), (Some(Reason::INTERNAL_ERROR), 1));
    // A call is counted once, as it ended for its caller.
    let expected = [("0", 3), ("14", 6), ("5", 6), ("missing", 3)];
    let expected: std::collections::BTreeMap<String, u64> =
        expected.map(|(status, count)| (status.to_owned(), count)).into();
    proxy.counted("calls", |stats| stats.listeners[OUTBOUND].grpc == expected).await;
    proxy.counted("retries", |stats| stats.clusters[OUTBOUND].retries == 12).await;
}

/// A head that is meant as a sign comes without anything behind it: at once where the caller has more to say, for both may
/// wait for the other's first message, and after a moment where it has not. What the caller has seen is not repeated.
#[tokio::test]
async fn e37_a_head_that_nothing_follows_is_not_kept_for_ever() {
    let origin = Origin::bind().await;
    let proxy = with_route("grpc", &[origin.address()], repeated).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let mut served = None;
    for end in [false, true] {
        for status in ["0", "14"] {
            let (response, mut up) = caller.ask(grpc("/a/b").body(()).unwrap(), end).await;
            if served.is_none() {
                served = Some(Served::accept(&origin).await);
            }
            let (mut request, mut send) = served.as_mut().unwrap().next().await;
            let mut down = send.send_response(head(), false).unwrap();
            let mut answer = soon("the head", response).await.unwrap().into_body();
            if !end {
                send_all(&mut up, Bytes::from_static(MESSAGE), true).await.unwrap();
                assert_eq!(body(request.body_mut()).await.unwrap(), MESSAGE);
            }
            if status == "0" {
                down.send_data(Bytes::from_static(MESSAGE), false).unwrap();
            }
            down.send_trailers(trailers(status)).unwrap();
            assert_eq!(body(&mut answer).await.unwrap(), if status == "0" { MESSAGE } else { b"" });
            let told = soon("trailers", answer.trailers()).await.unwrap().unwrap();
            assert_eq!(told["grpc-status"], status, "request ended: {end}");
        }
    }
}

/// Heads of which nothing would be repeated wait for nothing: what is no call, and what its route does not repeat.
#[tokio::test]
async fn e37_other_heads_are_not_kept() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let origin = Origin::bind().await;
    let address = origin.address();
    tokio::spawn(async move {
        let mut served = Served::accept(&origin).await;
        while let Some((_, mut send)) = served.requests.recv().await {
            ASKED.fetch_add(1, Ordering::SeqCst);
            Does::Fails("14").to(&mut send);
        }
    });
    let proxy = with_route("grpc", &[address], |action| {
        repeated(action);
        // Not by its method.
        if let Some(policy) = &mut action.retry_policy {
            policy.retriable_request_headers.clear();
        }
    })
    .await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
    assert_eq!(answer(response).await.trailers.unwrap()["grpc-status"], "14");
    let (response, _) = caller.ask(get("/page"), true).await;
    assert_eq!(answer(response).await.trailers.unwrap()["grpc-status"], "14");
    assert_eq!(ASKED.load(Ordering::SeqCst), 2);
}
