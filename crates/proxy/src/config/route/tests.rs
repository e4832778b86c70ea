use outrider_xds_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrider_xds_types::pb::envoy::config::route::v3::route_action::hash_policy::{
    Cookie, CookieAttribute, Header, PolicySpecifier,
};
use outrider_xds_types::pb::envoy::config::route::v3::route_action::{
    HashPolicy, HostRewriteSpecifier, RequestMirrorPolicy,
};
use outrider_xds_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::{RedirectAction, RouteMatch};
use outrider_xds_types::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};
use outrider_xds_types::pb::google::protobuf::{BoolValue, Duration as PbDuration};

use super::*;

fn good() -> Route {
    let specifier = Some(PathSpecifier::Prefix("/a".to_owned()));
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster("c".to_owned())),
        ..RouteAction::default()
    };
    Route {
        r#match: Some(RouteMatch { path_specifier: specifier, ..RouteMatch::default() }),
        action: Some(Action::Route(action)),
        ..Route::default()
    }
}

fn read(route: Route) -> Result<Table, Refusal> {
    let host = VirtualHost { domains: vec!["*".to_owned()], routes: vec![route], ..VirtualHost::default() };
    let config = RouteConfiguration { virtual_hosts: vec![host], ..RouteConfiguration::default() };
    parse(&config.encode_to_vec(), &mut Slots::default())
}

fn action(change: impl FnOnce(&mut RouteAction)) -> Route {
    let mut route = good();
    if let Some(Action::Route(action)) = &mut route.action {
        change(action);
    }
    route
}

fn matched(change: impl FnOnce(&mut RouteMatch)) -> Route {
    let mut route = good();
    if let Some(given) = &mut route.r#match {
        change(given);
    }
    route
}

fn hashed(policy: PolicySpecifier) -> Route {
    action(|a| a.hash_policy = vec![HashPolicy { policy_specifier: Some(policy), ..HashPolicy::default() }])
}

