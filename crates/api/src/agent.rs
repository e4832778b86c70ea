//! The agents' gRPC service `outrider.agent.v1.Agents`, served on the same mTLS port as ADS.
//!
//! `Join` needs a token and no client certificate; `Sign` and `Session` need the agent's certificate. A
//! `Session` is the fact stream of one host: it starts with [`Hello`]; every other fact replaces what was
//! known under its key, so a new session re-sends everything and nothing depends on history.

#![allow(missing_docs, clippy::all, clippy::unwrap_used, unreachable_pub)]

/// Generated client.
pub use agents_client::AgentsClient;
/// Generated server.
pub use agents_server::{Agents, AgentsServer};

pub mod life;
mod proxies;

pub use proxies::*;

include!(concat!(env!("OUT_DIR"), "/outrider.agent.v1.Agents.rs"));

/// Key of the metadata in which a call that is refused says why, as one of the words below.
pub const REASON: &str = "outrider-reason";
/// The node was deleted, or its name belongs to another key by now. A new token admits it again.
pub const NODE_NOT_ADMITTED: &str = "node-not-admitted";
/// The identity asked for is neither the node's own nor a service's.
pub const IDENTITY_NOT_GIVEN: &str = "identity-not-given";
/// The service asked for is not declared.
pub const SERVICE_NOT_DECLARED: &str = "service-not-declared";
/// The node joined with a token that does not name the service asked for.
pub const SERVICE_OUT_OF_SCOPE: &str = "service-out-of-scope";

/// Why a command is refused: [`Answer::reason`].
pub mod refusal {
    /// The proxy is being stopped.
    pub const STOPPING: &str = "stopping";
    /// The release is in quarantine there.
    pub const QUARANTINED: &str = "quarantined";
    /// The release is not in quarantine there, so there is nothing to pardon.
    pub const NOT_QUARANTINED: &str = "not_quarantined";
    /// There is nothing to go back to.
    pub const NOTHING_BEFORE: &str = "nothing_before";
    /// A rollback is under way.
    pub const ROLLING_BACK: &str = "rolling_back";
    /// The proxy was not started yet.
    pub const NOT_STARTED: &str = "not_started";
    /// No such instance runs on the node.
    pub const UNKNOWN_PROXY: &str = "unknown_proxy";
    /// The release is not on the node, or is no release.
    pub const UNKNOWN_RELEASE: &str = "unknown_release";
    /// The engine cannot do this while it runs.
    pub const NOT_SUPPORTED: &str = "not_supported";
    /// Too many commands are under way on the node.
    pub const BUSY: &str = "busy";
    /// The agent does not know the command: it is older than the control plane.
    pub const UNKNOWN_COMMAND: &str = "unknown_command";
}

/// Redeems a join token.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JoinRequest {
    /// The whole token as printed by `outrider token create`.
    #[prost(string, tag = "1")]
    pub token: String,
    /// The node's name: an RFC 1123 subdomain, unique among live nodes.
    #[prost(string, tag = "2")]
    pub node: String,
    /// Certificate signing request, DER. Only its key is used.
    #[prost(bytes = "vec", tag = "3")]
    pub csr: Vec<u8>,
}

/// The agent's identity.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JoinResponse {
    #[prost(string, tag = "1")]
    pub trust_domain: String,
    /// Leaf first, then issuers; DER.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub chain: Vec<Vec<u8>>,
    /// Trust bundle; DER.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub bundle: Vec<Vec<u8>>,
}

/// Asks for a certificate: an SVID of a declared service, or the agent's own again.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SignRequest {
    /// The SPIFFE ID wanted.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// Certificate signing request, DER. Only its key is used.
    #[prost(bytes = "vec", tag = "2")]
    pub csr: Vec<u8>,
}

/// The certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SignResponse {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub chain: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub bundle: Vec<Vec<u8>>,
}

