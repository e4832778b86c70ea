use std::collections::BTreeSet;

use super::*;

/// Where the description is kept for readers and client generators.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");

#[test]
fn the_description_covers_every_route() {
    let document = serde_json::json!(openapi());
    let described: BTreeSet<String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    // The contract with clients, by hand: a route that is lost or renamed shows here.
    let expected = [
        "DELETE /v1/nodes/{name}",
        "GET /healthz",
        "GET /v1/describe/{kind}/{namespace}/{name}",
        "GET /v1/events",
        "GET /v1/instances",
        "GET /v1/nodes",
        "GET /v1/objects",
        "GET /v1/objects/{kind}/{namespace}/{name}",
        "GET /v1/openapi.json",
        "GET /v1/proxies/{namespace}/{instance}",
        "GET /v1/proxies/{namespace}/{instance}/resources",
        "GET /v1/rollout",
        "GET /v1/schema",
        "GET /v1/watch",
        "POST /v1/apply",
        "POST /v1/delete",
        "POST /v1/proxies/{namespace}/{instance}/drain",
        "POST /v1/proxies/{namespace}/{instance}/pardon",
        "POST /v1/proxies/{namespace}/{instance}/restart",
        "POST /v1/proxies/{namespace}/{instance}/rollback",
        "POST /v1/proxies/{namespace}/{instance}/upgrade",
        "POST /v1/tokens",
    ];
    assert_eq!(described, expected.into_iter().map(str::to_owned).collect());
    // Every schema that is named exists.
    let text = document.to_string();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name} is not described");
    }
}

#[test]
fn the_committed_description_is_current() {
    let current = format!("{}\n", openapi().to_pretty_json().unwrap());
    if std::env::var_os("OUTRIDER_UPDATE").is_some() {
        std::fs::write(FILE, &current).unwrap();
    }
    let committed = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(committed == current, "docs/openapi.json is not current: run this test with OUTRIDER_UPDATE=1");
}
