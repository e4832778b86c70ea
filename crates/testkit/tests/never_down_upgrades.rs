//! Proxies are replaced by other versions under load, good ones and bad ones, and nobody notices.
//!
//! Every test: the mix `r1k`, smaller; retries off; the applications are the same processes afterwards. Versions are
//! stamped copies of the one proxy that was built, bad ones are built with a fault.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrider_testkit::builds::{self, Fault};
use outrider_testkit::http::Connection;
use outrider_testkit::load::Report;
use outrider_testkit::load::ids::Class;
use outrider_testkit::mesh::{self, Options};
use outrider_testkit::prober::quantiles;
use outrider_testkit::process::{Finished, is_running};
use outrider_testkit::scene::{Load, NODE, check_probes, serving};
use outrider_testkit::wait::LONG;
use outrider_testkit::{Scene, Side, chosen, peers, report, scale, until, websocket};
use serde_json::{Value, json};

/// N-2, N-1 and N.
const VERSIONS: [&str; 3] = ["0.8.0", "0.9.1", "0.10.0"];
/// Of WebSockets and TCP connections: shorter than the drain below, so that nothing is left at its end.
const LIFETIME: Duration = Duration::from_secs(2);

/// Probation is short, so that a test can have many of them.
fn short() -> Value {
    json!({ "probation": 500, "drain": 20_000 })
}

fn upgrade(release: &str) -> Value {
    json!({ "type": "upgrade", "release": release })
}

fn rollback() -> Value {
    json!({ "type": "rollback" })
}

/// Waits until only the serving process of a proxy is there.
fn wait_alone(scene: &Scene, side: Side) -> Result<()> {
    until("processes that were replaced to be gone", LONG, || {
        let shown = scene.mesh.describe_proxy(NODE, side.service()).map_err(|error| format!("{error:#}"))?;
        let number = shown["processes"].as_array().map_or(0, Vec::len);
        if number == 1 { Ok(()) } else { Err(shown["status"].to_string()) }
    })
}

/// Two upgrades, a rollback, and so on, of both sides by turns. As many upgrades as `OUTRIDER_UPGRADES` says, by default
/// eight, and half as many rollbacks.
#[test]
fn upgrades_and_rollbacks_lose_nothing() -> Result<()> {
    let upgrades = chosen("OUTRIDER_UPGRADES", 8);
    let scene = Scene::start(Options::default().policy(&short()))?;
    scene.stamp_releases(&VERSIONS)?;
    let (load, prober) = (scene.load_of_short(scale(), LIFETIME)?, scene.prober());
    let (mut times, mut rolled_back) = (Vec::new(), 0);
    let mut release = [0, 0];
    let sides = [Side::Client, Side::Web];
    for number in 0..upgrades {
        let turn = number as usize % 2;
        let side = sides[turn];
        let before = serving(&scene.mesh.describe_proxy(NODE, side.service())?)?;
        release[turn] = (release[turn] + 1) % VERSIONS.len();
        let wanted = VERSIONS[release[turn]];
        let start = Instant::now();
        let shown = scene.change(side, &upgrade(wanted), LONG * 2)?;
        times.push(start.elapsed());
        let now = serving(&shown)?;
        ensure!(now.1 == wanted && now.0 != before.0, "{side:?}: {before:?} → {now:?}: {shown}");
        // After every second one of a side, so that there is something good to go back to.
        if number % 4 >= 2 {
            rolled_back += 1;
            let shown = scene.change(side, &rollback(), LONG * 2)?;
            let back = serving(&shown)?;
            ensure!(back.1 == before.1 && back.0 != now.0, "{side:?}: {now:?} → {back:?}: {shown}");
            release[turn] = (release[turn] + VERSIONS.len() - 1) % VERSIONS.len();
            // Who went back does not want it again, unless somebody says so.
            scene.mesh.proxy(NODE, side.service(), &json!({ "type": "pardon", "release": wanted }))?;
        }
        load.wait_more(20)?;
        // What is replaced may still have connections; three such processes at a time are allowed.
        wait_alone(&scene, side)?;
    }
    check_probes(&prober.finish(), &[])?;
    let result = load.finish_clean()?;
    report(&format!(
        "{upgrades} upgrades and {rolled_back} rollbacks; an upgrade took {}:\n{result}",
        quantiles(times)
    ));
    scene.finish()
}

