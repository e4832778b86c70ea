//! Traffic policies as Envoy's own fields.
//!
//! | section | of whom | where |
//! |---|---|---|
//! | `retries` | the service that is called | routes of callers; its budget in clusters |
//! | `faultInjection` | the service that is called | filter and routes of callers |
//! | `outlierEjection`, `healthCheck`, `limits`, `balancing` | the service a route leads to | clusters of callers |
//! | `rateLimit` | the service that is called | filter of its own proxies |
//!
//! What nobody declared is sent only to engines that have it.

use std::collections::HashMap;
use std::time::Duration;

use outrider_intent::features::Feature;
use outrider_intent::model::{
    Balancing, BalancingPolicy, ConcurrencyLimits, Engine, FaultStatus, HashKey, HealthQuestion, Port,
    Protocol, Retries, Service, Traffic, TrafficSection,
};
use outrider_xds_types::pb::envoy::config::cluster::v3 as cluster;
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::envoy::config::route::v3 as route;
use outrider_xds_types::pb::envoy::extensions::filters::common::fault::v3 as common_fault;
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3 as fault;
use outrider_xds_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as ratelimit;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrider_xds_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use outrider_xds_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use outrider_xds_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use outrider_xds_types::pb::envoy::r#type::v3 as types;
use outrider_xds_types::pb::google::protobuf::Any;

use crate::engines::has;
use crate::envoy::{any, boolean, limit, uint};
use crate::http::filter;
use crate::matching::{header_is, method_is};

use cluster::circuit_breakers::{Thresholds, thresholds::RetryBudget};
use cluster::cluster::{LbConfig, LbPolicy, LeastRequestLbConfig, RoundRobinLbConfig, SlowStartConfig};
use core::health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck};
use route::route_action::{HashPolicy, hash_policy};

/// Endpoints picked until one is found that was not tried: Istio's.
const HOST_PICKS: i64 = 5;

/// Attempts after which the next priority is tried, which is another zone's.
const ATTEMPTS_PER_PRIORITY: i32 = 2;

/// Share by which health checks are spread, in percent, so that proxies that start together do not ask together.
const CHECK_JITTER_PERCENT: u32 = 20;

/// A balancer that Envoy's usual builds do not have, and the native proxy has. It has no settings.
pub(crate) const PEAK_EWMA: &str =
    "type.googleapis.com/envoy.extensions.load_balancing_policies.peak_ewma.v3alpha.PeakEwma";

const FAULT: &str = "envoy.filters.http.fault";
const RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";

/// Whether a section is sent.
fn sent(traffic: &Traffic, section: TrafficSection, engine: Engine, feature: Feature) -> bool {
    traffic.declared.contains(&section) || has(engine, feature)
}

/// The retries of a service as an engine is told them.
fn retries(traffic: &Traffic, engine: Engine) -> Option<&Retries> {
    let on = traffic.retries.attempts > 0 && sent(traffic, TrafficSection::Retries, engine, Feature::Retries);
    on.then_some(&traffic.retries)
}

/// Limits of a request and of its tries.
///
/// Without retries of answers, and without a limit of a try of its own, the limit of the request is one of the only
/// try, which ends with the head of the response: a response that flows is never cut. Else nothing but a limit on the
/// whole exchange keeps tries from adding up, so the limit of the request is that.
pub(crate) fn tries(
    parent: &Service,
    engine: Engine,
    request: Option<Duration>,
    one: Option<Option<Duration>>,
    protocol: Protocol,
) -> (Option<Duration>, Option<route::RetryPolicy>) {
    let retries = retries(&parent.traffic, engine);
    let declared = parent.traffic.declared.contains(&TrafficSection::Retries);
    let of_policy = parent.traffic.retries.per_try_timeout.filter(|_| declared);
    let own = one.or(of_policy.map(Some));
    let answers = retries.is_some_and(Retries::of_answers);
    let whole = if own.is_some() || answers { request } else { None };
    let per_try = own.unwrap_or(request);
    let mut policy = route::RetryPolicy {
        num_retries: Some(uint(0)),
        per_try_timeout: per_try.map(|per_try| limit(Some(per_try))),
        ..Default::default()
    };
    let Some(retries) = retries else { return (whole, per_try.map(|_| policy)) };
    policy.retry_on = retries.retry_on.join(",");
    policy.num_retries = Some(uint(retries.attempts));
    policy.retriable_status_codes = retries.status_codes.iter().map(|code| u32::from(*code)).collect();
    policy.retry_back_off = Some(route::retry_policy::RetryBackOff {
        base_interval: Some(limit(Some(retries.base_interval))),
        max_interval: Some(limit(Some(retries.max_interval))),
    });
    policy.retry_host_predicate = vec![route::retry_policy::RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(route::retry_policy::retry_host_predicate::ConfigType::TypedConfig(any(
            &PreviousHostsPredicate {},
        ))),
    }];
    policy.host_selection_retry_max_attempts = HOST_PICKS;
    // The native proxy does so by itself.
    policy.retry_priority = (engine == Engine::Envoy).then(|| route::retry_policy::RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(route::retry_policy::retry_priority::ConfigType::TypedConfig(any(
            &PreviousPrioritiesConfig { update_frequency: ATTEMPTS_PER_PRIORITY },
        ))),
    });
    // All gRPC is POST; which calls may be repeated is what their statuses are chosen for. It is said, because without a
    // word the native proxy repeats no POST.
    policy.retriable_request_headers = match protocol {
        Protocol::Grpc => retries.of_answers().then(|| method_is("POST")).into_iter().collect(),
        _ => retries.methods.iter().map(|method| method_is(method)).collect(),
    };
    (whole, Some(policy))
}

