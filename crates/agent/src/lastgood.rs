//! What ran well, on disk: per service the configurations that a proxy of it on this host had wholly in use.
//!
//! With it a proxy serves again after agent and control plane were away, and so does a new instance of a service
//! that ran here before. Holds: a file is whole or not used; the newest [`KEPT`] of a service are kept, and one
//! that is damaged is passed over for the one before; the same configuration is not written twice; a disk that is
//! full costs nothing but the next start without control plane, and is told. Does not: keep identities
//! (`credentials` does), or decide when a configuration is good (`instance` does).
//!
//! # On disk
//! ```text
//! STATE/agent/last-good/NAMESPACE.SERVICE/NUMBER   mode 0600; the highest number is the newest
//!   SHA-256 of the rest (32 bytes) │ DeltaDiscoveryResponse: resources under unscoped names,
//!                                  │ system_version_info = seconds since 1970 at which it was written
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use outrider_xds_types::prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::aside::aside;
use crate::local::seconds;

/// Configurations kept of a service.
pub const KEPT: usize = 3;
/// Bytes of one.
const MAX_BYTES: u64 = 64 << 20;
/// Between two times of writing: changes that come close together are written once. The first is written at once, so that
/// a service that has just begun to serve can do so again.
pub const GATHER: Duration = Duration::from_millis(200);
/// After a failure to write. No file system tells when it has room again.
const AGAIN: Duration = Duration::from_secs(5);

/// A configuration from disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Workload, listeners, routes, clusters and endpoints, under unscoped names.
    pub set: ResourceSet,
    /// When it was written.
    pub written: SystemTime,
}

/// A snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LastGoodError {
    /// Writing or reading the file.
    #[error(transparent)]
    File(#[from] outrider_identity::FileError),
    /// The folder of the service.
    #[error("{}: {source}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what was written.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
}

/// The store of a host.
#[derive(Debug)]
pub struct LastGood {
    folder: PathBuf,
    state: Mutex<State>,
    /// Held by who writes: two at once would take the same number, and the older configuration might win.
    writing: Mutex<()>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    pending: BTreeMap<String, ResourceSet>,
    being_written: BTreeSet<String>,
    /// How many files were.
    written: u64,
    /// By service: what the newest file holds, and when it was written.
    newest: BTreeMap<String, (ResourceSet, SystemTime)>,
    trouble: Option<String>,
}

