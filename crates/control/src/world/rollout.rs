//! Who has what is declared in use: `rollout`, and the configuration state of each proxy.

use std::collections::BTreeMap;

use outrider_api::http::{ProxyBehind, ResourceView, RolloutView};

use super::World;
use super::acks::{Expected, KINDS, Standing};
use super::hosts::{Host, Instance, State};

/// Most names given for one proxy.
const MAX_REASONS: usize = 50;

/// How a proxy stands to what it should have.
pub(super) struct Comparison {
    pub(super) pending: Vec<String>,
    pub(super) rejected: Vec<String>,
}

impl Comparison {
    /// `current`, `pending` or `rejected`.
    pub(super) fn word(&self) -> &'static str {
        match (self.rejected.is_empty(), self.pending.is_empty()) {
            (false, _) => "rejected",
            (true, false) => "pending",
            (true, true) => "current",
        }
    }

    /// Refusals first.
    pub(super) fn reasons(self) -> Vec<String> {
        self.rejected.into_iter().chain(self.pending).take(MAX_REASONS).collect()
    }
}

/// Whether the rollout waits for this instance's proxy: its host is there, its proxy runs and is not leaving.
fn is_live(host: &Host, instance: &Instance) -> bool {
    !host.lost && instance.proxy_pid != 0 && instance.state != State::Draining
}

impl World {
    /// Compares everything compiled for a proxy with what it said it has in use.
    pub(super) fn compare(&self, proxy: &str, instance: &Instance) -> Comparison {
        let expected = self.resources.expected(&instance.service);
        let mut comparison = Comparison { pending: Vec::new(), rejected: Vec::new() };
        for resource in &expected {
            let Expected { kind, name, .. } = resource;
            match self.acks.standing(proxy, resource) {
                Standing::Current => {}
                Standing::Pending { has: None } => {
                    comparison.pending.push(format!("{kind} {name}: not in use yet"));
                }
                Standing::Pending { has: Some(_) } => {
                    comparison.pending.push(format!("{kind} {name}: an earlier version is in use"));
                }
                Standing::Rejected { words } => {
                    comparison.rejected.push(format!("{kind} {name}: refused: {words}"));
                }
            }
        }
        for (_, kind) in KINDS {
            for name in self.acks.left_over(proxy, kind, &expected) {
                comparison.pending.push(format!("{kind} {name}: removed, but still in use"));
            }
        }
        comparison
    }

    /// Which live proxies have everything declared in use. `revision` is what was asked about; it must not be
    /// later than [`super::Declared::revision`].
    pub(crate) fn rollout(&self, revision: u64) -> RolloutView {
        let mut view =
            RolloutView { revision, current: Vec::new(), pending: Vec::new(), rejected: Vec::new() };
        for (_, host) in self.hosts.iter() {
            for (proxy, instance) in &host.instances {
                if !is_live(host, instance) || !self.is_service(&instance.service) {
                    continue;
                }
                let comparison = self.compare(proxy, instance);
                let word = comparison.word();
                let behind = || ProxyBehind { proxy: proxy.clone(), reasons: comparison.reasons() };
                match word {
                    "current" => view.current.push(proxy.clone()),
                    "pending" => view.pending.push(behind()),
                    _ => view.rejected.push(behind()),
                }
            }
        }
        view.current.sort();
        view.pending.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        view.rejected.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        view
    }

    /// Every resource of one proxy and how it stands; `None` if there is no such proxy.
    pub(crate) fn proxy_resources(&self, proxy: &str) -> Option<Vec<ResourceView>> {
        let (_, _, instance) = self.hosts.find(proxy)?;
        let expected = self.resources.expected(&instance.service);
        let mut views: BTreeMap<(&str, String), ResourceView> = BTreeMap::new();
        for resource in &expected {
            let (state, note) = match self.acks.standing(proxy, resource) {
                Standing::Current => ("current", None),
                Standing::Pending { has } => {
                    ("pending", has.map(|version| format!("version {version} is in use")))
                }
                Standing::Rejected { words } => ("rejected", Some(words)),
            };
            let view = ResourceView {
                kind: resource.kind.to_owned(),
                name: resource.name.clone(),
                version: resource.version.clone(),
                state: state.to_owned(),
                note,
            };
            views.insert((resource.kind, resource.name.clone()), view);
        }
        for (_, kind) in KINDS {
            for name in self.acks.left_over(proxy, kind, &expected) {
                let view = ResourceView {
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                    version: String::new(),
                    state: "pending".to_owned(),
                    note: Some("removed, but still in use".to_owned()),
                };
                views.insert((kind, name.to_owned()), view);
            }
        }
        Some(views.into_values().collect())
    }
}
