//! The corpus of hostile messages through two of our proxies to servers of others: each reads as many requests as ours
//! have forwarded, and never one that was hidden.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the corpus is read by helpers of tests"
)]
#![allow(unreachable_pub, missing_docs, dead_code, reason = "modules of another test")]

#[path = "../../proxy-core/tests/smuggling/corpus.rs"]
mod corpus;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use corpus::{Case, End};
use outrider_testkit::http::Connection;
use outrider_testkit::mesh::Engine;
use outrider_testkit::peers::counters::{Counter, Software};
use outrider_testkit::wait::LONG;
use outrider_testkit::{Mesh, intent, ports, report, until};

const PORT: u16 = 8080;

/// Cases of which the peer sees a part of a request at most, and may count it or not.
fn is_ragged(case: &Case) -> bool {
    matches!(&case.end, End::Waits)
        || matches!(&case.end, End::Refused(_, reason) if reason == "invalid_body")
}

/// Methods of the requests that go upstream, in order; with the end of a body before them, if that has no line end.
fn methods(case: &Case) -> Vec<String> {
    let text = String::from_utf8_lossy(&case.seen);
    let lines = text.split("\r\n").filter_map(|line| line.strip_suffix(" HTTP/1.1"));
    lines.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Sends the case and reads every answer.
fn call(address: SocketAddr, case: &Case) -> Result<()> {
    let mut connection = Connection::open(address)?;
    let mut writer = connection.writer()?;
    // Who has heard enough may close before everything is read.
    drop(writer.write_all(&case.sent));
    let methods = methods(case);
    for at in 0..case.count {
        let method = methods.get(at).map_or("GET", |method| method.as_str());
        connection.response(method).with_context(|| format!("answer {at}, to {method}"))?;
    }
    if let End::Refused(status, _) = &case.end {
        let refusal = connection.response("GET").context("the refusal")?;
        ensure!(refusal.status()? == *status, "{refusal:?}");
    }
    Ok(())
}

/// The same for a case that leaves a request unfinished: whatever comes back.
fn call_ragged(address: SocketAddr, case: &Case) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LONG))?;
    drop(stream.write_all(&case.sent));
    drop(stream.shutdown(Shutdown::Write));
    // An end or a reset; a time-out would be neither.
    match stream.read_to_end(&mut Vec::new()) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => bail!("no end within {LONG:?}"),
        _ => Ok(()),
    }
}

fn mark(address: SocketAddr, number: usize) -> Result<()> {
    let response = Connection::open(address)?.get("a", &format!("/mark/{number}"))?;
    ensure!(response.status()? == 200, "{response:?}");
    Ok(())
}

/// What one server wrote down, from mark to mark.
fn between_marks(text: &str) -> BTreeMap<usize, Vec<String>> {
    let mut parts = BTreeMap::from([(0, Vec::new())]);
    let mut now = 0;
    for line in text.lines() {
        match line.rsplit_once("/mark/") {
            Some((_, number)) => {
                now = number.parse().unwrap_or(now);
                parts.insert(now, Vec::new());
            }
            None => parts.entry(now).or_default().push(line.to_owned()),
        }
    }
    parts
}

/// Everything to one server; what went wrong.
fn examine(
    software: Software,
    address: SocketAddr,
    counter: &Counter,
    cases: &[Case],
) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    let (ragged, whole): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| is_ragged(case));
    let name = software.name();
    mark(address, 0)?;
    for (at, case) in whole.iter().enumerate() {
        if let Err(error) = call(address, case) {
            failures.push(format!("{name}: {} {}: {error:#}", case.place, case.name));
        }
        mark(address, at + 1)?;
    }
    for case in &ragged {
        if let Err(error) = call_ragged(address, case) {
            failures.push(format!("{name}: {} {}: {error:#}", case.place, case.name));
        }
    }
    let last = whole.len() + 1;
    mark(address, last)?;
    let text = until(&format!("{name} to write the last mark"), LONG, || {
        let text = std::fs::read(&counter.file).map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let tail = text.lines().last().unwrap_or_default().to_owned();
        if text.contains(&format!("/mark/{last}")) { Ok(text) } else { Err(tail) }
    })?;
    let parts = between_marks(&text);
    let mut seen = 0;
    for (at, case) in whole.iter().enumerate() {
        let lines = parts.get(&at).map(Vec::as_slice).unwrap_or_default();
        seen += lines.len();
        if lines.len() != case.count {
            failures.push(format!(
                "{name}: {} {}: {} forwarded, seen: {lines:?}",
                case.place, case.name, case.count
            ));
        }
    }
    // Unfinished requests may be counted or not, and no further one.
    let lines = parts.get(&whole.len()).map(Vec::as_slice).unwrap_or_default();
    let least: usize = ragged.iter().map(|case| case.count).sum();
    if lines.len() < least || lines.len() > least + ragged.len() {
        failures
            .push(format!("{name}: {least} and {} unfinished ones forwarded, seen: {lines:?}", ragged.len()));
    }
    let hidden = text.lines().filter(|line| line.contains("/hidden"));
    failures.extend(hidden.map(|line| format!("{name}: seen: {line}")));
    report(&format!(
        "{name}: {seen} requests of {} cases, {} of {} unfinished ones",
        whole.len(),
        lines.len(),
        ragged.len()
    ));
    Ok(failures)
}

/// Edge cases 2.1.1 to 2.1.6.
#[test]
fn servers_of_others_read_what_was_forwarded() -> Result<()> {
    let mesh = Mesh::start()?;
    let mut counters = Vec::new();
    let mut documents = String::new();
    for software in Software::ALL {
        let (folder, port) = (mesh.scratch()?, ports::reserve()?);
        if let Some(counter) = Counter::new(software, &folder, port)? {
            documents += &intent::server(Engine::Native, software.name(), &intent::http(PORT, port));
            counters.push((software, counter));
        }
    }
    let names: Vec<&str> = counters.iter().map(|(software, _)| software.name()).collect();
    documents += &intent::client(Engine::Native, "client", &names.join(", "));
    mesh.apply(&documents)?;
    for (software, counter) in &counters {
        mesh.app(&format!("shop/{}", software.name()), &counter.line)?;
    }
    let shell = mesh.shell("shop/client")?;
    let cases: Vec<Case> = corpus::requests("any").into_iter().flat_map(|(_, cases)| cases).collect();
    let mut addresses = Vec::new();
    for (software, _) in &counters {
        let address = shell.address(software.name(), PORT)?;
        until("the first answer", LONG, || {
            let answer = Connection::open(address).and_then(|mut connection| connection.get("a", "/mark/0"));
            match answer.and_then(|answer| answer.status()) {
                Ok(200) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
        addresses.push(address);
    }
    let failures: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = counters
            .iter()
            .zip(addresses)
            .map(|((software, counter), address)| {
                let cases = &cases;
                scope.spawn(move || examine(*software, address, counter, cases))
            })
            .collect();
        let mut failures = Vec::new();
        for thread in threads {
            match thread.join() {
                Ok(Ok(found)) => failures.extend(found),
                Ok(Err(error)) => failures.push(format!("{error:#}")),
                Err(_) => failures.push("a thread panicked".to_owned()),
            }
        }
        failures
    });
    ensure!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    mesh.finish()
}
