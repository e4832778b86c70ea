//! Proxies' lives on the wire: what happened to them, where they are, and what is asked of them.
//!
//! Holds: words (`cause`, `state`, …) are stable and lower case, for programs; a peer passes over those it does not
//! know. Durations are in milliseconds, as of the moment of sending, so that no clock has to agree with another.

/// What is run.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Release {
    /// The kind of proxy, `native` or `envoy`.
    #[prost(string, tag = "1")]
    pub engine: String,
    /// Its version, or `builtin`.
    #[prost(string, tag = "2")]
    pub release: String,
    /// Whatever else takes a new process when it changes; usually empty.
    #[prost(string, tag = "3")]
    pub shape: String,
}

/// Where a proxy is in its life: sent whenever anything but times changed, and with every [`Answer`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProxyStatus {
    /// `NS/INSTANCE`.
    #[prost(string, tag = "1")]
    pub proxy: String,
    /// What shall run; absent before the start.
    #[prost(message, optional, tag = "2")]
    pub target: Option<Release>,
    /// The generation that accepts; 0 if none does.
    #[prost(uint64, tag = "3")]
    pub serving: u64,
    /// Every live generation, the oldest first.
    #[prost(message, repeated, tag = "4")]
    pub generations: Vec<GenerationStatus>,
    /// The change under way.
    #[prost(message, optional, tag = "5")]
    pub change: Option<ChangeStatus>,
    /// What comes after it.
    #[prost(message, optional, tag = "6")]
    pub queued: Option<QueuedChange>,
    /// What ran well, the newest first.
    #[prost(message, repeated, tag = "7")]
    pub good: Vec<Release>,
    /// What is not tried again until it is pardoned.
    #[prost(message, repeated, tag = "8")]
    pub quarantined: Vec<QuarantinedRelease>,
    /// Crashes in the last minute.
    #[prost(uint32, tag = "9")]
    pub recent_crashes: u32,
    /// It crashes again and again: starts are paused.
    #[prost(bool, tag = "10")]
    pub crash_loop: bool,
    /// Until the next start, while starts are paused.
    #[prost(uint64, optional, tag = "11")]
    pub next_start_ms: Option<u64>,
    #[prost(enumeration = "InboundState", tag = "12")]
    pub inbound: i32,
    /// Until the deadline of its stop.
    #[prost(uint64, optional, tag = "13")]
    pub stop_ms: Option<u64>,
    /// Path of its log on its node; empty if it has none.
    #[prost(string, tag = "14")]
    pub log: String,
    /// Releases of its engine that are on its node.
    #[prost(string, repeated, tag = "15")]
    pub releases: Vec<String>,
    #[prost(message, optional, tag = "16")]
    pub isolation: Option<Isolation>,
    /// Age of its configuration, if that is the last good one from disk; absent if it is the control plane's.
    #[prost(uint64, optional, tag = "17")]
    pub last_good_age_ms: Option<u64>,
    /// Connections that a drain by request cut at its deadline; absent before it has ended.
    #[prost(uint64, optional, tag = "18")]
    pub inbound_cut: Option<u64>,
    /// Until the deadline of a drain by request; absent once it has ended.
    #[prost(uint64, optional, tag = "19")]
    pub inbound_left_ms: Option<u64>,
    /// The certificate of its service that its agent has; absent before there is one.
    #[prost(message, optional, tag = "20")]
    pub certificate: Option<Certificate>,
}

/// When a certificate is good and when it is replaced, in milliseconds since 1970 by the clock of its node.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Certificate {
    #[prost(uint64, tag = "1")]
    pub not_before_ms: u64,
    #[prost(uint64, tag = "2")]
    pub not_after_ms: u64,
    /// From then on the next one is asked for.
    #[prost(uint64, tag = "3")]
    pub renew_ms: u64,
}

/// Whether callers get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum InboundState {
    /// Connections are taken.
    Open = 0,
    /// None is taken any more, and what is open is finished.
    Draining = 1,
    /// Nothing is open any more.
    Drained = 2,
}

