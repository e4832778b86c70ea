//! Instructions of the native proxy per request, counted by callgrind: a number that a busy machine does not
//! change.
//!
//! Holds: two runs of the same length but for the requests, so that start and end cancel out; one connection,
//! one request after the other, so that nothing depends on timing beyond the order of readiness. Does not: count
//! what the kernel does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::measure::{Pinned, free_address, wait_for};
use crate::peers::{self, Job, Route, Side};
use crate::run::{LOAD_CORE, PROXY_CORE};
use crate::{Arguments, native};

/// Requests of the shorter and of the longer run.
const REQUESTS: (u64, u64) = (200, 2200);

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let routes = [Route::Http, Route::MtlsPair];
    println!("{:<34} {:>22}", "path", "instructions/request");
    for route in routes.into_iter().filter(|r| arguments.route.is_empty() || arguments.route.contains(r)) {
        let few = count(arguments, route, REQUESTS.0)?;
        let many = count(arguments, route, REQUESTS.1)?;
        let each = many.saturating_sub(few) / (REQUESTS.1 - REQUESTS.0);
        println!("{:<34} {each:>22}", route.title());
    }
    Ok(())
}

fn count(arguments: &Arguments, route: Route, requests: u64) -> Result<u64> {
    let dir = tempfile::Builder::new().prefix("outrider-bench").tempdir()?;
    let identity = native::certificates(dir.path())?;
    let log = dir.path().join("log");
    let origin = free_address()?;
    let _origin = Pinned::start("the origin", LOAD_CORE, &peers::origin(dir.path(), origin, &[64])?, &log)?;
    wait_for(origin, "the origin")?;
    let sides: &[Side] = if route.is_pair() { &[Side::Server, Side::Client] } else { &[Side::Plain] };
    let mut forward = origin;
    let mut proxies = Vec::new();
    for side in sides {
        let listen = free_address()?;
        let job = Job { dir: dir.path().to_owned(), listen, forward, side: *side, tcp: false, others: 0 };
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
        command.extend(native::command(&arguments.proxy, &job, &identity)?);
        proxies.push((Pinned::start("outrider under valgrind", PROXY_CORE, &command, &log)?, profile));
        wait_for(listen, "outrider under valgrind (is valgrind installed?)")
            .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        forward = listen;
    }
    load(forward, requests)?;
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

fn totals(profile: &Path) -> Result<u64> {
    let shown = profile.display();
    let text =
        std::fs::read_to_string(PathBuf::from(profile)).with_context(|| format!("no profile at {shown}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    line.and_then(|n| n.trim().parse().ok()).with_context(|| format!("{shown} has no totals"))
}
