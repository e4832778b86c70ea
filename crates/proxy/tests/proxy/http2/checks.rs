//! Health checks over HTTP/2 and gRPC, and faults that are statuses of gRPC.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::core::v3::HealthCheck;

use super::super::resilience::{ms, n};
use super::*;

/// An endpoint that answers every request on every connection by `answers`: body and trailers, or status only.
pub async fn endpoint(
    answers: impl Fn(&Request<RecvStream>) -> (u16, Option<Bytes>, Option<&'static str>) + Send + Sync + 'static,
) -> SocketAddr {
    let origin = Origin::bind().await;
    let address = origin.address();
    let answers = Arc::new(answers);
    tokio::spawn(async move {
        loop {
            let mut served = Served::accept(&origin).await;
            let answers = Arc::clone(&answers);
            tokio::spawn(async move {
                while let Some((request, mut send)) = served.requests.recv().await {
                    let (status, bytes, grpc) = answers(&request);
                    let head = Response::builder().status(status).body(()).unwrap();
                    let mut stream = send.send_response(head, bytes.is_none() && grpc.is_none()).unwrap();
                    if let Some(bytes) = bytes {
                        let _ = stream.send_data(bytes, grpc.is_none());
                    }
                    if let Some(code) = grpc {
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static(code));
                        let _ = stream.send_trailers(trailers);
                    }
                }
            });
        }
    });
    address
}

/// What is compiled for the caller of a service with such a policy, where checks are made more often.
fn checked(protocol: &str, check: &str, origins: &[SocketAddr]) -> ResourceSet {
    let policy = format!(
        "---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: api, namespace: shop}}
spec: {{targetRef: {{kind: Service, name: api}}, healthCheck: {{{check}}}}}
"
    );
    let mut set = compiled(&pair(protocol, "off", 1, &policy), "shop/web");
    set.insert(assignment(ENDPOINTS, origins));
    edit(&mut set, type_url::CLUSTER, OUTBOUND, |cluster: &mut Cluster| {
        let check: &mut HealthCheck = &mut cluster.health_checks[0];
        check.interval = ms(20);
        check.no_traffic_interval = ms(20);
        check.timeout = ms(5000);
        (check.unhealthy_threshold, check.healthy_threshold) = (n(2), n(2));
    });
    set
}

