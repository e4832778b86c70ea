//! What travels between two applications, for every pair of engines.

use std::process::Command;

use crate::mesh::{Mesh, envoy, eventually, free_port, success};
use crate::peers;
use crate::wire;

/// Engines of the caller's and the callee's proxy.
#[derive(Clone, Copy)]
struct Pair {
    client: &'static str,
    server: &'static str,
}

impl Pair {
    fn available(self) -> bool {
        let needed = [self.client, self.server].contains(&"envoy");
        if needed && envoy().is_none() {
            peers::skip("OUTRIDER_ENVOY names no Envoy (cargo xtask test fetches one)");
            return false;
        }
        true
    }

    /// `client` may call `web`; `stranger` may not.
    fn intent(self, port: &str) -> String {
        format!(
            "apiVersion: outrider.dev/v1alpha1
kind: Namespace
metadata: {{name: shop}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  engine: {server}
  ports: [{port}]
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: client, namespace: shop}}
spec: {{role: client, engine: {client}, calls: [web]}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: stranger, namespace: shop}}
spec: {{role: client, engine: {client}}}
",
            server = self.server,
            client = self.client
        )
    }

    fn http(self, target: u16) -> String {
        self.intent(&format!("{{name: http, port: 8080, targetPort: {target}, protocol: http}}"))
    }

    fn tcp(self, port: u16, target: u16) -> String {
        self.intent(&format!("{{name: tcp, port: {port}, targetPort: {target}, protocol: tcp}}"))
    }
}

macro_rules! for_every_pair {
    ($($test:ident),* $(,)?) => {
        for_every_pair!(@ native_native, "native", "native", $($test),*);
        for_every_pair!(@ native_envoy, "native", "envoy", $($test),*);
        for_every_pair!(@ envoy_native, "envoy", "native", $($test),*);
        for_every_pair!(@ envoy_envoy, "envoy", "envoy", $($test),*);
    };
    (@ $pair:ident, $client:literal, $server:literal, $($test:ident),*) => {
        mod $pair {
            $(#[test]
            fn $test() {
                let pair = super::Pair { client: $client, server: $server };
                if pair.available() {
                    super::$test(pair);
                }
            })*
        }
    };
}

for_every_pair!(
    http_clients_reach_nginx,
    bodies_of_any_size,
    web_sockets,
    redis,
    refusals,
    only_tls_13_between_proxies
);

fn http_clients_reach_nginx(pair: Pair) {
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&pair.http(port));
    let Some(_nginx) = peers::nginx(&mesh, "shop/web", port) else { return };
    mesh.ready("web");

    let url = "http://web:8080/hello.txt";
    if peers::find("curl").is_some() {
        assert_eq!(mesh.expect("shop/client", &["curl", "-fsS", url]), "hello from nginx\n");
        let long = "http://web.shop:8080/hello.txt";
        assert_eq!(mesh.expect("shop/client", &["curl", "-fsS", long]), "hello from nginx\n");
        let absent = mesh.expect(
            "shop/client",
            &["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://web:8080/absent"],
        );
        assert_eq!(absent, "404");
        let several = mesh.expect("shop/client", &["curl", "-fsS", "-w", "%{num_connects} ", url, url, url]);
        assert_eq!(several.matches("hello from nginx").count(), 3);
        assert!(several.contains("1 hello") && several.contains("0 hello"), "kept alive: {several}");
    }
    if peers::find("python3").is_some() {
        let program =
            format!("import urllib.request as u; print(u.urlopen('{url}').read().decode(), end='')");
        assert_eq!(mesh.expect("shop/client", &["python3", "-c", &program]), "hello from nginx\n");
    }
    if peers::find("wrk").is_some() {
        let report = mesh.expect("shop/client", &["wrk", "-t1", "-c16", "-d2s", url]);
        assert!(!report.contains("Non-2xx") && !report.contains("Socket errors"), "{report}");
        assert!(report.contains("requests in"), "{report}");
    }
}

