//! How much memory the processes of one proxy may take: pure.
//!
//! Data in: [`Look`]s at what is held and what is carried, with the time. Data out: a [`Resize`] when the limit should
//! be another one, which the shell sets while the process runs.
//!
//! ```text
//! held (or what it will be in a moment) nears the limit ─┬─ the load explains more ─► grow by a step, at once
//!                                                        └─ it does not ─► nothing: the proxy saves, sheds, and is
//!                                                                          killed alone if it leaks
//! a day was watched ─► 99th percentile of what was held + 30 % ─► shrink by a step, if that is less
//! ```
//! # What holds
//! - The limit is never below [`Bounds::least`] or above [`Bounds::most`], never made smaller than what is held with its
//!   headroom, and changes by a bounded share at a time.
//! - It grows only as far as the load explains: connections, requests and endpoints, each with the bytes that one can
//!   take. So a leak is fed up to what the load could need and no further, however long it goes on; what a proxy could
//!   never need is left to its limit, to probation, and to the kernel.
//! - Load that has gone explains memory for [`Policy::lag`] more: an allocator gives back late.
//! - Time in which nobody looked counts for nothing.
//!
//! Does not: know the kernel, or whether a limit can be set at all (see [`Size::is`]).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What is held is counted in steps of so many bytes, and limits are multiples of it.
const GRAIN: u64 = 4 << 20;
/// Longest time between two looks that counts as watched.
const LONGEST_LOOK: Duration = Duration::from_secs(10);
/// Most moments of load that are remembered.
const MAX_LOADS: usize = 1024;

/// Shares, times, and what load can need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Percent of the limit at which it grows. Below what a proxy begins to save at (85), above what is left by a
    /// review (100 / 1.3 = 77).
    pub grow_at: u64,
    /// Percent by which it grows at a time; twice that where it would be exceeded within [`Policy::ahead`].
    pub grow_by: u64,
    /// Least time between two steps of growth: the load of the step before is seen by then.
    #[serde(with = "crate::millis")]
    pub pause: Duration,
    /// How far ahead growth is looked for: what grows so fast that it would be near the limit by then is near it.
    #[serde(with = "crate::millis")]
    pub ahead: Duration,
    /// Percent above what was held.
    pub headroom: u64,
    /// Percent of the time that what is held must fit into, with that headroom.
    pub quantile: u64,
    /// How long is watched before the limit is reviewed.
    #[serde(with = "crate::millis")]
    pub review: Duration,
    /// Of what was watched, percent that still counts after a review: 86 of a day is a window of about a week.
    pub memory: u64,
    /// Most percent by which a review makes it smaller.
    pub shrink_by: u64,
    /// How long load that has gone still explains memory.
    #[serde(with = "crate::millis")]
    pub lag: Duration,
    /// Bytes that one open connection can need: a head of 96 KiB or a block of bytes, and the same sealed for a peer that does
    /// not read, the buffers of both directions, TLS, and what the kernel keeps for its socket.
    pub per_connection: u64,
    /// Bytes that one request under way can need beside its connection: a large head, a body in bulk blocks, and its
    /// upstream connection.
    pub per_request: u64,
    /// Bytes that one known endpoint can need: configuration and kept connections.
    pub per_endpoint: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            grow_at: 80,
            grow_by: 50,
            pause: Duration::from_millis(200),
            ahead: Duration::from_secs(2),
            headroom: 30,
            quantile: 99,
            review: Duration::from_secs(86_400),
            memory: 86,
            shrink_by: 25,
            lag: Duration::from_secs(60),
            per_connection: 320 << 10,
            per_request: 512 << 10,
            per_endpoint: 16 << 10,
        }
    }
}

/// Where it begins, and where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The limit of a proxy of which nothing is known, and the smallest one, in bytes.
    pub least: u64,
    /// The largest one, in bytes.
    pub most: u64,
}

impl Bounds {
    /// From `least`, up to 1 GiB or an eighth of the memory of the host, but never below `least`.
    pub fn on_host(least: u64, host: u64) -> Self {
        Self { least, most: (host / 8).min(1 << 30).max(least) }
    }

