//! When the configuration of an instance is good, and using what was good before.
//!
//! Holds: good is what a proxy that accepts connections has wholly in use, and nothing of it refused; the last good
//! is used only while the control plane is away, and only for a process that has nothing else, or for single resources that
//! are refused. What a process of an earlier agent has is at least as new, and stays. Does not: write (`lastgood` does).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::type_url;
use tokio::sync::watch;

use super::Instance;
use crate::aside::in_place;
use crate::engine::Spec;
use crate::relay::{self, Relay};
use crate::scope;
use crate::upstream::LinkState;

/// What one process is served.
pub(super) type Apart = watch::Sender<Option<ResourceSet>>;

/// A new agent finds its control plane well within it, if there is one.
const PATIENCE: Duration = Duration::from_secs(2);

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

    /// What a new process is to begin with, if that is not what is served: see [`crate::proven`].
    pub(super) fn beginning(&self) -> Option<ResourceSet> {
        let local = self.local.borrow();
        let snapshot = std::cell::OnceCell::new();
        let kept = |url: &str, name: &str| -> Option<Arc<Resource>> {
            let load = || in_place(|| self.host.last_good.load(&self.who.service_ref()).0);
            let resource = snapshot.get_or_init(load).as_ref()?.set.get(url, name)?;
            if url != type_url::LISTENER {
                return Some(resource.clone());
            }
            let (_, bound) = self.places.in_use().find(|(listener, _)| *listener == name)?;
            scope::at(resource, name, bound.address).map(Arc::new)
        };
        self.proven.beginning(local.as_ref()?, kept)
    }

    /// Something else is served than before.
    pub(super) fn served_anew(&mut self) {
        if let Some(local) = &*self.local.borrow() {
            self.proven.follow(local);
        }
        // Which may be a look at the disk.
        let begins = self.proxy.live.values().any(|live| live.begins);
        let beginning = if begins { self.beginning() } else { None };
        for live in self.proxy.live.values() {
            let Some(apart) = &live.apart else { continue };
            let set = if live.begins { beginning.clone() } else { None };
            apart.send_replace(set.or_else(|| self.local.borrow().clone()));
        }
    }

    /// A process is ready with what it was to begin with, and is offered what is declared.
    pub(super) fn has_begun(&mut self, number: u64) {
        let Some(live) = self.proxy.live.get_mut(&number) else { return };
        if std::mem::replace(&mut live.begins, false)
            && let Some(apart) = &live.apart
        {
            apart.send_replace(self.local.borrow().clone());
        }
    }

    /// The server of a process. One that `begins` may have to begin with what was in use before.
    pub(super) fn relay(&self, spec: &Spec, begins: bool) -> std::io::Result<(Relay, Option<Apart>)> {
        let (to_seen, generation) = (self.proxy.to_seen.clone(), spec.generation);
        let (served, apart) = self.served(begins);
        let relay = relay::serve(&spec.xds, served, move |seen| {
            let _ = to_seen.send((generation, seen));
        })?;
        Ok((relay, apart))
    }

    /// What a new process is served, and the sender where that is its own.
    fn served(&self, begins: bool) -> (watch::Receiver<Option<ResourceSet>>, Option<Apart>) {
        match self.beginning().filter(|_| begins) {
            None => (self.local.subscribe(), None),
            Some(set) => {
                let (apart, served) = watch::channel(Some(set));
                (served, Some(apart))
            }
        }
    }

    /// Takes the last good configuration from disk if that is all there is. Returns whether there is more to go by
    /// now.
    pub(super) fn fall_back(&mut self) -> bool {
        let nothing_else = self.local.borrow().is_none() && self.last_good.is_none();
        let in_need = nothing_else && !self.goes_on();
        if !in_need || self.host.upstream.unheard().is_none_or(|unheard| unheard < self.patience()) {
            return false;
        }
        let (snapshot, _) = in_place(|| self.host.last_good.load(&self.who.service_ref()));
        let Some(snapshot) = snapshot else { return false };
        // Wanted first: what an instance that is just ending knew of them must not go with it once it was found here.
        for endpoints in snapshot.set.of_type(type_url::ENDPOINT) {
            let name = endpoints.name.to_string();
            let upstream = &self.host.upstream;
            self.endpoints
                .entry(name)
                .or_insert_with_key(|name| upstream.subscribe(type_url::ENDPOINT, name));
        }
        // Whoever comes first is heard; if that ends before it has said all, this is looked at again.
        if !self.host.upstream.seed(&self.who.proxy(), &snapshot.set) {
            return false;
        }
        tracing::info!(instance = %self.who.name, "begins with the last good configuration");
        self.last_good = Some(snapshot.written);
        true
    }

    /// How long the control plane may take to come before the last good is used. What serves is given it as well, so
    /// that a process beside it waits.
    fn patience(&self) -> Duration {
        let serves = self.proxy.live.values().any(|live| live.ready.is_some());
        if serves { PATIENCE } else { Duration::ZERO }
    }

    /// Whether a process waits for a configuration that nobody has.
    pub(super) fn is_in_need(&self) -> bool {
        self.local.borrow().is_none() && !self.proxy.live.is_empty() && !self.goes_on()
    }

    /// Whether there are processes, and each has been ready with a configuration.
    fn goes_on(&self) -> bool {
        !self.proxy.live.is_empty() && self.proxy.live.values().all(|live| live.ready.is_some())
    }

    /// How old the configuration is, for people, while it is the last good one.
    pub(super) fn age(&self) -> Option<String> {
        let LinkState::Away(_) = self.host.upstream.link() else { return None };
        if self.local.borrow().is_none() && self.goes_on() {
            return Some(
                "without the control plane, the proxy goes on with the configuration it has".to_owned(),
            );
        }
        let written = self.last_good?;
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

#[cfg(test)]
mod tests {
    use super::super::Identity;
    use super::super::saved::Saved;
    use super::*;
    use crate::hosts::HostsFile;

    /// A stream that begins while the disk is read, and ends before it has said anything.
    #[tokio::test]
    async fn the_last_good_is_looked_at_again_if_nothing_of_it_was_taken() {
        let dir = tempfile::tempdir().unwrap();
        let host = crate::server::tests::host(dir.path());
        let set = [Resource::new(type_url::WORKLOAD, "shop/a", "v1", vec![1])].into_iter().collect();
        host.last_good.keep("shop/a", set);
        assert!(host.last_good.flush(SystemTime::now()));
        let who = Identity {
            namespace: "shop".into(),
            service: "a".into(),
            name: "a-x7k2p".into(),
            folder: dir.path().to_owned(),
            adopts: false,
            returns: false,
        };
        let hosts = HostsFile::open(&dir.path().join("hosts"), &host.options.hosts_base).unwrap();
        let saved = Saved::new("shop", "a", "a-x7k2p");
        let (mut instance, _sources) = Instance::new(host.clone(), who, hosts, &saved);
        host.upstream.dial(true);
        assert!(!instance.fall_back());
        host.upstream.dial(false);
        assert!(instance.fall_back());
        assert!(!instance.fall_back(), "once");
    }
}
