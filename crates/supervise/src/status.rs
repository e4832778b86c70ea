//! Everything there is to show about one proxy.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::record::{Cause, Generation, Target};

/// What is not tried again until it is pardoned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The engine.
    pub engine: Arc<str>,
    /// The release.
    pub release: Arc<str>,
    /// Only with this shape; `None`: with any. Set when nothing but the shape was new.
    pub shape: Option<Arc<str>>,
    /// Why.
    pub reason: Cause,
}

impl Quarantined {
    /// Whether it forbids this target.
    pub fn matches(&self, target: &Target) -> bool {
        self.engine == target.engine
            && self.release == target.release
            && self.shape.as_ref().is_none_or(|shape| *shape == target.shape)
    }
}

/// The state of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its binary is fetched and verified.
    Fetching,
    /// Its process is being started.
    Starting,
    /// It runs and is not ready yet.
    Warming,
    /// It is ready and waits to be told to accept.
    Held,
    /// It was told to accept and has not answered.
    Opening,
    /// It accepts.
    Accepting,
    /// It was told to pause and has not answered.
    Pausing,
    /// It serves open connections and accepts nothing new.
    Paused,
    /// It finishes what is open and exits then.
    Draining,
    /// It was killed and is not gone yet.
    Killed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fetching => "fetching",
            Self::Starting => "starting",
            Self::Warming => "warming",
            Self::Held => "held",
            Self::Opening => "opening",
            Self::Accepting => "accepting",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Killed => "killed",
        })
    }
}

/// What a generation is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It carries new connections.
    Serving,
    /// It is started because nobody serves.
    Replacement,
    /// It is to take over.
    Candidate,
    /// It is kept to be put back.
    Reserve,
    /// It goes.
    Leaving,
}

/// One generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationStatus {
    /// Its number.
    pub generation: Generation,
    /// What it runs.
    pub target: Target,
    /// Its state.
    pub state: State,
    /// How long it is in this state.
    #[serde(with = "crate::millis")]
    pub since: Duration,
    /// Since it was started.
    #[serde(with = "crate::millis")]
    pub uptime: Duration,
    /// What it is there for.
    pub role: Role,
    /// The version of its configuration.
    pub configuration: Option<Arc<str>>,
    /// Its SPIFFE ID.
    pub identity: Option<Arc<str>>,
    /// Why it goes.
    pub leaving: Option<Cause>,
    /// Until its state's time is over.
    #[serde(with = "crate::millis::optional")]
    pub left: Option<Duration>,
}

/// How far a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It failed for a reason that may pass and is tried again.
    Waiting,
    /// The new generation is prepared.
    Preparing,
    /// The new one serves and the old one is kept.
    Probation,
    /// The old one is being put back.
    PuttingBack,
}

/// A change under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeStatus {
    /// [`Cause::Upgrade`], [`Cause::Rollback`] or [`Cause::Restart`], or what made going back necessary.
    pub cause: Cause,
    /// From what.
    pub from: Target,
    /// To what.
    pub to: Target,
    /// How far.
    pub step: Step,
    /// The generation it is about: the new one, or the one that is put back.
    pub generation: Option<Generation>,
    /// Attempts so far, this one included.
    pub attempt: u32,
    /// Until the step's time is over.
    #[serde(with = "crate::millis::optional")]
    pub left: Option<Duration>,
}

/// What waits for the present change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Queued {
    /// A new target.
    Upgrade(Target),
    /// A new process.
    Restart,
}

/// A crash loop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crashes {
    /// Crashes in the window; those of a loop are forgotten when a generation has served well.
    pub recent: usize,
    /// Whether starts are paused.
    pub looping: bool,
    /// Until the next start.
    #[serde(with = "crate::millis::optional")]
    pub next_start: Option<Duration>,
    /// Why there is no process of what shall run, if its program is not there or cannot be executed: then it does not
    /// crash.
    #[serde(default)]
    pub absent: Option<Cause>,
}

/// Everything there is to show. Durations are as of the moment it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What shall run; `None` before the start.
    pub target: Option<Target>,
    /// Who accepts.
    pub serving: Option<Generation>,
    /// Every live generation, the oldest first.
    pub generations: Vec<GenerationStatus>,
    /// The change under way.
    pub change: Option<ChangeStatus>,
    /// What comes after it.
    pub queued: Option<Queued>,
    /// What ran well, the newest first.
    pub good: Vec<Target>,
    /// What is not tried again.
    pub quarantined: Vec<Quarantined>,
    /// How it crashes.
    pub crashes: Crashes,
    /// Inbound is drained or draining.
    pub inbound_drained: bool,
    /// Until the deadline of a stop.
    #[serde(with = "crate::millis::optional")]
    pub stop: Option<Duration>,
}
