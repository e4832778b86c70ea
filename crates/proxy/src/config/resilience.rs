//! What is done when things fail, or are too many: retries, limits, ejection, faults, rate limits.

use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::fault::{Abort, Fault, Share};
use outrider_proxy_core::grpc::Status;
use outrider_proxy_core::limit::{Bucket, RateLimit};
use outrider_proxy_core::outlier::{OutlierConfig, Rate};
use outrider_proxy_core::retry::{MAX_RETRIES, RetryOn, RetryPolicy};
use outrider_xds_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use outrider_xds_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget;
use outrider_xds_types::pb::envoy::config::cluster::v3::{CircuitBreakers, OutlierDetection};
use outrider_xds_types::pb::envoy::config::core::v3::{HeaderValueOption, RuntimeFractionalPercent};
use outrider_xds_types::pb::envoy::config::route::v3::RetryPolicy as PbRetryPolicy;
use outrider_xds_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use outrider_xds_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use outrider_xds_types::pb::envoy::r#type::v3::FractionalPercent;
use outrider_xds_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use outrider_xds_types::pb::google::protobuf::{Duration as PbDuration, UInt32Value};

use super::fields::{Refusal, duration, join, limit, nothing_left};
use super::route::matching::header_match;
use crate::shared::Limits;

/// The one predicate of hosts that is known: those that were tried are avoided.
const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";
/// Longest delay of a fault.
const MAX_DELAY: Duration = Duration::from_secs(3600);