/// A server that answers a POST with the size and hash of its body, and a GET of /N with N bytes, chunked.
const BODIES: &str = r#"
import hashlib, http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        size, digest = 0, hashlib.sha256()
        if self.headers.get("transfer-encoding") == "chunked":
            while n := int(self.rfile.readline(), 16):
                data = self.rfile.read(n); self.rfile.readline(); size += n; digest.update(data)
            self.rfile.readline()
        else:
            left = int(self.headers["content-length"])
            while left:
                data = self.rfile.read(min(left, 1 << 16)); left -= len(data); size += len(data); digest.update(data)
        text = f"{size} {digest.hexdigest()}".encode()
        self.send_response(200); self.send_header("content-length", str(len(text))); self.end_headers()
        self.wfile.write(text)
    def do_GET(self):
        left, block = int(self.path[1:]), bytes(1 << 16)
        self.send_response(200); self.send_header("transfer-encoding", "chunked"); self.end_headers()
        while left:
            n = min(left, len(block)); left -= n
            self.wfile.write(b"%x\r\n" % n + block[:n] + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"#;

fn bodies_of_any_size(pair: Pair) {
    let (Some(_), Some(_)) = (peers::find("python3"), peers::find("curl")) else { return };
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&pair.http(port));
    let _server = mesh.run("bodies", "shop/web", &["python3", "-c", BODIES, &port.to_string()]);
    let instance = mesh.ready("web");
    let proxy = instance["proxy"]["pid"].as_u64().unwrap();

    // 1 GiB up and down, and small ones in chunks.
    let size = 1_u64 << 30;
    let upload = format!("head -c {size} /dev/zero | curl -fsS -T - -X POST http://web:8080/");
    let answer = mesh.expect("shop/client", &["sh", "-c", &upload]);
    let zeros = "49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14";
    assert_eq!(answer, format!("{size} {zeros}"));
    let download = format!("curl -fsS http://web:8080/{size} | wc -c");
    assert_eq!(mesh.expect("shop/client", &["sh", "-c", &download]).trim(), size.to_string());
    let small = mesh.expect("shop/client", &["curl", "-fsS", "-d", "abc", "http://web:8080/"]);
    assert_eq!(small, "3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");

    let peak = wire::peak_memory_kib(proxy);
    let bound = if pair.server == "native" { 48 << 10 } else { 256 << 10 };
    assert!(peak < bound, "the callee's proxy once held {peak} KiB");
}

/// An echo over a WebSocket in a few lines, both sides: frames below 126 bytes, which is enough to see a tunnel.
const WS_SERVER: &str = r#"
import base64, hashlib, socketserver, sys
class H(socketserver.StreamRequestHandler):
    def handle(self):
        key = None
        while (line := self.rfile.readline().strip()):
            if line.lower().startswith(b"sec-websocket-key:"): key = line.split(b":")[1].strip()
        if key is None: return
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n\x81\x05hello")
        while head := self.rfile.read(2):
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(head[1] & 127)))
            self.wfile.write(bytes([0x81, len(data)]) + data)
