//! Every target with its corpus, and some hundred or thousand inputs that are always the same.
#![allow(clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

use outrider_fuzz::run::{Budget, Ran, run};
use outrider_fuzz::targets::{TARGETS, Target};

/// The same inputs in every run: what fails today failed because of today's change.
const SEED: u64 = 1;

fn check(name: &str) {
    let target = Target::named(name).expect("it is in the list");
    match run(target, SEED, Budget::Rounds(target.rounds), None) {
        Ok(Ran { rounds, accepted, .. }) => {
            assert!(
                accepted * 100 >= rounds * target.accepted,
                "{name}: {accepted} of {rounds} inputs were taken; what is always refused tries nothing"
            );
        }
        Err(found) => panic!("{found}"),
    }
}

macro_rules! targets {
    ($($function:ident = $name:literal)*) => {
        $(#[test] fn $function() { check($name); })*

        #[test]
        fn every_target_is_run() {
            let mut here = [$($name),*];
            let mut all: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            here.sort_unstable();
            all.sort_unstable();
            assert_eq!(here[..], all[..]);
        }
    };
}

targets! {
    http1_request = "http1-request"
    http1_response = "http1-response"
    http1_chunked = "http1-chunked"
    http2_server = "http2-server"
    http2_client = "http2-client"
    hpack = "hpack"
    grpc = "grpc"
    websocket = "websocket"
    tls_handshake = "tls-handshake"
    tls_messages = "tls-messages"
    tls_record = "tls-record"
    route_pattern = "route-pattern"
    route_substitution = "route-substitution"
    host = "host"
    xds_listener = "xds-listener"
    xds_route = "xds-route"
    xds_cluster = "xds-cluster"
    xds_endpoints = "xds-endpoints"
    xds_secret = "xds-secret"
    xds_set = "xds-set"
    xds_response = "xds-response"
    xds_request = "xds-request"
    workload = "workload"
    xds_lists = "xds-lists"
    intent = "intent"
    to_proxy = "to-proxy"
    from_proxy = "from-proxy"
    keeper = "keeper"
    local_api = "local-api"
    fact = "fact"
    instruction = "instruction"
    api_http = "api-http"
    last_good = "last-good"
    instance = "instance"
    retired = "retired"
    sizes = "sizes"
    events = "events"
    identity_file = "identity-file"
    cgroup = "cgroup"
    certificate = "certificate"
    signing_request = "signing-request"
    pem = "pem"
    names = "names"
}
