//! Good and bad documents, one case a file.
//!
//! `tests/good/*.yaml` must be read and resolved without a finding; what they mean is in `tests/good.golden`.
//! `tests/bad/NAME.yaml` must give exactly the findings in `tests/bad/NAME.expect`, one `severity code line:column`
//! a line. `UPDATE_EXPECT=1` rewrites the expectations; read the difference before keeping it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use outrider_intent::model::{BackendRef, HttpRoute, Intent, ServiceRef, ValueMatch};
use outrider_intent::{
    Code, Diagnostic, Document, ResolveOptions, Source, effective, parse, resolve, schema,
};

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    files.sort();
    files
}

fn source(path: &Path) -> Source {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    Source { name, text: fs::read_to_string(path).unwrap() }
}

/// Everything that `apply` would find.
fn findings(source: &Source) -> Vec<Diagnostic> {
    let parsed = parse(std::slice::from_ref(source));
    let mut findings = parsed.diagnostics;
    let resolved = resolve(&parsed.documents, &ResolveOptions::default());
    let broken = parsed.documents.iter().any(|document| !document.is_valid());
    let failed = resolved.diagnostics.iter().any(Diagnostic::is_error);
    assert_eq!(resolved.intent.is_none(), broken || failed, "{}", source.name);
    findings.extend(resolved.diagnostics);
    findings
}

fn check_golden(path: &Path, actual: &str) -> Result<(), String> {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(path, actual).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == actual {
        return Ok(());
    }
    Err(format!("{}\n--- expected\n{expected}--- actual\n{actual}", path.display()))
}

/// The meaning in short: one line an object or part of one.
fn summary(intent: &Intent) -> String {
    let mut out = String::new();
    for namespace in intent.namespaces.values() {
        writeln!(
            out,
            "  namespace {} {:?} {:?} {:?} {} tcp idle {:?}",
            namespace.name,
            namespace.mtls,
            namespace.channel,
            namespace.engine,
            timeouts(&namespace.timeouts),
            namespace.tcp_idle
        )
        .unwrap();
    }
    for service in intent.services.values() {
        let calls: Vec<String> = service.calls.iter().map(ToString::to_string).collect();
        let ports: Vec<String> = service
            .ports
            .iter()
            .map(|port| format!("{}:{}>{} {:?}", port.name, port.port, port.target_port, port.protocol))
            .collect();
        assert!(service.missing_calls.is_empty());
        writeln!(
            out,
            "  service {} {:?} {:?} {} ports {ports:?} calls {calls:?}",
            service.id,
            service.role,
            service.engine,
            timeouts(&service.timeouts)
        )
        .unwrap();
        if !service.traffic.declared.is_empty() {
            writeln!(out, "    {:?}", service.traffic).unwrap();
        }
        for policy in &service.access {
            writeln!(out, "    {policy:?}").unwrap();
        }
    }
    for (kind, routes) in [("route", &intent.http_routes), ("grpc route", &intent.grpc_routes)] {
        for route in routes.values() {
            out.push_str(&route_summary(kind, route));
        }
    }
    for route in intent.tcp_routes.values() {
        let backends: Vec<String> = route.backends.iter().map(backend).collect();
        let parents = parents(&route.parents);
        writeln!(out, "  tcp route {}/{} parents {parents:?} to {backends:?}", route.namespace, route.name)
            .unwrap();
    }
    out
}

fn parents(parents: &[(ServiceRef, Option<u16>)]) -> Vec<String> {
    parents.iter().map(|(service, port)| format!("{service} {port:?}")).collect()
}

fn backend(backend: &BackendRef) -> String {
    format!("{}:{}*{}", backend.service, backend.port, backend.weight)
}

fn route_summary(kind: &str, route: &HttpRoute) -> String {
    let mut out = String::new();
    let parents = parents(&route.parents);
    writeln!(out, "  {kind} {}/{} parents {parents:?}", route.namespace, route.name).unwrap();
    for rule in &route.rules {
        let backends: Vec<String> = rule.backends.iter().map(backend).collect();
        writeln!(out, "    to {backends:?} within {:?}", rule.request_timeout).unwrap();
        if let Some(limit) = rule.try_timeout {
            writeln!(out, "      each try {limit:?}").unwrap();
        }
        if let Some(redirect) = &rule.redirect {
            writeln!(out, "      {redirect:?}").unwrap();
        }
        if let Some(rewrite) = &rule.rewrite {
            writeln!(out, "      {rewrite:?}").unwrap();
        }
        for mirror in &rule.mirrors {
            writeln!(out, "      copies {} to {}:{}", mirror.per_million, mirror.service, mirror.port)
                .unwrap();
        }
        for condition in &rule.matches {
            let list = |all: &[(String, ValueMatch)]| -> Vec<String> {
                all.iter().map(|(name, value)| format!("{name}={value}")).collect()
            };
            let (headers, query) = (list(&condition.headers), list(&condition.query));
            writeln!(out, "      if {:?} {:?} {headers:?} {query:?}", condition.path, condition.method)
                .unwrap();
        }
        for (side, edits) in [("request", &rule.request_headers), ("response", &rule.response_headers)] {
            if *edits != Default::default() {
                let (set, add, remove) = (&edits.set, &edits.add, &edits.remove);
                writeln!(out, "      {side} set {set:?} add {add:?} remove {remove:?}").unwrap();
            }
        }
    }
    out
}

fn timeouts(timeouts: &outrider_intent::model::Timeouts) -> String {
    format!("{:?}/{:?}/{:?}", timeouts.request, timeouts.idle, timeouts.connect)
}

