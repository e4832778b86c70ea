//! The interleaved run: start everything once, then take turns.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::measure::{Pinned, free_address, median, wait_for, wrk};
use crate::memory::{self, MemoryRow};
use crate::peers::{self, Job, Route, Side};
use crate::{Arguments, native, tcp};

/// The core of whatever is measured.
pub(crate) const PROXY_CORE: usize = 0;
/// The core of the load generator and the origin.
pub(crate) const LOAD_CORE: usize = 1;
/// Bytes of one bulk transfer.
const BULK: u64 = 1 << 30;

pub(crate) struct Contender {
    name: &'static str,
    pub(crate) entry: SocketAddr,
    pub(crate) processes: Vec<Pinned>,
    costs: Vec<f64>,
    p99: Vec<f64>,
    errors: u64,
}

#[derive(Serialize)]
struct Row {
    route: String,
    proxy: String,
    connections: u16,
    body: u32,
    unit: &'static str,
    cost_median: f64,
    cost_all: Vec<f64>,
    ours_to_this: f64,
    p99_us_median: f64,
    resident_mib: f64,
    errors: u64,
}

#[derive(Serialize)]
struct Report {
    host: BTreeMap<&'static str, String>,
    rounds: u16,
    seconds: u64,
    rows: Vec<Row>,
    memory: Vec<MemoryRow>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let routes = if arguments.route.is_empty() {
        vec![Route::Http, Route::MtlsPair, Route::Tcp, Route::TcpMtlsPair]
    } else {
        arguments.route.clone()
    };
    pin_this_process()?;
    let mut rows = Vec::new();
    for route in routes {
        eprintln!("{} …", route.title());
        if route.is_tcp() {
            rows.extend(measure_route(arguments, route, 1, 64)?);
            continue;
        }
        for connections in &arguments.connections {
            for body in &arguments.body {
                rows.extend(measure_route(arguments, route, *connections, *body)?);
            }
        }
    }
    print_table(&rows);
    let memory = if arguments.memory { memory::measure(arguments)? } else { Vec::new() };
    if arguments.memory {
        memory::print(&memory);
    }
    let report =
        Report { host: host_facts(), rounds: arguments.rounds, seconds: arguments.seconds, rows, memory };
    if let Some(path) = &arguments.json {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("written: {}", path.display());
    }
    Ok(())
}

/// The bulk source and reader are threads of this process.
fn pin_this_process() -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(LOAD_CORE);
    rustix::thread::sched_setaffinity(None, &set).context("this benchmark needs two cores")?;
    Ok(())
}

/// Who is measured on a path.
pub(crate) fn wanted(arguments: &Arguments, route: Route) -> Vec<&'static str> {
    let there = |name: &&str| match *name {
        "envoy" => arguments.envoy.is_some(),
        // The nginx package may come without its stream module.
        "nginx" => !route.is_tcp(),
        _ => true,
    };
    ["outrider", "envoy", "haproxy", "nginx"].into_iter().filter(there).collect()
}

fn measure_route(arguments: &Arguments, route: Route, connections: u16, body: u32) -> Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("outrider-bench").tempdir()?;
    let identity = native::certificates(dir.path())?;
    let source = tcp::Source::start()?;
    let origin_address = free_address()?;
    let log = dir.path().join("log");
    let _origin =
        Pinned::start("the origin", LOAD_CORE, &peers::origin(dir.path(), origin_address, &[body])?, &log)?;
    wait_for(origin_address, "the origin")?;
    let origin = if route.is_tcp() { source.address } else { origin_address };

    let mut contenders = Vec::new();
    for name in wanted(arguments, route) {
        contenders.push(start(arguments, name, route, dir.path(), origin, &identity)?);
    }
    for round in 0..usize::from(arguments.rounds) {
        for turn in 0..contenders.len() {
            let index = (turn + round) % contenders.len();
            measure(arguments, route, connections, body, &mut contenders[index])?;
        }
    }
    rows(route, connections, body, contenders)
}

