//! The steady state of a request allocates nothing: head, route, access, pick, both encodings, body, statistics,
//! and what is decided about failures and limits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use outrider_proxy_core::access::{AccessPolicy, Callers, Effect, Peer, Permission, Rule, RuleList, Rules};
use outrider_proxy_core::balance::{
    Ask, BalanceConfig, Balancer, Endpoint, Layout, Policy, SlowStart, TableKind,
};
use outrider_proxy_core::fault::{Fault, Injected};
use outrider_proxy_core::http1::encode::{self, ClientCert, Delivery, RequestEncoding, ResponseEncoding};
use outrider_proxy_core::http1::head::Asked;
use outrider_proxy_core::http1::reply::Reply;
use outrider_proxy_core::http1::{BodyScanner, HeaderEdits, Limits, RequestHead, ResponseHead};
use outrider_proxy_core::limit::{Bucket, RateLimit};
use outrider_proxy_core::outlier::{Detector, Outcome, OutlierConfig};
use outrider_proxy_core::reason::Reason;
use outrider_proxy_core::retry::budget::{Budget, BudgetConfig};
use outrider_proxy_core::retry::{Ended, Facts, Verdict};
use outrider_proxy_core::route::{
    Backend, Destination, HashPolicy, HeaderMatch, Http1View, KeySource, Lifetime, PathMatch, PathRewrite,
    Pattern, QueryMatch, Rewrite, Route, RouteAction, RouteMatch, RouteTable, Split, SplitBy, Substitution,
    ValueMatch, VirtualHost,
};
use outrider_proxy_core::stats::{Stopwatch, WorkerStats};

const REQUEST: &[u8] = b"POST /cart/items?x=1 HTTP/1.1\r\nHost: Inventory.shop\r\nUser-Agent: test\r\nAccept: */*\r\n\
    Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Tenant: blue\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n";
const BODY: &[u8] = b"5;x=\"y\"\r\nhello\r\n0\r\nt: v\r\n\r\n";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\n";

struct Worker {
    request: RequestHead,
    response: ResponseHead,
    out: BytesMut,
    path: Vec<u8>,
    table: RouteTable,
    access: AccessPolicy,
    rules: Rules,
    balancers: [Balancer<u32>; 6],
    stats: WorkerStats,
    limits: Limits,
    now: u64,
    budget: Budget,
    detector: Detector<u32>,
    limit: RateLimit,
    fault: Fault,
}

/// Rules of every kind that do not deny the request.
fn rules() -> Rules {
    let admin = Permission::Path(ValueMatch::Pattern(Pattern::new(".*(//|;|/admin).*").unwrap()));
    let delete = Permission::Header(HeaderMatch::exact(":method", "DELETE"));
    let tenant = Permission::Header(HeaderMatch::exact("x-tenant", "blue"));
    let rule = |permission: Permission| Rule {
        policy: "p/0".into(),
        callers: Callers {
            ids: vec!["spiffe://outrider.internal/ns/shop/svc/web".into()],
            ..Callers::default()
        },
        permission,
    };
    let list = |effect, audit, permission| RuleList { effect, audit, rules: vec![rule(permission)] };
    Rules::new(vec![
        list(Effect::Deny, false, Permission::One([admin, delete].into())),
        list(Effect::Allow, false, Permission::All([Permission::Any, tenant].into())),
        list(Effect::Deny, true, Permission::Not(Box::new(Permission::Any))),
    ])
}