fn uint(value: Option<UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

/// Milliseconds.
pub(super) fn millis(value: Option<PbDuration>, path: &str) -> Result<Option<u64>, Refusal> {
    Ok(duration(value, path)?.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}

/// Reads a retry policy: how requests are repeated, and the limit of one try.
///
/// # Errors
/// What cannot be honoured.
pub fn retry(mut policy: PbRetryPolicy, path: &str) -> Result<(RetryPolicy, Option<Duration>), Refusal> {
    let mut compiled = RetryPolicy::default();
    let on = std::mem::take(&mut policy.retry_on);
    compiled.on = RetryOn::parse(&on).map_err(|e| Refusal::new(join(path, "retry_on"), e.to_string()))?;
    let retries = uint(policy.num_retries.take(), 1);
    if retries > MAX_RETRIES {
        return Err(Refusal::new(join(path, "num_retries"), format!("more than {MAX_RETRIES}")));
    }
    // Without conditions, or without retries, there is what is safe in any case.
    if retries > 0 && !on.is_empty() {
        (compiled.retries, compiled.unprocessed_retries) = (retries, retries);
    }
    let mut statuses = Vec::new();
    for status in std::mem::take(&mut policy.retriable_status_codes) {
        let status = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
        let refusal = || Refusal::new(join(path, "retriable_status_codes"), "not a status of a response");
        statuses.push(status.ok_or_else(refusal)?);
    }
    statuses.sort_unstable();
    compiled.statuses = statuses.into();
    for (n, matcher) in std::mem::take(&mut policy.retriable_request_headers).into_iter().enumerate() {
        let path = join(path, &format!("retriable_request_headers[{n}]"));
        compiled.repeatable.push(header_match(matcher, &path)?);
    }
    if let Some(mut back_off) = policy.retry_back_off.take() {
        let path = join(path, "retry_back_off");
        let base = limit(back_off.base_interval.take(), &join(&path, "base_interval"))?;
        let base = base.ok_or_else(|| Refusal::new(join(&path, "base_interval"), "required"))?;
        let max = limit(back_off.max_interval.take(), &join(&path, "max_interval"))?;
        compiled.backoff.base = base;
        compiled.backoff.max = max.unwrap_or(base.saturating_mul(10));
        if compiled.backoff.max < base {
            return Err(Refusal::new(join(&path, "max_interval"), "is less than base_interval"));
        }
    }
    for (n, predicate) in std::mem::take(&mut policy.retry_host_predicate).into_iter().enumerate() {
        if predicate.name != PREVIOUS_HOSTS {
            let path = join(path, &format!("retry_host_predicate[{n}].name"));
            return Err(Refusal::new(path, format!("only `{PREVIOUS_HOSTS}` is supported")));
        }
    }
    // Hosts that were tried are always avoided while there are others.
    policy.host_selection_retry_max_attempts = 0;
    let timeout = limit(policy.per_try_timeout.take(), &join(path, "per_try_timeout"))?;
    nothing_left(&policy, path)?;
    Ok((compiled, timeout))
}

/// Reads the limits of a cluster.
///
/// # Errors
/// What cannot be honoured.
pub fn limits(breakers: Option<CircuitBreakers>) -> Result<Limits, Refusal> {
    let mut limits = Limits::default();
    let Some(mut breakers) = breakers else { return Ok(limits) };
    let path = "circuit_breakers.thresholds";
    for mut thresholds in std::mem::take(&mut breakers.thresholds) {
        limits.connections = uint(thresholds.max_connections.take(), limits.connections);
        limits.pending = uint(thresholds.max_pending_requests.take(), limits.pending);
        limits.requests = uint(thresholds.max_requests.take(), limits.requests);
        limits.retries = thresholds.max_retries.take().map(|most| most.value);
        if let Some(mut budget) = thresholds.retry_budget.take() {
            let path = join(path, "retry_budget");
            limits.budget.percent = budget.budget_percent.take().map_or(20.0, |percent| percent.value);
            if !(0.0..=100.0).contains(&limits.budget.percent) {
                return Err(Refusal::new(join(&path, "budget_percent"), "not a percentage"));
            }
            limits.budget.least_per_second = uint(budget.min_retry_concurrency.take(), 3);
            // Who sets a budget means it instead of a fixed number, as in Envoy.
            limits.retries = None;
            nothing_left::<RetryBudget>(&budget, &path)?;
        }
        thresholds.track_remaining = false;
        nothing_left::<Thresholds>(&thresholds, path)?;
    }
    nothing_left(&breakers, "circuit_breakers")?;
    Ok(limits)
}

/// Reads when endpoints are ejected.
///
/// # Errors
/// What cannot be honoured.
pub fn outlier(mut given: OutlierDetection) -> Result<OutlierConfig, Refusal> {
    let path = "outlier_detection";
    let default = OutlierConfig::default();
    let chance = |value: Option<UInt32Value>, default: u32, field: &str| match uint(value, default) {
        percent if percent <= 100 => Ok(percent),
        _ => Err(Refusal::new(join(path, field), "not a percentage")),
    };
    let interval = millis(given.interval.take(), &join(path, "interval"))?.unwrap_or(default.interval);
    if interval == 0 {
        return Err(Refusal::new(join(path, "interval"), "must be more than zero"));
    }
    let base_time = millis(given.base_ejection_time.take(), &join(path, "base_ejection_time"))?
        .unwrap_or(default.base_time);
    let max_time = millis(given.max_ejection_time.take(), &join(path, "max_ejection_time"))?;
    let success = default.success_rate;
    let failure = default.failure_percentage;
    let config = OutlierConfig {
        consecutive_5xx: uint(given.consecutive_5xx.take(), default.consecutive_5xx),
        consecutive_gateway: uint(given.consecutive_gateway_failure.take(), default.consecutive_gateway),
        consecutive_local: uint(given.consecutive_local_origin_failure.take(), default.consecutive_local),
        enforcing_5xx: chance(
            given.enforcing_consecutive_5xx.take(),
            default.enforcing_5xx,
            "enforcing_consecutive_5xx",
        )?,
        enforcing_gateway: chance(
            given.enforcing_consecutive_gateway_failure.take(),
            default.enforcing_gateway,
            "enforcing_consecutive_gateway_failure",
        )?,
        enforcing_local: chance(
            given.enforcing_consecutive_local_origin_failure.take(),
            default.enforcing_local,
            "enforcing_consecutive_local_origin_failure",
        )?,
        split: std::mem::take(&mut given.split_external_local_origin_errors),
        interval,
        base_time,
        max_time: max_time.unwrap_or(default.max_time).max(base_time),
        jitter: millis(given.max_ejection_time_jitter.take(), &join(path, "max_ejection_time_jitter"))?
            .unwrap_or(0),
        max_percent: chance(given.max_ejection_percent.take(), default.max_percent, "max_ejection_percent")?,
        always_one: given.always_eject_one_host.take().is_some_and(|yes| yes.value),
        checks_return: given.successful_active_health_check_uneject_host.take().is_none_or(|yes| yes.value),
        success_rate: Rate {
            min_hosts: uint(given.success_rate_minimum_hosts.take(), success.min_hosts),
            volume: uint(given.success_rate_request_volume.take(), success.volume),
            enforcing: chance(
                given.enforcing_success_rate.take(),
                success.enforcing,
                "enforcing_success_rate",
            )?,
            enforcing_local: chance(
                given.enforcing_local_origin_success_rate.take(),
                success.enforcing_local,
                "enforcing_local_origin_success_rate",
            )?,
        },
        deviations: uint(given.success_rate_stdev_factor.take(), default.deviations),
        failure_percentage: Rate {
            min_hosts: uint(given.failure_percentage_minimum_hosts.take(), failure.min_hosts),
            volume: uint(given.failure_percentage_request_volume.take(), failure.volume),
            enforcing: chance(
                given.enforcing_failure_percentage.take(),
                failure.enforcing,
                "enforcing_failure_percentage",
            )?,
            enforcing_local: chance(
                given.enforcing_failure_percentage_local_origin.take(),
                failure.enforcing_local,
                "enforcing_failure_percentage_local_origin",
            )?,
        },
        failure_threshold: chance(
            given.failure_percentage_threshold.take(),
            default.failure_threshold,
            "failure_percentage_threshold",
        )?,
    };
    nothing_left(&given, path)?;
    Ok(config)
}

/// Header lines.
pub(super) fn lines(options: Vec<HeaderValueOption>, path: &str) -> Result<Vec<u8>, Refusal> {
    let mut lines = Vec::new();
    for (n, mut option) in options.into_iter().enumerate() {
        let path = join(path, &format!("[{n}]"));
        // There is nothing before it that it could add to, replace, or leave.
        option.append_action = 0;
        option.keep_empty_value = false;
        let header = option.header.take().unwrap_or_default();
        nothing_left(&option, &path)?;
        let value = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
        let name = header.key.as_bytes();
        let token = !name.is_empty()
            && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(byte));
        let framing = ["host", "content-length", "transfer-encoding", "connection"];
        if !token || framing.iter().any(|taken| header.key.eq_ignore_ascii_case(taken)) {
            return Err(Refusal::new(join(&path, "header.key"), "not a name that can be given here"));
        }
        if value.iter().any(|byte| *byte == b'%' || (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            let cause = "control characters and substitutions (`%`) are not supported";
            return Err(Refusal::new(join(&path, "header.value"), cause));
        }
        lines.extend_from_slice(name);
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(&value);
        lines.extend_from_slice(b"\r\n");
    }
    Ok(lines)
}

fn share(given: Option<FractionalPercent>, path: &str) -> Result<Share, Refusal> {
    let given = given.unwrap_or_default();
    let denominator = match DenominatorType::try_from(given.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(Refusal::new(join(path, "denominator"), "unknown")),
    };
    Ok(Share::of(given.numerator, denominator))
}

/// Reads faults that are made on purpose.
///
/// # Errors
/// What cannot be honoured.
pub fn fault(mut given: HttpFault, path: &str) -> Result<Arc<Fault>, Refusal> {
    let mut fault = Fault::default();
    if let Some(delay) = given.delay.take() {
        let path = join(path, "delay");
        let share = share(delay.percentage, &join(&path, "percentage"))?;
        let time = match delay.fault_delay_secifier {
            Some(FaultDelaySecifier::FixedDelay(time)) => limit(Some(time), &join(&path, "fixed_delay"))?,
            _ => return Err(Refusal::new(join(&path, "header_delay"), "only fixed_delay is supported")),
        };
        let time = time.filter(|time| *time <= MAX_DELAY);
        let time = time.ok_or_else(|| Refusal::new(join(&path, "fixed_delay"), "must be up to an hour"))?;
        fault.delay = Some((share, time));
    }
    if let Some(mut abort) = given.abort.take() {
        let path = join(path, "abort");
        let share = share(abort.percentage.take(), &join(&path, "percentage"))?;
        let (field, status) = match abort.error_type.take() {
            Some(ErrorType::HttpStatus(status)) => {
                let status = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
                ("http_status", status.map(Abort::Http))
            }
            Some(ErrorType::GrpcStatus(code)) => ("grpc_status", Status::from_code(code).map(Abort::Grpc)),
            _ => {
                let cause = "only http_status and grpc_status are supported";
                return Err(Refusal::new(join(&path, "error_type"), cause));
            }
        };
        nothing_left(&abort, &path)?;
        let status = status.ok_or_else(|| Refusal::new(join(&path, field), "not a status of a response"))?;
        fault.abort = Some((share, status));
    }
    for (n, matcher) in std::mem::take(&mut given.headers).into_iter().enumerate() {
        fault.headers.push(header_match(matcher, &join(path, &format!("headers[{n}]")))?);
    }
    fault.most = given.max_active_faults.take().map(|most| most.value);
    given.disable_downstream_cluster_stats = false;
    nothing_left(&given, path)?;
    Ok(Arc::new(fault))
}

/// Reads a local rate limit.
///
/// # Errors
/// What cannot be honoured.
pub fn rate_limit(mut given: LocalRateLimit, path: &str) -> Result<Arc<RateLimit>, Refusal> {
    let bucket =
        given.token_bucket.take().ok_or_else(|| Refusal::new(join(path, "token_bucket"), "required"))?;
    let interval = limit(bucket.fill_interval, &join(path, "token_bucket.fill_interval"))?;
    let compiled =
        Bucket::new(bucket.max_tokens, uint(bucket.tokens_per_fill, 1), interval.unwrap_or_default());
    let cause = "every number must be more than zero, and the time to fill it less than a century";
    let bucket = compiled.ok_or_else(|| Refusal::new(join(path, "token_bucket"), cause))?;
    let mut limit = RateLimit::new(bucket);
    limit.enabled = runtime_share(given.filter_enabled.take(), &join(path, "filter_enabled"))?;
    limit.enforced = runtime_share(given.filter_enforced.take(), &join(path, "filter_enforced"))?;
    if let Some(status) = given.status.take() {
        // As in Envoy, which takes no less.
        let status = u16::try_from(status.code).ok().filter(|status| (400..600).contains(status));
        limit.status = status.ok_or_else(|| Refusal::new(join(path, "status"), "not an error"))?;
    }
    limit.headers =
        lines(std::mem::take(&mut given.response_headers_to_add), &join(path, "response_headers_to_add"))?
            .into();
    limit.resource_exhausted = std::mem::take(&mut given.rate_limited_as_resource_exhausted);
    given.stat_prefix.clear();
    // It always says when to come back.
    given.enable_retry_after_header = false;
    // There are no others.
    given.always_consume_default_token_bucket = None;
    nothing_left(&given, path)?;
    Ok(Arc::new(limit))
}

pub(super) fn runtime_share(given: Option<RuntimeFractionalPercent>, path: &str) -> Result<Share, Refusal> {
    let given = given.ok_or_else(|| {
        Refusal::new(path, "required: by its absence Envoy means 0 %, which would limit nothing")
    })?;
    // There is no runtime that could say otherwise.
    share(given.default_value, &join(path, "default_value"))
}

#[cfg(test)]
mod tests;
