//! The interleaved run: of each cell everybody is started once, then they take turns.
//!
//! Holds: one that cannot be started or breaks is named in the result, and the others go on; the result is on disk after
//! each cell. Does not: repeat a measurement that looks wrong.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::exchange::{Driver, pause_for};
use crate::measure::{Counter, Load, Pinned, free_address, h2load, median, pause, wait_for, wrk};
use crate::paced::Pace;
use crate::peers::{self, Job, Others, Paced, Proxy, Route, Side, Speaks};
use crate::plan::{Cell, Plan, Programs, minutes};
use crate::report::{ADDED, CellReport, Reading, Report};
use crate::{Arguments, grpc, memory, native, tcp};

/// The core of whatever is measured.
pub(crate) const PROXY_CORE: usize = 0;
/// The core of the load generator and the origin.
pub(crate) const LOAD_CORE: usize = 1;
/// Descriptors for both ends of a thousand connections, twice.
const DESCRIPTORS: u64 = 8192;

/// How long a load opens its connections before anything is counted.
const OPENING: Duration = Duration::from_millis(350);
/// How long before the end of a load nothing is counted any more.
const ENDING: Duration = Duration::from_millis(100);

/// How often a round in which nothing was answered is begun.
const TRIES: u32 = 3;

/// A proxy, or a pair of them, that runs.
pub(crate) struct Contender {
    pub(crate) proxy: Proxy,
    pub(crate) entry: SocketAddr,
    pub(crate) processes: Vec<Pinned>,
    driver: Option<Driver>,
    costs: Vec<f64>,
    p99: Vec<f64>,
    requests: u64,
    errors: u64,
}

/// What does not change between cells.
pub(crate) struct Bench<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) programs: &'a Programs,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let Some(path) = &arguments.from {
        return finish(arguments, &Report::load(path)?);
    }
    let plan = Plan::new(arguments);
    eprint!("{}", plan.describe());
    if arguments.plan {
        return Ok(());
    }
    pin_this_process()?;
    memory::descriptors(DESCRIPTORS)?;
    let bench = Bench { arguments, programs: &plan.programs };
    let begun = Instant::now();
    let mut report = Report {
        host: host_facts(&bench),
        rounds: arguments.rounds(),
        seconds: arguments.seconds,
        ..Report::default()
    };
    let all = plan.cells.len() + plan.memory.len();
    let save = |report: &mut Report| -> Result<()> {
        report.took_seconds = begun.elapsed().as_secs();
        arguments.json.as_ref().map_or(Ok(()), |path| report.save(path))
    };
    for (number, cell) in plan.cells.iter().enumerate() {
        eprintln!("[{}/{all}, {}] {} …", number + 1, left(&plan, number, begun), cell.title());
        for mut row in measure_cell(&bench, cell)? {
            row.compare();
            eprintln!("    {}", row.line());
            let failed = row.proxies.iter().filter(|reading| !reading.costs.is_empty() && reading.errors > 0);
            for reading in failed {
                eprintln!("    {}: {} failed", reading.proxy.name(), reading.errors);
            }
            report.cells.push(row);
        }
        save(&mut report)?;
    }
    for (number, held) in plan.memory.iter().enumerate() {
        eprintln!("[{}/{all}] memory, {} …", plan.cells.len() + number + 1, held.name());
        report.memory.extend(memory::measure(&bench, *held)?);
        save(&mut report)?;
    }
    if let Some(path) = &arguments.json {
        eprintln!("written: {}", path.display());
    }
    eprintln!("took {}", minutes(begun.elapsed().as_secs()));
    finish(arguments, &report)
}

fn finish(arguments: &Arguments, report: &Report) -> Result<()> {
    if let Some(page) = &arguments.page {
        report.put_into(page)?;
        eprintln!("written: {}", page.display());
    }
    println!("{}", report.print(arguments.output)?.trim_end());
    Ok(())
}

/// How long it is going to take from here, as planned and as it went so far.
fn left(plan: &Plan, done: usize, begun: Instant) -> String {
    let planned: u64 = plan.cells[..done].iter().map(|cell| plan.seconds_of(cell)).sum();
    let rest = plan.seconds() - planned;
    let pace = if planned == 0 { 1.0 } else { begun.elapsed().as_secs_f64() / planned as f64 };
    format!("{} left", minutes((rest as f64 * pace) as u64))
}

/// Sources, readers and the load of exchanges are threads of this process.
fn pin_this_process() -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(LOAD_CORE);
    rustix::thread::sched_setaffinity(None, &set).context("this benchmark needs two cores")?;
    Ok(())
}

