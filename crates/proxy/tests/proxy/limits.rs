//! Limits in time, of which every one has a reason of its own.

use std::time::{Duration, Instant};

use super::support::*;
use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
use outrider_xds_types::pb::envoy::config::route::v3::{RouteAction, RouteConfiguration, route};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;

const GET: &str = "GET / HTTP/1.1\r\nHost: api\r\n\r\n";
const LIMIT: Duration = Duration::from_millis(300);

fn limit() -> Option<outrider_xds_types::pb::google::protobuf::Duration> {
    Some(outrider_xds_types::pb::google::protobuf::Duration { seconds: 0, nanos: 300_000_000 })
}

async fn with(change: impl FnOnce(&mut outrider_xds::ResourceSet)) -> (Origin, Proxy) {
    let origin = Origin::bind().await;
    let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    change(&mut set);
    (origin, Proxy::start(set).await)
}

async fn with_route(change: impl Fn(&mut RouteAction)) -> (Origin, Proxy) {
    with(|set| {
        edit(set, type_url::ROUTE, OUTBOUND, |table: &mut RouteConfiguration| {
            for route in table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
                if let Some(route::Action::Route(action)) = &mut route.action {
                    change(action);
                }
            }
        });
    })
    .await
}

async fn refused(client: &mut Peer, status: &str, reason: &str) {
    let (head, body) = client.response().await;
    assert_eq!(head.split(' ').nth(1), Some(status), "{head}");
    assert_eq!(header(&head, "x-outrider-reason"), Some(reason), "{head}");
    assert!(body.contains(&format!("{LIMIT:?}")), "{body}");
}

/// A response that begins within the limit: its caller, who has a part of it, and its endpoint.
async fn begun(change: impl Fn(&mut RouteAction)) -> (Proxy, Peer, Peer) {
    let begin = async |(origin, proxy): (Origin, Proxy)| {
        let (mut client, mut server) = proxy.ask(OUTBOUND, GET, &origin).await;
        let part = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok";
        server.send(part).await;
        client.expect(part).await;
        (proxy, client, server)
    };
    within(LIMIT, async || with_route(&change).await, begin).await
}

/// Edge case 57.
/// A proxy that waits for whole heads no longer than the limit.
async fn with_limit_of_heads() -> (Origin, Proxy) {
    with(|set| {
        edit(set, type_url::LISTENER, OUTBOUND, |listener: &mut Listener| {
            let chains = listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain);
            for filter in chains.flat_map(|chain| &mut chain.filters) {
                if let Some(filter::ConfigType::TypedConfig(any)) = &mut filter.config_type {
                    let mut hcm = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
                    hcm.request_headers_timeout = limit();
                    any.value = hcm.encode_to_vec();
                }
            }
        });
    })
    .await
}

#[tokio::test]
async fn a_head_that_does_not_become_whole() {
    let (origin, proxy) = with_limit_of_heads().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send("GET / HTTP/1.1\r\nHo").await;
    refused(&mut client, "408", "request_head_timeout").await;
    assert_eq!(client.rest().await.unwrap(), b"");
    assert!(origin.is_untouched().await);
}

/// Some clients end a body with a line break that is not part of it.
#[tokio::test]
async fn a_blank_line_behind_a_body_is_no_head_under_way() {
    let (origin, proxy) = with_limit_of_heads().await;
    let ask = "POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 1\r\n\r\nx";
    let answer = "HTTP/1.1 204 No Content\r\n\r\n";
    let (mut client, mut server) = proxy.ask(OUTBOUND, ask, &origin).await;
    server.expect("x").await;
    for blank in ["\r\n", "\r\n\r\n"] {
        client.send(blank).await;
        server.send(answer).await;
        client.expect(answer).await;
        // Where a head is under way for as long, that is over.
        let mut other = proxy.connect(OUTBOUND).await;
        other.send("G").await;
        refused(&mut other, "408", "request_head_timeout").await;
        client.send(ask).await;
        server.expect(ask).await;
    }
}

/// Edge case 16.
#[tokio::test]
async fn a_response_that_does_not_begin_in_the_total_time() {
    let (origin, proxy) = with_route(|action| {
        action.timeout = limit();
        action.retry_policy = None;
    })
    .await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(GET).await;
    let mut server = origin.accept().await;
    server.head().await;
    refused(&mut client, "504", "total_timeout").await;
}

#[tokio::test]
async fn a_response_that_is_not_whole_in_the_total_time_is_cut() {
    let (mut proxy, mut client, _server) = begun(|action| action.timeout = limit()).await;
    assert_eq!(client.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    proxy.counted("reason", |stats| stats.listeners[OUTBOUND].reasons.get("total_timeout") == Some(&1)).await;
}

/// Edge case 57.
#[tokio::test]
async fn a_caller_that_does_not_read_is_not_blamed_on_the_endpoint() {
    use tokio::io::AsyncWriteExt;
    let reason = async || {
        let (origin, mut proxy) = with_route(|action| action.idle_timeout = limit()).await;
        let mut client = proxy.connect(OUTBOUND).await;
        // For how long at most the endpoint did not write what it could: it tries every now and then.
        let (mut tried, mut silent) = (Instant::now(), Duration::ZERO);
        client.send(GET).await;
        let mut server = origin.accept().await;
        server.head().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
        let mut written = server.tcp.write_all(head.as_bytes()).await;
        let block = vec![b'x'; 1 << 20];
        // Until the proxy gives up, and with it this connection.
        soon("the end", async {
            while written.is_ok() {
                silent = silent.max(tried.elapsed());
                tried = Instant::now();
                tokio::select! {
                    done = server.tcp.write(&block) => written = done.map(drop),
                    () = tokio::time::sleep(LIMIT / 10) => {}
                }
            }
        })
        .await;
        silent = silent.max(tried.elapsed());
        proxy.counted("a reason", |stats| !stats.listeners[OUTBOUND].reasons.is_empty()).await;
        let reasons = proxy.stats().await.listeners[OUTBOUND].reasons.clone();
        (silent < LIMIT * 9 / 10).then_some(reasons)
    };
    // An endpoint that was not run was silent, and is to be blamed.
    let reasons = soon("an endpoint that always writes", async {
        loop {
            if let Some(reasons) = reason().await {
                return reasons;
            }
        }
    })
    .await;
    assert_eq!(reasons, [("idle_timeout".to_owned(), 1)].into());
}

#[tokio::test]
async fn silence_within_a_response_is_cut() {
    let (mut proxy, mut client, _server) = begun(|action| action.idle_timeout = limit()).await;
    assert_eq!(client.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    proxy
        .counted("reason", |stats| stats.listeners[OUTBOUND].reasons.get("upstream_idle_timeout") == Some(&1))
        .await;
}