/// Agent → control plane.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Fact {
    #[prost(oneof = "FactKind", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub kind: Option<FactKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum FactKind {
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// All instances of the host, whenever one of them changed.
    #[prost(message, tag = "2")]
    Instances(Instances),
    /// Resources a proxy newly has in use, or refused.
    #[prost(message, tag = "3")]
    Applied(Applied),
    /// Traffic numbers of a proxy, every few seconds.
    #[prost(message, tag = "4")]
    Traffic(Traffic),
    /// Sent every [`Welcome::heartbeat_ms`]; without one for three intervals the host's endpoints are gone.
    #[prost(message, tag = "5")]
    Heartbeat(Heartbeat),
    /// Something happened to a proxy. A new session sends the latest ones again: a number that was seen is no news.
    #[prost(message, boxed, tag = "6")]
    Occurred(Box<Occurred>),
    /// Where a proxy is in its life, whenever anything but times changed.
    #[prost(message, boxed, tag = "7")]
    ProxyStatus(Box<ProxyStatus>),
    /// What became of a [`Command`].
    #[prost(message, boxed, tag = "8")]
    Answer(Box<Answer>),
}

/// Something that moved or ended a process of a proxy.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Occurred {
    /// `NS/INSTANCE`.
    #[prost(string, tag = "1")]
    pub proxy: String,
    /// `NS/SERVICE`.
    #[prost(string, tag = "2")]
    pub service: String,
    /// Unique on its node; later ones have larger ones.
    #[prost(uint64, tag = "3")]
    pub number: u64,
    /// When, by the node's clock, in milliseconds since 1970.
    #[prost(uint64, tag = "4")]
    pub time_ms: u64,
    /// Which process in the proxy's life.
    #[prost(uint64, tag = "5")]
    pub generation: u64,
    #[prost(string, tag = "6")]
    pub engine: String,
    #[prost(string, tag = "7")]
    pub release: String,
    /// `took_over`, `passed`, `put_back`, `ended`, `resized` or `drained`.
    #[prost(string, tag = "8")]
    pub happened: String,
    /// One word: `signal`, `panic`, `out_of_memory`, `hung`, `upgrade`, `probation` and so on.
    #[prost(string, tag = "9")]
    pub cause: String,
    /// One sentence for people.
    #[prost(string, tag = "10")]
    pub text: String,
    /// Version of the configuration it had in use; empty if none.
    #[prost(string, tag = "11")]
    pub configuration: String,
    #[prost(uint64, tag = "12")]
    pub uptime_ms: u64,
    /// Resident memory when it was last seen, in bytes; 0 if never.
    #[prost(uint64, tag = "13")]
    pub resident_bytes: u64,
    /// What was open and was cut, as far as is known.
    #[prost(uint64, tag = "14")]
    pub lost_connections: u64,
    #[prost(uint64, tag = "15")]
    pub lost_requests: u64,
    /// What was done, one word: `nothing`, `served_by`, `restarted`, `backed_off`, `put_back`, `rolled_back` or
    /// `tried_again`.
    #[prost(string, tag = "16")]
    pub next: String,
    /// The generation that serves next; 0 if that is open.
    #[prost(uint64, tag = "17")]
    pub next_generation: u64,
    /// Pause before the next start or attempt.
    #[prost(uint64, tag = "18")]
    pub next_pause_ms: u64,
    /// After going back: the release that runs next. Else empty.
    #[prost(string, tag = "19")]
    pub next_release: String,
    /// How the process ended, in words; empty if none did.
    #[prost(string, tag = "20")]
    pub exit: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    #[prost(string, tag = "1")]
    pub node: String,
    /// Version of the agent.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Address other hosts reach this one at.
    #[prost(string, tag = "3")]
    pub address: String,
    /// Where the host is: at most [`MAX_ZONE`] letters, digits, `-`, `_` and `.`; empty if that was not said. Anything else
    /// counts as empty. Missing from agents before this one.
    #[prost(string, tag = "4")]
    pub zone: String,
}

/// Longest name of a zone, in bytes.
pub const MAX_ZONE: usize = 63;

/// Whether a text can be the name of a zone.
pub fn is_zone(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=MAX_ZONE).contains(&text.len()) && text.bytes().all(fits)
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Heartbeat {
    /// What does not work on this host beside its instances, a sentence each; at most [`MAX_PROBLEMS`] of at most
    /// [`MAX_PROBLEM`] bytes are kept. Missing from agents before this one.
    #[prost(string, repeated, tag = "1")]
    pub problems: Vec<String>,
}