pub(crate) fn start(
    arguments: &Arguments,
    name: &'static str,
    route: Route,
    dir: &Path,
    origin: SocketAddr,
    identity: &native::Identity,
) -> Result<Contender> {
    let log = dir.join("log");
    let mut processes = Vec::new();
    let mut forward = origin;
    let sides: &[Side] = if route.is_pair() { &[Side::Server, Side::Client] } else { &[Side::Plain] };
    for side in sides {
        let listen = free_address()?;
        let job = Job { dir: dir.to_owned(), listen, forward, side: *side, tcp: route.is_tcp(), others: 0 };
        let command = match (name, &arguments.envoy) {
            ("haproxy", _) => peers::haproxy(&job)?,
            ("nginx", _) => peers::nginx(&job)?,
            ("envoy", Some(binary)) => peers::envoy(binary, &job)?,
            _ => native::command(&arguments.proxy, &job, identity)?,
        };
        processes.push(Pinned::start(name, PROXY_CORE, &command, &log)?);
        wait_for(listen, name).with_context(|| {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
        })?;
        forward = listen;
    }
    Ok(Contender { name, entry: forward, processes, costs: Vec::new(), p99: Vec::new(), errors: 0 })
}

fn cpu(contender: &Contender) -> Result<u64> {
    contender.processes.iter().map(Pinned::cpu_ns).sum()
}

fn measure(
    arguments: &Arguments,
    route: Route,
    connections: u16,
    body: u32,
    contender: &mut Contender,
) -> Result<()> {
    if route.is_tcp() {
        let before = cpu(contender)?;
        tcp::fetch(contender.entry, BULK).with_context(|| format!("bulk through {}", contender.name))?;
        contender.costs.push((cpu(contender)? - before) as f64 / 1e6 / (BULK as f64 / f64::from(1 << 30)));
        return Ok(());
    }
    let url = format!("http://{}/{body}", contender.entry);
    let warm = wrk(LOAD_CORE, &url, connections, 1)?;
    let before = cpu(contender)?;
    let load = wrk(LOAD_CORE, &url, connections, arguments.seconds)?;
    let spent = cpu(contender)? - before;
    contender.errors += load.errors + warm.errors;
    contender.costs.push(spent as f64 / 1e3 / load.requests.max(1) as f64);
    contender.p99.push(load.p99_us);
    Ok(())
}

fn rows(route: Route, connections: u16, body: u32, contenders: Vec<Contender>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut ours = 0.0;
    for mut contender in contenders {
        let resident: u64 = contender.processes.iter().map(Pinned::resident_kib).sum::<Result<u64>>()?;
        let all = contender.costs.clone();
        let cost = median(&mut contender.costs);
        if contender.name == "outrider" {
            ours = cost;
        }
        rows.push(Row {
            route: route.title().to_owned(),
            proxy: contender.name.to_owned(),
            connections,
            body,
            unit: if route.is_tcp() { "ms/GiB" } else { "µs/request" },
            cost_median: cost,
            cost_all: all,
            ours_to_this: if cost > 0.0 { ours / cost } else { 0.0 },
            p99_us_median: median(&mut contender.p99),
            resident_mib: resident as f64 / 1024.0,
            errors: contender.errors,
        });
    }
    Ok(rows)
}

fn print_table(rows: &[Row]) {
    println!(
        "{:<32} {:<10} {:>5} {:>6} {:>10} {:<11} {:>14} {:>12} {:>9} {:>7}",
        "path", "proxy", "conns", "body", "CPU", "", "outrider ÷ it", "p99 µs", "RSS MiB", "errors"
    );
    for row in rows {
        println!(
            "{:<32} {:<10} {:>5} {:>6} {:>10.2} {:<11} {:>14.2} {:>12.0} {:>9.1} {:>7}",
            row.route,
            row.proxy,
            row.connections,
            row.body,
            row.cost_median,
            row.unit,
            row.ours_to_this,
            row.p99_us_median,
            row.resident_mib,
            row.errors
        );
    }
}

fn host_facts() -> BTreeMap<&'static str, String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find(|l| l.starts_with("model name"))
        .and_then(|l| l.split(": ").nth(1))
        .unwrap_or("unknown")
        .to_owned();
    let commit = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        .unwrap_or_default();
    BTreeMap::from([
        ("cpu", cpu),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("commit", commit),
        ("allocator", "jemalloc".to_owned()),
    ])
}
