//! What a proxy has in use, seen over all of its processes: pure.
//!
//! During an upgrade two processes of one proxy follow the same resources. Holds: what counts is what those have in
//! use that accept connections, or the newest one while none does; a version counts as in use when all of those say
//! so, and until they agree the version stays that they agreed on before; a refusal by one of them is a refusal.
//! Secrets are made on the host and left out, and what stands in for a resource that has gone counts as gone.
//! Does not: send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrider_xds::ResourceSet;
use outrider_xds::server::{Seen, Versioned};
use outrider_xds_types::type_url;

use crate::scope::RETIRED;

/// What is known of one resource in a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The version in use.
    pub acked: Option<Arc<str>>,
    /// The version refused and the words on it; the one in use, if any, stays so.
    pub refused: Option<(Arc<str>, Arc<str>)>,
}

/// The status of one resource has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its type.
    pub type_url: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// What holds now.
    pub status: Status,
}

type Statuses = BTreeMap<Arc<str>, BTreeMap<Arc<str>, Status>>;

#[derive(Debug, Default)]
struct Process {
    accepts: bool,
    statuses: Statuses,
}

/// See the module.
#[derive(Debug, Default)]
pub struct InUse {
    processes: BTreeMap<u64, Process>,
    /// As told by [`Change`]s.
    told: Statuses,
}

impl InUse {
    /// A process of this generation was started or found. `accepts` is whether it takes connections.
    pub fn begins(&mut self, generation: u64, accepts: bool) -> Vec<Change> {
        self.processes.insert(generation, Process { accepts, ..Process::default() });
        self.review()
    }

    /// It takes connections from now on, or no more.
    pub fn accepts(&mut self, generation: u64, accepts: bool) -> Vec<Change> {
        match self.processes.get_mut(&generation) {
            Some(process) if process.accepts != accepts => process.accepts = accepts,
            _ => return Vec::new(),
        }
        self.review()
    }

    /// It has ended.
    pub fn ends(&mut self, generation: u64) -> Vec<Change> {
        match self.processes.remove(&generation) {
            Some(_) => self.review(),
            None => Vec::new(),
        }
    }

    /// It said something about resources.
    pub fn seen(&mut self, generation: u64, seen: &Seen) -> Vec<Change> {
        let Some(process) = self.processes.get_mut(&generation) else { return Vec::new() };
        let Some((type_url, touched)) = process.take(seen) else { return Vec::new() };
        self.tell(&type_url, touched)
    }

    /// Whether one process has exactly these versions of everything in `set` in use.
    pub fn has(&self, generation: u64, set: &ResourceSet) -> bool {
        let Some(process) = self.processes.get(&generation) else { return false };
        set.iter().all(|resource| {
            let status = process.statuses.get(&resource.type_url).and_then(|of| of.get(&resource.name));
            status.is_some_and(|status| status.acked.as_ref() == Some(&resource.version))
        })
    }

    /// What is refused, in words: the first of it, and how much more there is.
    pub fn refusal(&self) -> Option<String> {
        let all = self.told.values().flatten();
        let mut refused = all.filter_map(|(name, status)| Some((name, &status.refused.as_ref()?.1)));
        let (name, why) = refused.next()?;
        let more = match refused.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Some(format!("the proxy refused a resource: {name}: {why}{more}"))
    }

    /// The generations whose word counts.
    fn counting(&self) -> Vec<&Process> {
        let accepting: Vec<_> = self.processes.values().filter(|process| process.accepts).collect();
        if accepting.is_empty() {
            self.processes.values().next_back().into_iter().collect()
        } else {
            accepting
        }
    }

    /// All resources that anybody knows or knew.
    fn review(&mut self) -> Vec<Change> {
        let mut all: BTreeMap<Arc<str>, BTreeSet<Arc<str>>> = BTreeMap::new();
        for statuses in self.processes.values().map(|process| &process.statuses).chain([&self.told]) {
            for (type_url, of_type) in statuses {
                all.entry(type_url.clone()).or_default().extend(of_type.keys().cloned());
            }
        }
        all.into_iter().flat_map(|(type_url, names)| self.tell(&type_url, names)).collect()
    }

