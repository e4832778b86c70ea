//! Several hosts: agents that join over a network, traffic that crosses it, and a host that vanishes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrider_testkit::capture::Capture;
use outrider_testkit::mesh::Options;
use outrider_testkit::process::{self, marked};
use outrider_testkit::shell::Shell;
use outrider_testkit::wait::LONG;
use outrider_testkit::{
    Engine, Hosts, Mesh, Pair, for_each_pair, intent, peers, ports, promised, report, tls, until,
};
use rustix::process::Signal;

for_each_pair!(traffic_crosses_hosts_and_a_silent_host_is_left);

/// A server that says which host it is on, after `delay` seconds.
fn server(host: &str, target: u16, delay: u32) -> Result<Vec<String>> {
    let script = format!(
        "import time, http.server as h\ntime.sleep({delay})\n\
         class H(h.BaseHTTPRequestHandler):\n\
         \x20   protocol_version = 'HTTP/1.1'\n\
         \x20   def do_GET(self):\n\
         \x20       b = b'{host}\\n'; self.send_response(200); self.send_header('content-length', str(len(b)))\n\
         \x20       self.end_headers(); self.wfile.write(b)\n\
         \x20   def log_message(self, *a): pass\n\
         h.ThreadingHTTPServer(('127.0.0.1', {target}), H).serve_forever()\n"
    );
    Ok(vec![peers::python()?.display().to_string(), "-c".into(), script])
}

/// Asks `count` times, each on a connection of its own; the answers, one a line, a reason where there is one.
fn ask(shell: &Shell, count: u32) -> Result<Vec<String>> {
    let script = format!(
        "for i in $(seq {count}); do curl -sS -m 10 -w '%header{{x-outrider-reason}}' http://web:8080/ || echo failed; done"
    );
    Ok(shell.ok(&script, LONG * 2)?.lines().map(str::to_owned).collect())
}

