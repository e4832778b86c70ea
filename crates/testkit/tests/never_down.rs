//! Proxies, agents and the control plane are killed, hang and are replaced under load, and nobody notices.
//!
//! Every test: the mix `r1k`, smaller; retries off; the applications are the same processes afterwards. What is
//! measured is printed, and judged only where a number is promised.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrider_testkit::mesh::Options;
use outrider_testkit::prober::quantiles;
use outrider_testkit::process::{self, end_and_wait};
use outrider_testkit::scene::{NODE, check_probes};
use outrider_testkit::wait::{LONG, pass};
use outrider_testkit::{Scene, Side, chosen, promised, report, until};
use rustix::process::Signal;

/// Size of the load beside `r1k`.
const SCALE: f64 = 0.1;

/// kill -9 of both sides' proxies by turns: nothing is lost but what was in flight in the process, no connection is
/// refused, and there is no giving up. As many as `OUTRIDER_PROXY_KILLS` says.
#[test]
fn killed_proxies_are_not_missed() -> Result<()> {
    let kills = chosen("OUTRIDER_PROXY_KILLS", 6);
    let scene = Scene::start(Options::default())?;
    let (load, prober) = (scene.load(SCALE)?, scene.prober());
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
    report(&format!("from the kill of the caller's proxy until a new connection is served: {}", quantiles(client)));
    report(&format!("from the kill of the called one's: {}", quantiles(web)));
    report(&format!("{kills} kills, {} in flight:\n{result}", result.in_flight()));
    scene.finish()
}

/// A proxy that hangs is noticed and replaced within the promised time.
#[test]
fn a_proxy_that_hangs_is_replaced() -> Result<()> {
    let scene = Scene::start(Options::default())?;
    for side in [Side::Client, Side::Web] {
        let load = scene.load(SCALE)?;
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
    let load = scene.load(SCALE)?;
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
