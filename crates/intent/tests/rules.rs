//! Rules that need more than one file of documents: limits, several sources, options, origins, rendering.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

use std::collections::BTreeSet;

use outrider_intent::model::ServiceRef;
use outrider_intent::{
    Code, Diagnostic, Document, EffectiveValue, Key, Kind, ResolveOptions, Severity, Source, effective,
    parse, render, render_with_width, resolve, schema,
};

fn source(name: &str, text: &str) -> Source {
    Source { name: name.into(), text: text.into() }
}

fn documents(text: &str) -> Vec<Document> {
    let parsed = parse(&[source("a.yaml", text)]);
    assert_eq!(parsed.diagnostics, []);
    parsed.documents
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

const PORTS: &str = "{ports: [{name: http, port: 80, protocol: http}]}";

fn codes(findings: &[Diagnostic]) -> Vec<Code> {
    findings.iter().map(|finding| finding.code).collect()
}

fn key(kind: Kind, namespace: &str, name: &str) -> Key {
    Key { kind, namespace: namespace.into(), name: name.into() }
}

#[test]
fn duplicates_in_two_sources_point_at_both() {
    let first = source("first.yaml", &service("a", PORTS));
    let second = source("second.yaml", &format!("# later\n{}", service("a", PORTS)));
    let parsed = parse(&[first, second]);
    let [finding] = &parsed.diagnostics[..] else { panic!("{:?}", parsed.diagnostics) };
    assert_eq!(finding.code, Code::DuplicateObject);
    assert_eq!(finding.place.to_string(), "second.yaml:5:18");
    assert_eq!(finding.related[0].place.to_string(), "first.yaml:4:18");
}

#[test]
fn later_documents_replace_earlier_ones() {
    let mut set = documents(&service("a", PORTS));
    let json = set[0].to_json().unwrap();
    set = vec![Document::from_json(&json, "store").unwrap()];
    set.extend(documents(&service("a", "{ports: [{name: http, port: 81, protocol: http}]}")));
    let intent = resolve(&set, &ResolveOptions::default()).intent.unwrap();
    assert_eq!(intent.services.len(), 1);
    assert_eq!(intent.services[&ServiceRef::new("shop", "a")].ports[0].port, 81);
    let values = effective(&set, &key(Kind::Service, "shop", "a"));
    assert!(values.iter().any(|value| value.path == "ports[0].port" && value.value == "81"));
}

#[test]
fn missing_calls_are_errors_unless_tolerated() {
    let set = documents(&format!("{}{}", service("a", "{calls: [b, gone]}"), service("b", PORTS)));
    let strict = resolve(&set, &ResolveOptions::default());
    assert_eq!(codes(&strict.diagnostics), [Code::UnknownService]);
    assert_eq!(strict.intent, None);

    let gone = ServiceRef::new("shop", "gone");
    let tolerant = [
        ResolveOptions { tolerate_missing_calls: true, ..ResolveOptions::default() },
        ResolveOptions { known_missing: BTreeSet::from([gone.clone()]), ..ResolveOptions::default() },
    ];
    for options in tolerant {
        let resolved = resolve(&set, &options);
        assert_eq!(resolved.diagnostics, []);
        let service = resolved.intent.unwrap().services.remove(&ServiceRef::new("shop", "a")).unwrap();
        assert_eq!(service.calls, BTreeSet::from([ServiceRef::new("shop", "b")]));
        assert_eq!(service.missing_calls, BTreeSet::from([gone.clone()]));
    }
    let other = ResolveOptions {
        known_missing: BTreeSet::from([ServiceRef::new("other", "gone")]),
        ..ResolveOptions::default()
    };
    assert_eq!(resolve(&set, &other).intent, None);
}

/// A traffic policy of `name` that fails over.
fn failover(name: &str, failover: &str) -> String {
    format!(
        "---\napiVersion: outrider.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: {name}}}, failover: {failover}}}\n"
    )
}

#[test]
fn fail_over_to_a_service_that_is_gone_is_an_error_unless_tolerated() {
    let standby = service("standby", PORTS);
    let text = service("orders", PORTS) + &standby + &failover("orders", "[{name: gone}, {name: standby}]");
    let set = documents(&text);
    let strict = resolve(&set, &ResolveOptions::default());
    assert_eq!(codes(&strict.diagnostics), [Code::UnknownService]);

    let gone = ServiceRef::new("shop", "gone");
    let options =
        ResolveOptions { known_missing: BTreeSet::from([gone.clone()]), ..ResolveOptions::default() };
    let resolved = resolve(&set, &options);
    assert_eq!(resolved.diagnostics, []);
    let intent = resolved.intent.unwrap();
    assert_eq!(intent.missing(), BTreeSet::from([gone]));
    let orders = &intent.services[&ServiceRef::new("shop", "orders")];
    let takes: Vec<String> =
        intent.failover(orders, &orders.ports[0]).map(|(service, _)| service.id.to_string()).collect();
    assert_eq!(takes, ["shop/standby"], "it is passed over");
    let values = effective(&set, &key(Kind::Service, "shop", "orders"));
    let said = |path: &str| values.iter().find(|value| value.path == path).map(|value| value.value.as_str());
    assert_eq!((said("failover[0].name"), said("failover[1].name")), (Some("gone"), Some("standby")));
}

/// Who refuses callers of a service is told that they may come in elsewhere.
#[test]
fn a_policy_that_fail_over_leads_past_is_a_warning() {
    let deny = "---\napiVersion: outrider.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: no, namespace: shop}\n\
                spec: {targetRef: {kind: Service, name: orders}, action: deny, rules: [{from: [{service: web}]}]}\n";
    let text = service("web", "{role: client, calls: [orders]}")
        + &service("orders", PORTS)
        + &service("standby", PORTS)
        + &failover("orders", "[{name: standby}]")
        + deny;
    let resolved = resolve(&documents(&text), &ResolveOptions::default());
    let [finding] = &resolved.diagnostics[..] else { panic!("{:?}", resolved.diagnostics) };
    assert_eq!((finding.code, finding.severity), (Code::PolicyElsewhere, Severity::Warning));
    assert!(finding.message.contains("TrafficPolicy"), "{finding}");
    let of_standby = deny.replace("name: no,", "name: also,").replace("name: orders}", "name: standby}");
    // Who is led there is no stranger to a rule about it.
    let resolved = resolve(&documents(&(text + &of_standby)), &ResolveOptions::default());
    assert_eq!(resolved.diagnostics, []);
}

#[test]
fn suggestions_name_what_was_probably_meant() {
    let cases = [
        ("{calls: [inventroy]}", "did you mean `inventory`?"),
        ("{calls: [ledger]}", "did you mean `ledger.finance`?"),
        ("{calls: [ledgr.finance]}", "did you mean `ledger.finance`?"),
        ("{calls: [zebra]}", "declare a Service `zebra` in namespace `shop`"),
        ("{calls: [finance/ledger]}", "write `ledger.finance`"),
        ("{calls: ['inventory:8080']}", "write `inventory`; a call is to all ports of a service"),
        ("{calls: ['ledger.finance:80']}", "write `ledger.finance`; a call is to all ports of a service"),
        ("{rolle: client}", "did you mean `role`?"),
        ("{role: cilent}", "did you mean `client`? Allowed: `client`, `server` or `client-server`"),
        ("{timeouts: {request: 15}}", "name the unit: `15s`"),
    ];
    for (spec, help) in cases {
        let text = format!(
            "{}{}{}",
            service("a", spec),
            service("inventory", PORTS),
            service("ledger", PORTS).replace("namespace: shop", "namespace: finance")
        );
        let parsed = parse(&[source("a.yaml", &text)]);
        let resolved = resolve(&parsed.documents, &ResolveOptions::default());
        let findings: Vec<_> = parsed.diagnostics.iter().chain(&resolved.diagnostics).collect();
        assert_eq!(findings.len(), 1, "{spec}: {findings:?}");
        assert_eq!(findings[0].help.as_deref(), Some(help), "{spec}");
    }
}

#[test]
fn sources_have_limits() {
    let filler = "#".repeat(3 * 1024 * 1024);
    let parsed = parse(&[source("one", &filler), source("two", &filler)]);
    assert_eq!(codes(&parsed.diagnostics), [Code::TooLarge]);
    assert_eq!(parsed.diagnostics[0].place.file, "two");

    let many = "---\nx\n".repeat(10_001);
    let parsed = parse(&[source("many", &many)]);
    assert_eq!(parsed.diagnostics.len(), 1_001, "findings are limited first");
    assert_eq!(parsed.diagnostics.last().unwrap().code, Code::TooLarge);

    let empty = "---\n".repeat(10_001);
    let parsed = parse(&[source("many", &empty)]);
    assert_eq!(codes(&parsed.diagnostics), [Code::TooLarge]);
    assert_eq!(parsed.diagnostics[0].place.line, 10_001);
}

/// Aliases must not turn a small text into a large set, over many documents neither.
#[test]
fn aliases_are_bounded_over_all_documents() {
    let list = |name: &str, of: &str| format!("{name}: &{name} [{}]\n", vec![of; 40].join(", "));
    let bomb = format!("---\n{}{}{}", list("a", "x"), list("b", "*a"), list("c", "*b"));
    let alone = parse(&[source("bomb", &bomb)]);
    assert_eq!(codes(&alone.diagnostics), [Code::TooLarge]);

    let smaller = format!("---\nkind: Service\nmetadata: {{name: n}}\n{}{}", list("a", "x"), list("b", "*a"));
    let fits = parse(&[source("one", &smaller)]);
    assert!(codes(&fits.diagnostics).iter().all(|code| *code != Code::TooLarge));
    let many: Vec<Source> = (0..20).map(|number| source(&number.to_string(), &smaller.repeat(20))).collect();
    let parsed = parse(&many);
    assert_eq!(parsed.diagnostics.last().unwrap().code, Code::TooLarge);
    assert!(parsed.documents.len() < 400);
}

/// What uses up the room to the last value is read, and what follows is refused, not passed over.
#[test]
fn documents_after_the_last_value_are_not_passed_over() {
    // 100,000 values: four around them, a list of 99 twice for its anchor, 997 aliases of it, 96 texts.
    let (list, aliases, texts) = (vec!["x"; 99].join(","), ["*a"; 997].join(","), ["x"; 96].join(","));
    let text = format!("a: &a [{list}]\nb: [{aliases},{texts}]\n");
    let mut sources: Vec<Source> = (0..10).map(|number| source(&number.to_string(), &text)).collect();
    sources.push(source("more", &service("more", PORTS)));
    let parsed = parse(&sources);
    let last = parsed.diagnostics.last().unwrap();
    assert_eq!((last.place.file.as_str(), last.code), ("more", Code::TooLarge));
    // Not before: what was read is judged.
    let of_the_rest = &parsed.diagnostics[..parsed.diagnostics.len() - 1];
    assert_eq!(codes(of_the_rest), [Code::MissingField; 10]);
}

#[test]
fn ten_thousand_documents_are_read() {
    let text: String = (0..10_000).map(|number| service(&format!("s{number}"), "{}")).collect();
    let set = documents(&text);
    assert_eq!(resolve(&set, &ResolveOptions::default()).intent.unwrap().services.len(), 10_000);
}

#[test]
fn findings_of_resolving_are_limited() {
    let calls: Vec<String> = (0..900).map(|number| format!("missing-{number}")).collect();
    let spec = format!("{{calls: [{}]}}", calls.join(", "));
    let text: String = (0..4).map(|number| service(&format!("s{number}"), &spec)).collect();
    let resolved = resolve(&documents(&text), &ResolveOptions::default());
    assert_eq!(resolved.intent, None);
    assert_eq!(resolved.diagnostics.len(), 1_001);
    assert_eq!(resolved.diagnostics.last().unwrap().code, Code::TooLarge);
}

#[test]
fn warnings_alone_refuse_nothing_however_many() {
    let spec = "{timeouts: {idle: 1s}}";
    let text: String = (0..1_500).map(|number| service(&format!("s{number}"), spec)).collect();
    let resolved = resolve(&documents(&text), &ResolveOptions::default());
    assert_eq!(resolved.intent.unwrap().services.len(), 1_500);
    assert_eq!(resolved.diagnostics.len(), 1_001);
    assert!(!resolved.diagnostics.iter().any(Diagnostic::is_error));
    assert_eq!(resolved.diagnostics.last().unwrap().code, Code::TooLarge);

    // An error is reported however many warnings stand before it.
    let text = format!("{text}{}", service("zz", "{calls: [missing]}"));
    let resolved = resolve(&documents(&text), &ResolveOptions::default());
    assert_eq!(resolved.intent, None);
    assert!(resolved.diagnostics.iter().any(|finding| finding.code == Code::UnknownService));
}

#[test]
fn restoring_reports_what_is_wrong() {
    let json = serde_json::json!({
        "apiVersion": "outrider.dev/v1alpha1",
        "kind": "Service",
        "metadata": {"name": "a"},
        "spec": {"role": "clinet", "x": 1},
    });
    let findings = Document::from_json(&json, "stored Service a").unwrap_err();
    assert_eq!(codes(&findings), [Code::UnknownValue, Code::UnknownField]);
    assert_eq!(findings[0].place.to_string(), "stored Service a");
    let text = render(&findings, &[], false);
    assert!(text.contains("stored Service a: `role` cannot be `clinet`"), "{text}");

    for json in [serde_json::json!(null), serde_json::json!({}), serde_json::json!({"kind": "Service"})] {
        assert!(!Document::from_json(&json, "x").unwrap_err().is_empty(), "{json}");
    }
}

#[test]
fn json_is_canonical() {
    let one = documents(&service("a", "{calls: [], role: client, timeouts: {idle: 1m, request: 5s}}"));
    let two = documents(
        "kind: Service\nspec:\n  timeouts:\n    request: '5s'\n    idle: 1m\n  role: client\n  engine: ~\n  calls: []\nmetadata:\n  namespace: shop\n  name: a\napiVersion: outrider.dev/v1alpha1\n",
    );
    let json = one[0].to_json().unwrap().to_string();
    assert_eq!(json, two[0].to_json().unwrap().to_string());
    assert_eq!(
        json,
        r#"{"apiVersion":"outrider.dev/v1alpha1","kind":"Service","metadata":{"name":"a","namespace":"shop"},"spec":{"role":"client","calls":[],"timeouts":{"request":"5s","idle":"1m"}}}"#
    );
}

fn table(values: &[EffectiveValue]) -> String {
    let line = |value: &EffectiveValue| {
        let ground = if value.ground.is_some() { " because" } else { "" };
        format!("{} = {} ({}{ground})\n", value.path, value.value, value.origin)
    };
    values.iter().map(line).collect()
}

#[test]
fn effective_values_name_their_origin() {
    let text = format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {{name: shop}}\nspec: {{mtls: both, timeouts: {{request: 90s}}}}\n{}{}{}",
        service("a", "{ports: [{name: http, port: 80, protocol: http}], calls: [b], timeouts: {idle: 0s}}"),
        service("b", PORTS),
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec:\n  parentRefs: [{kind: Service, name: a}]\n  rules:\n    - {backendRefs: [{name: b, port: 80}]}\n    - {matches: [{method: GET}], timeouts: {request: 1s}, backendRefs: [{name: b, port: 80, weight: 7}]}\n"
    );
    let set = documents(&text);
    assert_eq!(
        table(&effective(&set, &key(Kind::Namespace, "", "shop"))),
        "mtls = both (declared)\n\
         channel = regular (default because)\n\
         engine = native (default because)\n\
         timeouts.request = 1m30s (declared)\n\
         timeouts.idle = 5m (default because)\n\
         timeouts.idle (gRPC) = 1h (default because)\n\
         timeouts.connect = 5s (default because)\n\
         tcpIdle = 1h (default because)\n"
    );
    assert_eq!(
        table(&effective(&set, &key(Kind::Service, "shop", "a"))),
        "role = client-server (default because)\n\
         ports[0].name = http (declared)\n\
         ports[0].port = 80 (declared)\n\
         ports[0].targetPort = 80 (default because)\n\
         ports[0].protocol = http (declared)\n\
         calls = [b] (declared)\n\
         engine = native (default because)\n\
         timeouts.request = 1m30s (namespace shop)\n\
         timeouts.idle = 0s (declared)\n\
         timeouts.idle (gRPC) = 0s (declared)\n\
         timeouts.connect = 5s (default because)\n\
         mtls = both (namespace shop)\n\
         channel = regular (default because)\n\
         tcpIdle = 1h (default because)\n"
    );
    assert_eq!(
        table(&effective(&set, &key(Kind::HttpRoute, "shop", "r"))),
        "rules[0].matches = [{path: {type: PathPrefix, value: /}}] (default because)\n\
         rules[0].backendRefs[0].name = b (declared)\n\
         rules[0].backendRefs[0].port = 80 (declared)\n\
         rules[0].backendRefs[0].weight = 1 (default because)\n\
         rules[0].timeouts.request = 1m30s (namespace shop)\n\
         rules[1].matches = [{\"method\":\"GET\"}] (declared)\n\
         rules[1].backendRefs[0].name = b (declared)\n\
         rules[1].backendRefs[0].port = 80 (declared)\n\
         rules[1].backendRefs[0].weight = 7 (declared)\n\
         rules[1].timeouts.request = 1s (declared)\n"
    );
    assert_eq!(effective(&set, &key(Kind::Service, "shop", "nobody")), []);
}