/// What is open before an upgrade goes on in the process before, for as long as the drain allows, while that process has
/// nothing else to do: the operator sees how many connections keep it. At the end of the drain a WebSocket is closed with
/// a close frame.
#[test]
fn long_connections_outlive_an_upgrade_and_are_counted() -> Result<()> {
    let policy = json!({ "probation": 200, "drain": 600_000 });
    let scene = Scene::start(Options::default().policy(&policy))?;
    scene.stamp_releases(&VERSIONS)?;
    let (web, db) = (scene.shell.address("web", 8080)?, scene.shell.address("db", 5432)?);
    let mut socket = Connection::open(web)?;
    websocket::open(&mut socket, "web:8080", "/load")?;
    let mut line = Connection::open(db)?;
    line.send(b"hello\n")?;
    line.bytes(1)?;
    let name = scene.mesh.local(NODE, Side::Client.service())?.name;
    let proxy = format!("shop/{name}");
    let before = serving(&scene.mesh.describe_proxy(NODE, Side::Client.service())?)?.0;
    scene.change(Side::Client, &upgrade(VERSIONS[0]), LONG)?;
    let left = until("two connections to be left in the process before", LONG, || {
        let shown = scene.mesh.cli(&["proxy", "describe", &proxy]).and_then(Finished::ok);
        let shown = shown.map_err(|error| format!("{error:#}"))?.stdout;
        if shown.contains("  1 websocket, 1 tcp  ") { Ok(shown) } else { Err(shown) }
    })?;
    report(&left);
    ensure!(is_running(before), "it is there as long as they are");
    // Neither has noticed.
    socket.send(&websocket::frame(websocket::TEXT, b"more", Some([1, 2, 3, 4])))?;
    line.send(b"hello\n")?;
    ensure!(!socket.bytes(1)?.is_empty() && !line.bytes(1)?.is_empty());
    drop((socket, line));
    until("a process without connections to end", LONG, || {
        if is_running(before) { Err(before.to_string()) } else { Ok(()) }
    })?;
    scene.finish()
}

/// An upgrade needs no control plane, and one that is asked for during another waits for it.
#[test]
fn upgrades_need_no_control_plane_and_wait_for_each_other() -> Result<()> {
    let mut scene = Scene::start(Options::default().policy(&short()))?;
    scene.stamp_releases(&VERSIONS)?;
    let load = scene.load_of_short(scale(), LIFETIME)?;
    scene.mesh.kill_server()?;
    for side in Side::ALL {
        let shown = scene.change(side, &upgrade(VERSIONS[0]), LONG)?;
        ensure!(serving(&shown)?.1 == VERSIONS[0], "{side:?}: {shown}");
    }
    for side in Side::ALL {
        scene.mesh.proxy(NODE, side.service(), &upgrade(VERSIONS[1]))?;
        let queued = scene.mesh.proxy(NODE, side.service(), &upgrade(VERSIONS[2]))?;
        let said = &queued["status"]["queued"]["upgrade"]["release"];
        ensure!(said == VERSIONS[2], "{side:?}: the second is not queued: {}", queued["status"]);
        let shown = scene.mesh.wait_unchanging(NODE, side.service(), LONG)?;
        ensure!(serving(&shown)?.1 == VERSIONS[2], "{side:?}: {shown}");
    }
    load.wait_more(50)?;
    let result = load.finish_clean()?;
    report(&format!("without a control plane:\n{result}"));
    scene.mesh.start_server()?;
    scene.mesh.wait_current()?;
    scene.finish()
}

