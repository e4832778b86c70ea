//! What is declared changes in every way that takes no call away, and no connection notices (N8).
//!
//! The log of requests has no format that could be changed; what is logged is changed with audits.

use super::super::mesh::with_secrets;
use super::*;

const PORTS: [&str; 3] = ["main", "two", "raw"];

/// What is done, the fields of `shop/api` for it, and further documents.
type Change = (&'static str, &'static str, &'static str);

const CHANGES: [Change; 13] = [
    ("as it was", "", ""),
    ("limits of time", "  timeouts: {request: 40s, idle: 100s}\n", ""),
    ("another port", "    - {name: more, port: 9000, targetPort: 9, protocol: http}\n", ""),
    ("routes", "", ROUTES),
    ("other routes", "", OTHER_ROUTES),
    (
        "retries and faults",
        "",
        "retries: {attempts: 3}, faultInjection: {abort: {httpStatus: 500, percent: 100}, headers: [{name: x-fault, value: y}]}",
    ),
    (
        "ejection and limits",
        "",
        "outlierEjection: {consecutive5xxErrors: 7}, limits: {connections: 50, requests: 60}",
    ),
    ("health checks", "", "healthCheck: {type: TCP, interval: 60s, timeout: 5s}"),
    ("balancing", "", "balancing: {policy: maglev, hashKeys: [{type: source-address}]}"),
    ("rates", "", "rateLimit: {requests: 1000, interval: 1s}"),
    ("access", "", ACCESS),
    ("callers", "", OTHER_CALLER),
    ("as it was in the beginning", "", ""),
];

const ROUTES: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: one, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: api, port: 8080}]
  rules:
    - matches: [{path: {type: PathPrefix, value: /}}]
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-added, value: y}]}}]
      backendRefs: [{name: api, port: 8080}]
";
const OTHER_ROUTES: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: one, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: api, port: 8080}]
  rules:
    - matches: [{path: {type: Exact, value: /never}}]
      timeouts: {request: 9s}
      backendRefs: [{name: api, port: 8080}]
    - backendRefs: [{name: api, port: 8080}]
";
const ACCESS: &str = "---
apiVersion: outrider.dev/v1alpha1
kind: AccessPolicy
metadata: {name: not-there, namespace: shop}
spec:
  targetRef: {kind: Service, name: api}
  action: deny
  rules: [{to: [{paths: [{type: Exact, value: /secret}], ports: [8080, 8081]}]}]
---
apiVersion: outrider.dev/v1alpha1
kind: AccessPolicy
metadata: {name: watched, namespace: shop}
spec:
  targetRef: {kind: Service, name: api}
  action: deny
  mode: audit
  rules: [{to: [{methods: [GET], ports: [8080, 8081]}]}]
";
const OTHER_CALLER: &str = "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: other, namespace: shop}
spec: {role: client, calls: [api]}
";

fn outbound(port: &str) -> String {
    format!("outbound/shop/api/{port}")
}

/// The documents after a change, for an `api` that listens at these ports.
fn declared((_, fields, more): Change, targets: [u16; 3]) -> String {
    let ports: String = ["http", "http2", "tcp"]
        .iter()
        .zip(PORTS)
        .zip(targets)
        .enumerate()
        .map(|(at, ((protocol, name), target))| {
            let port = 8080 + at;
            format!("    - {{name: {name}, port: {port}, targetPort: {target}, protocol: {protocol}}}\n")
        })
        .collect();
    let more = match more.is_empty() || more.starts_with("---") {
        true => more.to_owned(),
        false => format!(
            "---\napiVersion: outrider.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: api, namespace: shop}}\nspec: \
             {{targetRef: {{kind: Service, name: api}}, {more}}}\n"
        ),
    };
    shop("required", &format!("  ports:\n{ports}{fields}{more}"))
}

/// Publishes, and waits until every worker uses it.
async fn change(proxy: &mut Proxy, set: ResourceSet) {
    proxy.configure(set).await;
    let wanted = proxy.published();
    proxy.counted("what was published to be in use", |stats| stats.configuration == wanted).await;
}

