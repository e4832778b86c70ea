//! The other proxies, configured for plain forwarding: nothing beyond what the path under test needs.
//!
//! Data in: where to listen, where to forward, which certificates. Data out: a command to start. Holds: one
//! worker each, keep-alive on both sides, no access log, as in `performance.md`'s method.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// A path of bytes under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Route {
    /// HTTP/1.1 through one proxy.
    Http,
    /// HTTP/1.1 through two proxies with mutual TLS 1.3 between them.
    MtlsPair,
    /// TCP through one proxy.
    Tcp,
    /// TCP through two proxies with mutual TLS 1.3 between them.
    TcpMtlsPair,
}

impl Route {
    pub(crate) fn is_pair(self) -> bool {
        matches!(self, Self::MtlsPair | Self::TcpMtlsPair)
    }

    pub(crate) fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::TcpMtlsPair)
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Http => "HTTP/1.1 keep-alive, one proxy",
            Self::MtlsPair => "HTTP/1.1 keep-alive, mTLS pair",
            Self::Tcp => "TCP bulk, one proxy",
            Self::TcpMtlsPair => "TCP bulk, mTLS pair",
        }
    }
}

/// Which end of the mTLS leg a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Plaintext in, plaintext out: no leg.
    Plain,
    /// Plaintext in, mTLS out.
    Client,
    /// mTLS in, plaintext out.
    Server,
}

/// One proxy to start.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) dir: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) forward: SocketAddr,
    pub(crate) side: Side,
    pub(crate) tcp: bool,
    /// Services that are called beside the one that is measured; only the native proxy has them.
    pub(crate) others: usize,
}

impl Job {
    fn pem(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
    /// Base name of this side's certificate files.
    fn who(&self) -> &'static str {
        if self.side == Side::Server { "server" } else { "client" }
    }
    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{name}-{}", self.listen.port()));
        fs::write(&path, text)?;
        Ok(path)
    }
}

fn strings(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|s| (*s).to_owned()).collect()
}

/// HAProxy.
pub(crate) fn haproxy(job: &Job) -> Result<Vec<String>> {
    let bundle = job.file("haproxy.pem", &{
        let mut pem = fs::read_to_string(job.pem(&format!("{}.pem", job.who())))?;
        pem.push_str(&fs::read_to_string(job.pem(&format!("{}.key", job.who())))?);
        pem
    })?;
    let bundle = bundle.display();
    let ca = job.pem("ca.pem");
    let (bind, server) = match job.side {
        Side::Plain => (String::new(), String::new()),
        Side::Client => (
            String::new(),
            format!(" ssl crt {bundle} ca-file {ca} verify required verifyhost server ssl-min-ver TLSv1.3"),
        ),
        Side::Server => {
            (format!(" ssl crt {bundle} ca-file {ca} verify required ssl-min-ver TLSv1.3"), String::new())
        }
    };
    let mode = if job.tcp { "tcp" } else { "http\n  http-reuse always" };
    let text = format!(
        "global\n  nbthread 1\n  maxconn 9000\ndefaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 300s\n  \
         timeout server 300s\nlisten l\n  bind {}{bind}\n  server s {}{server}\n",
        job.listen, job.forward
    );
    let path = job.file("haproxy.cfg", &text)?;
    Ok(strings(&["haproxy", "-db", "-f", &path.display().to_string()]))
}