/// What the schema shows as default is what takes effect, and nothing else does by default.
#[test]
fn schema_defaults_are_the_effective_defaults() {
    let set = documents("apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {name: bare}\n");
    let schema = schema();
    let spec = &schema["oneOf"][0]["properties"]["spec"]["properties"];
    let mut values = effective(&set, &key(Kind::Namespace, "", "bare"));
    // The same field with another default for calls of gRPC.
    let calls = values.extract_if(.., |value| value.path == "timeouts.idle (gRPC)").next().unwrap();
    assert_eq!((calls.value.as_str(), calls.origin.as_str()), ("1h", "default"));
    let mut fields = 0;
    for (name, field) in spec.as_object().unwrap() {
        fields += field.get("properties").and_then(|inner| inner.as_object()).map_or(1, |inner| inner.len());
        assert!(field["description"].as_str().is_some_and(|text| !text.is_empty()), "{name}");
    }
    assert_eq!(values.len(), fields, "every field of a namespace has an effective value");
    for value in values {
        let mut field = spec;
        for (depth, part) in value.path.split('.').enumerate() {
            field = if depth == 0 { &field[part] } else { &field["properties"][part] };
        }
        assert_eq!(field["default"].as_str(), Some(value.value.as_str()), "{}", value.path);
        assert_eq!(value.origin, "default");
        assert!(value.ground.is_some_and(|ground| !ground.is_empty()));
    }
    let weight =
        "/oneOf/2/properties/spec/properties/rules/items/properties/backendRefs/items/properties/weight";
    assert_eq!(schema.pointer(weight).unwrap()["default"], 1);
}

