//! The store against a plain map that remembers everything.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use outrider_store::{Change, ChangesError, CommitError, Event, Key, LogLimits, Outcome, Store};
use proptest::prelude::*;
use serde_json::{Value, json};

const LOG: LogLimits = LogLimits { revisions: 6, bytes: 1_500 };

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
        3 => (key(), 0..3u8, 0..400usize).prop_map(|(key, value, pad)| {
            // Mostly small, so that change sets of many sizes meet the limit.
            let pad = "x".repeat(if pad < 300 { 0 } else { pad });
            Change::Put(key, json!({"spec": {"v": value}, "pad": pad}))
        }),
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
    /// The smallest revision after which everything is kept.
    oldest: u64,
}

impl Model {
    fn compact(&mut self) {
        let bytes = |after: u64| -> u64 {
            let kept = self.events.iter().filter(|event| event.revision > after);
            kept.map(|event| serde_json::to_vec(event).unwrap().len() as u64).sum()
        };
        let mut oldest = self.oldest.max(self.revision.saturating_sub(LOG.revisions));
        while oldest + 1 < self.revision && bytes(oldest) > LOG.bytes {
            oldest += 1;
        }
        self.oldest = oldest;
    }
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
        self.compact();
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
                let oldest = model.oldest;
                match store.changes_after(after, limit) {
                    Err(ChangesError::Future { .. }) => assert!(after > model.revision),
                    Err(ChangesError::Compacted { oldest: said, .. }) => {
                        assert!(after < oldest);
                        assert_eq!(said, oldest);
                    }
                    Err(error) => panic!("{error}"),
                    Ok(page) => {
                        let events = page.events;
                        assert!(oldest <= after && after <= model.revision);
                        let all: Vec<_> =
                            model.events.iter().filter(|event| event.revision > after).collect();
                        assert!(events.iter().eq(all.iter().copied().take(events.len())));
                        // Pages end with a whole revision, and only stop early when they are full. More than
                        // the limit is in them only if it is one revision.
                        assert_eq!(page.more, events.len() < all.len());
                        if let Some(next) = all.get(events.len()) {
                            assert_ne!(events.last().unwrap().revision, next.revision);
                            let next = all.iter().filter(|event| event.revision == next.revision).count();
                            assert!(events.len() + next > limit);
                        }
                        let one = events.iter().all(|event| event.revision == events[0].revision);
                        assert!(events.len() <= limit || one);
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
