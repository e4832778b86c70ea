//! Join tokens and known hosts: state that is not declared and has no revisions.

use redb::{ReadableDatabase, ReadableTable};
use serde_json::Value;

use crate::open::{HOSTS, Store, TOKENS};
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
                tokens.retain(|_, (_, expires, _)| expires.saturating_add(REMEMBER_SECONDS) > now)?;
                let mut count = 0;
                for row in tokens.iter()? {
                    row?;
                    count += 1;
                }
                if count < MAX_TOKENS {
                    tokens.insert(token.id.as_str(), (&token.hash, token.expires, ""))?;
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
    /// `matches` compares the stored hash with what was presented.
    pub fn use_token(
        &self,
        id: &str,
        matches: impl FnOnce(&[u8; 32]) -> bool,
        by: &str,
        now: u64,
    ) -> Result<(), UseTokenError> {
        let write = || -> Result<Result<(), UseTokenError>, redb::Error> {
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
                        if verdict.is_ok() {
                            tokens.insert(id, (&hash, expires, by))?;
                        }
                        verdict
                    }
                }
            };
            match answer {
                Ok(()) => transaction.commit()?,
                Err(_) => transaction.abort()?,
            }
            Ok(answer)
        };
        write().map_err(StorageError)?
    }

    /// Remembers what is known of hosts; `None` forgets one. All in one transaction.
    pub fn put_hosts(&self, hosts: &[(String, Option<Value>)]) -> Result<(), StorageError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.db.begin_write()?;
            {
                let mut table = transaction.open_table(HOSTS)?;
                for (name, record) in hosts {
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
        };
        Ok(write()?)
    }

    /// Every remembered host, by name.
    pub fn hosts(&self) -> Result<Vec<(String, Value)>, StorageError> {
        let read = || -> Result<Vec<(String, Value)>, redb::Error> {
            let mut hosts = Vec::new();
            for row in self.db.begin_read()?.open_table(HOSTS)?.iter()? {
                let (name, record) = row?;
                let record = serde_json::from_slice(record.value()).map_err(|_error| damaged("a host"))?;
                hosts.push((name.value().to_owned(), record));
            }
            Ok(hosts)
        };
        Ok(read()?)
    }
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
