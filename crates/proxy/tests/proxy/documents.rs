//! What the control plane compiles for this engine, this engine takes.
//!
//! The documents are the cases of `outrider-compile`, which use every feature there is. What the native engine lacks is
//! refused by name when it is declared; documents with such a finding are left out here, and the rest must be taken to
//! the last field.

use std::collections::BTreeSet;

use outrider_compile::{Compiler, refusals};
use outrider_intent::features::uses;
use outrider_intent::{ResolveOptions, Source, parse, resolve};
use outrider_proxy::config::{Slots, cluster, fields::Refusal, listener, route};
use outrider_xds::Resource;
use outrider_xds_types::type_url;

use super::support::TRUST_DOMAIN;

/// Documents of a file with the line on which each begins.
fn split(text: &str) -> Vec<(u32, String)> {
    let mut all = vec![(1, String::new())];
    for (line, words) in (1_u32..).zip(text.lines()) {
        if words == "---" {
            all.push((line + 1, String::new()));
        } else if let Some((_, document)) = all.last_mut() {
            document.push_str(words);
            document.push('\n');
        }
    }
    all
}

fn taken(resource: &Resource) -> Result<(), Refusal> {
    let (mut slots, body) = (Slots::default(), resource.body.as_slice());
    match &*resource.type_url {
        type_url::CLUSTER => cluster::parse(body).map(drop),
        type_url::LISTENER => listener::parse(body, &mut slots).map(drop),
        type_url::ROUTE => route::parse(body, &mut slots).map(drop),
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_compiled_for_the_native_engine_is_taken_whole() {
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/../compile/src/tests/cases");
    let (mut resources, mut refused, mut used) = (0, Vec::new(), BTreeSet::new());
    let mut skipped = Vec::new();
    'cases: for file in std::fs::read_dir(cases).unwrap() {
        let file = file.unwrap().path();
        let mut text = std::fs::read_to_string(&file).unwrap().replace("engine: envoy", "engine: native");
        let intent = loop {
            let parsed = parse(&[Source { name: "case.yaml".into(), text: text.clone() }]);
            let intent = resolve(&parsed.documents, &ResolveOptions::default()).intent;
            let Some(intent) = intent else {
                // A service that others name was left out.
                skipped.push(file);
                continue 'cases;
            };
            let findings = refusals(&parsed.documents, &intent);
            let Some(finding) = findings.first() else {
                used.extend(uses(&parsed.documents, &intent).into_iter().map(|one| one.feature.to_string()));
                break intent;
            };
            let mut documents = split(&text);
            let at = documents.iter().rposition(|(line, _)| *line <= finding.place.line).unwrap();
            documents.remove(at);
            text = documents.into_iter().map(|(_, document)| document).collect::<Vec<_>>().join("---\n");
        };
        let compiler = Compiler::new(&intent, TRUST_DOMAIN);
        for id in intent.services.keys() {
            for resource in compiler.proxy(id).unwrap().resources.iter() {
                resources += 1;
                if let Err(refusal) = taken(resource) {
                    refused.push(format!("{}: {id}: {}: {refusal}", file.display(), resource.name));
                }
            }
        }
    }
    assert!(resources > 100, "only {resources}");
    assert!(refused.is_empty(), "of {resources}: {refused:#?}");
    assert!(skipped.is_empty(), "{skipped:?}");
    println!("{resources} resources; features: {used:?}");
    assert!(used.len() >= 5, "{used:?}");
}
