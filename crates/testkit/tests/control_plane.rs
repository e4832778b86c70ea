//! The control plane: what it acknowledges is true and stays, and nothing that runs needs it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use outrider_api::http::{ApplyRequest, ObjectView, Source};
use outrider_testkit::http::Connection;
use outrider_testkit::mesh::Options;
use outrider_testkit::origin::Origin;
use outrider_testkit::process::{self, run};
use outrider_testkit::shell::Shell;
use outrider_testkit::wait::{LONG, pass};
use outrider_testkit::{Mesh, Pair, intent, ports, promised, report, until};
use rustix::process::Signal;

fn services(target: u16, timeout: &str) -> String {
    intent::client_and_web(Pair::NATIVE, target) + &intent::timeouts(&format!("request: {timeout}"))
}

struct Scene {
    mesh: Mesh,
    _origin: Origin,
    shell: Shell,
    address: SocketAddr,
    target: u16,
}

fn scene() -> Result<Scene> {
    scene_with(Options::default())
}

fn scene_with(options: Options) -> Result<Scene> {
    let target = ports::reserve()?;
    let mesh = options.start()?;
    mesh.apply(&services(target, "15s"))?;
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

/// What cannot be logged is lost, and nothing else is: control plane, agent and `outrider run` go on.
#[test]
fn nothing_needs_room_for_its_log() -> Result<()> {
    let mut scene = scene_with(Options::default().full_outputs())?;
    let apply = |scene: &Scene, timeout: &str| -> Result<()> {
        let intent = services(scene.target, timeout);
        run(scene.mesh.apply_command(&intent, &["--wait", "--timeout", "30s"])?, LONG * 2)?.ok().map(drop)
    };
    apply(&scene, "10s")?;
    scene.mesh.kill_server()?;
    scene.mesh.start_server()?;
    scene.mesh.kill_agent("node1")?;
    scene.mesh.start_agent("node1")?;
    apply(&scene, "11s")?;
    ask(scene.address)?;
    scene.mesh.finish()
}

/// N29: `apply --wait` returns when the change is in use, or names the proxies that do not use it.
#[test]
fn apply_waits_for_proxies_and_names_those_that_are_behind() -> Result<()> {
    let scene = scene()?;
    let mesh = &scene.mesh;
    let wait = |timeout: &str, limit: &str| -> Result<process::Finished> {
        run(mesh.apply_command(&services(scene.target, timeout), &["--wait", "--timeout", limit])?, LONG * 2)
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
        services(scene.target, "1s"),
        services(scene.target, "soon").replace("web", "other")
    );
    let ended = run(mesh.apply_command(&bad, &["--wait"])?, LONG)?;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(serde_json::to_string(&mesh.get::<ObjectView>("services")?)?, before);
    scene.mesh.finish()
}

/// Documents of change `number`: two services that must exist both or not at all.
fn change(number: u32) -> String {
    let part = |part: &str| {
        format!(
            "apiVersion: outrider.dev/v1alpha1\nkind: Service\n\
             metadata: {{name: s{number}-{part}, namespace: round}}\nspec: {{role: client}}\n"
        )
    };
    format!("{}---\n{}", part("a"), part("b"))
}

/// Applies a change by the API's socket, without the 30 ms that a process takes to start; how long it took.
fn apply_directly(socket: &Path, number: u32) -> Result<Duration> {
    let sources = vec![Source { name: "change".into(), text: change(number) }];
    let body = serde_json::to_vec(&ApplyRequest { sources, ..ApplyRequest::default() })?;
    let start = Instant::now();
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LONG))?;
    let mut connection = Connection::new(stream);
    let head = format!(
        "POST /v1/apply HTTP/1.1\r\nHost: server\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    connection.send(head.as_bytes())?;
    connection.send(&body)?;
    let response = connection.response("POST")?;
    ensure!(response.status()? == 200, "{}", response.text());
    Ok(start.elapsed())
}

/// Numbers from a seed, for moments that differ but can be had again.
struct Random(u64);

