//! Proxies of others that forward, before or behind ours: as users configure them, keep-alive on both sides and
//! WebSockets carried. Their limits of heads are raised to what ours takes.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Result, bail};

use super::counters::Software;
use super::{find, find_envoy, nginx, skip_or_fail};

/// What is forwarded where.
#[derive(Clone, Debug)]
pub struct Way {
    /// The loopback port to listen on.
    pub listen: u16,
    /// Where it goes, by name or address.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// HTTP/2 with prior knowledge is spoken to it.
    pub http2_in: bool,
    /// It speaks HTTP/2 with prior knowledge.
    pub http2_out: bool,
}

/// The command line of a proxy with these ways, with everything it needs in `folder`; `None` with a message if it is
/// not installed.
pub fn forwarder(software: Software, folder: &Path, ways: &[Way]) -> Result<Option<Vec<String>>> {
    match software {
        Software::Nginx => by_nginx(folder, ways),
        Software::Haproxy => by_haproxy(folder, ways),
        Software::Envoy => by_envoy(folder, ways),
        Software::Caddy => by_caddy(folder, ways),
        Software::Python | Software::Node => bail!("{} forwards nothing", software.name()),
    }
}

fn by_nginx(folder: &Path, ways: &[Way]) -> Result<Option<Vec<String>>> {
    let mut text = "map $http_upgrade $to_do { default upgrade; '' ''; }\n".to_owned();
    for (number, Way { listen, host, port, http2_in, http2_out }) in ways.iter().enumerate() {
        let http2 = if *http2_in { " http2" } else { "" };
        // It speaks HTTP/2 to servers of gRPC, of which it is told only the name.
        let to = if *http2_out {
            format!("grpc_pass grpc://u{number}; grpc_buffer_size 128k; grpc_set_header Host $host;")
        } else {
            format!(
                "proxy_pass http://u{number}; proxy_http_version 1.1;\n\
                 proxy_request_buffering off; proxy_buffering off; proxy_set_header Host $host;\n\
                 proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $to_do;"
            )
        };
        write!(
            text,
            "upstream u{number} {{ server {host}:{port}; keepalive 16; }}\n\
             server {{ listen 127.0.0.1:{listen}{http2}; large_client_header_buffers 8 128k;\n\
             location / {{ {to} }} }}\n"
        )?;
    }
    nginx(folder, &text)
}

fn by_haproxy(folder: &Path, ways: &[Way]) -> Result<Option<Vec<String>>> {
    let Some(haproxy) = find("haproxy")? else { return Ok(None) };
    let mut text =
        "global\n  nbthread 1\n  tune.bufsize 131072\ndefaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  \
                    timeout tunnel 60s\n  timeout connect 5s\n"
            .to_owned();
    for Way { listen, host, port, http2_in, http2_out } in ways {
        let proto = |http2: &bool| if *http2 { " proto h2" } else { "" };
        write!(
            text,
            "listen l{listen}\n  bind 127.0.0.1:{listen}{}\n  server s {host}:{port}{}\n",
            proto(http2_in),
            proto(http2_out)
        )?;
    }
    let settings = folder.join("haproxy.cfg");
    std::fs::write(&settings, text)?;
    Ok(Some(vec![haproxy.display().to_string(), "-db".into(), "-f".into(), settings.display().to_string()]))
}

fn by_caddy(folder: &Path, ways: &[Way]) -> Result<Option<Vec<String>>> {
    let Some(caddy) = find("caddy")? else { return Ok(None) };
    let mut text = "{\n  admin off\n  auto_https off\n  servers {\n    protocols h1 h2c\n  }\n}\n".to_owned();
    for Way { listen, host, port, http2_out, .. } in ways {
        // With HTTP/2 on both sides it passes on at once by itself; told to, it breaks answers that are trailers alone.
        let (scheme, at_once) = if *http2_out { ("h2c", "") } else { ("http", "flush_interval -1") };
        write!(
            text,
            "http://:{listen} {{\n  bind 127.0.0.1\n  reverse_proxy {scheme}://{host}:{port} {{\n    {at_once}\n  }}\n}}\n"
        )?;
    }
    let settings = folder.join("Caddyfile");
    std::fs::write(&settings, text)?;
    // It keeps what it was told, and its instance, below HOME.
    let home = format!("HOME={}", folder.display());
    let line = ["env".to_owned(), home, caddy.display().to_string()];
    let options = ["run", "--adapter", "caddyfile", "--config"].map(String::from);
    Ok(Some([&line[..], &options, &[settings.display().to_string()]].concat()))
}

fn by_envoy(folder: &Path, ways: &[Way]) -> Result<Option<Vec<String>>> {
    let Some(envoy) = find_envoy() else {
        skip_or_fail("there is no Envoy")?;
        return Ok(None);
    };
    let types = "type.googleapis.com/envoy.extensions";
    let (mut listeners, mut clusters) = (String::new(), String::new());
    for Way { listen, host, port, http2_in, http2_out } in ways {
        let codec = if *http2_in { "HTTP2" } else { "HTTP1" };
        // Before it has read how many streams it may have it takes that for any number, and repeats none that is refused.
        let protocol = if *http2_out {
            "http2_protocol_options: {max_concurrent_streams: 100}"
        } else {
            "http_protocol_options: {}"
        };
        write!(
            listeners,
            "  - address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}\n    filter_chains:\n    \
             - filters:\n      - name: h\n        typed_config:\n          \
             '@type': {types}.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
             stat_prefix: h\n          codec_type: {codec}\n          forward_client_cert_details: ALWAYS_FORWARD_ONLY\n          upgrade_configs: [{{upgrade_type: websocket}}]\n          \
             route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: ''}}, route: {{cluster: c{listen}, timeout: 0s}}}}]}}]}}\n          \
             http_filters: [{{name: r, typed_config: {{'@type': {types}.filters.http.router.v3.Router}}}}]\n"
        )?;
        write!(
            clusters,
            "  - name: c{listen}\n    type: STRICT_DNS\n    connect_timeout: 5s\n    dns_lookup_family: V4_ONLY\n    \
             typed_extension_protocol_options:\n      \
             envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
             '@type': {types}.upstreams.http.v3.HttpProtocolOptions\n        explicit_http_config: {{{protocol}}}\n    \
             load_assignment: {{cluster_name: c{listen}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}}}]}}]}}\n"
        )?;
    }
    let settings = folder.join("envoy.yaml");
    std::fs::write(
        &settings,
        format!("static_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}"),
    )?;
    let options = ["--concurrency", "1", "--disable-hot-restart", "-l", "warn"];
    let line = [envoy.display().to_string(), "-c".into(), settings.display().to_string()];
    Ok(Some(line.into_iter().chain(options.map(String::from)).collect()))
}
