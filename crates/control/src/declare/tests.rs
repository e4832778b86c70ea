use outrider_intent::{Source, parse};
use outrider_store::{Change, Object, Snapshot};

use super::*;

const CHECKOUT: &str = "apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: checkout, namespace: shop}\n\
                        spec: {ports: [{name: http, port: 8080, protocol: http}], calls: [inventory]}\n---\n";
const INVENTORY: &str = "apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: inventory, namespace: shop}\n\
                         spec: {ports: [{name: http, port: 8081, protocol: http}]}\n---\n";

const SPLIT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: split, namespace: shop}\n\
                     spec: {parentRefs: [{kind: Service, name: checkout}],\n\
                     rules: [{backendRefs: [{name: inventory, port: 8081}]}]}\n---\n";
const FORCE: DeleteOptions = DeleteOptions { force: true, contents: NamespaceContents::Refuse };

fn read(text: &str) -> Parsed {
    parse(&[Source { name: "test.yaml".into(), text: text.into() }])
}

fn key(name: &str) -> ObjectKey {
    ObjectKey { kind: "Service".into(), namespace: "shop".into(), name: name.into() }
}

fn actions(plan: &Plan) -> Vec<(&str, ChangeAction)> {
    plan.summary.iter().map(|change| (change.key.name.as_str(), change.action)).collect()
}

/// What a restarted server makes of the stored form.
fn stored(declared: &Declared) -> Result<Declared, Vec<DiagnosticView>> {
    let objects = declared.documents.iter().map(|(key, (revision, document))| Object {
        key: store_key(key),
        revision: *revision,
        document: document.to_json().unwrap(),
    });
    restore(&Snapshot { revision: declared.revision, objects: objects.collect() })
}

#[test]
fn applying_creates_updates_and_leaves_alone() {
    let before = Declared::default();
    let both = format!("{CHECKOUT}{INVENTORY}");
    let plan = apply(&before, &read(&both));
    assert_eq!(actions(&plan), [("checkout", ChangeAction::Created), ("inventory", ChangeAction::Created)]);
    assert_eq!(plan.changes.len(), 2);
    let after = plan.after.unwrap();
    assert_eq!(after.intent.services.len(), 2);

    let plan = apply(&after, &read(&both.replace("8081", "9000")));
    assert_eq!(actions(&plan), [("checkout", ChangeAction::Unchanged), ("inventory", ChangeAction::Updated)]);
    assert!(matches!(&plan.changes[..], [Change::Put(key, _)] if key.name == "inventory"));
    // A restart gives the same meaning.
    let again = stored(&after).unwrap();
    assert_eq!(again.intent, after.intent);
    assert_eq!(actions(&apply(&again, &read(CHECKOUT))), [("checkout", ChangeAction::Unchanged)]);
}

#[test]
fn an_error_anywhere_refuses_everything_and_all_are_named() {
    let before = Declared::default();
    // A dangling call, and an unknown field in another document.
    let text = format!(
        "{CHECKOUT}{}",
        INVENTORY.replace("inventory", "stock").replace("spec: {", "spec: {nonsense: 1, ")
    );
    let plan = apply(&before, &read(&text));
    assert!(plan.after.is_none());
    let codes: Vec<&str> = plan.diagnostics.iter().map(|finding| finding.code.as_str()).collect();
    assert!(codes.contains(&"unknown-service") && codes.contains(&"unknown-field"), "{codes:?}");
    assert!(plan.diagnostics.iter().all(|finding| finding.file == "test.yaml" && finding.line > 0));
    // New documents are checked together with stored ones.
    let inventory = apply(&before, &read(INVENTORY)).after.unwrap();
    assert!(apply(&inventory, &read(CHECKOUT)).after.is_some());
}