    fn tell(&mut self, type_url: &Arc<str>, names: BTreeSet<Arc<str>>) -> Vec<Change> {
        let mut changes = Vec::new();
        for name in names {
            let before =
                self.told.get(type_url).and_then(|told| told.get(&name)).cloned().unwrap_or_default();
            let status = self.agreed(type_url, &name, &before);
            if status == before {
                continue;
            }
            let told = self.told.entry(type_url.clone()).or_default();
            if status == Status::default() {
                told.remove(&name);
            } else {
                told.insert(name.clone(), status.clone());
            }
            changes.push(Change { type_url: type_url.clone(), name, status });
        }
        changes
    }

    fn agreed(&self, type_url: &Arc<str>, name: &Arc<str>, before: &Status) -> Status {
        let counting = self.counting();
        let of = |process: &&Process| {
            process.statuses.get(type_url).and_then(|of| of.get(name)).cloned().unwrap_or_default()
        };
        let mut all = counting.iter().map(of);
        let Some(first) = all.next() else { return Status::default() };
        let mut agreed = first;
        for other in all {
            if other.acked != agreed.acked {
                agreed.acked.clone_from(&before.acked);
            }
            agreed.refused = agreed.refused.or(other.refused);
        }
        agreed
    }
}

impl Process {
    /// The names of one type that it is about.
    fn take(&mut self, seen: &Seen) -> Option<(Arc<str>, BTreeSet<Arc<str>>)> {
        let (Seen::Claimed { type_url, .. }
        | Seen::Acked { type_url, .. }
        | Seen::Refused { type_url, .. }
        | Seen::Unsubscribed { type_url, .. }) = seen
        else {
            return None;
        };
        if &**type_url == type_url::SECRET {
            return None;
        }
        let known = self.statuses.entry(type_url.clone()).or_default();
        let mut touched = BTreeSet::new();
        let retired = |(_, version): &&Versioned| &**version == RETIRED;
        let mut acked = |known: &mut BTreeMap<Arc<str>, Status>, resources: &[Versioned]| {
            for (name, version) in resources {
                touched.insert(name.clone());
                known.insert(name.clone(), Status { acked: Some(version.clone()), refused: None });
            }
            // What stands in for a resource that has gone is ours alone.
            for (name, _) in resources.iter().filter(retired) {
                known.remove(name);
            }
        };
        match seen {
            Seen::Claimed { resources, .. } => {
                let before = std::mem::take(known);
                acked(known, resources);
                touched.extend(before.into_keys());
            }
            Seen::Acked { resources, removed, .. } => {
                acked(known, resources);
                for name in removed {
                    known.remove(name);
                    touched.insert(name.clone());
                }
            }
            Seen::Refused { resources, error, .. } => {
                let error: Arc<str> = error.as_str().into();
                for (name, version) in resources {
                    known.entry(name.clone()).or_default().refused = Some((version.clone(), error.clone()));
                    touched.insert(name.clone());
                }
            }
            // A proxy that drops what referred to routes or endpoints does not wait to hear that they are gone
            // too: it ends its interest, and there is nothing left for it to acknowledge. Names only ever
            // stand for themselves here; listeners and clusters are subscribed to as a whole.
            Seen::Unsubscribed { names, .. } => {
                for name in names {
                    known.remove(name);
                    touched.insert(name.clone());
                }
            }
            Seen::Subscribed { .. } => {}
        }
        Some((type_url.clone(), touched))
    }
}

#[cfg(test)]
mod tests {
    use outrider_xds::Resource;
    use proptest::prelude::*;

    use super::*;

    fn acked(names: &[(&str, &str)], removed: &[&str]) -> Seen {
        Seen::Acked {
            type_url: type_url::CLUSTER.into(),
            resources: names.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            removed: removed.iter().map(|n| (*n).into()).collect(),
        }
    }

    fn refused(name: &str, version: &str) -> Seen {
        Seen::Refused {
            type_url: type_url::CLUSTER.into(),
            resources: vec![(name.into(), version.into())],
            removed: Vec::new(),
            error: "bad".into(),
        }
    }

