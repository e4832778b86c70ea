//! Load assignments that go out in parts: which ones a client has, and what leads from there to the next.
//!
//! Holds: what a session takes for the client's is what it sent it last, or what the client came with and is known here,
//! byte for byte. A head that is refused is followed by the whole, so that what is refused for good is refused as it would
//! be without parts. Changes are worked out once for all sessions that share a [`Memo`], which is bounded.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::pb::envoy::service::discovery::v3 as discovery;
use outrider_xds_types::pb::google::protobuf::Any;
use outrider_xds_types::{features, type_url};

use super::Versioned;
use crate::interest::Interest;
use crate::lists::{self, Delta};
use crate::set::{Resource, ResourceSet};

/// Most bytes of assignments that are remembered for clients that come back, and of changes.
const MAX_BYTES: usize = 32 << 20;
/// Most of each.
const MAX_COUNT: usize = 512;

/// What sessions of one server have worked out, and may need again. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Memo(Arc<Mutex<Remembered>>);

#[derive(Debug, Default)]
struct Remembered {
    /// Long assignments that went out, the newest last.
    sent: VecDeque<Arc<Resource>>,
    sent_bytes: usize,
    deltas: VecDeque<Step>,
    delta_bytes: usize,
}

/// From one resource to another.
#[derive(Debug)]
struct Step {
    from: Arc<Resource>,
    to: Arc<Resource>,
    delta: Option<Arc<Delta>>,
}

/// The same content may be published as another allocation.
fn is_same(one: &Arc<Resource>, other: &Arc<Resource>) -> bool {
    Arc::ptr_eq(one, other)
        || (one.name == other.name && one.version == other.version && one.body == other.body)
}

impl Step {
    /// With both ends, which nobody else may hold any more.
    fn bytes(&self) -> usize {
        let of = |delta: &Arc<Delta>| {
            let changed: usize = delta.changed.iter().map(|(name, body)| name.len() + body.len()).sum();
            delta.head.len() + changed + delta.removed.iter().map(String::len).sum::<usize>()
        };
        self.from.body.len() + self.to.body.len() + self.delta.as_ref().map_or(0, of)
    }
}

impl Memo {
    fn delta(&self, from: &Arc<Resource>, to: &Arc<Resource>) -> Option<Arc<Delta>> {
        let memo = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |step: &&Step| is_same(&step.from, from) && is_same(&step.to, to);
        if let Some(step) = memo.deltas.iter().rev().find(known) {
            return step.delta.clone();
        }
        let delta = lists::delta(&to.name, &from.body, &to.body).map(Arc::new);
        let step = Step { from: from.clone(), to: to.clone(), delta: delta.clone() };
        memo.delta_bytes += step.bytes();
        memo.deltas.push_back(step);
        while memo.deltas.len() > MAX_COUNT || memo.delta_bytes > MAX_BYTES {
            let Some(oldest) = memo.deltas.pop_front() else { break };
            memo.delta_bytes -= oldest.bytes();
        }
        delta
    }

    fn remember(&self, resource: &Arc<Resource>) {
        let memo = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memo.sent.iter().rev().any(|sent| is_same(sent, resource)) {
            return;
        }
        memo.sent_bytes += resource.body.len();
        memo.sent.push_back(resource.clone());
        while memo.sent.len() > MAX_COUNT || memo.sent_bytes > MAX_BYTES {
            let Some(oldest) = memo.sent.pop_front() else { break };
            memo.sent_bytes -= oldest.body.len();
        }
    }

    fn recall(&self, name: &str, version: &str) -> Option<Arc<Resource>> {
        let memo = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memo.sent.iter().rev().find(|sent| *sent.name == *name && *sent.version == *version).cloned()
    }
}

/// What one client has.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// The client takes parts.
    knows: bool,
    memo: Memo,
    /// Long assignments as they were sent last, by name.
    last: BTreeMap<Arc<str>, Arc<Resource>>,
    /// Of these, what went out as a head.
    heads: BTreeMap<Arc<str>, Arc<str>>,
    /// In use in the client from an earlier stream, not looked at yet.
    claimed: Vec<Versioned>,
}

impl Lists {
    pub(super) fn new(memo: Memo) -> Self {
        Self { memo, ..Self::default() }
    }

    pub(super) fn meet(&mut self, node: &Node) {
        self.knows = features::knows(&node.client_features, features::LEDS);
    }