#[test]
fn services_that_are_called_go_by_force_only() {
    let both = apply(&Declared::default(), &read(&format!("{CHECKOUT}{INVENTORY}"))).after.unwrap();
    let plan = delete(&both, &[key("inventory")], &Parsed::default(), DeleteOptions::default()).unwrap();
    assert!(plan.after.is_none());
    let [finding] = plan.diagnostics.as_slice() else { panic!("{:?}", plan.diagnostics) };
    assert_eq!((finding.code.as_str(), finding.line), ("still-called", 0));
    assert_eq!(finding.message, "shop/checkout calls the service shop/inventory");
    assert_eq!(finding.help.as_deref(), Some("remove the call, or use --force"));

    let plan = delete(&both, &[key("inventory")], &Parsed::default(), FORCE).unwrap();
    assert_eq!(actions(&plan), [("inventory", ChangeAction::Deleted)]);
    let forced = plan.after.unwrap();
    let checkout = &forced.intent.services[&ServiceRef::new("shop", "checkout")];
    assert!(checkout.missing_calls.contains(&ServiceRef::new("shop", "inventory")));

    // It stays so over other changes and a restart, and heals when the service returns.
    let other = INVENTORY.replace("inventory", "other");
    let later = apply(&stored(&forced).unwrap(), &read(&other)).after.unwrap();
    assert!(!later.intent.services[&ServiceRef::new("shop", "checkout")].missing_calls.is_empty());
    let healed = apply(&later, &read(INVENTORY)).after.unwrap();
    assert!(healed.intent.services[&ServiceRef::new("shop", "checkout")].missing_calls.is_empty());

    // Both at once need no force.
    let plan =
        delete(&both, &[key("inventory"), key("checkout")], &Parsed::default(), DeleteOptions::default())
            .unwrap();
    assert!(plan.after.unwrap().documents.is_empty());
}

/// What is refused: codes and messages.
fn refused(
    before: &Declared,
    keys: &[ObjectKey],
    sources: &str,
    how: DeleteOptions,
) -> Vec<(String, String)> {
    let plan = delete(before, keys, &read(sources), how).unwrap();
    assert!(plan.after.is_none() && plan.changes.is_empty() && plan.summary.is_empty(), "{plan:?}");
    plan.diagnostics.into_iter().map(|finding| (finding.code, finding.message)).collect()
}

#[test]
fn a_namespace_with_something_in_it_goes_by_force_and_whole() {
    let namespace = "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {name: shop}\n---\n";
    let other = "apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: web, namespace: other}\n\
                 spec: {role: client, calls: [checkout.shop]}\n---\n";
    let shop = ObjectKey { kind: "Namespace".into(), namespace: String::new(), name: "shop".into() };
    let contents = |contents| DeleteOptions { contents, ..DeleteOptions::default() };
    let inside = "HTTPRoute shop/split";
    // Whether the namespace is declared or only used.
    for declared in [namespace, ""] {
        let text = format!("{declared}{CHECKOUT}{INVENTORY}{SPLIT}");
        let before = apply(&Declared::default(), &read(&text)).after.unwrap();
        let one = std::slice::from_ref(&shop);
        let empty_handed = refused(&before, one, "", DeleteOptions::default());
        let holds =
            "the namespace shop is not empty: it holds Service shop/checkout, Service shop/inventory and";
        assert_eq!(empty_handed, [("namespace-not-empty".to_owned(), format!("{holds} {inside}"))]);
        // Nor by the file that declares it; then the finding is where it is declared.
        if !declared.is_empty() {
            let plan = delete(&before, &[], &read(declared), DeleteOptions::default()).unwrap();
            assert_eq!((plan.diagnostics[0].file.as_str(), plan.diagnostics[0].line), ("test.yaml", 3));
        }
        // With everything in it named too, nothing is left to ask about.
        let plan = delete(&before, &[], &read(&text), DeleteOptions::default()).unwrap();
        assert!(plan.after.unwrap().documents.is_empty());
        // Everything in one change set.
        let plan = delete(&before, one, &Parsed::default(), contents(NamespaceContents::Delete)).unwrap();
        assert_eq!(plan.changes.len(), if declared.is_empty() { 3 } else { 4 });
        assert!(plan.after.unwrap().documents.is_empty());
        // Or the settings alone.
        let plan = delete(&before, one, &Parsed::default(), contents(NamespaceContents::Keep)).unwrap();
        assert_eq!(plan.after.unwrap().documents.len(), 3);
        // Callers elsewhere are another question.
        let before = apply(&before, &read(other)).after.unwrap();
        let called = refused(&before, one, "", contents(NamespaceContents::Delete));
        assert_eq!(called, [("still-called".into(), "other/web calls the service shop/checkout".into())]);
        let all = DeleteOptions { force: true, contents: NamespaceContents::Delete };
        let after = delete(&before, one, &Parsed::default(), all).unwrap().after.unwrap();
        assert_eq!(after.intent.services[&ServiceRef::new("other", "web")].missing_calls.len(), 1);
    }
    let nothing = ObjectKey { name: "nothing".into(), ..shop };
    let absent = delete(&Declared::default(), &[nothing], &Parsed::default(), FORCE).unwrap_err();
    assert_eq!(absent.to_string(), "Namespace nothing is not declared");
}

