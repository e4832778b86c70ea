//! Load that finds losses: requests by schedule, each with an id, each answer checked, each id looked up at the
//! upstream afterwards.
//!
//! ```text
//! schedule ──due──► connection ──id, body, digest──► (what is tried) ──► Upstream: writes ids down, answers
//!                       │ Outcome                                            │ Record
//!                       └──────────► Book ──────────────► Report ◄───────────┘
//! ```
//! Holds: requests come when they are due, whatever became of the ones before (open loop), and latency counts from
//! then; nothing is ever sent twice; a class adds up: sent = complete + each kind of loss. Does not: know what is
//! between it and the upstream, speak TLS, or retry.
//!
//! `docs/load.md` says how the program `outrider-load` is used. In a test:
//! ```no_run
//! use outrider_testkit::load::{self, Plan, Target, upstream::{Options, Upstream}};
//! # fn main() -> anyhow::Result<()> {
//! let upstream = Upstream::start(Options::loopback())?;
//! let plan = Plan { http: Some(Target::url("http://127.0.0.1:8080")?), ..Plan::r1k(0.1) };
//! let running = load::start(Plan { reports: vec![upstream.report_url()], ..plan })?;
//! // … whatever must not be noticed …
//! running.stop();
//! let report = running.finish()?;
//! assert!(report.is_clean(), "{report}");
//! # Ok(()) }
//! ```

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::LocalSet;

mod grpc;
pub mod ids;
pub mod kills;
mod messages;
pub mod mix;
pub mod report;
mod requests;
mod schedule;
pub mod tally;
pub mod upstream;
mod wire;

pub use kills::Kills;
pub use mix::{Mix, MixError, Target};
pub use report::Report;

use schedule::Schedule;
use tally::{Book, Kind};

/// How often progress is brought up to date.
const PROGRESS: Duration = Duration::from_millis(200);
/// How long what is overdue at the end may still be sent, where an answer may not even take that long: it may be this
/// program that was not run.
const OVERDUE: Duration = Duration::from_secs(20);
/// Drains that are remembered.
const MOST_DRAINS: usize = 100_000;

/// What to send where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where HTTP requests go; without it there are none.
    pub http: Option<Target>,
    /// Where WebSockets are opened; without it there are none.
    pub websocket: Option<Target>,
    /// Where TCP connections go; without it there are none.
    pub tcp: Option<Target>,
    /// Where calls and streams of gRPC go; without it there are none.
    pub grpc: Option<Target>,
    /// Where the upstreams tell what they saw: URLs of their reports, or files with their records. Ids that several
    /// of them saw were seen twice. Without any, nothing is known about that.
    pub reports: Vec<String>,
    /// How many connections of each kind.
    pub mix: Mix,
    /// Requests and messages per second, all kinds together.
    pub rate: f64,
    /// How long.
    pub time: Duration,
    /// How long a connection or an answer may take. Afterwards it is lost.
    pub timeout: Duration,
    /// How long a WebSocket, TCP connection or stream of gRPC must be left open: from its opening, or from the first of `drains`
    /// after it.
    pub drain: Duration,
    /// How long a WebSocket, TCP connection or stream of gRPC lives until it is closed from this side and opened again, once nothing is
    /// under way on it; `None` for as long as the run.
    pub lifetime: Option<Duration>,
    /// When drains began, for a drain deadline that is exact.
    pub drains: Drains,
    /// Kills on the way, whose losses are counted apart.
    pub kills: Kills,
    /// Length of request bodies.
    pub request_bytes: usize,
    /// Length of response bodies.
    pub response_bytes: usize,
    /// Length of the bodies of messages.
    pub message_bytes: usize,
}

impl Plan {
    /// The mix [`Mix::R1K`] at `scale` times its size, for a minute, without targets.
    pub fn r1k(scale: f64) -> Self {
        Self {
            http: None,
            websocket: None,
            tcp: None,
            grpc: None,
            reports: Vec::new(),
            mix: Mix::R1K.scaled(scale),
            rate: mix::R1K_RATE * scale,
            time: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
            drain: Duration::from_secs(600),
            lifetime: None,
            drains: Drains::default(),
            kills: Kills::default(),
            request_bytes: 1024,
            response_bytes: 1024,
            message_bytes: 64,
        }
    }
}

