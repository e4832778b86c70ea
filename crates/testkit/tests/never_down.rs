//! Proxies, agents and the control plane are killed, hang and are replaced under load, and nobody notices.
//!
//! Every test: the mix `r1k`, smaller; retries off; the applications are the same processes afterwards. What is
//! measured is printed, and judged only where a number is promised.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use outrider_testkit::builds;
use outrider_testkit::http::Connection;
use outrider_testkit::mesh::{self, Options};
use outrider_testkit::prober::quantiles;
use outrider_testkit::process;
use outrider_testkit::scene::{NODE, check_probes, serving};
use outrider_testkit::wait::{LONG, pass};
use outrider_testkit::{Engine, Scene, Side, chosen, intent, peers, promised, report, scale, until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// kill -9 of both sides' proxies by turns: nothing is lost but what was in flight in the process, no connection is
/// refused, and there is no giving up. As many as `OUTRIDER_PROXY_KILLS` says.
#[test]
fn killed_proxies_are_not_missed() -> Result<()> {
    let kills = chosen("OUTRIDER_PROXY_KILLS", 6);
    let scene = Scene::start(Options::default())?;
    let (load, prober) = (scene.load(scale())?, scene.prober());
    let (mut moments, mut times) = (Vec::new(), [Vec::new(), Vec::new()]);
    for number in 0..kills {
        // Not always at the same moment of the load's own rhythm.
        pass(Duration::from_millis(100 + number * 37 % 100));
        let side = [Side::Client, Side::Web][number as usize % 2];
        let (_, begun, gone) = scene.kill(side, Signal::KILL, &load)?;
        moments.push((begun, gone));
        let served = prober.first_after(gone)?.ended;
        times[number as usize % 2].push(served - begun);
        load.wait_more(20)?;
    }
    check_probes(&prober.finish(), &moments)?;
    let result = load.finish_clean()?;
    let [client, web] = times;
    report(&format!(
        "from the kill of the caller's proxy until a new connection is served: {}",
        quantiles(client)
    ));
    report(&format!("from the kill of the called one's: {}", quantiles(web)));
    report(&format!("{kills} kills, {} in flight:\n{result}", result.in_flight()));
    scene.finish()
}

/// A proxy that hangs is noticed and replaced within the promised time.
#[test]
fn a_proxy_that_hangs_is_replaced() -> Result<()> {
    let scene = Scene::start(Options::default())?;
    for side in [Side::Client, Side::Web] {
        let load = scene.load(scale())?;
        let pid = scene.proxy(side)?;
        let stopped = Instant::now();
        // It ends by SIGKILL of its agent; until then what leads through it hangs with it.
        let replaced = load.kills().during(side.kinds(), || -> Result<()> {
            process::send(pid, Signal::STOP)?;
            until("the end of a proxy that hangs", promised(Duration::from_secs(10)), || {
                if process::is_running(pid) { Err("it is there".into()) } else { Ok(()) }
            })
        });
        replaced?;
        scene.wait_answers()?;
        let took = stopped.elapsed();
        ensure!(took <= promised(Duration::from_secs(10)), "{side:?}: served again after {took:?}");
        load.wait_more(50)?;
        let result = load.finish()?;
        report(&format!("{side:?} hung; served again after {took:?}\n{result}"));
        let refused: u64 = result.classes.values().map(|line| line.refused).sum();
        ensure!(refused == 0, "{side:?}: {result}");
    }
    scene.finish()
}

/// The control plane has gone; every proxy is killed; all of them serve again with what they had.
#[test]
fn killed_proxies_need_no_control_plane() -> Result<()> {
    let mut scene = Scene::start(Options::default())?;
    let load = scene.load(scale())?;
    scene.mesh.kill_server()?;
    for side in Side::ALL {
        scene.kill(side, Signal::KILL, &load)?;
        scene.wait_answers()?;
    }
    load.wait_more(50)?;
    let result = load.finish_clean()?;
    report(&format!("without a control plane:\n{result}"));
    scene.mesh.start_server()?;
    scene.mesh.wait_current()?;
    scene.finish()
}

/// The record of the end of a generation.
fn record_of(scene: &Scene, side: Side, generation: &Value) -> Result<Value> {
    until(&format!("a record of the end of {generation} of {side:?}"), LONG, || {
        let events = scene.mesh.events(NODE, side.service()).map_err(|error| format!("{error:#}"))?;
        let ended = |event: &&Value| {
            event["record"]["happened"] == "ended" && event["record"]["generation"] == *generation
        };
        let found = events.iter().find(ended).map(|event| event["record"].clone());
        found.ok_or_else(|| format!("{:?}", events.last()))
    })
}

/// Each signal from 1 to 15 that ends a proxy is in its record, and the next process serves.
#[test]
fn every_signal_is_noticed_and_recorded() -> Result<()> {
    // As many crashes as these are no loop here.
    let scene = Scene::start(Options::default().policy(&json!({ "crash_limit": 100 })))?;
    let side = Side::Web;
    for number in 1..=15 {
        let shown = scene.mesh.wait_unchanging(NODE, side.service(), LONG)?;
        let (pid, _) = serving(&shown)?;
        let signal = Signal::from_named_raw(number).ok_or_else(|| anyhow::anyhow!("no signal {number}"))?;
        let expected = match signal {
            // Rust programs ignore it: writing to a closed connection is an error, not the end.
            Signal::PIPE => {
                process::send(pid, signal)?;
                scene.wait_answers()?;
                ensure!(process::is_running(pid), "{signal:?} ended it");
                continue;
            }
            // It finishes what is open and ends by itself.
            Signal::TERM | Signal::INT => json!({ "crashed": { "code": 0 } }),
            _ => json!({ "crashed": { "signal": number } }),
        };
        if matches!(signal, Signal::BUS | Signal::SEGV) {
            // Rust looks first whether it was a stack that overflowed, and takes its hands off if not: an access that is
            // wrong happens again then, and so must a signal that was sent.
            until("the end", LONG, || {
                process::send(pid, signal).map_err(|error| error.to_string())?;
                if process::is_running(pid) { Err("it runs".to_owned()) } else { Ok(()) }
            })?;
        } else {
            process::end_and_wait(pid, signal)?;
        }
        let record = record_of(&scene, side, &shown["status"]["serving"])?;
        ensure!(record["cause"] == expected, "{signal:?}: {record}");
        ensure!(record["next"] != "nothing" && !record["configuration"].is_null(), "{signal:?}: {record}");
        scene.mesh.wait_local("another proxy", NODE, side.service(), LONG, |local| {
            local.proxy != 0 && local.proxy != pid && process::is_running(local.proxy)
        })?;
        scene.wait_answers()?;
    }
    scene.finish()
}

/// Also of one that an agent before this one started, whose child it is not.
#[test]
fn the_end_of_a_proxy_that_was_taken_over_is_recorded() -> Result<()> {
    let mut scene = Scene::start(Options::default())?;
    scene.mesh.kill_agent(NODE)?;
    scene.mesh.start_agent(NODE)?;
    let side = Side::Web;
    let shown = scene.mesh.wait_unchanging(NODE, side.service(), LONG)?;
    let (pid, _) = serving(&shown)?;
    process::end_and_wait(pid, Signal::KILL)?;
    let record = record_of(&scene, side, &shown["status"]["serving"])?;
    ensure!(record["cause"]["crashed"] == json!({ "signal": 9 }), "{record}");
    scene.wait_answers()?;
    scene.finish()
}

/// Puts a program in the place of another that may be running.
fn replace(program: &Path, by: &Path) -> Result<()> {
    let new = program.with_extension("new");
    // Not written by this process: see `builds`.
    let mut install = Command::new("install");
    install.arg("-m755").args([by, &new]);
    process::run(install, LONG)?.ok()?;
    Ok(std::fs::rename(&new, program)?)
}

/// The program that came with the agent goes bad under a proxy, which then crashes again and again with nothing better to
/// go back to: starts are paused, and only its own. A new workload on the same host is placed and carries traffic
/// meanwhile. Connections to the one that crashes wait, and are answered once the cause has gone, without any command.
#[test]
fn a_crash_loop_is_bounded_and_blocks_no_other_workload() -> Result<()> {
    if !mesh::binary_folder()?.join("outrider-proxy-faults").is_file() {
        return peers::skip_or_fail("outrider-proxy-faults is not built");
    }
    let folder = tempfile::tempdir()?;
    let bad = builds::bad(folder.path(), "6.6.6", builds::Fault::CrashAfter(Duration::from_millis(50)))?;
    let good = builds::stamped(folder.path(), "1.0.0")?;
    let builtin = folder.path().join("builtin");
    replace(&builtin, &good)?;
    let policy = json!({ "crash_limit": 4, "pause": 8000, "max_pause": 8000 });
    let scene = Scene::start(Options::default().proxy(builtin.clone()).policy(&policy))?;
    let (web, side) = (scene.shell.address("web", 8080)?, Side::Web);
    let inbound = || scene.mesh.endpoint_of(side.service(), "http");
    let place = inbound()?;

    replace(&builtin, &bad)?;
    process::end_and_wait(scene.proxy(side)?, Signal::KILL)?;
    let looping = until("a crash loop", LONG, || {
        let shown = scene.mesh.describe_proxy(NODE, side.service()).map_err(|error| format!("{error:#}"))?;
        let status = &shown["status"];
        // Its next start is a while away, so that the program can be replaced before.
        let waits = status["crashes"]["looping"] == true && status["generations"] == json!([]);
        if waits { Ok(status.clone()) } else { Err(status.to_string()) }
    })?;
    report(&looping.to_string());
    replace(&builtin, &good)?;
    let mut waiting = Connection::open(web)?;
    waiting.send(b"GET / HTTP/1.1\r\nHost: web:8080\r\n\r\n")?;

    let more = intent::client(Engine::Native, "another", "db");
    scene.mesh.apply(&more)?;
    let another = scene.mesh.shell("shop/another")?;
    let mut line = Connection::open(another.address("db", 5432)?)?;
    line.send(b"hello\n")?;
    line.bytes(1)?;

    scene.wait_answers()?;
    let answer = waiting.response("GET")?;
    report(&format!("who called meanwhile was answered {}", answer.head.line));
    let told = scene.mesh.events(NODE, side.service())?;
    let paused = told.iter().filter(|event| !event["record"]["next"]["backed_off"].is_null()).count();
    ensure!(paused >= 1, "no pause was told: {told:?}");
    let shown = scene.mesh.wait_unchanging(NODE, side.service(), LONG)?;
    ensure!(serving(&shown)?.1 == "1.0.0", "{shown}");
    scene.mesh.wait_instances("the same endpoint", side.service(), LONG, |all| {
        all.len() == 1 && all[0].state == "ready"
    })?;
    ensure!(inbound()? == place, "another address");
    scene.finish()
}

/// A proxy that needs more memory than it is granted ends alone, and the record says why it did.
#[test]
fn a_proxy_out_of_memory_is_recorded_as_such() -> Result<()> {
    if !mesh::binary_folder()?.join("outrider-proxy-faults").is_file() {
        return peers::skip_or_fail("outrider-proxy-faults is not built");
    }
    let folder = tempfile::tempdir()?;
    let program = builds::bad(folder.path(), "6.6.6", builds::Fault::Leak(16))?;
    let scene = Scene::start(Options::default().proxy(program))?;
    let side = Side::Web;
    let limited = !scene.mesh.agent(NODE)?.output().contains("proxies run without some of their limits");
    if !limited {
        peers::skipped("no cgroups with a limit of memory here");
        return scene.finish();
    }
    let record = until("a record of a proxy out of memory", LONG * 2, || {
        let events = scene.mesh.events(NODE, side.service()).map_err(|error| format!("{error:#}"))?;
        let found = events.iter().find(|event| event["record"]["cause"]["crashed"] == "out_of_memory");
        found.map(|event| event["record"].clone()).ok_or_else(|| format!("{events:?}"))
    })?;
    report(&record.to_string());
    ensure!(record["next"] != "nothing", "{record}");
    scene.wait_answers()?;
    scene.finish()
}
