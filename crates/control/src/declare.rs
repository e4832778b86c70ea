//! Apply and delete: from documents and what is stored to a change set, or to findings.
//!
//! Holds: no I/O. The set as a whole is resolved with the changes in it; if anything in it is an error, nothing
//! changes. What would break something else by being deleted is refused in its own words, see `refusals`.

mod refusals;

use std::collections::{BTreeMap, BTreeSet};

use outrider_api::http::{ChangeAction, DiagnosticView, NamespaceContents, ObjectChange, ObjectKey};
use outrider_intent::model::ServiceRef;
use outrider_intent::{Diagnostic, Document, Key, Kind, Parsed, ResolveOptions, resolve};
use outrider_store as store;

use crate::world::Declared;

/// What would be done.
#[derive(Debug)]
pub(crate) struct Plan {
    /// For the store; empty if nothing is to be done.
    pub(crate) changes: Vec<store::Change>,
    /// The same for people, unchanged objects included; of an apply with the documents.
    pub(crate) summary: Vec<ObjectChange>,
    /// Everything found.
    pub(crate) diagnostics: Vec<DiagnosticView>,
    /// What is declared after it, still with the old revision; `None` if it is refused.
    pub(crate) after: Option<Declared>,
}

/// A key does not name an object that is declared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("there is no kind `{0}`; kinds are {all}", all = Kind::ALL.map(Kind::as_str).join(", "))]
    Kind(String),
    #[error("{0} is not declared")]
    Absent(Key),
}

pub(crate) fn store_key(key: &Key) -> store::Key {
    store::Key::new(key.kind.as_str(), &key.namespace, &key.name)
}

/// The meaning of a key written by people.
pub(crate) fn read_key(key: &ObjectKey) -> Result<Key, KeyError> {
    let kind = Kind::from_name(&key.kind).ok_or_else(|| KeyError::Kind(key.kind.clone()))?;
    Ok(Key { kind, namespace: key.namespace.clone(), name: key.name.clone() })
}

pub(crate) fn view(diagnostic: &Diagnostic) -> DiagnosticView {
    DiagnosticView {
        severity: diagnostic.severity.as_str().to_owned(),
        code: diagnostic.code.as_str().to_owned(),
        file: diagnostic.place.file.clone(),
        line: diagnostic.place.line,
        column: diagnostic.place.column,
        length: diagnostic.place.length,
        message: diagnostic.message.clone(),
        help: diagnostic.help.clone(),
    }
}

/// What applying these documents does.
pub(crate) fn apply(before: &Declared, parsed: &Parsed) -> Plan {
    let mut documents = before.documents.clone();
    let (mut changes, mut summary) = (Vec::new(), Vec::new());
    for document in &parsed.documents {
        let key = document.key();
        let Some(new) = document.to_json() else { continue };
        let old = before.documents.get(key).and_then(|(_, old)| old.to_json());
        if old.as_ref() == Some(&new) {
            summary.push(change(key, ChangeAction::Unchanged));
            continue;
        }
        changes.push(store::Change::Put(store_key(key), new.clone()));
        let action = if old.is_some() { ChangeAction::Updated } else { ChangeAction::Created };
        summary.push(ObjectChange { before: old, after: Some(new), ..change(key, action) });
    }
    for document in &parsed.documents {
        let revision = before.documents.get(document.key()).map_or(0, |(revision, _)| *revision);
        // Also if unchanged: places in the new text are better than none.
        documents.insert(document.key().clone(), (revision, document.clone()));
    }
    let options = ResolveOptions { known_missing: before.intent.missing(), ..ResolveOptions::default() };
    finish(before, documents, changes, summary, &parsed.diagnostics, &options)
}

/// What a delete may take along.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DeleteOptions {
    /// Services that others still call.
    pub(crate) force: bool,
    /// What is in a namespace.
    pub(crate) contents: NamespaceContents,
}

