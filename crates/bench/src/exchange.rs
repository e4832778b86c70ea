//! Load of our own, where the usual programs have none: messages there and back on connections that stay open.
//!
//! Holds: connections are open, and each has had one exchange, before anything is measured; between two windows they
//! are silent and stay; what is counted in a window is what ended in it, while the load goes on at both edges. All of it
//! is one thread on the core of the load. Does not: open a connection again that broke; it is counted as an error.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::watch;

use crate::measure::{Load, pause};

/// How long all connections may take to open, and to become silent.
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections that are opened at once.
const AT_ONCE: u64 = 16;
/// Load before each window.
const WARMING: Duration = Duration::from_millis(200);

/// What the exchanges of one load have come to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    done: AtomicU64,
    broken: AtomicU64,
    /// Streams that have had their first exchange.
    open: AtomicU64,
    /// Streams that are under way.
    busy: AtomicU64,
    times: Histogram,
}

/// One stream's end of the load.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    tally: Arc<Tally>,
    go: watch::Receiver<bool>,
}

impl Turn {
    /// Repeats `exchange`: once at the start, and then as long as the load is on. Ends with the first error.
    pub(crate) async fn repeat(mut self, mut exchange: impl AsyncFnMut() -> Result<()>) -> Result<()> {
        exchange().await?;
        self.tally.open.fetch_add(1, Ordering::Relaxed);
        loop {
            if !*self.go.borrow() && self.go.wait_for(|go| *go).await.is_err() {
                return Ok(());
            }
            self.tally.busy.fetch_add(1, Ordering::Relaxed);
            let begun = Instant::now();
            let outcome = exchange().await;
            self.tally.busy.fetch_sub(1, Ordering::Relaxed);
            outcome?;
            self.tally.times.add(begun.elapsed());
            self.tally.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts streams that end before the load does.
    pub(crate) fn broke(&self, streams: u64) {
        self.tally.broken.fetch_add(streams, Ordering::Relaxed);
    }
}

/// A load on one entry.
#[derive(Debug)]
pub(crate) struct Driver {
    tally: Arc<Tally>,
    go: watch::Sender<bool>,
    streams: u64,
    /// Its end is the end of the thread.
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Driver {
    /// Opens `connections` by `connect`, a few at a time, each with `streams` streams, and waits for them.
    ///
    /// # Errors
    /// Not all of them were open within a minute.
    pub(crate) fn start<F>(
        connections: u16,
        streams: u16,
        connect: impl Fn(Turn) -> F + Send + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = ()> + 'static,
    {
        let tally = Arc::new(Tally::default());
        let (go, receiver) = watch::channel(false);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let turn = Turn { tally: Arc::clone(&tally), go: receiver };
        std::thread::Builder::new().name("load".into()).spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                for number in 1..=u64::from(connections) {
                    tokio::task::spawn_local(connect(turn.clone()));
                    // A few handshakes at a time: with all of them at once, some would not be taken.
                    let wanted = number.saturating_sub(AT_ONCE) * u64::from(streams);
                    while turn.tally.open.load(Ordering::Relaxed) < wanted
                        && turn.tally.broken.load(Ordering::Relaxed) == 0
                    {
                        tokio::time::sleep(Duration::from_micros(200)).await;
                    }
                }
                let _ = stopped.await;
            });
        })?;
        let driver = Self { tally, go, streams: u64::from(connections) * u64::from(streams), _stop: stop };
        driver.wait("connections to open", |tally| tally.open.load(Ordering::Relaxed) >= driver.streams)?;
        Ok(driver)
    }

