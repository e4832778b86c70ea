//! The store against a plain map that remembers everything.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use outrider_store::{Change, ChangesError, CommitError, Event, Key, Outcome, Store};
use proptest::prelude::*;
use serde_json::{Value, json};

const LOG: u64 = 6;

#[derive(Debug, Clone)]
enum Step {
    Commit { changes: Vec<Change>, stale: bool },
    Watch { back: u64, limit: usize },
    Reopen,
}

fn key() -> impl Strategy<Value = Key> {
    (prop_oneof![Just("Service"), Just("HTTPRoute")], prop_oneof![Just(""), Just("a"), Just("ab")], 0..3u8)
        .prop_map(|(kind, namespace, name)| Key::new(kind, namespace, format!("n{name}")))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (key(), 0..3u8).prop_map(|(key, value)| Change::Put(key, json!({"spec": {"v": value}}))),
        1 => key().prop_map(Change::Delete),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (prop::collection::vec(change(), 0..5), prop::bool::weighted(0.1))
            .prop_map(|(changes, stale)| Step::Commit { changes, stale }),
        3 => (0..12u64, 1..8usize).prop_map(|(back, limit)| Step::Watch { back, limit }),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    revision: u64,
    objects: BTreeMap<Key, (u64, Value)>,
    events: Vec<Event>,
}

impl Model {
    fn commit(&mut self, changes: &[Change]) -> Vec<Outcome> {
        let revision = self.revision + 1;
        let mut outcomes = Vec::new();
        for change in changes {
            let key = change.key().clone();
            let (outcome, document) = match change {
                Change::Put(_, document) => {
                    let before = self.objects.get(&key).map(|(_, document)| document.clone());
                    let outcome = match before {
                        None => Outcome::Created,
                        Some(before) if before == *document => Outcome::Unchanged,
                        Some(_) => Outcome::Updated,
                    };
                    if outcome != Outcome::Unchanged {
                        self.objects.insert(key.clone(), (revision, document.clone()));
                    }
                    (outcome, Some(document.clone()))
                }
                Change::Delete(_) => match self.objects.remove(&key) {
                    Some(_) => (Outcome::Deleted, None),
                    None => (Outcome::Unchanged, None),
                },
            };
            if outcome != Outcome::Unchanged {
                self.events.push(Event { revision, key, outcome, document });
                self.revision = revision;
            }
            outcomes.push(outcome);
        }
        outcomes
    }
}

fn check(store: &Store, model: &Model) {
    let snapshot = store.snapshot().unwrap();
    assert_eq!(snapshot.revision, model.revision);
    assert_eq!(store.revision().unwrap(), model.revision);
    let stored: Vec<_> =
        snapshot.objects.iter().map(|object| (&object.key, object.revision, &object.document)).collect();
    let expected: Vec<_> =
        model.objects.iter().map(|(key, (revision, document))| (key, *revision, document)).collect();
    assert_eq!(stored, expected);
    for object in &snapshot.objects {
        assert_eq!(store.get(&object.key).unwrap().as_ref(), Some(object));
    }
}

fn run(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut store = Store::open_with_log(&path, LOG).unwrap();
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Commit { changes, stale } => {
                let mut keys: Vec<_> = changes.iter().map(Change::key).collect();
                keys.sort();
                let duplicate = keys.windows(2).any(|pair| pair[0] == pair[1]);
                let expected = if stale { model.revision + 1 } else { model.revision };
                match store.commit(Some(expected), &changes) {
                    Err(CommitError::Duplicate(_)) => assert!(duplicate),
                    Err(CommitError::Conflict { actual, .. }) => assert!(stale && actual == model.revision),
                    Err(error) => panic!("{error}"),
                    Ok(committed) => {
                        assert!(!duplicate && !stale);
                        assert_eq!(committed.outcomes, model.commit(&changes));
                        assert_eq!(committed.revision, model.revision);
                    }
                }
            }
            Step::Watch { back, limit } => {
                let after = (model.revision + 2).saturating_sub(back);
                let oldest = model.revision.saturating_sub(LOG);
                match store.changes_after(after, limit) {
                    Err(ChangesError::Future { .. }) => assert!(after > model.revision),
                    Err(ChangesError::Compacted { oldest: said, .. }) => {
                        assert!(after < oldest);
                        assert_eq!(said, oldest);
                    }
                    Err(error) => panic!("{error}"),
                    Ok(events) => {
                        assert!(oldest <= after && after <= model.revision);
                        let all: Vec<_> =
                            model.events.iter().filter(|event| event.revision > after).collect();
                        assert!(events.iter().eq(all.iter().copied().take(events.len())));
                        // Pages end with a whole revision, and only stop early when they are full.
                        match all.get(events.len()) {
                            Some(next) => {
                                assert!(events.len() >= limit);
                                assert_ne!(events.last().unwrap().revision, next.revision);
                            }
                            None => assert_eq!(events.len(), all.len()),
                        }
                    }
                }
            }
            Step::Reopen => {
                drop(store);
                store = Store::open_with_log(&path, LOG).unwrap();
            }
        }
        check(&store, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_a_map_with_a_memory(steps in prop::collection::vec(step(), 1..40)) {
        run(steps);
    }
}