/// Most problems of a host that are kept.
pub const MAX_PROBLEMS: usize = 16;

/// Longest text of a problem that is kept, in bytes.
pub const MAX_PROBLEM: usize = 512;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Instances {
    #[prost(message, repeated, tag = "1")]
    pub instances: Vec<Instance>,
}

/// One running copy of a service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Instance {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub service: String,
    /// `SERVICE-xxxxx`, unique in the namespace.
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(enumeration = "InstanceState", tag = "4")]
    pub state: i32,
    /// Where its proxy takes connections from other proxies, per port.
    #[prost(message, repeated, tag = "5")]
    pub endpoints: Vec<InstanceEndpoint>,
    /// `native` or `envoy`, as running.
    #[prost(string, tag = "6")]
    pub engine: String,
    /// Version of the engine, as running; empty before it said so.
    #[prost(string, tag = "7")]
    pub engine_version: String,
    /// Process id of the proxy; 0 while none runs.
    #[prost(uint32, tag = "8")]
    pub proxy_pid: u32,
    /// Process id of the application; 0 while none runs.
    #[prost(uint32, tag = "9")]
    pub app_pid: u32,
    /// Why it is in this state, for people; empty if there is nothing to say.
    #[prost(string, tag = "10")]
    pub reason: String,
    /// Times the proxy was started again.
    #[prost(uint32, tag = "11")]
    pub restarts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum InstanceState {
    /// Its proxy is being prepared, or the application has not answered on its ports yet.
    Starting = 0,
    /// In the endpoint set.
    Ready = 1,
    /// Leaving: out of the endpoint set, finishing what is open.
    Draining = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InstanceEndpoint {
    /// The port's name.
    #[prost(string, tag = "1")]
    pub port: String,
    #[prost(string, tag = "2")]
    pub address: String,
    #[prost(uint32, tag = "3")]
    pub number: u32,
}

/// What one proxy did with resources. Names are unscoped, as the proxy sees them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Applied {
    /// `NS/INSTANCE`.
    #[prost(string, tag = "1")]
    pub proxy: String,
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Now in use.
    #[prost(message, repeated, tag = "3")]
    pub acked: Vec<ResourceVersion>,
    /// Now gone from the proxy.
    #[prost(string, repeated, tag = "4")]
    pub removed: Vec<String>,
    /// Refused; the earlier version, if any, stays in use.
    #[prost(message, repeated, tag = "5")]
    pub refused: Vec<ResourceVersion>,
    /// The engine's words on a refusal.
    #[prost(string, tag = "6")]
    pub error: String,
    /// Forget everything known of this proxy and type before reading this fact.
    #[prost(bool, tag = "7")]
    pub reset: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceVersion {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

/// Totals of one proxy since its process started.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Traffic {
    /// `NS/INSTANCE`.
    #[prost(string, tag = "1")]
    pub proxy: String,
    #[prost(message, repeated, tag = "2")]
    pub listeners: Vec<ListenerTraffic>,
    /// Resident memory in bytes; 0 if unknown.
    #[prost(uint64, tag = "3")]
    pub resident_bytes: u64,
    /// Of each cluster it calls. Missing from agents before this one.
    #[prost(message, repeated, tag = "4")]
    pub clusters: Vec<ClusterTraffic>,
    /// How many more endpoints are left alone than the clusters name: [`MAX_UNUSED`] of a proxy are named.
    #[prost(uint64, tag = "5")]
    pub more_unused: u64,
}

/// Most endpoints that are left alone of which a proxy's numbers tell.
pub const MAX_UNUSED: usize = 64;

/// Longest text of why an endpoint is left alone, in characters.
pub const MAX_UNUSED_WHY: usize = 256;

#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterTraffic {
    /// Name of the cluster, `outbound/…`.
    #[prost(string, tag = "1")]
    pub cluster: String,
    /// Endpoints known now, those of services it fails over to among them.
    #[prost(uint64, tag = "2")]
    pub endpoints: u64,
    /// Requests sent again.
    #[prost(uint64, tag = "3")]
    pub retries: u64,
    /// Endpoints ejected so far.
    #[prost(uint64, tag = "4")]
    pub ejections: u64,
    /// Endpoints that are left alone now, or some of them: each cluster has its first few named before any has more.
    #[prost(message, repeated, tag = "5")]
    pub unused: Vec<UnusedEndpoint>,
    /// How many are left alone now, named or not. 0 from agents before this one: then those that are named.
    #[prost(uint64, tag = "6")]
    pub unused_count: u64,
    /// Requests that were not sent again because the budget of retries was used up.
    #[prost(uint64, tag = "7")]
    pub retries_refused: u64,
}

