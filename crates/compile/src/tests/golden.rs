//! Intents and what is made of them, as text to be reviewed.

use outrider_xds_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;

use super::*;
use crate::http::local_reply_reasons;

/// Everything of a case, by service, then type and name.
fn everything(yaml: &str) -> String {
    let intent = intent(yaml);
    let output = compile(&Input { intent: &intent, trust_domain: TRUST_DOMAIN, endpoints: &BTreeMap::new() });
    let mut text = String::new();
    for (service, proxy) in &output.proxies {
        text.push_str(&format!("# {service}\n"));
        for resource in proxy.resources.iter() {
            text.push_str(&text::resource(resource));
        }
    }
    text.push_str("# shared\n");
    for resource in output.shared.iter() {
        text.push_str(&text::resource(resource));
    }
    text
}

/// The parts of a text whose headings contain one of `wanted`, below the service `# of`.
fn only(text: &str, of: &str, wanted: &[&str]) -> String {
    let mut out = String::new();
    let (mut in_service, mut shown) = (false, false);
    for line in text.lines() {
        if let Some(service) = line.strip_prefix("# ") {
            (in_service, shown) = (service == of, false);
        } else if let Some(name) = line.strip_prefix("### ") {
            shown = in_service && wanted.contains(&name);
        }
        if shown {
            out.push_str(line);
            out.push('\n');
        }
    }
    assert!(!out.is_empty(), "{of} has none of {wanted:?}");
    out
}

macro_rules! golden {
    ($($test:ident: $file:literal $(, $of:literal $wanted:expr)?;)*) => {$(
        #[test]
        fn $test() {
            let text = everything(include_str!(concat!("cases/", $file, ".yaml")));
            $( let text = only(&text, $of, &$wanted); )?
            insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
                insta::assert_snapshot!(stringify!($test), text);
            });
        }
    )*};
}

golden! {
    everything_with_mtls_required: "mtls-required";
    inbound_of_both: "mtls-both", "shop/api" ["inbound/http"];
    inbound_tcp_of_both: "mtls-both", "shop/db" ["inbound/db"];
    outbound_to_both: "mtls-both", "shop/web" ["outbound/shop/db/db"];
    inbound_of_off: "mtls-off", "shop/api" ["inbound/http"];
    inbound_tcp_of_off: "mtls-off", "shop/db" ["inbound/db"];
    outbound_to_off: "mtls-off", "shop/web" ["outbound/shop/db/db"];
    nobody_may_call: "nobody-calls", "shop/db" ["inbound/db"];
    without_limits: "no-limits", "shop/web" ["outbound/shop/api/http", "outbound/shop/db/db"];
    engines: "engines", "shared" ["shop/api", "shop/web"];
    caller_and_callee_in_different_modes: "cross-namespace", "shop/web"
        ["outbound/legacy/api/http", "outbound/shop/api/http"];
    a_route_for_one_port: "many-ports", "shop/web" ["outbound/shop/api/http", "outbound/shop/api/admin"];
    weight_zero_is_500: "weight-zero", "shop/web" ["outbound/shop/api/http"];
    a_service_that_calls_itself: "calls-itself", "shop/ring" ["inbound/http"];
    precedence_weights_and_edits: "routes", "shop/checkout" ["outbound/shop/inventory/http"];
    everything_an_http_route_says: "http-routes", "shop/web" ["outbound/shop/api/http"];
    http2_to_a_service: "http-routes", "shop/web" ["outbound/shop/api2/h2"];
    grpc_and_tcp_routes: "grpc-and-tcp-routes", "shop/web" ["outbound/shop/stock/grpc", "outbound/shop/db/sql"];
    policies_of_callers: "traffic-policies", "shop/web"
        ["outbound/shop/api/http", "outbound/shop/api/raw", "outbound/shop/stock/grpc"];
    peak_ewma_for_requests_and_least_request_behind_it: "peak-ewma", "shop/web"
        ["outbound/shop/api/http", "outbound/shop/db/sql"];
    policies_of_a_service: "traffic-policies", "shop/api" ["inbound/h2"];
    access_by_request_and_by_caller: "access-policies", "shop/api" ["inbound/http", "inbound/raw"];
    access_without_tls: "access-policies", "bank/ledger" ["inbound/http", "inbound/raw"];
    fail_over_to_other_services: "failover", "shop/web" ["outbound/shop/orders/http"];
    who_calls_where_calls_fail_over_to: "failover", "shop/orders-legacy" ["inbound/main"];
    a_service_without_anybody: "lonely";
}

#[test]
fn routes_in_the_order_of_the_gateway_api() {
    use outrider_xds_types::pb::envoy::config::route::v3::RouteConfiguration;
    use outrider_xds_types::prost::Message;
    let checkout = proxy(&intent(SHOP), "shop/checkout");
    let routes = checkout.resources.get(type_url::ROUTE, "outbound/shop/inventory/http").expect("routes");
    let routes = RouteConfiguration::decode(routes.body.as_slice()).expect("decodes");
    let names: Vec<&str> = routes.virtual_hosts[0].routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "shop/a-special/0/1", // exact
            "shop/a-special/1/0", // /closed: seven characters
            "shop/a-special/0/0", // /old and a method
            "shop/split/1/0",     // /old/ counts as /old
            "shop/a-special/0/2", // / and a header
            "shop/split/0/0",     // /
        ]
    );
}

#[test]
fn nobody_can_vouch_for_himself_in_another_spelling() {
    use outrider_xds_types::pb::envoy::config::listener::v3::Listener;
    use outrider_xds_types::prost::Message;
    let api = proxy(&intent(include_str!("cases/mtls-both.yaml")), "shop/api");
    let listener = api.resources.get(type_url::LISTENER, "inbound/http").expect("a listener");
    let listener = Listener::decode(listener.body.as_slice()).expect("decodes");
    assert_eq!(listener.filter_chains.len(), 2);
    for chain in &listener.filter_chains {
        let routes = envoy_accepts::inline_routes(chain);
        let removed: BTreeSet<&str> = routes.request_headers_to_remove.iter().map(String::as_str).collect();
        assert_eq!(removed.len(), 7, "{removed:?}");
        assert!(removed.iter().all(|name| name.contains('_')));
        assert!(removed.iter().all(|name| name.replace('_', "-") == "x-forwarded-client-cert"));
    }
}

#[test]
fn the_handshake_of_a_tcp_port_lets_in_its_callers_only() {
    for (yaml, expected) in [
        (include_str!("cases/mtls-both.yaml"), vec!["spiffe://outrider.internal/ns/shop/svc/web"]),
        (include_str!("cases/nobody-calls.yaml"), vec!["spiffe://outrider.internal/nobody"]),
    ] {
        let text = everything(yaml);
        let text = only(&text, "shop/db", &["inbound/db"]);
        let (_, names) = text.split_once("match_typed_subject_alt_names").expect("names callers");
        for id in expected {
            assert!(names.contains(id), "{names}");
        }
    }
}

#[test]
fn local_replies_carry_a_reason_and_never_replace_one() {
    let mappers = crate::http::local_replies(outrider_intent::model::Protocol::Http).mappers;
    assert_eq!(mappers.len(), local_reply_reasons().count() + 2);
    for mapper in &mappers {
        let [header] = mapper.headers_to_add.as_slice() else { panic!("one header: {mapper:?}") };
        assert_eq!(header.append_action, HeaderAppendAction::AddIfAbsent as i32);
        assert_eq!(header.header.as_ref().expect("a header").key, REASON_HEADER);
    }
}
