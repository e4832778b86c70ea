//! Instructions of the native proxy per request, counted by callgrind: a number that a busy machine does not
//! change, and the most that each path may take.
//!
//! Data in: the proxy, a release build, and `instructions/readings.txt`. Holds: two runs of the same length but for the
//! requests, so that start and end cancel out; one connection; of HTTP/1 and TCP one request after the other, so that
//! nothing depends on timing beyond the order of readiness, and of HTTP/2 sixteen at a time, which the proxy under
//! valgrind is slow enough to find together. Does not: count what the kernel does.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::measure::{Pinned, free_address, h2load_of, wait_for};
use crate::peers::{self, Job, Route, Side, Speaks};
use crate::plan::Row;
use crate::run::{LOAD_CORE, PROXY_CORE, job};
use crate::{Arguments, grpc, native, tcp};

/// Requests of the shorter and of the longer run.
const REQUESTS: (u64, u64) = (200, 2200);

/// What is counted.
const ROUTES: [Route; 8] = [
    Route::Http,
    Route::HttpMtls,
    Route::Http2,
    Route::Http2Mtls,
    Route::Grpc,
    Route::GrpcMtls,
    Route::Tcp,
    Route::TcpMtls,
];

/// Bytes of an answer.
const BODY: u32 = 64;

/// What was read last, and is checked against: a line of name and instructions for each path.
const READINGS: &str = include_str!("instructions/readings.txt");

/// How much more than what was read last a path may take, in hundredths.
const MORE: u64 = 5;

/// Counts the paths that are asked for, and prints them.
///
/// # Errors
/// A path cannot be carried out, or, with `--check`, takes more than it may.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let before = readings(READINGS)?;
    let mut beyond = String::new();
    println!("{:<28} {:>22} {:>10} {:>10}", "path", "instructions/request", "last", "at most");
    for route in ROUTES.into_iter().filter(|route| wanted(arguments, *route)) {
        let few = count(arguments, route, REQUESTS.0)?;
        let many = count(arguments, route, REQUESTS.1)?;
        let each = many.saturating_sub(few) / (REQUESTS.1 - REQUESTS.0);
        let name = route.name();
        let Some(last) = before.iter().find(|reading| reading.0 == name).map(|reading| reading.1) else {
            bail!("{name} is not among the readings");
        };
        println!("{name:<28} {each:>22} {last:>10} {:>10}", most(last));
        if each > most(last) {
            writeln!(beyond, "{name}: {each} instructions, {} are allowed", most(last))?;
        }
    }
    ensure!(
        !arguments.check || beyond.is_empty(),
        "{beyond}if that is worth it, put the new number into crates/bench/src/instructions/readings.txt"
    );
    Ok(())
}

fn most(last: u64) -> u64 {
    last + last * MORE / 100
}

/// Reads lines of a name and a number; `#` begins a comment.
fn readings(text: &str) -> Result<Vec<(&str, u64)>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, number) = line.split_once(' ').with_context(|| format!("no number: {line}"))?;
            Ok((name, number.trim().parse().with_context(|| format!("no number: {line}"))?))
        })
        .collect()
}

fn wanted(arguments: &Arguments, route: Route) -> bool {
    arguments.rows.is_empty() || arguments.rows.contains(&Row::Path(route))
}

