//! Access policies and redirects, decided by a real Envoy. Needs `OUTRIDER_ENVOY` = path of Envoy.

use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter::ConfigType};
use outrider_xds_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use outrider_xds_types::prost::{Message, Name};

use super::envoy_accepts::{ask, bootstrap, start};
use super::*;

const SERVICES: &str = "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {name: n}\n\
     spec: {engine: envoy, mtls: off}\n---\n\
     apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: web, namespace: n}\n\
     spec: {role: client, calls: [api]}\n---\n\
     apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: api, namespace: n}\n\
     spec: {role: server, ports: [{name: http, port: 80, protocol: http}]}\n---\n";

const POLICIES: &str = "apiVersion: outrider.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: closed, namespace: n}\n\
     spec:\n  action: deny\n  rules:\n  \
     - to: [{paths: [{value: /admin}, {type: RegularExpression, value: '/v[0-9]+/keys'}, {value: '/items:purge'}, {value: /caf%C3%A9}]}, {methods: [DELETE]}]\n  \
     - to: [{methods: [POST], headers: [{name: x-debug, value: '1'}, {type: RegularExpression, name: x-who, value: 'a.*'}]}]\n  \
     - to: [{headers: [{name: user-agent, value: bot}]}, {headers: [{name: host, value: internal.example}]}, \
     {headers: [{type: RegularExpression, name: host, value: '^(db|dbs)[.]example$'}]}]\n---\n\
     apiVersion: outrider.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: open, namespace: n}\n\
     spec: {action: allow, rules: [{to: [{methods: [GET, POST, DELETE], paths: [{value: /}]}, \
     {methods: [PATCH], headers: [{name: x-role, value: admin}]}, \
     {methods: [PUT], headers: [{type: RegularExpression, name: x-role, value: 'admin|root'}]}]}]}\n---\n\
     apiVersion: outrider.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: trial, namespace: n}\n\
     spec: {action: deny, mode: audit, rules: [{to: [{paths: [{value: /trial}]}]}]}\n";

