//! Why a delete is refused: what it would leave without the object it needs, named, with what to do about it.
//!
//! | code | what would be deleted |
//! |---|---|
//! | `namespace-not-empty` | a namespace with services, routes or policies in it, which would go on with other settings |
//! | `still-called` | a service that others call; by force their callers get `unknown_service` |
//! | `still-routed` | a service that a route is attached to or sends to; the route means nothing without it |
//! | `still-named` | a service that a policy is about, or names as a caller; or as fail-over, which by force passes it over |
//!
//! Holds: what the same request deletes needs nothing. One finding an object and code, however many need it; at most
//! 1,000 in all. Does not: change anything.

use std::collections::{BTreeMap, BTreeSet};

use outrider_api::http::{DiagnosticView, NamespaceContents};
use outrider_intent::model::{Caller, ServiceRef};
use outrider_intent::{Key, Kind, Parsed};

use super::DeleteOptions;
use crate::world::Declared;

/// Most objects named in one finding.
const MAX_NAMED: usize = 10;
/// Most findings; who reads so many begins with the first.
const MAX_FINDINGS: usize = 1_000;

/// What is in a namespace; nothing if `key` is none.
pub(super) fn contents<'a>(before: &'a Declared, key: &'a Key) -> impl Iterator<Item = &'a Key> {
    // Documents are sorted by kind, namespace and name, so those of a namespace are one range of each kind.
    let kinds = Kind::ALL.into_iter().filter(|kind| key.kind == Kind::Namespace && *kind != Kind::Namespace);
    kinds.flat_map(move |kind| {
        let first = Key { kind, namespace: key.name.clone(), name: String::new() };
        let keys = before.documents.range(first..).map(|(found, _)| found);
        keys.take_while(move |found| found.kind == kind && found.namespace == key.name)
    })
}

/// Everything that speaks against deleting `keys`.
pub(super) fn find(
    before: &Declared,
    keys: &BTreeSet<Key>,
    parsed: &Parsed,
    how: DeleteOptions,
) -> Vec<DiagnosticView> {
    let mut found = Vec::new();
    let mut refuse = |key: &Key, code: &str, message: String, help: &str| {
        if found.len() < MAX_FINDINGS {
            found.push(refusal(key, parsed, code, message, help));
        }
    };
    if how.contents == NamespaceContents::Refuse {
        for key in keys {
            let inside = contents(before, key).filter(|inside| !keys.contains(*inside));
            let inside: Vec<String> = inside.map(ToString::to_string).collect();
            if !inside.is_empty() {
                let message =
                    format!("the namespace {} is not empty: it holds {}", key.name, listed(&inside));
                let help = "delete that first, or use --force to delete everything in it at once";
                refuse(key, "namespace-not-empty", message, help);
            }
        }
    }
    let gone: BTreeSet<ServiceRef> = keys
        .iter()
        .filter(|key| key.kind == Kind::Service && before.documents.contains_key(*key))
        .map(|key| ServiceRef::new(&key.namespace, &key.name))
        .collect();
    if !how.force {
        for (callee, callers) in callers(before, &gone) {
            let verb = if callers.len() == 1 { "calls" } else { "call" };
            let message = format!("{} {verb} the service {callee}", listed(&callers));
            refuse(&service(callee), "still-called", message, "remove the call, or use --force");
        }
        for (named, all) in failing_over(before, keys, &gone) {
            let message = format!("calls of {} fail over to the service {named}", listed(&all));
            let help = "remove it from `failover` of the traffic policy, or use --force";
            refuse(&service(named), "still-named", message, help);
        }
    }
    for (named, all) in routes(before, keys, &gone) {
        let verb = if all.len() == 1 { "names" } else { "name" };
        let message = format!("{} {verb} the service {named}", listed(&all));
        let help = "delete the route with it, or change the route first";
        refuse(&service(named), "still-routed", message, help);
    }
    for (named, all) in policies(before, keys, &gone) {
        let verb = if all.len() == 1 { "is" } else { "are" };
        let message = format!("{} {verb} about the service {named}", listed(&all));
        let help = "delete the policy with it, or change the policy first";
        refuse(&service(named), "still-named", message, help);
    }
    found
}

fn service(id: &ServiceRef) -> Key {
    Key { kind: Kind::Service, namespace: id.namespace.clone(), name: id.name.clone() }
}

