//! The load program finds every fault, under its own name and no other, and finds none where there is none.

mod grpc;
mod middle;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use middle::{Fault, Middle};
use outrider_testkit::load::ids::Class;
use outrider_testkit::load::tally::Kind;
use outrider_testkit::load::upstream::{Options, Upstream};
use outrider_testkit::load::{self, Mix, Plan, Report, Target};
use outrider_testkit::process::{self, Proc, run};
use outrider_testkit::wait::LONG;
use outrider_testkit::{ports, until};
use rustix::process::Signal;

/// Which request is the faulty one: a `GET`, a `POST` with a length, and a `POST` in chunks.
const GET: u32 = 4;
const POST: u32 = 5;

fn target(address: SocketAddr) -> Option<Target> {
    Target::url(&format!("http://{address}")).ok()
}

/// Counters that are not zero.
type Counters = &'static [(&'static str, u64)];

/// One connection of one kind, for so long that the fault is in the middle.
fn plan(mix: Mix, rate: f64, millis: u64, upstreams: &[&Upstream]) -> Plan {
    let reports = upstreams.iter().map(|upstream| upstream.report_url()).collect();
    let time = Duration::from_millis(millis);
    Plan { mix, rate, time, reports, timeout: Duration::from_secs(20), ..Plan::r1k(1.0) }
}

const HTTP: Mix = Mix { http: 1, ..Mix::NONE };
const WEBSOCKET: Mix = Mix { websocket: 1, ..Mix::NONE };
const TCP: Mix = Mix { tcp: 1, ..Mix::NONE };

/// All counters that are not zero, but for those of a good run; and that they add up.
fn counters(report: &Report) -> Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    let mut add = |name: &str, number: u64| {
        if number > 0 {
            *all.entry(name.to_owned()).or_default() += number;
        }
    };
    let mut losses = 0;
    for (class, line) in &report.classes {
        ensure!(line.sent == line.complete + line.failed(), "{class} does not add up: {line:?}");
        ensure!(line.latency_us.is_some() == (line.complete > 0 && !class.is_pushed()), "{class}: {line:?}");
        losses += line.losses();
        add("incomplete", line.incomplete);
        add("refused", line.refused);
        add("unanswered", line.unanswered);
        add("upstream_5xx", line.upstream_5xx);
        add("unexpected_status", line.unexpected_status);
        add("wrong_body", line.wrong_body);
        add("unsent", line.unsent);
        add("seen_twice", line.seen_twice.unwrap_or(0));
        add("unseen", line.unseen.unwrap_or(0));
        for (reason, number) in &line.made_by_proxy {
            add(reason, *number);
        }
    }
    for links in report.links.values() {
        losses += links.closed_early;
        add("announced", links.announced);
        add("closed_idle", links.closed_idle);
        add("drained", links.drained);
        add("closed_early", links.closed_early);
    }
    ensure!(losses == report.losses && losses == report.losses(), "{report:?}");
    ensure!(report.is_clean() == (losses == 0), "{report:?}");
    Ok(all)
}

fn expect(name: &str, report: &Report, expected: &[(&str, u64)]) -> Result<()> {
    let expected: BTreeMap<String, u64> =
        expected.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
    let found = counters(report)?;
    ensure!(found == expected, "{name}: {found:?}, not {expected:?}\n{report}");
    let sent: u64 = report.classes.values().map(|line| line.sent).sum();
    ensure!(sent > 5, "{name}: only {sent} sent");
    Ok(())
}

/// Checks cases at the same time: together they are still few requests, and each waits most of the time. Not more than are
/// remembered.
fn together<C: Sync>(cases: &[C], check: impl Fn(&C) -> Result<()> + Sync) -> Result<()> {
    let check = &check;
    std::thread::scope(|scope| {
        for group in cases.chunks(load::upstream::MOST_RUNS) {
            let threads: Vec<_> = group.iter().map(|case| scope.spawn(move || check(case))).collect();
            for thread in threads {
                thread.join().map_err(|_| anyhow::anyhow!("a case panicked"))??;
            }
        }
        Ok(())
    })
}