#[test]
fn schema_shows_only_what_is_honoured() {
    let text = schema().to_string();
    assert!(!text.contains("x-outrider"));
    assert!(!text.contains("CORS"), "what is not supported yet is not offered");
    insta::assert_json_snapshot!(schema()["oneOf"][1]["properties"]["spec"]);
}

#[test]
fn codes_and_severities_are_stable_texts() {
    for code in Code::ALL {
        assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
    }
    for severity in [Severity::Error, Severity::Warning] {
        assert_eq!(serde_json::to_value(severity).unwrap(), severity.as_str());
    }
    let parsed = parse(&[source("a.yaml", "kind: X\n")]);
    let json = serde_json::to_value(&parsed.diagnostics[0]).unwrap();
    assert_eq!(json["severity"], "error");
    assert_eq!(json["code"], "unknown-kind");
    assert_eq!((&json["file"], &json["line"], &json["column"]), (&"a.yaml".into(), &1.into(), &7.into()));
    assert_eq!(serde_json::from_value::<Diagnostic>(json).unwrap(), parsed.diagnostics[0]);
}

fn rendered(text: &str, width: usize) -> String {
    let sources = [source("shop.yaml", text)];
    let parsed = parse(&sources);
    let resolved = resolve(&parsed.documents, &ResolveOptions::default());
    let findings: Vec<_> = parsed.diagnostics.into_iter().chain(resolved.diagnostics).collect();
    render_with_width(&findings, &sources, false, width)
}