/// Callers that stay, by the service that goes.
fn callers<'a>(before: &'a Declared, gone: &BTreeSet<ServiceRef>) -> BTreeMap<&'a ServiceRef, Vec<String>> {
    let mut found = BTreeMap::<_, Vec<String>>::new();
    for caller in before.intent.services.values().filter(|caller| !gone.contains(&caller.id)) {
        for callee in caller.calls.iter().filter(|callee| gone.contains(*callee)) {
            found.entry(callee).or_default().push(caller.id.to_string());
        }
    }
    found
}

/// Services that stay and fail over by a policy that stays, by the service that goes.
fn failing_over<'a>(
    before: &'a Declared,
    keys: &BTreeSet<Key>,
    gone: &BTreeSet<ServiceRef>,
) -> BTreeMap<&'a ServiceRef, Vec<String>> {
    let mut found = BTreeMap::<_, Vec<String>>::new();
    let policies = before.intent.policies.iter();
    let stay = policies.filter(|(key, _)| key.kind == Kind::TrafficPolicy && !keys.contains(*key));
    for (_, target) in stay {
        let Some(id) = target.as_ref().filter(|id| !gone.contains(*id)) else { continue };
        let failover = before.intent.services.get(id).map(|service| &service.traffic.failover);
        for other in failover.into_iter().flatten().filter(|other| gone.contains(&other.service)) {
            found.entry(&other.service).or_default().push(id.to_string());
        }
    }
    found
}

/// Routes that stay, by the service that goes.
fn routes<'a>(
    before: &'a Declared,
    keys: &BTreeSet<Key>,
    gone: &BTreeSet<ServiceRef>,
) -> BTreeMap<&'a ServiceRef, Vec<String>> {
    let mut found = BTreeMap::<_, Vec<String>>::new();
    for route in before.intent.routes().filter(|route| !keys.contains(&route.key)) {
        let parents = route.parents.iter().map(|(parent, _)| parent);
        let targets = route.targets.iter().map(|(service, _)| *service);
        let named: BTreeSet<_> = parents.chain(targets).filter(|id| gone.contains(*id)).collect();
        for id in named {
            found.entry(id).or_default().push(route.key.to_string());
        }
    }
    found
}

/// Policies that stay and are about a service that goes, or name it as a caller.
fn policies<'a>(
    before: &'a Declared,
    keys: &BTreeSet<Key>,
    gone: &'a BTreeSet<ServiceRef>,
) -> BTreeMap<&'a ServiceRef, Vec<String>> {
    let mut found = BTreeMap::<&ServiceRef, BTreeSet<String>>::new();
    for (key, target) in before.intent.policies.iter().filter(|(key, _)| !keys.contains(*key)) {
        if let Some(target) = target.as_ref().filter(|target| gone.contains(*target)) {
            found.entry(target).or_default().insert(key.to_string());
        }
    }
    for service in before.intent.services.values().filter(|service| !gone.contains(&service.id)) {
        for policy in &service.access {
            let name = policy.name.clone();
            let key = Key { kind: Kind::AccessPolicy, namespace: service.id.namespace.clone(), name };
            for caller in policy.rules.iter().flat_map(|rule| &rule.from) {
                if let Caller::Service(id) = caller
                    && let Some(id) = gone.get(id)
                    && !keys.contains(&key)
                {
                    found.entry(id).or_default().insert(key.to_string());
                }
            }
        }
    }
    found.into_iter().map(|(id, names)| (id, names.into_iter().collect())).collect()
}

/// `a, b and c`; of many the first, and how many more there are.
fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] if names.len() <= MAX_NAMED => format!("{} and {last}", first.join(", ")),
        many => format!("{} and {} more", many[..MAX_NAMED].join(", "), many.len() - MAX_NAMED),
    }
}

/// A finding about an object: where the sources of the request have it, else under its own name.
fn refusal(key: &Key, parsed: &Parsed, code: &str, message: String, help: &str) -> DiagnosticView {
    let written = parsed.documents.iter().find(|document| document.key() == key);
    let place = written.map(|document| document.place());
    DiagnosticView {
        severity: "error".to_owned(),
        code: code.to_owned(),
        line: place.as_ref().map_or(0, |place| place.line),
        column: place.as_ref().map_or(0, |place| place.column),
        length: place.as_ref().map_or(0, |place| place.length),
        file: place.map_or_else(|| key.to_string(), |place| place.file),
        message,
        help: Some(help.to_owned()),
    }
}