/// Moments at which something began to drain.
#[derive(Clone, Debug, Default)]
pub struct Drains(Arc<Mutex<Vec<Instant>>>);

impl Drains {
    /// A drain begins now, for all connections that are open.
    pub fn announce(&self) {
        self.announce_at(Instant::now());
    }

    fn announce_at(&self, moment: Instant) {
        let mut moments = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if moments.len() < MOST_DRAINS {
            moments.push(moment);
        }
    }

    /// Whether a connection that was opened at this time may be ended by the other side `now`.
    fn may_end(&self, opened: Instant, now: Instant, drain: Duration) -> bool {
        now.saturating_duration_since(self.first_after(opened).unwrap_or(opened)) >= drain
    }

    fn first_after(&self, time: Instant) -> Option<Instant> {
        let moments = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        moments.get(moments.partition_point(|moment| *moment < time)).copied()
    }
}

/// Why there is no load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The plan asks for nothing.
    #[error(
        "there is nothing to do: give a target for HTTP, WebSockets, TCP or gRPC that the mix has connections for"
    )]
    NoTarget,
    /// The long-lived connections alone send more than the rate.
    #[error("{rate} per second is not enough for the mix: its messages alone are {messages} per second")]
    Rate {
        /// Asked for.
        rate: f64,
        /// Of WebSockets, TCP and streams of gRPC.
        messages: f64,
    },
    /// A number of the plan is out of its bounds.
    #[error("{what} must be {bounds}")]
    Bounds {
        /// Which.
        what: &'static str,
        /// What it may be.
        bounds: &'static str,
    },
    /// Threads, timers or descriptors.
    #[error("cannot make {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The thread of the load panicked, which is a defect.
    #[error("the thread of the load ended without a result")]
    Lost,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Since its start.
    pub elapsed: Duration,
    /// Requests and messages begun.
    pub sent: u64,
    /// Ended well.
    pub complete: u64,
    /// Lost so far; what the upstreams saw is known at the end only.
    pub losses: u64,
}

/// What all connections of a run share.
struct Shared {
    plan: Plan,
    book: RefCell<Book>,
    end: watch::Receiver<Instant>,
}

impl Shared {
    /// Waits until the next request is due, letting `meanwhile` run; `None` at the end of the run, or when what is
    /// overdue at its end has not been sent for the time an answer may take, or [`OVERDUE`] if that is longer.
    async fn next(
        &self,
        schedule: &mut Schedule,
        meanwhile: impl Future<Output = Infallible>,
    ) -> Option<Instant> {
        let mut end = self.end.clone();
        let overdue = self.plan.timeout.max(OVERDUE);
        let mut meanwhile = std::pin::pin!(meanwhile);
        loop {
            let until = *end.borrow_and_update();
            if schedule.due() >= until || Instant::now() > until + overdue {
                return None;
            }
            tokio::select! {
                biased;
                never = &mut meanwhile => match never {},
                Ok(()) = end.changed() => {}
                // A timer that cannot be read would be no schedule any more.
                waited = schedule.wait() => return waited.ok().map(|()| schedule.take()),
            }
        }
    }

    /// At the end: what was due and never sent.
    fn unsent(&self, schedule: Schedule, count: impl FnOnce(&mut Book, u64)) {
        let number = schedule.left(*self.end.borrow());
        if number > 0 {
            count(&mut self.book.borrow_mut(), number);
        }
    }
}

/// A run that goes on in a thread of its own.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<Result<Report, LoadError>>,
    end: watch::Sender<Instant>,
    progress: Arc<Mutex<Progress>>,
}

