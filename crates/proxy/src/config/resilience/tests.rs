use outrider_xds_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrider_xds_types::pb::envoy::config::route::v3::retry_policy::{RetryBackOff, RetryHostPredicate};
use outrider_xds_types::pb::envoy::extensions::filters::common::fault::v3::FaultDelay;
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3::FaultAbort;
use outrider_xds_types::pb::envoy::r#type::v3::{HttpStatus, Percent, TokenBucket};

use super::*;

fn n(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn ms(millis: i64) -> Option<PbDuration> {
    Some(PbDuration { seconds: millis / 1000, nanos: (millis % 1000) as i32 * 1_000_000 })
}

fn at<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
    result.unwrap_err().path
}

#[test]
fn a_retry_policy_is_read_whole_or_refused_by_the_field() {
    let given = PbRetryPolicy {
        retry_on: "gateway-error,retriable-status-codes".into(),
        num_retries: n(4),
        per_try_timeout: ms(1500),
        retriable_status_codes: vec![429, 409],
        retry_back_off: Some(RetryBackOff { base_interval: ms(10), max_interval: None }),
        retry_host_predicate: vec![RetryHostPredicate { name: PREVIOUS_HOSTS.into(), config_type: None }],
        host_selection_retry_max_attempts: 5,
        ..Default::default()
    };
    let (policy, timeout) = retry(given.clone(), "p").unwrap();
    assert_eq!(timeout, Some(Duration::from_millis(1500)));
    assert!(policy.on.gateway_error && policy.on.statuses && !policy.on.server_error);
    assert_eq!(
        (&*policy.statuses, policy.retries, policy.unprocessed_retries),
        ([409, 429].as_slice(), 4, 4)
    );
    assert_eq!(policy.backoff.max, Duration::from_millis(100));
    // Without conditions or number, only what is safe in any case.
    for (retry_on, num_retries) in [("5xx", n(0)), ("", n(3)), ("", None)] {
        let given = PbRetryPolicy { retry_on: retry_on.into(), num_retries, ..Default::default() };
        let policy = retry(given, "p").unwrap().0;
        assert_eq!((policy.retries, policy.unprocessed_retries), (0, 2), "{retry_on}");
        assert!(!policy.keeps());
    }
    let refused: [(&str, PbRetryPolicy); 8] = [
        ("p.retry_on", PbRetryPolicy { retry_on: "retriable-headers".into(), ..given.clone() }),
        ("p.num_retries", PbRetryPolicy { num_retries: n(11), ..given.clone() }),
        ("p.retriable_status_codes", PbRetryPolicy { retriable_status_codes: vec![99], ..given.clone() }),
        (
            "p.retry_back_off.base_interval",
            PbRetryPolicy { retry_back_off: Some(RetryBackOff::default()), ..given.clone() },
        ),
        (
            "p.retry_back_off.max_interval",
            PbRetryPolicy {
                retry_back_off: Some(RetryBackOff { base_interval: ms(10), max_interval: ms(9) }),
                ..given.clone()
            },
        ),
        (
            "p.retry_host_predicate[0].name",
            PbRetryPolicy { retry_host_predicate: vec![Default::default()], ..given.clone() },
        ),
        ("p.per_try_idle_timeout", PbRetryPolicy { per_try_idle_timeout: ms(1), ..given.clone() }),
        ("p.refresh_cluster_on_retry", PbRetryPolicy { refresh_cluster_on_retry: true, ..given }),
    ];
    for (path, given) in refused {
        assert_eq!(at(retry(given, "p")), path);
    }
}

#[test]
fn limits_default_to_those_of_envoy_and_a_budget_replaces_a_number() {
    assert_eq!(limits(None), Ok(Limits::default()));
    let thresholds = |one: Thresholds| Some(CircuitBreakers { thresholds: vec![one], ..Default::default() });
    let given = Thresholds {
        max_connections: n(1),
        max_pending_requests: n(2),
        max_requests: n(3),
        max_retries: n(4),
        ..Default::default()
    };
    let read = limits(thresholds(given)).unwrap();
    assert_eq!((read.connections, read.pending, read.requests, read.retries), (1, 2, 3, Some(4)));
    let budget = RetryBudget {
        budget_percent: Some(Percent { value: 50.0 }),
        min_retry_concurrency: n(7),
        ..Default::default()
    };
    let read = limits(thresholds(Thresholds { retry_budget: Some(budget), ..given })).unwrap();
    assert_eq!((read.retries, read.budget.percent, read.budget.least_per_second), (None, 50.0, 7));
    let refused = [
        ("circuit_breakers.thresholds.priority", Thresholds { priority: 1, ..given }),
        (
            "circuit_breakers.thresholds.max_connection_pools",
            Thresholds { max_connection_pools: n(1), ..given },
        ),
        (
            "circuit_breakers.thresholds.retry_budget.budget_percent",
            Thresholds {
                retry_budget: Some(RetryBudget {
                    budget_percent: Some(Percent { value: 101.0 }),
                    ..Default::default()
                }),
                ..given
            },
        ),
    ];
    for (path, given) in refused {
        assert_eq!(at(limits(thresholds(given))), path);
    }
}

