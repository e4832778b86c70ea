//! Traffic policies: from what is written to what holds for a service, with the origin of every value.
//!
//! Holds: a section of the service's own policy counts before the same of its namespace's policy, as a whole; what
//! [`crate::effective`] prints and the meaning types come from here alike.

mod failover;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) use failover::check as check_failover;

use crate::defaults::{self, Setting, Yaml};
use crate::diagnostic::{Code, Diagnostic};
use crate::document::Document;
use crate::effective::EffectiveValue;
use crate::formats;
use crate::model::{
    Balancing, BalancingPolicy, ConcurrencyLimits, FailurePercentage, FaultInjection, FaultStatus, HashKey,
    HealthCheck, HealthQuestion, InboundLimits, OutlierEjection, Protocol, RateLimit, Retries, SuccessRate,
    Traffic, TrafficSection, ZonePreference,
};
use crate::resolve::{Found, Set};
use crate::route::Conditions;
use crate::settings::Origin;
use crate::wire::{
    self, BalancingSpec, DurationText, FaultSpec, HashKeySpec, HealthCheckKind, HealthCheckSpec,
    InboundLimitsSpec, LimitsSpec, OutlierSpec, PositiveDurationText, RateLimitSpec, RetriesSpec, RetryOn,
    TargetRef, TrafficPolicySpec,
};

/// Shortest interval of a rate: Envoy's.
const MIN_RATE_INTERVAL: Duration = Duration::from_millis(50);

/// Longest delay on purpose: the native proxy's.
const MAX_FAULT_DELAY: Duration = Duration::from_secs(3600);

impl Default for Traffic {
    fn default() -> Self {
        Policies::default().traffic(false).0
    }
}

/// The policies that hold for a service, its own and its namespace's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Policies<'a> {
    pub(crate) own: Option<(&'a Document, &'a TrafficPolicySpec)>,
    pub(crate) namespace: Option<(&'a Document, &'a TrafficPolicySpec)>,
}