impl LastGood {
    /// A store below `folder`, which is made when it is first written to.
    pub fn new(folder: PathBuf) -> Arc<Self> {
        Arc::new(Self { folder, state: Mutex::default(), writing: Mutex::default(), wake: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `set` written soon as the last good of `service` (`NS/SERVICE`).
    pub fn keep(&self, service: &str, set: ResourceSet) {
        let mut state = self.lock();
        // What is written just now will be the newest, whatever is before.
        let being_written = state.being_written.contains(service);
        if !being_written && state.newest.get(service).is_some_and(|(newest, _)| *newest == set) {
            state.pending.remove(service);
            return;
        }
        state.pending.insert(service.to_owned(), set);
        drop(state);
        self.wake.notify_one();
    }

    /// When the newest of `service` was written, as far as this process has written or read it.
    pub fn written(&self, service: &str) -> Option<SystemTime> {
        self.lock().newest.get(service).map(|(_, written)| *written)
    }

    /// Why configurations cannot be kept just now, in words.
    pub fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Writes what is to be kept as it comes, but not more often than once in `gather`, see [`GATHER`]. Runs until
    /// dropped; [`Self::flush`] writes the rest.
    pub async fn run(self: Arc<Self>, gather: Duration) {
        loop {
            self.wake.notified().await;
            let this = self.clone();
            if aside(move || this.flush(SystemTime::now())).await == Some(true) {
                tokio::time::sleep(gather).await;
            } else {
                tokio::time::sleep(AGAIN).await;
                self.wake.notify_one();
            }
        }
    }

    /// Writes what is to be kept, now. Returns whether all of it was; what was not stays to be written.
    pub fn flush(&self, now: SystemTime) -> bool {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = {
            let mut state = self.lock();
            let pending = std::mem::take(&mut state.pending);
            state.being_written = pending.keys().cloned().collect();
            pending
        };
        let mut trouble = None;
        for (service, set) in pending {
            // What an earlier agent wrote is not written again.
            if self.written(&service).is_none() {
                let _ = self.load(&service);
            }
            let is_there = self.lock().newest.get(&service).is_some_and(|(newest, _)| *newest == set);
            let written = if is_there { Ok(()) } else { self.write(&service, &set, now) };
            let mut state = self.lock();
            state.being_written.remove(&service);
            match written {
                Ok(()) if is_there => {}
                Ok(()) => {
                    state.written += 1;
                    state.newest.insert(service, (set, now));
                }
                Err(error) => {
                    trouble =
                        Some(format!("the last good configuration of {service} cannot be kept: {error}"));
                    // What came meanwhile is newer.
                    state.pending.entry(service).or_insert(set);
                }
            }
        }
        let mut state = self.lock();
        if let Some(text) = &trouble
            && state.trouble.is_none()
        {
            tracing::warn!("{text}");
        }
        state.trouble = trouble;
        state.trouble.is_none()
    }

    /// The newest whole snapshot of `service`, and what is wrong with those that were passed over.
    pub fn load(&self, service: &str) -> (Option<Snapshot>, Vec<LastGoodError>) {
        let before = self.lock().written;
        let mut passed_over = Vec::new();
        let files = match numbered(&self.folder_of(service)) {
            Ok(files) => files,
            Err(error) => return (None, vec![error]),
        };
        for (_, file) in files.iter().rev() {
            match read(file) {
                Ok(snapshot) => {
                    let newest = (snapshot.set.clone(), snapshot.written);
                    let mut state = self.lock();
                    // What was written since this was looked for is newer.
                    if state.written == before {
                        state.newest.insert(service.to_owned(), newest);
                    }
                    return (Some(snapshot), passed_over);
                }
                Err(error) => {
                    tracing::warn!(%error, service, "a last good configuration is not used");
                    passed_over.push(error);
                }
            }
        }
        (None, passed_over)
    }

    fn folder_of(&self, service: &str) -> PathBuf {
        self.folder.join(service.replace('/', "."))
    }

    fn write(&self, service: &str, set: &ResourceSet, now: SystemTime) -> Result<(), LastGoodError> {
        let folder = self.folder_of(service);
        let before = numbered(&folder)?;
        let all = DeltaDiscoveryResponse {
            system_version_info: seconds(now).to_string(),
            resources: set.iter().map(|resource| resource.to_wire()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        let body = all.encode_to_vec();
        let mut content = Sha256::digest(&body).to_vec();
        content.extend(body);
        let number = before.last().map_or(1, |(number, _)| number.saturating_add(1));
        let path = folder.join(format!("{number:010}"));
        outrider_identity::write_private_within(&path, &content, MAX_BYTES)?;
        // A damaged one takes no place of a whole one for long: it is the oldest soon.
        for (_, old) in before.iter().rev().skip(KEPT - 1) {
            let _ = std::fs::remove_file(old);
        }
        Ok(())
    }
}

/// The files of a service, oldest first.
fn numbered(folder: &Path) -> Result<Vec<(u64, PathBuf)>, LastGoodError> {
    let failed = |source| LastGoodError::Folder { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if let Some(number) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<Snapshot, LastGoodError> {
    let damaged = || LastGoodError::Damaged(file.to_owned());
    let content = outrider_identity::read_optional_within(file, MAX_BYTES)?.ok_or_else(damaged)?;
    let (sum, body) = content.split_at_checked(32).ok_or_else(damaged)?;
    if Sha256::digest(body)[..] != *sum {
        return Err(damaged());
    }
    let all = DeltaDiscoveryResponse::decode(body).map_err(|_| damaged())?;
    let written = all.system_version_info.parse().map_err(|_| damaged())?;
    let written = UNIX_EPOCH.checked_add(Duration::from_secs(written)).ok_or_else(damaged)?;
    let mut set = ResourceSet::new();
    for resource in all.resources {
        let any = resource.resource.ok_or_else(damaged)?;
        set.insert(Resource::new(any.type_url, resource.name, resource.version, any.value));
    }
    Ok(Snapshot { set, written })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use outrider_xds_types::type_url::{CLUSTER, WORKLOAD};

    use super::*;

    fn set(version: &str) -> ResourceSet {
        let mut set = ResourceSet::new();
        set.insert(Resource::new(WORKLOAD, "shop/a", version, vec![1; 100]));
        set.insert(Resource::new(CLUSTER, "inbound/http", version, version.as_bytes().to_vec()));
        set
    }

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_whole_one_is_used_and_damaged_ones_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = LastGood::new(dir.path().join("last-good"));
        assert_eq!(store.load("shop/a").0, None);
        for second in 1..=5 {
            store.keep("shop/a", set(&second.to_string()));
            assert!(store.flush(at(second)));
        }
        store.keep("shop/a", set("5"));
        assert!(store.flush(at(6)), "the same again is not written");
        assert_eq!(store.written("shop/a"), Some(at(5)));
        let folder = dir.path().join("last-good/shop.a");
        assert_eq!(names(&folder), ["0000000003", "0000000004", "0000000005"]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("0000000005"))), (0o700, 0o600));

        // By a new process; of another service there is nothing.
        let again = LastGood::new(dir.path().join("last-good"));
        assert_eq!(again.written("shop/a"), None);
        let loaded = again.load("shop/a").0.unwrap();
        assert_eq!(loaded, Snapshot { set: set("5"), written: at(5) });
        assert_eq!(again.load("shop/b").0, None);

        let newest = folder.join("0000000005");
        let whole = std::fs::read(&newest).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        again.keep("shop/a", set("5"));
        assert!(LastGood::new(dir.path().join("last-good")).flush(at(6)) && again.flush(at(6)));
        let fresh = LastGood::new(dir.path().join("last-good"));
        fresh.keep("shop/a", set("5"));
        assert!(fresh.flush(at(7)));
        assert_eq!(names(&folder).len(), 3, "what is there is not written again");
        assert_eq!(fresh.written("shop/a"), Some(at(5)));
        let damages = [
            Vec::new(),
            whole[..10].to_vec(),
            whole[..32].to_vec(),
            whole[..whole.len() - 1].to_vec(),
            flipped,
        ];
        for damage in damages {
            std::fs::write(&newest, &damage).unwrap();
            let (loaded, passed_over) = again.load("shop/a");
            assert_eq!(loaded.unwrap(), Snapshot { set: set("4"), written: at(4) });
            assert!(matches!(&passed_over[..], [LastGoodError::Damaged(path)] if *path == newest));
        }
        std::fs::write(folder.join("0000000004"), b"").unwrap();
        assert_eq!(again.load("shop/a").0.unwrap().written, at(3));
        std::fs::write(folder.join("0000000003"), b"").unwrap();
        let (none, passed_over) = again.load("shop/a");
        assert_eq!((none, passed_over.len()), (None, KEPT));
        // What is written next is the newest whatever is wrong with the others.
        again.keep("shop/a", set("7"));
        assert!(again.flush(at(7)));
        assert_eq!(again.load("shop/a").0.unwrap().set, set("7"));
    }

    #[test]
    fn what_was_kept_is_on_disk_when_a_flush_returns_also_beside_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = LastGood::new(dir.path().join("last-good"));
        for second in 1..=100 {
            store.keep("shop/a", set(&second.to_string()));
            std::thread::scope(|scope| {
                scope.spawn(|| store.flush(at(second)));
                assert!(store.flush(at(second)));
                let fresh = LastGood::new(dir.path().join("last-good"));
                assert_eq!(fresh.load("shop/a").0.unwrap().set, set(&second.to_string()));
            });
        }
    }

    #[test]
    fn what_is_good_again_while_something_else_is_written_is_the_newest_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = LastGood::new(dir.path().join("last-good"));
        store.keep("shop/a", set("1"));
        assert!(store.flush(at(1)));
        // As in the middle of a flush.
        store.lock().being_written.insert("shop/a".to_owned());
        store.keep("shop/a", set("1"));
        store.write("shop/a", &set("2"), at(2)).unwrap();
        let mut state = store.lock();
        state.being_written.clear();
        state.newest.insert("shop/a".to_owned(), (set("2"), at(2)));
        drop(state);
        assert!(store.flush(at(3)));
        assert_eq!(store.load("shop/a").0.unwrap(), Snapshot { set: set("1"), written: at(3) });
    }

    #[tokio::test]
    async fn the_first_is_written_at_once_and_what_follows_soon_is_gathered() {
        let dir = tempfile::tempdir().unwrap();
        let store = LastGood::new(dir.path().join("last-good"));
        let writer = tokio::spawn(store.clone().run(Duration::from_secs(86_400)));
        let folder = dir.path().join("last-good/shop.a");
        store.keep("shop/a", set("1"));
        while store.written("shop/a").is_none() {
            tokio::task::yield_now().await;
        }
        for version in ["2", "3"] {
            store.keep("shop/a", set(version));
            tokio::task::yield_now().await;
        }
        assert_eq!(names(&folder), ["0000000001"]);
        assert!(store.flush(at(9)));
        assert_eq!(names(&folder), ["0000000001", "0000000002"]);
        assert_eq!(store.load("shop/a").0.unwrap().set, set("3"));
        writer.abort();
    }

    #[test]
    fn what_cannot_be_written_is_told_and_stays_to_be_written() {
        let dir = tempfile::tempdir().unwrap();
        // A file where the folder should be: it fails for root as well.
        let folder = dir.path().join("last-good");
        std::fs::write(&folder, "").unwrap();
        let store = LastGood::new(folder.clone());
        store.keep("shop/a", set("1"));
        assert!(!store.flush(at(1)));
        let trouble = store.trouble().unwrap();
        assert!(trouble.starts_with("the last good configuration of shop/a cannot be kept: "), "{trouble}");
        assert_eq!(store.written("shop/a"), None);
        std::fs::remove_file(&folder).unwrap();
        assert!(store.flush(at(2)));
        assert_eq!((store.trouble(), store.written("shop/a")), (None, Some(at(2))));
        assert_eq!(LastGood::new(folder).load("shop/a").0.unwrap().set, set("1"));
    }
}
