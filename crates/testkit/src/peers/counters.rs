//! Servers of others that answer every request at once and write down each they have read, good or bad.
//!
//! One line is one request: `STATUS METHOD TARGET`, as the software names them. Limits are raised, so that what our proxy
//! lets through is not refused for its size.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::{find, find_envoy, nginx, python, skip_or_fail};

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Software {
    /// nginx, answering by itself.
    Nginx,
    /// HAProxy, answering by itself.
    Haproxy,
    /// Envoy, answering by itself.
    Envoy,
    /// The HTTP server of Python's library, with a handler that reads bodies.
    Python,
    /// The HTTP server of Node.js.
    Node,
    /// Caddy: HTTP/2 and what is before and behind it as Go has them. It forwards only.
    Caddy,
}

impl Software {
    /// All that read.
    pub const ALL: [Self; 5] = [Self::Nginx, Self::Haproxy, Self::Envoy, Self::Python, Self::Node];

    /// A name for services and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Python => "python",
            Self::Node => "node",
            Self::Caddy => "caddy",
        }
    }
}

/// A server to be started.
#[derive(Debug)]
pub struct Counter {
    /// Its command line.
    pub line: Vec<String>,
    /// Where it writes.
    pub file: PathBuf,
}

impl Counter {
    /// On a loopback port, with everything it needs in `folder`; `None` with a message if it is not installed.
    pub fn new(software: Software, folder: &Path, port: u16) -> Result<Option<Self>> {
        let file = folder.join("requests");
        std::fs::write(&file, "")?;
        let line = match software {
            Software::Nginx => {
                let server = format!(
                    "log_format seen '$status $request_method $request_uri';\n\
                     server {{ listen 127.0.0.1:{port}; access_log {} seen; return 200; keepalive_requests 100000;\n\
                     client_header_buffer_size 128k; large_client_header_buffers 8 128k; }}",
                    file.display()
                );
                nginx(folder, &server)?
            }
            Software::Haproxy => haproxy(folder, &file, port)?,
            Software::Envoy => envoy(folder, &file, port)?,
            Software::Python => {
                let script = folder.join("counter.py");
                std::fs::write(&script, PYTHON)?;
                let line = [python()?.display().to_string(), "-u".into(), script.display().to_string()];
                Some([line.as_slice(), &[port.to_string(), file.display().to_string()]].concat())
            }
            Software::Node => match find("node")? {
                Some(node) => {
                    let script = folder.join("counter.js");
                    std::fs::write(&script, NODE)?;
                    let line = [node.display().to_string(), script.display().to_string()];
                    Some([line.as_slice(), &[port.to_string(), file.display().to_string()]].concat())
                }
                None => None,
            },
            Software::Caddy => bail!("caddy writes down nothing"),
        };
        Ok(line.map(|line| Self { line, file }))
    }
}

fn haproxy(folder: &Path, file: &Path, port: u16) -> Result<Option<Vec<String>>> {
    let Some(haproxy) = find("haproxy")? else { return Ok(None) };
    let text = format!(
        "global\n  nbthread 1\n  log stdout len 65535 format raw local0\n  tune.bufsize 262144\n  tune.http.maxhdr 1000\n\
         defaults\n  mode http\n  log global\n  option dontlognull\n  timeout client 60s\n  timeout server 60s\n  timeout connect 5s\n\
         frontend all\n  bind 127.0.0.1:{port}\n  log-format \"%ST %HM %HPO\"\n  http-request return status 200\n"
    );
    let settings = folder.join("haproxy.cfg");
    std::fs::write(&settings, text)?;
    // It writes to its output, since it knows no files.
    let script = "exec \"$0\" -db -f \"$1\" >\"$2\"".to_owned();
    let line = ["sh".to_owned(), "-c".to_owned(), script, haproxy.display().to_string()];
    Ok(Some([line.as_slice(), &[settings.display().to_string(), file.display().to_string()]].concat()))
}

fn envoy(folder: &Path, file: &Path, port: u16) -> Result<Option<Vec<String>>> {
    let Some(envoy) = find_envoy() else {
        skip_or_fail("there is no Envoy")?;
        return Ok(None);
    };
    let types = "type.googleapis.com/envoy.extensions";
    let text = format!(
        "static_resources:\n  listeners:\n  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n    \
         filter_chains:\n    - filters:\n      - name: h\n        typed_config:\n          \
         '@type': {types}.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
         stat_prefix: h\n          codec_type: HTTP1\n          max_request_headers_kb: 256\n          \
         common_http_protocol_options: {{max_headers_count: 1000}}\n          \
         access_log:\n          - name: f\n            typed_config:\n              \
         '@type': {types}.access_loggers.file.v3.FileAccessLog\n              path: {}\n              \
         log_format: {{text_format_source: {{inline_string: \"%RESPONSE_CODE% %REQ(:METHOD)% %REQ(:PATH)%\\n\"}}}}\n          \
         route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: ''}}, direct_response: {{status: 200}}}}]}}]}}\n          \
         http_filters: [{{name: r, typed_config: {{'@type': {types}.filters.http.router.v3.Router}}}}]\n",
        file.display()
    );
    let settings = folder.join("envoy.yaml");
    std::fs::write(&settings, text)?;
    let options =
        ["--concurrency", "1", "--file-flush-interval-msec", "20", "--disable-hot-restart", "-l", "warn"];
    let line = [envoy.display().to_string(), "-c".into(), settings.display().to_string()];
    Ok(Some(line.into_iter().chain(options.map(String::from)).collect()))
}

const PYTHON: &str = r#"
import sys
import http.client
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

http.client._MAXHEADERS = 1000
out = open(sys.argv[2], "ab", buffering=0)

class Counter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counted = False

    def handle_one_request(self):
        self.counted = False
        super().handle_one_request()

    def count(self, status, target):
        if not self.counted:
            self.counted = True
            out.write(f"{status} {self.command} {target}\n".encode("utf-8", "replace"))

    def log_request(self, code="-", size="-"):
        if int(code) >= 200:
            self.count(int(code), getattr(self, "path", "-"))

    def log_error(self, *arguments):
        pass

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.serve
        raise AttributeError(name)

    def serve(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline() not in (b"\r\n", b"\n", b""):
                pass
        elif length := self.headers.get("Content-Length"):
            self.rfile.read(int(length))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Counter).serve_forever()
"#;

const NODE: &str = r#"
const fs = require('fs');
const http = require('http');
const out = fs.openSync(process.argv[3], 'a');
const write = line => fs.writeSync(out, line + '\n');
const server = http.createServer({ maxHeaderSize: 262144, insecureHTTPParser: false }, (request, response) => {
  write(`200 ${request.method} ${request.url}`);
  request.on('error', () => {});
  request.resume();
  request.on('end', () => { response.setHeader('Content-Length', 0); response.end(); });
});
server.on('clientError', (error, socket) => {
  // A reset is no request, nor is an end of the connection within one.
  if (error.code !== 'ECONNRESET' && error.code !== 'HPE_INVALID_EOF_STATE') write(`400 - ${error.code}`);
  socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
});
server.keepAliveTimeout = 65000;
server.listen(Number(process.argv[2]), '127.0.0.1');
"#;
