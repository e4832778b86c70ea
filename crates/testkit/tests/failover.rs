//! Fail-over to another service: calls go there as far as the called one's endpoints fail, and come back with them,
//! whichever engine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use outrider_testkit::http::Connection;
use outrider_testkit::mesh::{App, Engine, Options};
use outrider_testkit::process::Finished;
use outrider_testkit::shell::Shell;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Hosts, Mesh, Pair, for_each_pair, intent, peers, ports, until};
use rustix::process::Signal;

for_each_pair!(
    calls_fail_over_and_come_back,
    calls_over_http2_fail_over_and_come_back,
    connections_fail_over_and_come_back,
    calls_leave_their_zone_before_their_service,
);

/// Calls of `orders` go to `standby`. What may be sent again is, also where an instance was killed.
const FAILOVER: &str = "---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRef: {kind: Service, name: orders}
  failover: [{name: standby}]
  retries: {retryOn: [connect-failure, reset, gateway-error]}
  healthCheck: {type: HTTP, path: /health, interval: 1s, timeout: 500ms, unhealthyThreshold: 2}
";

/// `standby` takes nobody's calls.
const DENIED: &str = "---
apiVersion: outrider.dev/v1alpha1
kind: AccessPolicy
metadata: {name: nobody, namespace: shop}
spec: {targetRef: {kind: Service, name: standby}, action: deny, rules: [{from: [{service: client}]}]}
";

/// `client` calls `orders`, and not `standby`.
fn services(pair: Pair, port: impl Fn(u16) -> String, orders: u16, standby: u16) -> String {
    intent::client(pair.client, "client", "orders")
        + &intent::server(pair.server, "orders", &port(orders))
        + &intent::server(pair.server, "standby", &port(standby))
}

/// A server that says `name`, and that it is unwell while there is a file `unwell`. A response is sent whole or not at all,
/// also where it is killed: what has begun cannot be tried again.
fn server(name: &str, target: u16, unwell: &Path) -> Result<Vec<String>> {
    let script = format!(
        "import http.server as h, os\n\
         class H(h.BaseHTTPRequestHandler):\n\
         \x20   protocol_version = 'HTTP/1.1'; wbufsize = -1\n\
         \x20   def do_GET(self):\n\
         \x20       bad = self.path == '/health' and os.path.exists({unwell:?})\n\
         \x20       b = b'{name}\\n'; self.send_response(503 if bad else 200)\n\
         \x20       self.send_header('content-length', str(len(b))); self.end_headers(); self.wfile.write(b)\n\
         \x20   def log_message(self, *a): pass\n\
         class S(h.ThreadingHTTPServer): request_queue_size = 128\n\
         S(('127.0.0.1', {target}), H).serve_forever()\n"
    );
    Ok(vec![peers::python()?.display().to_string(), "-c".into(), script])
}

/// One call: who answered, or the reason why nobody did. `how`: more for curl.
fn call(how: &str) -> String {
    format!("curl -sS {how} -m 10 -w '%header{{x-outrider-reason}}' http://orders:8080/ 2>&1 || echo failed")
}

