//! CPU time, memory and load: what a figure is made of.
//!
//! Holds: CPU time is the kernel's own accounting in nanoseconds, summed over all threads of a process; load
//! is bounded in time and connections. Does not: judge; it returns numbers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A process ended when dropped, started on one core.
pub(crate) struct Pinned {
    child: Child,
    name: String,
}

impl Pinned {
    /// Starts `command` on `core`, its output appended to `log`. It ends with the thread that started it.
    pub(crate) fn start(name: &str, core: usize, command: &[String], log: &Path) -> Result<Self> {
        let out = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = Command::new("taskset")
            .arg("-c")
            .arg(core.to_string())
            // Whoever ends the benchmark ends what it started.
            .args(["setpriv", "--pdeathsig", "TERM"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {name} (is `taskset` installed?)"))?;
        Ok(Self { child, name: name.to_owned() })
    }

    /// On-CPU nanoseconds of all threads so far, user and system. Children are included: nginx works in one.
    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        let mut total = 0;
        for pid in self.tree()? {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
                total += text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(total)
    }

    /// Resident memory of the process and its children in KiB.
    pub(crate) fn resident_kib(&self) -> Result<u64> {
        let mut total = 0;
        for pid in self.tree()? {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or("VmRSS: 0 kB");
            total += line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(total)
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn finish(mut self, within: Duration) -> Result<()> {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            pause(Duration::from_millis(20));
        }
        bail!("{} did not end within {within:?}", self.name)
    }

    fn tree(&self) -> Result<Vec<u32>> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .with_context(|| format!("{} has ended", self.name))?;
        let mut all = vec![pid];
        all.extend(children.split_whitespace().filter_map(|p| p.parse::<u32>().ok()));
        Ok(all)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            pause(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of several processes in KiB.
pub(crate) fn resident_kib(processes: &[&Pinned]) -> Result<u64> {
    processes.iter().map(|process| process.resident_kib()).sum()
}

/// The one place that waits by the clock: between two looks at a condition.
pub(crate) fn pause(duration: Duration) {
    std::thread::park_timeout(duration);
}

/// Waits until something accepts connections at `address`.
pub(crate) fn wait_for(address: SocketAddr, what: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
            return Ok(());
        }
        pause(Duration::from_millis(20));
    }
    bail!("{what} does not listen on {address}")
}

/// An address nobody listens on at this moment.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// How many requests an origin has had.
#[derive(Clone, Debug)]
pub(crate) enum Counter {
    /// nginx says so here.
    Nginx(SocketAddr),
    /// One of ours.
    Own(Arc<AtomicU64>),
}

impl Counter {
    /// The number by now.
    ///
    /// # Errors
    /// nginx does not say.
    pub(crate) fn read(&self) -> Result<u64> {
        let address = match self {
            Self::Own(count) => return Ok(count.load(Ordering::Relaxed)),
            Self::Nginx(address) => address,
        };
        let mut stream = TcpStream::connect(address).context("asking the origin for its count")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        nginx_requests(&text).with_context(|| format!("cannot read the origin's count: {text}"))
    }
}

/// Reads the third number of the line below `server accepts handled requests`.
fn nginx_requests(text: &str) -> Option<u64> {
    let line = text.lines().skip_while(|line| !line.starts_with("server accepts handled requests")).nth(1)?;
    line.split_whitespace().nth(2)?.parse().ok()
}

/// What a load run did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) p99_us: f64,
}

/// How many seconds a load may take in all: with many connections some proxies never answer the last ones, and it waits.
const PATIENCE: &str = "90";

/// Runs wrk on `core` against `url`.
pub(crate) fn wrk(core: usize, url: &str, connections: u16, seconds: u64) -> Result<Load> {
    let output = Command::new("taskset")
        .args(["-c", &core.to_string(), "timeout", PATIENCE, "wrk", "--latency", "-t", "1"])
        .args(["-c", &connections.to_string(), "-d", &format!("{seconds}s"), url])
        .output()
        .context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("wrk failed: {}{}", text, String::from_utf8_lossy(&output.stderr));
    }
    let requests = text
        .lines()
        .find(|l| l.contains(" requests in "))
        .and_then(|l| l.split_whitespace().next())
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("cannot read wrk's output: {text}"))?;
    let mut errors = 0;
    for line in text.lines() {
        if line.trim_start().starts_with("Non-2xx") {
            errors += line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        if line.trim_start().starts_with("Socket errors") {
            errors += line.split([' ', ',']).filter_map(|n| n.parse::<u64>().ok()).sum::<u64>();
        }
    }
    let p99_us = text
        .lines()
        .find(|l| l.trim_start().starts_with("99%"))
        .and_then(|l| l.split_whitespace().nth(1))
        .and_then(microseconds)
        .unwrap_or(0.0);
    Ok(Load { requests, errors, p99_us })
}

/// Runs h2load on `core` against `url`, with `streams` requests at a time on each connection; with a body they are calls
/// of gRPC.
pub(crate) fn h2load(
    core: usize,
    url: &str,
    connections: u16,
    streams: u16,
    seconds: u64,
    message: Option<&[u8]>,
) -> Result<Load> {
    let dir = tempfile::Builder::new().prefix("outrider-bench").tempdir()?;
    let (times, body) = (dir.path().join("times"), dir.path().join("body"));
    let mut command = Command::new("taskset");
    command.args([
        "-c",
        &core.to_string(),
        "timeout",
        PATIENCE,
        "h2load",
        "-t",
        "1",
        "-c",
        &connections.to_string(),
    ]);
    command.args(["-m", &streams.to_string(), "-D", &seconds.to_string(), "--log-file"]).arg(&times);
    if let Some(message) = message {
        call(&mut command, &body, message)?;
    }
    let output = command.arg(url).output().context("cannot run h2load (package nghttp2-client)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("h2load failed: {}{}", text, String::from_utf8_lossy(&output.stderr));
    }
    let (done, mut good) =
        h2load_counts(&text).with_context(|| format!("cannot read h2load's output: {text}"))?;
    if let Some(message) = message {
        // Failures of gRPC have status 200 and no message; the answer is as long as the question.
        good = good.min(h2load_data(&text).unwrap_or(0) / message.len() as u64);
    }
    // Start, status and microseconds of each.
    let mut taken: Vec<u64> = std::fs::read_to_string(&times)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split('\t').nth(2)?.parse().ok())
        .collect();
    taken.sort_unstable();
    let p99_us = taken.get(taken.len() * 99 / 100).copied().unwrap_or(0) as f64;
    Ok(Load { requests: done, errors: done.saturating_sub(good), p99_us })
}

