//! Routing as Envoy's messages say it: matches, splits, rewrites, redirects.

use std::net::SocketAddr;

use outrider_xds::ResourceSet;
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::core::v3::{
    DataSource, HeaderValue, HeaderValueOption, data_source, header_value_option::HeaderAppendAction,
};
use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter::ConfigType};
use outrider_xds_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, SchemeRewriteSpecifier,
};
use outrider_xds_types::pb::envoy::config::route::v3::route::Action;
use outrider_xds_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HashPolicy, HostRewriteSpecifier, MaxStreamDuration, hash_policy,
};
use outrider_xds_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::weighted_cluster::{
    ClusterWeight, RandomValueSpecifier,
};
use outrider_xds_types::pb::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, QueryParameterMatcher, RedirectAction, Route, RouteAction,
    RouteConfiguration, RouteMatch, WeightedCluster,
};
use outrider_xds_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use outrider_xds_types::pb::envoy::r#type::matcher::v3::{
    RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use outrider_xds_types::pb::google::protobuf::{Any, BoolValue, Duration, UInt32Value};
use outrider_xds_types::prost::{Message, Name};
use outrider_xds_types::type_url;

use super::support::*;

const CANARY: &str = "shop/canary/main";

fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.to_owned(), ..RegexMatcher::default() }
}

fn text(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

fn on(path: PathSpecifier) -> RouteMatch {
    RouteMatch { path_specifier: Some(path), ..RouteMatch::default() }
}

fn anything() -> RouteMatch {
    on(PathSpecifier::Prefix("/".to_owned()))
}

fn to_cluster() -> RouteAction {
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(OUTBOUND.to_owned())),
        ..RouteAction::default()
    }
}

fn route(matches: RouteMatch, action: Action) -> Route {
    Route { r#match: Some(matches), action: Some(action), ..Route::default() }
}

fn direct(status: u32) -> Action {
    let body = DataSource {
        specifier: Some(data_source::Specifier::InlineString("mine".to_owned())),
        ..DataSource::default()
    };
    Action::DirectResponse(DirectResponseAction { status, body: Some(body), ..Default::default() })
}

fn routes(set: &mut ResourceSet, routes: Vec<Route>) {
    edit::<RouteConfiguration>(set, type_url::ROUTE, OUTBOUND, |config| {
        config.virtual_hosts.truncate(1);
        config.virtual_hosts[0].domains = vec!["*".to_owned()];
        config.virtual_hosts[0].routes = routes;
    });
}

/// What leads `shop/web` to these origins, with a second cluster at `canary`.
fn base(protocol: &str, origin: SocketAddr, canary: SocketAddr) -> ResourceSet {
    let mut set = compiled(&pair(protocol, "off", 1, ""), "shop/web");
    let found = set.of_type(type_url::CLUSTER).find(|r| &*r.name == OUTBOUND).unwrap();
    let mut cluster = Cluster::decode(found.body.as_slice()).unwrap();
    cluster.name = CANARY.to_owned();
    cluster.eds_cluster_config.as_mut().unwrap().service_name = CANARY.to_owned();
    set.insert(resource(type_url::CLUSTER, CANARY, &cluster));
    set.insert(assignment(ENDPOINTS, &[origin]));
    set.insert(assignment(CANARY, &[canary]));
    set
}

async fn proxy_with(list: Vec<Route>) -> (Origin, Proxy) {
    let origin = Origin::bind().await;
    let mut set = base("http", origin.address(), origin.address());
    routes(&mut set, list);
    (origin, Proxy::start(set).await)
}

#[tokio::test]
async fn requests_are_matched_by_expressions_headers_and_queries() {
    let header = |name: &str, matcher: HeaderMatchSpecifier| HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(matcher),
        ..HeaderMatcher::default()
    };
    let query = |name: &str, matcher: StringMatcher| QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(matcher)),
    };
    let users = on(PathSpecifier::SafeRegex(regex("/users/[0-9]+")));
    let blue = HeaderMatchSpecifier::StringMatch(text(MatchPattern::SafeRegex(regex("bl.*"))));
    let with_header = RouteMatch { headers: vec![header("x-color", blue)], ..anything() };
    let v2 = query("version", text(MatchPattern::Exact("2".to_owned())));
    let with_query = RouteMatch { query_parameters: vec![v2], ..anything() };
    let absent = header("x-key", HeaderMatchSpecifier::PresentMatch(false));
    let without_key = RouteMatch { headers: vec![absent], ..anything() };
    let (_origin, proxy) = proxy_with(vec![
        route(users, direct(201)),
        route(with_header, direct(202)),
        route(with_query, direct(203)),
        route(without_key, direct(204)),
    ])
    .await;
    let mut client = proxy.connect(OUTBOUND).await;
    for (target, lines, expected) in [
        ("/users/42?x", "x-key: 1\r\n", 201),
        ("/users/4a", "x-color: blue\r\nx-key: 1\r\n", 202),
        ("/?a&version=2", "x-color: red\r\nx-key: 1\r\n", 203),
        ("/users/", "", 204),
        ("/?version=22", "x-key: 1\r\n", 404),
    ] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: api\r\n{lines}\r\n")).await;
        let (head, _) = client.response().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {expected}")), "{target} {lines:?}: {head}");
    }
}

