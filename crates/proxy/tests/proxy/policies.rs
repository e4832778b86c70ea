//! From the documents of routes and policies to what callers and endpoints see.
//!
//! HTTP/1.1 and bytes; gRPC is in `http2::documents`, HTTPRoute also in `routes`.

use std::collections::BTreeMap;
use std::time::Duration;

use outrider_xds::ResourceSet;
use outrider_xds_types::type_url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::balancing::{fast_and_slow, slow_is_avoided};
use super::resilience::{Scripted, answer, left_for, reason, refusing, status};
use super::support::*;

pub const CANARY: &str = "shop/canary/main";

/// What leads `shop/web` to `shop/api`, beside which there is `shop/canary`, by these documents.
pub fn declared(protocol: &str, documents: &str) -> ResourceSet {
    let canary = format!(
        "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: canary, namespace: shop}}
spec: {{role: server, ports: [{{name: main, port: 8080, protocol: {protocol}}}]}}
{documents}"
    );
    compiled(&pair(protocol, "off", 1, &canary), "shop/web")
}

/// A policy of the whole namespace.
pub fn policy(spec: &str) -> String {
    format!(
        "---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: all, namespace: shop}}
spec: {{{spec}}}
"
    )
}

fn with_policy(spec: &str, origins: &[std::net::SocketAddr]) -> ResourceSet {
    let mut set = declared("http", &policy(spec));
    set.insert(assignment(ENDPOINTS, origins));
    set
}

/// Whatever the answers are that it takes long for: who only fails is not for ever somebody of whom nothing is known.
#[tokio::test]
async fn a_policy_of_peak_ewma_avoids_who_is_slow() {
    for status in [200, 500] {
        let set = with_policy("balancing: {policy: peak-ewma}", &fast_and_slow(status).await);
        slow_is_avoided(&set, status).await;
    }
}

