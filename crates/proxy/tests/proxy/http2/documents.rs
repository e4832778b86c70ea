//! From the documents of gRPC's routes and policies to what callers and endpoints see.

use super::*;
use crate::policies::{CANARY, declared, policy};

/// An endpoint that says its name, and what a route has added. With a status, that is all it says.
async fn named(
    name: &'static str,
    status: Option<&'static str>,
) -> (SocketAddr, mpsc::UnboundedReceiver<()>) {
    let origin = Origin::bind().await;
    let address = origin.address();
    let (asked, asks) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let mut served = Served::accept(&origin).await;
            let asked = asked.clone();
            tokio::spawn(async move {
                while let Some((request, mut send)) = served.requests.recv().await {
                    let _ = asked.send(());
                    let mut head = Response::builder()
                        .header("content-type", "application/grpc")
                        .header("grpc-status", status.unwrap_or("0"))
                        .header("x-name", name);
                    if let Some(added) = request.headers().get("x-route") {
                        head = head.header("x-route", added);
                    }
                    let _ = send.send_response(head.body(()).unwrap(), true);
                }
            });
        }
    });
    (address, asks)
}

/// By service, method and header, in the order of the Gateway API; what no rule names is UNIMPLEMENTED.
#[tokio::test]
async fn a_grpc_route_leads_by_service_method_and_header() {
    const ROUTE: &str = r#"---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: api, namespace: shop}
spec:
  parentRefs: [{kind: Service, name: api}]
  rules:
    - matches: [{method: {method: Watch}}]
      backendRefs: [{name: canary, port: 8080}]
    - matches: [{method: {service: shop.Stock}}]
      backendRefs: [{name: api, port: 8080}]
    - matches: [{method: {service: shop.Stock}, headers: [{name: x-canary, value: "1"}]}]
      backendRefs: [{name: canary, port: 8080}]
    - matches: [{method: {service: shop.Stock, method: Reserve}}]
      filters:
        - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-route, value: reserve}]}}
      backendRefs: [{name: canary, port: 8080}]
    - matches: [{method: {type: RegularExpression, service: "shop\\.v[0-9]+", method: "Get.*"}}]
      backendRefs: [{name: canary, port: 8080}]
    - matches: [{method: {service: shop.Closed}}]
      backendRefs: [{name: canary, port: 8080, weight: 0}, {name: api, port: 8080, weight: 1}]
"#;
    let mut set = declared("grpc", ROUTE);
    let ((api, _api), (canary, _canary)) = (named("api", None).await, named("canary", None).await);
    set.insert(assignment(ENDPOINTS, &[api]));
    set.insert(assignment(CANARY, &[canary]));
    let proxy = Proxy::start(set).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    for (path, header, name, route) in [
        ("/shop.Stock/Reserve", None, Some("canary"), Some("reserve")),
        ("/shop.Stock/List", None, Some("api"), None),
        ("/shop.Stock/List", Some("1"), Some("canary"), None),
        ("/shop.Stock/List", Some("2"), Some("api"), None),
        // A service that is named goes before a method that is.
        ("/shop.Stock/Watch", None, Some("api"), None),
        ("/other.Thing/Watch", None, Some("canary"), None),
        ("/shop.v2/GetAll", None, Some("canary"), None),
        ("/shop.Closed/Any", None, Some("api"), None),
        ("/shop.v2/PutAll", None, None, None),
        ("/shop.vx/GetAll", None, None, None),
        ("/shop.Stocks/List", None, None, None),
        ("/shop.stock/List", None, None, None),
    ] {
        let mut call = grpc(path);
        if let Some(value) = header {
            call = call.header("x-canary", value);
        }
        let (response, _) = caller.ask(call.body(()).unwrap(), true).await;
        let answer = answer(response).await;
        assert_eq!(answer.header("x-name"), name, "{path} {header:?}");
        assert_eq!(answer.header("x-route"), route, "{path}");
        let status = if name.is_some() { "0" } else { "12" };
        assert_eq!(answer.header("grpc-status"), Some(status), "{path}");
    }
}

/// A status that the policy names is asked of another endpoint, though all gRPC is POST; another one is the answer.
#[tokio::test]
async fn retries_of_a_policy_are_for_its_statuses() {
    const CALLS: usize = 20;
    for (status, repeated) in [("14", true), ("5", false)] {
        let ((bad, mut asked), (good, _good)) = (named("bad", Some(status)).await, named("good", None).await);
        let spec = "retries: {attempts: 1, retryOn: [unavailable]}, balancing: {policy: round-robin}, \
                    outlierEjection: {maxEjectionPercent: 0}";
        let mut set = declared("grpc", &policy(spec));
        set.insert(assignment(ENDPOINTS, &[bad, good]));
        let proxy = Proxy::start(set).await;
        let mut caller = Caller::connect(&proxy, OUTBOUND).await;
        let mut failed = 0;
        for _ in 0..CALLS {
            let (response, _) = caller.ask(grpc("/shop.Stock/List").body(()).unwrap(), true).await;
            match answer(response).await.header("grpc-status") {
                Some("0") => {}
                Some(other) if other == status => failed += 1,
                other => panic!("{other:?}"),
            }
        }
        let mut hits = 0;
        while asked.try_recv().is_ok() {
            hits += 1;
        }
        assert!(hits > 0, "{status}");
        assert_eq!(failed, if repeated { 0 } else { hits }, "{status}");
    }
}