/// Most of everything at once.
pub(crate) fn circuit_breakers(traffic: &Traffic, engine: Engine) -> cluster::CircuitBreakers {
    let limits = traffic.limits;
    let budget = retries(traffic, engine).map(|retries| RetryBudget {
        budget_percent: Some(types::Percent { value: f64::from(retries.budget_percent) }),
        min_retry_concurrency: Some(uint(retries.min_retry_concurrency)),
        ..Default::default()
    });
    cluster::CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: Some(uint(limits.connections)),
            max_pending_requests: Some(uint(limits.pending)),
            max_requests: Some(uint(limits.requests)),
            retry_budget: budget,
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// How long connections to endpoints are used, where that is to be said; zero is without end. The native proxy knows the
/// default by itself. Envoy is told where limits are declared, and only there: it ends connections of one age together.
pub(crate) fn max_connection_age(traffic: &Traffic, engine: Engine) -> Option<Duration> {
    let age = traffic.limits.max_connection_age;
    match engine {
        Engine::Native if age == Some(ConcurrencyLimits::MAX_CONNECTION_AGE) => None,
        Engine::Native => Some(age.unwrap_or_default()),
        Engine::Envoy => age.filter(|_| traffic.declared.contains(&TrafficSection::Limits)),
    }
}

/// Ejection, if any.
pub(crate) fn outlier(traffic: &Traffic, engine: Engine) -> Option<cluster::OutlierDetection> {
    let one = &traffic.outlier;
    let on = one.is_on() && sent(traffic, TrafficSection::OutlierEjection, engine, Feature::OutlierEjection);
    // Envoy's counts cannot be zero; whether they count is said apart.
    let count = |count: u32| Some(uint(count.max(1)));
    let enforced = |count: u32| Some(uint(if count > 0 { 100 } else { 0 }));
    let (success, failures) = (one.success_rate, one.failure_percentage);
    let judges_success = Some(uint(if success.is_some() { 100 } else { 0 }));
    // Envoy's default is not to enforce it.
    let judges_failures = failures.map(|_| uint(100));
    on.then(|| cluster::OutlierDetection {
        consecutive_5xx: count(one.errors_5xx),
        enforcing_consecutive_5xx: enforced(one.errors_5xx),
        consecutive_gateway_failure: count(one.gateway_errors),
        enforcing_consecutive_gateway_failure: enforced(one.gateway_errors),
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: count(one.local_origin_failures),
        enforcing_consecutive_local_origin_failure: enforced(one.local_origin_failures),
        enforcing_success_rate: judges_success,
        enforcing_local_origin_success_rate: judges_success,
        success_rate_minimum_hosts: success.map(|rate| uint(rate.minimum_hosts)),
        success_rate_request_volume: success.map(|rate| uint(rate.request_volume)),
        success_rate_stdev_factor: success.map(|rate| uint(rate.stdev_factor)),
        enforcing_failure_percentage: judges_failures,
        enforcing_failure_percentage_local_origin: judges_failures,
        failure_percentage_threshold: failures.map(|rate| uint(rate.threshold)),
        failure_percentage_minimum_hosts: failures.map(|rate| uint(rate.minimum_hosts)),
        failure_percentage_request_volume: failures.map(|rate| uint(rate.request_volume)),
        interval: Some(limit(Some(one.interval))),
        base_ejection_time: Some(limit(Some(one.base_ejection_time))),
        max_ejection_time: Some(limit(Some(one.max_ejection_time))),
        max_ejection_percent: Some(uint(one.max_ejection_percent)),
        // A check that passes says nothing of what requests have met: an ejection lasts as long as was declared.
        successful_active_health_check_uneject_host: traffic.health_check.as_ref().map(|_| boolean(false)),
        ..Default::default()
    })
}

/// Health checks of a port, if what is asked is spoken there.
pub(crate) fn health_checks(callee: &Service, port: &Port) -> Vec<core::HealthCheck> {
    let Some(check) = &callee.traffic.health_check else { return Vec::new() };
    let authority = format!("{}.{}", callee.id.name, callee.id.namespace);
    let checker = match (&check.question, port.protocol) {
        (HealthQuestion::Http { path, statuses }, Protocol::Http | Protocol::Http2) => {
            let codec = match port.protocol {
                Protocol::Http2 => types::CodecClientType::Http2,
                _ => types::CodecClientType::Http1,
            };
            let range =
                |status: &u16| types::Int64Range { start: i64::from(*status), end: i64::from(*status) + 1 };
            HealthChecker::HttpHealthCheck(HttpHealthCheck {
                host: authority,
                path: path.clone(),
                expected_statuses: statuses.iter().map(range).collect(),
                codec_client_type: codec as i32,
                ..Default::default()
            })
        }
        (HealthQuestion::Grpc { service }, Protocol::Grpc) => {
            HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
                service_name: service.clone(),
                authority,
                ..Default::default()
            })
        }
        (HealthQuestion::Tcp, _) => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
        _ => return Vec::new(),
    };
    vec![core::HealthCheck {
        timeout: Some(limit(Some(check.timeout))),
        interval: Some(limit(Some(check.interval))),
        interval_jitter_percent: CHECK_JITTER_PERCENT,
        // Envoy asks less often where nothing is sent; here the same, so that the first request finds out nothing.
        no_traffic_interval: Some(limit(Some(check.interval))),
        unhealthy_threshold: Some(uint(check.unhealthy_threshold)),
        healthy_threshold: Some(uint(check.healthy_threshold)),
        health_checker: Some(checker),
        ..Default::default()
    }]
}