    fn fit(&self, limit: u64) -> u64 {
        limit.clamp(self.least, self.most.max(self.least))
    }
}

/// What a proxy carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Open connections, on both sides.
    pub connections: u64,
    /// Requests under way.
    pub requests: u64,
    /// Endpoints known.
    pub endpoints: u64,
}

/// A look at the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Bytes held that cannot be taken back at any time.
    pub held: u64,
    /// What it carries.
    pub load: Load,
    /// Whether it says that it is short of memory: it saves or sheds.
    pub short: bool,
}

/// Why the limit changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// What was held came near it, and the load explains it.
    Load {
        /// Bytes held.
        held: u64,
        /// Connections that were open.
        connections: u64,
    },
    /// What was held for nearly all of the time is more, or less.
    Review {
        /// Bytes held at most for that share of the time.
        held: u64,
    },
}

/// Another limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Bytes before.
    pub from: u64,
    /// Bytes from now on.
    pub to: u64,
    /// Why.
    pub why: Why,
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        write!(f, "from {} MiB to {} MiB: ", mib(self.from), mib(self.to))?;
        match self.why {
            Why::Load { held, connections } => {
                write!(f, "{} MiB in use with {connections} connections", mib(held))
            }
            Why::Review { held } => write!(f, "{} MiB in use, nearly all of the time", mib(held)),
        }
    }
}

/// What a next agent should know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The limit in bytes; 0: there is none yet.
    pub limit: u64,
    /// How much was held for how long: number of the grain → milliseconds.
    held: BTreeMap<u64, u64>,
    /// Watched since the last review, in milliseconds.
    watched_ms: u64,
}

impl Memory {
    /// Of a proxy of which nothing is known but what others of its service were given.
    pub fn beginning_with(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }
}

/// The size of one proxy.
#[derive(Clone, Debug)]
pub struct Size {
    policy: Policy,
    bounds: Bounds,
    memory: Memory,
    /// What load explained when, the largest first and the oldest first: none is followed by one that is larger.
    explained: VecDeque<(Instant, u64)>,
    last: Option<(Instant, u64)>,
    grown: Option<Instant>,
    unexplained: bool,
}

