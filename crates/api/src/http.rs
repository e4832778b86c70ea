//! Bodies of the control plane's HTTP API under `/v1`, as JSON. Field names are camelCase.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod proxies;

pub use proxies::*;

/// A named text with documents in it: a file, or standard input as `-`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// Shown in diagnostics; at most 4,096 bytes.
    pub name: String,
    /// YAML, one or more documents; at most 4 MiB over all sources.
    pub text: String,
}

/// `POST /v1/apply`. Everything is applied, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApplyRequest {
    /// What to apply.
    pub sources: Vec<Source>,
    /// Answer as if applied, change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Also compute which resources of which proxies change.
    #[serde(default)]
    pub proxies: bool,
    /// Also give each changed document as it was and as it would be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub documents: bool,
}

/// `POST /v1/delete`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeleteRequest {
    /// Objects by key.
    #[serde(default)]
    pub objects: Vec<ObjectKey>,
    /// Or every object declared in these sources.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// Delete services that others still call: their callers then get `unknown_service`.
    #[serde(default)]
    pub force: bool,
    /// What happens to everything in a namespace that is deleted.
    #[serde(default, skip_serializing_if = "NamespaceContents::is_default")]
    pub contents: NamespaceContents,
    /// Answer as if deleted, change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What happens to the objects in a namespace that is deleted, unless they are deleted by the same request anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceContents {
    /// The request is refused if there are any.
    #[default]
    Refuse,
    /// They are deleted with it.
    Delete,
    /// They stay, with the defaults of a namespace that nothing declares.
    Keep,
}

impl NamespaceContents {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectKey {
    /// `Namespace`, `Service`, `HTTPRoute`, `GRPCRoute`, `TCPRoute`, `ReferenceGrant`, `TrafficPolicy` or
    /// `AccessPolicy`.
    pub kind: String,
    /// Empty for a `Namespace`.
    #[serde(default)]
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Answer to apply and delete (200), or with diagnostics of severity error (422).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangeResponse {
    /// The store's revision after the change.
    pub revision: u64,
    /// What happened to each object.
    pub changes: Vec<ObjectChange>,
    /// Everything found, errors and warnings.
    pub diagnostics: Vec<DiagnosticView>,
    /// Present if asked for: what changes in which proxy.
    pub proxies: Vec<ProxyChange>,
}

/// What happened, or would happen, to an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectChange {
    /// The object.
    #[serde(flatten)]
    pub key: ObjectKey,
    /// What.
    pub action: ChangeAction,
    /// Only if asked for: the document as it was; absent if there was none or nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub before: Option<serde_json::Value>,
    /// Only if asked for: the document as it is to be; absent if there is to be none or nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub after: Option<serde_json::Value>,
}

impl ObjectChange {
    /// A change without its documents.
    pub fn new(key: ObjectKey, action: ChangeAction) -> Self {
        Self { key, action, before: None, after: None }
    }
}

/// Kinds of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangeAction {
    /// Was not there.
    Created,
    /// Differs.
    Updated,
    /// Is the same; its revision stays.
    Unchanged,
    /// Is gone.
    Deleted,
}

/// Resources of one proxy that change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyChange {
    /// `NS/INSTANCE`, or `NS/SERVICE` with a note if no instance runs.
    pub proxy: String,
    /// The resources.
    pub resources: Vec<ResourceChange>,
}

/// One resource that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceChange {
    /// `listener`, `route`, `cluster` or `endpoints`.
    pub kind: String,
    /// Resource name as the proxy sees it.
    pub name: String,
    /// What happens to it.
    pub action: ChangeAction,
}

/// A finding about a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiagnosticView {
    /// `error` or `warning`.
    pub severity: String,
    /// Stable code, like `unknown-field`.
    pub code: String,
    /// Name of the source.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// Characters from there that are meant; 0 if only the place is known.
    pub length: u32,
    /// One sentence.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// A stored object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectView {
    /// Its key.
    #[serde(flatten)]
    pub key: ObjectKey,
    /// Revision of its last change.
    pub revision: u64,
    /// The document as applied, as JSON.
    #[schema(value_type = Object)]
    pub document: serde_json::Value,
}

