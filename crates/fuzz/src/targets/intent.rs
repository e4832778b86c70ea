//! Documents of people: whatever is written, findings are shown; what is valid is compiled and taken.

use outrider_intent::{Document, ResolveOptions, Source, effective, parse, render, resolve};

use super::{Target, Verdict, expect, fixtures, xds};
use crate::mutate::Shape;

pub(super) const DOCUMENTS: Target = Target {
    name: "intent",
    from: "people, and whoever calls the API",
    shape: Shape::Lines,
    pieces: &[
        b"---\n",
        b": ",
        b"- ",
        b"{",
        b"}",
        b"[",
        b"]",
        b"&a ",
        b"*a",
        b"!!str ",
        b"|",
        b">-",
        b"\"",
        b"'",
        b"\t",
        b"#",
        b"0",
        b"-1",
        b"65536",
        b"null",
        b"true",
        b"1e9",
        b"24h",
        b"0s",
        b"99999999999999999999",
        b"\xf0\x9f\x90\xa6",
        b"\0",
        b"spec:\n",
        b"metadata:\n",
        b"name: a\n",
        b"kind: Service\n",
        b"namespace: b\n",
        b"(",
        b"*",
        b"<<: ",
        b"tcp",
        b"grpc",
        b"envoy",
        b"required",
    ],
    most: 16_000,
    memory: 20_000,
    rounds: 250,
    accepted: 1,
    seeds: || {
        let mut seeds = xds::documents();
        // Long ones only cost time, and most inputs should be of what is valid.
        seeds.retain(|seed| seed.len() < 4_000);
        let bad: Vec<_> = fixtures("intent/tests/bad", "yaml").into_iter().step_by(3).collect();
        seeds.extend(bad);
        seeds
    },
    check,
};

fn check(bytes: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let sources = [Source { name: "fuzz.yaml".into(), text }];
    let parsed = parse(&sources);
    render(&parsed.diagnostics, &sources, false);
    for document in &parsed.documents {
        let Some(json) = document.to_json() else { continue };
        let again = Document::from_json(&json, "again")
            .map_err(|findings| format!("what was valid is not when it was kept: {findings:?}"))?;
        expect(again.key() == document.key(), || format!("{:?} became {:?}", document.key(), again.key()))?;
        expect(again.to_json().as_ref() == Some(&json), || "it is kept in another way".to_owned())?;
    }
    let resolved = resolve(&parsed.documents, &ResolveOptions::default());
    render(&resolved.diagnostics, &sources, true);
    for document in parsed.documents.iter().filter(|document| document.is_valid()).take(20) {
        let _ = effective(&parsed.documents, document.key());
    }
    if parsed.has_errors() {
        return Ok(false);
    }
    let Some(intent) = resolved.intent else { return Ok(false) };
    xds::native_takes(&intent)?;
    Ok(!intent.services.is_empty())
}
