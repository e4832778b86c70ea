//! Access policies about requests: who may ask for what, what is only audited, and what happens to what is open when that
//! changes.

use std::collections::BTreeMap;

use outrider_handover::ToProxy;
use outrider_xds::server::Seen;
use outrider_xds_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use outrider_xds_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster};
use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
use outrider_xds_types::pb::envoy::config::route::v3::route;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use outrider_xds_types::pb::google::protobuf::{Duration, UInt32Value};
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;

use super::mesh::{of_api, with_secrets};
use super::support::*;

const ADMIN: &str = "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: admin, namespace: shop}
spec: {role: client, calls: [api]}
";

/// A policy about `shop/api`.
pub fn policy(name: &str, what: &str) -> String {
    format!(
        "---
apiVersion: outrider.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {{targetRef: {{kind: Service, name: api}}, {what}}}
"
    )
}

/// `shop/web` and `shop/admin` may call `shop/api`, as far as these policies let them.
pub fn documents(protocol: &str, mtls: &str, port: u16, policies: &str) -> String {
    pair(protocol, mtls, port, &format!("{ADMIN}{policies}"))
}

/// The proxy of `shop/api`.
pub async fn server(protocol: &str, origin: &Origin, authority: &Authority, policies: &str) -> Proxy {
    let documents = documents(protocol, "required", origin.port(), policies);
    Proxy::start(of_api(&documents, authority)).await
}

/// The proxy of a caller.
pub async fn caller(protocol: &str, server: &Proxy, authority: &Authority, who: &str) -> Proxy {
    let documents = documents(protocol, "required", 1, "");
    let mut set = with_secrets(&documents, who, authority, who);
    set.insert(assignment(ENDPOINTS, &[server.address(INBOUND)]));
    Proxy::start(set).await
}

const ADMINS: &str = "action: deny, rules: [{from: [{service: web}], to: [{methods: [DELETE, PUT], paths: [{value: /admin}, {type: RegularExpression, value: '/v[0-9]+/x'}]}, {headers: [{name: x-debug, value: '1'}]}]}]";
const READERS: &str = "action: allow, rules: [{from: [{service: web}], to: [{methods: [GET, HEAD, DELETE]}]}, {from: [{service: admin}]}]";
const VERBS: &str = "action: deny, rules: [{to: [{paths: [{value: '/items:purge'}]}]}]";
const TRIAL: &str = "action: deny, mode: audit, rules: [{to: [{paths: [{type: Exact, value: /metrics}]}]}]";
const SOON: &str = "action: allow, mode: audit, rules: [{from: [{service: web}]}]";

