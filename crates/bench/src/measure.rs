//! CPU time, memory and load: what a figure is made of.
//!
//! Holds: CPU time is the kernel's own accounting in nanoseconds, summed over all threads of a process; load
//! is bounded in time and connections. Does not: judge; it returns numbers.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A process ended when dropped, started on one core.
pub(crate) struct Pinned {
    child: Child,
    name: String,
}

impl Pinned {
    /// Starts `command` on `core`, its output appended to `log`.
    pub(crate) fn start(name: &str, core: usize, command: &[String], log: &Path) -> Result<Self> {
        let out = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = Command::new("taskset")
            .arg("-c")
            .arg(core.to_string())
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
        if std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
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

/// What a load run did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) p99_us: f64,
}

/// Runs wrk on `core` against `url`.
pub(crate) fn wrk(core: usize, url: &str, connections: u16, seconds: u64) -> Result<Load> {
    let output = Command::new("taskset")
        .args(["-c", &core.to_string(), "wrk", "--latency", "-t", "1"])
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
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }
}