#[test]
fn envoy_decides_by_method_path_and_header() {
    let Some(envoy) = std::env::var_os("OUTRIDER_ENVOY") else {
        println!("skipped: OUTRIDER_ENVOY is not set");
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let api = proxy(&intent(&format!("{SERVICES}{POLICIES}")), "n/api");
    let (listens, mut envoy) = start(&envoy, directory.path(), bootstrap(&api.resources));
    // What is let in finds no application.
    let (in_, out, never) = ("503", "403", "4");
    for (line, fields, expected) in [
        ("GET /", "", in_),
        ("GET /administration", "", in_),
        ("PATCH /", "X-Role: admin\r\n", in_),
        ("PUT /", "X-Role: root\r\n", in_),
        ("PATCH /", "", out),
        ("PATCH /", "X-Role: user\r\n", out),
        ("PATCH /", "X-Role: root\r\n", out),
        ("PATCH /", "X-Role: admin\r\nX-Role: user\r\n", out),
        ("PATCH /", "X-Role: user\r\nX-Role: admin\r\n", out),
        ("PUT /", "X-Role: user\r\nX-Role: root\r\n", out),
        ("PUT /", "X-Role: root\r\nX-Role: user\r\n", out),
        ("PUT /", "", out),
        ("GET /a%20b?x=/admin//../", "", in_),
        ("GET /trial", "", in_),
        ("GET /v1/keyring", "", in_),
        ("POST /", "X-Debug: 1\r\n", in_),
        ("POST /", "X-Debug: 1\r\nX-Who: bert\r\n", in_),
        ("GET /", "X-Debug: 1\r\nX-Who: anna\r\n", in_),
        ("POST /", "X-Debug: 2\r\nX-Debug: 11\r\nX-Who: anna\r\n", in_),
        ("GET /x%40y%20z", "", in_),
        ("GET /items:purges", "", in_),
        ("GET /admin", "", out),
        ("GET /admin?a", "", out),
        ("GET /admin/users", "", out),
        ("GET /v12/keys", "", out),
        ("DELETE /", "", out),
        ("PUT /", "", out),
        ("POST /", "X-Debug: 1\r\nX-Who: anna\r\n", out),
        // Whichever line an application takes, and if it takes members of lists.
        ("POST /", "X-Debug: 1\r\nX-Debug: 1\r\nX-Who: anna\r\n", out),
        ("POST /", "X-Debug: 1\r\nX-Debug: 2\r\nX-Who: anna\r\n", out),
        ("POST /", "X-Debug: 2\r\nX-Debug: 1\r\nX-Who: bert\r\nX-Who: anna\r\n", out),
        ("POST /", "X-Debug: 2 ,\t1\r\nX-Who: bert, anna\r\n", out),
        ("GET /", "User-Agent: bot\r\n", out),
        ("GET /", "User-Agent: bot\r\nUser-Agent: bot\r\n", out),
        ("GET /", "User-Agent: good\r\nUser-Agent: bot\r\n", out),
        // Expressions match bytes that are no UTF-8.
        ("GET /", "User-Agent: \u{ff},bot\r\n", out),
        ("GET /", "User-Agent: \u{ff}\r\nUser-Agent: bot\r\n", out),
        ("GET /", "User-Agent: \u{ff}\r\n", in_),
        ("GET /", "User-Agent: \u{c3}\u{bc}\r\n", in_),
        ("POST /", "X-Debug: \u{ff}\r\nX-Debug: 1\r\nX-Who: anna\r\n", out),
        ("POST /", "X-Debug: 1\r\nX-Who: \u{ff}\r\nX-Who: anna\r\n", out),
        ("POST /", "X-Debug: 1\r\nX-Who: a\u{ff}\r\n", out),
        ("POST /", "X-Debug: 2\r\nX-Who: a\u{ff}\r\n", in_),
        ("GET /", "Host: internal.example\u{ff}\r\n", never),
        // If it sees fields as variables.
        ("POST /", "X_Debug: 1\r\nX_Who: anna\r\n", out),
        ("POST /", "X-Debug: 2\r\nX_Debug: 1\r\nX-Who: anna\r\n", out),
        ("GET /", "User_Agent: bot\r\n", out),
        ("PATCH /", "X_Role: admin\r\n", out),
        ("PATCH /", "X-Role: admin\r\nX_Role: user\r\n", out),
        // Hosts have no case, and may have a dot and a port.
        ("GET /", "Host: internal.example\r\n", out),
        ("GET /", "Host: INTERNAL.example.:80\r\n", out),
        ("GET /", "Host: an.internal.example\r\n", in_),
        ("GET /", "Host: DB.example.:8080\r\n", out),
        ("GET /", "Host: dbs.example\r\n", out),
        // What a server may take for /admin.
        ("GET //admin", "", out),
        ("GET /x/../admin", "", out),
        ("GET /./admin", "", out),
        ("GET /x/..", "", out),
        ("GET /%61dmin", "", out),
        ("GET /%2561dmin", "", out),
        ("GET /%c1%a1dmin", "", out),
        ("GET /%u0061dmin", "", out),
        ("GET /admin%0a", "", out),
        ("GET /\u{ff}/../admin", "", never),
        ("GET /\u{ff}/%2e%2e/admin", "", never),
        ("GET /items:purge", "", out),
        ("GET /items%3Apurge", "", out),
        ("GET /items%3apurge", "", out),
        ("GET /caf%c3%A9/x", "", out),
        ("GET /x/%2e%2e/admin", "", out),
        ("GET /x%2f..%2fadmin", "", out),
        ("GET /admin;a=b", "", out),
        ("GET /x\\..\\admin", "", out),
    ] {
        let fields = format!("{fields}Connection: close\r\nContent-Length: 0\r\n");
        let answer = ask(listens, line, &fields, &mut envoy);
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{line}: {answer}");
        if expected == out {
            assert!(answer.contains("x-outrider-reason: caller_not_allowed\r\n"), "{line}: {answer}");
        }
    }
}

#[test]
fn envoy_redirects_as_the_gateway_api_says() {
    let Some(envoy) = std::env::var_os("OUTRIDER_ENVOY") else {
        println!("skipped: OUTRIDER_ENVOY is not set");
        return;
    };
    let rule = |path: &str, redirect: &str| {
        format!(
            "  - matches: [{{path: {{value: {path}}}}}]\n    \
             filters: [{{type: RequestRedirect, requestRedirect: {redirect}}}]\n"
        )
    };
    let prefix = |with: &str| format!("{{path: {{type: ReplacePrefixMatch, replacePrefixMatch: '{with}'}}}}");
    let rules = [
        rule("/s", "{scheme: https, hostname: b.example, statusCode: 308}"),
        rule("/p", "{port: 8443, statusCode: 307}"),
        rule("/f", "{path: {type: ReplaceFullPath, replaceFullPath: /full}, statusCode: 301}"),
        rule("/x.y", &prefix("/")),
        rule("/a", &prefix("/b/")),
        rule("/", &prefix("/all")),
    ];
    let route = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: n}}\n\
         spec:\n  parentRefs: [{{kind: Service, name: api}}]\n  rules:\n{}",
        rules.concat()
    );
    let directory = tempfile::tempdir().expect("a directory");
    let web = proxy(&intent(&format!("{SERVICES}{route}")), "n/web");
    let (listens, mut envoy) = start(&envoy, directory.path(), bootstrap(&web.resources));
    for (path, status, location) in [
        ("/s/a?q=1", 308, "https://b.example/s/a?q=1"),
        ("/p", 307, "http://api:8443/p"),
        ("/f/g?q=1", 301, "http://api/full?q=1"),
        ("/x.y", 302, "http://api/"),
        ("/x.y/", 302, "http://api/"),
        ("/x.y/z", 302, "http://api/z"),
        ("/xzy", 302, "http://api/all/xzy"),
        ("/a", 302, "http://api/b"),
        ("/a/c", 302, "http://api/b/c"),
        ("/", 302, "http://api/all/"),
    ] {
        let answer = ask(listens, &format!("GET {path}"), "Connection: close\r\n", &mut envoy);
        let expected = format!("location: {location}\r\n");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        assert!(answer.to_lowercase().contains(&expected), "{path}: {answer}");
    }
}

