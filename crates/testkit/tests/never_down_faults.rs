//! Everything the supervisor depends on fails, one thing at a time: traffic goes on, what is wrong is said, and said no
//! more once it is well again (N11).
//!
//! Every test: the mix `r1k`, smaller; retries off; the applications are the same processes afterwards.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrider_testkit::builds::{self, Fault};
use outrider_testkit::clock::{Clock, DAY, YEAR};
use outrider_testkit::http::Connection;
use outrider_testkit::mesh::{self, Options};
use outrider_testkit::process::{self, User, is_running, no_more_descriptors, unbound};
use outrider_testkit::scene::{Load, NODE};
use outrider_testkit::wait::LONG;
use outrider_testkit::{Engine, Scene, Side, intent, peers, promised, report, until};
use rustix::fs::{CWD, RenameFlags};
use rustix::process::{Resource, Signal};
use serde_json::json;

const SCALE: f64 = 0.1;

/// Every proxy is killed, one after the other, and serves again.
fn kill_all(scene: &Scene, load: &Load) -> Result<()> {
    for side in Side::ALL {
        scene.kill(side, Signal::KILL, load)?;
        scene.wait_answers().with_context(|| format!("after the kill of {side:?}"))?;
    }
    Ok(())
}

/// Waits until the agent has no session, for a reason with these words and for at least so many seconds.
fn wait_away(scene: &Scene, words: &str, at_least: u64, limit: Duration) -> Result<()> {
    until(&format!("the agent to be away: {words:?} for {at_least} s"), limit, || {
        match scene.mesh.away(NODE) {
            Ok(Some((why, unheard))) if why.contains(words) && unheard >= at_least => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

fn wait_connected(scene: &Scene) -> Result<()> {
    until("the agent to be connected", LONG, || match scene.mesh.away(NODE) {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    scene.mesh.wait_current().map(drop)
}

/// Something that would have to be kept: the client may call one more.
fn change_configuration(scene: &Scene, port: u16) -> Result<()> {
    let more = intent::client(Engine::Native, "client", "web, db, later")
        + &intent::server(Engine::Native, "later", &intent::http(port, 1));
    scene.mesh.apply(&more).map(drop)
}

/// The control plane stands still with its connections open; then something else is in its place that takes connections
/// and says nothing. It is left within the promised time and since when it is missing is said. Killed proxies serve
/// again and a new instance starts meanwhile; afterwards it is believed again.
/// Edge case 74.
#[test]
fn a_control_plane_that_says_nothing_is_left_and_believed_again() -> Result<()> {
    let mut scene = Scene::start(Options::default())?;
    let load = scene.load(SCALE)?;
    let server = scene.mesh.server()?.pid();
    let stopped = Instant::now();
    process::send(server, Signal::STOP)?;
    wait_away(&scene, "", 0, promised(Duration::from_secs(30)))?;
    report(&format!("a control plane that stands still was left after {:?}", stopped.elapsed()));
    // It takes the next connection, or the kernel does for it, and that is all.
    wait_away(&scene, "no answer within", 5, LONG)?;
    kill_all(&scene, &load)?;
    let another = scene.mesh.spawn(NODE, "shop/client", ["sleep", "86400"])?;
    until("another instance of a service that is known", LONG, || {
        let locals = scene.mesh.locals(NODE).map_err(|error| format!("{error:#}"))?;
        let there =
            locals.iter().filter(|(service, local)| service == "shop/client" && local.app != 0).count();
        if there == 2 { Ok(()) } else { Err(format!("{locals:?}; {}", another.run.output())) }
    })?;
    another.end()?;
    process::send(server, Signal::CONT)?;
    wait_connected(&scene)?;

    scene.mesh.kill_server()?;
    let silent = TcpListener::bind(scene.mesh.grpc())?;
    wait_away(&scene, "no answer within", 10, LONG)?;
    scene.kill(Side::Web, Signal::KILL, &load)?;
    scene.wait_answers()?;
    drop(silent);
    scene.mesh.start_server()?;
    wait_connected(&scene)?;
    load.wait_more(50)?;
    let result = load.finish_clean()?;
    report(&result.to_string());
    scene.finish()
}

/// Waits until a new connection with a new handshake between proxies is served; how long that took.
fn time_to_serve(scene: &Scene) -> Result<Duration> {
    let begun = Instant::now();
    scene.wait_answers()?;
    Ok(begun.elapsed())
}

/// The clock of the whole machine is set, days and years forward and back. What is open goes on; new handshakes fail for
/// a moment at most, until there are new certificates; agents are connected, and an agent that starts then too.
#[test]
fn a_clock_that_is_set_is_survived() -> Result<()> {
    let Some(clock) = Clock::new()? else { return Ok(()) };
    // A confined proxy cannot load what sets its clock, and would keep the machine's.
    let mut scene = Scene::start(
        Options::default().server_clock(&clock).agent_clock(&clock).agent_option("--confine-proxies=false"),
    )?;
    let load = scene.load(SCALE)?;
    let (mut now, mut times) = (0, Vec::new());
    let own_file = scene.mesh.folder().join(NODE).join("agent/identity/node.json");
    for (set, restart) in [
        (DAY, false),
        (0, false),
        (-DAY, false),
        (9 * YEAR, true),
        (0, false),
        (-10 * YEAR, true),
        (0, false),
    ] {
        let forward = set > now;
        let own = std::fs::read(&own_file)?;
        clock.set(set)?;
        now = set;
        let took = time_to_serve(&scene).with_context(|| format!("clock set to {set} s"))?;
        ensure!(took <= promised(Duration::from_secs(10)), "{set} s: new connections served after {took:?}");
        times.push(took);
        let words = format!("the clock of this host was set {}", if forward { "forward" } else { "back" });
        let problems = scene.mesh.wait_problem(NODE, Some(&words))?;
        until("certificates that are good", LONG, || match scene.mesh.problems(NODE) {
            Ok(problems) if problems.iter().all(|problem| !problem.contains("certificate")) => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        until("the agent's own certificate to be good", LONG, || match std::fs::read(&own_file) {
            Ok(there) if there != own => Ok(()),
            other => Err(format!("{:?}", other.map(|there| there.len()))),
        })?;
        if restart {
            scene.mesh.kill_server()?;
            scene.mesh.kill_agent(NODE)?;
            scene.mesh.start_server()?;
            scene.mesh.start_agent(NODE)?;
        }
        wait_connected(&scene).with_context(|| format!("clock set to {set} s: {problems:?}"))?;
        load.wait_more(50)?;
    }
    let result = load.finish()?;
    report(&format!("new connections were served after {times:?}:\n{result}"));
    // What could not be sent on for want of a handshake was answered so, and nothing that was open was lost.
    let answered: u64 = result.classes.values().flat_map(|line| line.made_by_proxy.values()).sum();
    ensure!(result.losses() == answered && result.problems.is_empty(), "{result}");
    let load = scene.load(SCALE)?;
    load.wait_more(50)?;
    load.finish_clean()?;
    scene.finish()
}

/// Only the clock of this host is wrong, so certificates that come are not good here. What is open goes on, it is said,
/// and once the clock is right everything is.
#[test]
fn a_host_whose_clock_is_wrong_says_so() -> Result<()> {
    let Some(clock) = Clock::new()? else { return Ok(()) };
    let scene = Scene::start(Options::default().agent_clock(&clock).agent_option("--confine-proxies=false"))?;
    for set in [3 * DAY, -3 * DAY] {
        let load = scene.load(SCALE)?;
        clock.set(set)?;
        let problems = scene.mesh.wait_problem(NODE, Some("by the clock of this host"))?;
        report(&format!("{set} s: {problems:?}"));
        load.wait_more(100)?;
        clock.set(0)?;
        let took = time_to_serve(&scene)?;
        ensure!(took <= promised(Duration::from_secs(10)), "{set} s: served after {took:?}");
        wait_connected(&scene)?;
        let result = load.finish()?;
        let answered: u64 = result.classes.values().flat_map(|line| line.made_by_proxy.values()).sum();
        ensure!(result.losses() == answered && result.problems.is_empty(), "{set} s: {result}");
        let load = scene.load(SCALE)?;
        load.wait_more(50)?;
        load.finish_clean()?;
    }
    scene.finish()
}

/// The agent may open nothing more: it repairs crashes all the same, and says what it lacks to who asks.
#[test]
fn an_agent_without_file_descriptors_repairs_crashes() -> Result<()> {
    let scene = Scene::start(Options::default())?;
    let load = scene.load(SCALE)?;
    let agent = scene.mesh.agent(NODE)?.pid();
    let before = no_more_descriptors(agent)?;
    let told = scene.mesh.wait_problem(NODE, Some("no file descriptor is left to this agent"))?;
    report(&format!("{told:?}"));
    kill_all(&scene, &load)?;
    load.wait_more(50)?;
    unbound(agent, Resource::Nofile, before)?;
    scene.mesh.wait_problem(NODE, None)?;
    scene.kill(Side::Web, Signal::KILL, &load)?;
    scene.wait_answers()?;
    load.wait_more(20)?;
    load.finish_clean()?;
    scene.mesh.wait_current()?;
    scene.finish()
}

/// The caller's proxy may open nothing more: what is open goes on, a new connection waits and is served once there is
/// room, and that is said until then.
#[test]
fn a_proxy_without_file_descriptors_goes_on() -> Result<()> {
    let scene = Scene::start(Options::default())?;
    let load = scene.load(SCALE)?;
    load.wait_more(200)?;
    let (side, address) = (Side::Client, scene.shell.address("web", 8080)?);
    let proxy = scene.proxy(side)?;
    let before = no_more_descriptors(proxy)?;
    let mut waiting = Connection::open(address)?;
    waiting.send(b"GET / HTTP/1.1\r\nhost: web:8080\r\n\r\n")?;
    let words = "the proxy has no file descriptor left";
    let told = scene
        .mesh
        .wait_local("what it lacks", NODE, side.service(), LONG, |local| local.reason.contains(words))?;
    report(&told.reason);
    load.wait_more(100)?;
    unbound(proxy, Resource::Nofile, before)?;
    let answer = waiting.response("GET")?;
    ensure!(answer.reason().is_none(), "{answer:?}");
    scene
        .mesh
        .wait_local("nothing to lack", NODE, side.service(), LONG, |local| !local.reason.contains(words))?;
    load.wait_more(50)?;
    ensure!(scene.proxy(side)? == proxy, "another process serves");
    let result = load.finish()?;
    report(&result.to_string());
    // What needed another connection to an upstream was told that there is none, at once.
    let answered = |reason: &str| -> u64 {
        result.classes.values().filter_map(|line| line.made_by_proxy.get(reason)).sum()
    };
    ensure!(result.losses() == answered("overload_connections") && result.problems.is_empty(), "{result}");
    scene.finish()
}

fn overwrite(file: &Path) -> Result<()> {
    Ok(std::fs::write(file, b"\xff{\x00 nothing of ours\n".repeat(3))?)
}

/// Sockets, files and folders are removed and damaged while everything runs: what can be made again is, a new agent
/// takes over, and crashes are repaired.
#[test]
fn files_that_are_removed_or_damaged_stop_no_traffic() -> Result<()> {
    let mut scene = Scene::start(Options::default())?;
    let load = scene.load(SCALE)?;
    let runtime = scene.mesh.runtime(NODE);
    let answers = |scene: &Scene| {
        until("the agent to answer at its socket", LONG, || {
            scene.mesh.locals(NODE).map(drop).map_err(|error| format!("{error:#}"))
        })
    };
    // Its own socket.
    std::fs::remove_file(runtime.join("agent.sock"))?;
    answers(&scene)?;
    // What a next agent needs, and the sockets at which processes find one.
    let client = scene.mesh.local(NODE, "shop/client")?.name;
    for name in ["instance.json", "control.sock", "xds-1.sock", "keep.sock"] {
        let file = runtime.join("p").join(&client).join(name);
        std::fs::remove_file(&file).with_context(|| file.display().to_string())?;
        until(&format!("{name} to be there again"), LONG, || {
            if file.exists() { Ok(()) } else { Err("it is not".to_owned()) }
        })?;
    }
    // All of it, at once: what is made again meanwhile is not removed with it.
    let away = runtime.with_extension("away");
    std::fs::rename(&runtime, &away)?;
    std::fs::remove_dir_all(&away)?;
    answers(&scene)?;
    kill_all(&scene, &load)?;
    let pids = || Side::ALL.iter().map(|side| scene.proxy(*side)).collect::<Result<Vec<_>>>();
    let before = pids()?;
    for side in Side::ALL {
        let file = runtime.join("p").join(scene.mesh.local(NODE, side.service())?.name).join("instance.json");
        until("what a next agent needs", LONG, || if file.exists() { Ok(()) } else { Err("no".to_owned()) })?;
    }
    // Logs that cannot be written, events that cannot be read.
    let state = scene.mesh.folder().join(NODE).join("agent");
    let log = state.join("log").join(format!("{client}.log"));
    // Whoever opens it meanwhile finds one or the other.
    let folder = log.with_extension("folder");
    std::fs::create_dir(&folder)?;
    rustix::fs::renameat_with(CWD, &folder, CWD, &log, RenameFlags::EXCHANGE)?;
    std::fs::remove_file(&folder)?;
    overwrite(&state.join("events"))?;
    scene.mesh.kill_agent(NODE)?;
    scene.mesh.start_agent(NODE)?;
    let after = Side::ALL.iter().map(|side| scene.proxy(*side)).collect::<Result<Vec<_>>>()?;
    ensure!(after == before, "a new agent has other proxies: {before:?} {after:?}");
    kill_all(&scene, &load)?;
    let events = scene.mesh.events(NODE, "shop/client")?;
    ensure!(!events.is_empty(), "no events after the damage");
    load.wait_more(50)?;
    load.finish_clean()?;
    scene.mesh.wait_current()?;
    scene.finish()
}

/// An empty disk in the place of a folder that nobody can write to, until this is dropped.
struct Covered<'a>(&'a Path);

impl<'a> Covered<'a> {
    fn new(folder: &'a Path) -> Result<Self> {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "ro,mode=0700", "tmpfs"]).arg(folder);
        process::run(mount, LONG)?.ok()?;
        Ok(Self(folder))
    }
}

impl Drop for Covered<'_> {
    fn drop(&mut self) {
        let mut unmount = std::process::Command::new("umount");
        unmount.arg("-l").arg(self.0);
        drop(process::run(unmount, LONG));
    }
}

/// The folder with the agent's state is gone, and nothing can be written in its place: no log, no event, no last good
/// configuration.
#[test]
fn a_state_that_cannot_be_written_stops_no_traffic() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        peers::skipped("a disk of its own needs root");
        return Ok(());
    }
    let scene = Scene::start(Options::default())?;
    let load = scene.load(SCALE)?;
    let folder = scene.mesh.folder().join(NODE).join("agent");
    let covered = Covered::new(&folder)?;
    kill_all(&scene, &load)?;
    change_configuration(&scene, 9090)?;
    let told = scene.mesh.wait_problem(NODE, Some("events cannot be written"))?;
    report(&format!("{told:?}"));
    let shown = |wanted: &'static str| {
        until("the node to be shown as it is", LONG, || {
            let get = || -> Result<(String, String)> {
                let described = scene.mesh.cli(&["describe", "node", NODE])?.ok()?.stdout;
                Ok((scene.mesh.cli(&["get", "nodes"])?.ok()?.stdout, described))
            };
            let (listed, described) = get().map_err(|error| format!("{error:#}"))?;
            let fine = listed.contains(wanted)
                && described.contains("events cannot be written") == wanted.contains("problem");
            if fine { Ok(()) } else { Err(format!("{listed}{described}")) }
        })
    };
    shown("problem")?;
    load.wait_more(50)?;
    drop(covered);
    scene.mesh.wait_problem(NODE, None)?;
    shown("connected  ")?;
    load.wait_more(20)?;
    load.finish_clean()?;
    scene.finish()
}

/// A proxy that panics: the record says where, what and by which way, and what it cost, to people too.
#[test]
fn a_panic_is_recorded_with_its_place() -> Result<()> {
    if !mesh::binary_folder()?.join("outrider-proxy-faults").is_file() {
        return peers::skip_or_fail("outrider-proxy-faults is not built");
    }
    let policy = json!({ "probation": 30_000, "drain": 20_000 });
    let scene = Scene::start(Options::default().policy(&policy))?;
    let program = builds::bad(&scene.mesh.scratch()?, "6.6.6", Fault::PanicAfter(Duration::from_secs(5)))?;
    scene.mesh.install_release(NODE, "6.6.6", &program)?;
    let load = scene.load_of_short(SCALE, Duration::from_secs(2))?;
    let side = Side::Web;
    load.kills().during(side.kinds(), || {
        scene.change(side, &json!({ "type": "upgrade", "release": "6.6.6" }), LONG * 2)
    })?;
    let events = scene.mesh.events(NODE, side.service())?;
    let is_end = |event: &&serde_json::Value| {
        event["record"]["target"]["release"] == "6.6.6" && event["record"]["happened"] == "ended"
    };
    let event = events.iter().find(is_end).with_context(|| format!("no end in {events:?}"))?;
    let record = &event["record"];
    let panic = record["cause"]["crashed"]["panic"].as_str().with_context(|| record.to_string())?;
    ensure!(panic.starts_with("crates/proxy/src/stamp/faults.rs:"), "{panic}");
    ensure!(panic.contains(": a defect on purpose (backtrace "), "{panic}");
    ensure!(record["memory"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{record}");
    ensure!(!record["configuration"].is_null() && record["uptime"].as_u64() >= Some(5000), "{record}");
    ensure!(record["lost"]["connections"].as_u64() > Some(0), "{record}");
    let shown = until("the control plane to tell it", LONG, || {
        let told = scene.mesh.cli(&["events", "--service", side.service()]).and_then(process::Finished::ok);
        match told {
            Ok(told) if told.stdout.contains("a defect on purpose (backtrace ") => Ok(told.stdout),
            other => Err(format!("{other:?}")),
        }
    })?;
    report(&shown);
    load.wait_more(20)?;
    let result = load.finish()?;
    ensure!(result.unexcused() == 0 && result.problems.is_empty(), "{result}");
    scene.finish()
}

/// Not one more process or thread may be started: what runs serves on, the proxy that is missing is said to be with the
/// reason, and comes once there is room. Nothing is blamed on its release.
#[test]
fn where_no_process_can_be_started_what_runs_serves_on() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        peers::skipped("another user's limits need root");
        return Ok(());
    }
    let scene = Scene::start(Options::default().user(User::NOBODY))?;
    let agent = scene.mesh.agent(NODE)?.pid();
    let first = scene.mesh.wait_local("a spare", NODE, Side::Web.service(), LONG, |local| {
        local.proxy != 0 && local.spare != 0
    })?;
    let before = process::bound(agent, Resource::Nproc, 0)?;
    let db = scene.proxy(Side::Db)?;
    // The spare that is there still takes its place; after that one nothing can.
    let next = |before: u32| {
        scene.mesh.wait_local("the next proxy", NODE, Side::Web.service(), LONG, |local| {
            local.proxy != 0 && local.proxy != before
        })
    };
    process::end_and_wait(first.proxy, Signal::KILL)?;
    process::end_and_wait(next(first.proxy)?.proxy, Signal::KILL)?;
    let said = scene.mesh.wait_local("why there is no proxy", NODE, Side::Web.service(), LONG, |local| {
        local.reason.contains("could not be started")
    })?;
    report(&said.reason);
    ensure!(said.proxy == 0, "{said:?}");
    let address = scene.shell.address("db", 5432)?;
    for _ in 0..20 {
        let mut line = Connection::open(address)?;
        line.send(b"hello\n")?;
        line.bytes(1)?;
    }
    ensure!(scene.proxy(Side::Db)? == db && is_running(db), "another proxy than {db}");
    unbound(agent, Resource::Nproc, before)?;
    scene.wait_answers()?;
    let shown = scene.mesh.describe_proxy(NODE, Side::Web.service())?;
    ensure!(shown["status"]["quarantined"] == json!([]), "{shown}");
    // Threads are there again as well: what happened is on disk.
    let file = scene.mesh.folder().join(NODE).join("agent/events");
    until("the events on disk", LONG, || {
        let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
        if text.contains("start_failed") { Ok(()) } else { Err(text) }
    })?;
    let load = scene.load(SCALE)?;
    load.wait_more(50)?;
    load.finish_clean()?;
    scene.finish()
}