fn count(arguments: &Arguments, route: Route, requests: u64) -> Result<u64> {
    let dir = tempfile::Builder::new().prefix("outrider-bench").tempdir()?;
    let identity = native::certificates(dir.path())?;
    let log = dir.path().join("log");
    let mut _nginx = None;
    let origin = match route.speaks() {
        Speaks::Tcp => tcp::Source::start()?.address,
        Speaks::Grpc => grpc::serve(&[BODY])?.0,
        speaks @ (Speaks::Http | Speaks::Http2) => {
            let address = free_address()?;
            let line = peers::origin(dir.path(), address, free_address()?, &[BODY], speaks)?;
            _nginx = Some(Pinned::start("the origin", LOAD_CORE, &line, &log)?);
            wait_for(address, "the origin")?;
            address
        }
    };
    let sides: &[Side] = if route.is_pair() { &[Side::Server, Side::Client] } else { &[Side::Plain] };
    let mut forward = origin;
    let mut proxies = Vec::new();
    for side in sides {
        let listen = free_address()?;
        let job = Job { listen, side: *side, ..job(dir.path(), forward, route.speaks(), 1) };
        // Kept if asked for, to be looked at with callgrind_annotate.
        let profile = arguments
            .json
            .as_ref()
            .map_or_else(|| dir.path().to_owned(), |path| path.with_extension(""))
            .join(format!("callgrind-{:?}-{side:?}-{requests}", route));
        if let Some(folder) = profile.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut command =
            vec!["valgrind".to_owned(), "--tool=callgrind".to_owned(), "--fair-sched=yes".to_owned()];
        command.push(format!("--callgrind-out-file={}", profile.display()));
        command.extend(native::command(arguments.proxy()?, &job, &identity)?);
        proxies.push((Pinned::start("outrider under valgrind", PROXY_CORE, &command, &log)?, profile));
        wait_for(listen, "outrider under valgrind (is valgrind installed?)")
            .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        forward = listen;
    }
    match route.speaks() {
        Speaks::Http => load(forward, requests)?,
        Speaks::Http2 => h2load_of(LOAD_CORE, &format!("http://{forward}/{BODY}"), requests, None)?,
        Speaks::Grpc => {
            let message = grpc::framed(BODY);
            h2load_of(LOAD_CORE, &format!("http://{forward}{}", grpc::METHOD), requests, Some(&message))?;
        }
        Speaks::Tcp => exchange(forward, requests)?,
    }
    let mut total = 0;
    for (process, profile) in proxies.into_iter().rev() {
        process.finish(Duration::from_secs(60))?;
        total += totals(&profile)?;
    }
    Ok(total)
}

fn load(entry: SocketAddr, requests: u64) -> Result<()> {
    let mut stream = TcpStream::connect(entry)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_nodelay(true)?;
    let mut block = vec![0; 4096];
    for _ in 0..requests {
        stream.write_all(b"GET /64 HTTP/1.1\r\nHost: server\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")?;
        let mut got = Vec::new();
        while !got.ends_with(&[b'x'; 64]) {
            match stream.read(&mut block)? {
                0 => bail!("no response: {}", String::from_utf8_lossy(&got)),
                n => got.extend_from_slice(&block[..n]),
            }
        }
        if !got.starts_with(b"HTTP/1.1 200") {
            bail!("not served: {}", String::from_utf8_lossy(&got));
        }
    }
    Ok(())
}

fn exchange(entry: SocketAddr, requests: u64) -> Result<()> {
    let mut stream = TcpStream::connect(entry)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_nodelay(true)?;
    let mut answer = [0; BODY as usize];
    for _ in 0..requests {
        stream.write_all(&u64::from(BODY).to_be_bytes())?;
        stream.read_exact(&mut answer).context("no answer")?;
    }
    Ok(())
}

fn totals(profile: &Path) -> Result<u64> {
    let shown = profile.display();
    let text =
        std::fs::read_to_string(PathBuf::from(profile)).with_context(|| format!("no profile at {shown}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    line.and_then(|n| n.trim().parse().ok()).with_context(|| format!("{shown} has no totals"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_a_reading() {
        let readings = readings(READINGS).unwrap();
        let names: Vec<&str> = readings.iter().map(|reading| reading.0).collect();
        assert_eq!(names, ROUTES.map(Route::name));
        assert!(readings.iter().all(|reading| reading.1 > 1000), "{readings:?}");
    }

    #[test]
    fn readings_are_read() {
        assert_eq!(readings("# a word\n\nhttp1 14690\n").unwrap(), [("http1", 14690)]);
        assert!(readings("http1\n").is_err());
        assert!(readings("http1 many\n").is_err());
        assert_eq!(most(1000), 1050);
    }
}