#[test]
fn ejection_defaults_to_envoys_and_refuses_what_is_not_done() {
    assert_eq!(outlier(OutlierDetection::default()), Ok(OutlierConfig::default()));
    let read = outlier(OutlierDetection { base_ejection_time: ms(600_000), ..Default::default() }).unwrap();
    assert_eq!(read.max_time, 600_000, "never shorter than the base");
    let refused = [
        ("interval", OutlierDetection { interval: ms(0), ..Default::default() }),
        ("max_ejection_percent", OutlierDetection { max_ejection_percent: n(101), ..Default::default() }),
        (
            "monitors",
            OutlierDetection { monitors: vec![TypedExtensionConfig::default()], ..Default::default() },
        ),
    ];
    for (field, given) in refused {
        assert_eq!(at(outlier(given)), format!("outlier_detection.{field}"));
    }
}

fn percent(numerator: u32) -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator, denominator: 0 })
}

#[test]
fn faults_and_rate_limits_that_would_do_nothing_are_refused() {
    let delay = FaultDelay {
        percentage: percent(10),
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(ms(20).unwrap())),
    };
    let abort = FaultAbort {
        percentage: percent(100),
        error_type: Some(ErrorType::HttpStatus(418)),
        ..Default::default()
    };
    let given = HttpFault {
        delay: Some(delay),
        abort: Some(abort.clone()),
        max_active_faults: n(3),
        ..Default::default()
    };
    let read = fault(given.clone(), "f").unwrap();
    assert_eq!(read.delay, Some((Share::of(10, 100), Duration::from_millis(20))));
    assert_eq!((read.abort, read.most), (Some((Share::ALL, Abort::Http(418))), Some(3)));
    let refused = [
        (
            "f.delay.header_delay",
            HttpFault { delay: Some(FaultDelay { fault_delay_secifier: None, ..delay }), ..given.clone() },
        ),
        (
            "f.abort.grpc_status",
            HttpFault {
                abort: Some(FaultAbort { error_type: Some(ErrorType::GrpcStatus(17)), ..abort.clone() }),
                ..given.clone()
            },
        ),
        (
            "f.abort.http_status",
            HttpFault {
                abort: Some(FaultAbort { error_type: Some(ErrorType::HttpStatus(7)), ..abort.clone() }),
                ..given.clone()
            },
        ),
        (
            "f.abort.error_type",
            HttpFault { abort: Some(FaultAbort { error_type: None, ..abort }), ..given.clone() },
        ),
        ("f.upstream_cluster", HttpFault { upstream_cluster: "x".into(), ..given }),
    ];
    for (path, given) in refused {
        assert_eq!(at(fault(given, "f")), path);
    }

    let all = Some(RuntimeFractionalPercent { default_value: percent(100), runtime_key: "any".into() });
    let bucket = TokenBucket { max_tokens: 5, tokens_per_fill: None, fill_interval: ms(1000) };
    let given = LocalRateLimit {
        token_bucket: Some(bucket),
        filter_enabled: all.clone(),
        filter_enforced: all,
        ..Default::default()
    };
    let read = rate_limit(given.clone(), "l").unwrap();
    assert_eq!((read.status, read.enabled, read.enforced), (429, Share::ALL, Share::ALL));
    let refused = [
        (
            "l.token_bucket",
            LocalRateLimit { token_bucket: Some(TokenBucket { max_tokens: 0, ..bucket }), ..given.clone() },
        ),
        ("l.token_bucket", LocalRateLimit { token_bucket: None, ..given.clone() }),
        ("l.filter_enabled", LocalRateLimit { filter_enabled: None, ..given.clone() }),
        ("l.status", LocalRateLimit { status: Some(HttpStatus { code: 200 }), ..given.clone() }),
        ("l.descriptors", LocalRateLimit { descriptors: vec![Default::default()], ..given.clone() }),
        (
            "l.local_rate_limit_per_downstream_connection",
            LocalRateLimit { local_rate_limit_per_downstream_connection: true, ..given },
        ),
    ];
    for (path, given) in refused {
        assert_eq!(at(rate_limit(given, "l")), path);
    }
}
