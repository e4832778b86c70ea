//! The certificates of the services that run here: who wants one, and which is due next.
//!
//! Holds: one certificate per service, whatever the number of its instances; it is due at about half of its life;
//! a failure or a certificate that comes late in its life is no reason to ask in a circle; one that is not good because
//! the clock was set, either way, is due at once. Does not: ask (`link` does).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use outrider_identity::{CertificateDer, CertificateInfo, PrivateKey};
use tokio::sync::watch;

use crate::clock::span;
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
    schedule: Schedule,
    current: watch::Sender<Option<Arc<Credential>>>,
}

/// When a certificate is asked for next. What it says of itself is in the time of day, which may be set at any moment;
/// pauses are in time that passes.
#[derive(Debug)]
pub(crate) struct Schedule {
    jitter: f64,
    /// It was refused: not before this.
    refused: Option<Instant>,
    /// It came late in its life: not before this, as long as it is good.
    late: Option<Instant>,
    /// It was not good when it came, because the clocks of this host and of the control plane differ: not before this.
    useless: Option<Instant>,
}

impl Schedule {
    /// Of something that was not asked for yet.
    pub(crate) fn new() -> Self {
        Self { jitter: random::fraction(), refused: None, late: None, useless: None }
    }

    /// It came. One that is past its half then must not be asked for in a circle: the next one follows after a twentieth
    /// of what is left of it, at least a second.
    pub(crate) fn came(&mut self, info: &CertificateInfo, now: Moment) {
        let left = info.not_after.duration_since(now.wall).unwrap_or_default();
        *self = Self {
            late: Some(now.passing + (left / 20).max(Duration::from_secs(1))),
            useless: (!info.is_valid_at(now.wall)).then(|| now.passing + USELESS),
            ..Self::new()
        };
    }

    /// It was refused, and is asked for again after this pause.
    pub(crate) fn refused(&mut self, pause: Duration, now: Moment) {
        self.refused = Some(now.passing + pause);
    }

    /// How long it is until it is to be asked for. One that is not good by the clock of now, because that was set, is due
    /// at once.
    pub(crate) fn wait(&self, current: Option<&CertificateInfo>, now: Moment) -> Duration {
        let left = |until: Option<Instant>| {
            until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now.passing))
        };
        let wait = match current {
            None => Duration::ZERO,
            Some(info) if !info.is_valid_at(now.wall) => left(self.useless),
            Some(info) => {
                let renew = info.renew_at(self.jitter).duration_since(now.wall).unwrap_or_default();
                renew.max(left(self.late))
            }
        };
        wait.max(left(self.refused))
    }
}

/// One moment by the clock on the wall and by time that passes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) wall: SystemTime,
    pub(crate) passing: Instant,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { wall: SystemTime::now(), passing: Instant::now() }
    }
}

