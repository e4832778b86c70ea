//! What a proxy keeps in memory: with ten services to call and no traffic, with a thousand of ten endpoints each, and
//! for each silent connection.
//!
//! Holds: resident memory as the kernel counts it, of all processes of a proxy, read once it stays the same; what a
//! connection costs is the growth after some have been there, divided by their number, kernel memory not included. Does
//! not: hold more connections than the limit of descriptors allows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::measure::{Pinned, free_address, pause, resident_kib, wait_for};
use crate::peers::{self, Job, Others, Proxy, Route, Side, Speaks};
use crate::plan::{Held, memory_goal};
use crate::report::MemoryReport;
use crate::run::{Bench, Contender, LOAD_CORE, job, start};
use crate::{native, tcp};

/// Resident memory counts as settled when it changes by less in a second.
const SETTLED_KIB: u64 = 64;

/// Connections that are there before those that count.
const WARMING: usize = 20;

/// Reads one row, of everybody.
pub(crate) fn measure(bench: &Bench<'_>, held: Held) -> Result<Vec<MemoryReport>> {
    let parked = usize::from(bench.arguments.parked);
    let mut rows = Vec::new();
    let mut each =
        |what: &str, speaks: Speaks, goal: Option<f64>, read: &dyn Fn(Proxy) -> Result<(usize, u64, u64)>| {
            for proxy in Proxy::ALL {
                let row =
                    |missing: Option<String>, connections: usize, before: u64, after: u64| MemoryReport {
                        row: held.name().to_owned(),
                        what: what.to_owned(),
                        proxy,
                        missing,
                        connections,
                        before_mib: before as f64 / 1024.0,
                        after_mib: after as f64 / 1024.0,
                        bytes_per_connection: after.saturating_sub(before) as f64 * 1024.0
                            / connections.max(1) as f64,
                        goal,
                    };
                if let Some(reason) = bench.programs.cannot(proxy, speaks) {
                    rows.push(row(Some(reason.to_owned()), 0, 0, 0));
                    continue;
                }
                match read(proxy) {
                    Ok((connections, before, after)) => {
                        let row = row(None, connections, before, after);
                        let (mib, bytes) = (row.after_mib, row.bytes_per_connection);
                        eprintln!(
                            "    {what}, {}: {}",
                            proxy.name(),
                            if connections > 0 {
                                format!("{bytes:.0} bytes each")
                            } else {
                                format!("{mib:.1} MiB")
                            }
                        );
                        rows.push(row);
                    }
                    Err(error) => {
                        eprintln!("    {what}, {} failed: {error:#}", proxy.name());
                        let text = format!("{error:#}");
                        let short = text.lines().next_back().unwrap_or_default();
                        rows.push(row(Some(format!("it failed ({short})")), 0, 0, 0));
                    }
                }
            }
        };
    match held {
        Held::Idle => {
            let others = Others { services: 9, endpoints: 1 };
            each("idle, ten services with mTLS", Speaks::Http, memory_goal(held, Speaks::Http), &|proxy| {
                idle(bench, proxy, Side::Client, others)
            });
        }
        Held::Services => {
            let others = Others { services: 999, endpoints: 10 };
            each(
                "idle, 1,000 services of ten endpoints, mTLS",
                Speaks::Http,
                memory_goal(held, Speaks::Http),
                &|proxy| idle(bench, proxy, Side::Client, others),
            );
            each(
                "idle, 1,000 services of ten endpoints, plain",
                Speaks::Http,
                memory_goal(held, Speaks::Http),
                &|proxy| idle(bench, proxy, Side::Plain, others),
            );
        }
        Held::Parked => {
            // Both ends of every connection are descriptors of this process or of one that inherits its limit, and those
            // of the proxy before may not have been closed yet.
            descriptors(4 * (WARMING + parked) as u64 + 512)?;
            for route in [Route::Http, Route::Http2, Route::Tcp, Route::TcpMtls] {
                let what = format!("a silent connection, {}", route.title().replace(" exchanges", ""));
                // With TLS it is measured, and a test bounds it.
                let goal = memory_goal(held, route.speaks()).filter(|_| route != Route::TcpMtls);
                each(&what, route.speaks(), goal, &|proxy| silent(bench, route, proxy, parked));
            }
        }
    }
    Ok(rows)
}