/// What is only audited says the same of what can be read in two ways as what is enforced.
#[test]
fn audits_have_the_rules_of_what_is_enforced() {
    let rule = "{action: deny, rules: [{to: [{methods: [GET], paths: [{value: '/a:b'}]}]}]";
    let document = |name: &str, mode: &str| {
        format!(
            "apiVersion: outrider.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: n}}\n\
             spec: {rule}, mode: {mode}}}\n---\n"
        )
    };
    for (policies, enforced, audited) in [
        (document("a", "audit"), 0, 2),
        (document("a", "enforce"), 2, 0),
        (document("a", "enforce") + &document("b", "audit"), 2, 0),
    ] {
        let api = proxy(&intent(&format!("{SERVICES}{policies}")), "n/api");
        let (mut found, mut shadow) = (0, 0);
        for chain in listener(&api.resources, "inbound/http").filter_chains {
            for rbac in super::envoy_accepts::rbac_filters(&chain) {
                let count = |rules: Option<outrider_xds_types::pb::envoy::config::rbac::v3::Rbac>| {
                    rules.map_or(0, |rules| {
                        rules.policies.keys().filter(|name| name.starts_with("ambiguous-")).count()
                    })
                };
                found += count(rbac.rules);
                shadow += count(rbac.shadow_rules);
            }
        }
        assert_eq!((found, shadow), (enforced, audited), "{policies}");
    }
}

fn listener(set: &ResourceSet, name: &str) -> Listener {
    let found = set.get(type_url::LISTENER, name).expect("a listener");
    Listener::decode(found.body.as_slice()).expect("decodes")
}

/// SPIFFE IDs that an inbound port of bytes lets in.
fn let_in(policies: &str) -> Vec<String> {
    let yaml = format!(
        "{}{policies}",
        include_str!("cases/access-policies.yaml")
            .split("---\napiVersion: outrider.dev/v1alpha1\nkind: AccessPolicy")
            .next()
            .expect("services")
    );
    let api = proxy(&intent(&yaml), "shop/api");
    let listener = listener(&api.resources, "inbound/raw");
    let Some(ConfigType::TypedConfig(any)) = &listener.filter_chains[0].filters[0].config_type else {
        panic!("a typed filter")
    };
    assert_eq!(any.type_url, Rbac::type_url());
    let rules = Rbac::decode(any.value.as_slice()).expect("decodes").rules.expect("rules");
    let text = format!("{rules:?}");
    ["admin", "web"]
        .into_iter()
        .filter(|name| text.contains(&format!("svc/{name}\"")))
        .map(String::from)
        .collect()
}

fn policy(action: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: outrider.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {action}, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: api}}, action: {action}, rules: {rules}}}\n"
    )
}

/// N58 for bytes: what a policy says of callers decides who is let in, on top of `calls`.
#[test]
fn bytes_are_let_in_by_caller() {
    let everybody = ["admin", "web"];
    for (policies, expected) in [
        (String::new(), &everybody[..]),
        (policy("deny", "[{from: [{service: web}]}]"), &["admin"]),
        (policy("deny", "[{from: [{namespace: shop}]}]"), &[]),
        (policy("deny", "[{}]"), &[]),
        (policy("allow", "[{from: [{service: web}]}]"), &["web"]),
        (policy("allow", "[{}]"), &everybody),
        (policy("allow", "[{to: [{ports: [80]}]}]"), &[]),
        (policy("allow", "[{to: [{ports: [81]}]}]"), &everybody),
        // Conditions that cannot be seen are read in the safe way.
        (policy("allow", "[{from: [{service: web}], to: [{methods: [GET]}]}]"), &[]),
        (policy("allow", "[{from: [{service: web}], to: [{methods: [GET]}, {ports: [81]}]}]"), &["web"]),
        (policy("deny", "[{from: [{service: web}], to: [{methods: [GET]}]}]"), &["admin"]),
        (policy("deny", "[{from: [{service: web}], to: [{methods: [GET], ports: [80]}]}]"), &everybody),
        (
            policy("allow", "[{from: [{namespace: shop}]}]")
                + &policy("deny", "[{from: [{service: admin}]}]"),
            &["web"],
        ),
    ] {
        assert_eq!(let_in(&policies), expected, "{policies}");
    }
}

/// Several entries of a map, and still the same bytes whenever they are made.
#[test]
fn access_by_request_compiles_to_the_same_bytes() {
    let intent = intent(include_str!("cases/access-policies.yaml"));
    let first = proxy(&intent, "shop/api");
    let body =
        |set: &ResourceSet| set.get(type_url::LISTENER, "inbound/http").expect("a listener").body.clone();
    for _ in 0..20 {
        assert_eq!(body(&proxy(&intent, "shop/api").resources), body(&first.resources));
    }
}