#[tokio::test]
async fn paths_and_hosts_are_rewritten() {
    let cart = RouteAction {
        prefix_rewrite: "/basket".to_owned(),
        host_rewrite_specifier: Some(HostRewriteSpecifier::HostRewriteLiteral("basket:81".to_owned())),
        ..to_cluster()
    };
    let turned = RouteAction {
        regex_rewrite: Some(RegexMatchAndSubstitute {
            pattern: Some(regex("^/([a-z]+)/([0-9]+)$")),
            substitution: r"/\2/\1".to_owned(),
        }),
        ..to_cluster()
    };
    let (origin, proxy) = proxy_with(vec![
        route(on(PathSpecifier::PathSeparatedPrefix("/cart".to_owned())), Action::Route(cart)),
        route(anything(), Action::Route(turned)),
    ])
    .await;
    let mut client = proxy.connect(OUTBOUND).await;
    client
        .send("POST /cart/items?a=/cart HTTP/1.1\r\nX-A: 1\r\nhost: api\r\nContent-Length: 2\r\n\r\nhi")
        .await;
    let mut server = origin.accept().await;
    server
        .expect(
            "POST /basket/items?a=/cart HTTP/1.1\r\nX-A: 1\r\nContent-Length: 2\r\nHost: basket:81\r\n\r\nhi",
        )
        .await;
    server.send(OK).await;
    client.expect(OK).await;
    // The way of HTTP/1.0, and of a proxy.
    client.send("GET http://api/users/7?q HTTP/1.1\r\nHost: api\r\n\r\n").await;
    server.expect("GET /7/users?q HTTP/1.1\r\nHost: api\r\n\r\n").await;
    server.send(OK).await;
    client.expect(OK).await;
}