fn traffic_crosses_hosts_and_a_silent_host_is_left(pair: Pair) -> Result<()> {
    let Some(hosts) = Hosts::new(3)? else { return Ok(()) };
    let target = ports::reserve()?;
    let mut mesh = Options::default().hosts(hosts).start()?;
    mesh.apply(&(intent::client_and_web(pair, target) + &intent::timeouts("connect: 1s")))?;
    let shell = mesh.shell_on("host1", "shop/client")?;
    let near = mesh.spawn("host2", "shop/web", server("host2", target, 0)?)?;
    mesh.wait_ready_app(&near)?;
    until("an answer of host2", LONG, || match ask(&shell, 1) {
        Ok(answers) if answers == ["host2"] => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let nodes = mesh.get_nodes()?;
    for host in 1..=3 {
        let node =
            nodes.iter().find(|node| node.name == format!("host{host}")).context("a node is missing")?;
        assert_eq!(node.address, Hosts::address(host).to_string());
    }

    // N14 with somebody to call meanwhile: a second instance starts slowly and costs no call.
    let far = mesh.spawn("host3", "shop/web", server("host3", target, 1)?)?;
    let both = until("answers of both hosts", LONG, || {
        let answers = ask(&shell, 10).map_err(|error| format!("{error:#}"))?;
        if let Some(other) = answers.iter().find(|answer| !["host2", "host3"].contains(&answer.as_str())) {
            return Ok(Err(other.clone()));
        }
        if answers.iter().any(|answer| answer == "host3") { Ok(Ok(())) } else { Err(format!("{answers:?}")) }
    })?;
    ensure!(both.is_ok(), "a call failed while an instance started: {both:?}");
    mesh.wait_ready_app(&far)?;

    // The leg crosses the network in TLS 1.3.
    let endpoint = mesh.instances_of("shop/web")?;
    let endpoint = endpoint.iter().find(|i| i.node == "host2").and_then(|i| i.endpoints.get("http"));
    let endpoint: std::net::SocketAddr = endpoint.context("no endpoint on host2")?.parse()?;
    assert_eq!(endpoint.ip(), Hosts::address(2));
    let folder = mesh.scratch()?;
    let capture = Capture::start(&folder, &mesh.hosts()?.prefix(2), "eth0", endpoint.port())?;
    ask(&shell, 20)?;
    for flow in capture.map(Capture::finish).transpose()?.context("root, but no capture")? {
        for bytes in [&flow.caller, &flow.listener] {
            tls::records(bytes)?;
        }
    }

    // N59: the cable is pulled, nobody is told. Its endpoint is gone in 10 s, and calls go on.
    let limit = promised(Duration::from_secs(10));
    let gone = |host: &'static str| {
        move |all: &[outrider_api::http::InstanceView]| {
            all.iter().all(|instance| instance.node != host || instance.state != "ready")
        }
    };
    mesh.hosts()?.set_cable(3, false)?;
    let start = Instant::now();
    mesh.wait_instances("no ready instance on host3", "shop/web", limit, gone("host3"))?;
    report(&format!("a host without a cable was left after {:?}", start.elapsed()));
    let answers = until("answers of host2 only", LONG, || {
        let answers = ask(&shell, 10).map_err(|error| format!("{error:#}"))?;
        if answers.iter().all(|answer| answer == "host2") { Ok(answers) } else { Err(format!("{answers:?}")) }
    })?;
    assert_eq!(answers.len(), 10);

    // It comes back by itself.
    mesh.hosts()?.set_cable(3, true)?;
    until("answers of host3 again", LONG * 2, || {
        let answers = ask(&shell, 10).map_err(|error| format!("{error:#}"))?;
        if answers.iter().any(|answer| answer == "host3") { Ok(()) } else { Err(format!("{answers:?}")) }
    })?;

    // The other way a host ends: every process of it at once.
    let start = Instant::now();
    kill_host(&mut mesh, "host2", &near)?;
    mesh.wait_instances("no ready instance on host2", "shop/web", limit, gone("host2"))?;
    report(&format!("a dead host was left after {:?}", start.elapsed()));
    until("answers of host3 only", LONG, || {
        let answers = ask(&shell, 10).map_err(|error| format!("{error:#}"))?;
        if answers.iter().all(|answer| answer == "host3") { Ok(()) } else { Err(format!("{answers:?}")) }
    })?;
    mesh.finish()
}

/// Sends and reads lines at a pace until that fails, and says what with.
const TALK: &str = "
import socket, time
s = socket.create_connection(('db', 7000), 30)
s.settimeout(None)
f = s.makefile('rwb', 0)
try:
    while True:
        f.write(b'line\\n')
        if f.readline() != b'line\\n': raise EOFError('the end')
        print('echoed', flush=True)
        time.sleep(0.1)
except (OSError, EOFError) as e:
    print('over', type(e).__name__, flush=True)
";

const ECHO: &str = "
import socketserver as s
class H(s.StreamRequestHandler):
    def handle(self):
        for line in self.rfile: self.wfile.write(line)
class T(s.ThreadingTCPServer): allow_reuse_address = True
T(('127.0.0.1', TARGET), H).serve_forever()
";

/// Edge case 34: a stream of bytes to a host that lost its network ends with a reason, at both sides of the mesh, although no
/// packet says so: TCP by itself would send again for a quarter of an hour.
#[test]
fn e34_a_stream_to_a_host_that_vanished_ends() -> Result<()> {
    let Some(hosts) = Hosts::new(2)? else { return Ok(()) };
    let target = ports::reserve()?;
    let mesh = Options::default().hosts(hosts).start()?;
    mesh.apply(
        &(intent::client(Engine::Native, "client", "db")
            + &intent::server(Engine::Native, "db", &intent::tcp(7000, target))),
    )?;
    let shell = mesh.shell_on("host1", "shop/client")?;
    let python = peers::python()?.display().to_string();
    let echo = ECHO.replace("TARGET", &target.to_string());
    let db = mesh.spawn("host2", "shop/db", vec![python.clone(), "-c".into(), echo])?;
    mesh.wait_ready_app(&db)?;
    let talk = format!("{python} -c \"{TALK}\"");
    // Its proxy may not know the endpoint yet.
    let job = until("an echo", LONG, || {
        let job = shell.spawn(&talk).map_err(|error| format!("{error:#}"))?;
        until("a word", LONG, || match job.stdout() {
            said if said.is_empty() => Err("silence".to_owned()),
            said => Ok(said),
        })
        .map_err(|error| format!("{error:#}"))
        .and_then(|said| if said.starts_with("echoed") { Ok(job) } else { Err(said) })
    })?;

    mesh.hosts()?.set_cable(2, false)?;
    let start = Instant::now();
    let ended = job.wait(LONG)?;
    report(&format!("a stream to a host without a cable ended after {:?}", start.elapsed()));
    ensure!(ended.stdout.ends_with("over ConnectionResetError\n"), "{}", ended.stdout);
    until("the reason", LONG, || {
        let client = mesh.instance_of("shop/client").map_err(|error| format!("{error:#}"))?;
        let reasons = client.proxy.outbound.get("shop/db").map(|traffic| traffic.reasons.clone());
        let said = reasons.as_ref().is_some_and(|reasons| reasons.contains_key("upstream_reset"));
        if said { Ok(()) } else { Err(format!("{reasons:?}")) }
    })?;
    mesh.hosts()?.set_cable(2, true)?;
    // The other side has had no answer either, and is told as much.
    until("the reason at the side of the one that was called", LONG * 2, || {
        let db = mesh.instance_of("shop/db").map_err(|error| format!("{error:#}"))?;
        let reasons = db.proxy.inbound.reasons;
        if reasons.contains_key("client_gone") { Ok(()) } else { Err(format!("{reasons:?}")) }
    })?;
    mesh.finish()
}

/// SIGKILL to everything on a host.
fn kill_host(mesh: &mut Mesh, node: &str, app: &outrider_testkit::mesh::App) -> Result<()> {
    let runtime = mesh.runtime(node).display().to_string();
    // The application is a child of `outrider run`, which is marked by the socket it was given.
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", app.run.pid()))?;
    mesh.kill_agent(node)?;
    for child in children.split_whitespace() {
        process::send(child.parse()?, Signal::KILL)?;
    }
    for (pid, _) in marked(&runtime) {
        process::send(pid, Signal::KILL)?;
    }
    app.run.wait(LONG)?;
    Ok(())
}
