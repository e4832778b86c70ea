//! Declared objects, revisions and the log of changes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::PoisonError;

use redb::{ReadableDatabase, ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::open::{LOG, META, OBJECTS, Store, size};
use crate::{StorageError, damaged};

/// Changes in one change set.
pub const MAX_CHANGES: usize = 10_000;
/// Bytes of one document as JSON.
pub const MAX_DOCUMENT: usize = 4 << 20;
/// Bytes of all documents of one change set as JSON.
pub const MAX_CHANGE_SET: usize = 32 << 20;
/// Bytes of the events in one page of changes, unless a single change set has more.
pub const PAGE_BYTES: u64 = 4 << 20;

/// Identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Kind, like `Service`.
    pub kind: String,
    /// Namespace; empty for kinds without.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(kind: impl Into<String>, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }

    fn parts(&self) -> (&str, &str, &str) {
        (&self.kind, &self.namespace, &self.name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// A stored object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its key.
    pub key: Key,
    /// Revision of its last change.
    pub revision: u64,
    /// The document.
    pub document: Value,
}

/// Everything at one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The revision.
    pub revision: u64,
    /// Objects in the order of their keys.
    pub objects: Vec<Object>,
}

/// One wish of a change set.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Create or replace.
    Put(Key, Value),
    /// Remove; an object that is not there stays so.
    Delete(Key),
}

impl Change {
    /// The object it is about.
    pub fn key(&self) -> &Key {
        match self {
            Change::Put(key, _) | Change::Delete(key) => key,
        }
    }
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Was not there.
    Created,
    /// Differs from what was there.
    Updated,
    /// Equal to what was there, or nothing to delete.
    Unchanged,
    /// Is gone.
    Deleted,
}

/// A committed change set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The revision after it; the same as before if every outcome is `Unchanged`.
    pub revision: u64,
    /// One per change, in the same order.
    pub outcomes: Vec<Outcome>,
}

/// A change that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The revision it made.
    pub revision: u64,
    /// The object.
    pub key: Key,
    /// What happened; never `Unchanged`.
    pub outcome: Outcome,
    /// The new document; `None` if deleted.
    pub document: Option<Value>,
}

/// Changes read from the log at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Whole change sets, oldest first.
    pub events: Vec<Event>,
    /// Whether later ones follow: ask again, after the last revision here.
    pub more: bool,
}