#[test]
fn good_documents_mean_what_the_golden_says() {
    let mut golden = String::new();
    let mut count = 0;
    for path in files("good") {
        let source = source(&path);
        let parsed = parse(std::slice::from_ref(&source));
        assert_eq!(parsed.diagnostics, [], "{}", source.name);
        let resolved = resolve(&parsed.documents, &ResolveOptions::default());
        assert_eq!(resolved.diagnostics, [], "{}", source.name);
        count += parsed.documents.len();
        writeln!(golden, "{}", source.name).unwrap();
        golden.push_str(&summary(&resolved.intent.unwrap()));
    }
    assert!(count >= 200, "{count} good documents");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good.golden");
    check_golden(&path, &golden).unwrap();
}

#[test]
fn bad_documents_give_the_expected_findings() {
    let mut failures = Vec::new();
    let mut codes = std::collections::BTreeSet::new();
    let files = files("bad");
    assert!(files.len() >= 60, "{} bad documents", files.len());
    for path in files {
        let source = source(&path);
        let mut actual = String::new();
        for finding in findings(&source) {
            assert_eq!(finding.place.file, source.name);
            assert!(!finding.message.is_empty());
            codes.insert(finding.code);
            let (line, column) = (finding.place.line, finding.place.column);
            writeln!(actual, "{} {} {line}:{column}", finding.severity.as_str(), finding.code).unwrap();
        }
        assert!(!actual.is_empty(), "{} gives no finding", source.name);
        failures.extend(check_golden(&path.with_extension("expect"), &actual).err());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // Engines are the affair of the crate `compile`, which finds this one.
    codes.insert(Code::EngineCannot);
    let unused: Vec<&Code> = Code::ALL.iter().filter(|code| !codes.contains(code)).collect();
    assert!(unused.is_empty(), "no bad document shows {unused:?}");
}

#[test]
fn good_documents_survive_the_store() {
    for path in files("good") {
        let source = source(&path);
        let parsed = parse(std::slice::from_ref(&source));
        let mut restored = Vec::new();
        for document in &parsed.documents {
            let json = document.to_json().unwrap();
            let again = Document::from_json(&json, "store").unwrap();
            assert_eq!(again.key(), document.key());
            assert_eq!(again.to_json().unwrap().to_string(), json.to_string());
            restored.push(again);
        }
        let options = ResolveOptions::default();
        let before = resolve(&parsed.documents, &options).intent.unwrap();
        assert_eq!(resolve(&restored, &options).intent.unwrap(), before, "{}", source.name);
        for document in &parsed.documents {
            let key = document.key();
            assert_eq!(effective(&restored, key), effective(&parsed.documents, key));
        }
    }
}

/// The schema and the check must agree on every field, so that editors and `apply` say the same.
#[test]
fn schema_knows_every_field_of_the_good_documents() {
    let schema = schema();
    let kinds = schema["oneOf"].as_array().unwrap();
    let of_kind = |kind: &str| kinds.iter().find(|schema| schema["title"] == kind).unwrap();
    for path in files("good") {
        for document in parse(&[source(&path)]).documents {
            let kind = document.key().kind.as_str();
            let problems = violations(&document.to_json().unwrap(), of_kind(kind), "");
            assert_eq!(problems, Vec::<String>::new(), "{}", path.display());
        }
    }
}

/// A small JSON Schema validator: the keywords that our schema uses, and a complaint about any other.
fn violations(value: &serde_json::Value, schema: &serde_json::Value, at: &str) -> Vec<String> {
    let mut out = Vec::new();
    let fields = schema.as_object().unwrap();
    for (keyword, rule) in fields {
        let valid = match keyword.as_str() {
            "title" | "description" | "default" | "properties" | "additionalProperties" | "pattern" => true,
            "type" => match rule.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "integer" => value.is_i64(),
                other => panic!("unexpected type {other}"),
            },
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "oneOf" => {
                rule.as_array()
                    .unwrap()
                    .iter()
                    .filter(|branch| violations(value, branch, at).is_empty())
                    .count()
                    == 1
            }
            "required" => {
                rule.as_array().unwrap().iter().all(|name| value.get(name.as_str().unwrap()).is_some())
            }
            "items" => {
                let items = value.as_array().unwrap();
                out.extend(items.iter().flat_map(|item| violations(item, rule, at)));
                true
            }
            "patternProperties" => {
                let (_, shape) = rule.as_object().unwrap().iter().next().unwrap();
                out.extend(value.as_object().unwrap().values().flat_map(|v| violations(v, shape, at)));
                true
            }
            "minItems" => value.as_array().unwrap().len() as u64 >= rule.as_u64().unwrap(),
            "maxItems" => value.as_array().unwrap().len() as u64 <= rule.as_u64().unwrap(),
            "minimum" => value.as_i64().unwrap() >= rule.as_i64().unwrap(),
            "maximum" => value.as_i64().unwrap() <= rule.as_i64().unwrap(),
            "maxLength" => value.as_str().unwrap().chars().count() as u64 <= rule.as_u64().unwrap(),
            other => panic!("unexpected keyword {other} at {at}"),
        };
        if !valid {
            out.push(format!("{at}: {keyword} {rule} refuses {value}"));
        }
    }
    if let Some(properties) = schema.get("properties").and_then(|properties| properties.as_object()) {
        assert_eq!(schema["additionalProperties"], false, "{at}");
        for (key, value) in value.as_object().into_iter().flatten() {
            match properties.get(key) {
                Some(shape) => out.extend(violations(value, shape, &format!("{at}/{key}"))),
                None => out.push(format!("{at}: no field {key}")),
            }
        }
    }
    out
}
