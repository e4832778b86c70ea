//! The life of one proxy as a state machine: pure.
//!
//! Data in: [`Event`]s and the time. Data out: [`Effect`]s, [`Record`]s of what moved or ended a generation, and a
//! [`Status`]. One [`Supervisor`] per proxy; the shell carries the effects out and reports what happened as the next
//! event. No I/O, no clock, no randomness.
//!
//! # A generation
//! ```text
//!  fetching ─► starting ─► warming ─┬─ first start, crash: accepts by itself ─► accepting
//!                                   └─ upgrade, rollback, restart ─► held ─► opening ─► accepting
//!
//!  accepting ─► pausing ─► paused ─┬─ successor passed ─► draining ─► gone
//!                                  └─ successor failed ─► opening ─► accepting
//!
//!  any ─► killed ─► gone     hung, not ready in time, drain over its deadline
//!  any ─► gone               crashed
//! ```
//!
//! # A change (upgrade, rollback, restart)
//! ```text
//!           ┌── may pass (fetch, host, somebody's kill) ── waiting
//!           ▼                                                ▲
//!  queued ─► preparing: next generation held ────────────────┤
//!                │ ready, accepts; then the old one pauses   └── its fault: quarantine, the old one goes on
//!                ▼
//!            probation ── passed ─► old one drains, target is good
//!                │ crash, hang, gate
//!                ▼
//!            putting back: old one accepts; then the new one drains; quarantine
//! ```
//! Probation is for upgrades. A restart and a rollback run what ran before: there the old one drains at once.
//!
//! # What holds
//! - Once a generation has been ready, the supervisor itself never takes the last accepting one away, except to stop.
//!   [`Effect::Pause`] and [`Effect::Drain`] of a serving generation come after [`Event::Accepting`] of another.
//! - When nobody serves and nothing was stopped, a generation is on its way or its start is scheduled. It never gives up.
//! - At most two generations carry or prepare to carry new connections, and [`Policy::max_draining`] leave without
//!   having been killed.
//! - Every generation gets exactly one record with [`Happened::Ended`].
//! - After [`Event::Stop`] nothing starts, and all is gone by the deadline and [`Policy::grace`], as far as SIGKILL can.
//! - An event of a generation that is gone, or one that comes twice, changes nothing.
//!
//! # Crashes
//! A serving generation that crashes is followed by the next one at once; connections wait in the kernel's queue.
//! When it crashes while a candidate is prepared, what ran before is started as well, and whichever is ready first
//! accepts: an unproven release is never waited for. After [`Policy::crash_limit`] crashes in
//! [`Policy::crash_window`] starts are paused, longer each time, and what ran well before is started *alternately*
//! with the target, the first time without a pause. So whichever of the two works is found within two starts, and a
//! cause outside of both (memory, configuration) keeps neither from coming back. Whoever serves for
//! [`Policy::forgive`] settles it: if it was not the target, the target is quarantined.
//!
//! A release that passed probation and crashes [`Policy::young_crashes`] times in the next ten minutes is taken back
//! too; that finds what crashes after a minute. A process that was ready and was killed by a signal people send counts
//! for neither: that is somebody's deed, and a pause or a rollback would make it worse.
//!
//! # Adoption
//! A new agent reports what it finds with [`Event::Adopted`] and then says [`Event::Start`]. The newest accepting
//! generation serves; if what it runs has not proven itself and an older one of another target is there, probation
//! begins anew with the older one as reserve; a held one of the wanted target goes on as candidate; everything else
//! drains. If none accepts, a paused one does first, because it served before. If nothing is found and the target never
//! ran well here, what did is started beside it: whichever is ready first accepts.

pub mod gate;
pub mod size;

mod event;
mod millis;
mod policy;
mod record;
#[cfg(test)]
mod seeds;
mod status;
mod supervisor;

pub use event::{Adoption, Effect, Event, Found, Memory, Refusal};
pub use policy::Policy;
pub use record::{Blame, Cause, Exit, Generation, Happened, Lost, MAX_TEXT, Next, Record, Target};
pub use status::{ChangeStatus, Crashes, GenerationStatus, Quarantined, Queued, Role, State, Status, Step};
pub use supervisor::Supervisor;

/// Most targets remembered as good.
pub const MAX_GOOD: usize = 3;

/// Most targets in quarantine; the oldest is forgotten for the next.
pub const MAX_QUARANTINED: usize = 32;