#[tokio::test]
async fn callers_are_redirected() {
    let elsewhere = RedirectAction {
        scheme_rewrite_specifier: Some(SchemeRewriteSpecifier::SchemeRedirect("https".to_owned())),
        host_redirect: "other".to_owned(),
        port_redirect: 8443,
        response_code: 4,
        path_rewrite_specifier: Some(PathRewriteSpecifier::PrefixRewrite("/new".to_owned())),
        ..RedirectAction::default()
    };
    let with_header = Route {
        response_headers_to_add: vec![HeaderValueOption {
            header: Some(HeaderValue { key: "x-a".to_owned(), value: "1".to_owned(), ..Default::default() }),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
            ..HeaderValueOption::default()
        }],
        ..route(on(PathSpecifier::PathSeparatedPrefix("/old".to_owned())), Action::Redirect(elsewhere))
    };
    let (_origin, proxy) =
        proxy_with(vec![with_header, route(anything(), Action::Redirect(RedirectAction::default()))]).await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send("GET /old/x?q=1 HTTP/1.1\r\nHost: api\r\n\r\n").await;
    client
        .expect(
            "HTTP/1.1 308 Permanent Redirect\r\nx-outrider-reason: direct_response\r\nx-a: 1\r\n\
             Location: https://other:8443/new/x?q=1\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
    client.send("GET /y HTTP/1.1\r\nHost: api:8080\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(header(&head, "location"), Some("http://api:8080/y"), "{head}");
    assert!(head.starts_with("HTTP/1.1 301 Moved Permanently\r\n"), "{head}");
}

/// As Envoy says it: text, unless the configuration names a type, and none of what is empty.
#[tokio::test]
async fn a_body_that_is_configuration_has_a_type() {
    let line =
        HeaderValue { key: "content-type".to_owned(), value: "text/html".to_owned(), ..Default::default() };
    let html = Route {
        response_headers_to_add: vec![HeaderValueOption {
            header: Some(line),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
            ..HeaderValueOption::default()
        }],
        ..route(on(PathSpecifier::Path("/html".to_owned())), direct(200))
    };
    let empty = Action::DirectResponse(DirectResponseAction { status: 200, ..Default::default() });
    let list = vec![
        html,
        route(on(PathSpecifier::Path("/empty".to_owned())), empty),
        route(anything(), direct(200)),
    ];
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    for protocol in ["http", "http2"] {
        let mut set = base(protocol, nowhere, nowhere);
        routes(&mut set, list.clone());
        let proxy = Proxy::start(set).await;
        for (path, kind) in [("/html", Some("text/html")), ("/empty", None), ("/", Some("text/plain"))] {
            let is = if protocol == "http" {
                let mut client = proxy.connect(OUTBOUND).await;
                client.send(format!("GET {path} HTTP/1.1\r\nHost: api\r\n\r\n")).await;
                let (head, _) = client.response().await;
                assert_eq!(
                    head.to_lowercase().matches("content-type").count(),
                    usize::from(kind.is_some()),
                    "{head}"
                );
                header(&head, "content-type").map(str::to_owned)
            } else {
                let answer = crate::http2::Caller::connect(&proxy, OUTBOUND).await.get(path).await;
                answer.header("content-type").map(str::to_owned)
            };
            assert_eq!(is.as_deref(), kind, "{protocol} {path}");
        }
    }
}

fn shares(stable: u32, canary: u32, by: Option<RandomValueSpecifier>) -> Vec<Route> {
    let weight = |name: &str, weight: u32| ClusterWeight {
        name: name.to_owned(),
        weight: Some(UInt32Value { value: weight }),
        ..ClusterWeight::default()
    };
    let weighted = WeightedCluster {
        clusters: vec![weight(OUTBOUND, stable), weight(CANARY, canary)],
        random_value_specifier: by,
        ..WeightedCluster::default()
    };
    let cookie = hash_policy::PolicySpecifier::Cookie(hash_policy::Cookie {
        name: "id".to_owned(),
        ..hash_policy::Cookie::default()
    });
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(weighted)),
        hash_policy: vec![HashPolicy { policy_specifier: Some(cookie), ..HashPolicy::default() }],
        ..RouteAction::default()
    };
    vec![route(anything(), Action::Route(action))]
}