/// Runs h2load on `core` against `url`, for so many requests on one connection, sixteen at a time; with a message they are
/// calls of gRPC.
///
/// # Errors
/// One was not answered, not with a status from 200 to 299, or, of calls, without a message as long.
pub(crate) fn h2load_of(core: usize, url: &str, requests: u64, message: Option<&[u8]>) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("outrider-bench").tempdir()?;
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string(), "timeout", PATIENCE, "h2load", "-t", "1", "-c", "1", "-m", "16"]);
    command.args(["-n", &requests.to_string()]);
    if let Some(message) = message {
        call(&mut command, &dir.path().join("body"), message)?;
    }
    let output = command.arg(url).output().context("cannot run h2load (package nghttp2-client)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let answered = message.is_none_or(|message| h2load_data(&text) == Some(requests * message.len() as u64));
    match h2load_counts(&text) {
        Some((done, good)) if done == requests && good == requests && answered => Ok(()),
        _ => bail!("not all served: {text}"),
    }
}

/// Has h2load make calls of gRPC with this message, which is put into a file.
fn call(command: &mut Command, file: &Path, message: &[u8]) -> Result<()> {
    std::fs::write(file, message)?;
    command.arg("-d").arg(file).args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
    Ok(())
}

/// Requests that were answered, and those of them with a status from 200 to 299.
fn h2load_counts(text: &str) -> Option<(u64, u64)> {
    let number = |line: &str, word: &str| {
        let line = text.lines().find(|text| text.starts_with(line))?;
        let part = line.split([',', ':']).map(str::trim).find(|part| part.ends_with(word))?;
        part.split(' ').next()?.parse::<u64>().ok()
    };
    Some((number("requests:", " done")?, number("status codes:", " 2xx")?))
}

/// Bytes of bodies.
fn h2load_data(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("traffic:"))?;
    let part = line.split(',').find(|part| part.trim_end().ends_with(" data"))?;
    part.split_once('(')?.1.split_once(')')?.0.parse().ok()
}

fn microseconds(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..split].parse().ok()?;
    Some(match &text[split..] {
        "us" => number,
        "ms" => number * 1e3,
        "s" => number * 1e6,
        _ => return None,
    })
}

/// The middle of a list; 0 for an empty one.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_durations_are_read_in_every_unit() {
        assert_eq!(microseconds("812.00us"), Some(812.0));
        assert_eq!(microseconds("1.50ms"), Some(1500.0));
        assert_eq!(microseconds("2.00s"), Some(2e6));
        assert_eq!(microseconds("2.00m"), None);
    }

    #[test]
    fn the_count_of_nginx_is_read() {
        let text = "HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\nActive connections: 2 \n\
                    server accepts handled requests\n 16 15 310 \nReading: 0 Writing: 1 Waiting: 1 \n";
        assert_eq!(nginx_requests(text), Some(310));
        assert_eq!(nginx_requests("HTTP/1.1 404 Not Found\r\n\r\n"), None);
    }

    #[test]
    fn counts_of_h2load_are_read() {
        let text = "finished in 1.00s, 7.00 req/s, 1KB/s\n\
                    requests: 9 total, 9 started, 8 done, 7 succeeded, 1 failed, 0 errored, 0 timeout\n\
                    status codes: 7 2xx, 0 3xx, 0 4xx, 1 5xx\n";
        assert_eq!(h2load_counts(text), Some((8, 7)));
        assert_eq!(h2load_counts("no connection\n"), None);
        let traffic =
            "traffic: 1.06KB (1088) total, 135B (135) headers (space savings 85.74%), 483B (483) data\n";
        assert_eq!(h2load_data(traffic), Some(483));
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }
}