/// An endpoint that is left alone while there are others.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnusedEndpoint {
    /// `IP:PORT`.
    #[prost(string, tag = "1")]
    pub address: String,
    /// Why, in the words of the proxy; at most [`MAX_UNUSED_WHY`] characters are kept.
    #[prost(string, tag = "2")]
    pub why: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListenerTraffic {
    /// Listener name, `inbound/…` or `outbound/…`.
    #[prost(string, tag = "1")]
    pub listener: String,
    #[prost(uint64, tag = "2")]
    pub connections: u64,
    #[prost(uint64, tag = "3")]
    pub requests: u64,
    /// Responses of class 5xx, calls of gRPC that a server failed, and connections the proxy ended with a reason.
    #[prost(uint64, tag = "4")]
    pub errors: u64,
    #[prost(message, repeated, tag = "5")]
    pub reasons: Vec<ReasonCount>,
    #[prost(uint64, tag = "6")]
    pub latency_us_sum: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReasonCount {
    #[prost(string, tag = "1")]
    pub reason: String,
    #[prost(uint64, tag = "2")]
    pub count: u64,
}

/// Control plane → agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Instruction {
    #[prost(oneof = "InstructionKind", tags = "1, 2, 3, 4, 5")]
    pub kind: Option<InstructionKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum InstructionKind {
    /// Answer to [`Hello`].
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    /// The trust bundle changed.
    #[prost(message, tag = "2")]
    Bundle(Bundle),
    /// All instances of the host that do not count, whenever one of them changed; none of them at first.
    #[prost(message, tag = "3")]
    Refused(Refused),
    /// Something to be done with a proxy.
    #[prost(message, tag = "4")]
    Command(Command),
    /// All instances of the host that drain and that no live proxy calls any more, whenever these are others; none of
    /// them at first.
    #[prost(message, tag = "5")]
    Withdrawn(Withdrawn),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Withdrawn {
    /// `NS/INSTANCE`.
    #[prost(string, repeated, tag = "1")]
    pub instances: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Refused {
    #[prost(message, repeated, tag = "1")]
    pub instances: Vec<RefusedInstance>,
}

/// A reported instance that does not count: it is in no endpoint set, and gets no resources.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RefusedInstance {
    /// `NS/INSTANCE`.
    #[prost(string, tag = "1")]
    pub instance: String,
    #[prost(enumeration = "RefusalReason", tag = "2")]
    pub reason: i32,
    /// One sentence, for people.
    #[prost(string, tag = "3")]
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RefusalReason {
    /// A reason of a newer control plane.
    Other = 0,
    /// Its namespace, service or name is not a DNS label.
    BadName = 1,
    /// More endpoints than an instance may have.
    TooManyEndpoints = 2,
    /// An endpoint has another address than its host.
    ForeignAddress = 3,
    /// An endpoint without a port name, an address or a number.
    BadEndpoint = 4,
    /// Another live host has an instance of this name.
    NameTaken = 5,
    /// The node joined with a token that does not name this service.
    OutOfScope = 6,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    #[prost(string, tag = "1")]
    pub trust_domain: String,
    #[prost(uint32, tag = "2")]
    pub heartbeat_ms: u32,
    #[prost(message, optional, tag = "3")]
    pub bundle: Option<Bundle>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Bundle {
    /// DER.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub certificates: Vec<Vec<u8>>,
}