/// One table of CPU, and one of time where the load has a pace.
fn measure_cell(bench: &Bench<'_>, cell: &Cell) -> Result<Vec<CellReport>> {
    let dir = tempfile::Builder::new().prefix("outrider-bench").tempdir()?;
    let identity = native::certificates(dir.path())?;
    let log = dir.path().join("log");
    let mut _nginx = None;
    let (origin, counter) = match cell.route.speaks() {
        Speaks::Tcp => (tcp::Source::start()?.address, None),
        Speaks::Grpc => {
            let (address, calls) = grpc::serve(&[cell.body])?;
            (address, Some(Counter::Own(calls)))
        }
        speaks @ (Speaks::Http | Speaks::Http2) => {
            let (address, status) = (free_address()?, free_address()?);
            let command = peers::origin(dir.path(), address, status, &[cell.body], speaks)?;
            _nginx = Some(Pinned::start("the origin", LOAD_CORE, &command, &log)?);
            wait_for(address, "the origin")?;
            (address, Some(Counter::Nginx(status)))
        }
    };

    let mut readings = Vec::new();
    let mut contenders = Vec::new();
    for proxy in Proxy::ALL {
        if let Some(reason) = bench.programs.cannot(proxy, cell.route.speaks()) {
            readings.push(Reading::missing(proxy, reason.to_owned()));
            continue;
        }
        let job = job(dir.path(), origin, cell.route.speaks(), usize::from(cell.connections));
        let ready = start(bench, proxy, cell.route, job, &identity).and_then(|mut contender| {
            contender.driver = drive(cell, contender.entry)?;
            Ok(contender)
        });
        match ready {
            Ok(contender) => contenders.push(contender),
            Err(error) => readings.push(broken(proxy, &error)),
        }
    }
    let pace = cell.route.paced().map(|paced| pace(paced, cell, &mut contenders)).transpose()?;
    let mut direct = Vec::new();
    for round in 0..usize::from(bench.arguments.rounds()) {
        if let Some(pace) = &pace {
            let length = Duration::from_secs(bench.arguments.seconds);
            direct.push(pace.run(origin, length, || Ok(0)).context("without any proxy")?.1.p99_us);
        }
        for turn in 0..contenders.len() {
            let index = (turn + round) % contenders.len();
            let contender = &mut contenders[index];
            // Whoever broke stays broken.
            if readings.iter().any(|reading| reading.proxy == contender.proxy) {
                continue;
            }
            let measured = match &pace {
                Some(pace) => measure_paced(bench.arguments, pace, contender),
                None => measure(bench.arguments, cell, round, counter.as_ref(), contender),
            };
            if let Err(error) = measured {
                readings.push(broken(contender.proxy, &error));
            }
        }
    }
    let mut added = readings.clone();
    for contender in contenders {
        if !readings.iter().any(|reading| reading.proxy == contender.proxy) {
            // A microsecond at least: what is lost in noise is no negative time.
            let over: Vec<f64> =
                contender.p99.iter().zip(&direct).map(|(with, without)| (with - without).max(1.0)).collect();
            let reading = reading(contender);
            added.push(Reading { costs: over, ..reading.clone() });
            readings.push(reading);
        }
    }
    let table = |unit: &str, goal, mut proxies: Vec<Reading>| {
        proxies.sort_by_key(|reading| reading.proxy);
        CellReport {
            row: cell.route.name().to_owned(),
            path: cell.route.title().to_owned(),
            connections: cell.connections,
            streams: cell.streams,
            body: cell.body,
            unit: unit.to_owned(),
            goal,
            proxies,
        }
    };
    let mut tables = vec![table(cell.route.unit(), cell.goal(), readings)];
    if pace.is_some() {
        tables.push(table(ADDED, cell.added_goal(), added));
    }
    Ok(tables)
}

/// How fast everybody is asked.
fn pace(paced: Paced, cell: &Cell, contenders: &mut [Contender]) -> Result<Pace> {
    let rate = match paced {
        Paced::Rate(rate) => f64::from(rate),
        Paced::Half => {
            let mut slowest = f64::INFINITY;
            for contender in contenders {
                let load = once(cell, contender.entry, 1)?;
                slowest = slowest.min(load.requests as f64);
            }
            (slowest / 2.0).max(1.0)
        }
    };
    eprintln!("    {rate:.0} requests a second");
    Ok(Pace { rate, connections: cell.connections, body: cell.body })
}

