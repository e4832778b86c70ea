//! Stamped and bad builds are what they say they are.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrider_testkit::builds::{self, Fault};
use outrider_testkit::http::Connection;
use outrider_testkit::load::ids::Class;
use outrider_testkit::load::upstream::{Options, Upstream};
use outrider_testkit::load::{self, Mix, Plan, Report, Target};
use outrider_testkit::mesh::{self, Mesh};
use outrider_testkit::process::run;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Pair, intent, peers, ports, until};

#[test]
fn stamped_copies_say_their_versions_and_differ() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let real = std::fs::read(mesh::binary("outrider-proxy")?)?;
    for version in ["0.9.0", "0.9.1-rc.1+abc", "12.0.0"] {
        // `stamped` itself asks the copy.
        let copy = std::fs::read(builds::stamped(folder.path(), version)?)?;
        ensure!(copy.len() == real.len() && copy != real, "{version}");
    }
    ensure!(builds::stamped(folder.path(), &"9".repeat(49)).is_err(), "a version that is too long");
    Ok(())
}

/// `None` with a message where the program with faults is not built.
fn bad(folder: &Path, fault: Fault) -> Result<Option<PathBuf>> {
    if !mesh::binary_folder()?.join("outrider-proxy-faults").is_file() {
        peers::skip_or_fail("outrider-proxy-faults is not built")?;
        return Ok(None);
    }
    builds::bad(folder, "1.0.1", fault).map(Some)
}

#[test]
fn bad_builds_end_by_themselves() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (fault, code) in [(Fault::Exit, 1), (Fault::CrashAfter(Duration::from_millis(200)), 134)] {
        let Some(proxy) = bad(folder.path(), fault)? else { return Ok(()) };
        let mut command = outrider_testkit::process::command(&proxy, folder.path());
        // An agent that never comes.
        command.arg("--control").arg(folder.path().join("agent.sock"));
        let ended = run(command, LONG)?;
        ensure!(ended.code == code, "{fault}: {ended:?}");
    }
    Ok(())
}

/// A client and a server whose proxies are this build.
struct Scene {
    mesh: Mesh,
    upstream: Upstream,
    web: SocketAddr,
}

impl Scene {
    fn start(proxy: PathBuf) -> Result<Self> {
        let port = ports::reserve()?;
        let http = Some(([127, 0, 0, 1], port).into());
        let upstream = Upstream::start(Options { http, ..Options::default() })?;
        let mesh = mesh::Options::default().proxy(proxy).start()?;
        mesh.apply(&intent::client_and_web(Pair::NATIVE, port))?;
        mesh.stand_in("shop/web")?;
        let web = mesh.shell("shop/client")?.address("web", 8080)?;
        until("the service to answer", LONG, || {
            let ask = || -> Result<()> {
                let answer = Connection::open(web)?.get("web:8080", "/")?;
                ensure!(answer.status()? == 404, "{answer:?}");
                Ok(())
            };
            ask().map_err(|error| format!("{error:#}"))
        })?;
        Ok(Self { mesh, upstream, web })
    }

    fn load(&self) -> Result<Report> {
        let http = Some(Target::url(&format!("http://{}", self.web))?);
        let mix = Mix { http: 4, ..Mix::NONE };
        let (rate, time) = (50.0, Duration::from_secs(2));
        let reports = vec![self.upstream.report_url()];
        load::run(Plan { http, mix, rate, time, reports, ..Plan::r1k(1.0) }).context("no load")
    }
}

#[test]
fn a_stamped_proxy_works_and_is_seen_with_its_version() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let scene = Scene::start(builds::stamped(folder.path(), "0.0.7-test")?)?;
    let report = scene.load()?;
    ensure!(report.is_clean(), "{report}");
    for instance in scene.mesh.instances()? {
        ensure!(instance.proxy.version == "0.0.7-test", "{instance:?}");
    }
    scene.mesh.finish()
}

#[test]
fn a_build_that_delays_is_slow_and_loses_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(proxy) = bad(folder.path(), Fault::Delay(Duration::from_millis(20)))? else { return Ok(()) };
    let scene = Scene::start(proxy)?;
    let report = scene.load()?;
    ensure!(report.is_clean(), "{report}");
    // Once by the client's and once by the server's.
    let latency = report.class(Class::Get).latency_us.context("nothing was answered")?;
    ensure!(latency.p50 >= 38_000, "{report}");
    scene.mesh.finish()
}

#[test]
fn a_build_that_refuses_does_so_with_a_reason() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(proxy) = bad(folder.path(), Fault::Refuse(5))? else { return Ok(()) };
    let scene = Scene::start(proxy)?;
    let report = scene.load()?;
    let refused = |class| report.class(class).made_by_proxy.get("cluster_not_ready").copied().unwrap_or(0);
    let refused = refused(Class::Get) + refused(Class::Post);
    ensure!(refused > 0 && report.losses() == refused && !report.is_clean(), "{report}");
    scene.mesh.finish()
}

#[test]
fn a_build_that_crashes_is_started_again_and_one_that_leaks_grows() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(proxy) = bad(folder.path(), Fault::CrashAfter(Duration::from_secs(3)))? else { return Ok(()) };
    let scene = Scene::start(proxy)?;
    let crashed = |all: &[outrider_api::http::InstanceView]| all.iter().any(|one| one.proxy.restarts > 0);
    scene.mesh.wait_instances("a crash", "shop/web", LONG, crashed)?;
    scene.mesh.finish()?;

    let Some(proxy) = bad(folder.path(), Fault::Leak(32))? else { return Ok(()) };
    let scene = Scene::start(proxy)?;
    // Where it has a group of its own it ends at its limit, alone.
    let grown = |all: &[outrider_api::http::InstanceView]| {
        all.iter().any(|one| one.proxy.resident_bytes > 100 << 20 || one.proxy.restarts > 0)
    };
    scene.mesh.wait_instances("a leak", "shop/web", LONG, grown)?;
    scene.mesh.finish()
}

#[test]
fn a_build_that_is_never_ready_is_configured_and_yet_starting() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(proxy) = bad(folder.path(), Fault::NeverReady)? else { return Ok(()) };
    let mesh = mesh::Options::default().proxy(proxy).start()?;
    mesh.apply(&intent::client_and_web(Pair::NATIVE, ports::reserve()?))?;
    let app = mesh.spawn("node1", "shop/client", ["sleep", "600"])?;
    let configured = |all: &[outrider_api::http::InstanceView]| {
        all.iter().any(|one| one.proxy.version == "1.0.1" && one.proxy.config == "current")
    };
    let all = mesh.wait_instances("a configured proxy", "shop/client", LONG, configured)?;
    ensure!(all.iter().all(|one| one.state == "starting"), "{all:?}");
    app.end()?;
    mesh.finish()
}
