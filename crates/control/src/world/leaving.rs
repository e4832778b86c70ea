//! Instances on their way out, and whether callers know: pure.
//!
//! An instance that drains is in no endpoint set any more, which its callers learn one after the other. Its agent
//! lets nobody in any more once it is told here that all of them know, or when it has waited long enough. Holds: an
//! instance is named once every live proxy that may call it has said that it uses the endpoints as they were sent
//! after it had left, or later ones. Does not: keep time; whoever waits has a bound of its own.

use std::collections::{BTreeMap, BTreeSet};

/// Where the endpoints of its ports were when it left: load assignment → version without it.
pub(super) type Assignments = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct One {
    node: String,
    without: Assignments,
    /// Nobody calls it any more.
    left: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaving {
    /// By `NS/INSTANCE`.
    all: BTreeMap<String, One>,
    stirred: bool,
}

impl Leaving {
    /// These instances of a node drain, no others. `assignments` gives what is published without one.
    pub(super) fn report<'a>(
        &mut self,
        node: &str,
        draining: impl IntoIterator<Item = &'a str>,
        assignments: impl Fn(&str) -> Assignments,
    ) {
        let draining: BTreeSet<&str> = draining.into_iter().collect();
        self.all.retain(|proxy, one| one.node != node || draining.contains(proxy.as_str()));
        for proxy in draining {
            if !self.all.contains_key(proxy) {
                let one = One { node: node.to_owned(), without: assignments(proxy), left: false };
                self.all.insert(proxy.to_owned(), one);
                self.stirred = true;
            }
        }
    }

    /// It is no more.
    pub(super) fn forget(&mut self, proxy: &str) {
        self.all.remove(proxy);
    }

    /// Something was heard of proxies.
    pub(super) fn stir(&mut self) {
        self.stirred = true;
    }

    /// Looks again if there was reason to. `may_call` says whether a live proxy may still use earlier endpoints.
    pub(super) fn look(&mut self, may_call: impl Fn(&str, &Assignments) -> bool) {
        if !std::mem::take(&mut self.stirred) {
            return;
        }
        for (proxy, one) in self.all.iter_mut().filter(|(_, one)| !one.left) {
            one.left = !may_call(proxy, &one.without);
        }
    }

    /// Instances that nobody calls any more, by node.
    pub(super) fn left(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut left: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (proxy, one) in self.all.iter().filter(|(_, one)| one.left) {
            left.entry(one.node.clone()).or_default().insert(proxy.clone());
        }
        left
    }
}
