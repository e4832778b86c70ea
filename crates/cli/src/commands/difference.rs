//! What `diff` prints: which objects change and in which lines, and what that changes in which proxy.
//!
//! ```text
//! ~ service shop/checkout
//!   @@ -8,5 +8,5 @@
//!        port: 8080
//!        protocol: http
//!      timeouts:
//!   -    request: 7s
//!   +    request: 8s
//! proxy shop/checkout-x7k2p
//!   ~ route outbound/shop/checkout/http
//! ```
//! Holds: lines are those of the documents as the control plane keeps them, so neither comments nor the order of fields
//! are differences. Does not: ask anybody.

use outrider_api::http::{ChangeAction, ChangeResponse, ObjectChange};
use serde_json::Value;
use similar::{ChangeTag, TextDiff};

use super::change::object_name;
use crate::output::{Style, value};

/// Unchanged lines around changed ones.
const CONTEXT: usize = 3;

fn sign(action: ChangeAction, style: Style) -> String {
    match action {
        ChangeAction::Created => style.good("+"),
        ChangeAction::Updated => style.warn("~"),
        ChangeAction::Deleted => style.bad("-"),
        ChangeAction::Unchanged => " ".to_owned(),
    }
}

/// Everything that would change; says so if it is nothing.
pub(super) fn difference(change: &ChangeResponse, style: Style) -> String {
    let mut text = String::new();
    for object in change.changes.iter().filter(|object| object.action != ChangeAction::Unchanged) {
        text.push_str(&format!("{} {}\n", sign(object.action, style), object_name(&object.key)));
        text.push_str(&lines(object, style));
    }
    if text.is_empty() {
        return "no difference\n".to_owned();
    }
    for proxy in &change.proxies {
        text.push_str(&format!("proxy {}\n", style.bold(&proxy.proxy)));
        for resource in &proxy.resources {
            text.push_str(&format!(
                "  {} {} {}\n",
                sign(resource.action, style),
                resource.kind,
                resource.name
            ));
        }
    }
    if change.proxies.is_empty() {
        text.push_str("no proxy would change\n");
    }
    text
}

/// The lines in which a document changes; none if an older control plane does not give documents.
fn lines(object: &ObjectChange, style: Style) -> String {
    let (before, after) = (yaml(object.before.as_ref()), yaml(object.after.as_ref()));
    let diff = TextDiff::from_lines(&before, &after);
    let mut text = String::new();
    for hunk in diff.unified_diff().context_radius(CONTEXT).iter_hunks() {
        text.push_str(&format!("  {}\n", style.paint("36", &hunk.header().to_string())));
        for change in hunk.iter_changes() {
            let line = value(change.value().trim_end_matches('\n'));
            let line = match change.tag() {
                ChangeTag::Equal => format!(" {line}"),
                ChangeTag::Delete => style.bad(&format!("-{line}")),
                ChangeTag::Insert => style.good(&format!("+{line}")),
            };
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

/// A document as text; nothing is an empty one. JSON is YAML too, for what cannot be printed otherwise.
fn yaml(document: Option<&Value>) -> String {
    let Some(document) = document else { return String::new() };
    let mut text = serde_saphyr::to_string(document).unwrap_or_else(|_| document.to_string());
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use outrider_api::http::{ObjectKey, ProxyChange, ResourceChange};
    use serde_json::json;

    use super::*;
    use crate::output::ColorChoice;

    fn change(kind: &str, name: &str, action: ChangeAction) -> ObjectChange {
        let namespace = if kind == "Namespace" { "" } else { "shop" };
        let key = ObjectKey { kind: kind.into(), namespace: namespace.into(), name: name.into() };
        ObjectChange::new(key, action)
    }

    fn document(request: &str) -> Option<Value> {
        Some(json!({
            "apiVersion": "outrider.dev/v1alpha1",
            "kind": "Service",
            "metadata": {"name": "cart", "namespace": "shop"},
            "spec": {
                "ports": [{"name": "http", "port": 8080, "protocol": "http"}],
                "timeouts": {"request": request, "idle": "5m"},
            },
        }))
    }

    fn everything() -> ChangeResponse {
        let resource = ResourceChange {
            kind: "route".into(),
            name: "outbound/shop/cart/http".into(),
            action: ChangeAction::Updated,
        };
        ChangeResponse {
            revision: 3,
            changes: vec![
                change("Namespace", "shop", ChangeAction::Unchanged),
                ObjectChange {
                    before: document("7s"),
                    after: document("8s"),
                    ..change("Service", "cart", ChangeAction::Updated)
                },
                ObjectChange {
                    after: Some(json!({"kind": "Service", "metadata": {"name": "new"}})),
                    ..change("Service", "new", ChangeAction::Created)
                },
                change("HTTPRoute", "split", ChangeAction::Updated),
            ],
            diagnostics: Vec::new(),
            proxies: vec![ProxyChange { proxy: "shop/web-x7k2p".into(), resources: vec![resource] }],
        }
    }

    #[test]
    fn differences_show_values_and_what_they_change() {
        insta::assert_snapshot!(difference(&everything(), Style::plain()), @r"
        ~ service shop/cart
          @@ -9,5 +9,5 @@
               port: 8080
               protocol: http
             timeouts:
          -    request: 7s
          +    request: 8s
               idle: 5m
        + service shop/new
          @@ -0,0 +1,3 @@
          +kind: Service
          +metadata:
          +  name: new
        ~ route shop/split
        proxy shop/web-x7k2p
          ~ route outbound/shop/cart/http
        ");
        assert_eq!(difference(&ChangeResponse::default(), Style::plain()), "no difference\n");
    }

    #[test]
    fn colours_only_when_asked() {
        let colored = difference(&everything(), Style::stdout(ColorChoice::Always));
        for line in ["\x1b[31m-    request: 7s\x1b[0m", "\x1b[32m+    request: 8s\x1b[0m"] {
            assert!(colored.contains(line), "{colored:?}");
        }
        let plain = difference(&everything(), Style::stdout(ColorChoice::Never));
        assert!(!plain.contains('\x1b'), "{plain:?}");
    }

    #[test]
    fn a_document_cannot_paint() {
        let mut object = change("Service", "cart", ChangeAction::Created);
        object.after = Some(json!({"metadata": {"annotations": {"a": "x\u{1b}[31m\u{202e}y"}}}));
        let text = lines(&object, Style::plain());
        assert!(!text.contains(['\x1b', '\u{202e}']), "{text:?}");
    }
}