#[test]
fn renders_lines_and_marks() {
    let text = format!(
        "{}{}{}",
        service("checkout", "{calls: [inventroy], timeouts: {requst: 15s}}"),
        service("inventory", PORTS).replace("protocol: http", "protocol: htttp, größe: 1"),
        service("inventory", PORTS)
    );
    insta::assert_snapshot!(rendered(&text, 80));
}

#[test]
fn renders_narrow_terminals_tabs_and_line_breaks_of_windows() {
    let text = "\u{feff}apiVersion: outrider.dev/v1alpha1\r\nkind: Namespace\r\nmetadata:\t{name: shop}\r\nspec: {mtls:\tstrict, channel: \"fast\\e[31m\"}\r\n";
    let out = rendered(text, 1);
    assert!(!out.contains('\u{1b}') && !out.contains('\r'), "{out:?}");
    assert!(out.lines().all(|line| line.chars().count() <= 70), "{out}");
    insta::assert_snapshot!(out);
}

#[test]
fn renders_colours_only_when_asked() {
    let sources = [source("a.yaml", "kind: X\n")];
    let findings = parse(&sources).diagnostics;
    assert!(render(&findings, &sources, true).contains('\u{1b}'));
    assert!(!render(&findings, &sources, false).contains('\u{1b}'));
}

