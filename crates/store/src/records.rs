//! Join tokens, admitted nodes and known hosts: state that is not declared and has no revisions.

use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;

use crate::open::{HOSTS, NODES, SCOPES, Store, TOKENS};
use crate::{StorageError, damaged};

/// Tokens kept at once, used and expired ones included.
pub const MAX_TOKENS: usize = 10_000;
/// How long a token is remembered after its expiry, so that a late user is told "expired" or "used".
const REMEMBER_SECONDS: u64 = 24 * 3600;

/// A join token as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Public part.
    pub id: String,
    /// SHA-256 of the secret part.
    pub hash: [u8; 32],
    /// Unix seconds.
    pub expires: u64,
    /// What whoever uses it may have; `None` if everything.
    pub scope: Option<Value>,
}

/// A token was not stored.
#[derive(Debug, thiserror::Error)]
pub enum NewTokenError {
    /// Too many.
    #[error("there are {MAX_TOKENS} join tokens already: wait until some have expired")]
    TooMany,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A token was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum UseTokenError {
    /// Never made here, forgotten, or the secret does not match.
    #[error("the join token is not known here")]
    Unknown,
    /// Too late.
    #[error("the join token has expired")]
    Expired,
    /// A second time.
    #[error("the join token was already used by node {by}")]
    Used {
        /// Who was first.
        by: String,
    },
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Store {
    /// Stores a token, and forgets those that expired more than a day before `now` (Unix seconds).
    pub fn put_token(&self, token: &Token, now: u64) -> Result<(), NewTokenError> {
        let write = || -> Result<bool, redb::Error> {
            let transaction = self.db.begin_write()?;
            let fits = {
                let mut tokens = transaction.open_table(TOKENS)?;
                let mut scopes = transaction.open_table(SCOPES)?;
                tokens.retain(|_, (_, expires, _)| expires.saturating_add(REMEMBER_SECONDS) > now)?;
                // Not for a token that cannot be read: without its scope it would be good for everything.
                scopes.retain(|id, _| !matches!(tokens.get(id), Ok(None)))?;
                let mut count = 0;
                for row in tokens.iter()? {
                    row?;
                    count += 1;
                }
                if count < MAX_TOKENS {
                    tokens.insert(token.id.as_str(), (&token.hash, token.expires, ""))?;
                    if let Some(scope) = &token.scope {
                        scopes.insert(token.id.as_str(), scope.to_string().as_bytes())?;
                    }
                }
                count < MAX_TOKENS
            };
            transaction.commit()?;
            Ok(fits)
        };
        if write().map_err(StorageError)? { Ok(()) } else { Err(NewTokenError::TooMany) }
    }

    /// Whether [`Store::use_token`] would accept a token now. Reads only, so that those without one make no
    /// writer wait.
    pub fn check_token(
        &self,
        id: &str,
        matches: impl FnOnce(&[u8; 32]) -> bool,
        now: u64,
    ) -> Result<(), UseTokenError> {
        let read = || -> Result<Result<(), UseTokenError>, redb::Error> {
            let tokens = self.db.begin_read()?.open_table(TOKENS)?;
            Ok(match tokens.get(id)? {
                None => Err(UseTokenError::Unknown),
                Some(row) => {
                    let (hash, expires, used) = row.value();
                    verdict(matches(hash), expires, used, now)
                }
            })
        };
        read().map_err(StorageError)?
    }

    /// Marks a token as used by node `by` (not empty), once and for ever; when this returns `Ok`, that is on disk.
    /// `matches` compares the stored hash with what was presented. Gives the token's scope.
    pub fn use_token(
        &self,
        id: &str,
        matches: impl FnOnce(&[u8; 32]) -> bool,
        by: &str,
        now: u64,
    ) -> Result<Option<Value>, UseTokenError> {
        let write = || -> Result<Result<Option<Value>, UseTokenError>, redb::Error> {
            let transaction = self.db.begin_write()?;
            let answer = {
                let mut tokens = transaction.open_table(TOKENS)?;
                let found = tokens.get(id)?.map(|row| {
                    let (hash, expires, used) = row.value();
                    (*hash, expires, used.to_owned())
                });
                match found {
                    None => Err(UseTokenError::Unknown),
                    Some((hash, expires, used)) => {
                        let verdict = verdict(matches(&hash), expires, &used, now);
                        match verdict {
                            Ok(()) => {
                                tokens.insert(id, (&hash, expires, by))?;
                                let scope = transaction.open_table(SCOPES)?;
                                let scope = scope.get(id)?;
                                Ok(scope.map(|scope| parse(scope.value(), "a token's scope")).transpose()?)
                            }
                            Err(error) => Err(error),
                        }
                    }
                }
            };
            match answer {
                Ok(_) => transaction.commit()?,
                Err(_) => transaction.abort()?,
            }
            Ok(answer)
        };
        write().map_err(StorageError)?
    }

    /// Remembers the admissions of nodes; `None` forgets one. All in one transaction, on disk when this returns.
    pub fn put_nodes(&self, nodes: &[(String, Option<Value>)]) -> Result<(), StorageError> {
        Ok(self.put_records(NODES, nodes)?)
    }

    /// Every admitted node, by name.
    pub fn nodes(&self) -> Result<Vec<(String, Value)>, StorageError> {
        Ok(self.records(NODES, "a node")?)
    }

    /// Remembers what is known of hosts; `None` forgets one. All in one transaction.
    pub fn put_hosts(&self, hosts: &[(String, Option<Value>)]) -> Result<(), StorageError> {
        Ok(self.put_records(HOSTS, hosts)?)
    }

    /// Every remembered host, by name.
    pub fn hosts(&self) -> Result<Vec<(String, Value)>, StorageError> {
        Ok(self.records(HOSTS, "a host")?)
    }

    fn put_records(&self, table: Records, records: &[(String, Option<Value>)]) -> Result<(), redb::Error> {
        let transaction = self.db.begin_write()?;
        {
            let mut table = transaction.open_table(table)?;
            for (name, record) in records {
                match record {
                    Some(record) => {
                        table.insert(name.as_str(), record.to_string().as_bytes())?;
                    }
                    None => {
                        table.remove(name.as_str())?;
                    }
                }
            }
        }
        Ok(transaction.commit()?)
    }

    fn records(&self, table: Records, what: &str) -> Result<Vec<(String, Value)>, redb::Error> {
        let mut records = Vec::new();
        for row in self.db.begin_read()?.open_table(table)?.iter()? {
            let (name, record) = row?;
            records.push((name.value().to_owned(), parse(record.value(), what)?));
        }
        Ok(records)
    }
}

/// JSON by name.
type Records = TableDefinition<'static, &'static str, &'static [u8]>;

fn parse(record: &[u8], what: &str) -> Result<Value, redb::Error> {
    serde_json::from_slice(record).map_err(|_error| damaged(what))
}

fn verdict(matches: bool, expires: u64, used: &str, now: u64) -> Result<(), UseTokenError> {
    if !matches {
        Err(UseTokenError::Unknown)
    } else if !used.is_empty() {
        Err(UseTokenError::Used { by: used.to_owned() })
    } else if expires <= now {
        Err(UseTokenError::Expired)
    } else {
        Ok(())
    }
}