impl Running {
    /// Ends it now; what is under way is waited for.
    pub fn stop(&self) {
        let now = Instant::now();
        self.end.send_if_modified(|end| {
            let sooner = now < *end;
            *end = now.min(*end);
            sooner
        });
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has ended, by itself or because it was stopped.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end, asks the upstreams, and gives the result.
    ///
    /// # Errors
    /// See [`LoadError`]; losses are no error.
    pub fn finish(self) -> Result<Report, LoadError> {
        self.thread.join().map_err(|_| LoadError::Lost)?
    }
}

/// Runs a plan to its end.
///
/// # Errors
/// See [`start`].
pub fn run(plan: Plan) -> Result<Report, LoadError> {
    start(plan)?.finish()
}

/// Starts a plan.
///
/// # Errors
/// The plan cannot be done, see [`LoadError`].
pub fn start(plan: Plan) -> Result<Running, LoadError> {
    let rows = mix::rows(&plan)?;
    let started = Instant::now();
    // In ids it tells runs apart; nothing else depends on it.
    let run = RandomState::new().hash_one(std::process::id());
    let (end, ends) = watch::channel(started + plan.time);
    let progress = Arc::new(Mutex::new(Progress::default()));
    let told = progress.clone();
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| LoadError::Io { what: "a runtime", source })?;
        let book = RefCell::new(Book::new(run, started, plan.kills.clone()));
        let shared = Rc::new(Shared { plan, book, end: ends });
        LocalSet::new().block_on(&runtime, drive(shared.clone(), &rows, started, &told))?;
        let planned = started + shared.plan.time;
        let measured = report::Measured {
            run,
            seconds: started.elapsed().as_secs_f64(),
            ended_early: *shared.end.borrow() < planned,
            cpu_seconds: thread_cpu(),
            left_out: mix::left_out(&shared.plan),
        };
        let records = report::fetch(&shared.plan.reports, run);
        Ok(Report::new(&shared.book.borrow(), measured, records))
    };
    let thread = std::thread::Builder::new().name("load".into()).spawn(body);
    let thread = thread.map_err(|source| LoadError::Io { what: "a thread", source })?;
    Ok(Running { thread, end, progress })
}

async fn drive(
    shared: Rc<Shared>,
    rows: &[mix::Row],
    started: Instant,
    told: &Mutex<Progress>,
) -> Result<(), LoadError> {
    let mut tasks = tokio::task::JoinSet::new();
    for row in rows {
        for number in 0..row.connections {
            // Spread over one interval, so that they do not all come at once.
            let phase = row.interval.mul_f64(f64::from(number) / f64::from(row.connections));
            let schedule = Schedule::new(started + phase, row.interval);
            let schedule = schedule.map_err(|source| LoadError::Io { what: "a timer", source })?;
            shared.book.borrow_mut().connections(row.kind, row.connections);
            let target = row.target.clone();
            match row.kind {
                Kind::Http => tasks.spawn_local(requests::run(shared.clone(), schedule, number)),
                Kind::Grpc => tasks.spawn_local(grpc::calls(shared.clone(), schedule, target)),
                Kind::GrpcStream => tasks.spawn_local(grpc::streams(shared.clone(), target)),
                kind => tasks.spawn_local(messages::run(shared.clone(), schedule, kind, target)),
            };
        }
    }
    let mut beat = tokio::time::interval(PROGRESS);
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                None => return Ok(()),
                Some(Ok(())) => {}
                Some(Err(_)) => return Err(LoadError::Lost),
            },
            _ = beat.tick() => {
                let progress = shared.book.borrow().progress(started.elapsed());
                shared.plan.kills.beat(Instant::now());
                *told.lock().unwrap_or_else(PoisonError::into_inner) = progress;
            }
        }
    }
}

/// Processor time of this thread, in seconds.
fn thread_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_counts_from_the_first_drain_after_the_opening() {
        let (drains, start) = (Drains::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let may_end = |opened, now| drains.may_end(at(opened), at(now), Duration::from_secs(600));
        assert!(!may_end(0, 599));
        assert!(may_end(0, 600));
        drains.announce_at(at(100));
        drains.announce_at(at(200));
        let cases = [(0, 600, false), (0, 699, false), (0, 700, true), (150, 799, false), (150, 800, true)];
        for (opened, now, expected) in cases {
            assert_eq!(may_end(opened, now), expected, "opened at {opened}, ended at {now}");
        }
        // Opened after both: nothing is draining it as far as anybody said.
        assert!(!may_end(300, 899) && may_end(300, 900));
    }
}