#[test]
fn http_faults_are_found_under_their_names() -> Result<()> {
    let (upstream, other) = (Upstream::start(Options::loopback())?, Upstream::start(Options::loopback())?);
    let addresses = (upstream.http().context("no HTTP")?, other.http().context("no HTTP")?);
    let cases: &[(Fault, u32, Counters)] = &[
        (Fault::None, GET, &[]),
        (Fault::CutResponse, GET, &[("incomplete", 1)]),
        (Fault::CutBeforeResponse, POST, &[("incomplete", 1)]),
        (Fault::ExtraByte, GET, &[("incomplete", 1)]),
        (Fault::Ambiguous, GET, &[("incomplete", 1)]),
        (Fault::Twice, POST, &[("seen_twice", 1)]),
        (Fault::Reason, GET, &[("no_endpoints", 1)]),
        (Fault::Upstream503, POST, &[("upstream_5xx", 1)]),
        (Fault::Unnamed503, GET, &[("unnamed_503", 1)]),
        (Fault::NotFound, GET, &[("unexpected_status", 1)]),
        (Fault::CorruptResponse, GET, &[("wrong_body", 1)]),
        (Fault::CorruptRequest, POST, &[("wrong_body", 1)]),
        (Fault::CorruptRequest, POST + 2, &[("wrong_body", 1)]),
        (Fault::OtherAnswer, GET, &[("wrong_body", 1)]),
        (Fault::Forge, GET, &[("unseen", 1)]),
        (Fault::Announce, POST, &[("announced", 1)]),
        (Fault::CloseIdle, GET, &[("closed_idle", 1)]),
    ];
    together(cases, |(fault, at, expected)| {
        let middle = Middle::http(addresses.0, addresses.1, *fault, *at)?;
        let plan = plan(HTTP, 8.0, 2000, &[&upstream, &other]);
        let report = load::run(Plan { http: target(middle.address), ..plan })?;
        expect(&format!("{fault:?}"), &report, expected)
    })
}

#[test]
fn what_is_swallowed_is_unanswered() -> Result<()> {
    let upstream = Upstream::start(Options::loopback())?;
    let http = upstream.http().context("no HTTP")?;
    let middle = Middle::http(http, http, Fault::Swallow, GET)?;
    let plan = plan(HTTP, 20.0, 600, &[&upstream]);
    let plan = Plan { http: target(middle.address), timeout: Duration::from_secs(5), ..plan };
    let report = load::run(plan)?;
    expect("swallow", &report, &[("unanswered", 1)])?;
    // What was due meanwhile on the connection that hung was sent late, and its latency says so.
    let slowest = report.classes.values().filter_map(|line| line.latency_us).map(|latency| latency.max).max();
    let late: u64 = report.classes.values().map(|line| line.late).sum();
    ensure!(late > 0 && slowest.is_some_and(|slowest| slowest > 4_000_000), "{late} late, {slowest:?}");
    Ok(())
}

#[test]
fn where_nobody_listens_everything_is_refused() -> Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], ports::reserve()?));
    let mix = Mix { http: 1, websocket: 1, tcp: 1, ..Mix::NONE };
    let plan = plan(mix, 30.0, 500, &[]);
    let (http, websocket, tcp) = (target(address), target(address), target(address));
    let report = load::run(Plan { http, websocket, tcp, ..plan })?;
    let sent: u64 = report.classes.values().map(|line| line.sent).sum();
    expect("refused", &report, &[("refused", sent)])?;
    for class in [Class::Get, Class::Post, Class::WebSocket, Class::Tcp] {
        ensure!(report.class(class).refused > 0, "{class} was not tried");
    }
    Ok(())
}