/// nginx.
pub(crate) fn nginx(job: &Job) -> Result<Vec<String>> {
    let (ca, cert, key) =
        (job.pem("ca.pem"), job.pem(&format!("{}.pem", job.who())), job.pem(&format!("{}.key", job.who())));
    let listen_tls = if job.side == Side::Server {
        format!(
            "ssl_certificate {cert}; ssl_certificate_key {key}; ssl_client_certificate {ca}; ssl_verify_client on; ssl_protocols TLSv1.3;"
        )
    } else {
        String::new()
    };
    let upstream_tls = if job.side == Side::Client {
        format!(
            "proxy_ssl_certificate {cert}; proxy_ssl_certificate_key {key}; proxy_ssl_trusted_certificate {ca}; proxy_ssl_verify on; proxy_ssl_name server; proxy_ssl_protocols TLSv1.3;"
        )
    } else {
        String::new()
    };
    let ssl = if job.side == Side::Server { " ssl" } else { "" };
    let scheme = if job.side == Side::Client { "https" } else { "http" };
    let text = format!(
        "daemon off; worker_processes 1; pid {pid}; error_log stderr crit; events {{ worker_connections 32768; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;\n\
         fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
         upstream up {{ server {forward}; keepalive 1024; keepalive_requests 1000000000; }}\n\
         server {{ listen {listen}{ssl}; {listen_tls}\n\
         location / {{ proxy_pass {scheme}://up; proxy_http_version 1.1; proxy_set_header Connection \"\"; {upstream_tls} }} }} }}\n",
        pid = job.dir.join(format!("nginx-{}.pid", job.listen.port())).display(),
        dir = job.dir.display(),
        forward = job.forward,
        listen = job.listen,
    );
    let path = job.file("nginx.conf", &text)?;
    Ok(strings(&["nginx", "-c", &path.display().to_string(), "-e", "/dev/stderr"]))
}

/// The origin: nginx answering with files of these sizes, each named by its size.
pub(crate) fn origin(dir: &Path, listen: SocketAddr, bodies: &[u32]) -> Result<Vec<String>> {
    // Its workers are another user.
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut places = String::new();
    for size in bodies {
        let length = usize::try_from(*size)?;
        if length <= 1024 {
            // Without a file it costs the least.
            places.push_str(&format!("location = /{size} {{ return 200 \"{}\"; }} ", "x".repeat(length)));
        } else {
            fs::write(dir.join(size.to_string()), "x".repeat(length))?;
            places.push_str(&format!("location = /{size} {{ root {}; }} ", dir.display()));
        }
    }
    let text = format!(
        "daemon off; worker_processes 1; pid {d}/origin.pid; error_log stderr crit; events {{ worker_connections 32768; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {d}/b; proxy_temp_path {d}/p;\n\
         fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;\n\
         open_file_cache max=10; sendfile on; server {{ listen {listen}; {places} }} }}\n",
        d = dir.display(),
    );
    let path = dir.join("origin.conf");
    fs::write(&path, text)?;
    Ok(strings(&["nginx", "-c", &path.display().to_string(), "-e", "/dev/stderr"]))
}

/// Envoy.
pub(crate) fn envoy(binary: &Path, job: &Job) -> Result<Vec<String>> {
    let tls_files = format!(
        "tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, \
         tls_certificates: [{{certificate_chain: {{filename: {cert}}}, private_key: {{filename: {key}}}}}], \
         validation_context: {{trusted_ca: {{filename: {ca}}}}}",
        cert = job.pem(&format!("{}.pem", job.who())),
        key = job.pem(&format!("{}.key", job.who())),
        ca = job.pem("ca.pem"),
    );
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    let downstream = if job.side == Side::Server {
        format!(
            "transport_socket: {{name: tls, typed_config: {{'@type': {tls}.DownstreamTlsContext, \
             require_client_certificate: true, common_tls_context: {{{tls_files}}}}}}}\n      "
        )
    } else {
        String::new()
    };
    let upstream = if job.side == Side::Client {
        format!(
            "transport_socket: {{name: tls, typed_config: {{'@type': {tls}.UpstreamTlsContext, \
             common_tls_context: {{{tls_files}}}}}}}"
        )
    } else {
        String::new()
    };
    let filters = "type.googleapis.com/envoy.extensions.filters";
    let filter = if job.tcp {
        format!(
            "{{name: t, typed_config: {{'@type': {filters}.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}}}"
        )
    } else {
        format!(
            "{{name: h, typed_config: {{'@type': {filters}.network.http_connection_manager.v3.HttpConnectionManager, \
             stat_prefix: h, codec_type: HTTP1, \
             route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: '/'}}, route: {{cluster: c}}}}]}}]}}, \
             http_filters: [{{name: r, typed_config: {{'@type': {filters}.http.router.v3.Router}}}}]}}}}"
        )
    };
    let address =
        |a: SocketAddr| format!("{{socket_address: {{address: {}, port_value: {}}}}}", a.ip(), a.port());
    let text = format!(
        "static_resources:\n  listeners:\n  - name: l\n    address: {listen}\n    filter_chains:\n    - {downstream}filters: [{filter}]\n  \
         clusters:\n  - name: c\n    connect_timeout: 5s\n    type: STATIC\n    circuit_breakers: {{thresholds: [{{max_connections: 20000, max_pending_requests: 20000, max_requests: 20000}}]}}\n    \
         load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {forward}}}}}]}}]}}\n    {upstream}\n",
        listen = address(job.listen),
        forward = address(job.forward),
    );
    let path = self::Job::file(job, "envoy.yaml", &text)?;
    let path = path.with_extension("yaml");
    fs::write(&path, text)?;
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
