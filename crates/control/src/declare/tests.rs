use outrider_intent::{Source, parse};
use outrider_store::{Change, Object, Snapshot};

use super::*;

const CHECKOUT: &str = "apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: checkout, namespace: shop}\n\
                        spec: {ports: [{name: http, port: 8080, protocol: http}], calls: [inventory]}\n---\n";
const INVENTORY: &str = "apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: inventory, namespace: shop}\n\
                         spec: {ports: [{name: http, port: 8081, protocol: http}]}\n---\n";

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
    let plan = delete(&both, &[key("inventory")], &Parsed::default(), false).unwrap();
    assert!(plan.after.is_none());
    assert!(
        plan.diagnostics.iter().any(|finding| finding.code == "unknown-service"),
        "{:?}",
        plan.diagnostics
    );

    let plan = delete(&both, &[key("inventory")], &Parsed::default(), true).unwrap();
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
    let plan = delete(&both, &[key("inventory"), key("checkout")], &Parsed::default(), false).unwrap();
    assert!(plan.after.unwrap().documents.is_empty());
}

#[test]
fn deleting_by_source_and_by_wrong_key() {
    let both = apply(&Declared::default(), &read(&format!("{CHECKOUT}{INVENTORY}"))).after.unwrap();
    let text = format!("{CHECKOUT}{}", INVENTORY.replace("inventory", "never"));
    let plan = delete(&both, &[], &read(&text), false).unwrap();
    assert_eq!(actions(&plan), [("checkout", ChangeAction::Deleted), ("never", ChangeAction::Unchanged)]);
    assert_eq!(plan.changes.len(), 1);

    let absent = delete(&both, &[key("chekout")], &Parsed::default(), false).unwrap_err();
    assert_eq!(absent.to_string(), "Service shop/chekout is not declared");
    let kind = ObjectKey { kind: "Pod".into(), ..key("checkout") };
    assert!(matches!(delete(&both, &[kind], &Parsed::default(), false), Err(KeyError::Kind(_))));
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
