//! Endpoints of other services in a cluster: each must have the identity of its own.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Response;
use outrider_compile::{ByZone, Endpoint, endpoints_with_failover};
use outrider_intent::model::ServiceRef;
use outrider_xds::ResourceSet;
use outrider_xds_types::type_url;

use super::http2::{Caller, Served};
use super::mesh::with_secrets;
use super::support::*;

/// Documents: `web` calls `api`, and calls of `api` go to `standby` as far as it fails.
fn documents(protocol: &str, target_port: u16, policy: &str) -> String {
    pair(protocol, "required", target_port, "")
        + &format!(
            "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: standby, namespace: shop}}
spec:
  role: server
  ports: [{{name: main, port: 8080, targetPort: {target_port}, protocol: {protocol}}}]
---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: api, namespace: shop}}
spec: {{targetRef: {{kind: Service, name: api}}, failover: [{{name: standby}}]{policy}}}
"
        )
}

/// The proxies in front of both, each with its application behind it.
struct Both {
    authority: Authority,
    api: (Proxy, Origin),
    standby: (Proxy, Origin),
}

impl Both {
    async fn start(protocol: &str) -> Self {
        let authority = Authority::new();
        let start = async |service: &str| {
            let origin = Origin::bind().await;
            let yaml = documents(protocol, origin.port(), "");
            let proxy = Proxy::start(with_secrets(&yaml, service, &authority, service)).await;
            (proxy, origin)
        };
        let (api, standby) = (start("shop/api").await, start("shop/standby").await);
        Self { authority, api, standby }
    }

    fn at(&self) -> [SocketAddr; 2] {
        [self.api.0.address(INBOUND), self.standby.0.address(INBOUND)]
    }

    /// What the proxy of `web` gets, with these endpoints of both services.
    fn of_web(
        &self,
        protocol: &str,
        policy: &str,
        api: &[SocketAddr],
        standby: &[SocketAddr],
    ) -> ResourceSet {
        let yaml = documents(protocol, 1, policy);
        let mut set = with_secrets(&yaml, "shop/web", &self.authority, "shop/web");
        set.insert(assigned(api, standby));
        set
    }
}

fn assigned(api: &[SocketAddr], standby: &[SocketAddr]) -> std::sync::Arc<outrider_xds::Resource> {
    let all = |list: &[SocketAddr]| {
        ByZone::from([("", list.iter().map(|at| Endpoint { address: at.ip(), port: at.port() }).collect())])
    };
    let service = |name| ServiceRef::new("shop", name);
    endpoints_with_failover(&service("api"), "main", &all(api), &[(&service("standby"), all(standby))])
}

#[tokio::test]
async fn calls_go_on_to_the_next_service_by_its_own_identity_and_come_back() {
    let both = Both::start("http").await;
    let [api, standby] = both.at();
    let mut set = both.of_web("http", "", &[api], &[standby]);
    let mut client = Proxy::start(set.clone()).await;
    for (endpoints, origin) in
        [([api].as_slice(), &both.api.1), (&[], &both.standby.1), (&[api], &both.api.1)]
    {
        set.insert(assigned(endpoints, &[standby]));
        client.configure(set.clone()).await;
        client.acked(type_url::ENDPOINT).await;
        let (mut app, mut behind) = client.ask(OUTBOUND, GET, origin).await;
        behind.send(OK).await;
        app.expect(OK).await;
    }
}

#[tokio::test]
async fn bytes_go_on_to_the_next_service_by_its_own_identity() {
    let both = Both::start("tcp").await;
    let [_, standby] = both.at();
    let client = Proxy::start(both.of_web("tcp", "", &[], &[standby])).await;
    let mut app = client.connect(OUTBOUND).await;
    app.send("hello").await;
    let mut behind = both.standby.1.accept().await;
    behind.expect("hello").await;
}

#[tokio::test]
async fn calls_over_http2_go_on_to_the_next_service_and_come_back() {
    let both = Both::start("http2").await;
    let [api, standby] = both.at();
    let mut set = both.of_web("http2", "", &[api], &[standby]);
    let mut client = Proxy::start(set.clone()).await;
    let mut caller = Caller::connect(&client, OUTBOUND).await;
    for (endpoints, origin) in [([api].as_slice(), &both.api.1), (&[], &both.standby.1)] {
        set.insert(assigned(endpoints, &[standby]));
        client.configure(set.clone()).await;
        client.acked(type_url::ENDPOINT).await;
        let serve = async {
            let mut served = Served::accept(origin).await;
            let (_, mut send) = served.next().await;
            let mut body = send.send_response(Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"hi"), true).unwrap();
            served
        };
        let (answer, _served) = tokio::join!(caller.get("/"), serve);
        assert_eq!((answer.head.status().as_u16(), answer.body.as_slice()), (200, b"hi".as_slice()));
    }
}

