//! What the control plane remembers: declared objects with revisions and a log of changes, join tokens, and
//! the nodes it has admitted and seen. One embedded database (redb) in one file.
//!
//! Holds: a change set is applied as a whole or not at all and raises the one global revision by one; what a
//! method has returned is on disk, whatever happens to the process or the machine after; one process at a
//! time has the file open. Does not: know what documents mean, keep a clock, spawn or wait. Calls block for
//! as long as the disk takes, so asynchronous callers run them where blocking is allowed; all of them take
//! plain values, so that a store on several machines can stand behind the same calls.
//!
//! # Format
//! ```text
//! meta    name                    → number      "schema", "revision", "compacted"
//! object  (kind, namespace, name) → (revision of last change, JSON)
//! log     (revision, index)       → JSON of the event; the last LOG_REVISIONS revisions, at most LOG_BYTES
//! token   id                      → (SHA-256 of the secret, expiry in Unix seconds, used by; empty if unused)
//! scope   id of a token           → JSON of what its user may have
//! node    name                    → JSON of the admission; `null` for a host of before there were any
//! host    name                    → JSON
//! ```

mod objects;
mod open;
mod records;

pub use objects::{
    Change, ChangesError, CommitError, Committed, Event, Key, MAX_CHANGE_SET, MAX_CHANGES, MAX_DOCUMENT,
    Object, Outcome, PAGE_BYTES, Page, Snapshot,
};
pub use open::{LogLimits, OpenError, Store};
pub use records::{MAX_TOKENS, NewTokenError, Token, UseTokenError};

/// Revisions the log keeps.
pub const LOG_REVISIONS: u64 = 10_000;
/// Bytes of events the log keeps. The latest change set is kept whatever its size.
pub const LOG_BYTES: u64 = 64 << 20;

/// The database failed: the disk is full, unreadable or damaged. Nothing of the call was applied.
#[derive(Debug, thiserror::Error)]
#[error("the database failed: {0}")]
pub struct StorageError(#[from] pub(crate) redb::Error);

/// A stored value has another shape than what this program writes.
pub(crate) fn damaged(what: &str) -> redb::Error {
    redb::Error::Corrupted(format!("{what} is not readable"))
}
