//! Bodies about the lives of proxies: where they are, what happened to them, and what can be asked of them.
//!
//! Words (`cause`, `state`, …) are stable; a reader passes over those it does not know.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::InstanceView;

fn is_false(value: &bool) -> bool {
    !*value
}

/// What is run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseView {
    /// The kind of proxy.
    pub engine: String,
    /// Its version, or `builtin`: what came with the agent.
    pub release: String,
    /// Whatever else takes a new process when it changes; usually empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub shape: String,
}

impl std::fmt::Display for ReleaseView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.engine, self.release)?;
        if self.shape.is_empty() { Ok(()) } else { write!(f, " ({})", self.shape) }
    }
}

/// Where a proxy is in its life. Times are as of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyLife {
    /// Milliseconds since its agent said so.
    pub age_ms: u64,
    /// What shall run; absent before the start.
    pub target: Option<ReleaseView>,
    /// The generation that accepts; 0 if none does.
    pub serving: u64,
    /// Every live generation, the oldest first.
    pub generations: Vec<GenerationView>,
    /// The change under way.
    pub change: Option<ProxyChangeView>,
    /// What comes after it: `restart`, or `upgrade` with the release.
    pub queued: Option<QueuedView>,
    /// What ran well, the newest first.
    pub good: Vec<ReleaseView>,
    /// What is not tried again until it is pardoned.
    pub quarantined: Vec<QuarantineView>,
    /// Crashes in the last minute.
    pub recent_crashes: u32,
    /// It crashes again and again: starts are paused.
    pub crash_loop: bool,
    /// Milliseconds until the next start, while starts are paused.
    pub next_start_ms: Option<u64>,
    /// `open`, `draining` or `drained`: whether callers get in.
    pub inbound: String,
    /// Connections that a drain by request cut at its deadline; absent before it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound_cut: Option<u64>,
    /// Milliseconds until the deadline of a drain by request; absent once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound_left_ms: Option<u64>,
    /// Milliseconds until the deadline of its stop.
    pub stop_ms: Option<u64>,
    /// Path of its log on its node; empty if unknown.
    pub log: String,
    /// Releases of its engine that are on its node.
    pub releases: Vec<String>,
    /// What it may use of its host.
    pub isolation: Option<IsolationView>,
    /// Milliseconds since its configuration was last good, if it runs with that one because its agent has no newer.
    pub last_good_age_ms: Option<u64>,
    /// The certificate of its service, as its agent has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateView>,
}

/// When a certificate is good and when it is replaced, in milliseconds since 1970 by the clock of its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateView {
    /// It is good from then on.
    pub from_ms: u64,
    /// It ends.
    pub until_ms: u64,
    /// From then on the next one is asked for.
    pub renew_ms: u64,
}

/// One process of a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GenerationView {
    /// Its number in the proxy's life, from 1.
    pub generation: u64,
    /// What it runs.
    pub target: ReleaseView,
    /// `fetching`, `starting`, `warming`, `held`, `opening`, `accepting`, `pausing`, `paused`, `draining` or `killed`.
    pub state: String,
    /// `serving`, `replacement`, `candidate`, `reserve` or `leaving`.
    pub role: String,
    /// Milliseconds in this state.
    pub since_ms: u64,
    /// Milliseconds since it was started.
    pub uptime_ms: u64,
    /// Milliseconds until its state's time is over, if that is bounded.
    pub left_ms: Option<u64>,
    /// Version of its configuration; empty if it has none.
    pub configuration: String,
    /// Its SPIFFE ID; empty if it has none.
    pub identity: String,
    /// Why it goes, as a word of [`ProxyEvent::cause`]; empty while it does not.
    pub leaving: String,
    /// The same as a sentence.
    pub leaving_text: String,
    /// Its process id; 0 if unknown.
    pub pid: u32,
    /// The version it says it is; empty before it said so.
    pub version: String,
    /// Connections that are left, while it drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<OpenView>,
}

/// Connections that callers opened, by what they carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OpenView {
    /// HTTP, with a request under way or idle.
    pub http: u64,
    /// WebSockets.
    pub websocket: u64,
    /// Streams of bytes.
    pub tcp: u64,
}

/// A change of a proxy that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyChangeView {
    /// `upgrade`, `rollback` or `restart`, or what made going back necessary.
    pub cause: String,
    /// The same as a sentence.
    pub text: String,
    /// From what.
    pub from: ReleaseView,
    /// To what.
    pub to: ReleaseView,
    /// `waiting`, `preparing`, `probation` or `putting_back`.
    pub step: String,
    /// The generation it is about; 0 if there is none yet.
    pub generation: u64,
    /// Attempts so far, this one included.
    pub attempt: u32,
    /// Milliseconds until the step's time is over, if that is bounded.
    pub left_ms: Option<u64>,
}

