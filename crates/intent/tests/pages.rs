//! What the pages for users show is accepted as it stands.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

use std::path::Path;

use outrider_intent::{ResolveOptions, Source, parse, resolve};

/// The YAML of a page, as one set.
fn yaml(page: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(page);
    let text = std::fs::read_to_string(path).unwrap();
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.collect::<Vec<_>>().join("---\n")
}

#[test]
fn the_example_of_traffic_and_access_has_no_findings() {
    let text = yaml("traffic.md");
    let parsed = parse(&[Source { name: "traffic.md".to_owned(), text }]);
    assert_eq!(parsed.diagnostics, []);
    // Two namespaces, thirteen services, four routes and a grant, four traffic policies and three access policies.
    assert_eq!(parsed.documents.len(), 27);
    let resolved = resolve(&parsed.documents, &ResolveOptions::default());
    assert_eq!(resolved.diagnostics, []);
    let intent = resolved.intent.unwrap();
    assert_eq!((intent.http_routes.len(), intent.tcp_routes.len(), intent.policies.len()), (2, 1, 7));
}
