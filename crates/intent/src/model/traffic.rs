//! How a service is called, beyond where requests go.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ServiceRef, ValueMatch};

/// What a traffic policy decides, complete with defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Trying again.
    pub retries: Retries,
    /// Leaving out endpoints.
    pub outlier: OutlierEjection,
    /// Asking endpoints; not without being told.
    pub health_check: Option<HealthCheck>,
    /// Most of everything at once, per calling proxy.
    pub limits: ConcurrencyLimits,
    /// Which endpoint is next.
    pub balancing: Balancing,
    /// Faults on purpose.
    pub fault: Option<FaultInjection>,
    /// Most requests that each instance takes.
    pub rate_limit: Option<RateLimit>,
    /// What each instance takes of a caller.
    pub inbound: InboundLimits,
    /// Who takes the calls as far as the endpoints of the service itself fail, in this order. Of the same namespace; one that
    /// was deleted by force is not declared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failover: Vec<Failover>,
    /// What a policy says and is no default.
    pub declared: BTreeSet<TrafficSection>,
}

/// Parts of a traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TrafficSection {
    /// `retries`.
    Retries,
    /// `outlierEjection`.
    OutlierEjection,
    /// `healthCheck`.
    HealthCheck,
    /// `limits`.
    Limits,
    /// `balancing`.
    Balancing,
    /// `faultInjection`.
    FaultInjection,
    /// `rateLimit`.
    RateLimit,
    /// `inboundLimits`.
    InboundLimits,
    /// `failover`.
    Failover,
}

/// A service that takes calls of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    /// Which.
    pub service: ServiceRef,
    /// Its port; `None` is that of the same name as the called one.
    pub port: Option<String>,
}

impl Failover {
    /// Name of the port that takes calls of a port of this name.
    pub fn port_for<'a>(&'a self, called: &'a str) -> &'a str {
        self.port.as_deref().unwrap_or(called)
    }
}

/// Trying again what failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// Tries after the first; 0 is none.
    pub attempts: u32,
    /// Conditions, in Envoy's words; never empty.
    pub retry_on: Vec<String>,
    /// For `retriable-status-codes`.
    pub status_codes: Vec<u16>,
    /// Methods that are tried again at all; empty is all.
    pub methods: Vec<String>,
    /// Limit of one try; `None` is that of the request.
    pub per_try_timeout: Option<Duration>,
    /// First bound of the wait.
    pub base_interval: Duration,
    /// Largest bound.
    pub max_interval: Duration,
    /// Percent of the requests under way that may be tries; by the native proxy also of those of the last ten seconds.
    pub budget_percent: u32,
    /// Tries that are allowed in any case: so many at once; by the native proxy also so many a second.
    pub min_retry_concurrency: u32,
}

impl Retries {
    /// Whether answers are tried again, a limit of time included, and not only what was provably not processed.
    pub fn of_answers(&self) -> bool {
        let provable = ["connect-failure", "refused-stream", "reset-before-request"];
        self.attempts > 0 && !self.retry_on.iter().all(|condition| provable.contains(&condition.as_str()))
    }
}

/// Leaving out endpoints that fail. A count of 0 is off, and so is a rate that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutlierEjection {
    /// Answers 502, 503 or 504 in a row.
    pub gateway_errors: u32,
    /// Answers of 500 and more in a row.
    pub errors_5xx: u32,
    /// Connections that were not made or broke, in a row.
    pub local_origin_failures: u32,
    /// Who answers well more rarely than the others.
    pub success_rate: Option<SuccessRate>,
    /// Who fails more often than a limit.
    pub failure_percentage: Option<FailurePercentage>,
    /// From one look to the next.
    pub interval: Duration,
    /// How long an endpoint is left out, times the number of its ejections.
    pub base_ejection_time: Duration,
    /// At most.
    pub max_ejection_time: Duration,
    /// How many endpoints of a hundred, at most.
    pub max_ejection_percent: u32,
}

impl OutlierEjection {
    /// Whether anything is counted.
    pub fn is_on(&self) -> bool {
        let counts = [self.gateway_errors, self.errors_5xx, self.local_origin_failures];
        let rates = self.success_rate.is_some() || self.failure_percentage.is_some();
        self.max_ejection_percent > 0 && (rates || counts.iter().any(|count| *count > 0))
    }
}

