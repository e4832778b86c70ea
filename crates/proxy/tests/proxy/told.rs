//! What the program writes into its log of requests that it answered by itself.

use std::process::{Command, Stdio};

use outrider_xds::ResourceSet;
use outrider_xds_types::pb::envoy::config::route::v3::DirectResponseAction;
use outrider_xds_types::pb::envoy::config::route::v3::route::Action;
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};

use super::binary::{PROGRAM, Running, connect, free_address, snapshot_with};
use super::gates::{filtered, limit, percent};
use super::resilience::hosts;
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
            assert!(last.contains(&status), "{last}");
        }
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
    let mut command = Command::new(PROGRAM);
    command.args(["--workers", "1", "--standalone", "--snapshot"]).arg(&file).stderr(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let stderr = tokio::process::ChildStderr::from_std(running.0.stderr.take().unwrap()).unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stderr));
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
    let told = soon("the line", async {
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if line.contains(&format!("\"reason\":\"{reason}\"")) {
                return line;
            }
        }
    });
    told.await
}