#[test]
fn everything_that_needs_a_service_is_named() {
    let calls = |name: &str| CHECKOUT.replace("name: checkout", &format!("name: {name}"));
    let text = format!("{CHECKOUT}{INVENTORY}{SPLIT}{}", calls("web"));
    let before = apply(&Declared::default(), &read(&text)).after.unwrap();
    let routed = |name: &str| {
        ("still-routed".to_owned(), format!("HTTPRoute shop/split names the service shop/{name}"))
    };
    let both = refused(&before, &[key("inventory")], "", DeleteOptions::default());
    let called = "shop/checkout and shop/web call the service shop/inventory".to_owned();
    assert_eq!(both, [("still-called".to_owned(), called), routed("inventory")]);
    // No force makes a route mean something without its parent.
    assert_eq!(refused(&before, &[key("checkout")], "", FORCE), [routed("checkout")]);
    let split = ObjectKey { kind: "HTTPRoute".into(), ..key("split") };
    let plan = delete(&before, &[key("checkout"), split], &Parsed::default(), FORCE).unwrap();
    assert_eq!(plan.after.unwrap().documents.len(), 2);
    // Many are counted.
    let many: String = (0..12).map(|at| calls(&format!("c{at:02}"))).collect();
    let before = apply(&Declared::default(), &read(&format!("{INVENTORY}{many}"))).after.unwrap();
    let message = refused(&before, &[key("inventory")], "", DeleteOptions::default()).remove(0).1;
    assert!(
        message.starts_with("shop/c00, shop/c01, ") && message.contains("shop/c09 and 2 more call"),
        "{message}"
    );
}

#[test]
fn a_service_that_a_policy_is_about_stays() {
    let policy = |kind: &str, name: &str, spec: &str| {
        format!(
            "apiVersion: outrider.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{targetRef: {{kind: Service, name: checkout}}, {spec}}}\n---\n"
        )
    };
    let traffic = policy("TrafficPolicy", "calm", "limits: {connections: 10}");
    let access = policy("AccessPolicy", "some", "action: allow, rules: [{from: [{service: inventory}]}]");
    let text = format!("{CHECKOUT}{INVENTORY}{traffic}{access}");
    let before = apply(&Declared::default(), &read(&text)).after.unwrap();
    assert_eq!(stored(&before).unwrap().intent, before.intent);
    let named = |text: &str| ("still-named".to_owned(), text.to_owned());
    let about = "AccessPolicy shop/some and TrafficPolicy shop/calm are about the service shop/checkout";
    assert_eq!(refused(&before, &[key("checkout")], "", FORCE), [named(about)]);
    let caller = "AccessPolicy shop/some is about the service shop/inventory";
    assert_eq!(refused(&before, &[key("inventory")], "", FORCE), [named(caller)]);
    // With the policies, nothing is in the way.
    let plan = delete(&before, &[key("checkout")], &read(&format!("{traffic}{access}")), FORCE).unwrap();
    assert_eq!(plan.after.unwrap().documents.len(), 1);
}

