//! How calls of gRPC end: counted by their status, judged by it, and repeated by one proxy in a row only.

use outrider_xds_types::pb::envoy::config::cluster::v3::OutlierDetection;

use super::*;
use crate::resilience::{cluster, n};

fn ended(status: &'static str) -> Response<()> {
    Response::builder().header("grpc-status", status).body(()).unwrap()
}

/// Answers a call with a head, nothing, and trailers with this status, if any.
fn in_trailers(send: &mut SendResponse<Bytes>, status: Option<&'static str>) {
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = send.send_response(head, false).unwrap();
    stream.send_data(Bytes::from_static(b"\0\0\0\0\0"), status.is_none()).unwrap();
    if let Some(status) = status {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        stream.send_trailers(trailers).unwrap();
    }
}

/// Edge case 37: in trailers, in a head that is all, and missing.
#[tokio::test]
async fn e37_calls_are_counted_by_how_they_ended_wherever_that_is_said() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("grpc", &[origin.address()]).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let mut served = None;
    let cases = [Some("0"), Some("0"), Some("14"), Some("5"), Some("99"), Some("no"), None];
    for (only_head, status) in [true, false].into_iter().flat_map(|head| cases.map(|status| (head, status))) {
        let (response, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
        if served.is_none() {
            served = Some(Served::accept(&origin).await);
        }
        let (_, mut send) = served.as_mut().unwrap().next().await;
        match (only_head, status) {
            (true, Some(status)) => drop(send.send_response(ended(status), true).unwrap()),
            (true, None) => drop(send.send_response(Response::new(()), true).unwrap()),
            (false, status) => in_trailers(&mut send, status),
        }
        answer(response).await;
    }
    // What the proxy says itself counts as well; what is no call, or answered in HTTP, does not.
    let (response, _) = caller.ask(get("/page"), true).await;
    let (_, mut send) = served.as_mut().unwrap().next().await;
    send.send_response(Response::new(()), true).unwrap();
    answer(response).await;
    let (response, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
    let (_, mut send) = served.as_mut().unwrap().next().await;
    send.send_response(Response::builder().status(503).body(()).unwrap(), true).unwrap();
    answer(response).await;
    let (response, _up) =
        caller.ask(grpc("/a/b").header("grpc-timeout", "10m").body(()).unwrap(), false).await;
    assert_eq!(answer(response).await.header("grpc-status"), Some("4"));

    let expected = [("0", 4), ("14", 2), ("4", 1), ("5", 2), ("missing", 2), ("other", 4)];
    let expected: std::collections::BTreeMap<String, u64> =
        expected.map(|(status, count)| (status.to_owned(), count)).into();
    proxy.counted("calls", |stats| stats.listeners[OUTBOUND].grpc == expected).await;
}

/// The endpoint is judged by how the call ended, also where that is said in trailers.
#[tokio::test]
async fn statuses_in_trailers_eject_an_endpoint() {
    let origins = [Origin::bind().await, Origin::bind().await];
    let addresses = [origins[0].address(), origins[1].address()];
    let mut set = compiled(&pair("grpc", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &addresses));
    cluster(&mut set, |cluster| {
        cluster.outlier_detection = Some(OutlierDetection {
            consecutive_5xx: n(3),
            max_ejection_percent: n(50),
            ..Default::default()
        });
    });
    let mut proxy = Proxy::start(set).await;
    for (origin, status) in origins.into_iter().zip(["14", "5"]) {
        tokio::spawn(async move {
            let mut served = Served::accept(&origin).await;
            while let Some((_, mut send)) = served.requests.recv().await {
                in_trailers(&mut send, Some(status));
            }
        });
    }
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let bad = addresses[0].to_string();
    soon("the ejection", async {
        loop {
            let (response, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
            answer(response).await;
            let stats = proxy.stats().await;
            if !stats.clusters[OUTBOUND].unused.is_empty() {
                assert!(stats.clusters[OUTBOUND].unused.contains_key(&bad), "{:?}", stats.clusters);
                return;
            }
        }
    })
    .await;
}

/// N47 in HTTP/2.
#[tokio::test]
async fn n47_a_call_says_which_attempt_it_is_and_is_repeated_by_one_proxy_only() {
    let origin = Origin::bind().await;
    let proxy = with_route("grpc", &[origin.address()], |action| {
        action.retry_policy = Some(outrider_xds_types::pb::envoy::config::route::v3::RetryPolicy {
            retry_on: "unavailable".to_owned(),
            num_retries: n(1),
            retriable_request_headers: vec![
                outrider_xds_types::pb::envoy::config::route::v3::HeaderMatcher {
                    name: ":method".to_owned(),
                    header_match_specifier: Some(
                        outrider_xds_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier::PresentMatch(true),
                    ),
                    ..Default::default()
                },
            ],
            ..Default::default()
        });
    })
    .await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let mut served = None;
    let count = |request: &Request<RecvStream>| {
        let values: Vec<_> = request.headers().get_all("x-envoy-attempt-count").iter().collect();
        values.iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (given, attempts, told) in [
        (None, vec![vec![], vec!["2"]], Some("2")),
        (Some("1"), vec![vec!["1"], vec!["2"]], Some("2")),
        (Some("2"), vec![vec!["2"]], None),
    ] {
        let mut request = grpc("/a/b");
        if let Some(given) = given {
            request = request.header("x-envoy-attempt-count", given);
        }
        let (response, _) = caller.ask(request.body(()).unwrap(), true).await;
        for expected in attempts {
            if served.is_none() {
                served = Some(Served::accept(&origin).await);
            }
            let (request, mut send) = served.as_mut().unwrap().next().await;
            assert_eq!(count(&request), expected, "{given:?}");
            send.send_response(ended("14"), true).unwrap();
        }
        let answer = answer(response).await;
        assert_eq!(
            (answer.header("grpc-status"), answer.header("x-envoy-attempt-count")),
            (Some("14"), told)
        );
    }
}

#[tokio::test]
async fn what_a_route_says_of_retries_holds_for_statuses_of_http_and_grpc() {
    use outrider_xds_types::pb::google::protobuf::UInt32Value;
    let origin = Origin::bind().await;
    let proxy = with_route("grpc", &[origin.address()], |action| {
        let policy = action.retry_policy.get_or_insert_default();
        policy.num_retries = Some(UInt32Value { value: 1 });
        policy.retry_on = "5xx,unavailable".to_owned();
        policy.per_try_timeout = None;
    })
    .await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, _) = caller.ask(get("/"), true).await;
    let mut endpoint = Served::accept(&origin).await;
    let (_, mut send) = endpoint.next().await;
    send.send_response(Response::builder().status(503).body(()).unwrap(), true).unwrap();
    reply(&mut endpoint.next().await.1, "second");
    assert_eq!(answer(response).await.text(), "second");

    // N37: a status that is all of the response. The policy has to say that a POST may be sent twice; here it does not.
    let unavailable = || Response::builder().header("grpc-status", "14").body(()).unwrap();
    let (response, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
    endpoint.next().await.1.send_response(unavailable(), true).unwrap();
    assert_eq!(answer(response).await.header("grpc-status"), Some("14"));
}