    /// `name=version`, `name!refused`, `name-` as told.
    fn told(changes: Vec<Change>) -> String {
        let one = |change: Change| match (change.status.acked, change.status.refused) {
            (None, None) => format!("{}-", change.name),
            (acked, refused) => {
                let acked = acked.map(|version| format!("={version}")).unwrap_or_default();
                let refused = refused.map(|(version, _)| format!("!{version}")).unwrap_or_default();
                format!("{}{acked}{refused}", change.name)
            }
        };
        changes.into_iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn through_an_upgrade_what_counts_is_what_all_that_accept_have() {
        let mut all = InUse::default();
        assert_eq!(told(all.begins(1, false)), "");
        assert_eq!(
            told(all.seen(1, &acked(&[("a", "1"), ("b", "1")], &[]))),
            "a=1 b=1",
            "it is the only one"
        );
        assert_eq!(told(all.accepts(1, true)), "");
        assert_eq!(told(all.begins(2, false)), "");
        assert_eq!(told(all.seen(2, &acked(&[("a", "1"), ("b", "1"), ("c", "1")], &[]))), "", "it is held");
        assert_eq!(told(all.accepts(2, true)), "", "c is not in use in the other one");
        assert_eq!(told(all.seen(2, &acked(&[("a", "2")], &[]))), "", "not in both");
        assert_eq!(told(all.seen(1, &acked(&[("a", "2")], &[]))), "a=2");
        assert_eq!(told(all.seen(1, &refused("b", "2"))), "b=1!2");
        assert_eq!(told(all.seen(1, &acked(&[], &["a"]))), "", "still in use in the other one");
        assert_eq!(told(all.accepts(1, false)), "b=1 c=1");
        assert_eq!(told(all.seen(2, &acked(&[("c", RETIRED)], &[]))), "c-");
        assert_eq!(told(all.ends(1)), "");
        assert_eq!(told(all.ends(2)), "a- b-");
        assert_eq!(told(all.begins(3, true)), "");
        let claimed = Seen::Claimed {
            type_url: type_url::CLUSTER.into(),
            resources: vec![("a".into(), RETIRED.into()), ("b".into(), "1".into())],
        };
        assert_eq!(told(all.seen(3, &claimed)), "b=1");
        assert_eq!(told(all.seen(7, &claimed)), "", "nobody knows that one");
    }

    #[test]
    fn a_set_is_in_use_when_every_version_is() {
        let mut all = InUse::default();
        all.begins(1, true);
        let mut set = ResourceSet::new();
        set.insert(Resource::new(type_url::CLUSTER, "a", "2", vec![1]));
        set.insert(Resource::new(type_url::CLUSTER, "b", "1", vec![1]));
        all.seen(1, &acked(&[("a", "1"), ("b", "1")], &[]));
        assert!(!all.has(1, &set));
        all.seen(1, &refused("a", "2"));
        assert!(!all.has(1, &set));
        all.seen(1, &acked(&[("a", "2")], &[]));
        assert!(all.has(1, &set) && !all.has(2, &set));
    }

    proptest! {
        /// Who follows the changes knows what one that accepts alone has, whatever happened before.
        #[test]
        fn changes_add_up(steps in proptest::collection::vec((1..4_u64, 0..7_u8, 0..3_usize, 1..4_u8), 0..60)) {
            let mut all = InUse::default();
            let mut followed: BTreeMap<Arc<str>, Status> = BTreeMap::new();
            for (generation, step, name, version) in steps {
                let (name, version) = (["a", "b", "c"][name], version.to_string());
                let changes = match step {
                    0 => all.begins(generation, false),
                    1 => all.ends(generation),
                    2 => all.accepts(generation, true),
                    3 => all.accepts(generation, false),
                    4 => all.seen(generation, &refused(name, &version)),
                    5 => all.seen(generation, &acked(&[], &[name])),
                    _ => all.seen(generation, &acked(&[(name, &version)], &[])),
                };
                for change in changes {
                    prop_assert_ne!(followed.get(&change.name), Some(&change.status), "no change");
                    followed.insert(change.name, change.status);
                    followed.retain(|_, status| *status != Status::default());
                }
            }
            let mut last = all.begins(9, true);
            last.extend(all.seen(9, &acked(&[("b", "5")], &[])));
            for generation in 1..4 {
                last.extend(all.ends(generation));
            }
            for change in last {
                followed.insert(change.name, change.status);
                followed.retain(|_, status| *status != Status::default());
            }
            // Of the rest nothing is left; of "b" what the only one says.
            prop_assert_eq!(followed.remove("b").map(|status| status.acked), Some(Some("5".into())));
            prop_assert!(followed.is_empty(), "{:?}", followed);
        }
    }
}
