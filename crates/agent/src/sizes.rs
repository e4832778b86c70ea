//! What the proxies of each service were last given on this host, so that the next one begins with it.
//!
//! ```text
//! STATE/agent/sizes.json   mode 0600: {"NS/SERVICE ENGINE": bytes of memory}
//! ```
//! Holds: a file is the old one or the new one; one that cannot be read or written costs nothing but a proxy that
//! begins small and grows. Does not: decide sizes (`supervise::size` does).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::aside::in_place;

/// Services that are remembered; those in excess begin small.
const MAX_SERVICES: usize = 4096;
/// Bytes of the file.
const MAX_BYTES: u64 = 4 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Sizes {
    file: PathBuf,
    known: Mutex<BTreeMap<String, u64>>,
}

fn key(service: &str, engine: &str) -> String {
    format!("{service} {engine}")
}

impl Sizes {
    /// Goes on with what is in `file`.
    pub(crate) fn open(file: PathBuf) -> Self {
        let content = outrider_identity::read_optional_within(&file, MAX_BYTES).ok().flatten();
        let known = content.and_then(|content| serde_json::from_slice(&content).ok()).unwrap_or_default();
        Self { file, known: Mutex::new(known) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of memory that a proxy of `service` (`NS/SERVICE`) was last given; 0 if none is known.
    pub(crate) fn of(&self, service: &str, engine: &str) -> u64 {
        self.lock().get(&key(service, engine)).copied().unwrap_or_default()
    }

    /// A proxy of `service` has so many bytes now.
    pub(crate) fn given(&self, service: &str, engine: &str, bytes: u64) {
        let mut known = self.lock();
        let key = key(service, engine);
        if known.len() >= MAX_SERVICES && !known.contains_key(&key) {
            return;
        }
        if known.insert(key, bytes) != Some(bytes)
            && let Err(error) = serde_json::to_vec(&*known)
                .map_err(io::Error::from)
                .and_then(|content| in_place(|| crate::instance::saved::replace(&self.file, &content)))
        {
            tracing::warn!(%error, "the sizes of proxies cannot be written; new ones begin small");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_there_again_and_a_damaged_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sizes.json");
        let sizes = Sizes::open(file.clone());
        assert_eq!(sizes.of("shop/a", "native"), 0);
        sizes.given("shop/a", "native", 7);
        sizes.given("shop/a", "envoy", 9);
        sizes.given("shop/a", "native", 8);
        let again = Sizes::open(file.clone());
        assert_eq!(
            [again.of("shop/a", "native"), again.of("shop/a", "envoy"), again.of("shop/b", "native")],
            [8, 9, 0]
        );
        for service in 0..2 * MAX_SERVICES {
            again.lock().insert(key(&service.to_string(), "native"), 1);
        }
        again.given("shop/one-too-many", "native", 5);
        assert_eq!(again.of("shop/one-too-many", "native"), 0);
        again.given("shop/a", "native", 5);
        assert_eq!(again.of("shop/a", "native"), 5, "one that is known is kept up to date");
        std::fs::write(&file, "{").unwrap();
        assert_eq!(Sizes::open(file.clone()).of("shop/a", "native"), 0);
        // Where it cannot be written it is known all the same.
        let nowhere = Sizes::open(dir.path().join("none/sizes.json"));
        nowhere.given("shop/a", "native", 6);
        assert_eq!(nowhere.of("shop/a", "native"), 6);
    }
}