/// Connections that callers opened, by what they carry.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct OpenConnections {
    /// HTTP, with a request under way or idle, and what is not clear yet.
    #[prost(uint64, tag = "1")]
    pub http: u64,
    /// HTTP that became a WebSocket.
    #[prost(uint64, tag = "2")]
    pub websocket: u64,
    /// Bytes.
    #[prost(uint64, tag = "3")]
    pub tcp: u64,
}

/// One process of a proxy.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GenerationStatus {
    /// Its number in the proxy's life, from 1.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    #[prost(message, optional, tag = "2")]
    pub target: Option<Release>,
    /// `fetching`, `starting`, `warming`, `held`, `opening`, `accepting`, `pausing`, `paused`, `draining` or `killed`.
    #[prost(string, tag = "3")]
    pub state: String,
    /// `serving`, `replacement`, `candidate`, `reserve` or `leaving`.
    #[prost(string, tag = "4")]
    pub role: String,
    /// How long it is in this state.
    #[prost(uint64, tag = "5")]
    pub since_ms: u64,
    /// Since it was started.
    #[prost(uint64, tag = "6")]
    pub uptime_ms: u64,
    /// Until its state's time is over, if that is bounded.
    #[prost(uint64, optional, tag = "7")]
    pub left_ms: Option<u64>,
    /// The version of its configuration; empty if it has none.
    #[prost(string, tag = "8")]
    pub configuration: String,
    /// Its SPIFFE ID; empty if it has none.
    #[prost(string, tag = "9")]
    pub identity: String,
    /// Why it goes: a word as in [`super::Occurred::cause`], and a sentence. Empty while it does not go.
    #[prost(string, tag = "10")]
    pub leaving: String,
    #[prost(string, tag = "11")]
    pub leaving_text: String,
    /// Its process id; 0 if it has none.
    #[prost(uint32, tag = "12")]
    pub pid: u32,
    /// The version it says it is; empty before it said so.
    #[prost(string, tag = "13")]
    pub version: String,
    /// What is left while it drains; absent before, and if it does not say.
    #[prost(message, optional, tag = "20")]
    pub open: Option<OpenConnections>,
}

/// A change under way.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ChangeStatus {
    /// `upgrade`, `rollback` or `restart`, or what made going back necessary.
    #[prost(string, tag = "1")]
    pub cause: String,
    /// One sentence for people.
    #[prost(string, tag = "2")]
    pub text: String,
    #[prost(message, optional, tag = "3")]
    pub from: Option<Release>,
    #[prost(message, optional, tag = "4")]
    pub to: Option<Release>,
    /// `waiting`, `preparing`, `probation` or `putting_back`.
    #[prost(string, tag = "5")]
    pub step: String,
    /// The generation it is about; 0 if there is none yet.
    #[prost(uint64, tag = "6")]
    pub generation: u64,
    /// Attempts so far, this one included.
    #[prost(uint32, tag = "7")]
    pub attempt: u32,
    /// Until the step's time is over, if that is bounded.
    #[prost(uint64, optional, tag = "8")]
    pub left_ms: Option<u64>,
}

/// What waits for the present change.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueuedChange {
    /// `upgrade` or `restart`.
    #[prost(string, tag = "1")]
    pub what: String,
    /// Of an upgrade: to what.
    #[prost(message, optional, tag = "2")]
    pub to: Option<Release>,
}

/// A release that is not tried again.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QuarantinedRelease {
    #[prost(string, tag = "1")]
    pub engine: String,
    #[prost(string, tag = "2")]
    pub release: String,
    /// Only with this shape; absent: with any.
    #[prost(string, optional, tag = "3")]
    pub shape: Option<String>,
    /// A word as in [`super::Occurred::cause`].
    #[prost(string, tag = "4")]
    pub cause: String,
    /// One sentence for people.
    #[prost(string, tag = "5")]
    pub text: String,
}

