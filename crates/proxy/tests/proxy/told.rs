//! What the program writes into its log of requests that it answered by itself.

use std::path::Path;
use std::process::{Command, Stdio};

use outrider_xds::ResourceSet;
use outrider_xds_types::pb::envoy::config::route::v3::DirectResponseAction;
use outrider_xds_types::pb::envoy::config::route::v3::route::Action;
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use outrider_xds_types::type_url;

use super::binary::{PROGRAM, Running, connect, free_address, moved, snapshot_with, write};
use super::gates::{filtered, limit, percent};
use super::mesh::{of_api, with_secrets};
use super::resilience::{hosts, reset};
use super::support::*;

/// Every request fails, if nothing else answers it: there is no endpoint.
fn unchanged(_set: &mut ResourceSet) {}

fn one_an_hour(set: &mut ResourceSet) {
    filtered(set, &limit(1));
}

fn aborted(set: &mut ResourceSet) {
    let error_type = Some(ErrorType::HttpStatus(418));
    let abort = Some(FaultAbort { percentage: percent(100), error_type, ..Default::default() });
    filtered(set, &HttpFault { abort, ..Default::default() });
}

fn answered(set: &mut ResourceSet, status: u32) {
    hosts(set, |host| {
        for route in &mut host.routes {
            route.action =
                Some(Action::DirectResponse(DirectResponseAction { status, ..Default::default() }));
        }
    });
}

/// Method and path are told, the query is not. A fixed response is what was wanted, and no news.
#[tokio::test]
async fn a_request_that_the_proxy_answers_is_in_the_log_with_what_it_asked_for() {
    type Change = fn(&mut ResourceSet);
    let cases: [(Change, &[u16], &str); 4] = [
        (unchanged, &[503], "connect_failed"),
        (one_an_hour, &[503, 429], "rate_limited"),
        (aborted, &[418], "fault_injected"),
        (|set| answered(set, 500), &[500], "no_backends"),
    ];
    for (change, statuses, reason) in cases {
        for protocol in ["http", "http2"] {
            let last = last_line(protocol, change, statuses, reason).await;
            assert!(last.contains("\"request\":\"GET /orders\"") && !last.contains("hidden"), "{last}");
            let status = format!("\"status\":{}", statuses.last().unwrap());
            assert!(last.contains(&status) && last.contains("\"from\":\"127.0.0.1:"), "{last}");
        }
    }
}

/// The program with a snapshot, and what it writes.
struct Told {
    _running: Running,
    lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStderr>>,
}

impl Told {
    fn start(file: &Path) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(["--workers", "1", "--standalone", "--snapshot"]).arg(file).stderr(Stdio::piped());
        let mut running = Running(command.spawn().unwrap());
        let stderr = tokio::process::ChildStderr::from_std(running.0.stderr.take().unwrap()).unwrap();
        let lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stderr));
        Self { _running: running, lines }
    }

    /// The next line with this reason.
    async fn line(&mut self, reason: &str) -> String {
        let told = soon(reason, async {
            loop {
                let line = self.lines.next_line().await.unwrap().unwrap();
                if line.contains(&format!("\"reason\":\"{reason}\"")) {
                    return line;
                }
            }
        });
        told.await
    }
}

/// Asks until it was answered with these statuses, and gives the line with this reason.
async fn last_line(
    protocol: &str,
    change: impl FnOnce(&mut ResourceSet),
    statuses: &[u16],
    reason: &str,
) -> String {
    let (directory, at) = (tempfile::tempdir().unwrap(), free_address());
    let file = directory.path().join("snapshot");
    snapshot_with(protocol, &file, at, free_address(), change);
    let mut told = Told::start(&file);
    for expected in statuses {
        let mut app = connect(at).await;
        let status = if protocol == "http" {
            app.send("GET /orders?token=hidden HTTP/1.1\r\nHost: api\r\n\r\n").await;
            let (head, _) = app.response().await;
            head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap()
        } else {
            let tcp = tokio::net::TcpStream::connect(at).await.unwrap();
            super::http2::Caller::of(tcp).await.get("/orders?token=hidden").await.status()
        };
        assert_eq!(status, *expected, "{protocol} {reason}");
    }
    told.line(reason).await
}