impl Size {
    /// Goes on from `memory`, within `bounds`.
    pub fn new(policy: Policy, bounds: Bounds, mut memory: Memory) -> Self {
        memory.limit = bounds.fit(memory.limit);
        let (explained, last, grown) = (VecDeque::new(), None, None);
        Self { policy, bounds, memory, explained, last, grown, unexplained: false }
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> u64 {
        self.memory.limit
    }

    /// For a next agent.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What is held is near the limit, and no load explains it: it leaks, or one connection takes what many could.
    pub fn is_unexplained(&self) -> bool {
        self.unexplained
    }

    /// The limit is this one after all: another one could not be set.
    pub fn is(&mut self, limit: u64) {
        self.memory.limit = limit;
    }

    /// Takes a look in.
    pub fn look(&mut self, now: Instant, look: Look) -> Option<Resize> {
        let before = self.last.replace((now, look.held));
        let passed = before.map_or(Duration::ZERO, |(then, _)| now.saturating_duration_since(then));
        self.watch(look.held, passed.min(LONGEST_LOOK));
        // Whole grains of it.
        let explained = self.explain(now, look.load) / GRAIN * GRAIN;
        let soon = self.soon(look.held, before.map(|(_, held)| held), passed);
        // One that says it is short while it holds little is short of somebody else's memory.
        let short = look.short && look.held >= self.memory.limit / 2;
        let near = short || soon >= percent(self.memory.limit, self.policy.grow_at);
        self.unexplained = near && explained <= self.memory.limit;
        if near {
            return self.grow(now, look, soon, explained);
        }
        if self.memory.watched_ms >= milliseconds(self.policy.review) {
            return self.review(look.held, explained);
        }
        None
    }

    fn watch(&mut self, held: u64, passed: Duration) {
        let passed = milliseconds(passed);
        *self.memory.held.entry(held.min(self.bounds.most) / GRAIN).or_default() += passed;
        self.memory.watched_ms = self.memory.watched_ms.saturating_add(passed);
    }

    /// The most bytes that load of now or of a while ago explains.
    fn explain(&mut self, now: Instant, load: Load) -> u64 {
        let policy = &self.policy;
        let parts = [
            (load.connections, policy.per_connection),
            (load.requests, policy.per_request),
            (load.endpoints, policy.per_endpoint),
        ];
        let bytes = parts
            .into_iter()
            .fold(self.bounds.least, |sum, (number, each)| sum.saturating_add(number.saturating_mul(each)));
        while self.explained.back().is_some_and(|(_, less)| *less <= bytes) {
            self.explained.pop_back();
        }
        if self.explained.len() < MAX_LOADS {
            self.explained.push_back((now, bytes));
        }
        let lag = self.policy.lag;
        while self.explained.len() > 1
            && self.explained.front().is_some_and(|(then, _)| now.saturating_duration_since(*then) > lag)
        {
            self.explained.pop_front();
        }
        self.explained.front().map_or(bytes, |(_, most)| *most)
    }

    /// What will be held in a moment if it goes on like this.
    fn soon(&self, held: u64, before: Option<u64>, passed: Duration) -> u64 {
        let more = held.saturating_sub(before.unwrap_or(held));
        // A second at least, so that a step between two looks close to each other is no flood.
        let passed = milliseconds(passed).max(1000);
        held.saturating_add(more.saturating_mul(milliseconds(self.policy.ahead)) / passed)
    }

    fn grow(&mut self, now: Instant, look: Look, soon: u64, explained: u64) -> Option<Resize> {
        let from = self.memory.limit;
        let early = self.grown.is_some_and(|then| now.saturating_duration_since(then) < self.policy.pause);
        let by = self.policy.grow_by.saturating_mul(if soon > from { 2 } else { 1 });
        let step = grains(percent(from, by.saturating_add(100)));
        let to = self.bounds.fit(step.min(explained));
        if early || to <= from {
            return None;
        }
        self.grown = Some(now);
        self.memory.limit = to;
        let why = Why::Load { held: look.held, connections: look.load.connections };
        Some(Resize { from, to, why })
    }

    fn review(&mut self, held: u64, explained: u64) -> Option<Resize> {
        let most = self.quantile();
        for weight in self.memory.held.values_mut() {
            *weight = percent(*weight, self.policy.memory.min(100));
        }
        self.memory.held.retain(|_, weight| *weight > 0);
        self.memory.watched_ms = 0;
        let from = self.memory.limit;
        let with_headroom = |bytes: u64| grains(percent(bytes, self.policy.headroom.saturating_add(100)));
        let wanted = with_headroom(most).max(with_headroom(held));
        let step = |share: u64| grains(percent(from, share));
        let to = if wanted > from {
            wanted.min(step(self.policy.grow_by.saturating_add(100))).min(explained).max(from)
        } else {
            wanted.max(step(100_u64.saturating_sub(self.policy.shrink_by)))
        };
        let to = self.bounds.fit(to);
        self.memory.limit = to;
        (to != from).then_some(Resize { from, to, why: Why::Review { held: most } })
    }

    /// What was held at most, for the share of the time that counts.
    fn quantile(&self) -> u64 {
        let all: u64 = self.memory.held.values().fold(0, |sum, weight| sum.saturating_add(*weight));
        let wanted = percent(all, self.policy.quantile.min(100));
        let mut sum = 0_u64;
        for (grain, weight) in &self.memory.held {
            sum = sum.saturating_add(*weight);
            if sum >= wanted {
                return (grain + 1).saturating_mul(GRAIN);
            }
        }
        0
    }
}

fn percent(value: u64, share: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(share) / 100).unwrap_or(u64::MAX)
}

/// The next multiple of [`GRAIN`].
fn grains(bytes: u64) -> u64 {
    bytes.div_ceil(GRAIN).saturating_mul(GRAIN)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
