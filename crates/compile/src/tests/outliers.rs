//! A real Envoy ejects by the rates that a document declares. Needs `OUTRIDER_ENVOY` = path of Envoy.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outrider_xds_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster;
use outrider_xds_types::pb::envoy::config::endpoint::v3 as endpoint;

use super::envoy_accepts::{ask, bootstrap, start};
use super::*;
use crate::envoy::socket_address;

/// Answers request number N with a failure where `fails` says so; how many there were.
fn origin(fails: fn(usize) -> bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (address, hits) = (listener.local_addr().expect("bound"), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&hits);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || answers(stream, &counted, fails));
        }
    });
    (address, hits)
}

fn answers(mut stream: TcpStream, hits: &AtomicUsize, fails: fn(usize) -> bool) {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        seen.extend_from_slice(&buffer[..read]);
        if !seen.ends_with(b"\r\n\r\n") {
            continue;
        }
        seen.clear();
        let status = if fails(hits.fetch_add(1, Ordering::SeqCst)) { "503 No" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Instead of endpoints that somebody would tell.
fn lead_to(bootstrap: &mut Bootstrap, addresses: &[SocketAddr]) {
    let clusters = &mut bootstrap.static_resources.as_mut().expect("resources").clusters;
    let cluster = clusters.iter_mut().find(|one| one.name == "outbound/shop/api/http").expect("a cluster");
    let one = |address: &SocketAddr| endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(socket_address(&address.ip().to_string(), address.port())),
            ..Default::default()
        })),
        ..Default::default()
    };
    cluster.eds_cluster_config = None;
    cluster.cluster_discovery_type =
        Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Static as i32));
    cluster.load_assignment = Some(endpoint::ClusterLoadAssignment {
        cluster_name: cluster.name.clone(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: addresses.iter().map(one).collect(),
            ..Default::default()
        }],
        ..Default::default()
    });
}

#[test]
fn envoy_ejects_by_the_rates_of_a_document() {
    let Some(envoy) = std::env::var_os("OUTRIDER_ENVOY") else {
        println!("skipped: OUTRIDER_ENVOY is not set");
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    for rate in [
        "successRate: {minimumHosts: 4, requestVolume: 10, stdevFactor: 1000}",
        "failurePercentage: {threshold: 45, minimumHosts: 4, requestVolume: 10}",
    ] {
        let intent = intent(&format!(
            "apiVersion: outrider.dev/v1alpha1
kind: Namespace
metadata: {{name: shop}}
spec: {{mtls: off, engine: envoy}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{role: client, calls: [api]}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: api, namespace: shop}}
spec: {{role: server, ports: [{{name: http, port: 80, protocol: http}}]}}
---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: api, namespace: shop}}
spec:
  targetRef: {{kind: Service, name: api}}
  outlierEjection:
    consecutiveGatewayErrors: 0
    consecutiveLocalOriginFailures: 0
    interval: 1s
    baseEjectionTime: 1h
    maxEjectionTime: 1h
    {rate}
"
        ));
        let (bad, bad_hits) = origin(|number| number % 5 < 3);
        let good: Vec<_> = (0..3).map(|_| origin(|_| false)).collect();
        let addresses: Vec<SocketAddr> =
            std::iter::once(bad).chain(good.iter().map(|(address, _)| *address)).collect();
        let mut bootstrap = bootstrap(&proxy(&intent, "shop/web").resources);
        lead_to(&mut bootstrap, &addresses);
        let (listens, mut envoy) = start(&envoy, directory.path(), bootstrap);
        let mut request = || {
            let answer = ask(listens, "GET /", "Connection: close\r\n", &mut envoy);
            assert!(answer.starts_with("HTTP/1.1 200 ") || answer.starts_with("HTTP/1.1 503 "), "{answer}");
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let before = bad_hits.load(Ordering::SeqCst);
            // One of four, who is left out of 60 picks by chance once in thirty million times.
            (0..60).for_each(|_| request());
            if bad_hits.load(Ordering::SeqCst) == before {
                break;
            }
            assert!(Instant::now() < deadline, "{rate}: nobody was ejected");
        }
        assert!(bad_hits.load(Ordering::SeqCst) >= 10, "{rate}: ejected before it was judged");
        // The others are all there.
        let before: Vec<usize> = good.iter().map(|(_, hits)| hits.load(Ordering::SeqCst)).collect();
        (0..60).for_each(|_| request());
        for (before, (_, hits)) in before.iter().zip(&good) {
            assert!(hits.load(Ordering::SeqCst) > *before, "{rate}");
        }
    }
}