/// Everything that 10 calls got.
fn answers(shell: &Shell, how: &str) -> Result<BTreeSet<String>> {
    // A reason comes without an end of line.
    let script = format!("for i in $(seq 10); do {}; echo; done", call(how));
    let lines = shell.ok(&script, LONG * 2)?;
    Ok(lines.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn answered_over(shell: &Shell, how: &str, by: &str) -> Result<()> {
    until(&format!("answers of {by} alone"), LONG, || {
        let seen = answers(shell, how).map_err(|error| format!("{error:#}"))?;
        let alone = seen.iter().all(|answer| answer.contains(by)) && !seen.is_empty();
        if alone { Ok(()) } else { Err(format!("{seen:?}")) }
    })
}

fn answered(shell: &Shell, by: &str) -> Result<()> {
    answered_over(shell, "", by)
}

struct Scene {
    mesh: Mesh,
    shell: Shell,
    target: u16,
    unwell: PathBuf,
    documents: String,
}

impl Scene {
    fn start_orders(&self) -> Result<App> {
        self.mesh.app("shop/orders", server("orders", self.target, &self.unwell)?)
    }

    /// The name of the only instance of a service.
    fn instance(&self, service: &str) -> Result<String> {
        let only = self.mesh.wait_instances("one ready instance", service, LONG, |all| {
            all.len() == 1 && all.iter().all(|one| one.state == "ready")
        })?;
        only.into_iter().next().map(|one| one.name).context("an instance")
    }

    /// Waits until `describe` shows it so.
    fn described(&self, kind: &str, name: &str, so: impl Fn(&str) -> bool) -> Result<()> {
        until(&format!("the description of {kind} {name}"), LONG, || {
            let shown = self.mesh.cli(&["describe", kind, name, "-n", "shop"]).and_then(Finished::ok);
            let text = shown.map_err(|error| format!("{error:#}"))?.stdout;
            if so(&text) { Ok(()) } else { Err(text) }
        })
    }

    /// Runs `change`, after which `by` has to answer, while calls go on: all are answered by one or the other.
    fn lossless(&self, by: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let stop = self.mesh.scratch()?.join("stop");
        let script = format!("until [ -e {} ]; do {}; echo; done", stop.display(), call(""));
        let calls = self.shell.spawn(&script)?;
        until("the first of the calls", LONG, || {
            if calls.stdout().is_empty() { Err(String::from("nothing yet")) } else { Ok(()) }
        })?;
        change()?;
        answered(&self.shell, by)?;
        std::fs::write(&stop, "")?;
        let all = calls.wait(LONG)?.ok()?.stdout;
        let strange: Vec<&str> =
            all.lines().filter(|line| !["", "orders", "standby"].contains(line)).collect();
        ensure!(strange.is_empty(), "until {by} answered, calls failed: {strange:?}");
        Ok(())
    }
}

fn calls_fail_over_and_come_back(pair: Pair) -> Result<()> {
    let (target, other) = (ports::reserve()?, ports::reserve()?);
    let mesh = Mesh::start()?;
    let documents = services(pair, |target| intent::http(8080, target), target, other);
    mesh.apply(&(documents.clone() + FAILOVER))?;
    let unwell = mesh.scratch()?.join("unwell");
    let standby = mesh.app("shop/standby", server("standby", other, Path::new("/never"))?)?;
    let shell = mesh.shell("shop/client")?;
    let scene = Scene { mesh, shell, target, unwell, documents };
    let mut orders = scene.start_orders()?;
    answered(&scene.shell, "orders")?;

    // Nobody goes there while the first is well, and nobody who does not call it knows its name.
    assert_eq!(answers(&scene.shell, "")?, BTreeSet::from(["orders".to_owned()]));
    assert!(scene.shell.resolve("standby").is_err());

    // It ends, and comes back.
    scene.lossless("standby", || {
        orders.run.signal(Signal::TERM)?;
        orders.run.wait(LONG).map(drop)
    })?;
    scene.lossless("orders", || {
        orders = scene.start_orders()?;
        Ok(())
    })?;
    // It is killed.
    scene.lossless("standby", || orders.run.signal(Signal::KILL))?;
    orders.run.wait(LONG)?;
    scene.lossless("orders", || {
        orders = scene.start_orders()?;
        Ok(())
    })?;
    // It is there, and says that it is unwell: that is what the commands show, by its name, as long as it is so.
    scene.lossless("standby", || Ok(std::fs::write(&scene.unwell, "")?))?;
    let cause = match pair.client {
        Engine::Native => "fails its checks: answers 503",
        Engine::Envoy => "fails its checks",
    };
    let (client, name) = (scene.instance("shop/client")?, scene.instance("shop/orders")?);
    scene.described("proxy", &client, |text| {
        text.contains(&format!("left alone: {name} (")) && text.contains(&format!("): {cause}"))
    })?;
    scene.described("service", "orders", |text| {
        text.contains(&format!("left alone by 1 of 1 caller: {name} ({cause}"))
            && text.contains("its calls go on to shop/standby")
    })?;
    scene.lossless("orders", || Ok(std::fs::remove_file(&scene.unwell)?))?;
    scene.described("proxy", &client, |text| !text.contains("left alone: "))?;
    scene.described("service", "orders", |text| !text.contains("left alone by "))?;

    // What the standby refuses is refused, whoever was called.
    orders.run.signal(Signal::TERM)?;
    orders.run.wait(LONG)?;
    answered(&scene.shell, "standby")?;
    scene.mesh.apply(DENIED)?;
    answered(&scene.shell, "caller_not_allowed")?;
    scene.mesh.cli(&["delete", "accesspolicy", "nobody", "-n", "shop"])?.ok()?;
    answered(&scene.shell, "standby")?;

    // Without the policy calls go nowhere else, and it lets nobody in.
    scene.mesh.cli(&["delete", "trafficpolicy", "orders", "-n", "shop"])?.ok()?;
    answered(&scene.shell, pair.no_endpoints())?;
    scene.mesh.wait_current()?;
    orders = scene.start_orders()?;
    answered(&scene.shell, "orders")?;
    // And with it again they do.
    scene.mesh.apply(&(scene.documents.clone() + FAILOVER))?;
    scene.mesh.wait_current()?;
    scene.lossless("standby", || orders.run.signal(Signal::TERM))?;
    drop(standby);
    scene.mesh.finish()
}

/// nghttpd with a page that says `name`; it is well while there is a file `health`.
fn nghttpd(mesh: &Mesh, name: &str, target: u16) -> Result<Option<(PathBuf, Vec<String>)>> {
    let Some(program) = peers::find("nghttpd")? else { return Ok(None) };
    let folder = mesh.scratch()?;
    std::fs::write(folder.join("index.html"), format!("{name}\n"))?;
    std::fs::write(folder.join("health"), "yes\n")?;
    let (program, root) = (program.display().to_string(), folder.display().to_string());
    let line =
        [program, "--no-tls".into(), "--address=127.0.0.1".into(), "-d".into(), root, target.to_string()];
    Ok(Some((folder.join("health"), line.into())))
}

fn calls_over_http2_fail_over_and_come_back(pair: Pair) -> Result<()> {
    let (target, other) = (ports::reserve()?, ports::reserve()?);
    let mesh = Mesh::start()?;
    mesh.apply(&(services(pair, |target| intent::http2(8080, target), target, other) + FAILOVER))?;
    let Some((health, orders)) = nghttpd(&mesh, "orders", target)? else { return mesh.finish() };
    let Some((_, standby)) = nghttpd(&mesh, "standby", other)? else { return mesh.finish() };
    mesh.app("shop/standby", standby)?;
    let app = mesh.app("shop/orders", &orders)?;
    let shell = mesh.shell("shop/client")?;
    let answered = |by| answered_over(&shell, "--http2-prior-knowledge", by);
    answered("orders")?;
    std::fs::remove_file(&health)?;
    answered("standby")?;
    std::fs::write(&health, "yes\n")?;
    answered("orders")?;
    app.run.signal(Signal::TERM)?;
    app.run.wait(LONG)?;
    answered("standby")?;
    mesh.app("shop/orders", &orders)?;
    answered("orders")?;
    mesh.finish()
}

/// A server of bytes that says `name` to whoever connects.
fn greeter(name: &str, target: u16) -> Result<Vec<String>> {
    let script = format!(
        "import socketserver as s\n\
         class H(s.BaseRequestHandler):\n\
         \x20   def handle(self):\n\
         \x20       self.request.sendall(b'{name}\\n'); self.request.recv(100)\n\
         class S(s.ThreadingTCPServer): allow_reuse_address = True; daemon_threads = True\n\
         S(('127.0.0.1', {target}), H).serve_forever()\n"
    );
    Ok(vec![peers::python()?.display().to_string(), "-c".into(), script])
}

fn connections_fail_over_and_come_back(pair: Pair) -> Result<()> {
    const POLICY: &str = "---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec: {targetRef: {kind: Service, name: orders}, failover: [{name: standby, port: bytes}]}
";
    let (target, other) = (ports::reserve()?, ports::reserve()?);
    let mesh = Mesh::start()?;
    let documents = services(pair, |target| intent::tcp(7000, target), target, other);
    mesh.apply(&(documents + POLICY))?;
    mesh.app("shop/standby", greeter("standby", other)?)?;
    let mut orders = mesh.app("shop/orders", greeter("orders", target)?)?;
    let shell = mesh.shell("shop/client")?;
    let address = shell.address("orders", 7000)?;
    let greeted = |by: &str| {
        until(&format!("a greeting of {by}"), LONG, || {
            let greeting = Connection::open(address).and_then(|mut connection| {
                connection.bytes(by.len()).map(|bytes| String::from_utf8_lossy(bytes.as_ref()).into_owned())
            });
            match greeting {
                Ok(greeting) if greeting == by => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
    };
    greeted("orders")?;
    for _ in 0..2 {
        orders.run.signal(Signal::TERM)?;
        orders.run.wait(LONG)?;
        greeted("standby")?;
        orders = mesh.app("shop/orders", greeter("orders", target)?)?;
        greeted("orders")?;
    }
    mesh.finish()
}

/// Both services run in both zones: the own zone, then the other, then the standby in the own zone, then there.
fn calls_leave_their_zone_before_their_service(pair: Pair) -> Result<()> {
    const ZONES: [(&str, &str); 4] =
        [("host1", "east"), ("host2", "east"), ("host3", "west"), ("host4", "west")];
    let Some(hosts) = Hosts::new(4)? else { return Ok(()) };
    let (target, other) = (ports::reserve()?, ports::reserve()?);
    let options = Options::default().hosts(hosts);
    let mesh = ZONES.into_iter().fold(options, |options, (host, zone)| options.zone(host, zone)).start()?;
    let documents = services(pair, |target| intent::http(8080, target), target, other);
    mesh.apply(&(documents + FAILOVER))?;
    let shell = mesh.shell_on("host1", "shop/client")?;
    // As many callers in both zones, and two endpoints of each service in each.
    let _other = mesh.shell_on("host3", "shop/client")?;
    let folder = mesh.scratch()?;
    let mut unwell = Vec::new();
    for service in ["orders", "standby"] {
        for (host, zone) in ZONES {
            let (file, target) =
                (folder.join(format!("{service}-{zone}")), if service == "orders" { target } else { other });
            mesh.spawn(
                host,
                &format!("shop/{service}"),
                server(&format!("{service}-{zone}"), target, &file)?,
            )?;
            unwell.push(file);
        }
    }
    for service in ["shop/orders", "shop/standby"] {
        mesh.wait_instances("four ready instances", service, LONG, |all| {
            all.len() == 4 && all.iter().all(|instance| instance.state == "ready")
        })?;
    }
    answered(&shell, "orders-east")?;
    for (file, then) in
        ["orders-west", "standby-east", "standby-west"].into_iter().enumerate().map(|(n, then)| (n * 2, then))
    {
        std::fs::write(unwell.get(file).context("a file of each zone")?, "")?;
        answered(&shell, then)?;
    }
    // And back, in one step.
    for file in &unwell {
        if file.exists() {
            std::fs::remove_file(file)?;
        }
    }
    answered(&shell, "orders-east")?;
    mesh.finish()
}