/// Neither may stand in for the other: not at its address, and not over a connection from before.
#[tokio::test]
async fn an_endpoint_must_be_the_service_that_it_is_said_to_be() {
    let both = Both::start("http").await;
    let [api, standby] = both.at();
    let mut set = both.of_web("http", "", &[api], &[]);
    let mut client = Proxy::start(set.clone()).await;
    let (mut app, mut behind) = client.ask(OUTBOUND, GET, &both.api.1).await;
    behind.send(OK).await;
    app.expect(OK).await;
    for (endpoints, of_standby, actual) in
        [([standby].as_slice(), [].as_slice(), "svc/standby"), (&[], &[api], "svc/api")]
    {
        set.insert(assigned(endpoints, of_standby));
        client.configure(set.clone()).await;
        client.acked(type_url::ENDPOINT).await;
        let mut app = client.connect(OUTBOUND).await;
        app.send(GET).await;
        let (head, body) = app.response().await;
        assert_eq!(header(&head, "x-outrider-reason"), Some("upstream_identity_mismatch"), "{head}");
        assert!(body.contains(actual), "{body}");
    }
}

#[tokio::test]
async fn endpoints_of_the_next_service_are_checked_by_its_own_identity() {
    let both = Both::start("http").await;
    let [api, standby] = both.at();
    let policy = ", healthCheck: {type: TCP, interval: 100ms, timeout: 100ms, unhealthyThreshold: 1}";
    // At the address of `api` there is another service, and `standby` is what it is.
    let wrong = both.of_web("http", policy, &[standby], &[api]);
    let mut client = Proxy::start(wrong).await;
    client.counted("both are ill", |stats| stats.clusters[OUTBOUND].unused.len() == 2).await;
    client.configure(both.of_web("http", policy, &[api], &[standby])).await;
    client.counted("both are well", |stats| stats.clusters[OUTBOUND].unused.is_empty()).await;
}

/// Who has a key has one endpoint of each service, wherever its calls go.
#[tokio::test]
async fn keys_keep_their_endpoint_within_each_service() {
    let keyed = ", balancing: {policy: ring-hash, hashKeys: [{type: header, name: x-user}]}";
    let yaml = documents("http", 1, keyed).replace("mtls: required", "mtls: off");
    let mut names = ["a0", "a1", "a2", "s0", "s1", "s2"].into_iter();
    let mut three = Vec::new();
    for _ in 0..2 {
        let mut list = Vec::new();
        for name in names.by_ref().take(3) {
            list.push(Origin::bind().await.answer_all(name));
        }
        three.push(list);
    }
    let (api, standby) = (three.remove(0), three.remove(0));
    let mut set = compiled(&yaml, "shop/web");
    set.insert(assigned(&api, &standby));
    let mut client = Proxy::start(set.clone()).await;
    let mut app = client.connect(OUTBOUND).await;
    let mut rounds: Vec<Vec<String>> = Vec::new();
    for own in [api.as_slice(), &[], &api, &[]] {
        set.insert(assigned(own, &standby));
        client.configure(set.clone()).await;
        client.acked(type_url::ENDPOINT).await;
        let mut seen = Vec::new();
        for user in (0..20).chain(0..20) {
            app.send(format!("GET / HTTP/1.1\r\nHost: api\r\nX-User: {user}\r\n\r\n")).await;
            seen.push(app.response().await.1);
        }
        assert_eq!(seen[..20], seen[20..], "the same key, the same endpoint");
        let used: std::collections::BTreeSet<&String> = seen.iter().collect();
        let of = if own.is_empty() { "s" } else { "a" };
        assert!(used.len() == 3 && used.iter().all(|name| name.starts_with(of)), "{used:?}");
        rounds.push(seen);
    }
    assert_eq!((&rounds[0], &rounds[1]), (&rounds[2], &rounds[3]));
}