#[test]
fn faults_of_long_lived_connections_are_found_under_their_names() -> Result<()> {
    let upstream = Upstream::start(Options::loopback())?;
    let (http, tcp) = (upstream.http().context("no HTTP")?, upstream.tcp().context("no TCP")?);
    let (soon, never) = (Duration::ZERO, Duration::from_secs(600));
    // A connection has one message under way at most, so nothing else is lost with it.
    let cases: &[(Kind, Fault, Duration, Counters)] = &[
        (Kind::WebSocket, Fault::None, never, &[]),
        (Kind::WebSocket, Fault::CloseFrame, never, &[("closed_early", 1)]),
        (Kind::WebSocket, Fault::CloseFrame, soon, &[("drained", 1)]),
        (Kind::WebSocket, Fault::Close, soon, &[("closed_early", 1)]),
        (Kind::WebSocket, Fault::CorruptResponse, never, &[("wrong_body", 1)]),
        (Kind::WebSocket, Fault::CutResponse, never, &[("incomplete", 1)]),
        (Kind::Tcp, Fault::None, never, &[]),
        (Kind::Tcp, Fault::Close, never, &[("closed_early", 1)]),
        (Kind::Tcp, Fault::Close, soon, &[("drained", 1)]),
        (Kind::Tcp, Fault::CorruptResponse, never, &[("wrong_body", 1)]),
    ];
    together(cases, |(kind, fault, drain, expected)| {
        let (middle, mix, millis) = match kind {
            Kind::Tcp => (Middle::tcp(tcp, *fault)?, TCP, 2000),
            _ => (Middle::websocket(http, *fault)?, WEBSOCKET, 8000),
        };
        let at = target(middle.address);
        let plan = plan(mix, 10.0, millis, &[&upstream]);
        let (websocket, tcp) = if *kind == Kind::Tcp { (None, at) } else { (at, None) };
        let report = load::run(Plan { websocket, tcp, drain: *drain, ..plan })?;
        expect(&format!("{kind:?} {fault:?}"), &report, expected)
    })
}

/// A swallowed message also costs those after it, which wait behind it: none of them is complete or forgotten.
#[test]
fn a_swallowed_message_is_unanswered_and_all_are_accounted_for() -> Result<()> {
    let upstream = Upstream::start(Options::loopback())?;
    let silent = outrider_testkit::origin::Origin::serve(0, |mut stream| {
        std::io::copy(&mut stream, &mut std::io::sink())?;
        Ok(())
    })?;
    let plan = plan(TCP, 10.0, 600, &[&upstream]);
    let plan = Plan { tcp: target(silent.address()), timeout: Duration::from_millis(300), ..plan };
    let report = load::run(plan)?;
    let sent = report.class(Class::Tcp).sent;
    expect("silence", &report, &[("unanswered", sent)])
}

/// A replica that ends leaves its record in a file; those that run are asked.
#[test]
fn what_several_upstreams_saw_is_put_together() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("record");
    let (first, second) = (Upstream::start(Options::loopback())?, Upstream::start(Options::loopback())?);
    let addresses = (first.http().context("no HTTP")?, second.http().context("no HTTP")?);
    let middle = Middle::http(addresses.0, addresses.1, Fault::Announce, GET)?;
    let plan = plan(HTTP, 20.0, 600_000, &[]);
    let reports = vec![file.display().to_string(), second.report_url()];
    let running = load::start(Plan { http: target(middle.address), reports, ..plan })?;
    until("the second one to see requests", LONG, || {
        let seen = second.records().runs;
        if seen.is_empty() { Err(format!("{:?}", running.progress())) } else { Ok(()) }
    })?;
    first.save(&file)?;
    drop(first);
    running.stop();
    let report = running.finish()?;
    ensure!(report.ended_early && report.upstream_asked, "{report}");
    expect("two upstreams", &report, &[("announced", 1)])
}

fn binary(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = process::command(env!("CARGO_BIN_EXE_outrider-load"), folder);
    command.args(arguments);
    command
}

