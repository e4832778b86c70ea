//! What the control plane is to know of this host, and what of it was not sent yet: pure.
//!
//! Holds: the state is complete at any time, so a new session gets everything again and nothing depends on
//! what an earlier one got; a burst of changes to one key is one fact. Does not: send.

use std::collections::{BTreeMap, BTreeSet};

use outrider_api::agent::{Applied, Fact, FactKind, Instances, ResourceVersion, Traffic};
use outrider_xds::server::{Seen, Versioned};
use outrider_xds_types::type_url;

use crate::scope::RETIRED;

/// Listeners of one proxy that got no socket: name → (version, why).
pub type Unbound = BTreeMap<String, (String, String)>;

#[derive(Debug, Default)]
struct InUse {
    acked: BTreeMap<String, String>,
    refused: BTreeMap<String, (String, String)>,
    changed: BTreeSet<String>,
    /// Everything is to be sent, and what was known before is to be forgotten.
    reset: bool,
}

/// The facts of a host.
#[derive(Debug, Default)]
pub struct Facts {
    instances: Instances,
    instances_changed: bool,
    applied: BTreeMap<(String, String), InUse>,
    unbound: BTreeMap<String, Unbound>,
    traffic: BTreeMap<String, Traffic>,
    traffic_changed: BTreeSet<String>,
}

impl Facts {
    /// All instances of the host.
    pub fn set_instances(&mut self, instances: Instances) {
        if self.instances != instances {
            self.instances = instances;
            self.instances_changed = true;
        }
    }

    /// What `proxy` (`NS/INSTANCE`) said about resources. Secrets are made here and not reported.
    pub fn seen(&mut self, proxy: &str, seen: &Seen) {
        let (Seen::Claimed { type_url, .. }
        | Seen::Acked { type_url, .. }
        | Seen::Refused { type_url, .. }
        | Seen::Unsubscribed { type_url, .. }) = seen
        else {
            return;
        };
        if &**type_url == type_url::SECRET {
            return;
        }
        let in_use = self.applied.entry((proxy.to_owned(), type_url.to_string())).or_default();
        match seen {
            Seen::Claimed { resources, .. } => {
                *in_use = InUse { reset: true, ..InUse::default() };
                for (name, version) in resources.iter().filter(|(_, version)| &**version != RETIRED) {
                    in_use.acked.insert(name.to_string(), version.to_string());
                }
            }
            Seen::Acked { resources, removed, .. } => {
                let retired = |(_, version): &&Versioned| &**version == RETIRED;
                for (name, version) in resources.iter().filter(|one| !retired(one)) {
                    in_use.refused.remove(&**name);
                    in_use.acked.insert(name.to_string(), version.to_string());
                    in_use.changed.insert(name.to_string());
                }
                // What stands in for a resource that has gone is ours alone.
                let stand_ins = resources.iter().filter(retired).map(|(name, _)| name);
                for name in removed.iter().chain(stand_ins) {
                    in_use.refused.remove(&**name);
                    in_use.acked.remove(&**name);
                    in_use.changed.insert(name.to_string());
                }
            }
            Seen::Refused { resources, error, .. } => {
                for (name, version) in resources {
                    in_use.refused.insert(name.to_string(), (version.to_string(), error.clone()));
                    in_use.changed.insert(name.to_string());
                }
            }
            // A proxy that drops what referred to routes or endpoints does not wait to hear that they are gone
            // too: it ends its interest, and there is nothing left for it to acknowledge. Names only ever
            // stand for themselves here; listeners and clusters are subscribed to as a whole.
            Seen::Unsubscribed { names, .. } => {
                for name in names {
                    let known = in_use.acked.remove(&**name).is_some();
                    if in_use.refused.remove(&**name).is_some() || known {
                        in_use.changed.insert(name.to_string());
                    }
                }
            }
            Seen::Subscribed { .. } => {}
        }
    }

    /// A new process of `proxy` has nothing in use yet.
    pub fn proxy_began(&mut self, proxy: &str) {
        for (_, in_use) in self.applied.iter_mut().filter(|((owner, _), _)| owner == proxy) {
            *in_use = InUse { reset: true, ..InUse::default() };
        }
    }

    /// The listeners of `proxy` that got no socket: refused by this host, whatever the proxy says.
    pub fn set_unbound(&mut self, proxy: &str, unbound: &Unbound) {
        let before = self.unbound.get(proxy);
        if before.map_or(unbound.is_empty(), |before| before == unbound) {
            return;
        }
        let key = (proxy.to_owned(), type_url::LISTENER.to_owned());
        let changed = &mut self.applied.entry(key).or_default().changed;
        changed.extend(before.into_iter().chain([unbound]).flat_map(|listeners| listeners.keys().cloned()));
        self.unbound.insert(proxy.to_owned(), unbound.clone());
    }

