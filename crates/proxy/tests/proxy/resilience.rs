//! What callers notice, or do not, of endpoints that fail and of what is too much.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use outrider_xds::ResourceSet;
use outrider_xds_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use outrider_xds_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget;
use outrider_xds_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster, OutlierDetection};
use outrider_xds_types::pb::envoy::config::core::v3::HealthCheck;
use outrider_xds_types::pb::envoy::config::core::v3::health_check::{
    HealthChecker, HttpHealthCheck, TcpHealthCheck,
};
use outrider_xds_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::{
    HeaderMatcher, RetryPolicy, RouteConfiguration, VirtualHost,
};
use outrider_xds_types::pb::google::protobuf::{Duration as PbDuration, UInt32Value};
use outrider_xds_types::type_url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;

const POST: &str = "POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\nhi";

pub fn n(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub fn ms(millis: i64) -> Option<PbDuration> {
    Some(PbDuration { seconds: millis / 1000, nanos: (millis % 1000) as i32 * 1_000_000 })
}

pub fn answer(status: u16, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A request as an origin saw it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub head: String,
    pub body: usize,
}

/// An origin that answers request number N, counted from 0, with what `script` says, or by closing the connection.
pub struct Scripted {
    pub address: SocketAddr,
    hits: Arc<AtomicUsize>,
}

impl Scripted {
    pub async fn start(script: impl Fn(usize, &Asked) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let origin = Origin::bind().await;
        let (address, hits) = (origin.address(), Arc::new(AtomicUsize::new(0)));
        let (script, counted) = (Arc::new(script), Arc::clone(&hits));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = origin.listener.accept().await {
                let (script, counted) = (Arc::clone(&script), Arc::clone(&counted));
                tokio::spawn(async move { serve(Peer::new(tcp), &counted, &*script).await });
            }
        });
        Self { address, hits }
    }

    pub async fn always(status: u16, body: &'static str) -> Self {
        Self::start(move |_, _| Some(answer(status, body))).await
    }

    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

