//! Whatever comes in, the crate answers: no panic, and places that exist.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

use std::fs;
use std::path::Path;

use outrider_intent::{
    Diagnostic, Document, ResolveOptions, Source, effective, parse, render_with_width, resolve,
};
use proptest::prelude::*;

fn good() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Does everything that can be done with a text, and checks what must hold for any.
fn exercise(text: &str) {
    let sources = [Source { name: "a.yaml".into(), text: text.into() }];
    let parsed = parse(&sources);
    let resolved = resolve(&parsed.documents, &ResolveOptions::default());
    let findings: Vec<Diagnostic> = parsed.diagnostics.into_iter().chain(resolved.diagnostics).collect();
    for finding in &findings {
        assert!(finding.place.line >= 1 && finding.place.column >= 1, "{finding}");
        let lines = 1 + text.matches(['\n', '\r']).count();
        assert!(finding.place.line as usize <= lines + 1, "{finding} in {text:?}");
    }
    let invalid = parsed.documents.iter().any(|document| !document.is_valid());
    let errors = findings.iter().any(Diagnostic::is_error);
    assert!(!invalid || errors, "an invalid document without a finding in {text:?}");
    assert!(errors || resolved.intent.is_some());
    let rendered = render_with_width(&findings, &sources, true, 60);
    assert_eq!(rendered.is_empty(), findings.is_empty());

    let mut restored = Vec::new();
    for document in &parsed.documents {
        let values = effective(&parsed.documents, document.key());
        assert!(values.is_empty() || values.iter().all(|value| !value.path.is_empty()));
        if let Some(json) = document.to_json() {
            restored.push(Document::from_json(&json, "store").unwrap());
        }
    }
    if let Some(intent) = resolved.intent {
        assert_eq!(resolve(&restored, &ResolveOptions::default()).intent, Some(intent));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        exercise(&text);
    }

    #[test]
    fn any_yaml_like_text_is_answered(text in r##"([-:?&*!|>%@`'"#{}\[\], \t\r\n~a-c0-9.]|---|\.\.\.|\n  |kind: |<<: ){0,120}"##) {
        exercise(&text);
    }

    #[test]
    fn changed_good_documents_are_answered(
        (file, at, remove, insert) in (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..12_usize,
            prop_oneof![
                r##"[-:&*!{}\[\],"'#|> \t\r\n0-9a-z]{0,4}"##.boxed(),
                prop::sample::select(vec!["null", "\n---\n", "true", "99999999999", "é", "\u{feff}", "0s", "{}", "[]"])
                    .prop_map(str::to_owned).boxed(),
            ])
    ) {
        let files = good();
        let text = &files[file.index(files.len())];
        let letters: Vec<char> = text.chars().collect();
        let at = at.index(letters.len() + 1);
        let end = (at + remove).min(letters.len());
        let changed: String = letters[..at].iter().chain(insert.chars().collect::<Vec<_>>().iter()).chain(&letters[end..]).collect();
        exercise(&changed);
    }

    #[test]
    fn any_json_is_answered(text in r#"[{}\[\]":,a-z0-9. ]{0,60}"#, depth in 0..200_usize) {
        if let Ok(value) = serde_json::from_str(&text) {
            let outcome = Document::from_json(&value, "store");
            prop_assert!(outcome.is_err_and(|findings| findings.iter().any(Diagnostic::is_error)));
        }
        let mut deep = serde_json::json!(1);
        for _ in 0..depth {
            deep = serde_json::json!([deep]);
        }
        prop_assert!(Document::from_json(&deep, "store").is_err());
    }
}

#[test]
fn truncated_documents_are_answered() {
    for text in good().iter().filter(|text| text.len() < 300) {
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
            exercise(&text[..end]);
        }
    }
}
