//! What a proxy keeps in memory: with ten upstreams and no traffic, and for each silent connection.
//!
//! Holds: resident memory as the kernel counts it, read once it stays the same; what a connection costs is the
//! growth divided by their number, kernel memory not included. Does not: hold more connections than the limit of
//! descriptors allows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::measure::{Pinned, free_address, pause, resident_kib, wait_for};
use crate::peers::{Job, Route, Side};
use crate::run::{Contender, LOAD_CORE, PROXY_CORE, start, wanted};
use crate::{Arguments, native, peers, tcp};

/// Resident memory counts as settled when it changes by less in a second.
const SETTLED_KIB: u64 = 64;

#[derive(Serialize)]
pub(crate) struct MemoryRow {
    what: String,
    proxy: String,
    connections: usize,
    before_mib: f64,
    after_mib: f64,
    bytes_per_connection: f64,
}

pub(crate) fn measure(arguments: &Arguments) -> Result<Vec<MemoryRow>> {
    let parked = usize::from(arguments.parked);
    descriptors(parked)?;
    let mut rows = vec![idle(arguments)?];
    for route in [Route::Http, Route::Tcp, Route::TcpMtlsPair] {
        for name in wanted(arguments, route) {
            eprintln!("{parked} silent connections, {}, {name} …", route.title());
            let row = silent(arguments, route, name, parked)?;
            eprintln!("  {:.0} bytes each", row.bytes_per_connection);
            rows.push(row);
        }
    }
    Ok(rows)
}

pub(crate) fn print(rows: &[MemoryRow]) {
    println!(
        "\n{:<38} {:<10} {:>11} {:>10} {:>10} {:>12}",
        "memory", "proxy", "connections", "before MiB", "after MiB", "bytes each"
    );
    for row in rows {
        println!(
            "{:<38} {:<10} {:>11} {:>10.1} {:>10.1} {:>12.0}",
            row.what, row.proxy, row.connections, row.before_mib, row.after_mib, row.bytes_per_connection
        );
    }
}

/// Both ends of every connection are descriptors of this process or of one that inherits its limit, and those of the
/// proxy before may not have been closed yet.
fn descriptors(parked: usize) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = 4 * parked as u64 + 512;
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|limit| limit >= needed) {
        return Ok(());
    }
    // Only root may raise the upper limit.
    let maximum = now.maximum.map(|limit| limit.max(needed));
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum }).with_context(|| {
        format!(
            "{parked} connections need {needed} descriptors, the limit is {:?}; --parked may be less",
            now.maximum
        )
    })
}

fn idle(arguments: &Arguments) -> Result<MemoryRow> {
    let dir = tempfile::Builder::new().prefix("outrider-bench").tempdir()?;
    let identity = native::certificates(dir.path())?;
    let listen = free_address()?;
    let forward = free_address()?;
    let job = Job { dir: dir.path().to_owned(), listen, forward, side: Side::Client, tcp: false, others: 9 };
    let command = native::command(&arguments.proxy, &job, &identity)?;
    let process = Pinned::start("outrider", PROXY_CORE, &command, &dir.path().join("log"))?;
    wait_for(listen, "outrider")?;
    let mib = settled(&[&process])? as f64 / 1024.0;
    Ok(MemoryRow {
        what: "idle, ten upstreams with mTLS".to_owned(),
        proxy: "outrider".to_owned(),
        connections: 0,
        before_mib: mib,
        after_mib: mib,
        bytes_per_connection: 0.0,
    })
}

fn silent(arguments: &Arguments, route: Route, name: &'static str, parked: usize) -> Result<MemoryRow> {
    let dir = tempfile::Builder::new().prefix("outrider-bench").tempdir()?;
    let identity = native::certificates(dir.path())?;
    let holder = tcp::Holder::start()?;
    let (address, _origin) = origin(dir.path())?;
    let forward = if route.is_tcp() { holder.address } else { address };
    let contender = start(arguments, name, route, dir.path(), forward, &identity)?;
    let already = holder.held();
    let before = resident(&contender)?;
    let mut open = Vec::with_capacity(parked);
    for _ in 0..parked {
        let mut stream = TcpStream::connect(contender.entry)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        if !route.is_tcp() {
            ask(&mut stream)?;
        }
        open.push(stream);
    }
    if route.is_tcp() {
        let deadline = Instant::now() + Duration::from_secs(60);
        while holder.held() < already + parked {
            if Instant::now() > deadline {
                bail!("{name}: only {} of {parked} connections reached the origin", holder.held() - already);
            }
            pause(Duration::from_millis(20));
        }
    }
    let after = resident(&contender)?;
    Ok(MemoryRow {
        what: format!("{}, silent", route.title()),
        proxy: name.to_owned(),
        connections: parked,
        before_mib: before as f64 / 1024.0,
        after_mib: after as f64 / 1024.0,
        bytes_per_connection: after.saturating_sub(before) as f64 * 1024.0 / parked as f64,
    })
}

fn origin(dir: &Path) -> Result<(SocketAddr, Pinned)> {
    let address = free_address()?;
    let process =
        Pinned::start("the origin", LOAD_CORE, &peers::origin(dir, address, &[64])?, &dir.join("log"))?;
    wait_for(address, "the origin")?;
    Ok((address, process))
}

/// One request, so that the connection is one that has been used.
fn ask(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET /64 HTTP/1.1\r\nHost: server\r\n\r\n")?;
    let mut response = Vec::new();
    let mut block = [0; 4096];
    // The body is the last thing, and it is the only place with this many of these.
    while !response.ends_with(&[b'x'; 64]) {
        match stream.read(&mut block)? {
            0 => bail!("no response: {}", String::from_utf8_lossy(&response)),
            n => response.extend_from_slice(&block[..n]),
        }
    }
    Ok(())
}

fn resident(contender: &Contender) -> Result<u64> {
    settled(&contender.processes.iter().collect::<Vec<_>>())
}

fn settled(processes: &[&Pinned]) -> Result<u64> {
    let mut last = resident_kib(processes)?;
    for _ in 0..10 {
        pause(Duration::from_secs(1));
        let now = resident_kib(processes)?;
        if now.abs_diff(last) < SETTLED_KIB {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}