/// Findings far apart and at the very ends of a text show their own lines.
#[test]
fn renders_findings_anywhere_in_a_long_text() {
    let filler = "# filler\n".repeat(20_000);
    let text = format!("kind: First\n{filler}---\nkind: Last");
    let out = rendered(&text, 80);
    assert!(out.contains("shop.yaml:1:7]\n 1 │ kind: First\n"), "{out}");
    assert!(out.contains("shop.yaml:20003:7]\n 20002 │ ---\n 20003 │ kind: Last\n"), "{out}");
    assert!(out.lines().count() < 30, "{out}");
}

#[test]
fn messages_name_the_other_place() {
    let cases = [
        (
            vec![service("a", PORTS) + &service("a", PORTS)],
            "Service shop/a is declared a second time; see line 4",
        ),
        (
            vec![service("a", PORTS), service("a", PORTS)],
            "Service shop/a is declared a second time; see 0.yaml:4:18",
        ),
        (
            vec![service("a", "{role: client,\n  role: server}")],
            "the key `role` is here a second time; see line 5",
        ),
    ];
    for (texts, message) in cases {
        let sources: Vec<Source> =
            texts.iter().enumerate().map(|(index, text)| source(&format!("{index}.yaml"), text)).collect();
        assert_eq!(parse(&sources).diagnostics[0].message, message);
    }
}

/// What a document with a repeated key says is not known, even if the rest of it is fine.
#[test]
fn documents_with_faults_are_not_valid() {
    for spec in ["{role: client,\n  role: client}", "{role: client, calls: *nobody}"] {
        let parsed = parse(&[source("a.yaml", &service("a", spec))]);
        assert!(parsed.has_errors());
        assert!(!parsed.documents[0].is_valid());
        assert_eq!(parsed.documents[0].to_json(), None);
        assert_eq!(resolve(&parsed.documents, &ResolveOptions::default()).intent, None);
        assert_eq!(effective(&parsed.documents, parsed.documents[0].key()), []);
    }
}