/// An effective value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveValue {
    /// Dotted path, like `timeouts.request`.
    pub path: String,
    /// As it would be written in YAML.
    pub value: String,
    /// `declared`, `namespace shop`, or `default`.
    pub origin: String,
    /// For defaults: why this one.
    pub ground: Option<String>,
}

/// `GET /v1/describe/{kind}/{namespace}/{name}` (namespace `-` for a Namespace).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DescribeView {
    /// The object.
    pub object: ObjectView,
    /// Every setting.
    pub values: Vec<EffectiveValue>,
    /// Services it may call.
    pub calls: Vec<String>,
    /// Services that may call it.
    pub called_by: Vec<String>,
    /// Running instances.
    pub instances: Vec<InstanceView>,
    /// Of a service: which of its endpoints callers leave alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_alone: Vec<LeftAloneView>,
    /// Of a service: up to how many more of its endpoints are left alone by callers that do not name all.
    #[serde(default)]
    pub more_left_alone: u64,
    /// Of a service that fails over: itself, and the services that take its calls as far as its endpoints fail, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub takers: Vec<TakerView>,
}

/// A service that takes calls, its own or those of another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TakerView {
    /// `NS/SERVICE`.
    pub service: String,
    /// Its endpoints at the ports that take these calls.
    pub endpoints: u64,
    /// Those that not every caller leaves alone.
    pub usable: u64,
}

/// An endpoint that callers leave alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeftAloneView {
    /// Its instance.
    pub instance: String,
    /// `IP:PORT`.
    pub address: String,
    /// Why, in the words of the first of these callers.
    pub why: String,
    /// Proxies that leave it alone.
    pub seen_by: u64,
    /// Proxies that call it, and say which endpoints they leave alone.
    pub callers: u64,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Name.
    pub name: String,
    /// Address other hosts reach it at.
    pub address: String,
    /// Where it is; empty if its agent was not told.
    #[serde(default)]
    pub zone: String,
    /// Version of its agent.
    pub version: String,
    /// Whether its session is up.
    pub connected: bool,
    /// Milliseconds since the last heartbeat.
    pub heartbeat_age_ms: u64,
    /// Instances on it.
    pub instances: u32,
    /// What it reports that does not count, instances above all: name and cause, one a line.
    #[serde(default)]
    pub refused: Vec<String>,
    /// What does not work there beside its instances, by its agent; as of the last heartbeat.
    #[serde(default)]
    pub problems: Vec<String>,
    /// What it may run.
    #[serde(default)]
    pub scope: NodeScope,
}

/// What a node may run and get identities for: services of these namespaces, and these services. With neither,
/// every service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeScope {
    /// Namespaces.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// Services, as `NS/SERVICE`.
    #[serde(default)]
    pub services: Vec<String>,
}

/// `DELETE /v1/nodes/{name}`: the node's certificate is good for nothing from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeDeleted {
    /// Its name.
    pub name: String,
    /// Instances it had, as `NS/INSTANCE`: none of them is an endpoint any more.
    pub instances: Vec<String>,
}

/// A running copy of a service, with its proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceView {
    /// Namespace.
    pub namespace: String,
    /// Service.
    pub service: String,
    /// `SERVICE-xxxxx`.
    pub name: String,
    /// Host.
    pub node: String,
    /// `starting`, `ready`, `draining`, `drained` (callers have gone, and its application may run on), `lost` (its host is
    /// silent), `refused` (it does not count), or `held` (it is gone by what its host says, and still an endpoint because
    /// too many went at once).
    pub state: String,
    /// Why, if there is something to say.
    pub reason: String,
    /// Port name → `IP:PORT` where its proxy takes connections.
    pub endpoints: BTreeMap<String, String>,
    /// Its proxy.
    pub proxy: ProxyView,
}

/// A managed proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyView {
    /// `native` or `envoy`.
    pub engine: String,
    /// Version running.
    pub version: String,
    /// Process id, 0 if none runs.
    pub pid: u32,
    /// `current`, `pending` or `rejected`.
    pub config: String,
    /// Names of resources it does not have in use yet, or refused, with the engine's words.
    pub behind: Vec<String>,
    /// Times it was started again.
    pub restarts: u32,
    /// Resident memory in bytes; 0 if unknown.
    pub resident_bytes: u64,
    /// Totals of its inbound listeners.
    pub inbound: TrafficView,
    /// Totals of its outbound listeners, by `NS/SERVICE`.
    pub outbound: BTreeMap<String, TrafficView>,
    /// What it knows of the endpoints of each service it calls or is led to, by `NS/SERVICE`. Absent before its agent said so.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub called: BTreeMap<String, CalledView>,
    /// How many more endpoints it leaves alone than are named there.
    #[serde(default)]
    pub more_unused: u64,
    /// Where it is in its life; absent before its agent said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<ProxyLife>,
    /// The last thing that happened to it, as far as is known here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<ProxyEvent>,
}