/// Edge case 10.
#[tokio::test]
async fn requests_are_allowed_denied_and_audited_one_by_one() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let policies = [("admins", ADMINS), ("readers", READERS), ("trial", TRIAL), ("verbs", VERBS)];
    let policies: String = policies.iter().map(|(name, what)| policy(name, what)).collect();
    let mut server = server("http", &origin, &authority, &policies).await;
    origin.answer_all("ok");
    let cases = [
        ("shop/web", "GET /admin", "", 200),
        ("shop/web", "DELETE /admin", "", 403),
        ("shop/web", "DELETE /admin?x=y", "", 403),
        ("shop/web", "DELETE /administrators", "", 200),
        ("shop/web", "DELETE /v12/x", "", 403),
        ("shop/web", "DELETE /v12/x/y", "", 200),
        // Not allowed by any rule.
        ("shop/web", "POST /", "Content-Length: 0\r\n", 403),
        ("shop/web", "GET /", "X-Debug: 1\r\n", 403),
        ("shop/web", "GET /", "X-Debug: 2\r\n", 200),
        // Whichever line the application takes.
        ("shop/web", "GET /", "X-Debug: 1\r\nX-Debug: 1\r\n", 403),
        ("shop/web", "GET /", "X-Debug: 1\r\nX-Debug: 2\r\n", 403),
        ("shop/web", "GET /", "X-Debug: 2\r\nx-debug: 1\r\n", 403),
        ("shop/web", "GET /", "X-Debug: 2 ,\t1\r\n", 403),
        ("shop/web", "GET /", "X-Debug: 2\r\nX-Debug: 21\r\n", 200),
        // A field that ends at this hop is not the application's.
        ("shop/web", "GET /", "X-Debug: 1\r\nConnection: x-debug\r\n", 200),
        // Where paths decide, one that could be read as another is refused.
        ("shop/web", "GET /x/../admin", "", 403),
        ("shop/web", "GET //admin", "", 403),
        ("shop/web", "GET /%61dmin", "", 403),
        ("shop/web", "GET /%2561dmin", "", 403),
        // A character that a rule names may not come encoded; others may.
        ("shop/admin", "POST /items:purge", "Content-Length: 0\r\n", 403),
        ("shop/admin", "POST /items%3Apurge", "Content-Length: 0\r\n", 403),
        ("shop/admin", "POST /items%3apurge", "Content-Length: 0\r\n", 403),
        ("shop/admin", "POST /items:purges", "Content-Length: 0\r\n", 200),
        ("shop/admin", "GET /x%40y%20z", "", 200),
        // Methods have a case, and servers that fold it.
        ("shop/admin", "delete /admin", "", 403),
        ("shop/admin", "Delete /admin", "", 403),
        ("shop/admin", "DELETE /admin", "", 200),
        ("shop/admin", "POST /", "Content-Length: 0\r\n", 200),
        // What would be denied is counted and served.
        ("shop/admin", "GET /metrics", "", 200),
        ("shop/web", "GET /metrics?a", "", 200),
        ("shop/web", "POST /metrics", "Content-Length: 0\r\n", 403),
    ];
    let mut proxies = BTreeMap::new();
    for who in ["shop/web", "shop/admin"] {
        proxies.insert(who, caller("http", &server, &authority, who).await);
    }
    let mut peers = BTreeMap::new();
    for (who, proxy) in &proxies {
        peers.insert(*who, proxy.connect(OUTBOUND).await);
    }
    let mut denied = 0;
    for (who, line, fields, status) in cases {
        let peer = peers.get_mut(who).unwrap();
        // On one connection for each of them: a denial is about a request.
        peer.send(format!("{line} HTTP/1.1\r\nHost: api\r\n{fields}\r\n")).await;
        let (head, body) = peer.response().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{who} {line} {fields}: {head}");
        if status == 403 {
            denied += 1;
            assert_eq!(header(&head, "x-outrider-reason"), Some("caller_not_allowed"), "{who} {line}");
            // The caller is told that, and not by which policy.
            assert!(body.contains("not allowed to make this request"), "{body}");
            assert!(!body.contains("admins"), "{body}");
        }
    }
    let audited = BTreeMap::from([("trial/0".to_owned(), 2)]);
    server
        .counted("numbers", |stats| {
            let numbers = &stats.listeners[INBOUND];
            numbers.reasons.get("caller_not_allowed") == Some(&denied) && numbers.audited == audited
        })
        .await;
}

/// What an audit counts is what enforcing would refuse, so also what could be read as something that a rule names.
#[tokio::test]
async fn an_audit_counts_what_enforcing_would_refuse() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = server("http", &origin, &authority, &policy("trial", TRIAL)).await;
    origin.answer_all("ok");
    let proxy = caller("http", &server, &authority, "shop/web").await;
    let mut web = proxy.connect(OUTBOUND).await;
    for path in ["/metrics", "//metrics", "/a/..", "/x%3Ay", "/"] {
        web.send(format!("GET {path} HTTP/1.1\r\nHost: api\r\n\r\n")).await;
        assert!(web.response().await.0.starts_with("HTTP/1.1 200 "), "{path}");
    }
    let audited = BTreeMap::from([("trial/0".to_owned(), 1), ("ambiguous-path".to_owned(), 2)]);
    server
        .counted("numbers", |stats| {
            let numbers = &stats.listeners[INBOUND];
            numbers.audited == audited && numbers.reasons.is_empty()
        })
        .await;
}

#[tokio::test]
async fn who_comes_without_tls_is_nobody_that_rules_name() {
    let origin = Origin::bind().await;
    let policies = [policy("admins", ADMINS), policy("readers", READERS)].concat();
    let documents = documents("http", "both", origin.port(), &policies);
    let server = Proxy::start(of_api(&documents, &Authority::new())).await;
    let mut peer = server.connect(INBOUND).await;
    for request in [GET, "DELETE /admin HTTP/1.1\r\nHost: api\r\n\r\n"] {
        peer.send(request).await;
        let (head, _) = peer.response().await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    }
    assert!(origin.is_untouched().await);
}

/// What an audited list of who may call would refuse, for bytes as for requests.
#[tokio::test]
async fn audits_of_callers_count_connections_of_bytes() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = server("tcp", &origin, &authority, &policy("soon", SOON)).await;
    for who in ["shop/web", "shop/admin"] {
        let proxy = caller("tcp", &server, &authority, who).await;
        let (mut app, mut behind) = proxy.open_stream(OUTBOUND, &origin).await;
        behind.send("b").await;
        app.expect("b").await;
    }
    let audited = BTreeMap::from([("(no rule allows it)".to_owned(), 1)]);
    server
        .counted("audited", |stats| {
            let numbers = &stats.listeners[INBOUND];
            numbers.audited == audited && numbers.reasons.is_empty()
        })
        .await;
}