fn worker() -> Worker {
    let matches = RouteMatch {
        path: PathMatch::ElementPrefix(b"/cart".as_slice().into()),
        method: Some("POST".into()),
        headers: vec![
            HeaderMatch::exact("x-tenant", "blue"),
            HeaderMatch::new("x-tenant", ValueMatch::Pattern(Pattern::new("(?i)blue|gr[ae]y").unwrap())),
        ],
        query: vec![QueryMatch::new("x", ValueMatch::Pattern(Pattern::new("[0-9]+").unwrap()))],
    };
    let rewrite = PathRewrite::pattern(Substitution::new("^/cart(/.*)$", r"/basket\1").unwrap()).unwrap();
    let policy = |source: KeySource| HashPolicy { source, terminal: false };
    let backends = vec![Backend::new("stable", 0, 95), Backend::new("canary", 1, 5)];
    let edits = HeaderEdits::new([("x-set", "1")], [("x-add", "2")], ["user-agent"]).unwrap();
    let route = Route {
        matches,
        action: RouteAction::Weighted(Split::new(backends, SplitBy::HashPolicy).unwrap()),
        rewrite: Rewrite { path: rewrite, host: Some("basket".into()) },
        hash: vec![
            policy(KeySource::Header("x-tenant".into())),
            policy(KeySource::SourceAddress),
            policy(KeySource::Cookie("id".into(), Some(Lifetime { max_age: 60, path: "/".into() }))),
        ],
        request_headers: edits.clone(),
        response_headers: edits,
        ..Route::to_cluster("cart", 0)
    };
    let hosts = ["inventory", "inventory.shop"].map(str::to_owned).to_vec();
    let table = RouteTable::new(vec![VirtualHost { domains: hosts, routes: vec![route] }], true).unwrap();
    let list: Vec<_> = (0..10).map(|key| Endpoint { weight: 1 + key % 3, ..Endpoint::new(key) }).collect();
    let policies = [
        Policy::LeastRequest,
        Policy::RoundRobin,
        Policy::Random,
        Policy::PeakEwma,
        Policy::Table(TableKind::ring(64, 1024).unwrap()),
        Policy::Table(TableKind::maglev(251).unwrap()),
    ];
    let slow_start = SlowStart { window_ms: 500, aggression: 1.0, min_weight_percent: 10.0 };
    let balancers = policies.map(|policy| {
        let config = BalanceConfig { policy, slow_start: Some(slow_start), ..BalanceConfig::default() };
        let mut balancer = Balancer::new(config);
        let mut layout = Layout::default();
        layout.make_tables(&list, &config);
        balancer.assign(&list[..8], &Arc::default(), 0);
        balancer.assign(&list, &Arc::new(layout), 0);
        balancer
    });
    let mut detector = Detector::new(OutlierConfig::default(), 0);
    detector.update((0..10).map(|key| (key, true)));
    Worker {
        request: RequestHead::new(),
        response: ResponseHead::new(),
        out: BytesMut::with_capacity(4096),
        path: Vec::new(),
        table,
        access: AccessPolicy::allow(["spiffe://outrider.internal/ns/shop/svc/web"]),
        rules: rules(),
        balancers,
        stats: WorkerStats::default(),
        limits: Limits::default(),
        now: 0,
        budget: Budget::default(),
        detector,
        limit: RateLimit::new(Bucket::new(u32::MAX, 1, Duration::from_nanos(1)).unwrap()),
        fault: Fault { headers: vec![HeaderMatch::exact("x-try", "1")], ..Fault::default() },
    }
}