/// Totals of all processes of an instance's proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficView {
    /// Connections taken.
    pub connections: u64,
    /// HTTP requests.
    pub requests: u64,
    /// Responses of class 5xx, and connections ended with a reason.
    pub errors: u64,
    /// Sum of request times in microseconds.
    pub latency_us_sum: u64,
    /// By reason.
    pub reasons: BTreeMap<String, u64>,
}

/// What a proxy knows of the endpoints that calls of one service go to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CalledView {
    /// How many there are, of all its ports. Those of services that it fails over to are among them.
    pub endpoints: u64,
    /// Requests sent again.
    pub retries: u64,
    /// Requests that were not sent again because the budget of retries was used up.
    #[serde(default)]
    pub retries_refused: u64,
    /// Endpoints ejected so far.
    pub ejections: u64,
    /// Endpoints that are left alone now: those that are named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unused: Vec<UnusedView>,
    /// How many are left alone now, named or not.
    #[serde(default)]
    pub unused_count: u64,
}

/// An endpoint that a proxy leaves alone, while there are others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnusedView {
    /// `IP:PORT`.
    pub address: String,
    /// Why, in the words of the proxy.
    pub why: String,
    /// `NS/SERVICE` whose endpoint it is; absent if it is none any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Its instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

/// `GET /v1/rollout?revision=N&waitMs=M`: which proxies have the configuration of revision N in use. Proxies
/// that drain are left out. Answers when all have, or after `waitMs` (at most 60,000).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutView {
    /// The revision asked about.
    pub revision: u64,
    /// Proxies that have it.
    pub current: Vec<String>,
    /// Proxies that do not yet.
    pub pending: Vec<ProxyBehind>,
    /// Proxies that refused part of it.
    pub rejected: Vec<ProxyBehind>,
    /// Proxies on hosts of which nothing is heard: they go on with what they had, and may still carry traffic.
    #[serde(default)]
    pub unreachable: Vec<ProxyBehind>,
}

/// Why a proxy is not current.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyBehind {
    /// `NS/INSTANCE`.
    pub proxy: String,
    /// Resource and cause, one a line.
    pub reasons: Vec<String>,
}

/// One resource of a proxy: `GET /v1/proxies/{namespace}/{instance}/resources`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceView {
    /// `listener`, `route`, `cluster` or `endpoints`.
    pub kind: String,
    /// Resource name as the proxy sees it.
    pub name: String,
    /// Version it should have; empty if it should be gone.
    pub version: String,
    /// `current`, `pending`, `rejected`, or `drained`: taken away because callers are to go elsewhere.
    pub state: String,
    /// What else is known: the version in use, or the engine's words.
    pub note: Option<String>,
}

/// `POST /v1/tokens`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// Seconds until it expires, 1–86,400; default 600.
    pub ttl_seconds: Option<u32>,
    /// What the node that uses it may run; everything by default. Up to 1,000 names.
    #[serde(default)]
    pub scope: NodeScope,
}

/// A join token: good for one agent, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenResponse {
    /// `ort1.ID.SECRET.PIN`; PIN is the SHA-256 of the root certificate, so that joining needs no other trust.
    pub token: String,
    /// Seconds it stays good.
    pub expires_in_seconds: u32,
    /// What the node that uses it may run.
    #[serde(default)]
    pub scope: NodeScope,
}

/// Body of every answer that is not 2xx (and not a 422 of apply or delete).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// Stable code.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// A line of `GET /v1/watch?revision=N` (newline-delimited JSON): changes after revision N.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WatchEvent {
    /// Revision of the change.
    pub revision: u64,
    /// What happened.
    pub change: ObjectChange,
    /// The new document; absent if deleted.
    #[schema(value_type = Option<Object>)]
    pub document: Option<serde_json::Value>,
}