/// A request with so many fields of its own that it has as many as are taken.
fn padded(request: &str) -> String {
    let pads: String = (request.matches("\r\n").count() - 2..200).map(|n| format!("x-{n}: y\r\n")).collect();
    let end = request.len() - 2;
    format!("{}{pads}\r\n", &request[..end])
}

/// N58: a deny that is added ends what it is about, with the reason, and nothing else: of two WebSockets that one caller
/// has, and two responses that go on, one of each is of a path that is denied now. They have as many fields as a request
/// may have, and go on with one more.
#[tokio::test]
async fn a_deny_added_later_ends_what_it_is_about_and_nothing_else() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = server("http", &origin, &authority, "").await;
    let web = caller("http", &server, &authority, "shop/web").await;
    let mut open = Vec::new();
    for path in ["/feed", "/other"] {
        let (mut app, mut behind) = web.ask(OUTBOUND, &padded(&UPGRADE.replace("/ws", path)), &origin).await;
        behind.send(SWITCHED).await;
        app.head().await;
        open.push((path, app, behind));
        let (mut app, mut behind) =
            web.ask(OUTBOUND, &padded(&GET.replace("GET /", &format!("GET {path}"))), &origin).await;
        behind.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").await;
        app.head().await;
        open.push((path, app, behind));
    }
    let deny =
        policy("feed", "action: deny, rules: [{from: [{service: web}], to: [{paths: [{value: /feed}]}]}]");
    let documents = documents("http", "required", origin.port(), &deny);
    server.configure(of_api(&documents, &authority)).await;
    for (path, mut app, mut behind) in open {
        if path == "/feed" {
            assert_eq!(app.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            // The application sees its connection end as well, one way or the other.
            drop(behind.rest().await);
        } else {
            behind.send("0123456789").await;
            app.expect("0123456789").await;
        }
    }
    server.counted("reason", |s| s.listeners[INBOUND].reasons.get("caller_not_allowed") == Some(&2)).await;
}

/// N58, for a request that waits: it is answered.
#[tokio::test]
async fn a_request_that_waits_is_answered_when_it_is_denied() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = server("http", &origin, &authority, "").await;
    let web = caller("http", &server, &authority, "shop/web").await;
    let (mut app, _behind) = web.ask(OUTBOUND, GET, &origin).await;
    let deny = policy("none", "action: deny, rules: [{to: [{methods: [GET]}]}]");
    let documents = documents("http", "required", origin.port(), &deny);
    server.configure(of_api(&documents, &authority)).await;
    let (head, body) = app.response().await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(header(&head, "x-outrider-reason"), Some("caller_not_allowed"));
    // Which policy it was is no business of the caller's.
    assert!(body.starts_with("caller_not_allowed: ") && !body.contains("none"), "{body}");
}