/// How endpoints of a port are picked.
pub(crate) fn balancing(balancing: &Balancing, protocol: Protocol) -> (LbPolicy, Option<LbConfig>) {
    let slow_start = || {
        balancing.slow_start.map(|(window, percent)| SlowStartConfig {
            slow_start_window: Some(limit(Some(window))),
            min_weight_percent: Some(types::Percent { value: f64::from(percent) }),
            ..Default::default()
        })
    };
    let least = || {
        let (choice_count, slow_start_config) = (Some(uint(2)), slow_start());
        let config = LeastRequestLbConfig { choice_count, slow_start_config, ..Default::default() };
        (LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config)))
    };
    // A stream of bytes has nothing to hash but its caller.
    let hashes = protocol != Protocol::Tcp || balancing.hash_keys.contains(&HashKey::SourceAddress);
    match balancing.policy {
        BalancingPolicy::RingHash if hashes => (LbPolicy::RingHash, None),
        BalancingPolicy::Maglev if hashes => (LbPolicy::Maglev, None),
        // Said by [`policies`], and this is for who does not read them.
        BalancingPolicy::PeakEwma if protocol != Protocol::Tcp => (LbPolicy::LeastRequest, None),
        BalancingPolicy::LeastRequest
        | BalancingPolicy::PeakEwma
        | BalancingPolicy::RingHash
        | BalancingPolicy::Maglev => least(),
        BalancingPolicy::RoundRobin => {
            let config = slow_start().map(|slow| RoundRobinLbConfig { slow_start_config: Some(slow) });
            (LbPolicy::RoundRobin, config.map(LbConfig::RoundRobinLbConfig))
        }
        BalancingPolicy::Random => (LbPolicy::Random, None),
    }
}