/// Makes room for so many descriptors, here and in what is started from here.
///
/// # Errors
/// The limit may not be raised as far.
pub(crate) fn descriptors(needed: u64) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|limit| limit >= needed) {
        return Ok(());
    }
    // Only root may raise the upper limit.
    let maximum = now.maximum.map(|limit| limit.max(needed));
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum }).with_context(|| {
        format!(
            "{needed} descriptors are needed, the limit is {:?}; fewer --connections or --parked need fewer",
            now.maximum
        )
    })
}

fn idle(bench: &Bench<'_>, proxy: Proxy, side: Side, others: Others) -> Result<(usize, u64, u64)> {
    let dir = tempfile::Builder::new().prefix("outrider-bench").tempdir()?;
    let identity = native::certificates(dir.path())?;
    let job = Job { side, others, ..job(dir.path(), free_address()?, Speaks::Http, 100) };
    let contender = start(bench, proxy, Route::Http, job, &identity)?;
    if others.services > 0 {
        // The last one is there: all are.
        wait_for(peers::listen_of_other(others.services - 1), proxy.name())?;
    }
    let kib = resident(&contender)?;
    Ok((0, kib, kib))
}

fn silent(bench: &Bench<'_>, route: Route, proxy: Proxy, parked: usize) -> Result<(usize, u64, u64)> {
    let dir = tempfile::Builder::new().prefix("outrider-bench").tempdir()?;
    let identity = native::certificates(dir.path())?;
    let holder = tcp::Holder::start()?;
    let is_tcp = route.speaks() == Speaks::Tcp;
    let mut _origin = None;
    let forward = if is_tcp {
        holder.address
    } else {
        let (address, process) = origin(dir.path(), route.speaks())?;
        _origin = Some(process);
        address
    };
    let job = job(dir.path(), forward, route.speaks(), WARMING + parked);
    let contender = start(bench, proxy, route, job, &identity)?;
    let mut open = Vec::with_capacity(WARMING + parked);
    let mut add = |connections: usize| -> Result<()> {
        let already = holder.held();
        for _ in 0..connections {
            let mut stream = TcpStream::connect(contender.entry)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            match route.speaks() {
                Speaks::Tcp => {}
                Speaks::Http => ask(&mut stream)?,
                Speaks::Http2 | Speaks::Grpc => ask_http2(&mut stream)?,
            }
            open.push(stream);
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while is_tcp && holder.held() < already + connections {
            if Instant::now() > deadline {
                bail!("only {} of {connections} connections reached the origin", holder.held() - already);
            }
            pause(Duration::from_millis(20));
        }
        Ok(())
    };
    // Code that is run for the first time is no price of a connection.
    resident(&contender)?;
    add(WARMING)?;
    let before = resident(&contender)?;
    add(parked)?;
    Ok((parked, before, resident(&contender)?))
}

fn origin(dir: &Path, speaks: Speaks) -> Result<(SocketAddr, Pinned)> {
    let address = free_address()?;
    let process = Pinned::start(
        "the origin",
        LOAD_CORE,
        &peers::origin(dir, address, free_address()?, &[64], speaks)?,
        &dir.join("log"),
    )?;
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

/// Frames of HTTP/2 that are used here.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
/// END_STREAM, and ACK of SETTINGS.
const END: u8 = 1;
/// END_HEADERS.
const WHOLE: u8 = 4;

/// One request of HTTP/2, frame by frame.
fn ask_http2(stream: &mut TcpStream) -> Result<()> {
    // GET, http, /64 and the authority, the last two without a place in the table.
    let mut fields = vec![0x82, 0x86, 0x04, 3];
    fields.extend_from_slice(b"/64\x01\x06server");
    let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    opening.extend(frame(SETTINGS, 0, 0, &[]));
    opening.extend(frame(HEADERS, WHOLE | END, 1, &fields));
    stream.write_all(&opening)?;
    let (mut answered, mut settled) = (false, false);
    while !(answered && settled) {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        let (kind, flags) = (head[3], head[4]);
        match kind {
            SETTINGS if flags & END == 0 => {
                stream.write_all(&frame(SETTINGS, END, 0, &[]))?;
                settled = true;
            }
            // 0x88 is status 200.
            HEADERS => ensure!(payload.first() == Some(&0x88), "not served: {payload:?}"),
            DATA => answered |= flags & END != 0,
            3 | 7 => bail!("reset or sent away: {payload:?}"),
            _ => {}
        }
    }
    Ok(())
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap_or(u8::MAX);
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
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
