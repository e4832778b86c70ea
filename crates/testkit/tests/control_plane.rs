//! The control plane: what it acknowledges is true and stays, and nothing that runs needs it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use outrider_api::http::ObjectView;
use outrider_testkit::http::Connection;
use outrider_testkit::origin::Origin;
use outrider_testkit::process::{self, run};
use outrider_testkit::shell::Shell;
use outrider_testkit::wait::{LONG, pass};
use outrider_testkit::{Mesh, ports, report, until};
use rustix::process::Signal;

fn intent(target: u16, timeout: &str) -> String {
    format!(
        "
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: client, namespace: shop}}
spec: {{role: client, calls: [web]}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  role: server
  ports: [{{name: http, port: 8080, targetPort: {target}, protocol: http}}]
  timeouts: {{request: {timeout}}}
"
    )
}

struct Scene {
    mesh: Mesh,
    _origin: Origin,
    shell: Shell,
    address: SocketAddr,
    target: u16,
}

fn scene() -> Result<Scene> {
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    mesh.apply(&intent(target, "15s"))?;
    let origin = Origin::http(target)?;
    mesh.stand_in("shop/web")?;
    let shell = mesh.shell("shop/client")?;
    let address = shell.address("web", 8080)?;
    until("the first answer", LONG, || ask(address).map_err(|error| format!("{error:#}")))?;
    Ok(Scene { mesh, _origin: origin, shell, address, target })
}

fn ask(address: SocketAddr) -> Result<()> {
    let response = Connection::open(address)?.get("web", "/asked")?;
    ensure!(response.text() == "/asked", "{:?} {:?}", response.head.line, response.reason());
    Ok(())
}

/// N29: `apply --wait` returns when the change is in use, or names the proxies that do not use it.
#[test]
fn apply_waits_for_proxies_and_names_those_that_are_behind() -> Result<()> {
    let scene = scene()?;
    let mesh = &scene.mesh;
    let wait = |timeout: &str, limit: &str| -> Result<process::Finished> {
        run(mesh.apply_command(&intent(scene.target, timeout), &["--wait", "--timeout", limit])?, LONG * 2)
    };
    wait("10s", "30s")?.ok()?;
    let client = mesh.instance_of("shop/client")?;
    assert_eq!((client.proxy.config.as_str(), client.proxy.behind.len()), ("current", 0));

    // A process that stands still acknowledges nothing.
    process::send(client.proxy.pid, Signal::STOP)?;
    let ended = wait("9s", "2s")?;
    process::send(client.proxy.pid, Signal::CONT)?;
    assert_eq!(ended.code, 3, "{ended:?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    ensure!(said.contains(&format!("shop/{}", client.name)), "not named: {said}");
    let web = mesh.instance_of("shop/web")?;
    ensure!(!said.contains(&format!("shop/{}", web.name)), "named without need: {said}");

    // The change was made all the same, and is in use as soon as it can be.
    wait("9s", "30s")?.ok()?;
    mesh.wait_current()?;
    ask(scene.address)?;

    // What is wrong is refused as a whole, and changes nothing.
    let before = serde_json::to_string(&mesh.get::<ObjectView>("services")?)?;
    let bad = format!(
        "{}\n---\n{}",
        intent(scene.target, "1s"),
        intent(scene.target, "soon").replace("web", "other")
    );
    let ended = run(mesh.apply_command(&bad, &["--wait"])?, LONG)?;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(serde_json::to_string(&mesh.get::<ObjectView>("services")?)?, before);
    scene.mesh.finish()
}

/// SIGKILL in the middle of applies, again and again: what was acknowledged is there, and of what was not,
/// everything or nothing.
#[test]
fn a_killed_server_loses_nothing_it_acknowledged() -> Result<()> {
    const KILLS: u32 = 20;
    let mut mesh = Mesh::start()?;
    let mut acknowledged = BTreeSet::new();
    let mut unknown = BTreeSet::new();
    let mut number = 0_u32;
    for round in 0..KILLS {
        // Some that are acknowledged, then some that are cut.
        let mut running = Vec::new();
        let quiet = round % 3;
        for index in 0..quiet + 4 {
            number += 1;
            let document = |part: &str| {
                format!(
                    "apiVersion: outrider.dev/v1alpha1\nkind: Service\n\
                     metadata: {{name: s{number}-{part}, namespace: round}}\nspec: {{role: client}}\n"
                )
            };
            let yaml = format!("{}---\n{}", document("a"), document("b"));
            let command = mesh.apply_command(&yaml, &[])?;
            if index < quiet {
                run(command, LONG)?.ok()?;
                acknowledged.insert(number);
            } else {
                running.push((number, std::thread::spawn(move || run(command, LONG))));
            }
        }
        // Any moment of the next few tens of milliseconds, different each time.
        pass(Duration::from_millis(u64::from(round * 7 % 60)));
        mesh.kill_server()?;
        for (number, thread) in running {
            let ended = thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            let set = if ended.code == 0 { &mut acknowledged } else { &mut unknown };
            set.insert(number);
        }
        mesh.start_server()?;
    }
    let names: BTreeSet<String> =
        mesh.get::<ObjectView>("services")?.into_iter().map(|object| object.key.name).collect();
    for number in &acknowledged {
        ensure!(names.contains(&format!("s{number}-a")), "change {number} was acknowledged and is lost");
    }
    for number in acknowledged.iter().chain(&unknown) {
        let halves = ["a", "b"].map(|part| names.contains(&format!("s{number}-{part}")));
        ensure!(halves[0] == halves[1], "half of change {number} is there");
    }
    let kept = unknown.iter().filter(|number| names.contains(&format!("s{number}-a"))).count();
    report(&format!(
        "{KILLS} kills: {} changes acknowledged, {} not, of which {kept} had been made",
        acknowledged.len(),
        unknown.len()
    ));
    mesh.finish()
}

/// Calls without a pause on another thread; every failure is kept.
struct Caller {
    stop: std::sync::Arc<AtomicBool>,
    calls: std::sync::Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Caller {
    fn start(address: SocketAddr) -> Self {
        let (stop, calls) = (std::sync::Arc::new(AtomicBool::new(false)), std::sync::Arc::default());
        let (stopped, counted): (_, std::sync::Arc<AtomicU64>) =
            (stop.clone(), std::sync::Arc::clone(&calls));
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match ask(address) {
                    Ok(()) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => failures.push(format!("{error:#}")),
                }
                pass(Duration::from_millis(2));
            }
            failures
        });
        Self { stop, calls, thread }
    }

    /// Waits for this many more calls that went well.
    fn more(&self, number: u64) -> Result<()> {
        let goal = self.calls.load(Ordering::Relaxed) + number;
        until(&format!("{number} more calls"), LONG, || match self.calls.load(Ordering::Relaxed) {
            done if done >= goal => Ok(()),
            done => Err(format!("{} of them", number - (goal - done))),
        })
    }

    fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.thread.join().map_err(|_| anyhow::anyhow!("the caller panicked"))?;
        ensure!(failures.is_empty(), "{} calls failed, first: {}", failures.len(), failures[0]);
        Ok(())
    }
}

