//! A service of four replicas is deployed anew again and again under load: a new instance is started and waited for, and
//! an old one is told to end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrider_testkit::load::Report;
use outrider_testkit::load::ids::Class;
use outrider_testkit::mesh::{App, Options};
use outrider_testkit::prober::quantiles;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Engine, Hosts, Mesh, chosen, intent, ports, report, scale, scene, until};

const SERVICE: &str = "shop/web";
const REPLICAS: u8 = 4;
/// One more than replicas: the next one begins where none is.
const HOSTS: u8 = REPLICAS + 1;

struct Replica {
    host: u8,
    record: PathBuf,
    app: App,
}

/// The `number`th replica there ever was, and where it writes down what it saw. Where and how is known in advance, so
/// that the load can be told before it begins.
fn record(mesh: &Mesh, number: u64) -> PathBuf {
    mesh.folder().join(format!("apps/record-{number}"))
}

fn start(mesh: &Mesh, number: u64, host: u8, (http, grpc): (u16, u16)) -> Result<Replica> {
    let record = record(mesh, number);
    let (http, grpc) = (format!("0.0.0.0:{http}"), format!("0.0.0.0:{grpc}"));
    let file = record.display().to_string();
    let program = env!("CARGO_BIN_EXE_outrider-load");
    let line = [program, "origin", "--http", &http, "--grpc", &grpc, "--record", &file];
    let app = mesh.spawn(&format!("host{host}"), SERVICE, line)?;
    Ok(Replica { host, record, app })
}

fn wait_ready(mesh: &Mesh, number: usize) -> Result<()> {
    mesh.wait_instances(&format!("{number} ready instances"), SERVICE, LONG, |all| {
        all.iter().filter(|instance| instance.state == "ready").count() == number
    })?;
    Ok(())
}

/// As many deployments as `OUTRIDER_DEPLOYMENTS` says. Retries are off.
/// Edge case 50.
#[test]
fn rolling_deployments_lose_nothing() -> Result<()> {
    let deployments = chosen("OUTRIDER_DEPLOYMENTS", 2);
    let Some(hosts) = Hosts::new(HOSTS)? else { return Ok(()) };
    let (target, grpc) = (ports::reserve()?, ports::reserve()?);
    let mesh = Options::default().hosts(hosts).start()?;
    let documents = intent::client(Engine::Native, "client", "web")
        + &intent::server(Engine::Native, "web", &scene::web_ports(target, grpc))
        + intent::NO_RETRIES;
    mesh.apply(&documents)?;
    let mut replicas = Vec::new();
    for host in 1..=REPLICAS {
        replicas.push(start(&mesh, u64::from(host) - 1, host, (target, grpc))?);
    }
    wait_ready(&mesh, replicas.len())?;
    let shell = mesh.shell_on("host1", "shop/client")?;
    shell.ok("curl -sS --fail -o /dev/null -H 'x-load-id: 0000000000000000-get-0' http://web:8080/", LONG)?;

    // Each deployment replaces the oldest one four times: it ends with replicas on the hosts given by arithmetic.
    let replaced = deployments * u64::from(REPLICAS);
    let host_of = |number: u64| (number % u64::from(HOSTS)) as u8 + 1;
    let mut reports: Vec<String> =
        (0..replaced).map(|number| record(&mesh, number).display().to_string()).collect();
    for number in replaced..replaced + u64::from(REPLICAS) {
        reports.push(format!("http://{}:{target}/report", Hosts::address(host_of(number))));
    }
    let reports: String = reports.iter().map(|place| format!(" --report '{place}'")).collect();
    let over = mesh.folder().join("apps/over");
    let (http, calls, rate) = ((scale() * 100.0) as u32, (scale() * 20.0) as u32, scale() * 1_000.0);
    let load = shell.spawn(&format!(
        "exec '{}' run --http http://web:8080/load --grpc web:{} --mix http={http},grpc={calls} --rate {rate} --for 24h --until-file '{}' -q -o json{reports}",
        env!("CARGO_BIN_EXE_outrider-load"),
        scene::GRPC_PORT,
        over.display()
    ))?;

    let mut times = Vec::new();
    for number in 0..replaced {
        let began = Instant::now();
        let next = number + u64::from(REPLICAS);
        replicas.push(start(&mesh, next, host_of(next), (target, grpc))?);
        wait_ready(&mesh, replicas.len())?;
        let old = replicas.remove(0);
        ensure!(old.host == host_of(number), "{} is not where it should be", old.host);
        let code = old.app.end()?;
        ensure!(code == 0 && old.record.is_file(), "{code}: {}", old.app.run.output());
        mesh.wait_instances("one less", SERVICE, LONG, |all| all.len() == replicas.len())?;
        times.push(began.elapsed());
    }
    std::fs::write(&over, "")?;
    let ended = load.wait(LONG * 2)?;
    let result: Report = serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))?;
    report(&format!(
        "{deployments} deployments of {REPLICAS} replicas; replacing one took {}:\n{result}",
        quantiles(times)
    ));
    ensure!(result.is_clean() && result.upstream_asked, "{result}");
    for class in [Class::Get, Class::Post, Class::Grpc] {
        ensure!(result.class(class).complete > 0, "{class} was not tried:\n{result}");
    }
    until("what was replaced to be gone", Duration::from_secs(30), || {
        let all = mesh.instances_of(SERVICE).map_err(|error| format!("{error:#}"))?;
        if all.len() == usize::from(REPLICAS) { Ok(()) } else { Err(format!("{all:?}")) }
    })?;
    mesh.finish()
}