/// A release that cannot be had, or is no program, changes nothing.
#[test]
fn a_release_that_cannot_be_started_changes_nothing() -> Result<()> {
    let scene = Scene::start(Options::default().policy(&short()))?;
    let load = scene.load_of_short(scale(), LIFETIME)?;
    let before = serving(&scene.mesh.describe_proxy(NODE, Side::Web.service())?)?;
    let refused = scene.mesh.proxy(NODE, Side::Web.service(), &upgrade("9.9.9"));
    ensure!(refused.is_err_and(|error| error.to_string().contains("9.9.9")), "an unknown release was taken");
    // The first two are no programs, which no shell is asked to make sense of; the last has no interpreter.
    let cases: [(&str, &[u8], &str); 4] = [
        ("9.0.0", b"exit 0\n", r#"{"start_failed":"#),
        ("9.0.1", b"\x7fELF and nothing else", r#"{"start_failed":"#),
        ("9.0.2", b"#!/bin/sh\nexit 0\n", r#"{"crashed":{"code":0}}"#),
        ("9.0.3", b"#!/no/such/interpreter\n", r#"{"start_failed":"#),
    ];
    for (version, content, cause) in cases {
        let program = scene.mesh.scratch()?.join("program");
        std::fs::write(&program, content)?;
        scene.mesh.install_release(NODE, version, &program)?;
        let shown = scene.change(Side::Web, &upgrade(version), LONG)?;
        ensure!(serving(&shown)? == before, "{version}: {before:?}: {shown}");
        quarantined(&shown, version)?;
        let events = scene.mesh.events(NODE, Side::Web.service())?;
        let told = events.iter().any(|event| {
            let record = &event["record"];
            record["target"]["release"] == version && record["cause"].to_string().starts_with(cause)
        });
        ensure!(told, "no record of {version} with {cause}: {events:?}");
    }
    load.wait_more(20)?;
    load.finish_clean()?;
    scene.finish()
}

/// Why a release is in quarantine.
fn quarantined(shown: &Value, version: &str) -> Result<Value> {
    let all = shown["status"]["quarantined"].as_array().context("no quarantine")?;
    let entry = all.iter().find(|entry| entry["release"] == version);
    Ok(entry.with_context(|| format!("{version} is not in quarantine: {}", shown["status"]))?["reason"]
        .clone())
}

/// An upgrade of the called service's proxy to this bad build: the process before serves on, the release is in
/// quarantine with a reason, and the result of the load is given.
fn try_bad(fault: Fault, policy: &Value, before: u64) -> Result<Option<(Value, Report)>> {
    if !mesh::binary_folder()?.join("outrider-proxy-faults").is_file() {
        peers::skip_or_fail("outrider-proxy-faults is not built")?;
        return Ok(None);
    }
    let scene = Scene::start(Options::default().policy(policy))?;
    let program = builds::bad(&scene.mesh.scratch()?, "6.6.6", fault)?;
    scene.mesh.install_release(NODE, "6.6.6", &program)?;
    let load = scene.load_of_short(scale() * 2.0, LIFETIME)?;
    load.wait_more(before)?;
    let good = serving(&scene.mesh.describe_proxy(NODE, Side::Web.service())?)?;
    let shown = attempt(&scene, &load, &fault)?;
    let after = serving(&shown)?;
    ensure!(after == good && is_running(good.0), "{fault}: {good:?} → {after:?}: {shown}");
    let reason = quarantined(&shown, "6.6.6")?;
    let events = scene.mesh.events(NODE, Side::Web.service())?;
    let record = events.iter().rev().find(|event| event["record"]["target"]["release"] == "6.6.6");
    let record = record.with_context(|| format!("{fault}: no record: {events:?}"))?;
    report(&format!("{fault}: in quarantine for {reason}; its record: {}", record["record"]));
    load.wait_more(50)?;
    let result = load.finish()?;
    report(&format!("{fault}:\n{result}"));
    scene.finish()?;
    Ok(Some((reason, result)))
}

fn attempt(scene: &Scene, load: &Load, fault: &Fault) -> Result<Value> {
    let limit = LONG * 5;
    match fault {
        // What is open in it when it ends goes with it.
        Fault::CrashAfter(_) | Fault::Leak(_) => {
            load.kills().during(Side::Web.kinds(), || scene.change(Side::Web, &upgrade("6.6.6"), limit))
        }
        _ => scene.change(Side::Web, &upgrade("6.6.6"), limit),
    }
}

/// What may be in flight in one process at one moment: a request, or a message, of every connection, and the connection.
fn at_most_open(result: &Report) -> Result<()> {
    let connections: u32 =
        [Class::Get, Class::WebSocket].map(|class| result.class(class).connections).iter().sum();
    ensure!(result.in_flight() <= 2 * u64::from(connections), "{result}");
    Ok(())
}

#[test]
fn a_bad_build_that_exits_is_not_noticed() -> Result<()> {
    let Some((_, result)) = try_bad(Fault::Exit, &short(), 50)? else { return Ok(()) };
    ensure!(result.is_clean(), "{result}");
    Ok(())
}

#[test]
fn a_bad_build_that_is_never_ready_is_not_noticed() -> Result<()> {
    let policy = json!({ "probation": 500, "drain": 20_000, "warm_up": 5000 });
    let Some((reason, result)) = try_bad(Fault::NeverReady, &policy, 50)? else { return Ok(()) };
    ensure!(reason == "not_ready", "{reason}");
    ensure!(result.is_clean(), "{result}");
    Ok(())
}

#[test]
fn a_bad_build_that_crashes_loses_what_was_in_flight_in_it() -> Result<()> {
    let policy = json!({ "probation": 15_000, "drain": 20_000 });
    let fault = Fault::CrashAfter(Duration::from_secs(chosen("OUTRIDER_BAD_CRASH_SECONDS", 4)));
    let Some((_, result)) = try_bad(fault, &policy, 50)? else { return Ok(()) };
    ensure!(result.unexcused() == 0 && result.problems.is_empty(), "{result}");
    at_most_open(&result)
}

#[test]
fn a_bad_build_that_leaks_is_taken_back() -> Result<()> {
    let policy = json!({ "probation": 30_000, "drain": 20_000 });
    let Some((_, result)) = try_bad(Fault::Leak(4), &policy, 200)? else { return Ok(()) };
    ensure!(result.unexcused() == 0 && result.problems.is_empty(), "{result}");
    at_most_open(&result)
}

#[test]
fn a_bad_build_that_is_slow_is_taken_back() -> Result<()> {
    let policy = json!({ "probation": 30_000, "drain": 20_000 });
    let Some((reason, result)) = try_bad(Fault::Delay(Duration::from_millis(200)), &policy, 1000)? else {
        return Ok(());
    };
    ensure!(!reason["probation"]["latency"].is_null(), "{reason}");
    ensure!(result.is_clean(), "{result}");
    Ok(())
}

/// One in a hundred, or as many as `OUTRIDER_BAD_PERCENT` says.
#[test]
fn a_bad_build_that_refuses_is_taken_back() -> Result<()> {
    let policy = json!({ "probation": 30_000, "drain": 20_000 });
    let percent = chosen("OUTRIDER_BAD_PERCENT", 5).try_into()?;
    let Some((reason, result)) = try_bad(Fault::Refuse(percent), &policy, 2000)? else { return Ok(()) };
    ensure!(!reason["probation"]["errors"].is_null(), "{reason}");
    // Nothing but what it answered by itself.
    let made: u64 =
        Class::ALL.iter().flat_map(|class| result.class(*class).made_by_proxy.into_values()).sum();
    ensure!(made > 0 && result.losses() == made && result.problems.is_empty(), "{result}");
    Ok(())
}