    /// `proxy` is gone for good.
    pub fn proxy_gone(&mut self, proxy: &str) {
        self.unbound.remove(proxy);
        self.applied.retain(|(owner, _), _| owner != proxy);
        self.traffic.remove(proxy);
        self.traffic_changed.remove(proxy);
    }

    /// The latest numbers of a proxy.
    pub fn set_traffic(&mut self, traffic: Traffic) {
        self.traffic_changed.insert(traffic.proxy.clone());
        self.traffic.insert(traffic.proxy.clone(), traffic);
    }

    /// The latest numbers of all proxies.
    pub fn traffic(&self) -> &BTreeMap<String, Traffic> {
        &self.traffic
    }

    /// A session begins: everything is to be sent.
    pub fn resend(&mut self) {
        self.instances_changed = true;
        for in_use in self.applied.values_mut() {
            in_use.reset = true;
        }
        self.traffic_changed = self.traffic.keys().cloned().collect();
    }

    /// What is to be sent now. Instances first: the rest is about them.
    pub fn take(&mut self) -> Vec<Fact> {
        let mut facts = Vec::new();
        if std::mem::take(&mut self.instances_changed) {
            facts.push(FactKind::Instances(self.instances.clone()));
        }
        for ((proxy, type_url), in_use) in &mut self.applied {
            let reset = std::mem::take(&mut in_use.reset);
            let changed = std::mem::take(&mut in_use.changed);
            if !reset && changed.is_empty() {
                continue;
            }
            let mut refused: BTreeMap<_, _> = in_use.refused.iter().collect();
            if type_url == type_url::LISTENER {
                refused.extend(self.unbound.get(proxy).into_iter().flatten());
            }
            let concerned = |name: &&String| reset || changed.contains(*name);
            let version = |(name, version): (&String, &String)| ResourceVersion {
                name: name.clone(),
                version: version.clone(),
            };
            let mut applied = Applied {
                proxy: proxy.clone(),
                type_url: type_url.clone(),
                reset,
                acked: in_use.acked.iter().filter(|(name, _)| concerned(name)).map(version).collect(),
                ..Applied::default()
            };
            if !reset {
                let gone = |name: &&String| !in_use.acked.contains_key(*name) && !refused.contains_key(*name);
                applied.removed = changed.iter().filter(gone).cloned().collect();
            }
            // One fact carries one error text, so refusals with different words travel apart.
            let mut more = Vec::new();
            let refused = refused.into_iter().filter(|(name, _)| concerned(name));
            for (at, (name, (version, error))) in refused.enumerate() {
                let one = ResourceVersion { name: name.clone(), version: version.clone() };
                if at == 0 || applied.error == *error {
                    applied.error.clone_from(error);
                    applied.refused.push(one);
                } else {
                    more.push(Applied {
                        proxy: proxy.clone(),
                        type_url: type_url.clone(),
                        refused: vec![one],
                        error: error.clone(),
                        ..Applied::default()
                    });
                }
            }
            facts.push(FactKind::Applied(applied));
            facts.extend(more.into_iter().map(FactKind::Applied));
        }
        for proxy in std::mem::take(&mut self.traffic_changed) {
            facts.extend(self.traffic.get(&proxy).cloned().map(FactKind::Traffic));
        }
        facts.into_iter().map(|kind| Fact { kind: Some(kind) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use outrider_api::agent::Instance;

    use super::*;

    fn acked(names: &[(&str, &str)], removed: &[&str]) -> Seen {
        Seen::Acked {
            type_url: type_url::CLUSTER.into(),
            resources: names.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            removed: removed.iter().map(|n| (*n).into()).collect(),
        }
    }

    fn refused(name: &str, version: &str, error: &str) -> Seen {
        Seen::Refused {
            type_url: type_url::CLUSTER.into(),
            resources: vec![(name.into(), version.into())],
            removed: Vec::new(),
            error: error.into(),
        }
    }

    /// What a server that replays facts comes to believe: (acked, refused).
    fn believe(facts: &[Fact], state: &mut (BTreeMap<String, String>, BTreeMap<String, String>)) {
        for fact in facts {
            let Some(FactKind::Applied(applied)) = &fact.kind else { continue };
            if applied.reset {
                *state = Default::default();
            }
            for one in &applied.acked {
                state.1.remove(&one.name);
                state.0.insert(one.name.clone(), one.version.clone());
            }
            for name in &applied.removed {
                state.0.remove(name);
                state.1.remove(name);
            }
            for one in &applied.refused {
                state.1.insert(one.name.clone(), applied.error.clone());
            }
        }
    }

    fn unsubscribed(names: &[&str]) -> Seen {
        let names = names.iter().map(|name| (*name).into()).collect();
        Seen::Unsubscribed { type_url: type_url::CLUSTER.into(), names }
    }

    #[test]
    fn increments_and_a_full_resend_lead_to_the_same_belief() {
        let mut facts = Facts::default();
        let mut followed = Default::default();
        let steps = [
            acked(&[("a", "1"), ("b", "1")], &[]),
            refused("a", "2", "bad a"),
            refused("c", "1", "bad c"),
            acked(&[("b", "2")], &[]),
            acked(&[], &["b"]),
            acked(&[("c", "2"), ("d", "1"), ("e", "1")], &[]),
            refused("e", "2", "bad e"),
            unsubscribed(&["d", "e", "never seen"]),
        ];
        for step in steps {
            facts.seen("shop/x-1", &step);
            believe(&facts.take(), &mut followed);
            let mut fresh = Default::default();
            facts.resend();
            believe(&facts.take(), &mut fresh);
            assert_eq!(followed, fresh);
        }
        assert_eq!(followed.0, BTreeMap::from([("a".into(), "1".into()), ("c".into(), "2".into())]));
        assert_eq!(followed.1, BTreeMap::from([("a".into(), "bad a".into())]));
        assert_eq!(facts.take(), []);

        facts.proxy_began("shop/x-1");
        believe(&facts.take(), &mut followed);
        assert_eq!(followed, Default::default(), "a new process has nothing in use");
    }

    #[test]
    fn what_stands_in_is_told_as_gone_and_what_got_no_socket_as_refused() {
        let listeners = |seen: Seen| match seen {
            Seen::Acked { resources, removed, .. } => {
                Seen::Acked { type_url: type_url::LISTENER.into(), resources, removed }
            }
            other => other,
        };
        let mut facts = Facts::default();
        let mut belief = Default::default();
        facts.seen("shop/x-1", &listeners(acked(&[("a", "1"), ("b", "1")], &[])));
        facts.seen("shop/x-1", &listeners(acked(&[("a", RETIRED)], &[])));
        let unbound = Unbound::from([("web".to_owned(), ("v1".to_owned(), "port 80 is taken".to_owned()))]);
        facts.set_unbound("shop/x-1", &unbound);
        believe(&facts.take(), &mut belief);
        let acked_now = BTreeMap::from([("b".to_owned(), "1".to_owned())]);
        let refused_now = BTreeMap::from([("web".to_owned(), "port 80 is taken".to_owned())]);
        assert_eq!(belief, (acked_now.clone(), refused_now.clone()));
        facts.set_unbound("shop/x-1", &unbound);
        assert_eq!(facts.take(), [], "nothing new");

        facts.proxy_began("shop/x-1");
        believe(&facts.take(), &mut belief);
        assert_eq!(belief, (BTreeMap::new(), refused_now), "of no process, so not forgotten with it");
        let claimed = vec![("a".into(), RETIRED.into()), ("b".into(), "1".into())];
        facts.seen("shop/x-1", &Seen::Claimed { type_url: type_url::LISTENER.into(), resources: claimed });
        facts.set_unbound("shop/x-1", &Unbound::new());
        believe(&facts.take(), &mut belief);
        assert_eq!(belief, (acked_now, BTreeMap::new()));
    }

    #[test]
    fn a_burst_is_one_fact_and_equal_instances_are_none() {
        let mut facts = Facts::default();
        let instances =
            |name: &str| Instances { instances: vec![Instance { name: name.into(), ..Instance::default() }] };
        facts.set_instances(instances("a"));
        facts.set_instances(instances("b"));
        let sent = facts.take();
        assert_eq!(sent, [Fact { kind: Some(FactKind::Instances(instances("b"))) }]);
        facts.set_instances(instances("b"));
        assert_eq!(facts.take(), []);
        facts.set_traffic(Traffic { proxy: "shop/x-1".into(), ..Traffic::default() });
        facts.set_traffic(Traffic { proxy: "shop/x-1".into(), resident_bytes: 7, ..Traffic::default() });
        assert_eq!(facts.take().len(), 1);
        facts.proxy_gone("shop/x-1");
        facts.resend();
        assert_eq!(facts.take().len(), 1, "the instances only");
    }
}