#[test]
fn what_is_not_carried_out_is_refused_by_name() {
    assert!(read(good()).is_ok());
    let regex = |text: &str| RegexMatcher { regex: text.to_owned(), ..RegexMatcher::default() };
    let rewrite = |text: &str, by: &str| RegexMatchAndSubstitute {
        pattern: Some(regex(text)),
        substitution: by.to_owned(),
    };
    let second = Some(PbDuration { seconds: 1, nanos: 0 });
    let route = "virtual_hosts[0].routes[0].route";
    let given = "virtual_hosts[0].routes[0].match";
    for (bad, path) in [
        (
            matched(|m| m.path_specifier = Some(PathSpecifier::SafeRegex(regex("(")))),
            format!("{given}.safe_regex"),
        ),
        (
            matched(|m| {
                m.path_specifier = Some(PathSpecifier::PathMatchPolicy(TypedExtensionConfig::default()))
            }),
            format!("{given}.path_specifier"),
        ),
        (matched(|m| m.case_sensitive = Some(BoolValue { value: false })), format!("{given}.case_sensitive")),
        (matched(|m| m.grpc = Some(Default::default())), format!("{given}.grpc")),
        (matched(|m| m.tls_context = Some(Default::default())), format!("{given}.tls_context")),
        (matched(|m| m.runtime_fraction = Some(Default::default())), format!("{given}.runtime_fraction")),
        (action(|a| a.prefix_rewrite = "no path".to_owned()), format!("{route}.prefix_rewrite")),
        (action(|a| a.regex_rewrite = Some(rewrite("a", r"\1"))), format!("{route}.regex_rewrite")),
        (
            action(|a| a.regex_rewrite = Some(rewrite("a", "b c"))),
            format!("{route}.regex_rewrite.substitution"),
        ),
        (
            action(|a| (a.prefix_rewrite, a.regex_rewrite) = ("/b".to_owned(), Some(rewrite("a", "b")))),
            format!("{route}.regex_rewrite"),
        ),
        (action(|a| a.path_rewrite = "/x".to_owned()), format!("{route}.path_rewrite")),
        (
            action(|a| {
                a.host_rewrite_specifier =
                    Some(HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: true }))
            }),
            format!("{route}.host_rewrite_specifier"),
        ),
        (
            action(|a| {
                a.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral("a b".to_owned()))
            }),
            format!("{route}.host_rewrite_literal"),
        ),
        (action(|a| a.append_x_forwarded_host = true), format!("{route}.append_x_forwarded_host")),
        (
            action(|a| {
                a.max_stream_duration =
                    Some(MaxStreamDuration { grpc_timeout_header_max: second, ..Default::default() })
            }),
            format!("{route}.max_stream_duration.grpc_timeout_header_max"),
        ),
        (
            action(|a| a.request_mirror_policies = vec![RequestMirrorPolicy::default()]),
            format!("{route}.request_mirror_policies[0].cluster"),
        ),
        (
            action(|a| {
                a.request_mirror_policies = vec![RequestMirrorPolicy {
                    cluster: "c".to_owned(),
                    host_rewrite_literal: "x".to_owned(),
                    ..Default::default()
                }];
            }),
            format!("{route}.request_mirror_policies[0].host_rewrite_literal"),
        ),
        (action(|a| a.hedge_policy = Some(Default::default())), format!("{route}.hedge_policy")),
        (
            action(|a| a.cluster_specifier = Some(ClusterSpecifier::ClusterHeader("x".to_owned()))),
            format!("{route}.cluster_specifier"),
        ),
        (
            hashed(PolicySpecifier::Cookie(Cookie {
                name: "id".to_owned(),
                ttl: second,
                attributes: vec![CookieAttribute { name: "SameSite".to_owned(), value: "Strict".to_owned() }],
                ..Default::default()
            })),
            format!("{route}.hash_policy[0].cookie.attributes"),
        ),
        (
            hashed(PolicySpecifier::Header(Header {
                header_name: "x".to_owned(),
                regex_rewrite: Some(rewrite("a", "b")),
            })),
            format!("{route}.hash_policy[0].header.regex_rewrite"),
        ),
        (
            Route {
                action: Some(Action::Redirect(RedirectAction { response_code: 9, ..Default::default() })),
                ..good()
            },
            "virtual_hosts[0].routes[0].redirect.response_code".to_owned(),
        ),
        (
            Route {
                action: Some(Action::Redirect(RedirectAction {
                    host_redirect: "a/b".to_owned(),
                    ..Default::default()
                })),
                ..good()
            },
            "virtual_hosts[0].routes[0].redirect".to_owned(),
        ),
    ] {
        match read(bad) {
            Err(refusal) => assert_eq!(refusal.path, path, "{refusal}"),
            Ok(_) => panic!("{path} was accepted"),
        }
    }
}

/// Older proxies and Envoys are told; here it ends anyway, and costs no response anything.
#[test]
fn what_ends_at_each_hop_may_be_named_as_removed() {
    let remove = |name: &str| Route { response_headers_to_remove: vec![name.to_owned()], ..good() };
    let (table, _) = read(remove("X-Outrider-Unprocessed")).unwrap();
    assert!(table.routes()[0].response_headers.is_empty());
    assert!(!read(remove("x-other")).unwrap().0.routes()[0].response_headers.is_empty());
}

#[test]
fn the_shorter_limit_of_an_exchange_holds() {
    let seconds = |seconds: i64| Some(PbDuration { seconds, nanos: 0 });
    for (timeout, longest, expected) in [
        (None, None, Some(15)),
        (None, seconds(60), Some(15)),
        (seconds(0), seconds(60), Some(60)),
        (seconds(0), seconds(0), None),
        (seconds(9), seconds(0), Some(9)),
        (seconds(9), seconds(3), Some(3)),
    ] {
        let route = action(|a| {
            a.timeout = timeout;
            a.max_stream_duration =
                longest.map(|_| MaxStreamDuration { max_stream_duration: longest, ..Default::default() });
        });
        let (table, _) = read(route).unwrap();
        assert_eq!(
            table.routes()[0].timeouts.total,
            expected.map(Duration::from_secs),
            "{timeout:?} {longest:?}"
        );
    }
}
