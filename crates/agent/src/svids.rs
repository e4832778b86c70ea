//! The certificates of the services that run here: who wants one, and which is due next.
//!
//! Holds: one certificate per service, whatever the number of its instances; it is due at about half of its life;
//! a failure or a certificate that comes late in its life is no reason to ask in a circle. Does not: ask (`link`
//! does).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use outrider_identity::{CertificateDer, PrivateKey};
use tokio::sync::watch;

use crate::credentials::Credential;
use crate::random;

/// Certificates of services, kept fresh by the link while somebody wants them.
#[derive(Debug, Default)]
pub struct Svids {
    wanted: Mutex<BTreeMap<String, Svid>>,
    /// The one in force; empty before there is one.
    bundle: Mutex<Vec<CertificateDer<'static>>>,
    pub(crate) changed: tokio::sync::Notify,
}

#[derive(Debug)]
struct Svid {
    holders: usize,
    jitter: f64,
    not_before: Option<SystemTime>,
    /// After a failure: not before this.
    retry_at: SystemTime,
    current: watch::Sender<Option<Arc<Credential>>>,
}

impl Svids {
    /// Wants the credential of a service by its SPIFFE ID. What is on disk in `folder` is used meanwhile.
    pub fn want(&self, folder: &Path, id: &str) -> watch::Receiver<Option<Arc<Credential>>> {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let svid = wanted.entry(id.to_owned()).or_insert_with(|| {
            let kept = Credential::load(&svid_file(folder, id)).ok().flatten().map(Arc::new);
            let kept = kept.filter(|c| c.info.id.as_str() == id && c.info.is_valid_at(SystemTime::now()));
            // It may have changed since this was written.
            let bundle = self.bundle.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let kept = kept.map(|kept| with_bundle(&kept, &bundle).unwrap_or(kept));
            Svid {
                holders: 0,
                jitter: random::fraction(),
                not_before: None,
                retry_at: SystemTime::UNIX_EPOCH,
                current: watch::channel(kept).0,
            }
        });
        svid.holders += 1;
        self.changed.notify_one();
        svid.current.subscribe()
    }

    /// Ends one [`Self::want`].
    pub fn release(&self, id: &str) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(svid) = wanted.get_mut(id) {
            svid.holders -= 1;
            if svid.holders == 0 {
                wanted.remove(id);
            }
        }
    }

    /// The one that is due first, and when.
    pub(crate) fn next_due(&self) -> Option<(String, SystemTime)> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let due = |svid: &Svid| {
            let current = svid.current.borrow();
            let renew = current.as_ref().map_or(SystemTime::UNIX_EPOCH, |c| c.renew_at(svid.jitter));
            renew.max(svid.retry_at)
        };
        wanted.iter().map(|(id, svid)| (id.clone(), due(svid))).min_by_key(|(_, at)| *at)
    }

    pub(crate) fn set(&self, id: &str, outcome: Result<Credential, SystemTime>) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(svid) = wanted.get_mut(id) else { return };
        match outcome {
            Ok(credential) => {
                svid.retry_at = not_again_before(&credential, SystemTime::now());
                svid.not_before = Some(credential.info.not_before);
                svid.jitter = random::fraction();
                svid.current.send_replace(Some(Arc::new(credential)));
            }
            Err(retry_at) => svid.retry_at = retry_at,
        }
    }

    /// A bundle that came by itself replaces the one the certificates came with, or will be read with.
    pub(crate) fn set_bundle(&self, bundle: &[CertificateDer<'static>]) {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        for svid in wanted.values() {
            let current = svid.current.borrow().clone();
            if let Some(renewed) = current.and_then(|current| with_bundle(&current, bundle)) {
                svid.current.send_replace(Some(renewed));
            }
        }
        *self.bundle.lock().unwrap_or_else(PoisonError::into_inner) = bundle.to_vec();
    }
}

/// A certificate that is past its half when it comes (clocks differ) must not be asked for in a circle: the next
/// one follows after a twentieth of what is left of it, at least a second.
pub(crate) fn not_again_before(credential: &Credential, now: SystemTime) -> SystemTime {
    let left = credential.info.not_after.duration_since(now).unwrap_or_default();
    now + (left / 20).max(Duration::from_secs(1))
}

/// The same credential with another bundle; `None` if there is nothing to change.
fn with_bundle(current: &Credential, bundle: &[CertificateDer<'static>]) -> Option<Arc<Credential>> {
    if bundle.is_empty() || current.bundle == bundle {
        return None;
    }
    let key = PrivateKey::from_pem(&current.key.to_pem()).ok()?;
    let (chain, info) = (current.chain.clone(), current.info.clone());
    Some(Arc::new(Credential { key, chain, bundle: bundle.to_vec(), info }))
}

/// The file of a service's credential.
pub(crate) fn svid_file(folder: &Path, id: &str) -> PathBuf {
    let path = id.split_once("/ns/").map_or(id, |(_, path)| path).replacen("/svc/", ".", 1);
    folder.join(format!("{}.json", path.replace('/', "_")))
}

/// The file of the agent's own credential.
pub fn node_file(folder: &Path) -> PathBuf {
    folder.join("node.json")
}

#[cfg(test)]
mod tests {
    use outrider_identity::{Authority, SpiffeId};

    use super::*;

    #[test]
    fn a_credential_from_disk_gets_the_bundle_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let authority = |name: &str| {
            Authority::open_or_create(&dir.path().join(name), "outrider.internal", SystemTime::now()).unwrap()
        };
        let (old, new) = (authority("old"), authority("new"));
        let id = "spiffe://outrider.internal/ns/shop/svc/a";
        let key = PrivateKey::generate().unwrap();
        let csr = key.signing_request().unwrap();
        let chain = old.sign_request(&csr, &SpiffeId::parse(id).unwrap(), SystemTime::now()).unwrap();
        let der = |chain: Vec<CertificateDer<'static>>| chain.into_iter().map(|c| c.to_vec()).collect();
        let credential = Credential::new(key, der(chain), der(old.bundle())).unwrap();
        credential.save(&svid_file(dir.path(), id)).unwrap();

        let svids = Svids::default();
        let bundle =
            |svid: &watch::Receiver<Option<Arc<Credential>>>| svid.borrow().as_ref().unwrap().bundle.clone();
        assert_eq!(bundle(&svids.want(dir.path(), id)), old.bundle(), "as it was kept");
        svids.release(id);
        svids.set_bundle(&new.bundle());
        let again = svids.want(dir.path(), id);
        assert_eq!(bundle(&again), new.bundle());
        svids.set_bundle(&old.bundle());
        assert_eq!(bundle(&again), old.bundle(), "also while it is in use");
    }

    #[test]
    fn files_of_services_do_not_collide_with_the_agents_own() {
        let folder = Path::new("/x");
        assert_eq!(svid_file(folder, "spiffe://td/ns/shop/svc/node"), Path::new("/x/shop.node.json"));
        assert_eq!(node_file(folder), Path::new("/x/node.json"));
    }
}
