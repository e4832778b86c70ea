//! Hours of load with churn: memory returns to what it was.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrider_testkit::mesh::Options;
use outrider_testkit::process::{memory, run};
use outrider_testkit::scene::NODE;
use outrider_testkit::wait::{LONG, until};
use outrider_testkit::{Engine, Scene, Side, chosen, intent, report};
use serde_json::Value;

/// How much more memory than at the start is nothing, in percent.
const MORE: u64 = 10;
/// Events that an agent remembers of its host.
const REMEMBERED: u64 = 2048;
/// What allocators and kernels round by, beside that.
const ROUNDING: u64 = 512 << 10;

fn resident(scene: &Scene) -> Result<BTreeMap<String, u64>> {
    let mut pids = vec![
        ("server".to_owned(), scene.mesh.server()?.pid()),
        ("agent".to_owned(), scene.mesh.agent(NODE)?.pid()),
    ];
    for side in Side::ALL {
        pids.push((format!("proxy of {}", side.service()), scene.proxy(side)?));
    }
    pids.into_iter().map(|(name, pid)| Ok((name, memory(pid, "VmRSS")?))).collect()
}

/// A service comes and goes, a job runs and ends: new names, addresses, sockets, certificates, proxies.
fn churn(scene: &Scene, number: u64) -> Result<()> {
    let name = format!("svc{}", number % 5);
    let documents = intent::client(Engine::Native, "client", &format!("web, db, {name}"))
        + &intent::server(Engine::Native, &name, &intent::http(9000, 1));
    scene.mesh.apply(&documents)?;
    let line = ["curl", "-sS", "-o", "/dev/null", "--max-time", "10", "http://web:8080/"];
    run(scene.mesh.run_command(NODE, "shop/client", line)?, LONG)?.ok()?;
    scene.mesh.apply(&intent::client(Engine::Native, "client", "web, db"))?;
    scene.mesh.cli(&["delete", "service", &name, "-n", "shop", "--force"])?.ok()?;
    Ok(())
}

/// Goes on with an agent that remembers as much as it ever does: that is bounded, and must not be taken for growth.
fn fill_history(scene: &mut Scene) -> Result<()> {
    scene.mesh.end_agent(NODE)?;
    let path = scene.mesh.folder().join(NODE).join("agent/events");
    let mut text = std::fs::read_to_string(&path)?;
    let last = text.lines().last().context("nothing has happened yet")?;
    let mut event: Value = serde_json::from_str(last)?;
    let number = event["number"].as_u64().context("a number")?;
    for past in 1..=REMEMBERED {
        event["number"] = (number + past).into();
        event["proxy"] = format!("shop/past-{past}").into();
        text += &format!("{event}\n");
    }
    std::fs::write(&path, text)?;
    scene.mesh.start_agent(NODE)
}

/// 10 million requests, or as many as `OUTRIDER_SOAK_REQUESTS` says, at `r1k` times `OUTRIDER_SOAK_SCALE`.
#[test]
#[ignore = "hours: cargo xtask test soak"]
fn memory_returns_after_millions_of_requests() -> Result<()> {
    let (requests, scale) = (chosen("OUTRIDER_SOAK_REQUESTS", 10_000_000), chosen("OUTRIDER_SOAK_SCALE", 2));
    let mut scene = Scene::start(Options::default())?;
    fill_history(&mut scene)?;
    // As full as it gets: every connection, every kind of churn.
    let load = scene.load(scale as f64)?;
    for number in 0..5 {
        churn(&scene, number)?;
    }
    load.wait_more(10_000)?;
    load.finish_clean()?;
    let before = resident(&scene)?;
    report(&format!("to begin with: {before:?}"));

    let load = scene.load(scale as f64)?;
    let (mut number, mut told) = (0, Instant::now());
    while load.complete() < requests {
        // As often as there is something new, and a second apart at least.
        load.wait_more(1_000 * scale)?;
        churn(&scene, number)?;
        number += 1;
        ensure!(load.losses() == 0, "something was lost after {} requests", load.complete());
        if told.elapsed() > Duration::from_secs(60) {
            report(&format!(
                "{} requests, {number} rounds of churn: {:?}",
                load.complete(),
                resident(&scene)?
            ));
            told = Instant::now();
        }
    }
    let result = load.finish_clean()?;
    let after = until("memory to be what it was", LONG * 4, || {
        let now = resident(&scene).map_err(|error| format!("{error:#}"))?;
        let fine = now.iter().all(|(name, bytes)| {
            before.get(name).is_some_and(|before| *bytes <= before + before * MORE / 100 + ROUNDING)
        });
        if fine { Ok(now) } else { Err(format!("{now:?}, before: {before:?}")) }
    });
    report(&format!("{number} rounds of churn\n{result}"));
    report(&format!("afterwards: {:?}", after.context("memory")?));
    scene.finish()
}