/// Both proxies of a pair with mutual TLS take every change, and every connection is the one of the beginning: of HTTP/1.1
/// with requests and idle, of HTTP/2 with a stream that is open and with requests, a WebSocket, and a stream of bytes.
#[tokio::test]
async fn n8_no_change_that_takes_no_call_away_is_noticed_by_a_connection() {
    let authority = Authority::new();
    let origins = [Origin::bind().await, Origin::bind().await, Origin::bind().await];
    let targets = [origins[0].port(), origins[1].port(), origins[2].port()];
    let of_server =
        |change: Change| with_secrets(&declared(change, targets), "shop/api", &authority, "shop/api");
    let mut server = Proxy::start(of_server(CHANGES[0])).await;
    let addresses = PORTS.map(|port| (port, server.address(&format!("inbound/{port}"))));
    let of_client = |change: Change| {
        let mut set = with_secrets(&declared(change, targets), "shop/web", &authority, "shop/web");
        for (port, address) in addresses {
            set.insert(assignment(&format!("shop/api/{port}"), &[address]));
        }
        if set.get(type_url::CLUSTER, &outbound("more")).is_some() {
            set.insert(assignment("shop/api/more", &[]));
        }
        set
    };
    let mut client = Proxy::start(of_client(CHANGES[0])).await;

    let (mut ws, mut ws_behind) = client.open_websocket(&outbound("main"), &origins[0]).await;
    let (mut raw, mut raw_behind) = client.open_stream(&outbound("raw"), &origins[2]).await;
    let (mut kept, mut kept_behind) = client.ask(&outbound("main"), GET, &origins[0]).await;
    kept_behind.send(OK).await;
    kept.expect(OK).await;
    let mut idle = client.connect(&outbound("main")).await;
    idle.send(GET).await;
    kept_behind.head().await;
    kept_behind.send(OK).await;
    idle.expect(OK).await;
    let mut caller = Caller::connect(&client, &outbound("two")).await;
    let (response, mut up) = caller.ask(post("/stream"), false).await;
    let mut served = Served::accept(&origins[1]).await;
    let (mut request, mut send) = served.next().await;
    let mut down = send.send_response(Response::new(()), false).unwrap();
    let mut answer = soon("the head", response).await.unwrap().into_body();

    let mut all = CHANGES.to_vec();
    // In another order as well, by way of what was not next to it.
    all.extend(CHANGES.iter().rev().skip(1).step_by(2));
    for change_of in all {
        let what = change_of.0;
        println!("{what}");
        // Certificates are others each time.
        change(&mut server, of_server(change_of)).await;
        change(&mut client, of_client(change_of)).await;

        for (one, other) in [(&mut ws, &mut ws_behind), (&mut raw, &mut raw_behind)] {
            one.send("there").await;
            other.expect("there").await;
            other.send("and back").await;
            one.expect("and back").await;
        }
        kept.send(GET).await;
        // Between the proxies, and to the application, there may be another one by now.
        let head = tokio::select! {
            head = kept_behind.head() => head,
            again = origins[0].accept() => {
                kept_behind = again;
                kept_behind.head().await
            }
        };
        assert!(head.starts_with("GET / "), "{what}: {head}");
        kept_behind.send(OK).await;
        kept.expect(OK).await;

        send_all(&mut up, Bytes::from_static(b"there"), false).await.unwrap();
        let piece = soon("a piece", request.body_mut().data()).await.expect(what).unwrap();
        assert_eq!(&piece[..], b"there", "{what}");
        request.body_mut().flow_control().release_capacity(piece.len()).unwrap();
        down.send_data(Bytes::from_static(b"and back"), false).unwrap();
        let piece = soon("a piece", answer.data()).await.expect(what).unwrap();
        assert_eq!(&piece[..], b"and back", "{what}");
        answer.flow_control().release_capacity(piece.len()).unwrap();
        let (response, _) = caller.ask(get("/"), true).await;
        tokio::select! {
            mut arrived = served.next() => reply(&mut arrived.1, "ok"),
            mut again = Served::accept(&origins[1]) => {
                reply(&mut again.next().await.1, "ok");
                // The stream of the beginning is on the other one.
                tokio::spawn(again.driver);
            }
        }
        assert_eq!(super::answer(response).await.text(), "ok", "{what}");
    }
    idle.send(GET).await;
    kept_behind.head().await;
    kept_behind.send(OK).await;
    idle.expect(OK).await;
    // At the other one those that check are gone as soon as they came.
    let stats = client.stats().await;
    let reasons: Vec<_> = stats.listeners.values().flat_map(|one| one.reasons.keys()).collect();
    assert!(reasons.is_empty(), "{reasons:?}");
}