/// N58: what was let in by the request as it came is asked about again by that, whatever it went on as, and however many
/// fields it has; a change that says nothing about it ends nothing.
#[tokio::test]
async fn access_is_asked_again_by_the_request_as_it_came() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    const ALLOW: &str = "action: allow, rules: [{to: [{paths: [{value: /ws}]}]}]";
    const OTHER: &str = "action: deny, rules: [{to: [{paths: [{value: /other}]}]}]";
    const DENY: &str = "action: deny, rules: [{to: [{paths: [{value: /ws}]}]}]";
    let set = |policies: &str| {
        let mut set = of_api(&documents("http", "required", origin.port(), policies), &authority);
        edit(&mut set, type_url::LISTENER, INBOUND, |listener: &mut Listener| {
            for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
                let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type else { continue };
                let mut hcm = HttpConnectionManager::decode(config.value.as_slice()).unwrap();
                let Some(RouteSpecifier::RouteConfig(routes)) = &mut hcm.route_specifier else { continue };
                for route in routes.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
                    let Some(route::Action::Route(action)) = &mut route.action else { continue };
                    action.prefix_rewrite = "/elsewhere/".to_owned();
                }
                config.value = hcm.encode_to_vec();
            }
        });
        set
    };
    let mut server = Proxy::start(set(&policy("allow", ALLOW))).await;
    let web = caller("http", &server, &authority, "shop/web").await;
    let mut tcp = web.connect(OUTBOUND).await;
    tcp.send(padded(UPGRADE)).await;
    let mut behind = origin.accept().await;
    let head = behind.head().await;
    assert!(head.starts_with("GET /elsewhere/ws HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("x-forwarded-client-cert: "), "{head}");
    behind.send(SWITCHED).await;
    tcp.head().await;
    behind.send("a").await;
    tcp.expect("a").await;
    server.configure(set(&[policy("allow", ALLOW), policy("other", OTHER)].concat())).await;
    server.acked(type_url::LISTENER).await;
    behind.send("b").await;
    tcp.expect("b").await;
    server.configure(set(&[policy("allow", ALLOW), policy("deny", DENY)].concat())).await;
    assert_eq!(tcp.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    server.counted("reason", |s| s.listeners[INBOUND].reasons.get("caller_not_allowed") == Some(&1)).await;
}

/// N58: a request that waits for a connection waits no longer than it is allowed.
#[tokio::test]
async fn a_request_that_waits_for_a_place_is_answered_when_it_is_denied() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let set = |policies: &str| {
        let mut set = of_api(&documents("http", "required", origin.port(), policies), &authority);
        edit(&mut set, type_url::CLUSTER, INBOUND, |cluster: &mut Cluster| {
            cluster.connect_timeout = Some(Duration { seconds: 120, nanos: 0 });
            let thresholds =
                Thresholds { max_connections: Some(UInt32Value { value: 1 }), ..Default::default() };
            cluster.circuit_breakers =
                Some(CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
        });
        set
    };
    let mut server = Proxy::start(set("")).await;
    let web = caller("http", &server, &authority, "shop/web").await;
    let (_first, _behind) = web.ask(OUTBOUND, GET, &origin).await;
    let mut second = web.connect(OUTBOUND).await;
    second.send(GET.replace("GET /", "GET /second")).await;
    server.counted("both", |stats| stats.listeners[INBOUND].active_requests == 2).await;
    server
        .configure(set(&policy("none", "action: deny, rules: [{to: [{paths: [{value: /second}]}]}]")))
        .await;
    let (head, _) = second.response().await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(header(&head, "x-outrider-reason"), Some("caller_not_allowed"));
}

/// A setting that would refuse or drop fields is not carried out, so it is not taken.
#[tokio::test]
async fn what_would_be_done_about_underscores_is_refused_by_name() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let documents = documents("http", "required", origin.port(), "");
    let mut server = Proxy::start(of_api(&documents, &authority)).await;
    let mut set = of_api(&documents, &authority);
    edit(&mut set, type_url::LISTENER, INBOUND, |listener: &mut Listener| {
        for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type else { continue };
            let mut hcm = HttpConnectionManager::decode(config.value.as_slice()).unwrap();
            // REJECT_REQUEST.
            hcm.common_http_protocol_options.get_or_insert_default().headers_with_underscores_action = 1;
            config.value = hcm.encode_to_vec();
        }
    });
    server.configure(set).await;
    let seen = server.saw("refusal", |seen| matches!(seen, Seen::Refused { .. })).await;
    assert!(format!("{seen:?}").contains("headers_with_underscores_action"), "{seen:?}");
}

/// N58: what a process still carries while the next one has taken over is asked about like everything else.
#[tokio::test]
async fn a_deny_reaches_a_proxy_that_drains() {
    for protocol in ["tcp", "http"] {
        let (origin, authority) = (Origin::bind().await, Authority::new());
        let mut server = server(protocol, &origin, &authority, "").await;
        let mut open = Vec::new();
        for who in ["shop/web", "shop/admin"] {
            let proxy = caller(protocol, &server, &authority, who).await;
            let (mut app, mut behind) = match protocol {
                "tcp" => proxy.open_stream(OUTBOUND, &origin).await,
                _ => proxy.open_websocket(OUTBOUND, &origin).await,
            };
            behind.send("b").await;
            app.expect("b").await;
            open.push((app, behind, proxy));
        }
        server.tell(ToProxy::Drain { drain_ms: 600_000, inbound_only: false }).await;
        let deny = policy("web", "action: deny, rules: [{from: [{service: web}]}]");
        let documents = documents(protocol, "required", origin.port(), &deny);
        server.configure(of_api(&documents, &authority)).await;
        let (mut kept, mut behind, _kept) = open.pop().unwrap();
        let (mut gone, _behind, _gone) = open.pop().unwrap();
        assert_eq!(gone.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{protocol}");
        behind.send("still here").await;
        kept.expect("still here").await;
    }
}
