//! Lives of applications, names and proxies: starts, stops, and what happens meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use outrider_testkit::http::{Connection, Response};
use outrider_testkit::intent::{self, client_and_web};
use outrider_testkit::mesh::Options;
use outrider_testkit::origin::Origin;
use outrider_testkit::process::{self, User, run, shell_code};
use outrider_testkit::wait::{LONG, pass};
use outrider_testkit::{Mesh, Pair, for_each_pair, peers, ports, promised, report, until};
use rustix::process::Signal;

for_each_pair!(
    a_first_instruction_may_be_a_call,
    a_running_client_reaches_a_service_created_later,
    a_slow_server_gets_nothing_before_it_listens,
);

/// N13. As many as `OUTRIDER_COLD_STARTS` says, by default 30 for the native pair and 6 with Envoy, whose
/// process alone takes 100 ms.
fn a_first_instruction_may_be_a_call(pair: Pair) -> Result<()> {
    let count = std::env::var("OUTRIDER_COLD_STARTS").ok().and_then(|text| text.parse().ok());
    let count = count.unwrap_or(if pair == Pair::NATIVE { 30 } else { 6 });
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    mesh.apply(&client_and_web(pair, target))?;
    let _origin = Origin::http(target)?;
    mesh.stand_in("shop/web")?;
    let start = Instant::now();
    let failures = std::sync::Mutex::new(Vec::new());
    let next = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < count {
                    let line = ["curl", "-sS", "--fail", "--max-time", "10", "http://web:8080/first"];
                    let ended = mesh
                        .run_command("node1", "shop/client", line)
                        .and_then(|command| run(command, LONG * 2));
                    if !matches!(&ended, Ok(ended) if ended.code == 0 && ended.stdout == "/first") {
                        failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(ended);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    ensure!(failures.is_empty(), "{} of {count} failed: {:?}", failures.len(), failures.first());
    report(&format!("{count} cold starts, two at a time: {:?} each", start.elapsed() * 2 / count));
    mesh.wait_instances("no instance", "shop/client", LONG, <[_]>::is_empty)?;
    mesh.finish()
}

/// N24: within 2 s of the command, by name, without a restart; and gone with a reason as quickly.
fn a_running_client_reaches_a_service_created_later(pair: Pair) -> Result<()> {
    let limit = promised(Duration::from_secs(2));
    let (web, later) = (ports::reserve()?, ports::reserve()?);
    let mesh = Mesh::start()?;
    let hosts_before = std::fs::read("/etc/hosts")?;
    mesh.apply(&client_and_web(pair, web))?;
    let shell = mesh.shell("shop/client")?;
    let client = shell.app.run.pid();
    ensure!(shell.run("getent hosts later", LONG)?.code != 0, "a name of nothing");

    let created = Instant::now();
    let document = intent::client(pair.client, "client", "web, later")
        + &intent::server(pair.server, "later", &intent::http(9090, later));
    mesh.apply(&document)?;
    let script =
        "curl -sS -m 5 -o /dev/null -w '%{http_code} %header{x-outrider-reason}' http://later:9090/x";
    let ask = |wanted: &str| {
        let ended = shell.run(script, LONG).map_err(|error| format!("{error:#}"))?;
        if ended.stdout == wanted { Ok(()) } else { Err(format!("{ended:?}")) }
    };
    // Declared and without an instance: the name is there and the answer says why it is no use yet.
    let left = limit.saturating_sub(created.elapsed());
    until("the name of a service created later", left, || ask(&format!("503 {}", pair.no_endpoints())))?;
    report(&format!("the name was usable {:?} after apply began", created.elapsed()));

    let _origin = Origin::http(later)?;
    let app = mesh.stand_in("shop/later")?;
    let ready = Instant::now();
    until("an answer of a service created later", limit, || ask("200 "))?;
    report(&format!("it answered {:?} after its instance was ready", ready.elapsed()));
    assert_eq!(shell.app.run.pid(), client);
    assert_eq!(shell.app.run.ended()?, None);
    ensure!(std::fs::read("/etc/hosts")? == hosts_before, "the host's own /etc/hosts changed");

    // Deleted while it is still called: a clear reason, on new connections and on those that were open.
    let address = shell.address("later", 9090)?;
    let mut open = Connection::open(address)?;
    assert_eq!(open.get("later", "/x")?.status()?, 200);
    let deleted = Instant::now();
    mesh.cli(&["delete", "service", "later", "-n", "shop", "--force"])?.ok()?;
    let left = limit.saturating_sub(deleted.elapsed());
    until("the reason of a deleted service", left, || ask("503 unknown_service"))?;
    report(&format!("callers were told {:?} after the deletion began", deleted.elapsed()));
    if let Ok(response) = open.get("later", "/x") {
        assert_eq!((response.status()?, response.reason()), (503, Some("unknown_service")));
    }
    assert_eq!(shell.address("later", 9090)?, address, "the address changed");

    // Declared again, it is what it was.
    let again = Instant::now();
    mesh.apply(&document)?;
    let left = limit.saturating_sub(again.elapsed());
    until("an answer of a service declared again", left, || ask("200 "))?;
    assert_eq!(shell.address("later", 9090)?, address, "the address changed");
    mesh.cli(&["delete", "service", "later", "-n", "shop", "--force"])?.ok()?;
    // An instance of a deleted service keeps what it has until its application ends.
    app.end()?;
    mesh.wait_current()?;
    mesh.finish()
}

/// N14.
fn a_slow_server_gets_nothing_before_it_listens(pair: Pair) -> Result<()> {
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    mesh.apply(&client_and_web(pair, target))?;
    let shell = mesh.shell("shop/client")?;
    let address = shell.address("web", 8080)?;
    let python = peers::python()?.display().to_string();
    let script = format!(
        "import time, http.server as h\ntime.sleep(2)\n\
         class H(h.BaseHTTPRequestHandler):\n\
         \x20   def do_GET(self):\n\
         \x20       self.send_response(200); self.send_header('content-length', '2'); self.end_headers(); self.wfile.write(b'up')\n\
         \x20   def log_message(self, *a): pass\n\
         h.ThreadingHTTPServer(('127.0.0.1', {target}), H).serve_forever()\n"
    );
    let app = mesh.spawn("node1", "shop/web", [&python, "-c", &script])?;
    let (mut before, mut after) = (0, 0);
    let start = Instant::now();
    while after < 20 {
        ensure!(start.elapsed() < LONG, "no answer after {before} refusals: {}", app.run.output());
        let response = Connection::open(address)?.get("web", "/")?;
        match (response.status()?, response.reason()) {
            (200, None) => after += 1,
            (503, Some(reason)) if after == 0 && reason == pair.no_endpoints() => {
                before += 1;
                // As often as matters, not as often as possible: the server starts on the same machine.
                pass(Duration::from_millis(5));
            }
            other => anyhow::bail!("{other:?} after {before} refusals and {after} answers"),
        }
    }
    ensure!(before > 0, "the server was not slow");
    mesh.finish()
}

/// N18.
#[test]
fn a_job_ends_with_its_code_and_leaves_no_proxy() -> Result<()> {
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    mesh.apply(&client_and_web(Pair::NATIVE, target))?;
    let _origin = Origin::http(target)?;
    mesh.stand_in("shop/web")?;
    for (script, code) in [
        ("curl -sS --fail http://web:8080/job", 0),
        ("curl -sS --fail http://web:8080/job && exit 7", 7),
        ("curl -sS --fail http://web:8080/status/500", 22),
        ("kill -KILL $$", 137),
        ("exit 255", 255),
    ] {
        let ended = run(mesh.run_command("node1", "shop/client", ["sh", "-c", script])?, LONG * 2)?;
        assert_eq!(ended.code, code, "{script}: {ended:?}");
        let runtime = mesh.runtime("node1").join("p").display().to_string();
        until("the job's proxy to be gone", promised(Duration::from_secs(2)), || {
            let mut proxies = process::marked(&runtime);
            proxies.retain(|(_, line)| line.contains("--node shop/client-"));
            if proxies.is_empty() { Ok(()) } else { Err(format!("{proxies:?}")) }
        })?;
    }
    mesh.wait_instances("no instance", "shop/client", LONG, <[_]>::is_empty)?;

    let ended = run(mesh.run_command("node1", "shop/client", ["/no/such/program"])?, LONG)?;
    assert_eq!(ended.code, 127, "{ended:?}");
    ensure!(ended.stderr.contains("/no/such/program"), "{ended:?}");
    mesh.finish()
}

#[test]
fn signals_reach_the_application_and_their_effect_its_owner() -> Result<()> {
    let mesh = Mesh::start()?;
    mesh.apply(&client_and_web(Pair::NATIVE, ports::reserve()?))?;
    let catch = "import signal, sys, os\n\
        def at(n, f): print('got', signal.Signals(n).name, flush=True); n == signal.SIGTERM and os._exit(3)\n\
        for s in ('TERM', 'HUP', 'USR1', 'USR2', 'INT'): signal.signal(getattr(signal, 'SIG' + s), at)\n\
        print('ready', flush=True)\n\
        while True: signal.pause()\n";
    let python = peers::python()?.display().to_string();
    let app = mesh.spawn("node1", "shop/client", [&python, "-c", catch])?;
    let seen = |words: &str| {
        until(&format!("`{words}`"), LONG, || {
            let output = app.run.output();
            if output.contains(words) { Ok(()) } else { Err(output) }
        })
    };
    seen("ready")?;
    for (signal, name) in [
        (Signal::HUP, "SIGHUP"),
        (Signal::USR1, "SIGUSR1"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::INT, "SIGINT"),
        (Signal::TERM, "SIGTERM"),
    ] {
        app.run.signal(signal)?;
        seen(&format!("got {name}\n"))?;
    }
    assert_eq!(shell_code(app.run.wait(LONG)?), 3);

    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let app = mesh.spawn("node1", "shop/client", ["sh", "-c", "echo up; exec sleep 600"])?;
        until("the application to run", LONG, || {
            let output = app.run.output();
            if output.contains("up") { Ok(()) } else { Err(output) }
        })?;
        app.run.signal(signal)?;
        assert_eq!(shell_code(app.run.wait(LONG)?), code);
    }
    mesh.finish()
}

/// Everything without privileges: control plane, agent, proxies, applications, names, and state.
#[test]
fn nothing_needs_privileges() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        // Every other test shows it then.
        return Ok(());
    }
    let target = ports::reserve()?;
    let mesh = Options::default().user(User::NOBODY).start()?;
    mesh.apply(&client_and_web(Pair::NATIVE, target))?;
    let python = peers::python()?.display().to_string();
    let target = target.to_string();
    mesh.app("shop/web", [&python, "-m", "http.server", &target, "--bind", "127.0.0.1"])?;
    let shell = mesh.shell("shop/client")?;
    until("an answer by name", LONG, || {
        let ended = shell.run("curl -sS --fail -o /dev/null http://web:8080/", LONG);
        match ended {
            Ok(ended) if ended.code == 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    assert_eq!(shell.ok("id -u", LONG)?, "65534\n");
    for (pid, line) in process::marked(&mesh.folder().display().to_string()) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let uids = status.lines().find(|line| line.starts_with("Uid:"));
        assert_eq!(uids, Some("Uid:\t65534\t65534\t65534\t65534"), "{line}");
    }
    mesh.finish()
}

/// A proxy that dies is replaced: connections wait in the sockets that the agent holds, none is refused.
#[test]
fn a_killed_proxy_comes_back_and_refuses_no_connection() -> Result<()> {
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    mesh.apply(&client_and_web(Pair::NATIVE, target))?;
    let _origin = Origin::http(target)?;
    mesh.stand_in("shop/web")?;
    let shell = mesh.shell("shop/client")?;
    let address = shell.address("web", 8080)?;
    let ask = || -> Result<Response> { Connection::open(address)?.get("web", "/again") };
    until("the first answer", LONG, || match ask() {
        Ok(response) if response.text() == "/again" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    for round in 1..=5 {
        for service in ["shop/client", "shop/web"] {
            let before = mesh.instance_of(service)?.proxy;
            process::send(before.pid, Signal::KILL)?;
            // Sent while nobody is there to take it, or just after.
            let start = Instant::now();
            let response = if service == "shop/client" {
                ask()?
            } else {
                // A pooled connection to the dead proxy may break a request; a new one must not be refused.
                until("an answer", promised(Duration::from_secs(2)), || match ask() {
                    Ok(response) if response.text() == "/again" => Ok(response),
                    Err(error) if format!("{error:#}").contains("refused") => {
                        Err(format!("REFUSED {error:#}"))
                    }
                    other => Err(format!("{other:?}")),
                })?
            };
            assert_eq!(response.text(), "/again", "{response:?}");
            report(&format!("round {round}, {service}: answered {:?} after the kill", start.elapsed()));
            mesh.wait_instances("another proxy process", service, LONG, |all| {
                all.len() == 1 && all[0].proxy.pid != before.pid && all[0].proxy.restarts > before.restarts
            })?;
        }
    }
    mesh.finish()
}
