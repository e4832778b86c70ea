//! Who is left alone, as all workers are told: whom it was about each time, so that a worker need not look at all.

use std::collections::VecDeque;
use std::hash::Hash;

use hashbrown::HashSet;

use super::Balancer;

/// Changes that are remembered. Who has missed more looks at all endpoints, which of 100,000 is about 100 for each change.
pub(super) const REMEMBERED: usize = 1024;

/// Endpoints that are left alone, and the latest changes. Holds: a change of one takes constant time.
#[derive(Clone, Debug)]
pub struct Aside<K> {
    out: HashSet<K, foldhash::fast::RandomState>,
    /// Whom each of the latest changes was about, the oldest first.
    pub(super) latest: VecDeque<K>,
    epoch: u64,
}

impl<K> Default for Aside<K> {
    fn default() -> Self {
        Self { out: HashSet::default(), latest: VecDeque::new(), epoch: 0 }
    }
}

impl<K: Clone + Eq + Hash> Aside<K> {
    /// Says whether one is left alone.
    pub fn set(&mut self, key: &K, out: bool) {
        let changed = if out { self.out.insert(key.clone()) } else { self.out.remove(key) };
        if changed {
            self.note(key.clone());
        }
    }

    /// Says who is, of all.
    pub fn replace(&mut self, out: impl IntoIterator<Item = K>) {
        let former = std::mem::replace(&mut self.out, out.into_iter().collect());
        let changed: Vec<K> = former.symmetric_difference(&self.out).cloned().collect();
        for key in changed {
            self.note(key);
        }
    }

    fn note(&mut self, key: K) {
        self.epoch += 1;
        if self.latest.len() == REMEMBERED {
            self.latest.pop_front();
        }
        self.latest.push_back(key);
    }

    /// How many changes there were.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it is left alone.
    pub fn has(&self, key: &K) -> bool {
        self.out.contains(key)
    }

    /// How many are.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Whom the changes since then were about; `None` if that is not remembered.
    fn since(&self, epoch: u64) -> Option<impl Iterator<Item = &K>> {
        let missed = usize::try_from(self.epoch.checked_sub(epoch)?).ok()?;
        let known = self.latest.len().checked_sub(missed)?;
        Some(self.latest.iter().skip(known))
    }
}

impl<K: Clone + Eq + Hash> Balancer<K> {
    /// Takes over who is left alone, in time that goes by what has changed. `since` is what this gave the last time, 0 if
    /// nobody was left alone until now, and `u64::MAX` if that is not clear.
    pub fn follow(&mut self, aside: &Aside<K>, since: u64) -> u64 {
        match aside.since(since) {
            None => self.eject(|key| aside.has(key)),
            Some(changed) => {
                for key in changed {
                    let Some(index) = self.by_key.get(key).copied() else { continue };
                    let Some(slot) = self.slots.get_mut(index as usize) else { continue };
                    let ejected = slot.listed > 0 && aside.has(key);
                    if slot.ejected != ejected {
                        slot.ejected = ejected;
                        self.place(index);
                    }
                }
                self.settle();
            }
        }
        aside.epoch()
    }
}