/// N43: the same key keeps its version while the weight of the new one grows, by header or hash policy.
#[tokio::test]
async fn a_key_changes_its_version_once_while_weights_move() {
    const KEYS: usize = 60;
    let by_header = || RandomValueSpecifier::HeaderName("x-user".to_owned());
    let by_policy = || RandomValueSpecifier::UseHashPolicy(BoolValue { value: true });
    for (by, line) in
        [(&by_header as &dyn Fn() -> RandomValueSpecifier, "x-user: "), (&by_policy, "cookie: a=b; id=")]
    {
        let (stable, canary) = (Origin::bind().await, Origin::bind().await);
        let mut set = base("http", stable.answer_all("stable"), canary.answer_all("canary"));
        routes(&mut set, shares(100, 0, Some(by())));
        let mut proxy = Proxy::start(set.clone()).await;
        let mut client = proxy.connect(OUTBOUND).await;
        let mut on_canary = [false; KEYS];
        for weight in [0, 5, 20, 50, 80, 100] {
            routes(&mut set, shares(100 - weight, weight, Some(by())));
            proxy.configure(set.clone()).await;
            proxy.acked(type_url::ROUTE).await;
            for (key, was) in on_canary.iter_mut().enumerate() {
                for _ in 0..2 {
                    client.send(format!("GET / HTTP/1.1\r\nHost: api\r\n{line}user-{key}\r\n\r\n")).await;
                    let is = client.response().await.1 == "canary";
                    assert!(is || !*was, "{line}user-{key} went back at {weight}");
                    *was |= is;
                }
            }
            let moved = on_canary.iter().filter(|on| **on).count();
            match weight {
                0 => assert_eq!(moved, 0),
                100 => assert_eq!(moved, KEYS),
                50 => assert!((KEYS / 5..KEYS * 4 / 5).contains(&moved), "{moved} of {KEYS}"),
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn without_a_key_shares_are_random() {
    let (stable, canary) = (Origin::bind().await, Origin::bind().await);
    let mut set = base("http", stable.answer_all("stable"), canary.answer_all("canary"));
    routes(&mut set, shares(50, 50, None));
    let proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    // Wrong by chance once in 10^60 runs.
    for _ in 0..200 {
        client.send("GET / HTTP/1.1\r\nHost: api\r\ncookie: id=1\r\n\r\n").await;
        *seen.entry(client.response().await.1).or_default() += 1;
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[tokio::test]
async fn an_exchange_has_a_longest_duration() {
    let arrange = async || {
        let action = RouteAction {
            timeout: Some(Duration::default()),
            max_stream_duration: Some(MaxStreamDuration {
                max_stream_duration: Some(Duration { seconds: 0, nanos: 200_000_000 }),
                ..MaxStreamDuration::default()
            }),
            ..to_cluster()
        };
        proxy_with(vec![route(anything(), Action::Route(action))]).await
    };
    let begin = async |(origin, proxy): (Origin, Proxy)| {
        let (mut client, mut server) = proxy.ask(OUTBOUND, GET, &origin).await;
        let begun = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot all";
        server.send(begun).await;
        client.expect(begun).await;
        (proxy, client, server)
    };
    let (mut proxy, mut client, _server) =
        within(std::time::Duration::from_millis(200), arrange, begin).await;
    assert_eq!(client.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    proxy
        .counted("the limit", |stats| stats.listeners[OUTBOUND].reasons.get("total_timeout") == Some(&1))
        .await;
}

fn tcp_shares(set: &mut ResourceSet, stable: u32, canary: u32) {
    edit::<Listener>(set, type_url::LISTENER, OUTBOUND, |listener| {
        let filters = listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters);
        let any = filters.filter_map(|filter| match &mut filter.config_type {
            Some(ConfigType::TypedConfig(any)) if any.type_url == TcpProxy::type_url() => Some(any),
            _ => None,
        });
        for any in any {
            let mut proxy = TcpProxy::decode(any.value.as_slice()).unwrap();
            let weight = |name: &str, weight: u32| tcp_proxy::weighted_cluster::ClusterWeight {
                name: name.to_owned(),
                weight,
                ..Default::default()
            };
            let clusters = vec![weight(OUTBOUND, stable), weight(CANARY, canary)];
            proxy.cluster_specifier =
                Some(tcp_proxy::ClusterSpecifier::WeightedClusters(tcp_proxy::WeightedCluster { clusters }));
            *any = Any { type_url: TcpProxy::type_url(), value: proxy.encode_to_vec() };
        }
    });
}

#[tokio::test]
async fn tcp_connections_are_shared_by_weight() {
    let (stable, canary) = (Origin::bind().await, Origin::bind().await);
    let mut set = base("tcp", stable.address(), canary.address());
    tcp_shares(&mut set, 1, 0);
    let mut proxy = Proxy::start(set.clone()).await;
    for _ in 0..5 {
        let mut client = proxy.connect(OUTBOUND).await;
        client.send("a").await;
        stable.accept().await.expect("a").await;
    }
    tcp_shares(&mut set, 0, 1);
    proxy.configure(set.clone()).await;
    proxy.acked(type_url::LISTENER).await;
    for _ in 0..5 {
        let mut client = proxy.connect(OUTBOUND).await;
        client.send("b").await;
        canary.accept().await.expect("b").await;
    }
    tcp_shares(&mut set, 0, 0);
    proxy.configure(set).await;
    proxy.acked(type_url::LISTENER).await;
    let ended = match tokio::net::TcpStream::connect(proxy.address(OUTBOUND)).await {
        Ok(tcp) => Peer { tcp, buffer: Vec::new() }.rest().await.map(drop),
        Err(e) => Err(e),
    };
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    proxy.counted("reason", |stats| stats.listeners[OUTBOUND].reasons.get("no_backends") == Some(&1)).await;
}

/// From the document of a route to the bytes at its endpoint.
#[tokio::test]
async fn documents_of_routes_are_carried_out() {
    const ROUTE: &str = r#"---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: api, namespace: shop}
spec:
  parentRefs: [{kind: Service, name: api}]
  rules:
    - matches:
        - path: {type: RegularExpression, value: "/users/[0-9]+"}
          headers: [{type: RegularExpression, name: x-version, value: "2\\..*"}]
          queryParams: [{name: debug, value: "1"}]
      filters:
        - type: URLRewrite
          urlRewrite: {hostname: users.example, path: {type: ReplaceFullPath, replaceFullPath: /all}}
      backendRefs: [{name: api, port: 8080}]
    - matches: [{path: {value: /old}}]
      filters:
        - type: RequestRedirect
          requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 307}
    - matches: [{path: {value: /cart}}]
      filters:
        - type: URLRewrite
          urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}
      backendRefs: [{name: api, port: 8080}]
---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: api, namespace: shop}
spec:
  targetRef: {kind: Service, name: api}
  balancing: {policy: maglev, hashKeys: [{type: cookie, name: lb, ttl: 1h}]}
"#;
    let origin = Origin::bind().await;
    let mut set = compiled(&pair("http", "off", 1, ROUTE), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    let proxy = Proxy::start(set).await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send("GET /users/42?debug=1 HTTP/1.1\r\nHost: api\r\nX-Version: 2.1\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.expect("GET /all?debug=1 HTTP/1.1\r\nX-Version: 2.1\r\nHost: users.example\r\n\r\n").await;
    server.send(OK).await;
    let (head, _) = client.response().await;
    assert!(header(&head, "set-cookie").is_some_and(|cookie| cookie.starts_with("lb=")), "{head}");
    for (path, expected) in [("/cart/items", "/items"), ("/cart", "/"), ("/cart?x", "/?x")] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: api\r\n\r\n")).await;
        server.expect(&format!("GET {expected} HTTP/1.1\r\nHost: api\r\n\r\n")).await;
        server.send(OK).await;
        client.response().await;
    }
    client.send("GET /old/x?q HTTP/1.1\r\nHost: api:8080\r\n\r\n").await;
    let (head, _) = client.response().await;
    assert!(head.starts_with("HTTP/1.1 307 Temporary Redirect\r\n"), "{head}");
    assert_eq!(header(&head, "location"), Some("http://api:8080/new/x?q"), "{head}");
    client.send("GET /users/42 HTTP/1.1\r\nHost: api\r\n\r\n").await;
    let (head, _) = client.response().await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
}
