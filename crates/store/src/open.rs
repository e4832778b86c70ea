//! Opening and first creation.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError as RedbStorage,
    TableDefinition, TableHandle,
};

pub(crate) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
pub(crate) const OBJECTS: TableDefinition<'_, (&str, &str, &str), (u64, &[u8])> =
    TableDefinition::new("object");
pub(crate) const LOG: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("log");
pub(crate) const TOKENS: TableDefinition<'_, &str, (&[u8; 32], u64, &str)> = TableDefinition::new("token");
pub(crate) const SCOPES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("scope");
pub(crate) const NODES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("node");
pub(crate) const HOSTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("host");

const SCHEMA: u64 = 1;
/// The whole database of a few thousand services fits; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 32 << 20;

/// An open database. Shared by reference between threads; writers wait for each other.
pub struct Store {
    pub(crate) db: Database,
    pub(crate) limits: LogLimits,
    /// Bytes of events in the log. Locked by whoever commits, until it has.
    pub(crate) log_bytes: Mutex<u64>,
}

/// How much of the past is kept. Whole change sets leave, the oldest first; the latest one always stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Revisions, at least 1.
    pub revisions: u64,
    /// Bytes of their events as JSON.
    pub bytes: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { revisions: crate::LOG_REVISIONS, bytes: crate::LOG_BYTES }
    }
}

/// The database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("another outrider server uses {}", .0.display())]
    InUse(PathBuf),
    /// It is damaged, or not a database.
    #[error("{} is damaged or not a database of this program ({cause}): restore it from a backup, or move it away to start empty", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        cause: String,
    },
    /// It was written by a newer program.
    #[error("{} has format {found}, this program reads up to {supported}: use the newer program", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// Ours.
        supported: u64,
    },
    /// The file could not be read or made.
    #[error("cannot open {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Store {
    /// Opens the database at `path`, or makes an empty one (mode 0600, its folder 0700).
    ///
    /// Reads the whole file once and checks it, so that damage is found now and not in the middle of work.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with_log(path, LogLimits::default())
    }

    /// As [`Store::open`], with another length of the log.
    pub fn open_with_log(path: &Path, limits: LogLimits) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        forget_unfinished(path);
        if !path.try_exists().map_err(io)? {
            create(path)?;
        }
        let db = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .open(path)
            .map_err(|error| open_error(path, error))?;
        let schema = read_schema(&db).map_err(|error| corrupt(path, &error))?;
        match schema {
            Some(SCHEMA) => {
                complete(&db).map_err(|error| corrupt(path, &error))?;
                let bytes = log_bytes(&db).map_err(|error| corrupt(path, &error))?;
                let limits = LogLimits { revisions: limits.revisions.max(1), ..limits };
                Ok(Self { db, limits, log_bytes: Mutex::new(bytes) })
            }
            Some(found) if found > SCHEMA => {
                Err(OpenError::Newer { path: path.to_owned(), found, supported: SCHEMA })
            }
            _ => {
                Err(OpenError::Corrupt { path: path.to_owned(), cause: "it has no format number".to_owned() })
            }
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store(…)")
    }
}

fn read_schema(db: &Database) -> Result<Option<u64>, redb::Error> {
    let transaction = db.begin_read()?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(meta.get("schema")?.map(|value| value.value()))
}

/// Makes the tables that databases of before did not have. Their hosts were admitted without a record, so
/// each gets an empty one.
fn complete(db: &Database) -> Result<(), redb::Error> {
    if db.begin_read()?.list_tables()?.any(|table| table.name() == NODES.name()) {
        return Ok(());
    }
    let transaction = db.begin_write()?;
    {
        transaction.open_table(SCOPES)?;
        let mut nodes = transaction.open_table(NODES)?;
        for row in transaction.open_table(HOSTS)?.iter()? {
            nodes.insert(row?.0.value(), b"null".as_slice())?;
        }
    }
    Ok(transaction.commit()?)
}

/// Counted anew at each start, so that no number on disk can be wrong.
fn log_bytes(db: &Database) -> Result<u64, redb::Error> {
    let mut bytes = 0;
    for row in db.begin_read()?.open_table(LOG)?.iter()? {
        bytes += size(row?.1.value());
    }
    Ok(bytes)
}

/// What an event counts in the log.
pub(crate) fn size(event: &[u8]) -> u64 {
    u64::try_from(event.len()).unwrap_or(u64::MAX)
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path.to_owned()),
        DatabaseError::Storage(RedbStorage::Io(source)) if source.kind() != ErrorKind::InvalidData => {
            OpenError::Io { path: path.to_owned(), source }
        }
        other => OpenError::Corrupt { path: path.to_owned(), cause: other.to_string() },
    }
}

fn corrupt(path: &Path, error: &redb::Error) -> OpenError {
    OpenError::Corrupt { path: path.to_owned(), cause: error.to_string() }
}

/// Makes a complete empty database beside `path` and links it there, so that a crash never leaves half of
/// one under the real name. If another process was faster, its database is used.
fn create(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
    let temporary = unfinished(path, std::process::id());
    let _ = fs::remove_file(&temporary);
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary);
    drop(file.map_err(io)?);
    let made = initialise(&temporary).and_then(|()| match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(io(error)),
        _ => Ok(()),
    });
    let _ = fs::remove_file(&temporary);
    made?;
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

/// Where process `pid` makes a database that will be `path`.
fn unfinished(path: &Path, pid: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{pid}.new"));
    name.into()
}

/// Removes what processes left that were ended while they made a database.
fn forget_unfinished(path: &Path) {
    let Some(folder) = path.parent() else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_suffix(".new")?.rsplit_once('.')?.1.parse().ok());
        let Some(pid) = pid.filter(|pid| entry.path() == unfinished(path, *pid)) else { continue };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            // It is in nobody's way if it stays.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn initialise(path: &Path) -> Result<(), OpenError> {
    let db = Builder::new().create(path).map_err(|error| open_error(path, error))?;
    let fill = || -> Result<(), redb::Error> {
        let transaction = db.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("schema", SCHEMA)?;
            meta.insert("revision", 0)?;
            meta.insert("compacted", 0)?;
            transaction.open_table(OBJECTS)?;
            transaction.open_table(LOG)?;
            transaction.open_table(TOKENS)?;
            transaction.open_table(SCOPES)?;
            transaction.open_table(NODES)?;
            transaction.open_table(HOSTS)?;
        }
        transaction.commit()?;
        Ok(())
    };
    fill().map_err(|error| corrupt(path, &error))
}