impl Random {
    /// At most `limit`.
    fn upto(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        limit.mul_f64((self.0 >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

/// SIGKILL while applies are on their way, again and again: what was acknowledged is there, and of what was
/// not, everything or nothing. `OUTRIDER_TEST_SEED` chooses the moments, `OUTRIDER_KILLS` how many.
#[test]
fn a_killed_server_loses_nothing_it_acknowledged() -> Result<()> {
    const WRITERS: usize = 3;
    let chosen = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (kills, seed) = (chosen("OUTRIDER_KILLS").unwrap_or(30), chosen("OUTRIDER_TEST_SEED").unwrap_or(1));
    report(&format!("OUTRIDER_TEST_SEED={seed}"));
    let mut random = Random(seed);
    let mut mesh = Mesh::start()?;
    let socket = mesh.api_socket();
    let next = AtomicU32::new(0);
    let (acknowledged, unknown) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new()));
    let put = |set: &Mutex<BTreeSet<u32>>, number| {
        set.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(number);
    };
    let mut longest_offset = Duration::ZERO;
    for _ in 0..kills {
        std::thread::scope(|scope| -> Result<()> {
            let (done, took) = mpsc::channel();
            for _ in 0..WRITERS {
                let (done, next, socket) = (done.clone(), &next, &socket);
                let (acknowledged, unknown) = (&acknowledged, &unknown);
                scope.spawn(move || {
                    // Until the kill; what is cut may have been made or not.
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Ok(time) = apply_directly(socket, number) else {
                            put(unknown, number);
                            return;
                        };
                        put(acknowledged, number);
                        // Nobody counts any more after the kill.
                        let _ = done.send(time);
                    }
                });
            }
            // Every writer is at work again at once, so any moment up to the time of one apply cuts some.
            let typical = (0..WRITERS).map(|_| took.recv_timeout(LONG)).sum::<Result<Duration, _>>();
            let killed = typical.map(|sum| {
                let offset = random.upto(sum / WRITERS as u32);
                longest_offset = longest_offset.max(offset);
                pass(offset);
            });
            // Killed in any case: the writers end with it.
            mesh.kill_server()?;
            Ok(killed?)
        })?;
        mesh.start_server()?;
    }
    let acknowledged = acknowledged.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let unknown = unknown.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Each writer had one apply on its way when the server died.
    assert_eq!(unknown.len(), kills as usize * WRITERS);
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
        "{kills} kills, up to {longest_offset:?} into an apply: {} changes acknowledged, {} not, of which {kept} \
         had been made",
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
    mesh.apply(&services(target, "7s"))?;
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
    // What an agent does not know to have ended when it is ended itself stays for the next one.
    mesh.end_applications()?;
    until("the agent to have ended their proxies", LONG, || match mesh.locals("node1") {
        Ok(left) if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })?;
    mesh.finish()
}

/// While there is no control plane, proxies that die are replaced with what they had, and an application that
/// starts waits, says for what, and runs as soon as it can.
#[test]
fn proxies_and_applications_start_without_control_plane() -> Result<()> {
    let Scene { mut mesh, _origin, shell, address, .. } = scene()?;
    let pids = ["shop/client", "shop/web"].map(|service| mesh.instance_of(service).map(|i| i.proxy.pid));
    mesh.kill_server()?;
    for pid in pids {
        process::send(pid?, Signal::KILL)?;
        until("an answer through a new proxy", LONG, || ask(address).map_err(|error| format!("{error:#}")))?;
    }

    let line = ["curl", "-sS", "--fail", "--max-time", "10", "http://web:8080/first"];
    let late = mesh.spawn("node1", "shop/client", line)?;
    // It may run already, if all it needs is known here.
    until("the application to run or to say what it waits for", LONG, || {
        let said = late.run.output();
        let good = said.contains("control plane") || matches!(late.run.ended(), Ok(Some(_)));
        if good { Ok(()) } else { Err(said) }
    })?;
    if late.run.ended()?.is_none() {
        // A limit is kept, and its error says why.
        let mut command = mesh.outrider()?;
        let socket = mesh.runtime("node1").join("agent.sock");
        command.args(["run", "--service", "shop/client", "--timeout", "2s", "--agent"]).arg(socket);
        let ended = run(
            {
                command.args(["--", "true"]);
                command
            },
            LONG,
        )?;
        assert_eq!(ended.code, 3, "{ended:?}");
        ensure!(ended.stderr.contains("control plane"), "{ended:?}");
    }
    mesh.start_server()?;
    assert_eq!(process::shell_code(late.run.wait(LONG)?), 0, "{}", late.run.output());
    ensure!(late.run.output().ends_with("/first"), "{}", late.run.output());
    drop(shell);
    mesh.finish()
}

/// N59 on one host: an agent that is silent takes its instances out of the endpoint sets, costs no call
/// meanwhile, and brings them back when it speaks again.
#[test]
fn instances_of_a_silent_agent_are_withdrawn_and_come_back() -> Result<()> {
    let Scene { mesh, _origin, shell, address, .. } = scene()?;
    let caller = Caller::start(address);
    caller.more(20)?;
    mesh.agent("node1")?.signal(Signal::STOP)?;
    let silent = Instant::now();
    mesh.wait_instances("no instance in use", "shop/web", promised(Duration::from_secs(10)), |all| {
        all.iter().all(|instance| instance.state == "lost")
    })?;
    report(&format!("withdrawn {:?} after the silence began", silent.elapsed()));
    caller.more(50)?;
    caller.finish()?;
    mesh.agent("node1")?.signal(Signal::CONT)?;
    mesh.wait_instances("the instance again", "shop/web", LONG, |all| {
        all.len() == 1 && all[0].state == "ready"
    })?;
    until("an answer", LONG, || ask(address).map_err(|error| format!("{error:#}")))?;
    drop(shell);
    mesh.finish()
}

/// An agent that stood still, like one on a machine that was suspended, does not take it out on its proxies.
#[test]
fn an_agent_that_stood_still_ends_no_proxy() -> Result<()> {
    let Scene { mesh, _origin, shell, address, .. } = scene()?;
    let pids = || -> Result<Vec<u32>> { Ok(mesh.instances()?.iter().map(|i| i.proxy.pid).collect()) };
    let before = pids()?;
    let caller = Caller::start(address);
    caller.more(20)?;
    mesh.agent("node1")?.signal(Signal::STOP)?;
    pass(Duration::from_secs(10));
    mesh.agent("node1")?.signal(Signal::CONT)?;
    mesh.wait_instances("the instance again", "shop/web", LONG, |all| {
        all.len() == 1 && all[0].state == "ready"
    })?;
    caller.more(200)?;
    caller.finish()?;
    assert_eq!(pids()?, before);
    drop(shell);
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