async fn serve(
    mut peer: Peer,
    hits: &AtomicUsize,
    script: &(dyn Fn(usize, &Asked) -> Option<Vec<u8>> + Sync),
) {
    loop {
        let end = loop {
            if let Some(at) = peer.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !matches!(peer.tcp.read_buf(&mut peer.buffer).await, Ok(1..)) {
                return;
            }
        };
        let head = String::from_utf8(peer.buffer.drain(..end).collect()).unwrap();
        let body = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        while peer.buffer.len() < body {
            if !matches!(peer.tcp.read_buf(&mut peer.buffer).await, Ok(1..)) {
                return;
            }
        }
        peer.buffer.drain(..body);
        let number = hits.fetch_add(1, Ordering::SeqCst);
        let Some(answer) = script(number, &Asked { head, body }) else { return };
        if peer.tcp.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// An address that refuses connections.
pub async fn refusing() -> SocketAddr {
    Origin::bind().await.address()
}

pub fn set(protocol: &str, origins: &[SocketAddr]) -> ResourceSet {
    let mut set = compiled(&pair(protocol, "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, origins));
    set
}

pub fn hosts(set: &mut ResourceSet, change: impl Fn(&mut VirtualHost)) {
    edit(set, type_url::ROUTE, OUTBOUND, |table: &mut RouteConfiguration| {
        table.virtual_hosts.iter_mut().for_each(change);
    });
}

/// Every route repeats by this policy.
pub fn retrying(set: &mut ResourceSet, policy: &RetryPolicy) {
    use outrider_xds_types::pb::envoy::config::route::v3::route::Action;
    hosts(set, |host| {
        for route in &mut host.routes {
            if let Some(Action::Route(action)) = &mut route.action {
                action.retry_policy = Some(policy.clone());
            }
        }
    });
}

pub fn on(conditions: &str, retries: u32) -> RetryPolicy {
    RetryPolicy { retry_on: conditions.to_owned(), num_retries: n(retries), ..Default::default() }
}

pub fn cluster(set: &mut ResourceSet, change: impl FnOnce(&mut Cluster)) {
    edit(set, type_url::CLUSTER, OUTBOUND, change);
}

pub fn thresholds(set: &mut ResourceSet, thresholds: Thresholds) {
    cluster(set, |cluster| {
        cluster.circuit_breakers =
            Some(CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
    });
}

pub async fn status(client: &mut Peer, request: &str) -> u16 {
    client.send(request).await;
    let (head, _) = client.response().await;
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

pub async fn reason(client: &mut Peer, status: u16) -> (String, String) {
    let (head, body) = client.response().await;
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    (header(&head, "x-outrider-reason").unwrap_or_else(|| panic!("{head}")).to_owned(), body)
}

#[tokio::test]
async fn an_answer_that_is_to_be_repeated_is_asked_of_another_endpoint() {
    let (bad, good) = (Scripted::always(503, "no").await, Scripted::always(200, "ok").await);
    let mut set = set("http", &[bad.address, good.address]);
    retrying(&mut set, &on("gateway-error", 1));
    let mut proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    // One retry is enough only if it never goes where the first attempt went. Fewer than the budget has in any case.
    for _ in 0..25 {
        client.send(GET).await;
        client.expect("HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nok").await;
    }
    assert!(bad.hits() > 0 && good.hits() == 25);
    let retries = bad.hits() as u64;
    proxy.counted("retries", |stats| stats.clusters[OUTBOUND].retries == retries).await;
    let cluster = &proxy.stats().await.clusters[OUTBOUND];
    assert_eq!(
        (cluster.connections, cluster.requests),
        (2, 25 + retries),
        "the answers passed over leave no mess"
    );
}

#[tokio::test]
async fn only_what_may_happen_twice_is_repeated() {
    let origin = Scripted::start(|_, asked| match &asked.head {
        head if head.starts_with("POST /reset") => None,
        _ => Some(answer(500, "no")),
    })
    .await;
    let named = HeaderMatcher {
        name: "idempotency-key".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..Default::default()
    };
    let cases = [
        (vec![], GET.to_owned(), 3),
        (vec![], POST.to_owned(), 1),
        // N46: it acts, and then it resets.
        (vec![], POST.replace("POST /", "POST /reset"), 1),
        (vec![named.clone()], POST.replace("Host", "Idempotency-Key: 1\r\nHost"), 3),
        (vec![named], GET.to_owned(), 1),
    ];
    for (retriable_request_headers, request, expected) in cases {
        let mut set = set("http", &[origin.address]);
        retrying(&mut set, &RetryPolicy { retriable_request_headers, ..on("5xx,reset", 2) });
        let proxy = Proxy::start(set).await;
        let mut client = proxy.connect(OUTBOUND).await;
        let before = origin.hits();
        status(&mut client, &request).await;
        assert_eq!(origin.hits() - before, expected, "{request}");
    }
}

/// Edge cases 41 and 13.
#[tokio::test]
async fn a_body_is_sent_again_whole_or_not_at_all() {
    let lengths = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&lengths);
    let origin = Scripted::start(move |number, asked| {
        seen.lock().unwrap().push(asked.body);
        match number {
            // Before and after an answer: a connection that breaks, and a bad answer.
            0 => None,
            1 | 3 => Some(answer(503, "no")),
            _ => Some(answer(200, "ok")),
        }
    })
    .await;
    let mut set = set("http", &[origin.address]);
    retrying(&mut set, &on("gateway-error", 2));
    let proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    let mut put = async |length: usize| {
        let head = format!("PUT / HTTP/1.1\r\nHost: api\r\nContent-Length: {length}\r\n\r\n");
        client.send(head).await;
        for part in vec![b'b'; length].chunks(10_000) {
            client.send(part).await;
            tokio::task::yield_now().await;
        }
        let (head, _) = client.response().await;
        head.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(put(45_000).await, "200");
    assert_eq!(*lengths.lock().unwrap(), [45_000; 3]);
    // More than is kept: what there is goes to the caller, and nobody saw a part.
    assert_eq!(put(200_000).await, "503");
    assert_eq!(lengths.lock().unwrap()[3..], [200_000]);
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_left_for_another_endpoint() {
    let silent = Origin::bind().await;
    let good = Scripted::always(200, "ok").await;
    let mut set = set("http", &[silent.address(), good.address]);
    retrying(&mut set, &RetryPolicy { per_try_timeout: ms(200), ..on("reset", 1) });
    left_for(&Proxy::start(set).await, &silent, &good, Duration::from_millis(200)).await;
}

/// Asks until the silent endpoint was tried, and expects the good one's answer each time. What that one gave only after the
/// limit of a try is not taken, rightly, once both were asked.
pub async fn left_for(proxy: &Proxy, silent: &Origin, good: &Scripted, limit: Duration) {
    let asking = async {
        loop {
            let (mut client, hits) = (proxy.connect(OUTBOUND).await, good.hits());
            let began = std::time::Instant::now();
            let status = status(&mut client, GET).await;
            let took = began.elapsed();
            let mut tried = 0;
            while !silent.is_untouched().await {
                tried += 1;
            }
            if status != 200 {
                assert!(tried == 1 && took >= limit * 9 / 5, "{status} after {took:?}, {tried} of it silent");
                soon("the good one was asked", async {
                    while good.hits() == hits {
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            } else if tried > 0 {
                return;
            }
        }
    };
    soon("the silent one is tried", asking).await;
}

/// N47.
#[tokio::test]
async fn a_service_that_fails_altogether_gets_a_fifth_more() {
    let origin = Scripted::always(503, "no").await;
    let mut set = set("http", &[origin.address]);
    let mut policy = on("gateway-error", 3);
    policy.retry_back_off =
        Some(outrider_xds_types::pb::envoy::config::route::v3::retry_policy::RetryBackOff {
            base_interval: ms(1),
            max_interval: ms(1),
        });
    retrying(&mut set, &policy);
    let budget = RetryBudget { min_retry_concurrency: n(1), ..Default::default() };
    thresholds(&mut set, Thresholds { retry_budget: Some(budget), ..Default::default() });
    let mut proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    let began = std::time::Instant::now();
    const OFFERED: usize = 400;
    for _ in 0..OFFERED {
        assert_eq!(status(&mut client, GET).await, 503);
    }
    let again = origin.hits() - OFFERED;
    // Ten in every ten seconds there may be in any case.
    let least = 10 * (1 + began.elapsed().as_secs() as usize / 10);
    assert!(again > 0 && again <= OFFERED / 5 + least, "{again}");
    let stats = proxy.stats().await;
    let cluster = &stats.clusters[OUTBOUND];
    assert_eq!(cluster.retries, again as u64);
    assert!(cluster.retries_refused > 0, "{cluster:?}");
}

fn ejecting(set: &mut ResourceSet, detection: OutlierDetection) {
    cluster(set, |cluster| cluster.outlier_detection = Some(detection));
}

#[tokio::test]
async fn an_endpoint_that_fails_is_left_alone_by_all_workers_and_comes_back() {
    let (bad, good) = (Scripted::always(500, "no").await, Scripted::always(200, "ok").await);
    let mut set = set("http", &[bad.address, good.address]);
    let detection = OutlierDetection {
        consecutive_5xx: n(3),
        max_ejection_percent: n(50),
        base_ejection_time: ms(3_600_000),
        max_ejection_time: ms(3_600_000),
        ..Default::default()
    };
    ejecting(&mut set, detection.clone());
    let mut proxy = Proxy::start_with(set.clone(), 2).await;
    soon("ready", proxy.wait_ready()).await;
    for _ in 0..60 {
        let mut client = proxy.connect(OUTBOUND).await;
        status(&mut client, GET).await;
        // What a worker learns of an answer it knows only after it sent that, and before it tells numbers.
        proxy.stats().await;
    }
    assert_eq!(bad.hits(), 3, "of both workers together");
    let stats = proxy.stats().await;
    let why = &stats.clusters[OUTBOUND].unused[&bad.address.to_string()];
    assert!(why.starts_with("ejected: 3 answers of 5xx in a row, until "), "{why}");
    assert_eq!(stats.clusters[OUTBOUND].ejections, 1);
    // Gone and back is judged afresh.
    set.insert(assignment(ENDPOINTS, &[good.address]));
    proxy.configure(set.clone()).await;
    proxy.counted("gone", |stats| stats.clusters[OUTBOUND].unused.is_empty()).await;
    set.insert(assignment(ENDPOINTS, &[bad.address, good.address]));
    ejecting(&mut set, OutlierDetection { base_ejection_time: ms(300), ..detection });
    proxy.configure(set).await;
    soon("asked again, and again after its time", async {
        while bad.hits() < 9 {
            let mut client = proxy.connect(OUTBOUND).await;
            status(&mut client, GET).await;
        }
    })
    .await;
    let ejections = proxy.stats().await.clusters[OUTBOUND].ejections;
    assert!(ejections >= 2, "{ejections}");
}

/// Nobody said anything about retries here.
#[tokio::test]
async fn an_endpoint_that_refuses_is_not_noticed_by_callers_and_is_ejected() {
    let (gone, good) = (refusing().await, Scripted::always(200, "ok").await);
    let mut set = set("http", &[gone, good.address]);
    ejecting(&mut set, OutlierDetection { max_ejection_percent: n(50), ..Default::default() });
    let mut proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    for number in 0..60 {
        let request = if number % 2 == 0 { GET } else { POST };
        assert_eq!(status(&mut client, request).await, 200);
    }
    let cluster = &proxy.stats().await.clusters[OUTBOUND];
    assert_eq!((cluster.connect_failures, cluster.retries, cluster.ejections), (5, 5, 1));
    let why = &cluster.unused[&gone.to_string()];
    assert!(why.starts_with("ejected: 5 answers of 5xx in a row, until "), "{why}");
    assert_eq!(good.hits(), 60);
}

/// What nobody can mistake for an end.
pub fn reset(peer: Peer) {
    socket2::SockRef::from(&peer.tcp).set_linger(Some(Duration::ZERO)).unwrap();
}

/// N48: a caller that leaves, and a limit of ours.
#[tokio::test]
async fn what_is_not_the_endpoints_doing_does_not_eject_it() {
    let (a, b) = (Origin::bind().await, Origin::bind().await);
    let mut set = set("http", &[a.address(), b.address()]);
    thresholds(&mut set, Thresholds { max_requests: n(1), ..Default::default() });
    let detection =
        OutlierDetection { consecutive_5xx: n(1), max_ejection_percent: n(50), ..Default::default() };
    ejecting(&mut set, detection);
    let mut proxy = Proxy::start(set).await;
    for left in 1..=6 {
        let mut client = proxy.connect(OUTBOUND).await;
        client.send(GET).await;
        let mut endpoint = tokio::select! { peer = a.accept() => peer, peer = b.accept() => peer };
        endpoint.head().await;
        let mut other = proxy.connect(OUTBOUND).await;
        other.send(GET).await;
        assert_eq!(reason(&mut other, 503).await.0, "overload_requests");
        reset(client);
        proxy
            .counted("left", |stats| stats.listeners[OUTBOUND].reasons.get("client_gone") == Some(&left))
            .await;
    }
    assert_eq!(proxy.stats().await.clusters[OUTBOUND].ejections, 0);
}

/// N48: one of two is left, whatever it does; and it is still asked.
#[tokio::test]
async fn the_last_endpoint_is_never_ejected() {
    let (a, b) = (Scripted::always(503, "a").await, Scripted::always(503, "b").await);
    let mut set = set("http", &[a.address, b.address]);
    let detection =
        OutlierDetection { consecutive_5xx: n(1), max_ejection_percent: n(100), ..Default::default() };
    ejecting(&mut set, detection);
    let mut proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    for _ in 0..30 {
        assert_eq!(status(&mut client, GET).await, 503);
    }
    assert_eq!(a.hits() + b.hits(), 30);
    assert_eq!(a.hits().min(b.hits()), 1);
    assert_eq!(proxy.stats().await.clusters[OUTBOUND].unused.len(), 1);
}

#[tokio::test]
async fn connections_that_are_refused_eject_for_bytes_too() {
    let good = Origin::bind().await;
    let gone = refusing().await;
    let mut set = set("tcp", &[gone, good.address()]);
    let detection = OutlierDetection {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: n(2),
        max_ejection_percent: n(50),
        ..Default::default()
    };
    ejecting(&mut set, detection);
    let mut proxy = Proxy::start(set).await;
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let mut peer = good.accept().await;
            peer.send("hello").await;
            kept.push(peer);
        }
    });
    soon("ejected", async {
        while proxy.stats().await.clusters[OUTBOUND].unused.is_empty() {
            let mut client = proxy.connect(OUTBOUND).await;
            client.finish().await;
            let _ = client.tcp.read(&mut [0; 8]).await;
        }
    })
    .await;
    let failures = proxy.stats().await.clusters[OUTBOUND].connect_failures;
    for _ in 0..10 {
        proxy.connect(OUTBOUND).await.expect("hello").await;
    }
    let stats = proxy.stats().await;
    assert_eq!(stats.clusters[OUTBOUND].connect_failures, failures);
    let why = &stats.clusters[OUTBOUND].unused[&gone.to_string()];
    assert!(why.starts_with("ejected: 2 requests without an answer in a row, until "), "{why}");
}

#[tokio::test]
async fn requests_wait_for_a_connection_in_bounded_number() {
    let origin = Origin::bind().await;
    let mut set = set("http", &[origin.address()]);
    thresholds(
        &mut set,
        Thresholds { max_connections: n(1), max_pending_requests: n(1), ..Default::default() },
    );
    let mut proxy = Proxy::start(set).await;
    let (mut first, mut endpoint) = proxy.ask(OUTBOUND, GET, &origin).await;
    let mut second = proxy.connect(OUTBOUND).await;
    second.send(GET).await;
    proxy.counted("both", |stats| stats.listeners[OUTBOUND].active_requests == 2).await;
    let mut third = proxy.connect(OUTBOUND).await;
    third.send(GET).await;
    assert_eq!(reason(&mut third, 503).await.0, "overload_pending");
    endpoint.send(OK).await;
    first.expect(OK).await;
    // On the connection that is free now.
    endpoint.head().await;
    endpoint.send(OK).await;
    second.expect(OK).await;
    assert!(origin.is_untouched().await);
    proxy
        .counted("reason", |stats| stats.listeners[OUTBOUND].reasons.get("overload_pending") == Some(&1))
        .await;
}

#[tokio::test]
async fn waiting_for_a_connection_ends_and_says_why() {
    let origin = Origin::bind().await;
    let mut set = set("http", &[origin.address()]);
    thresholds(&mut set, Thresholds { max_connections: n(1), ..Default::default() });
    cluster(&mut set, |cluster| cluster.connect_timeout = ms(300));
    let proxy = Proxy::start(set).await;
    let (_first, _endpoint) = proxy.ask(OUTBOUND, GET, &origin).await;
    let mut second = proxy.connect(OUTBOUND).await;
    second.send(GET).await;
    let (reason, body) = reason(&mut second, 503).await;
    assert_eq!(reason, "overload_connections");
    assert!(body.contains("1 connections, 300ms waited"), "{body}");
}

/// A stream has nothing to wait for: it may never end.
#[tokio::test]
async fn streams_above_the_limit_end_at_once_and_give_their_place_back() {
    let origin = Origin::bind().await;
    let mut set = set("tcp", &[origin.address()]);
    thresholds(&mut set, Thresholds { max_connections: n(1), max_requests: n(0), ..Default::default() });
    let mut proxy = Proxy::start_with(set, 2).await;
    soon("ready", proxy.wait_ready()).await;
    let (mut first, mut endpoint) = proxy.open_stream(OUTBOUND, &origin).await;
    for refused in 1..=3 {
        let address = proxy.address(OUTBOUND);
        // The reset may come so early that there never was a connection.
        let other = async { tokio::net::TcpStream::connect(address).await?.read(&mut [0; 1]).await };
        soon("the end", other).await.unwrap_err();
        proxy
            .counted("reason", |stats| {
                stats.listeners[OUTBOUND].reasons.get("overload_connections") == Some(&refused)
            })
            .await;
    }
    first.finish().await;
    endpoint.rest().await.unwrap();
    endpoint.finish().await;
    first.rest().await.unwrap();
    proxy.counted("over", |stats| stats.clusters[OUTBOUND].active_connections == 0).await;
    proxy.open_stream(OUTBOUND, &origin).await;
}

#[tokio::test]
async fn requests_above_the_limit_are_refused() {
    let origin = Origin::bind().await;
    let mut set = set("http", &[origin.address()]);
    thresholds(&mut set, Thresholds { max_requests: n(1), ..Default::default() });
    let mut proxy = Proxy::start_with(set, 2).await;
    soon("ready", proxy.wait_ready()).await;
    let (mut first, mut endpoint) = proxy.ask(OUTBOUND, GET, &origin).await;
    for _ in 0..4 {
        let mut other = proxy.connect(OUTBOUND).await;
        other.send(GET).await;
        assert_eq!(reason(&mut other, 503).await.0, "overload_requests");
    }
    endpoint.send(OK).await;
    first.expect(OK).await;
    first.send(GET).await;
    endpoint.head().await;
}

fn check(checker: HealthChecker) -> HealthCheck {
    HealthCheck {
        timeout: ms(5000),
        interval: ms(20),
        no_traffic_interval: ms(20),
        unhealthy_threshold: n(2),
        healthy_threshold: n(2),
        health_checker: Some(checker),
        ..Default::default()
    }
}

#[tokio::test]
async fn endpoints_that_fail_their_checks_are_not_used_until_they_pass() {
    let ready = Arc::new(AtomicBool::new(true));
    let says = Arc::clone(&ready);
    let checks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&checks);
    let a = Scripted::start(move |_, asked| {
        if !asked.head.starts_with("GET /ready HTTP/1.1\r\nHost: health.test\r\n") {
            return Some(answer(200, "a"));
        }
        counted.fetch_add(1, Ordering::SeqCst);
        Some(if says.load(Ordering::SeqCst) { answer(204, "") } else { answer(500, "") })
    })
    .await;
    let b = Scripted::always(200, "b").await;
    let mut set = set("http", &[a.address, b.address]);
    let http = HttpHealthCheck {
        host: "health.test".into(),
        path: "/ready".into(),
        expected_statuses: vec![outrider_xds_types::pb::envoy::r#type::v3::Int64Range {
            start: 200,
            end: 300,
        }],
        ..Default::default()
    };
    cluster(&mut set, |cluster| {
        cluster.health_checks = vec![check(HealthChecker::HttpHealthCheck(http))];
    });
    let mut proxy = Proxy::start_with(set, 2).await;
    soon("ready", proxy.wait_ready()).await;
    soon("checked", async {
        while checks.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let names = async |proxy: &Proxy, count: usize| {
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..count {
            let mut client = proxy.connect(OUTBOUND).await;
            client.send(GET).await;
            names.insert(client.response().await.1);
        }
        names
    };
    ready.store(false, Ordering::SeqCst);
    let failing = "fails its checks: answers 500";
    let address = a.address.to_string();
    proxy
        .counted("out", |stats| {
            stats.clusters[OUTBOUND].unused.get(&address).map(String::as_str) == Some(failing)
        })
        .await;
    assert_eq!(names(&proxy, 30).await, ["b".to_owned()].into());
    ready.store(true, Ordering::SeqCst);
    proxy.counted("in", |stats| stats.clusters[OUTBOUND].unused.is_empty()).await;
    soon("used again", async { while !names(&proxy, 10).await.contains("a") {} }).await;
}

#[tokio::test]
async fn a_check_is_a_connection_where_bytes_are_served() {
    let (good, gone) = (Origin::bind().await, refusing().await);
    let mut set = set("tcp", &[gone, good.address()]);
    cluster(&mut set, |cluster| {
        cluster.health_checks = vec![check(HealthChecker::TcpHealthCheck(TcpHealthCheck::default()))];
    });
    let mut proxy = Proxy::start(set).await;
    let gone = gone.to_string();
    proxy.counted("out", |stats| stats.clusters[OUTBOUND].unused.contains_key(&gone)).await;
    soon("checked", async { while good.accept().await.tcp.read(&mut [0; 1]).await.is_err() {} }).await;
    assert_eq!(proxy.stats().await.clusters[OUTBOUND].unused.len(), 1);
}

#[tokio::test]
async fn checks_prove_who_asks_and_who_answers() {
    let authority = Authority::new();
    let checks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&checks);
    let application = Scripted::start(move |_, asked| {
        counted.fetch_add(usize::from(asked.head.contains("svc/web")), Ordering::SeqCst);
        Some(answer(200, "ok"))
    })
    .await;
    let mut served = compiled(&pair("http", "required", application.address.port(), ""), "shop/api");
    for secret in authority.secrets("shop/api") {
        served.insert(secret);
    }
    let server = Proxy::start(served).await;
    let mut called = compiled(&pair("http", "required", 1, ""), "shop/web");
    for secret in authority.secrets("shop/web") {
        called.insert(secret);
    }
    let plain = Scripted::always(200, "not us").await;
    called.insert(assignment(ENDPOINTS, &[server.address(INBOUND), plain.address]));
    cluster(&mut called, |cluster| {
        let http = HttpHealthCheck { path: "/ready".into(), host: "api".into(), ..Default::default() };
        cluster.health_checks = vec![check(HealthChecker::HttpHealthCheck(http))];
    });
    let mut proxy = Proxy::start(called).await;
    let other = plain.address.to_string();
    proxy
        .counted("only who is not one of us is out", |stats| {
            let unused = &stats.clusters[OUTBOUND].unused;
            unused.len() == 1 && unused.get(&other).is_some_and(|why| why.starts_with("fails its checks: "))
        })
        .await;
    assert!(checks.load(Ordering::SeqCst) > 0);
    assert_eq!(plain.hits(), 0);
}

#[tokio::test]
async fn nobody_waits_for_a_caller_that_left() {
    let origin = Origin::bind().await;
    let mut set = set("http", &[origin.address()]);
    thresholds(&mut set, Thresholds { max_connections: n(1), ..Default::default() });
    cluster(&mut set, |cluster| cluster.connect_timeout = ms(3_000_000));
    let mut proxy = Proxy::start(set).await;
    let (_first, _endpoint) = proxy.ask(OUTBOUND, GET, &origin).await;
    let mut second = proxy.connect(OUTBOUND).await;
    second.send(POST).await;
    proxy.counted("both", |stats| stats.listeners[OUTBOUND].active_requests == 2).await;
    reset(second);
    proxy.counted("noticed", |stats| stats.listeners[OUTBOUND].active_requests == 1).await;
}

/// Nobody gets the answers, and they are the endpoint's all the same.
#[tokio::test]
async fn answers_that_are_left_out_count_against_their_endpoint() {
    let (bad, good) = (Scripted::always(503, "no").await, Scripted::always(200, "ok").await);
    let mut set = set("http", &[bad.address, good.address]);
    let hour = ms(3_600_000);
    let detection = OutlierDetection {
        consecutive_5xx: n(3),
        max_ejection_percent: n(50),
        base_ejection_time: hour,
        max_ejection_time: hour,
        ..Default::default()
    };
    ejecting(&mut set, detection);
    retrying(&mut set, &on("5xx", 1));
    let mut proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    for _ in 0..60 {
        assert_eq!(status(&mut client, GET).await, 200);
        proxy.stats().await;
    }
    assert_eq!(bad.hits(), 3);
}

/// An answer that is tried again, without its body.
const BEGUN: &str = "HTTP/1.1 503 X\r\nContent-Length: 3\r\n\r\n";

/// The body of an answer that nobody gets comes behind its head. It is read, so that its connection serves further requests;
/// one that does not come, or not in a moment, costs the connection.
#[tokio::test]
async fn the_rest_of_an_answer_that_is_left_out_is_read_and_its_connection_used_again() {
    let origin = Origin::bind().await;
    let mut set = set("http", &[origin.address()]);
    retrying(&mut set, &on("5xx", 1));
    let proxy = Proxy::start(set).await;
    let (mut one, mut other) = (proxy.connect(OUTBOUND).await, proxy.connect(OUTBOUND).await);
    one.send(GET).await;
    let mut first = origin.accept().await;
    first.expect(GET).await;
    first.send(BEGUN).await;
    let mut second = origin.accept().await;
    first.send("bad").await;
    second.head().await;
    second.send(OK).await;
    one.expect(OK).await;
    // Both at a time, and no further connection.
    one.send(GET).await;
    other.send(GET).await;
    for served in [&mut first, &mut second] {
        served.head().await;
        served.send(OK).await;
    }
    one.expect(OK).await;
    other.expect(OK).await;
    assert!(origin.is_untouched().await);

    one.send(GET).await;
    let (asked, idle) = tokio::select! {
        _ = first.head() => (&mut first, &mut second),
        _ = second.head() => (&mut second, &mut first),
    };
    asked.send(BEGUN).await;
    idle.head().await;
    idle.send(OK).await;
    one.expect(OK).await;
    assert!(matches!(asked.rest().await.as_deref(), Ok(b"") | Err(_)), "it is waited for");
}

/// Its connection has no place meanwhile, and ends as soon as another one is to be opened in its stead.
#[tokio::test]
async fn an_answer_that_is_read_to_its_end_takes_no_place_from_others() {
    for most in [1, 2] {
        let origin = Origin::bind().await;
        let mut set = set("http", &[origin.address()]);
        retrying(&mut set, &on("5xx", 1));
        thresholds(&mut set, Thresholds { max_connections: n(most), ..Default::default() });
        cluster(&mut set, |cluster| cluster.connect_timeout = ms(300));
        let mut proxy = Proxy::start(set).await;
        let (mut one, mut other) = (proxy.connect(OUTBOUND).await, proxy.connect(OUTBOUND).await);
        one.send(GET).await;
        let mut first = origin.accept().await;
        first.expect(GET).await;
        first.send(BEGUN).await;
        let mut second = origin.accept().await;
        second.head().await;
        if most == 2 {
            other.send(GET).await;
            let mut third = origin.accept().await;
            third.head().await;
            third.send(OK).await;
            other.expect(OK).await;
        }
        assert_eq!(proxy.stats().await.clusters[OUTBOUND].active_connections, u64::from(most));
        second.send(OK).await;
        one.expect(OK).await;
    }
}
