//! The steady state of a request allocates nothing: head, route, access, pick, both encodings, body, statistics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use bytes::BytesMut;
use outrider_proxy_core::access::{AccessPolicy, Peer};
use outrider_proxy_core::balance::{Balancer, Endpoint};
use outrider_proxy_core::http1::encode::{self, ClientCert, Delivery, RequestEncoding, ResponseEncoding};
use outrider_proxy_core::http1::head::Asked;
use outrider_proxy_core::http1::reply::Reply;
use outrider_proxy_core::http1::{BodyScanner, HeaderEdits, Limits, RequestHead, ResponseHead};
use outrider_proxy_core::reason::Reason;
use outrider_proxy_core::route::{
    Destination, HeaderMatch, PathMatch, Route, RouteAction, RouteMatch, RouteTable, VirtualHost,
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
    table: RouteTable,
    access: AccessPolicy,
    balancer: Balancer<u32>,
    stats: WorkerStats,
    limits: Limits,
}

fn worker() -> Worker {
    let matches = RouteMatch {
        path: PathMatch::ElementPrefix(b"/cart".as_slice().into()),
        method: Some("POST".into()),
        headers: vec![HeaderMatch::exact("x-tenant", "blue")],
    };
    let edits = HeaderEdits::new([("x-set", "1")], [("x-add", "2")], ["user-agent"]).unwrap();
    let route = Route {
        matches,
        action: RouteAction::Weighted(vec![(0, 95), (1, 5)]),
        request_headers: edits.clone(),
        response_headers: edits,
        ..Route::to_cluster("cart", 0)
    };
    let hosts = ["inventory", "inventory.shop"].map(str::to_owned).to_vec();
    let table = RouteTable::new(vec![VirtualHost { domains: hosts, routes: vec![route] }], true).unwrap();
    let mut balancer = Balancer::default();
    balancer.update((0..10).map(|key| Endpoint { key, weight: 1 + key % 3, healthy: true }));
    Worker {
        request: RequestHead::new(),
        response: ResponseHead::new(),
        out: BytesMut::with_capacity(4096),
        table,
        access: AccessPolicy::allow(["spiffe://outrider.internal/ns/shop/svc/web"]),
        balancer,
        stats: WorkerStats::default(),
        limits: Limits::default(),
    }
}

fn exchange(w: &mut Worker, random: u64) {
    w.out.clear();
    w.access.decide(Peer::Authenticated("spiffe://outrider.internal/ns/shop/svc/web")).unwrap();
    // In two reads, so that the incomplete path is part of it.
    w.request.parse(&REQUEST[..40], &w.limits).unwrap();
    w.request.parse(REQUEST, &w.limits).unwrap();
    let route = w.table.find(&w.request, REQUEST).unwrap();
    assert!(matches!(route.destination(random), Ok(Destination::Cluster(0 | 1))));
    let endpoint = w.balancer.pick(random).unwrap();
    let how = RequestEncoding {
        edits: Some(&route.request_headers),
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
    assert!(w.balancer.done(endpoint));
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
