//! Endpoints that do not answer, fail, or break their word: with which reason callers learn it (N34), and how often they wait.

use std::net::SocketAddr;
use std::time::Duration;

use outrider_handover::Stats;
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::CommonLbConfig;
use outrider_xds_types::pb::envoy::config::core::v3::HealthStatus;
use outrider_xds_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrider_xds_types::pb::envoy::r#type::v3::Percent;
use outrider_xds_types::pb::google::protobuf;
use outrider_xds_types::type_url;
use socket2::{Domain, Socket, Type};

use super::http2::Caller;
use super::support::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: api\r\n\r\n";

/// A listener whose queue is full: the kernel drops what would connect, as a host without power does.
struct Swallows {
    address: SocketAddr,
    _listener: Socket,
    _waiting: Vec<Socket>,
}

impl Swallows {
    async fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        // Until one gets no answer: the kernel answers on loopback at once.
        for _ in 0..8 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let full = socket.connect_timeout(&address.into(), Duration::from_millis(200)).is_err();
            waiting.push(socket);
            if full {
                return Self { address, _listener: listener, _waiting: waiting };
            }
        }
        panic!("the queue of a listener has no end");
    }
}

/// The proxy of a caller of these endpoints, who are given 300 ms to connect.
async fn hurried(protocol: &str, endpoints: &[SocketAddr]) -> Proxy {
    let mut set = compiled(&pair(protocol, "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, endpoints));
    edit(&mut set, type_url::CLUSTER, OUTBOUND, |cluster: &mut Cluster| {
        cluster.connect_timeout = Some(protobuf::Duration { seconds: 0, nanos: 300_000_000 });
    });
    Proxy::start(set).await
}

/// Edge case 34: who waited for as long as connecting may take does not wait again for the same endpoint.
#[tokio::test]
async fn e34_an_endpoint_that_swallows_attempts_is_asked_once() {
    let silent = Swallows::new().await;
    for protocol in ["http", "http2"] {
        let mut proxy = hurried(protocol, &[silent.address]).await;
        let (status, reason) = match protocol {
            "http" => {
                let mut client = proxy.connect(OUTBOUND).await;
                client.send(GET).await;
                let (head, body) = client.response().await;
                assert!(body.starts_with("connect_timeout: ") && body.contains("1 tried"), "{body}");
                (head[9..12].to_owned(), header(&head, "x-outrider-reason").unwrap().to_owned())
            }
            _ => {
                let answer = Caller::connect(&proxy, OUTBOUND).await.get("/").await;
                (
                    answer.head.status().as_str().to_owned(),
                    answer.header("x-outrider-reason").unwrap().to_owned(),
                )
            }
        };
        assert_eq!((&*status, &*reason), ("503", "connect_timeout"), "{protocol}");
        let once = |stats: &Stats| {
            let cluster = &stats.clusters[OUTBOUND];
            (cluster.connect_failures, cluster.retries) == (1, 0)
                && stats.listeners[OUTBOUND].reasons.get("connect_timeout") == Some(&1)
        };
        proxy.counted("one attempt", once).await;
    }

    let mut proxy = hurried("tcp", &[silent.address]).await;
    let mut client = proxy.connect(OUTBOUND).await;
    assert_eq!(client.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    proxy
        .counted("one attempt", |stats| {
            stats.clusters[OUTBOUND].connect_failures == 1
                && stats.listeners[OUTBOUND].reasons.get("connect_timeout") == Some(&1)
        })
        .await;
}

/// Another endpoint is tried all the same.
#[tokio::test]
async fn e34_where_there_is_another_endpoint_it_answers() {
    let silent = Swallows::new().await;
    let there = Origin::bind().await.answer_all("ok");
    let mut proxy = hurried("http", &[silent.address, there]).await;
    for _ in 0..64 {
        let mut client = proxy.connect(OUTBOUND).await;
        client.send(GET).await;
        assert_eq!(client.response().await.1, "ok");
        if proxy.stats().await.clusters[OUTBOUND].connect_failures > 0 {
            return;
        }
    }
    panic!("nobody chose the one that is silent");
}

/// What is known to be ill is not asked where nothing may be.
#[tokio::test]
async fn without_a_healthy_endpoint_callers_are_told_so() {
    let origin = Origin::bind().await;
    for protocol in ["http", "http2"] {
        let mut set = compiled(&pair(protocol, "off", 1, ""), "shop/web");
        set.insert(assignment(ENDPOINTS, &[origin.address()]));
        edit(&mut set, type_url::ENDPOINT, ENDPOINTS, |list: &mut ClusterLoadAssignment| {
            list.endpoints[0].lb_endpoints[0].health_status = HealthStatus::Unhealthy as i32;
        });
        edit(&mut set, type_url::CLUSTER, OUTBOUND, |cluster: &mut Cluster| {
            let healthy_panic_threshold = Some(Percent { value: 0.0 });
            cluster.common_lb_config = Some(CommonLbConfig { healthy_panic_threshold, ..Default::default() });
        });
        let mut proxy = Proxy::start(set).await;
        let (status, reason) = match protocol {
            "http" => {
                let mut client = proxy.connect(OUTBOUND).await;
                client.send(GET).await;
                let (head, _) = client.response().await;
                (head[9..12].to_owned(), header(&head, "x-outrider-reason").unwrap().to_owned())
            }
            _ => {
                let answer = Caller::connect(&proxy, OUTBOUND).await.get("/").await;
                (
                    answer.head.status().as_str().to_owned(),
                    answer.header("x-outrider-reason").unwrap().to_owned(),
                )
            }
        };
        assert_eq!((&*status, &*reason), ("503", "no_healthy_endpoints"), "{protocol}");
        let told = |stats: &Stats| stats.listeners[OUTBOUND].reasons.contains_key("no_healthy_endpoints");
        proxy.counted("the reason", told).await;
    }
    assert!(origin.is_untouched().await);
}

/// Callers who ask for what this proxy does not do.
#[tokio::test]
async fn what_is_not_supported_is_refused_by_name() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("http", &[origin.address()]).await;
    let cases = [
        ("Transfer-Encoding: gzip, chunked", "501", "unsupported_transfer_coding"),
        ("Content-Length: 1\r\nExpect: 200-maybe", "417", "expectation_failed"),
    ];
    for (line, status, reason) in cases {
        let mut client = proxy.connect(OUTBOUND).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: api\r\n{line}\r\n\r\n")).await;
        let (head, _) = client.response().await;
        assert_eq!((&head[9..12], header(&head, "x-outrider-reason")), (status, Some(reason)));
        proxy.counted("the reason", |stats| stats.listeners[OUTBOUND].reasons.contains_key(reason)).await;
    }
    assert!(origin.is_untouched().await);
}

/// Endpoints whose bodies are not what their heads announced: the caller cannot take them for whole.
#[tokio::test]
async fn a_body_that_breaks_its_word_is_cut_and_named() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("http", &[origin.address()]).await;
    let cases = [
        ("Content-Length: 10\r\n\r\nhalf", "upstream_body_incomplete"),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nno number\r\n", "upstream_body_invalid"),
    ];
    for (rest, reason) in cases {
        let (mut client, mut served) = proxy.ask(OUTBOUND, GET, &origin).await;
        served.send(format!("HTTP/1.1 200 OK\r\n{rest}")).await;
        drop(served);
        assert_eq!(client.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{reason}");
        proxy.counted("the reason", |stats| stats.listeners[OUTBOUND].reasons.contains_key(reason)).await;
    }
}
