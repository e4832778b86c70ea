//! TrafficPolicy: how a service is called, beyond where requests go.
//!
//! A section that is written counts as a whole: fields left out in it have the default, not what the namespace's
//! policy says.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    DurationText, Group, GrpcName, HeaderMatchSpec, HeaderName, Label, Method, ParentKind, PathText,
    PositiveDurationText, RouteMetadata, ServiceName,
};

/// How a service is called: retries, ejection, health checks, limits, balancing, fail-over, faults, rates.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TrafficPolicyDocument {
    /// Version of the kind.
    pub(crate) api_version: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name, namespace and labels.
    pub(crate) metadata: RouteMetadata,
    /// The policy.
    pub(crate) spec: TrafficPolicySpec,
}

/// The policy.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TrafficPolicySpec {
    /// The service it is for. Default: every service of the namespace that has no policy of its own for a section.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target_ref: Option<TargetRef>,
    /// Trying again what failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retries: Option<RetriesSpec>,
    /// Leaving out endpoints that fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outlier_ejection: Option<OutlierSpec>,
    /// Asking endpoints how they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) health_check: Option<HealthCheckSpec>,
    /// Most of everything at once, per calling proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limits: Option<LimitsSpec>,
    /// Which endpoint is next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) balancing: Option<BalancingSpec>,
    /// Faults on purpose, at the callers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fault_injection: Option<FaultSpec>,
    /// Most requests that each instance takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rate_limit: Option<RateLimitSpec>,
    /// What each instance takes of a caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) inbound_limits: Option<InboundLimitsSpec>,
    /// Services that take the calls as far as the endpoints of the service itself fail or are not there, in this order;
    /// they come back with them. Its callers may be led there without calling them by name. Lists do not chain: what is
    /// declared for a service that is named here is for calls of its own. Needs `targetRef`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4))]
    pub(crate) failover: Option<Vec<FailoverRef>>,
}

/// A service of the same namespace that takes calls of another one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FailoverRef {
    /// Name of the service.
    pub(crate) name: ServiceName,
    /// Name of its port that takes the calls, whichever port was called. It speaks what the called one speaks. Default: the
    /// one of the same name as the called one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<Label>,
}

/// What each instance takes of a caller, at its own proxy. Callers' proxies let no more through than the defaults, whatever
/// is declared for who is called.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct InboundLimitsSpec {
    /// Size of a request's head, in KiB; what is larger is answered with 431.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 96))]
    pub(crate) max_request_headers_kb: Option<u32>,
    /// Fields of a request's head; more are answered with 431.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 200))]
    pub(crate) max_headers_count: Option<u32>,
    /// From the first byte of a request to the end of its head; later is answered with 408.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_headers_timeout: Option<PositiveDurationText>,
    /// Requests at once on a connection of HTTP/2; callers' proxies open another one for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) max_concurrent_streams: Option<u32>,
}

/// A service of the same namespace.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TargetRef {
    /// API group: empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<Group>,
    /// Kind: `Service`.
    pub(crate) kind: ParentKind,
    /// Name of the service.
    pub(crate) name: ServiceName,
}

/// Trying again what failed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RetriesSpec {
    /// Tries after the first one; 0 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub(crate) attempts: Option<u32>,
    /// What is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub(crate) retry_on: Option<Vec<RetryOn>>,
    /// Statuses that are tried again under `retriable-status-codes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(range(min = 400, max = 599)))]
    pub(crate) status_codes: Option<Vec<u16>>,
    /// Methods whose requests are tried again at all. Default: every one, for what was provably not processed; GET, HEAD,
    /// OPTIONS, PUT, DELETE and TRACE once `retryOn` has a condition on answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 9))]
    pub(crate) methods: Option<Vec<Method>>,
    /// Limit of one try. Default: the limit of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) per_try_timeout: Option<PositiveDurationText>,
    /// Waiting before a try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backoff: Option<BackoffSpec>,
    /// Share of the requests that may be tries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<BudgetSpec>,
}