/// An endpoint that answers, but for requests to `/hold`.
async fn holding(name: &'static str) -> std::net::SocketAddr {
    let origin = Origin::bind().await;
    let address = origin.address();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = origin.listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while matches!(tcp.read_buf(&mut seen).await, Ok(1..)) {
                    if seen.ends_with(b"\r\n\r\n") && !seen.starts_with(b"GET /hold") {
                        seen.clear();
                        if tcp.write_all(&answer(200, name)).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

/// Neither who is busy counts (as by least request), nor who was last (as by round robin).
#[tokio::test]
async fn a_policy_of_random_takes_any() {
    let addresses = [holding("a").await, holding("b").await];
    let mut proxy = Proxy::start(with_policy("balancing: {policy: random}", &addresses)).await;
    let mut held = proxy.connect(OUTBOUND).await;
    held.send("GET /hold HTTP/1.1\r\nHost: api\r\n\r\n").await;
    proxy.counted("one is busy", |stats| stats.listeners[OUTBOUND].active_requests == 1).await;
    let mut peer = proxy.connect(OUTBOUND).await;
    let (mut seen, mut last, mut again) = (BTreeMap::<String, u32>::new(), String::new(), 0);
    for _ in 0..200 {
        peer.send(GET).await;
        let name = peer.response().await.1;
        again += u32::from(name == last);
        *seen.entry(name.clone()).or_default() += 1;
        last = name;
    }
    // Seven standard deviations from the middle.
    assert!(seen.len() == 2 && seen.values().all(|count| (50..150).contains(count)), "{seen:?}");
    assert!((50..150).contains(&again), "{again} of 200 went where the one before went");
}

/// One of four answers badly three times in five, or not at all: never often enough in a row, and still too often.
#[tokio::test]
async fn policies_of_rates_single_out_who_fails_now_and_then() {
    const OTHERWISE: &str = "consecutiveGatewayErrors: 0, consecutiveLocalOriginFailures: 0, interval: 1s, \
                             baseEjectionTime: 1h, maxEjectionTime: 1h";
    for (rate, answers, said) in [
        (
            "successRate: {minimumHosts: 4, requestVolume: 10, stdevFactor: 1000}",
            true,
            "% of its answers are good, of the others' at least",
        ),
        (
            "failurePercentage: {threshold: 45, minimumHosts: 4, requestVolume: 10}",
            true,
            "% of its requests failed",
        ),
        (
            "failurePercentage: {threshold: 45, minimumHosts: 4, requestVolume: 10}",
            false,
            "% of its requests failed",
        ),
    ] {
        let bad = Scripted::start(move |number, _| match (number % 5 < 3, answers) {
            (false, _) => Some(answer(200, "ok")),
            (true, true) => Some(answer(503, "no")),
            (true, false) => None,
        })
        .await;
        let mut addresses = vec![bad.address];
        for _ in 0..3 {
            addresses.push(Scripted::always(200, "ok").await.address);
        }
        let set = with_policy(&format!("outlierEjection: {{{OTHERWISE}, {rate}}}"), &addresses);
        let mut proxy = Proxy::start(set).await;
        let mut client = proxy.connect(OUTBOUND).await;
        let unused = soon("the ejection", async {
            loop {
                for _ in 0..20 {
                    status(&mut client, GET).await;
                }
                let unused = proxy.stats().await.clusters[OUTBOUND].unused.clone();
                if !unused.is_empty() {
                    return unused;
                }
            }
        })
        .await;
        let why = unused.get(&bad.address.to_string()).unwrap_or_else(|| panic!("{unused:?}"));
        assert!(unused.len() == 1 && why.starts_with("ejected: ") && why.contains(said), "{unused:?}");
        let before = bad.hits();
        for _ in 0..40 {
            assert_eq!(status(&mut client, GET).await, 200, "{rate}");
        }
        assert_eq!(bad.hits(), before, "{rate}");
    }
}

fn route(kind: &str, rule: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    format!(
        "---
apiVersion: gateway.networking.k8s.io/{version}
kind: {kind}
metadata: {{name: api, namespace: shop}}
spec: {{parentRefs: [{{kind: Service, name: api}}], rules: [{{{rule}}}]}}
"
    )
}

fn shares(stable: u32, canary: u32) -> String {
    format!(
        "backendRefs: [{{name: api, port: 8080, weight: {stable}}}, {{name: canary, port: 8080, weight: {canary}}}]"
    )
}

#[tokio::test]
async fn a_tcp_route_shares_connections_by_weight() {
    let (stable, canary) = (Origin::bind().await, Origin::bind().await);
    let endpoints = [assignment(ENDPOINTS, &[stable.address()]), assignment(CANARY, &[canary.address()])];
    let (_, _) = (stable.answer_all("stable"), canary.answer_all("canary"));
    let of = |stable: u32, canary: u32| {
        let mut set = declared("tcp", &route("TCPRoute", &shares(stable, canary)));
        for resource in &endpoints {
            set.insert(resource.clone());
        }
        set
    };
    let mut proxy = Proxy::start(of(1, 0)).await;
    for (weights, range) in [((1, 0), 0..1), ((3, 1), 12..69), ((0, 1), 160..161)] {
        proxy.configure(of(weights.0, weights.1)).await;
        if weights != (1, 0) {
            proxy.acked(type_url::LISTENER).await;
        }
        let mut on_canary = 0;
        for _ in 0..160 {
            let mut client = proxy.connect(OUTBOUND).await;
            client.send(GET).await;
            on_canary += usize::from(client.response().await.1 == "canary");
        }
        // Five standard deviations from the middle, where chance decides.
        assert!(range.contains(&on_canary), "{weights:?}: {on_canary} of 160");
    }
}

/// The limit of one try ends that try and no other: with nobody else to ask, and with somebody.
#[tokio::test]
async fn the_limit_of_a_backend_request_ends_one_try() {
    let rule = "timeouts: {request: 1h, backendRequest: 200ms}, backendRefs: [{name: api, port: 8080}]";
    let retries = |attempts: u32| policy(&format!("retries: {{attempts: {attempts}, retryOn: [reset]}}"));
    let silent = Origin::bind().await;
    for attempts in [0, 1] {
        let good = Scripted::always(200, "ok").await;
        let mut set = declared("http", &(route("HTTPRoute", rule) + &retries(attempts)));
        let both = [silent.address(), good.address];
        set.insert(assignment(ENDPOINTS, &both[..1 + attempts as usize]));
        let proxy = Proxy::start(set).await;
        if attempts == 0 {
            let mut client = proxy.connect(OUTBOUND).await;
            client.send(GET).await;
            assert_eq!(reason(&mut client, 504).await.0, "request_timeout");
            silent.accept().await;
            continue;
        }
        left_for(&proxy, &silent, &good, Duration::from_millis(200)).await;
    }
}

/// N43: who has a key keeps its version while the weight of the new one grows.
#[tokio::test]
async fn n43_a_key_of_a_policy_changes_its_version_once_while_weights_of_a_route_move() {
    const KEYS: usize = 60;
    let (stable, canary) = (Origin::bind().await, Origin::bind().await);
    let endpoints = [assignment(ENDPOINTS, &[stable.address()]), assignment(CANARY, &[canary.address()])];
    let (_, _) = (stable.answer_all("stable"), canary.answer_all("canary"));
    let keys = policy("balancing: {policy: maglev, hashKeys: [{type: header, name: x-user}]}");
    let of = |weight: u32| {
        let mut set = declared("http", &(route("HTTPRoute", &shares(100 - weight, weight)) + &keys));
        for resource in &endpoints {
            set.insert(resource.clone());
        }
        set
    };
    let mut proxy = Proxy::start(of(0)).await;
    let mut client = proxy.connect(OUTBOUND).await;
    let mut on_canary = [false; KEYS];
    for weight in [0, 5, 20, 50, 80, 100] {
        if weight > 0 {
            proxy.configure(of(weight)).await;
            proxy.acked(type_url::ROUTE).await;
        }
        for (key, was) in on_canary.iter_mut().enumerate() {
            for _ in 0..2 {
                client.send(format!("GET / HTTP/1.1\r\nHost: api\r\nX-User: user-{key}\r\n\r\n")).await;
                let is = client.response().await.1 == "canary";
                assert!(is || !*was, "user-{key} went back at {weight}");
                *was |= is;
            }
        }
        let moved = on_canary.iter().filter(|on| **on).count();
        match weight {
            0 => assert_eq!(moved, 0),
            50 => assert!((KEYS / 5..KEYS * 4 / 5).contains(&moved), "{moved} of {KEYS}"),
            100 => assert_eq!(moved, KEYS),
            _ => {}
        }
    }
}

/// What is repeated by which conditions, for which methods.
#[tokio::test]
async fn retries_of_a_policy_are_for_its_conditions_and_methods() {
    const POST: &str = "POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\nhi";
    const BACKOFF: &str = "backoff: {baseInterval: 1ms, maxInterval: 1ms}";
    // Of fewer requests than there may be retries in any case.
    const REQUESTS: usize = 20;
    for (retries, first, request, repeated) in [
        ("attempts: 1, retryOn: [retriable-status-codes], statusCodes: [429]", 429, GET, true),
        ("attempts: 1, retryOn: [retriable-status-codes], statusCodes: [429]", 500, GET, false),
        ("attempts: 1, retryOn: [retriable-status-codes], statusCodes: [429]", 429, POST, false),
        (
            "attempts: 1, retryOn: [retriable-status-codes], statusCodes: [429], methods: [POST]",
            429,
            POST,
            true,
        ),
        (
            "attempts: 1, retryOn: [retriable-status-codes], statusCodes: [429], methods: [POST]",
            429,
            GET,
            false,
        ),
        ("attempts: 1, retryOn: [5xx]", 500, GET, true),
        ("attempts: 1, retryOn: [gateway-error]", 500, GET, false),
        ("attempts: 0", 503, GET, false),
    ] {
        let (bad, good) = (Scripted::always(first, "no").await, Scripted::always(200, "ok").await);
        let spec = format!(
            "retries: {{{retries}, {BACKOFF}}}, balancing: {{policy: round-robin}}, \
             outlierEjection: {{maxEjectionPercent: 0}}"
        );
        let proxy = Proxy::start(with_policy(&spec, &[bad.address, good.address])).await;
        let mut client = proxy.connect(OUTBOUND).await;
        let mut failed = 0;
        for _ in 0..REQUESTS {
            failed += usize::from(status(&mut client, request).await == first);
        }
        assert!(bad.hits() > 0, "{retries}");
        let expected = if repeated { 0 } else { bad.hits() };
        assert_eq!(failed, expected, "{retries}: {first} to {request}");
        assert_eq!(bad.hits() + good.hits(), REQUESTS + if repeated { bad.hits() } else { 0 }, "{retries}");
    }
    // Nobody was asked, whatever the method is.
    let good = Scripted::always(200, "ok").await;
    let spec = "retries: {attempts: 1, retryOn: [connect-failure]}";
    let proxy = Proxy::start(with_policy(spec, &[refusing().await, good.address])).await;
    let mut client = proxy.connect(OUTBOUND).await;
    for _ in 0..REQUESTS {
        assert_eq!(status(&mut client, POST).await, 200);
    }
}

/// N47.
#[tokio::test]
async fn n47_the_budget_of_a_policy_bounds_what_a_service_that_fails_gets() {
    const OFFERED: usize = 200;
    for (budget, share) in
        [("percent: 0, minRetryConcurrency: 0", 0), ("percent: 20, minRetryConcurrency: 1", 20)]
    {
        let origin = Scripted::always(503, "no").await;
        let spec = format!(
            "retries: {{attempts: 3, retryOn: [gateway-error], \
             backoff: {{baseInterval: 1ms, maxInterval: 1ms}}, budget: {{{budget}}}}}"
        );
        let mut proxy = Proxy::start(with_policy(&spec, &[origin.address])).await;
        let mut client = proxy.connect(OUTBOUND).await;
        let began = std::time::Instant::now();
        for _ in 0..OFFERED {
            assert_eq!(status(&mut client, GET).await, 503);
        }
        let again = origin.hits() - OFFERED;
        // One a second there may be in any case, counted over ten seconds.
        let least = 10 * (1 + began.elapsed().as_secs() as usize / 10);
        match share {
            0 => assert_eq!(again, 0),
            _ => assert!(again > 0 && again <= OFFERED * share / 100 + least, "{again} of {OFFERED}"),
        }
        let stats = proxy.stats().await;
        let cluster = &stats.clusters[OUTBOUND];
        assert_eq!(cluster.retries, again as u64);
        assert!(cluster.retries_refused > 0, "{cluster:?}");
    }
}