/// N26, and promise 3: every tier outlives the tier above it.
#[test]
fn traffic_goes_on_without_control_plane_and_without_agent() -> Result<()> {
    let Scene { mut mesh, _origin, shell, address, target } = scene()?;
    let caller = Caller::start(address);
    caller.more(50)?;

    mesh.kill_server()?;
    caller.more(200)?;
    let ended = mesh.cli(&["get", "instances", "-A"])?;
    assert_eq!(ended.code, 4, "{ended:?}");

    mesh.start_server()?;
    let start = Instant::now();
    mesh.wait_instances("the known instance", "shop/web", LONG, |all| {
        all.len() == 1 && all[0].state == "ready"
    })?;
    report(&format!("known again {:?} after the server's start", start.elapsed()));
    caller.more(100)?;
    mesh.apply(&intent(target, "7s"))?;
    mesh.wait_current()?;

    mesh.kill_agent("node1")?;
    caller.more(200)?;
    caller.finish()?;
    drop(shell);

    // The next agent of this node clears up and serves again, with the identity it has.
    mesh.start_agent("node1")?;
    mesh.stand_in("shop/web")?;
    let line = ["curl", "-sS", "--fail", "--retry", "5", "--retry-all-errors", "http://web:8080/asked"];
    let ended = run(mesh.run_command("node1", "shop/client", line)?, LONG)?.ok()?;
    assert_eq!(ended.stdout, "/asked");
    mesh.finish()
}

/// A join token lets one agent in, once; a made-up one nobody.
#[test]
fn a_join_token_is_good_once() -> Result<()> {
    let mesh = Mesh::start()?;
    let token = mesh.cli(&["token", "create"])?.ok()?.stdout.trim().to_owned();
    let grpc = mesh.grpc().to_string();
    let join = |name: &str, token: &str| -> Result<process::Proc> {
        let folder = mesh.scratch()?;
        let mut command = mesh.outrider()?;
        command.args(["agent", "--node", name, "--server", &grpc, "--join", token, "--state"]).arg(&folder);
        command.arg("--runtime").arg(folder.join("r"));
        process::Proc::start(name, command, &folder.join("log"))
    };
    let first = join("first", &token)?;
    until("the first to be connected", LONG, || {
        let nodes = mesh.get_nodes().map_err(|error| format!("{error:#}"))?;
        let connected = nodes.iter().any(|node| node.name == "first" && node.connected);
        if connected { Ok(()) } else { Err(format!("{nodes:?}; {}", first.output())) }
    })?;
    let mut changed = token.clone().into_bytes();
    // The secret is the part before the last.
    let position = token.rfind('.').unwrap_or(1) - 1;
    changed[position] = if changed[position] == b'0' { b'1' } else { b'0' };
    let mut pin = token.clone().into_bytes();
    let end = pin.len() - 1;
    pin[end] = if pin[end] == b'0' { b'1' } else { b'0' };
    for (name, token) in [
        ("second", token.clone()),
        ("guesser", String::from_utf8(changed)?),
        ("elsewhere", String::from_utf8(pin)?),
    ] {
        let agent = join(name, &token)?;
        // It may end with an error, or go on trying and say why; it never gets in.
        until("a refusal", LONG, || {
            let output = agent.output();
            let words = ["token", "join", "root"].iter().any(|word| output.to_lowercase().contains(word));
            let refused = output.to_lowercase().contains("error") || matches!(agent.ended(), Ok(Some(_)));
            if words && refused { Ok(()) } else { Err(output) }
        })?;
        let nodes = mesh.get_nodes()?;
        ensure!(nodes.iter().all(|node| node.name != name), "{name} is in: {nodes:?}");
        agent.signal(Signal::TERM)?;
        agent.wait(LONG)?;
        ensure!(!agent.output().contains(&token), "the log of {name} shows the token");
    }
    first.signal(Signal::TERM)?;
    first.wait(LONG)?;
    mesh.finish()
}
