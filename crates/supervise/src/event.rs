//! What comes in and what goes out.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::gate::Sample;
use crate::record::{Blame, Exit, Generation, Lost, Record, Target};
use crate::status::Quarantined;

/// What happened.
///
/// `jitter` is a fresh random number in 0–1 that spreads restarts over a fleet. Events of a generation that is
/// gone, or that do not fit its state, change nothing: every event may arrive late or twice.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Begin, with this target; after every [`Event::Adopted`] that is known by then. A second time it is an upgrade.
    Start {
        /// What to run.
        target: Target,
    },
    /// Move to this target. Queued while another change is under way; the newest wins.
    Upgrade {
        /// What to run.
        target: Target,
    },
    /// Back to what ran before the present target, which is quarantined. Ends a change that is under way.
    Rollback,
    /// A new process of the same target.
    Restart,
    /// Finish what is open on inbound listeners and take nothing new there; outbound goes on. For good.
    DrainInbound {
        /// The time open connections get.
        within: Duration,
    },
    /// End everything by then. A second time it can only become shorter.
    Stop {
        /// The one deadline.
        within: Duration,
    },
    /// Take what matches out of quarantine. It is not started by that. Refused if nothing matches.
    Pardon {
        /// Engine.
        engine: Arc<str>,
        /// Release.
        release: Arc<str>,
    },

    /// The binary is there and verified.
    Fetched {
        /// For this one.
        generation: Generation,
    },
    /// The binary cannot be had.
    FetchFailed {
        /// For this one.
        generation: Generation,
        /// In words.
        error: String,
        /// See [`Event`].
        jitter: f64,
    },
    /// There is a process. Exactly one [`Event::Ended`] follows.
    Started {
        /// Which.
        generation: Generation,
    },
    /// There is no process.
    StartFailed {
        /// Which.
        generation: Generation,
        /// In words.
        error: String,
        /// Whose fault.
        blame: Blame,
        /// See [`Event`].
        jitter: f64,
    },
    /// It is warm: started held it now waits for "accept", else it accepts.
    Ready {
        /// Which.
        generation: Generation,
        /// The version of its configuration.
        configuration: Option<Arc<str>>,
        /// Its SPIFFE ID.
        identity: Option<Arc<str>>,
    },
    /// It uses another configuration.
    Configured {
        /// Which.
        generation: Generation,
        /// The version.
        configuration: Arc<str>,
    },
    /// Answer to [`Effect::Accept`].
    Accepting {
        /// Which.
        generation: Generation,
    },
    /// Answer to [`Effect::Pause`].
    Paused {
        /// Which.
        generation: Generation,
    },
    /// It finished draining, and ends next.
    Drained {
        /// Which.
        generation: Generation,
        /// What had to be cut.
        lost: Lost,
    },
    /// It does not answer any more.
    Hung {
        /// Which.
        generation: Generation,
        /// See [`Event`].
        jitter: f64,
    },
    /// The process is gone.
    Ended {
        /// Which.
        generation: Generation,
        /// How.
        exit: Exit,
        /// Its resident memory when it was last seen, in bytes.
        memory: Option<u64>,
        /// What was open and was not reported by [`Event::Drained`].
        lost: Lost,
        /// See [`Event`].
        jitter: f64,
    },
    /// Numbers of a generation. Wanted about once a second from every generation that
    /// [`Status`](crate::Status) shows as accepting or paused, and at least three times during probation.
    Sample {
        /// Whose.
        generation: Generation,
        /// The numbers.
        sample: Box<Sample>,
    },
    /// A process that an earlier agent started, found again.
    Adopted(Adoption),
    /// Time passed: see [`Supervisor::next_tick`](crate::Supervisor::next_tick).
    Tick,
}

/// What a process that was found says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// Its number.
    pub generation: Generation,
    /// What it runs.
    pub target: Target,
    /// What it does.
    pub state: Found,
    /// Whether it is warm.
    pub ready: bool,
    /// Since it was started.
    pub uptime: Duration,
    /// The version of its configuration.
    pub configuration: Option<Arc<str>>,
    /// Its SPIFFE ID.
    pub identity: Option<Arc<str>>,
}

/// What a found process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// It was started held and was never told to accept.
    Held,
    /// It accepts, or will as soon as it is warm.
    Accepting,
    /// It was paused.
    Paused,
    /// It drains.
    Draining,
}

/// What to do, in this order. Every effect may be carried out twice without harm.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Keep this on disk. Comes before what depends on it; go on if that fails.
    Remember(Memory),
    /// Fetch and verify the binary. Answer with [`Event::Fetched`] or [`Event::FetchFailed`].
    Fetch {
        /// For this one.
        generation: Generation,
        /// What.
        target: Target,
    },
    /// Start a process. Answer with [`Event::Started`] (then [`Event::Ready`], and [`Event::Ended`]), or with
    /// [`Event::StartFailed`] alone.
    Start {
        /// Its number.
        generation: Generation,
        /// What.
        target: Target,
        /// Whether it waits for [`Effect::Accept`] after it is warm.
        held: bool,
    },
    /// Tell it to accept. Answer with [`Event::Accepting`].
    Accept {
        /// Which.
        generation: Generation,
    },
    /// Tell it to accept nothing new and keep everything else. Answer with [`Event::Paused`].
    Pause {
        /// Which.
        generation: Generation,
    },
    /// Tell it to finish what is open and exit. A later one has an earlier deadline. For a process that is being
    /// started: as soon as it can be told.
    Drain {
        /// Which.
        generation: Generation,
        /// The deadline.
        within: Duration,
    },
    /// Tell it to finish what is open on inbound listeners only.
    DrainInbound {
        /// Which.
        generation: Generation,
        /// The time open connections get.
        within: Duration,
    },
    /// Kill it: SIGKILL.
    Kill {
        /// Which.
        generation: Generation,
    },
    /// Keep and show this.
    Record(Box<Record>),
    /// A command was not carried out.
    Refused(Refusal),
    /// This generation accepts from now on; or none does, and one is on its way.
    Serving(Option<Generation>),
    /// After [`Event::Stop`]: nothing is left.
    Stopped,
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Everything is ending.
    #[error("the proxy is being stopped")]
    Stopping,
    /// The target is in quarantine.
    #[error("{target} is in quarantine here: {reason}; pardon it to try it again", reason = .quarantined.reason)]
    Quarantined {
        /// What was asked for.
        target: Target,
        /// What forbids it.
        quarantined: Box<Quarantined>,
    },
    /// There is nothing else to go back to.
    #[error("no other release ran well here before")]
    NothingBefore,
    /// A rollback is under way already.
    #[error("a rollback is under way")]
    RollingBack,
    /// [`Event::Start`] did not come yet.
    #[error("the proxy was not started yet")]
    NotStarted,
    /// There is nothing to be pardoned.
    #[error("{engine} {release} is not in quarantine here, so there is nothing to pardon")]
    NotQuarantined {
        /// Engine.
        engine: Arc<str>,
        /// Release.
        release: Arc<str>,
    },
}

/// What has to survive a restart of the agent. Small: a few hundred bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// No generation has this number or a higher one. Reserved many at a time, so that it changes rarely; a new agent
    /// goes on with it, so numbers are skipped then.
    pub next: u64,
    /// What ran well, the newest first; at most [`MAX_GOOD`](crate::MAX_GOOD).
    pub good: Vec<Target>,
    /// What is not tried again; at most [`MAX_QUARANTINED`](crate::MAX_QUARANTINED).
    pub quarantined: Vec<Quarantined>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { next: 1, good: Vec::new(), quarantined: Vec::new() }
    }
}