    fn wait(&self, what: &str, so: impl Fn(&Tally) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !so(&self.tally) {
            let broken = self.tally.broken.load(Ordering::Relaxed);
            if broken > 0 {
                bail!("{broken} of {} streams broke while waiting for {what}", self.streams);
            }
            if Instant::now() > deadline {
                let open = self.tally.open.load(Ordering::Relaxed);
                bail!("{what}: not within {PATIENCE:?}; {open} of {} streams were open", self.streams);
            }
            pause(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Puts load on for so long. `spent` is read at both edges; gives the difference and what was done between them.
    ///
    /// # Errors
    /// What was under way did not end.
    pub(crate) fn window(&self, length: Duration, spent: impl Fn() -> Result<u64>) -> Result<(u64, Load)> {
        self.go.send(true).ok().context("the load has ended")?;
        pause_for(WARMING);
        self.tally.times.clear();
        let (before, done) = (spent()?, self.tally.done.load(Ordering::Relaxed));
        pause_for(length);
        let (after, until) = (spent()?, self.tally.done.load(Ordering::Relaxed));
        let p99_us = self.tally.times.quantile(0.99);
        self.go.send(false).ok().context("the load has ended")?;
        self.wait("silence", |tally| tally.busy.load(Ordering::Relaxed) == 0)?;
        let errors = self.tally.broken.load(Ordering::Relaxed);
        Ok((after - before, Load { requests: until - done, errors, p99_us }))
    }
}

/// Waits for so long; `pause` may return early.
pub(crate) fn pause_for(length: Duration) {
    let end = Instant::now() + length;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        pause(left);
    }
}

/// Times by their length, within a sixteenth.
#[derive(Debug)]
struct Histogram(Box<[AtomicU64]>);

/// Buckets of each power of two.
const FINE: u64 = 16;

impl Default for Histogram {
    fn default() -> Self {
        Self((0..FINE * 40).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Histogram {
    fn bucket(us: u64) -> usize {
        if us < FINE {
            return us as usize;
        }
        let power = u64::from(us.ilog2());
        ((power - 3) * FINE + ((us >> (power - 4)) & (FINE - 1))) as usize
    }

    /// The least of a bucket.
    fn floor(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        if bucket < FINE {
            return bucket;
        }
        let power = bucket / FINE + 3;
        (FINE + bucket % FINE) << (power - 4)
    }

    fn add(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let at = Self::bucket(us).min(self.0.len() - 1);
        self.0[at].fetch_add(1, Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
    }

    /// In microseconds; 0 if there is nothing.
    fn quantile(&self, share: f64) -> f64 {
        let all: Vec<u64> = self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let wanted = (all.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, number) in all.iter().enumerate() {
            seen += number;
            if seen >= wanted && seen > 0 {
                return Self::floor(bucket) as f64;
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_again_within_a_sixteenth() {
        for us in [0, 1, 15, 16, 17, 31, 32, 33, 1000, 123_456, 10_000_000] {
            let histogram = Histogram::default();
            histogram.add(Duration::from_micros(us));
            let found = histogram.quantile(0.99) as u64;
            assert!(found <= us && us - found <= us / FINE, "{us}: {found}");
        }
        let many = Histogram::default();
        (1..=1000).for_each(|us| many.add(Duration::from_micros(us)));
        let p99 = many.quantile(0.99);
        assert!((928.0..=990.0).contains(&p99), "{p99}");
        many.clear();
        assert_eq!(many.quantile(0.5), 0.0);
    }

    /// Windows until something was done in one, which takes as long as other work leaves it.
    fn window(driver: &Driver) -> (u64, Load) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (spent, load) = driver.window(Duration::from_millis(50), || Ok(7)).unwrap();
            if load.requests > 0 {
                return (spent, load);
            }
            assert!(Instant::now() < deadline, "nothing is done");
        }
    }

    #[test]
    fn a_window_counts_what_is_done_in_it_and_leaves_silence() {
        let origin = crate::tcp::Source::start().unwrap();
        let driver = crate::tcp::exchanges(origin.address, 3, 100_000).unwrap();
        let quiet = driver.tally.done.load(Ordering::Relaxed);
        assert_eq!(quiet, 0, "opening is not counted");
        for _ in 0..2 {
            let (spent, load) = window(&driver);
            assert_eq!((spent, load.errors), (0, 0));
            assert!(load.p99_us > 0.0, "{load:?}");
        }
        assert_eq!(driver.tally.busy.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_origin_that_is_not_there_is_an_error_and_no_wait() {
        let nobody = crate::measure::free_address().unwrap();
        let error = crate::tcp::exchanges(nobody, 2, 1).unwrap_err().to_string();
        assert!(error.contains("broke"), "{error}");
    }

    #[test]
    fn streams_of_grpc_exchange_messages() {
        let (origin, calls) = crate::grpc::serve(&[1000]).unwrap();
        let driver = crate::grpc::streams(origin, 2, 3, 1000).unwrap();
        assert_eq!(window(&driver).1.errors, 0);
        assert_eq!(calls.load(Ordering::Relaxed), 6, "each stream is one call");
    }
}
