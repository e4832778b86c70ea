//! Policies about requests, for every pair of engines: the same documents, and the same answers, whoever carries them out.

use anyhow::{Result, ensure};
use outrider_testkit::http::{Connection, Response};
use outrider_testkit::origin::Origin;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Engine, Mesh, Pair, for_each_pair, intent, peers, ports, until};

for_each_pair!(
    requests_are_allowed_and_denied_alike,
    requests_are_copied_alike,
    calls_are_checked_denied_and_aborted_alike,
);

/// What `web` lets its callers do. `ops` is another caller.
const ACCESS: &str = "---
apiVersion: outrider.dev/v1alpha1
kind: AccessPolicy
metadata: {name: admins, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  action: deny
  rules:
    - from: [{service: client}]
      to:
        - {methods: [DELETE, PUT], paths: [{value: /admin}, {type: RegularExpression, value: '/v[0-9]+/x'}]}
        - {headers: [{name: x-debug, value: '1'}]}
    - to: [{paths: [{value: '/items:purge'}]}, {headers: [{name: user-agent, value: bot}]}]
---
apiVersion: outrider.dev/v1alpha1
kind: AccessPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  action: allow
  rules:
    - from: [{service: client}]
      to: [{methods: [GET, HEAD, DELETE, PUT]}]
    - from: [{service: ops}]
---
apiVersion: outrider.dev/v1alpha1
kind: AccessPolicy
metadata: {name: trial, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  action: deny
  mode: audit
  rules: [{to: [{paths: [{type: Exact, value: /metrics}]}]}]
";

fn ask(connection: &mut Connection<std::net::TcpStream>, line: &str, fields: &str) -> Result<Response> {
    connection.send(format!("{line} HTTP/1.1\r\nHost: web\r\n{fields}\r\n").as_bytes())?;
    connection.response(line.split(' ').next().unwrap_or_default())
}

/// Whether a proxy has written a line with all of these words.
fn logged(mesh: &Mesh, words: &[&str]) -> Result<(), String> {
    let folder = mesh.folder().join("node1/agent/log");
    let files = std::fs::read_dir(&folder).map_err(|error| error.to_string())?.flatten();
    let texts: Vec<String> = files.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect();
    let found =
        texts.iter().flat_map(|text| text.lines()).any(|line| words.iter().all(|one| line.contains(one)));
    if found { Ok(()) } else { Err(format!("{} files", texts.len())) }
}

fn requests_are_allowed_and_denied_alike(pair: Pair) -> Result<()> {
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    let documents =
        intent::client_and_web(pair, target) + &intent::client(pair.client, "ops", "web") + ACCESS;
    mesh.apply(&documents)?;
    let _origin = Origin::http(target)?;
    mesh.stand_in("shop/web")?;
    let (client, ops) = (mesh.shell("shop/client")?, mesh.shell("shop/ops")?);
    for shell in [&client, &ops] {
        let address = shell.address("web", 8080)?;
        until("the first answer", LONG, || {
            match Connection::open(address).and_then(|mut connection| connection.get("web", "/x")) {
                Ok(response) if response.text() == "/x" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
    }
    mesh.wait_current()?;
    let cases = [
        (&client, "GET /admin", "", 200),
        (&client, "DELETE /admin", "", 403),
        (&client, "DELETE /admin?a=b", "", 403),
        (&client, "DELETE /administrators", "", 200),
        (&client, "PUT /v1/x", "Content-Length: 0\r\n", 403),
        (&client, "PUT /v1/x/y", "Content-Length: 0\r\n", 200),
        (&client, "POST /", "Content-Length: 0\r\n", 403),
        (&client, "GET /", "x-debug: 1\r\n", 403),
        (&client, "GET /", "x-debug: 2\r\n", 200),
        (&client, "GET /", "x-debug: 1\r\nx-debug: 1\r\n", 403),
        (&client, "GET /", "x-debug: 1\r\nx-debug: 2\r\n", 403),
        (&client, "GET /", "x-debug: 2\r\nx-debug: 1\r\n", 403),
        (&client, "GET /", "x-debug: 2, 1\r\n", 403),
        (&client, "GET /", "x-debug: 2\r\nx-debug: 12\r\n", 200),
        // Envoy joins lines of such fields.
        (&client, "GET /", "user-agent: bot\r\nuser-agent: bot\r\n", 403),
        (&client, "GET /", "user-agent: good\r\nuser-agent: bot\r\n", 403),
        (&ops, "GET /items:purge", "", 403),
        (&ops, "GET /items%3Apurge", "", 403),
        (&ops, "GET /items%3apurge", "", 403),
        (&ops, "GET /x%40y", "", 200),
        (&client, "GET /a/../admin", "", 403),
        (&client, "GET //admin", "", 403),
        (&client, "GET /%61dmin", "", 403),
        (&client, "GET /metrics", "", 200),
        (&ops, "DELETE /admin", "", 200),
        (&ops, "POST /metrics", "Content-Length: 0\r\n", 200),
    ];
    for (shell, line, fields, status) in cases {
        let response = ask(&mut Connection::open(shell.address("web", 8080)?)?, line, fields)?;
        assert_eq!(response.status()?, status, "{line} {fields}: {response:?}");
        let reason = (status == 403).then_some("caller_not_allowed");
        assert_eq!(response.reason(), reason, "{line} {fields}");
    }
    // What would be denied is told beside what was: two requests, by policy where the engine tells.
    let policy = if pair.server == Engine::Native { "trial/0" } else { "(all)" };
    let audit = format!("audit:{policy}");
    until("the audit's numbers", LONG, || {
        let shown = mesh.instance_of("shop/web").map_err(|error| format!("{error:#}"))?;
        let reasons = &shown.proxy.inbound.reasons;
        if reasons.get(&audit) == Some(&2) { Ok(()) } else { Err(format!("{reasons:?}")) }
    })?;
    if pair.server == Engine::Native {
        // Who was denied and by which policy, and whom an audit would have denied.
        let caller = "\"caller\":\"spiffe://outrider.internal/ns/shop/svc/client\"";
        for policy in [
            "\"cause\":\"access policy admins/0\",\"request\":\"DELETE /admin\"",
            "\"cause\":\"access policy trial/0\",\"request\":\"GET /metrics\",\"audit\":true",
        ] {
            until(policy, LONG, || logged(&mesh, &[caller, policy, "\"reason\":\"caller_not_allowed\""]))?;
        }
    }
    // N58: a deny that comes later ends what is open, and no more.
    let mut tunnels = Vec::new();
    for tenant in ["gone", "kept"] {
        let mut connection = Connection::open(ops.address("web", 8080)?)?;
        let upgrade = format!(
            "GET /websocket HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             X-Tenant: {tenant}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        connection.send(upgrade.as_bytes())?;
        let head = connection.head()?;
        let status = head.as_ref().and_then(|head| head.status().ok());
        ensure!(status == Some(101), "{tenant}: {head:?}");
        tunnels.push(connection);
    }
    if pair.server == Engine::Native {
        let deny = "---
apiVersion: outrider.dev/v1alpha1
kind: AccessPolicy
metadata: {name: tenants, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  action: deny
  rules: [{to: [{headers: [{name: x-tenant, value: gone}]}]}]
";
        mesh.apply(&(documents + deny))?;
        let mut ended = tunnels.remove(0);
        // The greeting, and the end.
        drop(ended.rest());
        let mut kept = tunnels.remove(0);
        kept.bytes(2)?;
    }
    mesh.finish()
}

fn requests_are_copied_alike(pair: Pair) -> Result<()> {
    let targets = [ports::reserve()?, ports::reserve()?];
    let mesh = Mesh::start()?;
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{kind: Service, name: web, group: ''}]
  rules:
    - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 8080}}}]
      backendRefs: [{name: web, port: 8080}]
";
    let copy = intent::server(pair.server, "copy", &intent::http(8080, targets[1]));
    mesh.apply(&(intent::client_and_web(pair, targets[0]) + &copy + route))?;
    let (web, copy) = (Origin::http(targets[0])?, Origin::http(targets[1])?);
    mesh.stand_in("shop/web")?;
    mesh.stand_in("shop/copy")?;
    let shell = mesh.shell("shop/client")?;
    let address = shell.address("web", 8080)?;
    until("an answer, and a copy", LONG, || {
        let answer = Connection::open(address).and_then(|mut connection| connection.get("web", "/x"));
        match &answer {
            Ok(response) if response.text() == "/x" && copy.requests() > 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    let copied = |count: usize| {
        until("copies", LONG, || match copy.requests() {
            seen if seen == count => Ok(()),
            seen => Err(format!("{seen} of {count}")),
        })
    };
    // Whatever was under way from before is there.
    copied(web.requests())?;
    let (before, mut connection) = (web.requests(), Connection::open(address)?);
    for n in 0..20 {
        let body = "x".repeat(n * 1000);
        let fields = format!("Content-Length: {}\r\n", body.len());
        connection.send(format!("POST /echo HTTP/1.1\r\nHost: web\r\n{fields}\r\n{body}").as_bytes())?;
        let response = connection.response("POST")?;
        ensure!(response.text() == body, "{response:?}");
    }
    assert_eq!(web.requests(), before + 20);
    copied(before + 20)?;
    // Statuses of copies are nobody's, and neither is their absence.
    let response = ask(&mut connection, "GET /status/503", "")?;
    assert_eq!(response.status()?, 503);
    drop(copy);
    for _ in 0..20 {
        assert_eq!(ask(&mut connection, "GET /y", "")?.text(), "/y");
    }
    mesh.finish()
}

/// A server of gRPC with health, and one call.
const SERVER: &str = r#"
import sys, grpc
from concurrent import futures

class Handler(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == '/grpc.health.v1.Health/Check':
            def check(request, context):
                return b'\x08\x01' if request == b'\x0a\x08test.All' else b'\x08\x02'
            return grpc.unary_unary_rpc_method_handler(check)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b'served')

server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Handler(),))
server.add_insecure_port('127.0.0.1:' + sys.argv[1])
server.start()
server.wait_for_termination()
"#;

/// Makes a call, and prints its status.
const CALL: &str = r#"
import sys, grpc
channel = grpc.insecure_channel('web:8080')
metadata = [tuple(field.split('=')) for field in sys.argv[2:]]
try:
    said = channel.unary_unary(sys.argv[1])(b'x', timeout=10, metadata=metadata)
    print('OK', said.decode())
except grpc.RpcError as error:
    print(error.code().name)
"#;

fn calls_are_checked_denied_and_aborted_alike(pair: Pair) -> Result<()> {
    let python = peers::python()?;
    let there = std::process::Command::new(&python).args(["-c", "import grpc"]).output()?;
    if !there.status.success() {
        return peers::skip_or_fail("Python has no module grpc");
    }
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    let policies = |service: &str| {
        format!(
            "---
apiVersion: outrider.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: admins, namespace: shop}}
spec:
  targetRef: {{kind: Service, name: web}}
  action: deny
  rules: [{{to: [{{paths: [{{value: /test.All/Drop}}]}}]}}]
---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: web, namespace: shop}}
spec:
  targetRef: {{kind: Service, name: web}}
  retries: {{attempts: 0}}
  balancing: {{panicThresholdPercent: 0}}
  healthCheck: {{type: GRPC, service: {service}, interval: 1s, timeout: 1s, unhealthyThreshold: 1, healthyThreshold: 1}}
  faultInjection: {{abort: {{grpcStatus: 10, percent: 100}}, headers: [{{name: x-try, value: '1'}}]}}
"
        )
    };
    let documents = intent::client(pair.client, "client", "web")
        + &intent::server(pair.server, "web", &intent::grpc(8080, target));
    mesh.apply(&(documents.clone() + &policies("test.All")))?;
    let folder = mesh.scratch()?;
    std::fs::write(folder.join("server.py"), SERVER)?;
    std::fs::write(folder.join("call.py"), CALL)?;
    let server = [python.clone(), folder.join("server.py"), target.to_string().into()];
    mesh.app("shop/web", server)?;
    let shell = mesh.shell("shop/client")?;
    let call = |what: &str| -> Result<String> {
        let line = format!("{} {} {what}", python.display(), folder.join("call.py").display());
        Ok(shell.ok(&line, LONG)?.trim().to_owned())
    };
    let becomes = |what: &str, expected: &str| {
        until(&format!("{expected} for {what}"), LONG, || match call(what) {
            Ok(said) if said == expected => Ok(()),
            other => Err(format!("{other:?}")),
        })
    };
    becomes("/test.All/Get", "OK served")?;
    mesh.wait_current()?;
    assert_eq!(call("/test.All/Drop")?, "PERMISSION_DENIED");
    assert_eq!(call("/test.All/Get x-try=1")?, "ABORTED");
    assert_eq!(call("/test.All/Get x-try=2")?, "OK served");
    // A service that says that it does not serve is not called.
    mesh.apply(&(documents.clone() + &policies("test.None")))?;
    becomes("/test.All/Get", "UNAVAILABLE")?;
    mesh.apply(&(documents + &policies("test.All")))?;
    becomes("/test.All/Get", "OK served")?;
    mesh.finish()
}
