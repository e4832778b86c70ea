use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use outrider_intent::model::{Intent, ServiceRef};
use outrider_intent::{ResolveOptions, Source, parse, resolve};
use outrider_xds::ResourceSet;
use outrider_xds_types::type_url;

use super::*;

mod access;
mod edits;
mod engines;
mod envoy_accepts;
mod failover;
mod golden;
mod outliers;
mod properties;
mod text;
mod zones;

const TRUST_DOMAIN: &str = "outrider.internal";

/// The intent of a YAML text that has to be valid.
fn intent(yaml: &str) -> Intent {
    intent_with(yaml, &ResolveOptions::default())
}

fn intent_with(yaml: &str, options: &ResolveOptions) -> Intent {
    let parsed = parse(&[Source { name: "test.yaml".into(), text: yaml.into() }]);
    assert_eq!(parsed.diagnostics, []);
    let resolved = resolve(&parsed.documents, options);
    resolved.intent.unwrap_or_else(|| panic!("not valid: {:#?}", resolved.diagnostics))
}

fn service(name: &str) -> ServiceRef {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    ServiceRef::new(namespace, name)
}

fn proxy(intent: &Intent, name: &str) -> ProxyResources {
    Compiler::new(intent, TRUST_DOMAIN).proxy(&service(name)).expect("declared")
}

fn names_of(set: &ResourceSet, type_url: &str) -> Vec<String> {
    set.of_type(type_url).map(|resource| resource.name.to_string()).collect()
}

const SHOP: &str = include_str!("tests/cases/routes.yaml");

#[test]
fn a_proxy_gets_what_its_service_calls_and_serves() {
    let intent = intent(SHOP);
    let checkout = proxy(&intent, "shop/checkout");
    assert_eq!(
        names_of(&checkout.resources, type_url::LISTENER),
        ["inbound/http", "outbound/bank/ledger/db", "outbound/shop/inventory/http"]
    );
    assert_eq!(names_of(&checkout.resources, type_url::ROUTE), ["outbound/shop/inventory/http"]);
    // The parent of the routes gets a cluster only if a route leads to it.
    assert_eq!(
        names_of(&checkout.resources, type_url::CLUSTER),
        [
            "inbound/http",
            "outbound/bank/ledger/db",
            "outbound/shop/inventory-v1/http",
            "outbound/shop/inventory-v2/http",
            "outbound/shop/inventory/http"
        ]
    );
    assert_eq!(checkout.notes, []);
    assert_eq!(Compiler::new(&intent, TRUST_DOMAIN).proxy(&service("shop/nobody")), None);
}

#[test]
fn callers_are_those_who_call_and_those_whose_routes_lead_here() {
    let intent = intent(SHOP);
    let compiler = Compiler::new(&intent, TRUST_DOMAIN);
    let callers =
        |name: &str| -> Vec<String> { compiler.callers(&service(name)).map(ToString::to_string).collect() };
    assert_eq!(callers("bank/ledger"), ["shop/checkout"]);
    assert_eq!(callers("shop/inventory"), ["shop/checkout", "shop/web"]);
    assert_eq!(callers("shop/inventory-v2"), ["shop/checkout", "shop/web"]);
    assert_eq!(callers("shop/web"), [] as [String; 0]);
}

#[test]
fn missing_callees_are_noted_and_nothing_else_suffers() {
    let yaml = "apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: a, namespace: n}\n\
                spec: {role: client, calls: [b, gone]}\n---\n\
                apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: b, namespace: n}\n\
                spec: {role: server, ports: [{name: http, port: 80, protocol: http}]}\n";
    let options = ResolveOptions { tolerate_missing_calls: true, ..ResolveOptions::default() };
    let a = proxy(&intent_with(yaml, &options), "n/a");
    assert_eq!(names_of(&a.resources, type_url::LISTENER), ["outbound/n/b/http"]);
    assert_eq!(a.notes, [Note::MissingService { service: service("n/gone") }]);
}

#[test]
fn scoping_changes_names_only() {
    let checkout = proxy(&intent(SHOP), "shop/checkout");
    let scoped = checkout.scoped_for("shop/checkout-x7k2p");
    assert_eq!(scoped.len(), checkout.resources.len());
    for resource in scoped.iter() {
        let (proxy, local) = names::unscope(&resource.name).expect("scoped");
        assert_eq!(proxy, "shop/checkout-x7k2p");
        let original = checkout.resources.get(&resource.type_url, local).expect("same local name");
        assert_eq!((&resource.version, &resource.body), (&original.version, &original.body));
    }
}

/// Edge case 69, with `e69_compiling_again_gives_the_same_bytes`.
#[test]
fn e69_versions_are_functions_of_content() {
    let at = |last, port| Endpoint { address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), port };
    let id = service("shop/inventory");
    let one = endpoints(&id, "http", &[at(1, 80), at(2, 80)]);
    assert_eq!(one, endpoints(&id, "http", &[at(2, 80), at(1, 80), at(1, 80)]));
    assert_ne!(one.version, endpoints(&id, "http", &[at(1, 80), at(2, 81)]).version);
    assert_eq!(one.version.len(), 16);
    assert_eq!(*one.version, version_of(&one.type_url, &one.body));
    // Known bytes: SHA-256 of an empty message of type "x" is the same on every machine.
    assert_eq!(version_of("x", b""), "fbc601aefa01f869");
}

#[test]
fn a_diff_names_what_changes() {
    let before = intent(SHOP);
    let mut after = before.clone();
    after.http_routes.clear();
    let (old, new) = (proxy(&before, "shop/checkout"), proxy(&after, "shop/checkout"));
    let differences: Vec<String> = diff(&old.resources, &new.resources)
        .iter()
        .map(|difference| format!("{} {} {}", difference.action, difference.kind, difference.name))
        .collect();
    assert_eq!(
        differences,
        [
            "removed Cluster outbound/shop/inventory-v1/http",
            "removed Cluster outbound/shop/inventory-v2/http",
            "changed RouteConfiguration outbound/shop/inventory/http",
        ]
    );
    assert_eq!(diff(&old.resources, &old.resources), []);
}

#[test]
fn compile_has_every_service_and_every_port() {
    let intent = intent(SHOP);
    let ready = BTreeMap::from([(
        (service("shop/inventory"), "http".to_owned()),
        vec![Endpoint { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 4711 }],
    )]);
    let output = compile(&Input { intent: &intent, trust_domain: TRUST_DOMAIN, endpoints: &ready });
    assert_eq!(output.proxies.len(), intent.services.len());
    assert_eq!(names_of(&output.shared, type_url::WORKLOAD).len(), intent.services.len());
    let ports: usize = intent.services.values().map(|service| service.ports.len()).sum();
    assert_eq!(names_of(&output.shared, type_url::ENDPOINT).len(), ports);
    // Whatever a cluster waits for exists.
    for proxy in output.proxies.values() {
        for cluster in proxy.resources.of_type(type_url::CLUSTER) {
            if let Some(name) = cluster.name.strip_prefix("outbound/") {
                assert!(output.shared.get(type_url::ENDPOINT, name).is_some(), "{name}");
            }
        }
    }
}
