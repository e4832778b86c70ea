//! nginx: as a proxy to compare with, and as the origin behind all of them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::{Job, Side, Speaks, strings};

/// Idle connections to the endpoints of the service that is measured, and to those of each other one: room is taken
/// for them at the start.
const KEPT: (usize, usize) = (1024, 16);

/// The proxy. `stream` is the module that forwards bytes, if it has to be loaded.
pub(crate) fn nginx(job: &Job, stream: Option<&Path>) -> Result<Vec<String>> {
    let load = match (job.speaks, stream) {
        (Speaks::Tcp, Some(module)) => format!("load_module {};\n", module.display()),
        _ => String::new(),
    };
    let dir = job.dir.display();
    let services = job.services();
    let mut text = format!(
        "{load}daemon off; worker_processes 1; pid {pid}; error_log stderr crit; worker_rlimit_nofile 65536;\n\
         events {{ worker_connections {room}; }}\n",
        pid = job.dir.join(format!("nginx-{}.pid", job.listen.port())).display(),
        room = 2 * job.connections + services.len() + 512,
    );
    if job.speaks == Speaks::Tcp {
        text.push_str("stream {\n");
    } else {
        text.push_str(&format!(
            "http {{ access_log off; keepalive_requests 1000000000; client_max_body_size 0;\n\
             client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;\n\
             fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n"
        ));
    }
    let words = words(job);
    for (number, service) in services.iter().enumerate() {
        let endpoints: String =
            service.endpoints.iter().map(|endpoint| format!("server {endpoint}; ")).collect();
        let kept = match (job.speaks, number) {
            (Speaks::Tcp, _) => String::new(),
            (_, 0) => format!("keepalive {}; keepalive_requests 1000000000; ", KEPT.0),
            _ => format!("keepalive {}; ", KEPT.1),
        };
        text.push_str(&format!(
            "upstream up{number} {{ {endpoints}{kept}}}\nserver {{ listen {listen}{ssl}; {listen_tls}\n{pass} }}\n",
            listen = service.listen,
            ssl = words.listen,
            listen_tls = words.downstream,
            pass = words.pass.replace("UPSTREAM", &format!("up{number}")),
        ));
    }
    text.push_str("}\n");
    let path = job.file("nginx.conf", &text)?;
    Ok(strings(&["nginx", "-c", &path.display().to_string(), "-e", "/dev/stderr"]))
}

struct Words {
    listen: &'static str,
    downstream: String,
    pass: String,
}

fn words(job: &Job) -> Words {
    let (ca, cert, key) =
        (job.pem("ca.pem"), job.pem(&format!("{}.pem", job.who())), job.pem(&format!("{}.key", job.who())));
    let tls = job.side == Side::Client;
    let downstream = match job.side {
        Side::Server => format!(
            "ssl_certificate {cert}; ssl_certificate_key {key}; ssl_client_certificate {ca}; ssl_verify_client on; ssl_protocols TLSv1.3;"
        ),
        _ => String::new(),
    };
    let upstream = |prefix: &str| match job.side {
        Side::Client => format!(
            "{prefix}_ssl_certificate {cert}; {prefix}_ssl_certificate_key {key}; {prefix}_ssl_trusted_certificate {ca}; \
             {prefix}_ssl_verify on; {prefix}_ssl_name server; {prefix}_ssl_protocols TLSv1.3;"
        ),
        _ => String::new(),
    };
    let server = job.side == Side::Server;
    let (listen, pass) = match job.speaks {
        Speaks::Tcp => {
            let on = if tls { "proxy_ssl on; " } else { "" };
            (if server { " ssl" } else { "" }, format!("proxy_pass UPSTREAM; {on}{}", upstream("proxy")))
        }
        Speaks::Grpc => {
            let scheme = if tls { "grpcs" } else { "grpc" };
            (
                if server { " ssl http2" } else { " http2" },
                format!("location / {{ grpc_pass {scheme}://UPSTREAM; {} }}", upstream("grpc")),
            )
        }
        Speaks::Http | Speaks::Http2 => {
            let scheme = if tls { "https" } else { "http" };
            (
                if server { " ssl" } else { "" },
                format!(
                    "location / {{ proxy_pass {scheme}://UPSTREAM; proxy_http_version 1.1; \
                     proxy_set_header Connection \"\"; {} }}",
                    upstream("proxy")
                ),
            )
        }
    };
    Words { listen, downstream, pass }
}

/// The origin: nginx answering with files of these sizes, each named by its size. At `status` it says in HTTP/1 how many
/// requests it has had.
pub(crate) fn origin(
    dir: &Path,
    listen: SocketAddr,
    status: SocketAddr,
    bodies: &[u32],
    speaks: Speaks,
) -> Result<Vec<String>> {
    let http2 = if speaks.is_http2() { " http2" } else { "" };
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
         open_file_cache max=10; sendfile on; server {{ listen {listen}{http2}; {places} }}\n\
         server {{ listen {status}; location / {{ stub_status; }} }} }}\n",
        d = dir.display(),
    );
    let path = dir.join("origin.conf");
    fs::write(&path, text)?;
    Ok(strings(&["nginx", "-c", &path.display().to_string(), "-e", "/dev/stderr"]))
}