fn exchange(w: &mut Worker, random: u64) {
    w.out.clear();
    w.access.decide(Peer::Authenticated("spiffe://outrider.internal/ns/shop/svc/web")).unwrap();
    // In two reads, so that the incomplete path is part of it.
    w.request.parse(&REQUEST[..40], &w.limits).unwrap();
    w.request.parse(REQUEST, &w.limits).unwrap();
    let route = w.table.find(&Http1View { head: &w.request, buf: REQUEST }).unwrap();
    let view = Http1View { head: &w.request, buf: REQUEST };
    let caller = Peer::Authenticated("spiffe://outrider.internal/ns/shop/svc/web");
    w.rules.decide(caller, &view, Some(b"URI=x"), |_| unreachable!()).unwrap();
    let (key, made) = route.key(&view, Some(IpAddr::from([10, 1, 2, 3])), random);
    w.path.clear();
    route.set_cookie(made.unwrap(), &mut w.path);
    assert!(w.path.starts_with(b"Set-Cookie: id="));
    assert!(matches!(route.destination(&view, key, random), Ok(Destination::Cluster(0 | 1))));
    w.path.clear();
    assert_eq!(route.rewrite.target(&route.matches.path, &view, &mut w.path), Ok(true));
    assert_eq!(w.path, b"/basket/items?x=1");
    for balancer in &mut w.balancers {
        balancer.tell(w.now);
        let first = balancer.choose(&Ask { random, key, tried: &[] }).unwrap();
        let second = balancer.choose(&Ask { random, key, tried: &[Some(first)] }).unwrap();
        assert_ne!(first, second);
        balancer.answered(first, random >> 40);
        assert!(balancer.done(first) && balancer.done(second));
    }
    let how = RequestEncoding {
        edits: Some(&route.request_headers),
        path: Some(&w.path),
        host: route.rewrite.host.as_deref().map(str::as_bytes),
        client_cert: ClientCert::Replace(b"By=x"),
        ..RequestEncoding::default()
    };
    encode::request(&w.request, REQUEST, &how, &mut w.out);
    let mut body = BodyScanner::new(w.request.framing());
    assert!(body.scan(BODY).unwrap().ended);
    w.response.parse(RESPONSE, &w.limits).unwrap();
    let framing = w.response.framing(&Asked::default()).unwrap();
    let delivery = Delivery::of(&w.response, framing, w.request.version(), w.request.is_persistent());
    let how = ResponseEncoding { delivery, edits: Some(&route.response_headers), append: b"" };
    encode::response(&w.response, RESPONSE, &how, &mut w.out);
    Reply::new(Reason::NoHealthyEndpoints).write(&mut w.out);
    let stats = w.stats.listener(0);
    stats.response(w.response.status());
    stats.reason(Reason::NoHealthyEndpoints);
    stats.latency.record(random >> 40);
    let mut own = Stopwatch::default();
    own.start(0);
    own.pause(random >> 40);
    stats.added.record(own.sum());
    // What would be done about a failure.
    let repeatable = route.retry.may_repeat(&view);
    let facts = Facts { whole: true, repeatable, attempts: 1, left_ms: u64::MAX, ..Facts::default() };
    assert!(matches!(route.retry.decide(Ended::NotConnected, facts, random), Verdict::Again(_)));
    assert!(matches!(route.retry.decide(Ended::Status(503), facts, random), Verdict::Over(_)));
    w.now += 1;
    w.budget.take(BudgetConfig::default(), w.now, w.now);
    w.detector.ended(&0, Outcome::Answered(503), w.now, random);
    w.detector.ended(&0, Outcome::Answered(200), w.now, random);
    w.limit.admit(w.now, random).unwrap();
    assert_eq!(w.fault.draw(&view, || random), Injected::default());
}

#[test]
fn a_request_allocates_nothing_once_warm() {
    let mut worker = worker();
    exchange(&mut worker, 7);
    let counted = allocation_counter::measure(|| {
        for step in 0..1000u64 {
            exchange(&mut worker, step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
    // The measure itself sees allocations.
    let seen = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8])));
    assert_eq!(seen.count_total, 1);
}

/// One endpoint of 10,000 that changes, comes or goes is not a new list: what is allocated does not depend on how many
/// others there are.
#[test]
fn a_change_of_one_endpoint_touches_no_others() {
    for weight in [1, 2] {
        let mut list: Vec<_> =
            (0..10_000).map(|key| Endpoint { weight: 1 + key % weight, ..Endpoint::new(key) }).collect();
        let mut balancer = Balancer::default();
        let layout = Arc::default();
        balancer.assign(&list, &layout, 0);
        for step in 0..4 {
            match step {
                0 => list[5000].healthy = false,
                1 => list[7000].weight = 9,
                2 => drop(list.remove(100)),
                _ => list.insert(9000, Endpoint::new(20_000)),
            }
            let counted = allocation_counter::measure(|| balancer.assign(&list, &layout, step));
            // The first weight that differs makes the tree of weights, once.
            let most = if step == 1 { 1_000_000 } else { 4096 };
            assert!(counted.count_total <= 40 && counted.bytes_total <= most, "{step}: {counted:?}");
        }
        assert_eq!((balancer.len(), balancer.healthy()), (10_000, 9999));
    }
}
