//! Instances end in order: callers know before inbound is drained, and outbound is open until the application has gone.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use outrider_testkit::http::Connection;
use outrider_testkit::mesh::Engine;
use outrider_testkit::origin::Origin;
use outrider_testkit::process::{end_and_wait, is_running};
use outrider_testkit::wait::LONG;
use outrider_testkit::{Mesh, chosen, intent, ports, promised, report, until};
use rustix::process::Signal;

const NODE: &str = "node1";

/// `client` calls `middle`, which calls `web`.
fn documents(middle: u16, web: u16) -> String {
    let both = format!(
        "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: middle, namespace: shop}}
spec:
  role: client-server
  ports: [{}]
  calls: [web]
",
        intent::http(8080, middle)
    );
    let native = Engine::Native;
    intent::client(native, "client", "middle")
        + &both
        + &intent::server(native, "web", &intent::http(8081, web))
}

/// Goes on calling for so many calls after it was told to end, and writes down what became of each.
fn script(folder: &Path, calls: u64) -> String {
    let folder = folder.display();
    format!(
        "trap 'told=1' TERM; while [ -z \"$told\" ]; do sleep 0.05; done; : >'{folder}/told'; i=0; \
         while [ $i -lt {calls} ]; do if curl -sS --fail -o /dev/null http://web:8081/; then echo good; else echo bad; fi \
         >>'{folder}/calls'; i=$((i+1)); sleep 0.1; done"
    )
}

fn lines(file: &Path, word: &str) -> usize {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| *line == word).count()
}

/// N15: as many calls as `OUTRIDER_LAST_CALLS` says, ten a second at most, by default 30; `kill`: its proxy is
/// killed meanwhile. Without `control` there is no control plane from before the stop on.
fn last_calls(control: bool, kill: bool) -> Result<()> {
    let calls = chosen("OUTRIDER_LAST_CALLS", 30);
    let (middle, web) = (ports::reserve()?, ports::reserve()?);
    let mut mesh = Mesh::start()?;
    mesh.apply(&documents(middle, web))?;
    let (_middle, _web) = (Origin::http(middle)?, Origin::http(web)?);
    mesh.stand_in("shop/web")?;
    let folder = mesh.scratch()?;
    let app = mesh.app("shop/middle", ["sh", "-c", &script(&folder, calls)])?;
    let shell = mesh.shell("shop/client")?;
    let address = shell.address("middle", 8080)?;
    until("an answer", LONG, || {
        let answer = Connection::open(address).and_then(|mut c| c.get("middle", "/"));
        let good = answer.as_ref().is_ok_and(|answer| answer.reason().is_none());
        if good { Ok(()) } else { Err(format!("{answer:?}")) }
    })?;
    let local = mesh.local(NODE, "shop/middle")?;
    if !control {
        mesh.kill_server()?;
    }

    let asked = Instant::now();
    app.run.signal(Signal::TERM)?;
    until("the application to be told", LONG, || {
        if folder.join("told").exists() { Ok(()) } else { Err(app.run.output()) }
    })?;
    let told = asked.elapsed();
    // Less than the bound for callers that say nothing: they were asked, or there was nobody to ask them.
    ensure!(told < promised(Duration::from_secs(5)), "told after {told:?}");
    let mut proxy = local.proxy;
    if kill {
        end_and_wait(proxy, Signal::KILL)?;
        let again = mesh.wait_local("another process", NODE, "shop/middle", LONG, |now| {
            now.proxy != 0 && now.proxy != proxy && is_running(now.proxy)
        })?;
        proxy = again.proxy;
    }
    until("the application to end", LONG * 2, || {
        if is_running(local.app) {
            Err(format!("{} calls", lines(&folder.join("calls"), "good")))
        } else {
            Ok(())
        }
    })?;
    let ended = Instant::now();
    until("its proxy to end", LONG, || if is_running(proxy) { Err(proxy.to_string()) } else { Ok(()) })?;
    let gone = ended.elapsed();
    let (good, bad) = (lines(&folder.join("calls"), "good"), lines(&folder.join("calls"), "bad"));
    report(&format!("told after {told:?}; {good} calls, {bad} lost; its proxy had gone {gone:?} after it"));
    ensure!(good + bad == calls as usize, "{good} and {bad}: {}", app.run.output());
    // What was in flight in a process that is killed is lost.
    ensure!(bad <= usize::from(kill), "{bad} calls were lost");
    ensure!(gone <= promised(Duration::from_secs(1)), "its proxy was there for {gone:?}");
    mesh.finish()
}

#[test]
fn an_application_calls_until_its_end_and_its_proxy_goes_with_it() -> Result<()> {
    last_calls(true, false)
}

#[test]
fn a_proxy_that_is_killed_while_its_application_ends_is_replaced() -> Result<()> {
    last_calls(true, true)
}

#[test]
fn a_stop_needs_no_control_plane() -> Result<()> {
    last_calls(false, false)
}