/// The same where it is an extension: a list of which everybody takes the first that it knows. Nothing tells how long
/// streams of bytes are waited for.
pub(crate) fn policies(balancing: &Balancing, protocol: Protocol) -> Option<cluster::LoadBalancingPolicy> {
    if balancing.policy != BalancingPolicy::PeakEwma || protocol == Protocol::Tcp {
        return None;
    }
    let policy = |name: &str, config: Any| cluster::load_balancing_policy::Policy {
        typed_extension_config: Some(core::TypedExtensionConfig {
            name: name.to_owned(),
            typed_config: Some(config),
        }),
    };
    let peak_ewma = Any { type_url: PEAK_EWMA.to_owned(), value: Vec::new() };
    Some(cluster::LoadBalancingPolicy {
        policies: vec![
            policy("envoy.load_balancing_policies.peak_ewma", peak_ewma),
            policy("envoy.load_balancing_policies.least_request", any(&LeastRequest::default())),
        ],
    })
}

/// What requests to these services are hashed by; the first key that a request has counts.
pub(crate) fn hash_policies<'a>(targets: impl Iterator<Item = &'a Service>) -> Vec<HashPolicy> {
    let mut keys: Vec<&HashKey> = Vec::new();
    for target in targets.filter(|target| target.traffic.balancing.policy.hashes()) {
        for key in &target.traffic.balancing.hash_keys {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
    use hash_policy::{ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter};
    let policy = |key: &HashKey| {
        let specifier = match key {
            HashKey::Header(name) => {
                PolicySpecifier::Header(Header { header_name: name.clone(), ..Default::default() })
            }
            HashKey::Cookie(name, ttl) => PolicySpecifier::Cookie(Cookie {
                name: name.clone(),
                ttl: ttl.map(|ttl| limit(Some(ttl))),
                path: if ttl.is_some() { "/".to_owned() } else { String::new() },
                ..Default::default()
            }),
            HashKey::QueryParam(name) => {
                PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() })
            }
            HashKey::SourceAddress => {
                PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
            }
        };
        HashPolicy { terminal: true, policy_specifier: Some(specifier) }
    };
    keys.into_iter().map(policy).collect()
}

/// The filter that faults of routes need.
pub(crate) fn fault_filter(callee: &Service) -> Option<hcm::HttpFilter> {
    callee.traffic.fault.as_ref().map(|_| filter(FAULT, &fault::HttpFault::default()))
}

fn hundredths(percent: u32) -> Option<types::FractionalPercent> {
    Some(types::FractionalPercent {
        numerator: percent,
        denominator: types::fractional_percent::DenominatorType::Hundred as i32,
    })
}

/// Faults of a route. One entry, so that the encoding of the map is a function of its content.
pub(crate) fn faults(callee: &Service) -> HashMap<String, Any> {
    let Some(policy) = &callee.traffic.fault else { return HashMap::new() };
    let delay = policy.delay.map(|(length, percent)| common_fault::FaultDelay {
        percentage: hundredths(percent),
        fault_delay_secifier: Some(common_fault::fault_delay::FaultDelaySecifier::FixedDelay(limit(Some(
            length,
        )))),
    });
    let abort = policy.abort.map(|(status, percent)| fault::FaultAbort {
        percentage: hundredths(percent),
        error_type: Some(match status {
            FaultStatus::Http(status) => fault::fault_abort::ErrorType::HttpStatus(u32::from(status)),
            FaultStatus::Grpc(status) => fault::fault_abort::ErrorType::GrpcStatus(status),
        }),
        ..Default::default()
    });
    let headers = policy.headers.iter().map(|(name, value)| header_is(name, value)).collect();
    HashMap::from([(
        FAULT.to_owned(),
        any(&fault::HttpFault { delay, abort, headers, ..Default::default() }),
    )])
}

/// The rate of a port, as a filter: its own proxies have one route for it.
pub(crate) fn rate_limit_filter(service: &Service, protocol: Protocol) -> Option<hcm::HttpFilter> {
    let rate = service.traffic.rate_limit?;
    let always = || core::RuntimeFractionalPercent { default_value: hundredths(100), ..Default::default() };
    let config = ratelimit::LocalRateLimit {
        stat_prefix: "rate_limit".to_owned(),
        token_bucket: Some(types::TokenBucket {
            max_tokens: rate.burst,
            tokens_per_fill: Some(uint(rate.requests)),
            fill_interval: Some(limit(Some(rate.interval))),
        }),
        filter_enabled: Some(always()),
        filter_enforced: Some(always()),
        rate_limited_as_resource_exhausted: protocol == Protocol::Grpc,
        ..Default::default()
    };
    Some(filter(RATE_LIMIT, &config))
}