/// A change set was not committed; nothing of it was applied.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Someone else changed something since the revision the caller decided on.
    #[error("the store moved from revision {expected} to {actual} meanwhile")]
    Conflict {
        /// The caller's.
        expected: u64,
        /// The store's.
        actual: u64,
    },
    /// The same object twice in one change set.
    #[error("{0} is changed twice in one change set")]
    Duplicate(Key),
    /// A limit was passed.
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The limit: changes or bytes.
        limit: usize,
    },
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The log could not answer.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// Changes directly after that revision are no longer kept: read everything and go on from there.
    #[error(
        "changes after revision {after} are no longer kept, only after {oldest}: read all objects and watch from their revision"
    )]
    Compacted {
        /// Asked for.
        after: u64,
        /// The smallest revision that can be asked for.
        oldest: u64,
    },
    /// That revision does not exist yet.
    #[error("revision {after} does not exist yet, the store is at {revision}")]
    Future {
        /// Asked for.
        after: u64,
        /// The store's.
        revision: u64,
    },
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Store {
    /// The revision of the last committed change set; 0 if there was none.
    pub fn revision(&self) -> Result<u64, StorageError> {
        let read =
            || -> Result<u64, redb::Error> { number(&self.db.begin_read()?.open_table(META)?, "revision") };
        Ok(read()?)
    }

    /// Everything, as of one revision.
    pub fn snapshot(&self) -> Result<Snapshot, StorageError> {
        let read = || -> Result<Snapshot, redb::Error> {
            let transaction = self.db.begin_read()?;
            let revision = number(&transaction.open_table(META)?, "revision")?;
            let mut objects = Vec::new();
            for row in transaction.open_table(OBJECTS)?.iter()? {
                let (key, value) = row?;
                let (kind, namespace, name) = key.value();
                objects.push(object(Key::new(kind, namespace, name), value.value())?);
            }
            Ok(Snapshot { revision, objects })
        };
        Ok(read()?)
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Result<Option<Object>, StorageError> {
        let read = || -> Result<Option<Object>, redb::Error> {
            let table = self.db.begin_read()?.open_table(OBJECTS)?;
            let found = table.get(key.parts())?;
            found.map(|value| object(key.clone(), value.value())).transpose()
        };
        Ok(read()?)
    }

    /// Applies a change set as a whole: one new revision for all of it. With `expected`, only if the store is
    /// still at that revision. At most [`MAX_CHANGES`] changes, each document at most [`MAX_DOCUMENT`] bytes and
    /// all together [`MAX_CHANGE_SET`].
    pub fn commit(&self, expected: Option<u64>, changes: &[Change]) -> Result<Committed, CommitError> {
        let encoded = check(changes)?;
        let mut log_bytes = self.log_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = *log_bytes;
        let transaction = self.db.begin_write().map_err(failed)?;
        let mut apply = || -> Result<Result<Committed, CommitError>, redb::Error> {
            let before = number(&transaction.open_table(META)?, "revision")?;
            if let Some(expected) = expected.filter(|expected| *expected != before) {
                return Ok(Err(CommitError::Conflict { expected, actual: before }));
            }
            let revision = before + 1;
            let outcomes = self.write(&transaction, revision, changes, &encoded, &mut bytes)?;
            let changed = outcomes.iter().any(|outcome| *outcome != Outcome::Unchanged);
            Ok(Ok(Committed { revision: if changed { revision } else { before }, outcomes }))
        };
        match apply() {
            Ok(Ok(committed)) if committed.outcomes.iter().any(|outcome| *outcome != Outcome::Unchanged) => {
                transaction.commit().map_err(failed)?;
                *log_bytes = bytes;
                Ok(committed)
            }
            Ok(answer) => {
                transaction.abort().map_err(failed)?;
                answer
            }
            Err(error) => {
                // The first error says more than one of giving up.
                let _ = transaction.abort();
                Err(StorageError(error).into())
            }
        }
    }

    fn write(
        &self,
        transaction: &WriteTransaction,
        revision: u64,
        changes: &[Change],
        encoded: &[Vec<u8>],
        log_bytes: &mut u64,
    ) -> Result<Vec<Outcome>, redb::Error> {
        let mut objects = transaction.open_table(OBJECTS)?;
        let mut log = transaction.open_table(LOG)?;
        let mut outcomes = Vec::with_capacity(changes.len());
        let mut index = 0;
        for (change, bytes) in changes.iter().zip(encoded) {
            let key = change.key();
            let outcome = match change {
                Change::Put(_, document) => {
                    let before = objects.get(key.parts())?.map(|value| parse(value.value().1)).transpose()?;
                    match before {
                        Some(before) if before == *document => Outcome::Unchanged,
                        before => {
                            objects.insert(key.parts(), (revision, bytes.as_slice()))?;
                            if before.is_some() { Outcome::Updated } else { Outcome::Created }
                        }
                    }
                }
                Change::Delete(_) => {
                    if objects.remove(key.parts())?.is_some() {
                        Outcome::Deleted
                    } else {
                        Outcome::Unchanged
                    }
                }
            };
            if outcome != Outcome::Unchanged {
                let document = match change {
                    Change::Put(_, document) => Some(document.clone()),
                    Change::Delete(_) => None,
                };
                let event = Event { revision, key: key.clone(), outcome, document };
                let event = serde_json::to_vec(&event).map_err(|_error| damaged("the event"))?;
                log.insert((revision, index), event.as_slice())?;
                *log_bytes += size(&event);
                index += 1;
            }
            outcomes.push(outcome);
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert("revision", revision)?;
        // Whole change sets leave, the oldest first, and never the latest.
        let before = number(&meta, "compacted")?;
        let mut compacted = before.max(revision.saturating_sub(self.limits.revisions));
        let mut kept = *log_bytes;
        for row in log.range(..(revision, 0))? {
            let (key, event) = row?;
            if key.value().0 > compacted {
                if kept <= self.limits.bytes {
                    break;
                }
                compacted = key.value().0;
            }
            kept -= size(event.value()).min(kept);
        }
        if compacted > before {
            log.retain_in(..(compacted + 1, 0), |_, _| false)?;
            meta.insert("compacted", compacted)?;
        }
        *log_bytes = kept;
        Ok(outcomes)
    }

    /// The changes after revision `after`, oldest first: whole change sets, at most `limit` events and
    /// [`PAGE_BYTES`], unless the first set alone has more.
    pub fn changes_after(&self, after: u64, limit: usize) -> Result<Page, ChangesError> {
        let read = || -> Result<Result<Page, ChangesError>, redb::Error> {
            let transaction = self.db.begin_read()?;
            let meta = transaction.open_table(META)?;
            let (revision, oldest) = (number(&meta, "revision")?, number(&meta, "compacted")?);
            if after > revision {
                return Ok(Err(ChangesError::Future { after, revision }));
            }
            if after < oldest {
                return Ok(Err(ChangesError::Compacted { after, oldest }));
            }
            let mut events: Vec<Event> = Vec::new();
            // Events of whole sets, and the bytes of all.
            let (mut whole, mut bytes) = (0, 0);
            for row in transaction.open_table(LOG)?.range((after + 1, 0)..)? {
                let (key, value) = row?;
                if events.last().is_some_and(|event| event.revision != key.value().0) {
                    whole = events.len();
                }
                bytes += size(value.value());
                if whole > 0 && (events.len() >= limit || bytes > PAGE_BYTES) {
                    events.truncate(whole);
                    return Ok(Ok(Page { events, more: true }));
                }
                events.push(serde_json::from_slice(value.value()).map_err(|_error| damaged("an event"))?);
            }
            Ok(Ok(Page { events, more: false }))
        };
        read().map_err(StorageError)?
    }
}

fn check(changes: &[Change]) -> Result<Vec<Vec<u8>>, CommitError> {
    if changes.len() > MAX_CHANGES {
        return Err(CommitError::TooLarge { what: "the change set".to_owned(), limit: MAX_CHANGES });
    }
    let mut seen = BTreeSet::new();
    let mut encoded = Vec::with_capacity(changes.len());
    let mut together = 0;
    for change in changes {
        if !seen.insert(change.key()) {
            return Err(CommitError::Duplicate(change.key().clone()));
        }
        let bytes = match change {
            Change::Put(_, document) => document.to_string().into_bytes(),
            Change::Delete(_) => Vec::new(),
        };
        if bytes.len() > MAX_DOCUMENT {
            return Err(CommitError::TooLarge { what: change.key().to_string(), limit: MAX_DOCUMENT });
        }
        together += bytes.len();
        if together > MAX_CHANGE_SET {
            return Err(CommitError::TooLarge { what: "the change set".to_owned(), limit: MAX_CHANGE_SET });
        }
        encoded.push(bytes);
    }
    Ok(encoded)
}

fn failed(error: impl Into<redb::Error>) -> StorageError {
    StorageError(error.into())
}

fn number(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, redb::Error> {
    Ok(meta.get(name)?.ok_or_else(|| damaged(name))?.value())
}

fn parse(bytes: &[u8]) -> Result<Value, redb::Error> {
    serde_json::from_slice(bytes).map_err(|_error| damaged("a document"))
}

fn object(key: Key, (revision, bytes): (u64, &[u8])) -> Result<Object, redb::Error> {
    Ok(Object { key, revision, document: parse(bytes)? })
}