/// Endpoints that answer well more rarely than the others. Connections that were not made or broke are judged alike, by
/// themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuccessRate {
    /// Endpoints with enough requests that there must be.
    pub minimum_hosts: u32,
    /// Requests within an interval that are enough.
    pub request_volume: u32,
    /// Thousandths of a standard deviation below the mean.
    pub stdev_factor: u32,
}

/// Endpoints that fail more often than a limit. Connections that were not made or broke are judged alike, by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailurePercentage {
    /// Percent of the requests that are too much.
    pub threshold: u32,
    /// Endpoints with enough requests that there must be.
    pub minimum_hosts: u32,
    /// Requests within an interval that are enough.
    pub request_volume: u32,
}

/// Asking endpoints how they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked.
    pub question: HealthQuestion,
    /// From one question to the next.
    pub interval: Duration,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// Failures in a row.
    pub unhealthy_threshold: u32,
    /// Successes in a row.
    pub healthy_threshold: u32,
}

/// A question to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthQuestion {
    /// A GET; on ports of HTTP.
    Http {
        /// Path.
        path: String,
        /// Statuses of the healthy; never empty.
        statuses: Vec<u16>,
    },
    /// `grpc.health.v1.Health/Check`; on ports of gRPC.
    Grpc {
        /// Empty: the server as a whole.
        service: String,
    },
    /// A connection; on every port.
    Tcp,
}

/// Most of everything at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConcurrencyLimits {
    /// Connections.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests.
    pub requests: u32,
    /// How long a connection is used for further requests; `None` is without end.
    pub max_connection_age: Option<Duration>,
}

impl ConcurrencyLimits {
    /// How long a connection is used where no policy says it. The native proxy knows it by itself.
    pub const MAX_CONNECTION_AGE: Duration = crate::defaults::MAX_CONNECTION_AGE.default;
}

/// Which endpoint is next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balancing {
    /// How it is picked.
    pub policy: BalancingPolicy,
    /// What is hashed, by policies of hashes.
    pub hash_keys: Vec<HashKey>,
    /// New endpoints: for how long they get less, and the percentage they begin with.
    pub slow_start: Option<(Duration, u32)>,
    /// Below this share of healthy endpoints, in percent, health is not believed.
    pub panic_threshold_percent: u32,
    /// Whether endpoints of the caller's zone go before others.
    pub zone_preference: ZonePreference,
}

/// Endpoints of the caller's zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZonePreference {
    /// Before others, while they can carry it.
    On,
    /// Like all others.
    Off,
}

/// Ways to pick an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalancingPolicy {
    /// The one of two with fewer requests.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The one of two that is expected to answer earlier; streams of bytes as by [`Self::LeastRequest`].
    PeakEwma,
    /// By a ring of hashes.
    RingHash,
    /// By a table of hashes.
    Maglev,
}

impl BalancingPolicy {
    /// Whether it needs keys.
    pub fn hashes(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HashKey {
    /// This header.
    Header(String),
    /// This cookie; with a time the proxy makes one for who has none, and `0s` is one of the session.
    Cookie(String, Option<Duration>),
    /// This parameter of the query.
    QueryParam(String),
    /// The caller's address.
    SourceAddress,
}

/// Faults on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultInjection {
    /// How long requests wait, and how many of a hundred.
    pub delay: Option<(Duration, u32)>,
    /// How requests are answered, and how many of a hundred.
    pub abort: Option<(FaultStatus, u32)>,
    /// Requests that are meant have all of these; names lower case.
    pub headers: Vec<(String, ValueMatch)>,
}

/// An answer that is a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultStatus {
    /// Status of HTTP.
    Http(u16),
    /// Status of gRPC.
    Grpc(u32),
}

/// A bucket of tokens, one for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Tokens that come in an interval.
    pub requests: u32,
    /// The interval.
    pub interval: Duration,
    /// Most tokens at once.
    pub burst: u32,
}

/// What a proxy takes of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundLimits {
    /// KiB of a request's head, from 1 to 96.
    pub headers_kb: u32,
    /// Fields of it, from 1 to 200.
    pub headers_count: u32,
    /// From its first byte to its last.
    pub headers_timeout: Duration,
    /// Requests at once on a connection of HTTP/2.
    pub streams: u32,
}

impl Default for InboundLimits {
    fn default() -> Self {
        Self {
            headers_kb: crate::defaults::HEADERS_KB.default,
            headers_count: crate::defaults::HEADERS_COUNT.default,
            headers_timeout: crate::defaults::HEADERS_TIMEOUT.default,
            streams: crate::defaults::STREAMS.default,
        }
    }
}
