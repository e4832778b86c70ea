//! When the configuration of an instance is good, and using what was good before.
//!
//! Holds: good is what a proxy that accepts connections has wholly in use, and nothing of it refused; the last good
//! is used only while the control plane is away and nothing is served yet. Does not: write (`lastgood` does).

use std::time::SystemTime;

use outrider_xds::ResourceSet;

use super::Instance;
use crate::scope;
use crate::upstream::LinkState;

/// A configuration that is served and not yet known to be good.
pub(super) struct Candidate {
    /// What the proxy has to have in use.
    served: ResourceSet,
    /// The same without what is of this instance only, as it is kept.
    kept: ResourceSet,
}

impl Instance {
    /// `local` is served from now on, which was made of `kept`.
    pub(super) fn try_out(&mut self, local: &ResourceSet, kept: ResourceSet) {
        let served = scope::needed(local);
        self.candidate = Some(Candidate { served, kept });
        self.keep_if_good();
    }

    /// Has the configuration kept once the proxy has all of it in use.
    pub(super) fn keep_if_good(&mut self) {
        let Some(serving) = self.proxy.supervisor.serving() else { return };
        let in_use = &self.proxy.in_use;
        if let Some(candidate) = self.candidate.take_if(|one| in_use.has(serving.0, &one.served)) {
            self.host.last_good.keep(&self.who.service_ref(), candidate.kept);
        }
    }

    /// Takes the last good configuration from disk if that is all there is. Returns whether there is more to go by
    /// now.
    pub(super) fn fall_back(&mut self) -> bool {
        let nothing_else = self.local.borrow().is_none() && self.last_good.is_none();
        if !nothing_else || self.host.upstream.link() == LinkState::Connected {
            return false;
        }
        let (snapshot, _) = self.host.last_good.load(&self.who.service_ref());
        let Some(snapshot) = snapshot else { return false };
        self.last_good = Some(snapshot.written);
        tracing::info!(instance = %self.who.name, "begins with the last good configuration");
        self.host.upstream.seed(&self.who.proxy(), &snapshot.set)
    }

    /// How old the configuration is, for people, while it is the last good one.
    pub(super) fn age(&self) -> Option<String> {
        let written = self.last_good?;
        let LinkState::Away(_) = self.host.upstream.link() else { return None };
        let age = SystemTime::now().duration_since(written).unwrap_or_default().as_secs();
        let age = match age {
            0..120 => format!("{age} s"),
            120..7200 => format!("{} min", age / 60),
            7200..172_800 => format!("{} h", age / 3600),
            _ => format!("{} days", age / 86_400),
        };
        Some(format!("without the control plane, on the last good configuration, {age} old"))
    }
}
