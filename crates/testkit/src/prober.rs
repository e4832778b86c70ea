//! Somebody who connects all the time, and writes down when it worked.
//!
//! Holds: every probe is a new connection with one request on it, and is over before the next begins; nothing is
//! tried again. So what is in flight at any moment is one probe, and the first one that was begun after a kill is
//! answered when there is somebody to answer again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::http::Connection;
use crate::wait::{LONG, pass, until};

/// Between two probes.
const PAUSE: Duration = Duration::from_millis(2);
/// Probes that are remembered.
const MOST: usize = 4_000_000;

/// One connection.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Before connecting.
    pub begun: Instant,
    /// The answer was whole, or there was none.
    pub ended: Instant,
    /// What was wrong.
    pub problem: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Prober {
    probes: Arc<Mutex<Vec<Probe>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Begins to send `GET /` to `address`, which is right if it has this status.
    pub fn start(address: SocketAddr, host: &str, status: u16) -> Self {
        let probes = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (to, stopped, host) = (probes.clone(), stop.clone(), host.to_owned());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let problem = ask(address, &host, status).err().map(|error| format!("{error:#}"));
                let mut probes = to.lock().unwrap_or_else(PoisonError::into_inner);
                if probes.len() < MOST {
                    probes.push(Probe { begun, ended: Instant::now(), problem });
                }
                drop(probes);
                pass(PAUSE);
            }
        });
        Self { probes, stop, thread: Some(thread) }
    }

    /// Waits for the first good probe that was begun after `time`.
    pub fn first_after(&self, time: Instant) -> Result<Probe> {
        until("a probe to be answered", LONG, || {
            let probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
            let after = &probes[probes.partition_point(|probe| probe.begun <= time)..];
            let good = after.iter().find(|probe| probe.problem.is_none());
            good.cloned().ok_or_else(|| format!("{} bad ones: {:?}", after.len(), after.first()))
        })
    }

    /// Ends it; every probe so far.
    pub fn finish(mut self) -> Vec<Probe> {
        self.end();
        std::mem::take(&mut *self.probes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic, and if it did, its probes would be missing.
            let _ = thread.join();
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.end();
    }
}

fn ask(address: SocketAddr, host: &str, status: u16) -> Result<()> {
    let answer = Connection::open(address)?.get(host, "/")?;
    ensure!(answer.status()? == status && answer.reason().is_none(), "{:?}", answer.head);
    Ok(())
}

/// Quantiles of some times, for the record.
pub fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: f64| {
        let index = (times.len() as f64 * share).ceil() as usize;
        times.get(index.clamp(1, times.len().max(1)) - 1).copied().unwrap_or_default()
    };
    format!(
        "p50 {:.1?}, p99 {:.1?}, max {:.1?} of {}",
        at(0.5),
        at(0.99),
        times.last().copied().unwrap_or_default(),
        times.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_taken_from_above() {
        let times = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(quantiles(times), "p50 100.0ms, p99 198.0ms, max 200.0ms of 200");
        assert_eq!(quantiles(vec![Duration::from_secs(1)]), "p50 1.0s, p99 1.0s, max 1.0s of 1");
        assert_eq!(quantiles(Vec::new()), "p50 0.0ns, p99 0.0ns, max 0.0ns of 0");
    }

    #[test]
    fn a_refused_connection_is_a_problem_and_the_next_one_is_tried() {
        let port = crate::ports::reserve().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let start = Instant::now();
        let prober = Prober::start(address, "web", 200);
        until("a refusal", LONG, || {
            let seen = prober.probes.lock().unwrap().first().cloned();
            seen.filter(|probe| probe.problem.is_some()).ok_or_else(|| "nothing".to_owned())
        })
        .unwrap();
        let origin = crate::origin::Origin::http(port).unwrap();
        let good = prober.first_after(start).unwrap();
        let probes = prober.finish();
        drop(origin);
        assert!(good.problem.is_none() && good.begun <= good.ended);
        assert!(probes[0].problem.as_deref().unwrap().contains("refused"), "{probes:?}");
    }
}