/// A WebSocket that is cut is told of as a stream of bytes is.
#[tokio::test]
async fn a_websocket_that_is_cut_is_in_the_log_with_what_was_asked_for() {
    let (directory, at, origin) = (tempfile::tempdir().unwrap(), free_address(), Origin::bind().await);
    let file = directory.path().join("snapshot");
    snapshot_with("http", &file, at, origin.address(), unchanged);
    let mut told = Told::start(&file);
    let mut app = connect(at).await;
    app.send(UPGRADE.replace("/ws", "/ws?token=hidden")).await;
    let mut behind = origin.accept().await;
    behind.head().await;
    behind.send(SWITCHED).await;
    app.head().await;
    reset(behind);
    assert!(app.rest().await.is_err());
    let line = told.line("upstream_reset").await;
    assert!(line.contains("\"request\":\"GET /ws\"") && !line.contains("hidden"), "{line}");
}

/// Of who did not say who it is the address is told, and of who may make no call at all that no policy decided it.
#[tokio::test]
async fn who_is_not_let_in_is_in_the_log_as_far_as_it_is_known() {
    for protocol in ["http", "http2"] {
        not_let_in(protocol).await;
    }
}

async fn not_let_in(protocol: &str) {
    let (directory, at, origin) = (tempfile::tempdir().unwrap(), free_address(), Origin::bind().await);
    let (file, authority) = (directory.path().join("snapshot"), Authority::new());
    let mut set = of_api(&pair(protocol, "required", origin.port(), ""), &authority);
    moved(&mut set, INBOUND, at);
    // Its outbound listeners have addresses that nobody has given to this machine.
    let of_others: Vec<_> = set.of_type(type_url::LISTENER).map(|of| of.name.to_string()).collect();
    for name in of_others.iter().filter(|name| *name != INBOUND) {
        set.remove(type_url::LISTENER, name);
    }
    write(&file, &set, &[type_url::LISTENER, type_url::CLUSTER, type_url::ENDPOINT, type_url::SECRET]);
    let mut told = Told::start(&file);
    let mut plain = connect(at).await;
    let from = plain.tcp.local_addr().unwrap();
    if protocol == "http" {
        plain.send("GET / HTTP/1.1\r\nHost: api\r\n\r\n").await;
        assert!(plain.response().await.0.starts_with("HTTP/1.1 403 "));
    } else {
        assert_eq!(super::http2::Caller::of(plain.tcp).await.get("/").await.status(), 403);
    }
    let line = told.line("mtls_required").await;
    assert!(line.contains(&format!("\"from\":\"{from}\"")), "{line}");

    let mut set = with_secrets(&pair(protocol, "required", 1, ""), "shop/web", &authority, "shop/stranger");
    set.insert(assignment(ENDPOINTS, &[at]));
    let stranger = Proxy::start(set).await;
    if protocol == "http" {
        let mut app = stranger.connect(OUTBOUND).await;
        app.send("GET /orders HTTP/1.1\r\nHost: api\r\n\r\n").await;
        assert!(app.response().await.0.starts_with("HTTP/1.1 403 "));
    } else {
        let app = stranger.connect(OUTBOUND).await;
        assert_eq!(super::http2::Caller::of(app.tcp).await.get("/orders").await.status(), 403);
    }
    let line = told.line("caller_not_allowed").await;
    assert!(line.contains("/svc/stranger\"") && line.contains("GET /orders"), "{line}");
    assert!(line.contains("none of the callers that are let in"), "{line}");
    assert!(origin.is_untouched().await);
}