class S(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
S(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"#;
const WS_CLIENT: &str = r#"
import socket
s = socket.create_connection(("web", 8080)); f = s.makefile("rb")
s.sendall(b"GET /chat HTTP/1.1\r\nHost: web:8080\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
          b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
status = f.readline()
assert b" 101 " in status, status
accept = None
while (line := f.readline().strip()):
    if line.lower().startswith(b"sec-websocket-accept:"): accept = line.split(b":")[1].strip()
assert accept == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", accept
assert f.read(7) == b"\x81\x05hello"
for n in range(100):
    text = b"message %d" % n
    s.sendall(bytes([0x81, 0x80 | len(text)]) + b"\0\0\0\0" + text)
    assert f.read(2 + len(text))[2:] == text
print("echoed")
"#;

fn web_sockets(pair: Pair) {
    let Some(_) = peers::find("python3") else { return };
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&pair.http(port));
    let _server = mesh.run("ws", "shop/web", &["python3", "-c", WS_SERVER, &port.to_string()]);
    mesh.ready("web");
    assert_eq!(mesh.expect("shop/client", &["python3", "-c", WS_CLIENT]), "echoed\n");
}

fn redis(pair: Pair) {
    let (Some(server), Some(benchmark)) = (peers::find("redis-server"), peers::find("redis-benchmark"))
    else {
        return;
    };
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&pair.tcp(16379, port));
    let _redis = mesh.run(
        "redis",
        "shop/web",
        &[
            server.to_str().unwrap(),
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ],
    );
    mesh.ready("web");
    let report = mesh.expect(
        "shop/client",
        &[
            benchmark.to_str().unwrap(),
            "-h",
            "web",
            "-p",
            "16379",
            "-n",
            "5000",
            "-c",
            "20",
            "-t",
            "set,get",
            "--csv",
        ],
    );
    assert!(report.contains("\"SET\"") && report.contains("\"GET\""), "{report}");
}

fn refusals(pair: Pair) {
    let Some(_) = peers::find("curl") else { return };
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&pair.http(port));
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let heads = wire::recording_server(port, answer);
    let _web = mesh.run("web", "shop/web", &["sleep", "600"]);
    let instance = mesh.ready("web");
    assert_eq!(mesh.expect("shop/client", &["curl", "-fsS", "http://web:8080/"]), "ok");
    assert_eq!(heads.iter().next().map(|head| head.starts_with("GET / ")), Some(true));

    // A name that is not among the calls does not exist.
    let stranger = mesh.call("shop/stranger", &["curl", "-sS", "http://web:8080/"]);
    assert_eq!(stranger.status.code(), Some(6), "curl's code for a name that does not resolve");

    // Plaintext to the port between proxies gets nothing of the application, whatever it says.
    let endpoint = instance["endpoints"]["http"].as_str().unwrap();
    let plain = wire::exchange(endpoint, b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
    let plain = String::from_utf8_lossy(&plain);
    assert!(!plain.contains("200 OK"), "{plain}");
    if pair.server == "native" {
        assert!(plain.to_lowercase().contains("x-outrider-reason: mtls_required"), "{plain}");
    }

    assert!(heads.try_iter().count() == 0, "a refused request reached the application");
}

fn only_tls_13_between_proxies(pair: Pair) {
    let (Some(tcpdump), Some(_)) = (peers::find("tcpdump"), peers::find("curl")) else { return };
    if !rustix::process::geteuid().is_root() {
        return peers::skip("recording what is on the wire needs root");
    }
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&pair.http(port));
    let _heads = wire::recording_server(port, "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nsecret-reply");
    let _web = mesh.run("web", "shop/web", &["sleep", "600"]);
    let instance = mesh.ready("web");
    let endpoint = instance["endpoints"]["http"].as_str().unwrap();
    let (_, number) = endpoint.rsplit_once(':').unwrap();

    let file = mesh.folder().join("wire.pcap");
    let mut recorder = crate::mesh::Daemon::start(
        "tcpdump",
        mesh.folder(),
        Command::new(tcpdump).args([
            "-i",
            "lo",
            "-U",
            "-s0",
            "-Z",
            "root",
            "-w",
            file.to_str().unwrap(),
            "tcp",
            "port",
            number,
        ]),
    );
    eventually("tcpdump must record", || {
        recorder.log().contains("listening on").then_some(()).ok_or_else(|| recorder.log())
    });
    let url = "http://web:8080/secret-path";
    assert_eq!(mesh.expect("shop/client", &["curl", "-fsS", url]), "secret-reply");
    let recorded = eventually("the answer must be recorded", || {
        let recorded = std::fs::read(&file).unwrap_or_default();
        let tls_13 = contains(&recorded, &[0x00, 0x2b, 0x00, 0x02, 0x03, 0x04]);
        tls_13.then_some(recorded).ok_or_else(|| "no ServerHello that chooses TLS 1.3".to_owned())
    });
    recorder.stop();
    for secret in ["secret-path", "secret-reply", "HTTP/1.1"] {
        assert!(!contains(&recorded, secret.as_bytes()), "`{secret}` was on the wire in the clear");
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Native on both sides: the head arrives as it was sent, hop-by-hop fields apart.
#[test]
fn header_case_and_order_arrive_unchanged() {
    let Some(_) = peers::find("python3") else { return };
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&Pair { client: "native", server: "native" }.http(port));
    let answer = "HTTP/1.1 200 Very Well\r\nX-ODD-Case: 1\r\nx-odd-case: 2\r\nETag: \"a\"\r\nContent-Length: 0\r\n\r\n";
    let heads = wire::recording_server(port, answer);
    let _web = mesh.run("web", "shop/web", &["sleep", "600"]);
    mesh.ready("web");
    let program = r#"
import socket
s = socket.create_connection(("web", 8080))
s.sendall(b"GET /a%2Fb?x=1&y HTTP/1.1\r\nX-First: 1\r\nHOST: web:8080\r\nx-SECOND: 2\r\nX-first: 3\r\nAccept: */*\r\n\r\n")
data = b""
while b"\r\n\r\n" not in data: data += s.recv(4096)
print(data.decode(), end="")
"#;
    let response = mesh.expect("shop/client", &["python3", "-c", program]);
    let head = heads.iter().next().unwrap();
    let wanted = "GET /a%2Fb?x=1&y HTTP/1.1\r\nX-First: 1\r\nHOST: web:8080\r\nx-SECOND: 2\r\nX-first: 3\r\nAccept: */*\r\n";
    assert!(head.starts_with(wanted), "{head}");
    assert!(
        response.replace("\r\n", "\n").starts_with(&answer.replace("\r\n", "\n").replace("\n\n", "\n")),
        "{response}"
    );
}

#[test]
fn postgresql_by_psql_and_pgbench() {
    let programs = ["initdb", "postgres", "psql", "pgbench"].map(peers::find);
    let [Some(initdb), Some(postgres), Some(psql), Some(pgbench)] = programs else { return };
    if rustix::process::geteuid().is_root() && peers::find("setpriv").is_none() {
        return;
    }
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&Pair { client: "native", server: "native" }.tcp(15432, port));
    let data = mesh.folder().join("pg");
    std::fs::create_dir(&data).unwrap();
    let data = data.to_str().unwrap();
    // PostgreSQL refuses to run as root.
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let (as_user, own) =
        if rustix::process::geteuid().is_root() { (user, "chown 65534:65534") } else { ("", "true") };
    let prepare = format!(
        "chmod 755 {folder}; {own} {data} && {as_user} {initdb} -D {data} -U shop -A trust --no-sync >/dev/null",
        folder = mesh.folder().display(),
        initdb = initdb.display()
    );
    success(Command::new("sh").args(["-c", &prepare]).output().unwrap()).unwrap();
    let serve = format!("exec {as_user} {} -D {data} -p {port} -h 127.0.0.1 -k '' -F", postgres.display());
    let _postgres = mesh.run("postgres", "shop/web", &["sh", "-c", &serve]);
    mesh.ready("web");

    let place = ["-h", "web", "-p", "15432", "-U", "shop"];
    let psql = [&[psql.to_str().unwrap()], &place[..], &["-d", "postgres", "-Atc", "select 6 * 7"]].concat();
    let answer = eventually("psql must get an answer", || success(mesh.call("shop/client", &psql)));
    assert_eq!(answer.trim(), "42");
    let bench = format!(
        "{p} -h web -p 15432 -U shop -i -q -s1 postgres && {p} -h web -p 15432 -U shop -c 8 -t 50 postgres",
        p = pgbench.display()
    );
    let report = mesh.expect("shop/client", &["sh", "-c", &bench]);
    assert!(report.contains("number of transactions actually processed: 400/400"), "{report}");
}
