//! What is done to requests before they go anywhere: rate limits, and faults on purpose.

use std::time::{Duration, Instant};

use outrider_xds::ResourceSet;
use outrider_xds_types::pb::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, RuntimeFractionalPercent,
};
use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
use outrider_xds_types::pb::envoy::config::route::v3::HeaderMatcher;
use outrider_xds_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use outrider_xds_types::pb::envoy::extensions::filters::common::fault::v3::FaultDelay;
use outrider_xds_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use outrider_xds_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use outrider_xds_types::pb::envoy::r#type::v3::{FractionalPercent, TokenBucket};
use outrider_xds_types::pb::google::protobuf::Any;
use outrider_xds_types::prost::{Message, Name};
use outrider_xds_types::type_url;

use super::resilience::{Scripted, hosts, ms, n, reason, set, status};
use super::support::*;

pub fn percent(numerator: u32) -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator, denominator: 0 })
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Puts a filter before the router of the outbound listener.
pub fn filtered<M: Message + Name>(set: &mut ResourceSet, message: &M) {
    edit(set, type_url::LISTENER, OUTBOUND, |listener: &mut Listener| {
        for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            if let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type {
                let mut hcm = HttpConnectionManager::decode(config.value.as_slice()).unwrap();
                let before = hcm.http_filters.len() - 1;
                hcm.http_filters.insert(
                    before,
                    HttpFilter {
                        name: M::NAME.to_owned(),
                        config_type: Some(http_filter::ConfigType::TypedConfig(any(message))),
                        ..Default::default()
                    },
                );
                config.value = hcm.encode_to_vec();
            }
        }
    });
}

#[tokio::test]
async fn faults_are_for_requests_with_the_header() {
    let origin = Scripted::always(200, "ok").await;
    let mut set = set("http", &[origin.address]);
    let fault = HttpFault {
        delay: Some(FaultDelay {
            percentage: percent(100),
            fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(ms(300).unwrap())),
        }),
        abort: Some(FaultAbort {
            percentage: percent(100),
            error_type: Some(ErrorType::HttpStatus(418)),
            ..Default::default()
        }),
        headers: vec![HeaderMatcher {
            name: "x-try".into(),
            header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
            ..Default::default()
        }],
        ..Default::default()
    };
    filtered(&mut set, &fault);
    let mut proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    let began = Instant::now();
    client.send(GET.replace("Host", "X-Try: 1\r\nHost")).await;
    assert_eq!(reason(&mut client, 418).await.0, "fault_injected");
    assert!(began.elapsed() >= Duration::from_millis(290));
    assert_eq!(origin.hits(), 0);
    // On the same connection, without.
    assert_eq!(status(&mut client, GET).await, 200);
    proxy
        .counted("reason", |stats| stats.listeners[OUTBOUND].reasons.get("fault_injected") == Some(&1))
        .await;
    let stats = proxy.stats().await;
    let listener = &stats.listeners[OUTBOUND];
    let added: u64 = listener.added_us.iter().map(|(us, n)| us * n).sum();
    let all = listener.latency_us_sum;
    assert!(all >= added + 290_000, "a delay on purpose is not the proxy's own time: {added} of {all}");
}

#[tokio::test]
async fn a_delay_ends_with_a_drain() {
    let origin = Scripted::always(200, "ok").await;
    let mut set = set("http", &[origin.address]);
    let delay = FaultDelay {
        percentage: percent(100),
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(ms(3_000_000).unwrap())),
    };
    filtered(&mut set, &HttpFault { delay: Some(delay), ..Default::default() });
    let mut proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(GET).await;
    proxy.counted("it waits", |stats| stats.listeners[OUTBOUND].active_requests == 1).await;
    proxy.drain(300).await;
    assert_eq!(reason(&mut client, 503).await.0, "draining");
}

pub fn limit(tokens: u32) -> LocalRateLimit {
    let all = Some(RuntimeFractionalPercent { default_value: percent(100), ..Default::default() });
    LocalRateLimit {
        token_bucket: Some(TokenBucket {
            max_tokens: tokens,
            tokens_per_fill: n(1),
            fill_interval: ms(3_600_000),
        }),
        filter_enabled: all.clone(),
        filter_enforced: all,
        response_headers_to_add: vec![HeaderValueOption {
            header: Some(HeaderValue { key: "X-Limited".into(), value: "yes".into(), ..Default::default() }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// The reason is text, unless the limit's own lines say what it is.
#[tokio::test]
async fn what_answers_one_too_many_has_one_type() {
    for own in [false, true] {
        for protocol in ["http", "http2"] {
            let mut set = set(protocol, &[super::binary::free_address()]);
            let mut limit = limit(1);
            let header =
                HeaderValue { key: "content-type".into(), value: "x/y".into(), ..Default::default() };
            if own {
                limit.response_headers_to_add[0].header = Some(header);
            }
            filtered(&mut set, &limit);
            let proxy = Proxy::start(set).await;
            let mut client = proxy.connect(OUTBOUND).await;
            // One may go on, to where nobody listens.
            let kinds: Vec<String> = if protocol == "http" {
                assert_eq!(status(&mut client, GET).await, 503);
                client.send(GET).await;
                let (head, _) = client.response().await;
                let lines = head.lines().filter_map(|line| line.split_once(": "));
                let kinds = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-type"));
                kinds.map(|(_, kind)| kind.to_owned()).collect()
            } else {
                let mut caller = super::http2::Caller::of(client.tcp).await;
                assert_eq!(caller.get("/").await.status(), 503);
                let response = caller.get("/").await;
                let kinds = response.head.headers().get_all("content-type");
                kinds.iter().map(|kind| kind.to_str().unwrap().to_owned()).collect()
            };
            let kind = if own { "x/y" } else { "text/plain; charset=utf-8" };
            assert_eq!(kinds, [kind], "{protocol}");
        }
    }
}

#[tokio::test]
async fn a_rate_limit_is_kept_by_all_workers_together_and_says_when_to_come_back() {
    let origin = Scripted::always(200, "ok").await;
    let mut set = set("http", &[origin.address]);
    filtered(&mut set, &limit(5));
    let mut proxy = Proxy::start_with(set, 2).await;
    soon("ready", proxy.wait_ready()).await;
    let mut passed = 0;
    for _ in 0..20 {
        let mut client = proxy.connect(OUTBOUND).await;
        client.send(GET).await;
        let (head, _) = client.response().await;
        if head.starts_with("HTTP/1.1 200 ") {
            passed += 1;
            continue;
        }
        assert!(head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{head}");
        assert_eq!(header(&head, "x-outrider-reason"), Some("rate_limited"));
        assert_eq!(header(&head, "x-limited"), Some("yes"));
        let seconds: u64 = header(&head, "retry-after").unwrap().parse().unwrap();
        assert!((1..=3600).contains(&seconds), "{head}");
        // The connection goes on.
        client.send(GET).await;
        client.response().await;
    }
    assert_eq!((passed, origin.hits()), (5, 5));
}

#[tokio::test]
async fn a_route_may_have_a_rate_limit_of_its_own() {
    let origin = Scripted::always(200, "ok").await;
    let mut set = set("http", &[origin.address]);
    filtered(&mut set, &limit(1));
    hosts(&mut set, |host| {
        host.typed_per_filter_config = [("any name".to_owned(), any(&limit(3)))].into();
    });
    let proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(status(&mut client, GET).await);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
}