fn measure_paced(arguments: &Arguments, pace: &Pace, contender: &mut Contender) -> Result<()> {
    let processes = &contender.processes;
    let length = Duration::from_secs(arguments.seconds);
    let (spent, load) = pace.run(contender.entry, length, || cpu(processes))?;
    anyhow::ensure!(load.requests > 0, "no request was answered");
    contender.requests += load.requests;
    contender.costs.push(spent as f64 / 1e3 / load.requests as f64);
    contender.p99.push(load.p99_us);
    Ok(())
}

fn broken(proxy: Proxy, error: &anyhow::Error) -> Reading {
    eprintln!("    {} failed: {error:#}", proxy.name());
    // Of a log, the last line says most.
    let text = format!("{error:#}");
    let short = text.lines().next_back().unwrap_or_default().to_owned();
    Reading::missing(proxy, format!("it failed ({short})"))
}

/// A job without other services.
pub(crate) fn job(dir: &Path, forward: SocketAddr, speaks: Speaks, connections: usize) -> Job {
    Job {
        dir: dir.to_owned(),
        // Chosen when it is started.
        listen: forward,
        forward,
        side: Side::Plain,
        speaks,
        others: Others::default(),
        connections,
    }
}

/// Starts a proxy, or the two of a pair.
pub(crate) fn start(
    bench: &Bench<'_>,
    proxy: Proxy,
    route: Route,
    job: Job,
    identity: &native::Identity,
) -> Result<Contender> {
    let sides: &[Side] = if route.is_pair() { &[Side::Server, Side::Client] } else { &[job.side] };
    let mut processes = Vec::new();
    let mut forward = job.forward;
    for side in sides {
        let job = Job { listen: free_address()?, forward, side: *side, ..job.clone() };
        let log = job.dir.join(format!("log-{}", job.listen.port()));
        let command = peers::command(proxy, bench.programs, bench.arguments, &job, identity)?;
        processes.push(Pinned::start(proxy.name(), PROXY_CORE, &command, &log)?);
        wait_for(job.listen, proxy.name()).with_context(|| {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
        })?;
        forward = job.listen;
    }
    Ok(Contender {
        proxy,
        entry: forward,
        processes,
        driver: None,
        costs: Vec::new(),
        p99: Vec::new(),
        requests: 0,
        errors: 0,
    })
}

/// The load of our own, where it is one.
fn drive(cell: &Cell, entry: SocketAddr) -> Result<Option<Driver>> {
    match cell.route {
        Route::Tcp | Route::TcpMtls => tcp::exchanges(entry, cell.connections, cell.body).map(Some),
        Route::GrpcStream | Route::GrpcStreamMtls => {
            grpc::streams(entry, cell.connections, cell.streams, cell.body).map(Some)
        }
        _ => Ok(None),
    }
}

fn cpu(processes: &[Pinned]) -> Result<u64> {
    processes.iter().map(Pinned::cpu_ns).sum()
}

/// Longest wait for what is left of a load.
const SETTLES: Duration = Duration::from_secs(5);
/// Between two looks, and what a proxy may work within it that has nothing to do.
const LOOK: Duration = Duration::from_millis(50);
const NOTHING: u64 = 2_000_000;

/// Waits until nothing of the load before is under way: requests that were broken off would count against limits beside
/// those of the next one.
fn settle(processes: &[Pinned]) -> Result<()> {
    let begun = Instant::now();
    let mut before = cpu(processes)?;
    while begun.elapsed() < SETTLES {
        pause(LOOK);
        let now = cpu(processes)?;
        if now.saturating_sub(before) < NOTHING {
            break;
        }
        before = now;
    }
    Ok(())
}

fn measure(
    arguments: &Arguments,
    cell: &Cell,
    round: usize,
    counter: Option<&Counter>,
    contender: &mut Contender,
) -> Result<()> {
    let Contender { processes, driver, entry, .. } = contender;
    if cell.route.is_bulk() {
        let before = cpu(processes)?;
        tcp::fetch(*entry, u64::from(cell.body))?;
        contender.costs.push((cpu(processes)? - before) as f64 / 1e6);
        contender.requests += 1;
        return Ok(());
    }
    let look = |counter: &Counter| Ok((counter.read()?, cpu(processes)?));
    let mut tries = 0;
    let (spent, load) = loop {
        let (spent, load) = match (&driver, counter) {
            (Some(driver), _) => driver.window(Duration::from_secs(arguments.seconds), || cpu(processes))?,
            (None, Some(counter)) => {
                let (first, further) = cell.warming();
                let warming = if round == 0 { first } else { further };
                if warming > 0 {
                    settle(processes)?;
                    contender.errors += once(cell, *entry, warming)?.errors;
                }
                settle(processes)?;
                within(cell, *entry, arguments.seconds, || look(counter))?
            }
            (None, None) => anyhow::bail!("nobody counts the requests"),
        };
        tries += 1;
        // A machine with other work may stand still for as long.
        if load.requests > 0 || tries == TRIES {
            break (spent, load);
        }
    };
    anyhow::ensure!(load.requests > 0, "no request was answered");
    contender.requests += load.requests;
    contender.errors += load.errors;
    contender.costs.push(spent as f64 / 1e3 / load.requests as f64);
    contender.p99.push(load.p99_us);
    Ok(())
}

