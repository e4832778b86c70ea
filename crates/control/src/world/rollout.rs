//! Who has what is declared in use: `rollout`, and the configuration state of each proxy.

use std::collections::BTreeMap;

use outrider_api::http::{ProxyBehind, ResourceView, RolloutView};

use super::World;
use super::acks::{Expected, KINDS, Standing};
use super::hosts::{Instance, State};

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

impl World {
    /// Compares everything compiled for a proxy with what it said it has in use.
    pub(super) fn compare(&self, proxy: &str, instance: &Instance) -> Comparison {
        let expected = self.resources.expected(&instance.service);
        let mut comparison = Comparison { pending: Vec::new(), rejected: Vec::new() };
        for resource in &expected {
            let Expected { kind, name, .. } = resource;
            match self.acks.standing(proxy, resource) {
                Standing::Current => {}
                Standing::Pending { .. } if is_taken_away(instance, resource) => {}
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
        comparison.pending.extend(self.outstanding(&instance.service));
        comparison
    }

    /// Which proxies of declared services have everything declared in use. Those that drain are left out; one
    /// whose process does not run is behind. `revision` is what was asked about; it must not be later than
    /// [`super::Declared::revision`].
    pub(crate) fn rollout(&self, revision: u64) -> RolloutView {
        let mut view = RolloutView {
            revision,
            current: Vec::new(),
            pending: Vec::new(),
            rejected: Vec::new(),
            unreachable: Vec::new(),
        };
        for (node, host) in self.hosts.iter() {
            for (proxy, instance) in &host.instances {
                if instance.state == State::Draining || !self.is_service(&instance.service) {
                    continue;
                }
                let behind = |reasons| ProxyBehind { proxy: proxy.clone(), reasons };
                if host.lost {
                    view.unreachable.push(behind(vec![format!("nothing is heard of host {node}")]));
                    continue;
                }
                if instance.proxy_pid == 0 {
                    let why = if instance.reason.is_empty() { "" } else { ": " };
                    view.pending
                        .push(behind(vec![format!("its proxy does not run{why}{}", instance.reason)]));
                    continue;
                }
                let comparison = self.compare(proxy, instance);
                match comparison.word() {
                    "current" => view.current.push(proxy.clone()),
                    "pending" => view.pending.push(behind(comparison.reasons())),
                    _ => view.rejected.push(behind(comparison.reasons())),
                }
            }
        }
        view.current.sort();
        for list in [&mut view.pending, &mut view.rejected, &mut view.unreachable] {
            list.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        }
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
                Standing::Pending { .. } if is_taken_away(instance, resource) => {
                    ("drained", Some("its callers were sent elsewhere".to_owned()))
                }
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

/// Whether its agent keeps a resource from a proxy: where callers come in, once they are to go elsewhere for good.
fn is_taken_away(instance: &Instance, resource: &Expected) -> bool {
    instance.state == State::Draining && resource.kind == "listener" && resource.name.starts_with("inbound/")
}

#[cfg(test)]
mod tests;
