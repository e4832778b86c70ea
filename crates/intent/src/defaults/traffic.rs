//! Defaults of traffic policies.

use std::time::Duration;

use super::{Setting, Yaml};
use crate::model::{BalancingPolicy, ZonePreference};

impl Yaml for BalancingPolicy {
    fn yaml(&self) -> String {
        match self {
            Self::LeastRequest => "least-request",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::PeakEwma => "peak-ewma",
            Self::RingHash => "ring-hash",
            Self::Maglev => "maglev",
        }
        .to_owned()
    }
}

impl Yaml for ZonePreference {
    fn yaml(&self) -> String {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
        .to_owned()
    }
}

impl Yaml for Vec<String> {
    fn yaml(&self) -> String {
        format!("[{}]", self.join(", "))
    }
}

impl Yaml for Vec<u16> {
    fn yaml(&self) -> String {
        let items: Vec<String> = self.iter().map(ToString::to_string).collect();
        items.yaml()
    }
}

macro_rules! settings {
    ($($name:ident: $type:ty = $path:literal, $default:expr, $ground:literal;)*) => { $(
        pub(crate) const $name: Setting<$type> = Setting { path: $path, default: $default, ground: $ground };
    )* };
}

settings! {
    ATTEMPTS: u32 = "retries.attempts", 2,
        "the same as in Service Connect, App Mesh and Istio, and only for what was provably not processed";
    BASE_INTERVAL: Duration = "retries.backoff.baseInterval", Duration::from_millis(25),
        "the same as in Envoy and Istio";
    MAX_INTERVAL: Duration = "retries.backoff.maxInterval", Duration::from_millis(250),
        "ten times the first, as in Envoy";
    BUDGET_PERCENT: u32 = "retries.budget.percent", 20,
        "the same as in Envoy and Istio: retries must not make an overload worse";
    MIN_RETRY_CONCURRENCY: u32 = "retries.budget.minRetryConcurrency", 3, "as in Envoy and Istio; the native proxy bounds them by the second, too";
    GATEWAY_ERRORS: u32 = "outlierEjection.consecutiveGatewayErrors", 5,
        "the same as in Service Connect, Envoy and Consul";
    ERRORS_5XX: u32 = "outlierEjection.consecutive5xxErrors", 0,
        "a 500 is as likely the request's fault as the endpoint's";
    LOCAL_ORIGIN_FAILURES: u32 = "outlierEjection.consecutiveLocalOriginFailures", 5,
        "the same as in Service Connect";
    SUCCESS_HOSTS: u32 = "outlierEjection.successRate.minimumHosts", 5, "the same as in Envoy";
    SUCCESS_VOLUME: u32 = "outlierEjection.successRate.requestVolume", 100, "the same as in Envoy";
    STDEV_FACTOR: u32 = "outlierEjection.successRate.stdevFactor", 1900, "the same as in Envoy";
    FAILURE_THRESHOLD: u32 = "outlierEjection.failurePercentage.threshold", 85, "the same as in Envoy";
    FAILURE_HOSTS: u32 = "outlierEjection.failurePercentage.minimumHosts", 5, "the same as in Envoy";
    FAILURE_VOLUME: u32 = "outlierEjection.failurePercentage.requestVolume", 50, "the same as in Envoy";
    EJECTION_INTERVAL: Duration = "outlierEjection.interval", Duration::from_secs(30),
        "the same as in Service Connect";
    BASE_EJECTION: Duration = "outlierEjection.baseEjectionTime", Duration::from_secs(30),
        "the same as in Service Connect and Envoy";
    MAX_EJECTION: Duration = "outlierEjection.maxEjectionTime", Duration::from_secs(300),
        "the same as in Service Connect and Envoy";
    MAX_EJECTION_PERCENT: u32 = "outlierEjection.maxEjectionPercent", 50,
        "Envoy's 10 % is of no use below ten endpoints, and half of them can carry the rest";
    CHECK_INTERVAL: Duration = "healthCheck.interval", Duration::from_secs(10),
        "every caller's proxy asks every endpoint, so more often is expensive";
    CHECK_TIMEOUT: Duration = "healthCheck.timeout", Duration::from_secs(2),
        "an endpoint that takes longer to say that it is well is not";
    UNHEALTHY_THRESHOLD: u32 = "healthCheck.unhealthyThreshold", 3, "the same as in Envoy Gateway";
    HEALTHY_THRESHOLD: u32 = "healthCheck.healthyThreshold", 1, "the same as in Envoy Gateway and Kuma";
    CHECK_PATH: &'static str = "healthCheck.path", "/", "every HTTP server has it";
    CONNECTIONS: u32 = "limits.connections", 1024, "the same as in Envoy, Kuma and Envoy Gateway";
    PENDING: u32 = "limits.pending", 1024, "the same as in Envoy, Kuma and Envoy Gateway";
    REQUESTS: u32 = "limits.requests", 1024, "the same as in Envoy, Kuma and Envoy Gateway";
    MAX_CONNECTION_AGE: Duration = "limits.maxConnectionAge", Duration::from_secs(3600),
        "buffers are given back and connections shared out anew now and then, and nothing is cut";
    BALANCING: BalancingPolicy = "balancing.policy", BalancingPolicy::LeastRequest,
        "it avoids slow endpoints, as in Istio";
    ZONE_PREFERENCE: ZonePreference = "balancing.zonePreference", ZonePreference::On,
        "the same as in Service Connect, and nothing changes before hosts say their zones";
    ZONE_PREFERENCE_OF_HASHES: ZonePreference = "balancing.zonePreference", ZonePreference::Off,
        "the same key leads to the same endpoint from every zone";
    PANIC_PERCENT: u32 = "balancing.panicThresholdPercent", 50, "the same as in Envoy and Kuma";
    MIN_WEIGHT_PERCENT: u32 = "balancing.slowStart.minWeightPercent", 10, "the same as in Envoy";
    RATE_INTERVAL: Duration = "rateLimit.interval", Duration::from_secs(1), "rates are told by the second";
    HEADERS_KB: u32 = "inboundLimits.maxRequestHeadersKb", 96,
        "more than any common server takes, and the most that the native proxy does";
    HEADERS_COUNT: u32 = "inboundLimits.maxHeadersCount", 200, "twice as many as common servers take";
    HEADERS_TIMEOUT: Duration = "inboundLimits.requestHeadersTimeout", Duration::from_secs(10),
        "who takes longer holds a connection and means no request";
    STREAMS: u32 = "inboundLimits.maxConcurrentStreams", 100,
        "the same as in Envoy, and the least that RFC 9113 recommends";
}

impl Yaml for &'static str {
    fn yaml(&self) -> String {
        (*self).to_owned()
    }
}

impl Yaml for String {
    fn yaml(&self) -> String {
        self.clone()
    }
}

/// Conditions of retries. They have the form that the meaning has, so they are no constant.
pub(crate) fn retry_on() -> Setting<Vec<String>> {
    Setting {
        path: "retries.retryOn",
        default: ["connect-failure", "refused-stream", "reset-before-request"].map(str::to_owned).into(),
        ground: "no request is carried out twice",
    }
}

/// The ground of a `methods` that nobody wrote while answers are tried again.
pub(crate) const METHODS_GROUND: &str = "carrying these out twice is the same as once";
/// Methods that may be carried out twice, by RFC 9110.
pub(crate) const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"];