/// What waits for the present change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueuedView {
    /// `upgrade` or `restart`.
    pub what: String,
    /// Of an upgrade: to what.
    pub to: Option<ReleaseView>,
}

/// A release that is not tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineView {
    /// The engine.
    pub engine: String,
    /// The release.
    pub release: String,
    /// Only with this shape; absent: with any.
    pub shape: Option<String>,
    /// A word of [`ProxyEvent::cause`].
    pub cause: String,
    /// The same as a sentence.
    pub text: String,
}

/// What a proxy may use of its host, and do there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct IsolationView {
    /// Bytes of memory; 0: not bounded.
    pub memory_max: u64,
    /// Thousandths of a processor; 0: not bounded.
    pub cpu_max_millis: u32,
    /// Processes and threads; 0: not bounded.
    pub pids_max: u32,
    /// Which of the limits its host cannot set, in words; empty: nothing is missing.
    pub missing: String,
    /// How the process that serves is confined, as was seen of it: any of `no_capabilities`, `no_new_privileges`,
    /// `system_calls` (only those it needs) and `file_system` (only what it needs).
    #[serde(default)]
    pub confined: Vec<String>,
    /// What of that is missing and why, in words; empty: nothing, or nothing runs yet.
    #[serde(default)]
    pub unconfined: String,
}

/// Something that moved or ended a generation of a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyEvent {
    /// Where it is among the events: later ones have larger ones. Another one after a restart of the server.
    pub cursor: u64,
    /// On which node. Node and number together are this event's and no other's, for good.
    pub node: String,
    /// Its number on the node.
    pub number: u64,
    /// When, by the node's clock, in milliseconds since 1970.
    pub time_ms: u64,
    /// `NS/SERVICE`.
    pub service: String,
    /// `NS/INSTANCE`.
    pub proxy: String,
    /// To which generation.
    pub generation: u64,
    /// The kind of proxy.
    pub engine: String,
    /// What it ran.
    pub release: String,
    /// `took_over`, `passed`, `put_back`, `ended`, `resized` or `drained`.
    pub happened: String,
    /// One word: `exited`, `exit_code`, `signal`, `panic`, `out_of_memory`, `unknown`, `hung`, `fetch_failed`,
    /// `start_failed`, `not_ready`, `no_answer`, `probation`, `crash_loop`, `nobody_served`, `upgrade`, `rollback`,
    /// `restart`, `superseded`, `stop`, `drain` or `resized`.
    pub cause: String,
    /// All of it as one sentence.
    pub text: String,
    /// How the process ended, in words; empty if none did.
    pub exit: String,
    /// Version of its configuration; empty if it had none.
    pub configuration: String,
    /// Milliseconds since it was started.
    pub uptime_ms: u64,
    /// Resident memory when it was last seen, in bytes; 0 if never.
    pub resident_bytes: u64,
    /// Connections that were open and were cut.
    pub lost_connections: u64,
    /// Requests that were being served and were cut.
    pub lost_requests: u64,
    /// What was done: `nothing`, `served_by`, `restarted`, `backed_off`, `put_back`, `rolled_back` or `tried_again`.
    pub next: String,
    /// The generation that serves next; 0 if that is open.
    pub next_generation: u64,
    /// Milliseconds before the next start or attempt.
    pub next_pause_ms: u64,
    /// After going back: the release that runs next.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next_release: String,
}

/// `GET /v1/events`: events in the order they became known, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventList {
    /// The newest that pass the filters.
    pub events: Vec<ProxyEvent>,
    /// Ask with `since` this for what comes later.
    pub cursor: u64,
    /// There were more after `since` than were asked for, or than are kept.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cut: bool,
}

/// `POST /v1/proxies/{namespace}/{instance}/upgrade`, and `…/pardon`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReleaseRequest {
    /// `builtin`, or one of the releases on the proxy's node: at most 64 letters, digits and `._+-`.
    pub release: String,
}

/// `POST /v1/proxies/{namespace}/{instance}/drain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainRequest {
    /// Milliseconds that open connections get, up to 86,400,000; the agent's own bound if absent or longer than that.
    #[serde(default)]
    pub within_ms: Option<u64>,
}

/// A command that the proxy's agent has begun to carry out, or has queued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommandView {
    /// The proxy with its instance, as it is after the command was taken in.
    pub instance: InstanceView,
}