#[test]
fn a_service_that_calls_fail_over_to_goes_by_force_only_and_is_passed_over() {
    let policy = "apiVersion: outrider.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: calm, namespace: shop}\n\
                  spec: {targetRef: {kind: Service, name: checkout}, failover: [{name: spare}]}\n---\n";
    let spare = format!("---\n{CHECKOUT}---\n").replace("checkout", "spare");
    let text = format!("{CHECKOUT}{INVENTORY}{spare}{policy}");
    let before = apply(&Declared::default(), &read(&text)).after.unwrap();
    let message = "calls of shop/checkout fail over to the service shop/spare".to_owned();
    let refusals = refused(&before, &[key("spare")], "", DeleteOptions::default());
    assert_eq!(refusals, [("still-named".to_owned(), message)]);
    let gone = delete(&before, &[key("spare")], &Parsed::default(), FORCE).unwrap().after.unwrap();
    let missing = |declared: &Declared| declared.intent.missing().len();
    assert_eq!((missing(&before), missing(&gone)), (0, 1));
    // Over other changes and a restart, and until it is there again.
    let other = INVENTORY.replace("inventory", "other");
    let later = apply(&stored(&gone).unwrap(), &read(&other)).after.unwrap();
    assert_eq!(missing(&later), 1);
    assert_eq!(missing(&apply(&later, &read(&spare)).after.unwrap()), 0);
    // With the policy, nothing is in the way.
    let plan = delete(&before, &[key("spare")], &read(policy), DeleteOptions::default()).unwrap();
    assert_eq!(plan.after.unwrap().documents.len(), 2);
}

#[test]
fn access_by_request_and_its_audits_are_for_every_engine() {
    let rates = "apiVersion: outrider.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: reads, namespace: shop}\n\
                 spec: {action: allow, mode: audit, rules: [{to: [{methods: [GET]}]}]}\n";
    let native = apply(&Declared::default(), &read(&format!("{INVENTORY}{rates}")));
    assert!(native.after.is_some(), "{:?}", native.diagnostics);
    let envoy = INVENTORY.replace("spec: {", "spec: {engine: envoy, ");
    assert!(apply(&Declared::default(), &read(&format!("{envoy}{rates}"))).after.is_some());
}

#[test]
fn changes_hold_the_documents_before_and_after() {
    let before = apply(&Declared::default(), &read(INVENTORY)).after.unwrap();
    let text = format!("{CHECKOUT}{}", INVENTORY.replace("8081", "9000"));
    let plan = apply(&before, &read(&text));
    let port = |document: &Option<serde_json::Value>| {
        document.as_ref().map(|document| document["spec"]["ports"][0]["port"].as_u64().unwrap())
    };
    let ports: Vec<_> =
        plan.summary.iter().map(|change| (port(&change.before), port(&change.after))).collect();
    assert_eq!(ports, [(None, Some(8080)), (Some(8081), Some(9000))]);
    let same = apply(&before, &read(INVENTORY));
    assert_eq!((&same.summary[0].before, &same.summary[0].after), (&None, &None));
}

#[test]
fn deleting_by_source_and_by_wrong_key() {
    let both = apply(&Declared::default(), &read(&format!("{CHECKOUT}{INVENTORY}"))).after.unwrap();
    let text = format!("{CHECKOUT}{}", INVENTORY.replace("inventory", "never"));
    let plan = delete(&both, &[], &read(&text), DeleteOptions::default()).unwrap();
    assert_eq!(actions(&plan), [("checkout", ChangeAction::Deleted), ("never", ChangeAction::Unchanged)]);
    assert_eq!(plan.changes.len(), 1);

    let absent = delete(&both, &[key("chekout")], &Parsed::default(), DeleteOptions::default()).unwrap_err();
    assert_eq!(absent.to_string(), "Service shop/chekout is not declared");
    let kind = ObjectKey { kind: "Pod".into(), ..key("checkout") };
    assert!(matches!(
        delete(&both, &[kind], &Parsed::default(), DeleteOptions::default()),
        Err(KeyError::Kind(_))
    ));
}

#[test]
fn stored_documents_that_are_no_longer_valid_are_reported() {
    let both = apply(&Declared::default(), &read(&format!("{CHECKOUT}{INVENTORY}"))).after.unwrap();
    let mut objects: Vec<Object> = both
        .documents
        .iter()
        .map(|(key, (_, document))| Object {
            key: store_key(key),
            revision: 1,
            document: document.to_json().unwrap(),
        })
        .collect();
    objects[0].document["spec"]["fromTheFuture"] = true.into();
    let findings = restore(&Snapshot { revision: 1, objects }).unwrap_err();
    assert_eq!(findings[0].code, "unknown-field");
    assert_eq!(findings[0].file, "stored Service shop/checkout");
}