impl<'a> Policies<'a> {
    /// A section, and where it was written.
    fn section<T>(
        &self,
        get: impl Fn(&'a TrafficPolicySpec) -> Option<&'a T>,
    ) -> (Option<&'a T>, Option<Origin>) {
        for (document, spec) in self.own.into_iter().chain(self.namespace) {
            if let Some(section) = get(spec) {
                let key = document.key();
                return (Some(section), Some(Origin::Policy(format!("{}/{}", key.namespace, key.name))));
            }
        }
        (None, None)
    }

    /// What holds, and every value of it that a policy says or completes, with its origin: what no policy says may be
    /// left to the engine. `itself`: for the policy's own page, where what it says is declared.
    pub(crate) fn traffic(&self, itself: bool) -> (Traffic, Vec<EffectiveValue>) {
        let mut declared = BTreeSet::new();
        let mut values = Vec::new();
        let mut rows = |section: TrafficSection, origin: Option<Origin>| {
            let there = origin.is_some();
            if there {
                declared.insert(section);
            }
            Rows {
                origin: if itself { Origin::Declared } else { origin.unwrap_or(Origin::Declared) },
                silent: !there,
                values: Vec::new(),
            }
        };
        let mut done = |rows: Rows| values.extend(rows.values);

        let (spec, origin) = self.section(|spec| spec.retries.as_ref());
        let mut of = rows(TrafficSection::Retries, origin);
        let retries = retries(spec, &mut of);
        done(of);
        let (spec, origin) = self.section(|spec| spec.outlier_ejection.as_ref());
        let mut of = rows(TrafficSection::OutlierEjection, origin);
        let outlier = outlier(spec, &mut of);
        done(of);
        let (spec, origin) = self.section(|spec| spec.health_check.as_ref());
        let mut of = rows(TrafficSection::HealthCheck, origin);
        let health_check = spec.map(|spec| health_check(spec, &mut of));
        done(of);
        let (spec, origin) = self.section(|spec| spec.limits.as_ref());
        let mut of = rows(TrafficSection::Limits, origin);
        let limits = limits(spec, &mut of);
        done(of);
        let (spec, origin) = self.section(|spec| spec.balancing.as_ref());
        let mut of = rows(TrafficSection::Balancing, origin);
        let balancing = balancing(spec, &mut of);
        done(of);
        let (spec, origin) = self.section(|spec| spec.fault_injection.as_ref());
        let mut of = rows(TrafficSection::FaultInjection, origin);
        let fault = spec.map(|spec| fault(spec, &mut of));
        done(of);
        let (spec, origin) = self.section(|spec| spec.rate_limit.as_ref());
        let mut of = rows(TrafficSection::RateLimit, origin);
        let rate_limit = spec.map(|spec| rate_limit(spec, &mut of));
        done(of);
        let (spec, origin) = self.section(|spec| spec.inbound_limits.as_ref());
        let mut of = rows(TrafficSection::InboundLimits, origin);
        let inbound = inbound_limits(spec, &mut of);
        done(of);
        // What takes the calls of one service is none of the others' business.
        let alone = Policies { namespace: None, ..*self };
        let (spec, origin) = alone.section(|spec| spec.failover.as_ref());
        let mut of = rows(TrafficSection::Failover, origin);
        let namespace = self.own.map_or("", |(document, _)| &document.key().namespace);
        let failover = failover::read(namespace, spec.map(Vec::as_slice).unwrap_or_default(), &mut of);
        done(of);
        let traffic = Traffic {
            retries,
            outlier,
            health_check,
            limits,
            balancing,
            fault,
            rate_limit,
            inbound,
            failover,
            declared,
        };
        (traffic, values)
    }
}

/// Values of one section.
struct Rows {
    /// Of what is written.
    origin: Origin,
    /// Nothing is told.
    silent: bool,
    values: Vec<EffectiveValue>,
}

impl Rows {
    fn say(&mut self, path: &str, value: String, origin: &Origin) {
        if !self.silent {
            self.values.push(EffectiveValue {
                path: path.to_owned(),
                value,
                origin: origin.to_string(),
                ground: origin.ground().map(str::to_owned),
            });
        }
    }

    /// What is written, else the default.
    fn pick<T: Yaml + Clone>(&mut self, written: Option<T>, setting: &Setting<T>) -> T {
        match written {
            Some(value) => {
                self.written(setting.path, &value);
                value
            }
            None => {
                self.say(setting.path, setting.default.yaml(), &Origin::Default(setting.ground));
                setting.default.clone()
            }
        }
    }

