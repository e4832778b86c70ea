//! What is declared and cannot be carried out is refused by name; what is a default is not sent.

use std::collections::BTreeSet;

use outrider_intent::Code;
use outrider_intent::features::{Feature, uses};
use outrider_intent::model::Engine;
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::prost::Message;

use super::*;
use crate::engines::{has, refusals, refused};

const CASES: [&str; 7] = [
    include_str!("cases/http-routes.yaml"),
    include_str!("cases/grpc-and-tcp-routes.yaml"),
    include_str!("cases/traffic-policies.yaml"),
    include_str!("cases/access-policies.yaml"),
    include_str!("cases/peak-ewma.yaml"),
    include_str!("cases/many-ports.yaml"),
    include_str!("cases/failover.yaml"),
];

const FEATURES: [Feature; 21] = [
    Feature::Http2,
    Feature::PathRegex,
    Feature::HeaderRegex,
    Feature::QueryParams,
    Feature::Redirect,
    Feature::Rewrite,
    Feature::Mirror,
    Feature::TcpSplit,
    Feature::Retries,
    Feature::OutlierEjection,
    Feature::HealthCheck,
    Feature::Http2HealthCheck,
    Feature::GrpcHealthCheck,
    Feature::HashBalancing,
    Feature::PeakEwma,
    Feature::SlowStart,
    Feature::FaultInjection,
    Feature::GrpcFault,
    Feature::RateLimit,
    Feature::AccessByRequest,
    Feature::AccessAudit,
];

fn documents(yaml: &str) -> (Vec<outrider_intent::Document>, Intent) {
    let parsed = parse(&[Source { name: "test.yaml".into(), text: yaml.into() }]);
    assert_eq!(parsed.diagnostics, []);
    let resolved = resolve(&parsed.documents, &ResolveOptions::default());
    let intent = resolved.intent.unwrap_or_else(|| panic!("not valid: {:#?}", resolved.diagnostics));
    (parsed.documents, intent)
}

#[test]
fn the_cases_use_every_feature_and_their_engines_have_them() {
    let mut used = BTreeSet::new();
    for yaml in CASES {
        let (documents, intent) = documents(yaml);
        used.extend(uses(&documents, &intent).into_iter().map(|one| one.feature));
        assert_eq!(refusals(&documents, &intent), []);
    }
    let unused: Vec<_> = FEATURES.iter().filter(|feature| !used.contains(feature)).collect();
    assert!(unused.is_empty(), "no case uses {unused:?}");
}

/// N. 2.10 of the needs: what cannot be honoured is never ignored. Whatever the list would have, it is refused by name
/// where it is written; and now that it has nothing, nothing is refused.
#[test]
fn the_native_engine_refuses_by_name_what_it_lacks() {
    for lacking in FEATURES {
        let mut found = 0;
        for yaml in CASES {
            let (documents, intent) = documents(&yaml.replace("engine: envoy", "engine: native"));
            assert_eq!(refusals(&documents, &intent), []);
            let has = |engine, feature| engine == Engine::Envoy || feature != lacking;
            for finding in refused(&documents, &intent, has) {
                found += 1;
                assert_eq!(finding.code, Code::EngineCannot);
                assert!(finding.place.line > 0, "{finding}");
                let words = format!("the native proxy cannot {lacking} yet");
                assert!(finding.message.contains(&words), "{finding}");
            }
        }
        assert!(found > 0, "{lacking:?}");
    }
}

/// Of a policy that concerns callers of both engines, the finding names those whose engine cannot do it.
#[test]
fn envoy_is_refused_by_name_what_only_the_native_engine_has() {
    let yaml = CASES[4].replace("calls: [api, db], engine: native", "calls: [api, db], engine: envoy");
    let (documents, intent) = documents(&yaml);
    let findings = refusals(&documents, &intent);
    let [finding] = findings.as_slice() else { panic!("{findings:?}") };
    assert_eq!(finding.code, Code::EngineCannot);
    let line = yaml.lines().position(|line| line.contains("policy: peak-ewma")).expect("it is declared");
    assert_eq!(finding.place.line as usize, line + 1);
    assert_eq!(finding.message, "Envoy cannot balance by peak EWMA, and it is the engine of shop/web");
    assert_eq!(finding.help.as_deref(), Some("give it `engine: native`, or remove this"));
}

#[test]
fn a_policy_that_nobodys_native_proxy_carries_out_is_no_finding() {
    // Callers are Envoys, the called service is native: only what it does itself is refused.
    let yaml = CASES[2].replace(
        "metadata: {name: api, namespace: shop}\nspec:\n  role: server\n",
        "metadata: {name: api, namespace: shop}\nspec:\n  role: server\n  engine: native\n",
    );
    let (documents, intent) = documents(&yaml);
    let nothing = |engine, _| engine == Engine::Envoy;
    let messages: Vec<String> =
        refused(&documents, &intent, nothing).into_iter().map(|finding| finding.message).collect();
    let expected: Vec<String> = [Feature::Http2, Feature::RateLimit]
        .map(|feature| format!("the native proxy cannot {feature} yet, and it is the engine of shop/api"))
        .into();
    assert_eq!(messages, expected);
}

