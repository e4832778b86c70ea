//! Header edits of a route, against what both engines do with them.

use outrider_intent::Code;
use outrider_proxy_core::http1::HeaderEdits;
use outrider_xds_types::pb::envoy::config::route::v3::{Route, RouteConfiguration};
use outrider_xds_types::prost::Message;

use super::*;

/// A service with a caller, and a route with this modifier of request headers.
fn yaml(modifier: &str) -> String {
    format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: a, namespace: n}}\n\
         spec: {{role: client, calls: [b]}}\n---\n\
         apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: b, namespace: n}}\n\
         spec: {{role: server, ports: [{{name: http, port: 80, protocol: http}}]}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: n}}\n\
         spec:\n  parentRefs: [{{kind: Service, name: b}}]\n  rules:\n  \
         - filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {modifier}}}]\n    \
         backendRefs: [{{name: b, port: 80}}]\n"
    )
}

fn route(modifier: &str) -> Route {
    let caller = proxy(&intent(&yaml(modifier)), "n/a");
    let routes = caller.resources.get(type_url::ROUTE, "outbound/n/b/http").expect("routes");
    let routes = RouteConfiguration::decode(routes.body.as_slice()).expect("decodes");
    routes.virtual_hosts[0].routes[0].clone()
}

#[test]
fn what_the_native_proxy_refuses_is_refused_when_it_is_declared() {
    let known = [
        "accept",
        "connection",
        "content-length",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-forwarded-client-cert",
        "x-forwarded-for",
    ];
    let spellings = known.iter().flat_map(|name| {
        [(*name).to_owned(), name.replace('-', "_"), name.replacen('-', "_", 1), name.to_ascii_uppercase()]
    });
    let mut refused = 0;
    for name in spellings {
        for (modifier, native) in [
            (format!("{{set: [{{name: {name}, value: v}}]}}"), HeaderEdits::new([(&*name, "v")], [], [])),
            (format!("{{add: [{{name: {name}, value: v}}]}}"), HeaderEdits::new([], [(&*name, "v")], [])),
            (format!("{{remove: [{name}]}}"), HeaderEdits::new::<str, str>([], [], [&*name])),
        ] {
            let parsed = parse(&[Source { name: "test.yaml".into(), text: yaml(&modifier) }]);
            assert_eq!(parsed.diagnostics, [], "{modifier}");
            let resolved = resolve(&parsed.documents, &ResolveOptions::default());
            if native.is_err() {
                refused += 1;
                let codes: Vec<Code> = resolved.diagnostics.iter().map(|finding| finding.code).collect();
                assert_eq!(codes, [Code::InvalidValue], "{modifier}");
            }
        }
    }
    assert!(refused > 50, "{refused}");
}

#[test]
fn a_header_that_is_removed_in_the_end_is_not_added_before() {
    // The order is set, add, remove; Envoy removes first.
    let route = route(
        "{set: [{name: x-a, value: s}, {name: x-b, value: s}], add: [{name: X-A, value: t}, {name: x-c, value: t}], remove: [x-a]}",
    );
    let added: Vec<&str> = route
        .request_headers_to_add
        .iter()
        .map(|option| option.header.as_ref().expect("a header").key.as_str())
        .collect();
    assert_eq!(added, ["x-b", "x-c"]);
    assert_eq!(route.request_headers_to_remove, ["x-a"]);
}