/// Out while it says so, and in again.
async fn goes_out_and_comes_back(
    mut proxy: Proxy,
    (address, why): (SocketAddr, &str),
    well: &AtomicBool,
    asked: &AtomicUsize,
) {
    soon("checked", async {
        while asked.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    proxy.counted("in", |stats| stats.clusters[OUTBOUND].unused.is_empty()).await;
    well.store(false, Ordering::SeqCst);
    let address = address.to_string();
    proxy
        .counted("out", |stats| {
            let unused = &stats.clusters[OUTBOUND].unused;
            unused.len() == 1 && unused.get(&address).map(String::as_str) == Some(why)
        })
        .await;
    // Who calls is led to the other one.
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    for _ in 0..10 {
        assert_eq!(caller.get("/").await.header("server"), None);
        assert_eq!(caller.get("/").await.text(), "b");
    }
    well.store(true, Ordering::SeqCst);
    proxy.counted("in again", |stats| stats.clusters[OUTBOUND].unused.is_empty()).await;
}

#[tokio::test]
async fn checks_of_http2_are_requests_of_http2() {
    let (well, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (says, count) = (Arc::clone(&well), Arc::clone(&asked));
    let a = endpoint(move |request| {
        if request.uri().path() != "/ready" {
            return (200, Some(Bytes::from_static(b"a")), None);
        }
        assert_eq!(request.method(), http::Method::GET);
        assert_eq!(request.uri().authority().unwrap(), "api.shop");
        count.fetch_add(1, Ordering::SeqCst);
        (if says.load(Ordering::SeqCst) { 200 } else { 500 }, None, None)
    })
    .await;
    let b = endpoint(|_| (200, Some(Bytes::from_static(b"b")), None)).await;
    let proxy = Proxy::start(checked("http2", "type: HTTP, path: /ready", &[a, b])).await;
    goes_out_and_comes_back(proxy, (a, "fails its checks: answers 500"), &well, &asked).await;
}

#[tokio::test]
async fn checks_of_grpc_are_calls_of_its_health_service() {
    let serving = |status: u8| Some(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]));
    let (well, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (says, count) = (Arc::clone(&well), Arc::clone(&asked));
    let a = endpoint(move |request| {
        if request.uri().path() != "/grpc.health.v1.Health/Check" {
            return (200, Some(Bytes::from_static(b"a")), None);
        }
        assert_eq!(request.headers()["content-type"], "application/grpc");
        assert_eq!(request.headers()["te"], "trailers");
        count.fetch_add(1, Ordering::SeqCst);
        (200, serving(if says.load(Ordering::SeqCst) { 1 } else { 2 }), Some("0"))
    })
    .await;
    let b = endpoint(move |request| match request.uri().path() {
        "/grpc.health.v1.Health/Check" => (200, serving(1), Some("0")),
        _ => (200, Some(Bytes::from_static(b"b")), None),
    })
    .await;
    let proxy = Proxy::start(checked("grpc", "type: GRPC, service: pkg.Api", &[a, b])).await;
    goes_out_and_comes_back(proxy, (a, "fails its checks: answers NOT_SERVING"), &well, &asked).await;
}

/// Whatever else an endpoint answers, it is not well.
#[tokio::test]
async fn only_a_service_that_says_it_serves_is_well() {
    let message = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
    let well = endpoint(move |_| (200, message(b"\0\0\0\0\x02\x08\x01"), Some("0"))).await;
    let others = [
        endpoint(move |_| (200, None, Some("12"))).await,
        endpoint(move |_| (200, message(b"\0\0\0\0\x02\x08\x01"), Some("14"))).await,
        endpoint(move |_| (200, message(b"\0\0\0\0\x02\x08\x01"), None)).await,
        endpoint(move |_| (200, message(b"\0\0\0\0\x02\x08\x03"), Some("0"))).await,
        endpoint(move |_| (200, message(b"not a message"), Some("0"))).await,
        endpoint(move |_| (503, None, None)).await,
        // No HTTP/2 at all.
        super::super::resilience::Scripted::always(200, "ok").await.address,
        super::super::resilience::refusing().await,
    ];
    let causes = [
        "answers with the gRPC status 12",
        "answers with the gRPC status 14",
        "answers without a gRPC status",
        "answers with the serving status 3",
        "answers with something else than a status",
        "answers 503",
        "",
        "refuses connections",
    ];
    let mut all = others.to_vec();
    all.push(well);
    let mut proxy = Proxy::start(checked("grpc", "type: GRPC", &all)).await;
    proxy
        .counted("all but one are out", |stats| {
            let unused = &stats.clusters[OUTBOUND].unused;
            let told = |(address, cause): (&SocketAddr, &str)| {
                let why = unused.get(&address.to_string());
                why.is_some_and(|why| why.starts_with(&format!("fails its checks: {cause}")))
            };
            unused.len() == others.len() && others.iter().zip(causes).all(told)
        })
        .await;
}

#[tokio::test]
async fn a_fault_may_be_a_status_of_grpc() {
    let origin = Origin::bind().await;
    let policy = "---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: api, namespace: shop}
spec:
  targetRef: {kind: Service, name: api}
  faultInjection: {abort: {grpcStatus: 10, percent: 100}, headers: [{name: x-try, value: '1'}]}
";
    let mut set = compiled(&pair("grpc", "off", 1, policy), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    let mut proxy = Proxy::start(set).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (response, _) = caller.ask(grpc("/a/b").header("x-try", "1").body(()).unwrap(), true).await;
    let told = answer(response).await;
    assert_eq!(
        (told.status(), told.header("grpc-status"), told.header("x-outrider-reason")),
        (200, Some("10"), Some("fault_injected"))
    );
    // What is no call of gRPC gets what Envoy gives it: the status of HTTP that calls have.
    let request = Request::get("http://api/").header("x-try", "1").body(()).unwrap();
    let (response, _) = caller.ask(request, true).await;
    let told = answer(response).await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (200, Some("fault_injected")));
    assert!(origin.is_untouched().await);
    let (response, _) = caller.ask(grpc("/a/b").body(()).unwrap(), true).await;
    let (_, mut send) = Served::accept(&origin).await.next().await;
    reply(&mut send, "ok");
    assert_eq!(answer(response).await.text(), "ok");
    proxy
        .counted("reason", |stats| stats.listeners[OUTBOUND].reasons.get("fault_injected") == Some(&2))
        .await;
}