/// What is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RetryOn {
    /// No connection was made.
    ConnectFailure,
    /// The server refused the stream unprocessed.
    RefusedStream,
    /// The connection ended before the request was sent.
    ResetBeforeRequest,
    /// The connection ended before a response.
    Reset,
    /// Statuses 502, 503 and 504.
    GatewayError,
    /// Any status of 500 and more, and no response.
    #[serde(rename = "5xx")]
    FiveXx,
    /// Statuses of `statusCodes`.
    RetriableStatusCodes,
    /// Status 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// gRPC status CANCELLED.
    Cancelled,
    /// gRPC status DEADLINE_EXCEEDED.
    DeadlineExceeded,
    /// gRPC status INTERNAL.
    Internal,
    /// gRPC status RESOURCE_EXHAUSTED.
    ResourceExhausted,
    /// gRPC status UNAVAILABLE.
    Unavailable,
}

/// Waiting before a try: random, up to a bound that doubles.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BackoffSpec {
    /// First bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) base_interval: Option<PositiveDurationText>,
    /// Largest bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_interval: Option<PositiveDurationText>,
}

/// Share of the requests that may be tries.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BudgetSpec {
    /// Percent of the requests under way; by the native proxy also of those of the last ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub(crate) percent: Option<u32>,
    /// Tries that are allowed in any case: so many at once; by the native proxy also so many a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub(crate) min_retry_concurrency: Option<u32>,
}

/// Leaving out endpoints that fail. A count of 0 is off, and so is a rate that is not written.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct OutlierSpec {
    /// Answers 502, 503 or 504 in a row, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub(crate) consecutive_gateway_errors: Option<u32>,
    /// Answers of 500 and more in a row.
    #[serde(rename = "consecutive5xxErrors", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub(crate) consecutive_5xx_errors: Option<u32>,
    /// Connections that were not made or broke, in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub(crate) consecutive_local_origin_failures: Option<u32>,
    /// Endpoints that answer well more rarely than the others do; connections are judged alike, by themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) success_rate: Option<SuccessRateSpec>,
    /// Endpoints that fail more often than a limit; connections are judged alike, by themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure_percentage: Option<FailurePercentageSpec>,
    /// How often it is looked at rates, and whether an endpoint comes back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interval: Option<PositiveDurationText>,
    /// How long an endpoint is left out, times the number of its ejections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) base_ejection_time: Option<PositiveDurationText>,
    /// How long at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_ejection_time: Option<PositiveDurationText>,
    /// How many endpoints of all, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub(crate) max_ejection_percent: Option<u32>,
}

/// Endpoints that answer well more rarely than the others: a status of 500 and more is no good answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SuccessRateSpec {
    /// Endpoints with enough requests that there must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 10000))]
    pub(crate) minimum_hosts: Option<u32>,
    /// Requests within `interval` that are enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub(crate) request_volume: Option<u32>,
    /// Thousandths of a standard deviation below the mean of all. Of n endpoints, one is less than √(n−1) deviations below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 100000))]
    pub(crate) stdev_factor: Option<u32>,
}

/// Endpoints that fail more often than a limit: by a status of 500 and more.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FailurePercentageSpec {
    /// Percent of its requests that are too much.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub(crate) threshold: Option<u32>,
    /// Endpoints with enough requests that there must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub(crate) minimum_hosts: Option<u32>,
    /// Requests within `interval` that are enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub(crate) request_volume: Option<u32>,
}

/// Asking endpoints how they are.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HealthCheckSpec {
    /// What is asked.
    #[serde(rename = "type")]
    pub(crate) kind: HealthCheckKind,
    /// HTTP: path of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<PathText>,
    /// HTTP: statuses of the healthy. Default: 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(range(min = 100, max = 599)))]
    pub(crate) expected_statuses: Option<Vec<u16>>,
    /// gRPC: service that is asked for. Default: the server as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<GrpcName>,
    /// From one question to the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interval: Option<PositiveDurationText>,
    /// Longest wait for an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<PositiveDurationText>,
    /// Failures in a row that make an endpoint unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub(crate) unhealthy_threshold: Option<u32>,
    /// Successes in a row that make it healthy again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub(crate) healthy_threshold: Option<u32>,
}

/// Questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub(crate) enum HealthCheckKind {
    /// A request, with the path and the statuses below.
    #[serde(rename = "HTTP")]
    Http,
    /// `grpc.health.v1.Health/Check`.
    #[serde(rename = "GRPC")]
    Grpc,
    /// A connection.
    #[serde(rename = "TCP")]
    Tcp,
}

/// Most of everything at once, per calling proxy.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LimitsSpec {
    /// Connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub(crate) connections: Option<u32>,
    /// Requests that wait for a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub(crate) pending: Option<u32>,
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub(crate) requests: Option<u32>,
    /// How long a connection is used for further requests. It ends once those that use it are over, and up to a fifth
    /// earlier, so that connections opened together do not end together. `0s` is without end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_connection_age: Option<DurationText>,
}

/// Which endpoint is next.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BalancingSpec {
    /// How it is picked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<BalancingPolicy>,
    /// What is hashed under `ring-hash` and `maglev`; the first that a request has counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4))]
    pub(crate) hash_keys: Option<Vec<HashKeySpec>>,
    /// New endpoints get their full share only after a while; `round-robin` and `least-request` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slow_start: Option<SlowStartSpec>,
    /// Below this share of healthy endpoints health is no longer believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub(crate) panic_threshold_percent: Option<u32>,
    /// Whether callers use the endpoints of their own zone while these can carry it: hosts say their zones by
    /// `outrider agent --zone`, and there are at least two endpoints for each zone. Off where hashes decide, if nothing is
    /// said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) zone_preference: Option<ZonePreference>,
}

/// Endpoints of the caller's zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ZonePreference {
    /// Before others, while they can carry it.
    On,
    /// Like all others.
    Off,
}

/// Ways to pick an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BalancingPolicy {
    /// The one of two with fewer requests.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The one of two that is expected to answer earlier, by its last answers and by what is under way; native proxies
    /// only. Streams of bytes go where the fewest are.
    PeakEwma,
    /// By a ring of hashes.
    RingHash,
    /// By a table of hashes.
    Maglev,
}

/// What is hashed: `type` says which field names it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HashKeySpec {
    /// What.
    #[serde(rename = "type")]
    pub(crate) kind: HashKeyKind,
    /// Name of the header, cookie or parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<HeaderName>,
    /// Cookie: the proxy makes one that lives so long for who has none; `0s` until the browser ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ttl: Option<DurationText>,
}

/// What is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HashKeyKind {
    /// A header.
    Header,
    /// A cookie.
    Cookie,
    /// A parameter of the query.
    QueryParam,
    /// The address of the caller.
    SourceAddress,
}

/// New endpoints get their full share only after a while.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SlowStartSpec {
    /// How long that is.
    pub(crate) window: PositiveDurationText,
    /// Share at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub(crate) min_weight_percent: Option<u32>,
}

/// Faults on purpose.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FaultSpec {
    /// Requests that wait before they are sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delay: Option<FaultDelaySpec>,
    /// Requests that are answered with an error and not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) abort: Option<FaultAbortSpec>,
    /// Conditions of the requests that are meant, all of which must hold. Default: every request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub(crate) headers: Option<Vec<HeaderMatchSpec>>,
}

/// Requests that wait.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FaultDelaySpec {
    /// How long.
    pub(crate) fixed_delay: PositiveDurationText,
    /// How many of them.
    #[schemars(range(min = 0, max = 100))]
    pub(crate) percent: u32,
}

/// Requests that are answered with an error.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FaultAbortSpec {
    /// Status of the answer; this or `grpcStatus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599))]
    pub(crate) http_status: Option<u16>,
    /// gRPC status of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 16))]
    pub(crate) grpc_status: Option<u32>,
    /// How many of them.
    #[schemars(range(min = 0, max = 100))]
    pub(crate) percent: u32,
}

/// Most requests that each instance takes; what is more is answered with 429, or RESOURCE_EXHAUSTED.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RateLimitSpec {
    /// Requests in an interval.
    #[schemars(range(min = 1, max = 10000000))]
    pub(crate) requests: u32,
    /// The interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interval: Option<PositiveDurationText>,
    /// Most at once, after a pause. Default: `requests`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000000))]
    pub(crate) burst: Option<u32>,
}
