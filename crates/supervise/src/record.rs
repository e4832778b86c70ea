//! What moved or ended a generation, as data: one [`Record`] per occurrence.
//!
//! Holds: every generation gets exactly one record with [`Happened::Ended`], its last. Does not: know the time of
//! day; whoever keeps records stamps them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::gate::Failure;
use crate::size::Resize;

/// Longest text taken over from outside, in bytes; the rest is cut.
pub const MAX_TEXT: usize = 1024;

/// The number of one process in a proxy's life: from 1, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What to run. Two targets are the same if all three are; the strings are only compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Target {
    /// The kind of proxy.
    pub engine: Arc<str>,
    /// The version of it.
    pub release: Arc<str>,
    /// Whatever else takes a new process when it changes, such as its size. May be empty.
    #[serde(default)]
    pub shape: Arc<str>,
}

impl Target {
    /// A target without a shape.
    pub fn new(engine: &str, release: &str) -> Self {
        Self { engine: engine.into(), release: release.into(), shape: "".into() }
    }

    /// The same release with another shape.
    #[must_use]
    pub fn shaped(mut self, shape: &str) -> Self {
        self.shape = shape.into();
        self
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.engine, self.release)?;
        if self.shape.is_empty() { Ok(()) } else { write!(f, " ({})", self.shape) }
    }
}

/// How a process ended, as far as it could be learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// By itself, with this code. 0 is a crash too, unless it was told to end.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It panicked, and left this text.
    Panic(String),
    /// The kernel ended it for lack of memory.
    OutOfMemory,
    /// It is gone and nobody could ask how: it was no child of this agent.
    Unknown,
}

impl Exit {
    /// Whether this is somebody's deed rather than the process's own: a signal people and tools send.
    pub fn is_outside_kill(&self) -> bool {
        // SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGTERM
        matches!(self, Self::Signal(1 | 2 | 3 | 9 | 15))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Panic(text) => write!(f, "panic: {text}"),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::Unknown => f.write_str("nobody saw how"),
        }
    }
}

/// Whose fault a failed start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The binary is missing, damaged, or not for this machine.
    Release,
    /// The host lacks something: memory, descriptors, processes, disk.
    Host,
}

/// Why something happened to a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It ended although nobody had told it to.
    Crashed(Exit),
    /// It did not answer any more and was killed.
    Hung,
    /// Its binary could not be had or verified.
    FetchFailed(String),
    /// It could not be started.
    StartFailed {
        /// In words.
        error: String,
        /// Whose fault.
        blame: Blame,
    },
    /// It was not ready in time.
    NotReady,
    /// It was told to accept and did not answer.
    NoAnswer,
    /// It was worse than its predecessor.
    Probation(Failure),
    /// It crashed again and again.
    CrashLoop,
    /// Nobody served: the first start, or what ran before had ended.
    NobodyServed,
    /// A new target.
    Upgrade,
    /// Back to what ran before, by request.
    Rollback,
    /// A new process of the same target, by request.
    Restart,
    /// Nobody needs it: another generation was faster, or the target changed before it was ready.
    Superseded,
    /// The proxy is not needed any more.
    Stop,
    /// Its callers are to go elsewhere, by request. Whoever withdraws its endpoints records it.
    Drain,
    /// It needs more memory, or less.
    Resized(Resize),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crashed(exit) => write!(f, "{exit}"),
            Self::Hung => f.write_str("it did not answer"),
            Self::FetchFailed(error) => write!(f, "its binary could not be fetched: {error}"),
            Self::StartFailed { error, .. } => write!(f, "it could not be started: {error}"),
            Self::NotReady => f.write_str("it was not ready in time"),
            Self::NoAnswer => f.write_str("it did not begin to accept"),
            Self::Probation(failure) => write!(f, "worse than its predecessor: {failure}"),
            Self::CrashLoop => f.write_str("it crashed again and again"),
            Self::NobodyServed => f.write_str("nobody served"),
            Self::Upgrade => f.write_str("upgrade"),
            Self::Rollback => f.write_str("rollback by request"),
            Self::Restart => f.write_str("restart by request"),
            Self::Superseded => f.write_str("not needed any more"),
            Self::Stop => f.write_str("stop"),
            Self::Drain => f.write_str("by request"),
            Self::Resized(resize) => resize.fmt(f),
        }
    }
}

/// What was done next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Next {
    /// Nothing had to be done.
    Nothing,
    /// This generation serves, or is about to: it was ready or on its way already.
    ServedBy(Generation),
    /// This generation was started in its place.
    Restarted(Generation),
    /// The next one is started after a pause.
    BackedOff {
        /// How long.
        #[serde(with = "crate::millis")]
        pause: Duration,
    },
    /// The predecessor, which was kept, accepts again.
    PutBack(Generation),
    /// A process of what ran before was started.
    RolledBack {
        /// What it runs.
        to: Target,
        /// Its number.
        generation: Generation,
    },
    /// The same change is tried again after a pause; the predecessor serves.
    TriedAgain {
        /// How long.
        #[serde(with = "crate::millis")]
        pause: Duration,
    },
}

/// What an end cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Connections that were open.
    pub connections: u64,
    /// Requests that were being served.
    pub requests: u64,
}

/// What happened to the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happened {
    /// It accepts, for the first time.
    TookOver,
    /// It passed its probation.
    Passed,
    /// It accepts again, because its successor failed.
    PutBack,
    /// It is gone.
    Ended,
    /// Its limit of memory is another one. Whoever keeps the size of a proxy records it.
    Resized,
    /// Nothing that callers opened is left, and nobody gets in. Whoever withdraws its endpoints records it.
    Drained,
}

/// One occurrence in a proxy's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// To which generation.
    pub generation: Generation,
    /// What it ran.
    pub target: Target,
    /// What.
    pub happened: Happened,
    /// Why.
    pub cause: Cause,
    /// How the process ended, if one did.
    pub exit: Option<Exit>,
    /// The version of its configuration, if it ever had one.
    pub configuration: Option<Arc<str>>,
    /// Since it was started.
    #[serde(with = "crate::millis")]
    pub uptime: Duration,
    /// Resident memory when it was last seen, in bytes.
    pub memory: Option<u64>,
    /// What was lost with it.
    pub lost: Lost,
    /// What was done about it.
    pub next: Next,
}

/// Cuts a text from outside to [`MAX_TEXT`].
pub(crate) fn bounded(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