/// What deleting these objects does. Keys of `explicit` must exist, objects of `parsed` need not. A namespace that is
/// only used, not declared, exists.
pub(crate) fn delete(
    before: &Declared,
    explicit: &[ObjectKey],
    parsed: &Parsed,
    how: DeleteOptions,
) -> Result<Plan, KeyError> {
    let mut keys = BTreeSet::new();
    for key in explicit {
        let key = read_key(key)?;
        if !before.documents.contains_key(&key) && refusals::contents(before, &key).next().is_none() {
            return Err(KeyError::Absent(key));
        }
        keys.insert(key);
    }
    keys.extend(parsed.documents.iter().map(|document| document.key().clone()));
    if how.contents == NamespaceContents::Delete {
        let inside: Vec<Key> = keys.iter().flat_map(|key| refusals::contents(before, key)).cloned().collect();
        keys.extend(inside);
    }
    // Findings in the sources themselves do not matter for a delete, except those that hide documents.
    let findings: Vec<Diagnostic> = parsed
        .diagnostics
        .iter()
        .filter(|finding| parsed.documents.is_empty() || finding.is_error())
        .cloned()
        .collect();
    let refused = refusals::find(before, &keys, parsed, how);
    if !refused.is_empty() {
        let diagnostics = findings.iter().map(view).chain(refused).collect();
        return Ok(Plan { changes: Vec::new(), summary: Vec::new(), diagnostics, after: None });
    }

    let mut documents = before.documents.clone();
    let (mut changes, mut summary) = (Vec::new(), Vec::new());
    let mut missing = before.intent.missing();
    for key in &keys {
        if documents.remove(key).is_none() {
            summary.push(change(key, ChangeAction::Unchanged));
            continue;
        }
        changes.push(store::Change::Delete(store_key(key)));
        summary.push(change(key, ChangeAction::Deleted));
        if how.force && key.kind == Kind::Service {
            missing.insert(ServiceRef::new(&key.namespace, &key.name));
        }
    }
    let options = ResolveOptions { known_missing: missing, ..ResolveOptions::default() };
    Ok(finish(before, documents, changes, summary, &findings, &options))
}

fn finish(
    before: &Declared,
    documents: BTreeMap<Key, (u64, Document)>,
    changes: Vec<store::Change>,
    summary: Vec<ObjectChange>,
    findings: &[Diagnostic],
    options: &ResolveOptions,
) -> Plan {
    let all: Vec<Document> = documents.values().map(|(_, document)| document.clone()).collect();
    let mut resolved = resolve(&all, options);
    if let Some(intent) = &resolved.intent {
        resolved.diagnostics.extend(outrider_compile::refusals(&all, intent));
    }
    let mut diagnostics: Vec<DiagnosticView> = findings.iter().map(view).collect();
    for finding in resolved.diagnostics.iter().map(view) {
        if !diagnostics.contains(&finding) {
            diagnostics.push(finding);
        }
    }
    let refused = findings.iter().chain(&resolved.diagnostics).any(Diagnostic::is_error);
    let after = resolved.intent.filter(|_| !refused).map(|intent| Declared {
        revision: before.revision,
        documents,
        intent,
    });
    Plan { changes, summary, diagnostics, after }
}

fn change(key: &Key, action: ChangeAction) -> ObjectChange {
    let key = ObjectKey {
        kind: key.kind.as_str().to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    };
    ObjectChange::new(key, action)
}

/// Brings stored objects back to meaning.
pub(crate) fn restore(snapshot: &store::Snapshot) -> Result<Declared, Vec<DiagnosticView>> {
    let (mut documents, mut findings) = (BTreeMap::new(), Vec::new());
    for object in &snapshot.objects {
        match Document::from_json(&object.document, &format!("stored {}", object.key)) {
            Ok(document) => {
                documents.insert(document.key().clone(), (object.revision, document));
            }
            Err(diagnostics) => findings.extend(diagnostics.iter().map(view)),
        }
    }
    // References to services that are gone can be there by force only: they were checked before they were stored.
    let all: Vec<Document> = documents.values().map(|(_, document)| document.clone()).collect();
    let options = ResolveOptions { tolerate_missing_calls: true, ..ResolveOptions::default() };
    let resolved = resolve(&all, &options);
    match resolved.intent {
        Some(intent) if findings.is_empty() => {
            Ok(Declared { revision: snapshot.revision, documents, intent })
        }
        _ => {
            findings.extend(resolved.diagnostics.iter().filter(|finding| finding.is_error()).map(view));
            Err(findings)
        }
    }
}

#[cfg(test)]
mod tests;