    /// Whether what is said of endpoints one by one is an answer to parts, which needs none.
    pub(super) fn answers(&self, type_url: &str) -> bool {
        self.knows && type_url == type_url::LB_ENDPOINT
    }

    pub(super) fn claim(&mut self, claimed: &[Versioned]) {
        if self.knows {
            self.claimed.extend_from_slice(claimed);
        }
    }

    /// Finds what the client came with, while it is declared or remembered.
    pub(super) fn settle_claims(&mut self, set: &ResourceSet) {
        for (name, version) in std::mem::take(&mut self.claimed) {
            let declared = set.get(type_url::ENDPOINT, &name);
            let same = declared.filter(|resource| resource.version == version).cloned();
            let found = same.or_else(|| self.memo.recall(&name, &version));
            if let Some(found) = found.filter(|found| lists::may_be_long(&found.body)) {
                self.memo.remember(&found);
                self.last.entry(name).or_insert(found);
            }
        }
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.last.remove(name);
        self.heads.remove(name);
    }

    /// Forgets what is not wanted any more.
    pub(super) fn keep(&mut self, interest: &Interest) {
        self.last.retain(|name, _| interest.covers(name));
        self.heads.retain(|name, _| interest.covers(name));
    }

    /// Whether what is refused is a head: the whole is to be sent then.
    pub(super) fn refused(&mut self, name: &str, version: &str) -> bool {
        let is_head = self.heads.get(name).is_some_and(|head| **head == *version);
        if is_head {
            self.forget(name);
        }
        is_head
    }

    /// What is to be sent of an assignment beside its head; `None` if it is to be sent whole.
    fn step(&mut self, resource: &Arc<Resource>) -> Option<Arc<Delta>> {
        if !self.knows {
            return None;
        }
        let before = match lists::may_be_long(&resource.body) {
            true => {
                self.memo.remember(resource);
                self.last.insert(resource.name.clone(), resource.clone())
            }
            false => self.last.remove(&resource.name).and(None),
        };
        let delta = before.and_then(|before| self.memo.delta(&before, resource));
        match &delta {
            Some(_) => self.heads.insert(resource.name.clone(), resource.version.clone()),
            None => self.heads.remove(&resource.name),
        };
        delta
    }

    /// Assignments as they travel, and the endpoints that go before them.
    pub(super) fn wire(&mut self, resources: &[Arc<Resource>]) -> (Vec<discovery::Resource>, Endpoints) {
        let mut before = Endpoints::default();
        let wire = resources.iter().map(|resource| {
            let Some(delta) = self.step(resource) else { return resource.to_wire() };
            before.changed.extend(delta.changed.iter().map(|(name, body)| discovery::Resource {
                name: name.clone(),
                version: format!("{:016x}", lists::digest(body)),
                resource: Some(Any { type_url: type_url::LB_ENDPOINT.to_owned(), value: body.clone() }),
                ..discovery::Resource::default()
            }));
            before.removed.extend(delta.removed.iter().cloned());
            discovery::Resource {
                name: resource.name.to_string(),
                version: resource.version.to_string(),
                resource: Some(Any { type_url: resource.type_url.to_string(), value: delta.head.clone() }),
                metadata: Some(lists::to_metadata(delta.digest)),
                ..discovery::Resource::default()
            }
        });
        (wire.collect(), before)
    }
}

/// Endpoints one by one.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    pub(super) changed: Vec<discovery::Resource>,
    pub(super) removed: Vec<String>,
}

impl Endpoints {
    pub(super) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lists::tests::{assignment, of};

    #[test]
    fn what_is_remembered_has_a_limit_with_all_that_it_holds() {
        let memo = Memo::default();
        let body = |last: u16| assignment(&of("", (0..5_000).chain([10_000 + last])));
        let resource =
            |n: u16| Arc::new(Resource::new(type_url::ENDPOINT, "shop/api/main", n.to_string(), body(n)));
        let mut from = resource(0);
        for n in 1..200 {
            let to = resource(n);
            memo.remember(&to);
            assert!(memo.delta(&from, &to).is_some());
            from = to;
        }
        let kept = memo.0.lock().unwrap();
        let held = kept.deltas.iter().map(|step| step.from.body.len() + step.to.body.len()).sum::<usize>();
        assert!(held <= MAX_BYTES, "{held} bytes");
        assert!(kept.deltas.len() > 20);
    }
}