/// Lets a program put load on for so long, and looks within: after its connections are open, and before it ends. What
/// is on its way at either moment is as much, so that neither connecting nor breaking off is in the result. Gives CPU
/// and, of the time within, requests.
fn within(
    cell: &Cell,
    entry: SocketAddr,
    seconds: u64,
    look: impl Fn() -> Result<(u64, u64)>,
) -> Result<(u64, Load)> {
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let load = scope.spawn(|| once(cell, entry, seconds));
        pause_for(OPENING);
        let (requests, cpu) = look()?;
        pause_for((Duration::from_secs(seconds) - ENDING).saturating_sub(begun.elapsed()));
        let (until, spent) = look()?;
        let load = load.join().map_err(|_panic| anyhow::anyhow!("the load broke off"))??;
        Ok((spent - cpu, Load { requests: until - requests, ..load }))
    })
}

fn once(cell: &Cell, entry: SocketAddr, seconds: u64) -> Result<Load> {
    let url = format!("http://{entry}/{}", cell.body);
    let (connections, streams) = (cell.connections, cell.streams);
    match cell.route.speaks() {
        Speaks::Http2 => h2load(LOAD_CORE, &url, connections, streams, seconds, None),
        Speaks::Grpc => {
            let url = format!("http://{entry}{}", grpc::METHOD);
            h2load(LOAD_CORE, &url, connections, streams, seconds, Some(&grpc::framed(cell.body)))
        }
        _ => wrk(LOAD_CORE, &url, connections, seconds),
    }
}

fn reading(mut contender: Contender) -> Reading {
    // One that has ended by now was measured all the same.
    let resident: u64 = contender.processes.iter().filter_map(|process| process.resident_kib().ok()).sum();
    Reading {
        proxy: contender.proxy,
        missing: None,
        costs: contender.costs,
        cost: None,
        ours_to_this: None,
        requests: contender.requests,
        errors: contender.errors,
        p99_us_median: median(&mut contender.p99),
        resident_mib: resident as f64 / 1024.0,
    }
}

fn host_facts(bench: &Bench<'_>) -> BTreeMap<String, String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find(|l| l.starts_with("model name"))
        .and_then(|l| l.split(": ").nth(1))
        .unwrap_or("unknown")
        .to_owned();
    let commit = Command::new("git")
        .args(["describe", "--always", "--dirty", "--exclude=*"])
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        .unwrap_or_default();
    let mut facts = BTreeMap::from([
        ("cpu".to_owned(), cpu),
        ("kernel".to_owned(), read("/proc/sys/kernel/osrelease")),
        ("load average at the start".to_owned(), read("/proc/loadavg")),
        ("commit".to_owned(), commit),
        ("allocator".to_owned(), "jemalloc".to_owned()),
    ]);
    for proxy in [Proxy::Envoy, Proxy::Haproxy, Proxy::Nginx] {
        // Whoever is in no cell at all is not there.
        if bench.programs.cannot(proxy, Speaks::Http).is_some() {
            continue;
        }
        let version = match (proxy, &bench.arguments.envoy) {
            (Proxy::Envoy, Some(binary)) => envoy_version(&peers::version(binary, "--version")),
            (Proxy::Haproxy, _) => {
                let line = peers::version(Path::new("haproxy"), "-v");
                line.split(" - ").next().unwrap_or_default().to_owned()
            }
            _ => peers::version(Path::new("nginx"), "-v").replace("nginx version: nginx/", "nginx "),
        };
        facts.insert(proxy.name().to_owned(), version);
    }
    facts
}

/// Of `…/envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`, what people call it by.
fn envoy_version(line: &str) -> String {
    let parts = line.split_once("version: ").map(|(_, parts)| parts);
    parts.and_then(|parts| parts.split('/').nth(1)).map_or_else(|| line.to_owned(), |v| format!("Envoy {v}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_envoy_is_the_number() {
        assert_eq!(envoy_version("/x/envoy  version: ab12/1.40.0/Clean/RELEASE/BoringSSL"), "Envoy 1.40.0");
        assert_eq!(envoy_version("something else"), "something else");
    }
}