/// What a proxy may use of its host, and do there.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Isolation {
    /// Bytes; 0: not bounded.
    #[prost(uint64, tag = "1")]
    pub memory_max: u64,
    /// Thousandths of a processor; 0: not bounded.
    #[prost(uint32, tag = "2")]
    pub cpu_max_millis: u32,
    /// Processes and threads; 0: not bounded.
    #[prost(uint32, tag = "3")]
    pub pids_max: u32,
    /// Which of the limits its host cannot set, in words; empty: nothing is missing.
    #[prost(string, tag = "4")]
    pub missing: String,
    /// How the process that serves is confined, as was seen of it: any of `no_capabilities`, `no_new_privileges`,
    /// `system_calls` (only those it needs) and `file_system` (only what it needs).
    #[prost(string, repeated, tag = "5")]
    pub confined: Vec<String>,
    /// What of that is missing and why, in words; empty: nothing, or nothing runs yet.
    #[prost(string, tag = "6")]
    pub unconfined: String,
}

/// Something to be done with a proxy. Answered by exactly one [`Answer`], once it is under way or refused.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Command {
    /// To be repeated in the answer. Never used twice; one that comes twice is carried out once.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// `NS/INSTANCE`.
    #[prost(string, tag = "2")]
    pub proxy: String,
    /// Absent: a command of a newer control plane, to be refused as `unknown_command`.
    #[prost(oneof = "Action", tags = "3, 4, 5, 6, 7")]
    pub action: Option<Action>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Action {
    /// Move to a release. Queued while another change is under way; the newest wins.
    #[prost(message, tag = "3")]
    Upgrade(Upgrade),
    /// Back to what ran before, which ends a change under way.
    #[prost(message, tag = "4")]
    Rollback(Rollback),
    /// A new process of the same release.
    #[prost(message, tag = "5")]
    Restart(Restart),
    /// Withdraw the endpoints and finish what callers opened. The application and its own calls go on.
    #[prost(message, tag = "6")]
    DrainInbound(DrainInbound),
    /// Take a release out of quarantine.
    #[prost(message, tag = "7")]
    Pardon(Pardon),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Upgrade {
    #[prost(string, tag = "1")]
    pub release: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Rollback {}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Restart {}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct DrainInbound {
    /// What open connections get; the agent's own bound if 0 or longer than that.
    #[prost(uint64, tag = "1")]
    pub within_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Pardon {
    #[prost(string, tag = "1")]
    pub release: String,
}

/// What became of a [`Command`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    /// The command's.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// It is under way, or queued. How far it is, is in the statuses that follow.
    #[prost(bool, tag = "2")]
    pub accepted: bool,
    /// Why not: one of the words in [`super::refusal`]. Empty if accepted.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// Why not, as one sentence for people. Empty if accepted.
    #[prost(string, tag = "4")]
    pub text: String,
    /// The proxy after the command was taken in, if there is such a proxy.
    #[prost(message, optional, tag = "5")]
    pub status: Option<ProxyStatus>,
}

impl ProxyStatus {
    /// Whether this says anything that `before` did not, beside time passing.
    pub fn is_news_after(&self, before: &Self) -> bool {
        self.timeless() != before.timeless()
    }

    /// The same at no particular moment.
    fn timeless(&self) -> Self {
        let mut status = self.clone();
        let hide = |left: &mut Option<u64>| {
            if let Some(left) = left {
                *left = 0;
            }
        };
        for generation in &mut status.generations {
            (generation.since_ms, generation.uptime_ms) = (0, 0);
            hide(&mut generation.left_ms);
        }
        if let Some(change) = &mut status.change {
            hide(&mut change.left_ms);
        }
        hide(&mut status.next_start_ms);
        hide(&mut status.stop_ms);
        hide(&mut status.inbound_left_ms);
        hide(&mut status.last_good_age_ms);
        status
    }
}