/// What is compiled is found to need every feature that proxies name, so that none is sent without being known (N7).
#[test]
fn what_is_compiled_names_every_feature_that_it_needs() {
    use outrider_xds_types::features;
    let mut found = BTreeSet::new();
    for yaml in CASES {
        let (_, intent) = documents(yaml);
        let compiler = Compiler::new(&intent, TRUST_DOMAIN);
        for id in intent.services.keys() {
            let compiled = compiler.proxy(id).expect("it is declared");
            let needs = |one: &std::sync::Arc<Resource>| features::needed(&one.type_url, &one.body);
            found.extend(compiled.resources.iter().flat_map(needs));
        }
    }
    let missing: Vec<_> = features::ALL.into_iter().filter(|name| !found.contains(name)).collect();
    assert!(missing.is_empty(), "nothing compiled needs {missing:?}");
}

/// Edge case 40: a stream of gRPC that was silent for six minutes is still there by default.
#[test]
fn e40_calls_may_be_silent_for_an_hour_by_either_engine() {
    use outrider_xds_types::pb::envoy::config::listener::v3::Listener;
    use outrider_xds_types::pb::envoy::config::listener::v3::filter::ConfigType;
    use outrider_xds_types::pb::envoy::config::route::v3::{RouteConfiguration, route};
    use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, http_connection_manager::RouteSpecifier,
    };
    for engine in ["native", "envoy"] {
        for (protocol, own, seconds) in
            [("grpc", "", 3600), ("grpc", "timeouts: {idle: 7s}", 7), ("http2", "", 300), ("http", "", 300)]
        {
            let intent = intent(&format!(
                "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {{name: shop}}\n\
                 spec: {{engine: {engine}}}\n---\n\
                 apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
                 spec: {{role: client, calls: [api]}}\n---\n\
                 apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: api, namespace: shop}}\n\
                 spec:\n  role: server\n  ports: [{{name: main, port: 80, protocol: {protocol}}}]\n  {own}\n"
            ));
            let web = proxy(&intent, "shop/web");
            let routes = web.resources.get(type_url::ROUTE, "outbound/shop/api/main").expect("routes");
            let routes = RouteConfiguration::decode(routes.body.as_slice()).expect("decodes");
            let Some(route::Action::Route(action)) = &routes.virtual_hosts[0].routes[0].action else {
                panic!("{routes:?}")
            };
            let idle = action.idle_timeout.as_ref().expect("a limit").seconds;
            assert_eq!(idle, seconds, "{engine} {protocol} {own}");

            // And at the side of the one that is called.
            let api = proxy(&intent, "shop/api");
            let listener = api.resources.get(type_url::LISTENER, "inbound/main").expect("a listener");
            let listener = Listener::decode(listener.body.as_slice()).expect("decodes");
            let filters = listener.filter_chains.iter().flat_map(|chain| &chain.filters);
            let mut limits = 0;
            for filter in filters {
                let Some(ConfigType::TypedConfig(config)) = &filter.config_type else { continue };
                let manager = HttpConnectionManager::decode(config.value.as_slice()).expect("decodes");
                let idle = manager.stream_idle_timeout.expect("a limit").seconds;
                assert_eq!(idle, seconds, "inbound {engine} {protocol} {own}");
                let Some(RouteSpecifier::RouteConfig(routes)) = manager.route_specifier else {
                    panic!("routes of an application are with its listener")
                };
                for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
                    let Some(route::Action::Route(action)) = &route.action else { continue };
                    let idle = action.idle_timeout.as_ref().map_or(seconds, |idle| idle.seconds);
                    assert_eq!(idle, seconds, "inbound route {engine} {protocol} {own}");
                }
                limits += 1;
            }
            assert!(limits > 0, "{engine} {protocol}");
        }
    }
}

/// Without a policy a native proxy is sent only what it has, and an Envoy gets the defaults.
#[test]
fn defaults_go_to_engines_that_have_them() {
    for engine in [Engine::Envoy, Engine::Native] {
        let mut intent = intent(SHOP);
        for service in intent.services.values_mut() {
            service.engine = engine;
        }
        let checkout = proxy(&intent, "shop/checkout");
        let cluster =
            checkout.resources.get(type_url::CLUSTER, "outbound/shop/inventory/http").expect("a cluster");
        let cluster = Cluster::decode(cluster.body.as_slice()).expect("decodes");
        assert_eq!(cluster.outlier_detection.is_some(), has(engine, Feature::OutlierEjection));
        let thresholds = &cluster.circuit_breakers.expect("limits").thresholds[0];
        assert_eq!(thresholds.retry_budget.is_some(), has(engine, Feature::Retries));
        assert!(cluster.health_checks.is_empty());
    }
}