    fn written<T: Yaml>(&mut self, path: &str, value: &T) {
        let origin = self.origin.clone();
        self.say(path, value.yaml(), &origin);
    }
}

/// What a checked text says.
fn time(text: Option<&PositiveDurationText>) -> Option<Duration> {
    text.and_then(|text| formats::duration(&text.0).ok().flatten())
}

fn time_or_none(text: Option<&DurationText>) -> Option<Duration> {
    text.map(|text| formats::duration(&text.0).ok().flatten().unwrap_or_default())
}

/// Words of a choice as they are written.
fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn words<T: serde::Serialize>(values: Option<&Vec<T>>) -> Option<Vec<String>> {
    values.map(|values| values.iter().map(word).collect())
}

fn retries(spec: Option<&RetriesSpec>, rows: &mut Rows) -> Retries {
    let attempts = rows.pick(spec.and_then(|spec| spec.attempts), &defaults::ATTEMPTS);
    let retry_on = rows.pick(words(spec.and_then(|spec| spec.retry_on.as_ref())), &defaults::retry_on());
    let status_codes = spec.and_then(|spec| spec.status_codes.clone()).unwrap_or_default();
    if !status_codes.is_empty() {
        rows.written("retries.statusCodes", &status_codes);
    }
    let per_try_timeout = time(spec.and_then(|spec| spec.per_try_timeout.as_ref()));
    if let Some(limit) = &per_try_timeout {
        rows.written("retries.perTryTimeout", limit);
    }
    let backoff = spec.and_then(|spec| spec.backoff.as_ref());
    let base = time(backoff.and_then(|backoff| backoff.base_interval.as_ref()));
    let base_interval = rows.pick(base, &defaults::BASE_INTERVAL);
    let max = time(backoff.and_then(|backoff| backoff.max_interval.as_ref()));
    // A first bound above the default of the largest is meant as it stands.
    let max = max.or((base_interval > defaults::MAX_INTERVAL.default).then_some(base_interval));
    let max_interval = rows.pick(max, &defaults::MAX_INTERVAL);
    let budget = spec.and_then(|spec| spec.budget.as_ref());
    let mut retries = Retries {
        attempts,
        retry_on,
        status_codes,
        methods: Vec::new(),
        per_try_timeout,
        base_interval,
        max_interval,
        budget_percent: rows.pick(budget.and_then(|one| one.percent), &defaults::BUDGET_PERCENT),
        min_retry_concurrency: rows
            .pick(budget.and_then(|one| one.min_retry_concurrency), &defaults::MIN_RETRY_CONCURRENCY),
    };
    match spec.and_then(|spec| spec.methods.as_ref()) {
        Some(methods) => {
            retries.methods = methods.iter().map(|method| method.as_str().to_owned()).collect();
            rows.written("retries.methods", &retries.methods);
        }
        None if retries.of_answers() => {
            retries.methods = defaults::IDEMPOTENT.map(str::to_owned).into();
            rows.say("retries.methods", retries.methods.yaml(), &Origin::Default(defaults::METHODS_GROUND));
        }
        None => {}
    }
    retries
}

fn outlier(spec: Option<&OutlierSpec>, rows: &mut Rows) -> OutlierEjection {
    let count = |get: fn(&OutlierSpec) -> Option<u32>| spec.and_then(get);
    let length =
        |get: fn(&OutlierSpec) -> Option<&PositiveDurationText>| time(spec.and_then(|spec| get(spec)));
    let gateway_errors = rows.pick(count(|spec| spec.consecutive_gateway_errors), &defaults::GATEWAY_ERRORS);
    let errors_5xx = rows.pick(count(|spec| spec.consecutive_5xx_errors), &defaults::ERRORS_5XX);
    let local = count(|spec| spec.consecutive_local_origin_failures);
    let local_origin_failures = rows.pick(local, &defaults::LOCAL_ORIGIN_FAILURES);
    let success_rate = spec.and_then(|spec| spec.success_rate.as_ref()).map(|rate| SuccessRate {
        minimum_hosts: rows.pick(rate.minimum_hosts, &defaults::SUCCESS_HOSTS),
        request_volume: rows.pick(rate.request_volume, &defaults::SUCCESS_VOLUME),
        stdev_factor: rows.pick(rate.stdev_factor, &defaults::STDEV_FACTOR),
    });
    let failures = spec.and_then(|spec| spec.failure_percentage.as_ref());
    let failure_percentage = failures.map(|rate| FailurePercentage {
        threshold: rows.pick(rate.threshold, &defaults::FAILURE_THRESHOLD),
        minimum_hosts: rows.pick(rate.minimum_hosts, &defaults::FAILURE_HOSTS),
        request_volume: rows.pick(rate.request_volume, &defaults::FAILURE_VOLUME),
    });
    let interval = rows.pick(length(|spec| spec.interval.as_ref()), &defaults::EJECTION_INTERVAL);
    let base = rows.pick(length(|spec| spec.base_ejection_time.as_ref()), &defaults::BASE_EJECTION);
    let max = length(|spec| spec.max_ejection_time.as_ref());
    let max = max.or((base > defaults::MAX_EJECTION.default).then_some(base));
    let max_ejection_time = rows.pick(max, &defaults::MAX_EJECTION);
    let percent = count(|spec| spec.max_ejection_percent);
    OutlierEjection {
        gateway_errors,
        errors_5xx,
        local_origin_failures,
        success_rate,
        failure_percentage,
        interval,
        base_ejection_time: base,
        max_ejection_time,
        max_ejection_percent: rows.pick(percent, &defaults::MAX_EJECTION_PERCENT),
    }
}

fn health_check(spec: &HealthCheckSpec, rows: &mut Rows) -> HealthCheck {
    rows.written("healthCheck.type", &word(&spec.kind));
    let question = match spec.kind {
        HealthCheckKind::Http => {
            let path = match &spec.path {
                Some(path) => {
                    rows.written("healthCheck.path", &path.0);
                    path.0.clone()
                }
                None => rows.pick(None, &defaults::CHECK_PATH).to_owned(),
            };
            let statuses = spec.expected_statuses.clone().unwrap_or_else(|| vec![200]);
            rows.written("healthCheck.expectedStatuses", &statuses);
            HealthQuestion::Http { path, statuses }
        }
        HealthCheckKind::Grpc => {
            let service = spec.service.as_ref().map(|name| name.0.clone()).unwrap_or_default();
            HealthQuestion::Grpc { service }
        }
        HealthCheckKind::Tcp => HealthQuestion::Tcp,
    };
    HealthCheck {
        question,
        interval: rows.pick(time(spec.interval.as_ref()), &defaults::CHECK_INTERVAL),
        timeout: rows.pick(time(spec.timeout.as_ref()), &defaults::CHECK_TIMEOUT),
        unhealthy_threshold: rows.pick(spec.unhealthy_threshold, &defaults::UNHEALTHY_THRESHOLD),
        healthy_threshold: rows.pick(spec.healthy_threshold, &defaults::HEALTHY_THRESHOLD),
    }
}

fn limits(spec: Option<&LimitsSpec>, rows: &mut Rows) -> ConcurrencyLimits {
    let age = time_or_none(spec.and_then(|spec| spec.max_connection_age.as_ref()));
    ConcurrencyLimits {
        connections: rows.pick(spec.and_then(|spec| spec.connections), &defaults::CONNECTIONS),
        pending: rows.pick(spec.and_then(|spec| spec.pending), &defaults::PENDING),
        requests: rows.pick(spec.and_then(|spec| spec.requests), &defaults::REQUESTS),
        max_connection_age: Some(rows.pick(age, &defaults::MAX_CONNECTION_AGE)).filter(|age| !age.is_zero()),
    }
}

fn balancing(spec: Option<&BalancingSpec>, rows: &mut Rows) -> Balancing {
    let policy = spec.and_then(|spec| spec.policy).map(|policy| match policy {
        wire::BalancingPolicy::LeastRequest => BalancingPolicy::LeastRequest,
        wire::BalancingPolicy::RoundRobin => BalancingPolicy::RoundRobin,
        wire::BalancingPolicy::Random => BalancingPolicy::Random,
        wire::BalancingPolicy::PeakEwma => BalancingPolicy::PeakEwma,
        wire::BalancingPolicy::RingHash => BalancingPolicy::RingHash,
        wire::BalancingPolicy::Maglev => BalancingPolicy::Maglev,
    });
    let policy = rows.pick(policy, &defaults::BALANCING);
    let hash_keys: Vec<HashKey> = spec
        .and_then(|spec| spec.hash_keys.as_deref())
        .unwrap_or_default()
        .iter()
        .filter_map(hash_key)
        .collect();
    if let Some(keys) = spec.and_then(|spec| spec.hash_keys.as_ref()) {
        rows.written("balancing.hashKeys", &serde_json::to_string(keys).unwrap_or_default());
    }
    let slow_start = spec.and_then(|spec| spec.slow_start.as_ref()).map(|slow| {
        let window = time(Some(&slow.window)).unwrap_or_default();
        rows.written("balancing.slowStart.window", &window);
        (window, rows.pick(slow.min_weight_percent, &defaults::MIN_WEIGHT_PERCENT))
    });
    let panic = spec.and_then(|spec| spec.panic_threshold_percent);
    let panic_threshold_percent = rows.pick(panic, &defaults::PANIC_PERCENT);
    let zones = spec.and_then(|spec| spec.zone_preference).map(|preference| match preference {
        wire::ZonePreference::On => ZonePreference::On,
        wire::ZonePreference::Off => ZonePreference::Off,
    });
    let by_default = match policy.hashes() {
        true => &defaults::ZONE_PREFERENCE_OF_HASHES,
        false => &defaults::ZONE_PREFERENCE,
    };
    let zone_preference = rows.pick(zones, by_default);
    Balancing { policy, hash_keys, slow_start, panic_threshold_percent, zone_preference }
}

/// `None` if it lacks a name, which was found.
fn hash_key(spec: &HashKeySpec) -> Option<HashKey> {
    let name = || spec.name.as_ref().map(|name| name.0.clone());
    Some(match spec.kind {
        wire::HashKeyKind::Header => HashKey::Header(name()?.to_ascii_lowercase()),
        wire::HashKeyKind::Cookie => HashKey::Cookie(name()?, time_or_none(spec.ttl.as_ref())),
        wire::HashKeyKind::QueryParam => HashKey::QueryParam(name()?),
        wire::HashKeyKind::SourceAddress => HashKey::SourceAddress,
    })
}

fn fault(spec: &FaultSpec, rows: &mut Rows) -> FaultInjection {
    let delay = spec.delay.as_ref().map(|delay| {
        let length = time(Some(&delay.fixed_delay)).unwrap_or_default();
        rows.written("faultInjection.delay.fixedDelay", &length);
        rows.written("faultInjection.delay.percent", &delay.percent);
        (length, delay.percent)
    });
    let abort = spec.abort.as_ref().and_then(|abort| {
        let status = match (abort.http_status, abort.grpc_status) {
            (Some(status), _) => {
                rows.written("faultInjection.abort.httpStatus", &u32::from(status));
                FaultStatus::Http(status)
            }
            (None, Some(status)) => {
                rows.written("faultInjection.abort.grpcStatus", &status);
                FaultStatus::Grpc(status)
            }
            (None, None) => return None,
        };
        rows.written("faultInjection.abort.percent", &abort.percent);
        Some((status, abort.percent))
    });
    let headers = spec.headers.as_deref().unwrap_or_default().iter();
    let headers = headers.map(|header| (header.name.0.to_ascii_lowercase(), header.plain())).collect();
    if let Some(headers) = &spec.headers {
        rows.written("faultInjection.headers", &serde_json::to_string(headers).unwrap_or_default());
    }
    FaultInjection { delay, abort, headers }
}

fn rate_limit(spec: &RateLimitSpec, rows: &mut Rows) -> RateLimit {
    rows.written("rateLimit.requests", &spec.requests);
    let interval = rows.pick(time(spec.interval.as_ref()), &defaults::RATE_INTERVAL);
    let burst = spec.burst.unwrap_or(spec.requests);
    match spec.burst {
        Some(burst) => rows.written("rateLimit.burst", &burst),
        None => rows.say("rateLimit.burst", burst.yaml(), &Origin::Default("the same as `requests`")),
    }
    RateLimit { requests: spec.requests, interval, burst }
}

fn inbound_limits(spec: Option<&InboundLimitsSpec>, rows: &mut Rows) -> InboundLimits {
    let count = |get: fn(&InboundLimitsSpec) -> Option<u32>| spec.and_then(get);
    let time = time(spec.and_then(|spec| spec.request_headers_timeout.as_ref()));
    InboundLimits {
        headers_kb: rows.pick(count(|spec| spec.max_request_headers_kb), &defaults::HEADERS_KB),
        headers_count: rows.pick(count(|spec| spec.max_headers_count), &defaults::HEADERS_COUNT),
        headers_timeout: rows.pick(time, &defaults::HEADERS_TIMEOUT),
        streams: rows.pick(count(|spec| spec.max_concurrent_streams), &defaults::STREAMS),
    }
}

/// Rules that concern several fields of a policy, or its service.
pub(crate) fn check(
    set: &Set<'_>,
    document: &Document,
    spec: &TrafficPolicySpec,
    findings: &mut Vec<Diagnostic>,
) {
    let protocols = target_protocols(set, document, spec.target_ref.as_ref(), findings);
    let mut error = |code: Code, path: &str, message: String, help: &str| {
        let place = document.at(&format!("spec/{path}"));
        findings.push(Diagnostic::error(code, place, message).help(help));
    };
    // Without a target there may be services of every sort.
    let has =
        |fits: fn(Protocol) -> bool| protocols.as_ref().is_none_or(|all| all.iter().any(|one| fits(*one)));
    let requests = has(|protocol| protocol != Protocol::Tcp);
    for (section, there) in [
        ("retries", spec.retries.is_some()),
        ("faultInjection", spec.fault_injection.is_some()),
        ("rateLimit", spec.rate_limit.is_some()),
        ("inboundLimits", spec.inbound_limits.is_some()),
    ] {
        if there && !requests {
            let message = format!("`{section}` is about requests, and the service takes bytes only");
            error(Code::ProtocolMismatch, section, message, "remove it");
        }
    }
    if spec.inbound_limits.as_ref().is_some_and(|limits| limits.max_concurrent_streams.is_some())
        && requests
        && !has(|protocol| matches!(protocol, Protocol::Http2 | Protocol::Grpc))
    {
        let message = "the service has no port of HTTP/2, whose requests are streams".to_owned();
        error(Code::ProtocolMismatch, "inboundLimits/maxConcurrentStreams", message, "remove it");
    }
    if let Some(retries) = &spec.retries {
        let on = retries.retry_on.as_deref().unwrap_or_default();
        let codes = on.contains(&RetryOn::RetriableStatusCodes);
        if codes != retries.status_codes.is_some() {
            let (path, message) = match codes {
                true => ("retries/retryOn", "`retriable-status-codes` is of no use without `statusCodes`"),
                false => {
                    ("retries/statusCodes", "`statusCodes` is of no use without `retriable-status-codes`")
                }
            };
            error(Code::InvalidValue, path, message.to_owned(), "write both, or none of the two");
        }
        for (index, condition) in on.iter().enumerate() {
            if on[..index].contains(condition) {
                let path = format!("retries/retryOn/{index}");
                let message = format!("`{}` is here a second time", word(condition));
                error(Code::DuplicateValue, &path, message, "remove one of the two");
            }
        }
        if let Some(backoff) = &retries.backoff
            && let (Some(base), Some(max)) =
                (time(backoff.base_interval.as_ref()), time(backoff.max_interval.as_ref()))
            && base > max
        {
            let message = "the first bound of the wait is longer than the largest".to_owned();
            error(Code::OutOfBounds, "retries/backoff/baseInterval", message, "swap the two");
        }
    }
    if let Some(outlier) = &spec.outlier_ejection
        && let (Some(base), Some(max)) =
            (time(outlier.base_ejection_time.as_ref()), time(outlier.max_ejection_time.as_ref()))
        && base > max
    {
        let message = "the first ejection is longer than the longest".to_owned();
        error(Code::OutOfBounds, "outlierEjection/baseEjectionTime", message, "swap the two");
    }
    if let Some(check) = &spec.health_check {
        let of_http =
            [("path", check.path.is_some()), ("expectedStatuses", check.expected_statuses.is_some())];
        for (field, there) in of_http {
            if there && check.kind != HealthCheckKind::Http {
                let message = format!("`{field}` belongs to a check of type `HTTP`");
                error(Code::InvalidValue, &format!("healthCheck/{field}"), message, "remove it");
            }
        }
        if check.service.is_some() && check.kind != HealthCheckKind::Grpc {
            let message = "`service` belongs to a check of type `GRPC`".to_owned();
            error(Code::InvalidValue, "healthCheck/service", message, "remove it");
        }
        let fits = match check.kind {
            HealthCheckKind::Http => has(|port| matches!(port, Protocol::Http | Protocol::Http2)),
            HealthCheckKind::Grpc => has(|port| port == Protocol::Grpc),
            HealthCheckKind::Tcp => true,
        };
        if !fits {
            let message =
                format!("the service has no port that a check of type `{}` can ask", word(&check.kind));
            error(Code::ProtocolMismatch, "healthCheck/type", message, "use `TCP`, which every port answers");
        }
        if let (Some(interval), Some(timeout)) = (time(check.interval.as_ref()), time(check.timeout.as_ref()))
            && timeout > interval
        {
            let message = "the wait for an answer is longer than the time to the next question".to_owned();
            error(Code::OutOfBounds, "healthCheck/timeout", message, "make `timeout` at most `interval`");
        }
    }
    if let Some(balancing) = &spec.balancing {
        let policy = balancing.policy.unwrap_or(wire::BalancingPolicy::LeastRequest);
        let hashes = matches!(policy, wire::BalancingPolicy::RingHash | wire::BalancingPolicy::Maglev);
        if hashes && balancing.hash_keys.is_none() {
            let message = format!("`{}` needs to know what is hashed", word(&policy));
            error(Code::MissingField, "balancing/policy", message, "add `hashKeys`");
        }
        if !hashes && balancing.hash_keys.is_some() {
            let message = format!("`{}` hashes nothing", word(&policy));
            error(Code::InvalidValue, "balancing/hashKeys", message, "remove it, or use `maglev`");
        }
        let slow = matches!(policy, wire::BalancingPolicy::LeastRequest | wire::BalancingPolicy::RoundRobin);
        if balancing.slow_start.is_some() && !slow {
            let message = format!("`{}` knows no slow start", word(&policy));
            let help = "remove it, or use `least-request` or `round-robin`";
            error(Code::InvalidValue, "balancing/slowStart", message, help);
        }
        for (index, key) in balancing.hash_keys.as_deref().unwrap_or_default().iter().enumerate() {
            let named = key.kind != wire::HashKeyKind::SourceAddress;
            if named != key.name.is_some() {
                let path = format!("balancing/hashKeys/{index}/{}", if named { "type" } else { "name" });
                let (code, message, help) = match named {
                    true => (Code::MissingField, "the key lacks its `name`", "add `name`"),
                    false => (Code::InvalidValue, "an address has no name", "remove `name`"),
                };
                error(code, &path, message.to_owned(), help);
            }
            if key.ttl.is_some() && key.kind != wire::HashKeyKind::Cookie {
                let message = "`ttl` belongs to a key of type `cookie`".to_owned();
                error(Code::InvalidValue, &format!("balancing/hashKeys/{index}/ttl"), message, "remove it");
            }
        }
    }
    if let Some(fault) = &spec.fault_injection {
        if fault.delay.is_none() && fault.abort.is_none() {
            let message = "a fault is a `delay`, an `abort` or both".to_owned();
            error(Code::MissingField, "faultInjection", message, "add one of the two");
        }
        if let Some(delay) = &fault.delay
            && time(Some(&delay.fixed_delay)).is_some_and(|delay| delay > MAX_FAULT_DELAY)
        {
            let message = "a delay is at most 1h".to_owned();
            error(Code::OutOfBounds, "faultInjection/delay/fixedDelay", message, "make it shorter");
        }
        if let Some(abort) = &fault.abort
            && abort.http_status.is_some() == abort.grpc_status.is_some()
        {
            let message = "an abort has either `httpStatus` or `grpcStatus`".to_owned();
            error(Code::InvalidValue, "faultInjection/abort", message, "write one of the two");
        }
        let mut conditions = Conditions { document, findings };
        conditions.headers("spec/faultInjection/headers", fault.headers.as_deref());
    }
    if let Some(interval) = spec.rate_limit.as_ref().and_then(|limit| time(limit.interval.as_ref()))
        && interval < MIN_RATE_INTERVAL
    {
        let message = "the interval is shorter than 50ms, which is as exact as rates are";
        let place = document.at("spec/rateLimit/interval");
        let help = "make `interval` and `requests` larger";
        findings.push(Diagnostic::error(Code::OutOfBounds, place, message).help(help));
    }
    if let Some(rate) = spec.outlier_ejection.as_ref().and_then(|outlier| outlier.success_rate.as_ref()) {
        let hosts = rate.minimum_hosts.unwrap_or(defaults::SUCCESS_HOSTS.default);
        let factor = rate.stdev_factor.unwrap_or(defaults::STDEV_FACTOR.default);
        // Where one of n values differs from the others, it is √(n−1) standard deviations below the mean.
        if u64::from(factor).pow(2) >= u64::from(hosts.saturating_sub(1)) * 1_000_000 {
            let place = document.at("spec/outlierEjection/successRate");
            let message = format!(
                "of {hosts} endpoints none can be more than {} standard deviations below the mean",
                f64::from(factor) / 1000.0
            );
            let help = "make `stdevFactor` smaller, or use `failurePercentage`";
            findings.push(Diagnostic::warning(Code::OutOfBounds, place, message).help(help));
        }
    }
    if let Some(limit) = &spec.rate_limit
        && limit.burst.is_some_and(|burst| burst < limit.requests)
    {
        let message = "a burst smaller than `requests` would be the limit".to_owned();
        let place = document.at("spec/rateLimit/burst");
        let help = "make `burst` at least `requests`, or make `requests` and `interval` smaller";
        findings.push(Diagnostic::error(Code::OutOfBounds, place, message).help(help));
    }
}

/// What the ports of a policy's service speak; `None` without a service, or if it cannot be read.
pub(crate) fn target_protocols(
    set: &Set<'_>,
    document: &Document,
    target: Option<&TargetRef>,
    findings: &mut Vec<Diagnostic>,
) -> Option<Vec<Protocol>> {
    let id = target_id(document, target?);
    match set.service(&id) {
        Found::Nothing => {
            let message = format!("nothing declares the service {id}");
            let help = set.meant(&id.namespace, &id, false);
            let place = document.at("spec/targetRef/name");
            findings.push(Diagnostic::error(Code::UnknownService, place, message).help(help));
            None
        }
        Found::Unreadable => None,
        Found::Service(spec) => {
            let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
            if ports.is_empty() {
                let message = format!("the service {id} has no ports, so it is not called");
                let place = document.at("spec/targetRef/name");
                let help = "name a service that is called, or give it a port";
                findings.push(Diagnostic::error(Code::NotCallable, place, message).help(help));
                return None;
            }
            Some(ports.iter().map(|port| port.protocol).collect())
        }
    }
}

/// The service of a policy.
pub(crate) fn target_id(document: &Document, target: &TargetRef) -> crate::model::ServiceRef {
    crate::model::ServiceRef::new(&document.key().namespace, &target.name.0)
}

/// Policies of all namespaces, by namespace and service; a second one for the same is a finding of [`twice`].
pub(crate) type ByTarget<'a> = BTreeMap<(&'a str, Option<&'a str>), (&'a Document, &'a TrafficPolicySpec)>;

/// A finding for a policy that another one precedes.
pub(crate) fn twice(
    set: &Set<'_>,
    document: &Document,
    spec: &TrafficPolicySpec,
    findings: &mut Vec<Diagnostic>,
) {
    let name = spec.target_ref.as_ref().map(|target| target.name.0.as_str());
    let Some(first) = set.traffic_policy(&document.key().namespace, name) else { return };
    if first.key() == document.key() {
        return;
    }
    let (place, of) = match name {
        Some(name) => (document.at("spec/targetRef/name"), format!("the service {name}")),
        None => (document.place(), format!("the namespace {}", document.key().namespace)),
    };
    let message = format!("{} has a traffic policy already, {}", of, first.key().name);
    findings.push(
        Diagnostic::error(Code::DuplicateValue, place, message)
            .related(first.place(), "the other one")
            .help("put what both say in one of them"),
    );
}