/// Between two certificates that are not good by our clock when they come.
const USELESS: Duration = Duration::from_secs(5);

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
            Svid { holders: 0, schedule: Schedule::new(), current: watch::channel(kept).0 }
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

    /// The one that is due first, and how long that is.
    pub(crate) fn next_due(&self, now: Moment) -> Option<(String, Duration)> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |svid: &Svid| {
            let current = svid.current.borrow();
            svid.schedule.wait(current.as_ref().map(|current| &current.info), now)
        };
        wanted.iter().map(|(id, svid)| (id.clone(), wait(svid))).min_by_key(|(_, wait)| *wait)
    }

    /// The certificate of a service, and from when on the next one is asked for.
    pub(crate) fn renewal(&self, id: &str) -> Option<(CertificateInfo, SystemTime)> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let svid = wanted.get(id)?;
        let info = svid.current.borrow().as_ref()?.info.clone();
        let renew = info.renew_at(svid.schedule.jitter);
        Some((info, renew))
    }

    /// The services whose certificate is not good by the clock of now, in words.
    pub(crate) fn trouble(&self, now: SystemTime) -> Vec<String> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let bad = wanted.iter().filter_map(|(id, svid)| {
            let info = svid.current.borrow().as_ref()?.info.clone();
            (!info.is_valid_at(now)).then(|| not_good(id, &info, now))
        });
        bad.collect()
    }

    /// The certificate that was asked for, or for how long not to ask again.
    pub(crate) fn set(&self, id: &str, outcome: Result<Credential, Duration>) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(svid) = wanted.get_mut(id) else { return };
        match outcome {
            Ok(credential) => {
                svid.schedule.came(&credential.info, Moment::now());
                svid.current.send_replace(Some(Arc::new(credential)));
            }
            Err(pause) => svid.schedule.refused(pause, Moment::now()),
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

/// Why a certificate is not good by the clock of now.
fn not_good(of: &str, info: &CertificateInfo, now: SystemTime) -> String {
    let by = "by the clock of this host, so new connections fail until it is renewed or the clock is right";
    match info.not_before.duration_since(now) {
        Ok(early) => format!("the certificate of {of} is good only in {}, {by}", span(early)),
        Err(_) => {
            let late = now.duration_since(info.not_after).unwrap_or_default();
            format!("the certificate of {of} ended {} ago, {by}", span(late))
        }
    }
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
        let info = credential.info.clone();

        let svids = Svids::default();
        let bundle =
            |svid: &watch::Receiver<Option<Arc<Credential>>>| svid.borrow().as_ref().unwrap().bundle.clone();
        assert_eq!(bundle(&svids.want(dir.path(), id)), old.bundle(), "as it was kept");
        svids.release(id);
        svids.set_bundle(&new.bundle());
        assert!(svids.renewal(id).is_none(), "nobody wants it");
        let again = svids.want(dir.path(), id);
        let (shown, renew) = svids.renewal(id).unwrap();
        assert_eq!(shown, info);
        assert!(info.not_before < renew && renew < info.not_after, "{renew:?}");
        assert_eq!(bundle(&again), new.bundle());
        svids.set_bundle(&old.bundle());
        assert_eq!(bundle(&again), old.bundle(), "also while it is in use");
    }

    /// By a clock that is set, everything is asked for at the right time, and never in a circle.
    #[test]
    fn a_clock_that_is_set_makes_a_certificate_due_at_once_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (wall, passing) = (SystemTime::now(), Instant::now());
        let authority = Authority::open_or_create(&dir.path().join("ca"), "outrider.internal", wall).unwrap();
        let of = |now: SystemTime| {
            let key = PrivateKey::generate().unwrap();
            let id = SpiffeId::parse("spiffe://outrider.internal/ns/shop/svc/a").unwrap();
            let chain = authority.sign_request(&key.signing_request().unwrap(), &id, now).unwrap();
            CertificateInfo::read(&chain[0]).unwrap()
        };
        let hours = |hours: u64| Duration::from_secs(3600 * hours);
        let years = |years: u64| hours(24 * 365 * years);
        let at = |wall: SystemTime, after: Duration| Moment { wall, passing: passing + after };
        let info = of(wall);
        let life = info.not_after.duration_since(info.not_before).unwrap();
        let mut schedule = Schedule::new();
        assert_eq!(schedule.wait(None, at(wall, Duration::ZERO)), Duration::ZERO, "there is none");
        schedule.came(&info, at(wall, Duration::ZERO));
        let wait = schedule.wait(Some(&info), at(wall, Duration::ZERO));
        assert!(wait > life / 3 && wait < life * 2 / 3, "{wait:?}");
        // The clock is set a minute after it came, and half a minute later it is set right again.
        let minute = Duration::from_secs(60);
        for set in [wall + hours(25), wall + years(9), wall - hours(25), wall - years(10)] {
            assert_eq!(schedule.wait(Some(&info), at(set, minute)), Duration::ZERO, "due at once");
            assert!(schedule.wait(Some(&info), at(wall, minute * 2)) > life / 3, "as before");
        }
        // Only ours is wrong: what comes is not good either, and is asked for again, with pauses.
        for set in [wall + hours(48), wall - hours(48)] {
            let mut schedule = Schedule::new();
            schedule.came(&info, at(set, minute));
            assert_eq!(schedule.wait(Some(&info), at(set, minute)), USELESS);
            assert_eq!(schedule.wait(Some(&info), at(set, minute + USELESS)), Duration::ZERO);
            assert!(schedule.wait(Some(&info), at(wall, minute + USELESS)) > Duration::ZERO);
        }
        // A refusal counts in time that passes.
        let mut schedule = Schedule::new();
        schedule.refused(minute, at(wall, Duration::ZERO));
        for set in [wall, wall + years(1), wall - years(1)] {
            assert_eq!(schedule.wait(None, at(set, minute / 2)), minute / 2);
            assert_eq!(schedule.wait(None, at(set, minute)), Duration::ZERO);
        }
        // One that comes late in its life: with a pause, and without it if it ends meanwhile.
        let late = info.not_after - hours(1);
        schedule.came(&info, at(late, Duration::ZERO));
        assert_eq!(schedule.wait(Some(&info), at(late, Duration::ZERO)), hours(1) / 20);
        assert_eq!(schedule.wait(Some(&info), at(late + hours(2), minute)), Duration::ZERO);
    }

    #[test]
    fn what_is_not_good_by_the_clock_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let wall = SystemTime::now();
        let authority = Authority::open_or_create(dir.path(), "outrider.internal", wall).unwrap();
        let id = "spiffe://outrider.internal/ns/shop/svc/a";
        let svids = Svids::default();
        let _held = svids.want(dir.path(), id);
        assert_eq!(svids.trouble(wall), Vec::<String>::new(), "there is none yet");
        svids.set(id, Ok(crate::credentials::tests::credential(&authority, id)));
        assert_eq!(svids.trouble(SystemTime::now()), Vec::<String>::new());
        let day = Duration::from_secs(86_400);
        let [over] = &svids.trouble(wall + 3 * day)[..] else { panic!("not told") };
        assert!(over.starts_with(&format!("the certificate of {id} ended ")), "{over}");
        assert!(over.contains(" ago, by the clock of this host"), "{over}");
        let [early] = &svids.trouble(wall - 3 * day)[..] else { panic!("not told") };
        assert!(early.starts_with(&format!("the certificate of {id} is good only in ")), "{early}");
    }

    #[test]
    fn files_of_services_do_not_collide_with_the_agents_own() {
        let folder = Path::new("/x");
        assert_eq!(svid_file(folder, "spiffe://td/ns/shop/svc/node"), Path::new("/x/shop.node.json"));
        assert_eq!(node_file(folder), Path::new("/x/node.json"));
    }
}
