//! Envoy, with static configuration.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::{Job, Side, Speaks, strings};

/// One worker, no hot restart, errors only.
pub(crate) fn envoy(binary: &Path, job: &Job) -> Result<Vec<String>> {
    let (downstream, upstream) = transports(job);
    let filter = filter(job);
    let upstream_protocol = if job.speaks.is_http2() {
        "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
         explicit_http_config: {http2_protocol_options: {}}}}\n    "
    } else {
        ""
    };
    let (mut listeners, mut clusters) = (String::new(), String::new());
    for (number, service) in job.services().iter().enumerate() {
        listeners.push_str(&format!(
            "  - name: l{number}\n    address: {listen}\n    filter_chains:\n    - {downstream}filters: [{filter}]\n",
            listen = address(service.listen),
            filter = filter.replace("CLUSTER", &format!("c{number}")),
        ));
        let endpoints: Vec<String> = service
            .endpoints
            .iter()
            .map(|endpoint| format!("{{endpoint: {{address: {}}}}}", address(*endpoint)))
            .collect();
        clusters.push_str(&format!(
            "  - name: c{number}\n    connect_timeout: 5s\n    type: STATIC\n    \
             circuit_breakers: {{thresholds: [{{max_connections: 20000, max_pending_requests: 20000, max_requests: 20000}}]}}\n    \
             load_assignment: {{cluster_name: c{number}, endpoints: [{{lb_endpoints: [{}]}}]}}\n    {upstream_protocol}{upstream}\n",
            endpoints.join(", "),
        ));
    }
    let text = format!("static_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}");
    let path = job.file("envoy.yaml", &text)?;
    Ok(strings(&[
        &binary.display().to_string(),
        "-c",
        &path.display().to_string(),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "error",
    ]))
}

fn address(address: SocketAddr) -> String {
    format!("{{socket_address: {{address: {}, port_value: {}}}}}", address.ip(), address.port())
}

/// TLS towards callers and towards endpoints, or nothing.
fn transports(job: &Job) -> (String, String) {
    let alpn = if job.speaks.is_http2() { ", alpn_protocols: [h2]" } else { "" };
    let common = format!(
        "common_tls_context: {{tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, \
         tls_certificates: [{{certificate_chain: {{filename: {cert}}}, private_key: {{filename: {key}}}}}], \
         validation_context: {{trusted_ca: {{filename: {ca}}}}}{alpn}}}",
        cert = job.pem(&format!("{}.pem", job.who())),
        key = job.pem(&format!("{}.key", job.who())),
        ca = job.pem("ca.pem"),
    );
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    match job.side {
        Side::Plain => (String::new(), String::new()),
        Side::Server => (
            format!(
                "transport_socket: {{name: tls, typed_config: {{'@type': {tls}.DownstreamTlsContext, \
                 require_client_certificate: true, {common}}}}}\n      "
            ),
            String::new(),
        ),
        Side::Client => (
            String::new(),
            format!(
                "transport_socket: {{name: tls, typed_config: {{'@type': {tls}.UpstreamTlsContext, {common}}}}}"
            ),
        ),
    }
}

fn filter(job: &Job) -> String {
    let filters = "type.googleapis.com/envoy.extensions.filters";
    let codec = if job.speaks.is_http2() { "HTTP2" } else { "HTTP1" };
    if job.speaks == Speaks::Tcp {
        return format!(
            "{{name: t, typed_config: {{'@type': {filters}.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: CLUSTER}}}}"
        );
    }
    // Streams are open for longer than Envoy's 15 s.
    let timeout = if job.speaks == Speaks::Grpc { ", timeout: 0s" } else { "" };
    format!(
        "{{name: h, typed_config: {{'@type': {filters}.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: h, codec_type: {codec}, \
         route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: '/'}}, route: {{cluster: CLUSTER{timeout}}}}}]}}]}}, \
         http_filters: [{{name: r, typed_config: {{'@type': {filters}.http.router.v3.Router}}}}]}}}}"
    )
}