#[test]
fn the_program_says_by_its_exit_code_whether_something_was_lost() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let upstream = Upstream::start(Options::loopback())?;
    let (http, tcp) = (upstream.http().context("no HTTP")?, upstream.tcp().context("no TCP")?);
    let (url, tcp, report_url) = (format!("http://{http}"), tcp.to_string(), upstream.report_url());
    let grpc = upstream.grpc().context("no gRPC")?.to_string();
    let all = ["run", "--http", &url, "--ws", &url, "--tcp", &tcp, "--grpc", &grpc];
    let all = [&all[..], &["--report", &report_url, "--scale", "0.1"]].concat();

    let clean = run(binary(folder.path(), &[&all[..], &["--for", "2s", "-o", "json"]].concat()), LONG)?;
    ensure!(clean.code == 0, "{clean:?}");
    let report: Report = serde_json::from_str(&clean.stdout)?;
    expect("clean", &report, &[])?;
    for class in Class::ALL {
        ensure!(report.class(class).complete > 0, "no {class}: {}", clean.stdout);
    }

    let middle = Middle::http(http, http, Fault::Reason, GET)?;
    let faulty = format!("http://{}", middle.address);
    let faulty = ["run", "--http", &faulty, "--mix", "http=1", "--rate", "20", "--for", "1s", "-q"];
    let lost = run(binary(folder.path(), &faulty), LONG)?;
    ensure!(lost.code == 1 && lost.stdout.contains("1 × no_endpoints") && lost.stderr.is_empty(), "{lost:?}");

    for wrong in [
        &["run"][..],
        &["run", "--http", "https://web"],
        &["run", "--http", "http://web", "--mix", "grpc=20"],
        &["run", "--http", "http://web", "--rate", "0"],
        &["run", "--http", "http://web", "--for", "1d"],
        &["origin"],
    ] {
        let refused = run(binary(folder.path(), wrong), LONG)?;
        ensure!(refused.code == 2 && refused.stdout.is_empty(), "{wrong:?}: {refused:?}");
    }
    let gone = ["--report", "http://127.0.0.1:1/report", "--mix", "http=1", "--rate", "20", "--for", "300ms"];
    let unknown = run(binary(folder.path(), &[&["run", "--http", &url], &gone[..]].concat()), LONG)?;
    ensure!(
        unknown.code == 1 && unknown.stdout.contains("problem:"),
        "not knowing is not clean: {unknown:?}"
    );
    Ok(())
}

#[test]
fn the_program_can_be_ended_early_and_the_upstream_is_a_program_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let record = folder.path().join("record");
    let record_text = record.display().to_string();
    let log = folder.path().join("origin.log");
    let command = binary(folder.path(), &["origin", "--http", "127.0.0.1:0", "--record", &record_text]);
    let origin = Proc::start("origin", command, &log)?;
    let http = until("the origin's address", LONG, || {
        let output = origin.output();
        let address = output.lines().find_map(|line| line.strip_prefix("http ")).map(str::to_owned);
        address.filter(|_| output.ends_with('\n')).ok_or(output)
    })?;
    let (url, report_url) = (format!("http://{http}"), format!("http://{http}/report"));
    let seen = || -> Result<u64, String> {
        let ask = || -> Result<serde_json::Value> {
            let mut connection = outrider_testkit::http::Connection::open(http.parse()?)?;
            Ok(serde_json::from_str(&connection.get(&http, "/report")?.text())?)
        };
        let report = ask().map_err(|error| format!("{error:#}"))?;
        let runs = report["runs"].as_array().map_or(0, Vec::len);
        if runs > 0 { Ok(runs as u64) } else { Err(report.to_string()) }
    };
    let there = folder.path().join("there");
    let there_text = there.display().to_string();
    for (number, by_signal) in [true, false].into_iter().enumerate() {
        let arguments =
            ["run", "--http", &url, "--report", &report_url, "--scale", "0.1", "--for", "1h", "-o", "json"];
        let until_file = ["--until-file", &there_text];
        let name = format!("run-{number}");
        let command = binary(folder.path(), &[&arguments[..], &until_file[..]].concat());
        let load = Proc::start(&name, command, &folder.path().join(&name))?;
        until("requests to arrive", LONG, || match seen()? {
            runs if runs > number as u64 => Ok(()),
            runs => Err(format!("{runs} runs")),
        })?;
        if by_signal {
            load.signal(Signal::INT)?;
        } else {
            std::fs::write(&there, "")?;
        }
        let status = load.wait(LONG)?;
        let output = load.output();
        ensure!(status.code() == Some(0), "{output}");
        let json = output.find('{').map(|start| &output[start..]).context("no JSON")?;
        ensure!(serde_json::from_str::<Report>(json)?.ended_early, "{output}");
    }
    origin.signal(Signal::TERM)?;
    ensure!(origin.wait(LONG)?.code() == Some(0), "{}", origin.output());
    let saved: load::upstream::Records = serde_json::from_slice(&std::fs::read(record)?)?;
    ensure!(saved.runs.len() == 2, "{saved:?}");
    Ok(())
}
